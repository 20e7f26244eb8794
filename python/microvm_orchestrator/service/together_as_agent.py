"""What an agent has its own children do together, asked for from its own machine.

It is in the middle of a turn then, and so the one who cannot be asked: it hears the answers, and
sums up by itself. Above is the profile `agent`; below, the coordinations of this host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from microvm_orchestrator import errors
from microvm_orchestrator.conversations.home import acting
from microvm_orchestrator.service.as_agent import refuse_wait
from microvm_orchestrator.service.coordinations import CoordinationAnswer, Together, begin, usual
from microvm_orchestrator.service.operations import awaited

if TYPE_CHECKING:
    from collections.abc import Sequence

    from microvm_orchestrator.model.agent import Agent
    from microvm_orchestrator.service.calls import Caller
    from microvm_orchestrator.service.service import Service


async def coordinate_as(
    service: Service,
    caller: Caller,
    agent: Agent,
    wish: Together,
    names: Sequence[str],
    wait_s: float,
) -> CoordinationAnswer:
    """Have children of an agent work together; all of them, if none is named.

    Raises: Denied for who is no child of it; what `begin` raises.
    """
    by = acting(agent, caller.via)
    children = {each.name: each for each in await service.host.agents.children(agent.agent_id, by)}
    strangers = [name for name in names if name not in children]
    if strangers:
        await service.store.note(by, agent.agent_id, errors.Denied.code)
        raise errors.Denied(
            f"{strangers[0]} is no child of yours", hint="`others` shows who your children are"
        )
    chosen = [children[name] for name in names] if names else usual(children.values())
    for child in chosen if wait_s else ():
        await _look_out(service, agent, child.agent_id)
    begun = await begin(service, by, wish, agent, chosen, ask_coordinator=False)
    with service.host.agents.care.waits.waiting(agent.agent_id, begun.target):
        await awaited(service, caller, by, begun.operation_id, wait_s)
    return await _told(service, agent, begun.target)


async def coordination_as(
    service: Service, caller: Caller, agent: Agent, coordination_id: str, wait_s: float
) -> CoordinationAnswer:
    """Wait for the end of what an agent began before. Raises: NotFound for what others began."""
    told = await _told(service, agent, coordination_id)
    if told.coordination.ended:
        return told
    coordinations = service.host.coordinations
    by = acting(agent, caller.via)
    operation_id = coordinations.operation_of(told.coordination)
    if operation_id is not None:
        if wait_s:
            await _look_out(service, agent, coordination_id)
        with service.host.agents.care.waits.waiting(agent.agent_id, coordination_id):
            await awaited(service, caller, by, operation_id, wait_s)
    return await _told(service, agent, coordination_id)


async def _look_out(service: Service, agent: Agent, other: str) -> None:
    """See that whom an agent is to wait for does not wait for it. Raises: StateForbids."""
    ring = service.host.agents.care.waits.find_ring(agent.agent_id, other)
    if ring:
        hint = "whoever waits for you hears what it asks once your turn is over: end it first"
        await refuse_wait(service, agent, ring, hint)


async def _told(service: Service, agent: Agent, coordination_id: str) -> CoordinationAnswer:
    coordinations = service.host.coordinations
    found = await coordinations.get(coordination_id, acting(agent))
    if found.coordinator.agent_id != agent.agent_id:
        raise errors.NotFound(f"you began nothing that is called {coordination_id[:100]}")
    return CoordinationAnswer(
        coordination=found, steps=await coordinations.steps(found.coordination_id)
    )
