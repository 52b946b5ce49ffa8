"""Host arrays on a device: rows in blocks, columns in panels, copies beside kernels, and the same bits throughout."""

import threading

import numpy as np
import pytest

from dred.errors import DeviceMemoryError
from dred.formula.language import formula
from dred.kernel import cuda, cuda_host, cuda_launch, cuda_streams, interpret, threads
from dred.kernel.output import Output, empty
from dred.kernel.spec import KernelSpec
from tests.kernel.cuda_cases import CASES, assert_sums, data, pairs, rendered, spec
from tests.kernel.reduction_cases import Case as Reduction
from tests.kernel.reduction_cases import arrays as arrays_of
from tests.kernel.reduction_cases import assert_states
from tests.shim import fake_cupy, shim

pytestmark = pytest.mark.skipif(not shim.available(), reason="no C++ compiler")

# How a device may be quick or slow: with nothing, with copies, with kernels, with both.
EAGER = [(), ("copy",), ("kernel",), ("copy", "kernel")]

GAUSSIAN = CASES["gaussian 3 axis 1"]
SPEC, SOURCE = spec(GAUSSIAN, "float32"), rendered(GAUSSIAN, "float32")
COLUMN = 16  # bytes of a column: y and b
STAGE = 3008  # no state of a block here has a multiple of these bytes


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Panels of two tiles, and pinned buffers of less than a panel."""
    monkeypatch.setattr(cuda_launch, "PANEL", 2 * SOURCE.tile_columns * COLUMN + 5)
    monkeypatch.setattr(cuda_streams, "STAGE", STAGE)


def problem(M, N, seed=0):
    arrays = data(GAUSSIAN, M, N, "float32", seed)
    return tuple(arrays.values()), pairs(GAUSSIAN, arrays)


def fold(arrays, M, N, s=SPEC, start=None, **more):
    return cuda.fold(s, start or empty(s, M), s.arrays(arrays), M, N, **more)


def tiles(fake):
    """Row tiles of each call of the kernel that folds."""
    return [grid[0] for _, _, name, grid, _ in fake.launches if name.endswith("_fold")]


def blocks(fake):
    """Blocks of rows that were folded: each has one state, of one field here, and brings it home."""
    return sum(way == "out" and size < STAGE for way, size, _ in fake.copies)  # last pieces


def test_panels_are_of_whole_tiles():
    TJ = SOURCE.tile_columns
    assert cuda.panels(SOURCE, 0) == []
    assert cuda.panels(SOURCE, 1) == [(0, 1)]
    assert cuda.panels(SOURCE, 2 * TJ) == [(0, 2 * TJ)]
    assert cuda.panels(SOURCE, 5 * TJ - 3) == [(0, 2 * TJ), (2 * TJ, 4 * TJ), (4 * TJ, 5 * TJ - 3)]


@pytest.mark.parametrize("name", ["gaussian 3000", "nothing"])
def test_panels_of_very_long_and_of_no_columns(name, monkeypatch):
    case = CASES["rows alone"] if name == "nothing" else CASES["gaussian 200 axis 1"]
    source = rendered(case, "float32")
    monkeypatch.setattr(cuda_launch, "PANEL", 1)
    assert cuda.panels(source, source.tile_columns + 1)[0] == (0, source.tile_columns)


@pytest.mark.parametrize("eager", EAGER, ids="+".join)
@pytest.mark.parametrize(("M", "N"), [(1, 1), (1024, 512), (1300, 513), (3000, 1700)])
def test_blocks_and_panels_agree_with_numpy(M, N, eager):
    arrays, terms = problem(M, N)
    start = (np.full((1, M), 0.5),)
    with fake_cupy.installed(eager=eager) as fake:
        (state,) = fold(arrays, M, N, start=start, memory=50_000)
        assert all(stream.done for stream in fake.streams[0])  # nothing is left to do
        assert fake.peak <= 50_000
        assert blocks(fake) == -(-M // 1024)
        assert len(tiles(fake)) == -(-M // 1024) * -(-N // 512)
    assert_sums(state, terms, "float32", start=0.5)
    assert np.all(start[0] == 0.5)


@pytest.mark.parametrize("eager", EAGER, ids="+".join)
def test_memory_changes_no_bit(eager):
    """Nor does a device on which everything fits, nor do arrays that are there already."""
    M, N, s = 7000, 900, spec(GAUSSIAN, "float64")  # sums of float32 numbers are exact in any order
    arrays = tuple(data(GAUSSIAN, M, N, "float64").values())
    found, cut = [], []
    for memory in (80_000, 130_000, 220_000, 400_000, 0.5):
        with fake_cupy.installed(eager=eager, memory=1 << 22) as fake:
            found.append(fold(arrays, M, N, s, memory=memory)[0].tobytes())
            cut.append((blocks(fake), len(tiles(fake))))
            assert fake.peak <= (memory if memory > 1 else memory * fake.memory)
    assert cut == [(7, 28), (7, 28), (4, 16), (1, 4), (1, 4)]  # the second and third with two blocks at a time
    with fake_cupy.installed(eager=eager):
        import cupy

        there = list(map(cupy.asarray, arrays))
        found.append(cuda.fold_device(s, None, there, M, N)[0].get().tobytes())
        found.append(fold([there[0], arrays[1], there[2], arrays[3]], M, N, s, memory=80_000)[0].tobytes())
    assert len(set(found)) == 1


@pytest.mark.parametrize("blocks_to_fill", [4, 2048])
def test_splits_are_those_of_all_rows(blocks_to_fill, monkeypatch):
    """Whatever the rows that are folded at a time. (Sums of float32 numbers are exact in any order.)"""
    s, source = spec(GAUSSIAN, "float64"), rendered(GAUSSIAN, "float64")
    monkeypatch.setattr(cuda_launch, "BLOCKS", blocks_to_fill)
    monkeypatch.setattr(cuda_launch, "PANEL", 16 * source.tile_columns * 2 * COLUMN)
    M, N = 3 * source.tile_rows - 5, 20 * source.tile_columns
    arrays = tuple(data(GAUSSIAN, M, N, "float64").values())
    found, cut = set(), []
    for memory in (180_000, 0.5):
        with fake_cupy.installed() as fake:
            found.add(fold(arrays, M, N, s, memory=memory)[0].tobytes())
            cut.append(blocks(fake))
    assert len(found) == 1
    assert cut == [3, 1]


def test_numbers_of_rows_count_all_blocks():
    """In formulas that read them."""
    f = formula("(IndexI() - y) * x", ("x = Vi(1)", "y = Vj(1)"))
    s = KernelSpec.of(f.node, "Sum", 1, "float64", "float64")
    M, N, i0 = 3000, 600, 2**33
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(M, 1)), rng.normal(size=(N, 1))
    want = ((i0 + np.arange(M))[:, None] - y.T) * x
    with fake_cupy.installed() as fake:
        (state,) = fold((x, y), M, N, s, i0=i0, memory=45_000)
        assert blocks(fake) == 3
    np.testing.assert_allclose(state[0], want.sum(1), rtol=1e-12)


def test_one_panel_is_folded_as_a_whole(monkeypatch):
    """The launches of one panel are those of the arrays as they are, whatever the rows at a time."""
    M, N = 3000, 1700
    arrays, _ = problem(M, N)
    monkeypatch.setattr(cuda_launch, "PANEL", 1 << 28)
    library = shim.compile_sources([SOURCE])
    (want,) = shim.run(library, SOURCE, arrays, M, N)
    for memory in (200_000, 0.8):
        with fake_cupy.installed():
            assert fold(arrays, M, N, memory=memory)[0].tobytes() == want.tobytes()


def test_a_panel_is_copied_while_the_one_before_is_folded():
    """A device that is quick with copies has the second panel before it folds the first."""
    M, N = 100, 3 * 512
    arrays, terms = problem(M, N)
    with fake_cupy.installed(eager=("copy",)) as fake:
        (state,) = fold(arrays, M, N)
        kernels = [n for n, kind in enumerate(fake.done) if kind == "kernel"]
        copies = [n for n, kind in enumerate(fake.done) if kind == "copy"]
        panel = -(-512 * 12 // STAGE) + -(-512 * 4 // STAGE)  # pieces of y and b
        rest = 1 + 1 + 1  # of the state, x and g
        assert sum(n < kernels[0] for n in copies if n < kernels[-1]) >= rest + 2 * panel
    assert_sums(state, terms, "float32")


def test_pinned_memory_is_bounded_and_kept():
    M, N = 1500, 900
    arrays, _ = problem(M, N)
    with fake_cupy.installed() as fake:
        fold(arrays, M, N)
        sent = [(size, pinned) for way, size, pinned in fake.copies if way == "in" and size > 1000]
        assert sent
        assert all(pinned and size <= STAGE for size, pinned in sent)
        assert len(fake.pinned) == cuda_streams.BUFFERS
        fold(arrays, M, N)
        assert len(fake.pinned) == cuda_streams.BUFFERS


def test_arrays_may_change_when_the_call_returns():
    M, N = 300, 700
    arrays, terms = problem(M, N)
    with fake_cupy.installed(eager=()):
        (state,) = fold(arrays, M, N)
        for a in arrays:
            a.fill(np.nan)
        assert_sums(state, terms, "float32")


def test_arrays_of_the_device_are_used_where_they_are_and_when_they_are_ready():
    """What the caller's stream has still to do is done before."""
    M, N = 1500, 512
    arrays, terms = problem(M, N)
    for stream in (False, True):
        with fake_cupy.installed() as fake:
            import cupy

            mine = cupy.cuda.Stream(non_blocking=True) if stream else cupy.cuda.Stream.null
            with mine:
                there = list(map(cupy.asarray, arrays))  # copies that wait on the stream
                assert not mine.done
                (state,) = fold(there, M, N)
            (pointers,) = {p[:4] for _, _, name, _, p in fake.launches if name.endswith("_fold")}
            assert list(pointers) == [a.data.ptr for a in there]
        assert_sums(state, terms, "float32")


def test_a_stream_of_ones_own_for_every_thread():
    M, N = 500, 1200
    arrays, terms = problem(M, N)
    found = []
    with fake_cupy.installed() as fake:
        callers = [threading.Thread(target=lambda: found.append(fold(arrays, M, N)[0])) for _ in range(3)]
        for t in callers:
            t.start()
        for t in callers:
            t.join()
        assert len({stream for _, stream, *_ in fake.launches}) == 3
        assert all(stream.non_blocking for stream in fake.streams[0] if stream.ptr)
    assert len({state.tobytes() for state in found}) == 1
    assert_sums(found[0], terms, "float32")


@pytest.mark.parametrize(
    "case",
    [
        Reduction("KMin_ArgKMin", 3, parameter=7),
        Reduction("LogSumExp", 3, dtype="float32"),
        pytest.param(Reduction("Histogram", 3, parameter="many", dtype="float32"), marks=pytest.mark.slow),
        Reduction("SoftMax", 40, "y * Sum(x)"),
        pytest.param(Reduction("ArgMax", 3), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_every_sort_of_state(case, monkeypatch):
    """Row numbers count all rows; ties go to the lowest, across panels too; several fields; records in memory."""
    M, N = 20, 700
    given = arrays_of(case, M, N, kind="ties")
    monkeypatch.setattr(cuda_launch, "PANEL", 1)
    want = interpret.fold(case.spec, empty(case.spec, M), case.spec.arrays(given), M, N, i0=7, j0=2**40)
    found = []
    for eager in EAGER[:2]:
        with fake_cupy.installed(eager=eager) as fake:
            import cupy

            found.append(fold(given, M, N, case.spec, i0=7, j0=2**40))
            assert len(tiles(fake)) > 1
            there = [a if isinstance(a, np.ndarray) and not a.size else cupy.asarray(a) for a in given]
            device = cuda.fold_device(case.spec, None, there, M, N, i0=7, j0=2**40)
            found.append(tuple(field.get() for field in device))
    assert_states(case.spec, found[0], want)
    assert len({tuple(field.tobytes() for field in state) for state in found}) == 1


# -- results, and blocks beside each other -----------------------------------------------------------------------------

SUM = Output.of("Sum")


def reduce(arrays, M, N, s=SPEC, outputs=SUM, **more):
    return cuda.reduce(s, s.arrays(arrays), M, N, outputs, **more)


def bytes_of(fake, way):
    return sum(size for there, size, _ in fake.copies if there == way)


@pytest.fixture
def many(monkeypatch):
    """Blocks of one launch of one tile, however few bytes they are."""
    monkeypatch.setattr(cuda_host, "LEAST", 0)
    monkeypatch.setattr(cuda_launch, "LAUNCH_COST", 1)


@pytest.mark.parametrize("eager", EAGER, ids="+".join)
def test_results_alone_leave_the_device_and_no_state_is_sent(eager, many):
    """Two panels are sent once, for all blocks of rows."""
    M, N = 5000, 900
    arrays, terms = problem(M, N)
    with fake_cupy.installed(eager=eager) as fake:
        (got,) = reduce(arrays, M, N)
        assert all(stream.done for stream in fake.streams[0])
        assert blocks(fake) == 5
        assert bytes_of(fake, "out") == got.nbytes == M * 4
        pinned = sum(size for way, size, there in fake.copies if way == "in" and there)
        assert pinned == sum(a.nbytes for a in arrays)
        (state,) = fold(arrays, M, N)
    assert got.dtype == "float32"
    assert got.tobytes() == state.T.astype("float32").tobytes()
    assert_sums(state, terms, "float32")


def test_three_panels_are_sent_for_every_block_but_one(many):
    """The last one of a block of rows is there for the next."""
    M, N = 2048, 3 * 512
    arrays, _ = problem(M, N)
    with fake_cupy.installed() as fake:
        reduce(arrays, M, N)
        sent = sum(size for way, size, there in fake.copies if way == "in" and there)
        assert sent == arrays[0].nbytes + arrays[3].nbytes + 2 * N * COLUMN


@pytest.mark.parametrize("eager", EAGER, ids="+".join)
def test_kernels_of_the_next_block_are_launched_before_the_host_waits_for_one(eager, many):
    M, N = 6000, 500
    arrays, _ = problem(M, N)
    with fake_cupy.installed(eager=eager) as fake:
        reduce(arrays, M, N)
        asked = [what for what in fake.asked if what in ("dred_fold", "out")]
        number = {name: 0 for name in ("dred_fold", "out")}
        pieces = -(-1024 * 4 // STAGE)
        for what in asked:
            number[what] += 1
            if what == "out":
                block = (number["out"] - 1) // pieces
                assert number["dred_fold"] >= min(block + 2, 6)
        assert number == {"dred_fold": 6, "out": 5 * pieces + -(-(6000 - 5 * 1024) * 4 // STAGE)}


def test_blocks_are_whole_launches_and_about_eight(monkeypatch):
    """Of bytes that are worth it; of launches that take long enough; they change no bit."""
    M, N = 20 * SOURCE.tile_rows - 7, 500
    arrays, _ = problem(M, N)
    found = set()

    def counted(**more):
        with fake_cupy.installed() as fake:
            found.add(reduce(arrays, M, N, **more)[0].tobytes())
            return blocks(fake)

    assert counted() == 1  # of so few bytes
    monkeypatch.setattr(cuda_host, "LEAST", 0)
    assert counted() == 1  # one launch
    monkeypatch.setattr(cuda_host, "MOST", 1)
    assert counted() == 7  # of three tiles: an eighth, and whole tiles
    monkeypatch.setattr(cuda_host, "MOST", 1 << 25)
    assert cuda_launch.splits_of_panel(SOURCE, M, N) == 1
    cost = 2 * SOURCE.tile_columns * SOURCE.tile_rows * SOURCE.cost  # of a tile of rows
    monkeypatch.setattr(cuda_launch, "LAUNCH_COST", 4.5 * cost)
    assert counted() == 5  # of one launch of four tiles
    monkeypatch.setattr(cuda_launch, "LAUNCH_COST", 2.5 * cost)
    assert counted() == 5  # of two launches of two tiles
    monkeypatch.setattr(cuda_host, "BLOCKS", 3)
    assert counted() == 3
    assert len(found) == 1


@pytest.mark.parametrize("reduction", ["KMin_ArgKMin", "LogSumExp", "Mean"])
def test_memory_is_for_two_blocks_with_their_results(reduction, many, monkeypatch):
    case = Reduction(reduction, 3, parameter=5 if reduction.startswith("K") else None)
    M, N = 6000, 300
    given, outputs = arrays_of(case, M, N), Output.of(reduction)
    found, cut = [], []
    for memory in ("600 kB", "1 MB", "0.8"):
        monkeypatch.setenv("DRED_CUDA_MEMORY", memory)
        with fake_cupy.installed() as fake:
            found.append([a.tobytes() for a in reduce(given, M, N, case.spec, outputs)])
            cut.append(fake.peak)
            assert fake.peak <= {"600 kB": 600_000, "1 MB": 1_000_000, "0.8": fake.memory}[memory]
    assert found[0] == found[1] == found[2]
    state = interpret.fold(case.spec, empty(case.spec, M), case.spec.arrays(given), M, N)
    for a, output in zip(reduce_with_one(given, M, N, case.spec, outputs), outputs, strict=True):
        np.testing.assert_allclose(a, output.read(case.spec, state), rtol=1e-9)


def reduce_with_one(*args):
    with fake_cupy.installed():
        return reduce(*args)


def test_no_pairs_have_the_results_of_no_term():
    with fake_cupy.installed() as fake:
        arrays, _ = problem(5, 0)
        assert reduce(arrays, 5, 0)[0].tolist() == [[0.0]] * 5
        arrays, _ = problem(0, 5)
        assert reduce(arrays, 0, 5)[0].shape == (0, 1)
        assert not fake.launches


def test_an_interrupt_leaves_nothing_to_do(many, monkeypatch):
    M, N = 6000, 500
    arrays, _ = problem(M, N)

    def interrupted(*_):
        raise KeyboardInterrupt

    with fake_cupy.installed() as fake:
        want = reduce(arrays, M, N)[0].tobytes()
        with monkeypatch.context() as m:
            m.setattr(cuda_streams, "_deliver", interrupted)
            with pytest.raises(KeyboardInterrupt):
                reduce(arrays, M, N)
        assert {kind for stream in fake.streams[0] for kind, _ in stream.queue} <= {"free"}
        assert reduce(arrays, M, N)[0].tobytes() == want


def test_large_copies_are_made_by_several_threads(monkeypatch):
    shares, run = [], threads.run
    monkeypatch.setattr(threads, "run", lambda given: (shares.append(len(given)), run(given)))
    monkeypatch.setattr(cuda_streams, "SHARE", 100)
    rng = np.random.default_rng(0)
    for size in (0, 1, 100, 101, 399, 1001):
        source, target = rng.integers(0, 256, size, np.uint8), np.zeros(size, np.uint8)
        cuda_streams.copy(target, source)
        np.testing.assert_array_equal(target, source)
    assert shares == [2, 4, 4]


# -- shortage ----------------------------------------------------------------------------------------------------------


def test_a_shortage_on_the_way_costs_rows_and_no_bit():
    """Whichever allocation fails, once: fewer rows are folded at a time from there on."""
    M, N = 5000, 900
    arrays, _ = problem(M, N)
    with fake_cupy.installed(eager=("copy",)) as fake:
        before = fake.allocated
        want = fold(arrays, M, N)[0].tobytes()
        count = fake.allocated - before
        for k in range(count):
            fake.shortage, fake.copies = {fake.allocated + k}, []
            assert fold(arrays, M, N)[0].tobytes() == want
            assert blocks(fake) == 5
        fake.shortage = {fake.allocated, fake.allocated + 1}
        with pytest.raises(
            DeviceMemoryError, match=r"device 0 has too little memory for a fold of 5,000 x 900 rows: Out"
        ):
            fold(arrays, M, N)
        assert all(stream.done for stream in fake.streams[0])
        fake.shortage = set()
        assert fold(arrays, M, N)[0].tobytes() == want


def test_too_little_for_the_fewest_rows(monkeypatch):
    M, N = 5000, 900
    arrays, _ = problem(M, N)
    with fake_cupy.installed() as fake:
        with pytest.raises(DeviceMemoryError) as error:
            fold(arrays, M, N, memory=30_000)
        assert fake.launches == []
        monkeypatch.setenv("DRED_CUDA_MEMORY", "30 kB")
        with pytest.raises(DeviceMemoryError) as same:
            fold(arrays, M, N)
    assert str(error.value) == str(same.value)
    assert str(error.value) == (
        "CUDA device 0 has too little memory for a fold of 5,000 x 900 rows: 30 kB may be used, 16.4 kB is for 2"
        " panels of 512 columns, and 28.7 kB for the fewest rows, 1,024 (the driver reports 1.07 GB free of"
        " 1.07 GB). Free arrays on the device, raise the limit (DRED_CUDA_MEMORY, for workers dred.cuda.memory in"
        " dask's configuration), or pass fewer rows at a time"
    )


def test_a_few_rows_need_less_than_a_tile():
    M, N = 5, 100
    arrays, terms = problem(M, N)
    with fake_cupy.installed() as fake:
        (state,) = fold(arrays, M, N, memory=11_000)  # of which the partial states of a launch take 8192
        assert fake.peak < 14_000  # CuPy's pool rounds each of them up to 512
    assert_sums(state, terms, "float32")


def test_the_hosts_memory_is_another_matter(monkeypatch):
    M, N = 5, 100
    arrays, _ = problem(M, N)

    def none(*_):
        np.empty(1 << 62, "u1")

    with fake_cupy.installed() as fake:
        monkeypatch.setattr(cuda_streams.Streams, "fetch", none)
        with pytest.raises(MemoryError, match="Unable to allocate") as error:
            fold(arrays, M, N)
        assert not isinstance(error.value, DeviceMemoryError)
        assert [name for *_, name, _, _ in fake.launches] == ["dred_fold", "dred_merge"]  # no second try
