"""Reductions over blocks as lazy dask arrays: fold tasks, merge tasks and result tasks, one layer each."""

# mypy: allow-untyped-calls
# (dask is typed in part)

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import dask.array as da
import numpy as np
from dask.base import tokenize
from dask.task_spec import List, Task, TaskRef

from dred.cluster import config, explain, inputs, tasks
from dred.cluster.backend import resolve
from dred.cluster.collection import Key, Layer, as_dask_array, name_of
from dred.cluster.cuts import Piece, pieces, whole
from dred.cluster.plan import Plan
from dred.cluster.rows import Stored
from dred.cluster.stored import Source
from dred.errors import PlanError, human
from dred.kernel import engine
from dred.kernel.output import Output
from dred.kernel.pattern import Pattern
from dred.kernel.spec import VERSION, KernelSpec

LONGEST_PREFIX = 32

Layers = dict[str, Layer]  # by name


def plan(
    spec: KernelSpec,
    arrays: Sequence[Any],
    outputs: Sequence[Output],
    backend: str = "auto",
    *,
    label: str,
    checked: bool = True,
    pattern: Pattern | None = None,
) -> Plan:
    """How `reduce` would cut this problem into tasks.

    Parameters
    ----------
    spec : KernelSpec
        Formulas, states, axis and types.
    arrays : sequence of dask.array.Array or numpy.ndarray
        By position, of type `spec.type_of(position)`: (M, width) for kept variables, (N, width) for reduced ones,
        (width,) for parameters, where width is `spec.width`: with a batch, a row has the vectors of all its elements
        that the array has, one after another. `dred.inputs.check` has seen them.
    outputs : sequence of Output
        The arrays that are read off the states.
    backend : str
        "auto", "cpu", "cuda" or "numpy".
    label : str
        Names of the reductions, separated by ", ", one for each part of `spec`: for people and in names of layers.
    checked : bool
        Whether a backend that is named must be there.
    pattern : Pattern, optional
        Which reduced rows each kept row meets; default: all.

    Raises
    ------
    InputError
        A NumPy array too large to travel in a graph.
    PlanError
        A single row exceeds a budget, or a feed that is asked for is not possible.
    BackendError
        The backend is not there, see `backend.resolve`.
    """
    sizes = inputs.measure(spec, arrays, outputs, pattern)
    found, (M, N) = resolve(backend, arrays, checked), (sizes.x.rows, sizes.y.rows)
    chosen = engine.placed(found, spec, M, N, local=False, pattern=pattern)
    return Plan.choose(label, chosen, sizes, config.settings(), pattern)


def reduce(
    spec: KernelSpec,
    arrays: Sequence[Any],
    outputs: Sequence[Output],
    backend: str = "auto",
    *,
    label: str,
    pattern: Pattern | None = None,
) -> tuple[da.Array, ...]:
    """The outputs as lazy arrays of M rows in the caller's chunks of the first kept variable.

    Nothing is computed. Parameters and errors are those of `plan`.

    Returns
    -------
    tuple of dask.array.Array
        One for each output, of its dtype and shape (M, *batch, ...), or (M, width) where it is saved, all over the same
        fold tasks. M (N) is 1 where there is no kept (reduced) variable.
    """
    chosen = lazily(spec, arrays, outputs, backend, label=label, pattern=pattern)
    return build(spec, inputs.prepare(spec, arrays, chosen), outputs, chosen)


def lazily(
    spec: KernelSpec,
    arrays: Sequence[Any],
    outputs: Sequence[Output],
    backend: str,
    *,
    label: str,
    pattern: Pattern | None,
) -> Plan:
    """The plan of a lazy result. Parameters and errors are those of `plan`; PlanError: it cannot be lazy."""
    chosen = plan(spec, arrays, outputs, backend, label=label, pattern=pattern)
    explain.refuse(chosen)
    if chosen.feed == "waves":
        raise PlanError(
            f"{human(chosen.sizes.y.rows * chosen.moving_row_bytes)} of reduced rows would come to lie in every "
            "worker, more than dred.plan.y-budget in dask's configuration allows. Store them where all workers read "
            "them and pass dred.from_file(...); or call routine.compute(...), which folds them in waves; or raise it"
        )
    return chosen


def unknown(spec: KernelSpec, outputs: Sequence[Output], plan: Plan) -> tuple[da.Array, ...]:
    """Arrays of the shapes, types and chunks of the results, to make further plans with."""
    empty = [output.empty(spec) for output in outputs]
    return tuple(
        da.empty((plan.sizes.x.rows, *array.shape[1:]), chunks=(plan.out_chunks, *array.shape[1:]), dtype=array.dtype)
        for array in empty
    )


def build(spec: KernelSpec, arrays: Sequence[Any], outputs: Sequence[Output], plan: Plan) -> tuple[da.Array, ...]:
    """The graph of `plan` over what `inputs.prepare` has given for the variables of `spec.read`."""
    names = Names.of(spec, arrays, outputs, plan)
    blocks, places = block_layer(names("block"), spec, arrays, plan)
    folds, lanes = fold_layer(names("fold"), spec, places, plan)
    layers = {names("block"): blocks} if blocks else {}
    layers[names("fold")] = folds
    return finished(spec, arrays, outputs, plan, names, layers, lanes)


def finished(
    spec: KernelSpec,
    arrays: Sequence[Any],
    outputs: Sequence[Output],
    plan: Plan,
    names: Names,
    layers: Layers,
    lanes: list[list[Key]],
) -> tuple[da.Array, ...]:
    """The results, over `layers` in which `lanes` are the keys of the last states of each x block."""
    layers = dict(layers)
    merges, tops = merge_layer(names("merge"), spec, plan, lanes)
    if merges:
        layers[names("merge")] = merges
    results = [output.empty(spec) for output in outputs]
    tails = [(0,) * (result.ndim - 1) for result in results]  # of the keys of blocks: rows are never cut
    single, again = len(outputs) == 1, plan.out_pieces
    done_name = names("rows") if single and again else names("")
    done: list[Key] = [(done_name, i, *(tails[0] if single else ())) for i in range(len(tops))]
    finish = [
        Task(key, tasks.finish, spec, tuple(outputs), refs(states)) for key, states in zip(done, tops, strict=True)
    ]
    layers[done_name] = dict(zip(done, finish, strict=True))
    found = []
    for n, (result, tail) in enumerate(zip(results, tails, strict=True)):
        keys, own = done, {}
        name = names("") if single else names(str(n))
        if not single:
            picked = names(f"rows-{n}") if again else name
            keys = [(picked, i, *tail) for i in range(len(done))]
            own[picked] = {key: Task(key, tasks.pick, TaskRef(rows), n) for key, rows in zip(keys, done, strict=True)}
        if again:
            chunks = [(name, k, *tail) for k in range(len(again))]
            own[name] = {
                key: assembled(key, [[keys[piece.chunk]] for piece in block], block)
                for key, block in zip(chunks, again, strict=True)
            }
        cut = (plan.out_chunks, *((size,) for size in result.shape[1:]))
        meta = np.empty((0,) * result.ndim, dtype=result.dtype)
        found.append(as_dask_array(name, {**layers, **own}, [a for a in arrays if isinstance(a, da.Array)], cut, meta))
    return tuple(found)


@dataclass(frozen=True)
class Names:
    """Names of layers: "dred-sum-fold-<token>" is that of "fold"."""

    prefix: str
    token: str

    @classmethod
    def of(cls, spec: KernelSpec, arrays: Sequence[Any], outputs: Sequence[Output], plan: Plan) -> Names:
        given = [name_of(array) if isinstance(array, da.Array) else array for array in arrays]
        return cls(layer_prefix(plan.reduction), tokenize(spec.token, plan.token(), repr(outputs), given))

    def __call__(self, kind: str) -> str:
        return "-".join(part for part in (self.prefix, kind, self.token) if part)


def layer_prefix(label: str) -> str:
    """What the names of layers begin with: "dred-kmin-argkmin" for "KMin_ArgKMin".

    Words of letters only, since dask shows keys up to the first word that has others. And no more than `LONGEST_PREFIX`
    characters: dask joins the names of tasks that it fuses, and tells those of more than 120 characters apart by 4
    digits of a hash, so that two tasks among many may get one name.
    """
    prefix = "dred"
    for word in re.findall("[a-z]+", label.lower()):
        if len(prefix) + 1 + len(word) > LONGEST_PREFIX:
            break
        prefix += f"-{word}"
    return prefix


def block_layer(
    name: str, spec: KernelSpec, arrays: Sequence[Any], plan: Plan
) -> tuple[Layer, list[list[Key] | Source]]:
    """Tasks (name, position, block) for blocks that are no chunks as they are; and per variable the keys of its blocks.

    Of what fold tasks read by path there is the source instead.
    """
    blocks = {1 - spec.axis: plan.x_blocks, spec.axis: plan.y_blocks}
    layer: Layer = {}
    places: list[list[Key] | Source] = []
    for v, array in zip(spec.read, arrays, strict=True):
        if not isinstance(array, da.Array):
            places.append(array)
            continue
        (rows, *columns), given = array.chunks, name_of(array)
        tails = [(c,) for c in range(len(columns[0]))] if columns else [()]
        keys: list[Key] = []
        for k, found in enumerate(pieces(rows, blocks[v.cat] if v.cat < 2 else (spec.width(v),))):
            parts = [[(given, piece.chunk, *tail) for tail in tails] for piece in found]
            if len(tails) == 1 and whole(found):
                keys.append(parts[0][0])
            else:
                keys.append((name, v.ind, k))
                layer[keys[-1]] = assembled(keys[-1], parts, found)
        places.append(keys)
    return layer, places


def assembled(key: Key, parts: Sequence[Sequence[Key]], runs: Sequence[Piece]) -> Task:
    """The task that puts a block together: of the rows of each run, whose columns are in the arrays of its parts."""
    return Task(key, tasks.assemble, List(*map(refs, parts)), tuple((run.start, run.stop, run.rows) for run in runs))


def fold_layer(
    name: str, spec: KernelSpec, places: Sequence[list[Key] | Source], plan: Plan
) -> tuple[Layer, list[list[Key]]]:
    """Fold tasks (name, i, lane, step), and per x block the key of each lane's last state."""
    given = Given.of(spec, places, plan)
    layer: Layer = {}
    ends: list[list[Key]] = []
    for i in range(len(plan.x_blocks)):
        found, lanes = given.lanes(name, i)
        layer.update(found)
        ends.append(list(lanes.values()))
    return layer, ends


def identity(
    spec: KernelSpec, arrays: Sequence[Any], outputs: Sequence[Output], plan: Plan, known: Mapping[str, str]
) -> dict[str, str]:
    """What the results depend on, by name: equal where the results are.

    Parameters
    ----------
    spec, arrays, outputs, plan
        As in `graph.plan`, and what it returned.
    known : mapping of str to str
        By their names, what some dask arrays depend on, whatever they are called.
    """
    read = [arrays[v.ind] for v in spec.read]
    names = [name_of(array) if isinstance(array, da.Array) else array for array in read]
    given = [known.get(name, name) if isinstance(name, str) else name for name in names]
    return {
        "formula": tokenize(spec.token, repr(outputs)),
        "inputs": tokenize(given),
        "plan": plan.token(),
        "version": str(VERSION),
    }


@dataclass(frozen=True)
class Given:
    """What fold tasks are given: references to blocks, and runs of what is stored."""

    spec: KernelSpec
    plan: Plan
    i0: list[int]
    j0: list[int]
    kept: Sequence[Mapping[int, Key]]
    fixed: List
    reduced: Sequence[list[Key] | Source]
    panels: dict[range, List] = field(default_factory=dict)  # shared by all x blocks

    @classmethod
    def of(cls, spec: KernelSpec, places: Sequence[list[Key] | Source], plan: Plan) -> Given:
        i0, j0 = ([*accumulate(blocks, initial=0)] for blocks in (plan.x_blocks, plan.y_blocks))
        kept, reduced, parameters = (
            [place for v, place in zip(spec.read, places, strict=True) if v.cat == category]
            for category in (1 - spec.axis, spec.axis, 2)
        )

        return cls(
            spec,
            plan,
            i0,
            j0,
            [dict(enumerate(place)) for place in kept if isinstance(place, list)],
            refs([place[0] for place in parameters if isinstance(place, list)]),
            reduced,
        )

    def lanes(self, name: str, i: int) -> tuple[Layer, dict[int, Key]]:
        """The fold tasks of an x block, and the key of the last state of each lane that has any.

        There is one state at least: where no row meets any, that of no terms.
        """
        layer: Layer = {}
        ends: dict[int, Key] = {}
        for lane, steps in enumerate(self.plan.folds[i]):
            for step, js in steps:
                key = (name, i, lane, step)
                layer[key] = self.fold(key, i, lane, step, js, ends.get(lane))
                ends[lane] = key
        if not ends:
            ends[0] = key = (name, i, 0, 0)
            layer[key] = self.nothing(key, i)
        return layer, ends

    def nothing(self, key: Key, i: int) -> Task:
        """The task that gives the state of an x block before it has met any rows."""
        return Task(key, tasks.nothing, self.spec, self.plan.x_blocks[i])

    def fold(self, key: Key, i: int, lane: int, step: int, js: range, state: Key | None) -> Task:
        """The task that folds some y blocks, those of a step of a lane that are met, into a state of one x block."""
        plan = self.plan
        rows, blocks = plan.x_blocks[i], plan.y_blocks[js.start : js.stop]
        place = tasks.Place(i, lane, step, self.i0[i], rows, self.j0[js.start], blocks, plan.panel)
        before = None if state is None else TaskRef(state)
        x = refs([keys[i] for keys in self.kept])
        if js not in self.panels:
            self.panels[js] = self.panel(js)
        given = (self.spec, plan.reduction, plan.backend, place, before, x, self.panels[js], self.fixed)
        met = plan.met(i, js)
        return Task(key, tasks.fold_blocks, *given, *(() if met is None else (met,)))

    def panel(self, js: range) -> List:
        """Of each reduced variable, its blocks or its run of stored rows."""
        return List(
            *(
                refs([place[j] for j in js])
                if isinstance(place, list)
                else List(Stored(place, self.j0[js.start], self.j0[js.stop]))
                for place in self.reduced
            )
        )


def merge_layer(name: str, spec: KernelSpec, plan: Plan, lanes: list[list[Key]]) -> tuple[Layer, list[list[Key]]]:
    """Merge tasks (name, level, i, group), and per x block the keys of the states that are left to finish."""
    layer: Layer = {}
    tops: list[list[Key]] = []
    for i, states in enumerate(lanes):
        for level, groups in enumerate(plan.tree_of(len(states))):
            merged: list[Key] = []
            for g, group in enumerate(groups):
                run = [states[s] for s in group]
                if len(run) > 1:
                    key = (name, level, i, g)
                    layer[key] = Task(key, tasks.merge_states, spec, refs(run))
                    run = [key]
                merged += run
            states = merged
        tops.append(states)
    return layer, tops


def refs(keys: Sequence[Key]) -> List:
    """What tasks under these keys give."""
    return List(*map(TaskRef, keys))
