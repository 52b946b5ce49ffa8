"""The cache of panels: bounded whatever its threads do, and nothing is read twice that it still holds."""

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import dask
import numpy as np
import pytest

from dred.cluster import panels, sources
from dred.cluster.panels import Panels
from dred.errors import InputError, OptionError

ROW = 3 * 8
PATIENCE = 20  # seconds after which something that should happen has not


@pytest.fixture
def stored(tmp_path):
    array = np.random.default_rng(0).standard_normal((100, 3))
    np.save(tmp_path / "x.npy", array)
    return sources.open_source(tmp_path / "x.npy"), array


@pytest.fixture
def gate(monkeypatch):
    """Reading waits until it is opened; `entered` counts the reads that have begun, by start row."""

    class Gate:
        def __init__(self):
            self.opened, self.entered, self.changed = threading.Event(), [], threading.Condition()

        def read(self, source, start, stop):
            with self.changed:
                self.entered.append(start)
                self.changed.notify_all()
            assert self.opened.wait(PATIENCE)
            return plain(source, start, stop)

        def wait(self, count):
            with self.changed:
                assert self.changed.wait_for(lambda: len(self.entered) >= count, PATIENCE)

    plain = sources.read
    gate = Gate()
    monkeypatch.setattr(sources, "read", gate.read)
    yield gate
    gate.opened.set()


def cache(rows):
    return Panels(lambda: rows * ROW)


def settled(found):
    """After what is read ahead has been read."""
    reader = found._reader
    if reader is not None:
        reader.join(PATIENCE)
        assert not reader.is_alive()
    return found.counts()


def test_a_panel_is_read_once(stored):
    source, array = stored
    found = cache(100)
    first = found.get(source, 10, 20)
    assert np.array_equal(first, array[10:20])
    assert found.get(source, 10, 20) is first
    assert found.counts() == (1, 1, 10 * ROW)
    found.get(source, 10, 21)  # another panel
    assert found.counts() == (2, 1, 21 * ROW)


def test_panels_are_read_only(stored):
    source, _ = stored
    for rows in (100, 0):  # kept, or not
        with pytest.raises(ValueError, match="read-only"):
            cache(rows).get(source, 0, 10)[0] = 1


def test_the_panel_used_longest_ago_goes_first(stored):
    source, _ = stored
    found = cache(30)
    for start in (0, 10, 20, 0, 30):  # 30 takes the place of 10
        found.get(source, start, start + 10)
    assert found.counts() == (4, 1, 30 * ROW)
    for start in (0, 20, 30):
        found.get(source, start, start + 10)
    assert found.counts() == (4, 4, 30 * ROW)
    found.get(source, 10, 20)
    assert found.counts() == (5, 4, 30 * ROW)


def test_a_panel_larger_than_the_bound_is_read_and_not_kept(stored):
    source, array = stored
    found = cache(30)
    found.get(source, 0, 10)
    assert np.array_equal(found.get(source, 0, 31), array[:31])
    assert not found.prefetch(source, 0, 31)
    found.get(source, 0, 10)
    assert found.counts() == (2, 1, 10 * ROW), "the others stay"


def test_a_panel_without_rows(stored):
    source, _ = stored
    found = cache(0)
    assert found.prefetch(source, 5, 5)
    assert found.get(source, 5, 5).shape == (0, 3)
    assert settled(found).bytes == 0


def test_clear(stored):
    source, _ = stored
    found = cache(100)
    found.get(source, 0, 10)
    found.clear()
    assert found.counts().bytes == 0
    found.get(source, 0, 10)
    assert found.counts() == (2, 0, 10 * ROW)


def test_a_changed_file_is_another_source(stored):
    source, array = stored
    found = cache(100)
    found.get(source, 0, 10)
    np.save(source.path, -array)
    os.utime(source.path, ns=(0, 0))
    assert np.array_equal(found.get(source, 0, 10), array[:10]), "what was opened"
    assert np.array_equal(found.get(sources.open_source(source.path), 0, 10), -array[:10])


@pytest.mark.parametrize("rows", [100, 0])
def test_threads_that_want_the_same_panel_read_it_once(stored, gate, rows):
    source, array = stored
    found = cache(rows)
    with ThreadPoolExecutor(8) as pool:
        wanted = [pool.submit(found.get, source, 0, 10) for _ in range(8)]
        gate.wait(1)
        while found.counts().hits < 7:  # until all of them wait
            pass
        gate.opened.set()
        got = [future.result(PATIENCE) for future in wanted]
    assert all(panel is got[0] for panel in got)
    assert np.array_equal(got[0], array[:10])
    assert found.counts() == (1, 7, 10 * ROW if rows else 0)


def test_what_was_read_ahead_is_there(stored):
    source, array = stored
    found = cache(100)
    assert found._reader is None, "no thread before it is needed"
    assert found.prefetch(source, 0, 10)
    assert found.prefetch(source, 0, 10)
    assert settled(found) == (1, 0, 10 * ROW)
    assert found._reader is None, "nor after"
    assert found.prefetch(source, 0, 10)
    assert np.array_equal(found.get(source, 0, 10), array[:10])
    assert found.counts() == (1, 1, 10 * ROW)


def test_what_is_being_read_ahead_is_waited_for(stored, gate):
    source, array = stored
    found = cache(100)
    found.prefetch(source, 0, 10)
    gate.wait(1)
    with ThreadPoolExecutor(1) as pool:
        wanted = pool.submit(found.get, source, 0, 10)
        while found.counts().hits < 1:
            pass
        gate.opened.set()
        assert np.array_equal(wanted.result(PATIENCE), array[:10])
    assert settled(found) == (1, 1, 10 * ROW)
    assert gate.entered == [0]


def test_what_is_queued_is_not_waited_for(stored, gate):
    """The thread that reads ahead is busy with the first panel: who needs the second reads it, once."""
    source, array = stored
    found = cache(100)
    found.prefetch(source, 0, 10)
    gate.wait(1)
    found.prefetch(source, 10, 20)
    found.prefetch(source, 20, 30)
    with ThreadPoolExecutor(1) as pool:
        wanted = pool.submit(found.get, source, 20, 30)
        gate.wait(2)
        assert gate.entered == [0, 20]
        gate.opened.set()
        assert np.array_equal(wanted.result(PATIENCE), array[20:30])
    assert settled(found) == (3, 0, 30 * ROW)
    assert sorted(gate.entered) == [0, 10, 20]


def test_what_is_under_way_counts_for_the_bound(stored, gate):
    source, array = stored
    found = cache(30)
    assert found.prefetch(source, 0, 20)
    gate.wait(1)
    assert not found.prefetch(source, 20, 31), "no room"
    assert found.prefetch(source, 20, 30)
    assert found.counts().bytes == 30 * ROW
    with ThreadPoolExecutor(1) as pool:
        wanted = pool.submit(found.get, source, 40, 41)  # there is no room to keep it
        gate.wait(2)
        assert found.counts().bytes == 30 * ROW
        gate.opened.set()
        assert np.array_equal(wanted.result(PATIENCE), array[40:41])
    assert settled(found) == (3, 0, 30 * ROW)


def test_an_error_is_not_kept(stored):
    source, array = stored
    away = f"{source.path}.away"
    found = cache(100)
    os.rename(source.path, away)
    for _ in range(2):
        with pytest.raises(InputError, match="is not there"):
            found.get(source, 0, 10)
    assert found.prefetch(source, 0, 10), "says nothing"
    assert settled(found) == (0, 0, 0)
    os.rename(away, source.path)
    assert np.array_equal(found.get(source, 0, 10), array[:10])
    assert found.counts() == (1, 0, 10 * ROW)


def test_all_who_wait_are_told_of_an_error(stored, gate):
    source, _ = stored
    found = cache(100)
    found.prefetch(source, 0, 10)
    gate.wait(1)
    with ThreadPoolExecutor(2) as pool:
        wanted = [pool.submit(found.get, source, 0, 10) for _ in range(2)]
        while found.counts().hits < 2:
            pass
        os.unlink(source.path)
        gate.opened.set()
        for future in wanted:
            with pytest.raises(InputError, match="is not there"):
                future.result(PATIENCE)
    assert settled(found).bytes == 0


@pytest.mark.parametrize("seed", range(4))
def test_the_bound_holds_under_threads(stored, seed, monkeypatch):
    """Threads that get and read ahead at random: the right rows, and at no time more bytes than allowed."""
    source, array = stored
    most, held = 50, []
    found = cache(most)
    plain = sources.read

    def read(*args):
        held.append(found.counts().bytes)
        rows = plain(*args)
        held.append(found.counts().bytes)
        return rows

    monkeypatch.setattr(sources, "read", read)

    def work(number):
        rng = np.random.default_rng([seed, number])
        for _ in range(150):
            start = int(rng.integers(0, 90))
            stop = start + int(rng.choice([1, 7, 10, 30, 60]))
            if stop > 100:
                continue
            if rng.random() < 0.5:
                found.prefetch(source, start, stop)
            assert np.array_equal(found.get(source, start, stop), array[start:stop])
            held.append(found.counts().bytes)

    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(work, number) for number in range(6)]:
            done.result(PATIENCE)
    counts = settled(found)
    assert counts.reads > 0 < counts.hits
    assert max(held) <= most * ROW
    assert found._coming_bytes == 0
    assert found._coming == {}
    assert found._kept_bytes == sum(panel.nbytes for panel in found._kept.values())


def test_the_process_s_own_cache(stored):
    source, array = stored
    panels.clear()
    before = panels.counts()
    with dask.config.set({"dred.stream.cache": 20 * ROW}):
        for start in (0, 10, 20, 10):
            assert np.array_equal(panels.get(source, start, start + 10), array[start : start + 10])
        assert panels.prefetch(source, 10, 20)
    after = panels.counts()
    assert (after.reads - before.reads, after.hits - before.hits, after.bytes) == (3, 1, 20 * ROW)
    with dask.config.set({"dred.stream.cache": 10 * ROW}):  # a smaller bound holds from the next panel on
        panels.get(source, 50, 60)
        assert panels.counts().bytes == 10 * ROW
    panels.clear()
    with dask.config.set({"dred.stream.cache": "much"}), pytest.raises(OptionError) as caught:
        panels.get(source, 0, 10)
    assert str(caught.value).startswith("dred.stream.cache is 'much' in dask's configuration, which cannot be read: ")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_starts_over(stored, gate):
    """It has the promises of its parent's threads, and not the threads."""
    source, _ = stored
    panels.clear()
    assert panels.prefetch(source, 0, 10)
    gate.wait(1)
    child = os.fork()
    if child == 0:
        signal.alarm(PATIENCE)  # one that waits for a promise waits for ever
        gate.opened.set()
        found = panels.get(source, 0, 10).shape == (10, 3) and panels.counts() == (1, 0, 10 * ROW)
        os._exit(0 if found else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    gate.opened.set()
    assert settled(panels._PANELS).bytes == 10 * ROW
    panels.clear()
