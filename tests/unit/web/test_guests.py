"""What is asked out of the machines of agents: by each agent in its own, and in no other."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, cast

import anyio
import httpx2
import pytest
from anyio.streams.buffered import BufferedByteStream
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from microvm_orchestrator.conversations.turn import DOOR_PATH
from microvm_orchestrator.model import token as tokens
from microvm_orchestrator.model.access import Principal, Role, Scope
from microvm_orchestrator.model.names import new_id
from microvm_orchestrator.model.records import SYSTEM, Record
from microvm_orchestrator.web.identity import PRINCIPAL
from serving import Served, served

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from starlette.requests import Request
    from starlette.routing import BaseRoute

# An agent, and who was copied from it with all that lay on its disk.
ADA, COPY = "agt_ada", "agt_copy"


async def say_who(request: Request) -> PlainTextResponse:
    return PlainTextResponse(cast("Principal", getattr(request.state, PRINCIPAL)).name)


async def who_asks() -> list[BaseRoute]:
    """Stand where the tools of agents are."""
    return [Route(DOOR_PATH, say_who, methods=["POST"])]


async def token_of(here: Served, name: str) -> str:
    """Make a token of this name, as agents are given theirs."""
    token_id, secret = new_id("tok"), tokens.new_secret()
    kept = tokens.KeptToken(
        name=name,
        role=Role.VIEWER,
        scope=Scope(everything=False, own=False),
        digest=tokens.digest(secret),
        created_by="ann",
        expires_at=None,
    )
    record = Record(tokens.KIND, token_id, kept.model_dump(mode="json"))
    await here.service.store.save(record, SYSTEM)
    return tokens.written(token_id, secret)


@asynccontextmanager
async def machine_of(here: Served, agent_id: str) -> AsyncGenerator[httpx2.AsyncClient]:
    """Be a program in the machine of an agent, where a port leads to the daemon."""
    path = here.path.with_name(agent_id)
    transport = httpx2.AsyncHTTPTransport(uds=str(path))
    async with (
        await anyio.create_unix_listener(path) as port,
        httpx2.AsyncClient(transport=transport, base_url="http://local") as http,
        anyio.create_task_group() as group,
    ):
        group.start_soon(port.serve, partial(here.listener.serve_guest, agent_id))
        yield http
        group.cancel_scope.cancel()


async def ask(http: httpx2.AsyncClient, token: str | None) -> tuple[int, str]:
    """Ask for the tools of agents; give the status, and who that is or what is wrong."""
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    answer = await http.post(DOOR_PATH, json={}, headers=headers)
    return answer.status_code, answer.text if answer.is_success else answer.json()["code"]


async def test_a_copy_of_an_agent_is_not_served_with_the_token_of_whom_it_was_copied_from(
    tmp_path: Path,
) -> None:
    async with served(tmp_path, mcp=who_asks) as here:
        adas, copys = await token_of(here, f"agent:{ADA}"), await token_of(here, f"agent:{COPY}")
        async with machine_of(here, ADA) as inside:
            assert await ask(inside, adas) == (200, f"agent:{ADA}")
            assert await ask(inside, copys) == (401, "unauthenticated")
        async with machine_of(here, COPY) as inside:
            assert await ask(inside, adas) == (401, "unauthenticated")
            assert await ask(inside, copys) == (200, f"agent:{COPY}")


async def test_out_of_the_machine_of_an_agent_nobody_else_is_served(tmp_path: Path) -> None:
    async with served(tmp_path, mcp=who_asks) as here, machine_of(here, ADA) as inside:
        ann = (await here.http.post("/v1/tokens", json={"name": "ann", "role": "admin"})).json()
        assert await ask(inside, ann["token"]) == (401, "unauthenticated")
        assert await ask(inside, None) == (401, "unauthenticated")
        headers = {"authorization": f"Bearer {ann['token']}"}
        assert (await inside.get("/v1/whoami", headers=headers)).status_code == 404


async def test_the_token_of_an_agent_is_of_no_use_outside_its_machine(tmp_path: Path) -> None:
    async with served(tmp_path, mcp=who_asks) as here:
        adas = await token_of(here, f"agent:{ADA}")
        assert await ask(here.http, adas) == (401, "unauthenticated")
        async with httpx2.AsyncClient(base_url=f"http://{here.address}") as network:
            assert await ask(network, adas) == (401, "unauthenticated")
        preface = json.dumps({"connect": {"profile": "agent", "token": adas}}).encode()
        lines = BufferedByteStream(await anyio.connect_unix(here.path))
        async with lines:
            await lines.send(preface + b"\n")
            with anyio.fail_after(5):
                told = json.loads(await lines.receive_until(b"\n", 65_536))
            assert told["error"]["message"].startswith("unauthenticated: ")
            with pytest.raises(anyio.EndOfStream):
                await lines.receive()
