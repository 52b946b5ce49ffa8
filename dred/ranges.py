"""Block-sparse ranges: which rows meet which columns, as six arrays of the caller's, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dred.errors import InputError
from dred.kernel.pattern import Pattern

_NAMES = (("ranges_i", "slices_i", "redranges_j"), ("ranges_j", "slices_j", "redranges_i"))
_SWAPPED = "; were they made for the other axis? dred.swap_axes exchanges the two"


@dataclass(frozen=True, eq=False)
class Ranges:
    """Pairs of rows to be visited, for reductions over j and over i.

    Attributes
    ----------
    rows : (int, int)
        M and N.
    over_j, over_i : Pattern
        Intervals of j for blocks of i, and intervals of i for blocks of j.
    """

    rows: tuple[int, int]
    over_j: Pattern
    over_i: Pattern

    def along(self, axis: int) -> Pattern:
        """The pattern of a reduction over j (axis 1) or over i (axis 0)."""
        return self.over_j if axis == 1 else self.over_i

    @staticmethod
    def of(ranges: Any, M: int, N: int) -> Ranges:
        """The ranges of a call.

        Parameters
        ----------
        ranges : Ranges, or sequence of six integer arrays
            KeOps' form: ranges_i (K, 2), slices_i (K,), redranges_j (L, 2), and the same with i and j exchanged. The
            rows `ranges_i[k, 0]:ranges_i[k, 1]` are reduced over the intervals number `slices_i[k-1]` to `slices_i[k]`
            (without it) of `redranges_j`.
        M, N : int
            Rows for each i and each j.

        Raises
        ------
        InputError
            Not of this form; blocks that overlap; slices that fall; rows that are not there; two halves that are not
            about the same pairs.
        """
        if isinstance(ranges, Ranges):
            if ranges.rows != (M, N):
                raise InputError(f"the ranges were made for M, N = {ranges.rows}, the arrays have {(M, N)} rows")
            return ranges
        if not isinstance(ranges, tuple | list) or len(ranges) != 6:
            what = f"{len(ranges)}" if isinstance(ranges, tuple | list) else f"a {type(ranges).__name__}"
            names = ", ".join((*_NAMES[0], *_NAMES[1]))
            raise InputError(f"ranges are six integer arrays, {names}; got {what}")
        over_j = _pattern(ranges[:3], _NAMES[0], (M, N), "ij")
        over_i = _pattern(ranges[3:], _NAMES[1], (N, M), "ji")
        if over_j.pairs != over_i.pairs or _mark(over_j, False) != _mark(over_i, True):
            others = f"{over_i.pairs:,}" if over_j.pairs != over_i.pairs else "as many, but others"
            first, last = (f"{', '.join(names[:2])} and {names[2]}" for names in _NAMES)
            raise InputError(f"{first} are {over_j.pairs:,} pairs, {last} {others}: they must be the same ones")
        return Ranges((M, N), over_j, over_i)


def _mark(pattern: Pattern, swapped: bool) -> int:
    """A number that patterns of the same pairs have in common: the sum of products of random numbers of i and of j.

    The sum of the numbers of rows 0 ... n - 1 is itself as good as random, so that runs of rows take no more than their
    ends.
    """
    kept, met = (_random(table, k ^ swapped) for k, table in enumerate((pattern.blocks, pattern.intervals)))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(met[:, 1] - met[:, 0], dtype=np.uint64)])
    return int(((kept[:, 1] - kept[:, 0]) * (sums[pattern.ends] - sums[pattern.starts])).sum(dtype=np.uint64))


def _random(rows: NDArray[np.int64], which: int) -> NDArray[np.uint64]:
    """The finalizer of splitmix64 (Steele, Lea, Flood 2014) of numbers, for i (0) or j (1)."""
    z = (rows.astype(np.uint64) + np.uint64(1 + which)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _pattern(tables: Sequence[Any], names: Sequence[str], rows: tuple[int, int], letters: str) -> Pattern:
    blocks, ends, intervals = (
        _table(table, name, pair) for table, name, pair in zip(tables, names, (True, False, True), strict=True)
    )
    if len(ends) != len(blocks):
        raise InputError(f"{names[1]} has {len(ends)} entries for {len(blocks)} blocks of {names[0]}")
    falls = np.flatnonzero(np.diff(ends, prepend=0) < 0)
    if len(falls):
        k = int(falls[0])
        before = int(ends[k - 1]) if k else 0
        raise InputError(f"{names[1]}[{k}] = {ends[k]} is less than {before} before it: slices never fall")
    if (last := int(ends[-1]) if len(ends) else 0) != len(intervals):
        raise InputError(f"{names[1]} ends at {last}, {names[2]} has {len(intervals)} intervals")
    for table, name, most, letter in (
        (blocks, names[0], rows[0], letters[0]),
        (intervals, names[2], rows[1], letters[1]),
    ):
        wrong = np.flatnonzero((table[:, 0] < 0) | (table[:, 1] < table[:, 0]) | (table[:, 1] > most))
        if len(wrong):
            k = int(wrong[0])
            start, stop = table[k].tolist()
            hint = _SWAPPED if stop > most and 0 <= start <= stop <= rows[letter == letters[0]] else ""
            raise InputError(f"{name}[{k}] = {start}:{stop} is no run of the {most:,} rows for each {letter}{hint}")
    order = np.argsort(blocks[:, 0], kind="stable")
    order = order[blocks[order, 1] > blocks[order, 0]]
    over = np.flatnonzero(blocks[order[1:], 0] < blocks[order[:-1], 1])
    if len(over):
        k, other = sorted(order[over[0] : over[0] + 2].tolist())
        a, b = (":".join(map(str, blocks[n].tolist())) for n in (k, other))
        raise InputError(f"{names[0]}[{k}] = {a} and {names[0]}[{other}] = {b} overlap: a row is in one block at most")
    return Pattern.of(blocks, ends, intervals)


def _table(table: Any, name: str, pairs: bool) -> NDArray[np.int64]:
    array = np.asarray(table.get() if hasattr(table, "__cuda_array_interface__") and hasattr(table, "get") else table)
    if array.size == 0 and array.ndim in (1, 2):
        return np.zeros((0, 2) if pairs else 0, np.int64)
    if array.dtype.kind not in "iu":
        raise InputError(f"{name} has type {array.dtype}: it is of integers")
    if array.ndim != (2 if pairs else 1) or (pairs and array.shape[1] != 2):
        raise InputError(f"{name} has shape {array.shape}: expected {'(blocks, 2)' if pairs else '(blocks,)'}")
    return np.ascontiguousarray(array, np.int64)
