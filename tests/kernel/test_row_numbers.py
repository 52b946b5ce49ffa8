"""Row numbers: exact where a float32 would not be, and those of the whole arrays wherever a block begins."""

import itertools

import numpy as np
import pytest

from dred.formula.language import formula
from dred.kernel import cuda, engine
from dred.kernel.cuda_source import rendered
from dred.kernel.spec import KernelSpec
from tests.kernel.test_cuda_source import needs_compiler
from tests.shim import shim

M, N = 300, 700
FAR = 2**40 + 1  # beyond float32, and beyond 32 bits

FORMULAS = {  # formula -> its value at every pair
    "(IndexI() == IndexJ()) * t": lambda i, j, s, t: (i == j) * t,
    "(IndexI() != IndexJ()) * s": lambda i, j, s, t: (i != j) * s,
    "(IndexI() - IndexJ() <= 3) * t": lambda i, j, s, t: (i - j <= 3) * t,
    "IfElse(IndexJ() - IndexI() - 2, s, t)": lambda i, j, s, t: np.where(j - i - 2 >= 0, s, t),
    "Abs(IndexI() - IndexJ()) * s": lambda i, j, s, t: abs(i - j) * s,
    "(IndexJ() - IndexI()) * (IndexI() - IndexJ() + 1) * s * t": lambda i, j, s, t: (j - i) * (i - j + 1) * s * t,
    "(IndexI() + IndexI() == IndexJ() + IndexJ()) * t": lambda i, j, s, t: (i == j) * t,
    "(-IndexI() == -IndexJ()) * t": lambda i, j, s, t: (i == j) * t,
    "(3 * IndexI() - 2 < IndexJ() * 3) * s": lambda i, j, s, t: (3 * i - 2 < 3 * j) * s,
    "(IndexI() --IndexJ() == 2 * IndexJ()) * t": lambda i, j, s, t: (i == j) * t,
    "(IndexJ() == 1099511627800) * t": lambda i, j, s, t: (j == 1099511627800) * t + 0 * s,
}


def case(text, axis, dtype):
    f = formula(text, ["s = Vi(1)", "t = Vj(1)"])
    spec = KernelSpec.of(f.node, "Sum", axis, dtype, "float64", variables=f.variables)
    rng = np.random.default_rng(0)
    s, t = rng.uniform(1, 2, (M, 1)).astype(dtype), rng.uniform(1, 2, (N, 1)).astype(dtype)
    i, j = FAR + np.arange(M)[:, None], FAR + np.arange(N)[None, :]
    terms = FORMULAS[text](i, j, s.astype(float), t[:, 0].astype(float)) + np.zeros((M, N))
    return spec, [s, t], terms.sum(1 if axis else 0), (M, N) if axis else (N, M)


def close(state, want, dtype):
    np.testing.assert_allclose(state[0][0], want, rtol={"float32": 2e-6, "float64": 1e-13}[dtype], atol=1e-30)


every = [pytest.mark.parametrize("dtype", ["float32", "float64"]), pytest.mark.parametrize("axis", [0, 1]),
         pytest.mark.parametrize("text", FORMULAS)]  # fmt: skip


def everywhere(test):
    for mark in every:
        test = mark(test)
    return test


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
@everywhere
def test_on_the_host(text, axis, dtype, backend):
    spec, arrays, want, (kept, reduced) = case(text, axis, dtype)
    state = engine.fold(spec, backend, engine.empty(spec, kept), arrays, kept, reduced, i0=FAR, j0=FAR)
    close(state, want, dtype)


@needs_compiler
@pytest.mark.parametrize("crossed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_in_the_shim(crossed):
    """Each type over one of the axes, in turn; over the other one in the slow tier."""
    ways = itertools.product(enumerate(FORMULAS), enumerate(("float32", "float64")))
    cases = [(case(text, (n + k + crossed) % 2, dtype), dtype) for (n, text), (k, dtype) in ways]
    sources = [rendered(spec, f"k{n}") for n, ((spec, *_), dtype) in enumerate(cases)]
    library = shim.compile_sources(sources, ["-O0"])
    for source, ((_, arrays, want, sizes), dtype) in zip(sources, cases, strict=True):
        close(shim.run(library, source, arrays, *sizes, row0=FAR, column0=FAR), want, dtype)


@pytest.mark.gpu
@everywhere
def test_on_a_device(text, axis, dtype):
    spec, arrays, want, (kept, reduced) = case(text, axis, dtype)
    close(cuda.fold(spec, engine.empty(spec, kept), arrays, kept, reduced, i0=FAR, j0=FAR), want, dtype)


def test_blocks_are_told_apart():
    """Without the number of their first row they would give something else."""
    spec, arrays, want, (kept, reduced) = case("(IndexI() == IndexJ()) * t", 1, "float64")
    state = engine.fold(spec, "cpu", engine.empty(spec, kept), arrays, kept, reduced, i0=FAR, j0=FAR + 1)
    with pytest.raises(AssertionError):
        close(state, want, "float64")
