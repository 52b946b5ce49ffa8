"""Reductions as users write them in texts: `Grad(Sum_Reduction(F, 0), x, e)`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from dred.errors import ArgumentError, DerivativeError, DimensionError, UnknownNameError
from dred.formula import derive
from dred.formula.construct import exact
from dred.formula.language import REDUCTION, SAVED, Formula, Reader, suggestion
from dred.formula.node import Node, var
from dred.formula.op import length
from dred.formula.pullback import Reduced, Saved, diff, grad, like, misfit, numbered
from dred.reductions import REDUCTIONS

__all__ = ["Reduced", "Saved", "diff", "grad", "numbered", "reduced", "reduction"]

ROWS = ("one row per i", "one row per j")
_MORE = {"K": "integer parameter", "G": "second formula"}  # arguments that only some reductions take
_MOST = 2**24  # exact in every type
_LEAST = {"K": ("so many terms are kept", 1), "ddof": ("it is taken off the number of terms", 0)}  # of the parameter


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
        The reduction; variables that it has saved come behind these.

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
    read = reader.formula(text, value.node)
    value = numbered(value, len(read.variables))
    return replace(read, node=value.node), value


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
    if not takes:
        hint = f"write dred.Genred(F, aliases, {stem!r}, axis, opt_arg=...)"
        raise ArgumentError(f"the reduction {stem} cannot be written as a text", hint=hint)
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
    what, least = _LEAST.get(REDUCTIONS[stem].parameter, ("", 0))
    if parameter is not None and not least <= parameter <= _MOST:
        raise ArgumentError(f"argument 'K' of {name} is {short(parameter)}: {what}, {least} ... {_MOST}")
    return reduced(stem, values["F"], int(cat), None if parameter is None else int(parameter), values.get("G"))


def short(value: Any) -> str:
    """A number for a message."""
    text = str(value)
    return text if len(text) < 40 else f"{text[:20]}... ({len(text)} digits)"


def reduced(name: str, node: Node, cat: int, parameter: Any = None, weight: Node | None = None) -> Reduced:
    """A reduction of formulas that fit it.

    Raises
    ------
    DimensionError
        A formula of more than one component where there can be but one, or two that do not go together.
    LimitError
        More operations than a formula may have, or more components than a vector.
    """
    result = Reduced(name, derive.limited(node), cat, parameter, weight and derive.limited(weight))
    if wrong := misfit(result):
        raise DimensionError(wrong.message, hint=wrong.hint)
    length(result.dim)
    return result


# -- derivatives -------------------------------------------------------------------------------------------------------

# name -> arguments, and the function of reduction, variable and cotangent or direction
_DERIVATIVES: dict[str, tuple[str, Callable[[Reduced, Node, Node], Reduced]]] = {
    "Grad": ("R, v, e?", lambda r, v, e: grad([r], v, [e])),
    "Diff": ("R, v, u", diff),
    f"Grad{SAVED}": ("R, v, e, saved", lambda r, v, e: grad([r], v, [e])),
    f"Diff{SAVED}": ("R, v, u, saved", diff),
}


def _derived(reader: Reader, name: str, args: Sequence[Any]) -> Reduced:
    """A derivative of a reduction. A saved result is checked only: it is computed with the state, more exactly."""
    words, make = _DERIVATIVES[name]
    signature = f"{name}({words})"
    for word, a in zip(derive.counted(signature, args), args, strict=True):
        if word != "R" and not (isinstance(a, Node) and a.op == "Var"):
            kind = DerivativeError if word == "v" else ArgumentError
            raise kind(f"argument {word!r} of {name} must be a variable", hint=f"it is {signature}")
    r, v, *given = args
    if name.endswith(SAVED):
        like("saved result", r, given[-1])
    return make(r, v, given[0] if given else reader.make(var(reader.after(), r.dim, r.cat)))
