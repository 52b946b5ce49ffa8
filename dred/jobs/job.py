"""A job: what a document says, checked key by key, before any file is looked at."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dred.errors import JobError
from dred.genred import Genred
from dred.routine import Routine

Table = Mapping[str, Any]


@dataclass(frozen=True)
class Key:
    """A key of a job file.

    Attributes
    ----------
    kinds : tuple of type
        What its value may be.
    doc : str
    choices : tuple
        All values there are; none: any.
    least : number or None
        Its least value.
    """

    kinds: tuple[type, ...]
    doc: str
    choices: tuple[Any, ...] = ()
    least: float | None = None


TEXT, WHOLE, NUMBER, FLAG, LIST, TABLE = (str,), (int,), (int, float), (bool,), (list,), (dict,)

OPTIONS: Mapping[str, Key] = {
    "dtype_acc": Key(TEXT, "type of accumulators, as in Genred"),
    "use_double_acc": Key(FLAG, "whether to accumulate in float64"),
    "sum_scheme": Key(TEXT, "auto, block_sum, direct_sum or kahan_scheme"),
    "use_fast_math": Key(FLAG, "whether scales of exponents go into the rows"),
    "expand": Key(FLAG, "squared distances as |x|² + |y|² - 2 x·y"),
}
REDUCTION: Mapping[str, Key] = {
    "formula": Key(TEXT, "the formula F(p, x_i, y_j)"),
    "reduction": Key(TEXT, "name of the reduction (Sum)"),
    "opt_arg": Key((int, float, list), "K, ddof or edges, for reductions that have one"),
    "formula2": Key(TEXT, "the second formula, for reductions that have one"),
}
JOB: Mapping[str, Key] = {
    **REDUCTION,
    "reductions": Key(LIST, "several tables of these four keys, for several reductions in one sweep"),
    "axis": Key(WHOLE, "1: reduced over j, a result for each i; 0: over i, a result for each j", (0, 1)),
    "gradient": Key(TEXT, "name of a variable: compute the gradient by it, with the given cotangents"),
    "cotangents": Key(LIST, "tables as those of variables, without a type: one for each reduction"),
    "variables": Key(TABLE, "by name in the formula, in the order of their positions: type, and path or value"),
    "dtype": Key(TEXT, "float16, float32 or float64: what is stored in another type is converted when it is read"),
    "backend": Key(TEXT, "auto, cpu or cuda"),
    "options": Key(TABLE, "how sums are accumulated"),
    "output": Key(TABLE, "where results go"),
    "work": Key(TEXT, "folder of finished blocks, which all workers see (beside the output)"),
    "nan": Key(TEXT, "what NaN in variables is: propagate (into results), or an error", ("propagate", "error")),
    "verify": Key(WHOLE, "rows that are computed again in float64 (a few)", (), 0),
    "tolerance": Key(NUMBER, "largest relative error of these rows (by type)", (), 0),
    "report": Key(TEXT, "an HTML file: plan, verification, and Dask's performance report"),
    "cluster": Key(TABLE, "where it is computed"),
    "dask": Key(TABLE, 'settings of Dask\'s configuration, such as "dred.plan.x-budget" = "1 GiB"'),
}
SETTINGS = (  # of Dask's configuration, those that a job may change: others name code that is run, or places
    "dred.",
    "distributed.comm.retry.",
    "distributed.comm.timeouts.",
    "distributed.scheduler.allowed-failures",
    "distributed.scheduler.work-stealing",
    "distributed.scheduler.worker-saturation",
    "distributed.worker.memory.",
)
DATA: Mapping[str, Key] = {
    "path": Key(TEXT, "npy, zarr, parquet, csv or HDF5; or its URL"),
    "columns": Key(LIST, "of parquet and csv: names of columns, in order"),
    "value": Key((int, float, list), "the numbers themselves"),
    "chunks": Key((int, str), 'rows of a block, or their bytes such as "64 MiB"'),
}
VARIABLE: Mapping[str, Key] = {"type": Key(TEXT, "Vi(dim), Vj(dim) or Pm(dim)"), **DATA}
OUTPUT: Mapping[str, Key] = {
    "path": Key(TEXT, "a file or folder that ends in .npy, .zarr or .parquet; or its URL"),
    "paths": Key(LIST, "as many of them as the result has arrays"),
    "overwrite": Key(FLAG, "whether what is there is replaced (false)"),
}
CLUSTER: Mapping[str, Key] = {
    "scheduler": Key(TEXT, "address of a running scheduler"),
    "scheduler_file": Key(TEXT, "file that a running scheduler has written"),
    "kind": Key(TEXT, "what is started where none runs", ("auto", "cpu", "cuda")),
    "workers": Key(WHOLE, "worker processes that are started; of a running scheduler, that are waited for", (), 1),
    "threads": Key(WHOLE, "threads of each that is started on a CPU (an equal part of the cores)", (), 1),
    "memory": Key((int, str), "memory limit of each worker that is started (an equal part of 90 %)"),
    "timeout": Key(NUMBER, "seconds to wait for workers (300)", (), 0),
}


@dataclass(frozen=True)
class Data:
    """Where the numbers of a variable come from: a path, or themselves."""

    name: str
    path: str = ""
    columns: tuple[str, ...] | None = None
    value: Any = None
    chunks: int | str | None = None


@dataclass(frozen=True)
class Place:
    """Where a job is computed: keys of `CLUSTER`."""

    scheduler: str = ""
    scheduler_file: str = ""
    kind: str = "auto"
    workers: int | None = None
    threads: int | None = None
    memory: int | str | None = None
    timeout: float = 300.0


@dataclass(frozen=True)
class Job:
    """What is to be computed, of what, where, and where results go. Paths are absolute, or URLs.

    Attributes
    ----------
    reductions : tuple of dict
        Keys of `REDUCTION`.
    several : bool
        Whether they were given as a list.
    aliases : tuple of str
        As in Genred: "x = Vi(3)".
    data : tuple of Data
        Of all variables, then of the cotangents.
    outputs : tuple of str
    verify, tolerance
        None: chosen by size and type.
    """

    reductions: tuple[Mapping[str, Any], ...]
    several: bool
    axis: int
    aliases: tuple[str, ...]
    data: tuple[Data, ...]
    outputs: tuple[str, ...]
    gradient: str = ""
    dtype: str | None = None
    backend: str = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)
    overwrite: bool = False
    work: str = ""
    nan: str = "propagate"
    verify: int | None = None
    tolerance: float | None = None
    report: str = ""
    place: Place = Place()
    dask: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, document: Table, folder: str | os.PathLike[str] = ".") -> Job:
        """The job of a document, whose relative paths are relative to `folder`.

        Raises
        ------
        JobError
            Unknown keys, values of another kind, or something that must be said is not.
        """
        folder = os.path.abspath(folder)
        said = section(document, JOB, "the job")
        for name in ("axis", "variables", "output"):
            if name not in said:
                raise JobError(f"the job does not say {name}: {JOB[name].doc}")
        reductions = _reductions(said)
        variables = {name: section(given, VARIABLE, f"variables.{name}") for name, given in said["variables"].items()}
        untyped = [name for name, given in variables.items() if "type" not in given]
        if untyped:
            raise JobError(f"variables.{untyped[0]} does not say its type: {VARIABLE['type'].doc}")
        cotangents = [section(given, DATA, f"cotangents.{n}") for n, given in enumerate(said.get("cotangents", []))]
        if cotangents and "gradient" not in said:
            raise JobError("cotangents are for a gradient: name the variable by gradient = ..., or leave them out")
        data = [_data(f"variables.{name}", given, folder) for name, given in variables.items()]
        data += [_data(f"cotangents.{n}", given, folder) for n, given in enumerate(cotangents)]
        output = section(said["output"], OUTPUT, "output")
        outputs = _outputs(output, folder)
        cluster = section(said.get("cluster", {}), CLUSTER, "cluster")
        if "scheduler_file" in cluster:
            cluster["scheduler_file"] = placed(cluster["scheduler_file"], folder, "cluster.scheduler_file")
        report = placed(said["report"], folder, "report") if said.get("report") else ""
        work = placed(said["work"], folder, "work") if said.get("work") else _beside(outputs[0])
        for name, path in (("report", report), ("work", work)):
            if "://" in path:
                raise JobError(f"{name} is a path, got {path}")
        if report and not report.endswith(".html"):
            raise JobError(f"report is an HTML file, which replaces what is there: let {report} end in .html")
        written = {f"output {n}": path for n, path in enumerate(outputs)}
        _apart({**written, "record": record(outputs[0]), "work": work, "report": report}, data)
        plain = {k: said[k] for k in ("gradient", "dtype", "backend", "nan", "verify", "tolerance") if k in said}
        return cls(
            reductions, "reductions" in said, said["axis"],
            tuple(f"{name} = {given['type']}" for name, given in variables.items()), tuple(data), outputs,
            options=section(said.get("options", {}), OPTIONS, "options"), overwrite=output.get("overwrite", False),
            work=work, report=report, place=Place(**cluster), dask=_settings(said.get("dask", {})), **plain,
        )  # fmt: skip

    def routine(self) -> Routine:
        """What computes it. Errors are those of Genred, and of `Routine.grad`."""
        each = [(r["formula"], r.get("reduction", "Sum"), r.get("opt_arg"), r.get("formula2")) for r in self.reductions]
        how = {"axis": self.axis, "dtype": self.dtype, **self.options}
        if self.several:
            routine: Routine = Genred(each, self.aliases, **how)
        else:
            formula, reduction, opt_arg, formula2 = each[0]
            routine = Genred(formula, self.aliases, reduction, opt_arg=opt_arg, formula2=formula2, **how)
        return routine.grad(self.gradient) if self.gradient else routine

    @property
    def formulas(self) -> str:
        """What is computed, for people."""
        each = [
            ", ".join(
                [r.get("reduction", "Sum"), r["formula"], *(str(r[k]) for k in ("formula2", "opt_arg") if k in r)]
            )
            for r in self.reductions
        ]
        text = "; ".join(each) + f"; axis {self.axis}"
        return f"gradient by {self.gradient} of {text}" if self.gradient else text


def section(given: Any, keys: Mapping[str, Key], where: str) -> dict[str, Any]:
    """A table of which all keys are known and all values of their kind.

    Raises
    ------
    JobError
    """
    if not isinstance(given, Mapping):
        raise JobError(f"{where} is a table of keys, got {given!r}")
    for name, value in given.items():
        if name not in keys:
            close = difflib.get_close_matches(str(name), keys, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(keys)}"
            raise JobError(f"{where} has an unknown key {name!r}: {hint}")
        key = keys[name]
        right = isinstance(value, key.kinds) and (bool in key.kinds or not isinstance(value, bool))
        if not right:
            kinds = " or ".join(_SPOKEN[kind] for kind in key.kinds)
            raise JobError(f"{name} of {where} is {kinds}, got {value!r}: {key.doc}")
        if key.choices and value not in key.choices:
            raise JobError(f"{name} of {where} is {' or '.join(map(str, key.choices))}, got {value!r}: {key.doc}")
        if key.least is not None and not value >= key.least:
            raise JobError(f"{name} of {where} is at least {key.least:g}, got {value!r}: {key.doc}")
    return dict(given)


_SPOKEN = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "a table",
}


def placed(path: str, folder: str, where: str) -> str:
    """A path as an absolute one, relative to a folder; a URL as it is. Nothing in it is expanded."""
    path = path.removeprefix("file://")
    if not path or "\0" in path:
        raise JobError(f"{where} is no path: {path!r}")
    return path if "://" in path else os.path.normpath(os.path.join(folder, path))


def record(output: str) -> str:
    """The file beside an output that says what it is; none of a URL."""
    return "" if "://" in output else f"{output.rstrip('/')}.json"


def _settings(given: Table, within: str = "") -> dict[str, Any]:
    """Settings by their whole names, whether they are given as tables within tables or not."""
    found: dict[str, Any] = {}
    for name, value in given.items():
        key = f"{within}{name}"
        if isinstance(value, Mapping):
            found |= _settings(value, f"{key}.")
        elif not key.replace("_", "-").startswith(SETTINGS):
            raise JobError(f"dask says {key}, which is for Dask's own files of configuration: a job may say "
                           f"{', '.join(f'{each}*' if each.endswith('.') else each for each in SETTINGS)}")  # fmt: skip
        else:
            found[key] = value
    return found


def _reductions(said: Table) -> tuple[Mapping[str, Any], ...]:
    own = [name for name in REDUCTION if name in said]
    if "reductions" in said:
        if own:
            raise JobError(f"the job says reductions and {own[0]}: put {own[0]} into the items of reductions")
        found = tuple(section(r, REDUCTION, f"reductions.{n}") for n, r in enumerate(said["reductions"]))
        if not found:
            raise JobError("reductions is an empty list")
    else:
        found = ({name: said[name] for name in own},)
    for n, r in enumerate(found):
        if "formula" not in r:
            where = f"reductions.{n}" if "reductions" in said else "the job"
            raise JobError(f"{where} does not say formula: {REDUCTION['formula'].doc}")
    return found


def _data(where: str, given: Table, folder: str) -> Data:
    if ("path" in given) == ("value" in given):
        raise JobError(f"{where} says either path or value")
    columns = given.get("columns")
    if columns is not None and not all(isinstance(name, str) for name in columns):
        raise JobError(f"columns of {where} are names of columns, got {columns!r}")
    path = placed(given["path"], folder, f"path of {where}") if "path" in given else ""
    chosen = None if columns is None else tuple(columns)
    return Data(where, path, chosen, given.get("value"), given.get("chunks"))


def _outputs(said: Table, folder: str) -> tuple[str, ...]:
    if ("path" in said) == ("paths" in said):
        raise JobError("output says either path, or the paths of several arrays")
    paths = [said["path"]] if "path" in said else said["paths"]
    if not paths or not all(isinstance(path, str) for path in paths):
        raise JobError(f"paths of output are texts, got {paths!r}")
    return tuple(placed(path, folder, "path of output") for path in paths)


def _beside(output: str) -> str:
    """The work folder of an output: hidden, beside it; of a URL, in the present folder."""
    head, name = os.path.split(output.rstrip("/"))
    return os.path.join(os.getcwd() if "://" in output else head, f".{name}.dred")


def _apart(written: Mapping[str, str], data: Sequence[Data]) -> None:
    """Refuse to write over an input, into one or around one, or two things to one place."""
    places = [(name, path) for name, path in written.items() if path]
    read = [(each.name, each.path) for each in data if each.path]
    for n, (name, path) in enumerate(places):
        for other, there in [*places[:n], *read]:
            mine, its = (os.path.join(p if "://" in p else os.path.realpath(p), "") for p in (path, there))
            if mine.startswith(its) or its.startswith(mine):
                raise JobError(f"{name} would be written to {path}, and {other} is {there}: name another path")
