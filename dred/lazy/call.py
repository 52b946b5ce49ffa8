"""Reductions of formulas that hold their arrays: variables by position, one routine for all formulas of a kind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from dred import options
from dred.errors import InputError
from dred.formula.language import Formula, Variable
from dred.formula.node import Node, canonical, toposort, var
from dred.formula.pullback import Reduced
from dred.routine import Routine


@dataclass(frozen=True, eq=False)
class Call:
    """A reduction of a LazyTensor that has not been computed.

    Attributes
    ----------
    routine : Routine, or what computes one
    arrays : tuple of array or None
        By position; None where there is none yet.
    """

    routine: Any
    arrays: tuple[Any, ...]

    def __call__(self, *args: Any, **options: Any) -> Any:
        """The result, with the arrays that are missing in the order of their positions.

        Options are those of a call of `Genred`. InputError: more or fewer arrays than are missing.
        """
        missing = sum(array is None for array in self.arrays)
        if len(args) != missing:
            raise InputError(f"the reduction takes {missing} arrays, got {len(args)}")
        rest = iter(args)
        given = [next(rest) if array is None else array for array in self.arrays]
        return self.routine(*given, **options)


def joined(kinds: Iterable[Any]) -> Any:
    """Of the classes of several LazyTensors that of what comes of them: the one of a library of tensors, if any."""
    return max(kinds, key=lambda kind: len(kind.__mro__))


def places(roots: Sequence[Node], held: Mapping[Node, Any]) -> tuple[dict[Node, Node], list[Any]]:
    """Variables at positions 0, 1, ... in place of those of formulas, and their arrays (None: symbolic ones).

    Symbolic ones come first, in their order; of several that hold one array, one is enough. Where a formula has lost
    all its variables of a category, as x * 0 has, one is kept, since it says how many rows there are.

    Raises
    ------
    InputError
        Symbolic ones whose positions leave gaps.
    """
    found = [n for n in toposort(roots) if n.op == "Var"]
    known = {2, *(n.attrs[1] for n in found)}  # a parameter has no rows
    for n in held:
        if n not in found and (held[n] is None or n.attrs[1] not in known):
            known.add(n.attrs[1])
            found.append(n)
    open_ones = sorted((n for n in found if held[n] is None), key=lambda n: int(n.attrs[0]))
    if (numbers := [n.attrs[0] for n in open_ones]) != [*range(len(numbers))]:
        raise InputError(f"variables without arrays have the positions {numbers}: they must be 0, 1, ..., each once")
    new: dict[Node, Node] = {}
    arrays: list[Any] = []
    by_array: dict[tuple[int, int], int] = {}  # positions, by array and category
    for n in [*open_ones, *(n for n in found if held[n] is not None)]:
        array, cat = held[n], n.attrs[1]
        place = None if array is None else by_array.get((id(array), cat))
        if place is None:
            place = len(arrays)
            arrays.append(array)
            by_array[id(array), cat] = place
        new[n] = var(place, n.dim, cat)
    return new, arrays


@lru_cache(maxsize=512)
def routine(
    reduction: str,
    node: Node,
    weight: Node | None,
    axis: int,
    parameter: Any,
    variables: tuple[Variable, ...],
    how: tuple[Any, ...],
    expanded: bool,
) -> Routine:
    """What computes a reduction of a formula of variables at positions 0, 1, ...: made once for all of its kind."""
    reduced = Reduced(reduction, node, 1 - axis, parameter, weight)
    text = canonical(node)
    options.dimensions(reduced, text, None if weight is None else canonical(weight))
    labels = tuple(map(str, variables))
    formula = Formula(text, node, variables, ("",) * len(variables), labels)
    accumulation, expansion = options.accumulation((reduced,), *how), options.expansion((reduced,), expanded)
    return Routine(formula, labels, (reduced,), dtype=None, how=accumulation, expand=expansion)
