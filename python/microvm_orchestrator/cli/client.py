"""One request to the daemon over HTTP: its unix socket, or an address on the network.

Every request goes out at most once. When a connection breaks after that, a call that may have
changed something ends as `unknown-outcome`, and the error says how to find out. Above sit the
commands; below, the standard library. A client owns nothing: each request has its own connection.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote, urlencode, urlsplit

from microvm_orchestrator import errors, places
from microvm_orchestrator.cli import address
from microvm_orchestrator.cli.failure import say
from microvm_orchestrator.cli.routes import ROUTES, Route, changes

if TYPE_CHECKING:
    from collections.abc import Mapping

# A call that does not wait answers within milliseconds; a disk under load takes seconds.
ANSWER_TIMEOUT_S = 60.0
# These read or copy the whole store.
LONG_TIMEOUT_S = 3600.0
_LONG = frozenset({"backup_create", "doctor_run", "image_verify"})
# How long a call means to wait at the daemon, where it says so.
_PATIENCE = ("timeout_s", "wait_s")
# A restart of the daemon takes seconds, the upgrade of a whole system some tens of them.
RESTART_S = 60.0
_RETRY_PAUSE_S = 0.2

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the daemon answered, as it came and as it reads."""

    raw: bytes
    value: Json


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = address.connect(self._path)
        self.sock.settimeout(self.timeout)


@dataclass(frozen=True, slots=True)
class Client:
    """Where the daemon is, and the token that says who asks."""

    path: Path
    url: str | None = None
    token: str | None = None
    # Shorter for what nobody shall wait for, such as completing a word.
    answer_timeout_s: float = ANSWER_TIMEOUT_S

    def call(self, name: str, arguments: Mapping[str, object]) -> Answer:
        """Make one call; arguments that are None are left out.

        Raises: what the daemon refuses with; Unavailable when it was not reached; UnknownOutcome.
        """
        given = {field: value for field, value in arguments.items() if value is not None}
        route = ROUTES[name]
        target, body = _written(route, given)
        patience = sum(float(cast("float", given.get(field, 0))) for field in _PATIENCE)
        timeout_s = patience + (LONG_TIMEOUT_S if name in _LONG else self.answer_timeout_s)
        try:
            return self._exchange(name, target, body, timeout_s)
        except KeyboardInterrupt as interrupt:
            if changes(name):
                interrupt.add_note(f"{name} may have taken effect: {_how_to_find_out(name)}")
            raise

    def call_through_restarts(self, name: str, arguments: Mapping[str, object]) -> Answer:
        """Ask a question; while the daemon is away, wait for it and ask again.

        Raises: what `call` raises; Unavailable when the daemon stays away.
        """
        deadline = 0.0
        while True:
            try:
                return self.call(name, arguments)
            except errors.Unavailable as away:
                if type(away) not in {errors.Unavailable, errors.Stopping}:
                    raise  # it is there, and not well
                now = time.monotonic()
                if not deadline:
                    deadline = now + RESTART_S
                    say(f"{away.message}; waiting for the daemon to come back")
                if now >= deadline:
                    raise
                time.sleep(_RETRY_PAUSE_S)

    def health(self) -> Json:
        """Ask whether the store answers, and which version the daemon is. Raises: as `call`."""
        return self._exchange("whoami", "/healthz", None, self.answer_timeout_s).value

    def _exchange(self, name: str, target: str, body: bytes | None, timeout_s: float) -> Answer:
        connection = self.open(timeout_s)
        headers = {"accept": "application/json"}
        if body is not None:
            headers["content-type"] = "application/json"
        if self.token is not None:
            headers["authorization"] = f"Bearer {self.token}"
        try:
            # A large body may be refused half way; then the answer waits to be read all the same.
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.request(ROUTES[name].method, target, body, headers)
            response = connection.getresponse()
            data = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise _broken(name, error) from error
        finally:
            connection.close()
        return _read(name, response.status, data)

    def open(self, timeout_s: float) -> http.client.HTTPConnection:
        """Connect; what fails here was not sent. Raises: Unavailable, Denied, InvalidInput."""
        connection = self._connection(timeout_s)
        try:
            connection.connect()
        except OSError as error:
            raise errors.Unavailable(
                f"cannot reach {self.url}: {error.strerror or error}",
                hint="is the daemon running, and does it listen there (tcp.listen)?",
            ) from error
        if self.url is not None:
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def dial(self, timeout_s: float) -> socket.socket:
        """Connect, for what is no HTTP. Raises: as `call`."""
        return cast("socket.socket", self.open(timeout_s).sock)

    def _connection(self, timeout_s: float) -> http.client.HTTPConnection:
        if self.url is None:
            return _UnixConnection(self.path, timeout_s)
        kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
        try:
            parts = urlsplit(self.url)
            kind, host, port = kinds.get(parts.scheme), parts.hostname, parts.port
        except ValueError:
            parts, kind, host, port = urlsplit(""), None, None, None
        if kind is None or not host or parts.path not in {"", "/"} or parts.query:
            raise errors.InvalidInput(
                f"{self.url} is no address of a daemon", hint="as in http://127.0.0.1:7070"
            )
        return kind(host, port, timeout=timeout_s)


def find_client(socket: str | None, at: str | None, token_file: str | None) -> Client:
    """Put a client together from options, else the environment, else the usual places.

    Raises: InvalidInput when a token was named and cannot be read.
    """
    token = address.find_token(os.environ, token_file)
    if socket is None:
        at = at or os.environ.get(places.ADDRESS_VARIABLE) or None
    elif at is not None:
        raise errors.InvalidInput(
            "--socket and --address name two daemons", hint="give one of them"
        )
    path = Path(socket) if socket is not None else places.find_socket(os.environ)
    return Client(path, at, token)


def _written(route: Route, given: Mapping[str, object]) -> tuple[str, bytes | None]:
    """Lay arguments out as the daemon reads them: path, query, body.

    Raises: InvalidInput when an address cannot carry one.
    """
    path = route.path
    rest = dict(given)
    for name in route.parameters:
        path = path.replace(f"{{{name}}}", _segment(name, str(rest.pop(name))))
    if route.has_body:
        try:
            return path, json.dumps(rest, allow_nan=False).encode()
        except (ValueError, RecursionError) as error:
            raise errors.InvalidInput(f"this cannot be written as JSON: {error}") from error
    pairs = [pair for name, value in rest.items() for pair in _pairs(name, value)]
    try:
        query = urlencode(pairs)
    except UnicodeEncodeError as error:
        raise errors.InvalidInput("an argument is not UTF-8") from error
    return (f"{path}?{query}" if query else path), None


def _segment(name: str, value: str) -> str:
    # A server takes an address apart at slashes before it decodes them.
    if not value or "/" in value or value in {".", ".."}:
        raise errors.InvalidInput(
            f"{name} {value!r} cannot stand in an address", hint="use the id that the list shows"
        )
    try:
        return quote(value, safe="")
    except UnicodeEncodeError as error:
        raise errors.InvalidInput(f"{name} is not UTF-8") from error


def _pairs(name: str, value: object) -> list[tuple[str, str]]:
    """A list is its key repeated, a mapping is `field[key]=value`."""
    match value:
        case list():
            return [(name, _text(item)) for item in cast("list[object]", value)]
        case dict():
            members = cast("dict[str, object]", value)
            return [(f"{name}[{key}]", _text(item)) for key, item in members.items()]
        case _:
            return [(name, _text(value))]


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _read(name: str, status: int, data: bytes) -> Answer:
    """Raises: the daemon's error; InternalError's class when this is no answer of a daemon."""
    try:
        value: object = json.loads(data)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise errors.OrchestratorError(
            f"{name}: HTTP {status} with something else than a JSON object",
            hint="is this address a microvm-orchestrator daemon's?",
        )
    found = cast("Json", value)
    if status == http.client.OK:
        return Answer(data, found)
    raise _refusal(status, found)


def _refusal(status: int, problem: Json) -> errors.OrchestratorError:
    """Give the daemon's problem back as the error it was there."""
    code = str(problem.get("code", ""))
    kind = _BY_STATUS.get(status, errors.OrchestratorError)
    return error_of(code, str(problem.get("detail", f"HTTP {status}")), problem.get("hint"), kind)


def error_of(
    code: str,
    message: str,
    hint: str | None,
    otherwise: type[errors.OrchestratorError] = errors.OrchestratorError,
) -> errors.OrchestratorError:
    """Make an error that the daemon told by its code."""
    kind = _BY_CODE.get(code) or otherwise
    # Not by the kind's own way: some want to be told more, which stays at the daemon.
    error = kind.__new__(kind)
    errors.OrchestratorError.__init__(error, message, hint=hint)
    if code:
        error.code = code  # pyright: ignore[reportAttributeAccessIssue] - a newer daemon may know more kinds
    return error


def _below(kind: type[errors.OrchestratorError]) -> list[type[errors.OrchestratorError]]:
    return [kind, *(each for child in kind.__subclasses__() for each in _below(child))]


_BY_CODE = {kind.code: kind for kind in _below(errors.OrchestratorError)}
# For codes of HTTP itself, or of a daemon newer than this.
_BY_STATUS: dict[int, type[errors.OrchestratorError]] = {
    401: errors.Unauthenticated,
    403: errors.Denied,
    404: errors.NotFound,
    409: errors.Conflict,
    413: errors.TooLarge,
    503: errors.Unavailable,
    **dict.fromkeys((400, 405, 408, 415, 421, 422), errors.InvalidInput),
}


def _broken(name: str, error: Exception) -> errors.Unavailable:
    why = "no answer came in time" if isinstance(error, TimeoutError) else "the connection broke"
    if changes(name):
        return errors.UnknownOutcome(
            f"{why} after {name} was sent: it may have taken effect, and was not sent again",
            hint=_how_to_find_out(name),
        )
    return errors.Unavailable(f"{why} before {name} was answered", hint="ask again")


def _how_to_find_out(name: str) -> str:
    noun = name.partition("_")[0]
    usual = f"`{places.NAME} {noun} list` shows what there is"
    return (
        f"look before you repeat it: {_LOOK.get(name) or _LOOK.get(noun, usual)}; "
        "a request with an --idempotency-key can be repeated as it was"
    )


# Where the effect of a call shows.
_LOOK = {
    "task_claim": f"`{places.NAME} task list --state running` shows who holds what; "
    "an unheard claim runs out with its lease",
    "task": f"`{places.NAME} task get` and `task list` show the tasks",
    "graph": f"`{places.NAME} group tasks` shows the tasks of a group",
    "group": f"`{places.NAME} group tasks` shows the tasks of a group",
    "template": f"`{places.NAME} template list` and `task list` show what there is",
    "worker": f"`{places.NAME} worker list` shows the workers",
    "webhook": f"`{places.NAME} webhook list` shows the webhooks",
    "delivery": f"`{places.NAME} delivery list` shows the deliveries",
    "token": f"`{places.NAME} token list` shows the tokens",
    "machine": f"`{places.NAME} machine list` and `operation list` show what became of it",
    "cluster": f"`{places.NAME} cluster status` and `operation list` show what became of it",
    "node": f"`{places.NAME} exec list` and `operation list` show what became of it",
    "exec": f"`{places.NAME} exec list` and `exec wait` show what became of it",
    "file": "read the file; a file is written whole or not at all",
    "snapshot": f"`{places.NAME} snapshot list` and `operation list` show what became of it",
    "image": f"`{places.NAME} image list` and `operation list` show what became of it",
    "operation": f"`{places.NAME} operation get` shows how it stands",
    "backup": "see whether the file is there; an unfinished one has another name",
}
