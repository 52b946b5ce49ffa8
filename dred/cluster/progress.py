"""How far a computation is: pairs done, their rate and the time left; on terminals, in notebooks and in logs."""

# mypy: allow-untyped-calls
# (dask is typed in part)

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TextIO

from dask.callbacks import Callback

from dred.cluster.backend import ambient_client

INTERVAL = 1.0  # seconds between two looks at a cluster
QUIET = 30.0  # seconds between two lines of a log

Folded = Callable[[Mapping[str, int]], None]  # told how many folds of each layer are done


class Progress(NamedTuple):
    """How far a computation is.

    Attributes
    ----------
    done, total : int
        Pairs (i, j), of all sweeps; `done` counts those too that had been done before this run.
    seconds : float
        Since it began.
    rate : float or None
        Pairs per second of this run; None: it has done none yet.
    left : float or None
        Seconds until the end at this rate.
    """

    done: int
    total: int
    seconds: float
    rate: float | None
    left: float | None


class Meter:
    """Counts pairs and says so.

    A terminal (and a notebook) has one line that changes; anything else gets a line when a tenth more is done or half a
    minute has passed.

    Parameters
    ----------
    total : int
        Pairs (i, j) of all sweeps.
    file : text file, callable or None
        Where it is said; a function that is told the `Progress` as often as a log gets a line; None: nowhere.
    clock : callable
        Seconds that only grow.
    """

    def __init__(
        self,
        total: int,
        file: TextIO | Callable[[Progress], None] | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.done, self.skipped = total, 0, 0
        self._told = file if callable(file) else None
        self._file, self._clock = None if callable(file) else file, clock
        self._start = self._last = clock()
        self._tenth = self._width = 0
        self._changes = self._file is not None and (self._file.isatty() or "ipykernel" in sys.modules)

    def skip(self, pairs: int) -> None:
        """So many pairs were done before: they say nothing about the rate."""
        self.skipped += pairs
        self.add(pairs)

    def add(self, pairs: int) -> None:
        """So many pairs more are done."""
        self.at(self.done + pairs)

    def at(self, pairs: int) -> None:
        """So many pairs are done in all."""
        self.done = min(max(pairs, self.done), self.total)
        if self._file is None and self._told is None:
            return
        now = self._clock()
        tenth = 10 * self.done // max(1, self.total)
        if self._changes or tenth > self._tenth or now - self._last >= QUIET:
            self._tenth, self._last = tenth, now
            if self._told is not None:
                self._told(self.after(now - self._start))
            else:
                self._say(self.line(now - self._start))

    def after(self, seconds: float) -> Progress:
        """How far it is after so many seconds."""
        rate = (self.done - self.skipped) / seconds if self.done > self.skipped and seconds > 0 else None
        left = (self.total - self.done) / rate if rate else None
        return Progress(self.done, self.total, seconds, rate, left)

    def line(self, seconds: float) -> str:
        """What is said after so many seconds."""
        part = self.done / self.total if self.total else 1.0
        text = f"dred: {part:4.0%} of {self.total:.3g} pairs"
        now = self.after(seconds)
        if now.rate is not None and now.left is not None:
            text += f", {now.rate:.3g} pairs/s, "
            text += f"{spoken(now.left)} left" if part < 1 else f"in {spoken(seconds)}"
        return text

    def close(self) -> None:
        """End the line that changes."""
        if self._file is not None and self._changes and self._width:
            self._file.write("\n")
            self._file.flush()

    def _say(self, text: str) -> None:
        assert self._file is not None
        if self._changes:
            self._file.write("\r" + text.ljust(self._width))
            self._width = len(text)
        else:
            self._file.write(text + "\n")
        self._file.flush()


def spoken(seconds: float) -> str:
    """Seconds for people: `spoken(75)` is '1 min 15 s'."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    hours, rest = divmod(whole, 3600)
    return f"{hours} h {rest // 60:02d} min" if hours else f"{rest // 60} min {rest % 60:02d} s"


@contextmanager
def watched(meter: Meter, folds: Mapping[str, tuple[int, int]]) -> Iterator[None]:
    """Tell the meter how many pairs are done, by fold tasks, while they are computed.

    Parameters
    ----------
    folds : mapping of str to (int, int)
        By the name of their layer, how many fold tasks there are, and the pairs of all of them.
    """
    before = meter.done

    def folded(counts: Mapping[str, int]) -> None:
        meter.at(before + sum(pairs * min(counts[name], n) // max(1, n) for name, (n, pairs) in folds.items()))

    client = ambient_client()
    names = tuple(folds)
    with _looking(client, names, folded) if client is not None else _Counting(names, folded):
        yield
    meter.at(before + sum(pairs for _, pairs in folds.values()))


class _Counting(Callback):
    """Of dask's schedulers in this process."""

    def __init__(self, names: Sequence[str], folded: Folded) -> None:
        super().__init__(posttask=self._one)
        self._folded, self._counts = folded, dict.fromkeys(names, 0)

    def _one(self, key: Any, *_: Any) -> None:
        if isinstance(key, tuple) and key[0] in self._counts:
            self._counts[key[0]] += 1
            self._folded(self._counts)


@contextmanager
def _looking(client: Any, names: Sequence[str], folded: Folded) -> Iterator[None]:
    """Of a cluster: its scheduler is asked now and then, by a thread."""
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(INTERVAL):
            try:
                folded(client.run_on_scheduler(finished, names))
            except Exception:
                return  # whatever it is, the computation itself will say it

    thread = threading.Thread(target=look, name="dred-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def finished(names: Sequence[str], dask_scheduler: Any) -> dict[str, int]:
    """On a scheduler: by the names of groups of tasks, how many of them are done."""
    found = {name: dask_scheduler.task_groups.get(name) for name in names}
    done = ("memory", "released", "forgotten")
    return {name: sum(group.states[state] for state in done) if group else 0 for name, group in found.items()}
