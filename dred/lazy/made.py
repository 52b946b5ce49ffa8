"""Methods of LazyTensors that follow from the tables: operators, operations, derivatives and reductions."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dred.errors import ArgumentError, OptionError
from dred.formula.construct import usage
from dred.formula.derive import DERIVED
from dred.formula.op import Op
from dred.formula.ops import OPS
from dred.lazy import kinds
from dred.lazy.base import Lazy
from dred.reductions import REDUCTIONS, Reduction

# How methods are called, where it is not `name(other, attributes) = Name(self, other, attributes)`. The names of
# arguments are those of KeOps.
WRITTEN: tuple[str, ...] = (
    "__add__(other) = Add(self, other)",
    "__radd__(other) = Add(other, self)",
    "__sub__(other) = Subtract(self, other)",
    "__rsub__(other) = Subtract(other, self)",
    "__mul__(other) = Mult(self, other)",
    "__rmul__(other) = Mult(other, self)",
    "__truediv__(other) = Divide(self, other)",
    "__rtruediv__(other) = Divide(other, self)",
    "__or__(other) = Scalprod(self, other)",
    "__ror__(other) = Scalprod(other, self)",
    "__mod__(other) = Mod(self, other, 0)",
    "__rmod__(other) = Mod(other, self, 0)",
    "__neg__() = Minus(self)",
    "__abs__() = Abs(self)",
    "__lt__(other) = LessThan(self, other)",
    "__le__(other) = LessOrEqual(self, other)",
    "__gt__(other) = LessThan(other, self)",
    "__ge__(other) = LessOrEqual(other, self)",
    "__eq__(other) = Equal(self, other)",
    "__ne__(other) = NotEqual(self, other)",
    "mod(modulus, offset=0) = Mod(self, modulus, offset)",
    "round(other=0) = Round(self, other)",
    "one_hot(D) = OneHot(self, D)",
    "bspline(x, k=0) = BSpline(self, x, k)",
    "softdtw_sqdist(other, gamma) = SoftDTW_SqDist(self, other, gamma)",
    "sqnormiso(other) = SqNormIso(other, self)",
    "sqnormdiag(other) = SqNormDiag(other, self)",
    "symsqnorm(other) = SymSqNorm(other, self)",
    "weightedsqnorm(other) = WeightedSqNorm(other, self)",
    "weightedsqdist(g, s) = WeightedSqDist(s, self, g)",
    "keops_kron(other, dimfself, dimfother) = Kron(self, other, dimfself, dimfother)",
    "grad(other, gradin) = Grad(self, other, gradin)",
    "diff(other, diffin) = Diff(self, other, diffin)",
    "grad_matrix(other) = GradMatrix(self, other)",
    "divergence(var) = Divergence(self, var)",
    "laplacian(var) = Laplacian(self, var)",
    "trace_operator(var, w=1) = TraceOperator(self, var, w)",
    "adjoint_operator(var, u) = AdjointOperator(self, var, u)",
    "sum_lin_operator(var, wl=1, wr=1) = SumLinOperator(self, var, wl, wr)",
    "factorize(other) = Factorize(self, other)",
    "auto_factorize() = AutoFactorize(self)",
)
BY_HAND = ("real", "imag", "keops_tensordot")  # in the classes themselves, beside what is in their base
_SPEC = re.compile(r"(\w+)\((.*)\) = (\w+)\((.*)\)")
OPERAND, COMPLEX, REAL = "Operand", "ComplexLazyTensor", "LazyTensor"


@dataclass(frozen=True)
class Made:
    """A method.

    Attributes
    ----------
    name : str
    parameters : tuple of Parameter
        Behind `self`, annotated for type checkers.
    returns : str
    doc : str
    function : callable
        Of a LazyTensor and the values of the parameters.
    others : tuple of (mapping of str to str, str)
        Where types of arguments change what is returned: annotations of some parameters ("": left out), and what is
        returned.
    """

    name: str
    parameters: tuple[inspect.Parameter, ...]
    returns: str
    doc: str
    function: Callable[..., Any]
    others: tuple[tuple[Mapping[str, str], str], ...] = ()

    @property
    def usage(self) -> str:
        """The call as it should be written."""
        return f"{self.name}{inspect.Signature([p.replace(annotation=p.empty) for p in self.parameters])}"

    @property
    def method(self) -> Callable[..., Any]:
        """The method of a class."""
        plain = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        signature = inspect.Signature([plain, *self.parameters], return_annotation=self.returns)
        function, usage, name = self.function, self.usage, self.name
        variable = any(p.kind is p.VAR_KEYWORD for p in self.parameters)
        count = -1 if variable else len(self.parameters)

        def method(self: Any, *args: Any, **named: Any) -> Any:
            if len(args) == count and not named:
                return function(self, *args)
            try:
                given = signature.bind(self, *args, **named)
            except TypeError as error:
                raise ArgumentError(f"{name}: {error}", hint=f"it is {usage}") from None
            given.apply_defaults()
            return function(*given.args, **given.kwargs)

        method.__name__ = method.__qualname__ = name
        method.__doc__ = self.doc
        method.__signature__ = signature  # type: ignore[attr-defined]
        return method


def parameter(name: str, annotation: str, default: Any = inspect.Parameter.empty, kind: Any = None) -> Any:
    """A parameter of a method."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD if kind is None else kind
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


# -- operations and derivatives ----------------------------------------------------------------------------------------


def spec(op: Op) -> str:
    """How the method of an operation is called."""
    others = ["other"] if len(op.args) == 2 else [f"other{k}" for k in range(1, len(op.args))]
    attrs = [f"{word}=()" if word in op.optional else word for word in op.attrs]
    given = ", ".join(["self", *others, *op.attrs])
    return f"{op.method}({', '.join([*others, *attrs])}) = {op.name}({given})"


def _words(text: str) -> list[str]:
    return [word for word in text.split(", ") if word]


def _value(text: str) -> Any:
    return () if text == "()" else int(text)


def formula(text: str, of_complex: bool) -> Made | None:
    """The method that a line of `WRITTEN` describes; None: it has no meaning for complex numbers.

    Parameters
    ----------
    text : str
    of_complex : bool
        Whether it is one of ComplexLazyTensor.
    """
    found = _SPEC.fullmatch(text)
    assert found is not None, text
    name, left, operation, right = found.groups()
    values = _words(right)
    statics = dict(zip(values, _annotations(operation), strict=True))
    parameters = []
    for word in _words(left):
        label, _, default = word.partition("=")
        more = [_value(default)] if default else []
        parameters.append(parameter(label, statics[label], *more))
    doc = f"{_called(operation)} of {right}: {_doc(operation)}."

    def function(self: Any, *given: Any) -> Any:
        placed = {"self": self, **{p.name: each for p, each in zip(parameters, given, strict=True)}}
        each = [placed[word] if word in placed else _value(word) for word in values]
        return self.derived(operation, *each[1:]) if operation in DERIVED else self.call(operation, *each)

    returns = _returned(operation, frozenset([values.index("self")] if of_complex else []))
    if returns is None or (not of_complex and _of_complex(operation, values.index("self"))):
        return None
    return Made(name, tuple(parameters), returns, doc, function, _others(operation, values, parameters, of_complex))


def _others(
    operation: str, values: Sequence[str], parameters: Sequence[inspect.Parameter], of_complex: bool
) -> tuple[tuple[Mapping[str, str], str], ...]:
    """Which types of operands change what a method returns: numbers and complex ones."""
    if operation == "Grad":  # like the variable
        return tuple(({parameters[0].name: kind}, kind) for kind in (REAL, COMPLEX))
    mine = frozenset([values.index("self")] if of_complex else [])
    operands = [p.name for p in parameters if p.annotation == OPERAND]
    if operation in DERIVED or not operands:
        return ()
    plain, special = (_returned(operation, mine | extra) for extra in (set(), {values.index(p) for p in operands}))
    if special in (None, plain):
        return ()
    return (
        (dict.fromkeys(operands, "float"), str(plain)),
        (dict.fromkeys(operands, f"{COMPLEX} | complex"), str(special)),
        ({}, str(plain)),
    )


def _of_complex(operation: str, place: int) -> bool:
    """Whether an argument of an operation is a complex vector."""
    return operation in OPS and OPS[operation].kinds[place : place + 1] == "c"


def _annotations(operation: str) -> list[str]:
    """Of the arguments of an operation or derivative."""
    if operation in DERIVED:
        words = _words(DERIVED[operation].signature.rstrip(")").partition("(")[2])
        return [f"{REAL} | {COMPLEX}" if word == "v" else OPERAND for word in words]
    op = OPS[operation]
    return [OPERAND] * len(op.args) + ["Sequence[int]" if word in op.lists else "int" for word in op.attrs]


def _called(operation: str) -> str:
    return DERIVED[operation].signature if operation in DERIVED else usage(OPS[operation])


def _doc(operation: str) -> str:
    return DERIVED[operation].doc if operation in DERIVED else OPS[operation].doc


def _returned(operation: str, flags: frozenset[int]) -> str | None:
    """What a call returns where some of its arguments are complex; None: it is refused."""
    if operation in DERIVED:
        return None if flags and operation not in kinds.DERIVATIVES else COMPLEX if flags else REAL
    found = kinds.result(OPS[operation], flags)
    return None if found is None else COMPLEX if found else REAL


# -- reductions --------------------------------------------------------------------------------------------------------

_AXES = (parameter("axis", "int | None", None), parameter("dim", "int | None", None))
_HOW = parameter("how", "Any", kind=inspect.Parameter.VAR_KEYWORD)
_OPT_ARG: Mapping[str, tuple[str, str]] = {"K": ("K", "int"), "edges": ("edges", "Sequence[float]")}


def called(name: str) -> str:
    """What users call a reduction: KMin_ArgKMin is Kmin_argKmin."""
    return "_".join(part.lower().replace("kmin", "Kmin").replace("kmax", "Kmax") for part in name.split("_"))


# Over components they give a LazyTensor, over i and j an array.
BOTH = ("Sum", "Max", "Min", "ArgMax", "ArgMin")


def both(entry: Reduction, of_complex: bool) -> Made:
    """A method that is an operation over components, and a reduction over i or j."""

    def function(self: Any, axis: int, dim: int | None, **how: Any) -> Any:
        return self._over(entry.name, axis, dim, how)

    kind, last = COMPLEX if of_complex else REAL, "Literal[-1, 2]"
    doc = f"Of components (axis=-1 or 2), a {kind}; over i or j (axis=0 or 1), see `reduction`: {entry.doc}."
    parameters = (parameter("axis", "int", -1), parameter("dim", "int | None", None), _HOW)
    others: tuple[tuple[Mapping[str, str], str], ...] = (
        ({"axis": last, "dim": "", "how": ""}, kind),
        ({"axis": "", "dim": last, "how": ""}, kind),
        ({}, "Any"),
    )
    return Made(called(entry.name), parameters, "Any", doc, function, others)


def norm() -> Made:
    """The method `norm`, of vectors alone."""

    def function(self: Any, dim: int) -> Any:
        if dim not in (-1, 2):
            raise OptionError(f"dim={dim!r}: norms are those of vectors, which is dim=-1 or 2")
        return self.call("Norm2", self)

    return Made("norm", (parameter("dim", "int", -1),), REAL, "Length of the vectors (dim=-1 or 2).", function)


def reduction(entry: Reduction, name: str) -> Made:
    """A method of a reduction: `K`, `edges` or weights where it needs them, the axis, then options."""
    required, optional, passed = [], [], {"axis": "axis", "dim": "dim"}
    if entry.parameter in _OPT_ARG:
        word, annotation = _OPT_ARG[entry.parameter]
        required.append(parameter(word, annotation))
        passed[word] = "opt_arg"
    elif entry.parameter:
        optional.append(parameter(entry.parameter, "int", 0))
        passed[entry.parameter] = "opt_arg"
    words = entry.signature.split(", ")
    if "G" in words:
        required.append(parameter("weight", OPERAND))
    elif "G?" in words or entry.weighted:
        optional.append(parameter("weight", f"{OPERAND} | None", None))
    passed["weight"] = "other"
    parameters = (*required, *_AXES, *optional, _HOW)

    def function(self: Any, *given: Any, **how: Any) -> Any:
        placed = {passed[p.name]: each for p, each in zip(parameters, given, strict=False)}
        return self.reduction(entry.name, **placed, **how)

    return Made(name, parameters, "Any", f"{entry.doc}. See `reduction`.", function)


# -- all of them -------------------------------------------------------------------------------------------------------


def methods(of_complex: bool) -> list[Made]:
    """The methods of LazyTensor or of ComplexLazyTensor, but those that are written by hand."""
    by_name = {text.partition("(")[0]: text for text in WRITTEN}
    specs = [*WRITTEN, *(spec(op) for op in OPS.values() if op.args and op.method not in by_name)]
    found = {"norm": norm()} | {made.name: made for text in specs if (made := formula(text, of_complex))}
    for entry in REDUCTIONS.values():
        if not of_complex or kinds.REDUCTIONS.get(entry.name) == "F":
            name = called(entry.name)
            found[f"{name}_reduction"] = reduction(entry, f"{name}_reduction")
            found[name] = both(entry, of_complex) if entry.name in BOTH else reduction(entry, name)
    written = {*BY_HAND, *dir(Lazy)} - {*dir(object)}
    return [made for name, made in found.items() if name not in written]
