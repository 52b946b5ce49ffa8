"""Packages that one file of tests needs, in a folder of their own."""

import os
import subprocess
import sys
from pathlib import Path

# dask-cuda as it is, but for what asks the driver; it pins dask, and runs with other versions.
DASK_CUDA = ("dask-cuda", "cuda-bindings", "cuda-core", "cuda-pathfinder", "nvidia-ml-py")
NO_DRIVER = {"DASK_CUDA_TEST_DISABLE_DEVICE_SPECIFIC": "1", "DASK_CUDA_TEST_SINGLE_GPU": "1"}


def pip(*arguments: object, python: object = sys.executable) -> str:
    """What pip prints where it succeeds."""
    command = [python, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def install(folder: Path, *requirements: str, dependencies: bool = True) -> Path:
    """Install requirements into `folder`, which is then fit for PYTHONPATH."""
    pip("install", "--quiet", *([] if dependencies else ["--no-deps"]), "--target", folder, *requirements)
    return folder


def python_path(*folders: Path) -> str:
    """PYTHONPATH of a process that finds what this one does, then what is in the folders."""
    here = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.pathsep.join([*here, *map(str, folders)])
