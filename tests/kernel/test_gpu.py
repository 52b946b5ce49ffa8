"""The CUDA cases on a device: host arrays through `fold`, CuPy arrays through `fold_device` and `reduce_device`."""

import threading

import numpy as np
import pytest

from dred.errors import BackendError, DeviceMemoryError
from dred.kernel import cuda, cuda_launch, cuda_streams
from dred.kernel.output import Output
from tests.kernel.cuda_cases import (
    CASES,
    HUGE,
    SPECIAL,
    assert_special,
    assert_sums,
    data,
    pairs,
    rendered,
    spec,
    special,
    tolerance,
)

pytestmark = pytest.mark.gpu

every_case = pytest.mark.parametrize("name", CASES)
every_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


@every_dtype
@every_case
def test_fold_agrees_with_numpy(name, dtype):
    case, source = CASES[name], rendered(CASES[name], dtype)
    s = spec(case, dtype)
    TJ = source.tile_columns
    for M, N in ((0, 3), (3, 0), (1, 1), (source.tile_rows, TJ), (source.tile_rows + 1, TJ + 1), (127, 3 * TJ + 37)):
        arrays = data(case, M, N, dtype, seed=M + N)
        start = (np.full((source.components, M), 0.5),)
        (state,) = cuda.fold(s, start, tuple(arrays.values()), M, N)
        assert state.dtype == "float64"
        assert_sums(state, pairs(case, arrays), dtype, start=0.5)
        assert np.all(start[0] == 0.5)
        (again,) = cuda.fold(s, start, tuple(arrays.values()), M, N)
        assert again.tobytes() == state.tobytes()


@every_dtype
@pytest.mark.parametrize("name", HUGE)
def test_huge_records(name, dtype):
    case, M, N = HUGE[name], 130, 300
    arrays = data(case, M, N, dtype)
    terms = pairs(case, arrays)
    (state,) = cuda.fold(spec(case, dtype), (np.zeros((terms.shape[2], M)),), tuple(arrays.values()), M, N)
    assert np.all(np.abs(state - terms.sum(1).T) <= 5 * tolerance(dtype) * np.abs(terms).sum(1).max())


@every_dtype
@pytest.mark.parametrize("name", ["gaussian 3 axis 1", "gaussian 3 gradient y", "gaussian 64 axis 0", "norms"])
def test_cupy_in_cupy_out_on_the_current_stream(name, dtype):
    import cupy

    case, M, N = CASES[name], 300, 500
    arrays = data(case, M, N, dtype)
    s, terms = spec(case, dtype), pairs(case, arrays)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        inputs = [cupy.asarray(a) for a in arrays.values()]
        (result,) = cuda.reduce_device(s, inputs, M, N, Output.of("Sum"))
        first = cuda.fold_device(s, None, inputs, M, N)
        second = cuda.fold_device(s, first, inputs, M, N)
        stream.synchronize()
    assert result.dtype == dtype
    assert_sums(cupy.asnumpy(result).T.astype("f8"), terms, dtype)
    assert_sums(cupy.asnumpy(first[0]), terms, dtype)
    assert_sums(cupy.asnumpy(second[0]), 2 * terms, dtype)


@every_dtype
def test_arrays_of_any_strides(dtype):
    import cupy

    case, M, N = CASES["gaussian 3 axis 1"], 300, 500
    s, inputs = spec(case, dtype), [cupy.asarray(a) for a in data(case, M, N, dtype).values()]
    want = cuda.reduce_device(s, inputs, M, N, Output.of("Sum"))[0].tobytes()
    for strided in (cupy.asfortranarray, lambda a: cupy.repeat(a, 2, axis=0)[::2], lambda a: a[::-1].copy()[::-1]):
        others = [strided(a) for a in inputs]
        assert not all(a.flags.c_contiguous for a in others)
        assert cuda.reduce_device(s, others, M, N, Output.of("Sum"))[0].tobytes() == want


@every_dtype
@pytest.mark.parametrize("name", SPECIAL)
def test_special_values(name, dtype):
    case = CASES[name]
    for arrays, M, N in special(case, dtype):
        start = (np.zeros((rendered(case, dtype).components, M)),)
        (state,) = cuda.fold(spec(case, dtype), start, tuple(arrays.values()), M, N)
        assert_special(state, case, arrays, dtype)


def test_launches_and_threads_change_no_bit(monkeypatch):
    case, M, N = CASES["gaussian 3 axis 1"], 5000, 3000
    arrays = tuple(data(case, M, N, "float32").values())
    s, start = spec(case, "float32"), (np.zeros((1, M)),)
    whole = cuda.fold(s, start, arrays, M, N)[0].tobytes()
    found = []
    threads = [threading.Thread(target=lambda: found.append(cuda.fold(s, start, arrays, M, N)[0])) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    monkeypatch.setattr(cuda_launch, "LAUNCH_COST", 1e6)
    found.append(cuda.fold(s, start, arrays, M, N)[0])
    assert [state.tobytes() for state in found] == [whole] * 5


def test_blocks_and_panels_change_no_bit(monkeypatch):
    """Host arrays in pieces, host arrays as a whole, and arrays of the device."""
    import cupy

    case, M, N = CASES["gaussian 3 axis 1"], 50_000, 20_000
    s, arrays = spec(case, "float64"), tuple(data(case, M, N, "float64").values())
    monkeypatch.setattr(cuda_launch, "PANEL", 1 << 17)
    monkeypatch.setattr(cuda_streams, "STAGE", 10_000)
    monkeypatch.setattr(cuda_streams, "_threads", threading.local())  # buffers of that size
    start, found = (np.zeros((1, M)),), set()
    for memory in (1_000_000, 1_500_000, 0.5):
        (state,) = cuda.fold(s, start, arrays, M, N, memory=memory)
        found.add(state.tobytes())
    there = list(map(cupy.asarray, arrays))
    found.add(cupy.asnumpy(cuda.fold_device(s, None, there, M, N)[0]).tobytes())
    found.add(cuda.fold(s, start, [there[0], arrays[1], there[2], arrays[3]], M, N, memory=1_000_000)[0].tobytes())
    assert len(found) == 1
    rows = slice(0, M, 997)
    some = {name: a[rows] if name == "x" else a for name, a in zip("xybg", arrays, strict=True)}
    assert_sums(state[:, rows], pairs(case, some), "float64")


def test_arrays_of_other_libraries_are_used_where_they_are():
    import cupy

    from dred import Genred

    class Interface:
        def __init__(self, array):
            self.__cuda_array_interface__, self.array = array.__cuda_array_interface__, array

    class Tensor:
        def __init__(self, array):
            self.array = array

        def __dlpack__(self, **more):
            return self.array.__dlpack__(**more)

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

    routine = Genred("Exp(-SqDist(x, y))", ["x = Vi(3)", "y = Vj(3)"], axis=1)
    x, y = (cupy.random.random((n, 3), dtype="float32") for n in (300, 200))
    want = routine(x, y)
    for wrap in (Interface, Tensor):
        got = routine(wrap(x), wrap(y))
        assert isinstance(got, cupy.ndarray)
        assert cupy.asnumpy(got).tobytes() == cupy.asnumpy(want).tobytes()


def test_too_little_memory_is_said():
    case, M, N = CASES["gaussian 3 axis 1"], 5000, 300
    arrays = tuple(data(case, M, N, "float32").values())
    with pytest.raises(DeviceMemoryError, match="too little memory for a fold of 5,000 x 300 rows: 10 kB may be used"):
        cuda.fold(spec(case, "float32"), (np.zeros((1, M)),), arrays, M, N, memory=10_000)


def test_a_million_equal_terms():
    N, tenth = 1_000_000, np.float32(0.1)
    arrays = (np.ones((1, 3), "f4"), np.ones((N, 3), "f4"), np.full((N, 1), tenth), np.ones(1, "f4"))
    (state,) = cuda.fold(spec(CASES["gaussian 3 axis 1"], "float32"), (np.zeros((1, 1)),), arrays, 1, N)
    assert abs(state[0, 0] / (N * float(tenth)) - 1) < 5e-7


def test_no_such_device():
    count = cuda.device_count()
    assert count > 0
    arrays = tuple(data(CASES["gaussian 3 axis 1"], 4, 5, "float32").values())
    with pytest.raises(BackendError, match=f"device_id={count} is out of range: this process sees {count} device"):
        cuda.fold(spec(CASES["gaussian 3 axis 1"], "float32"), (np.zeros((1, 4)),), arrays, 4, 5, device_id=count)
