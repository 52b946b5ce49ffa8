"""dred for PyTorch: tensors in, tensors out, and gradients of any order by autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dred import genred
from dred.autodiff import all_arrays, part, places, pulled, pushforward
from dred.errors import InputError, OptionError
from dred.kernel.spec import array_type
from dred.lazy import tensor as lazily
from dred.lazy.base import Lazy
from dred.lazy.call import Call
from dred.lazy.given import Read, what
from dred.routine import Gradient, Routine

try:
    import torch
except ImportError as error:
    raise ImportError("dred.torch needs PyTorch: pip install torch", name="torch") from error

__all__ = ["ComplexLazyTensor", "Genred", "LazyTensor", "Pm", "Vi", "Vj", "function"]


class Genred(genred.Genred):
    """`dred.Genred` of torch tensors, with gradients by autograd.

    Parameters, results and errors are those of `dred.Genred`. A call takes tensors, all on the host or all on one CUDA
    device (by DLPack; not tried on one), and gives tensors there. They are used without a copy where they are
    contiguous. What a call takes besides: backend, device_id and ranges, as `dred.Genred` does.

    Notes
    -----
    Only gradients that are asked for are computed; those by all variables that are reduced over the same index take one
    sweep over the pairs. They can be differentiated again, any number of times, and in forward mode. Row numbers,
    counts, Any and All have no gradients: as far as autograd is concerned, they are constants.

    Raises
    ------
    InputError
        An argument that is no tensor, or anything of what `dred.Genred` refuses.

    Examples
    --------
    >>> import torch
    >>> from dred.torch import Genred
    >>> x = torch.tensor([[1.0], [2.0]], requires_grad=True)
    >>> y = torch.tensor([[3.0], [4.0], [5.0]])
    >>> out = Genred("x * y", ["x = Vi(1)", "y = Vj(1)"], axis=1)(x, y)
    >>> out.sum().backward()
    >>> x.grad
    tensor([[12.],
            [12.]])
    """

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Reduce tensors: one for each variable, in the order of their positions. See `dred.Genred`."""
        return _call(self, *args, **options)


def function(routine: Routine) -> Callable[..., Any]:
    """A function of torch tensors that computes a routine, with gradients by autograd.

    Parameters
    ----------
    routine : dred.Genred, dred.Reduction, a gradient, or that of a LazyTensor

    Returns
    -------
    callable
        As `Genred` of this module is called.

    Examples
    --------
    >>> import dred, dred.torch, torch
    >>> routine = dred.Reduction("LogSumExp_Reduction(x * y, 0)", ["x = Vi(1)", "y = Vj(1)"])
    >>> dred.torch.function(routine)(torch.zeros(2, 1), torch.ones(4, 1))
    tensor([[1.3863],
            [1.3863]])
    """

    def called(*args: Any, **options: Any) -> Any:
        return _call(routine, *args, **options)

    return called


@dataclass(frozen=True, eq=False, repr=False)
class _Call(Call):
    """A reduction of a LazyTensor of tensors that has not been computed."""

    def __call__(self, *args: Any, **how: Any) -> Any:
        return self._result(_call(self.routine, *self._rows(args), **{**self.how, **how}))

    def _rows(self, args: Sequence[Any]) -> list[Any]:
        missing = sum(h.array is None for h in self.held)
        if len(args) != missing:
            raise InputError(f"the reduction takes {missing} tensors, got {len(args)}")
        rest = iter(args)
        found = [next(rest) if h.array is None else h.rows for h in self.held]
        return [_real(x) if h.array is None and h.is_complex else x for x, h in zip(found, self.held, strict=True)]

    def _result(self, found: Any) -> Any:
        return torch.view_as_complex(found.unflatten(-1, (-1, 2))) if self.is_complex else found

    def vjp(self, *wrt: Any, **how: Any) -> Any:
        raise OptionError(
            "autograd knows the gradients of a reduction of tensors: torch.autograd.grad(call(), tensors)"
        )

    def grad(self, *wrt: Any, **how: Any) -> Any:
        return self.vjp()


class _Lazy(Lazy):
    """What LazyTensors of tensors do with tensors beside them."""

    __slots__ = ()
    _call = _Call

    def __new__(cls, x: Any, axis: int | None = None, is_complex: bool = False) -> Any:
        return _made(lazily.LazyTensor, x, axis, is_complex or cls.is_complex)

    @property
    def dtype(self) -> Any:
        found = next((each.rows.dtype for each in self.held.values() if each.rows is not None), None)
        return found.to_complex() if self.is_complex and found is not None else found

    def call(self, operation: str, *args: Any) -> Any:
        return super().call(operation, *map(_lazy, args))

    def derived(self, name: str, *args: Any) -> Any:
        return super().derived(name, *map(_lazy, args))

    def power(self, other: Any) -> Any:
        return super().power(_lazy(other))

    def __rpow__(self, other: Any) -> Any:
        return super().__rpow__(_lazy(other))

    def reduction(self, reduction_op: str, other: Any = None, *args: Any, **how: Any) -> Any:
        return super().reduction(reduction_op, _lazy(other), *args, **how)

    def __matmul__(self, v: Any, **how: Any) -> Any:
        if not isinstance(v, torch.Tensor) or not v.ndim:
            return super().__matmul__(v, **how)
        right = v[:, None] if v.ndim == 1 else v
        found = super().__matmul__(Vj(right if right.ndim == 2 else right[..., None, :, :]), **how)
        return found[..., 0] if v.ndim == 1 and self.D == 1 and isinstance(found, torch.Tensor) else found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        name = str(self.dtype or "float64").removeprefix("torch.")
        return super().__array__(dtype or array_type(name), copy)

    @staticmethod
    def concatenate(tuple_of_lt: Sequence[Any], axis: int = -1) -> Any:
        return lazily.LazyTensor.concatenate([*map(_lazy, tuple_of_lt)], axis)

    @staticmethod
    def cat(tuple_of_lt: Sequence[Any], dim: int = -1) -> Any:
        return lazily.LazyTensor.cat([*map(_lazy, tuple_of_lt)], dim)


class LazyTensor(_Lazy, lazily.LazyTensor):
    """`dred.LazyTensor` of torch tensors: what its reductions give are tensors, with gradients by autograd.

    It is made of tensors of the shapes that `dred.LazyTensor` takes, and of tensors of no dimension: parameters of one
    component. All that it is combined with may be tensors, too. Of complex ones it is a `ComplexLazyTensor`.

    Examples
    --------
    >>> import torch
    >>> from dred.torch import Vi, Vj
    >>> x, y, b = torch.zeros(2, 3, requires_grad=True), torch.ones(4, 3), torch.ones(4, 1)
    >>> (-Vi(x).sqdist(Vj(y)) / 2).exp() @ b
    tensor([[0.8925],
            [0.8925]], grad_fn=<_ReduceBackward>)
    """

    __slots__ = ()


class ComplexLazyTensor(_Lazy, lazily.ComplexLazyTensor):
    """`dred.ComplexLazyTensor` of torch tensors."""

    __slots__ = ()


_KINDS = {False: LazyTensor, True: ComplexLazyTensor}


def Vi(x_or_ind: Any, dim: int | None = None) -> LazyTensor:
    """A vector for each i: as `dred.Vi`, of a tensor."""
    found: LazyTensor = _made(lazily.Vi, x_or_ind, dim)
    return found


def Vj(x_or_ind: Any, dim: int | None = None) -> LazyTensor:
    """A vector for each j: as `dred.Vj`, of a tensor."""
    found: LazyTensor = _made(lazily.Vj, x_or_ind, dim)
    return found


def Pm(x_or_ind: Any, dim: int | None = None) -> LazyTensor:
    """A parameter: as `dred.Pm`, of a tensor."""
    found: LazyTensor = _made(lazily.Pm, x_or_ind, dim)
    return found


def _lazy(x: Any) -> Any:
    """A tensor as a LazyTensor, anything else as it is."""
    return LazyTensor(x) if isinstance(x, torch.Tensor) else x


def _made(make: Callable[..., Lazy], x: Any, *more: Any) -> Any:
    """What `make` makes of an array of the tensor's shape, but that it holds the tensor."""
    if not isinstance(x, torch.Tensor):
        found = make(x, *more)
        held = {n: each._replace(kinds=_KINDS) for n, each in found.held.items()}
    else:
        numbers = "complex128" if x.is_complex() else "float64"
        found = make(np.empty(tuple(x.shape) or (1,), numbers), *more)  # memory that nobody touches
        rows = _real(x) if x.is_complex() else x
        held = {
            n: each._replace(array=x, rows=rows.reshape(each.rows.shape), kinds=_KINDS)
            for n, each in found.held.items()
        }
    return Lazy._made(Read(found.node, held, found.is_complex))


def _real(x: Any) -> Any:
    """Complex numbers as pairs of real ones: (..., D) as (..., 2 D)."""
    return torch.view_as_real(x.resolve_conj()).flatten(-2)


def _call(routine: Routine, *args: Any, **options: Any) -> Any:
    for k, (given, label) in enumerate(zip(args, routine.parsed.labels, strict=False)):
        if not isinstance(given, torch.Tensor):
            raise InputError(f"argument {k} ({label}) is no tensor but {what(given)}: use torch.as_tensor, or dred")
    if isinstance(ranges := options.get("ranges"), tuple | list):
        options["ranges"] = tuple(t.cpu().numpy() if isinstance(t, torch.Tensor) else t for t in ranges)
    if options.get("out") is not None:
        raise OptionError("out is not offered for tensors: results are new ones, which autograd follows")
    apply = _Reduce.apply
    if torch.compiler.is_compiling():  # what calls a kernel is no graph of tensors
        apply = torch.compiler.disable(apply)
    return routine.entries(apply(routine, options, *args))


class _Reduce(torch.autograd.Function):  # type: ignore[misc]
    """A routine as a node of autograd's graph; its derivatives are routines, and hence such nodes."""

    @staticmethod
    def forward(routine: Routine, options: dict[str, Any], *tensors: Any) -> tuple[Any, ...]:
        device = tensors[0].device if tensors else None
        with torch.cuda.device_of(tensors[0]) if tensors else torch.no_grad():
            found = Routine.__call__(routine, *map(_array, tensors), **options)
            return tuple(_tensor(array, device) for array in all_arrays(routine, found))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        ctx.routine, ctx.options, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)  # of results that nobody reads
        ctx.places = places(ctx.routine)
        ctx.likes = [t.detach().to("meta") for t in output]  # their shapes
        ctx.mark_non_differentiable(*(t for k, t in enumerate(output) if k not in ctx.places))

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple[Any, ...]:
        wrt = [k for k, needed in enumerate(ctx.needs_input_grad[2:]) if needed]
        found: dict[int, Any] = {}
        sent = [cotangents[k] for k in ctx.places]
        if any(e is not None for e in sent):

            def call(routine: Routine, *tensors: Any) -> Any:
                return _call(routine, *tensors, **ctx.options)

            found = dict(zip(wrt, pulled(ctx.routine, wrt, ctx.saved_tensors, sent, call, _fitted), strict=True))
        return None, None, *(found.get(k) for k in range(len(ctx.saved_tensors)))

    @staticmethod
    def jvp(ctx: Any, _routine: None, _options: None, *tangents: Any) -> tuple[Any, ...]:
        moved: list[Any] = [None] * len(ctx.likes)
        moving = tuple(k for k, t in enumerate(tangents) if t is not None)
        if not ctx.places or not moving:
            return tuple(moved)
        pushed = pushforward(part(ctx.routine, tuple(range(len(ctx.places)))), moving)
        given = [t for t in ctx.routine.flat(tangents) if t is not None]
        results = _call(pushed, *ctx.routine.flat(ctx.saved_tensors), *given, **ctx.options)
        for n, place in enumerate(ctx.places):
            rows = sum(results[n :: len(ctx.places)][1:], results[n])
            if isinstance(ctx.routine, Gradient):
                rows = _fitted(rows, ctx.likes[place], ctx.routine.rows_added)
            moved[place] = rows.reshape(ctx.likes[place].shape)
        return tuple(moved)

    @staticmethod
    def vmap(info: Any, dims: tuple[Any, ...], routine: Routine, options: Any, *tensors: Any) -> tuple[Any, Any]:
        given = list(zip(tensors, dims[2:], strict=True))
        each = [
            _Reduce.apply(routine, options, *(t if dim is None else t.select(dim, n) for t, dim in given))
            for n in range(info.batch_size)
        ]
        return tuple(torch.stack(column) for column in zip(*each, strict=True)), (0,) * len(each[0])


def _array(tensor: Any) -> Any:
    """A tensor as something that the routine takes; contiguous ones without a copy."""
    plain = tensor.detach().resolve_neg().contiguous()
    if plain.dtype is torch.bfloat16 and not plain.is_cuda:  # NumPy has this type by ml_dtypes alone, not by DLPack
        return plain.view(torch.int16).numpy().view(array_type("bfloat16"))
    return plain


def _tensor(array: Any, device: Any) -> Any:
    if not isinstance(array, np.ndarray):
        return torch.from_dlpack(array)
    if str(array.dtype) == "bfloat16":
        return torch.from_numpy(array.view("int16")).view(torch.bfloat16)
    return torch.from_numpy(array)


def _fitted(rows: Any, variable: Any, added: bool) -> Any:
    """The gradient by a variable of what is left for each row, and element of a batch."""
    found = rows.sum(-2, dtype=torch.float64) if added else rows
    if found.shape != variable.shape:
        found = found.double().sum_to_size(variable.shape)
    return found.to(rows.dtype)
