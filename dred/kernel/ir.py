"""The scalar kernel IR: hash-consed expressions over components, each with the loop level it varies with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from math import inf
from typing import Any, NamedTuple

from dred.formula.node import I, J
from dred.kernel.primitives import PRIMITIVES
from dred.reductions import stored

IJ = I | J


class Loop(NamedTuple):
    """A loop over components, named by nesting depth and length: equal loops share a name, so their bodies fuse."""

    depth: int
    length: int


class Index(NamedTuple):
    """A component number: `offset + sum of coefficient * loop counter`, coefficients positive."""

    offset: int = 0
    terms: tuple[tuple[Loop, int], ...] = ()

    def shifted(self, by: int) -> Index:
        return Index(self.offset + by, self.terms)

    def scaled(self, by: int) -> Index:
        return Index(self.offset * by, tuple((loop, c * by) for loop, c in self.terms))

    def plus(self, other: Index) -> Index:
        terms = dict(self.terms)
        for loop, c in other.terms:
            terms[loop] = terms.get(loop, 0) + c
        return Index(self.offset + other.offset, tuple(sorted(terms.items())))

    @property
    def last(self) -> int:
        """The largest value that the index takes."""
        return self.offset + sum((loop.length - 1) * c for loop, c in self.terms)

    @property
    def loops(self) -> tuple[Loop, ...]:
        return tuple(loop for loop, _ in self.terms)


class Load(NamedTuple):
    """Component `index` of the row of variable `ind` (of length `dim`); rows run with `axes` (I, J, or 0: none)."""

    ind: int
    dim: int
    axes: int
    index: Index  # type: ignore[assignment]  # hides tuple.index, which nobody calls


class Slot(NamedTuple):
    """A component of a field of the state; `number`: int64, else a value."""

    field: int
    index: Index  # type: ignore[assignment]  # hides tuple.index, which nobody calls
    number: bool


# combining a value into the running one of a component loop, and where that starts
FOLDS: dict[str, tuple[str, float]] = {"fold": ("add", 0.0), "fold_max": ("max", -inf), "fold_min": ("min", inf)}


STATES = ("state", "other", "stored")


class Expr:
    """A scalar value.

    Attributes
    ----------
    op : str
        A name of `PRIMITIVES` or of `FOLDS` (attr: `Loop`; one argument, the body, combined over the loop, first
        component first; sums by `fma` where the body is a product and by `add` elsewhere), or a leaf:
        "const" (attr: Fraction or float), "load" (attr: `Load`), "counter" (attr: `Index`; a component number as a
        value), "row" (attr: I or J; the global number of a row), "whole" (attr: an integer that row numbers meet),
        "state" (attr: `Slot`; the running value of a reduction), "other" (the same of the state merged into it),
        "stored" (the same of the state that the chain's running values will join).
    args : tuple of Expr
    axes : int
        The indices that the value varies with: it belongs into the loops over these and no deeper.
    free : frozenset of Loop
        Component loops that the value is inside of.
    id : int
        Order of creation: arguments come before their users. Names in generated text follow from it.
    result : str
        "value" (of the compute type), "truth" or "number" (int64).
    """

    __slots__ = ("args", "attr", "axes", "free", "id", "op", "result")

    def __init__(self, op: str, args: tuple[Expr, ...], attr: Any, axes: int, free: frozenset[Loop], id: int) -> None:
        self.op, self.args, self.attr, self.axes, self.free, self.id = op, args, attr, axes, free, id
        number = op in ("row", "whole") or (op in STATES and attr.number)
        self.result = PRIMITIVES[op].result if op in PRIMITIVES else "number" if number else "value"

    def __repr__(self) -> str:
        inner = [*map(repr, self.args), *([] if self.attr is None else [str(self.attr)])]
        return f"{self.op}({', '.join(inner)})"

    @property
    def boolean(self) -> bool:
        """Whether the value is a truth value."""
        return self.result == "truth"


_EXACT: dict[str, Callable[..., Fraction]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "neg": lambda a: -a,
}


def _whole(e: Expr, most: int) -> bool:
    """A constant that is an integer, and may meet row numbers."""
    return e.op == "const" and isinstance(e.attr, Fraction) and e.attr.denominator == 1 and abs(e.attr) < most


class Graph:
    """Builder of expressions: equal ones are the same object, constants are folded exactly."""

    def __init__(self) -> None:
        self._table: dict[tuple[Any, ...], Expr] = {}

    def make(self, op: str, *args: Expr, attr: Any = None) -> Expr:
        """The expression `op(*args)`; identities that change no value (1 * a, a / 1, --a) are applied.

        Row numbers stay integers among themselves and whole constants, elsewhere they become values.
        """
        if any(a.result == "number" for a in args) and op != "number":
            # a product with another row number, or with a large constant, may have more than 64 bits
            whole = [_whole(a, 2**20 if op == "mul" else 2**62) for a in args]
            fits = [a.result == "number" or w for a, w in zip(args, whole, strict=True)]
            fits = fits[1:] if op == "select" else fits
            if f"number_{op}" in PRIMITIVES and (op != "mul" or any(whole)) and all(fits):
                op = f"number_{op}"
            if op.startswith("number_"):
                args = tuple(self.make("whole", attr=int(a.attr)) if a.op == "const" else a for a in args)
            elif op not in ("both", "either"):
                args = tuple(self.make("number", a) if a.result == "number" else a for a in args)
        if (short := self._short(op, args)) is not None:
            return short
        key = (op, tuple(a.id for a in args), type(attr).__name__, repr(attr))
        if (found := self._table.get(key)) is not None:
            return found
        axes, free = 0, frozenset[Loop]()
        for a in args:
            axes, free = axes | a.axes, free | a.free
        if op == "load":
            axes, free = attr.axes, frozenset(attr.index.loops)
        elif op == "counter":
            free = frozenset(attr.loops)
        elif op == "row":
            axes = attr
        elif op in STATES:
            axes, free = I, frozenset(attr.index.loops)
        elif op in FOLDS:
            free -= {attr}
        new = self._table[key] = Expr(op, args, attr, axes, free, len(self._table))
        return new

    def const(self, value: Fraction | int | float) -> Expr:
        return self.make("const", attr=value if isinstance(value, float) else Fraction(value))

    def load(self, ind: int, dim: int, axes: int, index: Index) -> Expr:
        return self.make("load", attr=Load(ind, dim, axes, index))

    def counter(self, index: Index) -> Expr:
        """A component number as a value."""
        return self.make("counter", attr=index) if index.terms else self.const(index.offset)

    def row(self, axes: int) -> Expr:
        """The global number of the row of I or J."""
        return self.make("row", attr=axes)

    def _short(self, op: str, args: Sequence[Expr]) -> Expr | None:
        values = [a.attr if a.op == "const" and isinstance(a.attr, Fraction) else None for a in args]
        if op in _EXACT and None not in values and not (op == "neg" and values[0] == 0):
            return self.const(_EXACT[op](*values))
        if op == "mul" and 1 in values:
            return args[1 - values.index(Fraction(1))]
        if op == "div" and values[1] == 1:
            return args[0]
        if op == "sub" and values[1] == 0:
            return args[0]
        if op == "neg" and args[0].op == "neg":
            return args[0].args[0]
        if op == "neg" and args[0].op == "const":
            return self.const(-float(args[0].attr))
        return None


def contract(graph: Graph, total: Expr, term: Expr) -> Expr:
    """`total + term`, fused where the term is a product that could not be hoisted: all that introduces fma."""
    fused = term.op == "mul" and total.axes | term.axes == term.axes
    return graph.make("fma", *term.args, total) if fused else graph.make("add", total, term)


def walk(roots: Sequence[Expr]) -> list[Expr]:
    """Every expression below `roots` once, in order of creation (arguments first)."""
    seen: dict[int, Expr] = {}
    stack = list(roots)
    while stack:
        e = stack.pop()
        if e.id not in seen:
            seen[e.id] = e
            stack.extend(e.args)
    return [seen[k] for k in sorted(seen)]


def maximal(roots: Sequence[Expr], wanted: Callable[[Expr], bool]) -> list[Expr]:
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


class StateField(NamedTuple):
    """A field of the state: an array (size, rows).

    Attributes
    ----------
    kind : str
        As in `dred.reductions.Field`. Stored: a "value" in the compute type, a "sum" in the accumulator's, "count" and
        "index" as int64. The running value of a count is a value of the compute type, that of an index int64.
    size : int
        Components, times the places of a ranking: component c in place t is row t * components + c.
    identity : float or int
        Of the empty state.
    """

    kind: str
    size: int
    identity: float

    def stored(self, dtype: str, acc: str) -> str:
        """Type of the array."""
        return stored(self.kind, dtype, acc)

    @property
    def number(self) -> bool:
        """Whether the running value is int64."""
        return self.kind == "index"


class Post(NamedTuple):
    """What becomes of the sums of a chain before they join the state: `(sum - row * sum of common) * scale * factor`.

    Attributes
    ----------
    scale : float
    factor : Expr or None
        Varies with the row alone, or with nothing.
    row, common : Expr or None
        What varies with the row and the component, and a value of pairs that is the same for all components: where
        terms were differences of two products.
    referred : Expr or None
        What the sum has to be multiplied with before anything else: over stored fields alone.
    most : float
        What it is then, at most, where quick steps hold.
    """

    scale: float = 1.0
    factor: Expr | None = None
    row: Expr | None = None
    common: Expr | None = None
    referred: Expr | None = None
    most: float = inf


class Quick(NamedTuple):
    """Steps of a root that hold for nearly all chains; where they do not, the chain goes by the root's own steps.

    Attributes
    ----------
    steps : tuple of Expr
        Over `state` leaves, and `stored` ones of fields that stay as they are while the chain goes by.
    holds : Expr
        Whether the steps have been right: over the running values after the chain, and stored ones.
    posts : tuple of Post or None
        For each field that adds up terms which refer to stored fields: what its sum is multiplied with before it is
        added to the state, which has to be finite then. Empty: running values join the state as ever.
    least : float
        Absolute value of these fields of the state, at least.
    """

    steps: tuple[Expr, ...]
    holds: Expr
    posts: tuple[Post | None, ...] = ()
    least: float = 0.0


class Root(NamedTuple):
    """Fields of the state that advance together: their component `index`, for every turn of its loops.

    Attributes
    ----------
    part : int
        Of the spec.
    index : Index
    fields : tuple of int
        Numbers of fields of the state.
    terms : tuple of Expr
        For each of them, its value for the pair at hand alone.
    steps : tuple of Expr
        For each of them, the new running value after one more pair, over `state` leaves of itself at `index`, and of
        fields of one component that belong to the same reduction. All roots step at once: a step reads what was there
        before. For a sum: `fma(a, b, state)` where the term is a product, else `add(state, term)`.
    merge : tuple of Expr
        For each of them, the merged value of two states, over such leaves, and the same `other` leaves; it joins a
        chain's running values (as `other`) to the state, and splits of j to each other. Values are computed in the
        accumulator's type, counts and indices as numbers.
    places : int
        1, or how many states a ranking keeps, in order. Then there is no running value and no `merge`: `terms` (which
        `steps` repeats) are inserted into the state, right where they belong, if `before` puts them before the last.
    before : Expr or None
        Whether the state `other` comes before the state `state`: over leaves in the compute type and numbers.
    near : Expr or None
        What `before` implies, and takes less: it compares values alone.
    posts : tuple of Post or None
        For each field whose terms have been rewritten; or empty.
    quick : Quick or None
    """

    part: int
    index: Index  # type: ignore[assignment]  # hides tuple.index, which nobody calls
    fields: tuple[int, ...]
    terms: tuple[Expr, ...]
    steps: tuple[Expr, ...]
    merge: tuple[Expr, ...]
    places: int = 1
    before: Expr | None = None
    near: Expr | None = None
    posts: tuple[Post | None, ...] = ()
    quick: Quick | None = None

    @property
    def loops(self) -> tuple[Loop, ...]:
        """The loops, outer ones first."""
        return tuple(sorted(self.index.loops))


def factors(roots: Sequence[Root]) -> list[Expr]:
    """All of a row that becomes a part of sums of roots."""
    posts = [post for root in roots for post in (*root.posts, *(root.quick.posts if root.quick else ()))]
    return [e for post in posts if post for e in (post.factor, post.row) if e]


class Kernel(NamedTuple):
    """All that a renderer reads.

    Attributes
    ----------
    fields : tuple of StateField
        The state.
    roots : tuple of Root
        What happens at a pair. Together they cover every component of every field once; fields of one component come
        before those that read them.
    loads : tuple of Load-like (ind, dim, axes)
        Variables that are read, by position; axes is I, J or 0.
    slots_i, slots_j : tuple of (Expr, offset)
        The maximal expressions that vary with i (with j) alone and are read at pair level: the record that is staged
        once per row (once per column). One with free loops takes product-of-lengths places, the loop of greatest
        depth fastest. Offsets count values of the compute type.
    size_i, size_j : int
        Length of a record.
    once : tuple of Expr
        The maximal expressions (other than plain constants) that vary with nothing and are inside no loop, read by
        slots or steps: computed before all loops.
    folds : dict of (Loop, level) to tuple of Expr
        The pair-level folds by loop and by dependence (a fold of level n + 1 reads one of level n): what to fuse.
    cost : float
        Estimated instructions per pair.
    """

    fields: tuple[StateField, ...]
    roots: tuple[Root, ...]
    loads: tuple[tuple[int, int, int], ...]
    slots_i: tuple[tuple[Expr, int], ...]
    slots_j: tuple[tuple[Expr, int], ...]
    size_i: int
    size_j: int
    once: tuple[Expr, ...]
    folds: dict[tuple[Loop, int], tuple[Expr, ...]]
    cost: float

    @property
    def steps(self) -> list[Expr]:
        """All that is computed at a pair."""
        return [e for root in self.roots for e in root.steps]

    @property
    def hoisted(self) -> bool:
        """Whether sums that are not finite have to be computed again, by the kernel with all factors inside."""
        return any(root.posts for root in self.roots)
