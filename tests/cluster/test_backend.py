"""Which backend a graph is built for: configuration, arguments, workers, this process."""

import asyncio
from types import SimpleNamespace

import dask
import numpy as np
import pytest
from distributed import Client, LocalCluster, WorkerPlugin

from dred.cluster import backend
from dred.errors import BackendError
from dred.kernel import cuda, engine
from tests.cluster.local import processes, threads
from tests.cluster.problems import arrays_of, dask_of, plan_of, spec_of, summed
from tests.conftest import gpu_count

MIXTURE = (
    "1 of 2 workers have a GPU and 1 have none, so that the result would depend on where tasks run: "
    "use backend='cpu', or workers of one kind"
)
NO_WORKERS = (
    "backend='auto' asks the workers whether they have GPUs, but none has joined the cluster yet: "
    "call client.wait_for_workers(...) first, or name a backend"
)


@pytest.fixture
def client():
    with threads(2) as client:
        yield client


@pytest.fixture
def gpus(monkeypatch):
    """Lets this process, and the workers that live in it, have a number of GPUs at each question."""

    def have(*counts):
        answers = list(counts)
        monkeypatch.setattr(cuda, "device_count", lambda: answers.pop())
        monkeypatch.setattr(cuda, "architecture", lambda: "sm_90")
        return answers  # those that are left

    return have


def test_named_backends_ask_nobody(gpus):
    left = gpus(1)
    assert [backend.resolve(name) for name in ("cpu", "CPU", "numpy")] == ["cpu", "cpu", "numpy"]
    assert left == [1]


def test_unknown_names_are_refused():
    with pytest.raises(BackendError, match="unknown backend 'tpu'"):
        backend.resolve("tpu")


def test_configuration_comes_first(gpus):
    gpus(1)
    with dask.config.set({"dred.backend": "cpu"}):
        assert backend.resolve("auto") == "cpu"
        gpus(1)
        assert backend.resolve("cuda") == "cuda"


def test_without_a_client_this_process_decides(gpus):
    gpus(0)
    assert backend.resolve("auto") == "cpu"
    gpus(1)
    assert backend.resolve("auto") == "cuda"
    gpus(1)
    assert backend.resolve("GPU_1D") == "cuda"
    gpus(0)
    with pytest.raises(BackendError, match="needs an NVIDIA GPU, and none is usable in this process"):
        backend.resolve("cuda")


@pytest.mark.parametrize(("counts", "want"), [((0, 0), "cpu"), ((1, 1), "cuda"), ((1, 8), "cuda")])
def test_with_a_client_its_workers_decide(client, gpus, counts, want):
    left = gpus(*counts)
    assert backend.resolve("auto") == want
    assert left == []  # each was asked once


def test_a_mixture_of_workers_is_refused(client, gpus):
    gpus(0, 1)
    arrays = dask_of(arrays_of(20, 20), 10, 10)
    with pytest.raises(BackendError) as caught:
        summed(spec_of(), arrays)
    assert str(caught.value) == MIXTURE
    gpus(0, 1)
    with pytest.raises(BackendError) as caught:
        summed(spec_of(), arrays, "cuda")
    assert str(caught.value) == "backend='cuda' needs a GPU in every worker, but 1 of 2 have none"
    assert plan_of(spec_of(), arrays, "cpu").backend == "cpu"


def test_another_scheduler_than_the_client_is_not_asked_about_it(client, gpus):
    left = gpus(1, 0)
    with dask.config.set(scheduler="sync"):
        assert backend.resolve("auto") == "cpu"
    assert left == [1]  # this process was asked, and no worker


def test_the_choice_is_in_the_plan_and_its_token(client, gpus):
    arrays = dask_of(arrays_of(20, 20), 10, 10)
    gpus(0, 0)
    plan, result = plan_of(spec_of(), arrays, "cpu"), summed(spec_of(), arrays)
    gpus(1, 1)
    other = summed(spec_of(), arrays)
    assert plan.backend == "cpu"
    assert result.name == summed(spec_of(), arrays, "cpu").name != other.name


def test_arguments_on_a_gpu_want_cuda(gpus):
    there = SimpleNamespace(_meta=SimpleNamespace(__cuda_array_interface__={}))
    gpus(1)
    assert backend.resolve("auto", (np.zeros(1), there)) == "cuda"
    gpus(0)
    with pytest.raises(BackendError, match="needs an NVIDIA GPU"):
        backend.resolve("auto", (np.zeros(1), there))


def test_a_cluster_without_workers_cannot_be_asked():
    with threads(0):
        with pytest.raises(BackendError) as caught:
            backend.resolve("auto")
        assert backend.resolve("cuda") == "cuda"
        assert backend.resolve("cpu") == "cpu"
    assert str(caught.value) == NO_WORKERS


def test_an_asynchronous_client_cannot_be_asked():
    async def ask():
        async with (
            LocalCluster(n_workers=1, processes=False, dashboard_address=":0", asynchronous=True) as cluster,
            Client(cluster, asynchronous=True),
        ):
            assert backend.resolve("cuda") == "cuda"
            assert backend.resolve("cpu") == "cpu"
            with pytest.raises(BackendError, match=r"which an asynchronous client cannot do here .* name a backend"):
                backend.resolve("auto")

    asyncio.run(ask())


class Devices(WorkerPlugin):
    """Lets the process of each worker have a number of GPUs, by the worker's name."""

    def __init__(self, **counts):
        self.name = f"devices-{counts}"
        self.counts = counts

    def setup(self, worker):
        cuda.device_count = lambda: self.counts[f"worker{worker.name}"]
        cuda.architecture = lambda: "sm_90"


def test_processes_are_asked_one_by_one():
    arrays = dask_of(arrays_of(40, 40), 10, 10)
    with processes(2) as client:
        assert plan_of(spec_of(), arrays).backend == ("cuda" if gpu_count() else "cpu")
        client.register_plugin(Devices(worker0=1, worker1=0))
        with pytest.raises(BackendError) as caught:
            summed(spec_of(), arrays)
    assert str(caught.value) == MIXTURE


def test_a_worker_without_a_gpu_refuses_what_was_planned_for_one(client, gpus, monkeypatch):
    gpus(1, 1)
    result = summed(spec_of(), dask_of(arrays_of(20, 20), 20, 20))

    def no_device(*args, **kwargs):
        raise BackendError("no CUDA device")

    monkeypatch.setattr(cuda, "fold", no_device)
    with pytest.raises(BackendError) as caught:
        result.compute()
    assert str(caught.value).startswith("no CUDA device\n    while folding block i = 0, lane 0, step 0 (")


def test_without_llvm_and_without_client_the_interpreter_stands_in(monkeypatch):
    monkeypatch.setattr(engine, "_llvm", lambda: False)
    assert backend.resolve("cpu") == "numpy"
    with (
        LocalCluster(n_workers=1, processes=False, dashboard_address=":0") as cluster,
        Client(cluster),
    ):
        assert backend.resolve("cpu") == "cpu"  # the workers may have it
