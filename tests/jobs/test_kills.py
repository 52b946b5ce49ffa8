"""Processes of a job that are killed: what is run again goes on, and ends with the same bytes."""

import pytest

from tests.jobs.kills import BLOCKS, disturbed, finished, prepare, run, start, terminate, until, workers

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills")
    prepare(folder)
    run(folder, "quiet.npy")
    return folder


def same(folder, output):
    return (folder / output).read_bytes() == (folder / "quiet.npy").read_bytes()


@pytest.mark.parametrize("whom", ["client", "worker", "both"])
def test_killed(folder, whom):
    kept = disturbed(folder, f"{whom}.npy", whom, moment=BLOCKS // 4)
    assert same(folder, f"{whom}.npy")
    assert kept >= BLOCKS // 4 or whom == "worker"
    left = {path.name for path in folder.iterdir() if whom in path.name}
    assert left == {f"{whom}.npy", f"{whom}.npy.json"}


def test_terminated(folder):
    """As a batch system does before it takes a machine away."""
    client = start(folder, "term.npy")
    until(client, lambda: finished(folder, "term.npy") >= 5)
    there = workers(client)
    code, said = terminate(client)
    assert code == 75, said
    kept = finished(folder, "term.npy")
    assert "ended by SIGTERM; " in said
    assert not any(worker.is_running() for worker in there)
    assert f"going on in {folder}/.term.npy.dred: {kept} files" in run(folder, "term.npy")
    assert same(folder, "term.npy")


def test_terminated_before_it_began(folder):
    client = start(folder, "early.npy")
    until(client, lambda: bool(workers(client)))
    code, said = terminate(client)
    assert code == 75, said
    assert "dred: ended" in said
    run(folder, "early.npy")
    assert same(folder, "early.npy")
