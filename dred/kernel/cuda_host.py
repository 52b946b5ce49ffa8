"""Folds of host arrays on a CUDA device: rows in blocks, columns in panels, copied while the one before is folded.

A block of rows and its state stay on the device until all panels have been folded into it. Of the panels two are there
at a time: while a kernel reads one, the next is copied beside it. Panels have a length of the kernel's own (see
`cuda_launch`); memory decides how many rows a block has, which changes no bit.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dred.errors import BackendError, human
from dred.formula.node import I, J
from dred.kernel.cuda_cache import program, rendered
from dred.kernel.cuda_device import checked, no_memory, release, room
from dred.kernel.cuda_fold import CurrentDevice, run
from dred.kernel.cuda_launch import SCRATCH, launch, least_scratch, panels, splits_of_panel, strides_of
from dred.kernel.cuda_source import Source
from dred.kernel.pattern import Pattern
from dred.kernel.spec import KernelSpec

State = tuple[NDArray[Any], ...]

STAGE = 1 << 24  # bytes of a pinned buffer
RELIEF = 4  # a second try after a shortage of memory folds so many times fewer rows at once


class Streams:
    """What a thread has of its own on a device: a stream that computes, one that copies, and pinned buffers."""

    def __init__(self) -> None:
        import cupy

        self.compute, self.copy = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
        self._buffers = [np.frombuffer(cupy.cuda.alloc_pinned_memory(STAGE), np.uint8, STAGE) for _ in range(2)]
        self._copied = [cupy.cuda.Event(disable_timing=True) for _ in self._buffers]
        self._turn = 0

    def send(self, target: Any, source: NDArray[Any]) -> None:
        """Copy a contiguous array to memory of the device, on the stream that copies.

        The array may change when this returns: what is still to be copied is in a pinned buffer.
        """
        data = source.reshape(-1).view(np.uint8)
        for low in range(0, data.size, STAGE):
            piece = data[low : low + STAGE]
            buffer, copied = self._buffers[self._turn], self._copied[self._turn]
            copied.synchronize()  # what the buffer held before is on the device
            buffer[: piece.size] = piece
            (target.data + low).copy_from_host_async(buffer.ctypes.data, piece.size, self.copy)
            copied.record(self.copy)
            self._turn = 1 - self._turn

    def synchronize(self) -> None:
        """Wait until nothing is left to do."""
        self.copy.synchronize()
        self.compute.synchronize()


_threads = threading.local()


@contextmanager
def streams(device_id: int) -> Iterator[Streams]:
    """This thread's streams on the current device, behind all that the caller's stream has been told to do."""
    import cupy

    known: dict[int, Streams] = _threads.__dict__.setdefault("streams", {})
    if device_id not in known:
        known[device_id] = Streams()
    mine = known[device_id]
    before = cupy.cuda.get_current_stream().record()  # arrays of the device may still be being written
    with mine.compute:
        mine.compute.wait_event(before)
        try:
            yield mine
        finally:
            mine.synchronize()


@dataclass(frozen=True)
class Cut:
    """How many rows are folded at once, and bytes of the partial states of a launch."""

    rows: int
    scratch: int

    @staticmethod
    def of(source: Source, arrays: Sequence[Any], M: int, N: int, limit: int, batches: int = 1) -> Cut:
        """What fits into `limit` bytes, of so many batches at once.

        Raises
        ------
        MemoryError
            The rows of one tile do not.
        """
        kind = np.dtype(source.dtype).itemsize

        def values(wanted: Any) -> int:
            """Of what has rows of an index, or none."""
            mine = [(v, dim) for v, dim, axes in source.loads if (axes if axes in (I, J) else None) == wanted]
            own = 3 if wanted is not None else 2  # dimensions of what each batch has of its own
            return sum(dim * (batches if arrays[v].ndim == own else 1) for v, dim in mine if on_host(arrays[v]))

        row = batches * sum(field.size * np.dtype(field.dtype).itemsize for field in source.fields) + values(I) * kind
        cut = panels(source, N)
        longest = cut[0][1] - cut[0][0]
        fixed = min(2, len(cut)) * longest * values(J) * kind + batches * (longest + 64) * source.size_j * kind
        fixed += values(None) * kind
        left = limit - fixed
        scratch = max(least_scratch(source), min(SCRATCH, left // 4))
        rows = min(M, (left - scratch) // row)
        if rows < M:
            rows -= rows % source.tile_rows
        if rows <= 0:
            least = min(M, source.tile_rows)
            raise MemoryError(
                f"{human(limit)} may be used, {human(fixed)} is for {min(2, len(cut))} panels of {longest:,} columns,"
                f" and {human(least * row + least_scratch(source))} for the fewest rows, {least:,}"
            )
        blocks = -(-M // rows)
        even = -(-M // blocks)
        return Cut(min(M, -(-even // source.tile_rows) * source.tile_rows), scratch)

    def fewer(self, source: Source) -> Cut:
        """The same with fewer rows."""
        tiles = max(1, self.rows // RELIEF // source.tile_rows)
        return replace(self, rows=tiles * source.tile_rows, scratch=max(least_scratch(source), self.scratch // RELIEF))


def on_host(array: Any) -> bool:
    return not hasattr(array, "__cuda_array_interface__")


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
    device_id = checked(device_id)
    found = rendered(spec)
    given: list[Any] = [spec.constants.get(v, a) for v, a in enumerate(arrays)]
    for v in found.read:
        if not on_host(given[v]) and given[v].device.id != device_id:
            raise BackendError(
                f"array {v} is on device {given[v].device.id}, device {device_id} computes: move it there"
            )
    if M == 0 or N == 0:
        return tuple(field.copy() for field in state)
    import cupy

    with cupy.cuda.Device(device_id):
        try:
            job = _Job(spec, found, state, given, M, N, i0, j0, device_id, batches, batches, pattern)
            return job.run(room(memory))
        except MemoryError as error:
            if _of_the_host(error):
                raise
            shortage = no_memory(f"a fold of {M:,} x {N:,} rows", error)
        raise shortage  # out here without a context: CuPy's own error cannot be unpickled


def _of_the_host(error: MemoryError) -> bool:
    """Whether it is NumPy that had no memory."""
    return type(error).__module__.partition(".")[0] == "numpy"


@dataclass(frozen=True)
class _Job:
    """One fold: see `fold`."""

    spec: KernelSpec
    source: Source
    state: State
    arrays: Sequence[Any]
    M: int
    N: int
    i0: int
    j0: int
    device_id: int
    batches: int
    all_batches: int  # of the call, of which these may be a part
    pattern: Pattern | None

    def run(self, limit: int) -> State:
        """All batches at once if all their rows fit, else in halves; of one batch, blocks of rows that fit."""
        if self.batches > 1:
            try:
                cut = Cut.of(self.source, self.arrays, self.M, self.N, limit, self.batches)
            except MemoryError:
                cut = None
            if cut is None or cut.rows < self.M:
                half = self.batches // 2
                parts = [self.part(0, half).run(limit), self.part(half, self.batches).run(limit)]
                return tuple(np.concatenate(fields, axis=1) for fields in zip(*parts, strict=True))
            return self.blocks(cut)
        return self.blocks(Cut.of(self.source, self.arrays, self.M, self.N, limit))

    def part(self, first: int, last: int) -> _Job:
        """The same of some of its batches."""
        own = {v: 3 if axes in (I, J) else 2 for v, _, axes in self.source.loads}
        given = [a[first:last] if v in own and a.ndim == own[v] else a for v, a in enumerate(self.arrays)]
        if last - first == 1:
            given = [a[0] if v in own and a.ndim == own[v] else a for v, a in enumerate(given)]
        state = tuple(field[:, first * self.M : last * self.M] for field in self.state)
        return replace(self, state=state, arrays=given, batches=last - first)

    def blocks(self, cut: Cut) -> State:
        """Block after block; where memory runs out after all, once with fewer rows."""
        done: list[State] = []
        low, relieved = 0, False
        with streams(self.device_id) as mine:
            while low < self.M:
                high = min(low + cut.rows, self.M)
                try:
                    done.append(self.block(mine, low, high, cut.scratch))
                except MemoryError as error:
                    if relieved or _of_the_host(error):
                        raise
                    relieved = True
                    if self.batches > 1:
                        break
                else:
                    low = high
                    continue
                mine.synchronize()  # what the failed try held is free now
                release()
                cut = cut.fewer(self.source)
        if self.batches > 1 and not done:
            release()
            parts = [self.part(b, b + 1).blocks(replace(cut, rows=self.M)) for b in range(self.batches)]
            return tuple(np.concatenate(fields, axis=1) for fields in zip(*parts, strict=True))
        return done[0] if len(done) == 1 else tuple(np.concatenate(parts, axis=1) for parts in zip(*done, strict=True))

    def block(self, mine: Streams, low: int, high: int, scratch: int) -> State:
        """The state of the rows `low:high` after all columns."""
        import cupy

        source, rows = self.source, high - low
        device = CurrentDevice(source, program(self.spec, source, self.device_id))

        def sent(array: Any) -> Any:
            if not on_host(array):
                return cupy.ascontiguousarray(array)
            target = cupy.empty(array.shape, array.dtype)
            mine.send(target, np.ascontiguousarray(array))
            return target

        cut, batches = panels(source, self.N), self.batches
        ends = low + (batches - 1) * self.M + rows  # several batches come with all their rows
        state = [sent(field[:, low:ends]) for field in self.state]
        given: list[Any] = [None] * (1 + max(source.read, default=-1))
        travelling = []
        for v, dim, axes in source.loads:
            if axes == J and on_host(self.arrays[v]):
                copies = batches if self.arrays[v].ndim == 3 else 1
                travelling.append((v, [cupy.empty((copies * cut[0][1] * dim,), source.dtype) for _ in cut[:2]]))
            elif axes == J:
                given[v] = cupy.ascontiguousarray(self.arrays[v])
            else:
                given[v] = sent(run(self.arrays[v], low, high) if axes == I else self.arrays[v])
        resident = [(v, given[v]) for v, _, axes in source.loads if axes == J and given[v] is not None]
        folded = [cupy.cuda.Event(disable_timing=True) for _ in cut[:2]]
        number = 0
        for begin, end in cut:
            met = all_met = None
            if self.pattern is not None:
                all_met = self.pattern.within(slice(0, self.M), slice(begin, end))
                met = all_met.within(slice(low, high), slice(0, end - begin))
                if not met.pairs:
                    continue  # without being sent
            slot, number = number % 2, number + 1
            mine.copy.wait_event(folded[slot])
            for v, buffers in travelling:
                panel = np.ascontiguousarray(run(self.arrays[v], begin, end))
                given[v] = buffers[slot][: panel.size].reshape(panel.shape)
                mine.send(given[v], panel)
            for v, whole in resident:
                given[v] = run(whole, begin, end)
            mine.compute.wait_event(mine.copy.record())
            launch(
                source, device, state, given, rows, end - begin,
                items=None if met is None else met.items(batches), intervals=None if met is None else met.intervals,
                strides=strides_of(source, given), batches=batches,
                splits=splits_of_panel(source, self.M, end - begin, self.all_batches, all_met),
                row0=self.i0 + low, column0=self.j0 + begin, scratch=scratch,
            )  # fmt: skip
            folded[slot].record(mine.compute)
        return tuple(cupy.asnumpy(field) for field in state)
