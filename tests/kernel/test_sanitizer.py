"""CUDA sources under AddressSanitizer: no array is read or written beyond its ends, shared ones included."""

import re
import subprocess
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from dred.kernel import cuda
from dred.kernel.output import Output
from tests.kernel.covering_cases import FORMS, OPERATIONS, assert_right
from tests.kernel.cuda_cases import CASES, assert_sums, data, gaussian, pairs, spec
from tests.shim import shim
from tests.shim.sanitized import FLAGS, Executable

pytestmark = pytest.mark.slow

TOGETHER = 25  # kernels of one executable


@cache
def sanitizer():
    """Whether the compiler brings the libraries along."""
    if not shim.available():
        return False
    command = [shim.COMPILER, *FLAGS, "-x", "c++", "-", "-o", "/dev/null"]
    return subprocess.run(command, input="int main() {}", capture_output=True, text=True, check=False).returncode == 0


needs_sanitizer = pytest.mark.skipif(not sanitizer(), reason="no AddressSanitizer")

# sums of every kind of record and state, in one type each; every reduction
SUMS = [(case, ("float32", "float64")[n % 2]) for n, case in enumerate(CASES.values())]
REDUCED = [*FORMS[::3], *OPERATIONS[5::29]]


def parts(cases):
    return [cases[n : n + TOGETHER] for n in range(0, len(cases), TOGETHER)]


def source_of(s, name):
    """What is launched on a device."""
    return shim.renamed(cuda.rendered(s), name)


@needs_sanitizer
@pytest.mark.parametrize("part", range(len(parts(SUMS))))
def test_sums(part, tmp_path):
    """Odd sizes, splits, rows with two intervals and with none, batches of which one variable is shared."""
    cases = parts(SUMS)[part]
    sources = [source_of(spec(case, dtype), f"k{n}") for n, (case, dtype) in enumerate(cases)]
    built = Executable(sources, tmp_path)
    for (case, dtype), source in zip(cases, sources, strict=True):
        for M, N, splits in ((1, 1, 1), (source.tile_rows + 1, 3, 1), (5, 2 * source.tile_columns + 7, 2)):
            arrays = data(case, M, N, dtype)
            (state,) = built.run(source, list(arrays.values()), M, N, splits=splits)
            assert_sums(state, pairs(case, arrays), dtype)
        M, N = 37, source.tile_columns + 11
        arrays = data(case, M, N, dtype)
        intervals = np.array([(0, 3), (9, N), (0, 1)], np.int64)
        items = np.array([(0, 0, 30, 0, 2), (0, 30, 31, 2, 2), (0, 31, 37, 1, 2)], np.int64)
        built.run(source, list(arrays.values()), M, N, items=items, intervals=intervals, splits=2)
        stacked = [a if k == 1 else np.stack([a, a]) for k, a in enumerate(arrays.values())]
        strides = [0 if k == 1 else a.size for k, a in enumerate(arrays.values())]
        built.run(source, stacked, M, N, batches=2, strides=strides)


@needs_sanitizer
@pytest.mark.parametrize("part", range(len(parts(REDUCED))))
def test_reductions(part, tmp_path):
    cases = parts(REDUCED)[part]
    sources = [source_of(case.spec, f"k{n}") for n, case in enumerate(cases)]
    built = Executable(sources, tmp_path)
    for case, source in zip(cases, sources, strict=True):
        s = case.spec
        for M, N, splits in ((1, 1, 1), (source.tile_rows + 1, 3, 1), (5, 2 * source.tile_columns + 7, 2)):
            given = case.arrays(M, N)
            state = built.run(source, s.arrays(given), M, N, splits=splits)
            results = [o.read(s, state) for o in Output.of(case.reduction, 0, case.parameter)]
            assert_right(case, results, given, M, N)


# -- the sanitizer finds something ---------------------------------------------------------------------------------

BUGS = {  # what is replaced by what: each array is read or written by one place too far, or is by one too short
    "none": ("", ""),
    "none of long records": ("", ""),
    "a variable": (r"\bv1\[", "v1[1 + "),
    "intervals": (r"\bintervals\[", "intervals[2 + "),
    "partial states": (r"\bpartial0\[", "partial0[1 + "),
    "a state": (r"\bstate0\[", "state0[1 + "),
    "column records in memory": (r"\bys\[", "ys[1000 + "),
    "row records in memory": (r"\bxs\[", "xs[1 + "),
    "shared memory": (r"(__shared__ [^;\[]*\[)", r"\1-1 + "),
}
LONG = ("none of long records", "column records in memory", "row records in memory")


@needs_sanitizer
@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_found(bug, tmp_path):
    D, M, N = (3000, 5, 40) if bug in LONG else (3, 300, 301)
    case = gaussian(D, 1)
    source = source_of(spec(case, "float32"), "k")
    text = re.sub(*BUGS[bug], source.text) if BUGS[bug][0] else source.text
    assert (text == source.text) == bug.startswith("none")
    built = Executable([replace(source, text=text)], tmp_path)
    arrays = data(case, M, N, "float32")
    if bug.startswith("none"):
        (state,) = built.run(source, list(arrays.values()), M, N)
        assert_sums(state, pairs(case, arrays), "float32")
    else:
        with pytest.raises(subprocess.CalledProcessError) as error:
            built.run(source, list(arrays.values()), M, N)
        assert re.search("AddressSanitizer: (heap|global)-buffer-overflow|runtime error: index", error.value.stderr)
        assert "kernels.cpp" in error.value.stderr  # and the line of the text
