"""dred.jax against JAX's own derivatives of dense arrays: run where JAX is, by `tests/test_jax.py`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import dred
from dred.errors import InputError, OptionError
from dred.jax import Genred, function
from dred.routine import Routine

M, N = 4, 3
ALIASES = ["x = Vi(2)", "y = Vj(2)", "a = Vi(1)", "b = Vj(2)", "p = Pm(2)", "g = Pm(1)"]
SCALAR, VECTOR, WEIGHT = "a + Sum(b) - g*SqDist(p*x,y)", "a*Exp(-g*SqDist(p*x,y))*b", "Exp(b)*(1+SqNorm2(x))"
EVERY = tuple(range(6))


@pytest.fixture(autouse=True)
def wide():
    """Numbers of 64 bits, but where a test asks for 32."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture
def narrow():
    jax.config.update("jax_enable_x64", False)


def arrays(dtype="float64", seed=0):
    """One for each variable."""
    rng = np.random.default_rng(seed)
    shapes = [(M, 2), (N, 2), (M, 1), (N, 2), (2,), (1,)]
    return [jnp.asarray(rng.random(shape) - 0.4).astype(dtype) for shape in shapes]


def scalar(x, y, a, b, p, g):
    distances = jnp.square((p * x)[:, None] - y).sum(-1, keepdims=True)
    return a[:, None] + b.sum(-1, keepdims=True) - g * distances


def vector(x, y, a, b, p, g):
    distances = jnp.square((p * x)[:, None] - y).sum(-1, keepdims=True)
    return a[:, None] * jnp.exp(-g * distances) * b


def weight(x, y, a, b, p, g):
    return jnp.exp(b) * (1 + jnp.square(x).sum(-1, keepdims=True)[:, None])


# name of the reduction: its formula, opt_arg, formula2, and the same of dense terms (M, N, D)
CASES = {
    "Sum": (VECTOR, None, None, lambda F, G, axis: F.sum(axis)),
    "Variance": (VECTOR, 1, None, lambda F, G, axis: F.var(axis, ddof=1)),
    "Prod": (VECTOR, None, None, lambda F, G, axis: F.prod(axis)),
    "Min": (VECTOR, None, None, lambda F, G, axis: F.min(axis)),
    "KMin": (VECTOR, 2, None, lambda F, G, axis: jnp.moveaxis(jnp.sort(F, axis), axis, 1)[:, :2]),
    "LogSumExp": (SCALAR, None, None, lambda F, G, axis: jax.nn.logsumexp(F, axis)),
    "SumSoftMaxWeight": (SCALAR, None, WEIGHT, lambda F, G, axis: (jax.nn.softmax(F, axis) * G).sum(axis)),
}


def case(name, axis=1):
    """The routine, and the same of dense arrays."""
    formula, opt_arg, formula2, reduce = CASES[name]
    terms = scalar if formula == SCALAR else vector
    routine = Genred(formula, ALIASES, name, axis=axis, opt_arg=opt_arg, formula2=formula2)
    return routine, lambda *args: reduce(terms(*args), weight(*args), axis)


def close(got, expected, rtol=1e-9):
    got, expected = jax.tree.leaves(got), jax.tree.leaves(expected)
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)


def squares(f):
    return lambda *args: (f(*args) ** 2).sum()


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_dense_arrays(name, axis):
    routine, dense = case(name, axis)
    args = arrays()
    close(routine(*args), dense(*args))
    close(*(jax.grad(squares(f), EVERY)(*args) for f in (routine, dense)))
    close(*(jax.jit(jax.value_and_grad(squares(f), EVERY))(*args) for f in (routine, dense)))


@pytest.mark.parametrize("name", ["Sum", "LogSumExp", "Prod"])
def test_differences(name):
    check_grads(case(name)[0], tuple(arrays()), order=2, modes=["rev"])


@pytest.mark.parametrize("name", ["Sum", "LogSumExp", "Variance"])
def test_second_order(name):
    routine, dense = case(name)
    args = arrays()
    expected = jax.hessian(squares(dense), EVERY)(*args)
    close(jax.jacrev(jax.jacrev(squares(routine), EVERY), EVERY)(*args), expected)
    close(jax.jit(jax.jacrev(jax.jacrev(squares(routine), EVERY), EVERY))(*args), expected)


def test_third_order():
    args = arrays()

    def thrice(f):
        first = jax.grad(squares(f))
        second = jax.grad(lambda *a: (first(*a) ** 2).sum())
        return jax.grad(lambda *a: (second(*a) ** 2).sum(), EVERY)(*args)

    close(*map(thrice, case("Sum")))


def test_batches():
    routine, dense = case("Sum")
    x, *others = arrays()
    several = jnp.stack([x, 2 * x, -x])
    for of in (lambda f: f, lambda f: jax.grad(squares(f))):
        for jit in (lambda f: f, jax.jit):
            found = [jit(jax.vmap(of(f), (0, *[None] * 5)))(several, *others) for f in (routine, dense)]
            close(*found)


LEAD = [(2, 3), (3,), (2, 1), (), (3,), (2, 1)]  # dimensions of a batch, of each variable


@pytest.mark.parametrize("bits", ["32", "64"])
@pytest.mark.parametrize("name", ["Sum", "KMin", "LogSumExp"])
def test_arrays_with_the_dimensions_of_a_batch(name, bits):
    routine, dense = case(name)
    rng = np.random.default_rng(1)
    given = [rng.random((*lead, *t.shape)) - 0.4 for lead, t in zip(LEAD, arrays(), strict=True)]
    tails = [t.ndim for t in arrays()]
    jax.config.update("jax_enable_x64", bits == "64")
    args = [*map(jnp.asarray, given)]

    def elements(*args):
        full = [jnp.broadcast_to(t, (2, 3, *t.shape[t.ndim - n :])) for t, n in zip(args, tails, strict=True)]
        return jax.vmap(jax.vmap(dense))(*full)

    rtol = 1e-9 if bits == "64" else 1e-4
    for jit in (lambda f: f, jax.jit):
        close(*(jit(f)(*args) for f in (routine, elements)), rtol)
        close(*(jit(jax.grad(squares(f), EVERY))(*args) for f in (routine, elements)), rtol)

    def twice(f):
        return jax.grad(lambda *a: sum((t**2).sum() for t in jax.grad(squares(f), EVERY)(*a)), EVERY)(*args)

    close(*map(twice, (routine, elements)), rtol)


def test_ranges():
    """Rows 0 and 1 meet columns 0 and 1, row 3 meets column 2."""
    met = np.zeros((M, N, 1))
    met[:2, :2], met[3, 2] = 1, 1
    tables = ([[0, 2], [3, 4]], [1, 2], [[0, 2], [2, 3]], [[0, 2], [2, 3]], [1, 2], [[0, 2], [3, 4]])
    ranges = dred.Ranges.of(tuple(map(np.array, tables)), M, N)
    routine, _ = case("Sum")
    args = arrays()

    def some(*a):
        return routine(*a, ranges=ranges)

    def dense(*a):
        return (met * vector(*a)).sum(1)

    close(some(*args), dense(*args))
    close(*(jax.jit(jax.grad(squares(f), EVERY))(*args) for f in (some, dense)))
    text = "ranges: pass those that dred.Ranges.of(ranges, M, N) has made and checked"
    refused(OptionError, text, lambda: routine(*args, ranges=tables))


def test_inside_of_loops():
    x, *others = arrays()

    def descend(f):
        step = jax.grad(squares(f))
        return jax.lax.scan(lambda t, _: (t - 0.1 * step(t, *others), None), x, length=5)[0]

    close(*map(descend, case("Sum")))


def test_a_model_is_fitted():
    """Places, weights and width of Gaussians, by Newton's method with Hessians of reverse mode over reverse mode."""
    points = jnp.linspace(0, 1, 100)[:, None]
    field = Genred("Exp(-Exp(g)*SqDist(x,y))*b", ["x = Vi(1)", "y = Vj(1)", "b = Vj(1)", "g = Pm(1)"], axis=1)
    truth = jnp.array([0.1, 0.8, 1.0, -2.0, 3.0])

    def of(v):
        return field(points, v[:2, None], v[2:4, None], v[4:])

    target = of(truth)
    gradient = jax.jit(jax.jacrev(lambda v: ((of(v) - target) ** 2).sum()))
    hessian = jax.jit(jax.jacrev(gradient))
    v = truth + jnp.array([0.01, -0.01, 0.02, 0.01, -0.02])
    assert float(abs(gradient(v)).max()) > 1e-2
    for _ in range(6):
        v = v - jnp.linalg.solve(hessian(v), gradient(v))
    np.testing.assert_allclose(v, truth, rtol=1e-9)


def test_only_what_is_asked_for_is_computed(monkeypatch):
    calls = []
    call = Routine.__call__
    monkeypatch.setattr(
        Routine, "__call__", lambda self, *args, **more: calls.append(len(self.reduced)) or call(self, *args, **more)
    )
    routine, _ = case("Sum")
    jax.grad(squares(routine), (0, 5))(*arrays())
    assert calls == [1, 2]  # those by x and g leave the same index: one sweep
    calls.clear()
    jax.block_until_ready(jax.jit(jax.grad(squares(routine), 1))(*arrays()))
    assert calls == [1, 1]


def test_results_that_nobody_reads_send_nothing():
    routine = Genred([("Log(SqDist(x,y))", "Sum"), ("SqDist(x,y)", "Sum")], ["x = Vi(1)", "y = Vj(1)"], axis=1)
    y = jnp.array([[0.0], [1.0]])
    assert jax.grad(lambda x: routine(x, y)[1].sum())(jnp.zeros((2, 1))).tolist() == [[-2.0], [-2.0]]


ITEMS = [("SqDist(x,y)", "KMin_ArgKMin", 2), ("SqDist(x,y)", "ArgMin"), ("x - y", "Count"), ("x < y", "All")]


@pytest.mark.parametrize("jit", [lambda f: f, jax.jit], ids=["", "jit"])
@pytest.mark.parametrize("whole", ["int32", "int64"])
def test_row_numbers_and_counts_are_constants(whole, jit):
    jax.config.update("jax_enable_x64", whole == "int64")
    x, y = jnp.array([[0.0], [4.0]]), jnp.array([[1.0], [2.0], [6.0]])
    routine = jit(Genred(ITEMS, ["x = Vi(1)", "y = Vj(1)"], axis=1))
    (values, rows), first, count, every = routine(x, y)
    assert values.tolist() == [[1.0, 4.0], [4.0, 4.0]]
    assert (rows.tolist(), first.tolist()) == ([[0, 1], [1, 2]], [[0], [1]])
    assert (count.tolist(), every.tolist()) == ([[3], [3]], [[True], [False]])
    assert [str(t.dtype) for t in (rows, first, count, every)] == [whole, whole, whole, "bool"]

    def both(x):
        (values, rows), first, count, _ = routine(x, y)
        return values.sum() + (rows.sum() + first.sum() + count.sum()).astype(values.dtype)

    assert jax.grad(both)(x).tolist() == [[-6.0], [0.0]]
    _, pull = jax.vjp(routine, x, y)
    zero = [np.zeros(t.shape, jax.dtypes.float0) for t in (rows, first, count, every)]
    by_x, by_y = pull(((jnp.ones_like(values), zero[0]), *zero[1:]))
    assert (by_x.tolist(), by_y.tolist()) == ([[-6.0], [0.0]], [[2.0], [0.0], [4.0]])
    assert jax.grad(lambda x: routine(x, y)[1].sum().astype(x.dtype))(x).tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize(("dtype", "rtol"), [("float16", 4e-3), ("bfloat16", 3e-2), ("float32", 1e-5)])
@pytest.mark.parametrize("bits", ["32", "64"])
def test_types(dtype, rtol, bits):
    exact = arrays()
    routine, dense = case("Sum")
    wanted = [np.asarray(t) for t in jax.grad(squares(dense), EVERY)(*exact)]
    jax.config.update("jax_enable_x64", bits == "64")
    args = arrays(dtype)
    assert routine(*args).dtype == jax.jit(routine)(*args).dtype == dtype
    for f in (jax.grad(squares(routine), EVERY), jax.jit(jax.grad(squares(routine), EVERY))):
        found = f(*args)
        assert [str(t.dtype) for t in found] == [dtype] * 6
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_allclose(a.astype("float32"), b, rtol=rtol, atol=rtol * abs(b).max())


def test_parameters_are_added_up_in_float64(narrow):
    """A million rows of 0.1: an error of 1e-6 is more than rounding the sum to float32, and less than adding in it."""
    x, g = jnp.full((1_000_000, 1), 0.1, "float32"), jnp.ones(1, "float32")
    routine = Genred("g*x", ["x = Vi(1)", "g = Pm(1)"], axis=1)
    assert float(jax.grad(lambda g: routine(x, g).sum())(g)[0]) == pytest.approx(1e6 * float(np.float32(0.1)), rel=1e-7)


def test_large_arrays_inside_jit():
    x = jnp.asarray(np.random.default_rng(0).random((300_000, 3)))
    routine = Genred("Exp(-SqDist(x,y))", ["x = Vi(3)", "y = Vj(3)"], axis=0)
    found = jax.jit(lambda x: routine(2 * x, x[:2]) + 1)(x)
    distances = ((2 * np.asarray(x)[:, None] - np.asarray(x)[:2]) ** 2).sum(-1)
    np.testing.assert_allclose(found[:, 0], np.exp(-distances).sum(0) + 1, rtol=1e-12)


def test_functions_of_other_routines():
    aliases = ["x = Vi(1)", "y = Vj(1)", "g = Pm(1)"]
    x, y, g = arrays()[2], arrays()[3][:, :1], arrays()[5]
    found = function(dred.Reduction("LogSumExp_Reduction(g*x*y, 0)", aliases))
    close(found(x, y, g), jax.nn.logsumexp(g * x * y.T, 1)[:, None])
    by_g = function(dred.Genred("Exp(-g*SqDist(x,y))", aliases, axis=1).grad("g"))

    def dense(x, y, g, e):
        return jax.grad(lambda g: (e * jnp.exp(-g * (x - y.T) ** 2).sum(1)[:, None]).sum())(g)

    args = (x, y, g, 1 + x)
    close(by_g(*args), dense(*args))
    for jit in (lambda f: f, jax.jit):
        close(*(jit(jax.grad(squares(f), (0, 1, 2, 3)))(*args) for f in (by_g, dense)))


def test_numpy_arrays_and_no_variables():
    x = np.ones((2, 1))
    found = Genred("x * y", ["x = Vi(1)", "y = Vj(1)"], axis=1)(x, x)
    assert isinstance(found, jax.Array)
    assert found.tolist() == [[2.0], [2.0]]
    assert Genred("IndexI()+IndexJ()+1", [], axis=1)().tolist() == [[1.0]]


# -- refused -----------------------------------------------------------------------------------------------------------


def refused(error, text, call, *args):
    with pytest.raises(error) as caught:
        call(*args)
    assert (type(caught.value), str(caught.value)) == (error, text)


@pytest.mark.parametrize("jit", [lambda f: f, jax.jit], ids=["", "jit"])
def test_what_does_not_fit_is_refused_when_it_is_traced(jit):
    routine = jit(Genred("x * y", ["x = Vi(1)", "y = Vj(1)"], axis=1))
    x = jnp.ones((2, 1))
    refused(InputError, "the routine takes 2 arrays (x, y), got 1", routine, x)
    refused(InputError, "argument 1 (y) has shape (2, 2): expected (N, 1)", routine, x, jnp.ones((2, 2)))
    refused(
        InputError,
        "argument 1 (y) is no array of JAX or NumPy but builtins.list",
        Genred("x * y", ["x = Vi(1)", "y = Vj(1)"], axis=1),
        x,
        [1.0],
    )


def test_forward_mode_is_refused():
    routine, _ = case("Sum")
    with pytest.raises(TypeError, match="forward-mode"):
        jax.hessian(squares(routine))(*arrays())


def test_tracers_are_not_lost():
    plain = dred.Genred("x * y", ["x = Vi(1)", "y = Vj(1)"], axis=1)
    x = jnp.ones((2, 1))
    assert type(plain(x, x)) is np.ndarray
    for f in (jax.jit(lambda x: plain(x, x)), jax.grad(lambda x: plain(x, x).sum()), jax.vmap(lambda x: plain(x, x))):
        with pytest.raises(InputError, match=r"argument 0 \(x\) is a .*Tracer that JAX traces: use Genred or function"):
            f(x)
