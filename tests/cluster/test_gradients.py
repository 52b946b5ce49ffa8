"""Gradients on Dask: by every kind of variable, along both axes, of any order, beside NumPy in this process."""

import dask
import dask.array as da
import numpy as np
import pytest

from dred import Genred, from_array
from tests.cluster.problems import BACKEND

ALIASES = ["x = Vi(3)", "y = Vj(3)", "b = Vj(2)", "p = Pm(1)"]
M, N = 60, 45
MANY = {  # lanes, steps and a tree at these sizes
    "dred.plan.operations-per-second": {BACKEND: 1e4},
    "dred.plan.arity": 2,
    "dred.plan.step": "1 kB",
}
REDUCTIONS = [
    ("Exp(-p*SqDist(x,y))*b", "Sum", None),
    ("-p*SqDist(x,y)", "LogSumExp", "b"),
    ("-p*SqDist(x,y)", "SumSoftMaxWeight", "b"),
    ("p*SqDist(x,y)+Sum(b)", "Min", None),
]


@pytest.fixture(autouse=True)
def synchronous():
    with dask.config.set(scheduler="sync", **MANY):
        yield


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    x, y, b = rng.uniform(-1, 1, (M, 3)), rng.uniform(-1, 1, (N, 3)), rng.uniform(0.5, 1, (N, 2))
    return x, y, b, np.array([0.7])


def chunked(arrays, x_chunks=(25, 0, 35), y_chunks=(20, 20, 5)):
    x, y, b, p = arrays
    return (
        da.from_array(x, chunks=(x_chunks, (2, 1))),
        da.from_array(y, chunks=(y_chunks, 3)),
        da.from_array(b, chunks=((9, 36), 1)),
        da.from_array(p, chunks=1),
    )


def lazily(array, chunks):
    return da.from_array(array, chunks=(chunks, -1))


@pytest.mark.parametrize("variable", ["x", "y", "b", "p"])
@pytest.mark.parametrize("axis", [1, 0])
@pytest.mark.parametrize("case", REDUCTIONS, ids=lambda case: case[1])
def test_by_every_kind_of_variable(arrays, case, axis, variable):
    formula, reduction, weight = case
    routine = Genred(formula, ALIASES, reduction, axis=axis, formula2=weight)
    e = np.random.default_rng(1).uniform(-1, 1, np.shape(routine(*arrays)))
    gradient = routine.grad(variable)
    lazy = chunked(arrays)
    result = gradient(*lazy, lazily(e, 17), backend=BACKEND)
    assert isinstance(result, da.Array)
    want = gradient(*arrays, e)
    np.testing.assert_allclose(result.compute(), want, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(gradient.compute(*lazy, lazily(e, 17), backend=BACKEND), want, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("feed", ["resident", "waves"])
def test_of_higher_order(arrays, feed):
    """The third derivative of a log-sum-exp, by x, y and the parameter: through states saved by sweeps before."""
    routine = Genred("-p*SqDist(x,y)", ALIASES, "LogSumExp", axis=1)
    first = routine.grad("x")
    second, third = first.grad("y"), first.grad("y").grad("p")
    rng = np.random.default_rng(2)
    cotangents = [rng.uniform(-1, 1, shape) for shape in ((M, 1), (M, 3), (N, 3))]
    lazy = chunked(arrays)
    for gradient, count in ((second, 2), (third, 3)):
        given = [lazily(e, 16) for e in cotangents[:count]]
        with dask.config.set({"dred.plan.feed": feed, "dred.plan.y-budget": "2 kB" if feed == "waves" else "1 GB"}):
            got = gradient.compute(*lazy, *given, backend=BACKEND)
        np.testing.assert_allclose(got, gradient(*arrays, *cotangents[:count]), rtol=1e-9, atol=1e-10)


def test_of_arrays_that_are_read_by_path(arrays):
    routine = Genred(*REDUCTIONS[0][:1], ALIASES, axis=1)
    e = np.ones((M, 2))
    stored = [from_array(v, chunks=20) for v in arrays[:3]]
    for variable in "xyp":
        gradient = routine.grad(variable)
        given = (*stored, arrays[3], from_array(e, chunks=30))
        np.testing.assert_allclose(gradient.compute(*given, backend=BACKEND), gradient(*arrays, e), rtol=1e-11)


def test_a_wrong_gradient_is_found(arrays):
    routine = Genred("Exp(-p*SqDist(x,y))*b", ALIASES, axis=1)
    wrong = Genred("Exp(-p*SqDist(x,y))*b*1.001", ALIASES, axis=1)
    e = np.ones((M, 2))
    got = routine.grad("y")(*chunked(arrays), lazily(e, 17), backend=BACKEND).compute()
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(got, wrong.grad("y")(*arrays, e), rtol=1e-11)
