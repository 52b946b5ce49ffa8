"""Entries that are not well-formed are refused with the entry's name, the text and what is wrong with it."""

import re

import numpy as np
import pytest

from dred.errors import EntryError
from dred.formula.language import read
from dred.formula.op import Op
from dred.formula.ops import OPS
from dred.formula.oracle import dense
from dred.kernel.lower import lower
from dred.kernel.spec import KernelSpec
from tests.formula import checks

WHERE = "its derivative is in one of partial, vjp and macro; None where nothing flows"
FORM = "its signature is written 'Name(f, g; m, sizes[], order[]?)'"
EITHER = "it has either a meaning or a formula that it is short for (macro)"

BAD = [  # fields beside signature, doc and reference -> message
    (
        "Foo f",
        {"meaning": "f", "partial": ("1",)},
        "Foo f: its signature is written 'Name(f, g; m, sizes[], order[]?)'",
    ),
    ("Foo(f)", {}, f"Foo: {EITHER}"),
    ("Foo(f)", {"meaning": "f", "macro": "f"}, f"Foo: {EITHER}"),
    ("Foo(f)", {"meaning": "f"}, f"Foo: {WHERE}"),
    ("Foo(f)", {"meaning": "f", "partial": ("1",), "vjp": ("e",)}, f"Foo: {WHERE}"),
    ("Foo(f)", {"meaning": "f", "partial": "1"}, "Foo: partial is a tuple, one text or None for each argument"),
    ("Foo(f)", {"meaning": "f", "partial": ("1", "1")}, "Foo: partial has 2 texts for 1 arguments"),
    ("Foo(f, g)", {"meaning": "f", "vjp": ("e",)}, "Foo: vjp has 1 texts for 2 arguments"),
    (
        "Foo(f)",
        {"meaning": "f", "partial": ("1",), "kinds": "cc->c"},
        "Foo: kinds='cc->c': a letter, r or c, for each argument and the result",
    ),
]


@pytest.mark.parametrize(("signature", "fields", "message"), BAD, ids=[str(k) for k in range(len(BAD))])
def test_an_entry_that_is_not_well_formed(signature, fields, message):
    with pytest.raises(EntryError, match=re.escape(f"the entry {message}")):
        Op(signature, "nothing", np.copy, **fields)


@pytest.fixture
def table(monkeypatch):
    def add(**fields):
        op = Op("Foo(f)", "nothing", np.copy, **fields)
        monkeypatch.setitem(OPS, "Foo", op)
        return op

    return add


@pytest.mark.parametrize(
    ("meaning", "message"),
    [
        ("expp(f)", "'expp' is no primitive of kernels, in 'expp(f)'"),
        ("Exp(f)", "'Exp' is no primitive of kernels, in 'Exp(f)'"),
        ("f ** 2", "'**' is no primitive of kernels, in 'f ** 2'"),
        ("f | f", "'Scalprod' is no primitive of kernels, in 'f | f'"),
        ("exp(g)", "'g' is none of f, in 'exp(g)'"),
        ("exp(f, f)", "'exp' takes 1 arguments, got 2, in 'exp(f, f)'"),
    ],
)
def test_meanings(table, meaning, message):
    table(meaning=meaning, partial=("1",))
    with pytest.raises(EntryError) as caught:
        lower(KernelSpec.of(read("Foo(x)", ["x = Vi(3)"]), "Sum", 1, "float64", "float64"), 8)
    assert str(caught.value) == f"the entry Foo: {message}"


@pytest.mark.parametrize(
    ("partial", "message"),
    [
        ("Expp(f)", "'Expp' is no operation, in 'Expp(f)'"),
        ("Exp(g)", "'g' is none of f, y, in 'Exp(g)'"),
    ],
)
def test_derivatives(table, partial, message):
    table(meaning="f", partial=(partial,))
    with pytest.raises(EntryError) as caught:
        read("Grad(Foo(x), x, 1)", ["x = Vi(1)"])
    assert str(caught.value) == f"the entry Foo: {message}"


@pytest.mark.parametrize(
    ("macro", "message"),
    [
        ("Expp(f)", "'Expp' is no operation, in 'Expp(f)'"),
        ("Exp(g)", "'g' is none of f, in 'Exp(g)'"),
        ("2 * Foo(f)", "it is short for itself, in '2 * Foo(f)'"),
    ],
)
def test_formulas_that_an_entry_is_short_for(table, macro, message):
    table(macro=macro)
    with pytest.raises(EntryError) as caught:
        read("Foo(x)", ["x = Vi(3)"])
    assert str(caught.value) == f"the entry Foo: {message}"


def test_a_comparison_as_a_meaning_is_1_or_0(table, monkeypatch):
    op = table(meaning="f < 1", partial=(None,))
    monkeypatch.setitem(OPS, "Foo", Op("Foo(f)", op.doc, lambda f: (f < 1) * 1.0, "f < 1", (None,)))
    node = read("Foo(x) * y", ["x = Vi(3)", "y = Vj(3)"])
    rng = np.random.default_rng(0)
    arrays = [rng.uniform(0, 2, (checks.M, 3)), rng.uniform(0, 2, (checks.N, 3))]
    for backend in ("cpu", "numpy"):
        got = checks.reduced(node, arrays, backend=backend)
        np.testing.assert_allclose(got, dense(node, arrays).sum(1), rtol=1e-14)
