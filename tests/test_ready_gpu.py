"""Calls of CuPy arrays that a routine remembers, by the CuPy without a GPU: bytes, errors, what they ask of it."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest

from dred import Genred
from dred.errors import BackendError, DeviceMemoryError, InputError
from dred.kernel import cuda, cuda_launch, cuda_ready
from dred.kernel.cuda_source import rendered
from dred.ready import MOST
from dred.reductions import NONE
from tests.shim import fake_cupy, shim

pytestmark = pytest.mark.skipif(not shim.available(), reason="no C++ compiler")

TEXT, ALIASES = "Exp(-g*SqDist(x,y))*b", ["x = Vi(3)", "y = Vj(3)", "b = Vj(1)", "g = Pm(1)"]
EDGES = [0, 0.2, 0.3, 0.8]
# options, and of a call that is remembered: launches, new arrays
DIRECT = {
    "Sum": ({}, 2, 2),
    "float32 sum": ({"dtype_acc": "float32"}, 2, 2),
    "Kahan": ({"sum_scheme": "kahan_scheme"}, 2, 4),
    "vectors": ({"formula": "Exp(-g*SqDist(x,y))*(x-y)"}, 2, 2),
    "long": ({"formula": "TensorProd(x, TensorProd(y, x-y))"}, 2, 2),
    "Max": ({"reduction_op": "Max"}, 2, 2),
    "Min_ArgMin": ({"reduction_op": "Min_ArgMin"}, 2, 4),
    "ArgMax": ({"reduction_op": "ArgMax"}, 2, 4),
    "KMax": ({"formula": "x - y", "reduction_op": "KMax", "opt_arg": 3}, 2, 5),
    "ArgKMin": ({"reduction_op": "ArgKMin", "opt_arg": 3}, 2, 5),
    "KMin_ArgKMin": ({"formula": "x - y", "reduction_op": "KMin_ArgKMin", "opt_arg": 3}, 2, 6),
    "Count": ({"reduction_op": "Count"}, 2, 2),
    "Histogram": ({"reduction_op": "Histogram", "opt_arg": EDGES}, 2, 2),
    "several": ({"formula": [(TEXT, "Sum"), ("x - y", "ArgMax"), (TEXT, "Count")]}, 2, 8),
}  # fmt: skip
READ = {  # what is read off the state by CuPy: options, and launches
    "Mean": ({"reduction_op": "Mean"}, 2),
    "LogSumExp": ({"reduction_op": "LogSumExp"}, 2),
    "SoftMax": ({"reduction_op": "SumSoftMaxWeight", "formula2": "y"}, 3),
    "Max_SumShiftExp": ({"reduction_op": "Max_SumShiftExp"}, 2),
    "Any": ({"reduction_op": "Any"}, 2),
    "twice": ({"formula": [(TEXT, "Sum"), (TEXT, "Sum")]}, 2),
    "mixed": ({"formula": [(TEXT, "Sum"), (TEXT, "Mean")]}, 2),
}
OPTIONS = {name: options for table in (DIRECT, READ) for name, (options, *_) in table.items()}


@pytest.fixture
def fake():
    with fake_cupy.installed(devices=2, memory=1 << 26) as found:
        yield found


@pytest.fixture
def cupy(fake):
    import cupy

    return cupy


def made(name="Sum", axis=1):
    return Genred(**{"formula": TEXT, "aliases": ALIASES, "axis": axis} | OPTIONS[name])


def host(M=40, N=1030, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    return [rng.random(shape).astype(dtype) for shape in ((M, 3), (N, 3), (N, 1), (1,))]


def given(*args, **more):
    import cupy

    return [cupy.asarray(a) for a in host(*args, **more)]


def bytes_of(result):
    several = result if isinstance(result, tuple) else (result,)
    return [(a.tobytes(), a.shape, a.dtype, a.flags.c_contiguous) for a in several]


def generally(routine, arrays, **more):
    """By folds, without anything that is recorded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "prepared", lambda *_: None)
        return copy.deepcopy(routine)(*arrays, **more)


def finish(fake):
    for stream in fake.streams[0]:
        stream.drain()


def asked(fake, call):
    """What a call asks of CuPy: functions launched, copies, operations, events, arrays."""
    finish(fake)
    fake.launches, fake.copies, fake.done, fake.allocated, fake.waits = [], [], [], 0, 0
    call()
    counts = fake.allocated, fake.waits
    finish(fake)
    done = [kind for kind in fake.done if kind not in ("kernel", "free")]
    return [name.removeprefix("dred_") for _, _, name, *_ in fake.launches], fake.copies, done, *counts


@pytest.fixture
def only_remembered(monkeypatch):
    """From its call on, calls that are not remembered fail."""

    def explode(*_):
        raise AssertionError("this call is not remembered")

    return lambda: monkeypatch.setattr("dred.routine.check", explode)


# -- the same ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("name", OPTIONS)
def test_the_bytes_are_those_of_a_fold(name, dtype, fake):
    if (name, dtype) == ("float32 sum", "float64"):
        return
    routine = made(name, axis=len(name) % 2)
    for M, N in ((40, 1030), (1, 1), (1030, 40)):
        arrays = given(M, N, dtype)
        want = bytes_of(generally(routine, arrays))
        assert [bytes_of(routine(*arrays)) for _ in range(3)] == [want] * 3
        other = given(M, N, dtype, seed=1)
        assert bytes_of(routine(*other)) == bytes_of(generally(routine, other))
        assert bytes_of(routine(*host(M, N, dtype), backend="cuda")) == [
            (data, shape, kind, True) for data, shape, kind, _ in want
        ]
    assert len(routine._ready) == 3


def test_nan_and_infinity(fake, cupy):
    for name in ("Sum", "Max", "ArgMax", "Min_ArgMin", "ArgKMin", "Count"):
        arrays = host()
        arrays[2][::2], arrays[2][1::4], arrays[0][3] = np.nan, np.inf, np.nan
        arrays = list(map(cupy.asarray, arrays))
        routine = made(name)
        assert bytes_of(routine(*arrays)) == bytes_of(generally(routine, arrays))


@pytest.mark.parametrize(("name", "launches", "new"), [(name, *row[1:]) for name, row in DIRECT.items()])
def test_what_is_asked_of_cupy(name, launches, new, fake):
    routine, arrays = made(name), given()
    routine(*arrays)
    names, copies, done, allocated, waits = asked(fake, lambda: routine(*arrays, backend="cuda"))
    assert (names, copies, done, allocated, waits) == (["fold", "merge", "heads"][:launches], [], [], new, 0)


@pytest.mark.parametrize(("name", "launches"), [(name, row[1]) for name, row in READ.items()])
def test_what_is_read_off_a_state(name, launches, fake):
    routine, arrays = made(name), given()
    routine(*arrays)
    names, copies, done, _, waits = asked(fake, lambda: routine(*arrays))
    assert (names, copies, waits) == (["fold", "merge", "heads"][:launches], [], 0)
    assert set(done) == {"compute"}


def test_records_that_go_through_memory(fake, cupy):
    """Four launches, and memory for the records."""
    routine = Genred("SqDist(x, y)", ["x = Vi(2000)", "y = Vj(2000)"], axis=1)
    rng = np.random.default_rng(0)
    arrays = [cupy.asarray(rng.random((n, 2000), "float32")) for n in (5, 7)]
    assert bytes_of(routine(*arrays)) == bytes_of(routine(*arrays)) == bytes_of(generally(routine, arrays))
    names, copies, done, *_ = asked(fake, lambda: routine(*arrays))
    assert names[-2:] == ["fold", "merge"]
    assert copies == done == []


# -- what a call must not share ----------------------------------------------------------------------------------------


def test_calls_that_wait_together(fake, cupy):
    """Nothing is done before the end: no call may write where another one has its own."""
    routine, sets = made("KMin_ArgKMin"), [given(seed=seed) for seed in range(4)]
    want = [bytes_of(generally(routine, arrays)) for arrays in sets]
    routine(*sets[0])
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(2)]
    for first in range(2):  # tables that others have written are not waited for
        found = []
        for k, arrays in enumerate(sets):
            with streams[(k + first) % 2]:
                found.append(routine(*arrays))
        for k in (3, 1, 2, 0):
            with streams[(k + first) % 2]:
                assert bytes_of(found[k]) == want[k]
    assert len(routine._ready) == 3


def test_threads(fake):
    routine, sets = made(), [given(seed=seed) for seed in range(8)]
    want = [bytes_of(generally(routine, arrays)) for arrays in sets]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda arrays: bytes_of(routine(*arrays)), sets * 4)) == want * 4


def test_results_are_new_arrays(fake):
    routine, arrays = made(), given()
    first = routine(*arrays)
    kept = first.get()
    second = routine(*given(seed=1))
    assert second.data.ptr != first.data.ptr
    assert (first.get() == kept).all()


def test_the_device_is_that_of_the_arrays(fake, cupy):
    routine, arrays = made(), given()
    with cupy.cuda.Device(1):
        there = given()
        want = bytes_of(routine(*there))
        assert bytes_of(routine(*there)) == want
    assert bytes_of(routine(*arrays)) == want
    assert len(routine._ready) == 2
    for device_id in (1, 1):  # not the current one
        got = routine(*there, device_id=device_id)
        assert got.device.id == 1
    assert bytes_of(routine(*arrays, device_id=0)) == want
    assert len(routine._ready) == 2


# -- calls that are not remembered -------------------------------------------------------------------------------------


def test_other_calls_are_looked_at(fake, cupy, only_remembered):
    routine, arrays = made(), given()
    want = bytes_of(routine(*arrays))
    x, y, b, _ = arrays
    odd = [cupy.asarray(np.repeat(host()[0], 2, axis=1))[:, ::2], *arrays[1:]]
    assert bytes_of(routine(*odd)) == want
    assert len(routine._ready) == 1
    only_remembered()
    for backend in ("auto", "cuda", "GPU_2D"):
        assert bytes_of(routine(*arrays, backend=backend)) == want
    for wrong in (given(41), given(dtype="float64"), arrays[:3], odd, [x, y, b, host()[3]], []):
        with pytest.raises(AssertionError, match="not remembered"):
            routine(*wrong)
    for more in ({"device_id": 1}, {"backend": "cpu"}, {"ranges": None, "out": x}):
        with pytest.raises(AssertionError, match="not remembered"):
            routine(*arrays, **more)


def test_errors_are_those_of_calls_that_are_not(fake, cupy):
    routine, arrays = made(), given()
    routine(*arrays)
    with pytest.raises(InputError, match="backend='cpu' cannot take CuPy arrays"):
        routine(*arrays, backend="cpu")
    with pytest.raises(BackendError, match="the arrays are on device 0, device_id=1: move them there"):
        routine(*arrays, device_id=1)
    with pytest.raises(BackendError, match="device_id=2 is out of range"):
        routine(*arrays, device_id=2)
    with cupy.cuda.Device(1), pytest.raises(BackendError, match="on device 0, the current device is 1"):
        routine(*arrays)
    with pytest.raises(InputError, match="got 3"):
        routine(*arrays[:3])


def test_batches_gradients_and_no_rows(fake, cupy):
    routine, arrays = made(), given()
    x, y, b, g = arrays
    batch = routine(x.reshape(1, 40, 3), y, b, g)
    assert not routine._ready
    assert bytes_of(routine(*arrays))[0][0] == batch.tobytes()
    assert routine(*given(0)).shape == (0, 1)
    assert (routine(*given(40, 0)).get() == 0).all()
    assert len(routine._ready) == 1
    e = cupy.asarray(np.ones((40, 1), "float32"))
    ranked = Genred("x - y", ALIASES, "KMin", 1, opt_arg=2).grad("y"), cupy.asarray(np.ones((40, 2, 3), "float32"))
    cases = [(routine.grad("x"), e), (routine.grad("g"), e), ranked]
    for gradient, e in cases:
        want = bytes_of(generally(gradient, (*arrays, e)))
        assert [bytes_of(gradient(*arrays, e)) for _ in range(2)] == [want] * 2
    assert [len(gradient._ready) for gradient, _ in cases] == [1, 0, 0]


def test_bfloat16(fake, cupy):
    routine, arrays = made(), given(dtype=ml_dtypes.bfloat16)
    want = bytes_of(generally(routine, arrays))
    assert [bytes_of(routine(*arrays)) for _ in range(2)] == [want] * 2


def test_many_launches_are_paced(fake, monkeypatch):
    monkeypatch.setattr(cuda_launch, "LAUNCH_COST", 1.0)
    routine, arrays = made(), given(3000, 5)
    want = bytes_of(generally(routine, arrays))
    assert bytes_of(routine(*arrays)) == want
    assert not routine._ready
    monkeypatch.setattr(cuda_launch, "PANEL", 8000)
    monkeypatch.setattr(cuda_launch, "LAUNCH_COST", 1e12)
    arrays = given(40, 3000)
    assert bytes_of(routine(*arrays)) == bytes_of(generally(routine, arrays))
    assert not routine._ready


def test_tables_of_many_rows_are_not_kept(fake, monkeypatch):
    monkeypatch.setattr(cuda_ready, "ROWS", 40)
    routine = made()
    for M in (40, 41):
        routine(*given(M, 3))
    assert len(routine._ready) == 1


def test_a_shortage_is_that_of_a_fold(fake):
    routine, arrays, others = made(), given(), given(41)
    want = bytes_of(routine(*arrays))
    for k in range(2):
        fake.shortage = {fake.allocated + k}
        assert bytes_of(routine(*arrays)) == want
    fake.shortage = {fake.allocated + k for k in range(100)}
    with pytest.raises(DeviceMemoryError, match="CUDA device 0 has too little memory for the state of 40 rows"):
        routine(*arrays)
    fake.shortage = {fake.allocated + k for k in range(100)}
    with pytest.raises(DeviceMemoryError, match="CUDA device 0 has too little memory for the state of 41 rows"):
        routine(*others)
    fake.shortage = set()
    assert bytes_of(routine(*arrays)) == want


def test_few_are_remembered_and_copies_remember_none(fake):
    routine = made()
    for M in range(1, MOST + 4):
        routine(*given(M, 3))
    assert len(routine._ready) == MOST
    for other in (copy.copy(routine), copy.deepcopy(routine), pickle.loads(pickle.dumps(routine))):
        if other._ready is not routine._ready:
            assert not other._ready


# -- launches ----------------------------------------------------------------------------------------------------------


def test_results_are_written_by_the_last_launch(monkeypatch):
    """Instead of the state, which nothing has been written to before the first one; of batches and of any launches."""
    formulas = [(TEXT, "Sum"), ("x - y", "KMin_ArgKMin", 3), ("x - y", "Min_ArgMin"), (TEXT, "Count"),
                (TEXT, "LogSumExp")]  # fmt: skip
    spec = Genred(formulas, ALIASES, axis=1).spec("float32")
    source = rendered(spec)
    library, batches, M = shim.compile_sources([source]), 2, source.tile_rows + 3
    N = 2 * source.tile_columns + 5
    rng = np.random.default_rng(0)
    arrays = [rng.random(shape, "float32") for shape in ((batches, M, 3), (N, 3), (N, 1), (1,))]
    more = {"strides": [M * 3, 0, 0, 0], "batches": batches, "splits": 3}
    want = shim.run(library, source, arrays, M, N, **more)
    for cost in (cuda_launch.LAUNCH_COST, 1.0):
        monkeypatch.setattr(cuda_launch, "LAUNCH_COST", cost)
        device = shim.ShimDevice(library)
        state = [device.empty(size * batches * M, kind).reshape(size, -1) for size, _, kind in spec.blank]
        results = [
            None if n == 1 else np.empty(field.T.shape, "int64" if field.dtype == "int64" else "float32")
            for n, field in enumerate(want)
        ]
        cuda_launch.launch(source, device, state, arrays, M, N, fresh=True, results=results, **more)
        for field, mine, result in zip(want, state, results, strict=True):
            got = mine if result is None else result
            whole = np.where(field == NONE, -1, field) if field.dtype == "int64" and result is not None else field
            assert got.tobytes() == (whole if result is None else whole.T.astype(result.dtype)).tobytes()
