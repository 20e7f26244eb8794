"""Everything that is served over HTTP, as one ASGI application.

Above sits the daemon, which hands it to the listener; below are the REST routes, the event stream,
the pages, health and metrics. MCP has routes of its own, and so has a profile of it; they appear
when its libraries are loaded.
"""

from __future__ import annotations

import json
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, cast

import anyio
import anyio.to_thread
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router

from microvm_orchestrator import __version__, errors
from microvm_orchestrator.web import openapi, stream
from microvm_orchestrator.web.api import Served, caller_of, routes, unknown_address
from microvm_orchestrator.web.body import check_media_type
from microvm_orchestrator.web.framing import OneEndOnly
from microvm_orchestrator.web.identity import Known
from microvm_orchestrator.web.metrics import CONTENT_TYPE
from microvm_orchestrator.web.origin import OwnPagesOnly
from microvm_orchestrator.web.pages import Pages
from microvm_orchestrator.web.problems import problem

if TYPE_CHECKING:
    from starlette.routing import BaseRoute
    from starlette.types import ASGIApp, Receive, Scope, Send

    from microvm_orchestrator.model.agent_health import AgentFigures
    from microvm_orchestrator.model.report import Measures
    from microvm_orchestrator.service.service import Service
    from microvm_orchestrator.web.identity import Identity
    from microvm_orchestrator.web.metrics import Meter
    from microvm_orchestrator.web.terms import Terms

# A store that takes longer for one read is not well.
HEALTH_TIMEOUT_S = 2.0
_MCP = "/mcp"
# Of programs whose tools a profile has, where those had addresses beside MCP.
_PROFILES = "/profiles/"
_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]


class McpRoutes(Protocol):
    """Gives the routes of MCP, once there are some."""

    async def __call__(self) -> list[BaseRoute]: ...


def application(
    service: Service, identity: Identity, terms: Terms, meter: Meter, mcp: McpRoutes
) -> ASGIApp:
    """Put the parts together; a request passes them from the last line here to the first."""
    rest = Router(
        [
            Route("/openapi.json", Served({"GET": _Document(service).serve})),
            Route("/healthz", Served({"GET": partial(_health, service)})),
            Route("/metrics", Served({"GET": partial(_metrics, service, meter)})),
            Route(stream.PATH, Served({"GET": partial(stream.serve, service)})),
            *routes(service, terms),
        ],
        redirect_slashes=False,
        default=unknown_address,
    )
    known: ASGIApp = Known(_WithMcp(rest, mcp), identity)
    if service.settings.pages.enabled:
        known = _WithPages(known, Pages(service, identity))
    origins = service.settings.tcp.allowed_origins
    # Tells browsers that pages from there may read what they asked for.
    shared = CORSMiddleware(known, origins, _METHODS, ["*"]) if origins else known
    return OneEndOnly(OwnPagesOnly(shared, service.settings.tcp))


class _WithPages:
    """Sends who looks for a page there, before it is asked who that is: they ask themselves."""

    def __init__(self, others: ASGIApp, pages: Pages) -> None:
        self._others = others
        self._pages = pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        serves = self._pages.serves(scope["path"])
        await (self._pages if serves else self._others)(scope, receive, send)


class _WithMcp:
    """Sends what is for MCP there; at the start, waits until it is loaded."""

    def __init__(self, rest: ASGIApp, mcp: McpRoutes) -> None:
        self._rest = rest
        self._find_routes = mcp
        self._mcp: Router | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path != _MCP and not path.startswith((f"{_MCP}/", _PROFILES)):
            await self._rest(scope, receive, send)
            return
        request = Request(scope)
        try:
            bare = path.startswith(_PROFILES) and not _has_body(request)
            if request.method == "POST" and not bare:
                check_media_type(request)
        except HTTPException as error:
            await problem(error, request)(scope, receive, send)
            return
        if self._mcp is None:
            self._mcp = Router(await self._find_routes(), default=unknown_address)
        await self._mcp(scope, receive, send)


def _has_body(request: Request) -> bool:
    """Whether a body comes, or something says that one does."""
    headers = request.headers
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


class _Document:
    """Describes all that is served. Made when it is first asked for: few ask, and it takes long."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._making = anyio.Lock()
        self._made: bytes | None = None

    async def serve(self, _request: Request) -> Response:
        async with self._making:
            if self._made is None:
                self._made = await anyio.to_thread.run_sync(self._make)
        return Response(self._made, media_type="application/json")

    def _make(self) -> bytes:
        plain = {stream.PATH: stream.description(self._service), **_PLAIN}
        described = openapi.document(self._service.calls.values(), plain)
        return json.dumps(described, ensure_ascii=False).encode()


async def _health(service: Service, _request: Request) -> Response:
    try:
        with anyio.fail_after(HEALTH_TIMEOUT_S):
            await service.store.cursor()
    except TimeoutError as error:
        raise errors.Unavailable(
            f"the store did not answer a read within {HEALTH_TIMEOUT_S:.0f} s"
        ) from error
    told = {"state": "ok", "version": __version__}
    return Response(json.dumps(told), media_type="application/json")


async def _metrics(service: Service, meter: Meter, request: Request) -> Response:
    now = agents = None
    with suppress(errors.Unavailable):
        # What went wrong before is in the counters, and now of all times worth seeing.
        now = await service.invoke(caller_of(request), "metrics_get", {})
        agents = await service.invoke(caller_of(request), "agent_metrics", {})
    totals = None if agents is None else cast("AgentFigures", agents).totals
    text = meter.text(cast("Measures | None", now), totals)
    return Response(text, headers={"content-type": CONTENT_TYPE})


def _plain(name: str, summary: str, media_type: str, schema: dict[str, Any]) -> dict[str, Any]:
    answer = {"description": summary, "content": {media_type: {"schema": schema}}}
    return {
        "get": {
            "operationId": name,
            "tags": ["daemon"],
            "summary": summary,
            "responses": {"200": answer, **openapi.responses(with_body=False)},
        }
    }


_PLAIN = {
    "/healthz": _plain(
        "health",
        "Say whether the store answers",
        "application/json",
        {"type": "object", "required": ["state", "version"]},
    ),
    "/metrics": _plain("metrics", "Count what was done", "text/plain", {"type": "string"}),
}
