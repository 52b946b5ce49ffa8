"""Batches of dask arrays: each block of the batch is a problem of its own, whose rows carry all its elements."""

# mypy: allow-untyped-calls
# (dask is typed in part)

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise, product
from math import prod
from typing import Any

import dask.array as da
import numpy as np

from dred.formula.language import Variable
from dred.inputs import Inputs
from dred.kernel.output import array_module

Place = tuple[slice, ...]  # elements of a batch, in each of its dimensions


def blocks(inputs: Inputs, variables: Sequence[Variable]) -> Iterator[tuple[Place, Inputs]]:
    """The parts of a batch that lie in one chunk of each array, each with its own inputs.

    Of these, arrays are (rows, values), or (values,) for parameters: a row has the vectors of all elements of the part,
    one after another, as far as the array has them.
    """
    each = list(zip(inputs.arrays, variables, inputs.own, strict=True))

    def cuts(d: int) -> list[slice]:
        """A dimension of the batch, cut where a dask array is."""
        bounds = {0, inputs.batch[d]}
        for a, v, own in each:
            if own[d] > 1 and isinstance(a, da.Array):
                bounds.update(accumulate(map(int, a.chunks[d - len(own) - _tail(v)])))
        return [slice(low, high) for low, high in pairwise(sorted(bounds))]

    for place in product(*map(cuts, range(len(inputs.batch)))):
        shape = tuple(part.stop - part.start for part in place)
        own = tuple(tuple(n if size > 1 else 1 for n, size in zip(shape, o, strict=True)) for _, _, o in each)
        arrays = tuple(_by_row(a, v, o, place) for a, v, o in each)
        yield place, inputs._replace(arrays=arrays, batch=shape, own=own)


def _tail(v: Variable) -> int:
    """Dimensions of an array behind those of the batch."""
    return 1 if v.cat == 2 else 2


def _by_row(array: Any, v: Variable, own: Sequence[int], place: Place) -> Any:
    """The array of a part of the batch, the rows in front."""
    tail = _tail(v)
    lead = array.ndim - tail
    if not lead:
        return array
    mine = array[tuple(part if n > 1 else slice(0, 1) for n, part in zip(own[-lead:], place[-lead:], strict=True))]
    if not isinstance(mine, da.Array):
        return _rows(mine, lead)
    mine = mine.rechunk({**dict.fromkeys(range(lead), -1), mine.ndim - 1: -1})
    chunks = (*mine.chunks[lead:-1], (prod(mine.shape[:lead]) * v.dim,))
    meta = np.empty((0,) * tail, mine.dtype)
    return da.map_blocks(_rows, mine, lead, chunks=chunks, drop_axis=[*range(lead)], dtype=mine.dtype, meta=meta)


def _rows(block: Any, lead: int) -> Any:
    """(*own, rows, dim) as (rows, values), of a parameter (*own, dim) as (values,)."""
    if block.ndim == lead + 1:
        return block.reshape(-1)
    values = prod(block.shape[:lead]) * block.shape[-1]
    return _library(block).moveaxis(block, -2, 0).reshape((block.shape[-2], values))


def _library(array: Any) -> Any:
    return da if isinstance(array, da.Array) else array_module(array)


def joined(batch: Sequence[int], found: Sequence[tuple[Place, tuple[Any, ...]]]) -> tuple[Any, ...]:
    """The results of all parts, (rows, *part, ...) each, as arrays (*batch, rows, ...); or the targets they are in."""
    if isinstance(found[0][1][0], Part):
        return tuple(part.target for part in found[0][1])
    arrays = [[_library(a).moveaxis(a, 0, len(batch)) for a in results] for _, results in found]
    for d in reversed(range(len(batch))):
        cuts = len({place[d].start for place, _ in found})
        runs = [arrays[k : k + cuts] for k in range(0, len(arrays), cuts)]
        arrays = [
            [_library(same[0]).concatenate(same, axis=d) if same[1:] else same[0] for same in zip(*run, strict=True)]
            for run in runs
        ]
    return tuple(arrays[0])


@dataclass(frozen=True)
class Part:
    """A part of the batch of a target, an array (*batch, rows, ...), as an array (rows, *part, ...)."""

    target: Any
    place: Place

    @property
    def shape(self) -> tuple[int, ...]:
        n = len(self.place)
        rest = self.target.shape[n:]
        return (rest[0], *(part.stop - part.start for part in self.place), *rest[1:])

    @property
    def dtype(self) -> Any:
        return self.target.dtype

    def __setitem__(self, rows: slice, values: Any) -> None:
        self.target[(*self.place, rows)] = np.moveaxis(values, 0, len(self.place))
