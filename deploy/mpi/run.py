"""Run a job file or a script on MPI's processes: rank 0 is the scheduler, rank 1 runs it, all others are workers.

    mpirun -n 4 python deploy/mpi/run.py job.toml M=1000000
    mpirun -n 10 --map-by slot:PE=16 python deploy/mpi/run.py mine.py --M 1000000

PROGRAM gets ARGUMENTS and `--scheduler ADDRESS`. DRED_NUM_THREADS: cores of a worker (default: those that MPI bound it
to). DRED_INTERFACE: network interface of scheduler and workers. DRED_SCRATCH: a folder on each node for what workers
spill (default: TMPDIR).
"""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import dask
from dask_mpi import initialize, send_close_signal
from distributed import Client
from mpi4py import MPI

EXAMPLE = Path(__file__).parents[2] / "examples" / "million_points.py"


def main() -> int:
    program, *arguments = sys.argv[1:] or [str(EXAMPLE)]
    cores = len(os.sched_getaffinity(0))
    # Every worker that dies counts against all tasks that were its: a lost node should not end the run.
    dask.config.set({"distributed.scheduler.allowed-failures": 100})
    # mpirun tells all ranks at once to end. The program decides how it ends, and the others end after it.
    signal.signal(signal.SIGTERM, lambda *_: None)
    runs_it = initialize(
        interface=os.environ.get("DRED_INTERFACE"),
        nthreads=1,  # a fold uses all cores of its worker
        memory_limit=min(1.0, cores / (os.cpu_count() or 1)),
        local_directory=os.environ.get("DRED_SCRATCH") or tempfile.gettempdir(),
        dashboard=False,
        worker_options={"dashboard": False},
        exit=False,
    )
    if not runs_it:
        return 0
    try:
        with Client() as client:
            client.wait_for_workers(MPI.COMM_WORLD.Get_size() - 2, timeout=300)
        job = ["-m", "dred", "run"] if Path(program).suffix in (".toml", ".yaml", ".yml") else []
        scheduler = dask.config.get("scheduler-address")
        running = subprocess.Popen([sys.executable, *job, program, "--scheduler", scheduler, *arguments])
        signal.signal(signal.SIGTERM, lambda *_: running.terminate())
        return running.wait()
    finally:
        send_close_signal()


if __name__ == "__main__":
    sys.exit(main())
