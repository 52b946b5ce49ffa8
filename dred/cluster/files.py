"""Files by path, and objects by URL: opened for reading at offsets, listed, and recognised when they changed.

What a URL needs besides (credentials, endpoints) comes from the environment and from fsspec's own configuration, where
each process has it: none of it is in a source.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import import_module
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from dred.errors import InputError, MissingPackageError

# Bytes, and what tells one version from another: of a file the time of its last change in nanoseconds, of an object
# what its file system says first of `VERSIONS`.
Stamp = tuple[int, int | str]

# How file systems call what changes with the content, the surest first; in small letters and without signs.
TIMES = ("lastmodified", "updated", "mtime", "modify", "modified", "created")
VERSIONS = ("etag", "contentmd5", "md5hash", "md5", "generation", "sha", *TIMES)

# Package and extra of those protocols that many have.
PACKAGES = {
    **dict.fromkeys(("s3", "s3a"), ("s3fs", "s3")),
    **dict.fromkeys(("http", "https"), ("aiohttp", "http")),
    **dict.fromkeys(("gs", "gcs"), ("gcsfs", "")),
    **dict.fromkeys(("az", "abfs", "abfss"), ("adlfs", "")),
}

_SECRET = re.compile(r"(?i)(?:^|[^a-z])(?:sig|signature|token|key|password|secret|credential)s?$")


def is_url(path: str) -> bool:
    return "://" in path


def plain(url: str) -> str:
    """A URL as it may stand in a task graph. InputError: it carries a secret, or is a chain of file systems."""
    if "::" in url:
        raise InputError(
            f"{url} is a chain of file systems, which may keep copies of what has changed since: name one plain URL"
        )
    parts = urlsplit(url)
    secret = next((name for name, _ in parse_qsl(parts.query, keep_blank_values=True) if _SECRET.search(name)), None)
    if parts.password is not None or secret is not None:
        what = "a password" if parts.password is not None else f"what looks like a secret, {secret!r}"
        raise InputError(
            f"a URL of {parts.hostname} carries {what}, and would carry it to all workers and into logs: give "
            "credentials by the environment or by fsspec's configuration of each process, and the URL without them"
        )
    return url


def file_system(url: str) -> tuple[Any, str]:
    """The file system behind a URL, with what it knows of old listings forgotten, and the path in it.

    Raises
    ------
    InputError
        An unknown protocol.
    MissingPackageError
        Its package is not installed.
    """
    from fsspec.core import url_to_fs

    protocol = url.partition("://")[0]
    try:
        fs, inner = url_to_fs(url)
    except ImportError as error:
        name, extra = PACKAGES.get(protocol, ("", ""))
        raise MissingPackageError(lacking(f"{protocol}://", name, extra, error)) from error
    except ValueError as error:
        if protocol.lower() in str(error):
            raise InputError(f"{url}: nothing installed knows {protocol}:// ({error})") from error
        raise
    fs.invalidate_cache(inner)
    return fs, inner


def look(url: str) -> Mapping[str, Any] | None:
    """What a file system says of an object; None: it is not there, or is not shown to us."""
    fs, inner = file_system(url)
    try:
        told: Mapping[str, Any] = fs.info(inner)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    return told


def is_folder(path: str) -> bool:
    if not is_url(path):
        return os.path.isdir(path)
    told = look(path)
    return told is not None and told["type"] == "directory"


def names(folder: str) -> list[str]:
    """The names of the files of a folder, in no order."""
    if not is_url(folder):
        return [name for name in os.listdir(folder) if os.path.isfile(os.path.join(folder, name))]
    fs, inner = file_system(folder)
    return [told["name"].rstrip("/").rpartition("/")[2] for told in fs.ls(inner, detail=True) if told["type"] == "file"]


def found(url: str) -> dict[str, Mapping[str, Any]]:
    """What a file system says of each object under a URL, by the rest of its path."""
    fs, inner = file_system(url)
    root = inner.rstrip("/") + "/"
    return {name.removeprefix(root): told for name, told in fs.find(inner, detail=True).items()}


def inside(folder: str, *names: str) -> str:
    """The path or URL of a file of a folder."""
    return "/".join([folder.rstrip("/"), *names]) if is_url(folder) else os.path.join(folder, *names)


def stamp_of(path: str) -> Stamp | None:
    """The fingerprint of a file or object as this process sees it; None: it sees none."""
    if is_url(path):
        told = look(path)
        return None if told is None or told["type"] == "directory" else stamp_told(path, told)
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def stamp_told(url: str, told: Mapping[str, Any]) -> Stamp:
    """The fingerprint of an object of which its file system says this."""
    if told.get("size") is None:
        raise InputError(f"{url}: the server does not say how many bytes it has, so that none can be read at its place")
    given = _given(told)
    version = next((given[name] for name in VERSIONS if name in given), None)
    return int(told["size"]), "" if version is None else " ".join(map(str, version))


def time_told(told: Mapping[str, Any]) -> int | None:
    """When an object was last changed, in nanoseconds; None: its file system does not say."""
    given = _given(told)
    time = next((given[name][1] for name in TIMES if name in given), None)
    try:
        time = datetime.fromisoformat(time).timestamp() if isinstance(time, str) else time
    except ValueError:
        return None
    if isinstance(time, datetime):
        time = time.timestamp()
    return round(time * 1_000_000_000) if isinstance(time, (int, float)) else None


def _given(told: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """By the name as it is in `VERSIONS`: the file system's own name, and what it says."""
    return {re.sub("[^a-z0-9]", "", name.lower()): (name, value) for name, value in told.items() if value}


def missing(path: str) -> str:
    return (
        f"{path} is not there, or may not be read, on {platform.node()}: tasks read it by this path, so that every "
        "process that computes must see it"
    )


def stamped(path: str) -> Stamp:
    stamp = stamp_of(path)
    if stamp is None:
        raise InputError(missing(path))
    return stamp


def unchanged(path: str, then: Stamp) -> None:
    now = stamped(path)
    if now != then:
        raise InputError(
            f"{path} changed since it was opened: it had {_shown(then)}, and has {_shown(now)}. "
            "Open it again to compute with what it holds now"
        )


def _shown(stamp: Stamp) -> str:
    size, version = stamp
    if isinstance(version, int):
        return f"{size} bytes of {datetime.fromtimestamp(version / 1e9, UTC):%Y-%m-%d %H:%M:%S.%f} UTC"
    return f"{size} bytes" + (f" ({version})" if version else "")


def opened(path: str, ahead: int = 0) -> Any:
    """A file or object, to be read in bytes at offsets.

    Parameters
    ----------
    path : str
    ahead : int
        Of an object, fetch at least so many bytes at a time and keep those that were not asked for; 0: fetch exactly
        what is asked for.
    """
    if not is_url(path):
        return open(path, "rb", buffering=0)
    fs, inner = file_system(path)
    if ahead:
        return fs.open(inner, "rb", cache_type="readahead", block_size=ahead)
    return fs.open(inner, "rb", cache_type="none")


def fill(file: Any, offset: int, view: memoryview) -> None:
    """Read bytes from `offset` on until `view` is full; systems give at most 2 GB at a time."""
    file.seek(offset)
    while len(view):
        count = file.readinto(view)
        if not count:
            raise EOFError(f"the file ends {len(view)} bytes too early")
        view = view[count:]


def package(name: str, extra: str, what: str = "") -> Any:
    """A module of a package, which `what` needs: by default, reading what its extra is called."""
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingPackageError(lacking(what or f"reading {extra}", name.partition(".")[0], extra, error)) from error


def lacking(what: str, package: str, extra: str, error: ImportError) -> str:
    needs = f"the package {package}, which cannot be imported" if package else "a package that cannot be imported"
    install = f": pip install {package}" if package else ""
    ours = f", or in dred's folder pip install '.[{extra}]'" if extra else ""
    return f"{what} needs {needs} ({error}){install}{ours}; on Dask, in the environment of the workers too"
