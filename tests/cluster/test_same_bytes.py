"""The same bytes wherever and however often tasks run: schedulers, processes, threads of a kernel, dead workers."""

import os
import signal
import time
from collections import Counter
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
from dask.utils import key_split

from dred.kernel import cpu
from tests.cluster.local import processes
from tests.cluster.problems import arrays_of, dask_of, dense, plan_of, spec_of, summed

# 4 x blocks, each in 3 lanes of 2 steps whose states are merged by a tree of depth 2.
SETTINGS = {
    "dred.plan.operations-per-second": {"cpu": 1e7},
    "dred.plan.parallelism": 12,
    "dred.plan.longest-fold": "1 hour",
    "dred.plan.step": "14 kB",
    "dred.plan.arity": 2,
}
FOLDS = 4 * 3 * 2
GATED = 4  # of them read the gated block: the last step of the last lane of each x block


def gate(block, path):
    """The block, as soon as the file exists."""
    while not Path(path).exists():
        time.sleep(0.02)
    return block


@pytest.fixture(scope="module")
def arrays():
    return arrays_of(4000, 4000, dtype="float32")


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A file: the last block of y is not there before it exists. It does, to begin with."""
    path = tmp_path_factory.mktemp("gate") / "open"
    path.touch()
    return path


@pytest.fixture(scope="module")
def results(arrays, opened):
    """The lazy reduction over j, and over i with the same arrays in each other's place."""
    out = {}
    for axis in (1, 0):
        kept, reduced = (1000, 250) if axis == 1 else (250, 1000)
        lazy = list(dask_of(arrays, kept, reduced))
        last = lazy[axis]  # y, or x where that is reduced
        held = da.map_blocks(gate, last[-250:], path=str(opened), dtype=last.dtype, meta=last._meta)
        lazy[axis] = da.concatenate([last[:-250], held])
        spec = spec_of(axis=axis, dtype="float32")
        with dask.config.set({**SETTINGS, "dred.plan.step": "14 kB" if axis == 1 else "10.5 kB"}):
            plan = plan_of(spec, lazy, "cpu")
            out[axis] = summed(spec, lazy, "cpu")
        assert (len(plan.x_blocks), plan.lanes, plan.steps, plan.depth, plan.fold_tasks) == (4, 3, 2, 2, FOLDS)
    return out


@pytest.fixture(scope="module")
def calm(results, arrays):
    """Their bytes by the synchronous scheduler, with the values checked."""
    got = {axis: result.compute(scheduler="sync") for axis, result in results.items()}
    rows = np.random.default_rng(1).choice(4000, 50)
    x, y, a, p = arrays
    np.testing.assert_allclose(got[1][rows], dense(x[rows], y, a, p), rtol=2e-6)
    np.testing.assert_allclose(got[0][rows], dense(x, y[rows], a[rows], p, axis=0), rtol=2e-6)
    return {axis: value.tobytes() for axis, value in got.items()}


@pytest.mark.parametrize("axis", [1, 0])
def test_threads(results, calm, axis):
    assert results[axis].compute(scheduler="threads", num_workers=3).tobytes() == calm[axis]


SIZES = [(w, t) for w in (1, 2, 3) for t in (1, 2, 3)]  # processes, threads of a kernel


@pytest.mark.parametrize(
    ("workers", "kernel_threads"), [pytest.param(w, t, marks=[pytest.mark.slow] * ((w, t) != (3, 2))) for w, t in SIZES]
)
def test_processes_and_threads_of_a_kernel(results, calm, workers, kernel_threads):
    with processes(workers, DRED_NUM_THREADS=str(kernel_threads)) as client:
        client.wait_for_workers(workers)
        assert list(client.run(cpu.thread_count).values()) == [kernel_threads] * workers
        for axis, result in results.items():
            assert result.compute().tobytes() == calm[axis]


def until(condition):
    """Ask again and again, in small intervals; the test's own limit of time ends it."""
    while not (answer := condition()):
        time.sleep(0.02)
    return answer


def stalled(dask_scheduler):
    """How many states each worker holds, as soon as all folds but the gated ones were done."""
    tasks = list(dask_scheduler.tasks.values())
    folds = [t for t in tasks if "dred-sum-fold" in str(t.key)]  # dask may fuse one with the task that follows it
    if len(folds) < FOLDS or sum(t.state in ("waiting", "processing", "queued", "no-worker") for t in folds) > GATED:
        return None
    ours = [t for t in tasks if str(key_split(t.key)).startswith("dred-sum") and t.state == "memory"]
    return Counter(worker.address for t in ours for worker in t.who_has)


def computed_again(dask_scheduler):
    """Keys that were computed more than once."""
    done = Counter(key for key, start, finish, *_ in dask_scheduler.transition_log if (start, finish) == DONE)
    return [key for key, times in done.items() if times > 1]


DONE = ("processing", "memory")


def disturbed(client, result, opened):
    """Bytes of the result where the worker that holds most of the states is killed in mid-run."""
    opened.unlink()
    client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.transition_log.clear())
    try:
        future = client.compute(result)
        holders = until(lambda: client.run_on_scheduler(stalled))
        victim, lost = holders.most_common(1)[0]
        assert lost > 0
        os.kill(client.run(os.getpid)[victim], signal.SIGKILL)
        until(lambda: victim not in client.scheduler_info()["workers"])
    finally:
        opened.touch()
    got = future.result()
    assert any("dred-sum" in str(key) for key in client.run_on_scheduler(computed_again))
    return got.tobytes()


@pytest.mark.parametrize("axis", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_worker_is_killed(results, calm, opened, axis):
    with processes(2, threads_per_worker=2) as client:  # one thread of one worker waits at the gate
        client.wait_for_workers(2)
        assert disturbed(client, results[axis], opened) == calm[axis]


@pytest.mark.slow
@pytest.mark.parametrize("axis", [1, 0])
def test_workers_are_killed_one_after_another(results, calm, opened, axis):
    with processes(3, threads_per_worker=2) as client:
        client.wait_for_workers(3)
        for _ in range(3):
            assert disturbed(client, results[axis], opened) == calm[axis]
            client.wait_for_workers(3)
