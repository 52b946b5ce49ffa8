"""Stored arrays: what is read is what NumPy stored, and what is no more what it was is refused."""

import json
import os
import pickle
import platform
import subprocess
import sys
import warnings
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from dask.base import tokenize

from dred.cluster import sources
from dred.errors import DtypeError, InputError, MissingPackageError

HERE = platform.node()
DTYPES = ("float16", "float32", "float64")
LATER = 2_000_000_000_123_456_789  # a time in nanoseconds, for files that change


def store_npy(folder, array):
    np.save(folder / "x.npy", array)
    return folder / "x.npy"


def store_fortran(folder, array):
    return store_npy(folder, np.asfortranarray(array))


def store_swapped(folder, array):
    return store_npy(folder, array.astype(array.dtype.newbyteorder()))


def store_version_2(folder, array):
    with open(folder / "x", "wb") as file:  # recognised by its content
        np.lib.format.write_array(file, array, version=(2, 0))
    return folder / "x"


def store_zarr(folder, array, **options):
    chunks = tuple(max(1, min(size, most)) for size, most in zip(array.shape, (30, 16, 1), strict=False))
    stored = zarr.create_array(folder / "x.zarr", shape=array.shape, dtype=array.dtype, **{"chunks": chunks, **options})
    stored[...] = array
    return folder / "x.zarr"


def store_zarr_2(folder, array):
    return store_zarr(folder, array, zarr_format=2)


def store_zarr_swapped(folder, array):
    return store_zarr(folder, array.astype(array.dtype.newbyteorder()), zarr_format=2)


def store_shards(folder, array):
    return store_zarr(folder, array, chunks=(10, 8)[: array.ndim], shards=(30, 16)[: array.ndim])


def store_in_a_group(folder, array):
    zarr.open_group(folder, mode="w")
    os.rename(store_zarr(folder, array), folder / "x")
    return folder / "x"


def table(array, names=None):
    return pa.table({name: array[:, k] for k, name in enumerate(names or columns(array))})


def columns(array):
    return [f"c{k}" for k in range(array.shape[1])]


def store_parquet(folder, array):
    pq.write_table(table(array), folder / "x.parquet", row_group_size=30)
    return folder / "x.parquet"


def store_parquets(folder, array):
    """Files of different sizes, some empty, in the order of their numbers, beside what is none."""
    (folder / "x").mkdir()
    (folder / "x" / "_metadata.parquet").write_text("no parquet")
    (folder / "x" / "README").write_text("no parquet")
    cuts = [0, 0, 1, 40, 41, 41, 100, 10_000]
    for k, (start, stop) in enumerate(pairwise(cuts)):
        pq.write_table(table(array[start:stop]), folder / "x" / f"part.{7 + k}.parquet", row_group_size=30)
    return folder / "x"


STORES = {
    "npy": store_npy,
    "fortran": store_fortran,
    "swapped": store_swapped,
    "version 2": store_version_2,
    "zarr": store_zarr,
    "zarr 2": store_zarr_2,
    "zarr swapped": store_zarr_swapped,
    "shards": store_shards,
    "group": store_in_a_group,
    "parquet": store_parquet,
    "parquets": store_parquets,
}
SHAPES = [(0, 3), (1, 3), (257, 3), (100, 1), (61, 40), (0,), (257,)]
CASES = [
    pytest.param(store, shape, id=f"{name}-{shape}")
    for name, store in STORES.items()
    for shape in SHAPES
    if len(shape) == 2 or not name.startswith("parquet")
]


def values(shape, dtype="float64", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("store", "shape"), CASES)
def test_what_is_read_is_what_was_stored(tmp_path, store, shape, dtype):
    array = values(shape, dtype)
    path = store(tmp_path, array)
    source = sources.open_source(path)
    assert (source.path, source.shape, source.dtype) == (str(path), shape, dtype)
    assert (source.rows, source.row_bytes, source.nbytes) == (
        shape[0],
        array[:1].nbytes or source.row_bytes,
        array.nbytes,
    )
    n = shape[0]
    rng = np.random.default_rng(1)
    runs = [(0, n), (0, 0), (n, n), *(sorted(rng.integers(0, n + 1, 2)) for _ in range(4))]
    for start, stop in runs:
        rows = sources.read(source, int(start), int(stop))
        assert type(rows) is np.ndarray
        assert rows.dtype == dtype and rows.dtype.isnative  # noqa: PT018
        assert rows.shape == (stop - start, *shape[1:])
        assert rows.tobytes() == array[start:stop].tobytes()
        assert rows.flags.c_contiguous
        assert rows.flags.writeable
        assert rows.base is None, "no view of a map, a table or a cache"


@pytest.mark.parametrize("name", STORES)
def test_a_source_is_small_and_the_same_everywhere(tmp_path, name):
    path = STORES[name](tmp_path, values((257, 3)))
    source = sources.open_source(path)
    again = pickle.loads(pickle.dumps(source))
    assert again == source == sources.open_source(os.path.relpath(path))
    assert hash(again) == hash(source)
    assert tokenize(again) == tokenize(source)
    assert len(pickle.dumps(source)) < 700
    pieces = dict.fromkeys(("zarr", "zarr 2", "zarr swapped", "group", "parquet", "parquets"), 30) | {"shards": 10}
    assert source.unit == pieces.get(name, 1)


def test_the_token_is_that_of_what_is_stored(tmp_path):
    """Another path, another time, other columns: another array to dask."""
    array = values((50, 3))
    path = store_parquet(tmp_path, array)
    found = [
        sources.open_source(path),
        sources.open_source(path, ["c0", "c1", "c2"]),
        sources.open_source(path, ["c1"]),
    ]
    assert found[0] == found[1]
    os.utime(path, ns=(LATER, LATER))
    found.append(sources.open_source(path))
    (tmp_path / "b").mkdir()
    found.append(sources.open_source(store_parquet(tmp_path / "b", array)))
    assert len({tokenize(source) for source in found}) == 4


def test_columns_of_parquet(tmp_path):
    array = values((50, 3))
    path = tmp_path / "x.parquet"
    words = pa.array([str(k) for k in range(50)])
    pq.write_table(pa.table({"name": words, "a": array[:, 0], "b.c": array[:, 1], "d": array[:, 2]}), path)
    read = lambda **more: sources.read(sources.open_source(path, **more), 10, 20)  # noqa: E731
    assert np.array_equal(read(), array[10:20])
    assert np.array_equal(read(columns=["d", "a"]), array[10:20, [2, 0]])
    assert np.array_equal(read(columns="b.c"), array[10:20, 1:2])
    with pytest.raises(InputError) as caught:
        read(columns=["a", "z"])
    assert str(caught.value) == f"{path} has 0 columns 'z': it has name, a, b.c, d"
    with pytest.raises(InputError) as caught:
        read(columns=[])
    assert str(caught.value) == (
        f"{path}: no columns of numbers are chosen among name, a, b.c, d: name some by columns=[...]"
    )
    with pytest.raises(DtypeError) as caught:
        read(columns=["name"])
    assert str(caught.value) == (
        f"{path} has columns such as name string: tasks read float16, float32 and float64, store them as one of them"
    )


def test_columns_of_several_types(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"id": np.arange(3), "x": np.zeros(3), "y": np.zeros(3), "z": np.zeros(3, "f4")}), path)
    with pytest.raises(DtypeError) as caught:
        sources.open_source(path)
    assert str(caught.value) == (
        f"{path} has columns of several types, such as id int64, x float64, z float32: name those of one type by "
        "columns=[...], convert them by dtype='float64', or store them with one"
    )
    assert sources.open_source(path, ["x", "y"]).shape == (3, 2)
    with pytest.raises(DtypeError) as caught:
        sources.open_source(path, ["id"])
    assert str(caught.value) == (
        f"{path} has columns such as id int64: tasks read float16, float32 and float64, store them as one of them, or "
        "say dtype='float64'"
    )


def test_files_of_several_types(tmp_path):
    for k, dtype in enumerate(("float64", "float32")):
        pq.write_table(table(values((3, 2), dtype)), tmp_path / f"{k}.pq")
    with pytest.raises(DtypeError) as caught:
        sources.open_source(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: columns c0, c1 are float64 in {tmp_path}/0.pq and float32 in {tmp_path}/1.pq: "
        "store all files with one type, or convert them by dtype='float64'"
    )


def test_nulls_are_no_numbers(tmp_path):
    path = tmp_path / "x.parquet"
    holes = pa.array([None if k in (35, 37) else float(k) for k in range(50)])
    pq.write_table(pa.table({"a": values(50), "b": holes}), path, row_group_size=20)
    source = sources.open_source(path)
    assert sources.read(source, 0, 35).shape == (35, 2)
    assert sources.read(source, 38, 50).shape == (12, 2)
    with pytest.raises(InputError) as caught:
        sources.read(source, 30, 50)
    assert str(caught.value) == (
        f"column 'b' of {path} has 2 nulls in rows 30:40 of the array, the first in row 35: fill them or leave these "
        "rows out when storing it"
    )


def test_only_row_groups_with_wanted_rows_are_read(tmp_path, monkeypatch):
    source = sources.open_source(store_parquets(tmp_path, values((300, 2))))
    seen, plain = [], pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda self, g, **more: seen.append(g) or plain(self, g, **more)
    )
    sources.read(source, 135, 165)  # of the last file, which begins with row 100
    assert seen == [1, 2]


def test_only_chunks_with_wanted_rows_are_read(tmp_path):
    path = store_zarr(tmp_path, values((100, 3)))
    chunk = path / "c" / "1" / "0"
    times = os.stat(chunk)
    chunk.write_bytes(b"no chunk")
    os.utime(chunk, ns=(times.st_atime_ns, times.st_mtime_ns))
    source = sources.open_source(path)
    assert sources.read(source, 0, 30).shape == sources.read(source, 60, 90).shape == (30, 3)
    with pytest.raises(InputError, match=rf"^rows 0:31 of {path} \(float64 \(100, 3\)\) cannot be read on {HERE}: "):
        sources.read(source, 0, 31)


def test_chunks_that_are_not_stored_hold_the_fill_value(tmp_path):
    array = values((200, 3))
    array[30:90] = array[180:] = 0
    source = sources.open_source(store_zarr(tmp_path, array))
    assert not os.path.exists(tmp_path / "x.zarr" / "c" / "1" / "0")
    assert np.array_equal(sources.read(source, 0, 200), array)
    assert np.array_equal(sources.read(source, 40, 50), array[40:50])


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_zarr_by_url(tmp_path, scheme):
    array = values((100, 3))
    url = f"{scheme}://{tmp_path}/x.zarr"
    stored = zarr.create_array(url.removeprefix("file://"), shape=array.shape, dtype=array.dtype, chunks=(30, 3))
    stored[:] = array
    source = sources.open_source(url)
    assert source.path == (url if scheme == "memory" else str(tmp_path / "x.zarr"))
    assert np.array_equal(sources.read(source, 17, 65), array[17:65])
    stored.resize((60, 3))
    with pytest.raises(InputError) as caught:
        sources.read(source, 17, 65)
    assert str(caught.value).startswith(f"{source.path}/zarr.json changed since it was opened: it had ")


def test_nothing_at_a_url():
    with pytest.raises(InputError, match=r"^memory://nothing\.zarr cannot be opened: "):
        sources.open_source("memory://nothing.zarr")


# --- what is refused when it is opened


def refused(path, error=InputError, **more):
    with pytest.raises(error) as caught:
        sources.open_source(path, **more)
    assert type(caught.value) is error
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    return str(caught.value)


def not_there(path):
    return (
        f"{path} is not there, or may not be read, on {HERE}: tasks read it by this path, so that every process that "
        "computes must see it"
    )


def test_nothing_there(tmp_path):
    assert refused(tmp_path / "x.npy") == not_there(tmp_path / "x.npy")


@pytest.mark.parametrize("name", ["x.txt", "x.npz", "folder"])
def test_unknown_formats(tmp_path, name):
    path = tmp_path / name
    path.mkdir() if name == "folder" else path.write_text("1, 2, 3")
    assert refused(path) == (
        f"{path} is of no format that tasks read (npy: a file that numpy.save wrote; csv: a file ending in .csv or "
        ".tsv; hdf5: a dataset in an HDF5 file, such as points.h5/x; parquet: a file ending in .parquet, or a "
        "directory of them; zarr: a directory that zarr wrote): store it as one of them"
    )


@pytest.mark.parametrize("store", [store_npy, store_zarr, store_zarr_2])
@pytest.mark.parametrize("dtype", ["int64", "bool", "complex64"])
def test_other_types(tmp_path, store, dtype):
    path = store(tmp_path, np.zeros((3, 2), dtype))
    cure = "" if dtype == "complex64" else ", or say dtype='float64'"
    assert refused(path, DtypeError) == (
        f"{path} holds {dtype}: tasks read float16, float32 and float64, store it as one of them{cure}"
    )


def test_objects_and_records_are_never_unpickled(tmp_path):
    objects, records = tmp_path / "objects.npy", tmp_path / "records.npy"
    np.save(objects, np.array([{}, None]), allow_pickle=True)
    with open(records, "wb") as file:
        np.lib.format.write_array(file, np.zeros(2, [("λ", "f4")]), version=(3, 0))
    known = "tasks read float16, float32 and float64"
    assert refused(objects, DtypeError) == f"{objects} holds object: {known}, store it as one of them"
    assert refused(records, DtypeError) == f"{records} is npy of version (3, 0), which is for records: {known}"


@pytest.mark.parametrize("store", [store_npy, store_zarr, store_zarr_2])
@pytest.mark.parametrize("shape", [(), (3, 2, 2)])
def test_other_ranks(tmp_path, store, shape):
    path = store(tmp_path, np.zeros(shape, "f4"))
    assert refused(path) == (f"{path} has shape {shape}: store it with 1 or 2 dimensions, (rows,) or (rows, columns)")


def test_a_group_of_zarr(tmp_path):
    zarr.open_group(tmp_path, mode="w")
    assert refused(tmp_path).startswith(f"{tmp_path} cannot be opened: ")
    store_in_a_group(tmp_path, values((3, 2)))
    assert refused(tmp_path) == f"{tmp_path} is a group of arrays: name one of them, such as {tmp_path}/x"


def test_columns_of_what_has_none(tmp_path):
    for store in (store_npy, store_zarr):
        path = store(tmp_path, values((3, 2)))
        assert (
            refused(path, columns=["a"]) == f"columns=['a'] is for parquet and csv, {path} is one array: leave it out"
        )


def test_files_that_are_not_what_their_name_says(tmp_path):
    for name in ("x.npy", "x.parquet"):
        (tmp_path / name).write_text("no such thing")
        assert refused(tmp_path / name).startswith(f"{tmp_path / name} cannot be opened: ")
    (tmp_path / "empty.parquet").mkdir()
    assert refused(tmp_path / "empty.parquet") == (
        f"{tmp_path}/empty.parquet holds no parquet files (.parquet, .parq, .pq): name a directory that holds them"
    )


@pytest.mark.parametrize("store", [store_npy, store_fortran])
def test_a_truncated_file_is_not_opened(tmp_path, store):
    path = store(tmp_path, values((100, 3)))
    os.truncate(path, 1000)
    assert refused(path) == (
        f"{path} is truncated: float64 of shape (100, 3) takes 2400 bytes from byte 128 on, and the file has 1000: "
        "write it again"
    )


@pytest.mark.parametrize(("store", "package"), [(store_zarr, "zarr"), (store_parquet, "pyarrow")])
def test_a_package_that_is_missing(tmp_path, monkeypatch, store, package):
    path = store(tmp_path, values((3, 2)))
    source = sources.open_source(path)
    monkeypatch.setitem(sys.modules, {"pyarrow": "pyarrow.parquet"}.get(package, package), None)
    text = refused(path, MissingPackageError)
    kind = path.suffix[1:]
    assert text.startswith(f"reading {kind} needs the package {package}, which cannot be imported (")
    assert text.endswith(
        f"): pip install {package}, or in dred's folder pip install '.[{kind}]'; on Dask, in the environment of the "
        "workers too"
    )
    with pytest.raises(MissingPackageError) as caught:
        sources.read(source, 0, 1)
    assert str(caught.value) == text
    assert isinstance(caught.value, ImportError)


# --- what is refused when it is read


def unread(source, start=0, stop=1):
    with pytest.raises(InputError) as caught:
        sources.read(source, start, stop)
    assert type(caught.value) is InputError
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("store", [store_npy, store_zarr, store_parquet])
@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (2, 1), (0, 101), (101, 101)])
def test_rows_that_are_not_there(tmp_path, store, start, stop):
    path = store(tmp_path, values((100, 3)))
    source = sources.open_source(path)
    assert unread(source, start, stop) == f"rows {start}:{stop} of {path} (float64 (100, 3)): it has rows 0:100"


@pytest.mark.parametrize("store", [store_npy, store_fortran, store_parquet, store_parquets])
def test_a_file_that_vanished(tmp_path, store):
    path = store(tmp_path, values((100, 3)))
    source = sources.open_source(path)
    file = path / "part.9.parquet" if path.is_dir() else path
    file.unlink()
    assert unread(source, 0, 100) == not_there(file)


@pytest.mark.parametrize("store", [store_npy, store_fortran, store_parquet, store_parquets])
@pytest.mark.parametrize("how", ["touched", "truncated", "replaced"])
def test_a_file_that_changed(tmp_path, store, how):
    path = store(tmp_path, values((100, 3)))
    file = path / "part.9.parquet" if path.is_dir() else path
    os.utime(file, ns=(0, 1_000_000_000_123_456_000))
    source = sources.open_source(path)
    size = file.stat().st_size
    assert sources.read(source, 0, 100).shape == (100, 3)
    if how == "truncated":
        os.truncate(file, 200)
    if how == "replaced":
        file.write_bytes(b"x" * (size + 7))
    os.utime(file, ns=(LATER, LATER))
    now = {"touched": size, "truncated": 200, "replaced": size + 7}[how]
    assert unread(source, 0, 100) == (
        f"{file} changed since it was opened: it had {size} bytes of 2001-09-09 01:46:40.123456 UTC, and has {now} "
        "bytes of 2033-05-18 03:33:20.123457 UTC. Open it again to compute with what it holds now"
    )
    if path.is_dir():  # rows of other files are what they were
        assert sources.read(source, 50, 100).shape == (50, 3)


def test_a_file_that_changes_while_it_is_read(tmp_path, monkeypatch):
    path = store_npy(tmp_path, values((100, 3)))
    source = sources.open_source(path)
    from dred.cluster import stored_npy

    plain = stored_npy._fill
    monkeypatch.setattr(stored_npy, "_fill", lambda *args: (plain(*args), os.utime(path, ns=(LATER, LATER))))
    assert unread(source, 0, 5).startswith(f"{path} changed since it was opened: ")


def test_a_disk_that_fails(tmp_path, monkeypatch):
    path = store_npy(tmp_path, values((100, 3)))
    source = sources.open_source(path)
    from dred.cluster import stored_npy

    def fail(*args):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(stored_npy, "_fill", fail)
    assert unread(source, 0, 5) == (
        f"rows 0:5 of {path} (float64 (100, 3)) cannot be read on {HERE}: OSError: [Errno 5] Input/output error"
    )


@pytest.mark.parametrize("store", [store_zarr, store_zarr_2, store_shards])
@pytest.mark.parametrize("how", ["written", "gone", "added"])
def test_chunks_of_zarr_that_changed(tmp_path, store, how):
    array = values((100, 3))
    array[60:90] = 0  # of one chunk or shard, which is not stored
    path = store(tmp_path, array)
    first, second, third = (path / (f"{k}.0" if store is store_zarr_2 else f"c/{k}/0") for k in range(3))
    assert not third.exists()
    source = sources.open_source(path)
    if how == "written":
        os.utime(second, ns=(LATER, LATER))
        changed, text = second, "was written"
    elif how == "gone":
        second.unlink()
        changed, text = second, "is gone"
    else:
        third.parent.mkdir(exist_ok=True)
        third.write_bytes(first.read_bytes())
        changed, text = third, "was added"
    row = 30 if changed == second else 60
    assert np.array_equal(sources.read(source, 0, 30), array[:30])
    assert np.array_equal(sources.read(source, 90, 100), array[90:])
    assert unread(source, row + 29, row + 30) == (
        f"{path} changed since it was opened: its chunk {changed.relative_to(path)} {text} since. "
        "Open it again to compute with what it holds now"
    )


def test_nothing_heavy_is_loaded():
    """Tasks are unpickled by the scheduler, which has no need of the packages of formats."""
    code = "import sys, dred.cluster.panels; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"dask", "distributed", "zarr", "pyarrow", "cupy"}.isdisjoint(done.stdout.split())


# --- other types, converted when they are read


@pytest.mark.parametrize("name", STORES)
@pytest.mark.parametrize("stored", ["float16", "float64", "int64", "bool"])
def test_converted_when_it_is_read(tmp_path, name, stored):
    array = (np.random.default_rng(0).random((100, 3)) * 100).astype(stored)
    path = STORES[name](tmp_path, array)
    for dtype in DTYPES:
        source = sources.open_source(path, dtype=dtype)
        assert (source.dtype, source.shape) == (dtype, (100, 3))
        for start, stop in [(0, 0), (17, 62)]:
            rows = sources.read(source, start, stop)
            assert rows.dtype == dtype
            assert rows.tobytes() == array[start:stop].astype(dtype).tobytes()
            assert rows.flags.c_contiguous
            assert rows.flags.writeable
        if stored in DTYPES:
            assert (sources.open_source(path) == source) is (stored == dtype)
            assert (tokenize(sources.open_source(path)) == tokenize(source)) is (stored == dtype)


def test_columns_and_files_of_several_types_are_converted(tmp_path):
    table = {"i": np.arange(3), "b": np.arange(3) > 0, "x": np.arange(3) / 4, "w": ["a", "b", "c"]}
    pq.write_table(pa.table(table), tmp_path / "0.pq")
    pq.write_table(pa.table({**table, "x": np.arange(3, dtype="f4")}), tmp_path / "1.pq")
    rows = sources.read(sources.open_source(tmp_path, dtype="float32"), 1, 5)
    assert rows.dtype == "float32"
    assert rows.tolist() == [[1, 1, 0.25], [2, 1, 0.5], [0, 0, 0], [1, 1, 1]]
    assert "such as w string" in refused(tmp_path, DtypeError, columns=["x", "w"], dtype="float32").replace(
        "x float64, ", ""
    )


def test_none_of_the_numbers_becomes_infinite_unseen(tmp_path):
    array = np.ones((100, 3))
    array[40:42, 1] = np.inf, 1e300
    for store in (store_npy, store_fortran, store_zarr, store_parquet):
        path = store(tmp_path, array)
        source = sources.open_source(path, dtype="float32")
        assert np.isinf(sources.read(source, 0, 41)[40, 1])
        assert unread(source, 3, 50) == (
            f"{path} holds 1e+300 in row 41, which is beyond float32: read it as a wider type by dtype=..."
        )


@pytest.mark.parametrize("dtype", ["int32", "complex64", "nonsense", "longdouble"])
def test_types_that_nothing_is_read_in(tmp_path, dtype):
    path = store_npy(tmp_path, values((3, 2)))
    assert refused(path, DtypeError, dtype=dtype) == f"dtype={dtype!r}: tasks read float16, float32 and float64"


@pytest.mark.parametrize("dtype", ["complex64", "datetime64[s]", "S3"])
def test_types_that_are_not_converted(tmp_path, dtype):
    path = store_npy(tmp_path, np.zeros((3, 2), dtype))
    assert refused(path, DtypeError, dtype="float64") == (
        f"{path} holds {np.dtype(dtype)}: tasks read float16, float32 and float64, store it as one of them"
    )


# --- nothing is ever unpickled, and what is cut off is noticed


class Bomb:
    """Says so when it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("it was unpickled",)


BOMB = pickle.dumps(Bomb())


def test_objects_of_npy_are_not_unpickled(tmp_path):
    np.save(tmp_path / "x.npy", np.array([Bomb(), Bomb()]), allow_pickle=True)
    for dtype in (None, "float64"):
        text = refused(tmp_path / "x.npy", DtypeError, dtype=dtype)
        assert (
            text == f"{tmp_path}/x.npy holds object: tasks read float16, float32 and float64, store it as one of them"
        )


@pytest.mark.parametrize("where", ["filters", "compressor"])
@pytest.mark.parametrize("dtype", ["<f8", "|O"])
def test_codecs_of_zarr_do_not_unpickle(tmp_path, where, dtype):
    """A pickle among the codecs of an array of numbers would be run as soon as a row is read."""
    path = tmp_path / "x.zarr"
    path.mkdir()
    codec = {"id": "pickle", "protocol": 5}
    about = {"zarr_format": 2, "shape": [3], "chunks": [3], "dtype": dtype, "order": "C", "fill_value": 0,
             "filters": None, "compressor": None}  # fmt: skip
    about[where] = [codec] if where == "filters" else codec
    (path / ".zarray").write_text(json.dumps(about))
    (path / "0").write_bytes(BOMB)
    text = refused(path)  # by us, or by those versions of zarr that know of no such type
    assert text.startswith(f"{path} ")
    assert "pickle" in text


def test_an_array_of_zarr_that_is_replaced_by_one_that_unpickles(tmp_path):
    path = store_zarr_2(tmp_path, values((30, 3)))
    source = sources.open_source(path)
    about = path / ".zarray"
    then = about.stat()
    changed = json.loads(about.read_text()) | {"filters": [{"id": "pickle"}], "compressor": None}
    about.write_text(json.dumps(changed).ljust(then.st_size)[: max(then.st_size, len(json.dumps(changed)))])
    (path / "0.0").write_bytes(BOMB)
    with pytest.raises(InputError):
        sources.read(source, 0, 3)


def test_extension_types_of_parquet_are_not_unpickled(tmp_path):
    about = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": BOMB}
    schema = pa.schema([pa.field("x", pa.float64(), metadata=about)])
    pq.write_table(pa.table([pa.array([1.0, 2.0])], schema), tmp_path / "x.parquet")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pyarrow's own, that it does not unpickle
        try:
            source = sources.open_source(tmp_path / "x.parquet", ["x"])
        except (DtypeError, InputError):
            return
        assert sources.read(source, 0, 2).tolist() == [[1.0], [2.0]]


def test_a_truncated_chunk(tmp_path):
    """Of the size and time it has when it is opened."""
    for k, options in enumerate(({}, {"compressors": None})):
        (tmp_path / str(k)).mkdir()
        path = store_zarr(tmp_path / str(k), values((100, 3)), **options)
        os.truncate(path / "c" / "1" / "0", 20)
        source = sources.open_source(path)
        assert sources.read(source, 0, 30).shape == (30, 3)
        assert unread(source, 29, 31).startswith(f"rows 29:31 of {path} (float64 (100, 3)) cannot be read on {HERE}: ")


def test_a_truncated_parquet(tmp_path):
    path = store_parquet(tmp_path, values((100, 3)))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert refused(path).startswith(f"{path} cannot be opened: ArrowInvalid: ")
    path.write_bytes(whole[:1200] + bytes(200) + whole[1400:])  # pages that are none, under metadata that are whole
    source = sources.open_source(path)
    assert unread(source, 0, 100).startswith(f"rows 0:100 of {path} (float64 (100, 3)) cannot be read on {HERE}: ")
