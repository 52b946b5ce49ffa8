"""Workers that spill to a disk that is full: the same bytes, or an error that says so."""

import contextlib

import dask
import pytest
from distributed import wait

from tests.chaos.namespaces import need_namespaces, run
from tests.chaos.problem import Gate, calm, sum_and_gradient
from tests.cluster.local import mortal

# Blocks and states are to go to the disk as soon as there are 200 kB of them, a few at a time.
SPILLING = {
    "distributed.worker.memory.target": 1e-4,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
}


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path / "gate")


@pytest.fixture
def small_disk(tmp_path):
    need_namespaces()
    disk = tmp_path / "disk"
    disk.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk)
    yield disk
    run("umount", "--lazy", disk)


def fill(disk, left: int) -> None:
    """Take all of the disk but so many bytes."""
    with (disk / "other").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    with (disk / "other").open("r+b") as file:
        file.truncate((disk / "other").stat().st_size - left)


def free(disk) -> None:
    (disk / "other").unlink()


@contextlib.contextmanager
def spilling_to(disk):
    with dask.config.set(SPILLING), mortal(2, local_directory=str(disk), memory_limit=2 * 10**9) as client:
        yield client


@pytest.mark.slow
def test_nothing_can_be_spilled(small_disk, gate, capfd):
    """Everything stays in memory."""
    results = sum_and_gradient(gate)
    want = calm(results)
    with spilling_to(small_disk) as client:
        fill(small_disk, left=0)
        futures = client.compute(list(results))
        assert [future.result(timeout=300).tobytes() for future in futures] == want
        free(small_disk)
    log = capfd.readouterr().err  # of the workers too
    assert "Spill to disk failed; keeping data in memory" in log
    assert "No space left on device" in log


@pytest.mark.slow
def test_a_part_can_be_spilled(small_disk, gate, capfd):
    """A task whose inputs cannot come back from the disk, since others would have to go there, fails and says why.

    It can be tried again where there is space.
    """
    results = sum_and_gradient(gate)
    want = calm(results)
    with spilling_to(small_disk) as client:
        fill(small_disk, left=60_000)
        futures = client.compute(list(results))
        wait(futures, timeout=300)
        for future, right in zip(futures, want, strict=True):
            if future.status == "finished":
                assert future.result(timeout=300).tobytes() == right
            else:
                with pytest.raises(OSError, match="No space left on device"):
                    future.result(timeout=300)
        free(small_disk)
        client.cancel(futures)
        futures = client.compute(list(results))
        assert [future.result(timeout=300).tobytes() for future in futures] == want
    assert "No space left on device" in capfd.readouterr().err
