"""Gradients of every reduction, of both orders, against central differences; what is masked; what they are made of."""

import dataclasses
import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dred.errors import ArgumentError, DerivativeError, DimensionError, EntryError
from dred.formula.language import Variable, formula
from dred.formula.node import const, var, variables
from dred.formula.oracle import dense
from dred.formula.pullback import Reduced, Saved, diff, grad, numbered
from dred.formula.reduced import reduction
from dred.kernel import engine
from dred.kernel.output import Output, empty
from dred.kernel.spec import KernelSpec
from dred.reductions import REDUCTIONS

M, N = 5, 6
STEP = 1e-5
DIFFERENTIABLE = [name for name, r in REDUCTIONS.items() if "" in r.pullbacks]
FLAT = [name for name in DIFFERENTIABLE if not any(REDUCTIONS[name].pullbacks[""])]
SMOOTH = [name for name in DIFFERENTIABLE if name not in FLAT]
KEPT = [name for name, r in REDUCTIONS.items() if r.parameter == "K"]


# -- the arrays that a reduction leaves, by the interpreter ------------------------------------------------------------


def arrays_of(r, given, sizes=(M, N), dtype="float64"):
    """The results of a reduction of arrays by position; what it reads of others is computed before."""
    return _left(r, dict(enumerate(given)), sizes, dtype, None)


def value(r, given, sizes=(M, N), dtype="float64"):
    """The first of them, a flat row for each kept row."""
    first = arrays_of(r, given, sizes, dtype)[0]
    return first.reshape(len(first), -1)


def _left(r, arrays, sizes, dtype, field):
    for v, saved in r.saved:
        if v.ind not in arrays:
            (arrays[v.ind],) = _left(saved.reduced, arrays, sizes, dtype, saved.field)
            assert arrays[v.ind].shape == (sizes[v.cat], v.dim)
    spec = KernelSpec.of(r.node, r.name, r.axis, dtype, "float64", weight=r.weight, parameter=r.parameter)
    kept, gone = sizes[r.cat], sizes[1 - r.cat]
    by_position = [np.ascontiguousarray(arrays.get(k, np.empty(0)), dtype) for k in range(1 + max(arrays))]
    state = engine.fold(spec, "numpy", empty(spec, kept), by_position, kept, gone)
    outputs = Output.of(r.name, 0, r.parameter)
    if field is not None:
        first = dataclasses.replace(outputs[0], places=False, saved=True)
        outputs = (Output(0, (field,), saved=True) if field else first,)
    return engine.finalize(spec, state, outputs)


# -- cases -------------------------------------------------------------------------------------------------------------

F = "Sin(p * x + y) * (1.5 + x * y) + x - y / 2"
G = "1.2 + Cos(x * y - p)"


@dataclasses.dataclass(frozen=True)
class Case:
    """A reduction of smooth formulas of x (per i), y (per j) and a parameter p."""

    name: str
    D: int = 3
    axis: int = 1
    parameter: int | None = None
    weight: str = ""  # "": none, "one": of dimension 1, "many": of dimension 3

    def __str__(self):
        words = [self.name, f"D{self.D}", f"axis{self.axis}"]
        return "-".join([*words, *([f"K{self.parameter}"] if self.parameter is not None else []), self.weight]).strip(
            "-"
        )

    @property
    def aliases(self):
        return [f"x = Vi({self.D})", f"y = Vj({self.D})", "p = Pm(1)"]

    @property
    def reduced(self):
        f = f"Sum({F})" if REDUCTIONS[self.name].scalar or self.weight == "many" else F
        node = formula(f, self.aliases).node
        weight = {"": None, "one": f"Sum({G})", "many": f"Concat(Concat({G}, 1.5 - Square(p)), {G})"}[self.weight]
        if self.weight == "many":
            weight = f"Extract({weight}, 0, 3)"
        weight = weight and formula(weight, self.aliases).node
        return Reduced(self.name, node, 1 - self.axis, self.parameter, weight)

    def arrays(self, seed=0):
        rng = np.random.default_rng([seed, self.D])
        return [rng.uniform(-1, 1, shape) for shape in ((M, self.D), (N, self.D), (1,))]


PARAMETERS = {"": (None,), "K": (1, 3, N + 2), "ddof": (0, 1)}


def cases(names, dims=(1, 3), axes=(1, 0)):
    for name, D, axis in itertools.product(names, dims, axes):
        r = REDUCTIONS[name]
        weights = (["one", "many"] if "G" in r.signature else []) + (
            [""] if "G" not in r.signature.replace("G?", "") else []
        )
        for parameter, weight in itertools.product(PARAMETERS[r.parameter], weights):
            yield Case(name, D, axis, parameter, weight)


def few(case):
    """Those that are tested each time: of one component over i, of three over j."""
    return (case.D, case.axis) in ((1, 0), (3, 1)) and case.parameter in (None, 3, 1)


def fewer(case):
    """Of these, one for each reduction and weight."""
    return few(case) and (case.D == 3) == (case.weight == "many" or case.parameter == 3)


def marked(found, fast=fewer):
    return [pytest.param(c, id=str(c), marks=[] if fast(c) else [pytest.mark.slow]) for c in found]


def random_like(arrays, seed=1):
    rng = np.random.default_rng(seed)
    return [rng.uniform(-1, 1, np.shape(a)) for a in arrays]


def moved(arrays, directions, step):
    return [a + step * u for a, u in zip(arrays, directions, strict=True)]


def slope(function, arrays, directions):
    """The derivative of a number along directions of all arrays."""
    return (function(moved(arrays, directions, STEP)) - function(moved(arrays, directions, -STEP))) / (2 * STEP)


def inner(rows, direction):
    """The product of a gradient and a direction; that by a parameter has a row per i."""
    return float((rows.sum(0) if direction.ndim == 1 else rows).ravel() @ direction.ravel())


def close(got, wanted, tolerance=1e-6):
    assert abs(got - wanted) <= tolerance * (1 + abs(wanted)), (got, wanted)


INPUTS = 3  # x, y, p; then the cotangent e, then those of the gradients by all of these


def inputs(r):
    """The variables x, y, p and the cotangent e."""
    known = {v.attrs[0]: v for f in r.formulas for v in variables(f)}
    return [*(known[k] for k in range(INPUTS)), var(INPUTS, r.dim, r.cat)]


def gradients(r):
    """The gradients of sum(e * r) by x, y and p."""
    *wrt, e = inputs(r)
    return [grad([r], v, [e], 100) for v in wrt]


# -- both orders against differences -----------------------------------------------------------------------------------


def dense_value(case, given):
    """The result by NumPy alone: (rows, components)."""
    r = case.reduced
    f, g = (node and np.broadcast_to(dense(node, given), (M, N, node.dim)) for node in (r.node, r.weight))
    result = REDUCTIONS[r.name].numpy(f, g, r.axis, r.parameter)
    first = result[0] if isinstance(result, tuple) else result
    return first.reshape(len(first), -1)


def check_first_order(case):
    r, given = case.reduced, case.arrays()
    e = random_like([dense_value(case, given)], 2)[0]
    finite = np.isfinite(dense_value(case, given))  # fewer than K terms: the rest is infinite, and constant
    directions = random_like(given)
    wanted = slope(lambda a: (e * np.where(finite, dense_value(case, a), 0)).sum(), given, directions)
    assert abs(wanted) > 1e-3
    got = sum(inner(value(g, [*given, e]), u) for g, u in zip(gradients(r), directions, strict=True))
    close(got, wanted, 1e-7)


def check_second_order(case):
    """The gradient of sum(w * gradient), by all variables and by the cotangent, against differences of that sum."""
    r = case.reduced
    wrt, first = inputs(r), gradients(r)
    given = case.arrays()
    given = [*given, random_like([value(r, given)], 2)[0]]
    w = [random_like([value(g, given)], 3 + k)[0] for k, g in enumerate(first)]
    cotangents = [var(len(wrt) + k, g.dim, g.cat) for k, g in enumerate(first)]
    directions = random_like(given)
    everything = [*given, *w]

    def product(arrays):
        return sum((value(g, arrays) * c).sum() for g, c in zip(first, w, strict=True))

    second = [grad(first, v, cotangents) for v in wrt]
    got = sum(inner(value(g, everything), u) for g, u in zip(second, directions, strict=True))
    close(got, slope(product, given, directions))


@pytest.mark.parametrize("case", marked(cases(SMOOTH), few))
def test_first_order(case):
    check_first_order(case)


@pytest.mark.parametrize("case", marked(cases(SMOOTH)))
def test_second_order(case):
    check_second_order(case)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["LogSumExp", "SumSoftMaxWeight", "Variance", "Prod", "Max_SumShiftExpWeight"])
def test_third_order(name):
    """By one variable each time, against differences of the second order."""
    case = next(c for c in cases([name], (1,)) if c.weight in ("", "one"))
    r = case.reduced
    x, y, _, e = inputs(r)
    second = grad([grad([r], x, [e])], y, [var(4, 1, 0)], 100)
    third = grad([second], x, [var(5, 1, 1)], 100)
    shapes = ((M, r.dim), (M, 1), (N, 1))
    given = [*case.arrays(), *(np.random.default_rng(5).uniform(-1, 1, shape) for shape in shapes)]
    direction = [np.zeros_like(a) for a in given]
    direction[0] = random_like(given)[0]
    wanted = slope(lambda a: (value(second, a) * a[5]).sum(), given, direction)
    assert abs(wanted) > 1e-3
    close(inner(value(third, given), direction[0]), wanted)


@pytest.mark.parametrize("name", ["LogSumExp", "SumSoftMaxWeight", "Variance", "Max_SumShiftExpWeight"])
def test_mixed_second_derivatives_are_symmetric(name):
    """The derivative by y, along u, of that by x, along w, is the same the other way round."""
    case = next(c for c in cases([name], (3,)) if c.weight in ("", "many"))
    r = case.reduced
    x, y, _, e = inputs(r)
    given = case.arrays()
    e_array, w, u = random_like([value(r, given), *given[:2]], 6)
    everything = [*given, e_array, w, u]
    xy = grad([grad([r], x, [e])], y, [var(4, 3, 0)], 100)
    yx = grad([grad([r], y, [e])], x, [var(5, 3, 1)], 100)
    close(inner(value(xy, everything), u), inner(value(yx, everything), w), 1e-11)


# -- forward mode ------------------------------------------------------------------------------------------------------


def check_forward(case):
    """The tangent against differences; of the gradient, too."""
    r, given = case.reduced, case.arrays()
    for k, v in enumerate(inputs(r)[:INPUTS]):
        u = random_like(given)[k]
        along = [u if n == k else np.zeros_like(a) for n, a in enumerate(given)]
        tangent = diff(r, v, var(INPUTS, v.dim, v.attrs[1]), 100)
        before, after = (dense_value(case, moved(given, along, s)) for s in (-STEP, STEP))
        with np.errstate(invalid="ignore"):
            wanted = np.nan_to_num((after - before) / (2 * STEP))  # places of no term: inf - inf
        got = value(tangent, [*given, u])
        assert (tangent.cat, got.shape) == (r.cat, wanted.shape)
        np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("case", marked(cases(SMOOTH)))
def test_forward_mode(case):
    check_forward(case)


@pytest.mark.parametrize("name", ["LogSumExp", "SumSoftMaxWeight", "Variance", "Prod", "Max_SumShiftExp", "KMin"])
def test_forward_mode_of_a_gradient(name):
    """<w, d(gradient) u> is <gradient of <w, gradient>, u>."""
    case = next(c for c in cases([name]) if c.weight in ("", "many"))
    r = case.reduced
    x, y, _, e = inputs(r)
    given = case.arrays()
    everything = [*given, random_like([value(r, given)], 2)[0], *random_like(given[:2], 3)]
    first = grad([r], x, [e])
    forward = value(diff(first, y, var(5, y.dim, 1), 100), everything)
    backward = value(grad([first], y, [var(4, x.dim, 0)], 100), everything)
    close((everything[4] * forward).sum(), (everything[5] * backward).sum(), 1e-11)


SPECIAL = st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 1.0, 2.0])


@settings(max_examples=25)
@given(
    name=st.sampled_from([n for n in SMOOTH if not {"m", "q"}.isdisjoint(f.name for f in Case(n, 1).reduced.fields)]),
    terms=st.lists(SPECIAL, min_size=N, max_size=N),
)
def test_both_modes_agree_whatever_the_terms(name, terms):
    """With ties, and with terms that count for nothing."""
    case = Case(
        name, 1, parameter=2 if name in KEPT else None, weight="one" if "G" in REDUCTIONS[name].signature else ""
    )
    weight = case.weight and var(2, 1, 1)
    y, sign = var(1, 1, 1), -1 if "Min" in name else 1
    r = Reduced(
        name, y if sign > 0 else formula("-y", ["x = Vi(1)", "y = Vj(1)"]).node, 0, case.parameter, weight or None
    )
    rng = np.random.default_rng(0)
    arrays = [
        np.zeros((1, 1)),
        sign * np.reshape(terms, (N, 1)),
        rng.uniform(1, 2, (N, 1)),
        rng.normal(size=(1, r.dim)),
    ]
    u = rng.normal(size=(N, 1))
    gradient = value(grad([r], y, [var(3, r.dim, 0)], 100), arrays, (1, N))
    tangent = value(diff(r, y, var(4, 1, 1), 100), [*arrays, u], (1, N))
    assert np.isfinite(gradient).all()
    close((gradient * u).sum(), (tangent * arrays[3]).sum(), 1e-12)
    for second in (y, var(3, r.dim, 0)):
        again = grad([grad([r], y, [var(3, r.dim, 0)], 100)], second, [var(4, 1, 1)], 100)
        assert np.isfinite(value(again, [*arrays, u], (1, N))).all()


# -- what receives nothing ---------------------------------------------------------------------------------------------

LOGS = ["s = Vi(1)", "t = Vj(1)", "x = Vi(1)", "y = Vj(1)", "e = Vi({})"]
SHARES = [name for name in SMOOTH if "exponentials" in REDUCTIONS[name].monoid or REDUCTIONS[name].monoid == "softmax"]
EXTREMA = [name for name in SMOOTH if REDUCTIONS[name].monoid in ("min", "max", "least", "greatest")]


def logarithms(name, text="Log(s) + Log(t) + x * y"):
    """A reduction whose terms are -inf (inf, of a minimum) where s or t are 0, with infinite derivatives there."""
    takes = REDUCTIONS[name]
    K = 2 if name in KEPT else None
    aliases = [a.format(1) for a in LOGS]
    node = formula(text if "Min" not in name else f"-({text})", aliases).node
    weight = formula("1 + Square(y)", aliases).node if "G" in takes.signature else None
    return Reduced(name, node, 0, K, weight)


def check_rows_that_are_left_out(name, s, t, text="Log(s) + Log(t) + x * y"):
    """Gradients of both orders are 0 in rows without a term, and elsewhere those without the terms left out."""
    r = logarithms(name, text)
    wrt = [var(0, 1, 0), var(1, 1, 1), var(2, 1, 0), var(3, 1, 1)]
    e = var(4, r.dim, 0)
    rng = np.random.default_rng(0)
    x, y, array = rng.normal(size=(M, 1)), rng.normal(size=(N, 1)), rng.normal(size=(M, r.dim))
    rows, columns = s[:, 0] > 0, t[:, 0] > 0
    w = [rng.normal(size=(n, 1)) for n in (M, N, M, N)]
    first = [grad([r], v, [e], 100) for v in wrt]
    cotangents = [var(5 + k, 1, v.attrs[1]) for k, v in enumerate(wrt)]
    second = [grad(first, v, cotangents, 100) for v in [*wrt, e]]
    whole = [s, t, x, y, array, *w]
    kept = [a[columns] if k in (1, 3, 6, 8) else a[rows] for k, a in enumerate(whole)]
    for g in [*first, *second]:
        got = value(g, whole)
        assert np.isfinite(got).all()
        wanted = np.zeros_like(got)
        wanted[rows if g.cat == 0 else columns] = value(g, kept, (rows.sum(), columns.sum()))
        np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [*SHARES, *EXTREMA])
def test_infinite_terms_that_count_for_nothing(name):
    s, t = np.full((M, 1), 0.7), np.linspace(0.5, 2, N)[:, None]
    s[1] = s[3] = t[2] = 0
    check_rows_that_are_left_out(name, s, t)


@pytest.mark.parametrize("name", EXTREMA)
def test_terms_that_are_no_numbers_are_passed_over(name):
    """Behind them, derivatives are NaN."""
    s, t = np.full((M, 1), 0.7), np.linspace(0.5, 2, N)[:, None]
    s[1] = t[2] = -1
    check_rows_that_are_left_out(name, s, t)


@pytest.mark.parametrize("name", FLAT)
def test_row_numbers_do_not_change(name):
    case = Case(name, parameter=2 if name in KEPT else None)
    *wrt, e = inputs(case.reduced)
    for v in wrt:
        g = grad([case.reduced], v, [e])
        assert not g.saved
        assert not value(g, [*case.arrays(), np.ones((M, e.dim))]).any()
    assert not value(diff(case.reduced, wrt[0], wrt[0]), case.arrays()).any()


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", EXTREMA)
def test_of_equal_terms_the_first_receives_the_cotangent(name, axis):
    K = 3 if name in KEPT else None
    best = -1.0 if "Min" in name else 1.0
    terms = np.array([0.0, best, 0, best, 0, 0, best, best])[:, None]
    r = Reduced(name, var(0, 1, axis), 1 - axis, K)
    e = np.arange(1.0, 1 + r.dim)[None]
    sizes = (1, 8) if axis == 1 else (8, 1)
    got = value(grad([r], var(0, 1, axis), [var(1, r.dim, 1 - axis)]), [terms, e], sizes)
    wanted = np.zeros((8, 1))
    wanted[np.flatnonzero(terms[:, 0])[: r.dim], 0] = e[0]
    np.testing.assert_array_equal(got, wanted)


def test_far_rows_are_told_apart():
    """Row numbers that differ in the lower half alone, or in the higher one alone; in float32."""
    r = Reduced("Max", var(0, 1, 1), 0)
    g = grad([r], var(0, 1, 1), [var(1, 1, 0)])
    rows = [5, 2**20 + 5, 2**20 + 6, 2**24 + 1]
    terms = np.zeros((2**24 + 2, 1), np.float32)
    ((v, _),) = g.saved
    for best in rows:
        spec = KernelSpec.of(g.node, "Sum", g.axis, "float32", "float64")
        halves = np.array([[best >> 20, best & 0xFFFFF]], np.float32)
        for j in rows:
            arrays = {0: terms[:1], 1: np.ones((1, 1), np.float32), v.ind: halves}
            state = engine.fold(spec, "numpy", empty(spec, 1), [arrays[k] for k in range(3)], 1, 1, i0=j)
            assert engine.finalize(spec, state, Output.of("Sum"))[0].item() == (j == best)


# -- products ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zeros", [0, 1, 2, 3])
def test_products_with_zeros(zeros):
    """The product of the others, of all others but two, and what becomes of it with zeros among them."""
    y, e = var(0, 1, 1), var(1, 1, 0)
    terms = np.array([2.0, -1.5, 0.5, 3.0, 4.0])
    terms[[1, 4, 2][:zeros]] = 0
    n = len(terms)
    first = grad([Reduced("Prod", y, 0)], y, [e])
    second = grad([first], y, [var(2, 1, 1)], 100)
    tangent = diff(first, y, var(2, 1, 1), 100)
    arrays = [terms[:, None], np.full((1, 1), 0.5)]
    got = value(first, arrays, (1, n))[:, 0]
    others = np.array([np.prod(np.delete(terms, j)) for j in range(n)])
    np.testing.assert_allclose(got, 0.5 * others, rtol=1e-14)
    for j in range(n):
        row = np.array([0 if k == j else np.prod(np.delete(terms, [j, k])) for k in range(n)])
        w = np.eye(n)[:, [j]]
        np.testing.assert_allclose(value(second, [*arrays, w], (1, n))[:, 0], 0.5 * row, atol=1e-14)
        np.testing.assert_allclose(value(tangent, [*arrays, w], (1, n))[:, 0], 0.5 * row, atol=1e-14)
    third = grad([second], y, [var(3, 1, 1)], 100)
    v, w = np.random.default_rng(1).normal(size=(2, n, 1))
    rest = [
        np.prod(np.delete(terms, [*jkl])) * v[jkl[0], 0] * w[jkl[1], 0] for jkl in itertools.permutations(range(n), 3)
    ]
    if zeros < 3:  # the third derivatives by three terms that are 0 are left out
        close(value(third, [*arrays, v, w], (1, n)).sum(), 0.5 * sum(rest), 1e-13)
    by_e = grad([first], e, [var(2, 1, 1)], 100)
    close(value(by_e, [*arrays, np.ones((n, 1))], (1, n)).item(), others.sum(), 1e-14)


# -- what a gradient is made of ----------------------------------------------------------------------------------------


def test_what_is_saved():
    aliases = ["x = Vi(3)", "y = Vj(3)", "e = Vi(1)", "w = Vi(3)", "q = Pm(7)"]
    text = "LogSumExp_Reduction(SqDist(x, y), 0)"
    f, r = reduction(text, aliases)
    assert r.saved == ()
    _, g = reduction(f"Grad({text}, x, e)", aliases)
    assert (g.name, g.cat, g.dim) == ("Sum", 0, 3)
    assert g.saved == ((Variable(5, 1, 0), Saved(r, "s")), (Variable(6, 1, 0), Saved(r, "m")))
    _, h = reduction(f"Grad(Grad({text}, x, e), y, w)", aliases)
    assert (h.name, h.cat) == ("Sum", 1)
    assert h.saved[:2] == g.saved  # the same ones, and at the same positions
    ((v, last),) = h.saved[2:]
    assert (v, last.field, last.reduced.name, last.reduced.cat) == (Variable(7, 1, 0), "", "Sum", 0)
    assert last.reduced.saved == g.saved
    assert f.variables == reduction(f"Grad({text}, x, e)", aliases)[0].variables
    for made in (r, g, h):
        assert pickle.loads(pickle.dumps(made)) == made
        assert hash(pickle.loads(pickle.dumps(made))) == hash(made)


def test_row_numbers_are_saved_in_halves():
    aliases = ["x = Vi(2)", "y = Vj(2)"]
    for text, dim, of in [("KMax_Reduction(x*y, 3, 1)", 12, "KMax"), ("Max_Reduction(x*y, 1)", 4, "ArgMax"),
                          ("Max_SumShiftExp_Reduction((x|y), 1)", 2, "ArgMax")]:  # fmt: skip
        _, g = reduction(f"Grad({text}, y)", aliases)
        (found,) = [(v.dim, v.cat, s.reduced.name) for v, s in g.saved if s.field == "q"]
        assert found == (dim, 1, of)


def test_saved_variables_come_behind_those_that_read_nothing():
    """By position: whatever is read stands before."""
    aliases = ["x = Vi(1)", "y = Vj(1)"]
    _, r = reduction("Grad(Grad(Grad(SumSoftMaxWeight_Reduction(x*y, 0, y), x), y), x)", aliases)
    todo = [r]
    positions = set()
    while todo:
        reader = todo.pop()
        for v, s in reader.saved:
            assert all(inner.ind < v.ind for inner, _ in s.reduced.saved)
            positions.add(v.ind)
            todo.append(s.reduced)
        assert {v for f in reader.formulas for v in variables(f) if v.attrs[0] >= 5} == {
            var(v.ind, v.dim, v.cat) for v, _ in reader.saved
        }
    assert sorted(positions) == list(range(5, 5 + len(positions)))  # x, y and three cotangents


def test_numbered_is_the_same_at_other_positions():
    case = Case("LogSumExp", 1)
    x, _, _, e = inputs(case.reduced)
    g = grad([case.reduced], x, [e])
    assert [v.ind for v, _ in g.saved] == [4, 5]
    other = numbered(g, 40)
    assert [v.ind for v, _ in other.saved] == [40, 41]
    assert numbered(other, 4) == g
    arrays = [*case.arrays(), np.ones((M, 1))]
    np.testing.assert_array_equal(value(g, arrays), value(other, arrays))


def test_the_gradient_of_several_is_the_sum_of_theirs():
    case, other = Case("LogSumExp", 1), Case("Max", 1)
    x, _, _, e = inputs(case.reduced)
    d = var(4, 1, 0)
    arrays = [*case.arrays(), *np.random.default_rng(0).normal(size=(2, M, 1))]
    both = grad([case.reduced, other.reduced], x, [e, d])
    one, two = grad([case.reduced], x, [e], 50), grad([other.reduced], x, [d], 50)
    np.testing.assert_allclose(value(both, arrays), value(one, arrays) + value(two, arrays), rtol=1e-14)
    assert grad([case.reduced, other.reduced], x, [e, None], 50) == one
    nothing = grad([case.reduced], x, [None])
    assert (nothing.node, nothing.saved) == (const(0), ())


def test_a_branch_without_the_variable_is_not_computed():
    aliases = ["x = Vi(1)", "y = Vj(1)", "z = Vj(1)", "e = Vi(1)", "w = Vj(1)"]
    _, g = reduction("Grad(Grad(SumSoftMaxWeight_Reduction(x, 0, y), y, e), z, w)", aliases)
    assert (g.node, g.saved) == (const(0), ())
    _, g = reduction("Grad(Grad(SumSoftMaxWeight_Reduction(x, 0, y), y, e), e, w)", aliases)
    assert {s.field for _, s in g.saved} == {"z", "m"}  # what was saved does not depend on e


# -- these checks can fail ---------------------------------------------------------------------------------------------

_EXP = "Exp(f - m)"
WRONG = [  # reduction, what is replaced in its pullbacks, which check sees it
    ("LogSumExp", {"": (f"ZeroMult({_EXP}, e * g)", f"ZeroMult({_EXP}, e)")}, check_first_order),
    ("LogSumExp", {"": ("ZeroMult(Exp(f - m) / s, e)", "ZeroMult(Exp(f - m) / s, e)")}, check_first_order),
    ("LogSumExp", {"s": (None, None)}, check_second_order),
    ("LogSumExp", {"m": ("Routed(e, q, parts, 1)", None)}, check_second_order),
    ("SumSoftMaxWeight", {"": (f"ZeroMult({_EXP} / z, e * g)", f"ZeroMult({_EXP} / z, e)")}, check_first_order),
    ("SumSoftMaxWeight", {"z": (None, None)}, check_second_order),
    ("Max_SumShiftExp", {"": (f"{_EXP} * e1", None)}, check_first_order),
    ("Max_SumShiftExp", {"s": (f"{_EXP} * e", None)}, check_second_order),
    ("Max_SumShiftExp", {"m": (None, None)}, check_second_order),
    ("Max", {"": ("e", None)}, check_first_order),
    ("KMin", {"": ("Routed(e, q, parts + 1, D)", None)}, check_first_order),
    ("Mean", {"": ("e", None)}, check_first_order),
    ("Variance", {"": ("2 * e * (f - a) / n", None)}, check_first_order),
    ("Variance", {"a": (None, None)}, check_second_order),
    ("Prod", {"": ("e * p / Square(f)", None)}, check_first_order),
    ("Sum", {"": ("2 * e", None)}, check_first_order),
]


@pytest.mark.parametrize(("name", "pullbacks", "check"), WRONG, ids=[f"{n}-{next(iter(p))}" for n, p, _ in WRONG])
def test_a_wrong_pullback_is_found(name, pullbacks, check, monkeypatch):
    entry = REDUCTIONS[name]
    parameter = {"": None, "K": 3, "ddof": 1}[entry.parameter]
    case = Case(name, 3, 1, parameter, "many" if "G" in entry.signature else "")
    check(case)
    also = {"q": ("ArgMax", "q")} if name == "LogSumExp" else entry.also
    changed = dataclasses.replace(entry, pullbacks={**entry.pullbacks, **pullbacks}, also=also)
    monkeypatch.setitem(REDUCTIONS, name, changed)
    with pytest.raises(AssertionError):
        check(case)


def test_a_tangent_that_is_wrong_is_found(monkeypatch):
    check_forward(Case("Mean"))
    changed = dataclasses.replace(REDUCTIONS["Mean"], pullbacks={"": ("2 * e / n", None)})
    monkeypatch.setitem(REDUCTIONS, "Mean", changed)
    with pytest.raises(AssertionError):
        check_forward(Case("Mean"))


@pytest.mark.parametrize("text", ["e * Exp(f - m)", "e / s"])
def test_rows_without_a_term_that_become_nan_are_found(text, monkeypatch):
    entry = REDUCTIONS["LogSumExp"]
    monkeypatch.setitem(REDUCTIONS, "LogSumExp", dataclasses.replace(entry, pullbacks={"": (text, text)}))
    s, t = np.full((M, 1), 0.7), np.ones((N, 1))
    s[1] = 0
    with pytest.raises(AssertionError):
        check_rows_that_are_left_out("LogSumExp", s, t)


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_a_text_that_mentions_what_there_is_not(monkeypatch):
    monkeypatch.setitem(REDUCTIONS, "Sum", dataclasses.replace(REDUCTIONS["Sum"], pullbacks={"": ("e * h", None)}))
    with pytest.raises(EntryError) as caught:
        grad([Reduced("Sum", var(0, 1, 0), 0)], var(0, 1, 0), [var(1, 1, 0)])
    known = "s, out, e0, e, f, g, D, K, inf, parts"
    assert str(caught.value) == f"the entry Sum: 'h' is none of {known}, in 'e * h'"


@pytest.mark.parametrize("name", ["Any", "All", "Count", "Histogram"])
def test_reductions_without_a_derivative(name):
    r = Reduced(name, var(0, 1, 0), 0, (0.0, 1.0) if name == "Histogram" else None)
    for make in (lambda: grad([r], var(0, 1, 0), [var(1, 1, 0)]), lambda: diff(r, var(0, 1, 0), var(1, 1, 0))):
        with pytest.raises(DerivativeError, match=f"^{name}_Reduction has no derivative\n"):
            make()


def test_cotangents_that_do_not_fit():
    r = Reduced("KMin", var(0, 2, 1), 0, 3)
    with pytest.raises(DimensionError) as caught:
        grad([r], var(0, 2, 1), [var(1, 2, 0)])
    assert str(caught.value) == "the cotangent must be Vi(6), as the result of the reduction, got Vi(2)"
    with pytest.raises(ArgumentError) as caught:
        grad([r], var(0, 2, 1), [var(1, 6, 1)])
    assert str(caught.value) == "the cotangent must be Vi(6), as the result of the reduction, got Vj(6)"
