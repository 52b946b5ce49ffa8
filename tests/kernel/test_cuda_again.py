"""CUDA chains whose sums are not finite, or whose quick steps do not hold, are done again as they were written."""

import ctypes
import dataclasses
import re

import numpy as np
import pytest

from dred.formula.language import formula
from dred.formula.oracle import dense
from dred.kernel import cpu, interpret
from dred.kernel.cuda_source import rendered
from dred.kernel.cuda_text import PRELUDE, indented
from dred.kernel.output import empty
from dred.kernel.spec import KernelSpec
from tests.kernel.reduction_cases import referred
from tests.shim import shim

pytestmark = pytest.mark.skipif(not shim.available(), reason="no C++ compiler")

M, N = 300, 700  # rows of several threads' rows, columns of several tiles
ALIASES = ("x = Vi(3)", "y = Vj(3)", "s = Vi(1)", "t = Vj(1)", "g = Pm(1)", "u = Vi(40)", "v = Vj(40)")
SHAPES = ((M, 3), (N, 3), (M, 1), (N, 1), (1,), (M, 40), (N, 40))
LARGE = {"float32": 1e30, "float64": 1e250}


def data(dtype):
    rng = np.random.default_rng(5)
    return [rng.uniform(-1, 1, shape).astype(dtype) for shape in SHAPES]


def large_factors(arrays, dtype):
    """Rows that are multiplied with what is too large, or too small, to be taken out of a sum; terms that make up."""
    arrays[2][3::50], arrays[2][4::50], arrays[2][5::50] = LARGE[dtype], 1 / LARGE[dtype], 0
    arrays[3][:] /= LARGE[dtype]
    arrays[5][6::50, 3::7] = LARGE[dtype]


def large_exponents(arrays, dtype):
    """Exponentials beyond the range in a few rows, and in a few columns."""
    arrays[0][7::60] *= 1000
    arrays[1][11::90] *= 1000


def odd_parameter(arrays, dtype):
    arrays[4][:] = -LARGE[dtype]


def lost(arrays, dtype):
    for n, value in enumerate((np.nan, np.inf, -np.inf)):
        arrays[0][2 + n :: 70, n % 3] = value
        arrays[0][9 + n :: 70, n % 3] = -value
        arrays[1][20 + n :: 333, n % 3] = value


def far(arrays, dtype):
    """The largest terms of a row come late, from far below."""
    arrays[0][:] *= 3
    arrays[1][:650] *= 40


CASES = {
    "factors of rows": ("s * Exp(-g * SqDist(x, y)) * t", "Sum", large_factors),
    "factors of rows, three sums": ("s * t * (x - y)", "Sum", large_factors),
    "exponents": ("Exp(x + y)", "Sum", large_exponents),
    "exponents and factors": ("Grad(Exp(Sum(x + y)) * t, x, s)", "Sum", large_exponents),
    "parameters": ("Exp(g * SqDist(x, y) / g) * g * t", "Sum", odd_parameter),
    "what is no number": ("Exp(-SqDist(x, y)) * t", "Sum", lost),
    "roots of what is no number": ("Norm2(x - y) * s + Rsqrt(SqDist(x, y))", "Sum", lost),
    "long vectors": ("u * Exp(-Square(Elem(v, 0))) * t", "Sum", large_factors),
    "long vectors that are no numbers": ("Grad(Exp(-SqDist(u, v) / 40) * Elem(x, 0) * t, u, s)", "Sum", lost),
    "means": ("s * Exp(-SqDist(x, y)) * t", "Mean", large_factors),
    "means of what is no number": ("s * Exp(-g * SqDist(x, y))", "Mean", lost),
    "references": ("-SqDist(x, y)", "LogSumExp", far),
    "references that are no numbers": ("-SqDist(x, y)", "LogSumExp", lost),
    "the least": ("SqDist(x, y)", "Min_ArgMin", lost),
    "rankings": ("SqDist(x, y)", "KMin_ArgKMin", lost),
}
KEYS = [(name, dtype, axis) for name in CASES for dtype, axis in (("float32", 1), ("float64", 0))]


def made(name, dtype, axis):
    text, reduction, change = CASES[name]
    f = formula(text, ALIASES)
    arrays = data(dtype)
    change(arrays, dtype)
    parameter = 5 if reduction.startswith("K") else None
    return KernelSpec.of(f.node, reduction, axis, dtype, "float64", variables=f.variables, parameter=parameter), arrays


@pytest.fixture(scope="module")
def built():
    sources = {key: rendered(made(*key)[0], f"k{n}") for n, key in enumerate(KEYS)}
    return sources, shim.compile_sources(list(sources.values()), ["-O0"])


def check(spec, arrays, state):
    """As the interpreter's state, which computes each term as it is written; sums as near as their terms are."""
    kept = M if spec.axis else N
    want = interpret.fold(spec, empty(spec, kept), arrays, kept, N if spec.axis else M)
    size = None
    state = referred(spec, state, want)
    for field, a, b in zip(spec.fields, state, want, strict=True):
        if field.kind in ("index", "count"):
            assert np.array_equal(a, b)
            continue
        finite = np.isfinite(b)
        assert np.array_equal(a[~finite], b[~finite], equal_nan=True), field.name
        with np.errstate(all="ignore"):
            if spec.parts[0].monoid in ("sum", "mean") and size is None:
                size = np.abs(dense(spec.parts[0].formula, arrays, (M, N))).astype(float)
                size = np.broadcast_to(size, (M, N, field.size)).sum(1 if spec.axis else 0).T
            scale = np.abs(b) if size is None else size
            # the error of an exponential is that of its argument
            tolerance = {"float32": 100, "float64": 4000}[spec.dtype] * np.finfo(spec.dtype).eps
            error = np.abs(a - b) / (scale + np.finfo(spec.dtype).tiny)
            assert np.max(error[finite & np.isfinite(scale)], initial=0) <= tolerance, field.name


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_the_results_are_those_of_the_terms_as_written(built, key):
    spec, arrays = made(*key)
    sources, library = built
    kept, reduced = (M, N) if spec.axis else (N, M)
    for splits in (1, 2):
        state = shim.run(library, sources[key], arrays, kept, reduced, splits=splits)
        check(spec, arrays, state)
        with shim.fibers(reverse=True):
            again = shim.run(library, sources[key], arrays, kept, reduced, splits=splits)
        assert [a.tobytes() for a in again] == [a.tobytes() for a in state]


def test_without_doing_again_they_are_not():
    """In each case there is something to be done again, but for rankings, whose terms are never rewritten."""
    keys = [key for key in KEYS if key[1] == "float32" and not key[0].startswith("rankings")]
    sources = {key: rendered(made(*key)[0], f"k{n}") for n, key in enumerate(keys)}
    for key, source in sources.items():
        text = re.sub("bad >> [qr] & 1", "false", source.text)
        assert text != source.text
        sources[key] = dataclasses.replace(source, text=text)
    library = shim.compile_sources(list(sources.values()), ["-O0"])
    passed = []
    for key, source in sources.items():
        spec, arrays = made(*key)
        state = shim.run(library, source, arrays, *((M, N) if spec.axis else (N, M)))
        try:
            check(spec, arrays, state)
            passed.append(key[0])
        except AssertionError:
            pass
    assert not passed


SCALES = {  # products of constants that are no float32, of rows and columns that make up for them
    "a small exponent": ("Exp(-1e-25 * (s * (1e-25 * t)))", "Sum", 1e20, 1e30),
    "a denormal exponent": ("Exp(-1e-23 * (s * (1e-19 * t)))", "Sum", 1e12, 1e30),
    "a large exponent": ("Exp(1e20 * (2.5e18 * (s - t)))", "Sum", 0, 1e-38),
    "small terms": ("1e-25 * (s * (1e-25 * t))", "Sum", 1e20, 1e30),
    "denormal terms": ("1e-23 * (Exp(-s) * s * (1e-19 * t))", "Mean", 1, 1e35),
}


def test_constants_out_of_range_are_not_multiplied():
    aliases = ("s = Vi(1)", "t = Vj(1)")
    specs, sources = [], []
    for n, (text, reduction, *_) in enumerate(SCALES.values()):
        f = formula(text, aliases)
        specs.append(KernelSpec.of(f.node, reduction, 1, "float32", "float32", variables=f.variables))
        sources.append(rendered(specs[n], f"k{n}"))
    library = shim.compile_sources(sources, ["-O0"])
    for name, spec, source, (_, _, s, t) in zip(SCALES, specs, sources, SCALES.values(), strict=True):
        arrays = [np.full((3, 1), s, "float32"), np.full((40, 1), t, "float32")]
        want = interpret.fold(spec, empty(spec, 3), arrays, 3, 40)[-1]
        for got in (shim.run(library, source, arrays, 3, 40), cpu.fold(spec, empty(spec, 3), arrays, 3, 40)):
            np.testing.assert_allclose(got[-1], want, rtol=1e-5, err_msg=name)


def test_powers_of_two_in_float64():
    """Within an ulp up to where a power is 0 or infinite, and so that what follows is done again."""
    text = indented(["typedef long long i64;", *PRELUDE["approx_exp2"].splitlines()])
    text += (
        'extern "C" void go(const double* x, double* y, int n) { for (int i = 0; i < n; i++) y[i] = dred_exp2(x[i]); }'
    )
    go = shim.library(text).go
    rng = np.random.default_rng(1)
    ends = [0, -0.0, 1, -1, 0.5, -0.5, 1021.999, -1021.999]
    x = np.concatenate([rng.uniform(-1022, 1022, 10**6), rng.uniform(-1, 1, 10**6), ends])
    y = np.empty_like(x)
    go(x.ctypes.data_as(ctypes.c_void_p), y.ctypes.data_as(ctypes.c_void_p), len(x))
    want = np.exp2(x.astype(np.longdouble))
    assert np.max(np.abs(y - want) / np.spacing(want.astype(float))) < 1
    assert y[-8] == y[-7] == 1
    x = np.array([-1022.5, -1e9, -np.inf, 1022.0, 1e9, np.inf])
    y = np.empty_like(x)
    go(x.ctypes.data_as(ctypes.c_void_p), y.ctypes.data_as(ctypes.c_void_p), len(x))
    assert y.tolist() == [0, 0, 0, np.inf, np.inf, np.inf]
    x = np.array([np.nan, -np.nan])  # that of a GPU is negative
    go(x.ctypes.data_as(ctypes.c_void_p), y.ctypes.data_as(ctypes.c_void_p), 2)
    assert not (y[:2] < np.inf).any()


def test_chains_of_large_sums_stay_short():
    """Two chains go by at a time, each is added in the compute type; both are done again, each for itself."""
    f = formula("u * v + Exp(1e30 * Elem(u, 0))", ALIASES)
    spec = KernelSpec.of(f.node, "Sum", 1, "float32", "float64", variables=f.variables)
    source = rendered(spec)
    assert "32 at a time; chains of 16" in source.text
    library = shim.compile_sources([source], ["-O0"])
    u, v = np.ones((3, 40), "f4"), np.zeros((61, 40), "f4")
    u[:, 0] = -1
    v[0], v[16:32], v[40], v[48] = 2.0**24, 1, 2.0**24, 1  # in a chain with the first one, 1 would be lost
    v[50, 7] = 1e38
    u[1, 7] = -1e3
    arrays = [np.zeros(shape, "f4") for shape in SHAPES[:5]] + [u, v]
    want = u.astype(float) @ np.diag(v.astype(float).sum(0))
    want[1, 7] = -np.inf
    np.testing.assert_array_equal(shim.run(library, source, arrays, 3, 61)[0].T, want)
