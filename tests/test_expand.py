"""expand=True: squared distances written out about a centre."""

import dask
import dask.array as da
import numpy as np
import pytest

from dred import Genred, OptionError, Reduction, generic_argkmin
from dred.formula.expand import expanded
from dred.formula.language import read
from dred.formula.node import canonical, toposort, var
from dred.kernel import engine
from dred.kernel.centre import centre, mean, sums
from dred.kernel.interpret import cost

D = 20
ALIASES = [f"x = Vi({D})", f"y = Vj({D})", "b = Vj(1)", "g = Pm(1)"]
GAUSSIAN = "Exp(-g*SqDist(x,y))*b"
EPS = {"float16": 2.0**-24, "float32": 2.0**-24, "float64": 2.0**-53}


def data(M=60, N=70, offset=0.0, dtype="float64", seed=0):
    rng = np.random.default_rng(seed)
    x, y, b, g = rng.random((M, D)) + offset, rng.random((N, D)) + offset, rng.random((N, 1)), np.full(1, 0.25)
    return tuple(a.astype(dtype) for a in (x, y, b, g))


def distances(x, y):
    return ((x.astype(float)[:, None] - y.astype(float)) ** 2).sum(-1)


def radius(x, y):
    """The squared radius about the centre."""
    c = y.astype(float).mean(0)
    return max(((a.astype(float) - c) ** 2).sum(-1).max() for a in (x, y))


def written(text, aliases=ALIASES, summed=False):
    """Canonical text after expansion, with the centre of variable n as n + 10."""
    (node,) = expanded([read(text, aliases)], lambda v: var(10 + v.attrs[0], v.dim, 2), summed)
    return canonical(node)


# -- the formula -------------------------------------------------------------------------------------------------------


def test_the_formula():
    centred = f"let t0 = Subtract(Var(0,{D},0), Var(11,{D},2)); let t1 = Subtract(Var(1,{D},1), Var(11,{D},2)); "
    assert written("SqDist(x, y)") == centred + (
        "ReLU(Add(Add(Sum(Square(t0)), Sum(Square(t1))), Scalprod(Mult(-2, t0), t1)))"
    )
    assert (
        written("SqDist(y, x)") == written("SqDist(x, y)") == written("Sum(Square(x - y))") == written("SqNorm2(x - y)")
    )


@pytest.mark.parametrize(
    ("text", "centre"),
    [
        ("SqDist(x, 2*y)", 10),  # only x is a variable
        ("SqDist(p - x, y)", 11),
        ("SqDist(x*x, y*p)", None),
        ("Sqrt(1 + SqDist(x / p, y / p))", None),
        ("Exp(-Norm2(x - y))", 11),
    ],
)
def test_what_is_the_centre(text, centre):
    aliases = ["x = Vi(3)", "y = Vj(3)", "p = Pm(3)"]
    got = written(text, aliases)
    assert "Scalprod(Mult(-2, " in got
    assert [n for n in (10, 11, 12) if f"Var({n},3,2)" in got] == ([] if centre is None else [centre])


@pytest.mark.parametrize(
    "text", ["SqDist(x, z)", "SqDist(x, p)", "SqDist(x - y, y)", "SqDist(s, t)", "Sum(Abs(x - y))", "(x - y | x + y)"]
)
def test_what_stays(text):
    aliases = ["x = Vi(3)", "y = Vj(3)", "p = Pm(3)", "z = Vi(3)", "s = Vi(1)", "t = Vj(1)"]
    assert written(text, aliases) == canonical(read(text, aliases))
    with pytest.raises(OptionError) as caught:
        Genred(text, aliases, expand=True)
    assert str(caught.value) == (
        "expand=True: the formula has no SqDist(a, b) of a vector of i and a vector of j, of 2 components or more: "
        "leave it out"
    )


def test_the_products_of_sums():
    """What gradients add up, s (x - y), is one product for each pair, and another one for each row."""
    text, aliases = "Grad(Exp(-SqDist(x, y)) * b, x, e)", ["x = Vi(9)", "y = Vj(9)", "b = Vj(1)", "e = Vi(1)"]
    difference = "Subtract(Var(0,9,0), Var(1,9,1))"
    assert written(text, aliases, True).endswith("Subtract(Mult(t2, t0), Mult(t2, t1))")
    assert written(text, aliases).endswith(f"Mult(2, {difference}))")
    # a difference whose square is not there stays, and one of few components
    assert written("b * (x - y)", aliases, True) == canonical(read("b * (x - y)", aliases))
    assert written("SqDist(x, y) + Sum(b * (x - y))", aliases, True).count(difference) == 1
    assert written(text, ["x = Vi(8)", "y = Vj(8)", *aliases[2:]], True).count("Subtract(Var(0,8,0), Var(1,8,1))") == 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("D", [3, 40])
@pytest.mark.parametrize("rows", [5, 120])
@pytest.mark.parametrize("axis", [0, 1])
def test_gradients_far_from_0(dtype, D, rows, axis, kernels):
    """Their products are about the centre, too."""
    rng = np.random.default_rng(0)
    x, y = (1000 + rng.random((n, D)).astype(dtype) / D for n in (rows, 3000))
    b, e = rng.random((3000, 1), dtype), rng.random((rows if axis else 3000, 1), dtype)
    aliases = [f"x = Vi({D})", f"y = Vj({D})", "b = Vj(1)", f"e = {'Vi' if axis else 'Vj'}(1)"]
    text = f"Grad(Exp(-SqDist(x, y)) * b, {'x' if axis else 'y'}, e)"
    got = Genred(text, aliases, axis=axis, expand=True)(x, y, b, e, backend="cpu")
    differences = x[:, None].astype(float) - y
    s = -2 * np.exp(-(differences**2).sum(-1)) * b[:, 0] * (e if axis else e[:, 0])
    wanted = (s[:, :, None] * differences * (1 if axis else -1)).sum(axis)
    error = 20 * EPS[dtype] * np.abs(s).sum(axis)[:, None] * (1 + D) * np.sqrt(radius(x, y))
    assert np.all(np.abs(got - wanted) <= error)


def test_a_repeated_number():
    """SqDist of a vector and a number, which is repeated."""
    x, y = np.random.default_rng(0).random((5, 3)), np.random.default_rng(1).random((6, 1))
    got = Genred("SqDist(x, y)", ["x = Vi(3)", "y = Vj(1)"], axis=1, expand=True)(x, y, backend="cpu")
    np.testing.assert_allclose(got[:, 0], ((x[:, None] - y) ** 2).sum((1, 2)), rtol=1e-13)


@pytest.mark.parametrize("value", [1, 0, None, "yes", np.array([True])])
def test_refused(value):
    for make in (
        lambda: Genred(GAUSSIAN, ALIASES, expand=value),
        lambda: Reduction(f"Sum_Reduction({GAUSSIAN}, 0)", ALIASES, expand=value),
    ):
        with pytest.raises(OptionError) as caught:
            make()
        assert str(caught.value) == f"expand={value!r}: it is True or False"


# -- values ------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["interpreted", "compiled"])
def kernels(request, monkeypatch):
    """Both kinds of kernels for small arrays."""
    if request.param == "interpreted":
        monkeypatch.setattr(engine, "TINY", np.inf)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_values(dtype, axis, kernels):
    x, y, b, g = data(dtype=dtype)
    routine = Genred(GAUSSIAN, ALIASES, axis=axis, expand=True)
    terms = np.exp(-0.25 * distances(x, y)) * b.astype(float)[:, 0]
    wanted = terms.sum(axis)[:, None]
    error = (1 + 8 * 0.25 * radius(x, y)) * EPS[dtype] * np.abs(terms).sum(axis)[:, None]
    rounding = (2.0**-11 if dtype == "float16" else EPS[dtype]) * np.abs(wanted)
    assert np.all(np.abs(routine(x, y, b, g, backend="cpu").astype(float) - wanted) <= error + rounding)


def test_the_error_is_that_of_the_radius_and_never_negative():
    x, y, _, _ = data(dtype="float32")
    x[:50] = y[:50]
    routine = Genred([("SqDist(x, y)", "Min"), ("SqDist(x, y)", "Max")], ALIASES[:2], axis=1, expand=True)
    least, most = routine(x, y, backend="cpu")
    wanted = distances(x, y)
    assert np.all(least >= 0)
    for got, want in ((least, wanted.min(1)), (most, wanted.max(1))):
        assert np.abs(got[:, 0] - want).max() <= 8 * EPS["float32"] * radius(x, y)


def test_the_centre_helps(kernels):
    """Points far from 0, near each other: about 0, nothing of the distances would be left."""
    x, y, _, _ = data(offset=1000.0, dtype="float32")
    wanted = distances(x, y)
    (centred,) = (Genred("SqDist(x, y)", ALIASES[:2], "Min", axis=1, expand=True)(x, y, backend="cpu").T,)
    (plain,) = (Genred("SqDist(1 * x + 0 * y, 2 * (y / 2))", ALIASES[:2], "Min", axis=1)(x, y, backend="cpu").T,)
    (about_0,) = (Genred("SqDist(x / 1.5 * 1.5, y / 1.5 * 1.5)", ALIASES[:2], "Min", axis=1, expand=True)(x, y).T,)
    assert np.abs(centred - wanted.min(1)).max() < 8 * EPS["float32"] * radius(x, y)
    assert np.abs(plain - wanted.min(1)).max() < 1e-5
    assert np.abs(about_0 - wanted.min(1)).max() > 1e-1


def test_missing_numbers_cost_their_own_terms_only():
    x, y, _, _ = data(dtype="float32")
    y[3], y[5, 2], x[7] = np.nan, np.inf, np.nan
    routine = Genred("SqDist(x, y)", ALIASES[:2], "ArgMin", axis=1, expand=True)
    wanted = distances(x, y)
    wanted[np.isnan(wanted)] = np.inf
    got = routine(x, y, backend="cpu")[:, 0]
    assert got[7] == -1
    keep = np.arange(len(x)) != 7
    assert np.array_equal(got[keep], wanted.argmin(1)[keep])


@pytest.mark.parametrize("variable", ["x", "y", "b", "g"])
def test_gradients(variable, monkeypatch):
    monkeypatch.setattr(engine, "TINY", np.inf)  # compiled ones are below
    x, y, b, g = data(12, 15)
    e = np.random.default_rng(1).random((12, 1))
    for name in ("Sum", "LogSumExp"):
        routine, plain = (
            Genred(GAUSSIAN, ALIASES, name, axis=1, expand=expand).grad(variable) for expand in (True, False)
        )
        assert routine.expand
        last = routine.sweeps("float64")[-1].spec
        assert any(n.op == "ReLU" for n in toposort(last.parts[0].formulas))
        got, wanted = (r(x, y, b, g, e, backend="cpu") for r in (routine, plain))
        np.testing.assert_allclose(got, wanted, rtol=1e-11, atol=1e-12)
    second = Genred(GAUSSIAN, ALIASES, axis=1, expand=True).grad("x").grad(variable)
    wanted = Genred(GAUSSIAN, ALIASES, axis=1).grad("x").grad(variable)(x, y, b, g, e, x, backend="cpu")
    np.testing.assert_allclose(second(x, y, b, g, e, x, backend="cpu"), wanted, rtol=1e-10, atol=1e-11)


def test_texts_and_short_names():
    x, y, b, g = data(12, 15)
    e = np.ones((12, 1))
    text = f"Grad(Sum_Reduction({GAUSSIAN}, 0), x, e)"
    got, wanted = (Reduction(text, [*ALIASES, "e = Vi(1)"], expand=expand)(x, y, b, g, e) for expand in (True, False))
    np.testing.assert_allclose(got, wanted, rtol=1e-12)
    near = generic_argkmin("SqDist(x, y)", "a = Vi(3)", *ALIASES[:2], expand=True)
    assert np.array_equal(near(x, y), np.argsort(distances(x, y), axis=1)[:, :3])


def test_off_by_default_with_the_same_bits():
    x, y, b, g = data(dtype="float32")
    plain, off = Genred(GAUSSIAN, ALIASES, axis=1), Genred(GAUSSIAN, ALIASES, axis=1, expand=False)
    assert plain.spec("float32").digest == off.spec("float32").digest
    assert plain(x, y, b, g, backend="cpu").tobytes() == off(x, y, b, g, backend="cpu").tobytes()
    assert not any(n.op == "ReLU" for n in toposort(plain.spec("float32").parts[0].formulas))


def test_fewer_operations():
    plain, less = (
        Genred("Exp(-SqDist(x,y))", ["x = Vi(64)", "y = Vj(64)"], expand=e).spec("float32") for e in (False, True)
    )
    assert cost(less) < 0.75 * cost(plain)


# -- centres -----------------------------------------------------------------------------------------------------------


def test_the_mean():
    y = data(dtype="float32")[1]
    assert centre(y, "float32").dtype == "float32"
    np.testing.assert_array_equal(centre(y, "float32"), y.astype(float).mean(0).astype("float32"))
    parts = np.concatenate([sums(y[:30]), sums(y[30:31]), sums(y[31:])])
    assert parts.shape == (3, 2, D)
    np.testing.assert_allclose(mean(parts, "float64"), y.astype(float).mean(0), rtol=1e-15)
    assert not centre(np.empty((0, 2)), "float32").any()
    holes = np.array([[1.0, np.nan, np.inf], [3.0, 4.0, np.nan]])
    np.testing.assert_array_equal(centre(holes, "float64"), [2, 4, 0])
    np.testing.assert_array_equal(centre(np.full((4, 1), 1.5e308), "float64"), [0])


# -- dask --------------------------------------------------------------------------------------------------------------


def chunked(arrays, x, y):
    return [
        da.from_array(arrays[0], chunks=(x, 7)),
        *(da.from_array(a, chunks=(y, -1)) for a in arrays[1:3]),
        arrays[3],
    ]


def test_dask_has_one_centre_for_all_blocks():
    arrays = data(offset=100.0, dtype="float32")
    routine = Genred(GAUSSIAN, ALIASES, axis=1, expand=True)
    result = routine(*chunked(arrays, 17, 13), backend="cpu")
    assert isinstance(result, da.Array)
    with dask.config.set(scheduler="sync"):
        got = result.compute()
        again = routine(*chunked(arrays, 17, 13), backend="cpu").compute(num_workers=2, scheduler="threads")
    assert got.tobytes() == again.tobytes()
    np.testing.assert_allclose(got, routine(*arrays, backend="cpu"), rtol=1e-5)
    e = np.ones((60, 1), "float32")
    gradient = routine.grad("y")
    np.testing.assert_allclose(
        gradient(*chunked(arrays, 17, 13), e, backend="cpu").compute(scheduler="sync"),
        gradient(*arrays, e, backend="cpu"),
        rtol=2e-4,
        atol=1e-5,
    )


def test_dask_is_lazy_and_adds_a_task_for_each_block():
    touched = []

    def touch(block):
        touched.append(len(block))
        return block

    x, y, b, g = chunked(data(), 20, 14)
    y = y.map_blocks(touch, meta=np.empty((0, 0)))
    plain, routine = (Genred(GAUSSIAN, ALIASES, axis=1, expand=expand) for expand in (False, True))
    result = routine(x, y, b, g, backend="cpu")
    assert routine.plan(x, y, b, g, backend="cpu").pairs == 60 * 70
    assert touched == []
    more = len(result.__dask_graph__()) - len(plain(x, y, b, g, backend="cpu").__dask_graph__())
    assert 5 < more <= 5 + 4  # sums of 5 blocks, their mean, and the way there
    with dask.config.set(scheduler="sync"):
        np.testing.assert_allclose(result.compute(), plain(x, y, b, g, backend="cpu").compute(), rtol=1e-12)
    assert sum(touched) == 2 * 70  # once for each of the two results


def test_numpy_beside_dask():
    x, y, b, g = data()
    routine = Genred(GAUSSIAN, ALIASES, axis=1, expand=True)
    lazy = routine(da.from_array(x, chunks=(20, -1)), y, b, g, backend="cpu")
    np.testing.assert_allclose(lazy.compute(scheduler="sync"), routine(x, y, b, g, backend="cpu"), rtol=1e-13)
