"""Kernel -> readable, header-free CUDA C++: the entry points around the expressions, and what a launcher must know.

Up to five entry points: the first two exist only where records are too long for registers or shared memory, the last
only where fields of the state read others:

rows, columns
    write the record of every row (of every column) to memory, one component after another.
fold
    a block of threads takes a tile of rows (R per thread) and one split of their columns, tile by tile. The record of
    a column is computed once per tile, by the thread that stages it. Chains of a few columns run in the compute type
    and are joined, in order, to a state in the accumulator type; the state of the split is written to `partial`.
merge, heads
    join the splits to the state, in order; heads, what others have to read as it was, in a launch that follows. Where
    the state is fresh, nothing is in it yet; where there is a place for results, they go there, row by row, instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import numpy as np

from dred.formula.node import toposort
from dred.kernel.cuda_schedule import LOOPED, THREADS, UNROLL, Schedule, schedule
from dred.kernel.cuda_slices import Slices
from dred.kernel.cuda_text import C_NAME, PRELUDE, Lines, indented, literal, loop
from dred.kernel.ir import Kernel, Loop, Root, walk
from dred.kernel.lower import lower
from dred.kernel.spec import KernelSpec

Params = Sequence[tuple[str, str]]
ITEM = 5  # int64 numbers of an item: batch, row begin, row end, first interval, last interval


@dataclass(frozen=True)
class Entry:
    """A `__global__` function: its name and its parameters as (C type, name)."""

    name: str
    params: tuple[tuple[str, str], ...]


class Rows(NamedTuple):
    """The array of a field of the state: `size` rows of type `dtype`, at first all `identity`."""

    dtype: str
    size: int
    identity: float


@dataclass(frozen=True)
class Source:
    """CUDA text and what a launcher must know of it.

    Attributes
    ----------
    text : str
    entries : dict of str to Entry
        "fold" (blocks: x row tiles, y splits), "merge" and where there is one "heads", to be run in this order (x row
        tiles, y: any number, they share the components);
        where records go through memory "rows" (x row tiles) and "columns" (x: columns of all batches, one per thread).
        A row tile is described by one item of at most `tile_rows` rows; intervals are pairs of int64 (begin, end).
    dtype : str
        Type of the variables.
    loads : tuple of (ind, dim, axes)
        The variables that are read: parameters `v{ind}`, and `s{ind}`, the distance from batch to batch.
    fields : tuple of Rows
        The state: parameters `state{f}`, `partial{f}` of the splits, and `out{f}`, null or where results go.
    components, places : int
        Most components of a field, and most places of a ranking.
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
    loads: tuple[tuple[int, int, int], ...]
    fields: tuple[Rows, ...]
    components: int
    places: int
    tile_rows: int
    tile_columns: int
    size_i: int
    size_j: int
    cost: float

    @property
    def read(self) -> tuple[int, ...]:
        """Positions of the variables that are read."""
        return tuple(ind for ind, _, _ in self.loads)


class _Kernel(Slices):
    """The entry points of one kernel."""

    def __init__(self, kernel: Kernel, dtype: str, acc: str, chain: int, name: str, plain: Kernel | None) -> None:
        super().__init__(kernel, schedule(kernel, np.dtype(dtype).itemsize, chain), dtype, acc, name, plain)
        self.tile = THREADS * self.s.R
        self.row = f"const i64 i = min(item[1] + threadIdx.x + {THREADS} * r, item[2] - 1);"
        self.place_of_thread = f"(i64)blockIdx.x * {self.tile} + threadIdx.x"
        self.through_memory = {
            "rows": self.s.rows_in_memory and kernel.size_i > 0,
            "columns": self.s.columns == "memory",
        }
        everything = walk([*self.steps, *(plain.steps if plain else [])])
        self.numbered = any(e.op == "row" for e in everything)
        self.loads = tuple(sorted({*kernel.loads, *(plain.loads if plain else ())}))
        self.entries: dict[str, Entry] = {}

    def source(self) -> Source:
        s, k = self.s, self.k
        components = max(map(self.components, k.roots))
        lines = [
            f"// {components} components in {self.T}, sums in {self.A}: {THREADS} threads x {s.R} rows; "
            f"{s.columns} records, tiles of {s.TJ} columns, {s.C} at a time; chains of {s.chain}",
            "typedef long long i64;", "", *self.prelude(),
            *(line for root in self.alike([*self.rest, *self.heads]) for line in self.joining(root)),
            *(line for root in self.alike(self.rankings) for line in self.ranking(root)),
            *(self.rows() if self.through_memory["rows"] else []),
            *(self.columns() if self.through_memory["columns"] else []),
            *self.fold(),
            *self.merge("merge", [*self.rest, *self.rankings]),
            *(self.merge("heads", self.heads) if self.heads else []),
        ]  # fmt: skip
        size_i = k.size_i if self.through_memory["rows"] else 0
        size_j = k.size_j if self.through_memory["columns"] else 0
        fields = tuple(Rows(t, f.size, f.identity) for t, f in zip(self.types, k.fields, strict=True))
        return Source(indented(lines), self.entries, self.dtype, self.loads, fields, components,
                      max(root.places for root in k.roots), self.tile, s.TJ, size_i, size_j, k.cost)  # fmt: skip

    def prelude(self) -> Lines:
        """The functions that expressions call."""
        used = {e.op for e in walk([*self.steps, *self.k.once])}
        return [line for op, text in PRELUDE.items() if op in used for line in text.splitlines()]

    # -- records -----------------------------------------------------------------------------------------------------

    def begin(self, kind: str, params: Params, bounds: str = "") -> Lines:
        """Head of an entry point, its batch, and what varies with nothing."""
        merging = kind in ("merge", "heads")
        variables = [] if merging else self.loads
        if self.numbered and not merging:
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
        return out if merging else out + self.direct(self.k.once)

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
                  *self.pointers("partial"), ("i64", "pitch"), ("int", "first"), ("int", "splits")]  # fmt: skip
        out = self.begin("fold", params, f"__launch_bounds__({THREADS}, {s.blocks}) ")
        if s.columns == "packed":
            out.append(f"__align__(16) __shared__ {T}{self.per} tile[{s.TJ * self.words}];")
        elif s.columns == "block":
            out.append(f"__align__(16) __shared__ {T} tile[{s.TJ * k.size_j}];")
        for f, field in enumerate(k.fields):
            out.append(f"partial{f} += (i64)blockIdx.y * {field.size} * pitch + {self.place_of_thread};")
        if memory["columns"]:
            out.append(f"ys += batch * {k.size_j} * ypitch;")
        if memory["rows"]:
            out.append(f"xs += {self.place_of_thread};")
        elif k.slots_i:
            out += self.row_registers()
        out += self.row_factors()
        held = self.heads if s.wide else [*self.rest, *self.heads]  # in registers
        states, starts = self.started(held if s.wide or s.listed else k.roots, "acc", self.types)
        if s.listed:
            lists, emptied = self.listed()
            states, starts = [*states, *lists], [*starts, *emptied]
        if states:
            out += ["// the state of this thread's rows", *states, *loop(self.every_row, starts, "all")]
        here = {f for root in (k.roots if s.listed else held) for f in root.fields}
        for f, field in enumerate(k.fields):
            if f not in here:
                empty = [f"{self.partial(f, 'k')} = {literal(field.identity, self.types[f])};"]
                out += loop(f"int k = 0; k < {field.size}; k++", loop(self.every_row, empty, "all"))

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
        puts = [f"{self.partial(f, str(root.index.offset))} = {name};"
                for root in held for f, name in zip(root.fields, self.names(root, "acc"), strict=True)]  # fmt: skip
        out += [*(loop(self.every_row, puts, "all") if puts else []), *self.sort_rankings()]
        return [*out, "}", ""]

    def pointers(self, what: str, const: str = "") -> Params:
        """Parameters, one for each field of the state."""
        return [(f"{const}{C_NAME[t]}* __restrict__", f"{what}{f}") for f, t in enumerate(self.types)]

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

    def merge(self, kind: str, roots: Sequence[Root]) -> Lines:
        params = [("const i64* __restrict__", "items"), *self.pointers("partial", "const "), ("i64", "pitch"),
                  ("int", "splits"), ("i64", "M"), ("i64", "state_pitch"), *self.pointers("state"), ("int", "fresh"),
                  *((f"{t}* __restrict__", f"out{f}") for f, t in enumerate(self.results))]  # fmt: skip
        return [
            *self.begin(kind, params),
            *(f"partial{f} += (i64)blockIdx.x * {self.tile};" for f in range(len(self.k.fields))),
            *self.merge_splits(roots, self.tile),
            "}",
        ]


def render(
    kernel: Kernel,
    dtype: str,
    acc: str = "float64",
    chain: int = 32,
    name: str = "dred",
    plain: Kernel | None = None,
) -> Source:
    """The CUDA C++ of a kernel.

    Parameters
    ----------
    kernel : Kernel
        Lowered with vectors of a few components unrolled.
    dtype, acc : {"float32", "float64"}
        Type of the variables and of the arithmetic per pair; type of sums in the state.
    chain : int
        Columns that are accumulated in `dtype`, at most, before they are joined to the state.
    name : str
        Prefix of the entry points.
    plain : Kernel, optional
        The same with terms as they were written, where those of `kernel` have been rewritten (`hoist.hoisted`).
    """
    if plain and [(r.fields, r.index) for r in plain.roots] != [(r.fields, r.index) for r in kernel.roots]:
        kernel, plain = plain, None
    return _Kernel(kernel, dtype, acc, chain, name, plain).source()


def rendered(spec: KernelSpec, name: str = "dred", unroll: int = 0) -> Source:
    """The CUDA C++ that computes a spec; vectors of at most `unroll` components are no loops (default: `_unrolled`)."""
    unroll = unroll or _unrolled(spec)
    kernel = lower(spec, unroll, hoist=True, approximate=True)
    plain = lower(spec, unroll) if any(root.posts or root.quick for root in kernel.roots) else None
    return render(kernel, spec.dtype, spec.acc, spec.chain, name, plain)


def _unrolled(spec: KernelSpec) -> int:
    """`UNROLL`; or `LOOPED`, where long vectors leave a thread one row if they are no loops, and several if they are.

    Not where the state would go to memory: that costs more than rows save.
    """
    many, few = UNROLL[spec.dtype], LOOPED[spec.dtype]

    def cut(unroll: int) -> Schedule:
        kernel = lower(spec, unroll, hoist=True, approximate=True)
        return schedule(kernel, np.dtype(spec.dtype).itemsize, spec.chain)

    between = any(few < node.dim <= many for part in spec.parts for node in toposort(part.formulas))
    if not between or cut(many).R > 1:
        return many
    loops = cut(few)
    return few if loops.R > 1 and not loops.wide else many
