"""The oracle: a formula evaluated densely in float64 by the NumPy references of the table, without any kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dred.formula.construct import nearest
from dred.formula.node import Node, toposort
from dred.formula.ops import OPS


def dense(node: Node, arrays: Sequence[Any]) -> NDArray[np.float64]:
    """The formula at every pair.

    Parameters
    ----------
    node : Node
    arrays : sequence of array_like
        By position: (M, dim) for i-variables, (N, dim) for j-variables, (dim,) for parameters.

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
    with np.errstate(all="ignore"):
        for n in toposort([node]):
            if n.op == "Var":
                ind, cat = n.attrs
                a = np.asarray(arrays[ind], np.float64)
                values[n] = a[:, None] if cat == 0 else a[None] if cat == 1 else a[None, None]
            elif n.op == "Const":
                values[n] = np.full((1, 1, 1), nearest(n.attrs[0]))
            else:
                values[n] = np.asarray(OPS[n.op].numpy(*(values[a] for a in n.args), *n.attrs), np.float64)
    result: NDArray[np.float64] = values[node]
    return result
