"""The types of the methods that follow from the tables, for editors and type checkers: `python -m dred.lazy.stubs`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

from dred.lazy.made import Made, methods

HEAD = '''\
"""Printed from the tables by `make docs`: to change it, change the tables."""

# ruff: noqa: E501
# fmt: off
from collections.abc import Sequence
from typing import Any, Literal, Protocol, overload

from dred.lazy.tensor import ComplexLazyTensor, LazyTensor

class Array(Protocol):
    """An array of any library, or a LazyTensor."""

    @property
    def shape(self) -> Any: ...
    @property
    def dtype(self) -> Any: ...

Operand = Array | complex | Sequence[complex]
'''


def stub(made: Made) -> Iterator[str]:
    """The lines of a method."""
    cases = made.others or (({}, made.returns),)
    for n, (changed, returns) in enumerate(cases):
        if made.others:
            yield "    @overload"
        words = ["self"]
        for k, p in enumerate(made.parameters):
            if annotation := changed.get(p.name, p.annotation):
                words += ["*"] if len(words) < k + 1 and p.kind is not p.VAR_KEYWORD else []
                words.append(written(p.replace(annotation=annotation)))
        head, last = f"    def {made.name}({', '.join(words)}) -> {returns}:", n == len(cases) - 1
        yield f"{head}{'' if last else ' ...'}{_ignored(made, n)}"
        if last:
            yield f'        """{made.doc}"""'


def _ignored(made: Made, n: int) -> str:
    """What mypy has to let pass: comparisons that are no truths, and complex numbers among what has a shape."""
    equality = made.name in ("__eq__", "__ne__")
    overlap = n == 1 and len(made.others) == 3 and made.others[2][1] not in (made.others[1][1], "Any")
    code = "override" if equality else "overload-overlap" if overlap else ""
    return f"  # type: ignore[{code}]" if code else ""


def written(p: inspect.Parameter) -> str:
    """A parameter; one whose default is of another type has none."""
    stars = "**" if p.kind is p.VAR_KEYWORD else ""
    required = p.default is p.empty or (p.default is None and "None" not in p.annotation)
    return f"{stars}{p.name}: {p.annotation}{'' if required else f' = {p.default!r}'}"


def text() -> str:
    """The stub file.

    Examples
    --------
    >>> print([line for line in text().splitlines() if "def sqdist" in line][0].strip())
    def sqdist(self, other: Operand) -> LazyTensor:
    """
    lines = [HEAD]
    for of_complex, name in ((False, "Methods"), (True, "ComplexMethods")):
        lines.append(f"class {name}:")
        for made in methods(of_complex):
            lines += stub(made)
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    print(text(), end="")
