"""dred.jax: without JAX here, and with it in an environment of its own."""

import importlib
import sys

import pytest

from tests.test_torch import checked, environment
from tests.test_versions import run


def test_what_to_do_without_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", None)
    monkeypatch.delitem(sys.modules, "dred.jax", raising=False)
    with pytest.raises(ImportError) as caught:
        importlib.import_module("dred.jax")
    assert (str(caught.value), caught.value.name) == ("dred.jax needs JAX: pip install jax", "jax")


@pytest.mark.slow
def test_with_jax(tmp_path, record_property):
    python = environment(tmp_path / "jax", "jax")
    record_property("jax", run(python, "-c", "import jax; print(jax.__version__)").strip())
    checked(python, "jax", 40)
