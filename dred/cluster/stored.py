"""What a task must know of a stored array: where it lies, what it was when it was opened, its shape and type.

A `Source` takes a few hundred bytes, which travel in a task instead of the array.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dred.errors import DtypeError, InputError, MissingPackageError

DTYPES = ("float16", "float32", "float64")
KNOWN = f"tasks read {', '.join(DTYPES[:-1])} and {DTYPES[-1]}"

Array = NDArray[Any]
Stamp = tuple[int, int]  # bytes of a file, and the time of its last change in nanoseconds


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
        One of `DTYPES`, in this machine's order of bytes whatever is stored.
    stamp : tuple
        Fingerprint of what is stored: sizes and times of files.
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


def stamp_of(path: str) -> Stamp | None:
    """The fingerprint of a file as this process sees it; None: it sees none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def is_url(path: str) -> bool:
    return "://" in path


def missing(path: str) -> str:
    return (
        f"{path} is not there, or may not be read, on {platform.node()}: tasks read it by this path, so that every "
        "process that computes must see it"
    )


def unchanged(path: str, then: Stamp) -> None:
    now = stamp_of(path)
    if now is None:
        raise InputError(missing(path))
    if now != then:
        was, is_now = (
            f"{size} bytes of {datetime.fromtimestamp(time / 1e9, UTC):%Y-%m-%d %H:%M:%S.%f} UTC"
            for size, time in (then, now)
        )
        raise InputError(
            f"{path} changed since it was opened: it had {was}, and has {is_now}. "
            "Open it again to compute with what it holds now"
        )


def stamped(path: str) -> Stamp:
    stamp = stamp_of(path)
    if stamp is None:
        raise InputError(missing(path))
    return stamp


def fits(path: str, shape: Iterable[Any], dtype: np.dtype[Any]) -> tuple[tuple[int, ...], str]:
    """Shape and dtype of an array that tasks can read."""
    sizes = tuple(map(int, shape))
    if dtype.newbyteorder("=").name not in DTYPES:
        raise DtypeError(f"{path} holds {dtype}: {KNOWN}, store it as one of them")
    if len(sizes) not in (1, 2):
        raise InputError(f"{path} has shape {sizes}: store it with 1 or 2 dimensions, (rows,) or (rows, columns)")
    return sizes, dtype.newbyteorder("=").name


def no_columns(path: str, columns: Sequence[str] | None) -> None:
    if columns is not None:
        raise InputError(f"columns={list(columns)!r} is for parquet, {path} is one array: leave it out")


def package(name: str, extra: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise MissingPackageError(
            f"reading {extra} needs the package {package}, which cannot be imported ({error}): pip install {package}, "
            f"or in dred's folder pip install '.[{extra}]'; on Dask, in the environment of the workers too"
        ) from error
