"""Lazy dask arrays whose blocks tasks read from storage by path: `dred.from_file` and `dred.from_array`."""

# mypy: allow-untyped-calls
# (dask is typed in part)

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import dask.array as da
import dask.config
import numpy as np
from dask.array.core import normalize_chunks
from dask.base import tokenize
from dask.task_spec import Task
from dask.utils import parse_bytes

from dred.cluster import config, sources, spool
from dred.cluster.backend import ambient_client
from dred.cluster.collection import as_dask_array, first_task
from dred.cluster.files import stamp_of
from dred.cluster.stored import DTYPES, Source
from dred.cluster.stored_npy import mapped
from dred.errors import DtypeError, InputError, human


def from_file(
    path: str | os.PathLike[str], columns: Sequence[str] | None = None, chunks: Any = "auto", dtype: Any = None
) -> da.Array:
    """A stored array as a lazy dask array, whose blocks are read by path where they are needed.

    Nothing but shape, type and time of change is read here; of csv, where rows begin is looked for. In a reduction of
    dred no block need ever be held whole, nor travel: tasks read rows themselves, and never unpickle anything.

    Parameters
    ----------
    path : str or path
        A file of `numpy.save`; a zarr array; a dataset of an HDF5 file, such as "points.h5/group/x"; a parquet file, or
        a directory of parquet files in the order of their names; a csv file (.csv, .tsv), with or without a line of
        names. Or a URL of one, such as "s3://bucket/x.npy". Of float16, float32 or float64, with 1 or 2 dimensions. The
        workers read it by the same path or URL, with credentials of their own environment.
    columns : sequence of str, optional
        Of parquet and csv: which, in which order; by default all columns of numbers (csv: all).
    chunks : optional
        "auto": blocks of dask's `array.chunk-size`, cut where the file is; a size such as "64 MiB"; an int: rows per
        block; a tuple of int: the rows of each block; or what dask takes for both dimensions. Columns are not cut.
    dtype : optional
        float16, float32 or float64: what is stored in another type (integers and booleans too) is converted when it is
        read. By default nothing is; csv is read as float64.

    Returns
    -------
    dask.array.Array
        (rows, columns), or (rows,) where the stored array has one dimension.

    Raises
    ------
    InputError
        Nothing there, an unknown format, a truncated file, or wrong chunks; a URL that carries a password. When blocks
        are computed: what is stored vanished, changed since, cannot be read, or is beyond `dtype`.
    DtypeError
        Other types of numbers, or columns of several, and no `dtype`.
    MissingPackageError
        zarr, pyarrow, h5py, or the package of a URL's file system, is needed and not installed.

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
    return lazy(sources.open_source(path, columns, dtype), chunks)


def lazy(source: Source, chunks: Any = "auto") -> da.Array:
    """An opened source as a dask array. InputError: wrong chunks."""
    rows = _row_chunks(source.shape, source.dtype, source.unit, source.path, chunks)
    name = _name(source, rows)
    starts = [0, *accumulate(rows)]
    tail = (0,) * (len(source.shape) - 1)
    tasks = {
        key: Task(key, sources.read, source, starts[i], starts[i + 1])
        for i, key in enumerate((name, i, *tail) for i in range(len(rows)))
    }
    meta = np.empty((0,) * len(source.shape), source.dtype)
    return as_dask_array(name, {name: tasks}, [], (rows, *((size,) for size in source.shape[1:])), meta)


def source_of(array: da.Array) -> Source | None:
    """The source whose rows, from the first to the last, are the blocks of an array that `lazy` made; else None.

    It is read off the first task. The name in its key is a digest of source and chunks, which no other array has.
    """
    task = first_task(array)
    if task is None or task.func is not sources.read:
        return None
    source: Source = task.args[0]
    return source if task.key[0] == _name(source, array.chunks[0]) else None


def from_array(array: Any, chunks: Any = "auto") -> da.Array:
    """A NumPy array, or memmap, as a lazy dask array, whose blocks tasks read by path: none travels in a graph.

    A memmap (of mode "r") of a file that all workers see, or a view of one whose rows lie one after another, is read
    where it is; if the file changes afterwards, its blocks fail. Any other array is written once to a file
    (`dred.spool-directory`) that goes when this process ends, so that it is as it was when this was called. Where the
    workers of the present client do not see that file, an array up to `dred.graph-bytes` travels in the graph.

    Parameters
    ----------
    array : numpy.ndarray
        (rows,) or (rows, columns), of float16, float32 or float64.
    chunks : optional
        As for `from_file`.

    Returns
    -------
    dask.array.Array
        Of the same shape.

    Raises
    ------
    InputError
        No NumPy array, not 1 or 2 dimensions, or wrong chunks; an array that fits on no disk; one that no file can
        bring to the workers and that is too large for a graph.
    DtypeError
        Another type of numbers.

    Examples
    --------
    >>> import numpy as np, dred
    >>> x = dred.from_array(np.arange(12.0).reshape(4, 3), chunks=2)
    >>> x
    dask.array<dred-read, shape=(4, 3), dtype=float64, chunksize=(2, 3), chunktype=numpy.ndarray>
    >>> x.sum(axis=0).compute()
    array([18., 22., 26.])
    """
    _check(array)
    rows = _row_chunks(array.shape, array.dtype, 1, "an array", chunks)
    client = _client()
    source = mapped(array)
    if source is not None and not _unseen(client, stamp_of, source.path, source.stamp):
        return lazy(source, (rows, *array.shape[1:]))
    base = config.spool_directory() or tempfile.gettempdir()
    why = _no_spool(client, base)
    if not why:
        return lazy(spool.keep(array, base), (rows, *array.shape[1:]))
    most = config.graph_bytes()
    if array.nbytes > most:
        raise InputError(
            f"an array of {human(array.nbytes)} cannot be spooled for the workers ({why}), and would travel inside the "
            f"task graph, which is limited to {human(most)} (dred.graph-bytes in dask's configuration): set "
            "dred.spool-directory to a directory that all workers see, or store the array there as npy or zarr and use "
            "dred.from_file"
        )
    plain = np.array(array, dtype=array.dtype.newbyteorder("="), order="C", subok=False)
    result: da.Array = da.from_array(plain, chunks=(rows, *array.shape[1:]))
    return result


def held(array: Any) -> da.Array:
    """A small NumPy array as a dask array of one block that travels in graphs, by a name that its numbers give it."""
    result: da.Array = da.from_array(array, chunks=-1)
    return result


def _check(array: Any) -> None:
    if not isinstance(array, np.ndarray) or isinstance(array, np.ma.MaskedArray):
        kind = f"{type(array).__module__}.{type(array).__qualname__}"
        raise InputError(
            f"from_array takes NumPy arrays, got {kind}: convert it with numpy.asarray, if it is no dask array"
        )
    if array.ndim not in (1, 2):
        raise InputError(f"from_array takes arrays (rows,) or (rows, columns), got shape {array.shape}: reshape it")
    if array.dtype.newbyteorder("=").name not in DTYPES:
        raise DtypeError(f"from_array takes {', '.join(DTYPES)}, got {array.dtype}: convert it with .astype")


def _client() -> Any:
    try:
        return ambient_client()
    except RuntimeError as error:
        raise InputError(
            f"from_array asks the workers which files they see, which an asynchronous client cannot do here ({error}): "
            "store the array where they see it and use dred.from_file"
        ) from error


def _unseen(client: Any, look: Callable[[str], Any], path: str, there: Any) -> str:
    """Why a file is not the same to all workers as to this process; "": it is."""
    if client is None:
        return ""
    answers = client.run(look, path, on_error="return")
    blind = sum(answer != there for answer in answers.values())
    if not answers:
        return "no worker has joined the cluster yet: call client.wait_for_workers(...) first"
    return f"{blind} of {len(answers)} workers do not see {os.path.dirname(path)}" if blind else ""


def _no_spool(client: Any, base: str) -> str:
    """Why arrays spooled under a directory would not reach all workers; "": they do."""
    try:
        path, content = spool.sign(base)
    except OSError as error:
        return f"{base} cannot be written: {error}"
    try:
        return _unseen(client, spool.signed, path, content)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)


def _name(source: Source, rows: tuple[int, ...]) -> str:
    return f"dred-read-{tokenize(source, tuple(map(int, rows)))}"


def _row_chunks(shape: tuple[int, ...], dtype: Any, unit: int, label: str, chunks: Any) -> tuple[int, ...]:
    """The rows of each block, of what a caller may say about chunks."""
    rows, columns = chunks, shape[1:]
    if isinstance(chunks, Sequence) and not isinstance(chunks, str) and _for_each_dimension(shape, chunks):
        rows, columns = chunks[0], tuple(chunks[1:])
    try:
        if isinstance(rows, str):
            limit = parse_bytes(dask.config.get("array.chunk-size", default="128 MiB") if rows == "auto" else rows)
            piece = unit * math.prod(shape[1:]) * np.dtype(dtype).itemsize
            rows = max(1, int(limit) // max(1, piece)) * unit
        normal = normalize_chunks((rows, *columns), shape, dtype=np.dtype(dtype))
    except (ArithmeticError, TypeError, ValueError) as error:
        raise InputError(f"chunks={chunks!r} for {label} of shape {shape}: {error}") from error
    if any(len(sizes) > 1 for sizes in normal[1:]):
        raise InputError(f"chunks={chunks!r} for {label} of shape {shape}: columns are not cut, give the rows alone")
    return tuple(map(int, normal[0]))


def _for_each_dimension(shape: tuple[int, ...], chunks: Sequence[Any]) -> bool:
    """Are these dask's chunks, (of the rows, of the columns), rather than the rows of each block?"""
    if len(chunks) != len(shape):
        return False
    return len(shape) == 1 or not isinstance(chunks[1], (int, np.integer)) or int(chunks[1]) in (-1, shape[1])
