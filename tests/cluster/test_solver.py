"""Conjugate gradients on a cluster: the same bytes whatever the workers, dead ones too, and one wait per iteration."""

import os
import signal
from contextlib import contextmanager

import dask
import dask.array as da
import numpy as np
import pytest

from dred import KernelSolve
from dred.cluster import solver
from tests.cluster.local import mortal, threads

KILLED_AFTER = (5, solver.LONGEST + 3)  # iterations; the second time vectors have forgotten what they came from
CASES = {
    "none": {},
    "jacobi": {"preconditioner": "jacobi"},
    "cholesky": {"preconditioner": "cholesky", "rank": 3},
    "nystrom": {"preconditioner": "nystrom", "rank": 5},
}
HOW = {"alpha": 0.5, "eps": 1e-8, "backend": "cpu", "return_info": True}


def arrays(M=600):
    rng = np.random.default_rng(0)
    x, b = rng.normal(size=(M, 2)), rng.normal(size=(M, 2))
    return da.from_array(x, chunks=(250, 2)), da.from_array(x, chunks=(170, 2)), da.from_array(b, chunks=(99, 1))


@pytest.fixture(scope="module")
def solve():
    return KernelSolve("Exp(-SqDist(x, y)) * b", ["x = Vi(2)", "y = Vj(2)", "b = Vj(2)"], "b", axis=1)


@contextmanager
def counted(monkeypatch):
    """How often the client waits for the cluster, and whether for what it computes."""
    from distributed import Client

    waits, right = [], Client.sync
    with monkeypatch.context() as patch:
        patch.setattr(Client, "sync", lambda self, *a, **k: waits.append(a[0].__name__) or right(self, *a, **k))
        yield waits


@pytest.mark.slow
def test_one_wait_per_iteration(solve, monkeypatch):
    with threads(2), counted(monkeypatch) as waits:
        counts = []
        for maxiter in (4, 11):
            waits.clear()
            with pytest.warns(RuntimeWarning, match="the iterations came to their limit"):
                solve(*arrays(), **HOW, maxiter=maxiter, on_failure="warn")
            counts.append(len(waits))
        assert counts[1] - counts[0] == 7, waits
        assert counts[0] <= 4 + 4  # before the first iteration, and the true residual


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_same_bytes_on_any_cluster(solve, case):
    with dask.config.set(scheduler="sync"):
        a, info = solve(*arrays(), **HOW, **CASES[case])
        want = a.compute().tobytes()
    for workers in (1, 3):
        with threads(workers):
            a, other = solve(*arrays(), **HOW, **CASES[case])
            assert a.compute().tobytes() == want
            assert other.residuals.tobytes() == info.residuals.tobytes()


@pytest.mark.slow
def test_dead_workers(solve):
    with dask.config.set(scheduler="sync"):
        a, info = solve(*arrays(), **HOW)
        want = a.compute().tobytes()
    assert info.iterations > KILLED_AFTER[-1]
    with mortal(2) as client:
        client.wait_for_workers(2)
        killed = []

        def kill(iteration, residual):
            if iteration in KILLED_AFTER:
                pid = min(client.run(os.getpid).values())
                killed.append(pid)
                os.kill(pid, signal.SIGKILL)

        a, other = solve(*arrays(), **HOW, callback=kill)
        assert a.compute().tobytes() == want
    assert len({*killed}) == len(KILLED_AFTER)
    assert other.residuals.tobytes() == info.residuals.tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("large", [False, True])
def test_vectors_forget_what_they_came_from(solve, large):
    """The scheduler does not remember more and more tasks, whether vectors go back in a graph or by a file."""
    most = {"dred.graph-bytes": "1 kB"} if large else {}
    x, y, b = (a.persist() for a in arrays())
    seen = {}
    with threads(2) as client, dask.config.set(most):
        x, y, b = (a.persist() for a in arrays())

        def look(iteration, residual):
            seen[iteration] = client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))

        solve(x, y, b, **{**HOW, "eps": 1e-10}, callback=look)
    age = solver.LONGEST
    assert max(seen) > 2 * age
    assert seen[2 * age - 3] < 1.5 * seen[age - 3]
    assert seen[age + 1] < seen[age - 3] / 2
