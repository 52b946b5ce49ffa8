"""Arithmetic, comparisons, truth values, constants and row numbers."""

from __future__ import annotations

from fractions import Fraction
from math import inf, log10, nan
from typing import Any

import numpy as np

from dred.errors import LimitError
from dred.formula.op import ANY, AWAY, POSITIVE, Attrs, Component, Dims, Op, dot, one
from dred.formula.syntax import MAX_DIGITS

MAX_EXPONENT = 1_000_000  # whole numbers up to here are exact in every compute type
HALF = 20  # bits of the lower half of a row number: both halves of numbers below 2^44 are exact in every compute type


def _exponent(dims: Dims, attrs: Attrs) -> int:
    if abs(attrs[0]) > MAX_EXPONENT:
        raise LimitError(f"the exponent {attrs[0]} is outside -{MAX_EXPONENT} ... {MAX_EXPONENT}")
    return dims[0]


def _power(c: Component, m: Any) -> Any:
    """Products for small exponents, otherwise the library's power: both keep full precision."""
    f, n = c.arg(0, m), c.attrs[0]
    if n == 0:
        return c.const(1)
    if abs(n) > 4:
        return c.prim("pow", f, c.const(n))
    square = c.prim("mul", f, f)
    value = {1: f, 2: square, 3: c.prim("mul", square, f), 4: c.prim("mul", square, square)}[abs(n)]
    return value if n > 0 else c.prim("div", c.const(1), value)


def _exact_power(f: Fraction, m: int) -> Fraction:
    if f == 0 and m < 0:
        raise ZeroDivisionError
    digits = abs(m) * log10(max(abs(f.numerator), f.denominator))
    if digits > MAX_DIGITS:
        raise LimitError(f"the constant would have about {digits:.0f} digits, the limit is {MAX_DIGITS}")
    return f**m


def _annihilating(f: Any, g: Any) -> Any:
    return np.where(f == 0, 0.0, f * g)


def _true(f: Any) -> Any:
    return np.not_equal(f, 0)


def _halves(rows: Any) -> Any:
    return np.concatenate([rows // 2**HALF, rows % 2**HALF], -1)


def _half(c: Component, m: Any, cat: int) -> Any:
    """A half of a row number, as a value."""
    row = c.row(cat)

    def high(_: Any) -> Any:
        return c.prim("number", c.prim("number_shift", row, c.const(HALF)))

    def low(_: Any) -> Any:
        return c.prim("number", c.prim("number_and", row, c.const(2**HALF - 1)))

    return c.split(m, 1, high, low)


ENTRIES = (
    # -- arithmetic
    Op("Add(f, g)", "f + g", np.add, "f + g", ("1", "1"), exact=lambda f, g: f + g,
       special=(((inf, -inf), nan), ((1.0, nan), nan))),
    Op("Subtract(f, g)", "f - g", np.subtract, "f - g", ("1", "-1"), exact=lambda f, g: f - g,
       special=(((inf, inf), nan), ((0.0, 0.0), 0.0))),
    Op("Mult(f, g)", "f * g", np.multiply, "f * g", ("g", "f"), exact=lambda f, g: f * g,
       special=(((inf, 0.0), nan), ((-2.0, inf), -inf))),
    Op("Divide(f, g)", "f / g", np.divide, "f / g", ("1 / g", "-y / g"), exact=lambda f, g: f / g, flops=8,
       domain=(ANY, AWAY), special=(((1.0, 0.0), inf), ((0.0, 0.0), nan), ((1.0, inf), 0.0))),
    Op("Minus(f)", "-f", np.negative, "-f", ("-1",), exact=lambda f: -f, special=(((inf,), -inf), ((nan,), nan))),
    Op("Square(f)", "f * f", np.square, "f * f", ("2 * f",), exact=lambda f: f * f, method="square",
       special=(((-inf,), inf), ((-3.0,), 9.0))),
    Op("Inv(f)", "1 / f", np.reciprocal, "1 / f", ("-Square(y)",), exact=lambda f: 1 / f, flops=8, domain=(AWAY,),
       special=(((0.0,), inf), ((-0.0,), -inf), ((inf,), 0.0))),
    Op("Pow(f; m)", "f to the integer power m", lambda f, m: np.power(f, float(m)), _power, ("m * Pow(f, m - 1)",),
       dim=_exponent, exact=_exact_power, flops=16, domain=(AWAY,), example=((3,), (3,)),
       special=(((-2.5,), -15.625), ((inf,), inf), ((nan,), nan)), dims="d -> d"),
    Op("Powf(f, g)", "f to the power g", np.power, "pow(f, g)",
       ("g * Powf(f, g - 1)", "IfElse((f == 0) * (0 < g) - 1, 0, y * Log(f))"), flops=80, domain=(POSITIVE, ANY),
       special=(((0.0, 0.0), 1.0), ((-2.0, 3.0), -8.0), ((-2.0, 0.5), nan), ((0.0, -1.0), inf), ((nan, 0.0), 1.0))),
    Op("ZeroMult(f, g)", "f * g, and 0 where f is 0, even if g is infinite or NaN", _annihilating,
       "select(f == 0, 0, f * g)", vjp=("ZeroMult(e, g)", "ZeroMult(f, e)"), mask=True, exact=lambda f, g: f * g,
       flops=3, domain=(AWAY, ANY),
       special=(((0.0, inf), 0.0), ((0.0, nan), 0.0), ((inf, 0.0), nan), ((2.0, 3.0), 6.0))),
    Op("Scalprod(f, g)", "(f | g): sum of f[k] * g[k]", lambda f, g: (f * g).sum(-1, keepdims=True),
       lambda c, m: c.fold(max(c.dims), lambda k: c.prim("mul", c.arg(0, k), c.arg(1, k))),
       vjp=("e * g", "e * f"), dim=dot, flops=2, method="scalprod", dims="d or 1, d or 1 -> 1"),
    # -- comparisons: 1 or 0, nothing flows back
    Op("LessThan(f, g)", "f < g", lambda f, g: np.less(f, g) * 1.0, "select(f < g, 1, 0)", (None, None), flops=2,
       special=(((1.0, 2.0), 1.0), ((2.0, 2.0), 0.0), ((nan, 1.0), 0.0))),
    Op("LessOrEqual(f, g)", "f <= g", lambda f, g: np.less_equal(f, g) * 1.0, "select(f <= g, 1, 0)", (None, None),
       flops=2, special=(((2.0, 2.0), 1.0), ((3.0, 2.0), 0.0), ((1.0, nan), 0.0))),
    Op("Equal(f, g)", "f == g", lambda f, g: np.equal(f, g) * 1.0, "select(f == g, 1, 0)", (None, None), flops=2,
       special=(((2.0, 2.0), 1.0), ((0.0, -0.0), 1.0), ((nan, nan), 0.0))),
    Op("NotEqual(f, g)", "f != g", lambda f, g: np.not_equal(f, g) * 1.0, "select(f != g, 1, 0)", (None, None), flops=2,
       special=(((2.0, 2.0), 0.0), ((1.0, 2.0), 1.0), ((nan, nan), 1.0))),
    # -- truth values: what is not 0, NaN too, is true
    Op("And(f, g)", "1 where f and g are not 0, else 0", lambda f, g: (_true(f) & _true(g)) * 1.0,
       "select(f != 0, select(g != 0, 1, 0), 0)", (None, None), flops=4, method="logical_and",
       special=(((2.0, nan), 1.0), ((0.0, 1.0), 0.0), ((-0.0, nan), 0.0))),
    Op("Or(f, g)", "1 where f or g is not 0, else 0", lambda f, g: (_true(f) | _true(g)) * 1.0,
       "select(f != 0, 1, select(g != 0, 1, 0))", (None, None), flops=4, method="logical_or",
       special=(((0.0, nan), 1.0), ((0.0, -0.0), 0.0), ((inf, 0.0), 1.0))),
    Op("Not(f)", "1 where f is 0, else 0", lambda f: np.equal(f, 0) * 1.0, "select(f == 0, 1, 0)", (None,), flops=2,
       method="logical_not", special=(((0.0,), 1.0), ((-0.0,), 1.0), ((nan,), 0.0), ((0.5,), 0.0))),
    # -- constants
    Op("IntCst(; n)", "the integer n", lambda n: np.full((1, 1, 1), float(n)), macro="n", example=((), (7,)),
       dims="-> 1"),
    Op("RatCst(; p, q)", "the number p / q", lambda p, q: np.full((1, 1, 1), p / q), macro="p / q",
       example=((), (1, 3)), dims="-> 1"),
    Op("IntInv(; n)", "the number 1 / n", lambda n: np.full((1, 1, 1), 1 / n), macro="1 / n", example=((), (3,)),
       dims="-> 1"),
    Op("Zero(; n)", "n zeros", lambda n: np.zeros((1, 1, n)), macro="SumT(0, n)", example=((), (4,)), dims="-> n"),
    # -- row numbers: integers while they are compared, added and subtracted among themselves
    Op("IndexI()", "the number of the row i", lambda rows: rows, lambda c, m: c.row(0), dim=one, method="index_i",
       dims="-> 1"),
    Op("IndexJ()", "the number of the row j", lambda rows: rows, lambda c, m: c.row(1), dim=one, method="index_j",
       dims="-> 1"),
    Op("IndexIParts()", "the number of the row i in two values: the multiples of 2^20 in it, and the rest", _halves,
       lambda c, m: _half(c, m, 0), dim=lambda d, a: 2, method="index_i_parts", dims="-> 2"),
    Op("IndexJParts()", "the number of the row j in two values: the multiples of 2^20 in it, and the rest", _halves,
       lambda c, m: _half(c, m, 1), dim=lambda d, a: 2, method="index_j_parts", dims="-> 2"),
)  # fmt: skip
