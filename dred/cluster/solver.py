"""Vectors of conjugate gradients as dask arrays: computed and kept block by block, one time to wait per iteration."""

# mypy: allow-untyped-calls
# (dask is typed in part)

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import dask.array as da
import numpy as np
from dask.base import compute as computed
from dask.base import persist

from dred.cluster import config, graph, inputs, spool
from dred.cluster.arrays import from_array, source_of
from dred.cluster.backend import ambient_client
from dred.cluster.plan import Plan
from dred.cluster.tasks import host
from dred.errors import InputError
from dred.kernel.pattern import Pattern
from dred.sweeps import Sweep

NAME = "dred-solve"  # of tasks
ARITY = 8  # of the sums of blocks
LONGEST = 16  # settlements, after which vectors come through this process and forget how they were computed

Reducer = Callable[[Sweep, list[Any], int, int, Pattern | None], tuple[Any, ...]]


def reducer(backend: str, plans: dict[Any, Plan], place: Any) -> Reducer:
    """What makes sweeps lazy, as `graph.reduce` does: plans are made once, for arrays of equal chunks."""

    def reduce(sweep: Sweep, arrays: list[Any], M: int, N: int, pattern: Pattern | None) -> tuple[Any, ...]:
        spec, outputs = sweep.spec, sweep.outputs
        key = (spec.token, repr(place), M, N, None if pattern is None else pattern.digest)
        if key not in plans:
            plans[key] = graph.lazily(spec, arrays, outputs, backend, label=sweep.label, pattern=pattern)
        return graph.build(spec, inputs.prepare(spec, arrays, plans[key]), outputs, plans[key])

    return reduce


def kept(arrays: Sequence[Any]) -> list[Any]:
    """Arrays that many graphs read, computed once; what is stored is read where it is."""
    mine = [k for k, a in enumerate(arrays) if isinstance(a, da.Array) and source_of(a) is None]
    there = dict(zip(mine, persist(*(arrays[k] for k in mine)), strict=True))
    return [there.get(k, a) for k, a in enumerate(arrays)]


def like_result(b: Any, batch: Sequence[int], result: Any) -> Any:
    """b for all elements of a batch, in the chunks of a result."""
    shape = (*batch, *b.shape[-2:])
    whole = b if isinstance(b, da.Array) else da.from_array(np.ascontiguousarray(b), chunks=-1)
    return da.broadcast_to(whole, shape).rechunk(result.chunks)


@dataclass(eq=False)
class Blocks:
    """Vectors (*batch, M, width) in blocks of rows: a `conjugate.Space`.

    Attributes
    ----------
    chunks : tuple
        Of a vector.
    axes : tuple of int
        Over which scalar products add up.
    product : callable
        A scalar product of blocks, over some axes.
    stack : callable
        What `stacked` does with an array.
    matrix : callable
        K p.
    reduce : callable
        The sum of a formula, for some inputs and ranges.
    alpha : float
    """

    chunks: tuple[tuple[int, ...], ...]
    axes: tuple[int, ...]
    product: Callable[..., Any]
    stack: Callable[[Any, int], Any]
    matrix: Callable[[Any], Any]
    reduce: Callable[[Any, Any, Any], Any]
    alpha: float
    age: int = field(default=0, init=False)
    spooled: list[Any] = field(default_factory=list, init=False)

    @property
    def lead(self) -> tuple[tuple[int, ...], ...]:
        """Chunks of the batch."""
        return self.chunks[:-2]

    def apply(self, p: Any) -> Any:
        """As in `conjugate.Space`."""
        q = self.matrix(p).rechunk(self.chunks)
        return self.map(partial(_shifted, alpha=self.alpha), (p.shape[-1], "float64"), q, p)

    def map(self, function: Callable[..., Any], like: Any, *arrays: Any) -> Any:
        """As in `conjugate.Space`."""
        if not isinstance(like, tuple):
            return self._map(function, like.chunks, like.dtype, *arrays)
        width, dtype = like
        rows = max((a.chunks[-2] for a in arrays), key=sum)
        return self._map(function, (*self.lead, rows, (int(width),)), dtype, *arrays)

    def _map(self, function: Callable[..., Any], chunks: Any, dtype: Any, *arrays: Any) -> Any:
        meta = np.empty((0,) * len(chunks), dtype)
        return da.map_blocks(partial(_quietly, function), *arrays, token=NAME, chunks=chunks, dtype=dtype, meta=meta)

    def total(self, function: Callable[..., Any], width: int, *arrays: Any) -> Any:
        """As in `conjugate.Space`."""
        rows = max((a.chunks[-2] for a in arrays), key=len)
        parts = self._map(function, (*self.lead, (1,) * len(rows), (int(width),)), "float64", *arrays)
        return parts.sum(axis=-2, keepdims=True, split_every=ARITY)

    def dots(self, *pairs: tuple[Any, Any]) -> Any:
        """As in `conjugate.Space`, all of them by one task for each block."""
        width = 1 if -1 in self.axes else int(sum(self.chunks[-1]))
        flat = [a for pair in pairs for a in pair]
        return self.total(partial(_products, partial(self.product, axes=self.axes)), width * len(pairs), *flat)

    def settle(self, vectors: Sequence[Any], numbers: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
        """As in `conjugate.Space`."""
        there = persist(*vectors, *numbers)
        ours = list(there[: len(vectors)])
        found = computed(*there[len(vectors) :])
        self.age += 1
        if self.age % LONGEST == 0 and ambient_client() is not None:
            ours = self._young(ours)
        return ours, found

    def _young(self, vectors: Sequence[Any]) -> list[Any]:
        """The same vectors without the graph that they came from.

        A scheduler remembers all that a block was computed from, in case that its worker dies: from the first iteration
        on, if it were not told to begin again. They come through this process, and go back inside a graph or, if they
        are large, by a file; where there is no such file that workers see, all is remembered.
        """
        arrays = computed(*vectors)
        old = self.spooled
        if max(a.nbytes for a in arrays) <= config.graph_bytes():
            made = [self.put(a) for a in arrays]
        elif self.lead:
            return list(vectors)
        else:
            try:
                made = [from_array(np.ascontiguousarray(a)).rechunk(self.chunks) for a in arrays]
            except InputError:
                return list(vectors)
            self.spooled = made
        there = list(persist(*made))
        for array in old:
            spool.release(source_of(array))
        return there

    def put(self, numbers: Any) -> Any:
        """As in `conjugate.Space`: of arrays with the dimensions of the batch, rows in the blocks of vectors."""
        array = np.asarray(numbers)
        front = array.shape[: array.ndim - 2]
        lead = self.lead if front == tuple(map(sum, self.lead)) else (front[:1], *self.lead)[: len(front)]
        rows = self.chunks[-2] if array.shape[-2] == sum(self.chunks[-2]) else array.shape[-2:-1]
        return da.from_array(array, chunks=(*lead, rows, array.shape[-1:]))

    spread = put

    def rows(self, arrays: Sequence[Any], numbers: Any) -> list[Any]:
        """As in `conjugate.Space`."""
        batch = numbers.shape[:-1]
        places = [*np.ndindex(*batch)]
        taken = [[_element(a, batch, at)[numbers[at]] for at in places] for a in arrays]
        found = computed(*taken)
        return [np.stack(list(map(np.asarray, each))).reshape(*batch, numbers.shape[-1], -1) for each in found]

    def largest(self, d: Any, flat: bool) -> Any:
        """As in `conjugate.Space`."""
        (found,) = computed((d.reshape(*d.shape[:-2], -1) if flat else d.sum(-1)).argmax(-1))
        return np.asarray(found)

    def stacked(self, columns: Any, width: int) -> Any:
        """As in `conjugate.Space`."""
        found = self.stack(columns.rechunk({0: -1, columns.ndim - 1: -1}), width)
        return found.rechunk((*self.chunks[:-1], (found.shape[-1],)))


def _element(array: Any, batch: Sequence[int], at: Sequence[int]) -> Any:
    """(rows, width) of an element of a batch, of an array that has some of its dimensions."""
    lead = array.shape[:-2]
    return array[tuple(k if n > 1 else 0 for k, n in zip(at[len(batch) - len(lead) :], lead, strict=True))]


def _shifted(q: Any, p: Any, alpha: float) -> Any:
    return q.astype("float64") + alpha * p


def _quietly(function: Callable[..., Any], *blocks: Any) -> Any:
    """A function of blocks in one layout, on which the order of sums depends, whether they have travelled or not."""
    with np.errstate(all="ignore"):
        return np.ascontiguousarray(function(*(np.ascontiguousarray(host(block)) for block in blocks)))


def _products(product: Callable[..., Any], *blocks: Any) -> Any:
    pairs = zip(blocks[::2], blocks[1::2], strict=True)
    return np.concatenate([product(a, b) for a, b in pairs], axis=-1)
