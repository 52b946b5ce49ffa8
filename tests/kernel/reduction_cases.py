"""Every entry of the table of reductions as kernel specs, with data and what their results have to be."""

import itertools
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from dred.formula.language import formula
from dred.formula.oracle import dense
from dred.kernel.lower import MOST
from dred.kernel.output import Output
from dred.kernel.spec import KernelSpec, Part
from dred.reductions import NONE, REDUCTIONS, monoid_name

DTYPES = ("float32", "float64")
EDGES = {"few": (-3, -1.0, 0.1, 0.5, 2), "many": tuple(np.linspace(-3, 3, 41))}
PARAMETERS: dict[str, tuple[Any, ...]] = {"": (None,), "K": (1, 7, 40), "ddof": (1,), "edges": tuple(EDGES)}
LOST = ("c", "d")  # fields that hold what sums have lost
TOLERANCE = {"float32": 3e-5, "float64": 1e-11}


class Case(NamedTuple):
    """A reduction of a formula of x = Vi(D), y = Vj(D), b = Vj(5)."""

    reduction: str
    D: int
    weight: str = ""
    parameter: Any = None
    kahan: bool = False
    axis: int = 1
    dtype: str = "float64"
    acc: str = "float64"

    @property
    def aliases(self) -> list[str]:
        return [f"x = Vi({self.D})", f"y = Vj({self.D})", "b = Vj(5)"]

    @property
    def texts(self) -> tuple[str, ...]:
        """The formula, of one component where the reduction wants it, and the weight."""
        scalar = REDUCTIONS[self.reduction].scalar or self.weight
        f = "(x | y)" if scalar else "x * y + Sum(Square(x - y))"
        return (f, self.weight) if self.weight else (f,)

    @property
    def parsed(self) -> Any:
        return [formula(text, self.aliases) for text in self.texts]

    @property
    def value(self) -> Any:
        """What the reduction's parameter is."""
        return EDGES.get(self.parameter, self.parameter) if isinstance(self.parameter, str) else self.parameter

    @property
    def part(self) -> Part:
        f, *w = self.parsed
        return Part.of(self.reduction, f.node, w[0].node if w else None, self.value, self.kahan)

    @property
    def spec(self) -> KernelSpec:
        return spec_of([self])

    def rows(self, M: int, N: int) -> tuple[int, int]:
        return (M, N) if self.axis == 1 else (N, M)

    def numpy(self, arrays: list[np.ndarray], first: int) -> tuple[np.ndarray, ...]:
        """The results by the NumPy lines of the table, row numbers from `first` on."""
        entry = REDUCTIONS[self.reduction]
        sizes = len(arrays[0]), len(arrays[1])
        with np.errstate(all="ignore"):
            values = [np.broadcast_to(dense(p.node, arrays, sizes), (*sizes, p.node.dim)) for p in self.parsed]
            found = entry.numpy(values[0], values[1] if values[1:] else None, self.axis, self.value)
        found = found if isinstance(found, tuple) else (found,)
        numbers = ["q" in result.texts for result in entry.results]
        return tuple(np.where(a >= 0, a + first, a) if yes else a for a, yes in zip(found, numbers, strict=True))

    def outputs(self, part: int = 0) -> tuple[Output, ...]:
        return Output.of(self.reduction, part, self.value)


def spec_of(cases: list[Case]) -> KernelSpec:
    """One kernel of several cases, of the same D, axis and types."""
    first = cases[0]
    return KernelSpec(tuple(case.part for case in cases), first.axis, first.dtype, first.acc,
                      variables=formula("(x | y) * Sum(b)", first.aliases).variables)  # fmt: skip


def weights(reduction: str) -> list[str]:
    """No weight where there may be none; of the components of x, of 5, of 1."""
    signature = REDUCTIONS[reduction].signature
    if reduction == "Histogram":
        return ["", "Sum(b) * Sum(x)"]
    some = ["y * Sum(x)", "b * Sum(x)", "Sum(b) + Sum(x)"] if "G" in signature else [""]
    return ["", *some] if "G?" in signature else some


@cache
def every_case() -> list[Case]:
    """All of them, with axes and types in turn; the accumulator's type is float32 now and then."""
    out = []
    for name, D in itertools.product(REDUCTIONS, (1, 3, 40)):
        for weight, parameter in itertools.product(weights(name), PARAMETERS[REDUCTIONS[name].parameter]):
            for kahan in (False, True):
                if not kahan or monoid_name(REDUCTIONS[name], bool(weight), True):
                    out.append(Case(name, D, weight, parameter, kahan))
    return [case for n, case in enumerate(out) for case in turned(case, n)]


def turned(case: Case, n: int) -> list[Case]:
    """A case with both axes and types; the first of them are those of the fast tier."""
    turns = [case._replace(axis=a, dtype=t) for a, t in itertools.product((1, 0), DTYPES)]
    turns = turns[n % 4 :] + turns[: n % 4]
    return turns if n % 5 or case.kahan else [turns[0]._replace(acc="float32"), *turns]


def arrays(case: Case, M: int, N: int, seed: int = 0, kind: str = "ties") -> list[np.ndarray]:
    """Data: multiples of a half, with many ties ("ties"), any ("any"), or with NaN and infinities ("special")."""
    rng = np.random.default_rng(seed)
    shapes = ((M, case.D), (N, case.D), (N, 5))
    if kind == "any":
        return [(rng.standard_normal(s) / case.D**0.25).astype(case.dtype) for s in shapes]
    out = [(rng.integers(-3, 4, s) / 2).astype(case.dtype) for s in shapes]
    if kind == "special":
        for a, odd in zip(out, ((np.nan, np.inf), (-np.inf,), (np.inf, np.nan)), strict=True):
            for n, value in enumerate(odd):
                a[n + 1 :: 17 + n, 0] = value
    return out


def referred(spec: KernelSpec, got, want) -> list[np.ndarray]:
    """The state `got` with the references of `want`, which are largest terms: where any will do, it is less at most."""
    out = list(got)
    for n, part in enumerate(spec.parts):
        fields = spec.states(n)
        if part.any_reference:
            m, top = got[fields.start], want[fields.start]
            # terms may have been rounded otherwise
            with np.errstate(all="ignore"):
                near = TOLERANCE[spec.dtype] * np.abs(top, where=np.isfinite(top), out=np.zeros_like(top))
                assert np.all((m == top) | ((m <= top + near) & (top - m <= np.log(MOST) + near)))
                factor = np.where(m == top, 1, np.exp(m.astype(np.float64) - top))
                out[fields] = [top, *((a * factor).astype(a.dtype) for a in got[fields][1:])]
    return out


def assert_states(spec: KernelSpec, got, want) -> None:
    """Values, counts and row numbers are equal; sums are near, but for what they have lost."""
    got = referred(spec, got, want)
    for field, a, b in zip(spec.fields, got, want, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        if field.kind != "sum":
            assert np.array_equal(a, b, equal_nan=field.kind == "value"), field.name
        elif field.name not in LOST:
            assert_near(a, b, spec)


def assert_near(a, b, spec: KernelSpec) -> None:
    """NaN and infinite in the same places, near elsewhere."""
    assert a.shape == b.shape
    low = "float32" if "float32" in (spec.dtype, spec.acc) else "float64"
    size = np.abs(np.where(np.isfinite(b), b, 0)).max(initial=1)
    product = any(part.monoid == "product" for part in spec.parts)
    np.testing.assert_allclose(a, b, rtol=TOLERANCE[low] * (10 if product else 1),
                               atol=0 if product else TOLERANCE[low] * size, equal_nan=True)  # fmt: skip


def assert_results(case: Case, got, want) -> None:
    """Results of `case` are those of NumPy: equal where they are whole numbers."""
    for a, b in zip(got, want, strict=True):
        if a.dtype in (np.int64, bool):
            assert np.array_equal(a, b)
            assert not np.any(a == NONE)
        else:
            with np.errstate(all="ignore"):
                assert_near(a.astype("f8"), b.astype(case.dtype).astype("f8"), case.spec)
