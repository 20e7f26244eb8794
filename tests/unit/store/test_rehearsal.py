"""A deletion that is rehearsed: what would go is told, and nothing goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from microvm_orchestrator import errors
from microvm_orchestrator.store.base import Address, DeleteTask
from microvm_orchestrator.store.questions import AuditList
from microvm_orchestrator.store.sqlite import SqliteStore
from storing import ALICE, get, states, submit, take, task, told


async def test_a_rehearsal_tells_what_a_deletion_would_do_and_leaves_no_trace(
    tmp_path: Path,
) -> None:
    store = SqliteStore(tmp_path / "store.db")
    async with store.opened():
        await submit(store, task("first"), task("second", "first"))
        before = await states(store), await told(store)
        first, second = [(await get(store, key)).task_id for key in ("first", "second")]
        audited = await store.query(AuditList(), ALICE)
        rehearsed = DeleteTask(cascade=True, rehearsed=True)
        amended = await store.amend(Address(first), rehearsed, ALICE)
        assert amended.task_ids == (first, second)
        assert await store.query(AuditList(), ALICE) == audited
        with pytest.raises(errors.HasDependents):
            await store.amend(Address(first), DeleteTask(rehearsed=True), ALICE)
        assert (await states(store), await told(store)) == before
        await take(store)
        with pytest.raises(errors.StateForbids):
            await store.amend(Address(first), rehearsed, ALICE)
        assert await states(store) == {"first": "running", "second": "blocked"}
