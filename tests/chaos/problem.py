"""A sum and its gradient of several lanes, which cannot end before a gate is opened: what is disturbed in mid-run."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
from distributed import Client

from dred import Genred

TEXT = "Square(p - a) * Exp(x + y)"
ALIASES = ["x = Vi(3)", "y = Vj(3)", "a = Vj(1)", "p = Pm(1)"]
MANY = {"dred.plan.shortest-fold": "1 ms", "dred.plan.arity": 2}  # lanes and a tree at sizes that take no time
X_BLOCKS, Y_BLOCKS, ROWS = 4, 8, 4000


class Gate:
    """A file that blocks wait for, in whatever process they are made."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reached = reached(path)  # a file that is there as soon as something waits
        self.open()

    def open(self) -> None:
        self.path.touch()

    def close(self) -> None:
        self.reached.unlink(missing_ok=True)
        self.path.unlink()

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        self.close()
        try:
            yield
        finally:
            self.open()

    def behind(self, array: da.Array, rows: int) -> da.Array:
        """The array, whose last rows are not there while the gate is closed."""
        last = da.map_blocks(wait_at, array[-rows:], path=str(self.path), dtype=array.dtype, meta=array._meta)
        return da.concatenate([array[:-rows], last])


def reached(path: Path) -> Path:
    return path.with_suffix(".reached")


def wait_at(block: Any, path: str) -> Any:
    """The block, as soon as the file exists."""
    while not Path(path).exists():
        reached(Path(path)).touch()
        time.sleep(0.02)
    return block


def sum_and_gradient(
    gate: Gate, seed: int | list[int] = 0, rows: int = ROWS, before: Gate | None = None
) -> tuple[da.Array, da.Array]:
    """The sum over j and its gradient with respect to y, a reduction over i; the last block of y is behind the gate.

    All of x is behind the one that stands before it.
    """
    rng = np.random.default_rng(seed)
    x, y, a, e = (rng.uniform(-1, 1, (rows, dim)).astype("float32") for dim in (3, 3, 1, 3))
    p = np.array([0.25], "float32")
    x, e = (da.from_array(v, chunks=(rows // X_BLOCKS, -1)) for v in (x, e))
    y, a = (da.from_array(v, chunks=(rows // Y_BLOCKS, -1)) for v in (y, a))
    y = gate.behind(y, rows // Y_BLOCKS)
    if before:
        x = before.behind(x, rows)
    with dask.config.set(MANY):
        total = Genred(TEXT, ALIASES, axis=1)(x, y, a, p, backend="cpu")
        gradient = Genred(f"Grad({TEXT}, y, e)", [*ALIASES, "e = Vi(3)"], axis=0)(x, y, a, p, e, backend="cpu")
    for result, blocks in ((total, X_BLOCKS), (gradient, Y_BLOCKS)):
        assert len(folds_of(result)) >= 2 * blocks
    return total, gradient


def folds_of(result: da.Array) -> list[Any]:
    """Keys of its fold tasks."""
    return [key for key in dict(result.__dask_graph__()) if is_fold(key)]


def is_fold(key: Any) -> bool:
    """Whether a task folds; dask may have joined it with the one that follows."""
    return "dred-sum-fold" in str(key)


def calm(results: tuple[da.Array, ...]) -> list[bytes]:
    """Their bytes where nothing happens: by the synchronous scheduler."""
    return [value.tobytes() for value in dask.compute(*results, scheduler="synchronous")]


def disturbed(
    client: Client, results: tuple[da.Array, ...], gate: Gate, disturb: Callable[[], None], seconds: float = 300
) -> list[bytes]:
    """Their bytes on a cluster to which `disturb()` happens before they can be finished."""
    with gate.closed():
        futures = client.compute(list(results))
        disturb()
        assert not any(future.done() for future in futures)
    return [future.result(timeout=seconds).tobytes() for future in futures]


def until(condition: Callable[[], Any], seconds: float = 300) -> Any:
    """What `condition()` answers as soon as that is true."""
    end = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < end, f"{condition} did not come true in {seconds} s"
        time.sleep(0.02)
    return answer


def stalled(dask_scheduler: Any) -> dict[str, int] | None:
    """On the scheduler: how many states each worker holds, once nothing but the gate is waited for.

    A task may have been given to a worker all of whose threads wait at the gate: it waits for the gate, too.
    """

    def waits(task: Any) -> bool:
        worker = task.processing_on
        at_gate = [t for t in worker.processing if "wait_at" in str(t.key)] if worker else []
        return "wait_at" in str(task.key) or (worker is not None and len(at_gate) >= worker.nthreads)

    tasks = list(dask_scheduler.tasks.values())
    busy = [task for task in tasks if task.state in ("processing", "queued", "no-worker")]
    if not busy or not all(map(waits, busy)):
        return None
    states = [task for task in tasks if is_fold(task.key) and task.state == "memory"]
    if not states:
        return None
    held = dict.fromkeys(dask_scheduler.workers, 0)
    for task in states:
        for worker in task.who_has:
            held[worker.address] += 1
    return held
