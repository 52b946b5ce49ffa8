"""LLVM IR text of scalar operations, for one value or for SIMD lanes of them."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from dred.formula.construct import nearest
from dred.kernel.primitives import PRIMITIVES, SHIFT
from dred.reductions import NONE

Put = Callable[[str], str]
"""Writes an instruction and returns the name of its result."""


@dataclass(frozen=True)
class Lanes:
    """A compute type and how many values of it one instruction works on.

    The number of lanes is part of the program, not of the machine: LLVM splits or widens vectors to the registers
    that there are, so text and bits are the same everywhere.
    """

    dtype: str
    width: int = 1
    local: bool = False
    """Whether row numbers are counted from the beginning of a chain: then they are as wide as the values."""

    @property
    def scalar(self) -> str:
        return "float" if self.dtype == "float32" else "double"

    @property
    def itemsize(self) -> int:
        return 4 if self.dtype == "float32" else 8

    @property
    def nbytes(self) -> int:
        """Size of all lanes together."""
        return self.itemsize * self.width

    def of(self, element: str) -> str:
        """The type of as many `element`s as there are lanes."""
        return element if self.width == 1 else f"<{self.width} x {element}>"

    @property
    def type(self) -> str:
        return self.of(self.scalar)

    @property
    def mask(self) -> str:
        return self.of("i1")

    @property
    def integer(self) -> str:
        """The type of integers as wide as the values."""
        return self.of(f"i{8 * self.itemsize}")

    @property
    def number(self) -> str:
        """The type of row numbers."""
        return self.integer if self.local else self.of("i64")

    @property
    def none(self) -> int:
        """The number of no row."""
        return 2**31 - 1 if self.local and self.itemsize == 4 else NONE

    @property
    def suffix(self) -> str:
        """How names of intrinsics end, as in `llvm.fma.v16f32`."""
        return (f"v{self.width}" if self.width > 1 else "") + f"f{8 * self.itemsize}"

    def literal(self, value: Fraction | float) -> str:
        """The same constant in every lane, rounded to the compute type; beyond its range: infinite."""
        (bits,) = struct.unpack("<Q", struct.pack("<d", nearest(value, self.dtype)))
        return self._splat(self.scalar, f"0x{bits:016X}")

    def integers(self, value: int) -> str:
        """The same integer in every lane."""
        return self._splat(f"i{8 * self.itemsize}", str(value))

    def whole(self, value: int) -> str:
        """The same row number in every lane; that of no row is `none`."""
        value = self.none if value == NONE else value
        return self._splat(f"i{8 * self.itemsize}" if self.local else "i64", str(value))

    def _splat(self, element: str, text: str) -> str:
        return text if self.width == 1 else f"splat ({element} {text})"


def operation(put: Put, lanes: Lanes, op: str, operands: Sequence[str]) -> str:
    """Writes one primitive of the table and returns its result."""
    if (write := _OWN.get(op)) is not None:
        return write(put, lanes, *operands)
    row = PRIMITIVES[op]
    if row.library:
        given = ", ".join(f"{lanes.type} {a}" for a in operands)
        return put(f"call {lanes.type} @{row.library}.{lanes.suffix}({given})")
    return put(row.llvm.format(*operands, T=lanes.type, M=lanes.mask, N=lanes.number, n=lanes.suffix))


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


def _minimum(put: Put, lanes: Lanes, a: str, b: str) -> str:
    less = put(f"fcmp olt {lanes.type} {a}, {b}")
    return put(f"select {lanes.mask} {less}, {lanes.type} {a}, {lanes.type} {b}")


def _maximum(put: Put, lanes: Lanes, a: str, b: str) -> str:
    more = put(f"fcmp ogt {lanes.type} {a}, {b}")
    return put(f"select {lanes.mask} {more}, {lanes.type} {a}, {lanes.type} {b}")


@dataclass(frozen=True)
class _Exp:
    """Constants of the exponential for one compute type.

    Attributes
    ----------
    low, high : float
        Arguments are clamped to these, where the result is 0 and infinite already.
    mantissa, bias : int
        Bits of a mantissa that are stored; bias of the exponent.
    log4 : (float, float)
        The logarithm of 4 as a number of the compute type and what is left of it.
    series : tuple of float
        c of exp(r) = 1 + r + r^2 (c[0] + c[1] r + ...) for |r| <= log(2), of least relative error (2^-26, 2^-56).
    """

    low: float
    high: float
    mantissa: int
    bias: int
    log4: tuple[float, float]
    series: tuple[float, ...]


_EXP = {
    "float32": _Exp(
        low=-104.0,
        high=89.0,
        mantissa=23,
        bias=127,
        log4=(1.3862943649291992, -3.809308599915536e-09),
        series=(
            0.5000003459023576,
            0.16666614228110513,
            0.041661273515819094,
            0.008336100334454803,
            0.0014104366414983357,
            0.00019611725876530155,
        ),
    ),
    "float64": _Exp(
        low=-746.0,
        high=710.0,
        mantissa=52,
        bias=1023,
        log4=(1.3862943611198906, 4.638093627692599e-17),
        series=(
            0.4999999999999993,
            0.16666666666666938,
            0.0416666666667021,
            0.008333333333269896,
            0.0013888888883574568,
            0.00019841269892790356,
            2.4801590831359e-05,
            2.755730064828335e-06,
            2.755615770861859e-07,
            2.5055033603206164e-08,
            2.10623593893867e-09,
            1.59355910737649e-10,
        ),
    ),
}


def _exp(put: Put, lanes: Lanes, x: str) -> str:
    """exp(x) = 2^2n exp(r), x = n log(4) + r: within 2 ulp, exp(0) = 1, right at infinities, NaN, denormal results."""
    T, I, c = lanes.type, lanes.integer, _EXP[lanes.dtype]

    def fma(a: str, b: str, d: str) -> str:
        return operation(put, lanes, "fma", (a, b, d))

    def horner(series: Sequence[float], at: str) -> str:
        p = lanes.literal(series[-1])
        for coefficient in series[-2::-1]:
            p = fma(p, at, lanes.literal(coefficient))
        return p

    # `min` and `max` give their second operand where it is NaN: a NaN goes through to the end
    x = _minimum(put, lanes, lanes.literal(c.high), x)
    x = _maximum(put, lanes, lanes.literal(c.low), x)
    # adding 1.5 * 2^mantissa rounds to an integer and leaves it in the low bits: n + bias
    magic = lanes.literal(1.5 * 2**c.mantissa + c.bias)
    t = fma(x, lanes.literal(0.7213475204444817), magic)
    n = put(f"fsub {T} {t}, {magic}")
    r = fma(n, lanes.literal(-c.log4[0]), x)
    r = fma(n, lanes.literal(-c.log4[1]), r)
    square = put(f"fmul {T} {r}, {r}")
    tail = fma(horner(c.series[1::2], square), r, horner(c.series[::2], square))  # two short chains, not one long
    p = fma(tail, square, put(f"fadd {T} {r}, {lanes.literal(1.0)}"))
    # twice 2^n, a normal number, where 2^2n may be denormal or beyond the largest number: one rounding
    power = put(f"shl {I} {put(f'bitcast {T} {t} to {I}')}, {lanes.integers(c.mantissa)}")
    power = put(f"bitcast {I} {power} to {T}")
    return put(f"fmul {T} {put(f'fmul {T} {p}, {power}')}, {power}")


# 2^r for |r| <= 1/2 with 2^0 = 1, lowest power first: least relative error, 2^-23.4 and 2^-57.7
_EXP2S = {
    "float32": (1.0, 0.6931469775988589, 0.24022242085172796, 0.05550734743690516, 0.009671512648929905,
                0.0013264727065510234),
    "float64": (1.0, 0.693147180559945309, 0.240226506959101596, 0.055504108664821627, 0.00961812910758725667,
                0.00133335581464064707, 0.000154035304637243542, 0.0000152527338415567726, 1.32154325359123762e-6,
                1.01780570877339411e-7, 7.07419429728852101e-9, 4.45581790833606449e-10),
}  # fmt: skip


def _exp2s(put: Put, lanes: Lanes, a: str) -> str:
    """2^(a + SHIFT) = 2^n 2^r, a + SHIFT = n + r: n is never below a normal number's exponent, nor is it above."""
    T, I, bits = lanes.type, lanes.integer, _EXP[lanes.dtype].mantissa
    # adding 1.5 * 2^mantissa rounds to an integer and leaves it in the low bits, as the exponent is stored
    magic = lanes.literal(1.5 * 2**bits + SHIFT[lanes.dtype] + _EXP[lanes.dtype].bias)
    t = put(f"fadd {T} {a}, {magic}")
    r = put(f"fsub {T} {a}, {put(f'fsub {T} {t}, {magic}')}")
    p = lanes.literal(_EXP2S[lanes.dtype][-1])
    for coefficient in _EXP2S[lanes.dtype][-2::-1]:
        p = operation(put, lanes, "fma", (p, r, lanes.literal(coefficient)))
    power = put(f"shl {I} {put(f'bitcast {T} {t} to {I}')}, {lanes.integers(bits)}")
    return put(f"fmul {T} {p}, {put(f'bitcast {I} {power} to {T}')}")


_OWN: dict[str, Callable[..., str]] = {"min": _minimum, "max": _maximum, "exp": _exp, "exp2s": _exp2s}


_CALL = re.compile(r"call (<[^>]*>|\w+) @(llvm\.\w+)(\.\w+)\(")
_ARITY = {
    m[2]: row.arity
    for row in PRIMITIVES.values()
    if (m := _CALL.search(row.llvm.format(0, 0, 0, T="T", M="M", N="N", n="n")))
}


def declared(text: str, kinds: Sequence[Lanes]) -> str:
    """The text of a function behind declarations of the intrinsics that it calls, whose arguments are of the type of
    the result, and definitions of its functions of the C library on lanes of the given kinds."""
    called = sorted(call for call in set(_CALL.findall(text)) if call[1] in _ARITY)
    intrinsics = [
        f"declare {kind} @{name}{suffix}({', '.join([kind] * _ARITY[name])})\n" for kind, name, suffix in called
    ]
    functions: dict[str, str] = {}
    for lanes in kinds:
        for row in PRIMITIVES.values():
            if row.library and f"@{row.library}.{lanes.suffix}(" in text:
                declaration, _, definition = library(row.library, row.arity, lanes).partition("\n")
                functions |= {declaration: "", definition: ""}
    return "".join([*intrinsics, *(f"{line}\n" for line in functions), text])
