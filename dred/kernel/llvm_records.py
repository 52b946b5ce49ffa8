"""Leaves of values of pairs in LLVM IR: staged records, values of pairs that are kept, running values, numbers."""

from __future__ import annotations

from dred.formula.node import I, J
from dred.kernel.cpu_schedule import Schedule
from dred.kernel.ir import Expr, Kernel
from dred.kernel.llvm_staging import StagingText
from dred.kernel.llvm_state import Cells
from dred.kernel.llvm_values import Values, below


class PairValues(Values):
    """Values of pairs: what varies with one index alone is read from the staged records."""

    records: frozenset[int] = frozenset()
    parted = False

    def recorded(self, e: Expr) -> bool:
        return e.id in self.records


class RecordText(StagingText):
    """Text of a function that reads records.

    Values of pairs that the components of a large state read lie (step of the chain, values, lanes).
    """

    def __init__(self, kernel: Kernel, dtype: str, acc: str, plan: Schedule, scaling: bool, moderate: bool) -> None:
        super().__init__(kernel, dtype, acc, plan, scaling, moderate)
        self.slots = {I: {e.id: at for e, at in kernel.slots_i}, J: {e.id: at for e, at in kernel.slots_j}}
        groups = {f.id: group for group in kernel.folds.values() for f in group}
        self.pairs = PairValues(self, self.lanes, self._pair_leaf, groups)
        self.pairs.records = frozenset(self.slots[I]) | frozenset(self.slots[J])
        self.values.append(self.pairs)
        self.counters = self.pairs.counters
        self.steps = Values(self, self.near_rows, self._step_leaf)
        quick = [e for root in kernel.roots if root.quick for e in (*root.quick.steps, root.quick.holds)]
        self.stateful = below([*kernel.steps, *quick], "state")
        # where the text stands: operands of the loops that are open
        self.records: dict[int, str] = {}  # of the tile, and of the step, by index
        self.shared: dict[int, int] = {}  # values of pairs that are read from memory, and where they are
        self.shared_at = ""  # those of the step
        self.first = {I: "", J: ""}  # number of the row of the tile, and of the first column of the step
        self.near = ""  # number of the first column of the step, within the chain
        self.running: Cells = {}

    # leaves -----------------------------------------------------------------------------------------------------------

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
        steps = 0 if e.axes == I else step * self.pitch(J) * stride
        p = self.at(self.records[e.axes], *self._position(e, stride), at * stride + steps, element=one.scalar)
        if along:
            return self._truth(e, self.load(lanes.type, p, lanes.nbytes))
        return self._truth(e, self.broadcast(lanes, self.load(one.scalar, p, one.itemsize)))

    def arrived(self, step: int) -> None:
        """Binds the values of a record that is staged here."""
        first = self.integer("add", self.first[J], step * self.plan.columns)
        record = self.at(self.records[J], step * self.plan.columns * self.pitch(J), element=self.one.scalar)
        for e, value in self.arrive(first, record):
            self.pairs.bind(e, value, step)

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

    def _truth(self, e: Expr, value: str) -> str:
        """Records hold numbers; a truth value is in them as 1 or 0."""
        if not e.boolean:
            return value
        return self.put(f"fcmp une {self.lanes.type} {value}, {self.lanes.literal(0.0)}")
