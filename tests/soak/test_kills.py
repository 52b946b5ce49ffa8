"""Random problems in random chunks on workers that are killed at random: the same bytes, and the right numbers.

`DRED_SOAK_ROUNDS` problems (default 400: about six minutes on 2 cores); `DRED_SOAK_SEED` repeats a run. The slow tier
takes a tenth of it, with a fixed seed.
"""

import os
import secrets
import signal
import time

import dask
import dask.array as da
import numpy as np
import pytest

import dred
from dred.formula import language, oracle
from tests.cluster.local import mortal

X, Y, A, P = "x = Vi(3)", "y = Vj(3)", "a = Vj(1)", "p = Pm(1)"
# Formulas of positions 0..3; the cotangent stands on the side that is kept.
PROBLEMS = [
    ("Exp(-SqDist(x, y)) * a", 1, [X, Y, A, P]),
    ("Square(p - a) * Exp(x + y)", 1, [X, Y, A, P]),
    ("Grad(Square(p - a) * Exp(x + y), y, e)", 0, [X, Y, A, P, "e = Vi(3)"]),
    ("Grad(Exp(-SqDist(x, y)) * a, x, e)", 1, [X, Y, A, P, "e = Vi(1)"]),
    ("Sqrt(1 + SqNorm2(x - y)) * Cos(p * a)", 0, [X, Y, A, P]),
]
CONFIG = {"dred.plan.shortest-fold": "1 ms"}  # many lanes at sizes that are quick to compute


def chunks_of(rng, rows: int) -> tuple[int, ...]:
    """Up to 8 chunks of any sizes."""
    count = int(rng.integers(1, min(8, rows) + 1))
    cuts = np.sort(rng.choice(np.arange(1, rows), count - 1, replace=False))
    return tuple(int(n) for n in np.diff([0, *cuts, rows]))


def draw(rng):
    """A routine with its arrays, as NumPy and as dask arrays in random chunks, and the axis that it reduces over."""
    text, axis, aliases = PROBLEMS[rng.integers(len(PROBLEMS))]
    dtype = str(rng.choice(["float32", "float64"]))
    rows = [int(2 ** rng.uniform(0, 15)) for _ in range(2)]
    chunks = [chunks_of(rng, n) for n in rows]
    variables = language.formula(text, aliases).variables
    arrays, lazy = [], []
    for v in variables:
        shape = (v.dim,) if v.cat == 2 else (rows[v.cat], v.dim)
        arrays.append(rng.uniform(-1, 1, shape).astype(dtype))
        lazy.append(arrays[-1] if v.cat == 2 else da.from_array(arrays[-1], chunks=(chunks[v.cat], v.dim)))
    return dred.Genred(text, aliases, axis=axis), variables, arrays, lazy, axis


def check_rows(rng, routine, variables, arrays, axis: int, result) -> None:
    """Some rows of the result against the dense float64 oracle."""
    kept = 1 - axis
    some = rng.choice(len(result), min(20, len(result)), replace=False)
    part = [array[some] if v.cat == kept else array for v, array in zip(variables, arrays, strict=True)]
    node = language.formula(routine.formula, routine.aliases).node
    M, N = (len(next(a for v, a in zip(variables, part, strict=True) if v.cat == cat)) for cat in (0, 1))
    terms = np.broadcast_to(oracle.dense(node, part), (M, N, result.shape[1]))
    bound = 2e-5 if result.dtype == np.float32 else 1e-13
    assert np.all(np.abs(result[some] - terms.sum(axis)) <= bound * np.abs(terms).sum(axis) + 1e-30)


@pytest.mark.slow
def test_same_bytes_whatever_is_killed_at_a_fixed_seed(record_property):
    same_bytes(record_property, seed=1, rounds=40)


@pytest.mark.soak
def test_same_bytes_whatever_is_killed(record_property):
    seed = int(os.environ.get("DRED_SOAK_SEED") or secrets.randbits(32))
    same_bytes(record_property, seed, rounds=int(os.environ.get("DRED_SOAK_ROUNDS") or 400))


def same_bytes(record_property, seed: int, rounds: int) -> None:
    print(f"DRED_SOAK_SEED={seed}")
    tasks = kills = 0
    with dask.config.set(CONFIG), mortal(3, memory_limit=0.3) as client:
        for number in range(rounds):
            rng = np.random.default_rng([seed, number])
            routine, variables, arrays, lazy, axis = draw(rng)
            reduction = routine(*lazy, backend="cpu")
            expected = reduction.compute(scheduler="synchronous")
            check_rows(rng, routine, variables, arrays, axis, expected)
            tasks += len(reduction.__dask_graph__())

            # A worker killed in the last round may still be on its way back, or not yet missed.
            workers = []
            while not workers:
                client.wait_for_workers(1, timeout=60)
                workers = list(client.run(os.getpid, on_error="ignore").values())
            future = client.compute(reduction)
            if rng.random() < 0.5:
                time.sleep(rng.uniform(0, 0.5))
                os.kill(int(rng.choice(workers)), signal.SIGKILL)
                kills += 1
            result = future.result(timeout=600)
            assert result.tobytes() == expected.tobytes(), f"round {number} of DRED_SOAK_SEED={seed}"
            del future
    assert kills
    for name, count in (("seed", seed), ("rounds", rounds), ("tasks", tasks), ("kills", kills)):
        record_property(name, count)
