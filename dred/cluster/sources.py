"""Stored arrays that tasks read by path: which formats there are, what is stored, and a run of its rows.

Loads neither dask nor the package of a format, or of a file system, before a path of it is opened.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from dred.cluster import files, stored_csv, stored_hdf5, stored_npy, stored_parquet, stored_zarr
from dred.cluster.stored import Array, Source, wanted
from dred.errors import DredError, InputError

Result = TypeVar("Result")

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
        (path, columns or None, name of a type or None) -> Source.
    read : callable
        (source, start, stop) -> C-contiguous rows of the source's type, of memory that nobody else holds.
    check : callable
        (source, start, stop): raises InputError where those rows are no more what they were.
    """

    looks: str
    recognises: Callable[[str], bool]
    open: Callable[[str, Sequence[str] | None, str | None], Source]
    read: Callable[[Source, int, int], Array]
    check: Callable[[Source, int, int], None]


FORMATS = {
    "npy": Format(
        "a file that numpy.save wrote", stored_npy.recognises, stored_npy.open_source, stored_npy.read, stored_npy.check
    ),
    "csv": Format(
        "a file ending in .csv or .tsv",
        stored_csv.recognises,
        stored_csv.open_source,
        stored_csv.read,
        stored_csv.check,
    ),
    "hdf5": Format(
        "a dataset in an HDF5 file, such as points.h5/x",
        stored_hdf5.recognises,
        stored_hdf5.open_source,
        stored_hdf5.read,
        stored_hdf5.check,
    ),
    "parquet": Format(
        "a file ending in .parquet, or a directory of them",
        stored_parquet.recognises,
        stored_parquet.open_source,
        stored_parquet.read,
        stored_parquet.check,
    ),
    "zarr": Format(
        "a directory that zarr wrote",
        stored_zarr.recognises,
        stored_zarr.open_source,
        stored_zarr.read,
        stored_zarr.check,
    ),
}


def open_source(path: str | os.PathLike[str], columns: Sequence[str] | None = None, dtype: Any = None) -> Source:
    """The array under a path or URL; its metadata are read, none of its rows. (Of csv, where rows begin is looked for.)

    Parameters
    ----------
    path : str or path
        Of one of `FORMATS`; or a URL of one, for which fsspec has the file system.
    columns : sequence of str, optional
        Of parquet and csv: these, in this order; by default all columns of numbers, which must be of one type.
    dtype : optional
        float16, float32 or float64: what is stored in another type (integers and booleans too) is converted when it is
        read. By default nothing is converted.

    Raises
    ------
    InputError
        Nothing there, an unknown format, a truncated file, or not 1 or 2 dimensions; a URL that carries a password.
    DtypeError
        Numbers that are neither float16, float32 nor float64, and no `dtype`.
    MissingPackageError
        The package of the format, or of the URL's file system, is not installed.

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
    names = (columns,) if isinstance(columns, str) else columns
    kind = wanted(dtype)
    if files.is_url(name):
        files.plain(name)
    else:
        name = os.path.abspath(os.path.expanduser(name))
        if not os.path.exists(name) and not stored_hdf5.recognises(name):
            raise InputError(files.missing(name))
    source, wrong = _tried(f"{name} cannot be opened", _opened, name, names, kind)
    if wrong is not None:
        raise wrong
    if source is not None:
        return source
    looks = "; ".join(f"{key}: {known.looks}" for key, known in FORMATS.items())
    raise InputError(f"{name} is of no format that tasks read ({looks}): store it as one of them")


def _opened(name: str, columns: Sequence[str] | None, dtype: str | None) -> Source | None:
    return next((known.open(name, columns, dtype) for known in FORMATS.values() if known.recognises(name)), None)


def _tried(what: str, call: Callable[..., Result], *args: Any) -> tuple[Result | None, DredError | None]:
    """What a call returns, or what is to be raised.

    Not raised here: what another library raised may hold what cannot be pickled, such as a connection, and an error
    that has it as its cause or context could not travel from a worker.
    """
    try:
        return call(*args), None
    except DredError as error:
        return None, error
    except MemoryError:
        raise
    except Exception as error:
        return None, InputError(f"{what}: {type(error).__name__}: {error}")


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
    known = FORMATS[source.format]
    what = f"rows {start}:{stop} of {source} cannot be read on {platform.node()}"
    rows, wrong = _tried(what, known.read, source, start, stop)
    # Afterwards: what changed while it was read is noticed too, and said if that is why it cannot be read.
    _, changed = _tried(what, known.check, source, start, stop)
    error = changed or wrong
    if error is not None:
        raise error
    assert rows is not None
    return rows
