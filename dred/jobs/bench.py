"""The headline figures of this machine: pairs per second beside its ceiling, time to a first result, cost of a call."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dred.errors import OptionError
from dred.genred import Genred
from dred.kernel import cpu, cuda, cuda_ceiling, cuda_device, engine, machine, threads
from dred.kernel.ceiling import multiply_add_rate
from dred.kernel.work import WORK, Work
from dred.sweeps import Sweep

ROUNDS = 5
BLOCK = 1_000_000  # bytes of a block of NumPy's matrix
CALLS, TINY = 300, 30  # calls of so few rows
LEAST, SHORTEST = 1.0, 0.001  # seconds: of a budget, and of a measurement
APART = 6.0  # seconds of new processes and of small calls, at most
PEER = "NumPy, 1 thread"

Arrays = list[Any]


class Row(NamedTuple):
    """A formula; `kind` is its name in the table of work."""

    name: str
    kind: str
    formula: str
    aliases: tuple[str, ...]
    D: int = 3
    reduction: str = "Sum"
    K: int | None = None

    @property
    def work(self) -> Work:
        return WORK[self.kind](self.D, 1)

    def routine(self) -> Genred:
        return Genred(self.formula, [a.format(D=self.D) for a in self.aliases], self.reduction, 1, opt_arg=self.K)


_POINTS = ("x = Vi({D})", "y = Vj({D})")
_GAUSSIAN, _WEIGHTED = "Exp(-g*SqDist(x,y))*b", (*_POINTS, "b = Vj(1)", "g = Pm(1)")
_SQUARE = "Square(p-a)*Exp(x+y)"
ROWS = (
    Row("Gaussian sum, D = 3", "sum", _GAUSSIAN, _WEIGHTED),
    Row("Gaussian sum, D = 64", "sum", _GAUSSIAN, _WEIGHTED, 64),
    Row("its gradient in x, D = 3", "gradient", f"Grad({_GAUSSIAN},x,e)", (*_WEIGHTED, "e = Vi(1)")),
    Row("LogSumExp, D = 3", "logsumexp", "-SqDist(x,y)", _POINTS, reduction="LogSumExp"),
    Row("ArgKMin, K = 10, D = 3", "nearest", "SqDist(x,y)", _POINTS, reduction="ArgKMin", K=10),
    Row(f"{_SQUARE}, D = 3", "tutorial", _SQUARE, (*_POINTS, "a = Vj(1)", "p = Pm(1)")),
)
DTYPES = ("float32", "float64")

# -- where ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Something that computes.

    Attributes
    ----------
    name : str
    columns, unit, most : int
        Columns of a problem, its least number of rows, and the largest.
    given : callable
        Arrays where it reads them.
    seconds : callable
        Of a sweep over M x N pairs of arrays.
    ceiling : callable
        Of a formula's work and type: a function that measures pairs per second.
    """

    name: str
    columns: int
    unit: int
    most: int
    given: Callable[[Arrays], Arrays]
    seconds: Callable[[Sweep, Arrays, int, int], float]
    ceiling: Callable[[Work, str], Callable[[], float]]


def on_cpu(count: int) -> Place:
    """So many threads of this process."""

    def seconds(sweep: Sweep, arrays: Arrays, M: int, N: int) -> float:
        begin = time.perf_counter()
        state = engine.fold(sweep.spec, "cpu", engine.empty(sweep.spec, M), arrays, M, N, threads=count)
        engine.finalize(sweep.spec, state, sweep.outputs)
        return time.perf_counter() - begin

    def ceiling(work: Work, dtype: str) -> Callable[[], float]:
        rate, fma = multiply_add_rate(dtype, count, time.perf_counter), work.fma(dtype)
        return lambda: rate() / fma

    name = "1 thread" if count == 1 else f"{count} threads"
    return Place(name, 10_000, 256 * count, 40_960 * count, list, seconds, ceiling)


def on_gpu(device_id: int) -> Place:
    """The current CUDA device, of this number; arrays are in its memory."""
    measured = cuda_ceiling.rates()

    def seconds(sweep: Sweep, arrays: Arrays, M: int, N: int) -> float:
        return cuda_ceiling.seconds(lambda: cuda.reduce_device(sweep.spec, arrays, M, N, outputs=sweep.outputs))

    def ceiling(work: Work, dtype: str) -> Callable[[], float]:
        return lambda: cuda_ceiling.pairs(work, dtype, lambda name: measured[name]())

    return Place(f"GPU {device_id}", 1 << 17, 1 << 14, 1 << 18, cuda_ceiling.given, seconds, ceiling)


def places() -> list[Place]:
    """What this process can compute with: one thread, all of them, a GPU."""
    found = [on_cpu(count) for count in sorted({1, threads.thread_count()})] if cpu.available() else []
    return [*found, on_gpu(cuda_device.current())] if cuda.device_count() else found


# -- rates ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """A measured speed.

    Attributes
    ----------
    name, dtype, place : str
    pairs, ceiling : float
        Pairs per second, and what they could be at most where only arithmetic took time; medians. NaN: not known.
    """

    name: str
    dtype: str
    place: str
    pairs: float
    ceiling: float = math.nan

    @property
    def part(self) -> float:
        """Of the ceiling."""
        return self.pairs / self.ceiling


def _arrays(row: Row, dtype: str, M: int, N: int) -> Arrays:
    """Uniform numbers; points so near to each other that no exponential underflows."""
    rng = np.random.default_rng(0)
    shapes = [((M, v.dim), (N, v.dim), (v.dim,))[v.cat] for v in row.routine().spec(dtype).variables]
    return [(rng.random(shape) / shape[-1] ** 0.5).astype(dtype) for shape in shapes]


def _sized(place: Place, row: Row, dtype: str, budget: float) -> Callable[[], float]:
    """A function that measures pairs per second, on as many rows as take the time."""
    sweep, N = row.routine().sweeps(dtype)[-1], place.columns

    def problem(M: int) -> Arrays:
        return place.given(_arrays(row, dtype, M, N))

    few = problem(place.unit)
    place.seconds(sweep, few, place.unit, N)  # compiles
    pace = place.unit / max(place.seconds(sweep, few, place.unit, N), 1e-9)
    M = max(place.unit, min(place.most, int(budget * pace) // place.unit * place.unit))
    arrays = problem(M)
    return lambda: M * N / place.seconds(sweep, arrays, M, N)


def figures(row: Row, dtype: str, where: Sequence[Place], budget: float, peer: bool = False) -> list[Figure]:
    """The speeds of a formula, places and ceilings taking turns.

    Parameters
    ----------
    row : Row
    dtype : str
    where : sequence of Place
    budget : float
        Seconds for all of it, about.
    peer : bool
        Whether NumPy takes its turns, too, with the first row.
    """
    each = max(SHORTEST, budget / ((ROUNDS + 1) * (len(where) + peer)))
    rivals = [(place.name, _sized(place, row, dtype, each), place.ceiling(row.work, dtype)) for place in where]
    if peer:
        rivals.append((PEER, _numpy(dtype, each), lambda: math.nan))
    measured = [[(work(), most()) for _, work, most in rivals] for _ in range(ROUNDS)]
    out = []
    for (name, _, _), turns in zip(rivals, zip(*measured, strict=True), strict=True):
        pairs, ceiling = (statistics.median(values) for values in zip(*turns, strict=True))
        out.append(Figure(row.name, dtype, name, pairs, ceiling))
    return out


# -- the peer ------------------------------------------------------------------------------------------------------


def gram(x: NDArray[Any], y: NDArray[Any], norms: NDArray[Any], g: Any) -> NDArray[Any]:
    """The Gaussian kernel matrix of a block, distances by BLAS and the squared norms of y, all else in place: what a
    careful NumPy user writes."""
    squares = (x * y.dtype.type(-2)) @ y.T
    squares += (x * x).sum(1)[:, None]
    squares += norms
    np.maximum(squares, 0, out=squares)
    squares *= -g
    out: NDArray[Any] = np.exp(squares, out=squares)
    return out


def gaussian_sum(x: NDArray[Any], y: NDArray[Any], b: NDArray[Any], g: NDArray[Any]) -> NDArray[Any]:
    """The Gaussian sum by NumPy, a block of rows at a time."""
    rows = max(16, BLOCK // (len(y) * y.itemsize))
    out, norms = np.empty((len(x), b.shape[1]), x.dtype), (y * y).sum(1)
    for first in range(0, len(x), rows):
        out[first : first + rows] = gram(x[first : first + rows], y, norms, g[0]) @ b
    return out


def numpy_rate(dtype: str, budget: float) -> float:
    """Pairs per second of NumPy on the first row, in this process and on as many rows as take the time."""
    N = 10_000

    def rate(M: int) -> float:
        arrays = _arrays(ROWS[0], dtype, M, N)
        begin = time.perf_counter()
        gaussian_sum(*arrays)
        return M * N / (time.perf_counter() - begin)

    rate(256)
    return rate(max(256, int(budget * rate(256) / N)))


def _numpy(dtype: str, budget: float) -> Callable[[], float]:
    """The same in a process of its own: threads of BLAS that wait would take their time from the others."""
    code = "import sys; from dred.jobs import bench; print(bench.numpy_rate(sys.argv[1], float(sys.argv[2])))"
    one = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "VECLIB")}
    return lambda: float(_apart(code, one, dtype, str(budget)))


def _apart(code: str, environment: Mapping[str, str], *arguments: str) -> str:
    """What a new process prints that imports dred from where this one has it."""
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, **environment, "PYTHONPATH": os.pathsep.join(paths)}
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # dred itself is imported as it is where it was installed
    command = [sys.executable, "-P", "-c", code, *arguments]
    return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout


# -- times ---------------------------------------------------------------------------------------------------------

# Seconds of import numpy, import dred, import llvmlite where that is wanted, and of the first result
_FIRST = """
import sys, json, time
t = [time.perf_counter()]
import numpy as np
t.append(time.perf_counter())
from dred import Genred
t.append(time.perf_counter())
if sys.argv[1] == "llvm":
    import llvmlite.binding
t.append(time.perf_counter())
n = int(sys.argv[2])
x = np.linspace(0, 1, 3 * n, dtype=np.float32).reshape(n, 3)
routine = Genred("Exp(-g*SqDist(x,y))*b", ["x = Vi(3)", "y = Vj(3)", "b = Vj(1)", "g = Pm(1)"], axis=1)
routine(x, x, x[:, :1].copy(), x[0, :1], backend="cpu")
t.append(time.perf_counter())
print(json.dumps([b - a for a, b in zip(t, t[1:])]))
"""


def first_result(cache: str, llvm: bool = False, n: int = 100) -> list[float]:
    """Seconds of a new process: import of NumPy, of dred, of llvmlite (if wanted; else the next has it), first result.

    Parameters
    ----------
    cache : str
        The folder of compiled kernels, as in DRED_CACHE_DIR.
    llvm : bool
    n : int
        Points.
    """
    found: list[float] = json.loads(_apart(_FIRST, {"DRED_CACHE_DIR": cache}, "llvm" if llvm else "", str(n)))
    return found


def times() -> dict[str, float]:
    """Seconds until a new process has its first result, and of a call of few rows."""
    out = {}
    with tempfile.TemporaryDirectory(prefix="dred-bench-") as folder:
        for name in ("compiled", "its kernel on disk"):
            out[f"first result in a new process, {name}"] = first_result(folder)[-1]
    row, dtype = ROWS[0], "float32"
    routine, arrays = row.routine(), _arrays(row, dtype, TINY, TINY)
    for name, call in (
        ("a call", lambda: routine(*arrays, backend="cpu")),
        ("the same by NumPy", lambda: gaussian_sum(*arrays)),
    ):
        taken = []
        for _ in range(CALLS):
            begin = time.perf_counter()
            call()
            taken.append(time.perf_counter() - begin)
        out[f"{name}, M = N = {TINY}"] = statistics.median(taken)
    return out


# -- all together --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """The figures of a machine.

    Attributes
    ----------
    machine : mapping of str to str
    figures : tuple of Figure
    times : mapping of str to float
        Seconds.
    """

    machine: Mapping[str, str]
    figures: tuple[Figure, ...]
    times: Mapping[str, float]

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON; what is not known is None."""
        rows = [{**asdict(f), "part": f.part} for f in self.figures]
        known = [{k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()} for row in rows]
        return {"machine": dict(self.machine), "figures": known, "seconds": dict(self.times)}

    def __str__(self) -> str:
        return "\n".join([*(f"{name}: {value}" for name, value in self.machine.items()), "", *self._table(), "",
                          *self._times()])  # fmt: skip

    def _table(self) -> list[str]:
        found = {(f.name, f.dtype, f.place): f for f in self.figures}
        where = [name for name in dict.fromkeys(f.place for f in self.figures) if name != PEER]
        width = max(20, max((len(f.name) for f in self.figures), default=0))
        lines = [f"{'G pairs/s, of the ceiling':{width + 9}s}" + "".join(f"{name:>18s}" for name in where)]
        for name, dtype in dict.fromkeys((f.name, f.dtype) for f in self.figures):
            cells = "".join(f"{_rate(found[name, dtype, at])} {found[name, dtype, at].part:6.0%}" for at in where)
            lines.append(f"{name:{width}s} {dtype:8s}{cells}")
            if (peer := found.get((name, dtype, PEER))) is not None:
                ratios = "".join(f"{f'{found[name, dtype, at].pairs / peer.pairs:.1f} x':>18s}" for at in where)
                text = f"  {PEER}: {_rate(peer).strip()}"
                lines.append(f"{text:{width + 9}s}{ratios}" if where else text)
        return [line.rstrip() for line in lines]

    def _times(self) -> list[str]:
        width = max((len(name) for name in self.times), default=0)
        return [f"{name:{width}s} {seconds * 1e3:9.3g} ms" for name, seconds in self.times.items()]


def _rate(figure: Figure) -> str:
    return f"{figure.pairs / 1e9:11.3g}"


def measure(budget: float = 40.0) -> Bench:
    """Measure this machine: speeds by wall clock, beside the ceilings of the same rounds, and times.

    Parameters
    ----------
    budget : float
        Seconds, about; less than 10 measure little more than noise.

    Returns
    -------
    Bench

    Raises
    ------
    OptionError
        A budget of less than a second.
    BackendError
        Kernels cannot be compiled here.

    Examples
    --------
    >>> print(measure(20))  # doctest: +SKIP
    """
    if not budget >= LEAST:
        raise OptionError(f"budget={budget!r}: name the seconds that the measurements may take, at least {LEAST:g}")
    begin = time.perf_counter()
    where = places()
    apart = times()
    left = max(0.0, budget - max(APART, time.perf_counter() - begin))
    each = left / (len(ROWS) * len(DTYPES))
    found = [f for dtype in DTYPES for row in ROWS
             for f in figures(row, dtype, where, each, peer=row is ROWS[0])]  # fmt: skip
    return Bench(_machine(where), tuple(found), apart)


def _machine(where: Sequence[Place]) -> dict[str, str]:
    count, why = threads.explained()
    about = {"processor": machine.processor(), "threads": f"{count} ({why})"}
    if cpu.available():
        chosen, simd = machine.chosen(), " ".join(machine.simd())
        about["kernels"] = f"{chosen.cpu} ({simd}), LLVM {machine.llvm_version()}"
    if cuda.device_count():
        device = cuda_device.current()
        about[f"GPU {device}"] = f"{cuda_device.described(device)}, driver for CUDA {cuda_device.driver_version()}"
    about["software"] = f"Python {platform.python_version()}, NumPy {np.__version__}"
    about["ceiling"] = "what a pair's arithmetic takes at least, at the rate of independent multiply-adds"
    return about
