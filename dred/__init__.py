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
from dred.ranges import (
    Ranges,
    cluster_centroids,
    cluster_ranges,
    cluster_ranges_centroids,
    from_matrix,
    grid_cluster,
    sort_clusters,
    swap_axes,
)

if TYPE_CHECKING:
    from dred.cluster.arrays import from_array, from_file
    from dred.cluster.plugin import warm
    from dred.lazy import ComplexLazyTensor, LazyTensor, Pm, Vi, Vj
    from dred.solve import KernelSolve, SolveInfo
else:  # to type checkers, the names that are not there do not exist
    # loaded when they are asked for: dask.array takes half a second, distributed a whole one
    _ON_DASK = {"from_array": "arrays", "from_file": "arrays", "warm": "plugin"}
    _LAZY = ("ComplexLazyTensor", "LazyTensor", "Pm", "Vi", "Vj")
    _SOLVING = ("KernelSolve", "SolveInfo")

    def __getattr__(name):
        """What is loaded late."""
        if name in _ON_DASK:
            return getattr(import_module(f"dred.cluster.{_ON_DASK[name]}"), name)
        if name in _LAZY:
            return getattr(import_module("dred.lazy"), name)
        if name in _SOLVING:
            return getattr(import_module("dred.solve"), name)
        raise AttributeError(f"module 'dred' has no attribute {name!r}")


__version__ = "0.1.0"

__all__ = [
    "AliasError",
    "ArgumentError",
    "BackendError",
    "ComplexLazyTensor",
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
    "Ranges",
    "Reduction",
    "SolveError",
    "SolveInfo",
    "StoreError",
    "UnknownNameError",
    "VariableError",
    "Vi",
    "Vj",
    "WorkersLostError",
    "cluster_centroids",
    "cluster_ranges",
    "cluster_ranges_centroids",
    "from_array",
    "from_file",
    "from_matrix",
    "generic_argkmin",
    "generic_argmin",
    "generic_logsumexp",
    "generic_sum",
    "grad",
    "grid_cluster",
    "hessian_vector_product",
    "jvp",
    "sort_clusters",
    "swap_axes",
    "value_and_grad",
    "vjp",
    "warm",
]
