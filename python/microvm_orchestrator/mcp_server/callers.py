"""Who makes an MCP request: found where the transport left it, and told of progress now and then.

Over a byte stream the connection has one principal, which travels beside each message as a `Peer`;
over HTTP each request has its own, put into the ASGI scope by the listener.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from mcp.server.context import ServerRequestContext
from pydantic import TypeAdapter, ValidationError
from starlette.requests import HTTPConnection

from microvm_orchestrator import errors
from microvm_orchestrator.model.access import Principal
from microvm_orchestrator.service.calls import Caller

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.datastructures import Headers

    from microvm_orchestrator.service.calls import Progress

Context: TypeAlias = ServerRequestContext[Any, Any]

# Often enough that no client thinks a waiting call dead (they wait minutes), seldom enough that a
# busy wait does not fill a model's terminal.
PROGRESS_EVERY_S = 3.0
# JSON of what users of a profile set in the environment of the program that it stands for.
SETTINGS_HEADER = "x-profile-settings"
_SETTINGS = TypeAdapter(dict[str, str])
# The protocol wants progress to grow with each report; a wait that stands still grows by this.
_STANDING_STILL = 0.001


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class Peer:
    """The other end of a byte stream."""

    principal: Principal
    # What it set for the profile that it chose.
    settings: Mapping[str, str] = field(default_factory=dict[str, str])


def principal_of(ctx: Context) -> Principal:
    match ctx.request:
        case Peer(principal=principal):
            return principal
        case HTTPConnection(scope={"state": {"principal": Principal() as principal}}):
            return principal
        case _:
            pass
    raise errors.Unauthenticated("the connection did not say who is asking")


def settings_of(ctx: Context) -> Mapping[str, str]:
    """Give what a client set for its profile: when it connected, or over HTTP in a header."""
    request: object = ctx.request
    if isinstance(request, HTTPConnection):
        return http_settings(request.headers)
    return request.settings if isinstance(request, Peer) else {}


def http_settings(headers: Headers) -> Mapping[str, str]:
    """Read what a client set for its profile. Raises: InvalidInput."""
    try:
        return _SETTINGS.validate_json(headers.get(SETTINGS_HEADER, "{}"))
    except ValidationError as error:
        raise errors.InvalidInput(f"{SETTINGS_HEADER} is no JSON object of texts") from error


def http_headers(ctx: Context) -> Headers | None:
    """Give the headers of a request that came over HTTP."""
    request: object = ctx.request
    return request.headers if isinstance(request, HTTPConnection) else None


def caller_of(ctx: Context, progress: Progress | None = None) -> Caller:
    report = PacedProgress(ctx.session.report_progress) if progress is None else progress
    return Caller(principal=principal_of(ctx), via="mcp", progress=report)


class PacedProgress:
    """Passes progress on, but not more often than `PROGRESS_EVERY_S`, and always growing."""

    def __init__(
        self, report: Callable[[float, float | None, str | None], Awaitable[None]]
    ) -> None:
        self._report = report
        self._next_at = 0.0
        self._last = float("-inf")

    async def __call__(self, done: float, total: float | None, message: str) -> None:
        now = time.monotonic()
        if now < self._next_at:
            return
        self._next_at = now + PROGRESS_EVERY_S
        self._last = max(done, self._last + _STANDING_STILL)
        await self._report(self._last, total, message)
