"""Jobs with odd points and places: what is there is not lost, and what is odd but right is computed."""

import os
import shutil
import signal

import fsspec
import numpy as np
import pytest
from distributed.client import FutureCancelledError

from dred.cluster import connect, sinks
from dred.errors import BackendError, InputError, JobError, OptionError, StoreError
from dred.jobs import manifest, runner
from dred.jobs.job import Job
from dred.jobs.log import Log
from dred.jobs.runner import Code
from tests.cluster.local import threads
from tests.jobs.cases import M, document, job, points
from tests.jobs.test_runner import ended_after, folded, left, with_variables

QUIET = Log(quiet=True)


@pytest.fixture(scope="module", autouse=True)
def client():
    with threads(1, 2) as client:
        yield client


@pytest.fixture
def arrays(tmp_path):
    return points(tmp_path)


# -- what is there ---------------------------------------------------------------------------------------------------


def test_what_is_hidden_in_the_work_folder_is_not_lost(tmp_path, arrays):
    (tmp_path / "mine" / ".git").mkdir(parents=True)
    with pytest.raises(JobError, match=r"mine holds other files \(\.git\)"):
        runner.run(job(tmp_path, work="mine"), QUIET)
    assert (tmp_path / "mine" / ".git").is_dir()


def test_what_comes_into_the_work_folder_meanwhile_is_not_lost(tmp_path, arrays, monkeypatch):
    this = job(tmp_path)
    with monkeypatch.context() as patch:
        ended_after(patch, 1, KeyboardInterrupt())
        runner.run(this, QUIET)
    (tmp_path / ".out.npy.dred" / "notes.txt").write_text("mine")
    assert runner.run(this, QUIET) == Code.DONE
    assert os.listdir(this.work) == ["notes.txt"]


def test_a_job_that_was_killed_while_its_folder_went_is_done(tmp_path, arrays, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "clear", lambda folder: shutil.rmtree(os.path.join(folder, "blocks")))
        runner.run(job(tmp_path), QUIET)
    assert left(tmp_path) == [".out.npy.dred", "out.npy", "out.npy.json"]
    found = folded(monkeypatch)
    assert runner.run(job(tmp_path), Log()) == Code.DONE
    assert "nothing to do" in capsys.readouterr().err
    assert (found, left(tmp_path)) == ([], ["out.npy", "out.npy.json"])


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_folder_of_nobody_knows_what_is_refused(tmp_path, arrays, monkeypatch, content):
    this = job(tmp_path)
    with monkeypatch.context() as patch:
        ended_after(patch, 1, KeyboardInterrupt())
        runner.run(this, QUIET)
    (tmp_path / ".out.npy.dred" / "job.json").write_text(content)
    with pytest.raises(StoreError, match=r"job\.json cannot be read: .*\. Delete .*/\.out\.npy\.dred to begin anew"):
        runner.run(this, QUIET)


def test_an_object_that_is_there_is_not_replaced_unless_asked(tmp_path, arrays, monkeypatch):
    monkeypatch.chdir(tmp_path)
    objects = fsspec.filesystem("memory")
    objects.pipe_file("/jobs/out.npy", b"mine")
    url = "memory://jobs/out.npy"
    with pytest.raises(JobError, match=r"/out\.npy is there: name another path, or say output\.overwrite=true"):
        runner.run(job(tmp_path, output={"path": url}), QUIET)
    assert objects.cat_file("/jobs/out.npy") == b"mine"
    assert runner.run(job(tmp_path, output={"path": url, "overwrite": True}), QUIET) == Code.DONE
    assert objects.cat_file("/jobs/out.npy")[:6] == b"\x93NUMPY"
    assert not os.path.exists(".out.npy.dred")


def test_objects_of_one_name_are_not_mixed_up(tmp_path, arrays, monkeypatch):
    monkeypatch.chdir(tmp_path)
    several = [{"formula": "x*b*g", "reduction": "Sum"}, {"formula": "SqDist(x,y)", "reduction": "Min"}]
    given = {k: v for k, v in document().items() if k not in ("formula", "reduction")}
    paths = ["memory://one/same.npy", "memory://two/same.npy"]
    both = Job.of({**given, "reductions": several, "output": {"paths": paths, "overwrite": True}}, tmp_path)
    assert runner.run(both, QUIET) == Code.DONE
    objects = fsspec.filesystem("memory")
    shapes = [np.load(objects.open(f"/{name}/same.npy")).shape for name in ("one", "two")]
    assert shapes == [(M, 3), (M, 1)]


def test_jobs_with_other_folders_do_not_share_a_part(tmp_path):
    assert runner._part(job(tmp_path), 0) == runner._part(job(tmp_path), 0)
    assert runner._part(job(tmp_path), 0) != runner._part(job(tmp_path, work="other"), 0)


def test_a_lock_that_has_been_removed_locks_nothing(tmp_path, monkeypatch):
    lock = manifest._lock

    def removing(file):
        os.unlink(file.name)
        lock(file)

    monkeypatch.setattr(manifest, "_lock", removing)
    with pytest.raises(JobError, match="another process has just ended this job"), manifest.alone(str(tmp_path / "w")):
        pass


@pytest.mark.parametrize("error", [OSError("no"), runner.Terminated()])
def test_a_folder_that_was_to_be_replaced_comes_back(tmp_path, monkeypatch, error):
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    rename, count = os.rename, 0

    def failing(a, b):
        nonlocal count
        count += 1
        if count == 2:
            raise error
        rename(a, b)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(type(error)):
        sinks._move(str(tmp_path / "new"), str(tmp_path / "old"), str(tmp_path / "aside"))
    assert sorted(os.listdir(tmp_path)) == ["new", "old"]
    assert os.listdir(tmp_path / "old") == ["old"]


def test_a_folder_that_a_killed_job_has_moved_away_goes(tmp_path):
    for name in ("new", "aside"):
        (tmp_path / name).mkdir()
    sinks._move(str(tmp_path / "new"), str(tmp_path / "out"), str(tmp_path / "aside"))
    assert os.listdir(tmp_path) == ["out"]


def test_a_report_that_cannot_be_written_is_refused_before(tmp_path, arrays):
    with pytest.raises(StoreError, match=r"nowhere/r\.html cannot be written: .*No such file or directory"):
        runner.run(job(tmp_path, report="nowhere/r.html"), QUIET)
    (tmp_path / "out.npy.json").mkdir()
    with pytest.raises(StoreError, match=r"out\.npy\.json cannot be written: a folder has this name"):
        runner.run(job(tmp_path), QUIET)
    assert left(tmp_path) == ["out.npy.json"]


def test_names_that_are_no_text(tmp_path, arrays):
    folder = tmp_path / os.fsdecode(b"\xff")
    folder.mkdir()
    this = job(tmp_path, output={"path": f"{folder}/out.npy"}, report=f"{folder}/r.html")
    assert runner.run(this, QUIET) == Code.DONE
    assert sorted(os.listdir(folder)) == ["out.npy", "out.npy.json", "r.html"]


# -- odd points ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("none", ["x", "yb"])
def test_no_points(tmp_path, arrays, none):
    for name in none:
        np.save(tmp_path / f"{name}.npy", arrays[name][:0])
    assert runner.run(job(tmp_path, nan="error"), QUIET) == Code.DONE
    assert not np.load(tmp_path / "out.npy").any()


@pytest.mark.parametrize("value", [1e300, 10**400, -1e39])
def test_numbers_of_a_job_that_are_none_in_its_type(tmp_path, arrays, value):
    with pytest.raises(InputError, match=r"value of variables\.g holds (.* beyond float32|no numbers)"):
        runner.run(job(tmp_path, variables=with_variables(g={"type": "Pm(1)", "value": value})), QUIET)


# -- clusters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"address": '])
def test_a_scheduler_file_that_is_not_whole_is_waited_for(tmp_path, content):
    (tmp_path / "s.json").write_text(content)
    with (
        pytest.raises(BackendError, match=r"no scheduler answers at .*s\.json in 0 s: .*s\.json names no scheduler"),
        connect.running(scheduler_file=str(tmp_path / "s.json"), timeout=0.0),
    ):
        pass


def test_less_memory_than_none():
    with pytest.raises(OptionError, match=r"memory=-5 of a worker is less than nothing, write it as 4 GiB"):
        connect.local("cpu", 1, 1, -5)


def test_a_scheduler_that_is_lost_is_said(tmp_path, arrays, monkeypatch, capsys):
    class Lost:
        def __init__(self, futures, with_results):
            self.future = futures[0]

        def __iter__(self):
            return iter([(self.future, FutureCancelledError(self.future.key, "scheduler-connection-lost"))])

    monkeypatch.setattr("distributed.as_completed", Lost)
    assert runner.run(job(tmp_path), Log()) == Code.FAILED
    said = capsys.readouterr().err
    assert "dred: the scheduler is lost, or has dropped what was asked for: " in said
    assert "scheduler-connection-lost" in said


# -- signals ---------------------------------------------------------------------------------------------------------


def test_the_end_is_not_cut_short():
    """By a second signal, while a cluster is closed."""
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with runner.terminable() as deaf:
        deaf()
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
