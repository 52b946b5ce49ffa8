"""Workers of `gpu.py`: the example on one worker per GPU, and two processes that share a device, one of them killed."""

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import dask
import dask.array as da
import numpy as np

from dred import Genred

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "million_points.py"
ROWS, COLUMNS = 4_000_000, 1_000_000
CHUNKS = 20
PLAN = (
    "examples/million_points.py --cluster cuda, 1000000 x 1000000: seconds, pairs/s, bytes moved",
    f"two workers that share the device, {ROWS} x {COLUMNS}: seconds, bytes of one worker, also where one is killed",
)
CONFIG = {"distributed.scheduler.allowed-failures": 100}  # a kill blames all tasks of its worker


def example():
    if find_spec("dask_cuda") is None:
        print("\nno dask-cuda: examples/million_points.py was not run on one worker per GPU")
        return
    print("\nexamples/million_points.py --cluster cuda", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        size = ("--M", "1000000", "--N", "1000000", "--backend", "cuda")
        subprocess.run([sys.executable, EXAMPLE, "--cluster", "cuda", *size, "--output", folder], check=True)


def reduced(workers, kill=0.0, backend="cuda"):
    """Digest of the sum's bytes, and seconds, on so many processes; one of them is killed after `kill` seconds."""
    from distributed import Client, LocalCluster

    options = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    with dask.config.set(CONFIG), LocalCluster(**options) as cluster, Client(cluster) as client:
        rng = np.random.default_rng(0)
        x, y = (da.from_array(rng.random((n, 3), "float32"), chunks=(-(-n // CHUNKS), 3)) for n in (ROWS, COLUMNS))
        routine = Genred("Exp(-SqDist(x,y))", ["x = Vi(3)", "y = Vj(3)"], axis=1)
        client.wait_for_workers(workers)
        start = time.perf_counter()
        future = client.compute(routine(x, y, backend=backend))
        if kill:
            time.sleep(kill)
            os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)
        result = future.result()
        return hashlib.sha256(result.tobytes()).hexdigest(), time.perf_counter() - start


def shared():
    print(f"\nprocesses that share the device, {ROWS} x {COLUMNS}")
    wanted, alone = reduced(1)
    print(f"one worker: {alone:.1f} s")
    for kill in (0.0, 0.4 * alone):  # while they are at work
        found, seconds = reduced(2, kill)
        words = "the bytes of one worker" if found == wanted else "OTHER BYTES than one worker"
        print(f"two workers{', one killed' if kill else ''}: {seconds:.1f} s, {words}", flush=True)


def run():
    example()
    shared()
