"""What a LazyTensor is made of: arrays, numbers and symbolic variables, as nodes of formulas."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from dred.errors import DimensionError, InputError
from dred.formula.construct import number
from dred.formula.node import Node, const, var
from dred.formula.op import MAX_DIM
from dred.formula.rewrite import expand
from dred.inputs import kind_of, native
from dred.lazy import pairs

FIRST = 1 << 20  # positions of variables that hold arrays; those of symbolic ones are lower,
COMPLEX = 1 << 19  # and of complex ones they are counted from here
_numbers = itertools.count(FIRST)


class Held(NamedTuple):
    """What a variable holds.

    Attributes
    ----------
    array : array or None
        As it was passed; None: the variable is symbolic.
    shape : tuple of int
        Its shape.
    rows : array or None
        The same as rows of real numbers: (..., M, dim) or (..., N, dim), and (..., dim) for a parameter.
    is_complex : bool
        Whether its numbers are complex: `dim` is twice their number.
    cat : int
        0: a vector for each i; 1: for each j; 2: a parameter.
    kinds : mapping of bool to class, optional
        The classes of LazyTensors that hold it, of real and of complex numbers, where it is for another library.
    """

    array: Any = None
    shape: tuple[int, ...] = ()
    rows: Any = None
    is_complex: bool = False
    cat: int = 2
    kinds: Mapping[bool, type[Any]] | None = None

    @property
    def batch(self) -> tuple[int, ...]:
        """The dimensions in front of those of rows."""
        return () if self.rows is None else tuple(self.rows.shape[: self.rows.ndim - (1 if self.cat == 2 else 2)])


class Read(NamedTuple):
    """A formula, what its variables hold, and whether its numbers are complex."""

    node: Node
    held: Mapping[Node, Held]
    is_complex: bool


def read(x: Any, axis: int | None, is_complex: bool = False, cat: int | None = None) -> Read:
    """What a LazyTensor is made of, as a formula.

    Parameters
    ----------
    x, axis
        As of `LazyTensor`.
    is_complex : bool
        Whether real numbers are taken for complex ones.
    cat : {0, 1}, optional
        What an array is whose shape allows several: (1, 1, D) may be one vector for each i.

    Raises
    ------
    InputError, DimensionError, DtypeError
        Another shape or type, or something that is no array.
    """
    if axis is not None and (isinstance(axis, bool) or axis not in (0, 1)):
        raise InputError(f"axis={axis!r}: it is 0, a row for each i, or 1, a row for each j")
    if isinstance(x, tuple):
        node = symbolic(x, is_complex)
        return Read(node, {node: Held(is_complex=is_complex)}, is_complex)
    if _is_number(x):
        return _promoted(_number(x), is_complex)
    if isinstance(x, list):
        return _promoted(_list(x), is_complex)
    return _promoted(_array(x, axis, cat), is_complex)


def _promoted(found: Read, is_complex: bool) -> Read:
    """Real numbers as complex ones, where those are asked for."""
    if found.is_complex or not is_complex:
        return found
    return Read(expand("Real2Complex", (found.node,)), found.held, True)


def _is_number(x: Any) -> bool:
    return isinstance(x, bool | int | float | complex | np.number) or (isinstance(x, np.ndarray) and x.ndim == 0)


def _number(x: Any) -> Read:
    if isinstance(x, complex | np.complexfloating) or (isinstance(x, np.ndarray) and x.dtype.kind == "c"):
        value = complex(x)
        return Read(expand("ComplexPair", (constant(value.real), constant(value.imag))), {}, True)
    return Read(constant(x), {}, False)


def _list(x: list[Any]) -> Read:
    if not x or not all(_is_number(value) for value in x):
        raise InputError("a list is a parameter of numbers: pass rows as an array")
    each = [_number(value) for value in x]
    of_complex = any(value.is_complex for value in each)
    first, *others = [_promoted(value, of_complex).node for value in each]
    for other in others:
        first = expand("Concat", (first, other))
    return Read(first, {}, of_complex)


def _array(x: Any, axis: int | None, wanted: int | None) -> Read:
    """A variable that holds an array of any library."""
    array = native(x, "an array")
    if kind_of(array) is None:
        raise InputError(
            f"a LazyTensor is made of an array of NumPy, dask or CuPy, of numbers, or of (ind, dim, cat); got {what(x)}"
        )
    shape = tuple(array.shape)
    if axis is None and wanted in (0, 1) and len(shape) > 2 and shape[(-2, -3)[wanted]] == 1:
        cat = int(wanted)
    else:
        cat = _category(shape, axis)
    if (of_complex := pairs.is_complex(array)) and array.shape[-1]:
        array = pairs.as_real(array, "an array")
    dim = array.shape[-1]
    if not 1 <= dim <= MAX_DIM:
        limit = MAX_DIM // 2 if of_complex else MAX_DIM
        raise DimensionError(f"vectors of {shape[-1]} components: they have 1 to {limit}")
    rows = array
    if array.ndim > 2:  # without the dimensions of 1 that say what it is
        every = slice(None)
        rows = array[(*[every] * (array.ndim - 3), *((every, 0), (0, every), (0, 0))[cat], every)]
    node = var(next(_numbers), int(dim), cat)
    return Read(node, {node: Held(x, shape, rows, of_complex, cat)}, of_complex)


def renamed(held: Mapping[Node, Held]) -> dict[Node, Node]:
    """Other variables for those that hold arrays: of a formula that comes from another process."""
    return {n: var(next(_numbers), n.dim, n.attrs[1]) for n, each in held.items() if each.array is not None}


def _category(shape: tuple[int, ...], axis: int | None) -> int:
    """What an array is: 0, a vector for each i; 1, for each j; 2, a parameter."""
    if axis is not None and len(shape) != 2:
        raise InputError(f"axis={axis} is for arrays (M, D) or (N, D), got shape {shape}")
    if len(shape) == 2:
        if axis is None:
            raise InputError(
                f"an array of shape {shape} may be vectors for each i or for each j: say axis=0 or axis=1, use Vi or "
                "Vj, or pass (M, 1, D) or (1, N, D)"
            )
        return axis
    if len(shape) == 1 or shape[-3:-1] == (1, 1):
        return 2
    if 1 not in shape[-3:-1]:
        raise InputError(
            f"an array of shape {shape} varies with i and with j: pass (..., M, 1, D) or (..., 1, N, D), with the "
            "dimensions of a batch in front"
        )
    return int(shape[-3] == 1)


def symbolic(x: tuple[Any, ...], is_complex: bool = False) -> Node:
    """A variable without an array, of (ind, dim, cat)."""
    whole = all(isinstance(value, int | np.integer) and not isinstance(value, bool) for value in x)
    if len(x) != 3 or not whole or not 0 <= x[0] < COMPLEX or not 1 <= x[1] <= MAX_DIM or x[2] not in (0, 1, 2):
        raise InputError(
            f"{x!r} is no (ind, dim, cat): the position of an argument, its components, and 0 (i), 1 (j) or 2 "
            "(parameter)"
        )
    ind, dim, cat = map(int, x)
    return var(COMPLEX + ind, 2 * dim, cat) if is_complex else var(ind, dim, cat)


def constant(value: Any) -> Node:
    """A number, exactly."""
    plain = float(value) if isinstance(value, float | np.floating | np.ndarray) else int(value)
    if isinstance(plain, float) and (not math.isfinite(plain) or (plain == 0 and math.copysign(1, plain) < 0)):
        return const(plain)
    return number(Fraction(plain))


def what(x: Any) -> str:
    """Type and shape of something, for errors."""
    name, shape = f"{type(x).__module__}.{type(x).__qualname__}", getattr(x, "shape", None)
    return name if shape is None else f"{name} of shape {tuple(shape)}"
