"""Folds of arrays on a CUDA device, on the caller's current device and stream: CuPy in, CuPy out, nothing copied."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dred.errors import BackendError
from dred.formula.node import J
from dred.kernel.batches import runs
from dred.kernel.cuda_cache import Program, program, rendered
from dred.kernel.cuda_device import checked, current, multiprocessors, no_memory, release
from dred.kernel.cuda_launch import SCRATCH, launch, panels, splits_of_panel, strides_of
from dred.kernel.cuda_schedule import THREADS
from dred.kernel.cuda_source import Entry, Source
from dred.kernel.output import Output
from dred.kernel.pattern import Pattern
from dred.kernel.spec import KernelSpec

RELIEF = 16  # a second try after a shortage of memory launches so many times fewer rows at once


class CurrentDevice:
    """The current device and stream of CuPy, for `launch`."""

    def __init__(self, source: Source, functions: Program) -> None:
        import cupy

        self.cupy = cupy
        self.functions = {entry.name: functions[kind] for kind, entry in source.entries.items()}
        self.multiprocessors = multiprocessors(current())
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
        event.record(self.cupy.cuda.get_current_stream())
        self.waiting.append(event)
        if len(self.waiting) > 2:
            self.waiting.popleft().synchronize()


def adopted(array: Any) -> Any:
    """An array in a device's memory, of whatever library, as a cupy.ndarray of the same memory.

    Raises
    ------
    BackendError
        There is no CuPy or no device to use it with.
    """
    checked(-1)
    import cupy

    if not hasattr(type(array), "__dlpack__"):
        return cupy.asarray(array)
    with cupy.cuda.Device(array.__dlpack_device__()[1]):  # its library waits for the current stream of that device
        return cupy.from_dlpack(array)


def joined(blocks: Sequence[Any], axis: int = 0) -> Any:
    """Arrays of the current device, one below the other, or along another axis.

    Raises
    ------
    BackendError
        One is on another device.
    """
    import cupy

    here = current()
    for block in blocks:
        if block.device.id != here:
            raise BackendError(f"a block is on device {block.device.id}, device {here} computes: move it there")
    return cupy.concatenate(blocks, axis=axis)


def placed(array_device: int, device_id: int) -> int:
    """The device that computes with arrays of a device: theirs, which must be `device_id`, or the current one (-1).

    Raises
    ------
    BackendError
        There is no device `device_id`, or the arrays are on another one.
    """
    found = checked(device_id)
    if array_device != found:
        named = f"the current device is {found}" if device_id < 0 else f"device_id={device_id}"
        raise BackendError(
            f"the arrays are on device {array_device}, {named}: move them there, or enter"
            f" `with cupy.cuda.Device({array_device}):`"
        )
    return found


def fold_device(
    spec: KernelSpec,
    state: Sequence[Any] | None,
    arrays: Sequence[Any],
    M: int,
    N: int,
    *,
    batches: int = 1,
    pattern: Pattern | None = None,
    i0: int = 0,
    j0: int = 0,
) -> tuple[Any, ...]:
    """Fold columns into a state, on the caller's current device and stream; does not wait for the result.

    Parameters
    ----------
    spec : KernelSpec
    state : sequence of cupy.ndarray (size, batches * M) or None
        Never written to; None is the state that has met no term.
    arrays : sequence of cupy.ndarray
        By position, of type `spec.dtype`, on the current device; what is not C-contiguous is copied. Those that the
        kernel does not read may be anything. Those of `spec.constants` need not be there.
    M, N : int
        Rows kept and reduced.
    batches : int
        Arrays may be (batches, rows, dim) as well, parameters (batches, dim).
    pattern : Pattern, optional
        Which columns each row meets; default: all.
    i0, j0 : int
        Global numbers of the first kept and of the first reduced row.

    Returns
    -------
    tuple of cupy.ndarray

    Raises
    ------
    BackendError
        An array is on another device.
    DeviceMemoryError
        The state, or the fewest rows of a launch, do not fit beside the arrays.
    """
    import cupy

    here = current()
    found = rendered(spec)
    inputs: list[Any] = [None] * (1 + max(found.read, default=-1))
    for place in found.read:
        a = cupy.asarray(spec.constants[place]) if place in spec.constants else arrays[place]
        if a.device.id != here:
            raise BackendError(
                f"array {place} is on device {a.device.id}, the current device is {here}: move it there, or enter"
                f" `with cupy.cuda.Device({a.device.id}):`"
            )
        inputs[place] = a
    device = CurrentDevice(found, program(spec, found, here))
    what = f"the state of {M:,} rows"
    try:
        inputs = [None if a is None else cupy.ascontiguousarray(a) for a in inputs]  # kernels see no strides
        fresh = state is None and pattern is None and N > 0  # every row meets a column, and is written then
        if state is not None:
            new = tuple(field.copy() for field in state)
        elif fresh:
            new = tuple(cupy.empty((field.size, batches * M), field.dtype) for field in found.fields)
        else:
            new = tuple(cupy.full((field.size, batches * M), field.identity, field.dtype) for field in found.fields)
        strides = strides_of(found, inputs)
        for begin, end in panels(found, N) if M else []:
            what = f"the partial states of a launch, beside {M:,} rows and {end - begin:,} columns"
            met = None if pattern is None else pattern.within(slice(0, M), slice(begin, end))
            relieved(
                partial(
                    launch, found, device, new, columns(found, inputs, begin, end), M, end - begin,
                    items=None if met is None else met.items(batches),
                    intervals=None if met is None else met.intervals,
                    strides=strides, batches=batches, splits=splits_of_panel(found, M, end - begin, batches, met),
                    row0=i0, column0=j0 + begin, fresh=fresh and begin == 0,
                )
            )  # fmt: skip
    except MemoryError as error:
        shortage = no_memory(what, error)
    else:
        return new
    raise shortage  # out here without a context: CuPy's own error cannot be unpickled


def columns(source: Source, inputs: Sequence[Any], begin: int, end: int) -> list[Any]:
    """The arrays, of those of the columns the rows `begin:end`."""
    given = list(inputs)
    for place, _, axes in source.loads:
        if axes == J and given[place] is not None:
            given[place] = run(given[place], begin, end)
    return given


def run(array: Any, begin: int, end: int) -> Any:
    """Some rows of an array, of each batch where it has several."""
    return array[begin:end] if array.ndim == 2 else array[:, begin:end]


def relieved(attempt: Callable[..., None]) -> None:
    """Launch with all the scratch memory that there may be; where that is too much, once more with little."""
    try:
        return attempt(scratch=SCRATCH)
    except MemoryError:
        pass  # what the failed try holds is freed with its exception
    release()
    return attempt(scratch=SCRATCH // RELIEF)


def reduce_device(
    spec: KernelSpec,
    arrays: Sequence[Any],
    M: int,
    N: int,
    outputs: Sequence[Output],
    *,
    pattern: Pattern | None = None,
    device_id: int = -1,
) -> tuple[Any, ...]:
    """What `outputs` read off the state of all N columns, as cupy.ndarray: arrays, device and errors as `fold_device`.

    Raises
    ------
    BackendError
        Where there is no device `device_id` (-1 is the current one), or an array is on another one.
    """
    device_id = checked(device_id)
    import cupy

    with cupy.cuda.Device(device_id):
        wide = spec.widened(arrays)
        if not spec.batch:
            state = fold_device(spec, None, wide, M, N, pattern=pattern)
        else:
            parts = [
                fold_device(spec, None, given, M, N, batches=count, pattern=pattern)
                for _, count, given in runs(spec, wide)
            ]
            state = (
                parts[0] if len(parts) == 1 else tuple(joined(fields, axis=1) for fields in zip(*parts, strict=True))
            )
        try:
            return tuple(output.read(spec, state) for output in outputs)  # NumPy hands on to CuPy
        except MemoryError as error:
            shortage = no_memory(f"the results of {M:,} rows", error)
        raise shortage
