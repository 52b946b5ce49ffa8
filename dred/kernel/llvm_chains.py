"""Chains of columns in LLVM IR: the terms of pairs are added up in the compute type, then join the states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf

from dred.kernel.cpu_schedule import SUMS, Schedule
from dred.kernel.ir import Expr, Kernel, Loop, walk
from dred.kernel.llvm_large import LargeText
from dred.kernel.llvm_math import operation
from dred.kernel.llvm_state import Cells
from dred.kernel.llvm_values import Operand


class ChainText(LargeText):
    """Text of a function that goes by chains of columns, for a tile of rows at a time."""

    def __init__(self, kernel: Kernel, dtype: str, acc: str, plan: Schedule, scaling: bool, moderate: bool) -> None:
        super().__init__(kernel, dtype, acc, plan, scaling, moderate)
        self.own = [root.steps for root in kernel.roots]
        self.quick = [root.quick.steps if root.quick else root.steps for root in kernel.roots]
        # where the text stands: operands of the loops that are open
        self.arriving = False  # whether columns are staged

    def _span(self, start: str) -> list[str]:
        """As many steps as there are pairs that go by the components of large states."""
        plan = self.plan
        if not self.large or plan.span == plan.chain:
            return self._chain(start, plan.span, plan.steps, False)

        def chain(at: str, _: list[str]) -> list[str]:
            self.span_step = at
            return self._chain(self.integer("add", start, at), plan.chain, plan.steps, False, join=self.flat)

        self.loop(0, plan.span, plan.chain, [], chain)
        self.span_step = ""
        for n in self.large:
            self._large(n, start, plan.span, False)
        return []

    def _chain(
        self,
        start: str,
        count: Operand,
        steps: int,
        masked: bool,
        join: Sequence[int] | None = None,
        quick: bool = True,
    ) -> list[str]:
        """Terms of a chain, or of a span of sums, in the compute type, then into the states.

        `masked`: lanes may be no columns. `join`: the roots that join their states, by default all. `quick`: where
        there are quick steps, a chain that is whole goes by them.
        """
        first = self.integer("add", self.panel_column, self.integer("mul", start, self.plan.columns))
        self.chain_row = self.integer("add", first, "%column0")
        which = [*self.flat, *self.large] if join is None else join
        plan = self.plan

        def own(steps: int) -> None:
            self._join(self._go(self.own, start, count, steps, masked), which, start, count, masked)

        def slowly(at: str, _: list[str]) -> list[str]:
            self._chain(self.integer("add", start, at), plan.chain, 1, masked, which, quick=False)
            return []

        def every() -> None:
            self.loop(0, count, plan.chain, [], slowly)

        if quick and isinstance(count, int) and any(root.quick for root in self.kernel.roots):
            with self.pairs.scope():
                self._quickly(start, count, steps, every)
        else:
            own(steps)
        return []

    def _go(self, how: Sequence[Sequence[Expr]], start: str, count: Operand, steps: int, masked: bool) -> Cells:
        """The running values of the flat roots after a chain, or after a span of sums, by the steps in `how`."""
        roots = self.kernel.roots
        cells = [(f, roots[n].index) for n in self.flat for f in roots[n].fields]
        summed = [step.op in SUMS for n in self.flat for step in how[n]]
        carry = [(self.running_type(f), self.identity(f)) for f, _ in cells]

        def block(step: str, held: list[str]) -> list[str]:
            late = self.late and isinstance(count, int) and steps == self.plan.steps
            if late:
                self.fetch(self.integer("add", start, step))
            mask = self._step(start, step, masked)
            running = self._pairs(how, steps, dict(zip(cells, held, strict=True)), mask, late and self.arriving)
            return [running[cell] for cell in cells]

        def some(first: Operand, last: Operand, held: list[str]) -> list[str]:
            if isinstance(first, str) and self.plan.chain // 2 == steps:
                return block(first, held)
            return self.loop(first, last, steps, [(kind, h) for (kind, _), h in zip(carry, held, strict=True)], block)

        held = self.added(count, carry, summed, some) if cells or self.kept or self.ranking else []
        return dict(zip(cells, held, strict=True))

    def _quickly(self, start: str, count: int, steps: int, otherwise: Callable[[], None]) -> None:
        """A chain by quick steps; where they do not hold, by others."""
        roots, mask, bits = self.kernel.roots, self.lanes.mask, f"i{self.lanes.width}"
        for e in walk([e for how in self.quick for e in how]):
            if e.op == "stored":
                self.pairs.get(e)
        self.running = running = self._go(self.quick, start, count, steps, False)
        with self.steps.scope():
            held = [self.steps.get(root.quick.holds) for root in roots if root.quick]
        anchored = [n for n in self.flat if (quick := roots[n].quick) and quick.posts]
        totals, fine = self._totals(anchored, running)
        every, *others = [*held, *fine]
        for more in others:
            every = self.put(f"and {mask} {every}, {more}")
        right = self.put(f"icmp eq {bits} {self.put(f'bitcast {mask} {every} to {bits}')}, -1")

        def join() -> None:
            self._join(running, [n for n in self.flat if n not in anchored], start, count, False)
            self._anchor(anchored, running, totals)

        self.when(right, join)
        self.when(self.put(f"xor i1 {right}, true"), otherwise)

    def _totals(self, anchored: Sequence[int], running: Cells) -> tuple[Cells, list[str]]:
        """Stored sums plus those of a chain that refer to the stored references; whether they are as they should be."""
        wide, out, fine = self.wide, Cells(), list[str]()
        for n in anchored:
            root = self.kernel.roots[n]
            assert root.quick is not None
            values = self._widened(n, [running[f, root.index] for f in root.fields], root.quick.posts)
            for f, post, value in zip(root.fields, root.quick.posts, values, strict=True):
                if post is not None:
                    total = self.put(f"fadd {wide.type} {self.read_state(f, root.index)}, {value}")
                    none = self.put(f"fsub {wide.type} {total}, {total}")
                    fine.append(self.put(f"fcmp ord {wide.type} {none}, {none}"))
                    if post.most < inf:  # a sum of what is positive
                        fine.append(self.put(f"fcmp ole {wide.type} {value}, {wide.literal(post.most)}"))
                    if root.quick.least:
                        size = operation(self.put, wide, "abs", [total])
                        fine.append(self.put(f"fcmp oge {wide.type} {size}, {wide.literal(root.quick.least)}"))
                    out[f, root.index] = total
        return out, fine

    def _anchor(self, anchored: Sequence[int], running: Cells, totals: Cells) -> None:
        """Stores sums that refer to the stored references; then, if need be, joins new references."""
        roots, lanes, bits = self.kernel.roots, self.lanes, f"i{self.lanes.width}"
        beyond: list[str] = []
        others = dict(running)
        for n in anchored:
            root = roots[n]
            for f in root.fields:
                if (total := totals.get((f, root.index))) is None:
                    new, old = running[f, root.index], self.stored(f, root.index)
                    beyond.append(self.put(f"fcmp ogt {lanes.type} {new}, {old}"))
                else:
                    self.write_state(f, root.index, total)
                    others[f, root.index] = self.identity(f)
        if not beyond:
            return
        some = beyond[0]
        for more in beyond[1:]:
            some = self.put(f"or {lanes.mask} {some}, {more}")
        some = self.put(f"icmp ne {bits} {self.put(f'bitcast {lanes.mask} {some} to {bits}')}, 0")
        self.when(some, lambda: self._join(others, anchored, "", 0, False))

    def _pairs(self, how: Sequence[Sequence[Expr]], steps: int, running: Cells, mask: str, arrive: bool) -> Cells:
        """The running values of the flat roots after some more steps; all roots step at once.

        `arrive`: columns are staged here.
        """
        self.pairs.columns = steps
        reads = {n: self._stateless(how[n]) for n in self.flat}
        roots = self.kernel.roots
        heads = [e for e in self.kept if e.id in self.stateful]
        with self.pairs.scope():
            if self.plan.staggered:
                self._write([e for n in self.flat for e in reads[n]], steps, arrive)
            elif arrive:  # all of them before: sums over components are written for all steps at once
                for s in range(steps):
                    self.arrived(s)
            for s in range(steps):
                for n in self.flat:
                    for e in reads[n]:
                        self.pairs.get(e, s)
                self.running = running
                with self.steps.scope():  # what reads the running values holds for this step alone
                    for e in heads:
                        self._keep(e, s, self.steps.get(e, s))
                    new = {
                        (f, roots[n].index): self.steps.get(step, s)
                        for n in self.flat
                        for f, step in zip(roots[n].fields, how[n], strict=True)
                    }
                running = running | {
                    cell: self._chosen(mask, self.running_type(cell[0]), value, running[cell])
                    for cell, value in new.items()
                }
            for e in self.kept:
                if e.id not in self.stateful:
                    self._keep_all(e, steps)
            for n in self.ranking:
                terms = roots[n].terms

                def candidates(n: int = n, value: Expr = terms[0]) -> None:
                    nothing = self.lanes.literal(float("nan"))  # comes before nothing
                    found = [self.pairs.get(value, s) for s in range(steps)]
                    found = [self._chosen(mask, self.lanes.type, v, nothing) for v in found]
                    self.rank(n, found, self.column_number)

                self._over(n, candidates, terms[:1])
        return running

    def _write(self, values: Sequence[Expr], steps: int, arrive: bool) -> None:
        """Values of all steps, before what reads running values."""
        for e in self.pairs.lasting(values):
            self.pairs.get(e)
        marks = [len(self.lines)]
        for s in range(steps):
            if arrive:
                self.arrived(s)
            for e in values:
                self.pairs.get(e, s)
            marks.append(len(self.lines))
        self.stagger(marks)

    # joining the states -----------------------------------------------------------------------------------------------

    def _join(self, running: Cells, which: Sequence[int], start: str, count: Operand, masked: bool) -> None:
        """Joins the running values to the states: large roots first, which read the others' before they change."""
        roots = self.kernel.roots
        for group in self.groups:
            with self.merged.scope():
                self.state, self.other = {}, {}
                flat = [n for n in group if n in self.flat and n in which]
                merged = {}
                for n in flat:
                    values = self._widened(n, [running[f, roots[n].index] for f in roots[n].fields])
                    merged[n] = self.merge_root(n, values)
                for n in group:
                    if n in self.large and n in which:
                        for e in self._heads_of_merge(n):
                            self.merged.get(e)
                        self._large(n, start, count, masked)
                for n in flat:
                    for f, value in zip(roots[n].fields, merged[n], strict=True):
                        self.write_state(f, roots[n].index, value)

    def _over(self, n: int, body: Callable[[], None], reads: Sequence[Expr] = ()) -> None:
        """`body`, which reads some values, for every component of a root."""

        def nest(loops: Sequence[Loop]) -> list[str]:
            if not loops:
                body()
                return []
            for want in self.pairs.invariants(loops[0], reads):
                self.pairs.get(*want)
            return self.pairs.components(loops[0], [], lambda _: nest(loops[1:]), 1)

        nest(self.kernel.roots[n].loops)
