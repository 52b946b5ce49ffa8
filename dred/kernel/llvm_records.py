"""Records in LLVM IR: what varies with one index alone is staged once, then read for all pairs; leaves of values."""

from __future__ import annotations

from collections.abc import Sequence

from dred.formula.node import I, J
from dred.kernel.cpu_schedule import Schedule
from dred.kernel.ir import FOLDS, Expr, Index, Kernel, walk
from dred.kernel.llvm_math import Lanes
from dred.kernel.llvm_state import Cells, StateText
from dred.kernel.llvm_values import Operand, Values, below

FETCHED = 16  # values of a row, at most, that are asked for before they are needed: longer ones take longer to work on


class PairValues(Values):
    """Values of pairs: what varies with one index alone is read from the staged records."""

    records: frozenset[int] = frozenset()
    parted = False

    def recorded(self, e: Expr) -> bool:
        return e.id in self.records


class RecordText(StateText):
    """Text of a function that stages records and reads them.

    Records along the lanes lie (tile, values, lanes). Where the lanes are rows, those of columns lie (block of
    steps, values, steps), so that what is read together is next to each other; else those of rows lie (row, values).
    Values of pairs that the components of a large state read lie (step of the chain, values, lanes).
    """

    def __init__(self, kernel: Kernel, dtype: str, acc: str, plan: Schedule, scaling: bool, moderate: bool) -> None:
        super().__init__(kernel, dtype, acc, plan.lanes, scaling, moderate)
        self.plan = plan
        self.slots = {I: {e.id: at for e, at in kernel.slots_i}, J: {e.id: at for e, at in kernel.slots_j}}
        self.sizes = {I: kernel.size_i, J: kernel.size_j}
        self.scalars = Values(self, self.one, self._scalar_leaf)
        self.vectors = Values(self, self.lanes, self._vector_leaf)
        groups = {f.id: group for group in kernel.folds.values() for f in group}
        self.pairs = PairValues(self, self.lanes, self._pair_leaf, groups)
        self.pairs.records = frozenset(self.slots[I]) | frozenset(self.slots[J])
        self.counters = self.pairs.counters
        self.steps = Values(self, self.near_rows, self._step_leaf)
        quick = [e for root in kernel.roots if root.quick for e in (*root.quick.steps, root.quick.holds)]
        self.stateful = below([*kernel.steps, *quick], "state")
        # where the text stands: operands of the loops that are open
        self.base: dict[int, str] = {}
        self.row = ""  # that is being staged
        self.wide_loads: dict[int, str] = {}  # variables of the tile that is being staged
        self.records: dict[int, str] = {}  # of the tile, and of the step, by index
        self.shared: dict[int, int] = {}  # values of pairs that are read from memory, and where they are
        self.shared_at = ""  # those of the step
        self.first = {I: "", J: ""}  # number of the row of the tile, and of the first column of the step
        self.near = ""  # number of the first column of the step, within the chain
        self.running: Cells = {}

    # staging ----------------------------------------------------------------------------------------------------------

    def stage(self, axis: int, first: str, count: str, records: str) -> None:
        """Records of `count` rows of an index; lanes left over repeat the last one."""
        slots = self.kernel.slots_i if axis == I else self.kernel.slots_j
        if not slots:
            return
        size, width = self.sizes[axis], self.plan.lanes
        if axis != self.plan.along:
            together = self.stride(axis)

            def plain(k: str, _: list[str]) -> list[str]:
                self.row = self.integer("add", first, k)
                group, place = self.integer("sdiv", k, together), self.integer("srem", k, together)
                group = self.integer("mul", group, size * together)
                self._stage(slots, self.at(records, group, place, element=self.one.scalar), together)
                return []

            self.loop(0, count, 1, [], plain)
            return
        last = self.integer("sub", count, 1)
        whole: Operand = 0
        if axis == J:  # there are few rows for every column: staging is a large part of the work

            def tile(k: str, _: list[str]) -> list[str]:
                self.row, self.wide_loads = self.integer("add", first, k), {}
                self._fetch(axis)
                self._stage(slots, self.at(records, self.integer("mul", k, size), element=self.one.scalar), width, True)
                return []

            whole = self.integer("and", count, -width)
            self.loop(0, whole, width, [], tile)

        def lane(k: str, _: list[str]) -> list[str]:
            self.row = self.integer("add", first, self.smaller(k, last))
            tile, place = self.integer("sdiv", k, width), self.integer("srem", k, width)
            tile = self.integer("mul", tile, size * width)
            self._stage(slots, self.at(records, tile, place, element=self.one.scalar), width)
            return []

        self.loop(whole, self.integer("and", self.integer("add", count, width - 1), -width), 1, [], lane)

    def _fetch(self, axis: int) -> None:
        """Asks for the rows of the next panel: they come into the L2 cache while this one is computed with."""
        for ind, dim, axes in self.kernel.loads:
            if axes == axis and dim <= FETCHED:
                first = self.integer("add", self.row, self.plan.panel)
                there = self.at(self.base[ind], self.times(first, dim), element=self.one.scalar)
                for line in range(0, dim * self.lanes.nbytes, 64):
                    self.do(
                        f"call void @llvm.prefetch.p0(ptr {self.at(there, line, element='i8')}, i32 0, i32 2, i32 1)"
                    )

    def stride(self, axis: int) -> int:
        """Distance between values of a record."""
        if axis == self.plan.along:
            return self.plan.lanes
        return self.plan.steps if axis == J else 1

    def _stage(self, slots: Sequence[tuple[Expr, int]], record: str, stride: int, vector: bool = False) -> None:
        """A record, or those of all lanes of a tile."""
        values = self.vectors if vector else self.scalars
        lanes = values.lanes

        def slot(e: Expr, at: int) -> list[str]:
            if loops := sorted(e.free - values.counters.keys()):
                for want in values.invariants(loops[0], [e]):
                    values.get(*want)
                unroll = 1 if vector or loops[1:] or any(b.op in FOLDS and loops[0] in b.free for b in walk([e])) else 4
                return values.components(loops[0], [], lambda _: slot(e, at), unroll)
            value = values.get(e)
            if e.boolean:
                value = self.put(f"uitofp {lanes.mask} {value} to {lanes.type}")
            where = self.at(record, *self._position(e, stride), at * stride, element=self.one.scalar)
            self.store(lanes.type, value, where, lanes.nbytes)
            return []

        with values.scope():
            for e, at in slots:
                slot(e, at)

    # leaves -----------------------------------------------------------------------------------------------------------

    def _scalar_leaf(self, e: Expr, _: int) -> str | None:
        if (known := self._fixed(e, self.scalars)) is not None:
            return known
        if e.op == "row":
            return self.integer("add", self.row, self._zero(e.attr))
        return self._variable(e, self.scalars) if e.op == "load" else None

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
        if dim <= 3 and not index.terms:  # all components at once, then every dim-th
            kind = f"<{lanes.width * dim} x {one.scalar}>"
            if ind not in self.wide_loads:
                row = self.at(self.base[ind], self.times(self.row, dim), element=one.scalar)
                self.wide_loads[ind] = self.load(kind, row, one.itemsize)
            if dim == 1:
                return self.wide_loads[ind]
            which = ", ".join(f"i32 {index.offset + lane * dim}" for lane in range(lanes.width))
            wide = self.wide_loads[ind]
            return self.put(f"shufflevector {kind} {wide}, {kind} poison, <{lanes.width} x i32> <{which}>")
        place = (self.times(self.row, dim), *self._counted(index, self.vectors))
        first = self.at(self.base[ind], *place, element=one.scalar)
        value = "poison"
        for lane in range(lanes.width):
            x = self.load(one.scalar, self.at(first, lane * dim, element=one.scalar), one.itemsize)
            value = self.put(f"insertelement {lanes.type} {value}, {one.scalar} {x}, i32 {lane}")
        return value

    def _pair_leaf(self, e: Expr, step: int) -> str | None:
        if (known := self._fixed(e, self.pairs)) is not None:
            return known
        if (at := self.shared.get(e.id)) is not None:
            return self.read_shared(e, at, step)
        if (at := self.slots[e.axes].get(e.id) if e.axes in self.slots else None) is not None:
            return self._recorded(e, at, step)
        if e.op == "row":
            return self._row_number(e, step)
        if e.op == "stored":
            return self.stored(e.attr.field, e.attr.index)
        return self.broadcast(self.lanes, self._variable(e, self.pairs)) if e.op == "load" else None

    def _recorded(self, e: Expr, at: int, step: int) -> str:
        """A value of a record, in the step of a block."""
        one, lanes = self.one, self.lanes
        stride = self.stride(e.axes)
        along = e.axes == self.plan.along
        steps = 0 if e.axes == I else self.sizes[J] * stride * step if along else step
        p = self.at(self.records[e.axes], *self._position(e, stride), at * stride + steps, element=one.scalar)
        if along:
            return self._truth(e, self.load(lanes.type, p, lanes.nbytes))
        return self._truth(e, self.broadcast(lanes, self.load(one.scalar, p, one.itemsize)))

    def shared_place(self, e: Expr, at: int, step: int, size: int) -> str:
        """Address of a value of pairs that components read."""
        width = self.lanes.width
        offsets = (*self._position(e, width), (size * step + at) * width)
        return self.at(self.shared_at, *offsets, element=self.one.scalar)

    def read_shared(self, e: Expr, at: int, step: int) -> str:
        return self._truth(e, self.load(self.lanes.type, self.shared_place(e, at, step, self.shared_size), 64))

    @property
    def shared_size(self) -> int:
        """Values of a step that are read from memory."""
        raise NotImplementedError

    def _step_leaf(self, e: Expr, step: int) -> str | None:
        """What steps read: running values, rows counted from the beginning of the chain, and values of pairs."""
        if e.id in self.shared:
            return self.read_shared(e, self.shared[e.id], step)
        if e.op == "state":
            return self.running[e.attr.field, e.attr.index]
        if e.op == "row":
            near = self.integer("add", self.near, step * self.plan.columns)
            element = f"i{8 * self.one.itemsize}"
            near = near if element == "i64" else self.put(f"trunc i64 {near} to {element}")
            return self._numbered(self.near_rows, near, element, self.plan.along == J)
        if e.op == "whole":
            return self.near_rows.whole(e.attr)
        return None if e.id in self.stateful else self.pairs.get(e, step)

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

    def _row_number(self, e: Expr, step: int) -> str:
        """Numbers of the rows, or of the columns, of the lanes."""
        number = self.integer("add", self.first[e.attr], self._zero(e.attr))
        if e.attr == J and step:
            number = self.integer("add", number, step * self.plan.columns)
        return self._numbered(self.lanes, number, "i64", e.attr == self.plan.along)

    def column_number(self, step: str, lane: str) -> str:
        """The number of the column of a lane, in a step of a block."""
        number = self.integer("add", self.first[J], "%column0")
        number = self.integer("add", number, self.times(step, self.plan.columns))
        return self.integer("add", number, lane) if self.plan.along == J else number

    def _numbered(self, lanes: Lanes, number: str, element: str, along: bool) -> str:
        """A number in every lane, or numbers from there on."""
        number = self.broadcast(lanes, number, element)
        if not along:
            return number
        kind = lanes.number
        return self.put(f"add {kind} {number}, <{', '.join(f'{element} {k}' for k in range(lanes.width))}>")

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
        values = next(v for v in (self.scalars, self.vectors, self.pairs) if e.free <= v.counters.keys())
        out: list[Operand] = []
        for loop in sorted(e.free, reverse=True):
            out.append(self.times(values.counters[loop], stride))
            stride *= loop.length
        return out
