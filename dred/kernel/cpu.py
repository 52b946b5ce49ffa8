"""The CPU backend: kernels compiled by LLVM when first needed, and run on all cores without the GIL."""

from __future__ import annotations

import ctypes
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from dred.errors import BackendError, InputError
from dred.formula.node import I, J
from dred.kernel import disk, sources
from dred.kernel.cpu_calls import Call, Share, alone, listed, whole
from dred.kernel.cpu_memory import BEHIND, HEAD, Sole, addresses, by_table, given_back, packer, taken
from dred.kernel.cpu_schedule import Schedule, split
from dred.kernel.exponents import Exponents
from dred.kernel.interpret import merge_all, merge_states
from dred.kernel.llvm import Program, render
from dred.kernel.lower import lower
from dred.kernel.machine import Machine, chosen, emit, load
from dred.kernel.output import empty
from dred.kernel.pattern import Pattern
from dred.kernel.spec import KernelSpec
from dred.kernel.threads import NEVER, Stop, declared, thread_count
from dred.kernel.threads import run as _run

UNROLL = 8  # longer vectors are loops over components: their records do not fit into registers
CACHED = 128  # compiled kernels that are kept
MANY = 1 << 25  # pairs, to look at all rows of the arrays for what exponents may be,
ROWS = 512  # and how many there are for a row
LARGE = 1_000_000  # characters of a program whose registers are allocated in haste: else that takes a minute
SIZES = 256  # of calls, of which it is kept what they decide

State = tuple[NDArray[Any], ...]
T = TypeVar("T")
Keep = Callable[[bytes], None]
"""Writes an entry to disk."""


@dataclass(frozen=True)
class Compiled:
    """Machine code of a kernel; it lives as long as `engine`.

    Attributes
    ----------
    call : callable
        The function of the program, of the address of its arguments: see `dred.kernel.cpu_memory.by_table`.
    """

    program: Program
    cost: float
    call: Callable[[int], None]
    engine: Any


_kernels: OrderedDict[str, Any] = OrderedDict()  # and their exponents
_compile = threading.Lock()


def _renew() -> None:
    """After a fork, the lock may be held by nobody."""
    global _compile
    _compile = threading.Lock()


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
    """The LLVM IR of a kernel, for every machine; with AVX-512, powers of 2 and large states are written otherwise."""
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
    own: bool = False,
) -> State:
    """The state after the terms of one block of columns; bits do not depend on the number of threads.

    Parameters
    ----------
    spec, state, arrays, M, N, pattern, i0, j0, own
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
    sizes = _sizes(spec, M, N, batches, None if pattern is None else pattern.pairs)
    arrays = _checked(spec, sizes, arrays, batches)
    kernel, careful = fitting(spec, sizes, arrays, state), partial(compiled, spec, sizes.along, hoist=False)
    return folded(spec, kernel, careful, sizes.parts, state, arrays, M, (i0, j0), threads, batches, pattern, own)


def fitting(spec: KernelSpec, sizes: _Sizes, arrays: Sequence[NDArray[Any]], state: State) -> Compiled:
    """The kernel of a fold of these sizes; where they ask for it, what is in the arrays decides, too."""
    moderate = sizes.looked and exponents(spec).moderate(spec.dtype, arrays, state)
    return compiled(spec, sizes.along, moderate=moderate)


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
    own: bool = False,
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
    state, arrays, M, numbers, threads, batches, pattern, own
        As of `fold`; `numbers` are i0 and j0.
    """
    new = state if own else tuple([field.copy() for field in state])
    plan = kernel.program.plan
    lanes = plan.lanes if plan.along == J else 1
    if len(parts) == lanes == 1:
        states = [new]
    else:
        one = replace(spec, batch=(), own=()) if spec.batch else spec
        states = [empty(one, batches * M * lanes) for _ in parts]
    strides = _strides(spec, arrays, M * lanes) if batches > 1 else None
    single = pattern is None and batches == 1
    if single and (share := alone(plan, kernel.cost, M, tuple(parts))) is not None:
        declared()  # even where it makes no difference, it must not be wrong
        for part, calls in share:
            _calls(kernel, arrays, states[part], calls, numbers, NEVER, careful, strides)
    else:
        most = thread_count() if threads is None else threads
        if single:
            shares = whole(plan, kernel.cost, M, parts, most)
        else:
            shares = listed(plan, kernel.cost, M, parts, batches, pattern, most)
        work = partial(_share, kernel, arrays, states, numbers, careful, strides)
        _run([partial(work, share) for share in shares])
    return new if states[0] is new else merge_states(spec, new, _merged(spec, states, lanes))


def finished(
    kernel: Compiled,
    careful: Callable[[], Compiled],
    shares: Sequence[Share],
    result: NDArray[Any],
    arrays: Sequence[NDArray[Any]],
) -> None:
    """The result (rows, size) of a kernel that finishes, by shares whose calls meet all columns."""
    work = partial(_share, kernel, arrays, [(result,)], (0, 0), careful, None, pitch=0)
    _run([partial(work, share) for share in shares])


def _strides(spec: KernelSpec, arrays: Sequence[NDArray[Any]], rows: int) -> NDArray[np.int64]:
    """Values from one batch to the next: of the state, then of each array, 0 where all batches share it."""
    strides = np.zeros(1 + len(arrays), np.int64)
    strides[0] = rows
    for v in spec.read:
        if arrays[v.ind].ndim == (2 if v.cat == 2 else 3):
            strides[1 + v.ind] = arrays[v.ind][0].size
    return strides


def _merged(spec: KernelSpec, states: Sequence[State], lanes: int) -> State:
    """The union of the states of parts of columns, and of lanes, which are next to each other."""
    fields = [np.array(parts) for parts in zip(*states, strict=True)]  # (parts, size, rows and lanes)
    split = [a.reshape(*a.shape[:2], -1, lanes).transpose(1, 0, 3, 2) for a in fields]
    return merge_all(spec, tuple([a.reshape(len(a), -1, a.shape[3]) for a in split]))


class _Sizes(NamedTuple):
    """What the sizes of a fold decide, whatever is in the arrays.

    Attributes
    ----------
    kind : dtype
        Of all arrays.
    shapes : tuple of (int, tuple of int)
        For each array that the kernel reads, its position and shape.
    along, parts
        See `dred.kernel.cpu_schedule.Split`.
    looked : bool
        Whether the arrays are looked at for what exponents may be.
    """

    kind: np.dtype[Any]
    shapes: tuple[tuple[int, tuple[int, ...]], ...]
    along: int
    parts: tuple[tuple[int, int], ...]
    looked: bool


@lru_cache(SIZES)
def _sizes(spec: KernelSpec, M: int, N: int, batches: int, visited: int | None) -> _Sizes:
    """The same for so many pairs that a pattern visits; None: all."""
    rows = {0: (), I: (M,), J: (N,)}
    shapes = tuple((v.ind, (*rows[spec.level(v.cat)], v.dim)) for v in spec.read)
    along, parts = split(spec, M, N, batches) if visited is None else (I, ((0, N),))
    pairs = batches * (M * N if visited is None else visited)
    return _Sizes(np.dtype(spec.dtype), shapes, along, parts, pairs > max(MANY, ROWS * batches * (M + N)))


def _checked(spec: KernelSpec, sizes: _Sizes, arrays: Sequence[NDArray[Any]], batches: int) -> Sequence[NDArray[Any]]:
    """The arrays as the kernel reads them: it would read whatever lies in memory."""
    kind, ready = sizes.kind, True
    for ind, shape in sizes.shapes:
        a = arrays[ind]
        if a.dtype is kind and a.shape == shape and a.flags.c_contiguous:
            continue
        if a.dtype != kind or (a.shape != shape and a.shape != (batches, *shape)):
            raise InputError(
                f"variable {ind} of a block: got {a.dtype} of {a.shape}, expected {spec.dtype} of {shape}"
                + (f" or {(batches, *shape)}" if batches > 1 else "")
            )
        ready = False
    return arrays if ready else [np.ascontiguousarray(a) for a in arrays]


def compiled(spec: KernelSpec, along: int = I, hoist: bool = True, moderate: bool = False) -> Compiled:
    """The machine code of a kernel, compiled once per process however many threads ask, or found on disk.

    What is found has no text in its program: a kernel is neither lowered nor written for that.

    Parameters
    ----------
    spec : KernelSpec
    along : int
        What the lanes are: I or J.
    hoist : bool
        See `lower`.
    moderate : bool
        Whether exponents are known to be moderate (see `dred.kernel.exponents`). No bit depends on it.
    """
    name = named(spec, along, hoist, moderate)
    if (found := _find(name)) is not None:
        return cast(Compiled, found)
    machine = chosen()

    def make(keep: Keep) -> Compiled:
        kernel = lower(spec, UNROLL, hoist)
        program = render(kernel, spec.dtype, spec.acc, spec.chain, along, machine.scaling, moderate)
        return build(program, kernel.cost, *machine[:2], keep=keep, sole=sole(spec))

    return _once(name, machine.key, _unpacked, make)


def sole(spec: KernelSpec) -> Sole | None:
    """What a kernel needs to know of the only value of a row's state; None: there are several, or it is no number."""
    (size, blank, kind), *others = spec.blank
    return None if others or size > 1 or kind.kind != "f" else Sole(kind.name, spec.dtype, blank)


def named(spec: KernelSpec, along: int = I, hoist: bool = True, moderate: bool = False) -> str:
    """What a kernel is remembered under: see `compiled`."""
    return f"{spec.digest} {along} {hoist} {moderate}"


def exponents(spec: KernelSpec) -> Exponents:
    """The exponents of a kernel, read off it once per process, or found on disk."""

    def make(keep: Keep) -> Exponents:
        found = Exponents.of(lower(spec, UNROLL, hoist=True))
        keep(found.written())
        return found

    return _once(f"{spec.digest} exponents", "", Exponents.read, make)


def _once(name: str, machine: str, read: Callable[[bytes], T | None], make: Callable[[Keep], T]) -> T:
    """What is remembered under a name; or else read from what is kept on disk; or else made, and kept."""
    if (found := _find(name)) is not None:
        return cast(T, found)
    with _compile:
        if (found := _find(name)) is not None:
            return cast(T, found)
        version = sources.digest()
        store = disk.default() if version else disk.Store(None)
        key = "\n".join(("cpu", name, version or "", machine))
        entry = store.read(key)
        new = None if entry is None else read(entry)
        if new is None:
            new = make(lambda entry: store.write(key, entry))
        _kernels[name] = new
        while len(_kernels) > CACHED:
            _kernels.popitem(last=False)
        return new


def _find(name: str) -> Any:
    try:  # without the lock, for small calls: another thread may forget it in between
        _kernels.move_to_end(name)
        return _kernels[name]
    except KeyError:
        return None


def build(
    program: Program,
    cost: float = 1.0,
    cpu: str | None = None,
    features: str | None = None,
    keep: Keep | None = None,
    sole: Sole | None = None,
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
    sole : Sole, optional
        The only value of a row's state, for calls that give no state: see `dred.kernel.cpu_memory.by_table`.
    """
    machine = chosen()
    machine = Machine(machine.cpu if cpu is None else cpu, machine.features if features is None else features)
    code = emit(program.text + by_table(sole), machine, 2 if len(program.text) < LARGE else 0)
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
    address, engine = load(code, "call")
    return Compiled(program, cost, ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address), engine)


def _share(
    kernel: Compiled,
    arrays: Sequence[NDArray[Any]],
    states: Sequence[State],
    numbers: tuple[int, int],
    careful: Callable[[], Compiled] | None,
    strides: NDArray[np.int64] | None,
    share: Share,
    stop: Stop,
    pitch: int | None = None,
) -> None:
    """What one thread does."""
    for part, calls in share:
        _calls(kernel, arrays, states[part], calls, numbers, stop, careful, strides, pitch)


def _calls(
    kernel: Compiled,
    arrays: Sequence[NDArray[Any]],
    state: State,
    calls: Sequence[Call],
    numbers: tuple[int, int],
    stop: Stop,
    careful: Callable[[], Compiled] | None = None,
    strides: NDArray[np.int64] | None = None,
    pitch: int | None = None,
) -> None:
    """Folds the calls of one part; `careful` is what goes on where sums are not finite.

    `pitch`: as of `dred.kernel.llvm.Program`, by default that of states.
    """
    program, (i0, j0) = kernel.program, numbers
    pitch = state[0].shape[1] if pitch is None else pitch
    assert pitch or not calls or program.finishing, "states of no pitch"
    if strides is None:
        _, strides_at = _none(1 + len(arrays))
    else:
        (strides_at,) = addresses((strides,))
    pointers = addresses((*arrays, *state))
    words = HEAD + len(pointers)
    scratch, pack = taken(program.scratch, words), packer(words)
    scratch.packed = None
    variables = scratch.words_at + BEHIND
    states = variables + 8 * len(arrays)
    for call in calls:
        if stop.is_set():
            return
        if call.tiles > scratch.tiles:
            scratch.hold(call.tiles)
        items, count, intervals = call.tables
        pack(
            scratch.words, 0,
            variables, strides_at, items, 0, count, intervals, states, pitch, scratch.at, i0, j0, scratch.redo_at,
            0, 0, 0, 0, *pointers,
        )  # fmt: skip
        kernel.call(scratch.words_at)
        if scratch.redo != scratch.blank:
            redo = scratch.noted()
            if careful is not None and (again := call.again(program.plan, redo)) is not None:
                _calls(careful(), arrays, state, [again], numbers, stop, None, strides, pitch)
    given_back(scratch)


@cache
def _none(count: int) -> tuple[NDArray[np.int64], int]:
    """Strides of a single batch, and their address."""
    zeros = np.zeros(count, np.int64)
    return zeros, addresses((zeros,))[0]
