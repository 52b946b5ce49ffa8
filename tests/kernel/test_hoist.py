"""Terms of sums rewritten for speed: what leaves them, what they cost, and when a tile is done again."""

import threading

import numpy as np
import pytest

from dred.formula.language import formula
from dred.formula.oracle import dense
from dred.kernel import coefficients, cpu, cpu_calls, hoist
from dred.kernel.ir import FOLDS, IJ, walk
from dred.kernel.lower import lower
from dred.kernel.output import empty
from dred.kernel.spec import KernelSpec

ALIASES = ["x=Vi(0,3)", "y=Vj(1,3)", "b=Vj(2,1)", "g=Pm(3,1)", "e=Vi(4,1)", "v=Vi(5,40)", "w=Vj(6,40)"]
FORMULAS = ["Exp(-g*SqDist(x,y))*b", "Exp(g*SqDist(x,y))*b", "e*Exp(x+y)", "Grad(Exp(-g*SqDist(x,y))*b,x,e)", "e*(x*y)",
            "e*b*Exp(g*(x|y))/g", "e*(v|w)", "v*Exp(-SqDist(v,w))", "e*v*w*Exp(g*e*(x|y))", "Exp(x|y)+Exp(-(x|y))*e",
            "Exp(Exp(x|y))", "1/(1+Exp(g*(x|y)))", "Exp(-Sqrt(SqDist(x,y))/g)*b/e",
            "Grad(Exp(-g*SqDist(v,w))*b,v,e)"]  # fmt: skip


def made(text, dtype="float32", reduction="Sum"):
    f = formula(text, ALIASES)
    return KernelSpec.of(f.node, reduction, 1, dtype, "float64", variables=f.variables)


def data(M, N, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(dtype) for shape in ((M, 3), (N, 3), (N, 1), (1,), (M, 1), (M, 40), (N, 40))]


def fold(spec, arrays, M, N, **how):
    return cpu.fold(spec, empty(spec, M), arrays, M, N, **how)[0]


def plain(spec, arrays, M, N):
    """By the kernel with all factors inside."""
    state = empty(spec, M)
    kernel = cpu.compiled(spec, hoist=False)
    cpu._calls(kernel, arrays, state, [cpu_calls.Call.of(kernel.program.plan, 0, M, 0, N)], (0, 0), threading.Event())
    return state[0]


def count(kernel, *ops):
    return sum(e.op in ops for e in walk(kernel.steps) if e.axes == IJ)


@pytest.mark.parametrize("text", FORMULAS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rewritten_terms_have_the_same_sum(text, dtype):
    M, N = 37, 90
    spec, arrays = made(text, dtype), data(M, N, dtype)
    arrays = [a / 4 for a in arrays]
    f = formula(text, ALIASES)
    terms = np.broadcast_to(dense(f.node, arrays, (M, N)), (M, N, f.node.dim))
    scale = np.abs(terms).sum(1).T
    tolerance = {"float32": 4e-6, "float64": 1e-14}[dtype]
    for found in (fold(spec, arrays, M, N), plain(spec, arrays, M, N)):
        assert np.all(np.abs(found - terms.sum(1).T) <= tolerance * (scale + scale.max()))


def test_what_varies_with_the_row_alone_leaves_the_sum():
    kernel = lower(made("e*Sqrt(g)*Exp(-g*SqDist(x,y))*b*2"), 8, hoist=True)
    (root,) = kernel.roots
    (post,) = root.posts
    assert post.scale == 2.0**-47  # 2, and what `exp2s` is too large by
    assert {e.attr.ind for e in walk([post.factor]) if e.op == "load"} == {3, 4}
    assert not any(e.op == "load" and e.attr.ind == 4 for e in walk(root.steps))


DIFFERENCES = [
    "Exp(x|y)*b*v - Exp(x|y)*b*w", "Exp(x|y)*b*w - b*Exp(x|y)*v", "b*e*v - e*b*(-w)", "2*(x|y)*v*g - (2*w)*(x|y)*g",
    "e*b*v*(v*g) - b*e*w", "-(e*b*v) + b*e*(w*w)",
]  # fmt: skip
POWERS = ["(x|y)*((x|y)*v) - (x|y)*w", "(x|y)*w - (x|y)*((x|y)*v)"]  # a factor is there once more for rows


@pytest.mark.parametrize("text", DIFFERENCES)
def test_of_differences_of_products_one_is_left(text):
    kernel = lower(made(text), 8, hoist=True)
    (root,) = kernel.roots
    (post,) = root.posts
    assert root.loops
    assert {e.attr.ind for e in walk([post.row]) if e.op == "load"} - {3} == {5}
    assert not post.common.free
    assert not any(e.op == "load" and e.attr.ind == 5 for e in walk(root.steps))
    assert sum(e.axes == IJ and bool(e.free) for e in walk(root.steps)) == 1


@pytest.mark.parametrize("text", DIFFERENCES)
def test_for_gpus_they_are_products_with_differences(text):
    (root,) = lower(made(text), 8, hoist=True, approximate=True).roots
    pairs = [e.op for e in walk(root.steps) if e.axes == IJ and e.free]
    assert sorted(pairs) == ["fma", "sub"]


@pytest.mark.parametrize(
    "text",
    ["b*v - Exp(x|y)*w", "2*e*b*v - e*b*w", "v - w", "e*b*v*w - e*b*w", "e*b*(v*v) - e*b*v", "e*b*v - w",
     "(x|y)*v - (x|y)", "b*v - b*w", "e*b*(v - w)", *POWERS],
)  # fmt: skip
def test_other_differences_stay(text):
    kernel = lower(made(text), 8, hoist=True)
    assert not any(post.row or post.common for root in kernel.roots for post in root.posts if post)


@pytest.mark.parametrize("text", [*DIFFERENCES, *POWERS])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_differences_of_products(text, dtype):
    for M, N in (1, 1), (37, 300), (3, 9000):
        _differences_of_products(text, dtype, M, N)


def _differences_of_products(text, dtype, M, N):
    spec, arrays = made(text, dtype), [a / 4 for a in data(M, N, dtype)]
    f = formula(text, ALIASES)
    terms = np.broadcast_to(dense(f.node, arrays, (M, N)), (M, N, f.node.dim))
    products = np.abs(dense(formula(text.replace("-", "+"), ALIASES).node, [*map(np.abs, arrays)], (M, N))).sum(1).T
    found = fold(spec, arrays, M, N)
    assert np.all(np.abs(found - terms.sum(1).T) <= {"float32": 4e-6, "float64": 1e-14}[dtype] * products)
    parts = [
        cpu.folded(spec, cpu.compiled(spec), None, [(0, N)], empty(spec, M), arrays, M, threads=t)[0] for t in (1, 2)
    ]
    assert parts[0].tobytes() == parts[1].tobytes()


@pytest.mark.parametrize(
    "text", ["Exp(-SqDist(x,y))*b*w", "Exp(-SqDist(x,y))*e*b*(v-w)", "Exp(-SqDist(x,y))*b*v-Exp(-SqDist(x,y))*b*w"]
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_small_factors_of_long_vectors_do_not_underflow(text, dtype):
    """Exponentials are of 2^48, or 2^105, times their values: what makes up for that must not meet other factors."""
    arrays = data(37, 300, dtype)
    arrays[2] *= {"float32": 1e-33, "float64": 1e-297}[dtype]
    terms = dense(formula(text, ALIASES).node, [a.astype(np.longdouble) for a in arrays], (37, 300))
    found = fold(made(text, dtype), arrays, 37, 300)
    error = {"float32": 4e-6, "float64": 1e-14}[dtype]
    assert np.all(np.abs(found - terms.sum(1).T) <= error * np.abs(terms).sum(1).T)


def test_rows_that_are_not_finite_are_done_again(monkeypatch):
    """An infinite component of a row times a sum of 0 would be no number, where all products are 0 or infinite."""
    spans, arrays = again(monkeypatch), data(40, 300)
    arrays[2][:] = 1.0
    arrays[5][7, 3] = np.inf
    arrays[2][::2] = -1.0  # their sum is 0
    arrays[4][:] = 1.0
    text = "e*b*v - e*b*w"
    with np.errstate(invalid="ignore"):
        wanted = np.nansum(arrays[2] * arrays[6], 0)
    found = fold(made(text), arrays, 40, 300)
    assert spans
    assert np.isnan(found[3, 7])  # infinities of both signs
    np.testing.assert_allclose(found[:3, 7], arrays[5][7, :3] * arrays[2].sum() - wanted[:3], atol=1e-3)


def test_a_gaussian_costs_one_power_of_two():
    kernel = lower(made("Exp(-g*SqDist(x,y))*b"), 8, hoist=True)
    assert count(kernel, "exp2s_fall") == 1
    assert count(kernel, "exp") == 0
    # 3 differences, a square and 2 more, the scale, the power, and the sum: no negation, no product, no bounds
    assert sorted(e.op for e in walk(kernel.steps) if e.axes == IJ) == sorted(
        ["sub"] * 3 + ["mul", "fma", "fma", "mul", "exp2s_fall", "fma"]
    )


def test_what_components_have_in_common_is_multiplied_once():
    kernel = lower(made("Grad(Exp(-g*SqDist(x,y))*b,x,e)"), 8, hoist=True)
    assert count(kernel, "mul") == 3  # the first square, the scale of the exponent, and b
    assert count(kernel, "fma") == 2 + 3
    assert all(
        {e.attr.ind for e in walk([p.factor]) if e.op == "load"} == {3, 4} for r in kernel.roots for p in r.posts
    )


def test_factors_leave_component_loops():
    kernel = lower(made("Sum(g*b*v*w)"), 8, hoist=True)
    (fold_,) = (e for e in walk(kernel.steps) if e.op in FOLDS)
    assert fold_.args[0].op == "mul"
    assert all(a.axes != IJ for a in fold_.args[0].args)


@pytest.mark.parametrize("text", ["Abs(Exp(x|y))", "1/Exp(x|y)", "Sign(Exp(x|y)-1)", "IfElse(Exp(x|y)-1,x,y)"])
def test_where_infinity_may_be_lost_an_exponential_stays(text):
    kernel = lower(made(text), 8, hoist=True)
    assert count(kernel, "exp") == 1
    assert count(kernel, "exp2s") == 0


@pytest.mark.parametrize("reduction", ["Max", "LogSumExp", "Variance", "ArgMin", "Prod"])
def test_terms_of_other_reductions_stay(reduction):
    kernel = lower(made("e*Exp(x|y)", reduction=reduction), 8, hoist=True)
    assert not kernel.hoisted
    assert count(kernel, "exp") >= 1


# errors, special values -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_folded_scale_costs_the_argument_times_eps(dtype):
    """The error of exp(-g q) is that of its argument and two units in the last place."""
    eps = np.finfo(dtype).eps
    rng = np.random.default_rng(0)
    M = 4000
    arrays = data(M, 1, dtype)
    arrays[0] = np.zeros((M, 3), dtype)
    arrays[0][:, 0] = rng.uniform(0, 9 if dtype == "float32" else 26, M)
    arrays[1], arrays[2] = np.zeros((1, 3), dtype), np.ones((1, 1), dtype)
    for g in (1.0, 0.3, 0.77):
        arrays[3] = np.array([g], dtype)
        q = arrays[0][:, 0] * arrays[0][:, 0]  # as it is rounded
        argument = arrays[3].astype(np.longdouble) * q
        found = fold(made("Exp(-g*SqDist(x,y))*b", dtype), arrays, M, 1)[0]
        want = np.exp(-argument)
        assert np.all(np.abs(found - want) <= want * eps * (2 + 1.5 * argument) + np.finfo(dtype).smallest_subnormal)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exponentials_of_nothing_and_of_much(dtype):
    spec = made("Exp(-g*SqDist(x,y))*b", dtype)
    arrays = [
        np.zeros((1, 3), dtype),
        np.zeros((1, 3), dtype),
        np.ones((1, 1), dtype),
        np.ones(1, dtype),
        *data(1, 1)[4:],
    ]
    assert fold(spec, arrays, 1, 1) == 1
    bottom = 105 if dtype == "float32" else 747
    for q, want in [(bottom, 0), (1e30, 0), (np.inf, 0), (np.nan, np.nan)]:
        with np.errstate(over="ignore"):
            arrays[0][0, 0] = np.sqrt(np.array(q, dtype))
        np.testing.assert_array_equal(fold(spec, arrays, 1, 1).astype(dtype), [[want]])
    for exponent in (-40, 80):  # large results are those of the kernel with everything inside
        arrays[0][0, 0], arrays[3][0] = 1, -exponent
        assert fold(spec, arrays, 1, 1) == pytest.approx(np.exp(np.float64(exponent)), rel=1e-4)


@pytest.mark.parametrize("payload", [0, 1, 1954])
def test_every_nan_stays_one(payload):
    spec = made("Exp(-g*SqDist(x,y))*b")
    arrays = data(20, 30)
    arrays[1].view(np.uint32)[7, 1] = 0x7FC00000 + payload
    assert np.isnan(fold(spec, arrays, 20, 30)).all()


# tiles that are done again --------------------------------------------------------------------------------------------


def again(monkeypatch):
    """The calls of the kernel with all factors inside."""
    spans = []
    calls = cpu._calls

    def noted(kernel, arrays, state, some, *more, **named):
        if not kernel.program.hoisted:
            spans.extend(
                (*map(int, item[1:3]), *map(int, call.intervals[k]))
                for call in some
                for item in call.items
                for k in range(item[3], item[4])
            )
        return calls(kernel, arrays, state, some, *more, **named)

    monkeypatch.setattr(cpu, "_calls", noted)
    return spans


def test_finite_sums_are_done_once(monkeypatch):
    spans, arrays = again(monkeypatch), data(50, 300)
    arrays[3] = np.abs(arrays[3])
    fold(made("e*Exp(-g*SqDist(x,y))*b"), arrays, 50, 300)
    assert not spans
    arrays[3] = -arrays[3]  # a positive exponent is not expected
    fold(made("e*Exp(-g*SqDist(x,y))*b"), arrays, 50, 300)
    assert spans


def test_a_tile_that_overflows_is_done_again_and_no_other(monkeypatch):
    """The factor that has left makes the terms small: without it their sum overflows."""
    M, N = 100, 9000
    spec, arrays = made("e*Square(x+y)"), data(M, N)
    arrays[4][:] = 1e-30
    arrays[0][40] = 1e19
    spans = again(monkeypatch)
    found = fold(spec, arrays, M, N)
    assert {span[:2] for span in spans} == {(32, 48)}
    x, y, e = (arrays[k].astype(np.float64) for k in (0, 1, 4))
    np.testing.assert_allclose(found, (e * np.square(x[:, None] + y).sum(1)).T, rtol=1e-5)


def test_what_is_done_again_has_the_bits_of_the_plain_kernel(monkeypatch):
    M, N = 70, 9000
    spec, arrays = made("e*Square(x+y)"), data(M, N)
    arrays[0][20:60] = 1e19
    arrays[1][5000] = np.inf
    found, want = fold(spec, arrays, M, N), plain(spec, arrays, M, N)
    assert found[:, 16:64].tobytes() == want[:, 16:64].tobytes()
    monkeypatch.setattr(cpu_calls, "SHARE", 1.0)
    assert {fold(spec, arrays, M, N, threads=t).tobytes() for t in (1, 2, 3)} == {found.tobytes()}


@pytest.mark.parametrize("text", FORMULAS)
@pytest.mark.parametrize("seed", range(3))
def test_special_values_are_those_of_the_terms(text, seed):
    """Infinities and NaN in the data give what the kernel with all factors inside gives."""
    M, N = 37, 130
    spec, arrays = made(text), data(M, N, seed=seed)
    rng = np.random.default_rng(seed)
    for a in arrays:
        hit = rng.random(a.shape) < 0.01
        a[hit] = rng.choice([np.inf, -np.inf, np.nan, 0.0, -0.0, 1e30, 1e-40], size=hit.sum())
    found, want = fold(spec, arrays, M, N), plain(spec, arrays, M, N)
    finite = np.isfinite(want)
    assert np.isnan(found[np.isnan(want)]).all()
    np.testing.assert_array_equal(found[np.isinf(want)], want[np.isinf(want)])
    assert np.isfinite(found[finite]).all()


def forget(monkeypatch):
    """Compiled kernels, also those on disk."""
    monkeypatch.setattr(cpu, "_kernels", type(cpu._kernels)())
    monkeypatch.setenv("DRED_CACHE_DIR", "off")


def test_a_wrong_coefficient_is_noticed(monkeypatch):
    first, second, *others = coefficients.EXP2S["float32"]
    monkeypatch.setitem(coefficients.EXP2S, "float32", (first, second * (1 + 1e-5), *others))
    forget(monkeypatch)
    with pytest.raises(AssertionError):
        test_a_folded_scale_costs_the_argument_times_eps("float32")


def test_a_factor_that_is_forgotten_is_noticed(monkeypatch):
    def forgetful(graph, roots, dtype, *more):
        found = hoist.hoisted(graph, roots, dtype, *more)
        return [r._replace(posts=tuple(p and p._replace(factor=None) for p in r.posts)) for r in found]

    monkeypatch.setattr("dred.kernel.lower.hoisted", forgetful)
    forget(monkeypatch)
    with pytest.raises(AssertionError):
        test_rewritten_terms_have_the_same_sum("e*Exp(x+y)", "float32")
