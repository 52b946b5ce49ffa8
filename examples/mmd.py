"""Two-sample tests by the maximum mean discrepancy, with the p-values of permutations.

    python examples/mmd.py --plot mmd.png
    python examples/mmd.py --size 20000 --cluster local                  # dask arrays, a few processes
    python examples/mmd.py --size 200000 --scheduler tcp://host:8786

Were two samples drawn from one distribution? With weights w = 1/M for the points of the first one and -1/N for those of
the second one, the squared discrepancy is the sum over all pairs of w_i K_ij w_j. If they were, any other division of
the pooled points into M and N does as well: the p-value says how many of those have one at least as large. All
divisions are columns of one matrix, and Gaussian kernels of several widths share the distances, so that everything is
one sweep over the pairs.

At the level of 1 %, samples of one distribution must pass; a normal and a uniform one of equal means and covariances
must not, which takes a thousand points. Discrepancies are compared with NumPy's, and are 0 of a sample and itself.
"""

import numpy as np
from where import figure, parser, place  # beside this file

from dred import Vi, Vj

WIDTHS = np.array([0.3, 0.6, 1.2])
LEVEL = 0.01


def discrepancies(points, weights):
    """The squared discrepancy of each kernel (rows) for each column of the weights."""
    kernels = (-Vi(points).sqdist(Vj(points)) / (2 * WIDTHS**2)).exp()  # a vector of three for every pair
    sums = kernels.tensorprod(Vj(weights)).sum(axis=1).reshape((-1, 3, weights.shape[1]))
    return np.asarray((weights[:, None] * sums).sum(axis=0))


def divisions(M, N, permutations, rng):
    """Weights (M + N, 1 + permutations) of the given division and of random ones."""
    given = np.repeat([1 / M, -1 / N], [M, N])
    return np.stack([given, *(rng.permutation(given) for _ in range(permutations))], axis=1)


def test(first, second, permutations, put, rng):
    """The p-value of each kernel, one for all of them, and the discrepancies.

    That for all is the test by the largest discrepancy, each in standard deviations of its permutations.
    """
    weights = divisions(len(first), len(second), permutations, rng)
    found = discrepancies(put(np.concatenate([first, second])), put(weights))
    scaled = (found - found.mean(1, keepdims=True)) / found.std(1, keepdims=True)
    values = np.concatenate([found, scaled.max(0, keepdims=True)])
    larger = values >= values[:, :1] * (1 - 1e-9)  # of equal ones the last bits may differ
    *each, together = larger.mean(1)  # the given division is one of them
    return each, together, found


def main():
    options = parser(__doc__, 1000)
    options.add_argument("--permutations", type=int, default=199)
    args = options.parse_args()
    rng, half = np.random.default_rng(0), max(2, args.size // 2)
    normal, again, uniform = (rng.normal(size=(n, 2)) for n in (half, args.size - half, args.size - half))
    uniform = rng.uniform(-np.sqrt(3), np.sqrt(3), uniform.shape)

    with place(args) as (put, _):
        results = {}
        for name, other in (("normal and normal", again), ("normal and uniform", uniform)):
            each, together, found = test(normal, other, args.permutations, put, rng)
            results[name] = together, found
            texts = ", ".join(f"{p:.3f} (width {width:g})" for width, p in zip(WIDTHS, each, strict=True))
            print(f"{name}: p = {together:.3f} of all kernels; {texts}")
    assert results["normal and normal"][0] > LEVEL
    assert results["normal and uniform"][0] <= LEVEL

    # -- against NumPy, with all pairs in memory, and of a sample and itself
    few, other = normal[:100], uniform[:80]
    weights, pooled = divisions(100, 80, 3, rng), np.concatenate([few, other])
    squares = ((pooled[:, None] - pooled) ** 2).sum(-1)
    expected = [np.einsum("ic,ij,jc->c", weights, np.exp(-squares / (2 * h**2)), weights) for h in WIDTHS]
    np.testing.assert_allclose(discrepancies(pooled, weights), expected, rtol=1e-9)
    same = discrepancies(np.concatenate([few, few]), divisions(100, 100, 0, rng))
    np.testing.assert_allclose(same, 0, atol=1e-15)

    if args.plot:
        with figure(args.plot, 2) as axes:
            for ax, (name, (p, found)) in zip(axes, results.items(), strict=True):
                ax.hist(found[1, 1:], bins=30, color="gray")
                ax.axvline(found[1, 0], color="red")
                ax.set(title=f"{name}: p = {p:.3f}", xlabel="squared discrepancy of divisions, and of the given one")


if __name__ == "__main__":
    main()
