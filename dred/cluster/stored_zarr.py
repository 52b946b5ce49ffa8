"""Arrays of the package zarr: the chunks that hold a row are read."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dred.cluster import files
from dred.cluster.stored import Array, Source, converted, fits, no_columns
from dred.errors import InputError

_ZARR_FILES = ("zarr.json", ".zarray", ".zgroup")


def recognises(path: str) -> bool:
    return (
        files.is_url(path)
        or path.endswith(".zarr")
        or any(os.path.exists(os.path.join(path, name)) for name in _ZARR_FILES)
    )


def _opened(path: str) -> Any:
    """An array as zarr sees it. InputError: reading it would unpickle what is stored."""
    zarr = files.package("zarr", "zarr")
    array = zarr.open_array(path, mode="r")
    about = array.metadata.to_dict()
    # zarr 3.0 takes a pickle for a codec of numbers, and runs it; versions after it refuse it themselves.
    codecs = json.dumps([about.get(key) for key in ("filters", "compressor", "codecs")], default=_configured)
    if "pickle" in codecs:
        raise InputError(f"{path} is stored by a codec that unpickles, which can run any code: store it as numbers")
    return array


def _configured(codec: Any) -> Any:
    """A codec, for JSON."""
    return codec.get_config() if hasattr(codec, "get_config") else str(codec)


def open_source(path: str, columns: Sequence[str] | None, dtype: str | None) -> Source:
    no_columns(path, columns)
    zarr = files.package("zarr", "zarr")
    if files.is_url(path):
        files.file_system(path)  # says which package it lacks
    try:
        array = _opened(path)
    except InputError:
        raise
    except Exception:
        try:
            inside = sorted(zarr.open_group(path, mode="r").array_keys())
        except Exception:
            inside = []
        if not inside:
            raise
        raise InputError(f"{path} is a group of arrays: name one of them, such as {path}/{inside[0]}") from None
    shape, name = fits(path, array.shape, array.dtype, dtype)
    outer = tuple(map(int, array.shards or array.chunks))
    unit = max(1, int(array.chunks[0]))
    chunks = [*_chunks(path, array, shape, outer, 0, shape[0])]
    stamps = _stamps(path, chunks)
    if stamps is None:  # what is behind the URL is not listed, or without times: what describes the array stands for it
        return Source("zarr", path, shape, name, (_described(array),), (), unit)
    there = [stamp for stamp in stamps if stamp is not None]
    # A chunk that is not there holds the fill value: which they are is noted, bit by bit, unless there are none.
    absent = b"" if len(there) == len(stamps) else np.packbits([stamp is None for stamp in stamps]).tobytes()
    newest = max((time for _, time in there), default=0)
    about = next(file for file in ("zarr.json", ".zarray") if files.stamp_of(files.inside(path, file)) is not None)
    stamp = files.stamped(files.inside(path, about))
    return Source("zarr", path, shape, name, (stamp, _digest(repr(stamps))), (about, outer, newest, absent), unit)


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
        yield files.inside(path, *array.metadata.encode_chunk_key(place).split("/"))


def _stamps(path: str, chunks: list[str]) -> list[tuple[Any, int] | None] | None:
    """Of each chunk its size and time, or None where it is not there. None: this is not to be had."""
    if not files.is_url(path):
        return [_stamp(chunk) for chunk in chunks]
    try:
        found = files.found(path)  # one listing, rather than a question for each chunk
    except (NotImplementedError, OSError):
        return None
    stamps = [_told(chunk, found.get(_inner(path, chunk))) for chunk in chunks]
    return stamps if found and all(stamp is None or stamp[1] for stamp in stamps) else None


def _stamp(chunk: str) -> tuple[Any, int] | None:
    if files.is_url(chunk):
        return _told(chunk, files.look(chunk))
    stamp = files.stamp_of(chunk)
    return None if stamp is None else (stamp[0], int(stamp[1]))


def _told(chunk: str, told: Mapping[str, Any] | None) -> tuple[Any, int] | None:
    if told is None or told["type"] == "directory":
        return None
    return files.stamp_told(chunk, told), files.time_told(told) or 0


def _inner(path: str, chunk: str) -> str:
    return chunk.removeprefix(path.rstrip("/") + "/") if files.is_url(path) else os.path.relpath(chunk, path)


def read(source: Source, start: int, stop: int) -> Array:
    array = _opened(source.path)
    if not source.details and _described(array) != source.stamp[0]:
        raise InputError(
            f"{source.path} changed since it was opened: it was {source.dtype} of shape {source.shape}, and is "
            f"{array.dtype} of shape {array.shape}, or stored otherwise. "
            "Open it again to compute with what it holds now"
        )
    rows = np.ascontiguousarray(converted(source, np.asarray(array[start:stop]), start))
    return rows if rows.flags.writeable and rows.base is None else rows.copy()


def check(source: Source, start: int, stop: int) -> None:
    """Rows are what they were if no chunk of them is newer than the newest was, and none went or came."""
    if not source.details:
        return
    about, outer, newest, absent = source.details
    files.unchanged(files.inside(source.path, about), source.stamp[0])
    if start == stop:
        return
    per_row = math.prod(-(-size // chunk) for size, chunk in zip(source.shape[1:], outer[1:], strict=True))
    first = start // outer[0] * per_row
    not_there = np.unpackbits(np.frombuffer(absent, np.uint8))
    chunks = _chunks(source.path, _opened(source.path), source.shape, outer, start, stop)
    for number, chunk in enumerate(chunks, first):
        stamp = _stamp(chunk)
        was_there = not (len(not_there) and not_there[number])
        if (stamp is not None) != was_there:
            what = "is gone" if was_there else "was added"
        elif stamp is not None and stamp[1] > newest:
            what = "was written"
        else:
            continue
        raise InputError(
            f"{source.path} changed since it was opened: its chunk {_inner(source.path, chunk)} {what} since. "
            "Open it again to compute with what it holds now"
        )
