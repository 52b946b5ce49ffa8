"""Rows of results computed again, densely in float64, from the formula and the points alone.

Each sweep is looked at by itself: what an earlier one has left is an input of the later one, and is checked before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dred.errors import human
from dred.formula.node import Node, toposort
from dred.formula.oracle import dense
from dred.formula.pullback import Reduced, Saved
from dred.reductions import REDUCTIONS, monoid_name

Array = NDArray[Any]
Read = Callable[[int, int], Array]  # rows start, ..., stop - 1 of a variable

FEW = 5  # rows that are checked if nothing is said
PAIRS = 5e7  # ... fewer where they are more pairs than that, though one at least
PANEL = 1 << 22  # numbers of the formula that are computed at once
MOST = 1 << 31  # bytes of all terms of a row
TOLERANCE = {"float16": 2e-2, "float32": 1e-3, "float64": 1e-7}

_SHARES = {"s": True, "z": False}  # sums of exponentials over a saved reference: whether they are weighted


@dataclass(frozen=True)
class Checked:
    """What was found for one array of results, or for what one sweep leaves to another.

    Attributes
    ----------
    what : str
    rows : tuple of int
        Numbers of the rows that were computed again.
    error : float
        Largest difference, over the largest magnitude of these rows, see `_magnitude`; what is below the smallest
        normal number of its type is none. Row numbers differ by what the terms do that they name. inf: one is infinite
        or NaN and the other is not.
    tolerance : float
    """

    what: str
    rows: tuple[int, ...]
    error: float
    tolerance: float

    @property
    def right(self) -> bool:
        return self.error <= self.tolerance

    def __str__(self) -> str:
        verdict = "at most" if self.right else "MORE THAN"
        count = f"{len(self.rows)} rows in float64"
        return f"{self.what}: {count}, relative error {self.error:.1e}, {verdict} {self.tolerance:g}"


def chosen(wanted: int | None, M: int, N: int, seed: int) -> tuple[int, ...]:
    """Random numbers of rows, in order; a few where nothing is wanted, fewer where rows are long."""
    count = wanted if wanted is not None else max(1, min(FEW, int(PAIRS // max(1, N))))
    picked = np.random.default_rng(seed).choice(M, min(count, M), replace=False)
    return tuple(sorted(map(int, picked)))


def verify(
    reduced: Sequence[Reduced],
    inputs: Mapping[int, Read],
    left: Mapping[int, Read],
    results: Sequence[Read],
    shape: tuple[int, int],
    wanted: int | None,
    tolerance: float,
    seed: int,
) -> list[Checked]:
    """Compare rows of all results, and of what sweeps have left.

    Parameters
    ----------
    reduced : sequence of Reduced
        Of the last sweep.
    inputs : mapping of int to Read
        By position, the variables that a caller passes; of parameters, all is read whatever the rows.
    left : mapping of int to Read
        By position, the variables that earlier sweeps have left.
    results : sequence of Read
        Of each array of the last sweep.
    shape : (int, int)
        M and N.
    wanted : int, optional
        Rows; None: a few. None are checked where all terms of a row would not fit into memory, unless they are wanted.
    """
    read = {**inputs, **left}
    saved: dict[int, Saved] = {}
    todo = list(reduced)
    while todo:
        for v, s in todo.pop().saved:
            if v.ind not in saved:
                saved[v.ind] = s
                todo.append(s.reduced)
    found = []
    for ind, s in sorted(saved.items()):
        rows = _rows(s.reduced, shape, wanted, seed)
        if rows and (check := _state(s, ind, saved, read, shape, rows, tolerance)) is not None:
            found.append(check)
    n = 0
    for r in reduced:
        rows = _rows(r, shape, wanted, seed)
        mine = results[n : n + len(REDUCTIONS[r.name].results)]
        n += len(mine)
        if rows:
            found += _results(r, mine, read, shape, rows, tolerance)
    return found


def _rows(r: Reduced, shape: tuple[int, int], wanted: int | None, seed: int) -> tuple[int, ...]:
    M, N = shape if r.axis == 1 else shape[::-1]
    size = 8 * N * sum(node.dim for node in r.formulas)
    if wanted is None and r.name != "Sum" and size > MOST:
        return ()
    return chosen(wanted, M, N, seed)


def unchecked(reduced: Sequence[Reduced], shape: tuple[int, int]) -> str:
    """Why nothing of a result is checked: there are no rows, or terms of rows do not fit into memory."""
    if not any(shape[1 - r.axis] for r in reduced):
        return "there are none"
    sizes = [8 * (shape[1] if r.axis == 1 else shape[0]) * sum(f.dim for f in r.formulas) for r in reduced]
    return f"the terms of a row are {human(max(sizes))}: ask for a number of rows where they fit into memory"


def _results(
    r: Reduced, results: Sequence[Read], read: Mapping[int, Read], shape: tuple[int, int], rows: Sequence[int], t: float
) -> Iterator[Checked]:
    """Of each array of a reduction."""
    entry = REDUCTIONS[r.name]
    errors = [_Error() for _ in results]
    for i in rows:
        if r.name == "Sum":
            total, magnitude = 0.0, 0.0
            for f, _ in _terms(r, read, shape, i):
                total, magnitude = total + f.sum(axis=1), magnitude + np.abs(f).sum(axis=1)
            errors[0].add(results[0](i, i + 1), total, magnitude, shape[r.axis])
            continue
        f, g = _joined(_terms(r, read, shape, i))
        with np.errstate(all="ignore"):
            expected = entry.numpy(f, g, 1, r.parameter)
        each = expected if isinstance(expected, tuple) else (expected,)
        for n, (result, want) in enumerate(zip(results, each, strict=True)):
            got = result(i, i + 1)
            if "q" in entry.results[n].texts:  # row numbers: of near ties any may be the right one
                got, want = _named(f, got), _named(f, want)
                errors[n].add(got, want)
            else:
                errors[n].add(got, want, _magnitude(r, f, g, want, got.dtype, t))
    for n, error in enumerate(errors):
        what = r.name if len(errors) == 1 else f"{r.name}[{n}]"
        yield Checked(what, tuple(rows), error.value, t)


def _state(
    s: Saved,
    ind: int,
    saved: Mapping[int, Saved],
    read: Mapping[int, Read],
    shape: tuple[int, int],
    rows: Sequence[int],
    t: float,
) -> Checked | None:
    """Of a result, or of a sum of exponentials, that a sweep has left to another; None: of any other field."""
    r, error = s.reduced, _Error()
    monoid = monoid_name(REDUCTIONS[r.name], r.weight is not None)
    reference = next((k for k, other in saved.items() if other.reduced == r and other.field == "m"), None)
    if s.field and not (s.field in _SHARES and monoid in ("exponentials", "softmax") and reference is not None):
        return None
    for i in rows:
        f, g = _joined(_terms(r, read, shape, i))
        with np.errstate(all="ignore"):
            if not s.field:
                expected = REDUCTIONS[r.name].numpy(f, g, 1, r.parameter)
                expected = expected[0] if isinstance(expected, tuple) else expected
            else:
                m = read[reference](i, i + 1).astype(np.float64)[:, None] if reference is not None else 0.0
                shares = np.where(f == -np.inf, 0.0, np.exp(f - m))
                expected = (shares * g if g is not None and _SHARES[s.field] else shares).sum(axis=1)
        error.add(read[ind](i, i + 1), np.asarray(expected).reshape(1, -1))
    return Checked(f"{r.name}, {s.field or 'result'} for the next sweep", tuple(rows), error.value, t)


def _magnitude(r: Reduced, f: Array, g: Array | None, want: Array, kind: Any, tolerance: float) -> Array:
    """What an error of a result is relative to: numbers that rounding its terms makes it differ by, at most, over the
    tolerance. Where terms cancel, that is more than the result."""
    entry = REDUCTIONS[r.name]
    with np.errstate(all="ignore"):
        if r.name == "Mean":
            return np.asarray(entry.numpy(np.abs(f), g, 1, r.parameter))
        if r.name == "Variance":  # of equal terms that have been rounded, or of which the mean has been, here too
            eps = max(np.finfo(kind).eps, math.sqrt(f.shape[1]) * np.finfo(np.float64).eps)
            return np.asarray(np.abs(want) + (4 * eps) ** 2 / tolerance * np.square(f).mean(axis=1))
        if r.name.startswith("LogSumExp"):  # a relative error of the sum is an absolute one of its logarithm
            return np.maximum(np.abs(want), 1.0)
        return np.abs(want if g is None else np.asarray(entry.numpy(f, np.abs(g), 1, r.parameter)))


class _Error:
    """The largest difference of numbers, over their largest magnitude."""

    def __init__(self) -> None:
        self._difference = self._magnitude = 0.0
        self._otherwise = False

    def add(self, got: Any, want: Any, magnitude: Any = None, count: int = 1) -> None:
        """Numbers of a type, and what they are in float64; sums of so many terms, each of which may have underflown."""
        kind = np.asarray(got).dtype
        least, most = (np.finfo(kind).tiny, np.finfo(kind).max) if kind.kind == "f" else (0.0, np.inf)
        most = 0.98 * min(float(most), float(np.finfo(np.float32).max))
        got, want = np.asarray(got, np.float64).reshape(-1), np.asarray(want, np.float64).reshape(-1)
        finite = np.isfinite(got) & np.isfinite(want)
        with np.errstate(all="ignore"):
            same = (got == want) | (np.isnan(got) & np.isnan(want))
            large = np.isfinite(want) & (np.abs(want) > most)  # infinite in a narrower type
            self._otherwise |= bool((~finite & ~same & ~(large & (got == np.copysign(np.inf, want)))).any())
            scale = np.abs(want) if magnitude is None else np.asarray(magnitude).reshape(-1)
            if finite.any():
                difference = np.abs(got - want)[finite]
                self._difference = max(self._difference, float(difference[difference > count * least].max(initial=0.0)))
                self._magnitude = max(self._magnitude, float(scale[finite].max()))

    @property
    def value(self) -> float:
        if self._otherwise:
            return float("inf")
        if not self._difference:
            return 0.0
        return self._difference / self._magnitude if self._magnitude else float("inf")


def _named(f: Array, numbers: Any) -> Array:
    """The terms (1, N, D) that row numbers (1, [K,] D) name; NaN where there is none of such a number."""
    places, N = np.asarray(numbers, np.int64).reshape(1, -1, f.shape[2]), f.shape[1]
    padded = np.concatenate([f, np.full_like(f, np.nan, shape=(1, 1, f.shape[2]))], axis=1)
    return np.take_along_axis(padded, np.where((places < 0) | (places >= N), N, places), 1)


def _joined(terms: Iterator[tuple[Array, Array | None]]) -> tuple[Array, Array | None]:
    each = list(terms)
    f = np.concatenate([f for f, _ in each], axis=1)
    weights = [g for _, g in each if g is not None]
    return f, np.concatenate(weights, axis=1) if weights else None


def _terms(
    r: Reduced, read: Mapping[int, Read], shape: tuple[int, int], i: int
) -> Iterator[tuple[Array, Array | None]]:
    """F and G, (1, n, dim) each, of the kept row i and n reduced rows after another."""
    N = shape[1] if r.axis == 1 else shape[0]
    named = [n for node in r.formulas for n in _variables(node)]
    kinds = {n.attrs[0]: n.attrs[1] for n in named}
    width = max([16, *(node.dim for node in (*r.formulas, *named))])
    step = max(1, PANEL // width)
    for a in range(0, max(N, 1), step):
        b = min(N, a + step)
        arrays = {k: read[k](*((a, b) if cat == r.axis else (i, i + 1))) for k, cat in kinds.items()}
        sizes, first = ((1, b - a), (i, a)) if r.axis == 1 else ((b - a, 1), (a, i))
        f, *more = (np.broadcast_to(dense(node, arrays, sizes, first), (*sizes, node.dim)) for node in r.formulas)
        f, *more = (value if r.axis == 1 else value.swapaxes(0, 1) for value in (f, *more))
        yield f, more[0] if more else None


def _variables(node: Node) -> Iterator[Node]:
    return (n for n in toposort([node]) if n.op == "Var")
