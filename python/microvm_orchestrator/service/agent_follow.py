"""What an agent says while it says it: its program's words, as they come, with their messages.

What is kept of a turn's output is read from where a reader was, so any number may follow, come
back after a restart, and miss nothing. Above are the front ends; below, the agents' messages, the
files with their output, and the drivers that understand it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import anyio
import anyio.to_thread
from pydantic import Field

from microvm_orchestrator import errors
from microvm_orchestrator.agents.drivers import find_driver
from microvm_orchestrator.agents.drivers.base import AgentTask, Said, ToolUsed
from microvm_orchestrator.lifecycle import output
from microvm_orchestrator.machine.shell import Channel
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.agent import MessageState
from microvm_orchestrator.model.task import TaskError
from microvm_orchestrator.model.values import Moment
from microvm_orchestrator.service.agents import NamedAgent
from microvm_orchestrator.service.calls import Answer, Call, Caller, Effect, declare
from microvm_orchestrator.service.service import Service, actor
from microvm_orchestrator.service.waiting import PROGRESS_EVERY_S, Wait
from microvm_orchestrator.store.base import Match

if TYPE_CHECKING:
    from pathlib import Path

    from microvm_orchestrator.agents.drivers.base import Event, Reader
    from microvm_orchestrator.model.agent import Agent, Message
    from microvm_orchestrator.model.records import Actor

# A file that grows tells nobody.
_LOOK_S = 0.2
# Of one look; a line that is longer is passed by.
_CHUNK = 1 << 20
_BEGIN = "begin"
_OVER = "over"
_CURSOR = re.compile(r"(?P<message>[\w.-]{1,100})@(?P<offset>\d{1,15}|over)")


class FollowAgent(NamedAgent):
    """From where on to hear an agent."""

    cursor: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        default=None,
        description="`cursor` of the answer before; `begin` is all that is kept, and without it "
        "one begins with the turn that it is in",
    )
    timeout_s: Wait = Field(default=0.0, description="how long to wait for more, if there is none")


class HeardPiece(Answer):
    """Something that was said to an agent, or that it said, did or answered."""

    kind: Literal["message", "says", "does", "answer"]
    message_id: str
    text: str
    sender: str | None = Field(default=None, description="of a message: who said it")
    state: MessageState | None = Field(default=None, description="of an answer")
    error: TaskError | None = Field(default=None, description="why there is no answer")
    at: Moment | None = Field(default=None, description="of messages and answers")


class Followed(Answer):
    """Some of what an agent heard and said, in order."""

    agent_id: str
    pieces: list[HeardPiece]
    cursor: str = Field(description="where to go on")
    ended: bool = Field(description="it is over: nothing more will come")


@dataclass(frozen=True, slots=True)
class _Place:
    """Up to where somebody has heard: a message, and how much of its output."""

    message_id: str
    # None behind its answer.
    offset: int | None

    def written(self) -> str:
        if not self.message_id:
            return _BEGIN
        return f"{self.message_id}@{_OVER if self.offset is None else self.offset}"


@declare(
    "agent_follow",
    "GET /v1/agents/{agent}/follow",
    role=Role.VIEWER,
    effect=Effect.READ,
    waits=True,
)
async def agent_follow(service: Service, caller: Caller, request: FollowAgent) -> Followed:
    """Hear what an agent is told, says, does and answers, as it happens; or wait for more.

    To follow it, ask again with `cursor` and a `timeout_s`. What it says is its program's own word.
    """
    by = actor(caller, "agent_follow")
    agents = service.host.agents
    agent = await agents.get(request.agent, by)
    place = await _begun(service, agent, request.cursor, by)
    patience = anyio.current_time() + request.timeout_s
    with service.journal.listen(Match(subjects=(agent.agent_id,))) as listener:
        while True:
            agent = await agents.get(agent.agent_id, by)
            pieces, place = await _look(service, agent, place, by)
            left_s = patience - anyio.current_time()
            over = agent.over and place.offset is None
            if pieces or over or left_s <= 0:
                break
            service.journal.refuse_when_stopping()
            if place.offset is not None:
                await anyio.sleep(min(left_s, _LOOK_S))
            else:
                with anyio.move_on_after(min(left_s, PROGRESS_EVERY_S)):
                    await listener.wait()
    return Followed(
        agent_id=agent.agent_id,
        pieces=pieces,
        cursor=place.written(),
        ended=over and not pieces,
    )


async def _begun(service: Service, agent: Agent, cursor: str | None, by: Actor) -> _Place:
    """Raises: InvalidInput, NotFound."""
    if cursor == _BEGIN:
        return _Place("", None)
    if cursor is None:
        said = await service.host.agents.messages(agent.agent_id, by)
        # What is settled, and nothing behind what is not.
        before = next((at for at, each in enumerate(said) if not each.settled), len(said))
        return _Place(said[before - 1].message_id if before else "", None)
    found = _CURSOR.fullmatch(cursor)
    if found is None or not found["message"].startswith(f"{agent.agent_id}."):
        raise errors.InvalidInput("this is no cursor of agent_follow for this agent")
    # Its id is part of a path from here on.
    message = await service.host.agents.message(found["message"], by)
    return _Place(message.message_id, None if found["offset"] == _OVER else int(found["offset"]))


async def _look(
    service: Service, agent: Agent, place: _Place, by: Actor
) -> tuple[list[HeardPiece], _Place]:
    """Give what there is behind a place, of one message, and the place behind that."""
    agents = service.host.agents
    pieces: list[HeardPiece] = []
    if place.offset is None:
        message = await agents.message_behind(agent, place.message_id, by)
        if message is None or message.state is MessageState.QUEUED:
            return [], place
        pieces.append(_message(message))
        place = _Place(message.message_id, 0)
    else:
        message = await agents.message(place.message_id, by)
    path, offset = agents.output(message), place.offset or 0
    reader = find_driver(agent.character.driver).reader(AgentTask(message.text))
    events, offset, more = await anyio.to_thread.run_sync(
        _read, path, offset, reader, message.settled
    )
    pieces += [piece for event in events if (piece := _piece(message, event)) is not None]
    if not message.settled or more:
        return pieces, _Place(message.message_id, offset)
    return [*pieces, _answer(message)], _Place(message.message_id, None)


def _read(
    path: Path,
    offset: int,
    reader: Reader,
    settled: bool,  # noqa: FBT001 - run_sync passes positions only
) -> tuple[list[Event], int, bool]:
    """Give what whole lines say, where to go on, and whether there is more already."""
    kept: list[output.Piece] = list(output.read(path, offset, _CHUNK))
    if not kept:
        return [], offset, False
    more = sum(len(piece.data) for piece in kept) >= _CHUNK
    ends = [
        at for at, piece in enumerate(kept, 1) if piece.channel is Channel.STDOUT and _ended(piece)
    ]
    # Nothing of ours writes so long a line, so it is passed by; and nobody ends the last one.
    whole = len(kept) if (settled and not more) or (more and not ends) else max(ends, default=0)
    if not whole:
        return [], offset, more
    events: list[Event] = []
    for piece in kept[:whole]:
        if piece.channel is Channel.STDOUT:
            events += reader.feed(piece.data)
    return events, kept[whole - 1].next, more


def _ended(piece: output.Piece) -> bool:
    return piece.data.endswith(b"\n")


def _message(message: Message) -> HeardPiece:
    return HeardPiece(
        kind="message",
        message_id=message.message_id,
        text=message.text,
        sender=message.sender_agent or message.sender,
        at=message.began_at or message.created_at,
    )


def _answer(message: Message) -> HeardPiece:
    return HeardPiece(
        kind="answer",
        message_id=message.message_id,
        text=message.answer or "",
        state=message.state,
        error=message.error,
        at=message.ended_at,
    )


def _piece(message: Message, event: Event) -> HeardPiece | None:
    match event:
        case Said(text):
            return HeardPiece(kind="says", message_id=message.message_id, text=text)
        case ToolUsed(name, brief):
            told = f"{name}: {brief}" if brief else name
            return HeardPiece(kind="does", message_id=message.message_id, text=told)
        case _:
            return None


CALLS: tuple[Call, ...] = (agent_follow,)
