"""Ephemeral agents: each ends by itself once it has done what it was told.

That is when it has heard something and nothing more waits for it, nobody belongs to it any more,
and it is owed no answer that it wants to hear. It ends as if somebody had asked for that: what it
did is brought home first, and while that cannot be it stays, with the reason. One task of a daemon
for each; above are the agents of this host; below, one agent's life.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Protocol

import anyio

from microvm_orchestrator import errors, log
from microvm_orchestrator.model.agent import AgentState
from microvm_orchestrator.model.records import SYSTEM

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from microvm_orchestrator.conversations.conversation import Conversation
    from microvm_orchestrator.model.agent import Agent
    from microvm_orchestrator.model.records import Actor

_log = log.get(__name__)

_WHY = "it is ephemeral, and nothing was left to do"
# The store, its machine, or a full disk says no now; soon it may not. A look at its machine takes
# something of that, so they become rarer.
_AGAIN_S = 1.0
_AGAIN_MOST_S = 60.0


class Host(Protocol):
    """The agents of a host."""

    def conversations(self) -> Sequence[Conversation]:
        """Give those who live."""
        ...

    async def end(
        self,
        reference: str,
        by: Actor,
        *,
        force: bool,
        cascade: bool,
        reason: str,
        still: Callable[[], bool],
    ) -> list[Agent]:
        """End an agent, with what it did brought home, if it is still so then."""
        ...


async def see_off(conversation: Conversation, host: Host) -> None:
    """End an agent once it has done what it was told; return when it is over."""
    # How many messages it had heard when it could not be ended.
    tried: int | None = None
    again_s = _AGAIN_S
    while not conversation.agent.over:
        news = conversation.news
        if conversation.agent.turns != tried and _is_done(conversation, host):
            try:
                await host.end(
                    conversation.agent.agent_id,
                    SYSTEM,
                    force=False,
                    cascade=False,
                    reason=_WHY,
                    still=partial(_is_done, conversation, host),
                )
            except (errors.Unavailable, OSError) as error:
                _stays(conversation, str(error))
                await anyio.sleep(again_s)
                again_s = min(2 * again_s, _AGAIN_MOST_S)
            except errors.OrchestratorError as error:
                # Somebody may have told it more meanwhile; then it ends later.
                if _is_done(conversation, host):
                    tried = conversation.agent.turns
                    _stays(conversation, error.message)
        else:
            await news.wait()


def _stays(conversation: Conversation, why: str) -> None:
    _log.warning("agent_not_ended", agent=conversation.agent.agent_id, reason=why)
    conversation.stays(why)


def _is_done(conversation: Conversation, host: Host) -> bool:
    agent = conversation.agent
    if not agent.turns or agent.state not in {AgentState.IDLE, AgentState.SUSPENDED}:
        return False
    return not conversation.waiting and not any(
        each.owes(agent.agent_id) or (each.agent.parent == agent.agent_id and not each.agent.over)
        for each in host.conversations()
    )
