"""Workers as callers see them, and what they grow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from calling import house
from microvm_orchestrator import errors
from microvm_orchestrator.model.access import Principal, Role, Scope

if TYPE_CHECKING:
    from pathlib import Path

WEB = Scope(everything=False, labels=(("team", frozenset({"web"})),))
PAINTER = Principal("painter", Role.WORKER, WEB)
LEAD = Principal("lead", Role.OPERATOR, WEB)


async def test_a_caller_that_sees_some_tasks_sees_and_ends_only_its_own_workers(
    tmp_path: Path,
) -> None:
    async with house(tmp_path) as here:
        await here.ask("worker_register", worker="stranger")
        await here.ask("worker_register", by=PAINTER)
        seen = await here.ask("worker_list", by=PAINTER)
        assert [worker["worker"] for worker in seen["items"]] == ["painter"]
        for call in ("worker_get", "worker_drain", "worker_remove"):
            with pytest.raises(errors.NotFound):
                await here.ask(call, worker="stranger", by=LEAD)
        everyone = await here.ask("worker_list")
        assert [worker["state"] for worker in everyone["items"]] == ["active", "active"]


async def test_who_sees_a_task_sees_what_grows_out_of_it(tmp_path: Path) -> None:
    async with house(tmp_path) as here:
        await here.ask("task_submit", key="paint", labels={"team": "web", "size": "small"})
        claimed = await here.ask("task_claim", by=PAINTER)
        held = {"task_id": "paint", "token": claimed["tasks"][0]["lease"]["token"]}
        parts = {"children": [{"key": "prime"}], "successors": [{"key": "dry"}]}
        await here.ask("task_extend", **held, **parts, by=PAINTER)
        for key in ("prime", "dry"):
            grown = await here.ask("task_get", task_id=key, by=LEAD)
            assert grown["labels"] == {"team": "web"}
