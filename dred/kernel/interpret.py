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
from dred.reductions import REDUCTIONS

UNROLL = 16
ROWS, COLUMNS = 256, 256  # of a block; COLUMNS fixes the order of summation and never changes
VALUES = 64  # of a formula that blocks of so many rows are meant for: longer formulas get fewer rows

State = tuple[NDArray[Any], ...]


def array_text(text: str, names: Mapping[str, Any]) -> Any:
    """Scalar text of a table on NumPy arrays."""

    def call(name: str, args: Sequence[Any], named: dict[str, Any]) -> Any:
        return PRIMITIVES[SYNTAX.get(name, name)].numpy(*args)

    return evaluate(parse_once(text), float, names.__getitem__, call)


def merge_states(spec: KernelSpec, left: State, right: State) -> State:
    """The union of two states of the same rows."""
    reduction = REDUCTIONS[spec.reduction]
    names: dict[str, Any] = {}
    for field, a, b in zip(reduction.fields, left, right, strict=True):
        names[f"{field.name}0"], names[f"{field.name}1"] = a, b
    with np.errstate(all="ignore"):
        merged = tuple(array_text(text, names) for text in reduction.merge)
    return tuple(np.asarray(m, a.dtype) for m, a in zip(merged, left, strict=True))


@lru_cache(maxsize=64)
def _kernel(spec_digest: str, spec: KernelSpec) -> Kernel:
    return lower(spec, UNROLL)


def _rows(kernel: Kernel) -> int:
    """Rows of a block; all values of a block are kept in memory, so that long formulas get small blocks."""
    return max(1, ROWS * VALUES // max(VALUES, len(walk([root.value for root in kernel.roots]))))


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
        out = tuple(np.empty(field.shape, field.dtype) for field in like)
        reduction = REDUCTIONS[self.spec.reduction]
        cache: dict[int, Any] = {}
        for root in self.kernel.roots:
            for k, counters in _counters(root):
                value = np.broadcast_to(self.value(root.value, counters, cache), self.shape)
                lifted = [array_text(text, {"f": value}) for text in reduction.lift]
                term = tuple(np.asarray(f, o.dtype) for f, o in zip(lifted, out, strict=True))
                for field, total in zip(out, self.merged(term), strict=True):
                    field[k] = total[:, 0]
        return out

    def merged(self, term: State) -> State:
        """Columns merged in halves: the left half with the right one, until one is left."""
        while (n := term[0].shape[1]) > 1:
            half = n // 2
            left, right = (tuple(f[:, s] for f in term) for s in (slice(0, half), slice(half, 2 * half)))
            joined = merge_states(self.spec, left, right)
            term = tuple(np.concatenate([j, f[:, 2 * half :]], axis=1) for j, f in zip(joined, term, strict=True))
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
