"""Pairs per second of one core: dred beside NumPy in chunks and beside the machine's own multiply-add rate.

    python benchmarks/gaussian.py [seconds per measurement]

Every figure is CPU time of one thread, the median of rounds in which all rivals of a row take turns; inputs are NumPy
arrays, results are NumPy arrays, compilation is not counted (it is shown). "of fma" is the arithmetic done, in
`Kernel.cost` instructions per pair, as a part of the rate of independent multiply-adds that one thread reaches in the
same run. Where additions have pipes of their own it can exceed 100 %.
"""

import os
import platform
import statistics
import sys
import time
from importlib.metadata import version
from typing import NamedTuple

os.environ["DRED_CACHE_DIR"] = "off"  # compilation is timed
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy loads its BLAS: all rivals have one thread
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from dred.formula.language import formula
from dred.jobs.bench import gaussian_sum, gram
from dred.kernel import cpu, engine, machine
from dred.kernel.ceiling import multiply_add_rate
from dred.kernel.spec import KernelSpec

ROUNDS = 7
GAUSSIAN = ("x=Vi(0,{D})", "y=Vj(1,{D})", "b=Vj(2,1)", "g=Pm(3,1)", "e=Vi(4,1)")
TUTORIAL = ("x=Vi(0,3)", "y=Vj(1,3)", "a=Vj(2,1)", "p=Pm(3,1)")


class Problem(NamedTuple):
    name: str
    text: str
    aliases: tuple[str, ...]
    D: int
    peer: str


PROBLEMS = (
    Problem("Gaussian sum", "Exp(-g*SqDist(x,y))*b", GAUSSIAN[:4], 3, "gaussian"),
    Problem("Gaussian sum", "Exp(-g*SqDist(x,y))*b", GAUSSIAN[:4], 16, "gaussian"),
    Problem("Gaussian sum", "Exp(-g*SqDist(x,y))*b", GAUSSIAN[:4], 64, "gaussian"),
    Problem("its gradient in x", "Grad(Exp(-g*SqDist(x,y))*b,x,e)", GAUSSIAN, 3, "gradient"),
    Problem("its gradient in x", "Grad(Exp(-g*SqDist(x,y))*b,x,e)", GAUSSIAN, 64, "gradient"),
    Problem("Square(p-a)*Exp(x+y)", "Square(p-a)*Exp(x+y)", TUTORIAL, 3, "tutorial"),
)


def numpy_chunks(kind, arrays, rows):
    """The same reduction by NumPy, a chunk of rows at a time; sums are made by BLAS in the compute type."""
    if kind == "gaussian":
        return gaussian_sum(*arrays)
    x, y = arrays[0], arrays[1]
    out, norms = np.empty_like(x), (y * y).sum(1)
    for first in range(0, len(x), rows):
        part = slice(first, first + rows)
        if kind == "gradient":
            weights = gram(x[part], y, norms, arrays[3][0]) * arrays[2][:, 0]
            out[part] = weights.sum(1, keepdims=True) * x[part] - weights @ y
            out[part] *= -2 * arrays[3][0] * arrays[4][part]
        else:
            factor = np.square(arrays[3] - arrays[2])
            for k in range(x.shape[1]):
                out[part, k] = (np.exp(x[part, k, None] + y[:, k]) @ factor)[:, 0]
    return out


def seconds(work):
    start = time.thread_time()
    work()
    return time.thread_time() - start


def measure(problem, dtype, budget, ceiling):
    """One row of the table."""
    f = formula(problem.text, [alias.format(D=problem.D) for alias in problem.aliases])
    spec = KernelSpec.of(f.node, "Sum", 1, dtype, "float64", variables=f.variables)
    start = time.perf_counter()
    kernel = cpu.compiled(spec)
    compiling = time.perf_counter() - start
    n = int(min(20_000, max(1500, (budget * 2e10 / kernel.cost) ** 0.5)))
    rng = np.random.default_rng(0)
    shapes = [(v.dim,) if v.cat == 2 else (n, v.dim) for v in spec.variables]
    arrays = [(rng.random(shape) / problem.D**0.5).astype(dtype) for shape in shapes]
    rows = max(16, 1_000_000 // (n * arrays[0].itemsize))  # chunks of a MB
    some = max(rows, n // 10)  # NumPy gets a part of the rows: its speed does not depend on their number
    few = [a[:some] if v.cat == 0 else a for v, a in zip(spec.variables, arrays, strict=True)]
    state = engine.empty(spec, n)
    result = engine.finalize(spec, cpu.fold(spec, state, arrays, n, n, threads=1), engine.Output.of("Sum"))[0]
    peer = numpy_chunks(problem.peer, few, rows)
    scale = np.abs(peer).max()
    assert np.abs(result[:some] - peer).max() <= (1e-3 if dtype == "float32" else 1e-10) * scale, problem

    rates = {"dred": [], "numpy": [], "fma": []}
    for _ in range(ROUNDS):
        rates["dred"].append(n * n / seconds(lambda: cpu.fold(spec, state, arrays, n, n, threads=1)))
        rates["numpy"].append(some * n / seconds(lambda: numpy_chunks(problem.peer, few, rows)))
        rates["fma"].append(ceiling())
    dred, numpy_, fma = (statistics.median(rates[name]) for name in ("dred", "numpy", "fma"))
    print(
        f"{problem.name:22s} {problem.D:4d} {dtype:8s} {n:6d} {dred / 1e9:8.3f} {numpy_ / 1e9:8.3f} "
        f"{dred / numpy_:6.1f} {kernel.cost:6.0f} {dred * kernel.cost / fma:7.0%} {fma / 1e9:8.1f} "
        f"{compiling * 1e3:8.0f}",
        flush=True,
    )


def main():
    budget = float(sys.argv[1]) if len(sys.argv) > 1 else 0.3
    names = " ".join(f"{name} {version(name)}" for name in ("numpy", "llvmlite"))
    print(f"{machine.processor()} ({machine.host().cpu}: {' '.join(machine.simd())}), {os.cpu_count()} CPUs")
    print(f"Python {platform.python_version()}, {names}, LLVM {machine.llvm_version()}")
    print("G pairs/s of one core: dred, NumPy chunks, their ratio; instructions per pair, as part of the fma rate")
    print(
        f"{'':22s} {'D':>4s} {'':8s} {'n':>6s} {'dred':>8s} {'numpy':>8s} {'ratio':>6s} {'cost':>6s} {'of fma':>7s} "
        f"{'G fma/s':>8s} {'ms comp.':>8s}"
    )
    for dtype in ("float32", "float64"):
        ceiling = multiply_add_rate(dtype)
        for problem in PROBLEMS:
            measure(problem, dtype, budget, ceiling)


if __name__ == "__main__":
    main()
