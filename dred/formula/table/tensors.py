"""Products of matrices and tensors, stored row by row as vectors: all are contractions of two tensors."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from dred.errors import ArgumentError, DimensionError, IndexRangeError
from dred.formula.op import Attrs, Component, Dims, Op, length

Shape = tuple[int, ...]


def _reshaped(f: Any, shape: Shape) -> Any:
    return f.reshape((*f.shape[:-1], *shape))


def _tensordot(f: Any, g: Any, df: Shape, dg: Shape, cf: Shape, cg: Shape, perm: Shape = ()) -> Any:
    # NumPy's tensordot has no leading axes to broadcast over: axis letters for einsum, contracted ones shared
    left = list("abcdefghijk"[: len(df)])
    right = list("mnopqrstuvw"[: len(dg)])
    for k, m in zip(cf, cg, strict=True):
        right[m] = left[k]
    rest = [x for k, x in enumerate(left) if k not in cf] + [x for k, x in enumerate(right) if k not in cg]
    out = np.einsum(f"...{''.join(left)},...{''.join(right)}->...{''.join(rest)}", _reshaped(f, df), _reshaped(g, dg))
    lead = out.ndim - len(rest)
    if perm:
        out = np.moveaxis(out, [lead + k for k in range(len(rest))], [lead + p for p in perm])
    return out.reshape((*out.shape[:lead], -1))


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
    if any(n < 1 for n in shape) or prod(shape) != dim:
        raise DimensionError(f"the shape {list(shape)} of {what} has {prod(shape)} components, the vector {dim}")


def _contraction(dims: Dims, attrs: Attrs) -> int:
    df, dg, cf, cg, perm = attrs
    _shaped("f", dims[0], df)
    _shaped("g", dims[1], dg)
    for what, axes, shape in (("f", cf, df), ("g", cg, dg)):
        if any(k >= len(shape) for k in axes):
            raise IndexRangeError(f"the contracted axes {list(axes)} of {what} are not all among 0 ... {len(shape) - 1}")
        if len(set(axes)) != len(axes):
            raise ArgumentError(f"the contracted axes {list(axes)} of {what} are not all different")
    pairs = [tuple(shape[k] for k in axes) for axes, shape in ((cf, df), (cg, dg))]
    if pairs[0] != pairs[1]:
        raise DimensionError(f"the contracted axes have the sizes {list(pairs[0])} and {list(pairs[1])}: they must agree")
    rank = len(df) + len(dg) - 2 * len(cf)
    if perm and sorted(perm) != list(range(rank)):
        raise ArgumentError(f"the permutation {list(perm)} is none of the {rank} axes of the result")
    return length(prod(_rest(df, cf) + _rest(dg, cg)))


def _kron_dim(dims: Dims, attrs: Attrs) -> int:
    df, dg = attrs
    _shaped("f", dims[0], df)
    _shaped("g", dims[1], dg)
    if len(df) != len(dg):
        raise DimensionError(f"the shapes {list(df)} and {list(dg)} have different numbers of axes")
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


def _contract(c: Component, m: Any) -> Any:
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
            return c.prim("mul", c.arg(0, position("f")), c.arg(1, position("g")))
        (k, n), *rest = left

        def body(index: Any) -> Any:
            places["f", k] = places["g", n] = index
            return over(rest)

        return c.fold(df[k], body)

    return over(list(zip(cf, cg, strict=True)))


def _pullbacks(dims: Dims, attrs: Attrs) -> tuple[str, str]:
    """The cotangent of each factor: the cotangent of the result, contracted with the other factor."""
    df, dg, cf, cg, _ = attrs
    labels = _labels(attrs)
    shape = {"f": df, "g": dg}
    de = [shape[w][k] for w, k in labels]
    texts = []
    for me, other, mine, theirs in (("f", "g", cf, cg), ("g", "f", cg, cf)):
        free = [k for k in range(len(shape[other])) if k not in theirs]
        kept = [k for w, k in labels if w == me]  # axes of the new result: mine that were kept, then those contracted
        axes = kept + [mine[theirs.index(k)] for k in range(len(shape[other])) if k in theirs]
        contracted = [labels.index((other, k)) for k in free]
        lists = ", ".join(map(str, (de, list(shape[other]), contracted, free, axes)))
        texts.append(f"TensorDot(e, {other}, {lists})")
    return texts[0], texts[1]


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
       example=((6, 12), ((2, 3), (3, 2, 2), (1,), (0,), (2, 0, 1)))),
    Op("MatVecMult(A, b)", "matrix A times vector b", _matvec, macro=_matvec_text, dim=_matvec_dim,
       example=((6, 3), ())),
    Op("VecMatMult(b, A)", "vector b times matrix A", _vecmat, macro=_vecmat_text, dim=_vecmat_dim,
       example=((2, 6), ())),
    Op("TensorProd(f, g)", "all products f[k] * g[l]", _outer,
       macro=lambda d, a: f"TensorDot(f, g, [{d[0]}], [{d[1]}], [], [])", dim=lambda d, a: length(d[0] * d[1]),
       example=((2, 3), ())),
    Op("Kron(f, g; df[], dg[])", "Kronecker product of tensors of shapes df and dg", _kron, macro=_kron_text,
       dim=_kron_dim, method="keops_kron", example=((4, 6), ((2, 2), (3, 2)))),
)  # fmt: skip
