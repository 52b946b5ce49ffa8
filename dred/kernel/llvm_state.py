"""The state of a tile of rows in LLVM IR: its place in scratch memory, copies to and fro, merges, rankings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from dred.kernel.ir import Expr, Index, Kernel, Loop, Root, StateField, walk
from dred.kernel.llvm_math import Lanes
from dred.kernel.llvm_values import Operand, Text, Values

ALIGNED = 64  # bytes: of everything in scratch memory
AT_ONCE = 768  # bytes of a list of a ranking, at most, that is written at once: few enough vectors for registers

Cells = dict[tuple[int, Index], str]
"""Values of components of fields."""


class StateText(Text):
    """Text of a function that holds the state of a tile in scratch memory.

    Field f of a tile is an array (rows of f, lanes) of its stored type; that of a ranking is (components, lanes,
    places), and before the values stand those in last place, (components, lanes).
    """

    def __init__(self, kernel: Kernel, dtype: str, acc: str, lanes: int, scaling: bool, moderate: bool) -> None:
        super().__init__()
        self.kernel, self.dtype, self.acc = kernel, dtype, acc
        self.one, self.lanes = Lanes(dtype), Lanes(dtype, lanes, scaling=scaling, moderate=moderate)
        self.wide = Lanes(acc, self.lanes.width)
        self.near_rows = replace(self.lanes, local=True)  # of running values
        self.numbers = range(len(kernel.fields))
        self.dims = [f.size for f in kernel.fields]
        for root in kernel.roots:
            for f in root.fields:
                self.dims[f] = kernel.fields[f].size // root.places
        self.ranking = [n for n, root in enumerate(kernel.roots) if root.places > 1]
        lasts = {kernel.roots[n].fields[0] for n in self.ranking}
        self.rooms = {f: self._room(kernel.roots[n]) for n in self.ranking for f in kernel.roots[n].fields}
        self.spare = [self.dims[f] * self.lanes.width if f in lasts else 0 for f in self.numbers]
        self.merged = Values(self, self.wide, self._merge_leaf)
        self.close, self.order = (Values(self, lanes, self._order_leaf) for lanes in (self.lanes, self.one))
        self.lists: dict[int, Values] = {}  # of all places of a list, by their number
        self.words = set[str]()  # types of integers whose bits are counted
        self.terms_at = ""  # values of some columns, while they are inserted into lists
        self.groups = _groups(kernel.roots)
        self.counters: Mapping[Loop, Operand] = {}  # of the component loops that are open
        self.states_at, self.tile_bytes = "", 0
        self.state_offsets: Sequence[int] = ()
        self.state_at: list[str] = []
        self.chain_row = ""  # number of the first row of the chain
        self.state: Cells = {}
        self.other: Cells = {}

    # types and places -------------------------------------------------------------------------------------------------

    def element(self, f: int) -> str:
        """Type of a stored value of a field."""
        field = self.kernel.fields[f]
        return {"value": self.one.scalar, "sum": self.wide.scalar}.get(field.kind, "i64")

    def itemsize(self, f: int) -> int:
        return {"float": 4}.get(self.element(f), 8)

    def running_type(self, f: int) -> str:
        """Type of the running values of a field."""
        return self.near_rows.number if self.kernel.fields[f].number else self.lanes.type

    def identity(self, f: int) -> str:
        """The running value that has met no term."""
        field: StateField = self.kernel.fields[f]
        return self.near_rows.whole(self.near_rows.none) if field.number else self.lanes.literal(field.identity)

    def state_bytes(self, f: int) -> int:
        size = self.dims[f] * self.rooms[f] if f in self.rooms else self.kernel.fields[f].size
        return (size * self.lanes.width + self.spare[f]) * self.itemsize(f)

    def component(self, index: Index, stride: int = 1) -> list[Operand]:
        """A component number times `stride`, as operands to be added."""
        counters = [self.times(self.counters[loop], c * stride) for loop, c in index.terms]
        return [*counters, index.offset * stride]

    def times(self, a: Operand, b: int) -> Operand:
        if isinstance(a, int):
            return a * b
        return a if b == 1 else self.integer("mul", a, b)

    def cell(self, f: int, index: Index) -> str:
        """Address of the lanes of a component."""
        return self.at(self.state_at[f], *self.component(index, self.lanes.width), element=self.element(f))

    def stored(self, f: int, index: Index) -> str:
        return self.load(self.lanes.of(self.element(f)), self.cell(f, index), self.aligned(f))

    def put_stored(self, f: int, index: Index, value: str) -> None:
        self.store(self.lanes.of(self.element(f)), value, self.cell(f, index), self.aligned(f))

    def aligned(self, f: int) -> int:
        return min(ALIGNED, self.lanes.width * self.itemsize(f))

    # begin and end of a block of rows ---------------------------------------------------------------------------------

    def place_states(self, offset: int, offsets: Sequence[int], tile: int) -> None:
        """Where the fields lie in scratch memory: those of a tile from its beginning, and `tile` bytes on the next."""
        self.states_at, self.state_offsets, self.tile_bytes = self.at("%scratch", offset, element="i8"), offsets, tile

    def open_tile(self, number: Operand) -> None:
        """Goes to the states of a tile of the block."""
        first = self.at(self.states_at, self.times(number, self.tile_bytes), element="i8")
        self.state_at = []
        for f, offset in zip(self.numbers, self.state_offsets, strict=True):
            start = self.at(first, offset, element="i8")
            self.state_at.append(self.at(start, self.spare[f], element=self.element(f)))

    def copy_states(self, base: Sequence[str], row: str, count: str, load: bool, tile: Operand = 0) -> None:
        """The states of `count` rows into scratch memory, or back: from the first one of a tile of the block on."""
        width = self.lanes.width
        whole = self.integer("sdiv", count, width)
        full = self.integer("mul", whole, width)
        rankings = {f: self.kernel.roots[n].places for n in self.ranking for f in self.kernel.roots[n].fields}

        def lists(number: str, _: list[str]) -> list[str]:
            self.open_tile(self.plus(tile, number))
            at = self.integer("mul", number, width)
            rows = self.smaller(self.integer("sub", count, at), width)
            for f, places in rankings.items():
                self._copy_ranking(f, places, base[f], self.integer("add", row, at), rows, load)
            return []

        def rest(number: str, _: list[str]) -> list[str]:
            self.open_tile(self.plus(tile, number))
            for f in plain:
                at, rows = self.integer("add", row, full), self.integer("sub", count, full)
                self._copy_lanes(f, base[f], at, rows, load)
            return []

        plain = [f for f in self.numbers if f not in rankings]
        tiles = self.integer("sdiv", self.integer("add", count, width - 1), width)
        self.open_tile(tile)
        for f in plain:
            self._copy_tiles(f, base[f], row, whole, load)
        if plain:
            self.loop(whole, tiles, 1, [], rest)
        if rankings:
            self.loop(0, tiles, 1, [], lists)

    def _move(self, kind: str, theirs: str, mine: str, load: bool) -> list[str]:
        source, target = (theirs, mine) if load else (mine, theirs)
        align = 4 if "float" in kind else 8
        self.store(kind, self.load(kind, source, align), target, align)
        return []

    def _copy_tiles(self, f: int, base: str, row: str, tiles: str, load: bool) -> None:
        """Whole tiles: a component of all of them, which are next to each other in the state, before the next one."""
        width, one = self.lanes.width, self.element(f)

        def component(number: str, _: list[str]) -> list[str]:
            theirs = self.at(base, self.integer("mul", number, "%pitch"), row, element=one)
            mine = self.at(self.state_at[f], self.integer("mul", number, width), element=one)

            def tile(t: str, _: list[str]) -> list[str]:
                there = self.at(theirs, self.integer("mul", t, width), element=one)
                here = self.at(mine, self.integer("mul", t, self.tile_bytes), element="i8")
                return self._move(self.lanes.of(one), there, here, load)

            return self.loop(0, tiles, 1, [], tile)

        self.loop(0, self.kernel.fields[f].size, 1, [], component)

    def _copy_lanes(self, f: int, base: str, row: str, count: str, load: bool) -> None:
        """The last tile, of which lanes are left over: lane by lane. Those are like the last row, as their records."""
        width, one = self.lanes.width, self.element(f)

        def component(number: str, _: list[str]) -> list[str]:
            theirs = self.at(base, self.integer("mul", number, "%pitch"), row, element=one)
            mine = self.at(self.state_at[f], self.integer("mul", number, width), element=one)

            def lane(k: str, _: list[str]) -> list[str]:
                there = self.smaller(k, self.integer("sub", count, 1)) if load else k
                return self._move(one, self.at(theirs, there, element=one), self.at(mine, k, element=one), load)

            return self.loop(0, width if load else count, 1, [], lane)

        self.loop(0, self.kernel.fields[f].size, 1, [], component)

    def _copy_ranking(self, f: int, places: int, base: str, row: str, count: str, load: bool) -> None:
        """Lists of rows, whose places are far from each other in the state; lanes without a row let nothing near."""
        one, width, dim = self.element(f), self.lanes.width, self.dims[f]

        def component_of(component: str, _: list[str]) -> list[str]:
            first = self.integer("mul", component, width)
            lists = self.at(self.state_at[f], self.integer("mul", first, self.rooms[f]), element=one)

            def place(t: str, _: list[str]) -> list[str]:  # lane by lane: they are next to each other in the state
                theirs = self.integer("add", self.integer("mul", t, dim), component)
                theirs = self.at(base, self.integer("mul", theirs, "%pitch"), row, element=one)
                mine = self.at(lists, t, element=one)
                return self.loop(
                    0,
                    count,
                    1,
                    [],
                    lambda lane, _: self._move(
                        one,
                        self.at(theirs, lane, element=one),
                        self.at(mine, self.integer("mul", lane, self.rooms[f]), element=one),
                        load,
                    ),
                )

            def last(lane: str, _: list[str]) -> list[str]:
                theirs = self.at(lists, self.integer("mul", lane, self.rooms[f]), places - 1, element=one)
                return self._move(one, theirs, self.at(lasts, lane, element=one), True)

            self.loop(0, places, 1, [], place)
            if load and self.spare[f]:
                lasts = self.at(self.state_at[f], first, -self.spare[f], element=one)
                nothing = self.lanes.literal(-self.kernel.fields[f].identity)
                self.store(self.lanes.of(one), nothing, lasts, self.aligned(f))
                self.loop(0, count, 1, [], last)
            return []

        self.loop(0, dim, 1, [], component_of)

    # merges -----------------------------------------------------------------------------------------------------------

    def _merge_leaf(self, e: Expr, _: int) -> str | None:
        if e.op == "const":
            return self.wide.literal(e.attr)
        if e.op == "whole":
            return self.wide.whole(e.attr)
        if e.op not in ("state", "other"):
            return None
        return (self.state if e.op == "state" else self.other)[e.attr.field, e.attr.index]

    def read_state(self, f: int, index: Index) -> str:
        """A stored component as merges take it: values in the accumulator's type."""
        value = self.stored(f, index)
        return self.cast(value, self.element(f), self.wide.scalar) if self.element(f) != "i64" else value

    def write_state(self, f: int, index: Index, value: str) -> None:
        if self.element(f) != "i64":
            value = self.cast(value, self.wide.scalar, self.element(f))
        self.put_stored(f, index, value)

    def widened(self, f: int, running: str) -> str:
        """A running value as merges take it."""
        kind = self.kernel.fields[f].kind
        if kind == "count":
            return self.put(f"fptosi {self.lanes.type} {running} to {self.lanes.number}")
        return self._far(running) if kind == "index" else self.cast(running, self.one.scalar, self.wide.scalar)

    def _far(self, running: str) -> str:
        """The row number of one that was counted from the beginning of the chain."""
        near, far = self.near_rows, self.lanes
        none = self.put(f"icmp eq {near.number} {running}, {near.whole(near.none)}")
        if near.number != far.number:
            running = self.put(f"sext {near.number} {running} to {far.number}")
        number = self.put(f"add {far.number} {running}, {self.broadcast(far, self.chain_row, 'i64')}")
        return self.put(f"select {far.mask} {none}, {far.number} {far.whole(far.none)}, {far.number} {number}")

    def cast(self, value: str, old: str, new: str) -> str:
        if old == new:
            return value
        op = "fpext" if old == "float" else "fptrunc"
        return self.put(f"{op} {self.lanes.of(old)} {value} to {self.lanes.of(new)}")

    def merge_root(self, n: int, running: Sequence[str]) -> list[str]:
        """The merged values of a root; `running` are widened."""
        root = self.kernel.roots[n]
        for f, value in zip(root.fields, running, strict=True):
            self.other[f, root.index] = value
            self.state[f, root.index] = self.read_state(f, root.index)
        return [self.merged.get(e) for e in root.merge]

    # rankings ---------------------------------------------------------------------------------------------------------

    def _order_leaf(self, e: Expr, _: int) -> str | None:
        if e.op not in ("state", "other"):
            return None
        return (self.state if e.op == "state" else self.other)[e.attr.field, e.attr.index]

    def _holds(self, values: Values, e: Expr, state: Cells, other: Cells) -> str:
        """A comparison of a place, `state`, with a candidate, `other`."""
        self.state, self.other = state, other
        with values.scope():
            return values.get(e)

    def rank(self, n: int, columns: Sequence[str], number: Callable[[str, str], str]) -> None:
        """Inserts the terms of some columns; seldom is any of them near enough.

        `columns`: the values of each column, one vector; NaN comes before nothing. `number`: (column, lane) -> the row
        number of a term.
        """
        root, lanes = self.kernel.roots[n], self.lanes
        width, value = lanes.width, root.fields[0]
        component = self.component(root.index, width)
        lasts = self.at(self.state_at[value], *component, -self.spare[value], element=self.one.scalar)

        def near(term: str) -> str:
            assert root.near is not None
            key = (value, root.index)
            last = self.load(lanes.type, lasts, self.aligned(value))
            mask = self._holds(self.close, root.near, {key: last}, {key: term})
            return self.put(f"bitcast {lanes.mask} {mask} to i{width}")

        def each() -> None:
            size, some = len(columns) * width, "0"
            for k, term in enumerate(columns):
                self.store(lanes.type, term, self.at(self.terms_at, k * width, element=self.one.scalar), ALIGNED)
                bits = near(term)
                if len(columns) > 1:
                    bits = self.put(f"zext i{width} {bits} to i{size}")
                some = self.put(f"or i{size} {some}, {self.put(f'shl i{size} {bits}, {k * width}')}")
            # none: where lists are not full yet, and all is NaN
            any_of = self.put(f"icmp ne i{size} {some}, 0")
            self.when(any_of, lambda: self._insert_some(root, some, size, lasts, number))

        self.when(self.put(f"icmp ne i{width} {near(self._nearest(root, columns))}, 0"), each)

    def _nearest(self, root: Root, columns: Sequence[str]) -> str:
        """For each lane a value that is as near as any of some columns': one test does for all of them.

        What is NaN leaves the value of the columns before as it is. It begins with a number, so it is one.
        """
        lanes, none = self.lanes, self.kernel.fields[root.fields[0]].identity
        if len(columns) == 1:
            return columns[0]
        nearest, compare = lanes.literal(none), "olt" if none > 0 else "ogt"
        for term in columns:  # one instruction: the minimum, or the maximum
            nearer = self.put(f"fcmp {compare} {lanes.type} {term}, {nearest}")
            nearest = self.put(f"select {lanes.mask} {nearer}, {lanes.type} {term}, {lanes.type} {nearest}")
        return nearest

    def _insert_some(self, root: Root, some: str, size: int, lasts: str, number: Callable[[str, str], str]) -> None:
        """Inserts the terms whose bits are set in `some`, of `size` bits, column by column.

        Those before may have made the last places better, so a term need not have a place any more: it finds none.
        """
        lanes, one, width = self.lanes, self.one.scalar, self.lanes.width
        word, element, aligned = f"i{size}", f"i{8 * self.lanes.itemsize}", self.aligned(root.fields[0])
        insert = self._insert_at_once if self._at_once(root) else self._insert_by_halves
        every = ", ".join(f"{element} {k}" for k in range(width))
        self.words.add(word)

        def term(held: list[str]) -> tuple[str, list[str]]:
            left, last = held
            bit = self.put(f"call {word} @llvm.cttz.{word}({word} {left}, i1 true)")
            if size != 64:
                bit = self.put(f"{'zext' if size < 64 else 'trunc'} {word} {bit} to i64")
            lane, column = self.integer("and", bit, width - 1), self.integer("lshr", bit, width.bit_length() - 1)
            value = self.load(one, self.at(self.terms_at, bit, element=one), lanes.itemsize)
            place = [*self.component(root.index, width), lane]
            starts = [
                self.at(self.state_at[f], *(self.times(k, self.rooms[f]) for k in place), element=self.element(f))
                for f in root.fields
            ]
            new = insert(root, [value, number(column, lane)], starts)
            if element != "i64":
                lane = self.put(f"trunc i64 {lane} to {element}")
            mine = self.put(f"icmp eq {lanes.integer} {self.broadcast(lanes, lane, element)}, <{every}>")
            last = self.put(f"select {lanes.mask} {mine}, {lanes.type} {new}, {lanes.type} {last}")
            rest = self.put(f"and {word} {left}, {self.put(f'sub {word} {left}, 1')}")
            return self.put(f"icmp ne {word} {rest}, 0"), [rest, last]

        # last places stay in a register meanwhile: a vector that is read just after one of its lanes was written waits
        last = self.load(lanes.type, lasts, aligned)
        _, last = self.repeat([(word, some), (lanes.type, last)], term)
        self.store(lanes.type, last, lasts, aligned)

    def _at_once(self, root: Root) -> bool:
        """Whether all places of a list are written when a term is inserted."""
        return root.places * sum(map(self.itemsize, root.fields)) <= AT_ONCE

    def _room(self, root: Root) -> int:
        """Places of a list in scratch memory: whole vectors where it is written at once."""
        width = self.lanes.width
        return -(-root.places // width) * width if self._at_once(root) else root.places

    def _insert_at_once(self, root: Root, term: Sequence[str], starts: Sequence[str]) -> str:
        """One term into the list of a row; returns the value in last place, in all lanes.

        All places that the term comes before take what was in the one before them, or the term. What follows the last
        place changes, too, and nobody reads it.
        """
        assert root.before is not None
        room, width = self.rooms[root.fields[0]], self.lanes.width
        lanes = Lanes(self.dtype, room)
        lists = self.lists.setdefault(room, Values(self, lanes, self._order_leaf))
        kinds = [lanes.of(self.element(f)) for f in root.fields]
        aligned = [min(ALIGNED, room * self.itemsize(f)) for f in root.fields]
        old = [self.load(kind, at, align) for kind, at, align in zip(kinds, starts, aligned, strict=True)]
        new = [self.broadcast(lanes, value, self.element(f)) for f, value in zip(root.fields, term, strict=True)]
        keys = [(f, root.index) for f in root.fields]
        state, other = dict(zip(keys, old, strict=True)), dict(zip(keys, new, strict=True))
        later = self._holds(lists, root.before, state, other)
        moves = self._moved(lanes.mask, later, "zeroinitializer", room)
        out = []
        for kind, start, align, was, value in zip(kinds, starts, aligned, old, new, strict=True):
            # `was` must not be the last choice: LLVM would make it a masked store, which later loads wait for
            here = self.put(f"select {lanes.mask} {later}, {kind} {value}, {kind} {was}")
            moved = self._moved(kind, was, "poison", room)
            out.append(self.put(f"select {lanes.mask} {moves}, {kind} {moved}, {kind} {here}"))
            self.store(kind, out[-1], start, align)
        which = ", ".join([f"i32 {root.places - 1}"] * width)
        return self.put(f"shufflevector {kinds[0]} {out[0]}, {kinds[0]} poison, <{width} x i32> <{which}>")

    def _moved(self, kind: str, values: str, first: str, room: int) -> str:
        """What is in each place goes to the next one."""
        which = ", ".join(f"i32 {k}" for k in (room, *range(room - 1)))
        return self.put(f"shufflevector {kind} {values}, {kind} {first}, <{room} x i32> <{which}>")

    def _insert_by_halves(self, root: Root, term: Sequence[str], starts: Sequence[str]) -> str:
        """The same for long lists: after all places that the term does not come before; later ones move by one."""
        before, places, one = root.before, root.places, self.one.scalar
        assert before is not None
        keys = [(f, root.index) for f in root.fields]

        def halved(held: list[str]) -> tuple[str, list[str]]:
            low, high = held
            middle = self.integer("lshr", self.integer("add", low, high), 1)
            here = [
                self.load(self.element(f), self.at(start, middle, element=self.element(f)), self.itemsize(f))
                for f, start in zip(root.fields, starts, strict=True)
            ]
            state, other = dict(zip(keys, here, strict=True)), dict(zip(keys, term, strict=True))
            left = self._holds(self.order, before, state, other)
            high = self.put(f"select i1 {left}, i64 {middle}, i64 {high}")
            low = self.put(f"select i1 {left}, i64 {low}, i64 {self.integer('add', middle, 1)}")
            return self.put(f"icmp slt i64 {low}, {high}"), [low, high]

        at, _ = self.repeat([("i64", "0"), ("i64", str(places))], halved)

        def shift() -> None:
            for f, start, value in zip(root.fields, starts, term, strict=True):
                element = self.element(f)
                here, following = (self.at(start, at, k, element=element) for k in (0, 1))
                size = self.integer("mul", self.integer("sub", places - 1, at), self.itemsize(f))
                self.do(f"call void @llvm.memmove.p0.p0.i64(ptr {following}, ptr {here}, i64 {size}, i1 false)")
                self.store(element, value, here, self.itemsize(f))

        self.when(self.put(f"icmp slt i64 {at}, {places}"), shift)
        last = self.load(one, self.at(starts[0], places - 1, element=one), self.one.itemsize)
        return self.broadcast(self.lanes, last)

    def declarations(self) -> str:
        """Of what rankings call."""
        lines = [f"declare {word} @llvm.cttz.{word}({word}, i1)\n" for word in sorted(self.words)]
        if any(not self._at_once(self.kernel.roots[n]) for n in self.ranking):
            lines.append("declare void @llvm.memmove.p0.p0.i64(ptr, ptr, i64, i1)\n")
        return "".join(lines)


def _groups(roots: Sequence[Root]) -> list[list[int]]:
    """Roots of which some read fields of others, together."""
    group_of: dict[int, int] = {}
    out: list[list[int]] = []
    for n, root in enumerate(roots):
        read = {e.attr.field for e in walk([*root.steps, *root.merge]) if e.op in ("state", "other")} - {*root.fields}
        known = [group_of[f] for f in sorted(read) if f in group_of]
        at = known[0] if known else len(out)
        if not known:
            out.append([])
        out[at].append(n)
        group_of.update(dict.fromkeys(root.fields, at) if not known else {})
    return out
