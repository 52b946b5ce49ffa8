"""How many rows a fold may have, and how the reduced rows come to it: budgets of bytes and seconds."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dred.cluster.cuts import pieces
from dred.cluster.settings import Settings
from dred.cluster.sizes import Input, Sizes
from dred.errors import PlanError, human

LEAST_ROWS = 256  # x rows per block below which more blocks cost more than they bring, where the plan may choose

FEEDS = {
    "resident": "resident: every worker may come to hold all y blocks, {}",
    "stream": "stream: stored rows are read by path, and {} come as blocks",
    "waves": "waves: y blocks are computed and folded step by step, {} at a time",
}


def feed(sizes: Sizes, settings: Settings) -> str:
    """How y comes to the folds: what is stored by path, the rest at once if `y_budget` allows it."""
    y = sizes.y
    stored = any(one.stored for one in y.inputs)
    total = y.rows * sum(one.row_bytes for one in y.inputs if not one.stored)
    if settings.feed == "waves":
        return "waves"
    if settings.feed == "stream" and not stored:
        raise PlanError(
            "dred.plan.feed is stream, but no variable of the reduced index is stored: pass dred.from_file(...) or "
            "dred.from_array(...), or use another feed"
        )
    if settings.feed == "resident":
        stored, total = False, y.rows * y.row_bytes
    if total <= settings.y_budget:
        return "stream" if stored else "resident"
    if settings.feed != "auto":
        raise PlanError(
            f"dred.plan.feed is {settings.feed}, but {human(total)} of reduced rows would come to lie in every "
            f"worker, more than dred.plan.y-budget of {human(settings.y_budget)}: raise it, or use another feed"
        )
    return "waves"


def moving(sizes: Sizes, feed: str) -> int:
    """Bytes of a y row that come as blocks of dask's."""
    return sum(one.row_bytes for one in sizes.y.inputs if not one.stored or feed == "resident")


def touched(one: Input, blocks: Sequence[int], wanted: Sequence[int]) -> int:
    """Rows of the chunks that some of the blocks are put together of."""
    found = pieces(one.chunks or (0,), blocks)
    return sum({piece.chunk: piece.rows for j in wanted for piece in found[j]}.values())


def most_kept(sizes: Sizes, rate: float, settings: Settings) -> int:
    """Most x rows that one fold may have: with `LEAST_ROWS` reduced rows it is short, and its states fit."""
    row = sizes.x.row_bytes + 2 * sizes.state_row_bytes + sizes.out_row_bytes
    if row > settings.x_budget and sizes.x.rows:
        raise PlanError(
            f"a single kept row with its states holds {human(row)}, more than dred.plan.x-budget of "
            f"{human(settings.x_budget)}: raise it in dask's configuration"
        )
    pairs = settings.longest_fold * rate / sizes.work if sizes.work else math.inf
    return max(
        1,
        min(
            settings.x_budget // max(row, 1),
            int(min(pairs / max(1, min(LEAST_ROWS, sizes.y.rows)), max(1, sizes.x.rows))),
        ),
    )


def most_reduced(x_rows: int, lanes: int, feed: str, sizes: Sizes, rate: float, settings: Settings) -> int:
    """Most y rows that one fold over `x_rows` kept rows may read, at least 1."""
    y = sizes.y
    if not y.rows:
        return 1
    seconds = x_rows * sizes.work / rate  # of one y row
    most = settings.longest_fold / seconds if seconds else math.inf
    if most < 1:
        raise PlanError(
            f"a single pair of {sizes.operations:,} operations takes about {sizes.operations / rate:.3g} s, more than "
            f"dred.plan.longest-fold of {settings.longest_fold:g} s: raise it"
        )
    row = moving(sizes, feed)
    if row:
        if row > settings.step:
            raise PlanError(
                f"a single reduced row holds {human(row)}, more than dred.plan.step of {human(settings.step)}: "
                "raise it in dask's configuration"
            )
        most = min(most, settings.step // row)
        if feed == "waves":
            most = min(most, settings.y_budget // (row * lanes))
    return max(1, int(min(most, y.rows)))
