"""Answers that an agent hears as messages of their own, once, whatever becomes of the daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coordinating import ALICE
from microvm_orchestrator.model.agent import MESSAGE
from microvm_orchestrator.model.records import SYSTEM
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
