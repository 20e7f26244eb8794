"""Refuses a request whose end two readers could see in two places.

With a length and with chunks it has two ends; h11 goes by the chunks, and a proxy in front that
went by the length would take what follows for the next client's request. RFC 9112, 6.1. Wraps the
whole HTTP application.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from microvm_orchestrator.web.problems import refusal

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send


class OneEndOnly:
    """Passes on what ends in one place, and hangs up on the rest."""

    def __init__(self, application: ASGIApp) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        names = {name for name, _ in scope["headers"]}
        if names >= {b"content-length", b"transfer-encoding"}:
            detail = "the request has both a Content-Length and a Transfer-Encoding"
            response = refusal(400, detail, headers={"connection": "close"})
            await response(scope, receive, send)
            return
        await self._application(scope, receive, send)
