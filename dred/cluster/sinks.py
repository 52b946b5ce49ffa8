"""Sinks: files, folders and objects of results, which are filled aside and appear under their path when they are whole.

The same rows give the same bytes, in whatever order they came.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dred.cluster import files, sink_parquet, sink_zarr
from dred.cluster.stored import Source
from dred.errors import DredError, DtypeError, InputError, StoreError, human

DTYPES = ("float16", "float32", "float64", "int64", "bool")

Array = NDArray[Any]


class Rows:
    """An npy file that is written by rows; a full disk is an OSError, where a map of memory would end the process."""

    def __init__(self, part: str, shape: tuple[int, ...], dtype: str) -> None:
        self._file = open(part, "wb", buffering=0)  # noqa: SIM115 (until `close`)
        about = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, about)
        self._start = self._file.tell()
        self._row = math.prod(shape[1:]) * np.dtype(dtype).itemsize
        self._file.truncate(self._start + shape[0] * self._row)

    def __setitem__(self, rows: slice, block: Array) -> None:
        view = np.ascontiguousarray(block).reshape(-1).view(np.uint8).data
        self._file.seek(self._start + rows.start * self._row)
        while len(view):
            view = view[self._file.write(view) :]

    def close(self) -> None:
        if not self._file.closed:
            try:
                os.fsync(self._file.fileno())
            finally:
                self._file.close()


@dataclass(frozen=True)
class Form:
    """One way of writing results.

    Attributes
    ----------
    begin : callable
        (part, shape, dtype, rows) -> what takes rows by `[start:stop] = block`.
    end : callable
        (part, shape, rows, columns) -> path of what is whole, once all rows are in `part`.
    package : str
        That it needs, and the name of its extra.
    folder : bool
        Is it a folder?
    most : int
        Dimensions that it can have.
    """

    begin: Callable[[str, tuple[int, ...], str, int], Any]
    end: Callable[[str, tuple[int, ...], int, Sequence[str]], str]
    package: tuple[str, str] | None = None
    folder: bool = False
    most: int = 3


def _as_it_is(part: str, shape: tuple[int, ...], rows: int, columns: Sequence[str]) -> str:
    return part


def _rows(part: str, shape: tuple[int, ...], dtype: str, rows: int) -> Rows:
    return Rows(part, shape, dtype)


SINKS = {
    ".npy": Form(_rows, _as_it_is),
    ".parquet": Form(_rows, sink_parquet.end, ("pyarrow.parquet", "parquet"), most=2),
    ".zarr": Form(sink_zarr.begin, _as_it_is, ("zarr", "zarr"), folder=True),
}


@dataclass(frozen=True)
class Sink:
    """Where results are put. Blocks come in any order, from one thread; a row may come again with the same numbers.

    Attributes
    ----------
    path : str
        Where they appear, a path or a URL.
    part : str
        Where they are until then.
    shape, dtype
        Of the whole.
    rows : int
        Rows of a chunk, or of a row group.
    columns : tuple of str
        Names of the columns, of parquet.
    """

    path: str
    part: str
    shape: tuple[int, ...]
    dtype: str
    rows: int
    columns: tuple[str, ...]
    _array: Any = field(repr=False, compare=False)
    _there: Array = field(repr=False, compare=False)  # of each row: was it written?

    def __setitem__(self, rows: slice, block: Array) -> None:
        """Write rows start:stop.

        Raises
        ------
        InputError
            A block of another shape or type, or rows that are not there.
        StoreError
            The disk is full, or fails.
        """
        start, stop, step = rows.start, rows.stop, rows.step
        if step not in (None, 1) or not 0 <= start <= stop <= self.shape[0]:
            raise InputError(f"rows {start}:{stop} of {self.path}: it has rows 0:{self.shape[0]}")
        shape = (stop - start, *self.shape[1:])
        if block.shape != shape or block.dtype != self.dtype:
            raise InputError(
                f"rows {start}:{stop} of {self.path} are {self.dtype} of shape {shape}, got {block.dtype} of shape "
                f"{block.shape}"
            )
        with _storing(self.path, self.part):
            self._array[start:stop] = block
        self._there[start:stop] = True

    def finish(self) -> None:
        """Put what is whole under its path, in place of what was there.

        A file is replaced in one step. A folder is moved there once the one before has been moved away. An object is
        uploaded; of a folder of objects that which describes it goes first and comes last.

        Raises
        ------
        StoreError
            Some rows were never written, or the disk is full, or fails; nothing was put there.
        """
        lost = np.flatnonzero(~self._there)
        if len(lost):
            raise StoreError(
                f"{self.path} is not whole: {len(lost)} of its {self.shape[0]} rows were not written, the first is row "
                f"{lost[0]}"
            )
        with _storing(self.path, self.part):
            _close(self._array)
            whole = _form(self.path).end(self.part, self.shape, self.rows, self.columns)
            if files.is_url(self.path):
                _upload(whole, self.path)
            else:
                _sync(whole)
                _move(whole, self.path, f"{self.part}.old")
        self.discard()

    def discard(self) -> None:
        """Remove all that is not under the path."""
        with contextlib.suppress(OSError):
            _close(self._array)
        for path in (self.part, f"{self.part}.parquet"):
            _remove(path)


def _close(array: Any) -> None:
    if isinstance(array, Rows):
        array.close()


def open_sink(
    path: str | os.PathLike[str],
    part: str | os.PathLike[str],
    shape: Sequence[int],
    dtype: Any,
    rows: int,
    columns: Sequence[str] | None = None,
) -> Sink:
    """A sink whose format is told by its ending: .npy, .zarr or .parquet.

    Parameters
    ----------
    path : path or URL
        Where the results appear when `finish` is called. What is there stays there until then.
    part : path
        Where they are until then, on the same file system (any one where `path` is a URL). What is there is removed;
        its folder is made.
    shape : sequence of int
        1 to 3 sizes, 1 or 2 of parquet.
    dtype : dtype
        One of `DTYPES`.
    rows : int
        Rows of a chunk of zarr, or of a row group of parquet.
    columns : sequence of str, optional
        Names of the columns of parquet; by default c0, c1, ...

    Raises
    ------
    InputError, DtypeError, MissingPackageError
        As for `check_sink`.
    StoreError
        `part` cannot be written, is on another file system than `path`, or has no room.

    Examples
    --------
    >>> import tempfile, pathlib, numpy as np
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> sink = open_sink(folder / "out.npy", folder / "part.npy", (4, 2), "float64", rows=2)
    >>> sink[2:4] = np.full((2, 2), 2.0)
    >>> sink[0:2] = np.zeros((2, 2))
    >>> (folder / "out.npy").exists()
    False
    >>> sink.finish()
    >>> np.load(folder / "out.npy")[:, 0]
    array([0., 0., 2., 2.])
    """
    target, aside = _named(path), os.path.abspath(os.fspath(part))
    sizes = tuple(map(int, shape))
    kind = np.dtype(dtype).newbyteorder("=").name
    names = _columns(target, sizes, kind, columns)
    folder = os.path.dirname(aside)
    with _storing(target, aside):
        os.makedirs(folder, exist_ok=True)
        if not files.is_url(target) and os.stat(folder).st_dev != os.stat(os.path.dirname(target)).st_dev:
            raise StoreError(f"{target} cannot be moved into its place from {aside}, which is on another file system")
        _remove(aside)
        _room(target, folder, math.prod(sizes) * np.dtype(kind).itemsize)
        try:
            array = _form(target).begin(aside, sizes, kind, int(rows))
        except BaseException:
            _remove(aside)
            raise
    return Sink(target, aside, sizes, kind, int(rows), names, array, np.zeros(sizes[0], bool))


def check_sink(
    path: str | os.PathLike[str],
    shape: Sequence[int],
    dtype: Any,
    columns: Sequence[str] | None = None,
    inputs: Sequence[Source] = (),
) -> None:
    """Refuse, before anything is computed, what could not be written. Nothing of what is there is touched.

    Parameters
    ----------
    path, shape, dtype, columns
        As for `open_sink`.
    inputs : sequence of Source
        What is read meanwhile, and must not be replaced.

    Raises
    ------
    InputError
        An unknown ending, a shape that the format cannot hold, names that are no names of its columns, a path that is
        an input or holds something else, a URL that carries a password or cannot be written to.
    DtypeError
        A type of numbers that is not one of `DTYPES`.
    MissingPackageError
        The package of the format, or of the URL's file system, is not installed.
    StoreError
        The folder is not there, may not be written to, or has no room.
    """
    target = _named(path)
    sizes = tuple(map(int, shape))
    kind = np.dtype(dtype).newbyteorder("=").name
    _columns(target, sizes, kind, columns)
    for source in inputs:
        if _same(source.path, target):
            raise InputError(f"{target} is an input, {source}: let results have another name")
    if files.is_url(target):
        _probe(target)
        return
    folder = os.path.dirname(target)
    if not os.path.isdir(folder):
        raise StoreError(f"{target} cannot be written: there is no folder {folder}, make it")
    if os.path.lexists(target) and os.path.isdir(target) != _form(target).folder:
        raise InputError(f"{target} is a {'folder' if os.path.isdir(target) else 'file'}, and is to be none: remove it")
    if os.path.isdir(target) and os.listdir(target) and not {"zarr.json", ".zarray"}.intersection(os.listdir(target)):
        raise InputError(f"{target} is a folder of something else, which results would replace: remove it")
    with _storing(target, folder):
        tempfile.TemporaryFile(dir=folder).close()  # a trial says more than permissions
        _room(target, folder, math.prod(sizes) * np.dtype(kind).itemsize)


def _named(path: str | os.PathLike[str]) -> str:
    name = os.fspath(path).removeprefix("file://")
    return files.plain(name) if files.is_url(name) else os.path.abspath(os.path.expanduser(name))


def _form(path: str) -> Form:
    form = SINKS.get(os.path.splitext(path)[1])
    if form is None:
        raise InputError(f"{path}: results are written as {', '.join(SINKS)}, let its name end in one of them")
    return form


def _columns(path: str, shape: tuple[int, ...], dtype: str, columns: Sequence[str] | None) -> tuple[str, ...]:
    """The names of the columns, of parquet; of other formats none. Raises what `check_sink` does of these."""
    form = _form(path)
    if dtype not in DTYPES:
        raise DtypeError(f"{path} is to hold {dtype}: results are written as {', '.join(DTYPES)}")
    if not 1 <= len(shape) <= form.most:
        raise InputError(f"{path} cannot hold shape {shape}: its format has 1 to {form.most} dimensions")
    if form.package is not None:
        files.package(*form.package, f"writing {form.package[1]}")
    if form.most > 2:
        if columns is not None:
            raise InputError(f"columns={list(columns)!r} is for parquet, {path} is one array: leave it out")
        return ()
    count = shape[1] if len(shape) > 1 else 1
    names = tuple(columns) if columns is not None else tuple(f"c{k}" for k in range(count))
    if len(names) != count or len(set(names)) != count or not count:
        raise InputError(f"{path} has {count} columns of shape {shape}: name each, columns={list(names)!r} do not")
    return names


def _same(source: str, target: str) -> bool:
    """Would what is read be replaced? It may lie within what is, such as a dataset in a file."""
    if files.is_url(source) or files.is_url(target):
        return f"{source.rstrip('/')}/".startswith(f"{target.rstrip('/')}/")
    return f"{os.path.realpath(source)}{os.sep}".startswith(f"{os.path.realpath(target)}{os.sep}")


def _room(path: str, folder: str, nbytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if nbytes > free:
        raise StoreError(f"{path} takes {human(nbytes)}, and {folder} has {human(free)} free: make room")


@contextlib.contextmanager
def _storing(path: str, place: str) -> Iterator[None]:
    """Whatever goes wrong in writing is a StoreError that says what and where."""
    try:
        yield
    except (DredError, MemoryError):
        raise
    except Exception as error:
        free = ""
        with contextlib.suppress(OSError):
            free = f", where {human(shutil.disk_usage(os.path.dirname(place)).free)} are free"
        raise StoreError(
            f"{path} cannot be written by way of {place}{free}: {type(error).__name__}: {error}"
        ) from error


def _sync(path: str) -> None:
    """All of a file or of a folder is on the disk."""
    places = [path]
    for folder, _, names in os.walk(path):
        places += [folder, *(os.path.join(folder, name) for name in names)]
    for place in places:
        if os.name == "posix" or os.path.isfile(place):
            descriptor = os.open(place, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _move(whole: str, path: str, old: str) -> None:
    if not os.path.isdir(whole):
        os.replace(whole, path)
    elif not os.path.lexists(path):
        os.rename(whole, path)
    else:  # a folder that is not empty cannot be replaced in one step
        _remove(old)
        os.rename(path, old)
        try:
            os.rename(whole, path)
        except BaseException:
            if not os.path.lexists(path):
                os.rename(old, path)
            raise
    _remove(old)  # one that was killed may have left it
    if os.name == "posix":
        descriptor = os.open(os.path.dirname(path), os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _upload(whole: str, url: str) -> None:
    fs, inner = files.file_system(url)
    if not os.path.isdir(whole):
        fs.put_file(whole, inner)
        files.file_system(url)  # what it knew of the object before is forgotten
        size, there = os.path.getsize(whole), fs.info(inner)["size"]
        if there != size:
            raise OSError(f"{there} of {size} bytes arrived")
        return
    about = f"{inner}/zarr.json"
    if fs.exists(about):
        fs.rm_file(about)
    if fs.exists(inner):
        fs.rm(inner, recursive=True)
    within = [os.path.join(folder, name) for folder, _, names in os.walk(whole) for name in names]
    for file in sorted(within, key=lambda file: (os.path.relpath(file, whole) == "zarr.json", file)):
        place = f"{inner}/{os.path.relpath(file, whole).replace(os.sep, '/')}"
        fs.put_file(file, place)


def _probe(url: str) -> None:
    """An object beside the one to be can be written: the only way to know."""
    if url.startswith(("http://", "https://")):
        raise InputError(f"{url}: nothing is written by http, name an object of a store or a path")
    with _storing(url, url):
        fs, inner = files.file_system(url)
        fs.pipe_file(f"{inner}.dred", b"")
        fs.rm_file(f"{inner}.dred")


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
