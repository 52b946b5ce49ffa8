"""Rigid registration of many pairs of point clouds at once: a batch of small problems in one call.

    python examples/registration.py --plot registration.png
    python examples/registration.py --size 100000 --cluster local         # pairs in several chunks, a few processes
    python examples/registration.py --size 5000000 --scheduler tcp://host:8786

Each pair is a cloud of 250 points along a random curve, and the same curve seen again: other points of it, turned,
moved, with noise. Every point looks for where it belongs, as the mean of the other cloud with weights
exp(-|x_i - y_j|^2 / 2 s^2): one soft maximum over all pairs of points, of every pair of clouds in one call. The rigid
motion that fits best then is found by an SVD (Kabsch 1976), and the width s shrinks. The weights of a few clouds are
checked by NumPy, and the motions that are found by those that were made.
"""

import numpy as np
from where import figure, parser, place  # beside this file

from dred import Genred

POINTS, NOISE = 250, 0.01
matched = Genred("-s * SqDist(x, y)", ["x = Vi(3)", "y = Vj(3)", "s = Pm(1)"], "SumSoftMaxWeight", axis=1, formula2="y")
WIDTHS = np.geomspace(0.6, 0.03, 40)


def rotations(axis_angle):
    """Matrices (B, 3, 3) by Rodrigues' formula."""
    angle = np.linalg.norm(axis_angle, axis=1)[:, None, None]
    x, y, z = (axis_angle / angle[:, 0]).T
    K = np.moveaxis(np.array([[0 * x, -z, y], [z, 0 * x, -x], [-y, x, 0 * x]]), 2, 0)
    return np.eye(3) + np.sin(angle) * K + (1 - np.cos(angle)) * K @ K


def problems(count, rng):
    """Clouds x and y (count, POINTS, 3), and the rotations and translations that take x to y."""
    waves = rng.normal(size=(count, 3, 6)) / np.arange(1, 7)

    def cloud():
        t = np.pi * rng.random((count, POINTS, 1))
        points = np.cos(t * np.arange(1, 7)) @ np.swapaxes(waves, 1, 2)
        return points + NOISE * rng.normal(size=points.shape)

    turn = rng.normal(size=(count, 3))
    turn *= 0.5 * rng.random((count, 1)) / np.linalg.norm(turn, axis=1, keepdims=True)
    R, t = rotations(turn), 0.2 * rng.normal(size=(count, 1, 3))
    return cloud(), cloud() @ np.swapaxes(R, 1, 2) + t, R, t


def fitted(x, y):
    """The rigid motions of least squares that take rows of x to rows of y, from their means and covariances."""
    x_mean, y_mean = (a.mean(axis=1, keepdims=True) for a in (x, y))
    covariance = (x - x_mean).swapaxes(1, 2) @ (y - y_mean)
    x_mean, y_mean, covariance = map(np.asarray, (x_mean, y_mean, covariance))  # 15 numbers for each pair of clouds
    U, _, V = np.linalg.svd(covariance)
    V[:, 2] *= np.linalg.det(U @ V)[:, None]  # no reflections
    R = np.swapaxes(U @ V, 1, 2)
    return R, y_mean - x_mean @ np.swapaxes(R, 1, 2)


def register(x, y, put, keep):
    """Rotations (B, 3, 3) and translations (B, 1, 3)."""
    R, t = np.tile(np.eye(3), (len(x), 1, 1)), np.zeros((len(x), 1, 3))
    for width in WIDTHS:
        moved = x @ put(np.swapaxes(R, 1, 2)) + put(t)
        R, t = fitted(x, keep(matched(moved, y, np.array([0.5 / width**2]))))
    return R, t


def check(x, y):
    """The weighted means of some clouds."""
    weights = np.exp(-((x[:, :, None] - y[:, None]) ** 2).sum(-1))
    want = weights @ y / weights.sum(2, keepdims=True)
    np.testing.assert_allclose(matched(x, y, np.ones(1)), want, rtol=1e-10, atol=1e-12)


def main():
    args = parser(__doc__, 25_000).parse_args()
    rng = np.random.default_rng(0)
    count = max(1, args.size // POINTS)
    x, y, R, t = problems(count, rng)
    check(x[:3], y[:3])
    with place(args) as (put, keep):
        R_found, t_found = register(put(x), put(y), put, keep)
    cosine = (np.trace(R_found @ np.swapaxes(R, 1, 2), axis1=1, axis2=2) - 1) / 2
    angles, shifts = np.degrees(np.arccos(np.clip(cosine, -1, 1))), np.linalg.norm(t_found - t, axis=2)[:, 0]
    print(f"{count:,} pairs of {POINTS} points: median error {np.median(angles):.2f} degrees, {np.median(shifts):.4f}")
    right = (angles < 5) & (shifts < 0.1)
    print(f"{right.mean():.0%} of them within 5 degrees and 0.1")
    assert right.mean() >= 0.9

    if args.plot:
        n = int(np.argmin(angles))
        with figure(args.plot, 2) as axes:
            for ax, points, title in zip(
                axes, (x[n], x[n] @ R_found[n].T + t_found[n]), ("before", "after"), strict=True
            ):
                ax.plot(*y[n, :, :2].T, ".", color="lightgray")
                ax.plot(*points[:, :2].T, ".", markersize=3)
                ax.set(title=f"two clouds {title}", aspect="equal")


if __name__ == "__main__":
    main()
