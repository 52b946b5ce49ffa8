"""The Sinkhorn divergence of two clouds in the log domain, its gradient by the points, and the flow that it drives.

    python examples/sinkhorn.py --plot sinkhorn.png
    python examples/sinkhorn.py --size 20000 --cluster local             # dask arrays, a few processes
    python examples/sinkhorn.py --size 200000 --scheduler tcp://host:8786

Entropic optimal transport with the cost |x - y|^2 / 2 has potentials f and g, with uniform weights the fixed point of

    f_i = -eps log mean_j exp((g_j - |x_i - y_j|^2 / 2) / eps),    and of the same with x, f and y, g exchanged,

which is one log-sum-exp over all pairs. They are found for large eps first, then for smaller ones. The divergence is
debiased by the transport of each cloud to itself. At the fixed point potentials need not be differentiated: its
gradient by x_i is that of the log-sum-exp alone. A cloud moved by t has the divergence |t|^2 / 2 and the gradient
-t / M; that is checked, and the sums of the plan, by NumPy, and the gradient, by differences. Then one cloud flows to
the other.
"""

import numpy as np
from where import as_they_are, figure, parser, place  # beside this file

from dred import Genred

# The gradient by x reads h and eps as constants: potentials are at their fixed point.
log_sum = Genred(
    "h - SqDist(x, y) / (2 * eps)", ["x = Vi(2)", "y = Vj(2)", "h = Vj(1)", "eps = Pm(1)"], "LogSumExp", axis=1
)
slope = log_sum.grad("x")
EPS = 0.05**2
SCALES = [EPS * 4.0**k for k in range(5, -1, -1)]  # of clouds in the unit square


def softmin(x, y, g, eps):
    """The potential of x that belongs to the potential g of y."""
    return -eps * log_sum(x, y, g / eps - np.log(len(y)), np.array([eps]))


def solve(update, f, keep, tolerance, most=200):
    """The fixed point of `update(f, eps)` for the last eps, from a start and through the ones before."""
    for eps in SCALES:
        f = update(f, eps)
    for _ in range(most):  # five steps at once: on a cluster a round trip takes longer than they do
        for _ in range(4):
            f = update(f, EPS)
        f, before = keep(update(f, EPS), f)
        if abs(f - before).max() <= tolerance:
            return f
    raise RuntimeError(f"potentials still change by more than {tolerance:g} after {5 * most} steps")


def transport(x, y, keep, tolerance):
    """The potentials f of x and g of y; those of a cloud and itself are equal."""
    if x is y:  # averaged: it converges faster by far
        f = solve(lambda f, eps: (f + softmin(x, x, f, eps)) / 2, 0 * x[:, :1], keep, tolerance)
        return f, f
    f = solve(lambda f, eps: softmin(x, y, softmin(y, x, f, eps), eps), 0 * x[:, :1], keep, tolerance)
    return f, keep(softmin(y, x, f, EPS))


def divergence(x, y, keep, tolerance=1e-9):
    """The Sinkhorn divergence, and its gradient by the points x."""
    (f, g), (p, _), (q, _) = (transport(*pair, keep, tolerance) for pair in ((x, y), (x, x), (y, y)))
    value = f.mean() - p.mean() + g.mean() - q.mean()
    e, eps = 0 * f - EPS / len(x), np.array([EPS])
    to_y = slope(x, y, g / EPS - np.log(len(y)), eps, e)
    to_x = slope(x, x, p / EPS - np.log(len(x)), eps, e)
    return float(value), keep(to_y - to_x)


def clouds(size, rng):
    """Two clouds in the unit square: a disc, and two arcs."""
    radius, angle = 0.15 * np.sqrt(rng.random(size)), 2 * np.pi * rng.random(size)
    disc = np.stack([0.25 + radius * np.cos(angle), 0.3 + radius * np.sin(angle)], axis=1)
    side, angle = rng.integers(0, 2, size), np.pi * rng.random(size)
    sign = 1 - 2 * side
    arcs = np.stack([0.6 + 0.1 * side + 0.2 * np.cos(angle), 0.6 - 0.05 * sign + 0.2 * sign * np.sin(angle)], axis=1)
    return disc, arcs + 0.02 * rng.normal(size=(size, 2))


def check(x, y, rng):
    """Plan, divergence and gradient of two small clouds."""
    f, g = transport(x, y, as_they_are, 1e-9)
    plan = np.exp((f + g.T - ((x[:, None] - y) ** 2).sum(-1) / 2) / EPS) / len(x) / len(y)
    np.testing.assert_allclose(plan.sum(1), 1 / len(x), rtol=1e-5)
    np.testing.assert_allclose(plan.sum(0), 1 / len(y), rtol=1e-5)

    t = np.array([0.3, -0.1])
    value, gradient = divergence(x, x + t, as_they_are)
    np.testing.assert_allclose(value, (t @ t) / 2, rtol=1e-6)
    np.testing.assert_allclose(gradient, np.tile(-t / len(x), (len(x), 1)), atol=1e-5 / len(x))

    gradient, v, h = divergence(x, y, as_they_are)[1], rng.normal(size=x.shape), 1e-4
    by_differences = (divergence(x + h * v, y, as_they_are)[0] - divergence(x - h * v, y, as_they_are)[0]) / (2 * h)
    print(f"derivative in a random direction: {(gradient * v).sum():.8f}, by differences {by_differences:.8f}")
    np.testing.assert_allclose((gradient * v).sum(), by_differences, rtol=1e-4)


def main():
    options = parser(__doc__, 1000)
    options.add_argument("--steps", type=int, default=6, help="of the flow")
    args = options.parse_args()
    rng = np.random.default_rng(0)
    points, target = clouds(args.size, rng)
    check(points[:200], target[:150], rng)

    with place(args) as (put, keep):
        x, y = put(points), put(target)
        values, path = [], [points]
        for step in range(args.steps + 1):
            value, gradient = divergence(x, y, keep, tolerance=1e-5)
            values.append(value)
            print(f"step {step}: divergence {value:.3e}")
            if step < args.steps:
                x = keep(x - 0.5 * len(x) * gradient)  # half of the way, which leaves a quarter of the divergence
                path.append(np.asarray(x))
    assert values[-1] >= 0
    assert (np.divide(values[1:], values[:-1]) < 0.35).all()

    if args.plot:
        with figure(args.plot) as (ax,):
            ax.plot(*target[:3000].T, ".", color="lightgray", markersize=4)
            for k, moved in enumerate(path):
                ax.scatter(*moved[:3000].T, s=2, color=(k / len(path), 0.2, 1 - k / len(path)))
            ax.set(title="the flow of a cloud (blue to red) to another (grey)", aspect="equal")


if __name__ == "__main__":
    main()
