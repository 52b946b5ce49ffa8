"""Random formulas of the whole table through the CUDA sources, run by the shim, against the dense oracle."""

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from dred.formula.language import Variable
from dred.formula.rewrite import expand
from dred.kernel.cuda_source import render
from dred.kernel.lower import lower
from dred.kernel.spec import KernelSpec
from tests.formula.formulas import VARIABLES, WIDE, WIDEST, derivatives, formulas
from tests.shim import shim
from tests.soak.test_fuzz import QUIET, M, N, samples, summed

pytestmark = pytest.mark.skipif(not shim.available(), reason="no C++ compiler")

UNROLL, CHAINS = (1, 2, 4), (32, 1, 8)  # longer vectors are loops; chains of one column, and of a few


@st.composite
def problems(draw):
    """A formula and its variables; many are sums over the components of one or two formulas."""
    variables, more = draw(st.sampled_from([(VARIABLES, {}), (WIDE, {"variables": WIDE, "largest": WIDEST})]))
    f, g = draw(derivatives(**more)), draw(formulas(**more))
    sums = {
        "none": lambda: f,
        "product": lambda: expand("Mult", (expand("Sum", (f,)), expand("Sum", (g,)))),
        "long": lambda: expand("Sum", (expand("Concat", (f, g)),)),
        "factor": lambda: expand("Mult", (f, expand("Sum", (g,)))),
    }
    return sums[draw(st.sampled_from(list(sums)))](), variables


def drawn(count):
    """Different formulas with their variables, the same ones whenever the same modules are loaded."""
    found = {}

    @settings(max_examples=4 * count, derandomize=True, database=None, deadline=None, phases=[Phase.generate],
              suppress_health_check=QUIET)  # fmt: skip
    @given(problems())
    def collect(problem):
        found.setdefault(*problem)

    collect()
    assert len(found) >= count
    return list(found.items())[-count:]  # the first ones are the simplest


def jobs(count):
    """Specs and sources, over all pairs of unrolled length and chain, and both axes."""
    out = []
    for n, (node, variables) in enumerate(drawn(count)):
        declared = tuple(Variable(v.attrs[0], v.dim, v.attrs[1]) for v in variables)
        chain = CHAINS[n // len(UNROLL) % len(CHAINS)]
        spec = KernelSpec(node, "Sum", n % 2, "float64", "float64", chain, declared)
        kernel = lower(spec, UNROLL[n % len(UNROLL)])
        out.append((spec, render(kernel, spec.dtype, spec.acc, chain, f"k{n}")))
    return out


def wrong(library, spec, source, seed, shift=0.0):
    """Components of the result that are not the oracle's, where that one is finite and does not hang on last bits."""
    rng = np.random.default_rng(seed)
    arrays = samples(rng, spec.variables)
    want, scale = summed(spec.formula, arrays, spec.axis)
    near = [a * (1 + 1e-12 * rng.uniform(-1, 1, a.shape)) for a in arrays]
    kept, reduced = (M, N) if spec.axis == 1 else (N, M)
    got = shim.run(library, source, [a + shift for a in arrays], kept, reduced)[0].T
    assert got.shape == want.shape
    with np.errstate(all="ignore"):
        slack = np.abs(summed(spec.formula, near, spec.axis)[0] - want)
        sound = np.isfinite(want) & np.isfinite(scale) & (slack <= 1e-6 * (1 + scale)) & (scale < 1e100)
        return sound & ~(np.abs(got - want) <= 1e-11 * (1 + scale) + 100 * slack)


@pytest.mark.parametrize("count", [40, pytest.param(400, marks=pytest.mark.slow)])
def test_random_formulas(count, tmp_path):
    """Compiled as one library, without optimization: that is what takes the time."""
    made = jobs(count)
    library = shim.compile_sources([source for _, source in made], tmp_path, ["-O0"])
    bad = [
        f"{spec.formula} (unroll {UNROLL[n % len(UNROLL)]}, chain {spec.chain}, axis {spec.axis})"
        for n, (spec, source) in enumerate(made)
        if wrong(library, spec, source, n).any()
    ]
    assert not bad, "\n".join(bad)
    found = [wrong(library, spec, source, n, shift=1e-6).any() for n, (spec, source) in enumerate(made)]
    assert sum(found) > count / 4  # other data give other sums
