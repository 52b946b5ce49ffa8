"""Conjugate gradients (Hestenes, Stiefel 1952) for many systems at once, over arrays of this process or of others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from dred.kernel.output import array_module

Numbers = NDArray[np.float64]

RUNNING, SOLVED, LIMIT, STALLED, SINGULAR, INDEFINITE, NOT_FINITE, BAD_PRECONDITIONER = range(8)
FLOOR = 8  # roundings of the largest |Ap| / |p|, below which p'Ap / p'p is nothing but rounding
GAIN = 0.5  # a restart from the true residual goes on as long as it leaves no more than that of it


class Ending(NamedTuple):
    """Why a system was not solved, and what to do."""

    what: str
    cure: str


ENDINGS: Mapping[int, Ending] = {
    LIMIT: Ending(
        "the iterations came to their limit",
        "raise maxiter or alpha, or use a preconditioner; where the matrix is not symmetric, residuals need not fall",
    ),
    STALLED: Ending(
        "the true residual does not fall any more, although the one of the recurrence does: rounding of {dtype} allows "
        "no less",
        "raise eps or alpha, or use float64",
    ),
    SINGULAR: Ending(
        "the matrix is singular, as far as {dtype} can tell: p'Ap is {curvature:.3g} of p'p, while |Ap| came to "
        "{largest:.3g} |p|",
        "raise alpha, or use float64",
    ),
    INDEFINITE: Ending(
        "the matrix is not positive definite: p'Ap is {curvature:.3g} of p'p",
        "raise alpha beyond the size of the smallest eigenvalue, or use another kernel",
    ),
    NOT_FINITE: Ending("NaN or infinite numbers", "look for them in the arrays of the call, or in the formula there"),
    BAD_PRECONDITIONER: Ending("the preconditioner is not positive definite", "use another one, or float64"),
}


class Space(Protocol):
    """Where vectors are, (*batch, M, D), and how they are computed with. Numbers of systems are (*batch, 1, values)."""

    def apply(self, p: Any) -> Any:
        """The matrix times vectors, in float64."""

    def reduce(self, routine: Any, given: Any, ranges: Any) -> Any:
        """What a routine gives for some inputs and ranges."""

    def map(self, function: Callable[..., Any], like: Any, *arrays: Any) -> Any:
        """A function of rows of vectors and of numbers; `like` is an array of its shape and type, or (width, type)."""

    def total(self, function: Callable[..., Any], width: int, *arrays: Any) -> Any:
        """The sum of what a function gives for some rows of vectors: numbers (*batch, 1, width) of float64."""

    def dots(self, *pairs: tuple[Any, Any]) -> Any:
        """Scalar products in float64, one beside another: of each pair (*batch, 1, D) or (*batch, 1, 1)."""

    def settle(self, vectors: Sequence[Any], numbers: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Numbers]]:
        """Computes both, wherever; the numbers come to this process. The one time to wait of an iteration."""

    def put(self, numbers: Any) -> Any:
        """Numbers of this process as arrays beside the vectors."""

    def spread(self, rows: Any) -> Any:
        """Rows (*batch, M, width) of this process as vectors."""

    def rows(self, arrays: Sequence[Any], numbers: Any) -> list[Any]:
        """Of arrays (..., M, width), some rows (*batch, k, width), by their numbers (*batch, k), in this process."""

    def largest(self, d: Any, flat: bool) -> Any:
        """The number of the row with the largest sum, (*batch); flat: of the component, among those of all rows."""

    def stacked(self, columns: Any, width: int) -> Any:
        """(k, *batch, M, D) as (*batch, M, width * k), of the first components, in float64."""


# Element-wise functions of an iteration. A step of 0 says that a system does not move, a turn of -1 that it is to rest.


def _parts(numbers: Any, count: int) -> tuple[Any, ...]:
    """Numbers that stand one beside another."""
    width = numbers.shape[-1] // count
    return tuple(numbers[..., k * width : (k + 1) * width] for k in range(count))


def _step(dots: Any, given: Any, tiny: float) -> Any:
    """How far a system moves along p, of p'Ap, p'p and (Ap)'(Ap); r'z is 0 where it rests."""
    xp = array_module(dots)
    (pq, pp, qq), (rz, largest, _) = _parts(dots, 3), _parts(given, 3)
    bound = tiny * xp.fmax(largest, xp.sqrt(qq / xp.where(rz > 0, pp, 1.0))) * pp
    moves = (rz > 0) & (pq > bound) & xp.isfinite(pq)
    return xp.where(moves, rz / xp.where(moves, pq, 1.0), 0.0)


def _turn(step: Any, dots: Any, given: Any) -> Any:
    """How much of p is in the next direction, of r'r and r'z."""
    xp = array_module(dots)
    (rr, new), (rz, _, goal) = _parts(dots, 2), _parts(given, 3)
    goes = (step != 0) & (rr > goal) & (new > 0)
    return xp.where(goes, new / xp.where(goes, rz, 1.0), -1.0)


def _forth(x: Any, step: Any, p: Any) -> Any:
    return array_module(x).where(step != 0, x + step * p, x).astype(x.dtype)


def _back(r: Any, step: Any, q: Any) -> Any:
    return array_module(r).where(step != 0, r - step * q, r).astype(r.dtype)


def _direction(z: Any, turn: Any, p: Any) -> Any:
    return array_module(p).where(turn >= 0, z + turn * p, 0.0).astype(p.dtype)


def _zero(b: Any) -> Any:
    return array_module(b).zeros_like(b)


def _rest(b: Any, q: Any) -> Any:
    return b - q  # q is float64


@dataclass(frozen=True)
class Limits:
    """When to stop.

    Attributes
    ----------
    eps : float
        Relative residual.
    maxiter : int
    patient : bool
        Whether other systems go on where one cannot be solved.
    """

    eps: float
    maxiter: int
    patient: bool


@dataclass(frozen=True, eq=False)
class Found:
    """What an iteration came to.

    Attributes
    ----------
    solution : array (*batch, M, D)
    status : ndarray of int
        Of each system, (*batch, 1, D) or (*batch, 1, 1), as all below.
    iterations : int
    history : list of ndarray
        Relative residuals of the recurrence, before the first iteration and after each.
    residual : ndarray
        The true ones of the solution.
    curvature, largest : ndarray
        The last p'Ap / p'p, and the largest |Ap| / |p|.
    """

    solution: Any
    status: NDArray[np.int8]
    iterations: int
    history: list[Numbers]
    residual: Numbers
    curvature: Numbers
    largest: Numbers


def _relative(square: Numbers, scale: Numbers) -> Numbers:
    """Norms as a part of others; of nothing, nothing."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        return np.where(square == 0, 0.0, np.sqrt(square) / scale)


class Iteration:
    """Conjugate gradients for A a = b with a symmetric positive definite A, from a = 0.

    A system that is solved, or cannot be, moves no more. When all are, the residual is computed from the solution;
    where it is too large still, they go on from there, as long as that gains anything.

    Parameters
    ----------
    space : Space
    b : array (*batch, M, D)
    precondition : callable or None
        A vector times the inverse of something like A.
    limits : Limits
    told : callable
        Called with the number of an iteration and relative residuals (*batch, 1, D).
    """

    def __init__(
        self,
        space: Space,
        b: Any,
        precondition: Callable[[Any], Any] | None,
        limits: Limits,
        told: Callable[[int, Numbers], None],
    ) -> None:
        self.space, self.b, self.limits, self.told = space, b, limits, told
        self.precondition = precondition or (lambda r: r)
        self.tiny = FLOOR * float(np.finfo(np.dtype(str(b.dtype))).eps)

    def run(self) -> Found:
        """Iterate to the end."""
        space, b = self.space, self.b
        z = self.precondition(b)
        (b, p), (dots,) = space.settle([b, self._like(z)], [space.dots((b, b), (b, z))])
        self.b, (square, rz) = b, _parts(dots, 2)
        self.scale = np.sqrt(square)
        self.status = np.where(np.isfinite(square), RUNNING, NOT_FINITE).astype(np.int8)
        self.status[square == 0] = SOLVED
        self.status[(self.status == RUNNING) & ~(rz > 0)] = BAD_PRECONDITIONER
        self.largest, self.curvature = np.zeros_like(square), np.full_like(square, np.nan)
        self.history, self.iterations = [_relative(square, self.scale)], 0
        self.told(0, self.history[0])
        x, r, last = space.map(_zero, b, b), b, np.full_like(square, np.inf)
        while True:
            x, r = self._descend(x, r, p, rz)
            (x, r, p), rz, true = self._again(x)
            residual = _relative(true, self.scale)
            wanting = (self.status == SOLVED) & ~(residual <= self.limits.eps)
            better = wanting & (residual <= GAIN * last)
            last = residual
            self.status[wanting] = STALLED
            if not better.any() or self._hopeless():
                break
            self.status[better] = RUNNING
        return Found(x, self.status, self.iterations, self.history, residual, self.curvature, self.largest)

    def _hopeless(self) -> bool:
        return not self.limits.patient and bool((self.status > SOLVED).any())

    def _like(self, z: Any) -> Any:
        return z if z.dtype == self.b.dtype else z.astype(self.b.dtype)

    def _again(self, x: Any) -> tuple[Sequence[Any], Numbers, Numbers]:
        """The residual of a solution, from which there may be a new beginning."""
        space = self.space
        q = space.apply(x)
        exact = space.map(_rest, q, self.b, q)
        r = self._like(exact)
        z = self.precondition(r)
        vectors, (dots,) = space.settle([x, r, self._like(z)], [space.dots((exact, exact), (r, z))])
        true, rz = _parts(dots, 2)
        return vectors, rz, true

    def _descend(self, x: Any, r: Any, p: Any, rz: Numbers) -> tuple[Any, Any]:
        """Iterations until no system moves."""
        while (self.status == RUNNING).any() and not self._hopeless():
            if self.iterations >= self.limits.maxiter:
                self.status[self.status == RUNNING] = LIMIT
                break
            (x, r, p), rz = self._iterate(x, r, p, rz)
        return x, r

    def _iterate(self, x: Any, r: Any, p: Any, rz: Numbers) -> tuple[Sequence[Any], Numbers]:
        """One iteration: vectors and numbers are computed together, at its end."""
        space, active = self.space, self.status == RUNNING
        given = space.put(np.concatenate([np.where(active, rz, 0.0), self.largest, self.goal], axis=-1))
        q = space.apply(p)
        first = space.dots((p, q), (p, p), (q, q))
        width = int(rz.shape[-1])
        step = space.map(partial(_step, tiny=self.tiny), (width, "float64"), first, given)
        x, r = space.map(_forth, x, x, step, p), space.map(_back, r, r, step, q)
        z = self.precondition(r)
        second = space.dots((r, r), (r, z))
        turn = space.map(_turn, (width, "float64"), step, second, given)
        p = space.map(_direction, p, z, turn, p)
        vectors, (dots, more) = space.settle([x, r, p], [first, second])
        rr, new = _parts(more, 2)
        pq, pp, qq = _parts(dots, 3)
        self._account(active, pq, pp, qq, rr, new)
        return vectors, new

    @property
    def goal(self) -> Numbers:
        """Squared norms of residuals that are small enough."""
        goal: Numbers = np.square(self.limits.eps * self.scale)
        return goal

    def _account(self, active: Any, pq: Numbers, pp: Numbers, qq: Numbers, rr: Numbers, new: Numbers) -> None:
        """What an iteration says of each system that was moving."""
        with np.errstate(all="ignore"):
            ratio = np.sqrt(qq / pp)
            self.largest = np.where(active, np.fmax(self.largest, ratio), self.largest)
            self.curvature = np.where(active, pq / pp, self.curvature)
            bound = self.tiny * self.largest * pp
            moved = active & (pq > bound) & np.isfinite(pq)
            for found, status in (
                (active & ~moved & (pq < -bound), INDEFINITE),
                (active & ~moved & (np.abs(pq) <= bound), SINGULAR),
                (active & ~(np.isfinite(pq) & np.isfinite(qq) & np.isfinite(rr)), NOT_FINITE),
                (moved & (rr > self.goal) & ~(new > 0), BAD_PRECONDITIONER),
                (moved & (rr <= self.goal), SOLVED),
            ):
                self.status[found] = status
        self.iterations += 1
        self.history.append(np.where(active & np.isfinite(rr), _relative(rr, self.scale), self.history[-1]))
        self.told(self.iterations, self.history[-1])
