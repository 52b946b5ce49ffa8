"""The cluster layer under other versions of dask than this environment's, each in an environment of its own."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
# What no test of the cluster layer imports, or only slow ones.
LEFT_OUT = {
    "aiobotocore",
    "bokeh",
    "dask-jobqueue",
    "dask-mpi",
    "mpi4py",
    "cupy-cuda13x",
    "matplotlib",
    "moto",
    "mypy",
    "nvidia-cuda-nvrtc",
    "pytest-xdist",
    "ruff",
    "s3fs",
    "scikit-learn",
}

PURE = (
    "test_plan.py",
    "test_sources.py",
    "test_csv.py",
    "test_hdf5.py",
    "test_sinks.py",
    "test_panels.py",
)  # they know nothing of dask

pytestmark = pytest.mark.slow


def oldest(requirement: str) -> str:
    """The requirement of dask or distributed, at the least version that it allows."""
    name, version = re.fullmatch(r"((?:dask|distributed)\b.*)>=([\d.]+)", requirement).groups()
    return f"{name}=={version}.*"


def is_dask(requirement: str) -> bool:
    return re.match(r"(dask|distributed)\b", requirement) is not None


def needed() -> list[str]:
    """Requirements of dred and of these tests, without dask."""
    tests = [r for r in EXTRAS["dev"] if re.match(r"[\w-]+", r)[0] not in LEFT_OUT]
    return [r for r in (*PROJECT["dependencies"], *tests) if not is_dask(r)]


VERSIONS = {
    "oldest": [oldest(r) for r in PROJECT["dependencies"] if is_dask(r)],
    "dask-cuda": EXTRAS["dask-cuda13"],  # which pins dask exactly
}


@pytest.fixture(scope="module", params=VERSIONS)
def version(request, tmp_path_factory):
    """The name of the versions, and the Python that has them."""
    folder = tmp_path_factory.mktemp(request.param)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*pip, *needed(), *VERSIONS[request.param]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    return request.param, python


def run(python: Path, *arguments: object) -> str:
    """What a Python of that environment prints, in this checkout."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "HYPOTHESIS_PROFILE": "brief"}
    if "DRED_ALLOWED_SKIPS" in env:
        env["DRED_ALLOWED_SKIPS"] += ";dask without array expressions"
    command = [str(python), *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=1500)
    assert done.returncode == 0, done.stdout[-10000:] + done.stderr[-5000:]
    return done.stdout


def test_the_cluster_layer(version, record_property):
    name, python = version
    dask = run(python, "-c", "import dask; print(dask.__version__)").strip()
    record_property("dask", dask)
    if name == "oldest":
        assert any(r.endswith(f"=={dask.rpartition('.')[0]}.*") for r in VERSIONS[name])
    tier = "not slow and not soak and not gpu"
    left_out = [f"--ignore={ROOT / 'tests' / 'cluster' / name}" for name in PURE]
    out = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", tier, *left_out, ROOT / "tests" / "cluster")
    passed = re.search(r"(\d+) passed", out)
    assert passed, out
    assert int(passed[1]) > 300


@pytest.mark.parametrize("version", ["dask-cuda"], indirect=True)
def test_workers_of_dask_cuda(version, tmp_path):
    """Two of them, as they are without a GPU: the bytes of the synchronous scheduler."""
    out = run(version[1], ROOT / "tests" / "chaos" / "cuda_workers.py", tmp_path / "gate")
    assert out.splitlines()[-2:] == ["devices 0,1 1,0", "right"]
