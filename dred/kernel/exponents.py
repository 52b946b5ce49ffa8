"""Between which bounds the exponents of a kernel's powers of 2 lie, from the least and greatest values of its arrays.

Powers of 2 in sums have limits (`RANGES`): below, a term is 0, and above, infinite. Where no exponent comes near them,
a kernel without these limits gives the same bits in less time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dred.kernel.ir import FOLDS, Expr, Kernel, Loop, walk
from dred.kernel.primitives import RANGES, SHIFT, Range

LIMITED = ("exp2s", "exp2s_fall", "exp2s_rise", "exp2s_stay")
MARGIN = 4.0  # powers of 2 that bounds keep away from where limits, and what they leave, are noticed

Bounds = tuple[Any, Any]
"""The least and the greatest value: numbers, or arrays of the turns of a loop over components that the value is in. A
constant NaN is NaN twice."""


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
        Operations of `LIMITED`, and the steps of their arguments. Empty: there are none, or nothing is known of them.
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
        """Whether there are exponents, and none of them comes near its limits, whatever pair of rows it is of.

        Parameters
        ----------
        dtype : str
            Compute type.
        arrays : sequence of ndarray
            By position, (..., dim).
        state : sequence of ndarray
            By field.
        """
        error, most = float(np.finfo(dtype).eps), float(np.finfo(dtype).max)
        values: list[Bounds] = []
        known: dict[int, Bounds] = {}
        low: Any
        high: Any
        with np.errstate(all="ignore"):
            for op, args, attr in self.steps:
                given = [values[n] for n in args]
                if op == "load":
                    ind, first, step, turns = map(int, attr)
                    if ind not in known:
                        known[ind] = _extremes(arrays[ind])
                    low, high = (end[first : first + step * turns : step] if step else float(end[first])
                                 for end in known[ind])  # fmt: skip
                elif op == "const":
                    low = high = attr[0]
                elif op == "stored":  # terms that have been met, here or before
                    before = state[int(attr[0])]
                    before = before[before != -math.inf]  # where none has been met
                    low, high = _hull(*given, before) if np.isfinite(before).all() else ANYTHING
                elif op in FOLDS:
                    low, high = _turned(op, given[0], int(attr[0]), error)
                else:
                    low, high = RULES.get(op, _anything)(*given)
                    low, high = low - error * abs(low), high + error * abs(high)
                fine = op in ("const", "select") or (_all(low >= -most) and _all(high <= most))
                values.append((low, high) if fine else ANYTHING)
            limits = {op: _limits(op, dtype) for op, _ in self.powers}
            return bool(self.powers) and all(
                _all(limits[op].low <= values[n][0]) and _all(values[n][1] <= limits[op].high) for op, n in self.powers
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
    """The least and greatest values of each component."""
    dim, group = array.shape[-1], 64
    rows = array.reshape(-1, dim)
    if len(rows) > 2 * group:  # long vectors, of many rows each; those that are left over are among the last ones
        long = rows[: len(rows) - len(rows) % group].reshape(-1, group * dim)
        low, high = (end(long, axis=0).reshape(-1, dim) for end in (np.minimum.reduce, np.maximum.reduce))
        rows = np.concatenate([low, high, rows[-group:]])
    return np.minimum.reduce(rows, axis=0).astype(float), np.maximum.reduce(rows, axis=0).astype(float)


def _limits(op: str, dtype: str) -> Range:
    """Between these, the text of an operation without limits gives the same bits.

    Where powers vanish, the one for the lower limit is taken away: that changes no bit of one that is larger by the
    digits of the type.
    """
    kind, (low, high) = np.finfo(dtype), RANGES[dtype]
    least = float(kind.minexp) - SHIFT[dtype] if op == "exp2s_stay" else low + kind.nmant
    return Range(least + MARGIN, high - MARGIN)


# interval arithmetic --------------------------------------------------------------------------------------------------


# Ends are widened, after each operation, by what it is rounded at most; what may overflow may be anything.

ANYTHING: Bounds = (-math.inf, math.inf)
EPS = 2.0**-52  # of the numbers that ends are


def _all(truth: Any) -> bool:
    return truth if isinstance(truth, bool) else bool(truth.all())


def _anything(*_: Bounds) -> Bounds:
    return ANYTHING


def _ends(*values: Any) -> Bounds:
    """The least and greatest of some values, turn by turn."""
    if all(isinstance(v, float) for v in values):
        return min(values), max(values)
    return reduce(np.minimum, values), reduce(np.maximum, values)


def _hull(*values: Any) -> Bounds:
    """Of all values, those that are NaN passed over: a power whose exponent is NaN is NaN, with limits and without."""
    everything = np.concatenate([np.ravel(v) for v in values])
    return float(np.fmin.reduce(everything)), float(np.fmax.reduce(everything))


def _turned(op: str, a: Bounds, turns: int, error: float) -> Bounds:
    """What a loop over components makes of bounds; sums in any order."""
    low, high = (np.broadcast_to(end, turns) for end in a)
    if op == "fold":
        lost = turns * error * float(np.maximum(np.abs(low), np.abs(high)).sum())
        least = float(low.sum()) - lost
        return max(least, 0.0) if low.min() >= 0 else least, float(high.sum()) + lost
    most = np.max if op == "fold_max" else np.min
    return float(most(low)), float(most(high))


def _product(a: Bounds, b: Bounds) -> Bounds:
    low, high = _ends(*(one * other for one in a for other in b))
    return (_ends(low, 0.0 * low)[1] if a is b else low), high


def _fma(a: Bounds, b: Bounds, c: Bounds) -> Bounds:
    """Of products that are rounded here, and not in a kernel."""
    low, high = _product(a, b)
    lost = EPS * (_ends(abs(low), abs(high))[1] + _ends(abs(c[0]), abs(c[1]))[1])
    least = low + c[0] - lost
    return _ends(least, 0.0 * low)[1] if _all((low >= 0) & (c[0] >= 0)) else least, high + c[1] + lost


def _quotient(a: Bounds, b: Bounds) -> Bounds:
    fine = _all((b[0] > 0) | (b[1] < 0))
    return _ends(*(one / other for one in a for other in b)) if fine else ANYTHING


def _absolute(a: Bounds) -> Bounds:
    low, high = _ends(abs(a[0]), abs(a[1]))
    return (low if _all((a[0] > 0) | (a[1] < 0)) else 0.0 * low), high


RULES: Mapping[str, Callable[..., Bounds]] = {
    "add": lambda a, b: (a[0] + b[0], a[1] + b[1]),
    "sub": lambda a, b: (a[0] - b[1], a[1] - b[0]),
    "neg": lambda a: (-a[1], -a[0]),
    "mul": _product,
    "fma": _fma,
    "div": _quotient,
    "abs": _absolute,
    "sqrt": lambda a: (a[0] ** 0.5, a[1] ** 0.5) if _all(a[0] >= 0) else ANYTHING,
    "min": lambda a, b: (_ends(a[0], b[0])[0], _ends(a[1], b[1])[0]),
    "max": lambda a, b: (_ends(a[0], b[0])[1], _ends(a[1], b[1])[1]),
    "select": lambda _, a, b: _hull(a, b),
}
"""What operations make of bounds."""
