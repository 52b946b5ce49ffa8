"""Arguments that are refused before a task exists, with their texts."""

import dask
import dask.array as da
import numpy as np
import pytest

from dred.cluster import graph, inputs
from dred.cluster.plan import Axis, Sizes
from dred.errors import InputError
from tests.cluster.problems import arrays_of, dask_of, spec_of


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sizes_by_hand(dtype):
    x, y, a, p = arrays_of(100, 80, dtype=dtype)
    lazy = da.from_array(x, chunks=(30, 2)), y, da.from_array(a, chunks=(50, 1)), p
    item = int(dtype[-2:]) // 8
    want = Sizes(
        x=Axis(100, 3 * item, 1, (30, 30, 30, 10)),
        y=Axis(80, 4 * item, 2, (50, 30)),
        parameters=1,
        parameter_bytes=item,
        state_row_bytes=3 * 8,
        out_row_bytes=3 * item,
        operations=3 + 3 + 3 + 3,  # x + y, Exp, the product and the sum; Square(p - a) does not depend on i
    )
    assert inputs.measure(spec_of(dtype=dtype), lazy) == want
    swapped = inputs.measure(spec_of(axis=0, dtype=dtype), lazy)
    assert (swapped.x, swapped.y) == (want.y, want.x)


def test_long_vectors_count_for_what_is_read():
    spec = spec_of("Exp(-SqDist(x, y))", ["x = Vi(50)", "y = Vj(50)"])
    assert inputs.operations(spec.formula) == 3 * 50 + 1 + 1 + 1  # difference, square, sum; minus, Exp; the sum over j


def refused(arrays, axis=1):
    with pytest.raises(InputError) as caught:
        graph.reduce(spec_of(axis=axis), arrays, "cpu")
    return str(caught.value)


@pytest.mark.parametrize("axis", [1, 0])
def test_unknown_chunk_sizes(axis):
    x, y, a, p = dask_of(arrays_of(100, 80), 30, 20)
    text = (
        "the chunk sizes of this dask array are unknown, its shape is {}. "
        "Call its compute_chunk_sizes() first: blocks are planned by their rows"
    )
    assert refused((x[x[:, 0] > 0], y, a, p), axis) == f"argument 0 (i): {text.format('(?, 3)')}"
    assert refused((x, y, a[a[:, 0] > 0], p), axis) == f"argument 2 (j): {text.format('(?, 1)')}"
    assert refused((x, y, a, p[p > 0]), axis) == f"argument 3 (parameter): {text.format('(?,)')}"


def test_the_cure_for_unknown_chunk_sizes():
    x, y, a, p = dask_of(arrays_of(100, 80), 30, 20)
    some = x[x[:, 0] > 0].compute_chunk_sizes()
    assert graph.reduce(spec_of(), (some, y, a, p), "cpu").chunks[0] == some.chunks[0]


def test_rows_that_disagree():
    x, y, a, p = dask_of(arrays_of(100, 80), 30, 20)
    text = "all variables of index j need the same number of rows: argument 1 has 80, argument 2 has 79"
    assert refused((x, y, a[:-1], p)) == text
    assert refused((x, y, np.zeros((79, 1)), p), axis=0) == text


def test_numpy_arrays_too_large_for_a_graph():
    x, y, a, p = arrays_of(100, 80)
    lazy = dask_of((x, y, a, p), 30, 20)
    text = (
        "argument 0 (i): a NumPy array of 2.4 kB beside dask arrays would travel inside the task graph, which is "
        "limited to 2.39 kB (dred.graph-bytes in dask's configuration). Store it where the workers can read it and "
        "pass e.g. dask.array.from_zarr(...), or make every argument a NumPy array"
    )
    with dask.config.set({"dred.graph-bytes": 2390}):
        assert refused((x, *lazy[1:])) == text
    with dask.config.set({"dred.graph-bytes": x.nbytes}):
        assert graph.reduce(spec_of(), (x, *lazy[1:]), "cpu").shape == (100, 3)
