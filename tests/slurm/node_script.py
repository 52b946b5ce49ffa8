"""What tests run on a cluster: where the workers are, and a reduction on them; then, if asked, an endless wait."""

import argparse
import os
import time

import dask.array as da
import numpy as np
from distributed import Client

import dred


def place() -> dict[str, str | None]:
    return {name: os.environ.get(name) for name in ("SLURMD_NODENAME", "DRED_NUM_THREADS", "CUDA_VISIBLE_DEVICES")}


def main() -> None:
    parser = argparse.ArgumentParser()
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--scheduler", metavar="ADDRESS")
    where.add_argument("--scheduler-file", metavar="FILE")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--wait", action="store_true")
    options = parser.parse_args()
    with Client(options.scheduler, scheduler_file=options.scheduler_file) as client:
        client.wait_for_workers(options.workers, timeout=300)
        places = client.run(place).values()
        print("nodes", *sorted(str(each["SLURMD_NODENAME"]) for each in places))
        print("threads", *sorted(str(each["DRED_NUM_THREADS"]) for each in places))
        print("devices", *sorted(str(each["CUDA_VISIBLE_DEVICES"]) for each in places))
        rng = np.random.default_rng(1)
        x, y = rng.random((300, 3)), rng.random((200, 3))
        total = dred.Genred("Exp(-SqDist(x, y))", ["x = Vi(3)", "y = Vj(3)"], reduction_op="Sum", axis=1)
        out = total(da.from_array(x, chunks=(100, 3)), da.from_array(y, chunks=(50, 3))).compute()
        dense = np.exp(-((x[:, None] - y) ** 2).sum(-1)).sum(1, keepdims=True)
        print("error below 1e-12", bool(np.abs(out - dense).max() < 1e-12 * dense.max()), flush=True)
        while options.wait:
            time.sleep(1)


if __name__ == "__main__":
    main()
