"""The CPU backend against float64 NumPy written out here; byte against byte where bits must not depend on a choice."""

import concurrent.futures
import ctypes
import dataclasses
import decimal
import math
import os
import pickle
import re
import subprocess
import sys
import threading

import numpy as np
import pytest

from dred.errors import BackendError, InputError
from dred.formula.language import Variable, formula, read
from dred.formula.oracle import dense
from dred.kernel import coefficients, cpu, cpu_calls, llvm, llvm_values
from dred.kernel import threads as turns
from dred.kernel.lower import lower
from dred.kernel.primitives import PRIMITIVES
from dred.kernel.spec import KernelSpec

TOLERANCE = {"float32": 3e-6, "float64": 1e-13}
VARIABLES = ["x=Vi(0,{D})", "y=Vj(1,{D})", "b=Vj(2,1)", "g=Pm(3,1)", "e=Vi(4,1)", "p=Pm(5,{D})"]


def make(text, D=3, axis=1, dtype="float32", **more):
    f = formula(text, [alias.format(D=D) for alias in VARIABLES])
    return KernelSpec.of(f.node, "Sum", axis, dtype, "float64", variables=f.variables, **more)


def data(spec, M, N, seed=0):
    """Points in the unit cube, scaled so that distances stay of order one; M kept and N reduced rows."""
    rng = np.random.default_rng(seed)
    arrays = []
    for v in spec.variables:
        rows = {0: (), 1: (M,), 2: (N,)}[spec.level(v.cat)]
        arrays.append((rng.uniform(0.1, 1, (*rows, v.dim)) / math.sqrt(v.dim)).astype(spec.dtype))
    return arrays


def empty(spec, M):
    return (np.zeros((spec.fields[0].size, M)),)


def fold(spec, arrays, M, N, **more):
    return cpu.fold(spec, empty(spec, M), arrays, M, N, **more)[0].T


def program(spec):
    return llvm.render(lower(spec, cpu.UNROLL, hoist=True), spec.dtype, spec.acc, spec.chain)


def sqdist(x, y):
    return ((x - y) ** 2).sum(-1, keepdims=True)


# formula text, and its values (i, j, component) from arrays that broadcast against each other
FORMULAS = {
    "gaussian": ("Exp(-g*SqDist(x,y))*b", lambda x, y, b, g, e, p: np.exp(-g * sqdist(x, y)) * b),
    "outer": ("Square(p-b)*Exp(x+y)", lambda x, y, b, g, e, p: (p - b) ** 2 * np.exp(x + y)),
    "gradient": (
        "Grad(Exp(-g*SqDist(x,y))*b,x,e)",
        lambda x, y, b, g, e, p: -2 * g * (x - y) * np.exp(-g * sqdist(x, y)) * b * e,
    ),
    "row only": ("Exp(x)*e", lambda x, y, b, g, e, p: np.exp(x) * e + 0 * y),
    "column only": ("Exp(y)*b", lambda x, y, b, g, e, p: np.exp(y) * b + 0 * x),
    "parameter only": ("p*g", lambda x, y, b, g, e, p: p * g + 0 * (x + y)),
    "constant": ("SumT(2,3)+0*x*y", lambda x, y, b, g, e, p: np.full((*np.broadcast(x, y).shape[:2], 3), 2.0)),
    "two sums": (
        "Sum(x*y)*Sum(p*y)+Sum(Square(x))",
        lambda x, y, b, g, e, p: (x * y).sum(-1, keepdims=True) * (p * y).sum(-1, keepdims=True)
        + (x**2).sum(-1, keepdims=True),
    ),
    "functions": (
        "Log(1+SqDist(x,y))*Sin(e*b)+Cos(e-b)*Sqrt(e+b)+Pow(e,3)/(1+b)+Abs(e-b)",
        lambda x, y, b, g, e, p: np.log1p(sqdist(x, y)) * np.sin(e * b)
        + np.cos(e - b) * np.sqrt(e + b)
        + e**3 / (1 + b)
        + np.abs(e - b),
    ),
}  # fmt: skip
DIMENSIONS = {"constant": (3,), "functions": (1, 3, 33)}


def expected(name, spec, arrays):
    """The sum in float64; values that do not vary with an index are counted once per row or column."""
    shaped = []
    for v, a in zip(spec.variables, arrays, strict=True):
        axis = {0: (0, 1), 1: (1,), 2: (0,)}[spec.level(v.cat)]
        shaped.append(np.expand_dims(a.astype(np.float64), axis))
    return FORMULAS[name][1](*shaped).sum(1)


def close(got, want, dtype):
    scale = np.abs(want).max(initial=1e-300)
    assert got.shape == want.shape
    assert np.abs(got - want).max(initial=0) <= TOLERANCE[dtype] * scale


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "D"), [(n, D) for n in FORMULAS for D in DIMENSIONS.get(n, (1, 3, 8, 9, 33, 100))])
def test_values(name, D, dtype):
    for axis, M, N in [(1, 37, 75), (0, 21, 130)]:
        spec = make(FORMULAS[name][0], D, axis, dtype)
        if name == "constant" and axis == 0:
            continue
        arrays = data(spec, M, N)
        close(fold(spec, arrays, M, N), expected(name, spec, arrays), dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["gaussian", "gradient", "outer"])
def test_long_vectors(name, dtype):
    spec = make(FORMULAS[name][0], 1000, 1, dtype)
    arrays = data(spec, 19, 45)
    close(fold(spec, arrays, 19, 45), expected(name, spec, arrays), dtype)


@pytest.mark.parametrize("M", [1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 1023, 1024, 1025])
def test_rows_around_tiles_and_blocks(M):
    for dtype in ("float32", "float64"):
        spec = make(FORMULAS["gaussian"][0], dtype=dtype)
        arrays = data(spec, M, 40)
        close(fold(spec, arrays, M, 40), expected("gaussian", spec, arrays), dtype)


@pytest.mark.parametrize("N", [1, 2, 3, 4, 5, 31, 32, 33, 63, 64, 65, 4095, 4096, 4097, 8193])
def test_columns_around_chains_and_panels(N):
    for name in ("gaussian", "outer"):
        spec = make(FORMULAS[name][0])
        arrays = data(spec, 18, N)
        close(fold(spec, arrays, 18, N), expected(name, spec, arrays), "float32")


def test_small_panels_have_edges_too():
    spec = make(FORMULAS["gradient"][0], 1000)
    panel = cpu.compiled(spec).program.plan.panel
    assert panel % spec.chain == 0
    for N in (panel - 1, panel, panel + 1):
        arrays = data(spec, 5, N)
        close(fold(spec, arrays, 5, N), expected("gradient", spec, arrays), "float32")


def test_empty_blocks_return_a_copy():
    spec = make(FORMULAS["gaussian"][0])
    for M, N in [(0, 5), (5, 0), (0, 0)]:
        state = (np.ones((1, M)),)
        (new,) = cpu.fold(spec, state, data(spec, M, N), M, N)
        assert new is not state[0]
        assert np.array_equal(new, state[0])


def test_the_state_given_is_not_written_and_is_added_to():
    spec = make(FORMULAS["outer"][0])
    arrays = data(spec, 20, 50)
    state = (np.full((3, 20), 7.0),)
    state[0].flags.writeable = False
    (new,) = cpu.fold(spec, state, arrays, 20, 50)
    assert (state[0] == 7).all()
    close(new.T, expected("outer", spec, arrays) + 7, "float32")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "D"), [("gaussian", 3), ("gaussian", 33), ("gradient", 33)])
def test_cuts_at_multiples_of_the_span_change_no_bit(name, D, dtype):
    spec = make(FORMULAS[name][0], D, dtype=dtype)
    M, N = 25, 700
    arrays = data(spec, M, N)
    whole = cpu.fold(spec, empty(spec, M), arrays, M, N)
    state = empty(spec, M)
    assert cpu.compiled(spec).program.plan.span in (16, 64)
    for start, stop in [(0, 64), (64, 384), (384, 700)]:
        part = [a[start:stop] if spec.level(v.cat) == 2 else a for v, a in zip(spec.variables, arrays, strict=True)]
        state = cpu.fold(spec, state, part, M, stop - start)
    assert whole[0].tobytes() == state[0].tobytes()


def test_threads_and_calls_change_no_bit(monkeypatch):
    monkeypatch.setattr(cpu_calls, "SHARE", 1.0)  # as if this little work were worth threads
    for name, D in [("gaussian", 3), ("outer", 33)]:
        spec = make(FORMULAS[name][0], D)
        M, N = 100, 5000
        arrays = data(spec, M, N)
        results = {fold(spec, arrays, M, N, threads=t).tobytes() for t in (1, 2, 3, 7)}
        monkeypatch.setattr(cpu_calls, "CALL", 1e4)  # and one call were to last a few microseconds
        kernel = cpu.compiled(spec)
        shares = cpu_calls.whole(kernel.program.plan, kernel.cost, M, [(0, N)], 3)
        calls = [call for share in shares for _, calls in share for call in calls]
        assert len(calls) > 3
        results |= {fold(spec, arrays, M, N, threads=t).tobytes() for t in (1, 2, 3)}
        assert len(results) == 1


def test_rows_do_not_depend_on_their_place():
    spec = make(FORMULAS["gaussian"][0])
    arrays = data(spec, 40, 100)
    whole = fold(spec, arrays, 40, 100)
    for row in (0, 1, 15, 16, 39):
        one = [a[row : row + 1] if spec.level(v.cat) == 1 else a for v, a in zip(spec.variables, arrays, strict=True)]
        assert fold(spec, one, 1, 100).tobytes() == whole[row : row + 1].tobytes()


def test_shares_cover_every_pair_once():
    spec = make(FORMULAS["gaussian"][0])
    kernel = dataclasses.replace(cpu.compiled(spec), cost=1e6)
    panel = kernel.program.plan.panel
    for M, N, threads, cuts in [
        (1, 1, 8, [1]),
        (100, 9000, 3, [4000, 9000]),
        (2000, 50, 2, [50]),
        (5000, 10000, 4, [10000]),
    ]:
        parts = list(zip([0, *cuts], cuts, strict=False))
        shares = cpu_calls.whole(kernel.program.plan, kernel.cost, M, parts, threads)
        assert 1 <= len(shares) <= threads
        seen = np.zeros((M, N), np.int8)
        for share in shares:
            for part, calls in share:
                for call in calls:
                    (_, first, last, *_), (start, stop) = call.items[0], call.intervals[0]
                    assert (start - parts[part][0]) % panel == 0
                    assert parts[part][0] <= start < stop <= parts[part][1]
                    assert (last - first) * (stop - start) * kernel.cost <= cpu_calls.CALL or stop - start <= panel
                    seen[first:last, start:stop] += 1
        assert (seen == 1).all()


@pytest.mark.parametrize("features", ["", "+avx,+avx2,+fma", "+avx,+fma"])
def test_other_instruction_sets_give_the_same_bits(features):
    """Also without fused multiply-add in hardware, where LLVM calls the C library."""
    import llvmlite.binding as binding

    if not binding.get_process_triple().startswith("x86_64"):
        features = ""
    have = binding.get_host_cpu_features()
    if any(not have.get(f[1:], False) for f in features.split(",") if f):
        features = ""
    for name, dtype in [("gaussian", "float32"), ("outer", "float64")]:
        spec = make(FORMULAS[name][0], dtype=dtype)
        arrays = data(spec, 19, 70)
        here = cpu.compiled(spec)
        there = cpu.build(program(spec), cpu="generic", features=features)
        results = []
        for kernel in (here, there):
            out = empty(spec, 19)
            cpu._calls(
                kernel, arrays, out, [cpu_calls.Call.of(kernel.program.plan, 0, 19, 0, 70)], (0, 0), threading.Event()
            )
            results.append(out[0].tobytes())
        assert results[0] == results[1]


def call(kernel, arrays, strides, items, intervals, states, pitch):
    """The compiled function itself, with its tables."""
    scratch = np.empty(kernel.program.scratch + 64, np.uint8)
    address = scratch.ctypes.data + -scratch.ctypes.data % 64
    pointers = [(ctypes.c_void_p * len(a))(*(x.ctypes.data for x in a)) for a in (arrays, states)]
    tables = [np.ascontiguousarray(t, np.int64) for t in (strides, items, intervals)]
    s, i, v = (t.ctypes.data for t in tables)
    redo = np.full(
        (sum(-(-(last - first) // kernel.program.plan.tile) for _, first, last, *_ in items), 2), -1, np.int64
    )
    a, b = map(ctypes.addressof, pointers)
    words = np.array([a, s, i, 0, len(items), v, b, pitch, address, 0, 0, redo.ctypes.data, 0, 0, 0, 0], np.int64)
    kernel.call(words.ctypes.data)
    return redo


def test_batches_and_intervals_are_data():
    spec = make(FORMULAS["outer"][0])
    B, M, N = 3, 21, 90
    each = [data(spec, M, N, seed) for seed in range(B)]
    shared = {3, 5}  # g and p are the same for all batches
    arrays = [np.stack([e[k] for e in each]) if k not in shared else each[0][k] for k in range(len(each[0]))]
    strides = [3 * M] + [0 if k in shared else each[0][k].size for k in range(len(arrays))]
    # batch, rows, intervals, tiles before: the first batch whole, the second in two intervals, the third in two blocks
    # of rows
    items = [(0, 0, M, 0, 1, 0), (1, 0, M, 1, 3, 2), (2, 0, 17, 0, 1, 4), (2, 17, M, 2, 3, 6)]
    intervals = [(0, N), (3, 40), (77, 78)]
    state = np.ones((B, 3, M))
    call(cpu.compiled(spec), arrays, strides, items, intervals, [state], M)
    for b in range(B):
        shaped = []
        for k, v in enumerate(spec.variables):
            a = each[0 if k in shared else b][k].astype(np.float64)
            shaped.append(np.expand_dims(a, {0: (0, 1), 1: (1,), 2: (0,)}[spec.level(v.cat)]))
        values = FORMULAS["outer"][1](*shaped)
        for _, first, last, low, high, _ in (item for item in items if item[0] == b):
            want = 1 + sum(values[first:last, start:stop].sum(1) for start, stop in intervals[low:high])
            close(state[b, :, first:last].T, want, "float32")


def test_rows_outside_an_item_are_not_touched():
    spec = make(FORMULAS["gaussian"][0])
    arrays = data(spec, 50, 40)
    state = np.full((1, 64), 5.0)  # a pitch that is larger than the rows
    call(cpu.compiled(spec), arrays, [0] * 7, [(0, 3, 22, 0, 1, 0)], [(0, 40)], [state], 64)
    assert (state[0, :3] == 5).all()
    assert (state[0, 22:] == 5).all()
    close(state[:, 3:22].T, expected("gaussian", spec, arrays)[3:22] + 5, "float32")


# the exponential ------------------------------------------------------------------------------------------------------


def exponential(values):
    dtype = str(values.dtype)
    f = formula("Exp(x)", ["x=Vi(0,1)", "y=Vj(1,1)"])
    spec = KernelSpec.of(f.node, "Sum", 1, dtype, "float64", variables=f.variables)
    M = len(values)
    return fold(spec, [values[:, None], np.zeros((1, 1), dtype)], M, 1)[:, 0]


def exponential_of_pairs(values):
    """The same, computed for pairs in SIMD lanes, where the other one is of records; in a sum it would be folded."""
    dtype = str(values.dtype)
    f = formula("Abs(Exp(x*y))", ["x=Vi(0,1)", "y=Vj(1,1)"])
    spec = KernelSpec.of(f.node, "Sum", 1, dtype, "float64", variables=f.variables)
    M = len(values)
    return fold(spec, [values[:, None], np.ones((1, 1), dtype)], M, 1)[:, 0]


def ulps32(values):
    """The largest error of float32 exponentials in units of the last place; overflow must be infinite exactly."""
    got = exponential_of_pairs(values)
    assert got.tobytes() == exponential(values).tobytes()
    want = np.exp(values.astype(np.float64))
    with np.errstate(over="ignore"):
        finite = np.isfinite(want.astype(np.float32))
    assert (got[~finite] == np.inf).all()
    _, exponent = np.frexp(want[finite])
    ulp = np.ldexp(1.0, np.maximum(exponent - 24, -149))
    return np.max(np.abs(got[finite] - want[finite]) / ulp, initial=0.0)


def patterns(stride, low=2.0**-26, high=105.0):
    """float32 numbers of both signs between two bounds, every `stride`-th; smaller ones have the exponential 1."""
    first, last = np.array([low, high], np.float32).view(np.uint32)
    for sign in (0, 1 << 31):
        for start in range(first, last, 1 << 23):
            yield (np.arange(start, min(last, start + (1 << 23)), stride, dtype=np.uint32) | sign).view(np.float32)


def test_float32_exponential_within_two_ulp():
    assert max(map(ulps32, patterns(1021))) <= 2


@pytest.mark.parametrize("stride", [pytest.param(10, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.soak)])
def test_every_float32_exponential_within_two_ulp(stride, record_property):
    worst = max(map(ulps32, patterns(stride)))
    record_property("stride", stride)
    record_property("worst_ulp", float(worst))
    assert worst <= 2


def test_float64_exponential_within_two_ulp():
    rng = np.random.default_rng(1)
    values = np.concatenate([rng.uniform(-745, 709, 4000), rng.uniform(-1, 1, 2000), rng.normal(0, 1e-9, 200)])
    got = exponential_of_pairs(values)
    assert got.tobytes() == exponential(values).tobytes()
    with decimal.localcontext(prec=40):
        for value, result in zip(values.tolist(), got.tolist(), strict=True):
            exact = decimal.Decimal(value).exp()
            assert abs(decimal.Decimal(result) - exact) <= 2 * decimal.Decimal(math.ulp(float(exact)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_special_exponentials(dtype):
    top, bottom = (88.722, -103.97) if dtype == "float32" else (709.78, -745.13)
    values = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e30, -1e30, top, top + 0.01, bottom, bottom - 1], dtype)
    got = exponential(values)
    assert got[:2].tolist() == [1, 1]
    assert got[2:4].tolist() == [np.inf, 0]
    assert np.isnan(got[4])
    assert got[5:7].tolist() == [np.inf, 0]
    assert np.isfinite(got[7])
    assert got[8] == np.inf
    assert got[9] == (2.0**-149 if dtype == "float32" else 2.0**-1074)  # the smallest number of all
    assert got[10] == 0


# promises -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.1, 1 / 3, 0.7])
def test_a_million_equal_float32_terms(value):
    spec = make("b*g")
    arrays = data(spec, 1, 10**6)
    arrays[2][:], arrays[3][:] = value, 1
    total = fold(spec, arrays, 1, 10**6)[0, 0]
    exact = math.fsum([float(np.float32(value))] * 10**6)
    assert abs(total - exact) <= 1e-6 * exact


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_special_values_propagate(poison):
    spec = make("x*y", 1)
    arrays = data(spec, 40, 70)
    arrays[1][50] = poison
    got = fold(spec, arrays, 40, 70)
    assert np.isnan(got).all() if np.isnan(poison) else (got == poison).all()
    arrays = data(spec, 40, 70)
    arrays[0][17] = poison
    got = fold(spec, arrays, 40, 70)
    assert not np.isfinite(got[17]).any()
    assert np.isfinite(np.delete(got, 17, axis=0)).all()


def test_the_text_is_the_same_in_every_process():
    script = (
        "from dred.formula.language import formula\n"
        "from dred.kernel import cpu\n"
        "from dred.kernel.spec import KernelSpec\n"
        "f = formula('Grad(Exp(-g*SqDist(x,y))*Sum(x*y),x,e)',"
        " ['x=Vi(0,20)', 'y=Vj(1,20)', 'g=Pm(2,1)', 'e=Vi(3,1)'])\n"
        "print(cpu.source(KernelSpec.of(f.node, 'Sum', 1, 'float32', 'float64', variables=f.variables)))"
    )
    texts = set()
    for seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", script], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        )
        texts.add(run.stdout)
    assert len(texts) == 1
    assert b"define void @fold" in texts.pop()


@pytest.mark.parametrize("name", FORMULAS)
def test_the_text_allows_no_liberties(name):
    text = cpu.source(make(FORMULAS[name][0], 9 if name not in DIMENSIONS else 3))
    assert not re.search(r"\b(contract|fast|reassoc|nnan|ninf|nsz|arcp|afn)\b", text)


def test_texts_that_are_staggered():
    """Each is behind the one before by its part of the lines, in its own order; one with several blocks stays."""
    text = llvm_values.Text()
    text.lines = ["before", "a0", "a1", "a2", "a3", "b0", "b1", "b2", "b3", "after"]
    text.stagger([1, 5, 9])
    assert text.lines == ["before", "a0", "a1", "a2", "b0", "a3", "b1", "b2", "b3", "after"]
    text.lines = lines = ["a0", "block:", "b0", "b1"]
    text.stagger([0, 2, 4])
    assert text.lines == lines


def test_short_steps_are_staggered():
    """The text of a Gaussian: the differences of the fourth column are there before the power of the first is."""
    lines = program(make("Exp(-g*SqDist(x,y))*b")).text.splitlines()
    start = next(n for n, line in enumerate(lines) if "fsub <16 x float>" in line)
    ends = [n for n, line in enumerate(lines[start:]) if "shl <16 x i32>" in line][:8]
    begins = [n for n, line in enumerate(lines[start:]) if "fsub <16 x float>" in line]
    assert begins[3 * 3] < ends[0]  # the fourth step's differences


def test_vectors_on_the_stack_are_aligned():
    """Else they lie across cache lines, or not, by the size of the environment."""
    text = program(make("Exp(-g*SqDist(x,y))*b")).text
    (number,) = re.findall(r"define void @fold\(.*\) #(\d+) {", text)
    assert '"stackrealign"' in next(line for line in text.splitlines() if line.startswith(f"attributes #{number} "))


@pytest.mark.parametrize(
    ("reduction", "hoist", "span"),
    [("Sum", True, 64), ("LogSumExp", True, 64), ("LogSumExp", False, 16), ("Variance", True, 16), ("Max", True, 64)],
)
def test_sums_go_by_in_spans(reduction, hoist, span):
    """What merges otherwise than by adding up, or reads another running value, stays in chains."""
    f = formula("SqDist(x,y)", ["x=Vi(0,3)", "y=Vj(1,3)"])
    spec = KernelSpec.of(f.node, reduction, 1, "float32", "float64", parameter=0 if reduction == "Variance" else None)
    assert llvm.render(lower(spec, cpu.UNROLL, hoist), "float32", "float64", spec.chain).plan.span == span


def test_a_span_has_the_rounding_error_of_a_chain():
    """2^24 and then many ones: those that are added to it one by one are lost, 7 of half a chain; sums of 8 are not."""
    spec = make("b")
    ones = np.ones((64, 1), "f4")
    ones[0] = 2.0**24
    arrays = [ones if v.ind == 2 else a for v, a in zip(spec.variables, data(spec, 16, 64), strict=True)]
    lost = 2.0**24 + 63 - fold(spec, arrays, 16, 64)
    assert (lost == 7).all()


def test_importing_the_backend_loads_no_llvm():
    script = "import sys; import dred.kernel.cpu; assert not any(m.startswith('llvmlite') for m in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_wrong_primitive_is_noticed(monkeypatch):
    """The comparisons above can fail: with a subtraction that adds they do."""
    wrong = dataclasses.replace(PRIMITIVES["sub"], llvm=PRIMITIVES["add"].llvm)
    spec = make(FORMULAS["gaussian"][0])
    arrays = data(spec, 20, 40)
    monkeypatch.setitem(PRIMITIVES, "sub", wrong)
    kernel = lower(spec, cpu.UNROLL)
    broken = cpu.build(llvm.render(kernel, spec.dtype, spec.acc, spec.chain))
    out = empty(spec, 20)
    cpu._calls(broken, arrays, out, [cpu_calls.Call.of(broken.program.plan, 0, 20, 0, 40)], (0, 0), threading.Event())
    with pytest.raises(AssertionError):
        close(out[0].T, expected("gaussian", spec, arrays), "float32")


def test_a_wrong_coefficient_is_noticed(monkeypatch):
    first, *others = coefficients.EXP["float32"]
    monkeypatch.setitem(coefficients.EXP, "float32", (first * (1 + 1e-6), *others))
    monkeypatch.setattr(cpu, "_kernels", type(cpu._kernels)())
    monkeypatch.setenv("DRED_CACHE_DIR", "off")
    assert max(map(ulps32, patterns(10**5, 0.5, 0.7))) > 2


# formulas of all depths, threads, caches ------------------------------------------------------------------------------


def test_a_deep_formula():
    depth = 3000
    text = "(" * depth + "x" + "".join(f"*y+{k % 5}" + ")" for k in range(depth))
    f = formula(text, ["x=Vi(0,1)", "y=Vj(1,1)"])
    spec = KernelSpec.of(f.node, "Sum", 1, "float64", "float64", variables=f.variables)
    x, y = np.full((3, 1), 0.5), np.full((2, 1), 0.25)
    want = 0.5
    for k in range(depth):
        want = want * 0.25 + k % 5
    assert np.allclose(fold(spec, [x, y], 3, 2), 2 * want, rtol=1e-13)


@pytest.mark.parametrize("n", [100, pytest.param(300, marks=pytest.mark.slow)])
def test_a_formula_of_many_variables(n):
    aliases = [f"v{k} = V{'ij'[k % 2]}(3)" for k in range(n)]
    squares = "+".join(f"SqDist(v{k},v{(k + 1) % n})" for k in range(n))
    f = formula(f"Grad(Exp(-({squares})/1000),v0,1)", aliases)
    spec = KernelSpec.of(f.node, "Sum", 1, "float64", "float64", variables=f.variables)
    rng = np.random.default_rng(0)
    arrays = [rng.uniform(-1, 1, (5 - v.cat, 3)) for v in f.variables]
    assert np.allclose(fold(spec, arrays, 5, 4), dense(f.node, arrays).sum(1), rtol=1e-11, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("wrt", ["", "x", "y"])
def test_a_formula_10000_deep(wrt):
    """Value and gradients: tens of thousands of operations, compiled within seconds."""
    depth = 10_000
    text = "(" * depth + "x" + "".join(f"*y+{k % 5})" for k in range(depth))
    f = formula(f"Grad({text}, {wrt}, 1)" if wrt else text, ["x=Vi(0,1)", "y=Vj(1,1)"])
    assert pickle.loads(pickle.dumps(f.node)) is f.node
    assert read(str(f.node)) is f.node
    variables = (Variable(0, 1, 0), Variable(1, 1, 1))
    spec = KernelSpec.of(f.node, "Sum", 1, "float64", "float64", variables=variables)
    arrays = [np.full((3, 1), 0.5), np.full((2, 1), 0.75)]
    assert np.allclose(fold(spec, arrays, 3, 2), 2 * dense(f.node, arrays)[0, 0], rtol=1e-12)


def test_code_made_in_haste_gives_the_same_bits(monkeypatch):
    spec = make(FORMULAS["gaussian"][0])
    arrays = data(spec, 19, 70)
    kernel = lower(spec, cpu.UNROLL)
    program = llvm.render(kernel, spec.dtype, spec.acc, spec.chain)
    results = []
    for large in (cpu.LARGE, 0):
        monkeypatch.setattr(cpu, "LARGE", large)
        out = empty(spec, 19)
        cpu._calls(
            cpu.build(program), arrays, out, [cpu_calls.Call.of(program.plan, 0, 19, 0, 70)], (0, 0), threading.Event()
        )
        results.append(out[0].tobytes())
    assert results[0] == results[1]


@pytest.mark.parametrize("name", FORMULAS)
def test_long_blocks_are_cut_without_a_change(name, monkeypatch):
    """Straight code is cut into basic blocks; short ones here, so that every loop has several."""
    spec = make(FORMULAS[name][0], 9 if name not in DIMENSIONS else 3)
    arrays = data(spec, 19, 70)
    kernel = lower(spec, cpu.UNROLL)
    results, cuts = [], []
    for straight in (llvm_values.STRAIGHT, 10):
        monkeypatch.setattr(llvm_values, "STRAIGHT", straight)
        program = llvm.render(kernel, spec.dtype, spec.acc, spec.chain)
        cuts.append(program.text.count("br label %on"))
        out = (np.zeros((spec.fields[0].size, 19)),)
        cpu._calls(
            cpu.build(program), arrays, out, [cpu_calls.Call.of(program.plan, 0, 19, 0, 70)], (0, 0), threading.Event()
        )
        results.append(out[0].tobytes())
    assert cuts[0] < 3 < cuts[1]
    assert results[0] == results[1]


def test_many_threads_compile_a_kernel_once(monkeypatch):
    spec = make("Exp(-SqDist(x,y))*b*23")
    builds = []
    build = cpu.build
    monkeypatch.setattr(cpu, "build", lambda *a, **k: builds.append(a) or build(*a, **k))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        kernels = set(map(id, pool.map(cpu.compiled, [spec] * 32)))
    assert len(builds) == len(kernels) == 1


def test_the_cache_keeps_the_kernels_used_last(monkeypatch):
    monkeypatch.setattr(cpu, "CACHED", 2)
    monkeypatch.setattr(cpu, "_kernels", type(cpu._kernels)())
    a, b, c = (make(f"x*y*{n}", 1) for n in (3, 5, 7))
    first = cpu.compiled(a)
    cpu.compiled(b)
    assert cpu.compiled(a) is first
    cpu.compiled(c)
    assert [key.split()[0] for key in cpu._kernels] == [a.digest, c.digest]


def test_folding_inside_the_threads_of_the_pool_does_not_block(monkeypatch):
    monkeypatch.setattr(cpu_calls, "SHARE", 1.0)
    monkeypatch.setenv("DRED_NUM_THREADS", "4")
    monkeypatch.setattr(turns, "THREADS", 2)
    monkeypatch.setattr(turns, "_pool", None)
    spec = make(FORMULAS["gaussian"][0])
    arrays = data(spec, 64, 64)
    want = fold(spec, arrays, 64, 64, threads=1).tobytes()
    futures = [turns.pool().submit(fold, spec, arrays, 64, 64, threads=4) for _ in range(8)]
    assert {f.result(timeout=60).tobytes() for f in futures} == {want}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_folding_after_a_fork(monkeypatch):
    monkeypatch.setattr(cpu_calls, "SHARE", 1.0)
    spec = make(FORMULAS["gaussian"][0])
    arrays = data(spec, 64, 64)
    want = fold(spec, arrays, 64, 64, threads=3).tobytes()
    child = os.fork()
    if child == 0:
        os._exit(0 if fold(spec, arrays, 64, 64, threads=3).tobytes() == want else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_an_error_in_one_share_reaches_the_caller():
    def fail(stop):
        raise KeyError("share")

    with pytest.raises(KeyError, match="share"):
        cpu._run([lambda stop: None, fail, lambda stop: None])


def test_arrays_that_do_not_fit_are_refused():
    spec = make(FORMULAS["gaussian"][0])
    arrays = data(spec, 5, 6)
    for k, wrong in [(0, arrays[0][:4]), (1, arrays[1][:, :2]), (2, arrays[2].astype(np.float64)), (3, arrays[3][:0])]:
        bad = [*arrays[:k], wrong, *arrays[k + 1 :]]
        with pytest.raises(InputError, match=f"variable {k} of a block"):
            cpu.fold(spec, empty(spec, 5), bad, 5, 6)


def test_text_that_llvm_refuses_is_an_exception():
    right = program(make("x*y", 1))
    unordered = "entry:\n  %early = add i64 %late, 1\n  %late = add i64 1, 1\n"  # LLVM would end the process for this
    for wrong in ("entry:\n  nonsense\n", unordered):
        with pytest.raises(BackendError, match="LLVM cannot compile"):
            cpu.build(right._replace(text=right.text.replace("entry:\n", wrong)))


def test_available():
    assert cpu.available() is True


def test_without_llvm_nothing_is_available(monkeypatch):
    monkeypatch.setitem(sys.modules, "llvmlite", None)
    monkeypatch.setitem(sys.modules, "llvmlite.binding", None)
    assert cpu.available() is False
