"""Where the examples run: their common options, arrays of this process or of a cluster, figures."""

import argparse
import contextlib
from pathlib import Path

import numpy as np

KINDS = {"local": "cpu", "cuda": "cuda"}  # clusters that are started on this machine
BLOCKS, ROWS = 4, 50_000  # a dask array has so many blocks at least, of so many rows at most


def parser(doc, size):
    """The options of an example with so many points, unless others are asked for."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--size", type=int, default=size, metavar="N", help="points (default: %(default)s)")
    made.add_argument("--plot", type=Path, metavar="FILE", help="draw a figure")
    where = made.add_mutually_exclusive_group()
    help = "compute on dask arrays, by processes or the GPUs of this machine, or by a running cluster"
    where.add_argument("--cluster", "--scheduler", dest="cluster", metavar="local|cuda|ADDRESS", help=help)
    where.add_argument("--scheduler-file", metavar="FILE", help="by a running cluster")
    made.add_argument("--workers", type=int, metavar="W", help="workers that are started, or waited for")
    return made


def as_they_are(*arrays):
    """One array, or a tuple of several: what `keep` is where nothing is lazy."""
    return arrays if arrays[1:] else arrays[0]


@contextlib.contextmanager
def place(args):
    """What makes of a NumPy array one for routines, and what computes arrays where they are.

    Without a cluster arrays are NumPy arrays, and neither has anything to do. On a cluster they are dask arrays, of
    which blocks are on the workers: elementwise arithmetic, sums and routines leave them lazy, `keep(*arrays)` starts
    to compute, and `np.asarray` or `float` brings a result here.
    """
    if not (args.cluster or args.scheduler_file):
        yield np.asarray, as_they_are
        return
    import dask
    import dask.array as da

    from dred.cluster.connect import connected

    there = {"kind": KINDS[args.cluster]} if args.cluster in KINDS else {"scheduler": args.cluster or ""}
    with connected(**there, scheduler_file=args.scheduler_file or "", workers=args.workers) as client:
        print(client)

        def put(array):
            blocks = np.array_split(array, min(len(array), max(BLOCKS, -(-len(array) // ROWS))))
            on_workers = zip(client.scatter(blocks), blocks, strict=True)
            return da.concatenate([da.from_delayed(future, b.shape, b.dtype) for future, b in on_workers])

        def keep(*arrays):
            return as_they_are(*dask.persist(*arrays))

        yield put, keep


@contextlib.contextmanager
def figure(path, columns=1):
    """Axes side by side, of a figure that is then written to a file."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawn, axes = plt.subplots(1, columns, figsize=(5 * columns, 4.5), squeeze=False)
    yield axes[0]
    drawn.tight_layout()
    drawn.savefig(path, dpi=100)
    plt.close(drawn)
    print(f"figure: {path}")


def peer(module):
    """A module to compare with, or None where it is not installed."""
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError:
        print(f"not compared with {module.partition('.')[0]}, which is not installed")
        return None
