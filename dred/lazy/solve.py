"""Linear systems of LazyTensors: K a = b, or K(a) = b for a formula that is linear in a variable."""

from __future__ import annotations

from typing import Any

from dred.errors import DtypeError, InputError
from dred.inputs import kind_of, native
from dred.lazy.base import Lazy
from dred.lazy.call import Call
from dred.lazy.given import read, what
from dred.solve import KernelSolve


def solve_lazy(
    self: Any,
    other: Any,
    var: Any = None,
    call: bool = True,
    *,
    axis: int = 1,
    dtype_acc: Any = "auto",
    use_double_acc: bool = False,
    sum_scheme: str = "auto",
    expand: bool = False,
    **how: Any,
) -> Any:
    """The solution a of alpha a_i + sum over j of K(i, j) a_j = b_i, for a symmetric positive definite K.

    Parameters
    ----------
    self : LazyTensor
        K, with an array for each of its variables, but `var`.
    other : array (..., M, D) or (M,)
        b, for a K of dimension 1, or of dimension D. Dimensions in front are those of a batch.
    var : LazyTensor, optional
        A variable without an array, (ind, dim, 1), in which K is linear: then K(a) = b is solved, and K is not
        multiplied with a.
    call : bool
        False: nothing is computed, and a function without arguments is given, which does.
    axis : {0, 1}
        0: the sum is over i, and `var` is a variable of i.
    dtype_acc, use_double_acc, sum_scheme, expand
        As in `Genred`.
    **how
        As in a call of `KernelSolve`: alpha, eps, preconditioner, ...

    Returns
    -------
    array
        Like b; with `return_info=True` a tuple of it and a `SolveInfo`.

    Raises
    ------
    InputError, DtypeError, FormulaError, SolveError
        As `KernelSolve`; complex numbers, and tensors of other libraries, whose gradients would be lost.

    Examples
    --------
    >>> import numpy as np
    >>> from dred import Vi, Vj
    >>> x, b = np.random.default_rng(0).random((2, 100, 1))
    >>> K = (-(Vi(x) - Vj(x)).square().sum()).exp()
    >>> a = K.solve(b, alpha=0.1)
    >>> bool(np.allclose(K @ a + 0.1 * a, b, atol=1e-5))
    True
    """
    array = native(other, "the right side")
    if kind_of(array) is None or array.ndim < 1:
        raise InputError(f"the right side of solve is an array (..., M, D) or (M,), got {what(other)}")
    rows = array[:, None] if array.ndim == 1 else array[...]  # an array of its own: one that K holds stays what it is
    formula, v = self, var
    if v is None:
        front = [slice(None)] * (rows.ndim - 2)
        kept = (*front, None) if axis == 1 else (*front, slice(None), None)
        v = Lazy._made(read(rows[kept], None, self.is_complex, cat=axis))
        formula = self * v
    found: Call = formula.reduction(
        "Sum", axis=formula.nbatchdims + axis, call=False, dtype_acc=dtype_acc, use_double_acc=use_double_acc,
        sum_scheme=sum_scheme, expand=expand,
    )  # fmt: skip
    if found.is_complex:
        raise DtypeError("solve is for real numbers, not for complex ones")
    if any(h.kinds is not None for h in found.held):
        raise InputError(
            "solve takes no tensors of other libraries, whose gradients would be lost: pass arrays to dred.Vi and "
            "dred.Vj, and take gradients by dred.vjp of a dred.KernelSolve"
        )
    if v.node not in found.sources:
        raise InputError("solve needs a formula that depends on the variable it is solved for")
    place = found.sources[v.node]
    if any(h.array is None for k, h in enumerate(found.held) if k != place):
        raise InputError("solve needs an array for each variable, but the one that it is solved for")
    arrays = [rows if k == place else h.rows for k, h in enumerate(found.held)]
    solver = KernelSolve.of(found.routine, place)

    def solved() -> Any:
        a = solver(*arrays, **how)
        if array.ndim > 1:
            return a
        return (a[0][..., 0], a[1]) if isinstance(a, tuple) else a[..., 0]

    return solved() if call else solved
