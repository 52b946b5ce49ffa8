"""Workers made ready: kernels compiled before tasks come, caches bounded, the client's settings of dred."""

# mypy: allow-untyped-calls
# (dask is typed in part)

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import dask.config
from dask.base import tokenize
from distributed import WorkerPlugin

from dred.cluster import panels
from dred.cluster.backend import resolve
from dred.kernel import engine
from dred.kernel.spec import KernelSpec

PART = 4  # the panels that a worker keeps take no more than this part of its memory


class Ready(WorkerPlugin):
    """What a worker does when it starts, or when it is told: see `warm`.

    Parameters
    ----------
    specs : tuple of KernelSpec
        What it compiles.
    backend : str
        "cpu", "cuda" or "numpy".
    settings : mapping
        Section "dred" of dask's configuration.
    """

    def __init__(self, specs: tuple[KernelSpec, ...], backend: str, settings: Mapping[str, Any]) -> None:
        self.specs, self.backend, self.settings, self.home = specs, backend, settings, os.getpid()
        self.name = f"dred-{tokenize(specs, backend, settings)}"

    def setup(self, worker: Any) -> None:
        if os.getpid() != self.home:  # else they are this process's already
            dask.config.update(dask.config.config, {"dred": self.settings}, priority="new")
        limit = worker.memory_manager.memory_limit
        panels.bound(int(limit) // PART if limit else None)
        for spec in self.specs:
            engine.warm(spec, self.backend)

    def teardown(self, worker: Any) -> None:
        panels.bound(None)
        panels.clear()


def warm(client: Any, *routines: Any, dtype: Any = "float32", backend: str = "auto") -> None:
    """Make the workers of a cluster ready for routines: those that are there, and those that will join.

    They compile the kernels now, not in the first tasks; they take over this process's settings of dred in dask's
    configuration; and what they keep of stored arrays is bounded by a quarter of their memory. Returns when all are
    ready. Results do not depend on it.

    Parameters
    ----------
    client : distributed.Client
    *routines : Genred, Reduction, ...
    dtype : str or dtype, optional
        Of the arrays that they will be called with, unless a routine has a type of its own.
    backend : str, optional
        As in a call.

    Raises
    ------
    OptionError
        Another dtype.
    BackendError
        Workers that cannot run the backend.

    Examples
    --------
    >>> import dred
    >>> from distributed import Client
    >>> routine = dred.Genred("Exp(-SqDist(x,y))", ["x = Vi(3)", "y = Vj(3)"], axis=1)
    >>> with Client(processes=False, dashboard_address=":0") as client:
    ...     dred.warm(client, routine)
    """
    with client.as_current():
        chosen = resolve(backend)
    specs = dict.fromkeys(sweep.spec for routine in routines for sweep in routine.sweeps(routine.dtype or dtype))
    client.register_plugin(Ready(tuple(specs), chosen, dask.config.get("dred")))
