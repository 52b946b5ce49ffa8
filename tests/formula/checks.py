"""What every entry of the table of operations must pass: each check takes an entry and raises where it is wrong."""

import itertools

import numpy as np

from dred.formula import derive
from dred.formula.node import ROW_NUMBERS, I, J, const, intern, var
from dred.formula.oracle import dense
from dred.formula.rewrite import build, expand
from dred.kernel import engine
from dred.kernel.spec import KernelSpec

M, N = 5, 4
STEP = 1e-5  # of central differences
ROUNDING = {"float32": 2e-6, "float64": 1e-13}
EXACT = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 2.5, -2.5)  # sums and products of these are exact
EXTREMES = (*EXACT, 1e-30, 1e30)


def reduced(node, arrays, axis=1, dtype="float64", backend="numpy", rows=(M, N)):
    """The sum of a formula over one index, by its kernel."""
    kept, gone = rows if axis == 1 else rows[::-1]
    spec = KernelSpec.of(node, "Sum", axis, dtype, "float64")
    arrays = [np.ascontiguousarray(a, dtype) for a in arrays]
    state = engine.fold(spec, backend, engine.empty(spec, kept), arrays, kept, gone)
    return engine.finalize(spec, state, engine.Output.of("Sum"))[0]


def example(op):
    """Dims and attributes of a well-formed call."""
    return op.example or ((3,) * len(op.args), ())


def declared(dims, cats=(0, 1, 2)):
    """One variable per argument: of i, of j, a parameter, of i, ..."""
    return [var(k, dim, cats[k % len(cats)]) for k, dim in enumerate(dims)]


def sampled(op, variables, rng):
    """Random values of the variables, inside the domain of the entry."""
    lows_highs = op.domain or ((-2.0, 2.0),) * len(variables)
    shapes = [((M, v.dim), (N, v.dim), (v.dim,))[v.attrs[1]] for v in variables]
    return [rng.uniform(low, high, shape) for (low, high), shape in zip(lows_highs, shapes, strict=True)]


def moves(op, arrays, rng):
    """Random directions in which the arguments are moved; one whose domain is a point stays there."""
    free = [np.subtract(high, low) > 0 for low, high in op.domain] or [True] * len(arrays)
    return [rng.uniform(-1, 1, a.shape) * f for a, f in zip(arrays, free, strict=True)]


def numbers(op):
    """The row numbers of every pair, where the operation is one."""
    return {I: np.arange(M)[:, None, None], J: np.arange(N)[None, :, None]}.get(ROW_NUMBERS.get(op.name))


def paired(arrays, variables):
    """Arrays (M or 1, N or 1, dim), as the references take them."""
    axis = {0: (slice(None), None), 1: (None, slice(None)), 2: (None, None)}
    return [np.asarray(a, np.float64)[axis[v.attrs[1]]] for a, v in zip(arrays, variables, strict=True)]


def reference(op, arrays, variables, attrs):
    """The entry's own reference at every pair: (M, N, dim)."""
    with np.errstate(all="ignore"):
        given = paired(arrays, variables) if numbers(op) is None else [numbers(op)]
        values = np.asarray(op.numpy(*given, *attrs), np.float64)
    return np.broadcast_to(values, (M, N, values.shape[-1]))


def close(got, wanted, tolerance, scale=None):
    scale = np.abs(wanted) if scale is None else scale
    assert np.shape(got) == np.shape(wanted)
    np.testing.assert_array_less(np.abs(got - wanted), tolerance * (1 + scale))


# -- values ------------------------------------------------------------------------------------------------------------


def check_value(op, dtype="float64", axis=1, dims=None):
    """Kernel against reference, summed over one index."""
    standard, attrs = example(op)
    variables = declared(dims or standard)
    node = expand(op.name, variables, attrs)
    arrays = [a.astype(dtype) for a in sampled(op, variables, np.random.default_rng(1))]
    wanted = reference(op, arrays, variables, attrs)
    assert wanted.shape[-1] == node.dim
    close(dense(node, arrays, (M, N)) + np.zeros_like(wanted), wanted, 1e-13)
    close(reduced(node, arrays, axis, dtype), wanted.sum(axis), ROUNDING[dtype], np.abs(wanted).sum(axis))


def check_special(op, dtype="float64", backend="numpy"):
    """The special values that the entry lists, by kernel and by reference."""
    _, attrs = example(op)
    for given, wanted in op.special:
        variables = declared((1,) * len(given), (0,))
        arrays = [np.full((1, 1), g, dtype) for g in given]  # one row, one component
        got = reduced(expand(op.name, variables, attrs), arrays, dtype=dtype, backend=backend, rows=(1, 1))
        wanted = np.array([[wanted]], dtype)
        np.testing.assert_array_equal(got, wanted)
        with np.errstate(all="ignore"):
            np.testing.assert_array_equal(np.asarray(op.numpy(*arrays, *attrs), dtype), wanted)


def check_extremes(op, dtype="float64", backend="numpy"):
    """NaN, infinities and zeros in every combination, by kernel and by reference; tiny and huge values where one
    operation rounds once."""
    dims, attrs = example(op)
    if op.dim is None and not op.macro:  # each component for itself
        dims = (1,) * len(dims)
    rng = np.random.default_rng(2)
    few = sum(dims) <= 2
    values = EXACT if op.macro else EXTREMES
    rows = list(itertools.product(values, repeat=sum(dims))) if few else rng.choice(EXACT, (1000, sum(dims)))
    arrays = np.split(np.array(rows, dtype), np.cumsum(dims)[:-1], axis=1)
    got = reduced(
        expand(op.name, declared(dims, (0,)), attrs), arrays, dtype=dtype, backend=backend, rows=(len(rows), 1)
    )
    with np.errstate(all="ignore"):
        wanted = np.asarray(op.numpy(*arrays, *attrs), dtype)
    np.testing.assert_allclose(got, wanted, rtol=4 * np.finfo(dtype).eps, atol=0)


# -- derivatives -------------------------------------------------------------------------------------------------------


def directional(op, dims=None):
    """A call, its value `(F | e)` as a node, its derivative along directions `u`, and arrays for all variables.

    The variables are the arguments, then the cotangent e, then one direction per argument.
    """
    standard, attrs = example(op)
    variables = declared(dims or standard)
    node = expand(op.name, variables, attrs)
    n = len(variables)
    e = var(n, node.dim, 2)
    directions = [var(n + 1 + k, v.dim, v.attrs[1]) for k, v in enumerate(variables)]
    gradient = derive.vjp(node, variables, e)
    assert [g.dim for g in gradient] == [v.dim for v in variables]
    slope = total(intern("Scalprod", (g, u), (), 1) for g, u in zip(gradient, directions, strict=True))
    rng = np.random.default_rng(3)
    values = sampled(op, variables, rng)
    arrays = [*values, rng.uniform(-1, 1, node.dim), *moves(op, values, rng)]
    return node, variables, e, slope, arrays


def total(nodes):
    """Their sum; interned as it is, so that no rule of rewriting hides a wrong one."""
    nodes = list(nodes)
    out = nodes[0]
    for n in nodes[1:]:
        out = intern("Add", (out, n), (), max(out.dim, n.dim))
    return out


def check_gradient(op, dims=None):
    """Reverse mode, through the kernel, against central differences of the reference in a random direction."""
    _, variables, _, slope, arrays = directional(op, dims)
    n = len(variables)
    attrs = example(op)[1]

    def value(step):
        moved = [a + step * u for a, u in zip(arrays[:n], arrays[n + 1 :], strict=True)]
        return (reference(op, moved, variables, attrs) * arrays[n]).sum(-1)

    wanted = (value(STEP) - value(-STEP)) / (2 * STEP)
    close(dense(slope, arrays)[..., 0] + np.zeros((M, N)), wanted, 1e-7)
    close(reduced(slope, arrays)[:, 0], wanted.sum(1), 1e-7)


def check_second_order(op):
    """The gradient of the gradient, also with respect to the cotangent, against central differences of the gradient."""
    _, variables, e, slope, arrays = directional(op)
    n = len(variables)
    moving = [*variables, e]
    rng = np.random.default_rng(4)
    moved_by = [*moves(op, arrays[:n], rng), rng.uniform(-1, 1, np.shape(arrays[n]))]
    news = [var(len(arrays) + k, v.dim, v.attrs[1]) for k, v in enumerate(moving)]
    second = derive.vjp(slope, moving, const(1))
    node = total(intern("Scalprod", (g, w), (), 1) for g, w in zip(second, news, strict=True))

    def value(step):
        moved = [a + step * w for a, w in zip(arrays[: n + 1], moved_by, strict=True)]
        return dense(slope, [*moved, *arrays[n + 1 :]])[..., 0] + np.zeros((M, N))

    wanted = (value(STEP) - value(-STEP)) / (2 * STEP)
    everything = [*arrays, *moved_by]
    close(reduced(node, everything)[:, 0], wanted.sum(1), 1e-6)


def check_forward(op, dims=None):
    """Forward mode against reverse mode, <e, J u> = <J^T e, u>, through the oracle and the kernel."""
    node, variables, e, slope, arrays = directional(op, dims)
    n = len(variables)
    directions = [var(n + 1 + k, v.dim, v.attrs[1]) for k, v in enumerate(variables)]
    forward = intern("Scalprod", (e, derive.jvp(node, variables, directions)), (), 1)
    close(dense(forward, arrays) + np.zeros((M, N, 1)), dense(slope, arrays) + np.zeros((M, N, 1)), 1e-12)
    close(reduced(forward, arrays), reduced(slope, arrays), 1e-12)


def check_forward_of_gradient(op):
    """Forward over reverse mode against central differences of the gradient."""
    _, variables, e, slope, arrays = directional(op)
    n = len(variables)
    moving = [*variables, e]
    rng = np.random.default_rng(4)
    moved_by = [*moves(op, arrays[:n], rng), rng.uniform(-1, 1, np.shape(arrays[n]))]
    news = [var(len(arrays) + k, v.dim, v.attrs[1]) for k, v in enumerate(moving)]
    node = derive.jvp(slope, moving, news)

    def value(step):
        moved = [a + step * w for a, w in zip(arrays[: n + 1], moved_by, strict=True)]
        return dense(slope, [*moved, *arrays[n + 1 :]])[..., 0] + np.zeros((M, N))

    wanted = (value(STEP) - value(-STEP)) / (2 * STEP)
    close(dense(node, [*arrays, *moved_by])[..., 0] + np.zeros((M, N)), wanted, 1e-6)


def check_adjoint(op):
    """<A v, w> = <v, A^T w> for an operation whose change with each argument is linear: A v = op(v) - op(0)."""
    dims, attrs = example(op)
    for k in range(len(op.args)):
        variables = declared(dims, (2,))
        node = build(op.name, variables, attrs)
        w = var(len(dims), node.dim, 2)
        (back,) = derive.vjp(node, [variables[k]], w)
        rng = np.random.default_rng(5)
        arrays = [rng.uniform(-1, 1, d) for d in (*dims, node.dim)]
        nothing = [0 * a if j == k else a for j, a in enumerate(arrays)]
        image = dense(node, arrays)[0, 0] - dense(node, nothing)[0, 0]
        pulled = dense(back, arrays)[0, 0]
        np.testing.assert_allclose(image @ arrays[-1], arrays[k] @ pulled, rtol=1e-12)
