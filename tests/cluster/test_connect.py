"""Clients of clusters: what is waited for before they go."""

import threading

import pytest

from dred.cluster import connect
from tests.cluster.local import threads

BEGUN, GATE = threading.Event(), threading.Event()  # the workers are threads of this process


def held():
    BEGUN.set()
    assert GATE.wait(60)


@pytest.mark.parametrize(
    ("key", "waited_for"),
    [(("dred-sum-rows-0-ab", 3), True), (("dred-sum-saved-ab", 0, 1), True), (("dred-sum-fold-ab", 0, 0, 0), False)],
)
def test_blocks_that_are_being_written_are_waited_for(key, waited_for):
    BEGUN.clear()
    GATE.clear()
    with threads(1) as client:
        future = client.submit(held, key=key)
        try:
            assert BEGUN.wait(60)
            waiting = threading.Thread(target=connect.settle, args=(client, 30))
            waiting.start()
            waiting.join(0.5 if waited_for else 20)
            assert waiting.is_alive() == waited_for
        finally:
            GATE.set()
        waiting.join(30)
        assert not waiting.is_alive()
        future.result()
