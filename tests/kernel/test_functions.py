"""Elementary functions of the CPU backend: accuracy over the whole range, special values, same bits in every lane."""

import math

import numpy as np
import pytest

from dred.kernel import coefficients, llvm_math
from dred.kernel.llvm_lanes import Lanes
from tests.kernel import function_cases
from tests.kernel.function_cases import CASES, LONG, build, compiled, points, special_numbers, text, worst

DTYPES = ["float32", "float64"]
STRIDE = 4099  # a prime
inf, nan, pi = math.inf, math.nan, math.pi

# Values that are exact, or as C99 (annex F) has them: arguments, result.
SPECIAL = {
    "exp": [(0, 1), (-0.0, 1), (inf, inf), (-inf, 0), (nan, nan), (1e4, inf), (-1e4, 0)],
    "exp2": [(0, 1), (-0.0, 1), (inf, inf), (-inf, 0), (nan, nan), (1e4, inf), (-1e4, 0)]
    + [(k, 2.0**k) for k in range(-140, 128)],
    "expm1": [(0, 0), (-0.0, -0.0), (inf, inf), (-inf, -1), (nan, nan), (1e4, inf), (-1e4, -1)],
    "log": [(1, 0), (0, -inf), (-0.0, -inf), (inf, inf), (-inf, nan), (-1e-40, nan), (-1, nan), (nan, nan)],
    "log1p": [(0, 0), (-0.0, -0.0), (-1, -inf), (inf, inf), (-inf, nan), (-1.5, nan), (nan, nan)],
    "sin": [(0, 0), (-0.0, -0.0), (inf, nan), (-inf, nan), (nan, nan)],
    "cos": [(0, 1), (-0.0, 1), (inf, nan), (-inf, nan), (nan, nan), (1e-30, 1)],
    "tan": [(0, 0), (-0.0, -0.0), (inf, nan), (-inf, nan), (nan, nan)],
    "asin": [(0, 0), (-0.0, -0.0), (1, pi / 2), (-1, -pi / 2), (1.001, nan), (-inf, nan), (inf, nan), (nan, nan)],
    "acos": [(1, 0), (0, pi / 2), (-1, pi), (-1.001, nan), (inf, nan), (-inf, nan), (nan, nan)],
    "atan": [(0, 0), (-0.0, -0.0), (inf, pi / 2), (-inf, -pi / 2), (1, pi / 4), (-1, -pi / 4), (nan, nan)],
    "sinh": [(0, 0), (-0.0, -0.0), (inf, inf), (-inf, -inf), (nan, nan), (1e4, inf), (-1e4, -inf)],
    "cosh": [(0, 1), (-0.0, 1), (inf, inf), (-inf, inf), (nan, nan), (1e4, inf), (-1e4, inf)],
    "tanh": [(0, 0), (-0.0, -0.0), (inf, 1), (-inf, -1), (nan, nan), (30, 1), (-30, -1)],
    "erf": [(0, 0), (-0.0, -0.0), (inf, 1), (-inf, -1), (nan, nan), (30, 1), (-30, -1)],
    "hypot": [
        *[(3, 4, 5), (-5, 12, 13), (0, 0, 0), (-0.0, -0.0, 0), (0, -7, 7), (1e30, 0, 1e30), (3e-40, 0, 3e-40)],
        *[(inf, nan, inf), (nan, -inf, inf), (inf, 1, inf), (-inf, inf, inf), (nan, 1, nan), (0, nan, nan)],
    ],
    "atan2": [
        *[(0, 1, 0), (-0.0, 1, -0.0), (0, 0, 0), (-0.0, 0, -0.0), (0, -0.0, pi), (-0.0, -0.0, -pi), (0, -1, pi)],
        *[(-0.0, -1, -pi), (1, 0, pi / 2), (1, -0.0, pi / 2), (-1, 0, -pi / 2), (-1, -0.0, -pi / 2)],
        *[(1, 1, pi / 4), (1, -1, 3 * pi / 4), (-1, -1, -3 * pi / 4), (-1, 1, -pi / 4), (1, inf, 0), (-1, inf, -0.0)],
        *[(1, -inf, pi), (-1, -inf, -pi), (inf, 1, pi / 2), (-inf, -1, -pi / 2), (inf, inf, pi / 4)],
        *[(inf, -inf, 3 * pi / 4), (-inf, inf, -pi / 4), (-inf, -inf, -3 * pi / 4)],
        *[(nan, 1, nan), (1, nan, nan), (nan, inf, nan), (inf, nan, nan), (nan, 0, nan), (0, nan, nan)],
    ],
    "pow": [
        *[(x, y, 1) for x in (0, -0.0, 1, -1, 2.5, -inf, inf, nan) for y in (0, -0.0)],
        *[(1, y, 1) for y in (1, -1, 0.5, inf, -inf, nan)],
        *[(x, 1, x) for x in (0, -0.0, 1e-40, -1e-40, 0.1, -7.3, 3e38, inf, -inf, nan)],
        *[(-1, inf, 1), (-1, -inf, 1), (-2, 3, -8), (-2, 2, 4), (-2, -3, -0.125), (2, 10, 1024), (-2, 0.5, nan)],
        *[(0, 3, 0), (-0.0, 3, -0.0), (0, -3, inf), (-0.0, -3, -inf), (-0.0, 2, 0), (-0.0, -2, inf), (-0.0, 0.5, 0)],
        *[(-0.0, -0.5, inf), (0, inf, 0), (0, -inf, inf), (0.5, inf, 0), (0.5, -inf, inf), (2, inf, inf)],
        *[(2, -inf, 0), (-0.5, inf, 0), (-2, inf, inf), (-2, -inf, 0), (inf, 0.5, inf), (inf, -2, 0), (-inf, 3, -inf)],
        *[(-inf, 2, inf), (-inf, -3, -0.0), (-inf, -2, 0), (-inf, 0.5, inf), (-inf, -0.5, 0), (inf, 1e-40, inf)],
        *[(nan, 2, nan), (2, nan, nan), (-1, nan, nan), (0, nan, nan), (nan, nan, nan), (-1, 1e30, 1), (0, 1e-40, 0)],
        *[(-1, 8388607, -1), (-1, 16777215, -1), (-1, 16777216, 1), (2, -149, 2.0**-149), (2, 1e30, inf)],
    ],
}  # fmt: skip


def test_every_function_has_special_values():
    assert sorted(SPECIAL) == sorted(CASES)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_special_values(name, dtype):
    table = np.array(SPECIAL[name]).astype(dtype)
    *given, want = (np.ascontiguousarray(column) for column in table.T)
    for width in (1, 8, 16):
        got = compiled(name, dtype, width)(*given)
        right = (got == want) & (np.signbit(got) == np.signbit(want)) | (np.isnan(got) & np.isnan(want))
        wrong = [(*map(float, row), float(g)) for row, g, r in zip(table, got, right, strict=True) if not r]
        assert wrong == [], f"{width} lanes"


@pytest.mark.parametrize("name", [n for n in CASES if CASES[n].arity == 1])
def test_float32_within_the_bound(name):
    """Numbers of the whole range, evenly spread over patterns."""
    for array in [special_numbers("float32"), *function_cases.patterns(STRIDE)]:
        error, where = worst(name, "float32", array)
        assert error <= CASES[name].bound, where


@pytest.mark.parametrize("name", [n for n in CASES if CASES[n].arity == 2])
def test_float32_of_two_arguments_within_the_bound(name):
    error, where = worst(name, "float32", *points(name, "float32", np.random.default_rng(1), 200_000))
    assert error <= CASES[name].bound, where


@pytest.mark.skipif(np.finfo(LONG).nmant < 60, reason="needs numbers that are longer than float64")
@pytest.mark.parametrize("name", CASES)
def test_float64_within_the_bound(name):
    size = 20_000 if name == "erf" else 100_000  # its reference takes long
    error, where = worst(name, "float64", *points(name, "float64", np.random.default_rng(2), size))
    assert error <= CASES[name].bound, where


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_a_lane_depends_on_its_argument_alone(name, dtype):
    """As many lanes as one likes, and beside whatever neighbours: the same bytes."""
    rng = np.random.default_rng(3)
    arrays = [a[rng.permutation(len(a))[:4000]] for a in points(name, dtype, rng, 3000)]
    got = compiled(name, dtype)(*arrays)
    for width in (1, 8):
        assert compiled(name, dtype, width)(*arrays).tobytes() == got.tobytes()
    order = rng.permutation(len(got))
    assert compiled(name, dtype)(*(a[order] for a in arrays)).tobytes() == got[order].tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_other_instruction_sets_give_the_same_bits(name, dtype):
    """Without fused multiply-add and rounding in hardware, where LLVM calls the C library's, which are exact."""
    arrays = [a[-2000:] for a in points(name, dtype, np.random.default_rng(4), 2000)]
    there = build(text(name, dtype, 16), cpu="generic", features="")
    assert there(*arrays).tobytes() == compiled(name, dtype)(*arrays).tobytes()


@pytest.mark.skipif(np.finfo(LONG).nmant < 60, reason="needs numbers that are longer than float64")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["sin", "cos", "tan"])
def test_next_to_multiples_of_a_quarter_turn(name, dtype):
    """Where almost all digits cancel: also those nearest of all, from W. Kahan's search, and the largest number."""
    last = 50_000 if dtype == "float32" else 700_000  # beyond both bounds of moderate arguments
    half_pi = 2 * np.arctan(LONG(1))
    array = np.concatenate([np.arange(1, last) * half_pi, 2.0 ** np.arange(20, 128) * half_pi]).astype(dtype)
    if dtype == "float64":
        array = np.append(array, [6381956970095103 * 2.0**797, 5319372648326541 * 2.0**-42, np.finfo(dtype).max])
    else:
        array = np.append(array, np.array([16367173 * 2.0**72, np.finfo(dtype).max], dtype))
    error, where = worst(name, dtype, array)
    assert error <= CASES[name].bound, where


def test_one_program_with_both_types():
    """Whatever both need is declared once."""
    lanes = [Lanes("float32", 16), Lanes("float64", 16), Lanes("float32"), Lanes("float32", 16)]
    program = text("tan", "float32", 16).partition("define void")[2]
    calls = "".join(
        f"define {k.type} @g{n}({k.type} %x) {{ %y = call {k.type} @sin.{k.suffix}({k.type} %x) ret {k.type} %y }}\n"
        for n, k in enumerate(lanes[:3])
    )
    source = llvm_math.declared(f"define void{program}{calls}", lanes)
    build(source)


@pytest.mark.parametrize("dtype", DTYPES)
def test_squares(dtype):
    x = np.random.default_rng(5).uniform(-100, 100, 10_000).astype(dtype)
    error = function_cases.ulps(compiled("pow", dtype)(x, np.full_like(x, 2)), x.astype(LONG) ** 2)
    assert error.max() <= (0.51 if dtype == "float32" else 1)


@pytest.mark.parametrize(("name", "series"), [("sin", "SIN"), ("log", "LOG"), ("tanh", "TANH"), ("atan", "ATAN")])
def test_a_wrong_coefficient_is_noticed(name, series, monkeypatch):
    first, *others = getattr(coefficients, series)["float32"]
    monkeypatch.setitem(getattr(coefficients, series), "float32", (first * (1 + 1e-4), *others))
    monkeypatch.setattr(function_cases, "_built", {})
    assert max(worst(name, "float32", array)[0] for array in function_cases.patterns(STRIDE)) > CASES[name].bound
