"""Folds that are ready: what sizes decide is known, and where pairs are few, a call only fills in where arrays are."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dred.kernel import cpu
from dred.kernel.cpu_calls import Call, alone, meets, whole
from dred.kernel.cpu_memory import BEHIND, DATA, HEAD, Scratch, addresses, given_back, packer, taken
from dred.kernel.llvm import Program
from dred.kernel.output import Output, converted, empty, read, silently
from dred.kernel.spec import KernelSpec
from dred.kernel.threads import NEVER, declared, thread_count

MOST = 1 << 14  # bytes of a state of no terms, which is kept to be copied, or made in scratch memory

Arrays = Sequence[NDArray[Any]]


class Prepared:
    """The reduction of all pairs of arrays of certain sizes, by a kernel that these decide.

    The kernel is looked up in every call: it may have been forgotten since.
    """

    def __init__(self, spec: KernelSpec, M: int, sizes: cpu._Sizes, outputs: Sequence[Output]) -> None:
        self.spec, self.M, self.parts, self.outputs = spec, M, sizes.parts, outputs
        self.name, self.plain = cpu.named(spec, sizes.along), not (spec.given or spec.constants)
        self.make, self.careful = (partial(cpu.compiled, spec, sizes.along, hoist) for hoist in (True, False))

    def __call__(self, arrays: Arrays) -> tuple[NDArray[Any], ...]:
        spec, kernel, state = self.spec, cpu._find(self.name) or self.make(), empty(self.spec, self.M)
        given = spec.arrays(arrays)
        state = cpu.folded(spec, kernel, self.careful, self.parts, state, given, self.M, threads=None, own=True)
        found: tuple[NDArray[Any], ...] = silently(read, spec, state, self.outputs)
        return found


class Finished(Prepared):
    """One whose kernel makes the states of large vectors, and the results: each call meets all columns."""

    def __init__(self, spec: KernelSpec, M: int, sizes: cpu._Sizes, outputs: Sequence[Output]) -> None:
        super().__init__(spec, M, sizes, outputs)
        self.sizes, self.none = sizes, empty(spec, 0)

    def __call__(self, arrays: Arrays) -> tuple[NDArray[Any], ...]:
        spec, given = self.spec, self.spec.arrays(arrays)
        kernel = cpu.fitting(spec, self.sizes, given, self.none)
        result = np.empty((self.M, spec.blank[0][0]), spec.dtype)
        shares = whole(kernel.program.plan, kernel.cost, self.M, self.parts, thread_count(), meet=True)
        cpu.finished(kernel, self.careful, shares, result, given)
        return (result,)


class Quick(Prepared):
    """One that a single thread does, in one call of a kernel whose lanes are rows."""

    rows = 0  # of a state that the kernel makes

    def __init__(
        self,
        spec: KernelSpec,
        M: int,
        sizes: cpu._Sizes,
        outputs: Sequence[Output],
        program: Program,
        call: Call,
        given: int,
    ) -> None:
        super().__init__(spec, M, sizes, outputs)
        self.call, self.program, self.given = call, program, given
        self.blank = empty(spec, M - self.rows)
        self.memory = program.scratch + (MOST if self.rows else 0)
        self.objects = given + len(self.blank)  # arrays whose addresses a call fills in
        self.words, self.pack = HEAD + self.objects + 1, packer(self.objects)

    def __call__(self, arrays: Arrays) -> tuple[NDArray[Any], ...]:
        state = tuple([field.copy() for field in self.blank])
        given = arrays if self.plain else self.spec.arrays(arrays)
        redo = self._folded((*given, *state))
        if redo is not None and (again := self.call.again(self.program.plan, redo)):
            cpu._calls(self.careful(), given, state, [again], (0, 0), NEVER)
        found: tuple[NDArray[Any], ...] = silently(read, self.spec, state, self.outputs)
        return found

    def _folded(self, everything: Arrays) -> NDArray[np.int64] | None:
        """Calls the kernel; the tiles to do again, where there are any."""
        declared()  # even where it makes no difference, it must not be wrong
        kernel: cpu.Compiled = cpu._find(self.name) or self.make()
        scratch = taken(self.memory, self.words)
        if scratch.packed is not self:
            self._pack(scratch)
        self.pack(scratch.words, BEHIND, *(map(id, everything) if DATA else addresses(everything)))
        kernel.call(scratch.words_at)
        redo = None if scratch.redo == scratch.blank else scratch.noted()
        given_back(scratch)
        return redo

    def _pack(self, scratch: Scratch) -> None:
        """Writes the arguments, but for where the arrays, and the state or the result, are."""
        if self.call.tiles > scratch.tiles:
            scratch.hold(self.call.tiles)
        items, number, intervals = self.call.tables
        variables, strides_at = scratch.words_at + BEHIND, cpu._none(1 + self.given)[1]
        state = self.objects if self.rows else self.given
        packer(HEAD)(
            scratch.words, 0,
            variables, strides_at, items, 0, number, intervals, variables + 8 * state, self.M, scratch.at, 0, 0,
            scratch.redo_at, self.objects if DATA else 0, DATA, self.rows, self.given,
        )  # fmt: skip
        packer(1)(scratch.words, BEHIND + 8 * self.objects, scratch.at + self.program.scratch)
        scratch.packed = self


class Direct(Quick):
    """One whose kernel makes the state, which is a value for each row, and rounds it to the result."""

    def __init__(self, spec: KernelSpec, M: int, *more: Any) -> None:
        self.rows = M
        super().__init__(spec, M, *more)
        self.shape, self.kind = (M, 1), np.dtype(spec.dtype)

    def __call__(self, arrays: Arrays) -> tuple[NDArray[Any], ...]:
        result = np.empty(self.shape, self.kind)
        if self._folded((*(arrays if self.plain else self.spec.arrays(arrays)), result)) is None:
            return (result,)
        return Prepared.__call__(self, arrays)  # once more: that is rare


def prepared(spec: KernelSpec, arrays: Arrays, M: int, N: int, outputs: Sequence[Output]) -> Prepared | None:
    """The reduction of arrays like these, if what is in them does not decide too much about it; else None."""
    if M == 0 or N == 0:
        return None
    sizes, given, direct = cpu._sizes(spec, M, N, 1, None), spec.arrays(arrays), converted(spec, outputs) == spec.dtype
    vector = direct and spec.blank[0][0] > cpu.UNROLL
    if (sizes.looked and not vector) or cpu._checked(spec, sizes, given, 1) is not given:
        return None
    kernel = cpu.fitting(spec, sizes, given, empty(spec, 0))
    plan, one = kernel.program.plan, len(sizes.parts) == 1
    finished = kernel.program.finishing and one and direct and meets(plan, kernel.cost, M, N)
    if sizes.looked:
        return Finished(spec, M, sizes, outputs) if finished else None
    if plan.columns == 1 and one and M * sum(size * kind.itemsize for size, _, kind in spec.blank) <= MOST:
        share = alone(plan, kernel.cost, M, sizes.parts)
        if share is not None:
            ((_, (call,)),) = share
            direct = direct and cpu.sole(spec) is not None
            return (Direct if direct else Quick)(spec, M, sizes, outputs, kernel.program, call, len(given))
    return (Finished if finished else Prepared)(spec, M, sizes, outputs)
