"""A digest of what turns a spec into machine code: dred's own sources and tables, as this process has loaded them."""

from __future__ import annotations

import functools
import hashlib
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dred.formula.ops import OPS
from dred.kernel.primitives import PRIMITIVES
from dred.reductions import MONOIDS

# as they are when dred is imported; entries that somebody adds later are in no file
_LOADED = time.time()
_TABLES: tuple[Mapping[str, object], ...] = (OPS, PRIMITIVES, MONOIDS)
_ENTRIES = tuple(dict(table) for table in _TABLES)


def digest() -> str | None:
    """Digest of the sources; None where what this process runs may not be what they say.

    That is so where they cannot be read, have been changed since they were loaded, or where a table has been changed.
    """
    return _files() if all(map(_same, _TABLES, _ENTRIES)) else None


def _same(table: Mapping[str, object], before: Mapping[str, object]) -> bool:
    return table.keys() == before.keys() and all(table[name] is entry for name, entry in before.items())


@functools.cache
def _files() -> str | None:
    root = Path(__file__).parents[1]
    paths = sorted([root / "reductions.py", *root.glob("formula/**/*.py"), *root.glob("kernel/*.py")])
    found = hashlib.sha256(repr((sys.version_info[:2], np.__version__)).encode())
    try:
        for path in paths:
            status = path.stat()
            if max(status.st_mtime, status.st_ctime) > _LOADED:
                return None
            text = path.read_bytes()
            found.update(f"{path.relative_to(root).as_posix()} {len(text)}\n".encode() + text)
    except OSError:  # they are in an archive, say
        return None
    return found.hexdigest()
