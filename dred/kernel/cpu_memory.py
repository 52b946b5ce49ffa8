"""The memory that calls of compiled kernels work in: their arguments, scratch memory, and the tiles to do again."""

from __future__ import annotations

import ctypes
import struct
import sys
from collections.abc import Callable, Collection
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dred.kernel.llvm import SIGNATURE
from dred.kernel.llvm_lanes import Lanes

SPARE, SPARES = 1 << 21, 8  # bytes of scratch memory that is used again, and how many of them wait for that
TILES, WORDS = 64, 64  # in the tables of tiles to do again and of arguments, at least
HEAD = len(SIGNATURE) + 4  # words of a table of arguments, behind which are the pointers that two of them point to
BEHIND = 8 * HEAD

_first, _address = ctypes.c_byte.from_buffer, ctypes.addressof


def addresses(arrays: Collection[Any]) -> list[int]:
    """Where arrays, or bytearrays, begin; they are contiguous.

    That is faster than `array.ctypes.data`, as long as they may be written to.
    """
    try:
        return [*map(_address, map(_first, arrays))]
    except (TypeError, ValueError, BufferError):  # one is read-only, or of no bytes
        return [int(np.asarray(a).ctypes.data) for a in arrays]


def _data() -> int:
    """Where in the object of a NumPy array, which begins where `id` says, the address of its data is; 0: unknown."""
    if sys.implementation.name != "cpython":
        return 0
    array, place = np.empty(1), object.__basicsize__  # behind what every object has: a part of NumPy's C interface
    return place if ctypes.c_size_t.from_address(id(array) + place).value == array.ctypes.data else 0


DATA = _data()


class Sole(NamedTuple):
    """The only value of a row's state: its type, that of the arrays, and what it is of no terms."""

    acc: str
    dtype: str
    blank: float


def by_table(sole: Sole | None = None) -> str:
    """LLVM IR of `call(arguments)`, which calls `fold` with arguments from a table of 64-bit words.

    To convert a dozen arguments takes ctypes longer than a kernel takes for some hundred pairs, and so does finding the
    addresses of arrays: the first pointers behind the arguments may be objects of arrays, whose data is looked up here.
    Four words before them say how many, and where an object has the address of its data (`DATA`); and of how many rows
    a state of no terms is made here, which is afterwards rounded to the result, and which pointer is that of the
    result: the next one is that of the state. No rows: the state is the caller's, as it is where a row has more values.
    """
    kinds = ["ptr" if kind == "p" else "i64" for kind in SIGNATURE]
    lines = []
    for k, kind in enumerate(kinds):
        lines += [f"  %p{k} = getelementptr i64, ptr %arguments, i64 {k}", f"  %a{k} = load {kind}, ptr %p{k}, align 8"]
    for k, name in enumerate(("objects", "offset", "rows", "place"), HEAD - 4):
        lines += [f"  %q{k} = getelementptr i64, ptr %arguments, i64 {k}", f"  %{name} = load i64, ptr %q{k}, align 8"]
    given = ", ".join(f"{kind} %a{k}" for k, kind in enumerate(kinds))
    begin, end = ("", "") if sole is None else _by_row(sole)
    body = "\n".join(lines)
    look = """  %there = getelementptr i64, ptr %pointers, i64 %look
  %object = load ptr, ptr %there, align 8
  %at = getelementptr i8, ptr %object, i64 %offset
  %data = load ptr, ptr %at, align 8
  store ptr %data, ptr %there, align 8"""
    return f"""
define void @call(ptr %arguments) {{
start:
{body}
  %pointers = getelementptr i64, ptr %arguments, i64 {HEAD}
{_loop("look", "start", "objects", look)}
{begin}
  call void @fold({given})
{end}
  ret void
}}
"""


def _by_row(sole: Sole) -> tuple[str, str]:
    """The state of rows that have met no term, and the result that is read off it."""
    acc, out = Lanes(sole.acc), Lanes(sole.dtype)
    value, rounded = "%value", ""
    if acc.itemsize > out.itemsize:
        value, rounded = "%rounded", f"  %rounded = fptrunc {acc.scalar} %value to {out.scalar}"
    fill = f"""  %blank = getelementptr {acc.scalar}, ptr %state, i64 %fill
  store {acc.scalar} {acc.literal(sole.blank)}, ptr %blank, align {acc.itemsize}"""
    read = f"""  %from = getelementptr {acc.scalar}, ptr %state, i64 %read
  %value = load {acc.scalar}, ptr %from, align {acc.itemsize}
{rounded}
  %to = getelementptr {out.scalar}, ptr %result, i64 %read
  store {out.scalar} {value}, ptr %to, align {out.itemsize}"""
    begin = f"""  %result_at = getelementptr i64, ptr %pointers, i64 %place
  %result = load ptr, ptr %result_at, align 8
  %state_at = getelementptr i64, ptr %result_at, i64 1
  %state = load ptr, ptr %state_at, align 8
{_loop("fill", "look_end", "rows", fill)}"""
    return begin, _loop("read", "fill_end", "rows", read)


def _loop(name: str, before: str, count: str, body: str) -> str:
    """`for name in range(count): body`, behind the block `before`; what follows is in the block `name_end`."""
    return f"""  br label %{name}_next
{name}_next:
  %{name} = phi i64 [ 0, %{before} ], [ %{name}_after, %{name}_body ]
  %{name}_more = icmp slt i64 %{name}, %{count}
  br i1 %{name}_more, label %{name}_body, label %{name}_end
{name}_body:
{body}
  %{name}_after = add i64 %{name}, 1
  br label %{name}_next
{name}_end:"""


@cache
def packer(count: int) -> Callable[..., None]:
    """What writes so many words into memory."""
    return struct.Struct(f"{count}q").pack_into


class Scratch:
    """Memory that one share has for itself; its parts have addresses that stay.

    Attributes
    ----------
    at : int
        Address of scratch memory, a multiple of 64.
    size, room : int
        Bytes of scratch memory, and words of room.
    words, words_at
        Room for the arguments of a call and what some of them point to.
    packed
        Whose arguments are in there, but for the pointers; None: of nobody who comes again.
    redo, redo_at
        Table of the tiles that are to be done again; it has the bytes `blank` where there are none.
    """

    __slots__ = ("at", "blank", "memory", "packed", "redo", "redo_at", "room", "size", "tiles", "words", "words_at")

    def __init__(self, size: int, words: int) -> None:
        self.size, self.room = size, max(words, WORDS)
        self.memory, self.words = np.empty(size + 64, np.uint8), bytearray(8 * self.room)
        start, self.words_at = addresses((self.memory, self.words))
        self.at = start + -start % 64
        self.hold(TILES)

    def hold(self, tiles: int) -> None:
        """Makes a blank table of so many tiles."""
        self.packed: Any = None  # the table has another address
        self.tiles, self.blank = tiles, b"\xff" * (16 * tiles)  # -1: nothing
        self.redo = bytearray(self.blank)
        (self.redo_at,) = addresses((self.redo,))

    def noted(self) -> NDArray[np.int64]:
        """The table of tiles, which is blank afterwards."""
        found = np.frombuffer(bytes(self.redo), np.int64).reshape(-1, 2)
        self.redo[:] = self.blank
        return found


_spare: list[Scratch] = []  # whoever takes one has it alone; what an error or a fork takes along is not missed


def taken(size: int, words: int) -> Scratch:
    """Memory of these sizes: that which was used last, and is in the caches, if it is large enough."""
    try:
        found = _spare.pop()
        if found.size >= size and found.room >= words:
            return found
    except IndexError:
        pass
    return Scratch(size, words)


def given_back(scratch: Scratch) -> None:
    """Memory that is no longer in use, and whose table of tiles is blank."""
    if len(_spare) < SPARES and scratch.size < SPARE:
        _spare.append(scratch)
