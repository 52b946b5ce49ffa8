"""How far computations are: what is said of it, and that it is true."""

import io
import time

import dask
import dask.array as da
import numpy as np
import pytest

from dred import Genred
from dred.cluster import progress, tasks
from dred.cluster.progress import Meter, finished, watched
from tests.cluster.local import threads

ALIASES = ["x = Vi(3)", "y = Vj(3)"]
SMALL = {
    "dred.plan.operations-per-second": {"cpu": 1e4},
    "dred.plan.parallelism": 8,
    "dred.plan.longest-fold": "1 hour",
}
WAVES = {"dred.plan.feed": "waves", "dred.plan.y-budget": "960 B"}
PAIRS = 60 * 70


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock():
    return Clock()


def test_a_terminal_has_one_line_that_changes(clock):
    file = Terminal()
    meter = Meter(2_000_000, file, clock)
    clock.now += 10
    meter.add(1_000_000)
    clock.now += 4
    meter.add(999_998)
    clock.now += 1
    meter.add(2)
    meter.close()
    said = [
        "dred:  50% of 2e+06 pairs, 1e+05 pairs/s, 10 s left",
        "dred: 100% of 2e+06 pairs, 1.43e+05 pairs/s, 0.0 s left",
        "dred: 100% of 2e+06 pairs, 1.33e+05 pairs/s, in 15 s",
    ]
    assert file.getvalue() == f"\r{said[0]}\r{said[1]}\r{said[2].ljust(len(said[1]))}\n"


def test_a_log_has_a_line_for_each_tenth_or_half_minute(clock):
    file = io.StringIO()
    meter = Meter(1000, file, clock)
    for _ in range(50):  # 2 % each, in a second
        clock.now += 1
        meter.add(20)
    tenths = file.getvalue().splitlines()
    assert [line[6:10].strip() for line in tenths] == [f"{10 * k}%" for k in range(1, 11)]
    assert tenths[0] == "dred:  10% of 1e+03 pairs, 20 pairs/s, 45 s left"
    assert tenths[-1] == "dred: 100% of 1e+03 pairs, 20 pairs/s, in 50 s"
    file = io.StringIO()
    meter = Meter(1_000_000, file, clock)
    for _ in range(12):  # 0.1 % each, in 10 seconds
        clock.now += 10
        meter.add(1000)
    meter.close()
    assert file.getvalue().splitlines() == [
        f"dred: {text:>4} of 1e+06 pairs, 100 pairs/s, {left} left"
        for text, left in (("0%", "2 h 46 min"), ("1%", "2 h 45 min"), ("1%", "2 h 45 min"), ("1%", "2 h 44 min"))
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (3599, "59 min 59 s"),
     (3600, "1 h 00 min"), (100_000, "27 h 46 min")],
)  # fmt: skip
def test_times_for_people(clock, seconds, text):
    meter = Meter(2, io.StringIO(), clock)
    meter.at(1)
    assert meter.line(seconds).endswith(f", {text} left")
    meter.at(2)
    assert meter.line(seconds).endswith(f", in {text}")


def test_a_meter_never_goes_back_or_beyond(clock):
    meter = Meter(10, None, clock)
    for pairs, done in ((4, 4), (2, 4), (12, 10), (0, 10)):
        meter.at(pairs)
        assert meter.done == done
    assert Meter(10, None, clock).line(5.0) == "dred:   0% of 10 pairs"
    assert Meter(0, None, clock).line(5.0) == "dred: 100% of 0 pairs"
    empty = Meter(0, io.StringIO(), clock)
    empty.add(0)
    empty.close()


def lazy(*shape, chunks):
    return da.from_array(np.random.default_rng(shape[0]).random(shape), chunks=(chunks, shape[1]))


def density():
    return Genred("-SqDist(x,y)", ALIASES, "LogSumExp", axis=1)


ROUTINES = {  # and how many sweeps they take
    "one": (density, 1, ()),
    "two": (lambda: density().grad("x"), 2, ((60, 1),)),
    "back": (lambda: density().grad("y"), 2, ((60, 1),)),
}


@pytest.fixture
def meters(monkeypatch):
    """Every meter that was made."""
    made = []

    class Kept(Meter):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.seen = []
            made.append(self)

        def at(self, pairs):
            self.seen.append(pairs)
            super().at(pairs)

    monkeypatch.setattr("dred.cluster.compute.Meter", Kept)
    return made


@pytest.mark.parametrize("store", [False, True])
@pytest.mark.parametrize("feed", [{}, WAVES])
@pytest.mark.parametrize("name", ROUTINES)
@pytest.mark.parametrize("scheduler", ["sync", "threads"])
def test_the_total_is_reached_exactly(tmp_path, meters, capsys, monkeypatch, scheduler, name, feed, store):
    make, count, more = ROUTINES[name]
    args = [lazy(60, 3, chunks=25), lazy(70, 3, chunks=20), *(lazy(*shape, chunks=25) for shape in more)]
    total = count * PAIRS
    with dask.config.set({**SMALL, **feed, "scheduler": scheduler}):
        calls = [{"store": tmp_path / "store"} if store else {}] * (1 + store)
        for given in calls:
            make().compute(*args, backend="cpu", progress=True, **given)
        if store:  # interrupted, then called again

            def interrupted(*args):
                raise KeyError("interrupted")

            folds = iter(range(5))
            fold = tasks.fold_blocks
            monkeypatch.setattr(
                tasks, "fold_blocks", lambda *a: fold(*a) if next(folds, None) is not None else interrupted()
            )
            with pytest.raises(KeyError):
                make().compute(*args, backend="cpu", progress=True, store=tmp_path / "again")
            meters.pop()
            monkeypatch.setattr(tasks, "fold_blocks", fold)
            make().compute(*args, backend="cpu", progress=True, store=tmp_path / "again")
    for meter in meters:
        assert (meter.total, meter.done) == (total, total)
        assert max(meter.seen) == total  # and it never was more
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1].startswith(f"dred: 100% of {total:.3g} pairs, ")


def test_nothing_is_said_by_default(capsys):
    args = lazy(60, 3, chunks=25), lazy(70, 3, chunks=20)
    for feed in ({}, WAVES):
        with dask.config.set({**SMALL, **feed, "scheduler": "sync"}):
            density().compute(*args, backend="cpu")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def slowly(block):
    time.sleep(0.05)
    return block


def test_a_cluster_is_looked_at(meters, capsys, monkeypatch):
    monkeypatch.setattr(progress, "INTERVAL", 0.02)
    looks = []
    args = [lazy(60, 3, chunks=5), lazy(70, 3, chunks=20)]
    args[0] = args[0].map_blocks(slowly, dtype=float, meta=np.empty((0, 0)))
    with threads(2) as client, dask.config.set({**SMALL, "dred.plan.parallelism": 1}):
        client.wait_for_workers(2)
        for feed in ({}, WAVES):
            with dask.config.set(feed):
                density().compute(*args, backend="cpu", progress=True)
                looks.append(sorted(set(meters[-1].seen)))
        assert client.run_on_scheduler(finished, ("no such layer",)) == {"no such layer": 0}
    for seen in looks:
        assert seen[-1] == PAIRS
        assert len(seen) > 2  # it was seen on its way
    assert capsys.readouterr().err.count("100%") >= 2


def test_a_cluster_that_cannot_be_asked_is_no_error(meters):
    class Client:
        def run_on_scheduler(self, *args):
            raise OSError("gone")

    meter = Meter(10, None)
    with progress._looking(Client(), ("a",), lambda counts: meter.at(5)):
        pass
    assert meter.done == 0


def test_watching_ends_with_all_pairs_whatever_was_seen():
    meter = Meter(100, None)
    meter.add(20)
    with watched(meter, {"a": (3, 50), "b": (0, 30)}):
        pass
    assert meter.done == 100
    with pytest.raises(ZeroDivisionError), watched(Meter(1, None), {"a": (1, 1)}):
        raise ZeroDivisionError
