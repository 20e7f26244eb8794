"""A stream of frames with the daemon: what is typed goes there, what is said comes here.

Standard input is read only as fast as the daemon takes it, and the daemon's frames only as fast as
our own output goes, so nothing piles up anywhere. Above sit the commands; below, the client and
the standard library.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from microvm_orchestrator import errors
from microvm_orchestrator.cli import terminal
from microvm_orchestrator.cli.client import error_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from microvm_orchestrator.cli.client import Client

# As the daemon's service/streams.py and web/duplex.py have them.
DATA, STDERR, END, ERROR, SIZE, LEAVE, ENTRY = range(1, 8)
HEADER = struct.Struct(">BI")
MAX_PAYLOAD = 1 << 16

# From connecting until the daemon has begun what was asked for.
_OPEN_S = 120.0
_LINE_BYTES = 1 << 16
# Ctrl and ]: as telnet has it.
ESCAPE = b"\x1d"


class Cut(Exception):
    """The daemon went away in the middle."""


@dataclass(slots=True)
class Duplex:
    """One stream that was opened."""

    sock: socket.socket
    told: dict[str, Any]
    # Bytes of output that came, by the daemon's count.
    offset: int = 0
    _coming: bytearray = field(default_factory=bytearray)

    def frames(self) -> list[tuple[int, bytes]]:
        """Give the frames that are there. Raises: Cut when none will come any more."""
        try:
            data = self.sock.recv(MAX_PAYLOAD * 4)
        except BlockingIOError:
            return []
        except OSError as error:
            raise Cut from error
        if not data:
            raise Cut
        self._coming += data
        found: list[tuple[int, bytes]] = []
        at = 0
        while len(self._coming) - at >= HEADER.size:
            kind, length = HEADER.unpack_from(self._coming, at)
            begin = at + HEADER.size
            if length > MAX_PAYLOAD or len(self._coming) < begin + length:
                break
            found.append((kind, bytes(self._coming[begin : begin + length])))
            at = begin + length
        del self._coming[:at]
        return found


def open_duplex(client: Client, call: str, arguments: Mapping[str, object]) -> Duplex:
    """Open a stream. Raises: what the daemon refuses with; as `Client.call`; Cut."""
    given = {name: value for name, value in arguments.items() if value is not None}
    token = {} if client.token is None else {"token": client.token}
    preface = json.dumps({"stream": {"call": call, **token}}, separators=(",", ":"))
    sock = client.dial(_OPEN_S)
    try:
        sock.sendall(f"{preface}\n{json.dumps(given)}\n".encode())
        value = json.loads(_line(sock))
    except (OSError, ValueError) as error:
        sock.close()
        raise Cut from error
    except BaseException:
        sock.close()
        raise
    if "error" in value:
        sock.close()
        raise refusal(value["error"])
    sock.settimeout(0)
    return Duplex(sock, value["opened"], int(value["opened"].get("offset", 0)))


def _line(sock: socket.socket) -> bytes:
    line = bytearray()
    while not line.endswith(b"\n"):
        # Byte by byte: what follows the line are frames.
        piece = sock.recv(1)
        if not piece or len(line) > _LINE_BYTES:
            raise Cut
        line += piece
    return bytes(line)


def refusal(told: dict[str, Any]) -> errors.OrchestratorError:
    code, _, message = str(told.get("message", "")).partition(": ")
    if "jsonrpc" in told or not isinstance(told.get("code"), str):
        return error_of(code, message, None)
    return error_of(str(told["code"]), str(told["message"]), told.get("hint"))


def lines_of(duplex: Duplex) -> Iterator[Any]:
    """Give what a stream says that is JSON, line by line, until its end.

    Raises: what the daemon ends it with; Cut.
    """
    rest = b""
    with contextlib.closing(duplex.sock):
        while True:
            select.select([duplex.sock], [], [])
            for kind, payload in duplex.frames():
                if kind == END:
                    return
                if kind == ERROR:
                    raise refusal(json.loads(payload))
                *whole, rest = (rest + payload).split(b"\n")
                for line in whole:
                    yield json.loads(line)


@dataclass(slots=True)
class Talk:
    """What goes on between this program's streams and the daemon."""

    # The file descriptor of a terminal in raw mode, if there is one.
    tty: int | None = None
    stdin: int | None = 0
    escape: bytes = b""
    # Called for the first interrupt; another one ends us.
    on_interrupt: Callable[[], None] | None = None
    # Something was sent, and whether its end was.
    fed: bool = False
    input_over: bool = False
    left: bool = False
    _going: bytearray = field(default_factory=bytearray)

    def run(self, duplex: Duplex) -> dict[str, Any] | None:
        """Carry everything both ways until the end; give how it ended, None after the escape.

        Raises: what the daemon ends it with; Cut.
        """
        self._going.clear()
        with contextlib.closing(duplex.sock), terminal.woken(self._signals()) as wake:
            if self.tty is not None:
                self._resize()
            elif self.stdin is None or self.input_over:
                self._put(END)
            while True:
                told = self._turn(duplex, wake)
                if told is not None or (self.left and not self._going):
                    return told

    def _signals(self) -> tuple[signal.Signals, ...]:
        if self.tty is not None:
            return (signal.SIGWINCH,)
        return () if self.on_interrupt is None else (signal.SIGINT,)

    def _turn(self, duplex: Duplex, wake: terminal.Wake) -> dict[str, Any] | None:
        reading: list[int] = [duplex.sock.fileno(), wake.fd]
        if self.stdin is not None and not (self.input_over or self.left or self._going):
            reading.append(self.stdin)
        writing = [duplex.sock.fileno()] if self._going else []
        ready, free, _ = select.select(reading, writing, [])
        # A signal from before the last key may be told of only now, though the key was seen.
        self._woken(wake)
        if self.stdin is not None and self.stdin in ready:
            self._type()
        if free or self._going:
            self._flush(duplex)
        if duplex.sock.fileno() in ready:
            return self._hear(duplex)
        return None

    def _woken(self, wake: terminal.Wake) -> None:
        for number in wake.signals():
            if number == signal.SIGWINCH:
                self._resize()
            elif self.on_interrupt is not None:
                act, self.on_interrupt = self.on_interrupt, None
                act()
            else:
                raise KeyboardInterrupt

    def _resize(self) -> None:
        if self.tty is not None:
            size = os.get_terminal_size(self.tty)
            told = {"rows": max(1, size.lines), "columns": max(1, size.columns)}
            self._put(SIZE, json.dumps(told).encode())

    def _type(self) -> None:
        try:
            data = os.read(self.stdin or 0, MAX_PAYLOAD)
        except OSError:  # a terminal that hung up
            data = b""
        if self.escape and self.escape in data:
            data, self.left = data.partition(self.escape)[0], True
        if data:
            self.fed = True
            self._put(DATA, data)
        if self.left:
            self._put(LEAVE)
        elif not data:
            self.input_over = True
            self._put(END)

    def _put(self, kind: int, payload: bytes = b"") -> None:
        self._going += HEADER.pack(kind, len(payload)) + payload

    def _flush(self, duplex: Duplex) -> None:
        try:
            sent = duplex.sock.send(self._going)
        except BlockingIOError:
            return
        except OSError as error:
            raise Cut from error
        del self._going[:sent]

    def _hear(self, duplex: Duplex) -> dict[str, Any] | None:
        for kind, payload in duplex.frames():
            if kind in (DATA, STDERR):
                duplex.offset += len(payload)
                _write(2 if kind == STDERR else 1, payload)
            elif kind == END:
                return json.loads(payload)
            elif kind == ERROR:
                raise refusal(json.loads(payload))
        return None


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select([], [fd], [])
