"""Variables of the environment as they are at the moment, looked up in less time than `os.environ` takes."""

from __future__ import annotations

import os
from collections.abc import Callable

Lookup = Callable[[], bytes | str | None]


def lookup(name: str) -> Lookup:
    """What looks a variable up: None where it is not set, or else something that `text` reads.

    `os.environ` encodes names and decodes values, and raises an error where there is none: a microsecond, which a call
    of a few points has several of. Its own dictionary has what is encoded, as long as nothing stands in for it.
    """
    environ = os.environ
    known, encoded = getattr(environ, "_data", None), getattr(environ, "encodekey", None)
    if not isinstance(known, dict) or encoded is None:
        return lambda: os.environ.get(name)
    get, key = known.get, encoded(name)
    return lambda: get(key) if os.environ is environ else os.environ.get(name)


def text(found: bytes | str | None) -> str:
    """The value of a variable, without spaces around it; "" where it is not set."""
    return "" if found is None else os.fsdecode(found).strip()
