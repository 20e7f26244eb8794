"""An agent as it is asked for, or as a copy of another.

Above are the agents of this host; below, their models.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import anyio

from microvm_orchestrator.conversations.workplace import as_of_copy
from microvm_orchestrator.model.agent import Agent, AgentState
from microvm_orchestrator.model.agent_budget import Taken
from microvm_orchestrator.model.names import new_id
from microvm_orchestrator.model.run import Usage
from microvm_orchestrator.model.values import moment

if TYPE_CHECKING:
    from microvm_orchestrator.model.agent import Character, Home, Message
    from microvm_orchestrator.model.agent_budget import AgentBudget
    from microvm_orchestrator.model.agent_claims import Works
    from microvm_orchestrator.model.agent_work import AgentWork, Assignment
    from microvm_orchestrator.model.records import Actor
    from microvm_orchestrator.model.supervision import Supervise


@dataclass(frozen=True, slots=True, kw_only=True)
class Spawn:
    """An agent as it is asked for."""

    name: str | None
    parent: str | None
    character: Character
    home: Home
    budget: AgentBudget
    role_prompt: str | None = None
    title: str | None = None
    # Known before it is written down, for whoever writes down first whom it begins.
    agent_id: str | None = None
    assignment: Assignment | None = None
    works: Works | None = None
    supervise: Supervise | None = None
    ephemeral: bool = False


class Host(Protocol):
    """The agents of a host."""

    async def spawn(self, wish: Spawn, by: Actor) -> Agent:
        """Begin to spawn an agent."""
        ...

    async def send(
        self, reference: str, text: str, by: Actor, *, sender: Agent | None = None
    ) -> Message:
        """Say something to an agent."""
        ...


async def begin(
    host: Host, wish: Spawn, by: Actor, text: str, sender: Agent | None = None
) -> tuple[Agent, Message]:
    """Begin to spawn an agent, and tell it something first. Raises: as both.

    Whoever leaves meanwhile leaves none who waits for ever for what it was to be told.
    """
    with anyio.CancelScope(shield=True):
        agent = await host.spawn(wish, by)
        return agent, await host.send(agent.agent_id, text, by, sender=sender)
    raise AssertionError  # what is shielded is not cancelled


def spawned(
    wish: Spawn, home: Home, work: AgentWork | None, parent: Agent | None, by: Actor
) -> Agent:
    """Write down an agent as it is asked for."""
    agent_id = wish.agent_id or new_id("a")
    return Agent(
        agent_id=agent_id,
        name=wish.name or agent_id,
        title=wish.title,
        owner=by.name if parent is None else parent.owner,
        parent=parent and parent.agent_id,
        state=AgentState.STARTING,
        machine_id=new_id("m"),
        character=wish.character,
        role_prompt=wish.role_prompt,
        home=home,
        work=work,
        works=wish.works,
        budget=wish.budget,
        supervise=wish.supervise,
        ephemeral=wish.ephemeral,
        created_at=moment(time.time()),
    )


def copy_of(agent: Agent, agent_id: str, name: str | None, snapshot_id: str) -> Agent:
    """Write down a copy of an agent, which begins in a machine of its own as it was saved."""
    update: dict[str, object] = {
        "agent_id": agent_id,
        "name": name or agent_id,
        "state": AgentState.STARTING,
        "reason": "",
        "branched_from": agent.agent_id,
        "snapshot_id": snapshot_id,
        "machine_id": new_id("m"),
        "usage": Usage(),
        "turns": 0,
        "gone": Taken(),
        "counted": [],
        "warned": [],
        "work": as_of_copy(agent.work),
        "watched": [],
        "created_at": moment(time.time()),
    }
    return agent.model_copy(update=update)
