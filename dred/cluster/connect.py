"""A client of the cluster that a program is to run on: the one there is, a running one by its address, or one of this
machine."""

# mypy: allow-untyped-calls
# (dask is typed in part)

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import dask.config
from dask.system import CPU_COUNT
from dask.utils import parse_bytes
from distributed.system import MEMORY_LIMIT

from dred.cluster.backend import ambient_client
from dred.cluster.explain import Cluster
from dred.errors import BackendError, OptionError

MOST = 4  # worker processes of a CPU that are started if nothing is said: a fold uses all threads of its own
SHARE = 0.9  # of this machine's memory, for all workers
ALLOWED_FAILURES = 100  # every worker that dies counts against all tasks that were its: deaths should not end a job
PLACES = ("scheduler", "scheduler_file", "kind", "workers", "threads", "memory", "timeout")  # what `connected` takes
_WRITERS = ("-rows-", "-save-", "-saved")  # in names of layers whose tasks write to a store


def gpus() -> list[str]:
    """One text for each GPU of this machine, as `nvidia-smi` lists them; obeys CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device for device in visible.split(",") if device.strip() not in ("", "-1")]
    try:
        listing = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False)
    except OSError:
        return []
    return listing.stdout.splitlines() if listing.returncode == 0 else []


def local(kind: str, workers: int | None, threads: int | None, memory: int | str | None) -> dict[str, Any]:
    """What is started on this machine: keys "kind", "workers", "threads" and "memory" (bytes of a worker, or None).

    Raises
    ------
    OptionError
        A limit of memory that is none.
    BackendError
        GPUs are asked for, or here, and dask-cuda is not.
    """
    if kind == "auto":
        kind = "cuda" if gpus() else "cpu"
    if kind == "cuda":
        if find_spec("dask_cuda") is None:
            raise BackendError(
                "a worker for each GPU of this machine needs the package dask-cuda: in dred's folder, "
                "pip install '.[cuda13,dask-cuda13]' (or the 12s, by your driver); or compute on the CPU (cpu as the "
                "kind of cluster)"
            )
        return {"kind": kind, "workers": workers or max(1, len(gpus())), "threads": None, "memory": None}
    workers = workers or min(MOST, CPU_COUNT)
    threads = threads or max(1, CPU_COUNT // workers)
    try:
        limit = int(SHARE / workers * MEMORY_LIMIT) if memory is None else int(parse_bytes(memory))
    except ValueError as error:
        raise OptionError(f"memory={memory!r} of a worker: {error}, write it as 4 GiB") from error
    if limit < 0:
        raise OptionError(f"memory={memory!r} of a worker is less than nothing, write it as 4 GiB")
    return {"kind": kind, "workers": workers, "threads": threads, "memory": limit}


def expected(kind: str, workers: int | None, threads: int | None, memory: int | str | None) -> Cluster:
    """The workers that would be started on this machine, as far as plans are concerned."""
    chosen = local(kind, workers, threads, memory)
    return Cluster(chosen["workers"], 1, chosen["memory"], assumed=False)


@contextmanager
def connected(
    scheduler: str = "",
    scheduler_file: str = "",
    kind: str = "auto",
    workers: int | None = None,
    threads: int | None = None,
    memory: int | str | None = None,
    timeout: float = 300.0,
) -> Iterator[Any]:
    """A client, with at least one worker; what is started here is stopped at the end.

    In this order: `scheduler_file`, `scheduler`, the client that this process has, what DASK_SCHEDULER_ADDRESS (or
    `scheduler-address` in Dask's configuration) names; else a cluster of this machine, a worker for each GPU where
    there are GPUs and else a few processes that share the cores.

    Parameters
    ----------
    workers : int, optional
        How many are started; of a running cluster, how many are waited for.
    threads : int, optional
        Threads of a fold in each process that is started on a CPU.
    memory : int or str, optional
        Of each of these.
    timeout : float
        Seconds to wait for a scheduler and for workers.

    Raises
    ------
    BackendError
        There is no such cluster, or its workers do not come.
    """
    from distributed import Client

    with contextlib.ExitStack() as stack:
        client = stack.enter_context(running(scheduler, scheduler_file, timeout=timeout))
        if client is None:
            cluster = stack.enter_context(started(local(kind, workers, threads, memory)))
            client = stack.enter_context(Client(cluster))
        wanted = workers or 1
        try:
            client.wait_for_workers(wanted, timeout=timeout)
        except TimeoutError as error:
            there = len(client.scheduler_info(n_workers=-1)["workers"])
            raise BackendError(
                f"{there} of {wanted} workers joined {client.scheduler.address} in {timeout:g} s: start more, or wait "
                "longer (timeout)"
            ) from error
        yield client


@contextmanager
def running(scheduler: str = "", scheduler_file: str = "", *, timeout: float = 300.0, **_: Any) -> Iterator[Any]:
    """A client of a cluster that runs, in the order of `connected`; None where none is named and there is none.

    Raises
    ------
    BackendError
        No scheduler answers.
    """
    address = scheduler or dask.config.get("scheduler-address", default="")
    client = None if scheduler or scheduler_file else ambient_client()
    if client is not None or not (scheduler_file or address):
        yield client
        return
    from distributed import Client

    try:
        if scheduler_file:
            _wait_for(scheduler_file, timeout)
        found = Client(scheduler_file=scheduler_file) if scheduler_file else Client(address, timeout=timeout)
    except (OSError, TimeoutError, ValueError) as error:
        named = scheduler_file or address
        raise BackendError(f"no scheduler answers at {named} in {timeout:g} s: {error}") from error
    with found:
        yield found


def _wait_for(path: str, timeout: float) -> None:
    """Until a scheduler has written its file: it is there before it is whole."""
    end = time.monotonic() + timeout
    while not _names_a_scheduler(path):
        if time.monotonic() > end:
            what = "names no scheduler" if os.path.exists(path) else "is not there"
            raise TimeoutError(f"{path} {what}")
        time.sleep(0.1)


def _names_a_scheduler(path: str) -> bool:
    try:
        with open(path, encoding="utf-8") as file:
            return bool(json.load(file)["address"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


@contextmanager
def started(chosen: Mapping[str, Any]) -> Iterator[Any]:
    """A cluster of this machine, of what `local` has chosen; it ends with the context."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set({"distributed.scheduler.allowed-failures": ALLOWED_FAILURES}))
        cluster: Any
        if chosen["kind"] == "cuda":
            from dask_cuda import LocalCUDACluster

            cluster = LocalCUDACluster(n_workers=chosen["workers"], dashboard_address="127.0.0.1:0")
        else:
            from distributed import LocalCluster

            cluster = LocalCluster(
                n_workers=chosen["workers"],
                threads_per_worker=1,
                memory_limit=chosen["memory"],
                dashboard_address="127.0.0.1:0",  # any free port
                silence_logs=logging.CRITICAL,  # what fails is said by who asked for it
                env={"DRED_NUM_THREADS": str(chosen["threads"])},
            )
        yield stack.enter_context(cluster)


@contextmanager
def configured(settings: Mapping[str, Any]) -> Iterator[None]:
    """Dask's configuration with other values, by keys such as "dred.plan.arity".

    Raises
    ------
    OptionError
        A key of dred's that there is not.
    """
    from dred.cluster import config

    for name in settings:
        config.known(name)
    with dask.config.set(dict(settings)):
        yield


def ready(client: Any, routine: Any, dtype: str, backend: str) -> None:
    """Make the workers of a client ready for a routine, see `plugin.warm`."""
    from dred.cluster.plugin import warm

    warm(client, routine, dtype=dtype, backend=backend)


@contextmanager
def performance(path: str) -> Iterator[None]:
    """Dask writes its report of what is computed meanwhile to a file, where the package that draws it is there."""
    with contextlib.ExitStack() as stack:
        if find_spec("bokeh") is not None:
            from distributed import performance_report

            stack.enter_context(performance_report(filename=path))
        yield


def settle(client: Any, seconds: float = 10.0) -> None:
    """Wait until no worker is writing to a store, though not for long; nothing new begins meanwhile."""
    end = time.monotonic() + seconds
    with contextlib.suppress(Exception):  # whoever does not answer is not waited for
        while time.monotonic() < end and any(client.run(_writes, on_error="ignore").values()):
            time.sleep(0.05)


def _writes(dask_worker: Any) -> bool:
    names = [str(key[0] if isinstance(key, tuple) else key) for key in dict(dask_worker.active_threads).values()]
    return any(part in name for name in names for part in _WRITERS)
