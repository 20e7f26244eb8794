"""A client that knows how sure it may be: answered, certainly not heard, or nobody can say.

The programs of this folder and the tests speak to the daemon through it, over its unix socket.
"""

from __future__ import annotations

import http.client
import json
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlencode

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# What the service may say when it cannot take a request now; nothing was changed then.
REFUSED_FOR_NOW = 503
# Between two attempts to reach a daemon that is not there.
_PAUSE_S = 0.02


class NotHeard(Exception):
    """Nobody was there to take the request: it changed nothing."""


class NobodyKnows(Exception):
    """The request left and no answer came: it may have taken effect."""


class GaveUp(Exception):
    """The daemon stayed away for longer than any fault of ours lasts."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the daemon said."""

    status: int
    body: Any

    @property
    def ok(self) -> bool:
        return self.status == 200

    @property
    def code(self) -> str:
        return "ok" if self.ok else str(self.body["code"])


class _OverUnix(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("local", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Asker:
    """One connection, made anew whenever it breaks."""

    def __init__(self, path: Path, *, timeout_s: float = 5.0, patience_s: float = 90.0) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._patience_s = patience_s
        self._connection: _OverUnix | None = None
        self.requests = 0
        self.unknown = 0
        self.refused = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.hang_up()

    def hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def ask(self, method: str, path: str, body: Mapping[str, object] | None = None) -> Answer:
        """Ask once. Raises: NotHeard, NobodyKnows."""
        connection = self._connected()
        self.requests += 1
        if method in {"GET", "DELETE"} and body:
            path, body = f"{path}?{urlencode(dict(body), doseq=True)}", None
        text = None if body is None else json.dumps(body)
        try:
            connection.request(method, path, text, {"content-type": "application/json"})
            response = connection.getresponse()
            return Answer(response.status, json.loads(response.read()))
        except (OSError, http.client.HTTPException) as error:
            self.hang_up()
            self.unknown += 1
            raise NobodyKnows from error

    def insist(
        self, method: str, path: str, body: Mapping[str, object] | None = None
    ) -> tuple[Answer, int]:
        """Ask the same until there is an answer; also tells how often nobody could say.

        Raises: GaveUp.
        """
        deadline = time.monotonic() + self._patience_s
        unknown = 0
        while time.monotonic() < deadline:
            try:
                answer = self.ask(method, path, body)
            except NobodyKnows:
                unknown += 1
            except NotHeard:
                pass
            else:
                if answer.status != REFUSED_FOR_NOW:
                    return answer, unknown
                self.refused += 1
            time.sleep(_PAUSE_S)  # a client's patience; nothing waits for this
        raise GaveUp(f"{method} {path}")

    def get(self, path: str, **query: object) -> Any:
        """Read what must be readable."""
        answer, _ = self.insist("GET", path, query)
        assert answer.ok, f"GET {path}: {answer}"
        return answer.body

    def post(self, path: str, **body: object) -> Any:
        """Change what must be changeable; for requests that may be repeated."""
        answer, _ = self.insist("POST", path, body)
        assert answer.ok, f"POST {path}: {answer}"
        return answer.body

    def pages(self, path: str, **query: object) -> list[Any]:
        """Read a whole list."""
        page = self.get(path, limit=200, **query)
        found = list(page["items"])
        while page["next_cursor"]:
            page = self.get(path, limit=200, cursor=page["next_cursor"], **query)
            found += page["items"]
        return found

    def journal(self) -> list[Any]:
        """Read every event there is."""
        found: list[Any] = []
        page = self.get("/v1/events", limit=1000)
        while page["events"]:
            found += page["events"]
            page = self.get("/v1/events", limit=1000, after=page["cursor"])
        return found

    def _connected(self) -> _OverUnix:
        if self._connection is None:
            connection = _OverUnix(self._path, self._timeout_s)
            try:
                connection.connect()
            except OSError as error:
                connection.close()
                raise NotHeard from error
            self._connection = connection
        return self._connection
