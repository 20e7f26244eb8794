"""Submitting graphs: names, idempotency, cycles, all or nothing."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import anyio
import pytest

from microvm_orchestrator import errors
from microvm_orchestrator.model.task import Edge, GroupedSpec
from microvm_orchestrator.store.base import (
    Address,
    Graph,
    Idempotency,
    NewTask,
    UpdateTask,
    Verdict,
)
from storing import (
    ALICE,
    LEASE_S,
    HandClock,
    actor,
    claim,
    fail_next,
    finish,
    gate,
    get,
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
    from microvm_orchestrator.store.base import Store


async def test_a_submitted_task_is_there_with_all_that_was_asked_for(store: Store) -> None:
    spec = GroupedSpec.model_validate(
        {
            "key": "build",
            "title": "Build it",
            "description": "with care",
            "input": {"flags": ["-O2", None, 1.5, True]},
            "group": "release",
            "priority": "high",
            "labels": {"team": "core"},
            "capabilities": ["kvm", "arch:x86_64"],
            "role": "builder",
            "timeout_s": 60.0,
            "retry": {"max_attempts": 3, "backoff_s": 2.0},
            "on_unmet": "cancel",
            "on_expiry": "fail",
            "max_expiries": 1,
        }
    )
    submitted = await store.submit(Graph((NewTask(spec, LEASE_S, template="t1"),)), ALICE)
    (made,) = submitted.tasks
    found = await get(store, made.task_id)
    assert found == await get(store, "build", "release")
    assert (made.state, made.key, made.group) == ("ready", "build", "release")
    assert (found.title, found.description, found.input) == (
        spec.title,
        spec.description,
        spec.input,
    )
    assert (found.priority, found.labels, found.role) == (100, spec.labels, "builder")
    assert found.capabilities == ["kvm", "arch:x86_64"]
    assert (found.timeout_s, found.lease_s, found.retry) == (60.0, LEASE_S, spec.retry)
    assert (found.on_unmet, found.on_expiry, found.max_expiries) == ("cancel", "fail", 1)
    assert (found.owner, found.template, found.worker, found.attempt) == ("alice", "t1", None, 0)
    assert found.created_at == found.ready_at
    assert found.version == 1


async def test_a_graph_may_name_its_tasks_in_any_order(store: Store) -> None:
    await submit(store, task("c", "b", "a"), task("b", "a"), task("a"))
    assert await states(store) == {"c": "blocked", "b": "blocked", "a": "ready"}
    assert [await run_next(store) for _ in range(3)] == ["a", "b", "c"]


async def test_ten_thousand_tasks_go_in_at_once(store: Store) -> None:
    tasks = [task("t0"), *(task(f"t{i}", f"t{(i - 1) // 3}") for i in range(1, 10_000))]
    submitted = await submit(store, *tasks)
    assert len({made.task_id for made in submitted.tasks}) == 10_000
    assert (await finish(store, await take(store))).unlocked[0].key == "t1"


@pytest.mark.parametrize(
    ("broken", "error"),
    [
        (task("x", "nowhere"), errors.NotFound),
        (task("old"), errors.AlreadyExists),
        (task("x", "x"), errors.CycleFound),
        (task("x", gate("all", "old", "old")), errors.InvalidInput),
        (task("t_01k2qv0000000000000000abcd"), errors.InvalidInput),
    ],
)
async def test_of_a_graph_with_one_bad_task_nothing_is_written(
    store: Store, broken: NewTask, error: type[errors.OrchestratorError]
) -> None:
    await submit(store, task("old"))
    before = await told(store)
    with pytest.raises(error):
        await submit(store, task("good"), broken)
    assert await states(store) == {"old": "ready"}
    assert await told(store) == before


async def test_a_key_names_one_task_within_its_group_only(store: Store) -> None:
    await submit(store, task("a", group="one"), task("a", group="two"))
    with pytest.raises(errors.AlreadyExists, match="task a already exists in group one"):
        await submit(store, task("a", group="one"))
    one, two = await get(store, "a", "one"), await get(store, "a", "two")
    assert one.task_id != two.task_id


async def test_a_task_may_depend_on_one_of_another_group_by_its_id(store: Store) -> None:
    upstream = (await submit(store, task("a", group="one"))).tasks[0]
    with pytest.raises(errors.NotFound, match="dependency a of task b not found"):
        await submit(store, task("b", "a", group="two"))
    await submit(store, task("b", upstream.task_id, group="two"))
    assert (await get(store, "b", "two")).waiting_for == [upstream.task_id]
    assert await run_next(store) == "a"
    assert (await get(store, "b", "two")).state == "ready"


async def test_a_dependency_named_twice_counts_once(store: Store) -> None:
    await submit(store, task("a"), task("b", "a", "a", Edge(task="a")))
    assert len((await get(store, "b")).depends_on) == 1
    assert await run_next(store) == "a"
    assert (await get(store, "b")).state == "ready"


async def test_a_task_submitted_after_its_dependency_ended_is_in_the_same_place_as_one_before(
    store: Store,
) -> None:
    await submit(store, task("good"), task("bad", priority="low"))
    assert await run_next(store) == "good"
    assert await fail_next(store) == "bad"
    submitted = await submit(
        store,
        task("after-good", "good"),
        task("after-bad", "bad"),
        task("cancelled", "bad", on_unmet="cancel"),
        task("failed", "bad", on_unmet="fail"),
        task("handler", Edge.model_validate({"task": "bad", "on": "failure"})),
    )
    assert {made.key: made.state.value for made in submitted.tasks} == {
        "after-good": "ready",
        "after-bad": "blocked",
        "cancelled": "cancelled",
        "failed": "failed",
        "handler": "ready",
    }
    assert (await get(store, "after-bad")).reason is not None


@pytest.mark.parametrize("upstream_first", [True, False])
async def test_what_is_given_up_on_submission_takes_along_what_waits_for_it_in_the_same_graph(
    store: Store, upstream_first: bool
) -> None:
    await submit(store, task("bad"))
    await fail_next(store)
    pair = [task("one", "bad", on_unmet="cancel"), task("two", "one", on_unmet="cancel")]
    submitted = await submit(store, *(pair if upstream_first else pair[::-1]))
    assert [made.state for made in submitted.tasks] == ["cancelled", "cancelled"]


# Cycles


async def test_a_cycle_within_a_graph_is_refused_and_named(store: Store) -> None:
    with pytest.raises(errors.CycleFound) as refused:
        await submit(store, task("a", "c"), task("b", "a"), task("c", "b"), task("d", "c"))
    ring = refused.value.message.removeprefix("dependencies would create a cycle: ").split(" -> ")
    assert ring[0] == ring[-1]
    assert set(ring) == {"a", "b", "c"}
    # Each waits for the one named after it.
    assert dict(itertools.pairwise(ring)) == {"a": "c", "b": "a", "c": "b"}


async def test_a_task_cannot_wait_for_itself(store: Store) -> None:
    with pytest.raises(errors.CycleFound, match="a -> a"):
        await submit(store, task("a", gate("any", "a", "b")), task("b"))


async def test_an_update_that_closes_a_ring_is_refused_and_the_ring_named(store: Store) -> None:
    await submit(store, task("a"), task("b", "a"), task("c", "b"))
    spec = GroupedSpec(depends_on=["c"])
    change = UpdateTask(spec, frozenset({"depends_on"}))
    with pytest.raises(errors.CycleFound, match=r"cycle: a -> c -> b -> a$"):
        await store.amend(Address("a"), change, ALICE)
    assert (await get(store, "a")).depends_on == []
    assert await states(store) == {"a": "ready", "b": "blocked", "c": "blocked"}


async def test_a_long_ring_is_named_by_its_ends(store: Store) -> None:
    tasks = [task(f"k{i}", f"k{(i + 1) % 50}") for i in range(50)]
    with pytest.raises(errors.CycleFound) as refused:
        await submit(store, *tasks)
    assert "…" in refused.value.message
    assert len(refused.value.message) < 200


async def test_a_new_task_put_before_one_it_waits_for_is_refused(store: Store) -> None:
    await submit(store, task("a"), task("b", "a"))
    with pytest.raises(errors.CycleFound, match=r"cycle: n -> b -> a -> n$"):
        await submit(store, task("n", "b", before=["a"]))
    assert await states(store) == {"a": "ready", "b": "blocked"}


async def test_a_child_that_waits_for_whoever_waits_for_its_parent_is_refused(
    store: Store,
) -> None:
    await submit(store, task("p"), task("d", "p"))
    held = await take(store)
    with pytest.raises(errors.CycleFound, match=r"cycle: c -> d -> c$"):
        await submit(store, task("c", "d", child=True), under=held.ref)
    assert (await finish(store, held)).unlocked[0].key == "d"


# Idempotency


async def test_the_same_request_again_gets_the_same_answer_and_writes_nothing(
    store: Store,
) -> None:
    request = Idempotency("once", "digest")
    first = await submit(store, task("a"), task("b", "a"), idempotency=request)
    await run_next(store)
    events = await told(store)
    again = await submit(store, task("a"), task("b", "a"), idempotency=request)
    assert (first.replayed, again.replayed) == (False, True)
    assert again.tasks == first.tasks
    assert await told(store) == events


async def test_an_idempotency_key_with_another_request_is_refused(store: Store) -> None:
    await submit(store, task("a"), idempotency=Idempotency("once", "digest"))
    with pytest.raises(errors.KeyReused):
        await submit(store, task("b"), idempotency=Idempotency("once", "other"))
    assert await states(store) == {"a": "ready"}


async def test_an_idempotency_key_belongs_to_who_used_it(store: Store) -> None:
    request = Idempotency("once", "digest")
    await submit(store, task(), idempotency=request)
    second = await submit(store, task(), idempotency=request, by=actor("bob"))
    assert not second.replayed
    assert len(await states(store)) == 2


async def test_a_refused_request_may_come_again_under_its_key(store: Store) -> None:
    request = Idempotency("once", "digest")
    with pytest.raises(errors.NotFound):
        await submit(store, task("b", "a"), idempotency=request)
    await submit(store, task("a"))
    assert not (await submit(store, task("b", "a"), idempotency=request)).replayed


async def test_a_request_is_recognised_for_a_week(store: Store, clock: HandClock) -> None:
    request = Idempotency("once", "digest")
    await submit(store, task(), idempotency=request)
    clock.advance(6 * 86_400)
    assert (await submit(store, task(), idempotency=request)).replayed
    clock.advance(2 * 86_400)
    await pass_time(store, clock, 1)
    assert not (await submit(store, task(), idempotency=request)).replayed


# Races


async def test_of_many_equal_requests_at_once_one_writes_and_all_get_its_answer(
    store: Store,
) -> None:
    answers: list[tuple[bool, str]] = []

    async def ask() -> None:
        got = await submit(store, task("a"), idempotency=Idempotency("once", "digest"))
        answers.append((got.replayed, got.tasks[0].task_id))

    async with anyio.create_task_group() as tasks:
        for _ in range(50):
            tasks.start_soon(ask)
    assert len({task_id for _, task_id in answers}) == 1
    assert [replayed for replayed, _ in answers].count(False) == 1


async def test_a_task_submitted_while_its_dependency_completes_is_never_left_waiting(
    store: Store,
) -> None:
    """With one snapshot for the whole verb, 15 of 1,500 racing pairs were left behind."""
    pairs = 150
    await submit(store, *(task(f"up{i}") for i in range(pairs)))
    held = [await take(store) for _ in range(pairs)]

    async def end(index: int) -> None:
        await finish(store, held[index])

    async def begin(index: int) -> None:
        await submit(store, task(f"low{index}", f"up{index}"))

    async with anyio.create_task_group() as tasks:
        for index in range(pairs):
            first, second = (end, begin) if index % 2 else (begin, end)
            tasks.start_soon(first, index)
            tasks.start_soon(second, index)
    found = await states(store)
    assert {found[f"low{index}"] for index in range(pairs)} == {"ready"}


async def test_every_change_is_told_by_an_event_of_its_own(store: Store) -> None:
    await submit(store, task("a"), task("b", "a"))
    held = await take(store)
    await finish(store, held)
    a, b = await get(store, "a"), await get(store, "b")
    assert await told_of(store, a.task_id) == ["task.submitted", "task.claimed", "task.done"]
    assert await told_of(store, b.task_id) == ["task.submitted", "task.ready"]


async def test_an_empty_store_has_nothing_to_claim_and_is_all_done(store: Store) -> None:
    assert (await claim(store)).verdict is Verdict.ALL_DONE
