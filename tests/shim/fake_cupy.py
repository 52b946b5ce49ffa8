"""A CuPy without a GPU: what dred uses of it, over host memory; kernels are run by the shim, from the text for NVRTC.

It is as unkind as a device may be:

* What is put on a stream waits there until something forces it: a synchronisation, an event that another stream
  waits for, or an operation of CuPy itself on that stream. Kinds of work named in `Fake.eager` are forced at once
  instead, as by a device that is quick with copies but slow with kernels, or the other way round.
* New memory holds NaN (whole numbers: -1), and so does memory that was freed, as soon as the stream on which it was
  allocated gets there. Writing beyond the end of an allocation is found when it is freed.
* A copy from pinned memory reads it when the device gets there; one from pageable memory when it is asked for.
* Arrays, streams and functions of another than the current device are refused; so are arguments of a kernel whose type
  is not what it declares, and NumPy arrays in CuPy's operations.
"""

import ctypes
import importlib.machinery
import re
import sys
import threading
import types
import weakref
from collections import deque
from contextlib import contextmanager

import numpy as np

from dred.kernel import cuda_cache, cuda_device, cuda_streams
from tests.shim import shim

POISON, ROUND, CANARY = 0xFF, 512, 64


class OutOfMemoryError(MemoryError):
    """As `cupy.cuda.memory.OutOfMemoryError`."""

    def __init__(self, size, total, limit=0):
        text = f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes"
        super().__init__(text + (f", limit set to: {limit:,} bytes)." if limit else ")."))


class CUDARuntimeError(RuntimeError):
    pass


class CUDADriverError(RuntimeError):
    pass


class NVRTCError(RuntimeError):
    pass


class Fake:
    """The machine: devices, their memory and streams, and an account of what was done.

    Attributes
    ----------
    eager : set of str
        Kinds of work that are done at once: "copy", "kernel".
    launches : list of (int, int, str, tuple, tuple)
        Device, stream, function, grid, and the addresses among the arguments.
    copies : list of (str, int, bool)
        Direction ("in", "out"), bytes, and whether the host's memory was pinned.
    compiled : list of (str, tuple)
        Texts and options that NVRTC was given.
    asked : list of str
        What the host has asked for, in order: names of functions, "in", "out", and "wait".
    done : list of str
        Kinds of work in the order in which it was done.
    waits : int
        Times that the host has waited for a device. (An operation of CuPy itself does not count, although here it
        forces what stands before it.)
    shortage : set of int
        Numbers of allocations, counted in `allocated`, for which there is no memory.
    """

    def __init__(self, devices=1, memory=1 << 30, capabilities=("90",), eager=()):
        self.devices, self.memory, self.eager = devices, memory, set(eager)
        self.capabilities = [capabilities[n % len(capabilities)] for n in range(devices)]
        self.lock, self.local = threading.RLock(), threading.local()
        self.launches, self.copies, self.compiled, self.loaded, self.wrong = [], [], [], 0, []
        self.done, self.asked, self.waits, self.allocated, self.shortage = [], [], 0, 0, set()
        self.blocks, self.pinned = weakref.WeakValueDictionary(), weakref.WeakValueDictionary()
        self.pools = [Pool(self) for _ in range(devices)]
        self.streams = [[] for _ in range(devices)]
        self.null = [Stream(null=True, _fake=self, _device=n) for n in range(devices)]
        self.default_pool = DefaultPool(self)
        self.allocator = self.default_pool.malloc

    @property
    def device(self):
        return getattr(self.local, "device", 0)

    @property
    def stream(self):
        return self.local.__dict__.setdefault("streams", {}).get(self.device, self.null[self.device])

    @property
    def peak(self):
        """Most bytes of device 0 that were in use at once."""
        return self.pools[0].peak

    def compute(self, work, arrays):
        """The result of an operation of CuPy on the current stream, as an array of the device."""
        for a in arrays:
            if a._block.device != self.device:
                raise ValueError(f"Array device must be same as the current device: {a._block.device}, {self.device}")
        done = []
        with self.lock:
            self.stream.enqueue("compute", lambda: done.append(work()))
            self.stream.drain()
            return self.wrapped(done[0], arrays)

    def wrapped(self, value, arrays=()):
        if isinstance(value, tuple | list):
            return type(value)(self.wrapped(v, arrays) for v in value)
        if not isinstance(value, np.ndarray | np.generic):
            return value
        for a in arrays:
            if isinstance(value, np.ndarray) and np.may_share_memory(value, a._block.raw):
                return ndarray._of(value, a._block)
        value = np.asarray(value)
        order = "F" if value.flags.f_contiguous and not value.flags.c_contiguous else "C"
        new = empty(value.shape, value.dtype, order)
        new._view[...] = value
        return new


fake: Fake = None  # the one that is installed


# -- streams and events ------------------------------------------------------------------------------------------------


class Stream:
    """A queue of work. (The stream `null` waits for all that are not `non_blocking`, and they for it.)"""

    def __init__(self, null=False, non_blocking=False, _fake=None, _device=None):
        self.fake = _fake or fake
        self.device_id = self.fake.device if _device is None else _device
        self.is_null, self.non_blocking, self.queue = null, non_blocking, deque()
        self.before = []
        self.fake.streams[self.device_id].append(self)

    ptr = property(lambda self: 0 if self.is_null else id(self))

    def enqueue(self, kind, work):
        with self.fake.lock:
            if not self.non_blocking:
                for other in self.fake.streams[self.device_id]:
                    if other is not self and not other.non_blocking and (self.is_null or other.is_null):
                        other.drain()
            self.queue.append((kind, work))
            if kind in self.fake.eager:
                self.drain()

    def drain(self):
        with self.fake.lock:
            while self.queue:
                self.step()

    def step(self):
        kind, work = self.queue.popleft()
        work()
        self.fake.done.append(kind)

    def synchronize(self):
        self.fake.waits += 1
        self.fake.asked.append("wait")
        self.drain()

    @property
    def done(self):
        return not self.queue

    def record(self, event=None):
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event):
        last = event.last
        if last is not None:
            self.enqueue("wait", last.force)

    def __enter__(self):
        if self.device_id != self.fake.device:
            raise CUDARuntimeError("cudaErrorInvalidResourceHandle: the stream is of another device")
        self.before.append((threading.get_ident(), self.fake.stream))
        self.fake.local.streams[self.device_id] = self
        return self

    def __exit__(self, *_):
        mine = next(b for b in reversed(self.before) if b[0] == threading.get_ident())
        self.before.remove(mine)
        self.fake.local.streams[self.device_id] = mine[1]


class Record:
    """One recording of an event."""

    def __init__(self, stream):
        self.stream, self.done = stream, False

    def reach(self):
        self.done = True

    def force(self):
        with self.stream.fake.lock:
            while not self.done:
                self.stream.step()


class Event:
    def __init__(self, block=False, disable_timing=False):
        self.last, self.device = None, fake.device

    def record(self, stream=None):
        stream = fake.null[fake.device] if stream is None else stream
        if stream.device_id != self.device:
            raise CUDARuntimeError("cudaErrorInvalidResourceHandle: event and stream are of different devices")
        self.last = Record(stream)
        stream.enqueue("event", self.last.reach)

    def synchronize(self):
        fake.waits += 1
        fake.asked.append("wait")
        if self.last is not None:
            self.last.force()

    @property
    def done(self):
        return self.last is None or self.last.done


class Device:
    def __init__(self, device=None):
        self.id = fake.device if device is None else int(device)
        self.before = []

    compute_capability = property(lambda self: fake.capabilities[self.id])
    attributes = property(lambda self: {"MultiProcessorCount": 1})
    mem_info = property(lambda self: (fake.memory - fake.pools[self.id].total, fake.memory))

    def synchronize(self):
        for stream in fake.streams[self.id]:
            stream.synchronize()

    def __enter__(self):
        if not 0 <= self.id < fake.devices:
            raise CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        self.before.append(fake.device)
        fake.local.device = self.id
        return self

    def __exit__(self, *_):
        fake.local.device = self.before.pop()

    def __eq__(self, other):
        return self.id == other.id

    def __hash__(self):
        return hash(self.id)

    def __int__(self):
        return self.id

    def __repr__(self):
        return f"<CUDA Device {self.id}>"


# -- memory ------------------------------------------------------------------------------------------------------------


class Pool:
    """Memory of one device: what is used, and what the pool holds of the device."""

    def __init__(self, of):
        self.fake, self.used, self.total, self.peak, self.limit = of, 0, 0, 0, 0

    def take(self, size):
        with self.fake.lock:
            need, number = self.used + size, self.fake.allocated
            self.fake.allocated += 1
            if number in self.fake.shortage or need > self.fake.memory or (self.limit and need > self.limit):
                raise OutOfMemoryError(size, self.total, self.limit)
            self.used = need
            self.total, self.peak = max(self.total, need), max(self.peak, need)

    def give(self, size):
        with self.fake.lock:
            self.used -= size


class DefaultPool:
    """`cupy.get_default_memory_pool()`: that of the current device."""

    def __init__(self, of):
        self.fake = of

    mine = property(lambda self: self.fake.pools[self.fake.device])

    def malloc(self, size):
        return MemoryPointer(Block(self.fake, size), 0)

    def used_bytes(self):
        return self.mine.used

    def total_bytes(self):
        return self.mine.total

    def free_bytes(self):
        return self.mine.total - self.mine.used

    def free_all_blocks(self):
        self.mine.total = self.mine.used

    def get_limit(self):
        return self.mine.limit

    def set_limit(self, size=None, fraction=None):
        self.mine.limit = int(fraction * self.fake.memory) if size is None else size


class Block:
    """An allocation on a device."""

    def __init__(self, of, size):
        taken = -(-size // ROUND) * ROUND
        pool, stream = of.pools[of.device], of.stream
        pool.take(taken)
        self.device, self.size = of.device, size
        self.raw = np.full(taken + CANARY, POISON, np.uint8)[: max(size, 1) + CANARY]
        self.ptr = self.raw.ctypes.data
        of.blocks[self.ptr] = self
        weakref.finalize(self, self.free, of, pool, stream, self.raw, taken)

    @staticmethod
    def free(of, pool, stream, raw, taken):
        def poison():
            if np.any(raw[-CANARY:] != POISON):
                of.wrong.append(f"written beyond an allocation of {raw.size - CANARY} bytes")
            raw[:] = POISON

        pool.give(taken)
        stream.enqueue("free", poison)


class MemoryPointer:
    def __init__(self, mem, offset):
        self.mem, self.offset = mem, offset
        self.ptr, self.device_id = mem.ptr + offset, mem.device

    def __add__(self, offset):
        return MemoryPointer(self.mem, self.offset + offset)

    def _checked(self, stream):
        stream = fake.stream if stream is None else stream
        if {self.device_id, stream.device_id} != {fake.device}:
            raise CUDARuntimeError("cudaErrorInvalidValue: memory or stream of another device")
        return stream

    def copy_from_host_async(self, mem, size, stream=None):
        stream, there = self._checked(stream), _bytes_at(self.ptr, size)
        here, pinned = _bytes_at(getattr(mem, "value", mem), size), _pinned(getattr(mem, "value", mem))
        fake.copies.append(("in", size, pinned is not None))
        fake.asked.append("in")
        if pinned is None:
            here = here.copy()
        held = (self.mem.raw, pinned)  # real memory must outlive the pointers

        def copy(held=held):
            there[:] = here

        stream.enqueue("copy", copy)

    def copy_to_host_async(self, mem, size, stream=None):
        stream, there = self._checked(stream), _bytes_at(self.ptr, size)
        here, pinned = _bytes_at(getattr(mem, "value", mem), size), _pinned(getattr(mem, "value", mem))
        fake.copies.append(("out", size, pinned is not None))
        fake.asked.append("out")
        held = (self.mem.raw, pinned)

        def copy(held=held):
            here[:] = there

        stream.enqueue("copy", copy)
        if pinned is None:
            stream.drain()


def _bytes_at(ptr, size):
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(ptr))


def _pinned(ptr):
    """The pinned memory in which an address lies."""
    return next((raw for first, raw in list(fake.pinned.items()) if first <= ptr < first + raw.size), None)


class Raw(np.ndarray):
    """Memory that can be referred to weakly."""


class PinnedMemoryPointer(np.ndarray):
    """A buffer of pinned memory, poisoned when nobody uses it any more."""

    @classmethod
    def _new(cls, size):
        raw = np.full(size, POISON, np.uint8).view(Raw)
        self = raw.view(cls)
        fake.pinned[raw.ctypes.data] = raw
        weakref.finalize(self, raw.fill, POISON)
        return self

    ptr = property(lambda self: self.ctypes.data)


# -- arrays ------------------------------------------------------------------------------------------------------------


class ndarray(np.lib.mixins.NDArrayOperatorsMixin):
    __module__ = "cupy"

    def __init__(self, shape, dtype=float, memptr=None, order="C"):
        dtype = np.dtype(dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        memptr = fake.allocator(size) if memptr is None else memptr
        self._block = memptr.mem
        raw = memptr.mem.raw[memptr.offset : memptr.offset + size]
        self._view = raw.view(dtype).reshape(shape, order=order)

    @classmethod
    def _of(cls, view, block):
        self = cls.__new__(cls)
        self._view, self._block = view, block
        return self

    shape, dtype, ndim, size, nbytes, itemsize, strides, flags = (
        property(lambda self, name=name: getattr(self._view, name))
        for name in ("shape", "dtype", "ndim", "size", "nbytes", "itemsize", "strides", "flags")
    )
    device = property(lambda self: Device(self._block.device))
    data = property(lambda self: MemoryPointer(self._block, self._view.ctypes.data - self._block.ptr))
    T = property(lambda self: ndarray._of(self._view.T, self._block))

    @property
    def __cuda_array_interface__(self):
        return {
            "shape": self.shape, "typestr": self.dtype.str, "version": 3, "data": (self._view.ctypes.data, False),
            "strides": None if self.flags.c_contiguous else self.strides, "stream": fake.stream.ptr or 1,
        }  # fmt: skip

    def __dlpack__(self, stream=None, **_):
        return self

    def __dlpack_device__(self):
        return (2, self._block.device)

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`.")

    def __array_ufunc__(self, ufunc, method, *args, **kwargs):
        return _called(getattr(ufunc, method), args, kwargs)

    def __array_function__(self, func, types, args, kwargs):
        return _called(func, args, kwargs)

    def __len__(self):
        return len(self._view)

    def __getitem__(self, key):
        keys = key if isinstance(key, tuple) else (key,)
        if all(isinstance(k, slice | int | type(...) | None) for k in keys):  # a view: nothing is done on the device
            whole = keys if any(k is ... for k in keys) else (*keys, ...)  # never a scalar
            return ndarray._of(self._view[whole], self._block)
        return _called(lambda a, k: a[k], (self, key), {})

    def reshape(self, *shape):
        if self.flags.c_contiguous:  # a view
            return ndarray._of(self._view.reshape(*shape), self._block)
        return _called(lambda a, s: a.reshape(*s), (self, shape), {})

    def __setitem__(self, key, value):
        _called(lambda a, k, v: a.__setitem__(k, v), (self, key, value), {})

    def __getattr__(self, name):
        if name not in ("astype", "copy", "sum", "all", "any", "ravel", "fill", "transpose", "max", "min", "view"):
            raise AttributeError(f"'cupy.ndarray' object has no attribute {name!r}")
        return lambda *args, **kwargs: _called(lambda a, *x, **y: getattr(a, name)(*x, **y), (self, *args), kwargs)

    def tobytes(self):
        return self.get().tobytes()

    def __bool__(self):
        return bool(self.get())

    def __float__(self):
        return float(self.get())

    def get(self, stream=None, order="C", out=None, blocking=True):
        out = np.empty(self.shape, self.dtype) if out is None else out
        stream = fake.stream if stream is None else stream
        view, pinned = self._view, _pinned(out.ctypes.data)
        fake.copies.append(("out", self.nbytes, pinned is not None))
        stream.enqueue("copy", lambda held=(self._block.raw, pinned): np.copyto(out, view))
        if blocking or pinned is None:
            stream.synchronize()
        return out


def _called(func, args, kwargs):
    """The result of a function of NumPy on the memory of arrays, on the current stream."""
    arrays = []

    def unwrapped(value):
        if isinstance(value, ndarray):
            arrays.append(value)
            return value._view
        if isinstance(value, np.ndarray) and value.ndim:
            raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        if isinstance(value, tuple | list):
            return type(value)(map(unwrapped, value))
        return value

    args, kwargs = unwrapped(tuple(args)), {k: unwrapped(v) for k, v in kwargs.items()}
    try:
        return fake.compute(lambda: func(*args, **kwargs), arrays)
    finally:
        arrays.clear()  # `unwrapped` refers to itself and to them: their memory would wait for the garbage collector


def empty(shape, dtype=float, order="C"):
    return ndarray(shape if isinstance(shape, tuple) else (shape,), dtype, order=order)


def asarray(a, dtype=None):
    if isinstance(a, ndarray):
        return a if dtype is None or a.dtype == dtype else a.astype(dtype)
    if not isinstance(a, np.ndarray) and hasattr(a, "__cuda_array_interface__"):
        return _by_interface(a.__cuda_array_interface__)
    a = np.asarray(a, dtype)
    new = empty(a.shape, a.dtype)
    here = a.copy()  # pageable, or by a pinned copy of CuPy's own: the caller's memory is free when this returns
    fake.copies.append(("in", a.nbytes, False))
    fake.stream.enqueue("copy", lambda held=new._block.raw, view=new._view: np.copyto(view, here))
    return new


def _by_interface(given):
    ptr = given["data"][0]
    block = next(b for first, b in list(fake.blocks.items()) if first <= ptr < first + max(b.size, 1))
    raw = block.raw[ptr - block.ptr : -CANARY]
    view = np.ndarray(given["shape"], np.dtype(given["typestr"]), raw, 0, given.get("strides"))
    return ndarray._of(view, block)


def from_dlpack(a):
    return ndarray._of((given := a.__dlpack__(stream=fake.stream.ptr))._view, given._block)


def asnumpy(a, stream=None):
    return a.get(stream) if isinstance(a, ndarray) else np.asarray(a)


# -- NVRTC and modules -------------------------------------------------------------------------------------------------

FUNCTION = re.compile(r'extern "C" __global__ void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\(([^)]*)\)')
SCALARS = {"i64": (np.int64, ctypes.c_int64), "int": (np.int32, ctypes.c_int32),
           "float": (np.float32, ctypes.c_float), "double": (np.float64, ctypes.c_double)}  # fmt: skip
_libraries = {}


def functions_of(text):
    """Name -> types of the parameters."""
    return {
        name: [part.replace("__restrict__", "").rsplit(None, 1)[0].strip() for part in params.split(",")]
        for name, params in FUNCTION.findall(text)
    }


def library(text):
    """The text as machine code of this processor."""
    if text not in _libraries:
        wrappers = []
        for name, kinds in functions_of(text).items():
            params = "".join(f", {kind} a{n}" for n, kind in enumerate(kinds))
            call = f"{name}({', '.join(f'a{n}' for n in range(len(kinds)))})"
            wrappers.append(
                f'extern "C" void run_{name}(unsigned gx, unsigned gy, unsigned bx{params}) '
                f"{{ dred_shim::launch(dim3(gx, gy), dim3(bx), [=] {{ {call}; }}); }}\n"
            )
        _libraries[text] = shim.library(text + "".join(wrappers))
    return _libraries[text]


class Module:
    """`cupy.cuda.function.Module`: machine code of one architecture, on the current device."""

    def load(self, cubin):
        assert cubin.endswith(b"\0"), "the last byte that CuPy drops is missing"
        arch, _, self.text = cubin[:-1].decode().partition("\n")
        if arch != f"sm_{fake.capabilities[fake.device]}":
            raise CUDADriverError(f"CUDA_ERROR_NO_BINARY_FOR_GPU: {arch}")
        self.device = fake.device
        fake.loaded += 1

    def get_function(self, name):
        return Function(self, name, functions_of(self.text)[name])


class Function:
    def __init__(self, module, name, kinds):
        self.module, self.name, self.kinds = module, name, kinds

    def __call__(self, grid, block, args, shared_mem=0, stream=None):
        stream = fake.stream if stream is None else stream
        if {self.module.device, stream.device_id} != {fake.device}:
            raise CUDADriverError("CUDA_ERROR_INVALID_HANDLE: function or stream of another device")
        assert len(args) == len(self.kinds), f"{self.name} takes {len(self.kinds)} arguments, got {len(args)}"
        values, held, pointers = [], [], []
        for kind, a in zip(self.kinds, args, strict=True):
            if isinstance(a, ndarray):
                assert kind.endswith("*"), f"{self.name}: an array for {kind}"
                types_of = {"float*": "f4", "double*": "f8", "i64*": "i8"}
                want = types_of[kind.replace("const ", "").replace(" ", "")]
                assert a.dtype == want, f"{self.name}: {a.dtype} for {kind}"
                assert a._block.device == fake.device, f"{self.name}: memory of device {a._block.device}"
                assert a.flags.c_contiguous, f"{self.name}: an array with strides"
                held.append(a._block.raw)
                pointers.append(a.data.ptr)
                values.append(ctypes.c_void_p(a.data.ptr))
            elif a is None:
                assert kind.endswith("*"), f"{self.name}: None for {kind}"
                values.append(ctypes.c_void_p())
            else:
                want, of = SCALARS[kind]
                assert type(a) is want, f"{self.name}: {type(a).__name__} for {kind}"
                values.append(of(a))
        run = getattr(library(self.module.text), f"run_{self.name}")
        sizes = [ctypes.c_uint(n) for n in (*grid, *block)]
        fake.asked.append(self.name)
        fake.launches.append((fake.device, stream.ptr, self.name, tuple(grid), tuple(pointers)))
        stream.enqueue("kernel", lambda held=held: run(*sizes, *values))


class Nvrtc(types.ModuleType):
    """`cupy.cuda.nvrtc`; its version is none that there is, for the sake of what is kept on disk."""

    NVRTCError = NVRTCError

    @staticmethod
    def getVersion():
        return (99, 0)

    @staticmethod
    def createProgram(text, name, headers, names):
        return [text, b""]

    @staticmethod
    def compileProgram(program, options):
        fake.compiled.append((program[0], tuple(options)))
        (arch,) = (o.partition("=")[2] for o in options if o.startswith("--gpu-architecture="))
        program[1] = f"{arch}\n{program[0]}".encode()

    @staticmethod
    def getCUBIN(program):
        return program[1]

    @staticmethod
    def getProgramLog(program):
        return ""

    @staticmethod
    def destroyProgram(program):
        program.clear()


# -- the modules -------------------------------------------------------------------------------------------------------


class Package(types.ModuleType):
    """`cupy`: names that are not written here are NumPy's functions, on arrays of the device."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        func = getattr(np, name)
        return func if isinstance(func, type) else lambda *args, **kwargs: _called(func, args, kwargs)


def _modules(of):
    cupy, cuda = Package("cupy"), types.ModuleType("cupy.cuda")
    parts = {name: types.ModuleType(f"cupy.cuda.{name}") for name in ("runtime", "memory", "function")}
    parts["nvrtc"] = Nvrtc("cupy.cuda.nvrtc")
    parts["runtime"].__dict__.update(
        getDevice=lambda: of.device, getDeviceCount=lambda: of.devices, CUDARuntimeError=CUDARuntimeError,
        memGetInfo=lambda: Device(of.device).mem_info, setDevice=lambda n: setattr(of.local, "device", n),
        deviceSynchronize=lambda: Device().synchronize(),
        getDeviceProperties=lambda n: {"name": f"Fake {of.capabilities[n]}".encode(), "totalGlobalMem": of.memory},
        driverGetVersion=lambda: 13000,
    )  # fmt: skip
    parts["memory"].OutOfMemoryError = OutOfMemoryError
    parts["function"].__dict__.update(Module=Module, Function=Function)
    Stream.null = of.null[0] if of.null else None
    cuda.__dict__.update(
        parts, Device=Device, Stream=Stream, Event=Event, MemoryPointer=MemoryPointer,
        get_current_stream=lambda: of.stream, alloc_pinned_memory=PinnedMemoryPointer._new,
        get_allocator=lambda: of.allocator, set_allocator=lambda a=None: setattr(of, "allocator", a),
    )  # fmt: skip
    cupy.__dict__.update(
        cuda=cuda, ndarray=ndarray, empty=empty, asarray=asarray, array=asarray, asnumpy=asnumpy,
        from_dlpack=from_dlpack, get_default_memory_pool=lambda: of.default_pool, __version__="99.0", __path__=[],
    )  # fmt: skip
    cupy.__spec__ = importlib.machinery.ModuleSpec("cupy", None)
    return {"cupy": cupy, "cupy.cuda": cuda, **{f"cupy.cuda.{name}": part for name, part in parts.items()}}


def install(**options):
    """Put a fake in CuPy's place, for good: in a worker process. Returns it and what undoes that."""
    global fake
    old = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "cupy"}
    kept = cuda_device._driver, cuda_cache._programs.copy(), cuda_streams._threads, fake
    fake = Fake(**options)
    sys.modules.update(_modules(fake))
    cuda_device._driver = lambda: True
    cuda_cache._programs.clear()
    cuda_streams._threads = threading.local()

    def undo():
        global fake
        for name in [name for name in sys.modules if name.partition(".")[0] == "cupy"]:
            del sys.modules[name]
        sys.modules.update(old)
        cuda_device._driver, programs, cuda_streams._threads, fake = kept
        cuda_cache._programs.clear()
        cuda_cache._programs.update(programs)

    return fake, undo


@contextmanager
def installed(**options):
    """A fake in CuPy's place; what is left to do at the end is done, and what it found wrong fails the test."""
    found, undo = install(**options)
    try:
        yield found
        for n in range(found.devices):
            for stream in found.streams[n]:
                stream.drain()
        assert not found.wrong, found.wrong
    finally:
        undo()
