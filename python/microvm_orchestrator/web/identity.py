"""Who sent a request: its bearer token decides, else the peer of its unix socket.

Above sit the routes and the listener; below, the service's own rules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import anyio

from microvm_orchestrator import errors
from microvm_orchestrator.service import tokens
from microvm_orchestrator.service.identity import Peer, principal_of
from microvm_orchestrator.store.base import Match

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection

    from microvm_orchestrator.model.access import Principal
    from microvm_orchestrator.service.service import Service
    from microvm_orchestrator.web.terms import Terms

# A token expires without an event.
LOOK_AGAIN_S = 30.0
# Under this name the listener puts the peer, or None, into each request's state.
PEER = "peer"


class Identity:
    """Turns tokens and peers into principals, by the terms of the moment."""

    def __init__(self, service: Service, terms: Terms) -> None:
        self._service = service
        self._terms = terms

    async def of(self, request: HTTPConnection) -> Principal:
        """Say who sent `request`.

        Raises:
            Unauthenticated: the token is not good, or there is neither token nor peer.
        """
        header = request.headers.get("authorization")
        token = None if header is None else _bearer(header)
        return await self.named(token, cast("Peer | None", getattr(request.state, PEER, None)))

    async def named(self, token: str | None, peer: Peer | None) -> Principal:
        """Say who comes with this token over a connection of this peer.

        Raises:
            Unauthenticated: the token is not good, or there is neither token nor peer.
        """
        if token is not None:
            return await tokens.authenticate(self._service, token)
        if peer is not None:
            return principal_of(peer, self._terms.access)
        raise errors.Unauthenticated(
            "a request over the network needs a token", hint="send Authorization: Bearer <token>"
        )

    async def ended(self, token: str, principal: Principal) -> None:
        """Wait until `token` is good no longer: it was revoked, or its time is over."""
        match = Match(subjects=(principal.token_id or "",))
        with self._service.journal.listen(match) as changes:
            while True:
                try:
                    await tokens.authenticate(self._service, token)
                except errors.Unauthenticated:
                    return
                except errors.Unavailable:
                    pass  # nobody is sent away because the disk is full
                with anyio.move_on_after(LOOK_AGAIN_S):
                    await changes.wait()


def _bearer(header: str) -> str:
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise errors.Unauthenticated(
            "the Authorization header has no bearer token",
            hint="send Authorization: Bearer <token>",
        )
    return token.strip()
