"""What a routine remembers of its calls, found again by the types and shapes of NumPy arrays that fit as they are."""

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
    def call(args: Sequence[Any], backend: str) -> Hashable:
        """All that decides what is done with NumPy arrays, besides what is in them; None: more does."""
        if backend == "cuda" or (sizes := plain(args)) is None:
            return None
        return backend if backend == "cpu" else engine.device(backend), engine.TINY, sizes

    def keep(self, call: Hashable, ready: Ready, arrays: Sequence[Any], args: Sequence[Any]) -> None:
        """Remember one whose arrays are its arguments as they are; what was remembered first is forgotten."""
        if call is not None and all(map(operator.is_, arrays, args)):
            while len(self) >= MOST:
                self.pop(next(iter([*self]), None), None)
            self[call] = ready

    def __reduce__(self) -> tuple[type[Remembered], tuple[()]]:
        return Remembered, ()
