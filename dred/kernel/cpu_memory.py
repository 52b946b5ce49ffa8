"""The memory that calls of compiled kernels work in: their arguments, scratch memory, and the tiles to do again."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Collection
from functools import cache
from typing import Any

import numpy as np

from dred.kernel.llvm import SIGNATURE

SPARE, SPARES = 1 << 21, 8  # bytes of scratch memory that is used again, and how many of them wait for that
TILES, WORDS = 64, 64  # in the tables of tiles to do again and of arguments, at least
BEHIND = 8 * len(SIGNATURE)  # where, behind the arguments, the pointers begin that two of them point to

_first, _address = ctypes.c_byte.from_buffer, ctypes.addressof


def addresses(arrays: Collection[Any]) -> list[int]:
    """Where arrays, or bytearrays, begin; they are contiguous.

    That is faster than `array.ctypes.data`, as long as they may be written to.
    """
    try:
        return [*map(_address, map(_first, arrays))]
    except (TypeError, ValueError, BufferError):  # one is read-only, or of no bytes
        return [int(np.asarray(a).ctypes.data) for a in arrays]


def by_table() -> str:
    """LLVM IR of `call(arguments)`, which calls `fold` with arguments from a table of 64-bit words.

    To convert a dozen arguments takes ctypes longer than a kernel takes for some hundred pairs.
    """
    kinds = ["ptr" if kind == "p" else "i64" for kind in SIGNATURE]
    lines = []
    for k, kind in enumerate(kinds):
        lines += [f"  %p{k} = getelementptr i64, ptr %arguments, i64 {k}", f"  %a{k} = load {kind}, ptr %p{k}, align 8"]
    given = ", ".join(f"{kind} %a{k}" for k, kind in enumerate(kinds))
    body = "\n".join(lines)
    return f"\ndefine void @call(ptr %arguments) {{\n{body}\n  call void @fold({given})\n  ret void\n}}\n"


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
    words, words_at
        Room for the arguments of a call and what some of them point to.
    redo, redo_at
        Table of the tiles that are to be done again; it has the bytes `blank` where there are none.
    """

    __slots__ = ("at", "blank", "memory", "redo", "redo_at", "tiles", "words", "words_at")

    def __init__(self, size: int, words: int) -> None:
        self.memory, self.words = np.empty(size + 64, np.uint8), bytearray(8 * max(words, WORDS))
        start, self.words_at = addresses((self.memory, self.words))
        self.at = start + -start % 64
        self.hold(TILES)

    def hold(self, tiles: int) -> None:
        """Makes a blank table of so many tiles."""
        self.tiles, self.blank = tiles, b"\xff" * (16 * tiles)  # -1: nothing
        self.redo = bytearray(self.blank)
        (self.redo_at,) = addresses((self.redo,))


_spare: list[Scratch] = []  # whoever takes one has it alone; what an error or a fork takes along is not missed


def taken(size: int, words: int) -> Scratch:
    """Memory of these sizes: that which was used last, and is in the caches, if it is large enough."""
    try:
        found = _spare.pop()
        if found.memory.size >= size + 64 and len(found.words) >= 8 * words:
            return found
    except IndexError:
        pass
    return Scratch(size, words)


def given_back(scratch: Scratch) -> None:
    """Memory that is no longer in use, and whose table of tiles is blank."""
    if len(_spare) < SPARES and scratch.memory.size <= SPARE:
        _spare.append(scratch)
