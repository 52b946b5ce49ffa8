"""Derivatives: reverse mode on the shared graph, in one backward pass."""

from __future__ import annotations

from collections.abc import Sequence

from dred.errors import DerivativeError, DimensionError, LimitError
from dred.formula.construct import number
from dred.formula.node import Node, const, toposort, var, variables
from dred.formula.ops import OPS
from dred.formula.rewrite import build, construct, expand
from dred.formula.syntax import evaluate, parse_once

MAX_NODES = 100_000


def limited(node: Node) -> Node:
    """The formula itself, within the limit on its size."""
    if (count := len(toposort([node]))) > MAX_NODES:
        raise LimitError(f"the formula has {count} operations, the limit is {MAX_NODES}")
    return node


def fit(node: Node, dim: int) -> Node:
    """A cotangent for a value of length `dim`: what was repeated is summed, what was summed is repeated."""
    if node.dim == dim:
        return node
    return build("Sum", (node,)) if dim == 1 else build("SumT", (node,), (dim,))


def text(source: str, n: Node, **more: Node) -> Node:
    """Formula text of an entry of the table, at the node `n`."""
    op = OPS[n.op]
    names = dict(zip(op.args + op.attrs, (*n.args, *map(const, n.attrs)), strict=True)) | {"y": n} | more
    return evaluate(parse_once(source), number, names.__getitem__, construct)


def pullback(n: Node, e: Node, k: int) -> Node | None:
    """What the cotangent `e` of `n` gives to its argument k; None where nothing flows."""
    op = OPS[n.op]
    if op.vjp:
        return fit(text(op.vjp[k], n, e=e), n.args[k].dim)
    source = op.partial[k]
    if source is None:
        return None
    return fit(build("Mult", (e, text(source, n))), n.args[k].dim)


def vjp(y: Node, wrt: Sequence[Node], e: Node) -> tuple[Node, ...]:
    """The cotangents of `wrt` for the cotangent `e` of `y`: sum over c of e[c] * d y[c] / d v, for each v.

    Reverse-mode differentiation (Linnainmaa 1976): each node is visited once, after all its users.

    Parameters
    ----------
    y : Node
    wrt : sequence of Node
    e : Node
        Of dimension `y.dim`.

    Returns
    -------
    tuple of Node
        One of dimension `v.dim` for each v; zeros where y does not depend on v.
    """
    order = toposort([y])
    active = set(wrt)
    for n in order:
        if any(a in active for a in n.args):
            active.add(n)
    cotangent: dict[Node, Node] = {y: fit(e, y.dim)}
    for n in reversed(order):
        if n not in cotangent or n not in active or not n.args:
            continue
        for k, a in enumerate(n.args):
            g = pullback(n, cotangent[n], k) if a in active else None
            if g is not None:
                cotangent[a] = build("Add", (cotangent[a], g)) if a in cotangent else g
    return tuple(limited(cotangent.get(v) or expand("Zero", (), (v.dim,))) for v in wrt)


def grad(f: Node, v: Node, e: Node | None = None) -> Node:
    """`Grad(f, v, e)`; without e, a new variable after the last one, of the other category than v.

    Raises
    ------
    DerivativeError
        For a derivative with respect to anything but a variable.
    DimensionError
        Where e has another dimension than f.
    """
    if v.op != "Var":
        raise DerivativeError("Grad differentiates with respect to a variable", hint="its second argument is an alias")
    if e is None:
        if v.attrs[1] == 2:
            raise DerivativeError("the gradient with respect to a parameter needs its third argument, the cotangent")
        position = 1 + max(n.attrs[0] for n in variables(f) or [v])
        e = var(position, f.dim, 1 - v.attrs[1])
    if e.dim != f.dim:
        raise DimensionError(f"the cotangent has dimension {e.dim}, the formula {f.dim}: they must be equal")
    return vjp(f, (v,), e)[0]
