"""Vectors longer than what is unrolled, nested in each other: loops over components on every target."""

import re
import threading

import numpy as np
import pytest

from dred.errors import LimitError
from dred.formula.language import formula
from dred.formula.oracle import dense
from dred.kernel import cpu, cpu_calls, engine, llvm
from dred.kernel.cuda_schedule import UNROLL
from dred.kernel.cuda_source import rendered
from dred.kernel.ir import walk
from dred.kernel.lower import lower
from dred.kernel.spec import KernelSpec
from tests.kernel.test_cuda_source import ARCHITECTURES, check_use, needs_compiler, needs_nvrtc, some
from tests.shim import shim

M, N = 19, 37  # more than a tile of rows, more than a chain of columns
ALIASES = ("x = Vi(40)", "y = Vj(40)", "z = Vj(25)", "A = Pm(1600)", "s = Vi(1)", "t = Vj(1)", "B = Vi(120)")
SHAPES = ((M, 40), (N, 40), (N, 25), (1600,), (M, 1), (N, 1), (M, 120))

FORMULAS = (
    "(MatVecMult(A, x - y) | x - y)",
    "Grad((MatVecMult(A, x - y) | x - y), x, s)",
    "Grad(Exp(-SymSqNorm(A, x - y) / 100), A, s)",
    "MatVecMult(TensorProd(x, y), Exp(y - x))",
    "VecMatMult(x - y, TensorProd(x, y - x))",
    "TensorProd(x, z)",
    "TensorProd(x - y, z * s)",
    "Norm2(x - y) * TensorProd(x - Elem(y, 3), z)",
    "TensorProd(MatVecMult(A, x * y), y)",
    "A * TensorProd(MatVecMult(A, y), y) * s",
    "Sum(TensorProd(MatVecMult(A, x - y), y))",
    "let u = TensorDot(2, x, [1, 1], [2, 20], [], [], [0, 2, 1, 3]);"
    " TensorDot(2, OneHot(ArgMax(u), 40) * y, [1, 1], [2, 20], [], [], [0, 2, 1, 3])",
    "Kron(x, z, [5, 8], [5, 5])",
    "TensorDot(x * t, y, [4, 5, 2], [2, 5, 4], [0, 1], [2, 1], [1, 0])",
    "TensorDot(B, Exp(y), [3, 40], [40], [1], [0])",
    "TensorDot(B * t, Concat(y, x), [2, 3, 20], [4, 20], [2], [1], [2, 0, 1])",
    "Grad(TensorDot(B * t, y, [3, 40], [40], [1], [0]), B, Extract(x, 0, 3))",
    "TensorProd(Concat(x, y), z)",
    "TensorProd(z, Concat(x, y))",
    "Sum(Square(Kron(Concat(x, y), Concat(z, Concat(z, z)), [10, 8], [15, 5])))",
    "Sum(Exp(Extract(TensorProd(x - y, z), 13, 701) / 10))",
    "ComplexMult(x, y)",
    "ComplexAbs(ComplexMult(Extract(x, 1, 26), Concat(z, t)) - ComplexExp1j(Extract(y, 0, 13)))",
    "Grad(ComplexSquareAbs(ComplexMult(x, y)), x, Extract(x * t, 0, 20))",
    "Max(x - y) + Min(x * y)",
    "ArgMax(x - y) - ArgMin(x * y)",
    "OneHot(ArgMax(x - y), 40) * y",
    "Grad(Max(x - y), x, t)",
    "BSpline(y, s, 3)",
    "Grad(BSpline(y, s, 1), s, Extract(x, 0, 38))",
    "(IndexI() < IndexJ()) * x * y",
    "Sum(x * IndexJ()) + Elem(y, 0) * IndexI()",
    "Laplacian(Exp(-SqDist(x, y) / 40), x)",
    "Divergence(x * Exp(-SqDist(x, y) / 40), x)",
    "Diff(Norm2(MatVecMult(A, x - y)), x, y)",
    "let u = MatVecMult(A, x - y); let v = VecMatMult(x - y, A); (u | v) * Exp(-Norm2(u) / 100) * v",
)


def made(text, dtype, axis):
    f = formula(text, ALIASES)
    return f, KernelSpec.of(f.node, "Sum", axis, dtype, "float64", 8, f.variables)


TYPES = ("float32", "float64")


def data():
    rng = np.random.default_rng(7)
    arrays = [rng.uniform(-1, 1, shape) for shape in SHAPES]
    arrays[1].sort(axis=1)  # knots
    return arrays


def assert_right(f, got, dtype, axis):
    arrays = [a.astype(dtype) for a in data()]
    terms = np.broadcast_to(dense(f.node, arrays, (M, N)), (M, N, f.node.dim))
    want, scale = terms.sum(axis).T, np.abs(terms).sum(axis).T
    tolerance = {"float32": 3e-5, "float64": 1e-12}[dtype]
    assert got.shape == want.shape
    assert np.all(np.abs(got - want) <= tolerance * (1 + scale.max(1, keepdims=True)))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("unroll", [1, cpu.UNROLL])
@pytest.mark.parametrize("text", FORMULAS)
def test_on_the_cpu(text, unroll, axis):
    dtype = "float32" if axis else "float64"
    f, spec = made(text, dtype, axis)
    kept, reduced = (M, N) if axis else (N, M)
    kernel = cpu.build(llvm.render(lower(spec, unroll), spec.dtype, spec.acc, spec.chain))
    state = engine.empty(spec, kept)
    arrays = [np.ascontiguousarray(a, dtype) for a in data()]
    cpu._calls(
        kernel, arrays, state, [cpu_calls.Call.of(kernel.program.plan, 0, kept, 0, reduced)], (0, 0), threading.Event()
    )
    assert_right(f, state[0], dtype, axis)


@pytest.mark.parametrize("text", FORMULAS)
def test_by_the_interpreter(text):
    f, spec = made(text, "float64", 1)
    (state,) = engine.fold(spec, "numpy", engine.empty(spec, M), data(), M, N)
    assert_right(f, state, "float64", 1)


@needs_compiler
@pytest.mark.parametrize(
    ("dtype", "part"),
    [pytest.param(t, p, marks=[pytest.mark.slow] * ((t, p) != ("float32", 0))) for t in TYPES for p in range(3)],
)
def test_in_the_shim(dtype, part):
    """A third of the formulas in one type, all others in the slow tier."""
    specs = [made(text, dtype, n % 2) for n, text in enumerate(FORMULAS) if n % 3 == part]
    unrolled = UNROLL[dtype] if dtype == "float32" else 2
    sources = [rendered(s, f"k{n}", unrolled) for n, (_, s) in enumerate(specs)]
    library = shim.compile_sources(sources, ["-O0"])
    for n, (f, s) in enumerate(specs):
        kept, reduced = (M, N) if s.axis else (N, M)
        state = shim.run(library, sources[n], [a.astype(dtype) for a in data()], kept, reduced)[0]
        assert_right(f, state, dtype, s.axis)


@needs_nvrtc
@pytest.mark.parametrize("text", some(FORMULAS, 4))
def test_nvrtc_compiles_without_spills(text):
    place = FORMULAS.index(text)
    dtype = ("float32", "float64")[place % 2]
    _, s = made(text, dtype, 1)
    spills = 100 if text.startswith("TensorDot(x * t") else 0  # of 40 + 40 components at a time, all unrolled
    check_use(rendered(s), ARCHITECTURES[place % 3], 255, spills)


def nested(depth, n):
    """Matrices of n x n one after another on x, with Tanh between them."""
    text = "x"
    for _ in range(depth):
        text = f"MatVecMult(A, Tanh({text}) * t)"
    return formula(text, [f"x = Vi({n})", f"A = Pm({n * n})", "t = Vj(1)"])


def test_products_of_products_are_computed_once_where_they_are_short():
    """Unrolled, each product of a matrix and a vector of 16 is 256 multiply-adds; in loops in loops, 16 times more."""
    f = nested(3, 16)
    kernel = lower(KernelSpec.of(f.node, "Sum", 1, "float64", "float64", variables=f.variables), cpu.UNROLL)
    assert not any(e.free for group in kernel.folds.values() for e in group)
    assert kernel.cost < 3 * 256 * 2 + 3 * 16 * 70


def test_the_cost_counts_what_loops_in_loops_repeat():
    costs = []
    for depth in (1, 2, 3):
        f = nested(depth, 40)
        costs.append(lower(KernelSpec.of(f.node, "Sum", 1, "float64", "float64", variables=f.variables), 8).cost)
    assert costs[1] > 30 * costs[0]
    assert costs[2] > 30 * costs[1]


def test_what_takes_for_ever_is_refused():
    f = nested(8, 40)
    with pytest.raises(LimitError, match=r"the formula takes more than 1e\+10 operations at every pair"):
        lower(KernelSpec.of(f.node, "Sum", 1, "float64", "float64", variables=f.variables), 8)


def test_loops_in_loops_are_written_once():
    sizes = []
    for depth in (1, 2, 3, 4):
        f = nested(depth, 40)
        kernel = lower(KernelSpec.of(f.node, "Sum", 1, "float64", "float64", variables=f.variables), 8)
        sizes.append(len(llvm.render(kernel, "float64", "float64", 32).text))
    assert sizes[3] - sizes[2] < 2 * (sizes[2] - sizes[1]) + 10_000


@pytest.mark.parametrize(
    "text",
    ["(MatVecMult(A, x) | y)", "TensorProd(x, y)", "ComplexMult(x, y)", "Max(x - y)", "OneHot(t, D) * x",
     "BSpline(y, t, 2)", "Laplacian(Exp(-SqDist(x, y)), x)", "Grad(Norm2(MatVecMult(A, x - y)), x, t)",
     "Kron(x, y, [2, D/2], [D/2, 2])"],
)  # fmt: skip
def test_the_size_of_a_kernel_does_not_grow_with_the_dimension(text):
    sizes = []
    for D in (100, 1000):
        aliases = [f"x = Vi({D})", f"y = Vj({D})", f"A = Pm({D * D})", "t = Vj(1)"]
        node = formula(re.sub(r"\bD\b", str(D), text.replace("D/2", str(D // 2))), aliases).node
        kernel = lower(KernelSpec.of(node, "Sum", 1, "float32", "float64"), cpu.UNROLL)
        sizes.append(len(walk(kernel.steps)))
    assert sizes[0] == sizes[1] < 150
