"""The CPU backend: kernels compiled by LLVM when first needed, and run on all cores without the GIL."""

from __future__ import annotations

import ctypes
import json
import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dred.errors import BackendError, InputError
from dred.formula.node import I, J
from dred.kernel import disk, sources
from dred.kernel.cpu_calls import Call, Share, addresses, alone, listed, whole
from dred.kernel.cpu_schedule import Schedule, split
from dred.kernel.interpret import merge_states
from dred.kernel.llvm import SIGNATURE, Program, render
from dred.kernel.lower import lower
from dred.kernel.machine import Machine, chosen, emit, load
from dred.kernel.output import empty
from dred.kernel.pattern import Pattern
from dred.kernel.spec import KernelSpec
from dred.kernel.threads import NEVER, Stop, declared, thread_count
from dred.kernel.threads import run as _run

UNROLL = 8  # longer vectors are loops over components: their records do not fit into registers
CACHED = 128  # compiled kernels that are kept
LARGE = 1_000_000  # characters of a program whose registers are allocated in haste: else that takes a minute
SHAPES = 256  # sizes of calls whose arrays' shapes are kept
SPARE, SPARES = 1 << 21, 8  # bytes of scratch memory that is used again, and how many of them wait for that
TILES = 64  # in its table of what is to be done again, at least

State = tuple[NDArray[Any], ...]


@dataclass(frozen=True)
class Compiled:
    """Machine code of a kernel; it lives as long as `engine`."""

    program: Program
    cost: float
    function: Callable[..., None]
    engine: Any


_kernels: OrderedDict[str, Compiled] = OrderedDict()
_lookup, _compile = threading.Lock(), threading.Lock()


def _renew() -> None:
    """After a fork, locks may be held by nobody."""
    global _lookup, _compile
    _lookup, _compile = threading.Lock(), threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


def available() -> bool:
    """Whether llvmlite can be imported."""
    try:
        import llvmlite.binding  # noqa: F401
    except (ImportError, OSError):
        return False
    return True


def source(spec: KernelSpec) -> str:
    """The LLVM IR of a kernel, for every machine; where there is AVX-512, powers of 2 are written otherwise."""
    return render(lower(spec, UNROLL, hoist=True), spec.dtype, spec.acc, spec.chain).text


def fold(
    spec: KernelSpec,
    state: State,
    arrays: Sequence[NDArray[Any]],
    M: int,
    N: int,
    *,
    batches: int = 1,
    pattern: Pattern | None = None,
    i0: int = 0,
    j0: int = 0,
    threads: int | None = None,
) -> State:
    """The state after the terms of one block of columns; bits do not depend on the number of threads.

    Parameters
    ----------
    spec, state, arrays, M, N, pattern, i0, j0
        See `dred.kernel.engine.fold`.
    batches : int
        Arrays may be (batches, rows, dim) as well, parameters (batches, dim); the state is of batches * M rows.
    threads : int, optional
        Default: `thread_count()`.

    Returns
    -------
    State

    Raises
    ------
    InputError
        An array that is not what the kernel would read.
    BackendError
        LLVM cannot compile for this machine.
    """
    if M == 0 or N == 0 or batches == 0:
        return tuple([field.copy() for field in state])
    arrays = _checked(spec, arrays, M, N, batches)
    along, parts = split(spec, M, N, batches) if pattern is None else (I, ((0, N),))
    kernel, careful = compiled(spec, along), partial(compiled, spec, along, hoist=False)
    return folded(spec, kernel, careful, parts, state, arrays, M, (i0, j0), threads, batches, pattern)


def warm(spec: KernelSpec) -> None:
    """Compile the kernels whose lanes are rows, and columns."""
    for along in (I, J):
        compiled(spec, along)


def folded(
    spec: KernelSpec,
    kernel: Compiled,
    careful: Callable[[], Compiled],
    parts: Sequence[tuple[int, int]],
    state: State,
    arrays: Sequence[NDArray[Any]],
    M: int,
    numbers: tuple[int, int] = (0, 0),
    threads: int | None = 1,
    batches: int = 1,
    pattern: Pattern | None = None,
) -> State:
    """The state after the terms of some parts of the columns.

    Parameters
    ----------
    spec : KernelSpec
    kernel : Compiled
    careful : callable
        Gives the same kernel with all factors inside: it goes on where sums are not finite.
    parts : sequence of (int, int)
        First and one past the last column. Where there are several, or lanes are columns, each part and lane has a
        state of its own, which are merged in the end. A pattern takes one part, of all columns.
    state, arrays, M, numbers, threads, batches, pattern
        As of `fold`; `numbers` are i0 and j0.
    """
    new = tuple([field.copy() for field in state])
    plan = kernel.program.plan
    lanes = plan.lanes if plan.along == J else 1
    if len(parts) == lanes == 1:
        states = [new]
    else:
        one = replace(spec, batch=(), own=()) if spec.batch else spec
        states = [empty(one, batches * M * lanes) for _ in parts]
    strides = _strides(spec, arrays, M * lanes, batches)

    def work(share: Share, stop: Stop) -> None:
        for part, calls in share:
            _calls(kernel, arrays, states[part], calls, numbers, stop, careful, strides)

    single = batches == 1 and pattern is None
    if single and alone(kernel.cost, M * (parts[-1][1] - parts[0][0])):
        declared()  # even where it makes no difference, it must not be wrong
        work(whole(plan, kernel.cost, M, parts, 1)[0], NEVER)
    else:
        most = thread_count() if threads is None else threads
        if single:
            shares = whole(plan, kernel.cost, M, parts, most)
        else:
            shares = listed(plan, kernel.cost, M, parts, batches, pattern, most)
        _run([partial(work, share) for share in shares])
    return new if states[0] is new else merge_states(spec, new, _merged(spec, states, lanes))


def _strides(spec: KernelSpec, arrays: Sequence[NDArray[Any]], rows: int, batches: int) -> bytes:
    """Values from one batch to the next: of the state, then of each array, 0 where all batches share it."""
    if batches == 1:
        return _none(arrays)
    strides = np.zeros(1 + len(arrays), np.int64)
    strides[0] = rows
    for v in spec.read:
        if arrays[v.ind].ndim == (2 if v.cat == 2 else 3):
            strides[1 + v.ind] = arrays[v.ind][0].size
    return strides.tobytes()


def _none(arrays: Sequence[NDArray[Any]]) -> bytes:
    """The strides of a single batch."""
    return bytes(8 + 8 * len(arrays))


def _merged(spec: KernelSpec, states: Sequence[State], lanes: int) -> State:
    """The union of the states of parts of columns, and of lanes, which are next to each other: halves in turn."""
    fields = [
        np.stack([state[f].reshape(len(state[f]), -1, lanes) for state in states], 1) for f in range(len(states[0]))
    ]
    parts = [np.moveaxis(a, 3, 2).reshape(len(a), -1, a.shape[2]) for a in fields]  # (size, parts and lanes, rows)
    while (count := parts[0].shape[1]) > 1:
        half = count // 2
        left, right = (
            tuple(np.ascontiguousarray(a[:, part]).reshape(len(a), -1) for a in parts)
            for part in (slice(0, half), slice(half, 2 * half))
        )
        joined = merge_states(spec, left, right)
        parts = [
            np.concatenate([a.reshape(len(a), half, -1), b[:, 2 * half :]], 1)
            for a, b in zip(joined, parts, strict=True)
        ]
    return tuple(a[:, 0] for a in parts)


@lru_cache(SHAPES)
def _shapes(spec: KernelSpec, M: int, N: int) -> tuple[np.dtype[Any], tuple[tuple[int, tuple[int, ...]], ...]]:
    """The type of all arrays and, for each that the kernel reads, its position and shape."""
    rows = {0: (), I: (M,), J: (N,)}
    return np.dtype(spec.dtype), tuple((v.ind, (*rows[spec.level(v.cat)], v.dim)) for v in spec.read)


def _checked(spec: KernelSpec, arrays: Sequence[NDArray[Any]], M: int, N: int, batches: int) -> Sequence[NDArray[Any]]:
    """The arrays as the kernel reads them: it would read whatever lies in memory."""
    kind, shapes = _shapes(spec, M, N)
    contiguous = True
    for ind, shape in shapes:
        a = arrays[ind]
        if a.dtype != kind or (a.shape != shape and a.shape != (batches, *shape)):
            raise InputError(
                f"variable {ind} of a block: got {a.dtype} of {a.shape}, expected {spec.dtype} of {shape}"
                + (f" or {(batches, *shape)}" if batches > 1 else "")
            )
        contiguous = contiguous and a.flags.c_contiguous
    return arrays if contiguous else [np.ascontiguousarray(a) for a in arrays]


def compiled(spec: KernelSpec, along: int = I, hoist: bool = True) -> Compiled:
    """The machine code of a kernel, compiled once per process however many threads ask, or found on disk.

    What is found has no text in its program: a kernel is neither lowered nor written for that.

    Parameters
    ----------
    spec : KernelSpec
    along : int
        What the lanes are: I or J.
    hoist : bool
        See `lower`.
    """
    name = f"{spec.digest} {along} {hoist}"
    if (found := _find(name)) is not None:
        return found
    with _compile:
        if (found := _find(name)) is not None:
            return found
        machine = chosen()
        version = sources.digest()
        store = disk.default() if version else disk.Store(None)
        key = "\n".join(("cpu", name, version or "", machine.key))
        entry = store.read(key)
        new = None if entry is None else _unpacked(entry)
        if new is None:
            kernel = lower(spec, UNROLL, hoist)
            program = render(kernel, spec.dtype, spec.acc, spec.chain, along, machine.scaling)
            new = build(program, kernel.cost, *machine[:2], keep=lambda entry: store.write(key, entry))
        with _lookup:
            _kernels[name] = new
            while len(_kernels) > CACHED:
                _kernels.popitem(last=False)
        return new


def _find(digest: str) -> Compiled | None:
    with _lookup:
        if digest in _kernels:
            _kernels.move_to_end(digest)
        return _kernels.get(digest)


def build(
    program: Program,
    cost: float = 1.0,
    cpu: str | None = None,
    features: str | None = None,
    keep: Callable[[bytes], None] | None = None,
) -> Compiled:
    """Machine code of a program, for this machine or for the CPU and features that are named.

    Parameters
    ----------
    program : Program
    cost : float
        Of one pair.
    cpu, features : str, optional
        In LLVM's words.
    keep : callable, optional
        Is given the bytes of which another process makes the same.
    """
    machine = chosen()
    machine = Machine(machine.cpu if cpu is None else cpu, machine.features if features is None else features)
    code = emit(program.text, machine, 2 if len(program.text) < LARGE else 0)
    if keep is not None and (entry := _packed(program, cost, code)) is not None:
        keep(entry)
    return _loaded(program, cost, code)


def _packed(program: Program, cost: float, code: bytes) -> bytes | None:
    """What is kept of a kernel: one line of JSON, then object code; None if JSON cannot say what a program is."""
    try:
        head = json.dumps({"cost": cost, "program": {**program._asdict(), "text": ""}}).encode()
        return head + b"\n" + code if _about(head) == (program._replace(text=""), cost) else None
    except (TypeError, ValueError):
        return None


def _unpacked(entry: bytes) -> Compiled | None:
    head, _, code = entry.partition(b"\n")
    try:
        return _loaded(*_about(head), code)
    except (BackendError, KeyError, TypeError, ValueError):  # then it is compiled
        return None


def _about(head: bytes) -> tuple[Program, float]:
    about = json.loads(head)
    fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in about["program"].items()}
    fields["plan"] = Schedule(*fields["plan"])
    return Program(**fields), about["cost"]


def _loaded(program: Program, cost: float, code: bytes) -> Compiled:
    address, engine = load(code, "fold")
    kinds = {"p": ctypes.c_void_p, "l": ctypes.c_int64}
    prototype = ctypes.CFUNCTYPE(None, *(kinds[c] for c in SIGNATURE))
    return Compiled(program, cost, prototype(address), engine)


def _calls(
    kernel: Compiled,
    arrays: Sequence[NDArray[Any]],
    state: State,
    calls: Sequence[Call],
    numbers: tuple[int, int],
    stop: Stop,
    careful: Callable[[], Compiled] | None = None,
    strides: bytes | None = None,
) -> None:
    """Folds one share; `careful` is what goes on where sums are not finite."""
    program, function, (i0, j0) = kernel.program, kernel.function, numbers
    variables, states, pitch = _pointers(arrays), _pointers(state), state[0].shape[1]
    strides = _none(arrays) if strides is None else strides
    scratch = _scratch(program.scratch, max([call.tiles for call in calls]) if program.hoisted else 0)
    for call in calls:
        if stop.is_set():
            return
        items, intervals = call.places
        count = len(call.items)
        function(variables, strides, items, 0, count, intervals, states, pitch, scratch.at, i0, j0, scratch.redo_at)
        if scratch.redo != scratch.blank:
            again = call.again(program.plan, np.frombuffer(scratch.redo, np.int64).reshape(-1, 2))
            scratch.redo[:] = scratch.blank
            if careful is not None and again is not None:
                _calls(careful(), arrays, state, [again], numbers, stop, strides=strides)
    if len(_spare) < SPARES and scratch.memory.size <= SPARE:
        _spare.append(scratch)


def _pointers(arrays: Sequence[NDArray[Any]]) -> bytes:
    return _packer(len(arrays))(*addresses(arrays))


@cache
def _packer(count: int) -> Callable[..., bytes]:
    return struct.Struct(f"{count}P").pack


class _Scratch:
    """Memory for one share at a time, from an address on that is a multiple of 64, and its table of tiles to redo."""

    __slots__ = ("at", "blank", "memory", "redo", "redo_at")

    def __init__(self, size: int, tiles: int) -> None:
        self.memory = np.empty(size + 64, np.uint8)
        self.blank = b"\xff" * (16 * tiles)  # -1: nothing
        self.redo = bytearray(self.blank)
        start, self.redo_at = addresses((self.memory, self.redo))
        self.at = start + -start % 64


_spare: list[_Scratch] = []  # whoever takes one has it alone; what an error or a fork takes along is not missed


def _scratch(size: int, tiles: int) -> _Scratch:
    """Scratch memory: that which was used last, and is in the caches, if it is large enough."""
    try:
        found = _spare.pop()
        if found.memory.size >= size + 64 and len(found.redo) >= 16 * tiles:
            return found
    except IndexError:
        pass
    return _Scratch(size, max(tiles, TILES))
