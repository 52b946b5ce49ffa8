"""Cotangents of results, and gradients, in the shapes that callers have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dred.formula.pullback import Reduced
from dred.kernel.spec import array_type
from dred.reductions import REDUCTIONS


def sending_of(reduced: Sequence[Reduced]) -> list[Reduced]:
    """The reductions that have a derivative: each takes a cotangent."""
    return [r for r in reduced if any(REDUCTIONS[r.name].pullbacks.get("", ()))]


def in_rows(r: Reduced, cotangent: Any) -> Any:
    """A cotangent of a result (..., K, dim), of a ranking of vectors, as rows; any other as it is."""
    vectors = REDUCTIONS[r.name].parameter == "K" and r.node.dim > 1
    if not vectors or getattr(cotangent, "ndim", 0) < 3:
        return cotangent
    return cotangent.reshape(*cotangent.shape[:-2], cotangent.shape[-2] * cotangent.shape[-1])


def like(rows: Any, variable: Any, dtype: str, added: bool) -> Any:
    """The gradient by a variable of what is left for each row, and element of a batch: of the shape of the variable.

    Parameters
    ----------
    rows : array (..., rows, dim)
    variable : array
        Of the same dimensions, or fewer, of which some are 1; without that of the rows where these are added up.
    dtype : str
        Of the result.
    added : bool
        Whether rows are added up.
    """
    shape = tuple(variable.shape)
    lead = rows.ndim - (1 if added else 0) - len(shape)
    sizes = (*rows.shape[:-2], *rows.shape[-1:]) if added else rows.shape
    once = tuple(d for d, n in enumerate(sizes) if d < lead or (shape[d - lead] == 1 and n > 1))
    if not once and not added:
        return rows
    with np.errstate(over="ignore"):  # beyond the largest number is inf
        found = rows.sum(axis=-2, dtype="float64") if added else rows
        found = found.sum(axis=once, dtype="float64", keepdims=True)[(0,) * lead]
        return found.astype(array_type(dtype))


def fit(rows: Any, variable: Any, added: bool) -> Any:
    """The same, of the type of the rows."""
    return like(rows, variable, str(rows.dtype), added)
