"""What a LazyTensor is made of: arrays, numbers and symbolic variables, as nodes of formulas."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from dred.errors import DimensionError, InputError
from dred.formula.construct import number
from dred.formula.node import Node, const, var
from dred.formula.op import MAX_DIM
from dred.formula.rewrite import expand
from dred.inputs import kind_of, native

FIRST = 1 << 20  # positions of variables that hold arrays; those of symbolic ones are lower
_numbers = itertools.count(FIRST)


def read(x: Any, axis: int | None) -> tuple[Node, Mapping[Node, Any]]:
    """The node of what a LazyTensor is made of; if it is a variable, with the array of rows that it holds, or None.

    Raises
    ------
    InputError, DimensionError
        Another shape, or something that is no array.
    """
    if axis is not None and (isinstance(axis, bool) or axis not in (0, 1)):
        raise InputError(f"axis={axis!r}: it is 0, a row for each i, or 1, a row for each j")
    if isinstance(x, tuple):
        node = symbolic(x)
        return node, {node: None}
    if isinstance(x, bool | int | float | np.number) or (isinstance(x, np.ndarray) and x.ndim == 0):
        return constant(x), {}
    if isinstance(x, list):
        if not x or not all(isinstance(value, int | float | np.number) for value in x):
            raise InputError("a list is a parameter of numbers: pass rows as an array")
        node = constant(x[0])
        for value in x[1:]:
            node = expand("Concat", (node, constant(value)))
        return node, {}
    array = native(x, "an array")
    if kind_of(array) is None:
        raise InputError(
            f"a LazyTensor is made of an array of NumPy, dask or CuPy, of numbers, or of (ind, dim, cat); got {what(x)}"
        )
    cat = _category(tuple(array.shape), axis)
    dim = array.shape[-1]
    if not 1 <= dim <= MAX_DIM:
        raise DimensionError(f"vectors of {dim} components: they have 1 to {MAX_DIM}")
    if array.ndim == 3:
        array = array.reshape((dim,) if cat == 2 else (array.shape[cat], dim))
    node = var(next(_numbers), int(dim), cat)
    return node, {node: array}


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
    if len(shape) > 3:
        raise InputError(f"an array of shape {shape}: batch dimensions are not supported, pass (M, 1, D) or (1, N, D)")
    if len(shape) == 1 or shape[:2] == (1, 1):
        return 2
    if 1 not in shape[:2]:
        raise InputError(f"an array of shape {shape} varies with i and with j: pass (M, 1, D) or (1, N, D)")
    return int(shape[0] == 1)


def symbolic(x: tuple[Any, ...]) -> Node:
    """A variable without an array, of (ind, dim, cat)."""
    whole = all(isinstance(value, int | np.integer) and not isinstance(value, bool) for value in x)
    if len(x) != 3 or not whole or not 0 <= x[0] < FIRST or not 1 <= x[1] <= MAX_DIM or x[2] not in (0, 1, 2):
        raise InputError(
            f"{x!r} is no (ind, dim, cat): the position of an argument, its components, and 0 (i), 1 (j) or 2 "
            "(parameter)"
        )
    return var(*map(int, x))


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


def written(key: Any) -> str:
    """An index as it was written."""
    if isinstance(key, tuple):
        return ", ".join(map(written, key))
    if isinstance(key, slice):
        start, stop, step = ("" if each is None else str(each) for each in (key.start, key.stop, key.step))
        return f"{start}:{stop}" + (f":{step}" if step else "")
    return "..." if key is Ellipsis else repr(key)
