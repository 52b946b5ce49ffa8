"""CUDA sums of exponentials: their references are the largest terms only where something reads those."""

import dataclasses
import re

import numpy as np
import pytest

from dred import Genred
from dred.kernel.cuda_source import rendered
from dred.kernel.lower import MOST
from dred.kernel.output import Output, empty
from dred.reductions import REDUCTIONS
from tests.kernel.test_quick import EPS, FAMILY, ORDERS, exponentials, made, terms
from tests.shim import shim

pytestmark = pytest.mark.skipif(not shim.available(), reason="no C++ compiler")

VARIABLES = ["f=Vj(1)", "z=Vi(1)", "g=Vj(1)"]
WEIGHTED = [name for name in FAMILY if "G" in REDUCTIONS[name].signature.replace("G?", "")]
KEYS = [(name, dtype) for name in FAMILY for dtype in EPS]
TRACKED = {key for key in KEYS if "Weight" in key[0] or key[0].startswith("Max")}  # nothing bounds weighted terms


def spec_of(reduction, dtype):
    return made(reduction, "f+z", VARIABLES, "g" if reduction in WEIGHTED else None, dtype)


def compiled(change=lambda text: text):
    sources = {key: rendered(spec_of(*key), f"k{n}") for n, key in enumerate(KEYS)}
    sources = {key: dataclasses.replace(source, text=change(source.text)) for key, source in sources.items()}
    return sources, shim.compile_sources(list(sources.values()), ["-O0"])


@pytest.fixture(scope="module")
def built():
    return compiled()


def check(built, key, f, z, cuts, splits=1, exact=False):
    """States, and what is read off them; exact: terms are not rounded, and neither is what is left of them."""
    (reduction, dtype), (sources, library) = key, built
    spec, M, N = spec_of(*key), len(z), len(f)
    rng = np.random.default_rng(N)
    arrays = [a.astype(dtype) for a in (f[:, None], z[:, None], rng.uniform(0.5, 2, (N, 1)))]
    state = None
    for a, b in zip((0, *cuts), (*cuts, N), strict=True):
        given = spec.arrays([arrays[0][a:b], arrays[1], arrays[2][a:b]])
        state = shim.run(library, sources[key], given, M, b - a, state=state, splits=splits)
    state = empty(spec, M) if state is None else state
    with np.errstate(invalid="ignore"):
        F = (arrays[0].T + arrays[1]).astype(dtype)[:, :, None]
    weights = arrays[2][None].astype(np.float64) if reduction in WEIGHTED else np.ones((1, 1, 1))
    top, want, scale = exponentials(F, weights)
    named = dict(zip([field.name for field in spec.fields], state, strict=True))
    m, beside = named["m"].T.astype(np.float64), [(named["s"].T, want, scale)]
    beside += [(named["z"].T, *exponentials(F, 1.0)[1:])] if "z" in named else []
    if key in TRACKED:
        np.testing.assert_array_equal(m, top)
    with np.errstate(all="ignore"):
        assert ((m == top) | ((m < top) & (top - m <= np.log(MOST)))).all()
        factor = np.where(m == top, 1, np.exp(m - top))
        largest = np.where(np.isfinite(F), np.abs(F), 0).max()
        # else a term that is rounded otherwise has another exponential
        error = EPS[dtype] + (0 if exact else largest * np.finfo(dtype).eps)
        for found, sums, size in beside:
            fine = np.isfinite(sums)
            np.testing.assert_array_equal(found[~fine], sums[~fine])
            assert (np.abs(found * factor - sums)[fine] <= (error * size)[fine]).all()
        entry = REDUCTIONS[reduction]
        result = entry.numpy(F, np.broadcast_to(weights, F.shape) if reduction in WEIGHTED else None, 1, None)
        (got,) = (output.read(spec, state) for output in Output.of(reduction))
        tolerance = error + largest * np.finfo(dtype).eps
        np.testing.assert_allclose(got, result.astype(dtype), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("key", KEYS, ids=str)
def test_terms_in_any_order(built, key, order):
    rng = np.random.default_rng(3)
    for N, cuts, splits in ((1, (), 1), (300, (), 1), (1100, (7, 600), 2)):
        check(built, key, terms(order, N, rng), rng.choice([0.0, 0.5, -0.25], 5), cuts, splits)


def sequences(columns):
    """Terms, by tiles of so many columns."""
    late = np.full(3 * columns, -np.inf)
    late[2 * columns + 5 :: 3] = 1.5
    far = np.concatenate([np.zeros(columns), np.full(columns, 500.0), np.full(columns, 501.0)])
    above = np.concatenate([np.full(20, 60.0), np.linspace(-80, 0, 2 * columns)])
    slowly = np.linspace(0, 90, 3 * columns)
    nearly = np.zeros(2 * columns)
    nearly[columns:] = np.floor(np.log(MOST) * 4) / 4  # the reference stays, or does not: 16 of them are too much
    alone = np.zeros(2 * columns)
    alone[columns + 3] = 6.875  # it stays
    return {
        "none for a tile": late, "far above": far, "a reference far above": above, "rising": slowly,
        "as much as may be": nearly, "one as large as may be": alone, "nothing": late[: columns + 3],
        "infinite": np.concatenate([far, [np.inf], far]),
    }  # fmt: skip


@pytest.mark.parametrize("name", sequences(16))
@pytest.mark.parametrize("key", KEYS, ids=str)
def test_tiles_and_references(built, key, name):
    columns = built[0][key].tile_columns
    f = sequences(columns)[name]
    z = np.array([0.0, 0.25, -3.0])
    check(built, key, f, z, ())
    check(built, key, f, z, (columns,))
    check(built, key, f, z, (5, columns + 1), 2)


def far_terms(dtype):
    """Whole numbers, far from 0: their multiples by log2(e) are not exact, their differences are."""
    high = {"float32": 2.0**21, "float64": 2.0**50}[dtype]
    return high - np.arange(400) % 13, np.array([0.0, 1.0, -5.0, -high, -2 * high + 20])


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_terms_far_from_zero_keep_their_digits(built, key):
    f, z = far_terms(key[1])
    check(built, key, f, z, (), exact=True)


def test_planted_bugs_are_found():
    bugs = {"what the product of the reference is rounded by": (r"run1\[r\] \*= \w+;", ""),
            "what does not hold is not done again": ("bad >> q & 1", "false")}  # fmt: skip
    key = ("LogSumExp", "float32")
    for old, new in bugs.values():
        wrong = compiled(lambda text, old=old, new=new: re.sub(old, new, text))
        assert wrong[0][key].text != rendered(spec_of(*key), f"k{KEYS.index(key)}").text
        with pytest.raises(AssertionError):
            check(wrong, key, *far_terms("float32"), (), exact=True)


# -- who reads it --------------------------------------------------------------------------------------------------


def parts(*items, grad=""):
    routine = Genred(list(items), VARIABLES, axis=1)
    routine = routine.grad(grad) if grad else routine
    return [part for sweep in routine.sweeps("float32") for part in sweep.spec.parts]


def test_a_state_that_others_read_has_the_largest_term():
    alone, largest = ("f+z", "LogSumExp"), ("f+z", "Max_SumShiftExp")
    assert [part.any_reference for part in parts(alone)] == [True]
    assert [part.any_reference for part in parts(largest)] == [False]
    assert [part.any_reference for part in parts(alone, largest)] == [False]
    assert [part.any_reference for part in parts(largest, alone)] == [False]
    assert [part.any_reference for part in parts(alone, largest, ("2*f", "LogSumExp"))] == [False, True]
    saved = [part for part in parts(alone, grad="f") if part.monoid == "exponentials"]
    assert {part.any_reference for part in saved} == {True}
    saved = [part for part in parts(alone, largest, grad="f") if part.monoid == "exponentials"]
    assert {part.any_reference for part in saved} == {False}


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_a_maximum_is_taken_only_where_it_is_read(built, key):
    (first, last) = (built[0][key].text.find(word) for word in ("const auto columns", "bool fine"))
    assert ("fmax" in built[0][key].text[first:last]) == (key in TRACKED)
