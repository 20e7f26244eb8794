"""How agents get on: figures of what became of what was said to them.

Above are the front ends; below, the agents of this host, and what is added up of them.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from pydantic import Field

from microvm_orchestrator.conversations.tally import health
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.agent_budget import Taken
from microvm_orchestrator.model.agent_health import AgentFigures, AgentMetrics, AgentTotals
from microvm_orchestrator.service.agents import AgentRef
from microvm_orchestrator.service.calls import Call, Caller, Effect, Request, declare
from microvm_orchestrator.service.service import Service, actor

if TYPE_CHECKING:
    from microvm_orchestrator.conversations.agents import Agents
    from microvm_orchestrator.model.agent import Agent


class AgentMetricsRequest(Request):
    """Of which agent."""

    agent: AgentRef | None = Field(default=None, description="by default of all that live")


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
        totals=_totals(agents, visible), agents=[await _metrics(agents, each) for each in told]
    )


async def _metrics(agents: Agents, agent: Agent) -> AgentMetrics:
    tally = await agents.tally(agent)
    return AgentMetrics(
        agent_id=agent.agent_id,
        name=agent.name,
        role=agent.character.role,
        state=agent.state,
        health=None if agent.over else health(tally),
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


CALLS: tuple[Call, ...] = (agent_metrics,)
