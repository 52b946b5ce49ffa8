"""Reductions of formulas that hold their arrays: variables by position, one routine for all formulas of a kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, reduce
from operator import add
from typing import Any

import numpy as np

from dred import autodiff, options
from dred.cotangents import sending_of
from dred.errors import DerivativeError, DtypeError, InputError, OptionError
from dred.formula.language import Formula, Variable
from dred.formula.node import Node, canonical, toposort, var
from dred.formula.pullback import Reduced
from dred.inputs import native
from dred.lazy import pairs
from dred.lazy.given import COMPLEX, Held, what
from dred.routine import Routine


@dataclass(frozen=True, eq=False, repr=False)
class Call:
    """A reduction of a LazyTensor that has not been computed: `K.sum(axis=1, call=False)`.

    Attributes
    ----------
    routine : Routine
        Of real numbers: a complex vector is one of twice the components.
    held : tuple of Held
        What the variables hold, by position; symbolic ones come first.
    is_complex : bool
        Whether the result is complex.
    how : mapping
        Options of the call, as of `Genred`.
    sources : mapping of Node to int
        The position of each variable of the LazyTensor.
    lost : mapping of Node to Held
        Variables that the formula has lost, as x - x has: gradients by them are 0.

    Examples
    --------
    >>> import numpy as np
    >>> from dred import Vi, Vj
    >>> x = np.array([[1.0], [2.0]])
    >>> call = (Vi(x) * Vj(x)).sum(axis=1, call=False)
    >>> call
    Call(Sum over j of Mult(Var(0,1,0), Var(1,1,1)))
    >>> call().ravel(), call.grad(x).ravel()
    (array([3., 6.]), array([6., 6.]))
    """

    routine: Routine
    held: tuple[Held, ...]
    is_complex: bool = False
    how: Mapping[str, Any] = field(default_factory=lambda: {"backend": "auto", "ranges": None})
    sources: Mapping[Node, int] = field(default_factory=dict)
    lost: Mapping[Node, Held] = field(default_factory=dict)

    @property
    def arrays(self) -> tuple[Any, ...]:
        """The arrays of the variables as they were passed, each object once, by position."""
        return tuple({id(h.array): h.array for h in self.held if h.array is not None}.values())

    def __call__(self, *args: Any, **how: Any) -> Any:
        """The result.

        Parameters
        ----------
        *args : arrays
            Those that are missing: of the symbolic variables, in the order of their positions.
        **how
            Options of a call of `Genred`, in place of those that were given to the reduction.

        Raises
        ------
        InputError, DtypeError
            More or fewer arrays than are missing, or arrays that do not fit.
        """
        chosen = {**self.how, **how}
        if self.is_complex and (out := chosen.get("out")) is not None:
            if not pairs.is_complex(out) or not out.flags.c_contiguous:
                raise InputError("out must be C-contiguous and complex, as the result is")
            self.routine(*self._rows(args), **{**chosen, "out": pairs.as_real(out, "out")})
            return out
        return self._result(self.routine(*self._rows(args), **chosen))

    def _rows(self, args: Sequence[Any]) -> list[Any]:
        """The arrays of all variables, as the routine takes them."""
        missing = sum(h.array is None for h in self.held)
        if len(args) != missing:
            raise InputError(f"the reduction takes {missing} arrays, got {len(args)}")
        rest = iter(args)
        return [_real(next(rest), f"argument {k}", h) if h.array is None else h.rows for k, h in enumerate(self.held)]

    def _result(self, found: Any) -> Any:
        """What the routine gives, as the LazyTensor's numbers."""
        if isinstance(found, tuple):
            return tuple(map(self._result, found))
        return pairs.as_complex(found) if self.is_complex else found

    def vjp(
        self, *wrt: Any, backend: str | None = None, ranges: Any = None
    ) -> tuple[Any, Callable[..., tuple[Any, ...]]]:
        """The value, and the function that pulls cotangents back to arrays.

        Parameters
        ----------
        *wrt : array or LazyTensor
            By what: arrays that were passed to `Vi`, `Vj`, `Pm` or `LazyTensor`, the same objects, or the variables
            that these made. An array that occurs several times, as in `Vi(x)` and `Vj(x)`, receives the sum of all
            contributions; a variable that of its own category. By default all, in the order of `arrays`.
        backend, ranges
            As of a call; by default those of the reduction.

        Returns
        -------
        value
            As of a call.
        pullback : callable
            Takes a cotangent, an array like the result (the first one of a pair), and returns a tuple: for each of
            `wrt` the gradient of the sum of cotangent times result, an array of its shape. Dask arrays stay lazy.
            Complex numbers count as pairs of real ones: of cotangents e the gradient is that of the sum of
            `(conj(e) * result).real`, its parts the derivatives by real and imaginary parts.

        Raises
        ------
        InputError
            Variables without arrays, or an array that is none of the reduction.
        DerivativeError
            A reduction without a derivative.
        """
        if any(h.array is None for h in self.held):
            raise InputError("variables without arrays: pass them to dred.vjp with the routine, this call's `routine`")
        if not sending_of(self.routine.reduced):
            raise DerivativeError(f"{self.routine.reduction_op}: no derivative", hint="its values only jump")
        wanted = [self._held(x) for x in (wrt or self.arrays)]
        given = {"backend": backend, "ranges": ranges}
        how = {**self.how, **{word: value for word, value in given.items() if value is not None}}
        value = self(**how)

        def pullback(*cotangents: Any) -> tuple[Any, ...]:
            if len(cotangents) != 1:
                raise InputError(f"the pullback takes 1 cotangent, got {len(cotangents)}")
            each = sorted({k for _, places in wanted for k in places})
            e = _real(cotangents[0], "the cotangent", Held(is_complex=self.is_complex))
            rows = [h.rows for h in self.held]
            pulled = (
                autodiff.pulled(self.routine, each, rows, [e], autodiff.by(how["backend"], how["ranges"]))
                if each
                else ()
            )
            found = dict(zip(each, pulled, strict=True))
            totals = [
                reduce(add, [found[k] for k in places]) if places else np.zeros_like(h.rows) for h, places in wanted
            ]
            return tuple(_like(h, total) for (h, _), total in zip(wanted, totals, strict=True))

        return value, pullback

    def grad(self, *wrt: Any, backend: str | None = None, ranges: Any = None) -> Any:
        """The gradient of the sum of all numbers of the result: an array for one of `wrt`, else a tuple.

        Parameters and errors are those of `vjp`.

        Raises
        ------
        OptionError
            The result is complex, and so is the sum: there is no gradient, but a pullback.
        """
        if self.is_complex:
            raise OptionError("the result is complex, and so is its sum: pass a cotangent to the pullback of `vjp`")
        value, pullback = self.vjp(*wrt, backend=backend, ranges=ranges)
        found = pullback(np.ones_like(autodiff.first_arrays(self.routine, value)[0]))
        return found[0] if len(wrt) == 1 else found

    def _held(self, x: Any) -> tuple[Held, list[int]]:
        """What an array or a variable holds, and its positions, none where the formula has lost it."""
        node = getattr(x, "node", None)
        if isinstance(node, Node) and node in self.sources:
            return self.held[self.sources[node]], [self.sources[node]]
        found = [k for k, h in enumerate(self.held) if h.array is x]
        lost = [h for n, h in self.lost.items() if n is node or h.array is x]
        if not found and not lost:
            shapes = ", ".join({id(h.array): str(h.shape) for h in self.held}.values()) or "none"
            raise InputError(
                f"{what(x)} is no array or variable of the reduction: pass the object that Vi, Vj or Pm was given, or "
                f"what it made; the arrays have the shapes {shapes}"
            )
        return self.held[found[0]] if found else lost[0], found

    def __repr__(self) -> str:
        r = self.routine
        return f"Call({r.reduction_op} over {'ij'[r.axis]} of {r.formula})"


def _like(h: Held, gradient: Any) -> Any:
    """The gradient by rows as one by the array that was passed."""
    found = pairs.as_complex(gradient) if h.is_complex else gradient
    return found if found.shape == h.shape else found.reshape(h.shape)


def _real(array: Any, label: str, like: Held) -> Any:
    """An array that a caller passes, as the routine takes it."""
    found = native(array, label)
    if pairs.is_complex(found) != like.is_complex:
        has = "complex" if like.is_complex else "real"
        raise DtypeError(f"{label} is {has}, got an array of {getattr(found, 'dtype', type(found).__name__)}")
    return pairs.as_real(found, label) if like.is_complex else found


def places(roots: Sequence[Node], held: Mapping[Node, Held]) -> tuple[dict[Node, Node], list[Held]]:
    """Variables at positions 0, 1, ... in place of those of formulas, and what they hold.

    Symbolic ones come first, in their order; of several that hold one array, one is enough. Where a formula has lost
    all its variables of a category, as x * 0 has, one is kept, since it says how many rows there are; and so are those
    that say what the dimensions of a batch are.

    Raises
    ------
    InputError
        Symbolic ones whose positions leave gaps.
    """

    def position(n: Node) -> int:
        return int(n.attrs[0]) % COMPLEX

    found = [n for n in toposort(roots) if n.op == "Var"]
    known = {2, *(n.attrs[1] for n in found)}  # a parameter has no rows
    lead = _lead([held[n].batch for n in found])
    for n in held:
        wider = lead if n in found else _lead([lead or (), held[n].batch])
        if n not in found and (held[n].array is None or n.attrs[1] not in known or wider != lead):
            known.add(n.attrs[1])
            found.append(n)
            lead = wider
    open_ones = sorted((n for n in found if held[n].array is None), key=position)
    if (numbers := [*map(position, open_ones)]) != [*range(len(numbers))]:
        raise InputError(f"variables without arrays have the positions {numbers}: they must be 0, 1, ..., each once")
    new: dict[Node, Node] = {}
    listed: list[Held] = []
    by_array: dict[tuple[int, int], int] = {}  # positions, by array and category
    for n in [*open_ones, *(n for n in found if held[n].array is not None)]:
        mine, cat = held[n], n.attrs[1]
        place = None if mine.array is None else by_array.get((id(mine.array), cat))
        if place is None:
            place = len(listed)
            listed.append(mine)
            by_array[id(mine.array), cat] = place
        new[n] = var(place, n.dim, cat)
    return new, listed


def _lead(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...] | None:
    """What dimensions in front broadcast to; None: they do not, which a call refuses."""
    try:
        return tuple(np.broadcast_shapes(*shapes))
    except ValueError:
        return None


@lru_cache(maxsize=512)
def routine(
    reduction: str,
    node: Node,
    weight: Node | None,
    axis: int,
    parameter: Any,
    variables: tuple[Variable, ...],
    how: tuple[Any, ...],
    expanded: bool,
) -> Routine:
    """What computes a reduction of a formula of variables at positions 0, 1, ...: made once for all of its kind."""
    reduced = Reduced(reduction, node, 1 - axis, parameter, weight)
    text = canonical(node)
    options.dimensions(reduced, text, None if weight is None else canonical(weight))
    labels = tuple(map(str, variables))
    formula = Formula(text, node, variables, ("",) * len(variables), labels)
    accumulation, expansion = options.accumulation((reduced,), *how), options.expansion((reduced,), expanded)
    return Routine(formula, labels, (reduced,), dtype=None, how=accumulation, expand=expansion)
