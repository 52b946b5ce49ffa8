"""Reductions over blocks as lazy dask arrays: fold tasks, merge tasks and result tasks, one layer each."""

# mypy: allow-untyped-calls
# (dask is typed in part)

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import dask.array as da
import numpy as np
from dask.base import tokenize
from dask.core import flatten
from dask.highlevelgraph import HighLevelGraph
from dask.task_spec import List, Task, TaskRef

from dred.cluster import config, inputs, tasks
from dred.cluster.backend import resolve
from dred.cluster.plan import Plan
from dred.kernel import engine
from dred.kernel.output import Output
from dred.kernel.spec import KernelSpec

LONGEST_PREFIX = 32

Key = tuple[Any, ...]
Layer = dict[Key, Task]


def plan(
    spec: KernelSpec, arrays: Sequence[Any], outputs: Sequence[Output], backend: str = "auto", *, label: str
) -> Plan:
    """How `reduce` would cut this problem into tasks.

    Parameters
    ----------
    spec : KernelSpec
        Formulas, states, axis and types.
    arrays : sequence of dask.array.Array or numpy.ndarray
        By position, of type `spec.type_of(position)`: (M, dim) for kept variables, (N, dim) for reduced ones, (dim,)
        for parameters. `dred.inputs.check` has seen them.
    outputs : sequence of Output
        The arrays that are read off the states.
    backend : str
        "auto", "cpu", "cuda" or "numpy".
    label : str
        Names of the reductions, separated by ", ", one for each part of `spec`: for people and in names of layers.

    Raises
    ------
    InputError
        A NumPy array too large to travel in a graph.
    PlanError
        Chunks of the kept variables so large that no fold can be short.
    BackendError
        The backend is not there, see `backend.resolve`.
    """
    sizes = inputs.measure(spec, arrays, outputs)
    chosen = engine.placed(resolve(backend, arrays), spec, sizes.x.rows, sizes.y.rows, local=False)
    return Plan.choose(label, chosen, sizes, config.settings())


def reduce(
    spec: KernelSpec, arrays: Sequence[Any], outputs: Sequence[Output], backend: str = "auto", *, label: str
) -> tuple[da.Array, ...]:
    """The outputs as lazy arrays of M rows in the caller's chunks of the first kept variable.

    Nothing is computed. Parameters and errors are those of `plan`.

    Returns
    -------
    tuple of dask.array.Array
        One for each output, of its dtype and shape (M, ...), all over the same fold tasks. M (N) is 1 where there is no
        kept (reduced) variable.
    """
    chosen = plan(spec, arrays, outputs, backend, label=label)
    return build(spec, inputs.prepare(spec, arrays, chosen), outputs, chosen)


def build(spec: KernelSpec, arrays: Sequence[da.Array], outputs: Sequence[Output], plan: Plan) -> tuple[da.Array, ...]:
    """The graph of `plan` over the arrays of `spec.read`, which are in its blocks already."""
    prefix = layer_prefix(plan.reduction)
    token = tokenize(spec.digest, plan.token(), repr(outputs), list(map(source, arrays)))
    fold_name, merge_name, done_name = (f"{prefix}{kind}-{token}" for kind in ("-fold", "-merge", ""))
    folds, lanes = fold_layer(fold_name, spec, arrays, plan)
    merges, tops = merge_layer(merge_name, spec, plan, lanes)
    layers: dict[str, tuple[Layer, set[str]]] = {fold_name: (folds, set(map(source, arrays)))}
    if merges:
        layers[merge_name] = (merges, {fold_name})
    results = [output.empty(spec) for output in outputs]
    tails = [(0,) * (result.ndim - 1) for result in results]  # of the keys of blocks: rows are never cut
    single = len(outputs) == 1
    done: list[Key] = [(done_name, i, *(tails[0] if single else ())) for i in range(len(tops))]
    finish = [
        Task(key, tasks.finish, spec, tuple(outputs), _refs(states)) for key, states in zip(done, tops, strict=True)
    ]
    layers[done_name] = (dict(zip(done, finish, strict=True)), {key[0] for states in tops for key in states})
    names = [done_name] if single else [f"{prefix}-{n}-{token}" for n in range(len(outputs))]
    found = []
    for n, (name, result, tail) in enumerate(zip(names, results, tails, strict=True)):
        own = {} if single else {name: (pick_layer(name, n, done, tail), {done_name})}
        chunks = (plan.x_blocks, *((size,) for size in result.shape[1:]))
        meta = np.empty((0,) * result.ndim, dtype=result.dtype)
        found.append(as_dask_array(name, {**layers, **own}, arrays, chunks, meta))
    return tuple(found)


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


def fold_layer(name: str, spec: KernelSpec, arrays: Sequence[da.Array], plan: Plan) -> tuple[Layer, list[list[Key]]]:
    """Fold tasks (name, i, lane, step), and per x block the key of each lane's last state."""
    i0 = [0, *accumulate(plan.x_blocks)]
    j0 = [0, *accumulate(plan.y_blocks)]
    kept, reduced, parameters = (
        [source(a) for v, a in zip(spec.read, arrays, strict=True) if v.cat == category]
        for category in (1 - spec.axis, spec.axis, 2)
    )
    fixed = _refs([(p, 0) for p in parameters])
    panels = {  # shared by all x blocks
        step: List(*(_refs([(y, j, 0) for j in step]) for y in reduced)) for lane in plan.schedule for step in lane
    }
    layer: Layer = {}
    ends: list[list[Key]] = []
    for i, rows in enumerate(plan.x_blocks):
        x = _refs([(k, i, 0) for k in kept])
        ends.append([])
        for lane, steps in enumerate(plan.schedule):
            state: TaskRef | None = None
            for step, js in enumerate(steps):
                key = (name, i, lane, step)
                place = tasks.Place(i, lane, step, i0[i], rows, j0[js.start], plan.y_blocks[js.start : js.stop])
                layer[key] = Task(
                    key, tasks.fold_blocks, spec, plan.reduction, plan.backend, place, state, x, panels[js], fixed
                )
                state = TaskRef(key)
            ends[i].append(key)
    return layer, ends


def merge_layer(name: str, spec: KernelSpec, plan: Plan, lanes: list[list[Key]]) -> tuple[Layer, list[list[Key]]]:
    """Merge tasks (name, level, i, group), and per x block the keys of the states that are left to finish."""
    layer: Layer = {}
    tops: list[list[Key]] = []
    for i, states in enumerate(lanes):
        for level, groups in enumerate(plan.tree):
            merged: list[Key] = []
            for g, group in enumerate(groups):
                run = [states[s] for s in group]
                if len(run) > 1:
                    key = (name, level, i, g)
                    layer[key] = Task(key, tasks.merge_states, spec, _refs(run))
                    run = [key]
                merged += run
            states = merged
        tops.append(states)
    return layer, tops


def pick_layer(name: str, n: int, done: Sequence[Key], tail: tuple[int, ...]) -> Layer:
    """Tasks (name, i, 0, ...) that take the array of one output out of those of an x block."""
    keys = [(name, i, *tail) for i in range(len(done))]
    return {key: Task(key, tasks.pick, TaskRef(arrays), n) for key, arrays in zip(keys, done, strict=True)}


def as_dask_array(
    name: str,
    layers: dict[str, tuple[Layer, set[str]]],
    arrays: Sequence[da.Array],
    chunks: tuple[tuple[int, ...], ...],
    meta: Any,
) -> da.Array:
    """Layers (tasks, and the layers they read) over `arrays` as one array: all that knows how dask wraps graphs."""
    if getattr(da, "array_expr_enabled", lambda: False)():  # experimental: no public constructor from a graph yet
        from dask.array._array_expr._collection import from_graph

        graph = {key: task for array in arrays for key, task in dict(array.__dask_graph__()).items()}
        for layer, _ in layers.values():
            graph.update(layer)
        result: da.Array = from_graph(graph, meta, chunks, list(layers[name][0]), name.rsplit("-", 1)[0])
        return result
    base = HighLevelGraph.merge(*(array.__dask_graph__() for array in arrays))
    tasks_of: dict[str, Any] = {**base.layers, **{n: layer for n, (layer, _) in layers.items()}}
    reads = {**base.dependencies, **{n: below for n, (_, below) in layers.items()}}
    return da.Array(HighLevelGraph(tasks_of, reads), name, chunks=chunks, meta=meta)


def source(array: da.Array) -> str:
    """Name in the keys of an array's blocks; for an array expression that is not `array.name`."""
    return str(next(flatten(array.__dask_keys__()))[0])


def _refs(keys: Sequence[Key]) -> List:
    return List(*map(TaskRef, keys))
