"""Formulas as arithmetic on arrays: `LazyTensor`, and the variables that it is made of."""

from dred.lazy.tensor import ComplexLazyTensor, LazyTensor, Pm, Vi, Vj

__all__ = ["ComplexLazyTensor", "LazyTensor", "Pm", "Vi", "Vj"]
