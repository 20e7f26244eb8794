"""Claims, leases, fencing, retries, expiry, timeouts and grace."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import anyio
import pytest

from microvm_orchestrator import errors
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.task import TaskError, TaskProgress
from microvm_orchestrator.model.values import moment
from microvm_orchestrator.store.base import (
    Address,
    Beat,
    CancelTasks,
    Done,
    Failed,
    Ref,
    Released,
    RetryTasks,
    WorkerCard,
)
from microvm_orchestrator.store.questions import RunList, WorkerByName
from storing import (
    ALICE,
    BEGIN,
    KEEP_ALL,
    LEASE_S,
    HandClock,
    SqliteEngine,
    actor,
    claim,
    fail,
    fail_next,
    finish,
    get,
    own_only,
    pass_time,
    run_next,
    states,
    submit,
    take,
    task,
    told,
    told_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from microvm_orchestrator.model.task import Run
    from microvm_orchestrator.store.base import Store
    from storing import Held


async def runs(store: Store, ref: str) -> Sequence[Run]:
    return (await store.query(RunList(ref), ALICE)).items


async def beat(store: Store, held: Held, progress: TaskProgress | None = None) -> bool:
    (renewed,) = await store.renew([Beat(held.ref, progress)], ALICE)
    return renewed.held


# What is claimed


async def test_the_most_urgent_task_is_claimed_first_and_of_equals_the_oldest(
    store: Store,
) -> None:
    levels = {"a": 0, "b": 100, "c": -5, "d": 100, "e": 0, "f": 1000}
    await submit(store, *(task(key, priority=level) for key, level in levels.items()))
    assert [await run_next(store) for _ in levels] == ["f", "b", "d", "a", "e", "c"]


async def test_several_tasks_can_be_claimed_at_once_in_their_order(store: Store) -> None:
    await submit(store, *(task(f"k{i}", capabilities=[f"c{i % 3}"]) for i in range(9)))
    claimed = await claim(store, count=5, capabilities=frozenset({"c0", "c2"}))
    assert [found.key for found, _ in claimed.tasks] == ["k0", "k2", "k3", "k5", "k6"]
    rest = await claim(store, count=5, capabilities=frozenset({"c0", "c2"}))
    assert [found.key for found, _ in rest.tasks] == ["k8"]


async def test_a_task_goes_only_to_whom_has_all_that_it_asks_for(store: Store) -> None:
    await submit(store, task("a", capabilities=["kvm", "big"], role="builder"))
    offers = [
        (frozenset[str](), frozenset[str]()),
        (frozenset({"kvm"}), frozenset({"builder"})),
        (frozenset({"kvm", "big"}), frozenset({"tester"})),
        (frozenset({"kvm", "big", "more"}), frozenset({"builder", "tester"})),
    ]
    verdicts = [
        (await claim(store, capabilities=capabilities, roles=roles)).verdict
        for capabilities, roles in offers
    ]
    assert verdicts == ["no_match", "no_match", "no_match", "claimed"]


async def test_what_a_worker_registered_with_counts_in_its_claims(store: Store) -> None:
    await submit(store, task("a", capabilities=["kvm"], role="builder"))
    await store.enlist(WorkerCard("w1", ("kvm",), ("builder",)), 60, ALICE)
    assert await run_next(store, "w1") == "a"


async def test_a_claim_may_name_its_groups(store: Store) -> None:
    await submit(
        store, task("a", group="one"), task("b", group="two"), task("c", group="three", priority=9)
    )
    claimed = await claim(store, groups=("two", "one", "two"), count=9)
    assert [found.key for found, _ in claimed.tasks] == ["a", "b"]
    assert (await claim(store, groups=("one",))).verdict == "blocked"
    assert (await claim(store, groups=("empty",))).verdict == "all_done"


async def test_no_task_is_ever_claimed_twice_however_many_ask_at_once(store: Store) -> None:
    await submit(store, *(task(f"k{i}") for i in range(100)))
    taken: list[str] = []

    async def worker(name: str) -> None:
        while (claimed := await claim(store, name, count=3)).tasks:
            taken.extend(found.task_id for found, _ in claimed.tasks)

    async with anyio.create_task_group() as tasks:
        for number in range(10):
            tasks.start_soon(worker, f"w{number}")
    assert len(taken) == len(set(taken)) == 100


# Why there is nothing


async def test_blocked_means_that_something_runs_or_falls_due(
    store: Store, clock: HandClock
) -> None:
    await submit(store, task("a"), task("b", "a"))
    held = await take(store)
    assert (await claim(store)).verdict == "blocked"
    await finish(store, held)
    await run_next(store)
    due = BEGIN + 60
    await submit(store, task("later", not_before=moment(due)), task("after", "later"))
    waiting = await claim(store)
    assert (waiting.verdict, waiting.due_at) == ("blocked", due)
    clock.advance(60)
    assert await run_next(store) == "later"
    assert await run_next(store) == "after"
    assert (await claim(store)).verdict == "all_done"


async def test_a_deadlock_is_told_with_those_that_cause_it_first(store: Store) -> None:
    await submit(
        store,
        *(task(f"behind{i}", "stuck") for i in range(20)),
        task("stuck", "bad"),
        task("bad", group="default"),
    )
    await fail_next(store)
    claimed = await claim(store)
    assert claimed.verdict == "deadlocked"
    assert claimed.stuck[0].key == "stuck"
    bad = await get(store, "bad")
    assert claimed.stuck[0].reason == f"dependency unmet: {bad.task_id} failed"
    assert 1 < len(claimed.stuck) <= 10


async def test_a_group_that_waits_for_another_is_blocked_while_that_can_still_finish(
    store: Store,
) -> None:
    far = (await submit(store, task("far", group="one"))).tasks[0]
    middle = (await submit(store, task("middle", far.task_id, group="two"))).tasks[0]
    await submit(store, task("near", middle.task_id, group="three"))
    assert (await claim(store, groups=("three",))).verdict == "blocked"
    held = await take(store)
    assert (await claim(store, groups=("three",))).verdict == "blocked"
    await fail(store, held)
    assert (await claim(store, groups=("three",))).verdict == "deadlocked"
    assert (await claim(store)).verdict == "deadlocked"


async def test_a_time_that_comes_frees_nothing_that_is_stuck_anyway(store: Store) -> None:
    await submit(store, task("bad"))
    await fail_next(store)
    await submit(store, task("x", "bad", not_before=moment(BEGIN + 60)))
    assert (await claim(store)).verdict == "deadlocked"


async def test_a_draining_worker_gets_nothing_and_keeps_what_it_has(store: Store) -> None:
    await submit(store, task("a"), task("b"))
    await store.enlist(WorkerCard("w1"), 60, ALICE)
    held = await take(store, "w1")
    for _ in range(2):
        await store.drain("w1", draining=True, by=ALICE)
    assert (await claim(store, "w1")).verdict == "draining"
    await store.enlist(WorkerCard("w1"), 60, ALICE)
    assert (await claim(store, "w1")).verdict == "draining"
    assert await beat(store, held)
    assert (await finish(store, held)).verdict == "accepted"
    await store.drain("w1", draining=False, by=ALICE)
    assert await run_next(store, "w1") == "b"


# Fencing


async def test_a_completion_heard_twice_counts_once_and_gets_the_same_answer(
    store: Store,
) -> None:
    await submit(store, task("a"), task("b", "a"))
    held = await take(store)
    first = await finish(store, held, {"n": 1})
    events = await told(store)
    second = await finish(store, held, {"n": 1})
    assert (first.verdict, second.verdict) == ("accepted", "repeated")
    assert second.unlocked == first.unlocked
    assert second.task == first.task
    assert await told(store) == events


async def test_another_result_under_the_same_token_is_refused(store: Store) -> None:
    await submit(store, task("a"))
    held = await take(store)
    await finish(store, held, {"n": 1})
    assert (await finish(store, held, {"n": 2})).verdict == "fenced"
    assert (await get(store, "a")).result == {"n": 1}


async def test_a_failure_and_a_release_heard_twice_count_once(store: Store) -> None:
    await submit(store, task("a", retry={"max_attempts": 9, "backoff_s": 0.0}))
    failed = await take(store)
    verdicts = [(await fail(store, failed, retryable=True)).verdict for _ in range(2)]
    released = await take(store)
    give_back = Released("busy")
    verdicts += [(await store.settle(released.ref, give_back, ALICE)).verdict for _ in range(2)]
    # Even when another has it by now.
    other = await take(store, "w2")
    verdicts.append((await store.settle(released.ref, give_back, ALICE)).verdict)
    verdicts.append((await fail(store, failed, retryable=True)).verdict)
    assert verdicts == ["accepted", "repeated", "accepted", "repeated", "repeated", "repeated"]
    assert (await get(store, "a")).worker == other.ref.worker
    assert [run.state.value for run in await runs(store, "a")] == ["failed", "cancelled", "running"]


async def test_a_late_completion_is_refused_and_recorded_with_its_result(
    store: Store, clock: HandClock
) -> None:
    await submit(store, task("a"))
    late = await take(store, "w1")
    await pass_time(store, clock, LEASE_S + 1)
    current = await take(store, "w2")
    assert current.ref.token == late.ref.token + 1
    fenced = await finish(store, late, {"from": "w1"})
    assert (fenced.verdict, fenced.task.worker) == ("fenced", "w2")
    (event,) = await told(store, "task.fenced")
    assert isinstance(event.body, dict)
    assert (event.body["token"], event.body["by"]) == (1, "w1")
    assert event.body["result"] == {"from": "w1"}
    assert (await finish(store, current, {"from": "w2"})).verdict == "accepted"
    assert (await get(store, "a")).result == {"from": "w2"}


async def test_a_cancelled_task_takes_no_result(store: Store) -> None:
    await submit(store, task("a"))
    held = await take(store)
    await store.amend(Address("a"), CancelTasks("not needed"), ALICE)
    (renewed,) = await store.renew([Beat(held.ref)], ALICE)
    assert (renewed.held, renewed.state) == (False, "cancelled")
    for outcome in (Done(1), Failed(TaskError()), Released()):
        assert (await store.settle(held.ref, outcome, ALICE)).verdict == "fenced"
    found = await get(store, "a")
    assert (found.state, found.reason, found.result) == ("cancelled", "not needed", None)
    assert len(await told(store, "task.fenced")) == 3


async def test_a_token_is_worth_nothing_in_the_wrong_hands(store: Store) -> None:
    await submit(store, task("a"))
    bob, eve = (actor(name, role=Role.WORKER) for name in ("bob", "eve"))
    held = await take(store, "w1", by=bob)
    wrong = replace(held.ref, worker="w2")
    for ref, by in ((held.ref, eve), (wrong, bob)):
        assert (await store.settle(ref, Done(), by)).verdict == "fenced"
        assert [renewed.held for renewed in await store.renew([Beat(ref)], by)] == [False]
    assert (await store.settle(held.ref, Done(1), bob)).verdict == "accepted"
    # Nor does the one who guesses the result get the answer of the one who gave it.
    assert (await store.settle(held.ref, Done(1), eve)).verdict == "fenced"


async def test_a_token_that_was_never_given_is_refused(store: Store) -> None:
    await submit(store, task("a"))
    held = await take(store)
    for token in (0, -1, 2, 10**12):
        ref = replace(held.ref, token=token)
        assert (await store.settle(ref, Done(), ALICE)).verdict == "fenced"
    with pytest.raises(errors.NotFound):
        await store.settle(Ref(Address("nowhere"), 1, "w1"), Done(), ALICE)
    assert (await states(store)) == {"a": "running"}


# Renewal and expiry


async def test_a_renewed_lease_does_not_run_out(store: Store, clock: HandClock) -> None:
    await submit(store, task("a"))
    held = await take(store)
    for _ in range(12):
        await pass_time(store, clock, LEASE_S - 1)
        assert await beat(store, held)
    assert (await finish(store, held)).verdict == "accepted"


async def test_progress_is_kept_with_the_task_and_with_the_attempt(store: Store) -> None:
    await submit(store, task("a"))
    held = await take(store)
    progress = TaskProgress(fraction=0.5, message="half")
    assert await beat(store, held, progress)
    assert (await get(store, "a")).progress == progress
    assert [run.progress for run in await runs(store, "a")] == [progress]
    assert len(await told(store, "task.progress")) == 1
    await store.settle(held.ref, Released(), ALICE)
    await take(store)
    assert (await get(store, "a")).progress is None
    assert [run.progress for run in await runs(store, "a")] == [progress, None]


async def test_a_lease_runs_out_when_its_worker_is_silent_and_the_task_is_ready_again(
    store: Store, clock: HandClock
) -> None:
    await submit(store, task("a"))
    await take(store, "w1")
    swept = await pass_time(store, clock, LEASE_S)
    assert sum(pass_.requeued for pass_ in swept) == 1
    assert swept[0].next_at == BEGIN + LEASE_S
    found = await get(store, "a")
    assert (found.state, found.worker) == ("ready", None)
    assert found.reason == "worker w1 went silent"
    assert [run.state.value for run in await runs(store, "a")] == ["lost"]
    assert (await take(store, "w2")).ref.token == 2


async def test_silence_is_forgiven_as_often_as_the_task_allows(
    store: Store, clock: HandClock
) -> None:
    await submit(store, task("a", max_expiries=2), task("b", "a", on_unmet="cancel"))
    for _ in range(2):
        await take(store)
        await pass_time(store, clock, LEASE_S)
        assert (await states(store))["a"] == "ready"
    await take(store)
    swept = await pass_time(store, clock, LEASE_S)
    assert sum(pass_.failed for pass_ in swept) == 1
    found = await get(store, "a")
    assert found.error is not None
    assert (found.state, found.error.code) == ("failed", "lease-expired")
    assert (await states(store))["b"] == "cancelled"


async def test_a_task_may_ask_to_fail_when_its_worker_goes_silent(
    store: Store, clock: HandClock
) -> None:
    await submit(store, task("a", on_expiry="fail"))
    await take(store)
    await pass_time(store, clock, LEASE_S)
    assert await states(store) == {"a": "failed"}


async def test_an_attempt_that_takes_too_long_is_ended_although_its_worker_speaks(
    store: Store, clock: HandClock
) -> None:
    retry = {"max_attempts": 2, "backoff_s": 0.0}
    await submit(store, task("a", timeout_s=100.0, retry=retry))
    for state in ("ready", "failed"):
        held = await take(store)
        for _ in range(5):
            await pass_time(store, clock, 19)
            assert await beat(store, held)
        await pass_time(store, clock, 5)
        assert not await beat(store, held)
        assert (await get(store, "a")).state == state
    found = await get(store, "a")
    assert found.error is not None
    assert (found.reason, found.error.code) == ("timed out", "timed-out")
    assert [run.state.value for run in await runs(store, "a")] == ["timed_out"] * 2


async def test_a_lease_never_outlasts_the_time_limit(store: Store) -> None:
    await submit(store, task("a", timeout_s=10.0))
    claimed = await claim(store)
    assert claimed.tasks[0][1].expires_at == moment(BEGIN + 10)


async def test_the_length_of_a_lease_may_be_asked_for(store: Store) -> None:
    await submit(store, task("a"))
    claimed = await claim(store, lease_s=5.0)
    found, lease = claimed.tasks[0]
    assert lease.expires_at == moment(BEGIN + 5)
    ref = Ref(Address(found.task_id), lease.token, "w1")
    (renewed,) = await store.renew([Beat(ref, lease_s=600.0)], ALICE)
    assert renewed.expires_at == BEGIN + 600


async def test_of_several_renewals_each_is_told_how_it_stands(store: Store) -> None:
    await submit(store, task("a"), task("b"))
    first, second = await take(store), await take(store)
    await finish(store, first)
    renewed = await store.renew([Beat(first.ref), Beat(second.ref)], ALICE)
    assert [(one.held, one.state.value) for one in renewed] == [(False, "done"), (True, "running")]


# Retries


async def test_a_failed_attempt_is_tried_again_after_a_growing_delay(
    store: Store, clock: HandClock
) -> None:
    retry = {"max_attempts": 4, "backoff_s": 10.0, "factor": 3.0, "max_backoff_s": 50.0}
    await submit(store, task("a", retry=retry))
    waits: list[float] = []
    for attempt in (1, 2, 3):
        held = await take(store)
        assert held.ref.token == attempt
        settled = await fail(store, held, f"try {attempt}", retryable=True)
        assert (settled.task.state, settled.task.reason) == (
            "blocked",
            f"attempt {attempt} of 4 failed",
        )
        due = (await claim(store)).due_at
        assert due is not None
        waits.append(due - clock.now())
        clock.advance(waits[-1] - 0.001)
        assert (await claim(store)).verdict == "blocked"
        clock.advance(0.001)
    assert waits == pytest.approx([10.0, 30.0, 50.0])
    settled = await fail(store, await take(store), "try 4", retryable=True)
    assert (settled.task.state, settled.task.attempt) == ("failed", 4)
    errors_told = [run.error and run.error.message for run in await runs(store, "a")]
    assert errors_told == ["try 1", "try 2", "try 3", "try 4"]


async def test_a_failure_that_is_not_worth_a_retry_is_final(store: Store) -> None:
    await submit(store, task("a", retry={"max_attempts": 5}))
    assert (await fail(store, await take(store), retryable=False)).task.state == "failed"


async def test_a_task_that_succeeds_at_last_has_no_error(store: Store) -> None:
    await submit(store, task("a", retry={"max_attempts": 2, "backoff_s": 0.0}))
    await fail(store, await take(store), retryable=True)
    assert (await get(store, "a")).error is not None
    settled = await finish(store, await take(store), 7)
    assert (settled.task.result, settled.task.error) == (7, None)


async def test_a_task_given_back_may_be_given_back_for_later(
    store: Store, clock: HandClock
) -> None:
    await submit(store, task("a"))
    held = await take(store)
    settled = await store.settle(held.ref, Released("no room", delay_s=20.0), ALICE)
    assert (settled.task.state, settled.task.reason) == ("blocked", "no room")
    await pass_time(store, clock, 20)
    found = await get(store, "a")
    assert (found.state, found.attempt) == ("ready", 1)
    assert await told_of(store, found.task_id) == [
        "task.submitted",
        "task.claimed",
        "task.released",
        "task.ready",
    ]


# After an outage


async def test_after_an_outage_running_leases_get_two_of_their_lengths(
    engine: SqliteEngine, clock: HandClock
) -> None:
    before = engine.store("kept.sqlite")
    async with before.opened():
        await submit(before, task("a", lease_s=10.0), task("b", timeout_s=40.0))
        short, limited = await take(before), await take(before)
        await submit(before, task("c"))
    clock.advance(3600)
    after = engine.store("kept.sqlite")
    async with after.opened():
        swept = await pass_time(after, clock, 20 - 0.001)
        assert sum(pass_.requeued for pass_ in swept) == 0
        assert await beat(after, short)
        await pass_time(after, clock, 40)
        assert (await states(after)) == {"a": "ready", "b": "running", "c": "ready"}
        # Its time limit, too, waited for it.
        assert (await finish(after, limited)).verdict == "accepted"
        assert (await after.check()).problems == ()


async def test_a_sweep_that_comes_late_gives_grace_instead_of_ending_leases(
    store: Store, clock: HandClock
) -> None:
    await submit(store, task("a"))
    held = await take(store)
    clock.advance(1000)
    swept = await store.sweep(KEEP_ALL)
    assert (swept.grace_s, swept.requeued) == (1000, 0)
    assert await beat(store, held)
    # Grace is given once: from here on time counts again.
    swept = (await pass_time(store, clock, 2 * LEASE_S + 1))[-1]
    assert (await states(store)) == {"a": "ready"}


async def test_a_wall_clock_set_forward_ends_no_lease(store: Store, clock: HandClock) -> None:
    await submit(store, task("a"))
    held = await take(store)
    clock.jump(3600)
    swept = await store.sweep(KEEP_ALL)
    assert (swept.requeued, swept.grace_s) == (0, 3600)
    assert await beat(store, held)


async def test_time_never_runs_backwards_over_a_restart(
    engine: SqliteEngine, clock: HandClock
) -> None:
    first = engine.store("kept.sqlite")
    async with first.opened():
        clock.advance(100)
        await submit(first, task("a"))
    clock.at -= 3600
    again = engine.store("kept.sqlite")
    async with again.opened():
        assert await again.now() == BEGIN + 100
        await run_next(again)
        times = [event.at for event in await told(again)]
        assert times == sorted(times)


# Workers' own signs of life


async def test_a_silent_worker_is_lost_once_and_back_when_it_speaks(
    store: Store, clock: HandClock
) -> None:
    await submit(store, task("a"), task("b"))
    await store.enlist(WorkerCard("w1"), 60, ALICE)
    swept = await pass_time(store, clock, 60)
    assert sum(pass_.workers_lost for pass_ in swept) == 1
    row = await store.query(WorkerByName("w1"), ALICE)
    assert row is not None
    assert row.lost
    held = await take(store, "w1")
    # A claim, like a renewal, is a sign of life that lasts as long as the worker promised.
    await pass_time(store, clock, 20)
    await beat(store, held)
    await pass_time(store, clock, 20)
    row = await store.query(WorkerByName("w1"), ALICE)
    assert row is not None
    assert (row.lost, row.seen_until) == (False, BEGIN + 60 + 20 + 60)
    assert len(await told(store, "worker.lost")) == 1


async def test_a_retried_task_starts_with_a_clean_slate_and_a_higher_token(
    store: Store, clock: HandClock
) -> None:
    await submit(store, task("a", max_expiries=1))
    for _ in range(2):
        await take(store)
        await pass_time(store, clock, LEASE_S)
    assert await states(store) == {"a": "failed"}
    await store.amend(Address("a"), RetryTasks(), ALICE)
    held = await take(store)
    assert held.ref.token == 3
    await pass_time(store, clock, LEASE_S)
    assert await states(store) == {"a": "ready"}


async def test_a_claimant_gets_only_what_it_may_see(store: Store) -> None:
    bob, eve = own_only("bob"), own_only("eve")
    await submit(store, task("a"), by=bob)
    assert (await claim(store, by=eve)).verdict == "all_done"
    assert (await take(store, by=bob)).key == "a"
    assert (await claim(store, by=eve)).verdict == "all_done"
