"""Complex numbers: a complex vector of length n is a vector of dimension 2 n, real and imaginary parts in turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dred.errors import DimensionError
from dred.formula.op import AWAY, Attrs, Dims, Op, elementwise, length


def _complex(f: Any) -> Any:
    return np.ascontiguousarray(f).view(np.result_type(f, np.complex64))


def _pair(f: Any, g: Any) -> Any:
    """Real and imaginary parts in turn."""
    f, g = np.broadcast_arrays(f, g)
    return np.stack([f, g], -1).reshape((*f.shape[:-1], -1))


def _on_complex(function: Callable[..., Any]) -> Callable[..., Any]:
    """A reference on complex arrays as one on pairs of real numbers."""

    def on_pairs(*args: Any) -> Any:
        z = function(*map(_complex, args))
        return _pair(z.real, z.imag)

    return on_pairs


def _divided(f: Any, g: Any) -> Any:
    re, im, u, v = f[..., 0::2], f[..., 1::2], g[..., 0::2], g[..., 1::2]
    squares = u * u + v * v
    return _pair((re * u + im * v) / squares, (im * u - re * v) / squares)


def _exponential(f: Any) -> Any:
    size = np.exp(f[..., 0::2])
    return _pair(size * np.cos(f[..., 1::2]), size * np.sin(f[..., 1::2]))


# -- rules of dimension ------------------------------------------------------------------------------------------------


def _even(dim: int) -> int:
    if dim % 2:
        raise DimensionError(f"a complex vector has an even dimension, got {dim}")
    return dim


def _pairs(dims: Dims, attrs: Attrs) -> int:
    """{2 D} or {2, 2 D}."""
    widest = max(map(_even, dims))
    if any(d not in (2, widest) for d in dims):
        raise DimensionError(f"dimensions {dims} do not broadcast: each must be 2 or {widest}")
    return widest


def _half(dims: Dims, attrs: Attrs) -> int:
    return _even(dims[0]) // 2


def _twice(dims: Dims, attrs: Attrs) -> int:
    return length(2 * elementwise(dims))


def _scaled(dims: Dims, attrs: Attrs) -> int:
    if 1 not in dims:
        raise DimensionError(f"one of the arguments must be a real number, of dimension 1, got dimensions {dims}")
    return _even(max(dims))


def _total(dims: Dims, attrs: Attrs) -> int:
    return min(2, _even(dims[0]))


def _repeated(dims: Dims, attrs: Attrs) -> int:
    if dims[0] != 2:
        raise DimensionError(f"the argument must be a complex number, of dimension 2, got {dims[0]}")
    return length(_even(attrs[0]))


PRODUCT = (
    "ComplexPair(ComplexReal(f) * ComplexReal(g) - ComplexImag(f) * ComplexImag(g),"
    " ComplexReal(f) * ComplexImag(g) + ComplexImag(f) * ComplexReal(g))"
)
QUOTIENT = (
    "ComplexPair((ComplexReal(f) * ComplexReal(g) + ComplexImag(f) * ComplexImag(g)) / ComplexSquareAbs(g),"
    " (ComplexImag(f) * ComplexReal(g) - ComplexReal(f) * ComplexImag(g)) / ComplexSquareAbs(g))"
)

ENTRIES = (
    # -- to and from real numbers
    Op("ComplexPair(f, g)", "f + i g", _pair,
       lambda c, m: (lambda k, r: c.split(r, 1, lambda _: c.arg(0, k), lambda _: c.arg(1, k)))(
           *c.digits(m, (max(c.dims), 2))),
       vjp=("ComplexReal(e)", "ComplexImag(e)"), dim=_twice, flops=0, example=((2, 2), ()),
       dims="n or 1, n or 1 -> 2 n", kinds="rr->c"),
    Op("ComplexReal(f)", "real parts", lambda f: f[..., 0::2], lambda c, m: c.arg(0, m.scaled(2)),
       vjp=("ComplexPair(e, 0)",), dim=_half, flops=0, example=((4,), ()), method="real", dims="2 n -> n",
       kinds="c->r"),
    Op("ComplexImag(f)", "imaginary parts", lambda f: f[..., 1::2], lambda c, m: c.arg(0, m.scaled(2).shifted(1)),
       vjp=("ComplexPair(0, e)",), dim=_half, flops=0, example=((4,), ()), method="imag", dims="2 n -> n",
       kinds="c->r"),
    Op("Real2Complex(f)", "f + 0 i", lambda f: _pair(f, np.zeros(1)), macro="ComplexPair(f, 0)", example=((3,), ()),
       dims="n -> 2 n", kinds="r->c"),
    Op("Imag2Complex(f)", "0 + i f", lambda f: _pair(np.zeros(1), f), macro="ComplexPair(0, f)", example=((3,), ()),
       dims="n -> 2 n", kinds="r->c"),
    # -- arithmetic
    Op("Conj(f)", "complex conjugate", _on_complex(np.conj), macro="ComplexPair(ComplexReal(f), -ComplexImag(f))",
       dim=_pairs, example=((4,), ()), dims="2 n -> 2 n", kinds="c->c"),
    Op("ComplexAdd(f, g)", "f + g", _on_complex(np.add), dim=_pairs, example=((4, 2), ()),
       macro="ComplexPair(ComplexReal(f) + ComplexReal(g), ComplexImag(f) + ComplexImag(g))",
       dims="2 n or 2, 2 n or 2 -> 2 n", kinds="cc->c"),
    Op("ComplexSubtract(f, g)", "f - g", _on_complex(np.subtract), dim=_pairs, example=((2, 4), ()),
       macro="ComplexPair(ComplexReal(f) - ComplexReal(g), ComplexImag(f) - ComplexImag(g))",
       dims="2 n or 2, 2 n or 2 -> 2 n", kinds="cc->c"),
    Op("ComplexMult(f, g)", "f * g", _on_complex(np.multiply), macro=PRODUCT, dim=_pairs, example=((4, 4), ()),
       dims="2 n or 2, 2 n or 2 -> 2 n", kinds="cc->c"),
    Op("ComplexRealScal(f, g)", "a real number times a complex vector", np.multiply, macro="f * g", dim=_scaled,
       example=((1, 4), ()), dims="1, 2 n -> 2 n; 2 n, 1 -> 2 n", kinds="rc->c"),
    Op("ComplexDivide(f, g)", "f / g", _divided, macro=QUOTIENT, dim=_pairs, example=((4, 2), ()),
       domain=(AWAY, AWAY), dims="2 n or 2, 2 n or 2 -> 2 n", kinds="cc->c"),
    # -- absolute value, angle, exponentials
    Op("ComplexSquareAbs(f)", "re^2 + im^2", lambda f: f[..., 0::2] ** 2 + f[..., 1::2] ** 2,
       macro="Square(ComplexReal(f)) + Square(ComplexImag(f))", dim=_half, example=((4,), ()), dims="2 n -> n",
       kinds="c->r"),
    Op("ComplexAbs(f)", "absolute value; gradient 0 at 0", lambda f: np.sqrt(f[..., 0::2] ** 2 + f[..., 1::2] ** 2),
       macro="Sqrt(ComplexSquareAbs(f))", dim=_half, example=((4,), ()), dims="2 n -> n",
       kinds="c->r"),
    Op("ComplexAngle(f)", "angle, between -pi and pi", lambda f: np.arctan2(f[..., 1::2] + 0.0, f[..., 0::2]),
       macro="Atan2(ComplexImag(f), ComplexReal(f))", dim=_half, example=((4,), ()), domain=(AWAY,), method="angle",
       dims="2 n -> n", kinds="c->r"),
    Op("ComplexExp(f)", "exponential", _exponential, dim=_pairs, example=((4,), ()),
       macro="let r = Exp(ComplexReal(f)); ComplexPair(r * Cos(ComplexImag(f)), r * Sin(ComplexImag(f)))",
       dims="2 n -> 2 n", kinds="c->c"),
    Op("ComplexExp1j(f)", "exp(i f)", lambda f: _pair(np.cos(f), np.sin(f)), macro="ComplexPair(Cos(f), Sin(f))",
       example=((3,), ()), method="exp1j", dims="n -> 2 n", kinds="r->c"),
    # -- sums
    Op("ComplexSum(f)", "sum of the components", _on_complex(lambda z: z.sum(-1, keepdims=True)), dim=_total,
       macro="ComplexPair(Sum(ComplexReal(f)), Sum(ComplexImag(f)))", example=((6,), ()), dims="2 n -> 2",
       kinds="c->c"),
    Op("ComplexSumT(f; m)", "a complex number, repeated m / 2 times", lambda f, m: np.tile(f, m // 2), dim=_repeated,
       macro="ComplexPair(SumT(ComplexReal(f), m / 2), SumT(ComplexImag(f), m / 2))", example=((2,), (6,)),
       dims="2 -> m", kinds="c->c"),
)  # fmt: skip
