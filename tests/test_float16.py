"""Arrays of float16: computed in float32, results in float16."""

import dask
import dask.array as da
import numpy as np
import pytest

from dred import DtypeError, Genred, InputError, LimitError, OptionError, Reduction, generic_sum
from dred.kernel import engine
from tests.cluster.local import threads

GAUSSIAN = "Exp(-g*SqDist(x,y))*b", ["x = Vi(3)", "y = Vj(3)", "b = Vj(1)", "g = Pm(1)"]
EPS = 2.0**-11  # a rounding to float16


def data(M=40, N=50, seed=0):
    rng = np.random.default_rng(seed)
    arrays = rng.random((M, 3)), rng.random((N, 3)), rng.random((N, 1)), np.full(1, 0.5)
    return tuple(a.astype("float16") for a in arrays)


def wide(arrays):
    return [a.astype("float64") for a in arrays]


def near(got, wanted, terms=1.0):
    """One rounding to float16, and those of float32 of all terms."""
    assert got.dtype == "float16"
    np.testing.assert_allclose(got.astype(float), wanted, rtol=EPS * 1.001, atol=1e-6 * terms + 2.0**-25)


@pytest.fixture(params=["interpreted", "compiled"])
def kernels(request, monkeypatch):
    """Both kinds of kernels for small arrays."""
    if request.param == "interpreted":
        monkeypatch.setattr(engine, "TINY", np.inf)


RESULTS = [
    ("Sum", {}), ("Mean", {}), ("Variance", {}), ("Prod", {}), ("Min", {}), ("ArgMax", {}), ("Max_ArgMax", {}),
    ("KMin_ArgKMin", {"opt_arg": 3}), ("LogSumExp", {}), ("SumSoftMaxWeight", {"formula2": "y"}), ("Count", {}),
    ("Any", {}), ("Histogram", {"opt_arg": [0, 0.1, 0.2, 0.9], "formula2": "b"}),
]  # fmt: skip


def test_results_are_those_of_float64_rounded_once(kernels):
    arrays = data()
    items = [(GAUSSIAN[0], name, more.get("opt_arg"), more.get("formula2")) for name, more in RESULTS]
    routine = Genred(items, GAUSSIAN[1], axis=1)
    got = routine(*arrays, backend="cpu")
    wanted = Genred(items, GAUSSIAN[1], axis=1)(*wide(arrays), backend="cpu")
    for a, b in zip(got, wanted, strict=True):
        for g, w in zip(*(r if isinstance(r, tuple) else (r,) for r in (a, b)), strict=True):
            if w.dtype == "float64":
                near(g, w, terms=10)
            else:  # row numbers, counts, truth
                assert g.dtype == w.dtype
                assert np.array_equal(g, w)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("variable", ["x", "y", "b", "g"])
def test_gradients(variable, axis, kernels):
    arrays = data()
    e = np.random.default_rng(1).random(((40 if axis else 50), 1)).astype("float16")
    routine = Genred(*GAUSSIAN, axis=axis).grad(variable)
    got = routine(*arrays, e, backend="cpu")
    near(got, routine(*wide(arrays), e.astype(float), backend="cpu"), terms=50)


def test_a_gradient_goes_through_a_state_that_is_not_rounded():
    """Saved arrays of one sweep are float32 in the next: exp(m) of a rounded m would be off by a tenth."""
    routine = Genred("500 * x * y", ["x = Vi(1)", "y = Vj(1)"], "LogSumExp", axis=1).grad("y")
    rng = np.random.default_rng(2)
    x, y, e = (rng.random((n, 1)).astype("float16") for n in (30, 20, 30))
    assert [sweep.spec.type_of(3) for sweep in routine.sweeps("float16")][-1] == "float32"
    near(routine(x, y, e, backend="cpu"), routine(*wide((x, y, e)), backend="cpu"), terms=5e3)


def test_parameters_are_added_up_before_they_are_rounded():
    """The rows that are added are beyond the largest float16, their sum is not."""
    routine = Genred("p * x * y", ["x = Vi(1)", "y = Vj(1)", "p = Pm(1)"], axis=1).grad("p")
    x, y = np.array([[300], [-299]], "float16"), np.full((1, 1), 300, "float16")
    out = np.empty(1, "float16")
    got = routine(x, y, np.ones(1, "float16"), np.ones((2, 1), "float16"), backend="cpu", out=out)
    assert got is out
    assert got == [300]
    with pytest.raises(InputError, match=r"out has shape \(1,\) and type float32: expected \(1,\) and float16"):
        routine(x, y, np.ones(1, "float16"), np.ones((2, 1), "float16"), out=np.empty(1, "float32"))


def test_beyond_the_largest_number_is_infinity(kernels):
    routine = Genred("x * y", ["x = Vi(1)", "y = Vj(1)"], axis=1)
    x, y = np.array([[1], [-1], [0.5]], "float16"), np.full((2, 1), 60_000, "float16")
    got = routine(x, y, backend="cpu")
    assert got.dtype == "float16"
    np.testing.assert_array_equal(got, [[np.inf], [-np.inf], [60_000]])


def test_terms_are_float32():
    """Neither terms nor sums are float16: 4096 + 1 is not lost, and intermediate values may be large."""
    routine = Genred("Square(x) * y / 1000000", ["x = Vi(1)", "y = Vj(1)"], axis=1)
    x, y = np.full((1, 1), 1000, "float16"), np.concatenate([[[4096]], np.ones((4096, 1))]).astype("float16")
    assert routine(x, y, backend="cpu") == [[8192]]


@pytest.mark.parametrize(("given", "acc"), [("auto", "float32"), ("float32", "float32"), ("float64", "float64")])
def test_the_accumulator(given, acc):
    assert Genred(*GAUSSIAN, dtype="float16", dtype_acc=given).spec("float16").acc == acc
    assert Genred(*GAUSSIAN, dtype="float16", use_double_acc=True).spec("float16").acc == "float64"


def test_the_type_is_declared_or_follows_from_the_arrays():
    arrays = data(5, 6)
    declared = Genred(*GAUSSIAN, dtype="float16", axis=1)
    assert declared.dtype == "float16"
    np.testing.assert_array_equal(declared(*arrays, backend="cpu"), Genred(*GAUSSIAN, axis=1)(*arrays, backend="cpu"))
    assert Genred(*GAUSSIAN, dtype=np.float16).dtype == "float16"
    assert declared.dim == 1
    text = Reduction("Sum_Reduction(x * y, 0)", ["x = Vi(1)", "y = Vj(1)"], dtype="float16")
    assert text(np.ones((2, 1), "float16"), np.ones((3, 1), "float16")).dtype == "float16"
    short = generic_sum("x * y", "out = Vi(1)", "x = Vi(1)", "y = Vj(1)", dtype="float16")
    assert short(np.ones((2, 1), "float16"), np.ones((3, 1), "float16")).tolist() == [[3], [3]]
    assert "float" in declared.source("cpu", "float16")


ONE = "all arrays must have one type, got "


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda x, y, b, g: (x.astype("f4"), y, b, g), DtypeError,
         ONE + "argument 3 (g) float16, argument 0 (x) float32: convert them with .astype"),
        (lambda x, y, b, g: (x, y, b, g.astype("f8")), DtypeError,
         ONE + "argument 2 (b) float16, argument 3 (g) float64: convert them with .astype"),
        (lambda *a: [v.astype("f4") for v in a], DtypeError,
         "the routine was made for dtype='float16', got arrays of type float32: convert them with .astype"),
        (lambda x, y, b, g: (x, y[:, :2], b, g), InputError,
         "argument 1 (y) has shape (50, 2): expected (N, 3)"),
    ],
)  # fmt: skip
def test_refused(change, error, text):
    with pytest.raises(error) as caught:
        Genred(*GAUSSIAN, dtype="float16")(*change(*data()))
    assert str(caught.value) == text


def test_refused_options():
    with pytest.raises(OptionError, match="dtype_acc='float16': it is float32 or float64"):
        Genred(*GAUSSIAN, dtype_acc="float16")
    with pytest.raises(LimitError, match=r"a constant of the formula is beyond the largest float32, 3\.4e\+38"):
        Genred("x * 1e39", ["x = Vi(1)"], dtype="float16")
    assert Genred("x * 1e30", ["x = Vi(1)"], dtype="float16")(np.full((1, 1), 6e-8, "float16")) == [[np.inf]]


@pytest.mark.parametrize("name", ["Sum", "LogSumExp"])
def test_dask(name):
    """Blocks travel as float16, and the results of all chunks and of NumPy are alike."""
    arrays = data(60, 70)
    routine = Genred(*GAUSSIAN, name, axis=1)
    lazy = [da.from_array(a, chunks=(16, -1)) for a in arrays[:3]]
    result, grad = routine(*lazy, arrays[3], backend="cpu"), routine.grad("y")
    e = np.ones((60, 1), "float16")
    gradient = grad(*lazy, arrays[3], e, backend="cpu")
    added = routine.grad("g")(*lazy, arrays[3], e, backend="cpu")
    assert result.dtype == gradient.dtype == added.dtype == "float16"
    with dask.config.set(scheduler="sync"):
        computed = [a.compute() for a in (result, gradient, added)]
    wanted = [routine(*wide(arrays)), grad(*wide(arrays), e.astype(float)),
              routine.grad("g")(*wide(arrays), e.astype(float))]  # fmt: skip
    for got, want in zip(computed, wanted, strict=True):
        near(got, want, terms=60)


def test_bytes_of_a_plan_are_those_of_float16():
    arrays = data(60, 70)
    lazy = [da.from_array(a, chunks=(16, -1)) for a in arrays[:3]]
    half = Genred(*GAUSSIAN, axis=1).plan(*lazy, arrays[3], backend="cpu")
    full = Genred(*GAUSSIAN, axis=1).plan(*[a.astype("f4") for a in lazy], arrays[3].astype("f4"), backend="cpu")
    assert (half.sizes.x.row_bytes, half.sizes.y.row_bytes, half.sizes.parameter_bytes) == (6, 8, 2)
    assert (full.sizes.x.row_bytes, full.sizes.y.row_bytes, full.sizes.parameter_bytes) == (12, 16, 4)
    assert half.sizes.state_row_bytes == 4  # float32
    assert half.sizes.out_row_bytes == 2
    assert half.fold_bytes > half.sizes.y.row_bytes * 70 * 3  # as they came, and as float32


def test_a_block_of_another_type_than_declared_is_refused():
    x, y, b, g = data(20, 20)
    wrong = da.map_blocks(lambda a: a.astype("f4"), da.from_array(x, chunks=(10, 3)), dtype="float16")
    result = Genred(*GAUSSIAN, axis=1)(wrong, y, b, g, backend="cpu")
    with pytest.raises(Exception, match=r"a block holds float32 of shape .* declares float16"), threads(1):
        result.compute()


def test_specs_of_both_types_are_told_apart():
    routine = Genred(*GAUSSIAN, axis=1)
    half, full = routine.spec("float16"), routine.spec("float32")
    assert half.dtype == full.dtype == "float32"
    assert half.digest != full.digest
    assert engine.empty(half, 1)[0].dtype == "float32"
