"""The engine: empty, fold, merge and finalize for a kernel spec, on a named backend; host arrays in and out."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

from numpy.typing import NDArray

from dred.errors import BackendError
from dred.kernel.interpret import merge_states
from dred.kernel.output import Output, empty
from dred.kernel.spec import KernelSpec

__all__ = ["NAMES", "Output", "State", "empty", "finalize", "fold", "local", "merge", "named"]

State = tuple[NDArray[Any], ...]

# what users may write, as KeOps spells it -> backend
NAMES = {"auto": "auto", "cpu": "cpu", "cuda": "cuda", "gpu": "cuda", "gpu_1d": "cuda", "gpu_2d": "cuda"}
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


def local(backend: str) -> str:
    """The backend that computes in this process: "auto" is cuda where there is a device, else cpu; without llvmlite
    the interpreter stands in for cpu, with a warning.

    Raises
    ------
    BackendError
        Where cuda is asked for and there is no device.
    """
    if backend in ("auto", "cuda"):
        from dred.kernel import cuda

        if cuda.device_count() > 0:
            return "cuda"
        if backend == "cuda":
            raise BackendError(
                "backend='cuda' needs an NVIDIA GPU, and none is usable in this process: check nvidia-smi and that"
                " CuPy is installed (in dred's folder: pip install '.[cuda13]' or '.[cuda12]'), or use backend='cpu'"
            )
    return "cpu" if _llvm() else "numpy"


@cache
def _llvm() -> bool:
    from dred.kernel import cpu

    if cpu.available():
        return True
    warnings.warn(
        "llvmlite is not installed: dred computes with NumPy, several times slower (pip install llvmlite)",
        RuntimeWarning,
        stacklevel=5,  # the call of the routine
    )
    return False


def fold(
    spec: KernelSpec,
    backend: str,
    state: State,
    arrays: Sequence[NDArray[Any]],
    M: int,
    N: int,
    *,
    i0: int = 0,
    j0: int = 0,
    device_id: int = -1,
    threads: int | None = None,
) -> State:
    """The state after the terms of one block of columns.

    Parameters
    ----------
    spec : KernelSpec
    backend : str
        "cpu", "cuda" or "numpy".
    state : State
        Of the M rows; never written to.
    arrays : sequence of ndarray
        By position, C-contiguous, of type `spec.dtype`: (M, dim) for kept variables, (N, dim) for reduced ones, (dim,)
        for parameters. Without those of `spec.constants`.
    M, N : int
        Rows kept and reduced.
    i0, j0 : int
        Global row numbers of the first kept and the first reduced row.
    device_id : int
        CUDA device; -1: the current one.
    threads : int, optional
        Most threads of a CPU; default: all that this process may use. No bit depends on it.

    Returns
    -------
    State
    """
    if backend == "cpu" and not _llvm():
        raise BackendError("backend 'cpu' needs llvmlite, which cannot be imported here: pip install llvmlite")
    own: dict[str, dict[str, Any]] = {"cuda": {"device_id": device_id}, "cpu": {"threads": threads}}
    module = importlib.import_module(_MODULES[backend])
    result: State = module.fold(spec, state, spec.arrays(arrays), M, N, i0=i0, j0=j0, **own.get(backend, {}))
    return result


def merge(spec: KernelSpec, left: State, right: State) -> State:
    """The union of two states of the same rows."""
    return merge_states(spec, left, right)


def finalize(spec: KernelSpec, state: State, outputs: Sequence[Output]) -> tuple[NDArray[Any], ...]:
    """The arrays (M, ...) that are read off a state."""
    return tuple(output.read(spec, state) for output in outputs)
