"""How agents get on: figures of what became of what was said to them, what is seen and done.

Above are the front ends; below, the agents of this host, and who looks after them.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from pydantic import Field

from microvm_orchestrator.conversations.tally import health
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.agent import Agent, AgentState
from microvm_orchestrator.model.agent_budget import Taken
from microvm_orchestrator.model.agent_health import AgentFigures, AgentMetrics, AgentTotals
from microvm_orchestrator.model.supervision import Observation, Seen, Supervise
from microvm_orchestrator.service.agents import AgentRef, NamedAgent, SuperviseField
from microvm_orchestrator.service.calls import Answer, Call, Caller, Effect, Request, declare
from microvm_orchestrator.service.service import Service, actor

if TYPE_CHECKING:
    from microvm_orchestrator.conversations.agents import Agents


class AgentMetricsRequest(Request):
    """Of which agent."""

    agent: AgentRef | None = Field(default=None, description="by default of all that live")


class SuperviseAgent(NamedAgent):
    """An agent, and what is done from now on if it does not get on."""

    supervise: SuperviseField = None


class AgentHealth(Answer):
    """How an agent gets on."""

    agent_id: str
    name: str
    state: AgentState
    reason: str
    health: int | None = Field(description="from 0 to 100; null for one that has ended")
    supervise: Supervise = Field(description="what is done if it does not get on")
    seen: list[Seen] = Field(description="what is seen of it at this moment, the worst first")
    watched: list[Observation] = Field(
        description="what was last seen of it and done about it, oldest first"
    )
    interventions_left: int = Field(
        description="how often it may still be helped before somebody above it is told"
    )


@declare("agent_health", "GET /v1/agents/{agent}/health", role=Role.VIEWER, effect=Effect.READ)
async def agent_health(service: Service, caller: Caller, request: NamedAgent) -> AgentHealth:
    """Look how an agent gets on: what is seen of it, and what was done about it."""
    agents = service.host.agents
    agent = await agents.get(request.agent, actor(caller, "agent_health"))
    supervisor = agents.care.supervisor
    seen = supervisor.seen(agent.agent_id)
    return AgentHealth(
        agent_id=agent.agent_id,
        name=agent.name,
        state=agent.state,
        reason=agent.reason,
        health=None if agent.over else health(await agents.care.tally(agent), seen=len(seen)),
        supervise=supervisor.policy_of(agent),
        seen=seen,
        watched=agent.watched,
        interventions_left=supervisor.left(agent),
    )


@declare("agent_supervise", "POST /v1/agents/{agent}/supervise", role=Role.OPERATOR)
async def agent_supervise(service: Service, caller: Caller, request: SuperviseAgent) -> Agent:
    """Say what is done about an agent that does not get on: nothing, events, or help as well.

    With neither it is as this host has it.
    """
    by = actor(caller, "agent_supervise")
    return await service.host.agents.care.supervise(request.agent, request.supervise, by)


@declare("agent_metrics", "GET /v1/agent-metrics", role=Role.VIEWER, effect=Effect.READ)
async def agent_metrics(
    service: Service, caller: Caller, request: AgentMetricsRequest
) -> AgentFigures:
    """Read figures of agents: answers and failures, how long answers take, what was used, health.

    The totals are those of all agents that you see. Each agent is one that lives, or the one that
    you name.
    """
    agents, by = service.host.agents, actor(caller, "agent_metrics")
    visible = await agents.visible(by)
    if request.agent is None:
        told = [each for each in visible if not each.over]
    else:
        told = [await agents.get(request.agent, by)]
    return AgentFigures(
        totals=_totals(agents, visible), agents=[await metrics_of(agents, each) for each in told]
    )


async def metrics_of(agents: Agents, agent: Agent) -> AgentMetrics:
    """Read the figures of an agent."""
    tally = await agents.care.tally(agent)
    seen = len(agents.care.supervisor.seen(agent.agent_id))
    return AgentMetrics(
        agent_id=agent.agent_id,
        name=agent.name,
        role=agent.character.role,
        state=agent.state,
        health=None if agent.over else health(tally, seen=seen),
        answered=tally.answered,
        failed=tally.failed,
        interrupted=tally.interrupted,
        cancelled=tally.cancelled,
        waiting=agents.waiting(agent),
        success_rate=tally.success_rate,
        response=tally.response(),
        errors=dict(tally.errors),
        taken=agents.accounts.taken(agent.agent_id),
        tree_taken=agents.accounts.of_tree(agent.agent_id),
    )


def _totals(agents: Agents, visible: list[Agent]) -> AgentTotals:
    taken = Taken()
    kept = [agents.tallies.find(each.agent_id) for each in visible]
    tallies = [each for each in kept if each is not None]
    for each in visible:
        taken += agents.accounts.taken(each.agent_id)
    return AgentTotals(
        known=len(visible),
        states=dict(Counter(each.state for each in visible)),
        active=sum(1 for each in visible if not each.over),
        taken=taken,
        answered=sum(each.answered for each in tallies),
        failed=sum(each.failed for each in tallies),
        interrupted=sum(each.interrupted for each in tallies),
    )


CALLS: tuple[Call, ...] = (agent_metrics, agent_health, agent_supervise)
