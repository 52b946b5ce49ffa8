"""LazyTensors with dimensions in front, against NumPy on the dense arrays."""

import dask
import dask.array as da
import numpy as np
import pytest

import dred
from dred import LazyTensor, Pm, Vi, Vj
from dred.errors import IndexRangeError, InputError, OptionError
from tests.shim import fake_cupy, shim

rng = np.random.default_rng(0)
X, Y = rng.normal(size=(2, 1, 7, 1, 3)), rng.normal(size=(4, 1, 9, 3))
P = rng.normal(size=(2, 4, 1, 1, 3))
B = rng.normal(size=(2, 4, 9, 5))
D = np.exp(-(((X - Y) * P) ** 2).sum(-1))  # (2, 4, 7, 9)


def kernel(x=X, y=Y, p=P):
    x, y, p = map(LazyTensor, (x, y, p))
    return (-(((x - y) * p) ** 2).sum(-1)).exp()


def close(a, b):
    assert a.shape == b.shape
    np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_shapes():
    K = kernel()
    assert K.shape == (2, 4, 7, 9)
    assert (K.ndim, K.dim(), K.nbatchdims, K.batchdims) == (4, 5, 2, (2, 4))
    assert repr(K) == "LazyTensor(batch=(2, 4), M=7, N=9, D=1, float64)"
    assert (LazyTensor(X) - LazyTensor(Y)).shape == (2, 4, 7, 9, 3)
    assert LazyTensor(P).node.attrs[1] == 2
    assert (LazyTensor(X) * 2 + Pm(np.ones(3))).batchdims == (2, 1)
    close(np.asarray(K), D)
    close(np.asarray(LazyTensor(X) - LazyTensor(Y)), X - Y)
    assert K.T.shape == (2, 4, 9, 7)


def test_axes_count_the_dimensions_in_front():
    K = kernel()
    close(K.sum(axis=3), D.sum(3)[..., None])
    close(K.sum(axis=2), D.sum(2)[..., None])
    close(K.max(dim=3), D.max(3)[..., None])
    close(K.logsumexp(axis=2), np.log(np.exp(D).sum(2))[..., None])
    assert (K.argmin(axis=3) == D.argmin(3)[..., None]).all()
    close(np.asarray((LazyTensor(X) - LazyTensor(Y)).sum(4)), (X - Y).sum(-1))
    with pytest.raises(OptionError) as caught:
        K.sum(axis=1)
    assert str(caught.value) == "axis=1, dim=None: one of them is 2 (reduce over i) or 3 (reduce over j)"
    with pytest.raises(OptionError) as caught:
        LazyTensor.concatenate((LazyTensor(X), LazyTensor(Y)), axis=2)
    assert str(caught.value) == "axis=2: components are concatenated, which is axis=-1 or 4"


def test_products_with_matrices():
    K = kernel()
    close(K @ B, D @ B)
    close(K @ B[0, 0], D @ B[0, 0])
    close(K @ B[0, 0, :, 0], D @ B[0, 0, :, 0])
    close(K @ Vj(B[0, 0]), D @ B[0, 0])
    flat = (-(Vi(X[0, 0, :, 0]).sqdist(Vj(Y[0, 0])))).exp()  # no batch but that of the matrix
    close(flat @ B, np.asarray(flat) @ B)


def test_components():
    x = LazyTensor(X)
    close(np.asarray(x[..., 1:3]), X[..., 1:3])
    close(np.asarray(x[:, :, :, :, -1]), X[..., -1])
    close(np.asarray(x[2]), X[..., 2])
    with pytest.raises(IndexRangeError):
        x[:, :, 2]
    with pytest.raises(IndexRangeError):
        x[0, :, :, :, 1]


def test_complex_numbers():
    z = X + 1j * X[:, :, ::-1]
    K = (LazyTensor(z) * LazyTensor(Y)).sum(-1)
    assert K.shape == (2, 4, 7, 9)
    close(np.asarray(K), (z * Y).sum(-1))
    close(K @ B, (z * Y).sum(-1) @ B)


@pytest.mark.parametrize("lazily", [False, True])
def test_gradients(lazily):
    x, y, p = (da.from_array(a, chunks=2) if lazily else a for a in (X, Y, P))
    call = kernel(x, y, p).sum(axis=3, call=False)
    _, pullback = dred.vjp(call, x, y, p)
    e = rng.normal(size=(2, 4, 7, 1))
    found = dask.compute(*pullback(e))
    h = 1e-6
    for k, a in enumerate((X, Y, P)):
        direction = rng.normal(size=a.shape)
        arrays = [X, Y, P]
        up, down = (kernel(*(a + s * h * direction if n == k else b for n, b in enumerate(arrays))) for s in (1, -1))
        want = (e * (up.sum(axis=3) - down.sum(axis=3))).sum() / (2 * h)
        assert found[k].shape == a.shape
        np.testing.assert_allclose((found[k] * direction).sum(), want, rtol=1e-6)


def test_dask_arrays():
    lazy = kernel(*(da.from_array(a, chunks=(*(1,) * (a.ndim - 3), 4, 4, 2)) for a in (X, Y, P)))
    assert lazy.shape == (2, 4, 7, 9)
    out = lazy @ da.from_array(B, chunks=2)
    assert isinstance(out, da.Array)
    close(out.compute(), D @ B)


@pytest.mark.skipif(not shim.available(), reason="no C++ compiler")
def test_on_a_device():
    with fake_cupy.installed(memory=1 << 24):
        import cupy

        K = kernel(*map(cupy.asarray, (X, Y, P)))
        close((K @ cupy.asarray(B)).get(), D @ B)


def test_ranges_of_a_batch():
    keep = rng.random((2, 3)) < 0.7
    keep[0, 0] = keep[1, 1] = True
    rows, columns = np.array([[0, 4], [4, 7]]), np.array([[0, 2], [2, 5], [5, 9]])
    mask = np.repeat(np.repeat(keep, [4, 3], axis=0), [2, 3, 4], axis=1)
    close(kernel().sum(axis=3, ranges=dred.from_matrix(rows, columns, keep)), (D * mask).sum(3)[..., None])


def test_rows_must_be_as_many():
    with pytest.raises(InputError) as caught:
        (LazyTensor(X) + LazyTensor(X[..., :5, :, :])).sum(axis=2)
    assert "must have" in str(caught.value)


def test_a_batch_that_the_formula_has_lost():
    x = LazyTensor(np.ones((3, 5, 1, 2)))
    rest = Vi(np.ones((5, 2))) * Vj(np.ones((4, 2)))
    power = LazyTensor(np.ones((3, 1, 1, 1))) ** 0
    for K in ((x - x) + rest, x * 0 + rest, rest * power):
        assert K.shape == (3, 5, 4, 2)
        close(K.sum(axis=2), np.asarray(K).sum(2))
        close(K.sum(axis=1), np.asarray(K).sum(1))
        close(K[..., 0] @ np.ones(4), np.full((3, 5), 4.0))
    z = np.ones((5, 2))
    call = (Vi(z) * Vj(np.ones((4, 2))) * power).sum(axis=2, call=False)
    close(call.grad(z), np.full((5, 2), 12.0))
    lazy = (x * 0 + Vi(da.from_array(z, chunks=2))) * Vj(np.ones((4, 2)))
    close(lazy.sum(axis=2).compute(), np.full((3, 5, 2), 4.0))


def test_one_row():
    assert Vi(np.ones((3, 1, 1, 2))).node.attrs[1] == 0
    assert Vj(np.ones((3, 1, 1, 2))).node.attrs[1] == 1
    assert Vi(np.ones((1, 1, 2))).shape == (1, 1, 2)
    K = (-LazyTensor(X).sqdist(LazyTensor(Y))).exp()
    with pytest.raises(InputError, match="must have the same number of rows, N"):
        K @ np.ones((2, 4, 1, 2))
    one = (-Vi(np.zeros((3, 5, 1, 2))).sqdist(Vj(np.ones((3, 1, 1, 2))))).exp()
    close(one @ np.full((3, 1, 2), 2.0), np.full((3, 5, 2), 2 * np.exp(-2)))
    q = np.ones((1, 2))
    close((-Vi(q).sqdist(Vj(q))).exp().solve(q, alpha=1.0), q / 2)
    close((-Vi(q).sqdist(Vj(q))).exp().solve(q[0, :1], alpha=1.0), q[0, :1] / 2)
    many = np.ones((3, 1, 2))
    close((-Vi(many[..., None, :]).sqdist(Vj(many[..., None, :, :]))).exp().solve(many, alpha=1.0), many / 2)
