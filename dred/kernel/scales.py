"""Moving a factor of an expression into what is staged: into its rows, where it costs nothing for each pair."""

from __future__ import annotations

from collections.abc import Collection
from fractions import Fraction
from typing import NamedTuple

from dred.kernel.ir import IJ, Expr, Graph, walk


class Scale(NamedTuple):
    """A number that varies with nothing: `base` to a power that is a power of 2.

    Attributes
    ----------
    base : Expr
    power : Fraction
    signed : bool
        Whether the base may be below 0: then it has no root.
    negative : bool
        Whether it is the number below 0.
    """

    base: Expr
    power: Fraction = Fraction(1)
    signed: bool = False
    negative: bool = False

    def to(self, power: int | Fraction) -> Scale:
        """A power of its absolute value."""
        return self._replace(power=self.power * power, negative=False)

    def of(self, graph: Graph) -> Expr:
        """Its value."""
        value, power = self.base, self.power
        while power > 1:
            value, power = graph.make("mul", value, value), power / 2
        while power < 1:
            value, power = graph.make("sqrt", value), power * 2
        return graph.make("neg", value) if self.negative else value


class Scaling:
    """Expressions times scales, at no cost for each pair.

    Attributes
    ----------
    differences : dict of int to (Expr, Scale)
        For sums and differences that have been scaled, by id: what they have become, and by which scale.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.differences: dict[int, tuple[Expr, Scale]] = {}

    def scaled(self, e: Expr, scale: Scale) -> Expr | None:
        """The expression times a scale; None where that takes an instruction for each pair."""
        known: dict[tuple[int, Scale], Expr | None] = {}
        differences: dict[int, tuple[Expr, Scale]] = {}
        stack = [(e, scale)]
        while stack:  # no recursion: depth is not limited
            key = stack[-1][0].id, stack[-1][1]
            if key not in known:
                wanted = _parts(*stack[-1])
                if wanted is None:
                    known[key] = None
                elif missing := [part for part in wanted if (part[0].id, part[1]) not in known]:
                    stack += missing
                    continue
                else:
                    made = known[key] = self._made(*stack[-1], [known[part.id, s] for part, s in wanted])
                    if made is not None and made.op in ("add", "sub") and made.axes == IJ:
                        differences[key[0]] = made, key[1]
            stack.pop()
        if known[e.id, scale] is not None:
            self.differences |= differences
        return known[e.id, scale]

    def used(self, e: Expr, exact: Collection[int] = ()) -> Expr:
        """The expression with what has been scaled in the place of what it was: times the inverse of its scale.

        But not in expressions, by their ids, that have to be exact.
        """
        new: dict[int, Expr] = {}
        for a in walk([e]):
            if a.id in exact:
                continue
            if a.id in self.differences:
                made, scale = self.differences[a.id]
                new[a.id] = self.graph.make("mul", made, self.inverse(scale))
            elif any(b.id in new for b in a.args):
                new[a.id] = self.graph.make(a.op, *[new.get(b.id, b) for b in a.args], attr=a.attr)
        return new.get(e.id, e)

    def inverse(self, scale: Scale) -> Expr:
        return self.graph.make("div", self.graph.const(1), scale.of(self.graph))

    def _made(self, e: Expr, scale: Scale, parts: list[Expr | None]) -> Expr | None:
        """The expression times the scale, of scaled parts."""
        if e.axes != IJ:
            return self.graph.make("mul", e, scale.of(self.graph))
        if any(part is None for part in parts):
            return None
        new = [part for part in parts if part is not None]
        if e.op in ("mul", "fma"):
            # a negative factor of a product costs nothing
            less = self.graph.make("neg", new[0]) if scale.negative else new[0]
            args = [less, *new] if _square(e) else [*_with(e, new[0]), *new[1:]]
        else:
            args = [*new, *e.args[len(new) :]]
        made = self.graph.make(e.op, *args, attr=e.attr)
        return self.graph.make("neg", made) if scale.negative and e.op in ("abs", "sqrt") else made


def _square(e: Expr) -> bool:
    return e.args[0] is e.args[1]


def _factor(e: Expr) -> int:
    """Which factor of a product is scaled: what is staged, if there is such a one."""
    return 0 if e.args[0].axes != IJ else 1


def _with(e: Expr, factor: Expr) -> list[Expr]:
    """The factors of a product, one of them another."""
    return [factor, e.args[1]] if _factor(e) == 0 else [e.args[0], factor]


def _parts(e: Expr, scale: Scale) -> list[tuple[Expr, Scale]] | None:
    """Which parts of an expression have to be scaled, and by what, to scale it; None: there are no such parts."""
    if e.axes != IJ:
        return []
    if e.op in ("add", "sub"):
        return [(a, scale) for a in e.args]
    if e.op in ("neg", "fold", "div"):
        return [(e.args[0], scale)]
    if e.op in ("mul", "fma"):
        rest = [(a, scale) for a in e.args[2:]]
        if not _square(e):
            return [(e.args[_factor(e)], scale), *rest]
        return None if scale.signed else [(e.args[0], scale.to(Fraction(1, 2))), *rest]
    if e.op in ("abs", "sqrt") and not scale.signed:
        return [(e.args[0], scale.to(1 if e.op == "abs" else 2))]
    return None
