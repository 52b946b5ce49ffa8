"""Instructions per pair of the loops of a kernel, in its PTX and, where there is a disassembler, in its SASS."""

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from dred.formula.language import formula
from dred.kernel import cuda, cuda_cache
from dred.kernel.cuda_source import Source
from dred.kernel.spec import KernelSpec

NAMED = "DRED_NVDISASM"  # in the environment: nvdisasm, or the folder that holds it


class Instruction(NamedTuple):
    opcode: str  # "fma.rn.f32", "FFMA.FTZ"
    target: str  # label that it jumps to; "" where it does not


class Code(NamedTuple):
    """Instructions of a function, and for each label the number of the one behind it."""

    instructions: list[Instruction]
    labels: dict[str, int]

    def loops(self) -> list[tuple[int, int]]:
        """First and last instruction of each loop: what is jumped back to, and the jump."""
        jumps = enumerate(self.instructions)
        return sorted({(self.labels[i.target], n) for n, i in jumps if self.labels.get(i.target, n + 1) <= n})

    def hot(self, unit: str) -> list[Instruction]:
        """The instructions of the loop with most opcodes that match `unit`, those of loops inside it left out.

        Of several the shortest: the compiler may have put a turn of the inner loop in front of it.
        """
        loops = self.loops()
        bodies = []
        for first, last in loops:
            inner = [(a, b) for a, b in loops if first <= a and b <= last and (a, b) != (first, last)]
            own = (n for n in range(first, last + 1) if not any(a <= n <= b for a, b in inner))
            bodies.append([self.instructions[n] for n in own])
        return max(bodies, key=lambda body: (units(body, unit), -len(body)), default=[])


def units(body: list[Instruction], unit: str) -> int:
    return sum(bool(re.match(unit, i.opcode)) for i in body)


# -- PTX -----------------------------------------------------------------------------------------------------------

_LABEL = re.compile(r"^([$.\w]+):")
# a move is no instruction yet, for registers are unlimited; nor is a sign, which is part of what reads it
_PTX = re.compile(r"^\s*(?:@!?%\w+\s+)?(?!mov\.|neg\.f)([a-z][\w.:]*)\s*(.*);")
_SASS = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*(.*?);")


def ptx(text: str, architecture: str = "compute_90") -> str:
    """What NVRTC makes of a source before registers are given out."""
    nvrtc = cuda_cache._nvrtc()
    program = nvrtc.createProgram(text, "dred.cu", (), ())
    try:
        options = (o for o in cuda_cache.OPTIONS if "ptxas" not in o)
        nvrtc.compileProgram(program, (f"--gpu-architecture={architecture}", *options))
        return nvrtc.getPTX(program).decode()
    finally:
        nvrtc.destroyProgram(program)


def ptx_code(text: str, entry: str) -> Code:
    """The instructions of an entry point."""
    return _code(text.split(f".entry {entry}(", 1)[1].split("\n}", 1)[0].splitlines(), _PTX, "bra")


def _code(lines: list[str], pattern: re.Pattern[str], jump: str) -> Code:
    code = Code([], {})
    for line in lines:
        if label := _LABEL.match(line.strip()):
            code.labels[label[1]] = len(code.instructions)
        elif found := pattern.search(line):
            target = re.search(r"\.?\$?\.?L[\w$]+", found[2]) if found[1].lower().startswith(jump) else None
            code.instructions.append(Instruction(found[1], target[0] if target else ""))
    return code


# -- SASS ----------------------------------------------------------------------------------------------------------


def disassembler() -> str | None:
    """nvdisasm: what the environment names, on the path, or in the package triton, which brings one."""
    named = os.environ.get(NAMED)
    places = [Path(named), Path(named) / "nvdisasm"] if named else []
    triton = importlib.util.find_spec("triton")
    if triton and triton.origin:
        places.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "nvdisasm")
    found = [str(place) for place in places if place.is_file()]
    return found[0] if found else shutil.which("nvdisasm")


def sass(cubin: bytes, tool: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        (file := Path(folder, "kernel.cubin")).write_bytes(cubin)
        return subprocess.run([tool, "-c", str(file)], capture_output=True, text=True, check=True).stdout


def sass_code(text: str, entry: str) -> Code:
    """The instructions of an entry point."""
    return _code(text.split(f".section\t.text.{entry},", 1)[1].split(".section\t", 1)[0].splitlines(), _SASS, "bra")


# -- reference formulas --------------------------------------------------------------------------------------------


class Reference(NamedTuple):
    """A kernel whose instructions are counted: by opcodes of which a pair has `per`."""

    text: str
    aliases: tuple[str, ...]
    reduction: str
    units: tuple[str, str]  # patterns of opcodes in PTX and in SASS
    per: int
    fast: bool = False

    def source(self, dtype: str = "float32") -> Source:
        f = formula(self.text, self.aliases)
        spec = KernelSpec.of(f.node, self.reduction, 1, dtype, "float64", variables=f.variables)
        return cuda.rendered(replace(spec, fast=self.fast))


POWERS = (r"ex2\.", r"MUFU\.EX2")
ARITHMETIC = (r"(add|sub|mul|fma)\.(\w+\.)*f32", r"FADD|FMUL|FFMA")
POINTS = ("x = Vi(3)", "y = Vj(3)")
WEIGHTED = (*POINTS, "b = Vj(1)", "g = Pm(1)")
LONG = ("x = Vi(64)", "y = Vj(64)", *WEIGHTED[2:])
GAUSSIAN = "Exp(-g*SqDist(x,y))*b"

REFERENCES = {
    "Gaussian D=3": Reference(GAUSSIAN, WEIGHTED, "Sum", POWERS, 1),
    "its gradient in x": Reference(f"Grad({GAUSSIAN},x,e)", (*WEIGHTED, "e = Vi(1)"), "Sum", POWERS, 1),
    "Square(p-a)*Exp(x+y)": Reference(
        "Square(p-a)*Exp(x+y)", (*POINTS, "a = Vj(1)", "p = Pm(1)"), "Sum", POWERS, 3
    ),
    "LogSumExp D=3": Reference("-SqDist(x,y)", POINTS, "LogSumExp", POWERS, 1),
    "ArgMin D=3": Reference("SqDist(x,y)", POINTS, "ArgMin", ARITHMETIC, 6),
    # of one component of a pair: a difference and its square
    "Gaussian D=64, a component": Reference(GAUSSIAN, LONG, "Sum", ARITHMETIC, 2),
    "its gradient, the distance, a component": Reference(
        f"Grad({GAUSSIAN},x,e)", (*LONG, "e = Vi(1)"), "Sum", ARITHMETIC, 2
    ),
}  # fmt: skip
REFERENCES |= {  # scales of exponents in the rows
    f"{name}, fast": REFERENCES[name]._replace(fast=True)
    for name in ("Gaussian D=3", "its gradient in x", "Square(p-a)*Exp(x+y)", "LogSumExp D=3")
}


class Count(NamedTuple):
    """Pairs of one turn of the hot loop, and its instructions per pair, in all and by the first word of the opcode."""

    pairs: float
    total: float
    opcodes: dict[str, float]


def count(code: Code, unit: str, per: int) -> Count:
    body = code.hot(unit)
    pairs = units(body, unit) / per
    if not pairs:
        return Count(0, 0, {})
    words = Counter(i.opcode.partition(".")[0] for i in body)
    return Count(pairs, round(len(body) / pairs, 3), {word: round(n / pairs, 3) for word, n in words.most_common()})


def ptx_count(source: Source, reference: Reference) -> Count:
    code = ptx_code(ptx(source.text), source.entries["fold"].name)
    return count(code, reference.units[0], reference.per)


def sass_count(source: Source, reference: Reference, tool: str, architecture: str = "sm_90") -> Count:
    cubin, _ = cuda.compile_cubin(source.text, architecture)
    return count(sass_code(sass(cubin, tool), source.entries["fold"].name), reference.units[1], reference.per)
