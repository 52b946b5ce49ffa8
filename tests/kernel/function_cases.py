"""Elementary functions of the CPU backend on arrays, references for them, and errors in units of the last place."""

import ctypes
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from dred.kernel import llvm_math
from dred.kernel.llvm_lanes import Lanes
from dred.kernel.primitives import PRIMITIVES

LONG = np.longdouble
"""80 bits on x86; where it is no longer than float64, errors are measured by float64 and mean less."""


class Case(NamedTuple):
    """A function.

    Attributes
    ----------
    arity, bound : int
        Operands; the largest error in units of the last place.
    reference : callable
        On float64 arrays for float32 results, on long doubles for float64 results.
    """

    arity: int
    bound: float
    reference: Callable[..., Any]


def erf(x: np.ndarray) -> np.ndarray:
    """SciPy's for float64; else 2/sqrt(pi) exp(-x^2) (x + 2/3 x^3 + 4/15 x^5 + ...), all terms of one sign."""
    if x.dtype == np.float64:
        return np.asarray(special.erf(x))
    a = np.minimum(np.abs(x), 6.5)
    term = total = a
    for n in range(1, 140):
        term = term * (2 * a * a / (2 * n + 1))
        total = total + term
    y = total * np.exp(-a * a) * 2 / np.sqrt(np.arctan(x.dtype.type(1)) * 4)
    return np.copysign(np.where(np.isnan(x), x, np.where(a == 0, a, y)), x)


CASES = {
    "exp": Case(1, 2, np.exp),
    "exp2": Case(1, 2, np.exp2),
    "expm1": Case(1, 2, np.expm1),
    "log": Case(1, 2, np.log),
    "log1p": Case(1, 2, np.log1p),
    "sin": Case(1, 2, np.sin),
    "cos": Case(1, 2, np.cos),
    "tan": Case(1, 2, np.tan),
    "asin": Case(1, 2, np.arcsin),
    "acos": Case(1, 2, np.arccos),
    "atan": Case(1, 2, np.arctan),
    "sinh": Case(1, 2, np.sinh),
    "cosh": Case(1, 2, np.cosh),
    "tanh": Case(1, 2, np.tanh),
    "erf": Case(1, 4, erf),
    "atan2": Case(2, 2, np.arctan2),
    "hypot": Case(2, 2, np.hypot),
    "pow": Case(2, 4, np.power),
}


def text(name: str, dtype: str, width: int, scaling: bool = False, moderate: bool = False) -> str:
    """A kernel that maps arrays, whose length is a multiple of the number of lanes, through a function."""
    lanes = Lanes(dtype, width, scaling=scaling, moderate=moderate)
    lines: list[str] = []

    def put(instruction: str) -> str:
        lines.append(f"  %v{len(lines)} = {instruction}")
        return f"%v{len(lines) - 1}"

    given = []
    for k in range(PRIMITIVES[name].arity):
        at = put(f"getelementptr {lanes.scalar}, ptr %x{k}, i64 %n")
        given.append(put(f"load {lanes.type}, ptr {at}, align {lanes.itemsize}"))
    result = llvm_math.operation(put, lanes, name, given)
    at = put(f"getelementptr {lanes.scalar}, ptr %out, i64 %n")
    body = "\n".join(lines)
    kernel = f"""define void @map(ptr %x0, ptr %x1, ptr %out, i64 %size) {{
entry:
  br label %head
head:
  %n = phi i64 [ 0, %entry ], [ %next, %head ]
{body}
  store {lanes.type} {result}, ptr {at}, align {lanes.itemsize}
  %next = add i64 %n, {width}
  %more = icmp slt i64 %next, %size
  br i1 %more, label %head, label %done
done:
  ret void
}}
"""
    return llvm_math.declared(kernel, [lanes]) + 'attributes #1 = { noinline nounwind "prefer-vector-width"="512" }\n'


def build(source: str, cpu: str | None = None, features: str | None = None) -> "Mapped":
    """Machine code of a kernel, as a function of one or two arrays."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name() if cpu is None else cpu,
        features=llvm.get_host_cpu_features().flatten() if features is None else features,
        opt=2,
    )
    module = llvm.parse_assembly(source)
    module.verify()
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    kernel = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3, ctypes.c_int64)(engine.get_function_address("map"))

    return Mapped(kernel, engine)


class Mapped:
    """A compiled kernel; its machine code lives as long as `engine`."""

    def __init__(self, kernel: Any, engine: Any) -> None:
        self.kernel, self.engine = kernel, engine

    def __call__(self, *arrays: np.ndarray) -> np.ndarray:
        size = len(arrays[0])
        padded = [np.concatenate([a, np.ones(-size % 16, a.dtype)]) if size % 16 else a for a in arrays]
        out = np.empty(len(padded[0]), padded[0].dtype)
        self.kernel(padded[0].ctypes.data, padded[-1].ctypes.data, out.ctypes.data, len(out))
        return out[:size]


_built: dict[tuple[str, str, int], Mapped] = {}


def compiled(name: str, dtype: str, width: int = 16) -> Mapped:
    """The function on arrays, compiled once."""
    key = (name, dtype, width)
    if key not in _built:
        _built[key] = build(text(*key))
    return _built[key]


def ulps(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """Errors in units of the last place of what is right; infinite where one alone is NaN or a zero has the wrong sign.

    The last place of a denormal number is the smallest number. Beyond the largest number there is one more exponent,
    so that an infinity may stand for what is within the bound of it.
    """
    single = got.dtype == np.float32
    digits, lowest, highest = (24, -149, 128) if single else (53, -1074, 1024)
    with np.errstate(all="ignore"):
        _, exponent = np.frexp(want)
        ulp = np.ldexp(want.dtype.type(1), np.clip(exponent - digits, lowest, highest - digits))
        largest = np.ldexp(want.dtype.type(1), highest)
        rounded = np.clip(want, -largest, largest)
        finite = np.where(np.isinf(got), np.copysign(largest, got.astype(want.dtype)), got.astype(want.dtype))
        error = np.abs(finite - rounded) / ulp
        same = (np.isnan(got) & np.isnan(want)) | ((got == want) & (np.signbit(got) == np.signbit(want)))
        error = np.where(np.isnan(error) | ((got == 0) & (np.signbit(got) != np.signbit(want))), np.inf, error)
    return np.where(same, 0, error)


def random_numbers(rng: np.random.Generator, dtype: str, size: int) -> np.ndarray:
    """Over all exponents: bits at random, and half of them between 2^-12 and 2^12."""
    unsigned = np.uint32 if dtype == "float32" else np.uint64
    bits = rng.integers(0, np.iinfo(unsigned).max, size, unsigned, endpoint=True).view(dtype)
    usual = (rng.uniform(1, 2, size) * rng.choice([-1, 1], size) * 2.0 ** rng.integers(-12, 12, size)).astype(dtype)
    return np.where(rng.random(size) < 0.5, bits, usual)


def special_numbers(dtype: str) -> np.ndarray:
    """Zeros, infinities, NaN, the ends of the range, and neighbours of numbers at which recipes change over."""
    f = np.finfo(dtype)
    centres = [0.25, 0.5, 0.55, np.sqrt(0.5), 1, np.sqrt(2), 2, 4, 6, 10, 20, 2.0**16, 2.0**20, 2.0**24, 2.0**53]
    centres += [np.log(2) / 2 * k for k in range(-1, 8)] + [np.pi / 4 * k for k in range(1, 9)] + [2.0**-26, 2.0**-55]
    centres += [88.72284, 89.4160, 103.97, 104, 709.782712893384, 710.475860073944, 745.13, 128, 149, 150, 1024, 1075]
    centres += [float(f.tiny), float(f.max), float(f.smallest_subnormal), float(f.tiny) / 3, float(f.max) / 3]
    centres += [1e-10, 1e10, 17564.64453125, 6381956970095103.0 * 2.0**60]
    out = [np.array([0.0, np.inf, np.nan])]
    with np.errstate(all="ignore"):
        for centre in centres:
            near = np.array([centre], dtype)
            out += [near, np.nextafter(near, np.array([np.inf], dtype)), np.nextafter(near, np.zeros(1, dtype))]
        values = np.concatenate([np.asarray(a, dtype) for a in out])
    return np.concatenate([values, -values])


def points(name: str, dtype: str, rng: np.random.Generator, size: int) -> list[np.ndarray]:
    """Arguments of a function: special ones (all pairs of them), then random ones."""
    edges = special_numbers(dtype)
    if CASES[name].arity == 1:
        return [np.concatenate([edges, random_numbers(rng, dtype, size)])]
    grid = [a.ravel() for a in np.meshgrid(edges, edges)]
    return [np.concatenate([a, random_numbers(rng, dtype, size)]) for a in grid]


def worst(name: str, dtype: str, *arrays: np.ndarray) -> tuple[float, tuple[float, ...]]:
    """The largest error, and where it is; 0.5 where all results are rounded rightly."""
    got = compiled(name, dtype)(*arrays)
    with np.errstate(all="ignore"):
        want = CASES[name].reference(*(a.astype(np.float64 if dtype == "float32" else LONG) for a in arrays))
        bits = np.uint32 if dtype == "float32" else np.uint64
        others = np.flatnonzero(got.view(bits) != want.astype(dtype).view(bits))
    error = ulps(got[others], want[others])
    if not error.any():
        return 0.5, ()
    n = int(np.argmax(error))
    return float(error[n]), tuple(float(a[others[n]]) for a in arrays)


def patterns(stride: int, first: int = 0, last: int = 2**32) -> Iterator[np.ndarray]:
    """All float32 numbers, every `stride`-th, in pieces that fit into a cache."""
    for start in range(first, last, stride * 2**15):
        stop = min(start + stride * 2**15, last)
        yield np.arange(start, stop, stride, dtype=np.uint64).astype(np.uint32).view(np.float32)


SCALED = {"exp2s", "exp2s_fall", "exp2s_rise", "exp2s_stay"}  # see test_scaled_powers
assert set(CASES) == {*llvm_math.FUNCTIONS, *llvm_math.INLINE} - {"min", "max", *SCALED}
assert all(PRIMITIVES[name].arity == case.arity for name, case in CASES.items())
