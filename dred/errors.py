"""Exceptions of dred: one class per kind of mistake, each message says what, where, the numbers and what to do."""

from __future__ import annotations

from typing import Any

SHOWN = 60  # characters of a text that an error shows on either side of the offending part, and of that part


def human(count: float) -> str:
    """Bytes for people: `human(1_200_000)` is '1.2 MB'."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} PB"


class DredError(Exception):
    """Base of every exception that dred raises on purpose.

    Errors travel between processes: whatever was given to the constructor is given again when one is unpickled.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> DredError:
        self = super().__new__(cls, *args, **kwargs)
        self._given = (args, kwargs)
        return self

    _given: tuple[tuple[Any, ...], dict[str, Any]]

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), *self._given)


def _again(cls: type[DredError], args: tuple[Any, ...], kwargs: dict[str, Any]) -> DredError:
    return cls(*args, **kwargs)


class FormulaError(DredError, ValueError):
    """A formula, alias or constant that means nothing; shows the text with a caret under the offending part.

    Parameters
    ----------
    message : str
        What is wrong, with the numbers involved.
    text : str, optional
        The formula (or alias) as the user wrote it.
    span : (int, int), optional
        First and one-past-last character of the offending part.
    hint : str, optional
        What to do.
    """

    def __init__(self, message: str, text: str | None = None, span: tuple[int, int] = (0, 0), hint: str = "") -> None:
        self.message, self.text, self.span, self.hint = message, text, span, hint
        super().__init__("\n".join([message, *self._excerpt(), *([hint] if hint else [])]))

    def _excerpt(self) -> list[str]:
        if self.text is None:
            return []
        start, end = self.span[0], min(self.span[1], self.span[0] + SHOWN)
        first = self.text.rfind("\n", 0, start) + 1
        last = self.text.find("\n", start)
        last = len(self.text) if last < 0 else last
        lo, hi = max(first, start - SHOWN), min(last, max(end, start) + SHOWN)
        head, tail = "..." if lo > first else "", "..." if hi < last else ""
        width = max(1, min(end, hi) - start)
        return [f"    {head}{self.text[lo:hi]}{tail}", "    " + " " * (len(head) + start - lo) + "^" * width]

    def located(self, text: str, span: tuple[int, int]) -> FormulaError:
        """The same error with a place, where it has none yet."""
        return self if self.text is not None else type(self)(self.message, text, span, self.hint)


class FormulaSyntaxError(FormulaError):
    """The text is not in the language."""


class UnknownNameError(FormulaError):
    """A name that is no alias, no operation and no reduction."""


class ArgumentError(FormulaError):
    """Wrong number or kind of arguments of an operation."""


class DimensionError(FormulaError):
    """Dimensions that do not fit together."""


class IndexRangeError(FormulaError):
    """A component, range or position outside its vector."""


class AliasError(FormulaError):
    """A declaration of a variable that cannot be read."""


class VariableError(FormulaError):
    """Declarations of variables that contradict each other."""


class DerivativeError(FormulaError):
    """A derivative that does not exist or is not defined."""


class LimitError(FormulaError):
    """A formula, dimension or constant beyond the limits of the language."""


class EntryError(DredError, ValueError):
    """An entry of the table of operations or of reductions that is not well-formed.

    Parameters
    ----------
    entry : str
        Its name.
    what : str
        What is wrong with it.
    text : str, optional
        The text of the entry in which it is.
    """

    def __init__(self, entry: str, what: str, text: str = "") -> None:
        self.entry, self.what, self.text = entry, what, text
        super().__init__(f"the entry {entry}: {what}" + (f", in {text!r}" if text else ""))


class OptionError(DredError, ValueError):
    """An argument of a routine that is not accepted."""


class InputError(DredError, ValueError):
    """Arrays that do not fit the declared variables (number, rank, shape, rows, chunks)."""


class DtypeError(InputError, TypeError):
    """Arrays of a type that the routine does not compute with."""


class MissingPackageError(DredError, ImportError):
    """A package that is needed for what was asked, and is not installed."""


class BackendError(DredError, RuntimeError):
    """The requested backend cannot run here."""


class DeviceMemoryError(BackendError, MemoryError):
    """Work that does not fit into the memory of a GPU, however few rows of it are computed at a time."""


class PlanError(DredError, ValueError):
    """Work that cannot be planned, or does not fit."""


class JobError(DredError, ValueError):
    """A job file, or a key of it, that cannot be used."""


class StoreError(DredError, OSError):
    """A folder of finished results that cannot be used, or not for this computation."""


class WorkersLostError(DredError, RuntimeError):
    """The scheduler gave a task up, since workers died again and again while it was theirs.

    Parameters
    ----------
    task : str
        Its key.
    last : str
        Address of the worker that died last.
    allowed : int
        How many may die, as the scheduler was told.
    nbytes : int
        What a fold holds by the plan.
    formula : str
        What was being computed, shortened.
    """

    def __init__(self, task: str, last: str, allowed: int, nbytes: float, formula: str) -> None:
        self.task, self.last, self.allowed, self.nbytes, self.formula = task, last, allowed, nbytes, formula
        super().__init__(
            f"the scheduler gave up task {task}: {allowed + 1} workers died while it was theirs, the last was {last}"
            f"\n    while computing {formula}"
            f"\nIf they ran out of memory (a fold holds {human(nbytes)} beside blocks of reduced rows, "
            "see routine.explain): give workers more, or lower dred.plan.x-budget and dred.plan.step. "
            "If they were killed from outside (preemption): set distributed.scheduler.allowed-failures to 100 where "
            "the scheduler starts. routine.compute(..., store=FOLDER) goes on with what was finished."
        )


class SolveError(DredError, RuntimeError):
    """A linear system that was not solved.

    Parameters
    ----------
    message : str
    info : dred.SolveInfo
        Iterations and residuals until then.
    solution : array
        What they came to, in which other systems of the call may be solved.
    """

    def __init__(self, message: str, info: Any = None, solution: Any = None) -> None:
        self.info, self.solution = info, solution
        super().__init__(message)


class FoldError(DredError, RuntimeError):
    """A task of a plan failed where it ran.

    Parameters
    ----------
    cause : str
        Type and text of the exception.
    place : str
        Which task, and the rows it was given.
    formula : str
        What was being computed, shortened.
    backend : str
        By which kernels.
    i, lane, step : int
        Number of the block of kept rows, of the lane, and of the task within the lane.
    """

    def __init__(self, cause: str, place: str, formula: str, backend: str, i: int, lane: int, step: int) -> None:
        self.cause, self.place, self.formula, self.backend = cause, place, formula, backend
        self.i, self.lane, self.step = i, lane, step
        super().__init__(f"{cause}\n    while folding {place}\n    of {formula}\n    on backend {backend!r}")
