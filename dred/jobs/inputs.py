"""The arrays of a job: what is stored as lazy dask arrays that tasks read by path, parameters as NumPy arrays."""

from __future__ import annotations

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
        if self.source is not None:
            return f"{self.source}, {self.source.stamp}, {self.source.details}"
        return repr(np.asarray(self.array).tolist())


def opened(job: Job, variables: Sequence[Variable]) -> tuple[Points, ...]:
    """The arrays of all variables of a job, by position.

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
    found = tuple(_points(each, v, stored.get(each.name), dtype) for each, v in zip(job.data, variables, strict=True))
    if all(points.cat == 2 for points in found):
        raise JobError("the formula has parameters only: a job reduces over points, declared as Vi(dim) or Vj(dim)")
    return found


def _points(data: Data, v: Variable, source: Source | None, dtype: str) -> Points:
    if v.cat == 2 or source is None:
        values = _numbers(data, dtype) if source is None else _small(data, source)
        array = values.reshape(-1) if v.cat == 2 and values.size == max(values.shape, default=1) else values
        if v.cat != 2:
            array = array.reshape(-1, 1) if array.ndim < 2 and v.dim == 1 else np.atleast_2d(array)
            return Points(data.name, v.cat, held(array), None, lambda start, stop: array[start:stop])
        return Points(data.name, v.cat, array, source, lambda start, stop: array)
    if len(source.shape) == 1 and v.dim == 1:  # one number in each row
        source = replace(source, shape=(source.rows, 1))
    return Points(data.name, v.cat, lazy(source, data.chunks), source, lambda a, b: sources.read(source, a, b))


def _small(data: Data, source: Source) -> Array:
    if source.nbytes > SMALL:
        raise InputError(f"{data.name}: {source} is no parameter, of which each task is given all: it is too large")
    return sources.read(source, 0, source.rows)


def _numbers(data: Data, dtype: str) -> Array:
    try:
        values = np.asarray(data.value, dtype)
    except (TypeError, ValueError) as error:
        raise InputError(f"value of {data.name} holds no numbers in equal rows: {error}") from error
    if values.ndim > 2:
        raise InputError(f"value of {data.name} has shape {values.shape}: give a number, a list, or a list of rows")
    return values
