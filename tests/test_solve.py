"""KernelSolve against dense NumPy: every kind of matrix, what goes wrong and how it is said, batches, ranges, dask."""

import pickle
import re
import warnings

import dask
import dask.array as da
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dred
from dred import Genred, KernelSolve, LazyTensor, SolveError, Vi, Vj
from dred.cluster import solver
from dred.errors import ArgumentError, DimensionError, DtypeError, InputError, OptionError
from dred.formula.language import read
from dred.formula.oracle import dense
from dred.ranges import Ranges
from tests.shim import fake_cupy, shim

ALIASES = ["x = Vi(2)", "y = Vj(2)", "w = Vi(1)", "v = Vj(1)", "p = Pm(2)", "A = Pm(4)", "b = Vj(2)"]
FORMULAS = {
    "uniform": "Exp(-SqDist(x, y)) * w * v * b",
    "diagonal": "Exp(-Square(x - y) * p) * Exp(-Sum(Square(x - y))) * b",
    "coupled": "Exp(-SqDist(x, y)) * MatVecMult(A, b)",
}
PRECONDITIONERS = {
    "none": {},
    "jacobi": {"preconditioner": "jacobi"},
    "cholesky": {"preconditioner": "cholesky", "rank": 12},
    "nystrom": {"preconditioner": "nystrom", "rank": 12, "seed": 1},
}
GAUSSIAN = ("Exp(-SqDist(x, y)) * b", ["x = Vi(2)", "y = Vj(2)", "b = Vj(1)"])


def problem(M=40, seed=0, dtype="float64"):
    """Arrays for the formulas: points apart enough for a matrix that is not too ill-conditioned."""
    rng = np.random.default_rng(seed)
    x, w = rng.normal(size=(M, 2)), 1 + rng.random((M, 1))
    arrays = [x, x, w, w, [0.5, 2.0], [2.0, 0.5, 0.5, 1.0], rng.normal(size=(M, 2))]
    return [np.asarray(a, dtype) for a in arrays]


def matrix(text, arrays, aliases=ALIASES, place=-1):
    """K as (M * D, M * D), by the reference, column by column."""
    node = read(text, aliases)
    b = np.asarray(arrays[place], "float64")
    M, D = b.shape
    place %= len(arrays)
    K = np.empty((M, D, M, D))
    for d in range(D):
        unit = np.zeros((M, D))
        unit[:, d] = 1
        values = dense(node, [unit if k == place else a for k, a in enumerate(arrays)])
        K[..., d] = np.broadcast_to(values, (M, M, D)).transpose(0, 2, 1)
    return K.reshape(M * D, M * D)


def solved(text, arrays, alpha, **more):
    b = np.asarray(arrays[-1], "float64")
    K = matrix(text, arrays, **more)
    return np.linalg.solve(K + alpha * np.eye(len(K)), b.ravel()).reshape(b.shape)


def routine(kind, axis=1):
    return KernelSolve(FORMULAS[kind], ALIASES, "b", axis=axis)


# -- values ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", PRECONDITIONERS)
@pytest.mark.parametrize("kind", FORMULAS)
def test_solutions(kind, how):
    arrays = problem()
    solve = routine(kind)
    assert solve.kind == kind
    a, info = solve(*arrays, alpha=0.1, eps=1e-12, return_info=True, **PRECONDITIONERS[how])
    np.testing.assert_allclose(a, solved(FORMULAS[kind], arrays, 0.1), rtol=1e-9, atol=1e-9)
    assert info.converged.all()
    assert info.residuals.shape == (info.iterations + 1, *info.residual.shape)
    assert info.residual.shape == (() if kind == "coupled" else (2,))
    rest = arrays[-1] - 0.1 * a - solve.routine(*arrays[:-1], a)
    scale = np.linalg.norm(arrays[-1], axis=None if kind == "coupled" else 0)
    np.testing.assert_allclose(info.residual, np.linalg.norm(rest, axis=None if kind == "coupled" else 0) / scale, 0.1)


def test_the_other_axis():
    x, y, b = problem()[0], problem()[1], problem()[-1]
    over_j = KernelSolve("Exp(-SqDist(x, y)) * b", ["x = Vi(2)", "y = Vj(2)", "b = Vj(2)"], "b", axis=1)
    over_i = KernelSolve("Exp(-SqDist(x, y)) * b", ["x = Vi(2)", "y = Vj(2)", "b = Vi(2)"], "b")
    for how in PRECONDITIONERS.values():
        want = over_j(x, y, b, alpha=0.1, eps=1e-10, **how)
        np.testing.assert_allclose(over_i(x, y, b, alpha=0.1, eps=1e-10, **how), want, rtol=1e-7, atol=1e-9)


@given(
    M=st.integers(1, 12), D=st.integers(1, 3), seed=st.integers(0, 2**32 - 1), alpha=st.sampled_from([1e-3, 0.5, 10.0])
)
def test_random_matrices(M, D, seed, alpha):
    """x y' of random rows, positive semidefinite of any rank."""
    rng = np.random.default_rng(seed)
    x, b = rng.normal(size=(M, 3)), rng.normal(size=(M, D))
    solve = KernelSolve("(x | y) * b", ["x = Vi(3)", "y = Vj(3)", f"b = Vj({D})"], "b", axis=1)
    a = solve(x, x, b, alpha=alpha, eps=1e-10)
    np.testing.assert_allclose(a, np.linalg.solve(x @ x.T + alpha * np.eye(M), b), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("place", ["b", 2, "Var(2,1,1)", "Vj(2, 1)"])
def test_how_the_variable_is_named(place):
    x, b = problem()[0], problem()[-1][:, :1]
    a = KernelSolve(*GAUSSIAN, place, axis=1)(x, x, b, alpha=1.0, eps=1e-10)
    np.testing.assert_allclose(a, np.linalg.solve(matrix(GAUSSIAN[0], [x, x, b], GAUSSIAN[1]) + np.eye(40), b), 1e-7)


def test_nothing_and_one_point():
    solve = KernelSolve(*GAUSSIAN, "b", axis=1)
    x, one = np.zeros((5, 2)), np.array([[3.0]])
    a, info = solve(x, x, np.zeros((5, 1)), return_info=True)
    assert (info.iterations, info.residual.tolist(), a.tolist()) == (0, [0.0], [[0.0]] * 5)
    for how in ({}, {"preconditioner": "cholesky", "rank": 1}, {"preconditioner": "nystrom", "rank": 1}):
        np.testing.assert_allclose(solve(x[:1], x[:1], one, alpha=0.5, **how), [[2.0]])


def test_columns_end_at_different_times():
    """An eigenvector takes one step, 0 none; neither moves after that, nor changes what others do."""
    x = problem(30)[0]
    K = np.exp(-((x[:, None] - x) ** 2).sum(-1))
    rng = np.random.default_rng(2)
    b = np.column_stack([np.linalg.eigh(K)[1][:, -1], np.zeros(30), rng.normal(size=30)])
    solve = KernelSolve("Exp(-SqDist(x, y)) * b", ["x = Vi(2)", "y = Vj(2)", "b = Vj(3)"], "b", axis=1)
    a, info = solve(x, x, b, alpha=0.1, eps=1e-10, return_info=True)
    ends = [int(np.argmax(past <= 1e-10)) for past in info.residuals.T]
    assert ends[:2] == [1, 0]
    assert ends[2] == info.iterations > 10
    assert (info.residuals[1:, 0] == info.residuals[1, 0]).all()
    alone = KernelSolve(*GAUSSIAN, "b", axis=1)
    for k in range(3):
        np.testing.assert_allclose(alone(x, x, b[:, k : k + 1], alpha=0.1, eps=1e-10)[:, 0], a[:, k], rtol=1e-9)


def test_scale_of_the_right_side_does_not_matter():
    """The tolerance is relative, column by column."""
    x, b = problem()[0], problem()[-1][:, :1]
    solve = KernelSolve(*GAUSSIAN, "b", axis=1)
    _, info = solve(x, x, b, alpha=0.1, return_info=True)
    for scale in (1e-30, 1e30):
        _, other = solve(x, x, scale * b, alpha=0.1, return_info=True)
        assert abs(other.iterations - info.iterations) <= 1


def test_float32():
    arrays = problem(dtype="float32")
    a, info = routine("uniform")(*arrays, alpha=1.0, return_info=True, eps=1e-5)
    assert a.dtype == "float32"
    assert (info.residual <= 1e-5).all()
    np.testing.assert_allclose(a, solved(FORMULAS["uniform"], arrays, 1.0), atol=1e-4)


def test_float32_beyond_its_accuracy():
    arrays = problem(200, dtype="float32")
    with pytest.raises(SolveError) as caught:
        routine("uniform")(*arrays, alpha=1e-2, eps=1e-9, maxiter=5000)
    assert "rounding of float32 allows no less" in str(caught.value)
    assert str(caught.value).endswith("Raise eps or alpha, or use float64.")
    assert (caught.value.info.residuals[-1] < 1e-9).all()  # of the recurrence
    assert (caught.value.info.residual > 1e-9).all()  # true ones
    assert (caught.value.info.residual < 1e-3).all()


def test_a_preconditioner_helps_where_the_matrix_is_ill_conditioned():
    x, b = problem(200)[0], problem(200)[-1][:, :1]
    solve = KernelSolve(*GAUSSIAN, "b", axis=1)
    counts = {}
    for how in ({}, {"preconditioner": "cholesky", "rank": 80}, {"preconditioner": "nystrom", "rank": 80}):
        a, info = solve(x, x, b, alpha=1e-3, return_info=True, **how)
        counts[how.get("preconditioner")] = info.iterations
        assert np.linalg.norm(b - 1e-3 * a - solve.routine(x, x, a)) <= 1e-6 * np.linalg.norm(b)
    assert counts["cholesky"] < counts[None] / 10
    assert counts["nystrom"] < counts[None] / 3


def test_the_diagonal_is_exact():
    """Of a diagonal matrix, Jacobi is the inverse, whose first step is the solution; row numbers are those of rows."""
    rng = np.random.default_rng(0)
    w, b = 1 + rng.random((20, 1)), rng.normal(size=(20, 2))
    text = "(IndexI() == IndexJ()) * w * (1 + IndexJ()) * b"
    solve = KernelSolve(text, ["w = Vi(1)", "b = Vj(2)"], "b", axis=1)
    a, info = solve(w, b, alpha=0.5, preconditioner="jacobi", eps=1e-14, return_info=True)
    assert info.iterations == 1
    np.testing.assert_allclose(a, b / (w * np.arange(1, 21)[:, None] + 0.5), rtol=1e-14)


def test_a_nystrom_of_full_rank_is_the_inverse():
    arrays = problem(12)
    for kind, rank in (("uniform", 12), ("diagonal", 12)):
        for name in ("nystrom", "cholesky"):
            _, info = routine(kind)(*arrays, alpha=0.1, preconditioner=name, rank=rank, return_info=True)
            assert info.iterations <= 2


def test_seeds():
    x, b = problem(60)[0], problem(60)[-1][:, :1]
    solve = KernelSolve(*GAUSSIAN, "b", axis=1)
    first, same, other = (solve(x, x, b, alpha=0.1, preconditioner="nystrom", rank=10, seed=seed) for seed in (0, 0, 1))
    assert first.tobytes() == same.tobytes()
    assert first.tobytes() != other.tobytes()


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def failure(solve, *args, **how):
    with pytest.raises(SolveError) as caught:
        solve(*args, **how)
    return caught.value


def test_indefinite():
    x, b = np.zeros((1, 2)), np.array([[2.0]])
    error = failure(KernelSolve("-Exp(-SqDist(x, y)) * b", GAUSSIAN[1], "b", axis=1), x, x, b, alpha=0.25)
    assert str(error) == (
        "conjugate gradients ended after 1 iterations. the matrix is not positive definite: p'Ap is -0.75 of p'p.\n"
        "    relative residuals 1, 1; of the solution 1, wanted eps=1e-06, with alpha=0.25\n"
        "Raise alpha beyond the size of the smallest eigenvalue, or use another kernel."
    )
    assert not error.info.converged.any()
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    np.testing.assert_array_equal(again.info.residuals, error.info.residuals)


def test_indefinite_after_some_iterations():
    arrays = problem()
    x, b = arrays[0], arrays[-1][:, :1]
    K = np.exp(-((x[:, None] - x) ** 2).sum(-1))
    assert np.linalg.eigvalsh(K - 0.5 * np.eye(40))[0] < -0.4
    solve = KernelSolve("(Exp(-SqDist(x, y)) - (IndexI() == IndexJ()) / 2) * b", GAUSSIAN[1], "b", axis=1)
    error = failure(solve, x, x, b, alpha=0)
    assert "the matrix is not positive definite: p'Ap is -0." in str(error)


def test_singular():
    """x x' has no inverse: a right side in its range is no matter, any other one is named."""
    x, rng = np.arange(1.0, 6.0)[:, None], np.random.default_rng(0)
    solve = KernelSolve("x * y * b", ["x = Vi(1)", "y = Vj(1)", "b = Vj(1)"], "b", axis=1)
    np.testing.assert_allclose(solve(x, x, 55 * x, alpha=0), x)
    error = failure(solve, x, x, rng.normal(size=(5, 1)), alpha=0)
    assert "the matrix is singular, as far as float64 can tell: p'Ap is " in str(error)
    assert str(error).endswith("Raise alpha, or use float64.")
    error = failure(solve, 0 * x, 0 * x, x, alpha=0)
    assert "p'Ap is 0 of p'p, while |Ap| came to 0 |p|" in str(error)


def test_the_limit():
    arrays = problem(100)
    error = failure(routine("uniform"), *arrays, alpha=1e-6, maxiter=3)
    assert str(error).startswith(
        "conjugate gradients ended after 3 iterations. 2 of 2 systems are not solved; the first, number (0,): "
        "the iterations came to their limit.\n    relative residuals 1, "
    )
    assert error.info.residuals.shape == (4, 2)
    assert error.solution.shape == (100, 2)


def test_no_symmetric_matrix_ends_too():
    rng = np.random.default_rng(0)
    x, y, b = rng.normal(size=(3, 30, 2))
    for name in PRECONDITIONERS.values():
        error = failure(KernelSolve(*GAUSSIAN, "b", axis=1), x, y, b[:, :1], alpha=0.1, maxiter=50, **name)
        assert isinstance(error, SolveError)


@pytest.mark.parametrize(("place", "value"), [(0, np.nan), (-1, np.nan), (-1, np.inf), (2, np.inf)])
def test_nan(place, value):
    arrays = problem()
    arrays[place] = arrays[place].copy()
    arrays[place][3, -1] = value
    error = failure(routine("uniform"), *arrays, alpha=0.1)
    assert "NaN or infinite numbers.\n" in str(error)
    assert error.info.iterations <= 1


def test_warnings_and_the_other_systems():
    arrays = problem()
    arrays[-1] = arrays[-1].copy()
    arrays[-1][3, 1] = np.nan
    with pytest.warns(RuntimeWarning, match=r"1 of 2 systems are not solved; the first, number \(1,\): NaN") as seen:
        a, info = routine("uniform")(*arrays, alpha=0.1, eps=1e-10, on_failure="warn", return_info=True)
    assert seen[0].filename == __file__
    assert info.converged.tolist() == [True, False]
    arrays[-1][:, 1] = 0
    np.testing.assert_allclose(a[:, 0], solved(FORMULAS["uniform"], arrays, 0.1)[:, 0], rtol=1e-7, atol=1e-9)


def test_a_diagonal_that_is_not_positive():
    x, b = problem()[0], problem()[-1][:, :1]
    solve = KernelSolve("(x | y) * b - 100 * (IndexI() == IndexJ()) * b", GAUSSIAN[1], "b", axis=1)
    error = failure(solve, x, x, b, alpha=0.1, preconditioner="jacobi")
    assert "the preconditioner is not positive definite" in str(error)
    assert error.info.iterations == 0


BAD = {
    "cat": (lambda: KernelSolve(*GAUSSIAN, "b"), OptionError, "KernelSolve with axis=0 sums over i and solves for a "
            "variable of i: b is Vj(2,1), declare it as Vi(1)"),
    "name": (lambda: KernelSolve(*GAUSSIAN, "c", axis=1), OptionError,
             "varinvalias='c': the formula has no such variable, but 'x', 'y', 'b', 0, 1, 2"),
    "written": (lambda: KernelSolve(*GAUSSIAN, "Vi(2,1)", axis=1), OptionError,
                "varinvalias='Vi(2,1)': the formula has no such variable, but 'x', 'y', 'b', 0, 1, 2"),
    "dimension": (lambda: KernelSolve("x * b", GAUSSIAN[1], "b", axis=1), DimensionError,
                  "the formula has dimension 2, b 1: they must be equal\n    x * b\n    ^^^^^"),
    "linear": (lambda: KernelSolve("(x | y) * Exp(b)", GAUSSIAN[1], "b", axis=1), ArgumentError,
               "the formula is not linear in b: Exp is not, of what depends on it\n"
               "    (x | y) * Exp(b)\n    ^^^^^^^^^^^^^^^^"),
    "without": (lambda: KernelSolve("(x | y)", GAUSSIAN[1], "b", axis=1), ArgumentError,
                "the formula does not depend on b\n    (x | y)\n    ^^^^^^^"),
    "several": (lambda: KernelSolve([("x", "Sum")], GAUSSIAN[1], "b", axis=1), ArgumentError,
                "KernelSolve takes one formula, a text, got list"),
    "opt_arg": (lambda: KernelSolve(*GAUSSIAN, "b", axis=1, opt_arg=3), OptionError,
                "opt_arg=3: the reduction Sum takes none, leave it out"),
    "fast": (lambda: KernelSolve(*GAUSSIAN, "b", axis=1, use_fast_math="no"), OptionError,
             "use_fast_math='no': it is True or False"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_systems_that_are_refused(name):
    make, kind, text = BAD[name]
    with pytest.raises(kind) as caught:
        make()
    assert str(caught.value) == text


CALLS = {
    "alpha": ({"alpha": -1}, "alpha=-1: it is 0 or positive, and finite"),
    "alpha text": ({"alpha": "a"}, "alpha='a': it is a number"),
    "eps": ({"eps": 0}, "eps=0: it is positive, and finite"),
    "maxiter": ({"maxiter": 0}, "maxiter=0: it is an integer of 1 or more"),
    "unknown": ({"preconditioner": "ilu"}, "preconditioner='ilu': it is None, 'jacobi', 'cholesky', 'nystrom'"),
    "rank": ({"preconditioner": "nystrom"}, "preconditioner='nystrom' needs rank=, the number of columns of the matrix "
             "that it is made of"),
    "no rank": ({"rank": 3}, "rank=3: preconditioner=None has none, leave it out"),
    "large rank": ({"preconditioner": "nystrom", "rank": 7}, "rank=7 is more than the 6 rows of the matrix"),
    "seed": ({"seed": -1}, "seed=-1: it is an integer of 0 or more"),
    "failure": ({"on_failure": "ignore"}, "on_failure='ignore': it is 'raise' or 'warn'"),
    "callback": ({"callback": 3}, "callback=3: it is called with an iteration and a residual"),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_options_that_are_refused(name):
    how, text = CALLS[name]
    x = np.zeros((6, 2))
    with pytest.raises(OptionError) as caught:
        KernelSolve(*GAUSSIAN, "b", axis=1)(x, x, x[:, :1], **how)
    assert str(caught.value) == text


def test_arrays_that_are_refused():
    solve, x = KernelSolve(*GAUSSIAN, "b", axis=1), np.zeros((6, 2))
    with pytest.raises(InputError) as caught:
        solve(x, x[:5], x[:5, :1])
    assert str(caught.value) == "the matrix must be square, but there are 6 rows for i and 5 for j"
    with pytest.raises(DtypeError) as caught:
        solve(*(a.astype("float16") for a in (x, x, x[:, :1])))
    assert str(caught.value) == "KernelSolve computes with float32 and float64, got arrays of type float16"
    numbers = KernelSolve("(IndexI() == IndexJ()) * b", ["b = Vj(1)", "x = Vi(1)"], "b", axis=1)
    with pytest.raises(OptionError) as caught:
        numbers(x[:, :1], x[:, :1], preconditioner="cholesky", rank=2)
    assert str(caught.value) == (
        "preconditioner='cholesky' takes columns of some rows, but the formula reads row numbers: use 'jacobi'"
    )


def test_what_is_said_on_the_way(capsys):
    arrays, seen = problem(), []
    _, info = routine("uniform")(
        *arrays, alpha=0.1, callback=lambda *told: seen.append(told), progress=True, return_info=True
    )
    assert [n for n, _ in seen] == [*range(1, info.iterations + 1)]
    np.testing.assert_array_equal([worst for _, worst in seen], info.residuals[1:].max(axis=1))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "dred: iteration 0, relative residual 1 of 1e-06"
    assert 5 <= len(lines) <= info.iterations
    assert all(re.fullmatch(r"dred: iteration \d+, relative residual \S+ of 1e-06", line) for line in lines)


# -- batches, ranges, dask, devices ------------------------------------------------------------------------------------


def batched(M=15):
    rng = np.random.default_rng(3)
    x, w = rng.normal(size=(3, 1, M, 2)), 1 + rng.random((M, 1))
    A = np.array([[2.0, 0.5, 0.5, 1.0], [1.0, 0.0, 0.0, 3.0]])
    return [x, x, w, w, np.array([0.5, 2.0]), A, rng.normal(size=(2, M, 2))]


TAILS = (2, 2, 2, 2, 1, 1, 2)


@pytest.mark.parametrize("how", PRECONDITIONERS)
@pytest.mark.parametrize("kind", FORMULAS)
def test_batches(kind, how):
    arrays = batched()
    a, info = routine(kind)(*arrays, alpha=0.1, eps=1e-11, return_info=True, **PRECONDITIONERS[how])
    assert a.shape == (3, 2, 15, 2)
    assert info.residual.shape == ((3, 2) if kind == "coupled" else (3, 2, 2))
    for place in np.ndindex(3, 2):
        mine = [np.broadcast_to(a, (3, 2, *a.shape[a.ndim - t :]))[place] for a, t in zip(arrays, TAILS, strict=True)]
        np.testing.assert_allclose(a[place], solved(FORMULAS[kind], mine, 0.1), rtol=1e-7, atol=1e-8)


def block_ranges(M, cut):
    """Two blocks on the diagonal."""
    blocks = np.array([[0, cut], [cut, M]])
    return (blocks, np.array([1, 2]), blocks, blocks, np.array([1, 2]), blocks)


SOME = [("uniform", "none"), ("uniform", "nystrom"), ("diagonal", "jacobi"), ("coupled", "cholesky")]
LAZY = [
    pytest.param(kind, how, marks=() if (kind, how) in SOME else pytest.mark.slow)
    for kind in FORMULAS
    for how in PRECONDITIONERS
]


@pytest.mark.parametrize(
    ("lazy", "kind", "how"),
    [*((False, kind, how) for kind in FORMULAS for how in PRECONDITIONERS), *((True, *some) for some in SOME[2:])],
)
def test_ranges(lazy, kind, how):
    arrays = problem(30)
    ranges = block_ranges(30, 13)
    given = [da.from_array(a, chunks=(8, -1)) if lazy and a.ndim == 2 else a for a in arrays]
    a = routine(kind)(*given, alpha=2.0, eps=1e-10, ranges=ranges, **PRECONDITIONERS[how])
    for rows in (slice(0, 13), slice(13, 30)):
        mine = [array[rows] if array.ndim == 2 else array for array in arrays]
        np.testing.assert_allclose(np.asarray(a)[rows], solved(FORMULAS[kind], mine, 2.0), rtol=1e-7, atol=1e-8)


def test_ranges_without_some_of_the_diagonal():
    """Rows that meet nothing are alpha a = b."""
    x, b = problem(10)[0], problem(10)[-1][:, :1]
    blocks = np.array([[2, 6]])
    ranges = Ranges.of((blocks, np.array([1]), blocks, blocks, np.array([1]), blocks), 10, 10)
    for how in ("none", "jacobi"):
        a = KernelSolve(*GAUSSIAN, "b", axis=1)(x, x, b, alpha=0.5, eps=1e-12, ranges=ranges, **PRECONDITIONERS[how])
        rest = [0, 1, 6, 7, 8, 9]
        np.testing.assert_allclose(a[rest], b[rest] / 0.5)
        np.testing.assert_allclose(
            a[2:6], solved(GAUSSIAN[0], [x[2:6], x[2:6], b[2:6]], 0.5, aliases=GAUSSIAN[1]), rtol=1e-9
        )


def lazily(arrays, chunks=((7, 11, 22), (16, 24))):
    """Dask arrays in odd chunks, those of i and of j different ones; columns of b in two."""
    rows = [chunks[0], chunks[1], chunks[0], chunks[1]]
    out = [da.from_array(a, chunks=(r, -1)) for a, r in zip(arrays[:4], rows, strict=True)]
    return [*out, *arrays[4:6], da.from_array(arrays[6], chunks=(9, 1))]


@pytest.mark.parametrize(("kind", "how"), LAZY)
def test_dask(kind, how):
    arrays, options = problem(), {"alpha": 3.0, "eps": 1e-8, **PRECONDITIONERS[how]}
    options |= {"rank": 3} if "rank" in options else {}
    a, info = routine(kind)(*lazily(arrays), return_info=True, **options)
    assert isinstance(a, da.Array)
    assert a.chunks == ((7, 11, 22), (2,))
    np.testing.assert_allclose(a.compute(), solved(FORMULAS[kind], arrays, 3.0), rtol=1e-6, atol=1e-6)
    assert info.converged.all()
    with dask.config.set(scheduler="sync"):
        again = routine(kind)(*lazily(arrays), **options)
        assert again.compute().tobytes() == a.compute().tobytes()


def test_dask_batches():
    arrays = batched(9)
    lazy = [da.from_array(a, chunks=(*(1,) * (a.ndim - t), 6, 2)[: a.ndim]) for a, t in zip(arrays, TAILS, strict=True)]
    lazy[4:6] = arrays[4:6]
    for how in ({}, {"preconditioner": "cholesky", "rank": 1}):
        a = routine("uniform")(*lazy, alpha=5.0, **how)
        want = routine("uniform")(*arrays, alpha=5.0, **how)
        assert a.chunks[0] == (1, 1, 1)
        np.testing.assert_allclose(a.compute(), want, rtol=1e-5, atol=1e-5)


def test_dask_failures():
    arrays = problem()
    error = failure(routine("uniform"), *lazily(arrays), alpha=1e-6, maxiter=2)
    assert "the iterations came to their limit" in str(error)
    assert isinstance(error.solution, da.Array)
    arrays[0][3, 1] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        error = failure(routine("uniform"), *lazily(arrays), alpha=0.1)
    assert "NaN or infinite numbers" in str(error)
    with pytest.raises(OptionError, match="device_id=0: with dask arrays every worker uses its own device"):
        routine("uniform")(*lazily(arrays), device_id=0, backend="cuda")


def test_one_time_to_wait_per_iteration(monkeypatch):
    """And inputs are read once."""
    waits, reads = [], []
    right = solver.computed
    monkeypatch.setattr(solver, "computed", lambda *arrays: waits.append(len(arrays)) or right(*arrays))

    def read_block(block):
        reads.append(1)
        return block

    arrays = problem()
    lazy = [a.map_blocks(read_block, meta=a._meta) if isinstance(a, da.Array) else a for a in lazily(arrays)]
    for how in ("none", "jacobi"):
        waits.clear()
        reads.clear()
        _, info = routine("uniform")(*lazy, alpha=1.0, return_info=True, **PRECONDITIONERS[how])
        assert info.iterations > 10
        assert len(waits) == info.iterations + 2 + (how == "jacobi")  # before the first, and the true residual
        assert len(reads) == sum(len(a.chunks[0]) * len(a.chunks[1]) for a in lazy if isinstance(a, da.Array))


def test_stored_arrays_are_read_where_they_are():
    arrays = problem()
    x, w = dred.from_array(arrays[0], chunks=9), dred.from_array(arrays[2], chunks=9)
    a = routine("uniform")(x, x, w, w, *arrays[4:], alpha=3.0, eps=1e-8)
    np.testing.assert_allclose(a.compute(), solved(FORMULAS["uniform"], arrays, 3.0), rtol=1e-6, atol=1e-6)


@pytest.mark.skipif(not shim.available(), reason="no C++ compiler")
@pytest.mark.parametrize(
    "how", ["none", "cholesky", *(pytest.param(n, marks=pytest.mark.slow) for n in ("jacobi", "nystrom"))]
)
def test_on_a_device(how):
    x, b = problem(30)[0], problem(30)[-1][:, :1]
    want = solved(GAUSSIAN[0], [x, x, b], 1.0, aliases=GAUSSIAN[1])
    solve = KernelSolve(*GAUSSIAN, "b", axis=1)
    with fake_cupy.installed(devices=1, memory=1 << 26):
        import cupy

        a, pullback = dred.vjp(solve, *map(cupy.asarray, (x, x, b)), alpha=1.0, eps=1e-10, **PRECONDITIONERS[how])
        assert isinstance(a, cupy.ndarray)
        np.testing.assert_allclose(a.get(), want, rtol=1e-7, atol=1e-8)
        if how == "none":
            assert all(isinstance(g, cupy.ndarray) for g in pullback(a))


@pytest.mark.gpu
@pytest.mark.parametrize("how", PRECONDITIONERS)
@pytest.mark.parametrize("kind", FORMULAS)
def test_on_a_gpu(kind, how):
    import cupy

    arrays = problem()
    for given_ in (arrays, [cupy.asarray(a) for a in arrays]):
        a = routine(kind)(*given_, alpha=0.1, eps=1e-10, backend="cuda", **PRECONDITIONERS[how])
        found = a if isinstance(a, np.ndarray) else a.get()
        np.testing.assert_allclose(found, solved(FORMULAS[kind], arrays, 0.1), rtol=1e-7, atol=1e-7)


# -- gradients ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "lazy"), [*((kind, False) for kind in FORMULAS), pytest.param("coupled", True, marks=pytest.mark.slow)]
)
def test_gradients(kind, lazy):
    """By every variable and by alpha, beside finite differences of the dense solution."""
    arrays, alpha, rng = problem(9), 0.3, np.random.default_rng(5)
    e = rng.normal(size=(9, 2))
    given_ = [da.from_array(a, chunks=(4, -1)) if lazy and a.ndim == 2 else a for a in arrays]
    value, pullback = dred.vjp(routine(kind), *given_, alpha=alpha, eps=1e-13, maxiter=500)
    np.testing.assert_allclose(np.asarray(value), solved(FORMULAS[kind], arrays, alpha), rtol=1e-9, atol=1e-9)
    gradients = pullback(da.from_array(e, chunks=(5, 2)) if lazy else e)
    assert len(gradients) == 8
    for k, gradient in enumerate(gradients):
        base = [*arrays, np.array(alpha)]
        assert gradient.shape == base[k].shape
        direction = rng.normal(size=base[k].shape)
        ends = []
        for h in (1e-5, -1e-5):
            moved = [b + h * direction if n == k else b for n, b in enumerate(base)]
            ends.append((solved(FORMULAS[kind], moved[:-1], float(moved[-1])) * e).sum())
        want = (ends[0] - ends[1]) / 2e-5
        np.testing.assert_allclose((np.asarray(gradient) * direction).sum(), want, rtol=1e-6, atol=1e-7)


def test_gradients_of_batches_and_ranges():
    arrays, e = batched(8), np.random.default_rng(6).normal(size=(3, 2, 8, 2))
    solve, how = routine("coupled"), {"alpha": 0.2, "eps": 1e-12, "ranges": block_ranges(8, 3)}
    _, pullback = dred.vjp(solve, *arrays, **how)
    for k, gradient in enumerate(pullback(e)[:-1]):
        assert gradient.shape == arrays[k].shape
        direction = np.random.default_rng(k).normal(size=arrays[k].shape)
        ends = []
        for h in (1e-5, -1e-5):
            moved = [a + h * direction if n == k else a for n, a in enumerate(arrays)]
            ends.append((dense_batch(moved, 0.2) * e).sum())
        np.testing.assert_allclose((gradient * direction).sum(), (ends[0] - ends[1]) / 2e-5, rtol=1e-5, atol=1e-6)


def dense_batch(arrays, alpha):
    """The dense solutions of a batch with the ranges above."""
    out = np.empty((3, 2, 8, 2))
    for place in np.ndindex(3, 2):
        mine = [np.broadcast_to(a, (3, 2, *a.shape[a.ndim - t :]))[place] for a, t in zip(arrays, TAILS, strict=True)]
        for rows in (slice(0, 3), slice(3, 8)):
            part = [a[rows] if a.ndim == 2 else a for a in mine]
            out[(*place, rows)] = solved(FORMULAS["coupled"], part, alpha)
    return out


def test_cotangents_that_do_not_fit():
    arrays = problem(9)
    _, pullback = dred.vjp(routine("uniform"), *arrays, alpha=0.3)
    with pytest.raises(InputError) as caught:
        pullback(np.ones((9, 1)))
    assert str(caught.value) == "the cotangent has shape (9, 1): expected (9, 2), as the solution"
    with pytest.raises(OptionError) as caught:
        dred.vjp(Genred(*GAUSSIAN, axis=1), *arrays[:2], arrays[-1][:, :1], alpha=0.3)
    assert str(caught.value) == "alpha is an option of KernelSolve, not of the derivative of a reduction"


# -- of LazyTensors ----------------------------------------------------------------------------------------------------


def test_lazy_tensors():
    x, b = problem()[0], problem()[-1][:, :1]
    K = (-Vi(x).sqdist(Vj(x))).exp()
    want = solved(GAUSSIAN[0], [x, x, b], 0.5, aliases=GAUSSIAN[1])
    how = {"alpha": 0.5, "eps": 1e-11}
    np.testing.assert_allclose(K.solve(b, **how), want, rtol=1e-9)
    np.testing.assert_allclose(K.solve(b[:, 0], **how), want[:, 0], rtol=1e-9)
    np.testing.assert_allclose(K.T.solve(b, axis=0, call=False, **how)(), want, rtol=1e-9)
    v = LazyTensor((0, 1, 1))
    np.testing.assert_allclose((K * v).solve(b, v, **how), want, rtol=1e-9)
    a, info = K.solve(da.from_array(b, chunks=13), return_info=True, **how)
    np.testing.assert_allclose(a.compute(), want, rtol=1e-7)
    assert info.converged.all()


def test_batches_of_lazy_tensors():
    rng = np.random.default_rng(0)
    x, b = rng.normal(size=(3, 12, 2)), rng.normal(size=(12, 2))
    K = (-LazyTensor(x[:, :, None]).sqdist(LazyTensor(x[:, None]))).exp()
    a = K.solve(b, alpha=0.5, eps=1e-11)
    for k in range(3):
        matrix_k = np.exp(-((x[k][:, None] - x[k]) ** 2).sum(-1)) + 0.5 * np.eye(12)
        np.testing.assert_allclose(a[k], np.linalg.solve(matrix_k, b), rtol=1e-8)


def test_a_lazy_tensor_that_holds_the_right_side():
    """As a weight of columns: it stays what it is."""
    b = 1 + problem()[-1][:, :1] ** 2
    a = (Vi(b) * Vj(b)).solve(b, alpha=1.0, eps=1e-10)
    np.testing.assert_allclose(a, np.linalg.solve(b @ b.T + np.eye(40), b), rtol=1e-7)


def test_right_sides_with_batches_of_their_own():
    rng = np.random.default_rng(3)
    x, b = rng.normal(size=(3, 1, 20, 2)), rng.normal(size=(2, 20, 4))
    K = (-(LazyTensor(x[..., None, :]) - LazyTensor(x[..., None, :, :])).square().sum(-1)).exp()
    a = K.solve(b, alpha=0.5, eps=1e-11)
    want = np.linalg.solve(np.asarray(K) + 0.5 * np.eye(20), np.broadcast_to(b, (3, 2, 20, 4)))
    np.testing.assert_allclose(a, want, rtol=1e-8, atol=1e-9)


def test_lazy_tensors_that_are_refused():
    x = problem()[0]
    K, v = (-Vi(x).sqdist(Vj(x))).exp(), LazyTensor((0, 1, 1))
    with pytest.raises(InputError) as caught:
        K.solve("b")
    assert str(caught.value) == "the right side of solve is an array (..., M, D) or (M,), got builtins.str"
    with pytest.raises(InputError) as caught:
        (K * v).solve(x)
    assert str(caught.value) == "solve needs an array for each variable, but the one that it is solved for"
    with pytest.raises(InputError) as caught:
        K.solve(x, v)
    assert str(caught.value) == "solve needs a formula that depends on the variable it is solved for"
    with pytest.raises(ArgumentError, match="the formula is not linear in"):
        (K * v.exp()).solve(x[:, :1], v)
    with pytest.raises(AttributeError, match="a ComplexLazyTensor has no solve"):
        (1j * K).solve(x)
