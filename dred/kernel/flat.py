"""The kernel IR, and scalar texts of tables, as flat lists of NumPy operations: walked once, then only run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from dred.formula.construct import nearest
from dred.formula.node import I, J
from dred.formula.syntax import evaluate, parse_once
from dred.kernel.ir import FOLDS, Expr, Index, Kernel, Loop, Root
from dred.kernel.lower import SYNTAX
from dred.kernel.primitives import PRIMITIVES

Values = list[Any]

# -- scalar texts ------------------------------------------------------------------------------------------------------


@cache
def straight(
    names: tuple[str, ...], lets: tuple[tuple[str, str], ...], texts: tuple[str, ...]
) -> Callable[[Sequence[Any]], Values]:
    """Scalar texts of a table as a function of arrays.

    Parameters
    ----------
    names : tuple of str
        What the arrays are called, in order.
    lets : tuple of (name, text)
        What is computed first, one after another.
    texts : tuple of str
        What the function gives, in order.
    """
    constants: dict[int, Any] = {}
    steps: list[tuple[Callable[..., Any], int, tuple[int, ...]]] = []
    known = {name: k for k, name in enumerate(names)}
    count = len(names)

    def place(value: Any = None) -> int:
        nonlocal count
        count += 1
        if value is not None:
            constants[count - 1] = value
        return count - 1

    def name(word: str) -> int:
        return place({"inf": np.inf, "nan": np.nan}[word]) if word in ("inf", "nan") else known[word]

    def call(word: str, args: Sequence[Any], named: dict[str, Any]) -> int:
        function = PRIMITIVES[SYNTAX.get(word, word)].numpy
        if all(a in constants for a in args):
            return place(function(*(constants[a] for a in args)))
        steps.append((function, place(), tuple(args)))
        return steps[-1][1]

    for word, text in lets:
        known[word] = evaluate(parse_once(text), lambda value: place(float(value)), name, call)
    results = [evaluate(parse_once(text), lambda value: place(float(value)), name, call) for text in texts]
    if len(steps) == 1 and results == [steps[0][1]] and max(steps[0][2]) < len(names):  # a sum, say, without a detour
        ((function, _, args),) = steps
        return lambda given: [function(*[given[a] for a in args])]
    template = [constants.get(k) for k in range(count)]

    def run(given: Sequence[Any]) -> Values:
        values = template.copy()
        values[: len(given)] = given
        for function, target, args in steps:
            values[target] = function(*[values[a] for a in args])
        return [values[k] for k in results]

    return run


# -- kernels -----------------------------------------------------------------------------------------------------------


class Block:
    """What the steps of a program read besides each other's values: one block of rows and columns.

    Attributes
    ----------
    arrays : sequence of ndarray
        By position.
    rows, columns : slice
    first : (int, int)
        Global numbers of row 0 and column 0.
    counters : dict of Loop to int
        Turns of the loops over components that are running.
    """

    __slots__ = ("arrays", "columns", "counters", "first", "rows")

    def __init__(self, arrays: Sequence[Any], rows: slice, columns: slice, first: tuple[int, int]) -> None:
        self.arrays, self.rows, self.columns, self.first = arrays, rows, columns, first
        self.counters: dict[Loop, int] = {}

    def finish(self, number: int, k: int, values: Values) -> None:
        """What becomes of the terms of component k of a root."""
        raise NotImplementedError


Run = Callable[[Values, Block], None]


@dataclass(frozen=True)
class Program:
    """A kernel as steps to be run one after another on a list of values; a value's place is used again after it.

    Attributes
    ----------
    template : list
        The list of values at the beginning: constants are in it.
    wide : int
        Other values that are kept at a time.
    steps : tuple of callables
    cost : float
        Of the kernel: instructions per pair.
    """

    template: Values
    wide: int
    steps: tuple[Run, ...]
    cost: float


@dataclass
class _Step:
    """A step before values have places: what it makes and reads, and how it becomes a callable."""

    target: Expr | None
    reads: tuple[Expr, ...]
    ready: Callable[[int, tuple[int, ...], tuple[Run, ...]], Run]
    inner: _Scope | None = None  # makes what is read

    @property
    def read(self) -> set[int]:
        """What is read of the scope around the step, and of those outside."""
        return self.inner.foreign() if self.inner else {e.id for e in self.reads}


@dataclass
class _Scope:
    """Steps inside the same loops over components; an inner loop that is named as an outer one hides it."""

    loops: frozenset[Loop]  # of this scope itself
    outside: tuple[_Scope, ...]
    steps: list[_Step] = field(default_factory=list)
    made: set[int] = field(default_factory=set)
    results: tuple[Expr, ...] = ()  # read when all steps are done

    def inside(self, loops: Sequence[Loop]) -> _Scope:
        return _Scope(frozenset(loops), (*self.outside, self))

    def home(self, e: Expr) -> _Scope:
        """Where a value that is read here is made: in the innermost loop that it varies with."""
        return next((s for s in (self, *reversed(self.outside)) if s.loops & e.free), (*self.outside, self)[0])

    def foreign(self) -> set[int]:
        """What is read in here and made outside."""
        return {e.id for e in self.results}.union(*(step.read for step in self.steps)) - self.made


def program(kernel: Kernel, dtype: str) -> Program:
    """The steps of a kernel whose values are of a type."""
    constants: dict[int, Any] = {}
    top = _Scope(frozenset(), ())
    for number, root in enumerate(kernel.roots):
        turns = counted(root)
        scope = top.inside(root.loops) if root.loops else top
        _emit(scope, root.terms, dtype, constants)
        if scope is top:
            top.steps.append(_Step(None, root.terms, _once(number, turns[0][0])))
        else:
            scope.results = root.terms
            top.steps.append(_Step(None, root.terms, _turns(number, turns), scope))
    places = _Places(constants)
    steps = places.assigned(top)
    return Program(places.template, len(places.template) - len(constants), steps, kernel.cost)


def counted(root: Root) -> list[tuple[int, dict[Loop, int]]]:
    """Components of a root with the loop counters that select them."""
    turns: list[dict[Loop, int]] = [{}]
    for loop in root.loops:
        turns = [{**turn, loop: k} for turn in turns for k in range(loop.length)]
    return [(position(root.index, turn), turn) for turn in turns]


def position(index: Index, counters: dict[Loop, int]) -> int:
    """The component that an index means for given loop counters."""
    return index.offset + sum(c * counters[loop] for loop, c in index.terms)


def _emit(scope: _Scope, wanted: Sequence[Expr], dtype: str, constants: dict[int, Any]) -> None:
    """Writes the steps that make the wanted values, each into the outermost scope whose loops it is free of."""
    found: dict[int, Expr] = {}
    stack = list(wanted)
    while stack:
        e = stack.pop()
        if e.id not in found and e.id not in constants and e.id not in scope.home(e).made:
            found[e.id] = e
            if e.op not in FOLDS:  # the body of a fold is made in a scope of its own
                stack.extend(e.args)
    kind = np.dtype(dtype)
    for e in (found[k] for k in sorted(found)):  # arguments come before their users
        if e.op == "const":
            constants[e.id] = np.asarray(nearest(e.attr, dtype), kind)[()]
        elif e.op == "whole":
            constants[e.id] = np.int64(e.attr)
        else:
            home = scope.home(e)
            if e.op in FOLDS:
                inner = home.inside([e.attr])
                _emit(inner, e.args, dtype, constants)
                inner.results = e.args
                home.steps.append(_Step(e, e.args, _fold(e, kind), inner))
            else:
                home.steps.append(_Step(e, e.args, _operation(e, kind)))
            home.made.add(e.id)


class _Places:
    """Places in the list of values: constants keep theirs, others are free again after the last step that reads."""

    def __init__(self, constants: dict[int, Any]) -> None:
        self.template = list(constants.values())
        self.of = {id: k for k, id in enumerate(constants)}
        self.free: list[int] = []

    def take(self, e: Expr) -> int:
        if not self.free:
            self.free.append(len(self.template))
            self.template.append(None)
        self.of[e.id] = self.free.pop()
        return self.of[e.id]

    def assigned(self, scope: _Scope) -> tuple[Run, ...]:
        last = dict.fromkeys((e.id for e in scope.results), len(scope.steps))
        for n, step in reversed([*enumerate(scope.steps)]):
            for id in step.read:
                last.setdefault(id, n)
        out: list[Run] = []
        for n, step in enumerate(scope.steps):
            hidden = {id: self.of[id] for id in step.inner.made if id in self.of} if step.inner else {}
            inner = self.assigned(step.inner) if step.inner else ()
            reads = tuple(self.of[e.id] for e in step.reads)
            if step.inner:
                self.free += [self.of[id] for id in sorted(step.inner.made & {e.id for e in step.inner.results})]
                self.of |= hidden
            self.free += [self.of[id] for id in sorted(step.read & scope.made) if last[id] == n]
            out.append(step.ready(-1 if step.target is None else self.take(step.target), reads, inner))
        return tuple(out)


def _operation(e: Expr, kind: np.dtype[Any]) -> Callable[[int, tuple[int, ...], tuple[Run, ...]], Run]:
    if e.op == "load":
        return lambda t, reads, inner: _load(t, *e.attr)
    if e.op == "row":
        return lambda t, reads, inner: _row(t, e.attr)
    if e.op == "counter":
        return lambda t, reads, inner: _counter(t, e.attr, kind)
    function = PRIMITIVES[e.op].numpy
    # the others keep the type of values
    rounded = e.result == "value" and (e.op in ("number", "erf") or any(a.result == "number" for a in e.args))

    def ready(t: int, reads: tuple[int, ...], inner: tuple[Run, ...]) -> Run:
        if rounded:

            def run(v: Values, block: Block) -> None:
                v[t] = np.asarray(function(*[v[k] for k in reads]), kind)

        elif len(reads) == 1:
            (a,) = reads

            def run(v: Values, block: Block) -> None:
                v[t] = function(v[a])

        elif len(reads) == 2:
            a, b = reads

            def run(v: Values, block: Block) -> None:
                v[t] = function(v[a], v[b])

        else:

            def run(v: Values, block: Block) -> None:
                v[t] = function(*[v[k] for k in reads])

        return run

    return ready


def _load(t: int, ind: int, dim: int, axes: int, index: Index) -> Run:
    k = index.offset
    if index.terms:

        def run(v: Values, block: Block) -> None:
            k = position(index, block.counters)
            a = block.arrays[ind]
            v[t] = a[block.rows, k, None] if axes == I else a[None, block.columns, k] if axes == J else a[k]

    elif axes == I:

        def run(v: Values, block: Block) -> None:
            v[t] = block.arrays[ind][block.rows, k, None]

    elif axes == J:

        def run(v: Values, block: Block) -> None:
            v[t] = block.arrays[ind][None, block.columns, k]

    else:

        def run(v: Values, block: Block) -> None:
            v[t] = block.arrays[ind][k]

    return run


def _row(t: int, axes: int) -> Run:
    def run(v: Values, block: Block) -> None:
        span, first = (block.rows, block.first[0]) if axes == I else (block.columns, block.first[1])
        numbers = first + np.arange(span.start, span.stop, dtype=np.int64)
        v[t] = numbers[:, None] if axes == I else numbers[None, :]

    return run


def _counter(t: int, index: Index, kind: np.dtype[Any]) -> Run:
    def run(v: Values, block: Block) -> None:
        v[t] = kind.type(position(index, block.counters))

    return run


def _fold(e: Expr, kind: np.dtype[Any]) -> Callable[[int, tuple[int, ...], tuple[Run, ...]], Run]:
    loop = e.attr
    name, start = FOLDS[e.op]
    function = PRIMITIVES[name].numpy

    def ready(t: int, reads: tuple[int, ...], inner: tuple[Run, ...]) -> Run:
        (body,) = reads

        def run(v: Values, block: Block) -> None:
            total: Any = kind.type(start)
            outer = block.counters.get(loop, 0)
            for k in range(loop.length):
                block.counters[loop] = k
                for step in inner:
                    step(v, block)
                total = function(v[body], total)
            v[t], block.counters[loop] = total, outer

        return run

    return ready


def _once(number: int, k: int) -> Callable[[int, tuple[int, ...], tuple[Run, ...]], Run]:
    def ready(t: int, reads: tuple[int, ...], inner: tuple[Run, ...]) -> Run:
        def run(v: Values, block: Block) -> None:
            block.finish(number, k, [v[a] for a in reads])

        return run

    return ready


def _turns(
    number: int, turns: list[tuple[int, dict[Loop, int]]]
) -> Callable[[int, tuple[int, ...], tuple[Run, ...]], Run]:
    def ready(t: int, reads: tuple[int, ...], inner: tuple[Run, ...]) -> Run:
        def run(v: Values, block: Block) -> None:
            for k, counters in turns:
                block.counters.update(counters)
                for step in inner:
                    step(v, block)
                block.finish(number, k, [v[a] for a in reads])

        return run

    return ready
