"""Arrays of the caller's that results are put into: they fit, or nothing is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dred.errors import InputError
from dred.inputs import kind_of


def targets(
    out: Any, expected: Sequence[tuple[tuple[int, ...], Any]], several: bool, plain: str = ""
) -> tuple[Any, ...]:
    """The arrays of `out`.

    Parameters
    ----------
    out : array or tuple of arrays
    expected : sequence of (shape, dtype)
    several : bool
        Whether a tuple is due even if there is one.
    plain : str
        Of what kind the inputs are, where these and the targets must be NumPy's, C-contiguous; else they are anything
        to whose rows can be assigned.

    Raises
    ------
    InputError
        Another number, kind, shape or type; read-only; several in the same memory.
    """
    alone = not expected[1:] and not several
    given = (out,) if alone else tuple(out) if isinstance(out, tuple | list) else ()
    if len(given) != len(expected):
        raise InputError(f"out must be a flat tuple of {len(expected)} arrays, as many as the result has")
    for n, (array, (shape, kind)) in enumerate(zip(given, expected, strict=True)):
        label = "out" if alone else f"out[{n}]"
        if plain and (plain != "numpy" or not isinstance(array, np.ndarray)):
            raise InputError(f"{label} must be a NumPy array, and so must be all inputs")
        if kind_of(array) == "dask" or not all(hasattr(array, name) for name in ("shape", "dtype", "__setitem__")):
            raise InputError(f"{label} is no array to whose rows can be assigned, but {type(array).__name__}")
        if tuple(array.shape) != shape or array.dtype != kind:
            raise InputError(f"{label} has shape {array.shape} and type {array.dtype}: expected {shape} and {kind}")
        if plain and (not array.flags.c_contiguous or not array.flags.writeable):
            raise InputError(f"{label} must be C-contiguous and writeable")
        if isinstance(array, np.ndarray) and not array.flags.writeable:
            raise InputError(f"{label} must be writeable")
    memory = [array for array in given if isinstance(array, np.ndarray)]
    if any(np.may_share_memory(a, b) for n, a in enumerate(memory) for b in memory[:n]) or (
        len({id(array) for array in given}) < len(given)
    ):
        raise InputError("the arrays of out share memory: give each one its own")
    return given
