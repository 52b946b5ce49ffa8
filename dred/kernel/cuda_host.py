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
from dred.kernel.cuda_fold import CurrentDevice
from dred.kernel.cuda_launch import SCRATCH, launch, least_scratch, panels, splits_of_panel
from dred.kernel.cuda_source import Source
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
    def of(source: Source, arrays: Sequence[Any], M: int, N: int, limit: int) -> Cut:
        """What fits into `limit` bytes.

        Raises
        ------
        MemoryError
            The rows of one tile do not.
        """
        kind = np.dtype(source.dtype).itemsize
        row = sum(field.size * np.dtype(field.dtype).itemsize for field in source.fields)
        row += sum(dim * kind for v, dim, axes in source.loads if axes == I and on_host(arrays[v]))
        cut = panels(source, N)
        longest = cut[0][1] - cut[0][0]
        column = sum(dim * kind for v, dim, axes in source.loads if axes == J and on_host(arrays[v]))
        fixed = min(2, len(cut)) * longest * column + (longest + 64) * source.size_j * kind
        fixed += sum(dim * kind for _, dim, axes in source.loads if axes not in (I, J))
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
    i0: int = 0,
    j0: int = 0,
    device_id: int = -1,
    memory: float | None = None,
) -> State:
    """See `dred.kernel.engine.fold`; computes on device `device_id`, -1 is the current one.

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
            cut = Cut.of(found, given, M, N, room(memory))
            job = _Job(spec, found, state, given, M, N, i0, j0, device_id)
            return job.run(cut)
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

    def run(self, cut: Cut) -> State:
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
                else:
                    low = high
                    continue
                mine.synchronize()  # what the failed try held is free now
                release()
                cut = cut.fewer(self.source)
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

        cut = panels(source, self.N)
        state = [sent(field[:, low:high]) for field in self.state]
        given: list[Any] = [None] * (1 + max(source.read, default=-1))
        travelling = []
        for v, dim, axes in source.loads:
            if axes == J and on_host(self.arrays[v]):
                travelling.append((v, [cupy.empty((cut[0][1], dim), source.dtype) for _ in cut[:2]]))
            elif axes == J:
                given[v] = cupy.ascontiguousarray(self.arrays[v])
            else:
                given[v] = sent(self.arrays[v][low:high] if axes == I else self.arrays[v])
        resident = [(v, given[v]) for v, _, axes in source.loads if axes == J and given[v] is not None]
        folded = [cupy.cuda.Event(disable_timing=True) for _ in cut[:2]]
        for number, (begin, end) in enumerate(cut):
            slot = number % 2
            mine.copy.wait_event(folded[slot])
            for v, buffers in travelling:
                given[v] = buffers[slot][: end - begin]
                mine.send(given[v], np.ascontiguousarray(self.arrays[v][begin:end]))
            for v, whole in resident:
                given[v] = whole[begin:end]
            mine.compute.wait_event(mine.copy.record())
            launch(
                source, device, state, given, rows, end - begin,
                splits=splits_of_panel(source, self.M, end - begin),
                row0=self.i0 + low, column0=self.j0 + begin, scratch=scratch,
            )  # fmt: skip
            folded[slot].record(mine.compute)
        return tuple(cupy.asnumpy(field) for field in state)
