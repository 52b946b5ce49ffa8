"""`dred plan` where no cluster runs: for the workers that would be started on this machine."""

import json
import os

import pytest
from click.testing import CliRunner

from dred.cluster.backend import ambient_client
from dred.jobs.cli import main
from tests.jobs.cases import TOML, points


@pytest.fixture
def arrays(tmp_path, monkeypatch):
    assert ambient_client() is None
    (tmp_path / "job.toml").write_text(TOML)
    monkeypatch.chdir(tmp_path)
    return points(tmp_path)


def call(*args):
    return CliRunner().invoke(main, list(map(str, args)), catch_exceptions=False)


def test_plan(arrays, tmp_path):
    done = call("plan", "job.toml", "--workers", 7)
    assert done.exit_code == 0
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0] == "Sum, Exp(-g*SqDist(x,y))*b; axis 1"
    assert any(line.startswith("7 workers     about ") for line in lines)
    assert lines[-1] == (
        f"disk          results 10 kB; finished blocks as much until the end, in {tmp_path}/.out.npy.dred"
    )
    assert sorted(os.listdir()) == ["b.npy", "e.npy", "job.toml", "x.npy", "y.npy"]
    facts = json.loads(call("plan", "job.toml", "--json").stdout)
    assert facts["fits"] is True
    assert facts["plans"][0]["pairs"] == "2,500 x 300 = 7.5e+05, each of 28 operations"
    assert facts["memory_limit"] > 1e8


def test_a_plan_that_does_not_fit_ends_with_2_and_numbers(arrays):
    done = call("plan", "job.toml", "cluster.memory=10 kB", "cluster.workers=1")
    assert done.exit_code == 2
    assert "does not fit  a worker of 1 thread needs " in done.stdout
    assert "more than 80% of its memory limit of 10 kB" in done.stdout
    done = call("plan", "job.toml", "cluster.memory=a lot")
    assert done.exit_code == 2
    assert done.stderr.startswith("dred: memory='a lot' of a worker: ")


def test_no_scheduler_is_there(arrays, tmp_path):
    done = call("plan", "job.toml", "--scheduler-file", "none.json", "cluster.timeout=0.2")
    assert done.exit_code == 2
    assert done.stderr == (
        f"dred: no scheduler answers at {tmp_path}/none.json in 0.2 s: {tmp_path}/none.json is not there\n"
    )
