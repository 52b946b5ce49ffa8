"""Datasets of HDF5 files: what is read is what h5py stored, and no other file is ever opened for them."""

import os
import pickle
import subprocess
import sys

import fsspec
import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dred.cluster import sources
from dred.errors import DtypeError, InputError, MissingPackageError


def values(shape, dtype="float64"):
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def store(folder, array, name="g/x", **options):
    with h5py.File(folder / "p.h5", "a") as file:
        file.create_dataset(name, data=array, **options)
    return folder / "p.h5" / name


def refused(path, error=InputError, **more):
    with pytest.raises(error) as caught:
        sources.open_source(path, **more)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(0, 3), (1, 3), (257, 3), (61, 40), (0,), (257,)])
@pytest.mark.parametrize(
    "options",
    [{}, {"chunks": True}, {"chunks": True, "compression": "gzip", "shuffle": True}, {"maxshape": True}],
    ids=repr,
)
def test_what_is_read_is_what_was_stored(tmp_path, dtype, shape, options):
    array = values(shape, dtype)
    options = dict(options)
    if "chunks" in options:
        options["chunks"] = tuple(max(1, min(size, 30)) for size in shape)
    if options:
        options["maxshape"] = tuple(None for _ in shape)
    path = store(tmp_path, array, **options)
    source = sources.open_source(path)
    assert (source.path, source.shape, source.dtype) == (str(path), shape, dtype)
    assert "chunks" not in options or source.unit == options["chunks"][0]
    for start, stop in [(0, shape[0]), (0, 0), (shape[0] // 3, shape[0] // 2), (shape[0] // 2, shape[0])]:
        rows = sources.read(source, start, stop)
        assert rows.tobytes() == array[start:stop].tobytes()
        assert (rows.dtype, rows.shape) == (array.dtype, array[start:stop].shape)
        assert rows.flags.c_contiguous
        assert rows.flags.writeable
    assert pickle.loads(pickle.dumps(source)) == source == sources.open_source(os.path.relpath(path))
    assert len(pickle.dumps(source)) < 800


@given(st.data())
@settings(max_examples=30)
def test_any_rows(tmp_path_factory, data):
    array = values((data.draw(st.integers(1, 80)), 2)).astype(data.draw(st.sampled_from([">f4", "<f8", ">f8", "i2"])))
    path = store(tmp_path_factory.mktemp("h5"), array, chunks=(data.draw(st.integers(1, len(array))), 1))
    source = sources.open_source(path, dtype="float64")
    start, stop = sorted(data.draw(st.tuples(*2 * [st.integers(0, len(array))])))
    assert sources.read(source, start, stop).tobytes() == array[start:stop].astype("f8").tobytes()


def test_paths(tmp_path):
    array = values((30, 2))
    store(tmp_path, array)
    store(tmp_path, np.arange(3), "n")
    with h5py.File(tmp_path / "p.h5", "a") as file:
        file["soft"] = h5py.SoftLink("/g/x")
        file["g/up"] = h5py.SoftLink("x")
        file["folder"] = h5py.SoftLink("g")
        file["hard"] = file["g/x"]
        file["loop"] = h5py.SoftLink("/loop")
        file["dangling"] = h5py.SoftLink("/g/none")
    os.rename(tmp_path / "p.h5", tmp_path / "points")  # recognised by its content
    file = tmp_path / "points"
    for name in ("g/x", "soft", "g/up", "folder/x", "folder/up", "hard"):
        assert np.array_equal(sources.read(sources.open_source(file / name), 3, 20), array[3:20])
    inside = "it has g/x (float64 (30, 2)), n (int64 (3,))"
    for name in ("loop", "dangling", "g/y", "g/x/y"):
        assert refused(file / name) == f"{file} has no dataset {name!r}: {inside}"
    assert refused(file) == f"{file} is a file of arrays: name a dataset, as in {file}/NAME; {inside}"
    assert refused(file / "g") == f"'g' of {file} is a group: name a dataset, as in {file}/NAME; {inside}"
    assert refused(tmp_path / "none.h5" / "x").startswith(f"{tmp_path}/none.h5/x is not there, or may not be read, on ")
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    assert refused(tmp_path / "empty.h5").endswith("; it has no datasets")
    with h5py.File(tmp_path / "many.nc", "w") as many:
        for k in range(12):
            many[f"v{k:02d}"] = np.zeros(1)
    assert refused(tmp_path / "many.nc").endswith("v07 (float64 (1,)), ...")


def test_no_other_file_is_read(tmp_path, monkeypatch):
    array = values((30, 2))
    (tmp_path / "raw").write_bytes(array.tobytes())
    with h5py.File(tmp_path / "q.h5", "w") as file:
        file["x"] = array
        file["g/x"] = array
    with h5py.File(tmp_path / "p.h5", "w") as file:
        file["link"] = h5py.ExternalLink("q.h5", "/x")
        file["group"] = h5py.ExternalLink("q.h5", "/g")
        file["by way"] = h5py.SoftLink("/link")
        layout = h5py.VirtualLayout((30, 2), "f8")
        layout[:] = h5py.VirtualSource(str(tmp_path / "q.h5"), "x", (30, 2))
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("external", (30, 2), "f8", external=[(str(tmp_path / "raw"), 0, h5py.h5f.UNLIMITED)])
        assert file["external"][0, 0] == file["virtual"][0, 0] == file["link"][0, 0] == array[0, 0]
    file = tmp_path / "p.h5"
    for name in ("link", "group/x", "by way"):
        assert refused(file / name) == (
            f"the dataset {name!r} of {file} is a link into another file, q.h5: name that file"
        )
    assert refused(file / "virtual") == (
        f"the dataset 'virtual' of {file} is virtual: its numbers lie in other files. Name those, or copy it into "
        "one file"
    )
    assert refused(file / "external") == (
        f"the dataset 'external' of {file} keeps its numbers in another file, {tmp_path}/raw: copy it into one file"
    )
    assert refused(file).endswith("it has external (float64 (30, 2)), virtual (float64 (30, 2))")


def test_what_a_task_finds_in_place_of_a_dataset_is_looked_at_again(tmp_path):
    """A file that changed to link elsewhere, with the size and time it had, is refused too."""
    path = store(tmp_path, values((30, 2)), "x")
    source = sources.open_source(path)
    file = tmp_path / "p.h5"
    with h5py.File(tmp_path / "q.h5", "w") as other:
        other["x"] = values((30, 2)) + 1
    then = os.stat(file)
    with h5py.File(file, "a") as opened:
        del opened["x"]
        opened["x"] = h5py.ExternalLink("q.h5", "/x")
    os.truncate(file, then.st_size) if os.stat(file).st_size < then.st_size else None
    os.utime(file, ns=(then.st_atime_ns, then.st_mtime_ns))
    with pytest.raises(InputError):
        sources.read(source, 0, 3)


def test_what_is_no_array_of_numbers(tmp_path):
    file = tmp_path / "p.h5"
    known = "tasks read float16, float32 and float64, store it as one of them"
    with h5py.File(file, "w") as opened:
        opened["words"] = np.array(["a", "b"], dtype=h5py.string_dtype())
        opened["references"] = np.array([opened.ref], dtype=h5py.ref_dtype)
        opened["records"] = np.zeros(2, [("a", "f4")])
        opened["one"] = 1.0
        opened["cube"] = np.zeros((2, 2, 2))
        opened["empty"] = h5py.Empty("f8")
        opened["packed"] = np.zeros(3, "i2")
        opened["packed"].attrs["scale_factor"] = 0.1
    for name in ("words", "references"):
        assert refused(file / name, DtypeError, dtype="float64") == f"{file}/{name} holds object: {known}"
    assert refused(file / "records", DtypeError) == f"{file}/records holds [('a', '<f4')]: {known}"
    for name, shape in (("one", "()"), ("cube", "(2, 2, 2)")):
        assert refused(file / name) == (
            f"{file}/{name} has shape {shape}: store it with 1 or 2 dimensions, (rows,) or (rows, columns)"
        )
    assert refused(file / "empty") == f"the dataset 'empty' of {file} is empty: it has no shape"
    assert refused(file / "packed", dtype="float64") == (
        f"the dataset 'packed' of {file} is packed (scale_factor): store the numbers themselves"
    )
    assert refused(file / "cube", columns=["a"]) == (
        f"columns=['a'] is for parquet and csv, {file}/cube is one array: leave it out"
    )


def test_files_that_are_none(tmp_path):
    path = tmp_path / "x.h5"
    path.write_text("no such thing")
    assert refused(path).startswith(f"{path} cannot be opened: OSError: ")
    path = store(tmp_path, values((300, 2)), "x")
    os.truncate(tmp_path / "p.h5", 3000)
    assert refused(path).startswith(f"{path} cannot be opened: OSError: ")
    assert "truncated file" in refused(path)


@pytest.mark.parametrize("how", ["truncated", "touched", "gone"])
def test_a_file_that_changed(tmp_path, how):
    path = store(tmp_path, values((300, 2)), "x")
    file = tmp_path / "p.h5"
    source = sources.open_source(path)
    if how == "gone":
        file.unlink()
    elif how == "truncated":
        os.truncate(file, 3000)
    else:
        os.utime(file, ns=(0, 2_000_000_000_123_456_789))
    text = "is not there, or may not be read, on " if how == "gone" else "changed since it was opened: it had "
    with pytest.raises(InputError) as caught:
        sources.read(source, 0, 3)
    assert str(caught.value).startswith(f"{file} {text}")


def test_a_chunk_that_cannot_be_unpacked(tmp_path):
    """Rows of other chunks are what they were; those of this one are named."""
    path = store(tmp_path, values((90, 2)), "x", chunks=(30, 2), compression="gzip")
    file = tmp_path / "p.h5"
    with h5py.File(file, "r") as opened:
        chunk = opened["x"].id.get_chunk_info(1)
    with open(file, "r+b") as opened:
        opened.seek(chunk.byte_offset)
        opened.write(b"\0" * chunk.size)
    source = sources.open_source(path)
    assert sources.read(source, 0, 30).shape == sources.read(source, 60, 90).shape == (30, 2)
    with pytest.raises(InputError, match=rf"^rows 29:31 of {path} \(float64 \(90, 2\)\) cannot be read on "):
        sources.read(source, 29, 31)


def test_no_lock_is_taken(tmp_path):
    """While another process has the file open to write, and so has locked it."""
    array = values((30, 2))
    path = store(tmp_path, array, "x")
    code = """
import sys, h5py
file = h5py.File(sys.argv[1], "a")
print("locked", flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", code, str(tmp_path / "p.h5")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(BlockingIOError, match="unable to lock file"):
            h5py.File(tmp_path / "p.h5", "r", locking=True)
        assert np.array_equal(sources.read(sources.open_source(path), 0, 30), array)
        other.communicate()


def test_by_url(tmp_path):
    array = values((90, 2))
    store(tmp_path, array, chunks=(30, 2), compression="gzip")
    memory = fsspec.filesystem("memory")
    memory.put_file(str(tmp_path / "p.h5"), "/hdf5/p.h5")
    url = "memory://hdf5/p.h5/g/x"
    source = sources.open_source(url)
    assert (source.path, source.unit) == (url, 30)
    assert np.array_equal(sources.read(source, 17, 65), array[17:65])
    assert refused("memory://hdf5/p.h5").startswith("memory://hdf5/p.h5 is a file of arrays: name a dataset, as in ")
    assert refused("memory://hdf5/none.h5/x").startswith("memory://hdf5/none.h5 is not there, or may not be read, on ")
    memory.rm("/hdf5", recursive=True)
    with pytest.raises(InputError, match=r"^memory://hdf5/p\.h5 is not there, or may not be read, on "):
        sources.read(source, 17, 65)


def test_a_package_that_is_missing(tmp_path, monkeypatch):
    path = store(tmp_path, values((3, 2)))
    monkeypatch.setitem(sys.modules, "h5py", None)
    text = refused(path, MissingPackageError)
    assert text.startswith("reading hdf5 needs the package h5py, which cannot be imported (")
    assert "pip install h5py, or in dred's folder pip install '.[hdf5]'" in text
