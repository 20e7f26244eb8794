"""Agents: spawned, talked to, interrupted, suspended and ended.

Above are the front ends; below, the agents of this host, who live whoever leaves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, JsonValue

from microvm_orchestrator import errors
from microvm_orchestrator.conversations.spawn import Spawn, begin
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.agent import (
    AGENT,
    Agent,
    AgentState,
    Character,
    Home,
    Said,
)
from microvm_orchestrator.model.agent_budget import AgentBudget, Taken
from microvm_orchestrator.model.agent_claims import Claims, Works
from microvm_orchestrator.model.agent_work import Assignment
from microvm_orchestrator.model.operation import Operation
from microvm_orchestrator.model.supervision import Supervise
from microvm_orchestrator.model.values import Flag, Name
from microvm_orchestrator.service.calls import Answer, Call, Caller, Effect, Request, declare
from microvm_orchestrator.service.operations import USUAL_WAIT_S, WaitS, long_call
from microvm_orchestrator.service.page import ListRequest, PageOf
from microvm_orchestrator.service.records import page_of
from microvm_orchestrator.service.roles import find_role
from microvm_orchestrator.service.service import Service, actor

if TYPE_CHECKING:
    from microvm_orchestrator.model.records import Actor, Record
    from microvm_orchestrator.operations import Report

AgentRef = Annotated[str, Field(min_length=1, max_length=100, description="its name or id")]


class NamedAgent(Request):
    """An agent."""

    agent: AgentRef


SuperviseField = Annotated[
    Supervise | None,
    Field(
        description="what is done if it does not get on: nothing, events, or help as well; by "
        "default as this host has it"
    ),
]


class SpawnAgent(Character, Home, Assignment, Claims, AgentBudget, Request):
    """An agent to spawn, in a machine of its own."""

    parent: AgentRef | None = Field(
        default=None, description="the agent that it belongs to, and ends with"
    )
    name: Name | None = Field(
        default=None, description="what it is called; by default as its id, no two at a time"
    )
    prompt: Said | None = Field(default=None, description="what it is told first")
    ephemeral: Flag = Field(
        default=False,
        description="end it by itself, with its machine, once it has done what it was told: when "
        "it has heard something, nothing more waits for it and nobody belongs to it; else it lives "
        "until it is ended",
    )
    supervise: SuperviseField = None
    wait_s: WaitS = USUAL_WAIT_S


class EndAgent(NamedAgent):
    """An agent to end, and what may be ended with it."""

    force: Flag = Field(default=False, description="also in the middle of a turn")
    cascade: Flag = Field(default=False, description="with all that belong to it")
    collect: Flag = Field(
        default=True,
        description="bring home first what they did on their repositories; where that cannot be, "
        "they end by `force` alone",
    )


class ListOfAgents(Answer):
    """Some agents."""

    agents: list[Agent]


class PlaceInTree(Answer):
    """An agent, and how deep it stands."""

    agent_id: str
    name: str
    state: AgentState
    parent: str | None
    depth: int


class AgentTree(Answer):
    """All agents, each behind its parent."""

    agents: list[PlaceInTree]


class WaitingAgent(NamedAgent):
    """An agent, and how long to wait until it stands so."""

    wait_s: WaitS = USUAL_WAIT_S


class AgentListRequest(ListRequest):
    """Which agents."""

    state: AgentState | None = None


class AgentAnswer(Answer):
    """An agent, and what it does at this moment."""

    agent: Agent
    saying: str = Field(description="what it said last in the turn that it is in")
    taken: Taken = Field(description="what it has taken by now")
    tree_taken: Taken = Field(
        description="what it and all below it have taken, those who are gone too"
    )


class BranchAgent(NamedAgent):
    """An agent to copy."""

    name: Name | None = Field(default=None, description="what the copy is called; else its id")
    wait_s: WaitS = USUAL_WAIT_S


class AgentLimits(AgentBudget, NamedAgent):
    """An agent, and all that it may take from now on, with what it has taken before."""


@declare("agent_spawn", "POST /v1/agents", role=Role.OPERATOR, waits=True)
async def agent_spawn(service: Service, caller: Caller, request: SpawnAgent) -> Operation:
    """Spawn an agent: a program with a model, in a machine of its own, that can be talked to.

    It lives until `agent_end`, whoever leaves and whatever becomes of the daemon; one that is
    `ephemeral` ends by itself as well. The operation's result is the agent as soon as it can be
    talked to; its target is the agent's id at once.
    """
    agent = await spawned(service, request, actor(caller, "agent_spawn"))

    async def work(report: Report) -> JsonValue:
        await report(None, "makes its machine ready")
        return (await service.host.agents.up(agent.agent_id)).model_dump(mode="json")

    return await long_call(service, caller, "agent_spawn", agent.agent_id, request.wait_s, work)


async def spawned(
    service: Service, request: SpawnAgent, by: Actor, *, title: str | None = None
) -> Agent:
    """Begin to spawn an agent as somebody, and tell it its first message. Raises: as `Agents`."""
    agents = service.host.agents
    role = None if request.role is None else await find_role(service, request.role)
    character = Character.model_validate(request.model_dump(include=set(Character.model_fields)))
    wish = Spawn(
        name=request.name,
        parent=request.parent,
        character=character.model_copy(update={"role": role and role.name}),
        home=Home.model_validate(request.model_dump(include=set(Home.model_fields))),
        budget=_budget(request),
        role_prompt=role and role.prompt,
        title=title,
        assignment=assignment_of(request),
        works=works_of(request, by),
        supervise=request.supervise,
        ephemeral=request.ephemeral,
    )
    if request.prompt is None:
        return await agents.spawn(wish, by)
    agent, _ = await begin(agents, wish, by, request.prompt)
    return agent


def assignment_of(request: Assignment) -> Assignment | None:
    """Take out of a request where an agent is to work. Raises: InvalidInput."""
    given = request.model_dump(include=set(Assignment.model_fields))
    if request.repo is None and any(each is not None for each in given.values()):
        raise errors.InvalidInput(
            "`base`, `into`, `branch`, `merge`, `check` and `rest` speak of a `repo`"
        )
    return None if request.repo is None else Assignment.model_validate(given)


def works_of(request: Claims, by: Actor) -> Works | None:
    """Take out of a request which tasks an agent may do: of those that somebody sees.

    Raises: InvalidInput.
    """
    if not request.works:
        if request.groups or request.capabilities:
            raise errors.InvalidInput("`groups` and `capabilities` are for agents with `works`")
        return None
    return Works(groups=request.groups, capabilities=request.capabilities, scope=by.scope)


@declare("agent_get", "GET /v1/agents/{agent}", role=Role.VIEWER, effect=Effect.READ)
async def agent_get(service: Service, caller: Caller, request: NamedAgent) -> AgentAnswer:
    """Look at an agent: how it stands, what it used, and what it says at this moment."""
    agents = service.host.agents
    agent = await agents.get(request.agent, actor(caller, "agent_get"))
    return AgentAnswer(
        agent=agent,
        saying=agents.saying(agent.agent_id),
        taken=agents.accounts.taken(agent.agent_id),
        tree_taken=agents.accounts.of_tree(agent.agent_id),
    )


@declare("agent_list", "GET /v1/agents", role=Role.VIEWER, effect=Effect.READ)
async def agent_list(service: Service, caller: Caller, request: AgentListRequest) -> PageOf[Agent]:
    """List agents, oldest first: yours, or all if you see everything."""
    by = actor(caller, "agent_list")

    async def shown(record: Record) -> Agent | None:
        agent = Agent.model_validate(record.body)
        fits = by.sees_of(agent.owner) and request.state in {None, agent.state}
        return agent if fits else None

    items, cursor = await page_of(service.store, AGENT, request, by, shown)
    return PageOf[Agent](items=items, next_cursor=cursor)


@declare("agent_tree", "GET /v1/agent-tree", role=Role.VIEWER, effect=Effect.READ)
async def agent_tree(service: Service, caller: Caller, request: Request) -> AgentTree:
    """Show who belongs to whom, of all agents that live: each behind its parent."""
    del request
    told = service.host.agents.tree(actor(caller, "agent_tree"))
    return AgentTree(
        agents=[
            PlaceInTree(
                agent_id=agent.agent_id,
                name=agent.name,
                state=agent.state,
                parent=agent.parent,
                depth=depth,
            )
            for agent, depth in told
        ]
    )


@declare("agent_children", "GET /v1/agents/{agent}/children", role=Role.VIEWER, effect=Effect.READ)
async def agent_children(service: Service, caller: Caller, request: NamedAgent) -> ListOfAgents:
    """List the agents that belong to one and live."""
    by = actor(caller, "agent_children")
    return ListOfAgents(agents=await service.host.agents.children(request.agent, by))


@declare("agent_peers", "GET /v1/agents/{agent}/peers", role=Role.VIEWER, effect=Effect.READ)
async def agent_peers(service: Service, caller: Caller, request: NamedAgent) -> ListOfAgents:
    """List the agents that live and have the same parent as one."""
    by = actor(caller, "agent_peers")
    return ListOfAgents(agents=await service.host.agents.peers(request.agent, by))


@declare("agent_branch", "POST /v1/agents/{agent}/branch", role=Role.OPERATOR, waits=True)
async def agent_branch(service: Service, caller: Caller, request: BranchAgent) -> Operation:
    """Start a copy of an agent, with its machine and all that was said; both go their own ways.

    It is copied between two turns. The operation's result is the copy.
    """
    agents = service.host.agents
    by = actor(caller, "agent_branch")
    agent = await agents.get(request.agent, by)

    async def work(report: Report) -> JsonValue:
        await report(None, "waits until it is idle, and saves its machine")
        copy = await agents.branch(agent.agent_id, request.name, by)
        await report(0.5, "starts the copy")
        return (await agents.up(copy.agent_id)).model_dump(mode="json")

    return await long_call(service, caller, "agent_branch", agent.agent_id, request.wait_s, work)


@declare("agent_budget", "POST /v1/agents/{agent}/budget", role=Role.OPERATOR)
async def agent_budget(service: Service, caller: Caller, request: AgentLimits) -> Agent:
    """Give an agent another budget; one that had used up its own hears what waits for it.

    What is left out has no limit. A limit of the tree holds over the agent and all below it.
    """
    by = actor(caller, "agent_budget")
    return await service.host.agents.allow(request.agent, _budget(request), by)


def _budget(request: AgentBudget) -> AgentBudget:
    return AgentBudget.model_validate(request.model_dump(include=set(AgentBudget.model_fields)))


@declare("agent_suspend", "POST /v1/agents/{agent}/suspend", role=Role.OPERATOR, waits=True)
async def agent_suspend(service: Service, caller: Caller, request: WaitingAgent) -> Operation:
    """Stop an agent's machine once it is idle; what it knows stays on its disk.

    The next message starts it again. The operation's result is the agent.
    """
    agents = service.host.agents
    by = actor(caller, "agent_suspend")
    agent = await agents.get(request.agent, by)

    async def work(report: Report) -> JsonValue:
        await report(None, "waits until it is idle, and stops its machine")
        return (await agents.suspend(agent.agent_id, by)).model_dump(mode="json")

    return await long_call(service, caller, "agent_suspend", agent.agent_id, request.wait_s, work)


@declare("agent_resume", "POST /v1/agents/{agent}/resume", role=Role.OPERATOR, waits=True)
async def agent_resume(service: Service, caller: Caller, request: NamedAgent) -> Agent:
    """Start the machine of a suspended agent again, as its next message would."""
    by = actor(caller, "agent_resume")
    agent = await service.host.agents.get(request.agent, by)
    await service.store.note(by, agent.agent_id, "ok")
    return await service.host.agents.awake(agent.agent_id, by)


@declare(
    "agent_end",
    "POST /v1/agents/{agent}/end",
    role=Role.OPERATOR,
    effect=Effect.DESTROY,
    idempotent=True,
)
async def agent_end(service: Service, caller: Caller, request: EndAgent) -> ListOfAgents:
    """End an agent with its machine and all that is on its disk; what was said is kept.

    One that is busy, or to whom others belong, is refused unless that is said. What it committed
    is on its branch by then, and what it did not commit is the last commit there.
    """
    by = actor(caller, "agent_end")
    ended = await service.host.agents.end(
        request.agent,
        by,
        force=request.force,
        cascade=request.cascade,
        collect=request.collect,
    )
    return ListOfAgents(agents=ended)


@declare("agent_delete", "DELETE /v1/agents/{agent}", role=Role.OPERATOR, effect=Effect.DESTROY)
async def agent_delete(service: Service, caller: Caller, request: NamedAgent) -> Agent:
    """Forget an agent that has ended, with all that was said to it."""
    return await service.host.agents.delete(request.agent, actor(caller, "agent_delete"))


CALLS: tuple[Call, ...] = (
    agent_spawn,
    agent_get,
    agent_list,
    agent_tree,
    agent_children,
    agent_peers,
    agent_branch,
    agent_budget,
    agent_suspend,
    agent_resume,
    agent_end,
    agent_delete,
)
