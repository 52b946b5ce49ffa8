"""`routine.grad`: gradients of any routine by any variable, of any order, against differences of the routine itself."""

import dask.array as da
import numpy as np
import pytest

from dred import DerivativeError, Genred, InputError, OptionError, Reduction
from dred.reductions import REDUCTIONS
from tests.monoid_cases import CASES

ALIASES = ["x = Vi(2)", "y = Vj(2)", "b = Vj(3)", "p = Pm(1)"]
M, N = 5, 7
SCALAR, VECTOR = "-p * SqDist(x, y)", "p * x * y - Sin(y)"
ALL = [
    (SCALAR, "LogSumExp"),
    (SCALAR, "SumSoftMaxWeight", None, "b * Sum(x)"),
    (VECTOR, "KMin", 2),
    (VECTOR, "ArgMin"),
    (VECTOR, "Variance", 1),
    (SCALAR, "Max_SumShiftExpWeight", None, "b"),
    (VECTOR, "Max_ArgMax"),
    ("x + y * p", "Prod"),
]


def data(seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=s) for s in ((M, 2), (N, 2), (N, 3))] + [np.array([0.7])]


def floats(result, several):
    """The arrays that have gradients, a row of numbers for each row."""
    entries = result if several else (result,)
    firsts = [e[0] if isinstance(e, tuple) else e for e in entries]
    return [a.reshape(len(a), -1) for a in firsts if a.dtype.kind == "f"]


def slope(function, arrays, k, direction, step):
    shifted = [[a + s * direction if n == k else a for n, a in enumerate(arrays)] for s in (step, -step)]
    return (function(shifted[0]) - function(shifted[1])) / (2 * step)


def check(routine, several, arrays, second=True):
    """Gradients by every variable, and theirs, in random directions."""
    rng = np.random.default_rng(1)
    cotangents = [rng.normal(size=a.shape) for a in floats(routine(*arrays), several)]

    def loss(given):
        return sum((e * a).sum() for e, a in zip(cotangents, floats(routine(*given), several), strict=True))

    for k, name in enumerate("xybp"):
        gradient = routine.grad(name)
        found = gradient(*arrays, *cotangents)
        assert found.shape == arrays[k].shape
        direction = rng.normal(size=found.shape)
        wanted = slope(loss, arrays, k, direction, 1e-6)
        np.testing.assert_allclose((found * direction).sum(), wanted, rtol=1e-6, atol=1e-6)
        e = rng.normal(size=found.shape)

        def first(given, gradient=gradient, e=e):
            return (gradient(*given, *cotangents) * e).sum()

        for m, other in enumerate("xybp" if second else ""):
            found = gradient.grad(other)(*arrays, *cotangents, e)
            direction = rng.normal(size=found.shape)
            wanted = slope(first, arrays, m, direction, 1e-5)
            np.testing.assert_allclose((found * direction).sum(), wanted, rtol=1e-5, atol=1e-5)


SMOOTH = [c for c in CASES if any(REDUCTIONS[c.name].pullbacks.get("", ())) and c.parameter not in (60, 2)]


@pytest.mark.parametrize("case", [c for c in SMOOTH if not c.kahan], ids=str)
def test_every_reduction(case):
    f = SCALAR if REDUCTIONS[case.name].scalar or case.weighted else VECTOR
    formula2 = "Square(b * Sum(x)) + 1" if case.weighted else None
    routine = Genred(f, ALIASES, case.name, axis=1, opt_arg=case.parameter, formula2=formula2)
    check(routine, False, data(), second=False)


@pytest.mark.slow
@pytest.mark.parametrize("case", SMOOTH, ids=str)
@pytest.mark.parametrize("axis", [0, 1])
def test_every_reduction_twice(case, axis):
    f = SCALAR if REDUCTIONS[case.name].scalar or case.weighted else VECTOR
    formula2 = "Square(b * Sum(x)) + 1" if case.weighted else None
    scheme = "kahan_scheme" if case.kahan else "auto"
    check(Genred(f, ALIASES, case.name, axis=axis, opt_arg=case.parameter, formula2=formula2, sum_scheme=scheme), False,
          data())  # fmt: skip


@pytest.mark.parametrize(("axis", "second"), [
    (0, False), (1, False), *(pytest.param(axis, True, marks=pytest.mark.slow) for axis in (0, 1)),
])  # fmt: skip
def test_several_at_once(axis, second):
    """Second derivatives of each alone are in the fast tier."""
    check(Genred(ALL, ALIASES, axis=axis), True, data(), second)


def test_a_text_has_the_same_gradient():
    arrays, e = data(), np.random.default_rng(3).normal(size=(M, 1))
    routine = Genred(SCALAR, ALIASES, "LogSumExp", axis=1)
    for name in "xy":
        text = Reduction(f"Grad(LogSumExp_Reduction({SCALAR}, 0), {name}, e)", [*ALIASES, "e = Vi(1)"])
        assert routine.grad(name)(*arrays, e).tobytes() == text(*arrays, e).tobytes()
    text = Reduction(f"LogSumExp_Reduction({SCALAR}, 0)", ALIASES)
    assert text.grad("p")(*arrays, e).tobytes() == routine.grad("p")(*arrays, e).tobytes()


def test_in_float32():
    """Saved row numbers are exact, saved sums are rounded once."""
    for item in ALL:
        routine = Genred([item], ALIASES, axis=1)
        arrays = data()
        cotangents = [np.ones(a.shape) for a in floats(routine(*arrays), True)]
        if not cotangents:
            continue
        wanted = routine.grad("y")(*arrays, *cotangents)
        found = routine.grad("y")(*(a.astype(np.float32) for a in (*arrays, *cotangents)))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_of_dask_arrays():
    """Lazy, whatever is saved on the way, and the same up to rounding."""
    arrays = data()
    routine = Genred(ALL, ALIASES, axis=1)
    cotangents = [np.ones(a.shape) for a in floats(routine(*arrays), True)]
    lazy = [da.from_array(a, chunks=(2, *a.shape[1:])) if a.ndim == 2 else a for a in (*arrays, *cotangents)]
    for k, name in enumerate("xybp"):
        found = routine.grad(name)(*lazy, backend="cpu")
        assert isinstance(found, da.Array)
        assert found.shape == arrays[k].shape
        wanted = routine.grad(name)(*arrays, *cotangents)
        np.testing.assert_allclose(found.compute(scheduler="threads"), wanted, rtol=1e-12, atol=1e-12)


def test_rows_of_nothing_but_minus_infinity_have_gradient_zero():
    aliases = ["x = Vi(1)", "y = Vj(1)"]
    x, y = np.array([[0.0], [2.0]]), np.array([[0.5], [1.0]])
    for name in ("LogSumExp", "Max_SumShiftExp"):
        routine = Genred("Log(x) - y", aliases, name, axis=1)
        value = routine(x, y)
        assert value[0, 0] == -np.inf
        e = np.ones_like(value)
        assert routine.grad("x")(x, y, e)[0, 0] == 0
        assert np.isfinite(routine.grad("x")(x, y, e)).all()
        assert np.isfinite(routine.grad("y")(x, y, e)).all()


def test_cotangents_have_the_shape_of_results():
    routine = Genred(VECTOR, ALIASES, "KMax", axis=1, opt_arg=3)
    arrays = data()
    e = np.random.default_rng(5).normal(size=routine(*arrays).shape)
    assert e.shape == (M, 3, 2)
    for name in "xp":
        flat = routine.grad(name)(*arrays, e.reshape(M, -1))
        assert routine.grad(name)(*arrays, e).tobytes() == flat.tobytes()


def test_of_a_formula_that_is_a_constant():
    for name in ("Prod", "Sum", "LogSumExp", "Variance"):
        routine = Genred("x - x", ["x = Vi(1)", "y = Vj(1)"], name, axis=1)
        x, y = np.ones((2, 1)), np.ones((3, 1))
        np.testing.assert_array_equal(routine.grad("x")(x, y, np.ones((2, 1))), np.zeros((2, 1)))


def test_by_position_and_into_an_array():
    arrays, e = data(), np.ones((M, 1))
    routine = Genred(SCALAR, ALIASES, "Sum", axis=1)
    for k, name in enumerate("xybp"):
        wanted = routine.grad(name)(*arrays, e)
        out = np.empty_like(wanted)
        assert routine.grad(k)(*arrays, e, out=out) is out
        assert out.tobytes() == wanted.tobytes()
    assert repr(routine.grad("p")) == f"<gradient of {SCALAR} by p>"


@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (lambda r: r.grad("q"), OptionError,
         "grad('q'): the routine has no such variable, but 'x', 'y', 'b', 'p', 0, 1, 2, 3"),
        (lambda r: r.grad(4), OptionError,
         "grad(4): the routine has no such variable, but 'x', 'y', 'b', 'p', 0, 1, 2, 3"),
        (lambda r: Genred(SCALAR, ALIASES, "Count", axis=1).grad("x"), DerivativeError,
         "Count: no derivative\nits values only jump"),
        (lambda r: Genred(SCALAR, ALIASES, "ArgMin", axis=1).grad("x"), DerivativeError,
         "ArgMin: no derivative\nits values only jump"),
        (lambda r: r.grad("x")(*data()), InputError,
         "the routine takes 5 arrays (x, y, b, p, cotangent of Sum), got 4"),
        (lambda r: r.grad("x")(*data(), np.ones((M, 2))), InputError,
         "argument 4 (cotangent of Sum) has shape (5, 2): expected (M, 1)"),
        (lambda r: r.grad("p")(*data(), np.ones((M, 1)), out=np.ones((M, 1))), InputError,
         "out has shape (5, 1) and type float64: expected (1,) and float64"),
        (lambda r: r.grad([1]), OptionError,
         "grad([1]): the routine has no such variable, but 'x', 'y', 'b', 'p', 0, 1, 2, 3"),
        (lambda r: r.grad("x").grad("y")(*data(), np.ones((M, 1))), InputError,
         "the routine takes 6 arrays (x, y, b, p, cotangent of Sum, cotangent of the gradient by x), got 5"),
    ],
)  # fmt: skip
def test_errors(make, kind, text):
    with pytest.raises(kind) as error:
        make(Genred(SCALAR, ALIASES, "Sum", axis=1))
    assert str(error.value) == text


def test_the_check_can_fail(monkeypatch):
    entry = REDUCTIONS["Mean"]
    routine = Genred(VECTOR, ALIASES, "Mean", axis=1)
    check(routine, False, data(), second=False)
    monkeypatch.setitem(entry.pullbacks, "", ("2 * e / n", None))
    with pytest.raises(AssertionError):
        check(routine, False, data(), second=False)
