"""Task functions: their checks of blocks, and errors that say where in the plan they happened."""

import pickle
import subprocess
import sys

import dask
import dask.array as da
import numpy as np
import pytest

from dred.cluster import tasks
from dred.errors import BackendError, FoldError
from dred.formula.language import formula
from dred.kernel import engine
from dred.kernel.spec import KernelSpec
from tests.cluster.local import processes
from tests.cluster.problems import arrays_of, dask_of, spec_of, summed

TREE = {"dred.plan.operations-per-second": {"cpu": 1e4}, "dred.plan.step": "700 B"}


@pytest.fixture(autouse=True)
def synchronous():
    with dask.config.set(scheduler="sync", **TREE):
        yield


def failing(monkeypatch, error):
    """A problem with one fold, that of (i, lane, step) = (2, 1, 1), which raises `error`."""
    fold = engine.fold

    def sometimes(*args, i0, j0, **kwargs):
        if (i0, j0) == (60, 60):
            raise error
        return fold(*args, i0=i0, j0=j0, **kwargs)

    monkeypatch.setattr(engine, "fold", sometimes)
    with dask.config.set({"dred.plan.parallelism": 8, "dred.plan.longest-fold": "1 hour"}):
        result = summed(spec_of(), dask_of(arrays_of(100, 80), 30, 20), "cpu")
        assert {k[1:] for k in result.dask.layers[result.name.replace("sum-", "sum-fold-")]} == {
            (i, lane, step) for i in range(4) for lane in range(2) for step in range(2)
        }
    return result


def test_an_exception_says_where_it_happened(monkeypatch):
    with pytest.raises(FoldError) as caught:
        failing(monkeypatch, ZeroDivisionError("by zero")).compute()
    error = caught.value
    assert (error.i, error.lane, error.step) == (2, 1, 1)
    assert isinstance(error.__cause__, ZeroDivisionError)
    assert str(error) == (
        "ZeroDivisionError: by zero\n"
        "    while folding block i = 2, lane 1, step 1 (kept rows 60:90, reduced rows 60:80)\n"
        f"    of {error.formula}\n"
        "    on backend 'cpu'"
    )
    assert error.formula == tasks.describe(spec_of(), "Sum")
    assert "Exp(" in error.formula
    assert error.formula.endswith(", axis=1")


def test_it_survives_pickling(monkeypatch):
    with pytest.raises(FoldError) as caught:
        failing(monkeypatch, ValueError("odd")).compute()
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is FoldError
    assert str(again) == str(caught.value)
    for name in ("i", "lane", "step", "formula", "backend", "cause", "place"):
        assert getattr(again, name) == getattr(caught.value, name)


def test_a_backend_that_a_worker_cannot_honour(monkeypatch):
    with pytest.raises(BackendError) as caught:
        failing(monkeypatch, BackendError("no GPU here")).compute()
    assert str(pickle.loads(pickle.dumps(caught.value))) == (
        "no GPU here\n"
        "    while folding block i = 2, lane 1, step 1 (kept rows 60:90, reduced rows 60:80)\n"
        f"    of {tasks.describe(spec_of(), 'Sum')}"
    )


def block_that_lies(change):
    x, y, a, p = dask_of(arrays_of(100, 80), 30, 20)
    wrong = da.map_blocks(lambda block: change(block) if len(block) == 10 else block, x, dtype=x.dtype, meta=x._meta)
    with pytest.raises(FoldError) as caught:
        summed(spec_of(), (wrong, y, a, p), "cpu").compute()
    assert caught.value.i == 3
    return caught.value.cause


def cut_short(block):
    return block[:1] if len(block) == 10 else block


def test_an_exception_of_another_process_says_where_it_happened():
    x, y, a, p = dask_of(arrays_of(100, 80), 30, 20)
    wrong = da.map_blocks(cut_short, x, dtype=x.dtype, meta=x._meta)
    result = summed(spec_of(), (wrong, y, a, p), "cpu")
    with processes(1) as client, pytest.raises(FoldError) as caught:
        client.compute(result).result()
    assert (caught.value.i, caught.value.formula) == (3, tasks.describe(spec_of(), "Sum"))
    assert caught.value.place.startswith("block i = 3, ")
    assert "(kept rows 90:100, " in caught.value.place
    assert caught.value.cause.startswith("InputError: argument 0: a block holds float64 of shape (1, 3), but")


def test_blocks_that_differ_from_what_was_declared():
    declared = "but its dask array declares float64 of shape (10, 3)"
    assert block_that_lies(lambda b: b[:1]) == (
        f"InputError: argument 0: a block holds float64 of shape (1, 3), {declared}"
    )
    assert block_that_lies(lambda b: b.astype("float32")) == (
        f"InputError: argument 0: a block holds float32 of shape (10, 3), {declared}"
    )


class OnDevice:
    """Stands for a CuPy array, which NumPy refuses to convert by itself."""

    __cuda_array_interface__ = {}  # noqa: RUF012

    def __init__(self, array):
        self.array = array

    def __array__(self, *args, **kwargs):
        raise TypeError("implicit conversion to a NumPy array is not allowed")

    def get(self):
        return self.array


def test_blocks_on_a_device_are_brought_to_the_host():
    spec, place = spec_of(), tasks.Place(0, 0, 0, 0, 4, 0, (5,), 100)
    x, y, a, p = arrays_of(4, 5)
    (here,) = tasks.fold_blocks(spec, "Sum", "cpu", place, None, [x], [[y], [a]], [p])
    (there,) = tasks.fold_blocks(
        spec, "Sum", "cpu", place, None, [OnDevice(x)], [[OnDevice(y)], [OnDevice(a)]], [OnDevice(p)]
    )
    np.testing.assert_array_equal(here, there)


def remembered(monkeypatch):
    """(arrays, M, N) of every call of the engine's fold."""
    given = []
    fold = engine.fold

    def remember(spec, backend, state, arrays, M, N, **kwargs):
        given.append((arrays, M, N))
        return fold(spec, backend, state, arrays, M, N, **kwargs)

    monkeypatch.setattr(engine, "fold", remember)
    return given


def test_kernels_are_given_contiguous_blocks_by_position(monkeypatch):
    given = remembered(monkeypatch)
    x, y, a, p = arrays_of(4, 5)
    strided = [np.asfortranarray(x)], [[np.asfortranarray(y)], [np.repeat(a, 2, axis=0)[::2]]], [np.repeat(p, 2)[::2]]
    tasks.fold_blocks(spec_of(), "Sum", "cpu", tasks.Place(0, 0, 0, 0, 4, 0, (5,), 100), None, *strided)
    for got, want in zip(given[0][0], (x, y, a, p), strict=True):
        assert got.flags.c_contiguous
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_blocks_of_a_step_are_folded_at_once(monkeypatch, order):
    """As one block: a device is given the kept rows and the state once in a step."""
    given = remembered(monkeypatch)
    x, y, a, p = arrays_of(4, 9)
    cuts = [slice(0, 5), slice(5, 5), slice(5, 9)]
    reduced = [[np.asarray(v[cut], order=order) for cut in cuts] for v in (y, a)]
    place = tasks.Place(0, 0, 0, 0, 4, 0, (5, 0, 4), 100)
    (joined,) = tasks.fold_blocks(spec_of(), "Sum", "cpu", place, None, [x], reduced, [p])
    (whole,) = tasks.fold_blocks(
        spec_of(), "Sum", "cpu", tasks.Place(0, 0, 0, 0, 4, 0, (9,), 100), None, [x], [[y], [a]], [p]
    )
    assert [(M, N) for _, M, N in given] == [(4, 9)] * 2
    for got, want in zip(given[0][0], (x, y, a, p), strict=True):
        assert got.flags.c_contiguous
        np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(joined, whole)


def test_a_single_block_is_not_copied(monkeypatch):
    given = remembered(monkeypatch)
    x, y, a, p = arrays_of(4, 5)
    tasks.fold_blocks(spec_of(), "Sum", "cpu", tasks.Place(0, 0, 0, 0, 4, 0, (5,), 100), None, [x], [[y], [a]], [p])
    assert all(np.shares_memory(got, v) for got, v in zip(given[0][0], (x, y, a, p), strict=True))


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
@pytest.mark.parametrize("axis", [1, 0])
def test_variables_that_are_not_read_hold_nothing(monkeypatch, backend, axis):
    given = remembered(monkeypatch)
    declared = formula("x * y", ["a = Vi(1)", "y = Vj(1)", "x = Vi(1)", "e = Vj(1)", "p = Pm(1)"])
    spec = KernelSpec.of(declared.node, "Sum", axis, "float64", "float64", 32, declared.variables)
    x, y = np.arange(4.0)[:, None], np.arange(5.0)[:, None]
    kept, reduced = (x, y) if axis == 1 else (y, x)
    place = tasks.Place(0, 0, 0, 0, len(kept), 0, (len(reduced),), 100)
    (state,) = tasks.fold_blocks(spec, "Sum", backend, place, None, [kept], [[reduced]], [])
    np.testing.assert_array_equal(state, (kept * reduced.T).sum(1)[None])
    assert [v.size for v in given[0][0]] == [0, 5, 4, 0, 0]


def test_states_that_are_folded_into_are_not_written_to():
    spec, place = spec_of(), tasks.Place(0, 0, 1, 0, 4, 5, (5,), 100)
    x, y, a, p = arrays_of(4, 5)
    state = tasks.fold_blocks(spec, "Sum", "cpu", place, None, [x], [[y], [a]], [p])
    before = [field.copy() for field in state]
    for field in (*state, x, y, a, p):
        field.flags.writeable = False  # as blocks that arrive from another worker are
    more = tasks.fold_blocks(spec, "Sum", "cpu", place, state, [x], [[y], [a]], [p])
    joined = tasks.merge_states(spec, [state, state])
    np.testing.assert_array_equal(joined[0], more[0])
    for field, was in zip(state, before, strict=True):
        np.testing.assert_array_equal(field, was)


def test_a_long_formula_is_shortened():
    text = tasks.describe(spec_of(" + ".join(f"Exp(x * {n})" for n in range(200)), ["x = Vi(1)"]), "Sum")
    assert len(text) < 330
    assert text.endswith("...), axis=1")


def test_schedulers_load_task_functions_without_backends():
    code = "import sys, dred.cluster.tasks; print(*(m for m in ('dask', 'cupy', 'llvmlite') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
