"""A covering array: each operation, reduction, axis, type and architecture with each other one, in a kernel at least.

A kernel has eight operations at once, in as many components. Every one of them is run by the shim, held against the
oracle in float64, and compiled by NVRTC; a fortieth of them is in the fast tier. Beside them every reduction under six
formulas. The soak tier has the full product, of single operations.
"""

from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
import pytest

from dred.errors import BackendError
from dred.formula.ops import OPS
from dred.kernel.output import Output, empty
from dred.reductions import REDUCTIONS
from tests.covering import all_pairs, covering, pairs_of
from tests.kernel.covering_cases import (
    ARCHITECTURES,
    DTYPES,
    FORMS,
    GROUPS,
    OPERATIONS,
    SIX,
    Case,
    assert_right,
    operations,
)
from tests.kernel.test_cuda_source import check_use, needs_compiler, needs_nvrtc
from tests.shim import shim

TOGETHER = 26  # kernels of one library
ALL = [*OPERATIONS, *FORMS]
FAST = ALL[3::40]
SLOW = [case for case in ALL if case not in FAST]
PARTS = [SLOW[n : n + TOGETHER] for n in range(0, len(SLOW), TOGETHER)]


def check_shim(cases):
    """Against the oracle at sizes around the edges of tiles, whatever the splits; in both orders of threads."""
    sources = [shim.renamed(case.source, f"k{n}") for n, case in enumerate(cases)]
    library = shim.compile_sources(sources, ["-O0"])
    for case, source in zip(cases, sources, strict=True):
        spec = case.spec
        for M, N in ((0, 3), (3, 0)):
            state = shim.run(library, source, spec.arrays(case.arrays(M, N)), M, N)
            assert [a.tobytes() for a in state] == [a.tobytes() for a in empty(spec, M)], case
        for M, N, splits in sizes(source):
            given, states = case.arrays(M, N), []
            for reverse in (False, True):
                with shim.fibers(reverse):
                    states.append(shim.run(library, source, spec.arrays(given), M, N, splits=splits))
            assert [a.tobytes() for a in states[0]] == [a.tobytes() for a in states[1]], case
            results = [o.read(spec, states[0]) for o in Output.of(case.reduction, 0, case.parameter)]
            try:
                assert_right(case, results, given, M, N)
            except AssertionError as error:
                raise AssertionError(f"{case}: M = {M}, N = {N}, {splits} splits") from error


def sizes(source):
    """Rows, columns and splits: one of each, then one more and one fewer than a tile."""
    rows, columns = source.tile_rows, source.tile_columns
    return [(1, 1, 1), (2, columns - 1 or 2, 1), (3, columns + 1, 2), (2, 2 * columns + 1, 2), (rows + 1, 3, 1),
            (rows - 1, 2, 1)]  # fmt: skip


def check_nvrtc(cases):
    """Within two blocks' registers in float32, without spills."""
    with ThreadPoolExecutor(2) as pool:  # NVRTC runs without Python's lock
        found = [f"{case}: {error}" for case, error in zip(cases, pool.map(uses, cases), strict=True) if error]
    assert not found, "\n".join(found)


def uses(case):
    try:
        check_use(case.source, case.architecture)
    except (AssertionError, BackendError) as error:
        return error
    return None


# -- the array -----------------------------------------------------------------------------------------------------

FACTORS = {
    "operation": list(OPS),
    "reduction": list(REDUCTIONS),
    "axis": (0, 1),
    "dtype": DTYPES,
    "architecture": ARCHITECTURES,
}


def met(cases):
    """The pairs of levels that meet in kernels of groups of operations."""
    return set().union(*(pairs_of((name, *case[1:])) for case in cases for name in operations(int(case.formula))))


def test_every_pair_meets_in_a_kernel():
    assert len(OPERATIONS) <= 400
    assert met(OPERATIONS) == all_pairs(FACTORS)
    assert sorted(name for group in range(GROUPS) for name in operations(group)) == sorted(OPS)
    assert set().union(*map(pairs_of, FORMS)) == all_pairs({"formula": list(SIX), **dict([*FACTORS.items()][1:])})


@pytest.mark.parametrize("n", [0, 100, len(OPERATIONS) - 1])
def test_no_kernel_can_be_left_out(n):
    assert met(OPERATIONS[:n] + OPERATIONS[n + 1 :]) != all_pairs(FACTORS)


@pytest.mark.parametrize("levels", [(2, 2, 2), (1, 1), (3, 4, 2, 7), (5, 3, 2, 2, 3, 4)])
def test_covering_arrays(levels):
    factors = {str(k): range(n) for k, n in enumerate(levels)}
    rows = covering(factors)
    assert set().union(*map(pairs_of, rows)) == all_pairs(factors)
    assert rows == covering(factors)
    least = np.prod(sorted(levels)[-2:])
    assert least <= len(rows) <= 1.5 * least


def test_the_tiers_hold_the_array():
    assert len(FAST) == len(ALL) // 40
    assert sorted([*FAST, *(case for part in PARTS for case in part)]) == sorted(ALL)
    assert {case.dtype for case in FAST} == set(DTYPES)
    assert {case.axis for case in FAST} == {0, 1}


# -- run and compiled ----------------------------------------------------------------------------------------------


@needs_compiler
def test_some_in_the_shim():
    check_shim(FAST)


@needs_nvrtc
def test_some_by_nvrtc():
    check_nvrtc(FAST[::4])


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("part", range(len(PARTS)))
def test_all_in_the_shim(part):
    check_shim(PARTS[part])


@needs_nvrtc
@pytest.mark.slow
@pytest.mark.parametrize("part", range(len(PARTS) + 1))
def test_all_by_nvrtc(part):
    check_nvrtc([*PARTS, FAST][part])


@needs_compiler
@pytest.mark.soak
@pytest.mark.parametrize("name", OPS)
def test_the_full_product_in_the_shim(name, record_property):
    rows = [Case(name, *row, "") for row in product(REDUCTIONS, (0, 1), DTYPES)]
    record_property("kernels", len(rows))
    check_shim(rows)


@needs_nvrtc
@pytest.mark.soak
@pytest.mark.parametrize("name", OPS)
def test_the_full_product_by_nvrtc(name, record_property):
    rows = [Case(name, *row) for row in product(REDUCTIONS, (0, 1), DTYPES, ARCHITECTURES)]
    record_property("kernels", len(rows))
    check_nvrtc(rows)


# -- the comparison can fail ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_other_results_are_found(reduction):
    """Those of other data, or the opposite."""
    case, M, N = Case("0", reduction, 1, "float64", ""), 40, 9
    given = case.arrays(M, N)
    right = case.wanted(*case.values(given, M, N))
    assert_right(case, right, given, M, N)
    for x in (given[0][::-1], given[0] / 2):
        other = case.wanted(*case.values([x, given[1]], M, N))
        with pytest.raises(AssertionError):
            assert_right(case, [~a if a.dtype == bool else b for a, b in zip(right, other, strict=True)], given, M, N)
