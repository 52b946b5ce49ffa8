"""Large states in LLVM IR: what their components read of a pair is kept in memory, then pairs go by a few of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dred.formula.node import J
from dred.kernel.cpu_schedule import Schedule
from dred.kernel.ir import FOLDS, IJ, Expr, Kernel, Loop, Post, maximal, walk
from dred.kernel.llvm_math import operation
from dred.kernel.llvm_records import RecordText
from dred.kernel.llvm_values import Carry, Operand

STRAIGHT_STEPS = 8  # that follow each other without a loop


class LargeText(RecordText):
    """Text of a function that goes by the components of large roots."""

    def __init__(self, kernel: Kernel, dtype: str, acc: str, plan: Schedule, scaling: bool, moderate: bool) -> None:
        super().__init__(kernel, dtype, acc, plan, scaling, moderate)
        chained = [n for n, root in enumerate(kernel.roots) if root.places == 1]
        self.flat = [n for n in chained if not kernel.roots[n].loops]
        self.large = [n for n in chained if kernel.roots[n].loops]
        self._share()
        self.waiting_size = plan.components if plan.behind else 0
        self.shared_base = self.waiting_at = ""
        self.common: dict[int, str] = {}  # sums over pairs of what is the same for all components
        self.span_step = ""  # number of the first step of the chain, within the span

    def _share(self) -> None:
        """What the components of large states read of a pair: it is computed once, and kept for a chain."""
        self.wanted = {n: self._pair_values(n) for n in self.large}
        self.places: dict[int, int] = {}
        self.kept: list[Expr] = []
        at = 0
        for e in {e.id: e for n in self.large for e in self.wanted[n]}.values():
            self.places[e.id] = at
            self.kept.append(e)
            size = 1
            for loop in e.free:
                size *= loop.length
            at += size
        self._shared_size = at

    @property
    def shared_size(self) -> int:
        return self._shared_size

    def _pair_values(self, n: int) -> list[Expr]:
        """The maximal values of pairs that a large root reads and that are the same for all of its components."""
        root = self.kernel.roots[n]
        heads, loops = {e.id for e in self._heads(root.steps)}, set(root.loops)

        def same(e: Expr) -> bool:
            if e.id in heads:
                return True
            if e.axes != IJ or e.id in self.stateful or e.result == "number" or e.free & loops:
                return False
            return not e.free or any(b.op in FOLDS for b in walk([e]))  # a vector: if it is costly

        common = [post.common for post in root.posts if post and post.common]
        return maximal([*root.steps, *common], same)

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

    def _stateless(self, steps: Sequence[Expr]) -> list[Expr]:
        """The maximal expressions of steps that read no running value, but for what heads read."""
        heads = {e.id for e in self._heads(steps)}
        found = maximal(steps, lambda e: e.id in heads or e.id not in self.stateful)
        return [e for e in found if e.id not in heads]

    def _keep_all(self, e: Expr, steps: int) -> None:
        """Keeps a value of pairs, or a vector of them."""
        if loops := sorted(e.free - self.pairs.counters.keys()):
            for want in self.pairs.invariants(loops[0], [e]):
                self.pairs.get(*want)
            self.pairs.components(loops[0], [], lambda _: self._keep_all(e, steps) or [], 1)  # type: ignore[func-returns-value]
            return
        for s in range(steps):
            self._keep(e, s, self.pairs.get(e, s))

    def _keep(self, e: Expr, step: int, value: str) -> None:
        if e.boolean:
            value = self.put(f"uitofp {self.lanes.mask} {value} to {self.lanes.type}")
        self.store(self.lanes.type, value, self.shared_place(e, self.places[e.id], step, self.shared_size), 64)

    def _step(self, start: str, step: str, masked: bool) -> str:
        """Goes to a step of a chain; returns which lanes are columns, or nothing: all are."""
        plan = self.plan
        place = self.integer("add", start, step)
        column = self.integer("mul", place, plan.columns)
        self.first[J] = self.integer("add", self.panel_column, column)
        self.near = self.integer("mul", step, plan.columns)
        record = self.integer("mul", column, self.pitch(J))
        self.records[J] = self.at(self.staged[J], record, element=self.one.scalar)
        if self.shared_size:
            kept = self.integer("add", self.span_step, step) if self.span_step else step
            record = self.integer("mul", kept, self.shared_size * self.lanes.width)
            self.shared_at = self.at(self.shared_base, record, element=self.one.scalar)
        if not masked:
            return ""
        kind = self.lanes.of("i64")
        left = self.broadcast(self.lanes, self.integer("sub", self.panel_size, column), "i64")
        return self.put(f"icmp sgt {kind} {left}, <{', '.join(f'i64 {k}' for k in range(self.lanes.width))}>")

    def _chosen(self, mask: str, kind: str, new: str, old: str) -> str:
        return self.put(f"select {self.lanes.mask} {mask}, {kind} {new}, {kind} {old}") if mask else new

    def _large(self, n: int, start: str, count: Operand, masked: bool) -> None:
        """All components of a large root: `count` steps of pairs go by a few of them at a time."""
        root = self.kernel.roots[n]
        inner = root.loops[-1]
        nested = any(e.op in FOLDS and e.free & set(root.loops) for e in walk(root.steps) if e.id not in self.places)
        width = 1 if nested else min(self.plan.components, inner.length)
        behind = self.plan.behind and count == self.plan.span
        records, self.shared = self.pairs.records, self.places
        self.pairs.records = records | self.places.keys()

        self.common = {
            post.common.id: self._total(post.common, start, count, masked)
            for post in root.posts
            if post and post.common
        }

        def some(first: Operand, many: int) -> list[str]:
            places = [self.plus(first, u) for u in range(many)]
            before = self._joins(n, first, width) if behind else None
            held = self._passed(n, places, start, count, masked, before)
            if behind:
                for k, value in enumerate(held):
                    self.store(self.lanes.type, value, self._waiting(k), self.lanes.nbytes)
                return []
            for place in places:
                self._join_component(n, place, [held.pop(0) for _ in root.fields])
            return []

        def nest(loops: Sequence[Loop]) -> list[str]:
            if loops:
                return self.pairs.components(loops[0], [], lambda _: nest(loops[1:]), 1)
            rest = inner.length % width
            full, last = inner.length - rest, rest or width
            self.loop(0, full, width, [], lambda first, _: some(first, width))
            if rest:
                some(full, rest)
            for k in range(last if behind else 0):
                self._join_waiting(n, inner.length - last, k)
            return []

        nest(root.loops[:-1])
        self.pairs.records, self.shared = records, {}

    def _total(self, e: Expr, start: str, count: Operand, masked: bool) -> str:
        """The sum of a kept value over some steps, added up like those of components."""
        kind, nothing = self.lanes.type, self.lanes.literal(0.0)

        def step(at: str, held: list[str]) -> list[str]:
            mask = self._step(start, at, masked)
            self.pairs.columns = 1
            with self.pairs.scope():
                value = self._chosen(mask, kind, self.pairs.get(e), nothing)
            return [self.put(f"fadd {kind} {held[0]}, {value}")]

        def some(first: Operand, last: Operand, held: list[str]) -> list[str]:
            return self.loop(first, last, 1, [(kind, held[0])], step)

        return self.added(count, [(kind, nothing)], [True], some)[0]

    def added(
        self,
        count: Operand,
        carry: Sequence[Carry],
        sums: Sequence[bool],
        some: Callable[[Operand, Operand, list[str]], list[str]],
        beside: Callable[[str], None] | None = None,
    ) -> list[str]:
        """The running values after some steps; those of a span are sums of sums, with the rounding error of a chain.

        Parameters
        ----------
        count : int or str
        carry : sequence of (str, str)
            Types of the running values, and what they are in the beginning.
        sums : sequence of bool
            Which of them are sums.
        some : callable
            Writes the steps from one on, to another one, given what the values are before.
        beside : callable, optional
            Writes what else is to be done in each part of a span, given its first step.
        """

        kinds, nothing = [kind for kind, _ in carry], [value for _, value in carry]
        half = self.plan.chain // 2

        def part(at: str, held: list[str]) -> list[str]:
            if beside:
                beside(at)
            mine = [zero if s else h for s, h, zero in zip(sums, held, nothing, strict=True)]
            new = some(at, self.plus(at, half), mine)
            return [
                self.put(f"fadd {kind} {h}, {v}") if s else v
                for kind, s, h, v in zip(kinds, sums, held, new, strict=True)
            ]

        if count == self.plan.span != self.plan.chain:
            return self.loop(0, count, half, carry, part)
        return some(0, count, nothing)

    def _passed(
        self,
        n: int,
        places: Sequence[Operand],
        start: str,
        count: Operand,
        masked: bool,
        beside: Callable[[str], None] | None,
    ) -> list[str]:
        """The running values of some components of a large root after some steps, those of a component together."""
        root = self.kernel.roots[n]
        carry = [(self.running_type(f), self.identity(f)) for _ in places for f in root.fields]

        def some(first: Operand, last: Operand, held: list[str]) -> list[str]:
            half = self.plan.chain // 2
            if isinstance(first, str) and half <= STRAIGHT_STEPS:
                return self._go_by(n, places, start, first, half, masked, held)
            kinds = [(kind, h) for (kind, _), h in zip(carry, held, strict=True)]
            steps = self.plan.steps if isinstance(count, int) else 1
            return self.loop(
                first, last, steps, kinds, lambda step, held: self._go_by(n, places, start, step, steps, masked, held)
            )

        return self.added(count, carry, [True] * len(carry), some, beside)

    def _go_by(
        self, n: int, places: Sequence[Operand], start: str, step: str, steps: int, masked: bool, held: Sequence[str]
    ) -> list[str]:
        """Some steps for some components of a large root."""
        root = self.kernel.roots[n]
        mask = self._step(start, step, masked)
        self.pairs.columns = steps
        out: list[str] = []
        fields, reads = len(root.fields), self._stateless(root.steps)
        with self.pairs.scope():
            for e in self.wanted[n]:
                if not e.free and e.id not in self.stateful:
                    for s in range(steps):
                        self.pairs.get(e, s)
            for want in self.pairs.invariants(root.loops[-1], reads):
                self.pairs.get(*want)
            marks = [len(self.lines)]
            for u, place in enumerate(places):
                self.pairs.counters[root.loops[-1]] = place
                values = list(held[u * fields : (u + 1) * fields])
                with self.pairs.scope():
                    for s in range(steps):
                        for e in reads:
                            self.pairs.get(e, s)
                        self.running = {(f, root.index): value for f, value in zip(root.fields, values, strict=True)}
                        with self.steps.scope():
                            new = [self.steps.get(e, s) for e in root.steps]
                        values = [
                            self._chosen(mask, self.running_type(f), a, b)
                            for f, a, b in zip(root.fields, new, values, strict=True)
                        ]
                out += values
                marks.append(len(self.lines))
            self.stagger(marks, 0.0)
        self.pairs.counters.pop(root.loops[-1])
        return out

    def _join_component(self, n: int, place: Operand, running: Sequence[str]) -> None:
        root = self.kernel.roots[n]
        self.pairs.counters[root.loops[-1]] = place
        with self.merged.scope():
            merged = self.merge_root(n, self._widened(n, running))
            for f, value in zip(root.fields, merged, strict=True):
                self.write_state(f, root.index, value)
        self.pairs.counters.pop(root.loops[-1])

    # joins that wait --------------------------------------------------------------------------------------------------

    def _waiting(self, k: Operand) -> str:
        """Where the sum of component number k of some waits."""
        return self.at(self.waiting_at, self.times(k, self.lanes.width), element=self.one.scalar)

    def _joins(self, n: int, first: Operand, width: int) -> Callable[[str], None]:
        """In each part of a span, joins one of the components before `first`, of which `width` wait: or none do."""
        before, count = self.plus(first, -width), self.smaller(first, width)

        def join(at: str) -> None:
            k = self.integer("udiv", at, self.plan.chain // 2)
            self.when(self.put(f"icmp slt i64 {k}, {count}"), lambda: self._join_waiting(n, before, k))

        return join

    def _join_waiting(self, n: int, first: Operand, k: Operand) -> None:
        """Joins number k of the components that wait, which are those from `first` on."""
        value = self.load(self.lanes.type, self._waiting(k), self.lanes.nbytes)
        self._join_component(n, self.plus(first, k), [value])

    def _widened(self, n: int, running: Sequence[str], posts: Sequence[Post | None] | None = None) -> list[str]:
        """Running values as they are merged: with the factors that have left the terms."""
        root, wide, lanes = self.kernel.roots[n], self.wide, self.lanes
        posts = root.posts if posts is None else posts
        running = list(running)
        for k, post in enumerate(posts):
            if post and post.row and post.common:
                with self.pairs.scope():
                    less = self.put(f"fneg {lanes.type} {self.pairs.get(post.row)}")
                running[k] = operation(self.put, lanes, "fma", (less, self.common[post.common.id], running[k]))
        out = [self.widened(f, value) for f, value in zip(root.fields, running, strict=True)]
        for k, post in enumerate(posts):
            if post is None:
                continue
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
