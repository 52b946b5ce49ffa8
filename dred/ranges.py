"""Block-sparse ranges: which rows meet which columns, as six integer arrays; clusters of points to make them of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dred.errors import InputError
from dred.kernel.pattern import Pattern

_NAMES = (("ranges_i", "slices_i", "redranges_j"), ("ranges_j", "slices_j", "redranges_i"))
_SWAPPED = "; were they made for the other axis? dred.swap_axes exchanges the two"


@dataclass(frozen=True, eq=False)
class Ranges:
    """Pairs of rows to be visited, for reductions over j and over i.

    Attributes
    ----------
    rows : (int, int)
        M and N.
    over_j, over_i : Pattern
        Intervals of j for blocks of i, and intervals of i for blocks of j.
    """

    rows: tuple[int, int]
    over_j: Pattern
    over_i: Pattern

    def along(self, axis: int) -> Pattern:
        """The pattern of a reduction over j (axis 1) or over i (axis 0)."""
        return self.over_j if axis == 1 else self.over_i

    @staticmethod
    def of(ranges: Any, M: int, N: int) -> Ranges:
        """The ranges of a call.

        Parameters
        ----------
        ranges : Ranges, or sequence of six integer arrays
            KeOps' form: ranges_i (K, 2), slices_i (K,), redranges_j (L, 2), and the same with i and j exchanged. The
            rows `ranges_i[k, 0]:ranges_i[k, 1]` are reduced over the intervals number `slices_i[k-1]` to `slices_i[k]`
            (without it) of `redranges_j`. Pairs count as often as they are listed, where intervals overlap.
        M, N : int
            Rows for each i and each j.

        Raises
        ------
        InputError
            Not of this form; blocks that overlap; slices that fall; rows that are not there; two halves that are not
            about the same pairs.
        """
        if isinstance(ranges, Ranges):
            if ranges.rows != (M, N):
                raise InputError(f"the ranges were made for M, N = {ranges.rows}, the arrays have {(M, N)} rows")
            return ranges
        if not isinstance(ranges, tuple | list) or len(ranges) != 6:
            what = f"{len(ranges)}" if isinstance(ranges, tuple | list) else f"a {type(ranges).__name__}"
            names = ", ".join((*_NAMES[0], *_NAMES[1]))
            raise InputError(f"ranges are six integer arrays, {names}; got {what}")
        over_j = _pattern(ranges[:3], _NAMES[0], (M, N), "ij")
        over_i = _pattern(ranges[3:], _NAMES[1], (N, M), "ji")
        if over_j.pairs != over_i.pairs or _mark(over_j, False) != _mark(over_i, True):
            others = f"{over_i.pairs:,}" if over_j.pairs != over_i.pairs else "as many, but others"
            first, last = (f"{', '.join(names[:2])} and {names[2]}" for names in _NAMES)
            raise InputError(f"{first} are {over_j.pairs:,} pairs, {last} {others}: they must be the same ones")
        return Ranges((M, N), over_j, over_i)


def _mark(pattern: Pattern, swapped: bool) -> int:
    """A number that patterns of the same pairs have in common: the sum of products of random numbers of i and of j.

    The sum of the numbers of rows 0 ... n - 1 is itself as good as random, so that runs of rows take no more than their
    ends.
    """
    kept, met = (_random(table, k ^ swapped) for k, table in enumerate((pattern.blocks, pattern.intervals)))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(met[:, 1] - met[:, 0], dtype=np.uint64)])
    return int(((kept[:, 1] - kept[:, 0]) * (sums[pattern.ends] - sums[pattern.starts])).sum(dtype=np.uint64))


def _random(rows: NDArray[np.int64], which: int) -> NDArray[np.uint64]:
    """The finalizer of splitmix64 (Steele, Lea, Flood 2014) of numbers, for i (0) or j (1)."""
    z = (rows.astype(np.uint64) + np.uint64(1 + which)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _pattern(tables: Sequence[Any], names: Sequence[str], rows: tuple[int, int], letters: str) -> Pattern:
    blocks, ends, intervals = (
        _table(table, name, pair) for table, name, pair in zip(tables, names, (True, False, True), strict=True)
    )
    if len(ends) != len(blocks):
        raise InputError(f"{names[1]} has {len(ends)} entries for {len(blocks)} blocks of {names[0]}")
    falls = np.flatnonzero(np.diff(ends, prepend=0) < 0)
    if len(falls):
        k = int(falls[0])
        before = int(ends[k - 1]) if k else 0
        raise InputError(f"{names[1]}[{k}] = {ends[k]} is less than {before} before it: slices never fall")
    if (last := int(ends[-1]) if len(ends) else 0) != len(intervals):
        raise InputError(f"{names[1]} ends at {last}, {names[2]} has {len(intervals)} intervals")
    for table, name, most, letter in (
        (blocks, names[0], rows[0], letters[0]),
        (intervals, names[2], rows[1], letters[1]),
    ):
        wrong = np.flatnonzero((table[:, 0] < 0) | (table[:, 1] < table[:, 0]) | (table[:, 1] > most))
        if len(wrong):
            k = int(wrong[0])
            start, stop = table[k].tolist()
            hint = _SWAPPED if stop > most and 0 <= start <= stop <= rows[letter == letters[0]] else ""
            raise InputError(f"{name}[{k}] = {start}:{stop} is no run of the {most:,} rows for each {letter}{hint}")
    order = np.argsort(blocks[:, 0], kind="stable")
    order = order[blocks[order, 1] > blocks[order, 0]]
    over = np.flatnonzero(blocks[order[1:], 0] < blocks[order[:-1], 1])
    if len(over):
        k, other = sorted(order[over[0] : over[0] + 2].tolist())
        a, b = (":".join(map(str, blocks[n].tolist())) for n in (k, other))
        raise InputError(f"{names[0]}[{k}] = {a} and {names[0]}[{other}] = {b} overlap: a row is in one block at most")
    return Pattern.of(blocks, ends, intervals)


def _table(table: Any, name: str, pairs: bool) -> NDArray[np.int64]:
    array = np.asarray(table.get() if hasattr(table, "__cuda_array_interface__") and hasattr(table, "get") else table)
    if array.size == 0 and array.ndim in (1, 2):
        return np.zeros((0, 2) if pairs else 0, np.int64)
    if array.dtype.kind not in "iu":
        raise InputError(f"{name} has type {array.dtype}: it is of integers")
    if array.ndim != (2 if pairs else 1) or (pairs and array.shape[1] != 2):
        raise InputError(f"{name} has shape {array.shape}: expected {'(blocks, 2)' if pairs else '(blocks,)'}")
    return np.ascontiguousarray(array, np.int64)


# -- clusters of points ------------------------------------------------------------------------------------------------


def grid_cluster(x: Any, size: Any) -> NDArray[np.int64]:
    """Labels of points by the cell of a grid that they are in.

    Parameters
    ----------
    x : (M, D) array
        In any number of dimensions.
    size : float or (D,) array
        Edges of a cell.

    Returns
    -------
    (M,) int64
        From 0 on, without gaps; cells are numbered in the order of their coordinates.

    Raises
    ------
    InputError
        No points (M, D), a coordinate that is no number, or edges that are not positive.

    Examples
    --------
    >>> import numpy as np, dred
    >>> dred.grid_cluster(np.array([[0.1, 0.1], [0.9, 0.2], [0.2, 0.1]]), 0.5)
    array([0, 1, 0])
    """
    points, edges = np.asarray(x), np.asarray(size, float)
    if points.ndim != 2:
        raise InputError(f"points have shape {points.shape}: expected (M, D)")
    if edges.shape not in ((), (1,), points.shape[1:]) or not (edges > 0).all() or not np.isfinite(edges).all():
        raise InputError(f"size={size!r}: it is a positive number, or one for each of {points.shape[1]} dimensions")
    if not np.isfinite(points).all():
        raise InputError("a coordinate is infinite or not a number: it is in no cell")
    cells = np.floor(points / edges)
    if not len(cells):
        return np.zeros(0, np.int64)
    low = cells.min(axis=0)
    with np.errstate(over="ignore"):
        extent = cells.max(axis=0) - low + 1
        few = np.prod(extent) < 2**62
    if few:  # one number for each cell, in the order of their coordinates
        numbers = np.ravel_multi_index(tuple((cells - low).T.astype(np.int64)), tuple(extent.astype(np.int64)))
        return np.unique(numbers, return_inverse=True)[1].reshape(-1).astype(np.int64)
    _, labels = np.unique(cells, axis=0, return_inverse=True)
    return labels.reshape(-1).astype(np.int64)


def sort_clusters(x: Any, lab: Any) -> tuple[Any, NDArray[np.int64]]:
    """Points, and labels, in the order of their labels; points of equal labels stay in theirs.

    Parameters
    ----------
    x : array (M, ...), or tuple or list of them
    lab : (M,) integer array

    Returns
    -------
    x, lab
        Sorted, as they were given.
    """
    labels = _labels(lab)
    order = np.argsort(labels, kind="stable")
    given = x if isinstance(x, tuple | list) else (x,)
    for a in given:
        if len(a) != len(labels):
            raise InputError(f"{len(labels)} labels for an array of {len(a)} rows")
    found = [a[order] for a in given]
    return (type(x)(found) if isinstance(x, tuple | list) else found[0]), labels[order]


def cluster_ranges(lab: Any, Nlab: Any = None) -> NDArray[np.int64]:
    """First row, and one past the last, of each label: (C, 2), of labels that increase.

    Parameters
    ----------
    lab : (M,) integer array
        Sorted, see `sort_clusters`.
    Nlab : (C,) integer array, optional
        Points of each label, if they have been counted.

    Raises
    ------
    InputError
        Labels that fall, or are negative; counts of another number of points.
    """
    labels = _labels(lab)
    falls = np.flatnonzero(np.diff(labels) < 0)
    if len(falls):
        k = int(falls[0])
        raise InputError(f"lab[{k + 1}] = {labels[k + 1]} comes after {labels[k]}: sort them with sort_clusters")
    counts = np.bincount(labels) if Nlab is None else np.asarray(Nlab).astype(np.int64)
    if counts.sum() != len(labels):
        raise InputError(f"Nlab counts {counts.sum()} points, there are {len(labels)} labels")
    ends = np.cumsum(counts)
    return np.stack([ends - counts, ends], axis=1).astype(np.int64)


def cluster_centroids(x: Any, lab: Any, Nlab: Any = None, weights: Any = None, weights_c: Any = None) -> NDArray[Any]:
    """The mean of the points of each label: (C, D), of the type of the points; 0 where there is none.

    Parameters
    ----------
    x : (M, D) array
    lab : (M,) integer array
        In any order.
    Nlab : (C,) integer array, optional
        Points of each label, if they have been counted.
    weights : (M,) array, optional
        Of the points; by default all weigh as much.
    weights_c : (C,) array, optional
        Sums of the weights, if they are known.
    """
    points, labels = np.asarray(x), _labels(lab)
    if points.ndim != 2 or len(points) != len(labels):
        raise InputError(f"points have shape {points.shape}: expected ({len(labels)}, D), a row for each label")
    mass = None if weights is None else _weights(weights, len(labels))
    given = Nlab if mass is None else weights_c
    total = np.bincount(labels, weights=mass) if given is None else np.asarray(given, float)
    sums = np.zeros((len(total), points.shape[1]))
    np.add.at(sums, labels, points if mass is None else points * mass[:, None])
    with np.errstate(invalid="ignore", divide="ignore"):
        found: NDArray[Any] = np.where(total[:, None] != 0, sums / total[:, None], 0).astype(points.dtype)
    return found


def cluster_ranges_centroids(
    x: Any, lab: Any, weights: Any = None, min_weight: float = 1e-9
) -> tuple[NDArray[np.int64], NDArray[Any], NDArray[Any]]:
    """Ranges, centroids and weights of clusters, of labels that are sorted.

    Parameters
    ----------
    x : (M, D) array
    lab : (M,) integer array
        Sorted, see `sort_clusters`.
    weights : (M,) array, optional
        Of the points; by default each weighs 1.
    min_weight : float
        Clusters of a smaller weight weigh so much, as in KeOps.

    Returns
    -------
    ranges : (C, 2) int64
    centroids : (C, D) array
    weights : (C,) array
        Sums of the weights of the points.
    """
    labels = _labels(lab)
    mass = np.ones(len(labels)) if weights is None else _weights(weights, len(labels))
    total = np.maximum(np.bincount(labels, weights=mass), min_weight)
    centroids = cluster_centroids(x, lab, weights=mass, weights_c=total)
    return cluster_ranges(lab), centroids, total.astype(np.asarray(x).dtype)


def from_matrix(ranges_i: Any, ranges_j: Any, keep: Any) -> tuple[NDArray[np.int64], ...]:
    """The six arrays for pairs of clusters.

    Parameters
    ----------
    ranges_i, ranges_j : (C, 2), (E, 2) integer arrays
        Rows of the clusters of i and of j, see `cluster_ranges`.
    keep : (C, E) boolean array
        Which pairs of clusters meet.

    Returns
    -------
    tuple of int64 arrays
        ranges_i, slices_i, redranges_j, ranges_j, slices_j, redranges_i.

    Examples
    --------
    >>> import numpy as np, dred
    >>> x = np.array([[0.0], [0.1], [5.0], [5.1]])
    >>> ranges, centroids, _ = dred.cluster_ranges_centroids(x, dred.grid_cluster(x, 1.0))
    >>> near = np.abs(centroids - centroids.T) < 2
    >>> count = dred.Genred("1 + 0 * (x + y)", ["x = Vi(1)", "y = Vj(1)"], axis=1)
    >>> count(x, x, ranges=dred.from_matrix(ranges, ranges, near)).ravel()
    array([2., 2., 2., 2.])
    """
    i, j = _table(ranges_i, "ranges_i", True), _table(ranges_j, "ranges_j", True)
    kept = np.asarray(keep.get() if hasattr(keep, "__cuda_array_interface__") and hasattr(keep, "get") else keep)
    if kept.shape != (len(i), len(j)):
        raise InputError(f"keep has shape {kept.shape}: expected ({len(i)}, {len(j)}), a row for each cluster of i")
    kept = kept.astype(bool)
    slices_i, slices_j = np.cumsum(kept.sum(axis=1)), np.cumsum(kept.sum(axis=0))
    return i, slices_i.astype(np.int64), j[np.nonzero(kept)[1]], j, slices_j.astype(np.int64), i[np.nonzero(kept.T)[1]]


def swap_axes(ranges: Any) -> Any:
    """Ranges with i and j exchanged; None stays None."""
    if ranges is None:
        return None
    if isinstance(ranges, Ranges):
        return Ranges(ranges.rows[::-1], ranges.over_i, ranges.over_j)
    return (*ranges[3:6], *ranges[:3])


def _labels(lab: Any) -> NDArray[np.int64]:
    labels = np.asarray(lab)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputError(f"labels are integers (M,), got {labels.dtype} of shape {labels.shape}")
    if len(labels) and labels.min() < 0:
        raise InputError(f"labels are 0 or more, got {labels.min()}")
    return labels.astype(np.int64)


def _weights(weights: Any, count: int) -> NDArray[np.float64]:
    mass = np.asarray(weights, float).reshape(-1)
    if len(mass) != count:
        raise InputError(f"{len(mass)} weights for {count} points")
    return mass
