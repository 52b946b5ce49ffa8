"""Calls of few points: what is remembered of their sizes changes no result and no error, and memory is used again."""

import gc
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from dred import Genred
from dred.errors import InputError, OptionError
from dred.kernel import cpu, cpu_calls, cpu_memory, cuda, engine
from dred.kernel.output import silently

TEXT, ALIASES = "Exp(-g*SqDist(x,y))*b", ["x = Vi(3)", "y = Vj(3)", "b = Vj(1)", "g = Pm(1)"]


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(cuda, "device_count", lambda: 0)


def arrays(M, N, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    return tuple(a.astype(dtype) for a in (rng.random((M, 3)), rng.random((N, 3)), rng.random((N, 1)), rng.random(1)))


def wanted(x, y, b, g):
    x, y, b, g = (a.astype(np.float64) for a in (x, y, b, g))
    return np.exp(-g * ((x[:, None] - y) ** 2).sum(-1)) @ b


def check(routine, given):
    got = routine(*given)
    tolerance = 1e-6 if got.dtype == np.float32 else 1e-13
    np.testing.assert_allclose(got, wanted(*given), rtol=tolerance)
    return got


# -- what is remembered ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sizes_in_any_order(dtype):
    routine = Genred(TEXT, ALIASES, axis=1)
    rng = np.random.default_rng(1)
    sizes = [(1, 1), (30, 30), (5, 70), (70, 5), (16, 16), (17, 1), (300, 4097)]
    found = {size: check(routine, arrays(*size, dtype)).tobytes() for size in sizes}
    for n in rng.integers(len(sizes), size=40):
        assert check(routine, arrays(*sizes[n], dtype)).tobytes() == found[sizes[n]]


def test_arrays_that_do_not_fit_are_refused_after_those_that_do():
    routine, (x, y, b, g) = Genred(TEXT, ALIASES, axis=1), arrays(5, 6)
    for _ in range(2):
        check(routine, (x, y, b, g))
        with pytest.raises(InputError, match="all j-variables must have the same number of rows"):
            routine(x, y, b[:5], g)
        with pytest.raises(InputError, match=r"expected \(N, 3\)"):
            routine(x, y[:, :2], b, g)
        with pytest.raises(InputError, match="variable 1 of a block"):
            cpu.fold(routine.spec("float32"), engine.empty(routine.spec("float32"), 5), [x, y[:, :2], b, g], 5, 6)


def test_what_is_remembered_has_a_bound():
    routine = Genred(TEXT, ALIASES, axis=1)
    for n in range(1, max(cpu.SIZES, cpu_calls.CUTS) + 40):
        routine(*arrays(1, n))
    assert cpu._sizes.cache_info().currsize <= cpu.SIZES
    assert cpu_calls._remembered.cache_info().currsize <= cpu_calls.CUTS
    before = cpu_calls._remembered.cache_info()
    plan = cpu.compiled(routine.spec("float32")).program.plan
    cpu_calls.whole(plan, 20.0, 10**5, [(0, 10**5)], 2)  # hundreds of calls
    assert cpu_calls._remembered.cache_info() == before


def test_equal_specs_have_equal_hashes():
    spec, same = (Genred(TEXT, ALIASES, axis=1).spec("float32") for _ in range(2))
    assert spec is not same
    assert spec == same
    assert hash(spec) == hash(same)
    assert spec != Genred(TEXT, ALIASES, axis=0).spec("float32")


def test_a_small_call_takes_no_turn_and_a_large_one_does(monkeypatch):
    routine, turns, run = Genred(TEXT, ALIASES, axis=1), [], cpu._run
    monkeypatch.setattr(cpu, "_run", lambda shares: turns.append(len(shares)) or run(shares))
    monkeypatch.setenv("DRED_NUM_THREADS", "3")
    check(routine, arrays(30, 30))
    assert turns == []
    want = check(routine, arrays(300, 300))
    monkeypatch.setattr(cpu_calls, "SHARE", 1.0)
    routine = Genred(TEXT, ALIASES, axis=1)  # one that remembers nothing
    assert check(routine, arrays(300, 300)).tobytes() == want.tobytes()
    assert turns == [3]


# -- the environment ---------------------------------------------------------------------------------------------------


def test_the_number_of_threads_must_be_right_in_every_call(monkeypatch):
    routine, given = Genred(TEXT, ALIASES, axis=1), arrays(5, 5)
    monkeypatch.setenv("DRED_NUM_THREADS", "2")
    check(routine, given)
    monkeypatch.setenv("DRED_NUM_THREADS", "none")
    with pytest.raises(OptionError, match="DRED_NUM_THREADS is 'none'"):
        routine(*given)
    monkeypatch.delenv("DRED_NUM_THREADS")
    check(routine, given)


def test_the_configured_backend_is_that_of_the_moment():
    code = """
import os, sys
import numpy as np
from dred import Genred
from dred.run import configured
routine = Genred("x*y", ["x = Vi(1)", "y = Vj(1)"], axis=1)
routine(np.ones((2, 1)), np.ones((2, 1)))
print(configured(), "dask" in sys.modules)
os.environ["DASK_DRED__BACKEND"] = "gpu_1d"
print(configured(), "dask" in sys.modules)
"""
    environ = {name: value for name, value in os.environ.items() if name != "DASK_DRED__BACKEND"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["auto", "False", "cuda", "True"]


# -- memory ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def spare(monkeypatch):
    monkeypatch.setattr(cpu_memory, "_spare", [])
    return cpu_memory._spare


def test_scratch_memory_is_used_again(spare):
    routine = Genred(TEXT, ALIASES, axis=1)
    routine(*arrays(30, 30))
    (first,) = spare
    for n in (1, 16, 30, 500):
        check(routine, arrays(n, 7))
    assert spare == [first]
    assert first.at % 64 == 0
    spec = Genred("+".join(f"x{k}*y" for k in range(99)), [*(f"x{k} = Vi(1)" for k in range(99)), "y = Vj(1)"], axis=1)
    many = [np.ones((4, 1)) for _ in range(100)]
    assert (spec(*many) == 99 * 4).all()  # more pointers than there is room for
    assert len(spare) == 1


def test_a_result_is_not_memory_that_is_used_again():
    for dtype in ("float32", "float64"):
        routine = Genred(TEXT, ALIASES, axis=1)
        first = routine(*arrays(30, 30, dtype))
        before = first.tobytes()
        second = routine(*arrays(30, 30, dtype, seed=1))
        assert first.tobytes() == before != second.tobytes()
        assert not np.may_share_memory(first, second)


def test_large_memory_is_not_kept_and_not_more_than_some(spare, monkeypatch):
    monkeypatch.setattr(cpu_memory, "SPARES", 2)
    some = [cpu_memory.taken(100, 1) for _ in range(4)]
    for scratch in some:
        cpu_memory.given_back(scratch)
    assert spare == some[:2]
    spare.clear()
    cpu_memory.given_back(cpu_memory.taken(cpu_memory.SPARE, 1))
    assert spare == []


def test_the_table_of_tiles_is_blank_afterwards(spare):
    """A sum that is not finite is done again by another kernel, with memory of its own; the next one is another."""
    routine = Genred("e*Square(x+y)", ["x = Vi(1)", "y = Vj(1)", "e = Vi(1)"], axis=1)
    x, y, e = np.full((40, 1), 1e19, "f4"), np.ones((9, 1), "f4"), np.full((40, 1), 1e-30, "f4")
    want = (e * np.square(x.astype(np.float64) + 1)) * 9
    np.testing.assert_allclose(routine(x, y, e), want, rtol=1e-5)
    assert len(spare) == 2
    assert all(scratch.redo == scratch.blank for scratch in spare)
    few = routine(x[:3] * 0, y, e[:3])
    np.testing.assert_allclose(few, e[:3] * 9, rtol=1e-6)
    many = 16 * (cpu_memory.TILES + 5)  # a longer table
    np.testing.assert_allclose(
        routine(np.repeat(x, many, 0)[:many], y, np.repeat(e, many, 0)[:many]), want[0] + np.zeros((many, 1)), rtol=1e-5
    )


def test_one_routine_in_many_threads_at_once(spare):
    routine = Genred(TEXT, ALIASES, axis=1)
    cases = [arrays(M, N, dtype, seed) for seed, (M, N) in enumerate([(3, 9), (30, 30), (70, 200), (16, 1)])
             for dtype in ("float32", "float64")]  # fmt: skip
    results = [routine(*given).tobytes() for given in cases]
    barrier = threading.Barrier(8)

    def work(first):
        barrier.wait(60)
        return all(routine(*cases[n % 8]).tobytes() == results[n % 8] for n in range(first, first + 200))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
    assert 1 <= len(spare) <= cpu_memory.SPARES


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_after_a_fork():
    routine, given = Genred(TEXT, ALIASES, axis=1), arrays(30, 30)
    want = routine(*given).tobytes()
    child = os.fork()
    if child == 0:
        os._exit(0 if routine(*given).tobytes() == want else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_addresses():
    a = np.arange(6.0).reshape(2, 3)
    b, empty = a.copy(), np.empty((0, 3))
    b.flags.writeable = False
    assert cpu_memory.addresses([a, a[1]]) == [a.ctypes.data, a.ctypes.data + 24]
    assert cpu_memory.addresses([a, b, empty]) == [a.ctypes.data, b.ctypes.data, empty.ctypes.data]
    memory = bytearray(8)
    assert cpu_memory.addresses([memory]) == [np.frombuffer(memory, np.uint8).ctypes.data]
    gc.collect()
    memory += b"more"  # nobody holds on to it


def test_arrays_that_are_read_only():
    given = arrays(30, 30)
    for a in given:
        a.flags.writeable = False
    check(Genred(TEXT, ALIASES, axis=1), given)


def test_a_state_is_copied_unless_it_is_nobody_elses():
    spec, given = Genred(TEXT, ALIASES, axis=1).spec("float32"), arrays(4, 5)
    state = engine.empty(spec, 4)
    (copy,) = engine.fold(spec, "cpu", state, given, 4, 5)
    assert not state[0].any()
    (own,) = engine.fold(spec, "cpu", state, given, 4, 5, own=True)
    assert own is state[0]
    assert own.tobytes() == copy.tobytes()


def test_nothing_is_said_of_numbers():
    big = np.full((2, 2), 1e300)
    with pytest.warns(RuntimeWarning, match="overflow"):
        big.astype(np.float32)
    assert np.isinf(silently(big.astype, np.float32)).all()
    with pytest.warns(RuntimeWarning, match="overflow"):
        big.astype(np.float32)
    with ThreadPoolExecutor(4) as pool:
        assert all(np.isinf(a).all() for a in pool.map(silently, [big.astype] * 50, [np.float32] * 50))
