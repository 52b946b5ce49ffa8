"""Clusters on this machine, for tests."""

from collections.abc import Iterator
from contextlib import contextmanager

from distributed import Client, LocalCluster

PORT = ":0"  # of the dashboard: any that is free


@contextmanager
def threads(workers: int) -> Iterator[Client]:
    """Workers that are threads of this process."""
    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, processes=False, dashboard_address=PORT) as cluster,
        Client(cluster) as client,
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
