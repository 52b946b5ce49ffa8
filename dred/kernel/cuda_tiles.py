"""The pairs of a tile in CUDA C++: chains of columns by quick steps, and what is done again."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from dred.formula.node import I
from dred.kernel.cuda_schedule import THREADS, Schedule
from dred.kernel.cuda_state import State
from dred.kernel.cuda_text import C_NAME, CLOSED, Lines, Open, Put, literal, loop
from dred.kernel.ir import Expr, Kernel, Post, Root, Slot


class Tiles(State):
    """The text that meets all pairs of a tile, where the state is in registers.

    Attributes
    ----------
    plain : State or None
        The same roots as they were before their terms were rewritten: where the sums of a chain are not finite, or
        quick steps do not hold, it is done again by these, for single rows and straight from the variables.
    redone : list of Root
        The roots that this may happen to.
    posts : dict of (scale, number of an expression) to str
        The name of what sums are multiplied with.
    """

    def __init__(self, kernel: Kernel, s: Schedule, dtype: str, acc: str, name: str, plain: Kernel | None) -> None:
        super().__init__(kernel, s, dtype, acc, name)
        self.plain = State(plain, s, dtype, acc, name) if plain else None
        self.redone = [root for root in kernel.roots if plain and (root.posts or self.quick(root))]
        self.infinite = literal(float("inf"), dtype)
        self.infinite_sum = literal(float("inf"), acc)
        self.posts: dict[tuple[float, int], str] = {}

    # -- what sums are multiplied with -----------------------------------------------------------------------------

    def posted(self, root: Root) -> list[Post | None]:
        """For each field of a root, what its sum is multiplied with."""
        quick = self.quick(root)
        return list((quick.posts if quick else root.posts) or [None] * len(root.fields))

    def row_factors(self) -> Lines:
        """The factors of this thread's rows; `never` marks the rows where they are no numbers."""
        posts = [post for root in self.redone for post in self.posted(root) if post and post.factor]
        posts = [post for post in posts if post.factor and not post.factor.free]
        if not posts or self.s.wide:
            return []
        out = ["// what sums are multiplied with; rows where that is no number", "unsigned never = 0;"]
        for post in posts:
            assert post.factor is not None
            key = post.scale, post.factor.id
            if key in self.posts:
                continue
            name = self.fresh("h")
            lines, text = self.row_value(post.factor)
            value = self.times(post.scale, text)
            own = post.factor.axes & I
            self.posts[key] = f"{name}[r]" if own else name
            out += [f"{self.A} {name}[{self.s.R}];"] if own else []
            row = [
                *lines, f"{'' if own else f'{self.A} '}{self.posts[key]} = {value};",
                f"if (!({self.abs_sum(self.posts[key])} < {self.infinite_sum})) {{",
                f"never |= {'1u << r' if own else f'{(1 << self.s.R) - 1}u'};",
                f"{self.posts[key]} = {literal(0.0, self.acc)};",
                "}",
            ]  # fmt: skip
            out += loop(self.every_row, row, "all") if own else row
        return out

    def row_value(self, e: Expr) -> tuple[Lines, str]:
        """Statements before, and the text of, a value of row r: one of its record, or what varies with nothing."""
        once: Lines = []
        if e.op not in ("const", "whole", "counter") and self.known(e) is None:
            for part in self.pending([e], frozenset(e.free), slots=True):
                self.scopes[-1][part.id] = self.read(part, once, once, once)
        return once, self.text(e)

    def times(self, scale: float, factor: str) -> str:
        """A factor, in the accumulator's type."""
        wide = factor if self.T == self.A else f"({self.A}){factor}"
        return wide if scale == 1.0 else f"{literal(scale, self.acc)} * {wide}"

    def weighed(self, post: Post | None, run: str) -> str:
        """A running value as it is added to the state."""
        wide = run if self.T == self.A else f"({self.A}){run}"
        if post is None or (post.factor is None and post.scale == 1.0):
            return wide
        factor = literal(post.scale, self.acc) if post.factor is None else self.posts[post.scale, post.factor.id]
        return f"{wide} * {factor}"

    def abs_sum(self, text: str) -> str:
        return f"fabs{'f' if self.acc == 'float32' else ''}({text})"

    # -- chains ------------------------------------------------------------------------------------------------------

    def chains(self) -> Lines:
        """Chains of columns in registers, each joined to the state; the last, shorter one by a loop with a bound."""
        s = self.s
        roots = [*self.rest, *self.heads]
        runs, starts = self.started(roots, "run", self.running)
        left, full, rest = (", const int left", f", {s.C}", f", min({s.C}, count - t)") if s.C > 1 else ("", "", "")
        passes = {"columns": [self.step(root) for root in roots]}
        ranked = [self.step(root) for root in self.rankings]
        if s.group > 1:
            passes["columns"] += [self.best(root) for root in self.rankings]
            runs += [f"{self.T} {self.best_of(root)}[{s.R}];" for root in self.rankings]
        if s.group > s.C:
            passes["ranks"] = ranked
        elif s.group == 1:
            passes["columns"] += ranked
        parts = self.parts(roots)
        runs += [f"{C_NAME[self.running[slot.field]]} {self.held(slot, 'part')}[{s.R}];" for slot in parts]
        chain = [*runs, *(loop(self.every_row, starts, "all") if starts else [])]
        for name, puts in passes.items():
            exprs = [e for put in puts for e in put.exprs]
            self.scopes.append({})
            body = self.folds(exprs, CLOSED)
            if 1 < s.group == s.C:  # the values of a group are in registers
                body += [*self.emptied(), *self.phase(puts, CLOSED, bounded=True)]
                body += self.if_some(self.phase(ranked, CLOSED, bounded=True))
            else:
                body += self.phase(puts, CLOSED, bounded=True)
            self.scopes.pop()
            chain += [f"const auto {name} = [&](const int t{left}) {{", *body, "};"]
        every = [f"{name}(t{rest});" for name in passes]
        group = [f"columns(c0 + t{full});"]
        rest_of = loop(f"int t = c0; t < count; t += {s.C}", every, 1)
        if self.parted:
            few = loop(f"int t = h; t < min(h + {s.part}, count); t += {s.C}", every, 1)
            rest_of = loop(f"int h = c0; h < count; h += {s.part}", self.summed(parts, few), 1)
        if "ranks" in passes:  # a group is a part
            whole = loop(f"int t = 0; t < {s.chain}; t += {s.group}", self.summed(parts, self.grouped(full)), 1)
        elif self.parted:
            group = loop(f"int t = h; t < h + {s.part}; t += {s.C}", group, s.unroll)
            whole = loop(f"int h = 0; h < {s.chain}; h += {s.part}", self.summed(parts, group), s.parts)
        else:
            whole = loop(f"int t = 0; t < {s.chain}; t += {s.C}", group, s.unroll)
        chain += [
            f"if (count - c0 >= {s.chain}) {{",
            *whole,
            "} else {",
            *(self.emptied() if "ranks" in passes else []),
            *rest_of,
            "}",
            *self.joined(f"min(c0 + {s.chain}, count)"),
        ]  # fmt: skip
        return loop(f"int c0 = 0; c0 < count; c0 += {s.chain}", chain, 1)

    def parts(self, roots: Sequence[Root]) -> list[Slot]:
        """The running values of parts of a chain."""
        return [Slot(f, root.index, False) for root in roots for f in root.fields if f in self.parted]

    def summed(self, parts: Sequence[Slot], columns: Lines) -> Lines:
        """Columns whose terms are added up on their own, and then to the running values, where there are such."""
        if not parts:
            return columns
        starts = [f"{self.held(slot, 'part')}[r] = {self.identity(slot.field)};" for slot in parts]
        sums = [f"{self.held(slot)}[r] += {self.held(slot, 'part')}[r];" for slot in parts]
        return [*loop(self.every_row, starts, "all"), *columns, *loop(self.every_row, sums, "all")]

    def best(self, root: Root) -> Put:
        """The best value of a group of columns: NaN is never better."""
        name = self.best_of(root)
        choose = "fmin" if self.rank_of(root) > 0 else "fmax"
        return Put(root.terms[:1], lambda values: [f"{name}[r] = {choose}{self.f}({name}[r], {values[0]});"])

    def best_of(self, root: Root) -> str:
        return f"best{root.fields[0]}_{root.index.offset}"

    def rank_of(self, root: Root) -> int:
        return 1 if self.k.fields[root.fields[0]].identity > 0 else -1

    def emptied(self) -> Lines:
        """The best values of no columns."""
        worst = [literal(float("inf") * self.rank_of(root), self.dtype) for root in self.rankings]
        starts = [f"{self.best_of(root)}[r] = {start};" for root, start in zip(self.rankings, worst, strict=True)]
        return loop(self.every_row, starts, "all")

    def grouped(self, full: str) -> Lines:
        """A group of columns: only if one of them may come before a last place, they are put where they belong."""
        s = self.s
        every = f"int u = 0; u < {s.group}; u += {s.C}"
        return [
            *self.emptied(),
            *loop(every, [f"columns(c0 + t + u{full});"], "all"),
            *self.if_some(loop(every, [f"ranks(c0 + t + u{full});"], 1)),
        ]

    def if_some(self, ranks: Lines) -> Lines:
        """What is done if one of a group of columns may come before a last place."""
        near = [f"{self.ranks(root)}_near({self.last(root)}, {self.best_of(root)}[r])" for root in self.rankings]
        some = loop(self.every_row, [f"some |= {' | '.join(near)};"], "all")
        return ["bool some = false;", *some, "if (some) {", *ranks, "}"]

    # -- joining a chain ---------------------------------------------------------------------------------------------

    def joined(self, stop: str) -> Lines:
        """Join the running values of all rows to the state in registers; where they do not hold, do them again."""
        s = self.s
        plain = [root for root in (*self.rest, *self.heads) if root not in self.redone]
        if not self.redone:
            return loop(self.every_row, self.joins(plain), "all") if plain else []
        never = bool(self.posts)
        checks, fine = self.checks()
        marks = [*checks, f"if (!({fine}){' | (never >> r & 1)' if never else ''}) {{", "bad |= 1u << r;"]
        for root in self.redone:
            runs = zip(root.fields, self.names(root), strict=True)
            marks += [f"{run} = {self.identity(f)};" for f, run in runs if f not in self.still]
        marks.append("}")
        rows = [*self.joins(plain), *self.quick_joins()]
        referred = self.referred()
        several = s.part < s.chain
        begin, end = ("h", f"min(h + {s.part}, {stop})") if several else ("c0", stop)
        again, names = self.again(self.redone, "q", begin, end, CLOSED)
        back = ["if (r == q) {", *self.joins(self.redone, lambda slot: names[slot]), "}"]
        again += loop(self.every_row, back, "all")
        if several:
            again = loop(f"int h = c0; h < {stop}; h += {s.part}", again, 1)
        return [
            *(loop(self.every_row, referred, "all") if referred else []),
            f"bool fine = {'never == 0' if never else 'true'};",
            *loop(self.every_row, [*checks, f"fine &= {fine};"], "all"),
            "unsigned bad = 0;",
            "if (!fine) {", *loop(self.every_row, marks, "all"), "}",
            *loop(self.every_row, rows, "all"),
            "if (bad != 0) {",
            *loop(f"int q = 0; q < {s.R}; q++",
                  ["if (bad >> q & 1) {", *again, "}"], 1),
            "}",
        ]  # fmt: skip

    def referred(self) -> Lines:
        """Multiply the running values of row r with what references ask for."""
        posts = [pair for root in self.redone for pair in zip(self.posted(root), self.names(root), strict=True)]
        mine = [(post.referred, run) for post, run in posts if post and post.referred]
        self.scopes.append({})
        out = self.merging([e for e, _ in mine], self.held_leaf, self.dtype)
        out += [f"{run} *= {self.text(e)};" for e, run in mine]
        self.scopes.pop()
        return out

    def checks(self) -> tuple[Lines, str]:
        """Statements, and whether the running values of row r hold."""
        out: Lines = []
        fine: list[str] = []
        self.scopes.append({})
        for root in self.redone:
            quick = self.quick(root)
            if quick:
                local = [f for f in root.fields if f in self.local]
                if local:
                    fine += [f"({self.held(Slot(f, root.index, False))}[r] >= 0)" for f in local]
                elif quick.holds.axes:  # else it says nothing
                    out += self.merging([quick.holds], self.held_leaf, self.dtype)
                    fine.append(self.text(quick.holds))
            for post, run, acc in zip(self.posted(root), self.names(root), self.names(root, "acc"), strict=True):
                if post is None:
                    continue
                if post.most < inf:  # a sum of what is positive
                    fine.append(f"({run} <= {literal(post.most, self.dtype)})")
                elif quick:
                    total = self.fresh("t")
                    out.append(f"const {self.A} {total} = {self.abs_sum(f'{acc} + {self.weighed(post, run)}')};")
                    fine.append(f"({total} < {self.infinite_sum})")
                    if quick.least:
                        fine.append(f"({total} >= {literal(quick.least, self.acc)})")
                else:
                    fine.append(f"(fabs{self.f}({run}) < {self.infinite})")
        self.scopes.pop()
        return out, " & ".join(fine)

    def held_leaf(self, e: Expr) -> str:
        """Running values, and those of the state before the chain."""
        return f"{self.held(e.attr, 'acc' if e.op == 'stored' else 'run')}[r]"

    def quick_joins(self) -> Lines:
        """Join the running values of row r that hold."""
        out: Lines = []
        anchored = [root for root in self.redone if (quick := self.quick(root)) and quick.posts]
        for root in self.redone:
            if root in anchored:
                continue
            posts, states = self.posted(root), self.names(root, "acc")
            runs = [
                self.weighed(post, run) if post else other
                for post, run, other in zip(posts, self.names(root), self.others(root), strict=True)
            ]
            if all(posts):
                out += [f"{acc} += {run};" for acc, run in zip(states, runs, strict=True)]
            else:  # fields beside those that are multiplied, as how many terms a mean is of
                out.append(self.join(root, states, runs))
        others: dict[Slot, str] = {}
        beyond: list[str] = []
        rising: set[int] = set()  # parts whose references may rise
        for root in anchored:
            names = zip(self.names(root), self.names(root, "acc"), strict=True)
            for f, post, (run, acc) in zip(root.fields, self.posted(root), names, strict=True):
                slot = Slot(f, root.index, False)
                if post:
                    out.append(f"{acc} += {self.weighed(post, run)};")
                    others[slot] = self.identity(f, self.merged[f])
                elif f not in self.still:
                    rising.add(root.part)
                    beyond.append(f"{run} > {acc}")
                    others[slot] = run
        if beyond:
            roots = [root for root in anchored if root.part in rising]
            out += [f"if ({' || '.join(beyond)}) {{", *self.joins(roots, lambda slot: others[slot]), "}"]
        return out

    # -- again -------------------------------------------------------------------------------------------------------

    def again(
        self, roots: Sequence[Root], row: str, start: str, stop: str, open: Open
    ) -> tuple[Lines, dict[Slot, str]]:
        """The running values of single rows, from the variables, by the steps as they were; and their names."""
        p = self.plain
        assert p is not None
        mine = [next(r for r in p.k.roots if r.fields == root.fields and r.index == root.index) for root in roots]
        p.scopes = [{}]
        out = [f"const i64 i = min(item[1] + threadIdx.x + {THREADS} * {row}, item[2] - 1);", *p.direct(p.k.once)]
        names: dict[Slot, str] = {}
        steps: list[tuple[str, Expr]] = []
        for root in mine:
            for f, e in zip(root.fields, root.steps, strict=True):
                name = names[Slot(f, root.index, False)] = p.held(Slot(f, root.index, False), "again")
                out.append(f"{C_NAME[p.running[f]]} {name} = {literal(p.k.fields[f].identity, p.running[f])};")
                steps.append((name, e))
        p.scopes.append({})
        # what lies outside a loop is written first: loops inside it may have the name of a loop that is open
        loops, body = sorted(open), ["const i64 j = j0 + u;"]
        for n in range(len(loops) + 1):
            body += p.direct([e for _, e in steps], frozenset(loops[:n]))
        new = {name: p.text(e) for name, e in steps}
        body += [f"{name} = {value};" for name, value in new.items()]
        return [*out, *loop(f"int u = {start}; u < {stop}; u++", body, 1)], names
