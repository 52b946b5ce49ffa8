"""Routine: a reduction of a formula as a callable, whichever way it was written."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from dred.errors import InputError, LimitError, OptionError
from dred.formula.construct import nearest
from dred.formula.language import Formula
from dred.formula.node import toposort
from dred.formula.reduced import Reduced
from dred.inputs import DTYPES, Inputs, check
from dred.kernel import engine
from dred.kernel.spec import CHAIN, KernelSpec

# scheme of summation -> terms that are added in the compute type before they join the state
_CHAINS = {"auto": CHAIN, "block_sum": CHAIN, "direct_sum": 1}


class Routine:
    """What `Genred` and `Reduction` have in common: they only differ in how a reduction is written.

    Parameters
    ----------
    formula : Formula
    aliases : sequence of str
    reduced : Reduced
        Of the formula's node.
    dtype, dtype_acc, use_double_acc, sum_scheme, use_fast_math
        As in `Genred`.
    """

    def __init__(
        self,
        formula: Formula,
        aliases: Sequence[str],
        reduced: Reduced,
        *,
        dtype: Any,
        dtype_acc: Any,
        use_double_acc: bool,
        sum_scheme: str,
        use_fast_math: bool,
    ) -> None:
        for name, flag in (("use_double_acc", use_double_acc), ("use_fast_math", use_fast_math)):
            if not isinstance(flag, bool | np.bool_):
                raise OptionError(f"{name}={flag!r}: it is True or False")
        if use_fast_math:
            raise OptionError("use_fast_math=True is not offered: every operation has its full precision")
        if not isinstance(sum_scheme, str) or sum_scheme not in _CHAINS:
            reason = "is not offered yet" if sum_scheme == "kahan_scheme" else "is unknown"
            raise OptionError(f"sum_scheme={sum_scheme!r} {reason}: it is one of {', '.join(_CHAINS)}")
        self._formula, self._reduced = formula, reduced
        self.formula, self.aliases, self.reduction_op = formula.text, tuple(aliases), reduced.name
        self.axis = reduced.axis
        self.dtype = None if dtype is None else _dtype("dtype", dtype)
        self._acc = _accumulator(dtype_acc, use_double_acc)
        self._chain = _CHAINS[sum_scheme]
        if self.dtype is not None:
            self.spec(self.dtype)

    @property
    def dim(self) -> int:
        """Components of a row of the result."""
        return self._formula.node.dim

    def spec(self, dtype: Any) -> KernelSpec:
        """What is computed for arrays of a type, as a value.

        Parameters
        ----------
        dtype : str or dtype
            "float32" or "float64".

        Returns
        -------
        KernelSpec

        Raises
        ------
        OptionError
            Another type, or an accumulator that is narrower.
        LimitError
            A constant of the formula beyond the largest number of the type.
        """
        dtype = _dtype("dtype", dtype)
        acc = self._acc or "float64"
        if np.dtype(acc).itemsize < np.dtype(dtype).itemsize:
            raise OptionError(f"dtype_acc={acc!r} is narrower than the arrays' type {dtype}: use 'auto' or {dtype!r}")
        f = self._formula
        if any(np.isinf(nearest(n.attrs[0], dtype)) for n in toposort([f.node]) if n.op == "Const"):
            largest = np.finfo(dtype).max
            message = f"a constant of the formula is beyond the largest {dtype}, {largest:.3g}"
            raise LimitError(message, f.text, (0, len(f.text)))
        return KernelSpec(f.node, self.reduction_op, self.axis, dtype, acc, self._chain, f.variables)

    def source(self, backend: str, dtype: Any = "float32") -> str:
        """The text of the generated kernel: LLVM IR for "cpu", CUDA C++ for "cuda".

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

    def plan(self, *args: Any, backend: str = "auto") -> Any:
        """How a call with these arrays, dask arrays among them, is cut into tasks; nothing is computed.

        Parameters
        ----------
        *args : arrays
            As in a call.
        backend : str
            As in a call.

        Returns
        -------
        dred.cluster.plan.Plan
            Printable: blocks, lanes × steps × depth of the tree of merges, tasks, bytes.
        """
        inputs = check(self._formula, args, self.dtype)
        if inputs.kind != "dask":
            raise InputError("a plan is made for dask arrays: NumPy and CuPy arrays are computed in this process")
        from dred.cluster import graph

        return graph.plan(self.spec(inputs.dtype), inputs.arrays, engine.named(backend))

    def __call__(
        self, *args: Any, backend: str = "auto", device_id: int = -1, ranges: Any = None, out: Any = None
    ) -> Any:
        """Reduce.

        Parameters
        ----------
        *args : arrays
            One per variable, in the order of their positions: (M, dim) for Vi, (N, dim) for Vj, (dim,) for Pm; NumPy,
            dask or CuPy, all float32 or all float64. NumPy and dask arrays may be mixed; any chunks will do.
        backend : str
            "cpu", "cuda" ("GPU", "GPU_1D" and "GPU_2D" mean cuda), or "auto": what `dred.backend` in dask's
            configuration says, else a GPU where there is one (on every worker, for dask arrays), else the CPU.
        device_id : int
            CUDA device; -1: the current one.
        ranges
            None: restricted index sets are refused.
        out : ndarray, optional
            Where to put the result: of its shape and type, C-contiguous.

        Returns
        -------
        ndarray, dask array or CuPy array
            (M, D) for axis 1, (N, D) for axis 0. NumPy in, NumPy out, computed in this process; a dask array among the
            inputs: a lazy dask array, in the chunks of the first variable of the kept index.

        Raises
        ------
        InputError, DtypeError
            Arrays that do not fit the variables or each other.
        OptionError
            An argument that is not accepted.
        BackendError
            No GPU where one is asked for.
        """
        if ranges is not None:
            raise OptionError("ranges are not offered yet: pass ranges=None")
        name = engine.named(backend)
        if isinstance(device_id, bool) or not isinstance(device_id, int | np.integer) or device_id < -1:
            raise OptionError(f"device_id={device_id!r}: it is the number of a CUDA device, or -1 for the current one")
        if device_id >= 0 and name == "cpu":
            raise OptionError(f"device_id={device_id} needs backend='cuda', got backend={backend!r}")
        if name == "auto":
            name = "cuda" if device_id >= 0 else _configured()
        inputs = check(self._formula, args, self.dtype)
        spec = self.spec(inputs.dtype)
        if out is not None:
            self._check_out(out, inputs)
        result = _RUN[inputs.kind](spec, inputs, name, int(device_id))
        if out is None:
            return result
        out[...] = result
        return out

    def _check_out(self, out: Any, inputs: Inputs) -> None:
        if inputs.kind != "numpy" or not isinstance(out, np.ndarray):
            raise InputError("out must be a NumPy array, and so must be all inputs")
        shape = (inputs.rows[1 - self.axis], self.dim)
        if out.shape != shape or str(out.dtype) != inputs.dtype:
            raise InputError(f"out has shape {out.shape} and type {out.dtype}: expected {shape} and {inputs.dtype}")
        if not out.flags.c_contiguous or not out.flags.writeable:
            raise InputError("out must be C-contiguous and writeable")


def _configured() -> str:
    """What `dred.backend` of dask's configuration says, where dask is loaded or the environment says it."""
    if "dask" not in sys.modules and "DASK_DRED__BACKEND" not in os.environ:
        return "auto"
    from dred.cluster import config

    return engine.named(config.backend())


def _dtype(name: str, value: Any) -> str:
    try:
        found = "None" if value is None else str(np.dtype(value))  # to NumPy, None is float64
    except TypeError:
        found = str(value)
    if found not in DTYPES:
        raise OptionError(f"{name}={value!r}: it is float32 or float64")
    return found


def _accumulator(dtype_acc: Any, use_double_acc: bool) -> str | None:
    acc = None if isinstance(dtype_acc, str) and dtype_acc == "auto" else _dtype("dtype_acc", dtype_acc)
    if use_double_acc and acc == "float32":
        raise OptionError("use_double_acc=True contradicts dtype_acc='float32': give one of them")
    return "float64" if use_double_acc else acc


def _sizes(spec: KernelSpec, inputs: Inputs) -> tuple[int, int]:
    """Rows kept and reduced."""
    M, N = inputs.rows
    return (M, N) if spec.axis == 1 else (N, M)


def _run_numpy(spec: KernelSpec, inputs: Inputs, backend: str, device_id: int) -> Any:
    M, N = _sizes(spec, inputs)
    chosen = engine.local(backend)
    state = engine.empty(spec, M)
    return engine.finalize(spec, engine.fold(spec, chosen, state, inputs.arrays, M, N, device_id=device_id))


def _run_cupy(spec: KernelSpec, inputs: Inputs, backend: str, device_id: int) -> Any:
    if backend == "cpu":
        raise InputError("backend='cpu' cannot take CuPy arrays: convert them with cupy.asnumpy, or use backend='cuda'")
    from dred.kernel import cuda

    return cuda.reduce_device(spec, inputs.arrays, *_sizes(spec, inputs), device_id=device_id)


def _run_dask(spec: KernelSpec, inputs: Inputs, backend: str, device_id: int) -> Any:
    if device_id >= 0:
        raise OptionError(f"device_id={device_id}: with dask arrays every worker uses its own device, leave it at -1")
    from dred.cluster.graph import reduce

    return reduce(spec, inputs.arrays, backend)


_RUN = {"numpy": _run_numpy, "cupy": _run_cupy, "dask": _run_dask}
