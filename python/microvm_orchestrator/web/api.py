"""REST, generated from the table of calls: one ASGI application per path, none per call.

Translates a request into `service.invoke` and its answer or error back; decides nothing. Above
sits app.py, below are the service and the table. Lives as long as the daemon.
"""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from microvm_orchestrator import errors
from microvm_orchestrator.service.calls import Caller
from microvm_orchestrator.service.unless import unless
from microvm_orchestrator.web.arguments import IDEMPOTENCY_FIELD, IDEMPOTENCY_HEADER, Layout
from microvm_orchestrator.web.body import read_object
from microvm_orchestrator.web.problems import problem, refusal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from pydantic import BaseModel
    from starlette.types import Receive, Scope, Send

    from microvm_orchestrator.service.service import Service
    from microvm_orchestrator.web.terms import Terms

    Handler = Callable[[Request], Awaitable[Response]]
    Refused = Callable[[Exception, Request], Response]

VIA = "rest"


def routes(service: Service, terms: Terms) -> list[Route]:
    """Return the routes of every call, those with fixed segments before those with parameters."""
    by_path: dict[str, dict[str, Handler]] = defaultdict(dict)
    for call in service.calls.values():
        by_path[call.path][call.method] = partial(_serve, service, terms, Layout(call))
    return [Route(path, Served(by_path[path])) for path in sorted(by_path, key=_generality)]


def _generality(path: str) -> list[tuple[bool, str]]:
    return [(segment.startswith("{"), segment) for segment in path.split("/")]


class Served:
    """One address as an ASGI application: whatever goes wrong in a handler becomes a refusal."""

    def __init__(self, handlers: Mapping[str, Handler], refused: Refused = problem) -> None:
        self._handlers = handlers
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        try:
            response = await self._answer(request)
        except ClientDisconnect:
            return
        except Exception as error:  # noqa: BLE001 - the edge where every error becomes an answer
            response = self._refused(error, request)
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        handler = self._handlers.get(request.method)
        if handler is not None:
            return await handler(request)
        allowed = ", ".join(sorted(self._handlers))
        detail = f"{request.method[:20]} is not served here, only {allowed}"
        return refusal(405, detail, headers={"allow": allowed})


async def unknown_address(scope: Scope, receive: Receive, send: Send) -> None:
    detail = f"nothing is served at {scope['path'][:200]}"
    response = refusal(404, detail, hint="/openapi.json lists what is")
    await response(scope, receive, send)


async def _serve(service: Service, terms: Terms, layout: Layout, request: Request) -> Response:
    caller = caller_of(request)
    arguments = await _arguments(request, layout, terms.limits.max_request_bytes)
    work = service.invoke(caller, layout.call.name, arguments)
    answer = await (while_connected(request, work) if layout.call.waits else work)
    return Response(answer.model_dump_json(), media_type="application/json")


async def _arguments(request: Request, layout: Layout, limit: int) -> dict[str, object]:
    found = layout.from_path(request.path_params)
    if layout.has_body:
        _none_in_query(request)
        given = await read_object(request, limit)
    else:
        given = layout.from_query(request.query_params.multi_items())
    if twice := found.keys() & given.keys():
        raise errors.InvalidInput(f"{min(twice)} stands in the path already")
    return found | given | _key(request, layout, given)


def _none_in_query(request: Request) -> None:
    if request.url.query:
        raise errors.InvalidInput(
            f"{request.method} takes nothing in the query", hint="put it into the JSON body"
        )


def _key(request: Request, layout: Layout, given: Mapping[str, object]) -> dict[str, object]:
    key = request.headers.get(IDEMPOTENCY_HEADER)
    if key is None or (layout.call.idempotent and not layout.takes_key):
        return {}
    if not layout.takes_key:
        # Taking it silently would promise what a retry does not keep.
        raise errors.InvalidInput(f"{layout.call.name} takes no {IDEMPOTENCY_HEADER}")
    if given.get(IDEMPOTENCY_FIELD, key) != key:
        raise errors.InvalidInput(f"{IDEMPOTENCY_FIELD} and the header {IDEMPOTENCY_HEADER} differ")
    return {IDEMPOTENCY_FIELD: key}


async def while_connected(request: Request, work: Awaitable[BaseModel]) -> BaseModel:
    """Wait for `work`, and stop waiting when the client goes: a claim must not go to nobody.

    Raises: what `work` raises; ClientDisconnect.
    """

    async def leaves() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    answer = await unless(leaves, work)
    if answer is None:
        raise ClientDisconnect
    return answer


def caller_of(request: Request) -> Caller:
    return Caller(request.state.principal, VIA, no_progress)


async def no_progress(done: float, total: float | None, message: str) -> None:
    """A plain answer has nowhere to show progress."""
