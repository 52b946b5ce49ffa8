"""How a CUDA kernel is cut into rows, columns and chains: from the kernel alone, never from the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dred.formula.node import J
from dred.kernel.ir import IJ, Expr, Kernel, Root, factors, maximal, walk
from dred.kernel.primitives import PRIMITIVES

THREADS = 128  # of a block
COLUMNS = 1024  # bytes of one value of every column of a tile, at most
SHARED = 32768  # bytes of a tile, at most
BODY = 2048  # instructions of a block of rows and columns, about: ptxas spills, and takes long, beyond
HELD = 640  # bytes of records that a thread holds, beside its running values
BESIDE = 320  # bytes of column records that are held beside states other than sums
LISTED = 48  # registers of the rankings of a thread's rows, at most
RANKED = 32.0  # instructions that compare a value with the last place of a ranking, and call what puts it there
HELD_BY = {"value": 2, "sum": 3, "count": 3, "index": 3}  # registers of a field: of the state, and running;
PARTED = 1  # and where there are sums of sums, one more
ROWS = {4: ((8, 9), (4, 20), (2, 24)), 8: ((8, 7), (4, 16), (2, 24))}  # by bytes: rows, and values of a row at most
GATHERED = {2: 46, 1: 90}  # by rows: registers of a row, at most, where most are sums, and loops have copies:
COPIES = 4  # as many pairs in a turn
ROOM = ((4, 66), (3, 100))  # blocks, and registers of a thread's rows and of a column's record that leave room for them
FAR = ((4, 44), (3, 80))  # the same where rows are in memory, of what rows hold beside their records
PAIRS = {4: 64, 8: 32}  # by bytes: of rows and columns in a turn of the loop over columns
CHOICES = 64  # columns of a chain that adds nothing up
MEETING = 16  # columns that meet rows in memory at a time
GROUP = 8  # columns of which the best is compared with the last place of a ranking
FOLDED = (4, 8)  # copies of the loop of a fold; and where there is room for more
WORDS = 8  # of a column that each thread reads at once, at most
UNROLL = {"float32": 32, "float64": 16}  # longer vectors become loops: for `lower`
LOOPED = {"float32": 16, "float64": 16}  # and so do those longer than this that let a thread have one row alone


class Schedule(NamedTuple):
    """Blocking of a kernel.

    Attributes
    ----------
    R, C : int
        Rows of a thread, and columns, that are in registers at a time.
    TJ : int
        Columns of a tile; splits of the columns begin at tiles.
    chain : int
        Columns that are accumulated in the compute type.
    part : int
        Columns of a chain that are added to each other first: shorter than a chain where all its sums are `added`.
    unroll, parts, folded : int
        Copies of the loops over the columns of a part, over parts, and over the components of a fold.
    rows_in_memory : bool
        Row records are too long for registers: a kernel of its own writes them to memory.
    wide : bool
        The state is too long for registers: it stays in memory, and only C columns of one component are added up.
    group : int
        Columns whose best value is compared with the last place of a ranking, at a time.
    listed : bool
        Rankings are lists in registers; else heaps in memory.
    blocks : int
        Blocks of threads that a multiprocessor shall hold at least.
    columns : str
        How column records reach the threads: "none" (there are none), "packed" (shared memory, 16 bytes at a time),
        "block" (shared memory, C columns side by side) or "memory" (a kernel of its own writes them there).
    """

    R: int
    C: int
    TJ: int
    chain: int
    part: int
    unroll: int
    parts: int
    folded: int
    rows_in_memory: bool
    wide: bool
    group: int
    listed: bool
    blocks: int
    columns: str


def steps_of(root: Root, wide: bool) -> Sequence[Expr]:
    """The steps that a root goes by: quick ones where its state is in registers."""
    return root.quick.steps if root.quick and not wide else root.steps


def added(k: Kernel, wide: bool) -> frozenset[int]:
    """The fields to which each pair adds a term that no other running value is part of."""
    out: set[int] = set()
    kept: set[int] = set()  # as they are while pairs are met
    read: set[int] = set()  # by terms
    for root in k.roots:
        for f, e in zip(root.fields, steps_of(root, wide), strict=True):
            own, terms = [a for a in (e, *e.args) if a.op == "state" and a.attr.field == f], [e]
            if own == [e]:
                kept.add(f)
                terms = []
            elif (
                k.fields[f].kind == "sum" and (e.op == "add" or (e.op == "fma" and e.args[2] in own)) and len(own) == 1
            ):
                out.add(f)
                terms = [a for a in e.args if a not in own]
            read.update(a.attr.field for a in walk(terms) if a.op == "state")
    return frozenset(out if kept >= read else ())


def weight(k: Kernel, wide: bool) -> float:
    """Instructions of one pair as text: those inside component loops count once."""
    pair = walk([e for root in k.roots for e in steps_of(root, wide)])
    ranked = RANKED * sum(root.places > 1 for root in k.roots)
    return max(1.0, ranked + sum(PRIMITIVES[e.op].cost for e in pair if e.axes == IJ and e.op in PRIMITIVES))


def schedule(k: Kernel, size: int, chain: int) -> Schedule:
    """Blocking of a kernel whose values take `size` bytes, with chains of `chain` columns at most."""
    few = 128 // size  # values of which a thread can hold a few times as many
    values = [k.fields[f] for root in k.roots for f in root.fields]  # of the running state
    components = sum(field.size > 1 for field in values)
    plain = all(field.kind == "sum" for field in k.fields)  # an instruction or two for each of them
    # running values of component loops: those of one loop, and of the loops around it
    nested: dict[int, int] = {}
    for group in k.folds.values():
        depth = len(group[0].free)
        nested[depth] = max(nested.get(depth, 0), len(group))
    fused = sum(nested.values())
    # their results, and what later loops read of those, are all wanted at the end
    kept = sum(map(len, k.folds.values())) + sum(level > 0 for _, level in k.folds)
    flat_i, flat_j = (sum(not e.free for e, _ in slots) for slots in (k.slots_i, k.slots_j))
    long_j = any(e.free for e, _ in k.slots_j)
    rows_in_memory = any(e.free for e, _ in k.slots_i) or k.size_i > 2 * few
    wide = any(root.loops for root in k.roots) or components > few
    load = weight(k, wide) * size / 4  # float64 takes two registers
    if not any(field.kind == "sum" for field in k.fields):
        chain = max(chain, CHOICES)

    # sums of sums have the rounding error of one chain that is as long as both, and join the state less often
    part, sums = chain, {f for f, field in enumerate(k.fields) if field.kind == "sum"}
    if size == 4 and sums and chain >= 2 * GROUP and not wide and sums <= added(k, wide):
        part = chain // 2
        chain = part * part

    per = 16 // size
    packed = not long_j and k.size_j <= WORDS * per
    record = size * (-(-k.size_j // per) * per if packed else k.size_j)

    C = 1
    if wide:
        # components that are written out read a record again and again, and the compiler holds it
        most = few if plain or long_j or not k.size_j else BESIDE // (size * k.size_j)
        most = max(1, min(few, chain, most))
        C = chain = part = next(c for c in (32, 16, 8, 4, 2, 1) if c <= most and (c == 1 or c * load <= BODY))
    else:
        short = chain
        while short > 8 and short % 2 == 0 and short * record > SHARED:
            short //= 2
        chain = short if short * record <= SHARED else chain
        part = part if chain % part == 0 else chain
        if fused or long_j or rows_in_memory:
            # rows come from far away: the more columns meet them at a time, the better; their terms have more rounding
            # errors of their own than the sums that then are of 16 terms
            most = MEETING if rows_in_memory and size == 4 and fused == 1 else GROUP

            def fits_in(c: int) -> bool:
                longer = max(part, c)
                return c <= most and longer % c == 0 == chain % longer and c * load <= BODY

            C = next((c for c in (16, 8, 4, 2) if fits_in(c)), 1)
            part = max(part, C)
    registers = (0 if rows_in_memory else k.size_i) + sum(HELD_BY[field.kind] for field in values)
    registers += PARTED * sum(field.kind == "sum" for field in values) if part < chain else 0
    registers += 2 * len({e.id for e in factors(k.roots) if e.axes})
    registers += (4 if size == 8 else 1) * sum(root.places > 1 for root in k.roots)
    # what pairs put into rankings has places; in registers, if these hold those of a row
    places = sum(root.places for root in k.roots if root.places > 1) * (size // 4 + 1)
    by_column = all(e.op == "row" and e.attr == J for root in k.roots if root.places > 1 for e in root.terms[1:])
    listed = 0 < places <= LISTED and by_column and not (wide or rows_in_memory)
    R = 4 if rows_in_memory else next((r for r, most in ROWS[size] if registers <= most), 1)
    # several sums take most of the registers
    gathered = size == 4 and plain and len(values) > 2 and C == 1 and not (rows_in_memory or wide)
    if gathered and R == 1 and registers <= GATHERED[2]:
        R = 2
    # single components are held while the columns and rows of a block run
    while C > 1 and rows_in_memory and not wide and (flat_i + C * flat_j) * size > HELD:
        C //= 2
    while R > 1 and (
        wide
        or R * C * size * max(1, fused, kept * size / 10) > 256
        or (rows_in_memory and R * len(values) * size * (1 if plain else C) > (128 if plain else 256))
        or R * C * load > BODY
        or (listed and R * places > LISTED)
        or (rows_in_memory and (R * flat_i + C * flat_j) * size > HELD)
    ):
        R //= 2

    # what all components of a sum have in common is kept for the columns
    common = {e.id for root in k.roots for e in maximal(root.steps, lambda e: e.axes == IJ and not e.free)}
    fits = few >= 2 * C and 2 * C * load <= BODY and 2 * C * record <= SHARED and max(fused, len(common)) <= 2
    if wide and plain and C == chain > 1 and fits:
        C *= 2  # a component of the state is read and written once for two chains
    alone = len(k.roots) == 1 and bool(k.roots[0].loops)  # others hold values of their own meanwhile
    if size == 4 and alone and plain and rows_in_memory and MEETING <= C <= few // max(1, fused, len(common)):
        R = 2  # a column that is read meets two rows

    most = min(COLUMNS // size, SHARED // max(1, record))
    columns = "none" if not k.size_j else "memory" if most < max(C, chain) else "packed" if packed else "block"
    block = max(C, chain)
    TJ = max(1, (most if columns in ("packed", "block") else COLUMNS // size) // block) * block

    full = registers > 24 or (rows_in_memory and 2 * (R * flat_i + C * flat_j) * size > HELD)
    most = min(PAIRS[size], int(BODY / (2 * load))) // R  # columns in a turn of the loop
    copies = 1 if full else max(1, min(part // C if part < chain else chain // (2 * C), most // C))
    if full and gathered and R <= 2 and registers <= GATHERED[1]:
        copies = max(1, min(part, COPIES) // R)
    parts = max(1, min(chain, most) // part) if part < chain and copies * C == part else 1
    ranked = any(root.places > 1 for root in k.roots) and not wide
    together = max(GROUP, C) if ranked and chain % max(GROUP, C) == 0 else 1
    far = size == 4 and rows_in_memory and not wide and fused == 1
    simple = size == 4 and not (rows_in_memory or wide or fused or long_j or ranked or (gathered and full and R > 1))
    room = FAR if far else ROOM if simple else ()
    taken = max(R, 2) * (C + registers + flat_i) if far else R * registers + k.size_j
    blocks = next((n for n, most in room if taken <= most), 2)
    folded = FOLDED[far and blocks > 2 and not ranked]
    unroll, parts = (1 << (n.bit_length() - 1) for n in (copies, parts))
    assert chain % part == part % min(C, part) == 0
    return Schedule(
        R, C, TJ, chain, part, unroll, parts, folded, rows_in_memory, wide, together, listed, blocks, columns
    )
