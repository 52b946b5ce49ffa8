"""Where the vectors of a system are: in this process, on a device, or in blocks on Dask's workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from dred.conjugate import Numbers
from dred.inputs import Inputs
from dred.kernel.output import array_module
from dred.ranges import Ranges
from dred.routine import Routine
from dred.run import REDUCERS, run_parts


@dataclass(frozen=True, eq=False)
class Call:
    """What a call computes with.

    Attributes
    ----------
    routine : Routine
        K a.
    place : int
        Position of a among its arguments.
    inputs : Inputs
        With b there.
    alpha : float
    axes : tuple of int
        Over which scalar products add up.
    ranges : Ranges or None
    """

    routine: Routine
    place: int
    inputs: Inputs
    alpha: float
    axes: tuple[int, ...]
    ranges: Ranges | None

    def given(self, p: Any) -> Inputs:
        """The inputs with vectors of the whole batch in the place of b."""
        arrays = tuple(p if k == self.place else a for k, a in enumerate(self.inputs.arrays))
        own = tuple(self.inputs.batch if k == self.place else o for k, o in enumerate(self.inputs.own))
        return self.inputs._replace(arrays=arrays, own=own)


@dataclass(frozen=True, eq=False)
class Here:
    """Vectors of this process, of NumPy, or of CuPy on a device: a `conjugate.Space`.

    Attributes
    ----------
    call : Call
    reduce : callable
        The sum of a formula, for some inputs and ranges.
    """

    call: Call
    reduce: Callable[[Routine, Inputs, Ranges | None], Any]

    def apply(self, p: Any) -> Any:
        call = self.call
        return self.reduce(call.routine, call.given(p), call.ranges).astype("float64") + call.alpha * p

    def map(self, function: Callable[..., Any], like: Any, *arrays: Any) -> Any:
        with np.errstate(all="ignore"):
            return function(*arrays)

    def total(self, function: Callable[..., Any], width: int, *arrays: Any) -> Any:
        return self.map(function, None, *arrays)

    def dots(self, *pairs: tuple[Any, Any]) -> Any:
        each = [self.map(partial(product, axes=self.call.axes), None, a, b) for a, b in pairs]
        return array_module(each[0]).concatenate(each, axis=-1)

    def settle(self, vectors: Sequence[Any], numbers: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Numbers]]:
        return vectors, [n if isinstance(n, np.ndarray) else n.get() for n in numbers]

    def put(self, numbers: Any) -> Any:
        return array_module(self.call.inputs.arrays[self.call.place]).asarray(numbers)

    spread = put

    def rows(self, arrays: Sequence[Any], numbers: Any) -> list[Any]:
        xp, batch = array_module(arrays[0]), self.call.inputs.batch
        places = xp.asarray(numbers)[..., None]
        found = (xp.take_along_axis(xp.broadcast_to(a, (*batch, *a.shape[-2:])), places, axis=-2) for a in arrays)
        return [a if isinstance(a, np.ndarray) else a.get() for a in found]

    def largest(self, d: Any, flat: bool) -> Any:
        found = array_module(d).argmax(d.reshape(*d.shape[:-2], -1) if flat else d.sum(axis=-1), axis=-1)
        return np.asarray(found if isinstance(found, np.ndarray | np.integer) else found.get())

    def stacked(self, columns: Any, width: int) -> Any:
        return stacked(columns, width)


def here(call: Call, backend: str, device_id: int) -> tuple[Here, Any, Call]:
    """The space of a call with arrays of this process, b in it, and the call."""
    inputs, b = call.inputs, call.inputs.arrays[call.place]
    xp, made = array_module(b), REDUCERS[inputs.kind]

    def reduce(routine: Routine, given: Inputs, ranges: Ranges | None) -> Any:
        planned = routine.sweeps(given.dtype)
        return run_parts(planned, routine.variables, given, ranges, lambda part, _: made(backend, device_id, part))[0]

    return Here(call, reduce), xp.ascontiguousarray(xp.broadcast_to(b, (*inputs.batch, *b.shape[-2:]))), call


def lazily(call: Call, backend: str, device_id: int) -> tuple[Any, Any, Call]:
    """The space of a call with dask arrays, b in it, and the call with arrays that are computed once."""
    from dred.cluster import solver

    REDUCERS["dask"](backend, device_id, call.inputs)
    arrays = solver.kept(call.inputs.arrays)
    call = replace(call, inputs=call.inputs._replace(arrays=tuple(arrays)))
    plans: dict[Any, Any] = {}

    def reduce(routine: Routine, given: Inputs, ranges: Ranges | None) -> Any:
        def made(part: Inputs, place: tuple[slice, ...]) -> Any:
            return solver.reducer(backend, plans, place)

        return run_parts(routine.sweeps(given.dtype), routine.variables, given, ranges, made)[0]

    result = reduce(call.routine, call.inputs, call.ranges)  # its chunks are wanted
    b = solver.like_result(arrays[call.place], call.inputs.batch, result)
    plans.clear()  # of b in other chunks

    def matrix(p: Any) -> Any:
        return reduce(call.routine, call.given(p), call.ranges)

    return solver.Blocks(result.chunks, call.axes, product, stacked, matrix, reduce, call.alpha), b, call


def product(a: Any, b: Any, axes: tuple[int, ...]) -> Any:
    """A scalar product in float64."""
    return array_module(a).multiply(a, b, dtype="float64").sum(axis=axes, keepdims=True)


def stacked(columns: Any, width: int) -> Any:
    """(k, *batch, rows, D) as (*batch, rows, width * k), of the first components, in float64."""
    found = np.moveaxis(columns[..., :width].astype("float64"), 0, -1)
    return found.reshape(*found.shape[:-2], -1)
