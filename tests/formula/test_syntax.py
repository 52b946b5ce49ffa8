"""Formula text: precedence, any text at all, long texts, and that no text is ever run."""

import ast
import contextlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dred import errors
from dred.formula import derive, syntax
from dred.formula.derive import DERIVED, MAX_NODES
from dred.formula.language import formula, read
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
        ("x ** y", "Powf(x, y)"),
        ("x ** p", "Powf(x, p)"),
        ("2 ** x", "Powf(2, x)"),
        ("x ** 1.5", "Powf(x, 3/2)"),
        ("x ** -1.5", "Powf(x, -3/2)"),
        ("x ** (-y)", "Powf(x, -y)"),
        ("-x ** y", "-Powf(x, y)"),
        ("x ** Exp(y) * p", "Powf(x, Exp(y)) * p"),
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
        ("x * +y", "x * y"),
        ("- + - x", "x"),
        ("+2", "2"),
        ("Exp(+x)", "Exp(x)"),
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
        ("TensorDot(x, y, [3], [3], [0], [0])", "TensorDot(x, y, [3], [3], [0], [0], [])"),
        ("TensorDot(x, y, [ 3 ], [3,1], [], [\n])", "TensorDot(x, y, [3], [3, 1], [], [])"),
        ("TensorDot(f=x, g=y, cf=[], cg=[], df=[3], dg=[3], perm=[1, 0])", "TensorDot(x, y, [3], [3], [], [], [1, 0])"),
        ("Kron(x, dg=[1, 3], g=y, df=[3, 1])", "Kron(x, y, [3, 1], [1, 3])"),
        ("MatVecMult(TensorProd(x, y), y)", "TensorDot(TensorProd(x, y), y, [3, 3], [3], [1], [0])"),
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


# -- any text ----------------------------------------------------------------------------------------------------------

WORDS = ["x", "y", "p", "q", "1", "0", "-1", "2.5", "1e9", "+", "-", "*", "/", "**", "|", "<", ">=", "==", "(", ")",
         ",", "[", "]", "[]", "[3]", "[0,1]", "=", ";", "let", "let t = ", "t", " ", "%", "//", "@", "^", "&", "!",
         " and ", " or ", " not ", "f", "m", "perm=", "Power(", "dim(", "Var(", "Vi(", "Vj(", "Pm(",
         *(f"{name}(" for name in (*OPS, *DERIVED))]  # fmt: skip
ATOMS = ["x", "y", "p", "Vi(3, 2)", "Var(4, 6, 2)", "IndexI()", "0", "1", "2", "3", "-1", "1/2", "[]", "[3]", "[1, 3]",
         "[0]", "[1, 0]", "f=x", "m=2", "(let t = x; t)"]  # fmt: skip
COUNTS = {  # arguments, those that may be left out included
    **{op.name: len(op.args + op.attrs) for op in OPS.values()},
    **{d.name: 1 + d.signature.count(",") for d in DERIVED.values()},
}


def compound(inner):
    """Calls with as many arguments as are due, or one more or less, and operators."""

    def called(name):
        fewest = max(0, COUNTS[name] - 1)
        right = st.lists(inner, min_size=COUNTS[name], max_size=COUNTS[name])
        args = st.one_of(right, right, right, st.lists(inner, min_size=fewest, max_size=fewest + 2))
        return args.map(lambda words: f"{name}({', '.join(words)})")

    call = st.sampled_from(sorted(COUNTS)).flatmap(called)
    pair = st.tuples(inner, st.sampled_from(sorted(BINARY)), inner).map(lambda parts: "({} {} {})".format(*parts))
    return st.one_of(call, pair)


@settings(max_examples=300)
@given(st.lists(st.sampled_from(WORDS), max_size=14).map("".join))
def test_any_text_is_a_formula_or_a_formula_error(text):
    with contextlib.suppress(errors.FormulaError):
        assert node(text).dim >= 1


@settings(max_examples=500)
@given(st.recursive(st.sampled_from(ATOMS), compound, max_leaves=12))
def test_any_calls_are_a_formula_or_a_formula_error(text):
    with contextlib.suppress(errors.FormulaError):
        n = node(text)
        assert n.dim >= 1
        assert read(str(n)) is n


@given(st.text(max_size=20))
def test_any_characters_are_a_formula_or_a_formula_error(text):
    with contextlib.suppress(errors.FormulaError):
        assert node(text).dim >= 1


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


@pytest.mark.parametrize("limit", [1000, pytest.param(MAX_TOKENS, marks=pytest.mark.slow)])
def test_too_many_tokens(limit, monkeypatch):
    monkeypatch.setattr(syntax, "MAX_TOKENS", limit)
    assert len(tokenize("-" * (limit - 1))) == limit  # with that of the end
    with pytest.raises(errors.LimitError, match=f"the formula has more than {limit} tokens"):
        tokenize("-" * (limit + 1))


@pytest.mark.parametrize("limit", [1000, pytest.param(MAX_NODES, marks=pytest.mark.slow)])
def test_too_many_operations(limit, monkeypatch):
    monkeypatch.setattr(derive, "MAX_NODES", limit)
    text = "Exp(" * limit + "x" + ")" * limit
    with pytest.raises(errors.LimitError, match=f"the formula has {limit + 1} operations, the limit is {limit}"):
        node(text)


# -- a formula is data -------------------------------------------------------------------------------------------------

RUNS_TEXT = {"eval", "exec", "compile", "__import__"}
DOTTED = {"os.system", "os.popen", *(f"builtins.{name}" for name in RUNS_TEXT)}
MODULES = {"ast", "subprocess", "code", "codeop", "runpy", "pty"}
# Commands that are written there, without a word of a formula: new interpreters that are timed, and nvidia-smi.
ALLOWED = {"jobs/bench.py": ["subprocess"], "cluster/connect.py": ["subprocess"]}


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
    assert runs_text(path.read_text()) == ALLOWED.get(path.relative_to(ROOT / "dred").as_posix(), [])


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
