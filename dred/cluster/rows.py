"""Rows of a variable in several blocks, in memory or on storage, that a task reads a run at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dred.cluster import panels
from dred.cluster.stored import Source


@dataclass(frozen=True)
class Stored:
    """Rows `start:stop` of a stored array: what a task is given of it."""

    source: Source
    start: int
    stop: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.stop - self.start, *self.source.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.source.dtype)


class Rows:
    """One array, as far as folds are concerned: it has a shape and a type, and gives runs of its rows.

    Parameters
    ----------
    blocks : sequence of array or Stored
        At least one; each (rows, dim), one below the other.
    dtype : dtype, optional
        Type of the rows that are given, if it is another than that of the blocks.
    """

    ndim = 2

    def __init__(self, blocks: Sequence[Any], dtype: Any = None) -> None:
        self.blocks, self._longest = blocks, 0
        self._ends = list(accumulate(block.shape[0] for block in blocks))
        self.shape = (self._ends[-1], *blocks[0].shape[1:])
        self.dtype = np.dtype(blocks[0].dtype if dtype is None else dtype)

    def astype(self, dtype: Any) -> Rows:
        """The same rows in another type, converted when they are read."""
        return Rows(self.blocks, dtype)

    def __getitem__(self, run: slice) -> NDArray[Any]:
        """Rows `start:stop`, contiguous and on the host; a view where they are in one block in memory.

        What is stored of the next run is then read in the background: the runs of a fold follow each other.
        """
        low, high, _ = run.indices(self.shape[0])
        found = [_host(block, a, b) for block, a, b in self._within(low, high)]
        self._longest = max(self._longest, high - low)
        if high < self.shape[0]:
            block, a, b = self._within(high, min(high + self._longest, self.shape[0]))[0]
            if isinstance(block, Stored):
                panels.prefetch(block.source, block.start + a, block.start + b)
        rows = found[0] if len(found) == 1 else np.concatenate(found)
        return np.ascontiguousarray(rows, self.dtype)

    def _within(self, low: int, high: int) -> list[tuple[Any, int, int]]:
        """The blocks that rows `low:high` touch, at least one, with the rows of each."""
        found, start = [], 0
        for block, end in zip(self.blocks, self._ends, strict=True):
            a, b = max(low, start), min(high, end)
            if a < b:
                found.append((block, a - start, b - start))
            start = end
        return found or [(self.blocks[0], 0, 0)]


def _host(block: Any, start: int, stop: int) -> Any:
    if isinstance(block, Stored):
        return panels.get(block.source, block.start + start, block.start + stop)
    rows = block[start:stop]
    return rows.get() if hasattr(rows, "__cuda_array_interface__") else rows
