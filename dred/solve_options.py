"""Options of a linear solve, checked before anything is computed, and what is said while it goes on."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dred import preconditioners
from dred.conjugate import Numbers
from dred.errors import OptionError

QUIET = 30.0  # seconds between two lines of a log


@dataclass(frozen=True)
class Options:
    """How systems are solved: see `KernelSolve.__call__`."""

    alpha: float = 1e-10
    eps: float = 1e-6
    maxiter: int = 1000
    preconditioner: str | None = None
    rank: int | None = None
    seed: int = 0
    callback: Callable[[int, float], Any] | None = None
    progress: bool = False
    on_failure: str = "raise"

    def __post_init__(self) -> None:
        whole = {"maxiter": 1, "rank": 1, "seed": 0}
        for name, least in (("alpha", 0.0), ("eps", 0.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float | np.floating | np.integer):
                raise OptionError(f"{name}={value!r}: it is a number")
            if not least <= value < np.inf or (name == "eps" and value == 0):
                wanted = "positive" if name == "eps" else "0 or positive"
                raise OptionError(f"{name}={value!r}: it is {wanted}, and finite")
        for name, least in whole.items():
            value = getattr(self, name)
            if (name, value) != ("rank", None) and (
                isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least
            ):
                raise OptionError(f"{name}={value!r}: it is an integer of {least} or more")
        if self.on_failure not in ("raise", "warn"):
            raise OptionError(f"on_failure={self.on_failure!r}: it is 'raise' or 'warn'")
        if self.callback is not None and not callable(self.callback):
            raise OptionError(f"callback={self.callback!r}: it is called with an iteration and a residual")
        preconditioners.chosen(self.preconditioner, self.rank)


class Told:
    """Says how far an iteration is, to a callback and on stderr: one line that changes, or some lines of a log."""

    def __init__(self, how: Options) -> None:
        self.how, self.last, self.said = how, time.monotonic(), np.inf
        self.changes = sys.stderr.isatty()

    def __call__(self, iteration: int, residuals: Numbers) -> None:
        worst = float(np.max(residuals))
        if iteration and self.how.callback is not None:
            self.how.callback(iteration, worst)
        if not self.how.progress:
            return
        line = f"dred: iteration {iteration}, relative residual {worst:.3g} of {self.how.eps:.3g}"
        if self.changes:
            print(f"\r{line:70}", end="", file=sys.stderr, flush=True)
        elif not worst > self.said / 10 or time.monotonic() - self.last >= QUIET:
            print(line, file=sys.stderr, flush=True)
            self.said, self.last = worst, time.monotonic()

    def close(self) -> None:
        if self.how.progress and self.changes:
            print(file=sys.stderr)
