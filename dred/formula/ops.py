"""The table of operations: one entry says everything about an operation.

To add an operation, add one entry to a module of `dred.formula.table`. Parser, derivatives, kernels, oracle,
documentation and the tests of value, gradient, special values and broadcasting follow from it.
"""

from __future__ import annotations

from dred.formula.op import Op
from dred.formula.table import arithmetic, complex, curves, functions, tensors, vectors

MODULES = (arithmetic, functions, vectors, tensors, complex, curves)
OPS: dict[str, Op] = {op.name: op for module in MODULES for op in module.ENTRIES}
