"""Computations of the same routine at once, in one process and beside stores: each gives its own rows, all of them."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import dask
import dask.array as da
import numpy as np
import pytest

from dred import Genred
from dred.errors import FoldError, InputError, StoreError
from tests.cluster.local import threads

SETTINGS = {  # several groups of x blocks, several waves in each
    "dred.plan.operations-per-second": {"cpu": 1e6},
    "dred.plan.step": "3 kB",
    "dred.plan.y-budget": "10 kB",
    "dred.plan.wave-rows": "1 B",
}
ROUTINE = Genred("Exp(-SqDist(x, y))", ["x = Vi(3)", "y = Vj(3)"], axis=1)


@pytest.fixture
def given():
    rng = np.random.default_rng(0)
    x, y = rng.random((400, 3)), rng.random((600, 3))
    return (da.from_array(x, chunks=(100, 3)), da.from_array(y, chunks=(60, 3))), ROUTINE(x, y)


def compute(given, **more):
    return ROUTINE.compute(*given, backend="cpu", **more)


@pytest.mark.parametrize("feed", ["waves", "resident"])
def test_the_same_call_from_several_threads(given, feed):
    lazy, want = given
    with dask.config.set({**SETTINGS, "dred.plan.feed": feed, "dred.plan.y-budget": "1 MB"}), threads(2):
        alone = compute(lazy)
        np.testing.assert_allclose(alone, want, rtol=1e-12)
        with ThreadPoolExecutor(3) as pool:
            futures = [pool.submit(compute, lazy) for _ in range(6)]
            assert all(future.result(timeout=300).tobytes() == alone.tobytes() for future in futures)


@pytest.mark.parametrize("feed", ["waves", "resident"])
def test_a_store_that_goes_on_beside_calls_without(given, tmp_path, feed):
    lazy, _ = given
    with dask.config.set({**SETTINGS, "dred.plan.feed": feed, "dred.plan.y-budget": "1 MB"}), threads(2):
        want = compute(lazy, store=tmp_path / "a").tobytes()
        for name in sorted(os.listdir(tmp_path / "a" / "sweep-0"))[:-1:2]:
            if name.startswith("rows"):
                os.unlink(tmp_path / "a" / "sweep-0" / name)
        with ThreadPoolExecutor(4) as pool:
            futures = [
                pool.submit(compute, lazy, store=tmp_path / "a"),
                pool.submit(compute, lazy),
                pool.submit(compute, lazy, store=tmp_path / "b"),
                pool.submit(lambda: ROUTINE(*lazy, backend="cpu").compute() if feed == "resident" else compute(lazy)),
            ]
            assert [future.result(timeout=300).tobytes() == want for future in futures] == [True] * 4
        assert compute(lazy, store=tmp_path / "a").tobytes() == want


@pytest.mark.parametrize("path", ["", "s3://bucket/store", True])
def test_what_is_no_folder_is_no_store(given, path):
    with pytest.raises(StoreError) as caught:
        compute(given[0], store=path)
    assert str(caught.value) == f"store={path!r}: it is the path of a folder that all workers and this process share"


def test_gradients_by_parameters_are_those_of_lazy_calls(given):
    routine = Genred("Exp(-p*SqDist(x, y))", ["x = Vi(3)", "y = Vj(3)", "p = Pm(1)"], axis=1).grad("p")
    lazy, _ = given
    args = (*lazy, np.array([0.7]), da.ones((400, 1), chunks=70))
    with dask.config.set(scheduler="sync"):
        got = routine.compute(*args, backend="cpu")
        assert got.tobytes() == routine(*args, backend="cpu").compute().tobytes()


@pytest.mark.slow
def test_schedulers_whose_tasks_run_elsewhere(given):
    lazy, want = given
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        for scheduler in (pool, "processes"):
            with dask.config.set(scheduler=scheduler):
                np.testing.assert_allclose(compute(lazy), want, rtol=1e-12)


def test_masks_are_refused(given):
    (x, y), _ = given
    with pytest.raises(InputError, match=r"argument 0 .* is a dask array of masked arrays"):
        ROUTINE(da.ma.masked_greater(x, 0.5), y, backend="cpu")
    hidden = x.map_blocks(np.ma.masked_greater, 0.5, dtype=x.dtype, meta=x._meta)
    with pytest.raises(FoldError, match="a block is a masked array"), dask.config.set(scheduler="sync"):
        ROUTINE(hidden, y, backend="cpu").compute()


def test_outputs_that_share_memory_or_cannot_be_written(given):
    routine = Genred("SqDist(x, y)", ["x = Vi(3)", "y = Vj(3)"], "Min_ArgMin", axis=1)
    lazy, _ = given
    out = np.empty((400, 1))
    with pytest.raises(InputError, match="share memory"):
        Genred([("SqDist(x, y)", "Min"), ("SqDist(x, y)", "Max")], ["x = Vi(3)", "y = Vj(3)"], axis=1).compute(
            *lazy, out=(out, out)
        )
    frozen = np.empty((400, 1))
    frozen.flags.writeable = False
    with pytest.raises(InputError, match="must be writeable"):
        ROUTINE.compute(*lazy, out=frozen)
    with pytest.raises(InputError, match="no array to whose rows can be assigned"):
        ROUTINE.compute(*lazy, out=da.zeros((400, 1)))
    assert routine.compute(*lazy, backend="cpu")[1].dtype == np.int64
