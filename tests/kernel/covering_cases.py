"""Kernels in which every operation, reduction, axis, type and architecture meets every other one, and their oracle."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache, reduce
from typing import Any, NamedTuple

import numpy as np

from dred.formula.language import Variable, formula
from dred.formula.node import Node, const, var
from dred.formula.op import Op
from dred.formula.ops import OPS
from dred.formula.oracle import dense
from dred.formula.rewrite import build, expand
from dred.kernel import cuda
from dred.kernel.cuda_source import Source
from dred.kernel.spec import KernelSpec
from dred.reductions import REDUCTIONS, monoid_name
from tests.covering import covering
from tests.formula import checks

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
DTYPES = ("float32", "float64")
TOLERANCE = {"float32": 4e-6, "float64": 2e-14}
PARAMETERS: dict[str, Any] = {"": None, "K": 3, "ddof": 1, "edges": (-3.0, -1.0, 0.1, 0.5, 2.0)}
TRUTHS = ("any", "all", "count")  # monoids
GROUPS = 14  # of operations: with as many reductions as there are, fewer than 400 kernels
WIDTH = 16  # components of x and of y

# -- formulas ------------------------------------------------------------------------------------------------------


class Formula(NamedTuple):
    """A formula as one component, and as several."""

    scalar: Node
    vector: Node
    variables: tuple[Variable, ...]


X, Y = var(0, WIDTH, 0), var(1, WIDTH, 1)


def sixteenths(value: float) -> Fraction:
    return Fraction(int(value * 16), 16)  # towards 0: inside the domain


def argument(k: int, dim: int, low: Any, high: Any) -> Node:
    """Components of x plus components of y, mapped from [-2, 2] to [low, high]: exact in float32, as x and y are."""
    places = ((X, 5 * k), (Y, 7 * k + 3))
    both = [build("Extract", (v,), (at % (WIDTH - dim + 1), dim)) for v, at in places]
    lows, highs = (np.broadcast_to(bound, dim) for bound in (low, high))
    middle, scale = ([sixteenths(float(n)) for n in values] for values in ((highs + lows) / 2, (highs - lows) / 4))
    return build("Add", (_constant(middle), build("Mult", (_constant(scale), build("Add", both)))))


def _constant(values: list[Fraction]) -> Node:
    if len(set(values)) == 1:
        return const(values[0])
    return reduce(lambda a, b: build("Concat", (a, b)), map(const, values))


def component(k: int, op: Op) -> Node:
    """An operation on values of pairs, its components added up; row numbers are scaled to be as large as others."""
    dims, attrs = checks.example(op)
    bounds = op.domain or ((-2.0, 2.0),) * len(dims)
    node = expand(op.name, [argument(k + n, dim, *bounds[n]) for n, dim in enumerate(dims)], attrs)
    node = build("Sum", (node,)) if node.dim > 1 else node
    return node if dims or "Index" not in op.name else build("Mult", (node, const(Fraction(1, 1024))))


def operations(group: int) -> list[str]:
    """Neighbours in the table are alike: they are in different groups."""
    return list(OPS)[group::GROUPS]


def of_operations(names: Sequence[str]) -> Formula:
    parts = [component(list(OPS).index(name), OPS[name]) for name in names]
    scalar = reduce(lambda a, b: build("Add", (a, b)), parts)
    vector = reduce(lambda a, b: build("Concat", (a, b)), parts)
    return Formula(
        build("Mult", (scalar, const(Fraction(1, 4)))), vector, (Variable(0, WIDTH, 0), Variable(1, WIDTH, 1))
    )


def of_texts(scalar: str, vector: str, *aliases: str) -> Formula:
    parsed = [formula(text, aliases) for text in (scalar, vector)]
    return Formula(*(f.node for f in parsed), parsed[0].variables)


def points(D: int) -> tuple[str, ...]:
    return (f"x = Vi({D})", f"y = Vj({D})")


GRADIENT, TUTORIAL = "Grad(Exp(-SqDist(x, y)), x, 1)", "Square(p - a) * Exp(x + y)"
OTHERS = "ZeroMult(IndexI() != IndexJ(), Inv(1 + SqDist(x, y)))"
# records and states of every kind: in registers, in blocks of shared memory and through memory; short, long and wide
SIX = {
    "Gaussian": of_texts("Exp(-SqDist(x, y))", "Exp(-SqDist(x, y)) * y", *points(3)),
    "gradient": of_texts(f"Sum({GRADIENT})", GRADIENT, *points(3)),
    "tutorial": of_texts(f"Sum({TUTORIAL})", TUTORIAL, *points(3), "a = Vj(1)", "p = Pm(1)"),
    "all but the diagonal": of_texts(OTHERS, f"{OTHERS} * (x - y)", *points(2)),
    "wide": of_texts("(x | y)", "x * y", *points(40)),
    "long": of_texts("SqDist(x, y)", "SqDist(x, y) * Extract(y, 100, 3)", *points(200)),
}  # fmt: skip
FORMULAS = {str(group): of_operations(operations(group)) for group in range(GROUPS)} | SIX


# -- kernels -------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A reduction of one of FORMULAS, or of the operation of that name."""

    formula: str
    reduction: str
    axis: int
    dtype: str
    architecture: str

    @property
    def terms(self) -> tuple[Node, ...]:
        """F, and G where there has to be one: positive, so that its sums do not cancel."""
        entry, (scalar, vector, _) = REDUCTIONS[self.reduction], formula_of(self.formula)
        if entry.monoid in TRUTHS:
            return (self.small(0.0),)
        if "G" not in entry.signature.split(", "):
            return (scalar if entry.scalar else vector,)
        return scalar, build("Add", (const(Fraction(1, 2)), build("Square", (vector,))))

    def small(self, margin: float) -> Node:
        """Whether components are less than a third, or a little more: what is counted."""
        return build("LessThan", (formula_of(self.formula).vector, const(Fraction(1, 3) + Fraction(margin))))

    @property
    def parameter(self) -> Any:
        return PARAMETERS[REDUCTIONS[self.reduction].parameter]

    @property
    def spec(self) -> KernelSpec:
        f, *g = self.terms
        return KernelSpec.of(f, self.reduction, self.axis, self.dtype, "float64", parameter=self.parameter,
                             weight=g[0] if g else None, variables=formula_of(self.formula).variables)  # fmt: skip

    @property
    def source(self) -> Source:
        """What is launched on a device."""
        return cuda.rendered(self.spec)

    def rows(self, M: int, N: int) -> tuple[int, int]:
        """Of i and of j, for M kept and N reduced ones."""
        return (M, N) if self.axis == 1 else (N, M)

    def arrays(self, M: int, N: int) -> list[np.ndarray]:
        """Multiples of 1/64 in [-1, 1], of long vectors smaller ones: sums and differences are exact."""
        rng, sizes = np.random.default_rng(M + N), self.rows(M, N)
        shapes = [(v.dim,) if v.cat == 2 else (sizes[v.cat], v.dim) for v in self.spec.variables]
        scales = [2.0 ** -round(np.log2(max(1, shape[-1] / WIDTH)) / 2) for shape in shapes]
        return [scale * rng.integers(-64, 65, shape) / 64 for scale, shape in zip(scales, shapes, strict=True)]

    def raw(self, arrays: Sequence[np.ndarray], M: int, N: int) -> Any:
        """The formula's components at every pair, before they are compared."""
        return dense(formula_of(self.formula).vector, arrays, self.rows(M, N))

    def values(self, arrays: Sequence[np.ndarray], M: int, N: int) -> tuple[Any, Any]:
        """F and G, or None, at every pair by the oracle."""
        sizes = self.rows(M, N)
        found = [np.broadcast_to(dense(node, arrays, sizes), (*sizes, node.dim)) for node in self.terms]
        assert all(np.isfinite(a).all() for a in found)
        return found[0], found[1] if found[1:] else None

    def wanted(self, f: Any, g: Any) -> tuple[np.ndarray, ...]:
        """The results by the reduction's own reference."""
        with np.errstate(over="ignore"):  # a product of hundreds of powers is infinite
            found = REDUCTIONS[self.reduction].numpy(f, g, self.axis, self.parameter)
        return found if isinstance(found, tuple) else (found,)


@cache
def formula_of(name: str) -> Formula:
    return FORMULAS[name] if name in FORMULAS else of_operations([name])


def cases(formulas: Sequence[str]) -> list[Case]:
    factors = {"formula": formulas, "reduction": list(REDUCTIONS), "axis": (1, 0), "dtype": DTYPES,
               "architecture": ARCHITECTURES}  # fmt: skip
    return [Case(*row) for row in covering(factors)]


OPERATIONS = cases([str(group) for group in range(GROUPS)])
FORMS = cases(list(SIX))


# -- results -------------------------------------------------------------------------------------------------------

# How large what is rounded is, by monoid: of |F| + 1 and |G| + 1 at every pair, of which the second axis is reduced.
SCALES: dict[str, Callable[[Any, Any], Any]] = {
    "sum": lambda f, g: f.sum(1),
    "moments": lambda f, g: f.max() ** 2,
    "product": lambda f, g: 0,
    "exponentials": lambda f, g: f.max() * np.concatenate([np.ones_like(f[:, 0]), g.sum(1)], 1).max(),
    "softmax": lambda f, g: f.max() * g.max(),
}


def assert_right(case: Case, got: Sequence[np.ndarray], arrays: Sequence[np.ndarray], M: int, N: int) -> None:
    """Results are NumPy's in float64; where they jump, those of terms that are as near as rounding allows."""
    entry, tolerance = REDUCTIONS[case.reduction], TOLERANCE[case.dtype]
    f, g = case.values(arrays, M, N)
    sizes = [1 + np.abs(np.moveaxis(a, case.axis, 1)) for a in (f, np.zeros_like(f) if g is None else g)]
    scale = SCALES.get(monoid_name(entry, g is not None), lambda f, g: f.max())(*sizes)
    relative = sizes[0].max()
    if entry.monoid == "product":  # a factor near 0 has few digits, one that is 0 none
        with np.errstate(divide="ignore"):
            relative = (sizes[0] / (sizes[0] - 1)).sum(1)
    for result, a, b in zip(entry.results, got, case.wanted(f, g), strict=True):
        assert a.shape == b.shape
        if "q" in result.texts:
            assert_chosen(a, b, f, case.axis, tolerance * sizes[0].max())
        elif a.dtype == bool or a.dtype == np.int64:
            assert_counted(case, a, arrays, M, N, tolerance * (1 + np.abs(case.raw(arrays, M, N)).max()))
        else:
            with np.errstate(all="ignore"):  # products may be too large for the type
                b = b.astype(case.dtype)
                error, allowed = np.abs(a - b), tolerance * (scale + relative * np.abs(b))
            same = (a == b) | (np.isnan(a) & np.isnan(b))
            assert np.all(same | (error <= allowed) | np.isnan(allowed)), (a, b)


def assert_chosen(got: np.ndarray, wanted: np.ndarray, f: np.ndarray, axis: int, near: float) -> None:
    """Row numbers, each once, of terms as small or large as those that NumPy chooses; none where it finds none."""
    terms = np.moveaxis(f, axis, 1)  # kept, reduced, D
    places = [a.reshape(len(a), -1, terms.shape[2]) for a in (got, wanted)]
    assert np.array_equal(places[0] < 0, places[1] < 0)
    a, b = (np.take_along_axis(terms, np.maximum(place, 0), 1) for place in places)
    assert np.all(np.abs(a - b)[places[0] >= 0] <= near)
    ordered = np.sort(places[0], 1)
    assert np.all((ordered[:, 1:] > ordered[:, :-1]) | (ordered[:, 1:] < 0))


def assert_counted(case: Case, got: np.ndarray, arrays: Sequence[np.ndarray], M: int, N: int, near: float) -> None:
    """At least what surely counts, and at most what may."""
    sizes, entry = case.rows(M, N), REDUCTIONS[case.reduction]
    if case.reduction == "Histogram":
        terms = np.moveaxis(case.values(arrays, M, N)[0], case.axis, 1)
        low, high = (np.array(edges) for edges in (case.parameter[:-1], case.parameter[1:]))
        least, most = (((terms >= low + by) & (terms <= high - by)).sum(1) for by in (near, -near))
    else:
        bounds = (dense(case.small(by), arrays, sizes) for by in (-near, near))
        least, most = (entry.numpy(np.broadcast_to(a, (*sizes, a.shape[2])), None, case.axis, None) for a in bounds)
    assert np.all((least <= got) & (got <= most))
