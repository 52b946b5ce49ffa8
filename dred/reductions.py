"""The table of reductions: monoids written once in scalar text for every target, and what is read off their states.

To add a reduction, add one entry to `REDUCTIONS`, and one to `MONOIDS` where its state is new. Kernels, the merging of
states, gradients and the tests of its laws follow from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any

import numpy as np

NONE = 2**63 - 1  # the index of no term: larger than any


@dataclass(frozen=True)
class Field:
    """One field of a state.

    Attributes
    ----------
    name : str
    kind : str
        "value" (of the compute type: chosen from the terms), "sum" (of the accumulator's type), "count" or "index"
        (int64; a count is a value of the compute type while a few terms are counted).
    identity : float
        Its value when no term has been met.
    lift : str
        Its value for a single term, as formula text over the formula `F`, the second formula `G` (1 where there is
        none), the number `index` of the term's row, and the lower and upper bounds of bins `low`, `high`.
    over : tuple of str
        Which of these names set its number of components: the largest of their dimensions; 1 where there are none.
    """

    name: str
    kind: str
    identity: float
    lift: str
    over: tuple[str, ...] = ("F",)


def stored(kind: str, dtype: str, acc: str) -> str:
    """The type in which fields of a kind are kept, for a compute type and an accumulator's type."""
    return {"value": dtype, "sum": acc}.get(kind, "int64")


@dataclass(frozen=True)
class Monoid:
    """States that can be merged in any order: associative, commutative up to rounding, with a neutral element.

    Attributes
    ----------
    fields : tuple of Field
        A state. Fields of one component are shared by all components of the others.
    merge : tuple of str
        The union of two states, per field, as scalar text over the fields of the left one (name followed by 0) and of
        the right one (followed by 1), component by component. The left one is never a single term that is NaN.
    let : tuple of (name, text)
        What several of these texts read.
    rank : int
        1 (-1): ranked, the state of least (greatest) first field, of lowest second field among equals; a reduction
        with a parameter keeps that many of them. `merge` follows.
    chained : bool
        Whether some terms may be merged in the compute type before they join the state.
    kahan : str
        The monoid that does the same with compensated sums; "" where there is none.
    anchored : tuple of str
        For each field what a term adds to it, as long as the first field, the reference, stays as it was: over the
        fields of the term (name followed by 1) and the reference (its name). "": the field goes on as ever. It holds
        where the sums stay finite, and no term is far above the reference.
    least : float
        What these sums have to be, at least: below it, terms far below a reference that has no weight may count.
    """

    fields: tuple[Field, ...]
    merge: tuple[str, ...] = ()
    let: tuple[tuple[str, str], ...] = ()
    rank: int = 0
    chained: bool = True
    kahan: str = ""
    anchored: tuple[str, ...] = ()
    least: float = 0.0

    def __post_init__(self) -> None:
        if self.rank:
            object.__setattr__(self, "let", (("before", self.before),))
            object.__setattr__(self, "merge", tuple(f"select(before, {f.name}1, {f.name}0)" for f in self.fields))

    @property
    def before(self) -> str:
        """Whether the right state of a ranking comes before the left one."""
        a, q = (f.name for f in self.fields)
        return f"either({self.less}, both({a}1 == {a}0, {q}1 < {q}0))"

    @property
    def less(self) -> str:
        """The same for a right state whose index is larger, if the left one has met a term that is no NaN."""
        a = self.fields[0].name
        return f"{a}1 < {a}0" if self.rank > 0 else f"{a}0 < {a}1"

    @property
    def near(self) -> str:
        """What `before` implies, and takes less."""
        a = self.fields[0].name
        return f"{a}1 <= {a}0" if self.rank > 0 else f"{a}0 <= {a}1"


def _ranked(rank: int) -> Monoid:
    return Monoid((Field("m", "value", rank * inf, "F"), Field("q", "index", NONE, "index")), rank=rank)


# sums of exponentials: the factors that bring both sums to the larger reference. They are 1 where the references are
# equal, infinite ones included; a term of -inf counts for nothing (unless its weight is not finite), and NaN goes into
# the sums
_FACTORS = (
    ("shift", "exp(-abs(m0 - m1))"),
    ("k0", "select(m0 < m1, shift, 1)"),
    ("k1", "select(m0 <= m1, select(-inf < m1, 1, 0), shift)"),
)
_REFERENCE = Field("m", "value", -inf, "F")


def _scaled(s: str) -> str:
    return f"fma({s}0, k0, {s}1 * k1)"


def _compensated(s: str, c: str, left: str = "", right: str = "") -> tuple[tuple[tuple[str, str], ...], str, str]:
    """Definitions and the new sum and compensation, of Kahan's sum of two sums scaled by the factors given."""
    scale = f" * {left}" if left else ""
    a, b = f"({s}0{scale})", f"({s}1 * {right})" if right else f"{s}1"
    add = f"({b} - {c}1{f' * {right}' if right else ''}) - {c}0{scale}"
    lets = ((f"{s}add", add), (f"{s}new", f"{a} + {s}add"))
    # an infinite sum has no rounding error: what would be computed for it is NaN
    lost = f"select({s}new - {s}new == 0, ({s}new - {a}) - {s}add, 0)"
    return lets, f"{s}new", lost


_PLAIN = _compensated("s", "c")
_SCALED = _compensated("s", "c", "k0", "k1")
_TOTAL = _compensated("z", "d", "k0", "k1")
_WEIGHTS = _compensated("n", "c")
_BINS = Field("n", "sum", 0.0, "IfElse((low <= F) * (F < high) - 1, G, 0)", ("low",))

MONOIDS: Mapping[str, Monoid] = {
    "sum": Monoid((Field("s", "sum", 0.0, "F"),), ("s0 + s1",), kahan="sum_kahan"),
    "sum_kahan": Monoid(
        (Field("s", "sum", 0.0, "F"), Field("c", "sum", 0.0, "0")), _PLAIN[1:], _PLAIN[0], chained=False
    ),
    "count": Monoid((Field("n", "count", 0.0, "F != 0"),), ("n0 + n1",)),
    "any": Monoid((Field("m", "value", 0.0, "F != 0"),), ("max(m1, m0)",)),
    "all": Monoid((Field("m", "value", 1.0, "F != 0"),), ("min(m1, m0)",)),
    "min": Monoid((Field("m", "value", inf, "F"),), ("min(m1, m0)",)),
    "max": Monoid((Field("m", "value", -inf, "F"),), ("max(m1, m0)",)),
    "least": _ranked(1),
    "greatest": _ranked(-1),
    "mean": Monoid(
        (Field("n", "count", 0.0, "1", ()), Field("s", "sum", 0.0, "F")), ("n0 + n1", "s0 + s1"), kahan="mean_kahan"
    ),
    "mean_kahan": Monoid(
        (Field("n", "count", 0.0, "1", ()), Field("s", "sum", 0.0, "F"), Field("c", "sum", 0.0, "0")),
        ("n0 + n1", *_PLAIN[1:]),
        _PLAIN[0],
        chained=False,
    ),
    # Chan, Golub, LeVeque: Updating formulae and a pairwise algorithm for computing sample variances, 1979. The mean is
    # c + a with c a term, so that what is rounded is of the size of the differences of terms, not of the terms
    "moments": Monoid(
        (
            Field("n", "count", 0.0, "1", ()),
            Field("c", "value", 0.0, "F"),
            Field("a", "sum", 0.0, "0"),
            Field("b", "sum", 0.0, "0"),
        ),
        (
            "n0 + n1",
            "select(n0 < 1, c1, c0)",
            "select(n0 < 1, a1, a0 + apart * share)",
            "(b0 + b1) + apart * (n0 * share) * apart",
        ),
        (("share", "n1 / max(n0 + n1, 1)"), ("apart", "(a1 - a0) + (c1 - c0)")),
    ),
    "product": Monoid(  # of the terms that are not 0, the number of those that are, and of those that are not finite
        (
            Field("p", "sum", 1.0, "F + (F == 0)"),
            Field("z", "count", 0.0, "F == 0"),
            Field("w", "count", 0.0, "1 - (Abs(F) < inf)"),
        ),
        ("p0 * p1", "z0 + z1", "w0 + w1"),
        chained=False,
    ),
    "exponentials": Monoid(
        (_REFERENCE, Field("s", "sum", 0.0, "G", ("F", "G"))),
        ("max(m1, m0)", _scaled("s")),
        _FACTORS,
        kahan="exponentials_kahan",
        anchored=("", "exp(m1 - m) * s1"),
        least=2.0**-40,
    ),
    "exponentials_kahan": Monoid(
        (_REFERENCE, Field("s", "sum", 0.0, "G", ("F", "G")), Field("c", "sum", 0.0, "0", ("F", "G"))),
        ("max(m1, m0)", *_SCALED[1:]),
        (*_FACTORS, *_SCALED[0]),
        chained=False,
    ),
    "softmax": Monoid(
        (_REFERENCE, Field("z", "sum", 0.0, "1"), Field("s", "sum", 0.0, "G", ("G",))),
        ("max(m1, m0)", _scaled("z"), _scaled("s")),
        _FACTORS,
        kahan="softmax_kahan",
        anchored=("", "exp(m1 - m) * z1", "exp(m1 - m) * s1"),
    ),
    "softmax_kahan": Monoid(
        (_REFERENCE, Field("z", "sum", 0.0, "1"), Field("d", "sum", 0.0, "0"),
         Field("s", "sum", 0.0, "G", ("G",)), Field("c", "sum", 0.0, "0", ("G",))),
        ("max(m1, m0)", *_TOTAL[1:], *_SCALED[1:]),
        (*_FACTORS, *_TOTAL[0], *_SCALED[0]),
        chained=False,
    ),
    "bins": Monoid((Field("n", "count", 0.0, "(low <= F) * (F < high)", ("low",)),), ("n0 + n1",)),
    "weighted_bins": Monoid((_BINS,), ("n0 + n1",), kahan="weighted_bins_kahan"),
    "weighted_bins_kahan": Monoid(
        (_BINS, Field("c", "sum", 0.0, "0", ("low",))), _WEIGHTS[1:], _WEIGHTS[0], chained=False
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Result:
    """One array of a result.

    Attributes
    ----------
    texts : tuple of str
        Scalar texts over the fields of the state and the parameter K, whose values stand one after another in a row.
        What is read off a count or an index is int64, with -1 for the index of no term; all else has the type of the
        arrays.
    truth : bool
        Whether it is boolean.
    """

    texts: tuple[str, ...]
    truth: bool = False


Texts = tuple[str | None, str | None]


@dataclass(frozen=True)
class Reduction:
    """One reduction over an index.

    Attributes
    ----------
    name, doc : str
    monoid : str
        Name in `MONOIDS` of the state.
    results : tuple of Result
        One array, or the arrays of a pair.
    numpy : callable
        Independent reference: (values of F, values of G or None, axis, parameter) -> result, or tuple of results. The
        values are (M, N, dim).
    signature : str
        Arguments of `NAME_Reduction(...)` in texts: the formula F, an integer parameter K, the output category cat, a
        second formula G, in this order; those that may be left out end in "?". "": there is no such text.
    parameter : str
        What `opt_arg` is: "" (there is none), "K" (terms that are kept), "ddof" or "edges".
    weighted : str
        The monoid where there is a second formula; "": the same.
    scalar : bool
        Whether F must have dimension 1.
    pullbacks : mapping of name to (text, text)
        What a cotangent `e` sends to F and to G, as formula texts over e, the terms `f` and `g`, the saved fields of
        the state by name, the saved result `out`, the parameter `K`, dim F as `D`, the halves `parts` of the term's row
        number and `inf`; None: nothing flows. By "" that of the result (of its first array; e0, e1, ... is e in pieces,
        one for each text of that), by the name of a field that of the saved field. A field that is saved and not in
        here is constant. What may stand beside infinite terms or NaN is masked (`ZeroMult`, `IfElse`, `Routed`).
    also : mapping of name to (name, name)
        Saved fields of other reductions of the same terms: their name, reduction and field.
    any_reference : bool
        Whether results and pullbacks are the same whatever the reference of sums of exponentials is: then it need not
        be the largest term, as long as none is far above it.
    """

    name: str
    doc: str
    monoid: str
    results: tuple[Result, ...]
    numpy: Callable[[Any, Any, int, Any], Any]
    signature: str = "F, cat"
    parameter: str = ""
    weighted: str = ""
    scalar: bool = False
    pullbacks: Mapping[str, Texts] = field(default_factory=dict)
    also: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    any_reference: bool = False


def monoid_name(reduction: Reduction, weighted: bool, kahan: bool = False) -> str:
    """The monoid of a reduction, with a second formula or without, with compensated sums ("": none) or without."""
    name = reduction.weighted if weighted and reduction.weighted else reduction.monoid
    return MONOIDS[name].kahan if kahan else name


# -- references ----------------------------------------------------------------------------------------------------


def _first(rank: int, f: Any, axis: int, count: int) -> tuple[Any, Any]:
    """The `count` least (greatest) values in order, and their places; NaN is passed over."""
    f = np.moveaxis(np.asarray(f, np.float64), axis, 0)
    nan, place = np.isnan(f), np.arange(len(f)).reshape(-1, *[1] * (f.ndim - 1))
    order = np.lexsort((np.broadcast_to(place, f.shape), np.where(nan, 0, rank * f), nan), axis=0)[:count]
    values = np.take_along_axis(f, order, 0)
    none = np.isnan(values)
    values, order = np.where(none, rank * np.inf, values), np.where(none, -1, order)
    missing = [(0, count - len(order))] + [(0, 0)] * (f.ndim - 1)
    values = np.pad(values, missing, constant_values=rank * np.inf)
    order = np.pad(order, missing, constant_values=-1)
    return np.moveaxis(values, 0, axis), np.moveaxis(order, 0, axis)


def _best(rank: int, *which: int) -> Callable[[Any, Any, int, Any], Any]:
    def reference(f: Any, g: Any, axis: int, K: Any) -> Any:
        found = [np.take(a, 0, axis) for a in _first(rank, f, axis, 1)]
        return found[which[0]] if len(which) == 1 else tuple(found)

    return reference


def _several(rank: int, *which: int) -> Callable[[Any, Any, int, Any], Any]:
    def reference(f: Any, g: Any, axis: int, K: Any) -> Any:
        found = [np.moveaxis(a, axis, 1) for a in _first(rank, f, axis, K)]
        found = [a[..., 0] if a.shape[2] == 1 else a for a in found]
        return found[which[0]] if len(which) == 1 else tuple(found)

    return reference


def _shifted(f: Any, g: Any, axis: int) -> tuple[Any, Any, Any]:
    """Largest value m, sum of exp(f - m) * g, sum of exp(f - m)."""
    g = np.ones((1, 1, 1)) if g is None else g
    m = np.fmax.reduce(f, axis, keepdims=True, initial=-np.inf)  # NaN goes into the sums
    with np.errstate(all="ignore"):
        shifted = np.where(f == m, np.where(f == -np.inf, 0, 1), np.exp(f - m))
        return m.take(0, axis), (shifted * g).sum(axis), shifted.sum(axis)


def _max_sumshiftexp(f: Any, g: Any, axis: int, K: Any) -> Any:
    m, s, _ = _shifted(f, g, axis)
    return np.concatenate([m, s], axis=-1)


def _logsumexp(f: Any, g: Any, axis: int, K: Any) -> Any:
    m, s, _ = _shifted(f, g, axis)
    with np.errstate(all="ignore"):
        return m + np.log(s)


def _softmax(f: Any, g: Any, axis: int, K: Any) -> Any:
    _, s, z = _shifted(f, g, axis)
    with np.errstate(all="ignore"):
        return s / z


def _mean(f: Any, g: Any, axis: int, K: Any) -> Any:
    with np.errstate(all="ignore"):
        return f.sum(axis) / np.float64(f.shape[axis])


def _variance(f: Any, g: Any, axis: int, K: Any) -> Any:
    n = f.shape[axis]
    with np.errstate(all="ignore"):
        squares = (f - f.sum(axis, keepdims=True) / np.float64(n)) ** 2
        return squares.sum(axis) / (n - K) if n > K else np.full_like(f.sum(axis), np.nan)


def _bins(row: Any, edges: Any, weights: Any) -> Any:
    """NumPy's rule; np.histogram takes differences of sums, so that one weight may spoil other bins."""
    place = np.where(row == edges[-1], len(edges) - 1, np.searchsorted(edges, row, side="right")) - 1
    inside = (edges[0] <= row) & (row <= edges[-1])
    out = np.zeros(len(edges) - 1, np.int64 if weights is None else np.float64)
    np.add.at(out, place[inside], 1 if weights is None else weights[inside])
    return out


def _histogram(f: Any, g: Any, axis: int, K: Any) -> Any:
    f = np.moveaxis(f, axis, 1)[..., 0]
    g = None if g is None else np.broadcast_to(np.moveaxis(g, axis, 1)[..., 0], f.shape)
    rows = [_bins(row, np.asarray(K, np.float64), None if g is None else g[n]) for n, row in enumerate(f)]
    return np.array(rows, np.int64 if g is None else np.float64).reshape(len(f), len(K) - 1)


# -- the table -----------------------------------------------------------------------------------------------------

# What is sent to F and to G, for a cotangent e. A reference m cancels: sums of exponentials are differentiated as if it
# were constant, but where it is itself a part of the result. A term that counts for nothing receives 0, and so does all
# that is sent on from there: the mask stands outside
_COUNTS = "IfElse((f == -inf) - 1, 0, {})"
_SHARE = "IfElse(-Abs({sum}), 0, Exp(f - m) / {sum})"  # of a term in a sum of exponentials; 0 where that is 0


def _both(to_f: str, to_g: str) -> Texts:
    return _COUNTS.format(to_f), _COUNTS.format(to_g)


_P, _W = _SHARE.format(sum="s"), _SHARE.format(sum="z")
_VALUE, _INDEX = Result(("m",)), Result(("q",))
_LOGSUMEXP: Mapping[str, Texts] = {
    "": _both(f"{_P} * e * g", f"{_P} * e"),
    "s": _both("Exp(f - m) * e * g", "Exp(f - m) * e"),
}
_SUMSHIFT: Mapping[str, Texts] = {
    "": _both("Exp(f - m) * (e1 | g) + Routed(e0 - (e1 | s), q, parts, D)", "Exp(f - m) * e1"),
    "m": (_COUNTS.format("Routed(e, q, parts, D)"), None),
    "s": _both("Exp(f - m) * (e | g) - Routed((e | s), q, parts, D)", "Exp(f - m) * e"),
}
_SOFTMAX: Mapping[str, Texts] = {
    "": _both(f"{_W} * e * (g - out)", f"{_W} * e"),
    "z": (_COUNTS.format("Exp(f - m) * e"), None),
}
# A product is known by that of the terms that are not 0, and the number z of the others. With one 0, the product of the
# others goes to that; the result itself, over a term, to the others. With two, each receives the other one, which is 0:
# z counts them, and is differentiated as z plus their sum, so that z - 2 - f is that other term
_PROD: Mapping[str, Texts] = {
    "": ("IfElse((f == 0) - 1, IfElse((z == 1) - 1, e * p, IfElse((z == 2) - 1, e * p * (z - 2 - f), 0)), e * out / f)",
         None),
    "p": ("IfElse((f == 0) - 1, 0, e * p / f)", None),
    "z": ("IfElse((f == 0) - 1, e, 0)", None),
}  # fmt: skip


def _family(word: str, rank: int, of: str, none: str) -> list[Reduction]:
    """Extrema, their places, and the K most extreme; NaN is passed over."""
    monoid, plain = ("least", "min") if rank > 0 else ("greatest", "max")
    arg, also = f"Arg{word}", {"q": (f"Arg{word}", "q")}
    kept: dict[str, Any] = {"parameter": "K", "signature": "F, K, cat"}
    m, q, both = (_VALUE,), (_INDEX,), (_VALUE, _INDEX)
    # a term that is passed over receives nothing, and neither does one that is no better than none
    routed: Mapping[str, Texts] = {"": (f"IfElse((f == {none}) - 1, 0, Routed(e, q, parts, D))", None)}
    constant: Mapping[str, Texts] = {"": (None, None)}
    return [
        Reduction(word, f"{of} of the terms; none: {none}", plain, m, _best(rank, 0), pullbacks=routed, also=also),
        Reduction(arg, f"row number of the first {of} term; none: -1", monoid, q, _best(rank, 1), pullbacks=constant),
        Reduction(f"{word}_{arg}", f"{of} of the terms and its row number; none: {none}, -1", monoid, both,
                  _best(rank, 0, 1), pullbacks=routed),
        Reduction(f"K{word}", f"the K {of} terms in order; none: {none}", monoid, m, _several(rank, 0),
                  pullbacks=routed, **kept),
        Reduction(f"ArgK{word}", f"row numbers of the K {of} terms in order, lower ones first; none: -1", monoid, q,
                  _several(rank, 1), pullbacks=constant, **kept),
        Reduction(f"K{word}_ArgK{word}", f"the K {of} terms in order, and their row numbers; none: {none}, -1", monoid,
                  both, _several(rank, 0, 1), pullbacks=routed, **kept),
    ]  # fmt: skip


_ENTRIES = (
    Reduction("Sum", "sum of the terms; none: 0", "sum", (Result(("s",)),), lambda f, g, axis, K: f.sum(axis),
              pullbacks={"": ("e", None)}),
    *_family("Min", 1, "smallest", "inf"),
    *_family("Max", -1, "largest", "-inf"),
    Reduction("LogSumExp", "log of the sum of exp(F) * G; none: -inf", "exponentials", (Result(("m + log(s)",)),),
              _logsumexp, "F, cat, G?", pullbacks=_LOGSUMEXP, any_reference=True),
    Reduction("LogSumExpWeight", "log of the sum of exp(F) * G; none: -inf", "exponentials",
              (Result(("m + log(s)",)),), _logsumexp, "F, cat, G", pullbacks=_LOGSUMEXP, any_reference=True),
    Reduction("SumSoftMaxWeight", "mean of G with the weights exp(F); none: NaN", "softmax", (Result(("s / z",)),),
              _softmax, "F, cat, G", scalar=True, pullbacks=_SOFTMAX, any_reference=True),
    Reduction("SoftMax", "mean of G with the weights exp(F); none: NaN", "softmax", (Result(("s / z",)),),
              _softmax, "F, cat, G", scalar=True, pullbacks=_SOFTMAX, any_reference=True),
    Reduction("Max_SumShiftExp", "m, the largest F, and the sum of exp(F - m); none: -inf, 0", "exponentials",
              (Result(("m", "s")),), _max_sumshiftexp, scalar=True, pullbacks=_SUMSHIFT, also={"q": ("ArgMax", "q")}),
    Reduction("Max_SumShiftExpWeight", "m, the largest F, and the sum of exp(F - m) * G; none: -inf, 0",
              "exponentials", (Result(("m", "s")),), _max_sumshiftexp, "F, cat, G", scalar=True, pullbacks=_SUMSHIFT,
              also={"q": ("ArgMax", "q")}),
    Reduction("Mean", "mean of the terms; none: NaN", "mean", (Result(("s / n",)),), _mean,
              pullbacks={"": ("e / n", None)}),
    Reduction("Variance", "mean squared distance from the mean; of at most ddof terms: NaN", "moments",
              (Result(("select(K < n, b / (n - K) + ((c + a) - (c + a)), nan)",)),), _variance, "F, K, cat", "ddof",
              pullbacks={"": ("2 * e * ((f - c) - a) / (n - K)", None), "a": ("e / n", None)}),
    Reduction("Prod", "product of the terms; none: 1", "product",
              (Result(("select(z == 0, p, select(w == 0, 0, nan))",)),),
              lambda f, g, axis, K: f.prod(axis),
              pullbacks=_PROD),
    Reduction("Any", "whether a term is not 0; none: False", "any", (Result(("m != 0",), truth=True),),
              lambda f, g, axis, K: (f != 0).any(axis)),
    Reduction("All", "whether no term is 0; none: True", "all", (Result(("m != 0",), truth=True),),
              lambda f, g, axis, K: (f != 0).all(axis)),
    Reduction("Count", "number of the terms that are not 0", "count", (Result(("n",)),),
              lambda f, g, axis, K: (f != 0).sum(axis)),
    Reduction("Histogram", "number of the terms in each bin, or the sum of their G; the last bin is closed", "bins",
              (Result(("n",)),), _histogram, "", "edges", "weighted_bins", scalar=True),
)  # fmt: skip

REDUCTIONS: Mapping[str, Reduction] = {entry.name: entry for entry in _ENTRIES}
