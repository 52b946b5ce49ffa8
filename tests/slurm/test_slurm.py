"""The scripts of deploy/slurm/ on a SLURM of a few nodes: what they compute, also where jobs are ended in mid-run."""

import itertools
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.deploy import small
from tests.deploy.environments import DASK_CUDA, NO_DRIVER, install, python_path
from tests.jobs import kills
from tests.slurm.local_slurm import local_slurm, missing

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SLURM = ROOT / "deploy" / "slurm"
SBATCH = SLURM / "job.sbatch"
EXAMPLE = ROOT / "examples" / "million_points.py"
HERE = ROOT / "tests" / "slurm"
NODES = HERE / "node_script.py"

RUNS = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING")


@pytest.fixture(scope="module")
def slurm():
    if missing():
        pytest.skip("no SLURM")
    with local_slurm() as env:
        env |= {
            "PYTHON": sys.executable,
            "PYTHONPATH": python_path(),
            "DASK_DISTRIBUTED__LOGGING__DISTRIBUTED": "warning",
        }
        env.pop("CUDA_VISIBLE_DEVICES", None)
        yield env


def submit(env, folder: Path, *arguments: object) -> str:
    """Submit the job from `folder`, with the options for sbatch that stand first; return its number."""
    words = list(map(str, arguments))
    options = list(itertools.takewhile(lambda word: word.startswith("--"), words))
    rest = words[len(options) :]
    done = subprocess.run(
        ["sbatch", "--parsable", *options, SBATCH, *rest], env=env, cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def log(folder: Path, job: str) -> str:
    path = folder / f"dred-{job}.log"
    return path.read_text() if path.exists() else ""


def state(env, job: str) -> str:
    shown = subprocess.run(["scontrol", "show", "job", job], env=env, capture_output=True, text=True, check=True)
    return re.search(r"JobState=(\w+)", shown.stdout)[1]


def queue(env) -> str:
    return subprocess.run(["squeue", "--noheader"], env=env, capture_output=True, text=True, check=True).stdout


def run(env, folder: Path, *command: object) -> str:
    """What a command that succeeds prints."""
    done = subprocess.run(list(map(str, command)), env=env, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def ended(env, folder: Path, job: str, how: str) -> None:
    """Wait until the job has ended, and ended so."""
    wait_for(lambda: state(env, job) not in RUNS, lambda: log(folder, job))
    assert state(env, job) == how, log(folder, job)


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


def test_sbatch_runs_on_two_nodes_and_leaves_nothing_behind(slurm, tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    job = submit({**slurm, "DRED_SCRATCH": str(scratch)}, tmp_path, NODES)
    ended(slurm, tmp_path, job, "COMPLETED")
    text = log(tmp_path, job)
    assert "nodes n1 n2\nthreads 2 2\ndevices None None\nerror below 1e-12 True\n" in text, text
    file = tmp_path / f"scheduler-{job}.json"
    assert not file.exists()
    wait_for(lambda: not processes(file), lambda: f"still running: {processes(file)}")
    assert list(scratch.rglob("worker-*")) == [], text


def test_sbatch_runs_the_example(slurm, tmp_path):
    """Also where a run that was killed has left its scheduler's file: a job that is run again keeps its number."""
    job = submit(slurm, tmp_path, "--hold", EXAMPLE, "--M", "4000", "--N", "3000", "--output", tmp_path / "out")
    (tmp_path / f"scheduler-{job}.json").write_text('{"address": "tcp://127.0.0.1:9"}')
    subprocess.run(["scontrol", "release", job], env=slurm, check=True)
    ended(slurm, tmp_path, job, "COMPLETED")
    assert list((tmp_path / "out").glob("*.npy"))


def test_a_failing_script_fails_the_job(slurm, tmp_path):
    script = tmp_path / "fails.py"
    script.write_text("raise SystemExit(3)\n")
    job = submit(slurm, tmp_path, script)
    ended(slurm, tmp_path, job, "FAILED")
    assert not (tmp_path / f"scheduler-{job}.json").exists()


def test_a_cancelled_job_cleans_up(slurm, tmp_path):
    job = submit(slurm, tmp_path, NODES, "--wait")
    wait_for(lambda: "error below" in log(tmp_path, job) or state(slurm, job) not in RUNS, lambda: log(tmp_path, job))
    assert state(slurm, job) == "RUNNING", log(tmp_path, job)
    file = tmp_path / f"scheduler-{job}.json"
    assert processes(file)
    subprocess.run(["scancel", "--batch", "--signal=TERM", job], env=slurm, check=True)
    wait_for(lambda: state(slurm, job) not in RUNS, lambda: log(tmp_path, job))
    wait_for(lambda: not processes(file), lambda: f"still running: {processes(file)}")
    assert not file.exists()


def test_a_job_that_is_told_to_end_is_run_again_and_goes_on(slurm, tmp_path):
    kills.prepare(tmp_path)
    job = submit(slurm, tmp_path, "job.toml", "output.path=told.npy")
    wait_for(
        lambda: kills.finished(tmp_path, "told.npy") >= 5 or state(slurm, job) not in RUNS, lambda: log(tmp_path, job)
    )
    subprocess.run(["scancel", "--batch", "--signal=TERM", job], env=slurm, check=True)
    ended(slurm, tmp_path, job, "COMPLETED")
    said = log(tmp_path, job)
    assert said.count("waiting for 2 workers") == 2, said
    assert "dred: ended by SIGTERM" in said
    kept = int(re.search(r"going on in .*: (\d+) files of finished blocks", said)[1])
    assert 5 <= kept < kills.BLOCKS
    kills.run(tmp_path, "quiet.npy")
    assert (tmp_path / "told.npy").read_bytes() == (tmp_path / "quiet.npy").read_bytes()


def test_a_job_that_is_cancelled_stays_so(slurm, tmp_path):
    """Also where its program says that it could go on."""
    script = tmp_path / "ends.py"
    script.write_text(
        "import pathlib, sys, time\n"
        "print('waiting for a file', flush=True)\n"
        f"while not pathlib.Path({str(tmp_path / 'gate')!r}).exists():\n"
        "    time.sleep(0.02)\n"
        "sys.exit(75)\n"
    )
    job = submit(slurm, tmp_path, script)
    wait_for(lambda: "waiting for a file" in log(tmp_path, job), lambda: log(tmp_path, job))
    # SLURM tells the batch script last: until then it could still act.
    subprocess.run(["scancel", job], env=slurm, check=True)
    (tmp_path / "gate").touch()
    ended(slurm, tmp_path, job, "CANCELLED")
    assert log(tmp_path, job).count("waiting for 2 workers") == 1


CLUSTER = (SLURM / "cluster.py", "--jobs", "2", "--cpus", "2", "--memory", "2GB")
# Tasks of a step; without a share of the memory for each, none would be left for the next step.
RUNNER = ("srun", "--nodes=2", "--ntasks=4", "--mem-per-cpu=900", "--kill-on-bad-exit=0")


def test_jobs_of_workers_on_two_nodes(slurm, tmp_path):
    out = run(slurm, tmp_path, sys.executable, *CLUSTER, "--logs", "logs", NODES, "--workers", "2")
    assert out.endswith("nodes n1 n2\nthreads 2 2\ndevices None None\nerror below 1e-12 True\n"), out
    assert len(list((tmp_path / "logs").glob("dred-worker-*.out"))) == 2
    wait_for(lambda: not queue(slurm), lambda: queue(slurm))


def test_a_job_of_workers_is_cancelled(slurm, tmp_path):
    """In mid-run, with states that nobody else holds: the same bytes, and another job in its place."""
    four = (SLURM / "cluster.py", "--jobs", "4", "--cpus", "1", "--memory", "1GB")  # the gate takes up two of them
    command = (sys.executable, *four, HERE / "cancelled.py", tmp_path / "gate")
    soon = {**slurm, "DASK_DISTRIBUTED__DEPLOY__LOST_WORKER_TIMEOUT": "1s"}
    assert run(soon, tmp_path, *command).endswith("right\n")
    wait_for(lambda: not queue(slurm), lambda: queue(slurm))


def test_tasks_of_one_srun_on_two_nodes(slurm, tmp_path):
    command = (*RUNNER, "--distribution=cyclic", sys.executable, SLURM / "runner.py", NODES)
    out = run(slurm, tmp_path, *command)
    assert out == "nodes n1 n2\nthreads 1 1\ndevices None None\nerror below 1e-12 True\n", out
    assert list(tmp_path.glob("scheduler-*.json")) == []


STARTS = {"cluster.py": (sys.executable, *CLUSTER), "runner.py": (*RUNNER, sys.executable, SLURM / "runner.py")}


@pytest.mark.parametrize("script", STARTS)
def test_a_job_file(script, slurm, tmp_path):
    small.prepare(tmp_path)
    run(slurm, tmp_path, *STARTS[script], "job.toml", "output.path=other.npy")
    small.check(tmp_path / "other.npy")


@pytest.mark.parametrize("script", STARTS)
def test_the_exit_status_is_that_of_the_program(script, slurm, tmp_path):
    fails = tmp_path / "fails.py"
    fails.write_text("raise SystemExit(75)\n")
    done = subprocess.run(
        list(map(str, (*STARTS[script], fails))), env=slurm, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 75, done.stdout + done.stderr


def test_a_job_asks_for_what_its_options_say(slurm, tmp_path):
    options = ("--cpus", "16", "--gpus", "4", "--memory", "64GB", "--walltime", "02:00:00", "--partition", "gpu",
               "--account", "us", "--interface", "lo", "--scratch", "/tmp", "--sbatch=--qos=low",
               "--show")  # fmt: skip
    out = run(slurm, tmp_path, sys.executable, SLURM / "cluster.py", *options)
    directives = [line.removeprefix("#SBATCH ") for line in out.splitlines() if line.startswith("#SBATCH")]
    assert directives == ["-J dred-worker", "-p gpu", "-A us", "-n 1", "--cpus-per-task=16", "--mem=60G",
                          "-t 02:00:00", "--gres=gpu:4", "--qos=low"]  # fmt: skip
    assert "\nexport DRED_NUM_THREADS=4\n" in out
    (worker,) = [line for line in out.splitlines() if line.startswith(sys.executable)]
    assert re.search(r" -m dask_cuda\.cli tcp://\S+ .*--nthreads 1 --memory-limit 14\.90GiB .*--interface lo$", worker)


# -- GPUs --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_dask_cuda(slurm, tmp_path_factory):
    """The environment in which dask-cuda can be imported, and asks no driver."""
    folder = install(tmp_path_factory.mktemp("dask-cuda"), *DASK_CUDA, dependencies=False)
    return {**slurm, **NO_DRIVER, "PYTHONPATH": python_path(folder)}


def test_a_worker_for_each_gpu_of_a_job(with_dask_cuda, tmp_path):
    """dask-cuda's workers see all GPUs of the node, each its own one first."""
    job = submit(with_dask_cuda, tmp_path, "--partition=gpu", "--gpus-per-node=2", NODES)
    ended(with_dask_cuda, tmp_path, job, "COMPLETED")
    assert "waiting for 4 workers on g[1-2]\n" in log(tmp_path, job)
    assert "nodes g1 g1 g2 g2\n" in log(tmp_path, job)
    assert "devices 0,1 0,1 1,0 1,0\nerror below 1e-12 True\n" in log(tmp_path, job)


def test_a_worker_for_each_gpu_of_jobs_of_workers(with_dask_cuda, tmp_path):
    out = run(
        with_dask_cuda, tmp_path, sys.executable, *CLUSTER, "--partition", "gpu", "--gpus", "2", NODES, "--workers", "4"
    )
    assert out.endswith("nodes g1 g1 g2 g2\nthreads 1 1 1 1\ndevices 0,1 0,1 1,0 1,0\nerror below 1e-12 True\n"), out


def test_a_gpu_for_each_task(slurm, tmp_path):
    """As SLURM hands them out: no dask-cuda."""
    step = ("srun", "--partition=gpu", "--ntasks=4", "--gpus-per-task=1", "--mem-per-cpu=900")
    command = (*step, sys.executable, SLURM / "runner.py", NODES)
    assert "\ndevices 0 1\nerror below 1e-12 True\n" in run(slurm, tmp_path, *command)
