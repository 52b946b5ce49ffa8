"""Columns of parquet files: the row groups that hold a row are read."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dred.cluster.stored import DTYPES, KNOWN, Array, Source, Stamp, package, stamped, unchanged
from dred.errors import DtypeError, InputError

_PARQUET = (".parquet", ".parq", ".pq")


def recognises(path: str) -> bool:
    return path.endswith(_PARQUET) or (os.path.isdir(path) and bool(_files(path)))


def _files(path: str) -> list[str]:
    """The files of an array: itself, or those of a directory, part.10 after part.9."""
    if not os.path.isdir(path):
        return [path]
    names = [name for name in os.listdir(path) if name.endswith(_PARQUET) and not name.startswith((".", "_"))]
    names.sort(key=lambda name: [int(part) if part.isdigit() else part for part in re.split("([0-9]+)", name)])
    return list(filter(os.path.isfile, (os.path.join(path, name) for name in names)))


def open_source(path: str, columns: Sequence[str] | None) -> Source:
    parquet = package("pyarrow.parquet", "parquet")
    files = _files(path)
    if not files:
        raise InputError(f"{path} holds no parquet files ({', '.join(_PARQUET)}): name a directory that holds them")
    stamps, rows, unit = [], [], 1
    chosen: tuple[str, ...] = ()
    dtype = ""
    for file in files:
        stamps.append(stamped(file))
        with parquet.ParquetFile(file) as opened:
            names, found = _columns(file, opened.schema_arrow, chosen or columns)
            about = opened.metadata
            rows.append(about.num_rows)
            unit = max([unit, *(about.row_group(g).num_rows for g in range(about.num_row_groups))])
        if dtype and found != dtype:
            raise DtypeError(
                f"{path}: columns {', '.join(chosen)} are {dtype} in {files[0]} and {found} in {file}: "
                "store all files with one type"
            )
        chosen, dtype = names, found
    parts = tuple((os.path.relpath(file, path), count) for file, count in zip(files, rows, strict=True))
    return Source("parquet", path, (sum(rows), len(chosen)), dtype, tuple(stamps), (chosen, parts), unit)


def _columns(file: str, schema: Any, columns: Sequence[str] | None) -> tuple[tuple[str, ...], str]:
    """Names and type of the columns that are read."""
    kinds = {field.name: _TYPES.get(str(field.type), str(field.type)) for field in schema}
    names = tuple(kinds if columns is None else columns)
    for name in names:
        if schema.names.count(name) != 1:
            raise InputError(
                f"{file} has {schema.names.count(name)} columns {name!r}: it has {', '.join(schema.names)}"
            )
    if columns is None:
        names = tuple(name for name in names if re.fullmatch(r"u?int\d+|float\d+|decimal.*|bool", kinds[name]))
    found = {kinds[name]: name for name in reversed(names)}
    each = ", ".join(f"{name} {kind}" for kind, name in reversed(found.items()))
    if not names:
        raise InputError(
            f"{file}: no columns of numbers are chosen among {', '.join(schema.names)}: name some by columns=[...]"
        )
    if len(found) > 1:
        raise DtypeError(
            f"{file} has columns of several types, such as {each}: name those of one type by columns=[...], or store "
            "them with one"
        )
    (dtype,) = found
    if dtype not in DTYPES:
        raise DtypeError(f"{file} has columns such as {each}: {KNOWN}, store them as one of them")
    return names, dtype


_TYPES = {"halffloat": "float16", "float": "float32", "double": "float64"}  # pyarrow's names


def _parts(source: Source, start: int, stop: int) -> Iterator[tuple[str, Stamp, int, int]]:
    """Of each file that holds some of the rows: path, stamp, its first row, and the row after its last one."""
    first = 0
    for (name, count), stamp in zip(source.details[1], source.stamp, strict=True):
        if max(start, first) < min(stop, first + count):
            yield os.path.normpath(os.path.join(source.path, name)), stamp, first, first + count
        first += count


def read(source: Source, start: int, stop: int) -> Array:
    parquet = package("pyarrow.parquet", "parquet")
    names = source.details[0]
    rows: Array = np.empty((stop - start, len(names)), source.dtype)
    for file, _, first, _ in _parts(source, start, stop):
        with parquet.ParquetFile(file) as opened:
            for g in range(opened.metadata.num_row_groups):
                count = opened.metadata.row_group(g).num_rows
                lo, hi = max(start, first), min(stop, first + count)
                if lo < hi:
                    table = opened.read_row_group(g, columns=list(names), use_threads=False).slice(lo - first, hi - lo)
                    for k, name in enumerate(names):
                        rows[lo - start : hi - start, k] = _without_nulls(file, name, table[name], lo)
                first += count
    return rows


def _without_nulls(file: str, name: str, column: Any, first: int) -> Array:
    if column.null_count:
        row = first + int(np.flatnonzero(column.is_null().to_numpy())[0])
        raise InputError(
            f"column {name!r} of {file} has {column.null_count} nulls in rows {first}:{first + len(column)} of the "
            f"array, the first in row {row}: fill them or leave these rows out when storing it"
        )
    values: Array = column.to_numpy()
    return values


def check(source: Source, start: int, stop: int) -> None:
    for file, stamp, _, _ in _parts(source, start, stop):
        unchanged(file, stamp)
