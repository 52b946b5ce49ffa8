"""Aliases, variables written in formulas, positions, and what a formula says about its call."""

import pickle

import pytest
from hypothesis import given, settings

from dred import errors
from dred.formula.language import Variable, declare, formula, read
from dred.formula.node import const, var
from tests.formula.formulas import derivatives, formulas

X, Y, P = var(0, 3, 0), var(1, 2, 1), var(2, 1, 2)


# -- aliases -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alias", "name", "variable"),
    [
        ("x = Vi(3)", "x", Variable(0, 3, 0)),
        ("x = Vj(3)", "x", Variable(0, 3, 1)),
        ("x = Pm(3)", "x", Variable(0, 3, 2)),
        ("x=Vi(3)", "x", Variable(0, 3, 0)),
        ("  x\t=  Vi ( 3 )  ", "x", Variable(0, 3, 0)),
        ("x = Vi(5, 3)", "x", Variable(5, 3, 0)),
        ("x = Vj(5,3)", "x", Variable(5, 3, 1)),
        ("x = Pm(5,3)", "x", Variable(5, 3, 2)),
        ("x = Var(5, 3, 0)", "x", Variable(5, 3, 0)),
        ("Vi(3)", "", Variable(0, 3, 0)),
        ("Vj(5, 3)", "", Variable(5, 3, 1)),
        ("Pm(3)", "", Variable(0, 3, 2)),
        ("Var(5, 3, 2)", "", Variable(5, 3, 2)),
        ("Vi = Vi(3)", "Vi", Variable(0, 3, 0)),
        ("_x1 = Vi(1000000)", "_x1", Variable(0, 1_000_000, 0)),
    ],
)
def test_forms_of_an_alias(alias, name, variable):
    assert declare([alias]) == [(name, var(*variable))]


UNREADABLE = ["", "x", "x = 3", "x = Vx(3)", "x = vi(3)", "x = Vi 3", "x = Vi()", "x = Vi(3,)", "x = Vi(--1)",
              "x = Vi(3.0)", "x = Vi(n)", "x = Vi(³)", "1x = Vi(3)", "x = Vi(3) y", "x = y = Vi(3)",
              "x = Vi(999999999999999999999)", "x = Vi(Vi(3))", "x - Vi(3)"]  # fmt: skip
BAD = {  # alias -> what is wrong, what to do
    **{alias: ("this alias cannot be read", "an alias is 'name = Vi(dim)', with Vi, Vj or Pm") for alias in UNREADABLE},
    "x = Vi(1,2,3)": ("Vi got 3 arguments", "it is Vi(ind, dim)"),
    "x = Var(1,2)": ("Var got 2 arguments", "it is Var(ind, dim, cat)"),
    "x = Vi(0)": ("dimension 0 is outside 1 ... 1000000",),
    "x = Vi(-1)": ("dimension -1 is outside 1 ... 1000000",),
    "x = Vi(1000001)": ("dimension 1000001 is outside 1 ... 1000000",),
    "x = Vi(9999999999)": ("dimension 9999999999 is outside 1 ... 1000000",),
    "x = Vi(-1, 3)": ("position -1 is negative: positions start at 0",),
    "x = Var(0,3,3)": ("category 3 is none of 0 (Vi), 1 (Vj) and 2 (Pm)",),
    "x = Var(0,3,-1)": ("category -1 is none of 0 (Vi), 1 (Vj) and 2 (Pm)",),
}


@pytest.mark.parametrize("alias", BAD)
def test_a_bad_alias_is_refused_with_its_place(alias):
    with pytest.raises(errors.AliasError) as caught:
        formula("1", [alias])
    message, *hint = BAD[alias]
    wanted = "\n".join([message, f"    {alias}", f"    {'^' * max(1, len(alias))}", *hint])
    assert str(caught.value) == wanted
    assert str(pickle.loads(pickle.dumps(caught.value))) == wanted


def test_a_name_declared_twice():
    with pytest.raises(errors.AliasError) as caught:
        formula("x", ["x = Vi(3)", "x = Vj(3)"])
    assert str(caught.value) == "the name 'x' is declared twice\n    x = Vj(3)\n    ^^^^^^^^^"


def test_a_long_alias_is_shown_in_part():
    with pytest.raises(errors.AliasError) as caught:
        formula("x", ["x = Vi(3)" * 1000])
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("aliases", ["x = Vi(3)", [3], [None], ["x = Vi(3)", b"y"], None, 7, {"x": "Vi(3)"}])
def test_aliases_that_are_no_list_of_texts(aliases):
    with pytest.raises(errors.AliasError) as caught:
        formula("x", aliases)
    assert str(caught.value) == 'aliases must be a list of texts\nfor example ["x = Vi(3)", "y = Vj(3)"]'


@pytest.mark.parametrize("text", [None, 3, b"x", ["x"]])
def test_a_formula_that_is_no_text(text):
    with pytest.raises(errors.ArgumentError) as caught:
        formula(text, ["x = Vi(3)"])
    assert str(caught.value) == f"a formula must be a text, got {type(text).__name__}"


def test_the_list_is_not_modified():
    aliases = ["x = Vi(3)", "Vj(2)"]
    formula("Exp(x) + Sum(Var(1, 2, 1)) + Pm(2, 1)", aliases)
    assert aliases == ["x = Vi(3)", "Vj(2)"]
    assert formula("x", ("x = Vi(3)",)).node is X


# -- positions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "aliases", "variables", "names"),
    [
        ("x + Sum(y)", ["x = Vi(3)", "y = Vj(2)"], (Variable(0, 3, 0), Variable(1, 2, 1)), ("x", "y")),
        ("x + Sum(y)", ["y = Vj(1, 2)", "x = Vi(0, 3)"], (Variable(0, 3, 0), Variable(1, 2, 1)), ("x", "y")),
        ("Var(0,3,0)", [], (Variable(0, 3, 0),), ("",)),
        ("Vi(0,3) + Sum(Vj(1,2)) * Pm(2,1)", [], (Variable(0, 3, 0), Variable(1, 2, 1), Variable(2, 1, 2)), ("",) * 3),
        ("x + Vi(0, 3)", ["x = Vi(3)"], (Variable(0, 3, 0),), ("x",)),
        ("x + z", ["x = Vi(0, 3)", "z = Vi(0, 3)"], (Variable(0, 3, 0),), ("x",)),
        ("x", ["x = Vi(3)", "unused = Vj(7)", "Pm(2)"], (Variable(0, 3, 0), Variable(1, 7, 1), Variable(2, 2, 2)),
         ("x", "unused", "")),
        ("1 + 2", [], (), ()),
        ("x - x", ["x = Vi(3)"], (Variable(0, 3, 0),), ("x",)),
        ("Grad(Exp(x), x)", ["x = Vi(3)"], (Variable(0, 3, 0), Variable(1, 3, 1)), ("x", "")),
        ("Grad(Sum(y * Elem(x, 0)), y)", ["x = Vi(3)", "y = Vj(2)"],
         (Variable(0, 3, 0), Variable(1, 2, 1), Variable(2, 1, 0)), ("x", "y", "")),
    ],
)  # fmt: skip
def test_variables_by_position(text, aliases, variables, names):
    f = formula(text, aliases)
    assert f.variables == variables
    assert f.names == names
    assert f.text == text


def test_variables_say_how_they_are_written():
    assert [str(Variable(k, 3, k)) for k in range(3)] == ["Vi(0,3)", "Vj(1,3)", "Pm(2,3)"]


@pytest.mark.parametrize(
    ("text", "aliases", "message", "place"),
    [
        ("x + Vi(2, 3)", ["x = Vi(3)"], "the positions of the variables are [0, 2], they must be 0 ... 1",
         "x + Vi(2, 3)"),
        ("x", ["x = Vi(1, 3)"], "the positions of the variables are [1], they must be 0 ... 0", "x = Vi(1, 3)"),
        ("x", ["x = Vi(999999999, 3)"], "the positions of the variables are [999999999], they must be 0 ... 0",
         "x = Vi(999999999, 3)"),
        ("x", ["x = Vi(3)", "y = Vj(0, 3)"],
         "position 0 is declared as i-variable of dimension 3 and as j-variable of dimension 3", "y = Vj(0, 3)"),
        ("x", ["x = Vi(3)", "y = Vi(0, 2)"],
         "position 0 is declared as i-variable of dimension 3 and as i-variable of dimension 2", "y = Vi(0, 2)"),
        ("x + Vj(0, 3)", ["x = Vi(3)"],
         "position 0 is declared as i-variable of dimension 3 and as j-variable of dimension 3", "x + Vj(0, 3)"),
        ("x * Pm(1, 1)", ["x = Vi(3)", "y = Pm(3)"],
         "position 1 is declared as parameter of dimension 3 and as parameter of dimension 1", "x * Pm(1, 1)"),
    ],
)  # fmt: skip
def test_declarations_that_contradict_each_other(text, aliases, message, place):
    message = f"{message}\n    {place}\n    {'^' * len(place)}"
    with pytest.raises(errors.VariableError) as caught:
        formula(text, aliases)
    assert str(caught.value) == message
    assert str(pickle.loads(pickle.dumps(caught.value))) == message


def test_a_variable_that_grad_makes_in_the_place_of_another():
    text = "Sum(y) * Grad(x, x)"
    with pytest.raises(errors.VariableError) as caught:
        formula(text, ["x = Vi(3)", "y = Vj(2)"])
    assert str(caught.value) == (
        "position 1 is declared as j-variable of dimension 2 and as j-variable of dimension 3\n"
        f"    {text}\n"
        "             ^^^^\n"
        "Grad without a cotangent makes a variable at the next position: write Grad(F, v, e)"
    )
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_names_without_aliases():
    with pytest.raises(errors.UnknownNameError) as caught:
        formula("x", [])
    assert str(caught.value) == "unknown name 'x'\n    x\n    ^\nthere are no aliases"


# -- reading formulas as nodes -----------------------------------------------------------------------------------------


def test_a_node_is_read_whatever_the_positions():
    assert read("Exp(x)", ["x = Vi(7, 3)"]) is read("Exp(Var(7, 3, 0))")
    assert read("x + Sum(Var(9, 2, 1))", ["x = Vi(3)", "y = Vj(5, 2)"]).dim == 3
    assert read("1 + 1") is const(2)
    with pytest.raises(errors.VariableError):
        formula("Exp(x)", ["x = Vi(7, 3)"])


@settings(max_examples=200)
@given(formulas())
def test_a_formula_is_read_from_its_text(f):
    assert read(str(f)) is f


@given(derivatives())
def test_a_derivative_is_read_from_its_text(f):
    assert read(str(f)) is f


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("Pow(x, -3)", "Pow(Var(0,3,0), -3)"),
        ("Round(x, -1)", "Round(Var(0,3,0), -1)"),
        ("ClampInt(x, -2, 1)", "Clamp(Var(0,3,0), -2, 1)"),
        ("-(1/3) * x", "Mult(RatCst(-1, 3), Var(0,3,0))"),
        ("x * -0", "Mult(Var(0,3,0), Minus(0))"),
        ("TensorDot(x, x, [3], [3, 1], [0], [0])", "TensorDot(Var(0,3,0), Var(0,3,0), [3], [3, 1], [0], [0], [])"),
        ("IndexI() - IndexJ()", "Subtract(IndexI(), IndexJ())"),
        ("x ** 1e-400", f"Powf(Var(0,3,0), RatCst(1, 1{400 * '0'}))"),
        ("x * 1e400", f"Mult(Var(0,3,0), 1{400 * '0'})"),
    ],
)
def test_texts_of_formulas(text, written):
    f = read(text, ["x = Vi(3)"])
    assert str(f) == written
    assert read(written) is f


def test_the_text_of_a_deep_formula_is_not_nested_deeply():
    f = read("Sin(" * 1000 + "x" + ")" * 1000, ["x = Vi(3)"])
    assert max(part.count("(") for part in str(f).split(";")) < 60
    assert read(str(f)) is f


def test_formulas_travel():
    f = formula("Exp(x) + Sum(y)", ["x = Vi(3)", "y = Vj(2)"])
    again = pickle.loads(pickle.dumps(f))
    assert again == f
    assert again.node is f.node
