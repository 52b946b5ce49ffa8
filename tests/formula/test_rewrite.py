"""Rules of rewriting: value and dimension stay, the cost falls; each is reached, and no unsafe one by itself."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given

from dred.errors import FormulaError
from dred.formula import rewrite
from dred.formula.construct import attribute, make, number
from dred.formula.language import formula
from dred.formula.node import const, intern, toposort, var
from dred.formula.ops import OPS
from dred.formula.oracle import dense
from dred.formula.rewrite import RULES, Rule, build, cost, match, pattern, rewritten
from dred.formula.syntax import evaluate, parse
from tests.formula.formulas import VARIABLES, formulas

SAFE = [r for r in RULES if r.safe]
UNSAFE = [r for r in RULES if not r.safe]


def label(rule):
    return f"{rule.left} -> {rule.right}"


# -- what a rule is applied to -----------------------------------------------------------------------------------------

FORMULAS = "abc"  # the names that stand for formulas: a variable of i, of j, a parameter


def raw(text, names):
    """Formula text as nodes, without any rule."""

    def call(name, args, named):
        op = OPS[name]
        n = len(op.args)
        attrs = tuple(attribute(op, w, v) for w, v in zip(op.attrs, args[n:], strict=True))
        return make(name, args[:n], attrs)

    return evaluate(parse(text), number, names.__getitem__, call)


def names_of(rule):
    return sorted({s.value for s in parse(rule.left).steps if s.kind == "name"})


def instances(rule):
    """(left side, what the names stand for): formulas of dimension 1 and 3, integers 0 ... 4, in all combinations."""
    names = names_of(rule)
    choices = []
    for w in names:
        place = FORMULAS.find(w)
        choices.append([const(k) for k in range(5)] if place < 0 else [var(place, d, place) for d in (1, 3)])
    out = []
    for values in itertools.product(*choices):
        try:
            left = raw(rule.left, dict(zip(names, values, strict=True)))
        except FormulaError:
            continue
        found = {}
        if match(pattern(rule.left), left, found) and (rule.when is None or rule.when(found)):
            out.append((left, found))
    return out


def applied(rule, left, found):
    right = rewritten(rule, found)
    assert right.dim in (1, left.dim)
    return right if right.dim == left.dim else build("SumT", (right,), (left.dim,))


def check_rule(rule):
    rng = np.random.default_rng(0)
    cases = instances(rule)
    assert cases, "the rule applies to nothing"
    for left, found in cases:
        right = applied(rule, left, found)
        assert right.dim == left.dim
        assert cost(right) < cost(left)
        arrays = [rng.uniform(0.3, 2, shape) for shape in ((4, 3), (5, 3), (3,))]
        for signs in itertools.product((1, -1), repeat=len(FORMULAS)):
            given = [s * a[..., : v.dim] for s, a, v in zip(signs, arrays, _inputs(left), strict=True)]
            given[2][1:] *= -1  # components of c of both signs
            wanted, got = dense(left, given), dense(right, given)
            shape = np.broadcast_shapes(wanted.shape, got.shape)
            np.testing.assert_allclose(np.broadcast_to(got, shape), np.broadcast_to(wanted, shape), rtol=1e-13)


def _inputs(node):
    """The variables a, b and c of a formula, or any in their place."""
    here = {n.attrs[0]: n for n in toposort([node]) if n.op == "Var"}
    return [here.get(k) or var(k, 1, k) for k in range(len(FORMULAS))]


# -- the rules ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=label)
def test_a_rule_keeps_value_and_dimension_and_lowers_the_cost(rule):
    check_rule(rule)


@pytest.mark.parametrize("rule", SAFE, ids=label)
def test_a_rule_is_reached(rule):
    """Some formula, built of built arguments, is changed by this rule: no rule before it takes all that it is for."""
    for left, _ in instances(rule):
        args = [rebuilt(a) for a in left.args]
        try:
            node = make(left.op, args, left.attrs)
        except FormulaError:
            continue
        if node.op == left.op and first(node) is rule:
            assert build(node.op, node.args, node.attrs) is not node
            return
    raise AssertionError("no formula is changed by this rule")


def first(node):
    """The rule that `build` applies."""
    for left, rule in rewrite._rules().get(node.op, ()):
        found = {}
        if match(left, node, found) and (rule.when is None or rule.when(found)):
            return rule
    return None


def rebuilt(node):
    """The formula, built again from its leaves on."""
    new = {}
    for n in toposort([node]):
        new[n] = build(n.op, [new[a] for a in n.args], n.attrs) if n.op in OPS else n
    return new[node]


@pytest.mark.parametrize("rule", UNSAFE, ids=label)
def test_an_unsafe_rule_is_never_applied_by_itself(rule):
    assert rule not in [r for rules in rewrite._rules().values() for _, r in rules]
    left, found = instances(rule)[-1]
    assert build(left.op, left.args, left.attrs) is left
    assert applied(rule, left, found) is not left


def test_unsafe_rules_would_change_finite_values():
    f = formula("Exp(x) * Exp(y)", ["x = Vi(1)", "y = Vj(1)"]).node
    assert np.isfinite(dense(f, [[[700.0]], [[-1400.0]]])).all()
    assert [n.op for n in toposort([f])].count("Exp") == 2


# -- whole formulas ----------------------------------------------------------------------------------------------------


@given(formulas())
def test_building_again_changes_nothing(n):
    assert rebuilt(n) is n


MILD = ("Add", "Subtract", "Mult", "Minus", "Square", "Abs", "Pow", "Sum", "SumT", "Scalprod", "Concat", "Extract",
        "ExtractT", "Elem", "ElemT", "Cos", "Sin", "Max", "Min", "ZeroMult", "ComplexPair", "ComplexReal",
        "ComplexImag", "TensorDot")  # fmt: skip


@given(formulas(MILD, make))
def test_rules_keep_the_value_of_random_formulas(n):
    rng = np.random.default_rng(0)
    arrays = [rng.uniform(0.5, 1.5, ((2, v.dim), (3, v.dim), (v.dim,))[v.attrs[1]]) for v in VARIABLES]
    ruled = rebuilt(n)
    assert ruled.dim == n.dim
    largest = max(np.abs(dense(m, arrays)).max() for m in toposort([n]))
    if np.isfinite(largest):
        a, b = np.broadcast_arrays(dense(n, arrays), dense(ruled, arrays))
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12 * largest)


@given(formulas())
def test_the_cost_counts_shared_parts_once(n):
    single, double = cost(n), cost(intern("Concat", (n, n), (), 2 * n.dim))
    assert double.nodes == single.nodes + 1
    assert double.flops == single.flops


# -- these tests can fail ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule",
    [
        Rule("a - b", "b - a"),
        Rule("Square(-a)", "-Square(a)"),
        Rule("Abs(a)", "a"),
        Rule("a / b", "a"),
        Rule("Sum(a)", "a"),
        Rule("Elem(a, m)", "Elem(a, 0)"),
        Rule("a + b", "b + a"),
        Rule("2 * a", "a + a"),
        Rule("Square(a)", "a * a"),
        Rule("Exp(Log(7))", "8"),
        Rule("IfElse(c, a, b)", "a"),
        Rule("IfElse(c, a, 0) + IfElse(c, 0, b)", "IfElse(c, b, a)"),
        Rule("ComplexPair(a, 0) + ComplexPair(0, b)", "ComplexPair(b, a)", lambda b: b["a"].dim == b["b"].dim),
        Rule("ExtractT(a, 0, n) + ExtractT(b, m, n)", "Concat(b, a)", lambda b: b["a"].dim + b["b"].dim == b["n"]),
        Rule("Sum(a)", "Sum(a)", lambda b: b["a"].dim == 7),
    ],
    ids=label,
)
def test_a_wrong_rule_is_caught(rule):
    with pytest.raises(AssertionError):
        check_rule(rule)


def test_a_rule_behind_a_wider_one_is_caught(monkeypatch):
    hidden = Rule("0 + a", "a", lambda b: True)
    monkeypatch.setattr(rewrite, "RULES", (*RULES, hidden))
    rewrite._rules.cache_clear()
    try:
        with pytest.raises(AssertionError, match="no formula is changed"):
            test_a_rule_is_reached(hidden)
    finally:
        monkeypatch.undo()
        rewrite._rules.cache_clear()


def test_an_unsafe_rule_taken_for_safe_is_caught(monkeypatch):
    taken = dataclasses.replace(UNSAFE[0], safe=True)
    monkeypatch.setattr(rewrite, "RULES", (*RULES, taken))
    rewrite._rules.cache_clear()
    try:
        left, _ = instances(taken)[-1]
        assert build(left.op, left.args, left.attrs) is not left
    finally:
        monkeypatch.undo()
        rewrite._rules.cache_clear()
