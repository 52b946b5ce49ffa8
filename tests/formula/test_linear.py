"""Linear formulas: what is said to be linear is, by the dense reference, and what is not is named."""

import numpy as np
import pytest

from dred.errors import ArgumentError
from dred.formula import catalogue
from dred.formula.language import read
from dred.formula.linear import linearity
from dred.formula.node import var
from dred.formula.ops import OPS
from dred.formula.oracle import dense
from dred.formula.rewrite import expand

NAMES = ["x = Vi(2)", "y = Vj(2)", "b = Vj(2)", "s = Vj(1)", "A = Pm(4)"]
KINDS = {
    "b": "uniform",
    "-b * Exp(-SqDist(x, y)) / 2": "uniform",
    "(1 + (x | y)) * b + Exp(-SqDist(x, y)) * b": "uniform",
    "IfElse(Sum(x), b, 3 * b)": "uniform",
    "IfElse(Sum(x), b, 0)": "uniform",
    "x * y * b": "diagonal",
    "Exp(x - y) * b": "diagonal",
    "x * (y | b)": "coupled",
    "MatVecMult(A, b)": "coupled",
    "x * Sum(b)": "coupled",
    "Concat(Elem(b, 1), Elem(b, 0))": "coupled",
    "Grad(Exp(-SqDist(x, y)) * Sum(y * b), x, s)": "coupled",
    "b + Grad(Square(Sum(x)) * s, x, s) * Sum(b)": "coupled",
}


@pytest.mark.parametrize("text", KINDS)
def test_kinds(text):
    assert linearity(read(text, NAMES), var(2, 2, 1)) == KINDS[text]


@pytest.mark.parametrize("text", KINDS)
def test_kinds_are_what_the_matrix_says(text):
    node, rng = read(text, NAMES), np.random.default_rng(0)
    x, y, s, A = (rng.normal(size=shape) for shape in ((1, 2), (1, 2), (1, 1), (4,)))
    matrix = np.stack([dense(node, [x, y, b[None], s, A])[0, 0] for b in np.eye(2)], axis=-1)
    if KINDS[text] != "coupled":
        assert matrix[0, 1] == matrix[1, 0] == 0
    if KINDS[text] == "uniform":
        assert matrix[0, 0] == matrix[1, 1]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("Exp(b)", "Exp is not"),
        ("b * b", "Square is not"),
        ("b * Sum(b)", "Mult is not"),
        ("b + x", "Add is not"),
        ("b + 1", "Add is not"),
        ("Abs(b)", "Abs is not"),
        ("x / b", "Divide is not"),
        ("IfElse(b, x, y)", "IfElse is not"),
        ("IfElse(x, b, y)", "IfElse is not"),
        ("Concat(Elem(b, 0), s)", "Concat is not"),
        ("Round(b, 1)", "Round is not"),
    ],
)
def test_what_is_not_linear_is_named(text, what):
    with pytest.raises(ArgumentError) as caught:
        linearity(read(text, NAMES), var(2, 2, 1))
    assert str(caught.value) == f"the formula is not linear in Var(2,2,1): {what}, of what depends on it"


def test_a_formula_without_the_variable():
    with pytest.raises(ArgumentError, match=r"does not depend on Var\(2,2,1\)"):
        linearity(read("x * y", NAMES), var(2, 2, 1))


def calls():
    for name, op in OPS.items():
        for k in range(len(op.args)):
            yield pytest.param(op, k, id=f"{name}-{k}")


@pytest.mark.parametrize(("op", "k"), [*calls()])
def test_every_operation_is_what_it_is_said_to_be(op, k):
    """By each of its arguments: linear there if it is said to be; and said to be if it is linear as the table knows."""
    dims, attrs = catalogue.example(op)
    args = [var(n, d, 2) for n, d in enumerate(dims)]
    node = expand(op.name, args, attrs)
    try:
        linearity(node, args[k])
    except ArgumentError:
        # Concat and its like are linear in all arguments together only; Routed and Placed are for gradients of rankings
        together = op.name in ("Concat", "ComplexPair", "Routed", "Placed")
        assert not op.linear or together
        return
    rng = np.random.default_rng(1)
    values = [rng.uniform(0.5, 1.5, d) for d in dims]
    u, v = rng.normal(size=(2, dims[k]))

    def at(value):
        return dense(node, [*values[:k], value, *values[k + 1 :]])

    np.testing.assert_allclose(at(2 * u - 3 * v), 2 * at(u) - 3 * at(v), rtol=1e-12, atol=1e-12)
