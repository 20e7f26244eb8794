"""An MCP front end over HTTP, for tests: real requests on a real socket, in either protocol."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import httpx2
import uvicorn
from starlette.applications import Starlette

from mcp_peer import ALICE, BOB, MODERN

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from pathlib import Path

    from starlette.types import ASGIApp, Receive, Scope, Send

    from microvm_orchestrator.mcp_server.server import McpFrontEnd
    from microvm_orchestrator.model.access import Principal

OLDER = "2025-11-25"
PEOPLE = {"alice": ALICE, "bob": BOB}


class Named:
    """Takes who asks from a header, as the listener does from a token or the kernel."""

    def __init__(self, app: ASGIApp, people: Mapping[str, Principal]) -> None:
        self._app = app
        self._people = people

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = dict(scope["headers"]).get(b"x-name", b"").decode()
        if name in self._people:
            scope["state"] = {"principal": self._people[name]}
        await self._app(scope, receive, send)


@asynccontextmanager
async def serving(
    front: McpFrontEnd, path: Path, people: Mapping[str, Principal] = PEOPLE
) -> AsyncGenerator[httpx2.AsyncClient]:
    app = Named(Starlette(routes=front.http_routes()), people)
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None, access_log=False))
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        async with anyio.create_task_group() as group, requests(path) as http:
            group.start_soon(server.serve, [listening])
            yield http
            server.should_exit = True


@asynccontextmanager
async def requests(path: Path) -> AsyncGenerator[httpx2.AsyncClient]:
    transport = httpx2.AsyncHTTPTransport(uds=str(path))
    async with httpx2.AsyncClient(transport=transport, base_url="http://local") as http:
        yield http


def modern(method: str, params: dict[str, Any], who: str = "alice") -> dict[str, Any]:
    """Make the arguments of a POST of the modern era."""
    envelope: dict[str, Any] = {
        "io.modelcontextprotocol/protocolVersion": MODERN,
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    headers = {
        "accept": "application/json, text/event-stream",
        "mcp-protocol-version": MODERN,
        "mcp-method": method,
        "mcp-name": params.get("name", ""),
        "x-name": who,
    }
    body: dict[str, Any] = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": method,
        "params": {**params, "_meta": envelope},
    }
    return {"json": body, "headers": headers}


def opening(who: str) -> dict[str, Any]:
    """Make the arguments of the first POST of the older protocol."""
    hello = {
        "protocolVersion": OLDER,
        "capabilities": {},
        "clientInfo": {"name": "t", "version": "1"},
    }
    asked = older("initialize", hello, who)
    del asked["headers"]["mcp-protocol-version"]
    return asked


def older(
    method: str, params: dict[str, Any], who: str, session: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Make the arguments of a later POST of the older protocol."""
    headers = {
        "accept": "application/json, text/event-stream",
        "mcp-protocol-version": OLDER,
        "x-name": who,
        **(session or {}),
    }
    return {
        "json": {"jsonrpc": "2.0", "id": 1, "method": method, "params": params},
        "headers": headers,
    }
