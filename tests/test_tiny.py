"""Tiny problems: the interpreter computes them, by a threshold of sizes alone, with the answers of compiled kernels."""

import subprocess
import sys
from pathlib import Path

import dask.array as da
import numpy as np
import pytest

from dred import Genred, Reduction
from dred.kernel import cpu, engine, flat, interpret
from dred.kernel.lower import lower

ROOT = Path(__file__).parents[1]
GAUSSIAN = "Exp(-g*SqDist(x,y))*b", ["x = Vi(3)", "y = Vj(3)", "b = Vj(1)", "g = Pm(1)"]
N = 37


def data(M, N=N, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    x, y, b, g = rng.random((M, 3)), rng.random((N, 3)), rng.random((N, 1)), np.array([0.7])
    return tuple(a.astype(dtype) for a in (x, y, b, g))


def largest(spec, N=N):
    """The most kept rows of a tiny call."""
    M = 1
    while engine.tiny(spec, M + 1, N):
        M += 1
    return M


@pytest.fixture
def nothing_is_compiled(tiny, monkeypatch):
    def compiled(spec, *how, **more):
        raise AssertionError("a kernel is compiled")

    monkeypatch.setattr(cpu, "compiled", compiled)


@pytest.fixture
def used(monkeypatch):
    """The backends that computed, in order."""
    names = []
    whole, ready = engine.reduce, engine.prepared

    def reduce(spec, backend, *args, **more):
        names.append(backend)
        return whole(spec, backend, *args, **more)

    def prepared(spec, backend, *args):
        found = ready(spec, backend, *args)
        names.extend([backend] * (found is not None))
        return found

    monkeypatch.setattr(engine, "reduce", reduce)
    monkeypatch.setattr(engine, "prepared", prepared)
    return names


def test_the_other_tests_are_those_of_the_compiled_kernels(used):
    Genred(*GAUSSIAN, axis=1)(*data(2), backend="cpu")
    assert used == ["cpu"]
    assert engine.TINY == 0


# -- over the threshold ------------------------------------------------------------------------------------------------

F = GAUSSIAN[0]
TOGETHER = {
    "sums": [(F, "Sum"), (F, "Mean"), (F, "Variance"), (F, "Count"), (F, "Any"), (F, "All"),
             (F, "Histogram", [0, 0.2, 0.3, 0.8]), (F, "Histogram", [0, 0.2, 0.8], "b")],
    "product": [(F, "Prod")],
    "extrema": [(F, "Min"), (F, "Max"), (F, "ArgMin"), (F, "Max_ArgMax"), ("x - y", "Min_ArgMin")],
    "rankings": [(F, "KMin", 3), (F, "ArgKMin", 3), (F, "KMax_ArgKMax", 50)],
    "exponentials": [(F, "LogSumExp"), (F, "LogSumExp", None, "y"), (F, "SumSoftMaxWeight", None, "y"),
                     (F, "Max_SumShiftExp")],
}  # fmt: skip


def flattened(results):
    return [a for r in results for a in (r if isinstance(r, tuple) else (r,))]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("names", TOGETHER)
def test_one_row_more(names, dtype, tiny, used):
    """Both sides of the threshold: the same row numbers and special values, other values within 4 ulp."""
    routine = Genred(TOGETHER[names], GAUSSIAN[1], axis=1)
    engine.TINY *= 10  # several reductions at once; the fixture puts it back
    M = largest(routine.spec(dtype))
    x, y, b, g = data(M + 1, dtype=dtype)
    x[1:2], x[2:3] = np.nan, 1e3  # every term of a row is NaN; every term is 0
    b[5], b[3] = b[7], np.inf
    below, above = routine(x[:M], y, b, g, backend="cpu"), routine(x, y, b, g, backend="cpu")
    assert used == ["numpy", "cpu"]
    for got, wanted in zip(flattened(below), flattened(above), strict=True):
        same_values(got, wanted[:M])


def same_values(got, wanted):
    assert got.dtype == wanted.dtype
    if got.dtype.kind != "f":
        np.testing.assert_array_equal(got, wanted)
        return
    finite = np.isfinite(wanted)
    np.testing.assert_array_equal(got[~finite], wanted[~finite])
    assert np.array_equal(np.signbit(got[finite]), np.signbit(wanted[finite]))
    np.testing.assert_array_max_ulp(got[finite], wanted[finite], 4)


SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 1e30, -1e30, 1e-40, 2.5]
TEXTS = ["x", "x * y", "x - y", "Exp(x)", "Sqrt(x)", "Log(x)", "Abs(x) + y", "IfElse(x, y, 0)", "Floor(x)", "Inv(x)"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_special_values_are_the_same(dtype, tiny, used):
    wanted = [*((text, "Sum") for text in TEXTS), ("x * y", "Min_ArgMin"), ("x * y", "LogSumExp")]
    routine = Genred(wanted, ["x = Vi(1)", "y = Vj(1)"], axis=1)
    x, y = np.array(SPECIAL, dtype)[:, None], np.array([0.5], dtype)[:, None]
    engine.TINY = np.inf  # the fixture puts it back
    below = routine(x, y, backend="cpu")
    engine.TINY = 0.0
    above = routine(x, y, backend="cpu")
    assert used == ["numpy", "cpu"]
    for got, expected in zip(flattened(below), flattened(above), strict=True):
        same_values(got, expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("names", TOGETHER)
def test_without_a_state_the_bits_are_those_of_a_fold(names, dtype):
    """What tiny calls do instead of merging with a state that has met no term, as tasks of dask do."""
    routine = Genred(TOGETHER[names], GAUSSIAN[1], axis=1)
    (sweep,) = routine.sweeps(dtype)
    for columns in (1, 2, 300):
        x, y, b, g = data(5, columns, dtype=dtype)
        x[1], x[2], b[0], y[-1] = np.nan, 1e3, -np.inf, np.inf
        state = engine.empty(sweep.spec, 5)
        folded = engine.fold(sweep.spec, "numpy", state, (x, y, b, g), 5, columns)
        wanted = engine.finalize(sweep.spec, folded, sweep.outputs)
        got = engine.reduce(sweep.spec, "numpy", (x, y, b, g), 5, columns, sweep.outputs)
        assert [a.tobytes() for a in got] == [a.tobytes() for a in wanted]
        assert all(a.tobytes() == e.tobytes() for a, e in zip(state, engine.empty(sweep.spec, 5), strict=True))


def test_sums_are_as_accurate_as_those_of_the_kernels(tiny, used):
    """Equal terms, the worst case of chains: exact in the interpreter's float64."""
    routine = Genred("y", ["x = Vi(1)", "y = Vj(1)"], axis=1)
    y = np.full((5_000, 1), 0.1, np.float32)
    got = routine(np.zeros((2, 1), "float32"), y, backend="cpu")
    assert used == ["numpy"]
    assert np.all(got == np.float32(5_000 * float(np.float32(0.1))))


# -- what decides ------------------------------------------------------------------------------------------------------


def test_nothing_is_compiled_and_llvm_is_not_loaded():
    code = """
import sys
import numpy as np
from dred import Genred
routine = Genred("Exp(-SqDist(x, y))", ["x = Vi(3)", "y = Vj(3)"], axis=1)
x = np.ones((5, 3))
print(routine(x, x)[0, 0], routine.grad("x")(x, x, np.ones((5, 1))).shape, "llvmlite" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == ["5.0", "(5,", "3)", "False"]


def test_sizes_alone_decide(nothing_is_compiled, used):
    routine = Genred(*GAUSSIAN, axis=1)
    for sizes in ((1, 1), (1, 300), (300, 1), (18, 18)):
        routine(*data(*sizes), backend="cpu")
    assert used == ["numpy"] * 4
    with pytest.raises(AssertionError, match="a kernel is compiled"):
        routine(*data(30, 30), backend="cpu")


def test_long_formulas_are_tiny_for_fewer_pairs(tiny):
    short, long = (Genred(text, ["x = Vi(1)", "y = Vj(1)"]).spec("float64") for text in ("x*y", "Cos(x*y)"))
    assert engine.tiny(short, 100, 100)
    assert not engine.tiny(long, 100, 100)
    assert engine.tiny(long, 10, 10)


def test_a_gpu_computes_what_it_is_asked_for(tiny):
    spec = Genred(*GAUSSIAN, axis=1).spec("float32")
    assert engine.placed("cuda", spec, 2, 2) == "cuda"
    assert engine.placed("cpu", spec, 2, 2) == "numpy"


def test_the_cost_is_known_after_the_first_call(tiny, monkeypatch):
    calls = []

    def counting(spec, unroll):
        calls.append(spec)
        return lower(spec, unroll)

    monkeypatch.setattr(interpret, "lower", counting)
    interpret._programs.clear()
    routine = Genred("SqDist(x, y) * 17", ["x = Vi(3)", "y = Vj(3)"], axis=1)
    for M in (3, 4, 70):
        routine(np.ones((M, 3)), np.ones((M, 3)), backend="cpu")
    assert len(calls) == 1
    Genred("SqDist(x, y) * 18", ["x = Vi(3)", "y = Vj(3)"], axis=1)(np.ones((999, 3)), np.ones((999, 3)), backend="cpu")
    assert len(calls) == 1  # too many pairs for any formula


def test_each_sweep_of_a_gradient_by_its_own_size(tiny, used):
    routine = Genred("-g*SqDist(x,y)", ["x = Vi(3)", "y = Vj(3)", "g = Pm(1)"], "LogSumExp", axis=1).grad("x")
    sweeps = routine.sweeps("float32")
    costs = [interpret.cost(sweep.spec) for sweep in sweeps]
    assert len(costs) == 2
    assert costs[0] != costs[1]
    M = int((engine.TINY / np.mean(costs) - engine.CALLS) / N)  # between the two thresholds
    x, y, _, g = data(M)
    got = routine(x, y, g, np.ones((M, 1), "float32"), backend="cpu")
    assert sorted(used) == ["cpu", "numpy"]
    engine.TINY = 0.0
    np.testing.assert_allclose(got, routine(x, y, g, np.ones((M, 1), "float32"), backend="cpu"), rtol=1e-4, atol=1e-5)


def test_several_sweeps_and_texts(nothing_is_compiled):
    x, y, b, g = data(4, 5, "float64")
    texts = Reduction("Grad(LogSumExp_Reduction(-SqDist(x, y), 0), x, e)", ["x = Vi(3)", "y = Vj(3)", "e = Vi(1)"])
    e = np.ones((4, 1))
    soft = np.exp(-((x[:, None] - y) ** 2).sum(-1))
    wanted = -2 * (soft[..., None] * (x[:, None] - y)).sum(1) / soft.sum(1)[:, None]
    np.testing.assert_allclose(texts(x, y, e, backend="cpu"), wanted, rtol=1e-12)
    out = np.empty((4, 1))
    assert Genred(*GAUSSIAN, axis=1)(x, y, b, g, backend="cpu", out=out) is out
    np.testing.assert_allclose(out, (soft**0.7) @ b, rtol=1e-13)


def test_long_formulas_are_not_even_lowered_to_know_their_cost(tiny, monkeypatch):
    spec = Genred("+".join(f"x*{k}" for k in range(2, 70)), ["x = Vi(1)"]).spec("float64")
    assert spec.operations > 60
    monkeypatch.setattr(interpret, "lower", None)
    interpret._programs.clear()
    assert not engine.tiny(spec, 1, 1)


# -- dask arrays -------------------------------------------------------------------------------------------------------


def test_the_plan_decides_for_all_blocks(nothing_is_compiled):
    routine = Genred(*GAUSSIAN, axis=1)
    x, y, b, g = data(15, 20)
    lazy = [da.from_array(a, chunks=(7, -1)) for a in (x, y, b)]
    assert routine.plan(*lazy, g, backend="cpu").backend == "numpy"
    result = routine(*lazy, g, backend="cpu")
    np.testing.assert_allclose(result.compute(scheduler="sync"), routine(x, y, b, g, backend="cpu"), rtol=1e-6)


def test_blocks_of_a_large_call_are_not_tiny(tiny):
    routine = Genred(*GAUSSIAN, axis=1)
    x, y, b, g = data(300, 300)
    lazy = [da.from_array(a, chunks=(7, -1)) for a in (x, y, b)]
    assert routine.plan(*lazy, g, backend="cpu").backend == "cpu"


# -- ways around a check that costs nothing ----------------------------------------------------------------------------


class Mine(np.ndarray):
    pass


@pytest.mark.parametrize(
    "given",
    [
        lambda a: a.view(Mine),
        lambda a: np.asfortranarray(np.repeat(a, 2, axis=0))[::2],
        lambda a: np.frombuffer(b"x" + a.tobytes(), np.uint8)[1:].view(a.dtype).reshape(a.shape),
        lambda a: a.astype(a.dtype.newbyteorder("=")),
    ],
    ids=["subclass", "strides", "unaligned and read-only", "byte order"],
)
def test_arrays_that_need_a_closer_look(given, tiny):
    routine = Genred(*GAUSSIAN, axis=1)
    arrays = data(6)
    got = routine(*map(given, arrays), backend="cpu")
    assert type(got) is np.ndarray
    np.testing.assert_array_equal(got, routine(*arrays, backend="cpu"))


@pytest.mark.parametrize("sizes", [(0, 5), (5, 0), (0, 0)])
def test_no_rows(sizes, tiny):
    got = Genred(*GAUSSIAN, axis=1)(*data(*sizes), backend="cpu")
    assert got.shape == (sizes[0], 1)
    assert not got.any()


def test_places_of_values_are_used_again():
    spec = Genred("+".join(f"Cos(x*y+{k})" for k in range(100)), ["x = Vi(1)", "y = Vj(1)"]).spec("float64")
    kernel = lower(spec, interpret.UNROLL)
    program = flat.program(kernel, "float64")
    assert len(program.steps) > 300
    assert program.wide < 8
