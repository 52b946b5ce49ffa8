"""Where the sweeps of a call run: in this process, on the device of its arrays, or lazily on Dask."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dred.errors import InputError, OptionError
from dred.inputs import Inputs
from dred.kernel import engine
from dred.kernel.centre import centre
from dred.sweeps import Sweep

Reducer = Callable[[Sweep, list[Any], int, int], tuple[Any, ...]]


def run(planned: Sequence[Sweep], inputs: Inputs, reducer: Reducer) -> tuple[Any, ...]:
    """The results: sweep by sweep, what one leaves is an argument of the next."""
    if len(planned) == 1 and not planned[0].centres:  # nothing that one sweep leaves to another
        (sweep,) = planned
        M, N = inputs.rows if sweep.spec.axis == 1 else inputs.rows[::-1]
        return reducer(sweep, list(inputs.arrays), M, N)
    arrays = dict(enumerate(inputs.arrays))
    found: tuple[Any, ...] = ()
    for sweep in planned:
        M, N = inputs.rows if sweep.spec.axis == 1 else inputs.rows[::-1]
        for place, of in sweep.centres:
            if place not in arrays:
                arrays[place] = _centre(inputs.kind, arrays[of], sweep.spec.dtype)
        found = reducer(sweep, sweep.arguments(arrays), M, N)
        arrays.update(zip(sweep.places, found, strict=False))  # the last one has results instead of places
    return found


def _centre(kind: str, points: Any, dtype: str) -> Any:
    """The mean of all rows."""
    if kind == "cupy":
        with points.device:
            return centre(points, dtype)
    if kind == "numpy":
        return centre(points, dtype)
    from dred.cluster.centre import centre as lazily

    return lazily(points, dtype)


def _on_host(backend: str, device_id: int, inputs: Inputs) -> Reducer:
    found = engine.device(backend)

    def reducer(sweep: Sweep, arrays: list[Any], M: int, N: int) -> tuple[Any, ...]:
        spec = sweep.spec
        chosen = engine.placed(found, spec, M, N)
        return engine.reduce(spec, chosen, arrays, M, N, sweep.outputs, device_id=device_id)

    return reducer


def _on_device(backend: str, device_id: int, inputs: Inputs) -> Reducer:
    if backend == "cpu":
        raise InputError("backend='cpu' cannot take CuPy arrays: convert them with cupy.asnumpy, or use backend='cuda'")
    from dred.kernel import cuda

    device_id = cuda.placed(inputs.device, device_id)

    def reducer(sweep: Sweep, arrays: list[Any], M: int, N: int) -> tuple[Any, ...]:
        found: tuple[Any, ...] = cuda.reduce_device(
            sweep.spec, arrays, M, N, outputs=sweep.outputs, device_id=device_id
        )
        return found

    return reducer


def _lazily(backend: str, device_id: int, inputs: Inputs) -> Reducer:
    if device_id >= 0:
        raise OptionError(f"device_id={device_id}: with dask arrays every worker uses its own device, leave it at -1")
    from dred.cluster import graph

    def reducer(sweep: Sweep, arrays: list[Any], M: int, N: int) -> tuple[Any, ...]:
        return graph.reduce(sweep.spec, arrays, sweep.outputs, backend, label=sweep.label)

    return reducer


REDUCERS: Mapping[str, Callable[[str, int, Inputs], Reducer]] = {
    "numpy": _on_host,
    "cupy": _on_device,
    "dask": _lazily,
}


def configured() -> str:
    """What `dred.backend` of dask's configuration says, where dask is loaded or the environment says it."""
    if "dask" not in sys.modules and "DASK_DRED__BACKEND" not in os.environ:
        return "auto"
    from dred.cluster import config

    return engine.named(config.backend())
