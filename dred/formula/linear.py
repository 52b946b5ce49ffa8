"""Linear formulas: whether a formula is linear in a variable, and whether components of that stay apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from dred.errors import ArgumentError
from dred.formula.node import Node, canonical, toposort
from dred.formula.ops import OPS

UNIFORM, DIAGONAL, COUPLED = "uniform", "diagonal", "coupled"
_WORST = (UNIFORM, DIAGONAL, COUPLED)

# Of which arguments depend on the variable, and which are 0: whether the operation is linear in those that depend.
_Rule = Callable[[Sequence[bool], Sequence[bool]], bool]


def _together(depends: Sequence[bool], zero: Sequence[bool]) -> bool:
    return all(d or z for d, z in zip(depends, zero, strict=True))


def _one(depends: Sequence[bool], zero: Sequence[bool]) -> bool:
    return sum(depends) == 1


def _first(depends: Sequence[bool], zero: Sequence[bool]) -> bool:
    return not any(depends[1:])


def _branches(depends: Sequence[bool], zero: Sequence[bool]) -> bool:
    return not depends[0] and _together(depends[1:], zero[1:])


_RULES: Mapping[str, _Rule] = {
    **dict.fromkeys(("Add", "Subtract", "Concat", "ComplexPair"), _together),
    **dict.fromkeys(("Mult", "ZeroMult", "Scalprod", "TensorDot", "ZeroTensorDot", "TensorProd"), _one),
    **dict.fromkeys(("Minus", "Sum", "SumT", "Elem", "ElemT", "Extract", "ExtractT"), _first),
    **dict.fromkeys(("ComplexReal", "ComplexImag", "Divide"), _first),
    "IfElse": _branches,
}


def linearity(node: Node, v: Node) -> str:
    """How a formula of the dimension of a variable is linear in it.

    Parameters
    ----------
    node : Node
    v : Node
        A variable.

    Returns
    -------
    str
        "uniform": every component of v is multiplied with the same number; "diagonal": each with its own;
        "coupled": any other matrix.

    Raises
    ------
    ArgumentError
        It is not linear, or not seen to be, or does not depend on v.

    Examples
    --------
    >>> from dred.formula.language import read
    >>> names = ["x = Vi(2)", "y = Vj(2)", "b = Vj(2)"]
    >>> b = read("b", names)
    >>> [linearity(read(text, names), b) for text in ("Exp(-SqDist(x,y)) * b", "x * y * b", "x * (y | b)")]
    ['uniform', 'diagonal', 'coupled']
    """
    kinds: dict[Node, str] = {v: UNIFORM}
    for n in toposort([node]):
        depends = [a in kinds for a in n.args]
        if n in kinds or not any(depends):
            continue
        rule = _RULES.get(n.op)
        if rule is None or not rule(depends, [_zero(a) for a in n.args]):
            raise ArgumentError(f"the formula is not linear in {canonical(v)}: {n.op} is not, of what depends on it")
        kinds[n] = _kind(n, kinds, v.dim)
    if node not in kinds:
        raise ArgumentError(f"the formula does not depend on {canonical(v)}")
    return UNIFORM if v.dim == 1 else kinds[node]


def _kind(n: Node, kinds: Mapping[Node, str], dim: int) -> str:
    """That of an operation, of those of its arguments."""
    if OPS[n.op].dim is not None or any(a in kinds and a.dim != dim for a in n.args):
        return COUPLED
    own = DIAGONAL if any(a not in kinds and a.dim > 1 and not _zero(a) for a in n.args) else UNIFORM
    return max((own, *(kinds[a] for a in n.args if a in kinds)), key=_WORST.index)


def _zero(n: Node) -> bool:
    while n.op == "SumT":
        (n,) = n.args
    return n.op == "Const" and n.attrs[0] == 0
