"""Kernel -> LLVM IR text: a function that folds columns into the states of rows; SIMD lanes are rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from dred.formula.node import I
from dred.kernel.ir import FOLDS, IJ, Expr, Index, Kernel, Loop, Post, walk
from dred.kernel.llvm_math import declared
from dred.kernel.llvm_state import Cells, StateText
from dred.kernel.llvm_values import Operand, Values, below

SIGNATURE = "pppllpplpllp"  # of `fold`: p a pointer, l a 64-bit integer
_ARGUMENTS = (
    "ptr %vars, ptr %batch_strides, ptr %items, i64 %first, i64 %last, "
    "ptr %intervals, ptr %states, i64 %pitch, ptr noalias %scratch, i64 %row0, i64 %column0, "
    "ptr %redo"
)
_ROWS_BYTES, _ROWS_MOST = 1 << 20, 1024
_PANEL_BYTES, _PANEL_MOST = 1 << 19, 4096


class Program(NamedTuple):
    """LLVM IR text and what its caller must know.

    The text defines `fold(vars, batch_strides, items, first, last, intervals, states, pitch, scratch, row0,
    column0, redo)`, which folds the columns of its intervals into the states of the rows of items number first ... last - 1. Tables are int64,
    C-contiguous.

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
    redo            rows of (interval, column), one per `lanes` rows of an item: -1 before; then where the kernel with
                    all factors inside has to go on, as sums of this one are not finite. For hoisted programs alone
    ==============  ====================================================================================

    Attributes
    ----------
    text : str
    scratch : int
        Bytes of scratch memory.
    rows, lanes : int
        Rows whose records are staged together; rows of a tile. Items that start at multiples of these fit best.
    panel : int
        Columns whose records are staged together, a multiple of the chain. Bits do not change when an interval is
        folded in several calls, cut at multiples of the chain from its beginning.
    hoisted : bool
        Whether `redo` is read and written.
    """

    text: str
    scratch: int
    rows: int
    lanes: int
    panel: int
    hoisted: bool = False


def render(kernel: Kernel, dtype: str, acc: str, chain: int) -> Program:
    """The program of a kernel with compute type `dtype` and state of type `acc`."""
    return _Fold(kernel, dtype, acc, chain).program()


class _PairValues(Values):
    """Values of pairs: what varies with one index alone is read from the staged records."""

    records: frozenset[int] = frozenset()

    def recorded(self, e: Expr) -> bool:
        return e.id in self.records


class _Fold(StateText):
    """Writes `fold`. One level of nesting is one method: items, blocks of rows, panels of columns, tiles, chains."""

    def __init__(self, kernel: Kernel, dtype: str, acc: str, chain: int) -> None:
        super().__init__(kernel, dtype, acc)
        self.chain = chain
        self.slot_i = {e.id: at for e, at in kernel.slots_i}
        self.slot_j = {e.id: at for e, at in kernel.slots_j}
        self.scalars = Values(self, self.one, self._scalar_leaf)
        groups = {f.id: group for group in kernel.folds.values() for f in group}
        self.pairs = _PairValues(self, self.lanes, self._pair_leaf, groups)
        self.pairs.records = frozenset(self.slot_i) | frozenset(self.slot_j)
        self.counters = self.pairs.counters
        self.steps = Values(self, self.near_rows, self._step_leaf)
        self.stateful = below(kernel.steps, "state")
        self.reads = [self._stateless(root.steps) for root in kernel.roots]
        chained = [n for n, root in enumerate(kernel.roots) if root.places == 1]
        self.flat = [n for n in chained if not kernel.roots[n].loops]
        self.looped = [n for n in chained if kernel.roots[n].loops]
        self.heads = [self._heads(root.steps) if root.loops else [] for root in kernel.roots]
        self.columns = self._columns()
        self._layout()
        # where the text stands: operands of the loops that are open
        self.base: dict[int, str] = {}
        self.state_base: list[str] = []
        self.row = self.tile = self.column = ""
        self.tile_row = self.panel_column = self.column_number = ""  # numbers within the arrays
        self.interval = self.redo = self.redo_at = self.item_row = ""
        self.chain_column = ""  # number within the chain
        self.running: Cells = {}

    def program(self) -> Program:
        self.rows_at, self.columns_at = (self.at("%scratch", offset, element="i8") for offset in self.offsets[:2])
        self.place_states(self.offsets[2 : 2 + len(self.numbers)])
        self.terms_at = [self.at("%scratch", offset, element="i8") for offset in self.offsets[2 + len(self.numbers) :]]
        self.loop("%first", "%last", 1, [], self._item)
        body = "\n".join(self.lines)
        text = f"define void @fold({_ARGUMENTS}) #0 {{\nentry:\n{body}\n  ret void\n}}\n"
        attributes = "".join(
            f'attributes #{n} = {{ {words}nounwind "prefer-vector-width"="512" }}\n'
            for n, words in enumerate(("", "noinline "))
        )
        text = declared(text, (self.one, self.lanes, self.wide))
        return Program(self.declarations() + text + attributes, self.nbytes, self.rows, self.lanes.width, self.panel, self.kernel.hoisted)

    # sizes ------------------------------------------------------------------------------------------------------------

    def _columns(self) -> int:
        """Columns whose pairs are written next to each other: they share loads of rows and hide latencies."""
        pair = [e for e in walk(self.kernel.steps) if e.axes == IJ]
        if any(e.op in FOLDS for e in pair) or self.looped or self.ranking:
            return 4 if self.chain % 4 == 0 else 1
        return next((n for n, most in ((4, 64), (2, 128)) if len(pair) <= most and self.chain % n == 0), 1)

    def _layout(self) -> None:
        k, lanes = self.kernel, self.lanes
        row, column = max(1, k.size_i) * lanes.itemsize, max(1, k.size_j) * lanes.itemsize
        rows = min(_ROWS_MOST, max(1, _ROWS_BYTES // row))
        self.rows = -(-rows // lanes.width) * lanes.width
        self.panel = min(_PANEL_MOST, max(1, _PANEL_BYTES // (column * self.chain)) * self.chain)
        looped = {f for n in self.looped for f in k.roots[n].fields}
        sizes = (
            self.rows * k.size_i * lanes.itemsize,
            self.panel * k.size_j * lanes.itemsize,
            *map(self.state_bytes, self.numbers),
            *(lanes.width * 8 * self.dims[f] if f in looped else 0 for f in self.numbers),
        )
        self.offsets, self.nbytes = [], 0
        for size in sizes:
            self.offsets.append(self.nbytes)
            self.nbytes += -(-size // 64) * 64

    # items, blocks of rows, panels of columns -------------------------------------------------------------------------

    def _item(self, item: str, _: list[str]) -> list[str]:
        entry = self.at("%items", self.integer("mul", item, 6), element="i64")
        batch, first, last, interval, intervals, tile = (self._table(entry, k) for k in range(6))
        self.redo_at = self.at("%redo", self.integer("mul", tile, 2), element="i64")
        self.item_row = first
        self.state_base = [self._batch("%states", f, batch, 0, self.element(f)) for f in self.numbers]
        for ind in sorted({ind for ind, _, _ in self.kernel.loads}):
            self.base[ind] = self._batch("%vars", ind, batch, 1 + ind, self.one.scalar)
        with self.scalars.scope(), self.pairs.scope():
            for e in self.kernel.once:
                value = self.scalars.get(e)
                self.pairs.bind(e, self.broadcast(self.lanes, value, "i1" if e.boolean else None))
            self.loop(first, last, self.rows, [], lambda row, _: self._block(row, last, interval, intervals))
        return []

    def _table(self, pointer: str, k: Operand) -> str:
        return self.load("i64", self.at(pointer, k, element="i64"), 8)

    def _batch(self, table: str, position: int, batch: str, stride: int, element: str) -> str:
        pointer = self.load("ptr", self.at(table, position, element="ptr"), 8)
        return self.at(pointer, self.integer("mul", batch, self._table("%batch_strides", stride)), element=element)

    def _block(self, row: str, last: str, interval: str, intervals: str) -> list[str]:
        count = self.smaller(self.integer("sub", last, row), self.rows)
        self._stage_rows(row, count)

        def panel(interval: str, column: str, stop: str) -> list[str]:
            self.interval = interval
            size = self.smaller(self.integer("sub", stop, column), self.panel)
            self.panel_column = column
            self._stage_columns(column, size)
            self.loop(0, count, self.lanes.width, [], lambda at, _: self._tile(row, at, count, size))
            return []

        def span(v: str, _: list[str]) -> list[str]:
            entry = self.at("%intervals", self.integer("mul", v, 2), element="i64")
            start, stop = self._table(entry, 0), self._table(entry, 1)
            self.loop(start, stop, self.panel, [], lambda column, _: panel(v, column, stop))
            return []

        self.loop(interval, intervals, 1, [], span)
        return []

    def _stage_rows(self, row: str, count: str) -> None:
        """Records of rows, tile by tile, the lanes of a value side by side; lanes left over repeat the last row."""
        width = self.lanes.width
        padded = self.integer("and", self.integer("add", count, width - 1), -width)
        most = self.integer("sub", count, 1)

        def stage(k: str, _: list[str]) -> list[str]:
            self.row = self.integer("add", row, self.smaller(k, most))
            tile, lane = self.integer("sdiv", k, width), self.integer("srem", k, width)
            tile = self.integer("mul", tile, self.kernel.size_i * width)
            self._stage(self.kernel.slots_i, self.at(self.rows_at, tile, lane, element=self.one.scalar), width)
            return []

        if self.kernel.slots_i:
            self.loop(0, padded, 1, [], stage)

    def _stage_columns(self, column: str, count: str) -> None:
        """Records of columns, one after the other."""

        def stage(k: str, _: list[str]) -> list[str]:
            self.row = self.integer("add", column, k)
            record = self.integer("mul", k, self.kernel.size_j)
            self._stage(self.kernel.slots_j, self.at(self.columns_at, record, element=self.one.scalar), 1)
            return []

        if self.kernel.slots_j:
            self.loop(0, count, 1, [], stage)

    def _stage(self, slots: Sequence[tuple[Expr, int]], record: str, stride: int) -> None:
        def slot(e: Expr, at: int) -> list[str]:
            if loops := sorted(e.free - self.scalars.counters.keys()):
                for want in self.scalars.invariants(loops[0], [e]):
                    self.scalars.get(*want)
                unroll = 1 if loops[1:] or any(b.op in FOLDS and loops[0] in b.free for b in walk([e])) else 4
                return self.scalars.components(loops[0], [], lambda _: slot(e, at), unroll)
            value = self.scalars.get(e)
            if e.boolean:
                value = self.put(f"uitofp i1 {value} to {self.one.scalar}")
            where = self.at(record, *self._position(e, stride), at * stride, element=self.one.scalar)
            self.store(self.one.scalar, value, where, self.one.itemsize)
            return []

        with self.scalars.scope():
            for e, at in slots:
                slot(e, at)

    # tiles and chains -------------------------------------------------------------------------------------------------

    def _tile(self, row: str, at: str, count: str, size: str) -> list[str]:
        """All columns of a panel for one tile of rows, unless it waits for being done again."""
        if not self.kernel.hoisted:
            return self._columns_of(row, at, count, size)
        before = self.integer("sub", self.integer("add", row, at), self.item_row)
        tile = self.integer("mul", self.integer("sdiv", before, self.lanes.width), 2)
        self.redo = self.at(self.redo_at, tile, element="i64")
        waits = self.load("i64", self.redo, 8)
        self.when(self.put(f"icmp slt i64 {waits}, 0"), lambda: self._columns_of(row, at, count, size))
        return []

    def _columns_of(self, row: str, at: str, count: str, size: str) -> list[str]:
        first = self.tile_row = self.integer("add", row, at)
        left = self.smaller(self.integer("sub", count, at), self.lanes.width)
        tile = self.integer("mul", at, self.kernel.size_i)
        self.tile = self.at(self.rows_at, tile, element=self.one.scalar)
        self.copy_states(self.state_base, first, left, load=True)
        full = self.integer("mul", self.integer("sdiv", size, self.chain), self.chain)
        if self.columns > 1:
            self.loop(0, full, self.chain, [], lambda column, _: self._chain(column, self.chain, self.columns))
            self.loop(full, size, self.chain, [], lambda column, _: self._chain(column, self._rest(column, size), 1))
        else:
            self.loop(0, size, self.chain, [], lambda column, _: self._chain(column, self._rest(column, size), 1))

        def keep() -> None:
            self.copy_states(self.state_base, first, left, load=False)

        def again() -> None:
            self.store("i64", self.interval, self.redo, 8)
            self.store("i64", self.panel_column, self.at(self.redo, 1, element="i64"), 8)

        if self.kernel.hoisted:
            finite = self._finite(left)
            self.when(finite, keep)
            self.when(self.put(f"xor i1 {finite}, true"), again)
        else:
            keep()
        return []

    def _finite(self, count: str) -> str:
        """Whether all sums that something has left are finite, in the lanes that are rows."""
        fields = {f for root in self.kernel.roots for f, post in zip(root.fields, root.posts) if post != Post()}
        wide, width = self.wide, self.lanes.width

        def component(k: str, held: list[str]) -> list[str]:
            value = self.load(wide.type, self.at(self.state_at[f], self.integer("mul", k, width), element=wide.scalar), 64)
            return [self.put(f"fadd {wide.type} {held[0]}, {self.put(f'fsub {wide.type} {value}, {value}')}")]

        total = wide.literal(0.0)
        for f in sorted(fields):
            (total,) = self.loop(0, self.kernel.fields[f].size, 1, [(wide.type, total)], component)
        bits = f"i{width}"
        lost = self.put(f"bitcast {wide.mask} {self.put(f'fcmp uno {wide.type} {total}, {total}')} to {bits}")
        rows = self.put(f"trunc i64 {self.integer('shl', 1, count)} to {bits}")
        rows = self.put(f"sub {bits} {rows}, 1")
        return self.put(f"icmp eq {bits} {self.put(f'and {bits} {lost}, {rows}')}, 0")

    def _rest(self, column: str, size: str) -> str:
        return self.smaller(self.integer("sub", size, column), self.chain)

    def _chain(self, start: str, count: Operand, columns: int) -> list[str]:
        """Terms of at most `chain` columns in the compute type, then into the states."""
        k = self.kernel
        for n in self.looped:
            self._over(n, lambda n=n: self._put_terms(n, [self.identity(f) for f in k.roots[n].fields]))  # type: ignore[misc]
        cells = [(f, k.roots[n].index) for n in self.flat for f in k.roots[n].fields]

        def block(column: str, held: list[str]) -> list[str]:
            place = self.integer("add", start, column)
            self.column_number, self.chain_column = self.integer("add", self.panel_column, place), column
            record = self.integer("mul", place, k.size_j)
            self.column = self.at(self.columns_at, record, element=self.one.scalar)
            running = self._columns_block(columns, dict(zip(cells, held, strict=True)))
            return [running[cell] for cell in cells]

        self.chain_row = self.integer("add", self.integer("add", self.panel_column, start), "%column0")
        carry = [(self.running_type(f), self.identity(f)) for f, _ in cells]
        held = self.loop(0, count, columns, carry, block)
        self._join(dict(zip(cells, held, strict=True)))
        return []

    def _columns_block(self, columns: int, running: Cells) -> Cells:
        """The running values of the flat roots after some more columns; all roots step at once."""
        self.pairs.columns = columns
        roots = self.kernel.roots
        before: list[dict[int, str]] = []  # for each column: what looped roots read of the values that it finds
        with self.pairs.scope():
            for s in range(columns):
                for n in self.flat:
                    for e in self.reads[n]:
                        self.pairs.get(e, s)
                self.running = running
                with self.steps.scope():  # what reads the running values holds for this column alone
                    before.append({e.id: self.steps.get(e, s) for n in self.looped for e in self.heads[n]})
                    running = running | {
                        (f, roots[n].index): self.steps.get(step, s)
                        for n in self.flat
                        for f, step in zip(roots[n].fields, roots[n].steps, strict=True)
                    }
            for n in self.looped:
                self._over(n, lambda n=n: self._components(n, before), self.reads[n])  # type: ignore[misc]
            for n in self.ranking:
                terms = roots[n].terms

                def candidates(n: int = n, terms: Sequence[Expr] = terms) -> None:
                    self.rank(n, [[self.pairs.get(e, s) for e in terms] for s in range(columns)])

                self._over(n, candidates, terms)
        return running

    def _components(self, n: int, before: Sequence[dict[int, str]]) -> None:
        """One component of a large root, column after column."""
        root = self.kernel.roots[n]
        values: Sequence[str] = self._get_terms(n)
        for s, known in enumerate(before):
            for e in self.reads[n]:
                self.pairs.get(e, s)
            self.running = {(f, root.index): value for f, value in zip(root.fields, values, strict=True)}
            with self.steps.scope():
                for e in self.heads[n]:
                    self.steps.bind(e, known[e.id], s)
                values = [self.steps.get(step, s) for step in root.steps]
        self._put_terms(n, values)

    def _stateless(self, steps: Sequence[Expr]) -> list[Expr]:
        """The maximal expressions of steps that read no running value."""
        tainted = below(steps, "state")
        found = {a.id: a for e in walk(steps) if e.id in tainted for a in e.args if a.id not in tainted}
        found |= {e.id: e for e in steps if e.id not in tainted}
        return [found[key] for key in sorted(found)]

    @staticmethod
    def _heads(steps: Sequence[Expr]) -> list[Expr]:
        """The maximal expressions that read running values, and none of those inside loops."""
        mine: set[int] = set()  # read those of a component
        theirs: set[int] = set()  # read those of fields of one component
        for e in walk(steps):
            if (e.op == "state" and e.free) or any(a.id in mine for a in e.args):
                mine.add(e.id)
            elif e.op == "state" or any(a.id in theirs for a in e.args):
                (theirs if not e.free else mine).add(e.id)
        found = {a.id: a for e in walk(steps) if e.id in mine for a in e.args if a.id in theirs}
        return [found[key] for key in sorted(found)]

    def _join(self, running: Cells) -> None:
        """Joins the running values to the states: large roots first, which read the others' before they change."""
        roots = self.kernel.roots
        for group in self.groups:
            with self.merged.scope():
                self.state, self.other = {}, {}
                flat = [n for n in group if n in self.flat]
                merged = {}
                for n in flat:
                    values = self._widened(n, [running[f, roots[n].index] for f in roots[n].fields])
                    merged[n] = self.merge_root(n, values)
                for n in group:
                    if n in self.looped:
                        for e in self._heads_of_merge(n):
                            self.merged.get(e)
                        self._over(n, lambda n=n: self._join_component(n))  # type: ignore[misc]
                for n in flat:
                    for f, value in zip(roots[n].fields, merged[n], strict=True):
                        self.write_state(f, roots[n].index, value)

    def _widened(self, n: int, running: Sequence[str]) -> list[str]:
        """Running values as they are merged: with the factors that have left the terms."""
        root, wide = self.kernel.roots[n], self.wide
        out = [self.widened(f, value) for f, value in zip(root.fields, running, strict=True)]
        for k, post in enumerate(root.posts):
            if post.scale != 1.0:
                out[k] = self.put(f"fmul {wide.type} {out[k]}, {wide.literal(post.scale)}")
            if post.factor is not None:
                with self.pairs.scope():
                    factor = self.cast(self.pairs.get(post.factor), self.one.scalar, wide.scalar)
                out[k] = self.put(f"fmul {wide.type} {out[k]}, {factor}")
        return out

    def _heads_of_merge(self, n: int) -> list[Expr]:
        """What the merge of a large root computes once for all components."""
        merge = self.kernel.roots[n].merge
        inside = {e.id for e in walk(merge) if e.free}
        found = {a.id: a for e in walk(merge) if e.id in inside for a in e.args if a.id not in inside}
        return [found[key] for key in sorted(found)]

    def _join_component(self, n: int) -> None:
        root = self.kernel.roots[n]
        with self.merged.scope():
            merged = self.merge_root(n, self._widened(n, self._get_terms(n)))
            for f, value in zip(root.fields, merged, strict=True):
                self.write_state(f, root.index, value)

    # large outputs: running values in memory --------------------------------------------------------------------------

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

    def _term_cells(self, n: int) -> list[tuple[str, str]]:
        """Type and address of the running values of a component."""
        root, width = self.kernel.roots[n], self.lanes.width
        kinds = [self.running_type(f) for f in root.fields]
        near = f"i{8 * self.one.itemsize}"
        elements = [near if self.kernel.fields[f].number else self.one.scalar for f in root.fields]
        return [
            (kind, self.at(self.terms_at[f], *self.component(root.index, width), element=element))
            for f, kind, element in zip(root.fields, kinds, elements, strict=True)
        ]

    def _get_terms(self, n: int) -> list[str]:
        return [self.load(kind, p, 64) for kind, p in self._term_cells(n)]

    def _put_terms(self, n: int, values: Sequence[str]) -> None:
        for (kind, p), value in zip(self._term_cells(n), values, strict=True):
            self.store(kind, value, p, 64)

    # leaves -----------------------------------------------------------------------------------------------------------

    def _scalar_leaf(self, e: Expr, _: int) -> str | None:
        if (known := self._fixed(e, self.scalars)) is not None:
            return known
        if e.op == "row":
            return self.integer("add", self.row, self._first(e))
        return self._variable(e, self.scalars) if e.op == "load" else None

    def _pair_leaf(self, e: Expr, column: int) -> str | None:
        if (known := self._fixed(e, self.pairs)) is not None:
            return known
        one, lanes = self.one, self.lanes
        if (at := self.slot_i.get(e.id)) is not None:
            p = self.at(self.tile, *self._position(e, lanes.width), at * lanes.width, element=one.scalar)
            return self._truth(e, self.load(lanes.type, p, lanes.nbytes))
        if (at := self.slot_j.get(e.id)) is not None:
            place = column * self.kernel.size_j + at
            p = self.at(self.column, *self._position(e, 1), place, element=one.scalar)
            return self._truth(e, self.broadcast(lanes, self.load(one.scalar, p, one.itemsize)))
        if e.op == "row":
            return self._row_number(e, column)
        return self.broadcast(lanes, self._variable(e, self.pairs)) if e.op == "load" else None

    def _step_leaf(self, e: Expr, column: int) -> str | None:
        """What steps read: running values, rows counted from the beginning of the chain, and values of pairs."""
        if e.op == "state":
            return self.running[e.attr.field, e.attr.index]
        if e.op == "row":
            near = self.integer("add", self.chain_column, column)
            element = f"i{8 * self.one.itemsize}"
            near = near if element == "i64" else self.put(f"trunc i64 {near} to {element}")
            return self.broadcast(self.near_rows, near, element)
        return None if e.id in self.stateful else self.pairs.get(e, column)

    def _fixed(self, e: Expr, values: Values) -> str | None:
        """What varies with component loops at most, and reads nothing."""
        lanes = values.lanes
        if e.op == "const":
            return lanes.literal(e.attr)
        if e.op == "whole":
            return lanes.whole(e.attr)
        if e.op != "counter":
            return None
        *counters, total = self._counted(e.attr, values)
        for c in counters:
            total = c + total if isinstance(c, int) and isinstance(total, int) else self.integer("add", c, total)
        if isinstance(total, int):
            return lanes.literal(float(total))
        return self.broadcast(lanes, self.put(f"sitofp i64 {total} to {lanes.scalar}"))

    @staticmethod
    def _first(e: Expr) -> str:
        """The number of the first row of what a row number counts."""
        return "%row0" if e.attr == I else "%column0"

    def _row_number(self, e: Expr, column: int) -> str:
        """Numbers of the rows of a tile, or of a column."""
        kind = self.lanes.number
        number = self.integer("add", self.tile_row if e.attr == I else self.column_number, self._first(e))
        if e.attr != I:
            return self.broadcast(self.lanes, self.integer("add", number, column) if column else number, "i64")
        lane = ", ".join(f"i64 {k}" for k in range(self.lanes.width))
        return self.put(f"add {kind} {self.broadcast(self.lanes, number, 'i64')}, <{lane}>")

    def _truth(self, e: Expr, value: str) -> str:
        """Records hold numbers; a truth value is in them as 1 or 0."""
        if not e.boolean:
            return value
        return self.put(f"fcmp une {self.lanes.type} {value}, {self.lanes.literal(0.0)}")

    def _variable(self, e: Expr, values: Values) -> str:
        """A component of a variable, in the row that is being staged or of a parameter."""
        ind, dim, axes, index = e.attr
        row: list[Operand] = [self.times(self.row, dim)] if axes else []
        p = self.at(self.base[ind], *row, *self._counted(index, values), element=self.one.scalar)
        return self.load(self.one.scalar, p, self.one.itemsize)

    def _counted(self, index: Index, values: Values) -> list[Operand]:
        """A component number over the loops that are open for some values."""
        return [*(self.times(values.counters[loop], c) for loop, c in index.terms), index.offset]

    def _position(self, e: Expr, stride: int) -> list[Operand]:
        """Where a value is inside its slot: the loop of greatest depth is the fastest."""
        values = self.scalars if e.free <= self.scalars.counters.keys() else self.pairs
        out: list[Operand] = []
        for loop in sorted(e.free, reverse=True):
            out.append(self.times(values.counters[loop], stride))
            stride *= loop.length
        return out
