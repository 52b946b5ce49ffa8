"""CUDA launches: how a fold is cut into panels, tiles of rows and splits of columns, from sizes alone. No CuPy.

Columns come in panels of a constant length, folded into the state one after another. Within a panel rows are cut into
tiles, and their columns into splits whose partial states are merged in order. How many rows are folded at a time, how
many launches that takes, and how many splits one of them computes, changes no bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dred.formula.node import I, J
from dred.kernel.cuda_schedule import THREADS
from dred.kernel.cuda_source import ITEM, Entry, Source
from dred.kernel.pattern import Pattern

# Declared, never measured, for splits are part of the result: blocks that keep a device busy to the end, and of
# rankings, which cost more the more of them begin with no places taken; estimated instructions of a block (0.05 s of
# its share of a multiprocessor); and, which is part of no result, of a launch on each multiprocessor (0.15 s).
BLOCKS, RANKED, BLOCK_COST, LAUNCH_COST = 8192, 1024, 2e9, 3e10
PANEL = 1 << 28  # bytes of the variables of a panel's columns: likewise part of the result
SCRATCH = 1 << 28  # bytes of the partial states of one launch, at most


class Device(Protocol):
    """What `launch` needs: memory, and functions that run in order."""

    @property
    def multiprocessors(self) -> int:
        """How many there are."""

    def empty(self, count: int, dtype: str) -> Any:
        """Memory for `count` values."""

    def upload(self, table: NDArray[np.int64]) -> Any:
        """A table in the device's memory, of which parts can be taken."""

    def run(self, entry: Entry, grid: tuple[int, int], args: Sequence[Any]) -> None:
        """Run a function of `THREADS` threads per block."""

    def pace(self) -> None:
        """Called after each launch: keep few of them waiting."""


def row_tiles(items: NDArray[np.int64], tile_rows: int) -> NDArray[np.int64]:
    """Items (batch, row begin, row end, first interval, last interval), cut into tiles of at most `tile_rows` rows."""
    count = -(-(items[:, 2] - items[:, 1]) // tile_rows)
    tiles = np.repeat(items, count, axis=0)
    number = np.arange(len(tiles)) - np.repeat(np.cumsum(count) - count, count)
    tiles[:, 1] += number * tile_rows
    tiles[:, 2] = np.minimum(tiles[:, 1] + tile_rows, tiles[:, 2])
    return tiles


def column_bytes(source: Source) -> int:
    """Bytes of the variables of one column."""
    return sum(dim for _, dim, axes in source.loads if axes == J) * np.dtype(source.dtype).itemsize


def panels(source: Source, N: int) -> list[tuple[int, int]]:
    """The columns (begin, end) that are folded one after another: a length of the kernel's own, whatever the memory."""
    columns = max(1, PANEL // max(1, column_bytes(source)) // source.tile_columns) * source.tile_columns
    return [(begin, min(begin + columns, N)) for begin in range(0, N, columns)]


def splits_of_panel(source: Source, M: int, N: int, batches: int = 1, pattern: Pattern | None = None) -> int:
    """Splits of a panel of N columns, for all M rows of all batches of a call, of which a launch may see a few."""
    if pattern is None:
        return splits_of(source, batches * -(-M // source.tile_rows), -(-N // source.tile_columns))
    tiles = -(-(pattern.blocks[:, 1] - pattern.blocks[:, 0]) // source.tile_rows)
    lengths = -(-(pattern.intervals[:, 1] - pattern.intervals[:, 0]) // source.tile_columns)
    upto = np.concatenate([[0], np.cumsum(lengths)])
    longest = int((upto[pattern.ends] - upto[pattern.starts]).max(initial=0))
    return splits_of(source, batches * int(tiles.sum()), longest)


def strides_of(source: Source, arrays: Sequence[Any]) -> list[int]:
    """Values from one batch to the next: 0 for those that all share, which have a dimension less."""
    strides = [0] * len(arrays)
    for v, _, axes in source.loads:
        if arrays[v].ndim == (3 if axes in (I, J) else 2):
            strides[v] = arrays[v].strides[0] // arrays[v].itemsize
    return strides


def least_scratch(source: Source) -> int:
    """Bytes of what the smallest launch writes beside the state."""
    return _split_bytes(source) + _row_bytes(source)


def _split_bytes(source: Source) -> int:
    """Bytes of the partial states of one split of a row tile."""
    return source.tile_rows * sum(field.size * np.dtype(field.dtype).itemsize for field in source.fields)


def _row_bytes(source: Source) -> int:
    """Bytes of the records of a row tile that go through memory."""
    return source.tile_rows * source.size_i * np.dtype(source.dtype).itemsize


def splits_of(source: Source, row_tiles: int, column_tiles: int) -> int:
    """Splits of the columns: enough to fill a device and to keep blocks short; of sizes alone."""
    fewest = max(2, -(-8 * source.places // source.tile_columns))  # tiles: to merge a ranking takes time
    blocks = RANKED if source.places > 1 else BLOCKS
    fill = min(-(-blocks // max(1, row_tiles)), -(-column_tiles // fewest))
    cost = float(column_tiles) * source.tile_columns * source.tile_rows * source.cost
    return max(1, min(max(fill, int(-(-cost // BLOCK_COST))), column_tiles, 65535))


def launch_size(
    source: Source, multiprocessors: int, splits: int, row_tiles: int, column_tiles: int, room: int
) -> tuple[int, int]:
    """How many splits and row tiles one launch computes, whose partial states take at most `room` bytes."""
    per_split = -(-column_tiles // splits) * source.tile_columns * source.tile_rows * source.cost  # of one row tile
    cost = LAUNCH_COST * multiprocessors
    together = max(1, int(min(cost / per_split, room / _split_bytes(source))))  # blocks of one launch
    group = min(splits, together)
    step = max(1, min(together // group, room // (group * _split_bytes(source) + _row_bytes(source)), row_tiles))
    return group, -(-row_tiles // -(-row_tiles // step))  # launches of about as many blocks each


def launch(
    source: Source,
    device: Device,
    state: Sequence[Any],
    arrays: Sequence[Any],
    M: int,
    N: int,
    *,
    items: NDArray[np.int64] | None = None,
    intervals: NDArray[np.int64] | None = None,
    strides: Sequence[int] | None = None,
    batches: int = 1,
    splits: int | None = None,
    row0: int = 0,
    column0: int = 0,
    scratch: int | None = None,
    fresh: bool = False,
    results: Sequence[Any] = (),
) -> None:
    """Fold columns into the state, in place.

    Parameters
    ----------
    source : Source
    device : Device
    state : sequence of arrays
        Per field (size, batches * M), in the device's memory.
    arrays : sequence of arrays
        By position of the variable, in the device's memory.
    M, N : int
        Rows and columns of a batch.
    items : (n, 5) int64, optional
        Rows with the intervals of their columns: batch, row begin, row end, first interval, last interval (exclusive).
    intervals : (m, 2) int64, optional
        Columns: begin, end.
    strides : sequence of int, optional
        By position of the variable: values from one batch to the next, 0 to use the same for all.
    batches : int
    splits : int, optional
        Instead of what `splits_of` says.
    row0, column0 : int
        Global numbers of the first row and of the first column of the arrays.
    scratch : int, optional
        Bytes of the partial states of one launch, at most, instead of `SCRATCH`. All memory is there before the first
        launch, so that a fold that lacks it has changed nothing.
    fresh : bool
        Whether the state is memory in which nothing has been written yet: then it is that of no term.
    results : sequence of arrays or None, optional
        Per field, an array (batches * M, size) of the type of results to which it goes in the end instead of the
        state; the number of no row is -1 there.
    """
    if items is None or intervals is None:
        items = np.array([(b, 0, M, 0, 1) for b in range(batches)], np.int64).reshape(-1, ITEM)
        intervals = np.array([(0, N)], np.int64)
    tiles = row_tiles(items, source.tile_rows)
    lengths = np.concatenate([[0], np.cumsum(-(-(intervals[:, 1] - intervals[:, 0]) // source.tile_columns))])
    column_tiles = int((lengths[tiles[:, 4]] - lengths[tiles[:, 3]]).max()) if len(tiles) else 0
    if column_tiles == 0:
        return
    splits = splits or splits_of(source, len(tiles), column_tiles)

    room = SCRATCH if scratch is None else scratch
    group, step = launch_size(source, device.multiprocessors, splits, len(tiles), column_tiles, room)

    given: dict[str, Any] = {"splits": np.int32(splits), "M": np.int64(M), "intervals": device.upload(intervals)}
    for v, _, _ in source.loads:
        given[f"v{v}"], given[f"s{v}"] = arrays[v], np.int64(strides[v] if strides else 0)
    given |= {f"state{f}": field for f, field in enumerate(state)}
    given["state_pitch"] = np.int64(batches * M)
    given |= {"row0": np.int64(row0), "column0": np.int64(column0)}

    def run(kind: str, grid: tuple[int, int]) -> None:
        entry = source.entries[kind]
        device.run(entry, grid, [given[name] for _, name in entry.params])

    if source.size_j:  # a group of columns may be read as a whole, beyond the last one
        ypitch = -(-N // 32) * 32 + 32
        given |= {"ys": device.empty(batches * source.size_j * ypitch, source.dtype), "ypitch": np.int64(ypitch)}
        given["N"] = np.int64(N)
    pitch = step * source.tile_rows
    given["pitch"] = np.int64(pitch)
    for f, field in enumerate(source.fields):
        given[f"partial{f}"] = device.empty(group * field.size * pitch, field.dtype)
    if source.size_i:
        given["xs"] = device.empty(source.size_i * pitch, source.dtype)
    table = device.upload(np.ascontiguousarray(tiles))
    if source.size_j:
        run("columns", (-(-N // THREADS) * batches, 1))
    for low in range(0, len(tiles), step):
        part = given["items"] = table[low : low + step]
        if source.size_i:
            run("rows", (len(part), 1))
        for first in range(0, splits, group):
            here = min(group, splits - first)
            given |= {"first": np.int32(first), "splits": np.int32(splits)}
            run("fold", (len(part), here))
            given |= {"splits": np.int32(here), "fresh": np.int32(fresh and first == 0)}
            for f, result in enumerate(results or state):
                given[f"out{f}"] = result if results and first + here == splits else None
            run("merge", (len(part), min(source.components, 64)))
            if "heads" in source.entries:
                run("heads", (len(part), 1))
            device.pace()
