"""The CuPy without a GPU is as unkind as it says: what a device may do wrong with careless callers, it does."""

import gc

import numpy as np
import pytest

from tests.shim import fake_cupy

N = 1000


@pytest.fixture
def fake():
    with fake_cupy.installed(devices=2, memory=1 << 20) as found:
        yield found


@pytest.fixture
def cupy(fake):
    import cupy

    return cupy


def pinned(cupy, values):
    buffer = np.frombuffer(cupy.cuda.alloc_pinned_memory(values.nbytes), values.dtype, values.size)
    buffer[:] = values
    return buffer


def send(target, buffer, stream):
    target.data.copy_from_host_async(buffer.ctypes.data, buffer.nbytes, stream)


def test_copies_wait_for_someone_who_waits(cupy):
    stream, there, ones = cupy.cuda.Stream(non_blocking=True), cupy.empty(N), pinned(cupy, np.ones(N))
    send(there, ones, stream)
    assert np.isnan(there.get()).all()  # on another stream
    stream.synchronize()
    assert (there.get() == 1).all()


def test_an_event_orders_streams(cupy):
    first, second = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
    there, ones, twos = cupy.empty(N), pinned(cupy, np.ones(N)), pinned(cupy, np.full(N, 2.0))
    send(there, ones, first)
    event = first.record()
    send(there, twos, first)
    second.wait_event(event)
    assert (there.get(stream=second) == 1).all()  # as far as the event, and no further
    first.synchronize()
    assert (there.get() == 2).all()


def test_the_null_stream_waits_for_those_that_block(cupy):
    there, ones = cupy.empty(N), pinned(cupy, np.ones(N))
    send(there, ones, cupy.cuda.Stream())
    assert (there.get() == 1).all()


@pytest.mark.parametrize("eager", [False, True])
def test_pinned_memory_is_read_late_and_pageable_memory_at_once(cupy, fake, eager):
    fake.eager = {"copy"} if eager else set()
    stream = cupy.cuda.Stream(non_blocking=True)
    for buffer, late in ((pinned(cupy, np.ones(N)), 2), (np.ones(N), 1)):
        there = cupy.empty(N)
        send(there, buffer, stream)
        buffer[:] = 2
        assert (there.get(stream=stream) == (1 if eager else late)).all()


def test_memory_that_was_freed_is_poisoned(cupy):
    there, stream = cupy.empty(N), cupy.cuda.Stream(non_blocking=True)
    buffer = pinned(cupy, np.ones(N))
    send(there, buffer, stream)
    del buffer
    gc.collect()
    assert np.isnan(there.get(stream=stream)).all()
    held, view = cupy.asarray(np.ones(N)), None
    view = held._view  # what a kernel that was launched has
    del held
    gc.collect()
    assert (view != 1).any() or not cupy.cuda.Stream.null.done
    cupy.cuda.Stream.null.synchronize()
    assert np.isnan(view).all()


def test_writing_beyond_the_end_is_found():
    def careless():
        with fake_cupy.installed():
            import cupy

            there = cupy.empty(1)
            there._block.raw[8] = 0
            del there

    with pytest.raises(AssertionError, match="written beyond an allocation of 8 bytes"):
        careless()


def test_memory_ends(cupy, fake):
    pool = cupy.get_default_memory_pool()
    held = cupy.empty(1 << 19, "u1")
    with pytest.raises(cupy.cuda.memory.OutOfMemoryError, match="Out of memory allocating 524,800 bytes"):
        cupy.empty((1 << 19) + 1, "u1")
    assert (pool.used_bytes(), pool.free_bytes()) == (1 << 19, 0)
    del held
    assert (pool.used_bytes(), pool.free_bytes()) == (0, 1 << 19)
    pool.set_limit(fraction=0.25)
    with pytest.raises(MemoryError, match="limit set to: 262,144 bytes"):
        cupy.empty(1 << 19, "u1")


def test_other_devices_are_refused(cupy):
    with cupy.cuda.Device(1):
        there, stream = cupy.asarray(np.ones(N)), cupy.cuda.Stream()
        assert cupy.cuda.runtime.getDevice() == 1
    assert there.device.id == 1
    with pytest.raises(ValueError, match="Array device must be same as the current device"):
        there + 1
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="of another device"):
        send(cupy.empty(N), np.ones(N), stream)
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="of another device"), stream:
        pass
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="invalid device ordinal"), cupy.cuda.Device(2):
        pass


def test_numpy_arrays_are_refused(cupy):
    there = cupy.asarray(np.ones(3))
    with pytest.raises(TypeError, match="Unsupported type"):
        there + np.ones(3)
    with pytest.raises(TypeError, match="Implicit conversion"):
        np.asarray(there)
    assert (cupy.asnumpy(there * 2 + np.float64(1)) == 3).all()


KERNEL = """typedef long long i64;
extern "C" __global__ void twice(const float* __restrict__ a, float* __restrict__ b, i64 n) {
  const i64 k = (i64)blockIdx.x * 32 + threadIdx.x;
  if (k < n) b[k] = 2 * a[k];
}
"""


def test_kernels_are_those_of_the_text_and_arguments_of_their_types(cupy, fake):
    program = cupy.cuda.nvrtc.createProgram(KERNEL, "k.cu", (), ())
    cupy.cuda.nvrtc.compileProgram(program, ("--gpu-architecture=sm_90",))
    module = cupy.cuda.function.Module()
    module.load(cupy.cuda.nvrtc.getCUBIN(program) + b"\0")
    twice, a, b = module.get_function("twice"), cupy.asarray(np.arange(100, dtype="f4")), cupy.empty(100, "f4")
    twice((4, 1), (32,), (a, b, np.int64(100)))
    assert np.isnan(b._view).all()  # not yet
    assert (b.get() == 2 * np.arange(100)).all()
    for wrong in (
        (a, b, 100),
        (a, b, np.int32(100)),
        (a, cupy.empty(100), np.int64(1)),
        (a[::2], b, np.int64(1)),
        (a, b),
    ):
        with pytest.raises(AssertionError, match="twice"):
            twice((4, 1), (32,), wrong)
    fake.capabilities = ["80", "80"]
    with pytest.raises(fake_cupy.CUDADriverError, match="NO_BINARY_FOR_GPU: sm_90"):
        cupy.cuda.function.Module().load(program[1] + b"\0")
