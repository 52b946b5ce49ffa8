"""A sum and its gradient, on the CPU, by dask-cuda's workers on a machine without a GPU; then it prints "right".

python tests/chaos/cuda_workers.py GATE
"""

import os
import sys
from pathlib import Path

from distributed import Client

from tests.chaos.problem import Gate, calm, sum_and_gradient


def visible() -> str:
    return os.environ["CUDA_VISIBLE_DEVICES"]


def main(path: str) -> None:
    os.environ |= {"DASK_CUDA_TEST_DISABLE_DEVICE_SPECIFIC": "1", "DASK_CUDA_TEST_SINGLE_GPU": "1"}
    from dask_cuda import LocalCUDACluster

    results = sum_and_gradient(Gate(Path(path)))
    options = {"CUDA_VISIBLE_DEVICES": "0,1", "device_memory_limit": 0, "dashboard_address": ":0"}
    with LocalCUDACluster(**options) as cluster, Client(cluster) as client:
        client.wait_for_workers(2, timeout=300)
        print("devices", *sorted(client.run(visible).values()))
        got = [future.result(timeout=300).tobytes() for future in client.compute(list(results))]
    assert got == calm(results)
    print("right")


if __name__ == "__main__":
    main(*sys.argv[1:])
