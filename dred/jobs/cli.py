"""The command line: `dred run`, `plan`, `check` and `bench`; `dask dred` is the same."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import click

from dred import __version__
from dred.cluster import connect
from dred.errors import DredError
from dred.jobs import document, runner
from dred.jobs.job import Job
from dred.jobs.log import Log
from dred.jobs.runner import Code

CODES = """\b
Exit codes:
  0   done
  1   failed; finished blocks are kept: called again, it continues
  2   refused before anything was computed: the job, its files, or a plan that does not fit
  3   done, but rows that were computed again in float64 are others
  75  ended by SIGTERM: called again, it continues
  130 ended by Ctrl-C: likewise"""


@click.group("dred", context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dred")
def main() -> None:
    """Exact reductions of symbolic formulas over all pairs of points: from files of points to files of results."""


_JOB = (
    click.argument("job", type=click.Path(dir_okay=False)),
    click.argument("keys", nargs=-1, metavar="[KEY=VALUE]..."),
    click.option("--scheduler", metavar="ADDRESS", help="use a running cluster, such as tcp://host:8786"),
    click.option(
        "--scheduler-file", type=click.Path(), help="use a running cluster whose scheduler has written a file"
    ),
)


def _takes_job(command: Callable[..., None]) -> Callable[..., None]:
    for each in reversed(_JOB):
        command = each(command)
    return command


def _read(path: str, keys: tuple[str, ...], more: Mapping[str, Any]) -> Job:
    """The job of a file, with keys of it overridden by texts and by options."""
    said = document.override(document.load(path), keys)
    for name, value in more.items():
        if value is not None:
            *tables, last = name.split(".")
            inner = said
            for table in tables:
                inner = inner.setdefault(table, {})
            inner[last] = os.path.abspath(value) if last in document.PATHS else value
    return Job.of(said, os.path.dirname(os.path.abspath(path)))


@main.command(epilog=CODES)
@_takes_job
@click.option("--verify", type=click.IntRange(0), metavar="N", help="rows to compute again in float64 (a few)")
@click.option("--nan", type=click.Choice(["propagate", "error"]), help="what NaN in the points is")
@click.option("--report", type=click.Path(dir_okay=False), help="write an HTML report")
@click.option("--quiet", "-q", is_flag=True, help="say nothing but errors")
@click.option("--log-json", is_flag=True, help="say it in JSON, an object a line")
def run(job: str, keys: tuple[str, ...], quiet: bool, log_json: bool, **options: Any) -> None:
    """Compute the results of the job file JOB (TOML or YAML).

    KEY=VALUE overrides a key of the file: axis=0, variables.x.path=x.npy, cluster.workers=4. A job that was ended, by
    whatever, goes on where it was when it is run again.
    """
    log = Log(quiet, log_json)
    names = {"scheduler": "cluster.scheduler", "scheduler_file": "cluster.scheduler_file"}
    try:
        code = runner.run(_read(job, keys, {names.get(n, n): value for n, value in options.items()}), log)
    except DredError as error:
        log.say("refused", str(error), error=True, type=type(error).__name__)
        code = Code.REFUSED
    except (runner.Terminated, KeyboardInterrupt) as end:
        log.say("ended", "ended before anything was computed", error=True)
        code = Code.ENDED if isinstance(end, runner.Terminated) else Code.INTERRUPTED
    click.get_current_context().exit(int(code))


@main.command()
@_takes_job
@click.option("--workers", type=click.IntRange(1), metavar="W", help="how many workers to think of")
@click.option("--json", "as_json", is_flag=True, help="say it in JSON")
def plan(
    job: str,
    keys: tuple[str, ...],
    workers: int | None,
    as_json: bool,
    scheduler: str | None,
    scheduler_file: str | None,
) -> None:
    """Say what the job file JOB takes: tasks, bytes, seconds, memory. Nothing is computed.

    Without a running cluster, for the workers that `dred run` would start here. Exit code 2: it cannot be run, or does
    not fit.
    """
    try:
        more = {"cluster.scheduler": scheduler, "cluster.scheduler_file": scheduler_file}
        read = _read(job, keys, more)
        with connect.configured(read.dask), connect.running(**runner.where(read)):
            prepared = runner.Prepared.of(read)
            explanation = prepared.explain(workers)
    except DredError as error:
        click.echo(f"dred: {error}", err=True)
        click.get_current_context().exit(int(Code.REFUSED))
    if as_json:
        facts = {
            "fits": explanation.fits,
            "seconds": explanation.seconds,
            "workers": explanation.cluster.workers,
            "memory_limit": explanation.cluster.memory,
            "plans": [dict(table) for table in explanation.tables()],
            "disk": prepared.disk,
        }
        click.echo(json.dumps(facts, indent=1))
    else:
        click.echo(f"{read.formulas}\n{explanation}\ndisk          {prepared.disk}")
    click.get_current_context().exit(int(Code.DONE if explanation.fits else Code.REFUSED))


@main.command()
@click.option("--json", "as_json", is_flag=True, help="say it in JSON")
def check(as_json: bool) -> None:
    """Say what this machine has, and whether dred computes right on it."""
    from dred.jobs.check import look

    found = look()
    click.echo(json.dumps(found.as_dict(), indent=1) if as_json else str(found))
    click.get_current_context().exit(0 if found.ok else 1)


@main.command()
@click.option("--budget", type=click.FloatRange(1), default=40.0, show_default=True, help="seconds it may take")
@click.option("--json", "as_json", is_flag=True, help="say it in JSON")
def bench(budget: float, as_json: bool) -> None:
    """Measure how fast this machine is, beside what it could be."""
    from dred.jobs.bench import measure

    found = measure(budget)
    click.echo(json.dumps(found.as_dict(), indent=1) if as_json else str(found))
