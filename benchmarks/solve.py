"""Seconds of a linear solve with a Gaussian kernel: KernelSolve beside SciPy's and scikit-learn's on the stored matrix.

    python benchmarks/solve.py [rounds]

The same system in one run, median of interleaved rounds: dred by conjugate gradients, plain and preconditioned;
`scipy.sparse.linalg.cg` on the matrix in memory (by BLAS), with and without the time to make it; the Cholesky
decomposition of `sklearn.kernel_ridge.KernelRidge`. All on the threads that the environment allows. Every solution is
held against the residual that was asked for.
"""

import os
import platform
import statistics
import sys
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy loads its BLAS: all rivals have one thread
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import scipy
import sklearn
from scipy.sparse.linalg import cg
from scipy.spatial.distance import cdist
from sklearn.kernel_ridge import KernelRidge

from dred import KernelSolve
from dred.kernel import machine

G, ALPHA, EPS, RANK = 4.0, 1e-2, 1e-6, 100
SIZES = (1000, 2000, 4000)


def rivals(x, b):
    """Functions that give a solution, by name."""
    solve = KernelSolve("Exp(-g*SqDist(x,y))*b", ["x = Vi(3)", "y = Vj(3)", "g = Pm(1)", "b = Vj(1)"], "b", axis=1)
    g, counts = np.array([G], x.dtype), {}

    def dred(name, **how):
        def run():
            a, info = solve(x, x, g, b, alpha=ALPHA, eps=EPS, return_info=True, **how)
            counts[name] = info.iterations
            return a

        return run

    def matrix():
        K = np.exp(-G * cdist(x, x, "sqeuclidean"))
        K[np.diag_indices(len(K))] += ALPHA
        return K

    K = matrix()

    def scipy_cg(K):
        count = [0]
        a, status = cg(K, b[:, 0], rtol=EPS, atol=0, callback=lambda _: count.__setitem__(0, count[0] + 1))
        assert status == 0
        counts["cg, matrix there"] = counts["cg, matrix made"] = count[0]
        return a[:, None]

    return (
        {
            "dred": dred("dred"),
            "dred, jacobi": dred("dred, jacobi", preconditioner="jacobi"),
            "dred, cholesky": dred("dred, cholesky", preconditioner="cholesky", rank=RANK),
            "dred, nystrom": dred("dred, nystrom", preconditioner="nystrom", rank=RANK),
            "cg, matrix there": lambda: scipy_cg(K),
            "cg, matrix made": lambda: scipy_cg(matrix()),
            "KernelRidge": lambda: KernelRidge(kernel="rbf", gamma=G, alpha=ALPHA).fit(x, b).dual_coef_,
        },
        counts,
        K,
    )


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    print(
        f"{machine.processor()} ({' '.join(machine.simd())}), {os.cpu_count()} CPUs, Python {platform.python_version()}"
    )
    print(f"NumPy {np.__version__}, SciPy {scipy.__version__}, scikit-learn {sklearn.__version__}, threads: "
          f"{os.environ['OMP_NUM_THREADS']}")  # fmt: skip
    print(f"Gaussian kernel, D = 3, g = {G}, alpha = {ALPHA}, relative residual {EPS}, rank {RANK}, float64")
    print(f"{'points':>8s}  {'':18s} {'s':>9s} {'iterations':>11s} {'GB of matrix':>13s} {'x cg':>6s} {'x Ridge':>8s}")
    for M in SIZES:
        rng = np.random.default_rng(0)
        x, b = rng.random((M, 3)), rng.normal(size=(M, 1))
        runs, counts, K = rivals(x, b)
        times = {name: [] for name in runs}
        for _ in range(rounds):
            for name, run in runs.items():
                start = time.perf_counter()
                a = run()
                times[name].append(time.perf_counter() - start)
                assert np.linalg.norm(K @ a - b) <= 1.1 * EPS * np.linalg.norm(b), name
        medians = {name: statistics.median(each) for name, each in times.items()}
        for name, seconds in medians.items():
            stored = 0.0 if name.startswith("dred") else 8 * M * M / 1e9
            print(
                f"{M:8,d}  {name:18s} {seconds:9.3f} {counts.get(name, 0) or '-':>11} {stored:13.2f} "
                f"{medians['cg, matrix made'] / seconds:6.2f} {medians['KernelRidge'] / seconds:8.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
