"""Random formulas of the whole table, and derivatives, through the CUDA sources, run by the shim, against the oracle.

10,000 of them take more than an hour on 2 cores; the slow tier takes 400, the same ones in every run.
"""

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from dred.formula.language import Variable
from dred.kernel.cuda_source import rendered
from dred.kernel.spec import KernelSpec
from tests.formula.formulas import random_problem
from tests.shim import shim
from tests.soak.test_fuzz import M, N, expected, samples, wrong

pytestmark = pytest.mark.skipif(not shim.available(), reason="no C++ compiler")

UNROLL, CHAINS = (1, 2, 4), (32, 1, 8)  # longer vectors are loops; chains of one column, and of a few
TOGETHER = 50  # kernels of one library


def jobs(seeds):
    """Specs and sources by seed, over all pairs of unrolled length and chain, and both axes."""
    out = {}
    for seed in seeds:
        node, variables = random_problem(random.Random(seed))
        declared = tuple(Variable(v.attrs[0], v.dim, v.attrs[1]) for v in variables)
        chain = CHAINS[seed // len(UNROLL) % len(CHAINS)]
        spec = KernelSpec.of(node, "Sum", seed % 2, "float64", "float64", chain, declared)
        out[seed] = spec, rendered(spec, f"k{seed}", UNROLL[seed % len(UNROLL)])
    return out


def differs(library, spec, source, seed, shift=0.0):
    """Whether a component of the result is not the oracle's."""
    rng = np.random.default_rng(seed)
    arrays = samples(rng, spec.variables)
    want, allowed = expected(spec.parts[0].formula, arrays, spec.axis, rng)
    kept, reduced = (M, N) if spec.axis == 1 else (N, M)
    got = shim.run(library, source, [a + shift for a in arrays], kept, reduced)[0].T
    return bool(wrong(got, want, allowed).any())


def check(first, count):
    """Formulas by seed; libraries are compiled without optimization, for that is what takes the time."""

    def compiled(start):
        made = jobs(range(start, min(start + TOGETHER, first + count)))
        return made, shim.compile_sources([source for _, source in made.values()], ["-O0"])

    bad, found = [], 0
    with ThreadPoolExecutor(2) as pool:
        for made, library in pool.map(compiled, range(first, first + count, TOGETHER)):
            for seed, (spec, source) in made.items():
                if differs(library, spec, source, seed):
                    bad.append(f"seed {seed}: {spec.parts[0].formula}")
                found += differs(library, spec, source, seed, shift=1e-6)
    assert not bad, "\n".join(bad)
    assert found > count / 4  # other data give other sums


@pytest.mark.parametrize("count", [16, pytest.param(400, marks=pytest.mark.slow)])
def test_random_formulas_at_fixed_seeds(count):
    check(0, count)


@pytest.mark.soak
def test_random_formulas(record_property):
    first = random.randrange(10**9)
    record_property("formulas", 10_000)
    record_property("first_seed", first)
    check(first, 10_000)
