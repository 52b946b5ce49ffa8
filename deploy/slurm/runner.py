"""Run a job file or a script on the tasks of one srun: the first is the scheduler, the second runs it, the rest work.

    srun --nodes=2 --ntasks=4 --cpus-per-task=64 python deploy/slurm/runner.py job.toml M=1000000
    srun --ntasks=10 --gpus-per-task=1 python deploy/slurm/runner.py mine.py --M 1000000

PROGRAM gets ARGUMENTS and `--scheduler ADDRESS`; its exit status is that of srun. DRED_INTERFACE: network interface of
scheduler and workers, for instance ib0. DRED_SCRATCH: a folder on each node for what workers spill (default: TMPDIR).
"""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import dask
from dask_jobqueue.slurm import SLURMRunner
from distributed import Client

EXAMPLE = Path(__file__).parents[2] / "examples" / "million_points.py"


def main() -> int:
    program, *arguments = sys.argv[1:] or [str(EXAMPLE)]
    cpus = int(os.environ.get("SLURM_CPUS_PER_TASK", 1))
    os.environ.setdefault("DRED_NUM_THREADS", str(cpus))
    # Every worker that dies counts against all tasks that were its: a lost node should not end the run.
    dask.config.set({"distributed.scheduler.allowed-failures": 100})
    interface = os.environ.get("DRED_INTERFACE")
    # SLURM tells all tasks at once to end. The program decides how it ends, and the others end after it.
    signal.signal(signal.SIGTERM, lambda *_: None)
    with SLURMRunner(
        # One number for each step of a job, so that two of them can run at once.
        scheduler_file=f"scheduler-{{job_id}}-{os.environ.get('SLURM_STEP_ID', 0)}.json",
        scheduler_options={"interface": interface, "dashboard": False},
        worker_options={
            "interface": interface,
            "nthreads": 1,  # a fold uses all cores of its task
            "memory_limit": min(1.0, cpus / (os.cpu_count() or 1)),
            "local_directory": os.environ.get("DRED_SCRATCH") or tempfile.gettempdir(),
            "dashboard": False,
        },
    ) as runner:  # only the second task comes here
        with Client(runner.scheduler_address) as client:
            client.wait_for_workers(runner.n_workers, timeout=300)
        job = ["-m", "dred", "run"] if Path(program).suffix in (".toml", ".yaml", ".yml") else []
        command = [*job, program, "--scheduler", runner.scheduler_address, *arguments]
        running = subprocess.Popen([sys.executable, *command])
        signal.signal(signal.SIGTERM, lambda *_: running.terminate())
        return running.wait()


if __name__ == "__main__":
    sys.exit(main())
