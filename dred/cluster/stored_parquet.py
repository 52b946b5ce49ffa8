"""Columns of parquet files: the row groups that hold a row are read."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dred.cluster import files
from dred.cluster.stored import DTYPES, KNOWN, Array, Source, converted
from dred.errors import DtypeError, InputError

_PARQUET = (".parquet", ".parq", ".pq")
_AHEAD = 1 << 16  # bytes of an object that are fetched at least: metadata are read in little pieces
_NUMBERS = r"u?int\d+|float\d+|bool"


def recognises(path: str) -> bool:
    return path.endswith(_PARQUET) or (files.is_folder(path) and bool(_names(path)))


def _names(path: str) -> list[str]:
    """The files of an array, as seen from its path: ".", or those of a directory, part.10 after part.9."""
    if not files.is_folder(path):
        return ["."]
    names = [name for name in files.names(path) if name.endswith(_PARQUET) and not name.startswith((".", "_"))]
    return sorted(
        names, key=lambda name: [int(part) if part.isdigit() else part for part in re.split("([0-9]+)", name)]
    )


def _file(path: str, name: str) -> str:
    return path if name == "." else files.inside(path, name)


@contextlib.contextmanager
def _opened(file: str) -> Iterator[Any]:
    parquet = files.package("pyarrow.parquet", "parquet")
    place = files.opened(file, _AHEAD) if files.is_url(file) else contextlib.nullcontext(file)
    with place as readable, parquet.ParquetFile(readable) as opened:
        yield opened


def open_source(path: str, columns: Sequence[str] | None, dtype: str | None) -> Source:
    files.package("pyarrow.parquet", "parquet")
    names = _names(path)
    if not names:
        raise InputError(f"{path} holds no parquet files ({', '.join(_PARQUET)}): name a directory that holds them")
    stamps, rows, unit = [], [], 1
    chosen: tuple[str, ...] = ()
    known = ""
    for file in (_file(path, name) for name in names):
        stamps.append(files.stamped(file))
        with _opened(file) as opened:
            found, kind = _columns(file, opened.schema_arrow, chosen or columns, dtype)
            about = opened.metadata
            rows.append(about.num_rows)
            unit = max([unit, *(about.row_group(g).num_rows for g in range(about.num_row_groups))])
        if known and kind != known:
            raise DtypeError(
                f"{path}: columns {', '.join(chosen)} are {known} in {_file(path, names[0])} and {kind} in {file}: "
                "store all files with one type, or convert them by dtype='float64'"
            )
        chosen, known = found, kind
    parts = tuple(zip(names, rows, strict=True))
    return Source("parquet", path, (sum(rows), len(chosen)), known, tuple(stamps), (chosen, parts), unit)


def _columns(file: str, schema: Any, columns: Sequence[str] | None, dtype: str | None) -> tuple[tuple[str, ...], str]:
    """Names of the columns that are read, and in which type."""
    kinds = {field.name: _TYPES.get(str(field.type), str(field.type)) for field in schema}
    names = tuple(kinds if columns is None else columns)
    for name in names:
        if schema.names.count(name) != 1:
            raise InputError(
                f"{file} has {schema.names.count(name)} columns {name!r}: it has {', '.join(schema.names)}"
            )
    if columns is None:
        names = tuple(name for name in names if re.fullmatch(_NUMBERS + "|decimal.*", kinds[name]))
    if not names:
        raise InputError(
            f"{file}: no columns of numbers are chosen among {', '.join(schema.names)}: name some by columns=[...]"
        )
    found = {kinds[name]: name for name in reversed(names)}
    each = ", ".join(f"{name} {kind}" for kind, name in reversed(found.items()))
    others = [f"{name} {kind}" for kind, name in found.items() if not re.fullmatch(_NUMBERS, kind)]
    if dtype is not None and not others:
        return names, dtype
    if len(found) > 1:
        raise DtypeError(
            f"{file} has columns of several types, such as {each}: name those of one type by columns=[...], convert "
            "them by dtype='float64', or store them with one"
        )
    (kind,) = found
    if kind not in DTYPES:
        cure = "store them as one of them" + ("" if others else ", or say dtype='float64'")
        raise DtypeError(f"{file} has columns such as {each}: {KNOWN}, {cure}")
    return names, kind


_TYPES = {"halffloat": "float16", "float": "float32", "double": "float64"}  # pyarrow's names


def _parts(source: Source, start: int, stop: int) -> Iterator[tuple[str, files.Stamp, int, int]]:
    """Of each file that holds some of the rows: path, stamp, its first row, and the row after its last one."""
    first = 0
    for (name, count), stamp in zip(source.details[1], source.stamp, strict=True):
        if max(start, first) < min(stop, first + count):
            yield _file(source.path, name), stamp, first, first + count
        first += count


def read(source: Source, start: int, stop: int) -> Array:
    names = source.details[0]
    rows: Array = np.empty((stop - start, len(names)), source.dtype)
    for file, _, first, _ in _parts(source, start, stop):
        with _opened(file) as opened:
            for g in range(opened.metadata.num_row_groups):
                count = opened.metadata.row_group(g).num_rows
                lo, hi = max(start, first), min(stop, first + count)
                if lo < hi:
                    table = opened.read_row_group(g, columns=list(names), use_threads=False).slice(lo - first, hi - lo)
                    for k, name in enumerate(names):
                        rows[lo - start : hi - start, k] = converted(
                            source, _without_nulls(file, name, table[name], lo), lo
                        )
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
        files.unchanged(file, stamp)
