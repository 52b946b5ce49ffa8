"""Datasets of HDF5 files and objects (netCDF-4 too): the chunks that hold a row are read.

A data file is data: what would have other files read (external links, external storage, virtual datasets) is refused.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dred.cluster import files
from dred.cluster.stored import Array, Source, converted, fits, no_columns
from dred.errors import InputError

_ENDINGS = (".h5", ".hdf5", ".hdf", ".nc")
_OF_URL = re.compile(r"(.*?://.*?(?:{}))(?:/.*)?".format("|".join(map(re.escape, _ENDINGS))))
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_AHEAD = 1 << 16  # bytes of an object that are fetched at least: metadata are read in little pieces
_LINKS = 32  # soft links that are followed
_SHOWN = 8  # names of datasets in an error


def file_of(path: str) -> str:
    """The part of a path that is a file, where it goes on within that file; else the path."""
    if files.is_url(path):
        found = _OF_URL.fullmatch(path)
        return path if found is None else found[1]
    at = path
    while not os.path.lexists(at) and os.path.dirname(at) != at:
        at = os.path.dirname(at)
    return at if os.path.isfile(at) else path


def recognises(path: str) -> bool:
    file = file_of(path)
    if files.is_url(path):
        return file.endswith(_ENDINGS)
    if not os.path.isfile(file):
        return False
    with open(file, "rb") as opened:
        return file.endswith(_ENDINGS) or opened.read(len(_SIGNATURE)) == _SIGNATURE


@contextlib.contextmanager
def _opened(file: str) -> Iterator[Any]:
    h5py = files.package("h5py", "hdf5")
    if files.is_url(file):
        with files.opened(file, _AHEAD) as place, h5py.File(place, "r") as opened:
            yield opened
    else:  # without a lock: others read it too, and a file system need not have any
        with h5py.File(file, "r", locking=False) as opened:
            yield opened


def open_source(path: str, columns: Sequence[str] | None, dtype: str | None) -> Source:
    no_columns(path, columns)
    files.package("h5py", "hdf5")
    file = file_of(path)
    name = path[len(file) :].strip("/").replace(os.sep, "/")
    stamp = files.stamped(file)
    with _opened(file) as opened:
        dataset = _dataset(opened, file, name)
        shape, kind = fits(path, dataset.shape, dataset.dtype, dtype)
        unit = max(1, int(dataset.chunks[0])) if dataset.chunks else 1
    return Source("hdf5", path, shape, kind, (stamp,), (file, name), unit)


def _dataset(opened: Any, file: str, name: str) -> Any:
    """A dataset whose numbers lie in this very file. InputError: there is none of this name, or they lie elsewhere."""
    h5py = files.package("h5py", "hdf5")
    at, parts, followed = opened, name.split("/"), 0
    while parts:
        part = parts.pop(0)
        if part in ("", "."):
            continue
        link = at.get(part, getlink=True) if isinstance(at, h5py.Group) else None
        if link is None or followed > _LINKS:
            raise InputError(f"{file} has no dataset {name!r}: {_inside(h5py, opened)}")
        if isinstance(link, h5py.SoftLink):
            followed += 1
            at = opened if link.path.startswith("/") else at
            parts = link.path.split("/") + parts
        elif isinstance(link, h5py.ExternalLink):
            _refuse(file, name, f"is a link into another file, {link.filename}: name that file")
        else:
            at = at[part]
    if not isinstance(at, h5py.Dataset):
        what = f"{name!r} of {file} is a group" if name else f"{file} is a file of arrays"
        raise InputError(f"{what}: name a dataset, as in {file}/NAME; {_inside(h5py, opened)}")
    if at.is_virtual:
        _refuse(file, name, "is virtual: its numbers lie in other files. Name those, or copy it into one file")
    if at.external:
        _refuse(file, name, f"keeps its numbers in another file, {at.external[0][0]}: copy it into one file")
    if at.shape is None:
        _refuse(file, name, "is empty: it has no shape")
    packed = [attribute for attribute in ("scale_factor", "add_offset") if attribute in at.attrs]
    if packed:
        _refuse(file, name, f"is packed ({', '.join(packed)}): store the numbers themselves")
    return at


def _refuse(file: str, name: str, why: str) -> None:
    raise InputError(f"the dataset {name!r} of {file} {why}")


def _inside(h5py: Any, opened: Any) -> str:
    """Which datasets there are; links are not followed."""
    found: list[str] = []

    def note(name: str, item: Any) -> bool | None:
        if isinstance(item, h5py.Dataset):
            found.append(f"{name} ({item.dtype} {item.shape})")
        return True if len(found) > _SHOWN else None

    opened.visititems(note)
    more = ", ..." if len(found) > _SHOWN else ""
    return f"it has {', '.join(found[:_SHOWN])}{more}" if found else "it has no datasets"


def read(source: Source, start: int, stop: int) -> Array:
    file, name = source.details
    with _opened(file) as opened:
        rows = np.asarray(_dataset(opened, file, name)[start:stop])
    return np.ascontiguousarray(converted(source, rows, start))


def check(source: Source, start: int, stop: int) -> None:
    files.unchanged(source.details[0], source.stamp[0])
