"""The client of a cluster on two hosts, one of which it takes off the network in mid-run; then it prints "right".

python tests/chaos/driver.py GATE HOST ADDRESS      # the host and its address; the scheduler is named by DASK_*
"""

import sys
from pathlib import Path

from distributed import Client

from tests.chaos.namespaces import unplug
from tests.chaos.problem import Gate, calm, disturbed, stalled, sum_and_gradient, until


def main(path: str, host: str, address: str) -> None:
    gate = Gate(Path(path))
    results = sum_and_gradient(gate)
    want = calm(results)
    with Client() as client:
        client.wait_for_workers(4, timeout=300)
        assert all(worker.startswith("tls://") for worker in client.scheduler_info(n_workers=-1)["workers"])

        def there() -> list[str]:
            return [name for name in client.scheduler_info(n_workers=-1)["workers"] if f"//{address}:" in name]

        def cut_off() -> None:
            held = until(lambda: client.run_on_scheduler(stalled))
            assert sum(held[worker] for worker in there()) > 0, held
            unplug(host)
            until(lambda: not there())

        assert disturbed(client, results, gate, cut_off) == want
        assert len(client.scheduler_info(n_workers=-1)["workers"]) == 2
    print("right")


if __name__ == "__main__":
    main(*sys.argv[1:])
