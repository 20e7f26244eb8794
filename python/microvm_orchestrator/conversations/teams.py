"""Teams that are spawned: all of them come to be, or none does.

Whom a team will have is in the store before the first of them begins, and taken out when all can be
talked to. What a daemon finds there was cut off in the middle, and is ended. Above is the service;
below, the agents.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial

import anyio

from microvm_orchestrator import errors
from microvm_orchestrator.conversations.agents import Agents
from microvm_orchestrator.conversations.spawn import Spawn
from microvm_orchestrator.model.agent import Agent, AgentState
from microvm_orchestrator.model.names import new_id
from microvm_orchestrator.model.records import SYSTEM, Actor, Record
from microvm_orchestrator.model.team import TEAM, Gathering
from microvm_orchestrator.model.values import moment
from microvm_orchestrator.operations import Report
from microvm_orchestrator.store.base import Store, Tell
from microvm_orchestrator.store.every import every_record
from microvm_orchestrator.together import together


@dataclass(frozen=True, slots=True)
class TeamWish:
    """A team as it is asked for: who leads, and who belongs to them."""

    lead: Spawn
    members: Sequence[Spawn]


class Teams:
    """The teams that are being spawned on this host."""

    def __init__(self, store: Store, agents: Agents) -> None:
        self._store = store
        self._agents = agents
        self._stopping = False

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """End what an earlier daemon left half done; it is entered after the agents."""
        for record in await every_record(self._store, TEAM, SYSTEM):
            await self._give_up(Gathering.model_validate(record.body))
        try:
            yield
        finally:
            self._stopping = True

    async def spawn(self, wish: TeamWish, by: Actor, report: Report) -> list[Agent]:
        """Spawn a team, and wait until all can be talked to; the lead comes first.

        Raises: what agents raise, and what keeps one of them from coming up; nobody is left then.
        """
        lead = replace(wish.lead, agent_id=new_id("a"))
        members = [
            replace(each, agent_id=new_id("a"), parent=lead.agent_id) for each in wish.members
        ]
        ids = [str(each.agent_id) for each in (lead, *members)]
        gathering = Gathering(
            team_id=new_id("team"),
            owner=by.name,
            lead=ids[0],
            members=ids[1:],
            created_at=moment(await self._store.now()),
        )
        try:
            with anyio.CancelScope(shield=True):
                await self._save(gathering, by)
            for number, each in enumerate((lead, *members)):
                await report(number / len(ids) / 2, f"spawns {each.name}")
                await self._agents.spawn(each, by)
            await report(0.5, "makes their machines ready")
            agents = await together([partial(self._agents.up, each) for each in ids], at_once=99)
            with anyio.CancelScope(shield=True):
                await self._store.erase(TEAM, gathering.team_id, SYSTEM)
        except BaseException:
            # While the daemon stops, agents begin and end nothing: the next one does.
            if not self._stopping:
                with anyio.CancelScope(shield=True):
                    await self._give_up(gathering)
            raise
        return agents

    async def _save(self, gathering: Gathering, by: Actor) -> None:
        record = Record(TEAM, gathering.team_id, gathering.model_dump(mode="json"))
        tell = Tell("begun", {"lead": gathering.lead}, audited=False)
        await self._store.save(record, by, expect=0, tell=tell)

    async def _give_up(self, gathering: Gathering) -> None:
        """End whoever was begun; those that belong to the lead before it."""
        for agent_id in (*reversed(gathering.members), gathering.lead):
            with suppress(errors.NotFound):
                agent = await self._agents.get(agent_id, SYSTEM)
                # One that never came up has a machine all the same.
                if agent.state is not AgentState.ENDED:
                    await self._agents.end(agent_id, SYSTEM, force=True, cascade=True)
        await self._store.erase(TEAM, gathering.team_id, SYSTEM)
