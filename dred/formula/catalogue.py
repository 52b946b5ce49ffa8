"""The documentation of the language as Markdown, made from its tables: `python -m dred.formula.catalogue`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from types import ModuleType
from typing import Any

from dred.formula.construct import usage
from dred.formula.derive import DERIVED, MAX_NODES
from dred.formula.language import REDUCTION
from dred.formula.node import const, var
from dred.formula.op import MAX_DIM, Dims, Op
from dred.formula.ops import MODULES, OPS
from dred.formula.rewrite import power
from dred.formula.syntax import BINARY, MAX_DIGITS, MAX_NAME, MAX_TOKENS, POWER, UNARY_PRECEDENCE
from dred.formula.table.arithmetic import MAX_EXPONENT
from dred.formula.table.curves import MAX_CELLS, MAX_DEGREE
from dred.formula.table.functions import MAX_DECIMALS
from dred.formula.table.tensors import MAX_AXES
from dred.reductions import REDUCTIONS, Reduction

LONGEST = 120  # characters of a formula in a cell; longer ones stand below the table
BAR = r"\|"

INTRODUCTION = """\
# The language of formulas

This page is printed from the tables of dred by `make docs`. To change it, change the tables
([how to add an operation](extending.md)).

A formula F maps the vectors of its variables, at every pair (i, j) of rows, to a vector. A reduction combines F over
one of the two indices. Components are numbered from 0. All arrays of a call are float32 or all are float64: this is
the compute type.

```python
>>> import numpy as np
>>> from dred import Genred
>>> x = np.array([[0.0, 0.0], [1.0, 1.0], [3.0, 1.0]])
>>> others = Genred("IfElse(Abs(IndexI() - IndexJ()) - 1, SqDist(x, y), 0)", ["x = Vi(2)", "y = Vj(2)"], axis=1)
>>> others(x, x)[:, 0].tolist()                     # without the pairs of a row and itself
[12.0, 6.0, 14.0]

```

## Variables

Every input of a routine is declared once, in the order of the call:

| declaration | array | at the pair (i, j) |
|---|---|---|
| `"x = Vi(dim)"` | (M, dim) | row i |
| `"y = Vj(dim)"` | (N, dim) | row j |
| `"p = Pm(dim)"` | (dim,) | all of it |

The name may be left out. `Vi(ind, dim)`, `Vj(ind, dim)`, `Pm(ind, dim)` and `Var(ind, dim, cat)` also give the position
`ind` in the call, from 0 on; the category `cat` is 0 for Vi, 1 for Vj, 2 for Pm. These four may be written inside a
formula, too. All positions together must be 0, 1, 2, ..., and two mentions of one position must agree. A declared
variable that the formula does not read must still be passed. A name hides an operation of the same name where no
parenthesis follows it.

## Constants

`2`, `0.5`, `.5`, `1e-3` are formulas of dimension 1, wherever a formula is expected. They are exact, and arithmetic
between constants is exact: `1/3` is rounded once, to the compute type, and `0.1 + 0.2 - 0.3` is 0. Division by the
constant 0 is an error. `Zero(n)` is a vector of n zeros.

## Operators

"""

OPERATORS = """
Operators of one line associate to the left. Of comparisons there is at most one per level, and a power of a power needs
parentheses. So `-x**2` is `-(x**2)`, `x*y|z` is `(x*y)|z`, and `x+y|z` is `(x+y)|z`. The sign `+` in front of a formula
does nothing. There are no other operators and no subscripts: see `And`, `Or`, `Not`, `Mod`, `Elem`.

A formula may begin with names for its parts: `let r = x - y; Exp(-(r|r)) * r`. A part that occurs several times is
computed once, with or without a name.

## Operations

In the tables below

* **dimensions** are those of the arguments and of the result. *element-wise*: all arguments have the same dimension,
  or dimension 1; those of dimension 1 are repeated, and the cotangent that they receive is summed. A letter stands for
  any dimension, the name of an integer for its value; `n p` is a product. Arguments that are integers or lists of
  integers are named behind; all others are formulas.
* **derivative**: with respect to each argument, in the names of the arguments and `y`, the result. Where `e` occurs,
  the cotangent of the result, it is the cotangent of the argument. Operations that are *short for* a formula have the
  derivatives of that formula.
* **special points**: arguments → result, by component.
* **method**: the name of the operation on lazy tensors.

Integers are written as constants, lists of them as `[2, 3]`; what is followed by a question mark may be left out.
Arguments may be named: `Elem(x, m=1)`.
"""

ROW_NUMBERS = """
## Row numbers

`IndexI()` and `IndexJ()` are the numbers of the rows i and j, from 0 on, in the whole arrays, however these are cut
into blocks. While they are compared, added and subtracted among themselves and with whole constants they are 64-bit
integers, so exact; elsewhere, in products and in `Mod` for example, they are converted to the compute type, which in
float32 holds whole numbers up to 2^24; `IndexIParts()` and `IndexJParts()` are exact there, too. Their derivative is 0.
Where no variable of i (or j) is declared, there is one row of i (or j).

All pairs but those of a point with itself are `ZeroMult(IndexI() != IndexJ(), F)`: 0 there even where F is infinite,
which `(IndexI() != IndexJ()) * F` is not. `Abs(IndexI() - IndexJ()) < 5` is 1 on a band.

```python
>>> potential = Genred("ZeroMult(IndexI() != IndexJ(), Inv(Norm2(x - y)))", ["x = Vi(1)", "y = Vj(1)"], axis=1)
>>> points = np.array([[0.0], [1.0], [3.0]])
>>> potential(points, points)[:, 0].round(3).tolist()
[1.333, 1.5, 0.833]

```
"""

MASKS = """
## Masks

`IfElse(f, g, h)` selects, and so does its derivative: what was not selected receives the cotangent 0. Multiplied
further down with an infinite or undefined derivative, 0 would become NaN. It does not: behind a mask, a cotangent of 0
stays 0. In the formulas of derivatives that is written with `ZeroMult`, the product that is 0 where its first argument
is 0, and with `ZeroTensorDot`:

```python
>>> gradient = Genred("Grad(IfElse(f, Sqrt(f), 0), f, 1)", ["f = Vi(1)"], axis=1)
>>> gradient(np.array([[-1.0], [0.25], [4.0]]))[:, 0].tolist()     # Sqrt has no derivative at -1
[0.0, 1.0, 0.25]

```

`ZeroMult` may be used in formulas, too: `ZeroMult(f < 1, g)` is g where f < 1, and 0 elsewhere, even where g is
infinite or NaN. `IfElse(c - 1, g, h)` is g where the comparison c holds, else h.

"""

REDUCED = """
## Reductions

`Genred(formula, aliases, name, axis)` with axis 1 reduces over j and keeps one row for each i; with axis 0 it reduces
over i and keeps one row for each j. `Reduction(text, aliases)` takes the reduction as text, where `cat` says which rows
are left: 0 for those of i, 1 for those of j. There, `Grad(R, v, e)` and `Diff(R, v, u)` of a reduction R are reductions
again. F is the formula, G a second one, K an integer; what is followed by a question mark may be left out. Each
component of F is reduced by itself.

"""

DERIVATIVES_OF_REDUCTIONS = """
Extrema and row numbers pass over NaN, and of equal terms the first one counts. A term of -inf counts for nothing in a
maximum and in a sum of exponentials, one of inf in a minimum.

`Grad(R, v, e)` is the gradient of the sum of `e * R` with respect to the variable v, `Diff(R, v, u)` the derivative of
R in the direction u of v: sums, of any order. The cotangent e is like the result, its components one after another: K D
for K terms of dimension D, m and then the sums for `Max_SumShiftExp`; for a pair it belongs to the first array.
`Grad(R, v)` takes e as a new variable, after all others. With respect to a parameter there is one row per i, to be
added up. `Grad_WithSavedForward(R, v, e, saved)` and `Diff_WithSavedForward(R, v, u, saved)` also take the variable
that holds the result of R; it is not read, since derivatives are computed from the state of R, which is more exact.

```python
>>> from dred import Reduction
>>> points, grid, e = np.array([[0.0], [1.0]]), np.array([[0.0], [2.0], [3.0]]), np.array([[1.0], [1.0]])
>>> nearest = Reduction("Grad(Min_Reduction(SqDist(x, y), 0), y, e)", ["x = Vi(1)", "y = Vj(1)", "e = Vi(1)"])
>>> nearest(points, grid, e)[:, 0].tolist()                    # the second point is as near to 2
[-2.0, 0.0, 0.0]

```

What a term receives is masked: nothing, if it was not chosen, is NaN or counts for nothing, so that rows without a term
have the gradient 0. Derivatives of `Prod` are right up to the second order with any number of zeros, and of any order
with at most two; beyond, three zeros or more in a row are taken to give 0. Row numbers have the derivative 0.
"""

LONG = """
Long vectors are loops at every pair, short ones are written out. Where a matrix is multiplied with a vector that is
itself made of such products, both of more than 32 components, the inner vector is computed again for each component of
the outer one: leave it to a call of its own where it varies with i or with j alone.
"""

KEOPS = """
## Coming from KeOps

Names, arguments and conventions are those of KeOps 2.3. What differs:

* Constants are exact, may have decimals, and stand wherever a formula does. `==` and `!=` are operators; `a < b < c` is
  an error. Powers have any formula as exponent.
* A scalar is repeated by every element-wise operation, and its cotangent is summed.
* `IfElse` and `Clamp` mask cotangents. `Clamp` tests its lower bound first. `SinXDivX` has the derivative 0 at 0.
* `Pow`, `Powf`, `BSpline` and constants have the full precision of the compute type.
* Positions outside a vector are errors in `Elem` and `ElemT`; `OneHot` of such a position is 0 everywhere.
* Complex cotangents are added to those of real branches as real vectors, whatever their dimensions.
* `Diff`, `Divergence`, `Laplacian`, `AdjointOperator`, `TraceOperator` and `SumLinOperator` take every operation;
  `BSpline` and `SoftDTW_SqDist` have derivatives of any order, with respect to every argument.
* Errors are raised before anything is computed, with the place in the text.
"""


# -- Markdown ----------------------------------------------------------------------------------------------------------


def code(text: str) -> str:
    """Text as code."""
    return f"`{text}`"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; bars in its cells are escaped, as GitHub wants it in code, too."""
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(cell.replace('|', BAR) for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def decimal(value: float) -> str:
    """A number as short as it can be: 0, -0, 0.5, inf, NaN."""
    return "NaN" if value != value else f"{value:g}"


def integers(value: Any) -> str:
    """An attribute as it is written."""
    return str(list(value)) if isinstance(value, tuple) else str(value)


# -- one operation -----------------------------------------------------------------------------------------------------


def _powers() -> dict[str, list[str]]:
    """For each operation, the powers that mean it."""
    x, y = var(0, 1, 0), var(1, 1, 1)
    exponents = {"2": const(2), "m": const(3), "0.5": const(Fraction(1, 2)), "-0.5": const(Fraction(-1, 2)), "g": y}
    found: dict[str, list[str]] = {}
    for text, exponent in exponents.items():
        found.setdefault(power(x, exponent).op, []).append(f"f ** {text}")
    return found


def operators() -> dict[str, list[str]]:
    """For each operation, how it is written with operators."""
    found = _powers()
    for symbol, (_, name, exchanged) in BINARY.items():
        if symbol != POWER:
            found.setdefault(name, []).append(f"g {symbol} f" if exchanged else f"f {symbol} g")
    found["Minus"] = ["-f"]
    return found


def example(op: Op) -> tuple[Dims, tuple[Any, ...]]:
    """Dimensions and attributes of the entry's example."""
    return op.example or ((3,) * len(op.args), ())


def given(op: Op) -> str:
    """The example in words."""
    dims, attrs = example(op)
    words = [f"dim({word}) = {dim}" for word, dim in zip(op.args, dims, strict=True)]
    words += [f"{word} = {integers(value)}" for word, value in zip(op.attrs, attrs, strict=True)]
    return ", ".join(words)


def macro(op: Op) -> str:
    """The formula that an operation is short for; of its example, where it depends on the sizes."""
    return op.macro(*example(op)) if callable(op.macro) else op.macro


def is_long(op: Op) -> bool:
    """Whether this formula stands below the table."""
    return len(macro(op)) > LONGEST


def derivative(op: Op) -> str:
    """The cell on derivatives."""
    if op.macro:
        return _expansion(op)
    texts = op.partial or (op.vjp(*example(op)) if callable(op.vjp) else op.vjp)
    if not any(texts):
        return "0"
    cells = [code(text) if text else "0" for text in texts]
    if len(cells) > 1:
        cells = [f"{word}: {cell}" for word, cell in zip(op.args, cells, strict=True)]
    return "; ".join(cells) + (f" where {given(op)}" if callable(op.vjp) else "")


def _expansion(op: Op) -> str:
    if is_long(op):
        return "short for the formula below"
    return f"short for {code(macro(op))}" + (f" where {given(op)}" if callable(op.macro) else "")


def special(op: Op) -> str:
    """The cell on special points."""
    points = []
    for arguments, result in op.special:
        words = ", ".join(map(decimal, arguments))
        points.append(f"{words if len(arguments) == 1 else f'({words})'} → {decimal(result)}")
    attrs = example(op)[1]
    named = ", ".join(f"{word} = {integers(value)}" for word, value in zip(op.attrs, attrs, strict=True))
    return "; ".join(points) + (f" ({named})" if points and named else "")


def dimensions(op: Op) -> str:
    """The cell on dimensions."""
    words = op.dims.replace("->", "→").replace("^2", "²").strip()
    for one, kind in (("integer", set(op.attrs) - op.lists), ("list", op.lists)):
        names = [word for word in op.attrs if word in kind]
        words += f"; {one}{'s' * (len(names) > 1)} {', '.join(names)}" if names else ""
    return words


def signature(op: Op) -> str:
    """The call as it is written, and with operators."""
    return ", ".join(map(code, [usage(op), *operators().get(op.name, [])]))


# -- sections ----------------------------------------------------------------------------------------------------------


def precedence() -> str:
    """Operators, those that bind most strongly first."""
    levels: dict[int, list[str]] = {UNARY_PRECEDENCE: ["`-` (sign)"]}
    for symbol, (level, _, _) in BINARY.items():
        levels.setdefault(level, []).append(code(symbol))
    meaning = {"`**`": "power", "`*`": "product, quotient", "`+`": "sum, difference", "`|`": "scalar product",
               "`<`": "comparison: 1 where it holds, else 0"}  # fmt: skip
    rows = [(" ".join(symbols), meaning.get(symbols[0], "sign")) for _, symbols in sorted(levels.items(), reverse=True)]
    return "Those that bind most strongly first:\n\n" + table(["operators", "meaning"], rows)


def group(module: ModuleType) -> str:
    """The operations of one module of the table."""
    head, _, more = str(module.__doc__).strip().removesuffix(".").partition(": ")
    ops = [OPS[entry.name] for entry in module.ENTRIES]
    rows = [(signature(op), dimensions(op), op.doc, derivative(op), special(op), code(op.method)) for op in ops]
    columns = ["operation", "dimensions", "definition", "derivative", "special points", "method"]
    parts = [f"\n### {head}\n", f"{more[:1].upper()}{more[1:]}.\n" if more else "", table(columns, rows)]
    for op in filter(is_long, ops):
        lines = macro(op).replace("; ", ";\n")
        where = f"Where {given(op)}: " if callable(op.macro) else ""
        parts.append(f"{where}{code(usage(op))} is short for\n\n```\n{lines}\n```\n")
    return "\n".join(part for part in parts if part)


def derivatives() -> str:
    """The operations on formulas."""
    head = (
        "\n## Derivatives\n\nOperations on formulas: F is any formula, `v` a variable, by its name. The derivatives may"
        " be nested. Arguments\nfollowed by a question mark may be left out. `Grad(F, v)` without its third argument"
        " takes a new variable as cotangent,\nbehind the last one, of the other category than v.\n\n"
    )
    rows = [(code(entry.signature), entry.doc) for entry in DERIVED.values()]
    return head + table(["operation", "value"], rows)


def masks() -> str:
    """What masks are, and which operations are."""
    return MASKS + f"The masks: {', '.join(code(op.name) for op in OPS.values() if op.mask)}.\n"


def reductions() -> str:
    """The reductions."""
    rows = [(code(r.name), _as_text(r), r.doc, _opt_arg(r), _derived(r)) for r in REDUCTIONS.values()]
    columns = ["name", "as text", "result", "`opt_arg`", "derivative"]
    return REDUCED + table(columns, rows) + DERIVATIVES_OF_REDUCTIONS


def _as_text(r: Reduction) -> str:
    return code(f"{r.name}{REDUCTION}({r.signature})") if r.signature else ""


def _opt_arg(r: Reduction) -> str:
    return {"": "", "ddof": "K, called ddof"}.get(r.parameter, r.parameter)


def _derived(r: Reduction) -> str:
    """Whether a reduction has derivatives."""
    texts = r.pullbacks.get("")
    return "none" if texts is None else "yes" if any(texts) else "0"


def limits() -> str:
    """The limits."""
    rows = [
        ("dimension of a vector", MAX_DIM),
        ("operations, variables and constants of a formula, derivatives written out", MAX_NODES),
        ("tokens of a formula's text", MAX_TOKENS),
        ("characters of a name", MAX_NAME),
        ("digits of a constant", MAX_DIGITS),
        ("integer exponents, up to their sign", MAX_EXPONENT),
        ("decimals of `Round`, up to their sign", MAX_DECIMALS),
        ("axes of a tensor", MAX_AXES),
        ("degree of a spline", MAX_DEGREE),
        ("cells of a time warping, the product of the lengths of its series", MAX_CELLS),
    ]
    head = "\n## Limits\n\nBeyond these a formula is refused with a `LimitError`.\n\n"
    return head + table(["of what", "at most"], [(what, f"{value:,}") for what, value in rows]) + LONG


def markdown() -> str:
    """The page.

    Examples
    --------
    >>> page = markdown()
    >>> "### Complex numbers" in page, "`Exp(f)`" in page
    (True, True)
    """
    groups = [group(module) for module in MODULES]
    sections = [INTRODUCTION, precedence(), OPERATORS, *groups, derivatives(), ROW_NUMBERS, masks(), reductions()]
    return "\n".join("".join([*sections, limits(), KEOPS]).splitlines()) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
