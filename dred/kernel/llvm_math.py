"""LLVM IR text of scalar operations, for one value or for SIMD lanes of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial

from dred.kernel import llvm_angles as angles
from dred.kernel import llvm_exponentials as exponentials
from dred.kernel.llvm_lanes import Code, Lanes, Put, Value
from dred.kernel.primitives import PRIMITIVES

__all__ = ["Lanes", "Put", "declared", "operation"]

Recipe = Callable[..., Value]
"""Writes the instructions of an operation on some values, and returns the result."""

INLINE: dict[str, Recipe] = {
    "min": Code.min,
    "max": Code.max,
    "exp": exponentials.exp,
    "exp2": exponentials.exp2,
    "exp2s": exponentials.exp2s,
    "exp2s_fall": partial(exponentials.exp2s, rises=False),
    "exp2s_stay": partial(exponentials.exp2s, vanishes=False),
    "exp2s_rise": partial(exponentials.exp2s, falls=False),
}
"""Written where they are used: short, or where time matters most."""

FUNCTIONS: dict[str, Recipe] = {
    "expm1": exponentials.expm1,
    "log": exponentials.log,
    "log1p": exponentials.log1p,
    "sinh": exponentials.sinh,
    "cosh": exponentials.cosh,
    "tanh": exponentials.tanh,
    "erf": exponentials.erf,
    "pow": exponentials.pow,
    "sin": angles.sin,
    "cos": angles.cos,
    "tan": angles.tan,
    "asin": angles.asin,
    "acos": angles.acos,
    "atan": angles.atan,
    "atan2": angles.atan2,
    "hypot": angles.hypot,
}
"""Functions of the program that are called: written once, however often they are used."""


def operation(put: Put, lanes: Lanes, op: str, operands: Sequence[str]) -> str:
    """Writes one primitive of the table and returns its result."""
    if op in INLINE:
        code = Code(put, lanes)
        return INLINE[op](code, *(Value(code, lanes.type, a) for a in operands)).name
    row = PRIMITIVES[op]
    if op in FUNCTIONS or row.library:
        given = ", ".join(f"{lanes.type} {a}" for a in operands)
        return put(f"call {lanes.type} @{row.library or op}.{lanes.suffix}({given})")
    return put(row.llvm.format(*operands, T=lanes.type, M=lanes.mask, N=lanes.number, n=lanes.suffix))


def function(name: str, lanes: Lanes) -> str:
    """The definition of one of `FUNCTIONS`, that `operation` calls."""
    lines: list[str] = []

    def put(instruction: str) -> str:
        lines.append(f"  %t{len(lines)} = {instruction}")
        return f"%t{len(lines) - 1}"

    code = Code(put, lanes, lines)
    given = [Value(code, lanes.type, f"%a{k}") for k in range(PRIMITIVES[name].arity)]
    result = FUNCTIONS[name](code, *given)
    head = (
        f"define internal {lanes.type} @{name}.{lanes.suffix}({', '.join(f'{a.kind} {a.name}' for a in given)}) #1 {{"
    )
    return "\n".join([head, "entry:", *lines, f"  ret {result.kind} {result.name}", "}", ""])


def library(name: str, arity: int, lanes: Lanes) -> str:
    """A function of the C library, lane by lane: its declaration, and the definition that `operation` calls."""
    one, kind, width = lanes.scalar, lanes.type, lanes.width
    theirs = f"@{name}{'f' if lanes.dtype == 'float32' else ''}"
    lines = [
        f"declare {one} {theirs}({', '.join([one] * arity)})",
        f"define internal {kind} @{name}.{lanes.suffix}({', '.join(f'{kind} %a{k}' for k in range(arity))}) #1 {{",
    ]
    if width == 1:
        given = ", ".join(f"{one} %a{k}" for k in range(arity))
        return "\n".join([*lines, f"  %v = call {one} {theirs}({given})", f"  ret {kind} %v", "}", ""])
    before = "poison"
    for n in range(width):
        lines += [f"  %a{k}_{n} = extractelement {kind} %a{k}, i32 {n}" for k in range(arity)]
        given = ", ".join(f"{one} %a{k}_{n}" for k in range(arity))
        lines += [f"  %r{n} = call {one} {theirs}({given})",
                  f"  %v{n} = insertelement {kind} {before}, {one} %r{n}, i32 {n}"]  # fmt: skip
        before = f"%v{n}"
    return "\n".join([*lines, f"  ret {kind} {before}", "}", ""])


_NATIVE = {"rndscale": "{T}, i32, {T}, {bits}, i32", "scalef": "{T}, {T}, {T}, {bits}, i32"}
"""Instructions of AVX-512, by name: types of their arguments."""

_OTHERS = {"@llvm.prefetch.p0(": "declare void @llvm.prefetch.p0(ptr, i32, i32, i32)\n"}
"""Other intrinsics: how a call begins, and the declaration."""

_CALL = re.compile(r"call (<[^>]*>|\w+) @(llvm\.\w+)(\.\w+)\(")
_ARITY = {"llvm.copysign": 2} | {
    m[2]: row.arity
    for row in PRIMITIVES.values()
    if (m := _CALL.search(row.llvm.format(0, 0, 0, T="T", M="M", N="N", n="n")))
}


def declared(text: str, kinds: Sequence[Lanes]) -> str:
    """The text of a function behind the definitions of all that it calls, on lanes of the given kinds, and the
    declarations of intrinsics, whose arguments are of the type of the result."""
    parts: dict[str, None] = {}  # in order, each once
    for lanes in kinds:
        for name, row in PRIMITIVES.items():
            if name in FUNCTIONS and f"@{name}.{lanes.suffix}(" in text:
                parts[function(name, lanes)] = None
            elif row.library and f"@{row.library}.{lanes.suffix}(" in text:
                declaration, _, definition = library(row.library, row.arity, lanes).partition("\n")
                parts |= {f"{declaration}\n": None, f"{definition}\n": None}
        if any(f"@angle.{Lanes(lanes.dtype).suffix}(" in part for part in parts):
            parts |= {angles.DECLARATIONS: None, angles.angle(lanes): None}
    text = "".join([*parts, text])
    called = sorted(call for call in set(_CALL.findall(text)) if call[1] in _ARITY)
    intrinsics = [
        f"declare {kind} @{name}{suffix}({', '.join([kind] * _ARITY[name])})\n" for kind, name, suffix in called
    ]
    for lanes in kinds:
        for name, given in _NATIVE.items():
            call = f"{lanes.type} @llvm.x86.avx512.mask.{name}.{'ps' if lanes.dtype == 'float32' else 'pd'}.512"
            if f"{call}(" in text:
                intrinsics.append(f"declare {call}({given.format(T=lanes.type, bits=f'i{lanes.width}')})\n")
    intrinsics += [line for call, line in _OTHERS.items() if call in text]
    return "".join([*dict.fromkeys(intrinsics), text])
