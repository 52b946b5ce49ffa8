"""KernelSolve: linear systems whose matrix is a reduction of a formula, by conjugate gradients."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dred import preconditioners
from dred.autodiff import by, pulled
from dred.conjugate import ENDINGS, SOLVED, Found, Iteration, Limits, Numbers
from dred.cotangents import like
from dred.errors import ArgumentError, DimensionError, DtypeError, InputError, OptionError, SolveError
from dred.formula.language import Reader
from dred.formula.linear import COUPLED, linearity
from dred.formula.node import var
from dred.genred import Genred
from dred.inputs import check
from dred.kernel import engine
from dred.preconditioners import System
from dred.ranges import Ranges
from dred.routine import Routine
from dred.run import configured
from dred.solve_options import Options, Told
from dred.vectors import Call, here, lazily

TYPES = ("float32", "float64")


@dataclass(frozen=True, eq=False)
class SolveInfo:
    """What became of the systems of a call.

    Attributes
    ----------
    iterations : int
    residuals : ndarray (iterations + 1, *systems)
        Norms of the residuals of the recurrence, as parts of the norm of b, before the first iteration and after each.
        Systems are the elements of the batch, and of each the columns of b, where the formula keeps these apart.
    residual : ndarray (*systems)
        Those of the solution, computed from it in the end.
    converged : ndarray (*systems) of bool
    """

    iterations: int
    residuals: Numbers
    residual: Numbers
    converged: NDArray[np.bool_]


class KernelSolve:
    r"""The solution a of (alpha Id + K) a = b, where K a is the sum of a formula that is linear in a.

    .. math:: \alpha a_i + \sum_j F(p, x_i, y_j, a_j) = b_i \quad (\mathrm{axis} = 1)

    K must be symmetric and positive (semi-)definite, and is never stored: conjugate gradients apply it once per
    iteration.

    Parameters
    ----------
    formula : str
        F, of the dimension of the variable it is solved for.
    aliases : sequence of str
        As in `Genred`.
    varinvalias : str or int
        The variable it is solved for: its alias, its position, or "Var(ind,dim,cat)". It belongs to the index that is
        summed over: ``Vj`` for axis 1, ``Vi`` for axis 0.
    axis : {0, 1}
        1: sums over j; 0: over i.
    dtype, opt_arg, dtype_acc, use_double_acc, sum_scheme, enable_chunks, rec_multVar_highdim, use_fast_math, expand
        As in `Genred`; the type is float32 or float64.

    Raises
    ------
    FormulaError
        A formula or alias that means nothing, a formula that is not linear in the variable, or of another dimension.
    OptionError
        Another argument that is not accepted.

    Examples
    --------
    >>> import numpy as np
    >>> from dred import Genred, KernelSolve
    >>> formula, aliases = "Exp(-SqDist(x, y)) * b", ["x = Vi(2)", "y = Vj(2)", "b = Vj(1)"]
    >>> solve = KernelSolve(formula, aliases, "b", axis=1)
    >>> rng = np.random.default_rng(0)
    >>> x, b = rng.normal(size=(500, 2)), rng.normal(size=(500, 1))
    >>> a = solve(x, x, b, alpha=0.1)
    >>> rest = b - 0.1 * a - Genred(formula, aliases, axis=1)(x, x, a)
    >>> bool(np.linalg.norm(rest) <= 1e-6 * np.linalg.norm(b))
    True
    """

    def __init__(
        self,
        formula: str,
        aliases: Sequence[str],
        varinvalias: str | int,
        axis: int = 0,
        dtype: Any = None,
        opt_arg: Any = None,
        dtype_acc: Any = "auto",
        use_double_acc: bool = False,
        sum_scheme: str = "auto",
        enable_chunks: bool = True,
        rec_multVar_highdim: Any = None,
        use_fast_math: bool = False,
        expand: bool = False,
    ) -> None:
        if not isinstance(formula, str):
            raise ArgumentError(f"KernelSolve takes one formula, a text, got {type(formula).__name__}")
        routine = Genred(
            formula, aliases, "Sum", axis, dtype, opt_arg, dtype_acc=dtype_acc, use_double_acc=use_double_acc,
            sum_scheme=sum_scheme, use_fast_math=use_fast_math, expand=expand,
        )  # fmt: skip
        self._set(routine, _place(routine, varinvalias))

    @classmethod
    def of(cls, routine: Routine, place: int) -> KernelSolve:
        """That of a sum, for the variable at a position."""
        self = cls.__new__(cls)
        self._set(routine, place)
        return self

    def _set(self, routine: Routine, place: int) -> None:
        text, v, name = routine.parsed.text, routine.variables[place], routine.parsed.labels[place]
        node = routine.reduced[0].node
        if v.cat != routine.axis:
            wanted, index = (("Vi", "i"), ("Vj", "j"))[routine.axis]
            raise OptionError(
                f"KernelSolve with axis={routine.axis} sums over {index} and solves for a variable of {index}: "
                f"{name} is {v}, declare it as {wanted}({v.dim})"
            )
        if node.dim != v.dim:
            raise DimensionError(
                f"the formula has dimension {node.dim}, {name} {v.dim}: they must be equal", text, (0, len(text))
            )
        try:
            self.kind = linearity(node, var(*v))
        except ArgumentError as error:
            message = error.message.replace(f"Var({v.ind},{v.dim},{v.cat})", name)
            raise ArgumentError(message, text, (0, len(text)), error.hint) from None
        self.routine, self.place = routine, place
        self.formula, self.aliases, self.axis, self.dtype = (
            routine.formula,
            routine.aliases,
            routine.axis,
            routine.dtype,
        )

    @property
    def axes(self) -> tuple[int, ...]:
        """Over which a scalar product of vectors (*batch, M, D) adds up: what is left are systems of their own."""
        return (-2, -1) if self.kind == COUPLED else (-2,)

    def __call__(
        self,
        *args: Any,
        backend: str = "auto",
        device_id: int = -1,
        alpha: float = 1e-10,
        eps: float = 1e-6,
        ranges: Any = None,
        maxiter: int = 1000,
        preconditioner: str | None = None,
        rank: int | None = None,
        seed: int = 0,
        callback: Callable[[int, float], Any] | None = None,
        progress: bool = False,
        on_failure: str = "raise",
        return_info: bool = False,
    ) -> Any:
        """Solve.

        Parameters
        ----------
        *args : arrays
            As in a call of `Genred`, of float32 or float64, with b in the place of the variable it is solved for. Each
            element of a batch is a system of its own, and so is each column of b where the formula keeps these apart,
            as a number times b does. They are solved at once, each with its own steps; one that is solved moves no
            more.
        backend, device_id, ranges
            As in a call of `Genred`.
        alpha : float
            0 or positive.
        eps : float
            The norm of b - (alpha Id + K) a, as a part of the norm of b, that is small enough, for every system.
            Recurrences are in the type of the arrays, scalar products in float64; what can be reached is about
            1e-7 (float32) or 1e-16 (float64) times the norm of the matrix times that of a, over that of b.
        maxiter : int
            Iterations at most.
        preconditioner : str, optional
            "jacobi": the diagonal of K; "cholesky": `rank` steps of a pivoted Cholesky decomposition of K; "nystrom":
            `rank` columns of K that are drawn with `seed`. See `dred.preconditioners`.
        rank, seed : int, optional
        callback : callable, optional
            Called with the number of each iteration and the largest relative residual after it.
        progress : bool
            Whether to say on stderr how far it is.
        on_failure : {"raise", "warn"}
            Whether a system that is not solved raises at once, or the others are solved, and then a RuntimeWarning
            given with what they came to.
        return_info : bool
            Whether to return a `SolveInfo`, too.

        Returns
        -------
        array
            Like b, with the dimensions of the batch; a dask array, whose blocks have been computed, where one is among
            the arguments. With `return_info`, a tuple of it and a `SolveInfo`.

        Raises
        ------
        SolveError
            A system that is not solved: after `maxiter` iterations, for a matrix that is not positive definite or is
            singular, NaN, or an `eps` that the type of the arrays cannot reach.
        InputError, DtypeError, OptionError, BackendError
            As a call of `Genred`.
        """
        how = Options(alpha, eps, maxiter, preconditioner, rank, seed, callback, progress, on_failure)
        solution, info = self._solved(args, backend, device_id, ranges, how)
        return (solution, info) if return_info else solution

    def vjp(
        self, *args: Any, backend: str | None = None, device_id: int = -1, ranges: Any = None, **how: Any
    ) -> tuple[Any, Callable[[Any], tuple[Any, ...]]]:
        """The solution, and the function that pulls a cotangent of it back to the arguments and to alpha.

        With the cotangent e, s solves (alpha Id + K) s = e: the gradient by b is s, that by alpha -(s | a), and those
        by other variables are the gradients of -(s | K a).

        Parameters
        ----------
        *args, backend, device_id, ranges
            As in a call.
        **how
            alpha, eps, maxiter, preconditioner, rank, seed, callback, progress and on_failure, as in a call.

        Returns
        -------
        solution : array
        pullback : callable
            Takes an array like the solution, and returns a tuple: the gradient of the sum of e * a by each argument,
            then that by alpha.

        Examples
        --------
        >>> import numpy as np, dred
        >>> solve = dred.KernelSolve("x * y * b", ["x = Vi(1)", "y = Vj(1)", "b = Vj(1)"], "b", axis=1)
        >>> x, b = np.array([[1.0], [2.0]]), np.array([[3.0], [1.0]])
        >>> a, pullback = dred.vjp(solve, x, x, b, alpha=1.0)
        >>> by_x, by_y, by_b, by_alpha = pullback(np.ones((2, 1)))
        >>> by_b.ravel().round(6), float(np.round(by_alpha, 6))
        (array([0.5, 0. ]), -1.083333)
        """
        options, backend = Options(**how), backend or "auto"
        a, _ = self._solved(args, backend, device_id, ranges, options)
        others = [k for k in range(len(args)) if k != self.place]

        def pullback(e: Any) -> tuple[Any, ...]:
            if tuple(e.shape) != tuple(a.shape):
                raise InputError(
                    f"the cotangent has shape {tuple(e.shape)}: expected {tuple(a.shape)}, as the solution"
                )
            s, _ = self._solved(self._with(args, e), backend, device_id, ranges, options)
            gradients = pulled(self.routine, others, self._with(args, a), [s], by(backend, ranges))
            found = {k: -g for k, g in zip(others, gradients, strict=True)}
            found[self.place] = like(s, args[self.place], str(s.dtype), added=False)
            by_alpha = -(s.astype("float64") * a).sum()
            return (*(found[k] for k in range(len(args))), by_alpha)

        return a, pullback

    def _with(self, args: Sequence[Any], b: Any) -> list[Any]:
        return [b if k == self.place else array for k, array in enumerate(args)]

    def __repr__(self) -> str:
        name = self.routine.parsed.labels[self.place]
        return f"KernelSolve({self.formula!r}, {list(self.aliases)!r}, {name!r}, axis={self.axis})"

    # -- one call ------------------------------------------------------------------------------------------------------

    def _solved(
        self, args: Sequence[Any], backend: str, device_id: int, ranges: Any, how: Options
    ) -> tuple[Any, SolveInfo]:
        routine = self.routine
        inputs = check(routine.parsed, args, routine.dtype)
        if inputs.dtype not in TYPES:
            raise DtypeError(f"KernelSolve computes with float32 and float64, got arrays of type {inputs.dtype}")
        M, N = inputs.rows
        if M != N:
            raise InputError(f"the matrix must be square, but there are {M:,} rows for i and {N:,} for j")
        if how.rank is not None and how.rank > M:
            raise OptionError(f"rank={how.rank} is more than the {M:,} rows of the matrix")
        name = engine.named(backend)
        if name == "auto":
            name = "cuda" if device_id >= 0 else configured()
        pairs = None if ranges is None else Ranges.of(ranges, M, N)
        call = Call(routine, self.place, inputs, float(how.alpha), self.axes, pairs)
        space, b, call = (lazily if inputs.kind == "dask" else here)(call, name, device_id)
        system = System(routine, self.place, self.kind, space, call.inputs, b, call.alpha, pairs)
        precondition = preconditioners.of(how.preconditioner, system, how.rank, int(how.seed))
        told = Told(how)
        found = Iteration(
            space, b, precondition, Limits(float(how.eps), int(how.maxiter), how.on_failure == "warn"), told
        ).run()
        told.close()
        info = SolveInfo(
            found.iterations,
            np.stack([self._systems(each) for each in found.history]),
            self._systems(found.residual),
            self._systems(found.status == SOLVED),
        )
        if not info.converged.all():
            message = self._failure(found, inputs.dtype, how)
            if how.on_failure == "raise":
                raise SolveError(message, info, found.solution)
            warnings.warn(message, RuntimeWarning, stacklevel=3)
        return found.solution, info

    def _systems(self, numbers: Any) -> Any:
        """(*batch, 1, D) as (*batch, D); (*batch, 1, 1) of systems with all columns as (*batch)."""
        return numbers[..., 0, 0] if self.kind == COUPLED else numbers[..., 0, :]

    def _failure(self, found: Found, dtype: str, how: Options) -> str:
        """What is said of systems that were not solved."""
        status = self._systems(found.status)
        failed = np.argwhere(status > SOLVED)
        first = tuple(map(int, failed[0]))
        what, cure = ENDINGS[int(status[first])]
        numbers = {key: self._systems(getattr(found, key))[first] for key in ("curvature", "largest")}
        past = [float(self._systems(each)[first]) for each in found.history]
        shown = [f"{value:.3g}" for value in past]
        listed = ", ".join(shown if len(shown) <= 8 else [*shown[:4], "...", *shown[-3:]])
        which = ""
        if status.size > 1:
            which = f" {len(failed)} of {status.size} systems are not solved; the first, number {first}:"
        return (
            f"conjugate gradients ended after {found.iterations} iterations.{which} "
            f"{what.format(dtype=dtype, **numbers)}."
            f"\n    relative residuals {listed}; of the solution {float(self._systems(found.residual)[first]):.3g}, "
            f"wanted eps={how.eps:.3g}, with alpha={how.alpha:.3g}"
            f"\n{cure[0].upper()}{cure[1:]}."
        )


def _place(routine: Routine, name: str | int) -> int:
    """The position of the variable that is meant."""
    known: dict[Any, int] = {word: k for k, word in enumerate(routine.parsed.names) if word}
    known |= {k: k for k in range(len(routine.variables))}
    if isinstance(name, str) and "(" in name:
        node = Reader(()).value(name, Reader(()).call)
        known.update((name, v.ind) for v in routine.variables if var(*v) is node)
    if isinstance(name, bool) or name not in known:
        raise OptionError(f"varinvalias={name!r}: the formula has no such variable, but {', '.join(map(repr, known))}")
    return known[name]
