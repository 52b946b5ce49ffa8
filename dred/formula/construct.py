"""Nodes with checks: counts and kinds of arguments, dimensions, limits, exact folding of constants."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import inf
from typing import Any

import numpy as np

from dred.errors import ArgumentError, LimitError
from dred.formula.node import Node, const, intern
from dred.formula.op import Op, elementwise
from dred.formula.ops import OPS
from dred.formula.syntax import MAX_DIGITS

_TOO_LARGE = 10**MAX_DIGITS
_ANY = {"Pow": "x ** y and Powf(x, y) take any exponent"}  # operation -> what takes more than its integers


def exact(node: Node) -> Fraction | None:
    """The value of an exact constant, else None."""
    value = node.attrs[0] if node.op == "Const" else None
    return value if isinstance(value, Fraction) else None


def nearest(value: Fraction | float, dtype: str = "float64") -> float:
    """The number of a type that is nearest to a constant, rounded once; infinite beyond the largest."""
    kind = np.dtype(dtype).type
    try:
        double = float(value)
    except OverflowError:
        return inf if value > 0 else -inf
    with np.errstate(over="ignore"):
        x = kind(double)
    if isinstance(value, float) or not np.isfinite(x) or dtype == "float64":
        return float(x)
    # double may have been rounded to a tie of the narrower type: its neighbours are tried, too
    around = (float(y) for y in (x, np.nextafter(x, kind(-inf)), np.nextafter(x, kind(inf))) if np.isfinite(y))
    return min(around, key=lambda y: abs(Fraction(y) - value))


def number(value: Fraction) -> Node:
    """An exact constant within the limits of the language."""
    if max(abs(value.numerator), value.denominator) > _TOO_LARGE:
        raise LimitError(f"a constant has more than {MAX_DIGITS} digits")
    return const(value)


def make(name: str, args: Sequence[Node], attrs: tuple[Any, ...] = ()) -> Node:
    """The node `name(*args; *attrs)`, or the constant that it is.

    Raises
    ------
    DimensionError, IndexRangeError, LimitError, ArgumentError
    """
    op = OPS[name]
    dims = tuple(a.dim for a in args)
    dim = (op.dim or elementwise)(dims, attrs)
    if op.exact is not None:
        values = [exact(a) for a in args]
        if name in ("Divide", "Inv") and values[-1] == 0:
            raise ArgumentError("division by the constant 0")
        if None not in values:
            try:
                folded = op.exact(*values, *attrs)
            except ZeroDivisionError:
                raise ArgumentError("division by the constant 0") from None
            if folded or name != "Minus":  # -0 keeps its sign: it stays a node
                return number(folded)
    return intern(name, tuple(args), attrs, dim)


def arguments(op: Op, given: Sequence[Any], named: dict[str, Any]) -> tuple[list[Node], tuple[Any, ...]]:
    """Formula arguments and attributes of a call as written.

    Raises
    ------
    ArgumentError
        For a wrong number, unknown or repeated names, a formula where an integer is due, or the reverse.
    """
    names = op.args + op.attrs
    values = dict(zip(names, given, strict=False))
    for word, value in named.items():
        if word not in names:
            raise ArgumentError(f"{op.name} has no argument {word!r}", hint=f"it is {usage(op)}")
        if word in values:
            raise ArgumentError(f"{op.name} got its argument {word!r} twice", hint=f"it is {usage(op)}")
        values[word] = value
    missing = set(names) - values.keys() - op.optional
    if len(given) > len(names) or missing:
        count = len(given) + len(named)
        fewest = len(names) - len(op.optional)
        takes = f"{len(names)} argument{'s' * (len(names) != 1)}"
        between = "or" if len(names) == fewest + 1 else "to"
        takes = takes if fewest == len(names) else f"{fewest} {between} {takes}"
        raise ArgumentError(f"{op.name} takes {takes}, got {count}", hint=f"it is {usage(op)}")
    args: list[Node] = []
    for word in op.args:
        if not isinstance(values[word], Node):
            raise ArgumentError(
                f"argument {word!r} of {op.name} must be a formula, got a list", hint=f"it is {usage(op)}"
            )
        args.append(values[word])
    return args, tuple(attribute(op, word, values.get(word, ())) for word in op.attrs)


def attribute(op: Op, word: str, value: Any) -> Any:
    """A static argument: a constant that is an integer, or a list of integers where one is due."""
    what = "a list of integers, such as [2, 3]" if word in op.lists else "an integer constant"
    if isinstance(value, tuple):
        if word in op.lists:
            return value
        given: str = "a list"
    else:
        number = exact(value)
        if word not in op.lists and number is not None and number.denominator == 1:
            return int(number)
        given = f"a formula of dimension {value.dim}" if number is None else f"{number}"
    hint = "; ".join([f"it is {usage(op)}", *([_ANY[op.name]] if op.name in _ANY else [])])
    raise ArgumentError(f"argument {word!r} of {op.name} must be {what}, got {given}", hint=hint)


def usage(op: Op) -> str:
    """The call as it should be written: "Elem(f, m)"."""
    words = [f"{word}{'[]' * (word in op.lists)}{'?' * (word in op.optional)}" for word in op.attrs]
    return f"{op.name}({', '.join([*op.args, *words])})"
