"""T pairs per second of one NVIDIA GPU: dred beside its peers and beside what the device could do at most.

    python benchmarks/gpu.py [--dry-run] [--size N] [--rounds N] [--budget SECONDS] [--rows TEXT ...] [--peers NAMES]
                             [--skip-workers]

Kernels: M = N = `--size` (262,144), arrays and results on the device, CUDA events around a call, medians of rounds in
which all rivals of a row take turns. A rival that would take longer than `--budget` seconds gets a part of the rows.
"ceiling" is what an H200 (132 multiprocessors at 1.98 GHz) reaches if only instructions issued, or exponentials, were
limits; beside it the parts of it that are aimed at and that are failures to fall below. Verdicts are for an H200, on
other devices figures alone are printed. Peers are described in `gpu_peers.py`; "/best" divides dred by the fastest.

Beside the kernels: NumPy arrays in and out (at least 90 % of what arrays on the device reach), a call at M = N = 1000
(at most 40 us), and workers that are processes (`gpu_workers.py`).

--dry-run, which is meant where there is no GPU: the same rows with their sizes, each kernel compiled by NVRTC for
sm_90, its registers, bytes spilled and PTX instructions per pair in place of times.
"""

import argparse
import re
import statistics
import sys
import time
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))  # for the counts of instructions

import gpu_workers  # beside this file
from gpu_peers import PEERS
from peers import Task

from dred import Genred
from dred import __version__ as dred_version
from dred.formula.oracle import dense
from dred.kernel import cuda, cuda_cache
from dred.reductions import REDUCTIONS
from tests.kernel.instructions import count, ptx, ptx_code

DEVICE = "H200"  # of the ceilings
ARCHITECTURE = "sm_90"
CHECKED = 48  # rows times dimension, against NumPy in float64
TOLERANCE = {"float32": 1e-3, "float64": 1e-9}
STREAMED, CALL = 0.9, 40.0  # least part of the speed on the device; most microseconds of a small call


class Row(NamedTuple):
    """A row of the table.

    Attributes
    ----------
    task : Task
    ceiling, target, least : float or None
        T pairs per second of an H200: what it can do, what is aimed at, what would be a failure.
    unit : str
        Pattern of PTX opcodes of which a pair (where D > 16, a component of a pair) has `per`.
    """

    task: Task
    ceiling: float | None
    target: float | None
    least: float | None
    unit: str
    per: int = 1


POINTS = ("x=Vi({D})", "y=Vj({D})")
WEIGHTED = (*POINTS, "b=Vj({E})", "g=Pm(1)")
TUTORIAL = (*POINTS, "a=Vj(1)", "p=Pm(1)")
GAUSSIAN, SQUARE = "Exp(-g*SqDist(x,y))*b", "Square(p-a)*Exp(x+y)"
SOFT = "SqDist(x,y)+1/1000"
EXP, ROOT, FLOAT, DIFFERENCE = r"ex2\.", r"(rsqrt|sqrt)\.", r"(add|sub|mul|fma)\.(\w+\.)*f32", r"sub\.(\w+\.)*f64"

ROWS = (
    Row(Task("Gaussian", GAUSSIAN, WEIGHTED, "sum"), 4.10, 3.4, 3.0, EXP),
    Row(Task("Gaussian", GAUSSIAN, WEIGHTED, "sum", expanded=True), 4.18, 3.8, 3.3, EXP),
    Row(Task("Gaussian gradient", f"Grad({GAUSSIAN},x,e)", (*WEIGHTED, "e=Vi(1)"), "gradient"), 2.97, 2.5, None, EXP),
    Row(Task("Coulomb potential", f"Rsqrt({SOFT})*b", WEIGHTED[:3], "potential"), 4.06, 3.4, None, ROOT),
    Row(Task("Coulomb force", f"Pow(Rsqrt({SOFT}),3)*b*(y-x)", WEIGHTED[:3], "force"), 2.52, 2.2, None, ROOT),
    Row(Task("LogSumExp", "-SqDist(x,y)", POINTS, "logsumexp", reduction="LogSumExp"), 3.9, 3.2, 2.6, EXP),
    Row(Task("ArgKMin, K = 10", "SqDist(x,y)", POINTS, "nearest", K=10, reduction="ArgKMin"), 4.0, 2.2, 1.5, FLOAT, 6),
    Row(Task(SQUARE, SQUARE, TUTORIAL, "tutorial"), 1.39, 1.3, None, EXP, 3),
    Row(Task("Gaussian", GAUSSIAN, WEIGHTED, "sum", D=16), 0.94, None, None, EXP),
    Row(Task("Gaussian", GAUSSIAN, WEIGHTED, "sum", D=32), 0.47, None, None, FLOAT, 2),
    Row(Task("Gaussian", GAUSSIAN, WEIGHTED, "sum", D=64), 0.25, None, None, FLOAT, 2),
    Row(Task("Gaussian", GAUSSIAN, WEIGHTED, "sum", D=16, expanded=True), 1.76, None, None, EXP),
    Row(Task("Gaussian", GAUSSIAN, WEIGHTED, "sum", D=64, expanded=True), 0.50, None, None, FLOAT),
    Row(Task("Gaussian gradient", f"Grad({GAUSSIAN},x,e)", (*WEIGHTED, "e=Vi(1)"), "gradient", D=64), 0.13, None, None,
        FLOAT, 4),
    Row(Task("Gaussian", GAUSSIAN, WEIGHTED, "sum", dtype="float64"), 0.76, 0.6, 0.5, DIFFERENCE, 3),
    *(
        Row(Task(name, text, aliases, kind, fast=True, reduction=reduction), ceiling, None, None, EXP, per)
        for name, text, aliases, kind, reduction, ceiling, per in (
            ("Gaussian", GAUSSIAN, WEIGHTED, "sum", "Sum", 4.10, 1),
            ("Gaussian gradient", f"Grad({GAUSSIAN},x,e)", (*WEIGHTED, "e=Vi(1)"), "gradient", "Sum", 2.97, 1),
            (SQUARE, SQUARE, TUTORIAL, "tutorial", "Sum", 1.39, 3),
            ("LogSumExp", "-SqDist(x,y)", POINTS, "logsumexp", "LogSumExp", 3.9, 1),
        )
    ),
    # without limits of their own: what users compare
    Row(Task("ArgMin", "SqDist(x,y)", POINTS, "nearest", reduction="ArgMin"), None, None, None, FLOAT, 6),
    Row(Task("ArgKMin, K = 10", "SqDist(x,y)", POINTS, "nearest", D=64, K=10, reduction="ArgKMin"), None, None, None,
        FLOAT, 2),
)  # fmt: skip


def routine_of(t):
    return Genred(t.formula, t.texts, t.reduction, t.axis, opt_arg=t.K, dtype=t.dtype, expand=t.expanded,
                  use_fast_math=t.fast)  # fmt: skip


def data(t, M, N):
    """Uniform numbers by name; points so near to each other that no exponential underflows."""
    rng, sizes = np.random.default_rng(0), {"Vi": M, "Vj": N}
    out = {}
    for name, (cat, dim) in t.variables.items():
        out[name] = rng.random((dim,) if cat == "Pm" else (sizes[cat], dim), t.dtype)
        if name in "xy":
            out[name] /= np.sqrt(dim, dtype=t.dtype)
    return out


def line(t, size, cells):
    return f"{t.title:27s} {t.D:>3} {t.dtype[-2:]:2s} {size:>15s} {cells}"


def digits(value, form=".2f"):
    return "-" if value is None else format(value, form)


# -- without a device ----------------------------------------------------------------------------------------------

USE = re.compile(r"Used (\d+) registers")
SPILLS = re.compile(r"(\d+) bytes spill (?:stores|loads)")


def dry(row, size):
    """What NVRTC says of the kernel of a row."""
    spec = routine_of(row.task).spec(row.task.dtype)
    source = cuda.rendered(spec)
    start = time.perf_counter()
    _, log = cuda.compile_cubin(source.text, ARCHITECTURE)
    seconds = time.perf_counter() - start
    counted = count(ptx_code(ptx(source.text), source.entries["fold"].name), row.unit, row.per)
    per = counted.total * (row.task.D if row.task.D > 16 else 1)
    cells = [max(map(int, USE.findall(log))), sum(map(int, SPILLS.findall(log))), f"{per:.1f}", f"{seconds * 1e3:.0f}"]
    limits = "".join(f"{digits(value):>8s}" for value in (row.ceiling, row.target, row.least))
    return line(row.task, f"{size} x {size}", "".join(f"{cell:>9}" for cell in cells) + limits)


def dry_run(options):
    print(f"dry run: every kernel compiled for {ARCHITECTURE}, nothing is timed; T pairs/s are those of an {DEVICE}\n")
    names = "".join(f"{name:>9s}" for name in ("regs", "spilled", "PTX/pair", "ms comp."))
    print(f"{'':29s} D    {'M x N':>15s} {names}" + "".join(f"{name:>8s}" for name in ("ceiling", "target", "least")))
    for row in chosen(options):
        print(dry(row, options.size), flush=True)
    print("\nOn a device, of each row: T pairs/s of dred and of " + ", ".join(PEERS))
    print(
        f"NumPy in and out: {STREAM_ROWS} x {STREAM_COLUMNS}, part of the speed on the device (at least {STREAMED:.0%})"
    )
    print(f"a call at M = N = 1000, CuPy arrays: microseconds (at most {CALL:g})")
    print(*gpu_workers.PLAN, sep="\n")


# -- on a device ---------------------------------------------------------------------------------------------------


def seconds(work):
    """Of a call, by CUDA events."""
    import cupy

    start, stop = cupy.cuda.Event(), cupy.cuda.Event()
    start.record()
    work()
    stop.record()
    stop.synchronize()
    return cupy.cuda.get_elapsed_time(start, stop) / 1e3


def part(t, v, rows):
    names = t.of(rows=True)
    return {name: a[:rows] if name in names else a for name, a in v.items()}


def error(t, v, got):
    """Largest error in a few rows beside the largest magnitude, of neighbours that of their distances."""
    rows = max(1, CHECKED // t.D)
    few = [a[:rows] if cat == "Vi" else a for a, (cat, _) in zip(v.values(), t.variables.values(), strict=True)]
    node = routine_of(t._replace(expanded=False)).spec(t.dtype).parts[0].formula
    terms = dense(node, [a.astype("float64") for a in few])
    got = np.asarray(got)[:rows]
    if t.kind == "nearest":
        wanted = np.sort(terms[..., 0], 1)[:, : t.K or 1]
        got = np.take_along_axis(terms[..., 0], got.reshape(len(got), -1).astype(int), 1)
    else:
        wanted = REDUCTIONS[t.reduction].numpy(terms, None, 1, None)
        got = got.reshape(wanted.shape)
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


def dred_run(t):
    import cupy
    from gpu_peers import Run

    routine = routine_of(t)
    return Run(dict, lambda v: routine(*v.values(), backend="cuda"), cupy.asnumpy)


def measure(row, options, notes):
    """By rival, T pairs per second."""
    import cupy

    t, size = row.task, options.size
    host = data(t, size, size)
    v = {name: cupy.asarray(a) for name, a in host.items()}
    makers = {"dred": dred_run} | {name: PEERS[name][1] for name in options.peers}
    ready = {}
    for name, make in makers.items():
        try:
            if (run := make(t)) is None:
                continue
            rows = size
            few = run.prepare(part(t, v, max(1, size // 16)))
            wrong = error(t, host, run.host(run.work(few)))
            if not wrong <= TOLERANCE[t.dtype]:
                notes.setdefault(f"{name}: errs by {wrong:.0e}, not timed", []).append(t)
                continue
            if 16 * (pace := seconds(lambda: run.work(few))) > options.budget:  # noqa: B023
                rows = max(1024, int(size * options.budget / (16 * pace)) // 1024 * 1024)
            given = run.prepare(part(t, v, rows))
            run.work(given)
            ready[name] = (lambda run=run, given=given: run.work(given)), rows * size
        except Exception as problem:  # of whatever kind: the other rivals go on
            text = str(problem).strip().partition("\n")[0][:100]
            notes.setdefault(f"{name}: {type(problem).__name__}: {text}", []).append(t)
    times = {name: [] for name in ready}
    for _ in range(options.rounds):
        for name, (work, _) in ready.items():
            times[name].append(seconds(work))
    return {name: pairs / statistics.median(times[name]) / 1e12 for name, (_, pairs) in ready.items()}


def verdict(row, speed):
    if row.target is None:
        return ""
    least = row.least or 0
    return "ok" if speed >= row.target else "below the target" if speed >= least else "FAILS"


def kernels(options, limits):
    names = ["dred", *options.peers]
    print("\nT pairs/s")
    print(" " * 46 + "".join(f"{name:>9s}" for name in [*names, "/best"])
          + "".join(f"{c:>9s}" for c in ("ceiling", "of it", "target")))  # fmt: skip
    notes = {}
    for row in chosen(options):
        found = measure(row, options, notes)
        mine, best = found.get("dred"), max((found[n] for n in options.peers if n in found), default=None)
        cells = [digits(found.get(name), ".3f") for name in names]
        cells.append(digits(mine / best if mine and best else None))
        cells += [digits(row.ceiling), digits(mine / row.ceiling if mine and row.ceiling else None, ".0%")]
        cells.append(digits(row.target))
        words = verdict(row, mine) if mine and limits else ""
        print(line(row.task, f"{options.size}²", "".join(f"{c:>9s}" for c in cells) + "  " + words), flush=True)
    for note, where in notes.items():
        print(f"- {note} ({len(where)} of the rows, first: {where[0].name}, D = {where[0].D}, {where[0].dtype})")


STREAM_ROWS, STREAM_COLUMNS = 1 << 24, 1 << 16


def streaming(options):
    """NumPy arrays in, NumPy array out, by wall clock; beside the same arrays on the device."""
    import cupy

    t = ROWS[0].task
    routine, host = routine_of(t), data(t, STREAM_ROWS, STREAM_COLUMNS)
    device = [cupy.asarray(a) for a in host.values()]
    rivals = {"device": lambda: routine(*device, backend="cuda"),
              "NumPy": lambda: routine(*host.values(), backend="cuda")}  # fmt: skip
    walls = {name: [] for name in rivals}
    for turn in range(options.rounds + 1):
        for name, work in rivals.items():
            start = time.perf_counter()
            work()
            cupy.cuda.Device().synchronize()
            if turn:
                walls[name].append(time.perf_counter() - start)
    on_device, streamed = (statistics.median(walls[name]) for name in rivals)
    print(f"\nNumPy in and out, {STREAM_ROWS} x {STREAM_COLUMNS}: {streamed:.3f} s, on the device {on_device:.3f} s: "
          f"{on_device / streamed:.0%} of its speed (at least {STREAMED:.0%})")  # fmt: skip


def call_overhead():
    """Microseconds of a call of few rows."""
    import cupy

    t = ROWS[0].task
    routine, v = routine_of(t), [cupy.asarray(a) for a in data(t, 1000, 1000).values()]
    waited, issued = [], []
    for _ in range(1000):
        start = time.perf_counter()
        routine(*v, backend="cuda")
        issued.append(time.perf_counter() - start)
        cupy.cuda.Device().synchronize()
        waited.append(time.perf_counter() - start)
    until, back = (statistics.median(times[100:]) * 1e6 for times in (waited, issued))
    print(f"a call at M = N = 1000: {back:.1f} us until it returns (at most {CALL:g}), {until:.1f} us until it is done")


# -- what is where -------------------------------------------------------------------------------------------------


def installed(*packages):
    found = []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"no {package}")
    return ", ".join(found)


def header(name, driver):
    import cupy

    nvrtc = ".".join(map(str, cuda_cache._nvrtc().getVersion()))
    print(f"{name}; driver {driver}; CuPy {cupy.__version__}, NVRTC {nvrtc}")
    peers = installed(*dict.fromkeys(package for package, _ in PEERS.values() if package))
    print(f"dred {dred_version}, NumPy {np.__version__}; peers: {peers}")


def device():
    """Its name, and the version of the driver."""
    from cupy.cuda import runtime

    number = runtime.driverGetVersion()
    return runtime.getDeviceProperties(0)["name"].decode(), f"for CUDA {number // 1000}.{number % 1000 // 10}"


def chosen(options) -> list[Any]:
    return [row for row in ROWS if any(word in f"{row.task.name}, D = {row.task.D}" for word in options.rows)]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dry-run", action="store_true", help="compile and count, without a device")
    parser.add_argument("--size", type=int, default=262_144, help="M and N (default 262144)")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each figure (default 7)")
    parser.add_argument("--budget", type=float, default=1.0, help="most seconds of a call (default 1)")
    parser.add_argument("--rows", nargs="+", default=[""], help="only rows with one of these in their names")
    parser.add_argument("--peers", default=",".join(PEERS), help="names, between commas (default: all)")
    parser.add_argument("--skip-workers", action="store_true", help="no clusters")
    options = parser.parse_args()
    options.peers = [name for name in options.peers.split(",") if name]
    if unknown := set(options.peers) - {*PEERS}:
        parser.error(f"no peers: {', '.join(sorted(unknown))}; there are {', '.join(PEERS)}")
    return options


def main():
    options = arguments()
    there = cuda.device_count() > 0
    if options.dry_run or not there:
        header("no GPU here" if not there else device()[0], "none" if not there else device()[1])
        dry_run(options)
        return
    warnings.simplefilter("ignore")  # of peers, at their imports
    name, driver = device()
    header(name, driver)
    kernels(options, limits=DEVICE in name)
    streaming(options)
    call_overhead()
    if not options.skip_workers:
        gpu_workers.run()


if __name__ == "__main__":
    main()
