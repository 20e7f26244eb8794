"""What an earlier daemon left of its agents: read whole before any of them lives again.

Above are the agents of this host; below, their records.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from microvm_orchestrator.conversations.turn import used_by
from microvm_orchestrator.model.records import SYSTEM

if TYPE_CHECKING:
    from collections.abc import Sequence

    from microvm_orchestrator.conversations.ground import AgentGround
    from microvm_orchestrator.model.agent import Agent, Message


@dataclass(frozen=True, slots=True)
class Left:
    """The agents of an earlier daemon, oldest first."""

    # Those who live, each with what it has not heard to the end.
    living: Sequence[tuple[Agent, Sequence[Message]]]
    # Those who are over while something of them is not.
    half_over: Sequence[Agent]
    # Answers of which whoever was to hear them was not told.
    untold: Sequence[Message]


async def find_left(ground: AgentGround) -> Left:
    """Read what was left, and have counted what was taken."""
    records = ground.records
    every = await records.visible(SYSTEM)
    for agent in every:
        records.accounts.learn(agent)
    said: set[str] = set()
    told_back: list[Message] = []
    living: list[tuple[Agent, Sequence[Message]]] = []
    half_over: list[Agent] = []
    machines = {each.machine_id for each in await ground.machines.visible(SYSTEM)}
    for agent in every:
        messages = await records.messages(agent.agent_id, SYSTEM)
        said.update(each.message_id for each in messages)
        told_back += [each for each in messages if each.told_back is not None]
        unsettled = [each for each in messages if not each.settled]
        if not agent.over:
            used = await used_by(agent, ground)
            records.accounts.recount(agent.agent_id, messages, used)
            records.tallies.learn(agent.agent_id, messages)
            living.append((agent, unsettled))
        elif agent.machine_id in machines or unsettled:
            half_over.append(agent)
    untold = [each for each in told_back if each.told_back not in said]
    return Left(living, half_over, untold)
