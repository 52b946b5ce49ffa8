"""Powers of two that sums are made of: values, cuts at both ends, and the same bytes by AVX-512 as by other code."""

import numpy as np
import pytest

from dred.kernel import machine
from dred.kernel.primitives import PRIMITIVES, RANGES, SHIFT
from tests.kernel.function_cases import LONG, SCALED, build, patterns, special_numbers, text

DTYPES = ["float32", "float64"]
STRIDE = 4099  # a prime
# by name: the arguments that there may be
DOMAINS = {
    "exp2s": lambda a: a == a,
    "exp2s_fall": lambda a: a <= 0,
    "exp2s_rise": lambda a: a >= 0,
    "exp2s_stay": lambda a: a == a,
}
HOST = machine.host()
CUTS = dict(RANGES)
SCALING = [who for who in {HOST, *machine.runnable().values()} if who.scaling]


def function(name, dtype, scaling, who=HOST):
    return build(text(name, dtype, 64 // np.dtype(dtype).itemsize, scaling), *who[:2])


def numbers(dtype, size=400_000):
    """Over the range of exponents, closely at its ends; special ones."""
    rng, (low, high), shift = np.random.default_rng(5), RANGES[dtype], SHIFT[dtype]
    ends = [rng.uniform(end - 3, end + 3, size // 8) for end in (low, high, low - shift, 0.0, 50.0)]
    halves = np.arange(2 * (low - shift) - 8, 2 * high + 8) / 2
    ways = (np.full(len(halves), way, dtype) for way in (-np.inf, np.inf))
    near = np.concatenate([np.nextafter(halves.astype(dtype), way) for way in ways])
    parts = [rng.uniform(low - shift - 9, high + 9, size), *ends, halves, near, special_numbers(dtype)]
    return np.concatenate([np.asarray(part, dtype) for part in parts])


def every(dtype):
    """Arguments, piece by piece."""
    yield numbers(dtype)
    if dtype == "float32":
        yield from patterns(STRIDE)


def test_all_of_them_are_tested():
    assert sorted(DOMAINS) == sorted(SCALED)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", DOMAINS)
def test_within_two_units_in_the_last_place(name, dtype):
    """And another error of 2^low: what is rounded to 0 without the shift."""
    powers, (low, high), shift = function(name, dtype, scaling=False), CUTS[dtype], SHIFT[dtype]
    for piece in every(dtype):
        a = piece[DOMAINS[name](piece)]
        if not len(a):
            continue
        got = powers(a)
        with np.errstate(all="ignore"):
            want = np.exp2(a.astype(LONG) + shift)
            fine = np.abs(got - want) <= 2 * np.finfo(dtype).eps * want + LONG(2.0) ** (low + shift)
        assert np.all(fine | (a >= high) & (got == np.inf))
        assert np.all(got[a <= low] == 0) or name == "exp2s_stay"
        assert np.all((got == 0) | (got >= np.finfo(dtype).smallest_normal))
        assert np.all(got[a == 0] == 2.0**shift)
        assert np.all(got[a >= high] == np.inf)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", DOMAINS)
def test_no_number_stays_none(name, dtype):
    """Whatever its last bits are."""
    kind = np.uint32 if dtype == "float32" else np.uint64
    bits = np.array([np.nan], dtype).view(kind) | np.arange(16, dtype=kind) * kind(37)
    assert np.isnan(function(name, dtype, scaling=False)(bits.view(dtype))).all()


def test_a_power_that_need_not_vanish_is_no_denormal_number():
    for dtype in DTYPES:
        a = np.array([-np.inf, -1e30, -2000, -1200, -180, -175, -174, -150] * 2, dtype)
        for scaling in (False, *(True for _ in SCALING)):
            assert (function("exp2s_stay", dtype, scaling)(a) >= np.finfo(dtype).smallest_normal).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", DOMAINS)
def test_code_for_avx512_gives_the_same_bytes(name, dtype):
    """Where this machine has it; everywhere it is compiled, and is that code."""
    who = machine.NAMED["x86_64"]["avx512"].machine._replace(triple="x86_64-unknown-linux-gnu")
    assert "vscalefp" in compiled_for(text(name, dtype, 64 // np.dtype(dtype).itemsize, True), who)
    for here in SCALING:
        plain, native = (function(name, dtype, scaling, here) for scaling in (False, True))
        for piece in every(dtype):
            a = piece[DOMAINS[name](piece) | np.isnan(piece)]
            if not len(a):
                continue
            one, other = plain(a), native(a)
            np.testing.assert_array_equal(np.isnan(one), np.isnan(other))
            real = ~np.isnan(one)
            assert one[real].tobytes() == other[real].tobytes()


def compiled_for(source, who):
    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    return machine.emit(source, who, 2, assembly=True)


def test_a_wrong_cut_is_noticed(monkeypatch):
    monkeypatch.setitem(RANGES, "float32", RANGES["float32"]._replace(low=-140.0))
    with pytest.raises(AssertionError):
        test_within_two_units_in_the_last_place("exp2s", "float32")


def test_numpy_knows_them():
    for name, domain in DOMAINS.items():
        for dtype in DTYPES:
            a = numbers(dtype, 1000)
            a = a[domain(a) & (a > -np.inf)]
            with np.errstate(all="ignore"):
                got, want = PRIMITIVES[name].numpy(a), np.exp2(a.astype(LONG) + SHIFT[dtype])
                least = LONG(2.0) ** (RANGES[dtype].low + SHIFT[dtype])
                fine = (
                    np.abs(got - want) <= np.finfo(dtype).eps * (2 + np.abs(a) + SHIFT[dtype]) * want + least
                )  # the sum is rounded
            assert np.all(fine | (got == np.inf) & (a > RANGES[dtype].high - 1e-3))
