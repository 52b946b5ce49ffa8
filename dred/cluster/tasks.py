"""What runs on workers: pure functions from blocks and states to states. Loads neither dask nor a backend."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dred.errors import BackendError, FoldError, InputError
from dred.formula.node import canonical
from dred.kernel import engine
from dred.kernel.output import Output
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
    panel : tuple of int
        Rows of each y block, one after another from `j0` on.
    """

    i: int
    lane: int
    step: int
    i0: int
    rows: int
    j0: int
    panel: tuple[int, ...]

    def __str__(self) -> str:
        return (
            f"block i = {self.i}, lane {self.lane}, step {self.step} (kept rows {self.i0}:{self.i0 + self.rows}, "
            f"reduced rows {self.j0}:{self.j0 + sum(self.panel)})"
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
) -> State:
    """Fold the y blocks of one step into `state` (None: the neutral element), as one block.

    Parameters
    ----------
    label : str
        Names of the reductions, for errors.
    kept, parameters : sequence of array
        The x block of each kept variable, and each parameter, in the order of `spec.read`.
    reduced : sequence of sequence of array
        For each reduced variable its blocks, of the rows in `place.panel`.

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
        arrays = _arrange(spec, place, kept, reduced, parameters, host if backend != "cuda" else _as_it_is)
        more = _MORE[backend]() if backend in _MORE else {}
        return engine.fold(spec, backend, state, arrays, place.rows, sum(place.panel), i0=place.i0, j0=place.j0, **more)
    except BackendError as error:
        raise type(error)(f"{error}\n    while folding {place}\n    of {describe(spec, label)}") from error
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        raise FoldError(cause, str(place), describe(spec, label), backend, place.i, place.lane, place.step) from error


def merge_states(spec: KernelSpec, states: Sequence[State]) -> State:
    """The states of neighbouring lanes as one, joined from the first to the last."""
    merged = states[0]
    for state in states[1:]:
        merged = engine.merge(spec, merged, state)
    return merged


def finish(spec: KernelSpec, outputs: Sequence[Output], states: Sequence[State]) -> Array | tuple[Array, ...]:
    """Rows of the results, from the last states of the tree; of a single output without a tuple around it."""
    results = engine.finalize(spec, merge_states(spec, states), outputs)
    return results if results[1:] else results[0]


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
    reduced: Sequence[Sequence[Any]],
    parameters: Sequence[Any],
    moved: Callable[[Any], Any],
) -> list[Any]:
    """Arrays by position; an empty one where the formula reads none, since no block of that has travelled."""
    given = {spec.axis: iter(reduced), 1 - spec.axis: ([x] for x in kept), 2: ([p] for p in parameters)}
    heads: dict[int, list[tuple[int, ...]]] = {
        spec.axis: [(rows,) for rows in place.panel],
        1 - spec.axis: [(place.rows,)],
        2: [()],
    }
    arrays: list[Any] = [np.empty(0, spec.dtype)] * (1 + max((v.ind for v in spec.variables), default=-1))
    for v in spec.read:
        blocks = [
            _checked(moved(block), v.ind, (*head, v.dim), array_type(spec.type_of(v.ind)))
            for block, head in zip(next(given[v.cat]), heads[v.cat], strict=True)
        ]
        arrays[v.ind] = blocks[0] if len(blocks) == 1 else _joined(blocks)
    return arrays


def _joined(blocks: Sequence[Any]) -> Any:
    """One array of several blocks; on the host, unless all of them are on a device."""
    if all(hasattr(block, "__cuda_array_interface__") for block in blocks):
        from dred.kernel import cuda

        return cuda.joined(blocks)
    return np.concatenate(list(map(host, blocks)))


def _checked(array: Any, ind: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """The block, contiguous where it is on the host: it may differ from what its dask array declared."""
    if array.shape != shape or array.dtype != dtype:
        raise InputError(
            f"argument {ind}: a block holds {array.dtype} of shape {array.shape}, "
            f"but its dask array declares {dtype} of shape {shape}"
        )
    return array if hasattr(array, "__cuda_array_interface__") else np.ascontiguousarray(array)


def _as_it_is(block: Any) -> Any:
    """The block, on the device if it is there."""
    return block if hasattr(block, "__cuda_array_interface__") else host(block)


def host(block: Any) -> Array:
    """The block in host memory."""
    array: Array = np.asarray(block.get() if hasattr(block, "__cuda_array_interface__") else block)
    return array
