"""Reductions as values, and their derivatives: sums that read what other reductions have left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from dred.errors import ArgumentError, DerivativeError, DimensionError, EntryError
from dred.formula import derive
from dred.formula.construct import number
from dred.formula.language import CATEGORIES, REDUCTION, Variable
from dred.formula.node import Node, const, var, variables
from dred.formula.ops import OPS
from dred.formula.rewrite import build, construct
from dred.formula.syntax import evaluate, parse_once, words
from dred.reductions import MONOIDS, REDUCTIONS, Field, monoid_name

_HELD = -(1 << 20)  # positions of saved variables while a derivative is made: no user's, and no placeholder's category


@dataclass(frozen=True)
class Reduced:
    """A reduction of a formula.

    Attributes
    ----------
    name : str
        In the table of reductions.
    node : Node
        The formula F.
    cat : int
        Output category: 0 for one row per i, 1 for one row per j.
    parameter : int, sequence of float, or None
        What the reduction takes besides: how many terms are kept, ddof, or edges.
    weight : Node or None
        The second formula G, where there is one.
    saved : tuple of (Variable, Saved)
        The variables of the formulas that no caller passes: they hold what other reductions have left. By position;
        one that is read by another one's reduction comes first.
    """

    name: str
    node: Node
    cat: int
    parameter: Any = None
    weight: Node | None = None
    saved: tuple[tuple[Variable, Saved], ...] = ()

    def __hash__(self) -> int:  # not of the saved ones: they are reductions with saved ones, which have ...
        return hash((self.name, self.node, self.cat))

    @property
    def axis(self) -> int:
        """1: over j, 0: over i."""
        return 1 - self.cat

    @property
    def formulas(self) -> tuple[Node, ...]:
        return (self.node,) if self.weight is None else (self.node, self.weight)

    @property
    def fields(self) -> tuple[Field, ...]:
        """The fields of its state that gradients may read."""
        return MONOIDS[monoid_name(REDUCTIONS[self.name], self.weight is not None)].fields

    @property
    def pieces(self) -> tuple[int, ...]:
        """Components of each of the texts of the first array of the result."""
        dims = {field.name: self.size(field) for field in self.fields}
        texts = REDUCTIONS[self.name].results[0].texts
        return tuple(max(dims[word] for word in words(text) if word in dims) for text in texts)

    @property
    def dim(self) -> int:
        """Components of a row of the first array of the result, one after another."""
        return sum(self.pieces)

    def size(self, field: Field) -> int:
        """Components of a field, of all the states that a ranking keeps."""
        takes = REDUCTIONS[self.name].parameter
        dims = {
            "F": self.node.dim,
            "G": 1 if self.weight is None else self.weight.dim,
            "low": len(self.parameter) - 1 if takes == "edges" else 1,
        }
        places = self.parameter if takes == "K" else 1
        return int(places * max((dims.get(word, 1) for word in field.over), default=1))


class Misfit(NamedTuple):
    """What is wrong with a formula of a reduction: F ("F") or G ("G")."""

    formula: str
    message: str
    hint: str = ""


def misfit(r: Reduced) -> Misfit | None:
    """Why the dimensions of the formulas do not fit the reduction, where they do not."""
    entry, f, g = REDUCTIONS[r.name], r.node.dim, r.weight
    if entry.scalar and f != 1:
        hint = "Elem(F, m) takes a component, Sum(F) adds them up"
        return Misfit("F", f"{r.name} takes a formula of dimension 1, got {f}", hint)
    if g is not None:
        over = {word for field in r.fields for word in field.over}
        allowed = {1} if "G" not in over else {1, f} if f > 1 else {g.dim}
        if g.dim not in allowed:
            wanted = " or ".join(map(str, sorted(allowed)))
            return Misfit("G", f"the formula of {r.name} has dimension {f}, G {g.dim}: it must be {wanted}")
    return None


@dataclass(frozen=True)
class Saved:
    """A row of values that a reduction has left, as a variable of further formulas.

    Attributes
    ----------
    reduced : Reduced
    field : str
        A field of its state, or "" for the first array of its result.
    """

    reduced: Reduced
    field: str

    @property
    def dim(self) -> int:
        """Components; a row number has two halves, the higher ones of all come first."""
        if not self.field:
            return self.reduced.dim
        (field,) = (f for f in self.reduced.fields if f.name == self.field)
        return self.reduced.size(field) * (2 if field.kind == "index" else 1)


def _mask(text: str) -> bool:
    """Whether what a text gives is 0 here and there, and must stay so whatever it is multiplied with."""
    return any(step.kind == "call" and step.value in OPS and OPS[step.value].mask for step in parse_once(text).steps)


# -- saved variables ---------------------------------------------------------------------------------------------------


class Program:
    """The saved variables of reductions that belong together: what is the same stands at one position.

    Parameters
    ----------
    first : int
        The first position.
    """

    def __init__(self, first: int) -> None:
        self.first = first
        self.places: dict[Saved, Node] = {}
        self.saved: dict[Node, Saved] = {}
        self._adopted: dict[Reduced, Reduced] = {}

    def variable(self, saved: Saved) -> Node:
        """The variable that holds it."""
        if saved not in self.places:
            v = self.places[saved] = var(self.first + len(self.places), saved.dim, saved.reduced.cat)
            self.saved[v] = saved
        return self.places[saved]

    def reduced(self, name: str, node: Node, cat: int, parameter: Any = None, weight: Node | None = None) -> Reduced:
        """A reduction of formulas over variables of callers and of this program."""
        read = {v for f in (node, weight) if f is not None for v in variables(f)}
        held = sorted((Variable(v.attrs[0], v.dim, v.attrs[1]), self.saved[v]) for v in read if v in self.saved)
        return Reduced(name, node, cat, parameter, weight, tuple(held))

    def adopt(self, r: Reduced) -> Reduced:
        """A reduction of another program as one of this."""
        if r not in self._adopted:
            new = {_node(v): self.variable(Saved(self.adopt(saved.reduced), saved.field)) for v, saved in r.saved}
            node, weight = (f if f is None or not new else derive.substitute(f, new) for f in (r.node, r.weight))
            assert node is not None
            self._adopted[r] = self.reduced(r.name, node, r.cat, r.parameter, weight)
        return self._adopted[r]


def _node(v: Variable) -> Node:
    return var(v.ind, v.dim, v.cat)


def numbered(r: Reduced, first: int) -> Reduced:
    """The same reduction, its saved variables at the positions first, first + 1, ..."""
    return Program(first).adopt(r) if r.saved else r


def together(reduced: Sequence[Reduced], first: int) -> tuple[Reduced, ...]:
    """Reductions that are computed together: what the same one has left is one variable, at first, first + 1, ..."""
    program = Program(first)
    return tuple(program.adopt(r) for r in reduced)


# -- what the table says -----------------------------------------------------------------------------------------------


def _texts(r: Reduced, key: str) -> list[tuple[Node, str]]:
    """The formulas to which the cotangent of a saved field, or of the result (""), sends something, and its text."""
    texts = REDUCTIONS[r.name].pullbacks.get(key, (None, None))
    return [(formula, text) for formula, text in zip(r.formulas, texts, strict=False) if text is not None]


def _names(program: Program, r: Reduced, key: str, e: Node) -> Mapping[str, Callable[[], Node]]:
    """What the names in a text of a pullback stand for; what is saved, only where it is mentioned."""
    ends = [sum(r.pieces[:k]) for k in range(len(r.pieces))]
    pieces = {f"e{k}": (at, n) for k, (at, n) in enumerate(zip(ends, r.pieces, strict=True)) if not key}
    others = {
        name: Saved(program.reduced(other, r.node, r.cat), field)
        for name, (other, field) in REDUCTIONS[r.name].also.items()
    }
    saved = others | {field.name: Saved(r, field.name) for field in r.fields} | {"out": Saved(r, "")}
    return {
        **{name: partial(program.variable, s) for name, s in saved.items()},
        **{name: partial(build, "Extract", (e,), place) for name, place in pieces.items()},
        "e": lambda: e,
        "f": lambda: r.node,
        "g": lambda: const(1) if r.weight is None else r.weight,
        "D": lambda: const(r.node.dim),
        "K": lambda: const(r.parameter),
        "inf": lambda: build("Minus", (build("Log", (const(0),)),)),  # a formula's constants are finite
        "parts": lambda: build("IndexJParts" if r.axis == 1 else "IndexIParts", ()),
    }


def _sent(
    program: Program, r: Reduced, key: str, e: Node, reach: Callable[[Node], list[Node]]
) -> Iterator[tuple[Node, list[Node], Node, bool]]:
    """What the cotangent `e` sends to a term: formula, what it reaches, its cotangent, and whether that is masked."""
    names = _names(program, r, key, e)
    for formula, text in _texts(r, key):
        if not (wrt := reach(formula)):
            continue

        def name(word: str, text: str = text) -> Node:
            if word not in names:
                raise EntryError(r.name, f"{word!r} is none of {', '.join(names)}", text)
            return names[word]()

        cotangent = evaluate(parse_once(text), number, name, construct)
        yield formula, wrt, derive.fit(cotangent, formula.dim), _mask(text)


class _Reach:
    """Which variables depend on a variable v: v itself, and saved ones that hold what follows from it."""

    def __init__(self, program: Program, v: Node) -> None:
        self.program, self.v = program, v
        self.known: dict[Saved, bool] = {}

    def __call__(self, formula: Node) -> list[Node]:
        """Those that a formula reads, by position."""
        return [u for u in variables(formula) if u is self.v or self.follows(self.program.saved.get(u))]

    def follows(self, saved: Saved | None) -> bool:
        """Whether a derivative of what is saved is not 0."""
        if saved is None:
            return False
        if saved not in self.known:
            self.known[saved] = any(self(formula) for formula, _ in _texts(saved.reduced, saved.field))
        return self.known[saved]


# -- derivatives -------------------------------------------------------------------------------------------------------


def grad(
    reduced: Sequence[Reduced],
    v: Node,
    cotangents: Sequence[Node | None],
    first: int | None = None,
    added: bool = False,
) -> Reduced:
    """The gradient by v of the sum of all e * r: a sum that leaves the rows of v; for a parameter its part of each i.

    Reverse mode over reductions: what a cotangent sends to a saved variable is a sum over the other index, saved in
    its turn, that sends it on to the terms of the reduction which left the variable.

    Parameters
    ----------
    reduced : sequence of Reduced
    v : Node
        A variable.
    cotangents : sequence of (Node or None)
        A variable like the (first) result of each; None: that result does not count.
    first : int, optional
        The position of the first saved variable; by default after all variables that are read.
    added : bool
        Whether the rows of the results are added up: then cotangents are parameters.

    Raises
    ------
    ArgumentError, DimensionError
        A cotangent of another category or dimension than its result.
    DerivativeError
        A reduction without a derivative.
    """
    program, total = Program(_HELD), dict[Node, Node]()
    reach = _Reach(program, v)

    def pull(r: Reduced, key: str, e: Node) -> None:
        for formula, wrt, cotangent, masked in _sent(program, r, key, e, reach):
            for u, g in zip(wrt, derive.vjp(formula, wrt, cotangent, masked), strict=True):
                derive.add(total, u, g)

    for r, e in zip(reduced, cotangents, strict=True):
        if e is not None:
            like("cotangent", r, e, added)
            pull(program.adopt(_differentiable(r)), "", e)
    while held := [u for u in total if u is not v]:
        u = max(held, key=lambda u: int(u.attrs[0]))  # all that reads it has been visited
        saved = program.saved[u]
        sum_of = program.reduced("Sum", total.pop(u), saved.reduced.cat)
        pull(saved.reduced, saved.field, program.variable(Saved(sum_of, "")))
    node = derive.limited(total.get(v) or derive.zero(v.dim))
    return _finished(program, node, v.attrs[1] % 2, first, [v, *(e for e in cotangents if e is not None)])


def diff(r: Reduced, v: Node, u: Node, first: int | None = None) -> Reduced:
    """The derivative of r in the direction u of v: a sum that leaves the rows of r, one array for those of a pair.

    Forward mode: a pullback is linear in the cotangent, so the tangent of a result is its transpose, applied to the
    tangents of the terms, and summed.

    Raises
    ------
    DimensionError
        A direction of another dimension than v.
    DerivativeError
        A reduction without a derivative.
    """
    derive.same("Diff", "direction", u.dim, "the variable", v.dim)
    program, tangents = Program(_HELD), {v: u}
    reach = _Reach(program, v)

    def tangent(w: Node) -> Node:
        if w not in tangents:
            saved = program.saved[w]
            sum_of = program.reduced("Sum", pushed(saved.reduced, saved.field), saved.reduced.cat)
            tangents[w] = program.variable(Saved(sum_of, ""))
        return tangents[w]

    def pushed(r: Reduced, key: str) -> Node:
        dim, total = Saved(r, key).dim, dict[str, Node]()
        e = var(derive.E, dim, 2)
        for formula, wrt, cotangent, _ in _sent(program, r, key, e, reach):
            t = derive.jvp(formula, wrt, [tangent(w) for w in wrt])
            (moved,) = derive.vjp(cotangent, (e,), t)
            total[key] = build("Add", (total[key], moved)) if total else moved
        return derive.limited(total.get(key) or derive.zero(dim))

    node = pushed(program.adopt(_differentiable(r)), "")
    return _finished(program, node, r.cat, first, [v, u])


def _differentiable(r: Reduced) -> Reduced:
    if "" not in REDUCTIONS[r.name].pullbacks:
        hint = "its values only jump: they do not change where its terms change a little"
        raise DerivativeError(f"{r.name}{REDUCTION} has no derivative", hint=hint)
    return r


def _finished(program: Program, node: Node, cat: int, first: int | None, given: Sequence[Node]) -> Reduced:
    """The sum of a formula, its saved variables at their final positions."""
    if first is None:
        below = [f for saved in program.places for f in saved.reduced.formulas]
        first = 1 + max(u.attrs[0] for f in (node, *given, *below) for u in variables(f))
    return numbered(program.reduced("Sum", node, cat), first)


def like(what: str, r: Reduced, e: Node, added: bool = False) -> None:
    """A variable that must be like the result of a reduction, or like the sum of its rows.

    Raises
    ------
    ArgumentError, DimensionError
    """
    cat = 2 if added else r.cat
    if (e.dim, e.attrs[1]) != (r.dim, cat):
        wanted, got = (f"{tuple(CATEGORIES)[c]}({dim})" for dim, c in ((r.dim, cat), (e.dim, e.attrs[1])))
        kind = ArgumentError if e.attrs[1] != cat else DimensionError
        raise kind(f"the {what} must be {wanted}, as the result of the reduction, got {got}")
