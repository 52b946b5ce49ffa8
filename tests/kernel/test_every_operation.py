"""Every operation of the table with its derivatives, unrolled and in loops, on every target, against the oracle."""

import threading
from typing import NamedTuple

import numpy as np
import pytest

from dred.formula.derive import jvp, vjp
from dred.formula.language import Variable
from dred.formula.node import Node, var
from dred.formula.op import Op
from dred.formula.ops import OPS
from dred.formula.oracle import dense
from dred.formula.rewrite import build, expand
from dred.kernel import cpu, cpu_calls, cuda, engine, llvm
from dred.kernel.cuda_schedule import UNROLL
from dred.kernel.cuda_source import rendered
from dred.kernel.lower import lower
from dred.kernel.spec import KernelSpec
from tests.formula import checks
from tests.kernel.test_cuda_source import ARCHITECTURES, check_use, needs_compiler, needs_nvrtc
from tests.shim import shim

M, N = checks.M, checks.N
TOLERANCE = {"float32": 2e-5, "float64": 1e-12}
# Value, gradients and derivative in a direction at once: more values at a time than there are registers, written out.
SPILLS = {"BSpline": 3000, "SoftDTW_SqDist": 4000}  # bytes
WAYS = [("float64", 1), ("float32", 32)]  # all vectors are loops; none is


class Problem(NamedTuple):
    """A call with its gradients and its derivative in a direction, one after another, and data."""

    node: Node
    variables: tuple[Variable, ...]
    arrays: list[np.ndarray]


def problem(op: Op) -> Problem:
    dims, attrs = checks.example(op)
    inputs = checks.declared(dims)
    f = expand(op.name, inputs, attrs)
    e = var(len(inputs), f.dim, 1)
    tangents = [var(len(inputs) + 1 + k, v.dim, v.attrs[1]) for k, v in enumerate(inputs)]
    node = f
    for g in (*vjp(f, inputs, e), jvp(f, inputs, tangents)):
        node = build("Concat", (node, g))
    rng = np.random.default_rng(6)
    values = checks.sampled(op, inputs, rng)
    arrays = [*values, rng.uniform(-1, 1, (N, f.dim)), *(rng.uniform(-1, 1, a.shape) for a in values)]
    declared = tuple(Variable(v.attrs[0], v.dim, v.attrs[1]) for v in (*inputs, e, *tangents))
    return Problem(node, declared, arrays)


def spec(op: Op, dtype: str, axis: int) -> KernelSpec:
    p = problem(op)
    return KernelSpec.of(p.node, "Sum", axis, dtype, "float64", 4, p.variables)


def assert_right(op: Op, got: np.ndarray, dtype: str, axis: int) -> None:
    """The state (D, rows) is the oracle's sum over the axis, for the arrays as rounded to the type."""
    p = problem(op)
    terms = np.broadcast_to(dense(p.node, [a.astype(dtype) for a in p.arrays], (M, N)), (M, N, p.node.dim))
    want, scale = terms.sum(axis).T, np.abs(terms).sum(axis).T
    assert got.shape == want.shape
    assert np.isfinite(want).all()
    assert np.all(np.abs(got - want) <= TOLERANCE[dtype] * (1 + scale))


def rows(axis: int) -> tuple[int, int]:
    return (M, N) if axis == 1 else (N, M)


# each axis with one of the ways in the fast tier, with the other one in the slow tier
CROSSED = [
    pytest.param(*way, axis, marks=[pytest.mark.slow] * (n != axis)) for n, way in enumerate(WAYS) for axis in (0, 1)
]


@pytest.mark.parametrize(("dtype", "unroll", "axis"), CROSSED)
@pytest.mark.parametrize("name", OPS)
def test_on_the_cpu(name, dtype, unroll, axis):
    s = spec(OPS[name], dtype, axis)
    kernel = cpu.build(llvm.render(lower(s, unroll), s.dtype, s.acc, s.chain))
    kept, reduced = rows(axis)
    state = engine.empty(s, kept)
    arrays = [np.ascontiguousarray(a, dtype) for a in problem(OPS[name]).arrays]
    cpu._calls(
        kernel, arrays, state, [cpu_calls.Call.of(kernel.program.plan, 0, kept, 0, reduced)], (0, 0), threading.Event()
    )
    assert_right(OPS[name], state[0], dtype, axis)


# a fourth of the operations, written out, in the fast tier; the rest of both ways in the slow one
PARTS = [pytest.param(*way, part, marks=[pytest.mark.slow] * (way != WAYS[1] or part > 0)) for way in WAYS
         for part in range(4)]  # fmt: skip


@needs_compiler
@pytest.mark.parametrize(("dtype", "unroll", "part"), PARTS)
def test_in_the_shim(dtype, unroll, part):
    """Compiled as one library, without optimization: that is what takes the time."""
    mine = {name: n for n, name in enumerate(OPS) if n // 2 % 4 == part}  # each over one axis, both in every part
    made = {name: rendered(spec(OPS[name], dtype, n % 2), f"k{n}", unroll) for name, n in mine.items()}
    library = shim.compile_sources(list(made.values()), ["-O0"])
    for name, source in made.items():
        axis = mine[name] % 2
        state = shim.run(library, source, problem(OPS[name]).arrays, *rows(axis))[0]
        assert_right(OPS[name], state, dtype, axis)


@needs_nvrtc
@pytest.mark.parametrize("name", list(OPS)[::10])
def test_nvrtc_compiles_without_spills(name):
    """Some, for architectures, types and ways to write vectors in turn; all of them are in the slow tier."""
    place = list(OPS).index(name)
    dtype = ("float32", "float64")[place % 2]
    check_nvrtc(name, dtype, UNROLL[dtype], ARCHITECTURES[place % 3])


@needs_nvrtc
@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", OPS)
def test_nvrtc_compiles_all_without_spills(name, dtype, architecture):
    check_nvrtc(name, dtype, UNROLL[dtype], architecture)
    if architecture == ARCHITECTURES[0]:
        check_nvrtc(name, dtype, 1, architecture)


def check_nvrtc(name, dtype, unroll, architecture):
    s = spec(OPS[name], dtype, 1)
    spills = SPILLS.get(name, 0)
    source = rendered(s, unroll=unroll)
    check_use(source, architecture, 255 if spills else None, spills)


@pytest.mark.gpu
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", OPS)
def test_on_a_device(name, dtype, axis):
    s = spec(OPS[name], dtype, axis)
    kept, reduced = rows(axis)
    arrays = [np.ascontiguousarray(a, dtype) for a in problem(OPS[name]).arrays]
    (state,) = cuda.fold(s, engine.empty(s, kept), arrays, kept, reduced)
    assert_right(OPS[name], state, dtype, axis)


def test_the_comparison_can_fail():
    op = OPS["Exp"]
    s = spec(op, "float64", 1)
    arrays = [np.ascontiguousarray(a) for a in problem(op).arrays]
    (state,) = engine.fold(s, "numpy", engine.empty(s, M), arrays, M, N)
    assert_right(op, state, "float64", 1)
    with pytest.raises(AssertionError):
        assert_right(op, state * (1 + 1e-9), "float64", 1)
