"""Plans: values worked out by hand, and laws for any sizes."""

import dataclasses
import math
import subprocess
import sys
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dred.cluster.plan import Axis, Plan, Settings, Sizes, cut, equal, in_steps, merge_tree
from dred.errors import PlanError, human

SETTINGS = Settings(
    arity=4,
    shortest_fold=0.5,
    longest_fold=30.0,
    parallelism=64,
    y_budget=10_000,
    operations_per_second={"cpu": 1000.0},
)


def sizes(x, y, operations=1, y_row_bytes=8, parameters=0):
    """Chunks as a tuple, or a number of rows that nobody has cut."""

    def axis(cut, row_bytes):
        if isinstance(cut, int):
            return Axis(cut, row_bytes, 1, None)
        return Axis(sum(cut), row_bytes, 1, cut)

    return Sizes(axis(x, 16), axis(y, y_row_bytes), parameters, 4 * parameters, 24, 12, operations)


def choose(x, y, settings=SETTINGS, **kwargs):
    return Plan.choose("Sum", "cpu", sizes(x, y, **kwargs), settings)


def test_lanes_fill_what_too_few_x_blocks_leave():
    plan = choose((10,) * 10, (10,) * 20)  # 20,000 pairs: 20 s, so 40 tasks of 0.5 s; 10 x blocks: 4 lanes
    assert plan.schedule == tuple((range(5 * lane, 5 * lane + 5),) for lane in range(4))
    assert (plan.lanes, plan.steps, plan.depth) == (4, 1, 1)
    assert (plan.fold_tasks, plan.merge_tasks, plan.out_tasks, plan.tasks) == (40, 0, 10, 50)
    assert plan.edges == 10 * (4 + 20 + 4)  # per x block: x in each fold, every y block, the states
    assert (plan.seconds, plan.fold_seconds) == (20.0, 0.5)
    assert plan.fold_bytes == 10 * (16 + 2 * 24) + 2 * 50 * 8  # y by its blocks and joined
    assert [plan.bytes_moved(w) for w in (1, 2, 3)] == [0, 3200 + 9600, 6400 + 9600]  # x and y, states of 4 lanes


def test_enough_x_blocks_need_one_lane_and_no_tree():
    plan = choose((10,) * 64, (10,) * 20)
    assert plan.schedule == ((range(20),),)
    assert (plan.lanes, plan.steps, plan.depth, plan.merge_tasks) == (1, 1, 0, 0)
    assert plan.edges == 64 * (1 + 20 + 1)


def test_no_more_lanes_than_y_blocks():
    assert choose((1000,), (30, 0, 30)).lanes == 3


def test_many_lanes_are_merged_by_a_tree():
    plan = choose((100,), (1,) * 400, parameters=2)  # 40 s: 64 tasks wanted at most, one x block
    assert (plan.lanes, plan.depth) == (64, 3)
    assert plan.tree == [[range(4 * g, 4 * g + 4) for g in range(16)], [range(4 * g, 4 * g + 4) for g in range(4)]]
    assert (plan.fold_tasks, plan.merge_tasks, plan.out_tasks) == (64, 20, 1)
    assert plan.edges == 64 * 3 + 400 + 64 + 16 + 4


def test_a_state_without_a_partner_is_handed_on():
    plan = choose((100,), (1,) * 25)  # 2.5 s: 5 lanes
    assert plan.tree == [[range(0, 4), range(4, 5)]]
    assert (plan.fold_tasks, plan.merge_tasks, plan.out_tasks, plan.depth) == (5, 1, 1, 2)
    assert plan.edges == 5 + 25 + 4 + 2


def test_long_work_gets_more_tasks_than_the_parallelism():
    plan = choose((100,) * 10, (10,) * 1000)  # 10,000 s: 333.3 tasks of 30 s
    assert (plan.lanes, plan.steps) == (34, 1)
    assert plan.fold_seconds <= 30


def test_a_fold_that_would_take_too_long_is_chained():
    plan = choose((1000, *(1,) * 63), (10,) * 10)  # 106 s: 64 tasks, so one lane; but 1000 x 100 pairs take 100 s
    assert plan.schedule == ((range(0, 3), range(3, 6), range(6, 9), range(9, 10)),)
    assert (plan.lanes, plan.steps) == (1, 4)
    assert plan.edges == 64 * (4 + 10 + 3 + 1)
    assert plan.fold_seconds == 30.0


def test_a_fold_that_would_read_too_much_is_chained():
    plan = choose((1,) * 64, (10,) * 10, y_row_bytes=300)  # 10,000 bytes are 33 rows
    assert plan.schedule == ((range(0, 3), range(3, 6), range(6, 9), range(9, 10)),)
    assert plan.fold_bytes == 16 + 2 * 24 + 2 * 30 * 300


def test_y_chunks_are_cut_where_one_alone_is_too_much():
    plan = choose((1,) * 64, (50, 0, 10, 100), y_row_bytes=300)  # 10,000 bytes are 33 rows
    assert plan.y_blocks == (25, 25, 0, 10, 25, 25, 25, 25)
    assert [[len(step) for step in lane] for lane in plan.schedule] == [[1, 2, 1, 1, 1, 1, 1]]
    plan = choose((3000,), (10, 21))  # 3 s for each y row
    assert plan.y_blocks == (10, 7, 7, 7)


def test_large_chunks_on_both_sides():
    """As of da.zeros((10**9, 3), chunks=10**7) twice: a whole chunk by a whole one would be 100,000 s."""
    settings = dataclasses.replace(SETTINGS, y_budget=1 << 30, operations_per_second={"cpu": 2e10})
    plan = choose((10**7,), (10**7,) * 4, settings, operations=20)
    assert plan.fold_seconds <= 30
    assert plan.panel_rows * 8 <= 1 << 30
    assert (len(plan.y_blocks), max(plan.y_blocks)) == (4 * 3334, 3000)


def test_a_fold_that_cannot_be_short_is_refused():
    with pytest.raises(PlanError) as caught:
        choose((10, 6000), (5,), operations=10)
    assert str(caught.value) == (
        "a fold of 6,000 kept rows and a single reduced row of 10 operations takes about 60 s, more than "
        "dred.plan.longest-fold of 30 s: give the kept variables chunks of at most 3,000 rows, or raise it"
    )
    with pytest.raises(PlanError) as caught:
        choose((1,), (5,), y_row_bytes=20_000)
    assert str(caught.value) == (
        "a single reduced row holds 20 kB, more than dred.plan.y-budget of 10 kB: raise it in dask's configuration"
    )
    assert choose((10, 6000), (0, 0), operations=10, y_row_bytes=20_000).fold_seconds == 0


def test_an_axis_that_nobody_has_cut_is_cut_by_the_plan():
    plan = choose(1000, (100,))  # 100 s: 64 tasks, but x blocks of 256 rows at least
    assert plan.x_blocks == (333, 333, 334)
    plan = choose((100,), 400)  # 40 s, one x block
    assert (plan.lanes, len(plan.y_blocks), set(plan.y_blocks)) == (64, 64, {6, 7})
    plan = choose((1000, *(1,) * 63), 100)  # 30 rows at most in a fold of 30 s
    assert plan.y_blocks == (25,) * 4
    assert plan.steps == 4


@pytest.mark.parametrize("rows", [0, 1])
def test_nothing_to_do_is_one_task_for_each_x_block(rows):
    plan = choose((rows, 0), (0,))
    assert (plan.lanes, plan.steps, plan.tasks, plan.pairs) == (1, 1, 4, 0)
    assert choose(0, 0).x_blocks == (0,)


def test_printed():
    plan = choose((10,) * 10, (10,) * 20, operations=2)  # 40 s: 64 tasks
    assert str(plan) == (
        "Sum on cpu: 100 x 200 = 2e+04 pairs of 2 operations, about 40 s of one worker at 1e+03 per second\n"
        "lanes x steps x depth of the tree: 7 x 1 x 2 (arity 4)\n"
        "blocks: 10 of at most 10 kept rows, 20 of at most 10 reduced rows\n"
        "tasks: 100 = 70 fold + 20 merge + 10 out, 360 edges; a fold takes at most about 0.6 s\n"
        "bytes: kept 1.6 kB, reduced 1.6 kB, states 16.8 kB, result 1.2 kB; a fold holds at most 1.12 kB; "
        "at most 24.8 kB move between 2 workers"
    )


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


@given(chunks, chunks, st.integers(1, 10_000), st.integers(1, 4000))
def test_any_plan_holds_its_promises(x, y, operations, y_row_bytes):
    try:
        plan = choose(x, y, operations=operations, y_row_bytes=y_row_bytes)
    except PlanError:
        kept, reduced = max(x) if isinstance(x, tuple) else x, sum(y) if isinstance(y, tuple) else y
        assert reduced
        assert kept * operations / 1000 > 30
        return
    assert sum(plan.x_blocks) == plan.sizes.x.rows
    assert sum(plan.y_blocks) == plan.sizes.y.rows
    assert isinstance(x, int) or plan.x_blocks == x
    assert [j for lane in plan.schedule for step in lane for j in step] == list(range(len(plan.y_blocks)))
    if not isinstance(y, int):  # y chunks are kept, or cut in equal parts
        assert set(accumulate(y)) <= set(accumulate(plan.y_blocks))
    assert 1 <= plan.lanes <= len(plan.y_blocks)
    assert plan.fold_seconds <= 30 * (1 + 1e-12)
    assert plan.panel_rows * y_row_bytes <= SETTINGS.y_budget
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
