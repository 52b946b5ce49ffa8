"""Clusters on this machine, for tests."""

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dask
from distributed import Client, LocalCluster

PORT = ":0"  # of the dashboard: any that is free

MORTAL = {
    "distributed.scheduler.allowed-failures": 10_000,  # every death blames all tasks of its worker
    # A worker's nanny is given up if it happens to have no process this long after some death: never, here.
    "distributed.deploy.lost-worker-timeout": "1 day",
}


@contextmanager
def threads(workers: int, threads_per_worker: int = 1, default: bool = True) -> Iterator[Client]:
    """Workers that are threads of this process; arrays are computed there by default."""
    with (
        LocalCluster(
            n_workers=workers, threads_per_worker=threads_per_worker, processes=False, dashboard_address=PORT
        ) as cluster,
        Client(cluster, set_as_default=default) as client,
    ):
        yield client


@contextmanager
def processes(workers: int, threads_per_worker: int = 1, **environment: str) -> Iterator[Client]:
    """Workers that are processes, each watched over by a nanny that starts another in its place."""
    with (
        LocalCluster(
            n_workers=workers,
            threads_per_worker=threads_per_worker,
            processes=True,
            dashboard_address=PORT,
            env=environment,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@contextmanager
def mortal(workers: int, threads_per_worker: int = 1, **options: Any) -> Iterator[Client]:
    """Worker processes that may end at any moment; `options` are those of LocalCluster."""
    with dask.config.set(MORTAL):
        cluster = LocalCluster(
            n_workers=workers, threads_per_worker=threads_per_worker, dashboard_address="127.0.0.1:0", **options
        )
        try:
            with Client(cluster) as client:
                yield client
        finally:
            # distributed's own watch over workers fails on one that ended before it was listed, and says so here only
            with contextlib.suppress(KeyError):
                cluster.close()
