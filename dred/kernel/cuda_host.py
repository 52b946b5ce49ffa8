"""Reductions and folds of host arrays on a CUDA device: rows in blocks, columns in panels, copied beside kernels.

A block of rows and its state stay on the device until all panels have been folded into it; while its kernels run, what
came of the block before is copied back, and the rows of the next one are copied to the device. Of the panels two are
there at a time: while a kernel reads one, the next is copied beside it. Panels have a length of the kernel's own (see
`cuda_launch`); how many rows a block has changes no bit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dred.errors import BackendError, human
from dred.formula.node import I, J
from dred.kernel.batches import runs
from dred.kernel.cuda_cache import program, rendered
from dred.kernel.cuda_device import checked, multiprocessors, no_memory, release, room
from dred.kernel.cuda_fold import CurrentDevice, run
from dred.kernel.cuda_launch import (
    SCRATCH,
    launch,
    launch_size,
    least_scratch,
    panels,
    splits_of_panel,
    strides_of,
)
from dred.kernel.cuda_source import Source
from dred.kernel.cuda_streams import Streams, streams
from dred.kernel.output import Output, empty, silently
from dred.kernel.pattern import Pattern
from dred.kernel.spec import KernelSpec

State = tuple[NDArray[Any], ...]

RELIEF = 4  # a second try after a shortage of memory folds so many times fewer rows at once

# Where nothing else decides, rows come in about BLOCKS blocks, so that copies of the first and of the last one, beside
# which no kernel runs, are short; in whole launches, for the end of each leaves a part of the device idle; and with at
# least LEAST bytes that travel. A launch of more than MOST bytes is cut: there copies take longer than kernels.
BLOCKS, LEAST, MOST = 8, 1 << 22, 1 << 25


@dataclass(frozen=True)
class Cut:
    """How many rows are folded at once, of how many blocks some are on the device, and bytes of the partial states of
    a launch."""

    rows: int
    scratch: int
    depth: int = 1

    @staticmethod
    def of(job: _Job, limit: int) -> Cut:
        """What fits into `limit` bytes, of all batches of a job at once.

        Raises
        ------
        MemoryError
            The rows of one tile do not.
        """
        source, arrays, M, batches = job.source, job.arrays, job.M, job.batches
        kind = np.dtype(source.dtype).itemsize

        def values(wanted: Any) -> int:
            """Of what has rows of an index, or none."""
            mine = [(v, dim) for v, dim, axes in source.loads if (axes if axes in (I, J) else None) == wanted]
            own = 3 if wanted is not None else 2  # dimensions of what each batch has of its own
            return sum(dim * (batches if arrays[v].ndim == own else 1) for v, dim in mine if on_host(arrays[v]))

        state = batches * sum(field.size * np.dtype(field.dtype).itemsize for field in source.fields)
        results = batches * sum(a.itemsize * (a.size // max(1, len(a))) for a in job.home) if job.outputs else 0
        sent, more = values(I) * kind, state + results if job.outputs else 0  # as much again while results are read
        least, travels = sent + state + more, sent + (results if job.outputs else 2 * state)  # bytes of a row
        cut = panels(source, job.N)
        longest = cut[0][1] - cut[0][0]
        fixed = min(2, len(cut)) * longest * values(J) * kind + batches * (longest + 64) * source.size_j * kind
        fixed += values(None) * kind
        left = limit - fixed
        scratch = max(least_scratch(source), min(SCRATCH, left // 4))
        rows = min(M, (left - scratch) // least)
        if rows < M:
            rows -= rows % source.tile_rows
        if rows <= 0:
            fewest = min(M, source.tile_rows)
            raise MemoryError(
                f"{human(limit)} may be used, {human(fixed)} is for {min(2, len(cut))} panels of {longest:,} columns,"
                f" and {human(fewest * least + least_scratch(source))} for the fewest rows, {fewest:,}"
            )
        if batches > 1:
            return Cut(rows, scratch)
        splits = splits_of_panel(source, M, longest, job.all_batches)
        row_tiles, column_tiles = -(-M // source.tile_rows), -(-longest // source.tile_columns)
        units = multiprocessors(job.device_id)
        _, together = launch_size(source, units, splits, row_tiles, column_tiles, scratch)
        unit = source.tile_rows * min(together, max(1, MOST // max(1, travels) // source.tile_rows))
        handy = _multiple(max(-(-M // BLOCKS), LEAST // max(1, travels)), unit)
        if min(rows, handy) >= M:
            return Cut(M, scratch)
        depth = 2 if (left - scratch) // (2 * least) >= source.tile_rows else 1
        most = min(handy, (left - scratch) // (depth * least))
        if most < unit:
            unit = source.tile_rows
        even = -(-M // -(-M // (most - most % unit)))
        return Cut(_multiple(even, unit), scratch, depth)

    def fewer(self, source: Source) -> Cut:
        """The same with fewer rows, of one block at a time."""
        tiles = max(1, self.rows // RELIEF // source.tile_rows)
        return Cut(tiles * source.tile_rows, max(least_scratch(source), self.scratch // RELIEF))


def _multiple(count: int, of: int) -> int:
    """The next one."""
    return -(-count // of) * of


def on_host(array: Any) -> bool:
    return not hasattr(array, "__cuda_array_interface__")


def reduce(
    spec: KernelSpec,
    arrays: Sequence[Any],
    M: int,
    N: int,
    outputs: Sequence[Output],
    *,
    pattern: Pattern | None = None,
    device_id: int = -1,
) -> tuple[NDArray[Any], ...]:
    """See `dred.kernel.engine.reduce`: what `outputs` read off the state is all that leaves the device.

    Raises
    ------
    BackendError, DeviceMemoryError
        As `fold`.
    """
    blank = [silently(output.rows, spec, empty(spec, 0)) for output in outputs]
    home = tuple([np.empty((spec.batches * M, *rows.shape[1:]), rows.dtype) for rows in blank])
    parts = runs(spec, arrays) if spec.batch else [(0, 1, arrays)]
    for first, count, given in parts:
        mine = tuple(rows[first * M : (first + count) * M] for rows in home)
        if not _folded(spec, None, mine, outputs, given, M, N, count, pattern, device_id=device_id):
            return tuple([output.read(spec, empty(spec, M)) for output in outputs])
    return tuple([rows.reshape(*spec.batch, M, *rows.shape[1:]) for rows in home]) if spec.batch else home


def fold(
    spec: KernelSpec,
    state: State,
    arrays: Sequence[Any],
    M: int,
    N: int,
    *,
    batches: int = 1,
    pattern: Pattern | None = None,
    i0: int = 0,
    j0: int = 0,
    device_id: int = -1,
    memory: float | None = None,
) -> State:
    """See `dred.kernel.engine.fold`, and of batches `dred.kernel.cpu.fold`; device -1 is the current one.

    Arrays may also be cupy.ndarray on that device, which are used where they are. Nothing is left to do on the device
    when this returns.

    Raises
    ------
    BackendError
        Where there is no device, or no such device, or an array is on another one.
    DeviceMemoryError
        The fewest rows that can be folded do not fit.
    """
    home = tuple([np.empty(field.shape, field.dtype) for field in state])
    if not _folded(spec, state, home, (), arrays, M, N, batches, pattern, i0, j0, device_id, memory):
        return tuple(field.copy() for field in state)
    return home


def _folded(
    spec: KernelSpec,
    start: State | None,
    home: State,
    outputs: Sequence[Output],
    arrays: Sequence[Any],
    M: int,
    N: int,
    batches: int,
    pattern: Pattern | None,
    i0: int = 0,
    j0: int = 0,
    device_id: int = -1,
    memory: float | None = None,
) -> bool:
    """Write what comes of a fold to `home`, see `_Job`; False where there are no pairs: then there is nothing to do."""
    device_id = checked(device_id)
    found = rendered(spec)
    given: list[Any] = [spec.constants.get(v, a) for v, a in enumerate(arrays)]
    for v in found.read:
        if not on_host(given[v]) and given[v].device.id != device_id:
            raise BackendError(
                f"array {v} is on device {given[v].device.id}, device {device_id} computes: move it there"
            )
    if M == 0 or N == 0:
        return False
    import cupy

    with cupy.cuda.Device(device_id):
        try:
            job = _Job(spec, found, start, home, outputs, given, M, N, i0, j0, device_id, batches, batches, pattern)
            job.run(room(memory))
        except MemoryError as error:
            if _of_the_host(error):
                raise
            shortage = no_memory(f"a fold of {M:,} x {N:,} rows", error)
        else:
            return True
        raise shortage  # out here without a context: CuPy's own error cannot be unpickled


def _of_the_host(error: MemoryError) -> bool:
    """Whether it is NumPy that had no memory."""
    return type(error).__module__.partition(".")[0] == "numpy"


@dataclass(frozen=True)
class _Block:
    """Rows whose kernels have been launched."""

    low: int
    high: int
    held: Sequence[Any]  # arrays that kernels read
    found: Sequence[Any]  # what goes home
    ready: Any  # the event after which it may


@dataclass(frozen=True)
class _Job:
    """One fold of all rows of some batches.

    Attributes
    ----------
    start : State or None
        None: that of no term.
    home : tuple of ndarray
        Where the results go, (batches * rows, ...); without `outputs` the fields of the state, (size, batches * rows).
    outputs : sequence of Output
    all_batches : int
        Of the call, of which these may be a part.
    """

    spec: KernelSpec
    source: Source
    start: State | None
    home: State
    outputs: Sequence[Output]
    arrays: Sequence[Any]
    M: int
    N: int
    i0: int
    j0: int
    device_id: int
    batches: int
    all_batches: int
    pattern: Pattern | None

    def run(self, limit: int) -> None:
        """All batches at once if all their rows fit, else in halves; of one batch, blocks of rows that fit."""
        try:
            cut = Cut.of(self, limit)
        except MemoryError:
            if self.batches == 1:
                raise
            cut = None
        if self.batches == 1 or (cut is not None and cut.rows == self.M):
            assert cut is not None
            self.blocks(cut)
            return
        half = self.batches // 2
        self.part(0, half).run(limit)
        self.part(half, self.batches).run(limit)

    def at_home(self, low: int, high: int) -> State:
        """Where what comes of some rows goes."""
        return tuple([a[low:high] if self.outputs else a[:, low:high] for a in self.home])

    def part(self, first: int, last: int) -> _Job:
        """The same of some of its batches."""
        own = {v: 3 if axes in (I, J) else 2 for v, _, axes in self.source.loads}
        given = [a[first:last] if v in own and a.ndim == own[v] else a for v, a in enumerate(self.arrays)]
        if last - first == 1:
            given = [a[0] if v in own and a.ndim == own[v] else a for v, a in enumerate(given)]
        low, high = first * self.M, last * self.M
        start = None if self.start is None else tuple(field[:, low:high] for field in self.start)
        return replace(self, start=start, home=self.at_home(low, high), arrays=given, batches=last - first)

    def blocks(self, cut: Cut) -> None:
        """Block after block; where memory runs out after all, once more with fewer rows, or batch by batch."""
        done = 0
        with streams(self.device_id) as mine:
            try:
                for high in self.pipeline(mine, cut, 0):
                    done = high
            except MemoryError as error:
                if _of_the_host(error):
                    raise
            else:
                return
            mine.synchronize()  # what the failed try held is free now
            release()
            if self.batches == 1:
                for _ in self.pipeline(mine, cut.fewer(self.source), done):
                    pass
                return
        for b in range(self.batches):
            self.part(b, b + 1).blocks(replace(cut, rows=self.M))

    def pipeline(self, mine: Streams, cut: Cut, low: int) -> Iterator[int]:
        """Fold the rows from `low` on. Yields the last row of each block when all that came of it is at home.

        The host waits for a block when the kernels of the next one have been launched already.
        """
        device = CurrentDevice(self.source, program(self.spec, self.source, self.device_id))
        shared, launched = _Shared(self, mine), deque[_Block]()
        while low < self.M or launched:
            if low < self.M:
                high = min(low + cut.rows, self.M)
                launched.append(self.block(mine, device, shared, low, high, cut.scratch))
                low = high
            if low == self.M or len(launched) == cut.depth:
                yield self.fetched(mine, launched.popleft())  # nothing here holds its arrays any longer

    def block(self, mine: Streams, device: CurrentDevice, shared: _Shared, low: int, high: int, scratch: int) -> _Block:
        """Launch what folds all columns into the state of the rows `low:high`, and what reads off it."""
        import cupy

        source, batches, rows = self.source, self.batches, high - low
        ends = low + (batches - 1) * self.M + rows  # several batches come with all their rows
        given: list[Any] = list(shared.given)
        for v, _, axes in source.loads:
            if axes == I:
                given[v] = placed(mine, run(self.arrays[v], low, high))
        if self.start is not None:
            state = [mine.send(field[:, low:ends]) for field in self.start]
        else:
            state = [cupy.full((field.size, ends - low), field.identity, field.dtype) for field in source.fields]
        held = list(given)
        mine.compute.wait_event(mine.copy.record())
        for begin, end in panels(source, self.N):
            met = all_met = None
            if self.pattern is not None:
                all_met = self.pattern.within(slice(0, self.M), slice(begin, end))
                met = all_met.within(slice(low, high), slice(0, end - begin))
                if not met.pairs:
                    continue  # without being sent
            for v, columns in shared.panel(begin, end):
                given[v] = columns
            launch(
                source, device, state, given, rows, end - begin,
                items=None if met is None else met.items(batches), intervals=None if met is None else met.intervals,
                strides=strides_of(source, given), batches=batches,
                splits=splits_of_panel(source, self.M, end - begin, self.all_batches, all_met),
                row0=self.i0 + low, column0=self.j0 + begin, scratch=scratch,
            )  # fmt: skip
            shared.launched()
        found = [silently(output.rows, self.spec, state) for output in self.outputs] or state
        return _Block(low, ends, held, found, mine.compute.record())

    def fetched(self, mine: Streams, block: _Block) -> int:
        """Wait for a block, and copy what came of it to where it goes. Returns its last row."""
        homes = self.at_home(block.low, block.high)
        targets = [a if a.flags.c_contiguous else np.empty(a.shape, a.dtype) for a in homes]
        mine.fetch(list(zip(targets, block.found, strict=True)), block.ready)
        for a, target in zip(homes, targets, strict=True):
            if target is not a:
                a[...] = target
        return block.high


def placed(mine: Streams, array: Any) -> Any:
    """A contiguous array of the device of these values."""
    import cupy

    return mine.send(array) if on_host(array) else cupy.ascontiguousarray(array)


class _Shared:
    """Arrays of the device that all blocks of rows have in common: parameters, and two panels of the columns."""

    def __init__(self, job: _Job, mine: Streams) -> None:
        import cupy

        self.job, self.mine = job, mine
        source, places = job.source, panels(job.source, job.N)[:2]
        self.given: list[Any] = [None] * (1 + max(source.read, default=-1))
        self.travelling: list[tuple[int, list[Any]]] = []  # a buffer for each of the two panels
        self.resident: list[tuple[int, Any]] = []
        for v, dim, axes in source.loads:
            array = job.arrays[v]
            if axes == J and on_host(array):
                copies = job.batches if array.ndim == 3 else 1
                with mine.copy:
                    buffers = [cupy.empty((copies * places[0][1] * dim,), source.dtype) for _ in places]
                self.travelling.append((v, buffers))
            elif axes == J:
                self.resident.append((v, cupy.ascontiguousarray(array)))
            elif axes != I:
                self.given[v] = placed(mine, array)
        self.there = [-1] * len(places)  # where the panels begin
        self.folded = [cupy.cuda.Event(disable_timing=True) for _ in places]
        self.last = -1  # where the one is that was used last

    def panel(self, begin: int, end: int) -> list[tuple[int, Any]]:
        """By position, the columns `begin:end`; what is launched next waits for them."""
        mine, size = self.mine, end - begin
        new = begin not in self.there
        at = (self.last + 1) % len(self.there) if new else self.there.index(begin)
        if new:
            self.there[at] = begin
            mine.copy.wait_event(self.folded[at])
        self.last = at
        found = [(v, run(whole, begin, end)) for v, whole in self.resident]
        for v, buffers in self.travelling:
            array = self.job.arrays[v]
            shape = (*array.shape[:-2], size, array.shape[-1])
            columns = buffers[at][: int(np.prod(shape))].reshape(shape)
            if new:
                mine.send_to(columns, run(array, begin, end))
            found.append((v, columns))
        if new:
            mine.compute.wait_event(mine.copy.record())
        return found

    def launched(self) -> None:
        """All that reads the last panel has been launched."""
        self.folded[self.last].record(self.mine.compute)
