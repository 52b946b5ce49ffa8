"""The processor that kernels are compiled for, and LLVM as their compiler and loader: text in, object code out."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from dred.errors import BackendError, OptionError


class Machine(NamedTuple):
    """A processor in LLVM's words."""

    cpu: str
    features: str = ""
    triple: str = ""  # "": this machine's own

    @property
    def scaling(self) -> bool:
        """Whether it has AVX-512, which rounds, and multiplies by powers of 2, in one instruction."""
        return self.cpu == "x86-64-v4" or "+avx512dq" in self.features.split(",")

    @property
    def key(self) -> str:
        """All that object code depends on besides its text."""
        llvm = _llvm()
        return f"{self.triple or llvm.get_default_triple()} {self.cpu} {self.features} llvm {llvm_version()}"


class Named(NamedTuple):
    """An instruction set that DRED_CPU may name: the processor, and what the host must have to run its code."""

    machine: Machine
    needs: tuple[str, ...]


_V3 = ("avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe")
NAMED: Mapping[str, Mapping[str, Named]] = {
    "x86_64": {
        "sse2": Named(Machine("x86-64"), ("sse2",)),
        "avx2": Named(Machine("x86-64-v3"), _V3),
        "avx512": Named(Machine("x86-64-v4"), (*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")),
    },
    "aarch64": {"neon": Named(Machine("generic", "+neon"), ())},
}
_ALIASES = {"arm64": "aarch64"}


@cache
def _llvm() -> Any:
    """LLVM, ready to compile for this process's architecture."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm


def chosen() -> Machine:
    """The processor that DRED_CPU names, else this machine's own, with all it can.

    Raises
    ------
    OptionError
        This machine cannot run what DRED_CPU names, or nothing has that name.
    """
    name = os.environ.get("DRED_CPU", "").strip().lower()
    return host() if name in ("", "host") else _named(name)


@cache
def host() -> Machine:
    """This machine's own processor, with all it can."""
    features = sorted(_features().items())
    return Machine(_llvm().get_host_cpu_name(), ",".join(f"{'+' if have else '-'}{name}" for name, have in features))


def _features() -> dict[str, bool]:
    """What this machine can by LLVM's names; nothing where LLVM cannot tell, and then the name of the CPU says all."""
    try:
        return dict(_llvm().get_host_cpu_features())
    except RuntimeError:
        return {}


def _named(name: str) -> Machine:
    can = runnable()
    if name not in can:
        raise OptionError(
            f"DRED_CPU is {name!r}: this machine ({host().cpu}) can run {', '.join(['host', *can])}; set it to one of"
            " these, or unset it"
        )
    return can[name]


def simd() -> tuple[str, ...]:
    """The instruction sets of vectors that this machine has, by LLVM's names."""
    names = ("sse2", "avx", "avx2", "fma", "avx512f", "avx512dq", "neon", "sve")
    have = _features()
    return tuple(name for name in names if have.get(name))


def processor() -> str:
    """This machine's processor as its maker calls it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            return next(line.split(":", 1)[1].strip() for line in info if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def llvm_version() -> str:
    """That of LLVM, which is not that of llvmlite."""
    return ".".join(map(str, _llvm().llvm_version_info))


def runnable() -> dict[str, Machine]:
    """The instruction sets by name that this machine can run."""
    architecture = _llvm().get_default_triple().split("-")[0]
    have = _features()
    named = NAMED.get(_ALIASES.get(architecture, architecture), {})
    return {name: row.machine for name, row in named.items() if all(have.get(f, False) for f in row.needs)}


def emit(text: str, machine: Machine, opt: int, assembly: bool = False) -> Any:
    """Object code (bytes) of a text, or its assembly.

    Parameters
    ----------
    text : str
        LLVM IR.
    machine : Machine
        Of an architecture that LLVM has been initialised for: this process's is.
    opt : int
        0 to 3.
    assembly : bool

    Raises
    ------
    BackendError
        LLVM cannot compile it.
    """
    llvm = _llvm()
    try:
        target = llvm.Target.from_triple(machine.triple or llvm.get_default_triple())
        compiler = target.create_target_machine(cpu=machine.cpu, features=machine.features, opt=opt)
        module = llvm.parse_assembly(text)
        module.verify()
        module.triple, module.data_layout = compiler.triple, str(compiler.target_data)
        return compiler.emit_assembly(module) if assembly else compiler.emit_object(module)
    except RuntimeError as error:
        raise BackendError(f"LLVM cannot compile this kernel: {error}") from error


def load(code: bytes, name: str) -> tuple[int, Any]:
    """Address of a function in object code, and what must live as long as it is called.

    Raises
    ------
    BackendError
        The bytes are no object code, or have no such function.
    """
    llvm = _llvm()
    try:
        file = llvm.ObjectFileRef.from_data(code)
        if not file._ptr:  # LLVM says no more, and would end the process for the next call
            raise BackendError(f"LLVM cannot load this kernel: its {len(code)} bytes are no object code")
        compiler = llvm.Target.from_default_triple().create_target_machine()
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), compiler)
        engine.add_object_file(file)
        engine.finalize_object()
        address: int = engine.get_function_address(name)
    except RuntimeError as error:
        raise BackendError(f"LLVM cannot load this kernel: {error}") from error
    if not address:
        raise BackendError(f"LLVM cannot load this kernel: its object code has no function {name!r}")
    return address, engine
