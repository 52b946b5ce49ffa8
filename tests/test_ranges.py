"""Block-sparse ranges: rows meet the columns that they are said to meet, whatever computes; and what is refused."""

import dask
import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dred
from dred import Genred
from dred.cluster import tasks
from dred.errors import InputError
from dred.ranges import Ranges
from dred.reductions import REDUCTIONS
from tests.reduction_cases import ALIASES, CASES, arrays_of, listed, reference, routine_of
from tests.shim import fake_cupy, shim

SCATTERED = ("Sum", "Min_ArgMin", "KMin_ArgKMin", "KMax", "LogSumExp", "SumSoftMaxWeight", "Variance", "Count", "Prod")
MANY = {"dred.plan.operations-per-second": {"cpu": 100}, "dred.plan.longest-fold": "1 hour", "dred.backend": "cpu"}


def ranges_of(rng, M, N, blocks=4, wide=True):
    """Clusters of random sizes, some empty, of which random pairs meet; first and last rows may be in none."""
    i, j = (np.sort(rng.integers(0, n + 1, blocks + 1)) for n in (M, N))
    i, j = (np.stack([cuts[:-1], cuts[1:]], axis=1) for cuts in (i, j))
    keep = rng.random((blocks, blocks)) < 0.5
    keep[rng.integers(blocks)] = False  # a cluster that meets none
    found = list(dred.from_matrix(rng.permutation(i), j, keep))
    return tuple(a.astype(np.int32) for a in found) if wide else tuple(found)


def scattered(rng, M, N):
    """Blocks and intervals of any lengths, single rows and none among them; intervals overlap, and are met twice."""
    cuts = np.sort(rng.integers(0, M + 1, 2 * rng.integers(1, 5)))
    blocks = rng.permutation(cuts.reshape(-1, 2))
    counts = rng.integers(0, 4, len(blocks))
    start = rng.integers(0, N, counts.sum())
    intervals = np.stack([start, np.minimum(start + rng.choice([0, 1, 2, 9], len(start)), N)], axis=1)
    # the same pairs from the other side: intervals cut where any of them begins or ends
    atoms = np.unique(np.concatenate([intervals.reshape(-1), [0, N]]))
    atoms = np.stack([atoms[:-1], atoms[1:]], axis=1)
    owner = np.repeat(np.arange(len(blocks)), counts)
    met = [[blocks[k] for k, (a, b) in zip(owner, intervals, strict=True) if a <= c and d <= b] for c, d in atoms]
    rows = np.array([block for some in met for block in some]).reshape(-1, 2).astype(int)
    return blocks, np.cumsum(counts), intervals, atoms, np.cumsum([len(some) for some in met]), rows


def mask_of(ranges, M, N):
    """How often each pair is met."""
    mask = np.zeros((M, N), int)
    i, slices, j = ranges[:3]
    for k, (a, b) in enumerate(i):
        for c, d in j[(slices[k - 1] if k else 0) : slices[k]]:
            mask[a:b, c:d] += 1
    return mask


def expected(case, axis, arrays, mask):
    """Row by row, of the terms that it meets; NumPy alone."""
    entry = REDUCTIONS[case.reduction_op]
    rows = []
    kept = len(arrays[0]) if axis == 1 else len(arrays[1])
    for n in range(kept):
        often = mask[n] if axis == 1 else mask[:, n]
        met = np.repeat(np.arange(len(often)), often)
        x, y, b = arrays
        some = (x[n : n + 1], y[met], b[met]) if axis == 1 else (x[met], y[n : n + 1], b[n : n + 1])
        found = reference(case, axis, some)
        numbers = ["q" in result.texts for result in entry.results]
        rows.append(
            [np.where(a >= 0, np.append(met, -1)[a], -1) if yes else a for a, yes in zip(found, numbers, strict=True)]
        )
    return [np.concatenate(parts) for parts in zip(*rows, strict=True)]


def same(got, want, tolerance=1e-12):
    for a, b in zip(listed(got), want, strict=True):
        assert a.shape == b.shape
        if b.dtype.kind in "ib":
            np.testing.assert_array_equal(a, b)
        else:
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_rows_meet_what_they_are_said_to_meet(case, axis):
    rng = np.random.default_rng(1)
    arrays, ranges = arrays_of(23, 31), ranges_of(rng, 23, 31)
    got = routine_of(case, axis)(*arrays, ranges=ranges)
    same(got, expected(case, axis, arrays, mask_of(ranges, 23, 31)), 1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([c for c in CASES if c.reduction_op in SCATTERED]), st.booleans())
def test_any_blocks_and_intervals(seed, case, lazily):
    rng = np.random.default_rng(seed)
    M, N = (int(n) for n in rng.integers(1, 30, 2))
    arrays, ranges = arrays_of(M, N, seed=seed % 1000), scattered(rng, M, N)
    mask = mask_of(ranges, M, N)
    given_ones = arrays
    if lazily:
        given_ones = [da.from_array(a, chunks=(int(rng.integers(1, len(a) + 1)), 1)) for a in arrays]
    for axis in (0, 1):
        with dask.config.set(MANY):
            got = tuple(dask.compute(*listed(routine_of(case, axis)(*given_ones, ranges=ranges)), scheduler="sync"))
        same(got, expected(case, axis, arrays, mask), 1e-9)


@pytest.mark.parametrize("case", CASES[::6], ids=str)
@pytest.mark.parametrize("feed", ["resident", "stream", "waves"])
def test_chunks_change_nothing(case, feed, tmp_path):
    rng = np.random.default_rng(2)
    arrays, ranges = arrays_of(23, 31), ranges_of(rng, 23, 31, blocks=6)
    want = expected(case, 1, arrays, mask_of(ranges, 23, 31))
    lazy = [da.from_array(a, chunks=(n, 1)) for a, n in zip(arrays, (7, 4, 5), strict=True)]
    if feed == "stream":
        for k in (1, 2):
            np.save(tmp_path / f"{k}.npy", arrays[k])
            lazy[k] = dred.from_file(tmp_path / f"{k}.npy", chunks=4)
    routine = routine_of(case, 1)
    with dask.config.set({**MANY, "dred.plan.feed": feed, "dred.plan.panel": "64 B"}):
        if feed != "waves":
            same(tuple(dask.compute(*listed(routine(*lazy, ranges=ranges)))), want, 1e-9)
        same(routine.compute(*lazy, ranges=ranges), want, 1e-9)
        same(routine.compute(*lazy, ranges=ranges, store=tmp_path / "store"), want, 1e-9)
        same(routine.compute(*lazy, ranges=ranges, store=tmp_path / "store"), want, 1e-9)


def test_a_pair_of_blocks_without_work_is_no_task(monkeypatch):
    """Eight clusters that meet their neighbours alone, each a chunk."""
    x = np.arange(80.0)[:, None]
    ranges = dred.cluster_ranges(np.repeat(np.arange(8), 10))
    keep = np.abs(np.subtract.outer(np.arange(8), np.arange(8))) <= 1
    six = dred.from_matrix(ranges, ranges, keep)
    routine = Genred("1 + 0 * x * y", ["x = Vi(1)", "y = Vj(1)"], axis=1)
    lazy = da.from_array(x, chunks=(10, 1))
    folded = []
    fold = tasks.fold_blocks

    def counted(spec, label, backend, place, *more):
        folded.append((place.i0, place.rows, place.j0, place.columns))
        return fold(spec, label, backend, place, *more)

    with dask.config.set({**MANY, "dred.plan.operations-per-second": {"cpu": 1}}):
        plan = routine.plan(lazy, lazy, ranges=six)
        dense = routine.plan(lazy, lazy)
        assert plan.pairs == keep.sum() * 100 < dense.pairs == 6400
        assert "0.344 of 80 x 80 = 2.2e+03" in str(plan)
        result = routine(lazy, lazy, ranges=six)
        layers = result.__dask_graph__().layers
        tasks_of = {
            name.split("-")[2] if name.count("-") > 2 else "": len(layer)
            for name, layer in layers.items()
            if name.startswith("dred-sum")
        }
        assert sum(tasks_of.values()) == plan.tasks < dense.tasks
        assert tasks_of["fold"] == plan.fold_tasks
        edges = sum(
            len(task.dependencies)
            for name, layer in layers.items()
            if name.startswith("dred-sum")
            for task in layer.values()
        )
        assert edges == plan.edges < dense.edges
        monkeypatch.setattr(tasks, "fold_blocks", counted)
        got = routine(lazy, lazy, ranges=six).compute(scheduler="sync")
    np.testing.assert_array_equal(got[:, 0], keep.sum(1).repeat(10) * 10)
    for i0, rows, j0, columns in folded:  # each task has a cluster that its rows meet first and last
        block = keep[i0 // 10 : (i0 + rows) // 10, j0 // 10 : (j0 + columns) // 10]
        assert block[:, 0].any()
        assert block[:, -1].any()


def test_stored_rows_that_nobody_meets_are_not_read(tmp_path, monkeypatch):
    from dred.cluster import panels

    np.save(tmp_path / "y.npy", np.ones((1000, 1)))
    y = dred.from_file(tmp_path / "y.npy", chunks=100)
    x = da.ones((20, 1), chunks=10)
    six = dred.from_matrix(np.array([[0, 20]]), np.array([[0, 10], [500, 520]]), np.array([[True, True]]))
    read = []
    get = panels.get
    monkeypatch.setattr(panels, "get", lambda source, a, b: read.append((a, b)) or get(source, a, b))
    monkeypatch.setattr(panels, "prefetch", lambda *args: None)
    routine = Genred("x * y", ["x = Vi(1)", "y = Vj(1)"], axis=1)
    with dask.config.set({**MANY, "dred.plan.panel": "80 B", "dred.plan.parallelism": 1}):
        got = routine(x, y, ranges=six).compute(scheduler="sync")
    np.testing.assert_array_equal(got, np.full((20, 1), 30.0))
    assert sorted(set(read)) == [(0, 10), (500, 510), (510, 520)]


GRADIENTS = [
    ("p * Exp(-SqDist(x, y)) * b", "Sum", None),
    ("(x | y) * p", "LogSumExp", None),
    ("(x | y) * p", "SumSoftMaxWeight", "b"),
    ("SqDist(x, y) * p", "KMin", None),
    ("SqDist(x, y) * p", "Variance", None),
]


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("lazily", [False, True])
@pytest.mark.parametrize("case", GRADIENTS, ids=str)
def test_gradients_meet_the_same_pairs(case, lazily, axis):
    text, name, weight = case
    rng = np.random.default_rng(3)
    M, N = 13, 17
    ranges = ranges_of(rng, M, N, wide=False)
    routine = Genred(text, [*ALIASES, "p = Pm(1)"], name, axis, formula2=weight, opt_arg=2 if name == "KMin" else None)
    arrays = [rng.normal(size=shape) for shape in ((M, 2), (N, 2), (N, 3), (1,))]
    given = [da.from_array(a, chunks=tuple(max(1, n // 2) for n in a.shape)) for a in arrays] if lazily else arrays
    with np.errstate(invalid="ignore"):
        value = routine(*arrays, ranges=ranges)
    met = np.isfinite(value)  # where there are not enough terms, there is no value to differentiate
    assert met.any()
    assert name == "Sum" or not met.all()
    e = np.where(met, rng.normal(size=value.shape), 0)
    with dask.config.set(MANY):
        found = dask.compute(*(routine.grad(k)(*given, e, ranges=ranges) for k in range(4)))
        _, pullback = dred.vjp(routine, *given, ranges=ranges)
        fused = dask.compute(*pullback(e))
    h = 1e-6
    for k, a in enumerate(arrays):
        direction = rng.normal(size=a.shape)
        up, down = ([*arrays[:k], a + s * h * direction, *arrays[k + 1 :]] for s in (1, -1))
        with np.errstate(invalid="ignore"):
            change = routine(*up, ranges=ranges) - routine(*down, ranges=ranges)
        want = (e * np.where(met, change, 0)).sum() / (2 * h)
        np.testing.assert_allclose((found[k] * direction).sum(), want, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(fused[k], found[k], rtol=1e-12, atol=1e-12)


def test_of_every_element_of_a_batch():
    rng = np.random.default_rng(4)
    ranges = ranges_of(rng, 13, 17)
    x, y = rng.normal(size=(3, 13, 2)), rng.normal(size=(2, 1, 17, 2))
    routine = Genred("Exp(-SqDist(x, y))", ["x = Vi(2)", "y = Vj(2)"], "Sum", axis=0)
    got = routine(x, y, ranges=ranges)
    lazy = routine(da.from_array(x, chunks=(2, 5, 2)), da.from_array(y, chunks=(1, 1, 6, 2)), ranges=ranges)
    K = np.exp(-((x[None, :, :, None] - y[:, :, None]) ** 2).sum(-1)) * mask_of(ranges, 13, 17)
    np.testing.assert_allclose(got[..., 0], K.sum(2), rtol=1e-12)
    with dask.config.set(MANY):
        np.testing.assert_allclose(lazy.compute(), got, rtol=1e-12)


@pytest.mark.skipif(not shim.available(), reason="no C++ compiler")
@pytest.mark.parametrize("batch", [(), (3,)])
def test_on_a_device(batch, monkeypatch):
    rng = np.random.default_rng(5)
    M, N = 700, 900
    ranges = ranges_of(rng, M, N, blocks=9)
    routine = Genred("Exp(-SqDist(x, y))", ["x = Vi(2)", "y = Vj(2)"], "Sum", axis=1)
    x, y = (rng.normal(size=(*batch, n, 2)).astype("float32") for n in (M, N))
    want = routine(x, y, ranges=ranges, backend="cpu")
    results = set()
    for memory in ("1e9", "4e4"):
        monkeypatch.setenv("DRED_CUDA_MEMORY", memory)
        with fake_cupy.installed(memory=1 << 26):
            import cupy

            got = routine(x, y, ranges=ranges, backend="cuda")
            np.testing.assert_allclose(got, want, rtol=1e-5)
            results.add(got.tobytes())
            results.add(routine(cupy.asarray(x), cupy.asarray(y), ranges=ranges).get().tobytes())
    assert len(results) == 1


# -- what is refused ---------------------------------------------------------------------------------------------------

GOOD = ([[0, 4], [4, 10]], [1, 2], [[0, 5], [5, 8]], [[0, 5], [5, 8]], [1, 2], [[0, 4], [4, 10]])
AXES = "; were they made for the other axis? dred.swap_axes exchanges the two"
BAD = {
    "no tuple": (np.zeros(6), "ranges are six integer arrays, ranges_i, slices_i, redranges_j, ranges_j, slices_j, "
                              "redranges_i; got a ndarray"),
    "three": (GOOD[:3], "ranges are six integer arrays, ranges_i, slices_i, redranges_j, ranges_j, slices_j, "
                        "redranges_i; got 3"),
    "floats": ((np.array(GOOD[0], float), *GOOD[1:]), "ranges_i has type float64: it is of integers"),
    "shape": (([[0, 4, 1]], *GOOD[1:]), "ranges_i has shape (1, 3): expected (blocks, 2)"),
    "slices of two dimensions": ((GOOD[0], [[1], [2]], *GOOD[2:]), "slices_i has shape (2, 1): expected (blocks,)"),
    "slices": ((GOOD[0], [1], *GOOD[2:]), "slices_i has 1 entries for 2 blocks of ranges_i"),
    "falling": ((*GOOD[:4], [2, 1], GOOD[5]), "slices_j[1] = 1 is less than 2 before it: slices never fall"),
    "negative slice": ((GOOD[0], [-1, 2], *GOOD[2:]), "slices_i[0] = -1 is less than 0 before it: slices never fall"),
    "short": ((GOOD[0], [1, 1], *GOOD[2:]), "slices_i ends at 1, redranges_j has 2 intervals"),
    "overlap": (([[0, 6], [4, 10]], *GOOD[1:]),
                "ranges_i[0] = 0:6 and ranges_i[1] = 4:10 overlap: a row is in one block at most"),
    "beyond": (([[0, 4], [4, 11]], *GOOD[1:]), "ranges_i[1] = 4:11 is no run of the 10 rows for each i"),
    "backwards": (([[4, 0], [4, 10]], *GOOD[1:]), "ranges_i[0] = 4:0 is no run of the 10 rows for each i"),
    "interval": ((*GOOD[:2], [[0, 5], [-1, 8]], *GOOD[3:]), "redranges_j[1] = -1:8 is no run of the 8 rows for each j"),
    "other axis": (dred.swap_axes(GOOD), "redranges_j[1] = 4:10 is no run of the 8 rows for each j" + AXES),
    "other pairs": ((*GOOD[:3], *GOOD[3:5], [[4, 10], [0, 4]]),
                    "ranges_i, slices_i and redranges_j are 38 pairs, ranges_j, slices_j and redranges_i 42: they must "
                    "be the same ones"),
    "as many pairs": (([[0, 5], [5, 10]], [1, 2], [[0, 4], [4, 8]], [[0, 4], [4, 8]], [1, 2], [[5, 10], [0, 5]]),
                      "ranges_i, slices_i and redranges_j are 40 pairs, ranges_j, slices_j and redranges_i as many, "
                      "but others: they must be the same ones"),
}  # fmt: skip


@pytest.mark.parametrize(("ranges", "text"), BAD.values(), ids=BAD)
def test_what_is_refused(ranges, text):
    x, y = np.zeros((10, 1)), np.zeros((8, 1))
    routine = Genred("x * y", ["x = Vi(1)", "y = Vj(1)"], axis=1)
    for call in (routine, routine.plan, routine.compute):
        given = (x, y) if call is routine else (da.from_array(x), da.from_array(y))
        with pytest.raises(InputError) as caught:
            call(*given, ranges=ranges)
        assert str(caught.value) == text


def test_ranges_that_are_checked_once():
    ranges = Ranges.of(GOOD, 10, 8)
    x, y = np.ones((10, 1)), np.ones((8, 1))
    routine = Genred("x * y", ["x = Vi(1)", "y = Vj(1)"], axis=1)
    np.testing.assert_array_equal(routine(x, y, ranges=ranges), routine(x, y, ranges=GOOD))
    np.testing.assert_array_equal(routine(y, x, ranges=dred.swap_axes(ranges))[:, 0], [4.0] * 5 + [6.0] * 3)
    with pytest.raises(InputError) as caught:
        routine(y, x, ranges=ranges)
    assert str(caught.value) == "the ranges were made for M, N = (10, 8), the arrays have (8, 10) rows"


# -- clusters ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("D", [1, 2, 3, 5, 40])
def test_cells_of_a_grid(D):
    rng = np.random.default_rng(6)
    x = rng.normal(size=(200, D))
    size = rng.uniform(0.5, 2, D)
    labels = dred.grid_cluster(x, size)
    cells = np.floor(x / size)
    assert labels.dtype == np.int64
    assert sorted(set(labels)) == list(range(labels.max() + 1))
    alike = (cells[:, None] == cells).all(-1)
    np.testing.assert_array_equal(labels[:, None] == labels, alike)
    far = dred.grid_cluster(np.concatenate([x, 1e200 * x]), 1e-9)  # more cells than there are numbers
    assert far.max() == 399


def test_clusters_and_their_centroids():
    rng = np.random.default_rng(7)
    x, weights = rng.normal(size=(50, 2)).astype("float32"), rng.random(50)
    labels = rng.integers(0, 5, 50)
    labels[labels == 3] = 4
    (points, mass), found = dred.sort_clusters((x, weights), labels)
    assert (np.diff(found) >= 0).all()
    ranges, centroids, total = dred.cluster_ranges_centroids(points, found, mass)
    assert ranges[3, 0] == ranges[3, 1]
    assert total[3] == np.float32(1e-9)
    for k in (0, 1, 2, 4):
        mine = labels == k
        want = (x[mine] * weights[mine, None]).sum(0) / weights[mine].sum()
        np.testing.assert_allclose(centroids[k], want, rtol=1e-6)
        np.testing.assert_allclose(points[slice(*ranges[k])].mean(0), dred.cluster_centroids(x, labels)[k], rtol=1e-5)
    assert centroids.dtype == total.dtype == np.float32
    np.testing.assert_array_equal(dred.cluster_ranges(found, np.bincount(labels)), ranges)
    assert dred.swap_axes(None) is None


CLUSTERS = {
    "points": (lambda: dred.grid_cluster(np.zeros(3), 1.0), "points have shape (3,): expected (M, D)"),
    "edges": (lambda: dred.grid_cluster(np.zeros((3, 2)), 0.0),
              "size=0.0: it is a positive number, or one for each of 2 dimensions"),
    "nan": (lambda: dred.grid_cluster(np.full((3, 2), np.nan), 1.0),
            "a coordinate is infinite or not a number: it is in no cell"),
    "unsorted": (lambda: dred.cluster_ranges(np.array([0, 2, 1])),
                 "lab[2] = 1 comes after 2: sort them with sort_clusters"),
    "counts": (lambda: dred.cluster_ranges(np.array([0, 1]), [1, 2]), "Nlab counts 3 points, there are 2 labels"),
    "float labels": (lambda: dred.cluster_ranges(np.zeros(2)), "labels are integers (M,), got float64 of shape (2,)"),
    "negative": (lambda: dred.cluster_ranges(np.array([-1, 0])), "labels are 0 or more, got -1"),
    "rows": (lambda: dred.sort_clusters(np.zeros((3, 1)), np.zeros(2, int)), "2 labels for an array of 3 rows"),
    "centroids": (lambda: dred.cluster_centroids(np.zeros(3), np.zeros(3, int)),
                  "points have shape (3,): expected (3, D), a row for each label"),
    "weights": (lambda: dred.cluster_centroids(np.zeros((3, 1)), np.zeros(3, int), weights=np.ones(2)),
                "2 weights for 3 points"),
    "keep": (lambda: dred.from_matrix([[0, 1]], [[0, 1]], np.ones((2, 1))),
             "keep has shape (2, 1): expected (1, 1), a row for each cluster of i"),
}  # fmt: skip


@pytest.mark.parametrize(("made", "text"), CLUSTERS.values(), ids=CLUSTERS)
def test_clusters_that_are_refused(made, text):
    with pytest.raises(InputError) as caught:
        made()
    assert str(caught.value) == text
