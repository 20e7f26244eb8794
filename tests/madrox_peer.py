"""A client of that program which the profile `madrox` stands for, on machines that are none."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from calling import House, house
from machines import fake_program, publish_no_image
from mcp_peer import ALICE, Peer, connected
from microvm_orchestrator import places
from microvm_orchestrator.images.store import ImageStore
from microvm_orchestrator.lifecycle.output import OutputFile
from microvm_orchestrator.machine.shell import Channel
from microvm_orchestrator.mcp_server.server import McpFrontEnd
from microvm_orchestrator.model.records import SYSTEM

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from pathlib import Path

PROFILE = "madrox"
# What one says of itself in the form of Claude Code, when it did two things and was done.
_SAID: tuple[dict[str, Any], ...] = (
    {"type": "tool_use", "name": "Write", "input": {"file_path": "/workspace/a"}},
    {"type": "tool_use", "name": "Bash", "input": {"command": "make"}},
    {"type": "text", "text": "Made."},
)


@dataclass
class Client:
    """A client of that program."""

    peer: Peer
    kept: House
    front: McpFrontEnd

    async def __call__(self, tool: str, **arguments: object) -> Any:
        """Give the result of a tool, which comes as text and as data."""
        result = await self.peer.call(tool, **arguments)
        told: dict[str, Any] = result["structuredContent"]
        (block,) = result["content"]
        value: Any = told if set(told) != {"result"} else told["result"]
        assert block["text"] == value or json.loads(block["text"]) == value
        assert result["isError"] is (told.get("success") is False)
        return value

    async def refusal(self, tool: str, **arguments: object) -> str:
        result = await self.peer.call(tool, **arguments)
        assert result["isError"], result
        return str(result["content"][0]["text"])

    async def spawned(self, name: str, **more: object) -> str:
        told = await self("spawn_claude", name=name, **more)
        assert told["success"], told
        return str(told["instance_id"])

    async def says(self, instance_id: str) -> None:
        """Write down that it said something while it heard its last message."""
        agents = self.kept.service.host.agents
        *_, message = await agents.messages(instance_id, SYSTEM)
        path = agents.output(message)
        path.unlink(missing_ok=True)
        file = OutputFile(path)
        for block in _SAID:
            told = {"id": "m", "model": "x", "content": [block]}
            record = {"type": "assistant", "message": told}
            file.add(Channel.STDOUT, json.dumps(record).encode() + b"\n")
        file.close()


@asynccontextmanager
async def place(state: Path, settings: Mapping[str, str] | None = None) -> AsyncGenerator[Client]:
    program = str(fake_program(state))
    publish_no_image(ImageStore(state / places.IMAGES), "embedded")
    async with house(state, machines={"qemu": program}) as kept:
        front = McpFrontEnd(kept.service)
        async with (
            front.running(),
            connected(front, ALICE, PROFILE, settings=settings) as peer,
        ):
            try:
                yield Client(peer, kept, front)
            finally:
                agents = kept.service.host.agents
                for each in agents.living(SYSTEM):
                    await agents.end(each.agent_id, SYSTEM, force=True, cascade=True)
