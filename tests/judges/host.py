"""Our whole front door on a loopback port and a unix socket, for judges that are other programs."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import anyio

from calling import house
from judges.beside import add_fixtures
from microvm_orchestrator.mcp_server.server import McpFrontEnd
from microvm_orchestrator.mcp_server.transport import serve_stream
from microvm_orchestrator.web.app import application
from microvm_orchestrator.web.duplex import serve_duplex
from microvm_orchestrator.web.identity import Identity
from microvm_orchestrator.web.listener import Listener
from microvm_orchestrator.web.metrics import Meter
from microvm_orchestrator.web.sockets import open_tcp, open_unix
from microvm_orchestrator.web.terms import Terms

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from starlette.routing import BaseRoute
    from starlette.types import ASGIApp, Receive, Scope, Send


@dataclass(frozen=True)
class Host:
    url: str
    socket: Path
    front: McpFrontEnd


class _WithToken:
    """Puts a token where a judge cannot be told to put one; all else is as the daemon has it."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._header = (b"authorization", f"Bearer {token}".encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/mcp"):
            scope["headers"] = [*scope["headers"], self._header]
        await self._app(scope, receive, send)


@asynccontextmanager
async def host(tmp_path: Path, *, fixtures: bool) -> AsyncGenerator[Host]:
    """Serve until the block ends, with the conformance suite's fixtures or without."""
    async with house(tmp_path, tcp={"listen": "127.0.0.1:0"}) as kept:
        service, settings = kept.service, kept.service.settings
        front = McpFrontEnd(service)
        if fixtures:
            add_fixtures(front)
        await kept.ask("graph_submit", tasks=[{"key": "a"}, {"key": "b", "depends_on": ["a"]}])
        token = await kept.ask("token_create", name="judge", role="admin")

        async def routes() -> list[BaseRoute]:
            return front.http_routes()

        terms = Terms(settings.access, settings.limits)
        identity = Identity(service, terms)
        app = _WithToken(application(service, identity, terms, Meter(), routes), token["token"])
        streams = partial(serve_stream, front)
        listener = Listener(app, streams, partial(serve_duplex, service, terms), identity, terms)
        with open_unix(settings.socket) as local, open_tcp(settings.tcp) as network:
            assert network is not None
            async with front.running(), anyio.create_task_group() as group:
                group.start_soon(listener.serve, [local, network])
                port = network.getsockname()[1]
                yield Host(f"http://127.0.0.1:{port}/mcp", settings.socket.path, front)
                group.cancel_scope.cancel()
