"""What plans take on a cluster: bytes and seconds for so many workers, and whether it fits at all."""

# mypy: allow-untyped-calls
# (dask is typed in part)

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dred.cluster.backend import ambient_client
from dred.cluster.plan import Plan, aligned
from dred.errors import PlanError, human

USABLE = 0.8  # of a worker's memory limit: above it, dask pauses a worker


@dataclass(frozen=True)
class Cluster:
    """Workers, as far as plans are concerned.

    Attributes
    ----------
    workers, threads : int
        How many there are, and most tasks that one of them runs at once.
    memory : int or None
        The least memory limit of a worker in bytes; None: there is no limit.
    assumed : bool
        Whether nobody was asked how many workers there are.
    """

    workers: int = 1
    threads: int = 1
    memory: int | None = None
    assumed: bool = True

    @property
    def each(self) -> str:
        return f"{self.threads} thread" + ("s" if self.threads > 1 else "")

    @classmethod
    def of(cls, client: Any) -> Cluster:
        """That of a client; one worker without a limit where there is none, or nobody has joined it yet."""
        if client is None:
            return cls()
        found = client.run_on_scheduler(workers)
        if not found:
            return cls()
        limits = [limit for _, limit in found if limit]
        return cls(len(found), max(threads for threads, _ in found), min(limits, default=None), assumed=False)


@dataclass(frozen=True)
class Explanation:
    """The plans of a call and what they take: printable, and a table in notebooks.

    Attributes
    ----------
    plans : tuple of Plan
        One for each sweep over the pairs.
    cluster : Cluster
    """

    plans: tuple[Plan, ...]
    cluster: Cluster

    @classmethod
    def of(cls, plans: Sequence[Plan], workers: int | None = None) -> Explanation:
        """For the workers of the ambient client, or a number of workers like those."""
        found = Cluster.of(_client())
        if workers is not None:
            if workers < 1:
                raise PlanError(f"workers={workers}: at least 1 is needed")
            found = Cluster(workers, found.threads, found.memory)
        return cls(tuple(plans), found)

    @property
    def fits(self) -> bool:
        """Whether what a worker needs at once is within its memory."""
        return not self.shortage

    @property
    def shortage(self) -> str:
        """Why it does not fit; "" where it does."""
        return next(filter(None, (_shortage(plan, self.cluster) for plan in self.plans)), "")

    @property
    def seconds(self) -> float:
        """Seconds of all workers at their declared rates, if each always has something to do."""
        return sum(plan.seconds / min(self.cluster.workers, plan.parallel) for plan in self.plans)

    def tables(self) -> list[list[tuple[str, str]]]:
        """For each plan what there is to say, as names and texts."""
        return [[*plan.table(), *self._costs(plan)] for plan in self.plans]

    def _costs(self, plan: Plan) -> list[tuple[str, str]]:
        c = self.cluster
        of = f"{c.workers:,} worker" + ("s" if c.workers > 1 else "")
        busy = min(c.workers, plan.parallel)
        time = f"about {plan.seconds / busy:.3g} s" + (f", {busy:,} of them busy" if c.workers > 1 else "")
        limit = "no limit is known" if c.memory is None else f"its limit is {human(c.memory)}"
        rows = [
            (of, time + (" (assumed)" if c.assumed else "")),
            ("bytes moved", f"at most {human(plan.bytes_moved(c.workers))}"),
            (
                "memory",
                f"a worker of {c.each} holds at most {human(plan.worker_bytes(c.workers, c.threads))}, "
                f"{human(plan.least_bytes(c.threads))} of it at once; {limit}",
            ),
        ]
        if plan.feed == "waves":
            rows.append(("to run", "routine.compute(...): a lazy call would need all reduced rows at once"))
        if (shortage := _shortage(plan, c)) is not None:
            rows.append(("does not fit", shortage))
        return rows

    def __str__(self) -> str:
        return "\n\n".join(map(aligned, self.tables()))

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        def cells(table: list[tuple[str, str]]) -> str:
            return "".join(
                f'<tr><th style="text-align:left">{html.escape(name)}</th>'
                f'<td style="text-align:left">{html.escape(text)}</td></tr>'
                for name, text in table
            )

        return "".join(f"<table>{cells(table)}</table>" for table in self.tables())


def workers(dask_scheduler: Any) -> list[tuple[int, int]]:
    """On a scheduler: threads and memory limit (0: none) of each worker."""
    return [(worker.nthreads, int(worker.memory_limit or 0)) for worker in dask_scheduler.workers.values()]


def refuse(plan: Plan) -> None:
    """Refuse a plan that cannot fit into the workers of the ambient client, before anything is submitted.

    Raises
    ------
    PlanError
    """
    if (shortage := _shortage(plan, Cluster.of(_client()))) is not None:
        raise PlanError(f"{shortage}\n{plan}")


def _client() -> Any:
    try:
        return ambient_client()
    except RuntimeError:  # an asynchronous one cannot be asked
        return None


def _shortage(plan: Plan, cluster: Cluster) -> str | None:
    """Why a plan does not fit, or None."""
    need = plan.least_bytes(cluster.threads)
    if cluster.memory is None or need <= USABLE * cluster.memory:
        return None
    kept, chunks = "", ""
    cure = "lower dred.plan.x-budget and dred.plan.step in dask's configuration"
    if plan.kept_panels:
        kept = f", {human(plan.kept_panels)} of stored rows that are kept"
        cure = "lower dred.plan.x-budget, dred.plan.step and dred.stream.cache in dask's configuration"
    if cluster.threads * plan.assembling_bytes + plan.kept_panels == need:
        chunks = f", {human(plan.assembling_bytes)} to put a block together of chunks"
        cure = "cut the arrays into smaller chunks"
    return (
        f"a worker of {cluster.each} needs {human(need)} at once ({human(plan.fold_bytes)} for each fold, "
        f"{human(plan.step_rows * plan.moving_row_bytes)} of reduced rows{kept}{chunks}), more than {USABLE:.0%} of "
        f"its memory limit of {human(cluster.memory)}: give workers more or fewer threads, or {cure}"
    )
