"""Genred and Reduction: reductions as a callable, by formulas or by one text, as users of KeOps know them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dred import options
from dred.errors import OptionError
from dred.formula.derive import limited
from dred.formula.language import Reader, suggestion
from dred.formula.node import Node
from dred.formula.pullback import Reduced
from dred.formula.reduced import reduction as read_reduction
from dred.reductions import REDUCTIONS
from dred.routine import Routine


class _Item(NamedTuple):
    """One reduction as a user asks for it."""

    formula: Any
    reduction_op: str
    opt_arg: Any = None
    formula2: Any = None

    def checked(self) -> _Item:
        """The same with the parameter that `opt_arg` means; nothing is read yet."""
        name = self.reduction_op
        if not isinstance(name, str) or name not in REDUCTIONS:
            raise OptionError(f"unknown reduction {name!r}: {suggestion(str(name), [*REDUCTIONS])}")
        opt_arg = options.parameter(REDUCTIONS[name], self.opt_arg)
        options.second(REDUCTIONS[name], self.formula2)
        return self._replace(opt_arg=opt_arg)

    def read(self, reader: Reader, cat: int) -> Reduced:
        """The reduction of the nodes that the formulas mean."""
        node = limited(reader.value(self.formula, reader.call))
        weight = None if self.formula2 is None else limited(reader.value(self.formula2, reader.call))
        reduced = Reduced(self.reduction_op, node, cat, self.opt_arg, weight)
        options.dimensions(reduced, self.formula, self.formula2)
        return reduced

    def texts(self, reduced: Reduced) -> dict[Node, str]:
        """The text of each node of the reduction that was read from it."""
        nodes = ((reduced.node, self.formula), (reduced.weight, self.formula2))
        return {node: text for node, text in nodes if node is not None}

    def __str__(self) -> str:
        given = {"opt_arg": self.opt_arg, "formula2": self.formula2}
        return "".join(f", {word}={value!r}" for word, value in given.items() if value is not None)


def _listed(items: Sequence[Any]) -> tuple[_Item, ...]:
    """The entries of a list of reductions."""
    if not items:
        raise OptionError("the list of reductions is empty: its items are (formula, reduction_op, opt_arg, formula2)")
    out = []
    for n, given in enumerate(items):
        if not isinstance(given, tuple | list) or not 2 <= len(given) <= 4:
            raise OptionError(
                f"item {n} of the list of reductions is {given!r}: it must be (formula, reduction_op), with opt_arg "
                "and formula2 behind them where the reduction takes them"
            )
        try:
            out.append(_Item(*given).checked())
        except OptionError as error:
            raise OptionError(f"item {n} of the list of reductions: {error}") from None
    return tuple(out)


class Genred(Routine):
    r"""Generic reductions over all pairs (i, j) of points, in linear memory.

    .. math:: \mathrm{out}_i = \mathrm{Reduction}_j \; F(p, x_i, y_j) \quad (\mathrm{axis} = 1)

    and with the roles of i and j exchanged for axis = 0. The M × N values of F are never stored.

    Parameters
    ----------
    formula : str or list of tuple
        F, for example ``"Square(p-a)*Exp(x+y)"``. Or several reductions in one sweep over the pairs: a list of
        ``(formula, reduction_op)``, ``(formula, reduction_op, opt_arg)`` or ``(formula, reduction_op, opt_arg,
        formula2)``. Reductions of the same formula that need the same state, as KMin and ArgKMin do, share it.
    aliases : sequence of str
        One declaration per input: ``"x = Vi(3)"`` (an array (M, 3)), ``"y = Vj(3)"`` (an array (N, 3)),
        ``"p = Pm(1)"`` (an array (1,)). Never modified.
    reduction_op : str
        One of the reductions below. Not given where `formula` is a list, whose items name theirs.
    axis : {0, 1}
        1 reduces over j and keeps one row per i; 0 reduces over i and keeps one row per j.
    dtype : str or dtype, optional
        "bfloat16", "float16", "float32" or "float64": the type of all arrays of a call. By default that of the arrays.
        float16 and bfloat16 (of the package ml_dtypes) are computed in float32, and results are rounded to them in the
        end: inf beyond 65504, for float16.
    opt_arg : int or sequence of float, optional
        K, ddof or the edges of bins, for the reductions that take them.
    formula2 : str, optional
        G, for the reductions that take it. It reads the same variables as F.
    cuda_type
        Without effect (accepted for compatibility).
    dtype_acc : str
        Type in which the rows are accumulated: "auto" (float64; float32 for arrays of float16), "float32" or "float64",
        not narrower than `dtype`.
    use_double_acc : bool
        True: ``dtype_acc="float64"``.
    sum_scheme : str
        "auto" and "block_sum" add 16 terms at a time in the compute type, then add these sums to the accumulator;
        "direct_sum" adds every term to the accumulator; "kahan_scheme" does so with compensated sums (Sum, Mean, the
        log-sum-exps and soft maxima, weighted Histogram). In one sweep, all reductions add term by term as soon as one
        of them has to (Prod, or compensated sums). These three options are for reductions that have such sums: where
        none has, anything but the default is refused.
    enable_chunks, rec_multVar_highdim
        Without effect (accepted for compatibility).
    use_fast_math : bool
        True: in sums and log-sum-exps, the number or parameter c of ``Exp(c*q)`` goes into the rows that q is made of,
        where that spares instructions: ``Exp(-g*SqDist(x, y))`` is computed of ``Sqrt(g)*x`` and ``Sqrt(g)*y``. Then
        the exponent errs by about c*|x|*|x - y|*eps (eps: 6e-8 in float32, 1e-16 in float64), not by c*|x - y|^2*eps,
        which is worse for points that are far from the origin, compared with their distances. The differences x - y
        that are in q err by |x|*eps where they are factors of the same sum, too, as in gradients. Everything else
        has its full precision.
    expand : bool
        True: every ``SqDist(a, b)``, and all that is short for it such as ``Norm2(a - b)``, of a vector a that varies
        with i alone and b with j alone, of 2 components or more, is computed as ``|a-c|^2 + |b-c|^2 - 2 (a-c | b-c)``,
        and 0 where that is negative: fewer operations for long vectors (measure whether it pays: on CPUs a tenth at 64
        components, nothing at 3). c is the mean of all rows of b (of a, where b is no plain variable; 0,
        where neither is), computed once per call. The squared distance then errs by a few roundings of R^2, R the
        largest distance of a point from c, and not of the distance itself; a term Exp(-g*SqDist(a, b)), say, by a few
        g*R^2*eps (eps: 6e-8 in float32, 1e-16 in float64), and the distance of a point from itself need not be 0.
        Numbers that are not finite, or squares that overflow, may give NaN. Gradients by `grad` are expanded, too, and
        where they, or a `Grad` in the formula, add up s*(a-b), of 9 components or more, that is s*(a-c) - s*(b-c).

    Notes
    -----
    With D the dimension of F, and one row per i (per j for axis = 0), a row of the result is, of the type of the
    arrays unless another is given:

    =================================  ==========================================================  ===================
    reduction                          result                                                      row
    =================================  ==========================================================  ===================
    Sum, Mean, Prod                    sum, mean, product                                          (D,)
    Variance                           mean squared distance from the mean, over n - ddof terms    (D,)
                                       (``opt_arg=ddof``, 0 by default)
    Min, Max                           smallest, largest term                                      (D,)
    ArgMin, ArgMax                     row number of the first smallest, largest term              (D,) int64
    Min_ArgMin, Max_ArgMax             both, a tuple of two arrays                                 (D,), (D,) int64
    KMin, KMax                         the K smallest, largest terms in order (``opt_arg=K``)      (K, D); (K,) if D=1
    ArgKMin, ArgKMax                   their row numbers                                           the same, int64
    KMin_ArgKMin, KMax_ArgKMax         both, a tuple of two arrays
    LogSumExp                          log of the sum of exp(F), component by component            (D,)
    LogSumExp, LogSumExpWeight         log of the sum of exp(F) * G, where there is a G of         (dim G,); (D,) if
                                       dimension D or 1, or of any if D=1                          dim G is 1
    SumSoftMaxWeight, SoftMax          mean of G with the weights exp(F), D=1                      (dim G,)
    Max_SumShiftExp                    m, the largest F, and the sum of exp(F - m), D=1            (2,)
    Max_SumShiftExpWeight              m, and the sum of exp(F - m) * G, D=1                       (1 + dim G,)
    Any, All                           whether some, all terms are not 0                           (D,) bool
    Count                              number of terms that are not 0                              (D,) int64
    Histogram                          number of terms in each bin, D=1 (``opt_arg=edges``: at     (bins,) int64
                                       least 2 increasing numbers; the last bin is closed); with
                                       a G of dimension 1, its sum in each bin                     (bins,)
    =================================  ==========================================================  ===================

    Row numbers are those of all rows, lower ones first among equal terms, -1 where there is no term. NaN is never an
    extremum; it is not 0 to Any, All and Count, and in no bin. What a reduction gives where there is no term is in
    ``dred.reductions.REDUCTIONS``.

    Raises
    ------
    FormulaError
        A formula or alias that means nothing, with a caret at the place.
    OptionError
        Another argument that is not accepted.
    DimensionError
        Formulas of dimensions that the reduction does not take.

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

    The three points nearest to each x, and a smooth minimum of the distances to all, in one sweep:

    >>> text, aliases = "SqDist(x, y)", ["x = Vi(1)", "y = Vj(1)"]
    >>> nearest = Genred([(text, "ArgKMin", 3), (f"-{text}", "LogSumExp")], aliases, axis=1)
    >>> indices, soft = nearest(np.array([[0.0], [10.0]]), np.arange(8.0)[:, None])
    >>> indices
    array([[0, 1, 2],
           [7, 6, 5]])
    >>> soft.shape, soft.dtype.name
    ((2, 1), 'float64')

    The softmax-weighted mean of G, and the histogram of F:

    >>> x, y = np.zeros((1, 1)), np.array([[0.0], [1.0], [1.0], [3.0]])
    >>> Genred("x * y", aliases, "SumSoftMaxWeight", axis=1, formula2="y")(x, y)
    array([[1.25]])
    >>> Genred("x + y", aliases, "Histogram", axis=1, opt_arg=[0, 1, 2, 3])(x, y)
    array([[1, 2, 1]])

    Squared distances of long vectors by fewer operations, which are less accurate:

    >>> x, y, vectors = np.eye(100)[:3], np.eye(100), ["x = Vi(100)", "y = Vj(100)"]
    >>> Genred("SqDist(x, y)", vectors, "ArgMin", axis=1, expand=True)(x, y)
    array([[0],
           [1],
           [2]])

    Arrays of float16 are computed in float32; a result beyond 65504 is inf:

    >>> half = np.array([[1.0], [300.0]], "float16")
    >>> Genred("x * y", aliases, axis=1)(half, half)
    array([[301.],
           [ inf]], dtype=float16)
    """

    def __init__(
        self,
        formula: str | Sequence[tuple[Any, ...]],
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
        expand: bool = False,
    ) -> None:
        several = isinstance(formula, list | tuple)
        if several and (reduction_op != "Sum" or opt_arg is not None or formula2 is not None):
            raise OptionError("a list of reductions says reduction_op, opt_arg and formula2 of each: leave them out")
        items = _listed(formula) if several else (_Item(formula, reduction_op, opt_arg, formula2).checked(),)
        if isinstance(axis, bool) or not isinstance(axis, int | np.integer) or axis not in (0, 1):
            raise OptionError(f"axis={axis!r}: it is 0 (reduce over i) or 1 (reduce over j)")
        reader = Reader(aliases)
        reduced = tuple(item.read(reader, 1 - int(axis)) for item in items)
        super().__init__(
            reader.formula(items[0].formula, reduced[0].node),
            aliases,
            reduced,
            several,
            {node: text for item, r in zip(items, reduced, strict=True) for node, text in item.texts(r).items()},
            dtype=dtype,
            how=options.accumulation(reduced, dtype_acc, use_double_acc, sum_scheme, use_fast_math),
            expand=options.expansion(reduced, expand),
        )
        self.formula = tuple(item.formula for item in items) if several else formula
        self._items = items

    def __repr__(self) -> str:
        if self.several:
            return f"Genred({[*map(tuple, self._items)]!r}, {list(self.aliases)!r}, axis={self.axis})"
        return (
            f"Genred({self.formula!r}, {list(self.aliases)!r}, {self.reduction_op!r}, axis={self.axis}{self._items[0]})"
        )


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
    dtype, dtype_acc, use_double_acc, sum_scheme, use_fast_math, expand
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
        expand: bool = False,
    ) -> None:
        read, reduced = read_reduction(text, aliases)
        super().__init__(
            read,
            aliases,
            (reduced,),
            dtype=dtype,
            how=options.accumulation((reduced,), dtype_acc, use_double_acc, sum_scheme, use_fast_math),
            expand=options.expansion((reduced,), expand),
        )

    def __repr__(self) -> str:
        return f"Reduction({self.formula!r}, {list(self.aliases)!r})"
