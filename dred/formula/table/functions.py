"""Element-wise functions of one and of several arguments."""

from __future__ import annotations

import math
from fractions import Fraction
from math import inf, nan
from typing import Any

import numpy as np

from dred.errors import LimitError
from dred.formula.op import ANY, AWAY, POSITIVE, Attrs, Component, Dims, Op

MAX_DECIMALS = 30  # of Round: powers of ten up to here are within the range of every compute type

SMALL, INNER = (-0.8, 0.8), (-1.2, 1.2)


def _rsqrt(f: Any) -> Any:
    return np.where(f == 0, 0.0, 1 / np.sqrt(f))


def _xlogx(f: Any) -> Any:
    return np.where(f == 0, 0.0, f * np.log(f))


def _sinc(f: Any) -> Any:
    return np.where(f == 0, 1.0, np.sin(f) / np.where(f == 0, 1.0, f))


def _erf(f: Any) -> Any:
    return np.asarray(np.frompyfunc(math.erf, 1, 1)(np.asarray(f, np.float64)), np.float64)


def _clamp(f: Any, a: Any, b: Any) -> Any:
    return np.where(f < a, a, np.where(f > b, b, f))


def _away_from_zero(f: Any) -> Any:
    """To the nearest integer, halves away from zero."""
    whole = np.trunc(f)
    return np.where(np.abs(f - whole) >= 0.5, whole + np.sign(f), whole)


def _rounded(f: Any, n: int) -> Any:
    scale = np.asarray(f).dtype.type(10.0 ** abs(n))
    return _away_from_zero(f * scale) / scale if n >= 0 else _away_from_zero(f / scale) * scale


def _decimals(dims: Dims, attrs: Attrs) -> int:
    if abs(attrs[0]) > MAX_DECIMALS:
        raise LimitError(f"the number of decimals {attrs[0]} is outside -{MAX_DECIMALS} ... {MAX_DECIMALS}")
    return dims[0]


def _round(c: Component, m: Any) -> Any:
    f, n = c.arg(0, m), c.attrs[0]
    if n == 0:
        return c.prim("round", f)
    scale = c.const(Fraction(10) ** abs(n))
    before, after = ("mul", "div") if n > 0 else ("div", "mul")
    return c.prim(after, c.prim("round", c.prim(before, f, scale)), scale)


def _sigmoid(f: Any) -> Any:
    e = np.exp(-np.abs(f))
    return np.where(f < 0, e, 1.0) / (1 + e)


def _softplus(f: Any) -> Any:
    return np.where(f < 0, 0.0, f) + np.log1p(np.exp(-np.abs(f)))


ENTRIES = (
    # -- exponentials, logarithms, powers
    Op("Exp(f)", "exponential", np.exp, "exp(f)", ("y",), flops=12,
       special=(((0.0,), 1.0), ((-inf,), 0.0), ((inf,), inf), ((nan,), nan), ((1000.0,), inf), ((-1000.0,), 0.0))),
    Op("Expm1(f)", "exp(f) - 1, accurate near 0", np.expm1, "expm1(f)", ("y + 1",), flops=40,
       special=(((0.0,), 0.0), ((-inf,), -1.0), ((1000.0,), inf), ((1e-30,), 1e-30))),
    Op("Log(f)", "natural logarithm", np.log, "log(f)", ("1 / f",), flops=40, domain=(POSITIVE,),
       special=(((0.0,), -inf), ((-1.0,), nan), ((1.0,), 0.0), ((inf,), inf))),
    Op("Log1p(f)", "log(1 + f), accurate near 0", np.log1p, "log1p(f)", ("1 / (1 + f)",), flops=40, domain=(POSITIVE,),
       special=(((0.0,), 0.0), ((-1.0,), -inf), ((-2.0,), nan), ((1e-30,), 1e-30), ((inf,), inf))),
    Op("XLogX(f)", "f * log(f); 0 at 0", _xlogx, "select(f == 0, 0, f * log(f))", ("Log(f) + 1",), flops=40,
       domain=(POSITIVE,), special=(((0.0,), 0.0), ((-1.0,), nan), ((1.0,), 0.0), ((inf,), inf))),
    Op("Sqrt(f)", "square root; derivative 0 at 0", np.sqrt, "sqrt(f)", ("Rsqrt(f) / 2",), flops=8,
       domain=(POSITIVE,), special=(((0.0,), 0.0), ((-1.0,), nan), ((inf,), inf), ((4.0,), 2.0))),
    Op("Rsqrt(f)", "1 / sqrt(f); 0 at 0", _rsqrt, "select(f == 0, 0, 1 / sqrt(f))", ("-Pow(y, 3) / 2",), flops=16,
       domain=(POSITIVE,), special=(((0.0,), 0.0), ((-1.0,), nan), ((4.0,), 0.5), ((inf,), 0.0))),
    # -- circular and hyperbolic functions
    Op("Sin(f)", "sine", np.sin, "sin(f)", ("Cos(f)",), flops=40, special=(((0.0,), 0.0), ((inf,), nan))),
    Op("Cos(f)", "cosine", np.cos, "cos(f)", ("-Sin(f)",), flops=40, special=(((0.0,), 1.0), ((-inf,), nan))),
    Op("Tan(f)", "tangent", np.tan, "tan(f)", ("1 + Square(y)",), flops=60, domain=(INNER,),
       special=(((0.0,), 0.0), ((inf,), nan))),
    Op("Asin(f)", "arc sine; derivative 0 at -1 and 1", np.arcsin, "asin(f)", ("Rsqrt(1 - Square(f))",), flops=60,
       domain=(SMALL,), special=(((0.0,), 0.0), ((2.0,), nan))),
    Op("Acos(f)", "arc cosine; derivative 0 at -1 and 1", np.arccos, "acos(f)", ("-Rsqrt(1 - Square(f))",), flops=60,
       domain=(SMALL,), special=(((1.0,), 0.0), ((-2.0,), nan))),
    Op("Atan(f)", "arc tangent", np.arctan, "atan(f)", ("1 / (1 + Square(f))",), flops=60, special=(((0.0,), 0.0),)),
    Op("Atan2(f, g)", "angle of the point with abscissa g and ordinate f, above -pi",
       lambda f, g: np.arctan2(f + 0.0, g), "atan2(f + 0, g)",  # the ordinate -0 is 0
       ("g / (Square(f) + Square(g))", "-f / (Square(f) + Square(g))"), flops=80, domain=(AWAY, AWAY),
       special=(((0.0, 1.0), 0.0), ((0.0, 0.0), 0.0), ((nan, 1.0), nan))),
    Op("Sinh(f)", "hyperbolic sine", np.sinh, "sinh(f)", ("Cosh(f)",), flops=60,
       special=(((0.0,), 0.0), ((-inf,), -inf), ((1000.0,), inf))),
    Op("Cosh(f)", "hyperbolic cosine", np.cosh, "cosh(f)", ("Sinh(f)",), flops=60,
       special=(((0.0,), 1.0), ((-inf,), inf), ((1000.0,), inf))),
    Op("Tanh(f)", "hyperbolic tangent", np.tanh, "tanh(f)", ("1 - Square(y)",), flops=60,
       special=(((0.0,), 0.0), ((inf,), 1.0), ((-1000.0,), -1.0), ((nan,), nan))),
    Op("SinXDivX(f)", "sin(f) / f; 1 at 0, derivative 0 there", _sinc, "select(f == 0, 1, sin(f) / f)",
       ("IfElse(-Abs(f), 0, (Cos(f) - y) / f)",), flops=50, domain=(AWAY,), special=(((0.0,), 1.0), ((-0.0,), 1.0))),
    # -- sigmoids
    Op("Sigmoid(f)", "1 / (1 + exp(-f)), without overflow", _sigmoid,
       "select(f < 0, exp(-abs(f)), 1) / (1 + exp(-abs(f)))", ("y * Sigmoid(-f)",), flops=30,
       special=(((0.0,), 0.5), ((-1000.0,), 0.0), ((1000.0,), 1.0), ((nan,), nan), ((-inf,), 0.0))),
    Op("Softplus(f)", "log(1 + exp(f)), without overflow", _softplus,
       "select(f < 0, 0, f) + log1p(exp(-abs(f)))", ("Sigmoid(f)",), flops=60,
       special=(((-1000.0,), 0.0), ((1000.0,), 1000.0), ((inf,), inf), ((nan,), nan))),
    Op("Erf(f)", "error function", _erf, "erf(f)", ("1.12837916709551257389615890312 * Exp(-Square(f))",), flops=60,
       special=(((0.0,), 0.0), ((inf,), 1.0), ((-inf,), -1.0), ((nan,), nan))),
    # -- signs and steps
    Op("Abs(f)", "absolute value; derivative 0 at 0", np.abs, "abs(f)", ("Sign(f)",), exact=abs, domain=(AWAY,),
       special=(((-inf,), inf), ((-2.0,), 2.0), ((nan,), nan))),
    Op("Sign(f)", "-1, 0 or 1; 0 for NaN", lambda f: np.where(np.isnan(f), 0.0, np.sign(f)),
       "select(0 < f, 1, select(f < 0, -1, 0))", (None,), flops=3, domain=(AWAY,),
       special=(((0.0,), 0.0), ((-3.0,), -1.0), ((nan,), 0.0), ((inf,), 1.0))),
    Op("Step(f)", "0 where f < 0, else 1; 1 for NaN", lambda f: np.where(f < 0, 0.0, 1.0), "select(f < 0, 0, 1)",
       (None,), flops=2, domain=(AWAY,), special=(((0.0,), 1.0), ((-0.0,), 1.0), ((nan,), 1.0), ((-inf,), 0.0))),
    Op("ReLU(f)", "0 where f < 0, else f; derivative 1 at 0", lambda f: np.where(f < 0, 0.0, f), "select(f < 0, 0, f)",
       vjp=("IfElse((f < 0) - 1, 0, e)",), mask=True, flops=2, domain=(AWAY,),
       special=(((-3.0,), 0.0), ((nan,), nan), ((inf,), inf), ((-inf,), 0.0))),
    # -- to whole numbers
    Op("Floor(f)", "largest integer that is not above f", np.floor, "floor(f)", (None,),
       special=(((-2.5,), -3.0), ((2.5,), 2.0), ((inf,), inf), ((nan,), nan))),
    Op("Ceil(f)", "smallest integer that is not below f", np.ceil, "ceil(f)", (None,),
       special=(((-2.5,), -2.0), ((2.5,), 3.0), ((-inf,), -inf), ((nan,), nan))),
    Op("Trunc(f)", "f without its decimals", np.trunc, "trunc(f)", (None,),
       special=(((-2.5,), -2.0), ((2.5,), 2.0), ((inf,), inf), ((nan,), nan))),
    Op("Round(f; n)", "f to n decimals, halves away from zero", _rounded, _round, (None,), dim=_decimals, flops=10,
       example=((3,), (1,)), special=(((0.25,), 0.3), ((-0.25,), -0.3), ((inf,), inf), ((nan,), nan)), dims="d -> d"),
    # -- several arguments
    Op("Clamp(f, a, b)", "a where f < a, else b where f > b, else f", _clamp, "select(f < a, a, select(b < f, b, f))",
       vjp=("IfElse((a <= f) * (f <= b) - 1, e, 0)", "IfElse((f < a) - 1, e, 0)",
            "IfElse((b < f) * (1 - (f < a)) - 1, e, 0)"),
       mask=True, flops=4, domain=(ANY, (-1.2, -0.8), (0.8, 1.2)),
       special=(((2.0, -1.0, 1.0), 1.0), ((-2.0, -1.0, 1.0), -1.0), ((0.5, -1.0, 1.0), 0.5), ((0.0, 1.0, -1.0), 1.0),
                ((nan, -1.0, 1.0), nan))),
    Op("ClampInt(f; a, b)", "Clamp(f, a, b) for integers a and b", _clamp, macro="Clamp(f, a, b)",
       example=((3,), (-1, 1)), special=(((2.5,), 1.0), ((-1.0,), -1.0), ((nan,), nan)), dims="d -> d"),
    Op("DiffClampInt(f; a, b)", "1 where a <= f <= b, else 0", lambda f, a, b: ((a <= f) & (f <= b)) * 1.0,
       macro="(a <= f) * (f <= b)", example=((3,), (-1, 1)),
       special=(((1.0,), 1.0), ((-1.5,), 0.0), ((nan,), 0.0)), dims="d -> d"),
    Op("IfElse(f, g, h)", "g where f >= 0, else h", lambda f, g, h: np.where(f >= 0, g, h), "select(0 <= f, g, h)",
       vjp=(None, "IfElse(f, e, 0)", "IfElse(f, 0, e)"), mask=True, flops=2,
       special=(((0.0, 1.0, nan), 1.0), ((-1.0, inf, 2.0), 2.0), ((nan, 1.0, 2.0), 2.0), ((-0.0, 1.0, 2.0), 1.0))),
    Op("Mod(f, n, o)", "f - n * floor((f - o) / n), between o and o + n", lambda f, n, o: f - n * np.floor((f - o) / n),
       "f - n * floor((f - o) / n)", ("1", "-Floor((f - o) / n)", None), flops=12, domain=(ANY, (0.8, 1.5), ANY),
       special=(((-2.5, 2.0, 0.0), 1.5), ((2.5, 2.0, -1.0), 0.5))),
    Op("Hypot(f, g)", "sqrt(f^2 + g^2), without overflow; derivative 0 at the origin", np.hypot, "hypot(f, g)",
       ("IfElse(-y, 0, f / y)", "IfElse(-y, 0, g / y)"), flops=60, domain=(AWAY, AWAY),
       special=(((3.0, -4.0), 5.0), ((0.0, 0.0), 0.0), ((inf, nan), inf))),
)  # fmt: skip
