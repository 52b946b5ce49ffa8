"""Preconditioners of conjugate gradients: something like the matrix, whose inverse is cheap."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dred.errors import OptionError

PRECONDITIONERS: Mapping[str, Any] = {}


def chosen(name: str | None, rank: int | None) -> None:
    """Whether a preconditioner is known, and has a rank if it takes one."""


def of(solver: Any, space: Any, how: Any, ranges: Any) -> Callable[[Any], Any] | None:
    return None
