"""The NumPy interpreter against the oracle: loops, blocks, parts, both axes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dred.formula.language import formula
from dred.formula.node import toposort
from dred.formula.oracle import dense
from dred.kernel import engine, interpret
from dred.kernel.flat import straight
from dred.kernel.interpret import COLUMNS, ROWS
from dred.kernel.spec import KernelSpec
from tests.formula import checks
from tests.formula.formulas import VARIABLES, formulas

MILD = ("Add", "Subtract", "Mult", "Minus", "Square", "Abs", "Pow", "Sum", "SumT", "Scalprod", "Concat", "Extract",
        "ExtractT", "Elem", "ElemT", "Cos", "Sin", "SqDist", "Norm2", "LessThan", "Sign", "Zero")  # fmt: skip


@pytest.fixture
def unrolled(monkeypatch):
    """Set how long a vector may be to be unrolled."""

    def change(n):
        monkeypatch.setattr(interpret, "UNROLL", n)
        interpret._programs.clear()

    yield change
    interpret._programs.clear()


def sampled(variables, M, N, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.uniform(0.5, 1.5, ((M, v.dim), (N, v.dim), (v.dim,))[v.attrs[1]]) for v in variables]


def agrees(node, arrays, M, N, axis=1):
    pairs = dense(node, arrays)
    wanted = np.broadcast_to(pairs, (M, N, node.dim)).sum(axis)
    largest = max(np.abs(dense(n, arrays)).max() for n in toposort([node]))
    got = checks.reduced(node, arrays, axis, rows=(M, N))
    if np.isfinite(largest):
        np.testing.assert_allclose(got, wanted, rtol=1e-11, atol=1e-12 * max(M, N) * largest)


@pytest.mark.parametrize("unroll", [1, 2, 3, 5, 16])
@pytest.mark.parametrize("axis", [0, 1])
def test_random_formulas(unroll, axis, monkeypatch):
    monkeypatch.setattr(interpret, "UNROLL", unroll)

    @given(formulas(MILD, steps=8), st.integers(0, 5))
    def agree(node, seed):
        interpret._programs.clear()
        agrees(node, sampled(VARIABLES, 2, 3, seed), 2, 3, axis)

    try:
        agree()
    finally:
        interpret._programs.clear()


LONG = ["u = Vi(40)", "v = Vj(40)", "w = Vj(25)", "a = Vj(1)", "e = Pm(40)"]


@pytest.mark.parametrize("unroll", [1, 4, 16, 17, 39, 40, 64])
@pytest.mark.parametrize(
    "text",
    [
        "u * v",
        "(u | v)",
        "Exp(-SqDist(u, v)) * w",
        "u * Sum(u * v) + Sum(v)",
        "Concat(u, w) * Concat(w, v)",
        "Sum(Concat(u, w) * Concat(w, v))",
        "Extract(u, 7, 25) * w",
        "Extract(Concat(u, w), 30, 25) * w",
        "ExtractT(w, 9, 40) * u",
        "ElemT(a, 40, 17) * u",
        "Sum(ElemT(a, 40, 17) * u)",
        "Elem(u * v, 39) * w",
        "Sum(u * Sum(u * Sum(v)))",
        "Grad(Exp(-SqDist(u, v)), v, a)",
        "Grad(Norm2(Concat(u, w) - Concat(w, v)), w, a)",
        "Grad(u * (u | v), u, e)",
        "SumT(a, 40) * u",
        "Zero(40) + 0 * u",
    ],
)
def test_long_vectors(text, unroll, unrolled):
    unrolled(unroll)
    f = formula(text, LONG)
    arrays = [a / 20 for a in sampled([v for v in _variables(f)], 3, 4)]
    agrees(f.node, arrays, 3, 4)


def _variables(f):
    from dred.formula.node import var

    return [var(*v) for v in f.variables]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("M", [1, ROWS - 1, ROWS, ROWS + 1])
@pytest.mark.parametrize("N", [1, 2, 3, COLUMNS - 1, COLUMNS, COLUMNS + 1, 3 * COLUMNS + 5])
def test_sizes_around_the_blocks(M, N, dtype):
    node = formula("x - y", ["x = Vi(1)", "y = Vj(1)"]).node
    x, y = np.arange(M, dtype=dtype)[:, None], np.arange(N, dtype=dtype)[:, None]
    wanted = N * x.astype(float) - y.astype(float).sum()
    np.testing.assert_array_equal(checks.reduced(node, [x, y], 1, dtype, rows=(M, N)), wanted)
    np.testing.assert_array_equal(checks.reduced(node, [y, x], 0, dtype, rows=(N, M)), -wanted)


def test_rows_do_not_depend_on_each_other():
    node = formula("Exp(x * y)", ["x = Vi(1)", "y = Vj(1)"]).node
    x, y = sampled(formula_variables(node), 600, 700)
    whole = checks.reduced(node, [x, y], rows=(600, 700))
    for low, high in ((0, 1), (255, 257), (100, 600)):
        part = checks.reduced(node, [x[low:high], y], rows=(high - low, 700))
        assert part.tobytes() == whole[low:high].tobytes()


def formula_variables(node):
    return [n for n in toposort([node]) if n.op == "Var"]


def test_long_formulas_take_small_blocks_and_give_the_same_bytes(monkeypatch):
    values = [f"Cos(x * {k} + y)" for k in range(1, 80)]
    text = f"({'+'.join(values)}) * ({'*'.join(values)})"  # all are kept until the last factor
    node = formula(text, ["x = Vi(1)", "y = Vj(1)"]).node
    spec = KernelSpec.of(node, "Sum", 1, "float64", "float64")
    wide = interpret._program(spec)[0].wide
    assert 1 <= interpret._rows(wide) < ROWS
    arrays = sampled([n for n in toposort([node]) if n.op == "Var"], 300, 300)
    small = checks.reduced(node, arrays, rows=(300, 300))
    monkeypatch.setattr(interpret, "VALUES", 10**9)
    assert interpret._rows(wide) == ROWS
    assert checks.reduced(node, arrays, rows=(300, 300)).tobytes() == small.tobytes()


def test_values_are_rounded_to_the_compute_type():
    node = formula("x + y - x", ["x = Vi(1)", "y = Vj(1)"]).node
    x, y = np.array([[2.0**24]], np.float32), np.array([[1.0]], np.float32)
    assert checks.reduced(node, [x, y], dtype="float32", rows=(1, 1)).item() == 0.0
    assert checks.reduced(node, [x, y], dtype="float64", rows=(1, 1)).item() == 1.0


def test_the_state_is_of_its_own_type():
    node = formula("x", ["x = Vj(1)"]).node
    x = np.full((1000, 1), 0.1, np.float32)
    for acc in ("float32", "float64"):
        spec = KernelSpec.of(node, "Sum", 1, "float32", acc)
        (state,) = engine.fold(spec, "numpy", engine.empty(spec, 1), [x], 1, 1000)
        assert state.dtype == acc
        assert state.shape == (1, 1)
    assert state.item() == pytest.approx(1000 * float(np.float32(0.1)), rel=1e-15)


@pytest.mark.parametrize(
    ("lets", "texts", "found"),
    [((), ("a+b",), [3]), ((), ("a+1",), [2]), ((("t", "a+b"),), ("a",), [1]), ((("t", "a+b"),), ("t", "b"), [3, 2])],
)
def test_texts_of_one_step(lets, texts, found):
    """The short path holds where the only step is the only result, and reads what is given alone."""
    assert straight(("a", "b"), lets, texts)([1.0, 2.0]) == found
