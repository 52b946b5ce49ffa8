"""The table of operations: one entry says everything about an operation.

To add an operation, add one entry to `OPS`. Parser, derivative, kernels, oracle, documentation and the tests of value,
gradient, special values and broadcasting follow from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from math import inf, log10, nan
from typing import Any, Protocol

import numpy as np

from dred.errors import DimensionError, IndexRangeError, LimitError
from dred.formula.syntax import MAX_DIGITS

MAX_DIM = 1_000_000
MAX_EXPONENT = 1_000_000  # whole numbers up to here are exact in every compute type


class Component(Protocol):
    """What the meaning of a structural operation sees of the kernel being built; an index may be a loop counter."""

    dims: tuple[int, ...]  # of the arguments
    attrs: tuple[Any, ...]

    def arg(self, k: int, index: Any) -> Any:
        """Component `index` of argument k."""

    def fold(self, length: int, body: Callable[[Any], Any]) -> Any:
        """Sum of `body(0) ... body(length - 1)`."""

    def split(self, index: Any, at: int, left: Callable[[Any], Any], right: Callable[[Any], Any]) -> Any:
        """`left(index)` below position `at`, `right(index - at)` from there on."""

    def at(self, position: int) -> Any:
        """The index of a fixed position."""

    def prim(self, name: str, *args: Any) -> Any:
        """A primitive of scalars."""

    def const(self, value: int) -> Any:
        """A constant."""


Meaning = Callable[[Component, Any], Any]
DimRule = Callable[[tuple[int, ...], tuple[Any, ...]], int]


@dataclass(frozen=True)
class Op:
    """One operation.

    Attributes
    ----------
    signature : str
        Formula arguments, then, after a semicolon, integer attributes: "Elem(f; m)".
    doc : str
        One line.
    numpy : callable
        Independent reference on arrays whose last axis holds the components: `numpy(*arguments, *attributes)`.
    meaning : str or callable
        Scalar text over the arguments (element-wise operations; primitives in lower case), or a function of a
        `Component` and an index.
    partial : tuple of (str or None)
        Element-wise operations: derivative with respect to each argument as formula text over arguments, attributes,
        the result `y`; None: nothing flows.
    vjp : tuple of str
        Linear operations (in all arguments together, as `Concat`, or in each, as `Scalprod`): the cotangent of each
        argument, over the names above, the cotangent `e` and `dim(f)`.
    macro : str
        Operations that are short for a formula: that formula. They leave no node of their own.
    dim : callable, optional
        (dims, attrs) -> dim, raising `DimensionError` or `IndexRangeError`; None: element-wise, dims {D} or {1, D}.
    exact : callable, optional
        Value on exact constants.
    flops : int
        Operations per component of the result.
    domain : tuple of (low, high)
        Where tests sample each argument.
    example : tuple of (dims, attrs)
        A well-formed call for tests; by default every argument has dim 3.
    special : tuple of (arguments, result)
        Values at special points, by component.
    method : str
        Name of the method on lazy tensors; by default the name in lower case.
    """

    signature: str
    doc: str
    numpy: Callable[..., Any]
    meaning: str | Meaning = ""
    partial: tuple[str | None, ...] = ()
    vjp: tuple[str, ...] = ()
    macro: str = ""
    dim: DimRule | None = None
    exact: Callable[..., Fraction] | None = None
    flops: int = 1
    domain: tuple[tuple[float, float], ...] = ()
    example: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    special: tuple[tuple[tuple[float, ...], float], ...] = ()
    method: str = ""
    name: str = field(init=False)
    args: tuple[str, ...] = field(init=False)
    attrs: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        name, _, inner = self.signature.rstrip(")").partition("(")
        args, _, attrs = inner.partition(";")
        names = [tuple(word.strip() for word in part.split(",") if word.strip()) for part in (args, attrs)]
        for key, value in zip(("name", "args", "attrs"), (name, *names), strict=True):
            object.__setattr__(self, key, value)
        object.__setattr__(self, "method", self.method or name.lower())


# -- rules of dimension ------------------------------------------------------------------------------------------------


def elementwise(dims: tuple[int, ...], attrs: tuple[Any, ...] = ()) -> int:
    """{D} or {1, D}."""
    widest = max(dims)
    if any(d not in (1, widest) for d in dims):
        raise DimensionError(f"dimensions {dims} do not broadcast: each must be 1 or {widest}")
    return widest


def length(n: int) -> int:
    """A dimension given as an integer."""
    if not 1 <= n <= MAX_DIM:
        raise LimitError(f"dimension {n} is outside 1 ... {MAX_DIM}")
    return n


def _inside(position: int, dim: int, what: str = "component") -> None:
    if not 0 <= position < dim:
        raise IndexRangeError(f"{what} {position} is outside a vector of dimension {dim}: 0 ... {dim - 1}")


def _scalar(dim: int) -> None:
    if dim != 1:
        raise DimensionError(f"the argument must have dimension 1, got {dim}")


def _dot(dims: tuple[int, ...], attrs: tuple[Any, ...]) -> int:
    elementwise(dims)
    return 1


def _repeat(dims: tuple[int, ...], attrs: tuple[Any, ...]) -> int:
    _scalar(dims[0])
    return length(attrs[0])


def _elem(dims: tuple[int, ...], attrs: tuple[Any, ...]) -> int:
    _inside(attrs[0], dims[0])
    return 1


def _elem_t(dims: tuple[int, ...], attrs: tuple[Any, ...]) -> int:
    n, m = attrs
    _scalar(dims[0])
    _inside(m, length(n))
    return int(n)


def _extract(dims: tuple[int, ...], attrs: tuple[Any, ...]) -> int:
    start, n = attrs
    if start < 0 or start + length(n) > dims[0]:
        end = start + n - 1
        raise IndexRangeError(f"components {start} ... {end} are not inside a vector of dimension {dims[0]}")
    return int(n)


def _extract_t(dims: tuple[int, ...], attrs: tuple[Any, ...]) -> int:
    start, n = attrs
    if start < 0 or start + dims[0] > length(n):
        end = start + dims[0] - 1
        raise IndexRangeError(f"components {start} ... {end} are not inside a vector of dimension {n}")
    return int(n)


def _exponent(dims: tuple[int, ...], attrs: tuple[Any, ...]) -> int:
    if abs(attrs[0]) > MAX_EXPONENT:
        raise LimitError(f"the exponent {attrs[0]} is outside -{MAX_EXPONENT} ... {MAX_EXPONENT}")
    return dims[0]


# -- references -------------------------------------------------------------------------------------------------------


def _rsqrt(f: Any) -> Any:
    return np.where(f == 0, 0.0, 1 / np.sqrt(f))


def _sign(f: Any) -> Any:
    return np.where(np.isnan(f), 0.0, np.sign(f))


def _total(f: Any) -> Any:
    return f.sum(-1, keepdims=True)


def _concat(f: Any, g: Any) -> Any:
    lead = np.broadcast_shapes(f.shape[:-1], g.shape[:-1])
    return np.concatenate([np.broadcast_to(v, lead + v.shape[-1:]) for v in (f, g)], -1)


def _embed(f: Any, start: int, n: int) -> Any:
    out = np.zeros((*f.shape[:-1], n))
    out[..., start : start + f.shape[-1]] = f
    return out


# -- meanings of structural operations --------------------------------------------------------------------------------


def _window(c: Component, m: Any, start: int, size: int) -> Any:
    """Argument 0 at positions start ... start + size - 1, zeros elsewhere."""

    def nothing(_: Any) -> Any:
        return c.const(0)

    def inside(k: Any) -> Any:
        return c.arg(0, k)

    return c.split(m, start, nothing, lambda rest: c.split(rest, size, inside, nothing))


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


ANY, POSITIVE, AWAY = (-2.0, 2.0), (0.3, 3.0), (0.4, 2.0)

_ENTRIES = (
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
       special=(((-2.5,), -15.625), ((inf,), inf), ((nan,), nan))),
    Op("Scalprod(f, g)", "(f | g): sum of f[k] * g[k]", lambda f, g: _total(f * g),
       lambda c, m: c.fold(max(c.dims), lambda k: c.prim("mul", c.arg(0, k), c.arg(1, k))),
       vjp=("e * g", "e * f"), dim=_dot, flops=2, method="scalprod"),
    # -- element-wise functions
    Op("Exp(f)", "exponential", np.exp, "exp(f)", ("y",), flops=12,
       special=(((0.0,), 1.0), ((-inf,), 0.0), ((inf,), inf), ((nan,), nan), ((1000.0,), inf), ((-1000.0,), 0.0))),
    Op("Log(f)", "natural logarithm", np.log, "log(f)", ("1 / f",), flops=40, domain=(POSITIVE,),
       special=(((0.0,), -inf), ((-1.0,), nan), ((1.0,), 0.0), ((inf,), inf))),
    Op("Sin(f)", "sine", np.sin, "sin(f)", ("Cos(f)",), flops=40, special=(((0.0,), 0.0), ((inf,), nan))),
    Op("Cos(f)", "cosine", np.cos, "cos(f)", ("-Sin(f)",), flops=40, special=(((0.0,), 1.0), ((-inf,), nan))),
    Op("Sqrt(f)", "square root; derivative 0 at 0", np.sqrt, "sqrt(f)", ("Rsqrt(f) / 2",), flops=8,
       domain=(POSITIVE,), special=(((0.0,), 0.0), ((-1.0,), nan), ((inf,), inf), ((4.0,), 2.0))),
    Op("Rsqrt(f)", "1 / sqrt(f); 0 at 0", _rsqrt, "select(f == 0, 0, 1 / sqrt(f))", ("-Pow(y, 3) / 2",), flops=16,
       domain=(POSITIVE,), special=(((0.0,), 0.0), ((-1.0,), nan), ((4.0,), 0.5), ((inf,), 0.0))),
    Op("Abs(f)", "absolute value; derivative 0 at 0", np.abs, "abs(f)", ("Sign(f)",), exact=abs, domain=(AWAY,),
       special=(((-inf,), inf), ((-2.0,), 2.0), ((nan,), nan))),
    Op("Sign(f)", "-1, 0 or 1; 0 for NaN", _sign, "select(0 < f, 1, select(f < 0, -1, 0))", (None,), flops=3,
       domain=(AWAY,), special=(((0.0,), 0.0), ((-3.0,), -1.0), ((nan,), 0.0), ((inf,), 1.0))),
    # -- comparisons: 1 or 0, nothing flows back
    Op("LessThan(f, g)", "f < g", lambda f, g: np.less(f, g) * 1.0, "select(f < g, 1, 0)", (None, None), flops=2,
       special=(((1.0, 2.0), 1.0), ((2.0, 2.0), 0.0), ((nan, 1.0), 0.0))),
    Op("LessOrEqual(f, g)", "f <= g", lambda f, g: np.less_equal(f, g) * 1.0, "select(f <= g, 1, 0)", (None, None),
       flops=2, special=(((2.0, 2.0), 1.0), ((3.0, 2.0), 0.0), ((1.0, nan), 0.0))),
    Op("Equal(f, g)", "f == g", lambda f, g: np.equal(f, g) * 1.0, "select(f == g, 1, 0)", (None, None), flops=2,
       special=(((2.0, 2.0), 1.0), ((0.0, -0.0), 1.0), ((nan, nan), 0.0))),
    Op("NotEqual(f, g)", "f != g", lambda f, g: np.not_equal(f, g) * 1.0, "select(f != g, 1, 0)", (None, None), flops=2,
       special=(((2.0, 2.0), 0.0), ((1.0, 2.0), 1.0), ((nan, nan), 1.0))),
    # -- inner sums, selection, assembly
    Op("Sum(f)", "sum of the components", _total, lambda c, m: c.fold(c.dims[0], lambda k: c.arg(0, k)),
       vjp=("SumT(e, dim(f))",), dim=lambda d, a: 1),
    Op("SumT(f; n)", "a scalar, repeated n times", lambda f, n: np.repeat(f, n, -1), lambda c, m: c.arg(0, c.at(0)),
       vjp=("Sum(e)",), dim=_repeat, flops=0, example=((1,), (3,))),
    Op("Elem(f; m)", "component m", lambda f, m: f[..., m : m + 1], lambda c, m: c.arg(0, c.at(c.attrs[0])),
       vjp=("ElemT(e, dim(f), m)",), dim=_elem, flops=0, example=((3,), (1,))),
    Op("ElemT(f; n, m)", "n zeros with the scalar f at position m", lambda f, n, m: _embed(f, m, n),
       lambda c, m: _window(c, m, c.attrs[1], 1), vjp=("Elem(e, m)",), dim=_elem_t, flops=0, example=((1,), (4, 2))),
    Op("Extract(f; start, n)", "components start ... start + n - 1", lambda f, start, n: f[..., start : start + n],
       lambda c, m: c.arg(0, m.shifted(c.attrs[0])), vjp=("ExtractT(e, start, dim(f))",), dim=_extract, flops=0,
       example=((5,), (1, 3))),
    Op("ExtractT(f; start, n)", "n zeros with f from position start on", _embed,
       lambda c, m: _window(c, m, c.attrs[0], c.dims[0]), vjp=("Extract(e, start, dim(f))",), dim=_extract_t, flops=0,
       example=((2,), (1, 5))),
    Op("Concat(f, g)", "f, then g", _concat,
       lambda c, m: c.split(m, c.dims[0], lambda k: c.arg(0, k), lambda k: c.arg(1, k)),
       vjp=("Extract(e, 0, dim(f))", "Extract(e, dim(f), dim(g))"), dim=lambda d, a: length(sum(d)), flops=0,
       example=((2, 3), ())),
    # -- norms and distances
    Op("SqNorm2(f)", "sum of the squares", lambda f: _total(f * f), macro="Sum(Square(f))"),
    Op("Norm2(f)", "Euclidean norm; gradient 0 at 0", lambda f: np.sqrt(_total(f * f)), macro="Sqrt(SqNorm2(f))"),
    Op("SqDist(f, g)", "squared distance", lambda f, g: _total((f - g) ** 2), macro="Sum(Square(f - g))"),
    # -- constants
    Op("IntCst(; n)", "the integer n", lambda n: np.full((1, 1, 1), float(n)), macro="n", example=((), (7,))),
    Op("RatCst(; p, q)", "the number p / q", lambda p, q: np.full((1, 1, 1), p / q), macro="p / q",
       example=((), (1, 3))),
    Op("IntInv(; n)", "the number 1 / n", lambda n: np.full((1, 1, 1), 1 / n), macro="1 / n", example=((), (3,))),
    Op("Zero(; n)", "n zeros", lambda n: np.zeros((1, 1, n)), macro="SumT(0, n)", example=((), (4,))),
)  # fmt: skip

OPS: Mapping[str, Op] = {op.name: op for op in _ENTRIES}
