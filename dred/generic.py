"""Generic reductions whose output is declared like a variable: the functions that users of KeOps call."""

from __future__ import annotations

import inspect
from typing import Any

from dred.errors import AliasError, DimensionError, OptionError
from dred.formula.language import declare
from dred.genred import Genred

_SET = ("self", "formula", "aliases", "reduction_op", "axis")  # what the function and the output say
_OPTIONS = tuple(name for name in inspect.signature(Genred.__init__).parameters if name not in _SET)


def generic_sum(formula: str, output: str, *aliases: str, **options: Any) -> Genred:
    """The sum of a formula over the index that the output does not have.

    Parameters
    ----------
    formula : str
    output : str
        What the result is: ``"a = Vi(3)"`` has one row of 3 numbers per i, and the sum is over j; ``"a = Vj(3)"`` has
        one per j. The name does not matter.
    *aliases : str
        One declaration per input, as for `Genred`.
    **options
        Those of `Genred`: dtype, dtype_acc, sum_scheme, ...

    Returns
    -------
    Genred
        The routine, to be called with the arrays.

    Raises
    ------
    AliasError
        An output that cannot be read, or has no rows.
    DimensionError
        An output of another dimension than the result.
    OptionError
        An option that `Genred` does not have, or that the output says.

    Examples
    --------
    >>> import numpy as np
    >>> from dred import generic_sum
    >>> routine = generic_sum("Square(p-a)*Exp(x+y)", "out = Vi(3)", "x = Vi(3)", "y = Vj(3)", "a = Vj(1)", "p = Pm(1)")
    >>> routine(np.zeros((2, 3)), np.zeros((5, 3)), np.ones((5, 1)), np.array([3.0]))
    array([[20., 20., 20.],
           [20., 20., 20.]])
    """
    return _declared("generic_sum", "Sum", formula, output, aliases, options)


def generic_logsumexp(formula: str, output: str, *aliases: str, **options: Any) -> Genred:
    """The log of the sum of the exponentials of a formula, without overflow.

    Parameters and errors are those of `generic_sum`; with the option ``formula2=G``, every exponential is multiplied
    with G.

    Examples
    --------
    >>> import numpy as np
    >>> from dred import generic_logsumexp
    >>> routine = generic_logsumexp("x * y", "out = Vi(1)", "x = Vi(1)", "y = Vj(1)")
    >>> routine(np.array([[1000.0]]), np.array([[0.0], [1.0], [1.0]])).round(6)
    array([[1000.693147]])
    """
    return _declared("generic_logsumexp", "LogSumExp", formula, output, aliases, options)


def generic_argmin(formula: str, output: str, *aliases: str, **options: Any) -> Genred:
    """The row number, int64, of the first smallest term; component by component.

    Parameters and errors are those of `generic_sum`.

    Examples
    --------
    >>> import numpy as np
    >>> from dred import generic_argmin
    >>> nearest = generic_argmin("SqDist(x, y)", "out = Vi(1)", "x = Vi(2)", "y = Vj(2)")
    >>> nearest(np.array([[0.0, 0.0], [5.0, 5.0]]), np.array([[4.0, 6.0], [1.0, 0.0], [5.0, 4.5]]))
    array([[1],
           [2]])
    """
    return _declared("generic_argmin", "ArgMin", formula, output, aliases, options)


def generic_argkmin(formula: str, output: str, *aliases: str, **options: Any) -> Genred:
    """The row numbers, int64, of the K smallest terms in order.

    Parameters and errors are those of `generic_sum`, but that the dimension of the output is K: ``"a = Vi(3)"`` are the
    three smallest terms for each i.

    Examples
    --------
    >>> import numpy as np
    >>> from dred import generic_argkmin
    >>> nearest = generic_argkmin("SqDist(x, y)", "out = Vi(2)", "x = Vi(1)", "y = Vj(1)")
    >>> nearest(np.array([[0.0], [9.0]]), np.arange(10.0)[:, None])
    array([[0, 1],
           [9, 8]])
    """
    return _declared("generic_argkmin", "ArgKMin", formula, output, aliases, options)


def _declared(
    function: str, reduction: str, formula: str, output: str, aliases: tuple[str, ...], options: dict[str, Any]
) -> Genred:
    """The routine whose result is like the output."""
    keeps = reduction == "ArgKMin"  # the dimension of the output is K
    for name in options:
        if name not in _OPTIONS or (name == "opt_arg" and keeps):
            why = "it is said by the output" if name in ("axis", "opt_arg") else f"there are {', '.join(_OPTIONS)}"
            raise OptionError(f"{function} takes no option {name!r}: {why}")
    ((_, v),) = declare([output])
    whole = (0, len(output))
    if v.attrs[1] == 2:
        hint = "write Vi(dim) for one row per i, Vj(dim) for one row per j"
        raise AliasError(
            f"the output of {function} has a row for each i or j, a parameter has none", output, whole, hint
        )
    more: dict[str, Any] = {"opt_arg": v.dim} if keeps else {}
    routine = Genred(formula, aliases, reduction, 1 - v.attrs[1], **more, **options)
    if routine.dim != v.dim and not keeps:
        raise DimensionError(f"the output has dimension {v.dim}, the result {routine.dim}", output, whole)
    return routine
