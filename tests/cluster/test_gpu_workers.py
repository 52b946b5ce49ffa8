"""Dask workers with GPUs, by the CuPy without one: folds on the worker's device, blocks of CuPy, memory, kinds."""

import warnings

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client, LocalCluster, WorkerPlugin

from dred import Genred, from_array
from dred.cluster import backend, tasks
from dred.errors import BackendError, DeviceMemoryError, FoldError
from dred.kernel import cuda, cuda_launch, cuda_streams
from tests.cluster.local import PORT, processes, threads
from tests.cluster.problems import ALIASES, TEXT, arrays_of, dask_of, dense, plan_of, spec_of, summed
from tests.shim import fake_cupy, shim

pytestmark = pytest.mark.skipif(not shim.available(), reason="no C++ compiler")

M, N = 700, 900


@pytest.fixture
def problem():
    given = arrays_of(M, N)
    return given, dense(*given)


def on_devices(arrays):
    """Dask arrays whose blocks are on a device, made by tasks and still being written there."""
    import cupy

    return [a.map_blocks(cupy.asarray, meta=cupy.empty((0,) * a.ndim, a.dtype), dtype=a.dtype) for a in arrays]


def some(block, block_id):
    """Every other block on the device."""
    import cupy

    return cupy.asarray(block) if block_id[0] % 2 else block


def want_bytes(given, x_chunks=250, y_chunks=300, **options):
    """On one thread."""
    with fake_cupy.installed(**options):
        return summed(spec_of(), dask_of(given, x_chunks, y_chunks), "cuda").compute(scheduler="sync").tobytes()


@pytest.mark.parametrize("eager", [(), ("copy", "kernel")], ids=["late", "early"])
def test_folds_run_on_the_device(problem, eager):
    given, want = problem
    with fake_cupy.installed(eager=eager) as fake:
        result = summed(spec_of(), dask_of(given, 250, 300))
        assert plan_of(spec_of(), dask_of(given, 250, 300)).backend == "cuda"
        for scheduler in ("sync", "threads"):
            got = result.compute(scheduler=scheduler)
            assert type(got) is np.ndarray
            np.testing.assert_allclose(got, want, rtol=1e-12)
        assert all(stream.done for stream in fake.streams[0])
        assert {name for _, _, name, *_ in fake.launches} == {"dred_fold", "dred_merge"}


def test_blocks_on_the_device_are_used_where_they_are(problem):
    """Of all but the state and tables, nothing is copied; several y blocks are joined there."""
    given, want = problem
    for scheduler in ("sync", "threads"):
        with fake_cupy.installed() as fake:
            there = dask.persist(*on_devices(dask_of(given, 250, 300)), scheduler=scheduler)
            result = summed(spec_of(), there)
            assert plan_of(spec_of(), there).backend == "cuda"
            fake.copies = []
            got = result.compute(scheduler=scheduler)
            assert max(size for way, size, _ in fake.copies if way == "in") == 250 * 3 * 8  # the state of a block
            np.testing.assert_allclose(got, want, rtol=1e-12)
        assert got.tobytes() == want_bytes(given)


def test_blocks_of_a_device_beside_those_of_the_host(problem):
    given, want = problem
    with fake_cupy.installed():
        x, y, a, p = dask_of(given, 250, 300)
        (there,) = on_devices([y])
        got = summed(spec_of(), (x, there, a, p), "cuda").compute(scheduler="sync")
        np.testing.assert_allclose(got, want, rtol=1e-12)
        half = y.map_blocks(some, dtype=y.dtype, meta=y._meta)  # blocks of a variable here and there
        np.testing.assert_allclose(
            summed(spec_of(), (x, half, a, p), "cuda").compute(scheduler="sync"), want, rtol=1e-12
        )
        np.testing.assert_allclose(
            summed(spec_of(), (x, half, a, p), "cpu").compute(scheduler="sync"), want, rtol=1e-12
        )


def test_workers_and_memory_change_no_bit(problem, monkeypatch):
    monkeypatch.setattr(cuda_launch, "PANEL", 20_000)
    given, want = problem
    bytes_of = {want_bytes(given)}
    for together, memory in ((1, 0.5), (2, "200 kB"), (3, "250 kB")):
        with (
            fake_cupy.installed(memory=1 << 22) as fake,
            dask.config.set({"dred.cuda.memory": memory}),
            LocalCluster(1, threads_per_worker=together, processes=False, dashboard_address=PORT) as cluster,
            Client(cluster),
        ):
            got = summed(spec_of(), dask_of(given, 250, 300)).compute()
            limit = fake.memory // 2 if memory == 0.5 else int(memory.split()[0]) * 1000
            assert fake.default_pool.get_limit() == limit  # of what all folds hold
            assert fake.peak <= limit
        np.testing.assert_allclose(got, want, rtol=1e-12)
        bytes_of.add(got.tobytes())
    assert len(bytes_of) == 1


def test_outside_a_cluster_the_pool_is_its_users(problem):
    given, _ = problem
    with fake_cupy.installed() as fake, dask.config.set({"dred.cuda.memory": "200 kB"}):
        summed(spec_of(), dask_of(given, 250, 300)).compute(scheduler="sync")
        assert fake.default_pool.get_limit() == 0
        assert fake.peak <= 200_000


def test_a_device_that_is_too_small(problem):
    given, _ = problem
    with fake_cupy.installed(), threads(1) as client, dask.config.set({"dred.cuda.memory": "20 kB"}):
        future = client.compute(summed(spec_of(), dask_of(given, 250, 300)))
        with pytest.raises(DeviceMemoryError) as caught:
            future.result()
    text = str(caught.value)
    assert text.startswith("CUDA device 0 has too little memory for a fold of ")
    assert "20 kB may be used, " in text
    assert "\n    while folding block i = " in text
    assert f"\n    of {tasks.describe(spec_of(), 'Sum')}" in text


def test_blocks_on_another_device_are_refused(problem):
    given, _ = problem
    with fake_cupy.installed(devices=2):
        import cupy

        with cupy.cuda.Device(1):
            several = dask.persist(*on_devices(dask_of(given, 250, 300)), scheduler="sync")
            single = dask.persist(*on_devices(dask_of(given, 250, 900)), scheduler="sync")
        for there, what in ((several, "a block"), (single, "array 0")):
            with pytest.raises(BackendError) as caught:
                summed(spec_of(), there).compute(scheduler="sync")
            assert str(caught.value).startswith(
                f"{what} is on device 1, device 0 computes: move it there\n    while folding block i = "
            )


def test_blocks_of_a_device_that_differ_from_what_was_declared(problem):
    given, _ = problem
    with fake_cupy.installed():
        import cupy

        x, y, a, p = dask_of(given, 350, 300)
        wrong = x.map_blocks(lambda b: cupy.asarray(b.astype("float32")), dtype="float64", meta=x._meta)
        with pytest.raises(FoldError) as caught:
            summed(spec_of(), (wrong, y, a, p), "cuda").compute(scheduler="sync")
    assert caught.value.cause == (
        "InputError: argument 0: a block holds float32 of shape (350, 3), but its dask array declares float64 of shape"
        " (350, 3)"
    )


class Gpu(WorkerPlugin):
    """A CuPy without a GPU in the process of each worker, of an architecture by the worker's name."""

    def __init__(self, **capabilities):
        self.name = f"gpu-{capabilities}"
        self.capabilities = capabilities

    def setup(self, worker):
        fake_cupy.install(capabilities=(self.capabilities[f"worker{worker.name}"],))
        cuda_streams.STAGE = 5000


@pytest.mark.slow
def test_processes_with_a_gpu_each(problem):
    given, want = problem
    arrays = dask_of(given, 250, 300)
    with processes(2) as client:
        client.register_plugin(Gpu(worker0="90", worker1="90"))
        assert backend.resolve("auto") == "cuda"
        assert set(client.run(tasks.machine).values()) == {tasks.Machine(1, tasks.platform.machine(), "sm_90")}
        routine = Genred("Square(p - a) * Exp(x + y)", ["x = Vi(3)", "y = Vj(3)", "a = Vj(1)", "p = Pm(1)"], axis=1)
        got = routine(*arrays, backend="GPU").compute()
        np.testing.assert_allclose(got, want, rtol=1e-12)
        assert any(client.run(lambda: len(fake_cupy.fake.launches)).values())


def answering(monkeypatch, *found):
    """Lets the workers of this process be machines with so many GPUs, such a processor and such GPUs."""
    counts, cpus, gpus = map(list, zip(*found, strict=True))
    monkeypatch.setattr(cuda, "device_count", lambda: counts.pop())
    monkeypatch.setattr(cuda, "architecture", lambda: gpus.pop())
    monkeypatch.setattr(tasks.platform, "machine", lambda: cpus.pop())


@pytest.mark.parametrize(
    ("found", "chosen", "each"),
    [
        ([(1, "x86_64", "sm_90"), (1, "x86_64", "sm_80"), (1, "x86_64", "sm_90")], "cuda", "1 of sm_80, 2 of sm_90"),
        ([(0, "x86_64", ""), (0, "aarch64", ""), (0, "x86_64", "")], "cpu", "1 of aarch64, 2 of x86_64"),
    ],
)
def test_several_architectures_are_warned_of(found, chosen, each, monkeypatch):
    with threads(3):
        answering(monkeypatch, *found)
        with pytest.warns(RuntimeWarning) as caught:
            assert backend.resolve("auto") == chosen
    assert [str(w.message) for w in caught] == [
        f"the workers are of several architectures ({each}): the last bits of the result depend on which of them"
        " computes what"
    ]


def test_one_architecture_is_no_cause_for_a_warning(monkeypatch):
    """Nor are processors of other kinds beside GPUs of one."""
    with threads(2):
        answering(monkeypatch, (1, "x86_64", "sm_90"), (2, "aarch64", "sm_90"))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert backend.resolve("auto") == "cuda"


def test_what_a_worker_says_of_itself():
    with fake_cupy.installed(devices=3, capabilities=("120",)):
        assert tasks.machine() == tasks.Machine(3, tasks.platform.machine(), "sm_120")
    if not cuda.device_count():
        assert tasks.machine() == tasks.Machine(0, tasks.platform.machine(), "")


@pytest.mark.parametrize("feed", ["stream", "resident", "waves"])
def test_stored_rows_go_to_the_device_in_panels(problem, feed, monkeypatch):
    """The x block and the state once for all panels of a step; the same bytes however they come."""
    monkeypatch.setattr(cuda_launch, "PANEL", 20_000)
    given, want = problem
    x, y, a, p = given
    stored = (da.from_array(x, chunks=(250, 3)), from_array(y), from_array(a), p)
    routine = Genred(TEXT, ALIASES, axis=1)
    with fake_cupy.installed() as fake:
        with dask.config.set({"dred.plan.feed": feed, "scheduler": "sync"}):
            assert routine.plan(*stored, backend="cuda").feed == feed
            got = routine.compute(*stored, backend="cuda")
        sent = [size for way, size, _ in fake.copies if way == "in"]
        states = sum(size == 250 * 3 * 8 for size in sent)
        assert states >= len(range(0, len(x), 250))
        assert len(sent) > 2 * states
        again = routine(*dask_of(given, 250, len(y)), backend="cuda").compute(scheduler="sync")
    np.testing.assert_allclose(got, want, rtol=1e-12)
    assert got.tobytes() == again.tobytes()


def test_stored_rows_of_float16_are_converted_as_they_are_read(problem):
    given, _ = problem
    halves = [v.astype(np.float16) for v in given]
    x, y, a, p = halves
    stored = (da.from_array(x, chunks=(250, 3)), from_array(y), from_array(a), p)
    routine = Genred(TEXT, ALIASES, axis=1)
    with fake_cupy.installed(), dask.config.set(scheduler="sync"):
        got = routine.compute(*stored, backend="cuda")
        again = routine(*dask_of(halves, 250, len(y)), backend="cuda").compute()
    assert got.dtype == np.float16
    np.testing.assert_array_equal(got, again)
    np.testing.assert_allclose(got, routine(*halves), rtol=2e-3)
