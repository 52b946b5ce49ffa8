"""What runs on workers: pure functions from blocks and states to states. Loads neither dask nor a backend."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dred.cluster import store
from dred.cluster.rows import Rows, Stored
from dred.errors import BackendError, FoldError, InputError, StoreError
from dred.formula.language import Variable
from dred.formula.node import canonical
from dred.kernel import engine
from dred.kernel.output import Output, array_module
from dred.kernel.pattern import Pattern
from dred.kernel.spec import KernelSpec, array_type
from dred.kernel.threads import declared, thread_count

Array = NDArray[Any]
State = tuple[Array, ...]


@dataclass(frozen=True)
class Place:
    """Where in the plan a fold task stands.

    Attributes
    ----------
    i, lane, step : int
        Number of the x block, of the lane, and of the task within the lane.
    i0, rows : int
        First kept row (of all) and number of kept rows.
    j0 : int
        First reduced row (of all).
    blocks : tuple of int
        Rows of each y block, one after another from `j0` on.
    panel : int
        Most reduced rows that are folded at once.
    """

    i: int
    lane: int
    step: int
    i0: int
    rows: int
    j0: int
    blocks: tuple[int, ...]
    panel: int

    @property
    def columns(self) -> int:
        """Number of reduced rows."""
        return sum(self.blocks)

    def panels(self) -> Iterator[slice]:
        """The runs of reduced rows, counted from `j0`, that are folded one after another: at least one."""
        for start in range(0, max(1, self.columns), self.panel):
            yield slice(start, min(start + self.panel, self.columns))

    def __str__(self) -> str:
        return (
            f"block i = {self.i}, lane {self.lane}, step {self.step} (kept rows {self.i0}:{self.i0 + self.rows}, "
            f"reduced rows {self.j0}:{self.j0 + self.columns})"
        )


def fold_blocks(
    spec: KernelSpec,
    label: str,
    backend: str,
    place: Place,
    state: State | None,
    kept: Sequence[Any],
    reduced: Sequence[Sequence[Any]],
    parameters: Sequence[Any],
    met: Pattern | None = None,
) -> State:
    """Fold the y blocks of one step into `state` (None: the neutral element), panel by panel.

    Parameters
    ----------
    label : str
        Names of the reductions, for errors.
    kept, parameters : sequence of array
        The x block of each kept variable, and each parameter, in the order of `spec.read`.
    reduced : sequence of sequence of array or Stored
        For each reduced variable its blocks, of the rows in `place.blocks`, or one run that is read from storage.
    met : Pattern, optional
        Which of these reduced rows each kept row meets; default: all.

    Raises
    ------
    BackendError
        This worker cannot run the backend that the plan names, or (DeviceMemoryError) its GPU is too small.
    FoldError
        Anything else that went wrong, with its place in the plan.
    """
    try:
        if state is None:
            state = engine.empty(spec, place.rows)
        moved = host if backend != "cuda" else _as_it_is
        fixed = _arrange(spec, place, kept, parameters, moved)
        rows = _reduced(spec, place, reduced, moved)
        more = _MORE[backend]() if backend in _MORE else {}
        # A GPU gets them as one array, and keeps the x block and the state meanwhile; it has panels of its own.
        whole = backend == "cuda" and met is None and not spec.batch
        for panel in [slice(0, place.columns)] if whole else place.panels():
            part = None if met is None else met.within(slice(0, place.rows), panel)
            if part is not None and not part.pairs:
                continue  # without being read
            read = {ind: _as_one(run) if whole else run[panel] for ind, run in rows.items()}
            arrays = [read.get(ind, array) for ind, array in enumerate(fixed)]
            if spec.batch:
                arrays = unrolled(spec, arrays)
            columns, j0 = panel.stop - panel.start, place.j0 + panel.start
            state = engine.fold(
                spec, backend, state, arrays, place.rows, columns, pattern=part, i0=place.i0, j0=j0, **more
            )
        return state
    except BackendError as error:
        raise type(error)(f"{error}\n    while folding {place}\n    of {describe(spec, label)}") from error
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        raise FoldError(cause, str(place), describe(spec, label), backend, place.i, place.lane, place.step) from error


def nothing(spec: KernelSpec, rows: int) -> State:
    """The state of rows that have met no others."""
    return engine.empty(spec, rows)


def unrolled(spec: KernelSpec, arrays: Sequence[Any]) -> list[Any]:
    """The arrays by position as folds of batches have them: (*own, rows, dim), of rows that carry all elements."""
    found = list(arrays)
    for v in spec.read:
        own, block = spec.own_of(v.ind), arrays[v.ind]
        if v.cat == 2:
            found[v.ind] = block.reshape(*own, v.dim)
        else:
            rows = block.reshape(len(block), *own, v.dim)
            found[v.ind] = array_module(rows).ascontiguousarray(array_module(rows).moveaxis(rows, 0, -2))
    return found


def merge_states(spec: KernelSpec, states: Sequence[State]) -> State:
    """The states of neighbouring lanes as one, joined from the first to the last."""
    merged = states[0]
    for state in states[1:]:
        merged = engine.merge(spec, merged, state)
    return merged


def finish(spec: KernelSpec, outputs: Sequence[Output], states: Sequence[State]) -> Array | tuple[Array, ...]:
    """Rows of the results, from the last states of the tree; of a single output without a tuple around it."""
    results = engine.finalize(spec, merge_states(spec, states), outputs, by_row=True)
    return results if results[1:] else results[0]


def assemble(pieces: Sequence[Sequence[Any]], runs: Sequence[tuple[int, int, int]]) -> Any:
    """A block, or a parameter, of rows of chunks; each chunk comes with its columns in several arrays.

    Parameters
    ----------
    runs : sequence of (int, int, int)
        Of each chunk: first row and the one after the last, and how many rows there are.

    Raises
    ------
    InputError
        A chunk has another number of rows.
    """
    for row, (_, _, rows) in zip(pieces, runs, strict=True):
        for block in row:
            if block.shape[0] != rows:
                raise InputError(
                    f"a chunk of a dask array holds {block.dtype} of shape {block.shape}, but its dask array declares "
                    f"{rows} rows"
                )
    cut = [[block[start:stop] for block in row] for row, (start, stop, _) in zip(pieces, runs, strict=True)]
    flat = [block for row in cut for block in row]
    if len(flat) == 1:
        return flat[0] if hasattr(flat[0], "__cuda_array_interface__") else host(flat[0]).copy()  # the chunk may go
    if all(hasattr(block, "__cuda_array_interface__") for block in flat):
        from dred.kernel import cuda

        return cuda.joined([cuda.joined(row, axis=-1) for row in cut])
    return np.concatenate([np.concatenate(list(map(host, row)), axis=-1) for row in cut])


def keep(state: State) -> State:
    """The state of a lane that has no more steps."""
    return state


def save_state(state: State, path: str) -> State:
    """The state, which is in a store from now on."""
    store.save(path, state)
    return state


def load_state(path: str) -> State:
    """A state from a store.

    Raises
    ------
    StoreError
        This worker does not see it.
    """
    found = store.load(path)
    if found is None:
        raise StoreError(f"{path} cannot be read on {platform.node()}: name a folder that all workers share")
    return found


def finish_into(spec: KernelSpec, outputs: Sequence[Output], states: Sequence[State], target: Any) -> Any:
    """Rows of the results, put into a file of a store, or a target of this process; else given.

    Returns an array of one element: the tuple of the results, or nothing where they were put somewhere.
    """
    cell = np.empty(1, dtype=object)
    results = engine.finalize(spec, merge_states(spec, states), outputs, by_row=True)
    if target is None:
        cell[0] = results
    elif isinstance(target, str):
        store.save(target, results)
    else:
        target.put(results)
    return cell


def pick(results: Sequence[Array], n: int) -> Array:
    """One of several results. (dask would join `operator.getitem` with a slice that follows.)"""
    return results[n]


@dataclass(frozen=True)
class Machine:
    """What a worker computes with, as far as the bits of results depend on it.

    Attributes
    ----------
    gpus : int
        CUDA devices that it can use.
    cpu, gpu : str
        Architectures: "x86_64", "sm_90" (of its current device; "" where there is none).
    """

    gpus: int
    cpu: str
    gpu: str


def machine() -> Machine:
    """This process: what workers are asked before a graph is built."""
    from dred.kernel import cuda

    count = cuda.device_count()
    return Machine(count, platform.machine(), cuda.architecture() if count else "")


def share() -> int | None:
    """Threads of one fold, in a worker of a cluster that runs several tasks at once: its part of this process's.

    None where nobody divides them: DRED_NUM_THREADS is meant for a fold, and folds of dask's threaded scheduler, of
    which there may be one or many, take turns (`dred.kernel.threads`).
    """
    folds = None if declared() is not None else _folds()
    return None if folds is None else max(1, thread_count() // folds)


def _folds() -> int | None:
    """Tasks that this worker of a cluster runs at once; None where this is no worker."""
    distributed = sys.modules.get("distributed.worker")  # where it is not loaded, this is no worker
    if distributed is None:
        return None
    try:
        return int(distributed.get_worker().state.nthreads)
    except ValueError:
        return None


def _threads() -> dict[str, Any]:
    threads = share()
    return {} if threads is None else {"threads": threads}


def _memory() -> dict[str, Any]:
    """What one fold may hold of the GPU; that of all folds is the limit of CuPy's pool, in a worker of a cluster."""
    from dred.cluster import config
    from dred.kernel import cuda

    memory, folds = config.cuda_memory(), _folds()
    if folds is None:
        return {"memory": memory}
    return {"memory": cuda.bound_pool(memory) / folds}


_MORE = {"cpu": _threads, "cuda": _memory}  # arguments of a fold that are this process's own


def describe(spec: KernelSpec, label: str, most: int = 300) -> str:
    """Reductions and formulas as text, of at most about `most` characters each: "Sum(F), LogSumExp(F, G), axis=1"."""
    texts = [", ".join(map(canonical, part.formulas)) for part in spec.parts]
    texts = [text if len(text) <= most else text[:most] + "..." for text in texts]
    parts = (f"{name}({text})" for name, text in zip(label.split(", "), texts, strict=True))
    return f"{', '.join(parts)}, axis={spec.axis}"


def _arrange(
    spec: KernelSpec,
    place: Place,
    kept: Sequence[Any],
    parameters: Sequence[Any],
    moved: Callable[[Any], Any],
) -> list[Any]:
    """Kept variables and parameters by position; an empty array for others, also where the formula reads none."""
    given = {1 - spec.axis: iter(kept), 2: iter(parameters)}
    head: dict[int, tuple[int, ...]] = {1 - spec.axis: (place.rows,), 2: ()}
    arrays: list[Any] = [np.empty(0, spec.dtype)] * (1 + max((v.ind for v in spec.variables), default=-1))
    for v in spec.read:
        if v.cat != spec.axis:
            arrays[v.ind] = _checked(spec, v, moved(next(given[v.cat])), (*head[v.cat], spec.width(v)))
    return arrays


def _reduced(
    spec: KernelSpec, place: Place, reduced: Sequence[Sequence[Any]], moved: Callable[[Any], Any]
) -> dict[int, Rows]:
    """The rows of the reduced variables that the formula reads, by position."""
    found = {}
    for v, blocks in zip((v for v in spec.read if v.cat == spec.axis), reduced, strict=True):
        counts = place.blocks if len(blocks) == len(place.blocks) else (place.columns,)
        found[v.ind] = Rows(
            [
                _checked(spec, v, block if isinstance(block, Stored) else moved(block), (rows, spec.width(v)))
                for block, rows in zip(blocks, counts, strict=True)
            ]
        )
    return found


def _as_one(rows: Rows) -> Any:
    """The rows where they are, if that is one array or can be one of the device; else themselves, read run by run."""
    if len(rows.blocks) == 1 and not isinstance(rows.blocks[0], Stored):
        return rows.blocks[0]
    if all(hasattr(block, "__cuda_array_interface__") for block in rows.blocks):
        from dred.kernel import cuda

        return cuda.joined(rows.blocks)
    return rows


def _checked(spec: KernelSpec, v: Variable, array: Any, shape: tuple[int, ...]) -> Any:
    """The block, contiguous where it is on the host: it may differ from what its dask array declared."""
    dtype = array_type(spec.type_of(v.ind))
    if array.shape != shape or array.dtype != dtype:
        raise InputError(
            f"argument {v.ind}: a block holds {array.dtype} of shape {array.shape}, "
            f"but its dask array declares {dtype} of shape {shape}"
        )
    return np.ascontiguousarray(array) if isinstance(array, np.ndarray) else array


def _as_it_is(block: Any) -> Any:
    """The block, on the device if it is there."""
    return block if hasattr(block, "__cuda_array_interface__") else host(block)


def host(block: Any) -> Array:
    """The block in host memory."""
    if isinstance(block, np.ma.MaskedArray):
        raise InputError(
            "a block is a masked array, whose mask would be lost: fill what is masked, as da.ma.filled does"
        )
    array: Array = np.asarray(block.get() if hasattr(block, "__cuda_array_interface__") else block)
    return array
