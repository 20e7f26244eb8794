"""The same server over HTTP: real requests on a real socket, each with its own principal."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import httpx2
import pytest
import uvicorn
from starlette.applications import Starlette

from mcp_peer import ALICE, BOB, MODERN
from microvm_orchestrator.mcp_server.json_lines import MAX_MESSAGE_BYTES
from microvm_orchestrator.mcp_server.profiles import PROFILES

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from mcp.server.context import CallNext, HandlerResult
    from starlette.types import ASGIApp, Receive, Scope, Send

    from mcp_stage import Stage
    from microvm_orchestrator.mcp_server.callers import Context
    from microvm_orchestrator.mcp_server.server import McpFrontEnd

pytestmark = pytest.mark.anyio

PEOPLE = {"alice": ALICE, "bob": BOB}


class Named:
    """Takes who asks from a header, as the listener does from a token or the kernel."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = dict(scope["headers"]).get(b"x-name", b"").decode()
        if name in PEOPLE:
            scope["state"] = {"principal": PEOPLE[name]}
        await self._app(scope, receive, send)


@pytest.fixture
async def http(front: McpFrontEnd, tmp_path: Path) -> AsyncGenerator[httpx2.AsyncClient]:
    async with serving(front, tmp_path / "socket") as http:
        yield http


@asynccontextmanager
async def serving(front: McpFrontEnd, path: Path) -> AsyncGenerator[httpx2.AsyncClient]:
    app = Named(Starlette(routes=front.http_routes()))
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


LOOK = {"name": "thing_look", "arguments": {"name": "stone"}}


async def test_a_call_lists_no_tools(http: httpx2.AsyncClient, front: McpFrontEnd) -> None:
    server, listed = front.server(""), list[str]()

    async def noticed(ctx: Context, call_next: CallNext) -> HandlerResult:
        listed.append(ctx.method)
        return await call_next(ctx)

    server.middleware.insert(0, noticed)
    answer = await http.post("/mcp", **modern("tools/call", LOOK))

    assert answer.json()["result"]["structuredContent"]["name"] == "stone"
    assert listed == ["tools/call"]


@pytest.mark.parametrize("profile", ["default", *PROFILES])
async def test_no_tool_has_arguments_that_headers_repeat(
    http: httpx2.AsyncClient, profile: str
) -> None:
    answer = await http.post(f"/mcp/profiles/{profile}", **modern("tools/list", {}))

    assert answer.json()["result"]["tools"]
    assert "x-mcp-header" not in answer.text


async def test_each_request_is_made_by_its_own_principal(http: httpx2.AsyncClient) -> None:
    seen = [
        (await http.post("/mcp", **modern("tools/call", LOOK, who))).json()["result"]
        for who in ("alice", "bob")
    ]

    assert [each["structuredContent"]["seen_by"] for each in seen] == ["alice", "bob"]


async def test_a_request_of_nobody_is_refused(http: httpx2.AsyncClient) -> None:
    answer = await http.post("/mcp", **modern("tools/call", LOOK, who="nobody"))

    assert answer.json()["result"]["content"][0]["text"].startswith("unauthenticated: ")


async def test_a_profile_has_an_address_of_its_own(http: httpx2.AsyncClient) -> None:
    answer = await http.post("/mcp/profiles/orchestrator-server", **modern("tools/list", {}))
    native = await http.post("/mcp/profiles/default", **modern("tools/list", {}))

    assert "get_next_task" in {tool["name"] for tool in answer.json()["result"]["tools"]}
    assert "thing_look" in {tool["name"] for tool in native.json()["result"]["tools"]}


async def test_an_unknown_profile_is_not_found(http: httpx2.AsyncClient) -> None:
    answer = await http.post("/mcp/profiles/nonsense", **modern("tools/list", {}))

    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not-found"
    assert "orchestrator-server" in answer.json()["error"]["hint"]


async def test_the_address_is_served_without_a_detour(http: httpx2.AsyncClient) -> None:
    answer = await http.post("/mcp", **modern("server/discover", {}))

    assert answer.status_code == 200
    assert not answer.history


async def test_a_body_too_long_is_refused(http: httpx2.AsyncClient) -> None:
    answer = await http.post(
        "/mcp",
        content=b" " * (MAX_MESSAGE_BYTES + 1),
        headers=modern("tools/call", LOOK)["headers"],
    )

    assert answer.status_code == 413


async def test_a_waiting_call_ends_when_its_client_leaves(
    http: httpx2.AsyncClient, stage: Stage
) -> None:
    wait = {"name": "thing_wait", "arguments": {"name": "x"}}
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: http.post("/mcp", **modern("tools/call", wait)))
        await stage.started.wait()
        group.cancel_scope.cancel()

    with anyio.fail_after(10):
        await stage.cancelled.wait()


async def test_a_session_of_the_older_protocol_serves_only_who_opened_it(
    http: httpx2.AsyncClient,
) -> None:
    headers = {"accept": "application/json, text/event-stream", "x-name": "alice"}
    hello = {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "t", "version": "1"},
    }
    opened = await http.post(
        "/mcp",
        json={"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello},
        headers=headers,
    )
    session = {**headers, "mcp-session-id": opened.headers["mcp-session-id"]}
    ping = {"jsonrpc": "2.0", "id": 2, "method": "ping"}
    mine = await http.post("/mcp", json=ping, headers=session)
    theirs = await http.post("/mcp", json=ping, headers={**session, "x-name": "bob"})

    assert mine.status_code == 200
    assert theirs.status_code == 404
