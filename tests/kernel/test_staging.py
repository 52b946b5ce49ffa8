"""Records of long vectors, states of blocks of rows, results of long rows: right, and bits that depend on no cut."""

import dataclasses
import threading

import numpy as np
import pytest

from dred.formula.language import formula
from dred.formula.node import I, J
from dred.formula.oracle import dense
from dred.kernel import cpu, cpu_calls, cpu_schedule, llvm, llvm_staging
from dred.kernel.lower import lower
from dred.kernel.output import Output, empty
from dred.kernel.spec import KernelSpec
from tests.kernel.test_cpu import call

TOLERANCE = {"float32": 3e-5, "float64": 1e-13}
TYPES = pytest.mark.parametrize("dtype", TOLERANCE)
ALONG = pytest.mark.parametrize("along", [I, J])

FORMULAS = (
    "Exp(-p*(SqNorm2(x)+SqNorm2(y)-2*(x|y)))*y",  # squared lengths are summed while records are staged
    "Exp(-(2*(x-c)|y-c))*(c-x)",  # computed vectors, which share parameters
    "Normalize(x)|Exp(Normalize(y)*p)",  # what is of a row alone
    "((x<c)|(y<p))*(x<p)",  # truth
    "Sum(c*Square(c-y))+Max(x*p)-Min(y)",  # other folds, and what is no vector
    "TensorProd(x,Extract(y,1,3))",  # a large state
)


def made(text, dim, dtype, reduction="Sum"):
    f = formula(text, [f"x=Vi(0,{dim})", f"y=Vj(1,{dim})", f"c=Pm(2,{dim})", "p=Pm(3,1)"])
    return f.node, KernelSpec.of(f.node, reduction, 1, dtype, "float64", variables=f.variables)


def data(dim, M, N, dtype):
    rng = np.random.default_rng(dim)
    return [
        rng.uniform(-1, 1, shape).astype(dtype) / np.sqrt(dim).astype(dtype) for shape in ((M, dim), (N, dim), dim, 1)
    ]


def built(spec, along=I):
    return cpu.build(llvm.render(lower(spec, cpu.UNROLL, hoist=True), spec.dtype, spec.acc, spec.chain, along))


def folded(kernel, spec, arrays, M, calls, state=None):
    """The state after some calls: first and last row, first and last column."""
    lanes = kernel.program.plan.lanes if kernel.program.plan.along == J else 1
    state = tuple(np.array(f, order="C") for f in (empty(spec, M * lanes) if state is None else state))
    calls = [cpu_calls.Call.of(kernel.program.plan, *call) for call in calls]
    cpu._calls(kernel, arrays, state, calls, (0, 0), threading.Event(), lambda: built_careful(spec))
    return state[0].reshape(len(state[0]), M, lanes)


def built_careful(spec):
    raise AssertionError("nothing is to be done again")


@TYPES
@ALONG
@pytest.mark.parametrize("dim", [9, 15, 16, 17, 31, 32, 45])
@pytest.mark.parametrize("text", FORMULAS)
def test_vectors_of_any_length(text, dim, along, dtype):
    node, spec = made(text, dim, dtype)
    M, N = 21, 53
    arrays = data(dim, M, N, dtype)
    found = folded(built(spec, along), spec, arrays, M, [(0, M, 0, N)]).sum(2)
    terms = np.broadcast_to(dense(node, arrays, (M, N)), (M, N, node.dim))
    assert np.abs(found - terms.sum(1).T).max() <= TOLERANCE[dtype] * np.abs(terms).sum(1).max()


@TYPES
@pytest.mark.parametrize("text", FORMULAS)
def test_bits_do_not_depend_on_how_rows_are_cut(text, dtype, monkeypatch):
    """Nor on how many of them have their states in memory at a time."""
    dim = 37
    _, spec = made(text, dim, dtype)
    M, N = 75, 150
    arrays = data(dim, M, N, dtype)
    kernel = built(spec)
    once = folded(kernel, spec, arrays, M, [(0, M, 0, N)])
    panel = kernel.program.plan.panel
    cuts = [(0, 1), (1, 20), (20, 52), (52, M)]
    assert (folded(kernel, spec, arrays, M, [(*rows, 0, N) for rows in cuts]) == once).all()
    monkeypatch.setattr(cpu_schedule, "STATES_VALUES", 1)
    monkeypatch.setattr(cpu_schedule, "PANEL_BYTES", 1)
    small = built(spec)
    assert small.program.plan.rows == small.program.plan.tile
    assert small.program.plan.panel < panel
    assert small.program.scratch < kernel.program.scratch
    assert (folded(small, spec, arrays, M, [(0, M, 0, N)]) == once).all()


@ALONG
@pytest.mark.parametrize("rows", [1, 16, 17, 40])
@pytest.mark.parametrize(("reduction", "text"), [("Sum", "TensorProd(x,y)"), ("Sum", "(x|y)"), ("Max", "x-y")])
def test_states_go_on_from_what_they_were(reduction, text, rows, along):
    """Of the rows of a call alone: others stay what they are."""
    _, spec = made(text, 17, "float32", reduction)
    M, N = 50, 70
    arrays = data(17, M, N, "float32")
    kernel = built(spec, along)
    before = tuple(np.array(f) for f in empty(spec, M * (kernel.program.plan.lanes if along == J else 1)))
    before[0][:] = np.random.default_rng(0).normal(size=before[0].shape)
    first, last = 3, 3 + rows
    none = folded(kernel, spec, arrays, M, [], before)
    new = folded(kernel, spec, arrays, M, [(first, last, 0, N)], before)
    alone = folded(kernel, spec, arrays, M, [(first, last, 0, N)])
    others = [*range(first), *range(last, M)]
    assert (new[:, others] == none[:, others]).all()
    join = np.add if reduction == "Sum" else np.maximum
    # of sums, what is added up first differs
    np.testing.assert_allclose(new[:, first:last], join(none, alone)[:, first:last], rtol=1e-12, atol=1e-12)


@ALONG
def test_rows_without_columns_keep_states_that_are_not_finite(along):
    """They are not to be done again: there is nothing to do."""
    _, spec = made("Exp(-Square(p))*x*y", 20, "float32")
    arrays = data(20, 3, 5, "float32")
    kernel = built(spec, along)
    assert kernel.program.hoisted
    lanes = kernel.program.plan.lanes if along == J else 1
    state = np.full((20, 3 * lanes), np.inf)
    redo = call(kernel, arrays, [0] * 5, [(0, 0, 3, 2, 2, 0)], [(0, 5), (2, 5)], [state], 3 * lanes)
    assert (redo == -1).all()
    assert (state == np.inf).all()


def test_records_of_long_vectors_lie_odd_numbers_of_cache_lines_apart():
    for dtype, itemsize in (("float32", 4), ("float64", 8)):
        for dim in (3, 40, 128, 250, 256, 1000, 1024):
            _, spec = made("(x|y)", dim, dtype)
            kernel = lower(spec, cpu.UNROLL, hoist=True)
            text = llvm._Fold(kernel, dtype, "float64", cpu_schedule.schedule(kernel, dtype, 16), False, False)
            pitch = text.pitch(J) * itemsize
            assert text.pitch(I) == dim
            if dim * itemsize < llvm_staging.LONG * 64:
                assert pitch == dim * itemsize
            else:
                assert pitch % 128 == 64
                assert dim * itemsize <= pitch < dim * itemsize + 128


def check_turned():
    """A square of numbers, turned round: the columns of x lie next to each other."""
    _, spec = made("x*c", 16, "float32")
    arrays = data(16, 16, 16, "float32")
    found = folded(built(spec), spec, arrays, 16, [(0, 16, 0, 16)])[:, :, 0]
    np.testing.assert_allclose(found, 16 * (arrays[0] * arrays[2]).T, rtol=1e-6)


def test_vectors_are_turned_round():
    check_turned()


def test_vectors_that_are_not_turned_round_are_noticed(monkeypatch):
    monkeypatch.setattr(llvm._Fold, "_turned", lambda self, rows: rows)
    with pytest.raises(AssertionError):
        check_turned()


@pytest.mark.parametrize("size", [1, 16, 17, 40])
@pytest.mark.parametrize("given", [None, "float16"])
def test_results_of_long_rows(size, given):
    """They are turned round some components at a time."""
    _, spec = made("x*y", size, "float32")
    spec = dataclasses.replace(spec, given=given)
    state = np.random.default_rng(0).normal(size=(size, 7))
    (output,) = Output.of("Sum")
    found = output.read(spec, (state,))
    assert found.flags.c_contiguous
    assert found.dtype == (given or "float32")
    assert (found == state.T.astype(found.dtype)).all()
