"""Plans: values worked out by hand, and laws for any sizes."""

import dataclasses
import math
import subprocess
import sys
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dred.cluster.cuts import cut, equal, fitted, in_steps, merge_tree, pieces
from dred.cluster.plan import Plan
from dred.cluster.settings import Settings
from dred.cluster.sizes import Axis, Input, Sizes
from dred.errors import PlanError, human

SETTINGS = Settings(
    arity=4,
    shortest_fold=0.5,
    longest_fold=30.0,
    parallelism=64,
    y_budget=1_000_000,
    step=10_000,
    operations_per_second={"cpu": 1000.0},
)


def sizes(x, y, operations=1, y_row_bytes=8, parameters=0, stored=False, **more):
    """Chunks as a tuple, or a number of rows that nobody has cut."""

    def axis(cut, row_bytes, stored=False):
        if isinstance(cut, int):
            return Axis(cut, (Input(row_bytes, stored=stored),), None)
        return Axis(sum(cut), (Input(row_bytes, cut),), cut)

    return Sizes(
        axis(x, 16), axis(y, y_row_bytes, stored), (Input(4),) * parameters, 4 * parameters, 24, 12, operations, **more
    )


def choose(x, y, settings=SETTINGS, **kwargs):
    return Plan.choose("Sum", "cpu", sizes(x, y, **kwargs), settings)


def test_lanes_fill_what_too_few_x_blocks_leave():
    plan = choose((10,) * 10, (10,) * 20)  # 20,000 pairs: 20 s, so 40 tasks of 0.5 s; 10 x blocks: 4 lanes
    assert plan.schedule == tuple((range(5 * lane, 5 * lane + 5),) for lane in range(4))
    assert (plan.lanes, plan.steps, plan.depth) == (4, 1, 1)
    assert (plan.fold_tasks, plan.merge_tasks, plan.out_tasks, plan.tasks) == (40, 0, 10, 50)
    assert plan.edges == 10 * (4 + 20 + 4)  # per x block: x in each fold, every y block, the states
    assert (plan.seconds, plan.fold_seconds) == (20.0, 0.5)
    assert plan.fold_bytes == 10 * (16 + 2 * 24) + 50 * 8  # y joined
    assert plan.least_bytes() == plan.fold_bytes + 50 * 8
    assert plan.worker_bytes(2) == plan.fold_bytes + 200 * 8 + 5 * 10 * (16 + 4 * 24 + 12)
    assert [plan.bytes_moved(w) for w in (1, 2, 3)] == [0, 3200 + 9600, 6400 + 9600]  # x and y, states of 4 lanes


def test_enough_x_blocks_need_one_lane_and_no_tree():
    plan = choose((10,) * 64, (10,) * 20)
    assert plan.schedule == ((range(20),),)
    assert (plan.lanes, plan.steps, plan.depth, plan.merge_tasks) == (1, 1, 0, 0)
    assert plan.edges == 64 * (1 + 20 + 1)


def test_y_chunks_are_cut_for_lanes():
    plan = choose((100,), (40, 0, 40))  # 8 s: 16 lanes
    assert (plan.lanes, plan.y_blocks) == (16, (5,) * 16)
    assert choose((1000,), (1, 0, 1)).lanes == 2  # no more than y rows


def test_many_lanes_are_merged_by_a_tree():
    plan = choose((100,), (1,) * 400, parameters=2)  # 40 s: 64 tasks wanted at most, one x block
    assert (plan.lanes, plan.depth) == (64, 3)
    assert plan.tree == [[range(4 * g, 4 * g + 4) for g in range(16)], [range(4 * g, 4 * g + 4) for g in range(4)]]
    assert (plan.fold_tasks, plan.merge_tasks, plan.out_tasks) == (64, 20, 1)
    assert len(plan.y_blocks) == 64  # tiny chunks are merged: a block for each lane
    assert plan.block_tasks == 64
    assert plan.edges == 64 * 3 + 64 + 64 + 16 + 4 + 400


def test_a_state_without_a_partner_is_handed_on():
    plan = choose((100,), (1,) * 25)  # 2.5 s: 5 lanes
    assert plan.tree == [[range(0, 4), range(4, 5)]]
    assert plan.block_tasks == 0
    assert (plan.fold_tasks, plan.merge_tasks, plan.out_tasks, plan.depth) == (5, 1, 1, 2)
    assert plan.edges == 5 + 25 + 4 + 2


def test_long_work_gets_more_tasks_than_the_parallelism():
    plan = choose((100,) * 10, (10,) * 1000)  # 10,000 s: 333.3 tasks of 30 s
    assert (plan.lanes, plan.steps) == (34, 1)
    assert (len(plan.x_blocks), len(plan.y_blocks), plan.block_tasks) == (10, 68, 68)  # merged, two for each lane
    assert plan.fold_seconds <= 30


def test_a_fold_that_would_take_too_long_is_chained():
    plan = choose((100, *(1,) * 63), (100,) * 10)  # 163 s: 64 tasks, so one lane; but 100 x 1000 pairs take 100 s
    assert plan.schedule == ((range(0, 3), range(3, 6), range(6, 9), range(9, 10)),)
    assert (plan.lanes, plan.steps) == (1, 4)
    assert plan.edges == 64 * (4 + 10 + 3 + 1)
    assert plan.fold_seconds == 30.0


def test_a_fold_that_would_read_too_much_is_chained():
    plan = choose((1,) * 64, (10,) * 10, y_row_bytes=300)  # 10,000 bytes are 33 rows
    assert plan.schedule == ((range(0, 3), range(3, 6), range(6, 9), range(9, 10)),)
    assert plan.least_bytes() == 16 + 2 * 24 + 2 * 30 * 300  # y by its blocks and joined


def test_y_chunks_are_cut_where_one_alone_is_too_much():
    plan = choose((1,) * 64, (50, 0, 10, 100), y_row_bytes=300)  # 10,000 bytes are 33 rows
    assert plan.y_blocks == (25, 25, 10, 25, 25, 25, 25)
    assert [[len(step) for step in lane] for lane in plan.schedule] == [[1, 1, 1, 1, 1, 1, 1]]
    plan = choose((117, *(1,) * 63), (100, 300))  # 0.117 s for each y row: 256 rows at most
    assert plan.y_blocks == (100, 150, 150)


def test_large_chunks_on_both_sides():
    """As of da.zeros((10**9, 3), chunks=10**7) twice: a whole chunk by a whole one would be 100,000 s."""
    settings = dataclasses.replace(SETTINGS, y_budget=1 << 30, step=1 << 30, operations_per_second={"cpu": 2e10})
    plan = choose((10**7,), (10**7,) * 4, settings, operations=20)
    assert plan.fold_seconds <= 30
    assert plan.step_rows * 8 <= 1 << 30
    # 10**7 rows with states are 760 MB: 3 blocks; 400,000 s are 13,334 folds of 30 s
    assert (plan.x_blocks, plan.lanes) == ((3333333, 3333333, 3333334), 4445)
    assert (len(plan.y_blocks), max(plan.y_blocks)) == (4 * 1112, 8993)


def test_x_chunks_are_cut_where_one_alone_is_too_much():
    plan = choose((10, 300), (100,) * 3)  # 117 x rows by 256 y rows are 30 s
    assert plan.x_blocks == (10, 100, 100, 100)
    assert plan.out_chunks == (10, 300)
    assert plan.block_tasks == 3 + len(plan.y_blocks)  # the pieces of x; those of y, for lanes
    assert plan.out_tasks == 4 + 2  # results of blocks, then of chunks
    plan = choose((10, 300), (100,) * 3, dataclasses.replace(SETTINGS, x_budget=76 * 50))  # 16 + 2 * 24 + 12 bytes
    assert plan.x_blocks == (10, *(50,) * 6)


def test_tiny_x_chunks_are_merged():
    plan = choose((1,) * 1000, (10,) * 3)  # 30 s: 64 tasks wanted at most
    assert len(plan.x_blocks) == 64
    assert plan.out_chunks == (1,) * 1000
    assert (plan.block_tasks, plan.out_tasks) == (64, 64 + 1000)
    assert choose((1,) * 1000, (1000,) * 3).x_blocks == (1,) * 1000  # 3000 s: each fold is long enough


def test_rows_that_are_too_large_are_refused():
    with pytest.raises(PlanError) as caught:
        choose((1,), (5,), operations=31_000)
    assert str(caught.value) == (
        "a single pair of 31,000 operations takes about 31 s, more than dred.plan.longest-fold of 30 s: raise it"
    )
    with pytest.raises(PlanError) as caught:
        choose((1,), (5,), y_row_bytes=20_000)
    assert str(caught.value) == (
        "a single reduced row holds 20 kB, more than dred.plan.step of 10 kB: raise it in dask's configuration"
    )
    with pytest.raises(PlanError) as caught:
        choose((1,), (5,), dataclasses.replace(SETTINGS, x_budget=75))
    assert str(caught.value) == (
        "a single kept row with its states holds 76 B, more than dred.plan.x-budget of 75 B: raise it in dask's "
        "configuration"
    )
    assert choose((10, 6000), (0, 0), operations=10, y_row_bytes=20_000).fold_seconds == 0


def test_feeds_are_chosen_by_sizes():
    small = dataclasses.replace(SETTINGS, y_budget=10_000)
    assert choose((10,), (100,) * 10).feed == "resident"
    assert choose((10,), (100,) * 10, y_row_bytes=20, settings=small).feed == "waves"  # 20 kB
    assert choose((10,), 1000, y_row_bytes=20, settings=small, stored=True).feed == "stream"
    assert choose((10,), 1000, stored=True).feed == "stream"


def test_feeds_can_be_forced():
    def forced(feed, *args, **kwargs):
        return choose(*args, settings=dataclasses.replace(SETTINGS, feed=feed, y_budget=10_000), **kwargs)

    assert forced("waves", (10,), (100,)).feed == "waves"
    assert forced("resident", (10,), 1000, stored=True).feed == "resident"
    with pytest.raises(PlanError) as caught:
        forced("stream", (10,), (100,))
    assert str(caught.value) == (
        "dred.plan.feed is stream, but no variable of the reduced index is stored: pass dred.from_file(...) or "
        "dred.from_array(...), or use another feed"
    )
    with pytest.raises(PlanError) as caught:
        forced("resident", (10,), 1000, y_row_bytes=20)
    assert str(caught.value) == (
        "dred.plan.feed is resident, but 20 kB of reduced rows would come to lie in every worker, more than "
        "dred.plan.y-budget of 10 kB: raise it, or use another feed"
    )


def test_waves_hold_a_budget_of_rows():
    settings = dataclasses.replace(SETTINGS, feed="waves", y_budget=2_000, wave_rows=3_000)
    plan = choose((10,) * 10, (10,) * 20, settings)  # 4 lanes of 50 rows: 62 rows of 8 bytes each in a wave
    assert (plan.lanes, plan.steps, plan.wave_rows, plan.wave_bytes) == (4, 1, [200], 1600)
    assert plan.group == 1  # a block with its states holds 10 * (16 + 2 * 4 * 24 + 12)
    plan = choose((10,) * 10, (10,) * 20, dataclasses.replace(settings, y_budget=1_000))
    assert (plan.steps, max(plan.wave_rows) * 8 <= 1_000) == (2, True)


def test_what_is_stored_is_no_edge_and_moves_nowhere():
    stream, resident = (
        choose((10,) * 10, 200, dataclasses.replace(SETTINGS, feed=feed, stream_cache=400), stored=True)
        for feed in ("stream", "resident")
    )
    assert stream.y_blocks == resident.y_blocks
    assert stream.schedule == resident.schedule  # so that their bits are the same
    assert resident.edges - stream.edges == 10 * len(stream.y_blocks)
    assert resident.bytes_moved(3) - stream.bytes_moved(3) == 2 * 200 * 8
    assert stream.worker_bytes(2) < resident.worker_bytes(2)


def test_an_axis_that_nobody_has_cut_is_cut_by_the_plan():
    plan = choose(1000, (10,))  # 10 s: 20 tasks, but x blocks of 256 rows at least
    assert plan.x_blocks == (333, 333, 334)
    plan = choose((100,), 400)  # 40 s, one x block
    assert (plan.lanes, len(plan.y_blocks), set(plan.y_blocks)) == (64, 64, {6, 7})
    plan = choose((100, *(1,) * 63), 1000)  # 300 rows at most in a fold of 30 s
    assert plan.y_blocks == (250,) * 4
    assert plan.steps == 4


@pytest.mark.parametrize("rows", [0, 1])
def test_nothing_to_do_is_one_task_for_each_x_block(rows):
    plan = choose((rows, 0), (0,))
    assert (plan.lanes, plan.steps, plan.tasks, plan.pairs) == (1, 1, 4, 0)
    assert choose(0, 0).x_blocks == (0,)


def test_printed():
    plan = choose((10,) * 10, (10,) * 20, operations=2)  # 40 s: 64 tasks
    assert str(plan).splitlines() == [
        "reduction     Sum on cpu",
        "pairs         100 x 200 = 2e+04, each of 2 operations",
        "time          about 40 s of one worker, at 1e+03 operations per second",
        "feed          resident: every worker may come to hold all y blocks, 1.6 kB",
        "lanes         7 x 1 steps, merged 4 at a time, tree of depth 2",
        "x blocks      10 of at most 10 kept rows",
        "y blocks      20 of at most 10 reduced rows",
        "tasks         100 = 70 fold + 20 merge + 10 out",
        "edges         360",
        "longest fold  about 0.6 s; it holds 880 B",
        "kept rows     1.6 kB",
        "reduced rows  1.6 kB",
        "states        16.8 kB",
        "results       1.2 kB",
    ]


def test_bytes_for_people():
    assert [human(n) for n in (0, 999, 1_200_000, 8e16)] == ["0 B", "999 B", "1.2 MB", "80 PB"]


blocks = st.lists(st.integers(0, 40), min_size=1, max_size=30).map(tuple)


@given(blocks, st.integers(1, 40))
def test_cut_covers_every_block_once_in_order(sizes, parts):
    runs = cut(sizes, parts)
    assert [j for run in runs for j in run] == list(range(len(sizes)))
    assert len(runs) == min(parts, len(sizes))
    assert all(runs)
    if len(set(sizes)) == 1:
        assert max(map(len, runs)) - min(map(len, runs)) <= 1


@given(blocks, st.integers(1, 100))
def test_steps_cover_the_lane_in_order_within_their_limit(sizes, most):
    steps = in_steps(sizes, range(len(sizes)), most)
    assert [j for step in steps for j in step] == list(range(len(sizes)))
    assert all(len(step) == 1 or sum(sizes[j] for j in step) <= most for step in steps)


@given(blocks, st.integers(1, 12), st.integers(1, 20))
def test_blocks_fit_whatever_the_chunks(sizes, most_blocks, most_rows):
    got = fitted(sizes, most_blocks, most_rows)
    assert sum(got) == sum(sizes)
    assert max(got) <= most_rows
    if len(sizes) <= most_blocks:
        assert set(accumulate(sizes)) <= set(accumulate(got))
    elif sum(sizes) <= most_rows:
        assert len(got) == most_blocks


@given(blocks, st.data())
def test_blocks_are_put_together_of_all_rows_in_order(sizes, data):
    ends = sorted(data.draw(st.lists(st.integers(0, sum(sizes)), max_size=8)))
    wanted = [b - a for a, b in zip([0, *ends], [*ends, sum(sizes)], strict=True)]
    starts = [0, *accumulate(sizes)]
    found = pieces(sizes, wanted)
    assert [sum(p.stop - p.start for p in block) for block in found] == wanted
    assert [starts[p.chunk] + row for block in found for p in block for row in range(p.start, p.stop)] == list(
        range(sum(sizes))
    )
    assert all(block and 0 <= p.start <= p.stop <= p.rows == sizes[p.chunk] for block in found for p in block)


@given(st.integers(0, 1000), st.integers(1, 50))
def test_equal_blocks(rows, count):
    got = equal(rows, count)
    assert sum(got) == rows
    assert len(got) == max(1, min(rows, count))
    assert max(got) - min(got) <= 1


@given(st.integers(1, 300), st.integers(2, 9))
def test_tree_merges_every_state_once_in_order(states, arity):
    merged = [[k] for k in range(states)]
    for level in merge_tree(states, arity):
        assert [k for group in level for k in group] == list(range(len(merged)))
        assert all(1 <= len(group) <= arity for group in level)
        merged = [[k for part in group for k in merged[part]] for group in level]
    assert len(merged) <= arity
    assert [k for part in merged for k in part] == list(range(states))


chunks = st.one_of(blocks, st.integers(0, 500))


@given(chunks, chunks, st.integers(1, 10_000), st.integers(1, 4000), st.sampled_from(["auto", "waves"]))
def test_any_plan_holds_its_promises(x, y, operations, y_row_bytes, feed):
    settings = dataclasses.replace(SETTINGS, feed=feed, y_budget=400_000)
    plan = choose(x, y, settings, operations=operations, y_row_bytes=y_row_bytes)
    assert sum(plan.x_blocks) == plan.sizes.x.rows
    assert sum(plan.y_blocks) == plan.sizes.y.rows
    assert plan.out_chunks == (plan.x_blocks if isinstance(x, int) else x)
    assert [j for lane in plan.schedule for step in lane for j in step] == list(range(len(plan.y_blocks)))
    if not isinstance(y, int) and len(y) <= 64:  # y chunks are kept, or cut in equal parts
        assert set(accumulate(y)) - {0} <= set(accumulate(plan.y_blocks))
    assert 1 <= plan.lanes <= len(plan.y_blocks)
    assert plan.fold_seconds <= 30 * (1 + 1e-12)
    assert plan.step_rows * y_row_bytes <= SETTINGS.step
    if plan.feed == "waves":
        assert plan.wave_bytes <= settings.y_budget
    else:
        assert plan.sizes.y.rows * y_row_bytes <= settings.y_budget
    wanted = max(64, plan.seconds / 30)
    assert plan.lanes == 1 or len(plan.x_blocks) * (plan.lanes - 1) <= wanted


@given(chunks, chunks)
def test_equal_plans_have_equal_tokens(x, y):
    assert choose(x, y).token() == choose(x, y).token()


def test_different_plans_have_different_tokens():
    base = choose((10,) * 10, (10,) * 20)
    others = [
        choose((10,) * 10, (10,) * 19 + (9,)),
        choose((10,) * 9 + (9,), (10,) * 20),
        choose((10,) * 10, (10,) * 20, settings=dataclasses.replace(SETTINGS, arity=5)),
        dataclasses.replace(base, backend="cuda"),
        dataclasses.replace(base, reduction="Max"),
        dataclasses.replace(base, schedule=((range(20),),)),
    ]
    tokens = [plan.token() for plan in (base, *others)]
    assert len(set(tokens)) == len(tokens)
    assert {len(t) for t in tokens} == {32}


def test_tokens_are_equal_in_every_process():
    code = "from tests.cluster.test_plan import choose; print(choose((10, 3), (4, 5)).token())"  # other hash seeds
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == choose((10, 3), (4, 5)).token()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"arity": 1}, "dred.plan.arity is 1: a merge joins at least 2 states"),
        (
            {"shortest_fold": 40},
            "dred.plan.shortest-fold is 40 s and longest-fold 30 s: 0 < shortest-fold <= longest-fold must hold",
        ),
        (
            {"shortest_fold": 0},
            "dred.plan.shortest-fold is 0 s and longest-fold 30 s: 0 < shortest-fold <= longest-fold must hold",
        ),
        ({"parallelism": 0}, "dred.plan.parallelism is 0: at least 1 is needed"),
        ({"y_budget": 0}, "dred.plan.y-budget is 0 bytes: at least 1 is needed"),
        ({"step": 0}, "dred.plan.step is 0 bytes: at least 1 is needed"),
        ({"feed": "all"}, "dred.plan.feed is 'all': it is auto, resident, stream or waves"),
        (
            {"operations_per_second": {"cpu": math.nan}},
            "dred.plan.operations-per-second.cpu is nan: a positive number is needed",
        ),
    ],
)
def test_settings_that_mean_nothing_are_refused(change, text):
    with pytest.raises(PlanError) as caught:
        dataclasses.replace(SETTINGS, **change)
    assert str(caught.value) == text


def test_a_backend_without_a_rate_is_refused():
    with pytest.raises(PlanError) as caught:
        Plan.choose("Sum", "tpu", sizes((1,), (1,)), SETTINGS)
    assert str(caught.value) == (
        "no rate is declared for backend 'tpu' (there are cpu): "
        "set dred.plan.operations-per-second.tpu in dask's configuration"
    )
