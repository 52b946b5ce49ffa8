"""Derivatives of routines applied to vectors: against finite differences of the routine itself."""

import dask.array as da
import numpy as np
import pytest

import dred
from dred import Genred, autodiff
from dred.errors import DerivativeError, InputError, OptionError
from dred.reductions import REDUCTIONS

ALIASES = ["x = Vi(2)", "y = Vj(2)", "b = Vj(1)", "p = Pm(2)", "g = Pm(1)"]
M, N = 9, 13
NAMES = [name for name, entry in REDUCTIONS.items() if any(entry.pullbacks.get("", ()))]
QUICK = ("Sum", "LogSumExp", "KMin", "Variance")
PARAMETERS = {"K": 3, "ddof": 1, "": None}


def arrays_of(seed=0, dtype="float64"):
    rng = np.random.default_rng(seed)
    shapes = [(M, 2), (N, 2), (N, 1), (2,), (1,)]
    return [rng.normal(size=shape).astype(dtype) for shape in shapes]


def routine_of(name, axis=1):
    entry = REDUCTIONS[name]
    formula = "g * (x | p * y) + Sin(b)" if entry.scalar else "g * p * Sin(x - y) + b * x"
    formula2 = "Exp(b) + Square(x) + 1" if "G" in entry.signature.split(", ") else None
    return Genred(formula, ALIASES, name, axis=axis, opt_arg=PARAMETERS[entry.parameter], formula2=formula2)


def dot(routine, value, cotangents):
    firsts = autodiff.first_arrays(routine, value)
    return sum(float((first * e).sum()) for first, e in zip(firsts, cotangents, strict=True))


def like(routine, args, seed=1):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=first.shape) for first in autodiff.first_arrays(routine, routine(*args))]


def moved(args, directions, h):
    return [a if u is None else a + h * u for a, u in zip(args, directions, strict=True)]


@pytest.mark.parametrize("axis", [pytest.param(0, marks=pytest.mark.slow), 1])
@pytest.mark.parametrize("name", NAMES)
def test_pullbacks_are_differences(name, axis):
    routine, args = routine_of(name, axis), arrays_of()
    e, directions = like(routine, args), arrays_of(7)
    value, pullback = dred.vjp(routine, *args)
    np.testing.assert_array_equal(autodiff.first_arrays(routine, value)[0],
                                  autodiff.first_arrays(routine, routine(*args))[0])  # fmt: skip
    gradients = pullback(*e)
    assert [g.shape for g in gradients] == [a.shape for a in args]
    got = sum(float((g * u).sum()) for g, u in zip(gradients, directions, strict=True))
    h = 1e-6
    ahead, behind = (dot(routine, routine(*moved(args, directions, s * h)), e) for s in (1, -1))
    assert got == pytest.approx((ahead - behind) / (2 * h), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("axis", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_tangents_are_transposed_pullbacks(name, axis):
    routine, args = routine_of(name, axis), arrays_of()
    e, directions = like(routine, args), arrays_of(7)
    _, pullback = dred.vjp(routine, *args)
    for chosen in (range(5), [0], [1, 4]):
        tangents = [u if k in chosen else None for k, u in enumerate(directions)]
        value, tangent = dred.jvp(routine, args, tangents)
        assert tangent.shape == autodiff.first_arrays(routine, value)[0].shape
        pulled = pullback(*e)
        got = sum(float((pulled[k] * directions[k]).sum()) for k in chosen)
        assert float((tangent * e[0]).sum()) == pytest.approx(got, rel=1e-9, abs=1e-10)


def test_several_reductions_of_which_some_have_no_derivative():
    several = [
        ("g*(x|p*y)", "LogSumExp"),
        ("b*(x|y)", "ArgMin"),
        ("SqDist(x,y)*g", "KMin_ArgKMin", 2),
        ("p*x*y", "Sum"),
    ]
    routine, args = Genred(several, ALIASES, axis=1), arrays_of()
    value = routine(*args)
    rng = np.random.default_rng(3)
    e = [rng.normal(size=a.shape) for a in (value[0], value[2][0], value[3])]
    gradients = dred.vjp(routine, *args)[1](*e)
    directions = arrays_of(8)
    got = sum(float((g * u).sum()) for g, u in zip(gradients, directions, strict=True))

    def weighed(value):
        return sum(float((a * b).sum()) for a, b in zip((value[0], value[2][0], value[3]), e, strict=True))

    h = 1e-6
    ahead, behind = (weighed(routine(*moved(args, directions, s * h))) for s in (1, -1))
    assert got == pytest.approx((ahead - behind) / (2 * h), rel=1e-6)


def test_one_sweep_for_all_that_leave_the_same_index():
    routine = routine_of("Sum")
    by_i, by_j = autodiff.gradients(routine, (0, 3, 4)), autodiff.gradients(routine, (1, 2))
    assert [len(r.sweeps("float64")) for r in (by_i, by_j)] == [1, 1]
    assert len(by_i.sweeps("float64")[0].spec.parts) == 3
    soft = routine_of("LogSumExp")
    sweeps = autodiff.gradients(soft, (0, 3)).sweeps("float64")
    assert len(sweeps) == 2  # the state of the sums, once, then both gradients
    assert len(sweeps[0].outputs) == 2
    assert autodiff.gradients(soft, (0, 3)) is autodiff.gradients(soft, (0, 3))


def test_each_gradient_is_that_of_the_routine():
    routine, args = routine_of("LogSumExp"), arrays_of()
    (e,) = like(routine, args)
    for got, name in zip(dred.vjp(routine, *args)[1](e), "xybpg", strict=True):
        np.testing.assert_allclose(got, routine.grad(name)(*args, e), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_types_stay(dtype):
    routine, args = routine_of("Mean"), arrays_of(dtype=dtype)
    value, pullback = dred.vjp(routine, *args)
    gradients = pullback(np.ones_like(value))
    assert {g.dtype.name for g in gradients} == {dtype}
    wide = dred.vjp(routine, *[a.astype(float) for a in args])[1](np.ones(value.shape))
    for got, want in zip(gradients, wide, strict=True):
        np.testing.assert_allclose(
            got, want, rtol=2e-2 if dtype == "float16" else 2e-5, atol=2e-2 if dtype == "float16" else 1e-5
        )


def test_dask_arrays_stay_lazy():
    routine, args = routine_of("LogSumExp"), arrays_of()
    (e,) = like(routine, args)
    chunks = [(4, 5), (6, 7), (6, 7)]
    lazy = [da.from_array(a, chunks=(c, -1)) for a, c in zip(args[:3], chunks, strict=True)] + args[3:]
    value, pullback = dred.vjp(routine, *lazy)
    gradients = pullback(da.from_array(e, chunks=((4, 5), -1)))
    assert all(isinstance(g, da.Array) for g in (value, *gradients))
    for got, want in zip(gradients, dred.vjp(routine, *args)[1](e), strict=True):
        np.testing.assert_allclose(got.compute(), want, rtol=1e-12, atol=1e-13)
    tangent = dred.jvp(routine, lazy, [lazy[0], None, None, None, None])[1]
    np.testing.assert_allclose(tangent.compute(), dred.jvp(routine, args, [args[0], *[None] * 4])[1], rtol=1e-12)


def test_grad_and_value_and_grad():
    routine, args = routine_of("Sum"), arrays_of()
    ones = np.ones((M, 2))
    expected = dred.vjp(routine, *args)[1](ones)
    for got, want in zip(dred.grad(routine)(*args), expected, strict=True):
        np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(dred.grad(routine, "y")(*args), expected[1])
    value, (by_g, by_x) = dred.value_and_grad(routine, ["g", 0])(*args)
    np.testing.assert_array_equal(value, routine(*args))
    np.testing.assert_array_equal(by_x, expected[0])
    np.testing.assert_array_equal(by_g, expected[4])
    first = dred.value_and_grad(routine, 2)(*args, backend="cpu")[1]
    np.testing.assert_array_equal(first, expected[2])


@pytest.mark.parametrize("name", ["Sum", "LogSumExp", "Variance"])
@pytest.mark.parametrize("wrt", ["x", 1])
def test_products_with_hessians_are_differences_of_gradients(name, wrt):
    routine, args = routine_of(name), arrays_of()
    e = like(routine, args)
    place = {"x": 0}.get(wrt, wrt)
    u = arrays_of(5)[place]
    got = dred.hessian_vector_product(routine, wrt, args, u, e)
    h, moved_by = 1e-6, [None] * 5
    moved_by[place] = u
    ahead, behind = (routine.grad(wrt)(*moved(args, moved_by, s * h), *e) for s in (1, -1))
    np.testing.assert_allclose(got, (ahead - behind) / (2 * h), rtol=1e-5, atol=1e-6)


def test_pullbacks_of_gradients():
    """A gradient by a parameter has its rows added up, and can be pulled back again."""
    routine, args = routine_of("LogSumExp"), arrays_of()
    (e,) = like(routine, args)
    for name in ("y", "g"):
        gradient = routine.grad(name)
        given = [*args, e]
        cotangent = np.random.default_rng(2).normal(size=gradient(*given).shape)
        directions = [*arrays_of(6), np.random.default_rng(4).normal(size=e.shape)]
        pulled = dred.vjp(gradient, *given)[1](cotangent)
        got = sum(float((p * u).sum()) for p, u in zip(pulled, directions, strict=True))
        h = 1e-6
        ahead, behind = (float((gradient(*moved(given, directions, s * h)) * cotangent).sum()) for s in (1, -1))
        assert got == pytest.approx((ahead - behind) / (2 * h), rel=1e-5)


ERRORS = {
    "no derivative": (
        lambda r, a: dred.vjp(Genred("x*y", ["x = Vi(1)", "y = Vj(1)"], "ArgMin", axis=1), a[2], a[2]),
        DerivativeError,
        "ArgMin: no derivative\nits values only jump",
    ),
    "cotangents": (lambda r, a: dred.vjp(r, *a)[1](), InputError, "the pullback takes 1 cotangents, got 0"),
    "tangents": (
        lambda r, a: dred.jvp(r, a, [None] * 5),
        InputError,
        "the routine takes 5 arguments and as many tangents, one at least; got 5",
    ),
    "added rows": (
        lambda r, a: dred.jvp(r.grad("g"), [*a, np.ones((M, 2))], [a[0], *[None] * 5]),
        OptionError,
        "a gradient by a parameter adds its rows up: take the derivative of what it is a gradient of",
    ),
    "name": (
        lambda r, a: dred.grad(r, "z"),
        OptionError,
        "wrt='z': the routine has no such variable, but 0, 1, 2, 3, 4, 'x', 'y', 'b', 'p', 'g'",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    act, kind, said = ERRORS[case]
    with pytest.raises(kind) as error:
        act(routine_of("Sum"), arrays_of())
    assert str(error.value) == said


@pytest.mark.parametrize("axis", [0, 1])
def test_second_derivatives_of_rankings_of_vectors(axis):
    """Cotangents of the first derivative are (rows, K, dim), and stay arguments of the second one."""
    routine, args = routine_of("KMin", axis), arrays_of()
    (e,) = like(routine, args)
    assert e.ndim == 3
    for first, place in (("x", 0), ("p", 3)):
        gradient = routine.grad(first)
        u, directions = arrays_of(3)[place], [*arrays_of(7), like(routine, args, 5)[0]]
        _, pullback = dred.vjp(gradient, *args, e)
        found = pullback(u)
        assert [g.shape for g in found] == [a.shape for a in (*args, e)]
        by_hand = [gradient.grad(k)(*args, e, u) for k in range(5)]
        for a, b in zip(found, by_hand, strict=False):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
        h = 1e-6
        ahead, behind = (float((gradient(*moved([*args, e], directions, s * h)) * u).sum()) for s in (1, -1))
        got = sum(float((g * t).sum()) for g, t in zip(found, directions, strict=True))
        assert got == pytest.approx((ahead - behind) / (2 * h), rel=1e-5, abs=1e-7)
    _, tangent = dred.jvp(routine.grad("x"), (*args, e), directions)
    ahead, behind = (routine.grad("x")(*moved([*args, e], directions, s * h)) for s in (1, -1))
    np.testing.assert_allclose(tangent, (ahead - behind) / (2 * h), rtol=1e-5, atol=1e-6)
