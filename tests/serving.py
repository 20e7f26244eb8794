"""A service on a real store, served on a real socket, for the tests of this folder."""

from __future__ import annotations

import math
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import anyio
import httpx2

from microvm_orchestrator import config
from microvm_orchestrator.events import Journal
from microvm_orchestrator.host import open_host
from microvm_orchestrator.service.calls import Call
from microvm_orchestrator.service.service import Service
from microvm_orchestrator.service.table import BY_NAME
from microvm_orchestrator.store.sqlite import SqliteStore
from microvm_orchestrator.web.app import application
from microvm_orchestrator.web.duplex import serve_duplex
from microvm_orchestrator.web.identity import Identity
from microvm_orchestrator.web.listener import Listener
from microvm_orchestrator.web.metrics import Meter
from microvm_orchestrator.web.sockets import open_tcp, open_unix
from microvm_orchestrator.web.terms import Terms

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Mapping
    from pathlib import Path

    from anyio.abc import ByteStream
    from anyio.streams.memory import MemoryObjectReceiveStream
    from starlette.routing import BaseRoute

    from microvm_orchestrator.model.access import Principal
    from microvm_orchestrator.web.app import McpRoutes


@dataclass(frozen=True)
class Served:
    path: Path
    address: str
    service: Service
    listener: Listener
    terms: Terms
    http: httpx2.AsyncClient
    # Of every call that ended: its name and how.
    outcomes: MemoryObjectReceiveStream[tuple[str, str]]


async def echo(
    stream: ByteStream, principal: Principal, profile: str, settings: Mapping[str, str]
) -> None:
    """Say who is there, then everything that comes."""
    told = "".join(f" {name}={value}" for name, value in settings.items())
    await stream.send(f"{principal.name} {principal.role} {profile}{told}\n".encode())
    async for data in stream:
        await stream.send(data)


async def no_mcp() -> list[BaseRoute]:
    return []


@asynccontextmanager
async def served(
    tmp_path: Path,
    *,
    more: Iterable[Call] = (),
    mcp: McpRoutes = no_mcp,
    **given: dict[str, object],
) -> AsyncGenerator[Served]:
    """Serve until the block ends; `given` are sections of the settings."""
    settings = config.Settings.model_validate(
        {
            "state_dir": tmp_path,
            "socket": {"path": tmp_path / "socket"},
            "tcp": {"listen": "127.0.0.1:0"},
            **given,
        }
    )
    store = SqliteStore(tmp_path / "store.db")
    async with (
        store.opened(),
        open_host(settings, store) as host,
        anyio.create_task_group() as group,
    ):
        events = Journal(store)
        calls = BY_NAME | {call.name: call for call in more}
        meter = Meter()
        told, outcomes = anyio.create_memory_object_stream[tuple[str, str]](math.inf)

        def observe(call: str, via: str, outcome: str, seconds: float) -> None:
            meter.observe(call, via, outcome, seconds)
            told.send_nowait((call, outcome))

        service = Service(store, events, host, settings, calls, observe)
        terms = Terms(settings.access, settings.limits)
        identity = Identity(service, terms)
        listener = Listener(
            application(service, identity, terms, meter, mcp),
            echo,
            partial(serve_duplex, service, terms),
            identity,
            terms,
        )
        group.start_soon(events.pump)
        with open_unix(settings.socket) as local, open_tcp(settings.tcp) as network:
            assert network is not None
            address = f"127.0.0.1:{network.getsockname()[1]}"
            group.start_soon(listener.serve, [local, network])
            transport = httpx2.AsyncHTTPTransport(uds=str(settings.socket.path))
            async with httpx2.AsyncClient(transport=transport, base_url="http://local") as http:
                with told, outcomes:
                    yield Served(
                        settings.socket.path, address, service, listener, terms, http, outcomes
                    )
            group.cancel_scope.cancel()
