"""Pairs per second of one core, reduction by reduction: dred beside NumPy, SciPy and scikit-learn.

    python benchmarks/reductions.py [seconds per measurement]

The terms are squared distances of points in 3 and 64 dimensions, float32. Every figure is CPU time of one thread, the
median of rounds in which both rivals of a row take turns; inputs and results are NumPy arrays, compilation is not
counted. Peers get a part of the rows: their speed does not depend on their number. "of Sum" compares with dred's own
sum of the same terms in the same run.
"""

import os
import platform
import statistics
import sys
import time
from importlib.metadata import version

os.environ["DRED_CACHE_DIR"] = "off"  # compilation is timed

import numpy as np
from scipy.special import logsumexp
from sklearn.metrics import pairwise_distances_argmin
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from dred.formula.language import formula
from dred.kernel import cpu, engine, machine
from dred.kernel.output import Output, empty
from dred.kernel.spec import KernelSpec

ROUNDS, CHUNK = 5, 256


def distances(x, y):
    squares = (x * x).sum(1)[:, None] + (y * y).sum(1) - 2 * (x @ y.T)
    return np.maximum(squares, 0, out=squares)


def by_rows(reduce):
    """A peer that has the matrix of distances, some rows at a time."""
    return lambda x, y: np.concatenate([reduce(distances(x[k : k + CHUNK], y)) for k in range(0, len(x), CHUNK)])


def neighbours(K):
    def peer(x, y):
        return NearestNeighbors(n_neighbors=K, algorithm="brute").fit(y).kneighbors(x, return_distance=False)

    return peer


EDGES = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6)
# reduction, its parameter, who is beside it, and how
ROWS = (
    ("Sum", None, "NumPy", by_rows(lambda d: d.sum(1))),
    ("Min", None, "NumPy", by_rows(lambda d: d.min(1))),
    ("ArgMin", None, "scikit-learn", lambda x, y: pairwise_distances_argmin(x, y)),
    ("ArgKMin", 10, "scikit-learn", neighbours(10)),
    ("ArgKMin", 100, "scikit-learn", neighbours(100)),
    ("ArgKMin", 1000, "scikit-learn", neighbours(1000)),
    ("LogSumExp", None, "SciPy", by_rows(lambda d: logsumexp(-d, axis=1))),
    ("Mean", None, "NumPy", by_rows(lambda d: d.mean(1))),
    ("Variance", 0, "NumPy", by_rows(lambda d: d.var(1))),
    ("Histogram", EDGES, "NumPy", by_rows(lambda d: np.array([np.histogram(row, EDGES)[0] for row in d]))),
)


def seconds(work):
    start = time.thread_time()
    work()
    return time.thread_time() - start


def measure(name, parameter, peer, D, budget):
    """Rates of dred, of the peer, of dred's sum."""
    f = formula(f"SqDist(x, y){' * -1' if name == 'LogSumExp' else ''}", [f"x = Vi({D})", f"y = Vj({D})"])
    rng = np.random.default_rng(0)
    N = 20_000
    M = max(256, int(budget * 2e8 / N) // 256 * 256)
    x, y = (rng.random((n, D)).astype("float32") for n in (M, N))
    specs = [
        KernelSpec.of(f.node, which, 1, "float32", "float64", variables=f.variables, parameter=p)
        for which, p in ((name, parameter), ("Sum", None))
    ]
    start = time.perf_counter()
    cpu.compiled(specs[0])
    compiling = time.perf_counter() - start

    def run(spec):
        state = cpu.fold(spec, empty(spec, M), spec.arrays([x, y]), M, N, threads=1)
        return engine.finalize(spec, state, Output.of(name if spec is specs[0] else "Sum", 0, parameter))

    some = min(M, 512)
    mine, theirs = run(specs[0])[0][:some], peer(x[:some], y)
    if name.startswith("Arg"):  # equal up to ties and rounding
        assert (mine.reshape(some, -1) == theirs.reshape(some, -1)).mean() > 0.9, name
    run(specs[1])
    rates = {"dred": [], "peer": [], "sum": []}
    for _ in range(ROUNDS):
        rates["dred"].append(M * N / seconds(lambda: run(specs[0])))
        rates["peer"].append(some * N / seconds(lambda: peer(x[:some], y)))
        rates["sum"].append(M * N / seconds(lambda: run(specs[1])))
    return [statistics.median(rates[which]) for which in rates], compiling


def main():
    budget = float(sys.argv[1]) if len(sys.argv) > 1 else 0.3
    names = " ".join(f"{name} {version(name)}" for name in ("numpy", "scipy", "scikit-learn", "llvmlite"))
    print(f"{machine.processor()} ({machine.host().cpu}), {os.cpu_count()} CPUs")
    print(f"Python {platform.python_version()}, {names}")
    print("G pairs/s of one core, squared distances in float32")
    print(
        f"{'':10s} {'':>5s} {'D':>3s} {'dred':>7s} {'peer':>7s} {'ratio':>6s} {'of Sum':>7s} {'compile ms':>10s}  peer"
    )
    with threadpool_limits(1):
        for D in (3, 64):
            for name, parameter, who, peer in ROWS:
                (dred, rival, total), compiling = measure(name, parameter, peer, D, budget)
                shown = parameter if isinstance(parameter, int) and name != "Variance" else ""
                print(
                    f"{name:10s} {shown!s:>5s} {D:3d} {dred / 1e9:7.3f} {rival / 1e9:7.3f} {dred / rival:6.1f} "
                    f"{dred / total:7.0%} {compiling * 1e3:10.0f}  {who}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
