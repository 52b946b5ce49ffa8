"""Sum reduction: the classic first tutorial, beside the same lines in NumPy, with the gradient.

    python examples/sum_reduction.py [--output DIR]

For arrays x (M, 3), y (N, 3), a (N, 1) and a parameter p (1,),

    c_i = sum over j of (p - a_j)^2 * exp(x_i + y_j)

is computed for M = 30, N = 50, then for M = 3000, N = 5000, without ever storing the M x N values. A user of KeOps
changes only the import line. The comparison with NumPy is asserted and drawn (in dred's folder:
pip install '.[plot]').
"""

import argparse
from pathlib import Path

import numpy as np

from dred import Genred

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}


def relative_error(got, expected):
    """Largest difference over the largest value."""
    return np.abs(got - expected).max() / np.abs(expected).max()


def compute(M, N, dtype):
    """The sum and its gradient with respect to y, by dred and by NumPy."""
    rng = np.random.default_rng(0)
    x = rng.random((M, 3)).astype(dtype)
    y = rng.random((N, 3)).astype(dtype)
    a = rng.random((N, 1)).astype(dtype)
    p = np.array([0.25], dtype)

    # -- the sum over j: one row of three numbers for each i
    formula = "Square(p-a)*Exp(x+y)"
    variables = [
        "x = Vi(3)",  # first input: one vector of dimension 3 for each i
        "y = Vj(3)",  # second input: one vector of dimension 3 for each j
        "a = Vj(1)",  # third input: one number for each j
        "p = Pm(1)",  # fourth input: a parameter
    ]
    my_routine = Genred(formula, variables, reduction_op="Sum", axis=1, dtype=dtype)
    c = my_routine(x, y, a, p)

    # the same in NumPy, in float64, with all M x N x 3 values in memory (a block of i at a time)
    x64, y64, a64, p64, e64 = (v.astype("float64") for v in (x, y, a, p, rng.random((M, 3)).astype(dtype)))
    weights = (p64 - a64) ** 2
    blocks = [slice(i, i + 500) for i in range(0, M, 500)]
    c_np = np.concatenate([(weights * np.exp(x64[b, None] + y64)).sum(1) for b in blocks])

    # -- the gradient of sum(e * c) with respect to y: Grad(formula, y, e), reduced over i
    e = e64.astype(dtype)
    my_gradient = Genred(
        "Grad(" + formula + ", y, e)", [*variables, "e = Vi(3)"], reduction_op="Sum", axis=0, dtype=dtype
    )
    g = my_gradient(x, y, a, p, e)
    g_np = sum((e64[b, None] * weights * np.exp(x64[b, None] + y64)).sum(0) for b in blocks)
    return (c, c_np), (g, g_np)


def draw(pair, title, path):
    """The first forty rows of both results, component by component."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(3, 1, figsize=(7, 6), sharex=True)
    for k, ax in enumerate(axes):
        ax.plot(pair[0][:40, k], "-", label="dred")
        ax.plot(pair[1][:40, k], "--", label="NumPy")
        ax.set_ylabel(f"component {k}")
    axes[0].set_title(title)
    axes[-1].set_xlabel("row")
    axes[-1].legend(loc="upper center", bbox_to_anchor=(0.5, -0.4), ncol=2)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)
    print(f"figure: {path}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder of the figures")
    output = parser.parse_args().output
    for M, N in ((30, 50), (3000, 5000)):
        for dtype in ("float32", "float64"):
            results = compute(M, N, dtype)
            for name, (got, expected) in zip(("sum", "gradient"), results, strict=True):
                error = relative_error(got, expected)
                print(f"M = {M:4d}  N = {N:4d}  {dtype}  {name:8s}  relative error {error:.1e}")
                assert got.dtype == dtype
                assert got.shape == expected.shape
                assert error < TOLERANCE[dtype]
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        print("no figures: in dred's folder, pip install '.[plot]'")
        return
    output.mkdir(parents=True, exist_ok=True)
    draw(results[0], "sum over j of Square(p-a)*Exp(x+y)", output / "sum_reduction.png")
    draw(results[1], "its gradient with respect to y", output / "sum_reduction_gradient.png")


if __name__ == "__main__":
    main()
