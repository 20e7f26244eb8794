"""What agents stand on.

Above is the life of agents; below, what it is made of.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from anyio.abc import ByteStream

    from microvm_orchestrator.conversations.family import Limits
    from microvm_orchestrator.conversations.records import AgentRecords
    from microvm_orchestrator.conversations.watching import Policy
    from microvm_orchestrator.execs.execs import Execs
    from microvm_orchestrator.images.store import AnyImage
    from microvm_orchestrator.lifecycle.egress import WaysOut
    from microvm_orchestrator.lifecycle.live import Ground
    from microvm_orchestrator.machines import Machines
    from microvm_orchestrator.repos import Repos
    from microvm_orchestrator.snapshots import Snapshots


class Door:
    """Where agents ask from their machines; nobody is served before whoever serves is there."""

    def __init__(self) -> None:
        self._serve: Callable[[str, ByteStream], Awaitable[None]] | None = None
        self._opened = anyio.Event()

    def open(self, serve: Callable[[str, ByteStream], Awaitable[None]]) -> None:
        self._serve = serve
        self._opened.set()

    async def serve(self, agent_id: str, stream: ByteStream) -> None:
        """Serve one connection out of an agent's machine until either side ends it."""
        while self._serve is None:
            await self._opened.wait()
        await self._serve(agent_id, stream)


@dataclass(frozen=True, slots=True)
class AgentGround:
    """What agents stand on."""

    records: AgentRecords
    machines: Machines
    snapshots: Snapshots
    execs: Execs
    ways_out: WaysOut
    # An image by its name; None is the usual one.
    image: Callable[[str | None], Awaitable[AnyImage]]
    # Forgets what is known of a machine beside its record: its commands and forwards.
    forget: Callable[[str], Awaitable[None]]
    # Serves what an agent asks from its machine, over one connection.
    door: Door
    repos: Repos
    # What the commits of runs go by, with the folder of agents.
    runs: Ground
    # One folder below it for each agent.
    folder: Path
    families: Limits
    memory_mib: int
    # How long one turn may take.
    timeout_s: float
    # When somebody looks after them, and how.
    supervision: Policy

    def of(self, agent_id: str) -> Path:
        return self.folder / agent_id

    def output(self, message_id: str) -> Path:
        """The file with what was said while a message was heard; there may be none yet."""
        agent_id = message_id.partition(".")[0]
        return self.of(agent_id) / f"{message_id}.output"
