"""Variables of the environment, as they are at the moment: looked up without the exceptions of `os.environ`."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable


def _found() -> Callable[[bytes], bytes | None] | None:
    """The C library's own function, in which `os.environ` writes; it keeps the GIL, so that nobody writes meanwhile."""
    if os.name != "posix":
        return None
    try:
        function = ctypes.PyDLL(None).getenv
    except (AttributeError, OSError):
        return None
    function.argtypes, function.restype = [ctypes.c_char_p], ctypes.c_char_p
    return function


_getenv = _found()


def variable(name: bytes) -> str | None:
    """The value of a variable; None where it is not set."""
    if _getenv is None:
        return os.environ.get(os.fsdecode(name))
    found = _getenv(name)
    return None if found is None else os.fsdecode(found)
