"""What this machine has, and whether dred computes right on it."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dred.cluster.plan import aligned
from dred.errors import human
from dred.formula.language import formula
from dred.formula.oracle import dense
from dred.genred import Genred
from dred.kernel import cpu, cuda, cuda_cache, cuda_device, disk, machine, threads
from dred.reductions import REDUCTIONS
from dred.routine import Routine

State = Literal["ok", "missing", "wrong"]

FOLDER = Path(__file__).parents[1]
ARCHITECTURES = ("sm_80", "sm_90")  # compiled for where there is no device
CUPY = "on a machine with an NVIDIA GPU: pip install '.[cuda13]' (or '.[cuda12]') in dred's folder"


@dataclass(frozen=True)
class Row:
    """One finding.

    Attributes
    ----------
    name, value : str
    state : {"ok", "missing", "wrong"}
        "missing": something that dred does without.
    advice : str
        What to do; "" where there is nothing to be done.
    """

    name: str
    value: str
    state: State = "ok"
    advice: str = ""


@dataclass(frozen=True)
class Check:
    """What was found.

    Attributes
    ----------
    rows : tuple of Row
    """

    rows: tuple[Row, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong; things may be missing."""
        return not any(row.state == "wrong" for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {"ok": self.ok, "rows": [asdict(row) for row in self.rows]}

    def __str__(self) -> str:
        table = []
        for row in self.rows:
            table.append((f"{_MARKS[row.state]} {row.name}", row.value))
            if row.advice:
                table.append(("", f"-> {row.advice}"))
        wrong = [row.name for row in self.rows if row.state == "wrong"]
        verdict = f"WRONG: {'; '.join(wrong)}" if wrong else "nothing is wrong"
        return f"{aligned(table)}\n\n{verdict}"


_MARKS = {"ok": " ", "missing": "-", "wrong": "!"}

# -- packages ------------------------------------------------------------------------------------------------------


class Package(NamedTuple):
    """A package, the least version of it, what it is for, and how it is installed; `needed`: nothing works without."""

    name: str
    least: str
    use: str
    install: str
    needed: bool = False


PACKAGES = (
    Package("numpy", "2.0", "everything", "numpy", needed=True),
    Package("dask", "2025.1", "dask arrays and clusters", "'dask[array]'", needed=True),
    Package("distributed", "2025.1", "clusters", "distributed", needed=True),
    Package("llvmlite", "0.45", "compiled kernels on the CPU, several times as fast as NumPy", "llvmlite"),
    Package("zarr", "3", "arrays in zarr", "'.[zarr]'"),
    Package("pyarrow", "16", "arrays in parquet", "'.[parquet]'"),
    Package("h5py", "3.11", "arrays in HDF5", "'.[hdf5]'"),
    Package("s3fs", "2024.6", "arrays in object stores (s3://)", "'.[s3]'"),
    Package("ml_dtypes", "0.5", "bfloat16", "'.[bfloat16]'"),
    Package("dask-cuda", "25.10", "one worker per GPU", "'.[dask-cuda13]'"),
    Package("bokeh", "3.1", "the dashboard of Dask, and its part of reports", "'.[report]'"),
)  # fmt: skip


def _package(package: Package) -> Row:
    absent: State = "wrong" if package.needed else "missing"
    where = " in dred's folder" if package.install.startswith("'.") else ""
    advice = f"for {package.use}: pip install --upgrade {package.install}{where}"
    try:
        found = version(package.name)
    except PackageNotFoundError:
        return Row(package.name, "not installed", absent, advice.replace("--upgrade ", ""))
    if package.least and _numbers(found) < _numbers(package.least):
        return Row(package.name, f"{found}, older than {package.least}", absent, advice)
    return Row(package.name, found)


def _numbers(text: str) -> tuple[int, ...]:
    """The release that a version begins with."""
    out = []
    for part in text.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        out.append(int(digits))
    return tuple(out)


# -- the machine ---------------------------------------------------------------------------------------------------


def _software() -> Iterator[Row]:
    yield Row("Python", f"{platform.python_version()}, {platform.python_implementation()}, {sys.executable}")
    yield Row("platform", platform.platform())
    try:
        number = version("dred")
    except PackageNotFoundError:
        number = "not installed, but imported"
    yield Row("dred", f"{number}, {FOLDER}")
    yield from map(_package, PACKAGES)


def _processor() -> Iterator[Row]:
    yield Row("processor", machine.processor())
    if not cpu.available():
        yield Row("kernels for the CPU", "NumPy computes", "missing", "pip install llvmlite")
        return
    yield Row("LLVM", machine.llvm_version())
    found, simd = machine.chosen(), " ".join(machine.simd())
    why = "DRED_CPU" if os.environ.get("DRED_CPU", "").strip() else "all that the processor can"
    yield Row("kernels are compiled for", f"{found.cpu} ({why}; it has {simd or 'no vectors that LLVM names'})")


def _threads() -> Iterator[Row]:
    count, why = threads.explained()
    yield Row("threads", f"{count} ({why})")


def _memory() -> Iterator[Row]:
    if not hasattr(os, "sysconf"):
        yield Row("memory", "not known on this platform", "missing")
        return
    page, pages = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")
    parts = [human(page * pages)]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
        parts.append(f"{human(free)} available")
    except (OSError, StopIteration, ValueError, IndexError):
        pass
    limits = [int(text) for text in map(_limit, threads.control_groups()) if text.isdecimal()]
    if limits:
        parts.append(f"control groups allow {human(min(limits))}")
    yield Row("memory", ", ".join(parts))


def _limit(group: Path) -> str:
    try:
        return (group / "memory.max").read_text().strip()
    except OSError:
        return ""


def _cache() -> Iterator[Row]:
    store, name = disk.default(), "cache of kernels"
    if store.folder is None:
        yield Row(name, "off: every process compiles anew (DRED_CACHE_DIR, DRED_CACHE_SIZE)")
        return
    if store.folder.exists() and not store.private:
        advice = f"give it to yourself alone (chmod 700 {store.folder}), or name another in DRED_CACHE_DIR"
        yield Row(name, f"{store.folder} is not used: others may write to it", "wrong", advice)
        return
    probe = f"check {os.getpid()}"
    store.write(probe, b"dred")
    kept = store.read(probe) == b"dred"
    store.remove(probe)
    if not kept:
        advice = "every process compiles anew: name a folder in DRED_CACHE_DIR that can be written to"
        yield Row(name, f"{store.folder} cannot be written to", "missing", advice)
        return
    count, size = store.usage()
    yield Row(name, f"{store.folder}, yours alone, {count} entries, {human(size)} (most: {human(store.most)})")


def _gpu() -> Iterator[Row]:
    found = cuda_device.cupy_version()
    yield Row("CuPy", found) if found else Row("CuPy", "not installed", "missing", CUPY)
    if found:
        yield from guarded("NVRTC", _nvrtc)
    if why := cuda_device.lacking():
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        yield Row("GPU", why + (f" (CUDA_VISIBLE_DEVICES={hidden!r})" if hidden is not None else ""), "missing")
        return
    yield Row("driver", f"for CUDA {cuda_device.driver_version()}")
    for n in range(cuda_device.device_count()):
        yield Row(f"GPU {n}", cuda_device.described(n))


def _nvrtc() -> Iterator[Row]:
    yield Row("NVRTC", cuda_cache.nvrtc_version())


# What reads each variable, and raises where it means nothing.
VARIABLES: Mapping[str, Callable[[], object]] = {
    "DRED_NUM_THREADS": threads.declared,
    "DRED_CPU": machine.chosen,
    "DRED_CACHE_DIR": disk.default,
    "DRED_CACHE_SIZE": disk.default,
    "DRED_CUDA_MEMORY": cuda_device.declared,
}


def _variables() -> Iterator[Row]:
    for name in sorted(name for name in os.environ if name.startswith("DRED_")):
        yield from guarded(name, lambda name=name: _variable(name))  # type: ignore[misc]


def _variable(name: str) -> Iterator[Row]:
    known = VARIABLES.get(name)
    if known is not None:
        known()
    yield Row(name, os.environ[name] + ("" if known else " (dred itself reads no such variable)"))


# -- self-tests ----------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A reduction, and by which variable its gradient is taken, if it is.

    The gradient's reference is that of `reference`: another reduction of F, with the formula's derivative as weights.
    """

    name: str
    formula: str
    reduction: str = "Sum"
    axis: int = 1
    dtype: str = "float32"
    parameter: Any = None
    weight: str | None = None
    by: str = ""
    reference: str = ""
    D: int = 3
    sizes: tuple[int, int] = (223, 481)  # too many pairs for the interpreter

    @property
    def title(self) -> str:
        return f"{self.name}, axis {self.axis}, {self.dtype}"

    @property
    def aliases(self) -> list[str]:
        return [f"x = Vi({self.D})", f"y = Vj({self.D})", "b = Vj(1)", "g = Pm(1)", "e = Vi(1)"]

    @property
    def tolerance(self) -> float:
        """Of the largest error beside the largest result; row numbers and extrema are exact."""
        exact = self.reduction not in _SUMS and not self.by
        return 0.0 if exact else {"float32": 1e-5, "float64": 1e-12}[self.dtype]

    def arrays(self) -> list[NDArray[Any]]:
        """Sixteenths, which are exact in every type: row numbers among ties are then those of the reference."""
        rng = np.random.default_rng(0)
        M, N = self.sizes
        shapes = ((M, self.D), (N, self.D), (N, 1), (1,), (M, 1))
        return [rng.integers(-16, 17, shape).astype(self.dtype) / 16 for shape in shapes[:3]] + [
            np.full(1, 0.5, self.dtype),
            rng.integers(1, 17, shapes[4]).astype(self.dtype) / 16,
        ]

    def routine(self) -> Routine:
        """What is computed, of all arrays: of a gradient, e is the cotangent."""
        aliases = self.aliases[:4] if self.by else self.aliases
        routine = Genred(self.formula, aliases, self.reduction, self.axis, opt_arg=self.parameter, formula2=self.weight)
        return routine.grad(self.by) if self.by else routine

    def wanted(self) -> tuple[NDArray[Any], ...]:
        """The results by dense float64 NumPy."""
        weight = f"Grad({self.formula},{self.by},e)" if self.by else self.weight
        f, g = (self._terms(text) for text in (self.formula, weight))
        found = REDUCTIONS[self.reference or self.reduction].numpy(f, g, self.axis, self.parameter)
        return found if isinstance(found, tuple) else (found,)

    def _terms(self, text: str | None) -> NDArray[Any] | None:
        if text is None:
            return None
        node = formula(text, self.aliases).node
        return np.broadcast_to(dense(node, self.arrays(), self.sizes), (*self.sizes, node.dim))


_SUMS = ("Sum", "Mean", "Variance", "LogSumExp", "SoftMax")
_GAUSSIAN, _FAR = "Exp(-g*SqDist(x,y))*b", "-g*SqDist(x,y)"
CASES = (
    Case("Gaussian sum", _GAUSSIAN),
    Case("Gaussian sum", _GAUSSIAN, axis=0, dtype="float64"),
    Case("Gaussian sum of 64 components", _GAUSSIAN, D=64),
    Case("Gaussian sum of 3 rows", _GAUSSIAN, sizes=(3, 40_000)),
    Case("Gaussian gradient", f"Grad({_GAUSSIAN},x,e)"),
    Case("Gaussian gradient in y", f"Grad({_GAUSSIAN},y,e)", axis=0, dtype="float64"),
    Case("tutorial", "Square(g-b)*Exp(x+y)"),
    Case("functions", "Sin(x|y)*Log(1+SqDist(x,y))+Tanh(e*b)+Pow(e,3)/(2+b)+Atan2(b,e)", dtype="float64"),
    Case("LogSumExp", _FAR, "LogSumExp"),
    Case("LogSumExp gradient", _FAR, "LogSumExp", dtype="float64", by="x", reference="SoftMax"),
    Case("SoftMax", _FAR, "SoftMax", axis=0, dtype="float64", weight="x*e"),
    Case("ArgKMin, K = 10", "SqDist(x,y)", "ArgKMin", parameter=10),
    Case("Max_ArgMax", "x*y", "Max_ArgMax", axis=0, dtype="float64"),
    Case("Variance", "Norm2(x-y)", "Variance", parameter=1),
    Case("Histogram", "SqDist(x,y)", "Histogram", dtype="float64", parameter=(0.0, 0.5, 1.0, 2.0, 12.0)),
)


def error(found: Sequence[NDArray[Any]], wanted: Sequence[NDArray[Any]]) -> float:
    """The largest error of any number beside the largest magnitude of its array; NaN where shapes differ."""
    worst = 0.0
    for a, b in zip(found, wanted, strict=True):
        if a.shape != b.shape:
            return float("nan")
        with np.errstate(all="ignore"):
            wrong = np.abs(np.subtract(a, b, dtype=np.float64))
        if not np.isfinite(wrong).all():
            return float("nan")
        worst = max(worst, float(wrong.max() / max(np.abs(b).max(), np.finfo(np.float64).tiny)))
    return worst


def tested(case: Case, backend: str) -> Row:
    """A case computed by kernels of a backend, beside the reference."""
    result = case.routine()(*case.arrays(), backend=backend)
    wrong = error(result if isinstance(result, tuple) else (result,), case.wanted())
    value, fine = f"error {wrong:.1e}, at most {case.tolerance:.0e}", wrong <= case.tolerance
    advice = "results of this kernel are not to be trusted: empty the cache of kernels, and report this table"
    return Row(f"{backend}: {case.title}", value, "ok" if fine else "wrong", "" if fine else advice)


def _kernels(backend: str) -> Iterator[Row]:
    for case in CASES:
        yield from guarded(f"{backend}: {case.title}", lambda case=case: iter([tested(case, backend)]))  # type: ignore[misc]


def _on_cpu() -> Iterator[Row]:
    if cpu.available():
        yield from _kernels("cpu")
    else:
        yield Row("cpu: kernels", "not tested: there is no llvmlite", "missing")


def _on_gpu() -> Iterator[Row]:
    if cuda_device.device_count():
        yield from _kernels("cuda")
    elif cuda_device.cupy_version():
        text = cuda.source(CASES[0].routine().spec(CASES[0].dtype))
        for architecture in ARCHITECTURES:
            code, _ = cuda.compile_cubin(text, architecture)
            yield Row(f"cuda: a kernel for {architecture}", f"compiled, {human(len(code))}; not run: there is no GPU")


# -- all together --------------------------------------------------------------------------------------------------

PARTS: Mapping[str, Callable[[], Iterator[Row]]] = {
    "software": _software,
    "processor": _processor,
    "threads": _threads,
    "memory": _memory,
    "cache of kernels": _cache,
    "GPU": _gpu,
    "variables": _variables,
    "cpu: kernels": _on_cpu,
    "cuda: kernels": _on_gpu,
}


def guarded(name: str, part: Callable[[], Iterator[Row]]) -> Iterator[Row]:
    """The rows of a part; whatever it raises is one that is wrong."""
    try:
        yield from part()
    except Exception as problem:
        yield Row(name, f"{type(problem).__name__}: {problem}", "wrong")


def look() -> Check:
    """Look at this machine, and test the kernels on it: seconds, and nothing is raised.

    Returns
    -------
    Check

    Examples
    --------
    >>> check = look()
    >>> {row.state for row in check.rows} <= {"ok", "missing", "wrong"}
    True
    """
    return Check(tuple(row for name, part in PARTS.items() for row in guarded(name, part)))
