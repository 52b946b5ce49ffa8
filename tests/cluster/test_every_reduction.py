"""Every reduction over blocks: values for any chunks, the tasks of several arrays, what is lazy."""

import dask
import dask.array as da
import numpy as np
import pytest
from dask.utils import key_split
from hypothesis import given, settings
from hypothesis import strategies as st

from dred import FoldError, Genred, Reduction
from dred.cluster import graph, inputs, tasks
from dred.formula.language import formula
from dred.kernel import engine
from dred.kernel.output import Output
from dred.kernel.spec import KernelSpec, Part
from dred.reductions import REDUCTIONS
from tests.cluster.problems import BACKEND
from tests.reduction_cases import ALIASES, CASES, arrays_of, check, listed, routine_of, same

# Rates so low that these small problems get lanes, steps and a tree.
MANY = {"dred.plan.operations-per-second": {BACKEND: 100}, "dred.plan.longest-fold": "1 hour"}


@pytest.fixture(autouse=True)
def synchronous():
    with dask.config.set(scheduler="sync"):
        yield


def dask_of(arrays, x_chunks, y_chunks):
    x, y, b = arrays
    return (
        da.from_array(x, chunks=(x_chunks, 2)),
        da.from_array(y, chunks=(y_chunks, 2)),
        da.from_array(b, chunks=(y_chunks, 3)),
    )


def computed(result):
    """The arrays of a lazy result, computed at once."""
    assert all(isinstance(a, da.Array) for a in listed(result))
    return dask.compute(*listed(result))


# What is exact in any order: numbers of rows, extrema, and sums of the small whole numbers and halves that are given.
EXACT = [c for c in CASES if not any(word in c.reduction_op for word in ("Exp", "SoftMax", "Mean", "Variance", "Prod"))]
ROUNDED = [c for c in CASES if c not in EXACT]
rows = st.lists(st.integers(0, 9), min_size=1, max_size=5).map(tuple)


CUTS = (rows, rows, st.sampled_from([1, 0]), st.integers(2, 4), st.integers(1, 64), st.integers(30, 2000))


@settings(max_examples=10)
@given(*CUTS)
def test_any_chunks_lanes_and_trees(x_chunks, y_chunks, axis, arity, parallelism, budget):
    check_cut(x_chunks, y_chunks, axis, arity, parallelism, budget)


@pytest.mark.slow
@settings(max_examples=40)
@given(*CUTS)
def test_many_chunks_lanes_and_trees(x_chunks, y_chunks, axis, arity, parallelism, budget):
    check_cut(x_chunks, y_chunks, axis, arity, parallelism, budget)


def check_cut(x_chunks, y_chunks, axis, arity, parallelism, budget):
    arrays = arrays_of(sum(x_chunks), sum(y_chunks))
    lazy = dask_of(arrays, x_chunks, y_chunks)
    more = {"dred.plan.arity": arity, "dred.plan.parallelism": parallelism, "dred.plan.step": f"{budget + 50} B"}
    routine = Genred(EXACT, ALIASES, axis=axis)
    with dask.config.set({**MANY, **more}):
        got = computed(routine(*lazy, backend=BACKEND))
    same(got, tuple(listed(routine(*arrays, backend=BACKEND))))  # one block
    routine = Genred(ROUNDED, ALIASES, axis=axis)
    with dask.config.set({**MANY, **more}):
        result = routine(*lazy, backend=BACKEND)
    computed_of = iter(computed(result))
    for case in ROUNDED:
        check(tuple(next(computed_of) for _ in REDUCTIONS[case.reduction_op].results), case, axis, arrays)


@pytest.mark.parametrize("axis", [1, 0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_shape_chunks_and_types_are_those_of_what_is_computed(case, dtype, axis):
    arrays = arrays_of(9, 11, dtype)
    lazy = listed(routine_of(case, axis)(*dask_of(arrays, (4, 0, 5), (3, 8)), backend=BACKEND))
    assert len(lazy) == len(REDUCTIONS[case.reduction_op].results)
    for result, got in zip(lazy, computed(tuple(lazy)), strict=True):
        assert (result.shape, result.dtype) == (got.shape, got.dtype)
        assert result.chunks == ((4, 0, 5) if axis == 1 else (3, 8), *((n,) for n in got.shape[1:]))
        assert (result._meta.ndim, result._meta.dtype) == (got.ndim, got.dtype)
    check(computed(tuple(lazy)), case, axis, arrays)


def test_a_wrong_offset_is_found(monkeypatch):
    """Row numbers that start at 0 in every block."""
    fold = engine.fold
    monkeypatch.setattr(engine, "fold", lambda *args, i0, j0, pattern: fold(*args, i0=0, j0=0))
    arrays = arrays_of(9, 11)
    case = next(c for c in CASES if c.reduction_op == "ArgMin")
    with dask.config.set(MANY), pytest.raises(AssertionError):
        check(computed(routine_of(case, 1)(*dask_of(arrays, 4, 3), backend=BACKEND)), case, 1, arrays)


@pytest.mark.parametrize("axis", [1, 0])
def test_row_numbers_are_those_of_all_rows(axis):
    """The term of (i, j) is least where both are the same number; terms of equal value go to the lower one."""
    i, j = (da.arange(100.0, chunks=chunks)[:, None] for chunks in (30, 7))
    with dask.config.set(MANY):
        lazy = Genred([("Abs(i - j)", "ArgMin"), ("0 * i * j", "ArgKMax", 3)], ["i = Vi(1)", "j = Vj(1)"], axis=axis)
        same, first = computed(lazy(i, j, backend=BACKEND))
    np.testing.assert_array_equal(same[:, 0], np.arange(100))
    np.testing.assert_array_equal(first, np.tile(np.arange(3), (100, 1)))


# -- the graph ---------------------------------------------------------------------------------------------------------


def own_tasks(*arrays):
    found = {k: t for array in arrays for k, t in dict(array.__dask_graph__()).items()}
    return {k: t for k, t in found.items() if str(k[0]).startswith("dred-")}


def own_layers(array):
    return [name.rpartition("-")[0] for name in array.dask.layers if name.startswith("dred-")]


def problem(x_chunks=4, y_chunks=3):
    return dask_of(arrays_of(9, 11), x_chunks, y_chunks)


def test_a_pair_is_two_arrays_over_one_fold_layer():
    with dask.config.set({**MANY, "dred.plan.arity": 2}):
        values, numbers = Genred("x * y", ALIASES, "KMin_ArgKMin", 1, opt_arg=3)(*problem(), backend=BACKEND)
    prefix = "dred-kmin-argkmin"
    below = [f"{prefix}-block", f"{prefix}-fold", f"{prefix}-merge", prefix]
    assert own_layers(values) == [*below, f"{prefix}-0"]
    assert own_layers(numbers) == [*below, f"{prefix}-1"]
    assert len({*values.dask.layers} & {*numbers.dask.layers}) == len(values.dask.layers) - 1
    values.dask.validate()
    assert {key_split(key) for key in own_tasks(values, numbers)} == set(below)


def test_one_array_has_no_task_more():
    with dask.config.set({**MANY, "dred.plan.arity": 2}):
        result = Genred("x * y", ALIASES, "ArgKMin", 1, opt_arg=3)(*problem(), backend=BACKEND)
    assert own_layers(result) == [f"dred-argkmin{kind}" for kind in ("-block", "-fold", "-merge", "")]


@pytest.mark.parametrize("items", [
    [("x * y", "Sum")], [("x * y", "Min_ArgMin")], [("x", "Sum"), ("x", "KMin", 2), ("y", "LogSumExp", None, "x")],
])  # fmt: skip
@given(rows, rows, st.integers(2, 5), st.integers(1, 64), st.sampled_from([0, 1]))
def test_tasks_and_edges_are_those_of_the_plan(items, x_chunks, y_chunks, arity, parallelism, axis):
    lazy = problem_of(x_chunks, y_chunks)
    routine = Genred(items, ALIASES, axis=axis)
    with dask.config.set({**MANY, "dred.plan.arity": arity, "dred.plan.parallelism": parallelism}):
        plan = routine.plan(*lazy, backend=BACKEND)
        own = own_tasks(*listed(routine(*lazy, backend=BACKEND)))
    kinds = [task.func for task in own.values()]
    assert kinds.count(tasks.fold_blocks) == plan.fold_tasks
    assert kinds.count(tasks.merge_states) == plan.merge_tasks
    assert kinds.count(tasks.finish) + kinds.count(tasks.pick) + kinds.count(tasks.assemble) == (
        plan.out_tasks + plan.block_tasks
    )
    assert len(own) == plan.tasks
    assert sum(len(task.dependencies) for task in own.values()) == plan.edges


def problem_of(x_chunks, y_chunks):
    """Named, since equal arrays are one array to dask."""
    return tuple(
        da.zeros((sum(chunks), dim), chunks=(chunks, dim), name=name)
        for name, chunks, dim in (("x", x_chunks, 2), ("y", y_chunks, 2), ("b", y_chunks, 3))
    )


def test_computing_all_arrays_folds_once(monkeypatch):
    calls, fold = [], engine.fold

    def counted(spec, *args, **more):
        calls.append(len(spec.parts))
        return fold(spec, *args, **more)

    monkeypatch.setattr(engine, "fold", counted)
    lazy = problem()
    with dask.config.set(MANY):
        routine = Genred([("x * y", "KMin", 2), ("x * y", "ArgKMin", 2), ("x", "Sum")], ALIASES, axis=1)
        plan, result = routine.plan(*lazy, backend=BACKEND), routine(*lazy, backend=BACKEND)
    assert calls == []
    computed(result)
    assert calls == [2] * plan.fold_tasks


@pytest.mark.parametrize(("label", "prefix"), [
    ("Sum", "dred-sum"), ("KMin+ArgKMin, Sum", "dred-kmin-argkmin-sum"),
    ("Max_SumShiftExpWeight", "dred-max-sumshiftexpweight"),
    (", ".join(REDUCTIONS), "dred-sum-min-argmin-min-argmin"),
])  # fmt: skip
def test_names_of_layers_are_short(label, prefix):
    assert graph.layer_prefix(label) == prefix
    assert len(prefix) <= 32


def test_many_arrays_computed_at_once_are_not_mixed_up():
    """Where a single chunk's tasks are fused, dask cuts long names: what differed is lost."""
    arrays = arrays_of(3, 5)
    routine = Genred(EXACT, ALIASES, axis=1)
    want = tuple(listed(routine(*arrays, backend=BACKEND)))
    lazy = dask_of(arrays, 3, 5)
    for _ in range(30):
        same(computed(routine(*lazy, backend=BACKEND)), want)


def test_slices_of_one_of_several():
    arrays = arrays_of(9, 11)
    pair = Genred("x * y", ALIASES, "KMax_ArgKMax", 1, opt_arg=2)
    want = pair(*arrays, backend=BACKEND)
    for lazy, array in zip(pair(*dask_of(arrays, 4, 3), backend=BACKEND), want, strict=True):
        for cut in (np.s_[3:7], np.s_[1], np.s_[:, 1], np.s_[2:, :, 1], np.s_[-1, 0, 0]):
            np.testing.assert_array_equal(lazy[cut].compute(), array[cut])
        np.testing.assert_array_equal((lazy.sum(axis=1) * 2).compute(), array.sum(1) * 2)


def test_results_that_differ_in_a_parameter_alone_have_other_keys():
    lazy = problem()
    names = {Genred("x", ALIASES, "Variance", 1, opt_arg=ddof)(*lazy, backend=BACKEND).name for ddof in (0, 1, 2)}
    assert len(names) == 3
    assert Genred("x", ALIASES, "Variance", 1)(*lazy, backend=BACKEND).name in names


def test_sizes_of_states_and_results():
    f, g = (formula(text, ALIASES) for text in ("x * y", "b"))
    parts = (
        Part.of("KMin", f.node, None, 5),  # of 2 components: a value and a number in each place
        Part.of("LogSumExp", formula("(x | y)", ALIASES).node, g.node),  # m, and 3 sums
        Part.of("Count", f.node),
        Part.of("Any", f.node),
    )
    spec = KernelSpec(parts, 1, "float32", "float64", 32, f.variables)
    outputs = (
        *Output.of("KMin_ArgKMin", 0, 5), *Output.of("LogSumExp", 1), *Output.of("Count", 2), *Output.of("Any", 3),
    )  # fmt: skip
    sizes = inputs.measure(spec, problem(), outputs)
    assert sizes.state_row_bytes == 10 * (4 + 8) + (4 + 3 * 8) + 2 * 8 + 2 * 4
    assert sizes.out_row_bytes == 10 * (4 + 8) + 3 * 4 + 2 * 8 + 2 * 1
    assert sizes.outputs == 5


# -- what it says ------------------------------------------------------------------------------------------------------


def test_errors_name_the_reductions(monkeypatch):
    def fail(*args, **more):
        raise ZeroDivisionError("by zero")

    items = [("x", "KMin", 2), ("(x|y)", "LogSumExp", None, "b"), ("x", "ArgKMin", 2), ("y", "KMin_ArgKMin", 1)]
    result = Genred(items, ALIASES, axis=1)(*problem(), backend=BACKEND)
    monkeypatch.setattr(engine, "fold", fail)
    with pytest.raises(FoldError) as caught:
        computed(result)
    assert caught.value.formula == (
        "KMin+ArgKMin(Var(0,2,0)), LogSumExp(Scalprod(Var(0,2,0), Var(1,2,1)), Var(2,3,1)), KMin_ArgKMin(Var(1,2,1)), "
        "axis=1"
    )


def test_a_plan_names_the_reductions():
    plan = Genred([("x", "KMin", 2), ("x", "Sum"), ("x", "ArgKMin", 2)], ALIASES).plan(*problem(), backend=BACKEND)
    assert str(plan).startswith("reduction     KMin+ArgKMin, Sum on cpu\npairs         11 x 9 = 99, each of ")


# -- several sweeps ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, MANY])
@pytest.mark.parametrize("text", ["Grad(LogSumExp_Reduction((x | y), 0), y, e)",
                                  "Grad(SumSoftMaxWeight_Reduction((x | y), 0, Sum(b)), x, e)",
                                  "Grad(Min_Reduction((x | y), 0), y, e)",
                                  "Grad(Mean_Reduction((x | y), 0), x, e)"])  # fmt: skip
def test_gradients_are_lazy_and_right(text, settings):
    arrays = arrays_of(9, 11)
    e = np.random.default_rng(0).normal(size=(9, 1))
    routine = Reduction(text, [*ALIASES, "e = Vi(1)"])
    want = routine(*arrays, e, backend=BACKEND)
    calls = []
    with dask.config.set({**settings, "scheduler": lambda *args, **more: calls.append(args)}):
        lazy = (*dask_of(arrays, 4, 3), da.from_array(e, chunks=(5, 1)))
        result, plans = routine(*lazy, backend=BACKEND), routine.plan(*lazy, backend=BACKEND)
    assert calls == []
    np.testing.assert_allclose(result.compute(), want, rtol=1e-12, atol=1e-14)
    assert len(plans) == 2
    assert sum(plan.tasks for plan in plans) == len(own_tasks(result))


def test_reduce_is_told_its_label():
    spec = KernelSpec.of(formula("x * y", ALIASES).node, "Max", 1, "float64", "float64")
    (result,) = graph.reduce(spec, problem(), Output.of("Max"), BACKEND, label="Max")
    assert result.name.startswith("dred-max-")
