"""Reductions with their parameters, as the tests of their laws go through them: every entry of the table is in here."""

from typing import Any, NamedTuple

from dred.reductions import REDUCTIONS, monoid_name

PARAMETERS: dict[str, tuple[Any, ...]] = {
    "": (None,),
    "K": (1, 3, 60),
    "ddof": (0, 2),
    "edges": ((-2.0, -0.5, 0.0, 1.0, 3.0),),
}


class Case(NamedTuple):
    name: str
    weighted: bool = False
    parameter: Any = None
    kahan: bool = False

    def __str__(self) -> str:
        words = [self.name, *(["G"] if self.weighted else []), *(["kahan"] if self.kahan else [])]
        return "-".join([*words, *([str(self.parameter)] if isinstance(self.parameter, int) else [])])


def weightings(name: str) -> tuple[bool, ...]:
    """Without a second formula, with one, or both."""
    signature = REDUCTIONS[name].signature
    if "G?" in signature or REDUCTIONS[name].weighted:
        return (False, True)
    return ("G" in signature,)


CASES = [
    Case(name, weighted, parameter, kahan)
    for name, entry in REDUCTIONS.items()
    for weighted in weightings(name)
    for kahan in (False, True)
    if not kahan or monoid_name(entry, weighted, True)
    for parameter in PARAMETERS[entry.parameter]
]
