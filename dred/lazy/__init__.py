"""Formulas as arithmetic on arrays: `LazyTensor`, and the variables that it is made of."""

from dred.lazy import methods as methods
from dred.lazy.tensor import LazyTensor, Pm, Vi, Vj

__all__ = ["LazyTensor", "Pm", "Vi", "Vj"]
