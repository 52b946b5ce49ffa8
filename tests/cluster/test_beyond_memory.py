"""Arrays several times larger than what a worker may hold, on workers with real limits: memory, bytes and tasks.

Rows are wide and formulas read one component of them: many bytes, few pairs.
"""

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import dask
import dask.array as da
import numpy as np
import psutil
import pytest
import zarr
from dask.utils import key_split
from distributed import Client, LocalCluster
from distributed.diagnostics.plugin import SchedulerPlugin, WorkerPlugin

import dred
from dred import Genred

pytestmark = pytest.mark.slow

MB = 1 << 20
D = 4096  # float32: 16 kB a row
ROOM = 150 * MB  # of a worker, above what it takes when idle
ALIASES = [f"x = Vi({D})", f"y = Vj({D})"]
KINDS = ("block", "fold", "merge", "rows")


def routine():
    return Genred("Square(Elem(x, 0) - Elem(y, 7))", ALIASES, axis=1)


def block_of(rows, first):
    """Rows first, first + 1, ... of an array, whose components 0 and 7 tell their numbers."""
    block = np.zeros((rows, D), "float32")
    block[:, 0] = block[:, 7] = number(np.arange(first, first + rows))
    block[:, 100] = 1
    return block


def number(rows):
    return (rows % 977).astype("float32") / 64


def made(block_info=None):
    (first, last), _ = block_info[None]["array-location"]
    return block_of(last - first, first)


def generated(rows, chunk, name, made=made):
    """Blocks that are made where they are needed; `name` tells arrays apart."""
    return da.map_blocks(
        made, chunks=((chunk,) * (rows // chunk), (D,)), dtype="float32", meta=np.empty((0, 0), "float32"), name=name
    )


def expected(M, N):
    x, y = number(np.arange(M)).astype(float), number(np.arange(N)).astype(float)
    return (N * x**2 - 2 * x * y.sum() + (y**2).sum())[:, None]


class Counted(SchedulerPlugin):
    """Tasks that were executed, by kind; workers that went, and pauses."""

    name = "counted"

    def __init__(self):
        self.done, self.lost = Counter(), 0

    def transition(self, key, start, finish, *args, **kwargs):
        if start == "processing" and finish == "memory":
            self.done[key_split(key)] += 1

    def remove_worker(self, *args, **kwargs):
        self.lost += 1


class Sampled(WorkerPlugin):
    """The peak of a worker's memory, and whether it was paused: looked at by a thread of it."""

    name = "sampled"

    def setup(self, worker):
        self.worker, self.peak, self.paused, self.ended = worker, 0, 0, threading.Event()
        threading.Thread(target=self.look, daemon=True).start()

    def teardown(self, worker):
        self.ended.set()

    def look(self):
        process = psutil.Process()
        while not self.ended.wait(0.005):
            self.peak = max(self.peak, process.memory_info().rss)
            self.paused += self.worker.status.name == "paused"


def resting(dask_worker):
    """Forget the peak; the bytes of this process now."""
    import gc

    from dred.cluster import panels

    gc.collect()
    panels.clear()
    now = psutil.Process().memory_info().rss
    dask_worker.plugins["sampled"].peak, dask_worker.plugins["sampled"].paused = now, 0
    dask_worker.transfer_incoming_log.clear()
    return now


def seen(dask_worker):
    sampled = dask_worker.plugins["sampled"]
    moved = sum(sum(one["keys"].values()) for one in dask_worker.transfer_incoming_log)
    return sampled.peak, sampled.paused, moved


def counts(dask_scheduler):
    counted = dask_scheduler.plugins["counted"]
    found = dict(counted.done), counted.lost
    counted.done.clear()
    return found


@contextlib.contextmanager
def cluster_of(limit):
    environment = {"OMP_NUM_THREADS": "1", "DRED_CACHE_DIR": os.environ["DRED_CACHE_DIR"]}
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            memory_limit=limit,
            dashboard_address=":0",
            env=environment,
        ) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(2)
        client.register_plugin(Sampled())
        client.register_plugin(Counted())
        yield client


SETTINGS = {
    "dred.backend": "cpu",
    "dred.stream.cache": "16 MiB",
    "dred.plan.panel": "8 MiB",
    "dred.plan.step": "24 MiB",
    "dred.plan.x-budget": "24 MiB",
    "dred.plan.y-budget": "50 MiB",
    "dred.plan.wave-rows": "80 MiB",
    "dred.plan.operations-per-second": {"cpu": 1e7},
    "dred.plan.parallelism": 8,
    "distributed.worker.memory.spill": False,  # no disk makes up for what is too much
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.pause": 0.94,
    "distributed.worker.memory.terminate": 0.98,
}


@pytest.fixture(scope="module")
def settings():
    with dask.config.set(SETTINGS):
        yield


@pytest.fixture(scope="module")
def client(settings):
    """Workers that may hold little more than what a worker takes that has computed once."""
    with cluster_of(0) as client:
        warm(client)
        idle = max(client.run(resting).values())
    with cluster_of(idle + ROOM) as client:
        warm(client)
        yield client


def warm(client):
    for k in range(2):
        small = generated(64, 16, f"warm-x-{k}"), generated(64, 16, f"warm-y-{k}")
        np.testing.assert_allclose(routine().compute(*small), expected(64, 64), rtol=1e-6)
    client.run(resting)


def checked(client, x, y, feed, **more):
    """The routine's plan, having been computed as it says."""
    M, N = x.shape[0], y.shape[0]
    with dask.config.set({"dred.plan.feed": feed, "optimization.fuse.active": False}):  # tasks are what they are called
        explanation = routine().explain(x, y)
        (plan,) = explanation.plans
        assert (plan.feed, explanation.fits) == (feed, True)
        idle = client.run(resting)
        client.run_on_scheduler(counts)
        got = routine()(x, y).compute() if feed == "resident" else routine().compute(x, y, **more)
    np.testing.assert_allclose(got, expected(M, N), rtol=1e-6)
    done, lost = client.run_on_scheduler(counts)
    found = client.run(seen)
    assert found.keys() == idle.keys()
    projected = plan.worker_bytes(2, 1)
    assert lost == 0
    assert max(paused for _, paused, _ in found.values()) < 200  # a second
    assert max(peak - idle[worker] for worker, (peak, _, _) in found.items()) <= projected
    assert sum(moved for *_, moved in found.values()) <= 1.1 * plan.bytes_moved(2)
    tasks = {kind: sum(n for name, n in done.items() if name == f"dred-sum-{kind}") for kind in KINDS[:3]}
    assert tasks == {"block": plan.block_tasks, "fold": plan.fold_tasks, "merge": plan.merge_tasks}
    out = plan.out_tasks if feed == "resident" else len(plan.x_blocks)  # `compute` puts rows in their place
    assert sum(n for name, n in done.items() if name in ("dred-sum", "dred-sum-rows")) == out
    return plan


def test_resident_with_many_kept_rows(client):
    x, y = generated(30_720, 512, "x"), generated(3072, 256, "y")  # 480 and 48 MB
    plan = checked(client, x, y, "resident")
    assert x.nbytes > 3 * ROOM
    assert plan.lanes == 1


@pytest.mark.parametrize(("stored", "M"), [("npy", 30_720), ("zarr", 12_288)])
def test_stream_with_both_too_large(client, tmp_path, stored, M):
    N = 30_720
    y = dred.from_file(store(tmp_path, stored, N))
    checked(client, generated(M, 1536, "x-wide"), y, "stream")
    assert y.nbytes > 3 * ROOM


def store(folder, stored, rows):
    """The array of `generated`, stored."""
    if stored == "npy":
        array = np.lib.format.open_memmap(folder / "y.npy", "w+", "float32", (rows, D))
    else:
        array = zarr.create_array(folder / "y.zarr", shape=(rows, D), dtype="float32", chunks=(512, D))
    for first in range(0, rows, 512):
        array[first : first + 512] = block_of(512, first)
    if stored == "npy":
        array.flush()
    return folder / f"y.{stored}"


@pytest.mark.parametrize("chunk", [512, 2048])
def test_waves_with_both_too_large(client, chunk):
    x, y = generated(30_720, 512, "x"), generated(30_720, chunk, f"y-{chunk}")
    plan = checked(client, x, y, "waves")
    assert (plan.steps > 4, plan.groups > 1) == (True, True)
    assert min(x.nbytes, y.nbytes) > 3 * ROOM


# -- everything killed -------------------------------------------------------------------------------------------------

BLOCKS = 30


def made_slowly(block_info=None):
    time.sleep(0.1)
    return made(block_info)


def problem():
    x = generated(BLOCKS * 64, 64, "slow-x", made_slowly)
    return x, generated(256, 128, "slow-y")


def job(folder):
    """A program with a cluster of its own: prints its folds and a digest of the result."""
    environment = {"OMP_NUM_THREADS": "1"}
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", env=environment) as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(Counted())
        found = routine().compute(*problem(), store=folder, backend="cpu")
        done, _ = client.run_on_scheduler(counts)
    print(done.get("dred-sum-fold", 0), hashlib.blake2b(found.tobytes()).hexdigest())


def started(folder):
    code = f"from tests.cluster.test_beyond_memory import job; job({str(folder)!r})"
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)


def test_a_job_whose_scheduler_and_client_are_killed_goes_on(tmp_path):
    with dask.config.set(scheduler="sync"):
        want = routine().compute(*problem(), backend="cpu")
    digest = hashlib.blake2b(want.tobytes()).hexdigest()
    np.testing.assert_allclose(want, expected(BLOCKS * 64, 256), rtol=1e-6)
    first = started(tmp_path)
    try:
        while len(list(tmp_path.glob("sweep-0/rows-*"))) < 5:
            assert first.poll() is None
            time.sleep(0.01)
    finally:
        first.kill()  # its program is both; the workers lose them, and end
        first.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(first.pid, signal.SIGKILL)
        first.communicate()
    there = len(list(tmp_path.glob("sweep-0/rows-*")))
    assert 5 <= there < BLOCKS
    second = started(tmp_path)
    folds, found = second.communicate()[0].split()
    assert second.returncode == 0
    assert (int(folds), found) == (BLOCKS - there, digest)
