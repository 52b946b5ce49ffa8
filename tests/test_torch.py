"""dred.torch: without PyTorch here, and with it in an environment of its own."""

import importlib
import os
import re
import subprocess
import sys

import pytest

from tests.test_versions import EXTRAS, PROJECT, ROOT, run

CPU_ONLY = "https://download.pytorch.org/whl/cpu"  # a tenth of what PyPI has, which is for GPUs


def requirements(library: str) -> list[str]:
    """What dred, its cases for a library and the library itself need."""
    tests = [r for r in EXTRAS["dev"] if re.match(r"[\w-]+", r)[0] in ("hypothesis", "ml_dtypes", "pytest")]
    return [*PROJECT["dependencies"], *tests, *EXTRAS[library]]


def environment(folder, library: str):
    """The Python of a new environment that has a library."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
    if library == "torch":
        # where that place cannot be reached, PyPI's is taken; other places that pip knows are left out here
        quick = ["--retries", "0", "--timeout", "20", "--no-deps", "--index-url", CPU_ONLY]
        alone = {**os.environ, "PIP_CONFIG_FILE": os.devnull, "PIP_EXTRA_INDEX_URL": ""}
        subprocess.run([*pip, *quick, *EXTRAS["torch"]], capture_output=True, check=False, env=alone)
    done = subprocess.run([*pip, *requirements(library)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    return python


def checked(python, library: str, least: int) -> None:
    """Run the cases of a library, and the examples of its module."""
    files = (ROOT / "tests" / f"{library}_cases.py", ROOT / "dred" / f"{library}.py")
    out = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--doctest-modules", *files)
    passed = re.search(r"(\d+) passed", out)
    assert passed, out
    assert "skipped" not in out
    assert int(passed[1]) >= least


def test_what_to_do_without_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "dred.torch", raising=False)
    with pytest.raises(ImportError) as caught:
        importlib.import_module("dred.torch")
    assert (str(caught.value), caught.value.name) == ("dred.torch needs PyTorch: pip install torch", "torch")


@pytest.mark.slow
def test_with_pytorch(tmp_path, record_property):
    python = environment(tmp_path / "torch", "torch")
    record_property("torch", run(python, "-c", "import torch; print(torch.__version__)").strip())
    checked(python, "torch", 130)
