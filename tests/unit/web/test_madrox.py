"""The addresses of madrox, and how they refuse what is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx2
import pytest
from starlette.applications import Starlette

from calling import house
from mcp_peer import ALICE
from microvm_orchestrator.mcp_server.server import McpFrontEnd
from microvm_orchestrator.web import madrox

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.types import Receive, Scope, Send

_JSON = {"content-type": "application/json"}

pytestmark = pytest.mark.anyio


async def test_what_is_wrong_is_refused_with_its_status_and_all_of_why(tmp_path: Path) -> None:
    async with house(tmp_path) as kept:
        served = Starlette(routes=madrox.routes(McpFrontEnd(kept.service)))

        async def known(scope: Scope, receive: Receive, send: Send) -> None:
            await served({**scope, "state": {"principal": ALICE}}, receive, send)

        transport = httpx2.ASGITransport(app=known)
        base = f"http://local{madrox.PREFIX}"
        async with httpx2.AsyncClient(transport=transport, base_url=base) as http:
            root = (await http.get("/")).json()
            tools = (await http.get("/tools")).json()["tools"]
            assert root["tools"] == [each["name"] for each in tools]
            gone = await http.get("/instances/nobody")
            assert (gone.status_code, gone.headers["content-type"]) == (404, "application/json")
            assert gone.json() == {"detail": "Instance nobody not found", "code": "not-found"}
            other = await http.delete("/instances")
            assert (other.status_code, other.headers["allow"]) == (405, "GET")
            for body, status in (
                ('{"tool": "no_such"}', 404),
                ('{"tool": "get_peers", "arguments": []}', 422),
                ('{"arguments": {}}', 422),
                ("[]", 422),
                ("{", 422),
            ):
                refused = await http.post("/tools/execute", content=body, headers=_JSON)
                assert (refused.status_code, set(refused.json())) == (status, {"detail", "code"})
            for lines in ("many", "-1", "9" * 5000):
                wrong = await http.get(f"/instances/nobody/terminal?lines={lines}")
                assert (wrong.status_code, wrong.json()["detail"]) == (422, "lines is a number")
            claimed = {"instance_id": "a", "reply_message": "yes"}
            denied = await http.post(
                "/tools/execute", json={"tool": "reply_to_caller", "arguments": claimed}
            )
            assert (denied.status_code, denied.json()["code"]) == (403, "denied")
            assert denied.json()["detail"] == (
                "you are alice, and not instance a (instances answer from their own machines; "
                "get_instance_output has the answers)"
            )
