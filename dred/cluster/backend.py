"""Which backend a graph is built for: resolved once, on the caller's side."""

# mypy: allow-untyped-calls
# (dask is typed in part)

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import dask.base

from dred.cluster import config, tasks
from dred.errors import BackendError
from dred.kernel import engine


def resolve(backend: str, arrays: Sequence[Any] = (), checked: bool = True) -> str:
    """The name of a backend, never "auto".

    "auto" is, in this order: what `dred.backend` in dask's configuration says; "cuda" if an argument lives on a GPU;
    with a client, "cuda" if every worker has a GPU and "cpu" if none has; "cuda" if this process has a GPU; "cpu".
    Without a client and without llvmlite, "numpy" stands in for "cpu".

    Parameters
    ----------
    backend : str
    arrays : sequence of array
    checked : bool
        Whether a backend that is named must be there: not where it is only thought of.

    Raises
    ------
    BackendError
        Unknown name; "cuda" where there is no GPU; "auto" where some workers have a GPU and others none, or where
        there is no worker to ask.
    """
    if backend == "auto":
        backend = config.backend()
    if backend == "numpy":  # the interpreter: for tests and for comparison, no name that users are told
        return backend
    backend = engine.named(backend)
    if backend != "auto" and not checked:
        return backend
    if backend == "auto" and any(_on_gpu(array) for array in arrays):
        backend = "cuda"
    try:
        client = ambient_client()
    except RuntimeError as error:  # dask's word for the client of an asynchronous program
        if backend != "auto":
            return backend  # a worker that cannot honour it says so
        raise BackendError(
            f"backend='auto' asks the workers whether they have GPUs, which an asynchronous client cannot do here "
            f"({error}): name a backend"
        ) from error
    if client is None:
        return engine.local(backend)
    if backend == "cpu":
        return backend  # likewise
    workers = list(client.run(tasks.machine).values())
    chosen = _common(backend, with_gpu=sum(worker.gpus > 0 for worker in workers), workers=len(workers))
    found = Counter(worker.gpu if chosen == "cuda" else worker.cpu for worker in workers)
    if len(found) > 1:
        each = ", ".join(f"{count} of {kind}" for kind, count in sorted(found.items()))
        warnings.warn(
            f"the workers are of several architectures ({each}): the last bits of the result depend on which of them "
            "computes what",
            RuntimeWarning,
            stacklevel=2,
        )
    return chosen


def _common(backend: str, with_gpu: int, workers: int) -> str:
    without = workers - with_gpu
    if backend == "cuda":
        if without:
            raise BackendError(f"backend='cuda' needs a GPU in every worker, but {without} of {workers} have none")
        return "cuda"
    if workers == 0:
        raise BackendError(
            "backend='auto' asks the workers whether they have GPUs, but none has joined the cluster yet: "
            "call client.wait_for_workers(...) first, or name a backend"
        )
    if with_gpu and without:
        raise BackendError(
            f"{with_gpu} of {workers} workers have a GPU and {without} have none, so that the result would depend on "
            "where tasks run: use backend='cpu', or workers of one kind"
        )
    return "cuda" if with_gpu else "cpu"


def ambient_client() -> Any:
    """The client that computing a dask array would use now, or None. RuntimeError: it is an asynchronous one."""
    if "distributed" not in sys.modules:  # then nobody has made a client, and importing it takes a second
        return None
    from distributed import Client

    with warnings.catch_warnings():
        # dask remarks here that another scheduler than the client is configured; it will say so again when computing
        warnings.simplefilter("ignore", UserWarning)
        client = getattr(dask.base.get_scheduler(), "__self__", None)
    if not isinstance(client, Client):
        return None
    if client.asynchronous:  # newer dask raises this by itself
        raise RuntimeError("an asynchronous client in a synchronous context")
    return client


def _on_gpu(array: Any) -> bool:
    return hasattr(getattr(array, "_meta", array), "__cuda_array_interface__")
