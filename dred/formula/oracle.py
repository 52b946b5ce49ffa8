"""The oracle: a formula evaluated densely in float64 by the NumPy references of the table, without any kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dred.formula.construct import nearest
from dred.formula.node import AXES_OF_CATEGORY, ROW_NUMBERS, I, Node, toposort
from dred.formula.ops import OPS


def dense(
    node: Node,
    arrays: Sequence[Any] | Mapping[int, Any],
    rows: tuple[int, int] | None = None,
    first: tuple[int, int] = (0, 0),
) -> NDArray[np.float64]:
    """The formula at every pair.

    Parameters
    ----------
    node : Node
    arrays : sequence or mapping of array_like
        By position: (M, dim) for i-variables, (N, dim) for j-variables, (dim,) for parameters.
    rows : (int, int), optional
        M and N, for formulas that read row numbers: by default those of the variables that they read, else 1.
    first : (int, int), optional
        The row numbers of the first i and the first j, where the arrays are parts of others.

    Returns
    -------
    ndarray of float64
        Shape (M, N, dim), or with 1 in place of an index that the formula does not vary with.

    Examples
    --------
    >>> from dred.formula.language import formula
    >>> f = formula("Sum(x * y)", ["x = Vi(2)", "y = Vj(2)"])
    >>> dense(f.node, [[[1, 2]], [[3, 4], [5, 6]]])[0, :, 0].tolist()
    [11.0, 17.0]
    """
    values: dict[Node, Any] = {}
    order = toposort([node])
    sizes = list(rows or (1, 1))
    for n in order if rows is None else ():
        if n.op == "Var" and n.attrs[1] < 2:
            sizes[n.attrs[1]] = len(arrays[n.attrs[0]])
    with np.errstate(all="ignore"):
        for n in order:
            if n.op == "Var":
                ind, cat = n.attrs
                a = np.asarray(arrays[ind], np.float64)
                values[n] = a[:, None] if cat == 0 else a[None] if cat == 1 else a[None, None]
            elif n.op == "Const":
                values[n] = np.full((1, 1, 1), nearest(n.attrs[0]))
            elif n.op in ROW_NUMBERS:
                shape = (-1, 1, 1) if n.axes == I else (1, -1, 1)
                index = AXES_OF_CATEGORY.index(n.axes)
                numbers = np.arange(first[index], first[index] + sizes[index], dtype=np.float64)
                values[n] = OPS[n.op].numpy(numbers.reshape(shape))
            else:
                values[n] = np.asarray(OPS[n.op].numpy(*(values[a] for a in n.args), *n.attrs), np.float64)
    result: NDArray[np.float64] = values[node]
    return result
