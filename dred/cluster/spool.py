"""Arrays of this process as npy files in a private directory, for tasks to read by path.

The directory carries the host's name, what tells this start of the host (and container) from others, and the number of
the process. It goes when the process ends; where a process was killed, the next one of the same user that spools beside
it removes what was left.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import platform
import re
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from dred.cluster import sources
from dred.cluster.stored import Source
from dred.errors import InputError, human

Array = NDArray[Any]

BLOCK = 16 << 20  # bytes of an array that are digested, or written, at a time

_NAME = re.compile(r"dred-spool-(?P<host>[\w.-]+-[0-9a-f]{8})-(?P<pid>[0-9]+)-[a-z0-9_]{8}")
_LOCK = threading.RLock()
_users: Counter[str] = Counter()  # how often the rows of a file were kept
_homes: dict[tuple[int, str], str] = {}  # by process, since a forked child must not spool into its parent's


def home(base: str) -> str:
    """The directory of this process under `base`, both made where they are not there. OSError: that is not possible."""
    base = os.path.abspath(os.path.expanduser(base))
    with _LOCK:
        path = _homes.get((os.getpid(), base), "")
        if not os.path.isdir(path):
            os.makedirs(base, exist_ok=True)
            sweep(base)
            path = tempfile.mkdtemp(prefix=f"dred-spool-{_host()}-{os.getpid()}-", dir=base)  # 0700
            _homes[os.getpid(), base] = path
            atexit.register(_remove, path, os.getpid())
        return path


def keep(array: Array, base: str) -> Source:
    """An array as a file under `base`, written unless the same rows were before.

    Parameters
    ----------
    array : numpy.ndarray
        (rows,) or (rows, columns), of a type that tasks read; in any order, of memory or of a file.

    Raises
    ------
    InputError
        It does not fit on the disk, or cannot be written.
    """
    with _LOCK:
        path = os.path.join(home(base), f"{_digest(array)}.npy")
        if not os.path.exists(path):
            _write(array, path)
        _users[path] += 1
        return sources.open_source(path)


def release(source: Source | None) -> None:
    """Remove the file of an array that was kept, if nobody else has kept the same rows; anything else is left alone."""
    with _LOCK:
        if source is not None and _users[source.path]:
            _users[source.path] -= 1
            if not _users[source.path]:
                del _users[source.path]
                with contextlib.suppress(OSError):
                    os.unlink(source.path)


def sign(base: str) -> tuple[str, str]:
    """A new file of random content in this process's directory, and the content: others who read it see the directory.

    OSError: it cannot be written. The caller removes it.
    """
    path, content = os.path.join(home(base), f"seen-{os.urandom(8).hex()}"), os.urandom(16).hex()
    with _created(path) as file:
        file.write(content.encode())
    return path, content


def signed(path: str) -> str | None:
    """The content of a file, as this process sees it; None: it sees none."""
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return None


def sweep(base: str) -> None:
    """Remove directories under `base` that this user's processes left, which ended on this start of this host."""
    if os.name != "posix":  # elsewhere nobody can be asked whether a process is alive
        return
    host = _host()
    with contextlib.suppress(OSError), os.scandir(base) as entries:
        for entry in entries:
            named = _NAME.fullmatch(entry.name)
            if named is None or named["host"] != host or not entry.is_dir(follow_symlinks=False):
                continue
            with contextlib.suppress(OSError):
                if entry.stat(follow_symlinks=False).st_uid == os.getuid() and _ended(int(named["pid"])):
                    shutil.rmtree(entry.path, ignore_errors=True)


def _host() -> str:
    """This host, since it was started, and as far as numbers of processes reach: containers may share a name."""
    name = re.sub(r"[^\w.-]", "_", platform.node(), flags=re.ASCII) or "host"
    start = ""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        start = file.read()
    with contextlib.suppress(OSError):
        start += os.readlink("/proc/self/ns/pid")
    return f"{name}-{hashlib.blake2b(start.encode(), digest_size=4).hexdigest()}"


def _ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # asks, and sends nothing
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # another user's, or no number of a process
        return False
    return False


def _remove(path: str, pid: int) -> None:
    if os.getpid() == pid:
        shutil.rmtree(path, ignore_errors=True)


def _created(path: str) -> IO[bytes]:
    """A new file of this user's alone."""
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600), "wb")


def _blocks(array: Array) -> Iterator[Array]:
    """Its rows, some at a time, as they lie in a file."""
    rows = max(1, BLOCK // max(1, array[:1].nbytes))
    for start in range(0, len(array), rows):
        yield np.ascontiguousarray(array[start : start + rows], dtype=array.dtype.newbyteorder("="))


def _digest(array: Array) -> str:
    digest = hashlib.blake2b(f"{array.shape} {array.dtype.name}".encode(), digest_size=16)
    for block in _blocks(array):
        digest.update(block.data)
    return digest.hexdigest()


def _write(array: Array, path: str) -> None:
    """Write a file that appears under its name at once and whole."""
    folder = os.path.dirname(path)
    cure = "make room, or set dred.spool-directory in dask's configuration to a directory that has it"
    free = shutil.disk_usage(folder).free
    if array.nbytes > free:
        raise InputError(
            f"an array of {human(array.nbytes)} does not fit into {folder}, where it would be spooled for the workers "
            f"and {human(free)} are free: {cure}"
        )
    header = {
        "descr": array.dtype.newbyteorder("=").str,
        "fortran_order": False,
        "shape": array.shape,
    }
    beside = f"{path}.{os.urandom(8).hex()}"
    try:
        with _created(beside) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for block in _blocks(array):
                file.write(block.data)
        os.replace(beside, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        if isinstance(error, OSError):
            raise InputError(
                f"an array of {human(array.nbytes)} cannot be spooled in {folder} ({error}): {cure}"
            ) from error
        raise
