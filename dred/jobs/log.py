"""What a job says while it runs, on stderr: lines for people, or a JSON object a line for programs."""

from __future__ import annotations

import json
import logging
import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol


class Told(Protocol):
    """How far a computation is, as `Routine.compute` tells."""

    done: int
    total: int
    seconds: float
    rate: float | None
    left: float | None


@dataclass(frozen=True)
class Log:
    """Where events go.

    Attributes
    ----------
    quiet : bool
        Errors alone are said.
    as_json : bool
    """

    quiet: bool = False
    as_json: bool = False

    def say(self, event: str, text: str, error: bool = False, **facts: Any) -> None:
        """Something happened: its name, what people read, and what programs read besides."""
        if self.quiet and not error:
            return
        if self.as_json:
            time = datetime.now(UTC).isoformat(timespec="milliseconds")
            known = {
                name: None if isinstance(value, float) and not math.isfinite(value) else value
                for name, value in facts.items()
            }  # fmt: skip  (JSON has neither inf nor NaN)
            line = json.dumps({"time": time, "event": event, "text": text, **known}, default=str)
        else:
            line = f"dred: {text}"
        print(line, file=sys.stderr, flush=True)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nothing else is on stderr meanwhile: warnings are said here, and what libraries log of errors is not."""
        disabled, show = logging.root.manager.disable, warnings.showwarning
        logging.disable(logging.ERROR)
        warnings.showwarning = lambda message, *_, **__: self.say("warning", str(message))
        try:
            yield
        finally:
            logging.disable(disabled)
            warnings.showwarning = show

    @property
    def progress(self) -> Any:
        """What `Routine.compute` takes as `progress`."""
        if self.quiet:
            return False
        return self._told if self.as_json else True

    def _told(self, now: Told) -> None:
        facts: dict[str, Any] = {"pairs_done": now.done, "pairs": now.total, "seconds": round(now.seconds, 3),
                 "pairs_per_second": now.rate, "seconds_left": now.left}  # fmt: skip
        self.say("progress", f"{now.done / now.total if now.total else 1:.0%} of {now.total:.3g} pairs", **facts)
