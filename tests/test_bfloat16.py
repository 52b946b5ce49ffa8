"""Arrays of bfloat16: computed in float32, results in bfloat16."""

import dask.array as da
import ml_dtypes
import numpy as np
import pytest

from dred import DtypeError, Genred
from dred.kernel import engine
from tests.cluster.local import threads
from tests.test_float16 import GAUSSIAN, wide

EPS = 2.0**-8  # a rounding to bfloat16


def data(M=40, N=50):
    rng = np.random.default_rng(3)
    arrays = rng.random((M, 3)), rng.random((N, 3)), rng.random((N, 1)), np.full(1, 0.5)
    return tuple(a.astype(ml_dtypes.bfloat16) for a in arrays)


def near(got, wanted):
    """One rounding to bfloat16, and those of float32 of all terms."""
    assert got.dtype == ml_dtypes.bfloat16
    np.testing.assert_allclose(got.astype(float), wanted, rtol=EPS * 1.01, atol=1e-5)


@pytest.fixture(params=[0, np.inf], ids=["compiled", "interpreted"])
def kernels(request, monkeypatch):
    monkeypatch.setattr(engine, "TINY", request.param)


@pytest.mark.parametrize("reduction", ["Sum", "Mean", "LogSumExp", "Max"])
@pytest.mark.parametrize("axis", [0, 1])
def test_results_are_those_of_float64_rounded_once(kernels, reduction, axis):
    arrays, routine = data(), Genred(*GAUSSIAN, reduction, axis=axis)
    near(routine(*arrays, backend="cpu"), routine(*wide(arrays), backend="cpu"))


def test_row_numbers_and_counts(kernels):
    arrays, routine = data(), Genred("SqDist(x,y)", GAUSSIAN[1], "ArgKMin", opt_arg=3, axis=1)
    got = routine(*arrays, backend="cpu")
    assert got.dtype == "int64"
    values = ((arrays[0].astype("f4")[:, None] - arrays[1].astype("f4")[None]) ** 2).sum(2)
    assert np.array_equal(got, np.argsort(values, axis=1, kind="stable")[:, :3])


def test_gradient_and_dtype(kernels):
    arrays = data()
    e = np.ones((40, 1), ml_dtypes.bfloat16)
    routine = Genred(f"Grad({GAUSSIAN[0]},x,e)", [*GAUSSIAN[1], "e = Vi(1)"], axis=1, dtype="bfloat16")
    wanted = Genred(f"Grad({GAUSSIAN[0]},x,e)", [*GAUSSIAN[1], "e = Vi(1)"], axis=1)
    near(routine(*arrays, e, backend="cpu"), wanted(*wide([*arrays, e]), backend="cpu"))
    with pytest.raises(DtypeError, match=r"the routine was made for dtype='bfloat16', got arrays of type float64"):
        routine(*wide([*arrays, e]))


def test_blocks_of_dask():
    arrays, routine = data(), Genred(*GAUSSIAN, axis=1)
    x, y, b = (da.from_array(a, chunks=(17, a.shape[1])) for a in arrays[:3])
    lazy = routine(x, y, b, arrays[3], backend="cpu")
    assert lazy.dtype == ml_dtypes.bfloat16
    with threads(2) as client:
        got = client.compute(lazy).result()
    near(got, routine(*wide(arrays), backend="cpu"))
