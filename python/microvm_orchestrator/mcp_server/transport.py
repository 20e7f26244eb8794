"""How MCP messages come and go: JSON lines over a byte stream, and the routes for HTTP.

The listener above has accepted the connection and knows who is at the other end; the SDK below
speaks the protocol, of whichever era the client opens with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.runner import modern_on_request, serve_loop
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import InboundLadderRejection, classify_inbound_request
from mcp.shared.jsonrpc_dispatcher import JSONRPCDispatcher
from mcp.types import (
    INVALID_PARAMS,
    PROTOCOL_VERSION_META_KEY,
    UNSUPPORTED_PROTOCOL_VERSION,
    JSONRPCRequest,
)
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from starlette.responses import JSONResponse

from microvm_orchestrator import errors
from microvm_orchestrator.mcp_server.answers import error_text
from microvm_orchestrator.mcp_server.callers import Peer
from microvm_orchestrator.mcp_server.json_lines import JsonLines

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anyio.abc import ByteStream
    from mcp.server.lowlevel import Server
    from mcp.shared.dispatcher import DispatchContext
    from mcp.shared.transport_context import TransportContext
    from starlette.types import Receive, Scope, Send

    from microvm_orchestrator.mcp_server.server import McpFrontEnd
    from microvm_orchestrator.model.access import Principal


async def serve_stream(
    server: McpFrontEnd,
    stream: ByteStream,
    principal: Principal,
    profile: str,
    settings: Mapping[str, str] | None = None,
) -> None:
    """Serve one connection until its client leaves, then cut off what it still waited for.

    A message that is no request, or too long for one, is answered with a JSON-RPC error and the
    connection goes on. The stream is closed at the end. `settings` are for the profile.
    """
    async with stream:
        lines = JsonLines(stream, Peer(principal, settings or {}))
        try:
            chosen = server.server(profile)
        except errors.OrchestratorError as error:
            await _refuse_all(lines, error)
            return
        await _serve_lines(chosen, lines)


async def _refuse_all(lines: JsonLines, error: errors.OrchestratorError) -> None:
    async for item in lines:
        if isinstance(item.message, JSONRPCRequest):
            await lines.out.refuse(item.message.id, INVALID_PARAMS, error_text(error))


async def _serve_lines(server: Server[Any], lines: JsonLines) -> None:
    """Serve in the era of the client's first request.

    The SDK's own loop does the same, at the price of a relay between us and its dispatcher that
    costs a tenth of a call.
    """
    opening = await lines.opening()
    if opening is None or opening.method == "initialize" or not _has_envelope(opening.params):
        await serve_loop(server, lines, lines.out, lifespan_state=None)
        return
    answer = modern_on_request(server, None)

    async def on_request(
        dispatch: DispatchContext[TransportContext], method: str, params: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        if method == "initialize":
            raise MCPError(
                code=UNSUPPORTED_PROTOCOL_VERSION,
                message="this connection needs no handshake",
                data={"supported": list(MODERN_PROTOCOL_VERSIONS)},
            )
        route = classify_inbound_request({"method": method, "params": params})
        if isinstance(route, InboundLadderRejection):
            raise MCPError(code=route.code, message=route.message, data=route.data)
        return await answer(dispatch, method, params)

    await JSONRPCDispatcher(lines, lines.out).run(on_request, _heard)


async def _heard(
    _dispatch: DispatchContext[TransportContext], _method: str, _params: Mapping[str, Any] | None
) -> None:
    """Leave notifications be; the one that matters, a cancellation, is the dispatcher's."""


def _has_envelope(params: Mapping[str, Any] | None) -> bool:
    match params:
        case {"_meta": {**meta}}:
            return PROTOCOL_VERSION_META_KEY in meta
        case _:
            return False


class HttpDoor:
    """The ASGI application behind `/mcp` and `/mcp/profiles/{profile}`."""

    def __init__(self, server: McpFrontEnd) -> None:
        self._server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            sessions = self._server.sessions(scope["path_params"].get("profile", ""))
        except errors.OrchestratorError as error:
            body = {"error": {"code": error.code, "message": error.message, "hint": error.hint}}
            await JSONResponse(body, status_code=404)(scope, receive, send)
            return
        principal: Principal | None = scope.get("state", {}).get("principal")
        if principal is not None:
            # The SDK lets only its opener use a session of the older protocol.
            scope["user"] = AuthenticatedUser(
                AccessToken(token="", client_id=principal.name, scopes=[])
            )
        await sessions.handle_request(scope, receive, send)
