"""Agents that answer by a script, and what coordinates them, for tests without machines.

`contract/test_talk.py` holds them to what agents with machines do.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, cast

import anyio

from faulting import Doom
from microvm_orchestrator import errors
from microvm_orchestrator.conversations.coordinations import OPERATION_KIND, Coordinations
from microvm_orchestrator.conversations.room import QUEUE_MOST, TEXT_MOST
from microvm_orchestrator.conversations.waits import Waits
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.agent import Message, MessageState
from microvm_orchestrator.model.coordination import (
    Coordination,
    CoordinationKind,
    CoordinationState,
    Participant,
    Rules,
)
from microvm_orchestrator.model.names import new_id
from microvm_orchestrator.model.records import Actor
from microvm_orchestrator.model.task import TaskError
from microvm_orchestrator.model.values import moment
from microvm_orchestrator.operations import Operations

if TYPE_CHECKING:
    from microvm_orchestrator.store.base import Store

ALICE = Actor(name="alice", role=Role.OPERATOR, via="test", action="team_coordinate")
PATIENCE_S = 20.0

# What an agent answers to a text; an error is why it gives no answer, None is that it never does.
Script = Callable[[str], str | errors.OrchestratorError | None]


class Table:
    """Agents at a table: they live on whatever becomes of a daemon, and hear each message once."""

    def __init__(self, scripts: Mapping[str, Script]) -> None:
        self.scripts = dict(scripts)
        # All that was said, in order: to whom, and what.
        self.said: list[tuple[str, str]] = []
        self.messages: dict[str, Message] = {}
        # Somebody was told nothing, for too much waits for it.
        self.refused = anyio.Event()
        # Who has ended.
        self.over: set[str] = set()
        # Nobody answers before so much was said.
        self.silent_until = 0
        self._more = anyio.Event()

    def heard_by(self, name: str) -> list[str]:
        return [text for to, text in self.said if to == name]

    async def send(
        self, reference: str, text: str, by: Actor, *, message_id: str | None = None
    ) -> Message:
        if message_id is not None and message_id in self.messages:
            return self.messages[message_id]
        name = reference.removeprefix("a_")
        if name in self.over:
            raise errors.StateForbids(f"agent {name} is ended")
        if name not in self.scripts:
            raise errors.NotFound(f"no agent {reference}")
        to_it = [each for each in self.messages.values() if each.agent_id == reference]
        texts = [each.text for each in to_it if not each.settled]
        if len(texts) >= QUEUE_MOST or sum(map(len, texts)) + len(text) > TEXT_MOST:
            self.refused.set()
            raise errors.Unavailable(f"too much waits for {name}")
        message = Message(
            message_id=message_id or f"{reference}.{new_id('msg')}",
            agent_id=reference,
            owner=by.name,
            sender=by.name,
            text=text,
            state=MessageState.QUEUED,
            created_at=moment(0.0),
        )
        self.messages[message.message_id] = message
        self.said.append((name, text))
        self._tell()
        return message

    async def settled(self, message_id: str, by: Actor) -> Message:
        del by
        if message_id not in self.messages:
            raise errors.NotFound(f"no message {message_id}")
        while len(self.said) < self.silent_until:
            await self._more.wait()
        message = self.messages[message_id]
        if not message.settled:
            name = message.agent_id.removeprefix("a_")
            match self.scripts[name](message.text):
                case str(answer):
                    return self._put(message, MessageState.ANSWERED, answer=answer)
                case None:
                    while not self.messages[message_id].settled:
                        await self._more.wait()
                case error:
                    return self._put(message, MessageState.FAILED, error=TaskError.of(error))
        return self.messages[message_id]

    async def withdraw(self, message_id: str, by: Actor) -> None:
        del by
        if message_id not in self.messages:
            raise errors.NotFound(f"no message {message_id}")
        if not self.messages[message_id].settled:
            self._put(self.messages[message_id], MessageState.CANCELLED)

    def end(self, name: str) -> None:
        """Let somebody be no more; what waits is never heard."""
        self.over.add(name)
        for message in list(self.messages.values()):
            if message.agent_id == f"a_{name}" and not message.settled:
                self._put(message, MessageState.CANCELLED)

    def _tell(self) -> None:
        self._more.set()
        self._more = anyio.Event()

    def _put(self, message: Message, state: MessageState, **known: object) -> Message:
        message = message.model_copy(update={"state": state, **known})
        self.messages[message.message_id] = message
        self._tell()
        return message


def participant(name: str) -> Participant:
    return Participant(agent_id=f"a_{name}", name=name)


def coordination(
    kind: CoordinationKind,
    *names: str,
    needed: int = 2,
    rounds: int = 3,
    proposal: str | None = None,
    ask_coordinator: bool = True,
    step_timeout_s: float = 3600.0,
) -> Coordination:
    return Coordination(
        coordination_id=new_id("co"),
        owner=ALICE.name,
        coordinator=participant("lead"),
        participants=[participant(name) for name in names],
        task="Make a clock.",
        rules=Rules(
            kind=kind,
            proposal=proposal,
            rounds=rounds,
            needed=needed,
            ask_coordinator=ask_coordinator,
            step_timeout_s=step_timeout_s,
        ),
        state=CoordinationState.RUNNING,
        begun_by=ALICE.name,
        created_at=moment(0.0),
    )


class Room:
    """A daemon as far as it coordinates."""

    def __init__(self, store: Store, coordinations: Coordinations, operations: Operations) -> None:
        self.store = store
        self.coordinations = coordinations
        self.operations = operations

    async def ended(self, one: Coordination) -> Coordination:
        """Wait for the end of a coordination and of its operation."""
        coordination_id = one.coordination_id
        with anyio.fail_after(PATIENCE_S):
            async with self.store.hints() as changes:
                while (
                    not (now := await self.coordinations.get(coordination_id, ALICE)).ended
                    or self.operations.at_work(OPERATION_KIND, coordination_id) is not None
                ):
                    await anext(changes)
        return now


@asynccontextmanager
async def room(store: Store, table: Table, doom: Doom | None = None) -> AsyncGenerator[Room]:
    """Be a daemon until the block ends, or until doom comes."""
    kept = store if doom is None else cast("Store", doom.over(store))
    talk = table if doom is None else cast("Table", doom.over(table))
    operations = Operations(kept, lasting={OPERATION_KIND})
    coordinations = Coordinations(kept, talk, operations, Waits())
    async with operations.running(), coordinations.running():
        yield Room(store, coordinations, operations)
