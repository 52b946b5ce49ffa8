"""Derivatives of whole formulas: both modes, the operations made of them, masks, and their size."""

import pickle

import numpy as np
import pytest
from hypothesis import assume, given

from dred.formula import derive
from dred.formula.derive import DERIVED, jvp, vjp
from dred.formula.language import read
from dred.formula.node import const, toposort, var, variables
from dred.formula.ops import OPS
from dred.formula.oracle import dense
from dred.formula.rewrite import build
from dred.kernel import interpret
from tests.formula import checks
from tests.formula.formulas import VARIABLES, formulas

M, N = checks.M, checks.N
DIMS = {"x": 3, "y": 3, "z": 4, "p": 1, "s": 1, "A": 9, "u": 3, "w": 3, "t": 7}
ALIASES = [f"{name} = {kind}({DIMS[name]})" for name, kind in zip(
    DIMS, ("Vi", "Vj", "Vi", "Pm", "Vj", "Pm", "Vi", "Pm", "Pm"), strict=True)]  # fmt: skip
VAR = {name: read(name, ALIASES) for name in DIMS}


def sample(seed=0):
    """Arrays for all variables; the knots t increase, and s lies among them."""
    rng = np.random.default_rng(seed)
    shapes = [((M, v.dim), (N, v.dim), (v.dim,))[v.attrs[1]] for v in VAR.values()]
    arrays = dict(zip(VAR, (rng.uniform(0.4, 2, shape) for shape in shapes), strict=True))
    arrays["t"] = np.linspace(0.1, 2.2, DIMS["t"]) + arrays["t"] / 10
    return list(arrays.values())


def pairs(node, arrays):
    """The oracle's value at every pair, (M, N, dim)."""
    return dense(node, arrays, (M, N)) + np.zeros((M, N, 1))


def agree(got, wanted, tolerance=1e-11):
    """Two formulas have the same values, by oracle and kernel, and the same dimension."""
    got, wanted = (read(f, ALIASES) if isinstance(f, str) else f for f in (got, wanted))
    assert got.dim == wanted.dim
    assert all(v.attrs[0] >= 0 for v in variables(got)), "no placeholder is left"
    arrays = sample()
    right = pairs(wanted, arrays)
    assert np.isfinite(right).all()
    checks.close(pairs(got, arrays), right, tolerance)
    checks.close(checks.reduced(got, arrays), right.sum(1), tolerance, np.abs(right).sum(1))


def moved(text, name, direction, step=checks.STEP):
    """Central difference of a formula along a direction of one variable."""
    node, k = read(text, ALIASES), list(DIMS).index(name)

    def value(h):
        arrays = sample()
        arrays[k] = arrays[k] + h * direction
        return pairs(node, arrays)

    return (value(step) - value(-step)) / (2 * step)


# -- identities --------------------------------------------------------------------------------------------------------

IDENTITIES = {
    "Divergence(Exp(x), x)": "Sum(Exp(x))",
    "Laplacian(Exp(-SqNorm2(x)), x)": "(4 * SqNorm2(x) - 6) * Exp(-SqNorm2(x))",
    "TraceOperator(x * y, x)": "Sum(y)",
    "Diff((x | x), x, u)": "2 * (x | u)",
    "Divergence(x * SqNorm2(x), x)": "5 * SqNorm2(x)",
    "Laplacian(Norm2(x - y), x)": "2 / Norm2(x - y)",
    # divergences
    "Divergence(x, x)": "3",
    "Divergence(y, x)": "0",
    "Divergence(p * x + y, x)": "3 * p",
    "Divergence(x * Sum(x), x)": "4 * Sum(x)",
    "Divergence(x / Norm2(x), x)": "2 / Norm2(x)",
    "Divergence(Normalize(x - y), x)": "2 / Norm2(x - y)",
    "Divergence(Powf(x, y), x)": "Sum(y * Powf(x, y - 1))",
    "Divergence(Pow(x, 5), x)": "5 * Sum(Pow(x, 4))",
    "Divergence(IfElse(x - y, x ** 2, x ** 3), x)": "Sum(IfElse(x - y, 2 * x, 3 * x ** 2))",
    "Divergence(Clamp(x, y, 1.5), x)": "Sum((y <= x) * (x <= 1.5))",
    "Divergence(Exp(p), p)": "Exp(p)",
    "Divergence(SumT(x | y, 3), x)": "Sum(y)",
    "Divergence(Atan2(x, y), x)": "Sum(y / (x ** 2 + y ** 2))",
    # those that go through operations that are not element-wise
    "Divergence(MatVecMult(A, x ** 2), x)": "2 * (Concat(Concat(Elem(A, 0), Elem(A, 4)), Elem(A, 8)) | x)",
    "Divergence(Concat(Elem(x, 1) * Elem(x, 0), Extract(x, 1, 2) ** 2), x)": "3 * Elem(x, 1) + 2 * Elem(x, 2)",
    "Divergence(Extract(Concat(y, Sin(x)), 2, 3), x)": "0",
    "Divergence(Extract(Concat(Sin(x), y), 0, 3), x)": "Sum(Cos(x))",
    "Divergence(ExtractT(Elem(x, 2) ** 3, 2, 3), x)": "3 * Elem(x, 2) ** 2",
    "Divergence(VecMatMult(x, TensorProd(x, y)), x)": "2 * (x | y)",
    # Laplacians
    "Laplacian(SqDist(x, y), x)": "6",
    "Laplacian(1 / Norm2(x - y), x)": "0",  # harmonic in three dimensions
    "Laplacian(Log(p), p)": "-1 / p ** 2",
    "Laplacian((x | MatVecMult(A, x)), x)": "2 * (Elem(A, 0) + Elem(A, 4) + Elem(A, 8))",
    "Laplacian(Exp(Sum(x)), x)": "3 * Exp(Sum(x))",
    "Laplacian(Laplacian(Exp(Sum(x) / 2), x), x)": "9/16 * Exp(Sum(x) / 2)",
    "Laplacian(Sum(Extract(x, 0, 2) ** 3) * Elem(x, 2), x)": "6 * Sum(Extract(x, 0, 2)) * Elem(x, 2)",
    "Laplacian(Sin(Sum(y)), x)": "0",
    # directions
    "Diff(Exp(x), x, u)": "u * Exp(x)",
    "Diff(MatVecMult(A, x), x, u)": "MatVecMult(A, u)",
    "Diff(Diff(Sum(x ** 3), x, u), x, u)": "6 * (x * u | u)",
    "Diff(Grad(SqNorm2(x), x, p), x, u)": "2 * p * u",
    "Diff(Concat(x, y), y, u)": "Concat(Zero(3), u)",
    "Diff(x ** 2, s, s)": "Zero(3)",
    "Diff(ComplexMult(z, z), z, Concat(x, p))": "2 * ComplexMult(z, Concat(x, p))",
    "Diff(p * x, p, s)": "s * x",
    # gradients
    "Grad(x, x, u)": "u",
    "Grad(Norm2(x - y), x, s)": "s * (x - y) / Norm2(x - y)",
    "Grad(Sum(p * x), p, s)": "s * Sum(x)",
    "Grad(p + x, p, u)": "Sum(u)",
    "Grad(Exp(x), z, x)": "Zero(4)",
    "Grad(ComplexSquareAbs(ComplexPair(x, y)), x, u)": "2 * u * x",
    "Grad(Divergence(x * SqNorm2(x), x), x, p)": "10 * p * x",
    "Grad(Laplacian(Sum(x ** 4), x), x, 1)": "24 * x",
    "Grad(Sum(x * IndexI()), x, s)": "s * IndexI() + Zero(3)",
    # the others
    "GradMatrix(x, x)": "Concat(Concat(ElemT(1, 3, 0), ElemT(1, 3, 1)), ElemT(1, 3, 2))",
    "GradMatrix(MatVecMult(A, x), x)": "A",
    "GradMatrix(y, x)": "Zero(9)",
    "GradMatrix(p * x, p)": "x",
    "GradMatrix(Exp(p), p)": "Exp(p)",
    "GradMatrix((x | y), x)": "y",
    "GradMatrix(x, z)": "Zero(12)",
    "AdjointOperator(MatVecMult(A, x), x, u)": "VecMatMult(u, A)",
    "AdjointOperator(y * x, x, x)": "y * x",  # the third argument may be any formula
    "AdjointOperator(y, x, u)": "Zero(3)",
    "AdjointOperator((x | y), x, p)": "p * y",
    "TraceOperator(MatVecMult(A, x), x)": "Elem(A, 0) + Elem(A, 4) + Elem(A, 8)",
    "TraceOperator(MatVecMult(A, x), x, w)": "(Concat(Concat(Elem(A, 0), Elem(A, 4)), Elem(A, 8)) | w)",
    "TraceOperator(MatVecMult(A, x), x, p)": "p * (Elem(A, 0) + Elem(A, 4) + Elem(A, 8))",
    "TraceOperator(x * y, x, x)": "(x | y)",  # neither does the weight count as part of the map
    "TraceOperator(Concat(Extract(x, 1, 2), Elem(x, 0)), x)": "0",
    "TraceOperator(Concat(Extract(x * y, 0, 2), Elem(x, 0)), x, w)": "(Extract(y, 0, 2) | Extract(w, 0, 2))",
    "TraceOperator(y, x)": "0",
    "TraceOperator(p * s, p)": "s",
    "TraceOperator(ComplexMult(z, Concat(x, p)), z)": "2 * (Elem(x, 0) + Elem(x, 2))",
    "TraceOperator(SumT((x | y), 3), x, w)": "(y | w)",
    "SumLinOperator(MatVecMult(A, x), x)": "Sum(A)",
    "SumLinOperator(MatVecMult(A, x), x, w)": "(w | MatVecMult(A, 1 + Zero(3)))",
    "SumLinOperator(MatVecMult(A, x), x, w, u)": "(w | MatVecMult(A, u))",
    "SumLinOperator(MatVecMult(A, x), x, s, p)": "s * p * Sum(A)",
    "SumLinOperator(Concat(x, y * x), x, 1, u)": "Sum(u) + (u | y)",
    "SumLinOperator(y, x, p)": "0",
    "SumLinOperator((x | y), x, Sum(x))": "Sum(x) * Sum(y)",
    "Factorize(Exp(x) * Exp(x), Exp(x))": "Square(Exp(x))",
    "AutoFactorize(Exp(x) * Exp(x))": "Square(Exp(x))",
}


@pytest.mark.parametrize("text", IDENTITIES)
def test_identity(text):
    agree(text, IDENTITIES[text])


def test_every_derivative_that_can_be_written_has_an_identity():
    assert {text.partition("(")[0] for text in IDENTITIES} == DERIVED.keys()


@pytest.mark.parametrize("name", ["Factorize(F, F)", "AutoFactorize(F)"])
def test_what_is_shared_is_shared_anyway(name):
    text = "Exp(x) / Sum(Exp(x))"
    assert read(name.replace("F,", f"{text},").replace("F)", f"{text})"), ALIASES) is read(text, ALIASES)


# -- matrices of derivatives -------------------------------------------------------------------------------------------

VECTORS = [
    "Exp(x) * Sum(x)",
    "Concat(Sin(Elem(x, 0)), x * p)",
    "MatVecMult(A, x) / Norm2(x)",
    "TensorProd(x, y - x)",
    "ComplexDivide(z, Concat(Elem(z, 1), Elem(x, 0)))",
    "BSpline(t, s, 2)",
    "SoftDTW_SqDist(x, z, p)",
    "Kron(x, z, [1, 3], [2, 2])",
    "(x | y) ** 2",
    "Clamp(x, p, 1.1) - Mod(x, p, s)",
]


@pytest.mark.parametrize("name", ["x", "z", "p", "s"])
@pytest.mark.parametrize("text", VECTORS)
def test_matrices_are_stored_by_rows(text, name):
    node = read(text, ALIASES)
    columns = [moved(text, name, unit) for unit in np.eye(DIMS[name])]
    wanted = np.stack(columns, -1).reshape((M, N, -1))  # component c * dim(v) + k
    matrix = read(f"GradMatrix({text}, {name})", ALIASES)
    assert matrix.dim == node.dim * DIMS[name]
    checks.close(pairs(matrix, sample()), wanted, 1e-7)
    checks.close(checks.reduced(matrix, sample()), wanted.sum(1), 1e-7)


def test_components_of_a_matrix_are_found_in_few_steps():
    deepest = {}
    for n in toposort([read("GradMatrix(Sin(v), v)", ["v = Vi(64)"])]):
        deepest[n] = (n.op == "Concat") + max((deepest[a] for a in n.args), default=0)
    assert max(deepest.values()) == 6


# linear in x, of its dimension, by operations that are element-wise and others
LINEAR = [
    "x * y",
    "MatVecMult(A, x)",
    "VecMatMult(x, A)",
    "MatVecMult(TensorProd(x, y), w)",
    "Concat(Extract(x, 1, 2), Elem(x, 0))",
    "ExtractT(Extract(x, 0, 2), 1, 3)",
    "ElemT(Elem(x, 2), 3, 2)",
    "y * Sum(x)",
    "y * Elem(MatVecMult(A, x), 1) + IfElse(y - 1, x, Sum(x))",
    "TensorDot(x, A, [3], [3, 3], [0], [1])",
    "ComplexReal(ComplexMult(ComplexPair(x, y * x), ComplexPair(y, w)))",
    "IfElse(y - 1, x * w, MatVecMult(A, x))",
    "SumT(x | w, 3)",
    "Diff(x ** 2, x, y) - Grad((x | x), x, p)",
]


def matrix(text):
    """The matrix of a linear map of x, (M, N, 3, 3)."""
    return pairs(read(f"GradMatrix({text}, x)", ALIASES), sample()).reshape((M, N, 3, 3))


def rows(name):
    return pairs(VAR[name], sample())


@pytest.mark.parametrize("text", LINEAR)
def test_traces_of_linear_maps(text):
    for weight, w in (("", np.ones(3)), (", w", rows("w")), (", s", rows("s")), (", x", rows("x"))):
        wanted = (np.diagonal(matrix(text), axis1=-2, axis2=-1) * w).sum(-1)
        got = pairs(read(f"TraceOperator({text}, x{weight})", ALIASES), sample())
        checks.close(got[..., 0], wanted, 1e-12)


@pytest.mark.parametrize("text", LINEAR)
def test_adjoints_of_linear_maps(text):
    wanted = np.einsum("...cv,...c->...v", matrix(text), rows("u"))
    checks.close(pairs(read(f"AdjointOperator({text}, x, u)", ALIASES), sample()), wanted, 1e-12)


@pytest.mark.parametrize("text", LINEAR)
def test_sums_of_linear_maps(text):
    one = np.ones((M, N, 3))
    for weights, left, right in (("", one, one), (", w", rows("w"), one), (", w, u", rows("w"), rows("u")),
                                 (", s, p", rows("s") * one, rows("p") * one), (", 1, x", one, rows("x"))):  # fmt: skip
        wanted = np.einsum("...c,...cv,...v->...", left, matrix(text), right)
        got = pairs(read(f"SumLinOperator({text}, x{weights})", ALIASES), sample())
        checks.close(got[..., 0], wanted, 1e-12)


# -- forward against reverse mode --------------------------------------------------------------------------------------

COMPOSITE = [
    *VECTORS,
    "Exp(-p * SqDist(x, y)) * (x | w)",
    "Norm2(x - y) / (1 + SqNorm2(x))",
    "IfElse(x - y, Log(x), Sqrt(y)) * Max(x)",
    "ReLU(x - p) + Softplus(Min(y) * x) - Step(x)",
    "Powf(Sigmoid(x), y + s) * Tanh(p)",
    "WeightedSqDist(A, x, y) + Hypot(p, s)",
    "ComplexExp(ComplexMult(z, z / 4)) + ComplexSumT(ComplexSum(z), 4) * ComplexAbs(Extract(z, 0, 2))",
    "TensorDot(TensorProd(x, y), A, [3, 3], [3, 3], [1], [0], [1, 0])",
    "Atan2(x, y) + Asin(x / 3) * Acos(y / 3) - XLogX(x)",
    "Grad(Exp(-p * SqDist(x, y)), x, s) * Normalize(x)",
    "Diff(Sin(x * y), x, u) + Divergence(x * (x | y), x)",
    "Laplacian(Exp(-SqNorm2(x) * p), x) * y",
    "OneHot(ArgMax(x), 3) * x + ElemT(Extract(x, 1, 1), 3, 0) + Round(x, 1)",
]


@pytest.mark.parametrize("text", COMPOSITE)
def test_both_modes_agree(text):
    """<e, J u> = <J^T e, u> for all variables at once, with cotangents and directions for each pair."""
    node = read(text, ALIASES)
    wrt = [VAR[name] for name in DIMS]
    e = var(len(wrt), node.dim, 1)
    directions = [var(len(wrt) + 1 + k, v.dim, k % 3) for k, v in enumerate(wrt)]
    backward = checks.total(build("Scalprod", (g, u)) for g, u in zip(vjp(node, wrt, e), directions, strict=True))
    forward = build("Scalprod", (e, jvp(node, wrt, directions)))
    rng = np.random.default_rng(7)
    shapes = [((M, v.dim), (N, v.dim), (v.dim,))[v.attrs[1]] for v in (e, *directions)]
    arrays = [*sample(), *(rng.uniform(-1, 1, shape) for shape in shapes)]
    wanted = pairs(backward, arrays)
    assert np.isfinite(wanted).all()
    assert np.abs(wanted).max() > 1e-3
    checks.close(pairs(forward, arrays), wanted, 1e-11)


@given(formulas())
def test_both_modes_agree_on_random_formulas(n):
    wrt = list(VARIABLES)
    e = var(len(wrt), n.dim, 2)
    directions = [var(len(wrt) + 1 + k, v.dim, v.attrs[1]) for k, v in enumerate(wrt)]
    backward = checks.total(build("Scalprod", (g, u)) for g, u in zip(vjp(n, wrt, e), directions, strict=True))
    forward = build("Scalprod", (e, jvp(n, wrt, directions)))
    rng = np.random.default_rng(8)
    shapes = [((M, v.dim), (N, v.dim), (v.dim,))[v.attrs[1]] for v in (*wrt, e, *directions)]
    arrays = [rng.uniform(0.4, 2, shape) for shape in shapes]
    sizes = [np.abs(dense(m, arrays, (M, N))).max() for m in toposort([backward, forward])]
    assume(np.isfinite(sizes).all())  # NaN + 1 and 0 * NaN are not worth a comparison
    assume(max(sizes) < 1e8)  # nor is what is rounding of something large
    np.testing.assert_allclose(pairs(forward, arrays), pairs(backward, arrays), rtol=1e-9, atol=1e-11 * max(sizes))


# -- masks -------------------------------------------------------------------------------------------------------------

# formulas of x, of dimension 1, whose value or derivative at 0 is infinite or undefined; q = Pm(2), B = Pm(4)
SINGULAR = [
    "Log(x)",
    "Inv(x)",
    "Pow(x, -3)",
    "Powf(x, -0.5)",
    "XLogX(x)",
    "x / Abs(x)",
    "Atan2(x, x)",
    "Log(x) * x",
    "(Log(x) | q)",
    "Sum(q * Log(x))",
    "(Concat(Log(x), x) | q)",
    "Sum(MatVecMult(B, Concat(Log(x), x)))",
    "MatVecMult(Concat(Log(x), Inv(x)), q)",
    "Sum(MatVecMult(TensorProd(Concat(x, Log(x)), q), Concat(Inv(x), x)))",
    "Sum(VecMatMult(q, TensorProd(Concat(Log(x), 1), Concat(x, Log(x)))))",
    "Sum(Kron(Concat(Log(x), x), q, [2], [2]))",
    "Norm2(q * Log(x))",
    "Max(Concat(Log(x), 3 * x))",
    "Min(Concat(Inv(x), Log(x)))",
    "ReLU(Log(x)) + Clamp(Inv(x), x, 1 / x)",
    "ComplexAngle(ComplexMult(ComplexPair(Log(x), x), q))",
    "ComplexAbs(ComplexExp1j(Log(x)))",
    "Extract(Concat(q, Log(x) * q), 1, 2) | q",
    "Elem(ExtractT(SumT(Log(x), 2), 1, 4), 2)",
    "IfElse(-x, Log(x), Inv(x))",
]
# each is @ where the mask is open, at x = 2, and a constant near x = 0
MASKS = ["IfElse(x - 1, @, 0)", "IfElse(1 - x, 3, @)", "IfElse(x - 1, IfElse(x - 1/2, @, @), 0)", "ZeroMult(x > 1, @)",
         "Sum(Extract(IfElse(x - 1, Concat(@, 1), q), 0, 1))"]  # fmt: skip
# derivatives in x; e is -3 there, not 1
FIRST = ["Grad(#, x, e)", "Diff(#, x, e)", "GradMatrix(#, x)", "Divergence(#, x)"]
SECOND = ["Grad(Grad(#, x, e), x, e)", "Diff(Grad(#, x, e), x, e)", "Grad(Diff(#, x, e), x, e)",
          "Diff(Diff(#, x, e), x, e)", "Laplacian(#, x)"]  # fmt: skip
SMALL = ["x = Vi(1)", "e = Vi(1)", "q = Pm(2)", "B = Pm(4)"]
AT = [np.array([[0.0], [2.0]]), np.array([[-3.0], [-3.0]]), np.array([0.7, -0.4]), np.array([1.0, 2.0, -1.0, 0.5])]


def at(text):
    """Values at x = 0 and x = 2, by oracle and kernel."""
    node = read(text, SMALL)
    assert node.dim == 1
    value = dense(node, AT, (2, 1))[:, 0, 0] + np.zeros(2)
    np.testing.assert_allclose(checks.reduced(node, AT, rows=(2, 1))[:, 0], value, rtol=1e-12)
    return value


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("text", SINGULAR)
def test_nothing_flows_behind_a_closed_mask_and_all_behind_an_open_one(text, mask):
    for order in (*FIRST, *SECOND):
        closed, opened = at(order.replace("#", mask.replace("@", text)))
        assert closed == 0, order
        assert np.isclose(opened, at(order.replace("#", text))[1], rtol=1e-12, atol=1e-12), order


@pytest.mark.parametrize(
    ("text", "slope"),  # at x = 0; the second derivative is 0
    [
        ("Clamp(Log(x), -5, 5)", 0),
        ("Clamp(x, Log(x), Inv(x))", 1),
        ("Clamp(2 * x, Log(x), 5)", 2),
        ("ReLU(Log(x))", 0),
        ("ReLU(-Inv(x))", 0),
        ("Max(Concat(Log(x), -1))", 0),
        ("Max(Concat(Log(x), 2 * x))", 2),
        ("Min(Concat(Inv(x), 2 * x))", 2),
        ("IfElse(Log(x), x, 4 * x)", 4),
        ("IfElse(x, 4 * x, Log(x))", 4),
        ("Sum(q * Max(Concat(Log(x), 10 * x)))", 3),
        ("(Clamp(Log(x), -5, 5) | q)", 0),
    ],
)
def test_branches_that_are_not_taken_do_not_count(text, slope):
    for order in FIRST:
        wanted = slope * (-3 if ", e)" in order else 1)
        np.testing.assert_allclose(at(order.replace("#", text))[0], wanted, rtol=1e-14, err_msg=order)
    for order in SECOND:
        assert at(order.replace("#", text))[0] == 0, order


def test_a_mask_is_one_component_by_component():
    """Behind a mask that is closed in one component, a product of matrices keeps the others."""
    f = "IfElse(x - 1, MatVecMult(TensorProd(Log(x), x), y), 0)"  # Log(x[k]) * (x | y) where it is open
    node = read(f"Grad({f}, x, x)", ["x = Vi(3)", "y = Vj(3)"])
    x, y = np.array([[0.0, 2.0, 3.0]]), np.array([[0.5, -1.0, 2.0]])
    scale, opened = (x * y).sum(), np.array([0.0, 1.0, 1.0])
    wanted = opened * scale + (x[0, 1:] * np.log(x[0, 1:])).sum() * y[0]
    np.testing.assert_allclose(dense(node, [x, y])[0, 0], wanted, rtol=1e-14)
    np.testing.assert_allclose(checks.reduced(node, [x, y], rows=(1, 1))[0], wanted, rtol=1e-14)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Laplacian(IfElse(1, Square((x | y) - 1) / 2, 0), x)", "SqNorm2(y)"),
        ("Laplacian(IfElse(1, SqNorm2(MatVecMult(A, x) - MatVecMult(A, x0)) / 2, 0), x)", "SqNorm2(A)"),
        ("Laplacian(IfElse(1, SqDist(x, x0), 0), x)", "6"),
        ("Divergence(IfElse(1, (x - x0) * (x - x0 | y), 0), x)", "0"),
        ("GradMatrix(IfElse(1, (x - x0) * (x0 | y), 0), x)", "GradMatrix(x, x)"),
    ],
)
def test_a_cotangent_that_happens_to_be_zero_is_no_mask(text, wanted):
    """At x = x0, where (x0 | y) = 1, cotangents are 0 and their derivatives are not."""
    aliases = ["x = Vi(3)", "x0 = Vi(3)", "y = Pm(3)", "A = Pm(6)"]
    x = np.array([[1.0, 2.0, -1.0]])
    arrays = [x, x, np.array([2.0, 0.5, 2.0]), np.arange(6.0)]
    got, right = (dense(read(f, aliases), arrays)[0, 0] for f in (text, wanted))
    np.testing.assert_allclose(got, right, rtol=1e-14)


# -- size --------------------------------------------------------------------------------------------------------------


def count(node):
    return len(toposort([node]))


@pytest.mark.parametrize("dim", [40, 1000])
@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Laplacian(Exp(-SqNorm2(x)), x)", "(4 * SqNorm2(x) - 2 * #) * Exp(-SqNorm2(x))"),
        ("Laplacian(Norm2(x - y), x)", "(# - 1) / Norm2(x - y)"),
        ("Laplacian(Exp(Sum(x) / #), x)", "Exp(Sum(x) / #) / #"),
        ("Laplacian(Sum(Pow(x, 5)), x)", "20 * Sum(Pow(x, 3))"),
        ("Laplacian(Log(SqDist(x, y)), x)", "2 * (# - 2) / SqDist(x, y)"),
        ("Laplacian(Sum(IfElse(x - y, Sin(x), Cos(x))), x)", "-Sum(IfElse(x - y, Sin(x), Cos(x)))"),
        ("Divergence(x * SqNorm2(x), x)", "(# + 2) * SqNorm2(x)"),
        ("Divergence(Normalize(x), x)", "(# - 1) / Norm2(x)"),
        ("Divergence(Sigmoid(x) * (x | y), x)", "Sum(Sigmoid(x) * Sigmoid(-x)) * (x | y) + (Sigmoid(x) | y)"),
        ("TraceOperator(x * y + y * (x | y), x, y)", "(y * y | 1 + y)"),
    ],
)
def test_traces_of_long_vectors_are_short(text, wanted, dim):
    aliases = [f"x = Vi({dim})", f"y = Vj({dim})"]
    got, right = (read(f.replace("#", str(dim)), aliases) for f in (text, wanted))
    assert count(got) < 100
    rng = np.random.default_rng(5)
    arrays = [rng.uniform(-0.2, 0.2, (2, dim)) + 0.01, rng.uniform(-0.2, 0.2, (3, dim))]
    exact = dense(right, arrays)
    checks.close(dense(got, arrays) + 0 * exact, exact, 1e-11)
    if dim == 40:
        checks.close(checks.reduced(got, arrays, rows=(2, 3)), (exact + np.zeros((2, 3, 1))).sum(1), 1e-11)


ORDER_3 = [
    "Grad(Grad(Grad(@, x, 1), x, u), x, w)",
    "Diff(Grad(Grad(@, x, 1), x, u), x, w)",
    "Grad(Diff(Diff(@, x, u), x, w), x, 1)",
    "Diff(Diff(Diff(@, x, u), x, w), x, u)",
    "Grad(Laplacian(@, x), x, 1)",
    "Laplacian(Grad(@, x, 1) | u, x)",
]


@pytest.mark.parametrize("text", ORDER_3)
def test_third_derivatives_of_a_gaussian_stay_small(text):
    assert count(read(text.replace("@", "Exp(-p * SqDist(x, y)) * s"), ALIASES)) < 300


DEEP = [3000, pytest.param(10_000, marks=pytest.mark.slow)]  # both deeper than Python's stack
MANY = 300


@pytest.mark.parametrize("deep", DEEP)
def test_derivatives_of_a_deep_formula(deep):
    n = read("Sin(" * deep + "v" + ")" * deep, ["v = Vi(1)"])
    v, e = var(0, 1, 0), var(1, 1, 0)
    for derivative in (vjp(n, [v], e)[0], jvp(n, [v], [e])):
        assert count(derivative) == 3 * deep + 1  # Sin, Cos and Mult, v and e; without the outermost Sin
        assert pickle.loads(pickle.dumps(derivative)) is derivative
    assert read(str(derivative)) is derivative
    # in both modes the same product, in another order
    arrays = [np.array([[0.3], [0.0]]), np.array([[2.0], [1.0]])]
    np.testing.assert_allclose(dense(jvp(n, [v], [e]), arrays), dense(vjp(n, [v], e)[0], arrays), rtol=1e-9)


def test_derivatives_of_a_formula_of_300_variables():
    aliases = [f"v{k} = {('Vi', 'Vj', 'Pm')[k % 3]}(2)" for k in range(MANY)]
    n = read("*".join(f"Cos(v{k})" for k in range(MANY)), aliases)
    wrt = [var(k, 2, k % 3) for k in range(MANY)]
    directions = [var(MANY + k, 2, k % 3) for k in range(MANY)]
    backward, forward = vjp(n, wrt, const(1)), jvp(n, wrt, directions)
    assert len(toposort(backward)) < 10 * MANY  # one pass over the graph
    assert count(forward) < 10 * MANY
    for derivative in (backward[0], backward[-1], forward):
        assert pickle.loads(pickle.dumps(derivative)) is derivative
        assert read(str(derivative)) is derivative
    rng = np.random.default_rng(6)
    shapes = [((2, 2), (3, 2), (2,))[k % 3] for k in range(MANY)]
    values = [rng.uniform(-0.3, 0.3, shape) for shape in shapes]
    arrays = [*values, *(rng.uniform(-1, 1, shape) for shape in shapes)]
    along = checks.total(build("Mult", (g, u)) for g, u in zip(backward, directions, strict=True))
    np.testing.assert_allclose(dense(forward, arrays), dense(along, arrays), rtol=1e-9, atol=1e-12)


# -- these tests can fail ----------------------------------------------------------------------------------------------


@pytest.fixture
def forgetful():
    """What is kept of forward mode is forgotten, before and after."""
    derive._transposed.cache_clear()
    interpret._programs.clear()
    yield
    derive._transposed.cache_clear()
    interpret._programs.clear()


def test_a_wrong_forward_mode_is_caught(monkeypatch, forgetful):
    whole = derive.push

    def half(n, u, k, masked=False):
        return whole(n, u, k, masked) if k == 0 else None

    checks.check_forward(OPS["Divide"])
    test_both_modes_agree("(x | y) ** 2")
    monkeypatch.setattr(derive, "push", half)
    for check in (lambda: checks.check_forward(OPS["Divide"]), lambda: test_both_modes_agree("(x | y) ** 2"),
                  lambda: test_identity("Divergence(x * Sum(x), x)")):  # fmt: skip
        with pytest.raises(AssertionError):
            check()


def test_a_transpose_that_is_none_is_caught(monkeypatch, forgetful):
    def pullback(call, e, k, masked=False):  # the square of each cotangent: no linear map
        g = derive.flow(call, e, k, masked)
        return None if g is None else derive.fit(build("Mult", (g, e)), call.args[k].dim)

    monkeypatch.setattr(derive, "pullback", pullback)
    with pytest.raises(AssertionError):
        checks.check_forward(OPS["Mult"])


def test_a_mask_that_is_forgotten_is_caught(monkeypatch, forgetful):
    flow = derive.flow
    monkeypatch.setattr(derive, "flow", lambda call, e, k, masked: flow(call, e, k, False))
    with pytest.raises(AssertionError, match="Grad"):
        test_nothing_flows_behind_a_closed_mask_and_all_behind_an_open_one("Log(x)", MASKS[0])


def test_a_guard_of_contractions_that_is_forgotten_is_caught(monkeypatch, forgetful):
    monkeypatch.setattr(derive, "ANNIHILATING", {})
    with pytest.raises(AssertionError):
        test_a_mask_is_one_component_by_component()
