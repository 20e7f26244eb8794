r"""The stdio bridge: an MCP client starts it, and it carries lines to the daemon and back.

The first line may say `{"connect": {"profile": ..., "token": ...}}`; all others are the client's.
Above sits whoever started us; below, the daemon's socket. It is started for every session of an
agent, so it takes nothing but the standard library.

It outlives a restart of the daemon. When a bridge ends, Claude Code 2.1.329 tells the model
"Connection closed" and starts a new one once, at the next call; if the daemon is not back by then,
it gives the server up until somebody types /mcp (tried: killed during a call and back 6 s later,
its tools were gone for good). Since 2026-07-28 a request is a whole exchange, so a new connection
needs nothing of the old one. What the daemon had begun to receive and not yet answered is answered
here as `unknown-outcome`, which the model reads, and is never sent again; what it had not received
waits. A client of the older eras shook hands with the daemon that is gone; for it the bridge ends,
and it hears so at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket as sockets
import sys
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, cast

from microvm_orchestrator import errors, places
from microvm_orchestrator.cli import address, failure

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

STDIN, STDOUT = 0, 1
CHUNK = 65_536
# POSIX promises that so much can be written at once when poll() says that there is room.
WRITABLE = 4096
# Past this a side that does not read holds up the other, and memory stays small.
ENOUGH = 4 * CHUNK
# A restart takes seconds, the upgrade of a whole system some tens of them.
RESTART_S = 60.0
# Between two attempts to reach a daemon that is not there yet.
PAUSE_MS = 100
# What users of a profile set in the environment of the program that it stands for.
SETTINGS = {
    "delegation": (
        *("CALLBACK_PORT", "DEFAULT_VM_TEMPLATE", "DEFAULT_TIMEOUT", "DEFAULT_CPU"),
        *("DEFAULT_MEMORY", "DEFAULT_DISK", "HEARTBEAT_THRESHOLD_SECONDS"),
    ),
    "madrox": (
        *("MAX_INSTANCES", "MAX_TOKENS_PER_INSTANCE", "MAX_TOTAL_COST"),
        "INSTANCE_TIMEOUT_MINUTES",
    ),
}
# "Connection closed", as the SDKs of MCP number it.
CLOSED = -32000


def options(words: Sequence[str]) -> dict[str, str] | None:
    """Read `--name value` and `--name=value`; None when there is anything else among them."""
    found: dict[str, str] = {}
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        name = name.removeprefix("--").replace("-", "_")
        if not word.startswith("--") or name not in (run.__kwdefaults__ or {}):
            return None
        given = value if equals else next(rest, None)
        if given is None:
            return None
        found[name] = given
    return found


def run(
    *,
    profile: str | None = None,
    socket: str | None = None,
    token_file: str | None = None,
    wait: str | None = None,
) -> int:
    """Be the bridge until one side ends it, and return the exit status."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a terminal's ^C is meant for the client
    path = Path(socket) if socket else places.find_socket(os.environ)
    try:
        patience = _seconds(wait)
        if token_file == address.STDIN:
            raise errors.InvalidInput("standard input carries MCP here, so no token")
        token = address.find_token(os.environ, token_file)
        return _Bridge(path, _preface(profile, token)).serve(patience)
    except errors.OrchestratorError as error:
        return failure.tell(error)


def _seconds(text: str | None) -> float:
    try:
        seconds = float(text or 0)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise errors.InvalidInput(f"--wait {text} is no number of seconds")
    return seconds


def _preface(profile: str | None, token: str | None) -> bytes:
    names = SETTINGS.get(profile or "", ())
    settings = {name: os.environ[name] for name in names if name in os.environ}
    told = {"profile": profile, "token": token, "settings": settings or None}
    wish = {name: value for name, value in told.items() if value is not None}
    return json.dumps({"connect": wish}).encode() + b"\n" if wish else b""


class _ClientGone(Exception):
    """Nobody is there for whom to carry anything."""


class _Bridge:
    def __init__(self, path: Path, preface: bytes) -> None:
        self._path = path
        self._preface = preface
        self._asking = _Lines()
        self._up: deque[bytes] = deque()
        self._up_sent = 0
        self._down = bytearray()
        self._client_ended = False
        # The ids of requests that went up and were not answered yet, as JSON writes them.
        self._outstanding: dict[str, object] = {}
        self._shook_hands = False
        self._refused = False

    def serve(self, patience_s: float) -> int:
        """Carry until the client has ended.

        Raises: Unavailable when there is no daemon any more; Denied, InvalidInput.
        """
        try:
            daemon = self._reach(patience_s)
            while True:
                with daemon:
                    self._carry(daemon)
                self._answer_outstanding()
                if self._client_ended:
                    return failure.OK
                if self._refused:
                    return failure.DENIED
                if self._shook_hands:
                    raise errors.Unavailable("the daemon hung up", hint="connect again")
                failure.say("the daemon hung up; waiting for it to come back")
                daemon = self._reach(RESTART_S)
                failure.say("the daemon is back")
        except (_ClientGone, BrokenPipeError):
            return failure.OK

    def _reach(self, patience_s: float) -> sockets.socket:
        deadline = time.monotonic() + patience_s
        client = select.poll()
        client.register(STDIN, 0)  # tells only of its end
        while True:
            try:
                daemon = address.connect(self._path)
            except errors.Unavailable:
                if time.monotonic() >= deadline:
                    raise
            else:
                daemon.settimeout(0)
                if self._preface:
                    self._up.appendleft(self._preface)
                return daemon
            if client.poll(PAUSE_MS):
                raise _ClientGone

    def _carry(self, daemon: sockets.socket) -> None:
        """Carry both ways until the daemon hangs up."""
        answers = _Lines()
        poller = select.poll()
        half_closed = False
        while True:
            if self._client_ended and not self._up and not half_closed:
                with contextlib.suppress(OSError):  # it has hung up, as we are about to read
                    daemon.shutdown(sockets.SHUT_WR)
                half_closed = True
            self._watch(poller, daemon)
            ready = dict(poller.poll())
            if ready.get(STDIN):
                self._take_up()
            try:
                if ready.get(daemon.fileno(), 0) & select.POLLOUT:
                    self._send_up(daemon)
                hung_up = bool(ready.get(daemon.fileno(), 0) & ~select.POLLOUT) and (
                    not self._take_down(daemon, answers)
                )
            except (BrokenPipeError, ConnectionResetError):
                hung_up = True
            if ready.get(STDOUT):
                self._send_down()
            if hung_up:
                return

    def _watch(self, poller: select.poll, daemon: sockets.socket) -> None:
        queued = sum(map(len, self._up)) + len(self._asking)
        reading = not self._client_ended and (queued < ENOUGH or not self._up)
        wanted = {
            STDIN: select.POLLIN if reading else 0,
            daemon.fileno(): (select.POLLIN if len(self._down) < ENOUGH else 0)
            | (select.POLLOUT if self._up else 0),
            STDOUT: select.POLLOUT if self._down else 0,
        }
        for handle, events in wanted.items():
            # One that is not wanted would still tell of its end, again and again.
            poller.register(handle, events)
            if not events:
                poller.unregister(handle)

    def _take_up(self) -> None:
        data = os.read(STDIN, CHUNK)
        self._up += self._asking.feed(data)
        if not data:
            self._client_ended = True
            if rest := self._asking.rest():
                self._up.append(rest + b"\n")

    def _send_up(self, daemon: sockets.socket) -> None:
        line = self._up[0]
        if not self._up_sent:
            self._note_request(line)
        self._up_sent += daemon.send(memoryview(line)[self._up_sent :])
        if self._up_sent == len(line):
            self._up.popleft()
            self._up_sent = 0

    def _take_down(self, daemon: sockets.socket, answers: _Lines) -> bool:
        data = daemon.recv(CHUNK)
        for line in answers.feed(data):
            self._note_answer(line)
            self._down += line
        return bool(data)

    def _send_down(self) -> None:
        written = os.write(STDOUT, self._down[:WRITABLE])
        del self._down[:written]

    def _note_request(self, line: bytes) -> None:
        for message in _messages(line):
            self._shook_hands |= message.get("method") == "initialize"
            if "method" in message and message.get("id") is not None:
                self._outstanding[json.dumps(message["id"])] = message["id"]

    def _note_answer(self, line: bytes) -> None:
        for message in _messages(line):
            if "method" in message:
                continue
            self._outstanding.pop(json.dumps(message.get("id")), None)
            if message.get("id") is None and "error" in message:
                # Not one request is refused but the connection: coming again would not help.
                self._refused = True
                failure.say(f"error: {json.dumps(message['error'], ensure_ascii=False)}")

    def _answer_outstanding(self) -> None:
        if self._up_sent:  # half a line is no request: the daemon cannot have acted on it
            self._up.popleft()
            self._up_sent = 0
        if self._up and self._up[0] == self._preface:
            self._up.popleft()
        for request in self._outstanding.values():
            told = {
                "code": CLOSED,
                "message": f"{errors.UnknownOutcome.code}: the daemon went away before it "
                "answered; the call may have taken effect and was not repeated\n\n"
                "hint: look first (task_list, task_get), then repeat what is missing",
            }
            answer = {"jsonrpc": "2.0", "id": request, "error": told}
            self._down += json.dumps(answer).encode() + b"\n"
        self._outstanding.clear()
        while self._down:
            self._send_down()


class _Lines:
    """Bytes as they come, given out as whole lines."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def __len__(self) -> int:
        return len(self._rest)

    def feed(self, data: bytes) -> list[bytes]:
        self._rest += data
        if b"\n" not in data:
            return []
        *lines, self._rest = self._rest.split(b"\n")
        return [bytes(line) + b"\n" for line in lines]

    def rest(self) -> bytes:
        return bytes(self._rest)


def _messages(line: bytes) -> Iterator[dict[str, object]]:
    """Yield what a line says: a message, or several of the older eras; nothing if it is broken."""
    try:
        said: object = json.loads(line)
    except (ValueError, RecursionError):
        return
    for message in cast("list[object]", said) if isinstance(said, list) else [said]:
        if isinstance(message, dict):
            yield cast("dict[str, object]", message)


def main(words: Sequence[str]) -> int | None:
    """Be the bridge if `words` are its plain options; None leaves them to the full command line."""
    given = options(words)
    return None if given is None else run(**given)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
