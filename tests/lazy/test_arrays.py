"""The same expressions over NumPy, dask, DLPack and CuPy (CUDA text, run without a GPU) give the same results."""

import dask.array as da
import numpy as np
import pytest

import dred
from dred import LazyTensor, Pm, Vi, Vj
from dred.errors import BackendError, InputError
from tests.shim import fake_cupy, shim

M, N = 23, 17
rng = np.random.default_rng(13)
ARRAYS = {
    "x": rng.normal(size=(M, 3)).astype("f4"),
    "y": rng.normal(size=(N, 3)).astype("f4"),
    "p": rng.random(3).astype("f4"),
    "b": rng.normal(size=(N, 2)).astype("f4"),
    "z": (rng.normal(size=(M, 3)) + 1j * rng.normal(size=(M, 3))).astype("c8"),
}
EXPRESSIONS = {
    "a Gaussian sum": lambda x, y, p, b, z: (-(Pm(p) * (Vi(x) - Vj(y)) ** 2).sum(-1)).exp() @ b,
    "products with a vector": lambda x, y, p, b, z: (Vi(x) | Vj(y)).exp() @ b[:, 0],
    "the nearest": lambda x, y, p, b, z: Vi(x).sqdist(Vj(y)).Kmin(4, axis=1),
    "their row numbers": lambda x, y, p, b, z: Vi(x).sqdist(Vj(y)).argKmin(4, axis=0),
    "a log-sum-exp": lambda x, y, p, b, z: (Vi(x) | Vj(y)).logsumexp(axis=0),
    "three dimensions": lambda x, y, p, b, z: (LazyTensor(x[:, None]) * LazyTensor(y[None]) * p).abs().sum(axis=1),
    "complex numbers": lambda x, y, p, b, z: (1j * Vi(z) * Vj(y)).exp().sum(axis=1),
    "waves": lambda x, y, p, b, z: (Vi(x) | Vj(y)).exp1j() @ b,
    "a gradient": lambda x, y, p, b, z: dred.vjp((-Vi(x).sqdist(Vj(y) * p)).exp().sum(axis=1, call=False), x, p)[1](
        x[:, :1]
    )[0],
    "a complex gradient": lambda x, y, p, b, z: dred.vjp((Vi(z) * Vj(y)).exp().sum(axis=1, call=False), z)[1](z)[0],
}


class Tensor:
    """An array of another library: DLPack and indices."""

    def __init__(self, array):
        self.array = array

    def __getitem__(self, key):
        return Tensor(self.array[key])

    def __dlpack__(self, **more):
        return self.array.__dlpack__(**more)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def chunked(array):
    sizes = (5, 7, 3)
    return da.from_array(array, chunks=tuple(min(n, m) for n, m in zip(sizes, array.shape, strict=False)))


def on_host(found):
    return found.compute() if hasattr(found, "compute") else found.get() if hasattr(found, "get") else found


@pytest.fixture
def way(request):
    """How arrays are passed, by name."""
    if request.param not in ("cupy", "dlpack on a GPU"):
        yield {"dask": chunked, "dlpack": Tensor}[request.param]
        return
    if not shim.available():
        pytest.skip("no C++ compiler")
    with fake_cupy.installed(devices=1, memory=1 << 28):
        import cupy

        yield cupy.asarray if request.param == "cupy" else lambda a: Tensor(cupy.asarray(a))


@pytest.mark.parametrize("way", ["dask", "dlpack", "cupy", "dlpack on a GPU"], indirect=True)
@pytest.mark.parametrize("name", EXPRESSIONS)
def test_every_kind_of_array_gives_the_same(name, way, request):
    kind = request.node.callspec.params["way"]
    function = EXPRESSIONS[name]
    want = function(*ARRAYS.values())
    found = function(*map(way, ARRAYS.values()))
    module = {"dask": "dask", "dlpack": "numpy"}.get(kind, "cupy")
    assert type(found).__module__.partition(".")[0] == module
    assert found.dtype == want.dtype
    assert found.shape == want.shape
    np.testing.assert_allclose(on_host(found), want, rtol=3e-5, atol=3e-5)


@pytest.mark.parametrize("way", ["cupy"], indirect=True)
def test_the_dense_array_of_arrays_on_a_gpu(way):
    x, y = way(ARRAYS["x"]), way(ARRAYS["y"])
    lazy = Vi(x) - Vj(y)
    assert (lazy.dtype, lazy.shape) == ("float32", (M, N, 3))
    np.testing.assert_allclose(np.asarray(lazy), ARRAYS["x"][:, None] - ARRAYS["y"], rtol=1e-6)


@pytest.mark.parametrize("way", ["cupy"], indirect=True)
def test_complex_arrays_on_a_gpu_are_not_copied(way):
    z = way(ARRAYS["z"])
    rows = Vi(z).sum(axis=1, call=False).held[0].rows
    assert rows.dtype == "float32"
    assert rows.data.ptr == z.data.ptr


@pytest.mark.parametrize("way", ["cupy"], indirect=True)
def test_memories_are_not_mixed(way):
    with pytest.raises(InputError, match="CuPy arrays cannot be mixed with numpy arrays"):
        (Vi(way(ARRAYS["x"])) * Vj(ARRAYS["y"])).sum(axis=1)
    with pytest.raises((InputError, BackendError), match="cpu"):
        Vi(way(ARRAYS["x"])).sum(axis=1, backend="cpu")
