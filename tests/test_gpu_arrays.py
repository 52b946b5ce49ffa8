"""Calls of routines on a GPU, by the CuPy without one: arrays of NumPy, of CuPy and of other libraries."""

import numpy as np
import pytest

from dred import Genred, Reduction
from dred.errors import BackendError, DtypeError, InputError, OptionError
from dred.kernel import cuda_launch, cuda_streams
from tests.shim import fake_cupy, shim

pytestmark = pytest.mark.skipif(not shim.available(), reason="no C++ compiler")

ALIASES = ["x = Vi(3)", "y = Vj(3)", "b = Vj(2)", "g = Pm(1)"]
GAUSSIAN = Genred("Exp(-g * SqDist(x, y)) * b", ALIASES, axis=1)
CUDA = [
    "cuda",
    "CUDA",
    "GPU",
    "gpu",
    "Gpu_1D",
    "GPU_1D_device",
    "GPU_1D_host",
    "GPU_2D",
    "GPU_2D_device",
    "GPU_2D_host",
]


@pytest.fixture
def fake():
    with fake_cupy.installed(devices=2, memory=1 << 26) as found:
        yield found


@pytest.fixture
def cupy(fake):
    import cupy

    return cupy


def arrays(M=300, N=200, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((M, 3), (N, 3), (N, 2))
    return [*(rng.normal(size=shape).astype(dtype) for shape in shapes), np.array([0.5], dtype)]


def dense(x, y, b, g):
    """The Gaussian sum in float64, through the whole matrix."""
    x, y, b, g = (np.asarray(a, "float64") for a in (x, y, b, g))
    return np.exp(-g * np.square(x[:, None] - y[None]).sum(-1)) @ b


def close(got, want, dtype="float32"):
    assert got.dtype == dtype
    np.testing.assert_allclose(
        got, want, **{"float16": {"rtol": 2e-3, "atol": 2e-3}}.get(dtype, {"rtol": 2e-5, "atol": 2e-5})
    )


class Tensor:
    """An array of another library: DLPack and the CUDA array interface, and hardly anything else."""

    def __init__(self, array, device=None, error=None):
        self.array, self.error = array, error
        self.device = device or (array.__dlpack_device__() if hasattr(array, "__dlpack_device__") else None)

    def __dlpack__(self, **more):
        if self.error:
            raise self.error
        return self.array.__dlpack__(**more)

    def __dlpack_device__(self):
        return self.device


class Interface:
    """An array of another library with the CUDA array interface alone, as of Numba."""

    def __init__(self, array):
        self.__cuda_array_interface__ = array.__cuda_array_interface__
        self.array = array


# -- NumPy in ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", CUDA)
def test_every_name_of_the_backend(backend, fake):
    given = arrays()
    got = GAUSSIAN(*given, backend=backend)
    assert type(got) is np.ndarray
    close(got, dense(*given))
    assert {name for _, _, name, *_ in fake.launches} == {"dred_fold", "dred_merge"}


def test_auto_takes_the_gpu_that_is_there(fake):
    given = arrays()
    close(GAUSSIAN(*given), dense(*given))
    assert fake.launches


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_blocks_and_panels_of_every_type(dtype, monkeypatch):
    monkeypatch.setattr(cuda_launch, "PANEL", 8000)
    monkeypatch.setattr(cuda_streams, "STAGE", 3000)
    given, found = arrays(3000, 1700, dtype), set()
    for memory in ("100 kB", "0.5"):
        monkeypatch.setenv("DRED_CUDA_MEMORY", memory)
        with fake_cupy.installed(devices=2, memory=1 << 24) as fake:
            got = GAUSSIAN(*given, backend="cuda", device_id=1)
            assert {device for device, *_ in fake.launches} == {1}
            assert fake.pools[1].peak <= (100_000 if memory == "100 kB" else 1 << 23)
            import cupy

            with cupy.cuda.Device(1):
                there = GAUSSIAN(*map(cupy.asarray, given))
            assert there.dtype == dtype
            found |= {got.tobytes(), there.get().tobytes()}
        close(got, dense(*given), dtype)
    assert len(found) == 1


def test_out(fake):
    given, out = arrays(), np.empty((300, 2), "float32")
    assert GAUSSIAN(*given, backend="cuda", out=out) is out
    close(out, dense(*given))


def test_results_of_several_types(fake, cupy):
    x, y, *_ = arrays()
    distance = np.square(x.astype("f8")[:, None] - y[None]).sum(-1)
    routine = Genred("SqDist(x, y)", ALIASES[:2], "KMin_ArgKMin", 1, opt_arg=3)
    order = np.argsort(distance, axis=1)[:, :3]
    for way in (lambda a: a, cupy.asarray):
        low, number = routine(way(x), way(y), backend="cuda")
        assert (low.dtype, number.dtype) == ("float32", "int64")
        np.testing.assert_array_equal(cupy.asnumpy(number), order)
        np.testing.assert_allclose(cupy.asnumpy(low), np.take_along_axis(distance, order, 1), rtol=1e-5)


def test_what_one_sweep_leaves_stays_on_the_device(fake, cupy):
    x, y, *_ = arrays(60, 80, "float64")
    e = np.random.default_rng(1).normal(size=(60, 1))
    gradient = Reduction("Grad(LogSumExp_Reduction(-SqDist(x, y), 0), x, e)", [*ALIASES[:2], "e = Vi(1)"])
    weights = np.exp(-np.square(x[:, None] - y[None]).sum(-1))
    weights /= weights.sum(1, keepdims=True)
    want = e * (weights[..., None] * -2 * (x[:, None] - y[None])).sum(1)
    host = gradient(x, y, e, backend="cuda")
    np.testing.assert_allclose(host, want, rtol=1e-10)
    there = list(map(cupy.asarray, (x, y, e)))
    fake.copies = []
    got = gradient(*there)
    assert not [way for way, size, _ in fake.copies if way == "out" or size > 100]  # tables of launches alone
    assert got.get().tobytes() == host.tobytes()


def test_the_centre_of_points_on_a_device(fake, cupy):
    x, y, b, g = arrays()
    routine = Genred("Exp(-g * SqDist(x, y)) * b", ALIASES, axis=1, expand=True)
    shifted = x + np.float32(100), y + np.float32(100), b, g
    for way in (lambda a: a, cupy.asarray):
        close(cupy.asnumpy(routine(*map(way, shifted), backend="cuda")), dense(*shifted))


def test_the_gradient_by_a_parameter(fake, cupy):
    given = arrays(60, 80, "float64")
    e = np.random.default_rng(1).normal(size=(60, 2))
    x, y, b, g = given
    distance = np.square(x[:, None] - y[None]).sum(-1)
    want = -((np.exp(-g * distance) * distance) @ b * e).sum()
    for way in (lambda a: a, cupy.asarray):
        got = GAUSSIAN.grad("g")(*map(way, given), way(e), backend="cuda")
        np.testing.assert_allclose(cupy.asnumpy(got), [want], rtol=1e-10)


# -- CuPy in -----------------------------------------------------------------------------------------------------------


def test_cupy_in_cupy_out_on_the_current_stream_without_a_copy(fake, cupy):
    given = arrays()
    with cupy.cuda.Stream(non_blocking=True) as stream:
        there = list(map(cupy.asarray, given))
        fake.copies, fake.waits = [], 0
        got = GAUSSIAN(*there)
        assert type(got) is cupy.ndarray
        assert fake.waits == 0
        assert max(size for _, size, _ in fake.copies) < 100  # tables of launches alone
        ((device, used, _, _, pointers),) = [entry for entry in fake.launches if entry[2] == "dred_fold"]
        assert (device, used) == (0, stream.ptr)
        assert list(pointers[:4]) == [a.data.ptr for a in there]
        close(got.get(), dense(*given))


def test_the_device_is_that_of_the_arrays(fake, cupy):
    given = arrays()
    with cupy.cuda.Device(1):
        there = list(map(cupy.asarray, given))
        close(GAUSSIAN(*there).get(), dense(*given))
    got = GAUSSIAN(*there, device_id=1)
    assert got.device.id == 1
    with cupy.cuda.Device(1):
        close(got.get(), dense(*given))
    assert {device for device, *_ in fake.launches} == {1}
    assert fake.device == 0


@pytest.mark.parametrize("wrap", [Tensor, Interface])
def test_arrays_of_other_libraries_on_a_device(wrap, fake, cupy):
    given = arrays()
    there = list(map(cupy.asarray, given))
    fake.copies = []
    got = GAUSSIAN(*map(wrap, there))
    assert type(got) is cupy.ndarray
    ((*_, pointers),) = [entry for entry in fake.launches if entry[2] == "dred_fold"]
    assert list(pointers[:4]) == [a.data.ptr for a in there]
    close(got.get(), dense(*given))
    mixed = [there[0], wrap(there[1]), there[2], wrap(there[3])]
    assert GAUSSIAN(*mixed).get().tobytes() == got.get().tobytes()


def test_a_tensor_of_another_device(fake, cupy):
    given = arrays()
    with cupy.cuda.Device(1):
        there = [Tensor(cupy.asarray(a)) for a in given]
    got = GAUSSIAN(*there, device_id=1)
    with cupy.cuda.Device(1):
        close(got.get(), dense(*given))


# -- other libraries on the host ---------------------------------------------------------------------------------------


def test_tensors_on_the_host_are_read_where_they_are(monkeypatch):
    given = arrays()
    seen = []
    from dred import inputs

    check = inputs.np.from_dlpack
    monkeypatch.setattr(inputs.np, "from_dlpack", lambda a: seen.append(check(a)) or seen[-1])
    got = GAUSSIAN(*map(Tensor, given), backend="cpu")
    assert type(got) is np.ndarray
    assert got.tobytes() == GAUSSIAN(*given, backend="cpu").tobytes()
    assert all(np.shares_memory(a, b) for a, b in zip(seen, given, strict=True))
    x, y, b, g = given
    assert GAUSSIAN(Tensor(x), y, Tensor(b), g, backend="cpu").tobytes() == got.tobytes()  # mixed


# -- refused before anything is compiled or launched -------------------------------------------------------------------

LABELS = "argument 0 (x)", "argument 1 (y)", "argument 2 (b)", "argument 3 (g)"
TENSOR = f"{Tensor.__module__}.Tensor"


def refused(error, text, *given, **more):
    with pytest.raises(error) as caught:
        GAUSSIAN(*given, **more)
    assert str(caught.value) == text
    assert type(caught.value) is error


def test_what_is_refused(fake, cupy):
    x, y, b, g = given = arrays()
    there = list(map(cupy.asarray, given))
    with cupy.cuda.Device(1):
        other = list(map(cupy.asarray, given))
    refused(InputError, "CuPy arrays cannot be mixed with numpy arrays: convert them", there[0], y, b, g)
    refused(
        InputError,
        "all arrays must be on one CUDA device, got argument 3 (g) on 0, argument 2 (b) on 1: copy them to one",
        there[0], other[1], other[2], there[3],
    )  # fmt: skip
    refused(
        BackendError,
        "the arrays are on device 1, the current device is 0: move them there, or enter `with cupy.cuda.Device(1):`",
        *other,
    )
    refused(
        BackendError,
        "the arrays are on device 0, device_id=1: move them there, or enter `with cupy.cuda.Device(0):`",
        *there, device_id=1,
    )  # fmt: skip
    refused(BackendError, "device_id=2 is out of range: this process sees 2 device(s), 0 ... 1", *there, device_id=2)
    refused(
        BackendError, "device_id=2 is out of range: this process sees 2 device(s), 0 ... 1",
        *given, device_id=2, backend="cuda",
    )  # fmt: skip
    refused(
        InputError,
        "backend='cpu' cannot take CuPy arrays: convert them with cupy.asnumpy, or use backend='cuda'",
        *there, backend="cpu",
    )  # fmt: skip
    refused(
        DtypeError,
        "argument 1 (y) has type int32: it is bfloat16, float16, float32 or float64, convert it with .astype",
        there[0], cupy.asarray(y.astype("int32")), there[2], there[3],
    )  # fmt: skip
    refused(InputError, "argument 1 (y) has shape (200, 2): expected (N, 3)", there[0], there[2], there[2], there[3])
    refused(OptionError, "device_id=0 needs backend='cuda', got backend='cpu'", *given, backend="cpu", device_id=0)
    grad = BufferError("Can't export tensors that require gradient, use tensor.detach()")
    for whole in (given, there):
        refused(
            InputError,
            f"argument 1 (y) is a {TENSOR} that cannot be used without a copy (Can't export tensors that require"
            " gradient, use tensor.detach()): convert it to a NumPy or CuPy array",
            whole[0], Tensor(whole[1], error=grad), *whole[2:],
        )  # fmt: skip
    refused(
        InputError,
        f"argument 0 (x) is a {TENSOR} on a device of DLPack's type 10: pass arrays in the host's memory or on a CUDA"
        " device",
        Tensor(x, device=(10, 0)), y, b, g,
    )  # fmt: skip
    assert fake.compiled == fake.launches == []


def test_a_tensor_on_a_gpu_needs_cupy():
    x, y, b, g = arrays()
    with fake_cupy.installed(devices=0):
        refused(
            BackendError,
            "backend='cuda' cannot run here: the driver shows no device to this process; use backend='cpu', or install"
            " CuPy (in dred's folder: pip install '.[cuda13]' or '.[cuda12]') on a machine with a GPU",
            Tensor(x, device=(2, 0)), y, b, g,
        )  # fmt: skip
