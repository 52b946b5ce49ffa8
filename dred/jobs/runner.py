"""Running a job: checked, planned, computed block by block, continued where it ended, verified, put in its place."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cached_property
from typing import Any

import numpy as np

from dred.cluster import connect, files, nans, sinks
from dred.cluster.explain import Explanation
from dred.cluster.store import load, shapes
from dred.errors import DredError, JobError, PlanError, human
from dred.jobs import inputs, manifest, report, verify
from dred.jobs.job import Job, record
from dred.jobs.log import Log
from dred.kernel.spec import VERSION
from dred.routine import Routine


class Code(IntEnum):
    """What a job's process ends with."""

    DONE = 0
    FAILED = 1  # what was finished is kept: called again, it continues
    REFUSED = 2  # before anything was computed
    DIFFERS = 3  # results are there, but rows that were computed again are others
    ENDED = 75  # by SIGTERM: called again, it continues (EX_TEMPFAIL of sysexits.h)
    INTERRUPTED = 130  # by Ctrl-C: likewise


class Terminated(BaseException):
    """SIGTERM came."""


@dataclass(frozen=True)
class Prepared:
    """A job whose files have been looked at; nothing has been computed.

    Attributes
    ----------
    job : Job
    routine : Routine
    points : tuple of Points
        By position.
    dtype : str
    """

    job: Job
    routine: Routine
    points: tuple[inputs.Points, ...]
    dtype: str

    @classmethod
    def of(cls, job: Job) -> Prepared:
        """Look at all files.

        Raises
        ------
        DredError
            A formula that means nothing; inputs that are not there or do not fit; places where nothing can be written.
        """
        routine = job.routine()
        points = inputs.opened(job, routine.variables, routine.axis)
        arrays = [each.array for each in points]
        dtype = str(next(array.dtype for array in arrays).name)
        prepared = cls(job, routine, points, dtype)
        routine.sweeps(dtype)
        if len(job.outputs) != len(prepared.results):
            raise JobError(
                f"the result is {len(prepared.results)} arrays, and the job names {len(job.outputs)} outputs: say "
                "output.path for one, output.paths for several"
            )
        for path, (shape, kind) in zip(job.outputs, prepared.results, strict=True):
            sinks.check_sink(path, shape, kind)
        for path in filter(None, (record(job.outputs[0]), job.report)):
            manifest.check(path)
        return prepared

    @property
    def arrays(self) -> list[Any]:
        return [each.array for each in self.points]

    @cached_property
    def shape(self) -> tuple[int, int]:
        """M and N."""
        M, N = (next((p.array.shape[0] for p in self.points if p.cat == cat), 1) for cat in (0, 1))
        return int(M), int(N)

    @cached_property
    def results(self) -> list[tuple[tuple[int, ...], np.dtype[Any]]]:
        """Shapes and types of all arrays of the result."""
        last = self.routine.sweeps(self.dtype)[-1]
        rows = self.shape[1 - self.routine.axis]
        empty = [output.empty(last.spec) for output in last.outputs]
        if self.routine.rows_added:
            return [(each.shape[1:], np.dtype(self.dtype)) for each in empty]
        return [((rows, *each.shape[1:]), each.dtype) for each in empty]

    def explain(self, workers: int | None = None) -> Explanation:
        """For the workers of the present client; where there is none, for those that would be started here.

        Parameters
        ----------
        workers : int, optional
            How many to think of, of the same kind.
        """
        found: Explanation = self.routine.explain(*self.arrays, backend=self.job.backend, workers=workers)
        if found.cluster.assumed and (workers is None or found.plans[0].backend != "cuda"):
            place = self.job.place
            here = connect.expected(place.kind, place.workers, place.threads, place.memory)
            found = replace(found, cluster=replace(here, workers=workers or here.workers))
        return found

    @property
    def disk(self) -> str:
        """What a job takes on storage."""
        size = sum(int(np.prod(shape, dtype=float)) * kind.itemsize for shape, kind in self.results)
        return f"results {human(size)}; finished blocks as much until the end, in {self.job.work}"

    def identity(self, plans: Sequence[Any]) -> dict[str, Any]:
        """What the bytes of the results depend on."""
        job = self.job
        return {
            "formula": job.formulas,
            "variables": list(job.aliases),
            "options": {**{name: str(value) for name, value in job.options.items()}, "dtype": self.dtype},
            "inputs": {each.name: each.identity for each in self.points},
            "plan": [plan.token() for plan in plans],
            "version": f"dred {manifest.versions()['dred']}, kernels {VERSION}",
            "outputs": [os.path.splitext(path)[1] for path in job.outputs],
        }


def run(job: Job, log: Log) -> Code:
    """Run a job to its end.

    Raises
    ------
    DredError
        What went wrong before anything was computed. What goes wrong later is said in the log.
    """
    with log.alone(), terminable() as deaf, connect.configured(job.dask):
        prepared = Prepared.of(job)
        _refuse_what_is_there(job)
        with connect.connected(**where(job)) as client, manifest.alone(job.work):
            explanation = prepared.explain()
            log.say("plan", f"{job.formulas}\n{explanation}", seconds=explanation.seconds, fits=explanation.fits)
            if not explanation.fits:
                raise PlanError(explanation.shortage)
            identity = prepared.identity(explanation.plans)
            if (before := _was_done(job, identity)) is not None:
                verdict = "" if before == Code.DONE else ", but rows that were computed again are others"
                text = f"{', '.join(job.outputs)} is done, of equal inputs{verdict}: nothing to do"
                log.say("done", text, error=before != Code.DONE)
                deaf()
                return before
            _own(job, identity)
            try:
                return _computed(prepared, explanation, identity, client, log)
            except (Terminated, KeyboardInterrupt) as end:
                deaf()
                connect.settle(client)
                by = "SIGTERM" if isinstance(end, Terminated) else "Ctrl-C"
                log.say("ended", f"ended by {by}; {_kept(job)}", error=True)
                return Code.ENDED if isinstance(end, Terminated) else Code.INTERRUPTED
            except Exception as error:
                text = str(error) if isinstance(error, DredError) else f"{type(error).__name__}: {error}"
                log.say("failed", f"{text}\n{_kept(job)}", error=True, type=type(error).__name__)
                return Code.FAILED
            finally:
                deaf()


def where(job: Job) -> dict[str, Any]:
    """What `connect.connected` takes."""
    return {name: getattr(job.place, name) for name in connect.PLACES}


def _computed(prepared: Prepared, explanation: Explanation, identity: Mapping[str, Any], client: Any, log: Log) -> Code:
    """All of it, from whatever is finished."""
    job, routine = prepared.job, prepared.routine
    start = time.monotonic()
    blocks = os.path.join(job.work, manifest.BLOCKS)
    before = len(_files(blocks))
    if before:
        log.say("resumed", f"going on in {job.work}: {before} files of finished blocks", files=before)
    if job.nan == "error":
        nans.refuse({each.name: each.array for each in prepared.points})
    opened: list[Any] = []
    try:
        for n, (path, (shape, kind)) in enumerate(zip(job.outputs, prepared.results, strict=True)):
            rows = max(explanation.plans[-1].x_blocks) if not routine.rows_added else max(1, shape[0])
            opened.append(sinks.open_sink(path, _part(job, n), shape, kind, rows))
        out = tuple(opened) if len(opened) > 1 or job.several else opened[0]
        connect.ready(client, routine, prepared.dtype, job.backend)
        page = os.path.join(job.work, manifest.PAGE)
        with connect.performance(page) if job.report else contextlib.nullcontext():
            routine.compute(*prepared.arrays, backend=job.backend, out=out, store=blocks, progress=log.progress)
        checked = _verified(prepared, blocks, manifest.digest(identity), log)
        for sink in opened:
            sink.finish()
    except BaseException:
        for sink in opened:
            with contextlib.suppress(Exception):
                sink.discard()
        raise
    seconds = time.monotonic() - start
    pairs = sum(plan.pairs for plan in explanation.plans)
    right = all(each.right for each in checked)
    about = {
        "identity": dict(identity),
        "versions": manifest.versions(),
        "plan": str(explanation).splitlines(),
        "verified": [str(each) for each in checked],
        "right": right,
        "pairs": pairs,
        "seconds": seconds,
        "files_before": before,
    }
    if beside := record(job.outputs[0]):
        manifest.write(beside, about)
    if job.report:
        manifest.put(job.report, report.page(job, explanation, about, checked, page))
    manifest.clear(job.work)
    for path, (shape, kind) in zip(job.outputs, prepared.results, strict=True):
        log.say("written", f"{path}: {kind} {shape}", path=path, shape=shape, dtype=str(kind))
    log.say("done", f"{pairs:.3g} pairs in {seconds:.1f} s", pairs=pairs, seconds=seconds, verified=right)
    return Code.DONE if right else Code.DIFFERS


def _verified(prepared: Prepared, blocks: str, digest: str, log: Log) -> list[verify.Checked]:
    """Rows of what is in the store, computed again."""
    job, routine = prepared.job, prepared.routine
    if job.verify == 0:
        return []
    found = [_Rows(os.path.join(blocks, f"sweep-{n}")) for n in range(len(routine.sweeps(prepared.dtype)))]
    left = {
        place: rows.of(k)
        for sweep, rows in zip(routine.sweeps(prepared.dtype), found, strict=True)
        for k, place in enumerate(sweep.places)
    }
    results = [found[-1].of(k) for k in range(len(prepared.results))]
    tolerance = verify.TOLERANCE[prepared.dtype] if job.tolerance is None else job.tolerance
    given = {n: each.read for n, each in enumerate(prepared.points)}
    checked = verify.verify(
        routine.reduced, given, left, results, prepared.shape, job.verify, tolerance, seed=int(digest[:12], 16)
    )
    for each in checked:
        log.say("verified", str(each), error=not each.right, relative_error=each.error, rows=each.rows)
    if not checked:
        log.say("verified", f"no rows were computed again: {verify.unchecked(routine.reduced, prepared.shape)}")
    return checked


class _Rows:
    """Rows of the files of a store's sweep, block after block."""

    def __init__(self, folder: str) -> None:
        names = sorted(name for name in os.listdir(folder) if name.startswith("rows-"))
        self._files = [os.path.join(folder, name) for name in names]
        self._starts = np.cumsum([0, *(shapes(file)[0][1][0] for file in self._files)])
        self._last: tuple[int, Any] = (-1, None)

    def of(self, k: int) -> verify.Read:
        """Rows start, ..., stop - 1 of the k-th array."""
        return lambda start, stop: self._read(k, start, stop)

    def _read(self, k: int, start: int, stop: int) -> Any:
        first = max(0, int(np.searchsorted(self._starts, start, side="right")) - 1)
        found: list[Any] = []
        for n in range(min(first, len(self._files) - 1), len(self._files)):
            begin = int(self._starts[n])
            if begin >= stop and found:
                break
            if self._last[0] != n:
                self._last = (n, load(self._files[n]))
            found.append(self._last[1][k][max(0, start - begin) : max(0, stop - begin)])
        return np.concatenate(found)


# -- what is there -------------------------------------------------------------------------------------------------


def _part(job: Job, n: int) -> str:
    """Where the n-th output is while it is not whole: on the same file system, so that it can be renamed, and by a name
    that a job with another folder does not use."""
    path = job.outputs[n].rstrip("/")
    head, name = os.path.split(path)
    if "://" in path:
        return os.path.join(job.work, manifest.PARTS, f"{n}-{name}")
    of = hashlib.blake2b(os.fsencode(os.path.realpath(job.work)), digest_size=4).hexdigest()
    return os.path.join(head, f".{name}-{of}.part")


def _there(job: Job) -> list[str]:
    """The outputs that are there, whoever has written them."""
    return [path for path in job.outputs
            if (files.look(path) is not None if "://" in path else os.path.lexists(path))]  # fmt: skip


def _refuse_what_is_there(job: Job) -> None:
    """JobError: an output is there that this job has neither written nor was asked to replace."""
    known = os.path.exists(record(job.outputs[0])) or os.path.exists(os.path.join(job.work, manifest.NAME))
    if not known and not job.overwrite and (there := _there(job)):
        raise JobError(f"{there[0]} is there: name another path, or say output.overwrite=true")


def _was_done(job: Job, identity: Mapping[str, Any]) -> Code | None:
    """What this very job ended with, if all its outputs are there.

    JobError: they are of another one, which is not to be lost.
    """
    there = [] if job.overwrite else _there(job)
    if not there:
        return None
    begun = manifest.read(os.path.join(job.work, manifest.NAME))
    known = manifest.read(beside) if (beside := record(job.outputs[0])) else None
    differences = manifest.differing(known["identity"], identity) if known else ["everything"]
    if not differences and len(there) == len(job.outputs):
        if begun and not manifest.differing(begun["identity"], identity):  # it was killed while its folder went
            manifest.clear(job.work)
        return Code.DONE if known is None or known["right"] else Code.DIFFERS
    if begun or not differences:
        return None
    raise JobError(
        f"{there[0]} is there, of a job that differs in {'; '.join(differences)}: name another path, or say "
        "output.overwrite=true"
    )


def _own(job: Job, identity: Mapping[str, Any]) -> None:
    """Make the work folder this job's. JobError: it is another one's."""
    path = os.path.join(job.work, manifest.NAME)
    known = manifest.read(path)
    if known is None and (foreign := manifest.foreign(job.work)):
        raise JobError(f"{job.work} holds other files ({foreign[0]}): name another folder by work=...")
    differences = manifest.differing(known["identity"], identity) if known else []
    blocks = os.path.join(job.work, manifest.BLOCKS)
    if differences and _files(blocks):
        raise JobError(
            f"{job.work} holds finished blocks of a job that differs in {'; '.join(differences)}: delete it, or name "
            "another folder by work=..."
        )
    if differences or known is None:
        shutil.rmtree(blocks, ignore_errors=True)  # nothing of it was finished
        manifest.write(path, {"identity": dict(identity), "versions": manifest.versions()})


def _files(blocks: str) -> list[str]:
    """Files of finished blocks and states, whole or not."""
    return [
        os.path.join(folder, name)
        for folder, _, names in os.walk(blocks)
        for name in names
        if name.startswith(("rows-", "state-"))
    ]


def _kept(job: Job) -> str:
    """What is left of a job that ended early."""
    count = len(_files(os.path.join(job.work, manifest.BLOCKS)))
    return f"{count} files of finished blocks are kept in {job.work}: run it again, and it goes on from there"


@contextmanager
def terminable() -> Iterator[Callable[[], None]]:
    """SIGTERM raises `Terminated` in the main thread, once. What is given makes this thread deaf to SIGTERM and Ctrl-C:
    the end is near, and is not to be cut short."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return

    def end(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    def deaf() -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)

    before = {signal.SIGINT: signal.getsignal(signal.SIGINT), signal.SIGTERM: signal.signal(signal.SIGTERM, end)}
    try:
        yield deaf
    finally:
        for each, handler in before.items():
            signal.signal(each, handler or signal.SIG_DFL)
