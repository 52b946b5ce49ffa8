"""The table of primitives: the scalar operations that every renderer knows, one row each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


def _fma(a: Any, b: Any, c: Any) -> Any:
    return a * b + c  # NumPy has no fused form; the second rounding is within the interpreter's tolerance


def _min(a: Any, b: Any) -> Any:
    return np.where(a < b, a, b)


def _max(a: Any, b: Any) -> Any:
    return np.where(a > b, a, b)


def _away_from_zero(a: Any) -> Any:
    whole = np.trunc(a)
    return np.where(np.abs(a - whole) >= 0.5, whole + np.sign(a), whole)


def _erf(a: Any) -> Any:
    return np.frompyfunc(math.erf, 1, 1)(a)


SHIFT = {"float32": 48, "float64": 105}  # `exp2s` is larger than the power of 2 by so many bits


class Range(NamedTuple):
    """Numbers from `low` to `high`."""

    low: float
    high: float


# exponents that `exp2s` tells apart: up to `low`, where a power of 2 is rounded to 0, it is 0; from `high` on infinite
RANGES = {"float32": Range(-150.0, 80.0), "float64": Range(-1075.0, 919.0)}


def _exp2s(a: Any) -> Any:
    name = np.asarray(a).dtype.name
    return np.where(a <= RANGES[name].low, a.dtype.type(0), np.exp2(a + SHIFT[name]))


@dataclass(frozen=True)
class Primitive:
    """One scalar operation.

    Attributes
    ----------
    arity : int
    numpy : callable
        Meaning on NumPy arrays of the compute type.
    llvm : str
        LLVM text with holes {T} (vector or scalar type), {M} (mask type), {N} (type of row numbers), {n} (suffix such
        as v16f32), {0} {1} {2} (operands); "" where the renderer has a recipe of its own, or the C library a function.
    cuda : str
        C++ expression with holes {0} {1} {2}, {T} and {f} ("f" for float, "" for double).
    cost : float
        Instructions per vector of float32 on the CPU (a division or a root counts as 8), to weigh formulas against each
        other.
    result : str
        "value", "truth", or "number": a row number, int64.
    library : str
        Name of a function in the C library, for double; that for float ends in "f". No row of this table needs one.
    """

    arity: int
    numpy: Callable[..., Any]
    llvm: str
    cuda: str
    cost: float = 1
    result: str = "value"
    library: str = ""


def _scaled_power(cost: float) -> Primitive:
    return Primitive(1, _exp2s, "", "exp2{f}({0} + (sizeof({T}) == 4 ? 48 : 105))", cost)


def _compare(symbol: str, llvm: str, numpy: Callable[..., Any]) -> Primitive:
    return Primitive(2, numpy, f"fcmp {llvm} {{T}} {{0}}, {{1}}", f"{{0}} {symbol} {{1}}", 1, "truth")


def _compare_numbers(symbol: str, llvm: str, numpy: Callable[..., Any]) -> Primitive:
    return Primitive(2, numpy, f"icmp {llvm} {{N}} {{0}}, {{1}}", f"{{0}} {symbol} {{1}}", 2, "truth")


def _intrinsic(name: str, cuda: str, numpy: Callable[..., Any], cost: float) -> Primitive:
    return Primitive(1, numpy, f"call {{T}} @llvm.{name}.{{n}}({{T}} {{0}})", f"{cuda}{{f}}({{0}})", cost)


def _function(name: str, numpy: Callable[..., Any], cost: float, arity: int = 1) -> Primitive:
    operands = ", ".join(f"{{{k}}}" for k in range(arity))
    return Primitive(arity, numpy, "", f"{name}{{f}}({operands})", cost)


def _approximate(name: str, numpy: Callable[..., Any]) -> Primitive:
    """For CUDA alone: `dred.kernel.cuda_text.PRELUDE` has the functions."""
    return Primitive(1, numpy, "", f"dred_{name}({{0}})", 2)


PRIMITIVES: dict[str, Primitive] = {
    "add": Primitive(2, np.add, "fadd {T} {0}, {1}", "{0} + {1}"),
    "sub": Primitive(2, np.subtract, "fsub {T} {0}, {1}", "{0} - {1}"),
    "mul": Primitive(2, np.multiply, "fmul {T} {0}, {1}", "{0} * {1}"),
    "div": Primitive(2, np.divide, "fdiv {T} {0}, {1}", "{0} / {1}", 8),
    "neg": Primitive(1, np.negative, "fneg {T} {0}", "-{0}", 0),  # mostly a part of what reads it
    "fma": Primitive(3, _fma, "call {T} @llvm.fma.{n}({T} {0}, {T} {1}, {T} {2})", "fma{f}({0}, {1}, {2})"),
    "lt": _compare("<", "olt", np.less),
    "le": _compare("<=", "ole", np.less_equal),
    "eq": _compare("==", "oeq", np.equal),
    "ne": _compare("!=", "une", np.not_equal),
    "select": Primitive(3, np.where, "select {M} {0}, {T} {1}, {T} {2}", "{0} ? {1} : {2}"),
    "both": Primitive(2, np.logical_and, "and {M} {0}, {1}", "{0} & {1}", 1, "truth"),
    "either": Primitive(2, np.logical_or, "or {M} {0}, {1}", "{0} | {1}", 1, "truth"),
    # strict comparison: the second operand where they are equal or one is NaN
    "min": Primitive(2, _min, "", "{0} < {1} ? {0} : {1}", 2),
    "max": Primitive(2, _max, "", "{0} > {1} ? {0} : {1}", 2),
    "abs": _intrinsic("fabs", "fabs", np.abs, 1),
    "floor": _intrinsic("floor", "floor", np.floor, 1),
    "ceil": _intrinsic("ceil", "ceil", np.ceil, 1),
    "trunc": _intrinsic("trunc", "trunc", np.trunc, 1),
    "round": _intrinsic("round", "round", _away_from_zero, 4),
    "sqrt": _intrinsic("sqrt", "sqrt", np.sqrt, 8),
    "exp": _function("exp", np.exp, 20),
    "exp2": _function("exp2", np.exp2, 21),
    # 2^(a + SHIFT) as `RANGES` says; for arguments that are known not to be above 0; for those not to be below; for
    # terms beside much larger ones, where it need not be 0
    "exp2s": _scaled_power(14),
    "exp2s_fall": _scaled_power(12),
    "exp2s_rise": _scaled_power(12),
    "exp2s_stay": _scaled_power(13),
    # of a GPU's special function unit: within 2 ulp; of a power of 2, what would be denormal is 0
    "approx_exp2": _approximate("exp2", np.exp2),
    "approx_sqrt": _approximate("sqrt", np.sqrt),
    "approx_rsqrt": _approximate("rsqrt", lambda a: 1 / np.sqrt(a)),
    "ramp": Primitive(1, lambda a: np.maximum(a, 0), "", "dred_ramp({0})", 1),  # for CUDA alone, likewise
    "expm1": _function("expm1", np.expm1, 28),
    "log": _function("log", np.log, 39),
    "log1p": _function("log1p", np.log1p, 50),
    "sin": _function("sin", np.sin, 27),
    "cos": _function("cos", np.cos, 26),
    "tan": _function("tan", np.tan, 42),
    "asin": _function("asin", np.arcsin, 30),
    "acos": _function("acos", np.arccos, 32),
    "atan": _function("atan", np.arctan, 35),
    "atan2": _function("atan2", np.arctan2, 56, 2),
    "sinh": _function("sinh", np.sinh, 34),
    "cosh": _function("cosh", np.cosh, 32),
    "tanh": _function("tanh", np.tanh, 44),
    "erf": _function("erf", _erf, 46),
    "hypot": _function("hypot", np.hypot, 29, 2),
    "pow": _function("pow", np.power, 79, 2),
    # row numbers, int64: exact where they meet each other and whole constants; elsewhere converted
    "number": Primitive(1, lambda a: a, "sitofp {N} {0} to {T}", "({T}){0}", 2),
    "number_add": Primitive(2, np.add, "add {N} {0}, {1}", "{0} + {1}", 2, "number"),
    "number_sub": Primitive(2, np.subtract, "sub {N} {0}, {1}", "{0} - {1}", 2, "number"),
    "number_neg": Primitive(1, np.negative, "sub {N} zeroinitializer, {0}", "-{0}", 2, "number"),
    "number_mul": Primitive(2, np.multiply, "mul {N} {0}, {1}", "{0} * {1}", 4, "number"),  # by a constant
    "number_select": Primitive(3, np.where, "select {M} {0}, {N} {1}, {N} {2}", "{0} ? {1} : {2}", 2, "number"),
    "number_shift": Primitive(2, np.right_shift, "ashr {N} {0}, {1}", "{0} >> {1}", 4, "number"),
    "number_and": Primitive(2, np.bitwise_and, "and {N} {0}, {1}", "{0} & {1}", 2, "number"),
    "number_lt": _compare_numbers("<", "slt", np.less),
    "number_le": _compare_numbers("<=", "sle", np.less_equal),
    "number_eq": _compare_numbers("==", "eq", np.equal),
    "number_ne": _compare_numbers("!=", "ne", np.not_equal),
}
