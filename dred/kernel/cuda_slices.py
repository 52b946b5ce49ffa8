"""States that are too long for registers, in CUDA C++: slices of components over a few columns."""

from __future__ import annotations

from collections.abc import Sequence

from dred.kernel.cuda_text import C_NAME, CLOSED, Lines, Open, Put, literal, loop, over
from dred.kernel.cuda_tiles import Tiles
from dred.kernel.ir import Expr, Loop, Root, Slot, walk


class Slices(Tiles):
    """The text that meets all pairs of a tile where the state stays in memory."""

    def slices(self) -> Lines:
        """Many components: what they share for C columns first, then one after another, each joined to its state."""
        s, k = self.s, self.k
        uses: dict[int, int] = {}
        for root in k.roots:
            for e in walk(root.steps):
                uses[e.id] = uses.get(e.id, 0) + 1
        body = self.folds(k.steps, CLOSED) + self.slices_of_heads(uses)
        for root in (*self.rest, *self.rankings):
            body += self.kept(self.common(root, uses), CLOSED)
            body += self.slice(root)
        joins = [self.join(root, self.names(root, "acc"), self.names(root)) for root in self.heads]
        body += loop(self.every_row, joins, "all") if joins else []
        call = ["columns(c0);"]
        if s.C > 1:
            call = [f"if (count - c0 >= {s.C}) {{", f"columns(c0, {s.C});", "} else {", "columns(c0, count - c0);", "}"]
        left = ", const int left" if s.C > 1 else ""
        return [f"const auto columns = [&](const int t{left}) {{", *body, "};",
                *loop(f"int c0 = 0; c0 < count; c0 += {s.C}", call, 1)]  # fmt: skip

    def common(self, root: Root, uses: dict[int, int]) -> list[Expr]:
        """Values that every component of a root, or another root, reads."""
        several = bool(root.loops)
        return self.outermost(root.steps, lambda e: self.paired(e) and not e.free and (several or uses[e.id] > 1))

    def slices_of_heads(self, uses: dict[int, int]) -> Lines:
        """The running values of heads over C columns, what others read of them at each, and what joining reads."""
        if not self.heads:
            return []
        looped = {e.id for root in self.rest if root.loops for e in walk(root.steps)}
        wanted = self.outermost(
            [e for root in self.rest for e in root.steps],
            lambda e: self.of_heads(e) and not e.free and (e.op == "state" or e.id in looped or uses[e.id] > 1),
        )
        declared, started = self.started(self.heads, "run", self.running)
        out = [*declared, *loop(self.every_row, started, "all")]
        names = {e: self.fresh("q") for e in wanted}
        out += [f"{self.type(e)} {name}{self.block};" for e, name in names.items()]
        puts = [Put([e], self.assigning(name + self.at)) for e, name in names.items()]
        out += self.phase([*puts, *map(self.step, self.heads)], CLOSED, bounded=True)
        self.scopes[-1].update({e.id: name + self.at for e, name in names.items()})

        factors = {e.id: e for root in self.rest for e in self.factors[root.fields]}
        targets = {id: self.fresh("h") for id in factors}
        self.scopes.append({})
        body = self.merging(list(factors.values()), self.running_leaf(self.run), self.acc)
        body += [f"{targets[id]}[r] = {self.text(e, self.acc)};" for id, e in factors.items()]
        self.scopes.pop()
        out += [f"{self.type(e, self.acc)} {targets[id]}[{self.s.R}];" for id, e in factors.items()]
        out += loop(self.every_row, body, "all")
        self.scopes[-1].update({id: f"{name}[r]" for id, name in targets.items()})
        return out

    def slice(self, root: Root) -> Lines:
        """One component, or each of its loops, over C columns."""
        component = self.component(root.index)
        state = [self.partial(f, component) for f in root.fields]
        several = self.s.chain < self.s.C  # chains, whose sums are added up before they join the state
        early = self.s.R > 1 and bool(root.loops) and root.places == 1
        runs = self.names(root, "sum" if several else "run")
        if root.places > 1:
            declared, _ = self.started([root], "acc", self.types)
            before = self.copies(self.names(root, "acc"), state)
        else:
            declared, before = self.started([root], "run", self.running)

        def nest(open: Open, loops: Sequence[Loop]) -> Lines:
            self.scopes.append({})
            if loops:
                inner = open | {loops[0]}
                shared = self.outermost(root.steps, lambda e: self.paired(e) and e.free <= open) if open else []
                body = self.folds(shared, open) + self.kept(shared, open) if shared else []
                first, turn = self.ahead(root, loops[0], inner) if early and not loops[1:] else ([], [])
                body += [*first, *over(loops[0], [*turn, *nest(inner, loops[1:])], 1)]
            else:
                start = [*declared, *loop(self.every_row, before, "all")]
                body = self.folds(root.steps, open)
                if several:
                    sums, empty = self.started([root], "sum", self.types)
                    joins = loop(self.every_row, [self.join(root, runs, self.names(root))], "all")
                    body += [*sums, *loop(self.every_row, empty, "all")]
                    body += self.phase([self.step(root)], open, bounded=True, around=(start, joins))
                else:
                    body = [*start, *body, *self.phase([self.step(root)], open, bounded=True)]
                was = self.names(root, "was") if early else state
                body += [] if root.places > 1 else self.slice_joins(root, state, was, runs, open)
            self.scopes.pop()
            return body

        body = nest(CLOSED, root.loops)
        return body if root.loops else ["{", *body, "}"]

    def ahead(self, root: Root, counter: Loop, open: Open) -> tuple[Lines, Lines]:
        """What comes from far away, the state and the records of rows, is asked for a turn of a loop ahead.

        Statements before the loop, and at the beginning of its turns.
        """
        component = self.component(root.index)
        far = {
            self.held(Slot(f, root.index, False), "was"): (self.types[f], self.partial(f, component))
            for f in root.fields
        }
        for e in self.pending(root.steps, open, slots=True):
            if e.id in self.slot_i and counter in e.free:
                name = self.fresh("x")
                far[name] = self.dtype, self.far_row(e)
                self.scopes[-1][e.id] = f"({name}[r] != 0)" if e.boolean else f"{name}[r]"

        def declared(prefix: str) -> Lines:
            return [f"{C_NAME[dtype]} {prefix}{name}[{self.s.R}];" for name, (dtype, _) in far.items()]

        def fetched(at: str) -> Lines:
            row = [f"next_{name}[r] = {source};" for name, (_, source) in far.items()]
            return ["{", f"const int {k} = {at};", *loop(self.every_row, row, "all"), "}"]

        k = f"k{counter.depth}"
        taken = loop(self.every_row, self.copies([f"{n}[r]" for n in far], [f"next_{n}[r]" for n in far]), "all")
        after = f"const int after = min({k} + 1, {counter.length - 1});"
        return [*declared("next_"), *fetched("0")], [*declared(""), *taken, after, *fetched("after")]

    @staticmethod
    def copies(targets: Sequence[str], values: Sequence[str]) -> Lines:
        return [f"{target} = {value};" for target, value in zip(targets, values, strict=True)]

    def slice_joins(
        self, root: Root, state: Sequence[str], was: Sequence[str], runs: Sequence[str], open: Open
    ) -> Lines:
        """Join the values of one component over C columns; where they are not finite, they are computed again.

        `was`: the state itself, or what has been read of it.
        """
        written = [] if was is state else self.copies(state, was)
        if root not in self.redone:
            return loop(self.every_row, [self.join(root, was, runs), *written], "all")
        before: Lines = []
        row: Lines = []
        values: list[str] = []
        fine: list[str] = []
        for post, run in zip(self.posted(root), runs, strict=True):
            if post is None:
                values.append(run)
                continue
            text = run if self.T == self.A or self.s.chain < self.s.C else f"({self.A}){run}"
            if post.factor is not None:
                lines, factor = self.row_value(post.factor)
                before += lines
                text = f"{text} * ({self.times(post.scale, factor)})"
            elif post.scale != 1.0:
                text = f"{text} * {literal(post.scale, self.acc)}"
            name = self.fresh("w")
            row.append(f"const {self.A} {name} = {text};")
            values.append(name)
            fine.append(f"({self.abs_sum(name)} < {self.infinite_sum})")
        joined = [self.join(root, was, values), *written]
        row += [f"if ({' & '.join(fine)}) {{", *joined, "} else {", "bad |= 1u << r;", "}"]
        last, each = "t + left" if self.s.C > 1 else "t + 1", f"h + {self.s.chain}"
        several = self.s.chain < self.s.C
        again, names = self.again([root], "r", *(("h", f"min({each}, {last})") if several else ("t", last)), open)
        again.append(self.join(root, state, [names[Slot(f, root.index, False)] for f in root.fields]))
        if several:
            again = loop(f"int h = t; h < {last}; h += {self.s.chain}", again, 1)
        return [
            "unsigned bad = 0;", *before, *loop(self.every_row, row, "all"),
            "if (bad != 0) {",
            *loop(self.every_row, ["if (bad >> r & 1) {", *again, "}"], 1),
            "}",
        ]  # fmt: skip
