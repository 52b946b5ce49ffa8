"""Between which bounds the exponents of a kernel's powers of 2 lie, from the least and greatest values of its arrays.

Powers of 2 in sums have limits (`RANGES`): below, a term is 0, and above, infinite. Where no exponent comes near them,
a kernel without these limits gives the same bits in less time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dred.kernel.ir import FOLDS, Expr, Kernel, Loop, walk
from dred.kernel.primitives import RANGES, SHIFT, Range

LIMITED = ("exp2s", "exp2s_fall", "exp2s_rise", "exp2s_stay")
MARGIN = 4.0  # powers of 2 that bounds keep away from where limits, and what they leave, are noticed

Bounds = NDArray[Any]
"""The least and the greatest value (2, n), as arithmetic in the compute type gives them: n is 1, or the turns of a loop
over components that the value is in. A constant NaN is NaN twice."""


class Step(NamedTuple):
    """One value: an operation on earlier ones by their numbers.

    Besides operations there are "load" (attr: position of a variable, its first component, steps from one to the next,
    and how many of them), "const" (attr: the number), "stored" (attr: a field of the state; its argument is the term of
    it) and those of `FOLDS` (attr: turns). What else there is may be anything.
    """

    op: str
    args: tuple[int, ...] = ()
    attr: tuple[float, ...] = ()


class Exponents(NamedTuple):
    """The exponents of a kernel as steps that interval arithmetic can take.

    Attributes
    ----------
    steps : tuple of Step
    powers : tuple of (str, int)
        Operations of `LIMITED`, and the steps of their arguments. Empty: there are none, or in loops in loops.
    """

    steps: tuple[Step, ...] = ()
    powers: tuple[tuple[str, int], ...] = ()

    @staticmethod
    def of(kernel: Kernel) -> Exponents:
        """Those of a kernel."""
        roots = [e for root in kernel.roots for e in (*root.steps, *(root.quick.steps if root.quick else ()))]
        found = [e for e in walk(roots) if e.op in LIMITED]
        terms = {  # of fields that are one of them
            f: term
            for root in kernel.roots
            for f, term, merge in zip(root.fields, root.terms, root.merge, strict=False)
            if merge.op in ("max", "min")
        }
        exponents = walk([e.args[0] for e in found])
        met = walk([terms[e.attr.field] for e in exponents if e.op == "stored" and e.attr.field in terms])
        read = [*met, *(e for e in exponents if e not in met)]  # terms before what is one of them
        nested = any(len(e.free) > 1 or (e.op in FOLDS and e.free) for e in read)
        if nested or any(e.op == "stored" and e.attr.field not in terms for e in read):
            return Exponents()
        places = {e.id: n for n, e in enumerate(read)}
        steps = tuple(Step(e.op, *_described(e, places, terms)) for e in read)
        return Exponents(steps, tuple((e.op, places[e.args[0].id]) for e in found))

    @staticmethod
    def read(text: bytes) -> Exponents:
        """What `written` gave."""
        steps, powers = json.loads(text)
        return Exponents(
            tuple(Step(op, tuple(args), tuple(attr)) for op, args, attr in steps),
            tuple((op, place) for op, place in powers),
        )

    def written(self) -> bytes:
        """The same as JSON."""
        return json.dumps(self).encode()

    def moderate(self, dtype: str, arrays: Sequence[NDArray[Any]], state: Sequence[NDArray[Any]]) -> bool:
        """Whether no exponent comes near its limits, whatever pair of rows it is of.

        Parameters
        ----------
        dtype : str
            Compute type.
        arrays : sequence of ndarray
            By position, (..., dim).
        state : sequence of ndarray
            By field.
        """
        values: list[Bounds] = []
        known: dict[int, Bounds] = {}
        with np.errstate(all="ignore"):
            for op, args, attr in self.steps:
                given = [values[n] for n in args]
                if op == "const":
                    values.append(np.full((2, 1), attr[0], dtype))
                    continue
                if op == "load":
                    ind, first, step, turns = map(int, attr)
                    if ind not in known:
                        known[ind] = _extremes(arrays[ind])
                    bounds = known[ind][:, first + step * np.arange(turns)]
                elif op == "stored":  # terms that have been met, here or before
                    before = state[int(attr[0])]
                    bounds = _hull(before[np.isfinite(before)], *given)
                elif op in FOLDS:
                    bounds = TURNS[op](np.broadcast_to(given[0], (2, int(attr[0]))), axis=1, keepdims=True)
                else:
                    bounds = RULES.get(op, _anything)(*given)
                bounds = bounds.astype(dtype, copy=False)
                values.append(_anything().astype(dtype) if np.isnan(bounds).any() else bounds)
            limits = {op: _limits(op, dtype) for op, _ in self.powers}
            return all(
                (limits[op].low <= values[n][0]).all() and (values[n][1] <= limits[op].high).all()
                for op, n in self.powers
            )


def _described(
    e: Expr, places: Mapping[int, int], terms: Mapping[int, Expr]
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    if e.op == "stored":
        return (places[terms[e.attr.field].id],), (e.attr.field,)
    if e.op == "load":
        ((loop, step),) = e.attr.index.terms or ((Loop(0, 1), 0),)
        return (), (e.attr.ind, e.attr.index.offset, step, loop.length)
    attr = (float(e.attr),) if e.op == "const" else (e.attr.length,) if e.op in FOLDS else ()
    return tuple(places[a.id] for a in e.args), attr


def _extremes(array: NDArray[Any]) -> Bounds:
    """The least and greatest values (2, dim) of each component."""
    dim, group = array.shape[-1], 64
    rows = array.reshape(-1, dim)
    whole = len(rows) - len(rows) % group
    parts = [rows[whole:], rows[:whole].reshape(-1, group * dim)]  # the latter are long vectors, of many rows each
    found = [
        reduce(np.concatenate([reduce(part, axis=0).reshape(-1, dim) for part in parts if len(part)]), axis=0)
        for reduce in (np.minimum.reduce, np.maximum.reduce)
    ]
    return np.stack(found)


def _limits(op: str, dtype: str) -> Range:
    """Between these, the text of an operation without limits gives the same bits.

    Where powers vanish, the one for the lower limit is taken away: that changes no bit of one that is larger by the
    digits of the type.
    """
    kind, (low, high) = np.finfo(dtype), RANGES[dtype]
    least = float(kind.minexp) - SHIFT[dtype] if op == "exp2s_stay" else low + kind.nmant
    return Range(least + MARGIN, high - MARGIN)


# interval arithmetic --------------------------------------------------------------------------------------------------


def _hull(*values: NDArray[Any]) -> Bounds:
    """Of all values, those that are NaN passed over: a power whose exponent is NaN is NaN, with limits and without."""
    everything = np.concatenate([np.ravel(v) for v in values])
    return np.stack([np.fmin.reduce(everything), np.fmax.reduce(everything)])[:, None]


def _anything(*_: Bounds) -> Bounds:
    return np.array([[-np.inf], [np.inf]])


def _ends(a: Bounds, b: Bounds, of: Callable[..., Any]) -> Bounds:
    """What a function gives that is monotone in both."""
    every = [of(*np.broadcast_arrays(one, other)) for one in a for other in b]
    return np.stack([np.min(every, axis=0), np.max(every, axis=0)])


def _product(a: Bounds, b: Bounds) -> Bounds:
    found = _ends(a, b, np.multiply)
    return np.stack([np.maximum(found[0], 0), found[1]]) if a is b else found


def _fma(a: Bounds, b: Bounds, c: Bounds) -> Bounds:
    """Rounded once: computed in a wider type."""
    wide = np.float64 if a.dtype == np.float32 else np.longdouble
    one = a.astype(wide)
    return _product(one, one if a is b else b.astype(wide)) + c


def _quotient(a: Bounds, b: Bounds) -> Bounds:
    return _ends(a, b, np.divide) if ((b[0] > 0) | (b[1] < 0)).all() else _anything()


def _absolute(a: Bounds) -> Bounds:
    size = np.abs(a)
    return np.stack([np.where((a[0] <= 0) & (a[1] >= 0), 0 * size[0], size.min(axis=0)), size.max(axis=0)])


TURNS: Mapping[str, Callable[..., Bounds]] = {"fold": np.sum, "fold_max": np.max, "fold_min": np.min}
"""What loops over components make of bounds."""

RULES: Mapping[str, Callable[..., Bounds]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b[::-1],
    "neg": lambda a: -a[::-1],
    "mul": _product,
    "fma": _fma,
    "div": _quotient,
    "abs": _absolute,
    "sqrt": np.sqrt,
    "min": np.minimum,
    "max": np.maximum,
    "select": lambda _, a, b: _hull(a, b),
}
"""What operations make of bounds."""
