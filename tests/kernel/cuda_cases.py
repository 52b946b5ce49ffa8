"""Formulas for the CUDA tests, each beside its own NumPy lines in float64, and data for them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from dred.formula.language import formula
from dred.kernel import cuda_source
from dred.kernel.cuda_source import Source
from dred.kernel.spec import KernelSpec


class Case(NamedTuple):
    """A formula, and its value (M, N, D) from x, y, ... of shapes (M, 1, dim), (1, N, dim) or (dim,)."""

    text: str
    aliases: tuple[str, ...]
    axis: int
    value: Callable[..., Any]


def squares(d):
    return np.square(d).sum(-1, keepdims=True)


def kernel(x, y, g):
    return np.exp(-g * squares(x - y))


def norm(d):
    return np.sqrt(squares(d))


def sign(d):
    return np.where(np.isnan(d), 0, np.sign(d))


def unit(d):
    return np.divide(d, norm(d), out=np.zeros_like(d), where=norm(d) != 0)


def total(f):
    return f.sum(-1, keepdims=True)


def embedded(f, n, m):
    return np.concatenate([np.zeros((*f.shape[:-1], m)), f, np.zeros((*f.shape[:-1], n - m - 1))], -1)


def gaussian(D: int, axis: int) -> Case:
    aliases = (f"x = Vi({D})", f"y = Vj({D})", f"b = V{'ji'[1 - axis]}(1)", "g = Pm(1)")
    return Case("Exp(-g * SqDist(x, y)) * b", aliases, axis, lambda x, y, b, g: kernel(x, y, g) * b)


def gaussian_gradient(D: int, v: str) -> Case:
    text = f"Grad(Exp(-g * SqDist(x, y)) * b, {v}, e)"
    aliases = (f"x = Vi({D})", f"y = Vj({D})", "b = Vj(1)", "g = Pm(1)", "e = Vi(1)")
    sign = {"x": -2, "y": 2}[v]
    return Case(text, aliases, 1 if v == "x" else 0,
                lambda x, y, b, g, e: sign * g * (x - y) * kernel(x, y, g) * b * e)  # fmt: skip


PAIRS = ("p = Pm(1)", "a = Vj(1)", "x = Vi(3)", "y = Vj(3)")
LONG = ("x = Vi(40)", "y = Vj(40)", "p = Pm(40)", "b = Vj(1)")
BEYOND = ("x = Vi(33)", "y = Vj(33)")  # one component more than is unrolled in float32
UNREAD = ("x = Vi(1)", "y = Vj(1)")

CASES: dict[str, Case] = {
    **{f"gaussian {D} axis {axis}": gaussian(D, axis) for D in (3, 16, 64, 200) for axis in (1, 0)},
    **{f"gaussian {D} gradient {v}": gaussian_gradient(D, v) for D in (3, 16, 64, 200) for v in "xy"},
    "square exp": Case("Square(p - a) * Exp(x + y)", PAIRS, 1, lambda p, a, x, y: (p - a) ** 2 * np.exp(x + y)),
    "square exp gradient x": Case(
        "Grad(Square(p - a) * Exp(x + y), x, e)", (*PAIRS, "e = Vi(3)"), 1,
        lambda p, a, x, y, e: (p - a) ** 2 * np.exp(x + y) * e),
    "square exp gradient y": Case(
        "Grad(Square(p - a) * Exp(x + y), y, e)", (*PAIRS, "e = Vi(3)"), 0,
        lambda p, a, x, y, e: (p - a) ** 2 * np.exp(x + y) * e),
    "comparisons": Case(
        "(x < y) * Sqrt(Square(x) + 1) + (x <= p) * Log(2 + Square(y)) - (y != p)",
        ("x = Vi(3)", "y = Vj(3)", "p = Pm(3)"), 1,
        lambda x, y, p: (x < y) * np.sqrt(x * x + 1) + (x <= p) * np.log(2 + y * y) - (y != p)),
    "sin cos rsqrt": Case(
        "Sin(x * y) * Cos(x - y) + Rsqrt(1 + SqDist(x, y))", ("x = Vi(2)", "y = Vj(2)"), 0,
        lambda x, y: np.sin(x * y) * np.cos(x - y) + 1 / np.sqrt(1 + squares(x - y))),
    "pow elem": Case(
        "Pow(SqDist(x, y) + 1, 3) + Abs(Elem(x, 1) - Elem(y, 2)) * Inv(2 + Square(Elem(x, 0)))",
        ("x = Vi(3)", "y = Vj(3)"), 1,
        lambda x, y: (squares(x - y) + 1) ** 3 + np.abs(x[..., 1:2] - y[..., 2:3]) / (2 + x[..., :1] ** 2)),
    "concat extract": Case(
        "Concat(Exp(Extract(x, 8, 20)), Sin(y)) * Concat(y, Extract(x, 3, 20))", ("x = Vi(40)", "y = Vj(20)"), 1,
        lambda x, y: np.concatenate([np.exp(x[..., 8:28]) * y, np.sin(y) * x[..., 3:23]], -1)),
    "kernel and its gradient": Case(  # a component beside a loop of components
        "Concat(Exp(-SqDist(x, y)), Grad(Exp(-SqDist(x, y)), x, b))", LONG, 1,
        lambda x, y, p, b: kernel(x, y, 1) * np.concatenate([np.ones_like(x[..., :1] * b), -2 * (x - y) * b], -1)),
    "norms": Case(  # sums inside long records, of rows and of columns
        "x * Norm2(x) * (y * Norm2(y)) + p * Norm2(p)", LONG, 1,
        lambda x, y, p, b: x * norm(x) * y * norm(y) + p * norm(p)),
    "two levels": Case(  # a sum that reads another one
        "Exp(-SqDist(x * Exp(-SqDist(x, y)), p * y)) * b", LONG, 0,
        lambda x, y, p, b: kernel(x * kernel(x, y, 1), p * y, 1) * b),
    "equal components": Case(
        "Concat(x * y, Concat(x * y, x + y))", ("x = Vi(2)", "y = Vj(2)"), 1,
        lambda x, y: np.concatenate([x * y, x * y, x + y], -1)),
    "many components": Case(  # more than fit into registers, unrolled
        "Concat(Concat(x * y, x - y), Concat(Exp(-SqDist(x, y)) * x, Exp(-SqDist(x, y)) * y))",
        ("x = Vi(12)", "y = Vj(12)"), 1,
        lambda x, y: np.concatenate([x * y, x - y, kernel(x, y, 1) * x, kernel(x, y, 1) * y], -1)),
    "rows alone": Case("Exp(x)", ("x = Vi(3)", "y = Vj(1)"), 1, lambda x, y: np.exp(x) + 0 * y),
    "columns alone": Case("Exp(y)", ("x = Vi(1)", "y = Vj(3)"), 1, lambda x, y: np.exp(y) + 0 * x),
    "parameters alone": Case("Exp(p)", ("p = Pm(40)", "x = Vi(1)", "y = Vj(1)"), 1,
                             lambda p, x, y: np.exp(p) + 0 * x * y),
    "truth of rows and columns": Case(
        "(x < p) * (y < p) * (x < y)", LONG, 1, lambda x, y, p, b: (x < p) * (y < p) * (x < y) * 1.0),
    # sums over components that vary with one index alone lie in the records
    "product of sums": Case("Sum(x) * Sum(y)", BEYOND, 1, lambda x, y: total(x) * total(y)),
    "vectors with sums": Case("(x + SqNorm2(x)) * (y - Sum(y * y))", BEYOND, 1,
                              lambda x, y: (x + squares(x)) * (y - squares(y))),
    "sum of a concatenation": Case("Sum(Concat(x, y))", BEYOND, 0, lambda x, y: total(x) + total(y)),
    "distance in parts": Case("SqNorm2(x) + SqNorm2(y) - 2 * (x | y)", BEYOND, 1, lambda x, y: squares(x - y)),
    "sums of comparisons": Case(
        "Sum(x < y) * Sum(y <= p) + Sum(x != y)", LONG, 1,
        lambda x, y, p, b: total(1.0 * (x < y)) * total(1.0 * (y <= p)) + total(1.0 * (x != y))),
    "one third": Case("1 / 3", UNREAD, 1, lambda x, y: 1 / 3 + 0 * x * y),  # kernels that read nothing
    "zeros": Case("Zero(4)", UNREAD, 0, lambda x, y: np.zeros(4) * x * y),
    "forty thirds": Case("SumT(1 / 3, 40)", UNREAD, 1, lambda x, y: np.full(40, 1 / 3) + 0 * x * y),
    "sign": Case("Sign(x - y) * Sign(y)", ("x = Vi(3)", "y = Vj(3)"), 1, lambda x, y: sign(x - y) * sign(y)),
    "norm gradient x": Case("Grad(Norm2(x - y), x, e)", ("x = Vi(3)", "y = Vj(3)", "e = Vi(1)"), 1,
                            lambda x, y, e: unit(x - y) * e),
    "long norm gradient y": Case("Grad(Norm2(x - y), y, e)", ("x = Vi(40)", "y = Vj(40)", "e = Vj(1)"), 0,
                                 lambda x, y, e: unit(y - x) * e),
    "one component of four": Case("ElemT(Elem(x, 1) * y, 4, 2)", ("x = Vi(3)", "y = Vj(1)"), 1,
                                  lambda x, y: embedded(x[..., 1:2] * y, 4, 2)),
    "one component of forty": Case("ElemT(x * y, 40, 17)", UNREAD, 0, lambda x, y: embedded(x * y, 40, 17)),
    "high powers": Case("Pow(x, 7) * Pow(2 + Square(y), -5)", ("x = Vi(3)", "y = Vj(3)"), 1,
                        lambda x, y: x**7 / (2 + y * y) ** 5),
}  # fmt: skip

# Records that fit nowhere but into memory: their own tier, for the pairs of a thousand components take a while.
HUGE: dict[str, Case] = {
    "gaussian 1000 axis 1": gaussian(1000, 1),
    "gaussian 1000 gradient x": gaussian_gradient(1000, "x"),
    "gaussian 3000 axis 0": gaussian(3000, 0),
}


def spec(case: Case, dtype: str, acc: str = "float64") -> KernelSpec:
    return KernelSpec.of(formula(case.text, case.aliases).node, "Sum", case.axis, dtype, acc)


def rendered(case: Case, dtype: str, name: str = "dred", acc: str = "float64") -> Source:
    return cuda_source.rendered(spec(case, dtype, acc), name)


def data(case: Case, M: int, N: int, dtype: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Arrays by name, for M kept rows and N reduced ones."""
    rng = np.random.default_rng(seed)
    rows = (M, N) if case.axis == 1 else (N, M)
    out = {}
    for alias in case.aliases:
        name, _, declared = alias.partition(" = ")
        dim = int(declared[3:-1])
        category = ("Vi", "Vj", "Pm").index(declared[:2])
        a = rng.standard_normal((dim,) if category == 2 else (rows[category], dim)) / max(1, dim / 3) ** 0.5
        out[name] = (np.abs(a) if category == 2 else a).astype(dtype)
    return out


def pairs(case: Case, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The value at every pair, (kept, reduced, D), in float64."""
    shaped = {}
    for alias in case.aliases:
        name, _, declared = alias.partition(" = ")
        a = arrays[name].astype("float64")
        shaped[name] = {"Vi": lambda a: a[:, None], "Vj": lambda a: a[None], "Pm": lambda a: a}[declared[:2]](a)
    value = case.value(**shaped)
    return value if case.axis == 1 else np.swapaxes(value, 0, 1)


# Formulas of values that are NaN, infinite, zero or equal; the tests put them there.
SPECIAL = ("gaussian 3 axis 1", "comparisons", "sums of comparisons", "sign", "norm gradient x", "long norm gradient y",
           "high powers")  # fmt: skip


def special(case: Case, dtype: str) -> list[tuple[dict[str, np.ndarray], int, int]]:
    """Arrays, M and N: special values in a few of the kept rows, or in the only reduced one."""
    x, y = (alias.partition(" ")[0] for alias in case.aliases[:2])
    kept, reduced = (x, y) if case.axis == 1 else (y, x)
    out = []
    for only in (None, *range(5)):
        M, N = (30, 41) if only is None else (30, 1)
        arrays = data(case, 30, 41, dtype)
        if arrays[x].shape[1] == arrays[y].shape[1]:
            arrays[reduced][:20] = arrays[kept][:20]  # the diagonal
        a = arrays[kept if only is None else reduced]
        a[0, 0], a[1, 0], a[2, 0], a[3], a[4, -1] = np.nan, np.inf, -np.inf, 0, -0.0
        if only is not None:
            arrays = {v: b[only : only + 1] if len(b) == 41 else b for v, b in arrays.items()}
        out.append((arrays, M, N))
    return out


def assert_special(state: np.ndarray, case: Case, arrays: dict[str, np.ndarray], dtype: str) -> None:
    """`state` (D, M) is NaN and infinite where NumPy's sums are, and near them elsewhere."""
    with np.errstate(all="ignore"):
        terms = pairs(case, arrays)
        want, size = terms.sum(1).T, np.abs(terms).sum(1).T
        error = np.abs(state - want)
    finite = np.isfinite(want)
    assert np.array_equal(state[~finite], want[~finite], equal_nan=True)
    assert np.all(error[finite] <= tolerance(dtype) * size[finite].max(initial=1e-300))


def tolerance(dtype: str) -> float:
    """Error of a sum beside the sum of its terms' magnitudes; float32 distances of long vectors round themselves."""
    return {"float32": 5e-6, "float64": 1e-13}[dtype]


def assert_sums(state: np.ndarray, terms: np.ndarray, dtype: str, start: float = 0.0) -> None:
    """`state` (D, M) is `start` plus the sum of `terms` (M, N, D) over columns."""
    want, size = terms.sum(1).T + start, np.abs(terms).sum(1).T + abs(start)
    assert state.shape == want.shape
    assert np.all(np.abs(state - want) <= tolerance(dtype) * size.max(initial=1e-300))
