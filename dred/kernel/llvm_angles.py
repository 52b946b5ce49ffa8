"""Trigonometric functions, their inverses and the length of a vector as recipes in LLVM IR."""

from __future__ import annotations

import math

from dred.kernel import coefficients as table
from dred.kernel.llvm_lanes import Code, Lanes, Value

_QUARTER = {
    "float32": (1.5707963705062866, -4.371138828673793e-08, -1.7151245100058819e-15),
    "float64": (1.5707963267948966, 6.123233995736766e-17, -1.4973849048591698e-33),
}
"""pi / 2 as a sum of three numbers of the type (Cody & Waite); pi and pi / 4 are the double and the half of them."""

_MODERATE = {"float32": 2.0**16, "float64": 2.0**20}
"""Up to here the three parts suffice: |x - n pi/2| <= pi/4, and its error is of the last place."""

_TWO_OVER_PI = int(
    "a2f9836e4e441529fc2757d1f534ddc0db6295993c439041fe5163abdebbc561b7246e3a424dd2e006492eea09d1921cfe1deb1cb129a73e"
    "e88235f52ebb4484e99c7026b45f7e413991d639835339f49c845f8bbdf9283b1ff897ffde05980fef2f118b5a0a6d1f6d367ecf27cb09b7"
    "4f463f669e5fea2d7527bac7ebe5f17b3d0739f78a5292ea6bfb5fb11f8d5d0856033046fc7b6babf0cfbc209af4361d",
    16,
)
"""floor(2^1280 2/pi)."""


def _reduced(c: Code, x: Value) -> tuple[Value, Value, Value]:
    """x = n pi/2 + r + left with |r| <= pi/4, and n modulo 4 in the lowest bits of an integer.

    Cody & Waite (1980): n times the first part is exact by fma and so is the difference; of the second difference,
    where all digits may cancel, what is rounded away is kept (D. E. Knuth's sum of two).
    """
    one, two, three = _QUARTER[c.lanes.dtype]
    n, k = c.rounded(x, 2 / math.pi)
    first = c.fma(n, -one, x)
    product = n * two
    lost = c.fma(n, two, -product)
    second = first - product
    back = second - first
    rounded = (first - (second - back)) - (product + back)
    left = rounded - c.fma(n, three, lost)
    r = second + left
    return _moderate(c, x, (r, (second - r) + left, k))


def _roughly_reduced(c: Code, x: Value) -> tuple[Value, Value]:
    """The same without `left`: r is within one unit of its last place."""
    n, k = c.rounded(x, 2 / math.pi)
    r = x
    for part in _QUARTER[c.lanes.dtype]:
        r = c.fma(n, -part, r)
    r, _, k = _moderate(c, x, (r, r, k))
    return r, k


def _moderate(c: Code, x: Value, usual: tuple[Value, Value, Value]) -> tuple[Value, Value, Value]:
    """What @angle gives in the lanes of huge arguments, and the usual values in others."""
    r, left, k = c.rarely(c.abs(x) > _MODERATE[c.lanes.dtype], "angle", x, usual)
    return r, left, k


DECLARATIONS = "declare i192 @llvm.ctlz.i192(i192, i1)\ndeclare i64 @llvm.fshr.i64(i64, i64, i64)\n"
"""What @angle needs, whatever the type."""


def angle(lanes: Lanes) -> str:
    """The definition of @angle, which puts right what `_moderate` is given where arguments are huge.

    The method of M. Payne and R. Hanek (1983): of 2/pi only those 192 bits matter that give x 2/pi modulo 4; those
    before them give multiples of 4, those behind them nothing that is seen (no number of float64 is nearer to a
    multiple of pi/2 than 2^-62). Numbers of float32 are numbers of float64.
    """
    one, integer = lanes.scalar, f"i{8 * lanes.itemsize}"
    single, suffix = lanes.dtype == "float32", Lanes(lanes.dtype).suffix
    half_pi, rest, _ = (Lanes("float64").literal(part) for part in _QUARTER["float64"])
    if single:
        argument = "fpext float %x to double"
        results = [
            "%r = fptrunc double %high to float",
            "%rounded = fpext float %r to double",
            "%difference = fsub double %high, %rounded",
            "%left = fptrunc double %difference to float",
            "%k = trunc i64 %turns to i32",
        ]
    else:
        argument = "bitcast double %x to double"
        results = [
            "%r = bitcast double %high to double",
            "%left = bitcast double %low to double",
            "%k = bitcast i64 %turns to i64",
        ]
    window = []
    for n in range(4):  # words of the window and what is shifted into them
        window += [
            f"%word{n} = add i64 %word, {n}",
            f"%at{n} = getelementptr i64, ptr @angle.digits.{suffix}, i64 %word{n}",
            f"%digits{n} = load i64, ptr %at{n}",
        ]
    for n in range(3):
        window += [
            f"%part{n} = call i64 @llvm.fshr.i64(i64 %digits{n + 1}, i64 %digits{n}, i64 %by)",
            f"%wide{n} = zext i64 %part{n} to i192",
        ]
    window += [
        "%moved1 = shl i192 %wide1, 64",
        "%moved2 = shl i192 %wide2, 128",
        "%pair = or i192 %wide0, %moved1",
        "%window = or i192 %pair, %moved2",
    ]
    reduce = [
        f"%d = {argument}",
        "%b = bitcast double %d to i64",
        "%shifted = lshr i64 %b, 52",
        "%e = and i64 %shifted, 2047",
        f"%fraction = and i64 %b, {2**52 - 1}",
        f"%m = or i64 %fraction, {2**52}",
        # |x| = m 2^(e - 1075); window = floor(2/pi 2^(e - 1075 + 190)) modulo 2^192
        f"%places = sub i64 {1280 + 1075 - 190}, %e",
        "%word = lshr i64 %places, 6",
        "%by = and i64 %places, 63",
        *window,
        "%factor = zext i64 %m to i192",
        "%y = mul i192 %window, %factor",  # |x| 2/pi modulo 4, in units of 2^-190
        f"%near = add i192 %y, {2**189}",
        "%whole = lshr i192 %near, 190",
        "%n = trunc i192 %whole to i64",
        "%f = shl i192 %y, 2",  # what is left of the nearest integer, signed, in units of 2^-192
        "%under = icmp slt i192 %f, 0",
        "%minus = sub i192 0, %f",
        "%size = select i1 %under, i192 %minus, i192 %f",
        "%zeros = call i192 @llvm.ctlz.i192(i192 %size, i1 false)",
        "%digits = shl i192 %size, %zeros",
        "%top = lshr i192 %digits, 139",
        "%upper = trunc i192 %top to i64",
        "%next = lshr i192 %digits, 86",
        "%under53 = trunc i192 %next to i64",
        f"%lower = and i64 %under53, {2**53 - 1}",
        "%a = uitofp i64 %upper to double",
        "%a53 = uitofp i64 %lower to double",
        f"%a1 = fmul double %a53, {Lanes('float64').literal(2.0**-53)}",
        # (a + a1) pi/2 as a sum of two numbers
        f"%p = fmul double %a, {half_pi}",
        "%pm = fneg double %p",
        f"%p1 = call double @llvm.fma.f64(double %a, double {half_pi}, double %pm)",
        f"%p2 = call double @llvm.fma.f64(double %a, double {rest}, double %p1)",
        f"%p3 = call double @llvm.fma.f64(double %a1, double {half_pi}, double %p2)",
        "%s = fadd double %p, %p3",
        "%back = fsub double %p, %s",
        "%s1 = fadd double %back, %p3",
        # times 2^(-53 - zeros), with the sign of the angle that is left
        "%zeros64 = trunc i192 %zeros to i64",
        f"%exponent = sub i64 {1023 - 53}, %zeros64",
        "%field = shl i64 %exponent, 52",
        f"%sign = and i64 %b, {-(2**63)}",
        f"%flip = select i1 %under, i64 {-(2**63)}, i64 0",
        "%signs = xor i64 %sign, %flip",
        "%pattern = or i64 %field, %signs",
        "%scale = bitcast i64 %pattern to double",
        "%none = fsub double %d, %d",  # NaN for infinity and NaN, else 0
        "%scaled = fmul double %s, %scale",
        "%high = fadd double %scaled, %none",
        "%low = fmul double %s1, %scale",
        "%negative = icmp slt i64 %b, 0",
        "%backward = sub i64 0, %n",
        "%turns = select i1 %negative, i64 %backward, i64 %n",
        *results,
    ]
    words = [f"i64 {_TWO_OVER_PI >> 64 * n & 2**64 - 1}" for n in range(21)]
    lines = [
        f"@angle.digits.{suffix} = internal constant [{len(words)} x i64] [{', '.join(words)}]",
        f"define internal void @angle.{suffix}(ptr %xs, ptr %rs, ptr %lefts, ptr %ks, i64 %count) #1 {{",
        "entry:",
        "  br label %head",
        "head:",
        "  %lane = phi i64 [ 0, %entry ], [ %following, %done ]",
        f"  %at = getelementptr {one}, ptr %xs, i64 %lane",
        f"  %x = load {one}, ptr %at",
        f"  %length = call {one} @llvm.fabs.{suffix}({one} %x)",
        f"  %huge = fcmp ogt {one} %length, {Lanes(lanes.dtype).literal(_MODERATE[lanes.dtype])}",
        "  br i1 %huge, label %reduce, label %done",
        "reduce:",
        *(f"  {line}" for line in reduce),
    ]
    for name, kind in (("r", one), ("left", one), ("k", integer)):
        lines += [
            f"  %to.{name} = getelementptr {kind}, ptr %{name}s, i64 %lane",
            f"  store {kind} %{name}, ptr %to.{name}",
        ]
    lines += [
        "  br label %done",
        "done:",
        "  %following = add i64 %lane, 1",
        "  %more = icmp ult i64 %following, %count",
        "  br i1 %more, label %head, label %out",
        "out:",
        "  ret void",
        "}",
        "",
    ]
    return "\n".join(lines)


def _wave(c: Code, x: Value, quarters: int) -> Value:
    """sin(x + quarters pi/2)."""
    r, k = _roughly_reduced(c, x)
    if quarters:
        k = k + quarters
    square = r * r
    sine = c.fma(r * square, c.polynomial(table.SIN[c.lanes.dtype], square), r)
    cosine = c.fma(square * square, c.polynomial(table.COS[c.lanes.dtype], square), c.fma(square, -0.5, 1.0))
    y = (k & 1).equals(0).where(sine, cosine)
    return (y.bits() ^ ((k & 2) << (8 * c.lanes.itemsize - 2))).from_bits()


def sin(c: Code, x: Value) -> Value:
    """A polynomial in |r| <= pi/4, for sine or cosine, with a sign."""
    return x.equals(0.0).where(x, _wave(c, x, 0))  # -0 too


def cos(c: Code, x: Value) -> Value:
    """As `sin`, a quarter turn later."""
    return _wave(c, x, 1)


def tan(c: Code, x: Value) -> Value:
    """A polynomial in |r| <= pi/4, or -1 divided by it; tan(r + left) = tan(r) + left (1 + tan(r)^2)."""
    r, left, k = _reduced(c, x)
    square = r * r
    near = c.fma(r * square, c.polynomial(table.TAN[c.lanes.dtype], square), c.fma(left, square, left))
    y = r + near
    return x.equals(0.0).where(x, (k & 1).equals(0).where(y, -1.0 / y))


# inverse functions ----------------------------------------------------------------------------------------------------


def _arc(c: Code, a: Value) -> tuple[Value, Value, Value]:
    """Whether a > 1/2; then s = sqrt((1 - a) / 2), else s = a; and the polynomial in asin(s) = s + s p."""
    large = a > 0.5
    square = large.where(c.fma(a, -0.5, 0.5), a * a)
    s = large.where(c.sqrt(square), a)
    return large, s, square * c.polynomial(table.ASIN[c.lanes.dtype], square)


def asin(c: Code, x: Value) -> Value:
    """asin(a) = pi/2 - 2 asin(sqrt((1 - a) / 2)) for a > 1/2; NaN is the root of a negative number."""
    half_pi, rest, _ = _QUARTER[c.lanes.dtype]
    large, s, p = _arc(c, c.abs(x))
    double = s + s
    far = half_pi - double
    lost = (half_pi - far) - double  # in that difference
    far = far - (c.fma(double, p, -rest) - lost)
    return c.copysign(large.where(far, c.fma(s, p, s)), x)


def acos(c: Code, x: Value) -> Value:
    """pi/2 - asin(x) near 0, 2 asin(sqrt((1 - x) / 2)) near 1, pi minus that of -x near -1."""
    half_pi, rest, _ = _QUARTER[c.lanes.dtype]
    large, s, p = _arc(c, c.abs(x))
    middle = half_pi - (x - c.fma(-x, p, rest))
    double = s + s
    right, left = c.fma(double, p, double), 2 * half_pi - (double + c.fma(double, p, -2 * rest))
    return large.where((x < 0.0).where(left, right), middle)


def _slope(c: Code, a: Value, b: Value) -> tuple[Value, Value]:
    """The angle of (b, a) in the first quadrant: 0, pi/4 or pi/2, and the rest.

    That is the arc tangent of a / b, (a - b) / (a + b) or -b / a, whichever is at most 1/2.
    """
    half_pi, rest, _ = _QUARTER[c.lanes.dtype]
    middle, steep = a + a > b, a > b + b
    numerator = steep.where(-b, middle.where(a - b, a))  # the difference is exact
    denominator = steep.where(a, middle.where(a + b, b))
    t = numerator / denominator
    base = steep.where(half_pi, middle.where(half_pi / 2, 0.0))
    base_low = steep.where(rest, middle.where(rest / 2, 0.0))
    square = t * t
    return base, t + c.fma(t * square, c.polynomial(table.ATAN[c.lanes.dtype], square), base_low)


def atan(c: Code, x: Value) -> Value:
    """See `_slope`."""
    base, angle = _slope(c, c.abs(x), c.number(1.0))
    return c.copysign(base + angle, x)


def atan2(c: Code, y: Value, x: Value) -> Value:
    """See `_slope`: axes, infinities and zeros as C99 has them (annex F.9.1.4)."""
    half_pi, rest, _ = _QUARTER[c.lanes.dtype]
    a, b = c.abs(y), c.abs(x)
    large = c.max(a, b) > (2.0**125 if c.single else 2.0**1021)
    scale = large.where(0.25, 1.0)  # their sum is finite
    endless = a.equals(math.inf) & b.equals(math.inf)
    a, b = endless.where(1.0, a * scale), endless.where(1.0, b * scale)
    # 0 / 0 has the angle of 0 / 1; that of positive x is 0, of negative ones pi
    b = c.max(a, b).equals(0.0).where(1.0, b)
    base, angle = _slope(c, a, b)
    left = x.bits().less(0)
    return c.copysign(left.where(2 * half_pi - base, base) + left.where(2 * rest - angle, angle), y)


def hypot(c: Code, x: Value, y: Value) -> Value:
    """sqrt(a^2 + b^2), scaled so that squares are normal numbers; infinite beside an infinity, also with NaN."""
    a, b = c.abs(x), c.abs(y)
    top = c.max(a, b)
    huge, small = (2.0**60, 2.0**-40) if c.single else (2.0**500, 2.0**-400)
    down, up = 2.0 ** (-70 if c.single else -600), 2.0 ** (90 if c.single else 700)
    scale = (top > huge).where(down, (top < small).where(up, 1.0))
    back = (top > huge).where(1 / down, (top < small).where(1 / up, 1.0))
    a, b = a * scale, b * scale
    root = c.sqrt(c.fma(a, a, b * b)) * back
    return (a.equals(math.inf) | b.equals(math.inf)).where(math.inf, root)
