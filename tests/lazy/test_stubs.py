"""What editors and type checkers are told of the methods is what they are."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from dred import ComplexLazyTensor, LazyTensor
from dred.lazy import made, stubs

ROOT = Path(__file__).parents[2]
FILE = ROOT / "dred" / "lazy" / "methods.pyi"


def test_the_file_is_up_to_date():
    assert FILE.read_text() == stubs.text(), "make docs"


def test_a_stale_file_is_found(monkeypatch):
    monkeypatch.setattr(made, "WRITTEN", (*made.WRITTEN, "exp3() = Exp(self)"))
    assert "    def exp3(self) -> LazyTensor:\n" in stubs.text()
    assert FILE.read_text() != stubs.text()


@pytest.mark.parametrize(("cls", "of_complex"), [(LazyTensor, False), (ComplexLazyTensor, True)])
def test_methods_have_signatures_and_docstrings(cls, of_complex):
    for each in made.methods(of_complex):
        method = getattr(cls, each.name)
        assert method.__doc__
        names = [*inspect.signature(method).parameters]
        assert names == ["self", *(p.name for p in each.parameters)]


SCRIPT = """
from typing import Any

import numpy as np

import dred
from dred import ComplexLazyTensor, LazyTensor, Pm, Vi, Vj

a, b = np.ones((4, 3)), np.ones((5, 3))
x, y, p = Vi(a), Vj(b), Pm(2.0)
s, z = ComplexLazyTensor(1j * a, axis=0), 1j * x
reveal_type(x)
reveal_type(-(x - y) ** 2 / p + 1)
reveal_type((2 * x).exp().sqdist(b))
reveal_type(x.sum(-1))
reveal_type(x.sum(dim=2))
reveal_type(x.sum(axis=1))
reveal_type(x.max())
reveal_type(x[..., 0])
reveal_type(x.T)
reveal_type(x < y)
reveal_type(x == y)
reveal_type(x.mod(2).round(3))
reveal_type(2 ** x)
reveal_type(z)
reveal_type(x + 1j)
reveal_type(x + 1)
reveal_type(x * s)
reveal_type(s * x)
reveal_type(s.exp())
reveal_type(abs(s))
reveal_type(s.real)
reveal_type(s[0])
reveal_type(s.sum())
reveal_type(x.exp1j())
reveal_type(x.grad(x, y))
reveal_type(x.norm(-1))
reveal_type(LazyTensor.concatenate((x, y)))
reveal_type(x.argKmin(3, axis=1))
reveal_type(x.D)
x.sqdist()  # wrong
x.argKmin(axis=1)  # wrong
s.log()  # wrong
x.one_hot("3")  # wrong
"""
TYPES = [
    "LazyTensor", "LazyTensor", "LazyTensor", "LazyTensor", "LazyTensor", "Any", "LazyTensor", "LazyTensor",
    "LazyTensor", "LazyTensor", "LazyTensor", "LazyTensor", "LazyTensor", "ComplexLazyTensor", "ComplexLazyTensor",
    "LazyTensor", "ComplexLazyTensor", "ComplexLazyTensor", "ComplexLazyTensor", "LazyTensor", "LazyTensor",
    "ComplexLazyTensor", "ComplexLazyTensor", "ComplexLazyTensor", "LazyTensor", "LazyTensor", "LazyTensor", "Any",
    "int",
]  # fmt: skip


@pytest.mark.slow
def test_types_of_a_script(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), str(script)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    lines = [line.split(":", 3) for line in done.stdout.splitlines() if line.startswith(str(script))]
    found = [text.split('"')[1].rpartition(".")[2] for *_, text in lines if "Revealed type" in text]
    assert found == TYPES, done.stdout + done.stderr
    wrong = {int(number) for _, number, kind, _ in lines if kind.strip() == "error"}
    expected = {n for n, line in enumerate(SCRIPT.splitlines(), 1) if line.endswith("# wrong")}
    assert wrong == expected, done.stdout
