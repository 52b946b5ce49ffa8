"""What this processor can do at most: its rate of independent multiply-adds, measured."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from dred.kernel.llvm_lanes import Lanes
from dred.kernel.machine import emit, host, load
from dred.kernel.threads import Stop, run

CHAINS = 12  # more than the latency of an instruction times the pipes
COUNT = 500_000  # steps of all chains in one call: a millisecond


def multiply_add_rate(
    dtype: str, threads: int = 1, clock: Callable[[], float] = time.thread_time, count: int = COUNT
) -> Callable[[], float]:
    """A function that measures multiply-adds per second, in vectors as wide as the machine's registers.

    Parameters
    ----------
    dtype : str
        "float32" or "float64".
    threads : int
        That compute at the same time.
    clock : callable
        By default the CPU time of this thread: for several threads name a clock on the wall.
    count : int
        Steps of a call.

    Returns
    -------
    callable

    Raises
    ------
    BackendError
        LLVM cannot compile for this machine.

    Examples
    --------
    >>> rate = multiply_add_rate("float32")
    >>> rate() > 1e6
    True
    """
    machine = host()
    have = machine.features.split(",")
    width = 64 if "+avx512f" in have else 32 if "+avx" in have else 16
    lanes = Lanes(dtype, width // np.dtype(dtype).itemsize)
    address, engine = load(emit(_text(lanes), machine, 2), "run")
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(address)

    def share(stop: Stop) -> None:
        start = np.full(64, 0.5, dtype)
        function(start.ctypes.data, count)

    def rate(keep: Any = engine) -> float:  # the code lives as long as its engine
        begin = clock()
        run([share] * threads)
        return threads * count * CHAINS * lanes.width / (clock() - begin)

    return rate


def _text(lanes: Lanes) -> str:
    """A loop of independent chains; where a machine has no fused multiply-add, of multiplications and additions."""
    T, chains = lanes.type, range(CHAINS)
    fma = f"@llvm.fmuladd.{lanes.suffix}"
    return "\n".join(
        [
            f"declare {T} {fma}({T}, {T}, {T})",
            "define void @run(ptr %p, i64 %n) #0 {",
            f"entry:\n  %a = load {T}, ptr %p, align 4\n  br label %loop",
            "loop:\n  %i = phi i64 [ 0, %entry ], [ %next, %loop ]",
            *(f"  %x{k} = phi {T} [ %a, %entry ], [ %y{k}, %loop ]" for k in chains),
            *(f"  %y{k} = call {T} {fma}({T} %x{k}, {T} %a, {T} %a)" for k in chains),
            "  %next = add i64 %i, 1\n  %more = icmp slt i64 %next, %n\n  br i1 %more, label %loop, label %done\ndone:",
            *(f"  store {T} %y{k}, ptr %p, align 4" for k in chains),
            '  ret void\n}\nattributes #0 = { "prefer-vector-width"="512" }',
        ]
    )
