"""What a thread has of its own on a CUDA device: streams, and pinned memory through which copies go both ways."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dred.kernel import threads
from dred.kernel.threads import Share, Stop

STAGE, BUFFERS = 1 << 23, 4  # bytes of a pinned buffer, and how many there are
COPIERS, SHARE = 4, 1 << 20  # threads that copy at once, and fewest bytes of each


class Streams:
    """A stream that computes, one that copies to the device, one that copies back, and pinned buffers in turns.

    Memory that a stream writes must have been allocated while it was the current one, for only there is what the
    memory held before sure to be done with.
    """

    def __init__(self) -> None:
        import cupy

        self.compute, self.copy, self.back = (cupy.cuda.Stream(non_blocking=True) for _ in range(3))
        self._buffers = deque(
            (np.frombuffer(cupy.cuda.alloc_pinned_memory(STAGE), np.uint8, STAGE), cupy.cuda.Event(disable_timing=True))
            for _ in range(BUFFERS)
        )

    def _next(self) -> tuple[NDArray[Any], Any]:
        """The buffer that was used first, and the event of what it is used for."""
        self._buffers.rotate(-1)
        buffer, copied = self._buffers[-1]
        copied.synchronize()  # what the buffer held before is on the device
        return buffer, copied

    def send(self, source: NDArray[Any]) -> Any:
        """An array of the device that will hold those values, when the stream `copy` has got so far."""
        import cupy

        with self.copy:
            target = cupy.empty(source.shape, source.dtype)
        self.send_to(target, source)
        return target

    def send_to(self, target: Any, source: NDArray[Any]) -> None:
        """Copy an array to contiguous memory of the device, on the stream `copy`.

        The array may change when this returns: what is still to be copied is in a pinned buffer.
        """
        data = np.ascontiguousarray(source).reshape(-1).view(np.uint8)
        for low in range(0, data.size, STAGE):
            piece = data[low : low + STAGE]
            buffer, copied = self._next()
            copy(buffer[: piece.size], piece)
            (target.data + low).copy_from_host_async(buffer.ctypes.data, piece.size, self.copy)
            copied.record(self.copy)

    def fetch(self, pairs: Sequence[tuple[NDArray[Any], Any]], ready: Any) -> None:
        """Copy arrays of the device to arrays of the host, all contiguous, once an event has come; waits for that."""
        self.back.wait_event(ready)
        under_way: deque[tuple[NDArray[Any], NDArray[Any], Any]] = deque()
        for target, source in pairs:
            data = target.reshape(-1).view(np.uint8)
            for low in range(0, data.size, STAGE):
                piece = data[low : low + STAGE]
                buffer, copied = self._next()
                (source.data + low).copy_to_host_async(buffer.ctypes.data, piece.size, self.back)
                copied.record(self.back)
                under_way.append((piece, buffer, copied))
                if len(under_way) > 1:  # one is copied by the device while the one before is by the host
                    _deliver(*under_way.popleft())
        while under_way:
            _deliver(*under_way.popleft())

    def synchronize(self) -> None:
        """Wait until nothing is left to do."""
        for stream in (self.copy, self.compute, self.back):
            stream.synchronize()


def _deliver(piece: NDArray[Any], buffer: NDArray[Any], copied: Any) -> None:
    copied.synchronize()
    copy(piece, buffer[: piece.size])


def copy(target: NDArray[Any], source: NDArray[Any]) -> None:
    """Copy bytes within the host's memory: by several threads, of which each one alone is slower than the bus.

    So are pages of new memory that are touched for the first time.
    """
    step = max(SHARE, -(-target.size // COPIERS))

    def share(low: int) -> Share:
        def work(stop: Stop) -> None:
            target[low : low + step] = source[low : low + step]

        return work

    shares = [share(low) for low in range(0, target.size, step)]
    if len(shares) > 1:
        threads.run(shares)
    else:
        target[:] = source


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
