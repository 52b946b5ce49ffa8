"""The centre of points: the mean of their rows, from sums of blocks, so that a missing number costs no others."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dred.kernel.output import array_module


def sums(points: Any) -> Any:
    """Sums and numbers of the finite components of rows (..., n, dim), in float64: (1, 2, ..., dim)."""
    xp = array_module(points)
    with np.errstate(all="ignore"):
        total = points.sum(axis=-2, dtype="float64")
        count = xp.full(total.shape, float(points.shape[-2]))
        if not bool(xp.isfinite(total).all()):  # seldom, and then twice the memory
            finite = xp.isfinite(points)
            total, count = (
                xp.where(finite, points, 0).sum(axis=-2, dtype="float64"),
                finite.sum(axis=-2, dtype="float64"),
            )
    return xp.stack([total, count])[None]


def mean(parts: Any, dtype: str) -> Any:
    """The mean (..., dim) of rows with these sums (blocks, 2, ..., dim); 0 where there is none."""
    xp = array_module(parts)
    with np.errstate(all="ignore"):
        total, count = parts.sum(axis=0)
        found = (total / xp.maximum(count, 1)).astype(dtype)
        return xp.where(xp.isfinite(found), found, 0).astype(dtype)


def centre(points: Any, dtype: str) -> NDArray[Any]:
    """The mean of rows (..., n, dim), of NumPy or CuPy."""
    found: NDArray[Any] = mean(sums(points), dtype)
    return found
