"""The profile `agent`: what an agent may ask for from its own machine.

Who asks is known by the token that the agent was given, never by what it says. It sees those it
belongs with: its parent, its children, its peers; it talks to them and to nobody else, spawns
children of its own within the limits of a family, and has these work together.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from microvm_orchestrator import __version__, errors
from microvm_orchestrator.conversations.words import QUOTED_MOST, cut
from microvm_orchestrator.mcp_server.answers import answer_result, crash_result, error_result
from microvm_orchestrator.mcp_server.callers import caller_of
from microvm_orchestrator.mcp_server.profiles.agent_tasks import (
    TASK_TOOLS,
    AgentTasks,
    TaskWork,
    Waits,
)
from microvm_orchestrator.mcp_server.profiles.offers import Offer, Offers
from microvm_orchestrator.mcp_server.quiet_server import QuietServer
from microvm_orchestrator.model.agent import Agent, AgentState, Message, MessageState, Said
from microvm_orchestrator.model.coordination import (
    PARTICIPANTS_MOST,
    CoordinationState,
    Dissent,
    Outcome,
    StepPart,
    StepState,
    Vote,
)
from microvm_orchestrator.model.task import TaskError
from microvm_orchestrator.model.values import Flag, Line, Moment, Name
from microvm_orchestrator.service import as_agent, as_worker
from microvm_orchestrator.service.calls import Answer, Request
from microvm_orchestrator.service.coordinations import CoordinationAnswer, Together
from microvm_orchestrator.service.service import parse
from microvm_orchestrator.service.together_as_agent import coordinate_as, coordination_as

if TYPE_CHECKING:
    from mcp.types import (
        CallToolRequestParams,
        CallToolResult,
        ListToolsResult,
        PaginatedRequestParams,
    )
    from pydantic import BaseModel

    from microvm_orchestrator.mcp_server.callers import Context
    from microvm_orchestrator.service.calls import Caller
    from microvm_orchestrator.service.service import Service


class WhoIsThere(Request):
    """Nothing more to say."""


class Say(Request):
    """What to say, and to whom."""

    agent: Name = Field(description="your parent, a child or a peer, by its name")
    text: Said
    wait_s: Waits = Field(
        default=300.0,
        description="how long to wait for the answer; 0 to go on at once, and to ask for it later",
    )

    tell_back: Flag = Field(
        default=False,
        description="do not wait: you hear the answer as a message, once you are done here",
    )


class Reply(Request):
    """What to answer to whoever speaks to you now, though you are not done yet."""

    text: Said


class LookForAnswers(Request):
    """Which answers."""

    since: Moment | None = Field(default=None, description="only those that came after this")


class Told(Answer):
    """What became of something that you said."""

    message_id: str
    to: str
    state: MessageState
    answer: str | None
    error: TaskError | None
    replied_at: Moment | None


class Answers(Answer):
    """What came to what you said."""

    answers: list[Told]


class AskAgain(Request):
    """Something that you said before."""

    message_id: Line
    timeout_s: Waits = 300.0


class SpawnChild(Request):
    """A child to spawn."""

    name: Name
    prompt: Said = Field(description="what it is told first")
    role: Name | None = Field(default=None, description="such as architect or code_reviewer")
    system_prompt: Said | None = Field(default=None, description="who else it is to be")
    works: Flag | None = Field(
        default=None, description="whether it may do tasks as you may; by default as you"
    )
    groups: Annotated[list[Name], Field(max_length=64)] = Field(
        default=[], description="where you do tasks: of these groups only, and of yours by default"
    )
    ephemeral: Flag = Field(
        default=False, description="it ends by itself, once it has done what you told it"
    )
    wait_s: Waits = Field(default=300.0, description="how long to wait for its first answer")


class WorkTogether(Together):
    """A task for children of yours, and how they work together on it."""

    participants: Annotated[list[Name], Field(max_length=PARTICIPANTS_MOST)] = Field(
        default=[], description="children by their names, in their order; all, if none is named"
    )
    wait_s: Waits = Field(default=300.0, description="how long to wait for the end")


class AskForTogether(Request):
    """Something that children of yours work on together."""

    coordination_id: Line
    timeout_s: Waits = 300.0


class Contribution(Answer):
    """What one of them was asked, and answered."""

    agent: str
    part: StepPart
    round: int | None
    state: StepState
    answer: str | None
    vote: Vote | None
    error: TaskError | None


class WorkedTogether(Answer):
    """What came of something that children of yours work on together."""

    coordination_id: str
    state: CoordinationState
    reason: str
    outcome: Outcome | None
    result: str | None
    dissent: list[Dissent]
    steps: list[Contribution]


class Relative(Answer):
    """Somebody you may talk to."""

    name: str
    is_your: Literal["parent", "child", "peer"]
    role: str | None
    state: AgentState


class Relatives(Answer):
    """Who you are, and whom you may talk to."""

    you: str
    others: list[Relative]


_Work = Callable[["AgentTools", "Caller", Agent, Any], Awaitable["BaseModel"]]


def _of_tasks(offer: Offer[TaskWork]) -> Offer[_Work]:
    async def work(tools: AgentTools, caller: Caller, agent: Agent, asked: Any) -> BaseModel:
        return await offer.answer(tools.tasks, caller, agent, asked)

    return Offer(offer.description, offer.request, work)


_FOR_WORKERS = {name: _of_tasks(offer) for name, offer in TASK_TOOLS.items()}


class AgentTools:
    """The tools of one who is an agent."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.tasks = AgentTasks(service)
        self._offers = Offers({**self.OFFERED, **_FOR_WORKERS})
        self._plain = Offers(self.OFFERED)

    async def listed(self, ctx: Context, params: PaginatedRequestParams | None) -> ListToolsResult:
        """List what whoever asks may use."""
        works = None
        with suppress(errors.Denied):
            works = (await as_agent.agent_of(self._service, caller_of(ctx))).works
        return await (self._plain if works is None else self._offers).listed(ctx, params)

    async def call(self, ctx: Context, params: CallToolRequestParams) -> CallToolResult:
        offered = self._offers.find(params.name)
        try:
            caller = caller_of(ctx)
            agent = await as_agent.agent_of(self._service, caller)
            asked = parse(offered.request, params.arguments or {})
            return answer_result(await offered.answer(self, caller, agent, asked))
        except errors.OrchestratorError as error:
            return error_result(error)
        except Exception as error:  # noqa: BLE001 - the converting edge: a bug must not end the connection
            return crash_result(params.name, error)

    async def _others(self, _caller: Caller, agent: Agent, _asked: WhoIsThere) -> Relatives:
        kin = self._service.host.agents.kin(agent)
        return Relatives(
            you=agent.name,
            others=[
                Relative.model_validate(
                    {
                        "name": each.name,
                        "is_your": what,
                        "role": each.character.role,
                        "state": each.state,
                    }
                )
                for what, each in kin
            ],
        )

    async def _say(self, caller: Caller, agent: Agent, asked: Say) -> Told:
        sent = await as_agent.say_as(
            self._service, caller, agent, asked.agent, asked.text, tell_back=asked.tell_back
        )
        wait_s = 0.0 if asked.tell_back else asked.wait_s
        return await self._told(caller, agent, sent.message_id, wait_s)

    async def _reply(self, caller: Caller, agent: Agent, asked: Reply) -> Told:
        message = await as_agent.reply_as(self._service, caller, agent, asked.text)
        return _told(message, agent.name)

    async def _inbox(self, caller: Caller, agent: Agent, asked: LookForAnswers) -> Answers:
        found = await as_agent.inbox_of(self._service, caller, agent, asked.since)
        agents = self._service.host.agents
        return Answers(answers=[_told(each, await agents.name_of(each.agent_id)) for each in found])

    async def _ask_again(self, caller: Caller, agent: Agent, asked: AskAgain) -> Told:
        return await self._told(caller, agent, asked.message_id, asked.timeout_s)

    async def _spawn(self, caller: Caller, agent: Agent, asked: SpawnChild) -> Told:
        sent = await as_agent.spawn_as(
            self._service,
            caller,
            agent,
            asked.name,
            asked.prompt,
            role=asked.role,
            system_prompt=asked.system_prompt,
            ephemeral=asked.ephemeral,
            works=await as_worker.works_for(
                self._service, caller, agent, works=asked.works, groups=asked.groups
            ),
        )
        return await self._told(caller, agent, sent.message_id, asked.wait_s)

    async def _told(self, caller: Caller, agent: Agent, message_id: str, wait_s: float) -> Told:
        message: Message = await as_agent.wait_as(self._service, caller, agent, message_id, wait_s)
        to = await self._service.host.agents.name_of(message.agent_id)
        return _told(message, to)

    async def _coordinate(
        self, caller: Caller, agent: Agent, asked: WorkTogether
    ) -> WorkedTogether:
        names, wait_s = asked.participants, asked.wait_s
        return _worked(await coordinate_as(self._service, caller, agent, asked, names, wait_s))

    async def _coordination(
        self, caller: Caller, agent: Agent, asked: AskForTogether
    ) -> WorkedTogether:
        found = asked.coordination_id
        return _worked(await coordination_as(self._service, caller, agent, found, asked.timeout_s))

    OFFERED: ClassVar[dict[str, Offer[_Work]]] = {
        "others": Offer("See who you are, and whom you may talk to.", WhoIsThere, _others),
        "say": Offer("Say something to one of them, and wait for the answer.", Say, _say),
        "reply": Offer(
            "Answer whoever speaks to you now before you are done; else your last words answer.",
            Reply,
            _reply,
        ),
        "inbox": Offer("See the answers that came to what you said.", LookForAnswers, _inbox),
        "answer": Offer("Wait for the answer to something you said.", AskAgain, _ask_again),
        "spawn": Offer(
            "Spawn an agent of your own, in a machine of its own; it ends with you at the latest.",
            SpawnChild,
            _spawn,
        ),
        "coordinate": Offer(
            "Have children of yours work on one task: one after the other, in parallel, or by "
            "votes on a proposal of yours. Their answers are yours to sum up.",
            WorkTogether,
            _coordinate,
        ),
        "coordination": Offer(
            "Wait for what your children work on together.", AskForTogether, _coordination
        ),
    }


def _worked(told: CoordinationAnswer) -> WorkedTogether:
    here = told.coordination
    most = QUOTED_MOST // max(1, len(told.steps))
    return WorkedTogether(
        coordination_id=here.coordination_id,
        state=here.state,
        reason=here.reason,
        outcome=here.outcome,
        result=here.result,
        dissent=here.dissent,
        steps=[
            Contribution(
                agent=step.agent,
                part=step.part,
                round=step.round,
                state=step.state,
                answer=step.answer and cut(step.answer, most),
                vote=step.vote,
                error=step.error,
            )
            for step in told.steps
        ],
    )


def _told(message: Message, to: str) -> Told:
    return Told(
        message_id=message.message_id,
        to=to,
        state=message.state,
        answer=message.answer,
        error=message.error,
        replied_at=message.replied_at,
    )


def agent(service: Service) -> QuietServer:
    tools = AgentTools(service)
    return QuietServer(
        "microvm-orchestrator",
        version=__version__,
        title="Other agents",
        on_list_tools=tools.listed,
        on_call_tool=tools.call,
    )
