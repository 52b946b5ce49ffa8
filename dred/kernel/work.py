"""The arithmetic that a pair needs at least, by formula: what the speed of a kernel is held against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

EXPONENTIAL = {"float32": 6, "float64": 12}
"""Multiply-adds of an exponential: scaling, and a polynomial of degree 5 or 11. What else there is are additions."""


class Work(NamedTuple):
    """Operations of one pair, with nothing counted for what may be computed once per row.

    Attributes
    ----------
    additions : int
        Subtractions and comparisons among them.
    multiply_adds, exponentials : int
    """

    additions: int
    multiply_adds: int
    exponentials: int

    def fma(self, dtype: str) -> int:
        """Multiply-adds alone, those of exponentials among them: processors have other units for additions."""
        return self.multiply_adds + EXPONENTIAL[dtype] * self.exponentials

    def instructions(self, dtype: str) -> int:
        """Instructions of a GPU, where an exponential in float32 is one, of a unit of its own."""
        one = 1 if dtype == "float32" else EXPONENTIAL[dtype]
        return self.additions + self.multiply_adds + one * self.exponentials


WORK: Mapping[str, Callable[[int, int], Work]] = {
    "sum": lambda D, E: Work(D, D + E, 1),
    "gradient": lambda D, E: Work(D, 2 * D + 1, 1),
    "tutorial": lambda D, E: Work(D, D, D),
    "tutorial_gradient": lambda D, E: Work(D, D, D),
    "logsumexp": lambda D, E: Work(D + 1, D, 1),
    "nearest": lambda D, E: Work(D + 1, D, 0),
}
"""By kind of formula, for points of D components and weights of E: sums of exp(-g |x - y|²) b and their gradient in x,
`Square(p-a)*Exp(x+y)` and its gradient, log-sum-exps of distances, and neighbours."""
