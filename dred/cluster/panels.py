"""Panels: runs of rows of stored arrays, kept by each process within a bound of bytes, and read ahead.

Tasks that stream the same rows one after another, or at once, read them once while they fit. The least recently used
panel goes first. Nothing runs before it is needed: the thread that reads ahead ends when it has nothing to read.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple

from numpy.typing import NDArray

from dred.cluster import sources
from dred.cluster.stored import Source

Array = NDArray[Any]
Key = tuple[Source, int, int]


class Counts(NamedTuple):
    """What a cache did: panels read from storage, panels found or awaited, and bytes it holds or is about to."""

    reads: int
    hits: int
    bytes: int


class Panels:
    """A cache of panels for the threads of a process.

    Parameters
    ----------
    most : callable
        () -> the bound in bytes: of panels that are kept, and of those being read to be kept, together.
    """

    def __init__(self, most: Callable[[], int]) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._kept: OrderedDict[Key, Array] = OrderedDict()  # the one used last is last
        self._coming: dict[Key, Future[Array]] = {}
        self._ahead: deque[tuple[Key, Future[Array]]] = deque()
        self._reader: threading.Thread | None = None
        self._reads = self._hits = 0
        self._kept_bytes = self._coming_bytes = 0

    def get(self, source: Source, start: int, stop: int) -> Array:
        """Rows start:stop of a source, read-only; what another thread is reading is waited for.

        A panel for which there is no room is read and not kept. Errors are those of `sources.read`; none is kept.
        """
        key = (source, start, stop)
        with self._lock:
            if (found := self._found(key)) is not None:
                self._hits += 1
                return found
            there = self._coming.get(key)
            mine = there is None or there.cancel()  # what is only queued, this thread reads itself
            if there is None or mine:
                room = there is not None or self._make_room(_size(key))
                coming: Future[Array] = Future()
                coming.set_running_or_notify_cancel()
                self._coming[key] = coming
            else:
                self._hits += 1
                coming, room = there, False
        if mine:
            self._read(key, coming, keep=room)
        return coming.result()

    def prefetch(self, source: Source, start: int, stop: int) -> bool:
        """Read rows start:stop in the background, if they are not there yet and there is room: is it done or under way?

        What goes wrong in reading is not raised here: it goes wrong again in `get`.
        """
        key = (source, start, stop)
        with self._lock:
            if self._found(key) is not None or key in self._coming:
                return True
            if not self._make_room(_size(key)):
                return False
            coming: Future[Array] = Future()
            self._coming[key] = coming
            self._ahead.append((key, coming))
            if self._reader is None:
                self._reader = threading.Thread(target=self._read_ahead, name="dred-panels", daemon=True)
                self._reader.start()
            return True

    def counts(self) -> Counts:
        """What was done so far."""
        with self._lock:
            return Counts(self._reads, self._hits, self._kept_bytes + self._coming_bytes)

    def clear(self) -> None:
        """Forget all panels that are kept."""
        with self._lock:
            self._kept.clear()
            self._kept_bytes = 0

    def _found(self, key: Key) -> Array | None:
        if (found := self._kept.get(key)) is not None:
            self._kept.move_to_end(key)
        return found

    def _make_room(self, size: int) -> bool:
        """Reserve bytes for a panel, where forgetting others gives way."""
        left = self._most() - self._coming_bytes - size
        if left < 0:
            return False
        while self._kept_bytes > left:
            key, _ = self._kept.popitem(last=False)
            self._kept_bytes -= _size(key)
        self._coming_bytes += size
        return True

    def _read(self, key: Key, coming: Future[Array], keep: bool) -> None:
        size = _size(key) if keep else 0
        try:
            panel = sources.read(*key)
        except BaseException as error:
            with self._lock:
                del self._coming[key]
                self._coming_bytes -= size
            coming.set_exception(error)
            return
        panel.flags.writeable = False
        with self._lock:
            self._reads += 1
            del self._coming[key]
            self._coming_bytes -= size
            if keep:
                self._kept[key] = panel
                self._kept_bytes += size
        coming.set_result(panel)

    def _read_ahead(self) -> None:
        while True:
            with self._lock:
                if not self._ahead:
                    self._reader = None
                    return
                key, coming = self._ahead.popleft()
                if not coming.set_running_or_notify_cancel():
                    continue  # `get` has taken it over
            self._read(key, coming, keep=True)


def _size(key: Key) -> int:
    source, start, stop = key
    return (stop - start) * source.row_bytes


_bound: int | None = None


def bound(most: int | None) -> None:
    """Keep no more than so many bytes in this process, whatever the configuration allows; None: what it allows."""
    global _bound
    _bound = most


def most() -> int:
    """Bytes that this process may keep."""
    from dred.cluster import config

    allowed = config.stream_cache()
    return allowed if _bound is None else min(allowed, _bound)


_PANELS = Panels(most)


def _start_over() -> None:
    global _PANELS
    _PANELS = Panels(most)


if hasattr(os, "register_at_fork"):  # a child has neither the threads that were reading nor their promises
    os.register_at_fork(after_in_child=_start_over)


def get(source: Source, start: int, stop: int) -> Array:
    """Rows start:stop of a source from this process's cache, see `Panels.get`."""
    return _PANELS.get(source, start, stop)


def prefetch(source: Source, start: int, stop: int) -> bool:
    """Read rows start:stop into this process's cache in the background, see `Panels.prefetch`."""
    return _PANELS.prefetch(source, start, stop)


def counts() -> Counts:
    """What this process's cache did so far."""
    return _PANELS.counts()


def clear() -> None:
    """Forget the panels that this process keeps."""
    _PANELS.clear()
