"""Agents found among many: those that ended long ago cost nobody anything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest

from microvm_orchestrator import errors
from microvm_orchestrator.model.agent import AGENT
from microvm_orchestrator.store.questions import RecordList
from talking import agent_of, home, said, spawned

if TYPE_CHECKING:
    from pathlib import Path

    from microvm_orchestrator.model.records import Actor
    from microvm_orchestrator.store.base import Store


class Counting:
    """A store that counts how often agents are read without a word of which."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.lists = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def query(self, asked: Any, by: Actor) -> Any:
        self.lists += isinstance(asked, RecordList) and asked.kind == AGENT
        return await self._store.query(asked, by)


async def test_one_that_lives_is_found_and_talked_to_without_reading_all(tmp_path: Path) -> None:
    stores: list[Counting] = []

    def over(store: Store) -> Store:
        stores.append(Counting(store))
        return cast("Store", stores[0])

    async with home(tmp_path, over) as here:
        lead = await spawned(here, "lead")
        ada = await spawned(here, "ada", parent="lead")
        stores[0].lists = 0
        assert (await agent_of(here, "ada"))["agent_id"] == ada
        assert (await said(here, "ada"))["agent_id"] == ada
        children = await here.ask("agent_children", agent="lead")
        assert [each["name"] for each in children["agents"]] == ["ada"]
        places = (await here.ask("agent_tree"))["agents"]
        assert [(each["name"], each["depth"]) for each in places] == [("lead", 0), ("ada", 1)]
        with pytest.raises(errors.AlreadyExists):
            await here.ask("agent_spawn", name="ada", image="mute")
        await here.ask("agent_end", agent="lead", cascade=True)
        assert stores[0].lists == 0
        # Figures are of all there ever were, and read.
        await here.ask("agent_metrics")
        assert stores[0].lists > 0
        # The name is free again, and who had it is found by its id.
        with pytest.raises(errors.NotFound):
            await agent_of(here, "lead")
        assert (await agent_of(here, lead))["state"] == "ended"
