"""Keeps web pages of others out: a browser says for whom (Host) and from where (Origin) it asks.

A page can make the browser of its reader talk to an address of that reader's machine, and by DNS
rebinding even read the answers. Wraps the whole HTTP application, whatever it serves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from microvm_orchestrator.web.problems import refusal

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from microvm_orchestrator.config import Tcp


class OwnPagesOnly:
    """Passes on what names one of our hosts and comes from no page, or from one that may."""

    def __init__(self, application: ASGIApp, settings: Tcp) -> None:
        self._application = application
        self._hosts = frozenset(host.lower() for host in settings.allowed_hosts)
        self._origins = frozenset(origin.lower() for origin in settings.allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        # The address of a unix socket is a path: no page and no name server leads there.
        on_network = scope.get("server") is not None and scope["server"][1] is not None
        host = headers.get("host", "").lower()
        origin = headers.get("origin", "").lower()
        if on_network and not self._serves(host, scope["server"][0]):
            response = refusal(
                421, f"the host {host[:200]!r} is not served here", hint="see tcp.allowed_hosts"
            )
            await response(scope, receive, send)
        elif origin and not self._takes(origin, host, on_network=on_network):
            response = refusal(
                403, f"pages of {origin[:200]} may not use this", hint="see tcp.allowed_origins"
            )
            await response(scope, receive, send)
        else:
            await self._application(scope, receive, send)

    def _serves(self, host: str, address: str) -> bool:
        """Take the address itself, the name of the loopback, and what the settings add."""
        name = _name(host)
        own = {address, "localhost"} if address in {"127.0.0.1", "::1"} else {address}
        return name in own or host in self._hosts or name in self._hosts

    def _takes(self, origin: str, host: str, *, on_network: bool) -> bool:
        # The host has been checked, so a page from there is our own.
        if origin in self._origins:
            return True
        # Who ends TLS in front of us is known by a name of the settings, and tells us nothing.
        encrypted = host in self._hosts or _name(host) in self._hosts
        own = {f"http://{host}", *([f"https://{host}"] if encrypted else [])}
        return on_network and origin in own


def _name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
