"""CUDA: sources compiled with NVRTC and launched through CuPy, which no other module imports (this one in functions).

A launch is planned from sizes alone. Rows are cut into tiles, and their columns into splits whose partial states are
merged in order; how many launches that takes, and how many splits one of them computes, changes no bit.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dred.errors import BackendError
from dred.kernel import disk
from dred.kernel.cuda_schedule import THREADS
from dred.kernel.cuda_source import ITEM, Entry, Source, rendered
from dred.kernel.output import Output
from dred.kernel.spec import KernelSpec

State = tuple[NDArray[Any], ...]
Program = dict[str, Any]  # kind of entry -> function of the device

# Declared, never measured, for splits are part of the result: blocks that fill a device, and estimated instructions
# of one block (0.05 s of its share of a multiprocessor) and of one launch (0.2 s of a device).
BLOCKS, BLOCK_COST, LAUNCH_COST = 2048, 2e9, 1e12
SCRATCH = 1 << 28  # bytes of the partial states of one launch
MODULES = 256  # loaded modules that are kept

OPTIONS = ("--std=c++17", "-default-device", "--fmad=false", "--ptxas-options=-v")
PIP = "(in dred's folder: pip install '.[cuda13]' or '.[cuda12]')"
CURE = f"; use backend='cpu', or install CuPy {PIP} on a machine with a GPU"


class Device(Protocol):
    """What `launch` needs: memory, and functions that run in order."""

    def empty(self, count: int, dtype: str) -> Any:
        """Memory for `count` values."""

    def upload(self, table: NDArray[np.int64]) -> Any:
        """A table in the device's memory."""

    def run(self, entry: Entry, grid: tuple[int, int], args: Sequence[Any]) -> None:
        """Run a function of `THREADS` threads per block."""

    def pace(self) -> None:
        """Called after each launch: keep few of them waiting."""


# -- launches ------------------------------------------------------------------------------------------------------


def row_tiles(items: NDArray[np.int64], tile_rows: int) -> NDArray[np.int64]:
    """Items (batch, row begin, row end, first interval, last interval), cut into tiles of at most `tile_rows` rows."""
    count = -(-(items[:, 2] - items[:, 1]) // tile_rows)
    tiles = np.repeat(items, count, axis=0)
    number = np.arange(len(tiles)) - np.repeat(np.cumsum(count) - count, count)
    tiles[:, 1] += number * tile_rows
    tiles[:, 2] = np.minimum(tiles[:, 1] + tile_rows, tiles[:, 2])
    return tiles


def splits_of(source: Source, row_tiles: int, column_tiles: int) -> int:
    """Splits of the columns: enough to fill a device and to keep blocks short; of sizes alone."""
    fewest = max(4, -(-8 * source.places // source.tile_columns))  # tiles: to merge a ranking takes time
    fill = min(-(-BLOCKS // max(1, row_tiles)), -(-column_tiles // fewest))
    cost = float(column_tiles) * source.tile_columns * source.tile_rows * source.cost
    return max(1, min(max(fill, int(-(-cost // BLOCK_COST))), column_tiles, 65535))


def launch(
    source: Source,
    device: Device,
    state: Sequence[Any],
    arrays: Sequence[Any],
    M: int,
    N: int,
    *,
    items: NDArray[np.int64] | None = None,
    intervals: NDArray[np.int64] | None = None,
    strides: Sequence[int] | None = None,
    batches: int = 1,
    splits: int | None = None,
    row0: int = 0,
    column0: int = 0,
) -> None:
    """Fold columns into the state, in place.

    Parameters
    ----------
    source : Source
    device : Device
    state : sequence of arrays
        Per field (size, batches * M), in the device's memory.
    arrays : sequence of arrays
        By position of the variable, in the device's memory.
    M, N : int
        Rows and columns of a batch.
    items : (n, 5) int64, optional
        Rows with the intervals of their columns: batch, row begin, row end, first interval, last interval (exclusive).
    intervals : (m, 2) int64, optional
        Columns: begin, end.
    strides : sequence of int, optional
        By position of the variable: values from one batch to the next, 0 to use the same for all.
    batches : int
    splits : int, optional
        Instead of what `splits_of` says.
    row0, column0 : int
        Global numbers of the first row and of the first column of the arrays.
    """
    if items is None or intervals is None:
        items = np.array([(b, 0, M, 0, 1) for b in range(batches)], np.int64).reshape(-1, ITEM)
        intervals = np.array([(0, N)], np.int64)
    tiles = row_tiles(items, source.tile_rows)
    lengths = np.concatenate([[0], np.cumsum(-(-(intervals[:, 1] - intervals[:, 0]) // source.tile_columns))])
    column_tiles = int((lengths[tiles[:, 4]] - lengths[tiles[:, 3]]).max()) if len(tiles) else 0
    if column_tiles == 0:
        return
    splits = splits or splits_of(source, len(tiles), column_tiles)

    per_split = -(-column_tiles // splits) * source.tile_columns * source.tile_rows * source.cost  # of one row tile
    bytes_split = source.tile_rows * sum(field.size * np.dtype(field.dtype).itemsize for field in source.fields)
    together = max(1, int(min(LAUNCH_COST / per_split, SCRATCH / bytes_split)))  # blocks of one launch
    group = min(splits, together)
    step = max(1, min(together // group, len(tiles)))

    given: dict[str, Any] = {"splits": np.int32(splits), "M": np.int64(M), "intervals": device.upload(intervals)}
    for v, _, _ in source.loads:
        given[f"v{v}"], given[f"s{v}"] = arrays[v], np.int64(strides[v] if strides else 0)
    given |= {f"state{f}": field for f, field in enumerate(state)}
    given["state_pitch"] = np.int64(batches * M)
    given |= {"row0": np.int64(row0), "column0": np.int64(column0)}

    def run(kind: str, grid: tuple[int, int]) -> None:
        entry = source.entries[kind]
        device.run(entry, grid, [given[name] for _, name in entry.params])

    if source.size_j:  # a group of columns may be read as a whole, beyond the last one
        ypitch = -(-N // 32) * 32 + 32
        given |= {"ys": device.empty(batches * source.size_j * ypitch, source.dtype), "ypitch": np.int64(ypitch)}
        given["N"] = np.int64(N)
        run("columns", (-(-N // THREADS) * batches, 1))
    pitch = step * source.tile_rows
    given["pitch"] = np.int64(pitch)
    for f, field in enumerate(source.fields):
        given[f"partial{f}"] = device.empty(group * field.size * pitch, field.dtype)
    if source.size_i:
        given["xs"] = device.empty(source.size_i * pitch, source.dtype)
    for low in range(0, len(tiles), step):
        part = tiles[low : low + step]
        given["items"] = device.upload(np.ascontiguousarray(part))
        if source.size_i:
            run("rows", (len(part), 1))
        for first in range(0, splits, group):
            here = min(group, splits - first)
            given |= {"first": np.int32(first), "splits": np.int32(splits)}
            run("fold", (len(part), here))
            given["splits"] = np.int32(here)
            run("merge", (len(part), min(source.components, 64)))
            if "heads" in source.entries:
                run("heads", (len(part), 1))
            device.pace()


# -- sources and cubins --------------------------------------------------------------------------------------------


@lru_cache(maxsize=MODULES)
def _source(digest: str, spec: KernelSpec) -> Source:
    return rendered(spec)


def source(spec: KernelSpec) -> str:
    """The CUDA C++ that computes `spec`; needs neither a device nor CuPy."""
    return _source(spec.digest, spec).text


def _nvrtc() -> Any:
    """CuPy's module of NVRTC; the library itself is loaded by the first call of it."""
    try:
        from cupy.cuda import nvrtc

        nvrtc.getVersion()
    except (ImportError, OSError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BackendError(
            f"CuPy cannot load NVRTC, which compiles the kernels ({reason}): install it beside CuPy {PIP}, or use"
            " backend='cpu'"
        ) from error
    return nvrtc


def compile_cubin(text: str, arch: str) -> tuple[bytes, str]:
    """Machine code of a source for an architecture, such as "sm_90", and the compiler's log. Needs no device.

    Raises
    ------
    BackendError
        Where there is no NVRTC, or it refuses the source, with its log.
    """
    nvrtc = _nvrtc()
    program = nvrtc.createProgram(text, "dred.cu", (), ())
    try:
        nvrtc.compileProgram(program, (f"--gpu-architecture={arch}", *OPTIONS))
        return nvrtc.getCUBIN(program) + b"\0", nvrtc.getProgramLog(program)  # CuPy drops the last byte
    except nvrtc.NVRTCError as error:
        log = nvrtc.getProgramLog(program)
        raise BackendError(f"NVRTC {nvrtc.getVersion()} cannot compile a kernel for {arch} ({error}):\n{log}") from None
    finally:
        nvrtc.destroyProgram(program)


def cubin(text: str, arch: str) -> bytes:
    """Machine code of a source for an architecture, from disk if a process has left it there. Needs no device."""
    key = "\n".join(("cuda", arch, str(_nvrtc().getVersion()), *OPTIONS, text))
    store = disk.default()
    if (code := store.read(key)) is None:
        code, _ = compile_cubin(text, arch)
        store.write(key, code)
    return code


_programs: OrderedDict[tuple[Any, ...], Program] = OrderedDict()
_lock = threading.Lock()


def _program(spec: KernelSpec, found: Source, device_id: int) -> Program:
    """The functions of a spec on the current device; compiled and loaded once."""
    from cupy.cuda import Device as CudaDevice
    from cupy.cuda import function

    nvrtc = _nvrtc()
    arch = f"sm_{CudaDevice(device_id).compute_capability}"
    key = (spec.digest, device_id, arch, nvrtc.getVersion(), OPTIONS)
    with _lock:
        if key not in _programs:
            module = function.Module()
            module.load(cubin(found.text, arch))
            _programs[key] = {kind: module.get_function(entry.name) for kind, entry in found.entries.items()}
            while len(_programs) > MODULES:
                _programs.popitem(last=False)
        _programs.move_to_end(key)
        return _programs[key]


# -- devices -------------------------------------------------------------------------------------------------------


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


def _checked(device_id: int) -> int:
    """The device meant by `device_id`; -1 is the current one."""
    count = device_count()
    if count == 0:
        missing = (
            "no NVIDIA driver was found" if not _driver()
            else "CuPy is not installed" if importlib.util.find_spec("cupy") is None
            else "the driver shows no device to this process"
        )  # fmt: skip
        raise BackendError(f"backend='cuda' cannot run here: {missing}{CURE}")
    if not -1 <= device_id < count:
        raise BackendError(
            f"device_id={device_id} is out of range: this process sees {count} device(s), 0 ... {count - 1}"
        )
    if device_id >= 0:
        return device_id
    import cupy

    return int(cupy.cuda.runtime.getDevice())


class _CuPy:
    """The current device and stream."""

    def __init__(self, source: Source, program: Program) -> None:
        import cupy

        self.cupy = cupy
        self.functions = {entry.name: program[kind] for kind, entry in source.entries.items()}
        self.waiting: deque[Any] = deque()

    def empty(self, count: int, dtype: str) -> Any:
        return self.cupy.empty(count, dtype)

    def upload(self, table: NDArray[np.int64]) -> Any:
        return self.cupy.asarray(table)

    def run(self, entry: Entry, grid: tuple[int, int], args: Sequence[Any]) -> None:
        self.functions[entry.name](grid, (THREADS,), tuple(args))

    def pace(self) -> None:
        """Two launches wait at most: a KeyboardInterrupt is seen between them."""
        event = self.cupy.cuda.Event(disable_timing=True)
        event.record()
        self.waiting.append(event)
        if len(self.waiting) > 2:
            self.waiting.popleft().synchronize()


def fold_device(
    spec: KernelSpec,
    state: Sequence[Any] | None,
    arrays: Sequence[Any],
    M: int,
    N: int,
    *,
    i0: int = 0,
    j0: int = 0,
) -> tuple[Any, ...]:
    """Fold columns into a state, on the caller's current device and stream; does not wait for the result.

    Parameters
    ----------
    spec : KernelSpec
    state : sequence of cupy.ndarray (size, M) or None
        Never written to; None is the state that has met no term.
    arrays : sequence of cupy.ndarray
        By position, of type `spec.dtype`, on the current device; what is not C-contiguous is copied. Those that the
        kernel does not read may be anything. Those of `spec.constants` need not be there.
    M, N : int
        Rows kept and reduced.
    i0, j0 : int
        Global numbers of the first kept and of the first reduced row.

    Returns
    -------
    tuple of cupy.ndarray
    """
    import cupy

    current = int(cupy.cuda.runtime.getDevice())
    found = _source(spec.digest, spec)
    inputs: list[Any] = [None] * (1 + max(found.read, default=-1))
    for place in found.read:
        a = cupy.asarray(spec.constants[place]) if place in spec.constants else arrays[place]
        if a.device.id != current:
            raise BackendError(
                f"array {place} is on device {a.device.id}, the current device is {current}: move it there, or enter"
                f" `with cupy.cuda.Device({a.device.id}):`"
            )
        inputs[place] = cupy.ascontiguousarray(a)  # kernels see a pointer and no strides
    if state is None:
        new = tuple(cupy.full((field.size, M), field.identity, field.dtype) for field in found.fields)
    else:
        new = tuple(field.copy() for field in state)
    device = _CuPy(found, _program(spec, found, current))
    launch(found, device, new, inputs, M, N, row0=i0, column0=j0)
    return new


def reduce_device(
    spec: KernelSpec, arrays: Sequence[Any], M: int, N: int, outputs: Sequence[Output], *, device_id: int = -1
) -> tuple[Any, ...]:
    """What `outputs` read off the state of all N columns, as cupy.ndarray: arrays and device as `fold_device`.

    Raises
    ------
    BackendError
        Where there is no device `device_id` (-1 is the current one), or an array is on another one.
    """
    device_id = _checked(device_id)
    import cupy

    with cupy.cuda.Device(device_id):
        state = fold_device(spec, None, spec.widened(arrays), M, N)
        return tuple(output.read(spec, state) for output in outputs)  # NumPy hands on to CuPy


_threads = threading.local()


def _stream(device_id: int) -> Any:
    """This thread's own stream on a device."""
    from cupy.cuda import Stream

    streams: dict[int, Any] = _threads.__dict__.setdefault("streams", {})
    if device_id not in streams:
        streams[device_id] = Stream(non_blocking=True)
    return streams[device_id]


def fold(
    spec: KernelSpec,
    state: State,
    arrays: Sequence[NDArray[Any]],
    M: int,
    N: int,
    *,
    i0: int = 0,
    j0: int = 0,
    device_id: int = -1,
) -> State:
    """See `dred.kernel.engine.fold`; computes on device `device_id`, -1 is the current one.

    Raises
    ------
    BackendError
        Where there is no device, or no such device.
    """
    device_id = _checked(device_id)
    import cupy

    with cupy.cuda.Device(device_id), _stream(device_id) as stream:
        read = set(_source(spec.digest, spec).read) - set(spec.constants)
        inputs = [cupy.asarray(a) if n in read else None for n, a in enumerate(arrays)]
        new = fold_device(spec, [cupy.asarray(field) for field in state], inputs, M, N, i0=i0, j0=j0)
        result = tuple(cupy.asnumpy(field) for field in new)
        stream.synchronize()
        return result
