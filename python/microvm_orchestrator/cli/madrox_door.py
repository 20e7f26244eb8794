"""A port of this host that stands for the profile `madrox` of a daemon.

Everybody on the host can reach it, and every page that somebody here looks at. So it passes on as
its user what that user's own programs ask, which the kernel tells, and what shows a token of the
daemon as whoever that is; nothing that comes from a page, or by another name. Above sits the
command; below, the client and the standard library. Lives as long as the command.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import socket
import sys
import tempfile
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from microvm_orchestrator import errors
from microvm_orchestrator.cli.failure import harmless, say
from microvm_orchestrator.cli.relay import relay

if TYPE_CHECKING:
    from collections.abc import Mapping

    from microvm_orchestrator.cli.client import Client

_MCP, _MCP_THERE = "/mcp", "/mcp/profiles/madrox"
_REST_THERE = "/profiles/madrox"
_EVENTS = "text/event-stream"
_SETTINGS_HEADER = "x-profile-settings"
# An answer of an instance is waited for an hour at the most.
_PATIENCE_S = 3700.0
# How long a client may take to send a request.
_REQUEST_S = 60.0
_BODY_MOST = 8 << 20
_PASSED = ("accept", "content-type", "last-event-id", "authorization")
# Whose results hold files, which users of that program found in a folder of theirs.
_FILES = {"retrieve_instance_file", "retrieve_multiple_instance_files"}
_INFO, _WARNING = 1, 2


@dataclass(frozen=True, slots=True)
class Terms:
    """What its user set."""

    settings: Mapping[str, str]
    folder: Path
    # Of the levels of a log, which is the first that is told.
    verbosity: int


class Door(ThreadingHTTPServer):
    """A port for one daemon."""

    daemon_threads = True

    def __init__(self, client: Client, host: str, port: int, terms: Terms) -> None:
        """Raises: Unavailable when the port cannot be had."""
        self.client = client
        self.terms = terms
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise errors.Unavailable(
                f"cannot listen on {host}:{port}: {error.strerror}",
                hint="name another port with --port or ORCHESTRATOR_PORT",
            ) from error
        names = {host, "localhost", "127.0.0.1"}
        self.hosts = {f"{name}:{self.server_port}".lower() for name in names}
        self.url = f"http://{host}:{self.server_port}"

    def serve(self) -> None:
        """Serve until interrupted."""
        try:
            self.serve_forever()
        except KeyboardInterrupt:
            say("")

    def handle_error(self, request: object, client_address: object) -> None:
        """A client goes whenever it likes; anything else is a bug, and shown."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)  # pyright: ignore[reportArgumentType]  # the stubs name the private type of sockets


class _Refused(Exception):
    """The status of a refusal, and why."""


class _Handler(BaseHTTPRequestHandler):
    server: Door  # pyright: ignore[reportIncompatibleVariableOverride]  # it is started by no other
    protocol_version = "HTTP/1.1"
    timeout = _REQUEST_S

    def do_GET(self) -> None:
        """Pass it on."""
        self._serve()

    def do_POST(self) -> None:
        """Pass it on."""
        self._serve()

    def do_DELETE(self) -> None:
        """Pass it on."""
        self._serve()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name it has there
        """Say what was asked, to those who want to know."""
        if self.server.terms.verbosity <= _INFO:
            say(harmless(format % args))

    def _serve(self) -> None:
        try:
            headers = self._let_in()
            body = self._body()
            self._pass_on(headers, body)
        except _Refused as refused:
            status, why = refused.args
            self.close_connection = True
            if self.server.terms.verbosity <= _WARNING:
                say(harmless(f"refused: {why}"))
            self._answer(status, json.dumps({"detail": why}).encode())

    def _let_in(self) -> dict[str, str]:
        """Give the headers that go on with a request. Raises: _Refused."""
        token = self.headers.get("authorization")
        # Who shows a token is no page: they have none.
        if token is None and self.headers.get("host", "").lower() not in self.server.hosts:
            raise _Refused(421, "this is served under its own address only")
        origin = self.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() not in self.server.hosts:
            raise _Refused(403, "pages of this origin may not use the service")
        if token is None and not _is_ours(self.connection):
            raise _Refused(401, "this serves who started it; others show a token of the daemon")
        passed = {
            name: value
            for name, value in self.headers.items()
            if name.lower() in _PASSED or name.lower().startswith("mcp-")
        }
        if token is None and self.server.client.token is not None:
            passed["authorization"] = f"Bearer {self.server.client.token}"
        passed[_SETTINGS_HEADER] = json.dumps(dict(self.server.terms.settings))
        return passed

    def _body(self) -> bytes | None:
        """Raises: _Refused."""
        if "transfer-encoding" in self.headers:
            raise _Refused(411, "a request says how long its body is")
        length = self.headers.get("content-length", "0")
        # Python reads no number of thousands of digits.
        long = not length.isdecimal() or len(length) > len(str(_BODY_MOST))
        if long or int(length) > _BODY_MOST:
            raise _Refused(413, f"a body has {_BODY_MOST} bytes at most")
        return self.rfile.read(int(length)) if int(length) else None

    def _pass_on(self, headers: dict[str, str], body: bytes | None) -> None:
        path = _there(self.command, self.path, self.headers.get("accept", ""))
        try:
            connection = self.server.client.open(_PATIENCE_S)
        except errors.OrchestratorError as error:
            raise _Refused(503, error.message) from error
        try:
            connection.request(self.command, path, body=body, headers=headers)
            answer = connection.getresponse()
            if _asks_for_files(path, body) and answer.status == http.HTTPStatus.OK:
                told = _kept(json.loads(answer.read()), self.server.terms.folder)
                self._answer(answer.status, json.dumps(told).encode())
            else:
                relay(self, answer)
        except (OSError, http.client.HTTPException):
            # The daemon went, or the client did: what was begun cannot be ended properly.
            self.close_connection = True
        finally:
            connection.close()

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _there(method: str, path: str, accept: str) -> str:
    """Where in the daemon an address of that program is."""
    plain, question, query = path.partition("?")
    # Its users named the bare address to MCP clients too, who ask there for events as well.
    as_client = method != "GET" or _EVENTS in accept
    if plain in {_MCP, f"{_MCP}/"} or (plain == "/" and as_client):
        plain = _MCP_THERE
    else:
        plain = _REST_THERE + plain
    return plain + question + query


def _is_ours(connection: socket.socket) -> bool:
    """Whether the other end belongs to a program of this user on this host."""
    if connection.family != socket.AF_INET:
        return False
    theirs, ours = _written(connection.getpeername()), _written(connection.getsockname())
    try:
        lines = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    except OSError:
        return False
    for line in lines:
        local, remote, _, _, _, _, uid = line.split()[1:8]
        if (local, remote) == (theirs, ours):
            return int(uid) == os.getuid()
    return False


def _written(address: tuple[str, int]) -> str:
    """Write an address as the kernel's table of connections has it."""
    number = int.from_bytes(socket.inet_aton(address[0]), sys.byteorder)
    return f"{number:08X}:{address[1]:04X}"


# Files that were fetched


def _asks_for_files(path: str, body: bytes | None) -> bool:
    if path != f"{_REST_THERE}/tools/execute" or not body:
        return False
    try:
        asked: object = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(asked, dict) and asked.get("tool") in _FILES  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]  # any JSON


def _kept(told: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write what was fetched into a folder of the user's, and say where."""
    if "retrieved" in told:
        return {**told, "retrieved": [_kept(each, folder) for each in told["retrieved"]]}
    name = told["destination_path"] or told["filename"]
    parts = [part for part in str(name).split("/") if part not in {"", "."}]
    if not parts or ".." in parts:
        return told
    encoded = told["content_base64"]
    data = base64.b64decode(encoded) if encoded else str(told["content"]).encode()
    try:
        _own(folder)
        path = folder / str(told["instance_id"]) / Path(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, data)
    except OSError as error:
        return {**told, "path": None, "error": f"it cannot be kept below {folder}: {error}"}
    return {**told, "path": str(path)}


def _own(folder: Path) -> None:
    """Make the folder where it is missing. Raises: OSError for one of somebody else's."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to somebody else")


def _replace(path: Path, data: bytes) -> None:
    fd, beside = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
        Path(beside).replace(path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise
