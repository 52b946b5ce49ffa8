"""CUDA sources without a GPU: run through the shim, compiled by NVRTC, and equal in every process."""

import hashlib
import os
import re
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from dred.errors import BackendError
from dred.formula.language import formula
from dred.kernel import cuda, cuda_cache, cuda_launch
from dred.kernel.cuda_schedule import THREADS, UNROLL, schedule
from dred.kernel.cuda_source import Source
from dred.kernel.cuda_text import literal
from dred.kernel.lower import lower
from dred.kernel.output import Output
from dred.kernel.spec import CHAIN, KernelSpec
from tests.kernel.cuda_cases import (
    CASES,
    HUGE,
    SPECIAL,
    Case,
    assert_special,
    assert_sums,
    data,
    gaussian,
    gaussian_gradient,
    pairs,
    rendered,
    spec,
    special,
    tolerance,
)
from tests.shim import shim

ROOT = Path(__file__).parents[2]
SNAPSHOT = Path(__file__).with_name("snapshots") / "gaussian_3_float32.cu"
DTYPES = ("float32", "float64")
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
REGISTERS = {"float32": 216, "float64": 255}  # two blocks to a multiprocessor

SUM = Output.of("Sum")

needs_compiler = pytest.mark.skipif(not shim.available(), reason="no C++ compiler")


def nvrtc_available() -> bool:
    try:
        from cupy.cuda import nvrtc

        return nvrtc.getVersion()[0] > 0
    except Exception:
        return False


needs_nvrtc = pytest.mark.skipif(not nvrtc_available(), reason="no NVRTC")


def some(cases, every: int):
    """Cases as parameters: one in `every` is for the fast tier, the others are for the slow one."""
    return [pytest.param(case, marks=[pytest.mark.slow] * (n % every > 0)) for n, case in enumerate(cases)]


# -- run on the CPU ------------------------------------------------------------------------------------------------


# The fast tier takes each case in one type, a few in both; the slow tier all the rest.
FAST = [(name, DTYPES[n % 2]) for n, name in enumerate(CASES)]
FAST += [
    key
    for key in (("gaussian 3 axis 1", "float64"), ("square exp", "float64"), ("norms", "float64"))
    if key not in FAST
]
SLOW = [(name, dtype) for name in CASES for dtype in DTYPES if (name, dtype) not in FAST]
every_case = pytest.mark.parametrize(
    ("name", "dtype"),
    [*(pytest.param(*key) for key in FAST), *(pytest.param(*key, marks=pytest.mark.slow) for key in SLOW)],
)


class Built:
    """Cases in libraries of the shim, those of a tier in one, compiled when first used."""

    def __init__(self, cases: dict[str, Case], tiers: list[list[tuple[str, str]]], flags=()) -> None:
        self.cases, self.tiers, self.flags, self.libraries = cases, tiers, flags, {}
        self.sources = {
            key: rendered(cases[key[0]], key[1], f"k{n}_{m}")
            for n, tier in enumerate(tiers)
            for m, key in enumerate(tier)
        }

    def library(self, name, dtype):
        n = next(n for n, tier in enumerate(self.tiers) if (name, dtype) in tier)
        if n not in self.libraries:
            sources = [self.sources[key] for key in self.tiers[n]]
            self.libraries[n] = shim.compile_sources(sources, self.flags)
        return self.libraries[n]

    def run(self, name, dtype, arrays, M, N, **more):
        return shim.run(self.library(name, dtype), self.sources[name, dtype], list(arrays.values()), M, N, **more)[0]


@pytest.fixture(scope="session")
def built():
    return Built(CASES, [FAST, SLOW])


def sizes(case: Case, dtype: str) -> list[tuple[int, int]]:
    """Rows and columns: none, one, and around the edges of tiles and chains."""
    kernel = lower(spec(case, dtype), UNROLL[dtype])
    s = schedule(kernel, np.dtype(dtype).itemsize, spec(case, dtype).chain)
    rows, TJ, chain = THREADS * s.R, s.TJ, s.chain
    return [(0, 3), (3, 0), (1, 1), (2, chain - 1), (3, chain), (1, chain + 1), (THREADS - 1, TJ - 1),
            (THREADS, TJ), (THREADS + 1, TJ + 1), (rows - 1, 3), (rows, 2), (rows + 1, chain + 3),
            (5, 3 * TJ + chain + 5)]  # fmt: skip


@needs_compiler
@every_case
def test_sums_agree_with_numpy(built, name, dtype):
    for M, N in sizes(CASES[name], dtype):
        arrays = data(CASES[name], M, N, dtype, seed=M + N)
        assert_sums(built.run(name, dtype, arrays, M, N), pairs(CASES[name], arrays), dtype)


@needs_compiler
@every_case
def test_splits_of_the_columns(built, name, dtype):
    """Each split agrees with NumPy; the same split gives the same bytes again, also with threads in reverse order."""
    M, N = 40, built.sources[name, dtype].tile_columns * 2 + 37
    arrays = data(CASES[name], M, N, dtype)
    terms = pairs(CASES[name], arrays)
    for splits in (1, 2, 3):
        with shim.fibers(reverse=False):
            first = built.run(name, dtype, arrays, M, N, splits=splits)
            again = built.run(name, dtype, arrays, M, N, splits=splits)
        with shim.fibers(reverse=True):
            reverse = built.run(name, dtype, arrays, M, N, splits=splits)
        assert_sums(first, terms, dtype)
        assert first.tobytes() == again.tobytes() == reverse.tobytes()


# row records in registers and in memory, column records packed and in blocks, narrow and wide states
KINDS = [FAST[list(CASES).index(name)] for name in (
    "gaussian 3 axis 1", "gaussian 200 axis 1", "gaussian 64 gradient x", "square exp gradient y", "norms"
)]  # fmt: skip
every_kind = pytest.mark.parametrize(("name", "dtype"), KINDS)


@needs_compiler
@every_kind
def test_batches_and_a_variable_that_all_share(built, name, dtype):
    case, M, N, B = CASES[name], 130, 150, 3
    singles = [data(case, M, N, dtype, seed) for seed in range(B)]
    shared = [alias.partition(" ")[0] for alias in case.aliases][1]
    for single in singles:
        single[shared] = singles[0][shared]
    stacked = {v: singles[0][v] if v == shared else np.stack([s[v] for s in singles]) for v in singles[0]}
    strides = [0 if v == shared else singles[0][v].size for v in stacked]
    whole = built.run(name, dtype, stacked, M, N, batches=B, strides=strides, splits=1)
    for b, single in enumerate(singles):
        assert_sums(whole[:, b * M : (b + 1) * M], pairs(case, single), dtype)
        assert whole[:, b * M : (b + 1) * M].tobytes() == built.run(name, dtype, single, M, N, splits=1).tobytes()


@needs_compiler
@pytest.mark.parametrize("splits", [1, 2, 3])
@every_kind
def test_intervals_of_columns(built, name, dtype, splits):
    """Rows with two intervals, with one, with none, and rows that no item names, which keep their state."""
    case, M, N = CASES[name], 200, 400
    arrays = data(case, M, N, dtype)
    intervals = np.array([(5, 200), (211, 400), (0, 1)], np.int64)
    items = np.array([(0, 3, 150, 0, 2), (0, 150, 160, 2, 3), (0, 160, 165, 1, 1), (0, 165, 199, 1, 2)], np.int64)
    terms = np.zeros_like(pairs(case, arrays))
    for _, low, high, first, last in items:
        for begin, end in intervals[first:last]:
            terms[low:high, begin:end] = pairs(case, arrays)[low:high, begin:end]
    state = [np.full((terms.shape[2], M), 2.5)]
    out = built.run(name, dtype, arrays, M, N, items=items, intervals=intervals, splits=splits, state=state)
    assert_sums(out, terms, dtype, start=2.5)
    assert np.all(out[:, :3] == 2.5)


@needs_compiler
@every_kind
def test_bits_do_not_depend_on_launches(built, name, dtype, monkeypatch):
    """Fewer rows, or fewer splits, to a launch: more launches, the same bytes. Nor does a row depend on its tile."""
    case = CASES[name]
    source = built.sources[name, dtype]
    M, N = 3 * source.tile_rows + 7, 2 * source.tile_columns + 45
    arrays = data(case, M, N, dtype)

    def fold(**more):
        device = shim.ShimDevice(built.library(name, dtype))
        state = [np.zeros((source.components, M))]
        cuda.launch(source, device, state, list(arrays.values()), M, N, splits=3, **more)
        return state[0], sum(call.endswith("_fold") for call, _ in device.calls)

    whole, launches = fold()
    assert launches == 1
    monkeypatch.setattr(cuda_launch, "LAUNCH_COST", 1.0)
    sliced, launches = fold()
    assert launches == 4 * 3
    assert sliced.tobytes() == whole.tobytes()
    some = {v: a[: M // 2] if len(a) == M else a for v, a in arrays.items()}
    assert built.run(name, dtype, some, M // 2, N, splits=3).tobytes() == whole[:, : M // 2].tobytes()


@needs_compiler
def test_nan_and_inf_reach_their_rows_alone(built):
    case, M, N = CASES["gaussian 3 axis 1"], 300, 290
    arrays = data(case, M, N, "float32")
    arrays["x"][7, 1], arrays["x"][9, 0] = np.nan, np.inf
    out = built.run("gaussian 3 axis 1", "float32", arrays, M, N)[0]
    assert np.isnan(out[7])
    assert out[9] == 0  # infinitely far from all
    assert np.all(np.isfinite(np.delete(out, 7)))
    arrays["b"][289] = np.inf
    assert np.all(np.isinf(np.delete(built.run("gaussian 3 axis 1", "float32", arrays, M, N)[0], [7, 9])))


@needs_compiler
@pytest.mark.parametrize(("name", "dtype"), [key for key in FAST if key[0] in SPECIAL])
def test_special_values(built, name, dtype):
    for arrays, M, N in special(CASES[name], dtype):
        assert_special(built.run(name, dtype, arrays, M, N), CASES[name], arrays, dtype)


@needs_compiler
def test_state_is_kept_in_double(built):
    """Equal float32 terms: a chain errs by less than 5e-7, and nothing is lost between chains (float32: 2e-6)."""
    N, tenth = 50_000, np.float32(0.1)
    arrays = {
        "x": np.ones((1, 3), "f4"),
        "y": np.ones((N, 3), "f4"),
        "b": np.full((N, 1), tenth),
        "g": np.ones(1, "f4"),
    }
    out = built.run("gaussian 3 axis 1", "float32", arrays, 1, N)[0, 0]
    assert abs(out / (N * float(tenth)) - 1) < 5e-7


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["-O2", "-DDRED_SHIM_UCONTEXT"]])
def test_huge_records(flags):
    keys = [(name, dtype) for name in HUGE for dtype in DTYPES]
    built = Built(HUGE, [keys], flags)
    for (name, dtype), source in built.sources.items():
        for M, N, splits in ((1, 1, None), (130, 41, 1), (30, 2 * source.tile_columns + 13, 3)):
            arrays = data(HUGE[name], M, N, dtype)
            out = built.run(name, dtype, arrays, M, N, splits=splits)
            terms = pairs(HUGE[name], arrays)
            assert np.all(np.abs(out - terms.sum(1).T) <= 5 * tolerance(dtype) * np.abs(terms).sum(1).max())


# -- the tests can fail --------------------------------------------------------------------------------------------

BARRIER = "__syncthreads();"
PART = CHAIN // 2  # columns of a part of a chain,
LONG = PART * PART  # and of a chain
BUGS = {
    "none": lambda text: text,
    "no barrier before staging": lambda text: text.replace(BARRIER, "", 1),
    "no barrier after staging": lambda text: text.replace(BARRIER, "@", 1).replace(BARRIER, "").replace("@", BARRIER),
    "a chain one too long": lambda text: text.replace(f"count - c0 >= {LONG}", f"count - c0 >= {LONG - 1}"),
    "a chain a part too short": lambda text: text.replace(f"h < {LONG}", f"h < {LONG - PART}"),
    "a part one too short": lambda text: text.replace(f"t < h + {PART}", f"t < h + {PART - 1}"),
    "the last column left out": lambda text: text.replace(f"(h + {PART}, count)", f"(h + {PART}, count - 1)"),
    "parts that are not emptied": lambda text: text.replace("part0[r] = 0.0f;", "", 1),
    "parts that are not added": lambda text: text.replace("run0[r] += part0[r];", "run0[r] = part0[r];", 1),
    "a tile too few": lambda text: text.replace("j0 < stop", "j0 + 256 < stop"),
    "a tile's record off by one": lambda text: text.replace("min(j0 + t, end - 1)", "min(j0 + t, end - 2)"),
    "a row of another thread": lambda text: text.replace(
        "item[1] + threadIdx.x + 128 * r", "item[1] + threadIdx.x + 127 * r"
    ),
    "splits overlap": lambda text: text.replace("const i64 from = (first + ", "const i64 from = (first - 1 + "),
    "a row too many": lambda text: text.replace("item[1] + n < item[2]", "item[1] + n <= item[2]"),
}


@pytest.fixture(scope="session")
def planted():
    """The same kernel with one bug each."""
    sources = {}
    for n, (bug, change) in enumerate(BUGS.items()):
        source = rendered(gaussian(3, 1), "float32", f"b{n}")
        text = change(source.text)
        assert (text == source.text) == (bug == "none")
        sources[bug] = type(source)(**{**vars(source), "text": text})
    return sources, shim.compile_sources(list(sources.values()))


@needs_compiler
@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_found(planted, bug):
    sources, library = planted
    wrong = 0
    for M, N, splits in ((1100, 2 * LONG - 1, 1), (129, 3 * 256 + 35, 2)):
        case = gaussian(3, 1)
        arrays = data(case, M, N, "float32")
        state = np.zeros((1, M + 1))  # one row beyond, which nobody may touch
        cuda.launch(sources[bug], shim.ShimDevice(library), [state[:, :M]], list(arrays.values()), M, N, splits=splits)
        try:
            assert_sums(state[:, :M], pairs(case, arrays), "float32")
            assert state[0, M] == 0
        except AssertionError:
            wrong += 1
    assert (wrong == 0) == (bug == "none")


AHEAD = {  # of what is asked for a turn ahead
    "none": ("", ""),
    "not ahead": ("min(k0 + 1, 63)", "min(k0, 63)"),
    "another component": ("const int k0 = after;", "const int k0 = after ^ 1;"),
    "a state that is lost": ("was0_0[r] = next_was0_0[r];", "was0_0[r] = 0.0;"),
    "a state that is not written": ("* r] = was0_0[r];", "* r] = next_was0_0[r];"),
}


@needs_compiler
def test_planted_bugs_of_long_states_are_found():
    """Both rows of a thread, and two groups of columns."""
    case, M, N = gaussian_gradient(64, "x"), 2 * THREADS, 70
    arrays = data(case, M, N, "float32")
    sources = []
    for n, (old, new) in enumerate(AHEAD.values()):
        source = rendered(case, "float32", f"a{n}")
        text = source.text.replace(old, new) if old else source.text
        assert (text == source.text) == (not old)
        sources.append(replace(source, text=text))
    library = shim.compile_sources(sources)
    for bug, source in zip(AHEAD, sources, strict=True):
        out = shim.run(library, source, list(arrays.values()), M, N)[0]
        wanted = pairs(case, arrays).sum(1).T
        assert (np.abs(out - wanted).max() < 1e-4 * np.abs(wanted).max()) == (bug == "none"), bug


@needs_compiler
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("if (threadIdx.x < 3) return; __syncthreads();", "divergent __syncthreads: 3 threads returned, 125 wait"),
        ("if (threadIdx.x == 0) __syncthreads(); else __syncwarp();", "threads wait for each other: "),
    ],
)
def test_the_shim_aborts_where_a_device_would_hang(tmp_path, body, message):
    code = f"""
extern "C" __global__ void bad() {{ {body} }}
int main() {{ dred_shim::launch(dim3(1), dim3(128), [] {{ bad(); }}); }}
"""
    (tmp_path / "bad.cpp").write_text(code)
    flags = [f for f in shim.FLAGS if f not in ("-shared", "-fPIC")]
    subprocess.run(
        [shim.COMPILER, *flags, "-include", shim.HEADER, tmp_path / "bad.cpp", "-o", tmp_path / "bad"], check=True
    )
    done = subprocess.run([tmp_path / "bad"], capture_output=True, text=True, check=False)
    assert done.returncode < 0
    assert f"cuda_shim: block (0, 0): {message}" in done.stderr


# -- compiled for real architectures -------------------------------------------------------------------------------

USE = re.compile(
    r"Function properties for (\w+).*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads",
    re.DOTALL,
)


def check_compiled(case: Case, dtype: str, architecture: str) -> None:
    check_use(rendered(case, dtype), architecture)


def check_use(source: Source, architecture: str, registers: int | None = None, spills: int = 0) -> None:
    """A source compiles, within its registers (255 are all that there are), and spills no more bytes than said."""
    cubin, log = cuda.compile_cubin(source.text, architecture)
    assert cubin[:4] == b"\x7fELF"
    used = {name: (int(stack), int(stores) + int(loads)) for name, stack, stores, loads in USE.findall(log)}
    most = [int(n) for n in re.findall(r"Used (\d+) registers", log)]
    assert len(most) == len(source.entries)
    assert max(most) <= (registers or REGISTERS[source.dtype]), log
    for entry in source.entries.values():
        stack, spilled = used[entry.name]
        assert spilled <= spills, log
        circular = re.search(r"\b(sin|cos|tan)f?\(", source.text)
        assert stack <= (40 if circular else 0) + spills, log  # argument reduction of the library


@needs_nvrtc
@pytest.mark.parametrize(("name", "dtype"), FAST[::3])
def test_nvrtc_compiles_without_spills(name, dtype):
    """Some cases, for the architectures in turn; all of them are in the slow tier."""
    check_compiled(CASES[name], dtype, ARCHITECTURES[FAST.index((name, dtype)) % 3])


@needs_nvrtc
@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_nvrtc_compiles_all_without_spills(name, dtype, architecture):
    check_compiled(CASES[name], dtype, architecture)


@needs_nvrtc
def test_a_source_that_does_not_compile_shows_the_log():
    with pytest.raises(
        BackendError, match=r"(?s)cannot compile a kernel for sm_90.*identifier \"nonsense\" is undefined"
    ):
        cuda.compile_cubin('extern "C" __global__ void f() { nonsense; }', "sm_90")


# -- text ----------------------------------------------------------------------------------------------------------


def test_source_is_readable_and_has_not_changed():
    """After a wanted change: python -m tests.kernel.test_cuda_source."""
    assert rendered(gaussian(3, 1), "float32").text == SNAPSHOT.read_text()


@pytest.mark.parametrize("seed", ["0", "1"])
def test_source_is_the_same_in_every_process(seed):
    digests = {
        f"{name} {dtype}": hashlib.sha256(rendered(case, dtype).text.encode()).hexdigest()
        for name, case in CASES.items() for dtype in DTYPES
    }  # fmt: skip
    code = """
import hashlib, sys
from tests.kernel.cuda_cases import CASES, rendered
for name, case in CASES.items():
    for dtype in ("float32", "float64"):
        print(f"{name} {dtype}", hashlib.sha256(rendered(case, dtype).text.encode()).hexdigest(), sep="=")
print("cupy" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT,
                          env={**os.environ, "PYTHONHASHSEED": seed})  # fmt: skip
    *lines, imported = done.stdout.splitlines()
    assert dict(line.split("=") for line in lines) == digests
    assert imported == "False"


def test_source_needs_no_headers_and_no_fast_math():
    for case in CASES.values():
        for dtype in DTYPES:
            text = rendered(case, dtype).text
            assert "#include" not in text
            assert "__expf" not in text
            assert "atomic" not in text
    assert "--fmad=false" in cuda_cache.OPTIONS
    assert not any("ftz" in option or "fast" in option for option in cuda_cache.OPTIONS)


def test_source_of_a_spec():
    case = gaussian(3, 1)
    assert cuda.source(spec(case, "float32")) == rendered(case, "float32").text
    assert "double acc0" in cuda.source(spec(case, "float32", acc="float64"))
    assert "float acc0" in cuda.source(spec(case, "float32", acc="float32"))


@pytest.mark.parametrize(
    ("value", "float32", "float64"),
    [
        (Fraction(1, 10), "0.1f", "0.1"),
        (Fraction(-3), "(-3.0f)", "(-3.0)"),
        (-0.0, "(-0.0f)", "(-0.0)"),
        (Fraction(1 + 2**-23), "1.0000001f", "1.0000001192092896"),
        (
            1 + Fraction(1, 2**24) + Fraction(1, 2**80),
            "1.0000001f",
            "1.0000000596046448",
        ),  # a tie of float32, once rounded
        (1 + Fraction(1, 2**24), "1.0f", "1.0000000596046448"),  # a tie: to even
        (Fraction(10) ** 39, "__int_as_float(0x7f800000)", "1e+39"),
        (-(Fraction(10) ** 400), "(-__int_as_float(0x7f800000))", "(-__longlong_as_double(0x7ff0000000000000ll))"),
        (float("nan"), "__int_as_float(0x7fffffff)", "__longlong_as_double(0x7ff8000000000000ll)"),
        (Fraction(1, 10**45), "1e-45f", "1e-45"),
    ],
)
def test_constants_are_rounded_once(value, float32, float64):
    assert literal(value, "float32") == float32
    assert literal(value, "float64") == float64


# -- fewer operations ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "zero"),
    [
        ("Rsqrt(SqDist(x, y) + 1) * b", False),
        ("Pow(Rsqrt(SqDist(x, y) + 1), 3) * b * (y - x)", False),  # nor are the negatives of differences computed
        ("Rsqrt(SqDist(x, y)) * b", True),  # which may be 0
        ("Rsqrt(SqDist(x, y) - 1) * b", True),
        ("ReLU(SqDist(x, y) - 1) * b", False),
    ],
)
def test_what_is_known_is_not_computed(text, zero):
    f = formula(text, ["x = Vi(3)", "y = Vj(3)", "b = Vj(1)"])
    source = cuda.source(KernelSpec.of(f.node, "Sum", 1, "float32", "float64", variables=f.variables))
    pair = source[source.index("const auto columns") :].split("};")[0]
    assert ("== 0.0f" in pair) == zero
    assert len(re.findall(r"= x\d\[r\] - y\d+\.\w;|= y\d+\.\w - x\d\[r\];", pair)) == 3
    assert "+ 1.0f" not in pair  # where the sum begins
    assert ("dred_ramp(" in pair) == text.startswith("ReLU")
    assert "< 0.0f" not in pair


# -- launches ------------------------------------------------------------------------------------------------------


def test_row_tiles_cut_items():
    items = np.array([(0, 0, 5, 0, 1), (1, 7, 7, 0, 1), (2, 10, 35, 1, 4)], np.int64)
    assert cuda.row_tiles(items, 10).tolist() == [
        [0, 0, 5, 0, 1], [2, 10, 20, 1, 4], [2, 20, 30, 1, 4], [2, 30, 35, 1, 4],
    ]  # fmt: skip


def test_splits_follow_from_sizes():
    source = rendered(gaussian(3, 1), "float32")
    assert cuda.splits_of(source, 1, 1) == 1
    assert cuda.splits_of(source, 1, 400) == 200  # few rows: as many blocks as have two tiles each
    assert cuda.splits_of(source, 8192, 200) == 1  # rows fill a device
    long = cuda.splits_of(source, 4096, 400_000)  # a block ends soon, whatever the number of columns
    assert 400_000 / long * source.tile_columns * source.tile_rows * source.cost <= cuda_launch.BLOCK_COST * 1.01


if __name__ == "__main__":
    SNAPSHOT.write_text(rendered(gaussian(3, 1), "float32").text)
