"""The headline figures: what is counted, in what turns it is measured, and how it is shown. No speed is asserted."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from dred.errors import OptionError
from dred.formula.language import formula
from dred.formula.oracle import dense
from dred.jobs import bench
from dred.jobs.bench import DTYPES, ROWS, Bench, Figure, Place
from dred.kernel import cuda, cuda_ceiling, machine
from dred.kernel.ceiling import CHAINS, multiply_add_rate
from dred.kernel.work import WORK, Work
from tests.kernel.test_cuda_source import needs_nvrtc
from tests.shim import fake_cupy, shim

needs_compiler = pytest.mark.skipif(not shim.available(), reason="no C++ compiler")


# -- ceilings ------------------------------------------------------------------------------------------------------


def test_the_work_of_a_pair():
    assert WORK["sum"](3, 1) == Work(3, 4, 1)
    assert [WORK["sum"](3, 1).fma(t) for t in DTYPES] == [10, 16]
    assert [WORK["sum"](3, 1).instructions(t) for t in DTYPES] == [8, 19]
    assert [WORK["gradient"](64, 1).fma(t) for t in DTYPES] == [135, 141]
    assert [WORK["tutorial"](3, 1).fma(t) for t in DTYPES] == [21, 39]
    assert [WORK["logsumexp"](3, 1).fma(t) for t in DTYPES] == [9, 15]
    assert [WORK["nearest"](3, 1).fma(t) for t in DTYPES] == [3, 3]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_multiply_adds_are_counted(dtype, threads):
    """By a clock that goes two seconds from one look to the next."""
    clock = itertools.count(0.0, 2.0)
    rate = multiply_add_rate(dtype, threads, clock=lambda: next(clock), count=10)
    have = machine.host().features.split(",")
    lanes = (64 if "+avx512f" in have else 32 if "+avx" in have else 16) // np.dtype(dtype).itemsize
    assert rate() == threads * 10 * CHAINS * lanes / 2


@needs_nvrtc
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_ceilings_of_gpus_compile(architecture):
    _, log = cuda.compile_cubin(cuda_ceiling.source(), architecture)
    assert log.count("Compiling entry function") == len(cuda_ceiling.KERNELS)
    assert log.count("0 bytes spill stores, 0 bytes spill loads") == len(cuda_ceiling.KERNELS)


def test_pairs_of_a_gpu():
    """The limits of an H200: 128 instructions and 16 exponentials per clock and multiprocessor."""
    clock = 132 * 1.98e9
    rates = {"fma_float32": 128 * clock, "exp2_float32": 16 * clock, "fma_float64": 64 * clock}
    assert cuda_ceiling.pairs(Work(3, 4, 1), "float32", rates.get) == pytest.approx(16 * clock)  # 8 instructions
    assert cuda_ceiling.pairs(Work(3, 3, 3), "float32", rates.get) == pytest.approx(16 * clock / 3)
    assert cuda_ceiling.pairs(Work(64, 65, 1), "float32", rates.get) == pytest.approx(128 * clock / 130)
    assert cuda_ceiling.pairs(Work(3, 4, 1), "float64", rates.get) == pytest.approx(64 * clock / 19)
    assert cuda_ceiling.pairs(Work(4, 3, 0), "float32", rates.get) == pytest.approx(128 * clock / 7)


# -- figures -------------------------------------------------------------------------------------------------------


def invented(name, pace, log):
    """A place of 10 columns that computes `pace` rows per second."""

    def seconds(sweep, arrays, M, N):
        assert all(len(a) in (M, N, 1) for a in arrays)
        log.append((name, M, N))
        return M / pace

    return Place(name, 10, 4, 1000, list, seconds, lambda work, dtype: lambda: log.append(f"{name} most") or 1e4)


def test_places_and_ceilings_take_turns():
    log = []
    where = [invented("slow", 100, log), invented("fast", 1e9, log)]
    found = bench.figures(ROWS[0], "float32", where, 6 * 2 * 0.5)
    assert found == [
        Figure("Gaussian sum, D = 3", "float32", "slow", 1000, 1e4),
        Figure("Gaussian sum, D = 3", "float32", "fast", pytest.approx(1e10), 1e4),
    ]
    assert found[0].part == 0.1
    few = [("slow", 4, 10)] * 2 + [("fast", 4, 10)] * 2  # compile, and find out how many rows take half a second
    turns = [("slow", 48, 10), "slow most", ("fast", 1000, 10), "fast most"]
    assert log == few + turns * bench.ROUNDS


def test_the_median_counts():
    taken = iter([1.0, 1.0, 1.0, 7.0, 2.0, 3.0, 9.0])
    place = replace(invented("here", 1, []), seconds=lambda *_: next(taken))
    (found,) = bench.figures(ROWS[0], "float32", [place], 1.0)
    assert found.pairs == 4 * 10 / 3.0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_row_on_the_cpu(row, dtype):
    place = replace(bench.on_cpu(2), columns=50, unit=40, most=40)
    (found,) = bench.figures(row, dtype, [place], 0.0)
    assert (found.name, found.dtype, found.place) == (row.name, dtype, "2 threads")
    assert found.pairs > 0
    assert found.ceiling > 0


def test_numpy_is_a_rival_of_the_first_row():
    ours, peer = bench.figures(ROWS[0], "float32", [invented("here", 1e3, [])], 0.0, peer=True)
    assert (ours.place, peer.place) == ("here", bench.PEER)
    assert peer.pairs > 0
    assert math.isnan(peer.ceiling)
    arrays = bench._arrays(ROWS[0], "float64", 60, 7000)
    f = formula(ROWS[0].formula, [a.format(D=3) for a in ROWS[0].aliases])
    np.testing.assert_allclose(bench.gaussian_sum(*arrays), dense(f.node, arrays).sum(1), rtol=1e-11)


def test_places(monkeypatch):
    monkeypatch.setenv("DRED_NUM_THREADS", "3")
    monkeypatch.setattr(cuda, "device_count", lambda: 0)
    assert [place.name for place in bench.places()] == ["1 thread", "3 threads"]
    monkeypatch.setenv("DRED_NUM_THREADS", "1")
    assert [place.name for place in bench.places()] == ["1 thread"]
    monkeypatch.setattr(bench.cpu, "available", lambda: False)
    assert bench.places() == []


@needs_compiler
def test_on_a_device(monkeypatch):
    monkeypatch.setattr(cuda_ceiling, "BLOCKS", 1)
    monkeypatch.setattr(cuda_ceiling, "SECONDS", 0.0)
    with fake_cupy.installed(memory=1 << 24) as fake:
        (place,) = [place for place in bench.places() if place.name == "GPU 0"]
        assert place.columns * place.most >= 1e10  # a device is full
        (found,) = bench.figures(ROWS[0], "float32", [replace(place, columns=50, unit=40, most=40)], 0.0)
        names = {name for _, _, name, _, _ in fake.launches}
        about = bench._machine([place])
    assert found.pairs > 0
    assert found.ceiling > 0
    assert {*cuda_ceiling.KERNELS} <= names
    assert about["GPU 0"] == "Fake 90, sm_90, 16.8 MB, driver for CUDA 13.0"


# -- what is shown -------------------------------------------------------------------------------------------------


def test_the_table():
    found = (Figure("sum", "float32", "1 thread", 2e9, 4e9), Figure("sum", "float32", "2 threads", 3.5e9, 8e9),
             Figure("sum", "float32", bench.PEER, 5e8), Figure("sum", "float64", "1 thread", 1e9, 3e9),
             Figure("sum", "float64", "2 threads", 1.5e9, 6e9))  # fmt: skip
    shown = Bench({"processor": "P"}, found, {"a call": 5e-5})
    assert str(shown).splitlines() == [
        "processor: P",
        "",
        "G pairs/s, of the ceiling              1 thread         2 threads",
        "sum                  float32           2    50%        3.5    44%",
        "  NumPy, 1 thread: 0.5                    4.0 x             7.0 x",
        "sum                  float64           1    33%        1.5    25%",
        "",
        "a call      0.05 ms",
    ]  # fmt: skip
    again = json.loads(json.dumps(shown.as_dict(), allow_nan=False))
    assert again["machine"] == {"processor": "P"}
    assert again["seconds"] == {"a call": 5e-5}
    assert again["figures"][0] == {
        "name": "sum", "dtype": "float32", "place": "1 thread", "pairs": 2e9, "ceiling": 4e9, "part": 0.5}  # fmt: skip
    assert again["figures"][2]["part"] is None


@pytest.mark.parametrize("budget", [0, -1.0, 0.5, math.nan])
def test_budgets_that_are_refused(budget):
    with pytest.raises(OptionError) as error:
        bench.measure(budget)
    assert str(error.value) == f"budget={budget!r}: name the seconds that the measurements may take, at least 1"


@pytest.mark.slow
def test_a_measurement():
    found = bench.measure(1.0)
    where = [place.name for place in bench.places()]
    assert [(f.name, f.dtype, f.place) for f in found.figures if f.place != bench.PEER] == [
        (row.name, dtype, place) for dtype in DTYPES for row in ROWS for place in where
    ]
    assert all(f.pairs > 0 for f in found.figures)
    assert len(found.times) == 4
    assert all(seconds > 0 for seconds in found.times.values())
    assert str(found).startswith(f"processor: {machine.processor()}\n")
