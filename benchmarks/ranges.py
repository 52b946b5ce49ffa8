"""Block-sparse ranges and batches beside dense calls: seconds, and how much faster for how much less to do.

    python benchmarks/ranges.py [--points 100000]

A Gaussian sum and 10 nearest neighbours, float32, D = 3, of points of the unit cube that are sorted into clusters
by a grid, all threads; medians of interleaved rounds. Of ranges: random pairs of clusters, and those of near clusters
alone, as a Gaussian needs; beside each the part of the pairs that is visited, how many times faster than all pairs it
is, and that ratio times the part (1: time falls as the pairs do). Of batches: B problems of n x n pairs in one call,
beside a loop over calls and one call of as many pairs.
"""

import argparse
import platform
import statistics
import time

import numpy as np

from dred import Genred, Ranges, cluster_ranges_centroids, from_matrix, grid_cluster, sort_clusters
from dred.kernel.threads import thread_count

ROUNDS = 5
GAUSSIAN = Genred("Exp(-g*SqDist(x,y))*b", ["x = Vi(3)", "y = Vj(3)", "b = Vj(1)", "g = Pm(1)"], axis=1)
NEAREST = Genred("SqDist(x,y)", ["x = Vi(3)", "y = Vj(3)"], "ArgKMin", axis=1, opt_arg=10)


def medians(calls):
    """Seconds of each call, by name: medians of rounds in which all take turns."""
    for call in calls.values():
        call()
    times = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(mine) for name, mine in times.items()}


def ranges(points):
    rng = np.random.default_rng(0)
    x = rng.random((points, 3)).astype("float32")
    b, g = rng.random((points, 1)).astype("float32"), np.array([1.0], "float32")
    print(f"{'ranges':36} {'clusters':>8} {'kept':>7} {'seconds':>8} {'faster':>7} {'x kept':>7}")
    for edge in (0.25, 0.125, 0.0625):
        labels = grid_cluster(x, edge)
        points_sorted, labels = sort_clusters(x, labels)
        rows, centroids, _ = cluster_ranges_centroids(points_sorted, labels)
        count = len(rows)
        distance = np.sqrt(((centroids[:, None].astype(float) - centroids) ** 2).sum(-1))
        random = rng.random((count, count))
        keep = {f"random {part:.0%}": random < part for part in (0.5, 0.1, 0.01)}
        keep |= {f"nearer than {far:.3g}": distance < far for far in (2 * edge, 4 * edge)}
        patterns = {name: Ranges.of(from_matrix(rows, rows, k), points, points) for name, k in keep.items()}
        for routine, arrays in ((GAUSSIAN, (points_sorted, points_sorted, b, g)), (NEAREST, (points_sorted,) * 2)):
            calls = {"all pairs": lambda r=routine, a=arrays: r(*a)}
            calls |= {name: lambda r=routine, a=arrays, p=p: r(*a, ranges=p) for name, p in patterns.items()}
            found = medians(calls)
            for name, seconds in found.items():
                kept = patterns[name].over_j.pairs / points**2 if name in patterns else 1.0
                faster = found["all pairs"] / seconds
                print(
                    f"{routine.reduction_op + ', ' + name:36} {count:8} {kept:7.2%} {seconds:8.4f} {faster:7.2f} "
                    f"{faster * kept:7.2f}",
                    flush=True,
                )


def batches():
    rng = np.random.default_rng(1)
    print(f"\n{'batches':36} {'seconds':>8} {'a loop':>8} {'faster':>7} {'one call':>8} {'faster':>7}")
    for B, n in ((10, 3000), (1000, 300), (10000, 50)):
        x, y = (rng.random((B, n, 3)).astype("float32") for _ in range(2))
        b, g = rng.random((B, n, 1)).astype("float32"), np.array([1.0], "float32")
        whole = int(np.sqrt(B) * n)
        one = [rng.random((whole, k)).astype("float32") for k in (3, 3, 1)]
        found = medians(
            {
                "batch": lambda x=x, y=y, b=b, g=g: GAUSSIAN(x, y, b, g),
                "loop": lambda x=x, y=y, b=b, g=g: [GAUSSIAN(*a, g) for a in zip(x, y, b, strict=True)],
                "one": lambda one=one, g=g: GAUSSIAN(*one, g),
            }
        )
        batch, loop, dense = found["batch"], found["loop"], found["one"]
        print(
            f"{f'{B} x ({n} x {n})':36} {batch:8.4f} {loop:8.4f} {loop / batch:7.2f} {dense:8.4f} {dense / batch:7.2f}",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=100_000)
    args = parser.parse_args()
    print(f"{platform.machine()}, NumPy {np.__version__}, {thread_count()} threads, {args.points:,} points")
    ranges(args.points)
    batches()


if __name__ == "__main__":
    main()
