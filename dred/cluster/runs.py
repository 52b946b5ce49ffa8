"""A computation x block by x block: in waves, from what a store has on, each result put in its place."""

# mypy: allow-untyped-calls
# (dask is typed in part)

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import dask.array as da
import dask.local
import dask.threaded
import numpy as np
from dask.base import compute as computed
from dask.base import get_scheduler, persist
from dask.highlevelgraph import MaterializedLayer
from dask.task_spec import Task, TaskRef

from dred.cluster import graph, tasks
from dred.cluster.backend import ambient_client
from dred.cluster.collection import Key, Layer, as_dask_array, name_of
from dred.cluster.cuts import groups
from dred.cluster.plan import Plan
from dred.cluster.progress import Meter, watched
from dred.cluster.store import FEW, Store, load
from dred.errors import BackendError, StoreError
from dred.kernel.output import Output
from dred.kernel.spec import KernelSpec


class Run:
    """A computation x block by x block, in as many graphs as it takes.

    In waves, the reduced rows of a step of all lanes are computed, folded into all states of a group of x blocks, and
    forgotten before the next wave; the kept rows of the group stay where they are meanwhile. So reduced rows are
    computed once for each group.
    """

    def __init__(
        self,
        spec: KernelSpec,
        arrays: Sequence[Any],
        outputs: Sequence[Output],
        plan: Plan,
        targets: Sequence[Any],
        meter: Meter,
        store: Store | None,
        before: Mapping[str, tuple[int, int]],
    ) -> None:
        self.spec, self.outputs, self.plan, self.targets, self.meter = spec, outputs, plan, targets, meter
        self.before = before  # folds of earlier sweeps that are computed on the way
        # Keys are this run's own: what they stand for depends on what is missing, and on its store.
        names = graph.Names.of(spec, arrays, outputs, plan)
        self.names = replace(names, token=f"{names.token}-{secrets.token_hex(4)}")
        blocks, self.places = graph.block_layer(self.names("block"), spec, arrays, plan)
        self.given = graph.Given.of(spec, self.places, plan)
        self.arrays = [array for array in arrays if isinstance(array, da.Array)]
        self.layers = {self.names("block"): blocks} if blocks else {}
        self.starts = [*accumulate(plan.x_blocks, initial=0)]
        self.store = store
        # finished rows alone would be too few moments to go on from
        self.states = self.store if len(plan.x_blocks) < FEW else None

    def run(self) -> None:
        """All x blocks that are not in the store."""
        plan = self.plan
        missing = [i for i in range(len(plan.x_blocks)) if not self.placed(i)]
        self.meter.skip(plan.pairs - plan.pairs_of(missing, range(len(plan.y_blocks))))
        if plan.feed == "waves":
            if missing:
                self.hold_parameters()
            for run in groups(len(plan.x_blocks), plan.group):  # the same whatever is missing, as states are saved
                if rows := [i for i in run if i in missing]:
                    self.waves(rows)
        elif missing:
            self.folds(missing)

    def placed(self, i: int) -> bool:
        """Whether the results of an x block are in the store; then they are put in their place."""
        found = None if self.store is None else load(self.store.rows(i))
        if found is None:
            return False
        self.put(i, found)
        return True

    def put(self, i: int, found: Sequence[Any]) -> None:
        for target, rows in zip(self.targets, found, strict=True):
            target[self.starts[i] : self.starts[i + 1]] = rows

    def folds(self, rows: list[int]) -> None:
        """The results of some x blocks, in one graph."""
        name, kept = self.names("fold"), self.names("saved")
        folds: Layer = {}
        saved: Layer = {}
        lanes: list[list[Key]] = []
        pairs = self.plan.pairs_of(rows, range(len(self.plan.y_blocks)))
        for i in rows:
            lanes.append([])
            mine, ends = self.given.lanes(name, i)
            for lane, last in ends.items():
                steps, here = self.plan.schedule[lane], (kept, i, lane)
                file = None if self.states is None else self.states.state(i, lane, len(steps) - 1)
                if file is not None and load(file) is not None:
                    saved[here] = Task(here, tasks.load_state, file)
                    done = self.plan.pairs_of([i], range(steps[0].start, steps[-1].stop))
                    self.meter.skip(done)
                    pairs -= done
                else:
                    folds.update({key: task for key, task in mine.items() if key[2] == lane})
                    if file is not None:
                        saved[here] = Task(here, tasks.save_state, TaskRef(last), file)
                lanes[-1].append(here if file is not None else last)
        with watched(self.meter, {**self.before, name: (len(folds), pairs)}):
            self.finish(rows, self.arrays, {**self.layers, name: folds, kept: saved}, lanes)

    def waves(self, rows: list[int]) -> None:
        """The results of some x blocks, in a graph for each step."""
        plan = self.plan
        waves = [[lane[step] for lane in plan.schedule if step < len(lane)] for step in range(plan.steps)]
        pairs = [sum(plan.pairs_of(rows, js) for js in wave) for wave in waves]
        first = next((step for step in range(plan.steps, 0, -1) if self.all_saved(rows, step - 1)), 0)
        states = self.loaded(rows, first - 1) if first else None
        self.meter.skip(sum(pairs[:first]))
        held = self.held(rows) if first < plan.steps else None
        for step in range(first, plan.steps):
            states = self.wave(rows, step, held, states)
            self.save(rows, step, states)
            self.meter.add(pairs[step])
        assert states is not None  # there is one step at least
        lanes = [[(name_of(states), n, lane) for lane in range(plan.lanes)] for n in range(len(rows))]
        self.finish(rows, [states], {}, lanes)

    def all_saved(self, rows: list[int], step: int) -> bool:
        """Whether the states of all lanes after a step are in the store, or those of shorter lanes after their last."""
        store = self.states
        return store is not None and all(load(store.state(i, lane, step)) is not None for i, lane in self.each(rows))

    def each(self, rows: list[int]) -> list[tuple[int, int]]:
        """The x blocks with each of their lanes."""
        return [(i, lane) for i in rows for lane in range(self.plan.lanes)]

    def loaded(self, rows: list[int], step: int) -> da.Array:
        """The states after a step, from the store."""
        assert self.states is not None
        name = self.names(f"load-{rows[0]}-{step}")
        layer: Layer = {
            (name, n, lane): Task((name, n, lane), tasks.load_state, self.states.state(i, lane, step))
            for n, i in enumerate(rows)
            for lane in range(self.plan.lanes)
        }
        return self.persisted(name, layer, (len(rows), self.plan.lanes), [])

    def save(self, rows: list[int], step: int, states: da.Array) -> None:
        """Put the states after a step into the store, and remove those before."""
        if self.states is None:
            return
        name, there = self.names(f"save-{rows[0]}-{step}"), name_of(states)
        layer: Layer = {}
        for n, i in enumerate(rows):
            for lane in range(self.plan.lanes):
                key = (name, n, lane)
                layer[key] = Task(key, tasks.save_state, TaskRef((there, n, lane)), self.states.state(i, lane, step))
        self.persisted(name, layer, (len(rows), self.plan.lanes), [states])
        for i, lane in self.each(rows):
            self.states.forget(self.states.state(i, lane, step - 1))

    def hold_parameters(self) -> None:
        """Compute the parameters once, and not in each wave: they may depend on all rows, as a mean does."""
        read = zip(self.spec.read, self.places, strict=True)
        found = [place[0] for v, place in read if v.cat == 2 and isinstance(place, list)]
        if found:
            name = self.names("parameters")
            layer: Layer = {(name, n, 0): Task((name, n, 0), tasks.keep, TaskRef(key)) for n, key in enumerate(found)}
            there = self.persisted(name, layer, (len(found), 1), self.arrays, self.layers)
            self.arrays = [*self.arrays, there]
            self.given = replace(self.given, fixed=graph.refs([(name_of(there), n, 0) for n in range(len(found))]))

    def held(self, rows: list[int]) -> da.Array | None:
        """The blocks of the kept variables, computed and kept on the workers."""
        kept = self.given.kept
        if not kept:
            return None
        name = self.names(f"kept-{rows[0]}")
        layer: Layer = {
            (name, n, v): Task((name, n, v), tasks.keep, TaskRef(keys[i]))
            for v, keys in enumerate(kept)
            for n, i in enumerate(rows)
        }
        return self.persisted(name, layer, (len(rows), len(kept)), self.arrays, self.layers, at_home=True)

    def wave(self, rows: list[int], step: int, held: da.Array | None, before: da.Array | None) -> da.Array:
        """The states after a step."""
        name = self.names(f"fold-{rows[0]}-{step}")
        given = self.given
        if held is not None:
            there = name_of(held)
            given = replace(
                given, kept=[{i: (there, n, v) for n, i in enumerate(rows)} for v in range(len(given.kept))]
            )
        layer: Layer = {}
        for n, i in enumerate(rows):
            for lane in range(self.plan.lanes):
                key: Key = (name, n, lane)
                state: Key = () if before is None else (name_of(before), n, lane)
                js = dict(self.plan.folds[i][lane]).get(step)
                if js is not None:
                    layer[key] = given.fold(key, i, lane, step, js, state or None)
                else:
                    layer[key] = Task(key, tasks.keep, TaskRef(state)) if state else given.nothing(key, i)
        more = [array for array in (held, before) if array is not None]
        arrays = [*self.arrays, *more]
        return self.persisted(name, layer, (len(rows), self.plan.lanes), arrays, self.layers, at_home=True)

    def persisted(
        self,
        name: str,
        layer: Layer,
        shape: tuple[int, int],
        arrays: Sequence[da.Array],
        layers: graph.Layers | None = None,
        at_home: bool = False,
    ) -> da.Array:
        """What a layer makes, computed and kept where it was computed: one value for each block of an array.

        Rows of blocks have a home, where their tasks run while there is that worker: dask would rather move kept rows
        to the reduced rows of a wave, which are more, and so come to hold all kept rows everywhere.
        """
        homes = _homes() if at_home else ()
        placed: Any = layer
        if homes:
            placed = MaterializedLayer(layer, {"workers": Home(homes, shape[0]), "allow_other_workers": True})
        layers = {**(layers or {}), name: placed}
        chunks = ((1,) * shape[0], (1,) * shape[1])
        (there,) = persist(as_dask_array(name, layers, arrays, chunks, np.empty((0, 0), dtype=object)))
        waited_for(there)
        array: da.Array = there
        return array

    def finish(self, rows: list[int], arrays: Sequence[da.Array], layers: graph.Layers, lanes: list[list[Key]]) -> None:
        """Put the results of some x blocks in their place, from the keys of the last states of their lanes."""
        merge, name = self.names(f"merge-{rows[0]}"), self.names(f"rows-{rows[0]}")
        merges, tops = graph.merge_layer(merge, self.spec, self.plan, lanes)
        here = self.store is None and _in_this_process()
        layer: Layer = {}
        for n, (i, states) in enumerate(zip(rows, tops, strict=True)):
            target = self.store.rows(i) if self.store is not None else Target(self, i) if here else None
            layer[(name, n)] = Task(
                (name, n), tasks.finish_into, self.spec, tuple(self.outputs), graph.refs(states), target
            )
        layers = {**layers, merge: merges, name: layer}
        array = as_dask_array(name, layers, arrays, ((1,) * len(rows),), np.empty(0, dtype=object))
        for n, found in _one_by_one(array):
            i = rows[n]
            if self.store is not None and (found := load(self.store.rows(i))) is None:
                raise StoreError(
                    f"{self.store.rows(i)}, which a worker has written, is not here: name a folder that all workers "
                    "and this process share"
                )
            if found is not None:
                self.put(i, found)
            if self.states is not None:
                for lane, steps in enumerate(self.plan.schedule):
                    for last in {len(steps), self.plan.steps}:  # as folds and waves call it
                        self.states.forget(self.states.state(i, lane, last - 1))


@dataclass(frozen=True)
class Target:
    """Where the results of an x block belong, for tasks of this process."""

    run: Run
    i: int

    def put(self, found: Sequence[Any]) -> None:
        self.run.put(self.i, found)

    def __dask_tokenize__(self) -> Any:
        return self.run.names.token, self.i


def _in_this_process() -> bool:
    """Whether tasks run in this process, by one of dask's own schedulers: others may take them elsewhere."""
    return ambient_client() is None and get_scheduler() in (None, dask.threaded.get, dask.local.get_sync)


def _one_by_one(array: da.Array) -> Iterator[tuple[int, Any]]:
    """The elements of an array of one block each, in any order, with their numbers: from a cluster as they are done."""
    if ambient_client() is None:
        yield from enumerate(computed(array)[0])
        return
    from distributed import as_completed, futures_of

    futures = futures_of(persist(array)[0])
    done = as_completed(futures, with_results=True)
    del futures  # what has been put in its place is forgotten
    for future, cell in done:
        if isinstance(cell, Exception):
            raise BackendError(f"the scheduler is lost, or has dropped what was asked for: {cell}") from cell
        yield int(future.key[1]), cell[0]


@dataclass(frozen=True)
class Home:
    """Of each of `rows` rows of blocks, one of the workers."""

    workers: tuple[str, ...]
    rows: int

    def __call__(self, key: Key) -> list[str]:
        return [self.workers[int(key[1]) * len(self.workers) // self.rows]]


def _homes() -> tuple[str, ...]:
    """Addresses of the workers there are; none where there is no cluster."""
    client = ambient_client()
    return () if client is None else tuple(client.run_on_scheduler(_addresses))


def _addresses(dask_scheduler: Any) -> list[str]:
    return sorted(dask_scheduler.workers)


def waited_for(*arrays: da.Array) -> None:
    """Wait until all blocks are there; raises what went wrong."""
    if "distributed" not in sys.modules:
        return
    from distributed import futures_of, wait

    if futures := futures_of(arrays):
        wait(futures)
        for future in futures:
            if future.status != "finished":
                future.result()
