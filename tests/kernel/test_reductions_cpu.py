"""Every reduction on the compiled kernel: long vectors, edges of tiles and chains, threads, accuracy."""

import threading

import numpy as np
import pytest

from dred.formula.language import formula
from dred.formula.oracle import dense
from dred.kernel import cpu, cpu_calls, cpu_schedule, engine, llvm
from dred.kernel.lower import lower
from dred.kernel.output import Output, empty
from dred.kernel.spec import CHAIN, KernelSpec, Part
from dred.reductions import MONOIDS, REDUCTIONS, monoid_name
from tests.monoid_cases import CASES, Case

EXACT = {name for name, monoid in MONOIDS.items() if all(f.kind != "sum" for f in monoid.fields)}
EVERY = pytest.mark.parametrize("case", CASES, ids=str)
FEW = [Case("Sum"), Case("ArgMin"), Case("KMax_ArgKMax", False, 7), Case("LogSumExp", True), Case("Variance", False, 0),
       Case("SoftMax", True, None, True), Case("Histogram", False, (-2.0, 0.0, 1.0)), Case("Mean")]  # fmt: skip


def problem(case, D, axis, dtype, weights=5):
    """Spec and terms: small whole numbers and halves, so that ties abound and sums are exact."""
    entry = REDUCTIONS[case.name]
    aliases = [f"x = Vi({D})", f"y = Vj({D})", f"b = Vj({weights})"]
    f = formula("(x | y)" if entry.scalar or case.weighted else "x * y + Sum(x - y)", aliases)
    histogram = case.name == "Histogram"
    g = formula("Sum(b) * Sum(x)" if histogram else "b * Sum(x)", aliases) if case.weighted else None
    spec = KernelSpec.of(
        f.node, case.name, axis, dtype, "float64", variables=f.variables, weight=g and g.node,
        parameter=case.parameter, kahan=case.kahan,
    )  # fmt: skip
    return spec, f.node, g and g.node


def data(D, M, N, dtype, weights=5, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(-3, 4, shape).astype(dtype) / 2 for shape in ((M, D), (N, D), (N, weights))]


def computed(case, spec, arrays, backend="cpu"):
    M, N = len(arrays[0]), len(arrays[1])
    kept, reduced = (M, N) if spec.axis == 1 else (N, M)
    state = engine.fold(spec, backend, empty(spec, kept), arrays, kept, reduced)
    return engine.finalize(spec, state, Output.of(case.name, 0, case.parameter))


def wanted(case, f, g, axis, arrays):
    M, N = len(arrays[0]), len(arrays[1])
    values, weights = (None if n is None else np.broadcast_to(dense(n, arrays, (M, N)), (M, N, n.dim)) for n in (f, g))
    with np.errstate(all="ignore"):
        found = REDUCTIONS[case.name].numpy(values, weights, axis, case.parameter)
    return found if isinstance(found, tuple) else (found,)


def check(case, found, references, dtype):
    exact = monoid_name(REDUCTIONS[case.name], case.weighted, case.kahan) in EXACT
    for a, b in zip(found, references, strict=True):
        assert a.shape == b.shape
        if exact:
            np.testing.assert_array_equal(a, b)
            continue
        size = np.abs(np.where(np.isfinite(b), b, 0)).max(initial=1.0)
        fine = np.isfinite(b) if case.name == "Prod" and dtype == "float32" else ...  # beyond the largest float32
        tolerance = 1e-11 if dtype == "float64" else 2e-5
        with np.errstate(all="ignore"):
            fine = np.isfinite(b.astype(dtype)) if fine is not ... else fine
            np.testing.assert_allclose(a[fine], b[fine], rtol=tolerance, atol=tolerance * min(size, 1e3))


@EVERY
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("axis", [0, 1])
def test_values(case, dtype, axis):
    for D, weights in ((1, 1), (3, 5), (40, 40)):
        if case.parameter == 60 and D == 40:
            continue  # takes its time, and is in another test
        spec, f, g = problem(case, D, axis, dtype, weights)
        arrays = data(D, 19, 70, dtype, weights)
        check(case, computed(case, spec, arrays), wanted(case, f, g, axis, arrays), dtype)


@pytest.mark.parametrize("case", FEW, ids=str)
def test_edges_of_tiles_and_chains(case):
    for M, N in [(0, 5), (1, 0), (16, 1), (17, 31), (15, 32), (33, 33), (1, 4097), (3, 8200)]:
        for D in (1, 9):
            spec, f, g = problem(case, D, 1, "float32")
            arrays = data(D, M, N, "float32")
            check(case, computed(case, spec, arrays), wanted(case, f, g, 1, arrays), "float32")


@pytest.mark.parametrize("case", FEW, ids=str)
def test_threads_calls_and_instruction_sets_change_no_bit(case, monkeypatch):
    monkeypatch.setattr(cpu_calls, "SHARE", 1.0)
    spec, _, _ = problem(case, 3, 1, "float32")
    M, N = 100, 5000
    arrays = spec.arrays(data(3, M, N, "float32"))

    def run(threads):
        return b"".join(a.tobytes() for a in cpu.fold(spec, empty(spec, M), arrays, M, N, threads=threads))

    results = {run(t) for t in (1, 2, 3)}
    monkeypatch.setattr(cpu_calls, "CALL", 1e4)
    results |= {run(t) for t in (1, 2, 3)}
    program = llvm.render(lower(spec, cpu.UNROLL, hoist=True), spec.dtype, spec.acc, spec.chain)
    generic = cpu.build(program, cpu="generic", features="")
    out = empty(spec, M)
    cpu._calls(generic, arrays, out, [cpu_calls.Call.of(generic.program.plan, 0, M, 0, N)], (0, 0), threading.Event())
    results.add(b"".join(a.tobytes() for a in out))
    assert len(results) == 1


@pytest.mark.parametrize("K", [200, 3000])
def test_thousands_of_places(K):
    case = Case("KMin_ArgKMin", False, K)
    spec, f, g = problem(case, 2, 1, "float32")
    arrays = data(2, 5, 4000, "float32")
    check(case, computed(case, spec, arrays), wanted(case, f, g, 1, arrays), "float32")


def test_a_ranking_of_a_long_vector():
    for K in (1, 5):
        case = Case("ArgKMax", False, K)
        spec, f, g = problem(case, 100, 0, "float64")
        arrays = data(100, 50, 7, "float64")
        check(case, computed(case, spec, arrays), wanted(case, f, g, 0, arrays), "float64")


@pytest.mark.parametrize("backend", ["numpy", "cpu"])
def test_nothing_is_shared_but_the_sweep(backend):
    """Several parts in one kernel give what each gives alone; on the CPU but for rounding, since the terms of sums are
    rewritten where nothing else reads them."""
    aliases = ["x = Vi(3)", "y = Vj(3)", "b = Vj(40)"]
    f, g = (formula(text, aliases).node for text in ("-SqDist(x, y)", "b"))
    variables = formula("Sum(b)", aliases).variables
    parts = [Part.of("Sum", f), Part.of("ArgKMin", f, parameter=4), Part.of("SumSoftMaxWeight", f, g),
             Part.of("LogSumExp", f), Part.of("Max", f), Part.of("Mean", g),
             Part.of("Histogram", f, parameter=(-9, -1, 0))]  # fmt: skip
    arrays = data(3, 40, 100, "float32", 40)

    def states(*some):
        spec = KernelSpec(some, 1, "float32", "float64", variables=variables)
        return engine.fold(spec, backend, empty(spec, 40), arrays, 40, 100)

    together = states(*parts)
    apart = [field for part in parts for field in states(part)]
    for a, b in zip(together, apart, strict=True):
        assert a.dtype == b.dtype
        if a.dtype == np.int64 or backend == "numpy":
            assert a.tobytes() == b.tobytes()
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_shared_expressions_are_computed_once():
    from dred.kernel.ir import walk
    from dred.kernel.lower import lower

    aliases = ["x = Vi(3)", "y = Vj(3)"]
    f = formula("Exp(-SqDist(x, y))", aliases)
    spec = KernelSpec(
        (Part.of("Sum", f.node), Part.of("Max", f.node), Part.of("Mean", f.node)), 1, "float32", "float64"
    )
    assert sum(e.op == "exp" for e in walk(lower(spec, 8).steps)) == 1


@pytest.mark.parametrize("backend", ["numpy", "cpu"])
@pytest.mark.parametrize("case", [c for c in CASES if not c.weighted and c.parameter in (None, 3)], ids=str)
def test_row_numbers_as_terms(case, backend):
    """The formula itself may be a row number, which is a value to the reduction."""
    f = formula("IndexJ()", ["x = Vi(1)", "y = Vj(1)"])
    spec = KernelSpec.of(f.node, case.name, 1, "float64", "float64", variables=f.variables, parameter=case.parameter,
                         kahan=case.kahan)  # fmt: skip
    values = np.broadcast_to(np.arange(40.0)[None, :, None], (3, 40, 1))
    with np.errstate(all="ignore"):
        want = REDUCTIONS[case.name].numpy(values, None, 1, case.parameter)
    found = computed(case, spec, [np.zeros((3, 1)), np.zeros((40, 1))], backend)
    check(case, found, want if isinstance(want, tuple) else (want,), "float64")


# accuracy -------------------------------------------------------------------------------------------------------------


def one_row(reduction, terms, dtype="float32", acc="float64", chain=CHAIN, weight=None, rows=1, **more):
    aliases = ["x = Vj(1)", "g = Vj(1)"]
    f, g = formula("x", aliases), formula("g", aliases)
    spec = KernelSpec.of(f.node, reduction, 1, dtype, acc, chain, f.variables, weight=weight and g.node, **more)
    terms = np.asarray(terms, dtype).reshape(-1, 1)
    arrays = [terms, np.ones_like(terms) if weight is None else weight]
    state = cpu.fold(spec, empty(spec, rows), arrays, rows, len(terms))
    found = engine.finalize(spec, state, Output.of(reduction, 0, more.get("parameter")))[0]
    return found[:1].ravel().astype(np.float64)


MILLION = 10**6


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e30, 1e-30])
def test_a_million_equal_terms(value):
    exact = float(np.float32(value)) * MILLION
    for reduction, scale in (("Sum", 1), ("Mean", MILLION)):
        found = one_row(reduction, np.full(MILLION, value)) * scale
        assert abs(found - exact) <= 1e-6 * exact
    assert one_row("Variance", np.full(MILLION, value), parameter=0) <= 1e-12 * value**2
    assert abs(one_row("LogSumExp", np.full(MILLION, 3.0)) - (3 + np.log(MILLION))) < 2e-6


@pytest.mark.parametrize("reduction", ["Sum", "Mean", "LogSumExp", "Max_SumShiftExp"])
def test_the_worst_order_of_terms(reduction):
    """A large term first in every chain, so that each of the small ones behind it is rounded away or up."""
    for small in (2.0**-24, 2.0**-24 * 0.99, 2.0**-23 * 0.76):
        for length in (8, 16, 32):
            terms = np.full(MILLION, small, np.float32)
            terms[::length] = 1
            exact = terms.astype(np.float64).sum()
            if reduction in ("Sum", "Mean"):
                found = one_row(reduction, terms)[0] * (MILLION if reduction == "Mean" else 1)
            else:
                found = one_row(reduction, np.log(terms))[-1]
                found = np.exp(found) if reduction == "LogSumExp" else found
                exact = np.exp(np.log(terms).astype(np.float64)).sum()
            assert abs(found - exact) <= (1e-6 if reduction in ("Sum", "Mean") else 1e-5) * exact


@pytest.fixture
def in_order(monkeypatch):
    """Terms are added one after the other: rows fill the lanes, and columns are not split."""
    monkeypatch.setattr(cpu_schedule, "UNITS", 1)
    monkeypatch.setattr(cpu, "_sizes", cpu._sizes.__wrapped__)  # nothing of that is remembered
    return {"rows": 16}


def test_schemes_of_summation(in_order):
    """In float32 alone a million terms lose digits; compensated sums, and those in float64, do not."""
    terms = np.full(MILLION, 0.1, np.float32)
    exact = terms.astype(np.float64).sum()
    schemes = {
        "auto": {},
        "direct": {"chain": 1},
        "block": {"acc": "float32"},
        "direct in float32": {"acc": "float32", "chain": 1},
        "kahan": {"kahan": True},
        "kahan in float32": {"acc": "float32", "kahan": True},
    }
    error = {
        name: abs(one_row("Sum", terms, **options, **in_order)[0] - exact) / exact for name, options in schemes.items()
    }
    assert max(error[name] for name in ("direct", "kahan", "kahan in float32")) < 1e-7 < error["auto"] < 1e-6
    assert error["direct in float32"] > 1e-3 > error["block"] > 1e-5


def test_kahan_in_float64_keeps_what_plain_sums_lose(in_order):
    terms = np.concatenate([[1.0], np.full(10**5, 1e-17)])
    assert one_row("Sum", terms, "float64", chain=1, **in_order) == 1.0
    assert one_row("Sum", terms, "float64", kahan=True, **in_order) == pytest.approx(1.0 + 1e-12, abs=3e-16)
    for reduction in ("LogSumExp", "Max_SumShiftExp"):
        f = np.log(terms)
        plain, kahan = (
            np.exp(one_row(reduction, f, "float64", chain=1, kahan=k, **in_order)[-1]) for k in (False, True)
        )
        assert plain != kahan


def test_compensated_sums_of_infinities():
    for reduction in ("Sum", "Mean"):
        assert one_row(reduction, [1, np.inf, 2], kahan=True) == np.inf
        assert np.isnan(one_row(reduction, [1, np.inf, -np.inf], kahan=True))


def test_wide_sums_keep_small_terms_of_soft_maxima():
    """The state of a soft maximum is a sum of float64, whatever the terms are."""
    rng = np.random.default_rng(1)
    f = rng.normal(size=MILLION).astype(np.float32) * 5
    exact = np.log(np.exp(f.astype(np.float64) - f.max()).sum()) + f.max()
    assert abs(one_row("LogSumExp", f)[0] - exact) < 2e-7 * abs(exact)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("offset", [0, 1e3, 1e5, 1e7])
def test_a_variance_far_from_zero(dtype, offset):
    """Only differences of terms are rounded: a large mean costs no digits."""
    rng = np.random.default_rng(2)
    for count in (211, 10**5):
        terms = (offset + 3 * rng.normal(size=count)).astype(dtype)
        exact = float(np.var(terms.astype(np.longdouble)))
        found = one_row("Variance", terms, dtype, parameter=0)[0]
        assert found == pytest.approx(exact, rel=2e-6 if dtype == "float32" else 1e-13)
