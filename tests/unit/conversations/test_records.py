"""Messages as they are written down, and those who wait for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest

from calling import PATIENCE_S
from coordinating import ALICE
from microvm_orchestrator.conversations.answers import settled
from microvm_orchestrator.conversations.records import AgentRecords
from microvm_orchestrator.model.agent import Message, MessageState
from microvm_orchestrator.model.records import SYSTEM
from microvm_orchestrator.model.values import moment
from microvm_orchestrator.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

SAID = Message(
    message_id="a_1.msg_1",
    agent_id="a_1",
    owner=ALICE.name,
    sender=ALICE.name,
    text="x",
    state=MessageState.QUEUED,
    created_at=moment(0.0),
)


async def test_who_sees_first_that_a_message_is_settled_wakes_the_others(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store.db")
    async with store.opened():
        records = AgentRecords(store)
        await records.save_message(SAID, SYSTEM, "queued", expect=0)
        answered = settled(SAID, MessageState.ANSWERED, answer="y")
        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as group:
                group.start_soon(records.settled, SAID.message_id, ALICE)
                # By then the first one has looked, and waits.
                await records.message(SAID.message_id, ALICE)
                await anyio.wait_all_tasks_blocked()
                # It is in the store, and whoever wrote it has not come to tell of it.
                await AgentRecords(store).save_message(answered, SYSTEM, "answered")
                assert (await records.settled(SAID.message_id, ALICE)).answer == "y"
