"""Arrays that are read off a state: the results of reductions, and saved fields as variables of further formulas."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dred.kernel.interpret import array_text
from dred.kernel.spec import KernelSpec
from dred.reductions import NONE, REDUCTIONS, stored

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
        """The array (M, ...) of a state, of NumPy or CuPy."""
        mine = spec.layout[self.part]
        names: dict[str, Any] = {f.name: a for f, a in zip(mine, state[spec.states(self.part)], strict=True)}
        if self.parameter is not None:
            names["K"] = self.parameter
        with np.errstate(all="ignore"):
            rows = [array_text(text, names).T for text in self.texts]
            whole = rows[0].dtype == np.int64
            xp = array_module(rows[0])
            if whole:
                rows = [xp.where(row == NONE, -1, row) for row in rows]
            numbers = {f.name for f in mine if f.kind == "index"}
            if self.saved and numbers.intersection(self.texts):
                rows = [half for row in rows for half in (row >> 20, row & 0xFFFFF)]
            result = rows[0] if len(rows) == 1 else xp.concatenate(rows, axis=1)
            if self.truth:
                result = result.astype(bool)
            elif not whole or self.saved:
                result = result.astype(spec.dtype)
        if self.places and (dim := mine[0].dim) > 1:
            result = result.reshape(len(result), result.shape[1] // dim, dim)
        return xp.ascontiguousarray(result)

    def empty(self, spec: KernelSpec) -> Any:
        """The array of no rows: its dtype and its shape but for the first number."""
        return self.read(spec, empty(spec, 0))


def array_module(array: Any) -> Any:
    """NumPy, or the library of the array, which is loaded."""
    return np if isinstance(array, np.ndarray) else sys.modules[type(array).__module__.partition(".")[0]]


def empty(spec: KernelSpec, M: int) -> State:
    """The state of M rows that have met no term: per field an array (size, M)."""
    return tuple(np.full((f.size, M), f.identity, stored(f.kind, spec.dtype, spec.acc)) for f in spec.fields)
