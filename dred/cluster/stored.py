"""What a task must know of a stored array: where it lies, what it was when it was opened, its shape and type.

A `Source` takes a few hundred bytes, which travel in a task instead of the array.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dred.errors import DtypeError, InputError

DTYPES = ("float16", "float32", "float64")
KNOWN = f"tasks read {', '.join(DTYPES[:-1])} and {DTYPES[-1]}"

Array = NDArray[Any]


@dataclass(frozen=True)
class Source:
    """An array on storage, as it was when it was opened. Equal sources hold the same numbers.

    Attributes
    ----------
    format : str
        Key of `dred.cluster.sources.FORMATS`.
    path : str
        Absolute, or a URL.
    shape : tuple of int
        (rows,) or (rows, columns).
    dtype : str
        One of `DTYPES`, in this machine's order of bytes: of the rows as they are read, whatever is stored.
    stamp : tuple
        Fingerprint of what is stored: sizes and times of files, checksums of objects.
    details : tuple
        What else its format needs to find a row.
    unit : int
        Rows that are stored as one piece, so that reading in multiples of it wastes nothing.
    """

    format: str
    path: str
    shape: tuple[int, ...]
    dtype: str
    stamp: tuple[Any, ...]
    details: tuple[Any, ...] = ()
    unit: int = 1

    @property
    def rows(self) -> int:
        return self.shape[0]

    @property
    def row_bytes(self) -> int:
        """Bytes of a row as it is read."""
        return math.prod(self.shape[1:]) * np.dtype(self.dtype).itemsize

    @property
    def nbytes(self) -> int:
        return self.rows * self.row_bytes

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return ("dred-source", self.format, self.path, self.shape, self.dtype, self.stamp, self.details)

    def __str__(self) -> str:
        return f"{self.path} ({self.dtype} {self.shape})"


def wanted(dtype: Any) -> str | None:
    """The name of the type that rows are to be read in; None: that in which they are stored. DtypeError: no such."""
    if dtype is None:
        return None
    try:
        name = str(np.dtype(dtype).newbyteorder("=").name)
    except TypeError:
        name = ""
    if name not in DTYPES:
        raise DtypeError(f"dtype={dtype!r}: {KNOWN}")
    return name


def fits(path: str, shape: Iterable[Any], stored: np.dtype[Any], dtype: str | None) -> tuple[tuple[int, ...], str]:
    """Shape and type of an array that tasks can read, as they are to read it."""
    sizes = tuple(map(int, shape))
    name = type_of(path, stored, dtype)
    if len(sizes) not in (1, 2):
        raise InputError(f"{path} has shape {sizes}: store it with 1 or 2 dimensions, (rows,) or (rows, columns)")
    return sizes, name


def type_of(path: str, stored: np.dtype[Any], dtype: str | None) -> str:
    """The type in which tasks are to read numbers that are stored in another one."""
    name = stored.newbyteorder("=").name
    if name not in DTYPES and stored.kind not in "biuf":
        raise DtypeError(f"{path} holds {stored}: {KNOWN}, store it as one of them")
    if name not in DTYPES and dtype is None:
        raise DtypeError(f"{path} holds {stored}: {KNOWN}, store it as one of them, or say dtype='float64'")
    return dtype or name


def converted(source: Source, rows: Array, start: int) -> Array:
    """Stored rows, from `start` on, in the source's type.

    Raises
    ------
    InputError
        A finite number that is none in that type.
    """
    try:
        with np.errstate(over="raise"):
            return rows.astype(source.dtype, copy=False)
    except FloatingPointError:
        pass
    with np.errstate(over="ignore"):
        lost = np.isinf(rows.astype(source.dtype)) & np.isfinite(rows)
    place = tuple(int(k) for k in np.argwhere(lost)[0])
    raise InputError(
        f"{source.path} holds {rows[place]} in row {start + place[0]}, which is beyond {source.dtype}: read it as a "
        "wider type by dtype=..."
    )


def no_columns(path: str, columns: Sequence[str] | None) -> None:
    if columns is not None:
        raise InputError(f"columns={list(columns)!r} is for parquet and csv, {path} is one array: leave it out")
