"""The client's end of an MCP byte stream, for tests: says lines and hears lines, nothing more."""

from __future__ import annotations

import json
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import anyio
from anyio.abc import SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream

from microvm_orchestrator.mcp_server.transport import serve_stream
from microvm_orchestrator.model.access import Principal, Role

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from microvm_orchestrator.mcp_server.server import McpFrontEnd

MODERN = "2026-07-28"
TASKS: dict[str, Any] = {"extensions": {"io.modelcontextprotocol/tasks": {}}}
MAX_LINE = 8 * 1024 * 1024
# Generous: it only decides how long a broken test takes to say so.
PATIENCE_S = 10.0
ALICE = Principal("alice", Role.ADMIN)
BOB = Principal("bob", Role.ADMIN)


class Peer:
    """One end of a real socket pair, with a server of ours at the other."""

    def __init__(self, stream: SocketStream, capabilities: dict[str, Any]) -> None:
        self.stream = stream
        self.capabilities = capabilities
        # What was heard while waiting for something else.
        self.aside: list[dict[str, Any]] = []
        self._lines = BufferedByteReceiveStream(stream)
        self._last_id = 0

    async def say(self, message: bytes | dict[str, Any]) -> None:
        line = message if isinstance(message, bytes) else json.dumps(message).encode()
        await self.stream.send(line + b"\n")

    async def hear(self) -> dict[str, Any]:
        with anyio.fail_after(PATIENCE_S):
            return json.loads(await self._lines.receive_until(b"\n", MAX_LINE))

    def request(self, method: str, params: dict[str, Any], **meta: Any) -> dict[str, Any]:
        """Make a request of the modern era, with the next id."""
        self._last_id += 1
        envelope = {
            "io.modelcontextprotocol/protocolVersion": MODERN,
            "io.modelcontextprotocol/clientCapabilities": self.capabilities,
            **meta,
        }
        return {
            "jsonrpc": "2.0",
            "id": self._last_id,
            "method": method,
            "params": {**params, "_meta": envelope},
        }

    async def exchange(self, message: dict[str, Any]) -> dict[str, Any]:
        """Say a request and hear its response; notifications are put aside."""
        await self.say(message)
        return await self.response(message["id"])

    async def response(self, request_id: object) -> dict[str, Any]:
        while True:
            heard = await self.hear()
            if heard.get("id") == request_id and "method" not in heard:
                return heard
            self.aside.append(heard)

    async def ask(self, method: str, **params: Any) -> dict[str, Any]:
        answer = await self.exchange(self.request(method, params))
        assert "result" in answer, answer
        return cast("dict[str, Any]", answer["result"])

    async def refused(self, method: str, **params: Any) -> dict[str, Any]:
        answer = await self.exchange(self.request(method, params))
        assert "error" in answer, answer
        return cast("dict[str, Any]", answer["error"])

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        return await self.ask("tools/call", name=tool, arguments=arguments)

    async def told(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Call a tool that must succeed; gives its structured answer."""
        result = await self.call(tool, **arguments)
        assert not result["isError"], result
        return cast("dict[str, Any]", result["structuredContent"])


@asynccontextmanager
async def connected(
    front: McpFrontEnd,
    principal: Principal = ALICE,
    profile: str = "",
    capabilities: dict[str, Any] | None = None,
    settings: Mapping[str, str] | None = None,
) -> AsyncGenerator[Peer]:
    """Be served over a socket pair, as the listener would after an accept."""
    ours, theirs = socket.socketpair()
    async with anyio.create_task_group() as group:
        served = await SocketStream.from_socket(theirs)
        group.start_soon(serve_stream, front, served, principal, profile, settings)
        # The server ends by itself when its client has gone; the group waits for that.
        async with await SocketStream.from_socket(ours) as stream:
            yield Peer(stream, capabilities or {})
