"""Folds that are ready: what sizes decide is known, and where pairs are few, a call only fills in where arrays are."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from numpy.typing import NDArray

from dred.kernel import cpu
from dred.kernel.cpu_calls import Call, alone
from dred.kernel.cpu_memory import BEHIND, DATA, HEAD, Scratch, addresses, given_back, packer, taken
from dred.kernel.output import SILENCE, Output, converted, empty, read, silently
from dred.kernel.spec import KernelSpec
from dred.kernel.threads import NEVER, declared

MOST = 1 << 14  # bytes of a state of no terms that is kept, to be copied

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


class Quick(Prepared):
    """One that a single thread does, in one call of a kernel whose lanes are rows."""

    def __init__(
        self, spec: KernelSpec, M: int, sizes: cpu._Sizes, outputs: Sequence[Output], call: Call, count: int
    ) -> None:
        super().__init__(spec, M, sizes, outputs)
        self.call, self.count, self.blank = call, count, empty(spec, M)
        self.kind, self.words = converted(spec, outputs), HEAD + count + len(self.blank)
        self.pack = packer(count + len(self.blank))

    def __call__(self, arrays: Arrays) -> tuple[NDArray[Any], ...]:
        declared()  # even where it makes no difference, it must not be wrong
        kernel: cpu.Compiled = cpu._find(self.name) or self.make()
        state = [field.copy() for field in self.blank]
        everything = (*(arrays if self.plain else self.spec.arrays(arrays)), *state)
        scratch = taken(kernel.program.scratch, self.words)
        if scratch.packed is not self:
            self._pack(scratch)
        self.pack(scratch.words, BEHIND, *(map(id, everything) if DATA else addresses(everything)))
        kernel.call(scratch.words_at)
        if scratch.redo != scratch.blank and (again := self.call.again(kernel.program.plan, scratch.noted())):
            cpu._calls(self.careful(), everything[: self.count], tuple(state), [again], (0, 0), NEVER)
        given_back(scratch)
        if (kind := self.kind) is None:
            found: tuple[NDArray[Any], ...] = silently(read, self.spec, tuple(state), self.outputs)
            return found
        result = state[0].T
        return (result if result.dtype is kind else SILENCE.copy().run(result.astype, kind),)

    def _pack(self, scratch: Scratch) -> None:
        """Writes the arguments, but for where the arrays and the state are."""
        if self.call.tiles > scratch.tiles:
            scratch.hold(self.call.tiles)
        items, number, intervals = self.call.tables
        variables, strides_at = scratch.words_at + BEHIND, cpu._none(1 + self.count)[1]
        packer(HEAD)(
            scratch.words, 0,
            variables, strides_at, items, 0, number, intervals, variables + 8 * self.count, self.M, scratch.at, 0, 0,
            scratch.redo_at, self.words - HEAD if DATA else 0, DATA,
        )  # fmt: skip
        scratch.packed = self


def prepared(spec: KernelSpec, arrays: Arrays, M: int, N: int, outputs: Sequence[Output]) -> Prepared | None:
    """The reduction of arrays like these, if what is in them does not decide which kernel does it; else None."""
    if M == 0 or N == 0:
        return None
    sizes, given = cpu._sizes(spec, M, N, 1, None), spec.arrays(arrays)
    if sizes.looked or cpu._checked(spec, sizes, given, 1) is not given:
        return None
    kernel = cpu.compiled(spec, sizes.along)
    plan, one = kernel.program.plan, len(sizes.parts) == 1
    if plan.columns == 1 and one and M * sum(size * kind.itemsize for size, _, kind in spec.blank) <= MOST:
        share = alone(plan, kernel.cost, M, sizes.parts)
        if share is not None:
            ((_, (call,)),) = share
            return Quick(spec, M, sizes, outputs, call, len(given))
    return Prepared(spec, M, sizes, outputs)
