"""What calls take, said before anything runs: exact tables, and refusals of what cannot fit."""

import asyncio
import re
from xml.etree import ElementTree

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client, LocalCluster

import dred
from dred import Genred
from dred.cluster.explain import Cluster, Explanation
from dred.errors import PlanError

ALIASES = ["x = Vi(3)", "y = Vj(3)"]
SLOW = {"dred.plan.operations-per-second": {"cpu": 1e5}}
# Workers that are threads of this process hold more than they may, whatever they do.
UNWATCHED = {f"distributed.worker.memory.{what}": False for what in ("target", "spill", "pause", "terminate")}
WAVES = {"dred.plan.feed": "waves", "dred.plan.y-budget": "1 kB"}

# 1000 x 200 pairs of 27 operations: 54 s, so 64 tasks wanted and 7 lanes for 10 x blocks; y rows of 24 bytes.
TABLE = """\
reduction     Sum on cpu
pairs         1,000 x 200 = 2e+05, each of 27 operations
time          about 54 s of one worker, at 1e+05 operations per second
feed          resident: every worker may come to hold all y blocks, 4.8 kB
lanes         7 x 1 steps, merged 8 at a time, tree of depth 1
x blocks      10 of at most 100 kept rows
y blocks      20 of at most 10 reduced rows
tasks         80 = 70 fold + 10 out
edges         340
longest fold  about 0.81 s; it holds 4.72 kB
kept rows     24 kB
reduced rows  4.8 kB
states        56 kB
results       8 kB
"""
# A fold: 100 rows of 24 + 2 * 8 bytes, 30 y rows joined; at once: its 30 y rows besides. At most: all y rows, its part
# of x with 7 states of 8 bytes and a result of 8, and what a fold holds. Moved: x and y once, states and nothing else.
ONE = "1 worker      about 54 s (assumed)\nbytes moved   at most 0 B\n"
FOUR = "4 workers     about 13.5 s, 4 of them busy (assumed)\nbytes moved   at most 142 kB\n"
MEMORY = "memory        a worker of 1 thread holds at most {} kB, 5.44 kB of it at once; no limit is known"


@pytest.fixture(autouse=True)
def slow():
    with dask.config.set(SLOW):
        yield


def routine(axis=1):
    return Genred("Exp(-SqDist(x,y))", ALIASES, axis=axis)


def arrays(M=1000, N=200):
    return da.zeros((M, 3), chunks=(100, 3)), da.zeros((N, 3), chunks=(10, 3))


def explain(*args, **kwargs):
    return routine().explain(*(args or arrays()), backend="cpu", **kwargs)


def test_a_table():
    assert str(explain()) == TABLE + ONE + MEMORY.format("97.5")
    assert 4720 + 4800 + 1000 * (24 + 7 * 8 + 8) == 97_520
    assert str(explain(workers=4)) == TABLE + FOUR + MEMORY.format("35.9")
    assert 4720 + 4800 + 300 * (24 + 7 * 8 + 8) == 35_920
    assert 3 * (24_000 + 4800) + 56_000 == 142_400
    assert repr(explain()) == str(explain())


def test_what_is_read_by_path_and_what_is_kept_of_it():
    y = dred.from_array(np.zeros((200, 3)), chunks=10)
    with dask.config.set({"dred.stream.cache": "2 kB", "dred.plan.panel": "240 B"}):
        explanation = explain(arrays()[0], y)
    (plan,) = explanation.plans
    assert (plan.feed, plan.moving_row_bytes, plan.kept_panels) == ("stream", 0, 2000)
    assert plan.fold_bytes == 100 * 40 + 2 * 240
    assert plan.least_bytes() == plan.fold_bytes + 2000
    assert plan.worker_bytes(4) == plan.fold_bytes + 300 * 88 + 2000
    assert "feed          stream: stored rows are read by path, and 0 B come as blocks" in str(explanation).splitlines()


def test_waves_and_blocks_put_together_of_chunks():
    with dask.config.set(WAVES):
        explanation = explain(workers=4)
        (plan,) = explanation.plans
        assert (plan.lanes, plan.steps, max(plan.y_blocks), plan.wave_bytes) == (7, 6, 5, 840)
        # a wave has 7 blocks of 5 rows, each half a chunk: 7 chunks of 10 rows
        states = 2 * 7 * 8  # before and after the wave
        assert plan.worker_bytes(4) == plan.fold_bytes + 2 * 840 + 7 * 240 + 300 * (24 + states + 8)
        assert plan.least_bytes() == plan.fold_bytes + 5 * 24
        lines = str(explanation).splitlines()
    assert lines[3] == "feed          waves: y blocks are computed and folded step by step, 840 B at a time"
    assert lines[-1] == "to run        routine.compute(...): a lazy call would need all reduced rows at once"
    with dask.config.set({"dred.plan.x-budget": "2.4 kB"}):  # 50 rows
        (plan,) = explain().plans
        assert (max(plan.x_blocks), plan.block_tasks, plan.assembling_bytes) == (50, 20 * 1, 150 * 24)
        assert plan.worker_bytes(1) == plan.fold_bytes + 4800 + 1000 * 24 + 1000 * (24 + plan.lanes * 8 + 8 + 8)


def test_several_sweeps_are_several_tables():
    gradient = Genred("-SqDist(x,y)", ALIASES, "LogSumExp", axis=1).grad("y")
    explanation = gradient.explain(*arrays(), da.zeros((1000, 1), chunks=(100, 1)), backend="cpu", workers=2)
    assert len(explanation.plans) == len(explanation.tables()) == 2
    first, second = str(explanation).split("\n\n")
    assert first.splitlines()[0] == "reduction     LogSumExp on cpu"
    assert second.splitlines()[0] == "reduction     Sum on cpu"
    assert explanation.seconds == sum(plan.seconds / 2 for plan in explanation.plans)
    assert explanation._repr_html_().count("<table>") == 2


def test_tables_of_notebooks_are_well_formed_and_escaped():
    html = explain()._repr_html_()
    rows = [[cell.text for cell in row] for row in ElementTree.fromstring(html)]
    assert ["  ".join((f"{name:12}", text)) for name, text in rows] == str(explain()).splitlines()

    class Named(Explanation):
        def tables(self):
            return [[("<b>", 'a & "b" <script>')]]

    html = Named(explain().plans, Cluster())._repr_html_()
    assert "<script>" not in html
    assert [cell.text for row in ElementTree.fromstring(html) for cell in row] == ["<b>", 'a & "b" <script>']


def test_wrong_numbers_of_workers_are_refused():
    for workers in (0, -3):
        with pytest.raises(PlanError) as caught:
            explain(workers=workers)
        assert str(caught.value) == f"workers={workers}: at least 1 is needed"


def test_what_fits():
    (plan,) = explain().plans
    assert Explanation((plan,), Cluster(2, 1, 6800)).fits  # 5440 bytes are 80 %
    short = Explanation((plan,), Cluster(2, 1, 6799))
    assert not short.fits
    assert str(short).splitlines()[-1] == (
        "does not fit  a worker of 1 thread needs 5.44 kB at once (4.72 kB for each fold, 720 B of reduced rows), more "
        "than 80% of its memory limit of 6.8 kB: give workers more or fewer threads, or lower dred.plan.x-budget and "
        "dred.plan.step in dask's configuration"
    )
    assert Explanation((plan,), Cluster(2, 3, 20_400)).fits  # three lanes at once
    assert not Explanation((plan,), Cluster(2, 3, 20_399)).fits
    assert plan.least_bytes(99) == 99 * 4720 + 7 * 720  # there are no more


def test_what_does_not_fit_since_it_is_kept_or_put_together():
    y = dred.from_array(np.zeros((200, 3)), chunks=10)
    explanation = Explanation(explain(arrays()[0], y).plans, Cluster(1, 1, 10_000))
    assert str(explanation).splitlines()[-1] == (
        "does not fit  a worker of 1 thread needs 10.2 kB at once (5.39 kB for each fold, 0 B of reduced rows, 4.8 kB "
        "of stored rows that are kept), more than 80% of its memory limit of 10 kB: give workers more or fewer "
        "threads, or lower dred.plan.x-budget, dred.plan.step and dred.stream.cache in dask's configuration"
    )
    x = da.zeros((1000, 3), chunks=(1000, 3))
    with dask.config.set({"dred.plan.x-budget": "2.4 kB"}):
        explanation = Explanation(explain(x, arrays()[1]).plans, Cluster(1, 1, 10_000))
    assert re.fullmatch(
        r"does not fit  a worker of 1 thread needs 25.2 kB at once \(.* of reduced rows, 25.2 kB to put a block "
        "together of chunks\\), more than 80% of its memory limit of 10 kB: give workers more or fewer threads, or cut "
        "the arrays into smaller chunks",
        str(explanation).splitlines()[-1],
    )


@pytest.fixture
def small_workers():
    """Two workers, threads of this process, that may hold 1 MB each by what they say."""
    with (
        dask.config.set(UNWATCHED),
        LocalCluster(n_workers=2, threads_per_worker=3, processes=False, memory_limit="1 MB", dashboard_address=":0")
        as cluster,
        Client(cluster) as client,
    ):  # fmt: skip
        client.wait_for_workers(2)
        yield client


def test_a_cluster_is_asked(small_workers):
    explanation = explain()
    assert explanation.cluster == Cluster(2, 3, 1_000_000, assumed=False)
    assert explanation.fits
    lines = str(explanation).splitlines()
    assert lines[-3:] == [
        "2 workers     about 27 s, 2 of them busy",
        "bytes moved   at most 84.8 kB",
        "memory        a worker of 3 threads holds at most 63 kB, 16.3 kB of it at once; its limit is 1 MB",
    ]
    assert explain(workers=4).cluster == Cluster(4, 3, 1_000_000)


def test_what_cannot_fit_is_refused_when_it_is_called(small_workers):
    x, y = da.zeros((30_000, 3), chunks=(30_000, 3)), da.zeros((30, 3), chunks=(30, 3))
    with dask.config.set({"dred.plan.operations-per-second": {"cpu": 1e9}}):
        explanation = explain(x, y)
        assert not explanation.fits
        text = str(explanation).splitlines()[-1].removeprefix("does not fit  ")
        assert text.startswith(
            "a worker of 3 threads needs 3.6 MB at once (1.2 MB for each fold, 720 B of reduced rows"
        )
        for call in (routine(), routine().compute):
            with pytest.raises(PlanError) as caught:
                call(x, y, backend="cpu")
            assert str(caught.value) == f"{text}\n{explanation.plans[0]}"
        with dask.config.set({"dred.plan.x-budget": "100 kB"}), pytest.raises(PlanError, match="cut the arrays"):
            routine()(x, y, backend="cpu")
        with dask.config.set({"dred.plan.x-budget": "100 kB"}):
            assert routine()(x.rechunk((5000, 3)), y, backend="cpu").shape == (30_000, 1)


def test_an_asynchronous_client_is_not_asked():
    async def main():
        async with (
            LocalCluster(n_workers=1, processes=False, memory_limit="1 kB", dashboard_address=":0", asynchronous=True)
            as cluster,
            Client(cluster, asynchronous=True),
        ):  # fmt: skip
            return explain(), routine()(*arrays(), backend="cpu")

    with dask.config.set(UNWATCHED):
        explanation, result = asyncio.run(main())
    assert explanation.cluster == Cluster()
    assert result.shape == (1000, 1)
