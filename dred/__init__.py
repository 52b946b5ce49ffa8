"""dred: exact reductions of symbolic formulas over all pairs of points, on CPUs, GPUs and Dask clusters."""

from dred.errors import (
    AliasError,
    ArgumentError,
    BackendError,
    DerivativeError,
    DimensionError,
    DredError,
    DtypeError,
    FoldError,
    FormulaError,
    FormulaSyntaxError,
    IndexRangeError,
    InputError,
    LimitError,
    OptionError,
    PlanError,
    UnknownNameError,
    VariableError,
)
from dred.genred import Genred, Reduction

__version__ = "0.1.0"

__all__ = [
    "AliasError",
    "ArgumentError",
    "BackendError",
    "DerivativeError",
    "DimensionError",
    "DredError",
    "DtypeError",
    "FoldError",
    "FormulaError",
    "FormulaSyntaxError",
    "Genred",
    "IndexRangeError",
    "InputError",
    "LimitError",
    "OptionError",
    "PlanError",
    "Reduction",
    "UnknownNameError",
    "VariableError",
]
