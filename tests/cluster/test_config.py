"""The section `dred` of dask's configuration."""

import os
import subprocess
import sys

import dask.config
import pytest

from dred.cluster import config
from dred.errors import OptionError


def test_defaults():
    settings = config.settings()
    assert (settings.arity, settings.shortest_fold, settings.longest_fold) == (8, 0.5, 30.0)
    assert (settings.parallelism, settings.y_budget) == (64, 1 << 30)
    assert set(settings.operations_per_second) == {"cpu", "cuda", "numpy"}
    assert config.graph_bytes() == 100_000_000
    assert config.stream_cache() == 512 << 20
    assert config.spool_directory() is None
    assert config.backend() == "auto"


def test_set_by_the_caller():
    changes = {"dred.plan.arity": 2, "dred.plan.longest-fold": "1 minute", "dred.plan.y-budget": "2 MiB"}
    with dask.config.set(changes):
        settings = config.settings()
    assert (settings.arity, settings.longest_fold, settings.y_budget) == (2, 60.0, 2 << 20)


def test_set_by_the_environment_and_not_overwritten_by_the_defaults():
    code = "from dred.cluster import config; print(config.settings().arity, config.backend())"
    environment = {**os.environ, "DASK_DRED__PLAN__ARITY": "3", "DASK_DRED__BACKEND": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["3", "cpu"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("graph-bytes", "many"),
        ("plan.arity", "eight"),
        ("plan.shortest-fold", "1 lightyear"),
        ("plan.y-budget", None),
        ("plan.operations-per-second", 7),
        ("plan.operations-per-second", {"cpu": "fast"}),
    ],
)
def test_what_cannot_be_read_is_refused(key, value):
    with dask.config.set({f"dred.{key}": value}), pytest.raises(OptionError) as caught:
        config.graph_bytes() if key == "graph-bytes" else config.settings()
    assert str(caught.value).startswith(f"dred.{key} is {value!r} in dask's configuration, which cannot be read: ")


@pytest.mark.parametrize(
    ("value", "want"), [(None, None), (0.5, 0.5), ("0.25", 0.25), ("20 GiB", 20 * 2**30), (3e9, 3e9)]
)
def test_the_memory_of_a_gpu(value, want):
    """Up to 1 a fraction, else bytes; by default nothing is said here."""
    assert config.cuda_memory() is None
    with dask.config.set({"dred.cuda.memory": value}):
        assert config.cuda_memory() == want


@pytest.mark.parametrize("value", ["much", 0, -1, "2 parsec", {}])
def test_a_memory_that_is_none(value):
    with dask.config.set({"dred.cuda.memory": value}), pytest.raises(OptionError) as caught:
        config.cuda_memory()
    why = "it must be positive" if value == 0 else "a fraction of the device, such as 0.5, or bytes, such as 2 GiB"
    assert str(caught.value) == f"dred.cuda.memory is {value!r} in dask's configuration, which cannot be read: {why}"


def test_a_setting_around_the_first_import_leaves_the_defaults():
    script = (
        "import dask\n"
        "with dask.config.set({'dred.backend': 'cpu'}):\n"
        "    from dred.cluster import config\n"
        "    assert config.backend() == 'cpu'\n"
        "assert config.backend() == 'auto'\n"
        "assert config.settings().arity == 8\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)


def test_keys_that_there_are_not():
    for key in ("dred.plan.arity", "dred.plan.x_budget", "dred.plan.operations-per-second.cpu", "array.chunk-size"):
        config.known(key)
    with pytest.raises(OptionError) as error:
        config.known("dred.plan.xbudget")
    assert str(error.value) == (
        "dred.plan.xbudget is no setting of dred in dask's configuration: did you mean dred.plan.x-budget?"
    )
    with pytest.raises(OptionError, match=r"dred\.zzz is no setting .*: there are dred\.backend, dred\.graph-bytes, "):
        config.known("dred.zzz")
