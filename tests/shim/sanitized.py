"""Kernels in an executable of their own, checked by AddressSanitizer: each array is an allocation of its own.

`Recorder` stands in the place of a device and writes down what a launch asks for; the executable does it. Shared memory
is `static` there, blocks run one after another, so that arrays in it have guarded ends as well.
"""

import os
import subprocess
from collections.abc import Sequence
from operator import add
from pathlib import Path

import numpy as np

from dred.kernel.cuda import launch
from dred.kernel.cuda_source import Entry, Source
from tests.shim import shim

FLAGS = ["-std=c++17", "-O0", "-g", "-ffp-contract=off", "-w", "-DDRED_SHIM_STATIC", "-fno-omit-frame-pointer",
         "-fsanitize=address,alignment,bounds", "-fno-sanitize-recover=all"]  # fmt: skip
# Fibers have stacks of their own, of which the checks of returns know nothing.
OPTIONS = {"ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0:exitcode=99"}

MAIN = """
#include <stdint.h>
static int64_t number(FILE* f) { int64_t n; if (fread(&n, 8, 1, f) != 1) abort(); return n; }
int main(int, char** files) {
  FILE* f = fopen(files[1], "rb");
  std::vector<char*> arrays(number(f));
  std::vector<size_t> sizes;
  for (char*& a : arrays) {
    sizes.push_back(number(f));
    a = (char*)malloc(sizes.back());
    if (fread(a, 1, sizes.back(), f) != sizes.back()) abort();
  }
  for (int64_t calls = number(f); calls; calls--) {
    const int64_t entry = number(f), gx = number(f), gy = number(f);
    std::vector<int64_t> args(number(f));
    for (int64_t& n : args) n = number(f);
    ENTRIES[entry](gx, gy, args.data(), arrays.data());
  }
  FILE* out = fopen(files[2], "wb");
  for (int64_t left = number(f); left; left--) { const int64_t k = number(f); fwrite(arrays[k], 1, sizes[k], out); }
  return fclose(out);
}
"""


def _call(entry: Entry) -> str:
    """An entry point whose arguments are numbers, those of arrays for pointers."""
    casts = (f"({kind.replace(' __restrict__', '')})" for kind, _ in entry.params)
    places = (
        f"(a[{k}] < 0 ? nullptr : m[a[{k}]])" if "*" in kind else f"a[{k}]" for k, (kind, _) in enumerate(entry.params)
    )
    call = f"run_{entry.name}({', '.join(['gx', 'gy', *map(add, casts, places)])})"
    return f"[](unsigned gx, unsigned gy, const int64_t* a, char** m) {{ {call}; }},\n"


class Recorder:
    """The device of `dred.kernel.cuda.launch` that writes down what it is asked for."""

    multiprocessors = 1

    def __init__(self, executable: "Executable") -> None:
        self.executable, self.arrays, self.calls = executable, [], []

    def number(self, array):
        """That of an array, which is kept so that no other one gets its address; that of none is -1."""
        if array is None:
            return -1
        found = [n for n, a in enumerate(self.arrays) if a is array]
        if not found:
            self.arrays.append(array)
        return found[0] if found else len(self.arrays) - 1

    def empty(self, count, dtype):
        return np.full(count, -987654321 if dtype == "int64" else np.nan, dtype)

    def upload(self, table):
        return np.array(table)

    def run(self, entry, grid, args):
        values = [self.number(a) if "*" in kind else int(a) for (kind, _), a in zip(entry.params, args, strict=True)]
        self.calls.append([self.executable.names.index(entry.name), *grid, len(values), *values])

    def pace(self):
        pass


class Executable:
    """Sources, each under a name of its own, compiled into one file."""

    def __init__(self, sources: Sequence[Source], folder: Path) -> None:
        entries = [entry for source in sources for entry in source.entries.values()]
        self.names, self.folder = [entry.name for entry in entries], folder
        texts = [source.text + "".join(map(shim.wrapper, source.entries.values())) for source in sources]
        table = "static void (*const ENTRIES[])(unsigned, unsigned, const int64_t*, char**) = {\n"
        (folder / "kernels.cpp").write_text("".join([*texts, table, *map(_call, entries), "};\n", MAIN]))
        command = [shim.COMPILER, *FLAGS, "-include", str(shim.HEADER), str(folder / "kernels.cpp"), "-o",
                   str(folder / "kernels")]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[:4000]

    def run(self, source: Source, arrays, M: int, N: int, *, batches: int = 1, **more):
        """As `tests.shim.shim.run`; raises a `CalledProcessError` with the report where memory is misused."""
        arrays = [None if a is None else np.ascontiguousarray(a, source.dtype) for a in arrays]
        state = [np.full((f.size, batches * M), f.identity, f.dtype) for f in source.fields]
        recorder = Recorder(self)
        launch(source, recorder, state, arrays, M, N, batches=batches, **more)
        script, result = self.folder / "script", self.folder / "result"
        wanted = [recorder.number(a) for a in state]
        with script.open("wb") as file:
            file.write(np.int64(len(recorder.arrays)).tobytes())
            for a in recorder.arrays:
                file.write(np.int64(a.nbytes).tobytes() + a.tobytes())
            numbers = [len(recorder.calls), *(n for call in recorder.calls for n in call), len(wanted), *wanted]
            file.write(np.array(numbers, np.int64).tobytes())
        command = [str(self.folder / "kernels"), str(script), str(result)]
        subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **OPTIONS})
        data, at, out = result.read_bytes(), 0, []
        for a in state:
            out.append(np.frombuffer(data[at : at + a.nbytes], a.dtype).reshape(a.shape))
            at += a.nbytes
        assert at == len(data)
        return tuple(out)
