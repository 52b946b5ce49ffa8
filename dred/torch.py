"""dred for PyTorch: tensors in, tensors out, and gradients of any order by autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dred import genred
from dred.autodiff import all_arrays, part, places, pulled, pushforward
from dred.errors import InputError, OptionError
from dred.inputs import native
from dred.kernel.spec import array_type
from dred.lazy import tensor as lazy
from dred.lazy.base import Lazy
from dred.lazy.given import Library, Read, in_rows, read, what
from dred.routine import Gradient, Routine

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


def LazyTensor(x: Any, axis: int | None = None, is_complex: bool = False) -> lazy.LazyTensor:
    """`dred.LazyTensor` of a torch tensor: what its reductions give are tensors, with gradients by autograd.

    It is made of tensors of the shapes that `dred.LazyTensor` takes, of complex ones too, and of tensors of no
    dimension: parameters of one component. What it is combined with may be tensors, too.

    Examples
    --------
    >>> import torch
    >>> from dred.torch import Vi, Vj
    >>> x, y, b = torch.zeros(2, 3, requires_grad=True), torch.ones(4, 3), torch.ones(4, 1)
    >>> (-Vi(x).sqdist(Vj(y)) / 2).exp() @ b
    tensor([[0.8925],
            [0.8925]], grad_fn=<_ReduceBackward>)
    """
    made: lazy.LazyTensor = Lazy._made(_read(x, axis, is_complex))
    return made


def Vi(x_or_ind: Any, dim: int | None = None) -> lazy.LazyTensor:
    """A vector for each i: as `dred.Vi`, of a tensor."""
    return _followed(lazy.Vi, x_or_ind, dim)


def Vj(x_or_ind: Any, dim: int | None = None) -> lazy.LazyTensor:
    """A vector for each j: as `dred.Vj`, of a tensor."""
    return _followed(lazy.Vj, x_or_ind, dim)


def Pm(x_or_ind: Any, dim: int | None = None) -> lazy.LazyTensor:
    """A parameter: as `dred.Pm`, of a tensor."""
    return _followed(lazy.Pm, x_or_ind, dim)


def _followed(make: Callable[..., lazy.LazyTensor], x: Any, dim: int | None) -> lazy.LazyTensor:
    """What `make` makes of the numbers of a tensor, but that it follows the tensor."""
    if not isinstance(x, torch.Tensor):
        return make(x, dim)
    x = x if x.ndim else x.reshape(1)
    made = make(_numbers(x), dim)
    found: lazy.LazyTensor = Lazy._made(_following(Read(made.node, made.held, made.is_complex), x))
    return found


def _read(x: Any, axis: int | None = None, is_complex: bool = False) -> Read:
    """What a LazyTensor is made of; of a tensor one that follows it."""
    if not isinstance(x, torch.Tensor):
        return read(x, axis, is_complex)
    x = x if x.ndim else x.reshape(1)
    return _following(read(_numbers(x), axis, is_complex), x)


def _following(found: Read, x: Any) -> Read:
    """The formula of the numbers of a tensor, with the tensor in their place."""
    held = {}
    for n, h in found.held.items():
        plain = torch.view_as_real(x).flatten(-2) if x.is_complex() else x
        held[n] = h._replace(array=x, tensor=in_rows(plain, h.cat), library=LIBRARY)
    return found._replace(held=held)


def _numbers(x: Any) -> Any:
    """The numbers of a tensor, without its gradients, as an array of NumPy or CuPy."""
    return native(_array(x), "a tensor")


def _tensor_of(rows: Any) -> Any:
    return rows if isinstance(rows, torch.Tensor) else _tensor(rows, None)


def _as_complex(found: Any) -> Any:
    return torch.view_as_complex(found.unflatten(-1, (-1, 2)))


LIBRARY = Library(_read, _tensor_of, function, _as_complex)


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

            found = dict(zip(wrt, pulled(ctx.routine, wrt, ctx.saved_tensors, sent, call, _like), strict=True))
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
            if isinstance(ctx.routine, Gradient):
                rows = _like(rows, tangents[0].new_empty(ctx.shapes[place]), "", ctx.routine.rows_added)
            moved[place] = rows.reshape(ctx.shapes[place])
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


def _like(rows: Any, variable: Any, dtype: str, added: bool) -> Any:
    """`dred.cotangents.like` of tensors."""
    if added:
        rows = rows.sum(-2, dtype=torch.float64).to(rows.dtype)
    if rows.shape == variable.shape:
        return rows
    return rows.double().sum_to_size(variable.shape).to(rows.dtype)
