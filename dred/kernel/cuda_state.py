"""The state in CUDA C++: running values and what joins them, the merging of splits, and rankings in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from dred.formula.node import J
from dred.kernel.cuda_schedule import THREADS, Schedule, added, steps_of
from dred.kernel.cuda_text import C_NAME, Lines, Put, Writer, literal, loop
from dred.kernel.ir import Expr, Kernel, Quick, Root, Slot, walk
from dred.reductions import NONE

LEAVES = ("state", "other", "stored")

# a list in order: (v, n) takes its place, the last one is lost
LIST = """\
__device__ __forceinline__ void NAME_insert(TYPE (&m)[PLACES], int (&q)[PLACES], TYPE v, int n) {
  #pragma unroll
  for (int p = 0; p < PLACES; p++) {
    const TYPE w = m[p];
    const int o = q[p];
    const bool before = NAME_before(w, o, v, n);
    m[p] = before ? v : w;
    q[p] = before ? n : o;
    v = before ? w : v;
    n = before ? o : n;
  }
}

"""
NOWHERE = 0x7FFFFFFF  # behind all columns of a panel

# ranked states of a row, `step` apart: values m, row numbers q
RANKING = """\
// a heap of the first `count` states, the last in order on top: (v, n) takes the top's place
__device__ __noinline__ void NAME_sink(TYPE* m, i64* q, const i64 step, const int count, const TYPE v, const i64 n) {
  int p = 0;
  for (int c = 1; c < count; c = 2 * p + 1) {
    if (c + 1 < count && NAME_before(m[(c + 1) * step], q[(c + 1) * step], m[c * step], q[c * step])) c++;
    if (!NAME_before(m[c * step], q[c * step], v, n)) break;
    m[p * step] = m[c * step];
    q[p * step] = q[c * step];
    p = c;
  }
  m[p * step] = v;
  q[p * step] = n;
}

// the heap becomes a list in order
__device__ __noinline__ void NAME_sort(TYPE* m, i64* q, const i64 step) {
  for (int t = PLACES - 1; t > 0; t--) {
    const TYPE v = m[t * step];
    const i64 n = q[t * step];
    m[t * step] = m[0];
    q[t * step] = q[0];
    NAME_sink(m, q, step, t, v, n);
  }
}

"""
UNITE = """\
// the first places of two lists in order, in place of the left one
__device__ __noinline__ void NAME_unite(TYPE* am, i64* aq, const i64 as, const TYPE* bm, const i64* bq, const i64 bs) {
  int a = 0, b = 0;  // how many of each there are
  while (a + b < PLACES) {
    const bool right = NAME_before(am[a * as], aq[a * as], bm[b * bs], bq[b * bs]);
    a += !right;
    b += right;
  }
  while (b > 0) {
    const int t = a + b - 1;
    const bool left = a > 0 && NAME_before(am[(a - 1) * as], aq[(a - 1) * as], bm[(b - 1) * bs], bq[(b - 1) * bs]);
    a -= left;
    b -= !left;
    am[t * as] = left ? am[a * as] : bm[b * bs];
    aq[t * as] = left ? aq[a * as] : bq[b * bs];
  }
}
"""


class State(Writer):
    """Roots of three sorts.

    Attributes
    ----------
    heads : list of Root
        Those whose fields other roots read. Others step, and are joined, while the fields of heads are what they were.
    rest : list of Root
        Those with running values that are no heads.
    rankings : list of Root
        Those that keep several places. In a split they are lists in registers, in order, where these hold them; else
        heaps in the partial state, the last place on top, which at its end are sorted.
    """

    def __init__(self, kernel: Kernel, s: Schedule, dtype: str, acc: str, name: str) -> None:
        self.steps = [e for root in kernel.roots for e in steps_of(root, s.wide)]
        super().__init__(kernel, s, dtype, self.steps)
        self.acc, self.A, self.name = acc, C_NAME[acc], name
        self.types = [field.stored(dtype, acc) for field in kernel.fields]
        self.running = ["int64" if field.number else dtype for field in kernel.fields]
        # indices of the first, or last, of their chain's columns: counted from the tile's first one
        self.local = {
            f
            for root in kernel.roots
            if (quick := self.quick(root)) and not quick.posts
            for f, e in zip(root.fields, quick.steps, strict=True)
            if e.op == "number_select" and e.args[1].op == "row" and e.args[1].attr == J
        }
        for f in self.local:
            self.running[f] = "int32"
        # references that stay as they are while a chain goes by
        self.still = {
            f
            for root in kernel.roots
            for f, e in zip(root.fields, steps_of(root, s.wide), strict=True)
            if e.op == "state" and e.attr.field == f
        }
        self.parted = added(kernel, s.wide) if s.part < s.chain else frozenset()
        self.merged = ["int64" if field.kind in ("count", "index") else acc for field in kernel.fields]
        # as results: numbers of rows or terms, or values of the compute type
        self.results = [C_NAME["int64" if t == "int64" else dtype] for t in self.types]
        self.rankings = [root for root in kernel.roots if root.places > 1]
        lent = {field for root in kernel.roots for field in self.read_by(root) if field not in root.fields}
        self.heads = [root for root in kernel.roots if lent & set(root.fields)]
        self.rest = [root for root in kernel.roots if root not in self.heads and root.places == 1]
        # values of the state that hang on fields of heads alone: all components share them
        lent |= {field for head in self.heads for field in head.fields}
        self.shared: set[int] = set()
        for e in walk([*self.steps, *(e for root in kernel.roots for e in (*root.steps, *root.merge))]):
            below = [a for a in e.args if a.id in self.stateful]
            if e.op in LEAVES or below:
                self.stateful.add(e.id)
                if (e.attr.field in lent) if e.op in LEAVES else all(a.id in self.shared for a in below):
                    self.shared.add(e.id)
        # what joining reads of heads
        self.factors = {root.fields: self.outermost(root.merge, self.of_heads) for root in self.rest}
        self.factors |= {root.fields: [] for root in self.heads}

    def quick(self, root: Root) -> Quick | None:
        """Its quick steps, where it goes by them."""
        return None if self.s.wide else root.quick

    def of_heads(self, e: Expr) -> bool:
        """Whether a value hangs on the state, and there on heads alone."""
        return e.id in self.shared

    @staticmethod
    def read_by(root: Root) -> list[int]:
        """The fields that a root reads."""
        return [e.attr.field for e in walk([*root.steps, *root.merge]) if e.op in LEAVES]

    @staticmethod
    def alike(roots: Iterable[Root]) -> list[Root]:
        """One root of each group that has the same fields, and therefore the same texts."""
        return list({root.fields: root for root in roots}.values())

    def components(self, root: Root) -> int:
        """Components of its fields."""
        return self.k.fields[root.fields[0]].size // root.places

    # -- running values ----------------------------------------------------------------------------------------------

    def names(self, root: Root, prefix: str = "run") -> list[str]:
        """Its values in row r of this thread."""
        return [f"{self.held(Slot(f, root.index, False), prefix)}[r]" for f in root.fields]

    def started(self, roots: Iterable[Root], prefix: str, types: Sequence[str]) -> tuple[Lines, Lines]:
        """Declarations of values, and statements that make those of a row the empty state's."""
        declared, started = Lines(), Lines()
        for root in roots:
            for f, name in zip(root.fields, self.names(root, prefix), strict=True):
                if prefix == "run" and f in self.still:
                    continue
                declared.append(f"{C_NAME[types[f]]} {name.removesuffix('[r]')}[{self.s.R}];")
                started.append(f"{name} = {self.identity(f, types[f])};")
        return declared, started

    def identity(self, field: int, dtype: str = "") -> str:
        """A value of the empty state; by default a running one."""
        dtype = dtype or self.running[field]
        return "-1" if dtype == "int32" else literal(self.k.fields[field].identity, dtype)

    def step(self, root: Root) -> Put:
        """One more pair."""
        if root.places > 1:
            return Put(root.terms, lambda values: self.ranked(root, values))
        ways = [self.way(f, e) for f, e in zip(root.fields, steps_of(root, self.s.wide), strict=True)]
        names = [f"{self.held(Slot(f, root.index, False), self.running_name(f))}[r]" for f in root.fields]

        def then(values: list[str]) -> Lines:
            steps = zip(root.fields, names, ways, values, strict=True)
            return [
                f"{name} = {way[1].format(value=value, name=name)};"
                for f, name, way, value in steps
                if f not in self.still
            ]

        return Put([e for e, _ in ways], then)

    def way(self, field: int, step: Expr) -> tuple[Expr, str]:
        """What a step computes, and what becomes of its value and the running one."""
        if field in self.local:  # the condition of a choice stands for the number that is chosen
            return step.args[0], f"{{value}} ? t{' + c' * (self.s.C > 1)} : {{name}}"
        if step.op in ("min", "max") and step.args[1].op == "state":  # which is never NaN
            return step.args[0], f"f{step.op}{self.f}({{value}}, {{name}})"
        return step, "{value}"

    def partial(self, field: int, component: str) -> str:
        """A row of the split's state, of row r of this thread."""
        return f"partial{field}[(i64)({component}) * pitch + {THREADS} * r]"

    # -- joining -----------------------------------------------------------------------------------------------------

    def merging(self, exprs: Sequence[Expr], leaf: Callable[[Expr], str], dtype: str) -> Lines:
        """Statements that compute `exprs` of two states; `leaf` names their components."""
        out: Lines = []
        open = frozenset(counter for e in exprs for counter in e.free)
        for e in self.pending(exprs, open, slots=False):
            if e.op in LEAVES:
                self.scopes[-1][e.id] = leaf(e)
            else:
                value, name = self.operation(e, dtype), self.fresh("t")
                out.append(f"const {self.type(e, dtype)} {name} = {value};")
                self.scopes[-1][e.id] = name
        return out

    def converted(self, field: int, name: str, dtype: str) -> str:
        """A component of type `dtype` as it is merged."""
        return name if dtype == self.merged[field] else f"({C_NAME[self.merged[field]]}){name}"

    def texts(self, exprs: Iterable[Expr]) -> list[str]:
        return [self.text(e, self.acc) for e in exprs]

    def joining(self, root: Root) -> Lines:
        """The function that joins one component of a state to another's."""
        factors = self.factors[root.fields]
        params = [f"{C_NAME[self.types[f]]}& a{f}" for f in root.fields]
        params += [f"const {C_NAME[self.merged[f]]} b{f}" for f in root.fields]
        params += [f"const {self.type(e, self.acc)} h{n}" for n, e in enumerate(factors)]
        self.scopes.append({e.id: f"h{n}" for n, e in enumerate(factors)})
        out = [f"__device__ __forceinline__ void {self.name}_join{root.fields[0]}({', '.join(params)}) {{"]
        out += self.merging(root.merge, self.leaf(self.types, self.merged), self.acc)
        out += [f"a{f} = {value};" for f, value in zip(root.fields, self.texts(root.merge), strict=True)]
        self.scopes.pop()
        return [*out, "}", ""]

    def leaf(self, left: Sequence[str], right: Sequence[str]) -> Callable[[Expr], str]:
        """Names of components as they are merged: of a{field} and b{field}, whose types by field are given."""

        def name(e: Expr) -> str:
            f, (side, types) = e.attr.field, ("a", left) if e.op == "state" else ("b", right)
            return self.converted(f, f"{side}{f}", types[f])

        return name

    def running_leaf(self, other: Callable[[Slot], str]) -> Callable[[Expr], str]:
        """The same of heads while pairs are met: the state's, and what joins it."""

        def name(e: Expr) -> str:
            f = e.attr.field
            if e.op == "state":
                return self.converted(f, f"{self.held(e.attr, 'acc')}[r]", self.types[f])
            return self.converted(f, other(Slot(f, e.attr.index, False)), self.running[f])

        return name

    def run(self, slot: Slot) -> str:
        """A running value of row r, as others read it."""
        name = f"{self.held(slot)}[r]"
        if slot.field in self.local:
            return f"({name} < 0 ? {literal(NONE, 'int64')} : column0 + j0 + {name})"
        return name

    def others(self, root: Root) -> list[str]:
        """Its running values of row r, as they join the state."""
        return [self.run(Slot(f, root.index, False)) for f in root.fields]

    def join(self, root: Root, state: Sequence[str], other: Sequence[str]) -> str:
        """Join `other` to `state`; what is read of heads has been written."""
        values = [*state, *other, *self.texts(self.factors[root.fields])]
        return f"{self.name}_join{root.fields[0]}({', '.join(values)});"

    def joins(self, roots: Sequence[Root], other: Callable[[Slot], str] | None = None) -> Lines:
        """Join values, by default the running ones, of row r to the state in registers."""
        other = other or self.run
        roots = [root for group in (self.rest, self.heads) for root in group if root in roots]
        self.scopes.append({})
        factors = [e for root in roots for e in self.factors[root.fields]]
        out = self.merging(factors, self.running_leaf(other), self.acc)
        for root in roots:
            values = [other(Slot(f, root.index, False)) for f in root.fields]
            out.append(self.join(root, self.names(root, "acc"), values))
        self.scopes.pop()
        return out

    # -- splits ------------------------------------------------------------------------------------------------------

    def merge_splits(self, roots: Sequence[Root], tile: int) -> Lines:
        """Join the splits of a tile's rows to the state, one component of the roots' groups after another."""
        out: Lines = []
        for root in self.alike(roots):
            row = self.merge_rankings(root) if root.places > 1 else self.merge_values(root)
            head = f"int n = threadIdx.x; n < {tile} && item[1] + n < item[2]; n += {THREADS}"
            rows = loop(head, ["const i64 row = batch * M + item[1] + n;", *row])
            out += loop(f"i64 k = blockIdx.y; k < {self.components(root)}; k += gridDim.y", rows)
        return out

    def merge_values(self, root: Root) -> Lines:
        heads = [head for head in self.alike(self.heads) if set(head.fields) & set(self.read_by(root))]
        heads = [head for head in heads if head.fields != root.fields]
        place = {f: "k" for f in root.fields} | {f: "0" for head in heads for f in head.fields}
        load = [
            f"{C_NAME[t := self.types[f]]} a{f} = fresh ? {self.identity(f, t)} : state{f}[{k} * state_pitch + row];"
            for f, k in place.items()
        ]
        pair = [
            f"const {C_NAME[self.types[f]]} b{f} = partial{f}[((i64)s * {self.k.fields[f].size} + {k}) * pitch + n];"
            for f, k in place.items()
        ]
        self.scopes.append({})
        pair += self.merging(self.factors[root.fields], self.leaf(self.types, self.types), self.acc)
        pair += [self.join(r, [f"a{f}" for f in r.fields], [f"b{f}" for f in r.fields]) for r in (root, *heads)]
        self.scopes.pop()
        store = [
            f"if (out{f}) {self.result(f, 'k', f'a{f}')} else state{f}[k * state_pitch + row] = a{f};"
            for f in root.fields
        ]
        return [*load, *loop("int s = 0; s < splits; s++", pair), *store]

    def result(self, field: int, component: str, value: str) -> str:
        """A component of a row as it is read off the state: the number of no row is -1."""
        if self.types[field] == "int64":
            value = f"{value} == {literal(NONE, 'int64')} ? -1 : {value}"
        elif self.types[field] != self.dtype:
            value = f"({self.results[field]}){value}"
        return f"out{field}[row * {self.k.fields[field].size} + {component}] = {value};"

    # -- rankings ----------------------------------------------------------------------------------------------------

    def ranking(self, root: Root) -> Lines:
        """The functions of a ranking."""
        assert root.before is not None
        value, number = root.fields
        params = ", ".join(f"const {t} {side}{f}" for side in "ab" for f, t in ((value, self.T), (number, "i64")))
        self.scopes.append({})
        out = ["// whether b comes before a"]
        out += [f"__device__ __forceinline__ bool {self.ranks(root)}_before({params}) {{"]
        out += self.merging([root.before], self.leaf(self.merged, self.merged), self.dtype)
        out += [f"return {self.text(root.before)};", "}", ""]
        self.scopes.pop()
        if self.s.group > 1 and root.near is not None:
            self.scopes.append({})
            out += ["// whether value b may come before a"]
            params = f"const {self.T} a{value}, const {self.T} b{value}"
            out += [f"__device__ __forceinline__ bool {self.ranks(root)}_near({params}) {{"]
            out += self.merging([root.near], self.leaf(self.merged, self.merged), self.dtype)
            out += [f"return {self.text(root.near)};", "}", ""]
            self.scopes.pop()
        text = (LIST if self.s.listed else RANKING) + UNITE
        for word, meaning in {"NAME": self.ranks(root), "TYPE": self.T, "PLACES": str(root.places)}.items():
            text = text.replace(word, meaning)
        return [*out, *(line.strip() for line in text.splitlines()), ""]

    def ranks(self, root: Root) -> str:
        """Prefix of its functions."""
        return f"{self.name}_rank{root.fields[0]}"

    def ranked(self, root: Root, values: Sequence[str]) -> Lines:
        """Compare the candidate with the last place, which registers hold, and put it there."""
        if self.s.listed:
            lists = [f"{name}[r]" for name in self.lists(root)]
            last = [f"{name}[{root.places - 1}]" for name in lists]
            number = f"(int)(j0 + t{' + c' * (self.s.C > 1)})"
            test = f"{self.ranks(root)}_before({', '.join([*last, values[0], number])})"
            return [f"if ({test}) {self.ranks(root)}_insert({', '.join([*lists, values[0], number])});"]
        places, component = self.names(root, "acc"), self.component(root.index)
        tops = [self.partial(f, component) for f in root.fields]
        step = f"{self.components(root)} * pitch"
        sink = ", ".join([*(f"&{top}" for top in tops), step, str(root.places), *values])
        return [
            f"if ({self.ranks(root)}_before({', '.join([*places, *values])})) {{",
            f"{self.ranks(root)}_sink({sink});",
            *(f"{place} = {top};" for place, top in zip(places, tops, strict=True)),
            "}",
        ]

    def lists(self, root: Root) -> list[str]:
        """The values and the columns of a ranking, in registers: by row, and by place."""
        return [self.held(Slot(f, root.index, False), "list") for f in root.fields]

    def listed(self) -> tuple[Lines, Lines]:
        """Declarations of the lists, and statements that empty those of row r."""
        declared: Lines = []
        emptied: Lines = []
        for root in self.rankings:
            value, number = self.lists(root)
            size = f"[{self.s.R}][{root.places}]"
            declared += [f"{self.T} {value}{size};", f"int {number}{size};"]
            start = [f"{value}[r][p] = {self.identity(root.fields[0])};", f"{number}[r][p] = {NOWHERE};"]
            emptied += loop(f"int p = 0; p < {root.places}; p++", start, "all")
        return declared, emptied

    def last(self, root: Root) -> str:
        """The value in the last place of row r."""
        return f"{self.lists(root)[0]}[r][{root.places - 1}]" if self.s.listed else self.names(root, "acc")[0]

    def sort_rankings(self) -> Lines:
        """Heaps become lists in order; those in registers are written down."""
        out: Lines = []
        if self.s.listed:
            for root in self.rankings:
                (value, number), (values, numbers) = root.fields, self.lists(root)
                place = f"{self.components(root)} * p + {self.component(root.index)}"
                column = f"{numbers}[r][p]"
                body = [
                    f"{self.partial(value, place)} = {values}[r][p];",
                    f"{self.partial(number, place)} = "
                    f"{column} == {NOWHERE} ? {literal(NONE, 'int64')} : column0 + {column};",
                ]
                out += loop(self.every_row, loop(f"int p = 0; p < {root.places}; p++", body, "all"), "all")
            return out
        for root in self.alike(self.rankings):
            dim = self.components(root)
            tops = ", ".join(f"&{self.partial(f, 'k')}" for f in root.fields)
            sort = f"{self.ranks(root)}_sort({tops}, {dim} * pitch);"
            out += loop(f"int k = 0; k < {dim}; k++", loop(self.every_row, [sort], 1), 1)
        return out

    def merge_rankings(self, root: Root) -> Lines:
        dim = self.components(root)
        states = [f"state{f} + k * state_pitch + row" for f in root.fields]
        parts = [f"partial{f} + ((i64)s * {self.k.fields[f].size} + k) * pitch + n" for f in root.fields]
        values = [*states, f"{dim} * state_pitch", *parts, f"{dim} * pitch"]
        places = f"i64 c = k; c < {dim * root.places}; c += {dim}"
        at = {f: f"state{f}[c * state_pitch + row]" for f in root.fields}
        empty = [f"{at[f]} = {self.identity(f, self.types[f])};" for f in root.fields]
        store = [f"if (out{f}) {self.result(f, 'c', at[f])}" for f in root.fields]
        return [
            *loop(places, [f"if (fresh) {text}" for text in empty]),
            *loop("int s = 0; s < splits; s++", [f"{self.ranks(root)}_unite({', '.join(values)});"]),
            *loop(places, store),
        ]
