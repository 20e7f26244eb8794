"""Ephemeral agents: each ends by itself once it has done what it was told, and no sooner."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import pytest

from coordinating import ALICE
from holding import Holding
from machines import publish_no_image
from microvm_orchestrator import errors
from microvm_orchestrator.conversations.ephemeral import see_off
from microvm_orchestrator.model.agent import AGENT
from microvm_orchestrator.model.records import SYSTEM, Record
from microvm_orchestrator.store.questions import RecordById
from talking import agent_of, home, said, spawned, stands

if TYPE_CHECKING:
    from pathlib import Path

    from calling import House
    from microvm_orchestrator.conversations.agents import Agents
    from microvm_orchestrator.model.agent import Agent
    from microvm_orchestrator.model.records import Actor

DONE = "it is ephemeral, and nothing was left to do"


async def ended(here: House, agent: str) -> dict[str, Any]:
    return await stands(here, agent, "ended", DONE)


async def test_it_ends_with_its_machine_once_it_has_heard_all_that_waited(tmp_path: Path) -> None:
    async with home(tmp_path) as here:
        ada = await spawned(here, "ada", ephemeral=True)
        bob = await spawned(here, "bob")
        agents = here.service.host.agents
        told = [await agents.send(ada, f"Count to {number}.", ALICE) for number in range(3)]
        for each in told:
            assert (await agents.settled(each.message_id, ALICE)).began_at is not None
        gone = await ended(here, ada)
        assert gone["turns"] == 3

        async def has_no_machine() -> bool:
            left = await here.ask("machine_list")
            return gone["machine_id"] not in {each["machine_id"] for each in left["items"]}

        await here.until(has_no_machine)
        with pytest.raises(errors.StateForbids, match="is ended"):
            await said(here, ada)
        assert (await said(here, bob))["state"] == "failed"
        assert (await agent_of(here, bob))["state"] == "idle"
        await here.ask("agent_end", agent=bob)


async def test_it_waits_for_its_first_message_as_long_as_that_takes(tmp_path: Path) -> None:
    async with home(tmp_path) as here:
        ada = await spawned(here, "ada", ephemeral=True)
    async with home(tmp_path) as here:
        assert (await agent_of(here, ada))["turns"] == 0
        await here.ask("agent_suspend", agent=ada)
        assert (await agent_of(here, ada))["state"] == "suspended"
        await said(here, ada)
        await ended(here, ada)


async def test_who_spawns_it_with_a_message_is_told_of_it_though_it_is_over(
    tmp_path: Path,
) -> None:
    async with home(tmp_path) as here:
        ada = await spawned(here, "ada", ephemeral=True, prompt="Count.")
        await ended(here, ada)
        assert (await here.service.host.agents.up(ada)).agent_id == ada


async def test_it_stays_for_those_who_belong_to_it(tmp_path: Path) -> None:
    async with home(tmp_path) as here:
        lead = await spawned(here, "lead", ephemeral=True)
        ada = await spawned(here, "ada", parent=lead)
        assert (await said(here, lead))["state"] == "failed"
        assert (await agent_of(here, lead))["state"] == "idle"
        await here.ask("agent_end", agent=ada)
        await ended(here, lead)


async def test_it_stays_until_it_has_heard_the_answer_that_it_is_owed(tmp_path: Path) -> None:
    async with home(tmp_path) as here:
        ada = await spawned(here, "ada", ephemeral=True)
        bob = await spawned(here, "bob", turns=1)
        await said(here, bob)
        agents = here.service.host.agents
        sender = await agents.get(ada, SYSTEM)
        # It is heard after a raise.
        owed = await agents.send(bob, "Count.", SYSTEM, sender=sender, tell_back=True)
        await said(here, ada)
        assert (await agent_of(here, ada))["state"] == "idle"
        await here.ask("agent_budget", agent=bob, turns=2)
        await agents.settled(owed.message_id, ALICE)
        assert (await ended(here, ada))["turns"] == 2
        await here.ask("agent_end", agent=bob)


async def test_the_next_daemon_ends_one_that_had_done_what_it_was_told(tmp_path: Path) -> None:
    async with home(tmp_path) as here:
        ada = await spawned(here, "ada")
        await said(here, ada)
        # As if the daemon had been killed between its answer and its end.
        body = {**await agent_of(here, ada), "ephemeral": True}
        await here.store.save(Record(AGENT, ada, body), SYSTEM)
    async with home(tmp_path) as here:
        await ended(here, ada)


async def test_it_takes_no_part_in_what_has_several_steps(tmp_path: Path) -> None:
    async with home(tmp_path) as here:
        lead = await spawned(here, "lead")
        ada = await spawned(here, "ada", parent=lead, ephemeral=True)
        with pytest.raises(errors.StateForbids, match="ada is ephemeral"):
            await here.ask("team_coordinate", coordinator=lead, participants=[ada], task="Count.")
        with pytest.raises(errors.InvalidInput, match="to lead belongs no agent that stays"):
            await here.ask("team_coordinate", coordinator=lead, task="Count.")
        await here.ask("agent_end", agent=lead, cascade=True)
        assert (await agent_of(here, ada))["reason"] == ""


async def test_the_next_daemon_knows_who_belongs_to_it_and_what_it_is_owed(
    tmp_path: Path,
) -> None:
    async with home(tmp_path) as here:
        lead = await spawned(here, "lead", ephemeral=True)
        ada = await spawned(here, "ada", parent=lead)
        eve = await spawned(here, "eve", ephemeral=True)
        bob = await spawned(here, "bob", turns=1)
        await said(here, bob)
        agents = here.service.host.agents
        sender = await agents.get(eve, SYSTEM)
        owed = await agents.send(bob, "Count.", SYSTEM, sender=sender, tell_back=True)
        for each in (lead, eve):
            await said(here, each)
    async with home(tmp_path) as here:
        for each in (lead, eve):
            left = await agent_of(here, each)
            assert (left["state"], left["reason"]) == ("idle", "")
        await here.ask("agent_end", agent=ada)
        await ended(here, lead)
        await here.ask("agent_budget", agent=bob, turns=2)
        await here.service.host.agents.settled(owed.message_id, ALICE)
        assert (await ended(here, eve))["turns"] == 2
        await here.ask("agent_end", agent=bob)


async def test_it_stays_for_none_who_belongs_to_it_and_never_came_up(tmp_path: Path) -> None:
    held = Holding()
    async with home(tmp_path, held.over) as here:
        publish_no_image(here.service.host.images, "broken", "fake.panic")
        lead = await spawned(here, "lead", ephemeral=True)
        held.hold_save(lambda each: each.kind == AGENT and each.body["state"] == "failed")
        await here.ask("agent_spawn", image="broken", parent=lead, wait_s=0)
        await held.reached()
        await said(here, lead)
        await anyio.wait_all_tasks_blocked()
        held.release()
        await ended(here, lead)


async def test_it_ends_though_it_was_answered_in_the_middle_of_a_turn(tmp_path: Path) -> None:
    held = Holding()
    async with home(tmp_path, held.over) as here:
        ada = await spawned(here, "ada", ephemeral=True)
        bob = await spawned(here, "bob")
        agents = here.service.host.agents
        sender = await agents.get(ada, SYSTEM)
        held.hold_save(lambda each: each.id == bob and each.body["state"] == "busy")
        owed = await agents.send(bob, "Count.", SYSTEM, sender=sender, tell_back=True)
        await held.reached()
        await said(here, ada)
        await agents.reply(owed.message_id, "Three.", SYSTEM)

        async def has_heard() -> bool:
            found = await agent_of(here, ada)
            return (found["state"], found["turns"]) == ("idle", 2)

        await here.until(has_heard)
        held.release()
        await ended(here, ada)
        await here.ask("agent_end", agent=bob)


async def test_it_hears_what_is_said_to_it_before_its_very_end(tmp_path: Path) -> None:
    held = Holding()
    async with home(tmp_path, held.over) as here:
        ada = await spawned(here, "ada", ephemeral=True)
        agents = here.service.host.agents
        await agents.send(ada, "Count.", ALICE)
        # Whoever ends it looks at it first.
        held.hold_question(lambda asked: isinstance(asked, RecordById) and asked.kind == AGENT)
        await held.reached()
        more = await agents.send(ada, "And now?", ALICE)
        held.release()
        assert (await agents.settled(more.message_id, ALICE)).began_at is not None
        assert (await ended(here, ada))["turns"] == 2


class Hindered:
    """The agents of a host, of whom one cannot be ended the first time."""

    def __init__(self, agents: Agents, why: Exception) -> None:
        self._agents = agents
        self._why = why
        self.conversations = agents.conversations
        self.said_no = anyio.Event()

    async def end(self, reference: str, by: Actor, **how: Any) -> list[Agent]:
        if not self.said_no.is_set():
            self.said_no.set()
            raise self._why
        return await self._agents.end(reference, by, **how)


@pytest.mark.parametrize("why", [errors.BundleRefused("refused"), OSError("no room")], ids=str)
@pytest.mark.parametrize("state", ["idle", "suspended"])
async def test_it_says_what_keeps_it_and_tries_again(
    tmp_path: Path, why: Exception, state: str
) -> None:
    async with home(tmp_path) as here:
        ada = await spawned(here, "ada")
        await said(here, ada)
        if state == "suspended":
            await here.ask("agent_suspend", agent=ada)
        agents = here.service.host.agents
        [conversation] = agents.conversations()
        async with anyio.create_task_group() as group:
            group.start_soon(see_off, conversation, Hindered(agents, why))
            await stands(here, ada, state, str(why))
        assert (await agent_of(here, ada))["reason"] == DONE
