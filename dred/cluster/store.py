"""Finished rows, and states of lanes, in a folder: a computation that is called again goes on where it ended."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dred.errors import StoreError

Arrays = tuple[NDArray[Any], ...]

FEW = 20  # x blocks below which states of lanes are kept too: finished rows alone would be too few
MANIFEST = "manifest.json"


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
        folder = Path(os.path.abspath(os.path.expanduser(path)))
        manifest = folder / MANIFEST
        try:
            folder.mkdir(parents=True, exist_ok=True)
            there = os.listdir(folder)
            if MANIFEST not in there:
                if any(not name.startswith(".") for name in there):
                    raise StoreError(f"{folder} holds other files ({sorted(there)[0]}): name a new or an empty folder")
                _written(manifest, lambda file: file.write(json.dumps(dict(identity), indent=1).encode()))
            known = json.loads(manifest.read_bytes())
        except (OSError, ValueError) as error:
            raise StoreError(f"{folder} cannot be used as a store: {type(error).__name__}: {error}") from error
        differing = [name for name in identity if known.get(name) != identity[name]]
        if differing:
            raise StoreError(
                f"{folder} holds results of another computation, which differs in its {', '.join(differing)}: name "
                "another folder, or delete it"
            )
        return cls(str(folder))

    def rows(self, i: int) -> str:
        """The file of the results of an x block."""
        return os.path.join(self.path, f"rows-{i:06d}.npz")

    def state(self, i: int, lane: int, step: int) -> str:
        """The file of the state of a lane of an x block after a step."""
        return os.path.join(self.path, f"state-{i:06d}-{lane:04d}-{step:06d}.npz")

    @staticmethod
    def forget(path: str) -> None:
        """Remove a file that is not needed any more."""
        with contextlib.suppress(OSError):
            os.unlink(path)


def save(path: str, arrays: Sequence[NDArray[Any]]) -> None:
    """Write arrays to a file that is there whole or not at all.

    Raises
    ------
    StoreError
        It cannot be written: what was finished before is kept.
    """
    try:
        _written(Path(path), lambda file: np.savez(file, *arrays))
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error}. What was finished before is kept") from error


def load(path: str) -> Arrays | None:
    """The arrays of a file; None where there is none that is whole (its checksums say so)."""
    try:
        with np.load(path, allow_pickle=False) as found:
            return tuple(found[f"arr_{n}"] for n in range(len(found.files)))
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return None


def _written(path: Path, write: Any) -> None:
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
