"""Routine: reductions of formulas as a callable, whichever way they were written."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from dred.cotangents import in_rows, like, sending_of
from dred.errors import DerivativeError, InputError, OptionError
from dred.formula.language import Formula, Variable
from dred.formula.node import Node, var
from dred.formula.pullback import Reduced, grad
from dred.inputs import Inputs, check
from dred.kernel import engine
from dred.kernel.spec import KernelSpec, array_type
from dred.options import Accumulation, accumulator, checked_dtype, compute_type
from dred.ready import Remembered
from dred.reductions import REDUCTIONS
from dred.run import REDUCERS, Reducer, configured, prepared, run_parts
from dred.sweeps import Sweep, check_constants, sweeps, with_expansion
from dred.targets import targets


class Routine:
    """What `Genred` and `Reduction` have in common: they only differ in how reductions are written.

    Parameters
    ----------
    formula : Formula
        One of the reduced formulas, with the variables of all.
    aliases : sequence of str
    reduced : tuple of Reduced
        All of one output category.
    several : bool
        Whether a call gives a tuple with one entry for each reduction.
    texts : mapping of Node to str
        The texts of formulas that are not that of `formula`, for errors.
    dtype
        As in `Genred`.
    how : Accumulation
    expand : bool
        Whether squared distances are written out.
    """

    rows_added = False  # whether what is left for each row is added up: in the gradient by a parameter

    def __init__(
        self,
        formula: Formula,
        aliases: Sequence[str],
        reduced: tuple[Reduced, ...],
        several: bool = False,
        texts: Mapping[Node, str] | None = None,
        *,
        dtype: Any,
        how: Accumulation,
        expand: bool = False,
    ) -> None:
        self.how, self.expand = how, expand
        self.parsed, self._reduced, self.several, self._texts = formula, reduced, several, dict(texts or {})
        names = tuple(r.name for r in reduced)
        self.formula: Any = formula.text
        self.reduction_op: Any = names if several else names[0]
        self.aliases, self.axis = tuple(aliases), reduced[0].axis
        self.dtype = None if dtype is None else checked_dtype("dtype", dtype)
        self._sweeps: dict[str, tuple[Sweep, ...]] = {}  # by type
        self._ready = Remembered()
        if self.dtype is not None:
            self.sweeps(self.dtype)

    @property
    def dim(self) -> Any:
        """Components of a row of the result; where it is several arrays, of each."""
        last = self._planned("float32")[-1]
        sizes = tuple(int(np.prod(output.empty(last.spec).shape[1:])) for output in last.outputs)
        return sizes if sizes[1:] or self.several else sizes[0]

    @property
    def variables(self) -> tuple[Variable, ...]:
        """Those that a caller passes arrays for."""
        return self.parsed.variables

    @property
    def reduced(self) -> tuple[Reduced, ...]:
        """What is reduced in the last sweep, with what earlier ones leave to it."""
        return self._reduced

    def sweeps(self, dtype: Any) -> tuple[Sweep, ...]:
        """The sweeps over the pairs for arrays of a type, in order; the last one has the results.

        Parameters
        ----------
        dtype : str or dtype
            "float16", "float32", "float64" or "bfloat16".

        Returns
        -------
        tuple of Sweep

        Raises
        ------
        OptionError
            Another type, or an accumulator that is narrower.
        LimitError
            A constant of a formula beyond the largest number of the type.
        """
        if isinstance(dtype, str) and (known := self._sweeps.get(dtype)):
            return known
        dtype = checked_dtype("dtype", dtype)
        if dtype not in self._sweeps:
            found = self._planned(dtype)
            check_constants(found, compute_type(dtype), self._texts, self.parsed.text)
            self._sweeps[dtype] = with_expansion(found) if self.expand else found
        return self._sweeps[dtype]

    def spec(self, dtype: Any) -> KernelSpec:
        """What the last sweep computes for arrays of a type: parameters and errors are those of `sweeps`."""
        return self.sweeps(dtype)[-1].spec

    def _planned(self, dtype: str) -> tuple[Sweep, ...]:
        how, acc = self.how, accumulator(self.how, dtype)
        kind = compute_type(dtype)
        given = dtype if dtype != kind else ""
        found = sweeps(self._reduced, self.parsed.variables, kind, acc, how.chain, how.kahan, given, how.fast)
        if not (given and self.rows_added):
            return found
        # rows are added up before they are rounded to the type of the arrays
        last = replace(found[-1], outputs=tuple(replace(output, saved=True) for output in found[-1].outputs))
        return (*found[:-1], last)

    def source(self, backend: str, dtype: Any = "float32") -> str:
        """The text of the generated kernel, of the last sweep: LLVM IR for "cpu", CUDA C++ for "cuda".

        Parameters
        ----------
        backend : str
        dtype : str or dtype

        Returns
        -------
        str
        """
        from dred.kernel import cpu, cuda

        modules = {"cpu": cpu, "cuda": cuda}
        name = engine.named(backend)
        if name not in modules:
            raise OptionError(f"source({backend!r}): name the backend, cpu or cuda")
        text: str = modules[name].source(self.spec(dtype))
        return text

    def grad(self, variable: str | int) -> Gradient:
        """The gradient of the routine by one of its variables, as a routine.

        Parameters
        ----------
        variable : str or int
            Its alias, or its position.

        Returns
        -------
        Gradient
            Called with the arrays of this routine and, behind them, a cotangent for each reduction that has a
            derivative: an array like its result (the first one of a pair). Row numbers, counts, Any and All have none,
            and get no cotangent. It returns the gradient of the sum of all cotangents times results: like the variable
            itself, (M, dim), (N, dim) or (dim,).

        Raises
        ------
        OptionError
            No such variable.
        DerivativeError
            No reduction has a derivative.

        Examples
        --------
        >>> import numpy as np
        >>> from dred import Genred
        >>> routine = Genred("p * x * y", ["x = Vi(1)", "y = Vj(1)", "p = Pm(1)"], axis=1)
        >>> x, y, p, e = np.array([[1.0], [2.0]]), np.array([[3.0], [4.0], [5.0]]), np.array([2.0]), np.ones((2, 1))
        >>> routine.grad("y")(x, y, p, e)
        array([[6.],
               [6.],
               [6.]])
        >>> routine.grad("p")(x, y, p, e)
        array([36.])
        """
        return Gradient(self, variable)

    def plan(self, *args: Any, backend: str = "auto", ranges: Any = None) -> Any:
        """How a call with these arrays, dask arrays among them, is cut into tasks; nothing is computed.

        Parameters
        ----------
        *args : arrays
            As in a call.
        backend, ranges
            As in a call.

        Returns
        -------
        dred.cluster.plan.Plan
            Printable: blocks, lanes × steps × depth of the tree of merges, tasks, bytes. A tuple of them where there
            are several sweeps over the pairs (gradients through the state of a reduction), or chunks of a batch.
        """
        plans = self._plans(args, backend, ranges)
        return plans if plans[1:] else plans[0]

    def explain(self, *args: Any, backend: str = "auto", ranges: Any = None, workers: int | None = None) -> Any:
        """What a call with these arrays takes: tasks, bytes, seconds, and whether it fits; nothing is computed.

        Parameters
        ----------
        *args : arrays
            As in a call, dask arrays among them.
        backend, ranges
            As in a call.
        workers : int, optional
            How many workers to think of, of a backend that need not be here; default: those of the client, or one.

        Returns
        -------
        dred.cluster.explain.Explanation
            A table, as text and in notebooks; attributes `plans`, `cluster`, `fits`, `seconds`.

        Examples
        --------
        >>> import dask.array as da
        >>> from dred import Genred
        >>> x, y = da.zeros((10**6, 3), chunks=10**5), da.zeros((10**5, 3), chunks=10**4)
        >>> explanation = Genred("Exp(-SqDist(x,y))", ["x = Vi(3)", "y = Vj(3)"], axis=1).explain(x, y, workers=4)
        >>> explanation.fits, explanation.plans[0].feed, explanation.plans[0].pairs
        (True, 'resident', 100000000000)
        """
        from dred.cluster.explain import Explanation

        return Explanation.of(self._plans(args, backend, ranges, there=workers is None), workers)

    def _plans(self, args: Sequence[Any], backend: str, ranges: Any, there: bool = True) -> tuple[Any, ...]:
        """The plan of each sweep."""
        inputs = check(self.parsed, self.flat(args), self.dtype)
        if inputs.kind != "dask":
            raise InputError("a plan is made for dask arrays: NumPy and CuPy arrays are computed in this process")
        from dred.cluster import graph

        name, plans = engine.named(backend), []

        def planned(sweep: Sweep, arrays: list[Any], M: int, N: int, pattern: Any) -> tuple[Any, ...]:
            spec, outputs = sweep.spec, sweep.outputs
            plans.append(graph.plan(spec, arrays, outputs, name, label=sweep.label, checked=there, pattern=pattern))
            return graph.unknown(spec, outputs, plans[-1])

        run_parts(self.sweeps(inputs.dtype), self.variables, inputs, ranges, lambda part, place: planned)
        return tuple(plans)

    def compute(
        self,
        *args: Any,
        backend: str = "auto",
        out: Any = None,
        store: str | os.PathLike[str] | None = None,
        progress: bool | Callable[[Any], None] = False,
        ranges: Any = None,
    ) -> Any:
        """Reduce dask arrays and wait for the result.

        Does what `dask.compute(routine(*args))` does, and besides: where reduced rows are too many to come to lie in
        every worker (see `explain`), they are computed and folded in waves; results can be written where they belong
        and need not fit into memory; with a store, a computation that was ended, by whatever, goes on where it was.

        Parameters
        ----------
        *args : arrays
            As in a call.
        backend : str
            As in a call.
        out : array or tuple of arrays, optional
            Where to put the result: anything of its shape and type to whose rows can be assigned, such as a memmap, or
            an array of zarr or h5py. Where the result is several arrays, a tuple of as many.
        store : path, optional
            A folder that all workers and this process share, for this computation alone. Finished rows are kept there,
            and where there are fewer than 20 blocks of them the states of lanes too; called again with equal arguments
            (dask arrays of equal names), only what is missing is computed. Delete it afterwards.
        progress : bool or callable
            Whether to say on stderr how many pairs are done, at what rate, and how long the rest will take; or a
            function that is told now and then: its argument has `done` and `total` pairs, `seconds` since the
            beginning, the `rate` in pairs per second and the seconds `left` (both None before the first task ends).
        ranges
            As in a call.

        Returns
        -------
        ndarray, or tuple of ndarray
            As in a call with NumPy arrays; `out`, where it is given.

        Raises
        ------
        PlanError
            A single row does not fit.
        WorkersLostError
            Workers died so often that the scheduler gave up.
        StoreError
            The folder belongs to another computation, or cannot be written to.

        Examples
        --------
        >>> import dask.array as da
        >>> from dred import Genred
        >>> routine = Genred("x * y", ["x = Vi(1)", "y = Vj(1)"], axis=1)
        >>> routine.compute(da.ones((2, 1), chunks=1), da.arange(4.0, chunks=2).reshape((4, 1)))
        array([[6.],
               [6.]])
        """
        inputs = check(self.parsed, self.flat(args), self.dtype)
        name = engine.named(backend)
        if inputs.kind != "dask":
            if store is not None:
                raise InputError(
                    "store is for dask arrays: NumPy and CuPy arrays are computed in this process, at once"
                )
            return self(*args, backend=backend, out=out, ranges=ranges)
        from dred.cluster import compute

        given = None if out is None else targets(out, self.expected(inputs, args), self.several)
        told, later = progress if callable(progress) else None, self._summed(inputs)
        with compute.said(self._plans(args, backend, ranges) if progress else (), told) as meter:

            def reducer(part: Inputs, place: tuple[slice, ...]) -> Reducer:
                mine = None if later or given is None else compute.parts(given, place)
                return compute.reducer(name, meter, mine, compute.folder(store, place), later)

            results = run_parts(self.sweeps(inputs.dtype), self.variables, inputs, ranges, reducer)
        if later:
            results = compute.here(self._fitted(results, inputs, args), given)
        return self.entries(results if given is None else given)

    def __call__(
        self, *args: Any, backend: str = "auto", device_id: int = -1, ranges: Any = None, out: Any = None
    ) -> Any:
        """Reduce.

        Parameters
        ----------
        *args : arrays
            One per variable, in the order of their positions: (M, dim) for Vi, (N, dim) for Vj, (dim,) for Pm; NumPy,
            dask or CuPy, all of one type: bfloat16, float16, float32 or float64. NumPy and dask arrays may be mixed;
            any chunks will do. With dimensions in front, (..., M, dim) and so on, it is done for each element of a
            batch: as in NumPy, they are equal or 1, and missing ones are 1. Arrays of other libraries are used where
            they are, as NumPy or CuPy arrays: by DLPack (PyTorch, JAX), or the CUDA array interface (Numba).
        backend : str
            "cpu", "cuda" ("GPU", "GPU_1D" and "GPU_2D" mean cuda), or "auto": what `dred.backend` in dask's
            configuration says, else a GPU where there is one (on every worker, for dask arrays), else the CPU. There,
            calls of a few rows are computed by NumPy operations, by their sizes alone: nothing is compiled for them.
        device_id : int
            CUDA device; -1: the current one.
        ranges : sequence of six integer arrays, or Ranges, optional
            Which pairs are visited, in KeOps' form (see `dred.ranges.Ranges.of`), of every element of a batch; by
            default all. Rows that are in no block get the reduction of nothing.
        out : ndarray or tuple of ndarray, optional
            Where to put the result: of its shape and type, C-contiguous; where the result is several arrays, a tuple
            of as many, in their order.

        Returns
        -------
        ndarray, dask array or CuPy array
            One row per i, M of them, for axis 1; N, one per j, for axis 0; with the dimensions of the batch in front.
            NumPy in, NumPy out, computed in this process (on a GPU in blocks of rows and panels of columns, so that
            either may be larger than its memory); arrays on a GPU in, CuPy out, on the current stream; a dask array
            among the inputs: a lazy dask array, in the chunks of the first variable of the kept index. A tuple of
            arrays for pairs, and of all entries where several reductions are computed.

        Raises
        ------
        InputError, DtypeError
            Arrays that do not fit the variables or each other.
        OptionError
            An argument that is not accepted.
        BackendError
            No GPU where one is asked for, or arrays on another one than that which computes.
        DeviceMemoryError
            Not even a few rows fit into its memory.
        """
        name = engine.named(backend)
        if isinstance(device_id, bool) or not isinstance(device_id, (int, np.integer)) or device_id < -1:
            raise OptionError(f"device_id={device_id!r}: it is the number of a CUDA device, or -1 for the current one")
        if device_id >= 0 and name == "cpu":
            raise OptionError(f"device_id={device_id} needs backend='cuda', got backend={backend!r}")
        if name == "auto":
            name = "cuda" if device_id >= 0 else configured()
        call = self._ready.call(args, name, device_id) if ranges is None and out is None else None
        if (ready := self._ready.get(call)) is not None:
            return self.entries(ready(args))
        inputs = check(self.parsed, self.flat(args), self.dtype)
        given = () if out is None else targets(out, self.expected(inputs, args), self.several, plain=inputs.kind)
        planned = self.sweeps(inputs.dtype)
        ready = prepared(planned, inputs, name, int(device_id)) if ranges is None else None
        if ready is None:
            made = partial(REDUCERS[inputs.kind], name, int(device_id))
            results = run_parts(planned, self.variables, inputs, ranges, made)
        else:
            results = ready(inputs.arrays)
            self._ready.keep(None if self._summed(inputs) else call, ready, inputs.arrays, args)
        results = self._fitted(results, inputs, args)
        if given:
            for target, result in zip(given, results, strict=True):
                target[...] = result
            results = given
        return self.entries(results)

    def flat(self, args: Sequence[Any]) -> Sequence[Any]:
        """The arguments as the variables of the formula: rows of numbers."""
        return args

    def _summed(self, inputs: Inputs) -> bool:
        """Whether results are added up over rows, or elements of the batch."""
        return False

    def _fitted(self, results: tuple[Any, ...], inputs: Inputs, args: Sequence[Any]) -> tuple[Any, ...]:
        """The results as they are given, of what sweeps leave."""
        return results

    def expected(self, inputs: Inputs, args: Sequence[Any]) -> list[tuple[tuple[int, ...], Any]]:
        """Shape and type of each array that a call gives."""
        last = self.sweeps(inputs.dtype)[-1]
        empty = (output.empty(last.spec) for output in last.outputs)
        return [((*inputs.batch, inputs.rows[1 - self.axis], *a.shape[1:]), a.dtype) for a in empty]

    def entries(self, results: tuple[Any, ...]) -> Any:
        """What a call gives: the array or arrays of a reduction, or a tuple of them for several."""
        if len(results) == 1 and not self.several:
            return results[0]
        remaining = iter(results)
        entries = []
        for r in self._reduced:
            mine = tuple(next(remaining) for _ in REDUCTIONS[r.name].results)
            entries.append(mine if mine[1:] else mine[0])
        return tuple(entries) if self.several else entries[0]


class Gradient(Routine):
    """The gradient of a routine by one of its variables: see `Routine.grad`.

    Attributes
    ----------
    variable : str
        What it is the derivative by.
    """

    variable: str

    def __init__(self, of: Routine, variable: str | int) -> None:
        f = of.parsed
        known = {name: k for k, name in enumerate(f.names) if name} | {k: k for k in range(len(f.variables))}
        if isinstance(variable, bool) or not isinstance(variable, str | int) or variable not in known:
            names = ", ".join(map(repr, known))
            raise OptionError(f"grad({variable!r}): the routine has no such variable, but {names}")
        v = f.variables[known[variable]]
        sending = sending_of(of.reduced)
        if not sending:
            names = ", ".join(dict.fromkeys(r.name for r in of._reduced))
            raise DerivativeError(f"{names}: no derivative", hint="its values only jump")
        first = len(f.variables)
        given = [Variable(first + k, r.dim, 2 if of.rows_added else r.cat) for k, r in enumerate(sending)]
        nodes = [var(w.ind, w.dim, w.cat) for w in given]
        reduced = grad(sending, var(v.ind, v.dim, v.cat), nodes, first + len(given), added=of.rows_added)
        results = [f"the gradient by {of.variable}"] if isinstance(of, Gradient) else [r.name for r in sending]
        labels = tuple(f"cotangent of {result}" for result in results)
        self.variable = f.labels[v.ind]
        text = f"gradient of {f.text} by {self.variable}"
        formula = Formula(
            text, reduced.node, (*f.variables, *given), (*f.names, *[""] * len(given)), (*f.labels, *labels)
        )
        super().__init__(
            formula, (*of.aliases, *map(str, given)), (reduced,), dtype=of.dtype, how=of.how, expand=of.expand
        )
        self.rows_added, self._of, self._sending, self._place = v.cat == 2, of, sending, v.ind

    def flat(self, args: Sequence[Any]) -> Sequence[Any]:
        """The arguments, of which cotangents of rankings of vectors, (M, K, dim), are written as rows."""
        first = len(args) - len(self._sending)
        return [*self._of.flat(args[:first]), *map(in_rows, self._sending, args[first:])] if first >= 0 else args

    def _summed(self, inputs: Inputs) -> bool:
        return self.rows_added or (bool(inputs.batch) and inputs.own[self._place] != inputs.batch)

    def _fitted(self, results: tuple[Any, ...], inputs: Inputs, args: Sequence[Any]) -> tuple[Any, ...]:
        if not self._summed(inputs):
            return results
        return tuple(like(rows, args[self._place], inputs.dtype, self.rows_added) for rows in results)

    def expected(self, inputs: Inputs, args: Sequence[Any]) -> list[tuple[tuple[int, ...], Any]]:
        return [(tuple(map(int, args[self._place].shape)), array_type(inputs.dtype))]

    def __repr__(self) -> str:
        return f"<{self.formula}>"
