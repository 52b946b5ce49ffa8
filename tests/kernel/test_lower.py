"""Lowering: every value at the level it varies with, vectors unrolled or in loops, loops cut where arguments meet."""

import pytest

from dred.errors import LimitError
from dred.formula.language import formula
from dred.formula.node import I, J
from dred.kernel.flat import counted
from dred.kernel.ir import IJ, Index, Loop, walk
from dred.kernel.lower import lower
from dred.kernel.spec import KernelSpec

ALIASES = ["x = Vi(3)", "y = Vj(3)", "a = Vj(1)", "p = Pm(1)", "u = Vi(40)", "v = Vj(40)", "w = Vj(25)"]


def kernel(text, axis=1, unroll=16, dtype="float32"):
    return lower(KernelSpec.of(formula(text, ALIASES).node, "Sum", axis, dtype, "float64"), unroll)


def ops(e):
    return sorted(n.op for n in walk([e]) if n.op not in ("load", "const", "state", "other"))


def pair_ops(k):
    """What is computed for every pair."""
    tops = k.steps
    staged = {e.id for e, _ in (*k.slots_i, *k.slots_j)}
    return sorted(e.op for e in walk(tops) if e.axes == IJ and e.id not in staged)


# -- levels ------------------------------------------------------------------------------------------------------------


def test_what_depends_on_one_index_is_staged():
    k = kernel("Exp(x) * Sin(a) + p * x")
    assert {op for e, _ in k.slots_i for op in ops(e)} == {"exp", "mul"}
    assert {op for e, _ in k.slots_j for op in ops(e)} == {"sin"}
    assert set(pair_ops(k)) <= {"mul", "add", "fma"}


def test_what_depends_on_no_index_is_computed_once():
    k = kernel("Exp(p) * (x + y)")
    assert [ops(e) for e in k.once] == [["exp"]]
    assert all(e.axes == 0 and not e.free for e in k.once)


@pytest.mark.parametrize("axis", [0, 1])
def test_the_kept_index_is_the_kernels_i(axis):
    k = kernel("x * a", axis)
    kept, reduced = (I, J) if axis == 1 else (J, I)
    assert set(k.loads) == {(0, 3, kept), (2, 1, reduced)}


def test_shared_parts_are_computed_once():
    k = kernel("let t = Exp(x - y); t * t + t")
    assert pair_ops(k).count("exp") == 3  # one for each component


def test_a_scalar_is_computed_once_for_all_components():
    k = kernel("Exp(-SqDist(x, y)) * y")
    assert pair_ops(k).count("exp") == 1


def test_slots_do_not_overlap_and_fill_the_record():
    k = kernel("Exp(u) * v + Sin(x | x) * a")
    for slots, size in ((k.slots_i, k.size_i), (k.slots_j, k.size_j)):
        at = 0
        for e, offset in slots:
            assert offset == at
            for loop in e.free:
                assert loop.length > 16
                at += loop.length
            at += not e.free
        assert at == size


# -- fma: only where a product at pair level is added ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "fused"),
    [("a * Sum(x)", 1), ("(x | y)", 2), ("Sum(x)", 0), ("a + p", 0), ("Sum(x + y)", 0), ("Exp(a * Sum(x))", 0)],
)
def test_where_products_are_fused(text, fused):
    assert pair_ops(kernel(text)).count("fma") == fused


# -- vectors -----------------------------------------------------------------------------------------------------------


def covered(k):
    """Components of the roots."""
    return sorted(c for root in k.roots for c, _ in counted(root))


@pytest.mark.parametrize("unroll", [1, 2, 3, 16, 40, 100])
@pytest.mark.parametrize(
    "text",
    ["x + y", "u * v", "Concat(u, v)", "Concat(u, Concat(w, x))", "Extract(u, 7, 25) * w", "ExtractT(w, 9, 40) + u",
     "ElemT(a, 40, 17) * u", "Concat(Concat(u, w), x) * Concat(w, Concat(x, v))", "TensorProd(u, w)",
     "MatVecMult(TensorProd(u, v), w * Elem(u, 0))", "Kron(Extract(u, 0, 12), Extract(v, 0, 8), [3, 4], [2, 4])",
     "TensorProd(x, Concat(y, a))", "ComplexMult(u, v)", "Extract(TensorProd(u, v), 39, 300)", "OneHot(a, 40)"],
)  # fmt: skip
def test_roots_cover_every_component_once(text, unroll):
    k = kernel(text, unroll=unroll)
    assert covered(k) == list(range(k.fields[0].size))
    for r in k.roots:
        assert r.terms[0].free <= set(r.loops)


def test_short_vectors_are_unrolled_and_long_ones_are_not():
    assert not any(r.loops for r in kernel("x + y").roots)
    (root,) = kernel("u + v").roots
    assert root.loops == (Loop(0, 40),)
    assert not kernel("(x | y)").folds
    assert [loop.length for loop, _ in kernel("(u | v)").folds] == [40]


def test_size_does_not_grow_with_the_dimension():
    sizes = [len(walk(k.steps)) for k in (kernel("Exp(-SqDist(u, v)) * v", unroll=n) for n in (16, 17))]
    assert sizes[0] == sizes[1] < 25


def test_loops_are_cut_where_arguments_meet():
    k = kernel("Concat(u, w)")
    assert [(r.index.offset, r.loops) for r in k.roots] == [(0, (Loop(0, 40),)), (40, (Loop(0, 25),))]
    inner = kernel("Sum(Exp(Concat(u, w) * (x | y)))")
    assert sorted(loop.length for loop, _ in inner.folds) == [25, 40]


def test_equal_sums_share_a_loop():
    k = kernel("(u | v) + Sum(Exp(u - v))")
    ((loop, level),) = k.folds
    assert (loop, level, len(k.folds[loop, level])) == (Loop(0, 40), 0, 2)


def test_sums_of_sums_are_on_a_higher_level():
    k = kernel("Sum(u * (u | v) + v)")
    assert sorted(level for _, level in k.folds) == [0, 1]


def test_products_of_tensors_are_nested_loops():
    (root,) = kernel("TensorProd(u, w)").roots
    assert root.index == Index(0, ((Loop(0, 40), 25), (Loop(1, 25), 1)))
    k = kernel("TensorDot(TensorProd(u, v), w, [40, 40], [25], [], [])")
    assert [r.loops for r in k.roots] == [(Loop(0, 40), Loop(1, 40), Loop(2, 25))]
    assert k.size_i <= 40, "records hold vectors, never their products"
    assert k.size_j <= 65


def test_contractions_are_nested_sums():
    k = kernel("(MatVecMult(TensorProd(u, v), u - v) | v)")
    assert {loop for loop, _ in k.folds} == {Loop(0, 40), Loop(1, 40)}


def test_real_and_imaginary_parts_take_turns():
    k = kernel("ComplexMult(u, v)")
    assert [(r.index.offset, r.loops) for r in k.roots] == [(0, (Loop(0, 20),)), (1, (Loop(0, 20),))]
    assert {c for r in k.roots for _, c in r.index.terms} == {2}


def test_a_vector_that_changes_its_order_too_often_is_refused():
    """Rows of 3 of an array whose rows have 25."""
    text = "MatVecMult(Extract(TensorProd(TensorProd(u, v), w), 1, 39999), Extract(v, 0, 3))"
    with pytest.raises(LimitError, match="the kernel would have more than 2000 loops"):
        kernel(text, unroll=1)


# -- row numbers -------------------------------------------------------------------------------------------------------


def numbers(k):
    return sorted(e.op for e in walk(k.steps) if e.result == "number")


def test_row_numbers_stay_integers_among_themselves():
    k = kernel("(IndexI() + 3 < IndexJ() - IndexI()) * a")
    assert numbers(k) == ["number_add", "number_sub", "row", "row", "whole"]
    assert "number_lt" in pair_ops(k)
    assert "number" not in pair_ops(k)


def test_row_numbers_become_values_elsewhere():
    assert "number" in pair_ops(kernel("Abs(IndexI() - IndexJ()) * a"))
    assert pair_ops(kernel("IndexI() * 2 < a")).count("number") == 0  # of one row alone: a value in its record
    assert numbers(kernel("IndexI() < a / 2")) == ["row"]


def test_row_numbers_are_in_no_record():
    k = kernel("(IndexI() + 3 == IndexJ()) * IndexJ()")
    assert all(e.result != "number" for e, _ in (*k.slots_i, *k.slots_j))


def test_many_pieces():
    count = 60
    aliases = [f"v{k} = Vi({k}, {3 + k % 4})" for k in range(count)]
    text = "v0"
    for k in range(1, count):
        text = f"Concat({text}, v{k})"
    node = formula(f"Sum(Square({text}))", aliases).node
    k = lower(KernelSpec.of(node, "Sum", 1, "float64", "float64"), 2)
    assert {load[0] for load in k.loads} == set(range(count))


def test_pieces_beyond_the_depth_of_recursion():
    doublings = "".join(f"let t{k + 1} = Concat(t{k}, t{k} * b); " for k in range(10))
    node = formula(f"let t0 = s; {doublings} Sum(Exp(t10))", ["s = Vi(2)", "b = Vj(1)"]).node
    k = lower(KernelSpec.of(node, "Sum", 1, "float64", "float64"), 1)
    assert pair_ops(k).count("fold") == 10, "1024 pieces, of which 10 differ and vary with both indices"


# -- one text in every process -----------------------------------------------------------------------------------------


def test_lowering_twice_gives_the_same_expressions():
    text = "Grad(Exp(-SqDist(x, y)) * a, y, p)"
    one, two = kernel(text), kernel(text)
    assert repr(one.steps) == repr(two.steps)
    assert [e.id for e in walk(one.roots[0].steps)] == [e.id for e in walk(two.roots[0].steps)]


def test_arguments_are_created_before_their_users():
    k = kernel("Grad(Exp(-SqDist(u, v)) * a, v, p)")
    for e in walk(k.steps):
        assert all(a.id < e.id for a in e.args)


def test_positions():
    index = Index(3, ((Loop(0, 5), 2),))
    assert index.last == 11
    assert index.shifted(-3) == Index(0, index.terms)
