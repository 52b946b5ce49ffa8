"""Ranges of components as nested loops, and how they are cut where a vector changes its order."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from dred.kernel.ir import Index, Loop


class Split(Exception):
    """A component loop straddles a border: it must be cut at a counter value."""

    def __init__(self, loop: Loop, at: int) -> None:
        self.loop, self.at = loop, at


class Nest(Exception):
    """A component loop runs over several rows of an array: it must become a loop over rows around one over `size`."""

    def __init__(self, loop: Loop, size: int) -> None:
        self.loop, self.size = loop, size


class Piece(NamedTuple):
    """A part of a range of components: an offset, and nested loops (length, distance from turn to turn)."""

    offset: int
    loops: tuple[tuple[int, int], ...]

    @staticmethod
    def whole(length: int) -> Piece:
        return Piece(0, ((length, 1),))

    @property
    def size(self) -> int:
        return prod(length for length, _ in self.loops)

    def place(self, depth: int) -> Index:
        """The component number, for loops from `depth` on; loops of one turn are none."""
        real = [(length, stride) for length, stride in self.loops if length > 1]
        return Index(self.offset, tuple((Loop(depth + n, length), c) for n, (length, c) in enumerate(real)))

    def cut(self, depth: int, wish: Split | Nest) -> list[Piece] | None:
        """The pieces that one of its loops is cut into, last one first; None where the loop is another's."""
        real = [loop for loop in self.loops if loop[0] > 1]
        n = wish.loop.depth - depth
        if not 0 <= n < len(real) or real[n][0] != wish.loop.length:
            return None
        length, stride = real[n]
        parts: list[tuple[int, tuple[tuple[int, int], ...]]]
        if isinstance(wish, Nest):
            parts = [(self.offset, ((length // wish.size, stride * wish.size), (wish.size, stride)))]
        else:
            cut = self.offset + wish.at * stride
            parts = [(cut, ((length - wish.at, stride),)), (self.offset, ((wish.at, stride),))]
        return [Piece(offset, (*real[:n], *new, *real[n + 1 :])) for offset, new in parts]

    def components(self) -> list[int]:
        """All component numbers, one by one."""
        out = [self.offset]
        for length, stride in self.loops:
            out = [at + k * stride for at in out for k in range(length)]
        return out


def divided(index: Index, size: int) -> tuple[Index, Index]:
    """Quotient and remainder of an index; a loop for which they are none is cut, or becomes two."""
    whole: list[tuple[Loop, int]] = []
    rest: list[tuple[Loop, int]] = []
    for loop, c in index.terms:
        (rest if c % size else whole).append((loop, c))
    quotient = Index(index.offset // size, tuple((loop, c // size) for loop, c in whole))
    remainder = Index(index.offset % size, tuple(rest))
    if remainder.last < size:
        return quotient, remainder
    loop, stride = max(rest, key=lambda term: (term[1] * term[0].length, term[1]))
    if len(rest) > 1 or stride > 1:
        raise Split(loop, loop.length // 2)
    if remainder.offset:
        raise Split(loop, size - remainder.offset)
    if left := loop.length % size:
        raise Split(loop, loop.length - left)
    raise Nest(loop, size)
