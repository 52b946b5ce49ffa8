"""NaN in arrays, found before they are computed with."""

# mypy: allow-untyped-calls
# (dask is typed in part)

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import dask.array as da
import numpy as np
from dask.base import compute as computed

from dred.errors import InputError


def refuse(arrays: Mapping[str, Any]) -> None:
    """Read arrays once, block by block, wherever dask computes, and refuse NaN.

    Parameters
    ----------
    arrays : mapping of str to array
        NumPy and dask arrays by what they are called.

    Raises
    ------
    InputError
        With the number of NaN in the first array that has some, and the place of the first one.
    """
    looks = {name: array.to_delayed().reshape(-1) for name, array in arrays.items() if isinstance(array, da.Array)}
    tasks = {name: [_delayed(block) for block in blocks] for name, blocks in looks.items()}
    found = dict(zip(tasks, computed(*tasks.values()), strict=True))
    for name, array in arrays.items():
        if isinstance(array, da.Array):  # of several chunks of columns, those of the first rows come first
            starts = [0, *accumulate(array.chunks[0])]
            columns = len(found[name]) // max(1, len(array.chunks[0]))
            each = [(count, starts[n // columns] + row) for n, (count, row) in enumerate(found[name])]
        else:
            each = [look(np.asarray(array))]
        if count := sum(count for count, _ in each):
            first = min(row for count, row in each if count)
            raise InputError(
                f"{name} has {count} NaN, the first in row {first}: leave these rows out, or let them propagate into "
                "the results"
            )


def look(block: Any) -> tuple[int, int]:
    """How many NaN a block has, and the row of the first one (0 where there is none)."""
    rows = np.isnan(block).reshape(len(block), math.prod(block.shape[1:])).sum(axis=1)
    return int(rows.sum()), int(np.argmax(rows > 0)) if len(rows) else 0


def _delayed(block: Any) -> Any:
    from dask.delayed import delayed

    return delayed(look, pure=True)(block)
