"""Two million points by two hundred thousand, the sum and its gradient, on two processes; alone in its file, since it
takes all of two cores for some minutes."""

import dask.array as da
import numpy as np
import pytest

from dred import Genred
from tests.cluster.local import processes

M, N = 2_000_000, 200_000
CHUNKS = 20
FORMULA, ALIASES = "Inv(1 + Square(x - y))", ["x = Vi(1)", "y = Vj(1)"]
BOUND = 2e-6  # of the sum of what the terms are without their signs


@pytest.mark.slow
def test_two_million_by_two_hundred_thousand():
    rng = da.random.default_rng(0)
    x, y, e = (rng.random((rows, 1), chunks=(rows // CHUNKS, 1), dtype="float32") for rows in (M, N, M))
    total = Genred(FORMULA, ALIASES, axis=1)(x, y, backend="cpu")
    gradient = Genred(f"Grad({FORMULA}, y, e)", [*ALIASES, "e = Vi(1)"], axis=0)(x, y, e, backend="cpu")
    with processes(2, DRED_NUM_THREADS="1") as client:
        futures = client.compute([total, gradient, x, y, e])
        sums, gradients, *points = (future.result(timeout=3000) for future in futures)
    assert (sums.shape, gradients.shape, sums.dtype, gradients.dtype) == ((M, 1), (N, 1), np.float32, np.float32)

    x, y, e = (v[:, 0].astype("float64") for v in points)
    pick = np.random.default_rng(1)
    for i in pick.choice(M, 100, replace=False):
        terms = 1 / (1 + (x[i] - y) ** 2)
        assert abs(sums[i, 0] - terms.sum()) <= BOUND * terms.sum()
    for j in pick.choice(N, 50, replace=False):
        terms = 2 * (x - y[j]) * e / (1 + (x - y[j]) ** 2) ** 2
        assert abs(gradients[j, 0] - terms.sum()) <= BOUND * np.abs(terms).sum()

    for result, got, rows in ((total, sums, M // CHUNKS), (gradient, gradients, N // CHUNKS)):
        assert result[:rows].compute(scheduler="synchronous").tobytes() == got[:rows].tobytes()
