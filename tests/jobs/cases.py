"""Points in files, and documents of jobs over them."""

from pathlib import Path

import numpy as np

from dred.jobs.job import Job

GAUSSIAN = "Exp(-g*SqDist(x,y))*b"
M, N, D = 2500, 300, 3


def points(folder: Path, dtype: str = "float32", M: int = M, N: int = N) -> dict[str, np.ndarray]:
    """Random points, each as an npy file."""
    rng = np.random.default_rng(5)
    arrays = {"x": rng.random((M, D)), "y": rng.random((N, D)), "b": rng.random((N, 1)), "e": rng.random((M, 1))}
    arrays = {name: array.astype(dtype) for name, array in arrays.items()}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return arrays


def document(**more) -> dict:
    """A Gaussian sum; further keys replace or join its own, tables whole."""
    return {
        "formula": GAUSSIAN,
        "reduction": "Sum",
        "axis": 1,
        "variables": {
            "x": {"type": "Vi(3)", "path": "x.npy"},
            "y": {"type": "Vj(3)", "path": "y.npy"},
            "b": {"type": "Vj(1)", "path": "b.npy"},
            "g": {"type": "Pm(1)", "value": 0.5},
        },
        "output": {"path": "out.npy"},
        "backend": "cpu",
        **more,
    }


def job(folder: Path, **more) -> Job:
    return Job.of(document(**more), folder)


TOML = """\
formula = "Exp(-g*SqDist(x,y))*b"
reduction = "Sum"
axis = 1
backend = "cpu"

[variables]
x = { type = "Vi(3)", path = "x.npy" }
y = { type = "Vj(3)", path = "y.npy" }
b = { type = "Vj(1)", path = "b.npy" }
g = { type = "Pm(1)", value = 0.5 }

[output]
path = "out.npy"
"""


def gaussian_sum(arrays: dict[str, np.ndarray], g: float = 0.5) -> np.ndarray:
    """In float64, by NumPy."""
    x, y, b = (arrays[name].astype(float) for name in "xyb")
    out = np.zeros((len(x), 1))
    for k in range(0, len(x), 500):
        out[k : k + 500] = np.exp(-g * ((x[k : k + 500, None] - y) ** 2).sum(-1)) @ b
    return out
