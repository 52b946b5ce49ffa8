"""Splines and time warping: formulas that are written out by their recursions."""

from __future__ import annotations

from typing import Any

import numpy as np

from dred.errors import DimensionError, IndexRangeError, LimitError
from dred.formula.op import Attrs, Dims, Op, scalar

MAX_DEGREE = 100  # of splines
MAX_CELLS = 4_000  # of a time warping: each is some twenty operations


def _bspline_dim(dims: Dims, attrs: Attrs) -> int:
    (n, _), k = dims, attrs[0]
    scalar(dims[1], "place x")
    if k < 0:
        raise IndexRangeError(f"the degree of a spline is at least 0, got {k}")
    if k > MAX_DEGREE:
        raise LimitError(f"the degree of a spline is {k}, the limit is {MAX_DEGREE}")
    if n < k + 2:
        raise DimensionError(f"splines of degree {k} need at least {k + 2} knots, got {n}")
    return int(n - k - 1)


def _bspline_text(dims: Dims, attrs: Attrs) -> str:
    """The recursion of de Boor (1972) and Cox (1972) on vectors: w[l] B[l] + (1 - w[l+1]) B[l+1]."""
    n, k = dims[0], attrs[0]
    lets = [f"let b0 = (Extract(t, 0, {n - 1}) <= x) * (x < Extract(t, 1, {n - 1}))"]
    for r in range(1, k + 1):
        low, high, size = f"Extract(t, 0, {n - r})", f"Extract(t, {r}, {n - r})", n - r - 1
        lets.append(f"let w{r} = IfElse(({low} < {high}) - 1, (x - {low}) / ({high} - {low}), 0)")
        lets.append(
            f"let b{r} = Extract(w{r}, 0, {size}) * Extract(b{r - 1}, 0, {size})"
            f" + (1 - Extract(w{r}, 1, {size})) * Extract(b{r - 1}, 1, {size})"
        )
    return "; ".join([*lets, f"b{k}"])


def _bspline(t: Any, x: Any, k: int) -> Any:
    b = ((t[..., :-1] <= x) & (x < t[..., 1:])) * 1.0
    for r in range(1, k + 1):
        low, high = t[..., :-r], t[..., r:]
        w = np.where(low < high, (x - low) / np.where(low < high, high - low, 1.0), 0.0)
        b = w[..., :-1] * b[..., :-1] + (1 - w[..., 1:]) * b[..., 1:]
    return b


def _warping_dim(dims: Dims, attrs: Attrs) -> int:
    n, m, _ = dims
    scalar(dims[2], "smoothing g")
    if n * m > MAX_CELLS:
        raise LimitError(f"series of lengths {n} and {m} are warped over {n * m} cells, the limit is {MAX_CELLS}")
    return 1


def _warping_text(dims: Dims, attrs: Attrs) -> str:
    """The recursion of Cuturi and Blondel (2017), cell by cell."""
    n, m, _ = dims
    lets = []
    for i in range(n):
        for j in range(m):
            step = f"Square(Elem(x, {i}) - Elem(y, {j}))"
            before = [f"r{i - p}_{j - q}" for p, q in ((1, 1), (1, 0), (0, 1)) if i >= p and j >= q]
            if i and j:
                a, b, c = before
                lets.append(f"let m{i}_{j} = Min(Concat(Concat({a}, {b}), {c}))")
                terms = " + ".join(f"Exp((m{i}_{j} - {r}) / g)" for r in before)
                step += f" + (m{i}_{j} - g * Log({terms}))"
            elif before:
                step += f" + {before[0]}"
            lets.append(f"let r{i}_{j} = {step}")
    return "; ".join([*lets, f"r{n - 1}_{m - 1}"])


def _warping(x: Any, y: Any, g: Any) -> Any:
    n, m = x.shape[-1], y.shape[-1]
    d = (x[..., :, None] - y[..., None, :]) ** 2
    r = np.full((*np.broadcast_shapes(d.shape[:-2], g.shape[:-1]), n, m), np.nan)
    for i in range(n):
        for j in range(m):
            before = [r[..., i - p, j - q] for p, q in ((1, 1), (1, 0), (0, 1)) if i >= p and j >= q]
            soft = before[0] if before else np.zeros(())
            if i and j:
                low = np.min(before, 0)
                soft = low - g[..., 0] * np.log(np.exp((low - np.stack(before)) / g[..., 0]).sum(0))
            r[..., i, j] = d[..., i, j] + soft
    return r[..., -1, -1, None]


KNOTS = (-2.4, -1.5, -0.9, -0.2, 0.5, 1.1, 1.6, 2.5)

ENTRIES = (
    Op("BSpline(t, x; k)", "the B-splines of degree k on the knots t, at x", _bspline, macro=_bspline_text,
       dim=_bspline_dim, example=((8, 1), (3,)), domain=((KNOTS, tuple(t + 0.3 for t in KNOTS)), (-1.0, 1.0)),
       dims="n, 1 -> n - k - 1"),
    Op("SoftDTW_SqDist(x, y, g)", "soft dynamic time warping of two series, by squared differences", _warping,
       macro=_warping_text, dim=_warping_dim, example=((3, 4, 1), ()), domain=((-1.0, 1.0), (-1.0, 1.0), (0.5, 1.5)),
       method="softdtw_sqdist", dims="n, m, 1 -> 1"),
)  # fmt: skip
