"""Arguments of a reduction as dask arrays whose blocks are those of the plan."""

# mypy: allow-untyped-calls
# (dask is typed in part)

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import dask.array as da
import numpy as np

from dred.cluster import config
from dred.cluster.plan import Axis, Plan, Sizes
from dred.errors import InputError, human
from dred.formula.language import Variable
from dred.kernel import engine
from dred.kernel.lower import lower
from dred.kernel.output import Output
from dred.kernel.spec import KernelSpec, array_type

UNROLL = 32  # of the kernel whose instructions are counted; their number does not depend on it


def measure(spec: KernelSpec, arrays: Sequence[Any], outputs: Sequence[Output]) -> Sizes:
    """Sizes of the problem, read off shapes, dtypes and chunks: nothing is computed.

    Variables that the formula does not read count for rows and chunks; they travel nowhere.

    Raises
    ------
    InputError
        A NumPy array too large to travel in a graph.
    """
    for variable in spec.read:
        _travels(variable, arrays[variable.ind])
    parameters = [v for v in spec.read if v.cat == 2]
    return Sizes(
        x=_axis(spec, arrays, 1 - spec.axis),
        y=_axis(spec, arrays, spec.axis),
        parameters=len(parameters),
        parameter_bytes=_bytes_of(spec, parameters),
        state_row_bytes=sum(field.nbytes for field in engine.empty(spec, 1)),
        out_row_bytes=sum(_row_bytes(output.empty(spec)) for output in outputs),
        operations=operations(spec),
        outputs=len(outputs),
        widened=np.dtype(spec.dtype).itemsize // array_type(spec.given).itemsize if spec.given else 0,
    )


def _bytes_of(spec: KernelSpec, variables: Sequence[Variable]) -> int:
    """Bytes of a row of variables."""
    return sum(array_type(spec.type_of(v.ind)).itemsize * v.dim for v in variables)


def _row_bytes(array: Any) -> int:
    """Bytes of a row of an array (0, ...)."""
    return int(array.itemsize * math.prod(array.shape[1:]))


def prepare(spec: KernelSpec, arrays: Sequence[Any], plan: Plan) -> list[da.Array]:
    """For each variable that the formula reads, a dask array in the blocks of the plan, its columns in one chunk."""
    blocks = {1 - spec.axis: plan.x_blocks, spec.axis: plan.y_blocks}
    return [_in_blocks(arrays[v.ind], ((v.dim,),) if v.cat == 2 else (blocks[v.cat], (v.dim,))) for v in spec.read]


def operations(spec: KernelSpec) -> int:
    """Instructions per pair (i, j), as kernels count them: an exponential is a dozen."""
    return round(lower(spec, UNROLL).cost)


def _travels(variable: Variable, array: Any) -> None:
    most = config.graph_bytes()
    if not isinstance(array, da.Array) and array.nbytes > most:
        raise InputError(
            f"argument {variable.ind} ({variable}): a NumPy array of {human(array.nbytes)} beside dask "
            f"arrays would travel inside the task graph, which is limited to {human(most)} (dred.graph-bytes in dask's "
            "configuration). Store it where the workers can read it and pass e.g. dask.array.from_zarr(...)"
        )


def _axis(spec: KernelSpec, arrays: Sequence[Any], category: int) -> Axis:
    there = [arrays[v.ind] for v in spec.variables if v.cat == category]
    if not there:
        return Axis(rows=1, row_bytes=0, arrays=0, chunks=(1,))
    cuts = [array.chunks[0] for array in there if isinstance(array, da.Array)]
    read = [v for v in spec.read if v.cat == category]
    return Axis(
        rows=int(there[0].shape[0]),
        row_bytes=_bytes_of(spec, read),
        arrays=len(read),
        chunks=tuple(map(int, cuts[0])) if cuts else None,
    )


def _in_blocks(array: Any, chunks: tuple[tuple[int, ...], ...]) -> da.Array:
    if not isinstance(array, da.Array):
        array = da.from_array(np.asarray(array), chunks=chunks)  # asarray: a memmap would travel whole, and by its path
    if array.chunks != chunks:
        # "tasks": what a worker lost can be computed again block by block; a peer-to-peer shuffle starts over.
        array = array.rechunk(chunks, method="tasks")
    blocks: da.Array = array
    return blocks
