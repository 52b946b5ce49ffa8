"""Gradients of LazyTensors' reductions, against differences of their values."""

import dask.array as da
import numpy as np
import pytest

import dred
from dred import LazyTensor, Pm, Vi, Vj
from dred.errors import DerivativeError, DtypeError, InputError, OptionError

M, N = 5, 4
rng = np.random.default_rng(12)
X, Y, P = rng.normal(size=(M, 3)), rng.normal(size=(N, 3)), np.array([0.5, 1.5, 1.0])
Z = rng.normal(size=(M, 3)) + 1j * rng.normal(size=(M, 3))
B = rng.normal(size=(N, 2))

# Of the arrays, a LazyTensor's reduction that is not computed.
CASES = {
    "a Gaussian sum": (
        lambda x, y, p, b: ((-(p * (Vi(x) - Vj(y)) ** 2).sum(-1)).exp() * Vj(b)).sum(axis=1, call=False),
        (X, Y, P, B),
    ),
    "over i": (lambda x, y: (Vi(x) * Vj(y)).sum(-1).exp().sum(axis=0, call=False), (X, Y)),
    "one array on both sides": (lambda x: Vi(x).sqdist(Vj(x)).exp().sum(axis=1, call=False), (X * 0.3,)),
    "one array twice on a side": (lambda x: ((Vi(x) + 1) * Vi(x) * Vj(x).exp()).sum(axis=0, call=False), (X,)),
    "three dimensions": (
        lambda x, y, p: (LazyTensor(x) * LazyTensor(y) * LazyTensor(p)).exp().sum(axis=1, call=False),
        (X[:, None], Y[None], P[None, None]),
    ),
    "a log-sum-exp with weights": (
        lambda x, y, b: (Vi(x) | Vj(y)).logsumexp(axis=1, weight=Vj(b) ** 2 + 1, call=False),
        (X, Y, B),
    ),
    "a soft maximum": (lambda x, y, b: (Vi(x) | Vj(y)).sumsoftmaxweight(Vj(b), axis=1, call=False), (X, Y, B)),
    "the smallest ones": (lambda x, y: Vi(x).sqdist(Vj(y)).Kmin(2, axis=1, call=False), (X, Y)),
    "values and row numbers": (lambda x, y: Vi(x).sqdist(Vj(y)).min_argmin(axis=1, call=False), (X, Y)),
    "swapped": (lambda x, y: (Vi(x) * Vj(y)).exp().T.sum(axis=1, call=False), (X, Y)),
    "complex numbers": (lambda z, y: (Vi(z) * Vj(y)).exp().sum(axis=1, call=False), (Z, Y)),
    "real ones of complex ones": (lambda z, y: abs(Vi(z) * Vj(y) + 1j).sum(axis=0, call=False), (Z, Y)),
    "complex ones of real ones": (lambda x, y: (Vi(x) * Vj(y)).exp1j().sum(axis=1, call=False), (X, Y)),
}


def first(value):
    return value[0] if isinstance(value, tuple) else value


def like(array, seed):
    generator = np.random.default_rng(seed)
    real = generator.normal(size=array.shape)
    return real + 1j * generator.normal(size=array.shape) if array.dtype.kind == "c" else real


@pytest.mark.parametrize("name", CASES)
def test_pullbacks_against_differences(name, tiny):
    make, arrays = CASES[name]
    call = make(*arrays)
    value, pullback = dred.vjp(call, *arrays)
    np.testing.assert_array_equal(first(value), first(call()))
    e = like(first(value), 1)
    gradients = pullback(e)
    assert [g.shape for g in gradients] == [a.shape for a in arrays]
    assert [g.dtype for g in gradients] == [a.dtype for a in arrays]
    h = 1e-6
    for k, gradient in enumerate(gradients):
        u = like(arrays[k], 2 + k)
        sides = [first(make(*arrays[:k], arrays[k] + s * h * u, *arrays[k + 1 :])()) for s in (1, -1)]
        slope = (np.conj(e) * (sides[0] - sides[1])).sum().real / (2 * h)
        np.testing.assert_allclose((np.conj(gradient) * u).sum().real, slope, rtol=1e-6)


def test_by_which_arrays():
    u, v, q = Vi(X), Vj(X), Pm(P)
    call = (u * v * q).exp().sum(axis=1, call=False)
    e = np.ones((M, 3))
    assert [a is b for a, b in zip(call.arrays, (X, P), strict=True)] == [True, True]
    both, by_q = dred.vjp(call)[1](e)
    by_u, by_v, again = dred.vjp(call, u, v, X)[1](e)
    np.testing.assert_allclose(by_u + by_v, both, rtol=1e-13)
    np.testing.assert_array_equal(again, both)
    dense = np.exp(X[:, None] * X[None] * P)
    np.testing.assert_allclose(by_u, (dense * X[None] * P).sum(1), rtol=1e-12)
    np.testing.assert_allclose(by_v, (dense * X[:, None] * P).sum(0), rtol=1e-12)
    np.testing.assert_allclose(by_q, (dense * X[:, None] * X[None]).sum((0, 1)), rtol=1e-12)
    np.testing.assert_allclose(call.grad(P), by_q, rtol=1e-13)
    assert len(call.grad()) == 2
    np.testing.assert_allclose(call.grad(X, P)[0], both, rtol=1e-13)
    np.testing.assert_allclose(call.vjp(q)[1](e)[0], by_q, rtol=1e-13)


def test_gradients_by_what_the_formula_has_lost_are_0():
    array = Z[:, None]
    lost = Vi(array)
    call = (lost - lost + Vi(X) * Vj(Y)).real.sum(axis=1, call=False)
    assert len(call.arrays) == 2
    by_array, by_lost, by_x = dred.vjp(call, array, lost, X)[1](np.ones((M, 3)))
    np.testing.assert_allclose(by_x, np.tile(Y.sum(0), (M, 1)), rtol=1e-13)
    for zero in (by_array, by_lost, dred.vjp(call, array)[1](np.ones((M, 3)))[0]):
        assert (zero.shape, zero.dtype) == ((M, 1, 3), complex)
        assert not zero.any()


@pytest.mark.parametrize("chunks", [(2, 3), (5, 1)])
def test_dask_arrays_stay_lazy(chunks):
    x, y = da.from_array(X, chunks=(chunks[0], 3)), da.from_array(Y, chunks=(chunks[1], 3))
    z = da.from_array(Z, chunks=(chunks[0], 2))
    for make, there, here in ((CASES["over i"][0], (x, y), (X, Y)), (CASES["complex numbers"][0], (z, y), (Z, Y))):
        value, pullback = dred.vjp(make(*there))
        gradients = pullback(da.ones(value.shape, dtype=value.dtype, chunks=3))
        assert all(isinstance(g, da.Array) for g in gradients)
        want = dred.vjp(make(*here))[1](np.ones(value.shape, value.dtype))
        for g, w in zip(gradients, want, strict=True):
            assert g.dtype == w.dtype
            np.testing.assert_allclose(g.compute(), w, rtol=1e-12)


def test_options_of_the_reduction_hold_for_its_gradients():
    with pytest.raises(dred.BackendError, match="cuda"):
        dred.vjp((Vi(X) * Vj(Y)).sum(axis=1, call=False, backend="cuda"))
    value, pullback = dred.vjp((Vi(X) * Vj(Y)).sum(axis=1, call=False, backend="cuda"), X, backend="cpu")
    np.testing.assert_allclose(pullback(value)[0], value * Y.sum(0), rtol=1e-12)


def test_ranges_hold_for_values_and_gradients():
    ranges = tuple(
        np.array(each, np.int32)
        for each in (
            [[0, 2], [2, 5]], [1, 2], [[0, 3], [2, 4]],  # rows 0, 1 meet columns 0, 1, 2; rows 2, 3, 4 columns 2, 3
            [[0, 2], [2, 3], [3, 4]], [1, 3, 4], [[0, 2], [0, 2], [2, 5], [2, 5]],
        )
    )  # fmt: skip
    meet = np.zeros((M, N, 1))
    meet[:2, :3] = meet[2:, 2:] = 1
    K, dense = (Vi(X) * Vj(Y)).exp(), np.exp(X[:, None] * Y) * meet
    np.testing.assert_allclose(K.sum(axis=1, ranges=ranges), dense.sum(1), rtol=1e-12)
    np.testing.assert_allclose(K.T.sum(axis=1, ranges=(*ranges[3:], *ranges[:3])), dense.sum(0), rtol=1e-12)
    np.testing.assert_allclose(K.sum(axis=0, ranges=ranges), dense.sum(0), rtol=1e-12)
    want = (dense * Y).sum(1), (dense * X[:, None]).sum(0)
    held = dred.vjp(K.sum(axis=1, ranges=ranges, call=False), X, Y)[1](np.ones((M, 3)))
    given = dred.vjp(K.sum(axis=1, call=False), X, Y, ranges=ranges)[1](np.ones((M, 3)))
    routine = dred.Genred("Exp(x * y)", ["x = Vi(3)", "y = Vj(3)"], axis=1)
    plain = dred.vjp(routine, X, Y, ranges=ranges)[1](np.ones((M, 3)))
    for found in (held, given, plain):
        for gradient, expected in zip(found, want, strict=True):
            np.testing.assert_allclose(gradient, expected, rtol=1e-12)


CALL = (Vi(X) * Vj(Y)).sum(axis=1, call=False)
ERRORS = {
    "a copy": (
        lambda: dred.vjp(CALL, X.copy()),
        InputError,
        "numpy.ndarray of shape (5, 3) is no array or variable of the reduction: pass the object that Vi, Vj or Pm was "
        "given, or what it made; the arrays have the shapes (5, 3), (4, 3)",
    ),
    "another variable": (
        lambda: dred.vjp(CALL, Vi(X)),
        InputError,
        "dred.lazy.tensor.LazyTensor of shape (5, 1, 3) is no array or variable of the reduction: pass the object that "
        "Vi, Vj or Pm was given, or what it made; the arrays have the shapes (5, 3), (4, 3)",
    ),
    "no arrays": (
        lambda: dred.vjp((Vi(0, 3) * Vj(Y)).sum(axis=1)),
        InputError,
        "variables without arrays: pass them to dred.vjp with the routine, this call's `routine`",
    ),
    "no derivative": (
        lambda: dred.vjp(Vi(X).argmin(axis=1, call=False)),
        DerivativeError,
        "ArgMin: no derivative\nits values only jump",
    ),
    "cotangents": (lambda: dred.vjp(CALL)[1](), InputError, "the pullback takes 1 cotangent, got 0"),
    "a complex cotangent": (
        lambda: dred.vjp(CALL)[1](np.ones((M, 3), complex)),
        DtypeError,
        "the cotangent is real, got an array of complex128",
    ),
    "a complex sum": (
        lambda: (1j * Vi(X)).sum(axis=1, call=False).grad(X),
        OptionError,
        "the result is complex, and so is its sum: pass a cotangent to the pullback of `vjp`",
    ),
    "a tensor": (
        lambda: dred.vjp(Vi(X)),
        OptionError,
        "dred.vjp takes a routine, such as Genred, or a reduction of a LazyTensor, made with call=False; got "
        "LazyTensor",
    ),
    "grad": (
        lambda: dred.grad(CALL),
        OptionError,
        "dred.grad takes a routine; of a reduction of a LazyTensor, which has its arrays, take its methods vjp and "
        "grad, or its routine",
    ),
    "jvp": (
        lambda: dred.jvp(CALL, (X, Y), (X, None)),
        OptionError,
        "dred.jvp takes a routine; of a reduction of a LazyTensor, which has its arrays, take its methods vjp and "
        "grad, or its routine",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    act, kind, said = ERRORS[case]
    with pytest.raises(kind) as error:
        act()
    assert str(error.value) == said


def test_its_text():
    assert repr(CALL) == "Call(Sum over j of Mult(Var(0,3,0), Var(1,3,1)))"
