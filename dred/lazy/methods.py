"""Methods of LazyTensor that follow from the tables: one for each operation, two names for each reduction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dred.formula.derive import DERIVED
from dred.formula.op import Op
from dred.formula.ops import OPS
from dred.lazy.tensor import LazyTensor
from dred.reductions import REDUCTIONS

# Operations whose first argument is not that of the method: for each argument, which one of the method's it is.
_ORDER: Mapping[str, tuple[int, ...]] = {
    "SqNormIso": (1, 0),
    "SqNormDiag": (1, 0),
    "SymSqNorm": (1, 0),
    "WeightedSqNorm": (1, 0),
    "WeightedSqDist": (2, 0, 1),
    "BSpline": (1, 0),
}
# Derivatives of the formula by a variable.
_DERIVED: Mapping[str, str] = {
    "grad": "Grad",
    "grad_matrix": "GradMatrix",
    "diff": "Diff",
    "divergence": "Divergence",
    "laplacian": "Laplacian",
    "adjoint_operator": "AdjointOperator",
    "trace_operator": "TraceOperator",
    "sum_lin_operator": "SumLinOperator",
}
_WRITTEN = frozenset(vars(LazyTensor))  # by hand


def operation(op: Op) -> Callable[..., LazyTensor]:
    """The method of an operation: of a LazyTensor, then its other arguments and its static integers."""
    order = _ORDER.get(op.name, tuple(range(len(op.args))))

    def method(self: LazyTensor, *args: Any, **named: Any) -> LazyTensor:
        given = (self, *args)
        if order != tuple(range(len(order))) and len(given) >= len(order):
            given = (*(given[k] for k in order), *given[len(order) :])
        return self.call(op.name, *given, **named)

    others = [op.args[order.index(k)] for k in range(1, len(op.args))]
    static = [f"{word}=()" if word in op.optional else word for word in op.attrs]
    method.__name__ = method.__qualname__ = op.method
    method.__doc__ = f"{op.method}({', '.join([*others, *static])}): {op.doc}."
    return method


def reduction(name: str) -> Callable[..., Any]:
    """The method of a reduction: `K`, or the weights, where it has them, then what `LazyTensor.reduce` takes."""
    entry = REDUCTIONS[name]
    first = {"K": "opt_arg", "edges": "opt_arg"}.get(entry.parameter) or ("weight" if "G" in entry.signature else "")

    def method(self: LazyTensor, *args: Any, **given: Any) -> Any:
        if "K" in given:
            given["opt_arg"] = given.pop("K")
        if first and first not in given and (args and not ("?" in entry.signature and isinstance(args[0], int))):
            args, given = args[1:], {**given, first: args[0]}
        return self.reduce(name, *args, **given)

    method.__name__ = method.__qualname__ = called(name)
    takes = {"opt_arg": entry.parameter, "weight": "weight", "": ""}[first]
    method.__doc__ = f"{called(name)}({takes}{', ' * bool(takes)}axis): {entry.doc}. See `reduce`."
    return method


def derivative(method_name: str, name: str) -> Callable[..., LazyTensor]:
    """The method of a derivative: of the variable, then its other arguments."""
    entry = DERIVED[name]

    def method(self: LazyTensor, v: Any, *more: Any) -> LazyTensor:
        return self.derived(name, v, *more)

    method.__name__ = method.__qualname__ = method_name
    method.__doc__ = f"{entry.signature.replace('F, ', '').replace(name, method_name)}: {entry.doc}."
    return method


def called(name: str) -> str:
    """What users call a reduction: KMin_ArgKMin is Kmin_argKmin."""
    return "_".join(part.lower().replace("kmin", "Kmin").replace("kmax", "Kmax") for part in name.split("_"))


def _attach() -> None:
    found: dict[str, Callable[..., Any]] = {op.method: operation(op) for op in OPS.values() if op.args}
    for name in REDUCTIONS:
        found[f"{called(name)}_reduction"] = reduction(name)
        found.setdefault(called(name), reduction(name))
    found |= {word: derivative(word, name) for word, name in _DERIVED.items()}
    for name, method in found.items():
        if name not in _WRITTEN:
            setattr(LazyTensor, name, method)


_attach()
