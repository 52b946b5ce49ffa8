"""Computing to the end: every feed gives the same bytes, into anything, through stores that are left at any moment."""

import dataclasses
import itertools
import json
import os
import re
from collections import Counter
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from dask.core import flatten
from dask.utils import key_split
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dred
from dred import Genred
from dred.cluster import store, tasks
from dred.errors import InputError, PlanError, StoreError

ALIASES = ["x = Vi(3)", "y = Vj(3)", "b = Vj(1)", "p = Pm(3)"]
DISTANCE = "SqDist(x, y + p)"

# Rates so low that small problems are planned like large ones: lanes, steps and trees.
SMALL = {
    "dred.plan.operations-per-second": {"cpu": 1e4},
    "dred.plan.longest-fold": "5 s",
    "dred.plan.parallelism": 9,
    "dred.plan.arity": 2,
    "dred.plan.panel": "300 B",
}
STEPS = {"dred.plan.parallelism": 1, "dred.plan.longest-fold": "1 s", "dred.plan.shortest-fold": "10 ms"}
WAVES = {"dred.plan.feed": "waves", "dred.plan.y-budget": "2 kB"}


@pytest.fixture(autouse=True)
def small():
    with dask.config.set({**SMALL, "scheduler": "sync"}):
        yield


def arrays_of(M=60, N=70, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, (M, 3)), rng.uniform(-1, 1, (N, 3)), rng.uniform(-1, 1, (N, 1)), rng.uniform(-1, 1, 3)


def distances(x, y, b, p):
    return ((x[:, None] - (y + p)[None]) ** 2).sum(-1)  # (M, N)


def weighted_sum(x, y, b, p, axis):
    return (np.exp(-distances(x, y, b, p)) * b[:, 0]).sum(axis)[:, None]


def log_sum_exp(x, y, b, p, axis):
    with np.errstate(divide="ignore"):  # of no terms
        return np.log(np.exp(-distances(x, y, b, p)).sum(axis))[:, None]


def nearest(K):
    def found(x, y, b, p, axis):
        d = np.moveaxis(distances(x, y, b, p), axis, 1)
        order = np.argsort(d, axis=1, kind="stable")[:, :K]
        return np.pad(order, ((0, 0), (0, K - order.shape[1])), constant_values=-1)

    return found


CASES = {  # the reductions of a sweep, and each result through the whole matrix
    "Sum": ([(f"Exp(-{DISTANCE}) * b", "Sum")], [weighted_sum]),
    "LogSumExp": ([(f"-{DISTANCE}", "LogSumExp")], [log_sum_exp]),
    "ArgMin": ([(DISTANCE, "ArgMin")], [nearest(1)]),
    "ArgKMin": ([(DISTANCE, "ArgKMin", 4)], [nearest(4)]),
    "several": (
        [(DISTANCE, "ArgKMin", 2), (f"-{DISTANCE}", "LogSumExp"), (f"Exp(-{DISTANCE}) * b", "Sum")],
        [nearest(2), log_sum_exp, weighted_sum],
    ),
}


def routine_of(case, axis=1):
    reductions = CASES[case][0]
    if len(reductions) > 1:
        return Genred(reductions, ALIASES, axis=axis)
    ((text, name, *parameter),) = reductions
    return Genred(text, ALIASES, name, opt_arg=parameter[0] if parameter else None, axis=axis)


def as_tuple(found):
    return found if isinstance(found, tuple) else (found,)


def right(found, case, arrays, axis=1):
    for got, dense in zip(as_tuple(found), CASES[case][1], strict=True):
        want = dense(*arrays, axis)
        assert got.shape == want.shape
        assert (got.dtype.kind, got.dtype.itemsize) == (want.dtype.kind, 8)
        np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-13)


def bytes_of(found):
    return [array.tobytes() for array in as_tuple(found)]


def lazy(array, chunks, name=None):
    """Blocks that nobody can read by path."""
    if array.ndim == 1:
        return da.from_array(array, chunks=(chunks,), name=name)
    rows, columns = chunks if isinstance(chunks, list) else (chunks, array.shape[1])
    return da.from_array(array, chunks=(rows, columns), name=name)


def lazy_of(arrays, x=25, y=20, b=None, p=3):
    return tuple(lazy(array, chunks) for array, chunks in zip(arrays, (x, y, y if b is None else b, p), strict=True))


COUNTED = ("fold_blocks", "merge_states", "finish", "finish_into", "pick", "assemble", "save_state", "load_state")


class Interrupted(Exception):
    pass


@pytest.fixture
def calls(monkeypatch):
    """How often each kind of task was run; the n-th call of all raises where `calls.last` is n."""
    counts = Counter()
    counts.last = None

    def counted(name, function):
        def call(*args):
            counts[name] += 1
            if counts.last is not None and sum(counts[kind] for kind in kinds) > counts.last:
                raise Interrupted(name)
            return function(*args)

        return call

    kinds = [*COUNTED, "forget"]
    for name in COUNTED:
        monkeypatch.setattr(tasks, name, counted(name, getattr(tasks, name)))
    monkeypatch.setattr(store.Store, "forget", staticmethod(counted("forget", store.Store.forget)))
    return counts


# -- values ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [1, 0])
@pytest.mark.parametrize("case", CASES)
def test_every_feed_gives_the_same_bytes(tmp_path, case, axis):
    routine, reduced = routine_of(case, axis), (1, 2) if axis else (0,)
    kept = (25, 2, 2)  # the first alone is so large that its folds are chained
    arrays = arrays_of(29, 700) if axis else arrays_of(700, 29)
    stored = list(lazy_of(arrays, x=kept) if axis else lazy_of(arrays, y=kept))
    for k in reduced:
        np.save(tmp_path / f"{k}.npy", arrays[k])
        stored[k] = dred.from_file(tmp_path / f"{k}.npy", chunks=33)
    operations = routine.plan(*stored, backend="cpu").sizes.operations
    with dask.config.set({**STEPS, "dred.plan.operations-per-second": {"cpu": 6400 * operations}}):
        plan = routine.plan(*stored, backend="cpu")
        assert (len(plan.x_blocks), plan.lanes, plan.steps) == (3, 2, 2)
        given = {"stream": stored, "resident": stored}
        given["waves"] = [lazy(arrays[k], plan.y_blocks) if k in reduced else stored[k] for k in range(4)]
        found = {}
        for feed, args in given.items():
            with dask.config.set({"dred.plan.feed": feed}):
                planned = routine.plan(*args, backend="cpu")
                assert (planned.feed, planned.y_blocks, planned.schedule) == (feed, plan.y_blocks, plan.schedule)
                found[feed] = routine.compute(*args, backend="cpu")
                if feed != "waves":
                    computed = dask.compute(*flatten_entries(routine(*args, backend="cpu")))
                    assert bytes_of(tuple(computed)) == bytes_of(found[feed])
    right(found["stream"], case, arrays, axis)
    assert bytes_of(found["resident"]) == bytes_of(found["stream"]) == bytes_of(found["waves"])


def flatten_entries(found):
    return list(flatten([list(found)])) if isinstance(found, tuple) else [found]


def test_threads_give_the_same_bytes():
    arrays, routine = arrays_of(), routine_of("several")
    for settings_ in ({}, WAVES):
        with dask.config.set(settings_):
            want = bytes_of(routine.compute(*lazy_of(arrays), backend="cpu"))
            with dask.config.set(scheduler="threads", num_workers=3):
                assert bytes_of(routine.compute(*lazy_of(arrays), backend="cpu")) == want


CHUNKS = {
    "cut": {"x": 60, "y": 70},
    "merged": {"x": 1, "y": (1,) * 70},
    "uneven": {"x": (0, 1, 40, 0, 19), "y": (3, 0, 60, 7), "b": (50, 20)},
    "columns": {"x": [(30, 30), (1, 2)], "y": [(20, 50), (2, 0, 1)], "b": 9, "p": (2, 1)},
}


@pytest.mark.parametrize("feed", [{}, WAVES, {**WAVES, "dred.plan.wave-rows": "2 kB"}])
@pytest.mark.parametrize("chunks", CHUNKS)
def test_any_chunks(calls, chunks, feed):
    arrays, routine = arrays_of(), routine_of("several")
    args = lazy_of(arrays, **CHUNKS[chunks])
    with dask.config.set({**feed, "dred.plan.x-budget": "3 kB"}):
        plan = routine.plan(*args, backend="cpu")
        right(routine.compute(*args, backend="cpu"), "several", arrays)
    assert plan.block_tasks > 0
    assert (plan.groups > 1) == ("dred.plan.wave-rows" in feed)
    as_planned(calls, plan)


def as_planned(calls, plan):
    """Every task was run once, as the plan says; results were put in their place by the last ones."""
    assert calls["fold_blocks"] == plan.fold_tasks
    assert calls["merge_states"] == plan.merge_tasks + len(plan.x_blocks)  # each finish merges, too
    assert calls["assemble"] == plan.block_tasks
    assert calls["finish_into"] == len(plan.x_blocks)
    assert calls["finish"] == calls["pick"] == 0


def test_y_is_computed_once_for_each_group_of_x_and_parameters_once():
    arrays = arrays_of()
    made = Counter()

    def made_of(block, kind):
        made[kind] += block.size
        return block

    args = [
        da.map_blocks(made_of, array, kind, dtype=float, meta=np.empty((0,) * array.ndim))
        for array, kind in zip(lazy_of(arrays), "xybp", strict=True)
    ]
    with dask.config.set({**WAVES, "dred.plan.wave-rows": "3 kB"}):
        plan = routine_of("Sum").plan(*args, backend="cpu")
        assert not made
        routine_of("Sum").compute(*args, backend="cpu")
    assert plan.groups == 3
    assert made == {"x": 180, "y": 3 * 210, "b": 3 * 70, "p": 3}


@pytest.mark.parametrize("feed", [{}, WAVES])
def test_no_kept_or_no_reduced_variable(feed):
    x, y, b, p = arrays_of()
    with dask.config.set(feed):
        got = Genred("Exp(y) * p", ALIASES[1:], axis=1).compute(*lazy_of((x, y, b, p))[1:], backend="cpu")
        np.testing.assert_allclose(got, (np.exp(y) * p).sum(0)[None], rtol=1e-12)
        got = Genred("Exp(x) * p", ["x = Vi(3)", "p = Pm(3)"], axis=1).compute(lazy(x, 25), p, backend="cpu")
        np.testing.assert_allclose(got, np.exp(x) * p, rtol=1e-12)
        got = Genred("Exp(p)", ["p = Pm(3)"], axis=1).compute(lazy(p, 2), backend="cpu")
        np.testing.assert_allclose(got, np.exp(p)[None], rtol=1e-12)


@pytest.mark.parametrize("feed", [{}, WAVES])
@pytest.mark.parametrize(("M", "N"), [(0, 70), (60, 0), (0, 0)])
def test_empty_axes(tmp_path, M, N, feed):
    x, y, b, p = arrays_of(M, N)
    args = lazy_of((x, y, b, p))
    with dask.config.set(feed):
        for case, nothing in {"Sum": 0, "LogSumExp": -np.inf, "ArgKMin": -1}.items():
            for more in ({}, {"store": tmp_path / case}, {"store": tmp_path / case}):
                got = routine_of(case).compute(*args, backend="cpu", **more)
                assert (got.shape[0], (got == nothing).all()) == (M, True)


@pytest.mark.parametrize("feed", [{}, WAVES])
@pytest.mark.parametrize("variable", ["x", "y", "b", "p"])
def test_gradients_through_saved_states(tmp_path, variable, feed):
    """Two sweeps; that by a parameter adds up rows."""
    arrays = arrays_of()
    e = np.random.default_rng(5).uniform(-1, 1, (60, 1))
    density = Genred(f"b - {DISTANCE}", ALIASES, "LogSumExp", axis=1)
    gradient = density.grad(variable)
    x, y, b, p = arrays
    weights = np.exp(b[:, 0] - distances(*arrays))
    weights = weights / weights.sum(1, keepdims=True) * e  # (M, N)
    step = 2 * (x[:, None] - (y + p)[None]) * weights[..., None]
    want = {"x": -step.sum(1), "y": step.sum(0), "b": weights.sum(0)[:, None], "p": step.sum((0, 1))}[variable]
    args = (*lazy_of(arrays), lazy(e, 25))
    with dask.config.set(feed):
        assert [plan.feed for plan in gradient.plan(*args, backend="cpu")] == [
            feed.get("dred.plan.feed", "resident")
        ] * 2
        found = [gradient.compute(*args, backend="cpu", **more) for more in ({}, {"store": tmp_path / "store"})]
        out = np.empty_like(want)
        assert gradient.compute(*args, backend="cpu", out=out) is out
    for got in (*found, out):
        assert got.tobytes() == found[0].tobytes()
        np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-13)


def test_a_gradient_whose_second_sweep_alone_takes_waves(calls):
    """What the first sweep leaves is computed once, not wave by wave."""
    arrays = arrays_of(N=20)
    e = np.ones((60, 1))
    gradient = routine_of("LogSumExp").grad("y")
    args = (*lazy_of(arrays), lazy(e, 25))
    with dask.config.set({"dred.plan.y-budget": "1 kB"}):
        plans = gradient.plan(*args, backend="cpu")
        got = gradient.compute(*args, backend="cpu")
    assert [plan.feed for plan in plans] == ["resident", "waves"]
    assert calls["fold_blocks"] == sum(plan.fold_tasks for plan in plans)
    np.testing.assert_allclose(got, gradient(*arrays, e, backend="cpu"), rtol=1e-11)


def test_gradients_of_rankings_of_vectors():
    x, y, _, _ = arrays_of()
    gradient = Genred("x - y", ALIASES[:2], "KMin", opt_arg=2, axis=1).grad("y")
    e = np.random.default_rng(5).uniform(-1, 1, (60, 2, 3))
    args = lazy(x, 25), lazy(y, 20), da.from_array(e, chunks=(25, 2, 3))
    assert gradient.plan(*args, backend="cpu")
    for feed in ({}, WAVES):
        with dask.config.set(feed):
            np.testing.assert_allclose(gradient.compute(*args, backend="cpu"), gradient(x, y, e), rtol=1e-12)


@pytest.mark.parametrize("feed", [{}, WAVES])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_narrow_types(tmp_path, dtype, feed):
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
    arrays = [array.astype(dtype) for array in arrays_of()]
    args = lazy_of(arrays)
    with dask.config.set(feed):
        found = [
            routine_of("Sum").compute(*args, backend="cpu", **more)
            for more in ({}, {"store": tmp_path / "store"}, {"store": tmp_path / "store"})
        ]
    assert [got.dtype for got in found] == [np.dtype(dtype)] * 3
    assert len({got.tobytes() for got in found}) == 1
    want = weighted_sum(*(array.astype(float) for array in arrays), 1)
    np.testing.assert_allclose(found[0].astype(float), want, rtol=0.02, atol=0.02)


sizes = st.lists(st.integers(0, 12), min_size=1, max_size=6)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.data(),
    x=sizes,
    y=sizes,
    axis=st.sampled_from([1, 0]),
    feed=st.sampled_from(["auto", "resident", "stream", "waves"]),
)
def test_anything(calls, data, x, y, axis, feed):
    """Any chunks and settings: right, and tasks and edges as planned."""
    arrays = arrays_of(sum(x), sum(y))

    def drawn(low, high):
        return data.draw(st.integers(low, high))

    def any_chunks(array):
        if array.ndim == 1:
            return lazy(array, data.draw(st.sampled_from([(3,), (1, 2), (2, 0, 1)])))
        rows = sorted(data.draw(st.lists(st.integers(0, len(array)), max_size=4)))
        cuts = tuple(b - a for a, b in itertools.pairwise([0, *rows, len(array)]))
        columns = data.draw(st.sampled_from([(1, 2), (3,)])) if array.shape[1] == 3 else (1,)
        return lazy(array, [cuts, columns])

    kept = 0 if axis else 1
    args = [any_chunks(array) for array in arrays]
    args[kept] = lazy(arrays[kept], tuple(y if kept else x))
    reduced = (1, 2) if axis else (0,)
    if feed == "stream":
        which = data.draw(st.sampled_from([reduced, reduced[:1]]))
        args = [dred.from_array(arrays[k], chunks=7) if k in which else args[k] for k in range(4)]
    budget = drawn(32, 4000) if feed in ("auto", "waves") else 1 << 20
    chosen = {
        "dred.plan.feed": feed,
        "dred.plan.arity": drawn(2, 4),
        "dred.plan.step": drawn(32, 500),
        "dred.plan.y-budget": budget,
        "dred.plan.x-budget": drawn(800, 8000),
        "dred.plan.panel": drawn(1, 400),
        "dred.plan.wave-rows": drawn(1, 8000),
        "dred.plan.parallelism": drawn(1, 20),
    }
    routine = routine_of("several", axis)
    calls.clear()
    with dask.config.set(chosen):
        plan = routine.plan(*args, backend="cpu")
        right(routine.compute(*args, backend="cpu"), "several", arrays, axis)
        as_planned(calls, plan)
        if plan.feed != "waves":
            results = flatten_entries(routine(*args, backend="cpu"))
            graph = {key: task for one in results for key, task in dict(one.__dask_graph__()).items()}
            own = [task for key, task in graph.items() if re.match("dred-(?!read)", key_split(key))]
            assert (len(own), sum(len(task.dependencies) for task in own)) == (plan.tasks, plan.edges)


# -- feeds -------------------------------------------------------------------------------------------------------------


def test_a_lazy_call_that_would_need_waves_is_refused():
    arrays = arrays_of()
    with dask.config.set({"dred.plan.y-budget": "1 kB"}):
        with pytest.raises(PlanError) as caught:
            routine_of("Sum")(*lazy_of(arrays), backend="cpu")
        right(routine_of("Sum").compute(*lazy_of(arrays), backend="cpu"), "Sum", arrays)  # one cure
        stored = [dred.from_array(array) if array.ndim > 1 else array for array in arrays]
        right(routine_of("Sum")(*stored, backend="cpu").compute(), "Sum", arrays)  # the other
    assert str(caught.value) == (
        "2.24 kB of reduced rows would come to lie in every worker, more than dred.plan.y-budget in dask's "
        "configuration allows. Store them where all workers read them and pass dred.from_file(...); or call "
        "routine.compute(...), which folds them in waves; or raise it"
    )


def test_a_forced_feed_that_is_not_possible_is_refused():
    args = lazy_of(arrays_of())
    for feed, text in {
        "stream": "dred.plan.feed is stream, but no variable of the reduced index is stored: pass dred.from_file(...) "
        "or dred.from_array(...), or use another feed",
        "resident": "dred.plan.feed is resident, but 2.24 kB of reduced rows would come to lie in every worker, more "
        "than dred.plan.y-budget of 1 kB: raise it, or use another feed",
    }.items():
        with (
            dask.config.set({"dred.plan.feed": feed, "dred.plan.y-budget": "1 kB"}),
            pytest.raises(PlanError, match=f"^{re.escape(text)}$"),
        ):
            routine_of("Sum").compute(*args, backend="cpu")


# -- out ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("feed", [{}, WAVES, {"store": True}])
@pytest.mark.parametrize("kind", ["numpy", "memmap", "zarr"])
def test_results_are_put_where_they_belong(tmp_path, kind, feed):
    arrays, routine = arrays_of(), routine_of("several")
    more = {"store": tmp_path / "store"} if feed == {"store": True} else {}

    def made(n, shape, dtype):
        if kind == "numpy":
            return np.empty((60, 5), dtype)[:, : shape[1]]  # any strides
        if kind == "memmap":
            return np.lib.format.open_memmap(tmp_path / f"{n}.npy", "w+", dtype, shape)
        return zarr.create_array(tmp_path / f"{n}.zarr", shape=shape, dtype=dtype, chunks=(17, 1))

    kinds = [((60, 2), "int64"), ((60, 1), "float64"), ((60, 1), "float64")]
    out = tuple(made(n, shape, dtype) for n, (shape, dtype) in enumerate(kinds))
    with dask.config.set(feed if not more else {}):
        got = routine.compute(*lazy_of(arrays), backend="cpu", out=out, **more)
    assert all(a is b for a, b in zip(got, out, strict=True))
    right(tuple(np.asarray(array[...]) for array in out), "several", arrays)


class Rows:
    """No array, but rows can be assigned to it."""

    shape, dtype = (60, 1), np.dtype("float64")

    def __init__(self):
        self.assigned = []

    def __setitem__(self, run, rows):
        self.assigned.append((run, rows.shape))


def test_rows_are_assigned_block_by_block():
    out = Rows()
    with dask.config.set(WAVES):
        routine_of("Sum").compute(*lazy_of(arrays_of()), backend="cpu", out=out)
    places = sorted(out.assigned, key=lambda place: place[0].start)
    assert places == [(slice(0, 25), (25, 1)), (slice(25, 50), (25, 1)), (slice(50, 60), (10, 1))]


WRONG_OUT = [
    ("Sum", np.empty((60, 2)), "out has shape (60, 2) and type float64: expected (60, 1) and float64"),
    ("Sum", np.empty((60, 1), "f4"), "out has shape (60, 1) and type float32: expected (60, 1) and float64"),
    ("Sum", (np.empty((60, 1)),), "out is no array to whose rows can be assigned, but tuple"),
    ("Sum", "out.npy", "out is no array to whose rows can be assigned, but str"),
    ("several", np.empty((60, 2)), "out must be a flat tuple of 3 arrays, as many as the result has"),
    (
        "several",
        (np.empty((60, 2)), np.empty((60, 1)), np.empty((60, 1))),
        "out[0] has shape (60, 2) and type float64: expected (60, 2) and int64",
    ),
]


@pytest.mark.parametrize(("case", "out", "text"), WRONG_OUT)
def test_a_wrong_out_is_refused(calls, case, out, text):
    with pytest.raises(InputError) as caught:
        routine_of(case).compute(*lazy_of(arrays_of()), backend="cpu", out=out)
    assert str(caught.value) == text
    assert not calls


def test_numpy_arrays_are_computed_here(tmp_path):
    arrays, out = arrays_of(), np.empty((60, 1))
    assert routine_of("Sum").compute(*arrays, backend="cpu", out=out) is out
    right(out, "Sum", arrays)
    with pytest.raises(InputError) as caught:
        routine_of("Sum").compute(*arrays, backend="cpu", store=tmp_path)
    assert str(caught.value) == (
        "store is for dask arrays: NumPy and CuPy arrays are computed in this process, at once"
    )


# -- stores ------------------------------------------------------------------------------------------------------------


GROUPS = {**WAVES, "dred.plan.wave-rows": "12 kB"}


def missing_folds(plan, folder):
    """Folds whose results are in the store in no form, worked out from the names of its files."""
    names = set(os.listdir(folder)) if folder.exists() else set()
    rows = {i for i in range(len(plan.x_blocks)) if f"rows-{i:06d}.bin" in names}

    def saved(i, lane, step):
        return f"state-{i:06d}-{lane:04d}-{step:06d}.bin" in names

    count = 0
    if plan.feed != "waves":
        for i in set(range(len(plan.x_blocks))) - rows:
            count += sum(len(steps) for n, steps in enumerate(plan.schedule) if not saved(i, n, len(steps) - 1))
        return count
    for first in range(0, len(plan.x_blocks), plan.group):
        left = [i for i in range(first, min(first + plan.group, len(plan.x_blocks))) if i not in rows]
        done = [s + 1 for s in range(plan.steps) if all(saved(i, n, s) for i in left for n in range(plan.lanes))]
        folds = sum(max(0, len(steps) - max(done, default=0)) for steps in plan.schedule)
        count += len(left) * folds
    return count


@pytest.mark.parametrize("feed", [{}, WAVES, GROUPS])
def test_a_computation_that_is_interrupted_anywhere_goes_on(tmp_path, calls, feed):
    arrays, routine = arrays_of(N=50), routine_of("several")
    args = lazy_of(arrays, x=20, y=14)
    few = {"dred.plan.parallelism": 6, "dred.plan.longest-fold": "1 hour", "dred.plan.step": "448 B"}
    with dask.config.set({**feed, **few}):
        plan = routine.plan(*args, backend="cpu")
        assert (len(plan.x_blocks), plan.lanes, plan.steps, plan.groups) == (3, 2, 2, 1 + (feed == GROUPS))
        want = bytes_of(routine.compute(*args, backend="cpu", store=tmp_path / "whole"))
        total = sum(calls.values())
        assert calls["fold_blocks"] == plan.fold_tasks
        left = {name for name in os.listdir(tmp_path / "whole" / "sweep-0") if not name.startswith("rows")}
        assert left == {"manifest.json"}  # no states
        once = Counter()
        for last in range(total):
            calls.clear()
            calls.last = last
            folder = tmp_path / f"{last}"
            with pytest.raises(Interrupted):
                routine.compute(*args, backend="cpu", store=folder)
            first = calls["fold_blocks"]
            calls.last = None
            calls.clear()
            expected = missing_folds(plan, folder / "sweep-0")
            assert bytes_of(routine.compute(*args, backend="cpu", store=folder)) == want
            assert calls["fold_blocks"] == expected
            once[first + expected - plan.fold_tasks] += 1
            calls.clear()
            assert bytes_of(routine.compute(*args, backend="cpu", store=folder)) == want
            assert calls["fold_blocks"] == 0
    lost = plan.group * plan.lanes if plan.feed == "waves" else plan.lanes * plan.steps
    assert max(once) <= lost


def test_gradients_go_on_where_arrays_between_sweeps_lie_elsewhere(tmp_path, calls):
    """As in a new process, which has another folder for them."""
    arrays = arrays_of()
    args = (*lazy_of(arrays), da.ones((60, 1), chunks=25))
    gradient = routine_of("LogSumExp").grad("x")
    for feed in ({}, WAVES):
        with dask.config.set({**feed, "dred.spool-directory": str(tmp_path / "one")}):
            want = gradient.compute(*args, backend="cpu", store=tmp_path / f"{feed == WAVES}")
            total = sum(calls.values())
        for last in range(0, total, total // 8):
            folder = tmp_path / f"{feed == WAVES}-{last}"
            calls.clear()
            calls.last = last
            with pytest.raises(Interrupted), dask.config.set({**feed, "dred.spool-directory": str(tmp_path / "two")}):
                gradient.compute(*args, backend="cpu", store=folder)
            calls.last = None
            with dask.config.set({**feed, "dred.spool-directory": str(tmp_path / "three")}):
                assert gradient.compute(*args, backend="cpu", store=folder).tobytes() == want.tobytes()
        calls.clear()


@pytest.mark.parametrize(("blocks", "kept"), [(19, True), (20, False)])
@pytest.mark.parametrize("feed", [{}, WAVES])
def test_few_blocks_keep_states_and_many_do_not(tmp_path, calls, blocks, kept, feed):
    arrays = arrays_of(M=blocks)
    with dask.config.set({**feed, "dred.plan.parallelism": 2 * blocks, "dred.plan.shortest-fold": "1 ms"}):
        args = lazy_of(arrays, x=1)
        plan = routine_of("Sum").plan(*args, backend="cpu")
        assert (len(plan.x_blocks), plan.lanes) == (blocks, 2)
        right(routine_of("Sum").compute(*args, backend="cpu", store=tmp_path), "Sum", arrays)
    saved = (plan.steps if feed else 1) * 2 * blocks
    assert calls["save_state"] == (saved if kept else 0)


DAMAGES = {
    "truncated": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "one bit": lambda content: content[:100] + bytes([content[100] ^ 1]) + content[101:],
    "longer": lambda content: content + b"\0",
    "other": lambda content: b"not what was written here",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("feed", [{}, WAVES])
def test_a_damaged_file_is_computed_again(tmp_path, calls, feed, damage):
    args = lazy_of(arrays_of())
    with dask.config.set(feed):
        plan = routine_of("Sum").plan(*args, backend="cpu")
        want = routine_of("Sum").compute(*args, backend="cpu", store=tmp_path)
        calls.clear()
        file = tmp_path / "sweep-0" / "rows-000001.bin"
        whole = file.read_bytes()
        file.write_bytes(DAMAGES[damage](whole))
        assert routine_of("Sum").compute(*args, backend="cpu", store=tmp_path).tobytes() == want.tobytes()
        assert calls["fold_blocks"] == plan.fold_tasks // len(plan.x_blocks)
        assert file.read_bytes() == whole

        calls.clear()
        for saved in (tmp_path / "sweep-0").glob("rows-*"):
            saved.unlink()
        calls.last = plan.fold_tasks  # then there are states
        with pytest.raises(Interrupted):
            routine_of("Sum").compute(*args, backend="cpu", store=tmp_path)
        calls.last = None
        states = list((tmp_path / "sweep-0").glob("state-*"))
        assert states
        for state in states:
            state.write_bytes(DAMAGES[damage](state.read_bytes()))
        calls.clear()
        left = [i for i in range(len(plan.x_blocks)) if not (tmp_path / "sweep-0" / f"rows-{i:06d}.bin").exists()]
        assert routine_of("Sum").compute(*args, backend="cpu", store=tmp_path).tobytes() == want.tobytes()
        assert calls["fold_blocks"] == plan.fold_tasks // len(plan.x_blocks) * len(left)


def test_a_file_is_read_whole_or_not_at_all(tmp_path):
    """Whatever bit is turned, wherever it is cut."""
    rng = np.random.default_rng(0)
    arrays = (
        rng.random((3, 2)),
        np.arange(3),
        np.ones((3, 1), bool),
        np.empty((0, 4)),
        rng.random((2, 1, 3)).astype("f4"),
    )
    path = tmp_path / "file"
    store.save(path, arrays)
    found = store.load(path)
    assert [(a.dtype, a.shape, a.tobytes()) for a in found] == [(a.dtype, a.shape, a.tobytes()) for a in arrays]
    assert os.listdir(tmp_path) == ["file"]
    content = path.read_bytes()
    damaged = [content[:n] for n in range(len(content))]
    damaged += [content[:n] + bytes([content[n] ^ (1 << n % 8)]) + content[n + 1 :] for n in range(len(content))]
    for one in damaged:
        path.write_bytes(one)
        assert store.load(path) is None
    assert store.load(tmp_path / "nothing") is None
    assert store.load(tmp_path) is None


def test_another_computation_is_refused(tmp_path, monkeypatch):
    arrays, routine = arrays_of(), routine_of("Sum")
    args = lazy_of(arrays)
    want = routine.compute(*args, backend="cpu", store=tmp_path)
    folder = tmp_path / "sweep-0"

    def refused(what, routine=routine, args=args):
        with pytest.raises(StoreError) as caught:
            routine.compute(*args, backend="cpu", store=tmp_path)
        assert str(caught.value) == (
            f"{folder} holds results of another computation, which differs in its {what}: name another folder, or "
            "delete it"
        )

    refused("formula", Genred(f"Exp({DISTANCE}) * b", ALIASES, axis=1))
    refused("formula, inputs, plan", routine_of("LogSumExp"))  # which reads no weights
    refused("inputs", args=(args[0] + 1, *args[1:]))
    refused("inputs", args=(*args[:3], args[3] + 1))
    refused("inputs, plan", args=lazy_of(arrays, y=14))
    with dask.config.set({"dred.plan.arity": 3}):
        refused("plan")
    with dask.config.set({"dred.plan.panel": "100 B"}):
        refused("plan")
    monkeypatch.setattr("dred.cluster.graph.VERSION", "another")
    refused("version")
    monkeypatch.undo()
    assert routine.compute(*args, backend="cpu", store=tmp_path).tobytes() == want.tobytes()


def test_a_folder_of_other_files_is_refused(tmp_path, calls):
    args = lazy_of(arrays_of())

    def refused(folder, text):
        with pytest.raises(StoreError) as caught:
            routine_of("Sum").compute(*args, backend="cpu", store=tmp_path / "store")
        assert str(caught.value) == f"{folder} {text}"
        assert not calls

    folder = tmp_path / "store"
    folder.mkdir()
    (folder / "thesis.tex").touch()
    refused(folder, "holds other files (thesis.tex): name a new or an empty folder")
    (folder / "thesis.tex").rename(folder / ".nobody's")
    (folder / "sweep-0").mkdir()
    (folder / "sweep-0" / "a.npy").touch()
    refused(folder / "sweep-0", "holds other files (a.npy): name a new or an empty folder")
    (folder / "sweep-0" / "a.npy").unlink()
    for content, text in {
        "{": "JSONDecodeError: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        "[]": "TypeError: list indices must be integers or slices, not str",
        "{}": "KeyError: 'formula'",
    }.items():
        (folder / "sweep-0" / "manifest.json").write_text(content)
        refused(folder / "sweep-0", f"cannot be used as a store: {text}")


def test_a_folder_that_cannot_be_written(tmp_path, calls, monkeypatch):
    args = lazy_of(arrays_of())
    (tmp_path / "file").touch()
    with pytest.raises(StoreError) as caught:
        routine_of("Sum").compute(*args, backend="cpu", store=tmp_path / "file" / "store")
    where = tmp_path / "file" / "store"
    assert str(caught.value) == (
        f"{where} cannot be used as a store: NotADirectoryError: [Errno 20] Not a directory: '{where}'"
    )
    assert not calls

    real, count = os.fsync, itertools.count()

    def full(file):
        if next(count) > 2:
            raise OSError(28, "No space left on device")
        real(file)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError) as caught:
        routine_of("Sum").compute(*args, backend="cpu", store=tmp_path / "store")
    assert re.fullmatch(
        rf"{tmp_path}/store/sweep-0/state-\d+-\d+-\d+.bin cannot be written: \[Errno 28\] No space left on device. "
        "What was finished before is kept",
        str(caught.value),
    )
    kept = sorted(os.listdir(tmp_path / "store" / "sweep-0"))
    assert (len(kept), kept[0]) == (3, "manifest.json")


def test_a_store_may_be_anywhere(tmp_path, monkeypatch):
    arrays, args = arrays_of(), lazy_of(arrays_of())
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    right(routine_of("Sum").compute(*args, backend="cpu", store="~/one"), "Sum", arrays)
    right(routine_of("Sum").compute(*args, backend="cpu", store="two/three"), "Sum", arrays)
    for folder in ("one", "two/three"):
        manifest = json.loads((tmp_path / folder / "sweep-0" / "manifest.json").read_text())
        assert list(manifest) == ["formula", "inputs", "plan", "version"]


def test_what_others_left_half_written_is_no_obstacle(tmp_path):
    arrays, args = arrays_of(), lazy_of(arrays_of())
    (tmp_path / "sweep-0").mkdir()
    (tmp_path / "sweep-0" / ".rows-000000.bin-17-abcdef01").write_bytes(b"half")
    right(routine_of("Sum").compute(*args, backend="cpu", store=tmp_path), "Sum", arrays)


def test_what_a_plan_does_not_depend_on():
    plan = routine_of("Sum").plan(*lazy_of(arrays_of()), backend="cpu")
    assert dataclasses.replace(plan, cache=1).token() == plan.token()
    assert Path(store.MANIFEST).suffix == ".json"
