"""Batches: arrays with leading dimensions that broadcast, as runs of batches whose places in memory are multiples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from math import prod
from typing import Any

import numpy as np

from dred.kernel.spec import KernelSpec


def runs(spec: KernelSpec, arrays: Sequence[Any]) -> Iterator[tuple[int, int, list[Any]]]:
    """Batches that one call of a kernel can take, in their order.

    Dimensions that each array has or lacks together are one. The last one is a run; kernels see a distance from batch
    to batch, which is 0 for what all share.

    Parameters
    ----------
    spec : KernelSpec
        With a batch.
    arrays : sequence of arrays
        By position, each of the shape (*own, rows, dim), or (*own, dim) for parameters, where own is `spec.own` of its
        variable. Those that the formulas do not read may be anything.

    Yields
    ------
    first, count : int
        Number of the first batch of a run, and of batches.
    arrays : list of arrays
        (count, rows, dim), or (rows, dim) where all batches of the run share it; parameters without rows.
    """
    batch = spec.batch
    read = {v.ind: v for v in spec.read}
    has = {ind: [size > 1 for size in spec.own_of(ind)] for ind in read}
    kept = [d for d, size in enumerate(batch) if size > 1]
    groups = [list(some) for _, some in groupby(kept, lambda d: [mine[d] for mine in has.values()])]
    sizes = [prod(batch[d] for d in some) for some in groups] or [1]
    given = list(arrays)
    mine: dict[int, list[bool]] = {}  # of the dimensions that are left
    for ind, v in read.items():
        mine[ind] = [has[ind][some[0]] for some in groups] or [False]
        tail = arrays[ind].shape[len(batch) :]
        assert len(tail) == (1 if v.cat == 2 else 2), "an array is not of the shape that the batch says"
        given[ind] = arrays[ind].reshape(*(n for n, there in zip(sizes, mine[ind], strict=True) if there), *tail)
    for number, lead in enumerate(np.ndindex(*sizes[:-1])):
        chosen = list(given)
        for ind in read:
            chosen[ind] = given[ind][tuple(k for k, there in zip(lead, mine[ind], strict=False) if there)]
        yield number * sizes[-1], sizes[-1], chosen
