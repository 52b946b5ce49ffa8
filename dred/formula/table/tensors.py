"""Products of matrices and tensors, stored row by row as vectors: all are contractions of two tensors."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from string import ascii_lowercase, ascii_uppercase
from typing import Any

import numpy as np

from dred.errors import ArgumentError, DimensionError, IndexRangeError, LimitError
from dred.formula.op import Attrs, Component, Dims, Op, length

Shape = tuple[int, ...]
MAX_AXES = 16  # of a tensor


def _reshaped(f: Any, shape: Shape) -> Any:
    return f.reshape((*f.shape[:-1], *shape))


def _tensordot(f: Any, g: Any, df: Shape, dg: Shape, cf: Shape, cg: Shape, perm: Shape = ()) -> Any:
    # NumPy's tensordot has no leading axes to broadcast over: axis letters for einsum, contracted ones shared
    left, right = list(ascii_lowercase[: len(df)]), list(ascii_uppercase[: len(dg)])
    for k, m in zip(cf, cg, strict=True):
        right[m] = left[k]
    rest = [x for k, x in enumerate(left) if k not in cf] + [x for k, x in enumerate(right) if k not in cg]
    out = np.einsum(f"...{''.join(left)},...{''.join(right)}->...{''.join(rest)}", _reshaped(f, df), _reshaped(g, dg))
    return _permuted(out, len(rest), perm)


def _zero_tensordot(f: Any, g: Any, df: Shape, dg: Shape, cf: Shape, cg: Shape, perm: Shape = ()) -> Any:
    """From all single products: axes of f, then the axes of g that are not contracted."""
    free = [k for k in range(len(dg)) if k not in cg]
    lead = g.ndim - 1
    order = [*range(lead), *(lead + k for k in [*(cg[cf.index(k)] for k in sorted(cf)), *free])]
    sizes = [n if k in cf else 1 for k, n in enumerate(df)]
    g = np.transpose(_reshaped(g, dg), order).reshape((*g.shape[:-1], *sizes, *_rest(dg, cg)))
    f = _reshaped(f, (*df, *[1] * len(free)))
    out = np.where(f == 0, 0.0, f * g).sum(tuple(k - len(df) - len(free) for k in cf))
    return _permuted(out, len(df) + len(free) - len(cf), perm)


def _permuted(f: Any, rank: int, perm: Shape) -> Any:
    lead = f.ndim - rank
    if perm:
        f = np.moveaxis(f, [lead + k for k in range(rank)], [lead + p for p in perm])
    return f.reshape((*f.shape[:lead], -1))


def _matvec(A: Any, b: Any) -> Any:
    return (_reshaped(A, (-1, b.shape[-1])) @ b[..., None])[..., 0]


def _vecmat(b: Any, A: Any) -> Any:
    return (b[..., None, :] @ _reshaped(A, (b.shape[-1], -1)))[..., 0, :]


def _outer(f: Any, g: Any) -> Any:
    out = f[..., :, None] * g[..., None, :]
    return out.reshape((*out.shape[:-2], -1))


def _kron(f: Any, g: Any, df: Shape, dg: Shape) -> Any:
    lead = np.broadcast_shapes(f.shape[:-1], g.shape[:-1])
    f, g = (np.broadcast_to(v, lead + v.shape[-1:]).reshape(-1, v.shape[-1]) for v in (f, g))
    rows = [np.kron(a.reshape(df), b.reshape(dg)).ravel() for a, b in zip(f, g, strict=True)]
    return np.array(rows).reshape((*lead, -1))


# -- rules of dimension ------------------------------------------------------------------------------------------------


def _shaped(what: str, dim: int, shape: Shape) -> None:
    if len(shape) > MAX_AXES:
        raise LimitError(f"the shape of {what} has {len(shape)} axes, the limit is {MAX_AXES}")
    if any(n < 1 for n in shape) or prod(shape) != dim:
        raise DimensionError(f"the shape {list(shape)} of {what} has {prod(shape)} components, the vector {dim}")


def _contraction(dims: Dims, attrs: Attrs) -> int:
    df, dg, cf, cg, perm = attrs
    _shaped("f", dims[0], df)
    _shaped("g", dims[1], dg)
    for what, axes, shape in (("f", cf, df), ("g", cg, dg)):
        for k in axes:
            if not 0 <= k < len(shape):
                these = f"the axes 0 ... {len(shape) - 1}" if shape else "no axis"
                raise IndexRangeError(f"axis {k} of {what} is contracted, its shape {list(shape)} has {these}")
        if len(set(axes)) != len(axes):
            raise ArgumentError(f"the contracted axes {list(axes)} of {what} are not all different")
    if len(cf) != len(cg):
        raise ArgumentError(f"cf and cg list {len(cf)} and {len(cg)} axes: they are contracted in pairs")
    for k, m in zip(cf, cg, strict=True):
        if df[k] != dg[m]:
            sizes = f"axis {k} of f has size {df[k]}, axis {m} of g {dg[m]}"
            raise DimensionError(f"{sizes}: axes that are contracted have equal sizes")
    rank = len(df) + len(dg) - 2 * len(cf)
    if rank > MAX_AXES:
        raise LimitError(f"the result has {rank} axes, the limit is {MAX_AXES}")
    if perm and sorted(perm) != list(range(rank)):
        axes = list(range(rank))
        raise ArgumentError(f"perm is {list(perm)}: it must hold the axes of the result, {axes}, each once")
    return length(prod(_rest(df, cf) + _rest(dg, cg)))


def _kron_dim(dims: Dims, attrs: Attrs) -> int:
    df, dg = attrs
    _shaped("f", dims[0], df)
    _shaped("g", dims[1], dg)
    if len(df) != len(dg):
        axes = f"{len(df)} and {len(dg)} axes"
        raise DimensionError(f"the shapes {list(df)} and {list(dg)} have {axes}: both must have as many")
    return length(prod(dims))


def _matvec_dim(dims: Dims, attrs: Attrs) -> int:
    if dims[0] % dims[1]:
        raise DimensionError(f"the matrix has dimension {dims[0]}, which is no multiple of the vector's, {dims[1]}")
    return dims[0] // dims[1]


def _vecmat_dim(dims: Dims, attrs: Attrs) -> int:
    return _matvec_dim(dims[::-1], attrs)


# -- contraction -------------------------------------------------------------------------------------------------------


def _rest(shape: Shape, contracted: Shape) -> Shape:
    return tuple(n for k, n in enumerate(shape) if k not in contracted)


def _labels(attrs: Attrs) -> list[tuple[str, int]]:
    """For each axis of the result, the axis of f or of g that it is."""
    df, dg, cf, cg, perm = attrs
    axes = [("f", k) for k in range(len(df)) if k not in cf] + [("g", k) for k in range(len(dg)) if k not in cg]
    out = list(axes)
    for k, p in enumerate(perm):
        out[p] = axes[k]
    return out


def _mult(c: Component, f: Any, g: Any) -> Any:
    return c.prim("mul", f, g)


def _zero_mult(c: Component, f: Any, g: Any) -> Any:
    return c.prim("select", c.prim("eq", f, c.const(0)), c.const(0), c.prim("mul", f, g))


def _contract(c: Component, m: Any, product: Callable[[Component, Any, Any], Any] = _mult) -> Any:
    df, dg, cf, cg, _ = c.attrs
    shape = {"f": df, "g": dg}
    labels = _labels(c.attrs)
    places = dict(zip(labels, c.digits(m, tuple(shape[w][k] for w, k in labels)), strict=True))

    def position(what: str) -> Any:
        index, stride = c.at(0), 1
        for k in reversed(range(len(shape[what]))):
            index = index.plus(places[what, k].scaled(stride))
            stride *= shape[what][k]
        return index

    def over(left: list[tuple[int, int]]) -> Any:
        if not left:
            return product(c, c.arg(0, position("f")), c.arg(1, position("g")))
        (k, n), *rest = left

        def body(index: Any) -> Any:
            places["f", k] = places["g", n] = index
            return over(rest)

        return c.fold(df[k], body)

    return over(list(zip(cf, cg, strict=True)))


def _pullbacks(dims: Dims, attrs: Attrs, name: str = "TensorDot") -> tuple[str, str]:
    """The cotangent of each factor: the cotangent of the result, contracted with the other factor."""
    df, dg, cf, cg, _ = attrs
    labels = _labels(attrs)
    shape = {"f": list(df), "g": list(dg), "e": [{"f": df, "g": dg}[w][k] for w, k in labels]}

    def text(me: str, other: str, mine: Shape, theirs: Shape) -> str:
        free = [k for k in range(len(shape[other])) if k not in theirs]
        kept = [k for w, k in labels if w == me]
        found = [mine[theirs.index(k)] for k in range(len(shape[other])) if k in theirs]
        # each factor with its axes to contract, and the axes of the new result that its other axes are
        factors = [("e", [labels.index((other, k)) for k in free], kept), (other, free, found)]
        if other == "f" and name == "ZeroTensorDot":  # its zeros are those that count
            factors.reverse()
        (a, ca, ra), (b, cb, rb) = factors
        return f"{name}({a}, {b}, {shape[a]}, {shape[b]}, {ca}, {cb}, {ra + rb})"

    return text("f", "g", cf, cg), text("g", "f", cg, cf)


def _matvec_text(dims: Dims, attrs: Attrs) -> str:
    n, p = dims[0] // dims[1], dims[1]
    return f"TensorDot(A, b, [{n}, {p}], [{p}], [1], [0])"


def _vecmat_text(dims: Dims, attrs: Attrs) -> str:
    n, p = dims[0], dims[1] // dims[0]
    return f"TensorDot(b, A, [{n}], [{n}, {p}], [0], [0])"


def _kron_text(dims: Dims, attrs: Attrs) -> str:
    df, dg = attrs
    perm = [*range(0, 2 * len(df), 2), *range(1, 2 * len(df), 2)]
    return f"TensorDot(f, g, {list(df)}, {list(dg)}, [], [], {perm})"


ENTRIES = (
    Op("TensorDot(f, g; df[], dg[], cf[], cg[], perm[]?)",
       "tensors f, g of shapes df, dg, contracted over the axes cf and cg; axis k of the result moves to perm[k]",
       _tensordot, _contract, vjp=_pullbacks, dim=_contraction, flops=2, method="keops_tensordot",
       example=((6, 12), ((2, 3), (3, 2, 2), (1,), (0,), (2, 0, 1))),
       dims="p, q -> product of the sizes that are not contracted"),
    Op("ZeroTensorDot(f, g; df[], dg[], cf[], cg[], perm[]?)",
       "TensorDot of products that are 0 where f is 0, even if g is infinite or NaN",
       _zero_tensordot, lambda c, m: _contract(c, m, _zero_mult), dim=_contraction, mask=True, flops=4,
       vjp=lambda d, a: _pullbacks(d, a, "ZeroTensorDot"),
       example=((6, 12), ((2, 3), (3, 2, 2), (1,), (0,), (2, 0, 1))),
       dims="p, q -> product of the sizes that are not contracted"),
    Op("MatVecMult(A, b)", "matrix A times vector b", _matvec, macro=_matvec_text, dim=_matvec_dim,
       example=((6, 3), ()), dims="n p, p -> n"),
    Op("VecMatMult(b, A)", "vector b times matrix A", _vecmat, macro=_vecmat_text, dim=_vecmat_dim,
       example=((2, 6), ()), dims="n, n p -> p"),
    Op("TensorProd(f, g)", "all products f[k] * g[l]", _outer,
       macro=lambda d, a: f"TensorDot(f, g, [{d[0]}], [{d[1]}], [], [])", dim=lambda d, a: length(d[0] * d[1]),
       example=((2, 3), ()), dims="p, q -> p q"),
    Op("Kron(f, g; df[], dg[])", "Kronecker product of tensors of shapes df and dg", _kron, macro=_kron_text,
       dim=_kron_dim, method="keops_kron", example=((4, 6), ((2, 2), (3, 2))), dims="p, q -> p q"),
)  # fmt: skip
