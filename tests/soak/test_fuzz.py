"""Random formulas of the whole table, and derivatives, through the CPU kernel and the interpreter, against the oracle.

10,000 formulas (about half an hour on 2 cores); the slow tier takes a tenth of it, the same ones in every run.
"""

import random

import numpy as np
import pytest

from dred.formula.language import Variable
from dred.formula.node import I, J, toposort
from dred.formula.ops import OPS
from dred.formula.oracle import dense
from dred.kernel import cpu, engine, llvm
from dred.kernel.lower import lower
from dred.kernel.spec import KernelSpec
from tests.formula.formulas import VARIABLES, random_problem

M, N = 5, 37  # rows of less than a tile, columns of more than a chain
EXACT = {"LessThan", "LessOrEqual", "Equal", "NotEqual", "And", "Or", "Not", "Minus", "Abs", "Sign", "Step", "ReLU",
         "Floor", "Ceil", "Trunc", "Clamp", "IfElse", "Max", "Min", "ArgMax", "ArgMin", "OneHot"}  # fmt: skip


def samples(rng, variables):
    """Arrays of all variables by position, away from the ends of the range."""
    rows = (M, N)
    return [rng.uniform(-2, 2, (v.dim,) if v.cat == 2 else (rows[v.cat], v.dim)) for v in variables]


def shaken(node, arrays, rng):
    """The oracle where every zero on the way has a sign by chance, and what has been rounded is rounded otherwise."""
    values = {}
    for n in toposort([node]):
        v = OPS[n.op].numpy(*(values[a] for a in n.args), *n.attrs) if n.args else dense(n, arrays, (M, N))
        chance = rng.uniform(-1, 1, np.shape(v))
        rounded = n.args and OPS[n.op].flops and n.op not in EXACT
        values[n] = np.where(v == 0, np.copysign(0.0, chance), v * (1 + 1e-14 * chance) if rounded else v)
    return values[node]


def sums(node, arrays, axis, oracle=lambda node, arrays: dense(node, arrays, (M, N))):
    """The oracle's sum and the sum of the magnitudes, by row and component."""
    with np.errstate(all="ignore"):
        terms = np.broadcast_to(oracle(node, arrays), (M, N, node.dim))
        return terms.sum(axis), np.abs(terms).sum(axis)


def expected(node, arrays, axis, rng):
    """The oracle's sum and how far from it a kernel may be: anywhere where it is not finite, or hangs on the last bits
    of a value on the way or on the sign of a zero."""
    want, scale = sums(node, arrays, axis)
    near = [a * (1 + 1e-12 * rng.uniform(-1, 1, a.shape)) for a in arrays]
    with np.errstate(all="ignore"):
        slack = np.abs(sums(node, near, axis)[0] - want)  # what a change in the twelfth digit does
        for _ in range(12):
            other, _ = sums(node, arrays, axis, lambda node, arrays: shaken(node, arrays, rng))
            slack = np.maximum(slack, np.abs(other - want))
        sound = np.isfinite(want) & np.isfinite(scale) & (slack <= 1e-6 * (1 + scale)) & (scale < 1e100)
        return want, np.where(sound, 1e-11 * (1 + scale) + 100 * slack, np.inf)


def wrong(got, want, allowed):
    """Where a result is further from the oracle's than is allowed."""
    assert got.shape == want.shape
    with np.errstate(all="ignore"):
        return (allowed < np.inf) & ~(np.abs(got - want) <= allowed)


def folded(spec, backend, arrays, kept, reduced, unroll, along):
    """The state after all columns; vectors of at most `unroll` components are no loops on the CPU, whose lanes are rows
    or columns."""
    state = engine.empty(spec, kept)
    if backend != "cpu" or (unroll == cpu.UNROLL and along == I):
        return engine.fold(spec, backend, state, arrays, kept, reduced)

    def made(hoist):
        kernel = lower(spec, unroll, hoist)
        return cpu.build(llvm.render(kernel, spec.dtype, spec.acc, spec.chain, along), kernel.cost)

    parts = [(start, min(start + 16, reduced)) for start in range(0, reduced, 16)]
    return cpu.folded(spec, made(True), lambda: made(False), parts, state, arrays, kept)


def check(node, variables, axis, chain, seed, unroll=cpu.UNROLL, along=I):
    """Both backends against the oracle, wherever it is finite and does not hang on the last bits of its input."""
    rng = np.random.default_rng(seed)
    declared = tuple(Variable(v.attrs[0], v.dim, v.attrs[1]) for v in variables)
    arrays = samples(rng, declared)
    want, allowed = expected(node, arrays, axis, rng)
    spec = KernelSpec.of(node, "Sum", axis, "float64", "float64", chain, declared)
    kept, reduced = (M, N) if axis == 1 else (N, M)
    for backend in ("cpu", "numpy"):
        got = engine.finalize(
            spec, folded(spec, backend, arrays, kept, reduced, unroll, along), engine.Output.of("Sum")
        )[0]
        bad = wrong(got, want, allowed)
        assert not bad.any(), (backend, axis, got[bad], want[bad])


def case(seed):
    """What `check` takes, by chance."""
    rng = random.Random(seed)
    node, variables = random_problem(rng)
    unroll, along = rng.choice([1, 2, cpu.UNROLL]), rng.choice([I, I, J])
    return node, variables, rng.choice([0, 1]), rng.choice([1, 32]), seed, unroll, along


def fuzz(seeds):
    bad = []
    for seed in seeds:
        try:
            check(*case(seed))
        except Exception as error:
            bad.append(f"seed {seed}: {type(error).__name__}: {str(error)[:200]}")
    assert not bad, f"{len(bad)} of {len(seeds)}: " + "; ".join(bad[:5])


@pytest.mark.slow
def test_random_formulas_at_fixed_seeds():
    fuzz(range(1_000))


@pytest.mark.soak
def test_random_formulas(record_property):
    first = random.randrange(10**6, 10**9)
    record_property("formulas", 10_000)
    record_property("first_seed", first)
    fuzz(range(first, first + 10_000))


def test_the_check_can_fail(monkeypatch):
    def shifted(spec, backend, state, arrays, *sizes, **more):
        return fold(spec, backend, state, [a + 1e-6 for a in arrays], *sizes, **more)

    fold = engine.fold
    check(VARIABLES[0], VARIABLES, 1, 32, 0)
    monkeypatch.setattr(engine, "fold", shifted)
    with pytest.raises(AssertionError):
        check(VARIABLES[0], VARIABLES, 1, 32, 0)
