"""What runs on workers: pure functions from blocks and states to states. Loads neither dask nor a backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dred.errors import BackendError, DredError, InputError
from dred.formula.language import Variable, canonical
from dred.formula.node import variables
from dred.kernel import engine
from dred.kernel.spec import KernelSpec

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


class FoldError(DredError, RuntimeError):
    """A fold task failed.

    Parameters
    ----------
    cause : str
        Type and text of the exception.
    place : Place
        Which task: the attributes `i`, `lane`, `step` are taken from it.
    formula : str
        What was being computed, shortened.
    backend : str
        By which kernels.
    """

    def __init__(self, cause: str, place: Place, formula: str, backend: str) -> None:
        self.cause, self.place, self.formula, self.backend = cause, place, formula, backend
        self.i, self.lane, self.step = place.i, place.lane, place.step
        super().__init__(f"{cause}\n    while folding {place}\n    of {formula}\n    on backend {backend!r}")


def fold_blocks(
    spec: KernelSpec,
    backend: str,
    place: Place,
    state: State | None,
    kept: Sequence[Any],
    reduced: Sequence[Sequence[Any]],
    parameters: Sequence[Any],
) -> State:
    """Fold the y blocks of one step, one after another, into `state` (None: the neutral element).

    Parameters
    ----------
    kept, parameters : sequence of array
        The x block of each kept variable, and each parameter, in the order of `read(spec)`.
    reduced : sequence of sequence of array
        For each y block of `place.panel`, the block of each reduced variable.

    Raises
    ------
    BackendError
        This worker cannot run the backend that the plan names.
    FoldError
        Anything else that went wrong, with its place in the plan.
    """
    try:
        if state is None:
            state = engine.empty(spec, place.rows)
        needed = read(spec)
        j0 = place.j0
        for rows, blocks in zip(place.panel, reduced, strict=True):
            arrays = _arrange(spec, needed, place.rows, rows, kept, blocks, parameters)
            state = engine.fold(spec, backend, state, arrays, place.rows, rows, i0=place.i0, j0=j0)
            j0 += rows
        return state
    except BackendError as error:
        raise BackendError(f"{error}\n    while folding {place}\n    of {describe(spec)}") from error
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        raise FoldError(cause, place, describe(spec), backend) from error


def merge_states(spec: KernelSpec, states: Sequence[State]) -> State:
    """The states of neighbouring lanes as one, joined from the first to the last."""
    merged = states[0]
    for state in states[1:]:
        merged = engine.merge(spec, merged, state)
    return merged


def finish(spec: KernelSpec, states: Sequence[State]) -> Array:
    """Rows of the result, from the last states of the tree."""
    return engine.finalize(spec, merge_states(spec, states))


def read(spec: KernelSpec) -> tuple[Variable, ...]:
    """The variables that the formula reads: only their blocks travel."""
    found = {node.attrs for node in variables(spec.formula)}
    return tuple(v for v in spec.variables if (v.ind, v.cat) in found)


def devices() -> int:
    """GPUs that this process can compute on: what workers are asked before a graph is built."""
    from dred.kernel import cuda

    return cuda.device_count()


def describe(spec: KernelSpec, most: int = 300) -> str:
    """Reduction and formula as text of at most about `most` characters."""
    text = canonical(spec.formula)
    return f"{spec.reduction}({text if len(text) <= most else text[:most] + '...'}), axis={spec.axis}"


def _arrange(
    spec: KernelSpec,
    needed: Sequence[Variable],
    M: int,
    N: int,
    kept: Sequence[Any],
    reduced: Sequence[Any],
    parameters: Sequence[Any],
) -> list[Array]:
    """Host arrays by position, checked: a block may differ from what its dask array declared."""
    blocks = {spec.axis: iter(reduced), 1 - spec.axis: iter(kept), 2: iter(parameters)}
    rows: dict[int, tuple[int, ...]] = {spec.axis: (N,), 1 - spec.axis: (M,), 2: ()}
    dtype = np.dtype(spec.dtype)
    arrays = [np.empty(0, dtype)] * (1 + max((v.ind for v in spec.variables), default=-1))
    for variable in spec.variables:
        shape = (*rows[variable.cat], variable.dim)
        if variable not in needed:
            arrays[variable.ind] = np.zeros(shape, dtype)
            continue
        block = host(next(blocks[variable.cat]))
        if block.shape != shape or block.dtype != dtype:
            raise InputError(
                f"argument {variable.ind}: a block holds {block.dtype} of shape {block.shape}, "
                f"but its dask array declares {dtype} of shape {shape}"
            )
        arrays[variable.ind] = np.ascontiguousarray(block)
    return arrays


def host(block: Any) -> Array:
    """The block in host memory."""
    array: Array = np.asarray(block.get() if hasattr(block, "__cuda_array_interface__") else block)
    return array
