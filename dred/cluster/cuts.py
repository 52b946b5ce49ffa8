"""Arithmetic of cuts: rows in blocks, blocks in runs, runs in trees. Numbers alone: no arrays, no dask."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple


class Piece(NamedTuple):
    """Rows `start:stop` of chunk `chunk`, which has `rows`."""

    chunk: int
    start: int
    stop: int
    rows: int


def equal(rows: int, blocks: int) -> tuple[int, ...]:
    """`rows` in at most `blocks` blocks whose sizes differ by at most 1; none is empty unless `rows` is 0."""
    blocks = max(1, min(rows, blocks))
    bounds = [k * rows // blocks for k in range(blocks + 1)]
    return tuple(b - a for a, b in pairwise(bounds))


def cut(blocks: Sequence[int], parts: int) -> list[range]:
    """Runs of consecutive blocks with about equally many rows: `parts` of them, or one per block if that is fewer."""
    parts = min(parts, len(blocks))
    ends = [parts * end for end in accumulate(blocks)]
    bounds = [0]
    for k in range(1, parts):  # the first block that reaches k/parts of the rows, leaving a block for everyone
        reaches = bisect_left(ends, k * ends[-1] // parts) + 1
        bounds.append(min(max(reaches, bounds[-1] + 1), len(blocks) - parts + k))
    bounds.append(len(blocks))
    return [range(a, b) for a, b in pairwise(bounds)]


def fitted(chunks: Sequence[int], most_blocks: int, most_rows: int) -> tuple[int, ...]:
    """Blocks for chunks: too many of them are merged, whole, and what is then too long is cut in equal parts."""
    most_blocks = max(most_blocks, -(-sum(chunks) // most_rows))  # so that merged chunks need not be cut again
    if len(chunks) > most_blocks:
        chunks = [sum(chunks[run.start : run.stop]) for run in cut(chunks, most_blocks)]
    return tuple(rows for chunk in chunks for rows in equal(chunk, -(-chunk // most_rows)))


def pieces(chunks: Sequence[int], blocks: Sequence[int]) -> list[tuple[Piece, ...]]:
    """For each block the rows of chunks that it consists of, at least one piece; both have the same sum."""
    if tuple(chunks) == tuple(blocks):
        return [(Piece(k, 0, rows, rows),) for k, rows in enumerate(chunks)]
    ends = list(accumulate(chunks))
    found = []
    low = 0
    for rows in blocks:
        high = low + rows
        first = min(bisect_right(ends, low), len(chunks) - 1)
        last = max(first, bisect_left(ends, high))
        mine = []
        for k in range(first, last + 1):
            start = ends[k] - chunks[k]
            a, b = max(low, start), min(high, ends[k])
            if a < b or k == first == last:
                mine.append(Piece(k, a - start, max(a, b) - start, chunks[k]))
        found.append(tuple(mine))
        low = high
    return found


def whole(found: Sequence[Piece]) -> bool:
    """Whether a block is a chunk as it is."""
    return len(found) == 1 and found[0].stop - found[0].start == found[0].rows


def in_steps(blocks: Sequence[int], lane: range, most_rows: int) -> list[range]:
    """The lane in runs of at most `most_rows` rows; a block is never split, so a run may be one larger block."""
    steps, first, rows = [], lane.start, 0
    for k in lane:
        if k > first and rows + blocks[k] > most_rows:
            steps.append(range(first, k))
            first, rows = k, 0
        rows += blocks[k]
    return [*steps, range(first, lane.stop)]


def groups(count: int, size: int) -> list[range]:
    """`range(count)` in runs of `size`; the last may be shorter."""
    return [range(a, min(a + size, count)) for a in range(0, count, size)]


def merge_tree(states: int, arity: int) -> list[list[range]]:
    """Levels of merges until at most `arity` states are left, for the task that also finalizes."""
    levels = []
    while states > arity:
        levels.append(groups(states, arity))
        states = len(levels[-1])
    return levels
