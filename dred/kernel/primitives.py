"""The table of primitives: the scalar operations that every renderer knows, one row each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


def _fma(a: Any, b: Any, c: Any) -> Any:
    return a * b + c  # NumPy has no fused form; the second rounding is within the interpreter's tolerance


def _min(a: Any, b: Any) -> Any:
    return np.where(a < b, a, b)


def _max(a: Any, b: Any) -> Any:
    return np.where(a > b, a, b)


@dataclass(frozen=True)
class Primitive:
    """One scalar operation.

    Attributes
    ----------
    arity : int
    numpy : callable
        Meaning on NumPy arrays of the compute type.
    llvm : str
        LLVM text with holes {T} (vector or scalar type), {M} (mask type), {n} (suffix such as v16f32), {0} {1} {2}
        (operands); "" where the renderer supplies a function of its own (`exp`).
    cuda : str
        C++ expression with holes {0} {1} {2} and {f} ("f" for float, "" for double).
    cost : float
        Instructions per value, to weigh formulas against each other.
    boolean : bool
        The result is a truth value.
    """

    arity: int
    numpy: Callable[..., Any]
    llvm: str
    cuda: str
    cost: float = 1
    boolean: bool = False


def _compare(symbol: str, llvm: str, numpy: Callable[..., Any]) -> Primitive:
    return Primitive(2, numpy, f"fcmp {llvm} {{T}} {{0}}, {{1}}", f"{{0}} {symbol} {{1}}", 1, True)


def _intrinsic(name: str, cuda: str, numpy: Callable[..., Any], cost: float) -> Primitive:
    return Primitive(1, numpy, f"call {{T}} @llvm.{name}.{{n}}({{T}} {{0}})", f"{cuda}{{f}}({{0}})", cost)


PRIMITIVES: dict[str, Primitive] = {
    "add": Primitive(2, np.add, "fadd {T} {0}, {1}", "{0} + {1}"),
    "sub": Primitive(2, np.subtract, "fsub {T} {0}, {1}", "{0} - {1}"),
    "mul": Primitive(2, np.multiply, "fmul {T} {0}, {1}", "{0} * {1}"),
    "div": Primitive(2, np.divide, "fdiv {T} {0}, {1}", "{0} / {1}", 8),
    "neg": Primitive(1, np.negative, "fneg {T} {0}", "-{0}"),
    "fma": Primitive(3, _fma, "call {T} @llvm.fma.{n}({T} {0}, {T} {1}, {T} {2})", "fma{f}({0}, {1}, {2})"),
    "lt": _compare("<", "olt", np.less),
    "le": _compare("<=", "ole", np.less_equal),
    "eq": _compare("==", "oeq", np.equal),
    "ne": _compare("!=", "une", np.not_equal),
    "select": Primitive(3, np.where, "select {M} {0}, {T} {1}, {T} {2}", "{0} ? {1} : {2}"),
    # strict comparison: the second operand where they are equal or one is NaN
    "min": Primitive(2, _min, "", "{0} < {1} ? {0} : {1}", 2),
    "max": Primitive(2, _max, "", "{0} > {1} ? {0} : {1}", 2),
    "abs": _intrinsic("fabs", "fabs", np.abs, 1),
    "floor": _intrinsic("floor", "floor", np.floor, 1),
    "sqrt": _intrinsic("sqrt", "sqrt", np.sqrt, 8),
    "exp": Primitive(1, np.exp, "", "exp{f}({0})", 12),
    "log": _intrinsic("log", "log", np.log, 40),
    "sin": _intrinsic("sin", "sin", np.sin, 40),
    "cos": _intrinsic("cos", "cos", np.cos, 40),
    "pow": Primitive(2, np.power, "call {T} @llvm.pow.{n}({T} {0}, {T} {1})", "pow{f}({0}, {1})", 80),
}
