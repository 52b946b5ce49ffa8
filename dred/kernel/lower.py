"""Lowering: a formula and a reduction become scalar expressions, each at the loop level that it varies with."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from fractions import Fraction
from functools import reduce
from math import inf
from typing import Any

from dred.errors import EntryError, LimitError
from dred.formula.construct import exact
from dred.formula.node import AXES_OF_CATEGORY, I, J, Node
from dred.formula.ops import OPS
from dred.formula.syntax import evaluate, parse_once, words
from dred.kernel.cost import cost
from dred.kernel.hoist import hoisted
from dred.kernel.ir import (
    FOLDS,
    IJ,
    STATES,
    Expr,
    Graph,
    Index,
    Kernel,
    Loop,
    Post,
    Quick,
    Root,
    Slot,
    StateField,
    contract,
    factors,
    maximal,
    walk,
)
from dred.kernel.pieces import Nest, Piece, Split, divided
from dred.kernel.primitives import PRIMITIVES
from dred.kernel.spec import KernelSpec
from dred.reductions import MONOIDS, NONE, Monoid

# operations of the formula syntax as primitives
SYNTAX = {"Add": "add", "Subtract": "sub", "Mult": "mul", "Divide": "div", "Minus": "neg",
           "LessThan": "lt", "LessOrEqual": "le", "Equal": "eq", "NotEqual": "ne"}  # fmt: skip

MAX_PIECES = 2000  # component loops of one vector
MOST_UNROLLED = 32  # components, to spare a loop in a loop; more take seconds to compile
BEYOND = 4  # what a term is above the reference at most: the error of its exponential is that of the difference
# what a chain adds to a sum of exponentials at most, where the reference stays: no term is further above it than the
# logarithm of this. The reference is a term that has been met, so that the whole sum is at least 1, and what underflows
# is nothing beside it
MOST = 1024.0
WORTH = 0.98  # of the instructions of a pair, at most, where scales go into rows


class _Need(Exception):
    """A component is wanted that has not been computed yet."""

    def __init__(self, node: Node, index: Index) -> None:
        self.key = (node, index)


class Lowering:
    """Scalar expressions of the components of nodes, memoised. No recursion: missing components are computed first."""

    def __init__(self, levels: Sequence[int], unroll: int) -> None:
        self.graph, self.levels, self.unroll = Graph(), levels, unroll
        self.memo: dict[tuple[Node, Index], Expr | Split | Nest] = {}
        self.sums: dict[Hashable, tuple[list[Expr], list[Piece]]] = {}  # parts done, parts to do

    def component(self, node: Node, index: Index) -> Expr:
        """Component `index` of a node; raises `Split` or `Nest` where a loop of it has to be cut."""
        stack = [(node, self.place(node, index))]
        while stack:
            key = stack[-1]
            if key not in self.memo:
                try:
                    self.memo[key] = self.meaning(*key)
                except _Need as need:
                    stack.append(need.key)
                    continue
                except (Split, Nest) as wish:
                    self.memo[key] = wish
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
        if isinstance(found, Split | Nest):
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
        text = scalar_text(g, meaning, dict(zip(OPS[n.op].args, args, strict=True)), n.op)
        return g.make("select", text, g.const(1), g.const(0)) if text.boolean else text

    def fold(self, key: Hashable, depth: int, length: int, body: Callable[[Index], Expr], op: str) -> Expr:
        """`body(0) ... body(length - 1)` combined: unrolled where short, else a loop, cut where needed.

        Where a component is missing, the fold that `key` names is called again, and goes on where it was.
        """
        parts, todo = self.sums.setdefault(key, ([], [Piece.whole(length)]))
        while todo:
            try:
                parts.append(self.part(depth, todo[-1], body, op))
                todo.pop()
            except (Split, Nest) as wish:
                pieces = todo[-1].cut(depth, wish)
                if pieces is None:
                    raise
                self.limited(len(todo) + len(parts))
                todo[-1:] = pieces
        return reduce(lambda total, part: self.graph.make(FOLDS[op][0], part, total), parts)

    def part(self, depth: int, piece: Piece, body: Callable[[Index], Expr], op: str) -> Expr:
        """`body` combined over a piece, as loops where it is not unrolled."""
        index = piece.place(depth)
        if piece.size > self.unroll:
            value = body(index)
            for loop in reversed(index.loops):
                value = self.graph.make(op, value, attr=loop)
            return value
        first, *rest = piece.components()
        if op == "fold":
            total = body(Index(first))
            for k in rest:
                total = contract(self.graph, total, body(Index(k)))
            return total
        best = self.graph.const(FOLDS[op][1])
        for k in (first, *rest):
            best = self.graph.make(FOLDS[op][0], body(Index(k)), best)
        return best

    def pieces(self, nodes: Sequence[Node], dim: int) -> list[tuple[Index, tuple[Expr, ...]]]:
        """All components of nodes of dimension `dim` or 1 side by side: one by one where few, else as loops."""
        if dim <= self.unroll:
            return [(Index(k), tuple(self.component(n, Index(k)) for n in nodes)) for k in range(dim)]
        out: list[tuple[Index, tuple[Expr, ...]]] = []
        todo = [Piece.whole(dim)]
        while todo:
            piece = todo.pop()
            index = piece.place(0)
            try:
                out.append((index, tuple(self.component(node, index) for node in nodes)))
            except (Split, Nest) as wish:
                parts = piece.cut(0, wish)
                assert parts is not None, "a loop that is none of the root's"
                self.limited(len(todo) + len(out))
                todo += parts
        return sorted(out, key=lambda found: found[0])

    @staticmethod
    def limited(pieces: int) -> None:
        if pieces > MAX_PIECES:
            raise LimitError(
                f"the kernel would have more than {MAX_PIECES} loops: its vectors change their order too often"
            )


class _View:
    """What a structural operation of the table sees of the lowering (`dred.formula.op.Component`)."""

    def __init__(self, lowering: Lowering, node: Node, index: Index) -> None:
        self.lowering, self.node, self.index = lowering, node, index
        self.dims, self.attrs = tuple(a.dim for a in node.args), node.attrs
        self.depth = 1 + max((loop.depth for loop in index.loops), default=-1)
        self.path: tuple[Any, ...] = (node, index)  # which turns of which folds are being written
        self.sums = 0

    def arg(self, k: int, index: Index) -> Expr:
        return self.lowering.known(self.node.args[k], index)

    def fold(self, length: int, body: Callable[[Index], Expr], op: str = "fold") -> Expr:
        self.sums += 1
        outside = self.path, self.sums, self.depth

        def turn(index: Index) -> Expr:
            path, sums, depth = outside
            self.path, self.sums = (*path, sums, index), 0
            self.depth = max([depth, *(loop.depth + 1 for loop in index.loops)])
            try:
                return body(index)
            finally:
                self.path, self.sums, self.depth = outside

        return self.lowering.fold((*self.path, self.sums), self.depth, length, turn, op)

    def split(self, index: Index, at: int, left: Callable[[Index], Expr], right: Callable[[Index], Expr]) -> Expr:
        if index.last < at:
            return left(index)
        if index.offset >= at:
            return right(index.shifted(-at))
        # the loop of greatest stride: cut where the border is passed for certain, else in halves
        loop, stride = max(index.terms, key=lambda term: (term[1], term[0].length))
        rest = index.last - index.offset - stride * (loop.length - 1)
        below, above = -(-(at - index.offset - rest) // stride), -(-(at - index.offset) // stride)
        raise Split(loop, next((t for t in (below, above) if 0 < t < loop.length), loop.length // 2))

    def digits(self, index: Index, sizes: tuple[int, ...]) -> tuple[Index, ...]:
        out: list[Index] = []
        for size in reversed(sizes[1:]):
            index, digit = divided(index, size)
            out.append(digit)
        return (*([index] if sizes else []), *reversed(out))

    def at(self, position: int) -> Index:
        return Index(position)

    def number(self, index: Index) -> Expr:
        return self.lowering.graph.counter(index)

    def row(self, cat: int) -> Expr:
        return self.lowering.graph.row(self.lowering.levels[cat])

    def prim(self, name: str, *args: Expr) -> Expr:
        return self.lowering.graph.make(name, *args)

    def const(self, value: Fraction | int) -> Expr:
        return self.lowering.graph.const(value)


def scalar_text(graph: Graph, text: str, names: dict[str, Expr], entry: str) -> Expr:
    """Scalar text of an entry of a table as an expression.

    Raises
    ------
    EntryError
        Where it mentions what there is not.
    """

    def name(word: str) -> Expr:
        if word == "inf":
            return graph.const(inf)
        if word not in names:
            raise EntryError(entry, f"{word!r} is none of {', '.join(names)}", text)
        return names[word]

    def call(word: str, args: Sequence[Any], named: dict[str, Any]) -> Expr:
        op = SYNTAX.get(word, word)
        if op not in PRIMITIVES:
            raise EntryError(entry, f"{word!r} is no primitive of kernels", text)
        if len(args) != PRIMITIVES[op].arity:
            raise EntryError(entry, f"{word!r} takes {PRIMITIVES[op].arity} arguments, got {len(args)}", text)
        return graph.make(op, *args)

    return evaluate(parse_once(text), graph.const, name, call)


def lower(spec: KernelSpec, unroll: int, hoist: bool = False, approximate: bool = False) -> Kernel:
    """The kernel of a spec.

    Parameters
    ----------
    spec : KernelSpec
    unroll : int
        Vectors of at most this many components are unrolled, longer ones become loops. Loops in loops may compute
        the same again and again, as the inner vector of a matrix times a matrix times a vector: where that is half
        of the work, more are unrolled.
    hoist : bool
        Whether terms are rewritten for speed: see `dred.kernel.hoist.hoisted`.
    approximate : bool
        Whether they are then rewritten for a target that has the approximate functions.
    """
    kernel = lowered(spec, unroll, hoist, approximate)
    while unroll < MOST_UNROLLED and any(e.free for folds in kernel.folds.values() for e in folds):
        unroll *= 2
        longer = lowered(spec, unroll, hoist, approximate)
        kernel = longer if 2 * longer.cost < kernel.cost else kernel
    return kernel


def lowered(spec: KernelSpec, unroll: int, hoist: bool = False, approximate: bool = False) -> Kernel:
    """The kernel with vectors of exactly so many components unrolled.

    Scales go into rows where that saves more than a little: not where something else reads what they are part of.
    """
    usual, kernel = _lowered(spec, unroll, hoist, approximate, False)
    if hoist and spec.fast:
        less, fast = _lowered(spec, unroll, hoist, approximate, True)
        kernel = fast if less < WORTH * usual else kernel
    return kernel


def _lowered(spec: KernelSpec, unroll: int, hoist: bool, approximate: bool, fast: bool) -> tuple[float, Kernel]:
    """A kernel, and instructions of nearly all of its pairs."""
    lowering = Lowering([spec.level(cat) for cat in range(len(AXES_OF_CATEGORY))], unroll)
    roots = [root for n in range(len(spec.parts)) for root in _roots(lowering, spec, n, approximate)]
    if hoist:
        roots = hoisted(lowering.graph, roots, spec.dtype, approximate, fast)
    else:
        roots = [root._replace(quick=None) for root in roots]
    steps = [e for root in roots for e in root.steps]
    quick = [e for root in roots if root.quick for e in root.quick.steps]
    tops = [*steps, *quick, *factors(roots)]
    merges = [e for root in roots for e in root.merge]
    frontier = _frontier(tops)
    slots = {axes: [e for e in frontier if e.axes == axes] for axes in (I, J)}
    placed = {axes: _placed(slots[axes]) for axes in (I, J)}
    pair = [e for e in walk([*steps, *quick]) if e.axes == IJ]
    everything = walk([*tops, *merges])
    usual = cost([root._replace(steps=root.quick.steps) if root.quick else root for root in roots])
    return usual, Kernel(
        fields=tuple(StateField(f.kind, f.size, f.identity) for f in spec.fields),
        roots=tuple(roots),
        loads=tuple(sorted({(e.attr.ind, e.attr.dim, e.attr.axes) for e in everything if e.op == "load"})),
        slots_i=placed[I][0],
        slots_j=placed[J][0],
        size_i=placed[I][1],
        size_j=placed[J][1],
        once=tuple(_once(tops)),
        folds=_folds(pair),
        cost=cost(roots),
    )


def _roots(lowering: Lowering, spec: KernelSpec, part: int, approximate: bool) -> list[Root]:
    """The roots of a part: its fields of one component, then those of several."""
    staying = spec.parts[part].any_reference
    g, layout, first = lowering.graph, spec.layout[part], spec.states(part).start
    monoid = MONOIDS[spec.parts[part].monoid]
    dims = sorted({field.dim for field in layout})
    assert len(dims) == 1 or (len(dims) == 2 and dims[0] == 1), "components of fields that do not belong together"
    shared = {
        f"{field.name}1": _as_field(g, field.kind, lowering.component(field.lift, Index(0)))
        for field in layout
        if field.dim == 1 < dims[-1]
    }

    def leaves(op: str, end: str, index: Index, running: bool) -> dict[str, Expr]:
        return {
            f"{field.name}{end}": g.make(
                op,
                attr=Slot(
                    first + n,
                    index if field.dim > 1 else Index(0),
                    field.kind == "index" or (field.kind == "count" and not running),
                ),
            )
            for n, field in enumerate(layout)
        }

    out: list[Root] = []
    for dim in dims:
        mine = [n for n, field in enumerate(layout) if field.dim == dim]
        for index, lifted in lowering.pieces([layout[n].lift for n in mine], dim):
            values = tuple(_as_field(g, layout[n].kind, e) for n, e in zip(mine, lifted, strict=True))
            terms = shared | {f"{layout[n].name}1": value for n, value in zip(mine, values, strict=True)}
            state = leaves("state", "0", index, True)
            stored, other = leaves("state", "0", index, False), leaves("other", "1", index, False)
            fields = tuple(first + n for n in mine)
            places = layout[0].places
            if places > 1:
                before = scalar_text(g, monoid.before, stored | other, "before")
                near = scalar_text(g, monoid.near, stored | other, "near")
                out.append(Root(part, index, fields, values, values, (), places, before, near))
            else:
                steps = [_step(g, e) for e in monoid_texts(g, monoid, state | terms, mine)]
                merge = monoid_texts(g, monoid, stored | other, mine)
                reference = leaves("stored", "", index, False)
                quick = _quick(g, monoid, state, terms | reference, mine, staying)
                out.append(Root(part, index, fields, values, tuple(steps), tuple(merge), quick=quick))
    return out


def _quick(
    g: Graph, monoid: Monoid, state: dict[str, Expr], terms: dict[str, Expr], mine: Sequence[int], staying: bool
) -> Quick | None:
    """The quick steps of some fields: terms of a ranking come in order, references seldom change.

    staying: the reference may stay, where a sum of exponentials alone tells that none of them is too large.
    """
    names = [monoid.fields[n].name for n in mine]
    if monoid.rank:
        less = scalar_text(g, monoid.less, state | terms, "less")
        steps = tuple(g.make("select", less, terms[f"{name}1"], state[f"{name}0"]) for name in names)
        return Quick(steps, g.make("ne", state[f"{names[1]}0"], g.make("whole", attr=NONE)))
    if not monoid.anchored:
        return None
    own = monoid_texts(g, monoid, state | terms, mine)
    added = [monoid.anchored[n] for n in mine]
    more = [scalar_text(g, text, terms, "anchored") if text else None for text in added]
    holds = g.make("eq", g.const(0), g.const(0))  # that sums are finite is always asked for
    least, most = monoid.least, [inf] * len(mine)
    if 0 in mine:  # the reference
        bounds = [MOST if e and e.op == "exp" else inf for e in more]
        if staying and min(bounds) < inf:
            own[0], least, most = state[f"{names[0]}0"], 0.0, bounds
        else:
            beyond = g.make("sub", state[f"{names[0]}0"], terms[names[0]])
            holds = g.make("le", beyond, g.const(BEYOND))
    steps = tuple(
        g.make("add", state[f"{name}0"], e) if e else step for name, e, step in zip(names, more, own, strict=True)
    )
    return Quick(steps, holds, tuple(Post(most=n) if e else None for e, n in zip(more, most, strict=True)), least)


def _as_field(graph: Graph, kind: str, e: Expr) -> Expr:
    """A term of a field: a row number that is no index is a value like any other."""
    return graph.make("number", e) if e.result == "number" and kind != "index" else e


def monoid_texts(graph: Graph, monoid: Monoid, names: dict[str, Expr], which: Sequence[int]) -> list[Expr]:
    """Some merged fields of two states."""
    texts = [monoid.merge[n] for n in which]
    needed = set[str]()
    for name, _ in reversed(monoid.let):
        if any(name in words(other) for other in (*texts, *(t for n, t in monoid.let if n in needed))):
            needed.add(name)
    known = dict(names)
    for name, text in monoid.let:
        if name in needed:
            known[name] = scalar_text(graph, text, known, name)
    return [scalar_text(graph, text, known, "merge") for text in texts]


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


def _frontier(roots: Sequence[Expr]) -> list[Expr]:
    """The maximal expressions that vary with one index alone; row numbers are no values, and never in records."""
    stateful: set[int] = set()
    for e in walk(roots):
        if e.op in STATES or any(a.id in stateful for a in e.args):
            stateful.add(e.id)
    return maximal(roots, lambda e: e.axes in (I, J) and e.id not in stateful and e.result != "number")


def _once(roots: Sequence[Expr]) -> list[Expr]:
    """The maximal expressions that vary with nothing and are inside no loop."""
    return maximal(roots, lambda e: e.axes == 0 and not e.free and e.op not in ("const", "whole"))


def _folds(pair: Sequence[Expr]) -> dict[tuple[Loop, int], tuple[Expr, ...]]:
    level: dict[int, int] = {}
    groups: dict[tuple[Loop, int], list[Expr]] = {}
    for e in pair:  # arguments first
        below = max((level.get(a.id, 0) for a in e.args), default=0)
        level[e.id] = below + (e.op in FOLDS)
        if e.op in FOLDS:
            groups.setdefault((e.attr, below), []).append(e)
    return {key: tuple(groups[key]) for key in sorted(groups, key=lambda k: (k[1], k[0]))}
