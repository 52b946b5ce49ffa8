"""The sizes of a problem: all that a plan may know of it."""

from __future__ import annotations

from dataclasses import dataclass

from dred.cluster.cuts import Piece, pieces, whole


@dataclass(frozen=True)
class Input:
    """An array that the formula reads.

    Attributes
    ----------
    row_bytes : int
        Bytes of one row; of a parameter, of a component.
    chunks : tuple of int or None
        Rows of its chunks; None: it is cut as the plan says, at no cost (in this process's memory, or stored).
    columns : int
        Chunks of its columns.
    stored : bool
        Whether tasks can read its rows by path.
    """

    row_bytes: int
    chunks: tuple[int, ...] | None = None
    columns: int = 1
    stored: bool = False

    def assembled(self, blocks: tuple[int, ...]) -> list[tuple[Piece, ...]]:
        """The blocks that are no chunks as they are, each with the pieces of chunks that it is put together of."""
        if self.chunks is None:
            return []
        return [found for found in pieces(self.chunks, blocks) if self.columns > 1 or not whole(found)]


@dataclass(frozen=True)
class Axis:
    """One of the two indices: its rows, how the caller has cut it (None: not at all), and the arrays that are read."""

    rows: int
    inputs: tuple[Input, ...] = ()
    chunks: tuple[int, ...] | None = None

    @property
    def row_bytes(self) -> int:
        return sum(one.row_bytes for one in self.inputs)


@dataclass(frozen=True)
class Sizes:
    """All that a plan may know of a problem.

    Attributes
    ----------
    x, y : Axis
        The kept and the reduced index.
    parameters : tuple of Input
    parameter_bytes : int
        Bytes of all of them.
    state_row_bytes, out_row_bytes : int
        Bytes of the state of one kept row, and of its results.
    operations : int
        Instructions per pair (i, j).
    outputs : int
        Arrays of results.
    widened : int
        Times the bytes of its inputs that a fold holds besides, converted to the compute type.
    batches : int
        Elements of a batch.
    met : int or None
        Pairs of each of them that a pattern has; None: all.
    """

    x: Axis
    y: Axis
    parameters: tuple[Input, ...]
    parameter_bytes: int
    state_row_bytes: int
    out_row_bytes: int
    operations: int
    outputs: int = 1
    widened: int = 0
    batches: int = 1
    met: int | None = None

    @property
    def pairs(self) -> int:
        """Pairs that are visited, of all elements of the batch."""
        return self.batches * (self.x.rows * self.y.rows if self.met is None else self.met)

    @property
    def work(self) -> float:
        """Instructions per kept and reduced row, on the average, of all elements of the batch."""
        every = self.x.rows * self.y.rows
        return self.operations * self.batches * (1 if self.met is None or not every else self.met / every)
