"""Folds of arrays on a CUDA device that are ready: launches are recorded once, and then repeated with other arrays."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from dred.kernel.cuda_cache import Program, program, rendered
from dred.kernel.cuda_device import current
from dred.kernel.cuda_fold import CurrentDevice, reduce_device
from dred.kernel.cuda_launch import launch, panels, splits_of_panel
from dred.kernel.cuda_schedule import THREADS
from dred.kernel.cuda_source import Entry, Source
from dred.kernel.output import Output, fields, read, silently
from dred.kernel.spec import KernelSpec, array_type

PER_THREAD = 2  # CUDA's number of the stream that is another one in every thread
BLOCK = (THREADS,)
ROWS = 1 << 20  # of a call, at most: tables in the device's memory grow with them

Function = Callable[..., None]  # of the device


def signature(arrays: Sequence[Any], device_id: int = -1) -> Hashable:
    """All that decides what is done with arrays of CuPy, besides what is in them; None: more does.

    The current stream belongs to it: tables in the device's memory were written on it, and are given back to it.
    """
    import cupy

    here, stream = cupy.cuda.runtime.getDevice(), cupy.cuda.get_current_stream().ptr
    if device_id not in (-1, here) or stream == PER_THREAD:
        return None
    whole, kind = cupy.ndarray, arrays[0].dtype
    found = [cupy, here, stream, kind]
    for a in arrays:
        if type(a) is not whole or a.dtype != kind or a.data.device_id != here:
            return None
        found += a.shape, a.strides  # which say what `flags` do, in a tenth of the time
    return tuple(found)


class Given:
    """An array of the call."""


class New(NamedTuple):
    """Memory that every call takes anew: two of them may be computed at once."""

    shape: tuple[int, ...]
    dtype: Any


class Recorder(CurrentDevice):
    """The current device for `launch`, which writes down what is to be launched: tables are there, memory is not."""

    def __init__(self, source: Source, functions: Program) -> None:
        super().__init__(source, functions)
        self.calls: list[tuple[Function, tuple[int, int], Sequence[Any]]] = []
        self.paced = 0

    def empty(self, count: int, dtype: str) -> New:
        return New((count,), np.dtype(dtype))

    def run(self, entry: Entry, grid: tuple[int, int], args: Sequence[Any]) -> None:
        self.calls.append((self.functions[entry.name], grid, args))

    def pace(self) -> None:
        self.paced += 1


class Launches:
    """The reduction of all pairs of arrays of certain sizes, on the device and the stream that are current now.

    Where its results are fields of the state, launches and new memory are all that a call asks of CuPy.

    Attributes
    ----------
    few : bool
        Whether all of them may wait for the device at once.
    """

    def __init__(
        self, spec: KernelSpec, source: Source, arrays: int, M: int, N: int, outputs: Sequence[Output]
    ) -> None:
        import cupy

        self.spec, self.M, self.N, self.outputs = spec, M, N, outputs
        self.empty, self.stream = cupy.empty, cupy.cuda.get_current_stream()  # kept: its number stays its own
        given = [Given() for _ in range(arrays)]
        inputs: list[Any] = [*given, *[None] * (1 + max(source.read, default=-1) - arrays)]
        for place in spec.constants.keys() & {*source.read}:
            inputs[place] = cupy.asarray(spec.constants[place])
        state: list[New | None] = [New((size, M), kind) for size, _, kind in spec.blank]
        results: dict[int, New] = {}
        for f, row in fields(spec, outputs) or ():
            kind = spec.blank[f][2]
            results[f] = New((M, *row), kind if kind.kind == "i" else array_type(spec.dtype))
            if spec.fields[f].places == 1:
                state[f] = None  # rankings alone are joined in memory
        recorder = Recorder(source, program(spec, source, current()))
        launch(
            source, recorder, state, inputs, M, N, splits=splits_of_panel(source, M, N), fresh=True,
            results=[results.get(f) for f in range(len(state))],
        )  # fmt: skip
        self.few, self.direct = recorder.paced <= 1, bool(results)
        left = [*(results.values() if results else state)]
        args = {id(a): a for _, _, args in recorder.calls for a in args}
        self.new = [a for a in {**{id(a): a for a in left}, **args}.values() if isinstance(a, New)]
        self.kept = [a for a in args.values() if not isinstance(a, Given | New)]
        self.left = len(left)
        number = {id(a): k for k, a in enumerate([*given, *self.new, *self.kept])}
        self.steps = [(run, grid, itemgetter(*(number[id(a)] for a in args))) for run, grid, args in recorder.calls]

    def __call__(self, arrays: Sequence[Any]) -> tuple[Any, ...]:
        try:
            return self.launched(self.spec.widened(arrays) if self.spec.given else arrays)
        except MemoryError:
            pass  # what the failed try holds is freed with its exception
        return reduce_device(self.spec, arrays, self.M, self.N, self.outputs)

    def launched(self, arrays: Sequence[Any]) -> tuple[Any, ...]:
        empty = self.empty
        new = [empty(shape, kind) for shape, kind in self.new]
        everything = (*arrays, *new, *self.kept)
        for run, grid, args in self.steps:
            run(grid, BLOCK, args(everything))
        left = tuple(new[: self.left])
        return left if self.direct else silently(read, self.spec, left, self.outputs)


def prepared(
    spec: KernelSpec, arrays: Sequence[Any], M: int, N: int, outputs: Sequence[Output], device_id: int = -1
) -> Launches | None:
    """The reduction of arrays like these, if a few launches of few rows do it; None: more is needed."""
    if not (0 < M <= ROWS and N) or signature(arrays, device_id) is None:
        return None
    if not all(a.flags.c_contiguous for a in arrays):
        return None
    source = rendered(spec)
    if len(panels(source, N)) > 1:
        return None
    try:
        found = Launches(spec, source, len(arrays), M, N, outputs)
    except MemoryError:
        return None  # a fold says what is lacking
    return found if found.few else None
