"""Reductions as users write them in texts: `Grad(Sum_Reduction(F, 0), x, e)`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from dred.errors import ArgumentError, DerivativeError, DimensionError, UnknownNameError
from dred.formula import derive
from dred.formula.construct import exact, number
from dred.formula.language import CATEGORIES, REDUCTION, SAVED, Formula, Reader, suggestion
from dred.formula.node import Node, var
from dred.formula.rewrite import construct
from dred.formula.syntax import evaluate, parse_once
from dred.reductions import REDUCTIONS

ROWS = ("one row per i", "one row per j")
_MORE = {"K": "integer parameter", "G": "second formula"}  # arguments that only some reductions take


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
    parameter : int or None
        The integer parameter K, where the reduction has one.
    weight : Node or None
        The second formula G, where there is one.
    """

    name: str
    node: Node
    cat: int
    parameter: int | None = None
    weight: Node | None = None

    @property
    def axis(self) -> int:
        """1: over j, 0: over i."""
        return 1 - self.cat


def reduction(text: str, aliases: Sequence[str]) -> tuple[Formula, Reduced]:
    """Read the text of a reduction.

    Parameters
    ----------
    text : str
    aliases : sequence of str
        Declarations of its variables; never modified.

    Returns
    -------
    Formula
        The reduced formula, with all variables of the text: variables that derivatives make come last.
    Reduced

    Raises
    ------
    FormulaError
        One of its classes, with the text and a caret at the place.

    Examples
    --------
    >>> f, r = reduction("Grad(Sum_Reduction(Sin(x) * y, 0), y, e)", ["x = Vi(3)", "y = Vj(3)", "e = Vi(3)"])
    >>> print(r.name, r.axis, r.node)
    Sum 0 Mult(Var(2,3,0), Sin(Var(0,3,0)))
    """
    reader = Reader(aliases)
    value = reader.value(text, partial(_call, reader))
    if not isinstance(value, Reduced):
        hint = f"write Sum{REDUCTION}(F, 0) for {ROWS[0]} or Sum{REDUCTION}(F, 1) for {ROWS[1]}, or use dred.Genred"
        raise ArgumentError("this is a formula without a reduction", text, (0, len(text)), hint)
    return reader.formula(text, value.node), value


def _call(reader: Reader, name: str, args: Sequence[Any], named: dict[str, Any]) -> Node | Reduced:
    """A call as a user wrote it."""
    derivative = name in _DERIVATIVES and bool(args) and isinstance(args[0], Reduced)
    if any(isinstance(a, Reduced) for a in (*args[derivative:], *named.values())):
        hint = "a reduction is the whole text, or the first argument of Grad or Diff"
        raise ArgumentError(f"a reduction cannot be {'another' if derivative else 'an'} argument of {name}", hint=hint)
    if not derivative and not name.endswith(REDUCTION):
        return reader.call(name, args, named)
    if named:
        raise ArgumentError(f"{name} takes no named arguments")
    return _derived(reader, name, args) if derivative else _reduced(name, args)


def _reduced(name: str, args: Sequence[Any]) -> Reduced:
    """`NAME_Reduction(F [, K], cat [, G])`."""
    stem = name.removesuffix(REDUCTION)
    if stem not in REDUCTIONS:
        raise UnknownNameError(f"unknown reduction {stem!r}", hint=suggestion(stem, [*REDUCTIONS]))
    takes = REDUCTIONS[stem].signature
    lacks = " and ".join(f"no {what} {word}" for word, what in _MORE.items() if word not in takes)
    words = derive.counted(f"{name}({takes})", args, f": {stem} has {lacks}" if lacks else "")
    values = dict(zip(words, args, strict=True))
    for word in ("F", "G"):
        if not isinstance(values.get(word, values["F"]), Node):
            raise ArgumentError(f"argument {word!r} of {name} must be a formula, got a list")
    whole = {word: exact(a) if isinstance(a, Node) else None for word, a in values.items()}
    cat, parameter = whole["cat"], whole.get("K")
    if cat not in (0, 1):
        raise ArgumentError(f"argument 'cat' of {name} must be 0 or 1", hint=f"0 leaves {ROWS[0]}, 1 {ROWS[1]}")
    if "K" in values and (parameter is None or parameter.denominator != 1):
        raise ArgumentError(f"argument 'K' of {name} must be an integer constant")
    k = None if parameter is None else int(parameter)
    return Reduced(stem, derive.limited(values["F"]), int(cat), k, values.get("G"))


# -- derivatives -------------------------------------------------------------------------------------------------------


def _sent(r: Reduced, e: Node) -> Node:
    """What the cotangent `e` of the result sends to every term, as the table says."""
    source = REDUCTIONS[r.name].cotangent
    if source is None:
        raise DerivativeError(f"{r.name}{REDUCTION} has no derivative")
    return evaluate(parse_once(source), number, {"e": e, "f": r.node}.__getitem__, construct)


def _grad(r: Reduced, v: Node, e: Node) -> Reduced:
    """The gradient by v of the sum of e * r: a sum that leaves the rows of v; for a parameter its part of each i."""
    if (e.dim, e.attrs[1]) != (r.node.dim, r.cat):
        wanted, got = (f"{tuple(CATEGORIES)[cat]}({dim})" for dim, cat in ((r.node.dim, r.cat), (e.dim, e.attrs[1])))
        kind = ArgumentError if e.attrs[1] != r.cat else DimensionError
        raise kind(f"the cotangent must be {wanted}, as the result of the reduction, got {got}")
    (node,) = derive.vjp(r.node, (v,), _sent(r, e))
    return Reduced("Sum", node, v.attrs[1] % 2)


def _diff(r: Reduced, v: Node, u: Node) -> Reduced:
    """The tangent of r for the tangent u of v."""
    # a component of the result depends on that component of each term: the map of tangents is its own transpose
    node = derive.limited(_sent(r, derive.diff(r.node, v, u)))
    return Reduced("Sum", node, r.cat)


# name -> arguments, and the function of reduction, variable and cotangent or direction
_DERIVATIVES: dict[str, tuple[str, Callable[[Reduced, Node, Node], Reduced]]] = {
    "Grad": ("R, v, e?", _grad),
    "Diff": ("R, v, u", _diff),
    f"Grad{SAVED}": ("R, v, e, saved", _grad),
    f"Diff{SAVED}": ("R, v, u, saved", _diff),
}


def _derived(reader: Reader, name: str, args: Sequence[Any]) -> Reduced:
    """A derivative of a reduction; a saved result is not needed by the reductions that have derivatives."""
    words, make = _DERIVATIVES[name]
    signature = f"{name}({words})"
    for word, a in zip(derive.counted(signature, args), args, strict=True):
        if word != "R" and not (isinstance(a, Node) and a.op == "Var"):
            kind = DerivativeError if word == "v" else ArgumentError
            raise kind(f"argument {word!r} of {name} must be a variable", hint=f"it is {signature}")
    r, v, *given = args
    return make(r, v, given[0] if given else reader.make(var(reader.after(), r.node.dim, r.cat)))
