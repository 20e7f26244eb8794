"""The addresses that madrox had beside its tools: tools, instances, health.

A request has passed who may ask and from where, as all have. Above, the daemon mounts the routes
once what MCP needs is loaded; below, the tools of the profile.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from microvm_orchestrator import errors
from microvm_orchestrator.mcp_server.callers import http_settings
from microvm_orchestrator.mcp_server.json_lines import MAX_MESSAGE_BYTES
from microvm_orchestrator.mcp_server.profiles import madrox
from microvm_orchestrator.mcp_server.profiles import madrox_words as words
from microvm_orchestrator.model.values import moment, rfc3339
from microvm_orchestrator.service.calls import Caller
from microvm_orchestrator.web.api import Served, no_progress
from microvm_orchestrator.web.body import read_object
from microvm_orchestrator.web.problems import Problem, problem

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

    from microvm_orchestrator.mcp_server.profiles.madrox import MadroxServer, MadroxTools
    from microvm_orchestrator.mcp_server.server import McpFrontEnd

PREFIX = "/profiles/madrox"
VIA = "madrox"

_Handler = Callable[["MadroxTools", Request, Caller], Awaitable[Any]]
_LINES_USUAL, _LINES_MOST = 1000, 10_000
_DIGITS_MOST = 9


async def _answer(tools: MadroxTools, handler: _Handler, request: Request) -> Response:
    caller = Caller(request.state.principal, VIA, no_progress)
    return JSONResponse(await handler(tools, request, caller))


def _refusal(error: Exception, request: Request) -> Response:
    """Say all of it in `detail`, as that program did."""
    refused = problem(error, request)
    told = Problem.model_validate_json(bytes(refused.body))
    why = told.detail + (f" ({told.hint})" if told.hint else "")
    return JSONResponse({"detail": why, "code": told.code}, refused.status_code)


async def _root(tools: MadroxTools, _request: Request, caller: Caller) -> Any:
    every = await tools.instances.every(caller)
    return {
        "name": madrox.NAME,
        "version": madrox.VERSION,
        "description": "Agents in machines of their own, by the tools of madrox",
        "tools": [tool["name"] for tool in tools.described()],
        "active_instances": words.active(every),
        "server_time": rfc3339(moment(time.time())),
    }


async def _health(tools: MadroxTools, _request: Request, caller: Caller) -> Any:
    every = await tools.instances.every(caller)
    return {
        "status": "healthy",
        "timestamp": rfc3339(moment(time.time())),
        "version": madrox.VERSION,
        "instances": {"total": len(every), "running": words.running(every)},
    }


async def _listed(tools: MadroxTools, _request: Request, _caller: Caller) -> Any:
    return {"tools": tools.described()}


async def _execute(tools: MadroxTools, request: Request, caller: Caller) -> Any:
    body = await read_object(request, MAX_MESSAGE_BYTES)
    tool = body.get("tool")
    if not isinstance(tool, str):
        raise errors.InvalidInput("`tool` is the name of a tool, and `arguments` an object")
    settings = http_settings(request.headers)
    return await tools.execute(caller, settings, tool, body.get("arguments", {}))


async def _instances(tools: MadroxTools, _request: Request, caller: Caller) -> Any:
    return await tools.instances.all_of_them(caller)


async def _instance(tools: MadroxTools, request: Request, caller: Caller) -> Any:
    return await tools.instances.all_of(caller, request.path_params["instance_id"])


async def _well(tools: MadroxTools, request: Request, caller: Caller) -> Any:
    return await tools.instances.health(caller, request.path_params["instance_id"])


async def _live(tools: MadroxTools, request: Request, caller: Caller) -> Any:
    asked = {"instance_id": request.path_params["instance_id"]}
    return await tools.execute(caller, {}, "get_live_instance_status", asked)


async def _terminal(tools: MadroxTools, request: Request, caller: Caller) -> Any:
    given = request.query_params.get("lines", str(_LINES_USUAL))
    # Python reads no number of thousands of digits.
    if not (given.isdecimal() and len(given) <= _DIGITS_MOST):
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


def routes(front_end: McpFrontEnd) -> list[BaseRoute]:
    """Give the addresses, which use the very tools that are offered over MCP."""
    tools = cast("MadroxServer", front_end.server("madrox")).tools
    return [
        Route(
            f"{PREFIX}{path}",
            Served({each: partial(_answer, tools, handlers[each]) for each in handlers}, _refusal),
        )
        for path, handlers in _ADDRESSES.items()
    ]
