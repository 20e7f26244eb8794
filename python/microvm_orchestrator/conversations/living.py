"""An agent that lives, with the task in which it does so, and how that comes to an end.

Above are the agents of this host; below, one agent's life.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio

from microvm_orchestrator.conversations.leaving import salvage

if TYPE_CHECKING:
    from microvm_orchestrator.conversations.conversation import Conversation

# For an agent that is ended: to break off what it is in the middle of.
_END_S = 30.0


@dataclass(eq=False, slots=True)
class Living:
    """Who hears what is said to it until its scope is cancelled, and then is over."""

    conversation: Conversation
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    over: anyio.Event = field(default_factory=anyio.Event)

    async def fall_silent(self, *, salvaged: bool) -> str:
        """Have it hear nothing more; what it did is brought home, if that is to be salvaged.

        Tells what kept it from coming.
        """
        with anyio.move_on_after(_END_S, shield=True):
            self.scope.cancel()
            await self.over.wait()
        lost = await salvage(self.conversation) if salvaged else ""
        if self.conversation.workplace is not None:
            with anyio.move_on_after(_END_S, shield=True):
                await self.conversation.workplace.close()
        return lost
