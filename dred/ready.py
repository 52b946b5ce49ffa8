"""What a routine remembers of its calls, found again by the types and shapes of arrays that fit as they are."""

from __future__ import annotations

import operator
from collections.abc import Hashable, Sequence
from typing import Any

from dred.inputs import plain
from dred.kernel import engine
from dred.kernel.engine import Ready

MOST = 256  # kinds of calls of a routine that are remembered


class Remembered(dict[Hashable, Ready]):
    """The last kinds of calls that were made ready; of copies, in this process and others, none."""

    @staticmethod
    def call(args: Sequence[Any], backend: str, device_id: int = -1) -> Hashable:
        """All that decides what is done with arrays of NumPy or CuPy, besides what is in them; None: more does."""
        if (sizes := plain(args)) is not None:
            if backend == "cuda":
                return None
            return backend if backend == "cpu" else engine.device(backend), engine.TINY, sizes
        if backend == "cpu" or not args or type(args[0]).__module__ != "cupy":
            return None
        from dred.kernel import cuda

        return cuda.signature(args, device_id)

    def keep(self, call: Hashable, ready: Ready, arrays: Sequence[Any], args: Sequence[Any]) -> None:
        """Remember one whose arrays are its arguments as they are; what was remembered first is forgotten."""
        if call is not None and all(map(operator.is_, arrays, args)):
            while len(self) >= MOST:
                self.pop(next(iter([*self]), None), None)
            self[call] = ready

    def __reduce__(self) -> tuple[type[Remembered], tuple[()]]:
        return Remembered, ()
