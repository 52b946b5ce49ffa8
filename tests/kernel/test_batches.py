"""Batches and patterns of columns, as folds see them: every row against the terms that it meets, in NumPy."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dred.kernel import cpu_calls, engine
from dred.kernel.batches import runs
from dred.kernel.output import Output, empty
from dred.kernel.pattern import Pattern
from dred.reductions import REDUCTIONS
from tests.kernel.test_reductions_cpu import EVERY, FEW, check, problem, wanted
from tests.shim import fake_cupy, shim

BACKENDS = ("numpy", "cpu")


def pattern_of(rng, M, N, blocks=4, most=3):
    """Disjoint blocks of rows in any order, some empty, some without intervals; intervals overlap and may be empty."""
    cuts = np.sort(rng.integers(0, M + 1, 2 * blocks))
    rows = rng.permutation(cuts.reshape(-1, 2))
    counts = rng.integers(0, most + 1, blocks)
    intervals = np.sort(rng.integers(0, N + 1, (int(counts.sum()), 2)), axis=1)
    return Pattern.of(rows.astype(np.int64), np.cumsum(counts), intervals.astype(np.int64))


def columns_of(pattern, row):
    """The columns that a row meets, in order."""
    for (low, high), first, last in zip(pattern.blocks, pattern.starts, pattern.ends, strict=True):
        if low <= row < high:
            return np.sort(np.concatenate([np.arange(a, b) for a, b in pattern.intervals[first:last]]))
    return np.arange(0)


def batched(spec, batch, own):
    return dataclasses.replace(spec, batch=batch, own=own)


def points(rng, spec, own, M, N):
    """Small whole numbers and halves: ties abound and sums are exact."""
    kept, reduced = (M, N) if spec.axis == 1 else (N, M)
    arrays = []
    for v, lead in zip(spec.variables, own, strict=True):
        rows = {0: (), 1: (kept,), 2: (reduced,)}[spec.level(v.cat)]
        arrays.append(rng.integers(-3, 4, (*lead, *rows, v.dim)).astype(spec.dtype) / 2)
    return arrays


def computed(case, spec, arrays, kept, reduced, backend, **more):
    state = engine.fold(spec, backend, empty(spec, kept), arrays, kept, reduced, **more)
    return engine.finalize(spec, state, Output.of(case.name, 0, case.parameter))


def expected(case, f, g, axis, arrays, pattern):
    """Row by row, of the columns that it meets."""
    kept = len(arrays[0 if axis == 1 else 1])
    rows = []
    for i in range(kept):
        met = columns_of(pattern, i)
        one = list(arrays)
        for k in (1, 2) if axis == 1 else (0,):
            one[k] = arrays[k][met]
        for k in (0,) if axis == 1 else (1, 2):
            one[k] = arrays[k][i : i + 1]
        found = wanted(case, f, g, axis, one)
        numbers = ["q" in result.texts for result in REDUCTIONS[case.name].results]
        rows.append(
            [
                np.where(a >= 0, np.append(met, -1)[a], -1) if yes and len(met) else a
                for a, yes in zip(found, numbers, strict=True)
            ]
        )
    return tuple(np.concatenate(parts) for parts in zip(*rows, strict=True))


@EVERY
@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_meet_the_columns_of_their_pattern(case, backend):
    rng = np.random.default_rng(1)
    for axis, dtype, M, N in [(1, "float32", 40, 700), (0, "float64", 90, 37)]:
        spec, f, g = problem(case, 2, axis, dtype)
        arrays = points(rng, spec, ((), (), ()), M, N)
        kept, reduced = (M, N) if axis == 1 else (N, M)
        pattern = pattern_of(rng, kept, reduced)
        found = computed(case, spec, arrays, kept, reduced, backend, pattern=pattern)
        check(case, found, expected(case, f, g, axis, arrays, pattern), dtype)


SHAPES = [
    ((3,), ((3,), (3,), (1,))),
    ((2, 3), ((2, 1), (1, 3), (1, 1))),
    ((2, 1, 3), ((1, 1, 1), (2, 1, 3), (2, 1, 1))),
    ((4, 2), ((4, 2), (4, 2), (1, 1))),
    ((1,), ((1,), (1,), (1,))),
]


@pytest.mark.parametrize("case", FEW, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("batch", "own"), SHAPES, ids=str)
def test_batches_are_problems_of_their_own(case, backend, batch, own):
    rng = np.random.default_rng(2)
    for axis, dtype, M, N in [(1, "float32", 19, 70), (0, "float64", 33, 20), (1, "float64", 2, 9000)]:
        spec, f, g = problem(case, 2, axis, dtype)
        arrays = points(rng, spec, own, M, N)
        kept, reduced = (M, N) if axis == 1 else (N, M)
        found = computed(case, batched(spec, batch, own), arrays, kept, reduced, backend)
        patterned = kept < 100 and reduced < 100 and pattern_of(rng, kept, reduced)
        some = patterned and computed(
            case, batched(spec, batch, own), arrays, kept, reduced, backend, pattern=patterned
        )
        for place in np.ndindex(*batch):
            mine = [np.broadcast_to(a, (*batch, *a.shape[len(batch) :]))[place] for a in arrays]
            check(case, [a[place] for a in found], wanted(case, f, g, axis, mine), dtype)
            if patterned:
                check(case, [a[place] for a in some], expected(case, f, g, axis, mine, patterned), dtype)


@pytest.mark.slow
@pytest.mark.skipif(not shim.available(), reason="no C++ compiler")
@pytest.mark.parametrize("case", FEW, ids=str)
@pytest.mark.parametrize(("batch", "own"), [((), ((), (), ())), SHAPES[1]], ids=str)
def test_on_a_device(monkeypatch, case, batch, own):
    """Batches and patterns of every sort of state, whatever the memory: panels, blocks of rows, splits of columns."""
    rng = np.random.default_rng(6)
    for axis, dtype, M, N in [(1, "float32", 150, 700), (0, "float64", 90, 137)]:
        spec, f, g = problem(case, 2, axis, dtype)
        arrays = points(rng, spec, own, M, N)
        kept, reduced = (M, N) if axis == 1 else (N, M)
        pattern = pattern_of(rng, kept, reduced)
        results = []
        for memory in ("1e9", "2e5"):
            monkeypatch.setenv("DRED_CUDA_MEMORY", memory)
            with fake_cupy.installed(memory=1 << 24):
                for met in (pattern, None):
                    found = computed(case, batched(spec, batch, own), arrays, kept, reduced, "cuda", pattern=met)
                    results.append([a.tobytes() for a in found])
                    for place in np.ndindex(*batch):
                        mine = [np.broadcast_to(a, (*batch, *a.shape[len(batch) :]))[place] for a in arrays]
                        want = expected(case, f, g, axis, mine, met) if met else wanted(case, f, g, axis, mine)
                        check(case, [a[place] for a in found], want, dtype)
        assert results[:2] == results[2:]


def test_one_call_takes_all_batches_that_lie_at_equal_distances():
    spec, _, _ = problem(FEW[0], 2, 1, "float32")
    for batch, own, calls in [
        ((4, 3), ((4, 3), (1, 1), (4, 3)), [(0, 12)]),
        ((4, 3), ((4, 1), (4, 3), (4, 3)), [(0, 3), (3, 3), (6, 3), (9, 3)]),
        ((1, 1), ((1, 1), (1, 1), (1, 1)), [(0, 1)]),
    ]:
        arrays = points(np.random.default_rng(0), spec, own, 5, 6)
        assert [(first, count) for first, count, _ in runs(batched(spec, batch, own), arrays)] == calls


@pytest.mark.parametrize("case", FEW, ids=str)
def test_neither_threads_nor_calls_change_a_bit(monkeypatch, case):
    rng = np.random.default_rng(3)
    spec, _, _ = problem(case, 2, 1, "float32")
    spec = batched(spec, (3,), ((3,), (1,), (3,)))
    M, N = 150, 5000
    arrays = [rng.normal(size=a.shape).astype("float32") for a in points(rng, spec, spec.own, M, N)]
    pattern = pattern_of(rng, M, N, blocks=6)
    monkeypatch.setattr(cpu_calls, "SHARE", 1.0)  # as if this little work were worth threads
    for met in (None, pattern):
        state = empty(spec, M)
        results = set()
        for call in (5e8, 1e6, 1e4):
            monkeypatch.setattr(cpu_calls, "CALL", call)
            for threads in (1, 2, 5):
                found = engine.fold(spec, "cpu", state, arrays, M, N, pattern=met, threads=threads)
                results.add(b"".join(a.tobytes() for a in found))
        assert len(results) == 1


def test_tiles_that_are_not_finite_are_done_again_in_their_intervals_alone(monkeypatch):
    """A factor that has left the sums overflows in some rows: what is left of their intervals is done again."""
    from tests.kernel.test_hoist import again, data, made

    M, N = 100, 9000
    spec, arrays = made("e*Square(x+y)"), data(M, N)
    arrays[4][:] = 1e-30
    arrays[0][40] = 1e19
    rows, ends, intervals = [[0, 30], [32, 60], [60, 100]], [1, 3, 4], [[0, 900], [100, 4000], [4100, 8000], [7, 9]]
    pattern = Pattern.of(*(np.array(table, np.int64) for table in (rows, ends, intervals)))
    spans = again(monkeypatch)
    (found,) = engine.fold(spec, "cpu", empty(spec, M), arrays, M, N, pattern=pattern)
    assert {span[:2] for span in spans} == {(32, 48)}
    assert spans[0][2] < 4000
    assert spans[-1][2:] == (4100, 8000)
    x, y, e = (arrays[k].astype(np.float64) for k in (0, 1, 4))
    for i in range(M):
        want = (e[i] * (x[i] + y[columns_of(pattern, i)]) ** 2).sum(0)
        np.testing.assert_allclose(found[:, i], want, rtol=1e-5)


def test_what_is_done_again_does_not_depend_on_threads(monkeypatch):
    """It is what is left of a call: where a large item is cut must not depend on how threads share it."""
    from tests.kernel.test_hoist import data, made

    M, N = 100, 9000
    spec, arrays = made("e*Square(x+y)"), data(M, N)
    arrays[4][:] = 1e-30
    arrays[4][:, 0] *= np.random.default_rng(1).random(M).astype("float32")
    arrays[1] *= np.float32(1e16)  # so that the other columns count, too
    arrays[1][16:40] = 1e19  # the squares of several overflow together: in the first panel alone
    pattern = Pattern.of(*(np.array(table, np.int64) for table in ([[0, M]], [1], [[3, N]])))
    monkeypatch.setattr(cpu_calls, "SHARE", 1.0)
    for call in (5e8, 4e6, 1e6):
        monkeypatch.setattr(cpu_calls, "CALL", call)
        results = {
            engine.fold(spec, "cpu", empty(spec, M), arrays, M, N, pattern=pattern, threads=threads)[0].tobytes()
            for threads in (1, 2, 3, 5)
        }
        assert len(results) == 1


def test_intervals_of_a_pattern_increase_and_neighbours_are_one():
    rows, ends, intervals = [[5, 9], [0, 3]], [4, 5], [[6, 8], [0, 2], [2, 4], [3, 3], [1, 2]]
    found = Pattern.of(*(np.array(table, np.int64) for table in (rows, ends, intervals)))
    assert found.blocks.tolist() == rows
    assert found.ends.tolist() == [2, 3]
    assert found.intervals.tolist() == [[0, 4], [6, 8], [1, 2]]


def test_a_pattern_is_cut_where_tasks_are():
    rng = np.random.default_rng(4)
    for _ in range(50):
        M, N = rng.integers(1, 40, 2)
        pattern = pattern_of(rng, M, N, blocks=int(rng.integers(1, 6)))
        dense = np.zeros((M, N), int)
        for i in range(M):
            np.add.at(dense[i], columns_of(pattern, i), 1)
        assert pattern.pairs == dense.sum()
        a, b = np.sort(rng.integers(0, M + 1, 2))
        c, d = np.sort(rng.integers(0, N + 1, 2))
        part = pattern.within(slice(a, b), slice(c, d))
        assert part.pairs == dense[a:b, c:d].sum()
        for i in range(b - a):
            found = np.zeros(d - c, int)
            np.add.at(found, columns_of(part, i), 1)
            assert (found == dense[a + i, c:d]).all()
        met = np.flatnonzero(dense.any(0))
        span = pattern.span()
        assert (span.start, span.stop) == ((met[0], met[-1] + 1) if len(met) else (0, 0))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_work_of_every_pair_is_given_out_once(seed):
    rng = np.random.default_rng(seed)
    M, N = (int(n) for n in rng.integers(1, 400, 2))
    spec, _, _ = problem(FEW[0], 2, 1, "float32")
    from dred.kernel import cpu

    plan = cpu.compiled(spec).program.plan._replace(panel=32, rows=32)
    pattern = pattern_of(rng, M, N, blocks=int(rng.integers(1, 8)))
    batches = int(rng.integers(1, 4))
    want = np.zeros((M, N), int)
    for i in range(M):
        np.add.at(want[i], columns_of(pattern, i), 1)
    cost = 10.0 ** rng.uniform(0, 6)
    shares = cpu_calls.listed(plan, cost, M, [(0, N)], batches, pattern, int(rng.integers(1, 5)))
    found = np.zeros((batches, M, N), int)
    for share in shares:
        for part, calls in share:
            assert part == 0
            for call in calls:
                for batch, low, high, first, last, _ in call.items:
                    for a, b in call.intervals[first:last]:
                        found[batch, low:high, a:b] += 1
    assert (found == want).all()


def test_a_row_without_columns_has_an_empty_reduction():
    for case in FEW:
        spec, _, _ = problem(case, 2, 1, "float64")
        rng = np.random.default_rng(5)
        arrays = points(rng, spec, ((), (), ()), 4, 5)
        pattern = Pattern.of(np.zeros((0, 2), np.int64), np.zeros(0, np.int64), np.zeros((0, 2), np.int64))
        for backend in BACKENDS:
            found = engine.fold(spec, backend, empty(spec, 4), arrays, 4, 5, pattern=pattern)
            for a, b in zip(found, empty(spec, 4), strict=True):
                np.testing.assert_array_equal(a, b)
