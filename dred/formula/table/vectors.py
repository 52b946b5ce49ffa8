"""Inner reductions, selection and assembly of components, norms and distances."""

from __future__ import annotations

from math import inf, nan
from typing import Any

import numpy as np

from dred.errors import DimensionError, IndexRangeError
from dred.formula.op import ANY, POSITIVE, Attrs, Component, Dims, Op, dot, inside, length, one, scalar


def _repeat(dims: Dims, attrs: Attrs) -> int:
    scalar(dims[0])
    return length(attrs[0])


def _elem(dims: Dims, attrs: Attrs) -> int:
    inside(attrs[0], dims[0])
    return 1


def _elem_t(dims: Dims, attrs: Attrs) -> int:
    n, m = attrs
    scalar(dims[0])
    inside(m, length(n))
    return int(n)


def _extract(dims: Dims, attrs: Attrs) -> int:
    start, n = attrs
    if start < 0 or start + length(n) > dims[0]:
        end = start + n - 1
        raise IndexRangeError(f"components {start} ... {end} are not inside a vector of dimension {dims[0]}")
    return int(n)


def _extract_t(dims: Dims, attrs: Attrs) -> int:
    start, n = attrs
    if start < 0 or start + dims[0] > length(n):
        end = start + dims[0] - 1
        raise IndexRangeError(f"components {start} ... {end} are not inside a vector of dimension {n}")
    return int(n)


def _scaled_norm(dims: Dims, attrs: Attrs) -> int:
    scalar(dims[0], "weight")
    return 1


def _diagonal_norm(dims: Dims, attrs: Attrs) -> int:
    if dims[0] != dims[1]:
        raise DimensionError(f"the weights have dimension {dims[0]}, the vector {dims[1]}: they must be equal")
    return 1


def _matrix_norm(dims: Dims, attrs: Attrs) -> int:
    if dims[0] != dims[1] ** 2:
        d = dims[1]
        raise DimensionError(f"the matrix has dimension {dims[0]}: a vector of dimension {d} needs {d * d}")
    return 1


def _weighted_norm(dims: Dims, attrs: Attrs) -> int:
    d = max(dims[1:])
    if dims[0] not in (1, d, d * d):
        sizes = f"1, {d} or {d * d}" if d > 1 else "1"
        raise DimensionError(f"the weights have dimension {dims[0]}: a vector of dimension {d} takes {sizes}")
    return dot(dims[1:], attrs)


def _weighted(dims: Dims, attrs: Attrs) -> str:
    """The norm that fits the weights."""
    if dims[0] == 1:
        return "SqNormIso(A, {})"
    return "SqNormDiag(A, {})" if dims[0] == max(dims[1:]) else "SymSqNorm(A, {})"


def _weighted_sum(A: Any, f: Any) -> Any:
    if A.shape[-1] in (1, f.shape[-1]):
        return _total(A * (f * f))
    return _total(f * (A.reshape((*A.shape[:-1], f.shape[-1], -1)) @ f[..., None])[..., 0])


def _numbered(dim: int, dq: int, dp: int) -> None:
    """Row numbers in halves, for every component of a vector, and one row number."""
    if dq != 2 * dim:
        raise DimensionError(f"the row numbers q have dimension {dq}: two halves for {dim} components are {2 * dim}")
    if dp != 2:
        raise DimensionError(f"the row number parts has dimension {dp}: it has two halves, as IndexJParts()")


def _routed_dim(dims: Dims, attrs: Attrs) -> int:
    n = length(attrs[0])
    if dims[0] % n:
        raise DimensionError(f"the vector has dimension {dims[0]}, which is no multiple of n = {n}")
    _numbered(*dims)
    return n


def _placed_dim(dims: Dims, attrs: Attrs) -> int:
    dim = dims[0] * length(attrs[0])
    _numbered(dim, *dims[1:])
    return length(dim)


def _chosen(q: Any, parts: Any) -> Any:
    high, low = np.split(q, 2, -1)
    return (high == parts[..., :1]) & (low == parts[..., 1:])


def _routed(f: Any, q: Any, parts: Any, n: int) -> Any:
    taken = np.where(_chosen(q, parts), f, 0.0)
    return taken.reshape((*taken.shape[:-1], -1, n)).sum(-2)


def _placed(f: Any, q: Any, parts: Any, k: int) -> Any:
    return np.where(_chosen(q, parts), np.concatenate([f] * k, -1), 0.0)


def _total(f: Any) -> Any:
    return f.sum(-1, keepdims=True)


def _concat(f: Any, g: Any) -> Any:
    lead = np.broadcast_shapes(f.shape[:-1], g.shape[:-1])
    return np.concatenate([np.broadcast_to(v, lead + v.shape[-1:]) for v in (f, g)], -1)


def _embed(f: Any, start: int, n: int) -> Any:
    out = np.zeros((*f.shape[:-1], n))
    out[..., start : start + f.shape[-1]] = f
    return out


def _unit(f: Any) -> Any:
    squares = _total(f * f)
    return np.where(squares == 0, 0.0, 1 / np.sqrt(squares)) * f


def _extremum(f: Any, sign: int) -> tuple[Any, Any]:
    """Value and place of the first largest component of sign * f; NaN is passed over, except in front."""
    best, place = sign * f[..., :1], np.zeros_like(f[..., :1])
    for k in range(1, f.shape[-1]):
        better = sign * f[..., k : k + 1] > best
        best, place = np.where(better, sign * f[..., k : k + 1], best), np.where(better, k, place)
    return sign * best, place


def _one_hot(f: Any, n: int) -> Any:
    return (np.trunc(f + 0.5) == np.arange(n)) * 1.0


# -- meanings ----------------------------------------------------------------------------------------------------------


def _window(c: Component, m: Any, start: int, size: int) -> Any:
    """Argument 0 at positions start ... start + size - 1, zeros elsewhere."""

    def nothing(_: Any) -> Any:
        return c.const(0)

    def within(k: Any) -> Any:
        return c.arg(0, k)

    return c.split(m, start, nothing, lambda rest: c.split(rest, size, within, nothing))


def _best(c: Component, op: str) -> Any:
    """The extremum of the components that are numbers; NaN where the first one is NaN."""
    first = c.arg(0, c.at(0))
    best = c.fold(c.dims[0], lambda k: c.arg(0, k), op)
    return c.prim("select", c.prim("ne", first, first), first, best)


def _place(c: Component, op: str) -> Any:
    """The place of the first component that equals the extremum; 0 where the first one is NaN, or none is larger."""
    best = _best(c, op)

    def place(k: Any) -> Any:
        return c.prim("select", c.prim("eq", c.arg(0, k), best), c.number(k), c.const(c.dims[0]))

    found = c.fold(c.dims[0], place, "fold_min")
    return c.prim("select", c.prim("eq", found, c.const(c.dims[0])), c.const(0), found)


def _hot(c: Component, m: Any) -> Any:
    place = c.prim("trunc", c.prim("add", c.arg(0, c.at(0)), c.prim("div", c.const(1), c.const(2))))
    return c.prim("select", c.prim("eq", place, c.number(m)), c.const(1), c.const(0))


def _where_chosen(c: Component, f: Any, at: Any) -> Any:
    """A component, where its row number is the one that is looked for, else 0."""
    size = c.dims[1] // 2
    same = [c.prim("eq", c.arg(1, at.shifted(k * size)), c.arg(2, c.at(k))) for k in (0, 1)]
    return c.prim("select", c.prim("both", *same), f, c.const(0))


def _route(c: Component, m: Any) -> Any:
    n = c.attrs[0]

    def taken(k: Any) -> Any:
        at = k.scaled(n).plus(m)
        return _where_chosen(c, c.arg(0, at), at)

    return c.fold(c.dims[0] // n, taken)


def _place_in(c: Component, m: Any) -> Any:
    _, component = c.digits(m, (c.attrs[0], c.dims[0]))
    return _where_chosen(c, c.arg(0, component), m)


# the row numbers of an example: of 3 times 2 components, three are those of row (0, 5)
_Q, _PARTS = (0, 0, 1, 0, 0, 3, 5, 4, 5, 5, 5, 5), (0, 5)

ENTRIES = (
    # -- inner reductions
    Op("Sum(f)", "sum of the components", _total, lambda c, m: c.fold(c.dims[0], lambda k: c.arg(0, k)),
       vjp=("SumT(e, dim(f))",), dim=one, dims="d -> 1"),
    Op("SumT(f; n)", "a scalar, repeated n times", lambda f, n: np.repeat(f, n, -1), lambda c, m: c.arg(0, c.at(0)),
       vjp=("Sum(e)",), dim=_repeat, flops=0, example=((1,), (3,)), dims="1 -> n"),
    Op("Max(f)", "largest component", lambda f: _extremum(f, 1)[0], lambda c, m: _best(c, "fold_max"),
       vjp=("ZeroMult(OneHot(ArgMax(f), dim(f)), e)",), mask=True, dim=one, flops=2, method="max_component",
       special=(((nan,), nan), ((-inf,), -inf)), dims="d -> 1"),
    Op("Min(f)", "smallest component", lambda f: _extremum(f, -1)[0], lambda c, m: _best(c, "fold_min"),
       vjp=("ZeroMult(OneHot(ArgMin(f), dim(f)), e)",), mask=True, dim=one, flops=2, method="min_component",
       special=(((nan,), nan), ((inf,), inf)), dims="d -> 1"),
    Op("ArgMax(f)", "place of the first largest component", lambda f: _extremum(f, 1)[1],
       lambda c, m: _place(c, "fold_max"), vjp=(None,), mask=True, dim=one, flops=4, method="argmax_component",
       special=(((nan,), 0.0), ((-inf,), 0.0)), dims="d -> 1"),
    Op("ArgMin(f)", "place of the first smallest component", lambda f: _extremum(f, -1)[1],
       lambda c, m: _place(c, "fold_min"), vjp=(None,), mask=True, dim=one, flops=4, method="argmin_component",
       special=(((nan,), 0.0), ((inf,), 0.0)), dims="d -> 1"),
    # -- selection and assembly
    Op("Elem(f; m)", "component m", lambda f, m: f[..., m : m + 1], lambda c, m: c.arg(0, c.at(c.attrs[0])),
       vjp=("ElemT(e, dim(f), m)",), dim=_elem, flops=0, example=((3,), (1,)), dims="d -> 1"),
    Op("ElemT(f; n, m)", "n zeros with the scalar f at position m", lambda f, n, m: _embed(f, m, n),
       lambda c, m: _window(c, m, c.attrs[1], 1), vjp=("Elem(e, m)",), dim=_elem_t, flops=0, example=((1,), (4, 2)),
       dims="1 -> n"),
    Op("Extract(f; start, n)", "components start ... start + n - 1", lambda f, start, n: f[..., start : start + n],
       lambda c, m: c.arg(0, m.shifted(c.attrs[0])), vjp=("ExtractT(e, start, dim(f))",), dim=_extract, flops=0,
       example=((5,), (1, 3)), dims="d -> n"),
    Op("ExtractT(f; start, n)", "n zeros with f from position start on", _embed,
       lambda c, m: _window(c, m, c.attrs[0], c.dims[0]), vjp=("Extract(e, start, dim(f))",), dim=_extract_t, flops=0,
       example=((2,), (1, 5)), dims="d -> n"),
    Op("Concat(f, g)", "f, then g", _concat,
       lambda c, m: c.split(m, c.dims[0], lambda k: c.arg(0, k), lambda k: c.arg(1, k)),
       vjp=("Extract(e, 0, dim(f))", "Extract(e, dim(f), dim(g))"), dim=lambda d, a: length(sum(d)), flops=0,
       example=((2, 3), ()), dims="p, q -> p + q"),
    Op("OneHot(f; n)", "n zeros, with 1 at position trunc(f + 1/2) where that is one of them", _one_hot, _hot,
       vjp=(None,), mask=True, dim=_repeat, flops=3, example=((1,), (3,)), method="one_hot", dims="1 -> n"),
    # -- by row number, as in the gradients of reductions that choose rows
    Op("Routed(f, q, parts; n)",
       "of a stack of vectors of n components, the sum of those components whose row number in q is parts; q holds the"
       " higher halves of all, then the lower ones (IndexIParts)",
       _routed, _route, vjp=("Placed(e, q, parts, dim(f) / n)", None, None), mask=True, dim=_routed_dim, flops=3,
       example=((6, 12, 2), (2,)), domain=(ANY, (_Q, _Q), (_PARTS, _PARTS)), dims="k n, 2 k n, 2 -> n"),
    Op("Placed(f, q, parts; k)",
       "k times f, one after another, and 0 at components whose row number in q is not parts: the transpose of Routed",
       _placed, _place_in, vjp=("Routed(e, q, parts, dim(f))", None, None), mask=True, dim=_placed_dim, flops=3,
       example=((2, 12, 2), (3,)), domain=(ANY, (_Q, _Q), (_PARTS, _PARTS)), dims="n, 2 k n, 2 -> k n"),
    # -- norms and distances
    Op("SqNorm2(f)", "sum of the squares", lambda f: _total(f * f), macro="Sum(Square(f))", dims="d -> 1"),
    Op("Norm2(f)", "Euclidean norm; gradient 0 at 0", lambda f: np.sqrt(_total(f * f)), macro="Sqrt(SqNorm2(f))",
       dims="d -> 1"),
    Op("Normalize(f)", "f / |f|; 0 at 0", _unit, macro="Rsqrt(SqNorm2(f)) * f", dims="d -> d"),
    Op("SqDist(f, g)", "squared distance", lambda f, g: _total((f - g) ** 2), macro="Sum(Square(f - g))",
       dims="d or 1, d or 1 -> 1"),
    Op("SqNormIso(s, f)", "s * |f|^2 for a number s", lambda s, f: s * _total(f * f), macro="s * SqNorm2(f)",
       dim=_scaled_norm, example=((1, 3), ()), dims="1, d -> 1"),
    Op("SqNormDiag(s, f)", "sum of s[k] * f[k]^2", lambda s, f: _total(s * f * f), macro="(s | Square(f))",
       dim=_diagonal_norm, example=((3, 3), ()), dims="d, d -> 1"),
    Op("SymSqNorm(A, f)", "sum of A[k, l] * f[k] * f[l]", _weighted_sum, macro="(f | MatVecMult(A, f))",
       dim=_matrix_norm, example=((9, 3), ()), dims="d^2, d -> 1"),
    Op("WeightedSqNorm(A, f)", "SqNormIso, SqNormDiag or SymSqNorm, by the dimension of A", _weighted_sum,
       macro=lambda d, a: _weighted(d, a).format("f"), dim=_weighted_norm, example=((9, 3), ()),
       dims="1 or d or d^2, d -> 1"),
    Op("WeightedSqDist(A, f, g)", "WeightedSqNorm(A, f - g)", lambda A, f, g: _weighted_sum(A, f - g),
       macro=lambda d, a: _weighted(d, a).format("f - g"), dim=_weighted_norm, example=((4, 2, 2), ()),
       domain=(POSITIVE, ANY, ANY), dims="1 or d or d^2, d, d or 1 -> 1; 1 or d or d^2, 1, d -> 1"),
)  # fmt: skip
