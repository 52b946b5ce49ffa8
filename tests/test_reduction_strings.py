"""Reductions as texts: values beside Genred and NumPy, the inputs that they have, every refusal with its place."""

import dataclasses
import inspect
import pickle
import textwrap

import numpy as np
import pytest

import dred
from dred import Genred, Reduction, VariableError
from dred.formula.language import Variable, formula
from dred.formula.reduced import reduction
from dred.reductions import MONOIDS, REDUCTIONS

F = "Exp(-p*SqDist(x,y))*b"
ALIASES = ["x = Vi(3)", "y = Vj(3)", "b = Vj(1)", "p = Pm(1)"]
CATEGORY = {"x": 0, "y": 1, "b": 1, "p": 2}
M, N = 7, 9
COTANGENT = ("Vi(1)", "Vj(1)")  # by output category


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    return [rng.uniform(-1, 1, shape) for shape in ((M, 3), (N, 3), (N, 1), (1,))]


def cotangent(cat, dim=1, seed=1):
    return np.random.default_rng(seed).uniform(-1, 1, ((M, N)[cat], dim))


def by_hand(x, y, b, p, cat):
    """The reduction itself."""
    difference = x[:, None] - y
    return (np.exp(-p * (difference**2).sum(-1, keepdims=True)) * b).sum(1 - cat)


def gradient_by_hand(v, x, y, b, p, e, cat):
    difference = x[:, None] - y
    square = (difference**2).sum(-1, keepdims=True)
    sent = (e[:, None] if cat == 0 else e[None]) * np.exp(-p * square)
    return {
        "x": (sent * b * -2 * p * difference).sum(1),
        "y": (sent * b * 2 * p * difference).sum(0),
        "b": sent.sum(0),
        "p": (sent * b * -square).sum(1),  # one row per i
    }[v]


def close(got, wanted):
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=1e-11, atol=1e-13)


# -- values ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cat", [0, 1])
def test_a_sum(cat):
    given = arrays()
    routine = Reduction(f"Sum_Reduction({F}, {cat})", ALIASES)
    assert (routine.reduction_op, routine.axis, routine.dim) == ("Sum", 1 - cat, 1)
    got = routine(*given, backend="cpu")
    close(got, by_hand(*given, cat))
    np.testing.assert_array_equal(got, Genred(F, ALIASES, axis=1 - cat)(*given, backend="cpu"))


def check_gradient(v, cat, text="Grad(Sum_Reduction({F}, {cat}), {v}, e)"):
    given, e = arrays(), cotangent(cat)
    aliases = [*ALIASES, f"e = {COTANGENT[cat]}"]
    routine = Reduction(text.format(F=F, cat=cat, v=v), aliases)
    got = routine(*given, e, backend="cpu")
    close(got, gradient_by_hand(v, *given, e, cat))
    assert routine.axis == (0 if CATEGORY[v] == 1 else 1)
    same = Genred(f"Grad({F}, {v}, e)", aliases, axis=routine.axis)
    np.testing.assert_array_equal(got, same(*given, e, backend="cpu"))


@pytest.mark.parametrize("cat", [0, 1])
@pytest.mark.parametrize("v", CATEGORY)
def test_a_gradient(v, cat):
    check_gradient(v, cat)


@pytest.mark.parametrize("cotangent", ["2*e", "-e", "e*f", "0*e"])
@pytest.mark.parametrize("v", CATEGORY)
def test_a_wrong_gradient_is_found(v, cotangent, monkeypatch):
    """What the table says is what is computed, and the check above sees it."""
    changed = dataclasses.replace(REDUCTIONS["Sum"], pullbacks={"": (cotangent, None)})
    monkeypatch.setitem(REDUCTIONS, "Sum", changed)
    with pytest.raises(AssertionError):
        check_gradient(v, 0)


@pytest.mark.parametrize("cat", [0, 1])
def test_the_rows_of_the_gradient_by_a_parameter_add_up_to_it(cat):
    x, y, b, p = arrays()
    e, step = cotangent(cat), 1e-5
    rows = Reduction(f"Grad(Sum_Reduction({F}, {cat}), p, e)", [*ALIASES, f"e = {COTANGENT[cat]}"])(x, y, b, p, e)
    slope = ((by_hand(x, y, b, p + step, cat) - by_hand(x, y, b, p - step, cat)) * e).sum() / (2 * step)
    assert rows.shape == (M, 1)
    np.testing.assert_allclose(rows.sum(), slope, rtol=1e-7)


@pytest.mark.parametrize("cat", [0, 1])
@pytest.mark.parametrize("v", CATEGORY)
def test_a_derivative_in_a_direction(v, cat):
    given = arrays()
    place = list(CATEGORY).index(v)
    u = np.random.default_rng(2).uniform(-1, 1, given[place].shape)
    aliases = [*ALIASES, f"u = {('Vi', 'Vj', 'Pm')[CATEGORY[v]]}({u.shape[-1]})"]
    routine = Reduction(f"Diff(Sum_Reduction({F}, {cat}), {v}, u)", aliases)
    got = routine(*given, u, backend="cpu")
    step = 1e-5
    ahead, behind = ([a + s * u if k == place else a for k, a in enumerate(given)] for s in (step, -step))
    assert routine.axis == 1 - cat
    np.testing.assert_allclose(got, (by_hand(*ahead, cat) - by_hand(*behind, cat)) / (2 * step), rtol=1e-6, atol=1e-9)
    same = Genred(f"Diff({F}, {v}, u)", aliases, axis=1 - cat)
    np.testing.assert_array_equal(got, same(*given, u, backend="cpu"))


@pytest.mark.parametrize("cat", [0, 1])
def test_derivatives_of_derivatives(cat):
    """By y of the gradient by x, and the derivative in a direction of it: against differences of the first by hand."""
    x, y, b, p = given = arrays()
    e, w, u = cotangent(cat), cotangent(0, 3, seed=3), cotangent(1, 3, seed=4)
    aliases = [*ALIASES, f"e = {COTANGENT[cat]}", "w = Vi(3)", "u = Vj(3)"]
    inner = f"Grad(Sum_Reduction({F}, {cat}), x, e)"
    step = 1e-5
    ahead, behind = (gradient_by_hand("x", x, y + s * u, b, p, e, cat) for s in (step, -step))
    slope = (ahead - behind) / (2 * step)
    tangent = Reduction(f"Diff({inner}, y, u)", aliases)(*given, e, w, u, backend="cpu")
    np.testing.assert_allclose(tangent, slope, rtol=1e-6, atol=1e-8)
    second = Reduction(f"Grad({inner}, y, w)", aliases)(*given, e, w, u, backend="cpu")
    assert second.shape == (N, 3)
    np.testing.assert_allclose((second * u).sum(), (w * slope).sum(), rtol=1e-7)
    same = Genred(f"Grad(Grad({F}, x, e), y, w)", aliases, axis=0)
    np.testing.assert_array_equal(second, same(*given, e, w, u, backend="cpu"))
    by_cotangent = Reduction(f"Grad({inner}, e, w)", aliases)(*given, e, w, u, backend="cpu")
    np.testing.assert_allclose((by_cotangent * e).sum(), (w * gradient_by_hand("x", *given, e, cat)).sum(), rtol=1e-11)


@pytest.mark.parametrize("cat", [0, 1])
def test_a_saved_result_changes_nothing(cat):
    given, e = arrays(), cotangent(cat)
    u, saved = cotangent(0, 3), by_hand(*given, cat)
    aliases = [*ALIASES, f"e = {COTANGENT[cat]}", "u = Vi(3)", f"saved = {COTANGENT[cat]}"]
    for name, more in (("Grad", "e"), ("Diff", "u")):
        plain = Reduction(f"{name}(Sum_Reduction({F}, {cat}), x, {more})", aliases)(*given, e, u, saved)
        text = f"{name}_WithSavedForward(Sum_Reduction({F}, {cat}), x, {more}, saved)"
        np.testing.assert_array_equal(Reduction(text, aliases)(*given, e, u, saved), plain)


def test_other_ways_to_write_a_gradient():
    texts = [
        "Grad(Sum_Reduction({F}, {cat}), {v}, Var(4, 1, {cat}))",
        "let r = Sum_Reduction({F}, {cat}); Grad(r, {v}, e)",
        "let d = SqDist(x,y); let k = Exp(-p*d)*b; let r = Sum_Reduction(k, {cat}); let g = Grad(r, {v}, e); g",
        "\n Grad ( Sum_Reduction(({F}), 1 - (1 - {cat})), {v}, e)",
    ]
    for text in texts:
        for cat in (0, 1):
            check_gradient("x", cat, text)
    given, e = arrays(), cotangent(0)
    written = "Grad(Sum_Reduction(Exp(-Pm(3,1)*SqDist(Vi(0,3),Vj(1,3)))*Vj(2,1), 0), Vi(0,3), Vi(4,1))"
    close(Reduction(written, [])(*given, e), gradient_by_hand("x", *given, e, 0))


def test_dask_arrays():
    import dask
    import dask.array as da

    given, e = arrays(), cotangent(0)
    lazy = [da.from_array(a, chunks=(3, -1) if a.ndim == 2 else -1) for a in (*given, e)]
    routine = Reduction(f"Grad(Sum_Reduction({F}, 0), y, e)", [*ALIASES, "e = Vi(1)"])
    assert "tasks" in str(routine.plan(*lazy, backend="cpu"))
    with dask.config.set(scheduler="sync"):
        close(routine(*lazy, backend="cpu").compute(), gradient_by_hand("y", *given, e, 0))


# -- the routine -------------------------------------------------------------------------------------------------------


def test_the_signature():
    none = inspect.Parameter.empty
    assert [(p.name, p.default) for p in inspect.signature(Reduction).parameters.values()] == [
        ("text", none), ("aliases", none), ("dtype", None), ("dtype_acc", "auto"), ("use_double_acc", False),
        ("sum_scheme", "auto"), ("use_fast_math", False), ("expand", False),
    ]  # fmt: skip
    assert Reduction.__call__ is Genred.__call__


def test_a_routine_says_what_it_is_and_travels():
    text = f"Grad(Sum_Reduction({F}, 0), y, e)"
    aliases = [*ALIASES, "e = Vi(1)"]
    routine = Reduction(text, aliases, dtype="float32")
    assert repr(routine) == f"Reduction({text!r}, {aliases!r})"
    assert (routine.formula, routine.aliases, routine.axis, routine.dtype, routine.dim) == (
        text, tuple(aliases), 0, "float32", 3)  # fmt: skip
    assert pickle.loads(pickle.dumps(routine)).spec("float32") == routine.spec("float32")
    assert routine.spec("float32") == Genred(f"Grad({F}, y, e)", aliases, axis=0).spec("float32")
    assert "define" in routine.source("cpu")


@pytest.mark.parametrize(
    "options",
    [{"sum_scheme": "direct_sum"}, {"dtype_acc": "float32"}, {"use_double_acc": True}, {"use_fast_math": True}],
    ids=str,
)
def test_options_are_those_of_genred(options):
    text = f"Sum_Reduction({F}, 0)"
    assert Reduction(text, ALIASES, **options).spec("float32") == Genred(F, ALIASES, axis=1, **options).spec("float32")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "dtype='int8': it is bfloat16, float16, float32 or float64"),
        (
            {"sum_scheme": "fast"},
            "sum_scheme='fast' is unknown: it is one of auto, block_sum, direct_sum, kahan_scheme",
        ),
    ],
    ids=str,
)
def test_options_that_are_refused(options, message):
    with pytest.raises(dred.OptionError) as caught:
        Reduction(f"Sum_Reduction({F}, 0)", ALIASES, **options)
    assert str(caught.value) == message


# -- inputs ------------------------------------------------------------------------------------------------------------


def inputs(text, aliases):
    return [str(v) for v in reduction(text, aliases)[0].variables]


def test_declared_inputs_that_are_not_needed_must_be_passed():
    assert inputs("Grad(Sum_Reduction(x, 0), x, e)", ["x = Vi(3)", "y = Vj(3)", "e = Vi(3)", "q = Pm(2)"]) == [
        "Vi(0,3)", "Vj(1,3)", "Vi(2,3)", "Pm(3,2)"]  # fmt: skip
    with pytest.raises(dred.InputError) as caught:
        Reduction("Sum_Reduction(y, 0)", ["x = Vi(3)", "y = Vj(3)"])(np.ones((2, 3)))
    assert str(caught.value) == "the routine takes 2 arrays (x, y), got 1"


@pytest.mark.parametrize(
    ("text", "new"),
    [
        (f"Grad(Sum_Reduction({F}, 0), x)", ["Vi(4,1)"]),
        (f"Grad(Sum_Reduction({F}, 1), x)", ["Vj(4,1)"]),
        (f"Grad(Sum_Reduction({F}, 1), p)", ["Vj(4,1)"]),
        ("Grad(Sum_Reduction(x, 0), x)", ["Vi(4,3)"]),  # not after the last position of F, which is y's
        (f"Grad(Grad(Sum_Reduction({F}, 1), x), y)", ["Vj(4,1)", "Vi(5,3)"]),
        (f"Grad(Grad(Sum_Reduction({F}, 0), y), p)", ["Vi(4,1)", "Vj(5,3)"]),
        ("Grad(Grad(Sum_Reduction(x*y, 0), x), x)", ["Vi(4,3)", "Vi(5,3)"]),  # zeros, which read neither
        (f"Grad(Sum_Reduction({F} + Vj(4,1), 0), x)", ["Vj(4,1)", "Vi(5,1)"]),
        (f"Grad_WithSavedForward(Sum_Reduction({F}, 0), x, Vi(4,1), Vi(5,1))", ["Vi(4,1)", "Vi(5,1)"]),
    ],
)
def test_variables_that_are_made_or_written_come_after_the_declared_ones(text, new):
    assert inputs(text, ALIASES) == ["Vi(0,3)", "Vj(1,3)", "Vj(2,1)", "Pm(3,1)", *new]


def test_a_cotangent_that_is_made_is_passed_last():
    given, e = arrays(), cotangent(1)
    got = Reduction(f"Grad(Sum_Reduction({F}, 1), x)", ALIASES)(*given, e)
    close(got, gradient_by_hand("x", *given, e, 1))


def test_variables_that_rewriting_removes_are_inputs():
    assert inputs("Sum_Reduction(Vi(0,3) - Vi(0,3) + Vj(1,3), 0)", []) == ["Vi(0,3)", "Vj(1,3)"]
    assert [str(v) for v in formula("0 * Vi(0,3) + Vj(1,3)", []).variables] == ["Vi(0,3)", "Vj(1,3)"]
    assert [str(v) for v in formula("Grad(y, x)", ["x = Vi(3)", "y = Vj(2)"]).variables] == [
        "Vi(0,3)", "Vj(1,2)", "Vj(2,2)"]  # fmt: skip


def test_the_list_of_aliases_is_not_modified():
    aliases = list(ALIASES)
    Reduction(f"Grad(Sum_Reduction({F}, 0), x)", aliases)
    assert aliases == ALIASES


# -- Grad(F, v) in a formula -------------------------------------------------------------------------------------------

HINT = "Grad without a cotangent makes a variable at the next position: write Grad(F, v, e)"


def test_a_variable_that_is_made_where_the_same_is_declared_is_that_variable():
    aliases = ["x = Vi(3)", "e = Vj(3)"]
    assert formula("Grad(Sin(x), x)", aliases) == dataclasses.replace(
        formula("Grad(Sin(x), x, e)", aliases), text="Grad(Sin(x), x)"
    )
    assert formula("Grad(x, x) + Vj(1,3)", aliases[:1]).variables == (Variable(0, 3, 0), Variable(1, 3, 1))


@pytest.mark.parametrize(
    ("text", "aliases", "message"),
    [
        ("1 + Grad(Sin(x), x)", ["x = Vi(3)", "y = Vj(2)"],
         "position 1 is declared as j-variable of dimension 2 and as j-variable of dimension 3\n"
         "    1 + Grad(Sin(x), x)\n        ^^^^\n" + HINT),
        ("Grad(Sin(x), x)", ["x = Vi(3)", "y = Vi(3)"],
         "position 1 is declared as i-variable of dimension 3 and as j-variable of dimension 3\n"
         "    Grad(Sin(x), x)\n    ^^^^\n" + HINT),
        ("Sum(Vj(1,2)) * Grad(Sin(x), x)", ["x = Vi(3)"],
         "position 1 is declared as j-variable of dimension 2 and as j-variable of dimension 3\n"
         "    Sum(Vj(1,2)) * Grad(Sin(x), x)\n                   ^^^^\n" + HINT),
        ("Grad(Sin(x), x) * Sum(Vj(1,2))", ["x = Vi(3)"],
         "position 1 is declared as j-variable of dimension 3 and as j-variable of dimension 2\n"
         "    Grad(Sin(x), x) * Sum(Vj(1,2))\n                          ^^\n" + HINT),
    ],
)  # fmt: skip
def test_a_variable_that_is_made_where_another_stands(text, aliases, message):
    for read in (Genred, lambda text, aliases: Reduction(f"Sum_Reduction({text}, 0)", aliases)):
        with pytest.raises(VariableError) as caught:
            read(text, aliases)
        lines, wanted = str(caught.value).split("\n"), message.split("\n")
        assert (lines[0], lines[3]) == (wanted[0], wanted[3])
        if read is Genred:
            assert lines == wanted


def test_a_variable_that_a_reduction_has_made_is_not_written_again():
    text = "let g = Grad(Sum_Reduction(x*y, 0), x); Diff(g, y, Vj(2,3))"
    with pytest.raises(VariableError) as caught:
        Reduction(text, ["x = Vi(3)", "y = Vj(3)"])
    assert str(caught.value) == (
        "position 2 is declared as i-variable of dimension 3 and as j-variable of dimension 3\n"
        f"    {text}\n    {' ' * text.index('Vj')}^^\n{HINT}"
    )


# -- refusals ----------------------------------------------------------------------------------------------------------

GIVEN = ["x = Vi(3)", "y = Vj(3)", "p = Pm(1)", "e = Vi(3)"]
WHOLE = "a reduction is the whole text, or the first argument of Grad or Diff"
SUM = "it is Sum_Reduction(F, cat): Sum has no integer parameter K and no second formula G"
CAT = "argument 'cat' of Sum_Reduction must be 0 or 1"
ROWS = "0 leaves one row per i, 1 one row per j"
FORWARD = "Grad_WithSavedForward"

# text, class, message, what the carets stand under (the first of its kind, or the place), hint
BAD = [
    ("Exp(Sum_Reduction(x, 0))", "ArgumentError", "a reduction cannot be an argument of Exp", "Exp", WHOLE),
    ("Sum_Reduction(x, 0) + 1", "ArgumentError", "a reduction cannot be an argument of Add", "+", WHOLE),
    ("2 * Sum_Reduction(x, 0)", "ArgumentError", "a reduction cannot be an argument of Mult", "*", WHOLE),
    ("-Sum_Reduction(x, 0)", "ArgumentError", "a reduction cannot be an argument of Minus", "-", WHOLE),
    ("Sum_Reduction(x, 0)**2", "ArgumentError", "a reduction cannot be an argument of **", "**", WHOLE),
    ("Sum_Reduction(x, 0) | x", "ArgumentError", "a reduction cannot be an argument of Scalprod", "|", WHOLE),
    ("1 < Sum_Reduction(x, 0)", "ArgumentError", "a reduction cannot be an argument of LessThan", "<", WHOLE),
    ("Elem(f=x, m=Sum_Reduction(x, 0))", "ArgumentError", "a reduction cannot be an argument of Elem", "Elem", WHOLE),
    ("Laplacian(Sum_Reduction(x, 0), x)", "ArgumentError", "a reduction cannot be an argument of Laplacian",
     "Laplacian", WHOLE),
    ("Vi(0, Sum_Reduction(x, 0))", "ArgumentError", "a reduction cannot be an argument of Vi", "Vi", WHOLE),
    ("Sum_Reduction(Sum_Reduction(x, 0), 1)", "ArgumentError", "a reduction cannot be an argument of Sum_Reduction",
     "Sum_Reduction", WHOLE),
    ("let r = Sum_Reduction(x, 0); r * x", "ArgumentError", "a reduction cannot be an argument of Mult", "*", WHOLE),
    ("Grad(x, Sum_Reduction(x, 0), e)", "ArgumentError", "a reduction cannot be an argument of Grad", "Grad", WHOLE),
    ("Grad(Sum_Reduction(x, 0), x, Sum_Reduction(x, 0))", "ArgumentError",
     "a reduction cannot be another argument of Grad", "Grad", WHOLE),
    ("Sum_Reduction(x)", "ArgumentError", "Sum_Reduction takes 2 arguments, got 1", "Sum_Reduction", SUM),
    ("Sum_Reduction(x, 3, 0)", "ArgumentError", "Sum_Reduction takes 2 arguments, got 3", "Sum_Reduction", SUM),
    ("Sum_Reduction(x, 0, y)", "ArgumentError", "Sum_Reduction takes 2 arguments, got 3", "Sum_Reduction", SUM),
    ("Sum_Reduction()", "ArgumentError", "Sum_Reduction takes 2 arguments, got 0", "Sum_Reduction", SUM),
    ("Sum_Reduction(x, cat=0)", "ArgumentError", "Sum_Reduction takes no named arguments", "Sum_Reduction", ""),
    ("Sum_Reduction(x, 2)", "ArgumentError", CAT, "Sum_Reduction", ROWS),
    ("Sum_Reduction(x, 1/2)", "ArgumentError", CAT, "Sum_Reduction", ROWS),
    ("Sum_Reduction(x, p)", "ArgumentError", CAT, "Sum_Reduction", ROWS),
    ("Sum_Reduction(x, [0])", "ArgumentError", CAT, "Sum_Reduction", ROWS),
    ("Sum_Reduction([0], 0)", "ArgumentError", "argument 'F' of Sum_Reduction must be a formula, got a list",
     "Sum_Reduction", ""),
    ("Summ_Reduction(x, 0)", "UnknownNameError", "unknown reduction 'Summ'", "Summ_Reduction", "did you mean 'Sum'?"),
    ("Oops_Reduction(x, 0)", "UnknownNameError", "unknown reduction 'Oops'", "Oops_Reduction",
     textwrap.fill(f"known are: {', '.join(sorted(REDUCTIONS))}", 100)),
    ("Sum_Reduction(q, 0)", "UnknownNameError", "unknown name 'q'", "q", "the aliases are: x, y, p, e"),
    ("Sum_Reduction(x, 0", "FormulaSyntaxError", "this parenthesis is never closed", "(", ""),
    ("Sum_Reduction", "UnknownNameError", "unknown name 'Sum_Reduction'", "Sum_Reduction",
     "the aliases are: x, y, p, e"),
    ("Exp(x) * 2", "ArgumentError", "this is a formula without a reduction", "Exp(x) * 2",
     "write Sum_Reduction(F, 0) for one row per i or Sum_Reduction(F, 1) for one row per j, or use dred.Genred"),
    ("Grad(Sum_Reduction(x, 0))", "ArgumentError", "Grad takes 2 or 3 arguments, got 1", "Grad",
     "it is Grad(R, v, e?)"),
    ("Grad(Sum_Reduction(x, 0), x, e=e)", "ArgumentError", "Grad takes no named arguments", "Grad", ""),
    ("Grad(Sum_Reduction(x, 0), 2*x, e)", "DerivativeError", "argument 'v' of Grad must be a variable", "Grad",
     "it is Grad(R, v, e?)"),
    ("Grad(Sum_Reduction(x, 0), [1], e)", "DerivativeError", "argument 'v' of Grad must be a variable", "Grad",
     "it is Grad(R, v, e?)"),
    ("Grad(Sum_Reduction(x, 0), x, 2*e)", "ArgumentError", "argument 'e' of Grad must be a variable", "Grad",
     "it is Grad(R, v, e?)"),
    ("Grad(Sum_Reduction(x, 0), x, y)", "ArgumentError",
     "the cotangent must be Vi(3), as the result of the reduction, got Vj(3)", "Grad", ""),
    ("Grad(Sum_Reduction(x, 1), x, e)", "ArgumentError",
     "the cotangent must be Vj(3), as the result of the reduction, got Vi(3)", "Grad", ""),
    ("Grad(Sum_Reduction(x, 0), x, p)", "ArgumentError",
     "the cotangent must be Vi(3), as the result of the reduction, got Pm(1)", "Grad", ""),
    ("Grad(Sum_Reduction(Sum(x), 0), x, e)", "DimensionError",
     "the cotangent must be Vi(1), as the result of the reduction, got Vi(3)", "Grad", ""),
    ("Diff(Sum_Reduction(x, 0), x)", "ArgumentError", "Diff takes 3 arguments, got 2", "Diff", "it is Diff(R, v, u)"),
    ("Diff(Sum_Reduction(x, 0), x, p)", "DimensionError",
     "the direction of Diff has dimension 1, the variable 3: it must be 3", "Diff", ""),
    ("Diff(Sum_Reduction(x, 0), x, 2*e)", "ArgumentError", "argument 'u' of Diff must be a variable", "Diff",
     "it is Diff(R, v, u)"),
    (f"{FORWARD}(Sum_Reduction(x, 0), x, e)", "ArgumentError", f"{FORWARD} takes 4 arguments, got 3", FORWARD,
     f"it is {FORWARD}(R, v, e, saved)"),
    (f"{FORWARD}(Sum_Reduction(x, 0), x, e, 1)", "ArgumentError", f"argument 'saved' of {FORWARD} must be a variable",
     FORWARD, f"it is {FORWARD}(R, v, e, saved)"),
    (f"{FORWARD}(Sum_Reduction(Sum(x), 0), x, Vi(4,1), e)", "DimensionError",
     "the saved result must be Vi(1), as the result of the reduction, got Vi(3)", FORWARD, ""),
    (f"{FORWARD}(Sum_Reduction(x, 0), x, e, y)", "ArgumentError",
     "the saved result must be Vi(3), as the result of the reduction, got Vj(3)", FORWARD, ""),
    ("Diff_WithSavedForward(Sum_Reduction(x, 0), y, y, p)", "ArgumentError",
     "the saved result must be Vi(3), as the result of the reduction, got Pm(1)", "Diff_WithSavedForward", ""),
    ("KMin_Reduction(x, 0)", "ArgumentError", "KMin_Reduction takes 3 arguments, got 2", "KMin_Reduction",
     "it is KMin_Reduction(F, K, cat): KMin has no second formula G"),
    ("KMin_Reduction(x, 0, 1)", "ArgumentError",
     "argument 'K' of KMin_Reduction is 0: so many terms are kept, 1 ... 16777216", "KMin_Reduction", ""),
    ("KMin_Reduction(x, 500000, 1)", "LimitError", "dimension 1500000 is outside 1 ... 1000000", "KMin_Reduction", ""),
    ("Variance_Reduction(x, -1, 1)", "ArgumentError",
     "argument 'K' of Variance_Reduction is -1: it is taken off the number of terms, 0 ... 16777216",
     "Variance_Reduction", ""),
    ("SoftMax_Reduction(p, 0)", "ArgumentError", "SoftMax_Reduction takes 3 arguments, got 2", "SoftMax_Reduction",
     "it is SoftMax_Reduction(F, cat, G): SoftMax has no integer parameter K"),
    ("SoftMax_Reduction(x, 0, y)", "DimensionError", "SoftMax takes a formula of dimension 1, got 3",
     "SoftMax_Reduction", "Elem(F, m) takes a component, Sum(F) adds them up"),
    ("LogSumExp_Reduction(x, 0, Concat(x, y))", "DimensionError",
     "the formula of LogSumExp has dimension 3, G 6: it must be 1 or 3", "LogSumExp_Reduction", ""),
    ("Grad(KMin_Reduction(x, 2, 1), x, e)", "ArgumentError",
     "the cotangent must be Vj(6), as the result of the reduction, got Vi(3)", "Grad", ""),
    ("Grad(Count_Reduction(x, 0), x, e)", "DerivativeError", "Count_Reduction has no derivative", "Grad",
     "its values only jump: they do not change where its terms change a little"),
    ("Histogram_Reduction(p, 0)", "ArgumentError", "the reduction Histogram cannot be written as a text",
     "Histogram_Reduction", "write dred.Genred(F, aliases, 'Histogram', axis, opt_arg=...)"),
    (f"{FORWARD}(Exp(x), x, e, e)", "ArgumentError", f"{FORWARD} takes a reduction, got a formula", FORWARD,
     "of a formula it is Grad(F, v, ...)"),
]  # fmt: skip


def message_of(text, message, place, hint):
    start = text.index(place)
    lines = [message, f"    {text}", "    " + " " * start + "^" * len(place)]
    return "\n".join([*lines, hint] if hint else lines)


@pytest.mark.parametrize(("text", "kind", "message", "place", "hint"), BAD, ids=[row[0] for row in BAD])
def test_a_bad_text_is_refused_with_its_place(text, kind, message, place, hint):
    with pytest.raises(dred.FormulaError) as caught:
        Reduction(text, GIVEN)
    wanted = message_of(text, message, place, hint)
    assert (type(caught.value).__name__, str(caught.value)) == (kind, wanted)
    assert str(pickle.loads(pickle.dumps(caught.value))) == wanted


@pytest.mark.parametrize("text", [None, 3, b"Sum_Reduction(x, 0)"])
def test_what_is_no_text(text):
    with pytest.raises(dred.ArgumentError) as caught:
        Reduction(text, GIVEN)
    assert str(caught.value) == f"a formula must be a text, got {type(text).__name__}"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Sum_Reduction(x, 0)", "Sum_Reduction"),
        ("Grad(Sum_Reduction(x, 0), x, e)", "Sum_Reduction"),
        ("1 + Sum_Reduction(x, 0)", "Sum_Reduction"),
        ("Oops_Reduction(x, 0)", "Oops_Reduction"),
    ],
)
def test_genred_takes_formulas_only(text, name):
    with pytest.raises(dred.ArgumentError) as caught:
        Genred(text, GIVEN)
    assert str(caught.value) == message_of(
        text,
        f"a formula contains no reduction, got {name}",
        name,
        "give the text to dred.Reduction, or to Genred the formula alone, with reduction_op and axis",
    )


# -- every reduction ---------------------------------------------------------------------------------------------------

TEXTS = {"F": "x * y", "K": "2", "G?": "b", "G": "b"}


def text_of(name, cat, leave_out=False):
    """A reduction, over F of dimension 3 where it may have so many components."""
    takes = REDUCTIONS[name]
    words = [w for w in takes.signature.split(", ") if not (leave_out and w.endswith("?"))]
    formula_of = TEXTS | {"F": "(x | y)" if takes.scalar else "x * y", "cat": str(cat)}
    return f"{name}_Reduction({', '.join(formula_of[w] for w in words)})"


def dense_results(name, x, y, b, cat, weighted):
    takes = REDUCTIONS[name]
    f = x[:, None] * y
    f = f.sum(-1, keepdims=True) if takes.scalar else f
    g = np.broadcast_to(b, (M, N, 1)) if weighted else None
    result = takes.numpy(f, g, 1 - cat, 2 if takes.parameter else None)
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("cat", [0, 1])
@pytest.mark.parametrize("name", [name for name, r in REDUCTIONS.items() if r.signature])
def test_every_reduction_as_a_text(name, cat):
    given = arrays()
    for leave_out in {False, "?" in REDUCTIONS[name].signature}:
        text = text_of(name, cat, leave_out)
        f, r = reduction(text, ALIASES)
        assert (r.name, r.cat, r.axis, r.saved) == (name, cat, 1 - cat, ())
        assert len(f.variables) == len(ALIASES)
        got = Reduction(text, ALIASES)(*given, backend="cpu")
        got = got if isinstance(got, tuple) else (got,)
        wanted = dense_results(name, *given[:3], cat, "G" in REDUCTIONS[name].signature and not leave_out)
        for one, other in zip(got, wanted, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-11)
        assert r.dim == wanted[0][0].size


@pytest.mark.parametrize("cat", [0, 1])
@pytest.mark.parametrize("name", [name for name, r in REDUCTIONS.items() if "" in r.pullbacks])
def test_derivatives_of_every_reduction_as_texts(name, cat):
    """<gradient, u> is <e, derivative in the direction u>, whether the result is passed or not."""
    given, text = arrays(), text_of(name, cat)
    _, r = reduction(text, ALIASES)
    e, u = cotangent(cat, r.dim), np.random.default_rng(7).normal(size=(N, 3))
    like = f"{('Vi', 'Vj')[cat]}({r.dim})"
    aliases = [*ALIASES, f"e = {like}", "u = Vj(3)", f"saved = {like}"]
    everything = [*given, e, u, np.full(e.shape, np.nan)]
    gradient = Reduction(f"Grad({text}, y, e)", aliases)(*everything, backend="cpu")
    tangent = Reduction(f"Diff({text}, y, u)", aliases)(*everything, backend="cpu")
    assert (gradient.shape, tangent.shape) == ((N, 3), e.shape)
    np.testing.assert_allclose((gradient * u).sum(), (tangent * e).sum(), rtol=1e-11, atol=1e-13)
    made, written = reduction(f"Grad({text}, y)", ALIASES), reduction(f"Grad({text}, y, e)", aliases[:-2])
    assert (made[0].variables, made[1]) == (written[0].variables, written[1])
    for kind, more in (("Grad", "e"), ("Diff", "u")):
        forward = reduction(f"{kind}_WithSavedForward({text}, y, {more}, saved)", aliases)[1]
        assert forward == reduction(f"{kind}({text}, y, {more})", aliases)[1]


def test_a_soft_gradient_by_hand():
    x, y, b, _ = given = arrays()
    e = cotangent(0)
    shares = np.exp(x @ y.T)
    shares /= shares.sum(1, keepdims=True)
    wanted = (e * shares)[..., None] * y
    text = "Grad(LogSumExp_Reduction((x | y), 0), x, e)"
    close(Reduction(text, [*ALIASES, "e = Vi(1)"])(*given, e), wanted.sum(1))
    wanted = (e * shares * (b.T - shares @ b))[..., None] * x[:, None]
    text = "Grad(SumSoftMaxWeight_Reduction((x | y), 0, b), y, e)"
    close(Reduction(text, [*ALIASES, "e = Vi(1)"])(*given, e), wanted.sum(0))


# -- the table decides -------------------------------------------------------------------------------------------------


@pytest.fixture
def table(monkeypatch):
    """Adds entries like those of reductions to come."""

    def add(name, **fields):
        monkeypatch.setitem(REDUCTIONS, name, dataclasses.replace(REDUCTIONS["Sum"], name=name, **fields))

    return add


def test_a_reduction_with_an_integer_parameter(table):
    table("Least", signature="F, K, cat", parameter="K")
    _, r = reduction("Least_Reduction(x, 4, 1)", GIVEN)
    assert (r.name, r.cat, r.axis, r.parameter, r.weight) == ("Least", 1, 0, 4, None)
    for text, message, hint in [
        ("Least_Reduction(x, 0)", "Least_Reduction takes 3 arguments, got 2",
         "it is Least_Reduction(F, K, cat): Least has no second formula G"),
        ("Least_Reduction(x, p, 0)", "argument 'K' of Least_Reduction must be an integer constant", ""),
        ("Least_Reduction(x, [3], 0)", "argument 'K' of Least_Reduction must be an integer constant", ""),
        ("Least_Reduction(x, 3/2, 0)", "argument 'K' of Least_Reduction must be an integer constant", ""),
        ("Least_Reduction(x, 0, 0)",
         "argument 'K' of Least_Reduction is 0: so many terms are kept, 1 ... 16777216", ""),
    ]:  # fmt: skip
        with pytest.raises(dred.ArgumentError) as caught:
            reduction(text, GIVEN)
        assert str(caught.value) == message_of(text, message, "Least_Reduction", hint)


def test_a_reduction_with_a_second_formula(table):
    table("Weighted", signature="F, cat, G?", monoid="exponentials")
    f, r = reduction("Weighted_Reduction(Sum(x), 0, y)", GIVEN)
    assert (r.cat, r.parameter, r.weight) == (0, None, formula("y", GIVEN).node)
    assert [str(v) for v in f.variables] == ["Vi(0,3)", "Vj(1,3)", "Pm(2,1)", "Vi(3,3)"]
    assert reduction("Weighted_Reduction(Sum(x), 0, Vj(4,2))", GIVEN)[0].variables[4] == Variable(4, 2, 1)
    assert reduction("Weighted_Reduction(Sum(x), 0)", GIVEN)[1].weight is None
    text = "Weighted_Reduction(Sum(x), 0, [1])"
    with pytest.raises(dred.ArgumentError) as caught:
        reduction(text, GIVEN)
    message = "argument 'G' of Weighted_Reduction must be a formula, got a list"
    assert str(caught.value) == message_of(text, message, "Weighted_Reduction", "")


@pytest.mark.parametrize("text", ["Grad({}, x, e)", "Grad({}, x)", "Diff({}, x, e)"])
def test_a_reduction_without_a_derivative(text, table):
    table("Least", pullbacks={})
    text = text.format("Least_Reduction(x, 0)")
    with pytest.raises(dred.DerivativeError) as caught:
        Reduction(text, GIVEN)
    hint = "its values only jump: they do not change where its terms change a little"
    assert str(caught.value) == message_of(text, "Least_Reduction has no derivative", text[:4], hint)


@pytest.mark.parametrize("cat", [0, 1])
def test_a_reduction_with_another_cotangent(cat, table, monkeypatch):
    """Its derivatives are those of the same reduction written as a sum."""
    square = dataclasses.replace(MONOIDS["sum"].fields[0], lift="F * F")
    monkeypatch.setitem(MONOIDS, "squares", dataclasses.replace(MONOIDS["sum"], fields=(square,), kahan=""))
    table("SumOfSquares", monoid="squares", pullbacks={"": ("2 * e * f", None)})
    given, e = arrays(), cotangent(cat)
    aliases = [*ALIASES, f"e = {COTANGENT[cat]}", "u = Pm(3)"]
    texts = ["Grad({}, x, e)", "Grad({}, p, e)", "Diff({}, y, u)", "Grad(Diff({}, y, u), b, e)"]
    for text in texts:
        squares = Reduction(text.format(f"SumOfSquares_Reduction({F}, {cat})"), aliases)
        sums = Reduction(text.format(f"Sum_Reduction(Square({F}), {cat})"), aliases)
        assert squares.axis == sums.axis
        close(squares(*given, e, np.ones(3)), sums(*given, e, np.ones(3)))
