"""Arrays that are read off a state: the results of reductions, and saved fields as variables of further formulas."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextvars import Context
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dred.kernel.flat import straight
from dred.kernel.spec import KernelSpec, array_type
from dred.reductions import NONE, REDUCTIONS

ALIKE = 2048  # bytes: components that are a multiple of it apart are in the same few sets of a cache,
WAYS = 8  # of so many lines each, say
COMPONENTS, ROWS = 64, 4096  # of a result that are turned together

State = tuple[NDArray[Any], ...]


@dataclass(frozen=True)
class Output:
    """One array of a row for each kept row.

    Attributes
    ----------
    part : int
        Number of the part of the spec whose state is read.
    texts : tuple of str
        Scalar texts over its fields and the parameter K; their values stand one after another in a row.
    parameter : float or None
    truth : bool
        Whether it is boolean.
    places : bool
        Whether a row is (K, D), or (K,) where D is 1: of the states that a ranking keeps.
    saved : bool
        Whether it is a variable of further formulas: a flat row of values; row numbers as their halves, q >> 20 and
        q & 0xFFFFF, the lower ones behind all higher ones.
    """

    part: int
    texts: tuple[str, ...]
    parameter: float | None = None
    truth: bool = False
    places: bool = False
    saved: bool = False

    @staticmethod
    def of(reduction: str, part: int = 0, parameter: Any = None) -> tuple[Output, ...]:
        """The results of a reduction; one, or those of a pair."""
        entry = REDUCTIONS[reduction]
        places = entry.parameter == "K"
        K = float(parameter) if entry.parameter == "ddof" else None
        return tuple(Output(part, r.texts, K, r.truth, places) for r in entry.results)

    def read(self, spec: KernelSpec, state: State) -> Any:
        """The array (M, ...) of a state, of NumPy or CuPy, with the dimensions of the batch in front."""
        return silently(self.found, spec, state)

    def found(self, spec: KernelSpec, state: State) -> Any:
        """The same, for a caller who works `silently`."""
        result = self.rows(spec, state)
        return result.reshape(*spec.batch, len(result) // spec.batches, *result.shape[1:]) if spec.batch else result

    def rows(self, spec: KernelSpec, state: State) -> Any:
        """The same of some rows, those of all elements of a batch next to each other: (rows, ...)."""
        mine, fields = spec.layout[self.part], state[spec.states(self.part)]
        if self.texts == spec.sole[self.part] and not self.truth:
            rows = [fields[0].T]  # as in sums, without a detour
        else:
            read = straight(spec.names[self.part], (), self.texts)
            rows = [values.T for values in read([*fields, self.parameter])]
        if whole := rows[0].dtype.kind == "i":
            xp = array_module(rows[0])
            rows = [xp.where(row == NONE, -1, row) for row in rows]
            if self.saved and {f.name for f in mine if f.kind == "index"}.intersection(self.texts):
                rows = [half for row in rows for half in (row >> 20, row & 0xFFFFF)]
        result = rows[0] if len(rows) == 1 else array_module(rows[0]).concatenate(rows, axis=1)
        if self.truth:
            result = result.astype(bool)
        elif not whole or self.saved:
            kind = array_type(spec.dtype if self.saved else spec.given or spec.dtype)
            if _alike(result):
                result = _turned(result.T, kind)
            elif result.dtype != kind:
                result = result.astype(kind, order="C")
        if self.places and (dim := mine[0].dim) > 1:
            result = result.reshape(len(result), result.shape[1] // dim, dim)
        return result if result.flags.c_contiguous else array_module(result).ascontiguousarray(result)

    def by_row(self, spec: KernelSpec, state: State) -> Any:
        """The same with the rows in front, (M, *batch, ...); what is saved (M, values)."""
        found = self.read(spec, state)
        if spec.batch:
            found = np.moveaxis(found, len(spec.batch), 0)
            found = found.reshape(len(found), prod(found.shape[1:])) if self.saved else found
            found = np.ascontiguousarray(found)
        return found

    def empty(self, spec: KernelSpec) -> Any:
        """The array of no rows, as `by_row` gives it: its dtype and its shape but for the first number."""
        return self.by_row(spec, empty(spec, 0))


def converted(spec: KernelSpec, outputs: Sequence[Output]) -> np.dtype[Any] | None:
    """The type of the only field, where that is all of a state, and is read off it as it is; else None."""
    (output, *more), alone = outputs, len(spec.layout) == 1 and not spec.batch
    sole = alone and not more and output.texts == spec.sole[0]
    if not sole or output.truth or spec.blank[0][2].kind != "f":
        return None
    return array_type(spec.dtype if output.saved else spec.given or spec.dtype)


def fields(spec: KernelSpec, outputs: Sequence[Output]) -> tuple[tuple[int, tuple[int, ...]], ...] | None:
    """For each output, the field of the state that it is, value by value, and the shape of its rows.

    None, where one of them is computed of fields, or of another type than the kernel's.
    """
    found = []
    for output in outputs:
        mine, (text, *more) = spec.layout[output.part], output.texts
        names = [field.name for field in mine]
        if spec.given or spec.batch or output.truth or output.saved or more or text not in names:
            return None
        at, dim = names.index(text), mine[0].dim
        rows = (mine[at].places, dim) if output.places and dim > 1 else (mine[at].size,)
        found.append((spec.states(output.part).start + at, rows))
    return tuple(found) if len({at for at, _ in found}) == len(found) else None


def read(spec: KernelSpec, state: State, outputs: Sequence[Output]) -> tuple[Any, ...]:
    """What all outputs read off a state, for a caller who works `silently`."""
    return tuple([output.found(spec, state) for output in outputs])


SILENCE = Context()  # a copy of it runs what it is given without warnings of NumPy: an `np.errstate`, but ready
SILENCE.run(np.seterr, all="ignore")


def silently(function: Callable[..., Any], *args: Any) -> Any:
    """What a function gives, without warnings of NumPy."""
    return SILENCE.copy().run(function, *args)


def _alike(result: Any) -> bool:
    """Whether components of an array of NumPy lie where a cache has few lines for them."""
    if not isinstance(result, np.ndarray) or result.shape[1] <= WAYS:
        return False
    return result.flags.f_contiguous and result.strides[1] % ALIKE == 0


def _turned(field: NDArray[Any], kind: Any) -> NDArray[Any]:
    """The rows of a field (size, rows), by way of a small array whose components are in different sets of a cache."""
    size, M = field.shape
    out = np.empty((M, size), kind)
    near = np.empty((min(size, COMPONENTS), min(M, ROWS) + 64 // out.itemsize), kind)
    for k in range(0, size, COMPONENTS):
        for i in range(0, M, ROWS):
            here = field[k : k + COMPONENTS, i : i + ROWS]
            there = near[: here.shape[0], : here.shape[1]]
            there[...] = here
            out[i : i + ROWS, k : k + COMPONENTS] = there.T
    return out


def array_module(array: Any) -> Any:
    """NumPy, or the library of the array, which is loaded."""
    return np if isinstance(array, np.ndarray) else sys.modules[type(array).__module__.partition(".")[0]]


def empty(spec: KernelSpec, M: int) -> State:
    """The state of M rows that have met no term: per field an array (size, M), of all batches next to each other."""
    M *= spec.batches
    state = []
    for size, value, kind in spec.blank:
        field = np.empty((size, M), kind)  # and fill: faster than np.full, which matters for small problems
        field.fill(value)
        state.append(field)
    return tuple(state)
