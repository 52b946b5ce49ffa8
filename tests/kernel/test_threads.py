"""How many threads compute at once: counted, never timed."""

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from dred.errors import OptionError
from dred.kernel import threads


class Counter:
    """Shares that count how many of them compute at once, of each fold and of all."""

    def __init__(self):
        self.lock = threading.Lock()
        self.now, self.most, self.done = {}, {}, 0
        self.total = self.most_of_all = 0

    def enter(self, name, by):
        with self.lock:
            self.now[name] = self.now.get(name, 0) + by
            self.total += by
            self.most[name] = max(self.most.get(name, 0), self.now[name])
            self.most_of_all = max(self.most_of_all, self.total)

    def share(self, name, calls=1, then=lambda: time.sleep(0.002)):
        def run(stop):
            for _ in range(calls):
                if stop.is_set():
                    return
                self.enter(name, 1)
                then()
                self.enter(name, -1)
            with self.lock:
                self.done += 1

        return run


@pytest.fixture
def four(monkeypatch):
    monkeypatch.setenv("DRED_NUM_THREADS", "4")


def until(condition):
    for _ in range(5000):
        if condition():
            return
        time.sleep(0.002)
    raise AssertionError("it never came about")


# -- turns ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "shares"), [(1, 5), (2, 1), (3, 40), (4, 4), (4, 3)])
def test_one_fold_has_all_threads_and_no_more(limit, shares, monkeypatch):
    monkeypatch.setenv("DRED_NUM_THREADS", str(limit))
    together = min(limit, shares)
    barrier = threading.Barrier(together)  # only passed by so many threads at once
    counter = Counter()
    threads.run([counter.share(0, 1, lambda: barrier.wait(60)) for _ in range(together)])
    threads.run([counter.share(1) for _ in range(shares)])
    assert counter.done == together + shares
    assert counter.most[0] == together
    assert counter.most[1] <= together


def test_many_folds_at_once_share_the_threads(four):
    counter = Counter()
    with ThreadPoolExecutor(4) as askers:
        list(askers.map(lambda n: threads.run([counter.share(n, 20) for _ in range(4)]), range(4)))
    assert counter.done == 16
    assert set(counter.most) == {0, 1, 2, 3}
    # those that came first may have had helpers, which end the call that they are in when others come
    assert counter.most_of_all <= 4 + 3


def test_each_that_asks_computes_however_many_they_are(monkeypatch):
    monkeypatch.setenv("DRED_NUM_THREADS", "2")
    barrier = threading.Barrier(5)
    counter = Counter()
    with ThreadPoolExecutor(5) as askers:
        list(askers.map(lambda n: threads.run([counter.share(n, 1, lambda: barrier.wait(60))]), range(5)))
    assert counter.most_of_all == 5


def test_helpers_give_way_to_folds_that_come_later(four):
    """One fold has all four threads; another comes, and soon has two of them; when it is over, it gives them back."""
    counter, over, first_over = Counter(), threading.Event(), threading.Event()
    pause = lambda: time.sleep(0.001)  # noqa: E731

    def long(name, end):
        def run(stop):
            while not (end.is_set() or stop.is_set()):
                counter.share(name, 1, pause)(stop)

        return run

    with ThreadPoolExecutor(2) as askers:
        first = askers.submit(threads.run, [long("first", first_over) for _ in range(4)])
        until(lambda: counter.most.get("first") == 4)
        second = askers.submit(threads.run, [long("second", over) for _ in range(4)])
        until(lambda: sorted(job.running for job in list(threads._jobs)) == [2, 2])
        until(lambda: counter.most.get("second") == 2)
        with counter.lock:
            counter.most, counter.most_of_all = {}, 0
        until(lambda: counter.most_of_all)
        time.sleep(0.1)
        assert counter.most_of_all <= 4
        assert max(counter.most.values()) <= 2
        over.set()
        second.result(60)
        until(lambda: [job.running for job in list(threads._jobs)] == [4])
        first_over.set()
        first.result(60)
    assert len(threads._jobs) == 0


def test_a_full_pool_holds_nobody_up(four, monkeypatch):
    monkeypatch.setattr(threads, "THREADS", 1)
    monkeypatch.setattr(threads, "_pool", None)
    gate = threading.Event()
    threads.pool().submit(gate.wait, 60)
    counter = Counter()
    threads.run([counter.share(0) for _ in range(8)])
    gate.set()
    assert (counter.done, counter.most_of_all) == (8, 1)


@pytest.mark.parametrize("place", range(4))
def test_an_error_ends_the_other_shares_and_reaches_the_one_that_asks(four, place):
    barrier = threading.Barrier(4)
    ended = []

    def share(number):
        def run(stop):
            barrier.wait(60)
            if number == place:
                raise KeyError(number)
            until(stop.is_set)
            ended.append(number)

        return run

    with pytest.raises(KeyError, match=str(place)):
        threads.run([share(number) for number in range(4)])
    assert len(ended) == 3
    assert len(threads._jobs) == 0


def test_what_an_interrupt_leaves_behind_is_forgotten(four):
    def fail(*args):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "pool", fail)
        with pytest.raises(KeyboardInterrupt):
            threads.run([lambda stop: None] * 2)
    until(lambda: len(threads._jobs) == 0)
    counter = Counter()
    barrier = threading.Barrier(4)
    threads.run([counter.share(0, 1, lambda: barrier.wait(60)) for _ in range(4)])
    assert counter.most_of_all == 4


# -- how many ------------------------------------------------------------------------------------------------------


def test_thread_count(monkeypatch):
    monkeypatch.setenv("DRED_NUM_THREADS", "3")
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert threads.thread_count() == threads.declared() == 3
    monkeypatch.delenv("DRED_NUM_THREADS")
    assert threads.declared() is None
    assert threads.thread_count() == 5
    monkeypatch.setenv("OMP_NUM_THREADS", "4,2")
    assert threads.thread_count() == 4
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert threads.thread_count() >= 1
    for text in ("0", "-1", "many"):
        monkeypatch.setenv("DRED_NUM_THREADS", text)
        with pytest.raises(OptionError, match="DRED_NUM_THREADS is"):
            threads.thread_count()


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, math.inf),
        ({"": "max 100000"}, math.inf),
        ({"": "150000 100000"}, 1.5),
        ({"": "max 100000", "a": "400000 100000", "a/b": "max 100000"}, 4.0),
        ({"a": "50000 100000", "a/b": "300000 100000"}, 0.5),
        ({"": "what is this"}, math.inf),
        ({"other": "100000 100000"}, math.inf),
    ],
)
def test_the_quota_of_a_container(limits, expected, tmp_path):
    for name, text in limits.items():
        folder = tmp_path / "cgroup" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cpu.max").write_text(text + "\n")
    groups = tmp_path / "groups"
    groups.write_text("4:memory:/old\n0::/a/b\n")
    assert threads.quota(str(tmp_path / "cgroup"), str(groups)) == expected
    assert threads.quota(str(tmp_path / "cgroup"), str(tmp_path / "absent")) == math.inf


@pytest.mark.parametrize(("allowed", "expected"), [(0.3, 1), (1.0, 1), (1.5, 2), (2.0, 2), (math.inf, 6)])
def test_a_quota_is_rounded_up(allowed, expected, monkeypatch):
    for name in ("DRED_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    monkeypatch.setattr(threads, "quota", lambda: allowed)
    assert threads.thread_count() == expected


def test_a_thread_that_can_have_no_helpers_is_counted_beside_others(monkeypatch):
    monkeypatch.setenv("DRED_NUM_THREADS", "1")
    seen = []

    def share(stop):
        seen.append((stop is threads.NEVER, threads._computing()))

    threads.run([share, share])
    other = threads._Job([], 2)
    threads._jobs.add(other)
    try:
        threads.run([share])
    finally:
        threads._jobs.discard(other)
    assert seen == [(True, 0), (True, 0), (False, 2)]
