"""Workers made ready: what is compiled, what is bounded, and who hears of the client's settings."""

import dask
import pytest
from distributed import Client, LocalCluster

import dred
from dred.cluster import config, panels
from dred.errors import OptionError
from dred.kernel import cpu
from tests.cluster.local import PORT, processes, threads
from tests.cluster.problems import ALIASES, TEXT

KERNELS = 2  # of each spec: lanes along rows, lanes along columns


def compiled():
    """Kernels that this process has compiled."""
    return len(cpu._kernels)


def kept():
    return panels.most()


@pytest.fixture
def routine():
    return dred.Genred(TEXT, ALIASES, axis=1)


def test_workers_compile_ahead_of_the_first_task(routine, monkeypatch):
    monkeypatch.setattr(cpu, "_kernels", type(cpu._kernels)())
    with threads(1) as client:
        dred.warm(client, routine, dtype="float64", backend="cpu")
        assert compiled() == KERNELS
        dred.warm(client, routine.grad("y"), routine, dtype="float64", backend="cpu")
        assert compiled() == 2 * KERNELS


def test_a_routine_of_one_type_is_compiled_for_it(monkeypatch):
    monkeypatch.setattr(cpu, "_kernels", type(cpu._kernels)())
    with threads(1) as client:
        dred.warm(client, dred.Genred(TEXT, ALIASES, axis=1, dtype="float64"), backend="cpu")
        assert all(name.startswith(dred.Genred(TEXT, ALIASES, axis=1).spec("float64").digest) for name in cpu._kernels)
        assert compiled() == KERNELS


def test_panels_are_bounded_by_the_memory_of_the_worker(routine):
    with (
        dask.config.set({"dred.stream.cache": "512 MiB"}),
        LocalCluster(
            1, threads_per_worker=1, processes=False, memory_limit="400 MB", dashboard_address=PORT
        ) as cluster,
        Client(cluster) as client,
    ):
        dred.warm(client, routine, backend="cpu")
        assert panels.most() == 100_000_000
    assert panels.most() == config.stream_cache()  # as before
    with dask.config.set({"dred.stream.cache": "1 MiB"}), threads(1) as client:
        dred.warm(client, routine, backend="cpu")
        assert panels.most() == 1 << 20


def test_wrong_types_are_refused_here(routine):
    with threads(1) as client, pytest.raises(OptionError):
        dred.warm(client, routine, dtype="int32", backend="cpu")


@pytest.mark.slow
def test_other_processes_and_late_ones_take_over_the_settings(routine):
    with processes(1) as client, dask.config.set({"dred.stream.cache": "3 MiB"}):
        dred.warm(client, routine, backend="cpu")
        client.cluster.scale(2)
        client.wait_for_workers(2)
        assert set(client.run(kept).values()) == {3 << 20}
        assert set(client.run(compiled).values()) == {KERNELS}
