"""Folds of a few pairs that are ready: what sizes decide is known, and a call finds addresses and runs the kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dred.formula.node import I
from dred.kernel import cpu
from dred.kernel.cpu_calls import Call, alone
from dred.kernel.output import Output, State, converted, empty, read, silently
from dred.kernel.spec import KernelSpec
from dred.kernel.threads import NEVER, declared

MOST = 1 << 16  # bytes of a state

Arrays = Sequence[NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Ready:
    """The reduction of all pairs of arrays of certain sizes, which one thread does in one call of a kernel.

    Attributes
    ----------
    spec : KernelSpec
    name : str
        Of the kernel. It is looked up in every call, for it may have been forgotten since.
    given : bool
        Whether the arrays are used as they are.
    blank : State
        That of no terms.
    calls : sequence of Call
    outputs : sequence of Output
    kind : dtype or None
        See `dred.kernel.output.converted`.
    """

    spec: KernelSpec
    name: str
    given: bool
    blank: State
    calls: Sequence[Call]
    outputs: Sequence[Output]
    kind: np.dtype[Any] | None

    def __call__(self, arrays: Arrays) -> tuple[NDArray[Any], ...]:
        declared()  # even where it makes no difference, it must not be wrong
        spec, kind = self.spec, self.kind
        kernel = cpu._find(self.name) or cpu.compiled(spec)
        state = tuple([field.copy() for field in self.blank])
        given = arrays if self.given else spec.arrays(arrays)
        cpu._calls(kernel, given, state, self.calls, (0, 0), NEVER, partial(cpu.compiled, spec, I, hoist=False))
        if kind is None:
            found: tuple[NDArray[Any], ...] = silently(read, spec, state, self.outputs)
            return found
        (field,) = state
        return (field.T if field.dtype == kind else silently(field.T.astype, kind),)


def prepared(spec: KernelSpec, arrays: Arrays, M: int, N: int, outputs: Sequence[Output]) -> Ready | None:
    """The reduction of arrays like these, if it is one call of one kernel; else None."""
    if M == 0 or N == 0:
        return None
    sizes = cpu._sizes(spec, M, N, 1, None)
    given = spec.arrays(arrays)
    if sizes.looked or sizes.along != I or len(sizes.parts) > 1 or cpu._checked(spec, sizes, given, 1) is not given:
        return None
    kernel = cpu.compiled(spec)
    share = alone(kernel.program.plan, kernel.cost, M, sizes.parts)
    blank = empty(spec, M)
    if share is None or sum(field.nbytes for field in blank) > MOST:
        return None
    ((_, calls),) = share
    return Ready(spec, cpu.named(spec), given is arrays, blank, calls, outputs, converted(spec, outputs))
