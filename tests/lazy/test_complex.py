"""LazyTensors of complex numbers: what NumPy does with complex arrays, or a refusal."""

import itertools

import dask.array as da
import numpy as np
import pytest
from scipy.sparse import linalg

import dred
from dred import ComplexLazyTensor, LazyTensor, Pm, Vi, Vj
from dred.errors import ArgumentError, DimensionError, DtypeError, InputError, OptionError
from dred.formula.ops import OPS
from dred.lazy import kinds, made, pairs

M, N = 6, 5
rng = np.random.default_rng(11)
LIST = [1, 2j, 0.5]


def numbers(*shape):
    return rng.normal(size=shape) + 1j * rng.normal(size=shape)


Z, W, C, X, Y = numbers(M, 3), numbers(N, 3), numbers(3), rng.normal(size=(M, 3)), rng.normal(size=(N, 3))
z, w, c, x, y = Z[:, None], W[None], C, X[:, None], Y[None]


def lazily():
    return Vi(Z), Vj(W), Pm(C), Vi(X), Vj(Y)


COMPLEX = {
    "sums": lambda z, w, c, x, y: z + w - c,
    "sums with real ones": lambda z, w, c, x, y: z + x - y + (x - w) + (y + c),
    "products": lambda z, w, c, x, y: z * w / c,
    "products with real ones": lambda z, w, c, x, y: (x * z) / (y * w) + z / y + x / w,
    "numbers": lambda z, w, c, x, y: 2 * z - w * (1.5 - 2j) + 3 - 1j + (1 + 1j) / w + 1 / z + z / 2,
    "1j": lambda z, w, c, x, y: 1j * x + y * 1j - 1j + x / 2j + 1j / (abs(y) + 1),
    "complex numbers of NumPy": lambda z, w, c, x, y: np.complex128(1j) * z + np.complex64(2 - 1j) * x,
    "arrays": lambda z, w, c, x, y: np.array([1, 2j, 3]) * x + [1, 2j, 3] * np.array([1.0, 2, 3]) + y,
    "lists": lambda z, w, c, x, y: LIST + z,
    "signs": lambda z, w, c, x, y: -z + +w,
    "powers": lambda z, w, c, x, y: z**2 + w**3 - z**-1 + w**-2 + z**1 + (w * 0.1 + 1) ** 17 + z**0,
    "conjugates": lambda z, w, c, x, y: z.conj() * w + (x + 1j * y).conj(),
    "parts": lambda z, w, c, x, y: z.real + 1j * w.imag,
    "exponentials": lambda z, w, c, x, y: np.exp(z * 0.5 + w) if isinstance(z, np.ndarray) else (z * 0.5 + w).exp(),
    "waves": lambda z, w, c, x, y: np.exp(1j * (x * y)) if isinstance(z, np.ndarray) else (x * y).exp1j(),
    "a component": lambda z, w, c, x, y: (z * w)[..., 1:2],
    "components": lambda z, w, c, x, y: (z * w)[:, :, 1:],
    "every other one": lambda z, w, c, x, y: (z * w)[..., ::-2],
    "zero": lambda z, w, c, x, y: (z - w) * 0,
    "nothing": lambda z, w, c, x, y: (z - z) + y * 0,
}
REAL = {
    "real": lambda z, w, c, x, y: (z * w).real,
    "imag": lambda z, w, c, x, y: (z * w).imag,
    "abs": lambda z, w, c, x, y: abs(z - w),
    "angle": lambda z, w, c, x, y: np.angle(z * w) if isinstance(z, np.ndarray) else (z * w).angle(),
    "squares": lambda z, w, c, x, y: abs(z) ** 2 if isinstance(z, np.ndarray) else z.complexsquareabs() + 0 * y,
}


def same(found, expected, rtol=1e-12, atol=1e-13):
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", [*COMPLEX, *REAL])
def test_operators_are_those_of_numpy(name, tiny):
    function = (COMPLEX | REAL)[name]
    lazy, plain = function(*lazily()), function(z, w, c, x, y)
    assert type(lazy) is (ComplexLazyTensor if name in COMPLEX else LazyTensor)
    assert lazy.dtype == plain.dtype
    assert np.asarray(lazy).dtype == plain.dtype
    plain = np.broadcast_to(plain, (M if lazy.shape[0] > 1 else 1, N if lazy.shape[1] > 1 else 1, lazy.D))
    same(np.asarray(lazy).reshape(plain.shape), plain)
    for axis in (0, 1):
        found = lazy.sum(axis=axis)
        assert found.dtype == plain.dtype
        same(found, plain.sum(axis=axis), rtol=1e-11, atol=1e-11)


def test_what_it_is():
    tensor = Vi(Z) * Vj(Y)
    assert repr(tensor) == "ComplexLazyTensor(M=6, N=5, D=3, complex128)"
    assert (tensor.shape, tensor.ndim, tensor.D, tensor._shape) == ((M, N, 3), 3, 3, (M, N, 3))
    assert (tensor[0].shape, tensor[0].ndim, tensor.is_complex) == ((M, N), 2, True)
    assert (Vi(Z.astype("complex64")) * 2.5).dtype == "complex64"
    assert LazyTensor(1j).dtype is None
    for made_of in (Z[:, None], Z[None], C, np.array(2j), 3j, [1j, 2], np.complex64(1)):
        assert type(LazyTensor(made_of)) is ComplexLazyTensor
        assert not isinstance(LazyTensor(made_of), LazyTensor)
    same(np.asarray(LazyTensor([1j, 2])), [[[1j, 2]]])
    for made_of in (X[:, None], 2.5, [1, 2]):
        same(np.asarray(ComplexLazyTensor(made_of)), np.asarray(LazyTensor(made_of)) + 0j)
    assert type(LazyTensor(X, axis=0, is_complex=True)) is ComplexLazyTensor
    assert dred.ComplexLazyTensor is ComplexLazyTensor


def test_sums_and_matrices():
    K, dense = (Vi(Z) * Vj(W)).sum(-1).exp(), np.exp((z * w).sum(-1))
    assert K.D == 1
    same(np.asarray(K), dense)
    b, real = numbers(N, 2), rng.normal(size=(N, 2))
    for right in (b, real, b[:, 0], real[:, 0]):
        found = K @ right
        same(found, dense @ right)
        assert found.dtype == complex
        assert found.shape == (dense @ right).shape
    same(K @ Vj(b), dense @ b)
    same((Vi(X) * Vj(Y)).sum(-1) @ b, (x * y).sum(-1) @ b)
    same(K.T @ Z, dense.T @ Z)
    same(K.mean(axis=0)[:, 0], dense.mean(0))
    same((Vi(Z) - Vj(Y)).mean(axis=1), (z - y).mean(1))
    weights = Vi(X).sqdist(Vj(Y))
    expected = np.exp(((x - y) ** 2).sum(-1))
    same(weights.sumsoftmaxweight(Vj(W), axis=1), expected @ W / expected.sum(1)[:, None], rtol=1e-11)
    same(np.asarray(Vi(X) | Vj(W)), (x * w).sum(-1))
    matrix = numbers(M, 6)
    same(np.asarray(Vi(matrix).matvecmult(Vj(Y))), np.einsum("iab,jb->ija", matrix.reshape(M, 2, 3), Y))
    same(np.asarray(Vi(X).tensorprod(Vj(W))), np.einsum("ia,jb->ijab", X, W).reshape(M, N, 9))
    same(np.asarray((Vi(X) - Vj(Y)).ifelse(Vi(Z), 1j)), np.where(x - y >= 0, z, 1j))
    same(np.asarray(ComplexLazyTensor.concatenate((Vi(Z), Vj(Y), 1j))),
         np.concatenate([np.broadcast_to(a, (M, N, a.shape[-1])) for a in (z, y, np.array([1j]))], -1))  # fmt: skip


def test_norms_are_those_of_the_real_vectors():
    u, v = Vi(Z), Vj(W)
    same(np.asarray((u - v).sqnorm2()), (abs(z - w) ** 2).sum(-1))
    same(np.asarray(u.sqdist(v)), (abs(z - w) ** 2).sum(-1))
    same(np.asarray(u.sqdist(v[0])), (abs(z - w[..., :1]) ** 2).sum(-1))
    same(np.asarray(u.sqdist(Vj(Y))), (abs(z - y) ** 2).sum(-1))
    same(np.asarray((u - v).norm(-1)), np.linalg.norm(z - w, axis=-1))
    same(np.asarray(u.normalize()), z / np.linalg.norm(z, axis=-1, keepdims=True))
    assert type(u.sqdist(v)) is LazyTensor


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_arrays_are_not_copied(dtype):
    a = np.ascontiguousarray(Z, dtype)
    held = Vi(a).sum(axis=1, call=False).held[0]
    assert np.shares_memory(held.rows, a)
    assert held.rows.dtype == pairs.REAL[dtype]
    found = (Vi(a) * 2).sum(axis=1)
    assert found.dtype == dtype
    assert found.flags.c_contiguous
    np.testing.assert_array_equal((Vi(np.asfortranarray(a)) * 2).sum(axis=1), found)  # these are
    np.testing.assert_array_equal((Vi(a[::-1]) * 2).sum(axis=1), found[::-1])


@pytest.mark.parametrize("chunks", [((2, 4), (3,)), ((1, 1, 4), (1, 2)), ((6,), (2, 1))])
def test_dask_arrays_stay_lazy(chunks):
    u, v = Vi(da.from_array(Z, chunks=chunks)), Vj(da.from_array(W, chunks=((2, 3), (3,))))
    found = (u * v).exp().sum(axis=1)
    assert isinstance(found, da.Array)
    assert (found.dtype, found.shape, found.chunks[0]) == (complex, (M, 3), chunks[0])
    computed = found.compute()
    assert computed.dtype == complex
    same(computed, np.exp(z * w).sum(1))
    flipped = da.from_array(np.ascontiguousarray(Z.T), chunks=(3, 2)).T
    same((Vi(flipped) * v).sum(axis=0).compute(), (z * w).sum(0))


def test_variables_without_arrays():
    product = ComplexLazyTensor((0, 3, 0)) * LazyTensor((1, 3, 1), is_complex=True) * Vi(X)
    assert repr(product) == "ComplexLazyTensor(M=6, N=None, D=3, complex128)"
    call = product.sum(axis=1)
    same(call(Z, W), (z * w * x).sum(1))
    with pytest.raises(InputError, match=r"have the positions \[0, 0\]: they must be 0, 1, ..., each once"):
        (ComplexLazyTensor((0, 3, 0)) * LazyTensor((0, 6, 0))[:3]).sum(axis=1)
    with pytest.raises(DtypeError, match="argument 1 is complex, got an array of float64"):
        call(Z, Y)
    with pytest.raises(DtypeError, match="argument 0 is real, got an array of complex128"):
        LazyTensor((0, 3, 0)).sum(axis=1)(Z)


def test_out():
    out = np.empty((M, 3), complex)
    assert (Vi(Z) * Vj(W)).sum(axis=1, out=out) is out
    same(out, (z * w).sum(1))
    for wrong in (np.empty((M, 3)), np.empty((3, M), complex).T):
        with pytest.raises(InputError, match="out must be C-contiguous and complex, as the result is"):
            (Vi(Z) * Vj(W)).sum(axis=1, out=wrong)


@pytest.mark.parametrize("square", [True, False])
def test_scipy_takes_it_for_a_linear_operator(square):
    points, others = rng.normal(size=(30, 2)), rng.normal(size=(30 if square else 20, 2))
    tensor = (-Vi(points).sqdist(Vj(others)) + 1j * (Vi(points) | Vj(others))).exp()
    dense = np.asarray(tensor)
    operator = linalg.aslinearoperator(tensor)
    assert (operator.shape, operator.dtype) == (dense.shape, np.complex128)
    v, e = numbers(dense.shape[1]), numbers(dense.shape[0])
    same(operator @ v, dense @ v)
    same(operator.H @ e, dense.conj().T @ e)
    same(operator.T @ e, dense.T @ e)
    same(operator.H @ numbers(30, 2) * 0 + 1, np.ones((dense.shape[1], 2)))
    same(np.vdot(e, operator.matvec(v)), np.vdot(operator.rmatvec(e), v))  # adjoint
    if square:
        b = numbers(30)
        shifted = linalg.LinearOperator((30, 30), matvec=lambda v: tensor @ v + 40 * v, dtype=complex)
        solution, failed = linalg.gmres(shifted, b, rtol=1e-12)
        assert not failed
        same((dense + 40 * np.eye(30)) @ solution, b, rtol=1e-9, atol=1e-9)


def test_the_adjoint_of_a_real_operator():
    tensor = (-Vi(X).sqdist(Vj(Y))).exp()
    operator, dense = linalg.aslinearoperator(tensor), np.asarray(tensor)
    e = rng.normal(size=M)
    same(operator.H @ e, dense.T @ e)
    same(operator.rmatvec(e), dense.T @ e)


def test_derivatives_count_pairs_of_real_numbers():
    u, v = Vi(Z), Vj(W)
    e = numbers(M, 3)
    cube = u**3 * v
    same(np.asarray(cube.grad(u, Vi(e))), np.conj(3 * z**2 * w) * e[:, None])
    same(np.asarray(cube.diff(u, Vi(e))), 3 * z**2 * w * e[:, None])
    assert type(cube.grad(u, 1 + 0 * u)) is ComplexLazyTensor
    t = Vi(X)
    wave = (1j * t * v).exp()  # of a real variable
    slope = 1j * w * np.exp(1j * x * w)
    same(np.asarray(wave.grad(t, Vi(e))), (np.conj(slope) * e[:, None]).real)
    assert type(wave.grad(t, Vi(e))) is LazyTensor
    same(np.asarray(wave.diff(t, Vi(X))), slope * x)
    same(np.asarray(abs(u).grad(u, t)), z / abs(z) * x)  # a real function of complex numbers
    same(np.asarray(abs(u).diff(u, Vi(e))), (np.conj(z) * e[:, None]).real / abs(z))
    same(np.asarray(cube.factorize(v).auto_factorize()), z**3 * w)


# -- nothing computes on pairs by accident -----------------------------------------------------------------------------

ALLOWED = {*kinds.LINEAR, *kinds.COUNTERPARTS, *kinds.NORMS, *kinds.POWERS, "Pow"}


def arguments(op):
    dims, attrs = op.example or ((3,) * len(op.args), (1,) * len(op.attrs))
    return [2 * d for d in dims], attrs


@pytest.mark.parametrize(
    "name", [op.name for op in OPS.values() if op.args and op.name not in ALLOWED and not op.kinds]
)
def test_every_other_operation_refuses_complex_numbers(name):
    op = OPS[name]
    dims, attrs = arguments(op)
    for flags in itertools.product([False, True], repeat=len(dims)):
        if any(flags):
            tensors = [
                (ComplexLazyTensor if flag else LazyTensor)((k, dim // 2 if flag else dim, 0))
                for k, (dim, flag) in enumerate(zip(dims, flags, strict=True))
            ]
            with pytest.raises(ArgumentError, match=f"{name} takes no complex numbers\nreal, imag, abs and angle give"):
                tensors[0].call(name, *tensors, *attrs)


REDUCED = [name for name in dred.reductions.REDUCTIONS if name not in ("Sum", "Mean")]


@pytest.mark.parametrize("name", REDUCED)
def test_every_other_reduction_refuses_complex_numbers(name):
    with pytest.raises(OptionError, match=rf"{name} of complex numbers \(F\): Sum and Mean are offered; real, imag"):
        Vi(Z).reduction(name, axis=1)
    assert not hasattr(ComplexLazyTensor, made.called(name))
    assert not hasattr(ComplexLazyTensor, f"{made.called(name)}_reduction")


def test_kinds_are_those_of_the_references():
    """An entry that says of its vectors that they are complex computes on pairs."""
    assert {op.name for op in OPS.values() if op.kinds} == {name for name in OPS if "Complex" in name or name == "Conj"}
    for op in OPS.values():
        if op.kinds and not op.attrs and op.name != "ComplexRealScal":
            given = [numbers(2) if letter == "c" else rng.normal(size=2) for letter in op.kinds.partition("->")[0]]
            found = op.numpy(*(a.view(float) for a in given))
            length = 1 if op.name == "ComplexSum" else 2
            assert found.shape == (length * (2 if op.kinds.endswith("c") else 1),)


ERRORS = {
    "log": (lambda: Vi(X).atan2(Vj(W)), ArgumentError, "Atan2 takes no complex numbers"),
    "comparison": (lambda: Vi(Z) < 1, ArgumentError, "LessThan takes no complex numbers"),
    "equality": (lambda: Vi(Z) == Vi(Z), ArgumentError, "Equal takes no complex numbers"),
    "inequality": (lambda: Vi(X) != Vi(Z), ArgumentError, "NotEqual takes no complex numbers"),
    "remainder": (lambda: Vi(Z) % 2, ArgumentError, "Mod takes no complex numbers"),
    "scalar product": (lambda: Vi(Z) | Vj(W), ArgumentError, "Scalprod takes no complex numbers"),
    "condition": (
        lambda: Vi(X).ifelse(1, 2).call("IfElse", Vi(Z), 1, 2),
        ArgumentError,
        "IfElse takes no complex numbers",
    ),
    "root": (lambda: Vi(Z) ** 0.5, ArgumentError, "a ** b: complex numbers have integers for exponents"),
    "exponent": (lambda: 2 ** Vi(Z), ArgumentError, "a ** b: complex exponents are not offered"),
    "real of real": (
        lambda: Vi(Z).call("Real2Complex", Vi(Z)),
        ArgumentError,
        "Real2Complex takes no complex numbers there",
    ),
    "two complex ones": (
        lambda: Vi(Z).complexrealscal(Vj(W)),
        ArgumentError,
        "ComplexRealScal takes no complex numbers there",
    ),
    "laplacian": (lambda: Vi(Z).derived("Laplacian", Vi(Z)), ArgumentError, "Laplacian takes no complex numbers"),
    "cotangent": (
        lambda: Vi(X).grad(Vi(X), Vi(Z)),
        ArgumentError,
        "the last argument of Grad is complex, and what it belongs to is real",
    ),
    "dimensions": (
        lambda: Vi(Z) + Vi(numbers(M, 2)),
        DimensionError,
        "dimensions (3, 2) do not broadcast: each must be 1 or 3",
    ),
    "dimensions of a product": (
        lambda: Vi(Z) * Vi(numbers(M, 2)),
        DimensionError,
        "dimensions (3, 2) do not broadcast: each must be 1 or 3",
    ),
    "weights": (
        lambda: Vi(X).logsumexp(axis=1, weight=Vj(W)),
        OptionError,
        "LogSumExp of complex numbers (G): SumSoftMaxWeight and SoftMax are offered; real, imag, abs and angle give "
        "real LazyTensors of a complex one",
    ),
    "type": (
        lambda: Vi(np.ones((2, 1), np.clongdouble)),
        DtypeError,
        f"an array has type {np.dtype(np.clongdouble)}: it is complex64 or complex128, convert it with .astype",
    ),
    "half": (
        lambda: (1j * Vi(X.astype("f2"))).sum(axis=1),
        DtypeError,
        "complex numbers are made of float32 or float64, got arrays of float16: convert them",
    ),
    "no components": (
        lambda: Vi(np.zeros((3, 0), complex)),
        DimensionError,
        "vectors of 0 components: they have 1 to 500000",
    ),
    "number": (lambda: complex(Vi(Z)), TypeError, "a LazyTensor is no number: reduce it first"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    act, kind, said = ERRORS[case]
    with pytest.raises(kind) as error:
        act()
    assert str(error.value).partition("\n")[0] == said


def test_types_are_not_mixed():
    with pytest.raises(DtypeError, match="all arrays must have one type"):
        (Vi(Z.astype("complex64")) * Vj(Y)).sum(axis=1)


def test_exponents_have_a_limit():
    with pytest.raises(dred.LimitError, match="the exponent 1000001 is outside"):
        Vi(Z) ** 1000001
