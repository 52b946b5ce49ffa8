"""The plan of a reduction: blocks, lanes, steps and the tree of merges, from sizes and configuration alone.

Throughout this package x stands for the kept rows (M of them, one result each) and y for the reduced rows (N),
whichever of i and j they are.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

from dred.errors import PlanError, human

LEAST_ROWS = 256  # x rows per block below which more blocks cost more than they bring, where the plan may choose

Lane = tuple[range, ...]  # one range of y blocks per step


@dataclass(frozen=True)
class Settings:
    """What configuration says about plans; see `dred.yaml` for the meaning of each field (times in seconds)."""

    arity: int
    shortest_fold: float
    longest_fold: float
    parallelism: int
    y_budget: int
    operations_per_second: Mapping[str, float]

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
        if self.y_budget < 1:
            raise PlanError(f"dred.plan.y-budget is {self.y_budget} bytes: at least 1 is needed")
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


@dataclass(frozen=True)
class Axis:
    """One of the two indices: its rows, what a row holds, and how the caller has cut it (None: not at all)."""

    rows: int
    row_bytes: int
    arrays: int
    chunks: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Sizes:
    """All that a plan may know of a problem.

    Attributes
    ----------
    x, y : Axis
        The kept and the reduced index.
    parameters, parameter_bytes : int
        Number of parameters and their bytes together.
    state_row_bytes, out_row_bytes : int
        Bytes of the state of one kept row, and of its results.
    operations : int
        Instructions per pair (i, j).
    outputs : int
        Arrays of results.
    widened : int
        Times the bytes of its inputs that a fold holds besides, converted to the compute type.
    """

    x: Axis
    y: Axis
    parameters: int
    parameter_bytes: int
    state_row_bytes: int
    out_row_bytes: int
    operations: int
    outputs: int = 1
    widened: int = 0


@dataclass(frozen=True)
class Plan:
    """How a reduction is cut into tasks. A part of the result's identity: equal plans give equal bits.

    Each x block is reduced in `lanes`; a lane folds its y blocks one after another, in `steps` tasks; the states of
    the lanes are merged by a tree of fixed arity.

    Attributes
    ----------
    reduction, backend : str
        What is computed (names of reductions) and by which kernels.
    x_blocks, y_blocks : tuple of int
        Rows of each block of kept and of reduced rows.
    schedule : tuple of tuple of range
        `schedule[lane][step]` is the run of y blocks that one fold task reads.
    arity : int
        States that one merge task joins.
    rate : float
        Declared operations per second of one worker.
    sizes : Sizes
        The problem.
    """

    reduction: str
    backend: str
    x_blocks: tuple[int, ...]
    y_blocks: tuple[int, ...]
    schedule: tuple[Lane, ...] = field(repr=False)
    arity: int
    rate: float
    sizes: Sizes

    @classmethod
    def choose(cls, reduction: str, backend: str, sizes: Sizes, settings: Settings) -> Plan:
        """The plan of a problem: a function of its arguments and of nothing else.

        The number of tasks wanted is `work / shortest_fold`, at most `parallelism`, unless tasks would then last
        longer than `longest_fold`. If there are fewer x blocks than that, y is split into lanes. The caller's x chunks
        are kept; y chunks are cut where one alone would exceed `longest_fold` or `y_budget`.

        Raises
        ------
        PlanError
            A single y row exceeds one of them.
        """
        x, y, rate = sizes.x, sizes.y, settings.rate(backend)
        work = x.rows * y.rows * sizes.operations / rate  # seconds of one worker
        wanted = min(max(work / settings.shortest_fold, 1), max(settings.parallelism, work / settings.longest_fold))
        x_blocks = x.chunks or equal(x.rows, min(math.ceil(wanted), max(1, x.rows // LEAST_ROWS)))
        lanes = math.ceil(wanted / len(x_blocks))

        most_rows = _most_rows(max(x_blocks), sizes, rate, settings)
        if y.chunks:
            y_blocks = tuple(rows for chunk in y.chunks for rows in equal(chunk, math.ceil(chunk / most_rows)))
        else:
            y_blocks = equal(y.rows, max(lanes, math.ceil(y.rows / most_rows)))
        schedule = tuple(tuple(in_steps(y_blocks, lane, most_rows)) for lane in cut(y_blocks, lanes))
        return cls(reduction, backend, x_blocks, y_blocks, schedule, settings.arity, rate, sizes)

    @property
    def lanes(self) -> int:
        """Runs of y blocks that are folded independently of each other, for each x block."""
        return len(self.schedule)

    @property
    def steps(self) -> int:
        """Most fold tasks that follow each other in a lane."""
        return max(map(len, self.schedule))

    @property
    def tree(self) -> list[list[range]]:
        """Levels of the merges of an x block: the runs of states that are joined, for the task that also finalizes.

        A run of one state is handed on without a task.
        """
        return merge_tree(self.lanes, self.arity)

    @property
    def depth(self) -> int:
        """Merges between a lane's state and the result."""
        return len(self.tree) + (self.lanes > 1)

    @property
    def fold_tasks(self) -> int:
        return len(self.x_blocks) * sum(map(len, self.schedule))

    @property
    def merge_tasks(self) -> int:
        return len(self.x_blocks) * sum(len(run) > 1 for level in self.tree for run in level)

    @property
    def out_tasks(self) -> int:
        """One for each x block, and where there are several arrays one more for each block of each."""
        return len(self.x_blocks) * (1 + self._picked)

    @property
    def _picked(self) -> int:
        """Arrays that are taken out of a tuple of several."""
        return self.sizes.outputs if self.sizes.outputs > 1 else 0

    @property
    def tasks(self) -> int:
        """Tasks that the reduction adds to the graph of its inputs."""
        return self.fold_tasks + self.merge_tasks + self.out_tasks

    @property
    def edges(self) -> int:
        """Results that these tasks read: blocks, previous states, states to merge."""
        folds = sum(map(len, self.schedule))
        read = folds * (self.sizes.x.arrays + self.sizes.parameters) + len(self.y_blocks) * self.sizes.y.arrays
        return len(self.x_blocks) * (read + self.states_read + self._picked)

    @property
    def states_read(self) -> int:
        """Times that a state of one x block is handed on: along the lanes, up the tree, to the result."""
        chained = sum(map(len, self.schedule)) - self.lanes
        tree = self.tree
        left = len(tree[-1]) if tree else self.lanes  # states that the last task joins
        return chained + left + sum(len(run) for level in tree for run in level if len(run) > 1)

    @property
    def pairs(self) -> int:
        return self.sizes.x.rows * self.sizes.y.rows

    @property
    def seconds(self) -> float:
        """Seconds of one worker at the declared rate."""
        return self.pairs * self.sizes.operations / self.rate

    @property
    def panel_rows(self) -> int:
        """Most y rows that one fold task reads."""
        return max(sum(self.y_blocks[step.start : step.stop]) for lane in self.schedule for step in lane)

    @property
    def fold_seconds(self) -> float:
        """Seconds of the longest fold task at the declared rate."""
        return max(self.x_blocks) * self.panel_rows * self.sizes.operations / self.rate

    @property
    def fold_bytes(self) -> int:
        """Most bytes that one fold task holds: its blocks, the state it was given and the state it returns.

        Several y blocks are held twice, by themselves and joined; float16 is held as float32 besides.
        """
        s = self.sizes
        x = max(self.x_blocks) * ((1 + s.widened) * s.x.row_bytes + 2 * s.state_row_bytes)
        copies = 2 if any(len(step) > 1 for lane in self.schedule for step in lane) else 1
        return x + (copies + s.widened) * self.panel_rows * s.y.row_bytes + (1 + s.widened) * s.parameter_bytes

    def bytes_moved(self, workers: int) -> int:
        """Most bytes that cross between `workers` processes once the blocks are cut as planned.

        Every worker may fetch every block that another holds, and every state, or several results together, the task
        that reads it. No worker is lost.
        """
        if workers < 2:
            return 0
        s = self.sizes
        inputs = s.x.rows * s.x.row_bytes + s.y.rows * s.y.row_bytes + s.parameter_bytes
        return (workers - 1) * inputs + s.x.rows * (
            s.state_row_bytes * self.states_read + s.out_row_bytes * self._picked
        )

    def token(self) -> str:
        """32 hexadecimal digits that differ where plans differ."""
        return hashlib.blake2b(repr((self, self.schedule)).encode(), digest_size=16).hexdigest()

    def __dask_tokenize__(self) -> str:
        return self.token()

    def __str__(self) -> str:
        s = self.sizes
        return "\n".join(
            [
                f"{self.reduction} on {self.backend}: {s.x.rows:,} x {s.y.rows:,} = {self.pairs:.3g} pairs of "
                f"{s.operations:,} operations, about {self.seconds:.3g} s of one worker at {self.rate:.3g} per second",
                f"lanes x steps x depth of the tree: {self.lanes} x {self.steps} x {self.depth} (arity {self.arity})",
                f"blocks: {len(self.x_blocks):,} of at most {max(self.x_blocks):,} kept rows, "
                f"{len(self.y_blocks):,} of at most {max(self.y_blocks):,} reduced rows",
                f"tasks: {self.tasks:,} = {self.fold_tasks:,} fold + {self.merge_tasks:,} merge + {self.out_tasks:,} "
                f"out, {self.edges:,} edges; a fold takes at most about {self.fold_seconds:.3g} s",
                f"bytes: kept {human(s.x.rows * s.x.row_bytes)}, reduced {human(s.y.rows * s.y.row_bytes)}, states "
                f"{human(s.x.rows * s.state_row_bytes * self.lanes)}, result {human(s.x.rows * s.out_row_bytes)}; "
                f"a fold holds at most {human(self.fold_bytes)}; at most {human(self.bytes_moved(2))} move between "
                "2 workers",
            ]
        )


def _most_rows(x_rows: int, sizes: Sizes, rate: float, settings: Settings) -> int:
    """Most y rows that one fold over `x_rows` kept rows may read, at least 1."""
    if not sizes.y.rows:
        return 1
    seconds = x_rows * sizes.operations / rate  # of one y row
    if seconds > settings.longest_fold:
        raise PlanError(
            f"a fold of {x_rows:,} kept rows and a single reduced row of {sizes.operations:,} operations takes about "
            f"{seconds:.3g} s, more than dred.plan.longest-fold of {settings.longest_fold:g} s: give the kept "
            f"variables chunks of at most {int(settings.longest_fold * rate / sizes.operations):,} rows, or raise it"
        )
    if sizes.y.row_bytes > settings.y_budget:
        raise PlanError(
            f"a single reduced row holds {human(sizes.y.row_bytes)}, more than dred.plan.y-budget of "
            f"{human(settings.y_budget)}: raise it in dask's configuration"
        )
    by_time = settings.longest_fold / seconds if seconds else math.inf
    by_bytes = settings.y_budget // sizes.y.row_bytes if sizes.y.row_bytes else math.inf
    return max(1, int(min(by_time, by_bytes, sizes.y.rows)))


def equal(rows: int, blocks: int) -> tuple[int, ...]:
    """`rows` in at most `blocks` blocks whose sizes differ by at most 1; none is empty unless `rows` is 0."""
    blocks = max(1, min(rows, blocks))
    bounds = [k * rows // blocks for k in range(blocks + 1)]
    return tuple(b - a for a, b in pairwise(bounds))


def cut(blocks: Sequence[int], parts: int) -> list[range]:
    """Runs of consecutive blocks with about equally many rows: `parts` of them, or one per block if that is fewer."""
    parts = min(parts, len(blocks))
    ends = [parts * end for end in accumulate(blocks)]
    bounds = [0]
    for k in range(1, parts):  # the first block that reaches k/parts of the rows, leaving a block for everyone
        reaches = bisect_left(ends, k * ends[-1] // parts) + 1
        bounds.append(min(max(reaches, bounds[-1] + 1), len(blocks) - parts + k))
    bounds.append(len(blocks))
    return [range(a, b) for a, b in pairwise(bounds)]


def in_steps(blocks: Sequence[int], lane: range, most_rows: int) -> list[range]:
    """The lane in runs of at most `most_rows` rows; a block is never split, so a run may be one larger block."""
    steps, first, rows = [], lane.start, 0
    for k in lane:
        if k > first and rows + blocks[k] > most_rows:
            steps.append(range(first, k))
            first, rows = k, 0
        rows += blocks[k]
    return [*steps, range(first, lane.stop)]


def groups(count: int, size: int) -> list[range]:
    """`range(count)` in runs of `size`; the last may be shorter."""
    return [range(a, min(a + size, count)) for a in range(0, count, size)]


def merge_tree(states: int, arity: int) -> list[list[range]]:
    """Levels of merges until at most `arity` states are left, for the task that also finalizes."""
    levels = []
    while states > arity:
        levels.append(groups(states, arity))
        states = len(levels[-1])
    return levels
