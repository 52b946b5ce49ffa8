"""Kernel ridge regression: the progression of diabetes, from ten measurements of each patient.

    python examples/ridge_regression.py --plot ridge.png
    python examples/ridge_regression.py --size 20000 --cluster local             # dask arrays, a few processes
    python examples/ridge_regression.py --size 1000000 --scheduler tcp://host:8786

The weights of the patients solve (K + alpha Id) w = y by conjugate gradients, K a Gaussian kernel whose matrix is never
stored; predictions are sums over the patients. The error of predictions for others is a function of the bandwidth and
of alpha, whose gradient goes through the solution: one more solve, whatever the number of parameters. Beyond the 442
patients of the data set, more are made of them by some noise.

Weights and predictions are those of scikit-learn's KernelRidge, which stores the matrix, and gradients are finite
differences of other solves. The data are scikit-learn's, which must be installed.
"""

import numpy as np
from where import figure, parser, peer, place  # beside this file

import dred
from dred import Genred, KernelSolve

FORMULA, ALIASES = "Exp(-g * SqDist(x, y)) * w", ["x = Vi(10)", "y = Vj(10)", "g = Pm(1)", "w = Vj(1)"]
predict = Genred(FORMULA, ALIASES, axis=1)
solve = KernelSolve(FORMULA, ALIASES, "w", axis=1)
GAMMA, ALPHA, EPS = np.array([0.03]), 1.0, 1e-10


def patients(size, rng):
    """Measurements and progression, each of variance 1, in no order."""
    from sklearn.datasets import load_diabetes

    data = load_diabetes()
    x, y = data.data / data.data.std(axis=0), ((data.target - data.target.mean()) / data.target.std())[:, None]
    rows = rng.permutation(len(x)) if size <= len(x) else rng.integers(0, len(x), size)
    noise = 0.2 * rng.normal(size=(size, 11)) * (size > len(x))
    return x[rows[:size]] + noise[:, :10], y[rows[:size]] + noise[:, 10:]


def half_square(errors):
    """A number, of an array of any kind."""
    return float((errors**2).sum() / 2)


def main():
    args = parser(__doc__, 442).parse_args()
    rng = np.random.default_rng(0)
    x, y = patients(args.size, rng)
    last = args.size * 4 // 5
    with place(args) as (put, keep):
        known, told, new, wanted = (put(a) for a in (x[:last], y[:last], x[last:], y[last:]))
        w, pullback = dred.vjp(solve, known, known, GAMMA, told, alpha=ALPHA, eps=EPS)
        found = keep(predict(new, known, GAMMA, w))
        errors = found - wanted
        loss = half_square(errors)

        # the gradient of the loss: by the weights, and from these on by what they depend on; by what predicts besides
        _, back = dred.vjp(predict, new, known, GAMMA, w)
        _, _, by_gamma, by_w = back(errors)
        _, _, through, _, by_alpha = pullback(keep(by_w))
        gradient = float(np.asarray(by_gamma + through)[0]), float(by_alpha)

        def moved(gamma, alpha):
            weights = solve(known, known, gamma, told, alpha=alpha, eps=EPS)
            return half_square(predict(new, known, gamma, weights) - wanted)

        h = 1e-4
        numbers = (
            (moved(GAMMA * (1 + h), ALPHA) - moved(GAMMA * (1 - h), ALPHA)) / (2 * h * GAMMA[0]),
            (moved(GAMMA, ALPHA + h) - moved(GAMMA, ALPHA - h)) / (2 * h),
        )
        w, found = np.asarray(w), np.asarray(found)
    score = 1 - 2 * loss / ((y[last:] - y[last:].mean()) ** 2).sum()
    print(f"{args.size:,} patients, {args.size - last:,} of them new: {score:.4f} of their variance is predicted")
    print("gradient of the error by gamma {:.6g}, by alpha {:.6g}; ".format(*gradient), end="")
    print("by differences {:.6g}, {:.6g}".format(*numbers))

    np.testing.assert_allclose(gradient, numbers, rtol=1e-5)
    assert score > 0.3
    if args.size <= 10_000 and (sklearn := peer("sklearn.kernel_ridge")):
        theirs = sklearn.KernelRidge(kernel="rbf", gamma=GAMMA[0], alpha=ALPHA).fit(x[:last], y[:last])
        np.testing.assert_allclose(w, theirs.dual_coef_, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(found, theirs.predict(x[last:]), rtol=1e-6, atol=1e-8)

    if args.plot:
        with figure(args.plot) as (ax,):
            ax.plot(y[last:], found, ".", alpha=0.6)
            ax.plot([-2, 2], [-2, 2], "k:")
            ax.set(title=f"{score:.0%} of the variance of new patients", xlabel="progression", ylabel="predicted")


if __name__ == "__main__":
    main()
