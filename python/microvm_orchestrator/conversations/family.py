"""Who belongs to whom among agents: parents, children, peers, and how large a family may be.

Above are the agents of this host; below, their records.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from microvm_orchestrator import errors

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from microvm_orchestrator.model.agent import Agent


@dataclass(frozen=True, slots=True)
class Limits:
    """How large a family may be: an agent that spawns others which spawn others comes to an end."""

    depth: int
    children: int


def children(agents: Sequence[Agent], parent: Agent) -> list[Agent]:
    return [each for each in agents if each.parent == parent.agent_id]


def peers(agents: Sequence[Agent], agent: Agent) -> list[Agent]:
    """Those with the same parent; of one that has none, the others of its owner who have none."""
    return [
        each
        for each in agents
        if each.agent_id != agent.agent_id
        and each.parent == agent.parent
        and each.owner == agent.owner
    ]


def kin(agents: Sequence[Agent], agent: Agent) -> list[tuple[str, Agent]]:
    """The relatives of an agent, each with what it is to it: parent, child or peer."""
    return [
        *(("parent", each) for each in agents if each.agent_id == agent.parent),
        *(("child", each) for each in children(agents, agent)),
        *(("peer", each) for each in peers(agents, agent)),
    ]


def below(agents: Sequence[Agent], agent: Agent) -> list[Agent]:
    """All that belong to an agent, over any number of steps; each behind its parent."""
    return [each for each, _ in _walk(agents, agent, 0)]


def tree(agents: Sequence[Agent]) -> list[tuple[Agent, int]]:
    """All agents with how deep they stand, each behind its parent."""
    known = {agent.agent_id for agent in agents}
    told: list[tuple[Agent, int]] = []
    for agent in agents:
        if agent.parent not in known:
            told += [(agent, 0), *_walk(agents, agent, 1)]
    return told


def _walk(agents: Sequence[Agent], agent: Agent, depth: int) -> Iterator[tuple[Agent, int]]:
    for child in children(agents, agent):
        yield child, depth
        yield from _walk(agents, child, depth + 1)


def refuse_more(agents: Sequence[Agent], parent: Agent, limits: Limits) -> None:
    """Raises: TooLarge when a child more would be too many, or stand too deep."""
    by_id = {agent.agent_id: agent for agent in agents}
    depth, above = 1, parent
    while above.parent is not None and (higher := by_id.get(above.parent)) is not None:
        depth, above = depth + 1, higher
    if depth >= limits.depth:
        raise errors.TooLarge(
            f"agent {parent.name} stands {depth} deep, and none may stand below {limits.depth}",
            hint="`agents.depth` in the daemon's configuration says how deep",
        )
    living = [each for each in children(agents, parent) if not each.over]
    if len(living) >= limits.children:
        raise errors.TooLarge(
            f"agent {parent.name} has {limits.children} children already",
            hint="`agents.children` in the daemon's configuration says how many",
        )
