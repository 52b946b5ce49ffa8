"""Elementary functions of the CPU backend: all float32 numbers, and 10 million float64 numbers or pairs of numbers."""

import numpy as np
import pytest

from tests.kernel import function_cases
from tests.kernel.function_cases import CASES, LONG

UNARY = [name for name in CASES if CASES[name].arity == 1]
BINARY = [name for name in CASES if CASES[name].arity == 2]
SIZE = 50_000  # of a piece
POINTS = 10_000_000


def largest(name, dtype, pieces, record_property):
    """Records the largest error and its place; it must be within the bound."""
    error, where = max((function_cases.worst(name, dtype, *arrays) for arrays in pieces), key=lambda found: found[0])
    record_property("worst_ulp", error)
    record_property("where", where)
    assert error <= CASES[name].bound, where


def random_pieces(name, dtype, points):
    rng = np.random.default_rng(len(name))
    for _ in range(0, points, SIZE):
        yield [function_cases.random_numbers(rng, dtype, SIZE) for _ in range(CASES[name].arity)]


@pytest.mark.soak
@pytest.mark.parametrize("name", UNARY)
def test_all_float32(name, record_property):
    largest(name, "float32", ([array] for array in function_cases.patterns(1)), record_property)


@pytest.mark.soak
@pytest.mark.parametrize("name", BINARY)
def test_random_pairs_of_float32(name, record_property):
    record_property("points", POINTS)
    largest(name, "float32", random_pieces(name, "float32", POINTS), record_property)


@pytest.mark.soak
@pytest.mark.skipif(np.finfo(LONG).nmant < 60, reason="needs numbers that are longer than float64")
@pytest.mark.parametrize("name", CASES)
def test_random_float64(name, record_property):
    record_property("points", POINTS)
    largest(name, "float64", random_pieces(name, "float64", POINTS), record_property)
