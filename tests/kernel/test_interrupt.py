"""Ctrl-C ends a computation of minutes or hours within a second; the tests allow several: machines have other work."""

import os
import signal
import subprocess
import sys
import time

import pytest

SCRIPT = """
import signal, sys, numpy as np
signal.signal(signal.SIGINT, signal.default_int_handler)  # where the tests run in the background, it is ignored
from dred import Genred
text, reduction, parameter, M, N = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
routine = Genred(text, ["x = Vi(3)", "y = Vj(3)"], reduction, axis=1, opt_arg=parameter or None)
x = np.random.default_rng(0).random((N, 3), np.float32)
routine(x[:2000], x[:2000], backend="cpu")
print("begins", flush=True)
routine(x[:M], x, backend="cpu")
print("is over", flush=True)
"""
GAUSSIAN = ("Exp(-SqDist(x,y))", "Sum", 0, 1_000_000, 1_000_000)
RANKING = ("SqDist(x,y)", "ArgKMin", 100, 100_000, 1_000_000)  # its state is 100 times as large
ALLOWED = 5.0


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT to one process")
@pytest.mark.parametrize(
    ("problem", "threads"),
    [
        (GAUSSIAN, 2),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [(GAUSSIAN, 1), (RANKING, 1), (RANKING, 2)]),
    ],
)
def test_an_interrupt_is_answered(problem, threads, record_property):
    command = [sys.executable, "-c", SCRIPT, *map(str, problem)]
    run = subprocess.Popen(
        command,
        env={**os.environ, "DRED_NUM_THREADS": str(threads)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert run.stdout.readline() == "begins\n"
        time.sleep(1)
        start = time.monotonic()
        run.send_signal(signal.SIGINT)
        out, errors = run.communicate(timeout=30)
        seconds = time.monotonic() - start
    finally:
        run.kill()
        run.communicate()  # closes its pipes
    record_property("seconds", seconds)
    print(f"{seconds:.2f} s")
    assert errors.strip().endswith("KeyboardInterrupt")
    assert run.returncode != 0
    assert out == ""
    assert seconds < ALLOWED
