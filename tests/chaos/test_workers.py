"""Workers that are killed, retired, or run out of memory in mid-run: the same bytes."""

import os
import pickle
import secrets
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import psutil
import pytest
from distributed import Client, LocalCluster

from dred import Genred, WorkersLostError, from_file
from tests.chaos.problem import (
    ALIASES,
    MANY,
    ROWS,
    TEXT,
    X_BLOCKS,
    Y_BLOCKS,
    Gate,
    calm,
    disturbed,
    stalled,
    sum_and_gradient,
    until,
)
from tests.cluster.local import PORT, mortal

MIB = 2**20
SEEDS = [1, 2, 3]


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path / "gate")


def pids(client, workers: int) -> dict[str, int]:
    """The process of each worker, as soon as there are so many."""

    def answers():
        client.wait_for_workers(workers, timeout=300)
        found = client.run(os.getpid, on_error="ignore")
        return found if len(found) == workers else None

    return until(answers)


def kill_some(gate, seeds) -> int:
    """Kill one or two of three workers, each at a random moment, once for each seed; how many were killed."""
    kills = 0
    with mortal(3, threads_per_worker=2) as client:
        for seed in seeds:
            rng = np.random.default_rng(seed)
            victims = rng.permutation(list(pids(client, 3).values()))[: rng.integers(1, 3)]
            moments = rng.uniform(0, 0.5, len(victims))

            def kill(victims=victims, moments=moments):
                for victim, moment in zip(victims, moments, strict=True):
                    time.sleep(moment)
                    os.kill(int(victim), signal.SIGKILL)

            results = sum_and_gradient(gate, seed)
            assert disturbed(client, results, gate, kill) == calm(results), f"seed {seed}"
            kills += len(victims)
    return kills


def retire_some(gate, seeds) -> int:
    """Retire two of three workers, one after another at random moments, for each seed; how many were retired."""
    for seed in seeds:
        rng = np.random.default_rng(seed)
        with mortal(3, threads_per_worker=2) as client:
            workers = rng.permutation(list(pids(client, 3)))
            moments = rng.uniform(0, 0.5, 2)

            def retire(client=client, workers=workers, moments=moments):
                for worker, moment in zip(workers, moments, strict=False):
                    time.sleep(moment)
                    client.retire_workers([str(worker)])
                assert set(client.scheduler_info(n_workers=-1)["workers"]) == {str(workers[-1])}

            results = sum_and_gradient(gate, seed)
            assert disturbed(client, results, gate, retire) == calm(results), f"seed {seed}"
    return 2 * len(seeds)


@pytest.mark.slow
@pytest.mark.parametrize("disturb", [kill_some, retire_some])
def test_workers_are_killed_or_retired(gate, disturb):
    assert disturb(gate, [[1], [2], [3]])


@pytest.mark.soak
@pytest.mark.parametrize("disturb", [kill_some, retire_some])
def test_workers_are_killed_or_retired_at_random(gate, record_property, disturb):
    seed = int(os.environ.get("DRED_SOAK_SEED") or secrets.randbits(32))
    print(f"DRED_SOAK_SEED={seed}")
    record_property("seed", seed)
    record_property("workers", disturb(gate, [[seed, number] for number in range(20)]))


def by_path(folder: Path, gate: Gate, seed: int) -> tuple[Genred, tuple[Any, ...]]:
    """The sum of rows that tasks read from files; the last block of x is behind the gate."""
    rng = np.random.default_rng(seed)
    x, y, a = (rng.uniform(-1, 1, (ROWS, dim)).astype("float32") for dim in (3, 3, 1))
    np.save(folder / f"y{seed}.npy", y)
    np.save(folder / f"a{seed}.npy", a)
    lazy = gate.behind(da.from_array(x, chunks=(ROWS // X_BLOCKS, -1)), ROWS // X_BLOCKS)
    files = (from_file(folder / f"{name}{seed}.npy") for name in "ya")
    return Genred(TEXT, ALIASES, axis=1), (lazy, *files, np.array([0.25], "float32"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_workers_are_killed_that_read_files(gate, tmp_path, seed):
    with dask.config.set({**MANY, "dred.plan.panel": "4 kB"}):
        routine, given = by_path(tmp_path, gate, seed)
        assert routine.plan(*given, backend="cpu").feed == "stream"
        results = (routine(*given, backend="cpu"),)
    rng = np.random.default_rng(seed)
    with mortal(2, threads_per_worker=2) as client:

        def kill():
            victim = rng.permutation(list(pids(client, 2).values()))[0]
            time.sleep(rng.uniform(0, 0.5))
            os.kill(int(victim), signal.SIGKILL)

        assert disturbed(client, results, gate, kill) == calm(results)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_workers_are_killed_between_waves(gate, seed):
    rng = np.random.default_rng(seed)
    x, y, a = (rng.uniform(-1, 1, (ROWS, dim)).astype("float32") for dim in (3, 3, 1))
    lazy_y, lazy_a = (da.from_array(v, chunks=(ROWS // Y_BLOCKS, -1)) for v in (y, a))
    given = (
        da.from_array(x, chunks=(ROWS // X_BLOCKS, -1)),
        gate.behind(lazy_y, ROWS // Y_BLOCKS),
        lazy_a,
        np.array([0.25], "float32"),
    )
    routine = Genred(TEXT, ALIASES, axis=1)
    settings = {**MANY, "dred.plan.feed": "waves", "dred.plan.y-budget": "32 kB"}
    with dask.config.set(settings):
        assert routine.plan(*given, backend="cpu").steps > 1
        with dask.config.set(scheduler="synchronous"):
            want = routine.compute(*given, backend="cpu").tobytes()
        with mortal(2, threads_per_worker=2) as client, gate.closed(), ThreadPoolExecutor(1) as pool:
            running = pool.submit(routine.compute, *given, backend="cpu")
            until(gate.reached.exists)  # the last wave
            victim = rng.permutation(list(pids(client, 2).values()))[0]
            time.sleep(rng.uniform(0, 0.5))
            os.kill(int(victim), signal.SIGKILL)
            pids(client, 2)
            assert not running.done()
            gate.open()
            assert running.result(timeout=300).tobytes() == want


def die(block: Any) -> Any:
    """End this process."""
    os._exit(1)


@pytest.mark.slow
def test_workers_that_die_of_a_task_are_explained():
    x = da.ones((40, 3), chunks=(10, 3), dtype="float32")
    deadly = da.map_blocks(die, da.ones((40, 3), chunks=(40, 3), dtype="float32"), dtype="float32", meta=x._meta)
    routine = Genred("Exp(-SqDist(x, y))", ["x = Vi(3)", "y = Vj(3)"], axis=1)
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        LocalCluster(1, threads_per_worker=1, dashboard_address=PORT) as cluster,
        Client(cluster),
        pytest.raises(WorkersLostError) as caught,
    ):
        routine.compute(x, deadly, backend="cpu")
    error = caught.value
    assert error.allowed == 1
    assert "die-" in error.task or "ones_like-" in error.task  # or one that waited behind it
    assert error.last.startswith("tcp://")
    assert str(error).startswith(f"the scheduler gave up task {error.task}: 2 workers died while it was theirs, ")
    assert "\n    while computing Sum(Exp(" in str(error)
    assert "distributed.scheduler.allowed-failures to 100" in str(error)
    assert pickle.loads(pickle.dumps(error)).args == error.args


def take_memory(path: str, limit: int) -> None:
    """Hold twice the limit, until somebody ends this process; once."""
    if Path(path).exists():
        return
    Path(path).touch()
    held = []
    while True:
        if len(held) * 16 * MIB < 2 * limit:
            held.append(np.ones(2 * MIB))
        time.sleep(0.01)


@pytest.mark.slow
def test_a_worker_over_its_memory_limit_is_started_again(gate, tmp_path):
    """By its nanny, with all states it held lost, for a task that is none of ours."""
    limit = 800 * MIB
    results = sum_and_gradient(gate)
    want = calm(results)
    with mortal(2, threads_per_worker=2, memory_limit=limit) as client:
        before = pids(client, 2)

        def exhaust():
            held = until(lambda: client.run_on_scheduler(stalled))
            victim = max(held, key=held.get)
            assert held[victim]
            other = client.submit(take_memory, str(tmp_path / "taken"), limit, workers=[victim], pure=False)
            until(lambda: not psutil.pid_exists(before[victim]))  # a busy machine may lose the connection before
            other.release()

        assert disturbed(client, results, gate, exhaust) == want
        after = pids(client, 2)
    assert len(set(before.values()) - set(after.values())) == 1
