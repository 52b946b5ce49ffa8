"""Real data against scikit-learn and SciPy: the 1797 handwritten digits of 64 pixels that scikit-learn brings."""

import dask.array as da
import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.special import logsumexp, softmax
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from dred import Genred

ALIASES = ["x = Vi(64)", "y = Vj(64)"]
BLOCKS = [None, (700, 500), (97, 1797), (1797, 64)]  # chunks of i and of j; None: NumPy


@pytest.fixture(scope="module")
def digits():
    """Pixels are 0 ... 16: squared distances are whole numbers, exact in both types."""
    return load_digits().data


@pytest.fixture(scope="module")
def distances(digits):
    return cdist(digits, digits, "sqeuclidean")


def call(routine, digits, blocks, dtype="float64", **options):
    x, y = digits.astype(dtype), digits.astype(dtype)
    if blocks is None:
        return routine(x, y, **options)
    result = routine(da.from_array(x, (blocks[0], 64)), da.from_array(y, (blocks[1], 64)), **options)
    if isinstance(result, tuple):
        return da.compute(*result, scheduler="threads")
    return result.compute(scheduler="threads")


def chunked(rows):
    return pytest.mark.parametrize("blocks", rows, ids=str)


@chunked([None, (700, 500)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("K", [1, 10, 300])
def test_neighbours_are_those_of_scikit_learn(digits, distances, K, dtype, blocks):
    routine = Genred("SqDist(x, y)", ALIASES, "KMin_ArgKMin", axis=1, opt_arg=K)
    values, indices = call(routine, digits, blocks, dtype)
    theirs, places = (
        NearestNeighbors(n_neighbors=K, algorithm="brute", metric="sqeuclidean").fit(digits).kneighbors(digits)
    )
    np.testing.assert_array_equal(values, np.rint(theirs))
    # ties are in any order there, and lowest first here
    np.testing.assert_array_equal(indices, np.argsort(distances, axis=1, kind="stable")[:, :K])
    distinct = np.diff(np.sort(distances, axis=1)[:, : K + 1], axis=1).all(1)
    assert K > 10 or distinct.sum() > 100
    np.testing.assert_array_equal(indices[distinct], places[distinct])


def test_a_classifier_of_neighbours(digits):
    labels = load_digits().target
    nearest = Genred("SqDist(x, y)", ALIASES, "ArgKMin", axis=1, opt_arg=5)(digits[1000:], digits[:1000])
    votes = np.array([np.bincount(labels[row], minlength=10).argmax() for row in nearest])
    peer = KNeighborsClassifier(5, algorithm="brute").fit(digits[:1000], labels[:1000])
    assert (votes == peer.predict(digits[1000:])).mean() > 0.995  # but for ties
    assert (votes == labels[1000:]).mean() > 0.95


@chunked(BLOCKS[:2])
@pytest.mark.parametrize("axis", [0, 1])
def test_log_sum_exp_is_that_of_scipy(digits, distances, axis, blocks):
    found = call(Genred("-SqDist(x, y) / 100", ALIASES, "LogSumExp", axis=axis), digits, blocks)
    np.testing.assert_allclose(found[:, 0], logsumexp(-distances / 100, axis=axis), rtol=1e-13, atol=1e-14)


@chunked(BLOCKS[:2])
def test_soft_maximum_is_that_of_scipy(digits, distances, blocks):
    routine = Genred("-SqDist(x, y) / 100", ALIASES, "SumSoftMaxWeight", axis=1, formula2="y")
    np.testing.assert_allclose(
        call(routine, digits, blocks), softmax(-distances / 100, axis=1) @ digits, rtol=1e-11, atol=1e-12
    )


@chunked(BLOCKS)
@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("Sum", lambda d: d.sum(1)),
        ("Min", lambda d: d.min(1)),
        ("Max", lambda d: d.max(1)),
        ("ArgMin", lambda d: d.argmin(1)),
        ("ArgMax", lambda d: d.argmax(1)),
        ("Count", lambda d: (d != 0).sum(1)),
    ],
)
def test_whole_numbers_are_bitwise_numpy(digits, distances, name, reference, blocks):
    found = call(Genred("SqDist(x, y)", ALIASES, name, axis=1), digits, blocks)
    np.testing.assert_array_equal(found[:, 0], reference(distances))


def test_moments_and_histograms(digits, distances):
    edges = np.linspace(0, 5000, 21)
    mean, variance, counts = Genred(
        [("SqDist(x, y)", "Mean"), ("SqDist(x, y)", "Variance", 1), ("SqDist(x, y)", "Histogram", edges)],
        ALIASES,
        axis=1,
    )(digits, digits)
    np.testing.assert_allclose(mean[:, 0], distances.mean(1), rtol=1e-14)
    np.testing.assert_allclose(variance[:, 0], distances.var(1, ddof=1), rtol=1e-13)
    np.testing.assert_array_equal(counts, [np.histogram(row, edges)[0] for row in distances])


def test_these_comparisons_can_fail(digits, distances):
    wrong = Genred("SqDist(x, y) + (SqNorm2(y) < 3000)", ALIASES, "Max", axis=1)
    with pytest.raises(AssertionError):
        np.testing.assert_array_equal(call(wrong, digits, None)[:, 0], distances.max(1))
