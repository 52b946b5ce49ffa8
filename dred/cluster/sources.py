"""Stored arrays that tasks read by path: which formats there are, what is stored, and a run of its rows.

Loads neither dask nor the package of a format before a path of that format is opened.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dred.cluster import stored_npy, stored_parquet, stored_zarr
from dred.cluster.stored import Array, Source, is_url, missing
from dred.errors import DredError, InputError

__all__ = ["FORMATS", "Format", "Source", "open_source", "read"]


@dataclass(frozen=True)
class Format:
    """One way of storing arrays.

    Attributes
    ----------
    looks : str
        How its paths look, for errors.
    recognises : callable
        path -> bool.
    open : callable
        (path, columns or None) -> Source.
    read : callable
        (source, start, stop) -> C-contiguous rows of the source's type, of memory that nobody else holds.
    check : callable
        (source, start, stop): raises InputError where those rows are no more what they were.
    """

    looks: str
    recognises: Callable[[str], bool]
    open: Callable[[str, Sequence[str] | None], Source]
    read: Callable[[Source, int, int], Array]
    check: Callable[[Source, int, int], None]


FORMATS = {
    "npy": Format(
        "a file that numpy.save wrote", stored_npy.recognises, stored_npy.open_source, stored_npy.read, stored_npy.check
    ),
    "parquet": Format(
        "a file ending in .parquet, or a directory of them",
        stored_parquet.recognises,
        stored_parquet.open_source,
        stored_parquet.read,
        stored_parquet.check,
    ),
    "zarr": Format(
        "a directory that zarr wrote, or a URL of one",
        stored_zarr.recognises,
        stored_zarr.open_source,
        stored_zarr.read,
        stored_zarr.check,
    ),
}


def open_source(path: str | os.PathLike[str], columns: Sequence[str] | None = None) -> Source:
    """The array under a path; its metadata are read, none of its rows.

    Parameters
    ----------
    path : str or path
        An npy file; a zarr array, also by URL; a parquet file or a directory of some.
    columns : sequence of str, optional
        Of parquet: these, in this order; by default all columns of numbers, which must be of one type.

    Raises
    ------
    InputError
        Nothing there, an unknown format, a truncated file, or not 1 or 2 dimensions.
    DtypeError
        Numbers that are neither float16, float32 nor float64.
    MissingPackageError
        The format's package is not installed.

    Examples
    --------
    >>> import tempfile, pathlib, numpy as np
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "x.npy"
    >>> np.save(path, np.arange(12.0).reshape(4, 3))
    >>> source = open_source(path)
    >>> source.shape, source.dtype, source.row_bytes
    ((4, 3), 'float64', 24)
    >>> read(source, 1, 3)
    array([[3., 4., 5.],
           [6., 7., 8.]])
    """
    name = os.fspath(path).removeprefix("file://")
    if not is_url(name):
        name = os.path.abspath(os.path.expanduser(name))
        if not os.path.exists(name):
            raise InputError(missing(name))
    for kind in FORMATS.values():
        if kind.recognises(name):
            break
    else:
        looks = "; ".join(f"{key}: {kind.looks}" for key, kind in FORMATS.items())
        raise InputError(f"{name} is of no format that tasks read ({looks}): store it as one of them")
    try:
        return kind.open(name, (columns,) if isinstance(columns, str) else columns)
    except (DredError, MemoryError):
        raise
    except Exception as error:
        raise InputError(f"{name} cannot be opened: {type(error).__name__}: {error}") from error


def read(source: Source, start: int, stop: int) -> Array:
    """Rows start, ..., stop - 1 of a stored array.

    Returns
    -------
    numpy.ndarray
        (stop - start,) or (stop - start, columns), of the source's dtype, C-contiguous, the caller's own.

    Raises
    ------
    InputError
        The rows are not within the array; what is stored vanished, changed since it was opened, or cannot be read.
    """
    if not 0 <= start <= stop <= source.rows:
        raise InputError(f"rows {start}:{stop} of {source}: it has rows 0:{source.rows}")
    kind = FORMATS[source.format]
    try:
        rows = kind.read(source, start, stop)
    except (DredError, MemoryError):
        raise
    except Exception as error:
        kind.check(source, start, stop)  # says so if that is why
        raise InputError(
            f"rows {start}:{stop} of {source} cannot be read on {platform.node()}: {type(error).__name__}: {error}"
        ) from error
    kind.check(source, start, stop)  # afterwards: what changed while it was read is noticed too
    return rows
