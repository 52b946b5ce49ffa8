"""Covering arrays: rows in which any two levels of two factors meet, greedily and the same in every process."""

from collections.abc import Hashable, Sequence
from itertools import combinations, product

Factors = dict[str, Sequence[Hashable]]
Row = tuple[Hashable, ...]


def pairs_of(row: Row) -> set[tuple[int, Hashable, int, Hashable]]:
    """The pairs of levels that meet in a row, with the places of their factors."""
    return {(a, row[a], b, row[b]) for a, b in combinations(range(len(row)), 2)}


def all_pairs(factors: Factors) -> set[tuple[int, Hashable, int, Hashable]]:
    levels = list(factors.values())
    return {
        (a, left, b, right)
        for a, b in combinations(range(len(levels)), 2)
        for left, right in product(levels[a], levels[b])
    }


def covering(factors: Factors) -> list[Row]:
    """One row for each pair of the two largest factors, no fewer would do; then rows for what is still missing."""
    levels = list(factors.values())
    first, second = sorted(sorted(range(len(levels)), key=lambda k: -len(levels[k]))[:2])
    missing, rows = all_pairs(factors), []

    def add(chosen: dict[int, Hashable]) -> None:
        """A row that has the chosen levels, and of the others those that meet most for the first time."""
        for k in range(len(levels)):
            if k not in chosen:
                turn = len(rows) % len(levels[k])  # among equals each in its turn
                candidates = [*levels[k][turn:], *levels[k][:turn]]
                chosen[k] = max(candidates, key=lambda level: sum(
                    (min(k, a), level if k < a else chosen[a], max(k, a), chosen[a] if k < a else level) in missing
                    for a in chosen))  # fmt: skip
        rows.append(tuple(chosen[k] for k in range(len(levels))))
        missing.difference_update(pairs_of(rows[-1]))

    for left, right in product(levels[first], levels[second]):
        add({first: left, second: right})
    while missing:
        a, left, b, right = min(missing, key=repr)
        add({a: left, b: right})
    return rows
