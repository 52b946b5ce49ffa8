"""What one kernel computes, as a value that travels: formulas, states, axis and types."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate, pairwise, starmap
from math import inf, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dred.formula.language import Variable
from dred.formula.node import I, J, Node, const, digest, intern, toposort, var, variables
from dred.formula.rewrite import construct
from dred.formula.syntax import evaluate, parse_once
from dred.reductions import MONOIDS, REDUCTIONS, monoid_name, stored

CHAIN = 16  # terms that are added in the compute type before they join the state: 16 * 2^-24 < 1e-6
HALF = ("bfloat16", "float16")  # types of arrays that are computed in float32
VERSION = 13  # of the arithmetic: raised when the same spec gives other bits


@dataclass(frozen=True)
class Part:
    """One state of a kernel: a monoid over the terms of a formula.

    Attributes
    ----------
    monoid : str
        Name in the table of monoids.
    formula : Node
    weight : Node or None
        The second formula.
    places : int
        States that a ranking keeps; 1 for others.
    edges : tuple of float
        Of bins.
    any_reference : bool
        Whether all that is read off it is the same for any reference of sums of exponentials.
    """

    monoid: str
    formula: Node
    weight: Node | None = None
    places: int = 1
    edges: tuple[float, ...] = ()
    any_reference: bool = False

    @staticmethod
    def of(
        reduction: str, formula: Node, weight: Node | None = None, parameter: Any = None, kahan: bool = False
    ) -> Part:
        """The state that a reduction is read off."""
        entry = REDUCTIONS[reduction]
        return Part(
            monoid_name(entry, weight is not None, kahan),
            formula,
            weight,
            int(parameter) if entry.parameter == "K" else 1,
            tuple(map(float, parameter)) if entry.parameter == "edges" else (),
            entry.any_reference,
        )

    @property
    def formulas(self) -> tuple[Node, ...]:
        return (self.formula,) if self.weight is None else (self.formula, self.weight)


@dataclass(frozen=True)
class Layout:
    """A field of the state of a part: what it is lifted from, and how many components it has."""

    name: str
    kind: str
    identity: float
    lift: Node
    dim: int
    places: int

    @property
    def size(self) -> int:
        """Rows of its array: component c in place t is row t * dim + c."""
        return self.dim * self.places


@cache
def array_type(name: str) -> np.dtype[Any]:
    """The NumPy type of a name; that of bfloat16 comes with the package ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes

        name = ml_dtypes.bfloat16
    found: np.dtype[Any] = np.dtype(name)
    return found


@dataclass(frozen=True)
class KernelSpec:
    """Reductions of formulas over one index, in one sweep over the pairs.

    Attributes
    ----------
    parts : tuple of Part
        The states that are computed.
    axis : int
        1: reduce over j, one row per i is kept; 0: reduce over i, one row per j is kept.
    dtype : str
        Compute type: "float32" or "float64".
    acc : str
        Type of sums in the state.
    chain : int
        Terms of one row that are merged in the compute type before they join the state; 1 where a part has to.
    variables : tuple of Variable
        The inputs by position, also those that no formula reads: they too say how many rows there are. By default
        those that are read.
    given : str
        Type of the arrays of a call and of its results, where that is not the compute type: "float16" or "bfloat16".
    left : tuple of int
        Positions of variables that earlier sweeps have left, which are of the compute type.
    batch : tuple of int
        Everything is repeated for each element of a batch of this shape. A state of M rows then is of those of the
        first element, of those of the second, and so on.
    own : tuple of (tuple of int)
        For each variable the leading dimensions of its array, as many as the batch has: its sizes, or 1.
    fast : bool
        Whether scales of exponents go into the rows: see `dred.kernel.hoist.hoisted`.
    """

    parts: tuple[Part, ...]
    axis: int
    dtype: str
    acc: str
    chain: int = CHAIN
    variables: tuple[Variable, ...] = ()
    given: str = ""
    left: tuple[int, ...] = ()
    batch: tuple[int, ...] = ()
    own: tuple[tuple[int, ...], ...] = ()
    fast: bool = False

    def __post_init__(self) -> None:
        if not self.variables:
            object.__setattr__(self, "variables", self.read)
        assert set(self.read) <= set(self.variables), "a formula reads a variable that is not declared"
        if not all(MONOIDS[part.monoid].chained for part in self.parts):
            object.__setattr__(self, "chain", 1)

    def __hash__(self) -> int:
        return hash(self.digest)  # known after the first time

    @classmethod
    def of(
        cls,
        formula: Node,
        reduction: str,
        axis: int,
        dtype: str,
        acc: str,
        chain: int = CHAIN,
        variables: tuple[Variable, ...] = (),
        weight: Node | None = None,
        parameter: Any = None,
        kahan: bool = False,
    ) -> KernelSpec:
        """One reduction of one formula."""
        return cls((Part.of(reduction, formula, weight, parameter, kahan),), axis, dtype, acc, chain, variables)

    @cached_property
    def read(self) -> tuple[Variable, ...]:
        """The variables that the formulas read, by position."""
        found = {n for part in self.parts for f in part.formulas for n in variables(f)}
        return tuple(sorted(Variable(v.attrs[0], v.dim, v.attrs[1]) for v in found))

    @cached_property
    def operations(self) -> int:
        """Operations of the formulas, on vectors: at least 1."""
        found = toposort(f for part in self.parts for f in part.formulas)
        return max(1, sum(n.op not in ("Var", "Const") for n in found))

    @cached_property
    def layout(self) -> tuple[tuple[Layout, ...], ...]:
        """For each part, the fields of its state."""
        return tuple(map(self._fields, self.parts, self._tables))

    def _fields(self, part: Part, tables: tuple[int, int]) -> tuple[Layout, ...]:
        bins = max(1, len(part.edges) - 1)
        names = {
            "F": part.formula,
            "G": const(1) if part.weight is None else part.weight,
            "index": intern("IndexJ" if self.axis == 1 else "IndexI", (), (), 1),
            "inf": const(inf),
            "low": var(tables[0], bins, 2),
            "high": var(tables[1], bins, 2),
        }
        return tuple(
            Layout(
                field.name,
                field.kind,
                field.identity,
                evaluate(parse_once(field.lift), const, names.__getitem__, construct),
                max((names[word].dim for word in field.over), default=1),
                part.places,
            )
            for field in MONOIDS[part.monoid].fields
        )

    @cached_property
    def fields(self) -> tuple[Layout, ...]:
        """The fields of the whole state, one array each."""
        return tuple(field for part in self.layout for field in part)

    @cached_property
    def blank(self) -> tuple[tuple[int, float, np.dtype[Any]], ...]:
        """For each of these arrays, its rows, what is in it where no term has been met, and its type."""
        return tuple((f.size, f.identity, np.dtype(stored(f.kind, self.dtype, self.acc))) for f in self.fields)

    @cached_property
    def sole(self) -> tuple[tuple[str, ...], ...]:
        """For each part, the name of its field where it has but one, of a single place; else nothing."""
        return tuple((part[0].name,) if len(part) == part[0].places == 1 else () for part in self.layout)

    @cached_property
    def names(self) -> tuple[tuple[str, ...], ...]:
        """For each part, what the fields of its state and the parameter of its reduction are called in texts."""
        return tuple((*(field.name for field in part), "K") for part in self.layout)

    def states(self, part: int) -> slice:
        """Which fields of the state belong to a part."""
        return self._states[part]

    @cached_property
    def _states(self) -> tuple[slice, ...]:
        ends = [*accumulate(map(len, self.layout), initial=0)]
        return tuple(starmap(slice, pairwise(ends)))

    @cached_property
    def _tables(self) -> tuple[tuple[int, int], ...]:
        """Positions, after all variables, of the bounds of each part's bins."""
        first = 1 + max((v.ind for v in self.variables), default=-1)
        return tuple((first + 2 * n, first + 2 * n + 1) for n in range(len(self.parts)))

    @cached_property
    def constants(self) -> dict[int, NDArray[Any]]:
        """Arrays that every call has besides its arguments, by position.

        Bounds of bins are rounded upwards to the compute type: for numbers of that type, comparisons with them say
        the same as with the bounds. The last bin is closed.
        """
        out: dict[int, NDArray[Any]] = {}
        kind = np.dtype(self.dtype).type
        for part, (low, high) in zip(self.parts, self._tables, strict=True):
            if part.edges:
                bounds = [_upwards(edge, kind) for edge in part.edges]
                with np.errstate(over="ignore"):
                    last = kind(part.edges[-1])
                    last = last if float(last) <= part.edges[-1] else np.nextafter(last, kind(-np.inf))
                    beyond = np.nextafter(last, kind(np.inf))
                out[low] = np.array(bounds[:-1], kind)
                out[high] = np.array([*bounds[1:-1], beyond], kind)
        return out

    def arrays(self, given: Sequence[Any]) -> Sequence[Any]:
        """The arrays by position and of the compute type, with those that every call has."""
        arrays = self.widened(given) if self.given else given
        if not self.constants:
            return arrays
        out = [*arrays, *[None] * (1 + max(self.constants) - len(arrays))]
        for place, array in self.constants.items():
            out[place] = array
        return [np.empty(0, self.dtype) if a is None else a for a in out]

    def widened(self, arrays: Any) -> list[Any]:
        """The arrays by position, those of another than the compute type converted."""
        if not self.given:
            return list(arrays)
        return [a if a is None or a.dtype == self.dtype else a.astype(self.dtype) for a in arrays]

    def type_of(self, ind: int) -> str:
        """Type of the array of a variable, as it is given."""
        return self.dtype if not self.given or ind in self.left else self.given

    def level(self, cat: int) -> int:
        """The kernel's index (I: kept, J: reduced, 0: none) of a category of variables."""
        return ((I, J, 0) if self.axis == 1 else (J, I, 0))[cat]

    @cached_property
    def batches(self) -> int:
        """Elements of the batch."""
        return prod(self.batch)

    def own_of(self, ind: int) -> tuple[int, ...]:
        """The leading dimensions of the array at a position."""
        return next((own for v, own in zip(self.variables, self.own, strict=False) if v.ind == ind), ())

    def width(self, v: Variable) -> int:
        """Values of a row of a variable, of all elements of the batch that its array has."""
        return v.dim * prod(self.own_of(v.ind))

    @property
    def token(self) -> str:
        """Content key of what is computed, the batch included; equal in every process."""
        if not self.batch:
            return self.digest
        return hashlib.sha256(repr((self.digest, self.batch, self.own)).encode()).hexdigest()

    @cached_property
    def digest(self) -> str:
        """Content key of the kernel, which no batch changes; equal in every process."""
        parts = [
            (
                p.monoid,
                digest(p.formula),
                "" if p.weight is None else digest(p.weight),
                p.places,
                p.edges,
                p.any_reference,
            )
            for p in self.parts
        ]
        key: tuple[Any, ...] = (VERSION, parts, self.axis, self.dtype, self.acc, self.chain, self.variables)
        key += (self.given, self.left) if self.given else ()
        key += ("fast",) if self.fast else ()
        return hashlib.sha256(repr(key).encode()).hexdigest()

    def __dask_tokenize__(self) -> str:
        return self.token


def _upwards(x: float, kind: Any) -> Any:
    """The smallest number of a type that is not below x."""
    with np.errstate(over="ignore"):
        near = kind(x)
    return near if float(near) >= x else np.nextafter(near, kind(np.inf))
