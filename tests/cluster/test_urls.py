"""Objects by URL: the same rows as of files, changes noticed, only the bytes of wanted rows, and no secrets."""

import http.server
import os
import pickle
import re
import socketserver
import subprocess
import sys
import threading

import fsspec
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr

import dred
from dred.cluster import files, sinks, sources
from dred.errors import InputError, MissingPackageError

X = np.random.default_rng(0).standard_normal((1000, 3))
NAMES = {
    "npy": "x.npy",
    "fortran": "f.npy",
    "csv": "x.csv",
    "hdf5": "x.h5/g/x",
    "parquet": "x.parquet",
    "parquets": "folder",
    "zarr": "x.zarr",
}


def fill(folder, array=X):
    """The same array in every format."""
    np.save(folder / "x.npy", array)
    np.save(folder / "f.npy", np.asfortranarray(array))
    np.savetxt(folder / "x.csv", array, "%.17g", ",", header="a,b,c", comments="")
    with h5py.File(folder / "x.h5", "w") as file:
        file.create_dataset("g/x", data=array, chunks=(100, 3))
    table = pa.table({name: array[:, k] for k, name in enumerate("abc")})
    pq.write_table(table, folder / "x.parquet", row_group_size=100)
    (folder / "folder").mkdir(exist_ok=True)
    for k in range(11):
        pq.write_table(table.slice(100 * k, 100), folder / "folder" / f"{k}.parquet")
    zarr.create_array(folder / "x.zarr", data=array, chunks=(100, 3), overwrite=True)


@pytest.fixture
def memory(tmp_path):
    """A URL under which all of them are."""
    fs, root = fsspec.filesystem("memory"), f"/urls-{os.getpid()}"
    fill(tmp_path)
    fs.put(str(tmp_path) + "/", root, recursive=True)
    yield f"memory:/{root}"
    fs.rm(root, recursive=True)


def reading(source, start=0, stop=1):
    with pytest.raises(InputError) as caught:
        sources.read(source, start, stop)
    assert caught.value.__cause__ is caught.value.__context__ is None, "it may not be able to travel"
    assert type(caught.value) is InputError
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    return str(caught.value)


def refused(url, error=InputError, **more):
    with pytest.raises(error) as caught:
        sources.open_source(url, **more)
    assert type(caught.value) is error
    return str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_those_of_the_file(tmp_path, memory, name):
    source = sources.open_source(f"{memory}/{NAMES[name]}")
    there = sources.open_source(tmp_path / NAMES[name])
    assert (source.shape, source.dtype, source.unit) == (there.shape, there.dtype, there.unit)
    assert sources.open_source(f"{memory}/{NAMES[name]}") == source == pickle.loads(pickle.dumps(source))
    assert len(pickle.dumps(source)) < 1200
    for start, stop in [(0, 1000), (0, 0), (1000, 1000), (99, 301), (17, 18)]:
        rows = sources.read(source, start, stop)
        assert rows.tobytes() == X[start:stop].tobytes()
        assert rows.flags.writeable


@pytest.mark.parametrize("name", NAMES)
def test_an_object_that_changed_or_vanished(tmp_path, memory, name):
    url = f"{memory}/{NAMES[name]}"
    source = sources.open_source(url)
    token = files.stamp_of(f"{memory}/x.npy")
    fill(tmp_path, X + 1)
    fs, root = files.file_system(memory)
    fs.put(str(tmp_path) + "/", root, recursive=True)
    assert files.stamp_of(f"{memory}/x.npy") != token
    text = reading(source)
    assert re.match(rf"{memory}/\S+ changed since it was opened: ", text)
    assert text.endswith("Open it again to compute with what it holds now")
    assert sources.read(sources.open_source(url), 3, 9).tobytes() == (X + 1)[3:9].tobytes()
    fs.rm(root, recursive=True)
    fs.pipe_file(f"{root}/other", b"")
    assert "is not there" in reading(source) or "cannot be read" in reading(source)


def test_chunks_of_zarr(memory):
    """What the listing said of each chunk is compared, where there are times."""
    fs, root = files.file_system(memory)
    source = sources.open_source(f"{memory}/x.zarr")
    chunk = fs.cat_file(f"{root}/x.zarr/c/3/0")
    fs.pipe_file(f"{root}/x.zarr/c/3/0", chunk)
    text = (
        "{}/x.zarr changed since it was opened: its chunk {} {} since. Open it again to compute with what it holds now"
    )
    assert reading(source, 399, 401) == text.format(memory, "c/3/0", "was written")
    fs.rm_file(f"{root}/x.zarr/c/5/0")
    assert reading(source, 599, 601) == text.format(memory, "c/5/0", "is gone")
    assert sources.read(source, 0, 300).tobytes() == X[:300].tobytes()
    again = sources.open_source(f"{memory}/x.zarr")
    assert sources.read(again, 500, 600).tobytes() == bytes(100 * 24)
    fs.pipe_file(f"{root}/x.zarr/c/5/0", chunk)
    assert reading(again, 599, 601) == text.format(memory, "c/5/0", "was added")


def test_a_truncated_chunk_of_zarr(memory):
    fs, root = files.file_system(memory)
    fs.pipe_file(f"{root}/x.zarr/c/3/0", fs.cat_file(f"{root}/x.zarr/c/3/0")[:100])
    source = sources.open_source(f"{memory}/x.zarr")
    assert re.match(
        rf"rows 299:301 of {memory}/x\.zarr \(float64 \(1000, 3\)\) cannot be read on ", reading(source, 299, 301)
    )


def test_a_sum_is_that_of_the_same_rows_in_npy(tmp_path, memory):
    routine = dred.Genred("Exp(-SqDist(x,y))", ["x = Vi(3)", "y = Vj(3)"], axis=1)
    y = X[:50]
    paths = [f"{place}/{name}" for name in NAMES.values() for place in (tmp_path, memory)]
    first, *sums = (np.asarray(routine(dred.from_file(path, chunks=333), y, backend="cpu")) for path in paths)
    assert np.allclose(first[:, 0], np.exp(-((X[:, None] - y) ** 2).sum(2)).sum(1), rtol=1e-12)
    assert {found.tobytes() for found in sums} == {first.tobytes()}


# --- what a URL may not be


@pytest.mark.parametrize(
    "url", ["s3://key:hush@bucket/x.npy", "https://me:hush@host.invalid/x.npy", "ftp://u:hush@h/x.csv"]
)
def test_passwords_are_refused_and_not_repeated(url):
    text = refused(url)
    assert "carries a password" in text
    assert "hush" not in text


@pytest.mark.parametrize(
    "name", ["X-Amz-Signature", "sig", "Signature", "token", "access_token", "api-key", "X-Goog-Credential"]
)
def test_signatures_are_refused_and_not_repeated(name):
    text = refused(f"https://host.invalid/x.npy?version=3&{name}=hush")
    assert text == (
        f"a URL of host.invalid carries what looks like a secret, {name!r}, and would carry it to all workers and "
        "into logs: give credentials by the environment or by fsspec's configuration of each process, and the URL "
        "without them"
    )


def test_urls_without_secrets_are_let_pass():
    for url in ("abfs://box@account.dfs.core.windows.net/x", "sftp://me@host/x", "https://h/x.npy?version=3&monkey=1"):
        assert files.plain(url) == url


def test_chains_and_protocols():
    assert refused("simplecache::s3://b/x.npy") == (
        "simplecache::s3://b/x.npy is a chain of file systems, which may keep copies of what has changed since: name "
        "one plain URL"
    )
    assert refused("nonsense://b/x.npy").startswith("nonsense://b/x.npy: nothing installed knows nonsense:// (")


def test_a_package_that_is_missing(monkeypatch):
    registry = sys.modules["fsspec.registry"]
    monkeypatch.setattr(registry, "_registry", {})
    monkeypatch.setattr(registry, "registry", registry._registry)
    for module in ("s3fs", "gcsfs", "aiohttp"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "fsspec.implementations.http", raising=False)
    for url, package, cure in [
        ("s3://b/x.npy", "s3fs", ": pip install s3fs, or in dred's folder pip install '.[s3]'"),
        ("s3://b/x.zarr", "s3fs", ": pip install s3fs, or in dred's folder pip install '.[s3]'"),
        ("gs://b/x.csv", "gcsfs", ": pip install gcsfs"),
        (
            "https://host.invalid/x.parquet",
            "aiohttp",
            ": pip install aiohttp, or in dred's folder pip install '.[http]'",
        ),
    ]:
        text = refused(url, MissingPackageError)
        assert text.startswith(f"{url.partition('://')[0]}:// needs the package {package}, which cannot be imported (")
        assert text.endswith(f"){cure}; on Dask, in the environment of the workers too")


@pytest.mark.parametrize("name", ["x.npy", "x.csv", "x.parquet"])
def test_nothing_there(name):
    assert refused(f"memory://nowhere/{name}").startswith(
        f"memory://nowhere/{name} is not there, or may not be read, on "
    )


def test_objects_without_a_size_or_a_version(monkeypatch):
    told = {"name": "x", "type": "file", "size": None}
    with pytest.raises(InputError, match=r"^u://x: the server does not say how many bytes it has, "):
        files.stamp_told("u://x", told)
    assert files.stamp_told("u://x", told | {"size": 3}) == (3, "")
    assert files.stamp_told("u://x", told | {"size": 3, "Last-Modified": "y", "ETag": '"z"'}) == (3, 'ETag "z"')
    assert files.time_told(told | {"LastModified": "2001-09-09T01:46:40Z"}) == 1_000_000_000 * 10**9
    assert files.time_told(told | {"mtime": 1.5}) == 1_500_000_000
    assert files.time_told(told | {"mtime": "last week"}) is files.time_told(told) is None


# --- http, with ranges


class Handler(http.server.BaseHTTPRequestHandler):
    """Gives `server.objects[path]`, whole or a range of it, and counts the bytes it sends."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        data = self.server.objects.get(self.path)
        if data is None:
            self.send_error(403 if self.path.startswith("/forbidden") else 404)
            return
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")) if self.server.ranges else None
        start, stop = (int(wanted[1]), min(int(wanted[2]) + 1, len(data))) if wanted else (0, len(data))
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        self.send_header("Content-Length", str(stop - start))
        self.send_header("ETag", f'"{hash(data)}"')
        self.end_headers()
        if body:
            self.server.sent.append(stop - start)
            self.wfile.write(data[start:stop])

    def log_message(self, *args):
        pass


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True


@pytest.fixture
def web(tmp_path):
    fill(tmp_path)
    with Server(("127.0.0.1", 0), Handler) as server:
        server.objects = {f"/{name}": (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)
                          if (tmp_path / name).is_file()}  # fmt: skip
        server.sent, server.ranges = [], True
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("name", ["npy", "fortran", "csv", "hdf5", "parquet"])
def test_by_http(web, name):
    source = sources.open_source(f"{web.url}/{NAMES[name]}")
    for start, stop in [(0, 1000), (0, 0), (99, 301), (17, 18)]:
        assert sources.read(source, start, stop).tobytes() == X[start:stop].tobytes()
    web.objects = {key: bytes(len(data)) for key, data in web.objects.items()}
    assert "changed since it was opened" in reading(source)
    web.objects = {}
    assert "is not there, or may not be read, on" in reading(source)


def test_only_the_bytes_of_wanted_rows_are_sent(web):
    source = sources.open_source(f"{web.url}/x.npy")
    assert sum(web.sent) <= 8192  # its header, and what was fetched with it
    for start, stop in [(0, 1), (17, 18), (100, 900)]:
        web.sent.clear()
        sources.read(source, start, stop)
        assert web.sent == [24 * (stop - start)]
    source = sources.open_source(f"{web.url}/f.npy")
    web.sent.clear()
    sources.read(source, 100, 110)
    assert web.sent == 3 * [80]  # of each column its rows
    source = sources.open_source(f"{web.url}/x.parquet")
    web.sent.clear()
    sources.read(source, 100, 110)
    assert sum(web.sent) < 3 * len(web.objects["/x.parquet"])


def test_a_server_that_gives_no_ranges(web):
    web.ranges = False
    source = sources.open_source(f"{web.url}/x.npy")
    assert "range requests" in reading(source, 10, 20)


def test_forbidden(web):
    for name in ("none.npy", "forbidden.npy", "none.csv", "none.h5/x"):
        assert "is not there, or may not be read, on" in refused(f"{web.url}/{name}")


# --- s3, as moto imitates it


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """URL of an empty bucket of a server in another process; its address and keys are in fsspec's configuration."""
    code = """
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0)
server.start()
print("at", *server.get_host_and_port(), flush=True)
input()
server.stop()
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        host, port = next(line for line in server.stdout if line.startswith("at ")).split()[1:]
        endpoint = f"http://{host}:{port}"
        told = {"endpoint_url": endpoint, "key": "dred", "secret": "hush-hush"}
        fsspec.config.conf["s3"] = told
        fsspec.filesystem("s3").mkdir("dred")
        yield "s3://dred"
        fsspec.config.conf.pop("s3")
        server.communicate("\n")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_by_s3(tmp_path, bucket, name):
    fill(tmp_path)
    fs = fsspec.filesystem("s3")
    fs.put(str(tmp_path) + "/", "dred/a", recursive=True)
    url = f"{bucket}/a/{NAMES[name]}"
    source = sources.open_source(url)
    for start, stop in [(0, 1000), (0, 0), (99, 301), (17, 18)]:
        assert sources.read(source, start, stop).tobytes() == X[start:stop].tobytes()
    assert b"hush" not in pickle.dumps(source)
    fs.ls("dred/a", detail=True)  # what it remembers of this must not hide that all changes
    fill(tmp_path, X + 1)
    other = fsspec.filesystem("s3", skip_instance_cache=True)
    other.put(str(tmp_path) + "/", "dred/a", recursive=True)
    if name != "zarr":  # times are whole seconds there: a second within which nothing is written settles it
        assert "changed since it was opened" in reading(source)
    assert sources.read(sources.open_source(url), 3, 9).tobytes() == (X + 1)[3:9].tobytes()
    other.rm("dred/a", recursive=True)
    assert "is not there" in reading(source) or "cannot be read" in reading(source)


@pytest.mark.slow
def test_forbidden_by_s3(bucket):
    for url in (f"{bucket}/none.npy", "s3://none/x.npy", f"{bucket}/none.h5/x"):
        assert "is not there, or may not be read, on" in refused(url)


@pytest.mark.slow
@pytest.mark.parametrize("ending", sinks.SINKS)
def test_sinks_by_s3(tmp_path, bucket, ending):
    url = f"{bucket}/out/x{ending}"
    for array in (X, X[:300] + 1):
        sinks.check_sink(url, array.shape, array.dtype)
        sink = sinks.open_sink(url, tmp_path / "part", array.shape, array.dtype, 100)
        sink[0 : len(array)] = array
        sink.finish()
        source = sources.open_source(url)
        assert sources.read(source, 0, len(array)).tobytes() == array.tobytes()
    assert os.listdir(tmp_path) == []
    found = fsspec.filesystem("s3", skip_instance_cache=True).find("dred/out")
    assert len(found) == (4 if ending == ".zarr" else 1)
    fsspec.filesystem("s3").rm("dred/out", recursive=True)


@pytest.mark.slow
def test_workers_read_s3_with_their_own_credentials(bucket, monkeypatch):
    """Processes that are told endpoint and keys by their environment alone; the graph holds neither."""
    from distributed import Client, LocalCluster

    fs = fsspec.filesystem("s3")
    told = fsspec.config.conf["s3"]
    with fs.open("dred/workers.npy", "wb") as file:
        np.save(file, X)
    monkeypatch.setenv("FSSPEC_S3_ENDPOINT_URL", told["endpoint_url"])
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "dred")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush-hush")
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster, Client(cluster):
        rows = dred.from_file(f"{bucket}/workers.npy", chunks=300)
        assert rows.compute().tobytes() == X.tobytes()
        graph = pickle.dumps(dict(rows.dask))
        assert b"s3://dred/workers.npy" in graph
        assert b"hush" not in graph
        assert told["endpoint_url"].encode() not in graph
