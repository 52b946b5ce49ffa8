"""What one kernel computes, as a value that travels: formula, reduction, axis and types."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

from dred.formula.language import Variable
from dred.formula.node import I, J, Node, digest, variables

CHAIN = 32  # terms that are added in the compute type before they join the state
VERSION = 1  # of the arithmetic: raised when the same spec gives other bits


@dataclass(frozen=True)
class KernelSpec:
    """A reduction of a formula over one index.

    Attributes
    ----------
    formula : Node
    reduction : str
        Name in the table of reductions.
    axis : int
        1: reduce over j, one row per i is kept; 0: reduce over i, one row per j is kept.
    dtype : str
        Compute type: "float32" or "float64".
    acc : str
        Type of the state.
    chain : int
        Terms of one row that are merged in the compute type before they join the state.
    variables : tuple of Variable
        The inputs by position, also those that the formula does not read: they too say how many rows there are. By
        default those that it reads.
    """

    formula: Node
    reduction: str
    axis: int
    dtype: str
    acc: str
    chain: int = CHAIN
    variables: tuple[Variable, ...] = ()

    def __post_init__(self) -> None:
        if not self.variables:
            object.__setattr__(self, "variables", self.read)
        assert set(self.read) <= set(self.variables), "the formula reads a variable that is not declared"

    @cached_property
    def read(self) -> tuple[Variable, ...]:
        """The variables that the formula reads, by position."""
        return tuple(Variable(v.attrs[0], v.dim, v.attrs[1]) for v in variables(self.formula))

    @property
    def dim(self) -> int:
        """Components of the formula."""
        return self.formula.dim

    def level(self, cat: int) -> int:
        """The kernel's index (I: kept, J: reduced, 0: none) of a category of variables."""
        return ((I, J, 0) if self.axis == 1 else (J, I, 0))[cat]

    @cached_property
    def digest(self) -> str:
        """Content key, equal in every process."""
        parts = (
            VERSION,
            digest(self.formula),
            self.reduction,
            self.axis,
            self.dtype,
            self.acc,
            self.chain,
            self.variables,
        )
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def __dask_tokenize__(self) -> str:
        return self.digest
