"""Staging in LLVM IR: what varies with one index alone is computed once, and kept in records that all pairs read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import gcd

from dred.formula.node import I, J
from dred.kernel.cpu_schedule import Schedule
from dred.kernel.ir import FOLDS, Expr, Index, Kernel, walk
from dred.kernel.llvm_math import Lanes
from dred.kernel.llvm_state import StateText
from dred.kernel.llvm_values import Operand, Values

FETCHED = 16  # values of a row, at most, that are fetched before they are needed
SHORT = 6  # components of a row, at most, of which a tile's are loaded at once
LONG = 8  # cache lines of a record that has some to spare


class StagingText(StateText):
    """Text of a function that stages records.

    Those along the lanes lie (tile, values, lanes), others (row, values). What is written for a row is the same
    sequence of operations wherever it is in a tile, a panel or a block of rows.
    """

    def __init__(self, kernel: Kernel, dtype: str, acc: str, plan: Schedule, scaling: bool, moderate: bool) -> None:
        super().__init__(kernel, dtype, acc, plan.lanes, scaling, moderate)
        self.plan = plan
        self.sizes = {I: kernel.size_i, J: kernel.size_j}
        self.scalars = Values(self, self.one, self._scalar_leaf)
        self.vectors = Values(self, self.lanes, self._vector_leaf)  # in the lanes are rows
        self.parts = Values(self, self.lanes, self._part_leaf)  # components of a row
        self.values = [self.scalars, self.vectors, self.parts]
        short = not any(b.free or b.op in FOLDS for b in walk([e for e, _ in kernel.slots_j]))
        large = any(root.loops and root.places == 1 for root in kernel.roots)
        # whether columns are staged when the first row meets them
        self.late = plan.along == J and short and not large
        fetched = [(ind, dim) for ind, dim, axes in kernel.loads if axes == J and dim <= FETCHED]
        self.fetched = fetched if self.late else []  # variables, and their dimensions
        # where the text stands: operands of the loops that are open
        self.staged: dict[int, str] = {}  # records, by index
        self.panel_column = self.panel_size = ""
        self.fetching = ("", "")  # groups of steps before this row, and what each of them fetches
        self.base: dict[int, str] = {}
        self.row = ""  # that is being staged
        self.wide_loads: dict[int, list[str]] = {}  # variables of the tile that is being staged

    # records ----------------------------------------------------------------------------------------------------------

    def stride(self, axis: int) -> int:
        """Distance between values of a record."""
        return self.plan.lanes if axis == self.plan.along else 1

    def pitch(self, axis: int) -> int:
        """Values from one record to the next: of a tile, for each of its rows.

        Long records that do not lie along the lanes begin an odd number of cache lines after each other: one component
        of many of them is read at a time, and from multiples of a power of two a cache would take few of these lines.
        """
        size, line = self.sizes[axis], 64 // self.one.itemsize
        if axis == self.plan.along or size < LONG * line:
            return size
        return (-(-size // line) | 1) * line

    def stage(self, axis: int, first: str, count: str, records: str) -> None:
        """Records of `count` rows of an index; lanes left over repeat the last one."""
        slots = self.kernel.slots_i if axis == I else self.kernel.slots_j
        if axis != self.plan.along:
            self._stage_rows(axis, slots, first, count, records)
        elif axis == I:
            turned = [(e, at) for e, at in slots if self._turns(e)]
            self._stage_turned(turned, first, count, records)
            self._stage_lanes(axis, [slot for slot in slots if slot not in turned], first, 0, count, records)
        else:  # there are few rows for every column: staging is a large part of the work
            whole = self._stage_tiles(slots, first, count, records)
            self._stage_lanes(axis, slots, first, whole, count, records)

    def _stage_rows(self, axis: int, slots: Sequence[tuple[Expr, int]], first: str, count: str, records: str) -> None:
        """Records that do not lie along the lanes."""

        def one(k: str, _: list[str]) -> list[str]:
            self.row = self.integer("add", first, k)
            place = self.integer("mul", k, self.pitch(axis))
            self._stage(slots, self.at(records, place, element=self.one.scalar), 1)
            return []

        if slots:
            self.loop(0, count, 1, [], one)

    def _stage_lanes(
        self, axis: int, slots: Sequence[tuple[Expr, int]], first: str, begin: Operand, count: str, records: str
    ) -> None:
        """Records along the lanes, one by one, from one of the rows on."""
        width = self.plan.lanes
        last = self.integer("sub", count, 1)

        def lane(k: str, _: list[str]) -> list[str]:
            self.row = self.integer("add", first, self.smaller(k, last))
            tile, place = self.integer("sdiv", k, width), self.integer("srem", k, width)
            tile = self.integer("mul", tile, self.sizes[axis] * width)
            self._stage(slots, self.at(records, tile, place, element=self.one.scalar), width)
            return []

        if slots:
            self.loop(begin, self._whole(count), 1, [], lane)

    def _stage_tiles(self, slots: Sequence[tuple[Expr, int]], first: str, count: str, records: str) -> str:
        """Whole tiles of columns; returns how many columns these are."""
        width, size = self.plan.lanes, self.kernel.size_j

        def tile(k: str, _: list[str]) -> list[str]:
            self.row, self.wide_loads = self.integer("add", first, k), {}
            self._stage(slots, self.at(records, self.integer("mul", k, size), element=self.one.scalar), width, True)
            return []

        whole = self.integer("and", count, -width)
        self.loop(0, whole, width, [], tile)
        return whole

    # columns that are staged when the first row meets them ------------------------------------------------------------

    def stage_panel(self) -> None:
        """Records of a panel of columns, or of those that fill no span: the first row stages the others (`arrive`)."""
        first, count, records = self.panel_column, self.panel_size, self.staged[J]
        if self.late:
            span = self.plan.span * self.plan.columns
            full = self.integer("mul", self.integer("sdiv", count, span), span)
            first, count = self.integer("add", first, full), self.integer("sub", count, full)
            records = self.at(records, self.integer("mul", full, self.kernel.size_j), element=self.one.scalar)
        self.stage(J, first, count, records)

    def arrive(self, first: str, record: str) -> list[tuple[Expr, str]]:
        """Columns from one on, of all lanes, which are staged when the first row meets them: values of the record.

        So what a processor does for staging goes on beside what it computes.
        """
        slots, self.row, self.wide_loads = self.kernel.slots_j, first, {}
        with self.vectors.scope():
            found = [(e, self.vectors.get(e)) for e, _ in slots]
        for (e, value), (_, at) in zip(found, slots, strict=True):
            there = self.at(record, at * self.plan.lanes, element=self.one.scalar)
            self.store(self.lanes.type, self._number(self.lanes, e, value), there, self.lanes.nbytes)
        return found

    def open_row(self, row: str, rows: str) -> None:
        """Goes to one of some rows, and works out what it fetches of the next panel in each group of steps.

        Groups are counted over all rows, and have so many steps of 2^32 parts each.
        """
        if not self.fetched:
            return
        steps = self.plan.panel // self.plan.columns
        groups = steps // self.plan.steps
        every, before = self.integer("mul", rows, groups), self.integer("mul", row, groups)
        share = self.integer("udiv", self.integer("add", every, (steps << 32) - 1), every)
        self.fetching = before, share

    def fetch(self, step: str) -> None:
        """Before a group of steps: all rows fetch some of the next panel, as many steps of it as any other time.

        So memory is read all the time, into the L2 cache: fewer lines at a time than a processor can wait for.
        """
        if not self.fetched:
            return
        plan, (before, share) = self.plan, self.fetching
        group = self.integer("add", before, self.integer("sdiv", step, plan.steps))
        ends = [group, self.integer("add", group, 1)]
        first, last = [self.integer("lshr", self.integer("mul", end, share), 32) for end in ends]
        panel = self.integer("add", self.panel_column, plan.panel)

        def ahead(k: str, _: list[str]) -> list[str]:
            column = self.integer("add", panel, self.integer("mul", k, plan.columns))
            for ind, dim in self.fetched:
                place = self.at(self.base[ind], self.times(column, dim), element=self.one.scalar)
                for n in range(plan.columns * dim * self.one.itemsize // 64):
                    there = self.at(place, 64 * n, element="i8")
                    self.do(f"call void @llvm.prefetch.p0(ptr {there}, i32 0, i32 2, i32 1)")
            return []

        self.loop(first, last, 1, [], ahead)

    def _whole(self, count: str) -> str:
        """Rows of as many tiles as there are for some rows."""
        width = self.plan.lanes
        return self.integer("and", self.integer("add", count, width - 1), -width)

    def _stage(self, slots: Sequence[tuple[Expr, int]], record: str, stride: int, vector: bool = False) -> None:
        """A record, or those of all lanes of a tile."""
        values = self.vectors if vector else self.scalars
        lanes = values.lanes

        def slot(e: Expr, at: int) -> list[str]:
            if loops := sorted(e.free - values.counters.keys()):
                if stride == 1 and self._contiguous(e):
                    return self._stage_parts(e, self.at(record, at, element=self.one.scalar))
                for want in values.invariants(loops[0], [e]):
                    values.get(*want)
                unroll = 1 if vector or loops[1:] or any(b.op in FOLDS and loops[0] in b.free for b in walk([e])) else 4
                return values.components(loops[0], [], lambda _: slot(e, at), unroll)
            where = self.at(record, *self._position(e, stride), at * stride, element=self.one.scalar)
            self.store(lanes.type, self._number(lanes, e, values.get(e)), where, lanes.nbytes)
            return []

        with values.scope():
            for e in walk([e for e, _ in slots]):
                if e.op == "fold" and not e.free and self._sums(e):
                    values.bind(e, self._sums_of_tile(e) if vector else self._sum(e))
            for e, at in slots:
                slot(e, at)

    def _number(self, lanes: Lanes, e: Expr, value: str) -> str:
        """A value as records hold it: truth as 1 or 0."""
        return self.put(f"uitofp {lanes.mask} {value} to {lanes.type}") if e.boolean else value

    # long vectors -----------------------------------------------------------------------------------------------------

    def _contiguous(self, e: Expr) -> bool:
        """Whether components of a long vector can be computed as vectors: what they read lies next to each other."""
        varying = [b for b in walk([e]) if b.free]
        return (
            len(e.free) == 1
            and min(e.free).length >= self.lanes.width
            and all(b.free == e.free and b.op not in FOLDS and b.op != "counter" for b in varying)
            and all(c == 1 for b in varying if b.op == "load" for _, c in b.attr.index.terms)
        )

    def _sums(self, e: Expr) -> bool:
        """Whether a sum is one of the components of such a vector."""
        return e.args[0].free == {e.attr} and self._contiguous(e.args[0])

    def _turns(self, e: Expr) -> bool:
        """Whether the components of such a vector are written for all rows of a tile at once: they share the rest."""
        if not self._contiguous(e):
            return False
        (loop,) = e.free
        return not any(want.expr.axes for want in self.scalars.invariants(loop, [e]))

    def _part(self, e: Expr, k: Operand) -> str:
        """Components of a vector from number k on."""
        (loop,) = e.free
        self.parts.counters[loop] = k
        with self.parts.scope():
            value = self._number(self.lanes, e, self.parts.get(e))
        del self.parts.counters[loop]
        return value

    def _around(self, e: Expr) -> None:
        """What the components of a vector share."""
        (loop,) = e.free
        for want in self.scalars.invariants(loop, [e]):
            value = self.scalars.get(*want)
            self.parts.bind(want.expr, self.broadcast(self.lanes, value, "i1" if want.expr.boolean else None))

    def _over_parts(self, length: int, body: Callable[[Operand], None]) -> list[str]:
        """The last part may begin in the one before."""
        width = self.lanes.width

        def part(k: str, _: list[str]) -> list[str]:
            body(self.smaller(k, length - width) if length % width else k)
            return []

        return self.loop(0, length, width, [], part)

    def _stage_parts(self, e: Expr, slot: str) -> list[str]:
        """A vector of a record that does not lie along the lanes."""
        (loop,) = e.free

        def part(k: Operand) -> None:
            where = self.at(slot, k, element=self.one.scalar)
            self.store(self.lanes.type, self._part(e, k), where, self.one.itemsize)

        with self.parts.scope():
            self._around(e)
            return self._over_parts(loop.length, part)

    def _sum(self, fold: Expr) -> str:
        """The sum of the components of a vector: as many sums as there are lanes, then halves in turn."""
        (body,), loop, lanes = fold.args, fold.attr, self.lanes
        width = lanes.width

        def part(k: str, held: list[str]) -> list[str]:
            self.parts.counters[loop] = k
            with self.parts.scope():
                held = [self.parts.term(fold, 0, held[0])]
            del self.parts.counters[loop]
            return held

        with self.parts.scope():
            self._around(body)
            zero, rest = lanes.literal(FOLDS[fold.op][1]), loop.length % width
            (total,) = self.loop(0, loop.length - rest, width, [(lanes.type, zero)], part)
            if rest:
                new = ", ".join(f"i1 {'true' if k >= width - rest else 'false'}" for k in range(width))
                last = self._part(body, loop.length - width)
                last = self.put(f"select {lanes.mask} <{new}>, {lanes.type} {last}, {lanes.type} zeroinitializer")
                total = self.put(f"fadd {lanes.type} {total}, {last}")
        while width > 1:
            kind, width = f"<{width} x {lanes.scalar}>", width // 2
            halves = [
                self.put(
                    f"shufflevector {kind} {total}, {kind} poison, <{width} x i32> "
                    f"<{', '.join(f'i32 {first + k}' for k in range(width))}>"
                )
                for first in (0, width)
            ]
            total = self.put(f"fadd <{width} x {lanes.scalar}> {halves[0]}, {halves[1]}")
        return self.put(f"extractelement <1 x {lanes.scalar}> {total}, i32 0")

    def _sums_of_tile(self, fold: Expr) -> str:
        """The same of all rows of a tile: a sum has the same bits, whatever the lanes are."""
        row, found = self.row, "poison"
        for lane in range(self.lanes.width):
            self.row = self.integer("add", row, lane)
            with self.scalars.scope():
                value = self._sum(fold)
            found = self.put(f"insertelement {self.lanes.type} {found}, {self.lanes.scalar} {value}, i32 {lane}")
        self.row = row
        return found

    def _stage_turned(self, slots: Sequence[tuple[Expr, int]], first: str, count: str, records: str) -> None:
        """Vectors of records along the lanes: as many components of as many rows as there are lanes, turned round."""
        lanes, size = self.lanes, self.kernel.size_i
        last = self.integer("sub", count, 1)

        def tile(k: str, _: list[str]) -> list[str]:
            rows = [self.integer("add", first, self.smaller(self.plus(k, n), last)) for n in range(lanes.width)]
            record = self.at(records, self.integer("mul", k, size), element=lanes.scalar)
            for e, at in slots:
                (loop,) = e.free

                def part(k: Operand, e: Expr = e, at: int = at) -> None:
                    found = []
                    for self.row in rows:
                        found.append(self._part(e, k))
                    for n, value in enumerate(self._turned(found)):
                        where = self.at(
                            record, self.times(k, lanes.width), (at + n) * lanes.width, element=lanes.scalar
                        )
                        self.store(lanes.type, value, where, lanes.nbytes)

                with self.scalars.scope(), self.parts.scope():
                    self._around(e)
                    self._over_parts(loop.length, part)
            return []

        if slots:
            self.loop(0, count, lanes.width, [], tile)

    def _turned(self, rows: list[str]) -> list[str]:
        """The columns of a square of vectors: blocks of half the size change places, then what is inside of them."""
        lanes, width = self.lanes, self.lanes.width
        block = width // 2
        while block:
            new = list(rows)
            for n in range(width):
                if not n & block:
                    for to, half in ((n, 0), (n + block, block)):
                        which = [half + k if not k & block else width + half + k - block for k in range(width)]
                        mask = ", ".join(f"i32 {k}" for k in which)
                        new[to] = self.put(
                            f"shufflevector {lanes.type} {rows[n]}, {lanes.type} {rows[n + block]}, "
                            f"<{width} x i32> <{mask}>"
                        )
            rows, block = new, block // 2
        return rows

    # leaves -----------------------------------------------------------------------------------------------------------

    def _scalar_leaf(self, e: Expr, _: int) -> str | None:
        if (known := self._fixed(e, self.scalars)) is not None:
            return known
        if e.op == "row":
            return self.integer("add", self.row, self._zero(e.attr))
        return self._variable(e, self.scalars) if e.op == "load" else None

    def _part_leaf(self, e: Expr, _: int) -> str | None:
        """The same for components of long vectors."""
        if e.op != "load":
            return self._fixed(e, self.parts)
        return self.load(self.lanes.type, self._address(e, self.parts), self.one.itemsize)

    def _vector_leaf(self, e: Expr, _: int) -> str | None:
        """The same for the lanes of a tile that begins with the row that is being staged."""
        if (known := self._fixed(e, self.vectors)) is not None:
            return known
        if e.op == "row":
            return self._numbered(self.lanes, self.integer("add", self.row, self._zero(e.attr)), "i64", True)
        if e.op != "load":
            return None
        ind, dim, axes, index = e.attr
        if not axes:
            return self.broadcast(self.lanes, self._variable(e, self.vectors))
        one, lanes = self.one, self.lanes
        if dim <= SHORT and not index.terms:
            return self._every(ind, dim, index.offset)
        place = (self.times(self.row, dim), *self._counted(index, self.vectors))
        first = self.at(self.base[ind], *place, element=one.scalar)
        value = "poison"
        for lane in range(lanes.width):
            x = self.load(one.scalar, self.at(first, lane * dim, element=one.scalar), one.itemsize)
            value = self.put(f"insertelement {lanes.type} {value}, {one.scalar} {x}, i32 {lane}")
        return value

    def _every(self, ind: int, dim: int, component: int) -> str:
        """A component of a variable in the rows of the tile: every dim-th of what lies there, which is loaded once.

        With AVX-512, choosing what lies in different lanes of several vectors costs little, and permuting two of them
        much, which LLVM would do dim - 1 times.
        """
        one, lanes = self.one, self.lanes
        width = lanes.width
        apart = lanes.scaling and gcd(dim, width) == 1
        count, length = (dim, width) if apart else (1, dim * width)
        kind = f"<{length} x {one.scalar}>"
        if ind not in self.wide_loads:
            row = self.at(self.base[ind], self.times(self.row, dim), element=one.scalar)
            places = [self.at(row, n * length, element=one.scalar) for n in range(count)]
            self.wide_loads[ind] = [self.load(kind, place, one.itemsize) for place in places]
        value, *others = self.wide_loads[ind]
        if dim == 1:
            return value
        which = [component + row * dim for row in range(width)]
        for n, other in enumerate(others, 1):
            taken = {k % width for k in which if k // width == n}
            mask = ", ".join(f"i1 {'true' if lane in taken else 'false'}" for lane in range(width))
            value = self.put(f"select {lanes.mask} <{mask}>, {kind} {other}, {kind} {value}")
        order = ", ".join(f"i32 {k % length}" for k in which)
        return self.put(f"shufflevector {kind} {value}, {kind} poison, <{width} x i32> <{order}>")

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
    def _zero(axis: int) -> str:
        """The number of the first row of an index."""
        return "%row0" if axis == I else "%column0"

    def _numbered(self, lanes: Lanes, number: str, element: str, along: bool) -> str:
        """A number in every lane, or numbers from there on."""
        number = self.broadcast(lanes, number, element)
        if not along:
            return number
        kind = lanes.number
        return self.put(f"add {kind} {number}, <{', '.join(f'{element} {k}' for k in range(lanes.width))}>")

    def _variable(self, e: Expr, values: Values) -> str:
        """A component of a variable, in the row that is being staged or of a parameter."""
        return self.load(self.one.scalar, self._address(e, values), self.one.itemsize)

    def _address(self, e: Expr, values: Values) -> str:
        ind, dim, axes, index = e.attr
        row: list[Operand] = [self.times(self.row, dim)] if axes else []
        return self.at(self.base[ind], *row, *self._counted(index, values), element=self.one.scalar)

    def _counted(self, index: Index, values: Values) -> list[Operand]:
        """A component number over the loops that are open for some values."""
        return [*(self.times(values.counters[loop], c) for loop, c in index.terms), index.offset]

    def _position(self, e: Expr, stride: int) -> list[Operand]:
        """Where a value is inside its slot: the loop of greatest depth is the fastest."""
        values = next(v for v in self.values if e.free <= v.counters.keys())
        out: list[Operand] = []
        for loop in sorted(e.free, reverse=True):
            out.append(self.times(values.counters[loop], stride))
            stride *= loop.length
        return out
