"""Writing LLVM IR text: instructions, counted loops, and the values of expressions on demand, each once per scope."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import NamedTuple

from dred.formula.node import J
from dred.kernel.ir import FOLDS, Expr, Loop, maximal, walk
from dred.kernel.llvm_math import Lanes, operation

STRAIGHT = 1000  # instructions of a basic block: LLVM's time grows with the square of their number

Operand = str | int
Carry = tuple[str, str]
"""Type and first value of something that a loop hands from round to round."""


class Text:
    """The body of a function, line by line; it knows the basic block that is being written."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.block = "entry"
        self.names = 0
        self.begun = 0  # where the basic block begins

    def name(self, stem: str) -> str:
        self.names += 1
        return f"{stem}{self.names}"

    def do(self, instruction: str) -> None:
        if len(self.lines) - self.begun > STRAIGHT:
            following = self.name("on")
            self.jump(f"br label %{following}")
            self.label(following)
        self.lines.append(f"  {instruction}")

    def jump(self, instruction: str) -> None:
        """Ends a basic block, the one that `block` names."""
        self.lines.append(f"  {instruction}")

    def put(self, instruction: str) -> str:
        """Writes an instruction and returns the name of its result."""
        result = f"%{self.name('t')}"
        self.do(f"{result} = {instruction}")
        return result

    def label(self, name: str) -> None:
        self.lines.append(f"{name}:")
        self.block, self.begun = name, len(self.lines)

    def stagger(self, marks: Sequence[int], behind: float = 1.0) -> None:
        """Mixes texts that do not read each other, from each mark to the next, all of one basic block.

        A processor looks ahead by some instructions: of one text after the other it would find those of few, which
        wait for each other. Each text is behind the one before by its part of the lines, so that what they ask for at
        a time is of all kinds; or not at all (0), where they are of one kind.
        """
        texts = [self.lines[first:last] for first, last in pairwise(marks)]
        if any(line.endswith(":") for text in texts for line in text):
            return
        places = [
            (at + behind * n * len(text) / len(texts), n, line)
            for n, text in enumerate(texts)
            for at, line in enumerate(text)
        ]
        self.lines[marks[0] : marks[-1]] = [line for _, _, line in sorted(places)]

    def integer(self, op: str, a: Operand, b: Operand) -> str:
        return self.put(f"{op} i64 {a}, {b}")

    def plus(self, a: Operand, b: Operand) -> Operand:
        """`a + b`, written where it is no number yet and changes."""
        if isinstance(a, int) and isinstance(b, int):
            return a + b
        return self.integer("add", a, b) if b else a

    def smaller(self, a: Operand, b: Operand) -> str:
        return self.put(f"select i1 {self.put(f'icmp slt i64 {a}, {b}')}, i64 {a}, i64 {b}")

    def at(self, pointer: str, *offsets: Operand, element: str) -> str:
        """`pointer` plus offsets counted in elements; numbers are added up first."""
        for offset in offsets:
            if isinstance(offset, str):
                pointer = self.put(f"getelementptr {element}, ptr {pointer}, i64 {offset}")
        known = sum(offset for offset in offsets if isinstance(offset, int))
        return self.put(f"getelementptr {element}, ptr {pointer}, i64 {known}") if known else pointer

    def load(self, kind: str, pointer: str, align: int) -> str:
        return self.put(f"load {kind}, ptr {pointer}, align {align}")

    def store(self, kind: str, value: str, pointer: str, align: int) -> None:
        self.do(f"store {kind} {value}, ptr {pointer}, align {align}")

    def broadcast(self, lanes: Lanes, value: str, element: str | None = None) -> str:
        """A scalar in every lane."""
        if lanes.width == 1:
            return value
        element = element or lanes.scalar
        kind = lanes.of(element)
        one = self.put(f"insertelement {kind} poison, {element} {value}, i32 0")
        return self.put(f"shufflevector {kind} {one}, {kind} poison, <{lanes.width} x i32> zeroinitializer")

    def loop(
        self,
        start: Operand,
        stop: Operand,
        step: int,
        carry: Sequence[Carry],
        body: Callable[[str, list[str]], Sequence[str]],
    ) -> list[str]:
        """`for (i = start; i < stop; i += step) carry = body(i, carry)`; returns what is carried out of it.

        The test stands at the end of the loop. One before it is left out where both borders are numbers.
        """
        head, done = self.name("loop"), self.name("done")
        counter, held = f"%{self.name('i')}", [f"%{self.name('c')}" for _ in carry]
        guarded = not (isinstance(start, int) and isinstance(stop, int))
        test = f"i1 {self.put(f'icmp slt i64 {start}, {stop}')}, label %{head}, label %{done}" if guarded else ""
        before = self.block
        self.jump(f"br {test or f'label %{head}'}")
        self.label(head)
        mark = len(self.lines)
        new = list(body(counter, list(held)))
        following = self.integer("add", counter, step)
        more, end = self.put(f"icmp slt i64 {following}, {stop}"), self.block
        self.jump(f"br i1 {more}, label %{head}, label %{done}")
        self.lines[mark:mark] = [  # only now are the values known that come back from the end of the loop
            f"  {counter} = phi i64 [ {start}, %{before} ], [ {following}, %{end} ]",
            *(
                f"  {h} = phi {kind} [ {first}, %{before} ], [ {value}, %{end} ]"
                for h, (kind, first), value in zip(held, carry, new, strict=True)
            ),
        ]
        self.label(done)
        if not guarded:
            return new
        out = [f"%{self.name('t')}" for _ in carry]
        self.lines += [
            f"  {o} = phi {kind} [ {first}, %{before} ], [ {value}, %{end} ]"
            for o, (kind, first), value in zip(out, carry, new, strict=True)
        ]
        return out

    def when(self, condition: str, body: Callable[[], None]) -> None:
        """`if (condition) body`: no value leaves it."""
        yes, done = self.name("when"), self.name("done")
        self.jump(f"br i1 {condition}, label %{yes}, label %{done}")
        self.label(yes)
        body()
        self.jump(f"br label %{done}")
        self.label(done)

    def repeat(self, carry: Sequence[Carry], body: Callable[[list[str]], tuple[str, Sequence[str]]]) -> list[str]:
        """`do { more, carry = body(carry) } while (more)`; returns what is carried out of it."""
        head, done = self.name("loop"), self.name("done")
        held = [f"%{self.name('c')}" for _ in carry]
        before = self.block
        self.jump(f"br label %{head}")
        self.label(head)
        mark = len(self.lines)
        more, new = body(list(held))
        end = self.block
        self.jump(f"br i1 {more}, label %{head}, label %{done}")
        self.lines[mark:mark] = [
            f"  {h} = phi {kind} [ {first}, %{before} ], [ {value}, %{end} ]"
            for h, (kind, first), value in zip(held, carry, new, strict=True)
        ]
        self.label(done)
        return list(new)


class Wanted(NamedTuple):
    """A value of an expression: in column `column` of the block of columns at hand."""

    expr: Expr
    column: int


class Values:
    """The values of expressions, written when first wanted.

    Parameters
    ----------
    text : Text
    lanes : Lanes
        Type of the values.
    leaf : callable
        (expr, column) -> operand of what is at hand already (constants, loads, records), or None: to be computed.
    groups : dict
        For a fold over a component loop (by id): the folds that share its loop.

    Attributes
    ----------
    parted : bool
        Whether a sum that has its loop for itself goes by every fourth component four times, at once. Where it may
        share the loop with those of other columns it must not: its bits would depend on that.
    """

    parted = True

    def __init__(
        self,
        text: Text,
        lanes: Lanes,
        leaf: Callable[[Expr, int], str | None],
        groups: dict[int, tuple[Expr, ...]] | None = None,
    ) -> None:
        self.text, self.lanes, self.leaf, self.groups = text, lanes, leaf, groups or {}
        self.columns = 1
        self.counters: dict[Loop, Operand] = {}
        self._scopes: list[dict[tuple[int, int], str]] = [{}]

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Values written in here are forgotten at the end: their place in the text does not dominate what follows."""
        self._scopes.append({})
        yield
        self._scopes.pop()

    def bind(self, e: Expr, operand: str, column: int = 0) -> None:
        """Declares the value of an expression, in a column where it varies with them."""
        self._scopes[-1][self._key(Wanted(e, column))] = operand

    def get(self, e: Expr, column: int = 0) -> str:
        """The operand of an expression. The depth of expressions is not limited."""
        stack = [Wanted(e, column)]
        while stack:
            want = stack[-1]
            if self._known(want) is None:
                missing = self._compute(want)
                if missing:
                    stack.extend(missing)
                    continue
            stack.pop()
        known = self._known(Wanted(e, column))
        assert known is not None
        return known

    def components(
        self, loop: Loop, carry: Sequence[Carry], body: Callable[[list[str]], Sequence[str]], unroll: int
    ) -> list[str]:
        """A loop over components, `unroll` of them at once; the rest follows it one by one."""
        full = loop.length - loop.length % unroll

        def once(counter: Operand, held: Sequence[str]) -> list[str]:
            self.counters[loop] = counter
            with self.scope():
                return list(body(list(held)))

        def several(counter: str, held: list[str]) -> list[str]:
            for u in range(unroll):
                held = once(self.text.integer("add", counter, u) if u else counter, held)
            return held

        held = self.text.loop(0, full, unroll, carry, several) if full else [first for _, first in carry]
        for k in range(full, loop.length):
            held = once(k, held)
        del self.counters[loop]
        return held

    def invariants(self, loop: Loop, bodies: Iterable[Expr]) -> list[Wanted]:
        """What the bodies of a component loop read that does not vary with it: to be computed before."""
        found: dict[int, Expr] = {}
        seen: set[int] = set()
        stack = list(bodies)
        while stack:
            e = stack.pop()
            if e.id in seen or e.op == "const":
                continue
            seen.add(e.id)
            if loop not in e.free and e.free <= self.counters.keys():
                found[e.id] = e
            elif not self.recorded(e):
                stack.extend(e.args)
        return [w for k in sorted(found) for w in self._everywhere(found[k])]

    def lasting(self, roots: Iterable[Expr]) -> list[Expr]:
        """What some values read that is the same in all columns."""
        found = maximal(list(roots), lambda e: not e.axes & J or self.recorded(e))
        return [e for e in found if not e.axes & J]

    def recorded(self, e: Expr) -> bool:
        """Whether a value is read from a record, so that its arguments are not wanted."""
        return False

    def _everywhere(self, e: Expr) -> list[Wanted]:
        return [Wanted(e, s) for s in range(self.columns if e.axes & J else 1)]

    def _key(self, want: Wanted) -> tuple[int, int]:
        return want.expr.id, want.column if want.expr.axes & J else 0

    def _known(self, want: Wanted) -> str | None:
        key = self._key(want)
        for scope in reversed(self._scopes):
            if key in scope:
                return scope[key]
        return None

    def _compute(self, want: Wanted) -> list[Wanted]:
        """Writes a value, or says which ones are missing to do so."""
        e, column = want
        operand = self.leaf(e, column)
        if operand is None and e.op in FOLDS:
            return self._fold(e)
        if operand is None:
            missing = [w for a in reversed(e.args) if self._known(w := Wanted(a, column)) is None]
            if missing:
                return missing
            operands = [self._known(Wanted(a, column)) or "" for a in e.args]
            operand = operation(self.text.put, self.lanes, e.op, operands)
        self._scopes[-1][self._key(want)] = operand
        return []

    def _fold(self, e: Expr) -> list[Wanted]:
        """Writes the component loop of a fold, for all columns and for the other folds that share it."""
        group = [f for f in self.groups.get(e.id, (e,)) if f is e or self._due(f)]
        loop: Loop = e.attr
        missing = [w for w in self.invariants(loop, [f.args[0] for f in group]) if self._known(w) is None]
        if missing:
            return missing
        totals = [w for f in group for w in self._everywhere(f)]

        # several sums hide each other's latency, and fill the registers; a loop inside would be written each time
        inner = any(b.op in FOLDS and loop in b.free for f in group for b in walk(f.args))
        unroll = 1 if len(totals) > 1 or inner else 4
        parts = unroll if self.parted and group[0].op == "fold" else 1

        def step(held: list[str]) -> list[str]:
            new = [self.term(f, s, total) for (f, s), total in zip(totals, held, strict=False)]
            return [*held[len(new) :], *new]

        carry = [(self.lanes.type, self.lanes.literal(FOLDS[f.op][1])) for f, _ in totals] * parts
        found = self.components(loop, carry, step, unroll)
        while len(found) > len(totals):  # halves in turn
            pairs = zip(found[::2], found[1::2], strict=True)
            found = [operation(self.text.put, self.lanes, "add", pair) for pair in pairs]
        for want, total in zip(totals, found, strict=True):
            self._scopes[-1][self._key(want)] = total
        return []

    def _due(self, fold: Expr) -> bool:
        """Whether a fold can be written here and has not been."""
        return fold.free <= self.counters.keys() and self._known(Wanted(fold, 0)) is None

    def term(self, fold: Expr, column: int, total: str) -> str:
        """The running value of a fold after one more component."""
        (body,) = fold.args
        if fold.op == "fold" and body.op == "mul" and not self.recorded(body):
            factors = [self.get(a, column) for a in body.args]
            return operation(self.text.put, self.lanes, "fma", [*factors, total])
        return operation(self.text.put, self.lanes, FOLDS[fold.op][0], [self.get(body, column), total])


def below(roots: Iterable[Expr], op: str) -> set[int]:
    """The ids of all expressions under `roots` that read one with the given operation."""
    found: set[int] = set()
    for e in walk(list(roots)):
        if e.op == op or any(a.id in found for a in e.args):
            found.add(e.id)
    return found
