"""Bounds of exponents: they hold, and where they are moderate, kernels without limits give the same bytes."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dred import Genred
from dred.kernel import cpu, exponents, machine
from dred.kernel.exponents import Exponents
from dred.kernel.lower import lower
from dred.kernel.output import empty
from tests.kernel.function_cases import build, text

ALIASES = ["x = Vi(2)", "y = Vj(2)", "b = Vj(1)", "g = Pm(1)", "e = Vi(1)", "v = Vi(20)", "w = Vj(20)"]
GAUSSIAN = "Exp(-g*SqDist(x,y))*b"
LOG2E = 1.4426950408889634


def squares(x, y):
    return ((x[:, None] - y[None]) ** 2).sum(-1)


# the exponents of their powers of 2, by other means: of pairs that the sums meet
CASES = {
    "gaussian": (GAUSSIAN, "Sum", lambda x, y, b, g, e, v, w: [-g * squares(x, y)]),
    "gradient": (f"Grad({GAUSSIAN},x,e)", "Sum", lambda x, y, b, g, e, v, w: [-g * squares(x, y)]),
    "product": ("Square(e-b)*Exp(x+y)", "Sum", lambda x, y, b, g, e, v, w: [x[:, None] + y[None]]),
    "difference": ("Exp(e*b-g)/b", "Sum", lambda x, y, b, g, e, v, w: [e * b.T - g]),
    "laplacian": ("Exp(-Norm2(x-y))", "Sum", lambda x, y, b, g, e, v, w: [-np.sqrt(squares(x, y))]),
    "quotient": ("Exp(-e/b)+Exp(-Abs(b)*Min(x))", "Sum",
                 lambda x, y, b, g, e, v, w: [-e / b.T, -abs(b).T * x.min(1, keepdims=True)]),
    "long": ("Exp(-g*SqDist(v,w)/9)*b+Exp(Max(v-w))", "Sum",
             lambda x, y, b, g, e, v, w: [-g / 9 * squares(v, w), (v[:, None] - w[None]).max(-1)]),
    "vectors": ("Exp((v+w)/3)*b", "Sum", lambda x, y, b, g, e, v, w: [(v[:, None] + w[None]) / 3]),
    "references": ("x*y", "LogSumExp",
                   lambda x, y, b, g, e, v, w: [t - t.max(1, keepdims=True) for t in [x[:, :1] * y[:, 0]]]),
}  # fmt: skip
ONE = ["x = Vi(1)", "y = Vj(1)"]
TYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])
EVERY = pytest.mark.parametrize("name", CASES)


def routine(name):
    text, reduction, _ = CASES[name]
    return Genred(text, ONE if name == "references" else ALIASES, reduction, axis=1)


def inputs(name, dtype, M=40, N=300, size=1.0, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(M, 2), (N, 2), (N, 1), (1,), (M, 1), (M, 20), (N, 20)]
    if name == "references":
        shapes = [(M, 1), (N, 1)]
    return [(size * rng.uniform(0.1, 1, shape)).astype(dtype) for shape in shapes]


def of(spec):
    return Exponents.of(lower(spec, cpu.UNROLL, hoist=True))


def ready(name, dtype):
    spec = routine(name).spec(dtype)
    return spec, of(spec)


@TYPES
@EVERY
def test_kernels_without_limits_give_the_same_bytes(name, dtype, monkeypatch):
    chosen = []
    compiled = cpu.compiled

    def noted(*args, moderate=False, **more):
        chosen.append(moderate)
        return compiled(*args, moderate=moderate, **more)

    monkeypatch.setattr(cpu, "compiled", noted)
    monkeypatch.setattr(cpu, "ROWS", 0)
    monkeypatch.setattr(cpu, "_sizes", cpu._sizes.__wrapped__)  # nothing of that is remembered
    for M in (40, 3):  # lanes are rows, and columns
        arrays = inputs(name, dtype, M, 6000 if M < 16 else 300)
        results = []
        for many in (0, 10**9):
            monkeypatch.setattr(cpu, "MANY", many)
            chosen.clear()
            results.append(routine(name)(*arrays, backend="cpu").tobytes())
            assert {*chosen} == {many == 0}
        assert results[0] == results[1]


@TYPES
@EVERY
@settings(deadline=None, max_examples=15)
@given(size=st.floats(0.01, 100), seed=st.integers(0, 1000))
def test_moderate_exponents_are_moderate(name, dtype, size, seed):
    spec, found = ready(name, dtype)
    arrays = inputs(name, dtype, 20, 30, size, seed)
    with np.errstate(all="ignore"):
        every = [LOG2E * t for t in CASES[name][2](*(a.astype(float) for a in arrays), *[None] * (7 - len(arrays)))]
    least, most = min(t.min() for t in every), max(t.max() for t in every)
    limits = [exponents._limits(op, dtype) for op, _ in found.powers]
    if found.moderate(dtype, spec.arrays(arrays), empty(spec, 20)):
        assert least >= max(r.low for r in limits) - 1e-3
        assert most <= min(r.high for r in limits) + 1e-3


@TYPES
@EVERY
def test_what_is_not_moderate_is_told(name, dtype):
    """Small numbers are, large ones, infinite ones and none are not."""
    spec, found = ready(name, dtype)
    assert found.powers
    state = empty(spec, 20)
    assert found.moderate(dtype, spec.arrays(inputs(name, dtype, 20, 30)), state)
    if name == "quotient":  # of large numbers, which is none, and the lesser component
        return
    assert not found.moderate(dtype, spec.arrays(inputs(name, dtype, 20, 30, 1e4)), state)
    for wrong in (np.nan, np.inf, -np.inf, 3e9):
        arrays = inputs(name, dtype, 20, 30)
        arrays[5 if name in ("long", "vectors") else 0][7] = wrong
        assert found.moderate(dtype, spec.arrays(arrays), state) == (name == "difference")  # which does not read it


def test_a_reference_that_has_been_met_before_counts():
    spec, found = ready("references", "float32")
    arrays = inputs("references", "float32", 20, 30)
    for met, fine in ((5.0, True), (-np.inf, True), (500.0, False)):
        state = empty(spec, 20)
        state[0][0, 3] = met
        assert found.moderate("float32", arrays, state) is fine


@TYPES
def test_references_of_scaled_rows(dtype):
    """They are terms that are written otherwise."""
    spec = Genred("-SqDist(x,y)", ALIASES, "LogSumExp", axis=1, use_fast_math=True).spec(dtype)
    x = np.random.default_rng(3).random((20, 2)).astype(dtype)
    assert of(spec).powers
    assert of(spec).moderate(dtype, [x, x], empty(spec, 20))
    assert not of(spec).moderate(dtype, [x, 100 * x], empty(spec, 20))


def test_rows_are_all_looked_at():
    spec, found = ready("gaussian", "float64")
    for M in (1, 63, 64, 65, 200):
        for row in {0, M // 2, M - 1}:
            arrays = inputs("gaussian", "float64", M, 70)
            assert found.moderate("float64", arrays, empty(spec, M))
            arrays[0][row] = 1e3
            assert not found.moderate("float64", arrays, empty(spec, M))


def test_loops_in_loops_are_left_alone():
    assert not of(Genred("Exp(-MatVecMult(x,y)|y)", ["x = Vi(1600)", "y = Vj(40)"], axis=1).spec("float32")).powers
    assert not of(Genred("SqDist(x,y)", ["x = Vi(3)", "y = Vj(3)"], axis=1).spec("float32")).powers


@EVERY
def test_written_and_read(name):
    _, found = ready(name, "float32")
    assert repr(Exponents.read(found.written())) == repr(found)  # NaN among them


def edges(limits, dtype):
    rng = np.random.default_rng(2)
    low, high = (np.asarray(end, dtype) for end in limits)
    inside = [rng.uniform(low, high, 100_000), rng.uniform(low, low + 2, 20_000), [low, high], np.arange(low, high)]
    return np.clip(np.concatenate([np.asarray(part, dtype) for part in inside]), low, high)


def functions(name, dtype):
    for who in {machine.host(), *machine.runnable().values()}:
        width = 64 // np.dtype(dtype).itemsize
        yield [build(text(name, dtype, width, who.scaling, moderate), *who[:2]) for moderate in (False, True)]


@TYPES
@pytest.mark.parametrize("name", exponents.LIMITED)
def test_within_its_limits_a_power_needs_none(name, dtype):
    low, high = exponents._limits(name, dtype)
    domain = {"exp2s_fall": (low, 0.0), "exp2s_rise": (0.0, high)}.get(name, (low, high))
    a = edges(domain, dtype)
    for limited, moderate in functions(name, dtype):
        assert limited(a).tobytes() == moderate(a).tobytes()


@TYPES
@pytest.mark.parametrize("name", exponents.LIMITED)
def test_beyond_its_limits_a_power_does_need_them(name, dtype):
    low, high = exponents._limits(name, dtype)
    beyond = (high + 2, high + 600) if name == "exp2s_rise" else (low - 2 * exponents.MARGIN - 3, low - 600)
    a = edges(sorted(beyond), dtype)
    assert any(limited(a).tobytes() != moderate(a).tobytes() for limited, moderate in functions(name, dtype))


def unlimited(monkeypatch, routine, arrays):
    """Results with limits, and as chosen by the bounds."""
    monkeypatch.setattr(cpu, "ROWS", 0)
    monkeypatch.setattr(cpu, "_sizes", cpu._sizes.__wrapped__)
    results = []
    for many in (1 << 60, 0):
        monkeypatch.setattr(cpu, "MANY", many)
        results.append(routine(*arrays, backend="cpu").tobytes())
    return results


def test_what_nothing_is_known_of_is_not_moderate(monkeypatch):
    """Exponents in loops in loops; and where there are none, a second kernel would be the same."""
    rng = np.random.default_rng(3)
    x, y, A = rng.random((40, 40)), 6 + 6 * rng.random((90, 40)), 6 * np.eye(40).ravel()
    nested = Genred("Exp(-Sum(Square(MatVecMult(A,x)-y)))", ["A=Pm(1600)", "x=Vi(40)", "y=Vj(40)"], axis=1)
    assert not of(nested.spec("float64")).moderate("float64", [A, x, y], ())
    one, other = unlimited(monkeypatch, nested, (A, x, y))
    assert one == other
    assert not of(Genred("x*y", ONE, axis=1).spec("float64")).moderate("float64", [x, y], ())


def test_references_that_are_no_numbers():
    spec, found = ready("references", "float64")
    arrays = inputs("references", "float64", 20, 30)
    for met, fine in ((-np.inf, True), (np.inf, False), (np.nan, False)):
        state = empty(spec, 20)
        state[0][0, 3] = met
        assert found.moderate("float64", arrays, state) is fine


@pytest.mark.parametrize("s", [-5000.0, 5000.0, -1100.0])
def test_sums_that_cancel(s, monkeypatch):
    """What is lost depends on the order: bounds are those of every order."""
    x = np.zeros((32, 16))
    x[:, 0], x[:, 1], x[:, 4] = 1e20, s, -1e20
    routine = Genred("Exp(Sum(x)+y)", ["x=Vi(16)", "y=Vj(1)"], axis=1)
    one, other = unlimited(monkeypatch, routine, (x, np.linspace(0, 1, 300)[:, None]))
    assert one == other
    low, high = exponents._turned("fold", (x[0], x[0]), 16, 2.0**-52)
    for order in itertools.permutations((0, 1, 4)):
        total = 0.0
        for k in order:
            total += x[0, k]
        assert low <= total <= high


def test_products_that_cancel(monkeypatch):
    a, b = 10033055271.057058, 11626540478.400545
    arrays = np.full((32, 1), a), np.full((300, 1), b), np.full((300, 1), -a * b)
    one, other = unlimited(monkeypatch, Genred("Exp(b+x*y)", [*ONE, "b=Vj(1)"], axis=1), arrays)
    assert one == other
    assert exponents._fma((a, a), (b, b), (-a * b, -a * b))[1] > 100
