"""LazyTensor: what NumPy does with broadcast arrays, and what the tables say."""

import copy
import pickle

import dask.array as da
import numpy as np
import pytest

import dred
from dred import ComplexLazyTensor, Genred, LazyTensor, Pm, Vi, Vj
from dred.errors import ArgumentError, DimensionError, DtypeError, IndexRangeError, InputError, OptionError
from dred.formula.construct import make
from dred.formula.language import read as formula
from dred.formula.node import var
from dred.formula.ops import OPS
from dred.formula.oracle import dense
from dred.formula.rewrite import expand
from dred.lazy import call, made
from dred.lazy.given import COMPLEX, constant
from dred.reductions import REDUCTIONS

M, N = 7, 11
rng = np.random.default_rng(4)
X, Y, P, B = rng.normal(size=(M, 3)), rng.normal(size=(N, 3)), rng.normal(size=3), rng.random((N, 2)) + 0.1
x, y, p = X[:, None, :], Y[None, :, :], P  # as NumPy broadcasts them


def lazily():
    return Vi(X), Vj(Y), Pm(P)


EXPRESSIONS = {
    "sums": lambda x, y, p: x + y - p,
    "products": lambda x, y, p: x * y / (p + 10),
    "numbers": lambda x, y, p: 2 * x - y * 0.1 + 1 - 3 / (y * y + 2),
    "numbers first": lambda x, y, p: 1.5 - x + (2.0 / (abs(y) + 1)),
    "signs": lambda x, y, p: -x + +y - abs(p),
    "integer powers": lambda x, y, p: (x - y) ** 2 + x**3 + (y * y + 1) ** -2,
    "roots": lambda x, y, p: abs(x - y) ** 0.5 + (y * y + 1) ** -0.5,
    "powers": lambda x, y, p: abs(x - y) ** 1.3 + 2 ** (x - y) + abs(x) ** abs(y),
    "remainders": lambda x, y, p: (x - y) % 0.7,
    "comparisons": lambda x, y, p: 1.0 * (x < y) + 2.0 * (x <= p) + 4.0 * (x > y) + 8.0 * (y >= 0.1),
    "equalities": lambda x, y, p: 1.0 * (x == x) + 2.0 * (x != y) + 4.0 * (x == y),
    "parameter alone": lambda x, y, p: p * 2,
    "i alone": lambda x, y, p: x * p,
    "zero": lambda x, y, p: (x - y) * 0,
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_operators_are_those_of_numpy(name):
    lazy, plain = EXPRESSIONS[name](*lazily()), EXPRESSIONS[name](x, y, p)
    expected = plain.reshape(1, 1, -1) if plain.ndim == 1 else plain
    np.testing.assert_allclose(np.asarray(lazy), expected, rtol=1e-14, atol=1e-15)
    assert lazy.shape == expected.shape
    assert lazy.ndim == 3
    for axis in (0, 1):  # by kernels
        np.testing.assert_allclose(lazy.sum(axis=axis), expected.sum(axis=axis), rtol=1e-12, atol=1e-12)


def test_rows_that_a_formula_has_lost_still_count():
    ones = Vi(X)[..., 0] * 0 + Vj(Y)[..., 1] ** 0
    np.testing.assert_array_equal(ones.sum(axis=1), np.full((M, 1), N))
    np.testing.assert_array_equal(ones.sum(axis=0), np.full((N, 1), M))
    np.testing.assert_array_equal(ones.T.sum(axis=0), np.full((M, 1), N))
    np.testing.assert_array_equal((Vj(Y) - Vj(Y)).any(axis=1), np.zeros((1, 3), bool))
    symbolic = (Vi(0, 3) * 0 + Vj(1, 3)).sum(axis=1)
    np.testing.assert_allclose(symbolic(X, Y), np.broadcast_to(Y.sum(0), (M, 3)), rtol=1e-13)


def test_arrays_may_stand_on_either_side():
    for lazy in (x * Vj(Y), Vj(Y) * x, X[:, None] * Vj(Y), np.float64(2) * Vj(Y) * x / 2):
        assert isinstance(lazy, LazyTensor)
        np.testing.assert_allclose(np.asarray(lazy), x * y, rtol=1e-15)
    np.testing.assert_allclose(np.asarray(P - Vi(X)), (P - x), rtol=1e-15)
    np.testing.assert_allclose(np.asarray([1, 2, 3.5] * Vi(X)), [1, 2, 3.5] * x, rtol=1e-15)


def test_scalar_products_and_matrices():
    u, v, _ = lazily()
    np.testing.assert_allclose(np.asarray(u | v), (x * y).sum(-1), rtol=1e-14)
    K = (-u.sqdist(v)).exp()
    D = np.exp(-((x - y) ** 2).sum(-1))
    np.testing.assert_allclose(np.asarray(K), D, rtol=1e-13)
    np.testing.assert_allclose(K @ B, D @ B, rtol=1e-13)
    np.testing.assert_allclose(K @ B[:, 0], D @ B[:, 0], rtol=1e-13)
    np.testing.assert_allclose(K @ Vj(B), D @ B, rtol=1e-13)
    np.testing.assert_allclose(K.T @ X, D.T @ X, rtol=1e-13)
    np.testing.assert_allclose(K.t().T @ B, D @ B, rtol=1e-13)
    rows = (Vi(X) * 0 + formula_of("IndexI() - 2 * IndexJ()")).sum(-1)
    np.testing.assert_allclose(np.asarray(rows.T), np.asarray(rows).T, rtol=1e-15)


def formula_of(text):
    return LazyTensor._of(formula(text, []), False)


@pytest.mark.parametrize(
    "key",
    [
        (slice(None), slice(None), 1), (Ellipsis, -1), (Ellipsis, slice(None)), (Ellipsis, slice(1, None)),
        (Ellipsis, slice(None, None, -1)), (Ellipsis, slice(-3, None, 2)), (slice(None), Ellipsis, slice(0, 2)),
        (Ellipsis, np.int64(2)),
    ],
)  # fmt: skip
def test_components_are_those_of_numpy(key):
    expected = (x * y)[key]
    expected = expected[..., None] if expected.ndim == 2 else expected
    found = np.asarray((Vi(X) * Vj(Y))[key])
    np.testing.assert_array_equal(found.reshape(expected.shape), expected)


def test_concatenation():
    u, v, q = lazily()
    expected = np.concatenate([np.broadcast_to(a, (M, N, 3)) for a in (x, y, p)], axis=-1)
    np.testing.assert_array_equal(np.asarray(LazyTensor.concatenate([u, v, q])), expected)
    np.testing.assert_array_equal(np.asarray(u.concat(v).concat(q)), expected)


# Operations whose first argument is not that of the method: for each argument, which one of the method's it is.
ORDER = {
    **dict.fromkeys(("SqNormIso", "SqNormDiag", "SymSqNorm", "WeightedSqNorm", "ComplexRealScal"), (1, 0)),
    "WeightedSqDist": (2, 0, 1),
}


@pytest.mark.parametrize("name", [op.name for op in OPS.values() if op.args])
def test_every_operation_is_a_method(name):
    """Its node is that of the formula language."""
    op = OPS[name]
    dims, attrs = op.example or ((3,) * len(op.args), (1,) * len(op.attrs))
    letters = op.kinds.partition("->")[0] or "r" * len(dims)
    variables = [
        var(COMPLEX + k if letter == "c" else k, dim, k % 3)
        for k, (dim, letter) in enumerate(zip(dims, letters, strict=True))
    ]
    tensors = [
        ComplexLazyTensor((k, dim // 2, k % 3)) if letter == "c" else LazyTensor((k, dim, k % 3))
        for k, (dim, letter) in enumerate(zip(dims, letters, strict=True))
    ]
    order = ORDER.get(name, tuple(range(len(dims))))
    first, *others = [tensors[order.index(k)] for k in range(len(order))]
    wanted = expand(name, variables, attrs)
    assert first.call(name, *tensors, *attrs).node is wanted
    method = getattr(type(first), op.method)
    if name in ("ComplexReal", "ComplexImag"):
        assert getattr(first, op.method).node is wanted
    elif name in ("Elem", "Sum"):
        assert getattr(first, op.method)(*attrs).node is wanted
    else:
        assert method(first, *others, *attrs).node is wanted
        assert method(first, *others, *attrs).is_complex == op.kinds.endswith("->c")
    assert method.__doc__


def test_methods_whose_own_tensor_is_not_the_first_argument():
    u, v, _ = lazily()
    s, A, d = np.array([0.5, 2.0, 3.0]), np.arange(1.0, 10.0), x - y
    full = np.einsum("ijk,kl,ijl->ij", d, A.reshape(3, 3), d)
    for found, expected in [
        ((u - v).sqnormiso(2.5), 2.5 * (d**2).sum(-1)),
        ((u - v).sqnormdiag(s), (s * d**2).sum(-1)),
        ((u - v).symsqnorm(A), full),
        ((u - v).weightedsqnorm(s), (s * d**2).sum(-1)),
        (u.weightedsqdist(v, s), (s * d**2).sum(-1)),
        (u.weightedsqdist(v, A), full),
    ]:
        np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-12)
    knots = np.arange(6.0)
    spline = Pm(knots).bspline(Vi(np.full((2, 1), 2.25)), 1)  # hats
    np.testing.assert_allclose(np.asarray(spline)[0, 0], [0, 0.75, 0.25, 0], rtol=1e-12)


def of_components(name):
    return {"Max": "max", "Min": "min", "ArgMax": "argmax", "ArgMin": "argmin", "Sum": "sum"}[name]


@pytest.mark.parametrize("name", ["Max", "Min", "ArgMax", "ArgMin", "Sum"])
@pytest.mark.parametrize("axis", [-1, 2])
def test_over_components(name, axis):
    lazy, plain = Vi(X) - Vj(Y), x - y
    found = getattr(lazy, of_components(name))(axis)
    np.testing.assert_allclose(np.asarray(found), getattr(plain, of_components(name))(-1), rtol=1e-14)
    np.testing.assert_allclose(np.asarray(getattr(lazy, of_components(name))(dim=axis)), np.asarray(found))


PARAMETERS = {"K": (3,), "ddof": (), "edges": ([-2.0, 0.0, 1.0],), "": ()}


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", REDUCTIONS)
def test_every_reduction_is_a_method(name, axis):
    entry = REDUCTIONS[name]
    scalar = entry.scalar or entry.parameter == "edges"
    lazy = (Vi(X) | Vj(Y)) if scalar else Vi(X) * Vj(Y)
    plain = (x * y).sum(-1, keepdims=True) if scalar else x * y
    needs = "G" in entry.signature.split(", ")
    weight = Vi(X) * 0 + Vj(Y) ** 2 + 1 if needs else None
    g = np.broadcast_to(y**2 + 1, (M, N, 3)) if needs else None
    given = PARAMETERS[entry.parameter]
    called = getattr(lazy, made.called(name))
    found = called(*given, *([weight] if needs else []), axis=axis)
    expected = entry.numpy(
        plain, g, axis, {"K": 3, "ddof": 0, "edges": PARAMETERS["edges"][0], "": None}[entry.parameter]
    )
    for got, want in zip(*([found], [expected]) if not isinstance(found, tuple) else (found, expected), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)
    again = getattr(lazy, f"{made.called(name)}_reduction")
    options = {"K": 3} if entry.parameter == "K" else {"edges": given[0]} if given else {}
    repeated = again(dim=axis, weight=weight, **options) if needs else again(dim=axis, **options)
    for got, want in zip(*([repeated], [found]) if not isinstance(found, tuple) else (repeated, found), strict=True):
        np.testing.assert_array_equal(got, want)


def test_weights_of_logsumexp_may_be_left_out():
    lazy, plain = Vi(X) | Vj(Y), (x * y).sum(-1, keepdims=True)
    np.testing.assert_allclose(lazy.logsumexp(1), np.log(np.exp(plain).sum(1)), rtol=1e-13)
    np.testing.assert_allclose(lazy.logsumexp(axis=1), np.log(np.exp(plain).sum(1)), rtol=1e-13)
    expected = np.log((np.exp(plain) * B).sum(1))
    np.testing.assert_allclose(lazy.logsumexp(axis=1, weight=Vj(B)), expected, rtol=1e-12)
    np.testing.assert_allclose(lazy.logsumexp(1, None, Vj(B)), expected, rtol=1e-12)
    np.testing.assert_allclose(lazy.logsumexp_reduction(weight=Vj(B), dim=1), expected, rtol=1e-12)


def test_long_expressions():
    lazy = Vi(X)
    for k in range(3000):
        lazy = lazy + Vj(Y) if k % 1000 == 0 else lazy * 1.0001
    expected = x
    for k in range(3000):
        expected = expected + y if k % 1000 == 0 else expected * 1.0001
    np.testing.assert_allclose(lazy.sum(axis=1), expected.sum(1), rtol=1e-11)


def test_options_and_out():
    out = np.empty((M, 1))
    found = Vi(X).sqdist(Vj(Y)).sum(axis=1, out=out, sum_scheme="kahan_scheme", backend="cpu")
    assert found is out
    np.testing.assert_allclose(out, ((x - y) ** 2).sum((1, 2))[:, None], rtol=1e-14)


def test_derivatives_are_those_of_the_language():
    u, v = Vi(X), Vj(Y)
    F = (-u.sqdist(v)).exp() * v
    names = ["x = Vi(3)", "y = Vj(3)"]
    text = "(Exp(-SqDist(x,y)) * y)"
    for name, found, expected in [
        ("grad", F.grad(u, v), f"Grad({text}, x, y)"),
        ("diff", F.diff(u, v), f"Diff({text}, x, y)"),
        ("divergence", F.divergence(u), f"Divergence({text}, x)"),
        ("laplacian", F.sum(-1).laplacian(v), f"Laplacian(Sum({text}), y)"),
        ("grad_matrix", F[..., 0].grad_matrix(v), f"GradMatrix(Elem({text}, 0), y)"),
        ("trace_operator", (u * v).trace_operator(u), "TraceOperator(x * y, x)"),
    ]:
        got = found.sum(axis=1)
        want = Genred(expected, names, axis=1)(X, Y)
        np.testing.assert_allclose(got, want, rtol=1e-12, err_msg=name)


def test_scipy_takes_it_for_a_linear_operator():
    from scipy.sparse import linalg

    points, others = rng.normal(size=(60, 2)), rng.normal(size=(40, 2))
    square, wide = (
        (-Vi(points).sqdist(Vj(other))).exp() + (formula_of("IndexI() == IndexJ()") if other is points else 0)
        for other in (points, others)
    )
    dense_square, dense_wide = np.asarray(square), np.asarray(wide)
    operator = linalg.aslinearoperator(square)
    assert (operator.shape, operator.dtype) == ((60, 60), np.float64)
    b = rng.normal(size=60)
    solution, failed = linalg.cg(operator, b, rtol=1e-12)
    assert not failed
    np.testing.assert_allclose(dense_square @ solution, b, atol=1e-10)
    values = linalg.eigsh(operator, k=3, return_eigenvectors=False)
    np.testing.assert_allclose(np.sort(values), np.linalg.eigvalsh(dense_square)[-3:], rtol=1e-10)
    operator = linalg.aslinearoperator(wide)
    np.testing.assert_allclose(operator.T @ b, dense_wide.T @ b, rtol=1e-12)
    np.testing.assert_allclose(operator @ rng.random((40, 3)) * 0 + 1, np.ones((60, 3)))
    found = linalg.lsqr(operator, b, atol=1e-13, btol=1e-13, iter_lim=2000)[0]
    assert np.linalg.norm(dense_wide @ found - b) < 1.001 * np.linalg.norm(
        dense_wide @ np.linalg.lstsq(dense_wide, b, rcond=1e-8)[0] - b
    )


def test_symbolic_variables_are_arguments():
    routine = Vi(0, 3).sqdist(Vj(1, 3)).sum(axis=1)
    assert isinstance(routine, call.Call)
    np.testing.assert_allclose(routine(X, Y), ((x - y) ** 2).sum((1, 2))[:, None], rtol=1e-14)
    half = Vi(0, 3).sqdist(Vj(Y)).sum(axis=1)
    np.testing.assert_allclose(half(X), ((x - y) ** 2).sum((1, 2))[:, None], rtol=1e-14)
    later = Vi(X).sqdist(Vj(Y)).sum(axis=1, call=False)
    np.testing.assert_allclose(later(), routine(X, Y))
    with pytest.raises(InputError, match="the reduction takes 1 arrays, got 2"):
        half(X, Y)
    with pytest.raises(InputError, match=r"have the positions \[0, 2\]: they must be 0, 1, ..., each once"):
        Vi(0, 3).sqdist(Vj(2, 3)).sum(axis=1)
    assert repr(Vi(0, 3) * Vj(1, 3)) == "LazyTensor(M=None, N=None, D=3, no type)"


def test_an_array_is_passed_once_and_a_routine_is_made_once():
    call.routine.cache_clear()
    for _ in range(3):
        lazy = Vi(X).sqdist(Vj(Y)).sum(axis=1, call=False)
    assert (call.routine.cache_info().misses, call.routine.cache_info().hits) == (1, 2)
    twice = (Vi(X) * Vi(X) + Vj(Y)).sum(axis=1, call=False)
    assert [array.shape for array in twice.arrays] == [(M, 3), (N, 3)]
    assert [held.array is array for held, array in zip(twice.held, (X, Y), strict=True)] == [True, True]
    both = (Vi(X) - Vj(X)).sqnorm2().sum(axis=1, call=False)  # of two categories
    assert len(both.held) == 2
    assert len(both.arrays) == 1
    assert len(lazy.arrays) == 2


@pytest.mark.parametrize("chunks", [((3, 4), (5, 6)), ((1, 6), (11,)), ((7,), (2, 2, 7))])
def test_dask_arrays_stay_lazy(chunks):
    u, v = Vi(da.from_array(X, chunks=(chunks[0], 3))), Vj(da.from_array(Y, chunks=(chunks[1], 3)))
    found = (-u.sqdist(v)).exp() @ da.from_array(B, chunks=(chunks[1], 2))
    assert isinstance(found, da.Array)
    assert found.chunks[0] == chunks[0]
    np.testing.assert_allclose(found.compute(), np.exp(-((x - y) ** 2).sum(-1)) @ B, rtol=1e-13)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_types_and_numbers(dtype):
    a, b = X.astype(dtype), Y.astype(dtype)
    lazy = (Vi(a) - Vj(b)) * 0.1
    assert lazy.dtype == dtype
    assert lazy.sum(axis=1).dtype == dtype
    assert np.asarray(lazy).dtype == dtype
    exactly = LazyTensor(1e-310) * Vi(np.ones((2, 1)))
    assert exactly.sum(axis=1)[0, 0] == 1e-310
    assert np.isnan((LazyTensor(np.nan) * Vi(np.ones((2, 1)))).sum(axis=1)).all()
    assert np.signbit((LazyTensor(-0.0) * Vi(np.ones((2, 1)))).min(axis=1)).all()


SHAPES = {
    (M, 1, 3): (M, 1, 3), (1, N, 3): (1, N, 3), (1, 1, 3): (1, 1, 3), (3,): (1, 1, 3), (): (1, 1), (M, 1, 1): (M, 1),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_say_what_an_array_is(shape):
    array = rng.normal(size=shape)
    lazy = LazyTensor(array)
    assert lazy.shape == SHAPES[shape]
    np.testing.assert_array_equal(np.asarray(lazy * 1).reshape(-1), np.reshape(array, -1))


SYMBOLIC = "is no (ind, dim, cat): the position of an argument, its components, and 0 (i), 1 (j) or 2 (parameter)"
CASES = {
    "two dimensions": (
        lambda: LazyTensor(X),
        InputError,
        "an array of shape (7, 3) may be vectors for each i or for each j: say axis=0 or axis=1, use Vi or Vj, or pass "
        "(M, 1, D) or (1, N, D)",
    ),
    "batches": (
        lambda: repr(LazyTensor(np.zeros((2, 3, 1, 4))) + LazyTensor(np.zeros((3, 1, 5, 4)))),
        InputError,
        "batch dimensions must be equal or 1: arrays have (2,) and (3,)",
    ),
    "i and j": (
        lambda: LazyTensor(np.zeros((2, 3, 4))),
        InputError,
        "an array of shape (2, 3, 4) varies with i and with j: pass (..., M, 1, D) or (..., 1, N, D), with the "
        "dimensions of a batch in front",
    ),
    "axis": (lambda: LazyTensor(X, axis=2), InputError, "axis=2: it is 0, a row for each i, or 1, a row for each j"),
    "axis of three": (
        lambda: LazyTensor(x, axis=0),
        InputError,
        "axis=0 is for arrays (M, D) or (N, D), got shape (7, 1, 3)",
    ),
    "no components": (lambda: Vi(np.zeros((3, 0))), DimensionError, "vectors of 0 components: they have 1 to 1000000"),
    "text": (
        lambda: LazyTensor("x"),
        InputError,
        "a LazyTensor is made of an array of NumPy, dask or CuPy, of numbers, or of (ind, dim, cat); got builtins.str",
    ),
    "rows in a list": (
        lambda: LazyTensor([[1, 2], [3, 4]]),
        InputError,
        "a list is a parameter of numbers: pass rows as an array",
    ),
    "symbolic": (lambda: LazyTensor((0, 3, 7)), InputError, f"(0, 3, 7) {SYMBOLIC}"),
    "kind": (
        lambda: Vi(y),
        InputError,
        "numpy.ndarray of shape (1, 11, 3) is vectors for each j, not vectors for each i",
    ),
    "number for each i": (lambda: Vi(2.0), InputError, "vectors for each i are an array (rows, D), got builtins.float"),
    "dimensions": (lambda: Vi(X) * Vj(B), DimensionError, "dimensions (3, 2) do not broadcast: each must be 1 or 3"),
    "arguments": (
        lambda: Vi(X).sqdist(),
        ArgumentError,
        "sqdist: missing a required argument: 'other'\nit is sqdist(other)",
    ),
    "index": (
        lambda: Vi(X)[0, :, :],
        IndexRangeError,
        "x[0, :, :]: only components are taken, as in x[:, :, 2] and x[..., 1:4]",
    ),
    "index of i": (
        lambda: Vi(X)[2:4, :, 0],
        IndexRangeError,
        "x[2:4, :, 0]: only components are taken, as in x[:, :, 2] and x[..., 1:4]",
    ),
    "component": (lambda: Vi(X)[..., 3], IndexRangeError, "x[..., 3]: x has 3 components"),
    "no component": (lambda: Vi(X)[..., 3:], IndexRangeError, "x[..., 3:] has no components: x has 3"),
    "truth": (
        lambda: bool(Vi(X) < Vj(Y)),
        TypeError,
        "a LazyTensor is no truth: it is a vector for every pair; reduce it, or use ifelse",
    ),
    "length": (
        lambda: len(Vi(X)),
        TypeError,
        "a LazyTensor has no length: it has a shape, (M, N, D), or (M, N) where D is 1",
    ),
    "iteration": (
        lambda: list(Vi(X)),
        TypeError,
        "a LazyTensor cannot be iterated over: x[:, :, k] is its k-th component",
    ),
    "float": (lambda: float(Vi(X)), TypeError, "a LazyTensor is no number: reduce it first"),
    "too large": (
        lambda: np.asarray(Vi(np.zeros((10**5, 1))) * Vj(np.zeros((10**5, 1)))),
        InputError,
        "the dense array of LazyTensor(M=100000, N=100000, D=1, float64) would take 80 GB, more than 268 MB: reduce it "
        "instead",
    ),
    "dense symbolic": (
        lambda: np.asarray(Vi(0, 3) * 2),
        InputError,
        "a LazyTensor of variables without arrays has no dense array",
    ),
    "rows": (
        lambda: (Vi(X) * Vi(Y)).shape,
        InputError,
        "vectors for each i come from arrays of 7 and 11 rows: they must have as many",
    ),
    "no axis": (
        lambda: Vi(X).logsumexp(),
        OptionError,
        "axis=None, dim=None: one of them is 0 (reduce over i) or 1 (reduce over j)",
    ),
    "both axes": (
        lambda: Vi(X).logsumexp(axis=1, dim=1),
        OptionError,
        "axis=1, dim=1: one of them is 0 (reduce over i) or 1 (reduce over j)",
    ),
    "option of components": (
        lambda: Vi(X).sum(-1, backend="cpu"),
        OptionError,
        "backend is for reductions over i or j (axis=0 or 1), not over components",
    ),
    "derivative": (
        lambda: Vi(X).grad(Vi(X) * 2, 1),
        ArgumentError,
        "Grad: derivatives are by a variable, which is a LazyTensor made of an array, got an expression",
    ),
    "matrix": (
        lambda: Vi(X) @ "b",
        InputError,
        "the right side of @ is a LazyTensor or an array (..., N, E) or (N,), got builtins.str",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_errors(case):
    act, kind, said = CASES[case]
    with pytest.raises(kind) as error:
        act()
    assert str(error.value) == said


def test_types_are_not_mixed():
    with pytest.raises(DtypeError, match="all arrays must have one type"):
        (Vi(X) - Vj(Y.astype("float32"))).sum(axis=1)


def test_names_of_keops_import():
    from dred import LazyTensor as again

    assert again is LazyTensor is dred.LazyTensor


def test_copies_are_of_other_variables():
    """The numbers of variables are those of a process: what comes from another one must not mean its own."""
    lazy = Vi(X) * 2 - Vj(Y)
    for again in (pickle.loads(pickle.dumps(lazy)), copy.deepcopy(lazy), copy.copy(lazy)):
        assert not {*again.held} & {*lazy.held}
        np.testing.assert_array_equal(np.asarray(again), np.asarray(lazy))
    assert type(pickle.loads(pickle.dumps(1j * lazy))) is ComplexLazyTensor
    symbolic = pickle.loads(pickle.dumps(Vi(0, 3) + Vj(Y)))
    np.testing.assert_allclose(symbolic.sum(axis=1)(X), N * X + Y.sum(0), rtol=1e-13)


def test_rows_that_nobody_knows():
    array = da.from_array(X, chunks=(2, 3))
    lazy = Vi(array[array[:, 0] > -9]) - Vj(Y)
    assert lazy.shape == (None, N, 3)
    with pytest.raises(InputError, match="has unknown chunk sizes: call its compute_chunk_sizes"):
        lazy.sum(axis=1)


def test_constants_are_exact():
    assert constant(0.1).attrs[0] == __import__("fractions").Fraction(0.1)
    assert dense(make("Mult", (constant(3), constant(0.5))), []).item() == 1.5
