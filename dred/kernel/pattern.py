"""Which columns each row meets, where that is not all of them: blocks of rows, each with intervals of columns."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Pattern:
    """Blocks of rows that do not overlap, each with a list of intervals of columns; other rows meet no column.

    Attributes
    ----------
    blocks : (K, 2) int64
        First row and one past the last row.
    ends : (K,) int64
        One past the last interval of each block; its first one is the end of the block before.
    intervals : (L, 2) int64
        First column and one past the last. Those of a block increase: a column that is new to a row is beyond all that
        it has met, so that of equal values the first one is that of the lowest number. They may overlap.
    """

    blocks: Table
    ends: Table
    intervals: Table

    @staticmethod
    def of(blocks: Table, ends: Table, intervals: Table) -> Pattern:
        """The same pairs, without empty blocks and intervals, in order, neighbours as one."""
        counts = np.diff(ends, prepend=0)
        owner = np.repeat(np.arange(len(blocks)), counts)
        filled = (intervals[:, 1] > intervals[:, 0]) & (blocks[owner, 1] > blocks[owner, 0])
        owner, intervals = owner[filled], intervals[filled]
        order = np.lexsort((intervals[:, 1], intervals[:, 0], owner))
        intervals = intervals[order]
        begins = np.ones(len(owner), bool)
        begins[1:] = (owner[1:] != owner[:-1]) | (intervals[1:, 0] != intervals[:-1, 1])
        first = np.flatnonzero(begins)
        last = np.append(first[1:], len(owner)) - 1 if len(first) else first
        joined = np.stack([intervals[first, 0], intervals[last, 1]], axis=1) if len(first) else intervals
        counts = np.bincount(owner[first], minlength=len(blocks))
        there = counts > 0
        return Pattern(*map(_table, (blocks[there], np.cumsum(counts[there]), joined.reshape(-1, 2))))

    @staticmethod
    def whole(M: int, N: int) -> Pattern:
        """All of M rows meet all of N columns."""
        return Pattern.of(*(np.array(table, np.int64) for table in ([[0, M]], [1], [[0, N]])))

    @cached_property
    def columns(self) -> Table:
        """Columns that each block meets."""
        met = np.concatenate([[0], np.cumsum(self.intervals[:, 1] - self.intervals[:, 0])])
        return _table(met[self.ends] - met[self.starts])

    @property
    def starts(self) -> Table:
        """The first interval of each block."""
        return np.concatenate([np.zeros(1, np.int64), self.ends[:-1]])[: len(self.ends)]

    @property
    def pairs(self) -> int:
        """Pairs of a row and a column that meet."""
        return int(((self.blocks[:, 1] - self.blocks[:, 0]) * self.columns).sum())

    def within(self, rows: slice, columns: slice) -> Pattern:
        """What is left of it among some rows and columns, counted from the first of these."""
        blocks = np.clip(self.blocks, rows.start, rows.stop) - rows.start
        there = np.flatnonzero(blocks[:, 1] > blocks[:, 0])
        starts, ends = self.starts[there], self.ends[there]
        counts = ends - starts
        which = np.repeat(starts - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        intervals = np.clip(self.intervals[which], columns.start, columns.stop) - columns.start
        return Pattern.of(blocks[there], np.cumsum(counts), intervals)

    def span(self) -> slice:
        """The columns from the first to the last that some row meets."""
        if not len(self.intervals):
            return slice(0, 0)
        return slice(int(self.intervals[:, 0].min()), int(self.intervals[:, 1].max()))

    def items(self, batches: int) -> Table:
        """For each batch and block: batch, first row, one past the last, first interval, one past the last."""
        one = np.column_stack([np.zeros_like(self.ends), self.blocks, self.starts, self.ends])
        every = np.tile(one, (batches, 1))
        every[:, 0] = np.repeat(np.arange(batches), len(one))
        return _table(every)

    @cached_property
    def digest(self) -> str:
        """Content key, equal in every process."""
        parts: Sequence[Table] = (self.blocks, self.ends, self.intervals)
        data = b"".join(np.int64(len(part)).tobytes() + part.tobytes() for part in parts)
        return hashlib.sha256(data).hexdigest()

    def __dask_tokenize__(self) -> str:
        return self.digest


def _table(numbers: NDArray[np.int64]) -> Table:
    return np.ascontiguousarray(numbers, np.int64)
