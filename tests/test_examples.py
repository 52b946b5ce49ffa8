"""The examples run as a user runs them, and leave what they promise."""

import functools
import re
import runpy
import subprocess
import sys
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dred.routine import Routine

ROOT = Path(__file__).resolve().parent.parent
PNG = b"\x89PNG"

# Those that share `where.py`: a small size, and what they then print.
SMALL = {
    "density.py": ("--size 1000", "1,000 points: bandwidth 0.0343, leave-one-out log-likelihood of a point 0.9023"),
    "gaussian_process.py": ("--size 300", "300 samples, 37 systems: "),
    "gaussian_mixture.py": ("--size 2000", "2,000 points: log-likelihood -9034.99 -> -7243.7"),
    "kmeans.py": ("--size 3000 --clusters 5", "3,000 points, 5 centres: inertia"),
    "mmd.py": ("--size 1000", "normal and uniform: p = 0.005 of all kernels"),
    "n_body.py": ("--size 500 --steps 40", "500 bodies, 40 steps: energy -0.293311, changed by"),
    "neighbours.py": ("--size 2000", "500 x 2,000 pairs, 4 reductions"),
    "multiscale.py": ("--size 2000", "2,000 x 2,000 points in"),
    "registration.py": ("--size 1000", "4 pairs of 250 points: median error"),
    "ridge_regression.py": ("--size 200", "200 patients, 40 of them new: 0.4857 of their variance is predicted"),
    "sinkhorn.py": ("--size 200 --steps 1", "step 1: divergence"),
}


def run(script, *arguments):
    command = [sys.executable, "-W", "error", str(ROOT / "examples" / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_sum_reduction(tmp_path):
    out = run("sum_reduction.py", "--output", tmp_path)
    rows = [line for line in out.splitlines() if "relative error" in line]
    assert len(rows) == 2 * 2 * 2  # sizes, types, sum and gradient
    for name in ("sum_reduction.png", "sum_reduction_gradient.png"):
        assert (tmp_path / name).read_bytes().startswith(PNG)


def run_here(script, *arguments):
    """Runs an example in this process, which has loaded already what it needs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "examples")
        patch.setattr(sys, "argv", [script, *map(str, arguments)])
        runpy.run_path(str(ROOT / "examples" / script), run_name="__main__")


@pytest.mark.parametrize("script", SMALL)
def test_small(script, tmp_path, capsys):
    size, printed = SMALL[script]
    run_here(script, *size.split(), "--plot", tmp_path / "figure.png")
    out = capsys.readouterr().out
    assert printed in out
    assert "not compared" not in out
    assert (tmp_path / "figure.png").read_bytes().startswith(PNG)


def test_all_are_run_and_listed():
    there = {path.name for path in (ROOT / "examples").glob("*.py")} - {"where.py"}
    assert there == {*SMALL, "sum_reduction.py", "million_points.py"}
    assert set(re.findall(r"^\| `(\w+\.py)` \|", (ROOT / "README.md").read_text(), re.MULTILINE)) == there


@pytest.mark.slow
@pytest.mark.parametrize("script", SMALL)
def test_what_is_a_little_wrong_is_noticed(script, monkeypatch):
    right = Routine.__call__

    @functools.wraps(right)
    def wrong(*args, **options):
        found = right(*args, **options)
        several = found if isinstance(found, tuple) else (found,)
        made = tuple(each * 1.0001 if each.dtype.kind == "f" else each for each in several)
        return made if isinstance(found, tuple) else made[0]

    monkeypatch.setattr(Routine, "__call__", wrong)
    with pytest.raises((AssertionError, RuntimeError)):  # iterations that end nowhere are noticed, too
        run_here(script, *SMALL[script][0].split())


@pytest.fixture(scope="module")
def scheduler():
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster:
        yield cluster.scheduler_address


@pytest.mark.slow
@pytest.mark.parametrize("script", SMALL)
def test_on_a_running_cluster(script, scheduler):
    size, printed = SMALL[script]
    out = run(script, *size.split(), "--scheduler", scheduler)
    assert scheduler in out
    assert printed in out


@pytest.mark.slow
def test_neighbours_on_a_cluster_of_its_own(tmp_path):
    out = run("neighbours.py", "--size", 3000, "--cluster", "local", "--workers", 2, "--output", tmp_path)
    assert out.count("byte for byte") == 2
    with np.load(tmp_path / "neighbours.npz") as found:
        assert found["neighbours"].shape == (750, 9)
        assert found["neighbours"].dtype == np.int64


def test_million_points_on_a_local_cluster(tmp_path):
    sizes = ("--M", 3000, "--N", 2000, "--check", 20)
    out = run("million_points.py", "--cluster", "local", "--workers", 2, *sizes, "--output", tmp_path)
    assert "tree of depth" in out
    assert out.count("pairs/s") == 2
    assert [float(moved) >= 0 for moved in re.findall(r"([-.\d]+) MB moved between workers", out)] == [True, True]
    assert np.load(tmp_path / "sum.npy").shape == (3000, 3)
    assert np.load(tmp_path / "gradient.npy").shape == (2000, 3)
    assert (tmp_path / "million_points.png").read_bytes().startswith(PNG)


@pytest.mark.slow
def test_million_points_on_a_running_cluster(tmp_path):
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster:
        sizes = ("--M", 500, "--N", 400, "--check", 20, "--dtype", "float64")
        by_address = ("--scheduler", cluster.scheduler_address, "--output", tmp_path / "address")
        run("million_points.py", *by_address, *sizes)
        file = tmp_path / "scheduler.json"
        file.write_text(f'{{"address": "{cluster.scheduler_address}"}}')
        run("million_points.py", "--scheduler-file", file, "--output", tmp_path / "file", *sizes)
    first, second = (np.load(tmp_path / name / "sum.npy") for name in ("address", "file"))
    assert first.tobytes() == second.tobytes()


def test_bytes_received_since():
    """The workers' logs are of bounded length: what they held before may be gone."""
    received = runpy.run_path(str(ROOT / "examples" / "million_points.py"))["received"]
    logs = [(1.0, 100), (2.0, 10), (3.0, 5)], [], [(2.5, 1)]
    workers = [
        SimpleNamespace(transfer_incoming_log=deque(({"start": s, "total": n} for s, n in log), maxlen=3))
        for log in logs
    ]
    client = SimpleNamespace(run=lambda function: {k: function(dask_worker=w) for k, w in enumerate(workers)})
    assert [received(client, start) for start in (0.0, 2.0, 2.7, 9.0)] == [116, 16, 5, 0]


@pytest.mark.parametrize("script", ["sum_reduction.py", "million_points.py"])
def test_help(script):
    assert "usage" in run(script, "--help")


@pytest.mark.parametrize("script", SMALL)
def test_help_of_those_that_run_anywhere(script, capsys):
    with pytest.raises(SystemExit) as ended:
        run_here(script, "--help")
    assert ended.value.code == 0
    assert "--cluster local|cuda|ADDRESS" in capsys.readouterr().out
