"""Few rows and many columns: lanes are columns, columns are split, and what each part has met is merged in order."""

import ctypes
import itertools
from functools import partial

import numpy as np
import pytest

from dred import Genred
from dred.formula.language import formula
from dred.formula.node import I, J
from dred.kernel import cpu, cpu_calls, cpu_memory, cpu_schedule, engine, llvm
from dred.kernel.cpu_schedule import LANES, split
from dred.kernel.lower import lower
from dred.kernel.output import Output, empty
from dred.kernel.spec import KernelSpec
from tests.kernel.test_hoist import fold, made
from tests.kernel.test_reductions_cpu import EVERY, check, computed, data, problem, wanted
from tests.monoid_cases import Case

N = 4 * cpu_schedule.CHOICES * 16 + 5  # two parts of columns, and a vector that is not full


def lanes_of(spec, M, N):
    return split(spec, M, N).along


@EVERY
@pytest.mark.parametrize(("dtype", "M"), [("float32", 3), ("float64", 1)])
def test_every_reduction(case, dtype, M):
    spec, f, g = problem(case, 2, 1, dtype, 3)
    arrays = data(2, M, N, dtype, 3)
    assert lanes_of(spec, M, N) == J
    check(case, computed(case, spec, arrays), wanted(case, f, g, 1, arrays), dtype)


@pytest.mark.parametrize("case", [Case("Sum"), Case("ArgKMin", False, 3), Case("SoftMax", True)], ids=str)
def test_long_vectors(case):
    spec, f, g = problem(case, 40, 1, "float32", 40)
    arrays = data(40, 2, N, "float32", 40)
    assert lanes_of(spec, 2, N) == J
    check(case, computed(case, spec, arrays), wanted(case, f, g, 1, arrays), "float32")


@pytest.mark.parametrize("dims", [(3, 30), (2, 40), (30, 3), (3, 3), (1, 20)])
def test_short_vectors_inside_loops(dims):
    """A product of tensors reads the components of a short one again and again."""
    f = formula("TensorProd(y, w) * Sum(x)", ["x = Vi(2)", f"y = Vj({dims[0]})", f"w = Vj({dims[1]})"])
    spec = KernelSpec.of(f.node, "Sum", 1, "float32", "float64", variables=f.variables)
    rng = np.random.default_rng(0)
    arrays = [rng.integers(-3, 4, (n, v.dim)).astype("f4") for n, v in zip((2, N, N), f.variables, strict=True)]
    assert lanes_of(spec, 2, N) == J
    x, y, w = (a.astype(np.float64) for a in arrays)
    want = np.einsum("i,jk,jl->ikl", x.sum(1), y, w).reshape(2, -1)
    np.testing.assert_array_equal(fold(spec, arrays, 2, N).T, want)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("dim", range(1, 9))
def test_every_component_is_staged(dim, dtype):
    """Few of them are loaded as vectors of all, of which every dim-th is taken: each in its row, beside the others."""
    f = formula("x*b*Square(y|w)", ["x = Vi(1)", f"y = Vj({dim})", "b = Vj(1)", f"w = Pm({dim})"])
    spec = KernelSpec.of(f.node, "Sum", 1, dtype, "float64", variables=f.variables)
    rng = np.random.default_rng(dim)
    x, y, b = (rng.integers(-2, 3, shape).astype(dtype) for shape in ((3, 1), (N, dim), (N, 1)))
    w = np.arange(1, dim + 1, dtype=dtype)
    assert lanes_of(spec, 3, N) == J
    want = x[:, 0].astype(np.float64) * (b[:, 0].astype(np.float64) @ (y.astype(np.float64) @ w) ** 2)
    np.testing.assert_array_equal(fold(spec, [x, y, b, w], 3, N)[0], want)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("M", [1, 2, 3])
@pytest.mark.parametrize("dim", [9, 20])
@pytest.mark.parametrize("text", ["SqNorm2(x-y)", "SqNorm2(x-w)+y"])
def test_sums_over_components_beside_columns_that_arrive(text, dim, M, dtype, monkeypatch):
    """They are written for several columns at once, which are all staged by then."""
    monkeypatch.setattr(cpu_memory, "_spare", [])
    f = formula(text, [f"x = Vi({dim})", "y = Vj(1)", f"w = Pm({dim})"])
    rng = np.random.default_rng(dim)
    x, y, w = (rng.integers(-2, 3, shape).astype(dtype) for shape in ((M, dim), (N, 1), dim))
    pairs = ((x[:, None] - (y if "w" not in text else w)) ** 2).sum(-1) + (y[:, 0] if "w" in text else 0)
    for reduction, want in (("Sum", pairs.sum(1)), ("Max", pairs.max(1)), ("ArgMin", pairs.min(1))):
        spec = KernelSpec.of(f.node, reduction, 1, dtype, "float64", variables=f.variables)
        assert lanes_of(spec, M, N) == J
        scratch = cpu_memory.taken(cpu.compiled(spec, J).program.scratch, 64)
        ctypes.memset(scratch.at, 0xFF, scratch.size)  # what has not been written is NaN
        cpu_memory.given_back(scratch)
        np.testing.assert_array_equal(fold(spec, [x, y, w], M, N)[0], want)


@pytest.mark.parametrize("more", [0, 1, 15, 16, 17, 255, 1024])
@pytest.mark.parametrize("case", [Case("Sum"), Case("Min_ArgMin"), Case("LogSumExp"), Case("Count")], ids=str)
def test_any_number_of_columns(case, more):
    n = 4 * cpu_schedule.CHOICES * 16 + more
    spec, f, g = problem(case, 2, 1, "float32", 1)
    arrays = data(2, 2, n, "float32", 1)
    check(case, computed(case, spec, arrays), wanted(case, f, g, 1, arrays), "float32")


@pytest.mark.parametrize("name", ["Sum", "LogSumExp", "ArgMin", "Variance"])
@pytest.mark.parametrize("M", [1, 5, 100])
def test_threads_and_calls_change_no_bit(name, M, monkeypatch):
    spec = made("Exp(-SqDist(x,y))*b", reduction=name)
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=s).astype("f4") for s in ((M, 3), (20_000, 3), (20_000, 1))]
    arrays += [np.empty(0, "f4")] * 4
    monkeypatch.setattr(cpu_calls, "SHARE", 1.0)
    monkeypatch.setattr(cpu_schedule, "PART", 1.0)
    monkeypatch.setattr(cpu, "_sizes", cpu._sizes.__wrapped__)  # nothing of that is remembered
    assert len(split(spec, M, 20_000).parts) > 1
    found = {fold(spec, arrays, M, 20_000, threads=t).tobytes() for t in (1, 2, 3, 7)}
    monkeypatch.setattr(cpu_calls, "CALL", 1e4)
    found |= {fold(spec, arrays, M, 20_000, threads=t).tobytes() for t in (1, 2)}
    assert len(found) == 1


@pytest.mark.parametrize("along", [I, J])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("case", [Case("Sum"), Case("KMin_ArgKMin", False, 3), Case("LogSumExp")], ids=str)
def test_any_number_of_parts(case, count, along):
    M, n = 5, 700
    spec, f, g = problem(case, 2, 1, "float32", 1)
    arrays = data(2, M, n, "float32", 1)
    cuts = [n * k // count for k in range(count + 1)]
    kernel, careful = cpu.compiled(spec, along), partial(cpu.compiled, spec, along, hoist=False)
    parts = list(itertools.pairwise(cuts))
    state = cpu.folded(spec, kernel, careful, parts, empty(spec, M), spec.arrays(arrays), M)
    found = engine.finalize(spec, state, Output.of(case.name, 0, case.parameter))
    check(case, found, wanted(case, f, g, 1, arrays), "float32")


def test_what_was_compiled_before_changes_no_bit(monkeypatch):
    """The kernels of a spec for lanes of rows, of columns, and with all factors inside are kept apart."""
    monkeypatch.setattr(cpu, "_kernels", type(cpu._kernels)())
    spec = made("Exp(-g*SqDist(x,y))*b")
    for order in ((I, J), (J, I)):
        cpu._kernels.clear()
        for along in order:
            for hoist in (True, False):
                program = cpu.compiled(spec, along, hoist).program
                assert (program.plan.along, program.hoisted) == (along, hoist)


def test_the_state_given_is_added_to():
    spec = made("x*y")
    arrays = [np.ones((2, 3), "f4"), np.ones((N, 3), "f4"), *[np.empty(0, "f4")] * 5]
    state = (np.full((3, 2), 7.0),)
    (new,) = cpu.fold(spec, state, arrays, 2, N)
    assert (new == 7 + N).all()
    assert (state[0] == 7).all()


def test_the_lowest_row_number_of_equal_terms():
    spec = made("Sum(x*y)", reduction="ArgMin")
    arrays = [np.ones((3, 3), "f4"), np.ones((N, 3), "f4"), *[np.empty(0, "f4")] * 5]
    for first in (0, 17, 4000, N - 1):
        arrays[1][:] = 1
        arrays[1][first::50] = -1
        state = cpu.fold(spec, empty(spec, 3), arrays, 3, N)
        assert (state[1] == first).all()
    arrays[1][:] = np.inf  # a row of infinity has its first column
    assert (cpu.fold(spec, empty(spec, 3), arrays, 3, N)[1] == 0).all()
    arrays[1][:] = np.nan
    assert (cpu.fold(spec, empty(spec, 3), arrays, 3, N)[1] == 2**63 - 1).all()


def test_a_part_that_is_not_finite_is_done_again():
    spec = made("e*Square(x+y)")
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=s).astype("f4") for s in ((3, 3), (N, 3), (N, 1), (1,), (3, 1))]
    arrays += [np.empty(0, "f4")] * 2
    arrays[0][1], arrays[4][:] = 1e19, 1e-30
    x, y, e = (arrays[k].astype(np.float64) for k in (0, 1, 4))
    np.testing.assert_allclose(fold(spec, arrays, 3, N), (e * np.square(x[:, None] + y).sum(1)).T, rtol=1e-5)


@pytest.mark.parametrize(
    ("M", "N", "along", "parts"),
    [(1, 10**7, J, range(8, 17)), (10, 10**7, J, range(4, 7)), (12, 10**7, I, range(32, 65)),
     (100, 10**7, I, range(8, 10)), (2000, 10**6, I, [1]), (10**6, 10**6, I, [1]), (10, 100, I, [1]),
     (1, N, J, range(1, 3))],
)  # fmt: skip
def test_how_calls_are_cut(M, N, along, parts):
    spec = made("Exp(-g*SqDist(x,y))*b")
    found = split(spec, M, N)
    assert found.along == along
    assert len(found.parts) in parts
    assert found.parts[0][0] == 0
    assert found.parts[-1][1] == N
    assert all(
        a[1] == b[0] and a[1] % LANES["float32"] == 0 for a, b in zip(found.parts, found.parts[1:], strict=False)
    )


def test_large_states_bound_the_parts(monkeypatch):
    spec = made("e*v*w*Exp(v|w)")
    assert len(split(spec, 2, 10**7).parts) > 3
    monkeypatch.setattr(cpu_schedule, "STATES", 3 * 8 * 40 * 2 * 16)
    assert len(split(spec, 2, 10**7).parts) == 3


def test_plans_are_printable_and_from_sizes_alone():
    kernel = lower(made("Exp(-g*SqDist(x,y))*b"), 8, hoist=True)
    for along in (I, J):
        plan = llvm.render(kernel, "float32", "float64", 16, along).plan
        assert plan == cpu_schedule.schedule(kernel, "float32", 16, along)
        assert plan.panel % (plan.span * plan.columns) == 0
        assert plan.rows % plan.tile == 0
        assert plan.chain % plan.steps == 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("dim", [3, 9, 20, 40, 70])
@pytest.mark.parametrize("text", ["SqDist(x,y)", "Normalize(x)|Normalize(y)", "SqNorm2(x)*SqNorm2(y)-(x|y)"])
def test_a_pair_has_the_same_value_whatever_the_lanes_are(text, dim, dtype):
    rng = np.random.default_rng(dim)
    x, y = (rng.normal(size=(rows, dim)).astype(dtype) for rows in (40, 9000))
    for expand in {False, text.startswith("SqDist")}:
        routine = Genred(text, [f"x=Vi({dim})", f"y=Vj({dim})"], "Max", axis=1, expand=expand)
        assert cpu_schedule.split(routine.spec(dtype), 4, 9000).along == J
        many, few = (routine(rows, y, backend="cpu")[:4] for rows in (x, x[:4]))
        assert many.tobytes() == few.tobytes()


@pytest.mark.parametrize(
    ("text", "along", "lines"),
    [("Exp(-g*SqDist(x,y))*b", J, 4), ("x*y", J, 3), ("Exp(-g*SqDist(x,y))*b", I, 0), ("e*v*w*Exp(v|w)", J, 0)],
)
def test_the_next_panel_is_fetched(text, along, lines):
    """Of each variable of columns, by all rows in turn; of long vectors, and where rows are many, nothing is.

    The lines are those of a vector of columns; the first row, which stages them, has a text of its own.
    """
    program = llvm.render(lower(made(text), 8, hoist=True), "float32", "float64", 16, along).text
    assert program.count("call void @llvm.prefetch") == 2 * lines
