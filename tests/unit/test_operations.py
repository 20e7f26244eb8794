"""Long work outlives its caller, tells how far it is, and has one truthful end."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from pydantic import JsonValue

from microvm_orchestrator import errors
from microvm_orchestrator.model.access import Role, Scope
from microvm_orchestrator.model.operation import Operation, OperationState
from microvm_orchestrator.model.records import SYSTEM, Actor
from microvm_orchestrator.operations import Operations, Report
from microvm_orchestrator.store.base import Match, Store
from microvm_orchestrator.store.sqlite import SqliteStore

ALICE = Actor(name="alice", role=Role.OPERATOR, via="test", action="image_build")
BOB = Actor(name="bob", role=Role.OPERATOR, via="test", action="x", scope=Scope(everything=False))


@asynccontextmanager
async def _store(folder: Path) -> AsyncGenerator[Store]:
    store = SqliteStore(folder / "store.db")
    async with store.opened():
        yield store


async def _ended(store: Store, operations: Operations, operation: Operation) -> Operation:
    with anyio.fail_after(5):
        async with store.hints() as changes:
            while not (now := await operations.get(operation.operation_id, ALICE)).finished:
                await anext(changes)
    return now


async def _kinds(store: Store) -> list[str]:
    read = await store.events(None, Match(kinds=("operation.*",)), 100, SYSTEM)
    return [event.kind for event in read.events]


async def test_an_operation_succeeds_with_its_result_and_tells_each_step(tmp_path: Path) -> None:
    async def work(report: Report) -> JsonValue:
        await report(0.5, "half")
        return {"digest": "sha256:1"}

    async with _store(tmp_path) as store:
        operations = Operations(store)
        async with operations.running():
            begun = await operations.begin("image.build", "embedded", ALICE, work)
            ended = await _ended(store, operations, begun)
        assert begun.state is OperationState.RUNNING
        assert (ended.state, ended.result) == ("succeeded", {"digest": "sha256:1"})
        assert ended.progress is not None
        assert ended.progress.message == "half"
        kinds = await _kinds(store)
    assert kinds == ["operation.started", "operation.progress", "operation.succeeded"]


async def test_a_failure_keeps_its_code_and_a_bug_does_not_end_the_others(tmp_path: Path) -> None:
    async def refuses(_: Report) -> JsonValue:
        raise errors.NotFound("no package nodejs-99", hint="look it up")

    async def breaks(_: Report) -> JsonValue:
        raise ZeroDivisionError

    async with _store(tmp_path) as store:
        operations = Operations(store)
        async with operations.running():
            first = await operations.begin("image.build", "a", ALICE, refuses)
            second = await operations.begin("image.build", "b", ALICE, breaks)
            refused = await _ended(store, operations, first)
            broken = await _ended(store, operations, second)
    assert refused.error is not None
    assert (refused.state, refused.error.code) == ("failed", "not-found")
    assert broken.error is not None
    assert (broken.state, broken.error.code) == ("failed", "internal-error")


async def test_cancelling_an_operation_ends_its_work(tmp_path: Path) -> None:
    cleaned = anyio.Event()

    async def work(_: Report) -> JsonValue:
        try:
            await anyio.sleep_forever()
        finally:
            cleaned.set()

    async with _store(tmp_path) as store:
        operations = Operations(store)
        async with operations.running():
            begun = await operations.begin("image.build", "a", ALICE, work)
            await anyio.wait_all_tasks_blocked()
            await operations.cancel(begun.operation_id, ALICE)
            ended = await _ended(store, operations, begun)
            with pytest.raises(errors.StateForbids):
                await operations.cancel(begun.operation_id, ALICE)
    assert ended.state is OperationState.CANCELLED
    assert cleaned.is_set()


async def test_what_ran_when_the_daemon_ended_is_lost(tmp_path: Path) -> None:
    async def work(_: Report) -> JsonValue:
        await anyio.sleep_forever()

    async with _store(tmp_path) as store:
        operations = Operations(store)
        async with operations.running():
            begun = await operations.begin("image.build", "a", ALICE, work)
        assert (await operations.get(begun.operation_id, ALICE)).state is OperationState.LOST
        with pytest.raises(errors.Stopping):
            await operations.begin("image.build", "b", ALICE, work)


async def test_what_finds_the_daemon_stopping_is_lost_as_well(tmp_path: Path) -> None:
    async def refused(_: Report) -> JsonValue:
        raise errors.Stopping("the daemon takes on no more agents")

    async with _store(tmp_path) as store:
        operations = Operations(store)
        async with operations.running():
            begun = await operations.begin("team_spawn", "shop", ALICE, refused)
            ended = await _ended(store, operations, begun)
        assert ended.state is OperationState.LOST
        assert ended.error is not None
        assert ended.error.code == "lost"


async def test_an_operation_is_unseen_by_a_narrowed_stranger(tmp_path: Path) -> None:
    async def work(_: Report) -> JsonValue:
        return None

    async with _store(tmp_path) as store:
        operations = Operations(store)
        async with operations.running():
            begun = await operations.begin("image.build", "a", ALICE, work)
            await _ended(store, operations, begun)
            with pytest.raises(errors.NotFound):
                await operations.get(begun.operation_id, BOB)
