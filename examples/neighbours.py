"""Neighbours, densities and soft assignments in one sweep over all pairs, then their gradient.

    python examples/neighbours.py --plot neighbours.png
    python examples/neighbours.py --size 200000 --cluster local          # dask arrays, a few processes
    python examples/neighbours.py --size 5000000 --scheduler tcp://host:8786

Queries meet four times as many labelled points of three clouds in the plane. One routine computes for every query, in a
single sweep, the K nearest points (lowest row number first among equals), the log-density of a Gaussian mixture centred
on the points, the soft vote of the points for each label, and a histogram of the distances. Queries are classified by
the votes of their neighbours, and by soft votes; both are compared with the truth, all results with NumPy on a sample.
The gradient of the log-density then moves the queries uphill (mean shift): no step may lower a density.

What a cluster finds for that sample is compared with what this process finds: row numbers and counts, byte for byte.
"""

import time
from pathlib import Path

import numpy as np
from where import figure, parser, place  # beside this file

from dred import Genred, Reduction

K = 9
VARIABLES = ["x = Vi(2)", "y = Vj(2)", "label = Vj(3)", "g = Pm(1)"]
LOG_KERNEL = "-g * SqDist(x, y)"
EDGES = np.linspace(0, 50, 26)

# four reductions of the same pairs: SqDist(x, y) and its exponentials are computed once
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


def clouds(count, rng):
    """Points of three clouds and their labels as 0, 1, 2."""
    centres, labels = np.array([[-2.0, 0.0], [2.0, 0.0], [0.0, 3.0]]), rng.integers(0, 3, count)
    return centres[labels] + rng.normal(size=(count, 2)) * 0.8, labels


def check(queries, points, one_hot, found):
    """What was found for some queries against NumPy, in float64."""
    neighbours, density, votes, counts = found
    squares = ((queries[:, None] - points) ** 2).sum(-1)
    np.testing.assert_array_equal(neighbours, np.argsort(squares, axis=1, kind="stable")[:, :K])
    weights = np.exp(-squares)
    np.testing.assert_allclose(density[:, 0], np.log(weights.sum(1)), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(votes, weights @ one_hot / weights.sum(1, keepdims=True), rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(counts, [np.histogram(row, EDGES)[0] for row in squares])


def classes(labels, neighbours):
    """The label that most neighbours have, the lowest one among equals."""
    return (labels[neighbours][..., None] == np.arange(3)).sum(1).argmax(1)


def main():
    options = parser(__doc__, 20_000)
    options.add_argument("--output", type=Path, help="folder for the results")
    args = options.parse_args()

    rng = np.random.default_rng(0)
    points, labels = clouds(args.size, rng)
    queries, truth = clouds(max(1, args.size // 4), rng)
    one_hot, g = np.eye(3)[labels], np.array([1.0])
    with place(args) as (put, keep):
        x, y, label, e = put(queries), put(points), put(one_hot), put(np.ones((len(queries), 1)))
        start = time.perf_counter()
        lazy = keep(*routine(x, y, label, g))
        found = neighbours, density, votes, counts = [np.asarray(each) for each in lazy]
        print(f"{len(x):,} x {len(y):,} pairs, 4 reductions: {time.perf_counter() - start:.2f} s")

        # -- mean shift: the gradient of the log-density, by the saved state of the log-sum-exp
        uphill = Reduction(f"Grad(LogSumExp_Reduction({LOG_KERNEL}, 0), x, e)", [*VARIABLES, "e = Vi(1)"])
        higher = Genred(LOG_KERNEL, VARIABLES, "LogSumExp", axis=1)
        for _ in range(5):  # steps of mean shift never lower the density
            x = keep(x + uphill(x, y, label, g, e) / (2 * g))
        gain = np.asarray(higher(x, y, label, g)) - density
    print(f"five steps of mean shift: log-density {density.mean():.3f} -> {(density + gain).mean():.3f}")
    assert (gain > -1e-9).all()

    sample = rng.integers(0, len(queries), 50)
    check(queries[sample], points, one_hot, [each[sample] for each in found])
    if args.cluster or args.scheduler_file:
        here = routine(queries[sample], points, one_hot, g)
        for name, a, b in (("neighbours", here[0], neighbours[sample]), ("counts", here[3], counts[sample])):
            assert a.tobytes() == b.tobytes()
            print(f"in this process: the same {name}, byte for byte")

    nearest = classes(labels, neighbours)
    for name, guess in (("nearest neighbours", nearest), ("soft votes", votes.argmax(1))):
        right = (guess == truth).mean()
        print(f"labels by {name}: {right:.1%} right")
        assert right > 0.9

    if args.plot:
        draw(args.plot, points, labels, one_hot, g)
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        np.savez(args.output / "neighbours.npz", neighbours=neighbours, density=density, votes=votes, counts=counts)


def draw(path, points, labels, one_hot, g):
    """The plane by the label of the neighbours, and by the log-density."""
    side = np.linspace(-5, 6, 100)
    grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    neighbours, density, _, _ = routine(grid, points, one_hot, g)
    with figure(path, 2) as (left, right):
        left.contourf(side, side, classes(labels, neighbours).reshape(100, 100), levels=2, cmap="viridis", alpha=0.4)
        left.scatter(*points[:2000].T, c=labels[:2000], s=2)
        left.set(title=f"labels by {K} neighbours", aspect="equal")
        right.contourf(side, side, density.reshape(100, 100), levels=20)
        right.set(title="log-density", aspect="equal")


if __name__ == "__main__":
    main()
