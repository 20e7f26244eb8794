"""Answers that an agent hears as messages of their own, once, whatever becomes of the daemon."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import anyio

from coordinating import ALICE
from holding import Holding, Refusing
from microvm_orchestrator.model.agent import MESSAGE
from microvm_orchestrator.model.records import SYSTEM
from microvm_orchestrator.store.questions import RecordList
from talking import home, spawned

if TYPE_CHECKING:
    from pathlib import Path

    from calling import House


async def told_to(here: House, agent: str) -> list[str]:
    return [each["text"] for each in (await here.ask("agent_output", agent=agent))["items"]]


async def test_an_answer_that_was_not_told_back_is_told_by_the_next_daemon(tmp_path: Path) -> None:
    async with home(tmp_path) as here:
        lead = await spawned(here, "lead")
        ada = await spawned(here, "ada", parent=lead)
        agents = here.service.host.agents
        sender = await agents.get(lead, SYSTEM)
        said = await agents.send(ada, "Count.", SYSTEM, sender=sender, tell_back=True)
        answered = await agents.settled(said.message_id, ALICE)
        assert answered.told_back is not None

        async def is_heard() -> bool:
            heard = (await here.ask("agent_output", agent=lead))["items"]
            return [each["state"] for each in heard] == ["failed"]

        await here.until(is_heard)
        [told] = await told_to(here, lead)
        assert told.startswith("You said: Count.\n\nThere is no answer: failed")
        # As if the daemon had been killed before it was written down.
        await here.store.erase(MESSAGE, answered.told_back, SYSTEM)
        assert await told_to(here, lead) == []
    for _ in range(2):
        async with home(tmp_path) as here:
            assert await told_to(here, lead) == [told]
    async with home(tmp_path) as here:
        await here.ask("agent_end", agent=lead, cascade=True, force=True)


async def test_an_answer_that_the_store_did_not_take_is_told_once_it_does(tmp_path: Path) -> None:
    refusing = Refusing()
    async with home(tmp_path, refusing.over) as here:
        lead = await spawned(here, "lead")
        ada = await spawned(here, "ada", parent=lead)
        agents = here.service.host.agents
        sender = await agents.get(lead, SYSTEM)
        refusing.refuse(lambda each: each.id.startswith(f"{lead}."))
        await agents.send(ada, "Count.", SYSTEM, sender=sender, tell_back=True)

        async def is_told() -> bool:
            return len(await told_to(here, lead)) == 1

        await here.until(is_told)
        assert refusing.has_refused
        await here.ask("agent_end", agent=lead, cascade=True, force=True)


async def test_an_answer_is_told_though_whoever_gave_it_is_ended_meanwhile(tmp_path: Path) -> None:
    held = Holding()
    async with home(tmp_path, held.over) as here:
        lead = await spawned(here, "lead")
        ada = await spawned(here, "ada", parent=lead)
        agents = here.service.host.agents
        sender = await agents.get(lead, SYSTEM)
        held.hold_save(lambda each: each.id.startswith(f"{lead}."))
        await agents.send(ada, "Count.", SYSTEM, sender=sender, tell_back=True)
        await held.reached()
        async with anyio.create_task_group() as group:
            group.start_soon(partial(here.ask, "agent_end", agent=ada, force=True))
            # Longer than it looks who is to be ended.
            await here.go_on()
            held.release()

        async def is_heard() -> bool:
            heard = (await here.ask("agent_output", agent=lead))["items"]
            return [each["state"] for each in heard] == ["failed"]

        await here.until(is_heard)
        await here.ask("agent_end", agent=lead)


async def test_an_answer_that_comes_while_a_daemon_takes_up_agents_is_told(tmp_path: Path) -> None:
    held = Holding()
    async with home(tmp_path, held.over) as here:
        lead = await spawned(here, "lead")
        ada = await spawned(here, "ada", parent=lead)
        agents = here.service.host.agents
        sender = await agents.get(ada, SYSTEM)
        held.hold_save(
            lambda each: each.id.startswith(f"{lead}.") and each.body["state"] == "delivered"
        )
        await agents.send(lead, "Count.", SYSTEM, sender=sender, tell_back=True)
        # As if the daemon had been killed before it was heard.
        await held.reached()
    said = RecordList(MESSAGE, f"{lead}.")
    held.hold_question(
        lambda each: (
            isinstance(each, RecordList) and (each.kind, each.prefix) == (MESSAGE, f"{ada}.")
        )
    )

    async def is_still(state: str) -> bool:
        [found] = (await held.query(said, SYSTEM)).items
        return found.body["state"] == state

    async def answer_first() -> None:
        await held.reached()
        # Longer than it takes to be heard, where that can be by then.
        for _ in range(1000):
            if not await is_still("queued"):
                break
        while await is_still("delivered"):
            pass
        # And longer than it takes to tell it.
        for _ in range(100):
            await is_still("failed")
        held.release()

    async with anyio.create_task_group() as group:
        group.start_soon(answer_first)
        async with home(tmp_path, held.over) as here:

            async def is_told() -> bool:
                return len(await told_to(here, ada)) == 1

            await here.until(is_told)
            [told] = await told_to(here, ada)
            assert told.startswith("You said: Count.\n\nThere is no answer: failed")
            await here.ask("agent_end", agent=lead, cascade=True, force=True)
