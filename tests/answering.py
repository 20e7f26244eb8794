"""A real HTTP server on a unix socket that answers as a test says, for tests of the client."""

from __future__ import annotations

import http.server
import json
import socketserver
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

REFUSED: tuple[int, dict[str, Any]] = (
    422,
    {"code": "invalid-input", "title": "x", "detail": "as scripted", "hint": "no", "status": 422},
)


@dataclass(frozen=True)
class Asked:
    """A request as it arrived."""

    method: str
    target: str
    body: bytes
    headers: dict[str, str]


Script = "Callable[[Asked], tuple[int, dict[str, Any]]]"


@dataclass
class Answering:
    """What was asked so far."""

    socket: Path
    asked: list[Asked] = field(default_factory=list[Asked])


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = False

    def __init__(self, path: Path, answer: Any, asked: list[Asked]) -> None:
        self.answer = answer
        self.asked = asked
        super().__init__(str(path), _Handler)


class _Handler(http.server.BaseHTTPRequestHandler):
    def _answer(self) -> None:
        server = cast("_Server", self.server)
        length = int(self.headers.get("content-length", 0))
        asked = Asked(self.command, self.path, self.rfile.read(length), dict(self.headers))
        server.asked.append(asked)
        status, value = server.answer(asked)
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PATCH = do_DELETE = _answer  # noqa: N815 - the names of the base class
    do_PUT = _answer  # noqa: N815  # http.server looks for it by this name

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # http.server names it so
        """Stay silent."""

    def address_string(self) -> str:
        return "unix"


def refuse(_: Asked) -> tuple[int, dict[str, Any]]:
    return REFUSED


@contextmanager
def answering(
    path: Path, answer: Callable[[Asked], tuple[int, dict[str, Any]]] = refuse
) -> Generator[Answering]:
    """Answer on a socket until the block ends."""
    here = Answering(path)
    with _Server(path, answer, here.asked) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield here
        finally:
            server.shutdown()
            thread.join()
