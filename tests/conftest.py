"""Tiers of tests, hypothesis profiles, and the account of what was skipped.

`DRED_ALLOWED_SKIPS` holds reasons, separated by semicolons; where it is set, even to nothing, a skip for any other
reason fails the run. Unset, every skip is allowed.
"""

import ctypes
import datetime
import functools
import json
import os
import platform
import shutil
import tempfile
from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest
from hypothesis import settings

from dred.kernel import engine

NO_GPU = "no GPU"
PACKAGES = ("dred", "numpy", "dask", "distributed", "llvmlite")

# Tests count and never time anything, so no example has a deadline; `ci` tries the same examples in every run, `brief`
# few of them: where the same tests run a second time.
settings.register_profile("dev", deadline=None, print_blob=True, max_examples=50)
settings.register_profile("ci", deadline=None, print_blob=True, max_examples=50, derandomize=True, database=None)
settings.register_profile("brief", deadline=None, print_blob=True, derandomize=True, database=None, max_examples=8)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))


TINY = engine.TINY


@pytest.fixture(scope="session", autouse=True)
def compiled():
    """No problem is tiny: tests of small arrays are tests of the compiled kernels, unless they take `tiny`."""
    engine.TINY = 0.0
    yield
    engine.TINY = TINY


@pytest.fixture
def tiny(monkeypatch):
    """Tiny problems go to the interpreter, as they do for users."""
    monkeypatch.setattr(engine, "TINY", TINY)


@functools.cache
def gpu_count() -> int:
    """CUDA devices of this machine, asked of the driver, so that no GPU library need be installed."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    return count.value if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0


def pytest_configure(config):
    """Kernels are kept in a folder of this run alone: shared by its processes, and never the user's own."""
    if not hasattr(config, "workerinput"):
        # the processes of a run share the cores: threads that wait must not turn round and round
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        config.kernels = os.environ["DRED_CACHE_DIR"] = tempfile.mkdtemp(prefix="dred-kernels-")
        os.environ["DRED_SHIM_DIR"] = f"{config.kernels}-shim"  # likewise, of `tests.shim.shim`


def pytest_unconfigure(config):
    if hasattr(config, "kernels"):
        for folder in (config.kernels, f"{config.kernels}-shim"):
            shutil.rmtree(folder, ignore_errors=True)


def pytest_addoption(parser):
    parser.addoption("--record", metavar="DIR", help="write date, counts and versions of this run to DIR as JSON")


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("gpu") and not gpu_count():
            item.add_marker(pytest.mark.skip(reason=NO_GPU))


def skip_reasons(reporter) -> Counter:
    """How many tests were skipped for each reason."""
    texts = (report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
             for report in reporter.stats.get("skipped", ()))  # fmt: skip
    return Counter(text.removeprefix("Skipped: ") for text in texts)


def refused_skips(reporter) -> list[str]:
    """The reasons that `DRED_ALLOWED_SKIPS` does not list, in order."""
    allowed = os.environ.get("DRED_ALLOWED_SKIPS")
    if allowed is None:
        return []
    listed = {reason.strip() for reason in allowed.split(";")}
    return sorted(reason for reason in skip_reasons(reporter) if reason not in listed)


def pytest_terminal_summary(terminalreporter):
    for reason, count in sorted(skip_reasons(terminalreporter).items()):
        terminalreporter.write_line(f"{count} skipped: {reason}")
    for reason in refused_skips(terminalreporter):
        terminalreporter.write_line(f"FAILED: skip not in DRED_ALLOWED_SKIPS: {reason}", red=True)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session, exitstatus):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:
        return
    if exitstatus == pytest.ExitCode.OK and refused_skips(reporter):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    folder = session.config.getoption("--record")
    if folder and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        record(Path(folder), reporter, int(session.exitstatus))


def record(folder: Path, reporter, exitstatus: int) -> None:
    """Write the outcome of this run to `folder`, one file per run, named by its time."""
    now = datetime.datetime.now(datetime.UTC)
    result = {
        "date": now.isoformat(timespec="seconds"),
        "exit_status": exitstatus,
        "counts": {outcome: len(reporter.stats[outcome]) for outcome in ("passed", "failed", "error", "skipped")
                   if outcome in reporter.stats},
        "passed": {report.nodeid: dict(report.user_properties) for report in reporter.stats.get("passed", ())},
        "versions": {name: import_module(name).__version__ for name in PACKAGES},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{now:%Y-%m-%dT%H%M%SZ}.json").write_text(json.dumps(result, indent=2) + "\n")
