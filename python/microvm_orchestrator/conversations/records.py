"""The agents that are written down, and what was said to them.

Above is the life of agents; below, the store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from microvm_orchestrator import errors
from microvm_orchestrator.conversations.accounts import Accounts
from microvm_orchestrator.conversations.tally import Tallies
from microvm_orchestrator.model import token
from microvm_orchestrator.model.agent import AGENT, MESSAGE, Agent, Message
from microvm_orchestrator.model.names import new_id
from microvm_orchestrator.model.records import SYSTEM, Actor, Record
from microvm_orchestrator.store.base import Store, Tell
from microvm_orchestrator.store.every import every_record
from microvm_orchestrator.store.questions import RecordList
from microvm_orchestrator.store.seen import find_seen

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import JsonValue

    from microvm_orchestrator.model.token import KeptToken


def new_message_id(agent_id: str) -> str:
    """Name a message to an agent that is to be sent."""
    return f"{agent_id}.{new_id('msg')}"


class AgentRecords:
    """The agents of one daemon."""

    def __init__(self, store: Store) -> None:
        self._store = store
        # Those of an earlier daemon have to be told to it.
        self.accounts = Accounts()
        self.tallies = Tallies()
        # Somebody waits until these messages are settled.
        self._awaited: dict[str, anyio.Event] = {}

    @property
    def store(self) -> Store:
        """Where they are written down, for what agents do beside."""
        return self._store

    async def visible(self, by: Actor) -> list[Agent]:
        """The agents that somebody may know of, oldest first."""
        records = await every_record(self._store, AGENT, by)
        agents = [Agent.model_validate(record.body) for record in records]
        return [agent for agent in agents if by.sees_of(agent.owner)]

    async def find(self, agent_id: str, by: Actor) -> Agent | None:
        """Find an agent, if there is such a one and `by` may know of it."""
        return await find_seen(self._store, AGENT, agent_id, Agent, by)

    async def save(
        self,
        agent: Agent,
        by: Actor,
        what: str,
        told: Mapping[str, JsonValue] | None = None,
        *,
        audited: bool = False,
        expect: int | None = None,
    ) -> None:
        body: dict[str, JsonValue] = {"name": agent.name, "state": agent.state, **(told or {})}
        record = Record(AGENT, agent.agent_id, agent.model_dump(mode="json"))
        await self._store.save(record, by, expect=expect, tell=Tell(what, body, audited=audited))
        self.accounts.learn(agent)

    async def erase(self, agent: Agent, by: Actor) -> None:
        """Forget an agent with all that was said to it."""
        for message in await self.messages(agent.agent_id, by):
            # One deed, however much was said.
            await self._store.erase(MESSAGE, message.message_id, SYSTEM)
        await self._store.erase(AGENT, agent.agent_id, by)
        self.accounts.forget(agent.agent_id)
        self.tallies.forget(agent.agent_id)

    # Tokens

    async def save_token(self, token_id: str, kept: KeptToken) -> None:
        record = Record(token.KIND, token_id, kept.model_dump(mode="json"))
        tell = Tell("created", {"name": kept.name}, audited=False)
        await self._store.save(record, SYSTEM, expect=0, tell=tell)

    async def erase_token(self, token_id: str) -> None:
        await self._store.erase(token.KIND, token_id, SYSTEM)

    # Messages

    async def messages(self, agent_id: str, by: Actor) -> list[Message]:
        """All that was said to an agent, in order."""
        records = await every_record(self._store, MESSAGE, by, f"{agent_id}.")
        return [Message.model_validate(record.body) for record in records]

    async def message_behind(self, agent_id: str, message_id: str, by: Actor) -> Message | None:
        """What was said to an agent next; an empty id is before all of it."""
        asked = RecordList(MESSAGE, f"{agent_id}.", limit=1, after=message_id)
        found = (await self._store.query(asked, by)).items
        return Message.model_validate(found[0].body) if found else None

    async def message(self, message_id: str, by: Actor) -> Message:
        """Raises: NotFound, also for what `by` cannot see."""
        found = await find_seen(self._store, MESSAGE, message_id, Message, by)
        if found is not None:
            return found
        raise errors.NotFound(
            f"no message {message_id[:100]}", hint="agent_output shows what was said to an agent"
        )

    async def save_message(
        self,
        message: Message,
        by: Actor,
        what: str,
        *,
        audited: bool = False,
        expect: int | None = None,
    ) -> None:
        record = Record(MESSAGE, message.message_id, message.model_dump(mode="json"))
        told: dict[str, JsonValue] = {"agent_id": message.agent_id, "sender": message.sender}
        tell = Tell(what, told, audited=audited, target=message.agent_id)
        await self._store.save(record, by, expect=expect, tell=tell)
        self.tallies.note(message)
        if message.settled and (awaited := self._awaited.pop(message.message_id, None)):
            awaited.set()

    async def settled(self, message_id: str, by: Actor) -> Message:
        """Wait until a message is settled. Raises: NotFound, also for what `by` cannot see."""
        while True:
            awaited = self._awaited.setdefault(message_id, anyio.Event())
            message = await self.message(message_id, by)
            if message.settled:
                # Whoever wrote it may come to tell of it later, and finds nobody then.
                self._awaited.pop(message_id, None)
                awaited.set()
                return message
            await awaited.wait()

    async def note(self, agent: Agent, by: Actor) -> None:
        """Write down that somebody did something to an agent."""
        await self._store.note(by, agent.agent_id, "ok")
