"""dred for JAX: arrays in, arrays out, under jit, vmap and reverse-mode derivatives of any order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from dred import genred
from dred.autodiff import all_arrays, places, pulled
from dred.cotangents import fit
from dred.errors import InputError, OptionError
from dred.inputs import check
from dred.lazy.given import what
from dred.ranges import Ranges
from dred.routine import Routine

try:
    import jax
    import jax.numpy as jnp
    from jax.custom_derivatives import SymbolicZero
except ImportError as error:
    raise ImportError("dred.jax needs JAX: pip install jax", name="jax") from error

__all__ = ["Genred", "function"]

_Options = tuple[str, Any]  # backend, and Ranges or None


class Genred(genred.Genred):
    """`dred.Genred` of JAX arrays, for use with `jax.jit`, `jax.vmap`, `jax.grad` and `jax.vjp`.

    Parameters, results and errors are those of `dred.Genred`. A call takes arrays of JAX or NumPy and gives arrays of
    JAX on the same device; besides, it takes `backend`, as `dred.Genred` does, and `ranges` made by `dred.Ranges.of`.

    Notes
    -----
    Only gradients that are asked for are computed; they can be differentiated again by reverse mode, any number of
    times: `jax.jacrev(jax.jacrev(f))`. Forward mode (`jax.jvp`, `jax.hessian`) raises JAX's TypeError. Types follow the
    arrays; where JAX has no 64 bits (`jax_enable_x64`), row numbers and counts have 32.

    Arrays in the host's memory are read where they are, inside `jit` by a callback to the host; `vmap` calls the
    routine once for each of a batch. Arrays on a GPU are handed over by DLPack outside `jit`, and copied to the host
    and back inside; neither has been tried on a GPU.

    Raises
    ------
    InputError
        An argument that is no array, or anything of what `dred.Genred` refuses: inside `jit`, when it is traced.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from dred.jax import Genred
    >>> x, y = jnp.array([[1.0], [2.0]]), jnp.array([[3.0], [4.0], [5.0]])
    >>> routine = Genred("x * y", ["x = Vi(1)", "y = Vj(1)"], axis=1)
    >>> jax.jit(jax.grad(lambda x: routine(x, y).sum()))(x)
    Array([[12.],
           [12.]], dtype=float32)
    """

    def __call__(self, *args: Any, backend: str = "auto", ranges: Any = None) -> Any:  # type: ignore[override]
        """Reduce arrays: one for each variable, in the order of their positions. See `dred.Genred`."""
        return _call(self, (backend, ranges), *args)


def function(routine: Routine) -> Callable[..., Any]:
    """A function of JAX arrays that computes a routine, for use with JAX's transformations.

    Parameters
    ----------
    routine : dred.Genred, dred.Reduction, a gradient, or that of a LazyTensor

    Returns
    -------
    callable
        As `Genred` of this module is called.

    Examples
    --------
    >>> import dred, dred.jax, jax.numpy as jnp
    >>> routine = dred.Reduction("LogSumExp_Reduction(x * y, 0)", ["x = Vi(1)", "y = Vj(1)"])
    >>> dred.jax.function(routine)(jnp.zeros((2, 1)), jnp.ones((4, 1)))
    Array([[1.3862944],
           [1.3862944]], dtype=float32)
    """

    def called(*args: Any, backend: str = "auto", ranges: Any = None) -> Any:
        return _call(routine, (backend, ranges), *args)

    return called


def _call(routine: Routine, options: _Options, *args: Any) -> Any:
    if not isinstance(options[1], Ranges | None):
        raise OptionError("ranges: pass those that dred.Ranges.of(ranges, M, N) has made and checked")
    for k, (given, label) in enumerate(zip(args, routine.parsed.labels, strict=False)):
        if not isinstance(given, jax.Array | np.ndarray):
            raise InputError(f"argument {k} ({label}) is no array of JAX or NumPy but {what(given)}")
    return routine.entries(_reducer(routine, options)(*map(jnp.asarray, args)))


@lru_cache(maxsize=512)
def _reducer(routine: Routine, options: _Options) -> Callable[..., tuple[Any, ...]]:
    """All arrays of the result of a routine, as a function that JAX differentiates by functions of the same kind."""

    @jax.custom_vjp  # type: ignore[untyped-decorator]
    def reduce(*arrays: Any) -> tuple[Any, ...]:
        if any(isinstance(array, jax.core.Tracer) for array in arrays):
            like = _like(routine, arrays)
            host = _host(routine, options, tuple(each.dtype for each in like))
            return tuple(jax.pure_callback(host, like, *arrays, vmap_method="sequential"))
        on_host = all(device.platform == "cpu" for array in arrays for device in array.devices())
        given = map(np.asarray, arrays) if on_host else arrays  # by DLPack there is no bfloat16 in NumPy
        found = all_arrays(routine, Routine.__call__(routine, *given, backend=options[0], ranges=options[1]))
        if not on_host:
            return tuple(map(jnp.from_dlpack, found))
        with jax.default_device(next(iter(arrays[0].devices())) if arrays else None):
            return tuple(map(jnp.asarray, found))

    def forward(*primals: Any) -> tuple[Any, Any]:
        arrays = tuple(primal.value for primal in primals)
        # what is static must be in the structure of what is saved: its leaves become arrays
        return reduce(*arrays), (arrays, tuple(() if primal.perturbed else None for primal in primals))

    def backward(saved: Any, cotangents: Any) -> tuple[Any, ...]:
        arrays, wanted = saved
        sent = [None if isinstance(cotangents[k], SymbolicZero) else cotangents[k] for k in places(routine)]
        found: dict[int, Any] = {}
        if any(e is not None for e in sent):
            wrt = [k for k, mark in enumerate(wanted) if mark is not None]
            fitted = fit if jax.config.jax_enable_x64 else None

            def call(routine: Routine, *arrays: Any) -> Any:
                return _call(routine, options, *arrays)

            found = dict(zip(wrt, pulled(routine, wrt, arrays, sent, call, fitted), strict=True))
        return tuple(found.get(k) for k in range(len(arrays)))

    reduce.defvjp(forward, backward, symbolic_zeros=True)
    found: Callable[..., tuple[Any, ...]] = reduce
    return found


@lru_cache(maxsize=512)
def _host(routine: Routine, options: _Options, kinds: tuple[Any, ...]) -> Callable[..., tuple[Any, ...]]:
    """The routine on the host, with results of some types: one function, since JAX compiles for each anew."""

    def host(*arrays: Any) -> tuple[Any, ...]:
        found = all_arrays(
            routine, Routine.__call__(routine, *map(np.asarray, arrays), backend=options[0], ranges=options[1])
        )
        return tuple(array.astype(kind, copy=False) for array, kind in zip(found, kinds, strict=True))

    return host


def _like(routine: Routine, arrays: Sequence[Any]) -> tuple[Any, ...]:
    """Shapes and types of the results of arrays of which there is nothing but shapes and types."""
    given = [np.empty(array.shape, array.dtype) for array in arrays]  # memory that nobody touches
    inputs = check(routine.parsed, routine.flat(given), routine.dtype)
    expected = routine.expected(inputs, given)
    return tuple(jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(kind)) for shape, kind in expected)
