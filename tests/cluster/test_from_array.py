"""Lazy arrays that tasks read by path: from files, from memmaps where they are, from memory through a private spool."""

import asyncio
import errno
import os
import pickle
import signal
import stat
import subprocess
import sys
import tempfile
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import cloudpickle
import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client, LocalCluster

import dred
from dred.cluster import arrays, sources, spool
from dred.errors import DtypeError, InputError
from tests.cluster.local import processes, threads
from tests.cluster.problems import ALIASES, TEXT, arrays_of, dense

ROOT = Path(__file__).parents[2]
DTYPES = ("float16", "float32", "float64")


@pytest.fixture(autouse=True)
def base(tmp_path):
    """Where this test spools; no two tests share it."""
    with dask.config.set({"dred.spool-directory": str(tmp_path / "spool")}):
        yield tmp_path / "spool"


def values(shape, dtype="float64", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def spooled(base):
    return sorted(base.glob("dred-spool-*/*"))


def text_of(error, function, *args, **more):
    with pytest.raises(error) as caught:
        function(*args, **more)
    assert type(caught.value) is error
    return str(caught.value)


# --- from_file


@pytest.fixture
def file(tmp_path):
    np.save(tmp_path / "x.npy", values((100, 3)))
    return tmp_path / "x.npy"


@pytest.mark.parametrize(
    ("chunks", "rows"),
    [
        ("auto", (100,)),
        (30, (30, 30, 30, 10)),
        (-1, (100,)),
        (None, (100,)),
        (np.int64(50), (50, 50)),
        ("960 B", (40, 40, 20)),
        ("1 B", (1,) * 100),
        ((30, 70), (30, 70)),
        ([30, 0, 70], (30, 0, 70)),
        ((20, 30, 50), (20, 30, 50)),
        ((30, 3), (30, 30, 30, 10)),
        ((30, -1), (30, 30, 30, 10)),
        (("960 B", 3), (40, 40, 20)),
        ((30, "auto"), (30, 30, 30, 10)),
        (((30, 70), (3,)), (30, 70)),
        (((30, 70), 3), (30, 70)),
    ],
)
def test_chunks(file, chunks, rows):
    for lazy in (dred.from_file(file, chunks=chunks), dred.from_array(np.load(file), chunks=chunks)):
        assert lazy.chunks == (rows, (3,))
        assert all(type(size) is int for size in lazy.chunks[0])
        assert np.array_equal(lazy.compute(scheduler="sync"), np.load(file))


def test_chunks_of_one_dimension(tmp_path):
    np.save(tmp_path / "x.npy", values(100))
    for chunks, rows in ((40, (40, 40, 20)), ((40,), (40, 40, 20)), ((40, 60), (40, 60)), (((40, 60),), (40, 60))):
        lazy = dred.from_file(tmp_path / "x.npy", chunks=chunks)
        assert lazy.chunks == (rows,)
        assert np.array_equal(lazy.compute(scheduler="sync"), values(100))


def test_automatic_chunks_are_of_whole_pieces(tmp_path):
    import zarr

    stored = zarr.create_array(tmp_path / "x.zarr", shape=(100, 3), chunks=(30, 3), dtype="f8")
    stored[:] = values((100, 3))
    for size, rows in (("1 B", (30, 30, 30, 10)), ("2000 B", (60, 40)), ("1 GB", (100,))):
        with dask.config.set({"array.chunk-size": size}):
            assert dred.from_file(tmp_path / "x.zarr").chunks == (rows, (3,))


@pytest.mark.parametrize(
    ("chunks", "why"),
    [
        ((30, 71), "columns are not cut, give the rows alone"),
        (((30, 71), (3,)), None),
        ((30, (1, 2)), "columns are not cut, give the rows alone"),
        ((20, 30, 49), None),
        ("many", None),
        (2.5, None),
        (0, None),
        (-5, None),
    ],
)
def test_chunks_that_are_none(file, chunks, why):
    text = text_of(InputError, dred.from_file, file, chunks=chunks)
    assert text.startswith(f"chunks={chunks!r} for {file} of shape (100, 3): ")
    if why and chunks != (30, 71):
        assert text.endswith(why)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 3), (1, 3), (57, 40), (57,), (0,)])
def test_lazy_arrays_of_files_and_of_memory(tmp_path, base, shape, dtype):
    array = values(shape, dtype)
    np.save(tmp_path / "x.npy", array)
    for lazy in (dred.from_file(tmp_path / "x.npy", chunks=20), dred.from_array(array, chunks=20)):
        assert (lazy.shape, lazy.dtype) == (shape, dtype)
        assert lazy.dtype.isnative
        got = lazy.compute(scheduler="sync")
        assert got.tobytes() == array.tobytes()
        assert arrays.source_of(lazy).shape == shape
    assert len(spooled(base)) == 1


def test_nothing_is_read_before_it_is_needed(file, monkeypatch):
    seen = []
    plain = sources.FORMATS["npy"].read
    monkeypatch.setitem(
        sources.FORMATS,
        "npy",
        sources.Format(
            "", *(getattr(sources.FORMATS["npy"], n) for n in ("recognises", "open")),
            lambda source, *rows: seen.append(rows) or plain(source, *rows), sources.FORMATS["npy"].check,
        ),
    )  # fmt: skip
    lazy = dred.from_file(file, chunks=30)
    assert seen == []
    lazy[35:40].compute(scheduler="sync")
    assert seen == [(30, 60)]


def test_the_source_of_an_array(file):
    source = sources.open_source(file)
    for chunks in (7, 50, -1, (0, 100)):
        lazy = dred.from_file(file, chunks=chunks)
        assert arrays.source_of(lazy) == source
        assert arrays.source_of(pickle.loads(pickle.dumps(lazy))) == source
        assert arrays.source_of(lazy[:]) == source


def test_arrays_without_a_source(file):
    lazy = dred.from_file(file, chunks=30)
    others = {
        "slice": lazy[:99],
        "blocks": lazy.blocks[:2],
        "first block": lazy.blocks[0],
        "rechunk": lazy.rechunk((50, 3)),
        "negative": -lazy,
        "cast": lazy.astype("float32"),
        "joined": da.concatenate([lazy, lazy]),
        "mapped": lazy.map_blocks(np.abs),
        "reversed": lazy[::-1],
        "persisted": lazy.persist(scheduler="sync"),
        "NumPy's": da.from_array(np.load(file), chunks=(30, 3)),
        "of some of the blocks": da.Array(lazy.__dask_graph__(), lazy.name, ((30, 30), (3,)), dtype="f8"),
        "random": da.random.random((100, 3)),
    }
    assert {name for name, array in others.items() if arrays.source_of(array) is not None} == set()


def test_an_array_may_be_computed_after_dask_has_optimized_it(file):
    (lazy,) = dask.optimize(dred.from_file(file, chunks=30))
    found = arrays.source_of(lazy)
    assert found is None or found == sources.open_source(file)
    assert np.array_equal(lazy.compute(scheduler="sync"), np.load(file))


def test_errors_come_through_dask(file):
    lazy = dred.from_file(file, chunks=30)
    os.utime(file, ns=(0, 0))
    with pytest.raises(InputError, match=f"^{file} changed since it was opened: "):
        lazy.compute(scheduler="sync")


def test_the_other_way_of_dask_to_wrap_graphs(file):
    """Array expressions, in a process of their own: the switch is read when dask.array is imported."""
    code = f"""
import dask, numpy as np, dred
import dask.array as da
from dred.cluster import arrays, sources
assert da.array_expr_enabled()
lazy = dred.from_file({str(file)!r}, chunks=30)
assert arrays.source_of(lazy) == sources.open_source({str(file)!r})
assert np.array_equal(lazy.compute(scheduler="sync"), np.load({str(file)!r}))
for other in (lazy[:99], lazy.rechunk((50, 3)), -lazy, da.ones((3, 3)), da.from_array(np.ones((3, 3)))):
    assert arrays.source_of(other) is None
print("done")
"""
    if not hasattr(da, "array_expr_enabled"):
        pytest.skip("dask without array expressions")
    environment = {**os.environ, "DASK_ARRAY__QUERY_PLANNING": "True"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["done"], done.stderr


# --- from_array: of memory


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "cut",
    [
        lambda a: a,
        lambda a: a[::-1],
        lambda a: a[5:50:3],
        lambda a: a[:, 1:3],
        lambda a: a.T,
        lambda a: np.asfortranarray(a),
        lambda a: a[:, 0],
        lambda a: np.broadcast_to(a[0], (9, 4)),
        lambda a: a.astype(a.dtype.newbyteorder()),
        lambda a: a[:0],
        lambda a: a[:, :0],
    ],
)
def test_arrays_in_any_order(cut, dtype, monkeypatch):
    array = cut(values((57, 4), dtype))
    monkeypatch.setattr(spool, "BLOCK", 100)  # bytes: a few rows
    got = dred.from_array(array, chunks=20).compute(scheduler="sync")
    assert got.dtype == dtype
    assert got.dtype.isnative
    assert got.flags.c_contiguous
    assert np.array_equal(got, array)


def test_the_same_content_is_spooled_once(base):
    array = values((100, 3))
    first = dred.from_array(array, chunks=30)
    for same in (array.copy(), np.asfortranarray(array), array.astype(">f8"), np.vstack([array, array])[:100]):
        again = dred.from_array(same, chunks=30)
        assert again.name == first.name
    assert len(spooled(base)) == 1
    for other in (array + 0.0 * 1e-9 + 1, array.reshape(-1), array.reshape(150, 2), array.astype("float32")):
        assert dred.from_array(other, chunks=30).name != first.name
    assert len(spooled(base)) == 5


def test_an_array_is_as_it_was(base):
    array = values((100, 3))
    lazy = dred.from_array(array)
    array[:] = 0
    assert np.array_equal(lazy.compute(scheduler="sync"), values((100, 3)))


def test_the_spool_is_private(base):
    os.umask(os.umask(0))
    dred.from_array(values((100, 3)))
    (file,) = spooled(base)
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.parent.name.split("-")[:2] == ["dred", "spool"]
    assert f"-{os.getpid()}-" in file.parent.name
    assert spool._NAME.fullmatch(file.parent.name)["pid"] == str(os.getpid())


def test_where_arrays_are_spooled(tmp_path, monkeypatch):
    """Where dred's configuration says, else dask's, else with the system's temporary files."""
    where = lambda: Path(arrays.source_of(dred.from_array(np.zeros(3))).path).parents[1]  # noqa: E731
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "system"))
    with dask.config.set({"dred.spool-directory": tmp_path / "own", "temporary-directory": str(tmp_path / "dask")}):
        assert where() == tmp_path / "own"
    with dask.config.set({"dred.spool-directory": None, "temporary-directory": str(tmp_path / "dask")}):
        assert where() == tmp_path / "dask"
    with dask.config.set({"dred.spool-directory": None}):
        assert where() == tmp_path / "system"


def test_a_spool_that_was_removed_is_made_again(base):
    dred.from_array(values((100, 3)))
    (file,) = spooled(base)
    file.unlink()
    file.parent.rmdir()
    assert np.array_equal(dred.from_array(values((100, 3))).compute(scheduler="sync"), values((100, 3)))


@pytest.mark.parametrize(
    ("array", "error", "text"),
    [
        ([1.0, 2.0], InputError, "from_array takes NumPy arrays, got builtins.list: convert it with numpy.asarray, "
         "if it is no dask array"),
        (np.ma.zeros(3), InputError, "from_array takes NumPy arrays, got numpy.ma.MaskedArray: convert it with "
         "numpy.asarray, if it is no dask array"),
        (np.zeros((3, 2, 2)), InputError, "from_array takes arrays (rows,) or (rows, columns), got shape (3, 2, 2): "
         "reshape it"),
        (np.zeros(()), InputError, "from_array takes arrays (rows,) or (rows, columns), got shape (): reshape it"),
        (np.zeros(3, int), DtypeError, "from_array takes float16, float32, float64, got int64: convert it with "
         ".astype"),
    ],
)  # fmt: skip
def test_what_is_no_array_of_numbers(array, error, text):
    assert text_of(error, dred.from_array, array) == text


def test_a_dask_array_is_one_already():
    text = text_of(InputError, dred.from_array, da.zeros(3))
    assert text.startswith("from_array takes NumPy arrays, got dask.array.")


# --- from_array: of memmaps


@pytest.fixture
def raw(tmp_path):
    """A file of 64 other bytes, then 100 rows."""
    array = values((100, 4))
    path = tmp_path / "x.raw"
    path.write_bytes(b"-" * 64 + array.tobytes())
    return path, array


def memmap(raw, mode="r", **more):
    return np.memmap(raw[0], mode=mode, **{"dtype": "f8", "offset": 64, "shape": (100, 4), **more})


@pytest.mark.parametrize(
    "cut",
    [
        lambda m: m,
        lambda m: m[10:37],
        lambda m: m[10:37][5:],
        lambda m: np.asarray(m)[10:37],
        lambda m: m.view(np.ndarray),
        lambda m: m[3],
        lambda m: m[1:2, 1:3],
        lambda m: m.reshape(-1),
        lambda m: m.reshape(50, 8)[1:],
        lambda m: m.view("f4"),
        lambda m: m.T,
        lambda m: m[5:9].T,
    ],
)
def test_memmaps_are_read_where_they_are(raw, base, cut):
    array = cut(memmap(raw))
    lazy = dred.from_array(array, chunks=20)
    assert arrays.source_of(lazy).path == str(raw[0])
    assert lazy.shape == array.shape
    assert lazy.compute(scheduler="sync").tobytes() == array.tobytes()
    assert spooled(base) == []


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["f2", "f4", ">f8"])
def test_memmaps_of_npy_files(tmp_path, base, dtype, order):
    array = np.require(values((57, 3), dtype), requirements=order)
    np.save(tmp_path / "x.npy", array)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    lazy = dred.from_array(mapped, chunks=20)
    assert arrays.source_of(lazy).path == str(tmp_path / "x.npy")
    assert np.array_equal(lazy.compute(scheduler="sync"), array)
    assert spooled(base) == []


@pytest.mark.parametrize(
    "cut",
    [lambda m: m[::2], lambda m: m[:, 1:3], lambda m: m[::-1], lambda m: m + 1, lambda m: m[[1, 5]], lambda m: m[:0]],
)
def test_what_is_no_region_of_a_file_is_spooled(raw, base, cut):
    array = cut(memmap(raw))
    lazy = dred.from_array(array, chunks=20)
    assert np.array_equal(lazy.compute(scheduler="sync"), array)
    assert [arrays.source_of(lazy).path] == list(map(str, spooled(base)))


@pytest.mark.parametrize("mode", ["r+", "c"])
def test_a_memmap_that_can_be_written_to_is_spooled(raw, base, mode):
    """What is written to it later changes the file's time on some file systems only."""
    mapped = memmap(raw, mode)
    mapped[7] = 5
    want = np.array(mapped)
    lazy = dred.from_array(mapped)
    mapped[8] = 6
    assert np.array_equal(lazy.compute(scheduler="sync"), want)
    assert len(spooled(base)) == 1


def test_a_file_that_changes_under_a_memmap_fails(raw):
    lazy = dred.from_array(memmap(raw))
    memmap(raw, "r+")[8] = 6
    os.utime(raw[0], ns=(0, 0))  # the clock of files may be slower than this test
    assert text_of(InputError, lazy.compute, scheduler="sync").startswith(f"{raw[0]} changed since it was opened: ")


@pytest.mark.parametrize("how", ["replaced", "removed"])
def test_a_memmap_whose_file_is_another_by_now(raw, base, how):
    path, array = raw
    mapped = memmap(raw)
    if how == "removed":
        path.unlink()
    else:
        (path.parent / "y").write_bytes(b"-" * path.stat().st_size)
        os.replace(path.parent / "y", path)
    assert np.array_equal(dred.from_array(mapped).compute(scheduler="sync"), array)
    assert len(spooled(base)) == 1


def test_a_memmap_whose_file_got_shorter(raw):
    mapped = memmap(raw)
    os.truncate(raw[0], 200)
    assert text_of(InputError, dred.from_array, mapped) == (
        f"{raw[0]} is truncated: float64 of shape (100, 4) takes 3200 bytes from byte 64 on, and the file has 200: "
        "write it again"
    )


def test_where_the_system_does_not_tell_what_is_mapped(raw, base, monkeypatch):
    from dred.cluster import stored_npy

    monkeypatch.setattr(stored_npy, "_mapped_inode", lambda address: None)
    assert np.array_equal(dred.from_array(memmap(raw)).compute(scheduler="sync"), raw[1])
    assert len(spooled(base)) == 1


@pytest.mark.parametrize("dumps", [pickle.dumps, cloudpickle.dumps])
def test_no_array_travels_in_a_graph(tmp_path, dumps):
    """4 MB, in 10 blocks: of a memmap, of a part of one, of memory; alone and in a reduction."""
    np.save(tmp_path / "x.npy", values((50_000, 10)))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    lazy = [dred.from_array(a, chunks=5000) for a in (mapped, mapped[10:], mapped[:, ::3], np.array(mapped))]
    for array in (*lazy, dred.from_file(tmp_path / "x.npy", chunks=5000)):
        assert array.npartitions == 10
        assert len(dumps(dict(array.__dask_graph__()))) < 5000


# --- workers


def fake(monkeypatch, **answers):
    """A client of workers that answer so: None stands for what this process sees."""

    def run(function, path, on_error):
        assert on_error == "return"
        return {name: function(path) if answer is None else answer for name, answer in answers.items()}

    monkeypatch.setattr(arrays, "ambient_client", lambda: SimpleNamespace(run=run))


BLIND = {"a": None, "b": FileNotFoundError("no such file"), "c": None}
CURE = (
    "set dred.spool-directory to a directory that all workers see, or store the array there as npy or zarr and use "
    "dred.from_file"
)


def limited(nbytes, why, most="2.39 kB"):
    return (
        f"an array of {nbytes} cannot be spooled for the workers ({why}), and would travel inside the task graph, "
        f"which is limited to {most} (dred.graph-bytes in dask's configuration): {CURE}"
    )


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        (BLIND, "1 of 3 workers do not see {}"),
        ({"a": "another content", "b": "another content"}, "2 of 2 workers do not see {}"),
        ({}, "no worker has joined the cluster yet: call client.wait_for_workers(...) first"),
    ],
)
def test_workers_that_do_not_see_the_spool(monkeypatch, base, answers, why):
    """A small array travels in the graph, a large one is refused."""
    fake(monkeypatch, **answers)
    array = values((100, 3))
    with dask.config.set({"dred.graph-bytes": array.nbytes}):
        lazy = dred.from_array(array, chunks=30)
    assert arrays.source_of(lazy) is None
    assert lazy.chunks == ((30, 30, 30, 10), (3,))
    assert np.array_equal(lazy.compute(scheduler="sync"), array)
    with dask.config.set({"dred.graph-bytes": 2390}):
        text = text_of(InputError, dred.from_array, array)
    (home,) = base.iterdir()
    assert text == limited("2.4 kB", why.format(home))
    assert spooled(base) == [], "nothing was written in vain"


def test_workers_that_do_not_see_the_file_of_a_memmap(raw, monkeypatch, base):
    """The file is theirs only if they see it as it is; else it goes through the spool, or the graph."""
    fake(monkeypatch, a=None, b=None)
    assert arrays.source_of(dred.from_array(memmap(raw))).path == str(raw[0])
    stale = (raw[0].stat().st_size, 1)

    def run(function, path, on_error):
        return {"a": stale if path == str(raw[0]) else function(path)}

    monkeypatch.setattr(arrays, "ambient_client", lambda: SimpleNamespace(run=run))
    lazy = dred.from_array(memmap(raw))
    assert [arrays.source_of(lazy).path] == list(map(str, spooled(base)))
    fake(monkeypatch, **BLIND)
    for array in (memmap(raw), memmap(raw)[10:], memmap(raw)[::2]):
        lazy = dred.from_array(array, chunks=50)
        assert arrays.source_of(lazy) is None
        assert np.array_equal(lazy.compute(scheduler="sync"), array)
        inside = pickle.dumps(dict(lazy.__dask_graph__()))
        assert b"memmap" not in inside
        assert str(raw[0]).encode() not in inside
        assert len(inside) < array.nbytes + 3000


def test_an_asynchronous_client_cannot_be_asked():
    async def ask():
        async with (
            LocalCluster(n_workers=1, processes=False, dashboard_address=":0", asynchronous=True) as cluster,
            Client(cluster, asynchronous=True),
        ):
            return text_of(InputError, dred.from_array, np.zeros(3))

    text = asyncio.run(ask())
    assert text.startswith(
        "from_array asks the workers which files they see, which an asynchronous client cannot do here ("
    )
    assert text.endswith("): store the array where they see it and use dred.from_file")


def test_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    where = tmp_path / "file" / "spool"
    with dask.config.set({"dred.spool-directory": where}):
        assert np.array_equal(dred.from_array(values((100, 3))).compute(scheduler="sync"), values((100, 3)))
        with dask.config.set({"dred.graph-bytes": 2390}):
            text = text_of(InputError, dred.from_array, values((100, 3)))
    assert text == limited("2.4 kB", f"{where} cannot be written: [Errno 20] Not a directory: '{where}'")


def test_a_disk_that_is_full(base, monkeypatch):
    usage = namedtuple("usage", "total used free")
    dred.from_array(values(3))
    (file,) = spooled(base)
    cure = "make room, or set dred.spool-directory in dask's configuration to a directory that has it"
    with monkeypatch.context() as patch:
        patch.setattr(spool.shutil, "disk_usage", lambda path: usage(10_000, 7_700, 2_300))
        assert text_of(InputError, dred.from_array, values((100, 3))) == (
            f"an array of 2.4 kB does not fit into {file.parent}, where it would be spooled for the workers and 2.3 kB "
            f"are free: {cure}"
        )

    def fail(*args):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(spool.os, "replace", fail)
    assert text_of(InputError, dred.from_array, values((100, 3))) == (
        f"an array of 2.4 kB cannot be spooled in {file.parent} ([Errno 122] Disk quota exceeded): {cure}"
    )
    assert spooled(base) == [file], "nothing is left half written"


# --- the end of processes

SPOOL = """
import dask, numpy as np, dred, os, sys
from dred.cluster import arrays
with dask.config.set({"dred.spool-directory": sys.argv[1]}):
    path = arrays.source_of(dred.from_array(np.ones((10, 3)))).path
if os.name == "posix" and "fork" in sys.argv and (child := os.fork()) == 0:
    sys.exit()  # a child that ends, with all that is to be done at exit
elif "fork" in sys.argv:
    os.waitpid(child, 0)
print(path, os.path.exists(path), flush=True)
sys.stdin.read()
"""


def spooling(base, *more):
    """A process that has spooled an array, and waits; and the file."""
    process = subprocess.Popen(
        [sys.executable, "-c", SPOOL, str(base), *more],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    path, there = process.stdout.readline().split()
    assert there == "True"
    return process, Path(path)


def ended(process, how=None):
    if how is not None:
        process.send_signal(how)
    process.communicate()
    return process.returncode


def test_the_spool_goes_with_its_process(base):
    process, path = spooling(base)
    assert path.exists()
    assert ended(process) == 0
    assert list(base.iterdir()) == []


def test_the_spool_does_not_go_with_a_forked_child(base):
    process, path = spooling(base, "fork")
    assert path.exists()
    assert ended(process) == 0
    assert not path.exists()


def test_what_killed_processes_left_is_swept(base, tmp_path):
    """And nothing else: not the spool of a live process, of another host, of another name, nor what a link leads to."""
    killed, left = spooling(base)
    living, used = spooling(base)
    assert ended(killed, signal.SIGKILL) == -signal.SIGKILL
    assert left.exists()
    name = left.parent.name
    host = spool._host()
    kept = [
        name.replace(host, f"elsewhere-{host[-8:]}"),
        name.replace(host, f"{host[:-8]}00000000"),  # this host, before it was started again
        f"{name}.old",
        f"my-{name}",
        name.replace("dred-spool", "dred-spools"),
    ]
    for other in kept:
        (base / other).mkdir()
    (base / name.replace(name[-8:], "12345678")).write_text("a file")
    kept.append(name.replace(name[-8:], "12345678"))
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("")
    (base / name.replace(name[-8:], "abcdefgh")).symlink_to(tmp_path / "precious")
    kept.append(name.replace(name[-8:], "abcdefgh"))
    lazy = dred.from_array(np.zeros(3))  # makes the spool of this process
    assert not left.parent.exists()
    own = Path(arrays.source_of(lazy).path).parent.name
    assert sorted(path.name for path in base.iterdir()) == sorted([*kept, own, used.parent.name])
    assert (tmp_path / "precious" / "file").exists()
    assert used.exists()
    assert ended(living) == 0


def test_directories_of_others_are_not_swept(base, monkeypatch):
    killed, left = spooling(base)
    ended(killed, signal.SIGKILL)
    with monkeypatch.context() as patch:
        patch.setattr(spool.os, "getuid", lambda: os.stat(left).st_uid + 1)
        spool.sweep(str(base))
    assert left.exists()
    with monkeypatch.context() as patch:
        patch.setattr(spool.os, "kill", lambda pid, number: (_ for _ in ()).throw(PermissionError()))
        spool.sweep(str(base))  # a process of that number that is somebody else's
    assert left.exists()
    spool.sweep(str(base))
    assert not left.exists()


# --- in reductions, and on clusters


def stored(folder, given):
    """The arguments of the tutorial as arrays by path: x of a file, y spooled, a of a memmap."""
    x, y, a, p = given
    np.save(folder / "x.npy", x)
    np.save(folder / "a.npy", a)
    mapped = np.load(folder / "a.npy", mmap_mode="r")
    return dred.from_file(folder / "x.npy", chunks=30), dred.from_array(y, 20), dred.from_array(mapped, 20), p


@pytest.mark.parametrize("axis", [0, 1])
def test_a_reduction_over_arrays_by_path(tmp_path, axis):
    given = arrays_of(100, 80)
    by_path = stored(tmp_path, given)
    x, y, a, p = given
    chunked = da.from_array(x, chunks=(30, 3)), da.from_array(y, chunks=(20, 3)), da.from_array(a, chunks=(20, 1)), p
    routine = dred.Genred(TEXT, ALIASES, axis=axis)
    got = routine(*by_path, backend="cpu").compute(scheduler="sync")
    assert got.tobytes() == routine(*chunked, backend="cpu").compute(scheduler="sync").tobytes()
    assert np.allclose(got, routine(*given), rtol=1e-13)
    assert np.allclose(got, dense(*given, axis=axis), rtol=1e-13)


def test_workers_that_are_threads(tmp_path, base):
    given = arrays_of(100, 80)
    with threads(2):
        got = dred.Genred(TEXT, ALIASES, axis=1)(*stored(tmp_path, given), backend="cpu").compute()
    assert np.allclose(got, dense(*given), rtol=1e-13)
    assert len(spooled(base)) == 1


@pytest.mark.slow
def test_workers_that_are_processes(tmp_path, base):
    """Two of them, started elsewhere, read what this process spooled; a worker that is killed is no matter."""
    given = arrays_of(3000, 2000)
    routine = dred.Genred(TEXT, ALIASES, axis=1)
    with processes(2) as client:
        by_path = stored(tmp_path, given)
        assert [Path(arrays.source_of(array).path).parent for array in by_path[:3]] == [
            tmp_path,
            spooled(base)[0].parent,
            tmp_path,
        ]
        got = routine(*by_path, backend="cpu").compute()
        assert np.allclose(got, dense(*given), rtol=1e-12)
        x = dred.from_array(given[0], chunks=100)
        assert np.array_equal(client.compute(x).result(), given[0])
        before = next(iter(client.run(os.getpid).values()))
        os.kill(before, signal.SIGKILL)
        assert np.array_equal(client.compute(x + 0).result(), given[0])


@pytest.mark.slow
def test_workers_in_another_directory_see_relative_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", values((100, 3)))
    with processes(1) as client:
        client.run(os.chdir, "/")
        assert np.array_equal(dred.from_file("x.npy", chunks=30).compute(), values((100, 3)))
