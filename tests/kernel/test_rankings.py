"""Rankings on the compiled kernel: ties, infinities and NaN, both ways to insert, columns that come in any order."""

import numpy as np
import pytest

from dred.formula.language import formula
from dred.kernel import cpu, cpu_schedule, llvm_state
from dred.kernel.llvm_state import StateText
from dred.kernel.lower import lower
from dred.kernel.output import empty
from dred.kernel.spec import KernelSpec
from dred.reductions import NONE, REDUCTIONS

ALIASES = ["z = Vi(1)", "f = Vj(1)"]
FEW = 4 * cpu_schedule.CHOICES * 16  # columns, for which few rows are worth lanes of columns
ALWAYS, NEVER = 1 << 20, 0  # bytes of lists that are written at once
VALUES = {
    "all": np.linspace(-3, 3, 1000), "ties": [0, 1, 2], "one": [0], "infinite": [np.inf], "lowest": [-np.inf],
    "none": [np.nan], "holes": [np.nan] * 9 + [1, 2, np.inf], "odd": [-np.inf, np.inf, np.nan, 0.0, -0.0, 1],
    "small": [0.0, -0.0, 1e-42, -1e-42],
}  # fmt: skip


@pytest.fixture
def forget(monkeypatch):
    """Compiled kernels, also those on disk."""
    monkeypatch.setattr(cpu, "_kernels", type(cpu._kernels)())
    monkeypatch.setenv("DRED_CACHE_DIR", "off")


def spec_of(reduction, K, dtype):
    f = formula("z + f", ALIASES)
    return KernelSpec.of(f.node, reduction, 1, dtype, "float64", variables=f.variables, parameter=K)


def check(reduction, K, M, N, dtype="float32", some=tuple(VALUES), blocks=1, threads=1):
    """Lists of all places against NumPy's; blocks of columns are folded last ones first."""
    spec, rng = spec_of(reduction, K, dtype), np.random.default_rng(N + K)
    for name in some:
        z, f = np.zeros((M, 1), dtype), rng.choice(VALUES[name], (N, 1)).astype(dtype)
        z[M // 2], z[M - 1] = np.inf, np.nan
        state = empty(spec, M)
        for part in np.array_split(np.arange(N), blocks)[::-1]:
            arrays = spec.arrays([z, f[part]])
            state = cpu.fold(spec, state, arrays, M, len(part), j0=int(part[0]), threads=threads)
        with np.errstate(invalid="ignore"):
            terms = (z + f.T)[..., None].astype(np.float64)
        want = REDUCTIONS[reduction].numpy(terms, None, 1, K)
        for a, b in zip([state[0], np.where(state[1] == NONE, -1, state[1])], want, strict=True):
            np.testing.assert_array_equal(a.T.reshape(b.shape), b, err_msg=name)


@pytest.mark.parametrize("at_once", [ALWAYS, NEVER], ids=["at once", "by halves"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("reduction", ["KMin_ArgKMin", "KMax_ArgKMax"])
def test_both_ways_to_insert(reduction, dtype, at_once, monkeypatch, forget):
    monkeypatch.setattr(llvm_state, "AT_ONCE", at_once)
    for K in (2, 7, 8, 16, 17, 50):
        for M, N in ((5, 3), (16, 64), (37, 333)):
            check(reduction, K, M, N, dtype)


@pytest.mark.parametrize("at_once", [ALWAYS, NEVER], ids=["at once", "by halves"])
def test_columns_that_come_in_any_order(at_once, monkeypatch, forget):
    """Among equal terms the lowest column is first, whichever is met first."""
    monkeypatch.setattr(llvm_state, "AT_ONCE", at_once)
    for K in (3, 20):
        for blocks in (2, 7):
            check("KMin_ArgKMin", K, 18, 300, blocks=blocks)


def test_lanes_of_columns():
    for dtype in ("float32", "float64"):
        check("KMin_ArgKMin", 5, 2, FEW + 131, dtype, threads=2)


def test_which_lists_are_written_at_once():
    """Sizes alone decide."""
    for dtype, most in (("float32", 64), ("float64", 48)):
        for K in (most, most + 1):
            text = StateText(lower(spec_of("ArgKMin", K, dtype), cpu.UNROLL), dtype, "float64", 16, False, False)
            room = set(text.rooms.values())
            assert room == ({most} if most == K else {K})
            assert ("memmove" in text.declarations()) == (most < K)


# the tests above can fail ---------------------------------------------------------------------------------------------


def _last_column(self, root, columns):
    return columns[-1]


def _nan_spreads(self, root, columns):
    """A minimum that is NaN if the term at hand is."""
    lanes, nearest = self.lanes, columns[0]
    for term in columns[1:]:
        nearer = self.put(f"fcmp olt {lanes.type} {nearest}, {term}")
        nearest = self.put(f"select {lanes.mask} {nearer}, {lanes.type} {nearest}, {lanes.type} {term}")
    return nearest


@pytest.mark.parametrize("wrong", [_last_column, _nan_spreads])
def test_a_quick_test_that_misses_terms_is_noticed(wrong, monkeypatch, forget):
    monkeypatch.setattr(StateText, "_nearest", wrong)
    with pytest.raises(AssertionError):
        check("KMin_ArgKMin", 7, 37, 333)


def test_last_places_that_are_too_good_are_noticed(monkeypatch, forget):
    """Those of the place before the last."""
    insert = StateText._insert_at_once

    def better(self, root, *a):
        return insert(self, root._replace(places=root.places - 1), *a)

    monkeypatch.setattr(StateText, "_insert_at_once", better)
    with pytest.raises(AssertionError):
        check("KMin_ArgKMin", 7, 37, 333, some=["all"] * 40)  # a term that is missed has to be the last of the list


def test_places_that_do_not_move_are_noticed(monkeypatch, forget):
    moved = StateText._moved

    def stays(self, kind, values, first, room):
        return values if "i64" in kind else moved(self, kind, values, first, room)

    monkeypatch.setattr(StateText, "_moved", stays)
    with pytest.raises(AssertionError):
        check("KMin_ArgKMin", 7, 37, 333)
