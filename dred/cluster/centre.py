"""The centre of the points of a chunked array, as a lazy array: sums of blocks, added up in their order by one task."""

# mypy: allow-untyped-calls
# (dask is typed in part)

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np

from dred.cluster.tasks import host
from dred.kernel import centre as kernel


def centre(points: Any, dtype: str) -> Any:
    """The mean of rows (n, dim) of a dask or NumPy array; it depends on the rows and their chunks alone."""
    if not isinstance(points, da.Array):
        return kernel.centre(points, dtype)
    whole = points.rechunk({1: -1})
    blocks, dim = len(whole.chunks[0]), whole.shape[1]
    parts = da.map_blocks(
        _sums, whole, chunks=((1,) * blocks, (2,), (dim,)), new_axis=1, dtype="float64", meta=np.empty((0, 0, 0))
    )
    return da.map_blocks(
        kernel.mean, parts.rechunk(-1), dtype, chunks=((dim,),), drop_axis=(0, 1), dtype=dtype, meta=np.empty(0, dtype)
    )


def _sums(block: Any) -> Any:
    return kernel.sums(host(block))
