"""Driver of the CUDA shim: many kernels compiled into one shared object by g++, and launched as on a device."""

import ctypes
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from dred.kernel.cuda import launch
from dred.kernel.cuda_schedule import THREADS
from dred.kernel.cuda_source import Entry, Source

HEADER = Path(__file__).with_name("cuda_shim.hpp")
COMPILER = os.environ.get("CXX") or "g++"
FLAGS = ["-std=c++17", "-O1", "-ffp-contract=off", "-fopenmp", "-shared", "-fPIC", "-w"]
_CTYPES = {"i64": ctypes.c_int64, "int": ctypes.c_int}


def available() -> bool:
    return shutil.which(COMPILER) is not None


def wrapper(entry: Entry) -> str:
    """A C function that runs an entry point over a grid; `__restrict__` would promise too much across its arguments."""
    params = ", ".join(f"{kind.replace(' __restrict__', '')} {name}" for kind, name in entry.params)
    call = f"{entry.name}({', '.join(name for _, name in entry.params)})"
    return (
        f'extern "C" void run_{entry.name}(unsigned gx, unsigned gy, {params}) '
        f"{{ dred_shim::launch(dim3(gx, gy), dim3({THREADS}), [=] {{ {call}; }}); }}\n"
    )


def compile_sources(sources: Sequence[Source], flags: Sequence[str] = ()) -> ctypes.CDLL:
    """One library of all sources (each rendered under a name of its own)."""
    return library("".join(s.text + "".join(map(wrapper, s.entries.values())) for s in sources), flags)


def library(text: str, flags: Sequence[str] = ()) -> ctypes.CDLL:
    """A text as machine code of this processor, compiled once in a run of tests."""
    command = [COMPILER, *FLAGS, *flags]
    shim = HEADER.read_text()
    key = "".join([*command, shim])
    header = _once(key, ".hpp", lambda path: path.write_text(shim))
    # as the compiler has read it, which else is most of the time that a kernel takes
    _once(key, ".hpp.gch", lambda path: _run([*command, "-x", "c++-header", str(header), "-o", str(path)]))
    key = "".join([*command, header.name, text])
    return ctypes.CDLL(str(_once(key, ".so", lambda path: _compiled(command, header, text, path))))


def _once(key: str, suffix: str, make: Callable[[Path], object]) -> Path:
    """What `make` leaves at a path of $DRED_SHIM_DIR: of the processes of a run the first one calls it, others wait."""
    if "DRED_SHIM_DIR" not in os.environ:
        os.environ["DRED_SHIM_DIR"] = tempfile.mkdtemp(prefix="dred-shim-")
    folder = Path(os.environ["DRED_SHIM_DIR"])
    folder.mkdir(exist_ok=True)
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()}{suffix}"
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            beside = folder / f"{os.getpid()}.{threading.get_ident()}{suffix}"
            make(beside)
            beside.replace(path)
    return path


def _compiled(command: Sequence[str], header: Path, text: str, path: Path) -> None:
    source = path.with_suffix(".cpp")
    source.write_text(text)
    _run([*command, "-include", str(header), str(source), "-o", str(path)])
    source.unlink()


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:4000]


class ShimDevice:
    """The device of `dred.kernel.cuda.launch` that is this CPU; new memory is NaN, or odd row numbers, so that nobody
    gets by unwritten."""

    multiprocessors = 1

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library, self.calls = library, []

    def empty(self, count, dtype):
        return np.full(count, -987654321 if dtype == "int64" else np.nan, dtype)

    def upload(self, table):
        return np.ascontiguousarray(table)

    def run(self, entry, grid, args):
        self.calls.append((entry.name, grid))
        values = [
            _CTYPES[kind](int(value))
            if kind in _CTYPES
            else ctypes.c_void_p(None if value is None else value.ctypes.data)
            for (kind, _), value in zip(entry.params, args, strict=True)
        ]
        getattr(self.library, f"run_{entry.name}")(ctypes.c_uint(grid[0]), ctypes.c_uint(grid[1]), *values)

    def pace(self):
        pass


def run(library, source: Source, arrays, M: int, N: int, *, state=None, batches: int = 1, **more):
    """The state, per field (size, batches * M), after folding N columns, by `launch`."""
    arrays = [None if a is None else np.ascontiguousarray(a, source.dtype) for a in arrays]
    if state is None:
        state = [np.full((f.size, batches * M), f.identity) for f in source.fields]
    state = tuple(np.array(a, f.dtype) for a, f in zip(state, source.fields, strict=True))
    launch(source, ShimDevice(library), state, arrays, M, N, batches=batches, **more)
    return state


@contextmanager
def fibers(reverse: bool):
    """Run the threads of each block from the last to the first, or from the first to the last."""
    before = os.environ.get("DRED_SHIM_REVERSE")
    os.environ["DRED_SHIM_REVERSE"] = "1" if reverse else "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ["DRED_SHIM_REVERSE"]
        else:
            os.environ["DRED_SHIM_REVERSE"] = before


def renamed(source: Source, name: str) -> Source:
    """A source under a name of its own, so that it can stand beside others: what is launched bears the same one."""
    text = re.sub(r"\bdred(?=_)", name, re.sub(r"\bDRED(?=_)", name.upper(), source.text))  # functions, macros
    entries = {kind: replace(e, name=e.name.replace("dred", name, 1)) for kind, e in source.entries.items()}
    return replace(source, text=text, entries=entries)
