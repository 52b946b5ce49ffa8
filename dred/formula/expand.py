"""Squared distances written out: |a|² + |b|² - 2 (a | b) about a centre. Fewer operations, at the price of accuracy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from dred.formula.construct import number
from dred.formula.node import I, J, Node, toposort
from dred.formula.rewrite import build, construct
from dred.formula.syntax import evaluate, parse_once

SHORT = 8  # components for which two products cost no less than a difference and a product

# clamped, since rounding may take it below 0; the factor 2 stands where it is exact, and is computed once per row
_EXPANDED = "ReLU((SqNorm2(a) + SqNorm2(b)) + (-2 * a | b))"


def expanded(roots: Sequence[Node], centre: Callable[[Node], Node], summed: bool = False) -> list[Node]:
    """Formulas whose squared distances between a vector of i and a vector of j are written out.

    Their gradients are sums of s (a - b): these are s a - s b then, of which one product per pair is left.

    Parameters
    ----------
    roots : sequence of Node
    centre : callable
        The variable that holds the mean of another variable: what is subtracted from both vectors where one of them,
        that of j first, is a variable.
    summed : bool
        Whether the formulas are added up over pairs.
    """
    new: dict[Node, Node] = {}
    pairs: dict[Node, tuple[Node, Node]] = {}  # differences whose squares have been written out
    for n in toposort(roots):
        args = tuple(new[a] for a in n.args)
        node = n if args == n.args else build(n.op, args, n.attrs)
        new[n] = _distance(node, centre, pairs) or node
    return [(summed and _parted(new[n], pairs)) or new[n] for n in roots]


def _parted(node: Node, pairs: Mapping[Node, tuple[Node, Node]]) -> Node | None:
    """The product of numbers and of such a difference as the difference of two products; None for other formulas."""
    numbers = list[Node]()
    while node.op == "Mult" and 1 in (dims := [a.dim for a in node.args]):
        numbers.append(node.args[dims.index(1)])
        node = node.args[1 - dims.index(1)]
    if node not in pairs or not numbers or node.dim <= SHORT:
        return None
    scale = numbers[0]
    for more in numbers[1:]:
        scale = build("Mult", (scale, more))
    return build("Subtract", tuple(build("Mult", (scale, v)) for v in pairs[node]))


def _distance(node: Node, centre: Callable[[Node], Node], pairs: dict[Node, tuple[Node, Node]]) -> Node | None:
    """A squared distance written out; None for another formula, and for vectors of one component, where it is none."""
    if node.op != "Sum" or node.args[0].op != "Square" or node.args[0].args[0].op != "Subtract":
        return None
    difference = node.args[0].args[0]
    pair = {a.axes: a for a in difference.args}
    if difference.dim == 1 or set(pair) != {I, J}:
        return None
    a, b = (v if v.dim == difference.dim else build("SumT", (v,), (difference.dim,)) for v in (pair[I], pair[J]))
    if (known := next((v for v in (b, a) if v.op == "Var"), None)) is not None:
        c = centre(known)
        a, b = build("Subtract", (a, c)), build("Subtract", (b, c))
    pairs[difference] = (a, b) if difference.args[0] is pair[I] else (b, a)
    names = {"a": a, "b": b}
    return evaluate(parse_once(_EXPANDED), number, names.__getitem__, construct)
