"""Computing to the end: in waves where reduced rows fit nowhere, with progress, and in words where workers died."""

# mypy: allow-untyped-calls
# (dask is typed in part)

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import dask
import dask.array as da
import numpy as np
from dask.task_spec import Task, TaskRef

from dred.cluster import graph, inputs, tasks
from dred.cluster.backend import ambient_client
from dred.cluster.plan import Plan
from dred.cluster.progress import Meter, watched
from dred.errors import WorkersLostError
from dred.kernel.output import Output
from dred.kernel.spec import KernelSpec

# Keys stay what they are called, so that the dashboard and the progress tell folds from other tasks.
_CONFIG = {"optimization.fuse.active": False}


def compute(
    spec: KernelSpec,
    arrays: Sequence[Any],
    outputs: Sequence[Output],
    targets: Sequence[Any],
    backend: str = "auto",
    *,
    label: str,
    meter: Meter,
) -> None:
    """Write the results into `targets`, anything of their shape that rows can be assigned to.

    Other parameters, and errors, are those of `graph.plan`.

    Raises
    ------
    WorkersLostError
        Workers died so often while a task was theirs that the scheduler gave it up.
    """
    plan = graph.plan(spec, arrays, outputs, backend, label=label)
    prepared = inputs.prepare(spec, arrays, plan)
    with dask.config.set(_CONFIG), explained(spec, plan), span(plan):
        if plan.feed == "waves":
            Waves(spec, prepared, outputs, plan, targets, meter).run()
            return
        results = graph.build(spec, prepared, outputs, plan)
        with watched(meter, plan, results[0]):
            found = dask.compute(*results)
    for target, rows in zip(targets, found, strict=True):
        target[...] = rows


class Waves:
    """The folds of one step of all lanes at a time, for a group of x blocks after the other.

    The reduced rows of a step are computed, folded into all states of the group, and forgotten before the next wave; the
    kept rows of the group stay where they are meanwhile. Reduced rows are computed once for each group.
    """

    def __init__(
        self,
        spec: KernelSpec,
        arrays: Sequence[Any],
        outputs: Sequence[Output],
        plan: Plan,
        targets: Sequence[Any],
        meter: Meter,
    ) -> None:
        self.spec, self.outputs, self.plan, self.targets, self.meter = spec, outputs, plan, targets, meter
        self.names = graph.Names.of(spec, arrays, outputs, plan)
        blocks, self.places = graph.block_layer(self.names("block"), spec, arrays, plan)
        self.arrays = [array for array in arrays if isinstance(array, da.Array)]
        self.layers: graph.Layers = {}
        sources = {graph.source(array) for array in self.arrays}
        if blocks:
            self.layers[self.names("block")] = (blocks, sources)
        self.below = {*sources, *self.layers}
        self.given = graph.Given.of(spec, self.places, plan)

    def run(self) -> None:
        """All groups of x blocks."""
        count, most = len(self.plan.x_blocks), self.plan.group
        for first in range(0, count, most):
            self.group(range(first, min(first + most, count)))

    def group(self, rows: range) -> None:
        """The results of some x blocks."""
        plan = self.plan
        held = self.held(rows)
        states: da.Array | None = None
        for step in range(plan.steps):
            states = self.wave(rows, step, held, states)
            folded = sum(sum(plan.y_blocks[lane[step].start : lane[step].stop]) for lane in plan.schedule if step < len(lane))
            self.meter.add(sum(plan.x_blocks[i] for i in rows) * folded)
        assert states is not None  # there is one step at least
        blocks = tuple(plan.x_blocks[i] for i in rows)
        part = replace(plan, x_blocks=blocks, sizes=replace(plan.sizes, x=replace(plan.sizes.x, chunks=None)))
        lanes = [[(graph.source(states), i, lane) for lane in range(plan.lanes)] for i in range(len(rows))]
        names = replace(self.names, token=f"{self.names.token}-{rows.start}")
        results = dask.compute(*graph.finished(self.spec, [states], self.outputs, part, names, {}, lanes))
        start = sum(plan.x_blocks[: rows.start])
        for target, found in zip(self.targets, results, strict=True):
            target[start : start + len(found)] = found

    def held(self, rows: range) -> da.Array | None:
        """The blocks of the kept variables, computed and kept on the workers."""
        kept = self.given.kept
        if not kept:
            return None
        name = self.names(f"kept-{rows.start}")
        layer = {
            (name, i - rows.start, n): Task((name, i - rows.start, n), tasks.keep, TaskRef(keys[i]))
            for n, keys in enumerate(kept)
            for i in rows
        }
        return self.persisted(name, layer, self.arrays, (len(rows), len(kept)))

    def wave(self, rows: range, step: int, held: da.Array | None, before: da.Array | None) -> da.Array:
        """The states after a step."""
        name = self.names(f"fold-{rows.start}-{step}")
        given = self.given
        if held is not None:
            there = graph.source(held)
            places = [{i: (there, i - rows.start, n) for i in rows} for n in range(len(given.kept))]
            given = replace(given, kept=places)
        layer = {}
        for i in rows:
            for lane, steps in enumerate(self.plan.schedule):
                key = (name, i - rows.start, lane)
                state = None if before is None else (graph.source(before), *key[1:])
                if step < len(steps):
                    layer[key] = given.fold(key, i, lane, step, state)
                else:
                    layer[key] = Task(key, tasks.keep, TaskRef(state))
        more = [array for array in (held, before) if array is not None]
        return self.persisted(name, layer, [*self.arrays, *more], (len(rows), self.plan.lanes))

    def persisted(self, name: str, layer: graph.Layer, arrays: Sequence[da.Array], shape: tuple[int, int]) -> da.Array:
        """What a layer makes, computed and kept where it was computed: one value for each block of an array."""
        below = {*self.below, *(graph.source(array) for array in arrays)}
        chunks = ((1,) * shape[0], (1,) * shape[1])
        array = graph.as_dask_array(
            name, {**self.layers, name: (layer, below)}, arrays, chunks, np.empty((0, 0), dtype=object)
        )
        (there,) = dask.persist(array)
        if "distributed" in sys.modules:
            from distributed import futures_of, wait

            if futures := futures_of(there):
                wait(futures)
                for future in futures:
                    if future.status != "finished":
                        future.result()  # raises what went wrong
        result: da.Array = there
        return result


@contextmanager
def span(plan: Plan) -> Iterator[None]:
    """On a cluster, all tasks below belong to the span ("dred", "sum"): its totals are on the dashboard."""
    if ambient_client() is None:
        yield
        return
    import distributed

    with distributed.span(*graph.layer_prefix(plan.reduction).split("-", 1)):
        yield


@contextmanager
def explained(spec: KernelSpec, plan: Plan) -> Iterator[None]:
    """Where the scheduler gave a task up since its workers died, say what to do about it."""
    try:
        yield
    except Exception as error:
        if type(error).__name__ != "KilledWorker":
            raise
        task, last, allowed = (getattr(error, name, "?") for name in ("task", "last_worker", "allowed_failures"))
        what = tasks.describe(spec, plan.reduction)
        raise WorkersLostError(str(task), str(getattr(last, "address", last)), allowed, plan.fold_bytes, what) from error
