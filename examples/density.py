"""Kernel density estimation in a periodic box, with the bandwidth that predicts each point best from all others.

    python examples/density.py --plot density.png
    python examples/density.py --size 20000 --cluster local              # dask arrays, a few processes
    python examples/density.py --size 1000000 --scheduler tcp://host:8786

Opposite sides of the box are one: a mask takes the shorter way round, coordinate by coordinate. The leave-one-out
log-likelihood of a bandwidth h adds up the log-densities at each point of the Gaussians about all others; the pair of a
point and itself is masked by row numbers. All bandwidths are one vector of exponents, so that they take one sweep.

Rows of it are compared with NumPy. With the chosen bandwidth the density adds up to 1, is nearer to the truth than with
a third of it and with three times as much, and equals that of scikit-learn, which takes copies of the points for it.
"""

import numpy as np
from where import figure, parser, peer, place  # beside this file

from dred import Genred

BANDWIDTHS = 0.1 * 0.7 ** np.arange(10)  # down to 0.004 of the box
SQUARE = "let d = Abs(x - y); let q = SqNorm2(IfElse(0.5 - d, d, 1 - d)); "
LOG_KERNEL = "-q / (2 * Square(h))"
everyone = Genred(SQUARE + LOG_KERNEL, ["x = Vi(2)", "y = Vj(2)", "h = Pm(1)"], "LogSumExp", axis=1)
others = Genred(
    f"{SQUARE} IfElse((IndexI() != IndexJ()) - 1, {LOG_KERNEL}, Log(0))",  # nothing is the exponential of Log(0)
    ["x = Vi(2)", "y = Vj(2)", f"h = Pm({len(BANDWIDTHS)})"],
    "LogSumExp",
    axis=1,
)
WEIGHTS = np.array([0.3, 0.3, 0.2, 0.2])  # the last one is of the uniform distribution
MEANS, DEVIATIONS = np.array([[0.05, 0.05], [0.5, 0.6], [0.75, 0.25]]), np.array([0.1, 0.06, 0.04])


def drawn(size, rng):
    """Points of three Gaussians on the torus and of the uniform distribution."""
    kinds = rng.choice(4, size, p=WEIGHTS)
    normal = MEANS[kinds % 3] + DEVIATIONS[kinds % 3, None] * rng.normal(size=(size, 2))
    return np.where(kinds[:, None] < 3, normal, rng.random((size, 2))) % 1


def truth(places):
    """Their density."""
    d = np.abs(places[:, None] - MEANS)
    q = (np.minimum(d, 1 - d) ** 2).sum(-1) / (2 * DEVIATIONS**2)
    return np.exp(-q) @ (WEIGHTS[:3] / (2 * np.pi * DEVIATIONS**2)) + WEIGHTS[3]


def density(places, points, h):
    """The density with a bandwidth."""
    return np.exp(np.asarray(everyone(places, points, np.array([h])))[:, 0]) / (len(points) * 2 * np.pi * h**2)


def grid(side):
    """The centres of the cells of a grid."""
    along = (np.arange(side) + 0.5) / side
    return np.stack(np.meshgrid(along, along), axis=-1).reshape(-1, 2)


def check(points, sample, logs):
    """Rows of the leave-one-out sums, by NumPy."""
    d = np.abs(points[sample, None] - points)
    q = (np.minimum(d, 1 - d) ** 2).sum(-1)
    q[np.arange(len(sample)), sample] = np.inf
    for k, h in enumerate(BANDWIDTHS):
        expected = np.logaddexp.reduce(-q / (2 * h**2), axis=1)
        np.testing.assert_allclose(logs[sample, k], expected, rtol=1e-9, atol=1e-9)


def main():
    args = parser(__doc__, 5000).parse_args()
    rng = np.random.default_rng(0)
    points = drawn(args.size, rng)
    with place(args) as (put, keep):
        x = put(points)
        logs = keep(others(x, x, BANDWIDTHS))
        likelihoods = np.asarray(logs.mean(axis=0)) - np.log((args.size - 1) * 2 * np.pi * BANDWIDTHS**2)
        best = int(likelihoods.argmax())
        h = BANDWIDTHS[best]
        places = grid(int(2 / h))
        found = {factor: density(places, x, factor * h) for factor in (1 / 3, 1, 3)}
        logs = np.asarray(logs)
    print(f"{args.size:,} points: bandwidth {h:.4f}, leave-one-out log-likelihood of a point {likelihoods[best]:.4f}")

    assert 0 < best < len(BANDWIDTHS) - 1
    check(points, rng.integers(0, args.size, 20), logs)
    np.testing.assert_allclose(found[1].mean(), 1, rtol=1e-6)
    errors = {factor: np.abs(values - truth(places)).mean() for factor, values in found.items()}
    print(", ".join(f"{factor:.2g} h: {error:.3f} off the true density" for factor, error in errors.items()))
    assert errors[1] < min(errors[1 / 3], errors[3])

    if args.size <= 10_000 and (sklearn := peer("sklearn.neighbors")):
        shifts = np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1]), axis=-1).reshape(-1, 1, 2)
        copies = (points + shifts).reshape(-1, 2)
        some = places[:: len(places) // 50]
        theirs = 9 * np.exp(sklearn.KernelDensity(bandwidth=h).fit(copies).score_samples(some))
        np.testing.assert_allclose(found[1][:: len(places) // 50], theirs, rtol=1e-5)

    if args.plot:
        with figure(args.plot, 2) as (left, right):
            side = int(2 / h)
            left.imshow(found[1].reshape(side, side), origin="lower", extent=(0, 1, 0, 1))
            left.plot(*points[:1000].T, "w.", markersize=1)
            left.set(title=f"density in a periodic box, h = {h:.3f}")
            right.semilogx(BANDWIDTHS, likelihoods, ".-")
            right.set(title="leave-one-out log-likelihood of a point", xlabel="bandwidth")


if __name__ == "__main__":
    main()
