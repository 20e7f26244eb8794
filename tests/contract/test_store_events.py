"""The journal: cursors, filters, followers under concurrent writers, what is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest

from microvm_orchestrator import errors
from microvm_orchestrator.model.records import SYSTEM, Actor, Record
from microvm_orchestrator.store.base import Address, CancelTasks, Keep, Match, RetryTasks, Tell
from storing import (
    ALICE,
    HandClock,
    SqliteEngine,
    fail_next,
    finish,
    gate,
    get,
    own_only,
    pass_time,
    run_next,
    states,
    submit,
    take,
    task,
    told,
)

if TYPE_CHECKING:
    from pathlib import Path

    from microvm_orchestrator.store.base import Store

ANY = Match()


async def test_the_owner_of_a_record_sees_what_becomes_of_it_and_nobody_else_does(
    store: Store,
) -> None:
    owner, other = own_only("owner"), own_only("other")
    record = Record("machine", "m_1", {"owner": "owner"})
    await store.save(record, owner, tell=Tell("defined"))
    await store.save(record, SYSTEM, tell=Tell("crashed", audited=False))
    await store.erase("machine", "m_1", SYSTEM)

    async def kinds(by: Actor) -> list[str]:
        return [event.kind for event in (await store.events(None, ANY, 100, by)).events]

    assert await kinds(owner) == ["machine.defined", "machine.crashed", "machine.deleted"]
    assert await kinds(other) == []


async def test_a_follower_sees_every_event_exactly_once_while_many_write(store: Store) -> None:
    """A cursor over numbers that are taken before the commit saw 1,188 of 1,800 events."""
    seen: list[int] = []
    writers, each = 12, 25
    done = anyio.Event()

    async def follow(limit: int) -> None:
        cursor = None
        while True:
            over = done.is_set()
            events = await store.events(cursor, ANY, limit, ALICE)
            seen.extend(event.seq for event in events.events)
            cursor = events.cursor
            if over and not events.more:
                return
            await anyio.lowlevel.checkpoint()

    async def write(number: int) -> None:
        for index in range(each):
            await submit(store, task(f"{number}-{index}"))
            held = await take(store, f"w{number}")
            await finish(store, held)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(follow, 7)
        async with anyio.create_task_group() as writing:
            for number in range(writers):
                writing.start_soon(write, number)
        done.set()
    assert seen == list(range(1, writers * each * 3 + 1))


async def test_a_refused_request_leaves_no_gap(store: Store) -> None:
    await submit(store, task("a"))
    for _ in range(3):
        with pytest.raises(errors.AlreadyExists):
            await submit(store, task("b"), task("a"))
    await submit(store, task("c"))
    assert [event.seq for event in await told(store)] == [1, 2]


async def test_a_cursor_goes_on_where_it_was_however_small_the_steps(store: Store) -> None:
    await submit(store, *(task(f"k{i}") for i in range(10)))
    cursor, steps = None, list[int]()
    while True:
        events = await store.events(cursor, ANY, 3, ALICE)
        steps += [event.seq for event in events.events]
        cursor = events.cursor
        if not events.more:
            break
    assert steps == list(range(1, 11))
    empty = await store.events(cursor, ANY, 3, ALICE)
    assert (empty.events, empty.more, empty.cursor) == ((), False, cursor)
    assert cursor == await store.cursor()
    await submit(store, task("next"))
    after = await store.events(cursor, ANY, 3, ALICE)
    assert [event.seq for event in after.events] == [11]


async def test_a_filter_gives_what_matches_and_a_cursor_past_what_does_not(store: Store) -> None:
    await submit(store, *(task(f"k{i}", group=f"g{i % 3}") for i in range(9)))
    held = await take(store)
    first = await store.events(None, Match(groups=("g1", "g2")), 4, ALICE)
    assert [(event.seq, event.group) for event in first.events] == [
        (2, "g1"),
        (3, "g2"),
        (5, "g1"),
        (6, "g2"),
    ]
    assert first.more
    second = await store.events(first.cursor, Match(groups=("g1", "g2")), 4, ALICE)
    assert [event.seq for event in second.events] == [8, 9]
    assert second.cursor == await store.cursor()
    by_kind = await told(store, "task.claimed", "worker.*")
    assert [event.subject for event in by_kind] == [held.task.task_id]
    assert len(await told(store, "task.*")) == 10
    assert await told(store, "task") == []


async def test_events_of_one_task_can_be_followed_from_any_place(store: Store) -> None:
    await submit(store, task("a"), task("b", "a"))
    b = (await get(store, "b")).task_id
    match = Match(subjects=(b,))
    first = await store.events(None, match, 10, ALICE)
    assert [event.kind for event in first.events] == ["task.submitted"]
    await run_next(store)
    second = await store.events(first.cursor, match, 10, ALICE)
    assert [event.kind for event in second.events] == ["task.ready"]
    await run_next(store)
    third = await store.events(second.cursor, match, 1, ALICE)
    assert ([event.kind for event in third.events], third.more) == (["task.claimed"], True)
    fourth = await store.events(third.cursor, match, 1, ALICE)
    assert ([event.kind for event in fourth.events], fourth.more) == (["task.done"], False)


async def test_a_reader_sees_only_events_of_what_it_may_see(store: Store) -> None:
    bob = own_only("bob", team={"core"})
    labelled = frozenset({"team"})
    await submit(store, task("hidden"))
    await submit(store, task("mine"), by=bob)
    await submit(store, task("ours", labels={"team": "core"}), visibility_labels=labelled)
    await submit(store, task("theirs", labels={"team": "web"}), visibility_labels=labelled)
    # A label that does not decide visibility shows nothing to anybody.
    await submit(store, task("plain", labels={"team": "core"}))
    seen = [event.body for event in await told(store, "task.*", by=bob)]
    assert [body.get("key") for body in seen if isinstance(body, dict)] == ["mine", "ours"]


@pytest.mark.parametrize(
    "cursor", ["", "x", "!!", "AAAA", "eA", "ZXBvY2guMQ", "é", "eC4tMQ", "a" * 10_000]
)
async def test_what_is_no_cursor_is_refused(store: Store, cursor: str) -> None:
    with pytest.raises((errors.CursorInvalid, errors.CursorExpired)):
        await store.events(cursor, ANY, 10, ALICE)


async def test_a_cursor_from_beyond_the_end_is_refused(
    store: Store, engine: SqliteEngine, tmp_path: Path
) -> None:
    await store.backup(tmp_path / "early.sqlite")
    early = engine.store("early.sqlite")
    async with early.opened():
        await submit(early, task("a"), task("b"))
        late = await early.cursor()
    (tmp_path / "early.sqlite").replace(tmp_path / "other.sqlite")
    with pytest.raises(errors.CursorExpired):
        await store.events(late, ANY, 10, ALICE)


# What is kept


async def test_old_events_are_dropped_and_cursors_into_them_say_so(
    store: Store, clock: HandClock
) -> None:
    await submit(store, task("old"))
    before = (await store.events(None, ANY, 10, ALICE)).cursor
    await submit(store, task("older"), task("oldest"))
    clock.advance(1000)
    await submit(store, task("new"))
    dropped = (await pass_time(store, clock, 1, Keep(event_age_s=500.0)))[-1].dropped_events
    assert dropped == 3
    with pytest.raises(errors.CursorExpired, match="events 2 to 3 are past their retention"):
        await store.events(before, ANY, 10, ALICE)
    events = await store.events(None, ANY, 10, ALICE)
    assert [event.seq for event in events.events] == [4]
    assert (await pass_time(store, clock, 1, Keep(event_age_s=500.0)))[-1].dropped_events == 0


async def test_a_cursor_just_before_what_is_kept_still_serves(
    store: Store, clock: HandClock
) -> None:
    await submit(store, task("a"), task("b"))
    at_the_end = await store.cursor()
    await submit(store, task("c"))
    await pass_time(store, clock, 1, Keep(event_count=1))
    events = await store.events(at_the_end, ANY, 10, ALICE)
    assert [event.seq for event in events.events] == [3]


async def test_the_numbers_go_on_even_when_everything_was_dropped(
    store: Store, clock: HandClock
) -> None:
    await submit(store, *(task(f"k{i}") for i in range(20)))
    for _ in range(3):
        await pass_time(store, clock, 1, Keep(event_count=0, event_age_s=0.0))
    cursor = await store.cursor()
    await submit(store, task("next"))
    events = await store.events(cursor, ANY, 10, ALICE)
    assert [event.seq for event in events.events] == [21]


async def test_finished_tasks_are_dropped_by_age_oldest_first_once_nobody_needs_them(
    store: Store, clock: HandClock
) -> None:
    await submit(store, task("a"), task("b", "a"), task("c", "b"), task("d", "c"))
    for _ in range(2):
        clock.advance(10)
        await run_next(store)
    held = await take(store)
    swept = await pass_time(store, clock, 1, Keep(task_age_s=5.0))
    # `c` runs and has a use for `b`; nothing that is unfinished has one for `a`.
    assert swept[-1].dropped_tasks == 1
    assert await states(store) == {"b": "done", "c": "running", "d": "blocked"}
    assert [event.kind for event in await told(store, "task.dropped")] == ["task.dropped"]
    await finish(store, held)
    await pass_time(store, clock, 5, Keep(task_age_s=5.0))
    assert await states(store) == {"c": "done", "d": "ready"}
    assert await run_next(store) == "d"
    await pass_time(store, clock, 20, Keep(task_age_s=5.0))
    assert await states(store) == {}


async def test_a_dropped_task_means_to_others_what_it_meant_before(
    store: Store, clock: HandClock
) -> None:
    await submit(
        store,
        task("good", priority=9),
        task("bad"),
        task("all", "good", "bad", on_unmet="cancel"),
        task("two", gate(2, "good", "bad", "other"), on_unmet="cancel"),
        task("other"),
    )
    await run_next(store)
    await store.amend(Address("other"), CancelTasks(), ALICE)
    clock.advance(100)
    await fail_next(store)
    await pass_time(store, clock, 1, Keep(task_age_s=50.0))
    assert await states(store) == {"bad": "failed", "all": "cancelled", "two": "cancelled"}
    await store.amend(Address("bad"), RetryTasks(), ALICE)
    assert await states(store) == {"bad": "ready", "all": "blocked", "two": "blocked"}
    assert await run_next(store) == "bad"
    assert await states(store) == {"bad": "done", "all": "ready", "two": "ready"}


async def test_who_asks_for_all_or_for_one_does_so_still_when_one_of_them_is_dropped(
    store: Store, clock: HandClock
) -> None:
    await submit(
        store,
        task("parent", priority=9),
        task("bad"),
        task("all", "parent", "bad"),
        task("either", gate(1, "parent", "bad")),
    )
    parent = await take(store)
    await store.amend(Address("bad"), CancelTasks(), ALICE)
    clock.advance(10)
    for waiting in ("all", "either"):
        await store.amend(Address(waiting), CancelTasks(), ALICE)
    swept = await pass_time(store, clock, 1, Keep(task_age_s=5.0))
    assert [each.dropped_tasks for each in swept if each.dropped_tasks] == [1]
    [child] = (await submit(store, task("child", child=True), under=parent.ref)).tasks
    for waiting, for_all in (("all", True), ("either", False)):
        waits = [parent.task.task_id, *([child.task_id] if for_all else [])]
        assert sorted((await get(store, waiting)).waiting_for) == sorted(waits)


async def test_only_so_many_finished_tasks_are_kept(store: Store, clock: HandClock) -> None:
    await submit(store, *(task(f"k{i}") for i in range(10)))
    for _ in range(8):
        clock.advance(1)
        await run_next(store)
    await pass_time(store, clock, 1, Keep(task_count=3))
    assert await states(store) == dict.fromkeys(["k5", "k6", "k7"], "done") | dict.fromkeys(
        ["k8", "k9"], "ready"
    )


async def test_without_a_limit_everything_is_kept(store: Store, clock: HandClock) -> None:
    await submit(store, task("a"))
    await run_next(store)
    clock.advance(10 * 365 * 86_400)
    swept = (await pass_time(store, clock, 1))[-1]
    assert (swept.dropped_events, swept.dropped_tasks) == (0, 0)


# Hints


async def test_a_hint_comes_for_every_change_that_was_made_after_it_was_asked_for(
    store: Store,
) -> None:
    seen = 0
    async with store.hints() as hints, anyio.create_task_group() as tasks:
        cursor = await store.cursor()
        tasks.start_soon(submit, store, task("a"))
        with anyio.fail_after(10):
            async for _ in hints:
                events = await store.events(cursor, ANY, 100, ALICE)
                cursor, seen = events.cursor, seen + len(events.events)
                if seen == 3:
                    break
                tasks.start_soon(submit, store, task())
    assert seen == 3


async def test_a_hint_that_was_not_taken_yet_is_not_lost(store: Store) -> None:
    async with store.hints() as hints:
        await submit(store, task())
        await submit(store, task())
        with anyio.fail_after(10):
            await anext(hints)
    assert len(await told(store)) == 2
