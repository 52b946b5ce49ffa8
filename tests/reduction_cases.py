"""Every reduction with what it takes, as users ask for it, and its value by the table's own reference."""

from typing import Any, NamedTuple

import numpy as np

from dred import Genred
from dred.formula.language import formula
from dred.formula.oracle import dense
from dred.reductions import REDUCTIONS

ALIASES = ["x = Vi(2)", "y = Vj(2)", "b = Vj(3)"]
VECTOR, SCALAR = "x * y - x", "(x | y)"
_PARAMETERS = {"": [None], "K": [1, 4, 20], "ddof": [None, 1, 20], "edges": [[-3, -1.0, 0, 0.5, 4]]}


class Case(NamedTuple):
    """An item of a list of reductions."""

    formula: str
    reduction_op: str
    opt_arg: Any = None
    formula2: str | None = None


def _weights(entry):
    """Pairs of F and G that the reduction takes."""
    plain = SCALAR if entry.scalar else VECTOR
    takes = entry.signature.split(", ")
    weighted = [(SCALAR, "b * Sum(x)")] if {"G", "G?"} & {*takes} else []
    weighted += [(VECTOR, "x * y"), (VECTOR, "Sum(b)")] if weighted and not entry.scalar else []
    weighted += [(SCALAR, "Sum(b) - 1")] if entry.weighted else []
    return weighted if "G" in takes else [(plain, None), *weighted]


CASES = [
    Case(f, name, parameter, g)
    for name, entry in REDUCTIONS.items()
    for f, g in _weights(entry)
    for parameter in _PARAMETERS[entry.parameter]
]


def arrays_of(M, N, dtype="float64", seed=0):
    """x, y, b of small whole numbers and halves: sums and differences of them are exact."""
    rng = np.random.default_rng(seed)
    return tuple(rng.integers(-4, 5, shape).astype(dtype) / 2 for shape in ((M, 2), (N, 2), (N, 3)))


def terms(text, arrays):
    """(M, N, dim) in float64."""
    if text is None:
        return None
    node = formula(text, ALIASES).node
    M, N = len(arrays[0]), len(arrays[1])
    return np.broadcast_to(dense(node, arrays, (M, N)), (M, N, node.dim))


def reference(case, axis, arrays):
    """The arrays of the result, in a list."""
    entry = REDUCTIONS[case.reduction_op]
    parameter = 0 if entry.parameter == "ddof" and case.opt_arg is None else case.opt_arg
    with np.errstate(all="ignore"):
        result = entry.numpy(terms(case.formula, arrays), terms(case.formula2, arrays), axis, parameter)
    return list(result) if isinstance(result, tuple) else [result]


def routine_of(case, axis, **options):
    return Genred(
        case.formula, ALIASES, case.reduction_op, axis, opt_arg=case.opt_arg, formula2=case.formula2, **options
    )


def listed(result):
    """The arrays of a result, whatever it is."""
    return [a for entry in result for a in listed(entry)] if isinstance(result, tuple) else [result]


def check(got, case, axis, arrays):
    """That a result has the shape, the types and the values of the reference."""
    got, want = listed(got), reference(case, axis, arrays)
    assert len(got) == len(want)
    dtype = arrays[0].dtype
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        if b.dtype.kind in "ib" and not (case.reduction_op == "Histogram" and case.formula2):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
        else:
            assert a.dtype == dtype
            finite = np.abs(b[np.isfinite(b)])
            scale = finite.max() if finite.size else 0.0
            rtol = 1e-5 if dtype == np.float32 else 1e-12
            np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * max(1.0, scale))


def same(got, want):
    """That two results have the same bytes."""
    got, want = listed(got), listed(want)
    assert [f"{a.dtype}{a.shape}" for a in got] == [f"{b.dtype}{b.shape}" for b in want]
    assert [np.asarray(a).tobytes() for a in got] == [np.asarray(b).tobytes() for b in want]
