"""What an entry of the table of operations says, and the rules of dimension that entries share."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Protocol

from dred.errors import DimensionError, EntryError, IndexRangeError, LimitError

MAX_DIM = 1_000_000

Dims = tuple[int, ...]
Attrs = tuple[Any, ...]


class Component(Protocol):
    """What the meaning of a structural operation sees of the kernel being built; an index may be a loop counter."""

    dims: Dims  # of the arguments
    attrs: Attrs

    def arg(self, k: int, index: Any) -> Any:
        """Component `index` of argument k."""

    def fold(self, length: int, body: Callable[[Any], Any], op: str = "fold") -> Any:
        """Sum of `body(0) ... body(length - 1)`; "fold_max" and "fold_min": their extremum, NaN passed over."""

    def split(self, index: Any, at: int, left: Callable[[Any], Any], right: Callable[[Any], Any]) -> Any:
        """`left(index)` below position `at`, `right(index - at)` from there on."""

    def digits(self, index: Any, sizes: tuple[int, ...]) -> tuple[Any, ...]:
        """The place in an array of shape `sizes`, stored row by row, that a position in it means."""

    def at(self, position: int) -> Any:
        """The index of a fixed position."""

    def number(self, index: Any) -> Any:
        """An index as a number."""

    def row(self, cat: int) -> Any:
        """The global number of the row of i (0) or j (1)."""

    def prim(self, name: str, *args: Any) -> Any:
        """A primitive of scalars."""

    def const(self, value: Fraction | int) -> Any:
        """A constant."""


Meaning = Callable[[Component, Any], Any]
DimRule = Callable[[Dims, Attrs], int]
Texts = tuple[str | None, ...]
_SIGNATURE = re.compile(r"[A-Za-z_]\w*\( *(\w+ *(, *\w+ *)*)?(; *\w+(\[\])?\??(, *\w+(\[\])?\??)*)?\)")


@dataclass(frozen=True)
class Op:
    """One operation.

    Attributes
    ----------
    signature : str
        Formula arguments, then, after a semicolon, static attributes: "Elem(f; m)". `df[]` is a list of integers,
        all others are integers; those followed by a question mark may be left out (an empty list).
    doc : str
        One line.
    numpy : callable
        Independent reference on arrays whose last axis holds the components: `numpy(*arguments, *attributes)`. Of the
        row numbers: takes them and gives them back.
    meaning : str or callable
        Scalar text over the arguments (element-wise operations; primitives in lower case), or a function of a
        `Component` and an index.
    partial : tuple of (str or None)
        Element-wise operations: derivative with respect to each argument as formula text over arguments, attributes,
        the result `y`; None: nothing flows.
    vjp : tuple of (str or None), or callable
        Other operations: the cotangent of each argument, over the names above, the cotangent `e` and `dim(f)`. Texts
        that follow from the sizes are made by a function of (dims, attrs).
    macro : str or callable
        Operations that are short for a formula: that formula, or a function of (dims, attrs) that writes it. They
        leave no node of their own.
    mask : bool
        Cotangents are set to 0 here and there: where they are 0, they stay so, whatever they are multiplied with.
    dim : callable, optional
        (dims, attrs) -> dim, raising `DimensionError` or `IndexRangeError`; None: element-wise, dims {D} or {1, D}.
    dims : str
        The rule in words: dimensions of the arguments and of the result, "n p, p -> n". Letters stand for any
        dimension, names of attributes for their values; "or" is between alternatives, a semicolon between rules.
    exact : callable, optional
        Value on exact constants.
    flops : int
        Operations per component of the result.
    domain : tuple of (low, high)
        Where tests sample each argument; either may list a bound for each component.
    example : tuple of (dims, attrs)
        A well-formed call for tests; by default every argument has dim 3.
    special : tuple of (arguments, result)
        Values at special points, by component.
    method : str
        Name of the method on lazy tensors; by default the name in lower case.
    kinds : str
        Which of its arguments and its result are complex vectors, as pairs of numbers ("c"), or real ones ("r"):
        "rc->c". By default all are real.
    """

    signature: str
    doc: str
    numpy: Callable[..., Any]
    meaning: str | Meaning = ""
    partial: Texts = ()
    vjp: Texts | Callable[[Dims, Attrs], Texts] = ()
    macro: str | Callable[[Dims, Attrs], str] = ""
    mask: bool = False
    dim: DimRule | None = None
    dims: str = "element-wise"
    exact: Callable[..., Fraction] | None = None
    flops: int = 1
    domain: tuple[tuple[Any, Any], ...] = ()
    example: tuple[Dims, Attrs] | None = None
    special: tuple[tuple[tuple[float, ...], float], ...] = ()
    method: str = ""
    kinds: str = ""
    name: str = field(init=False)
    args: tuple[str, ...] = field(init=False)
    attrs: tuple[str, ...] = field(init=False)
    lists: frozenset[str] = field(init=False)
    optional: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        name, _, inner = self.signature.rstrip(")").partition("(")
        args, _, attrs = inner.partition(";")
        words = [word.strip() for word in attrs.split(",") if word.strip()]
        values = {
            "name": name,
            "args": tuple(word.strip() for word in args.split(",") if word.strip()),
            "attrs": tuple(word.rstrip("[]?") for word in words),
            "lists": frozenset(word.rstrip("[]?") for word in words if "[]" in word),
            "optional": frozenset(word.rstrip("[]?") for word in words if word.endswith("?")),
            "method": self.method or name.lower(),
        }
        for key, value in values.items():
            object.__setattr__(self, key, value)
        self._check()

    def _check(self) -> None:
        """Mistakes that would show only where the operation is used."""
        if not _SIGNATURE.fullmatch(self.signature):
            raise EntryError(self.signature, "its signature is written 'Name(f, g; m, sizes[], order[]?)'")
        if bool(self.meaning) == bool(self.macro):
            raise EntryError(self.name, "it has either a meaning or a formula that it is short for (macro)")
        for what in ("partial", "vjp"):
            texts = getattr(self, what)
            if not callable(texts) and not isinstance(texts, tuple):
                raise EntryError(self.name, f"{what} is a tuple, one text or None for each argument")
            if not callable(texts) and texts and len(texts) != len(self.args):
                raise EntryError(self.name, f"{what} has {len(texts)} texts for {len(self.args)} arguments")
        if self.kinds and not re.fullmatch(f"[rc]{{{len(self.args)}}}->[rc]", self.kinds):
            raise EntryError(self.name, f"kinds={self.kinds!r}: a letter, r or c, for each argument and the result")
        if [bool(self.partial), bool(self.vjp), bool(self.macro)].count(True) != bool(self.args or self.macro):
            raise EntryError(self.name, "its derivative is in one of partial, vjp and macro; None where nothing flows")

    @property
    def linear(self) -> bool:
        """Linear in all arguments together, as `Concat`, or in each, as `Scalprod`."""
        return bool(self.vjp) and not self.mask


# -- rules of dimension ------------------------------------------------------------------------------------------------


def elementwise(dims: Dims, attrs: Attrs = ()) -> int:
    """{D} or {1, D}."""
    widest = max(dims)
    if any(d not in (1, widest) for d in dims):
        raise DimensionError(f"dimensions {dims} do not broadcast: each must be 1 or {widest}")
    return widest


def length(n: int) -> int:
    """A dimension given as an integer."""
    if not 1 <= n <= MAX_DIM:
        raise LimitError(f"dimension {n} is outside 1 ... {MAX_DIM}")
    return n


def inside(position: int, dim: int) -> None:
    """A component of a vector."""
    if not 0 <= position < dim:
        raise IndexRangeError(f"component {position} is outside a vector of dimension {dim}: 0 ... {dim - 1}")


def scalar(dim: int, what: str = "argument") -> None:
    """Dimension 1."""
    if dim != 1:
        raise DimensionError(f"the {what} must have dimension 1, got {dim}")


def one(dims: Dims, attrs: Attrs) -> int:
    """Any vector to a number."""
    return 1


def dot(dims: Dims, attrs: Attrs) -> int:
    """Element-wise, then to a number."""
    elementwise(dims)
    return 1


ANY, POSITIVE, AWAY = (-2.0, 2.0), (0.3, 3.0), (0.4, 2.0)
