"""Formula text: precedence, every kind of bad formula with the whole text of its error, errors that travel."""

import ast
import contextlib
import inspect
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dred import errors
from dred.formula.language import formula
from dred.formula.node import const
from dred.formula.ops import OPS
from dred.formula.syntax import BINARY, MAX_TOKENS, parse, tokenize

ROOT = Path(__file__).parents[2]
ALIASES = ["x = Vi(3)", "y = Vj(3)", "p = Pm(1)"]


def node(text):
    return formula(text, ALIASES).node


# -- precedence --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("x + y * p", "Add(x, Mult(y, p))"),
        ("x - y - p", "(x - y) - p"),
        ("x / y / p", "(x / y) / p"),
        ("x / y * p", "(x / y) * p"),
        ("x - y + p", "(x - y) + p"),
        ("-x ** 2", "Minus(Square(x))"),
        ("(-x) ** 2", "Square(x)"),
        ("-x * y", "Mult(Minus(x), y)"),
        ("x * -y", "Mult(x, Minus(y))"),
        ("x * - - y", "x * y"),
        ("- - - x", "Minus(x)"),
        ("2 * x ** 3", "Mult(2, Pow(x, 3))"),
        ("x ** -2", "Pow(x, -2)"),
        ("x ** - 2", "Pow(x, -2)"),
        ("x ** (-2)", "Pow(x, -2)"),
        ("x ** 2 * y", "Mult(Square(x), y)"),
        ("x ** -1 * y", "Mult(Inv(x), y)"),
        ("x ** 0.5", "Sqrt(x)"),
        ("x ** -0.5", "Rsqrt(x)"),
        ("x ** (1/2)", "Sqrt(x)"),
        ("x ** -.5", "Rsqrt(x)"),
        ("x ** 0", "1 + Zero(3)"),
        ("x * y | p * x", "Scalprod(Mult(x, y), Mult(p, x))"),
        ("x + y | p + x", "Scalprod(Add(x, y), Add(p, x))"),
        ("x | y | p", "((x | y) | p)"),
        ("x < y + p", "LessThan(x, Add(y, p))"),
        ("x <= y", "LessOrEqual(x, y)"),
        ("x > y", "LessThan(y, x)"),
        ("x >= y", "LessOrEqual(y, x)"),
        ("x == y", "Equal(x, y)"),
        ("x != y", "NotEqual(x, y)"),
        ("(x | y) < p", "LessThan(Scalprod(x, y), p)"),
        ("x | y < p", "LessThan(Scalprod(x, y), p)"),
        ("x > -y", "LessThan(Minus(y), x)"),
        ("(x < y) < p", "LessThan(LessThan(x, y), p)"),
        ("(x < y) * (y < p)", "Mult(LessThan(x, y), LessThan(y, p))"),
        ("+x", "x"),
        ("x + + y", "x + y"),
        ("((((x))))", "x"),
        ("Exp ( x )", "Exp(x)"),
        ("Exp(\n\tx\r\n)", "Exp(x)"),
        ("1/2*x", "0.5 * x"),
        ("x*(1/2)", "Mult(x, RatCst(1, 2))"),
        ("3 - 2 - 1", "0"),
        ("2 ** 3 / 4", "2"),
        ("-2 ** 2", "-4"),
        ("10 / 4", "2.5"),
        ("1e1", "10"),
        ("1.", "1"),
        ("Elem(f=x, m=1)", "Elem(x, 1)"),
        ("Elem(m=1, f=x)", "Elem(x, 1)"),
        ("Elem(x, 3 - 2)", "Elem(x, 1)"),
        ("SumT(p, n=3)", "SumT(p, 3)"),
        ("let t = x + y; t * t", "Square(x + y)"),
        ("let t = x; let t = t + y; t", "x + y"),
        ("let x = y; x", "y"),
        ("Vi(0, 3) + Vj(1, 3) + Pm(2, 1)", "x + y + p"),
        ("Var(0, 3, 0)", "x"),
        ("SqDist(x, y)", "SqNorm2(x - y)"),
    ],
)
def test_texts_of_one_meaning(text, meaning):
    assert node(text) is node(meaning)


@pytest.mark.parametrize("name", ["lambda", "let", "class", "None", "Exp", "if", "_", "dim", "e", "Grad"])
def test_names_that_are_no_keywords(name):
    assert formula(f"Exp({name}) + {name}", [f"{name} = Vi(3)"]).node.dim == 3


def test_an_alias_hides_an_operation_that_is_not_called():
    assert formula("Exp(Exp)", ["Exp = Vi(3)"]).node is formula("Exp(x)", ["x = Vi(3)"]).node


def test_symbols_that_are_operators_all_parse():
    assert all(parse(f"1 {symbol} 2").steps for symbol in BINARY)


# -- bad formulas ------------------------------------------------------------------------------------------------------

# text, class, and the message: first line, excerpt with caret, hint
BAD = {
    "": ("FormulaSyntaxError", "expected a formula, got the end of the formula\n    \n    ^"),
    "x +": ("FormulaSyntaxError", "expected a formula, got the end of the formula\n    x +\n       ^"),
    "* x": ("FormulaSyntaxError", "expected a formula, got '*'\n    * x\n    ^"),
    "x y": ("FormulaSyntaxError", "expected an operator, got 'y'\n    x y\n      ^"),
    "2x": ("FormulaSyntaxError", "expected an operator, got 'x'\n    2x\n     ^"),
    "1.5.2": ("FormulaSyntaxError", "expected an operator, got '.2'\n    1.5.2\n       ^^"),
    "x if y else p": ("FormulaSyntaxError", "expected an operator, got 'if'\n    x if y else p\n      ^^"),
    "x @ y": ("FormulaSyntaxError", "unexpected character '@'\n    x @ y\n      ^"),
    "x % y": ("FormulaSyntaxError", "unexpected character '%'\n    x % y\n      ^"),
    "x // y": ("FormulaSyntaxError", "expected a formula, got '/'\n    x // y\n       ^"),
    "x ^ 2": ("FormulaSyntaxError", "unexpected character '^'\n    x ^ 2\n      ^"),
    "x.real": ("FormulaSyntaxError", "unexpected character '.'\n    x.real\n     ^"),
    "not x": ("FormulaSyntaxError", "expected an operator, got 'x'\n    not x\n        ^"),
    "lambda: 0": ("FormulaSyntaxError", "unexpected character ':'\n    lambda: 0\n          ^"),
    "é": ("FormulaSyntaxError", "unexpected character 'é'\n    é\n    ^"),
    "x²": ("FormulaSyntaxError", "unexpected character '²'\n    x²\n     ^"),
    "x\0": ("FormulaSyntaxError", "unexpected character '\\x00'\n    x\0\n     ^"),
    "__import__('os')": ("FormulaSyntaxError", "unexpected character \"'\"\n    __import__('os')\n               ^"),
    "__import__(os)": (
        "UnknownNameError",
        "unknown name 'os'\n    __import__(os)\n               ^^\nthe aliases are: x, y, p",
    ),
    "Exp(x": ("FormulaSyntaxError", "this parenthesis is never closed\n    Exp(x\n    ^^^"),
    "(x": ("FormulaSyntaxError", "this parenthesis is never closed\n    (x\n    ^"),
    "x)": ("FormulaSyntaxError", "this parenthesis was never opened\n    x)\n     ^"),
    "()": ("FormulaSyntaxError", "expected a formula, got ')'\n    ()\n     ^"),
    "x, y": ("FormulaSyntaxError", "unexpected ','\n    x, y\n     ^"),
    "(x, y)": ("FormulaSyntaxError", "unexpected ','\n    (x, y)\n      ^"),
    "Add(x,, y)": ("FormulaSyntaxError", "expected a formula, got ','\n    Add(x,, y)\n          ^"),
    "Exp(x,)": ("FormulaSyntaxError", "expected a formula, got ')'\n    Exp(x,)\n          ^"),
    "x[0]": (
        "FormulaSyntaxError",
        "subscripts are not part of the language\n    x[0]\n     ^\nElem(f, m) takes one component of f",
    ),
    "[1]": ("FormulaSyntaxError", "a list is accepted only as an argument of an operation\n    [1]\n    ^"),
    "Exp([1, x])": ("FormulaSyntaxError", "expected an integer\n    Exp([1, x])\n            ^"),
    "Exp([1 2])": ("FormulaSyntaxError", "expected ',' or ']'\n    Exp([1 2])\n           ^"),
    "Exp([1]**2)": (
        "FormulaSyntaxError",
        "a list is a whole argument, never a part of one\n    Exp([1]**2)\n           ^^",
    ),
    "Exp([1])": ("ArgumentError", "argument 'f' of Exp must be a formula, got a list\n    Exp([1])\n    ^^^"),
    "Elem(x, [1])": ("ArgumentError", "argument 'm' of Elem must be an integer constant\n    Elem(x, [1])\n    ^^^^"),
    "x = y": ("FormulaSyntaxError", "unexpected '='\n    x = y\n      ^\n'==' compares"),
    "x < y < p": (
        "FormulaSyntaxError",
        "comparisons cannot be chained\n    x < y < p\n          ^\ncombine two comparisons with '*'",
    ),
    "x == y != p": (
        "FormulaSyntaxError",
        "comparisons cannot be chained\n    x == y != p\n           ^^\ncombine two comparisons with '*'",
    ),
    "x < -y < p": (
        "FormulaSyntaxError",
        "comparisons cannot be chained\n    x < -y < p\n           ^\ncombine two comparisons with '*'",
    ),
    "x ** 2 ** 3": (
        "FormulaSyntaxError",
        "powers of powers are ambiguous\n    x ** 2 ** 3\n           ^^\nuse parentheses",
    ),
    "9**9**9": ("FormulaSyntaxError", "powers of powers are ambiguous\n    9**9**9\n        ^^\nuse parentheses"),
    "x ** -y": (
        "FormulaSyntaxError",
        "after '** -' only a number is accepted\n    x ** -y\n          ^\nwrite the exponent in parentheses",
    ),
    "x ** y": ("ArgumentError", "an exponent must be an integer, 0.5 or -0.5\n    x ** y\n      ^^"),
    "x;": ("FormulaSyntaxError", "unexpected ';'\n    x;\n     ^"),
    "let t = x": ("FormulaSyntaxError", "expected ';' and a formula after the binding\n    let t = x\n             ^"),
    "Exp(let t = x; t)": (
        "FormulaSyntaxError",
        "'let' begins a formula, never a part of one\n    Exp(let t = x; t)\n        ^^^",
    ),
    "Exq(x)": ("UnknownNameError", "unknown operation 'Exq'\n    Exq(x)\n    ^^^\ndid you mean 'Exp'?"),
    "sqdist(x, y)": (
        "UnknownNameError",
        "unknown operation 'sqdist'\n    sqdist(x, y)\n    ^^^^^^\ndid you mean 'SqDist'?",
    ),
    "Power(x, 2)": ("UnknownNameError", "unknown operation 'Power'\n    Power(x, 2)\n    ^^^^^\ndid you mean 'Pow'?"),
    "x + q": ("UnknownNameError", "unknown name 'q'\n    x + q\n        ^\nthe aliases are: x, y, p"),
    "x + Exp": ("UnknownNameError", "unknown name 'Exp'\n    x + Exp\n        ^^^\nthe operation is written Exp(...)"),
    "Exp()": ("ArgumentError", "Exp takes 1 argument, got 0\n    Exp()\n    ^^^\nit is Exp(f)"),
    "Add(x, y, p)": ("ArgumentError", "Add takes 2 arguments, got 3\n    Add(x, y, p)\n    ^^^\nit is Add(f, g)"),
    "Elem(x)": ("ArgumentError", "Elem takes 2 arguments, got 1\n    Elem(x)\n    ^^^^\nit is Elem(f, m)"),
    "Elem(x, q=1)": ("ArgumentError", "Elem has no argument 'q'\n    Elem(x, q=1)\n    ^^^^\nit is Elem(f, m)"),
    "Elem(x, 1, m=1)": (
        "ArgumentError",
        "Elem got its argument 'm' twice\n    Elem(x, 1, m=1)\n    ^^^^\nit is Elem(f, m)",
    ),
    "Add(f=x, f=y, g=p)": (
        "FormulaSyntaxError",
        "the argument 'f' is given twice\n    Add(f=x, f=y, g=p)\n             ^",
    ),
    "Sum(f=x, 2)": (
        "FormulaSyntaxError",
        "an argument without name follows one with a name\n    Sum(f=x, 2)\n             ^",
    ),
    "Elem(x, y)": ("ArgumentError", "argument 'm' of Elem must be an integer constant\n    Elem(x, y)\n    ^^^^"),
    "Elem(x, 1/2)": ("ArgumentError", "argument 'm' of Elem must be an integer constant\n    Elem(x, 1/2)\n    ^^^^"),
    "Elem(x, 3)": (
        "IndexRangeError",
        "component 3 is outside a vector of dimension 3: 0 ... 2\n    Elem(x, 3)\n    ^^^^",
    ),
    "Elem(x, -1)": (
        "IndexRangeError",
        "component -1 is outside a vector of dimension 3: 0 ... 2\n    Elem(x, -1)\n    ^^^^",
    ),
    "ElemT(p, 3, 3)": (
        "IndexRangeError",
        "component 3 is outside a vector of dimension 3: 0 ... 2\n    ElemT(p, 3, 3)\n    ^^^^^",
    ),
    "Extract(x, 1, 3)": (
        "IndexRangeError",
        "components 1 ... 3 are not inside a vector of dimension 3\n    Extract(x, 1, 3)\n    ^^^^^^^",
    ),
    "Extract(x, 0, 0)": ("LimitError", "dimension 0 is outside 1 ... 1000000\n    Extract(x, 0, 0)\n    ^^^^^^^"),
    "ExtractT(x, 1, 3)": (
        "IndexRangeError",
        "components 1 ... 3 are not inside a vector of dimension 3\n    ExtractT(x, 1, 3)\n    ^^^^^^^^",
    ),
    "x + Concat(x, y)": (
        "DimensionError",
        "dimensions (3, 6) do not broadcast: each must be 1 or 6\n    x + Concat(x, y)\n      ^",
    ),
    "(x | Concat(x, y))": (
        "DimensionError",
        "dimensions (3, 6) do not broadcast: each must be 1 or 6\n    (x | Concat(x, y))\n       ^",
    ),
    "SumT(x, 3)": ("DimensionError", "the argument must have dimension 1, got 3\n    SumT(x, 3)\n    ^^^^"),
    "x / 0": ("ArgumentError", "division by the constant 0\n    x / 0\n      ^"),
    "Inv(0)": ("ArgumentError", "division by the constant 0\n    Inv(0)\n    ^^^"),
    "RatCst(1, 0)": ("ArgumentError", "division by the constant 0\n    RatCst(1, 0)\n    ^^^^^^"),
    "0 ** -1": ("ArgumentError", "division by the constant 0\n    0 ** -1\n      ^^"),
    "9**(9**9)": ("LimitError", "the exponent 387420489 is outside -1000000 ... 1000000\n    9**(9**9)\n     ^^"),
    "x ** 1000001": ("LimitError", "the exponent 1000001 is outside -1000000 ... 1000000\n    x ** 1000001\n      ^^"),
    "9 ** 999999": (
        "LimitError",
        "the constant would have about 954242 digits, the limit is 400\n    9 ** 999999\n      ^^",
    ),
    "Zero(10**12)": ("LimitError", "dimension 1000000000000 is outside 1 ... 1000000\n    Zero(10**12)\n    ^^^^"),
    "Zero(0)": ("LimitError", "dimension 0 is outside 1 ... 1000000\n    Zero(0)\n    ^^^^"),
    "1e401": ("LimitError", "a constant has more than 400 digits\n    1e401\n    ^^^^^"),
    "1e-999999999": ("LimitError", "a constant has more than 400 digits\n    1e-999999999\n    ^^^^^^^^^^^^"),
    "1e300 * 1e300": ("LimitError", "a constant has more than 400 digits\n    1e300 * 1e300\n          ^"),
    "Grad(Exp(x), x + y, x)": (
        "DerivativeError",
        "Grad differentiates with respect to a variable\n    Grad(Exp(x), x + y, x)\n    ^^^^\n"
        "its second argument is an alias",
    ),
    "Grad(x, x, p)": (
        "DimensionError",
        "the cotangent has dimension 1, the formula 3: they must be equal\n    Grad(x, x, p)\n    ^^^^",
    ),
    "Grad(x, p)": (
        "DerivativeError",
        "the gradient with respect to a parameter needs its third argument, the cotangent\n    Grad(x, p)\n    ^^^^",
    ),
    "Grad(x)": ("ArgumentError", "Grad takes 2 or 3 arguments, got 1\n    Grad(x)\n    ^^^^\nit is Grad(f, v, e)"),
    "Grad(x, v=x)": ("ArgumentError", "Grad takes no named arguments\n    Grad(x, v=x)\n    ^^^^"),
    "Vi(3)": ("AliasError", "Vi got 1 arguments\n    Vi(3)\n    ^^\nit is Vi(ind, dim)"),
    "Var(0, 3)": ("AliasError", "Var got 2 arguments\n    Var(0, 3)\n    ^^^\nit is Var(ind, dim, cat)"),
    "Var(x, 3, 0)": ("ArgumentError", "the arguments of Var must be integers\n    Var(x, 3, 0)\n    ^^^"),
    "Var(3, 1, 3)": (
        "AliasError",
        "position 3, dimension 1, category 3 declare no variable\n    Var(3, 1, 3)\n    ^^^\n"
        "positions start at 0, dimensions are 1 ... 1000000, categories 0, 1 and 2",
    ),
    "x +\n  Exq(y)\n + p": (
        "UnknownNameError",
        "unknown operation 'Exq'\n      Exq(y)\n      ^^^\ndid you mean 'Exp'?",
    ),
}


@pytest.mark.parametrize("text", BAD)
def test_a_bad_formula_is_refused_with_its_place(text):
    name, message = BAD[text]
    with pytest.raises(errors.FormulaError) as caught:
        node(text)
    assert type(caught.value) is getattr(errors, name)
    assert str(caught.value) == message
    assert caught.value.text == text


@pytest.mark.parametrize("text", BAD)
def test_errors_travel(text):
    with pytest.raises(errors.FormulaError) as caught:
        node(text)
    sent = caught.value
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        got = pickle.loads(pickle.dumps(sent, protocol))
        assert type(got) is type(sent)
        assert (str(got), got.message, got.text, got.span, got.hint) == (
            str(sent), sent.message, sent.text, sent.span, sent.hint)  # fmt: skip


WORDS = ["x", "y", "p", "q", "1", "0", "-1", "2.5", "1e9", "+", "-", "*", "/", "**", "|", "<", ">=", "==", "(", ")",
         ",", "[", "]", "=", ";", "let", "t", " ", "@", "f", "m", "Power(", "dim(", "Grad(", "Var(", "Vi(",
         *(f"{name}(" for name in OPS)]  # fmt: skip


@settings(max_examples=300)
@given(st.lists(st.sampled_from(WORDS), max_size=14).map("".join))
def test_any_text_is_a_formula_or_a_formula_error(text):
    with contextlib.suppress(errors.FormulaError):
        assert node(text).dim >= 1


@given(st.text(max_size=20))
def test_any_characters_are_a_formula_or_a_formula_error(text):
    with contextlib.suppress(errors.FormulaError):
        assert node(text).dim >= 1


CLASSES = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.DredError)]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda c: c.__name__)
def test_every_error_class_travels(kind):
    required = [p for p in inspect.signature(kind).parameters.values() if p.default is p.empty]
    given = [p.name for p in required if p.kind is p.POSITIONAL_OR_KEYWORD] or ["what is wrong"]
    sent = kind(*given)
    got = pickle.loads(pickle.dumps(sent))
    assert type(got) is kind
    assert str(got) == str(sent)
    assert given[0] in str(got)
    assert vars(got) == vars(sent)


def test_every_kind_of_formula_error_has_an_example():
    shown = {name for name, _ in BAD.values()} | {"VariableError"}  # the latter: test_language.py
    assert shown == {c.__name__ for c in CLASSES if issubclass(c, errors.FormulaError)} - {"FormulaError"}


def test_an_unknown_operation_without_a_near_one_lists_them_all():
    with pytest.raises(errors.UnknownNameError) as caught:
        node("zzzzzz(x)")
    assert caught.value.hint.startswith("known are: Abs, Add, Concat, ")


# -- long texts --------------------------------------------------------------------------------------------------------


def test_a_long_text_is_shown_around_the_place():
    text = "x + " * 3000 + "q" + " + x" * 3000
    with pytest.raises(errors.UnknownNameError) as caught:
        node(text)
    excerpt, caret = str(caught.value).split("\n")[1:3]
    assert excerpt == "    ..." + text[12000 - 60 : 12000 + 61] + "..."
    assert excerpt[caret.index("^")] == "q"
    assert caret.count("^") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1" * 401, "a constant has more than 400 digits"),
        ("x" * 201, "a name has more than 200 characters"),
        ("Exp" * 10_000 + "(x)", "a name has more than 200 characters"),
        ("1" * 100_000, "a constant has more than 400 digits"),
        ("0." + "1" * 100_000, "a constant has more than 400 digits"),
        ("1e" + "9" * 100_000, "a constant has more than 400 digits"),
    ],
    ids=["401 digits", "201 letters", "30000 letters", "100000 digits", "100000 decimals", "100000 exponent digits"],
)
def test_a_long_token_is_refused_and_shown_in_part(text, message):
    with pytest.raises(errors.LimitError) as caught:
        node(text)
    assert caught.value.message == message
    assert len(str(caught.value)) < 300


def test_constants_of_just_400_digits():
    assert node("9" * 400) is const(int("9" * 400))
    assert node("1e400") is const(10**400)


@pytest.mark.parametrize(
    "text",
    [
        "(" * 10_000 + "x" + ")" * 10_000,
        "-" * 10_000 + "x",
        "+" * 10_001 + "x",
        "x" + "*1" * 10_000,
        "0+" * 9_999 + "x",
    ],
    ids=["parentheses", "minus", "plus", "times", "sum"],
)
def test_depth_is_no_limit(text):
    assert node(text) is node("x")


def test_unclosed_parentheses_by_the_thousand():
    with pytest.raises(errors.FormulaSyntaxError, match="this parenthesis is never closed"):
        node("(" * 10_000 + "x")


def test_too_many_tokens():
    with pytest.raises(errors.LimitError, match=f"the formula has more than {MAX_TOKENS} tokens"):
        tokenize("-" * (MAX_TOKENS + 1))


def test_too_many_operations():
    text = "Exp(" * 100_000 + "x" + ")" * 100_000
    with pytest.raises(errors.LimitError, match="the formula has 100001 operations, the limit is 100000"):
        node(text)


# -- a formula is data -------------------------------------------------------------------------------------------------

RUNS_TEXT = {"eval", "exec", "compile", "__import__"}
DOTTED = {"os.system", "os.popen", *(f"builtins.{name}" for name in RUNS_TEXT)}
MODULES = {"ast", "subprocess", "code", "codeop", "runpy", "pty"}


def runs_text(source):
    """What in a module could run text as code or in a shell."""
    found = []
    for n in ast.walk(ast.parse(source)):
        if isinstance(n, ast.Name) and n.id in RUNS_TEXT:
            found.append(n.id)
        elif isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name):
            name = f"{n.value.id}.{n.attr}"
            found += [name] * (name in DOTTED)
        elif isinstance(n, ast.Import):
            found += [a.name for a in n.names if a.name.partition(".")[0] in MODULES]
        elif isinstance(n, ast.ImportFrom) and not n.level and (n.module or "").partition(".")[0] in MODULES:
            found.append(n.module)
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "dred").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT / "dred")))
def test_no_module_runs_text(path):
    assert runs_text(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    ["eval(text)", "f = exec", "compile(a, b, c)", "import ast", "from ast import parse", "import os\nos.system(a)",
     "__import__(a)", "import builtins\nbuiltins.eval(a)", "def f():\n    import subprocess"],
)  # fmt: skip
def test_the_search_finds_what_runs_text(source):
    assert runs_text(source)


@pytest.mark.parametrize("source", ["re.compile(a)", "engine.compile(b)", "x.eval()", "import asttokens"])
def test_the_search_finds_no_more(source):
    assert runs_text(source) == []
