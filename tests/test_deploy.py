"""The scripts in deploy/: well formed, and run for real where what they need is here."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.slurm.local_slurm import local_slurm, missing

ROOT = Path(__file__).parents[1]
SBATCH = ROOT / "deploy" / "slurm" / "job.sbatch"
LOCAL = ROOT / "deploy" / "local" / "run.py"
EXAMPLE = ROOT / "examples" / "million_points.py"

RUNS = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING")
ON_CPU = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
SHELL_SCRIPTS = [SBATCH, ROOT / ".ci" / "run"]


@pytest.mark.parametrize("script", SHELL_SCRIPTS, ids=lambda path: path.name)
def test_shell_scripts_parse(script):
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("script", SHELL_SCRIPTS, ids=lambda path: path.name)
def test_shell_scripts_stop_at_the_first_error(script):
    assert "\nset -euo pipefail\n" in script.read_text()


def test_sbatch_directives_stand_before_the_first_command():
    lines = SBATCH.read_text().splitlines()
    first = next(n for n, line in enumerate(lines) if line and not line.startswith("#"))
    directives = [n for n, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert directives
    assert max(directives) < first, "sbatch reads no directive after the first command"


@pytest.mark.parametrize("folder", sorted(path.name for path in (ROOT / "deploy").iterdir() if path.is_dir()))
def test_readme_names_only_files_that_exist(folder):
    text = (ROOT / "deploy" / folder / "README.md").read_text()
    named = re.findall(r"(?:deploy|examples)/[\w/.]+\.\w+", text)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_local_run_explains_itself():
    done = subprocess.run([sys.executable, LOCAL, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--workers" in done.stdout


@pytest.mark.slow
def test_local_run_runs_the_example(tmp_path):
    command = [sys.executable, LOCAL, "--workers", "2", "--M", "4000", "--N", "3000", "--output", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**ON_CPU, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(tmp_path.glob("*.npy"))


def test_local_run_hands_on_the_failure_of_its_script(tmp_path):
    script = tmp_path / "fails.py"
    script.write_text("import sys\nprint(*sys.argv[1:])\nsys.exit(7)\n")
    command = [sys.executable, LOCAL, "--workers", "1", script, "--M", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=ON_CPU)
    assert done.returncode == 7, done.stdout + done.stderr
    assert re.search(r"^--scheduler tcp://127\.0\.0\.1:\d+ --M 3$", done.stdout, re.M)


@pytest.fixture(scope="module")
def slurm():
    if missing():
        pytest.skip("no SLURM")
    with local_slurm() as env:
        yield {**env, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}


def submit(env, folder: Path, *arguments: object) -> str:
    """Submit the job from `folder`; return its number."""
    done = subprocess.run(
        ["sbatch", "--parsable", SBATCH, *map(str, arguments)], env=env, cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def log(folder: Path, job: str) -> str:
    path = folder / f"dred-{job}.log"
    return path.read_text() if path.exists() else ""


def state(env, job: str) -> str:
    shown = subprocess.run(["scontrol", "show", "job", job], env=env, capture_output=True, text=True, check=True)
    return re.search(r"JobState=(\w+)", shown.stdout)[1]


def wait_for(condition, describe) -> None:
    """Return once `condition()` holds; a minute or two is plenty for everything that is waited for here."""
    end = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < end, describe()
        time.sleep(0.2)


def processes(scheduler_file: Path) -> list[str]:
    """The processes, whosever they are, that name `scheduler_file` in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:  # it ended meanwhile
            continue
        if os.fsencode(scheduler_file) in words:
            found.append(path.parent.name)
    return found


@pytest.mark.slow
def test_sbatch_runs_on_two_nodes_and_leaves_nothing_behind(slurm, tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    job = submit({**slurm, "DRED_SCRATCH": str(scratch)}, tmp_path, ROOT / "tests" / "slurm" / "node_script.py")
    wait_for(lambda: state(slurm, job) not in RUNS, lambda: log(tmp_path, job))
    text = log(tmp_path, job)
    assert state(slurm, job) == "COMPLETED", text
    assert "nodes n1 n2\nthreads 2 2\nerror below 1e-12 True\n" in text, text
    file = tmp_path / f"scheduler-{job}.json"
    assert not file.exists()
    wait_for(lambda: not processes(file), lambda: f"still running: {processes(file)}")
    assert list(scratch.rglob("worker-*")) == [], text


@pytest.mark.slow
def test_sbatch_runs_the_example(slurm, tmp_path):
    job = submit(slurm, tmp_path, EXAMPLE, "--M", "4000", "--N", "3000", "--output", tmp_path / "out")
    wait_for(lambda: state(slurm, job) not in RUNS, lambda: log(tmp_path, job))
    assert state(slurm, job) == "COMPLETED", log(tmp_path, job)
    assert list((tmp_path / "out").glob("*.npy"))


@pytest.mark.slow
def test_a_failing_script_fails_the_job(slurm, tmp_path):
    script = tmp_path / "fails.py"
    script.write_text("raise SystemExit(3)\n")
    job = submit(slurm, tmp_path, script)
    wait_for(lambda: state(slurm, job) not in RUNS, lambda: log(tmp_path, job))
    assert state(slurm, job) == "FAILED", log(tmp_path, job)
    assert not (tmp_path / f"scheduler-{job}.json").exists()


@pytest.mark.slow
def test_a_cancelled_job_cleans_up(slurm, tmp_path):
    job = submit(slurm, tmp_path, ROOT / "tests" / "slurm" / "node_script.py", "--wait")
    wait_for(lambda: "error below" in log(tmp_path, job) or state(slurm, job) not in RUNS, lambda: log(tmp_path, job))
    assert state(slurm, job) == "RUNNING", log(tmp_path, job)
    file = tmp_path / f"scheduler-{job}.json"
    assert processes(file)
    subprocess.run(["scancel", "--batch", "--signal=TERM", job], env=slurm, check=True)
    wait_for(lambda: state(slurm, job) not in RUNS, lambda: log(tmp_path, job))
    wait_for(lambda: not processes(file), lambda: f"still running: {processes(file)}")
    assert not file.exists()
