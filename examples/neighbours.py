"""Neighbours, densities and soft assignments in one sweep over all pairs, then their gradient.

    python examples/neighbours.py [--points N] [--queries M] [--cluster] [--output DIR]

M queries meet N labelled points of three clouds in the plane. One routine computes for every query, in a single sweep,
the K nearest points (lowest row number first among equals), the log-density of a Gaussian mixture centred on the
points, the soft vote of the points for each label, and a histogram of the distances. Labels by vote are compared with
the true ones, all results with NumPy on a sample. The gradient of the log-density then moves the queries uphill (mean
shift): no step may lower a density.

With --cluster the same lines run on dask arrays and two local processes, and the bytes are compared.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from dred import Genred, Reduction

K = 9
VARIABLES = ["x = Vi(2)", "y = Vj(2)", "label = Vj(3)", "g = Pm(1)"]
LOG_KERNEL = "-g * SqDist(x, y)"
EDGES = np.linspace(0, 50, 26)


def clouds(count, rng):
    """Points of three clouds and their labels as 0, 1, 2."""
    centres, labels = np.array([[-2.0, 0.0], [2.0, 0.0], [0.0, 3.0]]), rng.integers(0, 3, count)
    return centres[labels] + rng.normal(size=(count, 2)) * 0.8, labels


def check(queries, points, found, sample):
    """Rows of a sample against NumPy, in float64."""
    neighbours, density, votes, counts, one_hot = found
    squares = ((queries[sample, None] - points) ** 2).sum(-1)
    np.testing.assert_array_equal(neighbours[sample], np.argsort(squares, axis=1, kind="stable")[:, :K])
    weights = np.exp(-squares)
    np.testing.assert_allclose(density[sample, 0], np.log(weights.sum(1)), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(votes[sample], weights @ one_hot / weights.sum(1, keepdims=True), rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(counts[sample], [np.histogram(row, EDGES)[0] for row in squares])


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--points", type=int, default=20_000)
    options.add_argument("--queries", type=int, default=5_000)
    options.add_argument("--cluster", action="store_true", help="also on two local processes")
    options.add_argument("--output", type=Path, help="folder for the result")
    given = options.parse_args()

    rng = np.random.default_rng(0)
    points, labels = clouds(given.points, rng)
    queries, truth = clouds(given.queries, rng)
    one_hot, g = np.eye(3)[labels], np.array([1.0])

    # -- four reductions of the same pairs: SqDist(x, y) and its exponentials are computed once
    routine = Genred(
        [
            ("SqDist(x, y)", "ArgKMin", K),
            (LOG_KERNEL, "LogSumExp"),
            (LOG_KERNEL, "SumSoftMaxWeight", None, "label"),
            ("SqDist(x, y)", "Histogram", EDGES),
        ],
        VARIABLES,
        axis=1,
    )
    start = time.perf_counter()
    neighbours, density, votes, counts = routine(queries, points, one_hot, g)
    print(f"{given.queries:,} x {given.points:,} pairs, 4 reductions: {time.perf_counter() - start:.2f} s")
    check(queries, points, (neighbours, density, votes, counts, one_hot), rng.integers(0, given.queries, 50))

    nearest = np.array([np.bincount(row, minlength=3).argmax() for row in labels[neighbours]])
    for name, guess in (("nearest neighbours", nearest), ("soft votes", votes.argmax(1))):
        right = (guess == truth).mean()
        print(f"labels by {name}: {right:.1%} right")
        assert right > 0.9

    # -- mean shift: the gradient of the log-density, by the saved state of the log-sum-exp
    uphill = Reduction(f"Grad(LogSumExp_Reduction({LOG_KERNEL}, 0), x, e)", [*VARIABLES, "e = Vi(1)"])
    higher = Genred(LOG_KERNEL, VARIABLES, "LogSumExp", axis=1)
    moved, ones = queries, np.ones((given.queries, 1))
    for _ in range(5):  # steps of mean shift never lower the density
        moved = moved + uphill(moved, points, one_hot, g, ones) / (2 * g)
    gain = higher(moved, points, one_hot, g) - density
    print(f"five steps of mean shift: log-density {density.mean():.3f} -> {(density + gain).mean():.3f}")
    assert (gain > -1e-9).all()

    if given.cluster:
        distributed(routine, (queries, points, one_hot, g), (neighbours, counts))
    if given.output:
        given.output.mkdir(parents=True, exist_ok=True)
        np.savez(given.output / "neighbours.npz", neighbours=neighbours, density=density, votes=votes, counts=counts)


def distributed(routine, arrays, wanted):
    """The same on dask arrays: four arrays over one set of fold tasks; indices and counts are the same bytes."""
    import dask
    import dask.array as da
    from distributed import Client

    queries, points, one_hot, g = arrays
    chunks = [max(1, len(queries) // 3), max(1, len(points) // 4)]
    with Client(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0"):
        lazy = routine(
            da.from_array(queries, (chunks[0], 2)),
            da.from_array(points, (chunks[1], 2)),
            da.from_array(one_hot, (chunks[1], 3)),
            g,
            backend="cpu",
        )
        neighbours, _, _, counts = dask.compute(*lazy)
    for name, a, b in (("neighbours", neighbours, wanted[0]), ("counts", counts, wanted[1])):
        assert a.tobytes() == b.tobytes()
        print(f"on two processes: the same {name}, byte for byte")


if __name__ == "__main__":
    main()
