"""Run a job file or a script on all of this machine: a Dask worker per GPU where there are GPUs, else a few processes.

    python deploy/local/run.py [--workers W] [PROGRAM] [ARGUMENTS ...]

PROGRAM (default: examples/million_points.py) is started with ARGUMENTS and `--scheduler ADDRESS`. Stop it with Ctrl-C
or SIGTERM: it is told so, and the workers end after it.
"""

import argparse
import signal
import subprocess
import sys
from pathlib import Path

from dred.cluster import connect
from dred.errors import BackendError

EXAMPLE = Path(__file__).parents[2] / "examples" / "million_points.py"


def main() -> int:
    usage = "%(prog)s [-h] [--workers W] [PROGRAM] [ARGUMENTS ...]"
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], usage=usage)
    parser.add_argument("--workers", type=int, metavar="W", help="worker processes (default: one per GPU, or up to 4)")
    own, rest = [], sys.argv[1:]
    while rest and rest[0].partition("=")[0] in ("--workers", "-h", "--help"):
        own += [rest.pop(0) for _ in range(2 if rest[0] == "--workers" else 1) if rest]
    options = parser.parse_args(own)
    program = rest.pop(0) if rest and not rest[0].startswith("-") else EXAMPLE  # all the rest is for the program
    job = ["-m", "dred", "run"] if Path(program).suffix in (".toml", ".yaml", ".yml") else []
    try:
        chosen = connect.local("auto", options.workers, None, None)
    except BackendError as error:
        sys.exit(str(error))
    with connect.started(chosen) as cluster:
        print(cluster, flush=True)
        command = [sys.executable, *job, program, "--scheduler", cluster.scheduler_address, *rest]
        with subprocess.Popen(command) as running:
            signal.signal(signal.SIGTERM, lambda *_: running.terminate())
            return running.wait()


if __name__ == "__main__":  # the worker processes import this file
    sys.exit(main())
