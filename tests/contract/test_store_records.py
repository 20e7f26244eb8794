"""Records, workers, lists, the audit log, and who sees what."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from microvm_orchestrator import errors
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.records import Actor, Record
from microvm_orchestrator.model.task import TaskState
from microvm_orchestrator.store.base import (
    Address,
    CancelTasks,
    DeleteTask,
    InGroup,
    Match,
    Tell,
    WorkerCard,
)
from microvm_orchestrator.store.questions import (
    AuditList,
    FullTaskList,
    GroupList,
    OneGroup,
    Page,
    Query,
    RecordById,
    RecordList,
    RunList,
    TaskList,
    WorkerByName,
    WorkerList,
)
from storing import (
    ALICE,
    HandClock,
    actor,
    claim,
    fail,
    fail_next,
    finish,
    get,
    own_only,
    run_next,
    states,
    submit,
    take,
    task,
    told,
)

if TYPE_CHECKING:
    from microvm_orchestrator.store.base import Store


T = TypeVar("T")


async def every(store: Store, question: Query[Page[T]], by: Actor = ALICE) -> list[T]:
    """All items of a list that is asked for page by page."""
    items: list[T] = []
    ask: Any = question
    while True:
        page: Page[T] = await store.query(ask, by)
        items += page.items
        if page.cursor is None:
            return items
        assert page.items
        ask = replace(ask, cursor=page.cursor)


# Records


async def test_a_record_is_written_read_and_erased(store: Store, clock: HandClock) -> None:
    first = await store.save(Record("template", "t", {"n": 1}), ALICE)
    clock.advance(5)
    second = await store.save(Record("template", "t", {"n": 2}), ALICE)
    assert (first.version, second.version) == (1, 2)
    assert (second.created_at, second.updated_at) == (first.created_at, first.created_at + 5)
    assert await store.query(RecordById("template", "t"), ALICE) == second
    assert await store.query(RecordById("other", "t"), ALICE) is None
    assert [await store.erase("template", "t", ALICE) for _ in range(2)] == [True, False]
    assert await store.query(RecordById("template", "t"), ALICE) is None
    kinds = [event.kind for event in await told(store, "template.*")]
    assert kinds == ["template.created", "template.updated", "template.deleted"]


async def test_a_record_is_only_overwritten_in_the_version_that_was_expected(
    store: Store,
) -> None:
    record = Record("template", "t", {})
    assert (await store.save(record, ALICE, expect=0)).version == 1
    with pytest.raises(errors.AlreadyExists):
        await store.save(record, ALICE, expect=0)
    with pytest.raises(errors.VersionMoved):
        await store.save(record, ALICE, expect=2)
    assert (await store.save(record, ALICE, expect=1)).version == 2
    with pytest.raises(errors.VersionMoved):
        await store.save(Record("template", "none", {}), ALICE, expect=1)


async def test_records_are_listed_by_id_from_a_prefix(store: Store) -> None:
    names = ["a", "a/1", "a/2", "a%", "b", "ä", "a/10"]
    for name in names:
        await store.save(Record("k", name, {}), ALICE)
    await store.save(Record("other", "a/3", {}), ALICE)
    for prefix in ("", "a", "a/", "a%", "c"):
        found = await every(store, RecordList("k", prefix, 2))
        assert [record.id for record in found] == sorted(
            name for name in names if name.startswith(prefix)
        )
    for after in ("", "a", "a/1", "a/11", "zz"):
        found = await every(store, RecordList("k", "a", 2, after=after))
        assert [record.id for record in found] == sorted(
            name for name in names if name.startswith("a") and name > after
        )


# Workers


async def test_a_worker_is_known_by_what_it_declared(store: Store, clock: HandClock) -> None:
    card = WorkerCard("w1", ("kvm", "arm"), ("builder",), {"rack": "7"})
    for _ in range(2):
        await store.enlist(card, 60, ALICE)
    row = await store.query(WorkerByName("w1"), ALICE)
    assert row is not None
    assert (row.capabilities, row.roles, row.labels) == (
        ("arm", "kvm"),
        ("builder",),
        {"rack": "7"},
    )
    assert (row.principal, row.draining, row.lost) == ("alice", False, False)
    assert (row.seen_at, row.seen_until) == (clock.now(), clock.now() + 60)
    # Saying the same again is a sign of life, not news.
    assert len(await told(store, "worker.registered")) == 1
    await store.enlist(WorkerCard("w1", ("kvm",)), 60, ALICE)
    assert len(await told(store, "worker.registered")) == 2


async def test_a_workers_name_is_its_principals(store: Store) -> None:
    bob = actor("bob", Role.WORKER)
    await store.enlist(WorkerCard("w1"), 60, bob)
    with pytest.raises(errors.AlreadyExists, match="worker w1 is registered by bob"):
        await store.enlist(WorkerCard("w1"), 60, actor("eve", Role.WORKER))


async def test_a_dismissed_worker_is_gone(store: Store) -> None:
    await store.enlist(WorkerCard("w1", ("kvm",)), 60, ALICE)
    await store.dismiss("w1", ALICE)
    assert await store.query(WorkerByName("w1"), ALICE) is None
    with pytest.raises(errors.NotFound):
        await store.dismiss("w1", ALICE)
    with pytest.raises(errors.NotFound):
        await store.drain("w1", draining=True, by=ALICE)
    await submit(store, task(capabilities=["kvm"]))
    assert (await claim(store, "w1")).verdict == "no_match"


async def test_workers_are_listed_page_by_page(store: Store) -> None:
    names = [f"w{number}" for number in range(7)]
    for name in names:
        await store.enlist(WorkerCard(name), 60, ALICE)
    rows = await every(store, WorkerList(3))
    assert [row.name for row in rows] == names


# Lists of tasks


async def test_tasks_are_listed_by_what_is_asked_of_them(store: Store) -> None:
    await submit(
        store,
        task("a", title="First Thing", labels={"x": "1", "y": "1"}),
        task("b", "a", labels={"x": "1"}),
        task("c", group="other", title="second"),
        by=actor("bob"),
    )
    await submit(store, task("d"), task("a1000"))
    await run_next(store, "w9")
    asked: list[tuple[dict[str, Any], list[str]]] = [
        ({}, ["a", "b", "c", "d", "a1000"]),
        ({"states": (TaskState.READY,)}, ["b", "c", "d", "a1000"]),
        ({"states": (TaskState.DONE, TaskState.FAILED)}, ["a"]),
        ({"group": "other"}, ["c"]),
        ({"labels": (("x", "1"),)}, ["a", "b"]),
        ({"labels": (("x", "1"), ("y", "1"))}, ["a"]),
        ({"labels": (("x", "2"),)}, []),
        ({"owner": "bob"}, ["a", "b", "c"]),
        ({"owner": "nobody"}, []),
        ({"worker": "w9"}, ["a"]),
        ({"text": "THING"}, ["a"]),
        ({"text": "a"}, ["a", "a1000"]),
        ({"text": "%"}, []),
        ({"group": "default", "owner": "bob", "states": (TaskState.READY,)}, ["b"]),
    ]
    for question, keys in asked:
        found = await every(store, TaskList(**question, limit=2))
        assert [item.key for item in found] == keys, question


async def test_a_list_of_tasks_can_begin_with_the_newest(store: Store) -> None:
    keys = [f"k{i}" for i in range(5)]
    await submit(store, *(task(key) for key in keys))
    found = await every(store, TaskList(newest_first=True, limit=2))
    assert [item.key for item in found] == keys[::-1]
    page = await store.query(TaskList(newest_first=True, limit=2), ALICE)
    # Such a cursor is a place in the list, from which one can turn back.
    back = await store.query(TaskList(cursor=page.cursor), ALICE)
    assert [item.key for item in back.items] == ["k4"]


async def test_a_page_that_is_just_full_is_the_last(store: Store) -> None:
    await submit(store, *(task(f"k{i}") for i in range(4)))
    page = await store.query(TaskList(limit=4), ALICE)
    assert (len(page.items), page.cursor) == (4, None)


async def test_attempts_are_listed_oldest_first(store: Store) -> None:
    await submit(store, task("a", retry={"max_attempts": 9, "backoff_s": 0.0}))
    for _ in range(5):
        await fail(store, await take(store), retryable=True)
    found = await every(store, RunList("a", limit=2))
    assert [run.attempt for run in found] == [1, 2, 3, 4, 5]
    assert found[0].run_id == f"{(await get(store, 'a')).task_id}.1"


@pytest.mark.parametrize("cursor", ["", "x", "é", "W10", "WzEsMl0", "WyJhIl0", "Wy0xXQ", "e30"])
async def test_what_is_no_cursor_of_a_list_is_refused(store: Store, cursor: str) -> None:
    questions: list[Query[Page[Any]]] = [
        TaskList(cursor=cursor),
        FullTaskList("default", cursor=cursor),
        AuditList(cursor=cursor),
    ]
    for question in questions:
        with pytest.raises(errors.CursorInvalid):
            await store.query(question, ALICE)


async def test_a_cursor_of_another_list_is_refused(store: Store) -> None:
    await submit(store, task(), task())
    for name in ("w1", "w2"):
        await store.enlist(WorkerCard(name), 60, ALICE)
    tasks = await store.query(TaskList(limit=1), ALICE)
    workers = await store.query(WorkerList(limit=1), ALICE)
    with pytest.raises(errors.CursorInvalid):
        await store.query(WorkerList(cursor=tasks.cursor), ALICE)
    with pytest.raises(errors.CursorInvalid):
        await store.query(TaskList(cursor=workers.cursor), ALICE)


# The audit log


async def test_every_change_leaves_a_line_in_the_audit_log(store: Store, clock: HandClock) -> None:
    def by(action: str) -> Actor:
        return Actor("bob", Role.OPERATOR, "rest", action)

    submitted = await submit(store, task("a"), task("b"), by=by("task_submit"))
    clock.advance(1)
    held = await take(store, by=by("task_claim"))
    await finish(store, held, by=by("task_complete"))
    await store.amend(Address("b"), CancelTasks(), by("task_cancel"))
    await store.amend(InGroup("default"), CancelTasks(), by("group_cancel"))
    await store.note(by("task_list"), "t_other", "denied")
    rows = await every(store, AuditList(limit=2))
    a, b = (made.task_id for made in submitted.tasks)
    assert [(row.action, row.target, row.outcome) for row in rows] == [
        ("task_list", "t_other", "denied"),
        ("group_cancel", "group default", "ok"),
        ("task_cancel", b, "ok"),
        ("task_complete", a, "ok"),
        ("task_claim", a, "ok"),
        ("task_submit", f"{a} and 1 more", "ok"),
    ]
    assert {(row.actor, row.role, row.via) for row in rows} == {("bob", "operator", "rest")}
    assert [row.seq for row in rows] == [6, 5, 4, 3, 2, 1]
    asked: list[tuple[dict[str, Any], list[int]]] = [
        ({"action": "task_claim"}, [2]),
        ({"target": a}, [3, 2]),
        ({"outcome": "denied"}, [6]),
        ({"actor": "eve"}, []),
        ({"since": clock.now()}, [6, 5, 4, 3, 2]),
    ]
    for question, seqs in asked:
        page = await store.query(AuditList(**question), ALICE)
        assert [row.seq for row in page.items] == seqs


async def test_what_was_refused_leaves_no_line(store: Store) -> None:
    with pytest.raises(errors.NotFound):
        await submit(store, task("b", "a"))
    assert (await store.query(AuditList(), ALICE)).items == []


# Who sees what


async def test_what_a_caller_does_not_see_is_not_there_for_it(store: Store) -> None:
    bob, eve = own_only("bob"), own_only("eve")
    (made,) = (await submit(store, task("a", group="g"), by=bob)).tasks
    hidden: list[Query[Any]] = [RunList(made.task_id), OneGroup("g")]
    for question in hidden:
        with pytest.raises(errors.NotFound):
            await store.query(question, eve)
    for ref in (Address("a", "g"), Address(made.task_id)):
        with pytest.raises(errors.NotFound):
            await store.amend(ref, CancelTasks(), eve)
    for change in (CancelTasks(), DeleteTask()):
        with pytest.raises((errors.NotFound, errors.InvalidInput)):
            await store.amend(InGroup("g"), change, eve)
    listings: list[Query[Any]] = [TaskList(), FullTaskList("g"), GroupList()]
    for listing in listings:
        assert (await store.query(listing, eve)).items == []
    with pytest.raises(errors.NotFound, match="dependency"):
        await submit(store, task("b", made.task_id), by=eve)
    with pytest.raises(errors.NotFound):
        await submit(store, task("b", group="g", before=["a"]), by=eve)
    assert (await get(store, made.task_id, by=bob)).state == "ready"


async def test_of_several_labels_all_must_match_and_of_several_values_one(store: Store) -> None:
    reader = own_only("reader", team={"core", "web"}, env={"test"})
    labels = frozenset({"team", "env"})
    given = {
        "both": {"team": "core", "env": "test"},
        "other-value": {"team": "web", "env": "test"},
        "wrong-value": {"team": "web", "env": "live"},
        "one": {"team": "core"},
        "none": {},
    }
    for key, values in given.items():
        await submit(store, task(key, labels=values), visibility_labels=labels)
    found = await every(store, TaskList(limit=1), reader)
    assert [item.key for item in found] == ["both", "other-value"]


async def test_a_cascade_stops_at_what_the_caller_does_not_see(store: Store) -> None:
    bob = own_only("bob")
    (mine,) = (await submit(store, task("mine"), by=bob)).tasks
    await submit(store, task("below", mine.task_id), by=ALICE)
    with pytest.raises(errors.HasDependents, match="1 that you cannot see"):
        await store.amend(Address("mine"), DeleteTask(cascade=True), bob)
    cancelled = await store.amend(Address("mine"), CancelTasks(cascade=True), bob)
    assert cancelled.task_ids == (mine.task_id,)
    assert await states(store) == {"mine": "cancelled", "below": "blocked"}


async def test_a_deadlock_of_what_is_seen_tells_nothing_of_the_rest(store: Store) -> None:
    bob = own_only("bob")
    (mine,) = (await submit(store, task("mine"), by=bob)).tasks
    await fail_next(store)
    await submit(store, task("secret", mine.task_id), by=ALICE)
    await submit(store, task("stuck", mine.task_id), by=bob)
    claimed = await claim(store, by=bob)
    assert (claimed.verdict, [one.key for one in claimed.stuck]) == ("deadlocked", ["stuck"])


async def test_a_record_is_saved_with_the_event_that_tells_of_it(store: Store) -> None:
    record = Record("machine", "m1", {"state": "running"})
    start = await store.cursor()
    tell = Tell("running", {"pid": 7}, audited=False)
    await store.save(record, ALICE, expect=0, tell=tell)
    with pytest.raises(errors.VersionMoved):
        await store.save(record, ALICE, expect=9, tell=Tell("stopped"))
    read = await store.events(start, Match(subjects=("m1",)), 10, ALICE)
    assert [(event.kind, event.body) for event in read.events] == [("machine.running", {"pid": 7})]
    assert await every(store, AuditList(target="m1")) == []
