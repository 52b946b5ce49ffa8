"""Kernel -> LLVM IR text: a function that folds columns into the states of rows; SIMD lanes are rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from dred.formula.node import I
from dred.kernel.ir import FOLDS, IJ, Expr, Index, Kernel, Loop, Root, walk
from dred.kernel.llvm_math import Lanes, declared
from dred.kernel.llvm_values import Operand, Text, Values, below

LANES = {"float32": 16, "float64": 8}  # rows of a tile: 64 bytes, whatever the registers of the machine
SIGNATURE = "pppllpplpll"  # of `fold`: p a pointer, l a 64-bit integer
_ARGUMENTS = (
    "ptr %vars, ptr %batch_strides, ptr %items, i64 %first, i64 %last, "
    "ptr %intervals, ptr %states, i64 %pitch, ptr noalias %scratch, i64 %row0, i64 %column0"
)
_ROWS_BYTES, _ROWS_MOST = 1 << 20, 1024
_PANEL_BYTES, _PANEL_MOST = 1 << 19, 4096


class Program(NamedTuple):
    """LLVM IR text and what its caller must know.

    The text defines `fold(vars, batch_strides, items, first, last, intervals, states, pitch, scratch, row0,
    column0)`, which folds
    the columns of its intervals into the states of the rows of items number first ... last - 1. Tables are int64,
    C-contiguous.

    ==============  ====================================================================================
    vars            base pointer of each variable, by position
    batch_strides   elements from one batch to the next (0: all batches share it): state, then variables
    items           rows of (batch, first row, one past the last row, first interval, one past the last)
    intervals       rows of (first column, one past the last)
    states          base pointer of each state field, an array (dim, rows) whose rows are contiguous
    pitch           elements from one component of a state field to the next
    scratch         `scratch` bytes, aligned to 64, for this call alone
    row0, column0   global numbers of the first row and of the first column of the arrays
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
    """

    text: str
    scratch: int
    rows: int
    lanes: int
    panel: int


def render(kernel: Kernel, dtype: str, acc: str, chain: int) -> Program:
    """The program of a kernel with compute type `dtype` and state of type `acc`."""
    return _Fold(kernel, dtype, acc, chain).program()


class _PairValues(Values):
    """Values of pairs: what varies with one index alone is read from the staged records."""

    records: frozenset[int] = frozenset()

    def recorded(self, e: Expr) -> bool:
        return e.id in self.records


class _Fold(Text):
    """Writes `fold`. One level of nesting is one method: items, blocks of rows, panels of columns, tiles, chains."""

    def __init__(self, kernel: Kernel, dtype: str, acc: str, chain: int) -> None:
        super().__init__()
        self.kernel, self.chain = kernel, chain
        self.one, self.lanes = Lanes(dtype), Lanes(dtype, LANES[dtype])
        self.wide = Lanes(acc, self.lanes.width)
        self.slot_i = {e.id: at for e, at in kernel.slots_i}
        self.slot_j = {e.id: at for e, at in kernel.slots_j}
        self.scalars = Values(self, self.one, self._scalar_leaf)
        groups = {f.id: group for group in kernel.folds.values() for f in group}
        self.pairs = _PairValues(self, self.lanes, self._pair_leaf, groups)
        self.pairs.records = frozenset(self.slot_i) | frozenset(self.slot_j)
        self.merged = Values(self, self.wide, self._merge_leaf)
        self.reads = [self._stateless(step) for step in kernel.steps]
        self.flat = [n for n, root in enumerate(kernel.roots) if not root.loops]
        self.looped = [n for n, root in enumerate(kernel.roots) if root.loops]
        self.fields = range(len(kernel.identity))
        self.columns = self._columns()
        self._layout()
        # where the text stands: operands of the loops that are open
        self.base: dict[int, str] = {}
        self.state_base: list[str] = []
        self.row = self.tile = self.column = ""
        self.tile_row = self.panel_column = self.column_number = ""  # numbers within the arrays
        self.running: Sequence[str] = ()
        self.state: Sequence[str] = ()
        self.other: Sequence[str] = ()

    def program(self) -> Program:
        self.rows_at, self.columns_at, self.states_at, self.terms_at = (
            self.at("%scratch", offset, element="i8") for offset in self.offsets
        )
        self.loop("%first", "%last", 1, [], self._item)
        body = "\n".join(self.lines)
        text = f"define void @fold({_ARGUMENTS}) #0 {{\nentry:\n{body}\n  ret void\n}}\n"
        attributes = "".join(
            f'attributes #{n} = {{ {words}nounwind "prefer-vector-width"="512" }}\n'
            for n, words in enumerate(("", "noinline "))
        )
        text = declared(text, (self.one, self.lanes, self.wide))
        return Program(text + attributes, self.nbytes, self.rows, self.lanes.width, self.panel)

    # sizes ------------------------------------------------------------------------------------------------------------

    def _columns(self) -> int:
        """Columns whose pairs are written next to each other: they share loads of rows and hide latencies."""
        pair = [e for e in walk([e for step in self.kernel.steps for e in step]) if e.axes == IJ]
        if any(e.op in FOLDS for e in pair) or self.looped:
            return 4 if self.chain % 4 == 0 else 1
        return next((n for n, most in ((4, 64), (2, 128)) if len(pair) <= most and self.chain % n == 0), 1)

    def _layout(self) -> None:
        k, lanes = self.kernel, self.lanes
        row, column = max(1, k.size_i) * lanes.itemsize, max(1, k.size_j) * lanes.itemsize
        rows = min(_ROWS_MOST, max(1, _ROWS_BYTES // row))
        self.rows = -(-rows // lanes.width) * lanes.width
        self.panel = min(_PANEL_MOST, max(1, _PANEL_BYTES // (column * self.chain)) * self.chain)
        long = max((root.index.last + 1 for root in k.roots if root.loops), default=0)
        sizes = (
            self.rows * k.size_i * lanes.itemsize,
            self.panel * k.size_j * lanes.itemsize,
            len(self.fields) * k.dim * self.wide.nbytes,
            len(self.fields) * long * lanes.nbytes,
        )
        self.offsets, self.nbytes = [], 0
        for size in sizes:
            self.offsets.append(self.nbytes)
            self.nbytes += -(-size // 64) * 64

    # items, blocks of rows, panels of columns -------------------------------------------------------------------------

    def _item(self, item: str, _: list[str]) -> list[str]:
        entry = self.at("%items", self.integer("mul", item, 5), element="i64")
        batch, first, last, interval, intervals = (self._table(entry, k) for k in range(5))
        self.state_base = [self._batch("%states", f, batch, 0, self.wide.scalar) for f in self.fields]
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

        def panel(column: str, stop: str) -> list[str]:
            size = self.smaller(self.integer("sub", stop, column), self.panel)
            self.panel_column = column
            self._stage_columns(column, size)
            self.loop(0, count, self.lanes.width, [], lambda at, _: self._tile(row, at, count, size))
            return []

        def span(v: str, _: list[str]) -> list[str]:
            entry = self.at("%intervals", self.integer("mul", v, 2), element="i64")
            start, stop = self._table(entry, 0), self._table(entry, 1)
            self.loop(start, stop, self.panel, [], lambda column, _: panel(column, stop))
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
        """All columns of a panel for one tile of rows."""
        first = self.tile_row = self.integer("add", row, at)
        left = self.smaller(self.integer("sub", count, at), self.lanes.width)
        tile = self.integer("mul", at, self.kernel.size_i)
        self.tile = self.at(self.rows_at, tile, element=self.one.scalar)
        self._copy_states(first, left, load=True)
        full = self.integer("mul", self.integer("sdiv", size, self.chain), self.chain)
        if self.columns > 1:
            self.loop(0, full, self.chain, [], lambda column, _: self._chain(column, self.chain, self.columns))
            self.loop(full, size, self.chain, [], lambda column, _: self._chain(column, self._rest(column, size), 1))
        else:
            self.loop(0, size, self.chain, [], lambda column, _: self._chain(column, self._rest(column, size), 1))
        self._copy_states(first, left, load=False)
        return []

    def _rest(self, column: str, size: str) -> str:
        return self.smaller(self.integer("sub", size, column), self.chain)

    def _copy_states(self, row: str, count: str, load: bool) -> None:
        """The states of a tile into scratch memory, or back: whole tiles as vectors, others lane by lane."""
        wide, one, dim = self.wide, self.wide.scalar, self.kernel.dim
        whole = self.put(f"icmp eq i64 {count}, {wide.width}")
        vectors = self.put(f"select i1 {whole}, i64 {dim}, i64 0")
        lanes = self.put(f"select i1 {whole}, i64 0, i64 {dim}")

        def move(field: int, component: str, lane: Operand, kind: str) -> list[str]:
            theirs = self.at(self.state_base[field], self.integer("mul", component, "%pitch"), row, lane, element=one)
            place = self.integer("mul", component, wide.width)
            mine = self.at(self.states_at, place, lane, field * dim * wide.width, element=one)
            source, target = (theirs, mine) if load else (mine, theirs)
            self.store(kind, self.load(kind, source, wide.itemsize), target, wide.itemsize)
            return []

        for f in self.fields:
            self.loop(0, vectors, 1, [], lambda c, _, f=f: move(f, c, 0, wide.type))  # type: ignore[misc]
            self.loop(
                0,
                lanes,
                1,
                [],
                lambda c, _, f=f: self.loop(0, count, 1, [], lambda lane, _: move(f, c, lane, one)),  # type: ignore[misc]
            )

    def _chain(self, start: str, count: Operand, columns: int) -> list[str]:
        """Terms of at most `chain` columns in the compute type, then into the states."""
        lanes, k = self.lanes, self.kernel
        identity = [lanes.literal(value) for value in k.identity]
        for n in self.looped:
            self._over(n, lambda n=n: self._put_terms(n, identity))  # type: ignore[misc]

        def block(column: str, held: list[str]) -> list[str]:
            place = self.integer("add", start, column)
            self.column_number = self.integer("add", self.panel_column, place)
            record = self.integer("mul", place, k.size_j)
            self.column = self.at(self.columns_at, record, element=self.one.scalar)
            return self._columns_block(columns, held)

        carry = [(lanes.type, value) for _ in self.flat for value in identity]
        held = self.loop(0, count, columns, carry, block)
        width = len(self.fields)
        for place, n in enumerate(self.flat):
            self._merge(k.roots[n], held[place * width : (place + 1) * width])
        for n in self.looped:
            self._over(n, lambda n=n: self._merge(k.roots[n], self._get_terms(n)))  # type: ignore[misc]
        return []

    def _columns_block(self, columns: int, held: list[str]) -> list[str]:
        self.pairs.columns = columns
        width = len(self.fields)
        with self.pairs.scope():
            for s in range(columns):
                for place, n in enumerate(self.flat):
                    part = slice(place * width, (place + 1) * width)
                    held[part] = self._advance(n, held[part], s)
            for n in self.looped:

                def component(n: int = n) -> None:
                    terms: Sequence[str] = self._get_terms(n)
                    for s in range(columns):
                        terms = self._advance(n, terms, s)
                    self._put_terms(n, terms)

                self._over(n, component, self.reads[n])
        return held

    def _advance(self, n: int, running: Sequence[str], column: int) -> list[str]:
        """The running values of a root after one more column."""
        for e in self.reads[n]:
            self.pairs.get(e, column)
        self.running = running
        with self.pairs.scope():  # what reads the running values holds for this column alone
            return [self.pairs.get(step, column) for step in self.kernel.steps[n]]

    def _stateless(self, step: Sequence[Expr]) -> list[Expr]:
        """The maximal expressions of a step that read no running value."""
        tainted = below(step, "state")
        found = {a.id: a for e in walk(list(step)) if e.id in tainted for a in e.args if a.id not in tainted}
        found |= {e.id: e for e in step if e.id not in tainted}
        return [found[key] for key in sorted(found)]

    def _merge(self, root: Root, running: Sequence[str]) -> None:
        """Joins the running values of one component to its state."""
        wide = self.wide
        self.other = [self._widened(value) for value in running]
        where = [self._cell(self.states_at, root, f * self.kernel.dim, wide) for f in self.fields]
        self.state = [self.load(wide.type, p, wide.nbytes) for p in where]
        with self.merged.scope():
            for e, p in zip(self.kernel.merge, where, strict=True):
                self.store(wide.type, self.merged.get(e), p, wide.nbytes)

    def _widened(self, value: str) -> str:
        if self.lanes == self.wide:
            return value
        cast = "fpext" if self.lanes.itemsize < self.wide.itemsize else "fptrunc"
        return self.put(f"{cast} {self.lanes.type} {value} to {self.wide.type}")

    # large outputs: running values in memory --------------------------------------------------------------------------

    def _over(self, n: int, body: Callable[[], None], reads: Sequence[Expr] = ()) -> None:
        """`body`, which reads some values, for every component of a large root."""

        def nest(loops: Sequence[Loop]) -> list[str]:
            if not loops:
                body()
                return []
            for want in self.pairs.invariants(loops[0], reads):
                self.pairs.get(*want)
            return self.pairs.components(loops[0], [], lambda _: nest(loops[1:]), 1)

        nest(self.kernel.roots[n].loops)

    def _term_cells(self, n: int) -> list[str]:
        root, dim = self.kernel.roots[n], self.kernel.dim
        return [self._cell(self.terms_at, root, f * dim, self.lanes) for f in self.fields]

    def _get_terms(self, n: int) -> list[str]:
        return [self.load(self.lanes.type, p, self.lanes.nbytes) for p in self._term_cells(n)]

    def _put_terms(self, n: int, values: Sequence[str]) -> None:
        for p, value in zip(self._term_cells(n), values, strict=True):
            self.store(self.lanes.type, value, p, self.lanes.nbytes)

    def _cell(self, pointer: str, root: Root, offset: int, lanes: Lanes) -> str:
        """The lanes of a component of a root in an array of lanes."""
        *counters, first = self._component(root.index, self.pairs, lanes.width)
        return self.at(pointer, *counters, first, offset * lanes.width, element=lanes.scalar)

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
        if e.op == "state":
            field: int = e.attr
            return self.running[field]
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

    def _fixed(self, e: Expr, values: Values) -> str | None:
        """What varies with component loops at most, and reads nothing."""
        lanes = values.lanes
        if e.op == "const":
            return lanes.literal(e.attr)
        if e.op == "whole":
            return lanes.whole(e.attr)
        if e.op != "counter":
            return None
        *counters, total = self._component(e.attr, values)
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

    def _merge_leaf(self, e: Expr, _: int) -> str | None:
        if e.op == "const":
            return self.wide.literal(e.attr)
        if e.op in ("state", "other"):
            field: int = e.attr
            return self.state[field] if e.op == "state" else self.other[field]
        return None

    def _truth(self, e: Expr, value: str) -> str:
        """Records hold numbers; a truth value is in them as 1 or 0."""
        if not e.boolean:
            return value
        return self.put(f"fcmp une {self.lanes.type} {value}, {self.lanes.literal(0.0)}")

    def _variable(self, e: Expr, values: Values) -> str:
        """A component of a variable, in the row that is being staged or of a parameter."""
        ind, dim, axes, index = e.attr
        row: list[Operand] = [self._times(self.row, dim)] if axes else []
        p = self.at(self.base[ind], *row, *self._component(index, values), element=self.one.scalar)
        return self.load(self.one.scalar, p, self.one.itemsize)

    def _component(self, index: Index, values: Values, stride: int = 1) -> list[Operand]:
        return [
            *(self._times(values.counters[loop], c * stride) for loop, c in index.terms),
            index.offset * stride,
        ]

    def _position(self, e: Expr, stride: int) -> list[Operand]:
        """Where a value is inside its slot: the loop of greatest depth is the fastest."""
        values = self.scalars if e.free <= self.scalars.counters.keys() else self.pairs
        out: list[Operand] = []
        for loop in sorted(e.free, reverse=True):
            out.append(self._times(values.counters[loop], stride))
            stride *= loop.length
        return out

    def _times(self, a: Operand, b: int) -> Operand:
        if isinstance(a, int):
            return a * b
        return a if b == 1 else self.integer("mul", a, b)
