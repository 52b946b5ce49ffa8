"""Every entry of the table of reductions is a monoid, and gives the dense answer however its terms are cut."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dred.formula.derive import vjp
from dred.formula.language import formula
from dred.formula.node import const, var
from dred.kernel import engine, interpret
from dred.kernel.interpret import array_text, merge_states
from dred.kernel.spec import KernelSpec
from dred.reductions import REDUCTIONS, identities

INTEGERS = st.integers(-1000, 1000).map(float)
FLOATS = st.floats(-1e6, 1e6)
WILD = st.one_of(FLOATS, st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0]))


def spec_of(name, dtype="float64", axis=1):
    return KernelSpec(var(0, 1, 1 if axis == 1 else 0), name, axis, dtype, "float64")


def lifted(name, value):
    """The state of one term."""
    reduction = REDUCTIONS[name]
    types = [np.float64 if f.kind == "value" else np.int64 for f in reduction.fields]
    names = {"f": np.array([[value]])}
    return tuple(np.asarray(array_text(t, names), kind) for t, kind in zip(reduction.lift, types, strict=True))


def folded(name, values, state=None):
    spec = spec_of(name)
    state = engine.empty(spec, 1) if state is None else state
    return engine.fold(spec, "numpy", state, [np.array(values, np.float64).reshape(-1, 1)], 1, len(values))


def result(name, state):
    return engine.finalize(spec_of(name), state).ravel()


def dense(name, values):
    with np.errstate(all="ignore"):
        return np.ravel(REDUCTIONS[name].numpy(np.array(values, np.float64).reshape(-1, 1), 0))


def same(a, b):
    for left, right in zip(a, b, strict=True):
        np.testing.assert_array_equal(left, right)


def close(a, b, values):
    scale = np.abs([v for v in values if math.isfinite(v)]).sum() if len(values) else 0.0
    for left, right in zip(a, b, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-13, atol=1e-13 * scale)


# -- the laws, as checks that take a name ------------------------------------------------------------------------------


def check_identity(name, value):
    spec, state = spec_of(name), lifted(name, value)
    empty = engine.empty(spec, 1)
    same(merge_states(spec, empty, state), state)
    same(merge_states(spec, state, empty), state)
    same(merge_states(spec, empty, empty), empty)


def check_associative(name, values, compare):
    spec = spec_of(name)
    a, b, c = (lifted(name, v) for v in values)
    left = merge_states(spec, merge_states(spec, a, b), c)
    right = merge_states(spec, a, merge_states(spec, b, c))
    compare(left, right)


def check_chunks(name, values, cuts, order):
    """Chunks folded one after another, and folded apart and merged pairwise in some order of merges, against NumPy."""
    spec = spec_of(name)
    edges = [0, *sorted(c % (len(values) + 1) for c in cuts), len(values)]
    chunks = [values[a:b] for a, b in itertools.pairwise(edges)]
    through = engine.empty(spec, 1)
    for chunk in chunks:
        through = folded(name, chunk, through)
    states = [folded(name, chunk) for chunk in chunks]
    for k in order:
        if len(states) == 1:
            break
        k %= len(states) - 1
        states[k : k + 2] = [merge_states(spec, states[k], states[k + 1])]
    for state in states[1:]:
        states[0] = merge_states(spec, states[0], state)
    wanted = dense(name, values)
    for state in (through, states[0]):
        close([result(name, state)], [wanted], values)


# -- every entry -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REDUCTIONS)
def test_entry_is_complete(name):
    r = REDUCTIONS[name]
    assert r.name == name
    assert r.doc
    assert len(r.fields) == len(r.lift) == len(r.merge) == len(identities(r)) > 0
    assert {f.kind for f in r.fields} <= {"value", "index"}
    assert len({f.name for f in r.fields}) == len(r.fields)


@pytest.mark.parametrize("name", REDUCTIONS)
@given(value=WILD)
def test_the_empty_state_is_neutral(name, value):
    check_identity(name, value)


@pytest.mark.parametrize("name", REDUCTIONS)
@given(values=st.tuples(INTEGERS, INTEGERS, INTEGERS))
def test_merging_whole_numbers_is_associative(name, values):
    check_associative(name, values, same)


@pytest.mark.parametrize("name", REDUCTIONS)
@given(values=st.tuples(WILD, WILD, WILD))
def test_merging_is_associative_up_to_rounding(name, values):
    check_associative(name, values, lambda a, b: close(a, b, values))


@pytest.mark.parametrize("name", REDUCTIONS)
@given(values=st.lists(WILD, max_size=40), cuts=st.lists(st.integers(0, 1000), max_size=6),
       order=st.lists(st.integers(0, 1000), max_size=6))  # fmt: skip
def test_any_chunks_give_the_dense_answer(name, values, cuts, order):
    check_chunks(name, values, cuts, order)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_without_terms(name):
    state = folded(name, [])
    same(state, engine.empty(spec_of(name), 1))
    np.testing.assert_array_equal(result(name, state), dense(name, []))


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("axis", [0, 1])
def test_states_are_never_written(name, axis):
    spec = spec_of(name, axis=axis)
    values = [np.arange(300.0).reshape(-1, 1)]
    state = engine.fold(spec, "numpy", engine.empty(spec, 2), values, 2, 300)
    for field in state:
        field.flags.writeable = False
    before = [field.tobytes() for field in state]
    more = engine.fold(spec, "numpy", state, values, 2, 300)
    engine.merge(spec, state, more)
    engine.finalize(spec, state)
    assert [field.tobytes() for field in state] == before


@pytest.mark.parametrize("name", [n for n, r in REDUCTIONS.items() if r.cotangent is not None])
def test_the_cotangent_is_the_derivative(name):
    """What the cotangent of a result sends to each term, against finite differences of the reference."""
    r = REDUCTIONS[name]
    rng = np.random.default_rng(0)
    values, direction, e = rng.normal(size=(9, 1)), rng.normal(size=(9, 1)), 0.7
    f = formula("x", ["x = Vj(1)"]).node
    (back,) = vjp(f, [f], const(1))
    assert back is const(1)
    sent = array_text(r.cotangent, {"e": e})
    step = 1e-6
    slope = (r.numpy(values + step * direction, 0) - r.numpy(values - step * direction, 0)) / (2 * step)
    np.testing.assert_allclose((sent * direction).sum(), (e * slope).sum(), rtol=1e-6)


# -- these laws can fail -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "check"),
    [
        ({"merge": ("s0 - s1",)}, lambda: check_associative("Sum", (1.0, 2.0, 3.0), same)),
        ({"merge": ("s0 + s1 + 1",)}, lambda: check_identity("Sum", 1.0)),
        ({"merge": ("s0",)}, lambda: check_identity("Sum", 1.0)),
        ({"lift": ("f * f",)}, lambda: check_chunks("Sum", [1.0, 2.0], [1], [0])),
        ({"finalize": "-s"}, lambda: check_chunks("Sum", [1.0, 2.0], [1], [0])),
        ({"numpy": lambda v, axis: v.max(axis)}, lambda: check_chunks("Sum", [1.0, 2.0], [], [])),
        ({"merge": ("max(s0, s1)",)}, lambda: check_identity("Sum", -1.0)),
    ],
    ids=lambda v: ",".join(v) if isinstance(v, dict) else "",
)
def test_a_wrong_entry_is_caught(fields, check, monkeypatch):
    check()
    monkeypatch.setitem(REDUCTIONS, "Sum", dataclasses.replace(REDUCTIONS["Sum"], **fields))
    interpret._kernel.cache_clear()
    try:
        with pytest.raises(AssertionError):
            check()
    finally:
        interpret._kernel.cache_clear()
