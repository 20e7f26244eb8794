"""What a guest may ask the daemon for: the tools of agents, and nothing else.

Above is the listener; below, the application that serves everything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import PlainTextResponse

from microvm_orchestrator.conversations.turn import DOOR_PATH

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send


class OnlyForAgents:
    """Passes on what is asked at the one path that agents are told."""

    def __init__(self, application: ASGIApp) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] != DOOR_PATH:
            await PlainTextResponse("There is nothing here.\n", 404)(scope, receive, send)
            return
        await self._application(scope, receive, send)
