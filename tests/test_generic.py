"""Generic reductions, whose output is declared like a variable."""

import inspect

import numpy as np
import pytest

import dred
from dred import (
    AliasError,
    DimensionError,
    Genred,
    OptionError,
    generic_argkmin,
    generic_argmin,
    generic_logsumexp,
    generic_sum,
)
from tests.reduction_cases import same

ALIASES = ("x = Vi(3)", "y = Vj(3)", "b = Vj(2)")
FUNCTIONS = [generic_sum, generic_logsumexp, generic_argmin, generic_argkmin]


@pytest.fixture
def given():
    rng = np.random.default_rng(0)
    return tuple(rng.normal(size=shape) for shape in ((11, 3), (13, 3), (13, 2)))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_signature_is_that_of_keops(function):
    assert str(inspect.signature(function)).startswith("(formula: 'str', output: 'str', *aliases: 'str', **options")
    assert function.__name__ in dred.__all__
    assert getattr(dred, function.__name__) is function


@pytest.mark.parametrize("axis", [1, 0])
@pytest.mark.parametrize(("function", "formula", "dim", "reduction", "more"), [
    (generic_sum, "Exp(-SqDist(x, y)) * b", 2, "Sum", {}),
    (generic_logsumexp, "-SqDist(x, y)", 1, "LogSumExp", {}),
    (generic_logsumexp, "x - y", 3, "LogSumExp", {}),
    (generic_argmin, "SqDist(x, y)", 1, "ArgMin", {}),
    (generic_argmin, "x * y", 3, "ArgMin", {}),
    (generic_argkmin, "SqDist(x, y)", 4, "ArgKMin", {"opt_arg": 4}),
    (generic_argkmin, "x * y", 2, "ArgKMin", {"opt_arg": 2}),
])  # fmt: skip
def test_the_output_says_axis_and_dimension(function, formula, dim, reduction, more, axis, given):
    output = f"a = {'Vi' if axis == 1 else 'Vj'}({dim})"
    routine = function(formula, output, *ALIASES)
    assert isinstance(routine, Genred)
    assert (routine.axis, routine.reduction_op, routine.aliases) == (axis, reduction, ALIASES)
    same(routine(*given), Genred(formula, ALIASES, reduction, axis, **more)(*given))


def test_outputs_without_a_name_and_with_a_position(given):
    same(generic_sum("x * y", "Vj(3)", *ALIASES)(*given), generic_sum("x * y", "a = Vj(7, 3)", *ALIASES)(*given))


def test_options_are_those_of_genred(given):
    routine = generic_sum("x * y", "a = Vi(3)", *ALIASES, dtype="float32", sum_scheme="kahan_scheme", cuda_type="float")
    assert routine.dtype == "float32"
    assert routine.spec("float32").parts[0].monoid == "sum_kahan"
    weighted = generic_logsumexp("-SqDist(x, y)", "a = Vi(2)", *ALIASES, formula2="Exp(b)")
    same(weighted(*given), Genred("-SqDist(x, y)", ALIASES, "LogSumExp", 1, formula2="Exp(b)")(*given))


THERE_ARE = (
    "there are dtype, opt_arg, formula2, cuda_type, dtype_acc, use_double_acc, sum_scheme, enable_chunks, "
    "rec_multVar_highdim, use_fast_math, expand"
)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(("option", "why"), [("axis", "it is said by the output"), ("reduction_op", THERE_ARE),
                                            ("dtypes", THERE_ARE)])  # fmt: skip
def test_other_options_are_refused(function, option, why):
    with pytest.raises(OptionError) as caught:
        function("SqDist(x, y)", "a = Vi(1)", *ALIASES, **{option: 1})
    assert str(caught.value) == f"{function.__name__} takes no option {option!r}: {why}"


def test_k_is_said_by_the_output():
    with pytest.raises(OptionError) as caught:
        generic_argkmin("SqDist(x, y)", "a = Vi(3)", *ALIASES, opt_arg=3)
    assert str(caught.value) == "generic_argkmin takes no option 'opt_arg': it is said by the output"
    with pytest.raises(OptionError, match="opt_arg=3: the reduction Sum takes none, leave it out"):
        generic_sum("SqDist(x, y)", "a = Vi(1)", *ALIASES, opt_arg=3)


@pytest.mark.parametrize(
    ("function", "output", "error", "message"),
    [
        (generic_sum, "a = Pm(3)", AliasError, "the output of generic_sum has a row for each i or j, a parameter has "
         "none\n    a = Pm(3)\n    ^^^^^^^^^\nwrite Vi(dim) for one row per i, Vj(dim) for one row per j"),
        (generic_argmin, "a", AliasError,
         "this alias cannot be read\n    a\n    ^\nan alias is 'name = Vi(dim)', with Vi, Vj or Pm"),
        (generic_argmin, 3, AliasError, 'aliases must be a list of texts\nfor example ["x = Vi(3)", "y = Vj(3)"]'),
        (generic_argkmin, "a = Vi(0)", AliasError,
         "dimension 0 is outside 1 ... 1000000\n    a = Vi(0)\n    ^^^^^^^^^"),
        (generic_sum, "a = Vi(3)", DimensionError,
         "the output has dimension 3, the result 1\n    a = Vi(3)\n    ^^^^^^^^^"),
        (generic_logsumexp, "a = Vj(2)", DimensionError,
         "the output has dimension 2, the result 1\n    a = Vj(2)\n    ^^^^^^^^^"),
    ],
    ids=lambda v: getattr(v, "__name__", str(v).split("\n")[0]),
)  # fmt: skip
def test_outputs_that_are_refused(function, output, error, message):
    with pytest.raises(error) as caught:
        function("SqDist(x, y)", output, *ALIASES)
    assert str(caught.value) == message
