"""Genred on NumPy arrays: KeOps' signature, every option, every kind of array, every refusal before anything runs."""

import dataclasses
import inspect
import pickle

import dask
import numpy as np
import pytest

import dred
from dred import BackendError, DredError, DtypeError, Genred, InputError, OptionError
from dred.formula.language import formula, suggestion
from dred.formula.oracle import dense
from dred.kernel import cpu, cpu_schedule, cuda, engine
from dred.kernel.spec import CHAIN
from dred.reductions import MONOIDS, REDUCTIONS, Result
from tests.reduction_cases import CASES, arrays_of, check, listed, reference, routine_of, same

TEXT = "Square(p - a) * Exp(x + y)"
ALIASES = ["x = Vi(3)", "y = Vj(3)", "a = Vj(1)", "p = Pm(1)"]
M, N = 30, 50
RTOL = {"float32": 1e-5, "float64": 1e-12}


def arrays(M=M, N=N, dtype="float64", seed=0):
    rng = np.random.default_rng(seed)
    return tuple(rng.uniform(-1, 1, shape).astype(dtype) for shape in ((M, 3), (N, 3), (N, 1), (1,)))


def by_hand(x, y, a, p, axis=1):
    x, y, a, p = (np.asarray(v, np.float64) for v in (x, y, a, p))
    return ((p - a) ** 2 * np.exp(x[:, None, :] + y[None, :, :])).sum(axis)


# -- the signature -----------------------------------------------------------------------------------------------------


def signature(function):
    return [(p.name, p.default) for p in inspect.signature(function).parameters.values() if p.name != "self"]


def test_the_signature_is_that_of_keops():
    none = inspect.Parameter.empty
    assert signature(Genred.__init__) == [
        ("formula", none), ("aliases", none), ("reduction_op", "Sum"), ("axis", 0), ("dtype", None), ("opt_arg", None),
        ("formula2", None), ("cuda_type", None), ("dtype_acc", "auto"), ("use_double_acc", False),
        ("sum_scheme", "auto"), ("enable_chunks", True), ("rec_multVar_highdim", False), ("use_fast_math", False),
        ("expand", False),
    ]  # fmt: skip
    assert signature(Genred.__call__) == [
        ("args", none), ("backend", "auto"), ("device_id", -1), ("ranges", None), ("out", None),
    ]  # fmt: skip
    kinds = [p.kind.name for p in inspect.signature(Genred.__call__).parameters.values()]
    assert kinds == ["POSITIONAL_OR_KEYWORD", "VAR_POSITIONAL"] + ["KEYWORD_ONLY"] * 4
    assert {p.kind.name for p in inspect.signature(Genred.__init__).parameters.values()} == {"POSITIONAL_OR_KEYWORD"}


def test_public_names():
    assert all(hasattr(dred, name) for name in dred.__all__)
    assert all(issubclass(e, DredError) for name, e in vars(dred).items() if name.endswith("Error"))


def test_names_that_are_nowhere():
    with pytest.raises(AttributeError, match="module 'dred' has no attribute 'LazyTensors'"):
        dred.LazyTensors  # noqa: B018
    assert not hasattr(dred, "no_such_name")


# -- values ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("M", "N"), [(30, 50), (1, 1), (1, 700), (700, 1), (257, 33), (300, 500)])
def test_the_tutorial_agrees_with_numpy(M, N, axis, dtype):
    given = arrays(M, N, dtype)
    got = Genred(TEXT, ALIASES, axis=axis)(*given)
    wanted = by_hand(*given, axis=axis)
    assert type(got) is np.ndarray
    assert got.dtype == dtype
    assert got.shape == wanted.shape
    assert got.flags.c_contiguous
    assert got.flags.writeable
    np.testing.assert_allclose(got, wanted, rtol=RTOL[dtype])


def test_axis_0_is_the_default():
    given = arrays()
    np.testing.assert_array_equal(Genred(TEXT, ALIASES)(*given), Genred(TEXT, ALIASES, axis=0)(*given))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(
    "text",
    [
        "x + y",
        "Exp(-SqDist(x, y)) * a",
        "Norm2(x - y)",
        "(x | y) / (1 + Square(a))",
        "Concat(x, y) * p",
        "Sum(x)",
        "a",
        "p",
        "3",
        "(x < y) * a",
        "Elem(x, 1) * Extract(y, 1, 2)",
        "1 / 3 * x",
        "Grad(Exp(-SqDist(x, y)) * a, x, p)",
        "Grad(Exp(-SqDist(x, y)) * a, y, p)",
        "Grad(Exp(-SqDist(x, y)) * p, p, Sum(x))",
    ],
)
def test_formulas_agree_with_the_oracle(text, axis, dtype):
    given = arrays(dtype=dtype)
    got = Genred(text, ALIASES, axis=axis)(*given, backend="cpu")
    pairs = dense(formula(text, ALIASES).node, given)
    pairs = np.broadcast_to(pairs, (M, N, pairs.shape[-1]))
    assert got.shape == pairs.sum(axis).shape
    error = np.abs(got - pairs.sum(axis)) / np.abs(pairs).sum(axis).clip(1e-30)
    assert error.max() < RTOL[dtype]


def test_inputs_that_the_formula_does_not_read_count():
    x, y = np.arange(4.0)[:, None], np.zeros((7, 2))
    np.testing.assert_array_equal(Genred("x", ["x = Vi(1)", "y = Vj(2)"], axis=1)(x, y), 7 * x)
    np.testing.assert_array_equal(Genred("x", ["x = Vi(1)", "y = Vj(2)"], axis=0)(x, y), np.full((7, 1), 6.0))


def test_without_a_category_there_is_one_row():
    x = np.arange(4.0)[:, None]
    np.testing.assert_array_equal(Genred("x", ["x = Vi(1)"], axis=1)(x), x)
    np.testing.assert_array_equal(Genred("x", ["x = Vi(1)"], axis=0)(x), [[6.0]])
    np.testing.assert_array_equal(Genred("x", ["x = Vj(1)"], axis=1)(x), [[6.0]])
    np.testing.assert_array_equal(Genred("p", ["p = Pm(2)"])(np.array([1.0, 2.0])), [[1.0, 2.0]])
    np.testing.assert_array_equal(Genred("1/2", [])(), [[0.5]])


def test_variables_written_in_the_formula():
    x, y = np.ones((3, 2)), np.ones((4, 2))
    np.testing.assert_array_equal(Genred("Vi(0,2) + Vj(1,2)", [], axis=1)(x, y), np.full((3, 2), 8.0))


@pytest.mark.parametrize("axis", [0, 1])
def test_empty_sets_of_points(axis):
    for rows in ((0, 5), (5, 0), (0, 0)):
        got = Genred(TEXT, ALIASES, axis=axis)(*arrays(*rows))
        np.testing.assert_array_equal(got, np.zeros((rows[1 - axis], 3)))
        assert got.dtype == "float64"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nan_and_infinities_propagate(value, axis, dtype):
    x, y, a, p = arrays(dtype=dtype)
    x[3, 1] = value
    a[5, 0] = value
    with np.errstate(all="ignore"):
        wanted = by_hand(x, y, a, p, axis)
    np.testing.assert_allclose(Genred(TEXT, ALIASES, axis=axis)(x, y, a, p, backend="cpu"), wanted, rtol=RTOL[dtype])


# -- every reduction ---------------------------------------------------------------------------------------------------


def test_every_reduction_has_cases():
    assert {case.reduction_op for case in CASES} == {*REDUCTIONS}


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_reduction_agrees_with_its_reference(case, dtype, axis):
    routine = routine_of(case, axis)
    for M, N in ((11, 13), (1, 1), (0, 5), (5, 0), (70, 300)):
        given = arrays_of(M, N, dtype)
        got = routine(*given, backend="cpu")
        check(got, case, axis, given)
        assert all(type(a) is np.ndarray and a.flags.c_contiguous and a.flags.writeable for a in listed(got))
    assert isinstance(got, tuple) == ("_Arg" in case.reduction_op)


@pytest.mark.parametrize("result", ["-m", "m + 1", "m * 2"])
def test_a_wrong_entry_is_found(result, monkeypatch):
    monkeypatch.setitem(REDUCTIONS, "Max", dataclasses.replace(REDUCTIONS["Max"], results=(Result((result,)),)))
    (case,) = (case for case in CASES if case.reduction_op == "Max")
    given = arrays_of(11, 13)
    with pytest.raises(AssertionError):
        check(routine_of(case, 1)(*given, backend="cpu"), case, 1, given)


SPECIAL = [case for case in CASES if MONOIDS[REDUCTIONS[case.reduction_op].monoid].fields[0].kind == "value"]


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("case", [c for c in SPECIAL if "Exp" not in c.reduction_op and "Soft" not in c.reduction_op],
                         ids=str)  # fmt: skip
def test_nan_is_passed_over_and_infinities_are_terms(case, axis):
    x, y, b = arrays_of(12, 14, seed=1)
    x[2], y[3] = np.nan, np.nan
    x[5, 0], y[6, 1], y[7] = np.inf, -np.inf, -np.inf
    wanted = reference(case, axis, (x, y, b))
    for got, want in zip(listed(routine_of(case, axis)(x, y, b, backend="cpu")), wanted, strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_of_minus_infinity_are_no_terms_of_a_soft_maximum(dtype):
    x, y, b = arrays_of(6, 9, dtype)
    y[2:5] = -np.inf
    x = np.abs(x) + 1
    for name, g in (
        ("LogSumExp", None),
        ("LogSumExpWeight", "b"),
        ("SumSoftMaxWeight", "b"),
        ("Max_SumShiftExp", None),
    ):
        routine = Genred("Sum(x) + Sum(y)", ["x = Vi(2)", "y = Vj(2)", "b = Vj(3)"], name, 1, formula2=g)
        keep = np.r_[0:2, 5:9]
        got, want = routine(x, y, b, backend="cpu"), routine(x, y[keep], b[keep], backend="cpu")
        np.testing.assert_allclose(got, want, rtol=1e-5 if dtype == "float32" else 1e-12, equal_nan=True)
    none = Genred("Sum(x) + Sum(y)", ["x = Vi(2)", "y = Vj(2)"], "LogSumExp", 1)
    assert (none(x, np.full_like(y, -np.inf), backend="cpu") == -np.inf).all()


def test_check_values():
    """Those of the reductions over (3, 1, 1, 2, 3) and over (NaN, 5, NaN, 2)."""

    def over(values, name, *more):
        return Genred("y", ["y = Vj(1)"], name, 1, None, *more)(np.array(values)[:, None], backend="cpu")

    values = [3.0, 1.0, 1.0, 2.0, 3.0]
    assert [a.item() for a in over(values, "Min_ArgMin")] == [1, 1]
    assert [a.item() for a in over(values, "Max_ArgMax")] == [3, 0]
    assert [a.tolist() for a in over(values, "KMin_ArgKMin", 3)] == [[[1, 1, 2]], [[1, 2, 3]]]
    assert over(values, "ArgKMin", 7).tolist() == [[1, 2, 3, 0, 4, -1, -1]]
    np.testing.assert_allclose(over(values, "Max_SumShiftExp"), [[3, 2.638550]], rtol=1e-6)
    np.testing.assert_allclose(over(values, "Max_SumShiftExpWeight", None, "y"), [[3, 7.006429]], rtol=1e-6)
    holes = [np.nan, 5.0, np.nan, 2.0]
    assert [a.tolist() for a in over(holes, "KMin_ArgKMin", 3)] == [[[2, 5, np.inf]], [[3, 1, -1]]]
    assert [a.item() for a in over(holes[::2], "Min_ArgMin")] == [np.inf, -1]
    assert over([0.0, np.nan], "Any").tolist() == [[True]]
    assert over([1.0, np.nan], "All").tolist() == [[True]]
    assert over([0.0, 1.0, np.nan], "Count").tolist() == [[2]]


# -- gradients ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("text", [TEXT, "Exp(-p * SqDist(x, y)) * a", "Norm2(x - y) * a + p"])
def test_gradients_are_those_of_finite_differences(text, axis):
    """Of <e, Genred(text)> by x, y and a in a random direction, each as a Genred over the other index."""
    given = arrays()
    routine = Genred(text, ALIASES, axis=axis)
    rng = np.random.default_rng(1)
    e = rng.normal(size=routine(*given).shape)
    kept = "Vi" if axis == 1 else "Vj"
    aliases = [*ALIASES, f"e = {kept}({routine.dim})"]
    for place, (name, category) in enumerate((("x", 0), ("y", 1), ("a", 1))):
        direction = rng.normal(size=given[place].shape)
        step = 1e-5

        def value(t, place=place, direction=direction):
            moved = [v + t * direction if k == place else v for k, v in enumerate(given)]
            return (routine(*moved) * e).sum()

        wanted = (value(step) - value(-step)) / (2 * step)
        gradient = Genred(f"Grad({text}, {name}, e)", aliases, axis=1 - category)(*given, e)
        assert gradient.shape == given[place].shape
        np.testing.assert_allclose((gradient * direction).sum(), wanted, rtol=1e-7)


def test_the_gradient_of_the_tutorial():
    x, y, a, p = arrays()
    e = np.random.default_rng(2).normal(size=(M, 3))
    got = Genred(f"Grad({TEXT}, y, e)", [*ALIASES, "e = Vi(3)"], axis=0)(x, y, a, p, e)
    wanted = ((p - a) ** 2 * np.exp(x[:, None, :] + y[None, :, :]) * e[:, None, :]).sum(0)
    np.testing.assert_allclose(got, wanted, rtol=1e-12)


# -- accuracy and accumulation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1])
def test_a_million_equal_terms(axis):
    terms = np.full((1_000_000, 1), 0.1, np.float32)
    category = "Vj" if axis == 1 else "Vi"
    got = Genred("x", [f"x = {category}(1)"], axis=axis)(terms, backend="cpu").item()
    exact = 1e6 * float(np.float32(0.1))
    assert abs(got - exact) <= 1e-6 * exact


@pytest.fixture
def in_order(monkeypatch):
    """Terms are added one after the other: lanes are rows, and columns are not split."""
    monkeypatch.setattr(cpu_schedule, "FEW", 0)
    monkeypatch.setattr(cpu, "_sizes", cpu._sizes.__wrapped__)  # nothing of that is remembered
    monkeypatch.setattr(cpu_schedule, "UNITS", 1)


@pytest.mark.parametrize("scheme", ["auto", "block_sum", "direct_sum"])
def test_the_type_of_the_accumulator_is_obeyed(scheme, in_order):
    """2^24 and ones: float32 cannot count on from there, float64 can."""
    terms = np.ones((10_000, 1), np.float32)
    terms[0] = 2.0**24

    def total(**options):
        return Genred("x", ["x = Vj(1)"], axis=1, sum_scheme=scheme, **options)(terms, backend="cpu").item()

    exact = float(np.float32(2.0**24 + 9_999))
    lost_in_first_chain = 31 if scheme != "direct_sum" else 0
    for options in ({}, {"dtype_acc": "auto"}, {"dtype_acc": "float64"}, {"use_double_acc": True}):
        assert abs(total(**options) - exact) <= lost_in_first_chain + 2
    terms = np.full((100_000, 1), 0.1, np.float32)
    wide, narrow = total() / 1e4 - 1, total(dtype_acc=np.float32) / 1e4 - 1
    assert abs(wide) < 1e-6
    assert 2e-6 < abs(narrow) < 2e-4


def test_direct_sum_adds_every_term_to_the_accumulator(in_order):
    terms = np.ones((10_000, 1), np.float32)
    terms[0] = 2.0**24
    direct = Genred("x", ["x = Vj(1)"], axis=1, sum_scheme="direct_sum", dtype_acc="float32")
    assert direct(terms, backend="cpu").item() == 2.0**24
    double = Genred("x", ["x = Vj(1)"], axis=1, sum_scheme="direct_sum")
    assert double(terms, backend="cpu").item() == np.float32(2.0**24 + 9_999)


@pytest.mark.parametrize("scheme", ["block_sum", "direct_sum"])
@pytest.mark.parametrize(
    "text",
    [
        "Exp(-SqDist(x, y))*b",
        "Grad(Exp(-SqDist(x, y))*b, x, b)",
        "x*y",
        "Sum(x)*Sum(y)",
        "(x + SqNorm2(x))*(y - Sum(y*y))",
    ],
)
@pytest.mark.parametrize("D", [1, 8, 9, 40])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_scheme_sums_long_vectors(scheme, text, D, dtype):
    f = formula(text, aliases := [f"x = Vi({D})", f"y = Vj({D})", "b = Vj(1)"])
    rng = np.random.default_rng(D)
    given = [
        rng.uniform(-1, 1, (n, v.dim)).astype(dtype) / D**0.5 for n, v in zip((21, 67, 67), f.variables, strict=True)
    ]
    terms = np.broadcast_to(dense(f.node, given), (21, 67, f.node.dim))
    got = Genred(text, aliases, axis=1, sum_scheme=scheme)(*given, backend="cpu")
    assert np.abs(got - terms.sum(1)).max() <= (2e-6 if dtype == "float32" else 1e-14) * np.abs(terms).sum(1).max()


# -- backends ----------------------------------------------------------------------------------------------------------


def test_without_llvm_the_interpreter_serves_with_a_notice(monkeypatch):
    given = arrays()
    expected = Genred(TEXT, ALIASES)(*given, backend="cpu")
    monkeypatch.setattr(cpu, "available", lambda: False)
    engine._llvm.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="llvmlite is not installed: dred computes with NumPy") as caught:
            got = Genred(TEXT, ALIASES)(*given, backend="cpu")
        assert caught[0].filename == __file__
        np.testing.assert_allclose(got, expected, rtol=1e-12)
        spec = Genred(TEXT, ALIASES).spec(given[0].dtype)
        with pytest.raises(dred.BackendError) as refused:  # what a plan has chosen is honoured or refused
            engine.fold(spec, "cpu", engine.empty(spec, 1), given, 1, 1)
        assert str(refused.value) == (
            "backend 'cpu' needs llvmlite, which cannot be imported here: pip install llvmlite"
        )
    finally:
        engine._llvm.cache_clear()


def test_the_configured_backend_is_what_auto_means():
    given = arrays()
    with dask.config.set({"dred.backend": "cuda"}):
        with pytest.raises(dred.BackendError, match="backend='cuda' needs an NVIDIA GPU"):
            Genred(TEXT, ALIASES)(*given)
        Genred(TEXT, ALIASES)(*given, backend="cpu")
    with dask.config.set({"dred.backend": "abacus"}), pytest.raises(dred.BackendError) as caught:
        Genred(TEXT, ALIASES)(*given)
    assert str(caught.value) == (
        "unknown backend 'abacus': it is one of auto, cpu, cuda (GPU, GPU_1D and GPU_2D mean cuda)"
    )


def test_a_constant_beyond_the_compute_type_is_refused():
    routine = Genred("1e39*x", ["x = Vi(1)"])
    assert routine(np.ones((1, 1)))[0, 0] == 1e39
    with pytest.raises(dred.LimitError) as caught:
        routine(np.ones((1, 1), np.float32))
    assert str(caught.value) == (
        "a constant of the formula is beyond the largest float32, 3.4e+38\n    1e39*x\n    ^^^^^^"
    )


# -- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64", np.float32, np.dtype("float64"), "f4", "double"])
def test_dtype_is_obeyed(dtype):
    given = arrays(dtype=dtype)
    assert Genred(TEXT, ALIASES, dtype=dtype)(*given).dtype == np.dtype(dtype)


@pytest.mark.parametrize(
    "options",
    [{"cuda_type": "float"}, {"cuda_type": 7}, {"enable_chunks": False}, {"rec_multVar_highdim": True},
     {"rec_multVar_highdim": 1}],
    ids=str,
)  # fmt: skip
def test_options_without_effect(options):
    given = arrays()
    np.testing.assert_array_equal(Genred(TEXT, ALIASES, **options)(*given), Genred(TEXT, ALIASES)(*given))


KNOWN = suggestion("zzz", [*REDUCTIONS])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduction_op": "Summ"}, "unknown reduction 'Summ': did you mean 'Sum'?"),
        ({"reduction_op": "LogSumExpWeigth"}, "unknown reduction 'LogSumExpWeigth': did you mean 'LogSumExpWeight'?"),
        ({"reduction_op": "argkmin"}, "unknown reduction 'argkmin': did you mean 'ArgKMin'?"),
        ({"reduction_op": "zzz"}, f"unknown reduction 'zzz': {KNOWN}"),
        ({"reduction_op": None}, f"unknown reduction None: {KNOWN}"),
        ({"axis": 2}, "axis=2: it is 0 (reduce over i) or 1 (reduce over j)"),
        ({"axis": -1}, "axis=-1: it is 0 (reduce over i) or 1 (reduce over j)"),
        ({"axis": True}, "axis=True: it is 0 (reduce over i) or 1 (reduce over j)"),
        ({"axis": None}, "axis=None: it is 0 (reduce over i) or 1 (reduce over j)"),
        ({"dtype": "float8"}, "dtype='float8': it is bfloat16, float16, float32 or float64"),
        ({"dtype": "int64"}, "dtype='int64': it is bfloat16, float16, float32 or float64"),
        ({"dtype": "single precision"}, "dtype='single precision': it is bfloat16, float16, float32 or float64"),
        ({"dtype": ">f4"}, "dtype='>f4': it is bfloat16, float16, float32 or float64"),
        ({"dtype_acc": "float16"}, "dtype_acc='float16': it is float32 or float64"),
        ({"dtype": "float64", "dtype_acc": "float32"},
         "dtype_acc='float32' is narrower than the arrays' type float64: use 'auto' or 'float64'"),
        ({"dtype_acc": "float32", "use_double_acc": True},
         "use_double_acc=True contradicts dtype_acc='float32': give one of them"),
        ({"sum_scheme": "fast"},
         "sum_scheme='fast' is unknown: it is one of auto, block_sum, direct_sum, kahan_scheme"),
        ({"use_fast_math": "no"}, "use_fast_math='no': it is True or False"),
        ({"use_double_acc": 1}, "use_double_acc=1: it is True or False"),
        ({"axis": 1.0}, "axis=1.0: it is 0 (reduce over i) or 1 (reduce over j)"),
        ({"reduction_op": ["Sum"]}, f"unknown reduction ['Sum']: {KNOWN}"),
        ({"sum_scheme": ["auto"]},
         "sum_scheme=['auto'] is unknown: it is one of auto, block_sum, direct_sum, kahan_scheme"),
        ({"dtype_acc": None}, "dtype_acc=None: it is float32 or float64"),
    ],
    ids=str,
)  # fmt: skip
def test_options_that_are_refused(options, message):
    with pytest.raises(OptionError) as caught:
        Genred(TEXT, ALIASES, **options)
    assert str(caught.value) == message
    assert str(pickle.loads(pickle.dumps(caught.value))) == message


EDGES = "at least 2 increasing numbers such as [0, 0.5, 1]"
BAD_PARAMETERS = [  # reduction, options, message
    ("Sum", {"opt_arg": 3}, "opt_arg=3: the reduction Sum takes none, leave it out"),
    ("Min", {"opt_arg": 0}, "opt_arg=0: the reduction Min takes none, leave it out"),
    ("Sum", {"formula2": "x"}, "formula2='x': the reduction Sum takes none, leave it out"),
    ("Max_SumShiftExp", {"formula2": "x"}, "formula2='x': the reduction Max_SumShiftExp takes none, leave it out"),
    *(("ArgKMin", {"opt_arg": K},
       f"opt_arg={K!r}: ArgKMin keeps K terms, and K must be given as an integer of 1 or more")
      for K in (None, 0, -1, 2.0, True, "3", [1])),
    ("KMax", {"opt_arg": 10**6},
     "opt_arg=1000000: so many terms of dimension 3 are a row of 3000000 numbers, the limit is 1000000"),
    *(("Variance", {"opt_arg": ddof},
       f"opt_arg={ddof!r}: of n terms, Variance divides by n - opt_arg, an integer of 0 (the default) to 16777216")
      for ddof in (-1, 1.0, False, "1")),
    *(("Histogram", {"opt_arg": edges}, f"opt_arg={edges!r}: Histogram needs the edges of its bins, {EDGES}")
      for edges in (None, 10, [1.0], [], "01", [[0, 1], [1, 2]], [0, None], [[0], [1, 2]], [True, False], [0, 1j])),
    ("Histogram", {"opt_arg": [0, 1, np.inf]},
     "opt_arg: edge 2 of Histogram is inf: edges of bins are finite numbers"),
    ("Histogram", {"opt_arg": [0, np.nan]}, "opt_arg: edge 1 of Histogram is nan: edges of bins are finite numbers"),
    ("Histogram", {"opt_arg": [0, 1, 1]},
     "opt_arg: the edges of Histogram must increase, but edge 1 is 1.0 and edge 2 is 1.0"),
    ("Histogram", {"opt_arg": [0, 2, 1.5]},
     "opt_arg: the edges of Histogram must increase, but edge 1 is 2.0 and edge 2 is 1.5"),
    ("SumSoftMaxWeight", {}, "formula2=None: the reduction SumSoftMaxWeight needs a second formula G: "
     "mean of G with the weights exp(F)"),
    ("Min", {"sum_scheme": "kahan_scheme"},
     "sum_scheme='kahan_scheme': Min has no compensated sum, leave it at 'auto'"),
    ("Min", {"sum_scheme": "direct_sum"}, "sum_scheme='direct_sum': Min has no sum, leave it at 'auto'"),
    ("Count", {"sum_scheme": "block_sum"}, "sum_scheme='block_sum': Count has no sum of blocks, leave it at 'auto'"),
    ("Prod", {"sum_scheme": "block_sum"}, "sum_scheme='block_sum': Prod has no sum of blocks, leave it at 'auto'"),
    ("Variance", {"sum_scheme": "kahan_scheme"},
     "sum_scheme='kahan_scheme': Variance has no compensated sum, leave it at 'auto'"),
    ("ArgMax", {"dtype_acc": "float64"}, "dtype_acc='float64': ArgMax has no sum, leave it at 'auto'"),
    ("Any", {"use_double_acc": True}, "use_double_acc=True: Any has no sum, leave it at False"),
]  # fmt: skip


@pytest.mark.parametrize(("reduction", "options", "message"), BAD_PARAMETERS, ids=str)
def test_parameters_that_are_refused(reduction, options, message):
    with pytest.raises(OptionError) as caught:
        Genred(TEXT, ALIASES, reduction, **options)
    assert str(caught.value) == message
    assert str(pickle.loads(pickle.dumps(caught.value))) == message


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("x", "SumSoftMaxWeight", None, "y"), "SumSoftMaxWeight takes a formula of dimension 1, got 3\n    x\n    ^\n"
         "Elem(F, m) takes a component, Sum(F) adds them up"),
        (("x + y", "Histogram", [0, 1]), "Histogram takes a formula of dimension 1, got 3\n    x + y\n    ^^^^^\n"
         "Elem(F, m) takes a component, Sum(F) adds them up"),
        (("a", "Histogram", [0, 1], "x"),
         "the formula of Histogram has dimension 1, G 3: it must be 1\n    x\n    ^"),
        (("x", "LogSumExp", None, "Concat(y, a)"),
         "the formula of LogSumExp has dimension 3, G 4: it must be 1 or 3\n    Concat(y, a)\n    ^^^^^^^^^^^^"),
    ],
    ids=str,
)  # fmt: skip
def test_dimensions_that_do_not_fit(given, message):
    formula, reduction, *more = given
    options = dict(zip(("opt_arg", "formula2"), more, strict=False))
    with pytest.raises(dred.DimensionError) as caught:
        Genred(formula, ALIASES, reduction, **options)
    assert str(caught.value) == message
    with pytest.raises(dred.DimensionError) as caught:
        Genred([given], ALIASES)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "edges", [[0, 1, 2], (0.0, 1.0, 2.0), np.array([0, 1, 2]), np.array([0, 1, 2], "float32"), range(3)], ids=repr
)
def test_ways_to_write_edges(edges):
    x = np.array([[0.0], [1.0], [1.5], [2.0], [2.5], [-1.0], [np.nan]])
    assert Genred("x", ["x = Vi(1)"], "Histogram", opt_arg=edges)(x, backend="cpu").tolist() == [[1, 3]]


@pytest.mark.parametrize("K", [2, np.int64(2)])
def test_ways_to_write_a_number(K):
    x = np.arange(5.0)[:, None]
    assert Genred("x", ["x = Vi(1)"], "KMin", opt_arg=K)(x, backend="cpu").tolist() == [[0, 1]]
    assert Genred("x", ["x = Vi(1)"], "Variance", opt_arg=K)(x, backend="cpu").item() == 10 / 3


@pytest.mark.parametrize("scheme", ["auto", "block_sum", "direct_sum", "kahan_scheme"])
def test_schemes_choose_chains_and_monoids(scheme):
    wanted = {"direct_sum": (1, ""), "kahan_scheme": (1, "_kahan")}.get(scheme, (CHAIN, ""))
    for name, options in {"Sum": {}, "Mean": {}, "LogSumExp": {}, "SoftMax": {"formula2": "x"}}.items():
        spec = Genred("Sum(x)", ALIASES, name, sum_scheme=scheme, **options).spec("float32")
        assert (spec.chain, spec.parts[0].monoid) == (wanted[0], REDUCTIONS[name].monoid + wanted[1])


def test_compensated_sums_are_better(in_order):
    terms = np.full((100_000, 1), 0.1, np.float32)

    def error(scheme):
        routine = Genred("x", ["x = Vj(1)"], axis=1, sum_scheme=scheme, dtype_acc="float32")
        return abs(routine(terms, backend="cpu").item() / (100_000 * float(np.float32(0.1))) - 1)

    assert error("direct_sum") > 1e-5
    assert error("kahan_scheme") < 1e-7


def test_the_second_formula_reads_the_same_variables():
    x, y = np.random.default_rng(0).normal(size=(2, 20, 1))
    named = Genred("x * y", ["x = Vi(1)", "y = Vj(1)"], "SumSoftMaxWeight", 1, formula2="y")
    written = Genred("Vi(0, 1) * Vj(1, 1)", [], "SumSoftMaxWeight", 1, formula2="Vj(1, 1)")
    more = Genred("x * Vj(1, 1)", ["x = Vi(1)"], "SumSoftMaxWeight", 1, formula2="Vj(2, 1)")
    same(written(x, y, backend="cpu"), named(x, y, backend="cpu"))
    same(more(x, y, y, backend="cpu"), named(x, y, backend="cpu"))
    with pytest.raises(dred.VariableError) as caught:
        Genred("Vi(0, 1)", [], "LogSumExp", 1, formula2="Vj(0, 1) + 2")
    assert str(caught.value) == (
        "position 0 is declared as i-variable of dimension 1 and as j-variable of dimension 1\n"
        "    Vj(0, 1) + 2\n    ^^^^^^^^^^^^"
    )


def test_errors_of_the_second_formula_show_it():
    with pytest.raises(dred.UnknownNameError) as caught:
        Genred("Sum(x)", ALIASES, "SoftMax", formula2="Expp(y)")
    assert str(caught.value) == "unknown operation 'Expp'\n    Expp(y)\n    ^^^^\ndid you mean 'Exp'?"
    with pytest.raises(dred.LimitError) as caught:
        Genred("Sum(x)", ALIASES, "SoftMax", formula2="1e39*y", dtype="float32")
    assert str(caught.value) == (
        "a constant of the formula is beyond the largest float32, 3.4e+38\n    1e39*y\n    ^^^^^^"
    )
    with pytest.raises(dred.ArgumentError) as caught:
        Genred("Sum(x)", ALIASES, "SoftMax", formula2=3)
    assert str(caught.value) == "a formula must be a text, got int"


def test_infinite_constants_of_tables_are_no_constants_of_users():
    """`low` and the like: only numbers that a user wrote are too large for a type."""
    e = np.ones((2, 1), np.float32)
    x, y = np.zeros((2, 1), np.float32), np.array([[0], [-np.inf]], np.float32)
    got = dred.Reduction("Grad(LogSumExp_Reduction(x + y, 0), x, e)", ["x=Vi(1)", "y=Vj(1)", "e=Vi(1)"])(
        x, y, e, backend="cpu"
    )
    assert got.tolist() == [[1], [1]]


def test_a_bad_formula_is_refused_when_the_routine_is_made():
    with pytest.raises(dred.UnknownNameError) as caught:
        Genred("Expp(x)", ["x = Vi(3)"])
    assert str(caught.value) == "unknown operation 'Expp'\n    Expp(x)\n    ^^^^\ndid you mean 'Exp'?"


def test_the_list_of_aliases_is_not_modified():
    aliases = list(ALIASES)
    Genred("Vj(4, 1) * x", aliases)
    assert aliases == ALIASES


def test_a_routine_says_what_it_is_and_travels():
    routine = Genred(TEXT, ALIASES, axis=1, dtype="float32")
    assert repr(routine) == f"Genred({TEXT!r}, {ALIASES!r}, 'Sum', axis=1)"
    assert (routine.formula, routine.aliases, routine.axis, routine.dtype, routine.dim) == (
        TEXT, tuple(ALIASES), 1, "float32", 3)  # fmt: skip
    keeps = Genred("Sum(x)", ALIASES, "LogSumExp", 1, formula2="y")
    assert repr(keeps) == f"Genred('Sum(x)', {ALIASES!r}, 'LogSumExp', axis=1, formula2='y')"
    assert repr(Genred("x", ALIASES, "KMin", opt_arg=3)) == f"Genred('x', {ALIASES!r}, 'KMin', axis=0, opt_arg=3)"
    again = pickle.loads(pickle.dumps(routine))
    assert again.spec("float32") == routine.spec("float32")
    given = arrays(dtype="float32")
    np.testing.assert_array_equal(again(*given), routine(*given))


# -- arrays ------------------------------------------------------------------------------------------------------------


def unaligned(a):
    room = np.zeros(a.nbytes + 1, np.uint8)[1:]
    out = np.frombuffer(room, a.dtype).reshape(a.shape)
    out[...] = a
    return out


def read_only(a):
    out = a.copy()
    out.flags.writeable = False
    return out


class Subclass(np.ndarray):
    def __getitem__(self, key):
        raise AssertionError("subclasses are not asked")


LAYOUTS = {
    "Fortran": np.asfortranarray,
    "read-only": read_only,
    "every other row": lambda a: np.repeat(a, 2, axis=0)[::2],
    "every other column": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "backwards": lambda a: np.ascontiguousarray(a[::-1])[::-1],
    "columns backwards": lambda a: np.ascontiguousarray(a[..., ::-1])[..., ::-1],
    "broadcast": lambda a: np.broadcast_to(a[:1], a.shape),
    "unaligned": unaligned,
    "subclass": lambda a: a.view(Subclass),
    "transposed": lambda a: np.ascontiguousarray(a.T).T,
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_gives_the_same_bytes(layout, dtype):
    plain = arrays(dtype=dtype)
    given = [LAYOUTS[layout](a) for a in plain]
    same = [np.array(a.view(np.ndarray), order="C") for a in given]
    before = [a.tobytes() for a in same]
    routine = Genred(TEXT, ALIASES, axis=1)
    np.testing.assert_array_equal(routine(*given, backend="cpu"), routine(*same, backend="cpu"))
    assert [np.array(a.view(np.ndarray), order="C").tobytes() for a in given] == before


def test_out_is_filled_and_given_back():
    given = arrays()
    routine = Genred(TEXT, ALIASES, axis=1)
    out = np.full((M, 3), np.nan)
    assert routine(*given, out=out) is out
    np.testing.assert_array_equal(out, routine(*given))


def test_out_may_be_an_input():
    x, y = np.random.default_rng(0).normal(size=(2, 20, 3))
    routine = Genred("x * y", ["x = Vi(3)", "y = Vj(3)"], axis=1)
    wanted = routine(x, y)
    assert routine(x, y, out=x) is x
    np.testing.assert_array_equal(x, wanted)


@pytest.fixture
def nothing_runs(monkeypatch):
    def explode(*args, **kwargs):
        raise AssertionError("something was compiled or computed")

    for name in ("prepared", "fold", "empty", "merge", "finalize", "local"):
        monkeypatch.setattr(engine, name, explode)


def test_that_the_engine_was_replaced(nothing_runs):
    with pytest.raises(AssertionError, match="something was compiled"):
        Genred(TEXT, ALIASES)(*arrays())


x, y, a, p = arrays()
f4 = np.float32
TAKES = "the routine takes 4 arrays (x, y, a, p), got "
CONVERT = "it is bfloat16, float16, float32 or float64, convert it with .astype"
BAD_INPUTS = {
    "none": ((), InputError, TAKES + "0"),
    "too few": ((x, y, a), InputError, TAKES + "3"),
    "too many": ((x, y, a, p, p), InputError, TAKES + "5"),
    "list": ((x.tolist(), y, a, p), InputError,
             "argument 0 (x) is no array but list: pass a NumPy, dask or CuPy array of shape (M, 3)"),
    "scalar": ((x, y, a, 1.0), InputError,
               "argument 3 (p) is no array but float: pass a NumPy, dask or CuPy array of shape (1,)"),
    "NumPy scalar": ((x, y, a, p[0]), InputError,
                     "argument 3 (p) is no array but float64: pass a NumPy, dask or CuPy array of shape (1,)"),
    "None": ((None, y, a, p), InputError,
             "argument 0 (x) is no array but NoneType: pass a NumPy, dask or CuPy array of shape (M, 3)"),
    "delayed": ((dask.delayed(np.copy)(x), y, a, p), InputError,
                "argument 0 (x) is no array but Delayed: pass a NumPy, dask or CuPy array of shape (M, 3)"),
    "masked": ((np.ma.masked_array(x), y, a, p), InputError,
               "argument 0 (x) is a masked array: pass a NumPy, dask or CuPy array of shape (M, 3)"),
    "integers": ((x, y, a.astype(int), p), DtypeError, "argument 2 (a) has type int64: " + CONVERT),
    "booleans": ((x > 0, y, a, p), DtypeError, "argument 0 (x) has type bool: " + CONVERT),
    "long double": ((x.astype(np.longdouble), y, a, p), DtypeError,
                    f"argument 0 (x) has type {np.dtype(np.longdouble)}: " + CONVERT),
    "complex": ((x + 0j, y, a, p), DtypeError, "argument 0 (x) has type complex128: " + CONVERT),
    "objects": ((x.astype(object), y, a, p), DtypeError, "argument 0 (x) has type object: " + CONVERT),
    "other byte order": ((x.astype(x.dtype.newbyteorder()), y, a, p), DtypeError,
                         f"argument 0 (x) has type {x.dtype.newbyteorder()}: " + CONVERT),
    "mixed": ((x.astype(f4), y, a, p), DtypeError,
              "all arrays must have one type, got argument 0 (x) float32, argument 3 (p) float64: "
              "convert them with .astype"),
    "vector": ((x[:, 0], y, a, p), InputError, "argument 0 (x) has shape (30,): expected (M, 3)"),
    "no axes": ((np.array(1.0), y, a, p), InputError, "argument 0 (x) has shape (): expected (M, 3)"),
    "batch": ((np.stack([x, x]), np.stack([y, y, y]), a, p), InputError,
              "batch dimensions must be equal or 1: argument 0 (x) has (2,), argument 1 (y) has (3,)"),
    "no batch": ((np.zeros((0, 30, 3)), y, a, p), InputError, "a batch of shape (0,) has no elements"),
    "rows of a batch": ((x[None], y, a[None, :7], p), InputError,
             "all j-variables must have the same number of rows, N: argument 1 (y) has 50, argument 2 (a) has 7"),
    "dimension of i": ((x[:, :2], y, a, p), InputError, "argument 0 (x) has shape (30, 2): expected (M, 3)"),
    "dimension of j": ((x, np.c_[y, y], a, p), InputError, "argument 1 (y) has shape (50, 6): expected (N, 3)"),
    "no columns": ((x[:, :0], y, a, p), InputError, "argument 0 (x) has shape (30, 0): expected (M, 3)"),
    "one column": ((x[:, :1], y, a, p), InputError, "argument 0 (x) has shape (30, 1): expected (M, 3)"),
    "rows": ((x, y, a[:7], p), InputError,
             "all j-variables must have the same number of rows, N: argument 1 (y) has 50, argument 2 (a) has 7"),
    "one row": ((x, y[:1], a, p), InputError,
                "all j-variables must have the same number of rows, N: argument 1 (y) has 1, argument 2 (a) has 50"),
    "parameter as number": ((x, y, a, np.array(1.0)), InputError,
                            "argument 3 (p) has shape (): a parameter of dimension 1 has shape (1,)"),
    "parameter's length": ((x, y, a, np.ones(2)), InputError,
                           "argument 3 (p) has shape (2,): a parameter of dimension 1 has shape (1,)"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_inputs_are_refused_before_anything_runs(case, nothing_runs):
    given, kind, message = BAD_INPUTS[case]
    with pytest.raises(InputError) as caught:
        Genred(TEXT, ALIASES, axis=1)(*given)
    assert type(caught.value) is kind
    assert str(caught.value) == message
    assert str(pickle.loads(pickle.dumps(caught.value))) == message


def test_arrays_of_another_type_than_the_routine(nothing_runs):
    with pytest.raises(DtypeError) as caught:
        Genred(TEXT, ALIASES, dtype="float32")(*arrays())
    assert str(caught.value) == (
        "the routine was made for dtype='float32', got arrays of type float64: convert them with .astype"
    )


def test_an_accumulator_narrower_than_the_arrays(nothing_runs):
    with pytest.raises(OptionError) as caught:
        Genred(TEXT, ALIASES, dtype_acc="float32")(*arrays())
    assert str(caught.value) == (
        "dtype_acc='float32' is narrower than the arrays' type float64: use 'auto' or 'float64'"
    )


NAMELESS = "the routine takes 2 arrays (Vi(0,3), Vj(1,2)), got 1"


def test_inputs_without_names_are_called_by_their_declaration(nothing_runs):
    with pytest.raises(InputError) as caught:
        Genred("1", ["Vi(3)", "Vj(2)"])(x)
    assert str(caught.value) == NAMELESS


COTANGENT = "the cotangent Vj(2,1) of Grad"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((), f"the routine takes 3 arrays (x, y, {COTANGENT}), got 2"),
        ((p,), f"argument 2 ({COTANGENT}) has shape (1,): expected (N, 1)"),
        ((a[:7],), "all j-variables must have the same number of rows, N: argument 1 (y) has 50, "
         f"argument 2 ({COTANGENT}) has 7"),
    ],
    ids=["too few", "shape", "rows"],
)  # fmt: skip
def test_a_cotangent_that_grad_has_made_is_called_so(more, message, nothing_runs):
    with pytest.raises(InputError) as caught:
        Genred("Grad(SqDist(x, y), x)", ["x = Vi(3)", "y = Vj(3)"])(x, y, *more)
    assert str(caught.value) == message


BAD_OUT = {
    "list": ([], "out must be a NumPy array, and so must be all inputs"),
    "shape": (np.zeros((N, 3)), "out has shape (50, 3) and type float64: expected (30, 3) and float64"),
    "transposed": (np.zeros((3, M)), "out has shape (3, 30) and type float64: expected (30, 3) and float64"),
    "type": (np.zeros((M, 3), f4), "out has shape (30, 3) and type float32: expected (30, 3) and float64"),
    "Fortran": (np.zeros((3, M)).T, "out must be C-contiguous and writeable"),
    "every other row": (np.zeros((2 * M, 3))[::2], "out must be C-contiguous and writeable"),
    "read-only": (read_only(np.zeros((M, 3))), "out must be C-contiguous and writeable"),
}


@pytest.mark.parametrize("case", BAD_OUT)
def test_a_bad_out_is_refused_before_anything_runs(case, nothing_runs):
    out, message = BAD_OUT[case]
    with pytest.raises(InputError) as caught:
        Genred(TEXT, ALIASES, axis=1)(*arrays(), out=out)
    assert str(caught.value) == message


def test_out_of_every_reduction():
    given = arrays_of(11, 13)
    for case in CASES:
        routine = routine_of(case, 1)
        want = routine(*given, backend="cpu")
        out = tuple(np.full_like(a, 7) for a in listed(want))
        got = routine(*given, backend="cpu", out=out if isinstance(want, tuple) else out[0])
        assert all(a is b for a, b in zip(listed(got), out, strict=True))
        same(got, want)


PAIR = (np.zeros((M, 3)), np.zeros((M, 3), int))
BAD_PAIRS = {
    "array": (PAIR[0], "out must be a flat tuple of 2 arrays, as many as the result has"),
    "one": (PAIR[:1], "out must be a flat tuple of 2 arrays, as many as the result has"),
    "type": ((PAIR[0], PAIR[0].copy()),
             "out[1] has shape (30, 3) and type float64: expected (30, 3) and int64"),
    "shape": ((PAIR[0][:7], PAIR[1]), "out[0] has shape (7, 3) and type float64: expected (30, 3) and float64"),
    "memory": ((PAIR[0], PAIR[0].view(np.int64)), "the arrays of out share memory: give each one its own"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_PAIRS)
def test_a_bad_out_of_a_pair_is_refused_before_anything_runs(case, monkeypatch):
    out, message = BAD_PAIRS[case]
    monkeypatch.setattr(engine, "fold", None)
    monkeypatch.setattr(engine, "prepared", None)
    with pytest.raises(InputError) as caught:
        Genred(TEXT, ALIASES, "Min_ArgMin", 1)(*arrays(), out=out)
    assert str(caught.value) == message


# -- where it runs -----------------------------------------------------------------------------------------------------


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(cuda, "device_count", lambda: 0)


@pytest.mark.parametrize("backend", ["auto", "cpu", "CPU", "Cpu"])
def test_names_of_the_cpu(backend, no_gpu):
    given = arrays()
    routine = Genred(TEXT, ALIASES, axis=1)
    np.testing.assert_array_equal(routine(*given, backend=backend), routine(*given, backend="cpu"))


@pytest.mark.parametrize("backend", ["cuda", "CUDA", "GPU", "gpu", "GPU_1D", "GPU_2D", "gpu_1d"])
def test_a_missing_gpu_is_named(backend, no_gpu, monkeypatch):
    def explode(*args, **kwargs):
        raise AssertionError("something was compiled or computed")

    monkeypatch.setattr(engine, "fold", explode)
    monkeypatch.setattr(engine, "prepared", explode)
    with pytest.raises(BackendError) as caught:
        Genred(TEXT, ALIASES)(*arrays(), backend=backend)
    assert str(caught.value) == (
        "backend='cuda' needs an NVIDIA GPU, and none is usable in this process: check nvidia-smi and that CuPy is "
        "installed (in dred's folder: pip install '.[cuda13]' or '.[cuda12]'), or use backend='cpu'"
    )


@pytest.mark.parametrize("backend", ["GPU_3D", "numpy", "", None, 0, "opencl"])
def test_an_unknown_backend(backend, nothing_runs):
    with pytest.raises(BackendError) as caught:
        Genred(TEXT, ALIASES)(*arrays(), backend=backend)
    assert str(caught.value) == (
        f"unknown backend {backend!r}: it is one of auto, cpu, cuda (GPU, GPU_1D and GPU_2D mean cuda)"
    )


@pytest.mark.parametrize("device", [-2, 1.0, "0", None, True])
def test_a_bad_device(device, nothing_runs):
    with pytest.raises(OptionError) as caught:
        Genred(TEXT, ALIASES)(*arrays(), device_id=device)
    assert str(caught.value) == (f"device_id={device!r}: it is the number of a CUDA device, or -1 for the current one")


def test_the_cpu_has_no_devices(nothing_runs):
    with pytest.raises(OptionError) as caught:
        Genred(TEXT, ALIASES)(*arrays(), backend="CPU", device_id=0)
    assert str(caught.value) == "device_id=0 needs backend='cuda', got backend='CPU'"


def test_ranges_of_another_form_are_refused(nothing_runs):
    with pytest.raises(InputError) as caught:
        Genred(TEXT, ALIASES)(*arrays(), ranges=())
    assert str(caught.value) == (
        "ranges are six integer arrays, ranges_i, slices_i, redranges_j, ranges_j, slices_j, redranges_i; got 0"
    )


@pytest.mark.parametrize("device", [0, np.int64(3)])
def test_the_device_is_handed_on(device, monkeypatch):
    seen = {}

    def reduce(spec, given, M, N, outputs, **more):
        seen.update(more)
        return engine.finalize(spec, engine.empty(spec, M), outputs)

    monkeypatch.setattr(cuda, "device_count", lambda: 8)
    monkeypatch.setattr(cuda, "reduce", reduce)
    Genred(TEXT, ALIASES)(*arrays(), backend="cuda", device_id=device)
    assert seen == {"device_id": int(device), "pattern": None}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("M", "dim"), [(256, 9), (512, 70), (4352, 64), (4352, 130), (300, 70)])
def test_many_columns_where_rows_are_powers_of_two(M, dim, dtype):
    """Results are turned round block by block, where components lie in the same places of a cache."""
    rng = np.random.default_rng(0)
    x, b = rng.integers(-3, 4, (M, 1)).astype(dtype), rng.integers(-3, 4, (5, dim)).astype(dtype)
    routine = Genred("x*b", ["x = Vi(1)", f"b = Vj({dim})"], axis=1)
    result = routine(x, b, backend="cpu")
    assert result.flags.c_contiguous
    np.testing.assert_array_equal(result, x * b.sum(0))
