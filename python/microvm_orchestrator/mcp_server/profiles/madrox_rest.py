"""The addresses of that program's REST, below the profile's own: tools, instances, health.

A request has passed who may ask and from where, as all have. Above, the listener mounts the routes;
below, the profile's tools.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from pydantic import ValidationError
from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from microvm_orchestrator import errors, log
from microvm_orchestrator.mcp_server.callers import http_settings
from microvm_orchestrator.mcp_server.json_lines import MAX_MESSAGE_BYTES
from microvm_orchestrator.mcp_server.profiles import madrox, madrox_words
from microvm_orchestrator.model.values import moment, rfc3339
from microvm_orchestrator.service.calls import Caller

if TYPE_CHECKING:
    from starlette.routing import BaseRoute
    from starlette.types import Receive, Scope, Send

    from microvm_orchestrator.mcp_server.profiles.madrox import MadroxTools

PREFIX = "/profiles/madrox"
VIA = "madrox"
_log = log.get(__name__)

_Handler = Callable[["MadroxTools", Request, Caller], Awaitable[Any]]
_STATUSES: tuple[tuple[type[errors.OrchestratorError], int], ...] = (
    (errors.TooLarge, 413),
    (errors.InvalidInput, 422),
    (errors.Unauthenticated, 401),
    (errors.Denied, 403),
    (errors.NotFound, 404),
    (errors.Conflict, 409),
    (errors.Unavailable, 503),
)
_LINES_USUAL, _LINES_MOST = 1000, 10_000


class _Served:
    """One address; a refusal says why in `detail`, as that program's did."""

    def __init__(self, tools: MadroxTools, handlers: dict[str, _Handler]) -> None:
        self._tools = tools
        self._handlers = handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        try:
            response = await self._answer(request)
        except ClientDisconnect:
            return
        except errors.OrchestratorError as error:
            response = _refusal(error)
        except Exception as error:  # noqa: BLE001 - the edge where every error becomes an answer
            _log.error("request_crashed", path=scope["path"], exc_info=error)
            response = JSONResponse({"detail": "see the daemon's log"}, status_code=500)
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> JSONResponse:
        handler = self._handlers.get(request.method)
        if handler is None:
            allowed = {"allow": ", ".join(sorted(self._handlers))}
            return JSONResponse({"detail": "Method Not Allowed"}, status_code=405, headers=allowed)
        caller = Caller(request.state.principal, VIA, _silent)
        return JSONResponse(await handler(self._tools, request, caller))


def _refusal(error: errors.OrchestratorError) -> JSONResponse:
    status = next((status for kind, status in _STATUSES if isinstance(error, kind)), 500)
    told = {"detail": madrox_words.why(error), "code": error.code}
    return JSONResponse(told, status_code=status)


async def _silent(done: float, total: float | None, message: str) -> None:
    """There is nowhere to show progress."""


async def _object(request: Request) -> dict[str, Any]:
    """Raises: InvalidInput, TooLarge."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_MESSAGE_BYTES:
            raise errors.TooLarge(f"the body has more than {MAX_MESSAGE_BYTES} bytes")
    try:
        value: object = from_json(bytes(data))
    except (ValueError, ValidationError) as error:
        raise errors.InvalidInput("the body is no JSON") from error
    if not isinstance(value, dict):
        raise errors.InvalidInput("the body must be a JSON object")
    return cast("dict[str, Any]", value)


async def _root(tools: MadroxTools, _request: Request, caller: Caller) -> Any:
    status = await tools.instances.all_of_them(caller)
    return {
        "name": madrox.NAME,
        "version": madrox.VERSION,
        "description": "Agents in machines of their own, by the tools of madrox",
        "tools": [tool["name"] for tool in tools.described()],
        "active_instances": status["active_instances"],
        "server_time": rfc3339(moment(time.time())),
    }


async def _health(tools: MadroxTools, _request: Request, caller: Caller) -> Any:
    status = await tools.instances.all_of_them(caller)
    states = [each["state"] for each in status["instances"].values()]
    return {
        "status": "healthy",
        "timestamp": rfc3339(moment(time.time())),
        "version": madrox.VERSION,
        "instances": {
            "total": len(states),
            "running": len([each for each in states if each in {"running", "idle", "busy"}]),
        },
    }


async def _listed(tools: MadroxTools, _request: Request, _caller: Caller) -> Any:
    return {"tools": tools.described()}


async def _execute(tools: MadroxTools, request: Request, caller: Caller) -> Any:
    body = await _object(request)
    tool = body.get("tool")
    if not isinstance(tool, str):
        raise errors.InvalidInput("`tool` is the name of a tool, and `arguments` an object")
    settings = http_settings(request.headers)
    return await tools.execute(caller, settings, tool, body.get("arguments", {}))


async def _instances(tools: MadroxTools, _request: Request, caller: Caller) -> Any:
    return await tools.instances.all_of_them(caller)


async def _instance(tools: MadroxTools, request: Request, caller: Caller) -> Any:
    agent = await tools.instances.one(caller, request.path_params["instance_id"])
    return await tools.instances.details(caller, agent)


async def _well(tools: MadroxTools, request: Request, caller: Caller) -> Any:
    return await tools.instances.health(caller, request.path_params["instance_id"])


async def _live(tools: MadroxTools, request: Request, caller: Caller) -> Any:
    asked = {"instance_id": request.path_params["instance_id"]}
    return await tools.execute(caller, {}, "get_live_instance_status", asked)


async def _terminal(tools: MadroxTools, request: Request, caller: Caller) -> Any:
    given = request.query_params.get("lines", str(_LINES_USUAL))
    if not given.isdecimal():
        raise errors.InvalidInput("lines is a number")
    instance_id = request.path_params["instance_id"]
    asked = {"instance_id": instance_id, "lines": max(1, min(int(given), _LINES_MOST))}
    content = await tools.execute(caller, {}, "get_tmux_pane_content", asked)
    return {"instance_id": instance_id, "content": content}


_ADDRESSES: dict[str, dict[str, _Handler]] = {
    "/": {"GET": _root},
    "/health": {"GET": _health},
    "/tools": {"GET": _listed},
    "/tools/execute": {"POST": _execute},
    "/instances": {"GET": _instances},
    "/instances/{instance_id}": {"GET": _instance},
    "/instances/{instance_id}/health": {"POST": _well},
    "/instances/{instance_id}/live_status": {"GET": _live},
    "/instances/{instance_id}/terminal": {"GET": _terminal},
}


def rest_routes(tools: MadroxTools) -> list[BaseRoute]:
    serve = partial(_Served, tools)
    return [Route(f"{PREFIX}{path}", serve(served)) for path, served in _ADDRESSES.items()]
