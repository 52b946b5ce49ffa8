"""Arrays in npy files and objects, and in any region of a file: rows are read by their place, and nothing else is."""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from dred.cluster import files
from dred.cluster.stored import KNOWN, Array, Source, converted, fits, no_columns
from dred.errors import DtypeError, InputError

_HEADER = 1 << 12  # bytes of an object that are fetched at once to read its header


def region(
    path: str,
    shape: tuple[int, ...],
    stored: np.dtype[Any],
    offset: int,
    fortran: bool = False,
    dtype: str | None = None,
) -> Source:
    """An array that lies in a file as it would in memory, from byte `offset` on. Errors are those of `open_source`."""
    sizes, name = fits(path, shape, stored, dtype)
    stamp = files.stamped(path)
    nbytes = math.prod(sizes) * stored.itemsize
    if stamp[0] < offset + nbytes:
        raise InputError(
            f"{path} is truncated: {stored} of shape {sizes} takes {nbytes} bytes from byte {offset} on, "
            f"and the file has {stamp[0]}: write it again"
        )
    return Source("npy", path, sizes, name, stamp, (offset, fortran and len(sizes) == 2, stored.str))


def mapped(array: Array) -> Source | None:
    """The region of a file that a memmap, or a view of one, shows; None where that is not sure, or is no one region.

    Only of those that are opened to be read: what is written through a memmap does not always change the file's time.
    """
    root: Any = array
    while isinstance(root, np.ndarray) and not isinstance(root.base, mmap.mmap):
        root = root.base
    if not isinstance(root, np.memmap) or root.filename is None or root.mode != "r" or not array.size:
        return None
    if not (array.flags.c_contiguous or array.flags.f_contiguous):
        return None
    path, address = os.path.abspath(root.filename), array.ctypes.data
    inode = _mapped_inode(address)
    if inode is None or not os.path.exists(path) or os.stat(path).st_ino != inode:
        return None  # another file has taken the name since
    # A view's own `offset` is that of the whole memmap.
    offset = root.offset + address - root.ctypes.data
    return region(path, array.shape, array.dtype, offset, fortran=not array.flags.c_contiguous)


def _mapped_inode(address: int) -> int | None:
    """The number of the file that is mapped at an address of this process; None where the system does not tell."""
    try:
        with open("/proc/self/maps") as lines:
            for line in lines:
                span, _, _, _, inode = line.split(maxsplit=5)[:5]
                start, stop = (int(bound, 16) for bound in span.split("-"))
                if start <= address < stop:
                    return int(inode)
    except OSError:
        pass
    return None


def recognises(path: str) -> bool:
    if files.is_url(path):
        return path.endswith(".npy")
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return path.endswith(".npy") or file.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX


def open_source(path: str, columns: Sequence[str] | None, dtype: str | None) -> Source:
    no_columns(path, columns)
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    files.stamped(path)  # says what it means that nothing is there
    with files.opened(path, _HEADER) as file:
        version = np.lib.format.read_magic(file)
        if version not in headers:
            raise DtypeError(f"{path} is npy of version {version}, which is for records: {KNOWN}")
        shape, fortran, stored = headers[version](file)
        return region(path, shape, stored, file.tell(), fortran, dtype)


def read(source: Source, start: int, stop: int) -> Array:
    offset, fortran, name = source.details
    stored = np.dtype(name)
    rows: Array = np.empty((stop - start, *source.shape[1:]), stored)
    with files.opened(source.path) as file:
        if not fortran:
            _fill(file, offset + start * math.prod(source.shape[1:]) * stored.itemsize, rows)
        else:  # columns lie one after another
            column = np.empty(stop - start, stored)
            for k in range(source.shape[1]):
                _fill(file, offset + (k * source.rows + start) * stored.itemsize, column)
                rows[:, k] = column
    return converted(source, rows, start)


def _fill(file: Any, offset: int, array: Array) -> None:
    files.fill(file, offset, array.reshape(-1).view(np.uint8).data)


def check(source: Source, start: int, stop: int) -> None:
    size, version = source.stamp
    files.unchanged(source.path, (size, version))
