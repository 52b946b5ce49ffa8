"""Pairs per second of one core: dred beside NumPy in chunks and beside the machine's own multiply-add rate.

    python benchmarks/gaussian.py [seconds per measurement]

Every figure is CPU time of one thread, the median of rounds in which all rivals of a row take turns; inputs are NumPy
arrays, results are NumPy arrays, compilation is not counted (it is shown). "of fma" is the arithmetic done, in
`Kernel.cost` instructions per pair, as a part of the rate of independent multiply-adds that one thread reaches in the
same run. Where additions have pipes of their own it can exceed 100 %.
"""

import ctypes
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
from dred.kernel import cpu, engine
from dred.kernel.llvm_math import Lanes
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


def gram(x, y, g):
    """Gaussian kernel matrix of a chunk, distances by BLAS: what a careful NumPy user writes."""
    squares = (x * x).sum(1)[:, None] + (y * y).sum(1) - 2 * (x @ y.T)
    np.maximum(squares, 0, out=squares)
    squares *= -g
    return np.exp(squares, out=squares)


def numpy_chunks(kind, arrays, rows):
    """The same reduction by NumPy, a chunk of rows at a time; sums are made by BLAS in the compute type."""
    x, y = arrays[0], arrays[1]
    out = np.empty((len(x), 1 if kind == "gaussian" else x.shape[1]), x.dtype)
    for first in range(0, len(x), rows):
        part = slice(first, first + rows)
        if kind == "gaussian":
            out[part] = gram(x[part], y, arrays[3][0]) @ arrays[2]
        elif kind == "gradient":
            weights = gram(x[part], y, arrays[3][0]) * arrays[2][:, 0]
            out[part] = weights.sum(1, keepdims=True) * x[part] - weights @ y
            out[part] *= -2 * arrays[3][0] * arrays[4][part]
        else:
            factor = np.square(arrays[3] - arrays[2])
            for k in range(x.shape[1]):
                out[part, k] = (np.exp(x[part, k, None] + y[:, k]) @ factor)[:, 0]
    return out


def multiply_add_rate(dtype):
    """Multiply-adds per second of one thread: 12 independent chains in vectors as wide as the machine's registers."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = llvm.get_host_cpu_features()
    width = 64 if features.get("avx512f", False) else 32 if features.get("avx", False) else 16
    lanes = Lanes(dtype, width // Lanes(dtype).itemsize)
    T, chains = lanes.type, range(12)
    fma = f"@llvm.fma.{lanes.suffix}"
    lines = [
        f"declare {T} {fma}({T}, {T}, {T})",
        "define void @run(ptr %p, i64 %n) #0 {",
        f"entry:\n  %a = load {T}, ptr %p, align 4\n  br label %loop",
        "loop:\n  %i = phi i64 [ 0, %entry ], [ %next, %loop ]",
        *(f"  %x{k} = phi {T} [ %a, %entry ], [ %y{k}, %loop ]" for k in chains),
        *(f"  %y{k} = call {T} {fma}({T} %x{k}, {T} %a, {T} %a)" for k in chains),
        "  %next = add i64 %i, 1\n  %more = icmp slt i64 %next, %n\n  br i1 %more, label %loop, label %done\ndone:",
        *(f"  store {T} %y{k}, ptr %p, align 4" for k in chains),
        '  ret void\n}\nattributes #0 = { "prefer-vector-width"="512" }',
    ]
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features.flatten(), opt=2
    )
    engine_ = llvm.create_mcjit_compiler(llvm.parse_assembly("\n".join(lines)), machine)
    engine_.finalize_object()
    run = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(engine_.get_function_address("run"))
    start, count = np.full(64, 0.5, dtype), 500_000

    def rate(keep=engine_):  # the code lives as long as its engine
        return count * len(chains) * lanes.width / seconds(lambda: run(start.ctypes.data, count))

    return rate


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


def cpu_name():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            return next(line.split(":", 1)[1].strip() for line in info if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main():
    import llvmlite.binding as llvm

    budget = float(sys.argv[1]) if len(sys.argv) > 1 else 0.3
    features = llvm.get_host_cpu_features()
    simd = [name for name in ("sse2", "avx", "avx2", "fma", "avx512f", "avx512dq", "neon", "sve") if features.get(name)]
    names = " ".join(f"{name} {version(name)}" for name in ("numpy", "llvmlite"))
    print(f"{cpu_name()} ({llvm.get_host_cpu_name()}: {' '.join(simd)}), {os.cpu_count()} CPUs")
    print(f"Python {platform.python_version()}, {names}, LLVM {'.'.join(map(str, llvm.llvm_version_info))}")
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
