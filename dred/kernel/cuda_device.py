"""CUDA devices of this process: which there are, what they are, and how much of their memory a call may use."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
from functools import cache
from typing import Any

from dred.errors import BackendError, DeviceMemoryError, OptionError, human

PIP = "(in dred's folder: pip install '.[cuda13]' or '.[cuda12]')"
CURE = f"; use backend='cpu', or install CuPy {PIP} on a machine with a GPU"
MEMORY = 0.8  # of a device, where nobody says otherwise

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
          "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}  # fmt: skip


@cache
def _driver() -> bool:
    try:
        ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return False
    return True


def device_count() -> int:
    """CUDA devices that this process can use; 0 without a driver, a device or CuPy. Never raises."""
    if not _driver() or importlib.util.find_spec("cupy") is None:
        return 0
    try:
        from cupy.cuda import runtime

        return int(runtime.getDeviceCount())
    except Exception:  # a broken installation is none
        return 0


def checked(device_id: int) -> int:
    """The device meant by `device_id`; -1 is the current one.

    Raises
    ------
    BackendError
        Where there is no device, or no such device.
    """
    count = device_count()
    if count == 0:
        raise BackendError(f"backend='cuda' cannot run here: {lacking()}{CURE}")
    if not -1 <= device_id < count:
        raise BackendError(
            f"device_id={device_id} is out of range: this process sees {count} device(s), 0 ... {count - 1}"
        )
    return device_id if device_id >= 0 else current()


def lacking() -> str:
    """Why `device_count` is 0; "" where it is not."""
    if not _driver():
        return "no NVIDIA driver was found"
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed"
    return "the driver shows no device to this process" if device_count() == 0 else ""


def cupy_version() -> str:
    """That of CuPy; "" where it is not installed.

    Raises
    ------
    Exception
        What importing it raises where it is broken.
    """
    if importlib.util.find_spec("cupy") is None:
        return ""
    import cupy

    return str(cupy.__version__)


def driver_version() -> str:
    """The newest version of CUDA that the driver knows, where there is a device."""
    from cupy.cuda import runtime

    number = int(runtime.driverGetVersion())
    return f"{number // 1000}.{number % 1000 // 10}"


def described(device_id: int) -> str:
    """Name, architecture and memory of a device."""
    from cupy.cuda import runtime

    about = runtime.getDeviceProperties(device_id)
    return f"{about['name'].decode()}, {capability(device_id)}, {human(about['totalGlobalMem'])}"


def current() -> int:
    """The current device of this thread."""
    from cupy.cuda import runtime

    return int(runtime.getDevice())


def architecture() -> str:
    """That of the current device."""
    return capability(current())


def capability(device_id: int) -> str:
    """The architecture of a device, such as "sm_90"."""
    from cupy.cuda import Device

    return f"sm_{Device(device_id).compute_capability}"


@cache
def multiprocessors(device_id: int) -> int:
    """How many a device has."""
    from cupy.cuda import Device

    return int(Device(device_id).attributes["MultiProcessorCount"])


# -- memory --------------------------------------------------------------------------------------------------------


def memory_limit(text: str) -> float:
    """A limit of memory: "0.5" is a fraction of the device, "2 GiB" is bytes.

    Raises
    ------
    ValueError
    """
    match = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?) *([a-z]*)", text.strip().lower())
    if match is None or match[2] not in _UNITS:
        raise ValueError("a fraction of the device, such as 0.5, or bytes, such as 2 GiB")
    limit = float(match[1]) * _UNITS[match[2]]
    if limit <= 0 or (match[2] and limit < 1):
        raise ValueError("it must be positive")
    return limit


def declared() -> float:
    """DRED_CUDA_MEMORY where it is set, else `MEMORY`.

    Raises
    ------
    OptionError
    """
    text = os.environ.get("DRED_CUDA_MEMORY", "").strip()
    try:
        return memory_limit(text) if text else MEMORY
    except ValueError:
        raise OptionError(
            f"DRED_CUDA_MEMORY is {text!r}: set it to a fraction of the device, such as 0.5, or to bytes, such as"
            " 2 GiB, or unset it"
        ) from None


def limit_bytes(memory: float | None = None) -> int:
    """Bytes of the current device that `memory` means: a fraction of all up to 1, else bytes; None: `declared`."""
    from cupy.cuda import runtime

    memory = declared() if memory is None else memory
    return int(memory * runtime.memGetInfo()[1]) if memory <= 1 else int(memory)


def room(memory: float | None = None) -> int:
    """Bytes that a call may use now on the current device: `limit_bytes`, and no more than there are."""
    import cupy

    limit = limit_bytes(memory)
    pool = _pool()
    if pool is None:  # somebody else's allocator may hold all of the device, and knows what of it is free
        return limit
    free = int(cupy.cuda.runtime.memGetInfo()[0]) + int(pool.free_bytes())
    most = int(pool.get_limit())
    return min(limit, free, most - int(pool.used_bytes())) if most else min(limit, free)


def bound_pool(memory: float | None = None) -> int:
    """Let CuPy's own pool hold `limit_bytes` of the current device at most, unless somebody has set another limit.

    Where another allocator than CuPy's was set, nothing is bounded. Returns `limit_bytes`; 0 without a device.
    """
    if device_count() == 0:
        return 0
    pool, most = _pool(), limit_bytes(memory)
    if pool is not None and pool.get_limit() == 0:
        pool.set_limit(size=most)
    return most


def release() -> None:
    """Give back what CuPy's own pool holds and nobody uses."""
    pool = _pool()
    if pool is not None:
        pool.free_all_blocks()


def _pool() -> Any:
    """CuPy's own pool of memory; None where another allocator was set, such as RMM's."""
    import cupy

    pool = cupy.get_default_memory_pool()
    return pool if cupy.cuda.get_allocator() == pool.malloc else None


def no_memory(what: str, reason: object) -> DeviceMemoryError:
    """The error for something that does not fit into the current device."""
    from cupy.cuda import runtime

    free, total = runtime.memGetInfo()
    return DeviceMemoryError(
        f"CUDA device {current()} has too little memory for {what}: {reason} (the driver reports {human(free)} free of"
        f" {human(total)}). Free arrays on the device, raise the limit (DRED_CUDA_MEMORY, for workers dred.cuda.memory"
        " in dask's configuration), or pass fewer rows at a time"
    )
