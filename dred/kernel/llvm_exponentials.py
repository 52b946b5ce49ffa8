"""Exponentials, logarithms, hyperbolic functions, erf and powers as recipes in LLVM IR."""

from __future__ import annotations

import math

from dred.kernel import coefficients as table
from dred.kernel.llvm_lanes import Code, Lanes, Value
from dred.kernel.primitives import RANGES, SHIFT

_LOG2 = {
    "float32": (0.6931471824645996, -1.9046542121259336e-09),
    "float64": (0.6931471805599453, 2.3190468138462996e-17),
}
"""log(2) as a number of the type and what is left of it: Cody & Waite's two parts, products exact by fma."""

_TINY = {"float32": 2.0**-26, "float64": 2.0**-55}
"""Below, f(x) = x to the last bit where f(x) = x + c x^2 + ..., |c| <= 1/2."""

_NORMAL = {"float32": 2.0**-126, "float64": 2.0**-1022}
"""The smallest number that is not denormal."""


def exp(c: Code, x: Value) -> Value:
    """exp(x) = 2^2n exp(r), x = n log(4) + r: within 2 ulp, exp(0) = 1, right at infinities, NaN, denormal results."""
    log2 = _LOG2[c.lanes.dtype]
    low, high = (-104.0, 89.0) if c.single else (-746.0, 710.0)
    x = c.max(low, c.min(high, x))
    magic = 1.5 * 2**c.mantissa + c.bias  # see `Code.rounded`; here the low bits are n + bias
    t = c.fma(x, 0.5 / math.log(2), magic)
    n = t - magic
    r = c.fma(n, -2 * log2[1], c.fma(n, -2 * log2[0], x))
    square = r * r
    p = c.fma(c.polynomial(table.EXP[c.lanes.dtype], r), square, r + 1.0)
    power = c.power(t.bits())  # twice 2^n, a normal number, where 2^2n may be denormal or infinite: one rounding
    return p * power * power


def exp2(c: Code, x: Value) -> Value:
    """2^x = 2^n 2^r with n the nearest integer: exact at integers."""
    low, high = (-151.0, 129.0) if c.single else (-1077.0, 1025.0)
    x = c.max(low, c.min(high, x))
    n, k = c.rounded(x, 1.0, 2 * c.bias)
    r = x - n
    return _scaled(c, c.fma(r, c.polynomial(table.EXP2[c.lanes.dtype], r), 1.0), k)


def exp2s(c: Code, a: Value, falls: bool = True, rises: bool = True, vanishes: bool = True) -> Value:
    """2^(a + SHIFT) as `RANGES` says; `falls`, `rises`: the exponent may be below 0, or above.

    Of all powers the one for `low` is taken away: that leaves 0 there. What is left elsewhere is never denormal, for
    the shift is large enough; processors may take a hundred times as long for such numbers. With or without AVX-512
    nothing but this difference is rounded. Where a power need not vanish (`vanishes`), it is a small normal number.
    Where exponents are moderate, all this makes no difference, and is left out.
    """
    (low, high), shift = RANGES[c.lanes.dtype], SHIFT[c.lanes.dtype]
    falls, rises = falls and not c.lanes.moderate, rises and not c.lanes.moderate
    least = -(2.0 ** (low + shift))
    if not vanishes:
        low = float(2 - c.bias - shift)
    if falls:
        a = c.max(low, a)
    if c.native:
        n = c.nearest(a)
        power = c.scaled(_power_of_fraction(c, a - n, shift), n)
        return power + least if falls and vanishes else power
    if rises:
        a = c.min(high, a)  # there the power of 2 is the largest one, and twice that is infinite
    magic = 1.5 * 2**c.mantissa + (shift - 1 + c.bias)  # see `Code.rounded`; the low bits are n + shift - 1 + bias
    t = a + magic
    fraction, power = _power_of_fraction(c, a - (t - magic), 1), c.power(t.bits())
    return c.fma(fraction, power, least) if falls and vanishes else fraction * power


def _power_of_fraction(c: Code, r: Value, shift: int) -> Value:
    """2^(r + shift) for |r| <= 1/2: no digit depends on the shift."""
    *others, last = table.EXP2S[c.lanes.dtype]
    p = c.number(last * 2.0**shift)
    for coefficient in others[::-1]:  # one chain: other columns hide its latency
        p = c.fma(p, r, coefficient * 2.0**shift)
    return c.fma(p, r, 2.0**shift)


def _scaled(c: Code, p: Value, k: Value) -> Value:
    """p 2^(k - 2 bias), where the power may be denormal or infinite: in two steps, of which the last one rounds."""
    half = k >> 1
    return p * c.power(half) * c.power(k - half)


def _parts(c: Code, x: Value, offset: int) -> tuple[Value, Value, Value, Value]:
    """x = k log(2) + r with |r| <= log(2) / 2: r, sinh(r) - r, cosh(r) - 1, and k + offset."""
    log2 = _LOG2[c.lanes.dtype]
    n, k = c.rounded(x, 1 / math.log(2), offset)
    first = c.fma(n, -log2[0], x)
    r = c.fma(n, -log2[1], first)
    left = c.fma(n, -log2[1], first - r)
    square = r * r
    sinh = c.fma(r * square, c.polynomial(table.SINH[c.lanes.dtype], square), left)
    return r, sinh, square * c.polynomial(table.COSH[c.lanes.dtype], square), k


def expm1(c: Code, x: Value) -> Value:
    """2^k (sinh(r) + (cosh(r) - 1)) + (2^k - 1); halved on the way, for 2^k may be beyond the largest number."""
    low, high = (-18.0, 89.0) if c.single else (-38.0, 710.0)
    r, sinh, cosh, k = _parts(c, c.max(low, c.min(high, x)), c.bias - 1)
    power = c.power(k)
    y = c.fma(power, sinh + cosh, c.fma(power, r, power - 0.5))
    return (c.abs(x) < _TINY[c.lanes.dtype]).where(x, y + y)


def _hyperbolic(c: Code, a: Value, odd: bool) -> Value:
    """For a >= 0 the sinh (`odd`) or cosh of r + k log(2), without a division.

    e^a and e^-a are 2^k (cosh(r) + sinh(r)) and 2^-k (cosh(r) - sinh(r)). All is scaled by 2^-6 on the way, for 2^k
    may be beyond the largest number.
    """
    r, sinh, cosh, k = _parts(c, c.min(91.0 if c.single else 712.0, a), 0)
    up = c.power(k + (c.bias - 7))
    down = k.less(64).where(c.power(c.integer(c.bias - 7) - k), 0.0)
    even, uneven = (up - down, up + down) if odd else (up + down, up - down)  # factors of cosh(r) and of sinh(r)
    rest = c.fma(uneven, sinh, even * cosh)
    if odd:
        return (c.fma(uneven, r, even) + rest) * 64.0
    return (c.fma(uneven, r, up) + (rest + down)) * 64.0  # `even` may be rounded


def sinh(c: Code, x: Value) -> Value:
    """See `_hyperbolic`."""
    a = c.abs(x)
    return (a < _TINY[c.lanes.dtype]).where(x, c.copysign(_hyperbolic(c, a, odd=True), x))


def cosh(c: Code, x: Value) -> Value:
    """See `_hyperbolic`."""
    return _hyperbolic(c, c.abs(x), odd=False)


def tanh(c: Code, x: Value) -> Value:
    """A polynomial for small arguments, 1 - 2 / (e^2|x| + 1) for others."""
    a = c.abs(x)
    square = a * a
    small = c.fma(a * square, c.polynomial(table.TANH[c.lanes.dtype], square), a)
    b = c.min(10.0 if c.single else 20.0, a)
    r, s, h, k = _parts(c, b + b, c.bias)
    power = c.power(k)
    large = 1.0 - 2.0 / c.fma(power, r + (s + h), power + 1.0)
    return c.copysign((a < 0.55).where(small, large), x)


def erf(c: Code, x: Value) -> Value:
    """A polynomial for |x| < 1; for others 1 - erfc(|x|), whose logarithm is one."""
    a = c.abs(x)
    small = c.fma(a, c.polynomial(table.ERF[c.lanes.dtype], a * a), a)
    b = c.min(4.0 if c.single else 6.0, a)
    r, s, h, k = _parts(c, -(b * c.polynomial(table.ERFC[c.lanes.dtype], b)), c.bias)
    power = c.power(k)
    large = c.fma(-power, r + (s + h), 1.0 - power)
    return c.copysign((a < 1.0).where(small, large), x)


# logarithms and powers ------------------------------------------------------------------------------------------------


def _split(c: Code, x: Value, denormal: bool) -> tuple[Value, Value, Value]:
    """Positive x = 2^e m with sqrt(1/2) <= m < sqrt(2): m, e, and e + bias as an integer.

    The last is right for normal numbers only.
    """
    one, root = c.pattern(1.0), 0x3F3504F3 if c.single else 0x3FE6A09E667F3BCD
    magic = 2.0**c.mantissa  # an integer that is or-ed into its low bits is added to it
    away: Value | float = magic + c.bias
    if denormal:
        places = 32 if c.single else 64
        small = x < _NORMAL[c.lanes.dtype]
        x = small.where(x * 2.0**places, x)
        away = small.where(magic + c.bias + places, magic + c.bias)
    moved = x.bits() + (one - root)
    e = moved >> c.mantissa
    m = ((moved & (2**c.mantissa - 1)) + root).from_bits()
    return m, (e | c.pattern(magic)).from_bits() - away, e


def _log(c: Code, f: Value, e: Value) -> Value:
    """log(1 + f) + e log(2) = f - (f^2/2 - s (f^2/2 + R)) + e log(2) with s = f / (2 + f), as fdlibm has it."""
    log2 = _LOG2[c.lanes.dtype]
    s = f / (f + 2.0)
    square = s * s
    half = f * f * 0.5
    rest = c.fma(square, c.polynomial(table.LOG[c.lanes.dtype], square), half)
    return c.fma(e, log2[0], f - (half - c.fma(s, rest, e * log2[1])))


def _edges(x: Value, y: Value) -> Value:
    """A logarithm y of x, with its values at 0, infinity, NaN and below 0."""
    return (x > 0.0).where((x < math.inf).where(y, x), x.equals(0.0).where(-math.inf, math.nan))


def log(c: Code, x: Value) -> Value:
    """See `_log`."""
    m, e, _ = _split(c, x, denormal=True)
    return _edges(x, _log(c, m - 1.0, e))


def log1p(c: Code, x: Value) -> Value:
    """log(u) for u = 1 + x as rounded, whose error goes into the reduced argument."""
    u = x + 1.0
    back = u - 1.0
    error = (1.0 - (u - back)) + (x - back)
    m, e, exponent = _split(c, u, denormal=False)
    scale = c.power(c.integer(2 * c.bias) - exponent)
    # beyond, the error is none of the result's digits, and 2^-e may be no normal number
    f = (m - 1.0) + (u < 2.0 ** (c.mantissa + 3)).where(error * scale, 0.0)
    return (c.abs(x) < _TINY[c.lanes.dtype]).where(x, _edges(u, _log(c, f, e)))


def pow(c: Code, x: Value, y: Value) -> Value:
    """2^(y log2|x|), and the special cases of C99 (annex F.9.4.4)."""
    a, half = c.abs(x), y * 0.5
    truncated = c.intrinsic("trunc", y)
    odd = truncated.equals(y) & c.intrinsic("trunc", half).differs(half)
    result = _power_single(c, a, y) if c.single else _power_double(c, a, y)
    result = y.equals(1.0).where(a, result)
    result = (x.bits().less(0) & odd).where(-result, result)
    result = ((x < 0.0) & (x > -math.inf) & truncated.differs(y)).where(math.nan, result)
    one = y.equals(0.0) | x.equals(1.0) | (x.equals(-1.0) & c.abs(y).equals(math.inf))
    return one.where(1.0, result)


def _log2_edges(a: Value, y: Value) -> Value:
    """A logarithm y of a >= 0, with its values at 0, infinity and NaN."""
    return a.equals(0.0).where(-math.inf, (a < math.inf).where(y, a))


def _power_single(c: Code, a: Value, y: Value) -> Value:
    """a^y in float64, where neither the error of the logarithm nor denormal results matter."""
    w = Code(c.put, Lanes("float64", c.lanes.width))
    m, e, _ = _split(c, a, denormal=True)
    f, e, y = (
        w.write(f"fpext {v.kind} {v.name} to {w.lanes.type}", w.lanes.type) for v in (m - 1.0, _log2_edges(a, e), y)
    )
    s = f / (f + 2.0)
    square = s * s
    log = s * w.fma(square, w.polynomial(table.LOG_SHORT["float64"], square), 2.0)
    t = w.max(-160.0, w.min(140.0, y * w.fma(log, 1 / math.log(2), e)))
    n, k = w.rounded(t, 1.0, w.bias)
    r = t - n
    p = w.fma(r, w.polynomial(table.EXP2_SHORT["float64"], r), 1.0) * w.power(k)
    return c.write(f"fptrunc {p.kind} {p.name} to {c.lanes.type}", c.lanes.type)


def _power_double(c: Code, a: Value, y: Value) -> Value:
    """a^y with log2(a) as a sum of two numbers, for its error is multiplied by up to 2^10.

    Products and sums of pairs of numbers after T. J. Dekker (1971).
    """
    m, e, _ = _split(c, a, denormal=True)
    f = m - 1.0  # exact
    d = f + 2.0
    d_low = f - (d - 2.0)
    inverse = 1.0 / d
    s = f * inverse
    s_low = inverse * c.fma(-s, d_low, c.fma(-s, d, f))
    z = s * s
    z_low = c.fma(s, s, -z) + (s + s) * s_low
    # log2(m) = s (2 log2(e) + z (2/3 log2(e) + z p(z)))
    first, third = (2.8853900817779268, 4.0710547481862066e-17), (0.9617966939259756, 5.0577616648125907e-17)
    tail = z * c.polynomial(table.LOG2["float64"], z)
    t = tail + third[0]
    t_low = (third[0] - t) + tail + third[1]
    w, w_low = _product(c, z, z_low, t, t_low)
    v = w + first[0]
    v_low = (first[0] - v) + w + (w_low + first[1])
    small, low = _product(c, s, s_low, v, v_low)
    high = e + small  # |e| > |small|, or e = 0
    low = (e - high) + small + low
    high = _log2_edges(a, high)
    t = y * high
    t_low = (c.abs(t) < 1100.0).where(c.fma(y, high, -t) + y * low, 0.0)
    t = c.max(-1100.0, c.min(1100.0, t))
    n, k = c.rounded(t, 1.0, 2 * c.bias)
    r = (t - n) + t_low
    log2 = _LOG2["float64"]  # the first coefficient, here with what is left of it
    slope = c.fma(r, c.polynomial(table.EXP2["float64"][1:], r), log2[1]) + log2[0]
    return _scaled(c, c.fma(r, slope, 1.0), k)


def _product(c: Code, a: Value, a_low: Value, b: Value, b_low: Value) -> tuple[Value, Value]:
    """(a + a_low) (b + b_low) as a sum of two numbers."""
    high = a * b
    return high, c.fma(a, b, -high) + c.fma(a, b_low, a_low * b)
