"""States of many components: sums that join behind, and results that kernels make themselves; byte against byte."""

import copy

import numpy as np
import pytest

from dred import Genred
from dred.formula.language import formula
from dred.formula.node import I, J
from dred.kernel import cpu, cpu_calls, cpu_ready, cpu_schedule, cuda, engine, llvm, output
from dred.kernel.lower import lower
from dred.kernel.spec import KernelSpec
from dred.kernel.threads import NEVER

TYPES = ("float32", "float64")
ALIASES = ["x = Vi(3)", "y = Vj(3)", "s = Vi(1)", "t = Vj(1)", "b = Vj({E})", "z = Vi(9)"]
GAUSSIAN = "Exp(-SqDist(x, y)) * b"
TEXTS = {
    "scaled": GAUSSIAN,
    "factor of the row": "s * Exp(-SqDist(x, y)) * b",
    "loops in loops": "TensorProd(z, b * t)",
    "two vectors": "Concat(b * s, z * t)",
}


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(cuda, "device_count", lambda: 0)


def data(E, M, N, dtype, seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((M, 3), (N, 3), (M, 1), (N, 1), (N, E), (M, 9))
    return [rng.uniform(-1, 1, shape).astype(dtype) for shape in shapes]


def spec_of(text, E, dtype):
    f = formula(text, [alias.format(E=E) for alias in ALIASES])
    return KernelSpec.of(f.node, "Sum", 1, dtype, "float64", variables=f.variables)


def routine(E, text=GAUSSIAN, **more):
    return Genred(text, [alias.format(E=E) for alias in ALIASES], axis=1, **more)


def by_states(made, given):
    """By a fold of states that are not the kernel's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "prepared", lambda *_: None)
        return copy.deepcopy(made)(*given)


def ready(made):
    (found,) = made._ready.values()
    return found


# -- joins that wait ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", TEXTS)
def test_joins_that_wait_change_no_bit(name, dtype, monkeypatch):
    """Machines with many registers hold more components at a time, of which each joins while others go by."""
    real = cpu_schedule.schedule
    M = 19
    for E in (9, 16, 33):
        spec = spec_of(TEXTS[name], E, dtype)
        kernel = lower(spec, cpu.UNROLL, hoist=True)
        kernels = []
        for many in (False, True):
            monkeypatch.setattr(llvm, "schedule", lambda *args, many, wanted=many: real(*args, many=wanted))
            kernels.append(cpu.build(llvm.render(kernel, dtype, spec.acc, spec.chain)))
        few, more = (k.program.plan for k in kernels)
        assert (few.behind, few.components, more.behind, more.components) == (False, 4, True, 8)
        for N in (few.span, 3 * few.span + 5):
            given, states = data(E, M, N, dtype), []
            for k in kernels:
                states.append(output.empty(spec, M))
                cpu._calls(k, given, states[-1], [cpu_calls.Call.of(k.program.plan, 0, M, 0, N)], (0, 0), NEVER)
            assert states[0][0].tobytes() == states[1][0].tobytes()
            want = by_states(routine(E, TEXTS[name]), [a.astype("float64") for a in given])
            np.testing.assert_allclose(states[1][0].T, want, atol={"float32": 2e-6, "float64": 1e-14}[dtype] * N)


def test_what_is_no_plain_sum_does_not_wait():
    f = formula("-SqDist(x, y)", [alias.format(E=40) for alias in ALIASES])
    weight = formula("b", [alias.format(E=40) for alias in ALIASES]).node
    weighted = KernelSpec.of(f.node, "LogSumExp", 1, "float32", "float64", weight=weight, variables=f.variables)
    for spec, behind in (
        (weighted, False),
        (spec_of(GAUSSIAN, 40, "float32"), True),
        (spec_of("x", 40, "float32"), False),
    ):
        kernel = lower(spec, cpu.UNROLL, hoist=True)
        assert cpu_schedule.schedule(kernel, "float32", spec.chain, many=True).behind == behind
        others = [(8, I), (spec.chain, J)]  # fewer parts of a span; lanes are columns
        assert not any(cpu_schedule.schedule(kernel, "float32", *how, many=True).behind for how in others)


# -- results of kernels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("reduction", ["Sum", "Max", "Min"])
def test_results_are_those_of_states(reduction, dtype, monkeypatch):
    monkeypatch.setattr(cpu_ready, "MOST", 0)  # however small
    for E in (16, 17, 40):
        made = routine(E, reduction_op=reduction)
        for M in (1, 15, 16, 17, 300):
            given = data(E, M, 150, dtype)
            if reduction != "Sum":  # terms of one sign, so that a state of no term is another one than 0
                given[4] = {"Max": -1, "Min": 1}[reduction] * np.abs(given[4])
            got, want = made(*given), by_states(made, given)
            assert (got.dtype, got.shape, got.tobytes()) == (want.dtype, want.shape, want.tobytes())
        assert {type(found) for found in made._ready.values()} == {cpu_ready.Finished}


def test_what_is_more_than_a_field_has_a_state(monkeypatch):
    monkeypatch.setattr(cpu_ready, "MOST", 0)
    several = {"Mean": {}, "LogSumExp": {}, "Sum": {"sum_scheme": "kahan_scheme"}, "ArgMin": {}, "Count": {}}
    for reduction, more in several.items():
        made, given = routine(40, reduction_op=reduction, **more), data(40, 30, 150, "float32")
        assert made(*given).tobytes() == by_states(made, given).tobytes()
        assert type(ready(made)) is cpu_ready.Prepared
    parted, given = routine(40), data(40, 64, 40_000, "float32")  # columns in parts, whose states are merged
    assert parted(*given).tobytes() == by_states(parted, given).tobytes()
    assert type(ready(parted)) is cpu_ready.Prepared
    halves, given = routine(40), [a.astype("float16") for a in data(40, 30, 150, "float32")]  # of another type
    got, want = halves(*given), by_states(halves, given)
    assert (got.dtype, got.tobytes()) == (np.float16, want.tobytes())
    short = routine(12)  # fewer components than lanes
    short(*data(12, 30, 150, "float32"))
    assert type(ready(short)) is cpu_ready.Prepared


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("E", "M", "N"), [(40, 700, 300), (1000, 40, 600)])
def test_any_threads_and_calls(E, M, N, dtype, monkeypatch):
    """Calls of few rows, and of columns that would be cut if they had to: panels are shorter."""
    made, given = routine(E), data(E, M, N, dtype)
    want = by_states(made, given).tobytes()
    monkeypatch.setattr(cpu_calls, "SHARE", 1.0)
    kernel = cpu.compiled(made.spec(dtype))
    plan, cost = kernel.program.plan, kernel.cost
    assert E < 1000 or plan.panel < N
    half = min(plan.rows, M) // 2
    for rows, kind in ((2000, cpu_ready.Finished), (half, cpu_ready.Finished), (half // 2, cpu_ready.Prepared)):
        monkeypatch.setattr(cpu_calls, "CALL", cost * N * rows)
        for threads in ("1", "2", "5"):
            monkeypatch.setenv("DRED_NUM_THREADS", threads)
            made = routine(E)
            assert made(*given).tobytes() == want
            assert type(ready(made)) is kind


@pytest.mark.parametrize("most", [17, 31, 300, 5000])
def test_shares_whose_calls_meet_all_columns(most):
    plan = cpu.compiled(spec_of(GAUSSIAN, 1000, "float32")).program.plan
    M, parts, cost = 1000, ((0, 700), (700, 1300)), cpu_calls.CALL / 700 / most
    seen = np.zeros((M, 1300), np.int8)
    for share in cpu_calls.whole(plan, cost, M, parts, 3, meet=True):
        for part, calls in share:
            for call in calls:
                (_, first, last, *_), (start, stop) = call.items[0], call.intervals[0]
                assert (start, stop) == parts[part]
                assert last - first <= max(plan.tile, most * 700 / (stop - start))
                seen[first:last, start:stop] += 1
    assert (seen == 1).all()
    assert cpu_calls.meets(plan, cost, M, 700) == (2 * most >= plan.rows)
    assert cpu_calls.meets(plan, cost, 30, 700)


@pytest.mark.parametrize("dtype", TYPES)
def test_rows_whose_sums_are_not_finite_are_done_again(dtype, monkeypatch):
    """Factors that leave the sum overflow where their product does not."""
    monkeypatch.setattr(cpu_ready, "MOST", 0)
    made, given = routine(40, "Exp(s - t) * b"), data(40, 100, 150, dtype)
    far = {"float32": 100, "float64": 800}[dtype]
    given[2][20:60] += far
    given[3] += far
    given[4][:, 3] += 2
    given[2][70] = np.inf
    again, real = [], cpu.compiled

    def compiled(spec, along=I, hoist=True, moderate=False):
        again.append(not hoist)
        return real(spec, along, hoist, moderate)

    monkeypatch.setattr(cpu, "compiled", compiled)
    got = made(*given)
    assert type(ready(made)) is cpu_ready.Finished
    assert True in again
    assert got.tobytes() == by_states(made, given).tobytes()
    assert np.isfinite(got[20:60]).all()
    assert np.isposinf(got[70, 3])


def test_arrays_that_are_looked_at(monkeypatch):
    """What is in them may decide between kernels in each call: the result is made by either."""
    monkeypatch.setattr(cpu, "MANY", 0)
    monkeypatch.setattr(cpu, "ROWS", 0)
    monkeypatch.setattr(cpu, "_sizes", cpu._sizes.__wrapped__)
    made, given, real, found = routine(40), data(40, 100, 150, "float32"), cpu.compiled, []

    def compiled(spec, along=I, hoist=True, moderate=False):
        found.append(moderate)
        return real(spec, along, hoist, moderate)

    monkeypatch.setattr(cpu, "compiled", compiled)
    for far, moderate in ((0, True), (1e4, False), (0, True)):
        given[0][0, 0] = far
        found.clear()
        got = made(*given)
        assert type(ready(made)) is cpu_ready.Finished
        assert set(found) == {moderate}
        assert got.tobytes() == by_states(made, given).tobytes()
