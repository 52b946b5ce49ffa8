"""Arrays with dimensions in front: every element of a batch is a problem of its own, whatever computes it."""

import dask
import dask.array as da
import numpy as np
import pytest

import dred
from dred import Genred
from dred.errors import InputError
from tests.reduction_cases import ALIASES, CASES, check, listed, routine_of
from tests.shim import fake_cupy, shim

MANY = {"dred.plan.operations-per-second": {"cpu": 100}, "dred.plan.longest-fold": "1 hour", "dred.backend": "cpu"}
SHAPES = {  # of the batch dimensions of x, y and b
    "one": ((3,), (3,), (3,)),
    "shared": ((3,), (), (1,)),
    "crossed": ((2, 1), (3,), ()),
    "between": ((2, 1, 2), (1, 3, 2), (2, 1, 1)),
}
FEW = [c for n, c in enumerate(CASES) if n % 7 == 0]


def arrays_of(shapes, M, N, dtype="float64", seed=0):
    rng = np.random.default_rng(seed)
    rows = ((M, 2), (N, 2), (N, 3))
    return [rng.integers(-4, 5, (*lead, *own)).astype(dtype) / 2 for lead, own in zip(shapes, rows, strict=True)]


def element(arrays, batch, place, tails=(2, 2, 2)):
    return [np.broadcast_to(a, (*batch, *a.shape[a.ndim - t :]))[place] for a, t in zip(arrays, tails, strict=True)]


def every(got, case, axis, arrays, batch):
    for place in np.ndindex(*batch):
        mine = [np.ascontiguousarray(a) for a in element(arrays, batch, place)]
        check(tuple(a[place] for a in listed(got)), case, axis, mine)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_element_is_what_it_is_alone(case):
    for axis, shapes in ((1, SHAPES["crossed"]), (0, SHAPES["shared"])):
        arrays = arrays_of(shapes, 7, 9)
        batch = np.broadcast_shapes(*shapes)
        every(routine_of(case, axis)(*arrays), case, axis, arrays, batch)


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("case", FEW, ids=str)
def test_chunks_of_a_batch_change_nothing(case, shapes):
    arrays = arrays_of(shapes, 7, 9)
    batch = np.broadcast_shapes(*shapes)
    lazy = [da.from_array(a, chunks=(*(2,) * (a.ndim - 2), 4, 1)) for a in arrays]
    routine = routine_of(case, 1)
    with dask.config.set(MANY):
        result = routine(*lazy)
        assert all(isinstance(a, da.Array) for a in listed(result))
        assert all(a.chunks[len(batch)] == (4, 3) for a in listed(result))
        every(tuple(dask.compute(*listed(result))), case, 1, arrays, batch)
        every(routine.compute(*lazy), case, 1, arrays, batch)
        every(routine.compute(lazy[0], *arrays[1:]), case, 1, arrays, batch)


def test_parts_of_a_batch_that_is_cut_in_every_dimension_come_in_order():
    arrays = arrays_of(((2, 3), (2, 1), (3,)), 7, 9)
    lazy = [da.from_array(a, chunks=(*(1,) * (a.ndim - 2), 4, 2)) for a in arrays]
    routine = Genred("x * y * Sum(b)", ALIASES, "Sum", axis=1)
    with dask.config.set(MANY):
        np.testing.assert_array_equal(routine(*lazy).compute(), routine(*arrays))


def test_results_are_put_where_they_belong():
    arrays = arrays_of(SHAPES["crossed"], 7, 9)
    routine = Genred("x * y", ALIASES, "Min_ArgMin", axis=1)
    want = routine(*arrays)
    out = tuple(np.zeros_like(a) for a in want)
    assert routine(*arrays, out=out) is not None
    lazy = [da.from_array(a, chunks=(*(1,) * (a.ndim - 2), 4, 2)) for a in arrays]
    other = tuple(np.zeros_like(a) for a in want)
    with dask.config.set(MANY):
        assert all(a is b for a, b in zip(routine.compute(*lazy, out=other), other, strict=True))
    for a, b, c in zip(want, out, other, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
    with pytest.raises(InputError) as caught:
        routine(*arrays, out=(out[0][0], out[1]))
    assert str(caught.value) == "out[0] has shape (3, 7, 2) and type float64: expected (2, 3, 7, 2) and float64"


def test_a_batch_is_resumed_from_its_store(tmp_path):
    arrays = arrays_of(SHAPES["shared"], 7, 9)
    lazy = [da.from_array(a, chunks=(*(1,) * (a.ndim - 2), 4, 2)) for a in arrays]
    routine = Genred("(x | y)", ALIASES, "LogSumExp", axis=1)
    with dask.config.set(MANY):
        first = routine.compute(*lazy, store=tmp_path / "store")
        again = routine.compute(*lazy, store=tmp_path / "store")
    np.testing.assert_array_equal(first, again)
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["batch-0", "batch-1", "batch-2"]


def test_a_plan_counts_the_pairs_of_all_elements():
    arrays = [da.zeros((4, 100, 2), chunks=(2, 50, 2)), da.zeros((1, 80, 2)), da.zeros((80, 3))]
    routine = Genred("(x | y) * b", ALIASES, "Sum", axis=1)
    plans = routine.plan(*arrays)
    assert [plan.pairs for plan in plans] == [2 * 100 * 80] * 2
    assert "2 x 100 x 80 = 1.6e+04" in str(plans[0])


# -- derivatives -------------------------------------------------------------------------------------------------------

GRADIENTS = [
    ("p * Exp(-SqDist(x, y)) * b", "Sum", None),
    ("(p | x * y)", "LogSumExp", None),
    ("(p | x * y)", "SumSoftMaxWeight", "b"),
    ("SqDist(x, y) * Sum(p)", "KMin", None),
    ("x * y", "KMin", None),
    ("SqDist(x, y) * Sum(p)", "Variance", None),
]
OWN = [("x", (2, 1)), ("y", (3,)), ("b", ()), ("p", (2, 3))]


def problem(text, name, weight):
    p = 2 if "(p |" in text else 1
    aliases = [*ALIASES, f"p = Pm({p})"]
    routine = Genred(text, aliases, name, 1, formula2=weight, opt_arg=2 if name == "KMin" else None)
    rng = np.random.default_rng(1)
    rows = {"x": (5, 2), "y": (6, 2), "b": (6, 3), "p": (p,)}
    return routine, [rng.normal(size=(*lead, *rows[key])) for key, lead in OWN]


@pytest.mark.parametrize("case", GRADIENTS, ids=str)
@pytest.mark.parametrize("lazily", [False, True])
def test_gradients_are_summed_over_what_elements_share(case, lazily):
    routine, arrays = problem(*case)
    rng = np.random.default_rng(2)
    given = arrays
    if lazily:
        given = [da.from_array(a, chunks=tuple(max(1, n - 1) for n in a.shape)) for a in arrays]
    value, pullback = dred.vjp(routine, *given)
    e = rng.normal(size=value.shape)
    with dask.config.set(MANY):
        found = dask.compute(*pullback(da.from_array(e, chunks=2) if lazily else e))
        single = [routine.grad(k)(*given, e) for k in range(4)]
        single = dask.compute(*single)
    h = 1e-6
    for k, a in enumerate(arrays):
        assert found[k].shape == single[k].shape == a.shape
        direction = rng.normal(size=a.shape)
        up, down = ([*arrays[:k], a + s * h * direction, *arrays[k + 1 :]] for s in (1, -1))
        want = (e * (routine(*up) - routine(*down))).sum() / (2 * h)
        np.testing.assert_allclose((found[k] * direction).sum(), want, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(single[k], found[k], rtol=1e-12, atol=1e-12)


def test_cotangents_are_like_results():
    routine, arrays = problem(*GRADIENTS[0])
    _, pullback = dred.vjp(routine, *arrays)
    with pytest.raises(InputError) as caught:
        pullback(np.ones((5, 3)))
    assert str(caught.value) == "cotangent 0 has shape (5, 3): expected (2, 3, 5, 3), as the result"


def test_gradients_that_are_waited_for(tmp_path):
    routine, arrays = problem(*GRADIENTS[1])
    rng = np.random.default_rng(5)
    e = rng.normal(size=routine(*arrays).shape)
    lazy = [da.from_array(a, chunks=tuple(max(1, n - 1) for n in a.shape)) for a in arrays]
    told = []
    with dask.config.set(MANY):
        for k, a in enumerate(arrays):
            want, out = routine.grad(k)(*arrays, e), np.full_like(a, np.nan)
            assert routine.grad(k).compute(*lazy, e, out=out, store=tmp_path / str(k), progress=told.append) is out
            np.testing.assert_allclose(out, want, rtol=1e-12)
            np.testing.assert_allclose(routine.grad(k).compute(*lazy, e), want, rtol=1e-12)
            pairs = sum(plan.pairs for plan in routine.grad(k).plan(*lazy, e))
            assert told[-1].done == told[-1].total == pairs >= 6 * 5 * 6  # of six elements


def test_directions_of_batches():
    routine, arrays = problem(*GRADIENTS[0])
    rng = np.random.default_rng(3)
    tangents = [rng.normal(size=a.shape) for a in arrays]
    value, tangent = dred.jvp(routine, arrays, tangents)
    h = 1e-6
    up, down = ([a + s * h * t for a, t in zip(arrays, tangents, strict=True)] for s in (1, -1))
    np.testing.assert_allclose(tangent, (routine(*up) - routine(*down)) / (2 * h), rtol=1e-6, atol=1e-7)
    assert value.shape == (2, 3, 5, 3)
    second = dred.hessian_vector_product(routine, "x", arrays, tangents[0], [np.ones_like(value)])
    first = [routine.grad("x")(arrays[0] + s * h * tangents[0], *arrays[1:], np.ones_like(value)) for s in (1, -1)]
    np.testing.assert_allclose(second, (first[0] - first[1]) / (2 * h), rtol=1e-5, atol=1e-6)


def test_the_centre_of_expanded_distances_is_that_of_each_element():
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(2, 1, 6, 2)) + 100, rng.normal(size=(3, 9, 2)) + 100
    texts = "Exp(-SqDist(x, y))", ["x = Vi(2)", "y = Vj(2)"]
    want = Genred(*texts, axis=1)(x, y)
    np.testing.assert_allclose(Genred(*texts, axis=1, expand=True)(x, y), want, rtol=1e-9)
    lazy = [da.from_array(a, chunks=(*(1,) * (a.ndim - 2), 4, 2)) for a in (x, y)]
    with dask.config.set(MANY):
        np.testing.assert_allclose(Genred(*texts, axis=1, expand=True)(*lazy).compute(), want, rtol=1e-9)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_narrow_types(dtype):
    arrays = arrays_of(SHAPES["crossed"], 7, 9, dtype)
    got = Genred("x * y", ALIASES, "Sum", axis=1)(*arrays)
    assert got.dtype == dtype
    wide = Genred("x * y", ALIASES, "Sum", axis=1)(*(a.astype("float64") for a in arrays))
    np.testing.assert_allclose(got, wide, rtol=1e-3)


# -- on a device -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not shim.available(), reason="no C++ compiler")
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_on_a_device(shapes):
    routine = Genred("x * y * Sum(b)", ALIASES, "Sum", axis=1)
    for M, N in ((40, 300), (3, 2000)):
        arrays = arrays_of(shapes, M, N, "float32")
        want = routine(*arrays, backend="cpu")
        with fake_cupy.installed(memory=1 << 26):
            import cupy

            np.testing.assert_allclose(routine(*arrays, backend="cuda"), want, rtol=1e-5)
            there = routine(*map(cupy.asarray, arrays))
            np.testing.assert_allclose(there.get(), want, rtol=1e-5)


@pytest.mark.skipif(not shim.available(), reason="no C++ compiler")
def test_the_memory_of_a_device_changes_no_bit(monkeypatch):
    routine = Genred("Exp(-SqDist(x, y)) * b", ALIASES, "Sum", axis=1)
    rng = np.random.default_rng(5)
    arrays = [(a + rng.normal(size=a.shape)).astype("float32") for a in arrays_of(((5,), (5,), ()), 700, 900)]
    results = set()
    for memory in ("1e9", "4e5", "1e5"):
        monkeypatch.setenv("DRED_CUDA_MEMORY", memory)
        with fake_cupy.installed(memory=1 << 26):
            results.add(routine(*arrays, backend="cuda").tobytes())
    assert len(results) == 1
