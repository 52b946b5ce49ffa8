"""What configuration says about plans, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from dred.errors import PlanError

FEEDS = ("resident", "stream", "waves")  # see `Plan.feed`


@dataclass(frozen=True)
class Settings:
    """What configuration says about plans; see `dred.yaml` for the meaning of each field (seconds, bytes).

    `stream_cache` is dred.stream.cache, the others are in dred.plan.
    """

    arity: int
    shortest_fold: float
    longest_fold: float
    parallelism: int
    y_budget: int
    operations_per_second: Mapping[str, float]
    x_budget: int = 256 << 20
    step: int = 256 << 20
    panel: int = 64 << 20
    wave_rows: int = 4 << 30
    feed: str = "auto"
    stream_cache: int = 512 << 20

    def __post_init__(self) -> None:
        if self.arity < 2:
            raise PlanError(f"dred.plan.arity is {self.arity}: a merge joins at least 2 states")
        if not 0 < self.shortest_fold <= self.longest_fold:
            raise PlanError(
                f"dred.plan.shortest-fold is {self.shortest_fold:g} s and longest-fold {self.longest_fold:g} s: "
                "0 < shortest-fold <= longest-fold must hold"
            )
        if self.parallelism < 1:
            raise PlanError(f"dred.plan.parallelism is {self.parallelism}: at least 1 is needed")
        for name in ("y_budget", "x_budget", "step", "panel", "wave_rows"):
            if getattr(self, name) < 1:
                key = name.replace("_", "-")
                raise PlanError(f"dred.plan.{key} is {getattr(self, name)} bytes: at least 1 is needed")
        if self.feed not in ("auto", *FEEDS):
            raise PlanError(f"dred.plan.feed is {self.feed!r}: it is auto, {', '.join(FEEDS[:-1])} or {FEEDS[-1]}")
        for name, rate in self.operations_per_second.items():
            if not 0 < rate < math.inf:
                raise PlanError(f"dred.plan.operations-per-second.{name} is {rate:g}: a positive number is needed")

    def rate(self, backend: str) -> float:
        """Declared operations per second of one worker."""
        try:
            return self.operations_per_second[backend]
        except KeyError:
            known = ", ".join(sorted(self.operations_per_second))
            raise PlanError(
                f"no rate is declared for backend {backend!r} (there are {known}): "
                f"set dred.plan.operations-per-second.{backend} in dask's configuration"
            ) from None
