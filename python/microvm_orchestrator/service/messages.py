"""What is said to agents, and what they answer.

Above are the front ends; below, the agents of this host, who hear one message after the other.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Annotated

from pydantic import Field

from microvm_orchestrator import errors
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.agent import MESSAGE, Message, Said
from microvm_orchestrator.model.records import Actor, Record
from microvm_orchestrator.model.task import TaskError
from microvm_orchestrator.model.values import Flag, Moment
from microvm_orchestrator.service.agents import AgentRef, NamedAgent
from microvm_orchestrator.service.calls import Answer, Call, Caller, Effect, Request, declare
from microvm_orchestrator.service.operations import USUAL_WAIT_S
from microvm_orchestrator.service.page import ListRequest, PageOf
from microvm_orchestrator.service.records import page_of
from microvm_orchestrator.service.service import Service, actor
from microvm_orchestrator.service.waiting import Wait, until
from microvm_orchestrator.store.base import Match
from microvm_orchestrator.store.every import each_record
from microvm_orchestrator.together import together

MessageWait = Annotated[
    Wait,
    Field(
        description="how long to wait for the answer before the message is given as it stands; it "
        "is heard all the same, and `agent_wait` waits on"
    ),
]


MessageId = Annotated[str, Field(min_length=1, max_length=100)]


class SendToMany(Request):
    """Something to say to several agents at once."""

    agents: Annotated[list[AgentRef], Field(max_length=64)] = Field(
        default=[], description="names or ids"
    )
    children_of: AgentRef | None = Field(
        default=None, description="instead: all who belong to this one and live"
    )
    text: Said
    wait_s: MessageWait = USUAL_WAIT_S


class SentTo(Answer):
    """What became of a message to one of several."""

    agent: str
    message: Message | None
    error: TaskError | None = Field(description="why nothing was said to it")


class SentToMany(Answer):
    """What became of a message to several agents."""

    items: list[SentTo]


class SendToAgent(NamedAgent):
    """Something to say to an agent."""

    text: Said
    wait_s: MessageWait = USUAL_WAIT_S


class WaitForMessage(Request):
    """A message, and how long to wait for the answer."""

    message_id: MessageId
    timeout_s: Wait = USUAL_WAIT_S


class AgentOutputRequest(ListRequest, NamedAgent):
    """Which part of what was said to an agent."""


class InboxRequest(ListRequest):
    """Which answers."""

    agent: AgentRef | None = Field(
        default=None, description="to what this agent said; by default to what you said yourself"
    )
    since: Moment | None = Field(default=None, description="only those that came after this")


class ReplyToMessage(Request):
    """An answer to give in an agent's place."""

    message_id: MessageId
    text: Said


class Interrupted(Answer):
    """Whether there was something to break off."""

    agent_id: str
    interrupted: Flag


@declare("agent_send", "POST /v1/agents/{agent}/messages", role=Role.OPERATOR, waits=True)
async def agent_send(service: Service, caller: Caller, request: SendToAgent) -> Message:
    """Say something to an agent, and wait a while for its answer.

    It hears messages one at a time, in the order in which they were sent. One that was suspended
    is started for it, and knows what was said before.
    """
    by = actor(caller, "agent_send")
    message = await service.host.agents.send(request.agent, request.text, by)
    return await awaited(service, caller, by, message.message_id, request.wait_s)


@declare("agent_send_many", "POST /v1/agents/messages", role=Role.OPERATOR, waits=True)
async def agent_send_many(service: Service, caller: Caller, request: SendToMany) -> SentToMany:
    """Say the same to several agents at once, and wait a while for all answers.

    One that cannot be spoken to keeps nobody else from it, and says why.
    """
    by = actor(caller, "agent_send_many")
    agents = service.host.agents
    names = request.agents
    if request.children_of is not None:
        if names:
            raise errors.InvalidInput("`agents` and `children_of` are one or the other")
        names = [each.agent_id for each in await agents.children(request.children_of, by)]
    if not names:
        raise errors.InvalidInput("there is nobody to say it to")

    async def say(name: str) -> SentTo:
        try:
            sent = await agents.send(name, request.text, by)
            message = await awaited(service, caller, by, sent.message_id, request.wait_s)
        except errors.OrchestratorError as error:
            return SentTo(agent=name, message=None, error=TaskError.of(error))
        return SentTo(agent=name, message=message, error=None)

    told = await together([partial(say, name) for name in names], at_once=len(names))
    return SentToMany(items=told)


@declare(
    "agent_wait",
    "GET /v1/agents/messages/{message_id}/wait",
    role=Role.VIEWER,
    effect=Effect.READ,
    waits=True,
)
async def agent_wait(service: Service, caller: Caller, request: WaitForMessage) -> Message:
    """Wait until a message is answered, or the time is up; then look at it."""
    by = actor(caller, "agent_wait")
    return await awaited(service, caller, by, request.message_id, request.timeout_s)


async def awaited(
    service: Service, caller: Caller, by: Actor, message_id: str, timeout_s: float
) -> Message:
    """Wait a while for the answer to a message, and give it as it stands then."""
    agents = service.host.agents
    return await until(
        service,
        caller,
        Match(subjects=(message_id,)),
        timeout_s,
        look=lambda: agents.message(message_id, by),
        over=lambda message: message.replied,
        said=lambda message: agents.saying(message.agent_id) or message.state,
    )


@declare("agent_output", "GET /v1/agents/{agent}/messages", role=Role.VIEWER, effect=Effect.READ)
async def agent_output(
    service: Service, caller: Caller, request: AgentOutputRequest
) -> PageOf[Message]:
    """List what was said to an agent and what it answered, oldest first."""
    by = actor(caller, "agent_output")
    agent = await service.host.agents.get(request.agent, by)

    async def shown(record: Record) -> Message | None:
        return Message.model_validate(record.body)

    prefix = f"{agent.agent_id}."
    items, cursor = await page_of(service.store, MESSAGE, request, by, shown, prefix)
    return PageOf[Message](items=items, next_cursor=cursor)


@declare("agent_inbox", "GET /v1/agent-inbox", role=Role.VIEWER, effect=Effect.READ)
async def agent_inbox(service: Service, caller: Caller, request: InboxRequest) -> PageOf[Message]:
    """List the answers that came to what you said to agents, or to what an agent said to others.

    Nothing is taken out: with `since`, of the answers that you saw last, only later ones are given.
    """
    by = actor(caller, "agent_inbox")
    agents = service.host.agents
    sender = by.name if request.agent is None else (await agents.get(request.agent, by)).agent_id

    async def shown(record: Record) -> Message | None:
        return _answer_to({sender}, record, by, request.since)

    items, cursor = await page_of(service.store, MESSAGE, request, by, shown)
    return PageOf[Message](items=items, next_cursor=cursor)


async def came_to(
    service: Service, by: Actor, agent: str, since: Moment | None, told: Collection[str] = ()
) -> list[Message]:
    """All answers that came to what an agent said, in the order in which they came.

    Beside them those to what whoever asks has said to some, which are named by their ids.
    """
    its = {(await service.host.agents.get(agent, by)).agent_id}
    ours = {*its, by.name}
    found: list[Message] = []
    async for record in each_record(service.store, MESSAGE, by):
        senders = ours if record.body["agent_id"] in told else its
        if (answer := _answer_to(senders, record, by, since)) is not None:
            found.append(answer)
    return sorted(found, key=lambda each: each.replied_at or each.created_at)


def _answer_to(
    senders: Collection[str], record: Record, by: Actor, since: Moment | None
) -> Message | None:
    """Read a message that is an answer to one of some, and came after this."""
    if record.body["sender"] not in senders:  # of most, and they are many
        return None
    message = Message.model_validate(record.body)
    fits = message.replied and by.sees_of(message.owner)
    return message if fits and _came_after(message, since) else None


def _came_after(message: Message, since: Moment | None) -> bool:
    return since is None or message.replied_at is None or message.replied_at > since


@declare("agent_reply", "POST /v1/agents/messages/{message_id}/reply", role=Role.OPERATOR)
async def agent_reply(service: Service, caller: Caller, request: ReplyToMessage) -> Message:
    """Answer a message in its agent's place: whoever said it hears that, and waits no longer.

    One that waits to be heard is heard no more; a turn in which it is heard goes on.
    """
    by = actor(caller, "agent_reply")
    return await service.host.agents.reply(request.message_id, request.text, by)


@declare("agent_interrupt", "POST /v1/agents/{agent}/interrupt", role=Role.OPERATOR)
async def agent_interrupt(service: Service, caller: Caller, request: NamedAgent) -> Interrupted:
    """Break off the turn that an agent is in; it knows what was said, and hears what waits."""
    agents = service.host.agents
    by = actor(caller, "agent_interrupt")
    agent = await agents.get(request.agent, by)
    return Interrupted(
        agent_id=agent.agent_id, interrupted=await agents.interrupt(agent.agent_id, by)
    )


CALLS: tuple[Call, ...] = (
    agent_send,
    agent_send_many,
    agent_wait,
    agent_output,
    agent_inbox,
    agent_reply,
    agent_interrupt,
)
