"""Columns of csv files and objects: opening looks for where rows begin, tasks parse the pieces that hold theirs.

A file is cut into pieces of equally many rows, at most `MOST` of them, so that their places fit into every task.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from dred.cluster import files
from dred.cluster.stored import Array, Source, converted
from dred.errors import InputError, human

BLOCK = 1 << 24  # bytes that are looked through, or parsed, at a time
LONGEST = 1 << 26  # bytes of a line
ROWS = 1 << 14  # of a piece, where that makes no more than
MOST = 1024  # pieces

_ENDINGS = (".csv", ".tsv")
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".lz4")
_ALONE = "has lines that end in CR alone: let them end in LF or CRLF"
_MARK = b"\xef\xbb\xbf"  # UTF-8 may begin with it
_NUMBER = re.compile(r"\s*[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|nan|inf|infinity)\s*", re.IGNORECASE)


class Layout(NamedTuple):
    """Where the numbers lie.

    Attributes
    ----------
    delimiter : str
        A blank stands for one or more.
    names : tuple of str
        Of all columns; "0", "1", ... where no line names them.
    chosen : tuple of int
        Numbers of the columns that are read.
    quoted : bool
        Are there quotes, so that an end of line may stand within a field?
    step : int
        Rows of a piece.
    begins : bytes
        The first byte of each piece, as uint64 in little-endian order.
    """

    delimiter: str
    names: tuple[str, ...]
    chosen: tuple[int, ...]
    quoted: bool
    step: int
    begins: bytes


def recognises(path: str) -> bool:
    name = path.lower()
    return name.endswith(_ENDINGS) or any(name.endswith(end + packed) for end in _ENDINGS for packed in _PACKED)


def open_source(path: str, columns: Sequence[str] | None, dtype: str | None) -> Source:
    files.package("pyarrow.csv", "parquet", "reading csv")
    if path.lower().endswith(_PACKED):
        raise InputError(f"{path} is compressed, so that no row can be read without all before it: unpack it")
    stamp = files.stamped(path)
    with files.opened(path, BLOCK) as file:
        first, line, after = _first_line(path, file)
        delimiter = next((sign for sign in "\t;, " if sign in re.sub('"[^"]*"', "", line.strip(" "))), ",")
        fields = _fields(line, delimiter)
        named = any(field.strip() and not _NUMBER.fullmatch(field) for field in fields)
        names = tuple(field.strip() for field in fields) if named else tuple(map(str, range(len(fields))))
        chosen = _chosen(path, names if named else (), len(fields), columns)
        rows, step, begins, quoted = _scan(path, file, after if named else first, delimiter != " ")
    files.unchanged(path, stamp)
    layout = Layout(delimiter, names, chosen, quoted, step, np.array(begins, "<u8").tobytes())
    unit = max(1, min(step, rows))
    source = Source("csv", path, (rows, len(chosen)), dtype or "float64", (stamp,), tuple(layout), unit)
    if rows:
        read(source, 0, 1)  # text among the numbers shows here already, and not in the first task
    return source


def _first_line(path: str, file: Any) -> tuple[int, str, int]:
    """The first line that is neither empty nor a comment: where it begins, its text, and where the next one begins."""
    head, place = b"", 0
    while True:
        end = head.find(b"\n", place)
        while end >= 0 and re.match(rb"[ \t\r]*(#|$)", head[place:end].removeprefix(_MARK)):
            end, place = head.find(b"\n", end + 1), end + 1
        block = b"" if end >= 0 or len(head) - place > LONGEST else file.read(1 << 16)
        if not block:
            break
        head += block
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in head:
        raise InputError(f"{path} is no text in UTF-8 (it has other bytes, such as NUL): store it as UTF-8, not packed")
    begin = len(_MARK) if place == 0 and head.startswith(_MARK) else place
    line = head[begin:] if end < 0 else head[begin:end]
    if not line.strip() or line.lstrip().startswith(b"#"):
        raise InputError(f"{path} is empty: it has no line of numbers, nor one of names")
    if b"\r" in line.rstrip(b"\r"):
        raise InputError(f"{path} {_ALONE}")
    try:
        return begin, line.decode().rstrip("\r"), len(head) if end < 0 else end + 1
    except UnicodeDecodeError as error:
        raise InputError(f"the names in {path} are not in UTF-8 ({error}): store it as UTF-8") from error


def _fields(line: str, delimiter: str) -> list[str]:
    return line.split() if delimiter == " " else next(csv.reader([line], delimiter=delimiter))


def _chosen(path: str, names: tuple[str, ...], count: int, columns: Sequence[str] | None) -> tuple[int, ...]:
    if columns is None:
        return tuple(range(count))
    if not names:
        raise InputError(f"columns={list(columns)!r}: {path} has no line of names, leave it out and take all {count}")
    if not columns:
        raise InputError(f"{path}: no columns are chosen among {', '.join(names)}: name some by columns=[...]")
    for name in columns:
        if names.count(name) != 1:
            raise InputError(f"{path} has {names.count(name)} columns {name!r}: it has {', '.join(names)}")
    return tuple(map(names.index, columns))


def _scan(path: str, file: Any, begin: int, quotes: bool) -> tuple[int, int, list[int], bool]:
    """How many rows there are from byte `begin` on, and in a piece; where pieces begin; and whether quotes occur."""
    rows, step, begins, quoted = 0, ROWS, [], False
    file.seek(begin)
    rest = b""  # the line that the last block did not end
    while block := file.read(BLOCK):
        block = rest + block
        ends, some = _ends(block, quotes)
        quoted |= some
        taken = int(ends[-1]) + 1 if len(ends) else 0
        rest = block[taken:]
        if block.count(b"\r", 0, taken) != block.count(b"\r\n", 0, taken):
            raise InputError(f"{path} {_ALONE}")
        if len(rest) > LONGEST:
            raise InputError(
                f"{path}: the line that begins at byte {begin + taken} has no end within {human(LONGEST)}: is a quote "
                "not closed?"
            )
        starts = np.concatenate([[0], ends[:-1] + 1]) if taken else ends
        lengths = ends - starts
        bare = np.frombuffer(block, np.uint8)[starts] == ord("\r")
        starts = starts[(lengths > 1) | ((lengths == 1) & ~bare)]  # an empty line is no row
        begins += (begin + starts[-rows % step :: step]).tolist()
        rows += len(starts)
        while len(begins) > MOST:
            begins, step = begins[::2], 2 * step
        begin += taken
    if rest.strip(b"\r" if quotes else b" \r"):  # no newline at the end
        begins += [begin] if rows % step == 0 else []
        rows += 1
        if quotes and b'"' in rest:
            quoted = True
            if rest.count(b'"') % 2:
                raise InputError(f"{path}: the quote in the line that begins at byte {begin} is not closed")
    return rows, step, begins, quoted


def _ends(block: bytes, quotes: bool) -> tuple[Array, bool]:
    """Where lines end, not counting the ends that stand in quotes, and whether there are quotes."""
    signs = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(signs == ord("\n"))
    if not quotes or b'"' not in block:
        return ends, False
    before = np.searchsorted(np.flatnonzero(signs == ord('"')), ends)
    return ends[before % 2 == 0], True


def _pieces(source: Source, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Of each piece that holds some of the rows: its first row, its first byte, and its last byte plus one."""
    layout = Layout(*source.details)
    begins = [*np.frombuffer(layout.begins, "<u8").tolist(), source.stamp[0][0]]
    for k in range(start // layout.step, -(-stop // layout.step) if stop > start else 0):
        yield k * layout.step, begins[k], begins[k + 1]


def read(source: Source, start: int, stop: int) -> Array:
    rows: Array = np.empty((stop - start, source.shape[1]), source.dtype)
    layout = Layout(*source.details)
    with files.opened(source.path) as file:
        for first, begin, end in _pieces(source, start, stop):
            lo, hi = max(start, first), min(stop, first + layout.step)
            piece = bytearray(end - begin)
            files.fill(file, begin, memoryview(piece))
            table = _parsed(source, layout, bytes(piece), first, begin)
            for k, column in enumerate(layout.chosen):
                values = table[str(column)].slice(lo - first, hi - lo).to_numpy()
                rows[lo - start : hi - start, k] = converted(source, values, lo)
    return rows


def _parsed(source: Source, layout: Layout, piece: bytes, first: int, begin: int) -> Any:
    """The chosen columns of a piece, named by their numbers."""
    parser, arrow = files.package("pyarrow.csv", "parquet", "reading csv"), import_module("pyarrow")
    count = min(layout.step, source.rows - first)
    if layout.delimiter == " ":
        piece = re.sub(rb" {2,}", b" ", re.sub(rb" *(\r?\n) *", rb"\1", piece.strip(b" ")))
    names = [str(k) for k in range(len(layout.names))]
    chosen = [str(k) for k in layout.chosen]
    try:
        table = parser.read_csv(
            arrow.BufferReader(piece),
            read_options=parser.ReadOptions(use_threads=False, block_size=LONGEST, column_names=names),
            parse_options=parser.ParseOptions(
                delimiter=layout.delimiter,
                quote_char=False if layout.delimiter == " " else '"',
                newlines_in_values=layout.quoted,
            ),
            convert_options=parser.ConvertOptions(
                column_types=dict.fromkeys(chosen, arrow.float64()),
                include_columns=list(dict.fromkeys(chosen)),
                null_values=[],
                strings_can_be_null=False,
            ),
        )
    except arrow.ArrowInvalid:
        _explain(source, layout, piece, first, begin)
        raise
    if table.num_rows != count:
        _explain(source, layout, piece, first, begin)
        raise InputError(
            f"rows {first}:{first + count} of {source.path} are {table.num_rows} when they are parsed: are there lines "
            "of blanks alone, or quotes that do not close?"
        )
    return table


def _explain(source: Source, layout: Layout, piece: bytes, first: int, begin: int) -> None:
    """Raise InputError for the first row of a piece that is not as it should be, if one is found."""
    with files.opened(source.path, BLOCK) as file:
        line, left = 1, begin
        while left and (block := file.read(min(BLOCK, left))):
            line, left = line + block.count(b"\n"), left - len(block)
    quotes = None if layout.delimiter == " " else '"'
    text = io.StringIO(piece.decode("utf-8", "replace"), newline="")
    reader = csv.reader(text, delimiter=layout.delimiter, quotechar=quotes)
    row, ended = first, 0
    try:
        for fields in reader:
            at, ended = f"row {row} of {source.path} (line {line + ended})", reader.line_num
            if not fields:
                continue
            if len(fields) != len(layout.names):
                raise InputError(f"{at} has {len(fields)} fields, and the first line has {len(layout.names)}")
            for name, field in ((layout.names[k], fields[k]) for k in layout.chosen):
                if not field.strip():
                    raise InputError(f"{at} has no value in column {name!r}: fill it or leave the row out")
                if not _NUMBER.fullmatch(field):
                    raise InputError(
                        f"{at} has {field[:40]!r} in column {name!r}, which is no number: name the columns of numbers "
                        "by columns=[...]"
                    )
            row += 1
    except csv.Error:
        return


def check(source: Source, start: int, stop: int) -> None:
    files.unchanged(source.path, source.stamp[0])
