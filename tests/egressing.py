"""An open endpoint and a client that stands for a guest's, for tests of what leaves a machine."""

from __future__ import annotations

import math
import socket
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio
import httpx2
from anyio.abc import SocketAttribute, SocketStream
from pydantic import SecretStr

from microvm_orchestrator.config import Egress as Settings
from microvm_orchestrator.egress.credentials import Credentials, Kind
from microvm_orchestrator.egress.endpoint import Egress, open_egress
from microvm_orchestrator.egress.guest import PLACEHOLDER
from microvm_orchestrator.egress.policy import Policy

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
    from pathlib import Path

    from anyio.abc import ByteStream
    from anyio.streams.memory import MemoryObjectReceiveStream

    from microvm_orchestrator.egress.budget import Exhausted
    from microvm_orchestrator.egress.exchange import Exchange, OnExchange
    from microvm_orchestrator.egress.reports import Report

PATIENCE_S = 20
KEY = "sk-ant-api03-the-real-key-" + "0123456789" * 8
TOKEN = "sk-ant-oat01-the-real-token-" + "0123456789" * 8
OPENAI_KEY = "sk-proj-the-real-key-of-openai-0123456789"
# As Claude Code sends them.
HEADERS = {
    "x-api-key": PLACEHOLDER,
    "anthropic-version": "2023-06-01",
    "anthropic-beta": "claude-code-20250219",
    "user-agent": "claude-cli/2.1.329 (external, sdk-cli)",
    "x-app": "cli",
    "x-stainless-lang": "js",
}
ASKED: dict[str, Any] = {
    "model": "claude-sonnet-4-5",
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "Hello"}],
    "tools": [{"name": "Bash"}],
}


@dataclass
class Outlet:
    """The endpoint, what its owner was told, and a guest's client of it."""

    egress: Egress
    credentials: Credentials
    http: httpx2.AsyncClient
    _exchanges: MemoryObjectReceiveStream[Exchange]
    exhausted: list[Exhausted] = field(default_factory=list["Exhausted"])
    reports: list[Report] = field(default_factory=list["Report"])

    async def told(self) -> Exchange:
        """Wait for the next exchange that the owner is told of."""
        with anyio.fail_after(PATIENCE_S):
            return await self._exchanges.receive()

    @property
    def waiting(self) -> int:
        """How many exchanges the owner was told of that nobody asked for yet."""
        return self._exchanges.statistics().current_buffer_used

    async def message(self, **more: Any) -> httpx2.Response:
        """Ask the model as Claude Code does."""
        return await self.http.post("/v1/messages?beta=true", json={**ASKED, **more})

    @asynccontextmanager
    async def connected(self) -> AsyncGenerator[ByteStream]:
        """Connect as a guest that may send anything."""
        assert self.egress.path is not None
        raw = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        raw.connect(str(self.egress.path))
        async with await SocketStream.from_socket(raw) as stream:
            yield stream

    async def exchanged(self, request: bytes) -> bytes:
        """Send bytes, and read until the other side ends."""
        answer = b""
        with anyio.fail_after(PATIENCE_S):
            async with self.connected() as stream, anyio.create_task_group() as group:

                async def send() -> None:
                    with suppress(anyio.BrokenResourceError):
                        await stream.send(request)

                group.start_soon(send)
                with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                    while True:
                        answer += await stream.receive()
        return answer


async def keys_in(folder: Path, **kept: tuple[Kind, str]) -> Credentials:
    credentials = Credentials(folder)
    for name, (kind, value) in kept.items():
        await credentials.set(name, kind, SecretStr(value))
    return credentials


@asynccontextmanager
async def outlet(
    tmp_path: Path,
    *,
    api: str = "http://127.0.0.1:1",
    hosts: Sequence[str] = (),
    settings: dict[str, Any] | None = None,
    credentials: Credentials | None = None,
    named: Sequence[str] = (),
    on_exchange: OnExchange | None = None,
    **more: Any,
) -> AsyncGenerator[Outlet]:
    """Open an endpoint whose model APIs are all at `api`; `more` is for `open_egress`."""
    kept = credentials or await keys_in(
        tmp_path,
        key=(Kind.ANTHROPIC_API_KEY, KEY),
        openai=(Kind.OPENAI_API_KEY, OPENAI_KEY),
    )
    given = Settings(anthropic_url=api, openai_url=api, **(settings or {}))
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700, exist_ok=True)
    send, receive = anyio.create_memory_object_stream["Exchange"](math.inf)
    exhausted: list[Exhausted] = []
    reports: list[Report] = []

    async def keep(exchange: Exchange) -> None:
        send.send_nowait(exchange)

    async def on_exhausted(limit: Exhausted) -> None:
        exhausted.append(limit)

    async def on_report(report: Report) -> None:
        reports.append(report)

    told: dict[str, Any] = {"on_exhausted": on_exhausted, "on_report": on_report, **more}
    policy = Policy.of(given, hosts, named)
    async with (
        send,
        receive,
        open_egress(policy, kept, on_exchange or keep, folder=folder, **told) as egress,
    ):
        transport = httpx2.AsyncHTTPTransport(uds=str(egress.path))
        async with httpx2.AsyncClient(
            transport=transport,
            base_url="http://127.0.0.1:4001",
            headers=HEADERS,
            timeout=PATIENCE_S,
        ) as http:
            yield Outlet(egress, kept, http, receive, exhausted, reports)


@asynccontextmanager
async def listening(
    serve: Callable[[ByteStream], Awaitable[None]], host: str = "127.0.0.1"
) -> AsyncGenerator[int]:
    """Serve connections on a port of this host until the block ends."""
    listener = await anyio.create_tcp_listener(local_host=host)
    port: int = listener.listeners[0].extra(SocketAttribute.local_port)  # noqa: S610 - not Django's
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, serve)
        yield port
        group.cancel_scope.cancel()
