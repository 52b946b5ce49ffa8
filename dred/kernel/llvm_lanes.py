"""A compute type in SIMD lanes, and LLVM IR text written by Python operators on its values."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from dred.formula.construct import nearest
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
    scaling: bool = False
    """Whether the machine has instructions of AVX-512 that round, and multiply by powers of 2. No bit depends on it."""
    moderate: bool = False
    """Whether powers of 2 are known to be within their limits (see `dred.kernel.exponents`)."""

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


@dataclass(frozen=True)
class Value:
    """An operand; Python's operators write the instruction and return its result.

    Attributes
    ----------
    code : Code
        Where instructions go.
    kind : str
        Type in LLVM: lanes of numbers, of integers as wide, or of truth values.
    name : str
    """

    code: Code
    kind: str
    name: str

    def __add__(self, other: Value | float) -> Value:
        return self._arithmetic("add", other)

    def __sub__(self, other: Value | float) -> Value:
        return self._arithmetic("sub", other)

    def __mul__(self, other: Value | float) -> Value:
        return self._arithmetic("mul", other)

    def __rsub__(self, other: float) -> Value:
        return self.code.number(other) - self

    def __truediv__(self, other: Value | float) -> Value:
        return self._write("fdiv", other)

    def __rtruediv__(self, other: float) -> Value:
        return self.code.number(other) / self

    def __neg__(self) -> Value:
        return self.code.write(f"fneg {self.kind} {self.name}", self.kind)

    def __and__(self, other: Value | int) -> Value:
        return self._write("and", other)

    def __or__(self, other: Value | int) -> Value:
        return self._write("or", other)

    def __xor__(self, other: Value | int) -> Value:
        return self._write("xor", other)

    def __lshift__(self, places: int) -> Value:
        return self._write("shl", places)

    def __rshift__(self, places: int) -> Value:
        """Zeros come in at the top: no arithmetic shift, which AVX2 lacks for 64 bits."""
        return self._write("lshr", places)

    def __lt__(self, other: Value | float) -> Value:
        return self._compare("olt", other)

    def __le__(self, other: Value | float) -> Value:
        return self._compare("ole", other)

    def __gt__(self, other: Value | float) -> Value:
        return self._compare("ogt", other)

    def equals(self, other: Value | float) -> Value:
        if self.kind == self.code.lanes.integer:
            return self._compare("eq", other, "icmp")
        return self._compare("oeq", other)

    def differs(self, other: Value | float) -> Value:
        """True for NaN as well."""
        return self._compare("une", other)

    def less(self, other: Value | int) -> Value:
        """Of signed integers."""
        return self._compare("slt", other, "icmp")

    def where(self, yes: Value | float, no: Value | float) -> Value:
        """`yes` in the lanes where this truth value holds, `no` in the others."""
        one = yes if isinstance(yes, Value) else no
        kind = one.kind if isinstance(one, Value) else self.code.lanes.type
        a, b = self.code.operand(yes, kind), self.code.operand(no, kind)
        return self.code.write(f"select {self.kind} {self.name}, {kind} {a}, {kind} {b}", kind)

    def bits(self) -> Value:
        """The pattern of a number."""
        return self.code.write(f"bitcast {self.kind} {self.name} to {self.code.lanes.integer}", self.code.lanes.integer)

    def from_bits(self) -> Value:
        """The number of a pattern."""
        return self.code.write(f"bitcast {self.kind} {self.name} to {self.code.lanes.type}", self.code.lanes.type)

    def _arithmetic(self, op: str, other: Value | float) -> Value:
        return self._write(op if self.kind == self.code.lanes.integer else f"f{op}", other)

    def _write(self, op: str, other: Value | float) -> Value:
        return self.code.write(f"{op} {self.kind} {self.name}, {self.code.operand(other, self.kind)}", self.kind)

    def _compare(self, how: str, other: Value | float, op: str = "fcmp") -> Value:
        operand = self.code.operand(other, self.kind)
        return self.code.write(f"{op} {how} {self.kind} {self.name}, {operand}", self.code.lanes.mask)


@dataclass(frozen=True)
class Code:
    """Where instructions on lanes of one type go.

    Attributes
    ----------
    put : callable
    lanes : Lanes
    lines : list of str
        The body of a function that is being written, for `rarely`.
    """

    put: Put
    lanes: Lanes
    lines: list[str] = field(default_factory=list)

    @property
    def single(self) -> bool:
        """Whether the type is float32."""
        return self.lanes.dtype == "float32"

    @property
    def native(self) -> bool:
        """Whether `nearest` and `scaled` can be written for these lanes."""
        return self.lanes.scaling and self.lanes.nbytes == 64

    @property
    def mantissa(self) -> int:
        """Bits of a mantissa that are stored."""
        return 23 if self.single else 52

    @property
    def bias(self) -> int:
        """Of the exponent."""
        return 127 if self.single else 1023

    def write(self, instruction: str, kind: str) -> Value:
        return Value(self, kind, self.put(instruction))

    def operand(self, value: Value | float, kind: str) -> str:
        """A value, or a constant of a type in every lane."""
        if isinstance(value, Value):
            return value.name
        return self.lanes.integers(int(value)) if kind == self.lanes.integer else self.lanes.literal(value)

    def number(self, value: float) -> Value:
        return Value(self, self.lanes.type, self.lanes.literal(value))

    def integer(self, value: int) -> Value:
        return Value(self, self.lanes.integer, self.lanes.integers(value))

    def fma(self, a: Value | float, b: Value | float, c: Value | float) -> Value:
        """a * b + c, rounded once."""
        return self.intrinsic("fma", a, b, c)

    def intrinsic(self, name: str, *given: Value | float) -> Value:
        T = self.lanes.type
        operands = ", ".join(f"{T} {self.operand(a, T)}" for a in given)
        return self.write(f"call {T} @llvm.{name}.{self.lanes.suffix}({operands})", T)

    def abs(self, x: Value) -> Value:
        return self.intrinsic("fabs", x)

    def sqrt(self, x: Value) -> Value:
        return self.intrinsic("sqrt", x)

    def copysign(self, magnitude: Value, sign: Value) -> Value:
        return self.intrinsic("copysign", magnitude, sign)

    def min(self, a: Value | float, b: Value) -> Value:
        """The smaller; `b` where one is NaN, so put the constant first and NaN goes through."""
        a = a if isinstance(a, Value) else self.number(a)
        return (a < b).where(a, b)

    def max(self, a: Value | float, b: Value) -> Value:
        """The greater; `b` where one is NaN."""
        a = a if isinstance(a, Value) else self.number(a)
        return (a > b).where(a, b)

    def polynomial(self, series: Sequence[float], at: Value) -> Value:
        """series[0] + series[1] at + ...: long ones in two chains, which hide each other's latency."""
        if len(series) < 5:
            return self._horner(series, at)
        square = at * at
        return self.fma(self._horner(series[1::2], square), at, self._horner(series[::2], square))

    def _horner(self, series: Sequence[float], at: Value) -> Value:
        p: Value | float = series[-1]
        for c in series[-2::-1]:
            p = self.fma(p, at, c)
        assert isinstance(p, Value)
        return p

    def pattern(self, value: float) -> int:
        """The bits of a number of this type, as an integer."""
        kinds = ("<f", "<i") if self.single else ("<d", "<q")
        return int(struct.unpack(kinds[1], struct.pack(kinds[0], value))[0])

    def power(self, exponent: Value) -> Value:
        """2^(exponent - bias) for integers, none of which is denormal or beyond the largest number."""
        return (exponent << self.mantissa).from_bits()

    def rounded(self, x: Value, factor: float, offset: int = 0) -> tuple[Value, Value]:
        """The integer nearest to x * factor as a number, and as an integer to which `offset` is added."""
        # adding 1.5 * 2^mantissa rounds to an integer and leaves it in the low bits
        magic = 1.5 * 2**self.mantissa
        t = self.fma(x, factor, magic)
        return t - magic, t.bits() - (self.pattern(magic) - offset)

    def nearest(self, x: Value) -> Value:
        """The integer nearest to x, halfway the even one, as a number; NaN and infinities are themselves."""
        return self._native("rndscale", f"{x.kind} {x.name}, i32 8")

    def scaled(self, x: Value, n: Value) -> Value:
        """x 2^n for an integer n, rounded once. Where n is infinite a factor x that comes of inf - inf is none."""
        return self._native("scalef", f"{x.kind} {x.name}, {n.kind} {n.name}")

    def _native(self, name: str, operands: str) -> Value:
        """An instruction of AVX-512."""
        T, kind = self.lanes.type, "ps" if self.single else "pd"
        more = f"{T} zeroinitializer, i{self.lanes.width} -1, i32 4"  # in all lanes, by the rounding that is set
        return self.write(f"call {T} @llvm.x86.avx512.mask.{name}.{kind}.512({operands}, {more})", T)

    def rarely(self, where: Value, name: str, x: Value, usual: Sequence[Value]) -> tuple[Value, ...]:
        """Values that a scalar function puts right in the lanes where `where` holds, called if there is one.

        That function gets addresses: of the lanes of `x` and of each value; and the number of lanes.
        """
        width, put, do = self.lanes.width, self.put, self.lines.append
        places = [put(f"alloca {v.kind}") for v in (x, *usual)]
        one = where.name if width == 1 else put(f"bitcast {where.kind} {where.name} to i{width}")
        some = one if width == 1 else put(f"icmp ne i{width} {one}, 0")
        do(f"  br i1 {some}, label %rare, label %on")
        do("rare:")
        for v, place in zip((x, *usual), places, strict=True):
            do(f"  store {v.kind} {v.name}, ptr {place}")
        given = ", ".join(f"ptr {place}" for place in places)
        do(f"  call void @{name}.{Lanes(self.lanes.dtype).suffix}({given}, i64 {width})")
        fixed = [put(f"load {v.kind}, ptr {place}") for v, place in zip(usual, places[1:], strict=True)]
        do("  br label %on")
        do("on:")
        return tuple(
            self.write(f"phi {v.kind} [ {v.name}, %entry ], [ {f}, %rare ]", v.kind)
            for v, f in zip(usual, fixed, strict=True)
        )
