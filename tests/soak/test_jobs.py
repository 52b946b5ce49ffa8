"""Jobs that are killed at random moments, client, worker or both: the same bytes as one that was left in peace.

`DRED_SOAK_ROUNDS` kills (default 20: about seven minutes on 2 cores); `DRED_SOAK_SEED` repeats a run. The slow tier
takes a tenth of it, with a fixed seed.
"""

import os
import secrets

import numpy as np
import pytest

from tests.jobs.kills import BLOCKS, disturbed, prepare, run


def kills(folder, seed, rounds):
    rng = np.random.default_rng(seed)
    prepare(folder)
    run(folder, "quiet.npy")
    quiet = (folder / "quiet.npy").read_bytes()
    for n in range(rounds):
        whom, moment = str(rng.choice(["client", "worker", "both"])), int(rng.integers(0, BLOCKS - 4))
        disturbed(folder, f"round{n}.npy", whom, moment)
        assert (folder / f"round{n}.npy").read_bytes() == quiet, (seed, n, whom, moment)


@pytest.mark.slow
def test_some_random_kills(tmp_path):
    kills(tmp_path, seed=2, rounds=2)


@pytest.mark.soak
def test_random_kills(tmp_path, record_property):
    seed = int(os.environ.get("DRED_SOAK_SEED") or secrets.randbits(32))
    rounds = int(os.environ.get("DRED_SOAK_ROUNDS") or 20)
    record_property("seed", seed)
    record_property("rounds", rounds)
    kills(tmp_path, seed, rounds)
