"""Arguments of a reduction as dask arrays whose blocks are those of the plan."""

# mypy: allow-untyped-calls
# (dask is typed in part)

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import dask.array as da
import numpy as np

from dred.cluster import config, tasks
from dred.cluster.plan import Axis, Plan, Sizes, human
from dred.errors import InputError
from dred.formula.language import Variable
from dred.formula.node import I, J, Node, toposort
from dred.kernel import engine
from dred.kernel.spec import KernelSpec

KINDS = ("i", "j", "parameter")


def measure(spec: KernelSpec, arrays: Sequence[Any]) -> Sizes:
    """Sizes of the problem, read off shapes, dtypes and chunks: nothing is computed.

    Variables that the formula does not read count for rows and chunks; they travel nowhere.

    Raises
    ------
    InputError
        Unknown chunk sizes, rows that disagree, or a NumPy array too large to travel in a graph.
    """
    read = tasks.read(spec)
    for variable in spec.variables:
        _check(variable, arrays[variable.ind], variable in read)
    itemsize = np.dtype(spec.dtype).itemsize
    parameters = [v.dim for v in read if v.cat == 2]
    return Sizes(
        x=_axis(spec, arrays, 1 - spec.axis),
        y=_axis(spec, arrays, spec.axis),
        parameters=len(parameters),
        parameter_bytes=itemsize * sum(parameters),
        state_row_bytes=sum(field.nbytes for field in engine.empty(spec, 1)),
        out_row_bytes=itemsize * spec.dim,
        operations=operations(spec.formula),
    )


def prepare(spec: KernelSpec, arrays: Sequence[Any], plan: Plan) -> list[da.Array]:
    """For each variable that the formula reads, a dask array in the blocks of the plan, its columns in one chunk."""
    blocks = {1 - spec.axis: plan.x_blocks, spec.axis: plan.y_blocks}
    return [
        _in_blocks(arrays[v.ind], ((v.dim,),) if v.cat == 2 else (blocks[v.cat], (v.dim,))) for v in tasks.read(spec)
    ]


def operations(formula: Node) -> int:
    """Scalar operations per pair (i, j): the components that each node varying with both indices reads or makes."""
    per_pair = (n for n in toposort([formula]) if n.axes == I | J)
    return formula.dim + sum(max([n.dim, *(a.dim for a in n.args)]) for n in per_pair)


def _check(variable: Variable, array: Any, read: bool) -> None:
    name = f"argument {variable.ind} ({KINDS[variable.cat]})"
    if not isinstance(array, da.Array):
        most = config.graph_bytes()
        if read and array.nbytes > most:
            raise InputError(
                f"{name}: a NumPy array of {human(array.nbytes)} beside dask arrays would travel inside the task "
                f"graph, which is limited to {human(most)} (dred.graph-bytes in dask's configuration). Store it where "
                "the workers can read it and pass e.g. dask.array.from_zarr(...), or make every argument a NumPy array"
            )
    elif any(math.isnan(size) for chunks in array.chunks for size in chunks):
        raise InputError(
            f"{name}: the chunk sizes of this dask array are unknown, its shape is {_shape(array)}. "
            "Call its compute_chunk_sizes() first: blocks are planned by their rows"
        )


def _shape(array: da.Array) -> str:
    sizes = ["?" if math.isnan(n) else str(n) for n in array.shape]
    return f"({', '.join(sizes)}{',' * (len(sizes) == 1)})"


def _axis(spec: KernelSpec, arrays: Sequence[Any], category: int) -> Axis:
    rows = {v.ind: int(arrays[v.ind].shape[0]) for v in spec.variables if v.cat == category}
    if not rows:
        return Axis(rows=1, row_bytes=0, arrays=0, chunks=(1,))
    if len(set(rows.values())) > 1:
        counts = ", ".join(f"argument {ind} has {n}" for ind, n in rows.items())
        raise InputError(f"all variables of index {KINDS[category]} need the same number of rows: {counts}")
    cuts = [arrays[ind].chunks[0] for ind in rows if isinstance(arrays[ind], da.Array)]
    read = [v.dim for v in tasks.read(spec) if v.cat == category]
    return Axis(
        rows=next(iter(rows.values())),
        row_bytes=np.dtype(spec.dtype).itemsize * sum(read),
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
