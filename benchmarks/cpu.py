"""G pairs per second of one core: dred beside its peers, and beside the machine's own multiply-add rate.

    python benchmarks/cpu.py [--budget SECONDS] [--rounds N] [--rows TEXT ...] [--peers NAMES] [--dtype TYPE]
                             [--limit SECONDS]

Every figure of the first table is pairs divided by the CPU time of the process, which has one CPU (some peers start
more threads, whatever they are told); those of the second are by wall clock, lower where other processes have the CPU.
Both are medians of rounds in which all rivals of a row take turns. A call is from NumPy arrays to a NumPy array, with
staging, without compilation. It gets as many rows as take about `--budget` seconds, each rival its own number (sizes
shown are those of dred); where all rows take less, there are as many calls. Peers are described in `peers.py`; which of
them a row has is a matter of the form of its distances:

    rows named "expanded"   |x|² + |y|² - 2 x·y, a matrix product: `dred` is what it is by differences, beside them
                            "expand", which is `Genred(..., expand=True)`
    all other rows          by differences, which lose no digits

"fast" is `Genred(..., use_fast_math=True)`, where that makes a difference. "/best" divides dred by the fastest peer of
the row, "e/best" does so with `expand`. "fma" are the multiply-adds that a pair needs at least (an exponential counts 6
in float32 and 12 in float64; additions and comparisons are not counted, processors have other units for them), "of fma"
is their part of the rate of independent multiply-adds that one thread reaches in the same rounds: of `expand` where
there is one in an expanded row, else of dred.

The third table is the largest error of each rival beside the largest magnitude of the result, in a few rows, against
NumPy in float64; of neighbours, the error of the squared distances of those that were chosen. A rival that errs more
than 1e-3 in float32 (1e-9 in float64) is not timed. What is missing is "-", and the notes at the end say why.
"""

import argparse
import io
import os
import platform
import statistics
import time
import warnings
from contextlib import redirect_stdout
from functools import cache
from importlib.metadata import PackageNotFoundError, version

os.environ.update(dict.fromkeys([f"{name}_NUM_THREADS" for name in ("DRED", "OMP", "OPENBLAS", "MKL", "NUMBA")], "1"))
os.environ.update(
    XLA_FLAGS="--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    JAX_PLATFORMS="cpu",
    JAX_ENABLE_X64="1",
    CUDA_VISIBLE_DEVICES="",
    PYKEOPS_VERBOSE="0",
)

import numpy as np
from peers import PEERS, Run, Task, part, reference  # beside this file

from dred import Genred
from dred import __version__ as dred_version
from dred.kernel import machine
from dred.kernel.ceiling import COUNT, multiply_add_rate

CPUS = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else set()
TOLERANCE = {"float32": 1e-3, "float64": 1e-9}
CHECKED = 16  # rows

POINTS = ("x=Vi({D})", "y=Vj({D})")
WEIGHTED = (*POINTS, "b=Vj({E})", "g=Pm(1)")
TUTORIAL = (*POINTS, "a=Vj(1)", "p=Pm(1)")
GAUSSIAN = "Exp(-g*SqDist(x,y))*b"
SQUARE = "Square(p-a)*Exp(x+y)"
R, R5 = "Sqrt(SqDist(x,y))", "Sqrt(5*SqDist(x,y))"

FORMULAS = (  # without dtype and form
    *(Task("Gaussian sum", GAUSSIAN, WEIGHTED, "sum", D=D) for D in (3, 16, 64, 256, 1000)),
    *(
        Task("Gaussian gradient", f"Grad({GAUSSIAN},x,e)", (*WEIGHTED, "e=Vi(1)"), "gradient", D=D)
        for D in (3, 64, 256, 1000)
    ),
    Task(SQUARE, SQUARE, TUTORIAL, "tutorial"),
    Task("  its gradient in y", f"Grad({SQUARE},y,e)", (*TUTORIAL, "e=Vi(3)"), "tutorial_gradient", axis=0),
    Task("LogSumExp", "-SqDist(x,y)", POINTS, "logsumexp", reduction="LogSumExp"),
    Task("ArgMin", "SqDist(x,y)", POINTS, "nearest", reduction="ArgMin"),
    *(Task("ArgKMin, K = 10", "SqDist(x,y)", POINTS, "nearest", D=D, K=10, reduction="ArgKMin") for D in (3, 64)),
    Task("Laplacian kernel", f"Exp(-{R})*b", WEIGHTED, "sum", "laplacian"),
    # three times the kernel: KeOps rounds thirds to float32
    Task("Matern-5/2 kernel", f"(3+3*{R5}+Square({R5}))*Exp(-{R5})*b", WEIGHTED, "sum", "matern"),
    Task("inverse distance", "Rsqrt(SqDist(x,y))*b", WEIGHTED, "sum", "inverse"),
    *(Task(f"Gaussian, b of {E}", GAUSSIAN, WEIGHTED, "sum", E=E) for E in (64, 1000)),
    Task("Gaussian, 10 rows", GAUSSIAN, WEIGHTED, "sum", few=10, columns=10_000_000),
    Task("Gaussian, 4 rows", GAUSSIAN, WEIGHTED, "sum", few=4, columns=1_000_000),
    Task("300 calls, 30 x 30", GAUSSIAN, WEIGHTED, "sum", few=30, columns=30, calls=300),
)


def tasks(dtypes):
    """The rows of the table."""
    for t in FORMULAS:
        large = max(t.D, t.E)
        if not t.few:
            t = t._replace(columns=10_000 if large <= 64 else 4000 if large <= 256 else 2000)
        exact_only = t.few or t.kind.startswith("tutorial") or t.profile != "gaussian"
        for dtype in dtypes:
            for expanded in (False,) if exact_only else (False, True):
                yield t._replace(dtype=dtype, expanded=expanded)


def data(t):
    """Uniform numbers, points so near to each other that no exponential underflows."""
    rng = np.random.default_rng(0)
    sizes = {"Vi": t.most, "Vj": t.columns} if t.axis == 1 else {"Vi": t.columns, "Vj": t.most}
    out = {}
    for name, (cat, dim) in t.variables.items():
        shape = (dim,) if cat == "Pm" else (sizes[cat], dim)
        out[name] = rng.random(shape, t.dtype)
        if name in "xy":
            out[name] /= np.sqrt(dim, dtype=t.dtype)
    return out


def dred(t, **options):
    routine = Genred(t.formula, t.texts, reduction_op=t.reduction, axis=t.axis, opt_arg=t.K, **options)
    names = tuple(t.variables)
    return Run(lambda v: routine(*[v[name] for name in names], backend="cpu"), 256)


def fast(t):
    """Where there is an exponential, and something of it to be gained."""
    plain = not t.expanded and not t.few and t.D < 64 and "Exp" in t.formula + t.reduction
    return dred(t, use_fast_math=True) if plain else None


def expand(t):
    return dred(t, expand=True) if t.expanded else None


RIVALS = {"dred": dred, "fast": fast, "expand": expand, **{name: make for name, (_, make) in PEERS.items()}}


def error(t, v, result, expected):
    """Largest error beside the largest magnitude; of neighbours, that of their distances."""
    result = np.asarray(result)[: len(expected)].reshape(expected.shape)
    if t.kind == "nearest":
        x, y = (v[name].astype(np.float64) for name in "xy")
        result, expected = (((x[: len(j), None] - y[j]) ** 2).sum(-1) for j in (result, expected))
    return np.abs(result - expected).max() / np.abs(expected).max()


def timed(run, v, calls):
    """CPU and wall seconds of a call, the mean of some."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(calls):
        run.work(v)
    return (time.process_time() - cpu) / calls, (time.perf_counter() - wall) / calls


class Row:
    """The measurements of a row: by rival, pairs per second by CPU time and by wall clock, and errors."""

    def __init__(self, t, names, options, ceiling):
        self.task, self.cpu, self.wall, self.errors, self.notes = t, {}, {}, {}, {}
        v = data(t)
        few = part(v, t.of(rows=True), 0, CHECKED)
        expected = reference(t, few)
        ready = {}
        for name in names:
            try:
                with redirect_stdout(io.StringIO()):  # some say at their first import what they miss
                    run = RIVALS[name](t)
                    if run is None:
                        continue
                    ready[name] = run, self.sized(run, v, options.budget)
                self.errors[name] = error(t, v, run.work(ready[name][1][0]), expected)
                if not self.errors[name] <= TOLERANCE[t.dtype]:
                    self.notes[name] = f"errs by {self.errors[name]:.0e}, not timed"
                    del ready[name]
            except Exception as problem:  # of whatever kind: the other rivals go on
                ready.pop(name, None)
                self.notes[name] = f"{type(problem).__name__}: {str(problem).strip().partition(chr(10))[0][:100]}"
        times, fma = {name: [] for name in ready}, []
        for _ in range(options.rounds):
            for name, (run, sized) in ready.items():
                times[name].append(timed(run, *sized))
            fma.append(ceiling())
        for name, (_, (some, _)) in ready.items():
            pairs = self.rows(some) * t.columns
            self.cpu[name], self.wall[name] = (pairs / statistics.median(s) for s in zip(*times[name], strict=True))
        self.ceiling = statistics.median(fma)
        self.size = self.rows(ready["dred"][1][0]) if "dred" in ready else "?"

    def rows(self, v):
        return len(v[self.task.of(rows=True)[0]])

    def sized(self, run, v, budget):
        """As many rows, or calls, as take the time: two calls with few rows, of which the first may compile."""
        t = self.task
        names, rows = t.of(rows=True), min(t.most, run.unit)
        some = part(v, names, 0, rows)
        run.work(some)
        pace = rows / max(1e-9, timed(run, some, t.calls)[1])
        most = budget * pace
        calls = t.calls if t.calls > 1 else max(1, int(most / t.most))
        return part(v, names, 0, min(t.most, max(rows, int(most) // run.unit * run.unit))), calls

    def best(self, rates):
        return max((rates[name] for name in PEERS if name in rates), default=None)

    def cells(self, values, show):
        t = self.task
        shown = "".join(f"{show(values[rival]) if rival in values else '-':>8s}" for rival in RIVALS)
        return line(t.title, t.D, t.dtype[-2:], f"{self.size}x{t.columns}", shown)

    def ratios(self):
        """The part of the first table that is behind the rates."""
        best, fma = self.best(self.cpu), self.task.fma
        mine = self.cpu.get("expand", self.cpu.get("dred"))
        for name in ("dred", "expand"):
            yield f"{self.cpu[name] / best:.2f}" if best and name in self.cpu else "-"
        yield f"{fma:.0f}" if fma else "-"
        yield f"{mine * fma / self.ceiling:.0%}" if fma and mine else "-"

    def __str__(self):
        return self.cells(self.cpu, rate) + "".join(f"{cell:>7s}" for cell in self.ratios())


def rate(pairs):
    """G pairs per second in three digits."""
    g = pairs / 1e9
    return f"{g:.3f}" if g >= 0.01 else f"{g:.2g}" if g >= 1e-3 else f"{g:.0e}"


def line(title, D, dtype, size, cells):
    return f"{title:29s} {D:>4} {dtype:2s} {size:>12s}{cells}"


HEAD = line("", "D", "", "size", "".join(f"{name:>8s}" for name in RIVALS))
RATIOS = ("/best", "e/best", "fma", "of fma")


def two_threads(rounds):
    """Wall clock of two threads beside one; and of two that do nothing but multiply and add."""
    confine(CPUS)
    t = next(tasks(["float32"]))._replace(columns=40_000)
    v = data(t)
    run = dred(t)
    run.work(v)
    times, rates = {"1": [], "2": []}, {"1": [], "2": []}
    ceilings = {n: multiply_add_rate("float32", int(n), time.perf_counter, 100 * COUNT) for n in rates}
    for _ in range(rounds):
        for threads in times:
            os.environ["DRED_NUM_THREADS"] = threads
            times[threads].append(timed(run, v, 1)[1])
            rates[threads].append(ceilings[threads]())
    os.environ["DRED_NUM_THREADS"] = "1"
    one, two = (t.most * t.columns / statistics.median(found) for found in times.values())
    most = statistics.median(rates["2"]) / statistics.median(rates["1"])
    print(f"\ndred, {t.name}, D = 3, float32, wall clock: one thread {rate(one)}, two threads {rate(two)}, "
          f"{two / one:.2f} ×; multiply-adds of two threads: {most:.2f} × those of one")  # fmt: skip


def confine(cpus):
    """The CPUs of this thread, and of those that are started later."""
    if cpus:
        os.sched_setaffinity(0, cpus)


def load():
    return " ".join(f"{value:.2f}" for value in os.getloadavg()) if hasattr(os, "getloadavg") else "unknown"


def header(options):
    cpus = f"{os.cpu_count()} CPUs, one thread"
    if os.environ.get("DRED_CPU"):
        cpus += f"; DRED_CPU={os.environ['DRED_CPU']}"
    print(f"{machine.processor()} ({machine.host().cpu}: {' '.join(machine.simd())}), {cpus}")
    found = [f"dred {dred_version}"]
    for package in dict.fromkeys(("numpy", "llvmlite", *(package for package, _ in PEERS.values()))):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"no {package}")
    print(f"Python {platform.python_version()}, {', '.join(found[:3])}\npeers: {', '.join(found[3:])}")
    print(f"{options.rounds} rounds, {options.budget} s per measurement; load average at the beginning: {load()}")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--budget", type=float, default=0.2, help="seconds of a measurement, about (default 0.2)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each figure (default 5)")
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds after which no row is begun")
    parser.add_argument(
        "--rows", nargs="+", default=[""], help="only rows with one of these in their names, as 'Gaussian sum, D = 64'"
    )
    parser.add_argument("--peers", default=",".join(PEERS), help="names, between commas (default: all)")
    parser.add_argument("--dtype", choices=("float32", "float64"), help="default: both")
    options = parser.parse_args()
    if unknown := set(options.peers.split(",")) - {*PEERS, ""}:
        parser.error(f"no peers: {', '.join(sorted(unknown))}; there are {', '.join(PEERS)}")
    return options


def main():
    options = arguments()
    warnings.simplefilter("ignore")  # of peers, at their imports
    confine({max(CPUS)} if CPUS else CPUS)
    names = ["dred", "fast", "expand", *(name for name in PEERS if name in options.peers.split(","))]
    ceilings = cache(multiply_add_rate)
    header(options)
    print(f"\nG pairs/s of one core, by CPU time\n{HEAD}" + "".join(f"{name:>7s}" for name in RATIOS))
    rows, start = [], time.perf_counter()
    for t in tasks([options.dtype] if options.dtype else ["float32", "float64"]):
        if not any(words in f"{t.title}, D = {t.D}" for words in options.rows):
            continue
        if time.perf_counter() - start > options.limit:
            print("the time is over: other rows are left out")
            break
        rows.append(Row(t, names, options, ceilings(t.dtype)))
        print(rows[-1], flush=True)
    print(f"\nG pairs/s by wall clock\n{HEAD}")
    print(*(row.cells(row.wall, rate) for row in rows), sep="\n")
    print(f"\nLargest errors, beside the largest magnitude\n{HEAD}")
    print(*(row.cells(row.errors, "{:.0e}".format) for row in rows), sep="\n")
    two_threads(options.rounds)
    for dtype in dict.fromkeys(row.task.dtype for row in rows):
        measured = statistics.median(row.ceiling for row in rows if row.task.dtype == dtype)
        print(f"multiply-adds of one thread, {dtype}: {measured / 1e9:.1f}e9 per second")
    notes = {}
    for row in rows:
        for name, note in row.notes.items():
            notes.setdefault(f"{name}: {note}", []).append(row)
    for note, where in notes.items():
        first = where[0].task
        print(f"- {note} ({len(where)} of the rows, first: {first.title}, D = {first.D}, {first.dtype})")
    print(f"load average at the end: {load()}")


if __name__ == "__main__":
    main()
