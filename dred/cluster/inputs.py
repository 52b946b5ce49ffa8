"""Arguments of a reduction: their sizes for the plan, and what its blocks are taken from."""

# mypy: allow-untyped-calls
# (dask is typed in part)

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import dask.array as da
import numpy as np

from dred.cluster import config
from dred.cluster.arrays import lazy, source_of
from dred.cluster.plan import Plan
from dred.cluster.sizes import Axis, Input, Sizes
from dred.errors import InputError, human
from dred.formula.language import Variable
from dred.kernel import engine
from dred.kernel.lower import lower
from dred.kernel.output import Output
from dred.kernel.pattern import Pattern
from dred.kernel.spec import KernelSpec, array_type

UNROLL = 32  # of the kernel whose instructions are counted; their number does not depend on it


def measure(
    spec: KernelSpec, arrays: Sequence[Any], outputs: Sequence[Output], pattern: Pattern | None = None
) -> Sizes:
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
    x, y = _axis(spec, arrays, 1 - spec.axis), _axis(spec, arrays, spec.axis)
    return Sizes(
        x=x,
        y=y,
        parameters=tuple(_input(spec, v, arrays[v.ind]) for v in parameters),
        parameter_bytes=sum(_row_of(spec, v) * spec.width(v) for v in parameters),
        state_row_bytes=sum(field.nbytes for field in engine.empty(spec, 1)),
        out_row_bytes=sum(_row_bytes(output.empty(spec)) for output in outputs),
        operations=operations(spec),
        outputs=len(outputs),
        batches=spec.batches,
        met=None if pattern is None else pattern.pairs,
        widened=np.dtype(spec.dtype).itemsize // array_type(spec.given).itemsize if spec.given else 0,
    )


def _row_of(spec: KernelSpec, variable: Variable) -> int:
    """Bytes of a row of a variable, of a parameter of a component."""
    dim = 1 if variable.cat == 2 else spec.width(variable)
    return int(array_type(spec.type_of(variable.ind)).itemsize * dim)


def _input(spec: KernelSpec, variable: Variable, array: Any) -> Input:
    row_bytes = _row_of(spec, variable)
    if not isinstance(array, da.Array):
        return Input(row_bytes)
    if variable.cat < 2 and source_of(array) is not None:
        return Input(row_bytes, stored=True)
    columns = len(array.chunks[1]) if variable.cat < 2 else 1
    return Input(row_bytes, tuple(map(int, array.chunks[0])), columns)


def _row_bytes(array: Any) -> int:
    """Bytes of a row of an array (0, ...)."""
    return int(array.itemsize * math.prod(array.shape[1:]))


def prepare(spec: KernelSpec, arrays: Sequence[Any], plan: Plan) -> list[Any]:
    """For each variable that the formula reads, what its blocks are taken from: a dask array, or a source to be read.

    Dask arrays are the caller's, in the caller's chunks; NumPy arrays are cut into the blocks of the plan, and so is
    what is stored, unless fold tasks read it.
    """
    blocks = {1 - spec.axis: plan.x_blocks, spec.axis: plan.y_blocks}

    def prepared(v: Variable) -> Any:
        array = arrays[v.ind]
        width = (spec.width(v),)
        chunks = (width,) if v.cat == 2 else (blocks[v.cat], width)
        if not isinstance(array, da.Array):
            return da.from_array(np.asarray(array), chunks=chunks)  # asarray: a memmap would travel whole, by its path
        source = source_of(array) if v.cat < 2 else None
        if source is None:
            return array
        return source if v.cat == spec.axis and plan.feed != "resident" else lazy(source, chunks[0])

    return [prepared(v) for v in spec.read]


def operations(spec: KernelSpec) -> int:
    """Instructions per pair (i, j), as kernels count them: an exponential is a dozen."""
    return round(lower(spec, UNROLL).cost)


def _travels(variable: Variable, array: Any) -> None:
    most = config.graph_bytes()
    if not isinstance(array, da.Array) and array.nbytes > most:
        raise InputError(
            f"argument {variable.ind} ({variable}): a NumPy array of {human(array.nbytes)} beside dask "
            f"arrays would travel inside the task graph, which is limited to {human(most)} (dred.graph-bytes in dask's "
            "configuration). Pass dred.from_array(...), which keeps it where the workers can read it"
        )


def _axis(spec: KernelSpec, arrays: Sequence[Any], category: int) -> Axis:
    there = [arrays[v.ind] for v in spec.variables if v.cat == category]
    if not there:
        return Axis(rows=1, chunks=(1,))
    cuts = [array.chunks[0] for array in there if isinstance(array, da.Array)]
    if category == spec.axis:  # what is stored can be read in any blocks
        cuts = [array.chunks[0] for array in there if isinstance(array, da.Array) and source_of(array) is None]
    return Axis(
        rows=int(there[0].shape[0]),
        inputs=tuple(_input(spec, v, arrays[v.ind]) for v in spec.read if v.cat == category),
        chunks=tuple(map(int, cuts[0])) if cuts else None,
    )
