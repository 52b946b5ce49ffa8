"""Gravity of N bodies: softened forces as the gradient of the potential, leapfrog steps, and what they conserve.

    python examples/n_body.py --plot bodies.png
    python examples/n_body.py --size 20000 --cluster local               # dask arrays, a few processes
    python examples/n_body.py --size 1000000 --scheduler tcp://host:8786

Two Plummer spheres in equilibrium fall towards each other, in units with G = 1. The potential of a body is a formula of
all pairs; its gradient by the body, the acceleration, is another one, which nobody writes down. Accelerations are
compared with NumPy on a sample. Momentum and angular momentum are conserved but for rounding, since forces are
opposite; the energy within 5e-4 of it; and since leapfrog steps are reversible, the way back ends at the start.
"""

import numpy as np
from where import figure, parser, place  # beside this file

from dred import Vi, Vj

SOFTENING = 0.1  # of distances, in radii of a sphere


def potential(xi, xj, mass):
    """What each body has to each other one, as a formula: -m_j / sqrt(|x_i - x_j|^2 + softening^2)."""
    return -Vj(mass) * (xi.sqdist(xj) + SOFTENING**2).rsqrt()


def acceleration(x, mass):
    """Minus the gradient of the potential by the place of the body; that of a body to itself has gradient 0."""
    xi = Vi(x)
    return -potential(xi, Vj(x), mass).grad(xi, 1).sum(axis=1)


def leapfrog(x, v, mass, dt, steps, keep):
    """Places and velocities after some steps: half a kick, a drift, half a kick."""
    a = acceleration(x, mass)
    for _ in range(steps):
        v = v + dt / 2 * a
        x = keep(x + dt * v)
        a = acceleration(x, mass)
        v, a = keep(v + dt / 2 * a, a)
    return x, v


def conserved(x, v, mass):
    """Energy, momentum and angular momentum."""
    kinetic = (mass * v**2).sum() / 2
    pairs = (mass * potential(Vi(x), Vj(x), mass).sum(axis=1)).sum() / 2 + (mass**2).sum() / SOFTENING / 2
    turn = [(mass[:, 0] * (x[:, k - 2] * v[:, k - 1] - x[:, k - 1] * v[:, k - 2])).sum() for k in range(3)]
    return float(kinetic + pairs), np.asarray((mass * v).sum(axis=0)), np.array([float(each) for each in turn])


def directions(size, rng):
    found = rng.normal(size=(size, 3))
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def plummer(size, rng):
    """Places and velocities in a sphere of mass and radius 1 in equilibrium (Aarseth, Henon and Wielen, 1974)."""
    radius = 1 / np.sqrt(rng.uniform(0.01, 0.97, (size, 1)) ** (-2 / 3) - 1)
    q, chance = rng.random((2, 40 * size))  # of the speed of escape: its density is q^2 (1 - q^2)^3.5, below 0.1
    q = q[0.1 * chance < q**2 * (1 - q**2) ** 3.5][:size, None]
    speed = q * np.sqrt(2) * (1 + radius**2) ** -0.25
    return radius * directions(size, rng), speed * directions(size, rng)


def main():
    options = parser(__doc__, 2000)
    options.add_argument("--steps", type=int, default=150)
    args = options.parse_args()
    rng, half = np.random.default_rng(0), args.size // 2
    apart, towards = np.array([2.5, 0.6, 0.0]), np.array([-0.4, 0.1, 0.0])
    (x1, v1), (x2, v2) = plummer(half, rng), plummer(half, rng)
    start = np.concatenate([x1 + apart, x2 - apart]), np.concatenate([v1 + towards, v2 - towards])
    masses, dt = np.full((2 * half, 1), 1 / half), 0.05

    with place(args) as (put, keep):
        x, v, mass = put(start[0]), put(start[1]), put(masses)
        before = conserved(x, v, mass)
        x, v = leapfrog(x, v, mass, dt, args.steps, keep)
        after = conserved(x, v, mass)
        pulled, end = np.asarray(acceleration(x, mass)), np.asarray(x)
        back, _ = leapfrog(x, -v, mass, dt, args.steps, keep)
        back = np.asarray(back)

    sample = rng.integers(0, len(end), 20)
    d = end - end[sample, None]
    expected = (masses * d / ((d**2).sum(-1, keepdims=True) + SOFTENING**2) ** 1.5).sum(1)
    np.testing.assert_allclose(pulled[sample], expected, rtol=1e-9, atol=1e-12)

    energy = abs(after[0] / before[0] - 1)
    momentum, turn = (np.abs(b - a).max() for a, b in zip(before[1:], after[1:], strict=True))
    returned = np.abs(back - start[0]).max()
    print(f"{len(end):,} bodies, {args.steps} steps: energy {before[0]:.6f}, changed by {energy:.1e} of it")
    print(f"momentum changed by {momentum:.1e}, angular momentum by {turn:.1e}; the way back is off by {returned:.1e}")
    assert energy < 5e-4
    assert max(momentum, turn) < 1e-12
    assert returned < 1e-8

    if args.plot:
        with figure(args.plot, 2) as axes:
            for ax, places, title in zip(axes, (start[0], end), ("start", f"after {args.steps} steps"), strict=True):
                ax.scatter(*places[:, :2].T, c=np.arange(len(places)) < half, s=1, cmap="coolwarm")
                ax.set(title=title, xlim=(-6, 6), ylim=(-6, 6), aspect="equal")


if __name__ == "__main__":
    main()
