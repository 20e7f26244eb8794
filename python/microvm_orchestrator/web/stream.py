"""Events as they happen, as server-sent events.

Each message is one answer of `event_wait`, and its id is that answer's cursor: a client that was
cut off comes back with it (browsers do so by themselves) and misses nothing. Nothing is queued
here for a slow client; it is hung up on and resumes from the journal. Above sits app.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
from starlette.responses import Response

from microvm_orchestrator import errors
from microvm_orchestrator.web.api import caller_of
from microvm_orchestrator.web.arguments import Layout
from microvm_orchestrator.web.http import hang_up
from microvm_orchestrator.web.openapi import parameters, responses

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from microvm_orchestrator.service.calls import Caller
    from microvm_orchestrator.service.service import Service

PATH = "/v1/events/stream"
_CALL = "event_wait"
# A proxy or a client gives a silent connection up after half a minute or more.
PING_S = 15.0
# A client that takes nothing for so long has hung; its cursor keeps its place.
SLOW_S = 5.0


async def serve(service: Service, request: Request) -> Response:
    """Answer with the stream; what is wrong with the request is said before it begins."""
    arguments = Layout(service.calls[_CALL]).from_query(request.query_params.multi_items())
    if "timeout_s" in arguments:
        raise errors.InvalidInput("a stream has no timeout_s")
    if resumed := request.headers.get("last-event-id"):
        arguments["after"] = resumed
    wait = _Wait(service, caller_of(request), arguments)
    return _EventStream(wait, await wait.more(0.0))


class _Wait:
    """`event_wait`, again and again, each time from where the last answer ended."""

    def __init__(self, service: Service, caller: Caller, arguments: Mapping[str, object]) -> None:
        self._service = service
        self._caller = caller
        self._arguments = dict(arguments)

    async def more(self, timeout_s: float) -> bytes:
        """Give the next message; one without events is a sign of life that moves the cursor."""
        answer = await self._service.invoke(
            self._caller, _CALL, {**self._arguments, "timeout_s": timeout_s}
        )
        told: dict[str, Any] = answer.model_dump()
        self._arguments["after"] = cursor = told["cursor"]
        if not told["events"]:
            return f": still here\nid: {cursor}\n\n".encode()
        return f"id: {cursor}\ndata: {answer.model_dump_json()}\n\n".encode()


class _EventStream(Response):
    media_type = "text/event-stream"

    def __init__(self, wait: _Wait, first: bytes) -> None:
        super().__init__(
            # Proxies that collect an answer before they pass it on would hold events back.
            headers={"cache-control": "no-store", "x-accel-buffering": "no"}
        )
        del self.headers["content-length"]
        self._wait = wait
        self._next = first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(self._pump, scope, send)
            while (await receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()

    async def _pump(self, scope: Scope, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        try:
            while True:
                with anyio.fail_after(SLOW_S):
                    await send(_body(self._next, more=True))
                self._next = await self._wait.more(PING_S)
        except TimeoutError:
            hang_up(scope)
        except errors.OrchestratorError:
            # The daemon stops, or the journal was trimmed: coming back says which.
            await send(_body(b"", more=False))


def _body(data: bytes, *, more: bool) -> dict[str, object]:
    return {"type": "http.response.body", "body": data, "more_body": more}


def description(service: Service) -> dict[str, Any]:
    """Describe the stream for the OpenAPI document."""
    layout = Layout(service.calls[_CALL])
    found = parameters(layout, dict(layout.schema))
    return {
        "get": {
            "operationId": "event_stream",
            "tags": ["event"],
            "summary": "Receive events as they happen",
            "description": (
                "Server-sent events. Each message holds what one call of `event_wait` answers, "
                "and its id is the cursor behind it; `Last-Event-ID` goes on from there."
            ),
            "parameters": [
                *(each for each in found if each["name"] != "timeout_s"),
                {"name": "Last-Event-ID", "in": "header", "schema": {"type": "string"}},
            ],
            "responses": {
                "200": {
                    "description": "the stream",
                    "content": {"text/event-stream": {"schema": {"type": "string"}}},
                },
                **responses(with_body=False),
            },
        }
    }
