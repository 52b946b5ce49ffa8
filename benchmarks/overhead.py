"""Microseconds of a call of few rows: by the interpreter, by the compiled kernel, and as a line of NumPy.

    python benchmarks/overhead.py

One row per formula and size (M = N), float32, one thread; least and median of many calls of arrays of the same types
and shapes, whose checks are included, and milliseconds of the first compiled call. `*` marks what dred chooses for the
size. The threshold in `dred/kernel/engine.py` was chosen by this table.
"""

import os
import platform
import time

os.environ.setdefault("DRED_NUM_THREADS", "1")

import numpy as np

from dred import Genred
from dred.kernel import cpu, engine

CALLS = 500
SIZES = (3, 10, 30, 60, 120)
GAUSSIAN = "Exp(-g*SqDist(x,y))*b", ("x = Vi({D})", "y = Vj({D})", "b = Vj(1)", "g = Pm(1)")
POINTS = ("x = Vi({D})", "y = Vj({D})")
CASES = (
    ("Gaussian sum, D = 3", *GAUSSIAN, 3, {}),
    ("Gaussian sum, D = 16", *GAUSSIAN, 16, {}),
    ("LogSumExp, D = 3", "-SqDist(x,y)", POINTS, 3, {"reduction_op": "LogSumExp"}),
    ("ArgMin, D = 3", "SqDist(x,y)", POINTS, 3, {"reduction_op": "ArgMin"}),
    ("ArgKMin, K = 5, D = 3", "SqDist(x,y)", POINTS, 3, {"reduction_op": "ArgKMin", "opt_arg": 5}),
)


def microseconds(call):
    """Least and median."""
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        call()
        times.append(1e6 * (time.perf_counter() - start))
    return f"{min(times):7.0f} {np.median(times):7.0f}"


def by_numpy(x, y, *more):
    """What a user would write for the exponents; the reductions of other rows cost about as much."""
    d = ((x[:, None] - y) ** 2).sum(-1)
    return np.exp(-more[1] * d) @ more[0] if more else np.exp(-d).sum(1)


def main():
    tiny = engine.TINY
    print(f"{platform.machine()}, NumPy {np.__version__}, least and median of {CALLS} calls in us")
    print(f"{'':22} {'n':>4}  {'interpreter':>15}  {'compiled':>15}  {'NumPy':>15}  {'first, ms':>9}")
    for name, text, aliases, D, options in CASES:
        routine = Genred(text, [a.format(D=D) for a in aliases], axis=1, **options)
        rng = np.random.default_rng(0)
        for n in SIZES:
            shapes = ((n, D), (n, D), (n, 1), (1,))[: len(aliases)]
            arrays = [rng.random(shape).astype("float32") for shape in shapes]
            chosen = engine.tiny(routine.spec("float32"), n, n)
            engine.TINY = np.inf
            interpreted = microseconds(lambda: routine(*arrays, backend="cpu"))  # noqa: B023
            engine.TINY = 0.0
            cpu._kernels.clear()
            start = time.perf_counter()
            routine(*arrays, backend="cpu")
            first = 1e3 * (time.perf_counter() - start)
            compiled = microseconds(lambda: routine(*arrays, backend="cpu"))  # noqa: B023
            engine.TINY = tiny
            plain = microseconds(lambda: by_numpy(*arrays))  # noqa: B023
            marks = "* " if chosen else " *"
            print(f"{name:22} {n:4}  {interpreted}{marks[0]} {compiled}{marks[1]} {plain}  {first:9.0f}", flush=True)


if __name__ == "__main__":
    main()
