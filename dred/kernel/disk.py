"""Bytes kept on disk from one process to the next, by the content of a key: machine code, mostly.

The folder is $DRED_CACHE_DIR, else $XDG_CACHE_HOME/dred, else ~/.cache/dred. It belongs to the user alone. There are no
locks: an entry appears under its name at once and whole, every writer of a name writes the same, and one that is not
what it should be is removed. So many processes may use a folder at once, on file systems of a network too. Where a
folder cannot be used, nothing is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import struct
import time
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from dred.errors import OptionError

MEBIBYTES = 256  # where DRED_CACHE_SIZE is not set
OFF = ("", "off")  # values of DRED_CACHE_DIR

_MAGIC = b"\x89dred\r\n\x1a"
_FORMAT = 1  # raised when entries look otherwise
_HEAD = struct.Struct("<8sIQ32s32s")  # magic, format, bytes of the payload, digests of the key and of the payload
_NAME = re.compile(r"[0-9a-f]{64}(\.[0-9a-f]{16})?")  # of an entry; with its own ending while it is written
_DAY = 86400.0
_OTHERS = stat.S_IWGRP | stat.S_IWOTH


@dataclass
class Store:
    """A folder of entries, and how many bytes of them are kept.

    Attributes
    ----------
    folder : Path or None
        None: nothing is kept.
    most : int
        Bytes. After an eighth of it was written comes a sweep, which leaves three quarters. Processes that write less
        than that each sweep with a chance that makes it so on average.
    """

    folder: Path | None
    most: int = MEBIBYTES << 20
    _written: int = field(default=0, repr=False)

    def read(self, key: str) -> bytes | None:
        """What was written under a key, if it is there."""
        path = self._path(key)
        if path is None:
            return None
        try:
            with open(path, "rb") as file:
                status = os.fstat(file.fileno())
                content = file.read() if _ours(status) else b""
        except OSError:
            return None
        payload = _opened(key, content)
        if payload is None:
            self.remove(key)
        elif time.time() - status.st_mtime > _DAY:
            with contextlib.suppress(OSError):
                os.utime(path)  # what was used last is kept; a day's precision costs no writing
        return payload

    def write(self, key: str, payload: bytes) -> None:
        """Keep bytes under a key, if that is possible here."""
        path = self._path(key)
        size = len(payload) + _HEAD.size
        if path is None or size > self.most // 8 or not _made(path.parent):
            return
        beside = path.with_name(f"{path.name}.{os.urandom(8).hex()}")
        try:
            number = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
            try:
                with open(number, "wb") as file:
                    file.write(_sealed(key, payload))
                os.replace(beside, path)
            except BaseException:
                os.unlink(beside)
                raise
        except OSError:
            return
        self._written += size
        chance = int(path.name[:8], 16) / 2**32  # of the content: no generator of random numbers is disturbed
        if self._written > self.most // 8 or chance < 8 * size / self.most:
            self._written = 0
            self.sweep()

    def remove(self, key: str) -> None:
        """Forget an entry, such as one that turned out to be of no use."""
        if (path := self._path(key)) is not None:
            with contextlib.suppress(OSError):
                path.unlink()

    @property
    def private(self) -> bool:
        """Whether nobody else can have put entries into the folder, or it is not there yet."""
        return self.folder is not None and _private(self.folder)

    def usage(self) -> tuple[int, int]:
        """Number of entries, and their bytes."""
        sizes = []
        if self.folder is not None:
            with contextlib.suppress(OSError), os.scandir(self.folder) as entries:
                for entry in entries:
                    if _NAME.fullmatch(entry.name):
                        with contextlib.suppress(OSError):
                            sizes.append(entry.stat(follow_symlinks=False).st_size)
        return len(sizes), sum(sizes)

    def sweep(self) -> None:
        """Remove entries until three quarters of `most` are left, those first that were used longest ago, and what
        writers left that were killed. Files with other names are nobody's business."""
        if self.folder is None:
            return
        found, now = [], time.time()
        with contextlib.suppress(OSError), os.scandir(self.folder) as entries:
            for entry in entries:
                if name := _NAME.fullmatch(entry.name):
                    with contextlib.suppress(OSError):
                        status = entry.stat(follow_symlinks=False)
                        dead = name[1] is not None and now - status.st_mtime > _DAY
                        found.append((0.0 if dead else status.st_mtime, status.st_size, entry.path, dead))
        total = sum(size for _, size, _, _ in found)
        for _, size, path, dead in sorted(found):
            if not dead and total <= self.most // 4 * 3:
                return
            with contextlib.suppress(OSError):
                os.unlink(path)
            total -= size

    def _path(self, key: str) -> Path | None:
        if self.folder is None or not _private(self.folder):
            return None
        return self.folder / hashlib.sha256(key.encode()).hexdigest()


def default() -> Store:
    """The store that the environment names.

    Raises
    ------
    OptionError
        DRED_CACHE_SIZE is no number.
    """
    named = os.environ.get("DRED_CACHE_DIR")
    size = os.environ.get("DRED_CACHE_SIZE", "").strip() or str(MEBIBYTES)
    if not size.isdecimal():
        raise OptionError(f"DRED_CACHE_SIZE is {size!r}: set it to a whole number of MiB (0: no cache), or unset it")
    if named is not None:
        folder = "" if named.strip().lower() in OFF else os.path.abspath(os.path.expanduser(named))
    else:
        base = os.environ.get("XDG_CACHE_HOME", "")
        base = base if os.path.isabs(base) else os.path.expanduser("~/.cache")
        folder = os.path.join(base, "dred") if os.path.isabs(base) else ""  # a user without a home
    return _store(folder, int(size) << 20)


@lru_cache(maxsize=16)
def _store(folder: str, most: int) -> Store:
    """One per folder, which counts what this process has written."""
    return Store(Path(folder) if folder and most else None, most)


def _sealed(key: str, payload: bytes) -> bytes:
    return _HEAD.pack(_MAGIC, _FORMAT, len(payload), *map(_sha, (key.encode(), payload))) + payload


def _opened(key: str, content: bytes) -> bytes | None:
    """The payload of an entry; None if it is anything but a whole entry of that key."""
    payload = content[_HEAD.size :]
    return payload if content == _sealed(key, payload) else None


def _sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _made(folder: Path) -> bool:
    """Whether there is a folder for entries, made if need be."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(0o700)
    except OSError:
        return False
    return folder.is_dir() and _private(folder)


def _private(folder: Path) -> bool:
    """Whether nobody else can have put entries into a folder, or it is not there yet."""
    try:
        return _ours(folder.stat()) and _ours(folder.lstat(), link=True)
    except FileNotFoundError:
        return True
    except OSError:
        return False


def _ours(status: os.stat_result, link: bool = False) -> bool:
    """Whether a file is this user's, and nobody else may write to it (links have no rights of their own)."""
    if not hasattr(os, "geteuid"):  # Windows: the rights of a profile are its user's
        return True
    return status.st_uid == os.geteuid() and (
        bool(link and stat.S_ISLNK(status.st_mode)) or not status.st_mode & _OTHERS
    )
