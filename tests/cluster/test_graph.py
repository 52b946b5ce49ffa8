"""The graph of a reduction, looked at without computing it."""

import pickle

import dask
import dask.array as da
import numpy as np
import pytest
from dask.core import flatten
from dask.utils import key_split
from hypothesis import given
from hypothesis import strategies as st

from dred import Genred
from dred.cluster import tasks
from dred.formula.language import formula
from dred.kernel import engine
from dred.kernel.spec import KernelSpec
from tests.cluster.problems import ALIASES, TEXT, arrays_of, dask_of, plan_of, spec_of, summed

# Rates so low that these small problems are planned like large ones: 64 tasks wanted.
SLOW = {"dred.plan.operations-per-second": {"cpu": 1e3, "numpy": 1e3}, "dred.plan.longest-fold": "1000 s"}
TREE = {**SLOW, "dred.plan.arity": 2}


@pytest.fixture(autouse=True)
def no_computing():
    def refuse(*args, **kwargs):
        raise AssertionError("something was computed while a graph was built")

    with dask.config.set(scheduler=refuse):
        yield


def problem(x_chunks=30, y_chunks=20, M=100, N=70, **kwargs):
    return spec_of(**kwargs), dask_of(arrays_of(M, N), x_chunks, y_chunks)


def own_tasks(array):
    return {k: t for k, t in dict(array.__dask_graph__()).items() if key_split(k).startswith("dred-sum")}


def counts(array):
    kinds = [key_split(k) for k in own_tasks(array)]
    return tuple(map(kinds.count, ("dred-sum-block", "dred-sum-fold", "dred-sum-merge", "dred-sum-rows", "dred-sum")))


def edges(array):
    return sum(len(task.dependencies) for task in own_tasks(array).values())


def test_layers_of_the_graph_and_what_they_read():
    spec, arrays = problem()
    with dask.config.set(TREE):  # 16 lanes, for which the y chunks are cut
        layers = summed(spec, arrays, "cpu").dask
    names = {key_split(name): name for name in layers.layers if name.startswith("dred-")}
    assert set(names) == {"dred-sum-block", "dred-sum-fold", "dred-sum-merge", "dred-sum"}
    x, y, a, p = (array.name for array in arrays)
    assert layers.dependencies[names["dred-sum-block"]] == {y, a}
    assert layers.dependencies[names["dred-sum-fold"]] == {x, p, names["dred-sum-block"]}
    assert layers.dependencies[names["dred-sum-merge"]] == {names["dred-sum-fold"]}
    assert layers.dependencies[names["dred-sum"]] == {names["dred-sum-merge"]}
    layers.validate()


def test_one_lane_has_no_merge_layer():
    spec, arrays = problem()
    layers = summed(spec, arrays, "cpu").dask
    names = {key_split(name): name for name in layers.layers if name.startswith("dred-")}
    assert set(names) == {"dred-sum-fold", "dred-sum"}
    assert layers.dependencies[names["dred-sum"]] == {names["dred-sum-fold"]}
    layers.validate()


@pytest.mark.parametrize("axis", [1, 0])
def test_shape_chunks_and_dtype(axis):
    for dtype in ("float32", "float64"):
        spec, arrays = problem(x_chunks=(10, 0, 90), y_chunks=(50, 20), axis=axis, dtype=dtype)
        result = summed(spec, arrays, "cpu")
        assert result.shape == ((100, 3) if axis == 1 else (70, 3))
        assert result.chunks == (((10, 0, 90) if axis == 1 else (50, 20)), (3,))
        assert result.dtype == dtype
        assert isinstance(result._meta, np.ndarray)


chunks = st.lists(st.integers(0, 9), min_size=1, max_size=12).map(tuple)


@given(chunks, chunks, st.integers(2, 5), st.integers(1, 100), st.sampled_from([0, 1]))
def test_tasks_and_edges_are_those_of_the_plan(x, y, arity, longest, axis):
    spec = spec_of(axis=axis)
    arrays = [  # named, since equal arrays are one array to dask
        da.zeros((sum(rows), v.dim)[v.cat // 2 :], chunks=(rows, v.dim)[v.cat // 2 :], name=f"argument-{v.ind}")
        for v, rows in zip(spec.variables, (x, y, y, (0,)), strict=True)
    ]
    with dask.config.set({**TREE, "dred.plan.arity": arity, "dred.plan.longest-fold": longest / 100 + 0.8}):
        plan = plan_of(spec, arrays, "cpu")
        result = summed(spec, arrays, "cpu")
    blocks, folds, merges, rows, out = counts(result)
    assert (blocks, folds, merges, rows + out) == (
        plan.block_tasks,
        plan.fold_tasks,
        plan.merge_tasks,
        plan.out_tasks,
    )
    assert result.chunks[0] == (x if axis == 1 else y)
    assert len(own_tasks(result)) == plan.tasks
    assert edges(result) == plan.edges
    inside = set(dict(result.__dask_graph__()))
    assert all(task.dependencies <= inside for task in own_tasks(result).values())


def test_a_slice_needs_only_its_blocks():
    spec, arrays = problem()
    with dask.config.set(TREE):
        result = summed(spec, arrays, "cpu")
    whole = dict(result.__dask_graph__())
    part = result[35:55].dask
    culled = part.cull(list(flatten(result[35:55].__dask_keys__())))
    kept = {k for k in dict(culled) if key_split(k).startswith("dred-")}
    blocks = {k for k in whole if key_split(k) == "dred-sum-block"}
    folds = {k for k in whole if key_split(k) == "dred-sum-fold"}
    merges = {k for k in whole if key_split(k) == "dred-sum-merge"}
    assert kept == (
        # rows 30:60
        blocks | {k for k in folds if k[1] == 1} | {k for k in merges if k[2] == 1} | {(result.name, 1, 0)}
    )
    x = arrays[0].name
    assert {k for k in dict(culled) if k[0] == x} == {(x, 1, 0)}


def test_equal_calls_have_equal_keys():
    spec, arrays = problem()
    again = pickle.loads(pickle.dumps(spec))
    first, second = summed(spec, arrays, "cpu"), summed(again, arrays, "cpu")
    assert first.name == second.name
    assert set(dict(first.dask)) == set(dict(second.dask))


def test_whatever_changes_bits_changes_every_key():
    spec, arrays = problem()
    variants = [
        summed(spec, arrays, "cpu"),
        summed(spec, arrays, "numpy"),
        summed(spec_of(chain=16), arrays, "cpu"),
        summed(spec_of(text="Square(p - a) * Exp(x - y)"), arrays, "cpu"),
        summed(spec_of(axis=0), arrays, "cpu"),
        summed(spec, (arrays[0] + 1, *arrays[1:]), "cpu"),
        summed(spec, problem(y_chunks=35)[1], "cpu"),
        summed(spec, problem(x_chunks=50)[1], "cpu"),
    ]
    for settings in (SLOW, TREE):
        with dask.config.set(settings):
            variants.append(summed(spec, arrays, "cpu"))
    keys = [k for result in variants for k in own_tasks(result)]
    assert len(set(keys)) == len(keys)


def test_the_graph_is_small():
    spec, arrays = problem(x_chunks=1, y_chunks=1, M=100, N=100)
    with dask.config.set({**SLOW, "dred.plan.shortest-fold": "10 ms", "dred.plan.parallelism": 1600}):
        result = summed(spec, arrays, "cpu")
    _, folds, *_ = counts(result)
    assert folds == 1600
    own = own_tasks(result)
    assert len(pickle.dumps(own)) < 600 * folds
    assert max(len(pickle.dumps(task)) for task in own.values()) < 4000  # each task travels to its worker alone


def test_numpy_arguments_travel_once():
    x, y, a, p = arrays_of(20_000, 20_000)
    _, dask_y, dask_a, _ = dask_of((x, y, a, p), 1000, 1000)
    with dask.config.set({"dred.plan.operations-per-second": {"cpu": 1e8}}):
        result = summed(spec_of(), (x, dask_y, dask_a, p), "cpu")
    held = x.nbytes + y.nbytes + a.nbytes
    assert held < len(pickle.dumps(dict(result.dask))) < 1.2 * held


def test_a_memmap_travels_as_chunks(tmp_path):
    x, *rest = arrays_of(20_000, 10)
    x.tofile(tmp_path / "x")
    there = np.memmap(tmp_path / "x", dtype=x.dtype, shape=x.shape, mode="r")
    with dask.config.set({"dred.plan.operations-per-second": {"cpu": 1e5}}):
        result = summed(spec_of(), (there, *dask_of((x, *rest), 10, 10)[1:]), "cpu")
    assert result.numblocks[0] > 10
    assert x.nbytes < len(pickle.dumps(dict(result.dask))) < 1.2 * x.nbytes
    assert max(len(pickle.dumps(task)) for task in dict(result.dask).values()) < 0.1 * x.nbytes  # none holds it whole


def test_variables_that_are_not_read_count_for_rows_and_chunks_alone():
    declared = formula("x + y * p", ["x = Vi(3)", "y = Vj(3)", "p = Pm(1)"]).variables
    spec = KernelSpec.of(
        formula("Exp(y)", ["y = Vj(1, 3)", "x = Vi(0, 3)"]).node, "Sum", 1, "float64", "float64", 32, declared
    )
    x, y, p = da.zeros((100, 3), chunks=(30, 3)), da.ones((70, 3), chunks=(20, 3)), da.ones(1)
    result = summed(spec, (x, y, p), "cpu")
    assert result.chunks == ((30, 30, 30, 10), (3,))
    assert edges(result) == plan_of(spec, (x, y, p), "cpu").edges == 4 * (4 + 1)
    assert {x.name, p.name} & set(result.dask.layers) == set()
    with dask.config.set({"dred.graph-bytes": 800}):  # nor is it their size that counts
        summed(spec, (np.zeros((100, 3)), y, p), "cpu")
    np.testing.assert_allclose(result.compute(scheduler="sync"), np.full((100, 3), 70 * np.e), rtol=1e-14)


@pytest.mark.parametrize(("y_chunks", "shape"), [(7, (5, 2, 2, 14)), (40, (5, 2, 2, 14))])
def test_every_row_meets_its_terms_in_order(monkeypatch, y_chunks, shape):
    """States that hold the numbers of their terms: in order and complete, whatever the lanes, steps and tree."""

    def fold(spec, backend, state, arrays, M, N, *, i0, j0, pattern):
        assert arrays[0][:, 0].tolist() == list(range(i0, i0 + M))
        assert arrays[1][:, 0].tolist() == list(range(j0, j0 + N))
        return (np.concatenate([state[0], np.tile(np.arange(j0, j0 + N), (M, 1))], axis=1),)

    monkeypatch.setattr(engine, "empty", lambda spec, M: (np.empty((M, 0), dtype=int),))
    monkeypatch.setattr(engine, "fold", fold)
    monkeypatch.setattr(engine, "merge", lambda spec, left, right: (np.concatenate([left[0], right[0]], axis=1),))
    monkeypatch.setattr(engine, "finalize", lambda spec, state, outputs, by_row: state)
    spec = spec_of("x * y", ["x = Vi(1)", "y = Vj(1)"])
    x, y = (np.arange(n, dtype=float)[:, None] for n in (40, 90))
    arrays = da.from_array(x, chunks=(20, 1)), da.from_array(y, chunks=(y_chunks, 1))
    slow = {**SLOW, "dred.plan.operations-per-second": {"cpu": 500}, "dred.plan.parallelism": 10}
    with dask.config.set({**slow, "dred.plan.step": "120 B", "dred.plan.arity": 3}):  # 15 rows
        plan = plan_of(spec, arrays, "cpu")
        result = summed(spec, arrays, "cpu")
    assert (plan.lanes, plan.steps, plan.depth, plan.step_rows) == shape
    for i in range(2):
        (got,) = dask.get(dict(result.dask), [(result.name, i, 0)])
        assert got.tolist() == [list(range(90))] * 20


@pytest.mark.parametrize("axis", [1, 0])
def test_the_demonstration_has_lanes(axis):
    """A million points by fifty thousand, ten chunks each: more tasks than x blocks, by what the file declares."""
    x, e = (da.zeros((1_000_000, 3), chunks=(100_000, 3), dtype="float32", name=name) for name in "xe")
    y, a = (
        da.zeros((50_000, 3), chunks=(5_000, 3), dtype="float32"),
        da.zeros((50_000, 1), chunks=(5_000, 1), dtype="float32"),
    )
    p = np.ones(1, "float32")
    if axis == 1:
        plan = Genred(TEXT, ALIASES, axis=1).plan(x, y, a, p, backend="cpu")
    else:
        plan = Genred(f"Grad({TEXT}, y, e)", [*ALIASES, "e = Vi(3)"], axis=0).plan(x, y, a, p, e, backend="cpu")
    assert len(plan.x_blocks) == 10
    assert plan.lanes >= 2
    assert plan.fold_seconds <= 30


def test_tasks_are_found_by_reference():
    for function in (tasks.fold_blocks, tasks.merge_states, tasks.finish, tasks.pick, tasks.machine):
        assert pickle.loads(pickle.dumps(function)) is function


def test_aliases_of_the_problem_are_all_read():
    assert [v.ind for v in spec_of().variables] == list(range(len(ALIASES)))
