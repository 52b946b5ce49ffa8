"""Preconditioners of conjugate gradients: something like the matrix, whose inverse is cheap.

K is never stored, but a few of its entries are computed: by routines of the same formula over a few rows. Everything is
an array (*batch, rows, width), so that it can be computed block by block, wherever vectors are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dred.conjugate import Space
from dred.errors import OptionError
from dred.formula.derive import substitute
from dred.formula.language import Formula, Variable
from dred.formula.linear import COUPLED, DIAGONAL, UNIFORM
from dred.formula.node import ROW_NUMBERS, Node, intern, toposort, var
from dred.formula.pullback import Reduced
from dred.inputs import Inputs
from dred.kernel.output import array_module
from dred.kernel.pattern import Pattern
from dred.ranges import Ranges
from dred.routine import Routine

Precondition = Callable[[Any], Any]
NOISE = 100  # roundings of the largest entry of the diagonal, below which a pivot is nothing but rounding
LEAST = 1e-12  # of the trace of what is known of K, that is added to it at least


@dataclass(frozen=True, eq=False)
class System:
    """The matrix of a call.

    Attributes
    ----------
    routine : Routine
        The sum of its formula.
    place : int
        Of the variable that it is linear in.
    kind : str
        See `linear.linearity`.
    space : Space
    inputs : Inputs
    b : array (*batch, M, D)
        Anything in the space.
    alpha : float
    ranges : Ranges or None
    """

    routine: Routine
    place: int
    kind: str
    space: Space
    inputs: Inputs
    b: Any
    alpha: float
    ranges: Ranges | None

    @property
    def width(self) -> int:
        """Components of a row of what is known of K: one, where all components of a vector have the same matrix."""
        return 1 if self.kind == UNIFORM else int(self.b.shape[-1])

    @property
    def pattern(self) -> Pattern | None:
        """Which reduced rows each kept row meets."""
        return None if self.ranges is None else self.ranges.along(self.routine.axis)


class Entry(NamedTuple):
    """A row of the table of preconditioners.

    Attributes
    ----------
    make : callable
        Of a system, a rank and a seed; gives a function of a residual.
    ranked : bool
        Whether it has a rank.
    """

    make: Callable[[System, int, int], Precondition]
    ranked: bool


# -- entries of the matrix ---------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _along(routine: Routine) -> Routine:
    """The formula at i = j alone: a sum over one term, of a routine all of whose variables have a row for each i."""
    f = routine.parsed
    new: dict[Node, Node] = {var(*v): var(v.ind, v.dim, 0) for v in f.variables if v.cat < 2}
    (r,) = routine.reduced
    for n in toposort([r.node]):
        if n.op in ROW_NUMBERS:
            new[n] = intern(n.op.replace("J", "I"), (), n.attrs, n.dim)
    variables = tuple(Variable(v.ind, v.dim, min(v.cat, 2 * (v.cat == 2))) for v in f.variables)
    node = substitute(r.node, new)
    formula = Formula(f"diagonal of {f.text}", node, variables, f.names, f.labels)
    return Routine(formula, tuple(map(str, variables)), (Reduced("Sum", node, 0),), dtype=None, how=routine.how)


def diagonal(system: System) -> Any:
    """The diagonal of K, (*batch, M, D), or (*batch, M, 1) where all components have the same."""
    space, D = system.space, int(system.b.shape[-1])
    M = system.inputs.rows[0]

    def at(c: int | None) -> Any:
        unit = space.map(partial(_unit, c=c), system.b, system.b)
        given = _with(system.inputs, {system.place: unit})._replace(rows=(M, 1))
        return space.reduce(_along(system.routine), given, None)

    if system.kind == COUPLED:
        parts = [space.map(partial(_column, c=c), (1, "float64"), at(c)) for c in range(D)]
        found = space.map(_beside, (D, "float64"), *parts)
    else:
        found = space.map(partial(_first, width=system.width), (system.width, "float64"), at(None))
    if (pattern := system.pattern) is not None:
        met = np.broadcast_to(_meets_itself(pattern, M)[:, None], (*system.inputs.batch, M, 1))
        found = space.map(_times, (system.width, "float64"), found, space.spread(met))
    return found


def columns(system: System, S: NDArray[np.int64], arrays: Mapping[int, Any], parts: NDArray[np.int64] | None) -> Any:
    """Columns of K, (*batch, M, width * k): those of some rows of the reduced index, which are given.

    Parameters
    ----------
    system : System
    S : (*batch, k) ndarray
        Numbers of the rows.
    arrays : mapping of int to array
        By position, of the reduced variables their rows (*batch, k, D) in this process.
    parts : (*batch, k) ndarray, optional
        Where components are coupled, that of each column.
    """
    routine, inputs, batch = system.routine, system.inputs, system.inputs.batch
    k, D, M = S.shape[-1], int(system.b.shape[-1]), inputs.rows[0]
    v = np.ones((*batch, k, D)) if parts is None else np.eye(D)[parts]
    few = {**arrays, system.place: v.astype(inputs.dtype)}
    found = {p: system.space.put(np.ascontiguousarray(np.moveaxis(a, -2, 0)[..., None, :])) for p, a in few.items()}
    lazy = inputs.kind == "dask"
    rest = {
        n: a if lazy else a.reshape((1, *own, *a.shape[len(own) :]))
        for n, (a, own) in enumerate(zip(inputs.arrays, inputs.own or ((),) * len(inputs.arrays), strict=True))
        if n not in found
    }
    own = tuple(
        (k, *batch) if n in found else (1, *(inputs.own[n] if inputs.own else ())) for n in range(len(inputs.arrays))
    )
    every = {**rest, **found}
    given = inputs._replace(
        arrays=tuple(every[n] for n in range(len(every))),
        batch=(k, *batch),
        own=own,
        rows=(M, 1) if routine.axis == 1 else (1, M),
    )
    made = system.space.stacked(system.space.reduce(routine, given, None), system.width)
    if (pattern := system.pattern) is not None:
        met = np.stack([_meets(pattern, M, S[at]) for at in np.ndindex(*batch)]).reshape(*batch, M, k)
        made = system.space.map(_each_part, (system.width * k, "float64"), made, system.space.spread(met))
    return made


def _with(inputs: Inputs, new: Mapping[int, Any]) -> Inputs:
    """Inputs with vectors of the whole batch at some positions."""
    arrays = tuple(new.get(k, a) for k, a in enumerate(inputs.arrays))
    own = tuple(inputs.batch if k in new else o for k, o in enumerate(inputs.own))
    return inputs._replace(arrays=arrays, own=own)


def _meets_itself(pattern: Pattern, M: int) -> NDArray[np.bool_]:
    """For each row whether it meets the column of its number."""
    owner = np.repeat(np.arange(len(pattern.ends)), np.diff(pattern.ends, prepend=0))
    low = np.maximum(pattern.intervals[:, 0], pattern.blocks[owner, 0])
    high = np.maximum(np.minimum(pattern.intervals[:, 1], pattern.blocks[owner, 1]), low)
    count = np.zeros(M + 1, np.int64)
    np.add.at(count, low, 1)
    np.add.at(count, high, -1)
    return np.cumsum(count)[:M] > 0


def _meets(pattern: Pattern, M: int, S: NDArray[np.int64]) -> NDArray[np.bool_]:
    """For each row and some columns whether they meet, (M, k)."""
    met = np.zeros((M, len(S)), bool)
    for (start, stop), first, end in zip(pattern.blocks, pattern.starts, pattern.ends, strict=True):
        low, high = pattern.intervals[first:end].T
        met[start:stop] = ((low[:, None] <= S) & (high[:, None] > S)).any(axis=0)
    return met


# -- element-wise functions: blocks (..., rows, width) -----------------------------------------------------------------


def _unit(b: Any, c: int | None) -> Any:
    """Ones, or those of one component."""
    made = array_module(b).zeros_like(b)
    made[..., slice(None) if c is None else c] = 1
    return made


def _column(a: Any, c: int) -> Any:
    return a[..., c : c + 1].astype("float64")


def _first(a: Any, width: int) -> Any:
    return a[..., :width].astype("float64")


def _beside(*parts: Any) -> Any:
    return array_module(parts[0]).concatenate(parts, axis=-1)


def _times(a: Any, b: Any) -> Any:
    return a * b


def _each_part(a: Any, met: Any) -> Any:
    """Columns (..., rows, width * k), each where its column meets the row."""
    k = met.shape[-1]
    return (a.reshape(*a.shape[:-1], a.shape[-1] // k, k) * met[..., None, :]).reshape(a.shape)


def _inverse(d: Any, alpha: float) -> Any:
    """1 / (alpha + d); NaN, which is noticed, where that is no positive number."""
    xp = array_module(d)
    return 1 / xp.where(alpha + d > 0, alpha + d, np.nan)


def _split(L: Any, width: int) -> Any:
    return L.reshape(*L.shape[:-1], width, L.shape[-1] // width)


# Products of a factor L (..., m, e, k) with vectors (..., m, d), by kind: L' r, L y, L' L, and G^-1 t.
_TEXTS: Mapping[str, tuple[str, str, str, str]] = {
    UNIFORM: ("...mek,...md->...kd", "...mek,...kd->...md", "...mek,...mel->...kl", "...kl,...ld->...kd"),
    DIAGONAL: ("...mdk,...md->...kd", "...mdk,...kd->...md", "...mdk,...mdl->...dkl", "...dkl,...ld->...kd"),
    COUPLED: ("...mdk,...md->...k", "...mdk,...k->...md", "...mdk,...mdl->...kl", "...kl,...l->...k"),
}


def _row(t: Any, dims: int) -> Any:
    """What has some dimensions behind the batch as one row (..., 1, values)."""
    return t.reshape(*t.shape[: t.ndim - dims], 1, -1)


def _projected(L: Any, r: Any, kind: str, width: int) -> Any:
    """L' r."""
    return _row(array_module(r).einsum(_TEXTS[kind][0], _split(L, width), r.astype("float64")), 1 + (kind != COUPLED))


def _squared(L: Any, kind: str, width: int) -> Any:
    """L' L."""
    parts = _split(L, width)
    return _row(array_module(L).einsum(_TEXTS[kind][2], parts, parts), 2 + (kind == DIAGONAL))


def _solved(inverse: Any, t: Any, kind: str, k: int) -> Any:
    """G^-1 t."""
    d = () if kind == COUPLED else (t.shape[-1] // k,)
    lead = inverse.shape[:-2]
    G = inverse.reshape(*lead, *(d if kind == DIAGONAL else ()), k, k)
    y = array_module(t).einsum(_TEXTS[kind][3], G, t.reshape(*lead, k, *d))
    return _row(y, 1 + len(d))


def _without(r: Any, L: Any, y: Any, kind: str, width: int, k: int) -> Any:
    """r - L y."""
    parts = y.reshape(*y.shape[:-2], k, *(() if kind == COUPLED else (-1,)))
    return r - array_module(r).einsum(_TEXTS[kind][1], _split(L, width), parts)


def _left(d: Any, L: Any, width: int) -> Any:
    """The diagonal of K - L L', added up over the rows: (..., 1, width)."""
    return (d - (_split(L, width) ** 2).sum(-1)).sum(-2, keepdims=True)


def _appended(u: Any, row: Any, scale: Any, *L: Any, width: int) -> Any:
    """L with the next column of the decomposition, of a column of K and the row of L at the pivot."""
    new = u.astype("float64")
    if L:
        parts = _split(L[0], width)
        new = new - (parts * row.reshape(*row.shape[:-1], -1, parts.shape[-1])).sum(-1)
    new = (new * scale)[..., None]
    return (array_module(u).concatenate([parts, new], axis=-1) if L else new).reshape(*new.shape[:-2], -1)


def _less(d: Any, L: Any, width: int) -> Any:
    """The diagonal of what is left, after the last column of L."""
    return array_module(d).maximum(d - _split(L, width)[..., -1] ** 2, 0)


def _rotated(C: Any, F: Any, kind: str, width: int) -> Any:
    """C F."""
    parts = _split(C, width)
    k = parts.shape[-1]
    text = "...mdk,...dkl->...mdl" if kind == DIAGONAL else "...mdk,...kl->...mdl"
    G = F.reshape(*F.shape[:-2], *((width,) if kind == DIAGONAL else ()), k, k)
    return array_module(C).einsum(text, parts, G).reshape(C.shape)


# -- preconditioners ---------------------------------------------------------------------------------------------------


def jacobi(system: System, rank: int, seed: int) -> Precondition:
    """The diagonal of alpha Id + K."""
    inverse = system.space.map(partial(_inverse, alpha=system.alpha), (system.width, "float64"), diagonal(system))
    ((inverse,), _) = system.space.settle([inverse], [])
    return lambda r: system.space.map(_times, (int(r.shape[-1]), "float64"), r, inverse)


def cholesky(system: System, rank: int, seed: int) -> Precondition:
    """Some columns of the Cholesky decomposition of K, those with the largest pivots first."""
    space, width, coupled, reduced = system.space, system.width, system.kind == COUPLED, _reduced(system)
    (d,), _ = space.settle([diagonal(system)], [])
    start = d
    known: list[Any] = []  # the columns so far
    noise = NOISE * float(np.finfo(system.inputs.dtype).eps)
    top = np.zeros((*system.inputs.batch, 1, 1))
    for k in range(rank):
        at = space.largest(d, coupled)[..., None]
        S, parts = (at // width, at % width) if coupled else (at, None)
        *few, pivot, row = space.rows([*(system.inputs.arrays[p] for p in reduced), d, *(known or [d])], S)
        if parts is not None:
            pivot = np.take_along_axis(pivot, parts[..., None], axis=-1)
            split = row.reshape(*row.shape[:-1], width, -1)
            row = np.take_along_axis(split, parts[..., None, None], axis=-2)[..., 0, :]
        top = np.maximum(top, pivot)
        with np.errstate(all="ignore"):
            scale = np.where(pivot > noise * top, 1 / np.sqrt(pivot), 0.0)
        u = columns(system, S, dict(zip(reduced, few, strict=True)), parts)
        next_one = partial(_appended, width=width)
        L = space.map(next_one, (width * (k + 1), "float64"), u, space.put(row), space.put(scale), *known)
        d = space.map(partial(_less, width=width), (width, "float64"), d, L)
        (L, d), _ = space.settle([L, d], [])
        known = [L]
    return _low_rank(system, known[0], start)


def nystrom(system: System, rank: int, seed: int) -> Precondition:
    """K as some of its columns, drawn at random, tell it (Williams, Seeger 2001)."""
    space, width, kind = system.space, system.width, system.kind
    M, batch = system.inputs.rows[0], system.inputs.batch
    drawn = np.sort(np.random.default_rng(seed).choice(M * (width if kind == COUPLED else 1), rank, replace=False))
    S = np.broadcast_to(drawn // width if kind == COUPLED else drawn, (*batch, rank))
    parts = np.broadcast_to(drawn % width, (*batch, rank)) if kind == COUPLED else None
    reduced = _reduced(system)
    few = space.rows([system.inputs.arrays[p] for p in reduced], S)
    C = columns(system, S, dict(zip(reduced, few, strict=True)), parts)
    (C, d), _ = space.settle([C, diagonal(system)], [])
    (W,) = space.rows([C], S)
    W = W.reshape(*batch, rank, width, rank)
    if parts is not None:
        W = np.take_along_axis(W, parts[..., None, None], axis=-2)[..., 0, :]
    else:
        W = np.moveaxis(W, -2, -3) if kind == DIAGONAL else W[..., 0, :]
    W = np.nan_to_num((W + np.swapaxes(W, -1, -2)) / 2)
    values, vectors = np.linalg.eigh(W)
    noise = NOISE * float(np.finfo(system.inputs.dtype).eps) * np.maximum(values[..., -1:], 0)
    with np.errstate(all="ignore"):
        roots = np.where(values > noise, 1 / np.sqrt(values), 0.0)
    F = space.put((vectors * roots[..., None, :]).reshape(*batch, 1, -1))
    L = space.map(partial(_rotated, kind=kind, width=width), (width * rank, "float64"), C, F)
    return _low_rank(system, L, d)


def _reduced(system: System) -> list[int]:
    """Positions of the reduced variables, without the one that is solved for."""
    variables = system.routine.variables
    return [v.ind for v in variables if v.cat == system.routine.axis and v.ind != system.place]


def _low_rank(system: System, L: Any, d: Any) -> Precondition:
    """L L' + delta Id, times delta, inverted.

    delta is alpha and the mean of the diagonal of what K is besides, so that no direction is worse off.
    """
    space, kind, width = system.space, system.kind, system.width
    k, batch, M = int(L.shape[-1]) // width, system.inputs.batch, system.inputs.rows[0]
    each = width if kind == DIAGONAL else 1
    left = space.total(partial(_left, width=width), width, d, L)
    gram = space.total(partial(_squared, kind=kind, width=width), k * k * each, L)
    (L,), (left, gram) = space.settle([L], [left, gram])
    G = gram.reshape(*batch, each, k, k)
    rest = np.maximum(left, 0).reshape(*batch, -1) / M
    rest = rest if kind == DIAGONAL else rest.mean(-1, keepdims=True)
    trace = np.trace(G, axis1=-2, axis2=-1)
    delta = np.maximum(system.alpha + rest, LEAST * trace)
    delta = np.where(delta > 0, delta, 1.0)
    with np.errstate(all="ignore"):
        known = np.isfinite(G).all() and np.isfinite(delta).all()
        inverse = np.linalg.inv(G + delta[..., None, None] * np.eye(k)) if known else np.full(G.shape, np.nan)
    put = space.put(inverse.reshape(*batch, 1, -1))

    def precondition(r: Any) -> Any:
        D = int(r.shape[-1])
        many = k if kind == COUPLED else k * D
        t = space.total(partial(_projected, kind=kind, width=width), many, L, r)
        y = space.map(partial(_solved, kind=kind, k=k), (many, "float64"), put, t)
        return space.map(partial(_without, kind=kind, width=width, k=k), (D, "float64"), r, L, y)

    return precondition


PRECONDITIONERS: Mapping[str, Entry] = {
    "jacobi": Entry(jacobi, ranked=False),
    "cholesky": Entry(cholesky, ranked=True),
    "nystrom": Entry(nystrom, ranked=True),
}


def chosen(name: str | None, rank: int | None) -> None:
    """Whether a preconditioner is known, and has a rank where it takes one.

    Raises
    ------
    OptionError
    """
    if name is not None and name not in PRECONDITIONERS:
        raise OptionError(f"preconditioner={name!r}: it is None, {', '.join(map(repr, PRECONDITIONERS))}")
    ranked = name is not None and PRECONDITIONERS[name].ranked
    if ranked and rank is None:
        raise OptionError(
            f"preconditioner={name!r} needs rank=, the number of columns of the matrix that it is made of"
        )
    if rank is not None and not ranked:
        raise OptionError(f"rank={rank}: preconditioner={name!r} has none, leave it out")


def of(name: str | None, system: System, rank: int | None, seed: int) -> Precondition | None:
    """The preconditioner of a name.

    Raises
    ------
    OptionError
        A formula that reads row numbers, where columns are taken.
    """
    if name is None:
        return None
    entry = PRECONDITIONERS[name]
    if entry.ranked and any(n.op in ROW_NUMBERS for n in toposort([system.routine.reduced[0].node])):
        raise OptionError(
            f"preconditioner={name!r} takes columns of some rows, but the formula reads row numbers: use 'jacobi'"
        )
    return entry.make(system, rank or 0, seed)
