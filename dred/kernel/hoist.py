"""Rewriting the terms of sums for speed: factors of a row leave the sum, scales of exponentials cost nothing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

from dred.formula.node import I, J
from dred.kernel.ir import IJ, Expr, Graph, Post, Quick, Root, contract, walk
from dred.kernel.primitives import SHIFT, Range
from dred.kernel.scales import Scale, Scaling

Factors = tuple[Fraction, list[Expr]]
"""A product: a number and what else there is."""

LOG2E = Fraction(1.4426950408889634)
LEVELS = (0, I, J, IJ)
# below these a value that is not finite leaves none that is: of "div", the numerator
_OPEN = frozenset({"add", "sub", "mul", "neg", "div", "fma", "fold"})
# a small error of what these read changes their value altogether
_ABRUPT = frozenset({"floor", "ceil", "trunc", "round", "lt", "le", "eq", "ne"})
_NONNEGATIVE = frozenset({"add", "mul", "div", "fma", "fold", "fold_max", "fold_min", "min"})  # of such arguments


# what leaves a sum: below the largest factor, what underflows without it is next to nothing with it; products of
# factors that are smaller than the smallest one may have underflowed themselves
FACTORS = {"float32": Range(2.0**-100, 2.0**24), "float64": Range(2.0**-960, 2.0**53)}

# what constants of a product make together, to be one constant: neither it nor its multiple is denormal, or infinite
NUMBERS = {"float32": Range(2.0**-120, 2.0**120), "float64": Range(2.0**-996, 2.0**996)}


def hoisted(
    graph: Graph, roots: Sequence[Root], dtype: str, approximate: bool = False, fast: bool = False
) -> list[Root]:
    """The roots with rewritten terms: equal to the given ones, up to rounding, where the new sums are finite.

    A sum of rewritten terms that is not finite may be so only because partial products were taken in another order,
    because a factor was left out, or because the exponential of a large argument was cut off. Then it has to be
    computed from the given roots. So it is where what has left a sum is so large that terms may have underflowed
    without it: such a factor is NaN.

    - Factors that vary with the row alone, and numbers, leave the sum (`Root.posts`).
    - What several sums have in common is multiplied first, and once.
    - Of `f u - f v` in large states, where u varies with the row and f not with the component, f u leaves the sum: the
      sum of f is multiplied with u.
    - `exp(c * q)`, where c varies with the row at most, is `exp2s(c' * q)` with c' = c log2(e) staged. That costs an
      error of |c q| eps, as computing the argument does.
    - `fast`: where c varies with nothing, it goes into the rows that q is made of (`dred.kernel.scales`), as in
      ``|sqrt(c') x - sqrt(c') y|^2``: an instruction less for each pair, and an error of c |x| |x - y| eps.
    - On GPUs it is `approx_exp2`; roots, and quotients by them, become `approx_sqrt` and `approx_rsqrt`, but where
      their last bits decide about something.

    Parameters
    ----------
    graph : Graph
        That of the roots.
    roots : sequence of Root
    dtype : str
    approximate : bool
        Whether the target has the approximate functions.
    fast : bool
        Whether scales go into rows.

    Returns
    -------
    list of Root
    """
    sums = {(r, n): term for r, root in enumerate(roots) for n in range(len(root.steps)) if (term := _sum(root, n))}
    rewriting = _Rewriting(graph, dtype, _kept(roots, sums), approximate, fast)
    terms = {key: rewriting.rewritten(term) for key, term in sums.items()}
    products = {key: rewriting.flat(term, True) for key, term in terms.items()}
    shared = Counter(e for _, factors in products.values() for e in {f.id for f in factors})

    def order(f: Expr) -> tuple[int, int, int, int]:
        return len(f.free), -shared[f.id] if f.axes else -len(products), LEVELS.index(f.axes), f.id

    out = list(roots)
    for (r, n), (number, factors) in products.items():
        root = out[r]
        # in a large state, what all components have in common costs less once for each pair
        rest = [f for f in factors if not f.axes & ~I and (f.free or not root.loops)]
        inside = [f for f in factors if f not in rest]
        if root.loops and approximate:  # a number of the formula: there, exponentials bring none along
            if number and not FACTORS[dtype].low <= abs(number) <= FACTORS[dtype].high:
                continue
            inside, number = [graph.const(number), *inside] if number != 1 else inside, Fraction(1)
        term = rewriting.product(sorted(inside, key=order))
        post = rewriting.post(number, rest)
        if (root.loops or approximate) and (parted := rewriting.parted(terms[r, n])):
            term, post = parted
        if term is sums[r, n] or post is None:
            continue
        (state,) = (a for a in root.steps[n].args if a.op == "state")
        posts = list(root.posts or [None] * len(root.steps))
        posts[n] = post
        new, steps = list(root.terms), list(root.steps)
        new[n], steps[n] = term, contract(graph, state, term)
        out[r] = root._replace(terms=tuple(new), steps=tuple(steps), posts=tuple(posts))
    rewriting.kept = set()
    simple = all(root.places == 1 and not root.loops for root in roots)
    staying = {root.part for root in out if root.quick for post in root.quick.posts if post and post.most < math.inf}
    for n, root in enumerate(out):
        quick = root.quick if simple else None
        rewriting.staying = root.part in staying
        out[n] = root._replace(quick=_quickened(rewriting, quick) if quick else None)
    if rewriting.scaling:  # so that chains that go by other steps need no other rows
        for n, root in enumerate(out):
            if root.quick:
                exact = _abrupt(root.terms)
                mine, theirs = (
                    tuple([rewriting.scaling.used(e, exact) for e in each]) for each in (root.terms, root.steps)
                )
                out[n] = root._replace(terms=mine, steps=theirs)
    return out


def _abrupt(values: Sequence[Expr]) -> set[int]:
    """What is read where a last bit decides about something."""
    return {e.id for e in walk([a for e in walk(values) if e.op in _ABRUPT for a in e.args])}


def _chain(args: Sequence[Expr], before: Sequence[Expr], uses: Counter[int]) -> Expr | None:
    """Of what is added, the sum of products that nothing else reads; None where that is none of them, or both."""
    products = [
        a for a, b in zip(args, before, strict=True) if a.op in ("mul", "fma") and a.axes == IJ and uses[b.id] == 1
    ]
    return products[0] if len(products) == 1 else None


def _twin(e: Expr, differences: Mapping[tuple[Expr, ...], Expr], uses: Counter[int]) -> tuple[int, Expr] | None:
    """Which factor of a product is a difference whose negative is computed before, and that one."""
    for n, a in enumerate(e.args):
        other = differences.get(a.args[::-1]) if a.op == "sub" and uses[a.id] == 1 else None
        if other is not None and other.id < a.id:
            return n, other
    return None


def _quickened(rewriting: _Rewriting, quick: Quick) -> Quick:
    """Quick steps with the terms of their sums rewritten."""
    steps, posts = list(quick.steps), list(quick.posts)
    for n, post in enumerate(posts):
        if post is not None:
            state, term = steps[n].args
            number, factors = rewriting.flat(rewriting.rewritten(term), True)
            mine = [f for f in factors if rewriting.refers(f)]
            rest = [f for f in factors if rewriting.leaves(f)]
            if (new := rewriting.post(number, rest)) is None:
                continue
            posts[n] = new._replace(referred=rewriting.product(mine) if mine else None, most=post.most)
            inside = [f for f in factors if f not in (*mine, *rest)]
            steps[n] = contract(rewriting.graph, state, rewriting.product(inside))
    return quick._replace(steps=tuple(steps), posts=tuple(posts))


def _sum(root: Root, n: int) -> Expr | None:
    """The term of a field that is a plain sum over pairs."""
    if root.places > 1 or root.terms[n].axes != IJ or root.terms[n].result != "value":
        return None
    step, merge = root.steps[n], root.merge[n]
    own = [a for a in step.args if a.op == "state"]
    plain = step.op in ("add", "fma") and merge.op == "add" and sorted(a.op for a in merge.args) == ["other", "state"]
    return root.terms[n] if plain and len(own) == 1 and own[0].attr.field == root.fields[n] else None


def _kept(roots: Sequence[Root], sums: Iterable[tuple[int, int]]) -> set[int]:
    """What is read where a value that is not finite may be lost: there, exponentials stay as they are."""
    done = set(sums)
    hidden = [e for r, root in enumerate(roots) for n, e in enumerate(root.steps) if (r, n) not in done]
    for e in walk([roots[r].terms[n] for r, n in done]):
        hidden += e.args[1:] if e.op == "div" else () if e.op in _OPEN else e.args
    return {e.id for e in walk(hidden)}


class _Rewriting:
    def __init__(self, graph: Graph, dtype: str, kept: set[int], approximate: bool, fast: bool) -> None:
        self.graph, self.factors, self.kept = graph, FACTORS[dtype], kept
        self.numbers, self.approximate = NUMBERS[dtype], approximate
        self.unit = graph.const(Fraction(1, 2 ** SHIFT[dtype]))
        self.signs: dict[int, bool] = {}
        self.scaling = Scaling(graph) if fast else None
        self.staying = False  # whether terms are read by exponentials alone that refer to a term which stays

    def post(self, number: Fraction, rest: Sequence[Expr]) -> Post | None:
        """What leaves a sum; NaN in rows where the sum without it may have lost what counts. None: it has to stay."""
        if not self.constant(number):
            return None
        if not rest:
            return Post(float(number)) if abs(number) <= self.factors.high else None
        return Post(float(number), self.guarded(number, rest))

    def parted(self, term: Expr) -> tuple[Expr, Post] | None:
        """f v - f u, where u is of the row, or f u - f v: a multiple of f v is left for each pair, or of f (v - u)."""
        if term.op != "sub":
            return None
        (number, others), (same, mine) = map(self.flat, term.args)
        u, v, f = [*mine], [*others], list[Expr]()
        for e in sorted(mine, key=lambda e: e.id):
            if e in v:  # as many times as both have it
                f.append(e)
                u.remove(e)
                v.remove(e)
        if any(e.axes & ~I for e in u):
            number, same, u, v = -number, -same, v, u
        common = self.product(f)
        fits = number == same and common.axes == IJ and self.factors.low <= abs(number) <= self.factors.high
        if not (fits and u and v) or any(e.axes & ~I for e in u) or not any(e.axes & ~I for e in v):
            return None
        rows, columns = self.product(u), self.product(v)
        if self.approximate:  # for GPUs a difference costs no more, and no second sum is needed
            inside = [self.graph.const(number)] if number != 1 else []
            return self.product([*inside, *f, self.graph.make("sub", columns, rows)]), Post()
        post = Post(float(number), row=rows, common=common)
        return (self.graph.make("mul", common, columns), post) if not common.free else None

    def constant(self, number: Fraction) -> bool:
        """Whether a number is a constant of the type."""
        return number == 0 or self.numbers.low <= abs(number) <= self.numbers.high

    def guarded(self, number: Fraction, factors: Sequence[Expr]) -> Expr:
        """The product of what is taken out of a sum, beside a number; NaN where the sum may have lost what counts."""
        g, product = self.graph, self.product(factors)
        most = self.factors.high / abs(float(number)) if number else math.inf
        fine = g.make("le", g.make("abs", product), g.const(most))
        if len(factors) > 1:
            fine = g.make("both", fine, self.whole(product, factors))
        return g.make("select", fine, product, g.const(math.nan))

    def whole(self, product: Expr, factors: Sequence[Expr]) -> Expr:
        """Whether a product has not underflowed."""
        g = self.graph
        fine = g.make("le", g.const(self.factors.low), g.make("abs", product))
        for f in factors:
            fine = g.make("either", fine, g.make("eq", f, g.const(0)))
        return fine

    def leaves(self, factor: Expr) -> bool:
        """Whether a factor of quick steps is taken out of a sum; on GPUs, only what stays as it is for all columns."""
        held = self.approximate and any(e.op == "stored" for e in walk([factor]))
        return not factor.axes & ~I and not held

    def refers(self, factor: Expr) -> bool:
        """Whether a factor of quick steps is that of their references (see `relative`)."""
        leaves = {e.op for e in walk([factor]) if not e.args}
        return self.approximate and leaves <= {"stored", "const"} and "stored" in leaves

    def settled(self, term: Expr) -> Expr:
        """The term without choices that are known beforehand, or that are a maximum with 0."""
        g = self.graph
        new: dict[int, Expr] = {}
        for e in walk([term]):
            args = [new.get(a.id, a) for a in e.args]
            if e.op == "select" and e.axes == IJ:
                (test, this, that), zero = args, g.const(0)
                if test.op == "eq" and test.args[1] is zero and self.positive(test.args[0]):
                    new[e.id] = that
                    continue
                if test.op == "lt" and test.args == (that, zero) and this is zero:
                    new[e.id] = g.make("ramp", that)
                    continue
            if any(a is not b for a, b in zip(args, e.args, strict=True)):
                new[e.id] = g.make(e.op, *args, attr=e.attr)
        return new.get(term.id, term)

    def near(self, term: Expr) -> Expr:
        """The term with fewer operations: nearly what it was, but where last bits decide about something.

        Roots, and quotients by them, are right but for the last bit or two; what is added to a sum of products is where
        that sum begins; of a difference and its negative, one is computed.
        """
        g, everything, exact = self.graph, walk([term]), _abrupt([term])
        uses = Counter(a.id for e in everything for a in e.args)
        differences = {e.args: e for e in everything if e.op == "sub" and e.axes == IJ}
        new: dict[int, Expr] = {}
        for e in everything:
            if e.axes != IJ or e.id in exact:
                continue
            args = [new.get(a.id, a) for a in e.args]
            if e.op == "sqrt":
                new[e.id] = g.make("approx_sqrt", *args)
            elif e.op == "div" and args[1].op == "approx_sqrt":
                new[e.id] = g.make("mul", args[0], g.make("approx_rsqrt", *args[1].args))
            elif e.op == "add" and (chain := _chain(args, e.args, uses)) is not None:
                new[e.id] = self.above(chain, args[chain is args[0]])
            elif e.op == "mul" and (twin := _twin(e, differences, uses)) is not None:
                n, other = twin
                new[e.id] = g.make("neg", g.make("mul", args[1 - n], new.get(other.id, other)))
            elif any(a is not b for a, b in zip(args, e.args, strict=True)):
                new[e.id] = g.make(e.op, *args, attr=e.attr)
        return new.get(term.id, term)

    def rewritten(self, term: Expr) -> Expr:
        """The term with its exponentials, and its sums over components, rewritten."""
        term = self.near(self.settled(term)) if self.approximate else term
        open_ = {term.id}
        for e in reversed(walk([term])):
            if e.id in open_ and e.op in _OPEN:
                open_.update(a.id for a in (e.args[:1] if e.op == "div" else e.args))
        new: dict[int, Expr] = {}
        for e in walk([term]):
            if e.id not in open_ or e.axes != IJ:
                continue
            args = [new.get(a.id, a) for a in e.args]
            if e.op == "div":
                args[1] = e.args[1]
            if e.op == "exp" and e.id not in self.kept:
                new[e.id] = self.exp(e.args[0])
            elif e.op == "fold":
                new[e.id] = self.fold(e, args[0])
            elif e.op in _OPEN:
                new[e.id] = self.graph.make(e.op, *args)
        return new.get(term.id, term)

    def exp(self, a: Expr) -> Expr:
        """exp(a): the scale of the argument that varies with the row at most is one factor.

        Only if a single factor is left, else the argument stays as it is: a product in another order may overflow where
        the argument does not, and the exponential of -inf is 0. For the same reason a scale that is not finite becomes
        NaN.
        """
        g = self.graph
        relative = a.op == "sub" and a.args[1].op == "stored"
        if self.approximate and relative and not self.scaling:
            return self.relative(*a.args)
        staying = self.staying and relative
        if (staying or (self.approximate and relative)) and a.args[0].op == "neg":
            a = g.make("neg", self.above(a.args[0].args[0], a.args[1]))
        number, factors = self.flat(a)
        rest = [f for f in factors if not f.axes & ~I]
        inside = [f for f in factors if f.axes & ~I]
        # within the range, what a number makes of an overflow, or underflow, has no other exponential
        moderate = self.factors.low <= abs(number) <= self.factors.high
        if len(inside) > 2 or (len(inside) == 2 and (rest or not moderate)) or not self.constant(number):
            number, rest, inside = Fraction(1), [], [a]
        scale, q = g.const(number * LOG2E), self.product(inside)
        sign = 0  # of a; -1 also where a positive one is made NaN
        if (self.scaling or not self.approximate) and self.nonnegative(q):
            sign = -1 if number < 0 or rest else 1
        if rest:
            scale = g.make("mul", scale, self.product(rest))
            fine = g.make("lt", g.make("abs", scale), g.const(math.inf))
            if len(rest) > 1:
                fine = g.make("both", fine, self.whole(scale, rest))
            if sign:
                fine = g.make("both", fine, g.make("le", scale, g.const(0)))
            scale = g.make("select", fine, scale, g.const(math.nan))
        known = (-1 if sign else 0) if rest else (-1 if number < 0 else 1)  # the sign of the scale
        exponent = self.scaled(q, scale, known) or g.make("mul", q, scale)
        if self.approximate:
            return g.make("approx_exp2", exponent)
        power = "exp2s_stay" if staying else ("exp2s", "exp2s_rise", "exp2s_fall")[sign]
        return g.make("mul", g.make(power, exponent), self.unit)

    def scaled(self, q: Expr, scale: Expr, sign: int) -> Expr | None:
        """scale * q, at no cost for each pair; None where there is no such way. Roots need the sign of the scale."""
        if not self.scaling or scale.axes:
            return None
        found = self.scaling.scaled(q, Scale(scale, signed=True))
        if found is None and sign:
            size = self.graph.make("neg", scale) if sign < 0 else scale
            found = self.scaling.scaled(q, Scale(size, negative=sign < 0))
        return found

    def above(self, a: Expr, reference: Expr) -> Expr:
        """a + reference, added up from the reference on: as exact as a, which is about as large where it counts."""
        chain = []
        while a.op == "fma":
            chain.append(a)
            a = a.args[2]
        total = self.graph.make("fma" if a.op == "mul" else "add", *(a.args if a.op == "mul" else (a,)), reference)
        for e in reversed(chain):
            total = self.graph.make("fma", *e.args[:2], total)
        return total

    def relative(self, a: Expr, reference: Expr) -> Expr:
        """exp(a - reference), rounded once: what the product of the reference is rounded by is a factor of the row."""
        g, scale = self.graph, self.graph.const(LOG2E)
        less = g.make("neg", g.make("mul", reference, scale))
        lost = g.make("neg", g.make("fma", reference, scale, less))
        power = g.make("approx_exp2", g.make("fma", a, scale, less))
        return g.make("mul", power, g.make("approx_exp2", lost))

    def fold(self, e: Expr, body: Expr) -> Expr:
        """A sum over components: factors that do not vary with them leave it."""
        number, factors = self.flat(body)
        inside = [f for f in factors if e.attr in f.free]
        outside = [f for f in factors if e.attr not in f.free]
        low, high = self.factors
        if not inside or (not outside and number in (1, -1)) or not low <= abs(number) <= high:
            return self.graph.make("fold", body, attr=e.attr)
        total = self.graph.make("fold", self.product(inside), attr=e.attr)
        factors = [self.guarded(number, outside)] if outside else []
        return self.product([self.graph.const(number), *factors, total])

    def flat(self, e: Expr, known: bool = False) -> Factors:
        """The factors of a product, in order; a quotient by what varies with the row alone is one.

        `known`: differences that have been scaled for something else are used, as what they are times the inverse.
        """
        number, factors, stack = Fraction(1), list[Expr](), [e]
        while stack:
            e = stack.pop()
            if e.op == "const" and isinstance(e.attr, Fraction):
                number *= e.attr
            elif e.axes != IJ and not (e.op == "mul" and e.axes & ~I):
                factors.append(e)
            elif e.op == "mul" and e.args[0] is not e.args[1]:
                stack += reversed(e.args)
            elif e.op == "neg":
                number, stack = -number, [*stack, e.args[0]]
            elif known and self.scaling and e.id in self.scaling.differences:
                scaled, scale = self.scaling.differences[e.id]
                factors += [scaled, self.scaling.inverse(scale)]
            elif e.op == "div" and not e.args[1].axes & ~I:
                stack += [self.graph.make("div", self.graph.const(1), e.args[1]), e.args[0]]
            else:
                factors.append(e)
        return number, factors

    def product(self, factors: Sequence[Expr]) -> Expr:
        total = factors[0] if factors else self.graph.const(1)
        for f in factors[1:]:
            total = self.graph.make("mul", total, f)
        return total

    def positive(self, q: Expr) -> bool:
        """Whether a value is known to be above 0, and not denormal, or NaN."""
        least = [a for a in q.args if a.op == "const" and a.attr >= self.factors.low] if q.op == "add" else []
        return bool(least) and all(map(self.nonnegative, q.args))

    def nonnegative(self, q: Expr) -> bool:
        """Whether a value is known not to be below 0."""
        for e in walk([q]):
            if e.id in self.signs:
                continue
            if e.op == "const":
                self.signs[e.id] = e.attr >= 0
            elif e.op in ("mul", "fma") and e.args[0] is e.args[1]:
                self.signs[e.id] = all(self.signs[a.id] for a in e.args[2:])
            elif e.op == "max":
                self.signs[e.id] = any(self.signs[a.id] for a in e.args)
            elif e.op == "select":
                self.signs[e.id] = all(self.signs[a.id] for a in e.args[1:])
            elif e.op in _NONNEGATIVE:
                self.signs[e.id] = all(self.signs[a.id] for a in e.args)
            else:
                self.signs[e.id] = e.op in ("abs", "sqrt", "exp", "ramp")
        return self.signs[q.id]
