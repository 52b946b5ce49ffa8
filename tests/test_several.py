"""Several reductions in one sweep over the pairs, and sweeps that read what others have left."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest

from dred import Genred, InputError, OptionError, Reduction
from dred.formula.language import Variable, formula, read
from dred.formula.pullback import Reduced, Saved
from dred.kernel import cuda, engine
from dred.kernel.spec import CHAIN
from dred.options import Accumulation
from dred.reductions import MONOIDS, REDUCTIONS
from dred.routine import Routine
from dred.sweeps import sweeps
from tests.reduction_cases import ALIASES, CASES, arrays_of, check, listed, routine_of, same

CHAINED = [c for c in CASES if MONOIDS[REDUCTIONS[c.reduction_op].monoid].chained]


@pytest.fixture
def folds(monkeypatch):
    """The specs of all folds that the engine is asked for."""
    seen, fold = [], engine.fold

    def remember(spec, *args, **more):
        seen.append(spec)
        return fold(spec, *args, **more)

    monkeypatch.setattr(engine, "fold", remember)
    monkeypatch.setattr(engine, "prepared", lambda *_: None)  # no call is ready without it
    return seen


def random_of(M, N, dtype="float64", seed=0):
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=shape).astype(dtype) for shape in ((M, 2), (N, 2), (N, 3)))


# -- values ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "dtype", "axis"), [
    ((23, 70), "float32", 1), pytest.param((70, 23), "float64", 0, marks=pytest.mark.slow),
])  # fmt: skip
def test_several_are_what_each_is_alone(shape, dtype, axis):
    """But for rounding: terms of sums are rewritten where nothing else reads them."""
    for cases, options in ((CHAINED, {}), (CASES, {"sum_scheme": "direct_sum"})):
        given = random_of(*shape, dtype)
        together = Genred(cases, ALIASES, axis=axis, **options)(*given, backend="cpu")
        assert type(together) is tuple
        assert len(together) == len(cases)
        for got, case in zip(together, cases, strict=True):
            sums = any(f.kind == "sum" for f in MONOIDS[REDUCTIONS[case.reduction_op].monoid].fields)
            sums |= bool(REDUCTIONS[case.reduction_op].weighted and case.formula2)
            alone = routine_of(case, axis, **(options if sums else {}))(*given, backend="cpu")
            for a, b in zip(*((r if isinstance(r, tuple) else (r,)) for r in (got, alone)), strict=True):
                assert a.dtype == b.dtype
                if a.dtype.kind in "ib":
                    same(a, b)
                np.testing.assert_allclose(a, b, rtol={4: 2e-5}.get(a.itemsize, 1e-12), atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1])
def test_several_agree_with_their_references(axis):
    given = arrays_of(11, 13)
    for got, case in zip(Genred(CASES, ALIASES, axis=axis)(*given), CASES, strict=True):
        check(got, case, axis, given)


def test_other_bits_are_found():
    x, y, b = random_of(23, 70)
    with pytest.raises(AssertionError):
        same(Genred([("x * y", "Sum")], ALIASES, axis=1)(x, y, b), (Genred("x * y", ALIASES, axis=1)(x, y * 2, b),))


def test_one_sweep_over_the_pairs(folds):
    items = [("x * y", "KMin", 3), ("Sum(x)", "Sum"), ("x * y", "ArgKMin", 3), ("x * y", "KMin_ArgKMin", 3)]
    low, total, where, both = Genred(items, ALIASES, axis=1)(*random_of(5, 40), backend="cpu")
    (spec,) = folds
    assert [part.monoid for part in spec.parts] == ["least", "sum"]  # equal states are computed once
    same((low, where), both)
    assert (low.shape, where.dtype, total.shape) == ((5, 3, 2), np.int64, (5, 1))


def test_other_states_are_no_equal_ones(folds):
    items = [("x * y", "KMin", 3), ("x * y", "KMin", 4), ("x * y", "KMax", 3), ("y * x + 1", "KMin", 3)]
    Genred(items, ALIASES, axis=1)(*random_of(5, 40), backend="cpu")
    assert len(folds[0].parts) == 4


def test_one_item_gives_a_tuple_of_one():
    given = random_of(5, 40)
    (one,) = Genred([("x * y", "Min_ArgMin")], ALIASES, axis=1)(*given)
    same(one, Genred("x * y", ALIASES, "Min_ArgMin", axis=1)(*given))


def test_a_term_by_term_sum_makes_all_so():
    items = [("x", "Sum"), ("x", "LogSumExp"), ("x", "Min")]
    assert Genred(items, ALIASES).spec("float32").chain == CHAIN
    assert Genred([*items, ("x", "Prod")], ALIASES).spec("float32").chain == 1
    spec = Genred([*items, ("x", "Variance")], ALIASES, sum_scheme="kahan_scheme").spec("float32")
    assert [part.monoid for part in spec.parts] == ["sum_kahan", "exponentials_kahan", "min", "moments"]
    assert spec.chain == 1


def test_what_it_is():
    items = [("x", "KMin", 2), ["Sum(x)", "LogSumExp", None, "b"], ("x", "Min_ArgMin")]
    routine = Genred(items, ALIASES, axis=1, dtype="float64")
    assert repr(routine) == (
        "Genred([('x', 'KMin', 2, None), ('Sum(x)', 'LogSumExp', None, 'b'), ('x', 'Min_ArgMin', None, None)], "
        f"{ALIASES!r}, axis=1)"
    )
    assert routine.formula == ("x", "Sum(x)", "x")
    assert routine.reduction_op == ("KMin", "LogSumExp", "Min_ArgMin")
    assert routine.dim == (4, 3, 2, 2)
    given = arrays_of(5, 9)
    same(pickle.loads(pickle.dumps(routine))(*given), routine(*given))


def test_out():
    routine = Genred([("x", "Min_ArgMin"), ("x", "Any")], ALIASES, axis=1)
    given = arrays_of(5, 9)
    out = np.empty((5, 2)), np.empty((5, 2), int), np.empty((5, 2), bool)
    got = routine(*given, out=out)
    assert isinstance(got[0], tuple)
    assert all(a is b for a, b in zip(listed(got), out, strict=True))
    same(got, routine(*given))
    with pytest.raises(InputError) as caught:
        routine(*given, out=out[:2])
    assert str(caught.value) == "out must be a flat tuple of 3 arrays, as many as the result has"


# -- refusals ----------------------------------------------------------------------------------------------------------

ITEM = "it must be (formula, reduction_op), with opt_arg and formula2 behind them where the reduction takes them"


@pytest.mark.parametrize(
    ("items", "options", "message"),
    [
        ([], {}, "the list of reductions is empty: its items are (formula, reduction_op, opt_arg, formula2)"),
        (["x"], {}, f"item 0 of the list of reductions is 'x': {ITEM}"),
        ([("x", "Sum"), ("x",)], {}, f"item 1 of the list of reductions is ('x',): {ITEM}"),
        ([("x", "Sum", None, None, 1)], {},
         f"item 0 of the list of reductions is ('x', 'Sum', None, None, 1): {ITEM}"),
        ([("x", "Sum"), ("x", "Summ")], {},
         "item 1 of the list of reductions: unknown reduction 'Summ': did you mean 'Sum'?"),
        ([("x", "KMin")], {}, "item 0 of the list of reductions: opt_arg=None: KMin keeps K terms, and K must be given "
         "as an integer of 1 or more"),
        *(([("x", "Sum")], options,
           "a list of reductions says reduction_op, opt_arg and formula2 of each: leave them out")
          for options in ({"reduction_op": "Min"}, {"opt_arg": 3}, {"formula2": "x"})),
        ([("x", "Min"), ("x", "Any"), ("y", "Min")], {"sum_scheme": "direct_sum"},
         "sum_scheme='direct_sum': none of Min, Any has a sum, leave it at 'auto'"),
        ([("x", "Min"), ("x", "Variance")], {"sum_scheme": "kahan_scheme"},
         "sum_scheme='kahan_scheme': none of Min, Variance has a compensated sum, leave it at 'auto'"),
    ],
    ids=str,
)  # fmt: skip
def test_lists_that_are_refused(items, options, message):
    with pytest.raises(OptionError) as caught:
        Genred(items, ALIASES, **options)
    assert str(caught.value) == message


def test_an_option_that_makes_sense_for_one_is_accepted():
    spec = Genred([("x", "Min"), ("x", "Sum")], ALIASES, dtype_acc="float32").spec("float32")
    assert spec.acc == "float32"


# -- sweeps ------------------------------------------------------------------------------------------------------------

XY = ["x = Vi(1)", "y = Vj(1)"]


def chain_of_three():
    """sum_j exp(x_i y_j - m_i) z_j, m_i = max_j x_i y_j (saved with its place), z_j = sum_i x_i y_j."""
    declared = formula("x * y", XY)
    largest = Reduced("Max_ArgMax", declared.node, 0)
    total = Reduced("Sum", declared.node, 1)
    m, q, z = Variable(2, 1, 0), Variable(3, 2, 0), Variable(4, 1, 1)
    node = formula("Exp(x * y - m) * z + 0 * Sum(q)", [*XY, "m = Vi(1)", "q = Vi(2)", "z = Vj(1)"]).node
    saved = ((m, Saved(largest, "m")), (q, Saved(largest, "q")), (z, Saved(total, "")))
    return declared, Reduced("Sum", node, 0, saved=saved)


def by_hand(x, y):
    f = x * y.T
    return (np.exp(f - f.max(1, keepdims=True)) * f.sum(0)).sum(1, keepdims=True)


def test_sweeps_in_order():
    declared, reduced = chain_of_three()
    over_i, over_j, last = sweeps((reduced,), declared.variables, "float64", "float64", 32, False)
    assert [(s.label, s.spec.axis, s.places) for s in (over_i, over_j, last)] == [
        ("Sum", 0, (4,)), ("Max_ArgMax", 1, (2, 3)), ("Sum", 1, ()),
    ]  # fmt: skip
    assert [v.ind for v in last.spec.variables] == [0, 1, 2, 3, 4]
    assert [v.ind for v in over_i.spec.variables] == [0, 1]
    assert len(over_j.spec.parts) == 1


def test_what_is_ready_at_the_same_time_shares_a_sweep():
    declared = formula("x * y", XY)
    ready = [Reduced(name, declared.node, 0) for name in ("Max", "Sum", "ArgMin", "Min_ArgMin")]
    saved = [
        (Variable(2 + n, dim, 0), Saved(r, "")) for n, (r, dim) in enumerate(zip(ready, (1, 1, 2, 1), strict=True))
    ]
    later = Reduced("Sum", formula("x * Vi(2, 1)", XY).node, 0, saved=(saved[0],))
    node = read("Vi(3, 1) * Sum(Vi(4, 2)) * Vi(6, 1) * Vi(5, 1)", XY)
    more = ((Variable(6, 1, 0), Saved(later, "")), *saved[1:])
    planned = sweeps((Reduced("Sum", node, 0, saved=more),), declared.variables, "float64", "float64", 32, True)
    assert [s.label for s in planned] == ["Max, Sum, ArgMin+Min_ArgMin", "Sum", "Sum"]
    assert [s.places for s in planned] == [(2, 3, 4, 5), (6,), ()]
    assert [part.monoid for part in planned[0].spec.parts] == ["max", "sum_kahan", "least"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_one_sweep_leaves_the_next_one_reads(dtype, folds):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(17, 1)).astype(dtype), rng.normal(size=(29, 1)).astype(dtype)
    declared, reduced = chain_of_three()
    got = Routine(declared, XY, (reduced,), dtype=None, how=Accumulation(None, 32, False))(x, y, backend="cpu")
    np.testing.assert_allclose(
        got, by_hand(x.astype(float), y.astype(float)), rtol=1e-4 if dtype == "float32" else 1e-12
    )
    assert len(folds) == 3


def test_the_gradient_of_a_soft_maximum_takes_two_sweeps(folds):
    x, y, _ = random_of(6, 40)
    e = np.random.default_rng(1).normal(size=(6, 1))
    gradient = Reduction("Grad(LogSumExp_Reduction(-SqDist(x, y), 0), x, e)", ["x = Vi(2)", "y = Vj(2)", "e = Vi(1)"])
    got = gradient(x, y, e, backend="cpu")
    assert len(folds) == 2
    f = -((x[:, None] - y[None]) ** 2).sum(-1)
    weights = np.exp(f) / np.exp(f).sum(1, keepdims=True)
    np.testing.assert_allclose(got, e * (weights[..., None] * -2 * (x[:, None] - y[None])).sum(1), rtol=1e-10)
    same(pickle.loads(pickle.dumps(gradient))(x, y, e, backend="cpu"), got)


class OnDevice:
    """Stands for a CuPy array."""

    __module__ = "cupy"
    __cuda_array_interface__ = {}  # noqa: RUF012
    device = SimpleNamespace(id=0)

    def __init__(self, array):
        self.array = array

    def __getattr__(self, name):
        return getattr(self.array, name)


def test_on_a_device_what_one_sweep_leaves_stays_there(monkeypatch):
    seen = []

    def reduce_device(spec, arrays, M, N, outputs, *, pattern, device_id):
        assert device_id == -1
        assert all(isinstance(arrays[v.ind], OnDevice) for v in spec.read)
        seen.append(len(outputs))
        host = [a.array if isinstance(a, OnDevice) else a for a in arrays]
        state = engine.fold(spec, "cpu", engine.empty(spec, M), host, M, N)
        return tuple(map(OnDevice, engine.finalize(spec, state, outputs)))

    monkeypatch.setattr(cuda, "placed", lambda arrays, device_id: device_id)
    monkeypatch.setattr(cuda, "reduce_device", reduce_device)
    for ready in ("signature", "prepared"):  # which ask the device
        monkeypatch.setattr(cuda, ready, lambda *given: None)
    x, y, _ = random_of(6, 40)
    e = np.ones((6, 1))
    routine = Reduction("Grad(LogSumExp_Reduction((x | y), 0), y, e)", ["x = Vi(2)", "y = Vj(2)", "e = Vi(1)"])
    got = routine(*map(OnDevice, (x, y, e)))
    same(got.array, routine(x, y, e, backend="cpu"))
    low, number = Genred("x * y", ["x = Vi(2)", "y = Vj(2)"], "Min_ArgMin", 1)(OnDevice(x), OnDevice(y))
    assert (low.dtype, number.dtype) == (np.float64, np.int64)
    assert seen == [2, 1, 2]
