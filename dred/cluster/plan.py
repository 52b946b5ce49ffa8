"""The plan of a reduction: blocks, lanes, steps and the tree of merges, from sizes and configuration alone.

Throughout this package x stands for the kept rows (M of them, one result each) and y for the reduced rows (N),
whichever of i and j they are.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

from dred.cluster import limits
from dred.cluster.cuts import Piece, cut, equal, fitted, in_steps, merge_tree, pieces
from dred.cluster.settings import Settings
from dred.cluster.sizes import Input, Sizes
from dred.errors import human
from dred.kernel.pattern import Pattern

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
    pattern : Pattern or None
        Which y rows each x row meets; None: all. Where a block of x and the y blocks of a task have no pair, there is
        no task.
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
    pattern: Pattern | None = field(default=None, repr=False)

    @classmethod
    def choose(
        cls, reduction: str, backend: str, sizes: Sizes, settings: Settings, pattern: Pattern | None = None
    ) -> Plan:
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
        work = x.rows * y.rows * sizes.work / rate  # seconds of one worker
        wanted = min(max(work / settings.shortest_fold, 1), max(settings.parallelism, work / settings.longest_fold))
        most_rows = limits.most_kept(sizes, rate, settings)
        useful = max(settings.parallelism, math.ceil(work / settings.shortest_fold))
        if x.chunks:
            x_blocks = fitted(x.chunks, useful, most_rows)
            if x_blocks != x.chunks:
                x_blocks = tuple(filter(None, x_blocks)) or (0,)
        else:
            blocks = min(math.ceil(wanted), max(1, x.rows // limits.LEAST_ROWS))
            x_blocks = equal(x.rows, max(blocks, math.ceil(x.rows / most_rows)))
        lanes = max(1, min(math.ceil(wanted / len(x_blocks)), y.rows))

        feed = limits.feed(sizes, settings)
        if feed == "waves":  # a row of each lane at least
            lanes = min(lanes, max(1, settings.y_budget // max(1, limits.moving(sizes, feed))))
        most_rows = limits.most_reduced(max(x_blocks), lanes, feed, sizes, rate, settings)
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
        return cls(
            reduction, backend, feed, x_blocks, y_blocks, schedule, arity, panel, group, rate, sizes, cache, pattern
        )

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
        """Levels of the merges of an x block of which all lanes have a pair, see `tree_of`."""
        return self.tree_of(self.lanes)

    def tree_of(self, lanes: int) -> list[list[range]]:
        """Levels of merges of so many lanes: the runs of states that are joined, for the task that also finalizes.

        A run of one state is handed on without a task.
        """
        return merge_tree(lanes, self.arity)

    @property
    def depth(self) -> int:
        """Merges between a lane's state and the result."""
        return len(self.tree) + (self.lanes > 1)

    @cached_property
    def folds(self) -> list[list[list[tuple[int, range]]]]:
        """For each x block and each lane, the steps that have a pair, with the y blocks that they read.

        Where all rows meet, it is one list for all x blocks.
        """
        if self.pattern is None:
            return [[list(enumerate(lane)) for lane in self.schedule]] * len(self.x_blocks)
        found: list[list[list[tuple[int, range]]]] = []
        j0 = [*accumulate(self.y_blocks, initial=0)]
        for i in range(len(self.x_blocks)):
            mine = self.pattern.within(self._kept(i), slice(0, j0[-1]))
            found.append([[] for _ in self.schedule])
            for lane, steps in enumerate(self.schedule):
                for step, js in enumerate(steps):
                    met = mine.within(slice(0, self.x_blocks[i]), slice(j0[js.start], j0[js.stop])).span()
                    if met.stop > met.start:
                        first = bisect_right(j0, j0[js.start] + met.start) - 1
                        last = bisect_left(j0, j0[js.start] + met.stop)
                        found[i][lane].append((step, range(first, last)))
        return found

    def _kept(self, i: int) -> slice:
        start = sum(self.x_blocks[:i])
        return slice(start, start + self.x_blocks[i])

    def met(self, i: int, js: range) -> Pattern | None:
        """The pattern of an x block and some y blocks, counted from the first row of each."""
        if self.pattern is None:
            return None
        j0 = [*accumulate(self.y_blocks, initial=0)]
        return self.pattern.within(self._kept(i), slice(j0[js.start], j0[js.stop]))

    def pairs_of(self, blocks: Sequence[int], js: range) -> int:
        """Pairs of some x blocks and y blocks, of all elements of a batch."""
        rows = sum(self.y_blocks[js.start : js.stop])
        if self.pattern is None:
            return sum(self.x_blocks[i] for i in blocks) * rows * self.sizes.batches
        return sum(found.pairs for i in blocks if (found := self.met(i, js))) * self.sizes.batches

    @cached_property
    def _alike(self) -> list[tuple[list[int], int]]:
        """For the fold tasks of each lane of an x block, and how many x blocks that is so for; without empty lanes."""
        if self.pattern is None:
            return [([len(steps) for steps in self.schedule], len(self.x_blocks))]
        return [([len(steps) for steps in lanes if steps], 1) for lanes in self.folds]

    @property
    def out_chunks(self) -> tuple[int, ...]:
        """Rows of the chunks of the results: the caller's."""
        return self.sizes.x.chunks or self.x_blocks

    # -- what is counted ------------------------------------------------------------------------------------------

    @property
    def fold_tasks(self) -> int:
        return sum(times * (sum(lanes) or 1) for lanes, times in self._alike)

    @property
    def merge_tasks(self) -> int:
        return sum(
            times * sum(len(run) > 1 for level in self.tree_of(len(lanes)) for run in level)
            for lanes, times in self._alike
        )

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
        resident = sum(not self.streamed(one) for one in s.y.inputs)
        fixed = len(s.x.inputs) + len(s.parameters)
        if self.pattern is None:
            folds = sum(map(len, self.schedule))
            read = len(self.x_blocks) * (folds * fixed + len(self.y_blocks) * resident)
        else:
            steps = [js for lanes in self.folds for lane in lanes for _, js in lane]
            read = len(steps) * fixed + sum(map(len, steps)) * resident
        states = sum(times * self._states_read(lanes) for lanes, times in self._alike)
        assembled = sum(times * one.columns * len(block) for one, found, times in self._assembled for block in found)
        outs = s.outputs * sum(map(len, self.out_pieces))
        return read + states + len(self.x_blocks) * self._picked + assembled + outs

    @property
    def states_read(self) -> int:
        """Most times that a state of one x block is handed on: along the lanes, up the tree, to the result."""
        return max(self._states_read(lanes) for lanes, _ in self._alike)

    def _states_read(self, lanes: Sequence[int]) -> int:
        chained = sum(lanes) - len(lanes)
        tree = self.tree_of(len(lanes))
        left = len(tree[-1]) if tree else max(1, len(lanes))  # states that the last task joins
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
        return self.sizes.pairs

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
        return max(self.x_blocks) * self.step_rows * self.sizes.work / self.rate

    @property
    def moving_row_bytes(self) -> int:
        """Bytes of a y row that come as blocks of dask's."""
        return limits.moving(self.sizes, self.feed)

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
            most = max(
                most, sum(one.row_bytes * limits.touched(one, self.y_blocks, js) for one, found in apart if found)
            )
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
        mine: tuple[object, ...] = (self, self.schedule)
        mine += () if self.pattern is None else (self.pattern.digest,)
        return hashlib.blake2b(repr(mine).encode(), digest_size=16).hexdigest()

    def __dask_tokenize__(self) -> str:
        return self.token()

    def table(self) -> list[tuple[str, str]]:
        """What there is to say, as names and texts."""
        s = self.sizes
        kinds = {"block": self.block_tasks, "fold": self.fold_tasks, "merge": self.merge_tasks, "out": self.out_tasks}
        return [
            ("reduction", f"{self.reduction} on {self.backend}"),
            ("pairs", f"{self._visited} = {self.pairs:.3g}, each of {s.operations:,} operations"),
            ("time", f"about {self.seconds:.3g} s of one worker, at {self.rate:.3g} operations per second"),
            ("feed", limits.FEEDS[self.feed].format(human(self.wave_bytes))),
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

    @property
    def _visited(self) -> str:
        s = self.sizes
        batch = f"{s.batches:,} x " if s.batches > 1 else ""
        part = "" if s.met is None else f"{s.met / max(1, s.x.rows * s.y.rows):.3g} of "
        return f"{batch}{part}{s.x.rows:,} x {s.y.rows:,}"

    def __str__(self) -> str:
        return aligned(self.table())


def aligned(table: Sequence[tuple[str, str]]) -> str:
    """A table as lines, its names in a column."""
    width = max(len(name) for name, _ in table)
    return "\n".join(f"{name:{width}}  {text}" for name, text in table)
