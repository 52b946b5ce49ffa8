"""Checks of the arrays of a call against the declared variables, before anything is compiled or submitted."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from dred.errors import DredError, DtypeError, InputError
from dred.formula.language import Formula, Variable

SIZES = 256  # of calls, that are known to fit
DTYPES = ("bfloat16", "float16", "float32", "float64")
HOST, CUDA, CUDA_MANAGED = (1, 3), 2, 13  # DLPack's types of devices; 3 is host memory that CUDA has pinned
_ARRAY = np.ndarray
_FITS = 0x0001 | 0x0100  # flags of NumPy arrays: C-contiguous, and aligned
_KINDS = {np.dtype(name): name for name in DTYPES[1:]}
_FOLLOWED = {
    "torch": "with gradients, which this routine would lose: use Genred, LazyTensor or function of dred.torch, or pass"
    " its detach()",
    "jax": "that JAX traces: use Genred or function of dred.jax",
}
_PLURAL = ("i-variables", "j-variables")


class Inputs(NamedTuple):
    """Arrays that fit.

    Attributes
    ----------
    kind : str
        "numpy", "dask" (at least one dask array) or "cupy" (all CuPy, on one device).
    arrays : tuple of arrays
        By position; NumPy arrays are plain, C-contiguous and aligned. Where there is a batch, those of this process
        have as many leading dimensions as it, of its sizes or 1.
    dtype : str
    rows : (int, int)
        M and N: rows of the i-variables and of the j-variables, 1 where there are none.
    device : int
        That of CuPy arrays; -1 for others.
    batch : tuple of int
        What the leading dimensions broadcast to.
    own : tuple of (tuple of int)
        For each array its leading dimensions, as many as the batch has.
    """

    kind: str
    arrays: tuple[Any, ...]
    dtype: str
    rows: tuple[int, int]
    device: int = -1
    batch: tuple[int, ...] = ()
    own: tuple[tuple[int, ...], ...] = ()


def kind_of(array: Any) -> str | None:
    """ "numpy", "dask" or "cupy", without importing any of them; None for anything else."""
    module = type(array).__module__.partition(".")[0]
    masked = sys.modules.get("numpy.ma")  # 30 ms, if it were loaded for the question
    if isinstance(array, np.ndarray) and not (masked and isinstance(array, masked.MaskedArray)):
        return "numpy"
    if module == "dask" and hasattr(type(array), "chunks") and hasattr(array, "__dask_graph__"):
        return "dask"
    return "cupy" if module == "cupy" and hasattr(array, "__cuda_array_interface__") else None


def native(array: Any, label: str) -> Any:
    """An array of another library as a NumPy or CuPy array of the same memory; anything else as it is.

    It is asked for DLPack (PyTorch, JAX, ...), or else for the CUDA array interface (Numba, ...).

    Raises
    ------
    InputError
        It cannot be used without a copy, or is on a device that is no CUDA device.
    BackendError
        It is on a CUDA device, and CuPy is not installed.
    """
    if isinstance(array, np.ndarray) or kind_of(array) is not None:
        return array
    name = f"{type(array).__module__}.{type(array).__qualname__}"
    if library := _followed(array):
        raise InputError(f"{label} is a {name} {_FOLLOWED[library]}")
    dlpack = hasattr(type(array), "__dlpack__") and hasattr(type(array), "__dlpack_device__")
    if not dlpack:
        try:
            array.__cuda_array_interface__  # noqa: B018
        except Exception:  # there is none, or its library says that it cannot be had
            return array
    try:
        where = array.__dlpack_device__()[0] if dlpack else CUDA
        if where in HOST:
            return np.from_dlpack(array)
        if where in (CUDA, CUDA_MANAGED):
            from dred.kernel import cuda

            return cuda.adopted(array)
    except (AttributeError, BufferError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, DredError):
            raise
        raise InputError(
            f"{label} is a {name} that cannot be used without a copy ({error}): convert it to a NumPy or CuPy array"
        ) from error
    raise InputError(
        f"{label} is a {name} on a device of DLPack's type {int(where)}: pass arrays in the host's memory or on a CUDA"
        " device"
    )


def _followed(array: Any) -> str:
    """The library that would lose sight of an array: one with gradients or tangents, or one that stands for others."""
    torch, jax = (sys.modules.get(library) for library in _FOLLOWED)
    if torch and isinstance(array, torch.Tensor):
        tangent = torch.autograd.forward_ad.unpack_dual(array).tangent
        return "torch" if array.requires_grad or tangent is not None else ""
    return "jax" if jax and isinstance(array, jax.core.Tracer) else ""


def check(formula: Formula, args: Sequence[Any], dtype: str | None) -> Inputs:
    """Inputs that fit the variables of a formula.

    Raises
    ------
    InputError
        Wrong number of arrays, kind, rank, dimension or rows; unknown chunk sizes.
    DtypeError
        Integer arrays, types that disagree with each other or with `dtype`.
    """
    if (found := _plain(formula, args, dtype)) is not None:
        return found
    n = len(formula.variables)
    label = [f"argument {k} ({name})" for k, name in enumerate(formula.labels)]
    if len(args) != n:
        raise InputError(f"the routine takes {n} arrays ({', '.join(formula.labels)}), got {len(args)}")
    args = [native(a, name) for a, name in zip(args, label, strict=True)]
    kinds = [kind_of(a) for a in args]
    for k, kind in enumerate(kinds):
        if kind is None:
            what = (
                "a masked array" if isinstance(args[k], np.ma.MaskedArray) else f"no array but {type(args[k]).__name__}"
            )
            v = formula.variables[k]
            shape = f"({v.dim},)" if v.cat == 2 else f"({'MN'[v.cat]}, {v.dim})"
            raise InputError(f"{label[k]} is {what}: pass a NumPy, dask or CuPy array of shape {shape}")
    for a, name in zip(args, label, strict=True):
        if (masked := sys.modules.get("numpy.ma")) and isinstance(getattr(a, "_meta", None), masked.MaskedArray):
            raise InputError(f"{name} is a dask array of masked arrays: fill what is masked, as with da.ma.filled")
    _check_types(args, label, dtype)
    for a, name in zip(args, label, strict=True):
        if any(np.isnan(n) for n in a.shape):
            raise InputError(f"{name} has unknown chunk sizes: call its compute_chunk_sizes() first")
    rows = [_check_shapes(formula, args, label, cat) for cat in (0, 1)]
    for k, v in enumerate(formula.variables):
        if v.cat == 2 and (args[k].ndim < 1 or args[k].shape[-1] != v.dim):
            raise InputError(
                f"{label[k]} has shape {args[k].shape}: a parameter of dimension {v.dim} has shape ({v.dim},)"
            )
    batch = _batch(formula, args, label)
    sorts = {kind for kind in kinds if kind is not None}
    if sorts > {"cupy"}:
        raise InputError(
            f"CuPy arrays cannot be mixed with {' and '.join(sorted(sorts - {'cupy'}))} arrays: convert them"
        )
    on = {int(a.device.id): name for a, name in zip(args, label, strict=True)} if "cupy" in sorts else {}
    if len(on) > 1:
        each = ", ".join(f"{name} on {device}" for device, name in sorted(on.items()))
        raise InputError(f"all arrays must be on one CUDA device, got {each}: copy them to one")
    kind = "dask" if "dask" in sorts else "cupy" if "cupy" in sorts else "numpy"
    dtype = dtype or (str(args[0].dtype) if args else "float64")
    arrays = tuple(
        np.require(np.asarray(a), requirements=("C", "A")) if k == "numpy" else a
        for a, k in zip(args, kinds, strict=True)
    )
    if not batch:
        return Inputs(kind, arrays, dtype, (rows[0], rows[1]), next(iter(on), -1))
    tails = [_tail(v) for v in formula.variables]
    own = tuple(
        (*(1,) * (len(batch) + tail - a.ndim), *map(int, a.shape[: a.ndim - tail]))
        for a, tail in zip(arrays, tails, strict=True)
    )
    if kind != "dask":
        arrays = tuple(a.reshape(*lead, *a.shape[-tail:]) for a, lead, tail in zip(arrays, own, tails, strict=True))
    return Inputs(kind, arrays, dtype, (rows[0], rows[1]), next(iter(on), -1), batch, own)


def _tail(v: Variable) -> int:
    """Dimensions of an array behind those of the batch."""
    return 1 if v.cat == 2 else 2


def _batch(formula: Formula, args: Sequence[Any], label: Sequence[str]) -> tuple[int, ...]:
    """What the leading dimensions of all arrays broadcast to."""
    lead = {
        name: tuple(a.shape[: a.ndim - _tail(v)]) for a, v, name in zip(args, formula.variables, label, strict=True)
    }
    try:
        batch = np.broadcast_shapes(*lead.values())
    except ValueError:
        each = ", ".join(f"{name} has {shape}" for name, shape in lead.items() if shape)
        raise InputError(f"batch dimensions must be equal or 1: {each}") from None
    if 0 in batch:
        raise InputError(f"a batch of shape {batch} has no elements")
    return tuple(map(int, batch))


def plain(args: Sequence[Any]) -> tuple[Any, ...] | None:
    """Type and shapes of NumPy arrays that can be used as they are; None: look closer at them."""
    if not args or type(args[0]) is not _ARRAY:
        return None
    kind, shapes = args[0].dtype, []
    for a in args:
        if type(a) is not _ARRAY or a.dtype is not kind or a.flags.num & _FITS != _FITS:
            return None
        shapes.append(a.shape)
    return kind, *shapes


def _plain(formula: Formula, args: Sequence[Any], dtype: str | None) -> Inputs | None:
    """The inputs where all are such arrays and fit, in a few microseconds; None: look closer."""
    variables, found = formula.variables, plain(args)
    if found is None or len(args) != len(variables):
        return None
    kind, *shapes = found
    name = _KINDS.get(kind)
    if name is None or (dtype is not None and dtype != name):
        return None
    rows = _rows(variables, tuple(shapes))
    return None if rows is None else Inputs("numpy", tuple(args), name, rows)


@lru_cache(SIZES)
def _rows(variables: Sequence[Variable], shapes: Sequence[tuple[int, ...]]) -> tuple[int, int] | None:
    """M and N of arrays that fit without a batch; None: look closer."""
    rows: list[int | None] = [None, None]
    for (_, dim, cat), shape in zip(variables, shapes, strict=True):
        if cat == 2:
            if shape != (dim,):
                return None
        elif len(shape) != 2 or shape[1] != dim or rows[cat] not in (None, shape[0]):
            return None
        else:
            rows[cat] = shape[0]
    M, N = rows
    return 1 if M is None else M, 1 if N is None else N


def _check_types(args: Sequence[Any], label: Sequence[str], dtype: str | None) -> None:
    for a, name in zip(args, label, strict=True):
        if str(a.dtype) not in DTYPES:
            known = f"{', '.join(DTYPES[:-1])} or {DTYPES[-1]}"
            raise DtypeError(f"{name} has type {a.dtype}: it is {known}, convert it with .astype")
    found = {str(a.dtype): name for a, name in zip(args, label, strict=True)}
    if len(found) > 1:
        each = ", ".join(f"{name} {t}" for t, name in sorted(found.items()))
        raise DtypeError(f"all arrays must have one type, got {each}: convert them with .astype")
    if dtype is not None and found and dtype not in found:
        (given,) = found
        raise DtypeError(
            f"the routine was made for dtype={dtype!r}, got arrays of type {given}: convert them with .astype"
        )


def _check_shapes(formula: Formula, args: Sequence[Any], label: Sequence[str], cat: int) -> int:
    """The number of rows that all variables of a category share."""
    rows: dict[int, str] = {}
    letter = "MN"[cat]
    for k, v in enumerate(formula.variables):
        if v.cat != cat:
            continue
        shape = args[k].shape
        if len(shape) < 2 or shape[-1] != v.dim:
            raise InputError(f"{label[k]} has shape {shape}: expected ({letter}, {v.dim})")
        rows.setdefault(int(shape[-2]), label[k])
    if len(rows) > 1:
        each = ", ".join(f"{name} has {n}" for n, name in rows.items())
        raise InputError(f"all {_PLURAL[cat]} must have the same number of rows, {letter}: {each}")
    return next(iter(rows), 1)
