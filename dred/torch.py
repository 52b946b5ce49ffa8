"""dred for PyTorch: tensors in, tensors out, and gradients of any order by autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dred import genred
from dred.autodiff import all_arrays, part, places, pulled, pushforward
from dred.errors import InputError, OptionError
from dred.kernel.spec import array_type
from dred.lazy import tensor as lazily
from dred.lazy.given import what
from dred.routine import Routine

try:
    import torch
except ImportError as error:
    raise ImportError("dred.torch needs PyTorch: pip install torch", name="torch") from error

__all__ = ["Genred", "LazyTensor", "Pm", "Vi", "Vj", "function"]


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


class LazyTensor(lazily.LazyTensor):
    """`dred.LazyTensor` of torch tensors: what its reductions give are tensors, with gradients by autograd.

    It is made of tensors of the shapes that `dred.LazyTensor` takes, and of tensors of no dimension: parameters of one
    component. All that it is combined with may be tensors, too.

    Examples
    --------
    >>> import torch
    >>> from dred.torch import Vi, Vj
    >>> x, y, b = torch.zeros(2, 3, requires_grad=True), torch.ones(4, 3), torch.ones(4, 1)
    >>> (-Vi(x).sqdist(Vj(y)) / 2).exp() @ b
    tensor([[0.8925],
            [0.8925]], grad_fn=<_ReduceBackward>)
    """

    function = staticmethod(function)

    def __init__(self, x: Any, axis: int | None = None) -> None:
        _fill(self, lazily.LazyTensor, x, axis)

    def call(self, operation: str, *args: Any, **named: Any) -> lazily.LazyTensor:
        return super().call(operation, *map(_lazy, args), **{word: _lazy(value) for word, value in named.items()})

    def power(self, exponent: Any) -> lazily.LazyTensor:
        return super().power(_lazy(exponent))

    def __rpow__(self, other: Any) -> lazily.LazyTensor:
        return super().__rpow__(_lazy(other))

    def derived(self, name: str, v: Any, *more: Any) -> lazily.LazyTensor:
        return super().derived(name, v, *map(_lazy, more))

    @staticmethod
    def concatenate(tensors: Sequence[Any], axis: int = -1) -> lazily.LazyTensor:
        return lazily.LazyTensor.concatenate([*map(_lazy, tensors)], axis)

    def reduce(self, reduction: str, axis: Any = None, opt_arg: Any = None, weight: Any = None, **how: Any) -> Any:
        return super().reduce(reduction, axis, opt_arg, _lazy(weight), **how)

    def __matmul__(self, v: Any) -> Any:
        if not isinstance(v, torch.Tensor) or v.ndim not in (1, 2):
            return super().__matmul__(v)
        found = super().__matmul__(Vj(v if v.ndim == 2 else v[:, None]))
        return found[:, 0] if v.ndim == 1 and self.dim == 1 else found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        name = str(self.dtype or "float64").removeprefix("torch.")
        return super().__array__(dtype or array_type(name), copy)


def Vi(x: Any, dim: int | None = None) -> LazyTensor:
    """A vector for each i: as `dred.Vi`, of a tensor."""
    return _fill(object.__new__(LazyTensor), lazily.Vi, x, dim)


def Vj(x: Any, dim: int | None = None) -> LazyTensor:
    """A vector for each j: as `dred.Vj`, of a tensor."""
    return _fill(object.__new__(LazyTensor), lazily.Vj, x, dim)


def Pm(x: Any, dim: int | None = None) -> LazyTensor:
    """A parameter: as `dred.Pm`, of a tensor."""
    return _fill(object.__new__(LazyTensor), lazily.Pm, x, dim)


def _lazy(x: Any) -> Any:
    """A tensor as a LazyTensor, anything else as it is."""
    return LazyTensor(x) if isinstance(x, torch.Tensor) else x


def _fill(self: LazyTensor, make: Callable[..., lazily.LazyTensor], x: Any, more: Any) -> LazyTensor:
    """A LazyTensor of what `make` makes of an array of the tensor's shape, but that it holds the tensor."""
    tensor = isinstance(x, torch.Tensor)
    if tensor and not x.ndim:
        x = x.reshape(1)
    made = make(np.broadcast_to(np.float32(0), tuple(x.shape)) if tensor else x, more)
    held = made.held
    if tensor:
        held = {n: x if like.shape == tuple(x.shape) else x.reshape(like.shape) for n, like in held.items()}
    object.__setattr__(self, "node", made.node)
    object.__setattr__(self, "held", held)
    return self


def _call(routine: Routine, *args: Any, **options: Any) -> Any:
    for k, (given, label) in enumerate(zip(args, routine.parsed.labels, strict=False)):
        if not isinstance(given, torch.Tensor):
            raise InputError(f"argument {k} ({label}) is no tensor but {what(given)}: use torch.as_tensor, or dred")
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
        ctx.places, ctx.shapes = places(ctx.routine), [t.shape for t in output]
        ctx.mark_non_differentiable(*(t for k, t in enumerate(output) if k not in ctx.places))

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple[Any, ...]:
        wrt = [k for k, needed in enumerate(ctx.needs_input_grad[2:]) if needed]
        found: dict[int, Any] = {}
        sent = [cotangents[k] for k in ctx.places]
        if any(e is not None for e in sent):

            def call(routine: Routine, *tensors: Any) -> Any:
                return _call(routine, *tensors, **ctx.options)

            found = dict(zip(wrt, pulled(ctx.routine, wrt, ctx.saved_tensors, sent, call, _added), strict=True))
        return None, None, *(found.get(k) for k in range(len(ctx.saved_tensors)))

    @staticmethod
    def jvp(ctx: Any, _routine: None, _options: None, *tangents: Any) -> tuple[Any, ...]:
        moved: list[Any] = [None] * len(ctx.shapes)
        moving = tuple(k for k, t in enumerate(tangents) if t is not None)
        if not ctx.places or not moving:
            return tuple(moved)
        pushed = pushforward(part(ctx.routine, tuple(range(len(ctx.places)))), moving)
        results = _call(pushed, *ctx.saved_tensors, *(tangents[k] for k in moving), **ctx.options)
        for n, place in enumerate(ctx.places):
            rows = sum(results[n :: len(ctx.places)][1:], results[n])
            moved[place] = (_added(rows) if ctx.routine.rows_added else rows).reshape(ctx.shapes[place])
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


def _added(rows: Any) -> Any:
    return rows.sum(0, dtype=torch.float64).to(rows.dtype)
