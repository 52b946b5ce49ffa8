"""Finished rows, and states of lanes, in a folder: a computation that is called again goes on where it ended."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from dred.errors import StoreError
from dred.kernel.spec import array_type

Arrays = tuple[NDArray[Any], ...]

FEW = 20  # x blocks below which states of lanes are kept too: finished rows alone would be too few
MANIFEST = "manifest.json"
ALIGNED = 64  # bytes; each array of a file begins at a multiple of them
DIGEST = 16  # bytes at the end of a file, of all before


@dataclass(frozen=True)
class Store:
    """A folder that all workers and the caller see, for one computation."""

    path: str

    @classmethod
    def open(cls, path: str | os.PathLike[str], identity: Mapping[str, str]) -> Store:
        """The folder, made if it is not there.

        Parameters
        ----------
        path : path
        identity : mapping of str to str
            What its contents depend on, by name.

        Raises
        ------
        StoreError
            It holds what was computed of something else, or anything but a store, or cannot be written to.
        """
        folder = Path(path)
        manifest = folder / MANIFEST
        try:
            if MANIFEST not in made(folder):
                _only(folder, ())
                _written(manifest, lambda file: file.write(json.dumps(dict(identity), indent=1).encode()))
            known = json.loads(manifest.read_bytes())
            differing = [name for name in identity if known[name] != identity[name]]
        except StoreError:
            raise
        except (KeyError, OSError, TypeError, ValueError) as error:
            raise StoreError(f"{folder} cannot be used as a store: {type(error).__name__}: {error}") from error
        if differing:
            raise StoreError(
                f"{folder} holds results of another computation, which differs in its {', '.join(differing)}: name "
                "another folder, or delete it"
            )
        return cls(str(folder))

    def rows(self, i: int) -> str:
        """The file of the results of an x block."""
        return os.path.join(self.path, f"rows-{i:06d}.bin")

    def state(self, i: int, lane: int, step: int) -> str:
        """The file of the state of a lane of an x block after a step."""
        return os.path.join(self.path, f"state-{i:06d}-{lane:04d}-{step:06d}.bin")

    @staticmethod
    def forget(path: str) -> None:
        """Remove a file that is not needed any more."""
        with contextlib.suppress(OSError):
            os.unlink(path)


def root(path: str | os.PathLike[str]) -> str:
    """The folder of a store as an absolute path, made if it is not there; the stores of sweeps are in it, and no more.

    Raises
    ------
    StoreError
        It is no path, holds anything else, or cannot be written to.
    """
    name = os.fspath(path) if isinstance(path, str | os.PathLike) else ""
    if not name or "://" in name:
        raise StoreError(f"store={path!r}: it is the path of a folder that all workers and this process share")
    folder = Path(os.path.abspath(os.path.expanduser(name)))
    try:
        made(folder)
        _only(folder, ("sweep-",))
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(f"{folder} cannot be used as a store: {type(error).__name__}: {error}") from error
    return str(folder)


def made(folder: Path) -> list[str]:
    """What is in a folder, which is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    return os.listdir(folder)


def _only(folder: Path, prefixes: tuple[str, ...]) -> None:
    """Refuse a folder that holds anything but what is called so. (What begins with a dot is nobody's.)"""
    if foreign := sorted(name for name in os.listdir(folder) if not name.startswith((".", *prefixes))):
        raise StoreError(f"{folder} holds other files ({foreign[0]}): name a new or an empty folder")


def save(path: str, arrays: Sequence[NDArray[Any]]) -> None:
    """Write arrays to a file that is there whole or not at all.

    Raises
    ------
    StoreError
        It cannot be written: what was finished before is kept.
    """
    try:
        _written(Path(path), lambda file: _write(file, arrays))
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error}. What was finished before is kept") from error


def load(path: str) -> Arrays | None:
    """The arrays of a file; None where there is none that is whole, as its digest says."""
    try:
        with open(path, "rb") as file:
            content = bytearray(os.fstat(file.fileno()).st_size)
            file.readinto(content)
    except OSError:
        return None
    data, digest = memoryview(content)[:-DIGEST], content[-DIGEST:]
    if hashlib.blake2b(data, digest_size=DIGEST).digest() != digest:
        return None
    end = content.index(b"\n")
    start, arrays = end + 1, []
    for name, shape in json.loads(content[:end]):
        start = -(-start // ALIGNED) * ALIGNED
        dtype, count = array_type(name), int(np.prod(shape, dtype=int))
        arrays.append(np.frombuffer(content, dtype, count, start).reshape(shape) if count else np.empty(shape, dtype))
        start += count * dtype.itemsize
    return tuple(arrays)


def shapes(path: str) -> list[tuple[str, tuple[int, ...]]]:
    """Names of types and shapes of the arrays of a file. OSError, ValueError: there is none that is whole enough."""
    with open(path, "rb") as file:
        return [(name, tuple(shape)) for name, shape in json.loads(file.readline())]


def _write(file: IO[bytes], arrays: Sequence[NDArray[Any]]) -> None:
    """A line that says what they are, the arrays, a digest. (`numpy.savez` knows no bfloat16, and not all of its bytes
    are checked when they are read.)"""
    digest = hashlib.blake2b(digest_size=DIGEST)
    length = 0

    def put(data: Any) -> None:
        nonlocal length
        digest.update(data)
        file.write(data)
        length += len(data)

    put(json.dumps([(array.dtype.name, array.shape) for array in arrays]).encode() + b"\n")
    for array in arrays:
        put(bytes(-length % ALIGNED))
        if array.size:
            put(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    file.write(digest.digest())


def _written(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """By another name first: many processes may write the same, and any may end at any time."""
    temporary = path.with_name(f".{path.name}-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
