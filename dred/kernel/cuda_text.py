"""Expressions of the scalar IR as CUDA C++ statements, each in the loop that it belongs to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from dred.formula.construct import nearest
from dred.formula.node import I, J
from dred.kernel.coefficients import EXP2S
from dred.kernel.cuda_schedule import THREADS, Schedule
from dred.kernel.ir import FOLDS, IJ, Expr, Index, Kernel, Loop, Slot, maximal, walk
from dred.kernel.primitives import PRIMITIVES

Lines = list[str]
Open = frozenset[Loop]
CLOSED: Open = frozenset()
C_NAME = {"float32": "float", "float64": "double", "int64": "i64", "int32": "int"}
_BITS = {
    "float32": ("__int_as_float(0x7f800000)", "__int_as_float(0x7fffffff)"),
    "float64": ("__longlong_as_double(0x7ff0000000000000ll)", "__longlong_as_double(0x7ff8000000000000ll)"),
}

# A function that expressions call: on a device an instruction, elsewhere the C library's. Several kernels of one text
# have it once.
FUNCTION = """\
#ifndef DRED_NAME
#define DRED_NAME
__device__ __forceinline__ float dred_NAME(const float x) {
#ifdef __CUDACC_RTC__
float y;
asm("INSTRUCTION.f32 %0, %1;" : "=f"(y) : "f"(x));
return y;
#else
return NAMEf(x);
#endif
}

__device__ __forceinline__ double dred_NAME(const double x) {
DOUBLE
}
#endif

"""
# the nearest integer by its bits, a polynomial, and the exponent by bits; 0 below 2^-1022, infinite from 2^1022 on and
# of NaN: a negative one has a high word above that of -inf
EXP2 = "\n".join(
    [
        "const double n = x + 6755399441055744.0, r = x - (n - 6755399441055744.0);",
        f"double p = {EXP2S['float64'][-1]!r};",
        *(f"p = fma(p, r, {c!r});" for c in (*EXP2S["float64"][-2::-1], 1.0)),
        "const i64 bits = __double_as_longlong(p) + (__double_as_longlong(n) << 52);",
        "const int high = (int)(__double_as_longlong(x) >> 32);",
        "const double y = __longlong_as_double(bits);",
        f"return (high & 0x7fffffff) < 0x408ff000 ? y : high <= -0x100000 ? 0.0 : {_BITS['float64'][0]};",
    ]
)
# max(x, 0), where NaN stays NaN
RAMP = """\
#ifndef DRED_ramp
#define DRED_ramp
__device__ __forceinline__ float dred_ramp(const float x) {
#if defined(__CUDACC_RTC__) && __CUDA_ARCH__ >= 800
float y;
asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(y) : "f"(x));
return y;
#else
return x < 0.0f ? 0.0f : x;
#endif
}

__device__ __forceinline__ double dred_ramp(const double x) {
return x < 0.0 ? 0.0 : x;
}
#endif

"""
PRELUDE = {
    "ramp": RAMP,
} | {
    f"approx_{name}": FUNCTION.replace("NAME", name).replace("INSTRUCTION", instruction).replace("DOUBLE", double)
    for name, instruction, double in (
        ("exp2", "ex2.approx.ftz", EXP2),
        ("sqrt", "sqrt.approx", "return sqrt(x);"),
        ("rsqrt", "rsqrt.approx.ftz", "return rsqrt(x);"),
    )
}


def literal(value: Fraction | float, dtype: str) -> str:
    """A constant, rounded once to the type and printed so that it is read back exactly."""
    if dtype == "int64":
        return f"{int(value)}ll"
    x = np.dtype(dtype).type(nearest(value, dtype))
    infinite, nan = _BITS[dtype]
    if np.isnan(x):
        return nan
    if np.isinf(x):
        return f"(-{infinite})" if x < 0 else infinite
    text = str(x) + ("f" if dtype == "float32" else "")
    return f"({text})" if text.startswith("-") else text


def loop(head: str, body: Iterable[str], unroll: str | int = "") -> Lines:
    """`for (head)` around `body`; `unroll`: "" is the compiler's choice, "all", or a number of copies."""
    pragma = {"": [], "all": ["#pragma unroll"]}.get(str(unroll), [f"#pragma unroll {unroll}"])
    return [*pragma, f"for ({head}) {{", *body, "}"]


def over(component: Loop, body: Iterable[str], unroll: str | int = "") -> Lines:
    """A loop over components."""
    k = f"k{component.depth}"
    return loop(f"int {k} = 0; {k} < {component.length}; {k}++", body, unroll)


def indented(lines: Iterable[str]) -> str:
    """Lines as text, indented by their braces."""
    out, depth = [], 0
    for line in lines:
        depth -= line.startswith("}")
        out.append("  " * depth * (line[:1] != "#" or line.startswith("#pragma")) + line)
        depth += line.count("{") - line.count("}") + line.startswith("}")
    return "\n".join(out) + "\n"


class Put(NamedTuple):
    """Values, and the statements to make of their names."""

    exprs: Sequence[Expr]
    then: Callable[[list[str]], Lines]


class Writer:
    """Writes expressions in order of creation; `scopes` hold the names of what has been written.

    `direct` computes from the variables (records and what varies with nothing); `phase` computes R rows x C columns at
    pair level, from the records.
    """

    def __init__(self, kernel: Kernel, s: Schedule, dtype: str, steps: Sequence[Expr]) -> None:
        self.k, self.s, self.dtype, self.T = kernel, s, dtype, C_NAME[dtype]
        self.f = "f" if dtype == "float32" else ""
        self.per = 16 // np.dtype(dtype).itemsize  # values of a 16-byte word
        self.words = -(-kernel.size_j // self.per)
        self.slot_i = {e.id: n for e, n in kernel.slots_i}
        self.slot_j = {e.id: n for e, n in kernel.slots_j}
        self.at, self.block = ("[r]", f"[{s.R}]") if s.C == 1 else ("[r][c]", f"[{s.R}][{s.C}]")
        self.every_row = f"int r = 0; r < {s.R}; r++"
        self.scopes: list[dict[int, str]] = [{}]
        self.count = 0
        self.parted: frozenset[int] = frozenset()  # fields whose running values are those of a part of a chain
        self.level: dict[int, int] = {}
        self.stateful: set[int] = set()
        for e in walk(steps):
            self.level[e.id] = max((self.level[a.id] for a in e.args), default=0) + (e.op in FOLDS)
            if e.op in ("state", "stored") or any(a.id in self.stateful for a in e.args):
                self.stateful.add(e.id)

    # -- names and operands ----------------------------------------------------------------------------------------

    def fresh(self, prefix: str) -> str:
        self.count += 1
        return f"{prefix}{self.count}"

    def known(self, e: Expr) -> str | None:
        return next((scope[e.id] for scope in reversed(self.scopes) if e.id in scope), None)

    def text(self, e: Expr, dtype: str = "") -> str:
        """An operand: a literal or a name."""
        if e.op == "const":
            return literal(e.attr, dtype or self.dtype)
        if e.op == "whole":
            return f"{e.attr}ll"
        if e.op == "counter":
            return f"({self.T})({self.component(e.attr)})"
        name = self.known(e)
        if name is None:
            raise AssertionError(f"{e.op} is read before it is written")
        return name

    def type(self, e: Expr, dtype: str = "") -> str:
        return {"value": C_NAME[dtype or self.dtype], "truth": "bool", "number": "i64"}[e.result]

    def operation(self, e: Expr, dtype: str = "") -> str:
        dtype = dtype or self.dtype
        f, T = ("f" if dtype == "float32" else ""), C_NAME[dtype]
        return PRIMITIVES[e.op].cuda.format(*(self.text(a, dtype) for a in e.args), f=f, T=T)

    def held(self, slot: Slot, prefix: str = "run") -> str:
        """Name of a component of a field, of the running state or of another one."""
        several = self.k.fields[slot.field].size > 1
        return f"{prefix}{slot.field}" + (f"_{slot.index.offset}" if several else "")

    def running_name(self, field: int) -> str:
        """What the running values of a field begin with, while pairs are met."""
        return "part" if field in self.parted else "run"

    @staticmethod
    def terms(fold: Expr) -> tuple[Expr, ...]:
        """What one turn of a fold reads: the factors of a product, which is added by fma."""
        body = fold.args[0]
        return body.args if fold.op == "fold" and body.op == "mul" else (body,)

    def added(self, fold: Expr, total: str) -> str:
        values = [self.text(e) for e in self.terms(fold)]
        if values[1:]:
            return f"{total} = fma{self.f}({values[0]}, {values[1]}, {total});"
        return f"{total} = {PRIMITIVES[FOLDS[fold.op][0]].cuda.format(values[0], total)};"

    def start(self, fold: Expr) -> str:
        """Where the running value of a fold begins."""
        return literal(FOLDS[fold.op][1], self.dtype)

    def adding(self, fold: Expr, total: str) -> Callable[[list[str]], Lines]:
        return lambda _: [self.added(fold, total)]

    @staticmethod
    def assigning(target: str) -> Callable[[list[str]], Lines]:
        return lambda values: [f"{target} = {values[0]};"]

    @staticmethod
    def component(index: Index) -> str:
        parts = [f"k{counter.depth}" if c == 1 else f"{c} * k{counter.depth}" for counter, c in index.terms]
        return " + ".join(parts + ([str(index.offset)] if index.offset or not parts else []))

    @staticmethod
    def place(e: Expr, offset: int) -> str:
        """Where a slot lies in its record, over the counters of its loops."""
        parts, stride = [], 1
        for counter in sorted(e.free, reverse=True):
            parts.append(f"k{counter.depth}" + (f" * {stride}" if stride > 1 else ""))
            stride *= counter.length
        return " + ".join(([str(offset)] if offset or not parts else []) + parts[::-1])

    def pending(self, roots: Iterable[Expr], open: Open, slots: bool) -> list[Expr]:
        """What is still to be written below `roots` and lies inside no other than the open loops, arguments first."""
        seen: dict[int, Expr] = {}
        stack = list(roots)
        while stack:
            e = stack.pop()
            if e.id in seen or e.op in ("const", "whole", "counter") or self.known(e) is not None:
                continue
            seen[e.id] = e
            if not (slots and (e.id in self.slot_i or e.id in self.slot_j)):
                stack.extend(e.args)
        return [seen[n] for n in sorted(seen) if seen[n].free <= open]

    # -- straight from the variables -------------------------------------------------------------------------------

    def direct(self, roots: Sequence[Expr], open: Open = CLOSED) -> Lines:
        """Statements that compute `roots`, or what of them lies outside the loops not open, for row i and column j."""
        out: Lines = []
        for e in self.pending(roots, open, slots=False):
            if e.op == "load":
                row = {0: "", I: f"i * {e.attr.dim} + ", J: f"j * {e.attr.dim} + "}[e.attr.axes]
                name = self.fresh("in")
                out.append(f"const {self.T} {name} = v{e.attr.ind}[{row}{self.component(e.attr.index)}];")
            elif e.op == "state":
                name = self.held(e.attr, "again")
            elif e.op == "row":
                name = self.fresh("n")
                out.append(f"const i64 {name} = {'row0 + i' if e.attr == I else 'column0 + j'};")
            elif e.op in FOLDS:
                name = self.fresh("f")
                self.scopes.append({})
                body = [*self.direct(self.terms(e), open | {e.attr}), self.added(e, name)]
                self.scopes.pop()
                out += [f"{self.T} {name} = {self.start(e)};", *over(e.attr, body, 4)]
            else:
                name = self.fresh("t")
                out.append(f"const {self.type(e)} {name} = {self.operation(e)};")
            self.scopes[-1][e.id] = name
        return out

    def stored(self, slots: Sequence[tuple[Expr, int]], target: Callable[[str], str]) -> Lines:
        """Statements that store slots; `target` makes the left side of a place in the record."""
        out: Lines = []
        for e, offset in slots:
            out += [*self.direct([e]), *self.nested(e, sorted(e.free), CLOSED, target(self.place(e, offset)))]
        return out

    def nested(self, e: Expr, counters: Sequence[Loop], open: Open, target: str) -> Lines:
        """Store `e` inside its loops; what lies outside one is written before it begins."""
        if not counters:
            return [f"{target} = {self.text(e)};"]
        self.scopes.append({})
        open |= {counters[0]}
        body = [*self.direct([e], open), *self.nested(e, counters[1:], open, target)]
        self.scopes.pop()
        return over(counters[0], body)

    # -- pair level ------------------------------------------------------------------------------------------------

    def phase(
        self, puts: Sequence[Put], open: Open, bounded: bool = False, around: tuple[Lines, Lines] | None = None
    ) -> Lines:
        """Loops over columns and rows around the values of `puts` and what is made of them, when all are there;
        bounded: by `left`; around: what stands before and behind each chain of these columns."""
        once: Lines = []
        column: Lines = ["if (c >= left) break;"] if bounded and self.s.C > 1 else []
        pair: Lines = []
        self.scopes.append({})
        for put in puts:
            for e in self.pending(put.exprs, open, slots=True):
                self.scopes[-1][e.id] = self.read(e, once, column, pair)
        pair += [line for put in puts for line in put.then([self.text(e) for e in put.exprs])]
        self.scopes.pop()
        body = [*column, *loop(self.every_row, pair, "all")]
        C, chain = self.s.C, self.s.chain
        if around:
            before, behind = around
            chained = [*before, *loop(f"int c = h; c < h + {chain}; c++", body, "all"), *behind]
            return once + loop(f"int h = 0; h < {C}; h += {chain}", chained, "all")
        return once + (body if C == 1 else loop(f"int c = 0; c < {C}; c++", body, "all"))

    def read(self, e: Expr, once: Lines, column: Lines, pair: Lines) -> str:
        """Write `e` at the level that it belongs to; returns its name."""
        if e.op in ("state", "stored"):
            return f"{self.held(e.attr, self.running_name(e.attr.field) if e.op == 'state' else 'acc')}[r]"
        if e.id in self.slot_i or e.id in self.slot_j:
            name = self.read_row(e, once) if e.id in self.slot_i else self.read_column(e, column)
            return f"({name} != 0)" if e.boolean else name
        if e.op == "row":
            return self.row_number(e)
        level = pair if e.axes == IJ or e.id in self.stateful or e.result == "number" else once
        name = self.fresh("in" if e.op == "load" else "t")
        value = f"v{e.attr.ind}[{self.component(e.attr.index)}]" if e.op == "load" else self.operation(e)
        level.append(f"const {self.type(e)} {name} = {value};")
        return name

    def row_number(self, e: Expr) -> str:
        """The number of row r of this thread, or of the column at hand."""
        if e.attr == I:
            return f"(row0 + item[1] + threadIdx.x + {THREADS} * r)"
        return f"(column0 + j0 + {'t' if self.s.C == 1 else '(t + c)'})"

    def read_row(self, e: Expr, once: Lines) -> str:
        name = self.fresh("x")
        once += [f"{self.T} {name}[{self.s.R}];", *loop(self.every_row, [f"{name}[r] = {self.far_row(e)};"], "all")]
        return f"{name}[r]"

    def far_row(self, e: Expr) -> str:
        """A component of the record of row r, in memory."""
        return f"xs[(i64)({self.place(e, self.slot_i[e.id])}) * pitch + {THREADS} * r]"

    def read_column(self, e: Expr, column: Lines) -> str:
        s, offset = self.s, self.slot_j[e.id]
        t = "t" if s.C == 1 else "(t + c)"
        if s.columns == "packed":
            word, part = divmod(offset, self.per)
            if -1 - word not in self.scopes[-1]:  # a word has no expression of its own
                name = self.scopes[-1][-1 - word] = self.fresh("y")
                column.append(f"const {self.T}{self.per} {name} = tile[{t} * {self.words} + {word}];")
            return f"{self.scopes[-1][-1 - word]}.{'xyzw'[part]}"
        name, place = self.fresh("y"), self.place(e, offset)
        if s.columns == "memory":
            source = f"ys[(i64)({place}) * ypitch + j0 + {t}]"
        else:
            source = f"tile[{self.in_block(place, 't', 'c')}]"
        column.append(f"const {self.T} {name} = {source};")
        return name

    def in_block(self, place: str, t: str, c: str) -> str:
        """Index into a tile whose records lie C side by side, of column t + c."""
        if self.s.C == 1:
            return f"{t} * {self.k.size_j} + {place}"
        return f"({t} / {self.s.C} * {self.k.size_j} + {place}) * {self.s.C} + {c}"

    def kept(self, exprs: Iterable[Expr], open: Open) -> Lines:
        """Pair-level values kept in registers, for the loops that follow."""
        names = {e: self.fresh("q") for e in exprs}
        if not names:
            return []
        puts = [Put([e], self.assigning(name + self.at)) for e, name in names.items()]
        out = [f"{self.type(e)} {name}{self.block};" for e, name in names.items()] + self.phase(puts, open)
        self.scopes[-1].update({e.id: name + self.at for e, name in names.items()})
        return out

    def paired(self, e: Expr) -> bool:
        """Whether a value has to be computed at every pair, and is none of the state's."""
        return e.axes == IJ and e.id not in self.stateful

    def outermost(self, roots: Iterable[Expr], want: Callable[[Expr], bool]) -> list[Expr]:
        """The maximal values below `roots` that have no name and that `want` accepts."""

        def named(e: Expr) -> bool:
            return e.id in self.slot_i or e.id in self.slot_j or self.known(e) is not None

        return [e for e in maximal(list(roots), lambda e: named(e) or want(e)) if not named(e)]

    def declared(self, name: str, start: str) -> Lines:
        """A block of running values, all the same at first."""
        if start == literal(0.0, self.dtype):
            return [f"{self.T} {name}{self.block} = {{}};"]
        fill = loop(self.every_row, [f"{name}{self.at} = {start};"], "all")
        fill = fill if self.s.C == 1 else loop(f"int c = 0; c < {self.s.C}; c++", fill, "all")
        return [f"{self.T} {name}{self.block};", *fill]

    def folds(self, roots: Sequence[Expr], open: Open) -> Lines:
        """The component loops that `roots` read, in order of dependence; equal ones are one loop."""
        groups: dict[tuple[int, Loop], list[Expr]] = {}
        for e in self.pending(roots, open, slots=True):
            if e.op in FOLDS and e.id not in self.slot_i and e.id not in self.slot_j:
                groups.setdefault((self.level[e.id], e.attr), []).append(e)
        out: Lines = []
        for (_, counter), group in sorted(groups.items()):
            terms = [x for e in group for x in self.terms(e)]
            out += self.kept(self.outermost(terms, lambda e: self.paired(e) and e.free <= open), open)
            names = {e: self.fresh("f") for e in group}
            inner = open | {counter}
            self.scopes.append({})
            body = self.folds(terms, inner)
            unroll = 1 if body else self.s.folded  # loops in loops have enough to do
            puts = [Put(self.terms(e), self.adding(e, name + self.at)) for e, name in names.items()]
            body += self.phase(puts, inner)
            self.scopes.pop()
            out += [line for e, name in names.items() for line in self.declared(name, self.start(e))]
            out += over(counter, body, unroll)
            self.scopes[-1].update({e.id: name + self.at for e, name in names.items()})
        return out
