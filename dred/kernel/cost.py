"""What a pair costs: the instructions of its steps."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from dred.errors import LimitError
from dred.kernel.ir import FOLDS, IJ, Loop, Root, walk
from dred.kernel.primitives import PRIMITIVES

MAX_COST = 1e10  # instructions of a pair
PLACE = 6.0  # instructions of a pair that a ranking passes over


def cost(roots: Sequence[Root]) -> float:
    """Instructions per pair; what is staged or computed once costs nothing here.

    A value is computed in every turn of the loops around it, but for those inside the loops that it varies with.
    """
    varying: set[int] = set()
    for e in walk([e for root in roots for e in root.steps]):
        if e.axes == IJ or e.op == "state" or any(a.id in varying for a in e.args):
            varying.add(e.id)
    seen: set[tuple[int, tuple[Loop, ...]]] = set()
    stack = [(e, root.loops) for root in roots for e in root.steps]
    # a pair is compared with the last place of a ranking, and seldom inserted
    total = sum(PLACE * prod(float(loop.length) for loop in root.loops) for root in roots if root.places > 1)
    while stack:
        e, around = stack.pop()
        deepest = max((loop.depth for loop in e.free), default=-1)
        loops = tuple(loop for loop in around if loop.depth <= deepest)
        if (e.id, loops) in seen or e.id not in varying:
            continue
        seen.add((e.id, loops))
        turns = prod(float(loop.length) for loop in (*loops, *([e.attr] if e.op in FOLDS else [])))
        name = FOLDS[e.op][0] if e.op in FOLDS else e.op
        total += turns * (PRIMITIVES[name].cost if name in PRIMITIVES else 0.0)
        if total > MAX_COST:
            raise LimitError(
                f"the formula takes more than {MAX_COST:.0e} operations at every pair: products of products of long"
                " vectors are computed again for each component, compute the inner ones in a call of their own"
            )
        stack.extend((a, (*loops, e.attr) if e.op in FOLDS else loops) for a in e.args)
    return max(1.0, float(total))
