"""CUDA devices and their memory: which are there, what is refused, and what happens where memory is short."""

import pickle
import sys
import types

import numpy as np
import pytest
from tblib import pickling_support

from dred.errors import BackendError, DeviceMemoryError, OptionError, human
from dred.formula.language import Variable
from dred.kernel import cuda, cuda_device, cuda_fold, cuda_launch
from dred.kernel.output import Output
from dred.kernel.spec import KernelSpec
from tests.kernel.cuda_cases import assert_sums, data, gaussian, pairs, rendered, spec
from tests.shim import fake_cupy, shim

SUM = Output.of("Sum")
CASE = gaussian(3, 1)
SPEC = spec(CASE, "float32")

needs_compiler = pytest.mark.skipif(not shim.available(), reason="no C++ compiler")


@pytest.fixture
def fake():
    with fake_cupy.installed(devices=2, memory=1 << 24) as found:
        yield found


def given(M, N):
    return tuple(data(CASE, M, N, "float32").values())


def fold(M, N, **more):
    return cuda.fold(SPEC, (np.zeros((1, M)),), given(M, N), M, N, **more)[0]


# -- what is missing ---------------------------------------------------------------------------------------------------


def test_without_a_driver(monkeypatch):
    monkeypatch.setattr(cuda_device, "_driver", lambda: False)
    assert cuda.device_count() == 0
    with pytest.raises(BackendError) as error:
        fold(4, 4)
    assert str(error.value) == (
        "backend='cuda' cannot run here: no NVIDIA driver was found; use backend='cpu', or install CuPy"
        " (in dred's folder: pip install '.[cuda13]' or '.[cuda12]') on a machine with a GPU"
    )


def test_without_cupy(monkeypatch):
    monkeypatch.setattr(cuda_device, "_driver", lambda: True)
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert cuda.device_count() == 0
    with pytest.raises(BackendError, match="cannot run here: CuPy is not installed; use backend='cpu'"):
        cuda.reduce_device(SPEC, [], 4, 4, SUM)


def test_without_a_device():
    with fake_cupy.installed(devices=0):
        assert cuda.device_count() == 0
        with pytest.raises(BackendError, match="cannot run here: the driver shows no device to this process; use"):
            fold(4, 4)


MISSING_NVRTC = (
    "CuPy cannot load NVRTC, which compiles the kernels (no libnvrtc.so.13): install it beside CuPy"
    " (in dred's folder: pip install '.[cuda13]' or '.[cuda12]'), or use backend='cpu'"
)


def no_nvrtc(*_):
    raise RuntimeError("no libnvrtc.so.13\nwas found in any of a long list of folders")


def test_cupy_without_nvrtc(monkeypatch):
    """CuPy loads it when it is first called, and a wheel of CuPy does not bring it along."""
    nvrtc = types.SimpleNamespace(getVersion=no_nvrtc, createProgram=no_nvrtc)
    for name, module in {"cupy": types.ModuleType("cupy"), "cupy.cuda": types.SimpleNamespace(nvrtc=nvrtc)}.items():
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(BackendError) as error:
        cuda.compile_cubin("", "sm_90")
    assert str(error.value) == MISSING_NVRTC


def test_no_cupy_to_compile_with(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setitem(sys.modules, "cupy.cuda", None)
    with pytest.raises(BackendError, match=r"CuPy cannot load NVRTC.*halted.*pip install '\.\[cuda13\]'"):
        cuda.compile_cubin("", "sm_90")


def test_nvrtc_is_missing_when_a_kernel_is_wanted(fake, monkeypatch):
    monkeypatch.setattr(sys.modules["cupy.cuda"].nvrtc, "getVersion", no_nvrtc)
    with pytest.raises(BackendError) as error:
        fold(4, 5)
    assert str(error.value) == MISSING_NVRTC


def test_devices_that_do_not_fit(fake):
    import cupy

    with pytest.raises(BackendError) as error:
        fold(4, 5, device_id=2)
    assert str(error.value) == "device_id=2 is out of range: this process sees 2 device(s), 0 ... 1"
    with cupy.cuda.Device(1):
        there = list(map(cupy.asarray, given(4, 5)))
    with pytest.raises(BackendError) as error:
        cuda.reduce_device(SPEC, there, 4, 5, SUM)
    assert str(error.value) == (
        "array 0 is on device 1, the current device is 0: move it there, or enter `with cupy.cuda.Device(1):`"
    )
    with pytest.raises(BackendError) as error:
        cuda.fold(SPEC, (np.zeros((1, 4)),), there, 4, 5, device_id=0)
    assert str(error.value) == "array 0 is on device 1, device 0 computes: move it there"
    assert fake.compiled == fake.launches == []


# -- on the device of the caller ---------------------------------------------------------------------------------------


@needs_compiler
def test_modules_are_loaded_once_per_device(fake):
    want = fold(300, 301)
    assert_sums(want, pairs(CASE, data(CASE, 300, 301, "float32")), "float32")
    assert fold(300, 301).tobytes() == want.tobytes()
    assert fake.loaded == 1
    assert fold(300, 301, device_id=1).tobytes() == want.tobytes()
    assert fake.loaded == 2
    assert {device for device, *_ in fake.launches} == {0, 1}


@needs_compiler
def test_every_architecture_has_its_own_machine_code(monkeypatch, tmp_path):
    monkeypatch.setenv("DRED_CACHE_DIR", str(tmp_path / "kernels"))
    for devices in range(1, 3):  # the second time from the disk
        with fake_cupy.installed(devices=2, capabilities=("90", "120")) as fake:
            assert fold(20, 30, device_id=0).tobytes() == fold(20, 30, device_id=1).tobytes()
            architectures = [o for _, options in fake.compiled for o in options if "arch" in o]
        assert architectures == (["--gpu-architecture=sm_90", "--gpu-architecture=sm_120"] if devices == 1 else [])
    assert len(list((tmp_path / "kernels").iterdir())) == 2


@needs_compiler
def test_a_spoiled_cubin_is_compiled_again(monkeypatch, tmp_path):
    monkeypatch.setenv("DRED_CACHE_DIR", str(tmp_path / "kernels"))
    with fake_cupy.installed():
        want = fold(20, 30)
    (entry,) = (tmp_path / "kernels").iterdir()
    whole = entry.read_bytes()
    for spoiled in (whole[:-5], whole[:-1] + b"?", b""):
        entry.write_bytes(spoiled)
        with fake_cupy.installed() as fake:
            assert fold(20, 30).tobytes() == want.tobytes()
            assert len(fake.compiled) == 1
        assert entry.read_bytes() == whole


@needs_compiler
def test_arrays_of_any_strides(fake):
    import cupy

    M, N = 300, 301
    inputs = list(map(cupy.asarray, given(M, N)))
    want = cuda.reduce_device(SPEC, inputs, M, N, SUM)[0].get().tobytes()
    for strided in (cupy.asfortranarray, lambda a: cupy.repeat(a, 2, axis=0)[::2], lambda a: a[::-1].copy()[::-1]):
        others = list(map(strided, inputs))
        assert not all(a.flags.c_contiguous for a in others)
        assert cuda.reduce_device(SPEC, others, M, N, SUM)[0].get().tobytes() == want
        assert cuda.fold_device(SPEC, None, others, M, N)[0].get().astype("f4").tobytes() == want
        assert cuda.fold(SPEC, (np.zeros((1, M)),), others, M, N)[0].astype("f4").tobytes() == want


@needs_compiler
def test_arrays_that_are_not_read(fake):
    """They are not copied, nor need they be on the device."""
    import cupy

    M, N = 4, 5
    arrays = [*given(M, N), np.ones((N, 2), "f4")]
    variables = (*SPEC.variables, Variable(4, 2, 1))
    more = KernelSpec.of(SPEC.parts[0].formula, "Sum", 1, "float32", "float64", variables=variables)
    want = fold(M, N).tobytes()
    copies, fake.copies = fake.copies, []
    assert cuda.fold(more, (np.zeros((1, M)),), arrays, M, N)[0].tobytes() == want
    assert fake.copies == copies
    inputs = list(map(cupy.asarray, arrays[:4]))
    with cupy.cuda.Device(1):
        inputs.append(cupy.asarray(arrays[4]))
    assert cuda.reduce_device(more, inputs, M, N, SUM)[0].shape == (M, 1)


@needs_compiler
def test_no_rows(fake):
    import cupy

    none = [np.zeros((0, n), "f4") for n in (3, 3, 1)] + [np.ones(1, "f4")]
    assert cuda.reduce_device(SPEC, list(map(cupy.asarray, none)), 0, 0, SUM)[0].shape == (0, 1)
    assert cuda.fold(SPEC, (np.zeros((1, 0)),), none, 0, 0)[0].shape == (1, 0)
    x = np.ones((3, 3), "f4")
    start = (np.full((1, 3), 2.5),)
    (state,) = cuda.fold(SPEC, start, [x, *none[1:]], 3, 0)
    assert state.tolist() == [[2.5] * 3]
    assert state is not start[0]


@needs_compiler
def test_few_launches_wait(fake, monkeypatch):
    """Of many launches, the host is at most three ahead of the device."""
    monkeypatch.setattr(cuda_launch, "LAUNCH_COST", 1.0)
    import cupy

    M, N = 6 * 1024, 5
    state = cuda.fold_device(SPEC, None, list(map(cupy.asarray, given(M, N))), M, N)
    launched, done = len(fake.launches), fake.done.count("kernel")
    assert (launched, done) == (12, 8)  # a fold and a merge in each: those of the last two are left to do
    assert_sums(state[0].get(), pairs(CASE, data(CASE, M, N, "float32")), "float32")


# -- memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.5", 0.5),
        ("1", 1),
        ("2 GiB", 2**31),
        ("2gb", 2e9),
        ("300 MB", 3e8),
        ("1e9", 1e9),
        ("64 b", 64),
        ("7kib", 7168),
    ],
)
def test_limits_of_memory(text, value, monkeypatch):
    assert cuda_device.memory_limit(text) == value
    monkeypatch.setenv("DRED_CUDA_MEMORY", text)
    with fake_cupy.installed(memory=1 << 20):
        assert cuda_device.limit_bytes() == (value * (1 << 20) if value <= 1 else value)


@pytest.mark.parametrize("text", ["much", "0", "0 MB", "-1", "0.1 b", "1 parsec", "."])
def test_a_limit_that_is_none(text, monkeypatch):
    monkeypatch.setenv("DRED_CUDA_MEMORY", text)
    with fake_cupy.installed(), pytest.raises(OptionError) as error:
        fold(4, 5)
    assert str(error.value) == (
        f"DRED_CUDA_MEMORY is {text!r}: set it to a fraction of the device, such as 0.5, or to bytes, such as 2 GiB, or"
        " unset it"
    )


def test_room_is_what_there_is(fake, monkeypatch):
    import cupy

    everything, pool = fake.memory, cupy.get_default_memory_pool()
    assert cuda_device.room() == int(0.8 * everything)
    assert cuda_device.room(1000) == 1000
    held = cupy.empty(everything // 2, "u1")
    assert cuda_device.room() == everything // 2
    del held  # still in the pool, for whoever wants it
    assert cupy.cuda.runtime.memGetInfo()[0] == everything // 2
    assert cuda_device.room() == int(0.8 * everything)
    cuda_device.release()
    assert cupy.cuda.runtime.memGetInfo()[0] == everything
    pool.set_limit(size=5000)
    held = cupy.empty(1024, "u1")
    assert cuda_device.room() == 5000 - 1024
    assert held.nbytes == 1024
    cupy.cuda.set_allocator(lambda size: None)  # somebody else's, which holds all of the device already
    assert cuda_device.room() == int(0.8 * everything)


def test_the_pool_is_bounded_once_and_never_somebody_elses(fake):
    import cupy

    pool = cupy.get_default_memory_pool()
    assert cuda.bound_pool(0.25) == fake.memory // 4 == pool.get_limit()
    assert cuda.bound_pool(0.5) == fake.memory // 2
    assert pool.get_limit() == fake.memory // 4
    pool.set_limit(size=0)
    cupy.cuda.set_allocator(lambda size: None)
    assert cuda.bound_pool(0.5) == fake.memory // 2
    assert pool.get_limit() == 0


def test_without_a_device_nothing_is_bounded():
    assert cuda.device_count() > 0 or cuda.bound_pool(0.5) == 0


@needs_compiler
@pytest.mark.parametrize("case", [CASE, gaussian(200, 1)], ids=["registers", "memory"])
def test_a_shortage_on_the_way_costs_launches_and_no_bit(case, monkeypatch):
    """Whichever allocation fails for the first time: those of a launch are tried again, with fewer rows."""
    s, source = spec(case, "float32"), rendered(case, "float32")
    M, N = 3 * source.tile_rows, 80
    monkeypatch.setattr(cuda_fold, "SCRATCH", 3 * cuda_launch.least_scratch(source))
    arrays = tuple(data(case, M, N, "float32").values())
    with fake_cupy.installed() as fake:
        import cupy

        inputs = list(map(cupy.asarray, arrays))
        before = fake.allocated
        (want,) = cuda.reduce_device(s, inputs, M, N, SUM)
        count, whole = fake.allocated - before, len(fake.launches)
        relieved = 0
        for k in range(count):
            fake.shortage = {fake.allocated + k}
            launched = len(fake.launches)
            try:
                (got,) = cuda.reduce_device(s, inputs, M, N, SUM)
            except DeviceMemoryError:
                continue
            relieved += 1
            assert got.get().tobytes() == want.get().tobytes()
            assert len(fake.launches) - launched > whole
        assert 0 < relieved < count
        assert_sums(want.get().T.astype("f8"), pairs(case, dict(zip("xybg", arrays, strict=True))), "float32")


@needs_compiler
def test_too_little_memory_is_said_with_numbers(fake):
    import cupy

    M, N = 2000, 300
    inputs = list(map(cupy.asarray, given(M, N)))
    fake.memory = fake.pools[0].used + 10_000
    with pytest.raises(DeviceMemoryError) as error:
        cuda.reduce_device(SPEC, inputs, M, N, SUM)
    free, total = human(10_000 - (fake.pools[0].total - fake.pools[0].used)), human(fake.memory)
    assert str(error.value) == (
        "CUDA device 0 has too little memory for the state of 2,000 rows: Out of memory allocating 16,384 bytes"
        f" (allocated so far: {fake.pools[0].total:,} bytes). (the driver reports {free} free of {total}). Free arrays"
        " on the device, raise the limit (DRED_CUDA_MEMORY, for workers dred.cuda.memory in dask's configuration), or"
        " pass fewer rows at a time"
    )
    pickling_support.install()  # as on workers: with causes and contexts, which cannot all be pickled
    again = pickle.loads(pickle.dumps(error.value))
    assert type(again) is DeviceMemoryError
    assert isinstance(again, BackendError)
    assert isinstance(again, MemoryError)
    assert str(again) == str(error.value)
