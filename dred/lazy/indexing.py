"""Which components an index means, and other integers that a method takes."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from dred.errors import ArgumentError, IndexRangeError
from dred.formula.construct import number

ONLY = "only components are taken, as in x[:, :, 2] and x[..., 1:4]"


def chosen(key: Any, D: int, front: int = 2) -> range:
    """The components that an index takes of D; as KeOps has it, x[2] and x[1:4] are indices of components.

    `front` is how many dimensions there are before them.

    Raises
    ------
    IndexRangeError
        It is one of i or j, or means no component.
    """
    words = key if isinstance(key, tuple) else (..., key)
    if any(word is Ellipsis for word in words):
        words = tuple(word for word in words if word is not Ellipsis)
        words = (slice(None),) * (front + 1 - len(words)) + words
    rows = [word for word in words[:front] if not (isinstance(word, slice) and word == slice(None))]
    if len(words) != front + 1 or rows:
        raise IndexRangeError(f"x[{written(key)}]: {ONLY}")
    last = words[front]
    if isinstance(last, slice):
        found = range(D)[last]
        if not found:
            raise IndexRangeError(f"x[{written(key)}] has no components: x has {D}")
        return found
    if not _whole(last):
        raise IndexRangeError(f"x[{written(key)}]: components are taken by integers and slices")
    if not -D <= last < D:
        raise IndexRangeError(f"x[{written(key)}]: x has {D} components")
    return range(int(last) % D, int(last) % D + 1)


def component(i: Any, D: int) -> int:
    """One of D components.

    Raises
    ------
    IndexRangeError
    """
    if not _whole(i) or not 0 <= i < D:
        raise IndexRangeError(f"elem({i!r}): x has the components 0 ... {D - 1}")
    return int(i)


def block(i: Any, d: Any, D: int) -> tuple[int, int]:
    """The first of d components from i on, and the one behind them.

    Raises
    ------
    IndexRangeError
    """
    if not _whole(i) or not _whole(d) or i < 0 or d < 1 or i + d > D:
        raise IndexRangeError(f"extract({i!r}, {d!r}): x has the components 0 ... {D - 1}")
    return int(i), int(i + d)


def static(is_list: bool, value: Any) -> Any:
    """A static argument as formulas have it: a tuple where a list is due, else a constant.

    Raises
    ------
    ArgumentError
        It is no integer, or no list of them.
    """
    try:
        if is_list:
            return tuple(map(_integer, value))
        return number(Fraction(_integer(value)))
    except TypeError:
        due = "a list of integers" if is_list else "an integer"
        raise ArgumentError(f"{value!r} is given where {due} is due") from None


def _integer(value: Any) -> int:
    if not _whole(value):
        raise TypeError(value)
    return int(value)


def _whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def written(key: Any) -> str:
    """An index as it was written."""
    if isinstance(key, tuple):
        return ", ".join(map(written, key))
    if isinstance(key, slice):
        start, stop, step = ("" if each is None else str(each) for each in (key.start, key.stop, key.step))
        return f"{start}:{stop}" + (f":{step}" if step else "")
    return "..." if key is Ellipsis else repr(key)
