"""Values of dask reductions beside dense NumPy, for any chunks and any mixture of arrays."""

import os
import subprocess
import sys

import dask
import dask.array as da
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dred.formula.language import formula
from dred.formula.oracle import dense as oracle
from dred.kernel.spec import KernelSpec
from tests.cluster.problems import BACKEND, arrays_of, dask_of, dense, spec_of, summed

# Rates so low that these small problems get lanes, steps and a tree.
MANY = {
    "dred.plan.operations-per-second": {BACKEND: 1e3},
    "dred.plan.arity": 2,
    "dred.plan.step": "300 B",
}


@pytest.fixture(autouse=True)
def synchronous():
    with dask.config.set(scheduler="sync"):
        yield


def close(result, want):
    assert result.shape == want.shape
    np.testing.assert_allclose(result.compute(), want, rtol=1e-12)


rows = st.lists(st.integers(0, 12), min_size=1, max_size=6).map(tuple)


@given(rows, rows, st.sampled_from([1, 0]), st.sampled_from([{}, MANY]))
def test_any_row_chunks(x_chunks, y_chunks, axis, settings):
    arrays = arrays_of(sum(x_chunks), sum(y_chunks))
    with dask.config.set(settings):
        result = summed(spec_of(axis=axis), dask_of(arrays, x_chunks, y_chunks), BACKEND)
    close(result, dense(*arrays, axis=axis))
    assert result.chunks[0] == (x_chunks if axis == 1 else y_chunks)


@st.composite
def cuts(draw, total):
    """A way to cut `total` into chunks, some of them empty."""
    inner = sorted(draw(st.lists(st.integers(0, total), max_size=4)))
    return tuple(b - a for a, b in zip([0, *inner], [*inner, total], strict=True))


@given(cuts(30), cuts(3), cuts(20), cuts(3), cuts(20), st.sampled_from([1, 0]))
def test_chunks_that_differ_between_variables_and_columns(x_rows, x_columns, y_rows, y_columns, a_rows, axis):
    x, y, a, p = arrays = arrays_of(30, 20)
    lazy = (
        da.from_array(x, chunks=(x_rows, x_columns)),
        da.from_array(y, chunks=(y_rows, y_columns)),
        da.from_array(a, chunks=(a_rows, 1)),
        da.from_array(p, chunks=1),
    )
    result = summed(spec_of(axis=axis), lazy, BACKEND)
    close(result, dense(*arrays, axis=axis))
    assert result.chunks == (x_rows if axis == 1 else y_rows, (3,))


# many tasks over i take their time: most sorts of these are in the slow tier
WHICH = [{0}, {1}, {2}, {1, 2}, {3}, {0, 3}, {1, 2, 3}, {0, 1, 2}]
BESIDE = [pytest.param(numpy, axis, settings, marks=[pytest.mark.slow] * (axis == 0 and settings is MANY and n % 4 > 0))
          for n, numpy in enumerate(WHICH) for axis in (1, 0) for settings in ({}, MANY)]  # fmt: skip


@pytest.mark.parametrize(("numpy", "axis", "settings"), BESIDE)
def test_numpy_arrays_beside_dask_arrays(numpy, axis, settings):
    arrays = arrays_of(600, 90)
    lazy = dask_of(arrays, 250, 40)
    mixed = tuple(arrays[k] if k in numpy else lazy[k] for k in range(4))
    with dask.config.set(settings):
        result = summed(spec_of(axis=axis), mixed, BACKEND)
    close(result, dense(*arrays, axis=axis))


def test_what_the_caller_does_to_a_numpy_array_later_has_no_effect():
    x, y, a, p = arrays_of(50, 40)
    lazy = dask_of((x, y, a, p), 20, 10)
    want = dense(x, y, a, p)
    result = summed(spec_of(), (x, *lazy[1:3], p), BACKEND)
    x[:] = 7
    p[:] = 7
    close(result, want)


def test_float32():
    arrays = arrays_of(100, 80, dtype="float32")
    result = summed(spec_of(dtype="float32"), dask_of(arrays, 30, 20), BACKEND).compute()
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, dense(*arrays), rtol=1e-5)


@pytest.mark.parametrize("order", ["F", "strided"])
def test_blocks_that_are_not_contiguous(order):
    x, y, a, p = arrays_of(100, 80)
    lazy = dask_of((x, y, a, p), 30, 20)
    if order == "F":
        lazy = (da.from_array(np.ascontiguousarray(x.T), chunks=(3, 30)).T, *lazy[1:])
    else:
        lazy = (da.from_array(np.repeat(x, 2, axis=0), chunks=(60, 3))[::2], *lazy[1:])
    close(summed(spec_of(), lazy, BACKEND), dense(x, y, a, p))


def test_formulas_without_a_kept_a_reduced_or_any_index():
    x, y, _, p = arrays_of(40, 30)
    lazy_x, lazy_y, _, _ = dask_of((x, y, y[:, :1], p), 15, 10)
    aliases = ["x = Vi(3)", "y = Vj(3)", "p = Pm(1)"]
    close(summed(spec_of("Exp(y)", aliases), (None, lazy_y), BACKEND), np.exp(y).sum(0)[None])
    close(summed(spec_of("Exp(x)", aliases), (lazy_x,), BACKEND), np.exp(x))
    close(summed(spec_of("Exp(p)", aliases), (None, None, da.from_array(p)), BACKEND), np.exp(p)[None])


def test_a_formula_that_reads_nothing():
    declared = formula("x + y", ["x = Vi(2)", "y = Vj(2)"]).variables
    spec = KernelSpec.of(formula("IntCst(2)", []).node, "Sum", 1, "float64", "float64", 32, declared)
    x, y = da.zeros((10, 2), chunks=(4, 2)), da.zeros((7, 2), chunks=(3, 2))
    close(summed(spec, (x, y), BACKEND), np.full((10, 1), 14.0))


def test_gradient_along_the_other_axis():
    x, y, a, p = arrays_of(60, 50)
    e = np.random.default_rng(5).uniform(-1, 1, (60, 3))
    aliases = ["x = Vi(3)", "y = Vj(3)", "a = Vj(1)", "p = Pm(1)", "e = Vi(3)"]
    spec = spec_of("Grad(Square(p - a) * Exp(x + y), y, e)", aliases, axis=0)
    lazy = (*dask_of((x, y, a, p), 25, 20), da.from_array(e, chunks=(25, 3)))
    want = ((p - a[None]) ** 2 * np.exp(x[:, None] + y[None]) * e[:, None]).sum(0)
    with dask.config.set(MANY):
        close(summed(spec, lazy, BACKEND), want)


def test_results_compose_with_dask_arrays_on_both_sides():
    x, y, a, p = arrays_of(100, 80)
    lazy = dask_of((x, y, a, p), 30, 20)
    want = dense(2 * x, y, a, p)
    with dask.config.set(MANY):
        result = summed(spec_of(), (2 * lazy[0], *lazy[1:]), BACKEND)
    close(result * 2, want * 2)
    close(result[17:64, 1:], want[17:64, 1:])
    close(result.mean(axis=0), want.mean(0))
    close(result.T @ result, want.T @ want)
    again = summed(spec_of(), (result / 100, *lazy[1:]), BACKEND)
    close(again, dense(want / 100, y, a, p))
    one, two = dask.compute(result, again, scheduler="threads")
    np.testing.assert_array_equal(one, result.compute())
    np.testing.assert_array_equal(two, again.compute())


def test_any_scheduler_gives_the_same_bytes():
    arrays = arrays_of(200, 170, dtype="float32")
    with dask.config.set(MANY):
        result = summed(spec_of(dtype="float32"), dask_of(arrays, 30, 20), BACKEND)
    want = result.compute(scheduler="sync").tobytes()
    assert [result.compute(scheduler="threads", num_workers=n).tobytes() == want for n in (1, 2, 5)] == [True] * 3
    assert result.persist(scheduler="threads").compute().tobytes() == want


EXPRESSIONS = f"""
import dask, dask.array as da, numpy as np
assert da.array_expr_enabled()
from dred.formula.language import formula
from dred.formula.oracle import dense as oracle
from dred.kernel.spec import KernelSpec
from tests.cluster.problems import arrays_of, dask_of, dense, spec_of, summed
arrays = arrays_of(100, 80)
lazy = dask_of(arrays, 30, 20)
lazy = (lazy[0], lazy[1].rechunk((33, 2)), lazy[2], arrays[3])
want = dense(*arrays)
for settings in ({{}}, {MANY!r}):
    with dask.config.set(settings, scheduler="sync"):
        result = summed(spec_of(), lazy, {BACKEND!r})
        np.testing.assert_allclose(result.compute(), want, rtol=1e-12)
        np.testing.assert_allclose((result * 2)[40:70].sum(0).compute(), 2 * want[40:70].sum(0), rtol=1e-12)
        assert result.name == summed(spec_of(), lazy, {BACKEND!r}).name
        assert result.name.startswith("dred-sum-")
print("right")
"""


@pytest.mark.skipif(not hasattr(da, "array_expr_enabled"), reason="dask without array expressions")
def test_array_expressions():
    environment = {**os.environ, "DASK_ARRAY__QUERY_PLANNING": "True"}
    done = subprocess.run(
        [sys.executable, "-c", EXPRESSIONS], capture_output=True, text=True, check=False, env=environment
    )
    assert done.stdout.strip() == "right", done.stderr


# -- the whole language, in blocks -------------------------------------------------------------------------------------

NUMBERED = {  # formula -> its value at every pair
    "(IndexI() == IndexJ()) * y": lambda i, j, x, y: (i == j) * y,
    "(IndexI() + 3 < IndexJ()) * Sum(x * y)": lambda i, j, x, y: (i + 3 < j) * (x * y).sum(-1, keepdims=True),
    "IndexI() * x - IndexJ() * y": lambda i, j, x, y: i * x - j * y,
    "(Abs(IndexI() - IndexJ()) <= 5) * Exp(x - y)": lambda i, j, x, y: (abs(i - j) <= 5) * np.exp(x - y),
}


@pytest.mark.parametrize("settings", [{}, MANY])
@pytest.mark.parametrize("axis", [1, 0])
@pytest.mark.parametrize("text", NUMBERED)
def test_row_numbers_are_global(text, axis, settings):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(31, 3)), rng.normal(size=(45, 3))
    f = formula(text, ["x = Vi(3)", "y = Vj(3)"])
    spec = KernelSpec.of(f.node, "Sum", axis, "float64", "float64", variables=f.variables)
    lazy = (da.from_array(x, chunks=((7, 1, 20, 3), 3)), da.from_array(y, chunks=((10, 30, 5), 3)))
    i, j = np.arange(31)[:, None, None], np.arange(45)[None, :, None]
    want = NUMBERED[text](i, j, x[:, None], y[None]).sum(1 if axis else 0)
    with dask.config.set(settings):
        close(summed(spec, lazy, BACKEND), want)


@pytest.mark.parametrize("axis", [1, 0])
@pytest.mark.parametrize("text", [
    "Erf(x) * Powf(2, y) + Atan2(x, y)", "Max(x - y) * OneHot(ArgMin(x * y), 3)",
    "ComplexMult(Concat(x, p), Concat(y, p))",
    "Grad(MatVecMult(TensorProd(x, y), Tanh(x - y)), x, y)", "IfElse(x - y, Log(x - y), 0)",
])  # fmt: skip
def test_operations_in_blocks(text, axis):
    rng = np.random.default_rng(1)
    arrays = rng.normal(size=(23, 3)), rng.normal(size=(17, 3)), rng.normal(size=1)
    f = formula(text, ["x = Vi(3)", "y = Vj(3)", "p = Pm(1)"])
    spec = KernelSpec.of(f.node, "Sum", axis, "float64", "float64", variables=f.variables)
    lazy = tuple(da.from_array(a, chunks=5) for a in arrays)
    close(summed(spec, lazy, BACKEND), oracle(f.node, arrays).sum(axis))
