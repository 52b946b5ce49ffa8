"""The threads that compute in this process: how many at once, whoever asks, and in what order they take turns."""

from __future__ import annotations

import functools
import math
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from dred.errors import OptionError
from dred.kernel.environment import lookup, text

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

THREADS = 256


class Stop(Protocol):
    """What a share asks between its calls."""

    def is_set(self) -> bool:
        """Whether the share must end now; where others are to have this thread's turn, waits for the next one."""


class _Never:
    is_set = staticmethod(bool)  # False


NEVER: Stop = _Never()
"""That of what is done at once, in the thread that asks for it: nothing waits for its turn."""

Share = Callable[[Stop], None]

# -- how many ------------------------------------------------------------------------------------------------------


_number = lookup("DRED_NUM_THREADS")


def declared() -> int | None:
    """DRED_NUM_THREADS, where it is set.

    Raises
    ------
    OptionError
        It is no positive number.
    """
    return _declared(_number())


@functools.lru_cache(4)
def _declared(found: bytes | str | None) -> int | None:
    number = text(found)
    if not number:
        return None
    if not number.isdecimal() or int(number) < 1:
        raise OptionError(f"DRED_NUM_THREADS is {number!r}: set it to a positive number of threads, or unset it")
    return min(int(number), THREADS)


def thread_count() -> int:
    """Threads that compute at once in this process: DRED_NUM_THREADS, else OMP_NUM_THREADS, else the CPUs that it may
    use: its affinity, and where a container has a share of the CPUs' time, that share rounded up.

    Raises
    ------
    OptionError
        DRED_NUM_THREADS is no positive number.
    """
    return explained()[0]


def explained() -> tuple[int, str]:
    """`thread_count`, and what decided it. Raises what that raises."""
    if (number := declared()) is not None:
        return number, "DRED_NUM_THREADS"
    outer = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # a list: the outermost level comes first
    if outer.isdecimal() and int(outer) > 0:
        return min(int(outer), THREADS), "OMP_NUM_THREADS"
    cpus = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, THREADS)
    if (time := quota()) <= cpus - 1:
        return max(1, math.ceil(time)), f"control groups allow the time of {time:.3g} CPUs"
    return cpus, f"affinity: {cpus} of {os.cpu_count()} CPUs"


@functools.cache
def quota(root: str = "/sys/fs/cgroup", groups: str = "/proc/self/cgroup") -> float:
    """CPUs whose time the control groups of this process (version 2) allow it; infinite where there is no limit."""
    return min(map(_allowed, control_groups(root, groups)), default=math.inf)


def control_groups(root: str = "/sys/fs/cgroup", groups: str = "/proc/self/cgroup") -> Iterator[Path]:
    """The folders of the control groups of this process (version 2) and of those around them, each with limits."""
    try:
        lines = Path(groups).read_text().splitlines()
    except OSError:
        return
    for line in lines:
        if line.startswith("0::"):
            parts = [part for part in line.removeprefix("0::").split("/") if part]
            yield from (Path(root, *parts[:depth]) for depth in range(len(parts), -1, -1))


def _allowed(folder: Path) -> float:
    try:
        time, period = (folder / "cpu.max").read_text().split()
        return float(time) / float(period)
    except (OSError, ValueError, ZeroDivisionError):  # no such group, "max"
        return math.inf


# -- turns ---------------------------------------------------------------------------------------------------------


class _Job:
    """The shares of one fold. The thread that asks takes one after another; helpers do the same when it is their turn.

    Counts are changed under `_turns` alone.
    """

    def __init__(self, shares: Sequence[Share], limit: int) -> None:
        self.waiting = deque(shares)
        self.limit = limit
        self.running = 1  # threads that compute now: the one that asks
        self.parked = 0  # helpers that would
        self.helpers = 0
        self.stop = threading.Event()
        self.error: BaseException | None = None

    def take(self) -> Share | None:
        """The next share, if there is one and it is still wanted."""
        try:
            return None if self.stop.is_set() else self.waiting.popleft()
        except IndexError:
            return None

    def help(self) -> None:
        """What a thread of the pool does."""
        with _turns:
            if not self.waiting:
                return
            self.helpers += 1
        begun = False
        try:
            begun = self._park(lambda: not self.waiting)
            turn = _Turn(self)
            while begun and not turn.is_set() and (share := self.take()) is not None:
                share(turn)
        except BaseException as error:
            self.error = error
            self.stop.set()
        finally:
            with _turns:
                self.helpers -= 1
                self.running -= begun
                _turns.notify_all()

    def _park(self, needless: Callable[[], bool]) -> bool:
        """Wait for a turn; False where there is no use for one any more."""
        with _turns:
            self.parked += 1
            _turns.notify_all()  # to the others it may make a difference that this job wants more
            try:
                _turns.wait_for(lambda: needless() or self.stop.is_set() or self._may_run())
                if needless():
                    return False
                self.running += 1
                return True
            finally:
                self.parked -= 1

    def _may_run(self) -> bool:
        # a job of which nothing runs waits for its helpers: the budget must not hold them up
        fewest = min((job.running for job in _jobs if job.parked), default=0)
        return self.running == 0 or (_computing() < self.limit and self.running <= fewest)

    def give_way(self) -> None:
        """Of a helper between two calls: park if too many compute, or if another fold has much fewer threads."""
        with _turns:
            hungry = any(job.parked and job.running + 1 < self.running for job in _jobs)
            if self.running == 1 or not (hungry or _computing() > self.limit):
                return
            self.running -= 1
        self._park(lambda: False)

    def lead(self) -> None:
        """What the thread that asks does. Raises what a share raised, its own or another's."""
        try:
            while (share := self.take()) is not None:
                share(self.stop)
        except BaseException:
            self.stop.set()
            raise
        finally:
            with _turns:
                self.running -= 1
                self.waiting.clear()  # a helper that begins now has nothing to do
                _turns.notify_all()
                _turns.wait_for(lambda: self.helpers == 0)
                _jobs.discard(self)
        if self.error is not None:
            raise self.error


class _Turn:
    """The `Stop` of a helper."""

    def __init__(self, job: _Job) -> None:
        self._job = job

    def is_set(self) -> bool:
        self._job.give_way()
        return self._job.stop.is_set()


_turns = threading.Condition()
_jobs: weakref.WeakSet[_Job] = weakref.WeakSet()  # weak: what an interrupt at a bad moment leaves behind is forgotten
_pool: ThreadPoolExecutor | None = None


def _computing() -> int:
    return sum(job.running for job in _jobs)


def _renew() -> None:
    """After a fork the threads are gone, and locks may be held by nobody."""
    global _turns, _jobs, _pool
    _turns, _jobs, _pool = threading.Condition(), weakref.WeakSet(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


def pool() -> ThreadPoolExecutor:
    """The threads that help."""
    global _pool
    from concurrent.futures import ThreadPoolExecutor  # 10 ms, which one thread alone need not wait for

    with _turns:
        if _pool is None:
            _pool = ThreadPoolExecutor(THREADS, "dred")
        return _pool


def run(shares: Sequence[Share]) -> None:
    """Compute every share, in this thread and in as many others as there are turns.

    Not more than `thread_count()` threads compute at once in the process, however many folds there are, and these have
    turns in equal numbers; only threads that ask always compute themselves, and one that can have no helpers is not
    counted if it begins when nobody else computes. A helper gives its turn away between two calls of a share, and a
    share that no helper has begun is taken over by the thread that asks: nothing ever waits for a thread of the pool to
    become free.

    Parameters
    ----------
    shares : sequence of callable
        Each is given a `Stop`, and asks it between its calls.
    """
    if (limit := thread_count()) == 1 and not _jobs:  # nobody helps here, and nobody else computes
        for share in shares:
            share(NEVER)
        return
    job = _Job(shares, limit)
    try:
        with _turns:
            _jobs.add(job)
        for _ in range(min(len(shares), job.limit) - 1):
            pool().submit(job.help)
        job.lead()
    except BaseException:  # KeyboardInterrupt comes anywhere
        job.stop.set()
        raise
