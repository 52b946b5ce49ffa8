"""Squared distances written out: |a|² + |b|² - 2 (a | b) about a centre. Fewer operations, at the price of accuracy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dred.formula.construct import number
from dred.formula.node import I, J, Node, toposort
from dred.formula.rewrite import build, construct
from dred.formula.syntax import evaluate, parse_once

# clamped, since rounding may take it below 0; the factor 2 stands where it is exact, and is computed once per row
_EXPANDED = "ReLU((SqNorm2(a) + SqNorm2(b)) + (-2 * a | b))"


def expanded(roots: Sequence[Node], centre: Callable[[Node], Node]) -> list[Node]:
    """Formulas whose squared distances between a vector of i and a vector of j are written out.

    Parameters
    ----------
    roots : sequence of Node
    centre : callable
        The variable that holds the mean of another variable: what is subtracted from both vectors where one of them,
        that of j first, is a variable.
    """
    new: dict[Node, Node] = {}
    for n in toposort(roots):
        args = tuple(new[a] for a in n.args)
        node = n if args == n.args else build(n.op, args, n.attrs)
        new[n] = _distance(node, centre) or node
    return [new[n] for n in roots]


def _distance(node: Node, centre: Callable[[Node], Node]) -> Node | None:
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
    names = {"a": a, "b": b}
    return evaluate(parse_once(_EXPANDED), number, names.__getitem__, construct)
