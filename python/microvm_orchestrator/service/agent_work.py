"""What agents do on repositories: brought home when somebody asks, and merged.

Above are the front ends; below, the agents of this host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, JsonValue

from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.operation import Operation
from microvm_orchestrator.model.run import Merge
from microvm_orchestrator.service.agents import NamedAgent
from microvm_orchestrator.service.calls import Call, Caller, declare
from microvm_orchestrator.service.operations import USUAL_WAIT_S, WaitS, long_call
from microvm_orchestrator.service.service import Service, actor

if TYPE_CHECKING:
    from microvm_orchestrator.operations import Report


class CollectAgent(NamedAgent):
    """An agent whose commits are to come, and where they are to go."""

    merge: Merge | None = Field(
        default=None,
        description="what becomes of them this time, such as auto for those that wait to be "
        "looked at; by default as it was spawned, or as the repo has it",
    )
    wait_s: WaitS = USUAL_WAIT_S


@declare("agent_collect", "POST /v1/agents/{agent}/collect", role=Role.OPERATOR, waits=True)
async def agent_collect(service: Service, caller: Caller, request: CollectAgent) -> Operation:
    """Bring home what an agent committed by now, put it on its branch, and merge it.

    That is done after each of its turns, too: this is for what was not merged then, as it did not
    fit or waits to be looked at, and for what came to pass between turns. It waits until the agent
    is idle. The operation's result tells the commits that came, and what became of the merge.
    """
    agents = service.host.agents
    by = actor(caller, "agent_collect")
    agent = await agents.get(request.agent, by)

    async def work(report: Report) -> JsonValue:
        await report(None, "waits until it is idle, and takes in what it committed")
        brought = await agents.collect(agent.agent_id, request.merge, by)
        return brought.model_dump(mode="json")

    return await long_call(service, caller, "agent_collect", agent.agent_id, request.wait_s, work)


CALLS: tuple[Call, ...] = (agent_collect,)
