"""A sum and its gradient on jobs of workers, one of which is cancelled in mid-run; then it prints "right".

python tests/slurm/cancelled.py --scheduler ADDRESS GATE
"""

import os
import subprocess
import sys
from pathlib import Path

from distributed import Client

from tests.chaos.problem import Gate, calm, disturbed, stalled, sum_and_gradient, until


def job() -> str:
    return os.environ["SLURM_JOB_ID"]


def main(scheduler: str, path: str) -> None:
    gate = Gate(Path(path))
    results = sum_and_gradient(gate)
    want = calm(results)
    with Client(scheduler) as client:
        client.wait_for_workers(4, timeout=300)

        def cancel() -> None:
            held = until(lambda: client.run_on_scheduler(stalled))
            jobs = client.run(job)
            worker = max(held, key=lambda address: held[address])
            assert held[worker] > 0
            subprocess.run(["scancel", jobs[worker]], check=True)
            until(lambda: worker not in client.scheduler_info(n_workers=-1)["workers"])

        assert disturbed(client, results, gate, cancel) == want
        client.wait_for_workers(4, timeout=120)  # there are four again
    print("right")


if __name__ == "__main__":
    main(sys.argv[2], sys.argv[3])
