"""Formulas as interned nodes: structurally equal formulas are the same object, so sharing is free."""

from __future__ import annotations

import hashlib
import os
import threading
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

I, J = 1, 2  # bits of `Node.axes`: the indices that a value varies with
AXES_OF_CATEGORY = (I, J, 0)
# operations without arguments that vary all the same
ROW_NUMBERS = {"IndexI": I, "IndexJ": J, "IndexIParts": I, "IndexJParts": J}
FlatNode = tuple[str, tuple[int, ...], tuple[Any, ...], int]


@dataclass(frozen=True, slots=True, eq=False, repr=False, weakref_slot=True)
class Node:
    """`op(*args)` with static `attrs`; equality is identity.

    Attributes
    ----------
    op : str
        Name in the table of operations, or "Var" (attrs: position, category) or "Const" (attrs: an exact value).
    args : tuple of Node
    attrs : tuple
        Static arguments: integers, tuples of integers, or the value of a constant.
    dim : int
        Length of the vector that the node stands for, at every pair (i, j).
    axes : int
        Union of `I` and `J`: the indices that the value varies with.
    """

    op: str
    args: tuple[Node, ...]
    attrs: tuple[Any, ...]
    dim: int
    axes: int

    def __str__(self) -> str:
        return canonical(self)

    def __reduce__(self) -> tuple[Any, ...]:  # flat, so that deep formulas travel; interned again on arrival
        return unflatten, (flatten(self),)

    def __dask_tokenize__(self) -> str:
        return digest(self)


_nodes: weakref.WeakValueDictionary[tuple[Any, ...], Node] = weakref.WeakValueDictionary()
_lock = threading.RLock()


def _renew_lock() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def intern(op: str, args: tuple[Node, ...], attrs: tuple[Any, ...], dim: int) -> Node:
    """The one node of this structure. No check is made here: see `construct.make`."""
    typed = tuple((type(a).__name__, repr(a)) for a in attrs)  # keeps 1, 1.0, 0.0 and -0.0 apart
    key = (op, tuple(map(id, args)), typed, dim)
    with _lock:
        node = _nodes.get(key)
        if node is None:
            axes = AXES_OF_CATEGORY[attrs[1]] if op == "Var" else ROW_NUMBERS.get(op, 0)
            for a in args:
                axes |= a.axes
            node = _nodes[key] = Node(op, args, attrs, dim, axes)
        return node


def var(ind: int, dim: int, cat: int) -> Node:
    """Variable at position `ind` of the call, of length `dim`; `cat` 0: one vector per i, 1: per j, 2: parameter."""
    return intern("Var", (), (ind, cat), dim)


def const(value: Fraction | int | float) -> Node:
    """A constant, exact; floats that are no rational numbers, and -0.0, stay floats."""
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf")) or str(value) == "-0.0"):
        return intern("Const", (), (value,), 1)
    return intern("Const", (), (Fraction(value),), 1)


def toposort(roots: Iterable[Node]) -> list[Node]:
    """Every node below `roots` once, arguments before their users, in an order that depends on structure alone."""
    order: list[Node] = []
    seen: set[Node] = set()
    stack = [(r, False) for r in reversed(list(roots))]
    while stack:
        n, done = stack.pop()
        if done:
            order.append(n)
        elif n not in seen:
            seen.add(n)
            stack.append((n, True))
            stack.extend((a, False) for a in reversed(n.args))
    return order


def flatten(node: Node) -> list[FlatNode]:
    """The formula as a flat list in topological order; arguments are positions in the list."""
    place: dict[Node, int] = {}
    flat: list[FlatNode] = []
    for n in toposort([node]):
        place[n] = len(flat)
        flat.append((n.op, tuple(place[a] for a in n.args), n.attrs, n.dim))
    return flat


def unflatten(flat: list[FlatNode]) -> Node:
    """The inverse of `flatten`."""
    nodes: list[Node] = []
    for op, args, attrs, dim in flat:
        nodes.append(intern(op, tuple(nodes[a] for a in args), attrs, dim))
    return nodes[-1]


def digest(node: Node) -> str:
    """Content key of a formula, equal in every process."""
    return hashlib.sha256(repr(flatten(node)).encode()).hexdigest()


def variables(node: Node) -> list[Node]:
    """The variables of a formula, by position."""
    return sorted((n for n in toposort([node]) if n.op == "Var"), key=lambda n: (n.attrs[0], n.attrs[1], n.dim))


def canonical(node: Node) -> str:
    """Text of a formula, shared parts bound to names once: read again, it is the same node.

    Examples
    --------
    >>> from dred.formula.language import read
    >>> print(read("Square(x) + Exp(Square(x))", ["x = Vi(3)"]))
    let t0 = Square(Var(0,3,0)); Add(t0, Exp(t0))
    """
    order = toposort([node])
    users: dict[Node, int] = {}
    for n in order:
        for a in n.args:
            users[a] = users.get(a, 0) + 1
    texts: dict[Node, str] = {}
    bindings: list[str] = []
    depth: dict[Node, int] = {}
    for n in order:
        if n.op == "Var":
            ind, cat = n.attrs
            texts[n] = f"Var({ind},{n.dim},{cat})"
        elif n.op == "Const":
            (value,) = n.attrs
            whole = not isinstance(value, Fraction) or value.denominator == 1
            texts[n] = str(value) if whole else f"RatCst({value.numerator}, {value.denominator})"
        else:
            attrs = (list(a) if isinstance(a, tuple) else a for a in n.attrs)
            texts[n] = f"{n.op}({', '.join([*(texts[a] for a in n.args), *map(str, attrs)])})"
        depth[n] = 1 + max((depth[a] for a in n.args), default=0)
        if n.args and n is not node and (users.get(n, 0) > 1 or depth[n] > 50):
            bindings.append(f"let t{len(bindings)} = {texts[n]}; ")
            texts[n], depth[n] = f"t{len(bindings) - 1}", 1
    return "".join(bindings) + texts[node]
