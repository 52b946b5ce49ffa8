"""The scripts in deploy/ are well formed; those for one machine are run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy import small
from tests.deploy.environments import python_path

ROOT = Path(__file__).parents[1]
SBATCH = ROOT / "deploy" / "slurm" / "job.sbatch"
LOCAL = ROOT / "deploy" / "local" / "run.py"
ON_CPU = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
SHELL_SCRIPTS = [SBATCH, ROOT / "deploy" / "ssh" / "certificates.sh", ROOT / ".ci" / "run"]


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


@pytest.mark.slow
def test_local_run_runs_a_job_file(tmp_path):
    small.prepare(tmp_path)
    command = [sys.executable, LOCAL, "--workers", "1", "job.toml", "output.path=other.npy"]
    env = {**ON_CPU, "PYTHONPATH": python_path()}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    small.check(tmp_path / "other.npy")


def test_local_run_tells_its_script_to_end(tmp_path):
    script = tmp_path / "ends.py"
    script.write_text(
        "import signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        "print('waiting for a signal', flush=True)\n"
        "while True:\n"
        "    signal.pause()\n"
    )
    command = [sys.executable, LOCAL, "--workers", "1", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ON_CPU) as running:
        assert "waiting for a signal\n" in iter(running.stdout.readline, "")
        running.terminate()
        assert running.wait(60) == 75


def test_local_run_hands_on_the_failure_of_its_script(tmp_path):
    script = tmp_path / "fails.py"
    script.write_text("import sys\nprint(*sys.argv[1:])\nsys.exit(7)\n")
    command = [sys.executable, LOCAL, "--workers", "1", script, "--M", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=ON_CPU)
    assert done.returncode == 7, done.stdout + done.stderr
    assert re.search(r"^--scheduler tcp://127\.0\.0\.1:\d+ --M 3$", done.stdout, re.M)
