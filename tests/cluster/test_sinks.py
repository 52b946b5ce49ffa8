"""Sinks: what is there is what was put, whole or not at all, and the same bytes in any order."""

import errno
import os
import pickle
import shutil
import sys
from itertools import pairwise

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from dred.cluster import sinks, sources
from dred.errors import DtypeError, InputError, MissingPackageError, StoreError

DTYPES = ("float16", "float32", "float64", "int64", "bool")
ENDINGS = (".npy", ".zarr", ".parquet")


def values(shape, dtype="float64"):
    rng = np.random.default_rng(0)
    if dtype == "bool":
        return rng.random(shape) < 0.5
    if dtype == "int64":
        return rng.integers(-(2**62), 2**62, shape)
    array = rng.standard_normal(shape).astype(dtype)
    array.flat[:5] = [np.nan, -0.0, np.inf, -np.inf, 0.0][: array.size]
    return array


def got(path):
    """What another library finds."""
    name = str(path)
    if name.endswith(".npy"):
        return np.load(name, allow_pickle=False)
    if name.endswith(".zarr"):
        return zarr.open_array(name, mode="r")[...]
    table = pq.read_table(name)
    return np.stack([column.to_numpy() for column in table.columns], axis=1)


def contents(path):
    """Every file under a path, by its name."""
    if path.is_file():
        return {"": path.read_bytes()}
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def put(path, array, cuts, order=None, rows=10, **more):
    part = path.parent / f".{path.name}.part" / "part"
    sink = sinks.open_sink(path, part, array.shape, array.dtype, rows, **more)
    runs = list(pairwise([0, *cuts, len(array)]))
    for k in order if order is not None else range(len(runs)):
        start, stop = runs[k]
        sink[start:stop] = array[start:stop]
    sink.finish()
    os.rmdir(part.parent)  # nothing is left in it
    return sink


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (57, 3), (57,), (57, 2, 3)])
def test_what_is_there_is_what_was_put(tmp_path, ending, dtype, shape):
    if ending == ".parquet" and len(shape) == 3:
        return
    array = values(shape, dtype)
    path = tmp_path / f"x{ending}"
    sinks.check_sink(path, shape, dtype)
    assert os.listdir(tmp_path) == []
    put(path, array, [0, 7, 31] if shape[0] > 40 else [])
    found = got(path)
    if ending == ".parquet":
        array = array.reshape(len(array), *shape[1:] or (1,))
    assert found.dtype == array.dtype
    assert found.shape == array.shape
    assert found.tobytes() == np.ascontiguousarray(array).tobytes()
    if dtype.startswith("float") and len(shape) < 3:  # and dred reads it
        source = sources.open_source(path)
        assert sources.read(source, 0, len(array)).tobytes() == np.ascontiguousarray(array).tobytes()


@pytest.mark.parametrize("ending", ENDINGS)
@given(st.data())
@settings(max_examples=8)
def test_any_order_gives_the_same_bytes(tmp_path_factory, ending, data):
    array = values((41, 2))
    folder = tmp_path_factory.mktemp("order")
    put(folder / f"a{ending}", array, [])
    cuts = sorted(data.draw(st.sets(st.integers(1, 40), max_size=6)))
    order = data.draw(st.permutations(range(len(cuts) + 1)))
    order += data.draw(st.lists(st.sampled_from(order), max_size=3))  # some rows again
    put(folder / f"b{ending}", array, cuts, order)
    assert contents(folder / f"a{ending}") == contents(folder / f"b{ending}")
    shutil.rmtree(folder)


def test_pieces_are_those_asked_for(tmp_path):
    array = values((57, 3))
    put(tmp_path / "x.zarr", array, [], rows=20)
    assert zarr.open_array(tmp_path / "x.zarr", mode="r").chunks == (20, 3)
    put(tmp_path / "x.parquet", array, [], rows=20, columns=["u", "v", "w"])
    about = pq.ParquetFile(tmp_path / "x.parquet")
    assert [about.metadata.row_group(g).num_rows for g in range(3)] == [20, 20, 17]
    assert about.schema_arrow.names == ["u", "v", "w"]
    assert pq.read_schema(put(tmp_path / "y.parquet", array, []).path).names == ["c0", "c1", "c2"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_was_there_stays_until_the_end(tmp_path, ending):
    path, part = tmp_path / f"x{ending}", tmp_path / "aside" / "part"
    old, new = values((20, 2)), values((30, 2)) + 1
    put(path, old, [])
    sinks.check_sink(path, new.shape, new.dtype)
    sink = sinks.open_sink(path, part, new.shape, new.dtype, 10)
    sink[0:30] = new
    assert got(path).tobytes() == old.tobytes()
    sink.finish()
    assert got(path).tobytes() == new.tobytes()
    assert os.listdir(part.parent) == []
    sink.discard()
    assert got(path).tobytes() == new.tobytes()


@pytest.mark.parametrize("ending", ENDINGS)
def test_discarded(tmp_path, ending):
    path, part = tmp_path / f"x{ending}", tmp_path / "part"
    sink = sinks.open_sink(path, part, (30, 2), "float64", 10)
    sink[0:10] = values((10, 2))
    sink.discard()
    sink.discard()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("ending", ENDINGS)
def test_not_whole(tmp_path, ending):
    path = tmp_path / f"x{ending}"
    sink = sinks.open_sink(path, tmp_path / "part", (30, 2), "float64", 10)
    sink[0:10] = sink[20:30] = values((10, 2))
    with pytest.raises(StoreError) as caught:
        sink.finish()
    assert str(caught.value) == f"{path} is not whole: 10 of its 30 rows were not written, the first is row 10"
    assert not path.exists()
    sink.discard()


def test_blocks_that_do_not_fit(tmp_path):
    sink = sinks.open_sink(tmp_path / "x.npy", tmp_path / "part", (30, 2), "float64", 10)
    for rows, block, text in [
        (slice(0, 2), np.zeros((3, 2)), "rows 0:2 of {} are float64 of shape (2, 2), got float64 of shape (3, 2)"),
        (
            slice(0, 2),
            np.zeros((2, 2), "f4"),
            "rows 0:2 of {} are float64 of shape (2, 2), got float32 of shape (2, 2)",
        ),
        (slice(29, 31), np.zeros((2, 2)), "rows 29:31 of {}: it has rows 0:30"),
        (slice(0, 4, 2), np.zeros((2, 2)), "rows 0:4 of {}: it has rows 0:30"),
    ]:
        with pytest.raises(InputError) as caught:
            sink[rows] = block
        assert str(caught.value) == text.format(tmp_path / "x.npy")
    sink.discard()


def refused(path, shape=(3, 2), dtype="float64", error=InputError, **more):
    with pytest.raises(error) as caught:
        sinks.check_sink(path, shape, dtype, **more)
    assert type(caught.value) is error
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    return str(caught.value)


def test_what_could_not_be_written_is_refused_at_once(tmp_path):
    npy, parquet, tar = tmp_path / "x.npy", tmp_path / "x.parquet", tmp_path / "x.tar"
    assert refused(tar) == f"{tar}: results are written as .npy, .parquet, .zarr, let its name end in one of them"
    assert refused(npy, (2, 3, 4, 5)) == f"{npy} cannot hold shape (2, 3, 4, 5): its format has 1 to 3 dimensions"
    assert refused(parquet, (2, 3, 4)) == f"{parquet} cannot hold shape (2, 3, 4): its format has 1 to 2 dimensions"
    assert refused(npy, dtype="complex64", error=DtypeError) == (
        f"{npy} is to hold complex64: results are written as float16, float32, float64, int64, bool"
    )
    assert refused(npy, columns=["a"]) == f"columns=['a'] is for parquet, {npy} is one array: leave it out"
    for names in (["a"], ["a", "a"]):
        assert refused(parquet, columns=names) == (
            f"{parquet} has 2 columns of shape (3, 2): name each, columns={names} do not"
        )
    assert refused(tmp_path / "no" / "x.npy", error=StoreError) == (
        f"{tmp_path}/no/x.npy cannot be written: there is no folder {tmp_path}/no, make it"
    )
    assert refused(npy, (10**13, 10**3), error=StoreError).startswith(f"{npy} takes 80 PB, and {tmp_path} has ")
    npy.mkdir()
    assert refused(npy) == f"{npy} is a folder, and is to be none: remove it"
    (tmp_path / "x.zarr").write_text("")
    assert refused(tmp_path / "x.zarr") == f"{tmp_path}/x.zarr is a file, and is to be none: remove it"
    (tmp_path / "y.zarr").mkdir()
    sinks.check_sink(tmp_path / "y.zarr", (3, 2), "float64")
    (tmp_path / "y.zarr" / "thesis.tex").write_text("")
    assert refused(tmp_path / "y.zarr") == (
        f"{tmp_path}/y.zarr is a folder of something else, which results would replace: remove it"
    )


def test_an_input_is_no_sink(tmp_path):
    np.save(tmp_path / "x.npy", values((3, 2)))
    (tmp_path / "link.npy").symlink_to("x.npy")
    source = sources.open_source(tmp_path / "x.npy")
    sinks.check_sink(tmp_path / "y.npy", (3, 2), "float64", inputs=[source])
    for name in ("x.npy", "link.npy", "../" + tmp_path.name + "/x.npy"):
        assert refused(tmp_path / name, inputs=[source]) == (
            f"{os.path.abspath(tmp_path / name)} is an input, {source}: let results have another name"
        )
    put(tmp_path / "g.zarr", values((3, 2)), [])
    inner = sources.Source("zarr", str(tmp_path / "g.zarr" / "inside"), (1,), "float64", ())
    assert "is an input" in refused(tmp_path / "g.zarr", inputs=[inner])


@pytest.mark.parametrize(("ending", "module"), [(".zarr", "zarr"), (".parquet", "pyarrow.parquet")])
def test_a_package_that_is_missing(tmp_path, monkeypatch, ending, module):
    monkeypatch.setitem(sys.modules, module, None)
    text = refused(tmp_path / f"x{ending}", error=MissingPackageError)
    package = module.partition(".")[0]
    assert text.startswith(f"writing {ending[1:]} needs the package {package}, which cannot be imported (")


class Full:
    """A file on a disk with room for so many bytes."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, view):
        if len(view) > self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= len(view)
        return self.file.write(view)

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.mark.parametrize("ending", [".npy", ".parquet"])
def test_a_full_disk(tmp_path, ending):
    path = tmp_path / f"x{ending}"
    array = values((30, 2))
    put(path, array, [])
    sink = sinks.open_sink(path, tmp_path / "part", (30, 2), "float64", 10)
    sink._array._file = Full(sink._array._file, 200)
    sink[0:10] = array[:10] + 1
    with pytest.raises(StoreError) as caught:
        sink[10:20] = array[10:20]
    assert str(caught.value).startswith(f"{path} cannot be written by way of {tmp_path}/part, where ")
    assert str(caught.value).endswith(" are free: OSError: [Errno 28] No space left on device")
    sink.discard()
    assert os.listdir(tmp_path) == [path.name]
    assert got(path).tobytes() == array.tobytes()


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_disk_that_fails_at_the_end(tmp_path, monkeypatch, ending):
    """Nothing of the new is under the path, and what was there still is."""
    path = tmp_path / f"x{ending}"
    old, new = values((20, 2)), values((30, 2)) + 1
    put(path, old, [])
    sink = sinks.open_sink(path, tmp_path / "part", (30, 2), "float64", 10)
    sink[0:30] = new

    def fail(*args):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreError, match=r"cannot be written by way of .*Input/output error$"):
        sink.finish()
    monkeypatch.undo()
    assert got(path).tobytes() == old.tobytes()
    sink.finish()
    assert got(path).tobytes() == new.tobytes()


def test_a_folder_that_cannot_be_moved(tmp_path, monkeypatch):
    path = tmp_path / "x.zarr"
    old = values((20, 2))
    put(path, old, [])
    sink = sinks.open_sink(path, tmp_path / "part", (20, 2), "float64", 10)
    sink[0:20] = old + 1
    plain = os.rename

    def rename(source, target):
        if source == str(tmp_path / "part"):
            raise PermissionError(errno.EACCES, "Permission denied")
        plain(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(StoreError, match="Permission denied"):
        sink.finish()
    monkeypatch.undo()
    assert got(path).tobytes() == old.tobytes()
    sink.discard()
    assert os.listdir(tmp_path) == ["x.zarr"]


def test_a_part_elsewhere(tmp_path):
    if not os.path.isdir("/dev/shm") or os.stat("/dev/shm").st_dev == os.stat(tmp_path).st_dev:
        return
    with pytest.raises(
        StoreError, match=r"cannot be moved into its place from /dev/shm/dred-no-such/part, which is on "
    ):
        sinks.open_sink(tmp_path / "x.npy", "/dev/shm/dred-no-such/part", (3,), "float64", 1)
    os.rmdir("/dev/shm/dred-no-such")


@pytest.mark.parametrize("ending", ENDINGS)
def test_by_url(tmp_path, ending):
    url = f"memory://sinks/x{ending}"
    part = tmp_path / "aside" / "part"
    for array in (values((20, 2)), values((30, 2)) + 1, values((5, 2))):
        sinks.check_sink(url, array.shape, "float64")
        sink = sinks.open_sink(url, part, array.shape, "float64", 10)
        sink[0 : len(array)] = array
        sink.finish()
        assert os.listdir(part.parent) == []
        source = sources.open_source(url)
        assert sources.read(source, 0, len(array)).tobytes() == array.tobytes()
    memory = fsspec.filesystem("memory")
    assert not memory.exists("/sinks/x.npy.dred")
    if ending == ".zarr":
        assert sorted(memory.find("/sinks/x.zarr")) == ["/sinks/x.zarr/c/0/0", "/sinks/x.zarr/zarr.json"]
    memory.rm("/sinks", recursive=True)


def test_urls_that_are_refused(monkeypatch):
    assert refused("https://host.invalid/x.npy") == (
        "https://host.invalid/x.npy: nothing is written by http, name an object of a store or a path"
    )
    assert "carries a password" in refused("ftp://me:secret@host.invalid/x.npy")

    def forbidden(self, path, value, **more):
        raise PermissionError("Access Denied")

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "pipe_file", forbidden)
    text = refused("memory://b/x.npy", error=StoreError)
    assert text.startswith("memory://b/x.npy cannot be written by way of memory://b/x.npy")
    assert text.endswith(": PermissionError: Access Denied")


def test_an_upload_that_lost_bytes(tmp_path, monkeypatch):
    sink = sinks.open_sink("memory://b/lost.npy", tmp_path / "part", (3,), "float64", 1)
    sink[0:3] = np.zeros(3)
    memory = fsspec.get_filesystem_class("memory")
    monkeypatch.setattr(memory, "put_file", lambda self, here, there: self.pipe_file(there, b"half"))
    with pytest.raises(StoreError, match=r"OSError: 4 of 152 bytes arrived$"):
        sink.finish()
    sink.discard()
