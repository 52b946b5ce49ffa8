"""Every method of KeOps' LazyTensors, by name and arguments: the same here, or why not."""

import inspect
import itertools
import math
import re

import numpy as np
import pytest

from dred import ComplexLazyTensor, LazyTensor, Pm, Vi, Vj
from dred.errors import ArgumentError, DredError, IndexRangeError, InputError, OptionError
from dred.lazy.refused import REFUSED

# Of pykeops 2.3, `GenericLazyTensor`: arguments behind self.
SAME = re.findall(
    r"\S+",
    """
__add__(other) __radd__(other) __sub__(other) __rsub__(other) __mul__(other) __rmul__(other) __truediv__(other)
__rtruediv__(other) __or__(other) __ror__(other) __abs__() abs() __neg__() exp() log() xlogx() cos() sin() sinxdivx()
sinc() asin() acos() atan() atan2(other) sqrt() rsqrt() __pow__(other) power(other) square() __eq__(other)
__ne__(other) __lt__(other) __gt__(other) __le__(other) __ge__(other) sign() step() relu() clamp(other1,other2)
ifelse(other1,other2) mod(modulus,offset=0) round(other=0) sqnorm2() norm2() norm(dim) normalize() sqdist(other)
weightedsqnorm(other) weightedsqdist(g,s) softdtw_sqdist(other,gamma) elem(i) extract(i,d) __getitem__(key) one_hot(D)
bspline(x,k=0) concat(other) concatenate(tuple_of_lt,axis=-1) cat(tuple_of_lt,dim) matvecmult(other)
vecmatmult(other) tensorprod(other) keops_tensordot(other,dimfa,dimfb,contfa,contfb,*args)
keops_kron(other,dimfself,dimfother) grad(other,gradin) diff(other,diffin) factorize(other) auto_factorize()
grad_matrix(other) trace_operator(var) divergence(var) laplacian(var) sum(axis=-1,dim=None,**kwargs)
sum_reduction(axis=None,dim=None,**kwargs) logsumexp(axis=None,dim=None,weight=None,**kwargs)
logsumexp_reduction(**kwargs) sumsoftmaxweight(weight,axis=None,dim=None,**kwargs) sumsoftmaxweight_reduction(**kwargs)
min(axis=-1,dim=None,**kwargs) min_reduction(axis=None,dim=None,**kwargs) argmin(axis=-1,dim=None,**kwargs)
argmin_reduction(axis=None,dim=None,**kwargs) min_argmin(axis=None,dim=None,**kwargs) min_argmin_reduction(**kwargs)
max(axis=-1,dim=None,**kwargs) max_reduction(axis=None,dim=None,**kwargs) argmax(axis=-1,dim=None,**kwargs)
argmax_reduction(axis=None,dim=None,**kwargs) max_argmax(axis=None,dim=None,**kwargs) max_argmax_reduction(**kwargs)
Kmin(K,axis=None,dim=None,**kwargs) Kmin_reduction(**kwargs) argKmin(K,axis=None,dim=None,**kwargs)
argKmin_reduction(**kwargs) Kmin_argKmin(K,axis=None,dim=None,**kwargs) Kmin_argKmin_reduction(**kwargs)
__matmul__(v,**kwargs) t() matvec(v) rmatvec(v) real2complex() imag2complex() exp1j()
reduction(reduction_op,other=None,opt_arg=None,axis=None,dim=None,call=True,**kwargs) dim() __str__()
solve(other,var=None,call=True,**kwargs)
""",
)
# Of `ComplexGenericLazyTensor`.
COMPLEX = ["angle()", "conj()", "sum(axis=-1,dim=None,**kwargs)", "__abs__()", "exp()", "abs()", "power(other)", "t()"]
PROPERTIES = ("dtype", "shape", "_shape", "T")
COMPLEX_PROPERTIES = ("dtype", "shape", "real", "imag")
CHANGED = {
    "__init__": "LazyTensor is made by __new__, since one of complex numbers is a ComplexLazyTensor",
    "__call__": "a reduction that is not computed is a Call, not a LazyTensor",
    "__min__": "Python knows no such method: min(x) iterates",
    "__max__": "Python knows no such method: max(x) iterates",
    "ndim": "as in NumPy, the dimensions of the array; KeOps' is the number of components, here D",
    "_dtype": "`dtype` is a type of NumPy, which equals its name",
}
COMPLEX_REFUSED = ("real2complex", "imag2complex", "exp1j", "log", "sin", "max", "logsumexp", "mod", "laplacian")


def parameters(text):
    """Of a method as it is written in the tables above: names with defaults."""
    inside = text.partition("(")[2].rstrip(")")
    return [word.partition("=")[::2] for word in inside.split(",") if word]


def check_signature(cls, text):
    name = text.partition("(")[0]
    mine = list(inspect.signature(getattr(cls, name)).parameters.values())
    mine = mine if isinstance(inspect.getattr_static(cls, name), staticmethod) else mine[1:]
    kinds = {p.kind for p in mine}
    for k, (word, default) in enumerate(parameters(text)):
        if word.startswith("**"):
            assert inspect.Parameter.VAR_KEYWORD in kinds or inspect.Parameter.KEYWORD_ONLY in kinds
        elif word.startswith("*"):
            assert mine[k].kind == inspect.Parameter.VAR_POSITIONAL
        else:
            assert mine[k].name == word or name in ("__pow__", "__getitem__", "__matmul__")
            assert not default or repr(mine[k].default) == default
    rest = mine[len(parameters(text)) :]
    assert all(p.default is not p.empty or p.kind in (p.VAR_KEYWORD, p.KEYWORD_ONLY) for p in rest if "**" not in text)


@pytest.mark.parametrize("text", SAME)
def test_signature(text):
    check_signature(LazyTensor, text)


@pytest.mark.parametrize("text", COMPLEX)
def test_signature_of_complex_numbers(text):
    check_signature(ComplexLazyTensor, text)


@pytest.mark.parametrize("text", ["mod(modulo,offset=0)", "mod(modulus,offset=1)", "sqdist()", "exp(**kwargs)"])
def test_a_wrong_signature_is_found(text):
    with pytest.raises(AssertionError):
        check_signature(LazyTensor, text)


def test_properties():
    x = Vi(np.ones((4, 3), "f4"))
    z = 1j * x
    for tensor, names in ((x, PROPERTIES), (z, COMPLEX_PROPERTIES)):
        for name in names:
            assert not callable(getattr(tensor, name))
    assert (x.dtype, z.dtype) == ("float32", "complex64")
    assert (x._shape, x.shape, x[0]._shape, x[0].shape) == ((4, 1, 3), (4, 1, 3), (4, 1, 1), (4, 1))
    assert (x.dim(), x[0].dim(), x[0].ndim, x.D) == (3, 3, 2, 3)
    assert (x.is_complex, z.is_complex) == (False, True)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_why(name):
    x = Vi(np.ones((2, 3)))
    with pytest.raises(AttributeError) as error:
        getattr(x, name)
    assert str(error.value) == f"a LazyTensor has no {name}: {REFUSED[name]}"
    with pytest.raises(AttributeError) as error:
        setattr(x, name, 1)
    assert str(error.value) == f"{name} cannot be set: {REFUSED[name]}"
    assert not hasattr(x, name)


def test_what_is_changed():
    x = Vi(np.ones((2, 3)))
    assert [name for name in ("__min__", "__max__", "__call__", "_dtype") if hasattr(x, name)] == []
    assert set(CHANGED) & set(REFUSED) == set()


@pytest.mark.parametrize("name", COMPLEX_REFUSED)
def test_what_complex_numbers_have_not(name):
    z = Vi(np.ones((2, 3), complex))
    with pytest.raises(AttributeError) as error:
        getattr(z, name)
    assert str(error.value) == (
        f"a ComplexLazyTensor has no {name}, which is for real numbers: real, imag, abs and angle give real "
        "LazyTensors of a complex one"
    )


# -- values of what is written by hand, or whose arguments are turned round --------------------------------------------

rng = np.random.default_rng(8)
X, Y, A = rng.normal(size=(5, 4)), rng.normal(size=(6, 4)), rng.normal(size=(5, 12))
x, y = X[:, None], Y[None]
ONE = np.abs(rng.normal(size=(5, 1))) + 0.5


def kron(a, b, dims, others):
    return np.kron(a.reshape(dims), b.reshape(others)).ravel()


def rows(function, *arrays):
    """A function of two vectors at every pair."""
    return np.array([[function(a, b) for b in arrays[1]] for a in arrays[0]])


def soft_dtw(a, b, gamma):
    r = np.full((len(a) + 1, len(b) + 1), np.inf)
    r[0, 0] = 0
    for i, j in itertools.product(range(len(a)), range(len(b))):
        three = np.array([r[i, j], r[i, j + 1], r[i + 1, j]])
        low = three.min()
        r[i + 1, j + 1] = (a[i] - b[j]) ** 2 + low - gamma * math.log(np.exp((low - three) / gamma).sum())
    return r[-1, -1]


VALUES = {
    "sinc": (lambda: Vi(X).sinc(), lambda: np.sinc(x)),
    "norm": (lambda: (Vi(X) - Vj(Y)).norm(-1), lambda: np.linalg.norm(x - y, axis=-1)),
    "norm of dim": (lambda: (Vi(X) - Vj(Y)).norm(dim=2), lambda: np.linalg.norm(x - y, axis=-1)),
    "elem": (lambda: Vi(X).elem(2), lambda: x[..., 2]),
    "extract": (lambda: Vi(X).extract(1, 2), lambda: x[..., 1:3]),
    "a component": (lambda: Vi(X)[3], lambda: x[..., 3]),
    "components": (lambda: Vi(X)[1:3], lambda: x[..., 1:3]),
    "first components": (lambda: Vi(X)[:3], lambda: x[..., :3]),
    "cat": (lambda: LazyTensor.cat((Vi(X), Vi(A)), -1), lambda: np.concatenate([x, A[:, None]], -1)),
    "one_hot": (
        lambda: Vi(np.array([[0.0], [2.2], [5.0]])).one_hot(3),
        lambda: np.array([[1, 0, 0], [0, 0, 1], [0, 0, 0.0]])[:, None],
    ),
    "mod": (lambda: Vi(X).mod(0.7, -0.2), lambda: (x + 0.2) % 0.7 - 0.2),
    "round": (lambda: Vi(X).round(2), lambda: np.sign(x) * np.floor(np.abs(x) * 100 + 0.5) / 100),
    "clamp": (lambda: Vi(X).clamp(0, 1), lambda: np.clip(x, 0, 1)),
    "clamp by arrays": (lambda: Vi(X).clamp(-0.5, Vj(Y).abs()), lambda: np.clip(x, -0.5, abs(y))),
    "ifelse": (lambda: Vi(X).ifelse(Vj(Y), 7), lambda: np.where(x >= 0, y, 7)),
    "weightedsqnorm": (lambda: Vi(X).weightedsqnorm(2.5), lambda: 2.5 * (x**2).sum(-1)),
    "weightedsqdist": (
        lambda: Vi(X).weightedsqdist(Vj(Y), [1, 2, 3, 4]),
        lambda: ((x - y) ** 2 * [1, 2, 3, 4]).sum(-1),
    ),
    "matvecmult": (lambda: Vi(A).matvecmult(Vj(Y)), lambda: np.einsum("iab,jb->ija", A.reshape(5, 3, 4), Y)),
    "vecmatmult": (lambda: Vj(Y).vecmatmult(Vi(A)), lambda: np.einsum("ja,iab->ijb", Y, A.reshape(5, 4, 3))),
    "tensorprod": (lambda: Vi(X).tensorprod(Vj(Y)), lambda: np.einsum("ia,jb->ijab", X, Y).reshape(5, 6, 16)),
    "keops_kron": (
        lambda: Vi(X).keops_kron(Vj(Y), [2, 2], (1, 4)),
        lambda: rows(lambda a, b: kron(a, b, (2, 2), (1, 4)), X, Y),
    ),
    "keops_tensordot": (
        lambda: Vi(A).keops_tensordot(Vj(Y), (3, 2, 2), [2, 2], (1,), (0,)),
        lambda: np.einsum("iabc,jbd->ijacd", A.reshape(5, 3, 2, 2), Y.reshape(6, 2, 2)).reshape(5, 6, -1),
    ),
    "keops_tensordot, axes": (
        lambda: Vi(A).keops_tensordot(Vj(Y), (3, 2, 2), (2, 2), 1, 0, (1, 2, 0)),
        lambda: np.einsum("iabc,jbd->ijdac", A.reshape(5, 3, 2, 2), Y.reshape(6, 2, 2)).reshape(5, 6, -1),
    ),
    "softdtw_sqdist": (lambda: Vi(X).softdtw_sqdist(Vj(Y), 0.3), lambda: rows(lambda a, b: soft_dtw(a, b, 0.3), X, Y)),
    "bspline": (  # hats on the knots 0, 1, 2, 3
        lambda: LazyTensor([0.0, 1.0, 2.0, 3.0]).bspline(Vi(ONE), k=1),
        lambda: np.stack([np.maximum(0, 1 - abs(ONE - k)) for k in (1, 2)], -1),
    ),
    "difference_matrix": (
        lambda: Vi(X).tensorprod(0 * Vj(Y) + 1) - (0 * Vi(X) + 1).tensorprod(Vj(Y)),
        lambda: (X[:, None, :, None] - Y[None, :, None, :]).reshape(5, 6, 16),
    ),
    "powers": (lambda: (Vi(X) ** 2) ** 0.5 + Vi(X) ** -1, lambda: abs(x) + 1 / x),
    "power by a tensor": (lambda: 2 ** Vi(X) + Vi(ONE) ** Vj(Y), lambda: 2**x + ONE[:, None] ** y),
    "remainder of a number": (lambda: 5 % Vi(ONE), lambda: (5 % ONE)[:, None][..., 0]),
    "factorize": (lambda: (Vi(X) * Vj(Y)).factorize(Vj(Y)).auto_factorize(), lambda: x * y),
    "grad": (lambda: ((u := Vi(X)) ** 3).grad(u, Vj(Y)), lambda: 3 * x**2 * y),
    "diff": (lambda: ((u := Vi(X)) ** 3).diff(u, Vj(Y)), lambda: 3 * x**2 * y),
    "trace_operator": (lambda: ((u := Vi(X)) * Vj(Y)).trace_operator(u), lambda: np.broadcast_to(y.sum(-1), (5, 6))),
    "divergence": (lambda: ((u := Vi(X)) ** 2 * Vj(Y)).divergence(u), lambda: (2 * x * y).sum(-1)),
    "laplacian": (lambda: ((u := Vi(X)) ** 3).sum(-1).laplacian(u), lambda: (6 * x).sum(-1)),
    "real": (lambda: Vi(X).real + Vi(X).imag + Vi(X).conj(), lambda: 2 * x),
}


@pytest.mark.parametrize("name", VALUES)
def test_value(name):
    lazy, expected = VALUES[name]
    np.testing.assert_allclose(np.asarray(lazy()), expected(), rtol=1e-12, atol=1e-13)


def test_options_of_reductions_reach_the_kernel():
    K = -Vi(X).sqdist(Vj(Y))
    want = np.exp(-((x - y) ** 2).sum(-1))
    out = np.empty((5, 1))
    given = {
        "backend": "cpu", "out": out, "dtype_acc": "float64", "sum_scheme": "kahan_scheme", "enable_chunks": False,
        "device_id": -1, "use_fast_math": False, "ranges": None, "optional_flags": [], "use_double_acc": False,
    }  # fmt: skip
    assert K.exp().sum(axis=1, **given) is out
    np.testing.assert_allclose(out[:, 0], want.sum(1), rtol=1e-13)
    later = K.exp().sum_reduction(dim=1, call=False, out=out)
    out[:] = 0
    assert later() is out
    np.testing.assert_allclose(out[:, 0], want.sum(1), rtol=1e-13)
    np.testing.assert_allclose(later(out=None), out)
    np.testing.assert_allclose(K.exp().__matmul__(np.ones(6), backend="cpu"), want.sum(1), rtol=1e-13)
    np.testing.assert_allclose(K.reduction("LogSumExp", axis=1)[:, 0], np.log(want.sum(1)), rtol=1e-12)
    weighted = K.reduction("LogSumExp", Vj(Y[:, :1] ** 2), None, 1)
    np.testing.assert_allclose(weighted[:, 0], np.log(want @ Y[:, 0] ** 2), rtol=1e-12)
    np.testing.assert_allclose(K.reduction("KMin", None, 2, dim=0), K.Kmin_reduction(K=2, axis=0))
    softmax = K.sumsoftmaxweight(Vj(Y), axis=1)
    np.testing.assert_allclose(softmax, (want @ Y) / want.sum(1)[:, None], rtol=1e-12)
    np.testing.assert_allclose(K.sumsoftmaxweight_reduction(weight=Vj(Y), axis=1), softmax)


ERRORS = {
    "elem": (lambda: Vi(X).elem(4), IndexRangeError, "elem(4): x has the components 0 ... 3"),
    "elem of a number": (lambda: Vi(X).elem(1.0), IndexRangeError, "elem(1.0): x has the components 0 ... 3"),
    "extract": (lambda: Vi(X).extract(2, 3), IndexRangeError, "extract(2, 3): x has the components 0 ... 3"),
    "norm": (lambda: Vi(X).norm(1), OptionError, "dim=1: norms are those of vectors, which is dim=-1 or 2"),
    "cat": (
        lambda: LazyTensor.cat((Vi(X),), 0),
        OptionError,
        "axis=0: components are concatenated, which is axis=-1 or 2",
    ),
    "nothing": (
        lambda: LazyTensor.concatenate(()),
        InputError,
        "nothing to concatenate: pass a tuple of LazyTensors, arrays or numbers",
    ),
    "ranges": (
        lambda: Vi(X).sum(axis=1, ranges=(1,)),
        InputError,
        "ranges are six integer arrays, ranges_i, slices_i, redranges_j, ranges_j, slices_j, redranges_i; got 1",
    ),
    "flags": (
        lambda: Vi(X).sum(axis=1, optional_flags=["-O3"]),
        OptionError,
        "optional_flags=['-O3']: no compiler is called that would take them",
    ),
    "fast": (
        lambda: Vi(X).sum(axis=1, use_fast_math="no"),
        OptionError,
        "use_fast_math='no': it is True or False",
    ),
    "named twice": (
        lambda: Vi(X).clamp(1, 2, other1=3),
        ArgumentError,
        "clamp: multiple values for argument 'other1'\nit is clamp(other1, other2)",
    ),
    "no integer": (lambda: Vi(ONE).one_hot(2.5), ArgumentError, "2.5 is given where an integer is due"),
    "no list": (lambda: Vi(X).keops_kron(Vj(Y), 4, 4), ArgumentError, "4 is given where a list of integers is due"),
    "changed": (
        lambda: setattr(Vi(X), "node", 1),
        AttributeError,
        "node cannot be set: nothing of a LazyTensor can be changed: make another one",
    ),
    "unknown": (lambda: Vi(X).exponential(), AttributeError, "'LazyTensor' object has no attribute 'exponential'"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    act, kind, said = ERRORS[case]
    with pytest.raises(kind) as error:
        act()
    assert str(error.value) == said
    assert isinstance(error.value, DredError | AttributeError)


def test_vectors_of_two_lengths_have_no_scalar_product():
    with pytest.raises(DredError):
        Vi(X) | Vi(A)
    np.testing.assert_allclose(np.asarray(Pm([1, 2, 3, 4]) | Vi(X)), (x * [1, 2, 3, 4]).sum(-1), rtol=1e-14)
