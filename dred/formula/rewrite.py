"""Rewrite rules: pairs of formulas, applied where a node is built. The value stays, the cost falls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any, NamedTuple

from dred.errors import EntryError
from dred.formula.construct import attribute, exact, make, number
from dred.formula.node import Node, const, toposort
from dred.formula.op import Op
from dred.formula.ops import OPS
from dred.formula.syntax import POWER, evaluate, parse_once

Binding = Mapping[str, Node | int]


@dataclass(frozen=True)
class Rule:
    """`left` may be written as `right`; names stand for any formula, or any integer where an attribute is due.

    Attributes
    ----------
    left, right : str
    when : callable, optional
        Condition on what the names stand for.
    safe : bool
        False where a finite value may become an overflow, or accuracy may be lost: never applied by itself.
    """

    left: str
    right: str
    when: Callable[[Any], bool] | None = None
    safe: bool = True


RULES: tuple[Rule, ...] = (
    Rule("a + 0", "a"),
    Rule("0 + a", "a"),
    Rule("a + SumT(0, n)", "a"),
    Rule("SumT(0, n) + a", "a"),
    Rule("a - 0", "a"),
    Rule("0 - a", "-a"),
    Rule("a - SumT(0, n)", "a"),
    Rule("SumT(0, n) - a", "-a"),
    Rule("a - a", "0"),
    Rule("a + a", "2 * a"),
    Rule("a + -b", "a - b"),
    Rule("a - -b", "a + b"),
    Rule("-a + b", "b - a"),
    Rule("-(a - b)", "b - a"),
    Rule("--a", "a"),
    Rule("a * 1", "a"),
    Rule("1 * a", "a"),
    Rule("a * 0", "0"),
    Rule("0 * a", "0"),
    Rule("a * SumT(0, n)", "0"),
    Rule("SumT(0, n) * a", "0"),
    Rule("a * -1", "-a"),
    Rule("-1 * a", "-a"),
    Rule("-SumT(0, n)", "0"),
    Rule("a * a", "Square(a)"),
    Rule("-a * -b", "a * b"),
    Rule("SumT(a, n) * b", "a * b", lambda b: b["n"] == b["b"].dim),
    Rule("a * SumT(b, n)", "a * b", lambda b: b["n"] == b["a"].dim),
    Rule("a / 1", "a"),
    Rule("0 / a", "0"),
    Rule("SumT(0, n) / a", "0"),
    Rule("a / a", "1"),
    Rule("1 / a", "Inv(a)"),
    Rule("Square(-a)", "Square(a)"),
    Rule("Abs(-a)", "Abs(a)"),
    Rule("Abs(Abs(a))", "Abs(a)"),
    Rule("Abs(Square(a))", "Square(a)"),
    Rule("Cos(-a)", "Cos(a)"),
    Rule("Pow(a, 0)", "1"),
    Rule("Pow(a, 1)", "a"),
    Rule("Pow(a, 2)", "Square(a)"),
    Rule("Pow(a, -1)", "Inv(a)"),
    Rule("Exp(0)", "1"),
    Rule("Log(1)", "0"),
    Rule("ZeroMult(a, 1)", "a"),
    Rule("ZeroMult(1, a)", "a"),
    Rule("ZeroMult(a, -1)", "-a"),
    Rule("ZeroMult(a, 0)", "0"),
    Rule("ZeroMult(0, a)", "0"),
    Rule("ZeroMult(a, SumT(0, n))", "0"),
    Rule("ZeroMult(SumT(0, n), a)", "0"),
    Rule("Sum(a)", "a", lambda b: b["a"].dim == 1),
    Rule("Sum(SumT(a, n))", "n * a"),
    Rule("SumT(a, n)", "a", lambda b: b["n"] == 1),
    Rule("(a | b)", "a * b", lambda b: b["a"].dim == b["b"].dim == 1),
    Rule("(a | SumT(0, n))", "0"),
    Rule("(SumT(0, n) | a)", "0"),
    Rule("Extract(a, s, n)", "a", lambda b: b["s"] == 0 and b["n"] == b["a"].dim),
    Rule("Extract(SumT(a, m), s, n)", "SumT(a, n)"),
    Rule("ExtractT(a, s, n)", "a", lambda b: b["s"] == 0 and b["n"] == b["a"].dim),
    Rule("ExtractT(SumT(0, m), s, n)", "SumT(0, n)"),
    Rule(
        "ExtractT(a, 0, n) + ExtractT(b, m, n)",
        "Concat(a, b)",
        lambda b: b["a"].dim == b["m"] and b["m"] + b["b"].dim == b["n"],
    ),
    Rule(
        "ExtractT(b, m, n) + ExtractT(a, 0, n)",
        "Concat(a, b)",
        lambda b: b["a"].dim == b["m"] and b["m"] + b["b"].dim == b["n"],
    ),
    Rule("Elem(a, m)", "a", lambda b: b["a"].dim == 1),
    Rule("Elem(SumT(a, n), m)", "a"),
    Rule("ElemT(0, n, m)", "SumT(0, n)"),
    Rule("ElemT(a, n, m)", "a", lambda b: b["n"] == 1),
    Rule("ComplexReal(ComplexPair(a, b))", "a"),
    Rule("ComplexImag(ComplexPair(a, b))", "b"),
    Rule("ComplexReal(SumT(a, n))", "SumT(a, n / 2)"),
    Rule("ComplexImag(SumT(a, n))", "SumT(a, n / 2)"),
    Rule("ComplexPair(a, 0) + ComplexPair(0, b)", "ComplexPair(a, b)", lambda b: b["a"].dim == b["b"].dim),
    Rule("ComplexPair(0, b) + ComplexPair(a, 0)", "ComplexPair(a, b)", lambda b: b["a"].dim == b["b"].dim),
    Rule("IfElse(c, a, a)", "a"),
    Rule("IfElse(c, a, 0) + IfElse(c, 0, b)", "IfElse(c, a, b)"),
    Rule("IfElse(c, 0, b) + IfElse(c, a, 0)", "IfElse(c, a, b)"),
    Rule("Exp(a) * Exp(b)", "Exp(a + b)", safe=False),
    Rule("Sqrt(Square(a))", "Abs(a)", safe=False),
)


class Cost(NamedTuple):
    """What a rule lowers, most important first."""

    flops: int
    nodes: int
    reads: int
    constants: int


def cost(node: Node) -> Cost:
    """Operations, nodes, their reads of each other, and constants of a formula, shared parts counted once."""
    order = [n for n in toposort([node]) if n.op != "Var"]
    calls = [n for n in order if n.op != "Const"]
    flops = sum(OPS[n.op].flops * max([n.dim, *(a.dim for a in n.args)]) for n in calls)
    reads = sum(a.op != "Const" for n in calls for a in n.args)
    constants = len(order) - len(calls) + sum(len(n.attrs) for n in calls)
    return Cost(flops, len(calls), reads, constants)


# -- matching ---------------------------------------------------------------------------------------------------------


class Pattern(NamedTuple):
    kind: str  # "number", "name" or "call"
    value: Any
    args: tuple[Pattern, ...] = ()


def pattern(text: str) -> Pattern:
    """The left side of a rule as a tree."""

    def call(name: str, args: Sequence[Any], named: dict[str, Any]) -> Pattern:
        if name == "Minus" and args[0].kind == "number":
            return Pattern("number", -args[0].value)
        return Pattern("call", name, tuple(args))

    return evaluate(parse_once(text), lambda v: Pattern("number", v), lambda n: Pattern("name", n), call)


def match(p: Pattern, value: Node | int, found: dict[str, Node | int]) -> bool:
    """Whether `value` has the form `p`; fills in what the names stand for."""
    if p.kind == "name":
        return found.setdefault(p.value, value) is value or found[p.value] == value
    if p.kind == "number":
        return bool((exact(value) if isinstance(value, Node) else Fraction(value)) == p.value)
    if not isinstance(value, Node) or value.op != p.value:
        return False
    return all(match(q, v, found) for q, v in zip(p.args, (*value.args, *value.attrs), strict=True))


@cache
def _rules() -> dict[str, list[tuple[Pattern, Rule]]]:
    table: dict[str, list[tuple[Pattern, Rule]]] = {}
    for rule in RULES:
        if rule.safe:
            left = pattern(rule.left)
            table.setdefault(left.value, []).append((left, rule))
    return table


def rewritten(rule: Rule, found: Binding) -> Node:
    """The right side of a rule."""

    def name(word: str) -> Node:
        value = found[word]
        return value if isinstance(value, Node) else const(value)

    return evaluate(parse_once(rule.right), number, name, construct)


def build(name: str, args: Sequence[Node], attrs: tuple[Any, ...] = ()) -> Node:
    """`make`, then the first rule that applies. Arguments are assumed to be built likewise.

    Ends, since every rule lowers the cost; the dimension stays, since a narrower right side is repeated.
    """
    node = make(name, args, attrs)
    for left, rule in _rules().get(node.op, ()):
        found: dict[str, Node | int] = {}
        if match(left, node, found) and (rule.when is None or rule.when(found)):
            right = rewritten(rule, found)
            return right if right.dim == node.dim else build("SumT", (right,), (node.dim,))
    return node


def construct(name: str, args: Sequence[Any], named: dict[str, Any]) -> Node:
    """A call of the table's own texts (rules, derivatives, macros): known to be well-formed."""
    if name == POWER:
        return power(args[0], args[1])
    if name == "dim":
        return const(args[0].dim)
    op = OPS[name]
    n = len(op.args)
    given = [*args[n:], *[()] * (len(op.args) + len(op.attrs) - len(args))]  # lists that were left out
    attrs = tuple(attribute(op, word, value) for word, value in zip(op.attrs, given, strict=True))
    return expand(name, args[:n], attrs)


def expand(name: str, args: Sequence[Node], attrs: tuple[Any, ...] = ()) -> Node:
    """`build`, macros written out."""
    op = OPS[name]
    if not op.macro:
        return build(name, args, attrs)
    dims = tuple(a.dim for a in args)
    if op.dim is not None:
        op.dim(dims, attrs)
    source = op.macro if isinstance(op.macro, str) else op.macro(dims, attrs)
    return entry_text(op, source, named(op, args, attrs), construct)


def entry_text(
    op: Op, source: str, names: Mapping[str, Any], call: Callable[[str, Sequence[Any], dict[str, Any]], Node]
) -> Node:
    """Formula text of an entry of the table.

    Raises
    ------
    EntryError
        Where it mentions what there is not.
    """

    def name(word: str) -> Any:
        if word not in names:
            raise EntryError(op.name, f"{word!r} is none of {', '.join(names)}", source)
        return names[word]

    def operation(word: str, args: Sequence[Any], more: dict[str, Any]) -> Node:
        if word not in OPS and word not in (POWER, "dim"):
            raise EntryError(op.name, f"{word!r} is no operation", source)
        if word == op.name and op.macro:
            raise EntryError(op.name, "it is short for itself", source)
        return call(word, args, more)

    node: Node = evaluate(parse_once(source), number, name, operation)
    return node


def named(op: Op, args: Sequence[Node], attrs: tuple[Any, ...]) -> dict[str, Any]:
    """What the names in the texts of an entry stand for."""
    values = [a if isinstance(a, tuple) else const(a) for a in attrs]
    return dict(zip(op.args + op.attrs, (*args, *values), strict=True))


def power(base: Node, exponent: Node) -> Node:
    """`base ** exponent`: integers, 0.5 and -0.5 have operations of their own."""
    value = exact(exponent)
    if value is not None and value.denominator == 1:
        return build("Pow", (base,), (int(value),))
    if value in (Fraction(1, 2), Fraction(-1, 2)):
        return build("Sqrt" if value == Fraction(1, 2) else "Rsqrt", (base,))
    return build("Powf", (base, exponent))
