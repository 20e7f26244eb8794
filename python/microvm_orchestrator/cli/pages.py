"""The pages of a daemon that listens on its socket alone, for one browser on this host.

A loopback port stands for the socket. Everybody on the host can reach it, so it serves who came
with the secret that its user was told: once in an address, from then on by a cookie. Only pages are
passed on, and only looks at them. Above sits the command; below, the client and the standard
library. Lives as long as the command.
"""

from __future__ import annotations

import hmac
import http.client
import secrets
import sys
import threading
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

from microvm_orchestrator import errors
from microvm_orchestrator.cli.failure import say
from microvm_orchestrator.cli.relay import relay

if TYPE_CHECKING:
    from microvm_orchestrator.cli.client import Client

HOST = "127.0.0.1"
ENTER = "/enter/"
# A stream says something every quarter of a minute, and an output is waited for not much longer.
_PATIENCE_S = 60.0
# How long a browser may take to send a request.
_REQUEST_S = 30.0
# The rest of the interface is not for browsers.
_NOT_PAGES = ("/v1/", "/mcp", "/openapi.json", "/metrics", "/healthz", "/login", "/logout")
# What a browser says that decides what it is answered.
_PASSED = ("accept", "last-event-id")


class Door(ThreadingHTTPServer):
    """A loopback port for the pages of one daemon."""

    daemon_threads = True

    def __init__(self, client: Client, port: int) -> None:
        """Raises: Unavailable when the port is taken."""
        self.client = client
        self.cookie = secrets.token_urlsafe(32)
        self._secret = secrets.token_urlsafe(32)
        self._entered = threading.Lock()
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise errors.Unavailable(
                f"cannot listen on {HOST}:{port}: {error.strerror}",
                hint="name another port with --port, or none for a free one",
            ) from error
        self.host = f"{HOST}:{self.server_port}"
        # Browsers tell hosts apart by their cookies, but not ports.
        self.cookie_name = f"microvm_orchestrator_{self.server_port}"
        self.url = f"http://{self.host}{ENTER}{self._secret}"

    def enters(self, secret: str) -> bool:
        """Let in who knows the secret, the first time."""
        right = hmac.compare_digest(secret.encode(), self._secret.encode())
        return right and self._entered.acquire(blocking=False)

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser goes whenever it likes; anything else is a bug, and shown."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)  # pyright: ignore[reportArgumentType]  # the stubs name the private type of sockets


class _Handler(BaseHTTPRequestHandler):
    server: Door  # pyright: ignore[reportIncompatibleVariableOverride]  # it is started by no other
    protocol_version = "HTTP/1.1"
    timeout = _REQUEST_S

    def do_GET(self) -> None:
        """Look at a page."""
        # A name that somebody else's server has been given for this address.
        if self.headers.get("host") != self.server.host:
            self._refuse(421, "This is served under its own address only.")
        elif self.path.startswith(ENTER):
            self._enter(self.path.removeprefix(ENTER))
        elif not self._known():
            self._refuse(403, "Start `microvm-orchestrator web` again, and open what it says.")
        elif self.path.startswith(_NOT_PAGES):
            self._refuse(404, "This is no page.")
        else:
            self._pass_on()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name it has there
        """Say nothing: the daemon counts its requests itself."""

    def _enter(self, secret: str) -> None:
        if not self.server.enters(secret):
            self._refuse(403, "This address was used before. Start the command again.")
            return
        # No redirect: a browser that came from elsewhere would follow it without its new cookie.
        body = b'<!doctype html><meta http-equiv="refresh" content="0;url=/"><a href="/">Pages</a>'
        cookie = f"{self.server.cookie_name}={self.server.cookie}"
        self._answer(200, body, ("set-cookie", f"{cookie}; Path=/; HttpOnly; SameSite=Strict"))

    def _known(self) -> bool:
        try:
            cookies = SimpleCookie(self.headers.get("cookie", ""))
        except CookieError:
            return False
        shown = cookies.get(self.server.cookie_name)
        if shown is None:
            return False
        return hmac.compare_digest(shown.value.encode(), self.server.cookie.encode())

    def _pass_on(self) -> None:
        client = self.server.client
        headers = {name: value for name in _PASSED if (value := self.headers.get(name)) is not None}
        if client.token is not None:
            headers["authorization"] = f"Bearer {client.token}"
        try:
            connection = client.open(_PATIENCE_S)
        except errors.OrchestratorError as error:
            self._refuse(503, f"{error.message}\n{error.hint or ''}")
            return
        try:
            connection.request("GET", self.path, headers=headers)
            relay(self, connection.getresponse())
        except (OSError, http.client.HTTPException):
            # The daemon went, or the browser did: what was begun cannot be ended properly.
            self.close_connection = True
        finally:
            connection.close()

    def _refuse(self, status: int, why: str) -> None:
        self._answer(status, why.encode(), ("content-type", "text/plain; charset=utf-8"))

    def _answer(self, status: int, body: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if not any(name == "content-type" for name, _ in headers):
            self.send_header("content-type", "text/html; charset=utf-8")
        self.send_header("content-security-policy", "default-src 'none'; frame-ancestors 'none'")
        self.send_header("cache-control", "no-store")
        self.send_header("referrer-policy", "no-referrer")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def serve(door: Door) -> None:
    """Serve until interrupted."""
    try:
        door.serve_forever()
    except KeyboardInterrupt:
        say("")
