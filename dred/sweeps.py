"""Sweeps over the pairs: which reductions are computed together, in what order, and where their arrays go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np

from dred.errors import LimitError
from dred.formula.construct import nearest
from dred.formula.expand import expanded
from dred.formula.language import Variable
from dred.formula.node import Node, toposort, var
from dred.formula.pullback import Reduced, Saved
from dred.kernel.output import Output
from dred.kernel.spec import KernelSpec, Part
from dred.reductions import REDUCTIONS, monoid_name


@dataclass(frozen=True)
class Sweep:
    """One sweep over all pairs.

    Attributes
    ----------
    spec : KernelSpec
    outputs : tuple of Output
        The arrays that are read off its states.
    label : str
        Names of its reductions, in the order of the parts of `spec`: "Sum, KMin+ArgKMin".
    places : tuple of int
        Positions at which its arrays are arguments of later sweeps; none where they are results.
    centres : tuple of (int, int)
        Positions of arguments that are the mean of all rows of another one, with the position of that.
    """

    spec: KernelSpec
    outputs: tuple[Output, ...]
    label: str
    places: tuple[int, ...] = ()
    centres: tuple[tuple[int, int], ...] = ()

    def batched(self, batch: tuple[int, ...], own: Sequence[tuple[int, ...]]) -> Sweep:
        """The same for each element of a batch.

        Parameters
        ----------
        batch : tuple of int
        own : sequence of (tuple of int)
            For each declared variable, the leading dimensions of its array. What earlier sweeps leave has all.
        """
        known: dict[int, tuple[int, ...]] = dict(enumerate(own))
        known |= {centre: own[of] for centre, of in self.centres}
        mine = tuple(known.get(v.ind, batch) for v in self.spec.variables)
        return replace(self, spec=replace(self.spec, batch=batch, own=mine))

    def arguments(self, arrays: Mapping[int, Any]) -> list[Any]:
        """By position: those of the variables, and an array of nothing in between."""
        nothing = np.empty(0, self.spec.dtype)
        return [arrays.get(place, nothing) for place in range(self._count)]

    @cached_property
    def _count(self) -> int:
        return 1 + max((v.ind for v in self.spec.variables), default=-1)


def sweeps(
    reduced: Sequence[Reduced],
    variables: tuple[Variable, ...],
    dtype: str,
    acc: str,
    chain: int,
    kahan: bool,
    given: str = "",
    fast: bool = False,
) -> tuple[Sweep, ...]:
    """The sweeps that reductions of one output category take; the last one has their results.

    Reductions whose results or states others need come first. Those that are ready at the same time and reduce over
    the same index share a sweep; equal states in it are computed once.

    Parameters
    ----------
    reduced : sequence of Reduced
    variables : tuple of Variable
        The declared ones.
    dtype, acc, chain
        As in `KernelSpec`.
    kahan : bool
        Compensated sums, where there are any.
    given, fast
        As in `KernelSpec`.

    Returns
    -------
    tuple of Sweep
    """
    saved = _saved(reduced)
    levels: dict[Reduced, int] = {}
    for r in (*(s.reduced for s in saved.values()), *reduced):
        _level(r, levels)
    groups: dict[tuple[int, int], list[Variable]] = {}
    for v, s in saved.items():
        groups.setdefault((levels[s.reduced], s.reduced.axis), []).append(v)

    def sweep(wanted: Sequence[tuple[Reduced, str | None]], places: tuple[int, ...]) -> Sweep:
        names: dict[Part, dict[str, bool]] = {}  # of states and their readers; whether those want no certain reference
        outputs: list[Output] = []
        for r, field in wanted:
            compensated = kahan and bool(monoid_name(REDUCTIONS[r.name], r.weight is not None, True))
            own = Part.of(r.name, r.node, r.weight, r.parameter, compensated)
            part = replace(own, any_reference=False)
            names.setdefault(part, {})[r.name] = own.any_reference
            outputs += _outputs(r, field, list(names).index(part))
        read = sorted({v for r, _ in wanted for v, _ in r.saved})
        left = tuple(v.ind for v in read) if given else ()
        parts = tuple(replace(part, any_reference=all(mine.values())) for part, mine in names.items())
        axis, everything = wanted[0][0].axis, (*variables, *read)
        spec = KernelSpec(parts, axis, dtype, acc, chain, everything, given, left, fast=fast)
        return Sweep(spec, tuple(outputs), ", ".join(map("+".join, names.values())), places)

    first = (
        sweep([(saved[v].reduced, saved[v].field) for v in groups[key]], tuple(v.ind for v in groups[key]))
        for key in sorted(groups)
    )
    return (*first, sweep([(r, None) for r in reduced], ()))


def _saved(reduced: Iterable[Reduced]) -> dict[Variable, Saved]:
    """The variables that others have left, with what they hold: all that is needed, by position."""
    found: dict[Variable, Saved] = {}
    todo = list(reduced)
    while todo:
        for v, s in todo.pop().saved:
            if v not in found:
                found[v] = s
                todo.append(s.reduced)
    return dict(sorted(found.items()))


def _level(r: Reduced, levels: dict[Reduced, int]) -> int:
    """How many sweeps must have been before that of a reduction."""
    if r not in levels:
        levels[r] = max((1 + _level(s.reduced, levels) for _, s in r.saved), default=0)
    return levels[r]


def _outputs(r: Reduced, field: str | None, part: int) -> tuple[Output, ...]:
    """The results of a reduction (None), or what is saved: a field of its state, or (of "") its first result."""
    if field:
        return (Output(part, (field,), saved=True),)
    results = Output.of(r.name, part, r.parameter)
    return results if field is None else (replace(results[0], places=False, saved=True),)


def check_constants(found: Sequence[Sweep], dtype: str, texts: Mapping[Node, str], text: str) -> None:
    """Raises LimitError where a constant of a formula is beyond the largest number of a type; of nodes without a text
    of their own, `text` is shown."""
    for node in dict.fromkeys(f for sweep in found for part in sweep.spec.parts for f in part.formulas):
        # a float is infinite on purpose: the text of a table says so
        values = (n.attrs[0] for n in toposort([node]) if n.op == "Const")
        if any(isinstance(v, Fraction) and np.isinf(nearest(v, dtype)) for v in values):
            shown = texts.get(node, text)
            message = f"a constant of the formula is beyond the largest {dtype}, {np.finfo(dtype).max:.3g}"
            raise LimitError(message, shown, (0, len(shown)))


def with_expansion(found: Sequence[Sweep]) -> tuple[Sweep, ...]:
    """The sweeps with squared distances written out, see `dred.formula.expand`; the same where there are none."""
    first = 1 + max((v.ind for sweep in found for v in sweep.spec.variables), default=-1)
    places: dict[Node, int] = {}  # of centres, behind all other variables

    def written_out(sweep: Sweep) -> Sweep:
        used: dict[Node, Node] = {}

        def centre(v: Node) -> Node:
            used[v] = var(places.setdefault(v, first + len(places)), v.dim, 2)
            return used[v]

        spec = sweep.spec
        parts = []
        for part in spec.parts:
            new = expanded(part.formulas, centre, part.monoid == "sum")
            parts.append(replace(part, formula=new[0], weight=new[1] if new[1:] else None))
        centres = sorted((c.attrs[0], v.attrs[0]) for v, c in used.items())
        more = sorted(Variable(c.attrs[0], c.dim, 2) for c in used.values())
        left = (*spec.left, *(c for c, _ in centres)) if spec.given else ()
        spec = replace(spec, parts=tuple(parts), variables=(*spec.variables, *more), left=left)
        return replace(sweep, spec=spec, centres=tuple(centres))

    return tuple(map(written_out, found))
