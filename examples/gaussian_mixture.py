"""Gaussian mixtures with full covariances, fitted by expectation maximisation.

    python examples/gaussian_mixture.py --plot mixture.png
    python examples/gaussian_mixture.py --size 2000000 --cluster local             # dask arrays, a few processes
    python examples/gaussian_mixture.py --size 50000000 --scheduler tcp://host:8786

The pairs are those of a point x_i and a component j with weight, mean m_j and precision matrix P_j. The log-likelihood
l_i of a point is a log-sum-exp over the components; the share of component j in point i is then exp(log p_ij - l_i),
and one sum over the points gives all moments of all components. No step may lower the log-likelihood; the first step is
compared with NumPy, the last log-likelihood with SciPy, and the fit with what the points were drawn from.
"""

import numpy as np
from where import as_they_are, figure, parser, peer, place  # beside this file

from dred import Genred

D = 2
LOG_P = "c - WeightedSqDist(P, x, m) / 2"
VARIABLES = [f"x = Vi({D})", f"m = Vj({D})", f"P = Vj({D * D})", "c = Vj(1)"]  # c: the logarithms of all factors
evidence = Genred(LOG_P, VARIABLES, "LogSumExp", axis=1)
# for each component the shares, and with them the sums of x - m and of (x - m) (x - m)^T, about the mean of before
moments = Genred(
    f"let d = x - m; Exp({LOG_P} - l) * Concat(1, Concat(d, TensorProd(d, d)))",
    [*VARIABLES, "l = Vi(1)"],
    "Sum",
    axis=0,
)


def components(weights, means, covariances):
    """What the formulas take: m, P and c."""
    c = np.log(weights) - 0.5 * np.log(np.linalg.det(2 * np.pi * covariances))
    return means, np.linalg.inv(covariances).reshape(-1, D * D), c[:, None]


def step(x, mixture, keep):
    """The log-likelihood of a mixture (weights, means, covariances), and a mixture that has a higher one."""
    m, P, c = components(*mixture)
    l = keep(evidence(x, m, P, c))
    sums = np.asarray(moments(x, m, P, c, l))
    count, first, second = sums[:, 0], sums[:, 1 : 1 + D], sums[:, 1 + D :].reshape(-1, D, D)
    shift = first / count[:, None]
    covariances = second / count[:, None, None] - shift[:, :, None] * shift[:, None, :]
    return float(l.sum()), (count / len(x), m + shift, covariances)


def fit(x, mixture, keep, tolerance=1e-9, most=2000):
    """The mixture, and the log-likelihoods before each step until they hardly rise."""
    likelihoods = []
    for _ in range(most):
        found, after = step(x, mixture, keep)
        likelihoods.append(found)
        if len(likelihoods) > 1 and found - likelihoods[-2] < tolerance * len(x):
            return mixture, likelihoods
        mixture = after
    raise RuntimeError(f"the log-likelihood still rises after {most} steps")


def drawn(size, mixture, rng):
    """Points of a mixture."""
    weights, means, covariances = mixture
    labels, factors = rng.choice(len(weights), size, p=weights), np.linalg.cholesky(covariances)
    return means[labels] + np.einsum("nkl,nl->nk", factors[labels], rng.normal(size=(size, D)))


def check_step(points, mixture):
    """A step, by NumPy: with all pairs in memory, and about the new means."""
    weights, means, covariances = mixture
    d = points[:, None] - means
    powers = np.einsum("nkd,kde,nke->nk", d, np.linalg.inv(covariances), d)
    p = weights * np.exp(-powers / 2) / np.sqrt(np.linalg.det(2 * np.pi * covariances))
    share = p / p.sum(1, keepdims=True)
    count = share.sum(0)
    new = share.T @ points / count[:, None]
    d = points[:, None] - new
    expected = count / len(points), new, np.einsum("nk,nkd,nke->kde", share, d, d) / count[:, None, None]
    value, found = step(points, mixture, as_they_are)
    np.testing.assert_allclose(value, np.log(p.sum(1)).sum(), rtol=1e-10)
    for got, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-9)


def main():
    args = parser(__doc__, 20_000).parse_args()
    rng = np.random.default_rng(0)
    means = np.array([[-3.0, 0.0], [3.0, 0.0], [0.0, 3.0], [0.0, -2.0]])
    covariances = np.array([[[1, 0.8], [0.8, 1]], [[1, -0.7], [-0.7, 1]], [[2, 0], [0, 0.2]], [[0.3, 0], [0, 0.5]]])
    truth = np.array([0.3, 0.3, 0.25, 0.15]), means, covariances
    points = drawn(args.size, truth, rng)

    # round components about the true means, far off: which is which is known then
    start = np.full(4, 0.25), means + rng.normal(size=(4, D)), np.tile(4 * np.eye(D), (4, 1, 1))
    check_step(points[:5000], start)
    with place(args) as (put, keep):
        fitted, likelihoods = fit(put(points), start, keep)
    gain = np.diff(likelihoods)
    print(f"{args.size:,} points: log-likelihood {likelihoods[0]:.6g} -> {likelihoods[-1]:.6g}, {len(gain)} steps")
    assert (gain >= -1e-12 * abs(likelihoods[0])).all()

    off = [np.abs(got - wanted).max() for got, wanted in zip(fitted, truth, strict=True)]
    print("off the truth by at most {:.3f} (weights), {:.3f} (means), {:.3f} (covariances)".format(*off))
    assert max(off) < 20 / np.sqrt(args.size)
    if stats := peer("scipy.stats"):
        p = sum(w * stats.multivariate_normal(m, C).pdf(points) for w, m, C in zip(*fitted, strict=True))
        np.testing.assert_allclose(likelihoods[-1], np.log(p).sum(), rtol=1e-10)

    if args.plot:
        draw(args.plot, points, fitted, likelihoods)


def draw(path, points, mixture, likelihoods):
    """Points with the ellipses of two standard deviations; the log-likelihood."""
    angles = np.linspace(0, 2 * np.pi, 100)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    with figure(path, 2) as (left, right):
        left.scatter(*points[:5000].T, s=1, color="gray")
        for _, mean, covariance in zip(*mixture, strict=True):
            left.plot(*(mean + 2 * circle @ np.linalg.cholesky(covariance).T).T)
        left.set(title="two standard deviations", aspect="equal")
        right.plot(np.divide(likelihoods, len(points)), ".-")
        right.set(title="log-likelihood of a point", xlabel="step")


if __name__ == "__main__":
    main()
