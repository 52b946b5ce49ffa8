"""Every entry of the table of operations: value, broadcasting, special values, derivatives of both orders."""

import dataclasses
import re

import numpy as np
import pytest

from dred.formula import derive
from dred.formula.language import formula
from dred.formula.node import const, var
from dred.formula.op import ANY, Op, length
from dred.formula.ops import OPS
from dred.formula.oracle import dense
from dred.formula.syntax import parse
from dred.kernel import cpu, engine, interpret, llvm_math
from dred.kernel.output import Output, empty
from dred.kernel.primitives import PRIMITIVES
from dred.kernel.spec import KernelSpec
from tests.formula import checks

TYPES = ("float64", "float32")
WITH_ARGUMENTS = [name for name, op in OPS.items() if op.args]
LINEAR = [name for name, op in OPS.items() if op.linear]
CONSTANT = [name for name, op in OPS.items() if not op.args]
# entries whose arguments may be of dimension 1, and each place where one can be
BROADCAST = [(name, k) for name, op in OPS.items() if op.example is None and len(op.args) > 1
             for k in range(len(op.args))]  # fmt: skip


def with_scalar(op, k):
    """Dims of a call whose argument k is a scalar."""
    return tuple(1 if j == k else d for j, d in enumerate(checks.example(op)[0]))


# -- the entries themselves --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPS)
def test_entry_is_complete(name):
    op = OPS[name]
    assert op.name == name
    assert op.doc
    assert "\n" not in op.doc
    assert bool(op.meaning) != bool(op.macro), "either a meaning, or short for a formula"
    dims, attrs = checks.example(op)
    assert (len(dims), len(attrs)) == (len(op.args), len(op.attrs))
    vjp, macro = (text(dims, attrs) if callable(text) else text for text in (op.vjp, op.macro))
    ways = [bool(op.partial), bool(vjp), bool(macro)].count(True)
    assert ways == 1 if op.args or macro else ways == 0, "one way to differentiate"
    assert len(op.partial or vjp or op.args) == len(op.args)
    assert len(op.domain or op.args) == len(op.args)
    for text in (*op.partial, *vjp, macro):
        assert not text or parse(text).steps
    for given, _ in op.special:
        assert len(given) == len(op.args)


@pytest.mark.parametrize("name", [name for name, op in OPS.items() if isinstance(op.meaning, str) and op.meaning])
def test_meaning_uses_primitives_only(name):
    calls = {word for word in re.findall(r"([A-Za-z_]\w*)\(", OPS[name].meaning)}
    assert calls <= set(PRIMITIVES)


def test_methods_differ():
    methods = [op.method for op in OPS.values()]
    assert sorted(methods) == sorted(set(methods))


# -- values ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", OPS)
def test_value(name, dtype, axis):
    checks.check_value(OPS[name], dtype, axis)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("name", "k"), BROADCAST)
def test_value_with_a_scalar(name, k, dtype):
    checks.check_value(OPS[name], dtype, dims=with_scalar(OPS[name], k))


@pytest.mark.parametrize("backend", ["numpy", "cpu"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", [name for name, op in OPS.items() if op.special])
def test_special_values(name, dtype, backend):
    checks.check_special(OPS[name], dtype, backend)


@pytest.mark.parametrize("backend", ["numpy", "cpu"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", WITH_ARGUMENTS)
def test_extreme_values(name, dtype, backend):
    checks.check_extremes(OPS[name], dtype, backend)


# -- derivatives -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_ARGUMENTS)
def test_gradient(name):
    checks.check_gradient(OPS[name])


@pytest.mark.parametrize(("name", "k"), BROADCAST)
def test_gradient_with_a_scalar(name, k):
    checks.check_gradient(OPS[name], with_scalar(OPS[name], k))


@pytest.mark.parametrize("name", WITH_ARGUMENTS)
def test_second_order(name):
    checks.check_second_order(OPS[name])


@pytest.mark.parametrize("name", WITH_ARGUMENTS)
def test_forward_mode(name):
    checks.check_forward(OPS[name])


@pytest.mark.parametrize(("name", "k"), BROADCAST)
def test_forward_mode_with_a_scalar(name, k):
    checks.check_forward(OPS[name], with_scalar(OPS[name], k))


@pytest.mark.parametrize("name", WITH_ARGUMENTS)
def test_forward_mode_of_the_gradient(name):
    checks.check_forward_of_gradient(OPS[name])


@pytest.mark.parametrize("name", LINEAR)
def test_adjoint(name):
    checks.check_adjoint(OPS[name])


# -- by row number -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "n"), [(1, 1), (1, 40), (3, 1), (40, 1), (3, 40), (40, 3)])
def test_routing_and_placing(k, n):
    """Values beside the references, each the transpose of the other, and what is not chosen may be NaN."""
    rng = np.random.default_rng(0)
    q = rng.integers(0, 2, (checks.M, 2 * k * n)).astype(float)  # halves 0 and 1: a quarter is the row looked for
    e, g, parts = rng.normal(size=(checks.M, k * n)), rng.normal(size=(checks.N, n)), np.array([1.0, 0.0])
    chosen = (q[:, : k * n] == 1) & (q[:, k * n :] == 0)
    aliases = [f"e = Vi({k * n})", f"q = Vi({2 * k * n})", f"g = Vj({n})", "parts = Pm(2)"]
    arrays = [np.where(chosen, e, np.nan), q, g, parts]
    routed = formula(f"Routed(e, q, parts, {n})", aliases).node
    placed = formula(f"Placed(g, q, parts, {k})", aliases).node
    wanted = np.where(chosen, e, 0).reshape(-1, k, n).sum(1)
    np.testing.assert_allclose(dense(routed, arrays)[:, 0], wanted, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(checks.reduced(routed, arrays), checks.N * wanted, rtol=1e-13, atol=1e-13)
    wanted = np.where(chosen, np.tile(g.sum(0), k), 0)
    np.testing.assert_allclose(dense(placed, arrays).sum(1), wanted, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(checks.reduced(placed, arrays), wanted, rtol=1e-13, atol=1e-13)
    for node, v, back in ((routed, var(0, k * n, 0), placed), (placed, var(2, n, 1), routed)):
        w = var(2, n, 1) if node is routed else var(0, k * n, 0)
        assert derive.vjp(node, [v], w) == (back,)


def test_halves_of_row_numbers():
    first = 3 * 2**20 - 2
    for cat, name in ((1, "IndexJParts"), (0, "IndexIParts")):
        node = formula(f"{name}() * Pm(0, 1)", []).node
        for dtype in TYPES:
            spec = KernelSpec.of(node, "Sum", cat, dtype, "float64")
            for row in range(first, first + 4):
                state = engine.fold(spec, "numpy", empty(spec, 1), [np.ones(1, dtype)], 1, 1, j0=row)
                (got,) = engine.finalize(spec, state, Output.of("Sum"))
                np.testing.assert_array_equal(got, [[row // 2**20, row % 2**20]])


# -- these checks can fail ---------------------------------------------------------------------------------------------


@pytest.fixture
def corrupt(monkeypatch):
    """Replace fields of an entry of the table; kernels made from it before are forgotten, and those made now too."""

    def change(name, **fields):
        monkeypatch.setitem(OPS, name, dataclasses.replace(OPS[name], **fields))
        return OPS[name]

    interpret._programs.clear()
    yield change
    interpret._programs.clear()


def _no_first_component(c, m):
    return c.fold(c.dims[0] - 1, lambda k: c.arg(0, k.shifted(1)))


@pytest.mark.parametrize(
    ("check", "name", "fields"),
    [
        (checks.check_value, "Exp", {"numpy": lambda f: np.exp(f) * (1 + 1e-6)}),
        (checks.check_value, "Exp", {"meaning": "exp(f) * 1.000001"}),
        (checks.check_value, "Sum", {"meaning": _no_first_component}),
        (checks.check_value, "Divide", {"meaning": "g / f"}),
        (checks.check_value, "SqDist", {"macro": "Sum(Square(f + g))"}),
        (checks.check_special, "Exp", {"special": (((0.0,), 2.0),)}),
        (checks.check_special, "Rsqrt", {"meaning": "1 / sqrt(f)"}),
        (checks.check_special, "Sign", {"numpy": np.sign}),
        (checks.check_extremes, "LessOrEqual", {"meaning": "select(g < f, 0, 1)"}),
        (checks.check_extremes, "Mult", {"meaning": "f * g + 0 * f"}),
        (checks.check_gradient, "Exp", {"partial": ("f",)}),
        (checks.check_gradient, "Divide", {"partial": ("1 / g", "y / g")}),
        (checks.check_gradient, "Sin", {"partial": (None,)}),
        (checks.check_gradient, "Concat", {"vjp": ("Extract(e, 0, dim(f))", "Extract(e, 0, dim(g))")}),
        (checks.check_adjoint, "Scalprod", {"vjp": ("e * g", "e * g")}),
        (checks.check_adjoint, "ElemT", {"vjp": ("Sum(e)",)}),
        (checks.check_gradient, "Routed", {"vjp": ("Placed(e, q + 1, parts, dim(f) / n)", None, None)}),
        (checks.check_value, "Placed", {"numpy": lambda f, q, parts, k: np.concatenate([f] * k, -1)}),
    ],
    ids=lambda v: v if isinstance(v, str) else ",".join(v) if isinstance(v, dict) else v.__name__,
)
def test_a_wrong_entry_is_caught(corrupt, check, name, fields):
    check(OPS[name])
    interpret._programs.clear()
    op = corrupt(name, **fields)
    with pytest.raises(AssertionError):
        check(op)


def test_a_wrong_second_derivative_is_caught(corrupt):
    corrupt("Cos", partial=("Sin(f)",))
    checks.check_gradient(OPS["Sin"])
    with pytest.raises(AssertionError):
        checks.check_second_order(OPS["Sin"])


def test_a_cotangent_that_is_not_summed_is_caught(monkeypatch):
    def first(node, dim):
        return node if node.dim == dim else derive.build("Elem", (node,), (0,))

    monkeypatch.setattr(derive, "fit", first)
    checks.check_gradient(OPS["Mult"])
    with pytest.raises(AssertionError):
        checks.check_gradient(OPS["Mult"], (1, 3))


def test_a_new_entry_is_all_that_a_new_operation_needs(monkeypatch):
    """Value, derivatives, parser and kernels follow from the entry; so do its tests."""

    def meaning(c, m):
        f = c.arg(0, m)
        return c.prim("mul", c.const(c.attrs[0]), c.prim("mul", f, c.prim("mul", f, f)))

    cube = Op("Cube(f; n)", "n * f^3", lambda f, n: n * f**3, meaning, ("3 * n * Square(f)",),
              domain=(ANY,), example=((3,), (2,)), special=(((2.0,), 16.0),))  # fmt: skip
    monkeypatch.setitem(OPS, "Cube", cube)
    checks.check_value(cube)
    checks.check_special(cube)
    checks.check_extremes(cube)
    checks.check_gradient(cube)
    checks.check_second_order(cube)
    assert formula("Cube(x, 2)", ["x = Vi(3)"]).node.op == "Cube"


# -- constants ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("RatCst(1, 3)", 1 / 3),
        ("IntInv(3)", 1 / 3),
        ("1/3", 1 / 3),
        ("16777217", 16777217.0),
        ("IntCst(16777217)", 16777217.0),
        ("9007199254740993", 9007199254740992.0),
        ("0.1", 0.1),
        ("1/10 + 2/10 - 3/10", 0.0),
        ("1e-3", 1e-3),
        (".5e1", 5.0),
        ("2.", 2.0),
        ("-7", -7.0),
        ("2**100", 2.0**100),
        ("2**-3", 0.125),
        ("1e400", np.inf),
        ("-1e400", -np.inf),
        ("1e-400", 0.0),
        ("1e400 * 1e-400", 1.0),
    ],
)
@pytest.mark.parametrize("dtype", TYPES)
def test_constants_are_exact(text, value, dtype):
    node = formula(f"({text}) * p", ["p = Pm(1)"]).node
    with np.errstate(over="ignore"):
        wanted = np.asarray(value, dtype)
    with np.errstate(invalid="ignore"):
        assert dense(node, [[1.0]]).item() == value
    assert checks.reduced(node, [[1.0]], dtype=dtype, rows=(1, 1)).item() == wanted


def test_a_sum_of_constants_is_exact_where_floats_are_not():
    assert formula("0.1 + 0.2 - 0.3", []).node is const(0)


# -- kinks -------------------------------------------------------------------------------------------------------------

AT = np.array([[-2.0], [-1.0], [0.0], [1.0], [2.0]])
KINKS = {
    "Sqrt(x)": [np.nan, np.nan, 0, 0.5, 0.353553391],
    "Rsqrt(x)": [np.nan, np.nan, 0, -0.5, -0.176776695],
    "Abs(x)": [-1, -1, 0, 1, 1],
    "Norm2(x)": [-1, -1, 0, 1, 1],
    "Sign(x)": [0, 0, 0, 0, 0],
    "x < 0": [0, 0, 0, 0, 0],
    "Pow(x, 2)": [-4, -2, 0, 2, 4],
    "Pow(x, 0)": [0, 0, 0, 0, 0],
    "Pow(x, 3)": [12, 3, 0, 3, 12],
    "Sqrt(Square(x))": [-1, -1, 0, 1, 1],
    "Abs(Abs(x))": [-1, -1, 0, 1, 1],
    "Exp(-Norm2(x))": [np.exp(-2), np.exp(-1), 0, -np.exp(-1), -np.exp(-2)],
    "ReLU(x)": [0, 0, 1, 1, 1],
    "Step(x)": [0, 0, 0, 0, 0],
    "Floor(x)": [0, 0, 0, 0, 0],
    "Ceil(x)": [0, 0, 0, 0, 0],
    "Trunc(x)": [0, 0, 0, 0, 0],
    "Round(x, 0)": [0, 0, 0, 0, 0],
    "x == 1": [0, 0, 0, 0, 0],
    "Not(x)": [0, 0, 0, 0, 0],
    "And(x, 1)": [0, 0, 0, 0, 0],
    "OneHot(x, 3) | OneHot(1, 3)": [0, 0, 0, 0, 0],
    "ArgMax(Concat(x, -x))": [0, 0, 0, 0, 0],
    "ClampInt(x, -1, 1)": [0, 1, 1, 1, 0],
    "DiffClampInt(x, -1, 1)": [0, 0, 0, 0, 0],
    "Clamp(x, 1, -1)": [0, 0, 0, 0, 0],  # a > b: nowhere a <= x <= b
    "Clamp(0, x, 1)": [0, 0, 0, 1, 1],
    "Clamp(0, -1, x)": [1, 1, 0, 0, 0],
    "Acos(x)": [np.nan, 0, -1, 0, np.nan],
    "Asin(x)": [np.nan, 0, 1, 0, np.nan],
    "SinXDivX(x)": [0.435397775, 0.301168679, 0, -0.301168679, -0.435397775],
    "XLogX(x)": [np.nan, np.nan, -np.inf, 1, 1.693147181],
    "Max(Concat(x, -x))": [-1, -1, 1, 1, 1],
    "Min(Concat(x, -x))": [1, 1, 1, -1, -1],
    "IfElse(x, 3*x, 5*x)": [5, 5, 3, 3, 3],
    "IfElse(-x, 3*x, 5*x)": [3, 3, 3, 5, 5],
    "Hypot(x, 0)": [-1, -1, 0, 1, 1],
    "Normalize(x)": [0, 0, 0, 0, 0],
    "ComplexAbs(ComplexPair(x, 0))": [-1, -1, 0, 1, 1],
    "Mod(x, 2, 0)": [1, 1, 1, 1, 1],
    "Powf(x, 2)": [-4, -2, 0, 2, 4],
    "Powf(Abs(x), 0.5 + 0*x)": [-0.353553391, -0.5, np.nan, 0.5, 0.353553391],
}


@pytest.mark.parametrize("text", KINKS)
def test_derivatives_at_kinks(text):
    node = formula(f"Grad({text}, x, 1)", ["x = Vi(1)"]).node
    for got in (dense(node, [AT])[:, 0, 0] + np.zeros(5), checks.reduced(node, [AT], rows=(5, 1))[:, 0]):
        np.testing.assert_allclose(got, KINKS[text], rtol=1e-8)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("text", ["Norm2(x - y)", "Exp(-Norm2(x - y))", "Sqrt(SqDist(x, y))", "Sum(Abs(x - y))"])
def test_gradients_of_distances_are_finite_on_the_diagonal(text, axis):
    x = np.random.default_rng(0).normal(size=(6, 3))
    node = formula(f"Grad({text}, x, 1)", ["x = Vi(3)", "y = Vj(3)"]).node
    pairs = dense(node, [x, x])
    np.testing.assert_array_equal(pairs[np.arange(6), np.arange(6)], 0)
    assert np.isfinite(pairs).all()
    checks.close(checks.reduced(node, [x, x], axis, rows=(6, 6)), pairs.sum(axis), 1e-13)


@pytest.mark.parametrize(
    "text",
    ["Grad(Grad(Powf(f, g), g, 1), f, 1)", "Grad(Grad(Powf(f, g), f, 1), g, 1)", "Diff(Grad(Powf(f, g), g, 1), f, 1)"],
)
def test_mixed_derivatives_of_a_power_of_0(text):
    node = formula(text, ["f = Pm(1)", "g = Pm(1)"]).node
    assert dense(node, [[0.0], [2.0]]).item() == 0


@pytest.mark.parametrize(
    ("primitive", "wrong", "name"),
    [("ne", "one", "NotEqual"), ("eq", "ueq", "Equal"), ("le", "ule", "LessOrEqual"), ("round", "rint", "Round")],
)
def test_a_wrong_primitive_of_the_cpu_is_caught(primitive, wrong, name, monkeypatch):
    """At the special points, which the compiled kernel passes through, too."""
    row = PRIMITIVES[primitive]
    right = {"ne": "une", "eq": "oeq", "le": "ole", "round": "round"}[primitive]
    monkeypatch.setitem(PRIMITIVES, primitive, dataclasses.replace(row, llvm=row.llvm.replace(right, wrong)))
    monkeypatch.setattr(cpu, "_kernels", type(cpu._kernels)())
    monkeypatch.setitem(llvm_math._ARITY, "llvm.rint", 1)
    with pytest.raises(AssertionError):
        checks.check_special(OPS[name], "float64", "cpu")


VALUES_AT = np.array([[-2.5], [-1.0], [0.0], [1.0], [2.5]])
VALUES = {
    "Atan2(0 - x, -1)": [1.951302704, 2.356194490, np.pi, -2.356194490, -1.951302704],
    "ComplexAngle(Conj(ComplexPair(-1, x - x)))": [np.pi] * 5,
    "Rsqrt(x)": [np.nan, np.nan, 0, 1, 0.632455532],
    "Sqrt(x)": [np.nan, np.nan, 0, 1, 1.581138830],
    "Sign(x)": [-1, -1, 0, 1, 1],
    "Pow(x, 3)": [-15.625, -1, 0, 1, 15.625],
    "Pow(x, -1)": [-0.4, -1, np.inf, 1, 0.4],
    "Pow(x, 0)": [1, 1, 1, 1, 1],
    "Pow(x, 5)": [-97.65625, -1, 0, 1, 97.65625],
    "Pow(x, -3)": [-0.064, -1, np.inf, 1, 0.064],
    "Pow(x, -4)": [0.0256, 1, np.inf, 1, 0.0256],
    "Step(x)": [0, 0, 1, 1, 1],
    "Round(x, 0)": [-3, -1, 0, 1, 3],
    "Round(x / 10, 1)": [-0.3, -0.1, 0, 0.1, 0.3],
    "Round(10 * x, -1)": [-30, -10, 0, 10, 30],
    "Floor(x)": [-3, -1, 0, 1, 2],
    "Ceil(x)": [-2, -1, 0, 1, 3],
    "Trunc(x)": [-2, -1, 0, 1, 2],
    "XLogX(x)": [np.nan, np.nan, 0, 0, 2.290726830],
    "SinXDivX(x)": [0.239388858, 0.841470985, 1, 0.841470985, 0.239388858],
    "Mod(x, 2, 0)": [1.5, 1, 0, 1, 0.5],
    "Mod(x, 2, -1)": [-0.5, -1, 0, -1, 0.5],
    "IfElse(x, 10, 20)": [20, 20, 10, 10, 10],
    "ClampInt(x, -1, 2)": [-1, -1, 0, 1, 2],
    "Clamp(x, 2, -1)": [2, 2, 2, 2, -1],
    "Normalize(x)": [-1, -1, 0, 1, 1],
    "x ** 0.5": [np.nan, np.nan, 0, 1, 1.581138830],
    "x ** 2": [6.25, 1, 0, 1, 6.25],
    "Powf(x, 3)": [-15.625, -1, 0, 1, 15.625],
    "OneHot(x, 2) | Concat(1, 2)": [0, 1, 1, 2, 0],  # trunc(-1 + 1/2) is 0
    "ReLU(x)": [0, 0, 0, 1, 2.5],
    "Max(Concat(x, -x))": [2.5, 1, 0, 1, 2.5],
    "ArgMax(Concat(x, -x))": [1, 1, 0, 0, 0],
    "ArgMin(Concat(x, -x))": [0, 0, 0, 1, 1],
    "ComplexAngle(ComplexPair(x, 0))": [np.pi, np.pi, 0, 0, 0],
}


@pytest.mark.parametrize("text", VALUES)
def test_values_at_check_points(text):
    node = formula(text, ["x = Vi(1)"]).node
    got = checks.reduced(node, [VALUES_AT], rows=(5, 1))[:, 0]
    np.testing.assert_allclose(got, VALUES[text], rtol=1e-8)
    np.testing.assert_allclose(dense(node, [VALUES_AT])[:, 0, 0] + np.zeros(5), VALUES[text], rtol=1e-8)


# -- rules of dimension ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exponent", [-1_000_000, 999_999, 1_000_000])
def test_exponents_up_to_the_limit_keep_their_parity(exponent):
    node = formula(f"Pow(x, {exponent})", ["x = Vi(1)"]).node
    got = checks.reduced(node, [[[-1.0]]], dtype="float32", rows=(1, 1))
    assert got.item() == (-1) ** exponent


@pytest.mark.parametrize("n", [1, 1_000_000])
def test_dimensions_at_the_limits(n):
    assert length(n) == n
    assert formula(f"Zero({n})", []).node.dim == n


def test_a_gradient_by_a_variable_that_does_not_occur_is_zero():
    node = formula("Grad(Exp(x), y, x)", ["x = Vi(3)", "y = Vj(2)"]).node
    assert node.dim == 2
    np.testing.assert_array_equal(dense(node, [np.ones((1, 3)), np.ones((1, 2))]), 0)
    assert derive.grad(var(0, 3, 0), var(1, 3, 1), var(2, 3, 2)).dim == 3
