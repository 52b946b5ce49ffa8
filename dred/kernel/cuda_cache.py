"""CUDA sources and their machine code: compiled by NVRTC, kept on disk, loaded once per device."""

from __future__ import annotations

import threading
from collections import OrderedDict
from functools import lru_cache
from typing import Any

from dred.errors import BackendError
from dred.kernel import cuda_source, disk
from dred.kernel.cuda_device import PIP, capability, checked
from dred.kernel.cuda_source import Source
from dred.kernel.spec import KernelSpec

Program = dict[str, Any]  # kind of entry -> function of the device

MODULES = 256  # loaded modules that are kept
OPTIONS = ("--std=c++17", "-default-device", "--fmad=false", "--ptxas-options=-v")


@lru_cache(maxsize=MODULES)
def _rendered(digest: str, spec: KernelSpec) -> Source:
    return cuda_source.rendered(spec)


def rendered(spec: KernelSpec) -> Source:
    """The CUDA C++ that computes `spec`, and what a launcher must know of it."""
    return _rendered(spec.digest, spec)


def source(spec: KernelSpec) -> str:
    """The CUDA C++ that computes `spec`; needs neither a device nor CuPy."""
    return rendered(spec).text


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


def nvrtc_version() -> str:
    """That of NVRTC.

    Raises
    ------
    BackendError
        CuPy cannot load it.
    """
    return ".".join(map(str, _nvrtc().getVersion()))


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


def program(spec: KernelSpec, found: Source, device_id: int) -> Program:
    """The functions of a spec on the current device; compiled and loaded once."""
    from cupy.cuda import function

    nvrtc = _nvrtc()
    arch = capability(device_id)
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


def warm(spec: KernelSpec) -> None:
    """Compile and load the kernels of a spec for the current device."""
    program(spec, rendered(spec), checked(-1))
