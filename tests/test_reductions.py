"""Every monoid of the table obeys its laws, and every reduction gives the dense answer however its terms are cut."""

import dataclasses
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dred.formula.node import var
from dred.kernel import cpu, engine, interpret
from dred.kernel.spec import KernelSpec
from dred.reductions import MONOIDS, NONE, REDUCTIONS, monoid_name
from tests.monoid_cases import CASES, Case

EXACT = {name for name, monoid in MONOIDS.items() if all(f.kind != "sum" for f in monoid.fields)}
SPECIAL = st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0])
MODERATE = st.one_of(st.floats(-4, -0.25), st.floats(0.25, 4))  # products of many of them are ordinary numbers
WILD = st.one_of(MODERATE, st.integers(-3, 3).map(float), SPECIAL)
WEIGHTS = st.one_of(MODERATE, st.integers(-3, 3).map(float))
INTEGERS = st.integers(-3, 3).map(float)
EVERY = pytest.mark.parametrize("case", CASES, ids=str)


def spec_of(case, axis=1):
    """The reduction of a variable along the reduced index, with the weights in another one."""
    cat = 1 if axis == 1 else 0
    weight = var(1, 1, cat) if case.weighted else None
    return KernelSpec.of(
        var(0, 1, cat), case.name, axis, "float64", "float64", weight=weight, parameter=case.parameter, kahan=case.kahan
    )


def folded(case, terms, first=0, state=None, backend="numpy"):
    spec = spec_of(case)
    state = engine.empty(spec, 1) if state is None else state
    arrays = [np.array([t[k] for t in terms], np.float64).reshape(-1, 1) for k in range(1 + case.weighted)]
    return engine.fold(spec, backend, state, arrays, 1, len(terms), j0=first)


def results(case, state):
    return engine.finalize(spec_of(case), state, engine.Output.of(case.name, 0, case.parameter))


def dense(case, terms):
    values = np.array([t[0] for t in terms], np.float64).reshape(1, -1, 1)
    weights = np.array([t[1] for t in terms], np.float64).reshape(1, -1, 1) if case.weighted else None
    with np.errstate(all="ignore"):
        found = REDUCTIONS[case.name].numpy(values, weights, 1, case.parameter)
    return found if isinstance(found, tuple) else (found,)


def same(a, b):
    for left, right in zip(a, b, strict=True):
        np.testing.assert_array_equal(left, right)


def close(a, b):
    for left, right in zip(a, b, strict=True):
        if right.dtype == np.float64:
            np.testing.assert_allclose(left, right, rtol=1e-11, atol=1e-11)
        else:
            np.testing.assert_array_equal(left, right)


def agree(case, a, b):
    (same if monoid_of(case) in EXACT else close)(a, b)


def monoid_of(case):
    return monoid_name(REDUCTIONS[case.name], case.weighted, case.kahan)


def ill(case, terms):
    """Sums in which digits cancel: their result is any number."""
    if not case.name.startswith("LogSumExp") or not case.weighted:
        return False
    f, g = np.array([t for t in terms if math.isfinite(t[0])]).reshape(-1, 2).T
    shifted = np.exp(f - f.max(initial=-9.0)) * g
    return abs(shifted.sum()) < 1e-2 * np.abs(shifted).sum()


# -- the laws, as checks that take a case ------------------------------------------------------------------------------


def check_identity(case, term):
    spec, empty = spec_of(case), engine.empty(spec_of(case), 1)
    state = folded(case, [term])
    for merged in (engine.merge(spec, empty, state), engine.merge(spec, state, empty)):
        same(results(case, merged), results(case, state))
        if math.isfinite(term[0]):  # else a mean is infinite, and what goes with it any NaN
            same(merged, state)
    same(engine.merge(spec, empty, empty), empty)


def check_associative(case, terms):
    spec = spec_of(case)
    a, b, c = (folded(case, [t], n) for n, t in enumerate(terms))
    left = engine.merge(spec, engine.merge(spec, a, b), c)
    right = engine.merge(spec, a, engine.merge(spec, b, c))
    agree(case, results(case, left), results(case, right))


def check_chunks(case, terms, cuts, order, backend="numpy"):
    """Chunks folded one after another, and folded apart and merged in any order, against NumPy."""
    spec = spec_of(case)
    edges = [0, *sorted(c % (len(terms) + 1) for c in cuts), len(terms)]
    chunks = [(a, terms[a:b]) for a, b in pairwise(edges)]
    through = engine.empty(spec, 1)
    for first, chunk in chunks:
        through = folded(case, chunk, first, through, backend)
    states = [folded(case, chunk, first, backend=backend) for first, chunk in chunks]
    for k in order:  # neighbours or not
        if len(states) == 1:
            break
        left = states.pop(k % len(states))
        right = states.pop(k // 7 % len(states))
        states.append(engine.merge(spec, left, right))
    for state in states[1:]:
        states[0] = engine.merge(spec, states[0], state)
    wanted = dense(case, terms)
    for state in (through, states[0]):
        agree(case, results(case, state), wanted)


# -- the tables --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MONOIDS)
def test_monoid_is_complete(name):
    m = MONOIDS[name]
    assert len(m.fields) == len(m.merge) > 0
    assert {f.kind for f in m.fields} <= {"value", "sum", "count", "index"}
    assert len({f.name for f in m.fields}) == len(m.fields)
    assert not m.kahan or not MONOIDS[m.kahan].kahan
    used = {monoid_name(r, w, k) for r in REDUCTIONS.values() for w in (False, True) for k in (False, True)}
    assert name in used


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reduction_is_complete(name):
    r = REDUCTIONS[name]
    assert r.name == name
    assert r.doc
    fields = {f.name for f in MONOIDS[r.monoid].fields}
    saved = fields | {"", "out"}
    assert set(r.pullbacks) <= saved
    for other, field in r.also.values():
        assert field in {f.name for f in MONOIDS[REDUCTIONS[other].monoid].fields}
    assert any(case.name == name for case in CASES)


# -- the laws ----------------------------------------------------------------------------------------------------------


@EVERY
@settings(max_examples=25)
@given(term=st.tuples(WILD, WEIGHTS))
def test_the_empty_state_is_neutral(case, term):
    check_identity(case, term)


@EVERY
@settings(max_examples=25)
@given(terms=st.tuples(*[st.tuples(WILD, WEIGHTS)] * 3))
def test_merging_is_associative(case, terms):
    assume(not ill(case, terms))
    check_associative(case, terms)


CUT = {
    "terms": st.lists(st.tuples(WILD, WEIGHTS), max_size=50),
    "cuts": st.lists(st.integers(0, 1000), max_size=6),
    "order": st.lists(st.integers(0, 1000), max_size=6),
}
BACKENDS = pytest.mark.parametrize("backend", ["numpy", "cpu"])


@EVERY
@BACKENDS
@settings(max_examples=15)
@given(**CUT)
def test_any_chunks_in_any_order_give_the_dense_answer(case, backend, terms, cuts, order):
    assume(not ill(case, terms))
    check_chunks(case, terms, cuts, order, backend)


@pytest.mark.slow
@EVERY
@BACKENDS
@settings(max_examples=200)
@given(**CUT)
def test_any_chunks_in_any_order_give_the_dense_answer_again(case, backend, terms, cuts, order):
    assume(not ill(case, terms))
    check_chunks(case, terms, cuts, order, backend)


@pytest.mark.parametrize("case", [c for c in CASES if monoid_of(c) in EXACT or "sum" in monoid_of(c)], ids=str)
@BACKENDS
@settings(max_examples=15)
@given(terms=st.lists(st.tuples(INTEGERS, INTEGERS), max_size=80))
def test_whole_numbers_are_bitwise_numpy(case, backend, terms):
    same(results(case, folded(case, terms, backend=backend)), dense(case, terms))


@pytest.mark.parametrize("case", [c for c in CASES if monoid_of(c) in EXACT], ids=str)
@settings(max_examples=15)
@given(values=st.lists(st.integers(-1000, 1000), unique=True, max_size=40), shuffle=st.randoms(use_true_random=False))
def test_the_order_of_distinct_terms_does_not_matter(case, values, shuffle):
    """Values are the same; indices are those of the same terms."""
    order = list(range(len(values)))
    shuffle.shuffle(order)
    straight = results(case, folded(case, [(float(v), 1.0) for v in values]))
    shuffled = results(case, folded(case, [(float(values[k]), 1.0) for k in order]))
    place = np.array([*order, -1])  # the last one is the index of no term
    for a, b in zip(straight, shuffled, strict=True):
        index = a.dtype == np.int64 and "Arg" in case.name
        np.testing.assert_array_equal(a, place[b] if index else b)


@EVERY
@BACKENDS
def test_without_terms(case, backend):
    state = folded(case, [], backend=backend)
    same(state, engine.empty(spec_of(case), 1))
    same(results(case, state), dense(case, []))


@EVERY
@pytest.mark.parametrize("count", [1, 2, 3, 8, 13])
def test_many_states_at_once(case, count):
    """States of the same rows, side by side, against one merge after another; also of no rows."""
    spec, terms = spec_of(case), [(float(k * k % 23), 1.0 + k % 3) for k in range(40)]
    states = [folded(case, terms[k::count], 40 * k) for k in range(count)]
    one = states[0]
    for state in states[1:]:
        one = engine.merge(spec, one, state)
    together = tuple(np.stack(fields, 1) for fields in zip(*states, strict=True))
    agree(case, results(case, interpret.merge_all(spec, together)), results(case, one))
    none = interpret.merge_all(spec, tuple(field[..., :0] for field in together))
    assert [field.shape for field in none] == [(field.shape[0], 0) for field in together]
    empty = engine.empty(spec, 0)
    same(engine.merge(spec, empty, empty), empty)


@EVERY
@pytest.mark.parametrize("axis", [0, 1])
def test_states_are_never_written(case, axis):
    spec = spec_of(case, axis)
    values = [np.arange(300.0).reshape(-1, 1)] * 2
    state = engine.fold(spec, "numpy", engine.empty(spec, 2), values, 2, 300)
    for field in state:
        field.flags.writeable = False
    before = [field.tobytes() for field in state]
    more = engine.fold(spec, "numpy", state, values, 2, 300)
    engine.merge(spec, state, more)
    engine.finalize(spec, state, engine.Output.of(case.name, 0, case.parameter))
    assert [field.tobytes() for field in state] == before


# -- the values of the specification -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameter", "terms", "wanted"),
    [
        ("Min_ArgMin", None, (3, 1, 1, 2, 3), (1, 1)),
        ("Max_ArgMax", None, (3, 1, 1, 2, 3), (3, 0)),
        ("KMin_ArgKMin", 3, (3, 1, 1, 2, 3), ((1, 1, 2), (1, 2, 3))),
        ("KMin_ArgKMin", 7, (3, 1, 1, 2, 3), ((1, 1, 2, 3, 3, math.inf, math.inf), (1, 2, 3, 0, 4, -1, -1))),
        ("KMax_ArgKMax", 4, (3, 1, 1, 2, 3), ((3, 3, 2, 1), (0, 4, 3, 1))),
        ("Max_SumShiftExp", None, (3, 1, 1, 2, 3), ((3, 2.63855),)),
        ("Min_ArgMin", None, (math.nan, 5, math.nan, 2), (2, 3)),
        ("Max_ArgMax", None, (math.nan, 5, math.nan, 2), (5, 1)),
        ("KMin_ArgKMin", 3, (math.nan, 5, math.nan, 2), ((2, 5, math.inf), (3, 1, -1))),
        ("Min_ArgMin", None, (math.nan, math.nan), (math.inf, -1)),
        ("Min_ArgMin", None, (math.inf, math.inf), (math.inf, 0)),
        ("Max_ArgMax", None, (math.nan, -math.inf, -math.inf), (-math.inf, 1)),
        ("ArgKMin", 3, (math.inf, 2, math.inf), ((1, 0, 2),)),
        ("LogSumExp", None, (-math.inf, -math.inf), (-math.inf,)),
        ("LogSumExp", None, (math.inf, 1, math.inf), (math.inf,)),
        ("LogSumExp", None, (math.nan, 1), (math.nan,)),
        ("Max_SumShiftExp", None, (-math.inf, -math.inf), ((-math.inf, 0),)),
        ("Prod", None, (2, 0, 3), (0,)),
        ("Prod", None, (2, 0, math.inf), (math.nan,)),
        ("Prod", None, (*[1e30] * 20, 0), (0,)),
        ("Prod", None, (0, math.nan), (math.nan,)),
        ("Any", None, (0, -0.0, math.nan), (True,)),
        ("All", None, (1, math.nan, -0.0), (False,)),
        ("Count", None, (0, 1, math.nan, -0.0), (2,)),
        ("Variance", 0, (1, 2, 3, 4), (1.25,)),
        ("Variance", 1, (1, 2, 3, 4), (5 / 3,)),
        ("Variance", 4, (1, 2, 3, 4), (math.nan,)),
        ("Histogram", (0.0, 1.0, 2.0), (0, 1, 2, 2.5, -1, math.nan, 1.5), ((1, 3),)),
    ],
)
@BACKENDS
def test_check_values(name, parameter, terms, wanted, backend):
    case = Case(name, False, parameter)
    found = results(case, folded(case, [(float(t), 1.0) for t in terms], backend=backend))
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(np.ravel(a), np.ravel(b), rtol=3e-7)


@pytest.mark.parametrize("name", ["Min", "Max"])
@BACKENDS
def test_zeros_of_both_signs_are_equal_and_the_first_is_taken(name, backend):
    for zeros in ((-0.0, 0.0), (0.0, -0.0)):
        terms = [(z, 1.0) for z in (*zeros, *zeros)]
        whole = folded(Case(name), terms, backend=backend)
        cut = folded(Case(name), terms[2:], 2, folded(Case(name), terms[:2], backend=backend), backend)
        for state in (whole, cut):
            assert np.signbit(state[0][0, 0]) == np.signbit(zeros[0])


@BACKENDS
def test_check_values_with_weights(backend):
    case, terms = Case("Max_SumShiftExpWeight", True), [(float(v), float(v)) for v in (3, 1, 1, 2, 3)]
    np.testing.assert_allclose(results(case, folded(case, terms, backend=backend))[0][0], [3, 7.006429], rtol=3e-7)


@BACKENDS
@pytest.mark.parametrize("first", [0, 2**31 - 3, 2**33, 2**62])
def test_indices_are_global_and_exact(backend, first):
    terms = [(float(v), 1.0) for v in (3, 1, 1, 2, 3)]
    for case, wanted in ((Case("ArgMin"), [1]), (Case("ArgMax"), [0]), (Case("ArgKMin", False, 4), [1, 2, 3, 0])):
        (found,) = results(case, folded(case, terms, first, backend=backend))
        assert found.dtype == np.int64
        np.testing.assert_array_equal(found.ravel(), first + np.array(wanted))


def test_the_index_of_no_term_is_larger_than_any():
    assert np.iinfo(np.int64).max == NONE


# -- these laws can fail -----------------------------------------------------------------------------------------------

ONE, TIE = (1.0, 2.0), [(1.0, 1.0), (1.0, 1.0), (3.0, 1.0)]


@pytest.mark.parametrize(
    ("name", "case", "fields", "check"),
    [
        ("sum", Case("Sum"), {"merge": ("s0 - s1",)}, lambda c: check_associative(c, [ONE] * 3)),
        ("sum", Case("Sum"), {"merge": ("s0 + s1 + 1",)}, lambda c: check_identity(c, ONE)),
        ("sum", Case("Sum"), {"merge": ("max(s0, s1)",)}, lambda c: check_chunks(c, [ONE] * 3, [1], [0])),
        ("min", Case("Min"), {"merge": ("min(m0, m1)",)}, lambda c: check_chunks(c, [(math.nan, 1.0)], [], [])),
        ("least", Case("ArgMin"), {"let": (("before", "m1 <= m0"),)}, lambda c: check_chunks(c, TIE, [1], [0])),
        ("least", Case("KMin", False, 2), {"rank": -1}, lambda c: check_chunks(c, TIE, [], [])),
        ("exponentials", Case("LogSumExp"), {"let": (("shift", "exp(-abs(m0 - m1))"), ("k0", "1"), ("k1", "shift"))},
         lambda c: check_chunks(c, TIE, [1], [0])),
        ("moments", Case("Variance", False, 0), {"merge": (*MONOIDS["moments"].merge[:3], "b0 + b1")},
         lambda c: check_chunks(c, TIE, [], [])),
        ("product", Case("Prod"), {"merge": ("p0 * p1", "z0", "w0 + w1")},
         lambda c: check_chunks(c, [(0.0, 1.0), ONE], [], [])),
    ],
    ids=lambda v: ",".join(v) if isinstance(v, dict) else "",
)  # fmt: skip
def test_a_wrong_monoid_is_caught(name, case, fields, check, monkeypatch):
    check(case)
    wrong = dataclasses.replace(MONOIDS[name])
    for key, value in fields.items():
        object.__setattr__(wrong, key, value)
    monkeypatch.setitem(MONOIDS, name, wrong)
    interpret._programs.clear()
    interpret._joined.cache_clear()
    cpu._kernels.clear()
    try:
        with pytest.raises(AssertionError):
            check(case)
    finally:
        interpret._programs.clear()
        interpret._joined.cache_clear()
        cpu._kernels.clear()
