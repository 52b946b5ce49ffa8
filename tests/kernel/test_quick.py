"""Quick chains, and sums that were rewritten, against sums of longdouble and against the kernel with all factors
inside: any order of terms, values that are not finite, products that overflow or underflow, ties, threads, memory."""

import dataclasses
import itertools

import numpy as np
import pytest

from dred.formula.language import formula
from dred.formula.node import I
from dred.kernel import cpu, cpu_calls, cpu_memory, cpu_schedule, hoist, llvm, lower
from dred.kernel.ir import IJ, walk
from dred.kernel.llvm_records import RecordText
from dred.kernel.output import empty
from dred.kernel.primitives import Range
from dred.kernel.spec import KernelSpec, Part
from dred.reductions import MONOIDS, REDUCTIONS, Monoid
from tests.kernel.test_cpu import call

EPS = {"float32": 1e-6, "float64": 1e-13}
FAMILY = ["LogSumExp", "LogSumExpWeight", "Max_SumShiftExp", "Max_SumShiftExpWeight", "SoftMax"]
FEW = 4 * cpu_schedule.CHOICES * 16  # columns, for which few rows are worth lanes of columns


def made(reduction, f, variables, weight=None, dtype="float32", acc="float64", **more):
    """A spec that knows all of the variables."""
    node = formula(f, variables).node
    read = formula(" + ".join(f"Sum({alias.partition('=')[0]})" for alias in variables), variables).variables
    g = weight and formula(weight, variables).node
    return KernelSpec.of(node, reduction, 1, dtype, acc, variables=read, weight=g, **more)


def fold(spec, arrays, M, N, state=None, **how):
    return cpu.fold(spec, empty(spec, M) if state is None else state, spec.arrays(arrays), M, N, **how)


def plain(spec, arrays, M, N, state=None):
    """By the kernel with all factors inside, cut in the same way."""
    along, parts = cpu_schedule.split(spec, M, N)
    careful = cpu.compiled(spec, along, hoist=False)
    state = empty(spec, M) if state is None else state
    return cpu.folded(spec, careful, lambda: careful, parts, state, spec.arrays(arrays), M)


def packed(state):
    return b"".join(a.tobytes() for a in state)


@pytest.fixture
def forget(monkeypatch):
    """Compiled kernels, also those on disk."""
    monkeypatch.setattr(cpu, "_kernels", type(cpu._kernels)())
    monkeypatch.setenv("DRED_CACHE_DIR", "off")


# sums of exponentials -------------------------------------------------------------------------------------------------


def terms(order, N, rng):
    """Terms in some order; infinities and NaN are among some of them."""
    f = rng.normal(size=N)
    if order in ("rising", "falling"):
        f = np.sort(50 * f)[:: 1 if order == "rising" else -1]
    elif order == "steps":
        f = np.cumsum(4 * rng.random(N))
    elif order == "jumps":
        f = rng.choice([0, 1e4, -1e4, 3, -3, 50], N)
    elif order == "ties":
        f = rng.integers(-2, 3, N).astype(float)
    elif order == "-inf":
        f[rng.random(N) < 0.3] = -np.inf
    elif order == "mostly -inf":
        f[np.arange(N) != rng.integers(N)] = -np.inf
    elif order == "inf":
        f[rng.integers(N)], f[rng.random(N) < 0.2] = np.inf, -np.inf
    elif order == "nan":
        f[rng.integers(N)] = np.nan
    return f


ORDERS = ["rising", "falling", "steps", "jumps", "ties", "-inf", "mostly -inf", "inf", "nan", "plain"]


def exponentials(F, G):
    """Largest term, sum of exp(F - m) G, and of its absolute value."""
    m = np.fmax.reduce(F, 1, initial=-np.inf)
    with np.errstate(all="ignore"):
        shifted = np.exp(F.astype(np.longdouble) - m[:, None]).astype(np.float64)
        shifted = np.where(m[:, None] == F, np.where(-np.inf == F, 0.0, 1.0), shifted)
        product = shifted * G
        return m, product.sum(1), np.abs(product).sum(1)


def rebased(spec, state, other):
    """A state whose references, where any term may be one, are those of another state."""
    out = list(state)
    for p, part in enumerate(spec.parts):
        if part.any_reference:
            reference, *sums = range(*spec.states(p).indices(len(out)))
            old, new = (s[reference].astype(np.float64) for s in (state, other))
            with np.errstate(all="ignore"):
                factor = np.where(old == new, 1.0, np.exp(old - new))
                for f in sums:
                    out[f] = out[f] * factor
            assert (old <= new)[np.isfinite(new)].all()
            out[reference] = other[reference]
    return out


def check_exponentials(reduction, order, dtype, D, G, M, N, seed):
    weighted = reduction in ("LogSumExpWeight", "Max_SumShiftExpWeight", "SoftMax")
    variables = [f"f=Vj({D})", f"z=Vi({D})", f"g=Vj({G})", "e=Vi(1)"]
    spec = made(reduction, "f+z", variables, "e*g" if weighted else None, dtype)
    rng = np.random.default_rng(seed)
    f = np.stack([terms(order, N, rng) for _ in range(D)], 1)
    z, e = rng.choice([0.0, 0.5, -0.25], (M, D)), rng.normal(size=(M, 1))
    g = rng.normal(size=(N, G))
    z[M // 3], e[M // 2], g[N // 2, 0] = rng.choice([0, -np.inf]), rng.choice([-0.0, 1e30, 2]), 0
    arrays = [a.astype(dtype) for a in (f, z, g, e)]
    cuts = [0, *sorted(int(c) for c in rng.integers(0, N + 1, 2)), N]
    state = empty(spec, M)
    for a, b in itertools.pairwise(cuts):
        state = fold(spec, [arrays[0][a:b], arrays[1], arrays[2][a:b], arrays[3]], M, b - a, state)
    with np.errstate(invalid="ignore"):
        F = (arrays[0] + arrays[1][:, None]).astype(dtype)
    weights = arrays[3][:, None].astype(np.float64) * arrays[2] if weighted else np.ones((1, 1, 1))
    m, s, scale = exponentials(F, weights)
    state = rebased(spec, state, [m.astype(dtype).T])
    named = dict(zip([field.name for field in spec.fields], state, strict=True))
    np.testing.assert_array_equal(named["m"].T, m.astype(dtype))  # the true maximum, to the last bit
    sums = [(named["s"].T, s, scale)]
    if "z" in named:
        sums.append((named["z"].T, *exponentials(F, 1.0)[1:]))
    # an exponential of less than the smallest number is 0
    lost = N * np.abs(weights).max() * (2.0**-126 if dtype == "float32" else 2.0**-1022)
    for found, want, size in sums:
        fine = np.isfinite(want)
        np.testing.assert_array_equal(found[~fine], want[~fine])
        assert (np.abs(found[fine] - want[fine]) <= (EPS[dtype] * size + lost)[fine]).all()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("reduction", FAMILY)
def test_sums_of_exponentials_in_any_order(reduction, order):
    for M, N in [(37, 300), (3, FEW + 77)]:
        check_exponentials(reduction, order, "float32", 1, 5 if reduction != "Max_SumShiftExp" else 1, M, N, M)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_sums_of_exponentials_of_any_shape(seed):
    rng = np.random.default_rng(seed)
    for reduction in FAMILY:
        D = 1 if REDUCTIONS[reduction].scalar else int(rng.choice([1, 3, 40]))
        G = D if D > 1 else int(rng.choice([1, 5, 40]))
        for order in ORDERS:
            M, N = int(rng.choice([1, 7, 8, 9, 16, 17, 40])), int(rng.choice([3, 16, 65, 255, 257, 4097, 8200]))
            check_exponentials(reduction, order, str(rng.choice(["float32", "float64"])), D, G, M, N, seed)


def jumps(reduction="Max_SumShiftExp"):
    """The largest error of sums whose reference rises by something, in the middle of a chain."""
    spec = made(reduction, "f+z", ["f=Vj(1)", "z=Vi(1)"])
    rng = np.random.default_rng(0)
    worst = 0.0
    for jump in (2, 4, 6, 9, 20, 40, 80):
        f, z = np.zeros((192, 1), "f4"), rng.random((800, 1), dtype="f4")
        f[84] = jump
        top, want, _ = exponentials(f + z[:, None], 1.0)
        m, s = rebased(spec, fold(spec, [f, z], 800, 192), [top.T])
        np.testing.assert_array_equal(m.T, top)
        worst = max(worst, np.abs(s.T / want - 1).max())
    return worst


def test_a_term_far_above_the_reference_costs_no_digits():
    assert jumps() < 1e-6


def test_a_chain_that_refers_too_far_down_is_noticed(monkeypatch, forget):
    monkeypatch.setattr(lower, "BEYOND", 1000)
    assert jumps() > 1e-6


def test_a_reference_that_stays_does_so_as_long_as_terms_are_near():
    assert jumps("LogSumExp") < 1e-6


def test_a_reference_that_stays_too_far_down_is_noticed(monkeypatch, forget):
    monkeypatch.setattr(lower, "MOST", 2.0**78)
    assert jumps("LogSumExp") > 1e-6


def check_reference(drop):
    """The largest term has no weight: what is left are the others, but for those of its chain."""
    spec = made("LogSumExpWeight", "f+z", ["f=Vj(1)", "z=Vi(1)", "g=Vj(1)"], "g")
    f, g = np.full((1000, 1), -drop, "f4"), np.ones((1000, 1), "f4")
    f[5], g[5] = 0, 0
    m, s = fold(spec, [f, np.zeros((20, 1), "f4"), g], 20, 1000)
    assert (m == 0).all()
    np.testing.assert_allclose(m + np.log(s), np.log(999) - drop, atol=16 / 999)


@pytest.mark.parametrize("drop", [1, 20, 80, 100, 110, 200])
def test_a_reference_that_has_no_weight(drop):
    check_reference(drop)


def test_sums_that_are_too_small_are_noticed(monkeypatch, forget):
    monkeypatch.setitem(MONOIDS, "exponentials", dataclasses.replace(MONOIDS["exponentials"], least=0.0))
    with np.errstate(divide="ignore"), pytest.raises(AssertionError):
        check_reference(110)


OVERFLOWING = [("float32", "float32", 3.5, 1e37), ("float64", "float64", 3.5, 1e307)]


def check_overflow(dtype, acc, jump, e):
    """What is added is finite once it refers to the new reference, but not to the old one."""
    spec = made("LogSumExpWeight", "f+z", ["f=Vj(1)", "z=Vi(1)", "g=Vj(1)", "e=Vi(1)"], "e*g", dtype, acc)
    f = np.zeros((192, 1), dtype)
    f[100] = jump
    g = np.zeros((192, 1), dtype)
    g[0], g[100] = 1e-30, 5.0
    arrays = [f, np.zeros((20, 1), dtype), g, np.full((20, 1), e, dtype)]
    m, s = fold(spec, arrays, 20, 192)
    assert (m == jump).all()
    np.testing.assert_allclose(s, 5 * e, rtol=1e-6)


@pytest.mark.parametrize("case", OVERFLOWING, ids=str)
def test_a_sum_that_overflows_for_the_old_reference_alone(case):
    check_overflow(*case)


def test_a_total_that_is_not_looked_at_is_noticed(monkeypatch, forget):
    totals = llvm._Fold._totals
    monkeypatch.setattr(llvm._Fold, "_totals", lambda *a: (totals(*a)[0], []))
    for case in OVERFLOWING:
        with pytest.raises(AssertionError):
            check_overflow(*case)


def test_constants_that_no_number_holds():
    """They are infinite in the compute type, and no error."""
    for reduction in ("LogSumExpWeight", "Max_SumShiftExpWeight"):
        spec = made(reduction, "f", ["f=Vj(1)", "g=Vj(1)"], "1e200*1e200*g", "float64")
        arrays = [np.zeros((40, 1)), np.ones((40, 1))]
        assert (fold(spec, arrays, 20, 40)[1] == np.inf).all()


# products -------------------------------------------------------------------------------------------------------------

SCALES = ["e=Vi(1)", "d=Vi(1)", "b=Vj(1)", "c=Vj(1)", "a=Vj(1)", "x=Vi(40)", "y=Vj(40)"]
# formula, values of e, d, b, c, a and all of x and y: products that are fine as they are written, and not in another
# order
PRODUCTS = [
    ("e*b*c", (1e30, 1, 1e-25, 1e-25, 1), np.longdouble("1e-20")),
    ("(e*b)*d", (1e-25, 1e-25, 1e30, 1, 1), np.longdouble("1e-20")),
    ("(e*b)*c", (1e-30, 1, 1e20, 1e20, 1), np.longdouble("1e10")),
    ("b/e*c", (1e-30, 1, 1e-25, 1e-25, 1), np.longdouble("1e-20")),
    ("Exp(-(((e*b)*c)*a))", (1e-30, 1, 1e20, 1e20, 1e-10), np.exp(np.longdouble(-1))),
    ("Exp(-(((e*b)*c)*a))", (1e30, 1, 1e-25, 1e-25, 1e20), np.exp(np.longdouble(-1))),
    ("Exp(-((e*b)*d))", (1e-25, 1e-25, 3e38, 1, 1), np.longdouble(1)),
    ("Exp(-(SqDist(b,c)*e)*d)", (1e20, 1e20, 2e-19, 0, 1), np.exp(np.longdouble(-400))),
    ("Exp(-(Square(b)*e)*d)", (1e25, 1e15, 1e-19, 0, 1), np.exp(np.longdouble(-100))),
    ("e*Exp(-b*c)", (1e30, 1, 160, 0.5, 1), np.exp(np.longdouble(-80)) * np.longdouble(1e30)),
    ("Sum(e*(b*x)*(c*y))", (1e30, 1, 1e-25, 1e-25, 1), np.longdouble("40e-20")),
    ("Sum(a*(b*x)*(c*y))", (1, 1, 1e-25, 1e-25, 1e30), np.longdouble("40e-20")),
    ("Exp(-(b*(c*(a*e))))", (1e-20, 1, 1e20, 1e20, 1e-20), np.exp(np.longdouble(-1))),
    ("Exp(-1e-10*b*c)", (1, 1, 1e20, 1e20, 1), np.longdouble(0)),
    ("x*(e*b)*c", (1e30, 1, 1e-25, 1e-25, 1), np.longdouble("1e-20")),
]


def check_product(text, values, want):
    spec = made("Sum", text, SCALES)
    M, N = 20, 40
    arrays = [np.full((M if k < 2 else N, 1), v, "f4") for k, v in enumerate(values)]
    arrays += [np.ones((M, 40), "f4"), np.ones((N, 40), "f4")]
    for found in (fold(spec, arrays, M, N)[0], plain(spec, arrays, M, N)[0]):
        np.testing.assert_allclose(found, float(N * want), rtol=3e-5, atol=2.0**-126)


@pytest.mark.parametrize("case", PRODUCTS, ids=lambda case: case[0])
def test_a_product_in_another_order_is_no_other_sum(case):
    check_product(*case)


def test_factors_that_are_too_large_are_noticed(monkeypatch, forget):
    monkeypatch.setitem(hoist.FACTORS, "float32", Range(0.0, 3e38))
    for case in PRODUCTS[:2]:
        with pytest.raises(AssertionError):
            check_product(*case)


@pytest.mark.parametrize("special", [0.0, -0.0, np.inf, -np.inf, np.nan, 1e38, 1e-38, 1e-42])
@pytest.mark.parametrize("text", ["e*b*Exp(-d*Square(c))", "e*(b+c)", "b*c/e", "Exp(-Abs(b)/e)*d", "x*y*e*b"])
def test_special_factors_of_a_row(text, special):
    spec = made("Sum", text, SCALES)
    rng = np.random.default_rng(0)
    M, N = 37, 90
    arrays = [rng.normal(size=(M if k in (0, 1, 5) else N, D)).astype("f4") for k, D in enumerate([1] * 5 + [40] * 2)]
    arrays[0][5], arrays[0][20], arrays[1][21] = special, special, special
    with np.errstate(all="ignore"):
        found, want = fold(spec, arrays, M, N)[0], plain(spec, arrays, M, N)[0]
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5 * np.abs(want[np.isfinite(want)]).max(initial=1e-30))


# rankings -------------------------------------------------------------------------------------------------------------


def check_ranking(reduction, M, N, dtype="float32"):
    parameter = 5 if REDUCTIONS[reduction].parameter else None
    spec = made(reduction, "f+z", ["f=Vj(1)", "z=Vi(1)"], dtype=dtype, parameter=parameter)
    rng = np.random.default_rng(N)
    for values in ([0], [np.inf], [-np.inf], [np.nan], [0, 1], [np.inf, np.nan], [-np.inf, np.inf, np.nan, 0],
                   [np.nan] * 40 + [np.inf] * 40 + [1]):  # fmt: skip
        f, z = rng.choice(values, (N, 1)).astype(dtype), np.zeros((M, 1), dtype)
        z[M // 2], z[M - 1] = np.inf, np.nan
        with np.errstate(invalid="ignore"):
            terms = (f + z[:, None]).astype(np.float64)
        want = REDUCTIONS[reduction].numpy(terms, None, 1, parameter)
        named = dict(zip([field.name for field in spec.fields], fold(spec, [f, z], M, N), strict=True))
        found = [named["m"], np.where(named["q"] == 2**63 - 1, -1, named["q"])]
        for a, b in zip(found, want, strict=True):
            np.testing.assert_array_equal(a.T, b)


@pytest.mark.parametrize("reduction", ["Min_ArgMin", "Max_ArgMax", "KMin_ArgKMin"])
def test_ties_infinities_and_nan_in_rankings(reduction):
    for M, N in [(37, 1), (16, 64), (17, 65), (15, 200), (2, FEW + 130)]:
        check_ranking(reduction, M, N)


def test_a_comparison_that_is_not_strict_is_noticed(monkeypatch, forget):
    monkeypatch.setattr(Monoid, "less", Monoid.near)
    with pytest.raises(AssertionError):
        check_ranking("Min_ArgMin", 37, 64)  # no row of the first tile is like none


# several reductions in one sweep --------------------------------------------------------------------------------------

POINTS = ["x=Vi(3)", "y=Vj(3)", "b=Vj(40)", "e=Vi(1)", "c=Vj(1)"]
D2 = "-SqDist(x,y)"
PARTS = {
    "sum": ("Sum", "e*Exp(-SqDist(x,y))*c"), "large sum": ("Sum", "e*Exp(-SqDist(x,y))*b"),
    "gradient": ("Sum", "Grad(Exp(-SqDist(x,y))*c,x,e)"), "argmin": ("ArgMin", D2), "places": ("ArgKMin", D2, "", 4),
    "logsumexp": ("LogSumExp", D2), "softmax": ("SoftMax", D2, "y*e"), "large softmax": ("SoftMax", D2, "b"),
    "large mean": ("Mean", "b*e"), "variance": ("Variance", "x*y", "", 0), "large variance": ("Variance", "b*e", "", 0),
    "histogram": ("Histogram", D2, "", (-9, -1, 0)), "large maximum": ("Max", "b*e"), "product": ("Prod", "1+x*y/1000"),
}  # fmt: skip
SWEEPS = [("sum", "logsumexp", "argmin"), ("sum", "argmin", "places", "histogram"), ("large sum", "gradient"),
          ("large sum", "large variance", "softmax"), ("large mean", "sum", "logsumexp"), ("product", "softmax"),
          ("sum", "logsumexp", "argmin", "places", "histogram", "large softmax"),
          ("large maximum", "large sum")]  # fmt: skip


def part(name):
    reduction, f, g, parameter = (*PARTS[name], "", None)[:4] if len(PARTS[name]) < 4 else PARTS[name]
    return Part.of(reduction, formula(f, POINTS).node, formula(g, POINTS).node if g else None, parameter)


def sweep(names, dtype="float32", acc="float64"):
    read = formula("+".join(f"Sum({v.partition('=')[0]})" for v in POINTS), POINTS).variables
    return KernelSpec(tuple(map(part, names)), 1, dtype, acc, variables=read)


def points(M, N, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=s).astype(dtype) for s in ((M, 3), (N, 3), (N, 40), (M, 1), (N, 1))]


def check_sweep(names, M, N, monkeypatch, dtype="float32", acc="float64", seed=0):
    """Bits of any threads and calls; values of the kernel with all factors inside, from a state that holds some."""
    spec, arrays = sweep(names, dtype, acc), points(M, N, dtype, seed)
    rng = np.random.default_rng(seed)
    for a in arrays:
        a[rng.integers(len(a)), 0] = rng.choice([0.0, 1e20, 1e30, np.inf, np.nan] if seed else [0.0, 1.0])
    before = fold(spec, points(M, 40, dtype, 7), M, 40)
    if seed:
        for a in before:
            if a.dtype.kind == "f":
                a[..., M // 2] = rng.choice([np.inf, -np.inf, np.nan])
    with monkeypatch.context() as m:
        found = fold(spec, arrays, M, N, before, threads=1)
        m.setattr(cpu_calls, "SHARE", 1.0)
        assert {packed(fold(spec, arrays, M, N, before, threads=t)) for t in (2, 3)} == {packed(found)}
        m.setattr(cpu_calls, "CALL", 1e4)
        assert len({packed(fold(spec, arrays, M, N, before, threads=t)) for t in (1, 3)}) == 1
    tolerance = 1e-11 if dtype == "float64" else 3e-5 if acc == "float64" else 2e-3
    want = plain(spec, arrays, M, N, before)
    for a, b in zip(rebased(spec, found, want), want, strict=True):
        if a.dtype == np.int64:
            np.testing.assert_array_equal(a, b)
            continue
        fine = np.isfinite(b)
        np.testing.assert_array_equal(a[~fine], b[~fine])
        size = np.where(fine, np.abs(b), 0).astype(np.float64)
        assert (np.abs(a[fine].astype(np.float64) - b[fine]) <= tolerance * (1 + size + size.max(0))[fine]).all()


@pytest.mark.parametrize("names", SWEEPS, ids=" ".join)
def test_several_reductions_in_one_sweep(names, monkeypatch):
    for seed, (M, N) in enumerate([(33, 600), (17, 130), (2, FEW + 65)]):
        check_sweep(names, M, N, monkeypatch, seed=seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60))
def test_any_reductions_in_one_sweep(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    names = tuple(rng.choice(list(PARTS), rng.integers(1, 5), replace=False))
    dtype, acc = [("float32", "float64"), ("float32", "float32"), ("float64", "float64")][seed % 3]
    for _ in range(4):
        M, N = int(rng.choice([1, 2, 5, 15, 16, 33, 50])), int(rng.choice([1, 63, 64, 65, 130, 1000, 4097, 6000]))
        check_sweep(names, M, N, monkeypatch, dtype, acc, int(rng.integers(100)))


def test_bits_do_not_depend_on_what_memory_held(monkeypatch):
    for names in SWEEPS:
        check_memory(names, monkeypatch)


def check_memory(names, monkeypatch):
    spec, taken = sweep(names), np.empty
    for M, N in [(5, 70), (33, 130)]:
        arrays, found = points(M, N), set()
        for byte in (0xFF, 0x3C):

            def filled(*a, byte=byte, **more):
                new = taken(*a, **more)
                if new.dtype == np.uint8:
                    new[...] = byte
                return new

            with monkeypatch.context() as m:
                m.setattr(np, "empty", filled)
                m.setattr(cpu_memory, "_spare", [])
                found.add(packed(fold(spec, arrays, M, N)))
        assert len(found) == 1


@pytest.mark.parametrize(("reduction", "weight"), [("LogSumExp", None), ("SoftMax", "g"), ("Max_SumShiftExp", None)])
def test_a_pair_costs_one_exponential(reduction, weight):
    """Whose argument begins with the reference, where a reference may stay: nothing is subtracted from the term."""
    spec = made(reduction, "-SqDist(x,y)", ["x=Vi(3)", "y=Vj(3)", "g=Vj(2)"], weight)
    roots = lower.lower(spec, cpu.UNROLL, hoist=True).roots
    ops = [e.op for e in walk([step for root in roots for step in root.quick.steps]) if e.axes == IJ]
    assert sum(op.startswith("exp2s") for op in ops) == 1
    assert "exp" not in ops
    stays = reduction != "Max_SumShiftExp"
    assert ("exp2s_stay" in ops, ops.count("sub"), "neg" in ops) == (stays, 3 if stays else 4, not stays)


def test_records_that_are_not_written_are_noticed(monkeypatch, forget):
    stage = RecordText.stage
    monkeypatch.setattr(RecordText, "stage", lambda self, axis, *a: None if axis == I else stage(self, axis, *a))
    with pytest.raises(AssertionError):
        check_memory(("sum", "argmin"), monkeypatch)


# tiles that are done again --------------------------------------------------------------------------------------------


def check_redo():
    """Where a sum overflows, a tile keeps the state that it has had, and is to be done again from the beginning."""
    variables = ["x=Vi(3)", "y=Vj(3)", "e=Vi(1)"]
    spec = made("Sum", "e*Square(x+y)", variables)
    kernel = cpu.compiled(spec)
    panel, tile = kernel.program.plan.panel, kernel.program.plan.tile
    B, M, N = 2, 2 * tile + 5, 3 * panel
    rng = np.random.default_rng(0)
    x, y, e = (rng.normal(size=s).astype("f4") for s in ((B, M, 3), (B, N, 3), (B, M, 1)))
    e[1, tile] = 1e-20  # small, so that the term is fine
    y[1, panel + 7] = 2e19  # and its square is not
    strides = [3 * M, 3 * M, 3 * N, M]
    # batch, rows, intervals, tiles before: one whole batch, and two blocks of rows of the other one
    items = [(0, 0, M, 0, 2, 0), (1, 0, tile + 3, 0, 2, 3), (1, tile + 3, M, 2, 3, 5)]
    intervals = [(3, 40), (50, N), (0, panel)]
    before = rng.normal(size=(B, 3, M))
    state = before.copy()
    redo = call(kernel, [x, y, e], strides, items, intervals, [state], M)
    assert redo.tolist() == [[-1, -1]] * 3 + [[0, 3]] * 2 + [[-1, -1]] * 2
    squares = np.square(x.astype("f8")[:, :, None] + y[:, None]) * e[:, :, None]
    want = np.concatenate([squares[:, :, 3:40], squares[:, :, 50:]], 2).sum(2)
    want[1, tile + 3 :] = squares[1, tile + 3 :, :panel].sum(1)
    want = before + np.moveaxis(want, 2, 1)
    want[1, :, : tile + 3] = before[1, :, : tile + 3]
    np.testing.assert_allclose(state, want, rtol=1e-5)


def test_a_tile_that_stops_keeps_what_it_had():
    check_redo()


def test_a_sum_that_nobody_looks_at_is_noticed(monkeypatch, forget):
    monkeypatch.setattr(llvm._Fold, "_finite", lambda self, count: "true")
    with pytest.raises(AssertionError):
        check_redo()


# accuracy -------------------------------------------------------------------------------------------------------------

MILLION = 10**6


def worst(D, M, **more):
    """The relative error of sums of a million terms: a large one first in every chain, then many small ones."""
    spec = made("Sum", "y+0*x", [f"y=Vj({D})", "x=Vi(1)"])
    spec = dataclasses.replace(spec, **more)
    N = MILLION // (1 if D < 10 else 10)
    out = 0.0
    for small in (2.0**-24 * 0.99, 2.0**-24 * 1.01, 2.0**-23 * 0.76):
        for length in (8, 16, 64, 256):
            terms = np.full((N, D), small, np.float32)
            terms[:: length if M > 4 else 16 * length] = 1
            exact = terms[:, 0].astype(np.float64).sum()
            found = fold(spec, [terms, np.zeros((M, 1), "f4")], M, N)[0]
            out = max(out, np.abs(found / exact - 1).max())
    return out


@pytest.mark.parametrize(("D", "M"), [(1, 16), (1, 1), pytest.param(40, 16, marks=pytest.mark.slow)])
def test_the_worst_order_of_a_million_terms(D, M):
    assert worst(D, M) <= 1e-6


def test_longer_chains_are_noticed():
    assert worst(1, 16, chain=64) > 1e-6
