"""Arrays of the package zarr: the chunks that hold a row are read."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dred.cluster.stored import Array, Source, fits, is_url, no_columns, package, stamp_of, stamped, unchanged
from dred.errors import InputError

_ZARR_FILES = ("zarr.json", ".zarray", ".zgroup")


def recognises(path: str) -> bool:
    return is_url(path) or path.endswith(".zarr") or any(os.path.exists(os.path.join(path, f)) for f in _ZARR_FILES)


def open_source(path: str, columns: Sequence[str] | None) -> Source:
    no_columns(path, columns)
    zarr = package("zarr", "zarr")
    try:
        array = zarr.open_array(path, mode="r")
    except Exception:
        try:
            inside = sorted(zarr.open_group(path, mode="r").array_keys())
        except Exception:
            inside = []
        if not inside:
            raise
        raise InputError(f"{path} is a group of arrays: name one of them, such as {path}/{inside[0]}") from None
    shape, dtype = fits(path, array.shape, array.dtype)
    outer = tuple(map(int, array.shards or array.chunks))
    unit = max(1, int(array.chunks[0]))
    if is_url(path):  # what is behind it has no times: what describes the array stands for it
        return Source("zarr", path, shape, dtype, (_described(array),), (), unit)
    about = next(name for name in ("zarr.json", ".zarray") if os.path.exists(os.path.join(path, name)))
    stamps = [stamp_of(file) for file in _chunks(path, array, shape, outer, 0, shape[0])]
    there = [stamp for stamp in stamps if stamp is not None]
    # A chunk that is not there holds the fill value: which they are is noted, bit by bit, unless there are none.
    absent = b"" if len(there) == len(stamps) else np.packbits([stamp is None for stamp in stamps]).tobytes()
    digest = _digest(repr(stamps))
    newest = max((time for _, time in there), default=0)
    return Source(
        "zarr", path, shape, dtype, (stamped(os.path.join(path, about)), digest), (about, outer, newest, absent), unit
    )


def _described(array: Any) -> str:
    return _digest(json.dumps(array.metadata.to_dict(), default=str, sort_keys=True))


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _chunks(
    path: str, array: Any, shape: tuple[int, ...], outer: tuple[int, ...], start: int, stop: int
) -> Iterator[str]:
    """The files of the chunks (with shards: of the shards) that rows start:stop are in, in a fixed order."""
    ranges = [range(start // outer[0], -(-stop // outer[0]))]
    ranges += [range(-(-size // chunk)) for size, chunk in zip(shape[1:], outer[1:], strict=True)]
    for place in itertools.product(*ranges):
        yield os.path.join(path, *array.metadata.encode_chunk_key(place).split("/"))


def read(source: Source, start: int, stop: int) -> Array:
    array = package("zarr", "zarr").open_array(source.path, mode="r")
    if not source.details and _described(array) != source.stamp[0]:
        raise InputError(
            f"{source.path} changed since it was opened: it was {source.dtype} of shape {source.shape}, and is "
            f"{array.dtype} of shape {array.shape}, or stored otherwise. "
            "Open it again to compute with what it holds now"
        )
    rows: Array = np.ascontiguousarray(array[start:stop], dtype=source.dtype)
    return rows if rows.flags.writeable and rows.base is None else rows.copy()


def check(source: Source, start: int, stop: int) -> None:
    """Rows are what they were if no chunk of them is newer than the newest was, and none went or came."""
    if not source.details:
        return
    about, outer, newest, absent = source.details
    unchanged(os.path.join(source.path, about), source.stamp[0])
    if start == stop:
        return
    per_row = math.prod(-(-size // chunk) for size, chunk in zip(source.shape[1:], outer[1:], strict=True))
    first = start // outer[0] * per_row
    not_there = np.unpackbits(np.frombuffer(absent, np.uint8))
    array = package("zarr", "zarr").open_array(source.path, mode="r")
    files = _chunks(source.path, array, source.shape, outer, start, stop)
    for number, file in enumerate(files, first):
        stamp = stamp_of(file)
        was_there = not (len(not_there) and not_there[number])
        if (stamp is not None) != was_there:
            what = "is gone" if was_there else "was added"
        elif stamp is not None and stamp[1] > newest:
            what = "was written"
        else:
            continue
        raise InputError(
            f"{source.path} changed since it was opened: its chunk {os.path.relpath(file, source.path)} {what} since. "
            "Open it again to compute with what it holds now"
        )
