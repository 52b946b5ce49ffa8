"""The NumPy interpreter of the kernel IR: no compilation, for tiny problems and for platforms without LLVM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dred.formula.node import I, J
from dred.kernel.flat import Block, Program, Values, program, straight
from dred.kernel.ir import Root
from dred.kernel.lower import lower
from dred.kernel.output import Output, empty, read, silently
from dred.kernel.pattern import Pattern
from dred.kernel.spec import KernelSpec
from dred.reductions import MONOIDS, NONE, stored

UNROLL = 16
ROWS, COLUMNS = 256, 256  # of a block; COLUMNS fixes the order of summation and never changes
VALUES = 64  # values at a time that blocks of so many rows are meant for: formulas that keep more get fewer rows
CACHED = 128  # programs that are kept

State = tuple[NDArray[Any], ...]


class _Kept(NamedTuple):
    """A root of a kernel, and what is known of its fields beforehand."""

    part: int
    places: int
    rank: int  # of the monoid
    added: bool  # merging adds, field by field
    fields: tuple[int, ...]
    kinds: tuple[np.dtype[Any], ...]
    states: slice  # of the fields of the part


# by the digest of the spec; the oldest is forgotten. Looking up takes no lock: it is a part of every tiny call
_programs: dict[str, tuple[Program, tuple[_Kept, ...]]] = {}


def _program(spec: KernelSpec) -> tuple[Program, tuple[_Kept, ...]]:
    """What is run for a spec, made once."""
    found = _programs.get(spec.digest)
    if found is None:
        kernel = lower(spec, UNROLL)
        found = program(kernel, spec.dtype), tuple(_kept(spec, root) for root in kernel.roots)
        while len(_programs) >= CACHED:
            _programs.pop(next(iter([*_programs]), ""), None)
        _programs[spec.digest] = found
    return found


def _kept(spec: KernelSpec, root: Root) -> _Kept:
    entry = MONOIDS[spec.parts[root.part].monoid]
    added = root.places == 1 and entry.merge == tuple(f"{f.name}0 + {f.name}1" for f in entry.fields)
    kinds = tuple(np.dtype(stored(spec.fields[f].kind, spec.dtype, spec.acc)) for f in root.fields)
    return _Kept(root.part, root.places, entry.rank, added, root.fields, kinds, spec.states(root.part))


def cost(spec: KernelSpec) -> float:
    """Estimated instructions per pair; known after the first time."""
    return _program(spec)[0].cost


def merge_states(spec: KernelSpec, left: State, right: State) -> State:
    """The union of two states of the same rows."""
    merged: State = silently(_merged, spec, left, right)
    return merged


def _merged(spec: KernelSpec, left: State, right: State) -> State:
    out: list[NDArray[Any]] = []
    for n, part in enumerate(spec.parts):
        mine = spec.states(n)
        join = merge_ranking if part.places > 1 else merge_part
        out += join(spec, n, left[mine], right[mine])
    return tuple(out)


def merge_all(spec: KernelSpec, states: State) -> State:
    """The union of n states of the same rows: fields (size, n, rows)."""
    merged: State = silently(_merged_all, spec, states)
    return merged


def _merged_all(spec: KernelSpec, states: State) -> State:
    out: list[NDArray[Any]] = []
    for n, part in enumerate(spec.parts):
        mine = states[spec.states(n)]
        if part.places > 1:
            out += rank_all(spec, n, mine)
        else:
            kinds, join = _joined(part.monoid, spec.acc)
            typed = tuple([a.astype(kind, copy=False) for a, kind in zip(mine, kinds, strict=True)])
            out += [a[:, 0].astype(b.dtype, copy=False) for a, b in zip(_halved(join, typed), mine, strict=True)]
    return tuple(out)


def _halved(join: Callable[[Values], Values], states: State) -> State:
    """Columns merged until one is left: the first half with the second, where an odd one waits for its turn."""
    while (n := states[0].shape[1]) > 1:
        half = n // 2
        left, right = [a[:, :half] for a in states], [a[:, half : 2 * half] for a in states]
        joined = map(_shaped, join([*left, *right]), left, right)
        if n > 2 * half:
            joined = map(_beside, joined, [a[:, 2 * half :] for a in states])
        states = tuple(joined)
    return states


def merge_part(spec: KernelSpec, part: int, left: State, right: State) -> State:
    """The union of two states of one part, of any shapes that broadcast where the components do."""
    kinds, join = _joined(spec.parts[part].monoid, spec.acc)
    given = [*(a.astype(k, copy=False) for a, k in zip(left, kinds, strict=True))]
    given += [a.astype(k, copy=False) for a, k in zip(right, kinds, strict=True)]
    return tuple(_shaped(f, a, b) for f, a, b in zip(join(given), left, right, strict=True))


def _shaped(found: Any, a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """A merged field as its states are: of their type, and of the shape that both have together."""
    shape = a.shape if a.shape == b.shape else np.broadcast_shapes(a.shape, b.shape)
    if isinstance(found, np.ndarray) and found.shape == shape and found.dtype == a.dtype:
        return found
    return np.broadcast_to(found, shape).astype(a.dtype)


@cache
def _joined(monoid: str, acc: str) -> tuple[tuple[np.dtype[Any], ...], Any]:
    """The types that merging computes in, and the function of all left, then all right fields."""
    entry = MONOIDS[monoid]
    kinds = tuple(np.dtype("int64" if f.kind in ("count", "index") else acc) for f in entry.fields)
    names = (*(f"{f.name}0" for f in entry.fields), *(f"{f.name}1" for f in entry.fields))
    return kinds, straight(names, entry.let, entry.merge)


def merge_ranking(spec: KernelSpec, part: int, left: State, right: State) -> State:
    """The first places of the union of two rankings (size, rows)."""
    return rank_all(spec, part, tuple([np.stack(fields, 1) for fields in zip(left, right, strict=True)]))


def rank_all(spec: KernelSpec, part: int, states: State) -> State:
    """The same of n rankings (size, n, rows)."""
    field, (_, n, rows) = spec.layout[part][0], states[0].shape
    shape = (field.places, field.dim, n, rows)
    values, numbers = (np.moveaxis(a.reshape(shape), 2, 0).reshape(n * field.places, field.dim, rows) for a in states)
    best = ranked(MONOIDS[spec.parts[part].monoid].rank, values, numbers, field.places)
    return tuple(a.reshape(field.size, rows) for a in best)


def ranked(rank: int, values: NDArray[Any], numbers: NDArray[Any], places: int) -> State:
    """The first places along axis 0: least (greatest) values, lower numbers first among equals; NaN comes nowhere."""
    nan = np.isnan(values)
    values, numbers = np.where(nan, rank * np.inf, values).astype(values.dtype), np.where(nan, NONE, numbers)
    order = np.lexsort((numbers, values if rank > 0 else -values), axis=0)[:places]
    values, numbers = (np.take_along_axis(a, order, 0) for a in (values, numbers))
    return filled(rank, values, numbers, places)


def foremost(rank: int, values: NDArray[Any], numbers: NDArray[Any], places: int) -> State:
    """The same of columns (rows, columns) whose numbers increase, as (places, rows)."""
    order = np.argsort(values if rank > 0 else -values, axis=1, kind="stable")[:, :places]  # NaN is last
    rows = np.arange(len(order))[:, None]
    values, numbers = values[rows, order].T, numbers[rows, order].T
    nan = np.isnan(values)
    if nan.any():
        values, numbers = np.where(nan, values.dtype.type(rank * np.inf), values), np.where(nan, NONE, numbers)
    return filled(rank, values, numbers, places)


def filled(rank: int, values: NDArray[Any], numbers: NDArray[Any], places: int) -> State:
    """All places, those that are left over without a term."""
    if len(values) == places:
        return values, numbers
    missing = [(0, places - len(values)), *[(0, 0)] * (values.ndim - 1)]
    return (
        np.pad(values, missing, constant_values=rank * np.inf),
        np.pad(numbers, missing, constant_values=NONE),
    )


def _rows(wide: int) -> int:
    """Rows of a block: formulas that keep many values at a time get small blocks."""
    return max(1, ROWS * VALUES // max(VALUES, wide))


def fold(
    spec: KernelSpec,
    state: State,
    arrays: Sequence[NDArray[Any]],
    M: int,
    N: int,
    *,
    batches: int = 1,
    pattern: Pattern | None = None,
    i0: int = 0,
    j0: int = 0,
) -> State:
    """See `dred.kernel.engine.fold`, and of batches `dred.kernel.cpu.fold`."""
    new = tuple(field.copy() for field in state)
    with np.errstate(all="ignore"):
        if batches == 1 and pattern is None:
            _fold(spec, new, arrays, M, N, (i0, j0))
            return new
        every = Pattern.whole(M, N) if pattern is None else pattern
        for batch, low, high, first, last in every.items(batches).tolist():
            mine = tuple(field[:, batch * M + low : batch * M + high] for field in new)
            for start, stop in every.intervals[first:last].tolist():
                given = list(arrays)
                for v in spec.read:
                    a = arrays[v.ind] if arrays[v.ind].ndim == (1 if v.cat == 2 else 2) else arrays[v.ind][batch]
                    given[v.ind] = {0: a, I: a[low:high], J: a[start:stop]}[spec.level(v.cat)]
                _fold(spec, mine, given, high - low, stop - start, (i0 + low, j0 + start))
    return new


def warm(spec: KernelSpec) -> None:
    """There is nothing to compile."""


def reduce(
    spec: KernelSpec, arrays: Sequence[NDArray[Any]], M: int, N: int, outputs: Sequence[Output]
) -> tuple[NDArray[Any], ...]:
    """The arrays that are read off the state of all terms: what tiny calls do, without detours."""
    found: tuple[NDArray[Any], ...] = silently(_reduced, spec, arrays, M, N, outputs)
    return found


def _reduced(
    spec: KernelSpec, arrays: Sequence[NDArray[Any]], M: int, N: int, outputs: Sequence[Output]
) -> tuple[NDArray[Any], ...]:
    state = empty(spec, M)
    _fold(spec, state, arrays, M, N, (0, 0), fresh=True)
    return read(spec, state, outputs)


def _fold(
    spec: KernelSpec,
    state: State,
    arrays: Sequence[NDArray[Any]],
    M: int,
    N: int,
    first: tuple[int, int],
    fresh: bool = False,
) -> None:
    """Merges all terms into the state, which has met none where it is fresh."""
    if M == 0 or N == 0:
        return
    flat, roots = _program(spec)
    step = _rows(flat.wide)
    for low in range(0, M, step):
        rows = slice(low, min(low + step, M))
        for start in range(0, N, COLUMNS):
            columns = slice(start, min(start + COLUMNS, N))
            block = _Block(arrays, rows, columns, first, spec, roots, state, fresh and start == 0)
            values = flat.template.copy()
            for run in flat.steps:
                run(values, block)
            if block.found:
                block.merge()


def _beside(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([a, b], axis=1)


class _Block(Block):
    """A block whose terms are merged along the columns, then with the state."""

    __slots__ = ("found", "fresh", "roots", "shape", "shared", "spec", "state")

    def __init__(
        self,
        arrays: Sequence[NDArray[Any]],
        rows: slice,
        columns: slice,
        first: tuple[int, int],
        spec: KernelSpec,
        roots: Sequence[_Kept],
        state: State,
        fresh: bool,
    ) -> None:
        self.arrays, self.rows, self.columns, self.first, self.counters = arrays, rows, columns, first, {}
        self.spec, self.roots, self.state, self.fresh = spec, roots, state, fresh
        self.shape = (rows.stop - rows.start, columns.stop - columns.start)
        self.shared: dict[int, NDArray[Any]] = {}  # terms of fields of one component
        self.found: dict[int, State] = {}  # by part, the merged fields, where merging is more than adding

    def finish(self, number: int, k: int, values: Values) -> None:
        """Merges the terms of component k of a root."""
        root = self.roots[number]
        terms = [self.term(value, kind) for value, kind in zip(values, root.kinds, strict=True)]
        if root.added:
            for f, term in zip(root.fields, terms, strict=True):
                target = self.state[f][k, self.rows]
                if self.fresh:
                    np.add.reduce(term, axis=1, out=target, initial=0)
                else:
                    np.add(target, np.add.reduce(term, axis=1, initial=0), out=target)
            return
        if root.part not in self.found:
            self.found[root.part] = tuple(np.empty(a[:, self.rows].shape, a.dtype) for a in self.state[root.states])
        out = self.found[root.part]
        if rank := root.rank:
            best = foremost(rank, terms[0], terms[1], root.places)
            for field, a in zip(out, best, strict=True):
                field[k :: len(field) // root.places] = a
            return
        known = self.shared | dict(zip(root.fields, terms, strict=True))
        everything = range(root.states.start, root.states.stop)
        if any(f not in known for f in everything):
            self.shared |= known  # the others of the part come later, and all are merged together
            return
        total = self.merged(root.part, tuple(known[f] for f in everything))
        for f, field, a in zip(everything, out, total, strict=True):
            field[k if f in root.fields else 0] = a[:, 0]

    def term(self, value: Any, kind: np.dtype[Any]) -> NDArray[Any]:
        """A field of the state of every pair, contiguous."""
        whole = value if value.shape == self.shape else np.broadcast_to(value, self.shape)
        return np.asarray(whole, kind, order="C")

    def merged(self, part: int, term: State) -> State:
        """All columns merged."""
        kinds, join = _joined(self.spec.parts[part].monoid, self.spec.acc)
        empty = [np.array([[f.identity]], kind) for f, kind in zip(self.spec.layout[part], kinds, strict=True)]
        term = tuple(a.astype(kind, copy=False) for a, kind in zip(term, kinds, strict=True))
        # a NaN that is passed over becomes the identity
        term = tuple(map(_shaped, join([*empty, *term]), term, term))
        return _halved(join, term)

    def merge(self) -> None:
        """Merges what adding has not brought into the state yet; that of a fresh one is replaced."""
        for number, block in self.found.items():
            before = tuple(a[:, self.rows] for a in self.state[self.spec.states(number)])
            join = merge_ranking if self.spec.parts[number].places > 1 else merge_part
            for field, a in zip(before, block if self.fresh else join(self.spec, number, before, block), strict=True):
                field[...] = a
