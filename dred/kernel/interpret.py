"""The NumPy interpreter of the kernel IR: no compilation, for platforms without LLVM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dred.formula.construct import nearest
from dred.formula.node import I, J
from dred.formula.syntax import evaluate, parse_once
from dred.kernel.ir import FOLDS, Expr, Index, Kernel, Loop, Root, walk
from dred.kernel.lower import SYNTAX, lower
from dred.kernel.primitives import PRIMITIVES
from dred.kernel.spec import KernelSpec
from dred.reductions import MONOIDS, NONE

UNROLL = 16
ROWS, COLUMNS = 256, 256  # of a block; COLUMNS fixes the order of summation and never changes
VALUES = 64  # of a formula that blocks of so many rows are meant for: longer formulas get fewer rows

State = tuple[NDArray[Any], ...]


def array_text(text: str, names: Mapping[str, Any]) -> Any:
    """Scalar text of a table on NumPy arrays."""

    def call(name: str, args: Sequence[Any], named: dict[str, Any]) -> Any:
        return PRIMITIVES[SYNTAX.get(name, name)].numpy(*args)

    known = {"inf": np.inf, "nan": np.nan, **names}
    return evaluate(parse_once(text), float, known.__getitem__, call)


def merge_states(spec: KernelSpec, left: State, right: State) -> State:
    """The union of two states of the same rows."""
    out: list[NDArray[Any]] = []
    with np.errstate(all="ignore"):
        for n, part in enumerate(spec.parts):
            mine = spec.states(n)
            join = merge_ranking if part.places > 1 else merge_part
            out += join(spec, n, left[mine], right[mine])
    return tuple(out)


def merge_part(spec: KernelSpec, part: int, left: State, right: State) -> State:
    """The union of two states of one part, of any shapes that broadcast where the components do."""
    monoid = MONOIDS[spec.parts[part].monoid]
    names: dict[str, Any] = {}
    for field, a, b in zip(spec.layout[part], left, right, strict=True):
        kind = np.int64 if field.kind in ("count", "index") else spec.acc
        names[f"{field.name}0"], names[f"{field.name}1"] = a.astype(kind, copy=False), b.astype(kind, copy=False)
    for name, text in monoid.let:
        names[name] = array_text(text, names)
    return tuple(
        np.broadcast_to(np.asarray(array_text(text, names)), np.broadcast_shapes(a.shape, b.shape)).astype(a.dtype)
        for text, a, b in zip(monoid.merge, left, right, strict=True)
    )


def merge_ranking(spec: KernelSpec, part: int, left: State, right: State) -> State:
    """The first places of the union of two rankings (size, rows)."""
    field = spec.layout[part][0]
    shape = (field.places, field.dim, left[0].shape[1])
    values, numbers = (np.concatenate([a.reshape(shape), b.reshape(shape)]) for a, b in zip(left, right, strict=True))
    best = ranked(MONOIDS[spec.parts[part].monoid].rank, values, numbers, field.places)
    return tuple(a.reshape(field.size, left[0].shape[1]) for a in best)


def ranked(rank: int, values: NDArray[Any], numbers: NDArray[Any], places: int) -> State:
    """The first places along axis 0: least (greatest) values, lower numbers first among equals; NaN comes nowhere."""
    nan = np.isnan(values)
    values, numbers = np.where(nan, rank * np.inf, values).astype(values.dtype), np.where(nan, NONE, numbers)
    order = np.lexsort((numbers, values if rank > 0 else -values), axis=0)[:places]
    values, numbers = (np.take_along_axis(a, order, 0) for a in (values, numbers))
    missing = [(0, places - len(values)), *[(0, 0)] * (values.ndim - 1)]
    return (
        np.pad(values, missing, constant_values=rank * np.inf),
        np.pad(numbers, missing, constant_values=NONE),
    )


@lru_cache(maxsize=64)
def _kernel(spec_digest: str, spec: KernelSpec) -> Kernel:
    return lower(spec, UNROLL)


def _rows(kernel: Kernel) -> int:
    """Rows of a block; all values of a block are kept in memory, so that long formulas get small blocks."""
    return max(1, ROWS * VALUES // max(VALUES, len(walk([e for root in kernel.roots for e in root.terms]))))


def fold(
    spec: KernelSpec,
    state: State,
    arrays: Sequence[NDArray[Any]],
    M: int,
    N: int,
    *,
    i0: int = 0,
    j0: int = 0,
) -> State:
    """See `dred.kernel.engine.fold`."""
    kernel = _kernel(spec.digest, spec)
    new = tuple(field.copy() for field in state)
    with np.errstate(all="ignore"):
        step = _rows(kernel)
        for low in range(0, M, step):
            rows = slice(low, min(low + step, M))
            for start in range(0, N, COLUMNS):
                columns = slice(start, min(start + COLUMNS, N))
                part = tuple(field[:, rows] for field in new)
                block = _Block(spec, kernel, arrays, rows, columns, (i0, j0)).state(part)
                for field, merged in zip(new, merge_states(spec, part, block), strict=True):
                    field[:, rows] = merged
    return new


class _Block:
    """All pairs of a block of rows and columns, as arrays that broadcast to (rows, columns)."""

    def __init__(
        self,
        spec: KernelSpec,
        kernel: Kernel,
        arrays: Sequence[NDArray[Any]],
        rows: slice,
        columns: slice,
        first: tuple[int, int],
    ) -> None:
        self.first = first
        self.spec, self.kernel, self.arrays = spec, kernel, arrays
        self.rows, self.columns = rows, columns
        self.shape = (rows.stop - rows.start, columns.stop - columns.start)
        self.type = np.dtype(spec.dtype)

    def state(self, like: State) -> State:
        """The merged state of the block's columns, of the shape and types of `like`."""
        spec = self.spec
        out = tuple(np.empty(field.shape, field.dtype) for field in like)
        cache: dict[int, Any] = {}
        shared: dict[int, NDArray[Any]] = {}  # terms of fields of one component
        for root in self.kernel.roots:
            mine = spec.states(root.part)
            for k, counters in _counters(root):
                terms = [self.term(e, f, counters, cache) for e, f in zip(root.terms, root.fields, strict=True)]
                if root.places > 1:
                    self.rank(root, k, terms, out)
                    continue
                known = shared | dict(zip(root.fields, terms, strict=True))
                if any(f not in known for f in range(mine.start, mine.stop)):
                    shared |= known  # the others of the part come later, and all are merged together
                    continue
                total = self.merged(root.part, tuple(known[f] for f in range(mine.start, mine.stop)))
                for f, a in zip(range(mine.start, mine.stop), total, strict=True):
                    out[f][k if f in root.fields else 0] = a[:, 0]
        return out

    def term(self, e: Expr, field: int, counters: Mapping[Loop, int], cache: dict[int, Any]) -> NDArray[Any]:
        """A field of the state of every pair."""
        kind = self.kernel.fields[field].stored(self.spec.dtype, self.spec.acc)
        return np.asarray(np.broadcast_to(self.value(e, counters, cache), self.shape), kind)

    def rank(self, root: Root, k: int, terms: Sequence[NDArray[Any]], out: State) -> None:
        """The places of component k of a ranking."""
        values, numbers = (np.ascontiguousarray(term.T) for term in terms)
        found = ranked(MONOIDS[self.spec.parts[root.part].monoid].rank, values, numbers, root.places)
        for f, a in zip(root.fields, found, strict=True):
            out[f][k :: self.kernel.fields[f].size // root.places] = a

    def merged(self, part: int, term: State) -> State:
        """Neighbouring columns merged, until one is left."""
        fields = self.spec.layout[part]
        empty = tuple(np.full((1, 1), f.identity, a.dtype) for f, a in zip(fields, term, strict=True))
        term = merge_part(self.spec, part, empty, term)  # a NaN that is passed over becomes the identity
        while (n := term[0].shape[1]) > 1:
            pairs = n - n % 2
            left, right = (tuple(f[:, k:pairs:2] for f in term) for k in (0, 1))
            joined = merge_part(self.spec, part, left, right)
            term = tuple(np.concatenate([j, f[:, pairs:]], axis=1) for j, f in zip(joined, term, strict=True))
        return term

    def value(self, root: Expr, counters: Mapping[Loop, int], shared: dict[int, Any]) -> Any:
        """One expression for given loop counters; `shared` keeps what is inside no loop."""
        local: dict[int, Any] = {}
        skip: set[int] = set()  # bodies of folds are evaluated by their loops
        order = walk([root])
        for e in order:
            if e.op in FOLDS:
                skip |= {b.id for b in walk(e.args) if b.free}
        for e in order:
            if e.id in shared or (e.id in skip and not e.free <= counters.keys()):
                continue
            into = local if e.free else shared
            into[e.id] = self.apply(e, counters, lambda a: local[a.id] if a.free else shared[a.id], shared)
        return local[root.id] if root.free else shared[root.id]

    def apply(self, e: Expr, counters: Mapping[Loop, int], of: Any, shared: dict[int, Any]) -> Any:
        if e.op == "const":
            return np.asarray(nearest(e.attr, self.spec.dtype), self.type)[()]
        if e.op == "load":
            return self.load(e, counters)
        if e.op == "whole":
            return np.int64(e.attr)
        if e.op == "row":
            rows, first = (self.rows, self.first[0]) if e.attr == I else (self.columns, self.first[1])
            numbers = first + np.arange(rows.start, rows.stop, dtype=np.int64)
            return numbers[:, None] if e.attr == I else numbers
        if e.op == "counter":
            return self.type.type(position(e.attr, counters))
        if e.op in FOLDS:
            loop, body = e.attr, e.args[0]
            name, start = FOLDS[e.op]
            total: Any = self.type.type(start)
            for k in range(loop.length):
                total = PRIMITIVES[name].numpy(self.value(body, {**counters, loop: k}, shared), total)
            return total
        result = PRIMITIVES[e.op].numpy(*map(of, e.args))
        return np.asarray(result, self.type) if e.result == "value" else result

    def load(self, e: Expr, counters: Mapping[Loop, int]) -> Any:
        ind, _, axes, index = e.attr
        k = position(index, counters)
        a = self.arrays[ind]
        if axes == I:
            return a[self.rows, k][:, None]
        return a[self.columns, k][None, :] if axes == J else a[k]


def position(index: Index, counters: Mapping[Loop, int]) -> int:
    """The component that an index means for given loop counters."""
    return index.offset + sum(c * counters[loop] for loop, c in index.terms)


def _counters(root: Root) -> list[tuple[int, dict[Loop, int]]]:
    """Components of a root with the loop counters that select them."""
    turns: list[dict[Loop, int]] = [{}]
    for loop in root.loops:
        turns = [{**turn, loop: k} for turn in turns for k in range(loop.length)]
    return [(position(root.index, turn), turn) for turn in turns]
