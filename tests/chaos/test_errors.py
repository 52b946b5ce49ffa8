"""One fold of many fails on a worker process: the error says which, and whatever else is computed is not touched."""

import pickle
import re

import pytest
from distributed import WorkerPlugin

from dred import FoldError
from dred.kernel import engine
from tests.chaos.problem import ROWS, Gate, calm, sum_and_gradient
from tests.cluster.local import processes

pytestmark = pytest.mark.slow
CAUSE = "ArithmeticError: only here"


class FailsAt(WorkerPlugin):
    """Lets a fold of the sum (axis 1) or of the gradient (axis 0) fail that begins at row `i0` and reads row `j`."""

    def __init__(self, axis, i0, j):
        self.name = "fails-at"
        self.axis, self.i0, self.j = axis, i0, j

    def setup(self, worker):
        self.fold = fold = engine.fold

        def sometimes(spec, *args, i0, j0, **more):
            columns = args[-1]
            if (spec.axis, i0) == (self.axis, self.i0) and j0 <= self.j < j0 + columns:
                raise ArithmeticError("only here")
            return fold(spec, *args, i0=i0, j0=j0, **more)

        engine.fold = sometimes

    def teardown(self, worker):
        engine.fold = self.fold


@pytest.fixture(scope="module")
def client():
    with processes(2) as client:
        yield client


@pytest.mark.parametrize("axis", [1, 0])
def test_one_fold_fails(client, tmp_path, axis):
    results = sum_and_gradient(Gate(tmp_path / "gate"), seed=axis)
    want = calm(results)
    failing, other = 1 - axis, axis  # positions in `results`
    block, rows = (2, 1000) if axis == 1 else (5, 500)
    client.register_plugin(FailsAt(axis, i0=block * rows, j=ROWS // 2))
    futures = client.compute(list(results))
    with pytest.raises(FoldError) as caught:
        futures[failing].result(timeout=300)
    error = pickle.loads(pickle.dumps(caught.value))
    assert type(error) is FoldError
    assert (error.i, error.cause, error.backend) == (block, CAUSE, "cpu")
    assert error.lane > 0
    text = str(error)
    assert text == str(caught.value)
    where = re.escape(
        f"{CAUSE}\n    while folding block i = {block}, lane {error.lane}, step {error.step} "
        f"(kept rows {block * rows}:{(block + 1) * rows}, reduced rows "
    )
    start, stop = map(int, re.match(rf"{where}(\d+):(\d+)\)\n", text).groups())
    assert start <= ROWS // 2 < stop
    assert text.endswith(f"\n    of {error.formula}\n    on backend 'cpu'")
    assert "Exp(Add(" in error.formula
    assert error.formula.endswith(f", axis={axis}")

    assert futures[other].result(timeout=300).tobytes() == want[other]
    rest = results[failing][: block * rows].compute()  # the blocks before it
    assert rest.tobytes() == want[failing][: rest.nbytes]
    client.unregister_worker_plugin("fails-at")
    client.cancel(futures)
    assert client.compute(results[failing]).result(timeout=300).tobytes() == want[failing]
