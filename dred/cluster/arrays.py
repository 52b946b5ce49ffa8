"""Lazy dask arrays whose blocks tasks read from storage by path: `dred.from_file` and `dred.from_array`."""

# mypy: allow-untyped-calls
# (dask is typed in part)

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import dask.array as da
import dask.config
import numpy as np
from dask.array.core import normalize_chunks
from dask.base import tokenize
from dask.task_spec import Task
from dask.utils import parse_bytes

from dred.cluster import sources
from dred.cluster.collection import as_dask_array, first_task
from dred.cluster.stored import Source
from dred.errors import InputError


def from_file(path: str | os.PathLike[str], columns: Sequence[str] | None = None, chunks: Any = "auto") -> da.Array:
    """A stored array as a lazy dask array, whose blocks are read by path where they are needed.

    Nothing but shape, type and time of change is read here. In a reduction of dred no block need ever be held whole,
    nor travel: tasks read rows themselves.

    Parameters
    ----------
    path : str or path
        A file of `numpy.save`; a zarr array, also by URL; a parquet file, or a directory of parquet files in the order
        of their names. Of float16, float32 or float64, with 1 or 2 dimensions. The workers read it by the same path.
    columns : sequence of str, optional
        Of parquet: which, in which order; by default all columns of numbers.
    chunks : optional
        "auto": blocks of dask's `array.chunk-size`, cut where the file is; a size such as "64 MiB"; an int: rows per
        block; a tuple of int: the rows of each block; or what dask takes for both dimensions. Columns are not cut.

    Returns
    -------
    dask.array.Array
        (rows, columns), or (rows,) where the stored array has one dimension.

    Raises
    ------
    InputError
        Nothing there, an unknown format, a truncated file, or wrong chunks. When blocks are computed: what is stored
        vanished, changed since, or cannot be read.
    DtypeError
        Other types of numbers, or columns of several.
    MissingPackageError
        zarr or pyarrow is needed and not installed.

    Examples
    --------
    >>> import tempfile, pathlib, numpy as np, dred
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "x.npy"
    >>> np.save(path, np.arange(12.0).reshape(4, 3))
    >>> x = dred.from_file(path, chunks=2)
    >>> x
    dask.array<dred-read, shape=(4, 3), dtype=float64, chunksize=(2, 3), chunktype=numpy.ndarray>
    >>> x.sum(axis=0).compute()
    array([18., 22., 26.])
    """
    return lazy(sources.open_source(path, columns), chunks)


def lazy(source: Source, chunks: Any = "auto") -> da.Array:
    """An opened source as a dask array. InputError: wrong chunks."""
    rows = _row_chunks(source, chunks)
    name = _name(source, rows)
    starts = [0, *accumulate(rows)]
    tail = (0,) * (len(source.shape) - 1)
    tasks = {
        key: Task(key, sources.read, source, starts[i], starts[i + 1])
        for i, key in enumerate((name, i, *tail) for i in range(len(rows)))
    }
    meta = np.empty((0,) * len(source.shape), source.dtype)
    return as_dask_array(name, {name: (tasks, set())}, [], (rows, *((size,) for size in source.shape[1:])), meta)


def source_of(array: da.Array) -> Source | None:
    """The source whose rows, from the first to the last, are the blocks of an array that `lazy` made; else None.

    It is read off the first task. The name in its key is a digest of source and chunks, which no other array has.
    """
    task = first_task(array)
    if task is None or task.func is not sources.read:
        return None
    source: Source = task.args[0]
    return source if task.key[0] == _name(source, array.chunks[0]) else None


def _name(source: Source, rows: tuple[int, ...]) -> str:
    return f"dred-read-{tokenize(source, tuple(map(int, rows)))}"


def _row_chunks(source: Source, chunks: Any) -> tuple[int, ...]:
    """The rows of each block, of what a caller may say about chunks."""
    wanted = chunks
    if isinstance(wanted, Sequence) and not isinstance(wanted, str):
        if len(wanted) == len(source.shape) and (
            len(wanted) == 1 or not _is_int(wanted[1]) or int(wanted[1]) in (-1, source.shape[1])
        ):
            wanted, columns = wanted[0], wanted[1:]
        else:
            columns = ()
    else:
        columns = ()
    try:
        if isinstance(wanted, str):
            limit = dask.config.get("array.chunk-size", default="128 MiB") if wanted == "auto" else wanted
            pieces = int(parse_bytes(limit)) // max(1, source.row_bytes * source.unit)
            wanted = max(1, pieces) * source.unit
        normal = normalize_chunks((wanted, *(columns or source.shape[1:])), source.shape, dtype=np.dtype(source.dtype))
    except (TypeError, ValueError) as error:
        raise InputError(f"chunks={chunks!r} for {source}: {error}") from error
    if any(len(sizes) > 1 for sizes in normal[1:]):
        raise InputError(f"chunks={chunks!r} for {source}: columns are in one chunk, give the rows alone")
    return tuple(map(int, normal[0]))


def _is_int(value: Any) -> bool:
    return isinstance(value, (int, np.integer))
