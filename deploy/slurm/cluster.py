"""Run a job file or a script on Dask workers that are SLURM jobs of their own, submitted from here.

    python deploy/slurm/cluster.py --jobs 8 --cpus 64 job.toml M=1000000
    python deploy/slurm/cluster.py --jobs 8 --gpus 4 --partition gpu --interface ib0 mine.py --M 1000000

PROGRAM gets ARGUMENTS and `--scheduler ADDRESS`. Worker jobs that end too early are submitted again.
"""

import argparse
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import dask
from dask_jobqueue import SLURMCluster
from distributed import Client

EXAMPLE = Path(__file__).parents[2] / "examples" / "million_points.py"
INTERVAL = 10.0  # seconds between two looks at whether worker jobs are gone


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--jobs", type=int, default=2, help="worker jobs (2)")
    parser.add_argument("--cpus", type=int, default=8, help="CPUs of each (8)")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs of each, with a worker per GPU; needs dask-cuda (0)")
    parser.add_argument("--memory", default="16GB", help="memory of each (16GB)")
    parser.add_argument("--walltime", default="01:00:00", help="time limit of each (01:00:00)")
    parser.add_argument("--partition")
    parser.add_argument("--account")
    parser.add_argument("--interface", help="network interface of scheduler and workers, for instance ib0")
    parser.add_argument("--scratch", default="/tmp", help="a folder on each node for what workers spill (/tmp)")
    parser.add_argument("--logs", help="a folder for the output of the worker jobs (default: where sbatch puts it)")
    parser.add_argument(
        "--sbatch", action="append", default=[], metavar="OPTION", help="any other, as --sbatch=--qos=low"
    )
    parser.add_argument("--show", action="store_true", help="print the script of a worker job and end")
    parser.add_argument("program", nargs="?", default=EXAMPLE, type=Path, metavar="PROGRAM")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGUMENTS")
    return parser.parse_args(argv)


def start(options: argparse.Namespace) -> Any:
    """A cluster without workers, whose jobs have `options`."""
    # Every worker that dies counts against all tasks that were its: a few deaths should not end the run.
    dask.config.set({"distributed.scheduler.allowed-failures": 100})
    workers = max(1, options.gpus)  # a fold uses every core that its worker is given, or its worker's GPU
    threads = max(1, options.cpus // workers)
    return SLURMCluster(
        cores=workers,
        processes=workers,
        memory=options.memory,
        job_cpu=options.cpus,
        walltime=options.walltime,
        queue=options.partition,
        account=options.account,
        interface=options.interface,
        local_directory=options.scratch,
        log_directory=options.logs,
        job_name="dred-worker",
        job_script_prologue=[f"export DRED_NUM_THREADS={threads}"],
        job_extra_directives=[*([f"--gres=gpu:{options.gpus}"] if options.gpus else []), *options.sbatch],
        worker_command="dask_cuda.cli" if options.gpus else "distributed.cli.dask_worker",
        worker_extra_args=["--no-dashboard"],
        scheduler_options={"dashboard": False, "dashboard_address": ":0"},
    )


def main() -> int:
    options = arguments()
    with start(options) as cluster:
        if options.show:
            print(cluster.job_script())
            return 0
        cluster.scale(jobs=options.jobs)
        print(f"waiting for the first of {options.jobs} worker jobs", flush=True)
        with Client(cluster) as client:
            client.wait_for_workers(1)
        job = ["-m", "dred", "run"] if options.program.suffix in (".toml", ".yaml", ".yml") else []
        command = [*job, options.program, "--scheduler", cluster.scheduler_address, *options.arguments]
        program = subprocess.Popen([sys.executable, *command])
        signal.signal(signal.SIGTERM, lambda *_: program.terminate())
        while True:
            cluster.scale(jobs=options.jobs)  # also in place of those that were cancelled or preempted
            try:
                return program.wait(INTERVAL)
            except subprocess.TimeoutExpired:
                continue


if __name__ == "__main__":
    sys.exit(main())
