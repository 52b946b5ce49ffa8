"""The plan of a reduction: blocks, lanes, steps and the tree of merges, from sizes and configuration alone.

Throughout this package x stands for the kept rows (M of them, one result each) and y for the reduced rows (N),
whichever of i and j they are.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from dred.cluster.cuts import Piece, cut, equal, fitted, in_steps, merge_tree, pieces
from dred.cluster.settings import Settings
from dred.cluster.sizes import Input, Sizes
from dred.errors import PlanError, human

LEAST_ROWS = 256  # x rows per block below which more blocks cost more than they bring, where the plan may choose

Lane = tuple[range, ...]  # one range of y blocks per step


@dataclass(frozen=True)
class Plan:
    """How a reduction is cut into tasks. A part of the result's identity: equal plans give equal bits.

    Each x block is reduced in `lanes`; a lane folds its y blocks one after another, in `steps` tasks; the states of
    the lanes are merged by a tree of fixed arity.

    Attributes
    ----------
    reduction, backend : str
        What is computed (names of reductions) and by which kernels.
    feed : str
        How y comes to the fold tasks. "resident": as blocks of dask's, which every worker may come to hold all of;
        "stream": what is stored is read by path, in panels, and the rest is resident; "waves": what is not stored is
        computed and folded step by step, by `Routine.compute` alone.
    x_blocks, y_blocks : tuple of int
        Rows of each block of kept and of reduced rows.
    schedule : tuple of tuple of range
        `schedule[lane][step]` is the run of y blocks that one fold task reads.
    arity : int
        States that one merge task joins.
    panel : int
        Most reduced rows that are read and folded at once.
    group : int
        Most x blocks that take part in the same waves.
    rate : float
        Declared operations per second of one worker.
    sizes : Sizes
        The problem.
    cache : int
        Most bytes that a process keeps of what fold tasks have read by path. No bit depends on it.
    """

    reduction: str
    backend: str
    feed: str
    x_blocks: tuple[int, ...]
    y_blocks: tuple[int, ...]
    schedule: tuple[Lane, ...] = field(repr=False)
    arity: int
    panel: int
    group: int
    rate: float
    sizes: Sizes
    cache: int = field(default=0, repr=False, compare=False)

    @classmethod
    def choose(cls, reduction: str, backend: str, sizes: Sizes, settings: Settings) -> Plan:
        """The plan of a problem: a function of its arguments and of nothing else.

        The number of tasks wanted is `work / shortest_fold`, at most `parallelism`, unless tasks would then last
        longer than `longest_fold`. If there are fewer x blocks than that, y is split into lanes. The caller's chunks
        are kept as blocks, but cut where a fold of one would exceed `longest_fold` or a budget of bytes, and merged
        where they are more than can be of use.

        Raises
        ------
        PlanError
            A single row exceeds a budget; a feed that is asked for is not possible.
        """
        x, y, rate = sizes.x, sizes.y, settings.rate(backend)
        work = x.rows * y.rows * sizes.operations / rate  # seconds of one worker
        wanted = min(max(work / settings.shortest_fold, 1), max(settings.parallelism, work / settings.longest_fold))
        most_rows = _most_kept(sizes, rate, settings)
        useful = max(settings.parallelism, math.ceil(work / settings.shortest_fold))
        if x.chunks:
            x_blocks = fitted(x.chunks, useful, most_rows)
            if x_blocks != x.chunks:
                x_blocks = tuple(filter(None, x_blocks)) or (0,)
        else:
            blocks = min(math.ceil(wanted), max(1, x.rows // LEAST_ROWS))
            x_blocks = equal(x.rows, max(blocks, math.ceil(x.rows / most_rows)))
        lanes = max(1, min(math.ceil(wanted / len(x_blocks)), y.rows))

        feed = _feed(sizes, settings)
        if feed == "waves":  # a row of each lane at least
            lanes = min(lanes, max(1, settings.y_budget // max(1, _moving(sizes, feed))))
        most_rows = _most_reduced(max(x_blocks), lanes, feed, sizes, rate, settings)
        if y.chunks:
            useful = lanes * math.ceil(settings.parallelism / lanes)
            chunks = tuple(filter(None, y.chunks)) or (0,)
            y_blocks = fitted(chunks, useful, min(most_rows, -(-y.rows // lanes) or 1))
        else:
            y_blocks = equal(y.rows, max(lanes, math.ceil(y.rows / most_rows)))
        schedule = tuple(tuple(in_steps(y_blocks, lane, most_rows)) for lane in cut(y_blocks, lanes))
        panel = max(1, settings.panel // y.row_bytes if y.row_bytes else y.rows)
        group = len(x_blocks)
        if feed == "waves":
            block = max(x_blocks) * (x.row_bytes + 2 * lanes * sizes.state_row_bytes + sizes.out_row_bytes)
            group = max(1, min(group, settings.wave_rows // max(1, block)))
        arity, cache = settings.arity, settings.stream_cache
        return cls(reduction, backend, feed, x_blocks, y_blocks, schedule, arity, panel, group, rate, sizes, cache)

    @property
    def lanes(self) -> int:
        """Runs of y blocks that are folded independently of each other, for each x block."""
        return len(self.schedule)

    @property
    def steps(self) -> int:
        """Most fold tasks that follow each other in a lane."""
        return max(map(len, self.schedule))

    @cached_property
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
    def out_chunks(self) -> tuple[int, ...]:
        """Rows of the chunks of the results: the caller's."""
        return self.sizes.x.chunks or self.x_blocks

    # -- what is counted ------------------------------------------------------------------------------------------

    @property
    def fold_tasks(self) -> int:
        return len(self.x_blocks) * sum(map(len, self.schedule))

    @property
    def merge_tasks(self) -> int:
        return len(self.x_blocks) * sum(len(run) > 1 for level in self.tree for run in level)

    @property
    def out_tasks(self) -> int:
        """One for each x block; in a graph, one more for each block of each of several arrays, and for their chunks."""
        return len(self.x_blocks) * (1 + self._picked) + self.sizes.outputs * len(self.out_pieces)

    @property
    def block_tasks(self) -> int:
        """Blocks that are put together of pieces of the caller's chunks; in waves, those of y for each group."""
        return sum(times * len(found) for _, found, times in self._assembled)

    @property
    def groups(self) -> int:
        """How often all y blocks are computed."""
        return -(-len(self.x_blocks) // self.group)

    @property
    def tasks(self) -> int:
        """Tasks that the reduction adds to the graph of its inputs."""
        return self.block_tasks + self.fold_tasks + self.merge_tasks + self.out_tasks

    @property
    def edges(self) -> int:
        """Results that these tasks read: chunks, blocks, previous states, states to merge."""
        s = self.sizes
        folds = sum(map(len, self.schedule))
        resident = sum(not self.streamed(one) for one in s.y.inputs)
        read = folds * (len(s.x.inputs) + len(s.parameters)) + len(self.y_blocks) * resident
        assembled = sum(times * one.columns * len(block) for one, found, times in self._assembled for block in found)
        outs = s.outputs * sum(map(len, self.out_pieces))
        return len(self.x_blocks) * (read + self.states_read + self._picked) + assembled + outs

    @property
    def states_read(self) -> int:
        """Times that a state of one x block is handed on: along the lanes, up the tree, to the result."""
        chained = sum(map(len, self.schedule)) - self.lanes
        tree = self.tree
        left = len(tree[-1]) if tree else self.lanes  # states that the last task joins
        return chained + left + sum(len(run) for level in tree for run in level if len(run) > 1)

    def streamed(self, one: Input) -> bool:
        """Whether fold tasks read this array of the reduced index by path."""
        return one.stored and self.feed != "resident"

    @property
    def _picked(self) -> int:
        """Arrays that are taken out of a tuple of several; waves put all rows in their place instead."""
        return self.sizes.outputs if self.sizes.outputs > 1 and self.feed != "waves" else 0

    @cached_property
    def _assembled(self) -> list[tuple[Input, list[tuple[Piece, ...]], int]]:
        """For each array that comes in chunks, the blocks that are put together, and how often."""
        s = self.sizes
        found = [(one, one.assembled(self.x_blocks), 1) for one in s.x.inputs]
        found += [(one, one.assembled(self.y_blocks), self.groups) for one in s.y.inputs]
        return found + [(one, one.assembled((sum(one.chunks or ()),)), 1) for one in s.parameters]

    @cached_property
    def out_pieces(self) -> list[tuple[Piece, ...]]:
        """For each chunk of a result the pieces of x blocks that it consists of; nothing where none is asked for."""
        same = self.feed == "waves" or self.out_chunks == self.x_blocks
        return [] if same else pieces(self.x_blocks, self.out_chunks)

    # -- what it takes --------------------------------------------------------------------------------------------

    @property
    def pairs(self) -> int:
        return self.sizes.x.rows * self.sizes.y.rows

    @property
    def seconds(self) -> float:
        """Seconds of one worker at the declared rate."""
        return self.pairs * self.sizes.operations / self.rate

    @property
    def parallel(self) -> int:
        """Fold tasks that can run at once."""
        return len(self.x_blocks) * self.lanes

    @property
    def step_rows(self) -> int:
        """Most y rows that one fold task reads."""
        return max(sum(self.y_blocks[step.start : step.stop]) for lane in self.schedule for step in lane)

    @property
    def fold_seconds(self) -> float:
        """Seconds of the longest fold task at the declared rate."""
        return max(self.x_blocks) * self.step_rows * self.sizes.operations / self.rate

    @property
    def moving_row_bytes(self) -> int:
        """Bytes of a y row that come as blocks of dask's."""
        return _moving(self.sizes, self.feed)

    @property
    def wave_rows(self) -> list[int]:
        """For each step, the y rows that all lanes read in it."""
        return [
            sum(sum(self.y_blocks[lane[s].start : lane[s].stop]) for lane in self.schedule if s < len(lane))
            for s in range(self.steps)
        ]

    @property
    def wave_bytes(self) -> int:
        """Most bytes of y blocks that there are at once: all of them, or those of one step of all lanes."""
        rows = max(self.wave_rows) if self.feed == "waves" else self.sizes.y.rows
        return rows * self.moving_row_bytes

    @property
    def fold_bytes(self) -> int:
        """Most bytes that one fold task holds beside blocks of y: those of x, its states, panels that it reads.

        What is stored is read a panel ahead, what comes in several blocks is joined a panel at a time; float16 is held
        as float32 besides.
        """
        s = self.sizes
        x = max(self.x_blocks) * ((1 + s.widened) * s.x.row_bytes + 2 * s.state_row_bytes)
        panel = min(self.panel, self.step_rows)
        joined = self.moving_row_bytes if any(len(step) > 1 for lane in self.schedule for step in lane) else 0
        return (
            x
            + panel * (2 * self._read_row_bytes + joined + s.widened * s.y.row_bytes)
            + (1 + s.widened) * s.parameter_bytes
        )

    @property
    def _read_row_bytes(self) -> int:
        """Bytes of a y row that are read by path."""
        return self.sizes.y.row_bytes - self.moving_row_bytes

    @property
    def kept_panels(self) -> int:
        """Bytes of panels that a process comes to keep for folds to come."""
        return min(self.cache, self.sizes.y.rows * self._read_row_bytes)

    @property
    def assembling_bytes(self) -> int:
        """Most bytes that a task holds which puts a block together: whole chunks, and the block."""
        return max(
            (
                one.row_bytes * sum(piece.rows + piece.stop - piece.start for piece in block)
                for one, found, _ in self._assembled
                for block in found
            ),
            default=0,
        )

    def least_bytes(self, threads: int = 1) -> int:
        """Bytes that a worker of `threads` tasks at a time needs at once, whatever it may put on its disk meanwhile.

        Its folds may be of as many lanes; what it keeps of what it has read by path is not put on its disk.
        """
        folds = threads * self.fold_bytes + min(threads, self.lanes) * self.step_rows * self.moving_row_bytes
        return max(folds, threads * self.assembling_bytes) + self.kept_panels

    def worker_bytes(self, workers: int, threads: int = 1) -> int:
        """Most bytes that a worker of `threads` folds at a time comes to hold, if all do their part.

        All y blocks that there are, and the chunks of which they are put together; what its folds hold; the blocks,
        chunks, states and results of its part of x; panels that it keeps.
        """
        s = self.sizes
        mine = min(math.ceil(self.group / workers) * max(self.x_blocks), s.x.rows)
        again = s.out_row_bytes if self._picked or self.out_pieces else 0
        states = (2 if self.feed == "waves" else 1) * self.lanes  # of waves, those before a step and those after it
        kept = mine * (s.x.row_bytes + states * s.state_row_bytes + s.out_row_bytes + again)
        # a chunk is held until all blocks of it are there, whoever has the blocks
        chunks = sum(
            one.row_bytes * min(mine + max(one.chunks or (0,)), s.x.rows)
            for one in s.x.inputs
            if one.assembled(self.x_blocks)
        )
        # workers forget the blocks of one wave while those of the next are made
        held = (2 if self.feed == "waves" else 1) * self.wave_bytes + chunks + self._wave_chunks
        return held + threads * self.fold_bytes + kept + 2 * s.parameter_bytes + self.kept_panels

    @property
    def _wave_chunks(self) -> int:
        """Most bytes of chunks at once of which y blocks are put together: of all, or of those of one step."""
        apart = [(one, one.assembled(self.y_blocks)) for one in self.sizes.y.inputs]
        if self.feed != "waves":
            return sum(one.row_bytes * self.sizes.y.rows for one, found in apart if found)
        most = 0
        for step in range(self.steps):
            js = [j for lane in self.schedule if step < len(lane) for j in lane[step]]
            most = max(most, sum(one.row_bytes * _touched(one, self.y_blocks, js) for one, found in apart if found))
        return most

    def bytes_moved(self, workers: int) -> int:
        """Most bytes that cross between `workers` processes.

        Every worker may fetch every block that another holds, if there are as many tasks that read it, those of y again
        for each group of x blocks; and every state, or several results together, the task that reads it; so do those
        tasks that put blocks together of chunks. No worker is lost.
        """
        if workers < 2:
            return 0
        s = self.sizes
        others = workers - 1
        inputs = min(others, sum(map(len, self.schedule))) * s.x.rows * s.x.row_bytes
        readers = self.groups * min(others, self.group)  # of a y block, and others than the worker that made it
        inputs += readers * s.y.rows * self.moving_row_bytes + others * s.parameter_bytes
        chunks = sum(
            times * one.row_bytes * sum(piece.rows for block in found for piece in block)
            for one, found, times in self._assembled
        )
        outs = s.out_row_bytes * sum(piece.rows for block in self.out_pieces for piece in block)
        states = s.x.rows * (s.state_row_bytes * self.states_read + s.out_row_bytes * self._picked)
        return inputs + chunks + states + outs

    def token(self) -> str:
        """32 hexadecimal digits that differ where plans differ."""
        return hashlib.blake2b(repr((self, self.schedule)).encode(), digest_size=16).hexdigest()

    def __dask_tokenize__(self) -> str:
        return self.token()

    def table(self) -> list[tuple[str, str]]:
        """What there is to say, as names and texts."""
        s = self.sizes
        kinds = {"block": self.block_tasks, "fold": self.fold_tasks, "merge": self.merge_tasks, "out": self.out_tasks}
        return [
            ("reduction", f"{self.reduction} on {self.backend}"),
            ("pairs", f"{s.x.rows:,} x {s.y.rows:,} = {self.pairs:.3g}, each of {s.operations:,} operations"),
            ("time", f"about {self.seconds:.3g} s of one worker, at {self.rate:.3g} operations per second"),
            ("feed", _FEED[self.feed].format(human(self.wave_bytes))),
            ("lanes", f"{self.lanes} x {self.steps} steps, merged {self.arity} at a time, tree of depth {self.depth}"),
            ("x blocks", f"{len(self.x_blocks):,} of at most {max(self.x_blocks):,} kept rows"),
            ("y blocks", f"{len(self.y_blocks):,} of at most {max(self.y_blocks):,} reduced rows"),
            ("tasks", f"{self.tasks:,} = " + " + ".join(f"{n:,} {kind}" for kind, n in kinds.items() if n)),
            ("edges", f"{self.edges:,}"),
            ("longest fold", f"about {self.fold_seconds:.3g} s; it holds {human(self.fold_bytes)}"),
            ("kept rows", human(s.x.rows * s.x.row_bytes)),
            ("reduced rows", human(s.y.rows * s.y.row_bytes)),
            ("states", human(s.x.rows * s.state_row_bytes * self.lanes)),
            ("results", human(s.x.rows * s.out_row_bytes)),
        ]

    def __str__(self) -> str:
        return aligned(self.table())


_FEED = {
    "resident": "resident: every worker may come to hold all y blocks, {}",
    "stream": "stream: stored rows are read by path, and {} come as blocks",
    "waves": "waves: y blocks are computed and folded step by step, {} at a time",
}


def aligned(table: Sequence[tuple[str, str]]) -> str:
    """A table as lines, its names in a column."""
    width = max(len(name) for name, _ in table)
    return "\n".join(f"{name:{width}}  {text}" for name, text in table)


def _feed(sizes: Sizes, settings: Settings) -> str:
    """How y comes to the folds: what is stored by path, the rest at once if `y_budget` allows it."""
    y = sizes.y
    stored = any(one.stored for one in y.inputs)
    moving = y.rows * sum(one.row_bytes for one in y.inputs if not one.stored)
    if settings.feed == "waves":
        return "waves"
    if settings.feed == "stream" and not stored:
        raise PlanError(
            "dred.plan.feed is stream, but no variable of the reduced index is stored: pass dred.from_file(...) or "
            "dred.from_array(...), or use another feed"
        )
    if settings.feed == "resident":
        stored, moving = False, y.rows * y.row_bytes
    if moving <= settings.y_budget:
        return "stream" if stored else "resident"
    if settings.feed != "auto":
        raise PlanError(
            f"dred.plan.feed is {settings.feed}, but {human(moving)} of reduced rows would come to lie in every "
            f"worker, more than dred.plan.y-budget of {human(settings.y_budget)}: raise it, or use another feed"
        )
    return "waves"


def _moving(sizes: Sizes, feed: str) -> int:
    """Bytes of a y row that come as blocks of dask's."""
    return sum(one.row_bytes for one in sizes.y.inputs if not one.stored or feed == "resident")


def _touched(one: Input, blocks: Sequence[int], wanted: Sequence[int]) -> int:
    """Rows of the chunks that some of the blocks are put together of."""
    found = pieces(one.chunks or (0,), blocks)
    return sum({piece.chunk: piece.rows for j in wanted for piece in found[j]}.values())


def _most_kept(sizes: Sizes, rate: float, settings: Settings) -> int:
    """Most x rows that one fold may have: with `LEAST_ROWS` reduced rows it is short, and its states fit."""
    row = sizes.x.row_bytes + 2 * sizes.state_row_bytes + sizes.out_row_bytes
    if row > settings.x_budget and sizes.x.rows:
        raise PlanError(
            f"a single kept row with its states holds {human(row)}, more than dred.plan.x-budget of "
            f"{human(settings.x_budget)}: raise it in dask's configuration"
        )
    pairs = settings.longest_fold * rate / sizes.operations
    return max(1, min(settings.x_budget // max(row, 1), int(pairs / max(1, min(LEAST_ROWS, sizes.y.rows)))))


def _most_reduced(x_rows: int, lanes: int, feed: str, sizes: Sizes, rate: float, settings: Settings) -> int:
    """Most y rows that one fold over `x_rows` kept rows may read, at least 1."""
    y = sizes.y
    if not y.rows:
        return 1
    seconds = x_rows * sizes.operations / rate  # of one y row
    most = settings.longest_fold / seconds if seconds else math.inf
    if most < 1:
        raise PlanError(
            f"a single pair of {sizes.operations:,} operations takes about {sizes.operations / rate:.3g} s, more than "
            f"dred.plan.longest-fold of {settings.longest_fold:g} s: raise it"
        )
    moving = _moving(sizes, feed)
    if moving:
        if moving > settings.step:
            raise PlanError(
                f"a single reduced row holds {human(moving)}, more than dred.plan.step of {human(settings.step)}: "
                "raise it in dask's configuration"
            )
        most = min(most, settings.step // moving)
        if feed == "waves":
            most = min(most, settings.y_budget // (moving * lanes))
    return max(1, int(min(most, y.rows)))
