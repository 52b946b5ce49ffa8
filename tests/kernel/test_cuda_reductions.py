"""Every entry of the table of reductions on CUDA sources: run through the shim, compiled by NVRTC, on a device."""

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from dred.formula.language import formula
from dred.kernel import cuda, cuda_launch, interpret
from dred.kernel.cuda_schedule import THREADS, schedule
from dred.kernel.cuda_source import rendered
from dred.kernel.lower import lower
from dred.kernel.output import empty
from dred.kernel.spec import KernelSpec
from dred.reductions import REDUCTIONS
from tests.kernel.reduction_cases import (
    LOST,
    Case,
    arrays,
    assert_near,
    assert_results,
    assert_states,
    every_case,
    referred,
    spec_of,
)
from tests.kernel.test_cuda_source import ARCHITECTURES, check_use, needs_compiler, needs_nvrtc
from tests.shim import fake_cupy, shim

FAR = 2**33 + 5  # a row number beyond 32 bits
TOGETHER = 40  # kernels of one library
# The fast tier has each reduction with some of its weights and parameters, in one type and over one axis; the slow one
# a third of the others, the soak tier the rest. (Pairs of properties meet in `test_covering`.)
FAST = [case for n, case in enumerate(every_case()) if n % 37 == 0 or (case.D == 3 and n % 23 == 0)]
FAST += [next(case for case in every_case() if case.reduction == name and case not in FAST) for name in REDUCTIONS]
REST = [case for case in every_case() if case not in FAST]
SLOW = REST[::3]
SOAK = [case for case in REST if case not in SLOW]


class Built:
    """Kernels of specs in libraries of the shim."""

    def __init__(self, specs, prefix: str = "k") -> None:
        self.specs = list(specs)
        self.sources = [rendered(spec, f"{prefix}{n}") for n, spec in enumerate(self.specs)]
        parts = range(0, len(self.specs), TOGETHER)
        with ThreadPoolExecutor(2) as pool:
            self.libraries = list(pool.map(
                lambda low: shim.compile_sources(self.sources[low : low + TOGETHER], ["-O0"]), parts))  # fmt: skip

    def run(self, n, given, M, N, **more):
        spec = self.specs[n]
        return shim.run(self.libraries[n // TOGETHER], self.sources[n], spec.arrays(given), M, N, **more)


@pytest.fixture(
    scope="session",
    params=["fast", pytest.param("slow", marks=pytest.mark.slow), pytest.param("soak", marks=pytest.mark.soak)],
)
def tier(request):
    cases = {"fast": FAST, "slow": SLOW, "soak": SOAK}[request.param]
    return cases, Built([case.spec for case in cases])


def read(case: Case, state, part: int = 0, spec: KernelSpec | None = None):
    return [output.read(spec or case.spec, state) for output in case.outputs(part)]


def test_the_tiers_hold_every_entry():
    assert {case.reduction for case in FAST} == set(REDUCTIONS)
    assert {case.reduction for case in SLOW} == set(REDUCTIONS)
    assert len(FAST) + len(SLOW) + len(SOAK) == len(every_case())
    assert {(case.axis, case.dtype) for case in SLOW} == {(a, t) for a in (0, 1) for t in ("float32", "float64")}
    assert {(case.axis, case.dtype) for case in FAST} == {(a, t) for a in (0, 1) for t in ("float32", "float64")}


@needs_compiler
def test_ties_are_those_of_the_interpreter_and_of_numpy(tier):
    """Exactly, but for what sums of exponentials round, and quotients; with several splits, from far row numbers on."""
    for n, case in enumerate(tier[0]):
        M, N = 9, 2 * tier[1].sources[n].tile_columns + 19
        given = arrays(case, *case.rows(M, N))
        got = tier[1].run(n, given, M, N, row0=7, column0=FAR, splits=1 + n % 3)
        want = interpret.fold(case.spec, empty(case.spec, M), case.spec.arrays(given), M, N, i0=7, j0=FAR)
        assert_states(case.spec, got, want)
        if case.reduction != "Prod" or np.isfinite(got[0]).all():  # else zeros meet what is too large
            assert_results(case, read(case, got), case.numpy(given, FAR))


@needs_compiler
def test_states_are_near_the_interpreters(tier):
    """Formulas are rounded otherwise; a row number may then be that of another term."""
    for n, case in enumerate(tier[0]):
        for M, N in ((1, 1), (131, 41)):
            given = arrays(case, *case.rows(M, N), seed=n, kind="any")
            state = tier[1].run(n, given, M, N)
            want = interpret.fold(case.spec, empty(case.spec, M), case.spec.arrays(given), M, N)
            state = referred(case.spec, state, want)
            for field, a, b in zip(case.spec.fields, state, want, strict=True):
                if field.kind != "index" and field.name not in LOST:
                    assert_near(a, b, case.spec)


@needs_compiler
def test_special_values(tier):
    """Results: NaN and infinities may be reached on several ways."""
    for n, case in enumerate(tier[0]):
        for M, N in ((1, 1), (131, 41)):
            given = arrays(case, *case.rows(M, N), seed=n, kind="special")
            state = tier[1].run(n, given, M, N)
            want = interpret.fold(case.spec, empty(case.spec, M), case.spec.arrays(given), M, N)
            for a, b in zip(read(case, state), read(case, want), strict=True):
                assert_near(a, b, case.spec)


@needs_compiler
def test_no_rows_and_no_columns(tier):
    for n, case in enumerate(tier[0]):
        for M, N in ((0, 3), (3, 0)):
            state = tier[1].run(n, arrays(case, *case.rows(M, N)), M, N)
            assert_states(case.spec, state, empty(case.spec, M))


@needs_compiler
def test_states_go_on_and_order_of_threads_changes_no_bit(tier):
    """Rows with two intervals, with an empty one, with none; folded onto what other columns have left."""
    intervals = np.array([(0, 20), (20, 20), (31, 70), (0, 1)], np.int64)
    items = np.array([(0, 1, 4, 0, 3), (0, 4, 6, 1, 2), (0, 6, 7, 2, 2), (0, 7, 9, 2, 4)], np.int64)
    for n, case in enumerate(tier[0]):
        M, N = 9, 70
        given = arrays(case, *case.rows(M, N))
        before = tier[1].run(n, given, M, N, column0=1000)
        found = []
        for reverse in (False, True):
            with shim.fibers(reverse):
                found.append(tier[1].run(n, given, M, N, state=before, items=items, intervals=intervals, splits=2))
        assert [a.tobytes() for a in found[0]] == [a.tobytes() for a in found[1]]
        want = tuple(a.copy() for a in before)
        for _, low, high, first, last in items:
            for begin, end in intervals[first:last]:
                rows = [
                    a[slice(low, high) if k == 1 - case.axis else slice(begin, end)] for k, a in enumerate(given[:2])
                ]
                some = [*rows, given[2][begin:end] if case.axis == 1 else given[2][low:high]]
                state = tuple(a[:, low:high] for a in want)
                new = interpret.fold(case.spec, state, case.spec.arrays(some), high - low, end - begin, j0=int(begin))
                for a, b in zip(want, new, strict=True):
                    a[:, low:high] = b
        assert_states(case.spec, found[0], want)


@needs_compiler
def test_launches_change_no_bit(tier, monkeypatch):
    """One tile and one split to a launch, or all at once."""
    for n, case in list(enumerate(tier[0]))[::3]:
        source = tier[1].sources[n]
        M, N = source.tile_rows + 3, source.tile_columns + 5
        given = arrays(case, *case.rows(M, N), kind="any")
        whole = tier[1].run(n, given, M, N, splits=2)
        with monkeypatch.context() as patch:
            patch.setattr(cuda_launch, "LAUNCH_COST", 1.0)
            sliced = tier[1].run(n, given, M, N, splits=2)
        assert [a.tobytes() for a in sliced] == [a.tobytes() for a in whole]


# -- several states in one kernel ----------------------------------------------------------------------------------

# of registers, and of loops
GROUPS = [
    [
        case._replace(D=D, dtype=dtype)
        for case in (
            Case("Sum", 1),
            Case("Max_ArgMax", 1),
            Case("Mean", 1),
            Case("KMin", 1, parameter=3),
            Case("LogSumExp", 1, "y * Sum(x)"),
            Case("Variance", 1, parameter=0),
            Case("Histogram", 1, parameter="few"),
        )
    ]
    for D, dtype in ((1, "float32"), (3, "float64"), (40, "float32"))
]
GROUPS += [
    [
        Case("SoftMax", D, "b * Sum(x)", kahan=True, axis=0),
        Case("SoftMax", D, "y * Sum(x)", axis=0),
        Case("ArgKMax", D, parameter=9, axis=0),
    ]
    for D in (3, 40)
]


@needs_compiler
def test_several_states_in_one_kernel():
    built = Built(map(spec_of, GROUPS))
    for n, cases in enumerate(GROUPS):
        first, spec, M, N = cases[0], built.specs[n], 9, 300
        given = arrays(first, *first.rows(M, N))
        got = built.run(n, given, M, N, splits=2)
        want = interpret.fold(spec, empty(spec, M), spec.arrays(given), M, N)
        assert_states(spec, got, want)
        for part, case in enumerate(cases):
            if case.reduction != "Variance":  # of whole numbers in float32
                assert_results(case, read(case, got, part, spec), case.numpy(given, 0))


# -- long rankings -------------------------------------------------------------------------------------------------


@needs_compiler
def test_thousands_of_places():
    """Fewer than there are terms, with ties of which the last places take some; and more."""
    cases = [Case(f"K{word}_ArgK{word}", 1, parameter=1200) for word in ("Min", "Max")]
    built = Built([case.spec for case in cases])
    for n, (case, N, kind) in enumerate(zip(cases, (3000, 1000), ("ties", "any"), strict=True)):
        given = arrays(case, 2, N, kind=kind)
        got = built.run(n, given, 2, N, splits=3, column0=FAR)
        assert_states(case.spec, got, interpret.fold(case.spec, empty(case.spec, 2), given, 2, N, j0=FAR))


def test_rankings_get_long_splits():
    """So that the merging of splits takes less time than the pairs."""
    few, many = (rendered(Case("KMin", 1, parameter=K).spec) for K in (3, 5000))
    assert cuda.splits_of(few, 1, 4000) == cuda_launch.RANKED
    assert 1 < cuda.splits_of(many, 1, 4000) <= 4000 * many.tile_columns / 5000 / 7


# -- rankings of long vectors --------------------------------------------------------------------------------------

LONG = 40  # components: rows are in memory, and the values of a group of columns in registers


def long_ranking(K: int, D: int = LONG) -> KernelSpec:
    f = formula("SqDist(x, y)", [f"x = Vi({D})", f"y = Vj({D})"])
    return KernelSpec.of(f.node, "KMin_ArgKMin", 1, "float32", "float64", parameter=K)


def fold_of(text: str) -> str:
    """The entry point that meets the pairs."""
    return text[text.index("dred_fold(") : text.index("dred_merge(")]


@needs_compiler
def test_rankings_of_long_vectors():
    """Of whole numbers, so that there are ties, around the edges of groups, chains and tiles; and planted bugs."""
    bugs = {"": "", "= fminf(best": "= fmaxf(best", "some |= ": "some &= ", " + c)))) {": " + 0)))) {"}
    specs = [long_ranking(3), long_ranking(30)]
    sources = [rendered(spec, f"l{n}") for n, spec in enumerate(specs)]
    wrong = [(rendered(specs[0], f"w{n}"), old, new) for n, (old, new) in enumerate(bugs.items())]
    wrong = [
        (source, replace(source, text=source.text.replace(old, new)) if old else source) for source, old, new in wrong
    ]
    assert [a == b for a, b in wrong] == [True, False, False, False]
    library = shim.compile_sources([*sources, *(changed for _, changed in wrong)], ["-O0"])
    rng = np.random.default_rng(0)

    def agrees(spec, source, M, N, splits):
        given = [rng.integers(0, 3, (n, LONG)).astype("float32") for n in (M, N)]
        got = shim.run(library, source, given, M, N, splits=splits, column0=FAR)
        want = interpret.fold(spec, empty(spec, M), given, M, N, j0=FAR)
        return all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))

    TJ = sources[0].tile_columns
    for spec, source in zip(specs, sources, strict=True):
        for M, N, splits in (
            (1, 15, 1),
            (257, 16, 1),
            (5, 17, 1),
            (3, 64 + 9, 1),
            (130, 2 * TJ + 21, 1),
            (2, 3 * TJ, 3),
        ):
            assert agrees(spec, source, M, N, splits), (M, N, splits)
    assert [agrees(specs[0], changed, 130, 2 * TJ + 21, 1) for _, changed in wrong] == [True, False, False, False]


@pytest.mark.parametrize("D", [24, LONG, 1000])
def test_pairs_that_may_rank_are_computed_once(D):
    """Rankings compare what is in registers: there is one loop over components."""
    text = fold_of(rendered(long_ranking(10, D)).text)
    assert text.count("for (int k0 = 0;") == 1
    first = text[text.index("const auto columns") : text.index("fminf(best")]
    assert "best0_0[r] = __int_as_float(0x7f800000);" in first  # of each group anew


@pytest.mark.parametrize(("reduction", "D", "rows"), [("Sum", 20, 2), ("Sum", 24, 4), ("Min", 32, 4), ("KMin", 32, 2)])
def test_vectors_become_loops_where_a_thread_had_one_row(reduction, D, rows):
    f = formula("SqDist(x, y)", [f"x = Vi({D})", f"y = Vj({D})"])
    source = rendered(KernelSpec.of(f.node, reduction, 1, "float32", "float64", parameter=10))
    assert source.tile_rows == rows * THREADS
    assert ("dred_rows(" in source.text) == (D > 20)


@pytest.mark.parametrize(("D", "rows", "copies"), [(8, 2, 2), (16, 1, 4), (32, 1, 1)])
def test_gradients_of_short_vectors_stay_in_registers(D, rows, copies):
    """A loop over their components would read and write the state at every few columns."""
    f = formula("Grad(Exp(-SqDist(x, y)), x, e)", [f"x = Vi({D})", f"y = Vj({D})", "e = Vi(1)"])
    source = rendered(KernelSpec.of(f.node, "Sum", 1, "float32", "float64"))
    assert "dred_rows(" not in source.text
    assert source.tile_rows == rows * THREADS
    assert re.search(rf"#pragma unroll {copies}\n *for \(int t = h; t < h \+ 8; t \+= 1\)", source.text)


@pytest.mark.parametrize("D", [3, LONG, 1000])
def test_chains_of_any_length_are_whole_parts_of_whole_turns(D):
    f = formula("SqDist(x, y)", [f"x = Vi({D})", f"y = Vj({D})"])
    for chain in range(1, 80):
        spec = KernelSpec.of(f.node, "Sum", 1, "float32", "float64", chain=chain)
        kernel = lower(spec, 8, hoist=True, approximate=True)
        s = schedule(kernel, 4, chain)
        assert s.chain % s.part == s.part % s.C == s.TJ % s.chain == 0


# -- the tests can fail --------------------------------------------------------------------------------------------

RANKED = Case("KMin_ArgKMin", 3, parameter=7, dtype="float32")  # in registers
HEAPED = RANKED._replace(parameter=20)
EXPONENTIAL = Case("Max_SumShiftExpWeight", 40, "y * Sum(x)", dtype="float32")
ARGMIN = Case("Min_ArgMin", 3, dtype="float32")
EARLY = "heads are joined before what reads them"
BUGS = {  # in which kernel, what is replaced, and what by
    "none of a ranking": (RANKED, "", ""),
    "none of exponentials": (EXPONENTIAL, "", ""),
    "none of extrema": (ARGMIN, "", ""),
    "joined ties go to the later row": (ARGMIN, "b1 < a1", "a1 < b1"),
    "ties of a chain go to any row": (ARGMIN, "& t", "| t"),
    "row numbers of 32 bits": (ARGMIN, ": column0 + j0 +", ": (int)(column0 + j0) +"),
    "numbers of the tile for those of the matrix": (ARGMIN, ": column0 + j0 +", ": column0 +"),
    "the last of equal terms of a chain": (ARGMIN, " < run0_", " <= run0_"),
    "the worst of a group for its best": (RANKED, "= fminf(best", "= fmaxf(best"),
    "groups pass by": (RANKED, "some |= ", "some &= "),
    "a value of a list is lost": (RANKED, "v = before ? w : v;", ""),
    "a column of a list is another's": (RANKED, "n = before ? o : n;", "n = o;"),
    "columns of a panel for those of the matrix": (RANKED, "ll : column0 + list", "ll : list"),
    "lists compare with the first place": (RANKED, "[r][6]", "[r][0]"),
    "none of a heap": (HEAPED, "", ""),
    "a heap too small": (HEAPED, "c < count", "c + 2 < count"),
    "a heap that is not sorted": (HEAPED, "for (int t = 20 - 1; t > 0; t--)", "for (int t = 0; t > 0; t--)"),
    "the better child moves up": (HEAPED, " c++;", " ;"),
    "the left list alone": (RANKED, "while (b > 0)", "while (b > 7)"),
    "ties of a ranking": (RANKED, "const bool right = ", "const bool right = am[a * as] == bm[b * bs] || "),
    EARLY: (EXPONENTIAL, "", ""),
    "heads of the first split": (
        EXPONENTIAL,
        "const float b0 = partial0[((i64)s ",
        "const float b0 = partial0[((i64)0 ",
    ),
    "heads stay while splits are joined": (EXPONENTIAL, "_join0(a0, b0);", "_join0(b0 == b0 ? a0 : a0, a0);"),
}


def planted(bug: str, text: str) -> str:
    if bug == EARLY:  # in the merging of splits, to be joined once more where they are
        at = text.index("_merge(")
        join = re.search(r"\w+_join0\(a0, b0\);", text)[0]
        return text[:at] + re.sub(r"(const float b0 = .*)", rf"\1 {join}", text[at:], count=1)
    _, old, new = BUGS[bug]
    return text.replace(old, new) if old else text


@needs_compiler
def test_planted_bugs_are_found():
    sources = {}
    for n, (bug, (case, *_)) in enumerate(BUGS.items()):
        source = rendered(case.spec, f"b{n}")
        text = planted(bug, source.text)
        assert (text == source.text) == bug.startswith("none"), bug
        sources[bug] = type(source)(**{**vars(source), "text": text})
    library = shim.compile_sources(list(sources.values()), ["-O0"])
    for bug, (case, *_) in BUGS.items():
        M, N = 150, 900
        given = arrays(case, M, N)
        want = interpret.fold(case.spec, empty(case.spec, M), given, M, N, j0=FAR)
        found = False
        for splits in (1, 3):
            got = shim.run(library, sources[bug], given, M, N, splits=splits, column0=FAR)
            try:
                assert_states(case.spec, got, want)
            except AssertionError:
                found = True
        assert found != bug.startswith("none"), bug


# -- compiled for real architectures -------------------------------------------------------------------------------

# Bytes: four bins of weights at many pairs at a time.
SPILLS = {("Histogram", 40, "Sum(b) * Sum(x)", "few", "float64"): 1000}


def check_compiled(case: Case, architecture: str) -> None:
    spills = SPILLS.get((case.reduction, case.D, case.weight, case.parameter, case.dtype), 0)
    check_use(rendered(case.spec), architecture, 255, spills)


@needs_nvrtc
@pytest.mark.parametrize("name", REDUCTIONS)
def test_nvrtc_compiles_without_spills(name):
    """A case, for one of the architectures; a third of all cases are in the slow tier."""
    for n, case in enumerate([case for case in FAST if case.reduction == name][:1], len(name)):
        check_compiled(case, ARCHITECTURES[n % 3])


@needs_nvrtc
@pytest.mark.slow
@pytest.mark.parametrize("name", REDUCTIONS)
def test_nvrtc_compiles_a_third_without_spills(name):
    """Each for one of the architectures in turn; the soak tier takes all cases for all of them."""
    for n, case in enumerate([case for case in SLOW if case.reduction == name]):
        check_compiled(case, ARCHITECTURES[n % 3])


@needs_nvrtc
@pytest.mark.soak
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", REDUCTIONS)
def test_nvrtc_compiles_all_for_every_architecture(name, architecture):
    for case in every_case():
        if case.reduction == name:
            check_compiled(case, architecture)


@needs_nvrtc
@pytest.mark.parametrize("n", [pytest.param(n, marks=[pytest.mark.slow] * (n > 0)) for n in range(len(GROUPS))])
def test_nvrtc_compiles_several_states(n):
    cubin, _ = cuda.compile_cubin(rendered(spec_of(GROUPS[n])).text, ARCHITECTURES[n % 3])
    assert cubin[:4] == b"\x7fELF"


def test_sources_of_the_same_spec_are_equal():
    for case in FAST:
        assert rendered(case.spec).text == rendered(case.spec).text
        assert "atomic" not in rendered(case.spec).text


# -- through CuPy --------------------------------------------------------------------------------------------------

DEVICE = [
    Case("KMin_ArgKMin", 3, parameter=7),
    Case("Histogram", 3, parameter="many", dtype="float32"),
    Case("SoftMax", 40, "y * Sum(x)"),
    Case("Any", 3, dtype="float32"),
]


@needs_compiler
@pytest.mark.parametrize("case", DEVICE)
def test_the_way_through_cupy(case):
    """States of several types, tables that every call has, and results of every sort."""
    with fake_cupy.installed():
        import cupy

        M, N = 20, 300
        given = arrays(case, M, N)
        state = cuda.fold(case.spec, empty(case.spec, M), case.spec.arrays(given), M, N, j0=FAR)
        assert_states(
            case.spec, state, interpret.fold(case.spec, empty(case.spec, M), case.spec.arrays(given), M, N, j0=FAR)
        )
        results = cuda.reduce_device(case.spec, [cupy.asarray(a) for a in given], M, N, case.outputs())
        assert_results(case, [cupy.asnumpy(a) for a in results], case.numpy(given, 0))


@pytest.mark.gpu
@pytest.mark.parametrize("case", FAST, ids=str)
def test_on_a_device(case):
    import cupy

    for M, N, kind in ((9, 900, "ties"), (300, 40, "special"), (0, 3, "any"), (3, 0, "any")):
        given = arrays(case, *case.rows(M, N), kind=kind)
        state = cuda.fold(case.spec, empty(case.spec, M), case.spec.arrays(given), M, N, j0=FAR)
        want = interpret.fold(case.spec, empty(case.spec, M), case.spec.arrays(given), M, N, j0=FAR)
        for a, b in zip(read(case, state), read(case, want), strict=True):
            assert_near(a, b, case.spec)
    results = cuda.reduce_device(case.spec, [cupy.asarray(a) for a in given], M, N, case.outputs())
    for a, b in zip(results, read(case, empty(case.spec, M)), strict=True):
        assert np.array_equal(cupy.asnumpy(a), b, equal_nan=a.dtype.kind == "f")
