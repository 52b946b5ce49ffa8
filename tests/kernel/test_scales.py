"""Scales of exponents that go into rows: they spare instructions, and cost what is said, not more."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dred import Genred, KernelSolve
from dred.formula.language import formula
from dred.formula.oracle import dense
from dred.kernel.cuda_source import rendered
from dred.kernel.ir import walk
from dred.kernel.lower import _lowered, lower
from dred.kernel.output import Output
from tests.kernel.instructions import REFERENCES
from tests.kernel.test_cuda_source import check_use, needs_compiler, needs_nvrtc
from tests.shim import shim

ALIASES = ["x = Vi(3)", "y = Vj(3)", "b = Vj(1)", "g = Pm(1)", "e = Vi(1)", "v = Vi(40)", "w = Vj(40)"]
GAUSSIAN = "Exp(-g*SqDist(x,y))*b"
# formulas, and instructions that are spared, on the CPU and on GPUs
FASTER = {
    GAUSSIAN: (1, 1),
    "Exp(-SqDist(x,y)/(2*Square(g)))*b": (1, 1),
    f"Grad({GAUSSIAN},x,e)": (1, 1),
    f"Grad({GAUSSIAN},y,e)": (1, 1),
    "Square(e-b)*Exp(x+y)": (3, 3),
    "Exp(g*(x|y))*e": (1, 1),
    "Exp(-3*Sum(Abs(x-y)))": (1, 1),
    "Exp(-Norm2(x-y)/g)*b": (1, 0),  # a root of a GPU has no sign
}
# what would cost more: others read the distance; the scale is one of rows; long vectors
TWO = "Exp(-g*SqDist(x,y))+Exp(-2*g*(x|y))"  # scales
SAME = [
    "(1+g*Norm2(x-y))*Exp(-g*Norm2(x-y))*b",
    "Exp(-e*SqDist(x,y))*b",
    "Exp(-g*SqDist(v,w))*b",
    "SqDist(x,y)*Exp(-g*SqDist(x,y))",
    "g*SqDist(x,y)",
    "Exp(g*e)*b",
]
DTYPES = ["float32", "float64"]
EPS = {"float32": 2.0**-24, "float64": 2.0**-53}
TYPES = pytest.mark.parametrize("dtype", DTYPES)


def routine(text, fast=True, reduction="Sum"):
    return Genred(text, ALIASES, reduction, axis=1, use_fast_math=fast)


def data(dtype, M=37, N=200, g=0.7, far=0.0, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(M, 3), (N, 3), (N, 1), (1,), (M, 1), (M, 40), (N, 40)]
    out = [rng.normal(size=shape).astype(dtype) / 2 for shape in shapes]
    out[0], out[1], out[3][:] = out[0] + out[0].dtype.type(far), out[1] + out[1].dtype.type(far), g
    return out


def terms(text, arrays):
    f = formula(text, ALIASES)
    M, N = len(arrays[0]), len(arrays[1])
    with np.errstate(all="ignore"):
        return np.broadcast_to(dense(f.node, [a.astype(np.float64) for a in arrays], (M, N)), (M, N, f.node.dim))


@TYPES
@pytest.mark.parametrize("text", [*FASTER, *SAME])
def test_instructions_of_a_pair(text, dtype):
    for approximate, spared in zip((False, True), FASTER.get(text, (0, 0)), strict=True):
        slow, fast = (lower(routine(text, fast).spec(dtype), 8, True, approximate) for fast in (False, True))
        assert slow.cost - fast.cost == spared
        assert (fast.size_i, fast.size_j) == (slow.size_i, slow.size_j)


@TYPES
@pytest.mark.parametrize("text", [*FASTER, TWO])
def test_sums_are_right(text, dtype):
    arrays = data(dtype)
    want = terms(text, arrays)
    scale = np.abs(want).sum(1)
    for fast in (False, True):
        got = routine(text, fast)(*arrays, backend="cpu")
        assert (np.abs(got - want.sum(1)) <= 40 * EPS[dtype] * scale.max()).all()


@TYPES
@settings(deadline=None, max_examples=25)
@given(far=st.floats(0, 1000), g=st.floats(0.01, 100), seed=st.integers(0, 99))
def test_exponents_err_by_what_is_said(dtype, far, g, seed):
    """And by much more than without, far from the origin."""
    arrays = data(dtype, 20, 30, g, far, seed)
    x, y = (a.astype(np.float64) for a in arrays[:2])
    distance = np.sqrt(((x[:, None] - y[None]) ** 2).sum(-1))
    size = np.abs(x).sum(-1)[:, None] + np.abs(y).sum(-1)[None]
    want = terms(GAUSSIAN, arrays)[..., 0]
    error = np.abs(routine(GAUSSIAN)(*arrays, backend="cpu")[:, 0] - want.sum(1))
    allowed = (np.abs(want) * (4 * g * size * distance + 20) * EPS[dtype]).sum(1)
    assert (error <= allowed + float(np.finfo(dtype).smallest_subnormal)).all()


def test_the_error_is_there():
    """Else nothing would be gained by leaving it to those who ask for it."""
    arrays = data("float32", far=1000.0, g=5.0)
    want = terms(GAUSSIAN, arrays).sum(1)
    errors = [np.abs(routine(GAUSSIAN, fast)(*arrays, backend="cpu") - want).max() for fast in (False, True)]
    assert errors[1] > 20 * errors[0]


@TYPES
@pytest.mark.parametrize("g", [0.0, -0.0, -0.5, np.nan, np.inf, -np.inf, 1e-42, 1e30, -1e30])
@pytest.mark.parametrize("text", [GAUSSIAN, f"Grad({GAUSSIAN},x,e)", "Exp(g*(x|y))*e", "Exp(-Norm2(x-y)/g)*b"])
def test_a_scale_that_has_no_root_or_is_extreme(text, g, dtype):
    """Then there is the kernel with everything inside."""
    arrays = data(dtype, g=g)
    with np.errstate(all="ignore"):
        slow, fast = (routine(text, fast)(*arrays, backend="cpu") for fast in (False, True))
    np.testing.assert_allclose(fast, slow, rtol=1e4 * EPS[dtype], atol=200 * EPS[dtype])


@TYPES
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 3e38])
def test_rows_that_are_no_numbers(wrong, dtype):
    arrays = data(dtype)
    arrays[0][3, 1] = arrays[1][7, 2] = wrong
    with np.errstate(all="ignore"):
        slow, fast = (routine(GAUSSIAN, fast)(*arrays, backend="cpu") for fast in (False, True))
    np.testing.assert_allclose(fast, slow, rtol=100 * EPS[dtype], atol=100 * EPS[dtype])


@TYPES
@pytest.mark.parametrize("reduction", ["LogSumExp", "Max_SumShiftExp", "SumSoftMax"])
def test_log_sum_exps(reduction, dtype):
    text = "-3*SqDist(x,y)"
    arrays = data(dtype, N=1000)
    weight = {"formula2": "y"} if reduction == "SumSoftMax" else {}
    name = "SumSoftMaxWeight" if weight else reduction
    results = [
        Genred(text, ALIASES, name, axis=1, use_fast_math=fast, **weight)(*arrays, backend="cpu")
        for fast in (False, True)
    ]
    np.testing.assert_allclose(results[1], results[0], rtol=200 * EPS[dtype], atol=200 * EPS[dtype])
    for approximate in (False, True):
        slow, fast = (
            lower(Genred(text, ALIASES, name, axis=1, use_fast_math=fast, **weight).spec(dtype), 8, True, approximate)
            for fast in (False, True)
        )
        # chains that go by other steps have the same rows
        assert (fast.size_i, fast.size_j) == (slow.size_i, slow.size_j)


@pytest.mark.parametrize("weight", ["Step(Elem(x-y,0))", "Elem(x-y,0)<Elem(x-y,1)"])
def test_what_a_last_bit_decides_is_exact(weight):
    soft = Genred("-SqDist(x,y)", ALIASES, "SumSoftMaxWeight", axis=1, formula2=weight, use_fast_math=True)
    _, kernel = _lowered(soft.spec("float32"), 8, True, False, True)
    everything = walk([e for root in kernel.roots for e in (*root.terms, *root.steps)])
    compared = [e for e in walk([e for root in kernel.roots for e in root.terms]) if e.op in ("lt", "le")]
    assert any(e.op == "sqrt" for e in everything)
    assert compared
    assert not any(e.op == "sqrt" for e in walk(compared))


@TYPES
def test_gradients_in_a_random_direction(dtype):
    rng = np.random.default_rng(8)
    arrays = data("float64")
    f, direction, step = routine(GAUSSIAN), rng.normal(size=arrays[0].shape), 1e-5
    e = rng.normal(size=(len(arrays[0]), 1))
    moved = [(e * f(arrays[0] + s * direction, *arrays[1:], backend="cpu")).sum() for s in (step, -step)]
    given_ = [a.astype(dtype) for a in (*arrays, e)]
    got = (f.grad("x")(*given_, backend="cpu") * direction).sum()
    assert f.grad("x").spec(dtype).fast
    np.testing.assert_allclose(got, (moved[0] - moved[1]) / (2 * step), rtol={"float32": 2e-5, "float64": 1e-8}[dtype])


def test_it_is_part_of_the_key():
    slow, fast = (routine(GAUSSIAN, fast).spec("float32") for fast in (False, True))
    assert slow != fast
    assert slow.digest != fast.digest


def test_systems_are_solved_with_it():
    x = np.random.default_rng(1).random((50, 3))
    b = np.ones((50, 1))
    solve = KernelSolve("Exp(-SqDist(x,y))*b", ["x=Vi(3)", "y=Vj(3)", "b=Vj(1)"], "b", axis=1, use_fast_math=True)
    a = solve(x, x, b, alpha=0.1)
    kernel = np.exp(-((x[:, None] - x[None]) ** 2).sum(-1))
    np.testing.assert_allclose(kernel @ a + 0.1 * a, b, atol=1e-5)


# -- GPUs ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def library():
    sources = {
        (text, dtype): rendered(routine(text).spec(dtype), f"k{n}_{dtype}")
        for n, text in enumerate([*FASTER, TWO])
        for dtype in DTYPES
    }
    spec = routine("-3*SqDist(x,y)", reduction="LogSumExp").spec("float32")
    sources["soft"] = rendered(spec, "soft")
    return sources, shim.compile_sources(list(sources.values()), ["-O0"])


@needs_compiler
@TYPES
@pytest.mark.parametrize("g", [0.7, -0.5])
@pytest.mark.parametrize("text", [*FASTER, TWO])
def test_the_source_for_gpus_is_right(library, text, dtype, g):
    sources, built = library
    spec, source = routine(text).spec(dtype), sources[text, dtype]
    for N in (1, 200, source.tile_columns + 1):
        arrays = data(dtype, 19, N, g)
        want = terms(text, arrays)
        state = shim.run(built, source, spec.arrays(arrays), 19, N)
        assert (np.abs(state[0].T - want.sum(1)) <= 60 * EPS[dtype] * np.abs(want).sum(1).max()).all()


@needs_compiler
def test_the_source_of_a_log_sum_exp_is_right(library):
    sources, built = library
    spec = routine("-3*SqDist(x,y)", reduction="LogSumExp").spec("float32")
    arrays = data("float32", 19, 1500)
    state = shim.run(built, sources["soft"], spec.arrays(arrays), 19, 1500)
    (got,) = (output.read(spec, state) for output in Output.of("LogSumExp"))
    want = np.log(np.exp(terms("-3*SqDist(x,y)", arrays)).sum(1))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@needs_nvrtc
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
def test_nvrtc_compiles_it_without_spills(architecture):
    for reference in REFERENCES.values():
        if reference.fast:
            for dtype in DTYPES:
                check_use(reference.source(dtype), architecture)
