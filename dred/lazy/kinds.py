"""Operations on numbers of which some are complex: a complex vector of D components is a real one of 2 D, in pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dred.errors import ArgumentError, OptionError
from dred.formula import derive
from dred.formula.construct import exact, make
from dred.formula.node import Node, const
from dred.formula.op import Op, elementwise
from dred.formula.ops import OPS
from dred.formula.rewrite import build, expand
from dred.formula.rewrite import power as real_power

# Operations that are linear in arguments together: what they do to real and to imaginary parts. For each, the sets of
# arguments that may be complex, while the others are real.
LINEAR: Mapping[str, tuple[frozenset[int], ...]] = {
    name: tuple(map(frozenset, sets))
    for name, sets in {
        "Minus": ([0],),
        "Add": ([0, 1],),
        "Subtract": ([0, 1],),
        "Mult": ([0], [1]),
        "Divide": ([0],),
        "Sum": ([0],),
        "SumT": ([0],),
        "Concat": ([0, 1],),
        "IfElse": ([1, 2],),
        "Scalprod": ([0], [1]),
        "TensorProd": ([0], [1]),
        "MatVecMult": ([0], [1]),
        "VecMatMult": ([0], [1]),
    }.items()
}
# Operations whose meaning for complex numbers is another entry of the table.
COUNTERPARTS: Mapping[str, str] = {
    "Mult": "ComplexMult",
    "Divide": "ComplexDivide",
    "Exp": "ComplexExp",
    "Abs": "ComplexAbs",
}
# Operations on a complex vector that are those on the real one, and whether their results are complex.
NORMS: Mapping[str, bool] = {"SqNorm2": False, "Norm2": False, "SqDist": False, "Normalize": True}
POWERS: Mapping[str, int] = {"Square": 2, "Inv": -1}
# Derivatives in which a complex vector counts as the real one.
DERIVATIVES = ("Grad", "Diff", "Factorize", "AutoFactorize")
# Reductions that do the same to real and to imaginary parts of F, or of G.
REDUCTIONS: Mapping[str, str] = {"Sum": "F", "Mean": "F", "SumSoftMaxWeight": "G", "SoftMax": "G"}
HINT = "real, imag, abs and angle give real LazyTensors of a complex one"


def result(op: Op, complex_ones: frozenset[int]) -> bool | None:
    """Whether an operation gives complex numbers where those of its arguments are complex; None: it is refused."""
    if op.kinds == "rc->c":  # in either order
        return None if complex_ones == {0, 1} else True
    if op.kinds:
        given, _, found = op.kinds.partition("->")
        return None if any(given[k] == "r" for k in complex_ones) else found == "c"
    if not complex_ones:
        return False
    if op.name in NORMS:
        return NORMS[op.name]
    if op.name in POWERS or op.name == "Pow" or _linear(op, complex_ones):
        return True
    return result(OPS[COUNTERPARTS[op.name]], complex_ones) if op.name in COUNTERPARTS else None


def _linear(op: Op, complex_ones: frozenset[int]) -> frozenset[int] | None:
    """The arguments in which an operation is linear, if all complex ones are among them."""
    return next((together for together in LINEAR.get(op.name, ()) if complex_ones <= together), None)


def apply(op: Op, args: Sequence[Node], flags: Sequence[bool], attrs: tuple[Any, ...]) -> tuple[Node, bool]:
    """An operation on arguments of which some are complex, and whether its result is.

    Raises
    ------
    ArgumentError
        Where it has no meaning for them.
    """
    complex_ones = frozenset(k for k, flag in enumerate(flags) if flag)
    found = result(op, complex_ones)
    if found is None:
        raise ArgumentError(f"{op.name} takes no complex numbers" + " there" * bool(op.kinds), hint=HINT)
    if not op.kinds and not complex_ones:
        return expand(op.name, args, attrs), False
    if len(args) == 2 and (op.kinds or op.name in COUNTERPARTS):
        elementwise(tuple(a.dim // (2 if flag else 1) for a, flag in zip(args, flags, strict=True)))
    if op.kinds:
        wanted = [letter == "c" for letter in op.kinds.partition("->")[0]]
        if op.kinds == "rc->c" and flags[0]:
            args, flags = args[::-1], flags[::-1]
        return expand(op.name, promoted(args, flags, wanted), attrs), found
    if op.name == "SqDist":
        return expand("SqNorm2", (apply(OPS["Subtract"], args, flags, ())[0],)), False
    if op.name in NORMS:
        return expand(op.name, args, attrs), found
    if op.name in POWERS or op.name == "Pow":
        return _power(args[0], POWERS[op.name] if op.name in POWERS else attrs[0]), True
    if (together := _linear(op, complex_ones)) is not None:
        halves = [_half(part, op, args, flags, attrs, together) for part in ("ComplexReal", "ComplexImag")]
        return expand("ComplexPair", halves), True
    return apply(OPS[COUNTERPARTS[op.name]], args, flags, attrs)


def _half(
    part: str, op: Op, args: Sequence[Node], flags: Sequence[bool], attrs: tuple[Any, ...], together: frozenset[int]
) -> Node:
    """A linear operation on the real or on the imaginary parts; those of real arguments are themselves or 0."""
    found = []
    for k, (a, flag) in enumerate(zip(args, flags, strict=True)):
        zero = part == "ComplexImag" and k in together
        found.append(expand(part, (a,)) if flag else build("SumT", (const(0),), (a.dim,)) if zero else a)
    return expand(op.name, found, attrs)


def derived(name: str, args: Sequence[Node], flags: Sequence[bool]) -> tuple[Node, bool]:
    """A derivative of formulas of which some are complex, and whether it is: a gradient is like the variable.

    Raises
    ------
    ArgumentError
        Where it has no meaning for them.
    """
    if any(flags) and name not in DERIVATIVES:
        raise ArgumentError(f"{name} takes no complex numbers", hint=HINT)
    like = {"Grad": 0, "Diff": 1}  # what the last argument is like
    wanted = list(flags)
    if name in like and len(args) == 3:
        wanted[2] = flags[like[name]]
        if flags[2] and not wanted[2]:
            raise ArgumentError(f"the last argument of {name} is complex, and what it belongs to is real", hint=HINT)
    return derive.derived(name, promoted(args, flags, wanted)), flags[1] if name == "Grad" else flags[0]


def reduced(name: str, flags: Sequence[bool]) -> bool:
    """Whether a reduction of F, and of G, of which some are complex, is.

    Raises
    ------
    OptionError
        It has no meaning for them.
    """
    found = "".join(letter for letter, flag in zip("FG", flags, strict=False) if flag)
    if found and REDUCTIONS.get(name) != found:
        of = [key for key, formula in REDUCTIONS.items() if formula == found]
        only = f"{' and '.join(of)} are" if of else "none is"
        raise OptionError(f"{name} of complex numbers ({' and '.join(found)}): {only} offered; {HINT}")
    return bool(found)


def promoted(args: Sequence[Node], flags: Sequence[bool], wanted: Sequence[bool]) -> list[Node]:
    """Real arguments as complex ones, where those are wanted."""
    given = zip(args, flags, wanted, strict=True)
    return [expand("Real2Complex", (a,)) if want and not flag else a for a, flag, want in given]


def power(base: Node, of_complex: bool, exponent: Node, to_complex: bool) -> Node:
    """`base ** exponent`, as complex as the base.

    Raises
    ------
    ArgumentError
        A complex exponent, or one of a complex base that is no integer.
    """
    if not of_complex and not to_complex:
        return real_power(base, exponent)
    value = None if to_complex else exact(exponent)
    if value is None or value.denominator != 1 or not of_complex:
        takes = "complex exponents are not offered" if to_complex else "complex numbers have integers for exponents"
        raise ArgumentError(f"a ** b: {takes}", hint="for a positive number a, a ** z is (z * log(a)).exp()")
    return _power(base, int(value))


def _power(z: Node, n: int) -> Node:
    """A complex number to the power of an integer, by squares."""
    make("Pow", (z,), (n,))  # within the limit of exponents
    total, square = None, z
    for bit in reversed(bin(abs(n))[2:]):
        if bit == "1":
            total = square if total is None else expand("ComplexMult", (total, square))
        square = expand("ComplexMult", (square, square))
    one = expand("Real2Complex", (const(1),))
    if total is None:
        return expand("ComplexPair", (build("SumT", (const(1),), (z.dim // 2,)), const(0)))
    return total if n > 0 else expand("ComplexDivide", (one, total))
