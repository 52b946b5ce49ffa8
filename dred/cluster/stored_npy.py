"""Arrays in npy files, and in any region of a file: rows are read by their place."""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from dred.cluster.stored import KNOWN, Array, Source, fits, no_columns, stamped, unchanged
from dred.errors import DtypeError, InputError


def region(path: str, shape: tuple[int, ...], dtype: np.dtype[Any], offset: int, fortran: bool = False) -> Source:
    """An array that lies in a file as it would in memory, from byte `offset` on. Errors are those of `open_source`."""
    sizes, name = fits(path, shape, dtype)
    stamp = stamped(path)
    nbytes = math.prod(sizes) * dtype.itemsize
    if stamp[0] < offset + nbytes:
        raise InputError(
            f"{path} is truncated: {dtype} of shape {sizes} takes {nbytes} bytes from byte {offset} on, "
            f"and the file has {stamp[0]}: write it again"
        )
    return Source("npy", path, sizes, name, stamp, (offset, fortran and len(sizes) == 2, dtype.str))


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
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return path.endswith(".npy") or file.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX


def open_source(path: str, columns: Sequence[str] | None) -> Source:
    no_columns(path, columns)
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with open(path, "rb") as file:
        version = np.lib.format.read_magic(file)
        if version not in headers:
            raise DtypeError(f"{path} is npy of version {version}, which is for records: {KNOWN}")
        shape, fortran, dtype = headers[version](file)
        return region(path, shape, dtype, file.tell(), fortran)


def read(source: Source, start: int, stop: int) -> Array:
    offset, fortran, stored = source.details
    dtype = np.dtype(stored)
    rows: Array = np.empty((stop - start, *source.shape[1:]), dtype)
    with open(source.path, "rb", buffering=0) as file:
        if not fortran:
            _fill(file, offset + start * source.row_bytes, rows)
        else:  # columns lie one after another
            column = np.empty(stop - start, dtype)
            for k in range(source.shape[1]):
                _fill(file, offset + (k * source.rows + start) * dtype.itemsize, column)
                rows[:, k] = column
    return rows.astype(source.dtype, copy=False)


def _fill(file: Any, offset: int, array: Array) -> None:
    """Read `array` from byte `offset` on; the system gives at most 2 GB at a time."""
    view = array.reshape(-1).view(np.uint8).data
    file.seek(offset)
    while len(view):
        count = file.readinto(view)
        if not count:
            raise EOFError(f"the file ends {len(view)} bytes too early")
        view = view[count:]


def check(source: Source, start: int, stop: int) -> None:
    size, time = source.stamp
    unchanged(source.path, (size, time))
