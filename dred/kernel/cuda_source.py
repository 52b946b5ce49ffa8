"""Kernel -> readable, header-free CUDA C++: the entry points around the expressions, and what a launcher must know.

Four entry points, of which the first two exist only where records are too long for registers or shared memory:

rows, columns
    write the record of every row (of every column) to memory, one component after another.
fold
    a block of threads takes a tile of rows (R per thread) and one split of their columns, tile by tile. The record of
    a column is computed once per tile, by the thread that stages it. Chains of a few columns run in the compute type
    and are joined, in order, to a state in the accumulator type; the state of the split is written to `partial`.
merge
    joins the splits to the state, in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from dred.kernel.cuda_schedule import THREADS, schedule
from dred.kernel.cuda_text import C_NAME, CLOSED, Lines, Open, Put, Writer, indented, literal, loop, over
from dred.kernel.ir import Expr, Kernel, Loop, Root, walk

Params = Sequence[tuple[str, str]]
ITEM = 5  # int64 numbers of an item: batch, row begin, row end, first interval, last interval


@dataclass(frozen=True)
class Entry:
    """A `__global__` function: its name and its parameters as (C type, name)."""

    name: str
    params: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Source:
    """CUDA text and what a launcher must know of it.

    Attributes
    ----------
    text : str
    entries : dict of str to Entry
        "fold" (blocks: x row tiles, y splits) and "merge" (x row tiles, y: any number, they share the components);
        where records go through memory "rows" (x row tiles) and "columns" (x: columns of all batches, one per thread).
        A row tile is described by one item of at most `tile_rows` rows; intervals are pairs of int64 (begin, end).
    dtype, acc : str
        Types of the variables, and of the state.
    loads : tuple of (ind, dim, axes)
        The variables that are read: parameters `v{ind}`, and `s{ind}`, the distance from batch to batch.
    dim : int
        Components of the formula.
    identity : tuple of float
        Of each state field.
    tile_rows, tile_columns : int
        Rows of a block; columns at which splits may begin, counted from the beginning of an interval.
    size_i, size_j : int
        Lengths of the records that go through memory; 0 where none do.
    cost : float
        Estimated instructions per pair.
    """

    text: str
    entries: dict[str, Entry]
    dtype: str
    acc: str
    loads: tuple[tuple[int, int, int], ...]
    dim: int
    identity: tuple[float, ...]
    tile_rows: int
    tile_columns: int
    size_i: int
    size_j: int
    cost: float

    @property
    def read(self) -> tuple[int, ...]:
        """Positions of the variables that are read."""
        return tuple(ind for ind, _, _ in self.loads)


class _Kernel(Writer):
    """The entry points of one kernel."""

    def __init__(self, kernel: Kernel, dtype: str, acc: str, chain: int, name: str) -> None:
        super().__init__(kernel, schedule(kernel, np.dtype(dtype).itemsize, chain), dtype)
        self.acc, self.A, self.name = acc, C_NAME[acc], name
        self.fields = range(len(kernel.identity))
        self.width = kernel.dim * len(kernel.identity)  # values of a state
        self.tile = THREADS * self.s.R
        self.row = f"const i64 i = min(item[1] + threadIdx.x + {THREADS} * r, item[2] - 1);"
        self.place_of_thread = f"(i64)blockIdx.x * {self.tile} + threadIdx.x"
        self.through_memory = {
            "rows": self.s.rows_in_memory and kernel.size_i > 0,
            "columns": self.s.columns == "memory",
        }
        self.numbered = any(e.op == "row" for e in walk([e for step in kernel.steps for e in step]))
        self.entries: dict[str, Entry] = {}

    def source(self) -> Source:
        s, k = self.s, self.k
        lines = [
            f"// {k.dim} components in {self.T}, state in {self.A}: {THREADS} threads x {s.R} rows; "
            f"{s.columns} records, tiles of {s.TJ} columns, {s.C} at a time; chains of {s.chain}",
            "typedef long long i64;", "",
            *self.joining(), "",
            *(self.rows() if self.through_memory["rows"] else []),
            *(self.columns() if self.through_memory["columns"] else []),
            *self.fold(), *self.merge(),
        ]  # fmt: skip
        size_i = k.size_i if self.through_memory["rows"] else 0
        size_j = k.size_j if self.through_memory["columns"] else 0
        return Source(indented(lines), self.entries, self.dtype, self.acc, k.loads, k.dim, k.identity,
                      self.tile, s.TJ, size_i, size_j, k.cost)  # fmt: skip

    # -- the state ---------------------------------------------------------------------------------------------------

    def joining(self) -> Lines:
        """The function that joins one component of a state to another's."""
        params = [f"{self.A}& a{f}" for f in self.fields] + [f"const {self.A} b{f}" for f in self.fields]
        out = [f"__device__ __forceinline__ void {self.name}_join({', '.join(params)}) {{"]
        self.scopes.append({})
        for e in walk(self.k.merge):
            if e.op in ("state", "other"):
                self.scopes[-1][e.id] = f"{'a' if e.op == 'state' else 'b'}{e.attr}"
            elif e.op not in ("const", "whole"):
                value, name = self.operation(e, self.acc), self.fresh("t")
                out.append(f"const {'bool' if e.boolean else self.A} {name} = {value};")
                self.scopes[-1][e.id] = name
        out += [f"a{f} = {self.text(e, self.acc)};" for f, e in enumerate(self.k.merge)]
        self.scopes.pop()
        return [*out, "}"]

    def joined(self, state: Sequence[str]) -> str:
        """Join the running values of the current root to a state."""
        return f"{self.name}_join({', '.join([*state, *(f'{self.run(f)}[r]' for f in self.fields)])});"

    def started(self, prefix: str, dtype: str) -> tuple[Lines, Lines]:
        """Declarations of the current root's values, and statements that make them those of the empty state."""
        names = [self.run(f, prefix) for f in self.fields]
        declared = [f"{C_NAME[dtype]} {name}[{self.s.R}];" for name in names]
        return declared, [f"{name}[r] = {literal(v, dtype)};" for name, v in zip(names, self.k.identity, strict=True)]

    def step(self, n: int) -> Put:
        """One more pair for root `n`."""
        return Put(self.k.steps[n], lambda values: [f"{self.run(f)}[r] = {v};" for f, v in enumerate(values)], n)

    def partial(self, field: int, component: str) -> str:
        at = f"{field * self.k.dim} + {component}" if field else component
        return f"partial[(i64)({at}) * pitch + {THREADS} * r]"

    # -- the pairs of a tile -----------------------------------------------------------------------------------------

    def chains(self) -> Lines:
        """Chains of columns in registers, each joined to the state; the last, shorter one by a loop with a bound."""
        s = self.s
        runs, starts, joins = Lines(), Lines(), Lines()
        for n in range(len(self.k.roots)):
            self.root = n
            declared, started = self.started("run", self.dtype)
            runs += declared
            starts += started
            joins.append(self.joined([f"{self.run(f, 'acc')}[r]" for f in self.fields]))
        every = [e for step in self.k.steps for e in step]
        body = self.folds(every, CLOSED)
        body += self.phase([self.step(n) for n in range(len(self.k.roots))], CLOSED, bounded=True)
        left, full, rest = (", const int left", f", {s.C}", f", min({s.C}, count - t)") if s.C > 1 else ("", "", "")
        chain = [
            *runs, *loop(self.every_row, starts, "all"),
            f"const auto columns = [&](const int t{left}) {{", *body, "};",
            f"if (count - c0 >= {s.chain}) {{",
            *loop(f"int t = 0; t < {s.chain}; t += {s.C}", [f"columns(c0 + t{full});"], s.unroll),
            "} else {",
            *loop(f"int t = c0; t < count; t += {s.C}", [f"columns(t{rest});"], 1),
            "}",
            *loop(self.every_row, joins, "all"),
        ]  # fmt: skip
        return loop(f"int c0 = 0; c0 < count; c0 += {s.chain}", chain, 1)

    def slices(self) -> Lines:
        """Many components: what they share for C columns first, then one after another, each joined to its state."""
        s, k = self.s, self.k
        uses: dict[int, int] = {}
        for step in k.steps:
            for e in walk(step):
                uses[e.id] = uses.get(e.id, 0) + 1
        body = self.folds([e for step in k.steps for e in step], CLOSED)
        for n, root in enumerate(k.roots):
            body += self.kept(self.shared(n, uses), CLOSED)
            body += self.slice(n, root)
        call = ["columns(c0);"]
        if s.C > 1:
            call = [f"if (count - c0 >= {s.C}) {{", f"columns(c0, {s.C});", "} else {", "columns(c0, count - c0);", "}"]
        left = ", const int left" if s.C > 1 else ""
        return [f"const auto columns = [&](const int t{left}) {{", *body, "};",
                *loop(f"int c0 = 0; c0 < count; c0 += {s.C}", call, 1)]  # fmt: skip

    def shared(self, n: int, uses: dict[int, int]) -> list[Expr]:
        """Values that every component of root `n`, or another root, reads."""
        several = bool(self.k.roots[n].loops)
        return self.outermost(self.k.steps[n], lambda e: not e.free and (several or uses[e.id] > 1))

    def slice(self, n: int, root: Root) -> Lines:
        """One component, or each of its loops, over C columns."""
        self.root = n
        declared, started = self.started("run", self.dtype)
        component = self.component(root.index)

        def nest(open: Open, loops: Sequence[Loop]) -> Lines:
            self.scopes.append({})
            if loops:
                inner = open | {loops[0]}
                shared = self.outermost(self.k.steps[n], lambda e: e.free <= open) if open else []
                body = self.folds(shared, open) + self.kept(shared, open) if shared else []
                body += over(loops[0], nest(inner, loops[1:]), 1)
            else:
                body = [*declared, *loop(self.every_row, started, "all"), *self.folds(self.k.steps[n], open)]
                body += self.phase([self.step(n)], open, bounded=True)
                state = [self.partial(f, component) for f in self.fields]
                body += loop(self.every_row, [self.joined(state)], "all")
            self.scopes.pop()
            return body

        body = nest(CLOSED, root.loops)
        return body if root.loops else ["{", *body, "}"]

    # -- records -----------------------------------------------------------------------------------------------------

    def begin(self, kind: str, params: Params, bounds: str = "") -> Lines:
        """Head of an entry point, its batch, and what varies with nothing."""
        variables = [] if kind == "merge" else self.k.loads
        if kind != "merge" and self.numbered:
            params = [*params, ("i64", "row0"), ("i64", "column0")]
        given = [p for v, _, _ in variables for p in ((f"const {self.T}* __restrict__", f"v{v}"), ("i64", f"s{v}"))]
        self.entries[kind] = Entry(f"{self.name}_{kind}", (*given, *params))
        text = [", ".join(f"{a} {b}" for a, b in part) for part in (given, params) if part]
        out = [f'extern "C" __global__ void {bounds}{self.name}_{kind}({", ".join(text)}) {{']
        if kind == "columns":
            out += [f"const i64 blocks = (N + {THREADS - 1}) / {THREADS}, batch = blockIdx.x / blocks;"]
        else:
            out += ["// batch; begin and end of its rows; first and last of their intervals",
                    f"const i64* const item = items + {ITEM} * blockIdx.x;", "const i64 batch = item[0];"]  # fmt: skip
        out += [f"v{v} += batch * s{v};" for v, _, _ in variables]
        self.scopes = [{}]
        return out if kind == "merge" else out + self.direct(self.k.once)

    def rows(self) -> Lines:
        params = [("const i64* __restrict__", "items"), (f"{self.T}* __restrict__", "xs"), ("i64", "pitch")]
        head = self.begin("rows", params)
        row = [self.row, *self.stored(self.k.slots_i, lambda place: f"xs[(i64)({place}) * pitch + {THREADS} * r]")]
        return [
            *head,
            f"xs += {self.place_of_thread};",
            *loop(self.every_row, row, 1),
            "}", "",
        ]  # fmt: skip

    def columns(self) -> Lines:
        head = self.begin("columns", [(f"{self.T}* __restrict__", "ys"), ("i64", "ypitch"), ("i64", "N")])
        return [
            *head,
            f"const i64 j = blockIdx.x % blocks * {THREADS} + threadIdx.x;",
            "if (j >= N) return;",
            f"ys += batch * {self.k.size_j} * ypitch;",
            *self.stored(self.k.slots_j, lambda place: f"ys[(i64)({place}) * ypitch + j]"),
            "}", "",
        ]  # fmt: skip

    def staging(self) -> Lines:
        """The records of a tile's columns, into shared memory; places beyond the last column repeat it."""
        s, k = self.s, self.k
        column = "const i64 j = min(j0 + t, end - 1);"
        self.scopes.append({})
        if s.columns == "packed":
            body = self.direct([e for e, _ in k.slots_j])
            parts = [f"({self.T}){self.text(e)}" if e.boolean else self.text(e) for e, _ in k.slots_j]
            parts += ["0"] * (self.words * self.per - len(parts))
            for n in range(self.words):
                values = ", ".join(parts[n * self.per : (n + 1) * self.per])
                body.append(f"tile[t * {self.words} + {n}] = make_{self.T}{self.per}({values});")
            self.scopes.pop()
            return loop(f"int t = threadIdx.x; t < {s.TJ}; t += {THREADS}", [column, *body])
        # a vector whose components are independent is shared by all threads, the rest goes column by column
        alone = []
        for e, _ in k.slots_j:
            alone.append(not self.direct([e]) and bool(e.free))
            self.scopes[-1].clear()  # what others have written is not at hand in a loop of its own
        slots = [slot for slot, yes in zip(k.slots_j, alone, strict=True) if not yes]
        out: Lines = []
        if slots:
            body = self.stored(slots, lambda place: f"tile[{self.in_block(place, 't', f't % {s.C}')}]")
            out = loop(f"int t = threadIdx.x; t < {s.TJ}; t += {THREADS}", [column, *body])
        self.scopes.pop()
        for (e, offset), yes in zip(k.slots_j, alone, strict=True):
            if yes:
                counters = sorted(e.free)
                total = prod(c.length for c in counters)
                self.scopes.append({})
                body = [self.counters(counters), column, *self.direct([e], frozenset(counters))]
                body.append(f"tile[{self.in_block(self.place(e, offset), 't', f't % {s.C}')}] = {self.text(e)};")
                self.scopes.pop()
                out += loop(f"int n = threadIdx.x; n < {s.TJ * total}; n += {THREADS}", body)
        return out

    @staticmethod
    def counters(loops: Sequence[Loop]) -> str:
        """A column and its components from one running number n, the deepest loop fastest."""
        parts, stride = [], 1
        for c in reversed(loops):
            parts.append(f"k{c.depth} = {f'n / {stride}' if stride > 1 else 'n'} % {c.length}")
            stride *= c.length
        return f"const int {', '.join(parts)}, t = n / {stride};"

    # -- fold and merge ----------------------------------------------------------------------------------------------

    def fold(self) -> Lines:
        s, k, T = self.s, self.k, self.T
        memory = self.through_memory
        params = [("const i64* __restrict__", "items"), ("const i64* __restrict__", "intervals"),
                  *([(f"const {T}* __restrict__", "xs")] if memory["rows"] else []),
                  *([(f"const {T}* __restrict__", "ys"), ("i64", "ypitch")] if memory["columns"] else []),
                  (f"{self.A}* __restrict__", "partial"), ("i64", "pitch"),
                  ("int", "first"), ("int", "splits")]  # fmt: skip
        out = self.begin("fold", params, f"__launch_bounds__({THREADS}, 2) ")
        if s.columns == "packed":
            out.append(f"__align__(16) __shared__ {T}{self.per} tile[{s.TJ * self.words}];")
        elif s.columns == "block":
            out.append(f"__align__(16) __shared__ {T} tile[{s.TJ * k.size_j}];")
        out.append(f"partial += (i64)blockIdx.y * {self.width} * pitch + {self.place_of_thread};")
        if memory["columns"]:
            out.append(f"ys += batch * {k.size_j} * ypitch;")
        if memory["rows"]:
            out.append(f"xs += {self.place_of_thread};")
        elif k.slots_i:
            out += self.row_registers()
        states, starts = Lines(), Lines()
        for n in range(len(k.roots)):
            self.root = n
            declared, started = self.started("acc", self.acc)
            states += declared
            starts += started
        if s.wide:
            empty = [f"{self.partial(f, 'k')} = {literal(k.identity[f], self.acc)};" for f in self.fields]
            out += loop(f"int k = 0; k < {k.dim}; k++", loop(self.every_row, empty, "all"))
        else:
            out += ["// the state of this thread's rows", *states, *loop(self.every_row, starts, "all")]

        tiles = f"(intervals[2 * q + 1] - intervals[2 * q] + {s.TJ - 1}) / {s.TJ}"
        every_interval = "i64 q = item[3]; q < item[4]; q++"
        tile = [f"const int count = (int)min((i64){s.TJ}, end - j0);"]
        if s.columns in ("packed", "block"):
            tile += ["__syncthreads();", *self.staging(), "__syncthreads();"]
        tile += self.slices() if s.wide else self.chains()
        out += [
            "// tiles of all intervals, and this split's share of them",
            "i64 tiles = 0, seen = 0;",
            *loop(every_interval, [f"tiles += {tiles};"]),
            "const i64 share = (tiles + splits - 1) / splits;",
            "const i64 from = (first + (i64)blockIdx.y) * share, to = from + share;",
            *loop(every_interval, [
                "const i64 begin = intervals[2 * q], end = intervals[2 * q + 1];",
                f"const i64 stop = min(end, begin + (to - seen) * {s.TJ});",
                *loop(f"i64 j0 = begin + max(from - seen, (i64)0) * {s.TJ}; j0 < stop; j0 += {s.TJ}", tile, 1),
                f"seen += {tiles};",
            ], 1),
        ]  # fmt: skip
        if not s.wide:
            puts: Lines = []
            for n, root in enumerate(k.roots):
                self.root = n
                puts += [f"{self.partial(f, str(root.index.offset))} = {self.run(f, 'acc')}[r];" for f in self.fields]
            out += loop(self.every_row, puts, "all")
        return [*out, "}", ""]

    def row_registers(self) -> Lines:
        """The records of a thread's rows, in registers."""
        names = {e.id: f"x{offset}" for e, offset in self.k.slots_i}
        out = ["// the records of this thread's rows"]
        out += [f"{self.type(e)} {names[e.id]}[{self.s.R}];" for e, _ in self.k.slots_i]
        self.scopes.append({})
        body = [self.row, *self.direct([e for e, _ in self.k.slots_i])]
        body += [f"{names[e.id]}[r] = {self.text(e)};" for e, _ in self.k.slots_i]
        self.scopes.pop()
        self.scopes[0].update({id: f"{name}[r]" for id, name in names.items()})
        return out + loop(self.every_row, body, "all")

    def merge(self) -> Lines:
        params = [("const i64* __restrict__", "items"), (f"const {self.A}* __restrict__", "partial"), ("i64", "pitch"),
                  ("int", "splits"), ("i64", "M"), ("i64", "state_pitch"),
                  *((f"{self.A}* __restrict__", f"state{f}") for f in self.fields)]  # fmt: skip
        at = "k * state_pitch + batch * M + item[1] + n"
        parts = [f"partial[((i64)s * {self.width} + {f * self.k.dim} + k) * pitch + n]" for f in self.fields]
        row = [f"{self.A} a{f} = state{f}[{at}];" for f in self.fields]
        call = f"{self.name}_join({', '.join([*(f'a{f}' for f in self.fields), *parts])});"
        row += [*loop("int s = 0; s < splits; s++", [call]), *(f"state{f}[{at}] = a{f};" for f in self.fields)]
        rows = loop(f"int n = threadIdx.x; n < {self.tile} && item[1] + n < item[2]; n += {THREADS}", row)
        return [
            *self.begin("merge", params),
            f"partial += (i64)blockIdx.x * {self.tile};",
            *loop(f"i64 k = blockIdx.y; k < {self.k.dim}; k += gridDim.y", rows),
            "}",
        ]  # fmt: skip


def render(kernel: Kernel, dtype: str, acc: str = "float64", chain: int = 32, name: str = "dred") -> Source:
    """The CUDA C++ of a kernel.

    Parameters
    ----------
    kernel : Kernel
        Lowered with vectors unrolled up to `UNROLL[dtype]` components.
    dtype, acc : {"float32", "float64"}
        Type of the variables and of the arithmetic per pair; type of the state.
    chain : int
        Columns that are accumulated in `dtype`, at most, before they are joined to the state.
    name : str
        Prefix of the entry points.
    """
    return _Kernel(kernel, dtype, acc, chain, name).source()
