"""The same server over HTTP: real requests on a real socket, each with its own principal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import httpx2
import pytest

from mcp_http import modern, older, opening, serving
from microvm_orchestrator.mcp_server.json_lines import MAX_MESSAGE_BYTES
from microvm_orchestrator.mcp_server.profiles import PROFILES

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from mcp.server.context import CallNext, HandlerResult

    from mcp_stage import Stage
    from microvm_orchestrator.mcp_server.callers import Context
    from microvm_orchestrator.mcp_server.server import McpFrontEnd

pytestmark = pytest.mark.anyio


@pytest.fixture
async def http(front: McpFrontEnd, tmp_path: Path) -> AsyncGenerator[httpx2.AsyncClient]:
    async with serving(front, tmp_path / "socket") as http:
        yield http


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
    opened = await http.post("/mcp", **opening("alice"))
    session = {"mcp-session-id": opened.headers["mcp-session-id"]}
    mine = await http.post("/mcp", **older("ping", {}, "alice", session))
    theirs = await http.post("/mcp", **older("ping", {}, "bob", session))

    assert mine.status_code == 200
    assert theirs.status_code == 404


async def test_one_agent_opens_no_sessions_that_another_would_lack(
    http: httpx2.AsyncClient, front: McpFrontEnd
) -> None:
    front.sessions("agent").max_sessions = 3
    opened = [await http.post("/mcp/profiles/agent", **opening("alice")) for _ in range(3)]
    others = await http.post("/mcp/profiles/agent", **opening("bob"))

    assert [each.status_code for each in [*opened, others]] == [200] * 4
    assert "mcp-session-id" not in others.headers
