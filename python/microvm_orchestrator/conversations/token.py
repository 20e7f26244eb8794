"""The token by which an agent shows in its machine who it is: of itself it may see and do nothing.

It is made with the first turn, lies in the agent's folder so that every turn is given the same, and
is good until the agent ends, out of its own machine only: a copy of the agent has its disk and its
memory, and so its token. What an agent may do, the profile `agent` offers it. Above is a turn;
below, the store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from microvm_orchestrator.images.files import write_whole
from microvm_orchestrator.model import token
from microvm_orchestrator.model.access import Role, Scope
from microvm_orchestrator.model.names import new_id

if TYPE_CHECKING:
    from pathlib import Path

    from microvm_orchestrator.conversations.ground import AgentGround
    from microvm_orchestrator.model.agent import Agent

_FILE = "token"
_PREFIX = "agent:"
_NOBODY = Scope(everything=False, own=False)


async def token_of(agent: Agent, ground: AgentGround) -> str:
    """Give the token of an agent, which is made if there is none."""
    path = ground.of(agent.agent_id) / _FILE
    kept = await anyio.to_thread.run_sync(_read, path)
    if kept is not None:
        return kept
    token_id, secret = new_id("tok"), token.new_secret()
    await ground.records.save_token(
        token_id,
        token.KeptToken(
            name=f"{_PREFIX}{agent.agent_id}",
            role=Role.VIEWER,
            scope=_NOBODY,
            digest=token.digest(secret),
            created_by=agent.owner,
            expires_at=None,
        ),
    )
    made = token.written(token_id, secret)
    await anyio.to_thread.run_sync(write_whole, path, made.encode())
    return made


async def end_token(agent: Agent, ground: AgentGround) -> None:
    """Have the token of an agent be good no longer."""
    path = ground.of(agent.agent_id) / _FILE
    kept = await anyio.to_thread.run_sync(_read, path)
    found = None if kept is None else token.read(kept)
    if found is not None:
        await ground.records.erase_token(found[0])
        await anyio.Path(path).unlink(missing_ok=True)


def agent_named(principal: str) -> str | None:
    """Which agent a principal is, by the name that its token gave; None for anybody else."""
    return principal.removeprefix(_PREFIX) if principal.startswith(_PREFIX) else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None
