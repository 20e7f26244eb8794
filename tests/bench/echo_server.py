"""The floor for MCP: the SDK's own server, one tool that does nothing, the same transport."""

from __future__ import annotations

import sys
from typing import Any

import anyio
from mcp.server.mcpserver import MCPServer
from mcp.server.runner import serve_dual_era_loop
from mcp.shared.message import SessionMessage
from mcp.types import jsonrpc_message_adapter

mcp = MCPServer("echo", log_level="ERROR")


@mcp.tool()
async def echo(text: str) -> dict[str, Any]:
    """Say it again."""
    return {"text": text}


async def _connection(stream: anyio.abc.SocketStream) -> None:
    into, lines = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    out, answers = anyio.create_memory_object_stream[SessionMessage](0)

    async def read() -> None:
        rest = b""
        async with into:
            async for data in stream:
                *whole, rest = (rest + data).split(b"\n")
                for line in whole:
                    message = jsonrpc_message_adapter.validate_json(line, by_name=False)
                    await into.send(SessionMessage(message))

    async def write() -> None:
        async with answers:
            async for item in answers:
                text = item.message.model_dump_json(by_alias=True, exclude_unset=True)
                await stream.send(text.encode() + b"\n")

    async with stream, anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        tasks.start_soon(write)
        # The SDK has no public way to serve a connection without entering the lifespan anew.
        server = mcp._lowlevel_server  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # the SDK has no other way to it
        await serve_dual_era_loop(
            server,
            lines,
            out,
            lifespan_state={},
            init_options=server.create_initialization_options(),
        )
        tasks.cancel_scope.cancel()


async def _main(path: str) -> None:
    listener = await anyio.create_unix_listener(path)
    print("ready", flush=True)
    await listener.serve(_connection)


if __name__ == "__main__":
    anyio.run(_main, sys.argv[1])
