"""Arguments that are refused before a task exists, with their texts."""

import dask
import dask.array as da
import numpy as np
import pytest

from dred import Genred
from dred.cluster import inputs
from dred.cluster.sizes import Axis, Input, Sizes
from dred.errors import BackendError, DtypeError, InputError, OptionError
from dred.kernel import cuda
from dred.kernel.output import Output
from tests.cluster.problems import ALIASES, TEXT, arrays_of, dask_of, spec_of, summed


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sizes_by_hand(dtype):
    x, y, a, p = arrays_of(100, 80, dtype=dtype)
    lazy = da.from_array(x, chunks=(30, 2)), y, da.from_array(a, chunks=(50, 1)), p
    item = int(dtype[-2:]) // 8
    want = Sizes(
        x=Axis(100, (Input(3 * item, (30, 30, 30, 10), columns=2),), (30, 30, 30, 10)),
        y=Axis(80, (Input(3 * item), Input(item, (50, 30))), (50, 30)),
        parameters=(Input(item),),
        parameter_bytes=item,
        state_row_bytes=3 * 8,
        out_row_bytes=3 * item,
        operations=3 * (1 + 20 + 1),  # x + y, Exp, the product fused with the sum; Square(p - a) does not depend on i
    )
    assert inputs.measure(spec_of(dtype=dtype), lazy, Output.of("Sum")) == want
    swapped = inputs.measure(spec_of(axis=0, dtype=dtype), lazy, Output.of("Sum"))
    assert (swapped.x, swapped.y) == (want.y, want.x)


def test_long_vectors_count_for_what_is_read():
    spec = spec_of("Exp(-SqDist(x, y))", ["x = Vi(50)", "y = Vj(50)"])
    assert inputs.operations(spec) == 3 * 50 + 20 + 1  # difference, square, sum; Exp; the sum over j


def refused(*arrays, error=InputError, axis=1, dtype=None, **options):
    """The text with which a call, and the plan of a call, is refused."""
    with pytest.raises(error) as caught:
        Genred(TEXT, ALIASES, axis=axis, dtype=dtype)(*arrays, **options)
    assert type(caught.value) is error
    if not options:
        with pytest.raises(error) as planned:
            Genred(TEXT, ALIASES, axis=axis, dtype=dtype).plan(*arrays)
        assert str(planned.value) == str(caught.value)
    return str(caught.value)


@pytest.fixture
def lazy():
    return dask_of(arrays_of(100, 80), 30, 20)


@pytest.mark.parametrize("axis", [1, 0])
def test_unknown_chunk_sizes(lazy, axis):
    x, y, a, p = lazy
    text = "has unknown chunk sizes: call its compute_chunk_sizes() first"
    assert refused(x[x[:, 0] > 0], y, a, p, axis=axis) == f"argument 0 (x) {text}"
    assert refused(x, y, a[a[:, 0] > 0], p, axis=axis) == f"argument 2 (a) {text}"
    assert refused(x, y, a, p[p > 0], axis=axis) == f"argument 3 (p) {text}"


def test_the_cure_for_unknown_chunk_sizes(lazy):
    x, y, a, p = lazy
    some = x[x[:, 0] > 0].compute_chunk_sizes()
    assert Genred(TEXT, ALIASES, axis=1)(some, y, a, p, backend="cpu").chunks[0] == some.chunks[0]


@pytest.mark.parametrize("axis", [1, 0])
def test_rows_that_disagree(lazy, axis):
    x, y, a, p = lazy
    text = "all j-variables must have the same number of rows, N: argument 1 (y) has 80, argument 2 (a) has 79"
    assert refused(x, y, a[:-1], p, axis=axis) == text
    assert refused(x, y, np.zeros((79, 1)), p, axis=axis) == text


def test_types(lazy):
    x, y, a, p = lazy
    assert refused(x.astype(int), y, a, p, error=DtypeError) == (
        "argument 0 (x) has type int64: it is bfloat16, float16, float32 or float64, convert it with .astype"
    )
    both = "all arrays must have one type, got {}: convert them with .astype"
    assert refused(x.astype("float32"), y, a, p, error=DtypeError) == both.format(
        "argument 0 (x) float32, argument 3 (p) float64"
    )
    assert refused(x, y, a, np.zeros(1, "float32"), error=DtypeError) == both.format(
        "argument 3 (p) float32, argument 2 (a) float64"
    )
    assert refused(*lazy, error=DtypeError, dtype="float32") == (
        "the routine was made for dtype='float32', got arrays of type float64: convert them with .astype"
    )


def test_out_is_for_numpy_arrays(lazy):
    text = "out must be a NumPy array, and so must be all inputs"
    assert refused(*lazy, out=np.zeros((100, 3))) == text
    assert refused(*lazy, out=da.zeros((100, 3))) == text


@pytest.mark.parametrize("backend", ["auto", "cuda"])
def test_a_device_is_each_worker_s_own(lazy, backend):
    assert refused(*lazy, error=OptionError, device_id=0, backend=backend) == (
        "device_id=0: with dask arrays every worker uses its own device, leave it at -1"
    )


def test_cuda_without_a_gpu(lazy, monkeypatch):
    monkeypatch.setattr(cuda, "device_count", lambda: 0)
    assert refused(*lazy, error=BackendError, backend="cuda") == (
        "backend='cuda' needs an NVIDIA GPU, and none is usable in this process: check nvidia-smi and that CuPy is "
        "installed (in dred's folder: pip install '.[cuda13]' or '.[cuda12]'), or use backend='cpu'"
    )


def test_numpy_arrays_too_large_for_a_graph():
    x, y, a, p = arrays_of(100, 80)
    lazy = dask_of((x, y, a, p), 30, 20)
    text = (
        "argument 0 (Vi(0,3)): a NumPy array of 2.4 kB beside dask arrays would travel inside the task graph, which is "
        "limited to 2.39 kB (dred.graph-bytes in dask's configuration). Pass dred.from_array(...), which keeps it "
        "where the workers can read it"
    )
    with dask.config.set({"dred.graph-bytes": 2390}):
        assert refused(x, *lazy[1:]) == text
    with dask.config.set({"dred.graph-bytes": x.nbytes}):
        assert summed(spec_of(), (x, *lazy[1:]), "cpu").shape == (100, 3)
