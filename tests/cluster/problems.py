"""One problem for all tests of the cluster layer: the tutorial's formula, its gradient, dense NumPy beside them."""

import dask.array as da
import numpy as np

from dred.cluster import graph
from dred.formula.language import formula
from dred.kernel.output import Output
from dred.kernel.spec import KernelSpec

BACKEND = "cpu"
TEXT = "Square(p - a) * Exp(x + y)"
ALIASES = ["x = Vi(3)", "y = Vj(3)", "a = Vj(1)", "p = Pm(1)"]


def spec_of(text=TEXT, aliases=ALIASES, axis=1, dtype="float64", chain=32):
    return KernelSpec.of(formula(text, aliases).node, "Sum", axis, dtype, "float64", chain)


def summed(spec, arrays, backend="auto"):
    """The sum as a lazy array."""
    (result,) = graph.reduce(spec, arrays, Output.of("Sum"), backend, label="Sum")
    return result


def plan_of(spec, arrays, backend="auto"):
    return graph.plan(spec, arrays, Output.of("Sum"), backend, label="Sum")


def arrays_of(M, N, seed=0, dtype="float64"):
    """x, y, a, p: values whose exponentials stay of order 1."""
    rng = np.random.default_rng(seed)
    return tuple(rng.uniform(-1, 1, shape).astype(dtype) for shape in ((M, 3), (N, 3), (N, 1), (1,)))


def dense(x, y, a, p, axis=1):
    """The reduction in float64, through the whole matrix."""
    x, y, a, p = (v.astype(np.float64) for v in (x, y, a, p))
    return ((p - a) ** 2 * np.exp(x[:, None, :] + y[None, :, :])).sum(axis)


def dask_of(arrays, x_chunks, y_chunks):
    """The arguments as dask arrays in these row chunks."""
    x, y, a, p = arrays
    return (
        da.from_array(x, chunks=(x_chunks, 3)),
        da.from_array(y, chunks=(y_chunks, 3)),
        da.from_array(a, chunks=(y_chunks, 1)),
        da.from_array(p, chunks=1),
    )
