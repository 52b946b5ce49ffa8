"""Kernel -> LLVM IR text: a function that folds columns into the states of rows, in explicit vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import NamedTuple

from dred.formula.node import I, J
from dred.kernel.cpu_schedule import SUMS, Schedule, schedule
from dred.kernel.ir import FOLDS, IJ, Expr, Kernel, walk
from dred.kernel.llvm_large import LargeText
from dred.kernel.llvm_math import declared, operation
from dred.kernel.llvm_state import Cells
from dred.kernel.llvm_values import Operand

SIGNATURE = "pppllpplpllp"  # of `fold`: p a pointer, l a 64-bit integer
_ARGUMENTS = (
    "ptr %vars, ptr %batch_strides, ptr %items, i64 %first, i64 %last, "
    "ptr %intervals, ptr %states, i64 %pitch, ptr noalias %scratch, i64 %row0, i64 %column0, "
    "ptr %redo"
)


class Program(NamedTuple):
    """LLVM IR text and what its caller must know.

    The text defines `fold(vars, batch_strides, items, first, last, intervals, states, pitch, scratch, row0, column0,
    redo)`, which folds the columns of its intervals into the states of the rows of items number first ... last - 1.
    Tables are int64, C-contiguous.

    ==============  ====================================================================================
    vars            base pointer of each variable, by position
    batch_strides   elements from one batch to the next (0: all batches share it): state, then variables
    items           rows of (batch, first row, one past the last row, first interval, one past the last, first row of
                    redo)
    intervals       rows of (first column, one past the last)
    states          base pointer of each state field, an array (size, rows) whose rows are contiguous
    pitch           elements from one component of a state field to the next
    scratch         `scratch` bytes, aligned to 64, for this call alone
    row0, column0   global numbers of the first row and of the first column of the arrays
    redo            rows of (interval, column), one per tile of an item: -1 before; then the first ones of an item where
                    sums are not finite, so that the kernel with all factors inside has to do the tile. For hoisted
                    programs alone
    ==============  ====================================================================================

    Attributes
    ----------
    text : str
    scratch : int
        Bytes of scratch memory.
    plan : Schedule
        Items that start at multiples of its `rows`, or of its `tile`, fit best. Bits do not change when an interval is
        folded in several calls, cut at multiples of its `panel` from the beginning, as long as no tile is done again.
        Where lanes are columns, a row of the arrays of states is `lanes` of them, side by side.
    hoisted : bool
        Whether `redo` is read and written.
    """

    text: str
    scratch: int
    plan: Schedule
    hoisted: bool = False


def render(
    kernel: Kernel,
    dtype: str,
    acc: str,
    chain: int,
    along: int = I,
    scaling: bool = False,
    moderate: bool = False,
) -> Program:
    """The program of a kernel.

    Parameters
    ----------
    kernel : Kernel
    dtype, acc : str
        Compute type, and that of the state.
    chain : int
        Terms that are added in the compute type.
    along : int
        The lanes are rows (I) or columns (J).
    scaling, moderate : bool
        Whether it may have instructions that not every machine has, and exponents have no limits: see `Lanes`.
    """
    return _Fold(kernel, dtype, acc, schedule(kernel, dtype, chain, along), scaling, moderate).program()


class _Fold(LargeText):
    """Writes `fold`. One level of nesting is one method: items, blocks of rows, panels of columns, tiles, chains."""

    def __init__(self, kernel: Kernel, dtype: str, acc: str, plan: Schedule, scaling: bool, moderate: bool) -> None:
        super().__init__(kernel, dtype, acc, plan, scaling, moderate)
        self.own = [root.steps for root in kernel.roots]
        self.quick = [root.quick.steps if root.quick else root.steps for root in kernel.roots]
        self.long = bool(self.large) or any(e.op in FOLDS and e.axes == IJ for e in walk(kernel.steps))
        self.tile_layout = _placed([self.state_bytes(f) for f in self.numbers])
        # where the text stands: operands of the loops that are open
        self.state_base: list[str] = []
        self.redo_at = self.item_row = ""
        self.arriving = False  # whether columns are staged

    def program(self) -> Program:
        places, self.nbytes = _placed(self._sizes())
        rows, columns, shared, self.terms_at = (self.at("%scratch", place, element="i8") for place in places[:4])
        self.staged, self.shared_base = {I: rows, J: columns}, shared
        self.place_states(places[4], *self.tile_layout)
        self.loop("%first", "%last", 1, [], self._item)
        body = "\n".join(self.lines)
        text = f"define void @fold({_ARGUMENTS}) #0 {{\nentry:\n{body}\n  ret void\n}}\n"
        # vectors that registers do not hold are in memory, where functions are called, say: never across cache lines
        attributes = "".join(
            f'attributes #{n} = {{ {words}nounwind "prefer-vector-width"="512" }}\n'
            for n, words in enumerate(('"stackrealign" ', "noinline "))
        )
        text = declared(text, (self.one, self.lanes, self.wide))
        return Program(self.declarations() + text + attributes, self.nbytes, self.plan, self.kernel.hoisted)

    def _sizes(self) -> list[int]:
        """Bytes of what lies in scratch memory."""
        plan, width, itemsize = self.plan, self.lanes.width, self.lanes.itemsize
        return [
            plan.rows * self.pitch(I) * itemsize,
            plan.panel * self.pitch(J) * itemsize,
            plan.span * self.shared_size * width * itemsize,
            plan.steps * width * itemsize if self.ranking else 0,
            plan.rows // plan.tile * self.tile_layout[1],
        ]

    # items, blocks of rows, panels of columns -------------------------------------------------------------------------

    def _item(self, item: str, _: list[str]) -> list[str]:
        entry = self.at("%items", self.integer("mul", item, 6), element="i64")
        batch, first, last, interval, intervals, tile = (self._table(entry, k) for k in range(6))
        self.redo_at = self.at("%redo", self.integer("mul", tile, 2), element="i64")
        self.item_row = first
        self.state_base = [self._batch("%states", f, batch, 0, self.element(f)) for f in self.numbers]
        for ind in sorted({ind for ind, _, _ in self.kernel.loads}):
            self.base[ind] = self._batch("%vars", ind, batch, 1 + ind, self.one.scalar)
        with self.scalars.scope(), self.vectors.scope(), self.pairs.scope():
            for e in self.kernel.once:
                value = self.broadcast(self.lanes, self.scalars.get(e), "i1" if e.boolean else None)
                self.vectors.bind(e, value)
                self.pairs.bind(e, value)

            def blocks() -> None:
                self.loop(first, last, self.plan.rows, [], lambda row, _: self._block(row, last, interval, intervals))

            self.when(self.put(f"icmp slt i64 {interval}, {intervals}"), blocks)
        return []

    def _table(self, pointer: str, k: Operand) -> str:
        return self.load("i64", self.at(pointer, k, element="i64"), 8)

    def _batch(self, table: str, position: int, batch: str, stride: int, element: str) -> str:
        pointer = self.load("ptr", self.at(table, position, element="ptr"), 8)
        return self.at(pointer, self.integer("mul", batch, self._table("%batch_strides", stride)), element=element)

    def _block(self, row: str, last: str, interval: str, intervals: str) -> list[str]:
        plan, width = self.plan, self.lanes.width
        count = self.smaller(self.integer("sub", last, row), plan.rows)
        self.stage(I, row, count, self.staged[I])
        place, rows = row, count
        if plan.along == J:
            place, rows = self.integer("mul", row, width), self.integer("mul", count, width)
        self.copy_states(self.state_base, place, rows, load=True)

        def tile(at: str, _: list[str]) -> list[str]:
            self.first[I] = self.integer("add", row, at)
            self.open_row(at, count)
            self.open_tile(self.integer("sdiv", at, plan.tile))
            return self._columns(at)

        def panel(column: str, stop: str) -> list[str]:
            self.panel_size = self.smaller(self.integer("sub", stop, column), plan.panel)
            self.panel_column = column
            self.stage_panel()
            if self.late:
                self.arriving = True
                tile("0", [])
                self.arriving = False
            return self.loop(0, count, plan.tile, [], tile)

        def span(v: str, _: list[str]) -> list[str]:
            entry = self.at("%intervals", self.integer("mul", v, 2), element="i64")
            start, stop = self._table(entry, 0), self._table(entry, 1)
            return self.loop(start, stop, plan.panel, [], lambda column, _: panel(column, stop))

        self.loop(interval, intervals, 1, [], span)
        if self.kernel.hoisted:
            self.loop(0, count, plan.tile, [], lambda at, _: self._checked(row, at, count, interval))
        self.copy_states(self.state_base, place, rows, load=False)
        return []

    def _checked(self, row: str, at: str, count: str, interval: str) -> list[str]:
        """A tile whose sums are not finite gets back the states that it has had, and waits for being done again."""
        plan, width = self.plan, self.lanes.width
        first, number = self.integer("add", row, at), self.integer("sdiv", at, plan.tile)
        self.open_tile(number)
        place, rows = first, self.smaller(self.integer("sub", count, at), plan.tile)
        if plan.along == J:
            place, rows = self.integer("mul", first, width), str(width)

        def again() -> None:
            entry = self.at("%intervals", self.integer("mul", interval, 2), element="i64")
            tile = self.integer("sdiv", self.integer("sub", first, self.item_row), plan.tile)
            redo = self.at(self.redo_at, self.integer("mul", tile, 2), element="i64")
            self.store("i64", interval, redo, 8)
            self.store("i64", self._table(entry, 0), self.at(redo, 1, element="i64"), 8)
            self.copy_states(self.state_base, place, rows, load=True, tile=number)

        self.when(self.put(f"xor i1 {self._finite(rows)}, true"), again)
        return []

    # tiles and chains -------------------------------------------------------------------------------------------------

    def _columns(self, at: str) -> list[str]:
        """All columns of a panel for one tile of rows; while they are staged, those that fill spans."""
        plan = self.plan
        self.records[I] = self.at(self.staged[I], self.integer("mul", at, self.pitch(I)), element=self.one.scalar)
        whole, steps = self.panel_size, self.panel_size
        if plan.columns > 1:
            whole = self.integer("sdiv", whole, plan.columns)
            steps = self.integer("sdiv", self.integer("add", steps, plan.columns - 1), plan.columns)
        full = self.integer("mul", self.integer("sdiv", whole, plan.span), plan.span)

        def rest(start: str, _: list[str]) -> list[str]:
            return self._chain(start, self.smaller(self.integer("sub", steps, start), plan.chain), 1, plan.columns > 1)

        begin: Operand = 0
        if self.late and not self.arriving:  # the first row has met them
            begin = self.put(f"select i1 {self.put(f'icmp eq i64 {at}, 0')}, i64 {full}, i64 0")
        self.loop(begin, full, plan.span, [], lambda start, _: self._span(start))
        if self.arriving:
            return []
        if self.long and plan.span > plan.chain:  # one by one, columns would wait for their sums over components
            first, full = full, self.integer("mul", self.integer("sdiv", whole, plan.chain), plan.chain)
            self.loop(
                first, full, plan.chain, [], lambda start, _: self._chain(start, plan.chain, plan.steps, False) or []
            )
        self.loop(full, steps, plan.chain, [], rest)
        return []

    def _finite(self, count: str) -> str:
        """Whether all sums that something has left are finite, in the lanes that are rows."""
        fields = {
            f
            for root in self.kernel.roots
            for f, post in zip(root.fields, root.posts, strict=False)
            if post is not None
        }
        wide, width = self.wide, self.lanes.width

        def component(k: str, held: list[str], f: int) -> list[str]:
            at = self.at(self.state_at[f], self.integer("mul", k, width), element=wide.scalar)
            value = self.load(wide.type, at, self.aligned(f))
            return [self.put(f"fadd {wide.type} {held[0]}, {self.put(f'fsub {wide.type} {value}, {value}')}")]

        total = wide.literal(0.0)
        for f in sorted(fields):
            size = self.kernel.fields[f].size
            (total,) = self.loop(0, size, 1, [(wide.type, total)], lambda k, held, f=f: component(k, held, f))  # type: ignore[misc]
        bits = f"i{width}"
        lost = self.put(f"bitcast {wide.mask} {self.put(f'fcmp uno {wide.type} {total}, {total}')} to {bits}")
        rows = self.put(f"trunc i64 {self.integer('shl', 1, count)} to {bits}")
        rows = self.put(f"sub {bits} {rows}, 1")
        return self.put(f"icmp eq {bits} {self.put(f'and {bits} {lost}, {rows}')}, 0")

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
            for s in range(steps):
                if arrive and not self.plan.staggered:
                    self.arrived(s)
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

                self.over(n, candidates, terms[:1])
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


def _placed(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Where things of some bytes lie one after the other, each from a whole cache line on, and the bytes of all."""
    lines = [-(-size // 64) * 64 for size in sizes]
    return [sum(lines[:n]) for n in range(len(lines))], sum(lines)
