"""Seconds from the text of a formula to machine code, and what the kernel then errs: short, long, wide and deep ones.

    python benchmarks/compile.py [first]

One row per formula: its nodes, milliseconds to read (derivatives included), to lower and write, and to compile by LLVM,
all of them together, and the largest error beside the largest sum of magnitudes, against dense float64 NumPy. Every
time is the least of three, each in the state of a process that has compiled before. No cache is used.

Before these (with `first`, alone): medians of what a user waits for until a first result, in processes that have and
that have not a kernel on disk, and of a small call.
"""

import os
import platform
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from dred import Genred
from dred.formula.language import formula
from dred.formula.node import toposort
from dred.formula.oracle import dense
from dred.jobs.bench import first_result
from dred.kernel import cpu, engine, llvm, machine
from dred.kernel.lower import lower
from dred.kernel.spec import KernelSpec

ROUNDS = 3
M, N = 5, 7
DEPTH = 10_000


class Row(NamedTuple):
    name: str
    text: str
    aliases: tuple[str, ...]


GAUSSIAN = ("x = Vi({D})", "y = Vj({D})", "b = Vj(1)", "g = Pm(1)", "e = Vi(1)")
POINTS = ("x = Vi({D})", "y = Vj({D})")
MATRIX = ("x = Vi({D})", "y = Vj({D})", "A = Pm({DD})", "e = Vi(1)")


def row(name, text, aliases, D=3):
    sizes = {"D": D, "DD": D * D}
    return Row(name.format(**sizes), text, tuple(a.format(**sizes) for a in aliases))


def deep(outer):
    """A polynomial of degree 10,000."""
    body = "(" * DEPTH + "x" + "".join(f"*y+{k % 5})" for k in range(DEPTH))
    return outer.format(body)


def rows():
    kernel = "Exp(-g*SqDist(x,y))*b"
    for D in (3, 100, 1000, 3000):
        yield row("Gaussian sum, D = {D}", kernel, GAUSSIAN, D)
        yield row("its gradient in x, D = {D}", f"Grad({kernel},x,e)", GAUSSIAN, D)
    yield row("its third derivative, D = {D}", f"Grad(Grad(Grad({kernel},x,e),x,y),y,x)", GAUSSIAN, 3)
    yield row("Laplacian, D = {D}", "Laplacian(Exp(-SqDist(x,y)/1000),x)", POINTS, 1000)
    yield row("largest difference, D = {D}", "Max(Abs(x-y))", POINTS, 3000)
    yield row("complex product, D = {D}", "ComplexMult(x,y)", POINTS, 3000)
    yield row("outer product, D = {D}", "TensorProd(x,y)", POINTS, 60)
    yield row("matrix norm, D = {D}", "WeightedSqDist(A,x,y)", MATRIX, 100)
    yield row("its gradient in x, D = {D}", "Grad(WeightedSqDist(A,x,y),x,e)", MATRIX, 100)
    yield row("layer, D = {D}", "ReLU(MatVecMult(A,x-y))", MATRIX, 1000)
    yield Row("splines of degree 3, 20 knots", "BSpline(t,x,3)", ("x = Vi(1)", "t = Vj(20)"))
    yield Row("time warping, 20 x 20", "SoftDTW_SqDist(x,y,g)", ("x = Vi(20)", "y = Vj(20)", "g = Pm(1)"))
    yield Row("its gradient in x", "Grad(SoftDTW_SqDist(x,y,g),x,e)",
              ("x = Vi(20)", "y = Vj(20)", "g = Pm(1)", "e = Vi(1)"))  # fmt: skip
    n = 300
    squares = "+".join(f"SqDist(v{k},v{(k + 1) % n})" for k in range(n))
    yield Row(f"gradient, {n} variables", f"Grad(Exp(-({squares})/1000),v0,1)",
              tuple(f"v{k} = V{'ij'[k % 2]}(3)" for k in range(n)))  # fmt: skip
    yield Row(f"{DEPTH} deep", deep("{}"), ("x = Vi(1)", "y = Vj(1)"))
    yield Row("its gradient in y", deep("Grad({},y,1)"), ("x = Vi(1)", "y = Vj(1)"))


def best(work):
    """Least seconds of a call, and its result."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - start)
    return min(times), result


def measure(r, dtype):
    reading, f = best(lambda: formula(r.text, r.aliases))
    spec = KernelSpec.of(f.node, "Sum", 1, dtype, "float64", variables=f.variables)
    writing, program = best(lambda: llvm.render(lower(spec, cpu.UNROLL, hoist=True), dtype, spec.acc, spec.chain))
    compiling, _ = best(lambda: cpu.build(program))
    rng = np.random.default_rng(0)
    shapes = [((M, v.dim), (N, v.dim), (v.dim,))[v.cat] for v in f.variables]
    arrays = [(rng.uniform(0.1, 0.9, shape) / shape[-1] ** 0.5).astype(dtype) for shape in shapes]
    state = cpu.fold(spec, engine.empty(spec, M), arrays, M, N)
    terms = np.broadcast_to(dense(f.node, arrays, (M, N)), (M, N, f.node.dim))
    error = (
        np.abs(engine.finalize(spec, state, engine.Output.of("Sum"))[0] - terms.sum(1)).max()
        / np.abs(terms).sum(1).max()
    )
    times = [reading, writing, compiling, reading + writing + compiling]
    cells = "".join(f"{1e3 * t:9.0f}" for t in times)
    print(f"{r.name:32s} {dtype:8s} {len(toposort([f.node])):6d}{cells} {len(program.text) // 1000:7d} {error:9.1e}",
          flush=True)  # fmt: skip


# -- until the first result ----------------------------------------------------------------------------------------

PROCESSES, CALLS, NEW = 15, 2000, 15
COMPILED, TINY = 100, 10  # points; so few of the latter that nothing is compiled for them


def points(n):
    x = np.linspace(0, 1, 3 * n, dtype=np.float32).reshape(n, 3)
    return x, x, x[:, :1].copy(), x[0, :1].copy()


def first_results(folder, llvm=False, n=COMPILED):
    """Median milliseconds, of fresh processes: import of NumPy, of dred, of llvmlite, the first result."""
    times = [first_result(folder, llvm, n) for _ in range(PROCESSES)]
    return [1e3 * statistics.median(column) for column in zip(*times, strict=True)]


def call_times():
    """Median milliseconds of a new formula, from its text to the result, without a cache; of a call of it; of a tiny
    call."""
    os.environ["DRED_CACHE_DIR"] = "off"
    cold = []
    for n in range(1 + NEW):
        start = time.perf_counter()
        routine = Genred(f"Exp(-g*SqDist(x,y))*b+{n}", [a.format(D=3) for a in GAUSSIAN[:4]], axis=1)
        routine(*points(COMPILED), backend="cpu")
        cold.append(1e3 * (time.perf_counter() - start))
    calls = []
    for n in (COMPILED, TINY):
        args, times = points(n), []
        for _ in range(CALLS):
            start = time.perf_counter()
            routine(*args, backend="cpu")
            times.append(1e3 * (time.perf_counter() - start))
        calls.append(statistics.median(times))
    return statistics.median(cold[1:]), *calls  # the first one imports LLVM


def first():
    cold, call, tiny = call_times()
    with tempfile.TemporaryDirectory() as folder:
        first_results(folder)  # leaves the kernel there
        _, _, _, warm = first_results(folder)
        numpy, dred, llvm, loaded = first_results(folder, llvm=True)
    _, _, _, without = first_results("off")
    _, _, _, interpreted = first_results("off", n=TINY)
    print(f"milliseconds (medians), Gaussian sum, D = 3, M = N = {COMPILED}, float32")
    for name, value in [
        ("import numpy", numpy),
        ("import dred, after that", dred),
        ("import llvmlite", llvm),
        ("first result in a new process: nothing on disk", without),
        ("    kernel on disk, import of llvmlite counted", warm),
        ("    kernel on disk, llvmlite imported before", loaded),
        ("a new formula in a process that has compiled", cold),
        ("a call", call),
        (f"first result in a new process, M = N = {TINY}", interpreted),
        (f"a call, M = N = {TINY}", tiny),
    ]:
        print(f"{name:50s} {value:9.3f}", flush=True)
    print()


def main():
    names = " ".join(f"{name} {version(name)}" for name in ("numpy", "llvmlite"))
    print(f"{machine.processor()}, Python {platform.python_version()}, {names}")
    first()
    if sys.argv[1:] == ["first"]:
        return
    heads = "".join(f"{word:>9s}" for word in ("read", "write", "LLVM", "all"))
    print(f"{'milliseconds':32s} {'':8s} {'nodes':>6s}{heads} {'kB text':>7s} {'error':>9s}")
    for r in rows():
        for dtype in ("float32", "float64"):
            measure(r, dtype)


if __name__ == "__main__":
    main()
