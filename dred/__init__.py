"""dred: exact reductions of symbolic formulas over all pairs of points, on CPUs, GPUs and Dask clusters."""

from importlib import import_module
from typing import TYPE_CHECKING

from dred.autodiff import grad, hessian_vector_product, jvp, value_and_grad, vjp
from dred.errors import (
    AliasError,
    ArgumentError,
    BackendError,
    DerivativeError,
    DimensionError,
    DredError,
    DtypeError,
    EntryError,
    FoldError,
    FormulaError,
    FormulaSyntaxError,
    IndexRangeError,
    InputError,
    LimitError,
    OptionError,
    PlanError,
    SolveError,
    StoreError,
    UnknownNameError,
    VariableError,
    WorkersLostError,
)
from dred.generic import generic_argkmin, generic_argmin, generic_logsumexp, generic_sum
from dred.genred import Genred, Reduction

if TYPE_CHECKING:
    from dred.cluster.arrays import from_array, from_file
    from dred.cluster.plugin import warm
    from dred.lazy import LazyTensor, Pm, Vi, Vj
    from dred.solve import KernelSolve, SolveInfo
else:  # to type checkers, the names that are not there do not exist
    # loaded when they are asked for: dask.array takes half a second, distributed a whole one
    _ON_DASK = {"from_array": "arrays", "from_file": "arrays", "warm": "plugin"}
    _LAZY = ("LazyTensor", "Pm", "Vi", "Vj")
    _SOLVING = ("KernelSolve", "SolveInfo")
    _NOT_YET = ("ComplexLazyTensor",)

    def __getattr__(name):
        """What is loaded late. Names of KeOps say what is there instead: an ImportError, the one that is not hidden."""
        if name in _ON_DASK:
            return getattr(import_module(f"dred.cluster.{_ON_DASK[name]}"), name)
        if name in _LAZY:
            return getattr(import_module("dred.lazy"), name)
        if name in _SOLVING:
            return getattr(import_module("dred.solve"), name)
        if name in _NOT_YET:
            example = 'Genred("Exp(-SqDist(x, y))", ["x = Vi(3)", "y = Vj(3)"], axis=1)'
            raise ImportError(f"dred does not offer {name} yet. Formulas are texts: {example}", name="dred")
        raise AttributeError(f"module 'dred' has no attribute {name!r}")


__version__ = "0.1.0"

__all__ = [
    "AliasError",
    "ArgumentError",
    "BackendError",
    "DerivativeError",
    "DimensionError",
    "DredError",
    "DtypeError",
    "EntryError",
    "FoldError",
    "FormulaError",
    "FormulaSyntaxError",
    "Genred",
    "IndexRangeError",
    "InputError",
    "KernelSolve",
    "LazyTensor",
    "LimitError",
    "OptionError",
    "PlanError",
    "Pm",
    "Reduction",
    "SolveError",
    "SolveInfo",
    "StoreError",
    "UnknownNameError",
    "VariableError",
    "Vi",
    "Vj",
    "WorkersLostError",
    "from_array",
    "from_file",
    "generic_argkmin",
    "generic_argmin",
    "generic_logsumexp",
    "generic_sum",
    "grad",
    "hessian_vector_product",
    "jvp",
    "value_and_grad",
    "vjp",
    "warm",
]
