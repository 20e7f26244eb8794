"""Who sent a request: its bearer token decides, else the peer of its unix socket.

Above sit the routes and the listener; below, the service's own rules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from starlette.requests import Request

from microvm_orchestrator import errors
from microvm_orchestrator.service import token_life, tokens
from microvm_orchestrator.service.identity import Peer, principal_of
from microvm_orchestrator.web.problems import problem

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection
    from starlette.types import ASGIApp, Receive, Scope, Send

    from microvm_orchestrator.model.access import Principal
    from microvm_orchestrator.service.service import Service
    from microvm_orchestrator.web.terms import Terms

# In each request's state: the peer and the agent out of whose machine it came, or None, from the
# listener; and who that is, from `Known`.
PEER = "peer"
GUEST = "guest"
PRINCIPAL = "principal"


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
        peer = cast("Peer | None", getattr(request.state, PEER, None))
        return await self.named(token, peer, getattr(request.state, GUEST, None))

    async def named(
        self, token: str | None, peer: Peer | None, guest: str | None = None
    ) -> Principal:
        """Say who comes with this token over a connection of this peer, or of this agent's machine.

        Raises:
            Unauthenticated: the token is not good, or there is neither token nor peer.
        """
        if token is not None:
            return await tokens.authenticate(self._service, token, guest)
        if peer is not None:
            return principal_of(peer, self._terms.access)
        raise errors.Unauthenticated(
            "a request over the network needs a token", hint="send Authorization: Bearer <token>"
        )

    async def ended(self, token_id: str) -> None:
        """Wait until a token is good no longer: it was revoked, or its time is over."""
        await token_life.ended(self._service.store, self._service.journal, token_id)


class Known:
    """Lets requests pass once it is known who asks, which they then carry in their state."""

    def __init__(self, application: ASGIApp, identity: Identity) -> None:
        self._application = application
        self._identity = identity

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        try:
            scope["state"][PRINCIPAL] = await self._identity.of(request)
        except Exception as error:  # noqa: BLE001 - the edge where every error becomes an answer
            await problem(error, request)(scope, receive, send)
            return
        await self._application(scope, receive, send)


def _bearer(header: str) -> str:
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise errors.Unauthenticated(
            "the Authorization header has no bearer token",
            hint="send Authorization: Bearer <token>",
        )
    return token.strip()
