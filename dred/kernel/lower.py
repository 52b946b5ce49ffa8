"""Lowering: a formula and a reduction become scalar expressions, each at the loop level that it varies with."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import reduce
from typing import Any

from dred.formula.construct import exact
from dred.formula.node import AXES_OF_CATEGORY, I, J, Node
from dred.formula.ops import OPS
from dred.formula.syntax import evaluate, parse_once
from dred.kernel.ir import IJ, Expr, Graph, Index, Kernel, Loop, Root, walk
from dred.kernel.primitives import PRIMITIVES
from dred.kernel.spec import KernelSpec
from dred.reductions import REDUCTIONS

# operations of the formula syntax as primitives
SYNTAX = {"Add": "add", "Subtract": "sub", "Mult": "mul", "Divide": "div", "Minus": "neg",
           "LessThan": "lt", "LessOrEqual": "le", "Equal": "eq", "NotEqual": "ne"}  # fmt: skip


class _Split(Exception):
    """A component loop straddles the border between two arguments: it must be cut at a counter value."""

    def __init__(self, loop: Loop, at: int) -> None:
        self.loop, self.at = loop, at


class _Need(Exception):
    """A component is wanted that has not been computed yet."""

    def __init__(self, node: Node, index: Index) -> None:
        self.key = (node, index)


class Lowering:
    """Scalar expressions of the components of nodes, memoised. No recursion: missing components are computed first."""

    def __init__(self, levels: Sequence[int], unroll: int) -> None:
        self.graph, self.levels, self.unroll = Graph(), levels, unroll
        self.memo: dict[tuple[Node, Index], Expr | _Split] = {}
        self.sums: dict[Hashable, tuple[list[Expr], list[tuple[int, int]]]] = {}  # parts done, parts to do

    def component(self, node: Node, index: Index) -> Expr:
        """Component `index` of a node; raises `_Split` where a loop of the index has to be cut."""
        stack = [(node, self.place(node, index))]
        while stack:
            key = stack[-1]
            if key not in self.memo:
                try:
                    self.memo[key] = self.meaning(*key)
                except _Need as need:
                    stack.append(need.key)
                    continue
                except _Split as split:
                    self.memo[key] = split
            stack.pop()
        return self.known(node, index)

    @staticmethod
    def place(node: Node, index: Index) -> Index:
        return Index(0) if node.dim == 1 else index  # a scalar is repeated

    def known(self, node: Node, index: Index) -> Expr:
        index = self.place(node, index)
        found = self.memo.get((node, index))
        if found is None:
            raise _Need(node, index)
        if isinstance(found, _Split):
            raise found
        return found

    def meaning(self, n: Node, m: Index) -> Expr:
        g = self.graph
        if n.op == "Var":
            ind, cat = n.attrs
            return g.load(ind, n.dim, self.levels[cat], m)
        if n.op == "Const":
            value = exact(n)
            return g.const(n.attrs[0] if value is None else value)
        meaning = OPS[n.op].meaning
        if callable(meaning):
            result: Expr = meaning(_View(self, n, m), m)
            return result
        args = [self.known(a, m) for a in n.args]
        return scalar_text(g, meaning, dict(zip(OPS[n.op].args, args, strict=True)))

    def fold(self, key: Hashable, depth: int, length: int, body: Callable[[Index], Expr]) -> Expr:
        """Sum of `body(0) ... body(length - 1)`: unrolled where short, else a loop, cut where needed.

        Where a component is missing, the sum that `key` names is called again, and goes on where it was.
        """
        parts, todo = self.sums.setdefault(key, ([], [(0, length)]))
        while todo:
            start, n = todo[-1]
            try:
                parts.append(self.part(depth, start, n, body))
                todo.pop()
            except _Split as split:
                if split.loop != Loop(depth, n):
                    raise
                todo[-1:] = [(start + split.at, n - split.at), (start, split.at)]
        return reduce(lambda total, part: self.graph.make("add", total, part), parts)

    def part(self, depth: int, start: int, n: int, body: Callable[[Index], Expr]) -> Expr:
        """Sum of `body(start) ... body(start + n - 1)`, as one loop where it is not unrolled."""
        if n > self.unroll:
            loop = Loop(depth, n)
            return self.graph.make("fold", body(Index(start, ((loop, 1),))), attr=loop)
        total = body(Index(start))
        for k in range(start + 1, start + n):
            total = contract(self.graph, total, body(Index(k)))
        return total

    def roots(self, node: Node) -> list[Root]:
        """All components of a node: one by one where they are few, else as loops."""
        if node.dim <= self.unroll:
            return [Root(k, None, self.component(node, Index(k))) for k in range(node.dim)]
        out: list[Root] = []
        todo = [(0, node.dim)]
        while todo:
            low, high = todo.pop()
            loop = Loop(0, high - low)
            try:
                out.append(Root(low, loop, self.component(node, Index(low, ((loop, 1),)))))
            except _Split as split:
                todo += [(low + split.at, high), (low, low + split.at)]
        return out


class _View:
    """What a structural operation of the table sees of the lowering (`dred.formula.ops.Component`)."""

    def __init__(self, lowering: Lowering, node: Node, index: Index) -> None:
        self.lowering, self.node, self.index, self.sums = lowering, node, index, 0
        self.dims, self.attrs = tuple(a.dim for a in node.args), node.attrs
        self.depth = 1 + max((loop.depth for loop, _ in index.terms), default=-1)

    def arg(self, k: int, index: Index) -> Expr:
        return self.lowering.known(self.node.args[k], index)

    def fold(self, length: int, body: Callable[[Index], Expr]) -> Expr:
        self.sums += 1
        return self.lowering.fold((self.node, self.index, self.sums), self.depth, length, body)

    def split(self, index: Index, at: int, left: Callable[[Index], Expr], right: Callable[[Index], Expr]) -> Expr:
        if index.last < at:
            return left(index)
        if index.offset >= at:
            return right(index.shifted(-at))
        (loop, coefficient), *rest = index.terms
        if rest or coefficient != 1:
            raise NotImplementedError("a border inside a strided component loop")
        raise _Split(loop, at - index.offset)

    def at(self, position: int) -> Index:
        return Index(position)

    def prim(self, name: str, *args: Expr) -> Expr:
        return self.lowering.graph.make(name, *args)

    def const(self, value: int) -> Expr:
        return self.lowering.graph.const(value)


def scalar_text(graph: Graph, text: str, names: dict[str, Expr]) -> Expr:
    """Scalar text of a table as an expression."""

    def call(name: str, args: Sequence[Any], named: dict[str, Any]) -> Expr:
        return graph.make(SYNTAX.get(name, name), *args)

    return evaluate(parse_once(text), graph.const, names.__getitem__, call)


def contract(graph: Graph, total: Expr, term: Expr) -> Expr:
    """`total + term`, fused where the term is a product that could not be hoisted: all that introduces fma."""
    fused = term.op == "mul" and total.axes | term.axes == term.axes
    return graph.make("fma", *term.args, total) if fused else graph.make("add", total, term)


def lower(spec: KernelSpec, unroll: int) -> Kernel:
    """The kernel of a spec.

    Parameters
    ----------
    spec : KernelSpec
    unroll : int
        Vectors of at most this many components are unrolled, longer ones become loops.
    """
    reduction = REDUCTIONS[spec.reduction]
    lowering = Lowering([spec.level(cat) for cat in range(len(AXES_OF_CATEGORY))], unroll)
    g = lowering.graph
    roots = tuple(sorted(lowering.roots(spec.formula)))
    state = {f"{field.name}0": g.make("state", attr=k) for k, field in enumerate(reduction.fields)}
    other = {f"{field.name}1": g.make("other", attr=k) for k, field in enumerate(reduction.fields)}
    merge = tuple(scalar_text(g, text, state | other) for text in reduction.merge)
    steps = []
    for root in roots:
        lifted = [scalar_text(g, text, {"f": root.value}) for text in reduction.lift]
        terms = {name: lifted[e.attr] for name, e in other.items()}
        steps.append(tuple(_step(g, scalar_text(g, text, state | terms)) for text in reduction.merge))
    tops = [e for step in steps for e in step]
    frontier = _frontier(tops)
    slots = {axes: [e for e in frontier if e.axes == axes] for axes in (I, J)}
    placed = {axes: _placed(slots[axes]) for axes in (I, J)}
    pair = [e for e in walk(tops) if e.axes == IJ]
    everything = walk([*tops, *merge])
    return Kernel(
        dim=spec.dim,
        roots=roots,
        steps=tuple(steps),
        merge=merge,
        identity=tuple(field.identity for field in reduction.fields),
        loads=tuple(sorted({(e.attr.ind, e.attr.dim, e.attr.axes) for e in everything if e.op == "load"})),
        slots_i=placed[I][0],
        slots_j=placed[J][0],
        size_i=placed[I][1],
        size_j=placed[J][1],
        once=tuple(_once(tops)),
        folds=_folds(pair),
        cost=_cost(tops, frontier),
    )


def _step(graph: Graph, e: Expr) -> Expr:
    """The running value after one more term: `state + a * b` is fused."""
    if e.op == "add" and e.args[0].op == "state":
        return contract(graph, e.args[0], e.args[1])
    return e


def _size(e: Expr) -> int:
    size = 1
    for loop in e.free:
        size *= loop.length
    return size


def _placed(slots: Sequence[Expr]) -> tuple[tuple[tuple[Expr, int], ...], int]:
    out, at = [], 0
    for e in slots:
        out.append((e, at))
        at += _size(e)
    return tuple(out), at


def _maximal(roots: Sequence[Expr], wanted: Callable[[Expr], bool]) -> list[Expr]:
    """The expressions that are wanted and not a part of another one that is, in order of creation."""
    seen: set[int] = set()
    found: dict[int, Expr] = {}
    stack = list(roots)
    while stack:
        e = stack.pop()
        if e.id in seen:
            continue
        seen.add(e.id)
        if wanted(e):
            found[e.id] = e
        else:
            stack.extend(e.args)
    return [found[k] for k in sorted(found)]


def _frontier(roots: Sequence[Expr]) -> list[Expr]:
    """The maximal expressions that vary with one index alone."""
    stateful: set[int] = set()
    for e in walk(roots):
        if e.op in ("state", "other") or any(a.id in stateful for a in e.args):
            stateful.add(e.id)
    return _maximal(roots, lambda e: e.axes in (I, J) and e.id not in stateful)


def _once(roots: Sequence[Expr]) -> list[Expr]:
    """The maximal expressions that vary with nothing and are inside no loop."""
    return _maximal(roots, lambda e: e.axes == 0 and not e.free and e.op != "const")


def _folds(pair: Sequence[Expr]) -> dict[tuple[Loop, int], tuple[Expr, ...]]:
    level: dict[int, int] = {}
    groups: dict[tuple[Loop, int], list[Expr]] = {}
    for e in pair:  # arguments first
        below = max((level.get(a.id, 0) for a in e.args), default=0)
        level[e.id] = below + (e.op == "fold")
        if e.op == "fold":
            groups.setdefault((e.attr, below), []).append(e)
    return {key: tuple(groups[key]) for key in sorted(groups, key=lambda k: (k[1], k[0]))}


def _cost(tops: Sequence[Expr], frontier: Sequence[Expr]) -> float:
    """Instructions per pair; what is staged or computed once costs nothing here."""
    staged = {e.id for e in frontier}
    seen: set[int] = set()
    stack, total = list(tops), 0.0
    while stack:
        e = stack.pop()
        if e.id in seen or e.id in staged or e.axes == 0:
            continue
        seen.add(e.id)
        each = 1.0 if e.op == "fold" else PRIMITIVES[e.op].cost if e.op in PRIMITIVES else 0.0
        total += each * _size(e) * (e.attr.length if e.op == "fold" else 1)
        stack.extend(e.args)
    return max(1.0, total)
