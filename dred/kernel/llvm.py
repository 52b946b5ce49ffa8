"""Kernel -> LLVM IR text: a function that folds columns into the states of rows, in explicit vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from dred.formula.node import I, J
from dred.kernel.cpu_schedule import Schedule, schedule
from dred.kernel.ir import FOLDS, IJ, Kernel, walk
from dred.kernel.llvm_chains import ChainText
from dred.kernel.llvm_math import declared
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
    states          base pointer of each state field, an array (size, rows) whose rows are contiguous; of no pitch, that
                    of the result (rows, size) in the compute type
    pitch           elements from one component of a state field to the next; 0, for finishing programs alone: states
                    begin with no terms, and are rounded to the result
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
    finishing : bool
        Whether it makes states, and results of them, itself: of a vector of numbers for each row, of which copies would
        take long.
    """

    text: str
    scratch: int
    plan: Schedule
    hoisted: bool = False
    finishing: bool = False


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
        Whether it may have instructions, and registers, that not every machine has; and exponents have no limits: see
        `Lanes`.
    """
    return _Fold(kernel, dtype, acc, schedule(kernel, dtype, chain, along, many=scaling), scaling, moderate).program()


class _Fold(ChainText):
    """Writes `fold`. One level of nesting is one method: items, blocks of rows, panels of columns, tiles, chains."""

    def __init__(self, kernel: Kernel, dtype: str, acc: str, plan: Schedule, scaling: bool, moderate: bool) -> None:
        super().__init__(kernel, dtype, acc, plan, scaling, moderate)
        self.long = bool(self.large) or any(e.op in FOLDS and e.axes == IJ for e in walk(kernel.steps))
        self.tile_layout = _placed([self.state_bytes(f) for f in self.numbers])
        alone = plan.along == I and len(kernel.fields) == 1 and bool(self.large)
        self.finishing = alone and kernel.fields[0].size >= plan.lanes and self.element(0) != "i64"
        # where the text stands: operands of the loops that are open
        self.state_base: list[str] = []
        self.redo_at = self.item_row = ""

    def program(self) -> Program:
        places, self.nbytes = _placed(self._sizes())
        rows, columns, self.shared_base, self.terms_at, self.waiting_at = (
            self.at("%scratch", place, element="i8") for place in places[:5]
        )
        self.staged = {I: rows, J: columns}
        self.place_states(places[5], *self.tile_layout)
        self.loop("%first", "%last", 1, [], self._item)
        body = "\n".join(self.lines)
        text = f"define void @fold({_ARGUMENTS}) #0 {{\nentry:\n{body}\n  ret void\n}}\n"
        # vectors that registers do not hold are in memory, where functions are called, say: never across cache lines
        attributes = "".join(
            f'attributes #{n} = {{ {words}nounwind "prefer-vector-width"="512" }}\n'
            for n, words in enumerate(('"stackrealign" ', "noinline "))
        )
        text = declared(text, (self.one, self.lanes, self.wide))
        text = self.declarations() + text + attributes
        return Program(text, self.nbytes, self.plan, self.kernel.hoisted, self.finishing)

    def _sizes(self) -> list[int]:
        """Bytes of what lies in scratch memory."""
        plan, width, itemsize = self.plan, self.lanes.width, self.lanes.itemsize
        return [
            plan.rows * self.pitch(I) * itemsize,
            plan.panel * self.pitch(J) * itemsize,
            plan.span * self.shared_size * width * itemsize,
            plan.steps * width * itemsize if self.ranking else 0,
            self.waiting_size * width * itemsize,
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
        copy = partial(self.copy_states, self.state_base, place, rows)
        self._either(lambda: copy(load=True), lambda: self._blank(count))

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
        self._either(lambda: copy(load=False), lambda: self._finish(row, count))
        return []

    def _either(self, given: Callable[[], None], wanted: Callable[[], None]) -> None:
        """What is done where the caller has given states; and where it wants a result."""
        if self.finishing:
            self.when(self.put("icmp eq i64 %pitch, 0"), wanted)
            self.when(self.put("icmp ne i64 %pitch, 0"), given)
        else:
            given()

    def _blank(self, count: str) -> None:
        """States that have met no term."""
        kind, (field,) = self.lanes.of(self.element(0)), self.kernel.fields
        nothing = (self.lanes if field.kind == "value" else self.wide).literal(field.identity)
        tiles = self.integer("sdiv", self.integer("add", count, self.plan.tile - 1), self.plan.tile)
        self.open_tile(0)

        def component(k: str, _: list[str]) -> list[str]:
            place = self.at(self.state_at[0], self.integer("mul", k, self.lanes.width), element=self.element(0))
            self.store(kind, nothing, place, self.aligned(0))
            return []

        self.loop(0, self.integer("mul", tiles, field.size), 1, [], component)

    def _finish(self, row: str, count: str) -> None:
        """The result, row by row, from states in which it is component by component."""
        one, element, width, size = self.one.scalar, self.element(0), self.lanes.width, self.kernel.fields[0].size
        last = self.integer("sub", count, 1)

        def tile(at: str, _: list[str]) -> list[str]:
            self.open_tile(self.integer("sdiv", at, width))
            # lanes that are no rows hold what the last row does
            numbers = [self.integer("add", row, self.smaller(self.plus(at, lane), last)) for lane in range(width)]
            rows = [self.at(self.state_base[0], self.integer("mul", n, size), element=one) for n in numbers]

            def part(k: Operand) -> None:
                first = self.at(self.state_at[0], self.times(k, width), element=element)
                places = [self.at(first, u * width, element=element) for u in range(width)]
                found = [self.load(self.lanes.of(element), place, self.aligned(0)) for place in places]
                turned = self._turned([self.cast(value, element, one) for value in found])
                for place, value in zip(rows, turned, strict=True):
                    self.store(self.lanes.type, value, self.at(place, k, element=one), self.one.itemsize)

            return self._over_parts(size, part)

        self.loop(0, count, width, [], tile)

    def _checked(self, row: str, at: str, count: str, interval: str) -> list[str]:
        """A tile whose sums are not finite gets back the states that it has had, and waits for being done again.

        Where a result is wanted there are none: what it gets means nothing.
        """
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


def _placed(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Where things of some bytes lie one after the other, each from a whole cache line on, and the bytes of all."""
    lines = [-(-size // 64) * 64 for size in sizes]
    return [sum(lines[:n]) for n in range(len(lines))], sum(lines)
