"""A million points against many, on a Dask cluster: the sum of Square(p-a)*Exp(x+y) and its gradient, checked.

    python examples/million_points.py --cluster local --workers 2
    python examples/million_points.py --cluster cuda                     # one worker per GPU of this machine
    python examples/million_points.py --scheduler tcp://host:8786        # a cluster that is already there
    python examples/million_points.py --scheduler-file scheduler.json

Nothing of size M x N is ever stored. Random rows of both results are compared with float64 NumPy.
"""

import argparse
import contextlib
import os
import time
from pathlib import Path

import dask
import dask.array as da
import numpy as np
from distributed import Client, LocalCluster, progress

from dred import Genred

FORMULA = "Square(p-a)*Exp(x+y)"
VARIABLES = ["x = Vi(3)", "y = Vj(3)", "a = Vj(1)", "p = Pm(1)"]
BLOCK = 20_000  # rows that the check takes at a time


def arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--cluster", choices=("local", "cuda"), default="local", help="start a cluster on this machine")
    where.add_argument("--scheduler", metavar="ADDRESS", help="use a running cluster")
    where.add_argument("--scheduler-file", metavar="FILE", help="use a running cluster")
    parser.add_argument("--workers", type=int, help="processes of a local cluster (default: one per core)")
    parser.add_argument("--M", type=int, default=1_000_000, help="points x")
    parser.add_argument("--N", type=int, default=50_000, help="points y")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--backend", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--check", type=int, default=200, metavar="ROWS", help="random rows compared with NumPy")
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder of results and figure")
    return parser.parse_args(argv)


@contextlib.contextmanager
def connect(args):
    """A client of the cluster that was asked for; what is started here is stopped at the end."""
    # Every worker that dies counts against all tasks that were its: preempted workers should not end the job.
    with contextlib.ExitStack() as stack, dask.config.set({"distributed.scheduler.allowed-failures": 100}):
        if args.scheduler:
            yield stack.enter_context(Client(args.scheduler))
        elif args.scheduler_file:
            yield stack.enter_context(Client(scheduler_file=args.scheduler_file))
        elif args.cluster == "cuda":
            from dask_cuda import LocalCUDACluster

            yield stack.enter_context(Client(stack.enter_context(LocalCUDACluster())))
        else:
            cores = os.cpu_count() or 1
            workers = args.workers or cores
            threads = {"DRED_NUM_THREADS": str(max(1, cores // workers))}  # a fold uses all threads of its process
            options = {
                "n_workers": workers,
                "threads_per_worker": 1,
                "dashboard_address": "127.0.0.1:0",
                "env": threads,
            }
            yield stack.enter_context(Client(stack.enter_context(LocalCluster(**options))))


def chunks(rows):
    """Ten chunks, so that blocks of both sets meet on all workers."""
    return (max(1, -(-rows // 10)), -1)


def received(client, start):
    """Bytes of the messages between workers since `start`, a time on the scheduler's clock, as the log's times are."""

    def total(dask_worker):
        return sum(message["total"] for message in dask_worker.transfer_incoming_log if message["start"] >= start)

    return sum(client.run(total).values())


def reduce(client, title, routine, inputs, pairs, backend):
    """Compute one reduction with a progress bar; print its plan, speed and the bytes moved."""
    print(f"\n{title}\n{routine.explain(*inputs, backend=backend)}")
    lazy = routine(*inputs, backend=backend)
    began, start = client.run_on_scheduler(time.time), time.perf_counter()
    future = client.compute(lazy)
    progress(future, notebook=False)
    result = future.result()
    seconds = time.perf_counter() - start
    moved = received(client, began)
    print(f"\n{pairs:.3g} pairs in {seconds:.1f} s: {pairs / seconds:.3g} pairs/s")
    print(f"{moved / 1e6:.1f} MB moved between workers")
    return result


def check(name, got, rows, terms):
    """Compare rows of a result with the float64 sum of `terms`, blocks of (rows, BLOCK, 3)."""
    expected = sum(block.sum(1) for block in terms)
    error = np.abs(got[rows] - expected).max() / np.abs(expected).max()
    tolerance = 1e-5 if got.dtype == np.float32 else 1e-12
    print(f"{name}: {len(rows)} random rows against float64 NumPy: relative error {error:.1e} (at most {tolerance:g})")
    assert error < tolerance, f"{name} is wrong"
    return expected


def draw(path, results):
    """The checked rows of dred and of NumPy."""
    try:
        import matplotlib
    except ImportError:
        print("no figure: in dred's folder, pip install '.[plot]'")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(results), figsize=(11, 4))
    for ax, (name, (got, expected)) in zip(axes, results.items(), strict=True):
        ax.plot(expected[:40, 0], "o", label="NumPy, float64")
        ax.plot(got[:40, 0], "-", label="dred")
        ax.set(title=f"{name}: first component", xlabel="random row")
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncol=2)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)
    print(f"figure: {path}")


def main(argv=None):
    args = arguments(argv)
    M, N, dtype = args.M, args.N, args.dtype
    rng = da.random.default_rng(0)
    x, e = (rng.random((M, 3), chunks=chunks(M), dtype=dtype) for _ in range(2))
    y, a = (rng.random((N, d), chunks=chunks(N), dtype=dtype) for d in (3, 1))
    p = np.array([0.25], dtype)
    args.output.mkdir(parents=True, exist_ok=True)
    with connect(args) as client:
        print(client)
        routine = Genred(FORMULA, VARIABLES, reduction_op="Sum", axis=1, dtype=dtype)
        c = reduce(client, f"sum over j of {FORMULA}", routine, (x, y, a, p), M * N, args.backend)
        gradient = Genred(f"Grad({FORMULA}, y, e)", [*VARIABLES, "e = Vi(3)"], reduction_op="Sum", axis=0, dtype=dtype)
        g = reduce(client, "its gradient with respect to y", gradient, (x, y, a, p, e), M * N, args.backend)
        x, y, a, e = client.gather(client.compute([x, y, a, e]))

    print()
    x, y, a, e, p = (v.astype("float64") for v in (x, y, a, e, p))
    weights = (p - a) ** 2
    pick = np.random.default_rng(1)
    i, j = (np.sort(pick.choice(n, min(args.check, n), replace=False)) for n in (M, N))
    blocks_of = lambda n: (slice(k, k + BLOCK) for k in range(0, n, BLOCK))  # noqa: E731
    expected_c = check("sum", c, i, (weights[b] * np.exp(x[i, None] + y[b]) for b in blocks_of(N)))
    expected_g = check("gradient", g, j, (e[b] * weights[j, None] * np.exp(x[b] + y[j, None]) for b in blocks_of(M)))
    for name, array in (("sum", c), ("gradient", g)):
        np.save(args.output / f"{name}.npy", array)
        print(f"{name}: {args.output / name}.npy, shape {array.shape}, {array.dtype}")
    draw(args.output / "million_points.png", {"sum": (c[i], expected_c), "gradient": (g[j], expected_g)})


if __name__ == "__main__":
    main()
