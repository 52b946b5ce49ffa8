"""deploy/mpi/run.py under mpirun."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy import small
from tests.deploy.environments import python_path

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
RUN = ROOT / "deploy" / "mpi" / "run.py"


def mpirun(folder: Path, ranks: int, *program: object) -> "subprocess.CompletedProcess[str]":
    if shutil.which("mpirun") is None:
        pytest.skip("no mpirun")
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}  # as it is in a container
    env = {**os.environ, **root, "PYTHONPATH": python_path(), "DRED_NUM_THREADS": "1", "DRED_SCRATCH": str(folder)}
    command = ["mpirun", "--oversubscribe", "-n", ranks, sys.executable, RUN, *program]
    return subprocess.run(list(map(str, command)), env=env, cwd=folder, capture_output=True, text=True, timeout=300)


def test_a_script_on_two_workers(tmp_path):
    done = mpirun(tmp_path, 4, ROOT / "tests" / "slurm" / "node_script.py", "--workers", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "threads 1 1\n" in done.stdout
    assert "error below 1e-12 True\n" in done.stdout


def test_a_job_file(tmp_path):
    small.prepare(tmp_path)
    done = mpirun(tmp_path, 4, "job.toml", "output.path=other.npy")
    assert done.returncode == 0, done.stdout + done.stderr
    small.check(tmp_path / "other.npy")


def test_the_exit_status_is_that_of_the_program(tmp_path):
    script = tmp_path / "fails.py"
    script.write_text("import sys\nprint(*sys.argv[1:])\nsys.exit(7)\n")
    done = mpirun(tmp_path, 3, script, "one", "two")
    assert done.returncode == 7, done.stdout + done.stderr
    assert done.stdout.startswith("--scheduler tcp://")
    assert "one two\n" in done.stdout


def test_too_few_ranks(tmp_path):
    done = mpirun(tmp_path, 2, "job.toml")
    assert done.returncode != 0
    assert "Not enough MPI ranks to start cluster, found 2, needs at least 3" in done.stderr
