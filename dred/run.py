"""Where the sweeps of a call run: in this process, on the device of its arrays, or lazily on Dask."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from dred.errors import InputError, OptionError
from dred.formula.language import Variable
from dred.inputs import Inputs
from dred.kernel import engine
from dred.kernel.centre import centre
from dred.kernel.engine import Ready
from dred.kernel.environment import lookup
from dred.kernel.pattern import Pattern
from dred.ranges import Ranges
from dred.sweeps import Sweep

Place = tuple[slice, ...]  # of a part of the batch; () where it is all
Reducer = Callable[[Sweep, list[Any], int, int, Pattern | None], tuple[Any, ...]]


def run(planned: Sequence[Sweep], inputs: Inputs, reducer: Reducer, ranges: Ranges | None = None) -> tuple[Any, ...]:
    """The results: sweep by sweep, what one leaves is an argument of the next."""
    arrays = dict(enumerate(inputs.arrays))
    found: tuple[Any, ...] = ()
    for sweep in planned:
        M, N = inputs.rows if sweep.spec.axis == 1 else inputs.rows[::-1]
        for place, of in sweep.centres:
            if place not in arrays:
                arrays[place] = _centre(inputs.kind, arrays[of], sweep.spec.dtype)
        found = reducer(sweep, sweep.arguments(arrays), M, N, _along(ranges, sweep))
        arrays.update(zip(sweep.places, found, strict=False))  # the last one has results instead of places
    return found


def prepared(planned: Sequence[Sweep], inputs: Inputs, backend: str, device_id: int = -1) -> Ready | None:
    """What gives the results of a call with arrays like these, where their sizes and types decide it; None: more does.

    Parameters
    ----------
    planned : sequence of Sweep
        Of no batch.
    inputs : Inputs
    backend : str
        "auto", "cpu" or "cuda".
    device_id : int
        As of a call.
    """
    if inputs.kind == "dask" or inputs.batch or len(planned) > 1 or planned[0].centres:
        return None
    (sweep,) = planned
    M, N = inputs.rows if sweep.spec.axis == 1 else inputs.rows[::-1]
    if inputs.kind == "cupy":
        if backend == "cpu":
            return None
        from dred.kernel import cuda

        return cuda.prepared(sweep.spec, inputs.arrays, M, N, sweep.outputs, device_id)
    chosen = engine.placed(engine.device(backend), sweep.spec, M, N)
    return engine.prepared(sweep.spec, chosen, inputs.arrays, M, N, sweep.outputs)


def run_parts(
    planned: Sequence[Sweep],
    variables: Sequence[Variable],
    inputs: Inputs,
    ranges: Any,
    reducer: Callable[[Inputs, Place], Reducer],
) -> tuple[Any, ...]:
    """What all sweeps leave, (*batch, rows, ...); of dask arrays, part by part of the batch.

    Parameters
    ----------
    planned : sequence of Sweep
        Of no batch.
    variables : sequence of Variable
        The declared ones.
    inputs : Inputs
    ranges
        As of a call.
    reducer : callable
        What runs the sweeps of some inputs, which are those of a part of the batch.
    """
    pairs = None if ranges is None else Ranges.of(ranges, *inputs.rows)
    if not inputs.batch or inputs.kind != "dask":
        return run(_batched(planned, inputs) if inputs.batch else planned, inputs, reducer(inputs, ()), pairs)
    from dred.cluster import batch

    parts = [
        (place, run(_batched(planned, part), part, reducer(part, place), pairs))
        for place, part in batch.blocks(inputs, variables)
    ]
    return batch.joined(inputs.batch, parts)


def _batched(planned: Sequence[Sweep], inputs: Inputs) -> Sequence[Sweep]:
    """The sweeps for these arrays, of which some have the dimensions of a batch."""
    return [sweep.batched(inputs.batch, inputs.own) for sweep in planned]


def _along(ranges: Ranges | None, sweep: Sweep) -> Pattern | None:
    return None if ranges is None else ranges.along(sweep.spec.axis)


def _centre(kind: str, points: Any, dtype: str) -> Any:
    """The mean of all rows."""
    if kind == "cupy":
        with points.device:
            return centre(points, dtype)
    if kind == "numpy":
        return centre(points, dtype)
    from dred.cluster.centre import centre as lazily

    return lazily(points, dtype)


def _on_host(backend: str, device_id: int, inputs: Inputs, place: Place = ()) -> Reducer:
    return partial(_here, engine.device(backend), device_id)


def _here(
    found: str, device_id: int, sweep: Sweep, arrays: list[Any], M: int, N: int, pattern: Pattern | None
) -> tuple[Any, ...]:
    spec = sweep.spec
    chosen = engine.placed(found, spec, M, N, pattern=pattern)
    return engine.reduce(spec, chosen, arrays, M, N, sweep.outputs, pattern=pattern, device_id=device_id)


def _on_device(backend: str, device_id: int, inputs: Inputs, place: Place = ()) -> Reducer:
    if backend == "cpu":
        raise InputError("backend='cpu' cannot take CuPy arrays: convert them with cupy.asnumpy, or use backend='cuda'")
    from dred.kernel import cuda

    device_id = cuda.placed(inputs.device, device_id)

    def reducer(sweep: Sweep, arrays: list[Any], M: int, N: int, pattern: Pattern | None) -> tuple[Any, ...]:
        found: tuple[Any, ...] = cuda.reduce_device(
            sweep.spec, arrays, M, N, outputs=sweep.outputs, pattern=pattern, device_id=device_id
        )
        return found

    return reducer


def _lazily(backend: str, device_id: int, inputs: Inputs, place: Place = ()) -> Reducer:
    if device_id >= 0:
        raise OptionError(f"device_id={device_id}: with dask arrays every worker uses its own device, leave it at -1")
    from dred.cluster import graph

    def reducer(sweep: Sweep, arrays: list[Any], M: int, N: int, pattern: Pattern | None) -> tuple[Any, ...]:
        return graph.reduce(sweep.spec, arrays, sweep.outputs, backend, label=sweep.label, pattern=pattern)

    return reducer


REDUCERS: Mapping[str, Callable[..., Reducer]] = {
    "numpy": _on_host,
    "cupy": _on_device,
    "dask": _lazily,
}


_backend = lookup("DASK_DRED__BACKEND")


def configured() -> str:
    """What `dred.backend` of dask's configuration says, where dask is loaded or the environment says it."""
    if "dask" not in sys.modules and _backend() is None:
        return "auto"
    from dred.cluster import config

    return engine.named(config.backend())
