"""The pages under docs/ follow the tables, and what they say of dimensions is true."""

import dataclasses
import difflib
import itertools
import re
from pathlib import Path

import pytest

from dred.errors import DimensionError, FormulaError
from dred.formula import catalogue
from dred.formula.construct import usage
from dred.formula.derive import DERIVED
from dred.formula.node import var
from dred.formula.op import MAX_DIM, elementwise
from dred.formula.ops import MODULES, OPS
from dred.formula.rewrite import expand
from dred.formula.syntax import BINARY
from dred.reductions import REDUCTIONS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "operations.md"


def stale(text):
    """How a page differs from what the tables give, line by line."""
    wanted = catalogue.markdown().splitlines(keepends=True)
    return "".join(difflib.unified_diff(text.splitlines(keepends=True), wanted, "the page", "the tables", n=0))


def rows(text):
    """The rows of all tables, as lists of cells; bars that are escaped end no cell."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


# -- the page ----------------------------------------------------------------------------------------------------------


def test_the_page_is_up_to_date():
    assert stale(PAGE.read_text()) == "", "make docs"


def test_a_stale_page_is_found(monkeypatch):
    text = PAGE.read_text()
    assert stale(text + "More.\n")
    assert stale(text.replace("exponential", "Exponential"))
    assert stale(text.removesuffix("\n"))
    monkeypatch.setitem(OPS, "Exp", dataclasses.replace(OPS["Exp"], partial=("2 * y",)))
    assert "+| `Exp(f)`" in stale(text)


def test_a_new_entry_makes_the_page_stale(monkeypatch):
    new = dataclasses.replace(OPS["Exp"], signature="Exp3(f)")
    monkeypatch.setattr(MODULES[0], "ENTRIES", (*MODULES[0].ENTRIES, new))
    monkeypatch.setitem(OPS, "Exp3", new)
    assert "+| `Exp3(f)`" in stale(PAGE.read_text())


@pytest.mark.parametrize("name", OPS)
def test_operation_is_on_the_page(name):
    op = OPS[name]
    (row,) = [row for row in rows(PAGE.read_text()) if row[0].startswith(f"`{usage(op)}`")]
    _, dimensions, definition, derivative, special, method = row
    assert dimensions
    assert definition == op.doc.replace("|", r"\|")
    assert method == f"`{op.method}`"
    assert bool(special) == bool(op.special)
    assert derivative
    for text in (*op.partial, *(() if callable(op.vjp) else op.vjp)):
        assert text is None or f"`{text}`" in derivative
    assert bool(op.macro) == derivative.startswith("short for")


@pytest.mark.parametrize("name", DERIVED)
def test_derived_operation_is_on_the_page(name):
    assert [f"`{DERIVED[name].signature}`", DERIVED[name].doc.replace("|", r"\|")] in rows(PAGE.read_text())


def test_operators_reductions_and_limits_are_on_the_page():
    text = PAGE.read_text()
    written = {word for row in rows(text) for word in re.findall(r"`(.*?)`", row[0])}
    for symbol in BINARY:
        assert symbol.replace("|", r"\|") in written
    for name, entry in REDUCTIONS.items():
        written = f"`{name}_Reduction({entry.signature})`" if entry.signature else ""
        (derivative,) = [row[-1] for row in rows(text) if row[:3] == [f"`{name}`", written, entry.doc]]
        assert derivative == ("none" if "" not in entry.pullbacks else "yes" if any(entry.pullbacks[""]) else "0")
    assert f"{MAX_DIM:,}" in text


def test_tables_are_well_formed():
    """As many cells in each row as in the head of its table, and code that is closed."""
    for text in (PAGE.read_text(), (ROOT / "docs" / "extending.md").read_text()):
        for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
            assert len({len(row) for row in rows(block)}) == 1
            assert block.splitlines()[1].replace("---", "").strip("|") == ""
        assert all(line.count("`") % 2 == 0 for line in text.splitlines() if line.startswith("|"))
        assert text.count("```") % 2 == 0


def test_links_lead_somewhere():
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
            assert link.startswith("https://") or (page.parent / link).exists(), f"{page.name}: {link}"


# -- dimensions in words -----------------------------------------------------------------------------------------------


def in_words(op):
    """Whether the rule is said in words, not in letters: of tensors, whose dimensions follow from lists."""
    return set(re.findall(r"[a-z]{2,}", op.dims)) - {"or"} - set(op.attrs) != set()


def value(text, known):
    """A sum of products such as "2 n", "d^2" or "n - k - 1"; None where a letter is unknown."""
    total = 0
    for sign, product in re.findall(r"([+-]?)\s*([^+-]+)", text):
        size = -1 if sign == "-" else 1
        for factor in product.split():
            base, _, power = factor.partition("^")
            size *= (int(base) if base.isdigit() else known.get(base, 0)) ** int(power or 1)
        total += size
    return total


def result(rule, dims, attrs):
    """The dimension of the result by a rule in words; None where the rule takes no such arguments."""
    for whole in rule.split(";"):
        left, _, right = whole.partition("->")
        parts = [part.split(" or ") for part in left.split(",")] if left.strip() else []
        assert len(parts) == len(dims)
        letters = sorted(set(re.findall(r"\b[a-z]\b", left)) - attrs.keys())
        for sizes in itertools.product(range(1, max(dims, default=1) + 1), repeat=len(letters)):
            known = attrs | dict(zip(letters, sizes, strict=True))
            chosen = [
                [word for word in part if value(word, known) == dim] for part, dim in zip(parts, dims, strict=True)
            ]
            # each argument has one of its dimensions, and each letter is that of some argument
            if all(chosen) and set(letters) <= set(re.findall(r"\b[a-z]\b", str(chosen))):
                size = value(right, known)
                return size if size >= 1 else None
    return None


def actual(op, dims, attrs):
    """The dimension of the result by the entry itself; None where it does not take such arguments."""
    try:
        if op.dim is not None:
            return op.dim(dims, attrs)
        if op.macro:
            return expand(op.name, [var(k, dim, 0) for k, dim in enumerate(dims)], attrs).dim
        return elementwise(dims)
    except DimensionError:
        return None


def test_rules_of_dimension_are_said():
    silent = [name for name, op in OPS.items() if (op.dims == "element-wise") != (op.dim is None and not op.macro)]
    assert silent == []
    assert all(op.lists for op in OPS.values() if op.dims != "element-wise" and in_words(op))


@pytest.mark.parametrize("name", [name for name, op in OPS.items() if op.dims != "element-wise" and not in_words(op)])
def test_rules_of_dimension_are_true(name):
    check_dims(OPS[name])


def check_dims(op):
    """What the entry says of dimensions, for its example and for all small arguments."""
    example, attrs = catalogue.example(op)
    numbers = {word: n for word, n in zip(op.attrs, attrs, strict=True) if word not in op.lists}
    assert result(op.dims, example, numbers) == actual(op, example, attrs) is not None
    for dims in itertools.product(range(1, 8), repeat=len(op.args)) if not op.lists else ():
        try:
            wanted = actual(op, dims, attrs)
        except FormulaError:  # an integer does not fit: that is said elsewhere
            continue
        assert result(op.dims, dims, numbers) == wanted, dims


@pytest.mark.parametrize(
    ("name", "dims"),
    [
        ("Sum", "d -> d"),
        ("SumT", "d -> n"),
        ("Concat", "p, p -> 2 p"),
        ("SqDist", "d, d -> 1"),
        ("MatVecMult", "p n, n -> n"),
        ("BSpline", "n, 1 -> n - k"),
        ("Kron", "p, q -> p + q"),
        ("ComplexMult", "2 n, 2 n -> 2 n"),
        ("WeightedSqNorm", "1 or d, d -> 1"),
    ],
)
def test_a_wrong_rule_is_found(name, dims):
    with pytest.raises(AssertionError):
        check_dims(dataclasses.replace(OPS[name], dims=dims))
