"""What a CUDA device can do at most: its rates of independent multiply-adds and of exponentials, measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dred.kernel.cuda_cache import cubin
from dred.kernel.cuda_device import architecture
from dred.kernel.cuda_text import PRELUDE
from dred.kernel.work import Work

BLOCKS, THREADS = 4096, 256
CHAINS, UNROLL = 16, 8  # chains of a thread, and their steps between two tests of the loop
SECONDS = 0.005  # of a measurement, at least

_LOOP = """\
extern "C" __global__ void NAME(KIND* out, int steps) {
  KIND x[CHAINS], sum = 0;
  const KIND a = (KIND)(threadIdx.x & 7) * (KIND)0.125;
#pragma unroll
  for (int k = 0; k < CHAINS; k++) x[k] = a + (KIND)k;
  for (int step = 0; step < steps; step++) {
#pragma unroll
    for (int turn = 0; turn < UNROLL; turn++) {
#pragma unroll
      for (int k = 0; k < CHAINS; k++) x[k] = STEP;
    }
  }
#pragma unroll
  for (int k = 0; k < CHAINS; k++) sum += x[k];
  out[(long long)blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

"""
# name -> type, and the operation: multiply-adds stay within [0, 8), and powers of 2 near 0.64
KERNELS = {
    "fma_float32": ("float32", "float", "fmaf(x[k], (KIND)0.5, a)"),
    "fma_float64": ("float64", "double", "fma(x[k], (KIND)0.5, a)"),
    "exp2_float32": ("float32", "float", "dred_exp2(-x[k])"),
}


def source() -> str:
    """The CUDA C++ of all three."""
    text = "typedef long long i64;\n" + PRELUDE["approx_exp2"]
    for name, (_, kind, step) in KERNELS.items():
        loop = _LOOP.replace("STEP", step).replace("NAME", name).replace("KIND", kind)
        text += loop.replace("CHAINS", str(CHAINS)).replace("UNROLL", str(UNROLL))
    return text


def rates() -> dict[str, Callable[[], float]]:
    """Functions that measure operations per second of the current device, by the names of `KERNELS`.

    Raises
    ------
    BackendError
        Where NVRTC is missing.
    """
    import cupy
    from cupy.cuda import function

    module = function.Module()
    module.load(cubin(source(), architecture()))

    def rate(name: str) -> Callable[[], float]:
        run, out = module.get_function(name), cupy.empty(BLOCKS * THREADS, KERNELS[name][0])

        def timed(steps: int) -> float:
            return seconds(lambda: run((BLOCKS, 1), (THREADS,), (out, np.int32(steps))))

        steps = 1
        timed(steps)
        while timed(steps) < SECONDS:
            steps *= 2
        return lambda: BLOCKS * THREADS * CHAINS * UNROLL * steps / timed(steps)

    return {name: rate(name) for name in KERNELS}


def pairs(work: Work, dtype: str, rate: Callable[[str], float]) -> float:
    """Pairs per second, if only instructions issued, or exponentials, were limits.

    Parameters
    ----------
    work : Work
    dtype : str
    rate : callable
        Operations per second by the names of `KERNELS`.
    """
    least = work.instructions(dtype) / rate(f"fma_{dtype}")
    if dtype == "float32":
        least = max(least, work.exponentials / rate("exp2_float32"))
    return 1 / least


def given(arrays: Sequence[Any]) -> list[Any]:
    """The arrays on the current device."""
    import cupy

    return [cupy.asarray(a) for a in arrays]


def seconds(work: Callable[[], object]) -> float:
    """Of a call and all that it has put on the current device."""
    from cupy.cuda import runtime

    runtime.deviceSynchronize()
    begin = time.perf_counter()
    work()
    runtime.deviceSynchronize()
    return time.perf_counter() - begin
