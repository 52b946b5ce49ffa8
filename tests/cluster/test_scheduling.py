"""Where folds run, what they share, and what joins or leaves meanwhile, through the public interface."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client, LocalCluster, get_worker

from dred import Genred
from dred.kernel import engine
from tests.chaos.problem import MANY, ROWS, Gate, calm, disturbed, stalled, sum_and_gradient, until
from tests.cluster.local import PORT, threads

FORMULA, ALIASES = "Exp(-SqDist(x, y))", ["x = Vi(2)", "y = Vj(2)"]
KINDS = {"sum": (FORMULA, ALIASES, 1), "gradient": (f"Grad({FORMULA}, y, e)", [*ALIASES, "e = Vi(1)"], 0)}
WORKERS = 4


@pytest.fixture(scope="module")
def client():
    """Four workers of one thread each, in this process."""
    with threads(WORKERS, default=False) as client:
        yield client


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path / "gate")


@pytest.fixture
def folds(monkeypatch):
    """First kept row of each fold that has run, and the worker that it ran on ("" where there is none)."""
    done, fold = [], engine.fold

    def counted(*args, i0, **more):
        try:
            worker = get_worker().address
        except ValueError:
            worker = ""
        done.append((i0, worker))
        return fold(*args, i0=i0, **more)

    monkeypatch.setattr(engine, "fold", counted)
    return done


def arrays_of(kind, kept=2000, reduced=6400, kept_blocks=1, reduced_blocks=64):
    """x, y and, for the gradient, e; in so many blocks."""
    rng = np.random.default_rng(0)
    cut = {1: (kept, reduced), 0: (reduced, kept)}[KINDS[kind][2]]
    blocks = {1: (kept_blocks, reduced_blocks), 0: (reduced_blocks, kept_blocks)}[KINDS[kind][2]]
    x, y, e = (
        da.from_array(rng.random((cut[n], dim)), chunks=(cut[n] // blocks[n], -1))
        for n, dim in ((0, 2), (1, 2), (0, 1))
    )
    return (x, y, e) if kind == "gradient" else (x, y)


def reduced_of(kind, arrays):
    text, aliases, axis = KINDS[kind]
    with dask.config.set({**MANY, "dred.plan.shortest-fold": "10 us"}):
        return Genred(text, aliases, axis=axis)(*arrays, backend="cpu")


# -- who folds ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_one_kept_block_keeps_all_workers_busy(client, monkeypatch, kind):
    """Its first four folds run at once, on four workers; in the end none has done most of them."""
    result = reduced_of(kind, arrays_of(kind))
    want = result.compute(scheduler="synchronous")
    met, ran, lock, fold = threading.Barrier(WORKERS), [], threading.Lock(), engine.fold

    def slow(*args, **more):
        with lock:
            ran.append(get_worker().address)
            first = len(ran) <= WORKERS
        if first:
            met.wait(timeout=120)
        threading.Event().wait(0.02)  # a kernel takes its time without Python's lock
        return fold(*args, **more)

    monkeypatch.setattr(engine, "fold", slow)
    assert client.compute(result).result(timeout=300).tobytes() == want.tobytes()
    assert len(ran) >= 4 * WORKERS
    assert set(ran[:WORKERS]) == set(client.scheduler_info(n_workers=-1)["workers"])
    assert max(Counter(ran).values()) <= 0.6 * len(ran)


def test_every_scheduler_gives_the_same_bytes(client, gate):
    results = sum_and_gradient(gate)
    want = calm(results)
    for scheduler in ("threads", "single-threaded", client):
        assert [value.tobytes() for value in dask.compute(*results, scheduler=scheduler)] == want
    with (
        LocalCluster(n_workers=1, threads_per_worker=4, processes=False, dashboard_address=PORT) as cluster,
        Client(cluster, set_as_default=False) as other,
    ):
        assert [value.tobytes() for value in dask.compute(*results, scheduler=other)] == want


# -- who joins and leaves ----------------------------------------------------------------------------------------------


def test_workers_join_and_leave_in_mid_run(gate):
    results = sum_and_gradient(gate)
    want = calm(results)
    with threads(1, threads_per_worker=2) as client:  # one waits at the gate, and holds up no task behind it

        def count(workers):
            client.cluster.scale(workers)
            until(lambda: len(client.scheduler_info(n_workers=-1)["workers"]) == workers)

        def grow_and_shrink():
            until(gate.reached.exists)  # on the worker that stays
            count(3)
            until(lambda: client.run_on_scheduler(stalled))
            count(1)
            count(2)

        assert disturbed(client, results, gate, grow_and_shrink) == want


def test_an_adaptive_cluster(gate, tmp_path):
    """It grows while much is to be done, and somebody leaves while a single block is waited for."""
    all_of_it = Gate(tmp_path / "all")
    results = sum_and_gradient(gate, before=all_of_it)
    want = calm(results)
    with threads(1, threads_per_worker=2) as client:  # one waits at the gate, and holds up no task behind it
        options = {"interval": "50 ms", "target_duration": "10 ms", "wait_count": 2}
        adaptive = client.cluster.adapt(minimum=1, maximum=3, **options)

        def workers():
            return len(client.scheduler_info(n_workers=-1)["workers"])

        def grow_and_shrink():
            until(lambda: workers() == 3)
            all_of_it.open()
            until(lambda: workers() < 3)

        all_of_it.close()
        assert disturbed(client, results, gate, grow_and_shrink) == want
        adaptive.stop()


# -- who asks ----------------------------------------------------------------------------------------------------------


def test_two_clients_at_once(client, gate):
    """They share what is the same; one that gives up takes nothing from the other."""
    both, more = sum_and_gradient(gate), sum_and_gradient(gate, seed=1)
    want, want_more = calm(both), calm(more)
    with (
        Client(client.cluster, set_as_default=False) as second,
        Client(client.cluster, set_as_default=False) as third,
    ):
        with gate.closed():
            first_has = client.compute(list(both))
            second_has = second.compute([*more, both[0]])
            third_has = third.compute([*both, *more])
            until(lambda: client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.clients) >= 4))
            third.cancel(third_has)
        assert [future.result(timeout=300).tobytes() for future in first_has] == want
        assert [future.result(timeout=300).tobytes() for future in second_has] == [*want_more, want[0]]


def test_two_threads_of_one_program_at_once(client, gate):
    problems = [sum_and_gradient(gate, seed=seed) for seed in range(3)]
    with ThreadPoolExecutor(3) as pool:
        got = list(pool.map(lambda results: dask.compute(*results, scheduler=client), problems))
    assert [[value.tobytes() for value in values] for values in got] == list(map(calm, problems))


# -- what is shared ----------------------------------------------------------------------------------------------------

loads = Counter()


def load(block, block_info, of):
    loads[of, block_info[0]["chunk-location"][0]] += 1
    return block


@pytest.mark.parametrize("scheduler", ["synchronous", "threads", "client"])
def test_reductions_in_one_graph_load_their_inputs_once(client, scheduler):
    x, y, e = (
        da.map_blocks(load, array, of=name, dtype=array.dtype, meta=array._meta)
        for name, array in zip("xye", arrays_of("gradient", 800, 900, 4, 5), strict=True)
    )
    nearest = Genred("SqDist(x, y)", ALIASES, reduction_op="ArgKMin", opt_arg=3, axis=1)
    results = [reduced_of("sum", (x, y)), reduced_of("gradient", (x, y, e)), nearest(x, y, backend="cpu")]
    want = [result.compute(scheduler="synchronous").tobytes() for result in results]
    loads.clear()
    got = dask.compute(*results, scheduler=client if scheduler == "client" else scheduler)
    assert [value.tobytes() for value in got] == want
    assert loads == Counter(
        [*(("x", i) for i in range(5)), *(("e", i) for i in range(5)), *(("y", j) for j in range(4))]
    )


@pytest.mark.parametrize("scheduler", ["synchronous", "client"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_part_of_the_result_folds_for_its_blocks_alone(client, folds, kind, scheduler):
    result = reduced_of(kind, arrays_of(kind, 1000, 1200, 5, 6))
    want = result.compute(scheduler="synchronous")
    every = Counter(i0 for i0, _ in folds)
    assert set(every) == {0, 200, 400, 600, 800}
    for rows, blocks in ((slice(200), {0}), (slice(250), {0, 200}), (slice(650, None), {600, 800})):
        folds.clear()
        part = result[rows].compute(scheduler=client if scheduler == "client" else scheduler)
        assert part.tobytes() == want[rows].tobytes()
        assert Counter(i0 for i0, _ in folds) == {i0: every[i0] for i0 in blocks}


def test_what_is_persisted_is_not_folded_again(client, folds):
    result = reduced_of("sum", arrays_of("sum", 1000, 1200, 5, 6))
    want = result.compute(scheduler="synchronous")
    folds.clear()
    kept = client.persist(result)
    assert kept.compute(scheduler=client).tobytes() == want.tobytes()
    count = len(folds)
    assert count > 5
    assert kept[300:700].compute(scheduler=client).tobytes() == want[300:700].tobytes()
    assert (2 * kept).compute(scheduler=client).tobytes() == (2 * want).tobytes()
    assert len(folds) == count


# -- what is done with it ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [0, 1])
def test_results_go_on_into_dask_arrays(client, gate, position):
    lazy = sum_and_gradient(gate)[position]
    want = lazy.compute(scheduler="synchronous")
    result = client.persist(lazy)

    def computed(array):
        return client.compute(array).result(timeout=300)

    assert want.shape == (ROWS, 3)
    np.testing.assert_array_equal(computed(lazy[10:3000:7, [2, 0]]), want[10:3000:7][:, [2, 0]])
    np.testing.assert_array_equal(computed(result[10:3000:7, [2, 0]]), want[10:3000:7][:, [2, 0]])
    np.testing.assert_array_equal(computed(result[result[:, 0] > 0]), want[want[:, 0] > 0])
    np.testing.assert_array_equal(computed(result.rechunk((700, 2)).T), want.T)
    np.testing.assert_allclose(computed(da.linalg.norm(result)), np.linalg.norm(want.astype("float64")), rtol=1e-5)
    q, r = client.compute(da.linalg.qr(result.astype("float64")))
    np.testing.assert_allclose(q.result(timeout=300) @ r.result(timeout=300), want, rtol=1e-9)
    gram = computed(da.dot(result.T, result))
    np.testing.assert_allclose(gram, want.T @ want, rtol=1e-4)


@pytest.mark.parametrize("position", [0, 1])
def test_results_go_to_zarr_and_back(client, gate, tmp_path, position):
    pytest.importorskip("zarr")
    result = sum_and_gradient(gate)[position]
    client.compute(result.to_zarr(str(tmp_path / "result.zarr"), compute=False)).result(timeout=300)
    again = da.from_zarr(str(tmp_path / "result.zarr"))
    assert again.chunks == result.chunks
    assert client.compute(again).result(timeout=300).tobytes() == calm((result,))[0]
