"""LazyTensor and ComplexLazyTensor: formulas written as arithmetic on arrays of points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dred.errors import InputError
from dred.inputs import native
from dred.lazy.base import Lazy, joined
from dred.lazy.given import read, what
from dred.lazy.methods import ComplexMethods, Methods
from dred.lazy.solve import solve_lazy


class LazyTensor(Lazy, Methods, is_complex=False):
    """A vector F(i, j) for every pair of rows, of which nothing is computed until it is reduced.

    Parameters
    ----------
    x : array, number, list of numbers, or (ind, dim, cat)
        A NumPy, dask or CuPy array (or one of PyTorch, JAX, ..., by DLPack) of shape (M, 1, D), a vector for each i;
        (1, N, D), for each j; (D,) or (1, 1, D), a parameter; or of two dimensions with `axis`. Dimensions in front of
        these three are those of a batch, and broadcast. Numbers are constants,
        exact in every type. A tuple of three integers is a variable without an array: argument `ind` of what a
        reduction then gives, of `dim` components and category `cat` (0: for each i, 1: for each j, 2: a parameter).
        Of complex numbers (complex64, complex128) it is a `ComplexLazyTensor`.
    axis : {0, 1}, optional
        Of an array of two dimensions: 0, a row for each i; 1, for each j.
    is_complex : bool
        Whether real numbers, and a variable without an array, are taken for complex ones.

    Attributes
    ----------
    node : Node
        The formula.
    held : mapping of Node to Held
        The variables that it was made of, with their arrays; also those that the formula has lost, as x * 0 has: they
        say how many rows there are.

    Raises
    ------
    InputError
        Another shape, or something that is no array.

    Examples
    --------
    >>> import numpy as np
    >>> from dred import Vi, Vj
    >>> rng = np.random.default_rng(0)
    >>> x, y, b = Vi(rng.random((1000, 3))), Vj(rng.random((2000, 3))), rng.random((2000, 2))
    >>> K = (-((x - y) ** 2).sum(-1)).exp()
    >>> K
    LazyTensor(M=1000, N=2000, D=1, float64)
    >>> (K @ b).shape, K.sum(axis=0).shape, x.sqdist(y).argKmin(5, axis=1).shape
    ((1000, 2), (2000, 1), (1000, 5))
    """

    __slots__ = ()

    @property
    def real(self) -> LazyTensor:
        """Itself."""
        return self

    @property
    def imag(self) -> LazyTensor:
        """0."""
        return self * 0

    solve = solve_lazy

    def sinc(self) -> LazyTensor:
        """sin(pi x) / (pi x), and 1 at 0."""
        return (self * math.pi).sinxdivx()

    def keops_tensordot(self, other: Any, dimfa: Any, dimfb: Any, contfa: Any, contfb: Any, *args: Any) -> LazyTensor:
        """The contraction of two tensors of the shapes `dimfa`, `dimfb` over the axes `contfa`, `contfb`.

        Behind them a permutation may stand: which axis of the result each axis of the contraction becomes.
        """
        lists = [(each,) if isinstance(each, int) else tuple(each) for each in (dimfa, dimfb, contfa, contfb, *args)]
        found: LazyTensor = self.call("TensorDot", self, other, *lists)
        return found

    @staticmethod
    def concatenate(tuple_of_lt: Sequence[Any], axis: int = -1) -> LazyTensor:
        """The components of several, one after another."""
        found: LazyTensor = joined(tuple_of_lt, axis)
        return found

    @staticmethod
    def cat(tuple_of_lt: Sequence[Any], dim: int = -1) -> LazyTensor:
        """The components of several, one after another."""
        found: LazyTensor = joined(tuple_of_lt, dim)
        return found


class ComplexLazyTensor(Lazy, ComplexMethods, is_complex=True):
    """A LazyTensor of complex numbers: parameters, attributes and errors are those of `LazyTensor`.

    It is what becomes of complex arrays and numbers, of `1j * x`, `x.exp1j()`, `x.real2complex()`. Sums, means and
    products with matrices give complex arrays; whatever has no meaning for complex numbers is refused.

    Examples
    --------
    >>> import numpy as np
    >>> from dred import Vi, Vj
    >>> x, y = np.linspace(0, 1, 4)[:, None], np.linspace(0, 9, 5)[:, None]
    >>> K = (-1j * (Vi(x) | Vj(y))).exp()                   # a Fourier matrix
    >>> K
    ComplexLazyTensor(M=4, N=5, D=1, complex128)
    >>> bool(np.allclose(K @ np.ones(5), np.exp(-1j * x * y.T).sum(1))), abs(K)
    (True, LazyTensor(M=4, N=5, D=1, float64))
    """

    __slots__ = ()

    @property
    def real(self) -> LazyTensor:
        """The real parts."""
        found: LazyTensor = self.call("ComplexReal", self)
        return found

    @property
    def imag(self) -> LazyTensor:
        """The imaginary parts."""
        found: LazyTensor = self.call("ComplexImag", self)
        return found

    @staticmethod
    def concatenate(tuple_of_lt: Sequence[Any], axis: int = -1) -> ComplexLazyTensor:
        """The components of several, one after another."""
        found: ComplexLazyTensor = joined(tuple_of_lt, axis)
        return found

    @staticmethod
    def cat(tuple_of_lt: Sequence[Any], dim: int = -1) -> ComplexLazyTensor:
        """The components of several, one after another."""
        found: ComplexLazyTensor = joined(tuple_of_lt, dim)
        return found


def Vi(x_or_ind: Any, dim: int | None = None) -> LazyTensor:
    """A vector for each i: of an array (M, D) or (..., M, 1, D); or `Vi(ind, dim)`, argument `ind` of a reduction."""
    return _variable(x_or_ind, dim, 0)


def Vj(x_or_ind: Any, dim: int | None = None) -> LazyTensor:
    """A vector for each j: of an array (N, D) or (..., 1, N, D); or `Vj(ind, dim)`, argument `ind` of a reduction."""
    return _variable(x_or_ind, dim, 1)


def Pm(x_or_ind: Any, dim: int | None = None) -> LazyTensor:
    """A parameter: of an array (D,) or (..., 1, 1, D), a number or a list; or `Pm(ind, dim)`, argument `ind`."""
    return _variable(x_or_ind, dim, 2)


def _variable(x: Any, dim: int | None, cat: int) -> LazyTensor:
    """What `Vi` (cat 0), `Vj` (1) and `Pm` (2) make."""
    if dim is not None:
        return LazyTensor((x, dim, cat))
    two = len(getattr(native(x, "an array"), "shape", ())) == 2
    found: LazyTensor = Lazy._made(read(x, cat if cat < 2 and two else None, cat=cat))
    kinds = ("vectors for each i", "vectors for each j", "a parameter")
    if found.node.op == "Var" and found.node.attrs[1] != cat:
        raise InputError(f"{what(x)} is {kinds[found.node.attrs[1]]}, not {kinds[cat]}")
    if found.node.op != "Var" and cat < 2:
        raise InputError(f"{kinds[cat]} are an array (rows, D), got {what(x)}")
    return found
