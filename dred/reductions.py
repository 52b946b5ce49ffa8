"""The table of reductions: each is a monoid, written once in scalar text for every target.

To add a reduction, add one entry to `REDUCTIONS`. Kernels, merging of states and the tests of its laws follow from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Field:
    """One field of a state: its name, kind ("value": accumulator type, "index": int64) and value when empty."""

    name: str
    kind: str
    identity: float


@dataclass(frozen=True)
class Reduction:
    """One reduction over an index.

    Attributes
    ----------
    name : str
    fields : tuple of Field
        The state of one component of one row.
    lift : tuple of str
        The state of a single term, per field, as scalar text over the term `f`.
    merge : tuple of str
        The union of two states, per field, over the fields of the left one (name followed by 0) and of the right one
        (followed by 1): associative, with the identity as neutral element.
    finalize : str
        The result over the fields.
    cotangent : str or None
        What the cotangent `e` of the result sends to a term, as formula text over `e` and the term `f`, linear in `e`
        and each component for itself; None: nothing flows. Derivatives in both modes follow.
    numpy : callable
        Independent reference: (values, axis) -> reduced values.
    doc : str
    signature : str
        Arguments of `NAME_Reduction(...)` in texts: the formula F, an integer parameter K, the output category cat, a
        second formula G, in this order; those that may be left out end in "?".
    """

    name: str
    fields: tuple[Field, ...]
    lift: tuple[str, ...]
    merge: tuple[str, ...]
    finalize: str
    cotangent: str | None
    numpy: Callable[[Any, int], Any]
    doc: str
    signature: str = "F, cat"


_ENTRIES = (
    Reduction(
        "Sum",
        fields=(Field("s", "value", 0.0),),
        lift=("f",),
        merge=("s0 + s1",),
        finalize="s",
        cotangent="e",
        numpy=lambda values, axis: values.sum(axis),
        doc="sum of the terms; 0 where there are none",
    ),
)

REDUCTIONS: Mapping[str, Reduction] = {entry.name: entry for entry in _ENTRIES}


def identities(reduction: Reduction) -> tuple[float, ...]:
    """The empty state of one component."""
    return tuple(np.float64(field.identity).item() for field in reduction.fields)
