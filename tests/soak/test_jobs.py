"""Jobs that are killed at random moments, client, worker or both: the same bytes as one that was left in peace.

`DRED_SOAK_ROUNDS` kills (default 20: about six minutes on 2 cores); `DRED_SOAK_SEED` repeats a run.
"""

import os
import secrets

import numpy as np
import pytest

from tests.jobs.kills import BLOCKS, disturbed, prepare, run

pytestmark = pytest.mark.soak


def test_random_kills(tmp_path, record_property):
    seed = int(os.environ.get("DRED_SOAK_SEED") or secrets.randbits(32))
    rounds = int(os.environ.get("DRED_SOAK_ROUNDS") or 20)
    record_property("seed", seed)
    record_property("rounds", rounds)
    rng = np.random.default_rng(seed)
    prepare(tmp_path)
    run(tmp_path, "quiet.npy")
    quiet = (tmp_path / "quiet.npy").read_bytes()
    for n in range(rounds):
        whom, moment = str(rng.choice(["client", "worker", "both"])), int(rng.integers(0, BLOCKS - 4))
        disturbed(tmp_path, f"round{n}.npy", whom, moment)
        assert (tmp_path / f"round{n}.npy").read_bytes() == quiet, (seed, n, whom, moment)
