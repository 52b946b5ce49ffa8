"""Derivatives of routines applied to vectors: pullbacks, pushforwards, gradients, products with Hessians."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from dred.cotangents import fit, in_rows, sending_of
from dred.errors import DerivativeError, InputError, OptionError
from dred.formula import pullback as rules
from dred.formula.language import Formula, Variable
from dred.formula.node import var
from dred.formula.pullback import Reduced
from dred.reductions import REDUCTIONS
from dred.routine import Gradient, Routine

Wrt = Sequence[str | int] | str | int | None


class Derived(Routine):
    """Several derivatives of a routine that are reduced over the same index, in one sweep where they can be.

    Called with the arrays of the routine and, behind them, `given`: a tuple of arrays. Rows of what belongs to a
    parameter are not added up.

    Parameters
    ----------
    of : Routine
    given : sequence of Variable
        Variables behind those of the routine.
    reduced : sequence of Reduced
    what : str
        For errors.
    """

    def __init__(self, of: Routine, given: Sequence[Variable], reduced: Sequence[Reduced], what: str) -> None:
        variables = (*of.variables, *given)
        labels = (*of.parsed.labels, *(f"{what} {k}" for k in range(len(given))))
        names = ("",) * len(variables)
        formula = Formula(f"{what}s of {of.formula}", reduced[0].node, variables, names, labels)
        made = rules.together(reduced, len(variables))
        aliases = tuple(map(str, variables))
        super().__init__(formula, aliases, made, several=True, dtype=of.dtype, how=of.how, expand=of.expand)


def vjp(
    routine: Any, *args: Any, backend: str = "auto", ranges: Any = None, **how: Any
) -> tuple[Any, Callable[..., tuple[Any, ...]]]:
    """The value of a routine, and the function that pulls cotangents back to its arguments.

    Parameters
    ----------
    routine : Genred, Reduction, or a gradient; or a reduction of a LazyTensor, made with `call=False`; or
        KernelSolve, see `KernelSolve.vjp`
    *args : arrays
        As in a call; dask arrays stay lazy. Of a LazyTensor's reduction, which has its arrays: by which of them, or of
        the variables that they made, the same objects; by default all, in the order of its `arrays`.
    backend, ranges
        As in a call; by default those of a LazyTensor's reduction.
    **how
        Of `KernelSolve`: the options of its call.

    Returns
    -------
    value
        As of a call.
    pullback : callable
        Takes a cotangent for each reduction that has a derivative, an array like its result (the first one of a pair),
        and returns a tuple with the gradient of the sum of all cotangents times results by each argument, which has its
        shape. Those by all variables that are reduced over the same index take one sweep over the pairs.

    Raises
    ------
    DerivativeError
        No reduction has a derivative.

    Examples
    --------
    >>> import numpy as np, dred
    >>> routine = dred.Genred("p * x * y", ["x = Vi(1)", "y = Vj(1)", "p = Pm(1)"], axis=1)
    >>> x, y, p = np.array([[1.0], [2.0]]), np.array([[3.0], [4.0], [5.0]]), np.array([2.0])
    >>> value, pullback = dred.vjp(routine, x, y, p)
    >>> by_x, by_y, by_p = pullback(np.ones((2, 1)))
    >>> by_x.ravel(), by_y.ravel(), by_p
    (array([24., 24.]), array([6., 6., 6.]), array([36.]))
    >>> call = (dred.Vi(x) * dred.Vj(y)).exp().sum(axis=1, call=False)
    >>> value, pullback = dred.vjp(call, x)
    >>> [gradient.shape for gradient in pullback(np.ones((2, 1)))]
    [(2, 1)]
    """
    if not isinstance(routine, Routine):
        found: tuple[Any, Callable[..., tuple[Any, ...]]]
        found = _held(routine, "vjp").vjp(*args, backend=None if backend == "auto" else backend, ranges=ranges, **how)
        return found
    if how:
        raise OptionError(f"{next(iter(how))} is an option of KernelSolve, not of the derivative of a reduction")
    sending = sending_of(routine.reduced)
    if not sending:
        names = ", ".join(dict.fromkeys(r.name for r in routine.reduced))
        raise DerivativeError(f"{names}: no derivative", hint="its values only jump")
    value = routine(*args, backend=backend, ranges=ranges)
    results = [a for r, a in zip(routine.reduced, first_arrays(routine, value), strict=True) if r in sending]

    def pullback(*cotangents: Any) -> tuple[Any, ...]:
        if len(cotangents) != len(sending):
            raise InputError(f"the pullback takes {len(sending)} cotangents, got {len(cotangents)}")
        for n, (e, result) in enumerate(zip(cotangents, results, strict=True)):
            shape = tuple(result.shape)
            rows = (*shape[:-2], shape[-2] * shape[-1]) if len(shape) > 2 else shape  # of rankings of vectors
            if tuple(e.shape) not in (shape, rows):
                raise InputError(f"cotangent {n} has shape {tuple(e.shape)}: expected {shape}, as the result")
        return pulled(routine, range(len(routine.variables)), args, cotangents, by(backend, ranges))

    return value, pullback


def _held(call: Any, name: str) -> Any:
    """What has a pullback of its own: a reduction of a LazyTensor.

    Raises
    ------
    OptionError
        It is neither that nor a routine.
    """
    if not hasattr(call, "vjp"):
        raise OptionError(
            f"dred.{name} takes a routine, such as Genred, or a reduction of a LazyTensor, made with call=False; got "
            f"{type(call).__name__}"
        )
    return call


def _routine(routine: Any, name: str) -> Routine:
    """A routine, where there must be one.

    Raises
    ------
    OptionError
    """
    if isinstance(routine, Routine):
        return routine
    _held(routine, name)
    raise OptionError(
        f"dred.{name} takes a routine; of a reduction of a LazyTensor, which has its arrays, take its methods vjp and "
        "grad, or its routine"
    )


def pulled(
    routine: Routine,
    wrt: Sequence[int],
    args: Sequence[Any],
    cotangents: Sequence[Any],
    call: Callable[..., Any],
    fitted: Callable[[Any, Any, bool], Any] | None = fit,
) -> tuple[Any, ...]:
    """The gradients by the variables at some positions, in their order.

    Parameters
    ----------
    routine : Routine
    wrt : sequence of int
    args : sequence of arrays
    cotangents : sequence of (array or None)
        Of each reduction that has a derivative; None: its result does not count. One is given at least.
    call : callable
        `call(routine, *arrays)` computes a routine.
    fitted : callable or None
        Does what `fit` does. None: the library cannot add up as it should, and the gradient by a variable whose rows or
        elements of the batch are to be added up takes a sweep of its own, which does it.
    """
    sending = sending_of(routine.reduced)
    used = tuple(n for n, e in enumerate(cotangents) if e is not None)
    if len(used) < len(sending):
        routine, sending = part(routine, used), [sending[n] for n in used]
    given = [cotangents[n] for n in used]
    narrow = any(str(getattr(a, "dtype", "")).endswith("float16") for a in args)
    found: dict[int, Any] = {}
    groups: dict[int, list[int]] = {}
    for k in wrt:
        cat = routine.variables[k].cat
        alone = fitted is None and (cat == 2 or any(a.ndim > 2 for a in args))
        if routine.rows_added or (cat == 2 and narrow) or alone:  # rows are added up before they are rounded
            found[k] = call(gradient(routine, k), *args, *given)
        else:
            groups.setdefault(cat % 2, []).append(k)
    flat, plain = [*map(in_rows, sending, given)], routine.flat(args)
    for chosen in groups.values():
        results = call(gradients(routine, tuple(chosen)), *plain, *flat)
        for k, rows in zip(chosen, results, strict=True):
            found[k] = rows if fitted is None else fitted(rows, plain[k], routine.variables[k].cat == 2)
    return tuple(g if g.shape == args[k].shape else g.reshape(args[k].shape) for k in wrt for g in [found[k]])


def by(backend: str, ranges: Any) -> Callable[..., Any]:
    """What computes a routine with arrays."""
    return lambda routine, *arrays: routine(*arrays, backend=backend, ranges=ranges)


@lru_cache(maxsize=128)
def part(routine: Routine, chosen: tuple[int, ...]) -> Routine:
    """Of the reductions that have a derivative some, as one routine."""
    sending = sending_of(routine.reduced)
    reduced = rules.together([sending[n] for n in chosen], len(routine.variables))
    return Routine(
        routine.parsed, routine.aliases, reduced, several=True, dtype=routine.dtype, how=routine.how,
        expand=routine.expand,
    )  # fmt: skip


@lru_cache(maxsize=128)
def gradient(routine: Routine, place: int) -> Gradient:
    """The gradient by one variable, made once."""
    return routine.grad(place)


@lru_cache(maxsize=128)
def gradients(routine: Routine, places: tuple[int, ...]) -> Derived:
    """The gradients by variables that leave the same index, as one routine."""
    sending = sending_of(routine.reduced)
    first = len(routine.variables)
    given = [Variable(first + k, r.dim, r.cat) for k, r in enumerate(sending)]
    nodes = [var(v.ind, v.dim, v.cat) for v in given]
    chosen = [routine.variables[k] for k in places]
    reduced = [rules.grad(sending, var(v.ind, v.dim, v.cat), nodes, first + len(given)) for v in chosen]
    return Derived(routine, given, reduced, "cotangent")


def jvp(
    routine: Routine, args: Sequence[Any], tangents: Sequence[Any], *, backend: str = "auto", ranges: Any = None
) -> tuple[Any, Any]:
    """The value of a routine, and its derivative in a direction.

    Parameters
    ----------
    routine : Genred, Reduction, or a gradient by a variable that is no parameter
    args : sequence of arrays
        As in a call.
    tangents : sequence of (array or None)
        For each argument its direction, an array like it; None: it stays.
    backend, ranges
        As in a call.

    Returns
    -------
    value, tangent
        Both as of a call: a tangent for the (first) array of each reduction.

    Raises
    ------
    InputError
        Another number of tangents than of arguments, or none at all.
    DerivativeError
        A reduction without a derivative.

    Examples
    --------
    >>> import numpy as np, dred
    >>> routine = dred.Genred("x * y", ["x = Vi(1)", "y = Vj(1)"], axis=1)
    >>> x, y = np.array([[1.0], [2.0]]), np.array([[3.0], [4.0]])
    >>> dred.jvp(routine, (x, y), (np.ones((2, 1)), None))[1].ravel()
    array([7., 7.])
    """
    routine = _routine(routine, "jvp")
    if len(tangents) != len(routine.variables) or all(t is None for t in tangents):
        raise InputError(
            f"the routine takes {len(routine.variables)} arguments and as many tangents, one at least; got "
            f"{len(tangents)}"
        )
    if routine.rows_added:
        raise OptionError("a gradient by a parameter adds its rows up: take the derivative of what it is a gradient of")
    moving = tuple(k for k, t in enumerate(tangents) if t is not None)
    pushed = pushforward(routine, moving)
    given = [t for t in routine.flat(tangents) if t is not None]
    results = pushed(*routine.flat(args), *given, backend=backend, ranges=ranges)
    value = routine(*args, backend=backend, ranges=ranges)
    count = len(routine.reduced)
    each = []
    for n, first in enumerate(first_arrays(routine, value)):
        tangent = results[n]
        for m in range(1, len(moving)):
            tangent = tangent + results[n + count * m]
        fitted = fit(tangent, first, False) if isinstance(routine, Gradient) else tangent
        each.append(fitted.reshape(first.shape))
    return value, tuple(each) if routine.several else each[0]


def first_arrays(routine: Routine, value: Any) -> list[Any]:
    """Of what a call gave, the array of each reduction, the first one of a pair."""
    entries = value if routine.several else (value,)
    return [entry[0] if isinstance(entry, tuple) else entry for entry in entries]


def all_arrays(routine: Routine, value: Any) -> list[Any]:
    """Of what a call gave, all arrays."""
    entries = value if routine.several else (value,)
    return [array for entry in entries for array in (entry if isinstance(entry, tuple) else (entry,))]


def places(routine: Routine) -> list[int]:
    """Where, among all arrays of what a call gives, those that have a derivative are."""
    sending, place, found = sending_of(routine.reduced), 0, []
    for r in routine.reduced:
        if r in sending:
            found.append(place)
        place += len(REDUCTIONS[r.name].results)
    return found


@lru_cache(maxsize=128)
def pushforward(routine: Routine, moving: tuple[int, ...]) -> Derived:
    """The derivatives in directions of some variables, variable by variable, as one routine."""
    first = len(routine.variables)
    chosen = [routine.variables[k] for k in moving]
    given = [Variable(first + n, v.dim, v.cat) for n, v in enumerate(chosen)]
    reduced = [
        rules.diff(r, var(v.ind, v.dim, v.cat), var(u.ind, u.dim, u.cat), first + len(given))
        for v, u in zip(chosen, given, strict=True)
        for r in routine.reduced
    ]
    return Derived(routine, given, reduced, "tangent")


def grad_of(routine: Routine, wrt: Wrt = None, *, with_value: bool) -> Callable[..., Any]:
    """What `grad` and `value_and_grad` return."""
    routine = _routine(routine, "value_and_grad" if with_value else "grad")
    names: Mapping[Any, int] = {
        **{k: k for k in range(len(routine.variables))},
        **{name: k for k, name in enumerate(routine.parsed.names) if name},
    }
    chosen = list(range(len(routine.variables))) if wrt is None else [wrt] if isinstance(wrt, str | int) else [*wrt]
    for name in chosen:
        if isinstance(name, bool) or name not in names:
            raise OptionError(f"wrt={name!r}: the routine has no such variable, but {', '.join(map(repr, names))}")
    places = [names[name] for name in chosen]

    sending = sending_of(routine.reduced)

    def function(*args: Any, backend: str = "auto", ranges: Any = None) -> Any:
        value, _ = vjp(routine, *args, backend=backend, ranges=ranges)
        results = zip(routine.reduced, first_arrays(routine, value), strict=True)
        ones = [np.ones_like(first) for r, first in results if r in sending]
        found = pulled(routine, places, args, ones, by(backend, ranges))
        gradient = found[0] if isinstance(wrt, str | int) else found
        return (value, gradient) if with_value else gradient

    return function


def grad(routine: Routine, wrt: Wrt = None) -> Callable[..., Any]:
    """A function of the routine's arrays: the gradient of the sum of all numbers of its result.

    Parameters and errors are those of `value_and_grad`.

    Examples
    --------
    >>> import numpy as np, dred
    >>> routine = dred.Genred("Square(x - y)", ["x = Vi(1)", "y = Vj(1)"], axis=1)
    >>> x, y = np.array([[1.0], [2.0]]), np.array([[3.0], [4.0], [5.0]])
    >>> dred.grad(routine, "x")(x, y).ravel()
    array([-18., -12.])
    """
    return grad_of(routine, wrt, with_value=False)


def value_and_grad(routine: Routine, wrt: Wrt = None) -> Callable[..., Any]:
    """A function of the routine's arrays: its value, and the gradient of the sum of all numbers of it.

    Parameters
    ----------
    routine : Genred, Reduction, or a gradient
    wrt : str, int, or sequence of them, optional
        By which arguments; one: the gradient is an array, several: a tuple. By default all.

    Raises
    ------
    OptionError
        No such argument.
    """
    return grad_of(routine, wrt, with_value=True)


def hessian_vector_product(
    routine: Routine,
    wrt: str | int,
    args: Sequence[Any],
    vector: Any,
    cotangents: Sequence[Any],
    backend: str = "auto",
    ranges: Any = None,
) -> Any:
    """The derivative of a gradient in a direction of its own variable.

    Parameters
    ----------
    routine : Genred or Reduction
    wrt : str or int
        By which argument, that is no parameter.
    args : sequence of arrays
        As in a call.
    vector : array
        The direction, like the argument.
    cotangents : sequence of arrays
        Of the sum of all cotangents times results the second derivative is taken.
    backend, ranges
        As in a call.

    Returns
    -------
    array
        Like the argument.

    Examples
    --------
    >>> import numpy as np, dred
    >>> routine = dred.Genred("Square(x - y)", ["x = Vi(1)", "y = Vj(1)"], axis=1)
    >>> x, y = np.array([[1.0], [2.0]]), np.array([[3.0], [4.0], [5.0]])
    >>> dred.hessian_vector_product(routine, "x", (x, y), np.ones((2, 1)), [np.ones((2, 1))]).ravel()
    array([6., 6.])
    """
    gradient = _routine(routine, "hessian_vector_product").grad(wrt)
    place = wrt if isinstance(wrt, int) else routine.parsed.names.index(wrt)
    tangents: list[Any] = [None] * len(gradient.variables)
    tangents[place] = vector
    return jvp(gradient, (*args, *cotangents), tangents, backend=backend, ranges=ranges)[1]
