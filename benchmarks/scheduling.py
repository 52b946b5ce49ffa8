"""What Dask costs: the part of a job of half a minute that is not folding, for each feed, and milliseconds per task.

    python benchmarks/scheduling.py [seconds of a job] [workers]

Worker processes of one thread each on this machine. "folding" is the time that fold tasks took, by the scheduler's own
record, divided by the number of workers; "overhead" is what the wall clock showed besides, as a part of it: it should
stay below 5 % of a job of 30 s. "blocks in files" reads the reduced rows by path; "waves" computes them panel by panel.
"tasks" folds blocks so small that nothing but scheduling takes time. Medians of rounds in which all rows take turns.
"""

import os
import platform
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import dask
import dask.array as da
import numpy as np
from distributed import Client, LocalCluster, get_task_stream

import dred

ROUNDS = 3
TEXT, ALIASES = "Exp(-SqDist(x,y))*b", ["x = Vi(3)", "y = Vj(3)", "b = Vj(1)"]


def measured(client, routine, arrays, settings):
    """Seconds on the wall, seconds of folding, and the plan."""
    with dask.config.set(settings):
        plan = routine.plan(*arrays, backend="cpu")
        with get_task_stream(client) as stream:
            begin = time.perf_counter()
            routine.compute(*arrays, backend="cpu")
            wall = time.perf_counter() - begin
    spans = (
        (part["stop"] - part["start"])
        for task in stream.data
        if "fold" in str(task["key"])
        for part in task["startstops"]
        if part["action"] == "compute"
    )
    return wall, sum(spans), plan


def main(seconds=30.0, workers=2):
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(workers, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(workers)
        print(f"{platform.platform()}, {os.cpu_count()} CPUs, {workers} workers of 1 thread; Python", end=" ")
        print(
            f"{platform.python_version()}, " + ", ".join(f"{n} {version(n)}" for n in ("dask", "distributed", "numpy"))
        )
        routine = dred.Genred(TEXT, ALIASES, axis=1)
        dred.warm(client, routine, backend="cpu")
        rng = np.random.default_rng(0)

        def problem(M, N, x_chunk, y_chunk):
            x, y, b = (rng.random(shape, dtype="float32") for shape in ((M, 3), (N, 3), (N, 1)))
            return (x, y, b), (
                da.from_array(x, chunks=(x_chunk, 3)),
                da.from_array(y, chunks=(y_chunk, 3)),
                da.from_array(b, chunks=(y_chunk, 1)),
            )

        M, N = 400_000, 20_000
        _, lazy = problem(M, N, 50_000, 5_000)
        wall, _, plan = measured(client, routine, lazy, {})
        M = int(M * seconds / wall) // 64 * 64
        (_, y, b), lazy = problem(M, N, M // 16, N // 16)
        for name, array in (("y", y), ("b", b)):
            np.save(Path(folder) / f"{name}.npy", array)
        files = (lazy[0], *(dred.from_file(Path(folder) / f"{name}.npy") for name in "yb"))
        _, tiny = problem(4_000, 4_000, 125, 125)
        many = {"dred.plan.operations-per-second": {"cpu": 1e6}, "dred.plan.parallelism": 1024}
        rows = {
            "resident": (lazy, {}),
            "blocks in files": (files, {}),
            "waves": (lazy, {"dred.plan.feed": "waves", "dred.plan.step": f"{N * 16 // 4} B"}),
            "tasks": (tiny, many),
        }
        found = {name: [] for name in rows}
        for _ in range(ROUNDS):
            for name, (arrays, settings) in rows.items():
                found[name].append(measured(client, routine, arrays, settings))
        print(f"\nGaussian sum in 3 dimensions, float32, {M:,} x {N:,} pairs; {ROUNDS} rounds\n")
        print(f"{'':18}{'tasks':>8}{'edges':>8}{'wall s':>9}{'folding s':>11}{'overhead':>10}{'ms per task':>13}")
        for name, runs in found.items():
            plan = runs[0][2]
            wall = statistics.median(run[0] for run in runs)
            folding = statistics.median(run[1] for run in runs) / workers
            rest = statistics.median(run[0] - run[1] / workers for run in runs)
            print(
                f"{name:18}{plan.tasks:8,}{plan.edges:8,}{wall:9.2f}{folding:11.2f}{rest / wall:10.1%}"
                f"{1e3 * rest / plan.tasks:13.2f}"
            )


if __name__ == "__main__":
    main(*map(float, sys.argv[1:2]), *map(int, sys.argv[2:3]))
