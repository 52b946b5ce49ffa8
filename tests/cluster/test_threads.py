"""Threads of folds in workers that run several tasks at once: counted, never timed."""

import threading

import numpy as np
import pytest
from distributed import Client, LocalCluster

from dred.cluster import tasks
from dred.kernel import cpu, cpu_calls, engine
from tests.cluster.local import PORT
from tests.cluster.problems import arrays_of, dask_of, spec_of, summed


@pytest.fixture(scope="module")
def client():
    """Two workers of four threads each, in this process."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=4, processes=False, dashboard_address=PORT) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for name in ("DRED_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


def test_outside_a_worker_nobody_divides_them(client):
    assert tasks.share() is None


@pytest.mark.parametrize(("threads", "share"), [(1, 1), (3, 1), (4, 1), (8, 2), (15, 3)])
def test_a_fold_in_a_worker_has_a_part_of_the_threads(client, monkeypatch, threads, share):
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    assert client.submit(tasks.share, pure=False).result() == share


def test_what_is_declared_for_a_fold_is_not_divided(client, monkeypatch):
    monkeypatch.setenv("DRED_NUM_THREADS", "8")
    assert client.submit(tasks.share, pure=False).result() is None


def test_folds_are_told_their_part(client, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    told, fold = [], cpu.fold

    def remember(*args, threads=None, **more):
        told.append(threads)
        return fold(*args, threads=threads, **more)

    monkeypatch.setattr(cpu, "fold", remember)
    lazy = summed(spec_of(), dask_of(arrays_of(100, 80), 30, 20), "cpu")
    there = client.compute(lazy).result()
    assert set(told) == {2}
    told.clear()
    here = lazy.compute(scheduler="sync")
    assert set(told) == {None}
    np.testing.assert_array_equal(here, there)


@pytest.mark.parametrize("workers", [1, 3])
def test_folds_of_the_threaded_scheduler_share_the_threads(monkeypatch, workers):
    monkeypatch.setenv("DRED_NUM_THREADS", "3")
    monkeypatch.setattr(cpu_calls, "SHARE", 1.0)  # as if this little work were worth threads
    calls, lock, now, most = cpu._calls, threading.Lock(), [0], [0]

    def counted(*args, **named):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        calls(*args, **named)
        with lock:
            now[0] -= 1

    monkeypatch.setattr(cpu, "_calls", counted)
    lazy = summed(spec_of(), dask_of(arrays_of(1000, 800), 100, 200), "cpu")
    result = lazy.compute(scheduler="threads", num_workers=workers)
    assert 1 <= most[0] <= workers + 2  # folds that compute, and the helpers of the first until they give way
    np.testing.assert_array_equal(result, lazy.compute(scheduler="sync"))


def test_engine_hands_threads_to_the_cpu_alone(monkeypatch):
    told = {}
    for backend, name in engine._MODULES.items():
        module = __import__(name, fromlist=["fold"])
        monkeypatch.setattr(
            module, "fold", lambda *args, b=backend, i0, j0, pattern, **more: told.update({b: more}), raising=False
        )
    for backend in engine._MODULES:
        engine.fold(spec_of(), backend, (), [], 0, 0, threads=5)
    assert told == {"cpu": {"threads": 5, "own": False}, "cuda": {"device_id": -1, "memory": None}, "numpy": {}}
