"""Linear systems of LazyTensors: K a = b, or K(a) = b for a formula that is linear in a variable."""

from __future__ import annotations

from typing import Any

from dred.errors import InputError
from dred.formula.derive import limited, substitute
from dred.formula.language import Variable
from dred.inputs import kind_of, native
from dred.lazy.base import Lazy
from dred.lazy.call import places, routine
from dred.lazy.given import read, what
from dred.solve import KernelSolve


def solved(
    K: Lazy,
    b: Any,
    var: Any = None,
    axis: int = 1,
    dtype_acc: Any = "auto",
    use_double_acc: bool = False,
    sum_scheme: str = "auto",
    expand: bool = False,
    **how: Any,
) -> Any:
    """The solution a of alpha a_i + sum over j of K(i, j) a_j = b_i, K symmetric and positive definite.

    Parameters
    ----------
    K : LazyTensor
        With an array for each of its variables, but `var`.
    b : array (..., M, D) or (M,)
        For a K of dimension 1, or of dimension D.
    var : LazyTensor, optional
        A variable without an array, (ind, dim, 1), in which K is linear: then K(a) = b is solved, and K is not
        multiplied with a.
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
    InputError, FormulaError, SolveError
        As `KernelSolve`.

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
    array = native(b, "the right side")
    if kind_of(array) is None or array.ndim == 0:
        raise InputError(f"the right side of solve is an array (..., M, D) or (M,), got {what(b)}")
    rows = array[:, None] if array.ndim == 1 else array[...]  # an array of its own: one that K holds stays what it is
    front = [slice(None)] * (rows.ndim - 2)
    kept = (*front, None) if axis == 1 else (*front, slice(None), None)
    right: Lazy = Lazy._made(read(rows, axis) if rows.ndim == 2 else read(rows[kept], None))
    if var is None:
        formula = K.call("Mult", K, right)
        node, held = formula.node, dict(formula.held)
    else:
        node = substitute(K.node, {var.node: right.node})
        held = {n: h for n, h in K.held.items() if n is not var.node} | dict(right.held)
    if any(h.array is None for h in held.values()):
        raise InputError("solve needs an array for each variable, but the one that it is solved for")
    new, listed = places([node], held)
    variables = tuple(sorted({Variable(n.attrs[0], n.dim, n.attrs[1]) for n in new.values()}))
    accumulation = (dtype_acc, use_double_acc, sum_scheme, False)
    made = routine("Sum", limited(substitute(node, new)), None, axis, None, variables, accumulation, expand)
    found = KernelSolve.of(made, int(new[right.node].attrs[0]))(*(h.rows for h in listed), **how)
    if array.ndim > 1:
        return found
    return (found[0][:, 0], found[1]) if isinstance(found, tuple) else found[:, 0]
