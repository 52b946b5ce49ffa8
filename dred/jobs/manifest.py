"""What a job's results depend on, beside them: whether finished blocks, or results, are those of this very job."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dred.errors import JobError, StoreError

NAME = "job.json"
LOCK = ".lock"
BLOCKS, PARTS, PAGE = "blocks", "parts", "dask.html"  # what else is in the folder of a job
_PACKAGES = ("dred", "numpy", "dask", "distributed", "llvmlite", "zarr", "pyarrow", "h5py")

Identity = Mapping[str, Any]  # "formula", "inputs" (by name), "plan", ...: texts


def versions() -> dict[str, str]:
    """Of Python and of packages, those that are there."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def digest(identity: Identity) -> str:
    """A number in hexadecimal that equal identities share."""
    return hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=16).hexdigest()


def differing(known: Identity, identity: Identity) -> list[str]:
    """What of a job is not what it was, in words."""
    found = []
    for name, value in identity.items():
        before = known.get(name)
        if before == value:
            continue
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            names = dict.fromkeys([*before, *value])
            found += [f"{each} (was {before.get(each)}, is {value.get(each)})" for each in names
                      if before.get(each) != value.get(each)]  # fmt: skip
        elif isinstance(value, str):
            found.append(f"its {name} (was {before}, is {value})")
        else:
            found.append(f"its {name}")
    return found


def read(path: str) -> dict[str, Any] | None:
    """A file of this module; None: there is none. StoreError: it cannot be read."""
    try:
        found = json.loads(Path(path).read_bytes())
        if not isinstance(found, dict) or not isinstance(found.get("identity"), dict):
            raise ValueError("it is not one of dred's")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        of = os.path.dirname(path) if os.path.basename(path) == NAME else path  # blocks of nobody knows what are no use
        raise StoreError(f"{path} cannot be read: {error}. Delete {of} to begin anew") from error
    return found


def write(path: str, content: Mapping[str, Any]) -> None:
    """A file that is there whole or not at all. StoreError: it cannot be written."""
    put(path, json.dumps(content, indent=1) + "\n")


def put(path: str, text: str) -> None:
    """A text as a file that is there whole or not at all. StoreError: it cannot be written."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        try:
            with open(temporary, "x", encoding="utf-8", errors="backslashreplace") as file:  # names may be no text
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error}") from error


def check(path: str) -> None:
    """Refuse, before anything is computed, a path that `put` could not write. StoreError."""
    try:
        if os.path.isdir(path):
            raise IsADirectoryError("a folder has this name")
        tempfile.TemporaryFile(dir=os.path.dirname(path)).close()
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error}") from error


def foreign(folder: str) -> list[str]:
    """What is in a folder that is to be a job's and holds no `NAME` yet, and is not this module's."""
    return sorted(name for name in os.listdir(folder) if name != LOCK and not name.startswith((f".{NAME}-", ".nfs")))


def clear(folder: str) -> None:
    """Remove what a job keeps in its folder, `NAME` after what it is of, and the folder if nothing else is in it."""
    for name in (BLOCKS, PARTS):
        shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
    with contextlib.suppress(OSError):
        temporary = [name for name in os.listdir(folder) if name.startswith(f".{NAME}-")]
        for name in (PAGE, *temporary, NAME, LOCK):
            Path(folder, name).unlink(missing_ok=True)
        os.rmdir(folder)


@contextmanager
def alone(folder: str) -> Iterator[None]:
    """Nobody else works in a folder meanwhile. The lock goes with the process, however it ends.

    Raises
    ------
    JobError
        Another process runs the job.
    StoreError
        The folder cannot be made or written to.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        file = open(os.path.join(folder, LOCK), "a")  # noqa: SIM115
    except OSError as error:
        raise StoreError(f"{folder} cannot be used: {error}") from error
    with file:
        try:
            _lock(file)
        except BlockingIOError as error:
            raise JobError(f"another process runs this job: it holds {folder}") from error
        except OSError:
            pass  # a file system without locks: runs at the same time write the same bytes
        if not _is(file, os.path.join(folder, LOCK)):
            raise JobError(f"another process has just ended this job in {folder}: run it again")
        try:
            yield
        finally:
            if os.path.isdir(folder) and os.listdir(folder) == [LOCK]:  # nothing was begun
                clear(folder)


def _is(file: Any, path: str) -> bool:
    """Whether an open file is still what a path names."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except OSError:
        return False


def _lock(file: Any) -> None:
    with contextlib.suppress(ImportError):  # there is none on Windows
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
