"""HTTP/1.1 on one connection: uvicorn's protocol with a deadline for every request.

Uvicorn closes a connection that is idle after a request, but waits for ever for a first or a
half-sent one, and for a client that does not read. Above sits the listener; below, uvicorn's
parser, which runs the application.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import anyio
from h11 import LocalProtocolError
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

if TYPE_CHECKING:
    import asyncio

    from starlette.types import Scope
    from uvicorn.config import Config
    from uvicorn.server import ServerState

# Room for a query with many labels; the bodies are limited by the settings.
MAX_HEAD_BYTES = 65_536

_HANG_UP = "hang_up"


class Http(H11Protocol):
    """One connection; `gone` is set when it has ended.

    From the connection, or from the end of an answer, a client has `patience_s` until its next
    request is there, head and body, and the answer before it is taken.
    """

    def __init__(
        self, config: Config, server: ServerState, state: dict[str, Any], patience_s: float
    ) -> None:
        super().__init__(config, server, state)
        self._patience_s = patience_s
        self.gone = anyio.Event()
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]  # a transport is all it is given
        super().connection_made(transport)
        self.app_state = {**self.app_state, _HANG_UP: transport.abort}
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._rest()
        self.gone.set()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._rest()
        self._watch()

    def shutdown(self) -> None:
        try:
            super().shutdown()
        except LocalProtocolError:  # what it got was no HTTP; the answer to that is on its way
            self.transport.close()

    def _watch(self) -> None:
        """Let the deadline run exactly while it is the client whose turn it is."""
        cycle = cast("RequestResponseCycle | None", self.cycle)  # None before the first request
        answering = cycle is not None and not (cycle.response_complete or cycle.more_body)
        if answering or self.gone.is_set():
            self._rest()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self._patience_s, self.transport.abort)

    def _rest(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def hang_up(scope: Scope) -> None:
    """End the connection of a request at once, whatever still waits to be read."""
    abort = scope["state"].get(_HANG_UP)
    if abort is not None:
        abort()
