"""Genred and Reduction: a reduction as a callable, by its formula or by one text, as users of KeOps know them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dred.errors import OptionError
from dred.formula.language import formula as read_formula
from dred.formula.language import suggestion
from dred.formula.reduced import Reduced
from dred.formula.reduced import reduction as read_reduction
from dred.reductions import REDUCTIONS
from dred.routine import Routine


class Genred(Routine):
    r"""A generic reduction over all pairs (i, j) of points, in linear memory.

    .. math:: \mathrm{out}_i = \mathrm{Reduction}_j \; F(p, x_i, y_j) \quad (\mathrm{axis} = 1)

    and with the roles of i and j exchanged for axis = 0. The M × N values of F are never stored.

    Parameters
    ----------
    formula : str
        F, for example ``"Square(p-a)*Exp(x+y)"``.
    aliases : sequence of str
        One declaration per input: ``"x = Vi(3)"`` (an array (M, 3)), ``"y = Vj(3)"`` (an array (N, 3)),
        ``"p = Pm(1)"`` (an array (1,)). Never modified.
    reduction_op : str
        "Sum".
    axis : {0, 1}
        1 reduces over j and keeps one row per i; 0 reduces over i and keeps one row per j.
    dtype : str or dtype, optional
        "float32" or "float64": the type of all arrays of a call. By default that of the arrays.
    opt_arg, formula2
        Not taken by the reductions there are: anything but None is refused.
    cuda_type
        Without effect (accepted for compatibility).
    dtype_acc : str
        Type in which the rows are accumulated: "auto" (float64), "float32" or "float64", not narrower than `dtype`.
    use_double_acc : bool
        True: ``dtype_acc="float64"``.
    sum_scheme : str
        "auto" and "block_sum" add 32 terms at a time in the compute type, then add these sums to the accumulator;
        "direct_sum" adds every term to the accumulator. "kahan_scheme" is refused.
    enable_chunks, rec_multVar_highdim
        Without effect (accepted for compatibility).
    use_fast_math : bool
        True is refused: every operation has its full precision.

    Raises
    ------
    FormulaError
        A formula or alias that means nothing, with a caret at the place.
    OptionError
        Another argument that is not accepted.

    See Also
    --------
    The formula language and the calling convention are those of KeOps (Charlier, Feydy, Glaunès, Collin, Durif:
    Kernel Operations on the GPU, with Autodiff, without Memory Overflows. JMLR 22, 2021).

    Examples
    --------
    >>> import numpy as np
    >>> from dred import Genred
    >>> routine = Genred("Square(p-a)*Exp(x+y)", ["x = Vi(3)", "y = Vj(3)", "a = Vj(1)", "p = Pm(1)"], axis=1)
    >>> x, y, a, p = np.zeros((2, 3)), np.zeros((5, 3)), np.ones((5, 1)), np.array([3.0])
    >>> routine(x, y, a, p)
    array([[20., 20., 20.],
           [20., 20., 20.]])
    """

    def __init__(
        self,
        formula: str,
        aliases: Sequence[str],
        reduction_op: str = "Sum",
        axis: int = 0,
        dtype: Any = None,
        opt_arg: Any = None,
        formula2: Any = None,
        cuda_type: Any = None,
        dtype_acc: Any = "auto",
        use_double_acc: bool = False,
        sum_scheme: str = "auto",
        enable_chunks: bool = True,
        rec_multVar_highdim: bool = False,
        use_fast_math: bool = False,
    ) -> None:
        if not isinstance(reduction_op, str) or reduction_op not in REDUCTIONS:
            raise OptionError(f"unknown reduction {reduction_op!r}: {suggestion(str(reduction_op), [*REDUCTIONS])}")
        if isinstance(axis, bool) or not isinstance(axis, int | np.integer) or axis not in (0, 1):
            raise OptionError(f"axis={axis!r}: it is 0 (reduce over i) or 1 (reduce over j)")
        for name, value in (("opt_arg", opt_arg), ("formula2", formula2)):
            if value is not None:
                raise OptionError(f"{name}={value!r}: the reduction {reduction_op} takes none")
        read = read_formula(formula, aliases)
        super().__init__(
            read,
            aliases,
            Reduced(reduction_op, read.node, 1 - int(axis)),
            dtype=dtype,
            dtype_acc=dtype_acc,
            use_double_acc=use_double_acc,
            sum_scheme=sum_scheme,
            use_fast_math=use_fast_math,
        )

    def __repr__(self) -> str:
        return f"Genred({self.formula!r}, {list(self.aliases)!r}, {self.reduction_op!r}, axis={self.axis})"


class Reduction(Routine):
    """A reduction that is written as one text, derivatives of reductions among them.

    ``NAME_Reduction(F, cat)`` is the reduction NAME of the formula F: over j, one row per i, for cat = 0 (`Genred` with
    axis = 1); over i, one row per j, for cat = 1 (axis = 0). Where R is such a text, so are its derivatives, which are
    sums, and theirs:

    ``Grad(R, v, e)``
        The gradient of ``sum(e * R)`` with respect to the variable v: one row per i for an i-variable, one row per j
        for a j-variable. **For a parameter it has one row per i, too: the part of each i. The caller adds them up.**
        The cotangent e is a variable like the result: ``Vi`` for cat = 0, ``Vj`` for cat = 1, of the same dimension.
    ``Grad(R, v)``
        The same; e is a new input after all others.
    ``Diff(R, v, u)``
        The derivative of R in the direction u of the variable v: rows as R has them.
    ``Grad_WithSavedForward(R, v, e, saved)``, ``Diff_WithSavedForward(R, v, u, saved)``
        The same, given the variable that holds the result of R. A sum does not read it, but it must be passed.

    Parameters
    ----------
    text : str
        For example ``"Grad(Sum_Reduction(Exp(-SqDist(x,y))*b, 0), x, e)"``.
    aliases : sequence of str
        One declaration per input, as for `Genred`. All of them are passed in a call, also those that the text does not
        need. Never modified.
    dtype, dtype_acc, use_double_acc, sum_scheme, use_fast_math
        As for `Genred`.

    Raises
    ------
    FormulaError
        A text or alias that means nothing, with a caret at the place.
    OptionError
        Another argument that is not accepted.

    See Also
    --------
    Genred : the same routine by a formula and the name of its reduction.

    Examples
    --------
    >>> import numpy as np
    >>> from dred import Reduction
    >>> aliases = ["x = Vi(1)", "y = Vj(1)", "p = Pm(1)", "e = Vi(1)"]
    >>> x, y, p, e = np.array([[1.0], [2.0]]), np.array([[3.0], [4.0], [5.0]]), np.array([2.0]), np.ones((2, 1))
    >>> Reduction("Sum_Reduction(p * x * y, 0)", aliases)(x, y, p, e)
    array([[24.],
           [48.]])
    >>> Reduction("Grad(Sum_Reduction(p * x * y, 0), y, e)", aliases)(x, y, p, e)
    array([[6.],
           [6.],
           [6.]])
    >>> Reduction("Grad(Sum_Reduction(p * x * y, 0), p, e)", aliases)(x, y, p, e).sum(axis=0)
    array([36.])
    """

    def __init__(
        self,
        text: str,
        aliases: Sequence[str],
        dtype: Any = None,
        dtype_acc: Any = "auto",
        use_double_acc: bool = False,
        sum_scheme: str = "auto",
        use_fast_math: bool = False,
    ) -> None:
        read, reduced = read_reduction(text, aliases)
        super().__init__(
            read,
            aliases,
            reduced,
            dtype=dtype,
            dtype_acc=dtype_acc,
            use_double_acc=use_double_acc,
            sum_scheme=sum_scheme,
            use_fast_math=use_fast_math,
        )

    def __repr__(self) -> str:
        return f"Reduction({self.formula!r}, {list(self.aliases)!r})"
