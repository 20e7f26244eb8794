"""Groups as wholes, where their time went, and figures over a stretch of time."""

from __future__ import annotations

import random
import statistics
from typing import TYPE_CHECKING

import pytest

from microvm_orchestrator import errors
from microvm_orchestrator.model.report import Spread
from microvm_orchestrator.model.task import Edge
from microvm_orchestrator.model.values import moment
from microvm_orchestrator.store.base import (
    Address,
    CancelTasks,
    InGroup,
    Released,
    RetryTasks,
)
from microvm_orchestrator.store.questions import Figures, GroupAnalysis, GroupList, OneGroup
from storing import (
    ALICE,
    BEGIN,
    LEASE_S,
    HandClock,
    fail,
    fail_next,
    finish,
    gate,
    get,
    own_only,
    pass_time,
    run_next,
    submit,
    take,
    task,
)

if TYPE_CHECKING:
    from microvm_orchestrator.model.records import Actor
    from microvm_orchestrator.model.report import GroupReport, GroupStatus, Measures
    from microvm_orchestrator.store.base import Store


async def status(store: Store, group: str = "default", by: Actor = ALICE) -> GroupStatus:
    return await store.query(OneGroup(group), by)


async def report(store: Store, group: str = "default") -> GroupReport:
    return await store.query(GroupAnalysis(group), ALICE)


async def figures(store: Store, window_s: float = 3600.0, group: str | None = None) -> Measures:
    return await store.query(Figures(window_s, group), ALICE)


# Groups


async def test_the_state_of_a_group_says_what_it_does(store: Store, clock: HandClock) -> None:
    await submit(store, task("a"), task("b", "a"))
    seen = [(await status(store)).state]
    held = await take(store)
    seen.append((await status(store)).state)
    await store.settle(held.ref, Released("later", delay_s=10.0), ALICE)
    seen.append((await status(store)).state)
    clock.advance(10)
    # What has fallen due is about to be ready, though nobody has looked yet.
    seen.append((await status(store)).state)
    await fail_next(store)
    seen.append((await status(store)).state)
    await store.amend(Address("b"), CancelTasks(), ALICE)
    seen.append((await status(store)).state)
    await store.amend(InGroup("default"), RetryTasks(), ALICE)
    for _ in range(2):
        await run_next(store)
    seen.append((await status(store)).state)
    assert seen == ["waiting", "running", "blocked", "blocked", "deadlocked", "failed", "done"]


async def test_a_group_that_waits_for_another_is_deadlocked_only_when_that_is(
    store: Store,
) -> None:
    far = (await submit(store, task("far", group="one"))).tasks[0]
    middle = (await submit(store, task("middle", far.task_id, group="two"))).tasks[0]
    await submit(store, task("near", middle.task_id, group="three"))
    assert (await status(store, "three")).state == "blocked"
    await fail_next(store)
    states = [(await status(store, group)).state for group in ("one", "two", "three")]
    assert states == ["failed", "deadlocked", "deadlocked"]


async def test_a_group_of_which_some_were_cancelled_is_cancelled(store: Store) -> None:
    await submit(store, task("a"), task("b"))
    await run_next(store)
    await store.amend(Address("b"), CancelTasks(), ALICE)
    assert (await status(store)).state == "cancelled"


async def test_a_group_counts_its_tasks_and_knows_its_times(store: Store, clock: HandClock) -> None:
    await submit(store, task("a"), task("b"), task("c", "a", "b"), task("d", "b"))
    clock.advance(5)
    await run_next(store)
    clock.advance(5)
    held = await take(store)
    clock.advance(5)
    await fail(store, held)
    found = await status(store)
    assert found.counts.model_dump() == {
        "blocked": 2,
        "ready": 0,
        "running": 0,
        "done": 1,
        "failed": 1,
        "cancelled": 0,
    }
    assert (found.total, found.fraction_done) == (4, 0.25)
    assert (found.created_at, found.started_at, found.finished_at) == (
        moment(BEGIN),
        moment(BEGIN + 5),
        None,
    )
    clock.advance(5)
    await store.amend(InGroup("default"), CancelTasks(), ALICE)
    assert (await status(store)).finished_at == moment(BEGIN + 20)
    # Though `b` forgets when it was tried first, the group does not.
    await store.amend(Address("b"), RetryTasks(), ALICE)
    found = await status(store)
    assert (found.started_at, found.finished_at) == (moment(BEGIN + 5), None)


async def test_groups_are_listed_by_name_page_by_page_as_far_as_they_are_seen(
    store: Store,
) -> None:
    bob = own_only("bob")
    names = [f"g{number}" for number in range(6)]
    for name in names:
        await submit(store, task("a", group=name))
        await submit(store, task("b", group=name))
    await submit(store, task("mine", group="g3"), by=bob)
    found: list[GroupStatus] = []
    cursor = None
    while True:
        page = await store.query(GroupList(limit=2, cursor=cursor), ALICE)
        found += page.items
        cursor = page.cursor
        if cursor is None:
            break
    assert [(one.group, one.total) for one in found] == [
        (name, 3 if name == "g3" else 2) for name in names
    ]
    (mine,) = (await store.query(GroupList(limit=1), bob)).items
    assert (mine.group, mine.total) == ("g3", 1)
    with pytest.raises(errors.NotFound):
        await status(store, "g1", by=bob)
    with pytest.raises(errors.NotFound):
        await report(store, "nowhere")


# Reports


async def spend(store: Store, clock: HandClock, key: str, wait_s: float, run_s: float) -> None:
    """Let the next task wait and run for so long."""
    await pass_time(store, clock, wait_s)
    held = await take(store, lease_s=3600.0)
    assert held.key == key
    await pass_time(store, clock, run_s)
    await finish(store, held)


async def test_the_critical_path_is_the_chain_that_took_longest(
    store: Store, clock: HandClock
) -> None:
    await submit(
        store, task("a"), task("long", "a"), task("short", "a"), task("end", "long", "short")
    )
    await spend(store, clock, "a", 2, 10)
    long, short = await take(store, lease_s=3600.0), await take(store, lease_s=3600.0)
    await pass_time(store, clock, 5)
    await finish(store, short)
    await pass_time(store, clock, 15)
    await finish(store, long)
    await spend(store, clock, "end", 3, 4)
    found = await report(store)
    path = [(step.key, step.state, step.wait_s, step.run_s) for step in found.critical_path]
    assert path == [("a", "done", 2, 10), ("long", "done", 0, 20), ("end", "done", 3, 4)]
    assert (found.critical_path_s, found.elapsed_s) == (39, 39)
    assert found.busy_s == 10 + 20 + 5 + 4
    assert found.parallelism == pytest.approx(1.0)
    (slow,) = [one for one in found.bottlenecks if one.key == "long"]
    assert (slow.state, slow.holds_up) == ("done", 0)
    assert slow.why == "took 20.0 s, 2.7 times the group's median"


async def test_what_did_not_hold_a_task_up_is_not_on_its_critical_path(
    store: Store, clock: HandClock
) -> None:
    await submit(store, task("slow"), task("fast"), task("x", gate("any", "slow", "fast")))
    slow, fast = await take(store, lease_s=3600.0), await take(store, lease_s=3600.0)
    await pass_time(store, clock, 2)
    await finish(store, fast)
    x = await take(store, lease_s=3600.0)
    await pass_time(store, clock, 5)
    await finish(store, x)
    await pass_time(store, clock, 1)
    await finish(store, slow)
    found = await report(store)
    assert [step.key for step in found.critical_path] == ["slow"]
    assert (found.critical_path_s, found.elapsed_s, found.busy_s) == (8, 8, 15)


async def test_all_attempts_and_waits_of_a_task_count(store: Store, clock: HandClock) -> None:
    await submit(store, task("a", retry={"max_attempts": 2, "backoff_s": 0.0}))
    await pass_time(store, clock, 1)
    held = await take(store)
    await pass_time(store, clock, 5)
    await fail(store, held, retryable=True)
    await pass_time(store, clock, 2)
    held = await take(store)
    await pass_time(store, clock, 7)
    found = await report(store)
    (step,) = found.critical_path
    assert (step.state, step.wait_s, step.run_s) == ("running", 3, 12)
    assert (found.busy_s, found.elapsed_s) == (12, 15)
    (bottleneck,) = found.bottlenecks
    assert bottleneck.why == "running for 12.0 s by w1, attempt 2"


async def test_bottlenecks_are_ranked_by_how_many_wait_for_them(
    store: Store, clock: HandClock
) -> None:
    await submit(
        store,
        task("runs", priority=9),
        task("bad", priority=8),
        task("ready"),
        task("later", not_before=moment(BEGIN + 100)),
        # Five wait for `runs`, by many ways; four for the stuck one; two for `ready`.
        *(task(f"r{i}", "runs") for i in range(3)),
        *(task(f"rr{i}", "r0", "r1", "r2") for i in range(2)),
        task("stuck", "bad"),
        *(task(f"s{i}", f"s{i - 1}" if i else "stuck") for i in range(4)),
        task("y0", "ready"),
        task("y1", "y0", "later"),
    )
    held = await take(store, lease_s=3600.0)
    await fail_next(store)
    await pass_time(store, clock, 10)
    found = await report(store)
    bad = await get(store, "bad")
    assert [(one.key, one.holds_up, one.why) for one in found.bottlenecks] == [
        ("runs", 5, "running for 10.0 s by w1"),
        ("stuck", 4, f"dependency unmet: {bad.task_id} failed"),
        ("ready", 2, "ready for 10.0 s, and nobody took it"),
        ("later", 1, "starts in 90.0 s"),
    ]
    assert found.bottlenecks[0].task_id == held.task.task_id


async def test_a_group_held_up_from_elsewhere_says_so(store: Store) -> None:
    far = (await submit(store, task("far", group="one"))).tasks[0]
    await submit(store, task("near", far.task_id, group="two"), task("last", "near", group="two"))
    (bottleneck,) = (await report(store, "two")).bottlenecks
    assert (bottleneck.key, bottleneck.holds_up) == ("near", 1)
    assert bottleneck.why == "waits for a task elsewhere"


async def test_a_report_on_thousands_of_tasks_counts_right(store: Store) -> None:
    """A chain behind a fan: no head is ahead of the one that holds most."""
    heads = 200
    await submit(
        store,
        *(task(f"head{i}") for i in range(heads)),
        *(task(f"leaf{i}.{j}", f"head{i}") for i in range(heads) for j in range(5)),
        task("one"),
        *(task(f"chain{i}", f"chain{i - 1}" if i else "one") for i in range(1500)),
    )
    found = await report(store)
    assert [(one.key, one.holds_up) for one in found.bottlenecks[:2]] == [
        ("one", 1500),
        ("head0", 5),
    ]
    assert len(found.bottlenecks) == 10


# Figures


def spread(values: list[float]) -> Spread:
    """By the definition: the smallest value that so many of a hundred do not exceed."""
    values = sorted(values)
    rank = {share: -(-len(values) * share // 100) for share in (50, 95)}
    return Spread(
        count=len(values),
        mean_s=statistics.fmean(values),
        p50_s=values[rank[50] - 1],
        p95_s=values[rank[95] - 1],
        max_s=values[-1],
    )


@pytest.mark.parametrize("count", [1, 2, 3, 20, 21, 57])
async def test_waits_and_runs_are_measured_truthfully(
    store: Store, clock: HandClock, count: int
) -> None:
    chance = random.Random(count)
    waits = [float(chance.randrange(1, 100)) for _ in range(count)]
    took = [float(chance.randrange(1, 100)) for _ in range(count)]
    for index in range(count):
        await submit(store, task(f"k{index}"))
        clock.advance(waits[index])
        held = await take(store, lease_s=86_400.0)
        clock.advance(took[index])
        await finish(store, held)
    found = await figures(store, window_s=1e6)
    for measured, expected in ((found.wait, spread(waits)), (found.run, spread(took))):
        assert measured.model_dump() == pytest.approx(expected.model_dump())
    (worker,) = found.workers
    assert worker.run == found.run
    assert (found.submitted, found.completed, found.failed) == (count, count, 0)
    assert found.completed_per_s == pytest.approx(count / 1e6)


async def test_figures_of_an_empty_store_are_nothing(store: Store) -> None:
    found = await figures(store)
    assert (found.wait, found.run, found.workers) == (Spread(), Spread(), [])
    assert (found.oldest_ready_s, found.submitted, found.completed_per_s) == (None, 0, 0.0)


async def test_only_what_happened_within_the_window_is_measured(
    store: Store, clock: HandClock
) -> None:
    await submit(store, task("old"), task("across"), task("new"))
    await run_next(store)
    across = await take(store, lease_s=86_400.0)
    clock.advance(1000)
    await submit(store, task("fresh"))
    clock.advance(10)
    await finish(store, across)
    await run_next(store)
    held = await take(store)
    clock.advance(1)
    found = await figures(store, window_s=100.0)
    # `across` began before the window and ended in it; `fresh` is still running.
    assert (found.wait.count, found.wait.max_s) == (2, 1010)
    assert (found.run.count, found.run.max_s) == (2, 1010)
    assert (found.submitted, found.completed) == (1, 2)
    assert found.tasks.model_dump() | {} == {
        "blocked": 0,
        "ready": 0,
        "running": 1,
        "done": 3,
        "failed": 0,
        "cancelled": 0,
    }
    await finish(store, held)


async def test_each_worker_is_measured_by_what_it_did(store: Store, clock: HandClock) -> None:
    await submit(store, *(task(f"k{i}", max_expiries=0) for i in range(7)))
    for took in (1, 2, 9):
        held = await take(store, "good")
        await pass_time(store, clock, took)
        await finish(store, held)
    held = await take(store, "bad")
    await fail(store, held)
    await take(store, "bad")
    await pass_time(store, clock, LEASE_S)
    held = await take(store, "odd")
    await store.settle(held.ref, Released(), ALICE)
    found = {worker.worker: worker for worker in (await figures(store)).workers}
    assert list(found) == ["good", "bad", "odd"]
    good, bad, odd = found.values()
    assert (good.succeeded, good.failed, good.success_rate) == (3, 0, 1.0)
    assert good.run == Spread(count=3, mean_s=4.0, p50_s=2.0, p95_s=9.0, max_s=9.0)
    assert (bad.succeeded, bad.failed, bad.lost, bad.success_rate) == (0, 1, 1, 0.0)
    assert (odd.succeeded, odd.failed, odd.lost, odd.run.count) == (0, 0, 0, 0)


async def test_attempts_that_ran_out_of_time_are_counted(store: Store, clock: HandClock) -> None:
    await submit(store, task("a", timeout_s=5.0))
    await take(store)
    await pass_time(store, clock, 5)
    (worker,) = (await figures(store)).workers
    assert (worker.timed_out, worker.lost, worker.run.count) == (1, 0, 0)


async def test_figures_can_be_of_one_group_and_of_what_is_seen(
    store: Store, clock: HandClock
) -> None:
    bob = own_only("bob")
    await submit(store, task("a", group="one"), task("b", group="two", priority="high"))
    await submit(store, task("c", group="one", priority="low"), by=bob)
    for took in (1, 2, 3):
        held = await take(store)
        clock.advance(took)
        await finish(store, held)
    await submit(store, task("d", group="two"))
    clock.advance(4)
    one, two = await figures(store, group="one"), await figures(store, group="two")
    assert [one.completed, two.completed] == [2, 1]
    assert [one.oldest_ready_s, two.oldest_ready_s] == [None, 4]
    assert [one.run.max_s, two.run.max_s] == [3, 1]
    mine = await store.query(Figures(), bob)
    assert (mine.completed, mine.run.mean_s, mine.tasks.done) == (1, 3, 1)
    assert mine.workers[0].succeeded == 1


async def test_a_failure_handler_that_was_not_needed_leaves_its_group_cancelled_in_part(
    store: Store,
) -> None:
    on_failure = Edge.model_validate({"task": "a", "on": "failure"})
    await submit(store, task("a"), task("handler", on_failure, on_unmet="cancel"))
    await run_next(store)
    found = await status(store)
    assert (found.state, found.counts.done, found.counts.cancelled) == ("cancelled", 1, 1)
