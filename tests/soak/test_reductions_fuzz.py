"""Random reductions of random formulas, several at once, in blocks cut and merged at random, against NumPy.

Terms are whole numbers, infinities and NaN, so that extrema, indices and counts must be NumPy's to the last bit.
10,000 sweeps; the slow tier takes a tenth of it, the same ones in every run.
"""

from itertools import pairwise

import numpy as np
import pytest

from dred.formula.language import formula
from dred.formula.oracle import dense
from dred.kernel import engine
from dred.kernel.output import Output, empty
from dred.kernel.spec import KernelSpec, Part
from dred.reductions import MONOIDS, NONE, REDUCTIONS, monoid_name
from tests.monoid_cases import weightings

EXACT = {name for name, monoid in MONOIDS.items() if all(f.kind != "sum" for f in monoid.fields)}
ADDED = {"sum", "sum_kahan", "weighted_bins", "weighted_bins_kahan"}  # exact while the sums are
LEAVES = {1: ["a", "b", "p", "2", "-1"], 2: ["x", "y", "x", "y", "a", "b", "q"]}
BINARY = ["({} + {})", "({} - {})", "{} * {}", "Step({}) * {}", "IfElse({}, {}, 1)", "({} < {})"]
UNARY = ["Abs({})", "-{}", "Sign({})", "Square({})", "ReLU({})", "({})"]


def text(rng, level, depth):
    """A random formula of dimension 1 (level 1) or D (level 2), exact on small whole numbers."""
    if depth == 0 or rng.random() < 0.2:
        return str(rng.choice(LEAVES[level]))
    if level == 1 and rng.random() < 0.3:
        return str(rng.choice(["Sum({})", "Max({})", "Min({})"])).format(text(rng, 2, depth - 1))
    if rng.random() < 0.3:
        return str(rng.choice(UNARY)).format(text(rng, level, depth - 1))
    return str(rng.choice(BINARY)).format(text(rng, level, depth - 1), text(rng, level, depth - 1))


def sweep(seed):
    """One random problem and what is wrong with its results, as text."""
    rng = np.random.default_rng(seed)
    D = int(rng.choice([1, 2, 3, 9, 40]))
    aliases = [f"x = Vi({D})", f"y = Vj({D})", "a = Vi(1)", "b = Vj(1)", "p = Pm(1)", f"q = Pm({D})"]
    M, N, axis = int(rng.integers(1, 40)), int(rng.integers(0, 150)), int(rng.integers(2))
    if axis == 0:
        M, N = N, M
    dtype, acc = [("float32", "float64"), ("float64", "float64"), ("float32", "float32")][rng.integers(3)]
    arrays = [rng.integers(-2, 3, s).astype(dtype) for s in ((M, D), (N, D), (M, 1), (N, 1), (1,), (D,))]
    if rng.random() < 0.3:
        for array in arrays[:4]:
            array[rng.random(array.shape) < 0.1] = rng.choice([np.nan, np.inf, -np.inf])
    items = [item(rng, aliases, D) for _ in range(rng.integers(1, 4))]
    parts = tuple(Part.of(name, f.node, g and g.node, parameter, kahan) for name, f, g, parameter, kahan in items)
    chain = int(rng.choice([1, 4, 32]))
    spec = KernelSpec(parts, axis, dtype, acc, chain, items[0][1].variables)
    base = int(rng.choice([0, 5, 2**31 - 7, 2**40]))
    state = folded(rng, spec, arrays, M, N, base)
    wrong = [
        message
        for n, (name, f, g, parameter, kahan) in enumerate(items)
        for message in compared(spec, state, n, name, (f, g), parameter, kahan, arrays, base)
    ]
    return [f"seed {seed}: {message}" for message in wrong]


def item(rng, aliases, D):
    """Reduction, F, G, parameter, whether sums are compensated."""
    name = str(rng.choice([*REDUCTIONS]))
    entry = REDUCTIONS[name]
    weighted = bool(rng.choice(weightings(name)))
    # no row number in the formula, so both variables must be read to have rows: terms are broadcast in any case
    level = 1 if entry.scalar or (weighted and rng.random() < 0.7) else 2
    f = formula(text(rng, level, 3), aliases)
    g = formula(text(rng, 1 if entry.parameter == "edges" or f.node.dim > 1 else 2, 2), aliases) if weighted else None
    kahan = bool(rng.random() < 0.3 and monoid_name(entry, weighted, True))
    edges = sorted({*rng.integers(-6, 7, rng.integers(2, 50)).tolist(), -7, 8})
    parameters = {
        "": None,
        "K": int(rng.choice([1, 2, 5, 33, 170])),
        "ddof": int(rng.integers(3)),
        "edges": tuple(edges),
    }
    parameter = parameters[entry.parameter]
    return name, f, g, parameter, kahan


def folded(rng, spec, arrays, M, N, base):
    """Blocks of columns, folded in runs of a few, merged in any order."""
    kept, reduced = (M, N) if spec.axis == 1 else (N, M)
    cuts = [0, *sorted(rng.integers(0, reduced + 1, rng.integers(0, 4)).tolist()), reduced]
    states = [empty(spec, kept)]
    for first, last in pairwise(cuts):
        block = [a[first:last] if spec.level(v.cat) == 2 else a for v, a in zip(spec.variables, arrays, strict=True)]
        through = states.pop() if rng.random() < 0.5 else empty(spec, kept)
        backend = str(rng.choice(["cpu", "cpu", "numpy"]))
        states.append(engine.fold(spec, backend, through, block, kept, last - first, i0=3, j0=base + first))
    while len(states) > 1:
        left = states.pop(int(rng.integers(len(states))))
        right = states.pop(int(rng.integers(len(states))))
        states.append(engine.merge(spec, left, right))
    return states[0]


def compared(spec, state, n, name, formulas, parameter, kahan, arrays, base):
    rows = (len(arrays[0]), len(arrays[1]))
    f, g = (None if h is None else np.broadcast_to(dense(h.node, arrays, rows), (*rows, h.node.dim)) for h in formulas)
    with np.errstate(all="ignore"):
        wanted = REDUCTIONS[name].numpy(f, g, spec.axis, parameter)
        monoid = monoid_name(REDUCTIONS[name], g is not None, kahan)
        size = np.nansum(np.where(np.isfinite(f), np.abs(f), 0)) if f.size else 0.0
        for a, b in zip(
            engine.finalize(spec, state, Output.of(name, n, parameter)),
            wanted if isinstance(wanted, tuple) else (wanted,),
            strict=True,
        ):
            if a.dtype == np.int64 and "Arg" in name:
                b = np.where(b < 0, b, b + base)
            exact = monoid in EXACT or (monoid in ADDED and size < 2**24 and g is None)
            if a.shape != b.shape or not (same(a, b) if exact else near(spec, name, a, b, g is not None)):
                yield f"{name}({formulas[0].text}; {formulas[1] and formulas[1].text}), {parameter}, {spec.dtype}"


def same(a, b):
    return np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


def near(spec, name, a, b, weighted):
    """Within rounding, where the result does not cancel and is no overflow of the type."""
    tolerance = 1e-3 if "float32" in (spec.dtype, spec.acc) else 1e-9
    sound = np.isfinite(b) & (np.abs(b) < 1e30) & ((np.abs(b) > 1e-30) | (b == 0))
    scale = np.abs(b[sound]).max(initial=1.0)
    if weighted and name.startswith("LogSumExp"):  # the logarithm of a sum that cancels is any number
        sound &= np.isfinite(a)
        return bool((np.abs(a - b)[sound] < 0.1 + tolerance * scale).mean() > 0.5) if sound.any() else True
    return np.allclose(a[sound], b[sound], rtol=tolerance, atol=tolerance * scale)


def fuzz(seeds):
    wrong = [message for seed in seeds for message in sweep(seed)]
    assert not wrong, f"{len(wrong)} of {len(seeds)}: " + "; ".join(wrong[:5])


def test_random_reductions_briefly():
    fuzz(range(25))


@pytest.mark.slow
def test_random_reductions_at_fixed_seeds():
    fuzz(range(1000))


@pytest.mark.soak
def test_random_reductions(record_property):
    record_property("sweeps", 10_000)
    fuzz(range(10**6, 10**6 + 10_000))


def test_the_check_can_fail(monkeypatch):
    merge = engine.merge
    monkeypatch.setattr(engine, "merge", lambda spec, a, b: a)
    with pytest.raises(AssertionError):
        fuzz(range(40))
    monkeypatch.setattr(engine, "merge", merge)
    monkeypatch.setattr("dred.kernel.output.NONE", NONE - 1)
    with pytest.raises(AssertionError):
        fuzz(range(40))
