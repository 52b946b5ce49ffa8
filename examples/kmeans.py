"""k-means by Lloyd's algorithm: the nearest centre of every point, then the mean of every centre's points.

    python examples/kmeans.py --plot kmeans.png
    python examples/kmeans.py --size 2000000 --cluster local             # dask arrays, a few processes
    python examples/kmeans.py --size 50000000 --scheduler tcp://host:8786

Both halves of a step are reductions over all pairs of a point and a centre: `min_argmin` over the centres, and sums
over the points whose label is that of the centre. Starts are k-means++, by a seed. The inertia, the sum of squared
distances to the nearest centre, may not grow from step to step; labels are compared with NumPy, and centres and
inertia with scikit-learn's from the same start.
"""

import dask
import numpy as np
from where import figure, parser, peer, place  # beside this file

from dred import Genred, Vi, Vj

PEER = 100_000  # points that a peer is given at most

# one row for each centre c_j: the sum of its points, and how many they are
totals = Genred(
    "(label == IndexJ()) * Concat(x, 1)", ["x = Vi(2)", "label = Vi(1)", "c = Vj(2)"], reduction_op="Sum", axis=0
)


def clouds(size, K, rng):
    """Points of K round clouds in the plane, which overlap a little."""
    return rng.uniform(-10, 10, (K, 2))[rng.integers(0, K, size)] + rng.normal(size=(size, 2))


def plus_plus(points, K, rng):
    """Starts of k-means++: each next one is a point, with a probability like its squared distance to those before."""
    centres = points[rng.integers(0, len(points), 1)]
    while len(centres) < K:
        squares = Vi(points).sqdist(Vj(centres)).min(axis=1)[:, 0]
        centres = np.concatenate([centres, points[rng.choice(len(points), 1, p=squares / squares.sum())]])
    return centres


def lloyd(x, centres, keep, steps):
    """Centres, labels (M, 1) and the inertia before each step, until no label changes."""
    inertias, before = [], -1
    for _ in range(steps):
        squares, labels = keep(*Vi(x).sqdist(Vj(centres)).min_argmin(axis=1))
        sums = totals(x, labels.astype(x.dtype), centres)
        inertia, changed, sums = dask.compute(squares.sum(), (labels != before).any(), sums)  # at once, where lazy
        inertias.append(inertia)
        if not changed:
            return centres, labels, inertias
        counts = sums[:, 2:]
        centres = np.where(counts > 0, sums[:, :2] / np.maximum(counts, 1), centres)  # without points it stays
        before = labels
    raise RuntimeError(f"labels still change after {steps} steps")


def main():
    options = parser(__doc__, 20_000)
    options.add_argument("--clusters", type=int, default=12, metavar="K")
    options.add_argument("--seed", type=int, default=0)
    args = options.parse_args()

    rng = np.random.default_rng(args.seed)
    points, K = clouds(args.size, args.clusters, rng), args.clusters
    start = plus_plus(points[rng.choice(args.size, min(args.size, 10_000), replace=False)], K, rng)
    with place(args) as (put, keep):
        centres, labels, inertias = lloyd(put(points), start, keep, steps=1000)
        labels = np.asarray(labels)[:, 0]
    print(
        f"{args.size:,} points, {K} centres: inertia {inertias[0]:.6g} -> {inertias[-1]:.6g} in {len(inertias)} steps"
    )

    # -- what must hold: the inertia never grows, each label is the nearest centre's, each centre is a mean
    assert (np.diff(inertias) <= 1e-12 * inertias[0]).all()
    sample = rng.integers(0, args.size, 1000)
    squares = ((points[sample, None] - centres) ** 2).sum(-1)
    np.testing.assert_array_equal(labels[sample], squares.argmin(1))
    for k in np.unique(labels):
        np.testing.assert_allclose(centres[k], points[labels == k].mean(0), rtol=1e-9)

    if args.size <= PEER and (sklearn := peer("sklearn.cluster")):
        # its tolerance 0 stops where no label changes
        theirs = sklearn.KMeans(K, init=start, n_init=1, algorithm="lloyd", tol=0, max_iter=1000).fit(points)
        np.testing.assert_allclose(inertias[-1], theirs.inertia_, rtol=1e-10)
        np.testing.assert_allclose(centres, theirs.cluster_centers_, rtol=1e-9)
        print(f"scikit-learn, from the same start: inertia {theirs.inertia_:.6g} in {theirs.n_iter_} steps")

    if args.plot:
        with figure(args.plot, 2) as (left, right):
            shown = rng.integers(0, args.size, min(args.size, 5000))
            left.scatter(*points[shown].T, c=labels[shown], s=2, cmap="tab20")
            left.plot(*centres.T, "k+", markersize=10)
            left.set(title="points by their centre", aspect="equal")
            right.semilogy(inertias, ".-")
            right.set(title="inertia", xlabel="step")


if __name__ == "__main__":
    main()
