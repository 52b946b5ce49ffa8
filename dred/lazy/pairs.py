"""Complex arrays as real ones of twice the components, and back: the same memory where it can be."""

from __future__ import annotations

from typing import Any

import numpy as np

from dred.errors import DtypeError
from dred.inputs import kind_of

REAL = {"complex64": "float32", "complex128": "float64"}
COMPLEX = {real: name for name, real in REAL.items()}


def is_complex(array: Any) -> bool:
    """Whether the numbers of an array are complex."""
    return getattr(getattr(array, "dtype", None), "kind", "") == "c"


def as_real(array: Any, label: str) -> Any:
    """Complex numbers as pairs of real ones: (..., D) as (..., 2 D).

    Raises
    ------
    DtypeError
        Numbers of another type, or none of complex64 and complex128.
    """
    if str(array.dtype) not in REAL:
        raise DtypeError(f"{label} has type {array.dtype}: it is complex64 or complex128, convert it with .astype")
    return _viewed(array, REAL[str(array.dtype)])


def as_complex(array: Any) -> Any:
    """Pairs of float32 or float64 as complex numbers: (..., 2 D) as (..., D)."""
    return _viewed(array, complex_type(array.dtype))


def complex_type(dtype: Any) -> str:
    """The complex type whose parts are of a type.

    Raises
    ------
    DtypeError
        There is none.
    """
    name = str(dtype).rpartition(".")[2]  # torch.float64
    if name not in COMPLEX:
        raise DtypeError(f"complex numbers are made of float32 or float64, got arrays of {dtype}: convert them")
    return COMPLEX[name]


def _viewed(array: Any, dtype: str) -> Any:
    """The same memory as another type, where the last axis is contiguous; of a copy, where it is not."""
    if kind_of(array) == "dask":
        size = array.dtype.itemsize
        last = tuple(n * size // np.dtype(dtype).itemsize for n in array.chunks[-1])
        return array.map_blocks(_viewed, dtype, dtype=dtype, chunks=(*array.chunks[:-1], last))
    return (array if array.flags.c_contiguous else array.copy()).view(dtype)
