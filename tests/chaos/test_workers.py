"""Workers that are killed, retired, or run out of memory in mid-run: the same bytes."""

import os
import secrets
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from tests.chaos.problem import Gate, calm, disturbed, stalled, sum_and_gradient, until
from tests.cluster.local import mortal

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
            until(lambda: victim not in client.scheduler_info(n_workers=-1)["workers"])
            other.release()

        assert disturbed(client, results, gate, exhaust) == want
        after = pids(client, 2)
    assert len(set(before.values()) - set(after.values())) == 1
