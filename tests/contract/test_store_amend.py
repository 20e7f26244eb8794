"""Changes from outside: cancel, retry, reprioritise, rewire, delete."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from microvm_orchestrator import errors
from microvm_orchestrator.model.task import Edge, GroupedSpec, Task
from microvm_orchestrator.model.values import moment
from microvm_orchestrator.store.base import (
    Address,
    CancelTasks,
    DeleteTask,
    InGroup,
    RetryTasks,
    SetPriority,
    UpdateTask,
)
from microvm_orchestrator.store.questions import RunList, TaskList
from storing import (
    ALICE,
    BEGIN,
    LEASE_S,
    HandClock,
    claim,
    fail,
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


async def cancel(store: Store, ref: str, *, cascade: bool = False) -> tuple[str, ...]:
    return (await store.amend(Address(ref), CancelTasks(cascade=cascade), ALICE)).task_ids


async def retry(store: Store, ref: str, *, upstream: bool = False) -> set[str | None]:
    """The keys of all that came back."""
    amended = await store.amend(Address(ref), RetryTasks(upstream=upstream), ALICE)
    return {(await get(store, task_id)).key for task_id in amended.task_ids}


async def update(store: Store, ref: str, **changes: Any) -> Task:
    spec = GroupedSpec.model_validate(changes)
    change = UpdateTask(spec, frozenset(changes), lease_s=spec.lease_s)
    await store.amend(Address(ref), change, ALICE)
    return await get(store, ref)


# Cancel


async def test_a_cancelled_task_is_finished_whatever_it_did(store: Store) -> None:
    await submit(store, task("running"), task("ready"), task("blocked", "ready"))
    held = await take(store)
    for key in ("blocked", "ready", "running"):
        await cancel(store, key)
        with pytest.raises(errors.StateForbids):
            await cancel(store, key)
    assert set((await states(store)).values()) == {"cancelled"}
    runs = await store.query(RunList(held.task.task_id), ALICE)
    assert [run.state.value for run in runs.items] == ["cancelled"]
    assert len(await told(store, "task.cancelled")) == 3


async def test_what_waits_for_a_cancelled_task_does_as_it_was_told(store: Store) -> None:
    await submit(
        store,
        task("a"),
        task("waits", "a"),
        task("goes", "a", on_unmet="cancel"),
        task("cleans", Edge.model_validate({"task": "a", "on": "finish"})),
    )
    await cancel(store, "a")
    assert await states(store) == {
        "a": "cancelled",
        "waits": "blocked",
        "goes": "cancelled",
        "cleans": "ready",
    }


async def test_a_cascade_cancels_all_that_depends_on_a_task_and_opens_none_of_it(
    store: Store,
) -> None:
    await submit(
        store,
        task("a"),
        task("b", "a", on_unmet="fail"),
        task("c", Edge.model_validate({"task": "b", "on": "finish"})),
        task("d", gate("any", "c", "other")),
        task("other"),
    )
    cancelled = await cancel(store, "a", cascade=True)
    assert len(cancelled) == 4
    assert await states(store) == dict.fromkeys("abcd", "cancelled") | {"other": "ready"}
    assert await told(store, "task.ready", "task.failed") == []


async def test_a_group_is_cancelled_as_a_whole_or_by_label(store: Store) -> None:
    await submit(
        store,
        task("a", group="g", labels={"kind": "x"}),
        task("b", "a", group="g", labels={"kind": "y"}),
        task("c", group="g", labels={"kind": "x", "more": "1"}),
        task("d"),
    )
    some = InGroup("g", (("kind", "x"), ("more", "1")))
    assert len((await store.amend(some, CancelTasks(), ALICE)).task_ids) == 1
    assert await states(store, "g") == {"a": "ready", "b": "blocked", "c": "cancelled"}
    for count in (2, 0):
        assert len((await store.amend(InGroup("g"), CancelTasks(), ALICE)).task_ids) == count
    assert await states(store) == {"d": "ready"}
    with pytest.raises(errors.NotFound, match="no group nowhere"):
        await store.amend(InGroup("nowhere"), CancelTasks(), ALICE)


# Retry


async def test_a_retry_brings_back_what_was_given_up_because_of_it(store: Store) -> None:
    await submit(
        store,
        task("a"),
        task("stuck", "a"),
        task("cancelled", "a", on_unmet="cancel"),
        task("failed", "cancelled", on_unmet="fail"),
        task("by-hand", "a"),
    )
    await cancel(store, "by-hand")
    await fail_next(store)
    assert await retry(store, "a") == {"a", "cancelled", "failed"}
    assert await states(store) == {
        "a": "ready",
        "stuck": "blocked",
        "cancelled": "blocked",
        "failed": "blocked",
        "by-hand": "cancelled",
    }
    assert (await get(store, "stuck")).reason is None
    for _ in range(4):
        await run_next(store)
    # Now that its dependency is done, nothing is in the way of that one either.
    assert await retry(store, "by-hand") == {"by-hand"}
    assert await run_next(store) == "by-hand"


async def test_a_task_is_not_brought_back_while_another_dependency_cannot_be_met(
    store: Store,
) -> None:
    await submit(
        store,
        task("a"),
        task("b"),
        task("x", "a", "b", on_unmet="cancel"),
        task("y", gate("all", "a"), gate("all", "b")),
    )
    await fail_next(store)
    await fail_next(store)
    assert await retry(store, "a") == {"a"}
    b = await get(store, "b")
    assert (await get(store, "y")).reason == f"dependency unmet: {b.task_id} failed"
    assert await retry(store, "b") == {"b", "x"}
    assert (await get(store, "y")).reason is None


async def test_a_task_cannot_be_retried_before_what_it_depends_on(store: Store) -> None:
    await submit(store, task("a"), task("b", "a", on_unmet="cancel"))
    await fail_next(store)
    with pytest.raises(errors.StateForbids):
        await retry(store, "b")
    assert await retry(store, "b", upstream=True) == {"a", "b"}
    assert await states(store) == {"a": "ready", "b": "blocked"}


async def test_a_stuck_task_is_freed_by_retrying_what_is_upstream(store: Store) -> None:
    await submit(store, task("a"), task("b", "a"), task("c", "b"))
    await fail_next(store)
    assert await retry(store, "c", upstream=True) == {"a"}
    assert [await run_next(store) for _ in range(3)] == ["a", "b", "c"]


async def test_only_what_failed_or_was_cancelled_can_be_retried(store: Store) -> None:
    await submit(store, task("a"), task("b", "a"))
    for key in ("a", "b"):
        with pytest.raises(errors.StateForbids):
            await retry(store, key)
    held = await take(store)
    with pytest.raises(errors.StateForbids):
        await retry(store, "a")
    await finish(store, held)
    with pytest.raises(errors.StateForbids):
        await retry(store, "a", upstream=True)


@pytest.mark.parametrize("order", ["forward", "backward"])
async def test_a_cancelled_group_is_retried_as_a_whole(store: Store, order: str) -> None:
    tasks = [task("a"), task("b", "a"), task("c", "b"), task("d", "a", "c")]
    await submit(store, *(tasks if order == "forward" else tasks[::-1]))
    await store.amend(InGroup("default"), CancelTasks(), ALICE)
    amended = await store.amend(InGroup("default"), RetryTasks(), ALICE)
    assert len(amended.task_ids) == 4
    assert [await run_next(store) for _ in range(4)] == ["a", "b", "c", "d"]
    assert (await store.amend(InGroup("default"), RetryTasks(), ALICE)).task_ids == ()


async def test_what_depends_on_a_retried_task_waits_for_it_again_unless_it_has_begun(
    store: Store,
) -> None:
    finish_edge = Edge.model_validate({"task": "a", "on": "finish"})
    await submit(
        store,
        task("a", priority=9),
        task("done", finish_edge, priority=8),
        task("runs", finish_edge, priority=7),
        task("ready", finish_edge),
    )
    await fail_next(store)
    await run_next(store)
    running = await take(store)
    await retry(store, "a")
    assert await states(store) == {
        "a": "ready",
        "done": "done",
        "runs": "running",
        "ready": "blocked",
    }
    await fail(store, running)
    await run_next(store)
    assert (await states(store))["ready"] == "ready"
    await retry(store, "runs")
    assert (await states(store))["runs"] == "ready"


async def test_a_failed_task_waits_for_a_dependency_that_is_retried_before_it(
    store: Store,
) -> None:
    await submit(store, task("a"), task("b", Edge.model_validate({"task": "a", "on": "finish"})))
    await fail_next(store)
    await fail_next(store)
    await retry(store, "a")
    await retry(store, "b")
    assert await states(store) == {"a": "ready", "b": "blocked"}
    assert await run_next(store) == "a"
    assert await run_next(store) == "b"


async def test_a_retry_in_the_middle_of_a_diamond_opens_its_end_once(store: Store) -> None:
    await submit(store, task("top"), task("l", "top"), task("r", "top"), task("end", "l", "r"))
    await run_next(store)
    await fail_next(store)
    await run_next(store)
    assert await retry(store, "end", upstream=True) == {"l"}
    assert await run_next(store) == "l"
    assert await run_next(store) == "end"


# Priority


async def test_a_priority_can_be_changed_until_the_end(store: Store) -> None:
    await submit(store, task("a"), task("b"), task("c"))
    for _ in range(2):
        await store.amend(Address("c"), SetPriority(5), ALICE)
    assert await run_next(store) == "c"
    with pytest.raises(errors.StateForbids):
        await store.amend(Address("c"), SetPriority(6), ALICE)
    amended = await store.amend(InGroup("default"), SetPriority(7), ALICE)
    assert len(amended.task_ids) == 2
    assert (await get(store, "a")).priority == 7


# Update


async def test_an_update_changes_what_it_names_and_nothing_else(store: Store) -> None:
    await submit(
        store,
        task(
            "a",
            title="old",
            description="old",
            input=1,
            labels={"l": "old"},
            capabilities=["old"],
            role="old",
            priority=3,
            timeout_s=10.0,
            retry={"max_attempts": 2},
            on_unmet="cancel",
            on_expiry="fail",
            max_expiries=7,
        ),
    )
    before = dict(await get(store, "a"))
    changes: dict[str, Any] = {
        "title": "new",
        "description": "new",
        "input": {"n": 2},
        "labels": {"l": "new"},
        "capabilities": ["new"],
        "role": "new",
        "priority": 4,
        "timeout_s": 20.0,
        "retry": {"max_attempts": 3},
        "on_unmet": "wait",
        "on_expiry": "requeue",
        "max_expiries": 8,
        "lease_s": 77.0,
    }
    for name, value in changes.items():
        after = dict(await update(store, "a", **{name: value}))
        changed = {field for field in after if after[field] != before[field]}
        assert changed == {name, "version"}, name
        before = after
    found = await store.query(TaskList(labels=(("l", "new"),)), ALICE)
    assert [item.key for item in found.items] == ["a"]
    assert (await store.query(TaskList(labels=(("l", "old"),)), ALICE)).items == []
    new = frozenset({"new"})
    assert (await take(store, capabilities=new, roles=new)).key == "a"


async def test_rewiring_moves_the_task_as_its_new_dependencies_say(store: Store) -> None:
    await submit(store, task("a"), task("b"), task("x", "b"))
    assert await run_next(store) == "a"
    x = await update(store, "x", depends_on=["a"])
    assert (x.state, [entry.model_dump() for entry in x.depends_on]) == (
        "ready",
        [gate("all", Edge(task=(await get(store, "a")).task_id)).model_dump()],
    )
    assert (await update(store, "x", depends_on=["b"])).state == "blocked"
    assert (await update(store, "x", depends_on=[gate("any", "a", "b")])).state == "ready"
    assert (await update(store, "x", depends_on=["a", "b"])).state == "blocked"
    assert (await update(store, "x", depends_on=[])).state == "ready"
    assert await told_of(store, x.task_id) == [
        "task.submitted",
        *["task.updated", "task.ready", "task.updated", "task.blocked"] * 2,
        *["task.updated", "task.ready"],
    ]


async def test_a_stuck_task_is_freed_by_rewiring_it(store: Store) -> None:
    await submit(store, task("bad"), task("x", "bad"), task("y", "x", on_unmet="cancel"))
    await fail_next(store)
    x = await update(store, "x", depends_on=[])
    assert (x.state, x.reason) == ("ready", None)
    # And one that is tied to a failed task is given up, with what waits for it.
    x = await update(store, "x", depends_on=["bad"], on_unmet="cancel")
    assert await states(store) == {"bad": "failed", "x": "cancelled", "y": "cancelled"}


async def test_a_stuck_task_can_be_told_to_give_up(store: Store) -> None:
    await submit(store, task("bad"), task("x", "bad"))
    await fail_next(store)
    assert (await update(store, "x", title="renamed")).state == "blocked"
    assert (await update(store, "x", on_unmet="fail")).state == "failed"


async def test_a_time_can_be_set_moved_and_lifted(store: Store, clock: HandClock) -> None:
    await submit(store, task("a"))
    assert (await update(store, "a", not_before=moment(BEGIN + 50))).state == "blocked"
    assert (await update(store, "a", not_before=moment(BEGIN + 20))).state == "blocked"
    await pass_time(store, clock, 20)
    assert await states(store) == {"a": "ready"}
    assert (await update(store, "a", not_before=moment(BEGIN + 50))).state == "blocked"
    assert (await update(store, "a", not_before=None)).state == "ready"


async def test_only_an_unclaimed_task_can_be_updated(store: Store) -> None:
    await submit(store, task("a"))
    held = await take(store)
    with pytest.raises(errors.StateForbids):
        await update(store, "a", title="late")
    await finish(store, held)
    with pytest.raises(errors.StateForbids):
        await update(store, "a", title="late")


async def test_an_update_of_a_version_that_is_gone_is_refused(store: Store) -> None:
    await submit(store, task("a"))
    read = await get(store, "a")
    await update(store, "a", title="first")
    spec = GroupedSpec(title="second")
    change = UpdateTask(spec, frozenset({"title"}), expect_version=read.version)
    with pytest.raises(errors.VersionMoved):
        await store.amend(Address("a"), change, ALICE)
    assert (await get(store, "a")).title == "first"


async def test_an_update_is_of_one_task(store: Store) -> None:
    await submit(store, task("a"))
    for change in (UpdateTask(GroupedSpec(), frozenset()), DeleteTask()):
        with pytest.raises(errors.InvalidInput):
            await store.amend(InGroup("default"), change, ALICE)


async def test_a_dependency_that_does_not_exist_leaves_the_task_as_it_was(store: Store) -> None:
    await submit(store, task("a"), task("b", "a"))
    before = await get(store, "b")
    with pytest.raises(errors.NotFound):
        await update(store, "b", depends_on=["nowhere"])
    assert await get(store, "b") == before


# Delete


async def test_a_deleted_task_is_gone_and_its_events_stay(store: Store) -> None:
    await submit(store, task("a", labels={"l": "1"}))
    await fail_next(store)
    task_id = (await get(store, "a")).task_id
    await store.amend(Address("a"), DeleteTask(), ALICE)
    for _ in range(2):
        with pytest.raises(errors.NotFound):
            await store.amend(Address("a"), DeleteTask(), ALICE)
    assert await told_of(store, task_id) == [
        "task.submitted",
        "task.claimed",
        "task.failed",
        "task.deleted",
    ]
    await submit(store, task("a"))
    assert (await get(store, "a")).task_id != task_id


async def test_a_task_others_depend_on_is_deleted_with_them_or_not_at_all(store: Store) -> None:
    await submit(
        store, task("a"), task("b", "a"), task("c", "b", "a"), task("d"), task("e", "d", "c")
    )
    with pytest.raises(errors.HasDependents, match=r"task a as it has dependent tasks: b, c"):
        await store.amend(Address("a"), DeleteTask(), ALICE)
    amended = await store.amend(Address("a"), DeleteTask(cascade=True), ALICE)
    assert len(amended.task_ids) == 4
    assert await states(store) == {"d": "ready"}
    await run_next(store)
    await store.amend(Address("d"), DeleteTask(), ALICE)


async def test_many_dependents_are_not_all_named(store: Store) -> None:
    await submit(store, task("a"), *(task(f"d{i:03}", "a") for i in range(100)))
    with pytest.raises(errors.HasDependents, match=r"d019, 80 more$"):
        await store.amend(Address("a"), DeleteTask(), ALICE)


async def test_nothing_that_runs_is_deleted(store: Store, clock: HandClock) -> None:
    finish_edge = Edge.model_validate({"task": "a", "on": "finish"})
    await submit(store, task("a"), task("b", finish_edge))
    await run_next(store)
    await take(store)
    for ref, cascade in (("b", False), ("a", True)):
        with pytest.raises(errors.StateForbids):
            await store.amend(Address(ref), DeleteTask(cascade=cascade), ALICE)
    assert await states(store) == {"a": "done", "b": "running"}
    await pass_time(store, clock, LEASE_S)
    await store.amend(Address("a"), DeleteTask(cascade=True), ALICE)
    assert (await claim(store)).verdict == "all_done"


async def test_deleting_a_parent_leaves_its_children(store: Store) -> None:
    await submit(store, task("p"))
    parent = await take(store)
    await submit(store, task("c", child=True), under=parent.ref)
    await finish(store, parent)
    await store.amend(Address("p"), DeleteTask(), ALICE)
    assert (await get(store, "c")).parent_id is None
    assert await run_next(store) == "c"
