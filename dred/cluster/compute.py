"""Computing to the end: in waves where reduced rows fit nowhere, going on where a store ends, with progress."""

# mypy: allow-untyped-calls
# (dask is typed in part)

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import dask.array as da
import dask.config
import numpy as np
from dask.base import compute as computed
from dask.base import persist, tokenize

from dred.cluster import explain, graph, inputs, spool, tasks
from dred.cluster.arrays import from_array, source_of
from dred.cluster.backend import ambient_client
from dred.cluster.batch import Part, Place
from dred.cluster.collection import name_of
from dred.cluster.plan import Plan
from dred.cluster.progress import Meter, Progress, watched
from dred.cluster.runs import Run, waited_for
from dred.cluster.store import Store, root
from dred.errors import BackendError, WorkersLostError
from dred.kernel.output import Output
from dred.kernel.pattern import Pattern
from dred.kernel.spec import KernelSpec
from dred.sweeps import Sweep

# Keys stay what they are called, so that the dashboard and the progress tell folds from other tasks.
_CONFIG = {"optimization.fuse.active": False}


Reducer = Callable[[Sweep, list[Any], int, int, Pattern | None], tuple[Any, ...]]


class Lazy(NamedTuple):
    """A sweep that is computed together with a later one, which reads its results."""

    fold: str  # name of the layer of its folds
    plan: Plan
    results: tuple[da.Array, ...]


def reducer(
    backend: str,
    meter: Meter,
    targets: Sequence[Any] | None,
    store: str | os.PathLike[str] | None,
    chunked: bool = False,
) -> Reducer:
    """What computes the sweeps of a routine one after another.

    Parameters
    ----------
    backend : str
    meter : Meter
    targets : sequence of arrays, optional
        Where the results of the last sweep are put; else new NumPy arrays.
    store : path, optional
        A folder, see `store.Store`; of several sweeps each has its own within.
    chunked : bool
        Whether the results are given as dask arrays in the chunks that a lazy call would give them in.
    """
    try:
        ambient_client()
    except RuntimeError as error:
        raise BackendError(
            f"routine.compute waits for its result, which cannot be done with an asynchronous client ({error}): await "
            "client.compute(routine(...)), which is lazy until then"
        ) from error
    count = itertools.count()
    folder = None if store is None else root(store)
    lazily: list[Lazy] = []
    spooled: list[da.Array] = []  # what sweeps have left, until the last one has read it
    known: dict[str, str] = {}  # by their names, what arrays depend on that sweeps have left

    def reduce(sweep: Sweep, arrays: list[Any], M: int, N: int, pattern: Pattern | None) -> tuple[Any, ...]:
        spec, outputs = sweep.spec, sweep.outputs
        plan = graph.plan(spec, arrays, outputs, backend, label=sweep.label, pattern=pattern)
        explain.refuse(plan)
        last, number = not sweep.places, next(count)
        prepared = inputs.prepare(spec, arrays, plan)
        if not last and plan.feed != "waves" and folder is None:
            results = graph.build(spec, prepared, outputs, plan)
            lazily.append(Lazy(graph.Names.of(spec, prepared, outputs, plan)("fold"), plan, results))
            return results
        found = targets if last and targets is not None else _new(sweep, plan)
        identity = graph.identity(spec, arrays, outputs, plan, known)
        opened = None if folder is None else Store.open(os.path.join(folder, f"sweep-{number}"), identity)
        compute(spec, prepared, outputs, found, plan, meter=meter, store=opened, lazily=lazily)
        lazily.clear()
        if last:
            for array in spooled:
                spool.release(source_of(array))
            if not chunked:
                return tuple(found)
            return tuple(
                da.from_array(a, chunks={0: plan.out_chunks, **dict.fromkeys(range(1, a.ndim), -1)}) for a in found
            )
        left = tuple(from_array(array, chunks=(plan.out_chunks, -1)) for array in found)
        spooled.extend(left)
        known.update({name_of(array): tokenize(identity, n) for n, array in enumerate(left)})
        return left

    return reduce


def parts(targets: Sequence[Any], place: Place) -> Sequence[Any]:
    """Of targets the part that belongs to some elements of a batch, the rows in front; without a batch they are it."""
    return [Part(target, place) for target in targets] if place else targets


def folder(store: str | os.PathLike[str] | None, place: Place) -> str | os.PathLike[str] | None:
    """The store of some elements of a batch."""
    if store is None or not place:
        return store
    return os.path.join(store, "-".join(["batch", *(str(part.start) for part in place)]))


def here(results: Sequence[da.Array], targets: Sequence[Any] | None) -> tuple[Any, ...]:
    """What arrays of this process come to, in `targets` if there are any."""
    found = computed(*results, scheduler="sync")
    if targets is None:
        return tuple(found)
    for target, result in zip(targets, found, strict=True):
        target[...] = result
    return tuple(targets)


def _new(sweep: Sweep, plan: Plan) -> tuple[Any, ...]:
    """Arrays for the results of a sweep."""
    empty = [output.empty(sweep.spec) for output in sweep.outputs]
    return tuple(np.empty((plan.sizes.x.rows, *array.shape[1:]), array.dtype) for array in empty)


@contextmanager
def said(plans: Sequence[Plan], told: Callable[[Progress], None] | None = None) -> Iterator[Meter]:
    """A meter of the pairs of all sweeps, which says how far they are on stderr, or tells a function; of no sweeps, one
    that is silent."""
    meter = Meter(sum(plan.pairs for plan in plans), (told or sys.stderr) if plans else None)
    try:
        yield meter
    finally:
        meter.close()


def compute(
    spec: KernelSpec,
    arrays: Sequence[Any],
    outputs: Sequence[Output],
    targets: Sequence[Any],
    plan: Plan,
    *,
    meter: Meter,
    store: Store | None = None,
    lazily: Sequence[Lazy] = (),
) -> None:
    """Write the results into `targets`, anything of their shape that rows can be assigned to.

    Parameters
    ----------
    spec, arrays, outputs, plan
        As in `graph.build`.
    meter : Meter
    store : Store, optional
    lazily : sequence of Lazy, optional
        Earlier sweeps, whose results may be among `arrays`.

    Raises
    ------
    WorkersLostError
        Workers died so often while a task was theirs that the scheduler gave it up.
    StoreError
        The folder is of no use.
    """
    before = {one.fold: (one.plan.fold_tasks, one.plan.pairs) for one in lazily}
    with dask.config.set(_CONFIG), _explained(spec, plan), span(plan.reduction):
        if before and (plan.feed == "waves" or store is not None):  # once, not wave by wave
            earlier = {name_of(array): array for one in lazily for array in one.results}
            with watched(meter, before):
                there = dict(zip(earlier, persist(*earlier.values()), strict=True))
                waited_for(*there.values())
            arrays = [there.get(name_of(a), a) if isinstance(a, da.Array) else a for a in arrays]
            before = {}
        Run(spec, arrays, outputs, plan, targets, meter, store, before).run()


@contextmanager
def span(label: str) -> Iterator[None]:
    """On a cluster, all tasks below belong to the span ("dred", "sum"): its totals are on the dashboard."""
    if ambient_client() is None:
        yield
        return
    import distributed

    with distributed.span(*graph.layer_prefix(label).split("-", 1)):
        yield


@contextmanager
def _explained(spec: KernelSpec, plan: Plan) -> Iterator[None]:
    """Where the scheduler gave a task up since its workers died, say what to do about it."""
    try:
        yield
    except Exception as error:
        if type(error).__name__ != "KilledWorker":
            raise
        task, last, allowed = error.args
        what = tasks.describe(spec, plan.reduction)
        address = str(getattr(last, "address", last))
        raise WorkersLostError(str(task), address, int(allowed), plan.fold_bytes, what) from error
