"""Care of the store itself: backups, checks, what survives a restart, what refuses to open."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import anyio
import pytest

from microvm_orchestrator import errors
from microvm_orchestrator.model.records import Record
from microvm_orchestrator.store.base import Idempotency, Match, WorkerCard
from microvm_orchestrator.store.questions import (
    AuditList,
    RecordById,
    RunList,
    TaskList,
    WorkerByName,
)
from storing import (
    ALICE,
    HandClock,
    SqliteEngine,
    claim,
    finish,
    get,
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


async def test_what_was_answered_is_there_after_a_restart(engine: SqliteEngine) -> None:
    store = engine.store("kept.sqlite")
    request = Idempotency("once", "digest")
    async with store.opened():
        submitted = await submit(store, task("a"), task("b", "a"), idempotency=request)
        held = await take(store)
        await store.save(Record("template", "t", {"n": 1}), ALICE)
        await store.enlist(WorkerCard("w1", ("kvm",)), 60, ALICE)
        cursor, events = await store.cursor(), await told(store)
        audit = await store.query(AuditList(), ALICE)
        runs = await store.query(RunList("a"), ALICE)
    again = engine.store("kept.sqlite")
    async with again.opened():
        assert await told(again) == events
        assert await again.cursor() == cursor
        assert await again.query(AuditList(), ALICE) == audit
        assert await again.query(RunList("a"), ALICE) == runs
        assert await again.query(RecordById("template", "t"), ALICE) is not None
        assert await again.query(WorkerByName("w1"), ALICE) is not None
        replayed = await submit(again, task("a"), task("b", "a"), idempotency=request)
        assert replayed.tasks == submitted.tasks
        assert (await finish(again, held, {"n": 1})).unlocked[0].key == "b"
        assert (await again.check()).problems == ()


async def test_a_closed_store_refuses_and_does_not_hang(engine: SqliteEngine) -> None:
    store = engine.store("kept.sqlite")
    async with store.opened():
        await submit(store, task("a"))
    with anyio.fail_after(10):
        with pytest.raises(errors.Stopping):
            await submit(store, task("b"))
        with pytest.raises(errors.Stopping):
            await store.query(TaskList(), ALICE)


async def test_work_that_was_asked_for_before_the_end_is_done(engine: SqliteEngine) -> None:
    store = engine.store("kept.sqlite")
    async with anyio.create_task_group() as tasks, store.opened():
        for index in range(50):
            tasks.start_soon(submit, store, task(f"k{index}"))
        # Each has asked once it had its turn.
        await anyio.lowlevel.checkpoint()
    again = engine.store("kept.sqlite")
    async with again.opened():
        assert len(await states(again)) == 50


async def test_a_caller_who_gives_up_leaves_the_store_in_order(store: Store) -> None:
    for index in range(20):
        with anyio.move_on_after(0):
            await submit(store, task(f"k{index}"))
    found = await states(store)
    assert set(found.values()) <= {"ready"}
    assert (await submit(store, task("last"))).tasks[0].key == "last"


# Backups


def unfinished(folder: Path) -> list[Path]:
    return list(folder.glob("*unfinished*")) + list(folder.glob(".*unfinished*"))


async def test_a_backup_that_is_taken_while_many_write_is_whole(
    store: Store, engine: SqliteEngine, tmp_path: Path
) -> None:
    stop = anyio.Event()
    wrote = known = 0

    async def write(name: str) -> None:
        nonlocal wrote
        while not stop.is_set():
            await submit(store, task(), task())
            held = await take(store, name)
            await finish(store, held)
            wrote += 1

    async with anyio.create_task_group() as tasks:
        for number in range(4):
            tasks.start_soon(write, f"w{number}")
        while wrote < 20:
            await anyio.lowlevel.checkpoint()
        known = len(await told(store))
        await store.backup(tmp_path / "copy.sqlite")
        stop.set()
    copy = engine.store("copy.sqlite")
    async with copy.opened():
        assert (await copy.check()).problems == ()
        events = await told(copy)
        assert len(events) >= known
        assert events == (await told(store))[: len(events)]


async def test_a_backup_is_for_its_owners_eyes_only_and_overwrites_nothing(
    store: Store, tmp_path: Path
) -> None:
    target = tmp_path / "copy.sqlite"
    await store.backup(target)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    content = target.read_bytes()
    with pytest.raises(errors.AlreadyExists):
        await store.backup(target)
    assert target.read_bytes() == content
    with pytest.raises(errors.StoreReadOnly):
        await store.backup(tmp_path / "nowhere" / "copy.sqlite")
    assert unfinished(tmp_path) == []


async def test_a_restored_backup_goes_on_and_old_cursors_are_told_so(
    store: Store, engine: SqliteEngine, tmp_path: Path
) -> None:
    await submit(store, task("a"), task("b", "a"))
    before = await store.cursor()
    await store.backup(tmp_path / "copy.sqlite")
    await run_next(store)
    restored = engine.store("copy.sqlite")
    async with restored.opened():
        assert await states(restored) == {"a": "ready", "b": "blocked"}
        with pytest.raises(errors.CursorExpired, match="put back from a backup"):
            await restored.events(before, Match(), 10, ALICE)
        assert [await run_next(restored) for _ in range(2)] == ["a", "b"]
        fresh = await restored.cursor()
        await submit(restored, task("c"))
        assert len((await restored.events(fresh, Match(), 10, ALICE)).events) == 1
        assert (await restored.check()).problems == ()


async def test_a_worker_that_outlived_a_restored_backup_is_fenced_by_its_token(
    store: Store, engine: SqliteEngine, tmp_path: Path
) -> None:
    await submit(store, task("a"))
    await store.backup(tmp_path / "copy.sqlite")
    lost = await take(store, "w1")
    restored = engine.store("copy.sqlite")
    async with restored.opened():
        assert (await finish(restored, lost)).verdict == "fenced"
        assert (await get(restored, "a")).state == "ready"


# What cannot be used


async def test_a_file_that_is_no_store_is_refused_and_left_alone(engine: SqliteEngine) -> None:
    path = engine.folder / "other.sqlite"
    path.write_bytes(b"this is a letter to my aunt" * 1000)
    before = path.read_bytes()
    with pytest.raises(errors.StoreCorrupt):
        async with engine.store("other.sqlite").opened():
            pass
    assert path.read_bytes() == before


async def test_a_store_in_a_folder_that_is_not_there_is_refused(engine: SqliteEngine) -> None:
    with pytest.raises(errors.StoreReadOnly):
        async with engine.store("nowhere/store.sqlite").opened():
            pass


async def test_check_counts_what_there_is(store: Store, clock: HandClock) -> None:
    await submit(store, task("a"), task("b", "a"))
    await run_next(store)
    clock.advance(1)
    health = await store.check()
    assert health.problems == ()
    assert (health.facts["tasks"], health.facts["events"]) == (2, 5)
    assert health.engine
    assert (await claim(store)).verdict == "claimed"
