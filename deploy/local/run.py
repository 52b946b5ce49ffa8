"""Run a job file or a script on all of this machine: a Dask worker per GPU where there are GPUs, else a few processes.

    python deploy/local/run.py [--workers W] [PROGRAM] [ARGUMENTS ...]

PROGRAM (default: examples/million_points.py) is started with ARGUMENTS and `--scheduler ADDRESS`. Stop it with Ctrl-C
or SIGTERM: it is told so, and the workers end after it.
"""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

EXAMPLE = Path(__file__).parents[2] / "examples" / "million_points.py"


def gpus() -> list[str]:
    """One line per GPU of this machine, as `nvidia-smi` lists them; obeys CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device for device in visible.split(",") if device.strip() not in ("", "-1")]
    try:
        listing = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False)
    except OSError:
        return []
    return listing.stdout.splitlines() if listing.returncode == 0 else []


def start(workers: int | None) -> Any:
    """A running cluster for this machine."""
    import dask

    # Every worker that dies counts against all tasks that were its: a few deaths should not end the job.
    dask.config.set({"distributed.scheduler.allowed-failures": 100})
    if gpus():
        try:
            from dask_cuda import LocalCUDACluster
        except ImportError:
            sys.exit(
                "This machine has GPUs, and a worker for each needs dask-cuda: in dred's folder, "
                "pip install '.[cuda13,dask-cuda13]' (or the 12s, by your driver). "
                "CUDA_VISIBLE_DEVICES= runs on the CPU."
            )
        return LocalCUDACluster(n_workers=workers)
    from distributed import LocalCluster

    workers = workers or 2
    # A fold uses all threads of its process: the cores, and the memory with them, are shared between the processes.
    threads = max(1, (os.cpu_count() or 1) // workers)
    return LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        dashboard_address="127.0.0.1:0",  # any free port
        memory_limit=0.9 / workers,
        env={"DRED_NUM_THREADS": str(threads)},
    )


def main() -> int:
    usage = "%(prog)s [-h] [--workers W] [PROGRAM] [ARGUMENTS ...]"
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], usage=usage)
    parser.add_argument("--workers", type=int, metavar="W", help="worker processes (default: one per GPU, or 2)")
    own, rest = [], sys.argv[1:]
    while rest and rest[0].partition("=")[0] in ("--workers", "-h", "--help"):
        own += [rest.pop(0) for _ in range(2 if rest[0] == "--workers" else 1) if rest]
    options = parser.parse_args(own)
    program = rest.pop(0) if rest and not rest[0].startswith("-") else EXAMPLE  # all the rest is for the program
    job = ["-m", "dred", "run"] if Path(program).suffix in (".toml", ".yaml", ".yml") else []
    with start(options.workers) as cluster:
        print(cluster, flush=True)
        command = [sys.executable, *job, program, "--scheduler", cluster.scheduler_address, *rest]
        with subprocess.Popen(command) as running:
            signal.signal(signal.SIGTERM, lambda *_: running.terminate())
            return running.wait()


if __name__ == "__main__":  # the worker processes import this file
    sys.exit(main())
