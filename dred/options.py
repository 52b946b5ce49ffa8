"""Options of a routine: each is obeyed, or refused with what it should be. Nothing is known of arrays here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dred.errors import DimensionError, OptionError
from dred.formula.expand import expanded
from dred.formula.op import MAX_DIM
from dred.formula.pullback import Reduced, misfit
from dred.inputs import DTYPES
from dred.kernel.spec import CHAIN, HALF, array_type
from dred.reductions import MONOIDS, REDUCTIONS, Monoid, Reduction, monoid_name

MAX_DDOF = 2**24  # exact in every type

# -- parameters of reductions --------------------------------------------------------------------------------------


def parameter(entry: Reduction, opt_arg: Any) -> Any:
    """The parameter of a reduction.

    Parameters
    ----------
    entry : Reduction
    opt_arg
        As the user gave it.

    Returns
    -------
    None, int or tuple of float

    Raises
    ------
    OptionError
    """
    return _PARAMETERS[entry.parameter](entry.name, opt_arg)


def _none(name: str, value: Any) -> None:
    if value is not None:
        more = "; a second formula is formula2, the fourth of an item" if isinstance(value, str) else ""
        raise OptionError(f"opt_arg={value!r}: the reduction {name} takes none, leave it out{more}")


def _places(name: str, value: Any) -> int:
    if not _whole(value) or value < 1:
        raise OptionError(f"opt_arg={value!r}: {name} keeps K terms, and K must be given as an integer of 1 or more")
    return int(value)


def _ddof(name: str, value: Any) -> int:
    value = 0 if value is None else value
    if not _whole(value) or not 0 <= value <= MAX_DDOF:
        raise OptionError(
            f"opt_arg={value!r}: of n terms, {name} divides by n - opt_arg, an integer of 0 (the default) to {MAX_DDOF}"
        )
    return int(value)


def _edges(name: str, value: Any) -> tuple[float, ...]:
    try:
        edges = np.asarray(value)
    except (TypeError, ValueError):  # ragged lists, arrays of a device
        edges = np.empty(0, object)
    if edges.dtype.kind not in "iuf" or edges.ndim != 1 or len(edges) < 2:
        raise OptionError(
            f"opt_arg={value!r}: {name} needs the edges of its bins, at least 2 increasing numbers such as [0, 0.5, 1]"
        )
    found = edges.astype(np.float64)
    for n in np.flatnonzero(~np.isfinite(found)):
        raise OptionError(f"opt_arg: edge {n} of {name} is {found[n]}: edges of bins are finite numbers")
    for n in np.flatnonzero(np.diff(found) <= 0):
        raise OptionError(
            f"opt_arg: the edges of {name} must increase, but edge {n} is {found[n]} and edge {n + 1} is {found[n + 1]}"
        )
    if len(found) > MAX_DIM:
        raise OptionError(f"opt_arg: {len(found)} edges of {name} are more than the limit of {MAX_DIM}")
    return tuple(found.tolist())


def _whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


_PARAMETERS: Mapping[str, Callable[[str, Any], Any]] = {"": _none, "K": _places, "ddof": _ddof, "edges": _edges}

# -- formulas of reductions ----------------------------------------------------------------------------------------


def second(entry: Reduction, formula2: Any) -> None:
    """Whether there is a second formula, where there must or may be one.

    Raises
    ------
    OptionError
    """
    words = entry.signature.split(", ")
    if formula2 is None and "G" in words:
        raise OptionError(
            f"formula2=None: the reduction {entry.name} needs a second formula G: {entry.doc.partition(';')[0]}"
        )
    if formula2 is not None and not entry.weighted and not {"G", "G?"} & {*words}:
        raise OptionError(f"formula2={formula2!r}: the reduction {entry.name} takes none, leave it out")


def dimensions(reduced: Reduced, text: str, text2: str | None) -> None:
    """Whether the dimensions of the formulas of a reduction fit.

    Parameters
    ----------
    reduced : Reduced
    text, text2 : str
        Of F, and of G where there is one.

    Raises
    ------
    DimensionError, OptionError
    """
    if wrong := misfit(reduced):
        where = text if wrong.formula == "F" else str(text2)
        raise DimensionError(wrong.message, where, (0, len(where)), wrong.hint)
    f = reduced.node.dim
    if REDUCTIONS[reduced.name].parameter == "K" and (row := int(reduced.parameter or 0) * f) > MAX_DIM:
        raise OptionError(
            f"opt_arg={reduced.parameter}: so many terms of dimension {f} are a row of {row} numbers, the limit is "
            f"{MAX_DIM}"
        )


# -- accumulation --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Accumulation:
    """How sums are accumulated.

    Attributes
    ----------
    acc : str or None
        Type of the accumulator; None: float64, which is never too narrow, or float32 for arrays of float16 or bfloat16.
    chain : int
        Terms that are added in the compute type before they join the accumulator.
    kahan : bool
        Whether sums are compensated, where they can be.
    fast : bool
        Whether terms may be less accurate.
    """

    acc: str | None
    chain: int
    kahan: bool
    fast: bool = False


def _sums(monoid: Monoid) -> bool:
    return any(field.kind == "sum" for field in monoid.fields)


@dataclass(frozen=True)
class _Scheme:
    """A scheme of summation, and the monoids that know it."""

    chain: int = CHAIN
    kahan: bool = False
    what: str = "sum"
    known: Callable[[Monoid], bool] = _sums


_SCHEMES = {
    "auto": _Scheme(known=lambda monoid: True),
    "block_sum": _Scheme(what="sum of blocks", known=lambda monoid: _sums(monoid) and monoid.chained),
    "direct_sum": _Scheme(chain=1),
    "kahan_scheme": _Scheme(kahan=True, what="compensated sum", known=lambda monoid: bool(monoid.kahan)),
}


def accumulation(
    reduced: Sequence[Reduced], dtype_acc: Any, use_double_acc: Any, sum_scheme: Any, use_fast_math: Any
) -> Accumulation:
    """What the options of accumulation mean; at least one of the reductions must know what to do with each.

    Raises
    ------
    OptionError
    """
    for name, flag in (("use_double_acc", use_double_acc), ("use_fast_math", use_fast_math)):
        if not isinstance(flag, bool | np.bool_):
            raise OptionError(f"{name}={flag!r}: it is True or False")
    if not isinstance(sum_scheme, str) or sum_scheme not in _SCHEMES:
        raise OptionError(f"sum_scheme={sum_scheme!r} is unknown: it is one of {', '.join(_SCHEMES)}")
    automatic = isinstance(dtype_acc, str) and dtype_acc == "auto"
    acc = None if automatic else checked_dtype("dtype_acc", dtype_acc, DTYPES[2:])
    if use_double_acc and acc == "float32":
        raise OptionError("use_double_acc=True contradicts dtype_acc='float32': give one of them")
    scheme = _SCHEMES[sum_scheme]
    for option, default, known, what in (
        (f"dtype_acc={dtype_acc!r}", "'auto'", automatic or _sums, "sum"),
        (f"use_double_acc={use_double_acc}", "False", not use_double_acc or _sums, "sum"),
        (f"sum_scheme={sum_scheme!r}", "'auto'", scheme.known, scheme.what),
    ):
        if known is not True and not any(known(_monoid(r)) for r in reduced):
            names = list(dict.fromkeys(r.name for r in reduced))
            lacks = f"none of {', '.join(names)} has a {what}" if names[1:] else f"{names[0]} has no {what}"
            raise OptionError(f"{option}: {lacks}, leave it at {default}")
    return Accumulation("float64" if use_double_acc else acc, scheme.chain, scheme.kahan, bool(use_fast_math))


def expansion(reduced: Sequence[Reduced], expand: Any) -> bool:
    """Whether squared distances are written out; there must be some.

    Raises
    ------
    OptionError
    """
    if not isinstance(expand, bool | np.bool_):
        raise OptionError(f"expand={expand!r}: it is True or False")
    nodes = [f for r in reduced for f in (*r.formulas, *(g for _, s in r.saved for g in s.reduced.formulas))]
    if expand and expanded(nodes, lambda v: v) == nodes:
        raise OptionError(
            "expand=True: the formula has no SqDist(a, b) of a vector of i and a vector of j, of 2 components or more: "
            "leave it out"
        )
    return bool(expand)


def _monoid(reduced: Reduced) -> Monoid:
    return MONOIDS[monoid_name(REDUCTIONS[reduced.name], reduced.weight is not None)]


def checked_dtype(name: str, value: Any, known: tuple[str, ...] = DTYPES) -> str:
    """The name of a type of arrays, or one that is known for something else.

    Raises
    ------
    OptionError
    """
    try:
        found = "None" if value is None else str(np.dtype(value))  # to NumPy, None is float64
    except TypeError:
        found = str(value)
    if found not in known:
        raise OptionError(f"{name}={value!r}: it is {', '.join(known[:-1])} or {known[-1]}")
    return found


def compute_type(dtype: str) -> str:
    """The type that is computed in for arrays of a type."""
    return "float32" if dtype in HALF else dtype


def accumulator(how: Accumulation, dtype: str) -> str:
    """The type of sums for arrays of a type.

    Raises
    ------
    OptionError
        It is narrower.
    """
    acc = how.acc or ("float32" if dtype in HALF else "float64")
    if np.dtype(acc).itemsize < array_type(dtype).itemsize:
        raise OptionError(f"dtype_acc={acc!r} is narrower than the arrays' type {dtype}: use 'auto' or {dtype!r}")
    return acc
