"""dred.torch against autograd's own checks and dense tensors: run where PyTorch is, by `tests/test_torch.py`."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch.autograd.gradcheck import GradcheckError

import dred
from dred import autodiff
from dred.errors import DtypeError, InputError, OptionError
from dred.routine import Routine
from dred.torch import ComplexLazyTensor, Genred, LazyTensor, Pm, Vi, Vj, function

# torch itself still calls what it deprecates
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::FutureWarning:torch")

M, N = 4, 3
ALIASES = ["x = Vi(2)", "y = Vj(2)", "a = Vi(1)", "b = Vj(2)", "p = Pm(2)", "g = Pm(1)"]
SCALAR, VECTOR, WEIGHT = "a + Sum(b) - g*SqDist(p*x,y)", "a*Exp(-g*SqDist(p*x,y))*b", "Exp(b)*(1+SqNorm2(x))"


def arrays(dtype=torch.float64, seed=0, grad=True):
    """One for each variable."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(M, 2), (N, 2), (M, 1), (N, 2), (2,), (1,)]
    found = [torch.rand(shape, generator=generator, dtype=torch.float64).sub(0.4).to(dtype) for shape in shapes]
    return [each.requires_grad_(grad) for each in found]


def scalar(x, y, a, b, p, g):
    distances = ((p * x)[:, None] - y).square().sum(-1, keepdim=True)
    return a[:, None] + b.sum(-1, keepdim=True) - g * distances


def vector(x, y, a, b, p, g):
    distances = ((p * x)[:, None] - y).square().sum(-1, keepdim=True)
    return a[:, None] * torch.exp(-g * distances) * b


def weight(x, y, a, b, p, g):
    return torch.exp(b) * (1 + x.square().sum(-1, keepdim=True)[:, None])


def smallest(F, G, dim):
    found = F.sort(dim).values.narrow(dim, 0, 2)
    return found if dim else found.transpose(0, 1)


def shifted(F, G, dim):
    m = F.amax(dim)
    return torch.cat([m, torch.exp(F - m.unsqueeze(dim)).sum(dim)], -1)


# name of the reduction: its formula, opt_arg, formula2, and the same of dense terms (M, N, D)
CASES = {
    "Sum": (VECTOR, None, None, lambda F, G, dim: F.sum(dim)),
    "Mean": (VECTOR, None, None, lambda F, G, dim: F.mean(dim)),
    "Variance": (VECTOR, 1, None, lambda F, G, dim: F.var(dim, correction=1)),
    "Prod": (VECTOR, None, None, lambda F, G, dim: F.prod(dim)),
    "Min": (VECTOR, None, None, lambda F, G, dim: F.amin(dim)),
    "Max": (VECTOR, None, None, lambda F, G, dim: F.amax(dim)),
    "KMin": (VECTOR, 2, None, smallest),
    "LogSumExp": (SCALAR, None, None, lambda F, G, dim: F.logsumexp(dim)),
    "LogSumExpWeight": (SCALAR, None, WEIGHT, lambda F, G, dim: (F + G.log()).logsumexp(dim)),
    "SumSoftMaxWeight": (SCALAR, None, WEIGHT, lambda F, G, dim: (F.softmax(dim) * G).sum(dim)),
    "Max_SumShiftExp": (SCALAR, None, None, shifted),
}


def case(name, axis):
    """The routine, and the same of dense tensors."""
    formula, opt_arg, formula2, reduce = CASES[name]
    terms = scalar if formula == SCALAR else vector
    routine = Genred(formula, ALIASES, name, axis=axis, opt_arg=opt_arg, formula2=formula2)
    return routine, lambda *args: reduce(terms(*args), weight(*args), axis)


def close(got, expected, rtol=1e-9):
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol)


axes = pytest.mark.parametrize("axis", [0, 1])
reductions = pytest.mark.parametrize("name", CASES)


# -- gradients ---------------------------------------------------------------------------------------------------------


@axes
@reductions
def test_values_and_gradients_are_those_of_dense_tensors(name, axis):
    routine, dense = case(name, axis)
    args = arrays()
    got, expected = routine(*args), dense(*args)
    close([got], [expected])
    e = torch.randn(got.shape, dtype=got.dtype, generator=torch.Generator().manual_seed(1))
    gradients = [torch.autograd.grad((e * out).sum(), args, create_graph=True, materialize_grads=True)
                 for out in (got, expected)]  # fmt: skip
    close(*gradients)
    close(*(torch.autograd.grad(sum(each.pow(3).sum() for each in found), args, materialize_grads=True)
            for found in gradients))  # fmt: skip


@axes
@reductions
def test_gradcheck(name, axis, tiny):
    routine, _ = case(name, axis)
    assert torch.autograd.gradcheck(routine, arrays())
    quick = {"fast_mode": True, "check_undefined_grad": name == "Sum"}  # all tensors in one random direction
    assert torch.autograd.gradgradcheck(routine, arrays(), **quick)


def test_gradcheck_of_compiled_kernels():
    routine, _ = case("Sum", 1)
    assert torch.autograd.gradcheck(routine, arrays())
    assert torch.autograd.gradgradcheck(routine, arrays())


@axes
@pytest.mark.parametrize("name", ["Sum", "LogSumExp", "KMin"])
def test_forward_mode(name, axis, tiny):
    routine, _ = case(name, axis)
    assert torch.autograd.gradcheck(routine, arrays(), check_forward_ad=True, check_backward_ad=False)
    more = {"check_fwd_over_rev": True, "check_rev_over_rev": False, "check_undefined_grad": False}
    assert torch.autograd.gradgradcheck(routine, arrays(), fast_mode=True, **more)


def test_gradcheck_can_fail(monkeypatch):
    monkeypatch.setattr(dred.torch, "_fitted", lambda rows, variable, added: 1.01 * (rows.sum(0) if added else rows))
    with pytest.raises(GradcheckError):
        torch.autograd.gradcheck(case("Sum", 1)[0], arrays())


def test_third_order():
    routine, dense = case("Sum", 1)
    found = []
    for f in (routine, dense):
        args = arrays()
        value = f(*args).square().sum()
        for _ in range(3):
            gradients = torch.autograd.grad(value, args, create_graph=True)
            value = sum(each.square().sum() for each in gradients)
        found.append(gradients)
    close(*found)


def test_one_tensor_may_be_several_variables():
    routine = Genred("Exp(-SqDist(x,y))*Sum(x*y)", ["x = Vi(2)", "y = Vj(2)"], axis=1)
    x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: routine(t, t), (x,))
    assert torch.autograd.gradgradcheck(lambda t: routine(t, t), (x,))


@pytest.mark.parametrize(
    ("text", "names"),
    [("LogSumExp_Reduction(g*SqDist(x,y), 0)", "xyg"), ("Grad(Sum_Reduction(Exp(-g*SqDist(x,y)), 1), x, y)", "xyg")],
)
def test_functions_of_other_routines(text, names, tiny):
    routine = dred.Reduction(text, ["x = Vi(1)", "y = Vj(1)", "g = Pm(1)"])
    args = [torch.rand(shape, dtype=torch.float64, requires_grad=True) for shape in ((4, 1), (3, 1), (1,))]
    assert torch.autograd.gradcheck(function(routine), args)
    by_g = dred.Genred("Exp(-g*SqDist(x,y))", ["x = Vi(1)", "y = Vj(1)", "g = Pm(1)"], axis=1).grad("g")
    e = torch.rand(4, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function(by_g), (*args, e))
    assert torch.autograd.gradgradcheck(function(by_g), (*args, e))


def test_gradients_as_functions_of_cotangents_of_rankings(tiny):
    routine, _ = case("KMin", 1)
    e = torch.rand(M, 2, 2, dtype=torch.float64, requires_grad=True)
    by_x = function(dred.Genred(VECTOR, ALIASES, "KMin", axis=1, opt_arg=2).grad("x"))
    args = arrays()
    (expected,) = torch.autograd.grad((e * routine(*args)).sum(), args[0], create_graph=True)
    close([by_x(*args, e)], [expected])
    close(*(torch.autograd.grad(out.square().sum(), (*args, e)) for out in (by_x(*args, e), expected)))
    assert torch.autograd.gradcheck(by_x, (*args, e), fast_mode=True, check_forward_ad=True)


# -- batches and ranges ------------------------------------------------------------------------------------------------

LEAD = [(2, 3), (3,), (2, 1), (), (3,), (2, 1)]  # of each variable


def batched(dtype=torch.float64, lead=LEAD):
    generator = torch.Generator().manual_seed(2)
    shapes = [(*front, *t.shape) for front, t in zip(lead, arrays(), strict=True)]
    found = [torch.rand(shape, generator=generator, dtype=torch.float64).sub(0.4).to(dtype) for shape in shapes]
    return [t.requires_grad_() for t in found]


def elements(dense, args):
    """The dense function of each element of the batch."""
    tails = [t.ndim for t in arrays()]
    full = [t.expand(2, 3, *t.shape[t.ndim - tail :]) for t, tail in zip(args, tails, strict=True)]
    return torch.stack([torch.stack([dense(*(t[k, m] for t in full)) for m in range(3)]) for k in range(2)])


@pytest.mark.parametrize("name", ["Sum", "KMin", "LogSumExp"])
def test_batches(name):
    routine, dense = case(name, 1)
    args = batched()
    got, expected = routine(*args), elements(dense, args)
    close([got], [expected])
    gradients = [torch.autograd.grad(out.pow(2).sum(), args, create_graph=True) for out in (got, expected)]
    close(*gradients)
    close(*(torch.autograd.grad(sum(t.pow(2).sum() for t in found), args) for found in gradients))


def test_gradcheck_of_batches(tiny):
    routine, _ = case("Sum", 0)
    assert torch.autograd.gradcheck(routine, batched(), fast_mode=True, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(routine, batched(), fast_mode=True, check_fwd_over_rev=True)


def test_batches_of_half_precision():
    routine, dense = case("Sum", 1)
    args = batched(torch.float16)
    found = torch.autograd.grad(routine(*args).sum(), args)
    exact = [t.detach().double().requires_grad_() for t in args]
    wanted = torch.autograd.grad(elements(dense, exact).sum(), exact)
    for a, b in zip(found, wanted, strict=True):
        assert (a.dtype, a.shape) == (torch.float16, b.shape)
        torch.testing.assert_close(a.double(), b, rtol=5e-3, atol=5e-3 * float(b.abs().max()))


@pytest.mark.parametrize("of", [torch.as_tensor, np.asarray], ids=["tensors", "arrays"])
def test_ranges(of):
    """Rows 0 and 1 meet columns 0 and 1, row 3 meets column 2."""
    met = torch.zeros(M, N, 1, dtype=torch.float64)
    met[:2, :2], met[3, 2] = 1, 1
    tables = ([[0, 2], [3, 4]], [1, 2], [[0, 2], [2, 3]], [[0, 2], [2, 3]], [1, 2], [[0, 2], [3, 4]])
    ranges = tuple(map(of, tables))
    routine, _ = case("Sum", 1)
    args = arrays()
    got, expected = routine(*args, ranges=ranges), (met * vector(*args)).sum(1)
    close([got], [expected])
    gradients = [torch.autograd.grad(out.pow(2).sum(), args, create_graph=True) for out in (got, expected)]
    close(*gradients)
    close(*(torch.autograd.grad(sum(t.pow(2).sum() for t in found), args) for found in gradients))
    close([lazily(*args).sum(axis=1, ranges=ranges)], [expected])


# -- what is computed --------------------------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch):
    """The reductions of every routine that is called."""
    found = []
    call = Routine.__call__
    monkeypatch.setattr(
        Routine, "__call__", lambda self, *args, **more: found.append(self.reduced) or call(self, *args, **more)
    )
    return found


def test_only_what_is_asked_for_is_computed(calls):
    routine, _ = case("Sum", 1)
    plain = arrays(grad=False)
    out = routine(*plain)
    assert not out.requires_grad
    assert len(calls) == 1
    with torch.no_grad():
        assert routine(*arrays()).grad_fn is None
    calls.clear()
    x, y, a, b, p, g = arrays(grad=False)
    out = routine(x.requires_grad_(), y, a, b, p, g.requires_grad_())
    out.sum().backward()
    assert (x.grad.shape, y.grad, g.grad.shape) == (x.shape, None, g.shape)
    assert [len(reduced) for reduced in calls] == [1, 2]  # those by x and g leave the same index: one sweep
    calls.clear()
    args = arrays()
    torch.autograd.grad(routine(*args).sum(), args)
    assert [len(reduced) for reduced in calls] == [1, 4, 2]


def test_results_that_nobody_reads_send_nothing(calls):
    routine = Genred([("Log(SqDist(x,y))", "Sum"), ("SqDist(x,y)", "Sum")], ["x = Vi(1)", "y = Vj(1)"], axis=1)
    x = torch.zeros(2, 1, requires_grad=True)  # the logarithm of 0, whose gradient is not finite
    _, distances = routine(x, torch.tensor([[0.0], [1.0]]))
    (gradient,) = torch.autograd.grad(distances.sum(), x)
    assert gradient.tolist() == [[-2.0], [-2.0]]


def test_row_numbers_and_counts_are_constants():
    x, y = torch.tensor([[0.0], [4.0]], requires_grad=True), torch.tensor([[1.0], [2.0], [6.0]])
    items = [("SqDist(x,y)", "KMin_ArgKMin", 2), ("SqDist(x,y)", "ArgMin"), ("x - y", "Count"), ("x < y", "All")]
    (values, rows), first, count, every = Genred(items, ["x = Vi(1)", "y = Vj(1)"], axis=1)(x, y)
    assert values.tolist() == [[1.0, 4.0], [4.0, 4.0]]
    assert (rows.tolist(), first.tolist()) == ([[0, 1], [1, 2]], [[0], [1]])
    assert (count.tolist(), every.tolist()) == ([[3], [3]], [[True], [False]])
    assert [t.requires_grad for t in (values, rows, first, count, every)] == [True, False, False, False, False]
    assert [t.dtype for t in (rows, first, count, every)] == [torch.int64, torch.int64, torch.int64, torch.bool]
    (gradient,) = torch.autograd.grad(values.sum(), x)
    assert gradient.tolist() == [[-6.0], [0.0]]
    assert not Genred("SqDist(x,y)", ["x = Vi(1)", "y = Vj(1)"], "ArgMin", axis=1)(x, y).requires_grad


@pytest.mark.parametrize(
    "laid",
    [
        lambda t: t.t().contiguous().t(),
        lambda t: torch.stack([t, t], 1)[:, 0],
        lambda t: t.flip(0).flip(0),
        lambda t: torch.complex(t, -t).conj().imag,  # only marked as negated
        lambda t: t[:1].expand(t.shape),
    ],
)
def test_any_layout(laid):
    routine, dense = case("Sum", 1)
    x, *others = arrays(grad=False)
    given = laid(x)
    got, expected = (f(given.detach().requires_grad_(), *others) for f in (routine, dense))
    close([got], [expected])
    leaf = x.clone().requires_grad_()
    close(*(torch.autograd.grad(f(laid(leaf), *others).sum(), leaf) for f in (routine, dense)))


@pytest.mark.parametrize(
    ("dtype", "rtol"), [(torch.float16, 5e-3), (torch.bfloat16, 4e-2), (torch.float32, 1e-5), (torch.float64, 1e-10)]
)
def test_types(dtype, rtol):
    routine, dense = case("Sum", 1)
    args = arrays(dtype)
    exact = [t.detach().double().requires_grad_() for t in args]
    got, expected = routine(*args), dense(*exact)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), expected, rtol=rtol, atol=rtol)
    found = torch.autograd.grad(got.sum(), args, create_graph=True)
    assert [t.dtype for t in found] == [dtype] * 6
    wanted = torch.autograd.grad(expected.sum(), exact, create_graph=True)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=rtol, atol=rtol * float(b.detach().abs().max()))
    second, others = (torch.autograd.grad(sum(t.sum() for t in each), leaves)
                      for each, leaves in ((found, args), (wanted, exact)))  # fmt: skip
    for a, b in zip(second, others, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=2 * rtol, atol=2 * rtol * float(b.abs().max()))


def test_tensors_are_used_where_they_are(monkeypatch):
    seen = []
    call = Routine.__call__
    monkeypatch.setattr(Routine, "__call__", lambda self, *args, **more: seen.extend(args) or call(self, *args, **more))
    args = arrays()
    case("Sum", 1)[0](*args)
    assert [t.data_ptr() for t in seen] == [t.data_ptr() for t in args]


def test_a_changed_tensor_is_noticed():
    routine, _ = case("Sum", 1)
    x, *others = arrays(grad=False)
    leaf = x.clone().requires_grad_()
    moved = leaf * 1
    out = routine(moved, *others)
    moved.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_no_rows_and_no_variables():
    routine, _ = case("Sum", 1)
    x, y, a, b, p, g = arrays()
    out = routine(x[:0], y, a[:0], b, p, g)
    assert out.shape == (0, 2)
    assert torch.autograd.grad(out.sum(), (y, p))[0].tolist() == [[0.0, 0.0]] * N
    assert Genred("IndexI()+IndexJ()+1", [], axis=1)().tolist() == [[1.0]]


# -- inside PyTorch ----------------------------------------------------------------------------------------------------


def test_transformations_of_functions(tiny):
    routine, dense = case("Sum", 1)
    x, *others = arrays(grad=False)

    def of(f):
        return lambda t: f(t, *others).square().sum()

    close([torch.func.grad(of(routine))(x)], [torch.func.grad(of(dense))(x)])
    expected = torch.func.hessian(of(dense))(x)
    close([torch.func.hessian(of(routine))(x)], [expected])
    close([torch.func.jacrev(torch.func.jacrev(of(routine)))(x)], [expected])
    several = torch.stack([x, 2 * x, -x])
    close([torch.vmap(torch.func.grad(of(routine)))(several)], [torch.vmap(torch.func.grad(of(dense)))(several)])


@pytest.mark.filterwarnings("ignore::UserWarning:torch")
def test_compiled_by_torch():
    routine, _ = case("Sum", 1)
    x, *others = arrays()
    torch._dynamo.reset()
    compiled = torch.compile(lambda t: routine(2 * t, *others).sin().sum(), backend="aot_eager")
    found, expected = compiled(x), routine(2 * x, *others).sin().sum()
    close([found], [expected])
    close(torch.autograd.grad(found, x), torch.autograd.grad(expected, x))


def test_a_model_is_fitted():
    """Places and widths of four Gaussians, from the sum of them: plain gradient descent goes down to it."""
    generator = torch.Generator().manual_seed(5)
    points = torch.rand(200, 1, dtype=torch.float64, generator=generator)
    field = Genred("Exp(-Exp(g)*SqDist(x,y))*b", ["x = Vi(1)", "y = Vj(1)", "b = Vj(1)", "g = Pm(1)"], axis=1)
    truth = [
        torch.tensor(values, dtype=torch.float64) for values in ([[0.1], [0.4], [0.9]], [[1.0], [-1.0], [2.0]], [4.0])
    ]
    target = field(points, *truth)
    generator = torch.Generator().manual_seed(6)
    fitted = [(t + 0.1 * torch.randn(t.shape, dtype=t.dtype, generator=generator)).requires_grad_() for t in truth]
    optimiser = torch.optim.LBFGS(fitted, max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-12,
                                  tolerance_change=1e-16)  # fmt: skip

    def closure():
        optimiser.zero_grad()
        loss = (field(points, *fitted) - target).square().mean()
        loss.backward()
        return loss

    before = float(closure().detach())
    optimiser.step(closure)
    assert before > 1e-3
    assert float(closure().detach()) < 1e-12
    close([t.detach() for t in fitted], truth, rtol=1e-4)


def test_as_a_part_of_a_module():
    class Field(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.centres = torch.nn.Parameter(torch.linspace(0, 1, 5)[:, None])
            self.routine = Genred("Exp(-SqDist(x,y))", ["x = Vi(1)", "y = Vj(1)"], axis=1)

        def forward(self, x):
            return self.routine(x, self.centres)

    module, x = Field(), torch.rand(7, 1)
    out = module(x)
    out.sum().backward()
    assert module.centres.grad.shape == (5, 1)
    for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module.routine))):
        assert torch.equal(
            again(x) if again is not None and isinstance(again, Field) else again(x, module.centres), out
        )


# -- LazyTensors -------------------------------------------------------------------------------------------------------


def lazily(x, y, a, b, p, g):
    return Vi(a) * (-g * (p * Vi(x)).sqdist(Vj(y))).exp() * Vj(b)


def test_lazy_tensors_are_dense_ones():
    args = arrays()
    K, dense = lazily(*args), vector(*args)
    assert (type(K), repr(K)) == (LazyTensor, "LazyTensor(M=4, N=3, D=2, torch.float64)")
    assert K.dtype == torch.float64
    pairs = [
        (K.sum(axis=1), dense.sum(1)),
        (K.sum(0), dense.sum(0)),
        (K.T.sum(axis=1), dense.sum(0)),
        (K.max(axis=1), dense.amax(1)),
        (K.logsumexp(axis=0), dense.logsumexp(0)),
        (K.sum(-1) @ args[3], dense.sum(-1) @ args[3]),
        (K.sum(-1) @ args[3][:, 0], dense.sum(-1) @ args[3][:, 0]),
        (K.sum(-1).T @ args[2], dense.sum(-1).T @ args[2]),
        (K[..., 0].sumsoftmaxweight(args[1][None], axis=1), (dense[..., :1].softmax(1) * args[1]).sum(1)),
        (K.Kmin(2, axis=1), smallest(dense, None, 1)),
    ]
    for got, expected in pairs:
        close([got], [expected])
        close(*(torch.autograd.grad(out.square().sum(), args, materialize_grads=True, retain_graph=True)
                for out in (got, expected)))  # fmt: skip
    assert not K.argKmin(2, axis=1).requires_grad


OPERANDS = [
    lambda L, t: t * L,
    lambda L, t: L * t,
    lambda L, t: t - L,
    lambda L, t: L - t,
    lambda L, t: t / L,
    lambda L, t: L / t,
    lambda L, t: t + L,
    lambda L, t: t**L,
    lambda L, t: L**t,
    lambda L, t: (t < L) + L * t,
    lambda L, t: (t >= L) + L * t,
]


@pytest.mark.parametrize("k", range(len(OPERANDS)))
@pytest.mark.parametrize("shape", [(), (1,), (2,), (4, 1, 2), (1, 3, 2)], ids=str)
def test_tensors_beside_lazy_tensors(k, shape):
    x = (torch.rand(4, 2, dtype=torch.float64) + 0.5).requires_grad_()
    t = (torch.rand(shape, dtype=torch.float64) + 0.5).requires_grad_()
    got = OPERANDS[k](Vi(x), t)
    assert type(got) is LazyTensor
    dense = OPERANDS[k](x[:, None], t).expand(4, 3 if 3 in shape else 1, 2)
    found, expected = got.sum(axis=1), dense.sum(1)
    close([found], [expected])
    close(*(torch.autograd.grad(out.sum(), (x, t)) for out in (found, expected)))


def test_complex_lazy_tensors():
    generator = torch.Generator().manual_seed(3)
    x, y, b = (torch.randn(shape, generator=generator, dtype=torch.complex128, requires_grad=True)
               for shape in ((4, 2), (3, 2), (3, 1)))  # fmt: skip
    t = torch.rand(4, 1, dtype=torch.float64, requires_grad=True)
    K = (0.3j * Vi(t) * (Vi(x) * Vj(y).conj()).sum(-1)).exp()
    assert (type(K), repr(K)) == (ComplexLazyTensor, "ComplexLazyTensor(M=4, N=3, D=1, torch.complex128)")
    dense = torch.exp(0.3j * t * (x @ y.conj().T))
    for got, expected in (
        (K @ b, dense @ b),
        (K.sum(axis=0), dense.sum(0)[:, None]),
        (abs(K).sum(axis=1), dense.abs().sum(1, keepdim=True)),
        (K.real.logsumexp(axis=1), dense.real.logsumexp(1, keepdim=True)),
    ):
        close([got], [expected])
        close(*(torch.autograd.grad(out.abs().square().sum(), (x, y, b, t), materialize_grads=True, retain_graph=True)
                for out in (got, expected)))  # fmt: skip
    late = (ComplexLazyTensor((0, 2, 0)) * Vj(y)).sum(-1).sum(axis=1)
    close([late(x)], [(x @ y.T).sum(1, keepdim=True)])


def test_lazy_batches():
    x, y = (torch.rand(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 4, 1, 3), (1, 5, 3)))
    b = torch.rand(2, 5, 2, dtype=torch.float64, requires_grad=True)
    K = (-((LazyTensor(x) - LazyTensor(y)) ** 2).sum(-1)).exp()
    dense = torch.exp(-(x - y).square().sum(-1))
    assert K.shape == (2, 4, 5)
    for got, expected in ((K @ b, dense @ b), (K.sum(axis=2), dense.sum(2)[..., None])):
        close([got], [expected])
        close(*(torch.autograd.grad(out.square().sum(), (x, y, b), materialize_grads=True, retain_graph=True)
                for out in (got, expected)))  # fmt: skip


def test_lazy_variables_and_calls():
    x, y = torch.rand(4, 2, requires_grad=True), torch.rand(3, 2)
    late = (-Vi(0, 2).sqdist(Vj(y))).exp().sum(axis=1)
    assert late(x).requires_grad
    close([late(x)], [(-Vi(x).sqdist(Vj(y))).exp().sum(axis=1)])
    call = (Vi(x) | Vj(y)).sum(axis=1, call=False)
    close([call()], [(x @ y.T).sum(1, keepdim=True)], rtol=1e-5)
    refused(
        OptionError,
        "autograd knows the gradients of a reduction of tensors: torch.autograd.grad(call(), tensors)",
        lambda: call.grad(x),
    )
    refused(InputError, "the reduction takes 1 tensors, got 0", late)
    assert torch.equal(pickle.loads(pickle.dumps(Vi(x) | Vj(y))).sum(axis=1), call())
    mixed = dred.Vi(0, 2) * Vj(y)  # a variable of dred beside one of dred.torch
    assert type(mixed) is LazyTensor
    assert mixed.sum(axis=1)(x).requires_grad
    plain = (dred.Vi(0, 2) * dred.Vj(1, 2)).sum(axis=1)
    assert function(plain.routine)(x, y).requires_grad
    assert type(LazyTensor.concatenate([Vi(x), x[:, None]])) is LazyTensor
    assert Pm(torch.tensor(2.0)).node.dim == 1


def test_dense_arrays_of_lazy_tensors():
    x, y = torch.rand(4, 1), torch.rand(3, 1)
    found = np.asarray(Vi(x) * Vj(y))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, (x @ y.T).numpy(), rtol=1e-6)


def test_derivatives_of_lazy_formulas():
    x, y = (torch.rand(n, 2, dtype=torch.float64, requires_grad=True) for n in (4, 3))
    u = Vi(x)
    found = (-u.sqdist(Vj(y))).exp().grad(u, torch.ones(1, dtype=torch.float64)).sum(axis=1)
    expected = torch.autograd.grad(torch.exp(-(x[:, None] - y).square().sum(-1)).sum(), x, create_graph=True)[0]
    close([found], [expected])
    close(*(torch.autograd.grad(out.square().sum(), (x, y)) for out in (found, expected)))


# -- refused -----------------------------------------------------------------------------------------------------------

PRODUCT = ("x * y", ["x = Vi(1)", "y = Vj(1)"])
LOST = (
    "with gradients, which this routine would lose: use Genred, LazyTensor or function of dred.torch, or pass its"
    " detach()"
)


def refused(error, text, call):
    with pytest.raises(error) as caught:
        call()
    assert (type(caught.value), str(caught.value)) == (error, text)


def test_gradients_are_not_lost():
    x, y = torch.ones(2, 1, requires_grad=True), torch.ones(3, 1)
    plain = dred.Genred(*PRODUCT, axis=1)
    assert type(plain(x.detach(), y)) is np.ndarray
    refused(InputError, f"argument 0 (x) is a torch.Tensor {LOST}", lambda: plain(x, y))
    parameter = torch.nn.Parameter(y)
    refused(InputError, f"argument 1 (y) is a torch.nn.parameter.Parameter {LOST}", lambda: plain(y[:2], parameter))
    refused(InputError, f"an array is a torch.Tensor {LOST}", lambda: dred.Vi(x))
    refused(InputError, f"the right side of @ is a torch.Tensor {LOST}", lambda: dred.Vi(np.ones((3, 1))) @ x)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(y, y)
        refused(InputError, f"argument 1 (y) is a torch.Tensor {LOST}", lambda: plain(y, dual))
    with pytest.raises(InputError):
        torch.func.jvp(lambda t: torch.as_tensor(plain(t, y)), (y,), (y,))


def test_what_is_no_tensor_is_refused():
    x, y = torch.ones(2, 1), torch.ones(3, 1)
    routine = Genred(*PRODUCT, axis=1)
    what = "is no tensor but numpy.ndarray of shape (3, 1): use torch.as_tensor, or dred"
    refused(InputError, f"argument 1 (y) {what}", lambda: routine(x, y.numpy()))
    refused(InputError, f"argument 1 (Vj(1,1)) {what}", lambda: (Vi(x) * dred.Vj(y.numpy())).sum(axis=1))
    refused(InputError, "the routine takes 2 arrays (x, y), got 1", lambda: routine(x))
    refused(
        OptionError,
        "out is not offered for tensors: results are new ones, which autograd follows",
        lambda: routine(x, y, out=x),
    )
    with pytest.raises(DtypeError, match="all arrays must have one type"):
        routine(x.double(), y)
    with pytest.raises(DtypeError, match="argument 1 \\(y\\) has type int64"):
        routine(x, y.long())
    refused(
        InputError,
        "argument 0 (x) is a torch.Tensor that cannot be used without a copy (Unknown device type meta for Dlpack):"
        " convert it to a NumPy or CuPy array",
        lambda: routine(x.to("meta"), y),
    )


def test_gradients_are_made_once():
    """Steps of an optimiser make no new routines."""
    routine, _ = case("Sum", 1)
    args = arrays(torch.float16)
    for step in range(3):
        torch.autograd.grad(routine(*args).sum(), args)
        if not step:
            made = autodiff.gradients.cache_info().misses, autodiff.gradient.cache_info().misses
    assert made == (autodiff.gradients.cache_info().misses, autodiff.gradient.cache_info().misses)
