"""What is brought home of agents that are about to end, and that nothing else is left of them.

Above are the agents of this host; below, one agent's life.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import anyio

from microvm_orchestrator import errors, log
from microvm_orchestrator.conversations.claims import give_back
from microvm_orchestrator.conversations.home import forget_origin, halt_home, remove_home
from microvm_orchestrator.conversations.token import end_token
from microvm_orchestrator.model.agent import AgentState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from microvm_orchestrator.conversations.conversation import Conversation
    from microvm_orchestrator.conversations.ground import AgentGround
    from microvm_orchestrator.model.agent import Agent

_log = log.get(__name__)

# For what one did that is ended by force to be brought home.
_SALVAGE_S = 120.0


def refuse_busy(agents: Iterable[Agent]) -> None:
    """Raises: StateForbids."""
    busy = [each.name for each in agents if each.state is AgentState.BUSY]
    if busy:
        raise errors.StateForbids(
            f"agents are busy: {', '.join(busy)}",
            hint="wait for their answers, interrupt them, or end them by force",
        )


def refuse_family(agent: Agent, below: Sequence[Agent]) -> None:
    """Raises: StateForbids for one to whom others belong: these, the lowest first."""
    if below:
        names = ", ".join(each.name for each in reversed(below))
        raise errors.StateForbids(
            f"to agent {agent.name} belong others: {names}", hint="cascade ends them with it"
        )


def _has_done_nothing(conversation: Conversation) -> bool:
    agent = conversation.agent
    return agent.work is None or agent.over or agent.state is AgentState.STARTING


async def collect_last(conversation: Conversation) -> None:
    """Bring home what an agent did. Raises: StateForbids when that cannot be."""
    if _has_done_nothing(conversation):
        return
    try:
        await conversation.collect(last=True)
    except errors.OrchestratorError as error:
        if isinstance(error, errors.Unavailable) and not isinstance(error, errors.MachineFailed):
            # It is not the agent that keeps it from coming: later it may.
            raise
        raise errors.StateForbids(
            f"what agent {conversation.agent.name} did cannot be collected: {error.message}",
            hint="`force` ends it all the same, and what is in its machine alone is lost",
        ) from error


async def salvage(conversation: Conversation) -> str:
    """Bring home what can be, not for ever; tell what kept the rest from it."""
    if _has_done_nothing(conversation):
        return ""
    why = f"what it did last did not come within {_SALVAGE_S:g} s"
    with anyio.move_on_after(_SALVAGE_S, shield=True):
        try:
            await conversation.collect(last=True)
        except errors.OrchestratorError as error:
            why = f"what it did last could not be collected: {error.message}"
        except OSError as error:
            # A full disk of this host's; its paths are nobody else's business.
            _log.error("agent_not_salvaged", agent=conversation.agent.agent_id, exc_info=error)
            why = f"what it did last could not be collected: {error.strerror}"
        else:
            why = ""
    return why


async def leave_nothing(agent: Agent, ground: AgentGround, living: Iterable[Agent]) -> None:
    """Give back and remove what an agent had that is over; its machine is the last of it."""
    with suppress(errors.Unavailable):  # it runs out by itself
        await give_back(agent, ground.records.store, living)
    await end_token(agent, ground)
    await forget_origin(agent, ground)
    await remove_home(agent, ground)


async def see_out(
    half_over: Iterable[Agent],
    settle_rest: Callable[[Agent], Awaitable[None]],
    ground: AgentGround,
    living: Callable[[], Iterable[Agent]],
) -> None:
    """Do what was left to do about agents that were over when the daemon before ended."""
    for agent in half_over:
        try:
            await settle_rest(agent)
            if agent.state is AgentState.ENDED:
                await leave_nothing(agent, ground, living())
            else:
                await halt_home(agent, ground)
        except errors.OrchestratorError as error:
            _log.warning("agent_left", agent=agent.agent_id, reason=error.message)
