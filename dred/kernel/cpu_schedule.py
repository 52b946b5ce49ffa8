"""How a CPU kernel is cut into tiles, chains and threads' shares: from sizes alone, never from the machine."""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

from dred.formula.node import I, J
from dred.kernel.ir import FOLDS, IJ, Kernel, Root, walk
from dred.kernel.primitives import PRIMITIVES
from dred.kernel.spec import KernelSpec

LANES = {"float32": 16, "float64": 8}  # of a vector: 64 bytes, whatever the registers of the machine
ROWS_VALUES, ROWS_MOST = 1 << 18, 1024  # of row records that are staged together: they stay in the L2 or L3 cache
STATES_VALUES = 1 << 18  # of states that are there together: they stay in the L2 or L3 cache
PANEL_BYTES, PANEL_MOST = 1 << 19, 4096  # of column records: they stay in the L2 cache while all tiles meet them
PANEL_FEW = 1 << 14  # bytes where lanes are columns: each panel meets a few rows alone, and stays in the L1 cache
PANEL_LEAST = 64  # columns, if that takes the L3 cache: once per panel a tile's state is read from there
CHOICES = 64  # steps of a chain that adds nothing up
FEW = 0.75  # lanes that are rows, at least, as a part of all; else lanes are columns
UNITS = 64  # shares that there are to be for threads: columns are split where rows do not make as many
SHARE = 2e6  # instructions that are worth a thread of their own
PART = 5e7  # and those that are worth states of their own, which take a call and are merged
STATES = 1 << 25  # bytes of the states of all parts, at most
STEPS = ((4, 18), (8, 45), (4, 80), (2, 160))  # and what one of them takes at most, in instructions
STAGGERED = 8  # of these
RANKED = (8, 45)  # the same of a short ranking
COMPONENTS = {False: 4, True: 8}  # of a large state, in registers at a time; and where their sums wait in memory
SUMS = ("add", "fma")  # steps that add up


class Schedule(NamedTuple):
    """Blocking of a kernel. What decides about bits depends neither here nor elsewhere on the machine.

    The lanes of a vector are rows (`along` = I; a column's record is broadcast), or columns where there are few rows
    (`along` = J; a row's record is broadcast, and every lane has a state of its own). In what follows a step is one
    column, or one vector of columns.

    Attributes
    ----------
    along : int
        I or J.
    lanes : int
    chain : int
        Steps whose terms are added in the compute type before they join the state.
    steps : int
        Steps whose pairs are written next to each other: they share what is loaded for rows, and hide each other's
        latency. A divisor of the chain.
    components : int
        Components of a large state that are in registers at a time, while pairs go by. No bit depends on them.
    span : int
        Steps of pairs that go by before they join the state. Where all is plain sums they are more than a chain: sums
        of half as many steps as a chain has, of which half as many are added up, have the rounding error of a chain.
    rows : int
        Rows whose records are staged together, and whose states are in scratch memory meanwhile: what they are in the
        arrays is far apart, a component from the next, and read and written once.
    panel : int
        Columns whose records are staged together: a number of whole chains.
    behind : bool
        Whether sums of components join the state while pairs go by the next ones. No bit depends on it.
    """

    along: int
    lanes: int
    chain: int
    steps: int
    components: int
    span: int
    rows: int
    panel: int
    behind: bool

    @property
    def staggered(self) -> bool:
        """Whether the texts of steps are mixed: short ones, but so long that each waits for itself."""
        return self.steps == STAGGERED

    @property
    def columns(self) -> int:
        """Columns of a step."""
        return self.lanes if self.along == J else 1

    @property
    def tile(self) -> int:
        """Rows of a tile."""
        return self.lanes if self.along == I else 1


def schedule(kernel: Kernel, dtype: str, chain: int, along: int = I, many: bool = False) -> Schedule:
    """Blocking of a kernel.

    Costs are counted in vector instructions. A step of a short formula is loads of its column's record plus
    `Kernel.cost`: eight at once, staggered, hide the latency of an exponential, as long as their text is short. A
    component of a long vector is one load for the row, and one load and two operations for each step: four steps spread
    the former, and more need more registers than there are. A component of a large state costs a load, a conversion and
    a store of the accumulator per span, and one load of the pair's value for each step, which several components share:
    as many as there are registers for. Of many, a processor has nothing to multiply while all of their sums are joined:
    one is joined in each part of the next ones' span. Steps of a ranking share one test, whether any term may have a
    place: eight, as long as their text is short.

    Parameters
    ----------
    kernel : Kernel
    dtype : str
    chain : int
        Columns that are added in the compute type, at most.
    along : int
        I or J: what the lanes are.
    many : bool
        Whether there are as many as 32 registers for vectors of 64 bytes.
    """
    itemsize = {"float32": 4, "float64": 8}[dtype]
    lanes = LANES[dtype]
    tile, columns = (lanes, 1) if along == I else (1, lanes)
    large = [root for root in kernel.roots if root.loops and root.places == 1]
    summed = all(plain_sum(root) for root in large) if large else _summed(kernel)
    span = (chain // 2) ** 2 if chain >= 8 and summed else chain
    if chain > 1 and not any(field.kind == "sum" for field in kernel.fields):
        chain = span = CHOICES  # no rounding, whatever the order
    values = sum(field.size for field in kernel.fields) * (lanes if along == J else 1)
    rows = min(ROWS_MOST, max(1, min(ROWS_VALUES // max(1, kernel.size_i), STATES_VALUES // values)))
    room = PANEL_FEW if along == J else PANEL_BYTES
    panel = max(min(PANEL_MOST, room // (max(1, kernel.size_j) * itemsize)), PANEL_LEAST)
    fields = max((len(root.fields) for root in large), default=1)
    # where lanes are columns, each component is a load for each step: no multiplication waits for a join
    behind = many and along == I and bool(large) and fields == 1 and span > chain >= 2 * COMPONENTS[True]
    return Schedule(
        along,
        lanes,
        chain,
        _steps(kernel, chain),
        max(1, COMPONENTS[behind] // fields),
        span,
        ceil(rows / tile) * tile,
        max(1, panel // (span * columns)) * span * columns,
        behind,
    )


def plain_sum(root: Root) -> bool:
    """Whether a root adds up terms of pairs, and reads no other field."""
    sums = (step.op in ("add", "fma") and merge.op == "add" for step, merge in zip(root.steps, root.merge, strict=True))
    states = [e for e in walk(root.steps) if e.op == "state"]
    return all(sums) and len(states) == len(root.fields)


def _summed(kernel: Kernel) -> bool:
    """Whether chains without components add terms up, or choose one of them, and do nothing else; some add up."""
    steps = [step for root in kernel.roots for step in (root.quick or root).steps if step.op != "state"]
    ops = {step.op for step in steps}
    # each reads its own running value, and no other one
    alone = all([e.op for e in walk([step]) if e.op == "state"] == ["state"] for step in steps)
    own = all(any(a.op == "state" for a in step.args) for step in steps)
    single = all(root.places == 1 for root in kernel.roots)
    return single and alone and own and ops <= {*SUMS, "max", "min"} and not ops.isdisjoint(SUMS)


def _steps(kernel: Kernel, chain: int) -> int:
    """Steps whose pairs are written next to each other."""
    pair = [e for e in walk(kernel.steps) if e.axes == IJ]
    text = sum(PRIMITIVES[e.op].cost for e in pair if e.op in PRIMITIVES)
    ranked = any(root.places > 1 for root in kernel.roots)
    if any(e.op in FOLDS for e in pair) or any(root.loops for root in kernel.roots) or (ranked and text > RANKED[1]):
        return 4 if chain % 4 == 0 else 1
    ways = (RANKED, *STEPS) if ranked else STEPS
    return next((n for n, longest in ways if text <= longest and chain % n == 0), 1)


class Split(NamedTuple):
    """How a call is cut for threads.

    Attributes
    ----------
    along : int
        What the lanes are: I, or J where there are few rows.
    parts : tuple of (int, int)
        Parts of the columns, first and one past the last, each with states of its own, which are merged in a fixed
        order.
    """

    along: int
    parts: tuple[tuple[int, int], ...]


def split(spec: KernelSpec, M: int, N: int, batches: int = 1) -> Split:
    """How M rows and N columns of each batch are cut.

    Lanes are columns where more than a quarter of the lanes would be no rows, and there are columns for several
    chains of such vectors. Columns are split where there are less than `UNITS` tiles of rows for threads, and as long
    as a part is worth it: a pair is taken for two instructions per value that is read, and some more.
    """
    lanes = LANES[spec.dtype]
    least = 4 * CHOICES * lanes
    if least > N:  # too few columns, whatever the rest
        return Split(I, ((0, N),))
    tiles = ceil(M / lanes)
    few = tiles <= 2 and FEW * tiles * lanes > M
    units, states = (batches * M, batches * M * lanes) if few else (batches * tiles, batches * M)
    cost = 10 + 2 * sum(v.dim for v in spec.read)
    state = 8 * states * sum(field.size for field in spec.fields)
    work = batches * (M + few) * N * cost  # of few rows, to stage a column is as much as a pair
    most = min(UNITS // units, int(work / PART), STATES // state, N // least)
    cut = ceil(N / max(1, most) / least) * least
    return Split(J if few else I, tuple((start, min(start + cut, N)) for start in range(0, N, cut)))
