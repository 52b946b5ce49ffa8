"""The arrays of a job: what is stored as lazy dask arrays that tasks read by path, parameters as NumPy arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dred.cluster import sources
from dred.cluster.arrays import held, lazy
from dred.cluster.stored import Source
from dred.errors import DtypeError, InputError, JobError
from dred.formula.language import Variable
from dred.jobs.job import Data, Job

Array = NDArray[Any]
BLOCKS = 64  # of kept rows, where a job says nothing of chunks: results are finished, and kept, block by block
LEAST = 1024  # rows of such a block
SMALL = 64 << 20  # bytes of a parameter, or of numbers that a job file holds
TYPE = "float64"  # of numbers in a job file, where neither it nor anything stored says another


@dataclass(frozen=True)
class Points:
    """The numbers of a variable.

    Attributes
    ----------
    name : str
    cat : int
        0, 1 or 2, as in formulas.
    array : dask or NumPy array
        (rows, dim), or (dim,) of a parameter.
    source : Source or None
        What is stored; None: the numbers stand in the job file.
    read : callable
        (start, stop) -> NumPy array of these rows; of a parameter all of it.
    """

    name: str
    cat: int
    array: Any
    source: Source | None
    read: Callable[[int, int], Array]

    @property
    def identity(self) -> str:
        """What its numbers depend on."""
        if self.source is None:
            return _digest(f"{self.name} (in the job)", self.read(0, self.array.shape[0]).tolist())
        return _digest(str(self.source), self.source)


def _digest(text: str, of: Any) -> str:
    return f"{text}, fingerprint {hashlib.blake2b(repr(of).encode(), digest_size=12).hexdigest()}"


def opened(job: Job, variables: Sequence[Variable], axis: int) -> tuple[Points, ...]:
    """The arrays of all variables of a job, by position.

    Parameters
    ----------
    job : Job
    variables : sequence of Variable
        Those of its routine.
    axis : int
        That of its routine, which for a gradient may be another than the job's.

    Raises
    ------
    JobError
        As many arrays as variables are not given, or nothing is stored.
    InputError, DtypeError
        Nothing there, or of another shape; types that differ, where the job states none.
    """
    if len(job.data) != len(variables):
        given = len(job.data) - len(job.aliases)
        raise JobError(f"the gradient takes {len(variables) - len(job.aliases)} cotangents, got {given}")
    stored = {each.name: sources.open_source(each.path, each.columns, job.dtype) for each in job.data if each.path}
    kinds = {name: source.dtype for name, source in stored.items()}
    if len(set(kinds.values())) > 1:
        each_kind = ", ".join(f"{name} {kind}" for name, kind in kinds.items())
        raise DtypeError(
            f"the arrays are of several types ({each_kind}): say dtype in the job, and all are converted when they "
            "are read"
        )
    dtype = job.dtype or next(iter(kinds.values()), TYPE)
    found = tuple(
        _points(each, v, stored.get(each.name), dtype, cut=v.cat == 1 - axis)
        for each, v in zip(job.data, variables, strict=True)
    )
    if all(points.cat == 2 for points in found):
        raise JobError("the formula has parameters only: a job reduces over points, declared as Vi(dim) or Vj(dim)")
    return found


def _points(data: Data, v: Variable, source: Source | None, dtype: str, cut: bool) -> Points:
    if v.cat == 2 or source is None:
        values = _numbers(data, dtype) if source is None else _small(data, source)
        array = values.reshape(-1) if v.cat == 2 and values.size == max(values.shape, default=1) else values
        if v.cat != 2:
            array = array.reshape(-1, 1) if array.ndim < 2 and v.dim == 1 else np.atleast_2d(array)
            return Points(data.name, v.cat, held(array), None, lambda start, stop: array[start:stop])
        return Points(data.name, v.cat, array, source, lambda start, stop: array)
    if len(source.shape) == 1 and v.dim == 1:  # one number in each row
        source = replace(source, shape=(source.rows, 1))
    chunks = _rows(source) if cut and data.chunks is None else data.chunks or "auto"
    return Points(data.name, v.cat, lazy(source, chunks), source, lambda a, b: sources.read(source, a, b))


def _rows(source: Source) -> int:
    """Rows of a block of a kept variable: whole pieces of what is stored, if those are small enough."""
    rows = max(LEAST, -(-source.rows // BLOCKS))
    return -(-rows // source.unit) * source.unit if source.unit <= rows else rows


def _small(data: Data, source: Source) -> Array:
    if source.nbytes > SMALL:
        raise InputError(f"{data.name}: {source} is no parameter, of which each task is given all: it is too large")
    return sources.read(source, 0, source.rows)


def _numbers(data: Data, dtype: str) -> Array:
    try:
        wide = np.asarray(data.value, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"value of {data.name} holds no numbers in equal rows: {error}") from error
    with np.errstate(over="ignore"):
        values = wide.astype(dtype)
    if (lost := np.isinf(values) & np.isfinite(wide)).any():
        raise InputError(f"value of {data.name} holds {wide[lost][0]}, which is beyond {dtype}: say a wider dtype")
    if values.ndim > 2:
        raise InputError(f"value of {data.name} has shape {values.shape}: give a number, a list, or a list of rows")
    return values
