"""Rows that are computed again in float64: right results pass, and wrong ones of any reduction do not."""

import numpy as np
import pytest

from dred import Genred
from dred.formula.oracle import dense
from dred.jobs import verify
from dred.reductions import REDUCTIONS

ALIASES = ["x = Vi(2)", "y = Vj(2)", "p = Pm(1)"]
PARAMETERS = {"K": 3, "ddof": 1, "edges": [-2.0, -0.5, 0.0, 0.7, 3.0]}
M, N = 13, 41
ROWS = 6


def cases():
    for name, entry in REDUCTIONS.items():
        scalar = entry.scalar or entry.parameter == "edges"
        formula = "p * (x | y)" if scalar else "p * x * y"
        needs = "G" in entry.signature and "G?" not in entry.signature
        for weight in dict.fromkeys(["x - y" if needs else None, "x - y" if "G" in entry.signature else None]):
            for axis in (0, 1):
                yield name, formula, weight, axis


CASES = list(cases())


def reads(arrays):
    return {n: (lambda a, b, array=array: array if array.ndim == 1 else array[a:b]) for n, array in enumerate(arrays)}


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(2)
    return [rng.normal(size=(M, 2)), rng.normal(size=(N, 2)), np.array([0.8])]


def checked(routine, arrays, results, wanted=ROWS, left=()):
    read = reads([*arrays])
    last = [(lambda a, b, array=array: array[a:b]) for array in results]
    return verify.verify(routine.reduced, read, dict(left), last, (M, N), wanted, 1e-7, seed=3)


def results_of(routine, arrays):
    found = routine(*arrays, backend="cpu")
    return [*found] if isinstance(found, tuple) else [found]


@pytest.mark.parametrize(("name", "formula", "weight", "axis"), CASES)
def test_every_reduction(arrays, name, formula, weight, axis):
    routine = Genred(
        formula, ALIASES, name, axis=axis, formula2=weight, opt_arg=PARAMETERS.get(REDUCTIONS[name].parameter)
    )
    results = results_of(routine, arrays)
    found = checked(routine, arrays, results)
    assert len(found) == len(results)
    assert all(each.right and len(each.rows) == ROWS for each in found), [*map(str, found)]
    for n in range(len(results)):  # one row is that of another
        wrong = [*results]
        row = found[n].rows[2]
        other = next((k for k in range(len(wrong[n])) if (wrong[n][k] != wrong[n][row]).any()), None)
        if other is None:  # such as Any
            wrong[n] = ~wrong[n]
        else:
            wrong[n] = wrong[n].copy()
            wrong[n][row] = wrong[n][other]
        again = checked(routine, arrays, wrong)
        assert not again[n].right, again[n]
        assert all(each.right for k, each in enumerate(again) if k != n)


def test_long_rows_are_computed_in_panels(arrays, monkeypatch):
    monkeypatch.setattr(verify, "PANEL", 7)
    routine = Genred("p * Exp(-SqDist(x, y)) + IndexJ() - IndexI()", ALIASES, "Sum", axis=1)
    assert all(each.right for each in checked(routine, arrays, results_of(routine, arrays)))
    routine = Genred("p * (x | y) + IndexJ() * 2 - IndexI()", ALIASES, "LogSumExp", axis=0)
    assert all(each.right for each in checked(routine, arrays, results_of(routine, arrays)))


@pytest.mark.parametrize(
    ("got", "want", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.5], [1.0, 2.0], 0.25),
        ([np.inf, 2.0], [np.inf, 2.0], 0.0),
        ([np.nan, 2.0], [np.nan, 2.0], 0.0),
        ([np.nan, 2.0], [1.0, 2.0], np.inf),
        ([np.inf, 2.0], [1.0, 2.0], np.inf),
        ([-np.inf, 2.0], [np.inf, 2.0], np.inf),
        ([np.inf, 2.0], [1e39, 2.0], 0.0),  # beyond float32
        ([0.0], [0.0], 0.0),
        (np.float16([np.inf, 2.0]), [1e5, 2.0], 0.0),  # beyond float16
        (np.float16([-np.inf, 2.0]), [1e5, 2.0], np.inf),
        (np.float16([np.inf, 2.0]), [1e4, 2.0], np.inf),
        (np.float32([0.0]), [1e-50], 0.0),  # less than float32 knows
        (np.float32([0.0]), [2e-38], 1.0),
    ],
)
def test_errors_of_special_values(got, want, error):
    found = verify._Error()
    found.add(got, want)
    assert found.value == pytest.approx(error)


def test_row_numbers_of_ties_may_be_any():
    arrays = [np.zeros((M, 1)), np.repeat(np.arange(N // 2 + 1.0), 2)[:N, None]]
    routine = Genred("Abs(x - y)", ["x = Vi(1)", "y = Vj(1)"], "ArgMin", axis=1)
    results = results_of(routine, arrays)
    assert (results[0] == 0).all()
    read = reads(arrays)

    def error(rows):
        last = [lambda a, b: rows[a:b]]
        (found,) = verify.verify(routine.reduced, read, {}, last, (M, N), ROWS, 1e-7, seed=3)
        return found.error

    assert error(results[0]) == 0
    assert error(results[0] + 1) == 0  # just as near
    assert error(results[0] + 2) > 0
    assert error(results[0] - 1) == np.inf  # none


def test_what_a_sweep_leaves_to_the_next_is_checked_too(arrays):
    """The gradient of a log-sum-exp by y reads a reference and a sum for each i."""
    routine = Genred("p * (x | y)", ALIASES, "LogSumExp", axis=1).grad("y")
    e = np.random.default_rng(1).normal(size=(M, 1))
    given = [*arrays, e]
    saved = {v.ind: s for r in routine.reduced for v, s in r.saved}
    fields = {s.field: ind for ind, s in saved.items()}
    assert sorted(fields) == ["m", "s"]
    f = dense(next(iter(saved.values())).reduced.node, arrays)
    m = f.max(axis=1) - 0.25  # any reference will do
    state = {fields["m"]: m, fields["s"]: np.exp(f - m[:, None]).sum(axis=1)}
    results = results_of(routine, given)

    def found(state):
        left = {ind: (lambda a, b, array=array: array[a:b]) for ind, array in state.items()}
        return checked(routine, given, results, wanted=M, left=left.items())

    right = found(state)
    assert [each.what for each in right] == ["LogSumExp, s for the next sweep", "Sum"]
    assert all(each.right for each in right)
    wrong = found({**state, fields["s"]: state[fields["s"]] * (1 + 1e-3)})
    assert [each.right for each in wrong] == [False, False]


CANCELLING = {
    "Mean": ("x | y", None),
    "Variance": ("x | x", None),  # of equal terms
    "SoftMax": ("0 * (x | y)", "x - y"),
    "LogSumExp": ("0 * (x | y) - p", None),  # log(1)
    "Max_SumShiftExpWeight": ("0 * (x | y)", "x - y"),
}


@pytest.mark.parametrize("name", CANCELLING)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_cancels_is_as_right_as_its_terms(name, dtype):
    formula, weight = CANCELLING[name]
    y = np.random.default_rng(4).normal(size=(400, 2))
    given = [np.zeros((M, 2)) if weight else np.ones((M, 2)), np.concatenate([y, -y]), np.array([np.log(800)])]
    given = [array.astype(dtype) for array in given]
    routine = Genred(formula, ALIASES, name, axis=1, formula2=weight)
    last = [(lambda a, b, array=array: array[a:b]) for array in results_of(routine, given)]
    tolerance = verify.TOLERANCE[dtype]

    def found(last):
        return verify.verify(routine.reduced, reads(given), {}, last, (M, 800), ROWS, tolerance, seed=3)[0]

    assert found(last).right, found(last)
    wrong = 0.01 * 800 if name.startswith("Max") else 0.01  # relative to terms added up, or to a mean of them
    assert not found([lambda a, b: last[0](a, b) + np.array(wrong, dtype)]).right


def test_no_rows_at_all():
    y = np.zeros((0, 1))
    for name in ("ArgMin", "Min", "LogSumExp"):
        routine = Genred("x - y", ["x = Vi(1)", "y = Vj(1)"], name, axis=1)
        (result,) = results_of(routine, [np.ones((M, 1)), y])
        (found,) = verify.verify(
            routine.reduced,
            reads([np.ones((M, 1)), y]),
            {},
            [lambda a, b, r=result: r[a:b]],
            (M, 0),
            ROWS,
            1e-7,
            seed=3,
        )
        assert found.error == 0
        assert verify.unchecked(routine.reduced, (0, 5)) == "there are none"


def test_how_many_rows():
    assert verify.chosen(None, 100, 100, 1) == verify.chosen(None, 100, 100, 1)
    assert len(verify.chosen(None, 100, 100, 1)) == 5
    assert len(verify.chosen(None, 100, 20_000_000, 1)) == 2
    assert len(verify.chosen(None, 100, 10**12, 1)) == 1
    assert verify.chosen(9, 4, 100, 1) == (0, 1, 2, 3)
    assert verify.chosen(0, 4, 100, 1) == ()
    assert verify.chosen(3, 1000, 10, 1) != verify.chosen(3, 1000, 10, 2)


def test_rows_whose_terms_do_not_fit_are_only_checked_when_asked(arrays, monkeypatch):
    monkeypatch.setattr(verify, "MOST", 8 * N * 2 - 1)
    routine = Genred("p * x * y", ALIASES, "LogSumExp", axis=1)
    results = results_of(routine, arrays)
    assert checked(routine, arrays, results, wanted=None) == []
    assert verify.unchecked(routine.reduced, (M, N)) == (
        "the terms of a row are 656 B: ask for a number of rows where they fit into memory"
    )
    assert checked(routine, arrays, results, wanted=2)[0].right
    total = Genred("p * x * y", ALIASES, "Sum", axis=1)  # is added up panel by panel
    assert len(checked(total, arrays, results_of(total, arrays), wanted=None)[0].rows) == 5
