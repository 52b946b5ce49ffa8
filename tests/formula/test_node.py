"""Nodes: one object per formula in every thread, nothing kept alive, the same content key in every process."""

import copy
import gc
import os
import pickle
import subprocess
import sys
import threading
import weakref
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given

from dred.formula import node as module
from dred.formula.derive import vjp
from dred.formula.language import formula
from dred.formula.node import I, J, const, digest, flatten, intern, toposort, unflatten, var, variables
from dred.formula.oracle import dense
from dred.kernel import interpret
from tests.formula import checks
from tests.formula.formulas import formulas

ROOT = Path(__file__).parents[2]
DEEP = [3000, pytest.param(10_000, marks=pytest.mark.slow)]  # both deeper than Python's stack
TEXT = "Square(p - a) * Exp(x + y)"
ALIASES = ["x = Vi(3)", "y = Vj(3)", "a = Vj(1)", "p = Pm(1)"]


# -- interning ---------------------------------------------------------------------------------------------------------


def test_equal_formulas_are_one_object():
    assert formula(TEXT, ALIASES).node is formula("Square(p-a)*Exp(x+y)", ALIASES).node
    assert var(0, 3, 0) is not var(0, 3, 1)
    assert var(0, 3, 0) is not var(0, 2, 0)
    assert var(0, 3, 0) is not var(1, 3, 0)


def test_constants_are_kept_apart_by_type_and_sign():
    assert const(1) is const(Fraction(1)) is const(1.0)
    assert const(0) is const(0.0)
    assert const(0) is not const(-0.0)
    assert const(1) is not const(-1)
    assert const(float("nan")) is const(float("nan"))
    assert const(float("inf")) is not const(float("-inf"))
    assert intern("A", (), (1,), 1) is not intern("A", (), (1.0,), 1)
    assert intern("A", (), (1,), 1) is not intern("A", (), (True,), 1)
    assert intern("A", (), (0.0,), 1) is not intern("A", (), (-0.0,), 1)


@pytest.mark.parametrize(
    ("text", "axes"),
    [
        ("x", I),
        ("y", J),
        ("p", 0),
        ("x + y", I | J),
        ("x + p", I),
        ("3", 0),
        ("Exp(a) * p", J),
        ("Sum(x) * Sum(y)", I | J),
    ],
)
def test_axes_say_what_a_value_varies_with(text, axes):
    assert formula(text, ALIASES).node.axes == axes


def test_nodes_cannot_be_changed():
    n = var(0, 3, 0)
    with pytest.raises(AttributeError):
        n.dim = 4
    assert copy.copy(n) is n
    assert copy.deepcopy(n) is n


def test_threads_get_the_same_objects():
    threads, trials = 4, 300
    start = threading.Barrier(threads)
    made = [[] for _ in range(threads)]

    def work(mine):
        for trial in range(trials):
            start.wait()
            mine.append(formula(f"Exp(x * {trial}) + Square(x * {trial}) * y", ["x = Vi(3)", "y = Vj(3)"]).node)

    workers = [threading.Thread(target=work, args=(mine,)) for mine in made]
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for w in workers:
            w.start()
        for w in workers:
            w.join()
    finally:
        sys.setswitchinterval(switch)
    for same in zip(*made, strict=True):
        assert all(n is same[0] for n in same)
    assert len({id(n) for n in made[0]}) == trials


def test_formulas_that_nobody_needs_are_forgotten():
    gc.collect()
    before = len(module._nodes)
    n = formula("Exp(x * 123457) + Sum(Square(y)) / 123457", ["x = Vi(3)", "y = Vj(3)"]).node
    alive = weakref.ref(n)
    assert len(module._nodes) > before
    del n
    gc.collect()
    assert alive() is None
    assert len(module._nodes) <= before


def test_a_table_entry_of_a_dead_formula_is_not_found_again():
    for k in range(2, 2000):  # addresses are used again and again
        n = formula(f"Sin(Cos(x * {k}))", ["x = Vi(3)"]).node
        (inner,) = n.args
        assert inner.args[0].args[1].attrs == (k,)
        assert unflatten(flatten(n)) is n


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_child_can_make_formulas_whatever_the_parent_was_doing():
    with module._lock:  # held by this thread, which does not exist in the child
        held = threading.Thread(target=lambda: results.append(_child()))
        results = []
        held.start()
        held.join()
    assert results == [0]


def _child():
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is what is tried here
        pid = os.fork()
    if pid == 0:
        os._exit(0 if formula("Exp(x)", ["x = Vi(3)"]).node.op == "Exp" else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# -- order, flat form, content key -------------------------------------------------------------------------------------


@given(formulas())
def test_arguments_come_before_users_and_once(n):
    order = toposort([n])
    place = {m: k for k, m in enumerate(order)}
    assert len(place) == len(order)
    assert order[-1] is n
    assert all(place[a] < place[m] for m in order for a in m.args)


@given(formulas())
def test_flat_form_pickle_and_text_give_the_same_node(n):
    assert unflatten(flatten(n)) is n
    assert pickle.loads(pickle.dumps(n)) is n
    positions = [v.attrs[0] for v in variables(n)]
    declared = [f"Var({v.attrs[0]}, {v.dim}, {v.attrs[1]})" for v in variables(n)]
    missing = [f"Vi({k}, 1)" for k in range(max(positions, default=-1)) if k not in positions]
    assert formula(str(n), [*declared, *missing]).node is n
    assert formula(str(n), [*declared, *missing]).text == str(n)


@given(formulas(), formulas())
def test_content_keys_are_equal_where_formulas_are(a, b):
    assert (digest(a) == digest(b)) == (a is b)
    assert (str(a) == str(b)) == (a is b)


def test_the_text_names_shared_parts_once():
    n = formula("let t = Exp(x); (t * t + t) / (t * t)", ["x = Vi(3)"]).node
    assert str(n) == "let t0 = Exp(Var(0,3,0)); let t1 = Square(t0); Divide(Add(t1, t0), t1)"


IN_ANOTHER_PROCESS = """
import pickle, sys
from dred.formula.language import formula
from dred.formula.node import digest
from dred.kernel.interpret import UNROLL
from dred.kernel.lower import lower
from dred.kernel.spec import KernelSpec
node = pickle.loads(sys.stdin.buffer.read())
again = formula({text!r}, {aliases!r}).node
assert again is node
spec = KernelSpec.of(node, "Sum", 1, "float32", "float64")
kernel = lower(spec, UNROLL)
print(digest(node), spec.digest, hash("x"), node, kernel.steps, sep=chr(10))
"""


def in_another_process(n, seed, text, aliases):
    code = IN_ANOTHER_PROCESS.format(text=text, aliases=aliases)
    env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(n), capture_output=True, env=env, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().splitlines()


def test_formulas_keys_and_kernels_are_the_same_in_every_process():
    text, aliases = f"Grad({TEXT}, y, e)", [*ALIASES, "e = Vi(3)"]
    n = formula(text, aliases).node
    first, second = (in_another_process(n, seed, text, aliases) for seed in ("1", "2"))
    assert first[2] != second[2], "the processes do hash texts differently"
    del first[2], second[2]
    assert first == second
    assert first[0] == digest(n)
    assert first[2] == str(n)


# -- depth -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deep", DEEP)
def test_a_deep_formula(deep):
    text = "Sin(" * deep + "x * y" + ")" * deep
    n = formula(text, ["x = Vi(1)", "y = Vj(1)"]).node
    assert len(toposort([n])) == deep + 3
    (g,) = vjp(n, [var(0, 1, 0)], var(2, 1, 2))
    assert len(toposort([g])) > 2 * deep
    assert formula(str(g), []).node is g
    assert pickle.loads(pickle.dumps(g)) is g
    assert len(digest(g)) == 64
    x, y, e = np.array([[0.3], [0.5]]), np.array([[0.7]]), np.array([1.0])
    assert checks.reduced(g, [x, y, e], rows=(2, 1)) == pytest.approx(dense(g, [x, y, e])[:, 0], rel=1e-12)
    alive = weakref.ref(g)
    interpret._programs.clear()
    del n, g
    gc.collect()
    assert alive() is None


def test_a_deep_sum_of_many_variables():
    count = 400
    aliases = [f"v{k} = Vi({k}, 1)" for k in range(count)]
    n = formula("*".join(f"v{k}" for k in range(count)), aliases).node
    wrt = variables(n)
    gradient = vjp(n, wrt, const(1))
    assert len(toposort(gradient)) < 5 * count, "one pass over the graph: the gradient by all costs a few evaluations"


@pytest.mark.parametrize("order", [1, 2, 3])
def test_gradients_of_high_order_stay_small(order):
    aliases = ["x = Vi(3)", "y = Vj(3)", "b = Vj(1)", "g = Pm(1)", *(f"e{k} = Vi(3)" for k in range(order))]
    text, cotangent = "Exp(-g * SqDist(x, y)) * b", "1"
    for k in range(order):
        text, cotangent = f"Grad({text}, x, {cotangent})", f"e{k}"
    n = formula(text, aliases).node
    assert n.dim == 3
    assert len(toposort([n])) < (0, 20, 60, 300)[order]
