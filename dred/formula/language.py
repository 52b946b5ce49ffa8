"""The formula language as users write it: declarations of variables, formulas, derivatives inside formulas."""

from __future__ import annotations

import difflib
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from dred.errors import AliasError, ArgumentError, FormulaError, UnknownNameError, VariableError
from dred.formula.construct import arguments, exact, number
from dred.formula.derive import DERIVED, cotangent, derived, limited
from dred.formula.node import Node, var
from dred.formula.op import MAX_DIM
from dred.formula.ops import OPS
from dred.formula.rewrite import expand, power
from dred.formula.syntax import POWER, evaluate, parse
from dred.reductions import REDUCTIONS

CATEGORIES = {"Vi": 0, "Vj": 1, "Pm": 2}
_USUAL = {"Vi": "x", "Vj": "y", "Pm": "p"}  # names of variables in messages
KINDS = ("i-variable", "j-variable", "parameter")
REDUCTION, SAVED = "_Reduction", "_WithSavedForward"  # endings of what is for texts of reductions only

# what KeOps or others call an operation, in lower case -> what is written here
_ITS_REDUCTIONS = ("logsumexp", "sumsoftmax", "sumsoftmaxweight", "max_sumshiftexp", "max_sumshiftexpweight",
                   "max_argmax", "min_argmin", "kmin", "argkmin", "kmin_argkmin")  # fmt: skip
_ALSO_OPERATIONS = ("sum", "max", "min", "argmax", "argmin")
_REDUCTION = f"a reduction, which cannot stand inside a formula; offered are: {', '.join(REDUCTIONS)}"
_ELSEWHERE = {
    "vx": "write Vi(...)",
    "vy": "write Vj(...)",
    "ind": "lists are written [2, 3]",
    "dot": "(f | g), or Scalprod(f, g)",
    "power": "f ** g, or Pow(f, m)",
    **dict.fromkeys(_ITS_REDUCTIONS, _REDUCTION),
    **{name + REDUCTION.lower(): _REDUCTION for name in (*_ITS_REDUCTIONS, *_ALSO_OPERATIONS)},
}


class Variable(NamedTuple):
    """An input of a routine: place in the call, length of its vectors, category (0: per i, 1: per j, 2: parameter)."""

    ind: int
    dim: int
    cat: int

    def __str__(self) -> str:
        return f"{('Vi', 'Vj', 'Pm')[self.cat]}({self.ind},{self.dim})"


@dataclass(frozen=True)
class Formula:
    """A formula with everything that its call needs.

    Attributes
    ----------
    text : str
        As the user wrote it.
    node : Node
    variables : tuple of Variable
        By position: 0, 1, 2, ...
    names : tuple of str
        Alias of each variable, "" without.
    labels : tuple of str
        What messages call each variable.
    """

    text: str
    node: Node
    variables: tuple[Variable, ...]
    names: tuple[str, ...]
    labels: tuple[str, ...]


def _variable(name: str) -> Callable[[Sequence[Any]], Node]:
    def declared(args: Sequence[Any]) -> Node:
        values = [exact(a) if isinstance(a, Node) else None for a in args]
        if None in values or any(v.denominator != 1 for v in values if v is not None):
            raise ArgumentError(f"the arguments of {name} must be integers")
        return _var(name, [int(v) for v in values if v is not None], None)

    return declared


def _var(name: str, values: Sequence[int], place: int | None) -> Node:
    """`Vi(dim)` (only with a place), `Vi(ind, dim)`, `Var(ind, dim, cat)` and the like."""
    if name == "Var" and len(values) == 3:
        ind, dim, cat = values
    elif name in CATEGORIES and len(values) == 2:
        (ind, dim), cat = values, CATEGORIES[name]
    elif name in CATEGORIES and len(values) == 1 and place is not None:
        ind, dim, cat = place, values[0], CATEGORIES[name]
    else:
        hint = "it is Var(ind, dim, cat)" if name == "Var" else f"it is {name}(ind, dim)"
        if name in CATEGORIES and len(values) == 1:
            hint += f"; or declare an alias, '{_USUAL[name]} = {name}({values[0]})'"
        raise AliasError(f"{name} got {len(values)} argument{'s' * (len(values) != 1)}", hint=hint)
    for right, message in (
        (ind >= 0, f"position {ind} is negative: positions start at 0"),
        (1 <= dim <= MAX_DIM, f"dimension {dim} is outside 1 ... {MAX_DIM}"),
        (cat in (0, 1, 2), f"category {cat} is none of 0 (Vi), 1 (Vj) and 2 (Pm)"),
    ):
        if not right:
            raise AliasError(message)
    return var(ind, dim, cat)


VARIABLES: Mapping[str, Callable[[Sequence[Any]], Node]] = {name: _variable(name) for name in ("Var", *CATEGORIES)}


def suggestion(name: str, known: Sequence[str]) -> str:
    """The nearest known name as a question, or all of them, in lines."""
    folded = {k.lower(): k for k in known}
    near = difflib.get_close_matches(name.lower(), list(folded), 1, cutoff=0.76)
    if near:
        return f"did you mean {folded[near[0]]!r}?"
    return textwrap.fill(f"known are: {', '.join(sorted(known))}", 100)


_INTEGER = re.compile(r"-?[0-9]{1,20}")
_ALIAS = re.compile(r"\s*(?:([A-Za-z_][A-Za-z0-9_]*)\s*=)?\s*(Var|Vi|Vj|Pm)\s*\(([^()]*)\)\s*")


def declare(aliases: Sequence[str]) -> list[tuple[str, Node]]:
    """The variables declared by a list of aliases, in its order; "" for one without a name.

    Examples
    --------
    >>> [(name, v.attrs) for name, v in declare(["x = Vi(3)", "Pm(1)"])]
    [('x', (0, 0)), ('', (1, 2))]
    """
    if not isinstance(aliases, list | tuple) or not all(isinstance(a, str) for a in aliases):
        raise AliasError("aliases must be a list of texts", hint='for example ["x = Vi(3)", "y = Vj(3)"]')
    out: list[tuple[str, Node]] = []
    seen: set[str] = set()
    for place, text in enumerate(aliases):
        whole = (0, max(1, len(text)))
        found = _ALIAS.fullmatch(text)
        inner = [] if found is None else [part.strip() for part in found.group(3).split(",")]
        if found is None or not all(map(_INTEGER.fullmatch, inner)):
            hint = "an alias is 'name = Vi(dim)', with Vi, Vj or Pm"
            raise AliasError("this alias cannot be read", text, whole, hint)
        name = found.group(1) or ""
        if name and name in seen:
            raise AliasError(f"the name {name!r} is declared twice", text, whole)
        seen.add(name)
        try:
            out.append((name, _var(found.group(2), [int(part) for part in inner], place)))
        except FormulaError as error:
            raise error.located(text, whole) from None
    return out


class Reader:
    """The texts of a user for one routine: the names and calls in them, and the variables that they thereby have.

    Parameters
    ----------
    aliases : sequence of str
    """

    def __init__(self, aliases: Sequence[str]) -> None:
        self.declared = declare(aliases)
        self.aliases = tuple(aliases)
        self.names = {name: v for name, v in self.declared if name}
        self.text = ""  # the one that is being read
        self.written: dict[Node, str] = {}  # variables that are no names, in order, and the text in which they stand
        self.made: list[Node] = []  # of these, the ones that Grad has made

    def value(self, text: str, call: Callable[[str, Sequence[Any], dict[str, Any]], Any]) -> Any:
        """What the text stands for."""
        if not isinstance(text, str):
            raise ArgumentError(f"a formula must be a text, got {type(text).__name__}")
        self.text = text
        return evaluate(parse(text), number, self.name, call, locate=True)

    def formula(self, text: str, node: Node) -> Formula:
        """A formula of a text with all variables of all texts: rewriting may have removed some from it."""
        written = [(name, v, alias) for (name, v), alias in zip(self.declared, self.aliases, strict=True)]
        variables, names = _signature([*written, *(("", v, where) for v, where in self.written.items())])
        made = {v.attrs[0] for v in self.made}
        plain = (f"the cotangent {v} of Grad" if v.ind in made else str(v) for v in variables)
        labels = tuple(name or label for name, label in zip(names, plain, strict=True))
        return Formula(text, node, variables, names, labels)

    def name(self, word: str) -> Node:
        if word not in self.names:
            hint = f"the aliases are: {', '.join(self.names)}" if self.names else "there are no aliases"
            if word in OPS:
                takes = OPS[word].args + OPS[word].attrs
                hint = f"the operation is written {word}(...)" if takes else f"it is written {word}()"
            raise UnknownNameError(f"unknown name {word!r}", hint=hint)
        return self.names[word]

    def call(self, name: str, args: Sequence[Any], named: dict[str, Any]) -> Node:
        """A call as a user wrote it."""
        if name == POWER:
            return power(args[0], args[1])
        if name in DERIVED or name in VARIABLES:
            if named:
                raise ArgumentError(f"{name} takes no named arguments")
            if name in VARIABLES:
                return self.meet(VARIABLES[name](args))
            node = derived(name, args)
            if name == "Grad" and len(args) == 2:
                self.make(cotangent(*args))
            return node
        if name not in OPS:
            raise _unknown(name)
        formulas, attrs = arguments(OPS[name], args, named)
        return expand(name, formulas, attrs)

    def meet(self, v: Node) -> Node:
        """A variable that is written out in the text."""
        self._agree(v, self.made)
        self.written.setdefault(v, self.text)
        return v

    def make(self, v: Node) -> Node:
        """A variable that a derivative makes."""
        self._agree(v, [*(w for _, w in self.declared), *self.written])
        self.written.setdefault(v, self.text)
        self.made.append(v)
        return v

    def after(self) -> int:
        """The position after all variables so far."""
        return 1 + max((v.attrs[0] for v in (*(w for _, w in self.declared), *self.written)), default=-1)

    def _agree(self, v: Node, others: Sequence[Node]) -> None:
        """Where a variable that was made meets another, they must be the same: here the place in the text is known."""
        for other in others:
            if other is not v and other.attrs[0] == v.attrs[0]:
                hint = "Grad without a cotangent makes a variable at the next position: write Grad(F, v, e)"
                raise VariableError(_contradiction(other, v), hint=hint)


def _unknown(name: str) -> FormulaError:
    elsewhere = _ELSEWHERE.get(name.lower())
    if name.removesuffix(REDUCTION) in REDUCTIONS or (name.endswith(REDUCTION) and elsewhere is None):
        hint = "give the text to dred.Reduction, or to Genred the formula alone, with reduction_op and axis"
        return ArgumentError(f"a formula contains no reduction, got {name}", hint=hint)
    if name.endswith(SAVED):
        short = name.removesuffix(SAVED)
        return ArgumentError(f"{name} takes a reduction, got a formula", hint=f"of a formula it is {short}(F, v, ...)")
    hint = elsewhere or suggestion(name, [*OPS, *DERIVED, *VARIABLES])
    return UnknownNameError(f"unknown operation {name!r}", hint=hint)


def formula(text: str, aliases: Sequence[str]) -> Formula:
    """Read a formula.

    Parameters
    ----------
    text : str
    aliases : sequence of str
        Declarations of its variables; never modified.

    Returns
    -------
    Formula

    Raises
    ------
    FormulaError
        One of its classes, with the text and a caret at the place.

    Examples
    --------
    >>> f = formula("Exp(x - y)", ["x = Vi(3)", "y = Vj(3)"])
    >>> f.node.dim, [str(v) for v in f.variables]
    (3, ['Vi(0,3)', 'Vj(1,3)'])
    """
    reader = Reader(aliases)
    return reader.formula(text, limited(reader.value(text, reader.call)))


def read(text: str, aliases: Sequence[str] = ()) -> Node:
    """The node of a formula, whatever the positions of its variables.

    `read(str(node)) is node` for every node.

    Examples
    --------
    >>> f = read("Exp(-SqDist(x, y))", ["x = Vi(3)", "y = Vj(3)"])
    >>> read(str(f)) is f
    True
    """
    reader = Reader(aliases)
    return limited(reader.value(text, reader.call))


def _contradiction(first: Node, second: Node) -> str:
    kinds = [f"{KINDS[v.attrs[1]]} of dimension {v.dim}" for v in (first, second)]
    return f"position {first.attrs[0]} is declared as {kinds[0]} and as {kinds[1]}"


def _signature(written: Sequence[tuple[str, Node, str]]) -> tuple[tuple[Variable, ...], tuple[str, ...]]:
    """Variables by position, from (alias, variable, text in which it stands); positions must be 0 ... n - 1."""
    found: dict[int, Node] = {}
    names: dict[int, str] = {}
    texts: dict[int, str] = {}
    for name, v, text in written:
        ind = v.attrs[0]
        if found.setdefault(ind, v) is not v:
            raise VariableError(_contradiction(found[ind], v), text, (0, len(text)))
        names[ind] = names.get(ind) or name
        texts.setdefault(ind, text)
    places = sorted(found)
    if places != list(range(len(places))):
        text = next(texts[k] for place, k in enumerate(places) if place != k)
        message = f"the positions of the variables are {places}, they must be 0 ... {len(places) - 1}"
        raise VariableError(message, text, (0, len(text)))
    variables = tuple(Variable(k, found[k].dim, found[k].attrs[1]) for k in places)
    return variables, tuple(names[k] for k in places)
