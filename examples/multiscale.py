"""Optimal transport of large clouds, coarse to fine: Sinkhorn's iterations of clusters, then of the pairs that matter.

    python examples/multiscale.py --plot multiscale.png
    python examples/multiscale.py --size 1000000                          # this machine
    python examples/multiscale.py --size 1000000 --cluster local          # dask arrays, a few processes

Entropic transport with the cost |x - y|^2 / 2 needs one log-sum-exp over all pairs for each step (see `sinkhorn.py`).
Here points are sorted into the cells of a grid, and the first steps, of large eps, only see the centres of the cells.
When eps is below the size of a cell, pairs of cells whose plan is next to nothing, f + g - cost < -TRUNCATE eps, are
left out (Schmitzer 2019; Feydy 2020): block-sparse `ranges` say which are visited. The potentials are compared with
those of all pairs, and the pairs that are visited are counted.
"""

import numpy as np
from where import figure, parser, place  # beside this file

from dred import Genred, Ranges, cluster_ranges_centroids, from_matrix, grid_cluster, sort_clusters, swap_axes

log_sum = Genred(
    "h - SqDist(x, y) / (2 * eps)", ["x = Vi(2)", "y = Vj(2)", "h = Vj(1)", "eps = Pm(1)"], "LogSumExp", axis=1
)
BLUR, CELL, TRUNCATE = 0.02, 0.04, 10  # the last eps is BLUR^2; a cell is about as large
SCALES = [BLUR**2 * 2.0**k for k in range(10, -1, -1)]
STEPS = 12  # of the last eps


def softmin(x, y, logb, g, eps, ranges=None):
    """The potential of x that belongs to the potential g of y, whose points weigh exp(logb)."""
    return -eps * log_sum(x, y, g / eps + logb, np.array([eps]), ranges=ranges)


def step(x, y, loga, logb, f, g, eps, ranges=None):
    """Both potentials, each averaged with that of the other."""
    other = swap_axes(ranges)
    return (f + softmin(x, y, logb, g, eps, ranges)) / 2, (g + softmin(y, x, loga, f, eps, other)) / 2


def clusters(points):
    """Points sorted by cells of a grid; the cells' rows, centres, and logarithms of their weights."""
    points, labels = sort_clusters(points, grid_cluster(points, CELL))
    rows, centres, weights = cluster_ranges_centroids(points, labels, np.full(len(points), 1 / len(points)))
    return points, labels, rows, centres, np.log(weights)[:, None]


def coarse(x, y, loga, logb):
    """Potentials of the centres, until eps is that of a cell; and the scales that are left."""
    f, g = np.zeros((len(x), 1)), np.zeros((len(y), 1))
    for n, eps in enumerate(SCALES):
        f, g = step(x, y, loga, logb, f, g, eps)
        if eps < CELL**2:
            return f, g, SCALES[n:]
    return f, g, [SCALES[-1]]


def kept(x, y, f, g, eps):
    """Which pairs of cells matter: with a margin for what costs and potentials vary within a cell."""
    cost = ((x[:, None] - y) ** 2).sum(-1) / 2
    distance = np.sqrt(2 * cost)
    margin = distance * CELL * np.sqrt(2) + CELL**2  # of costs between two cells, as of their centres
    return f + g.T - cost + margin > -TRUNCATE * eps


def check(x, y, g, eps):
    """The potential of some points, by NumPy."""
    terms = (g.T - ((x[:, None] - y) ** 2).sum(-1) / 2) / eps - np.log(len(y))
    most = terms.max(1, keepdims=True)
    want = -eps * (most + np.log(np.exp(terms - most).sum(1, keepdims=True)))
    np.testing.assert_allclose(softmin(x, y, np.full_like(g, -np.log(len(y))), g, eps), want, rtol=1e-9, atol=1e-12)


def clouds(size, rng):
    """Two clouds of points: a ring, and a spiral beside it."""
    angle = 2 * np.pi * rng.random(size)
    ring = np.stack([0.4 * np.cos(angle), 0.4 * np.sin(angle)], axis=1) + 0.04 * rng.normal(size=(size, 2))
    t = np.sqrt(rng.random(size))
    spiral = 0.5 * t[:, None] * np.stack([np.cos(9 * t), np.sin(9 * t)], axis=1) + 0.02 * rng.normal(size=(size, 2))
    return ring + 0.5, spiral + np.array([0.7, 0.5])


def main():
    args = parser(__doc__, 20_000).parse_args()
    rng = np.random.default_rng(0)
    (x, x_cell, x_rows, x_centres, loga), (y, y_cell, y_rows, y_centres, logb) = map(clusters, clouds(args.size, rng))
    f, g, scales = coarse(x_centres, y_centres, loga, logb)
    print(f"{len(x):,} x {len(y):,} points in {len(x_rows):,} x {len(y_rows):,} cells")

    keep = kept(x_centres, y_centres, f, g, scales[0])
    ranges = Ranges.of(from_matrix(x_rows, y_rows, keep), len(x), len(y))
    part = ranges.over_j.pairs / len(x) / len(y)
    print(f"{keep.mean():.1%} of the pairs of cells matter, {part:.1%} of the pairs of points")
    assert part < 0.7

    check(x[:50], y[:3000], g[y_cell][:3000], scales[-1])
    even = np.log(1 / len(x))
    with place(args) as (put, hold):
        fine_x, fine_y, fx, gy = (put(a) for a in (x, y, f[x_cell], g[y_cell]))
        weight = 0 * fx + even  # logarithms of the weights of points
        sparse = dense = (fx, gy)
        for eps in [*scales, *[scales[-1]] * STEPS]:
            sparse = hold(*step(fine_x, fine_y, weight, weight, *sparse, eps, ranges))
            if len(x) <= 30_000:
                dense = hold(*step(fine_x, fine_y, weight, weight, *dense, eps))
        found, plain = ([np.asarray(a) for a in pair] for pair in (sparse, dense))
    value = found[0].mean() + found[1].mean()
    print(f"transport cost {value:.6f}")
    assert np.isfinite(value)
    if len(x) <= 30_000:
        worst = max(np.abs(a - b).max() for a, b in zip(found, plain, strict=True))
        print(f"with all pairs {plain[0].mean() + plain[1].mean():.6f}; potentials differ by {worst:.1e} at most")
        assert worst < 1e-8

    if args.plot:
        with figure(args.plot, 2) as axes:
            axes[0].scatter(*x[:5000].T, s=2, c=found[0][:5000, 0])
            axes[0].scatter(*y[:5000].T, s=2, c=found[1][:5000, 0])
            axes[0].set(title="both clouds and their potentials", aspect="equal")
            axes[1].imshow(keep, cmap="Greys", interpolation="nearest")
            axes[1].set(title="pairs of cells that are visited", xlabel="cells of y", ylabel="cells of x")


if __name__ == "__main__":
    main()
