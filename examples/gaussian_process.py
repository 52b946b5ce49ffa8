"""Gaussian process: a function of the plane from noisy samples, with the uncertainty of every value.

    python examples/gaussian_process.py --plot process.png
    python examples/gaussian_process.py --size 50000 --cluster local             # dask arrays, a few processes
    python examples/gaussian_process.py --size 1000000 --scheduler tcp://host:8786

The mean at a point t is sum_i k(t, x_i) w_i, where (K + noise^2 Id) w = y; the variance is k(t, t) less what the
samples explain of it, k(t, .) (K + noise^2 Id)^-1 k(., t). So there is one system for the mean, and one for each point
where the variance is wanted: all of these are columns of one block, so that each iteration of conjugate gradients takes
one sweep over the pairs of samples. A pivoted Cholesky decomposition of low rank is the preconditioner.

Means and deviations are those of scikit-learn's GaussianProcessRegressor, which stores the matrix; more than half of
the true values are within a deviation, and means are nearer to the truth than half of the noise.
"""

import numpy as np
from where import figure, parser, peer, place  # beside this file

from dred import Genred, KernelSolve

SIDE = 6  # points of a side of the grid on which the variance is wanted
POINTS, NOISE, G, EPS = SIDE**2, 0.2, np.array([12.0]), 1e-9
KERNEL = "Exp(-g * SqDist(x, y))"
covariances = Genred(
    f"{KERNEL} * e", ["x = Vi(2)", "y = Vj(2)", "g = Pm(1)", f"e = Vj({POINTS})"], axis=1
)  # of rows e of the identity: a matrix with few columns
mean = Genred(f"{KERNEL} * w", ["x = Vi(2)", "y = Vj(2)", "g = Pm(1)", "w = Vj(1)"], axis=1)
weights = KernelSolve(f"{KERNEL} * w", ["x = Vi(2)", "y = Vj(2)", "g = Pm(1)", f"w = Vj({POINTS + 1})"], "w", axis=1)


def truth(x):
    """The function that is looked for."""
    return np.sin(4 * x[:, :1]) * np.cos(3 * x[:, 1:]) + x[:, :1]


def grid(side):
    """The centres of the cells of a grid on the square."""
    along = (np.arange(side) + 0.5) / side
    return np.stack(np.meshgrid(along, along), axis=-1).reshape(-1, 2)


def main():
    args = parser(__doc__, 1000).parse_args()
    rng = np.random.default_rng(0)
    x, t = rng.random((args.size, 2)), grid(SIDE)
    y = truth(x) + NOISE * rng.normal(size=(args.size, 1))
    with place(args) as (put, keep):
        points, values = put(x), put(y)
        known = keep(covariances(points, t, G, np.eye(POINTS)))
        sides = keep(np.concatenate([values, known], axis=1))
        how = {"alpha": NOISE**2, "eps": EPS, "preconditioner": "cholesky", "rank": min(30, args.size)}
        w, info = weights(points, points, G, sides, return_info=True, **how)
        _, plain = weights(points, points, G, sides, return_info=True, alpha=NOISE**2, eps=EPS)
        means = np.asarray(mean(t, points, G, keep(w[:, :1])))
        variances = 1 - np.asarray((known * w[:, 1:]).sum(axis=0))
        fine = grid(40)
        drawn = np.asarray(mean(fine, points, G, keep(w[:, :1]))) if args.plot else None
    deviations = np.sqrt(variances)[:, None]
    errors = np.abs(means - truth(t))
    print(f"{args.size:,} samples, {POINTS + 1} systems: {info.iterations} iterations, {plain.iterations} without")
    print(f"off by {errors.mean():.4f}, deviation {deviations.mean():.4f}, noise {NOISE}")

    assert info.converged.all()
    assert plain.converged.all()
    assert info.iterations < plain.iterations / 3
    assert (variances > 0).all()
    assert errors.mean() < NOISE / 2
    assert (errors <= deviations).mean() > 0.5
    if args.size <= 5_000 and (sklearn := peer("sklearn.gaussian_process")):
        kernel = sklearn.kernels.RBF((2 * G[0]) ** -0.5)
        theirs = sklearn.GaussianProcessRegressor(kernel, alpha=NOISE**2, optimizer=None).fit(x, y[:, 0])
        their_means, their_deviations = theirs.predict(t, return_std=True)
        np.testing.assert_allclose(means[:, 0], their_means, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(deviations[:, 0], their_deviations, rtol=1e-5)

    if args.plot:
        with figure(args.plot, 2) as (left, right):
            left.imshow(drawn.reshape(40, 40), origin="lower", extent=(0, 1, 0, 1))
            left.plot(*x[:1000].T, "w.", markersize=1)
            left.set(title="posterior mean")
            shown = right.imshow(deviations.reshape(SIDE, SIDE), origin="lower", extent=(0, 1, 0, 1))
            right.figure.colorbar(shown)
            right.set(title="posterior deviation")


if __name__ == "__main__":
    main()
