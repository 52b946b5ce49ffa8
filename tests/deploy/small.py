"""A job file that takes no time, and whether its result is right."""

from pathlib import Path

import numpy as np

JOB = """\
formula = "Exp(-SqDist(x,y))"
reduction = "Sum"
axis = 1

[variables]
x = { type = "Vi(3)", path = "x.npy" }
y = { type = "Vj(3)", path = "y.npy" }

[output]
path = "out.npy"
"""


def prepare(folder: Path) -> None:
    """The points, and job.toml beside them."""
    rng = np.random.default_rng(5)
    for name, rows in (("x", 300), ("y", 200)):
        np.save(folder / f"{name}.npy", rng.random((rows, 3)))
    (folder / "job.toml").write_text(JOB)


def check(result: Path) -> None:
    """Compare with the dense sum of the points beside it."""
    x, y = (np.load(result.parent / f"{name}.npy") for name in "xy")
    dense = np.exp(-((x[:, None] - y) ** 2).sum(-1)).sum(1, keepdims=True)
    np.testing.assert_allclose(np.load(result), dense, rtol=1e-12)
