"""How the work of a CPU kernel is cut into threads' shares, and shares into calls that are short enough."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dred.kernel.cpu_memory import addresses
from dred.kernel.cpu_schedule import SHARE, Schedule
from dred.kernel.pattern import Pattern

CALL = 5e8  # instructions (of `Kernel.cost`) of one call: at most 0.2 s, so that Ctrl-C is answered
CUTS, FEW = 256, 32  # how often it is remembered how all pairs are cut, and most of them: pairs of so many calls

Table = NDArray[np.int64]


class Call(NamedTuple):
    """What one call of a compiled kernel does: its tables, see `dred.kernel.llvm.Program`.

    Attributes
    ----------
    items : (n, 6) int64
        Batch, first row, one past the last, first interval, one past the last, first row of the table of tiles that
        are done again.
    intervals : (m, 2) int64
    tiles : int
        Of all items.
    tables : (int, int, int)
        Address of the items, their number, and address of the intervals.
    """

    items: Table
    intervals: Table
    tiles: int
    tables: tuple[int, int, int]

    @staticmethod
    def of(plan: Schedule, first: int, last: int, start: int, stop: int) -> Call:
        """Rows and columns of a single batch."""
        items = np.array([[0, first, last, 0, 1, 0]], np.int64)
        return Call._of(items, np.array([[start, stop]], np.int64), -(-(last - first) // plan.tile))

    @staticmethod
    def _of(items: Table, intervals: Table, tiles: int) -> Call:
        first, second = addresses((items, intervals))
        return Call(items, intervals, tiles, (first, len(items), second))

    @staticmethod
    def several(plan: Schedule, items: Table, intervals: Table) -> Call:
        """Several items, of which the last number is still to be filled in."""
        tiles = -(-(items[:, 2] - items[:, 1]) // plan.tile)
        ends = np.cumsum(tiles)
        items = np.ascontiguousarray(items)
        items[:, 5] = ends - tiles
        return Call._of(items, np.ascontiguousarray(intervals), int(ends[-1]))

    def again(self, plan: Schedule, redo: Table) -> Call | None:
        """What is left where sums were not finite, tiles that go on from the same place together; None: nothing."""
        if redo[: self.tiles, 1].max(initial=-1) < 0:
            return None
        items: list[tuple[int, int, int, int, int, int]] = []
        intervals: list[tuple[int, int]] = []
        for batch, first, last, _, end, tile in self.items.tolist():
            places = redo[tile : tile - (first - last) // plan.tile]
            cuts = [0, *(np.flatnonzero((np.diff(places, axis=0) != 0).any(axis=1)) + 1).tolist(), len(places)]
            for n, m in pairwise(cuts):
                interval, column = places[n].tolist()
                if column >= 0:
                    rest = self.intervals[interval:end].tolist()
                    at = len(intervals)
                    intervals += [(column, rest[0][1]), *map(tuple, rest[1:])]
                    rows = (first + n * plan.tile, min(first + m * plan.tile, last))
                    items.append((batch, *rows, at, len(intervals), 0))
        return Call.several(plan, np.array(items, np.int64), np.array(intervals, np.int64))


Share = Sequence[tuple[int, Sequence[Call]]]
"""What one thread does: parts of the columns, each of which has states of its own, and calls."""


def alone(plan: Schedule, cost: float, M: int, parts: tuple[tuple[int, int], ...]) -> Share | None:
    """All tiles and parts as one share, where they are worth no second thread; else None: see `whole`."""
    if cost * M * (parts[-1][1] - parts[0][0]) >= 2 * SHARE:
        return None
    return _remembered(plan, M, parts, 1, CALL / cost)[0]


def whole(
    plan: Schedule, cost: float, M: int, parts: Sequence[tuple[int, int]], threads: int, meet: bool = False
) -> Sequence[Share]:
    """For each thread its tiles of rows of its parts of the columns; within a part, columns are cut at whole panels.

    Parameters
    ----------
    plan : Schedule
    cost : float
        Instructions of a pair.
    M : int
        Rows, of one batch.
    parts : sequence of (int, int)
        First and one past the last column.
    threads : int
        At most.
    meet : bool
        Whether columns are not cut: each call meets all of its part, with fewer rows instead.
    """
    pairs = M * (parts[-1][1] - parts[0][0])
    threads = max(1, min(threads, -(-M // plan.tile) * len(parts), int(pairs * cost / SHARE)))
    cut = _remembered if pairs * cost <= FEW * CALL else _cut
    return cut(plan, M, tuple(parts), threads, CALL / cost, meet)


def meets(plan: Schedule, cost: float, M: int, N: int) -> bool:
    """Whether calls that meet all columns have half a block of rows at least: columns are staged for each of them.

    And a tile, or such a call would take too long.
    """
    return CALL / cost >= N * max(plan.tile, min(plan.rows, M) / 2)


def _cut(
    plan: Schedule, M: int, parts: tuple[tuple[int, int], ...], threads: int, most: float, meet: bool = False
) -> tuple[Share, ...]:
    """The shares of so many threads, in calls of at most so many pairs."""
    tiles = -(-M // plan.tile)
    units = tiles * len(parts)
    out: list[Share] = []
    for t in range(threads):
        low, high = units * t // threads, units * (t + 1) // threads
        share: list[tuple[int, tuple[Call, ...]]] = []
        for part, (start, stop) in enumerate(parts):
            first, last = (min(M, min(max(unit - part * tiles, 0), tiles) * plan.tile) for unit in (low, high))
            fit = int(most / (stop - start))
            step = plan.tile if meet and fit < plan.rows else plan.rows
            rows = step * max(1, fit // step)
            columns = stop - start if meet else plan.panel * max(1, int(most / (min(rows, M) * plan.panel)))
            calls = tuple(
                Call.of(plan, i, min(i + rows, last), j, min(j + columns, stop))
                for i in range(first, last, rows)
                for j in range(start, stop, columns)
            )
            share += [(part, calls)] if calls else []
        out.append(tuple(share))
    return tuple(out)


_remembered = lru_cache(CUTS)(_cut)


def listed(
    plan: Schedule,
    cost: float,
    M: int,
    parts: Sequence[tuple[int, int]],
    batches: int,
    pattern: Pattern | None,
    threads: int,
) -> Sequence[Share]:
    """The same of several batches, or of a pattern, which is of one part; thread by thread about as much to do."""
    if pattern is None:
        every = Pattern.whole(M, 1).items(batches)
        items = np.concatenate([every + np.array([0, 0, 0, part, part]) for part in range(len(parts))])
        owner, intervals = np.repeat(np.arange(len(parts)), batches), np.array(parts, np.int64)
    else:
        items, intervals = pattern.items(batches), pattern.intervals
        owner = np.zeros(len(items), np.int64)
    met = np.concatenate([[0], np.cumsum(intervals[:, 1] - intervals[:, 0])])
    columns, tiles = met[items[:, 4]] - met[items[:, 3]], -(-(items[:, 2] - items[:, 1]) // plan.tile)
    ends = np.cumsum(tiles * columns)
    total = int(ends[-1]) if len(ends) else 0
    if total == 0:
        return []
    threads = max(1, min(threads, int(tiles.sum()), int(total * plan.tile * cost / SHARE)))
    places = []  # where shares begin: an item, and a tile of it
    for t in range(threads):
        mark = total * t // threads
        k = int(np.searchsorted(ends, mark, side="right"))
        places.append((k, (mark - int(ends[k] - tiles[k] * columns[k])) // int(columns[k])))
    places.append((len(items), 0))
    out: list[Share] = []
    for (k, tile), (k1, tile1) in pairwise(places):
        mine = np.column_stack([items[k : k1 + 1], (items[:, 2] - items[:, 1])[k : k1 + 1]])
        if k1 < len(items):
            mine[-1, 2] = min(mine[-1, 1] + tile1 * plan.tile, mine[-1, 2])
        mine[0, 1] += tile * plan.tile
        share: list[tuple[int, list[Call]]] = []
        for part in range(len(parts)):
            some = mine[(owner[k : k1 + 1] == part) & (mine[:, 2] > mine[:, 1])]
            calls = list(_calls(plan, some, intervals, met, CALL / cost))
            share += [(part, calls)] if calls else []
        out.append(share)
    return out


def _calls(plan: Schedule, items: Table, intervals: Table, met: Table, most: float) -> Iterator[Call]:
    """Items of at most so many pairs together; larger ones in several calls.

    The last number of an item is how many rows it has had before threads shared it: how its columns are cut must not
    depend on that, since what is done again is what is left of a call.
    """
    columns = met[items[:, 4]] - met[items[:, 3]]
    large = items[:, 5] * columns > most
    upto = np.cumsum((items[:, 2] - items[:, 1]) * columns)
    ends = np.append(np.flatnonzero(large), len(items))
    at = 0
    while at < len(items):
        if large[at]:
            yield from _large(plan, items[at], intervals, int(columns[at]), most)
            at += 1
            continue
        before = int(upto[at - 1]) if at else 0
        end = int(np.searchsorted(upto, before + most, side="right"))
        end = min(end, int(ends[np.searchsorted(ends, at)]))
        yield Call.several(plan, items[at:end], intervals)
        at = end


def _large(plan: Schedule, item: Table, intervals: Table, columns: int, most: float) -> Iterator[Call]:
    """The calls of one item: rows, and runs of columns that are cut at whole panels of an interval."""
    batch, first, last, low, high, all_rows = item.tolist()
    rows = plan.rows * max(1, int(most / (plan.rows * columns)))
    longest = plan.panel * max(1, int(most / (min(rows, all_rows) * plan.panel)))
    runs: list[list[tuple[int, int]]] = [[]]
    room = longest
    for start, stop in intervals[low:high].tolist():
        for j in range(start, stop, longest):
            end = min(j + longest, stop)
            if end - j > room:
                runs, room = [*runs, []], longest
            runs[-1].append((j, end))
            room -= end - j
    for i in range(first, last, rows):
        for run in runs:
            one = np.array([[batch, i, min(i + rows, last), 0, len(run), 0]], np.int64)
            yield Call.several(plan, one, np.array(run, np.int64))
