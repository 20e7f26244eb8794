"""How agents are looked after: what a supervisor can do to them, and who waits for whom.

Above is the service; beside it, the agents of this host, whom it knows by a seam; below, the
supervisor and the figures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from microvm_orchestrator import errors
from microvm_orchestrator.conversations.spawn import Host, Spawn, begin
from microvm_orchestrator.conversations.supervisor import Supervisor
from microvm_orchestrator.conversations.tally import Tally, tally_of
from microvm_orchestrator.conversations.waits import Waits
from microvm_orchestrator.model.records import SYSTEM

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from microvm_orchestrator.conversations.conversation import Conversation
    from microvm_orchestrator.conversations.records import AgentRecords
    from microvm_orchestrator.conversations.watching import Policy
    from microvm_orchestrator.model.agent import Agent, Message
    from microvm_orchestrator.model.agent_role import AgentRole
    from microvm_orchestrator.model.records import Actor
    from microvm_orchestrator.model.supervision import Observation, Supervise


class LookedAfter(Host, Protocol):
    """The agents of a host."""

    def conversations(self) -> Sequence[Conversation]:
        """Give those who live."""
        ...

    async def get(self, reference: str, by: Actor) -> Agent:
        """Find an agent."""
        ...

    async def look(self, agent: Agent) -> Agent:
        """Take in what an agent committed by now, and give it as it is then."""
        ...

    async def retire(self, agent_id: str, reason: str) -> None:
        """End an agent with all below it."""
        ...


class Care:
    """How the agents of one daemon are looked after."""

    def __init__(
        self,
        agents: LookedAfter,
        records: AgentRecords,
        conversation: Callable[[Agent], Conversation],
        policy: Policy,
    ) -> None:
        self._agents = agents
        self._records = records
        # Raises: StateForbids for one that is over.
        self._conversation = conversation
        self.supervisor = Supervisor(self, records.accounts, records.tallies, policy)
        self.waits = Waits()

    async def tally(self, agent: Agent) -> Tally:
        """Tell what became of what was said to an agent."""
        kept = self._records.tallies.find(agent.agent_id)
        if kept is not None or not agent.over:
            return kept or Tally()
        return tally_of(await self._records.messages(agent.agent_id, SYSTEM))

    async def supervise(self, reference: str, how: Supervise | None, by: Actor) -> Agent:
        """Say what is done about an agent that does not get on. Raises: NotFound, StateForbids."""
        agent = await self._agents.get(reference, by)
        conversation = self._conversation(agent)
        await self._records.note(agent, by)
        return await conversation.standing.supervise(how)

    async def observe(self, agent: Agent, told: Observation) -> None:
        """Write down what was seen of an agent. Raises: StateForbids for one that is over."""
        await self._conversation(agent).standing.observe(told)

    async def child_of(
        self,
        agent: Agent,
        name: str,
        role: AgentRole | None,
        *,
        ephemeral: bool,
        system_prompt: str | None = None,
    ) -> Spawn:
        """Give the wish for a child of an agent: like it, but for who it is, and of what is left.

        It works where the agent is by now, on a branch of its own.

        Raises: StateForbids where nothing is left for one.
        """
        budget, used_up = self._records.accounts.for_child(agent.agent_id)
        if used_up is not None:
            raise errors.StateForbids(f"of the {used_up} of {agent.name} nothing is left")
        character = {"system_prompt": system_prompt, "role": role and role.name}
        assignment = None
        if agent.work is not None:
            work = (await self._agents.look(agent)).work or agent.work
            place = {
                "repo": work.repo_id,
                "base": work.head or work.base,
                "into": work.into,
                "branch": None,
            }
            assignment = work.asked.model_copy(update=place)
        return Spawn(
            name=name,
            parent=agent.agent_id,
            character=agent.character.model_copy(update=character),
            home=agent.home,
            budget=budget,
            role_prompt=role and role.prompt,
            assignment=assignment,
            supervise=agent.supervise,
            ephemeral=ephemeral,
        )

    # What its supervisor does

    def conversations(self) -> Sequence[Conversation]:
        """Give those who live."""
        return self._agents.conversations()

    async def retire(self, agent_id: str, reason: str) -> None:
        """End an agent with all below it."""
        await self._agents.retire(agent_id, reason)

    async def tell(self, agent_id: str, text: str) -> Message:
        """Say something to an agent, as this host. Raises: as `send`."""
        return await self._agents.send(agent_id, text, SYSTEM)

    async def help_with(self, agent: Agent, name: str, prompt: str, role: AgentRole) -> None:
        """Spawn a child of an agent that takes on a role, and tell it something.

        Raises: StateForbids where nothing is left for it; as `spawn`.
        """
        helper = await self.child_of(agent, name, role, ephemeral=True)
        await begin(self._agents, helper, SYSTEM, prompt)
