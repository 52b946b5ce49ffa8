"""Arrays in npy files, and in any region of a file: rows are read by their place."""

from __future__ import annotations

import math
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
