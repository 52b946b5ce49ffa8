"""The engine: empty, fold, merge and finalize for a kernel spec, on a named backend; host arrays in and out."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import cache, partial
from types import FrameType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dred.errors import BackendError
from dred.kernel import interpret
from dred.kernel.batches import runs
from dred.kernel.output import Output, empty, read, silently
from dred.kernel.pattern import Pattern
from dred.kernel.spec import KernelSpec

__all__ = [
    "NAMES",
    "Output",
    "State",
    "device",
    "empty",
    "finalize",
    "fold",
    "local",
    "merge",
    "named",
    "placed",
    "prepared",
    "reduce",
    "warm",
]

State = tuple[NDArray[Any], ...]
Ready = Callable[[Sequence[NDArray[Any]]], tuple[NDArray[Any], ...]]
"""What `reduce` gives for arrays of the shapes and types that it was prepared for."""

# what users may write, as KeOps spells it -> backend
NAMES = {"auto": "auto", "cpu": "cpu", "cuda": "cuda", "gpu": "cuda"}
NAMES |= {f"gpu_{dims}{arrays}": "cuda" for dims in ("1d", "2d") for arrays in ("", "_host", "_device")}

# Where (pairs + CALLS) * instructions of a pair (or operations of the formula, if these are more) is below TINY, the
# interpreter computes, and nothing is compiled: 19 x 19 pairs of a Gaussian sum in 3 dimensions, 9 x 9 in 16. A kernel
# that is ready is faster everywhere (on one core of Zen 4, a call of that sum takes 5 us, by the interpreter 22 us for
# 3 x 3 pairs and 26 us for 30 x 30), but to compile one takes 35 ms, and to load it from disk some ms: what hundreds or
# two thousand calls of few points save. An operation of NumPy costs about as much before it has computed anything as it
# does for CALLS pairs. Tests of compiled kernels set TINY to 0.
TINY, CALLS = 16_000.0, 200.0

FOREIGN = ("bfloat16",)  # types of results that CuPy does not have: states come home, and NumPy reads them

_MODULES = {"cpu": "dred.kernel.cpu", "cuda": "dred.kernel.cuda", "numpy": "dred.kernel.interpret"}


def named(backend: str) -> str:
    """The backend that a user's word means: "auto", "cpu" or "cuda".

    Raises
    ------
    BackendError
    """
    found = NAMES.get(backend.lower()) if isinstance(backend, str) else None
    if found is None:
        raise BackendError(
            f"unknown backend {backend!r}: it is one of auto, cpu, cuda (GPU, GPU_1D and GPU_2D mean cuda)"
        )
    return found


def device(backend: str) -> str:
    """What computes in this process, "cuda" or "cpu": "auto" is cuda where there is a device.

    Raises
    ------
    BackendError
        Where cuda is asked for and there is no device.
    """
    if backend in ("auto", "cuda"):
        if _module("cuda").device_count() > 0:
            return "cuda"
        if backend == "cuda":
            raise BackendError(
                "backend='cuda' needs an NVIDIA GPU, and none is usable in this process: check nvidia-smi and that"
                " CuPy is installed (in dred's folder: pip install '.[cuda13]' or '.[cuda12]'), or use backend='cpu'"
            )
    return "cpu"


def local(backend: str) -> str:
    """The same, but without llvmlite the interpreter, "numpy", stands in for cpu, with a warning."""
    found = device(backend)
    return found if found != "cpu" or _llvm() else "numpy"


def placed(found: str, spec: KernelSpec, M: int, N: int, local: bool = True, pattern: Pattern | None = None) -> str:
    """The backend of one call, by its sizes: tiny problems of "cpu" go to the interpreter, "numpy".

    Parameters
    ----------
    found : str
        What `device` gave.
    spec : KernelSpec
    M, N : int
        All rows of the call, kept and reduced.
    local : bool
        Whether this process computes, so that without llvmlite the interpreter stands in, with a warning.
    pattern : Pattern, optional
        The pairs that are visited, if these are not all.
    """
    if found != "cpu":
        return found
    return "numpy" if tiny(spec, M, N, pattern) or (local and not _llvm()) else "cpu"


def tiny(spec: KernelSpec, M: int, N: int, pattern: Pattern | None = None) -> bool:
    """Whether a problem is so small that compiling it is not worth while: by its sizes alone."""
    pairs = M * N + CALLS if pattern is None else pattern.pairs + CALLS * len(pattern.intervals)
    pairs *= spec.batches
    return pairs * spec.operations < TINY and pairs * interpret.cost(spec) < TINY  # the first is known at once


@cache
def _llvm() -> bool:
    from dred.kernel import cpu

    if cpu.available():
        return True
    warnings.warn(
        "llvmlite is not installed: dred computes with NumPy, several times slower (pip install llvmlite)",
        RuntimeWarning,
        stacklevel=1 + _depth(),  # the call of the routine
    )
    return False


def _depth() -> int:
    """How many frames of dred there are, from that which asks to that which a user called."""
    frame: FrameType | None = sys._getframe(1)
    depth = 0
    while frame is not None and str(frame.f_globals.get("__name__")).startswith("dred."):
        frame, depth = frame.f_back, depth + 1
    return depth


def reduce(
    spec: KernelSpec,
    backend: str,
    arrays: Sequence[NDArray[Any]],
    M: int,
    N: int,
    outputs: Sequence[Output],
    *,
    pattern: Pattern | None = None,
    device_id: int = -1,
) -> tuple[NDArray[Any], ...]:
    """The arrays (M, ...) that are read off the state of all terms: `fold` of an empty state, then `finalize`."""
    if backend == "numpy" and not spec.batch and pattern is None:
        return _interpreted(spec, M, N, outputs, arrays)
    if backend == "cuda" and spec.given not in FOREIGN:
        found: tuple[NDArray[Any], ...] = _module(backend).reduce(
            spec, spec.arrays(arrays), M, N, outputs, pattern=pattern, device_id=device_id
        )
        return found
    state = fold(spec, backend, empty(spec, M), arrays, M, N, pattern=pattern, device_id=device_id, own=True)
    return finalize(spec, state, outputs)


def prepared(
    spec: KernelSpec, backend: str, arrays: Sequence[NDArray[Any]], M: int, N: int, outputs: Sequence[Output]
) -> Ready | None:
    """What `reduce` does for all pairs of arrays like these, where sizes and types decide it; None: more does."""
    if spec.batch:
        return None
    if backend == "numpy":
        return partial(_interpreted, spec, M, N, outputs)
    if backend == "cpu" and _llvm():
        from dred.kernel import cpu_ready

        return cpu_ready.prepared(spec, arrays, M, N, outputs)
    return None


def _interpreted(
    spec: KernelSpec, M: int, N: int, outputs: Sequence[Output], arrays: Sequence[NDArray[Any]]
) -> tuple[NDArray[Any], ...]:
    return interpret.reduce(spec, spec.arrays(arrays), M, N, outputs)


def fold(
    spec: KernelSpec,
    backend: str,
    state: State,
    arrays: Sequence[NDArray[Any]],
    M: int,
    N: int,
    *,
    pattern: Pattern | None = None,
    i0: int = 0,
    j0: int = 0,
    device_id: int = -1,
    threads: int | None = None,
    memory: float | None = None,
    own: bool = False,
) -> State:
    """The state after the terms of one block of columns.

    Parameters
    ----------
    spec : KernelSpec
    backend : str
        "cpu", "cuda" or "numpy".
    state : State
        Of the M rows (of each element of the batch); never written to, unless it is `own`.
    arrays : sequence of ndarray
        By position, C-contiguous, of type `spec.type_of(position)`: (M, dim) for kept variables, (N, dim) for reduced
        ones, (dim,) for parameters, with the dimensions `spec.own` in front where there is a batch. Without those of
        `spec.constants`. For "cuda" they may also be cupy.ndarray.
    M, N : int
        Rows kept and reduced.
    pattern : Pattern, optional
        Which of these columns each of these rows meets, of every element of the batch; default: all.
    i0, j0 : int
        Global row numbers of the first kept and the first reduced row.
    device_id : int
        CUDA device; -1: the current one.
    threads : int, optional
        Most threads of a CPU; default: all that this process may use. No bit depends on it.
    memory : float, optional
        Most memory of a CUDA device: a fraction of it, or bytes where it is above 1; default: what DRED_CUDA_MEMORY
        says. No bit depends on it.
    own : bool
        Whether nobody else has the state: then it need not be copied.

    Returns
    -------
    State
    """
    if backend == "cpu" and not _llvm():
        raise BackendError("backend 'cpu' needs llvmlite, which cannot be imported here: pip install llvmlite")
    more: dict[str, Any] = {}
    if backend == "cpu":
        more["threads"], more["own"] = threads, own and not spec.batch
    elif backend == "cuda":
        more["device_id"], more["memory"] = device_id, memory
    arrays, backed = spec.arrays(arrays), _module(backend)
    if not spec.batch:
        result: State = backed.fold(spec, state, arrays, M, N, pattern=pattern, i0=i0, j0=j0, **more)
        return result
    parts: list[State] = []
    for first, count, given in runs(spec, arrays):
        rows = slice(first * M, (first + count) * M)
        mine = tuple(field[:, rows] for field in state)
        parts.append(backed.fold(spec, mine, given, M, N, batches=count, pattern=pattern, i0=i0, j0=j0, **more))
    return parts[0] if len(parts) == 1 else tuple(np.concatenate(fields, axis=1) for fields in zip(*parts, strict=True))


def warm(spec: KernelSpec, backend: str) -> None:
    """Compile the kernels of a spec, or find them on disk, before they are needed."""
    if backend == "cpu" and not _llvm():
        return
    _module(backend).warm(spec)


@cache
def _module(backend: str) -> Any:
    return importlib.import_module(_MODULES[backend])


def merge(spec: KernelSpec, left: State, right: State) -> State:
    """The union of two states of the same rows."""
    return interpret.merge_states(spec, left, right)


def finalize(
    spec: KernelSpec, state: State, outputs: Sequence[Output], by_row: bool = False
) -> tuple[NDArray[Any], ...]:
    """The arrays (M, ...) that are read off a state; with the dimensions of the batch in front, or behind the rows."""
    if by_row:
        return tuple([output.by_row(spec, state) for output in outputs])
    found: tuple[NDArray[Any], ...] = silently(read, spec, state, outputs)
    return found
