"""Calls that a routine remembers: the bytes, errors and warnings of calls that are not, whatever comes between."""

import copy
import itertools
import os
import pickle
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import dask
import ml_dtypes
import numpy as np
import pytest

from dred import Genred
from dred.errors import BackendError, DredError, InputError, OptionError
from dred.kernel import cpu, cpu_memory, cpu_ready, cuda, engine, environment
from dred.ready import MOST, Remembered

TEXT, ALIASES = "Exp(-g*SqDist(x,y))*b", ["x = Vi(3)", "y = Vj(3)", "b = Vj(1)", "g = Pm(1)"]
TYPES = {"float32": np.float32, "float64": np.float64, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
REDUCTIONS = {
    "Sum": (TEXT, {}),
    "vectors": ("Exp(-g*SqDist(x,y))*(x-y)", {}),
    "Kahan": (TEXT, {"sum_scheme": "kahan_scheme"}),
    "Mean": (TEXT, {"reduction_op": "Mean"}),
    "Max": (TEXT, {"reduction_op": "Max"}),
    "Min": (TEXT, {"reduction_op": "Min"}),
    "Min_ArgMin": (TEXT, {"reduction_op": "Min_ArgMin"}),
    "ArgKMin": (TEXT, {"reduction_op": "ArgKMin", "opt_arg": 3}),
    "LogSumExp": (TEXT, {"reduction_op": "LogSumExp"}),
    "SoftMax": (TEXT, {"reduction_op": "SumSoftMaxWeight", "formula2": "y"}),
    "Any": (TEXT, {"reduction_op": "Any"}),
    "Count": (TEXT, {"reduction_op": "Count"}),
    "Histogram": (TEXT, {"reduction_op": "Histogram", "opt_arg": [0, 0.2, 0.3, 0.8]}),
}


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(cuda, "device_count", lambda: 0)


def arrays(M=30, N=31, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    return tuple(a.astype(TYPES[dtype]) for a in (rng.random((M, 3)), rng.random((N, 3)), rng.random((N, 1)),
                                                  rng.random(1)))  # fmt: skip


def made(name="Sum", axis=1, **more):
    text, options = REDUCTIONS[name]
    return Genred(text, ALIASES, axis=axis, **options, **more)


def bytes_of(result):
    several = result if isinstance(result, tuple) else (result,)
    return [(a.tobytes(), a.shape, a.dtype, a.flags.c_contiguous, a.flags.writeable) for a in several]


def plainly(routine, given, **more):
    """By a fold, without anything that is ready."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "prepared", lambda *_: None)
        return copy.deepcopy(routine)(*given, **more)


@pytest.fixture
def only_remembered(monkeypatch):
    """From its call on, calls that are not remembered fail."""

    def explode(*_):
        raise AssertionError("this call is not remembered")

    return lambda: monkeypatch.setattr("dred.routine.check", explode)


# -- the same ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", REDUCTIONS)
def test_the_bytes_are_those_of_a_fold(name, dtype, axis):
    routine = made(name, axis)
    for M, N in ((30, 31), (3, 200), (1, 1), (17, 400), (400, 17)):
        given = arrays(M, N, dtype)
        want = bytes_of(plainly(routine, given))
        assert [bytes_of(routine(*given)) for _ in range(3)] == [want] * 3
        other = arrays(M, N, dtype, seed=1)
        assert bytes_of(routine(*other)) == bytes_of(plainly(routine, other))
    assert len(routine._ready) == 5


@pytest.mark.parametrize("name", ["Sum", "LogSumExp", "Min_ArgMin", "Histogram"])
def test_tiny_calls_too(name, tiny, only_remembered):
    routine, given = made(name), arrays(3, 4)
    want = bytes_of(plainly(routine, given))
    assert bytes_of(routine(*given)) == want
    only_remembered()
    assert bytes_of(routine(*given)) == want


def test_other_calls_are_not_looked_at_again(only_remembered):
    routine, given = made(), arrays()
    want = routine(*given, backend="auto")
    only_remembered()
    for backend in ("auto", "cpu", "CPU"):
        np.testing.assert_array_equal(routine(*given, backend=backend), want)
    frozen = [a.copy() for a in given]
    for a in frozen:
        a.flags.writeable = False
    np.testing.assert_array_equal(routine(*frozen), want)
    for wrong in (arrays(31), arrays(dtype="float64"), given[:3]):
        with pytest.raises(AssertionError, match="not remembered"):
            routine(*wrong)


def test_gradients(only_remembered):
    given, e = arrays(), np.ones((30, 1), "float32")
    by_x, by_g = made().grad("x"), made().grad("g")
    ranked = Genred("x - y", ALIASES, "KMin", 1, opt_arg=2).grad("y")
    cases = [(by_x, e), (by_g, e), (ranked, np.ones((30, 2, 3), "float32"))]
    for routine, e in cases:
        assert bytes_of(routine(*given, e)) == bytes_of(routine(*given, e)) == bytes_of(plainly(routine, (*given, e)))
    assert [len(routine._ready) for routine, _ in cases] == [1, 0, 0]
    only_remembered()
    by_x(*given, cases[0][1])


@pytest.mark.parametrize("threads", ["1", "3"])
def test_large_calls_and_any_number_of_threads(threads, monkeypatch):
    routine, given = made(), arrays(700, 900)
    monkeypatch.setenv("DRED_NUM_THREADS", "1")
    want = plainly(routine, given).tobytes()
    monkeypatch.setenv("DRED_NUM_THREADS", threads)
    assert [routine(*given).tobytes() for _ in range(2)] == [want] * 2


def test_what_may_be_anything_about_exponents_is_looked_at(monkeypatch):
    """Where the values of arrays decide which kernel computes, no call is remembered."""
    monkeypatch.setattr(cpu, "MANY", 0)
    monkeypatch.setattr(cpu, "ROWS", 0)
    monkeypatch.setattr(cpu, "_sizes", cpu._sizes.__wrapped__)
    routine = made()
    routine(*arrays())
    assert not routine._ready


@pytest.mark.parametrize("name", REDUCTIONS)
def test_addresses_by_hand(name, monkeypatch):
    """Where the layout of an array's object is not known."""
    routine, given = made(name), arrays()
    want = bytes_of(routine(*given))
    assert cpu_memory.DATA > 0
    monkeypatch.setattr(cpu_memory, "_spare", [])
    monkeypatch.setattr(cpu_ready, "DATA", 0)
    assert [bytes_of(routine(*given)) for _ in range(2)] == [want] * 2


def test_where_the_kernel_makes_the_state():
    """Where it is a value for each row, and the result but for its type."""
    direct = {"Sum": True, "Max": True, "Min": True, "Mean": False, "vectors": False, "LogSumExp": False, "Any": False}
    for name, dtype in itertools.product(direct, TYPES):
        for how in [{}, {"dtype_acc": "float32"}][: 1 + (name == "Sum" and dtype == "float32")]:
            routine, given = made(name, **how), arrays(dtype=dtype)
            assert bytes_of(routine(*given)) == bytes_of(plainly(routine, given))
            (ready,) = routine._ready.values()
            assert isinstance(ready, cpu_ready.Quick)
            converted = bool(routine.spec(dtype).given)
            assert isinstance(ready, cpu_ready.Direct) == (direct[name] and not converted), (name, dtype)


def test_memory_is_taken_in_turns():
    """Arguments that are still in a table are those of this call, whoever had the table in between."""
    routines = [made(name) for name in ("Sum", "LogSumExp", "vectors")]
    cases = [arrays(M, N, dtype) for M, N in ((30, 31), (31, 30), (2000, 9)) for dtype in ("float32", "float64")]
    want = [[bytes_of(plainly(routine, given)) for given in cases] for routine in routines]
    for n, m in np.random.default_rng(0).integers((3, 6), size=(200, 2)):
        assert bytes_of(routines[n](*cases[m])) == want[n][m]


def test_results_have_memory_of_their_own():
    for dtype in TYPES:
        routine, given = made(), arrays(dtype=dtype)
        first, before = routine(*given), routine(*given).tobytes()
        second = routine(*arrays(dtype=dtype, seed=1))
        assert first.tobytes() == before != second.tobytes()
        second[...] = 0
        assert routine(*given).tobytes() == before


# -- other arrays ------------------------------------------------------------------------------------------------------


LAYOUTS = {
    "Fortran": np.asfortranarray,
    "every other row": lambda a: np.repeat(a, 2, axis=0)[::2],
    "backwards": lambda a: np.ascontiguousarray(a[::-1])[::-1],
    "broadcast": lambda a: np.broadcast_to(a[:1], a.shape),
    "unaligned": lambda a: np.frombuffer(bytearray(b"." + a.tobytes()), a.dtype, offset=1).reshape(a.shape),
    "subclass": lambda a: a.view(type("Subclass", (np.ndarray,), {})),
    "with metadata": lambda a: a.astype(np.dtype(a.dtype, metadata={"unit": "m"})),
}


@pytest.mark.parametrize("place", [0, 1, 2, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_other_layouts_after_arrays_as_they_should_be(layout, place):
    routine, given = made(), list(arrays())
    routine(*given)
    given[place] = LAYOUTS[layout](given[place])
    same = [np.array(a, subok=False, order="C") for a in given]
    assert bytes_of(routine(*given)) == bytes_of(plainly(made(), same)) == bytes_of(routine(*same))


WRONG = {
    "a row less": lambda x, y, b, g: (x, y, b[1:], g),
    "a component less": lambda x, y, b, g: (x, np.ascontiguousarray(y[:, 1:]), b, g),
    "another type": lambda x, y, b, g: (x, y, b.astype("float64"), g),
    "integers": lambda x, y, b, g: (x, y.astype(int), b, g),
    "other bytes": lambda x, y, b, g: (x, y.astype(">f4"), b, g),
    "all of other bytes": lambda *given: tuple(a.astype(">f4") for a in given),
    "complex": lambda *given: tuple(a.astype(complex) for a in given),
    "one less": lambda *given: given[:3],
    "one more": lambda *given: (*given, given[0]),
    "none": lambda *given: (),
    "a list": lambda x, y, b, g: (x, y, b.tolist(), g),
    "masked": lambda x, y, b, g: (x, y, np.ma.masked_array(b), g),
    "no rows of y": lambda x, y, b, g: (x, y[:0], b, g),
    "flat": lambda x, y, b, g: (x, y, b[:, 0], g),
    "a number": lambda x, y, b, g: (x, y, b, 1.0),
    "a batch that does not fit": lambda x, y, b, g: (np.stack([x, x]), np.stack([y, y, y]), b, g),
}


@pytest.mark.parametrize("case", WRONG)
def test_errors_are_those_of_a_first_call(case):
    routine, given = made(), arrays()
    routine(*given)
    found = []
    for one in (routine, made()):
        with pytest.raises(DredError) as caught:
            one(*WRONG[case](*given))
        found.append((type(caught.value), str(caught.value)))
    assert found[0] == found[1]
    routine(*given)


def test_wrong_options_are_refused_however_often():
    routine, given = made(), arrays()
    for _ in range(2):
        routine(*given)
        with pytest.raises(BackendError, match="unknown backend"):
            routine(*given, backend="abacus")
        with pytest.raises(BackendError, match="unknown backend"):
            routine(*given, backend=["cpu"])
        with pytest.raises(BackendError, match="needs an NVIDIA GPU"):
            routine(*given, backend="cuda")
        with pytest.raises(OptionError, match="device_id=0 needs backend='cuda'"):
            routine(*given, backend="cpu", device_id=0)
        with pytest.raises(OptionError, match="device_id=True"):
            routine(*given, device_id=True)
        with pytest.raises(InputError, match="out has shape"):
            routine(*given, out=np.empty((30, 2), "float32"))


def test_a_routine_of_one_type_refuses_others():
    routine = made(dtype="float32")
    routine(*arrays())
    with pytest.raises(DredError, match="made for dtype='float32'"):
        routine(*arrays(dtype="float64"))


@pytest.mark.parametrize("sizes", [(0, 5), (5, 0), (0, 0)])
def test_no_rows(sizes):
    for name in REDUCTIONS:
        routine, given = made(name), arrays(*sizes)
        want = bytes_of(plainly(routine, given))
        assert [bytes_of(routine(*given)) for _ in range(2)] == [want] * 2


def test_out_ranges_and_batches_after_a_call_that_is_remembered():
    routine, given = made(), arrays()
    want = routine(*given)
    out = np.empty_like(want)
    assert routine(*given, out=out) is out
    np.testing.assert_array_equal(out, want)
    x, y, b, g = given
    rows, one = np.array([[0, 30]]), np.array([1])
    for last in (31, 7):
        columns = np.array([[0, last]])
        got = routine(*given, ranges=(rows, one, columns, columns, one, rows))
        np.testing.assert_allclose(got, routine(x, y[:last], b[:last], g), rtol=1e-6)
    np.testing.assert_array_equal(routine(np.stack([x, x]), y, b, g), np.stack([want, want]))
    assert len(routine._ready) == 2  # that of 7 columns


# -- what is in the arrays ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("name", REDUCTIONS)
def test_numbers_that_are_none(name, value):
    routine, (x, y, b, g) = made(name), arrays(70, 50)
    before = bytes_of(routine(x, y, b, g))
    for place in range(3):
        given = [x.copy(), y.copy(), b.copy(), g]
        given[place][7] = value
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert bytes_of(routine(*given)) == bytes_of(plainly(routine, given))
    assert bytes_of(routine(x, y, b, g)) == before


def test_tiles_are_done_again(monkeypatch):
    routine = Genred("e*Square(x+y)", ["x = Vi(1)", "y = Vj(1)", "e = Vi(1)"], axis=1)
    x, y, e = np.full((40, 1), 1.0, "f4"), np.ones((9, 1), "f4"), np.full((40, 1), 1e-30, "f4")
    routine(x, y, e)
    again, calls = [], cpu._calls
    monkeypatch.setattr(cpu, "_calls", lambda *args, **more: again.append(args) or calls(*args, **more))
    routine(x, y, e)
    assert not again
    x[5] = 1e19
    want = (e * np.square(x.astype(np.float64) + 1)) * 9
    np.testing.assert_allclose(routine(x, y, e), want, rtol=1e-5)
    assert [kernel.program.hoisted for kernel, *_ in again] == [True, False]  # all once more, then a tile
    x[5] = 1.0
    np.testing.assert_allclose(routine(x, y, e), (e * np.square(x.astype(np.float64) + 1)) * 9, rtol=1e-5)
    assert len(again) == 2


# -- the moment --------------------------------------------------------------------------------------------------------


def test_the_number_of_threads_must_be_right(monkeypatch):
    for sizes in ((30, 31), (3, 200), (700, 900)):
        routine, given = made(), arrays(*sizes)
        monkeypatch.setenv("DRED_NUM_THREADS", "2")
        want = routine(*given).tobytes()
        for wrong in ("0", "none", "-1", "\N{SUPERSCRIPT TWO}"):
            monkeypatch.setenv("DRED_NUM_THREADS", wrong)
            for _ in range(2):
                with pytest.raises(OptionError, match=f"DRED_NUM_THREADS is {wrong!r}: set it to a positive number"):
                    routine(*given)
        monkeypatch.setenv("DRED_NUM_THREADS", " 3 ")
        assert routine(*given).tobytes() == want
        monkeypatch.delenv("DRED_NUM_THREADS")
        assert routine(*given).tobytes() == want


def test_the_configured_backend_is_asked_for():
    routine, given = made(), arrays()
    want = routine(*given).tobytes()
    with dask.config.set({"dred.backend": "cuda"}):
        with pytest.raises(BackendError, match="needs an NVIDIA GPU"):
            routine(*given)
        assert routine(*given, backend="cpu").tobytes() == want
    with dask.config.set({"dred.backend": "abacus"}), pytest.raises(BackendError, match="unknown backend 'abacus'"):
        routine(*given)
    assert routine(*given).tobytes() == want


def test_the_environment_names_a_backend_after_a_call():
    code = """
import os, sys
import numpy as np
from dred import Genred
routine = Genred("x*y", ["x = Vi(1)", "y = Vj(1)"], axis=1)
x = np.ones((40, 1))
routine(x, x), routine(x, x)
print("dask" in sys.modules)
os.environ["DASK_DRED__BACKEND"] = "abacus"
try:
    routine(x, x)
except Exception as error:
    print(error)
"""
    environ = {name: value for name, value in os.environ.items() if name != "DASK_DRED__BACKEND"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == "False"
    assert "unknown backend 'abacus'" in done.stdout


def test_a_gpu_that_comes_later_is_not_passed_over(monkeypatch):
    routine, given = made(), arrays()
    routine(*given)
    monkeypatch.setattr(cuda, "device_count", lambda: 1)
    asked = []
    monkeypatch.setattr(engine, "reduce", lambda spec, backend, *args, **more: asked.append(backend) or (given[0],))
    routine(*given)
    assert asked == ["cuda"]


def test_what_is_tiny_now_is_not_what_was(monkeypatch):
    routine, given, names, ready = made(), arrays(4, 4), [], engine.prepared
    monkeypatch.setattr(engine, "prepared", lambda spec, name, *args: names.append(name) or ready(spec, name, *args))
    for tiny in (np.inf, 0.0, np.inf, 0.0):
        monkeypatch.setattr(engine, "TINY", tiny)
        routine(*given)
    assert names == ["numpy", "cpu"]


def test_a_kernel_that_was_forgotten_is_compiled_again(monkeypatch):
    builds, loaded = [], cpu._loaded
    monkeypatch.setattr(cpu, "_loaded", lambda *args: builds.append(args) or loaded(*args))
    monkeypatch.setattr(cpu, "_kernels", type(cpu._kernels)())
    for sizes in ((30, 31), (3, 200)):
        routine, given = made(), arrays(*sizes)
        want = [routine(*given).tobytes() for _ in range(2)]
        before = len(builds)
        cpu._kernels.clear()
        assert routine(*given).tobytes() == want[0] == want[1]
        assert routine(*given).tobytes() == want[0]
        assert len(builds) == before + 1


def test_kernels_that_are_used_are_forgotten_last(monkeypatch):
    monkeypatch.setattr(cpu, "CACHED", 2)
    monkeypatch.setattr(cpu, "_kernels", type(cpu._kernels)())
    routine, given = made(), arrays()
    routine(*given)
    for k in range(2):
        Genred(f"x*y + {k} + 0.28125", ["x = Vi(1)", "y = Vj(1)"], axis=1)(*np.ones((2, 20, 1)))
        routine(*given)
    assert routine.spec("float32").digest in [name.split()[0] for name in cpu._kernels]


def test_threads_at_once():
    routine = made()
    cases = [arrays(M, N, dtype) for M, N in ((30, 31), (3, 200), (900, 10)) for dtype in ("float32", "float64")]
    want = [plainly(routine, given).tobytes() for given in cases]

    def work(first):
        return all(routine(*cases[n % 6]).tobytes() == want[n % 6] for n in range(first, first + 300))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


# -- what is remembered ------------------------------------------------------------------------------------------------


def test_not_more_than_some_are_remembered(tiny):
    routine = made()
    for n in range(1, MOST + 20):
        routine(*arrays(1, n % 40 + 1, "float32" if n % 2 else "float64"), backend="cpu")
        routine(*arrays(n, 1))
    assert len(routine._ready) == MOST
    engine.TINY = 0.0
    for n in range(2000, 2010):
        routine(*arrays(n, 2))
    kept = [ready for ready in routine._ready.values() if isinstance(ready, cpu_ready.Prepared)]
    assert len(kept) == 10
    assert all(sum(a.nbytes for a in ready.blank) <= cpu_ready.MOST for ready in kept if hasattr(ready, "blank"))
    assert len(routine._ready) == MOST


def test_copies_remember_nothing():
    routine, given = made(), arrays()
    want = routine(*given).tobytes()
    for other in (pickle.loads(pickle.dumps(routine)), copy.deepcopy(routine)):
        assert type(other._ready) is Remembered
        assert not other._ready
        assert other(*given).tobytes() == want
    assert len(routine._ready) == 1


# -- variables of the environment --------------------------------------------------------------------------------------


def test_variables_are_looked_up_as_they_are(monkeypatch):
    look = environment.lookup("DRED_TEST_VARIABLE")
    assert look() is None
    assert environment.text(look()) == ""
    for value in ("2", "", " ä ", "\udcff"):
        monkeypatch.setenv("DRED_TEST_VARIABLE", value)
        assert environment.text(look()) == os.environ["DRED_TEST_VARIABLE"].strip()
    monkeypatch.delenv("DRED_TEST_VARIABLE")
    assert look() is None


def test_variables_of_another_environment(monkeypatch):
    before = environment.lookup("DRED_TEST_VARIABLE")
    with monkeypatch.context() as patch:
        patch.setattr(os, "environ", {"DRED_TEST_VARIABLE": " 7 "})
        after = environment.lookup("DRED_TEST_VARIABLE")
        assert environment.text(before()) == environment.text(after()) == "7"
        assert environment.lookup("DRED_TEST_OTHER")() is None
    assert before() is None
    assert after() is None
