"""Sockets through the channel: `connect` to one in the guest, `listen` for the guest's programs.

The module `socket` takes 5 ms to load, and under emulation fifty times that; `_socket` has all that
is needed here.
"""

from __future__ import annotations

import _socket
import errno
import os
import stat

import wire
from engine import READ, WRITE
from ports import accept
from stream import Stream, refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from engine import Engine
    from link import Link

_BACKLOG = 64
# How long a program may take to read the rest of a socket that the host has closed.
_LINGER_S = 10.0


def _address(fields: wire.Fields) -> tuple[int, tuple[str, int] | bytes]:
    """Return the family and the address that a request names: a path, or host and port."""
    if path := wire.blob(fields, "path", 107, b""):
        return _socket.AF_UNIX, path
    host = wire.blob(fields, "host", 64, b"127.0.0.1").decode("ascii", "replace")
    family = _socket.AF_INET6 if ":" in host else _socket.AF_INET
    return family, (host, wire.integer(fields, "port", 0, 65535))


def open_connect(link: Link, number: int, fields: wire.Fields) -> Stream:
    family, address = _address(fields)
    socket = _socket.socket(family, _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK)
    code = socket.connect_ex(address)
    if code not in (0, errno.EINPROGRESS):
        socket.close()
        raise OSError(code, "")
    return Conn(link, number, socket, connecting=True)


def open_listen(link: Link, number: int, fields: wire.Fields) -> Stream:
    family, address = _address(fields)
    if isinstance(address, bytes):
        _remove_old_socket(address)
    socket = _socket.socket(family, _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK)
    try:
        if family != _socket.AF_UNIX:
            socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        socket.bind(address)
        if isinstance(address, bytes):
            os.chmod(address, wire.integer(fields, "mode", 0, 0o777, 0o600))
        socket.listen(_BACKLOG)
    except BaseException:
        socket.close()
        raise
    return Listen(link, number, socket, address)


def _remove_old_socket(path: bytes) -> None:
    """Make room for a socket where one of before was left behind, and only there."""
    try:
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)
    except FileNotFoundError:
        pass


class Listen(Stream):
    """A socket that programs in the guest connect to; each of them is a stream to the host."""

    def __init__(
        self, link: Link, number: int, socket: _socket.socket, address: tuple[str, int] | bytes
    ) -> None:
        super().__init__(link, number)
        self.socket = socket
        self.path = address if isinstance(address, bytes) else None
        self.told = False
        link.engine.watch(socket.fileno(), READ, self._accept)

    def produce(self) -> None:
        if not self.told:
            self.told = True
            self.note({"port": 0 if self.path else self.socket.getsockname()[1]})

    def on_over(self) -> None:
        self.link.engine.unwatch(self.socket.fileno())
        self.socket.close()
        if self.path:
            try:
                os.unlink(self.path)
            except OSError:
                pass

    def _accept(self, _: int) -> None:
        try:
            fd = accept(self.socket)
        except OSError:
            return
        socket = _socket.socket(fileno=fd)
        socket.setblocking(False)
        opened = self.link.open(
            lambda link, number: Conn(link, number, socket), {"listener": self.number}
        )
        if opened is None:  # as a full backlog would
            socket.close()


class Conn(Stream):
    """A connected socket. Each side may end what it says before it ends hearing."""

    def __init__(
        self, link: Link, number: int, socket: _socket.socket, *, connecting: bool = False
    ) -> None:
        super().__init__(link, number)
        self.socket = socket
        self.fd = socket.fileno()
        self.connecting = connecting
        self.heard: bytes = b""  # read and not sent
        self.said_all = False  # the guest's side says no more
        self.waiting: list[bytes] = []  # for the socket
        self.written = 0
        self.failed = False
        self.heard_all = False  # the host's END has reached the socket
        self._watch()

    # From the socket to the host.

    def produce(self) -> None:
        if self.heard and self.affords(self.heard):
            self.data(self.heard)
            self.heard = b""
        self._watch()

    def _on_ready(self, events: int) -> None:
        if self.connecting:
            self._on_connected()
        elif events & WRITE and self.waiting:
            self._write()
        elif not self.heard and not self.said_all:
            self._read()
        else:  # only an error that nobody has asked about
            self._fail(OSError(errno.ECONNRESET, ""))

    def _on_connected(self) -> None:
        code = self.socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
        if code:
            self._fail(OSError(code, ""))
            return
        self.connecting = False
        self.note({})
        self._write()

    def _read(self) -> None:
        try:
            self.heard = os.read(self.fd, wire.MAX_DATA)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(error)
            return
        if self.heard:
            self.link.enqueue(self)
        else:
            self.said_all = True
            self.end()
            self._finish_if_over()
        self._watch()

    # From the host to the socket.

    def on_data(self, channel: int, payload: bytes) -> None:
        self.waiting.append(payload)
        if not self.connecting:
            self._write()

    def on_end(self) -> None:
        if not self.connecting:
            self._write()

    def _write(self) -> None:
        try:
            while self.waiting:
                payload = self.waiting[0]
                self.written += os.write(self.fd, memoryview(payload)[self.written :])
                if self.written == len(payload):
                    self.written = 0
                    del self.waiting[0]
                    self.consumed(payload)
            if self.ended and not self.heard_all:
                self.heard_all = True
                self.socket.shutdown(_socket.SHUT_WR)
                self._finish_if_over()
        except BlockingIOError:
            pass
        except OSError as error:
            self._fail(error)
        self._watch()

    # Its end.

    def on_over(self) -> None:
        """Close the socket, once it has taken what was meant for it."""
        self.link.engine.unwatch(self.fd)
        if self.waiting and not self.failed and not self.connecting:
            Lingering(self.link.engine, self.socket, b"".join(self.waiting)[self.written :])
        else:
            self.socket.close()
        self.fd = -1

    def _watch(self) -> None:
        if self.fd < 0:
            return
        events = 0
        if self.connecting or self.waiting:
            events |= WRITE
        if not self.connecting and not self.heard and not self.said_all:
            events |= READ
        if events:
            self.link.engine.watch(self.fd, events, self._on_ready)
        else:
            self.link.engine.unwatch(self.fd)

    def _finish_if_over(self) -> None:
        """The acceptor of a stream ends it; a stream that we opened the host ends."""
        if self.said_all and self.heard_all and self.number % 2:
            self.result({})

    def _fail(self, error: OSError) -> None:
        self.failed = True
        found = refusal(error)
        if self.number % 2:
            self.fail(found.code, found.message)
        else:
            self.link.retire(self)


class Lingering:
    """A socket whose stream is over, with what it has not taken yet: a window at the most."""

    def __init__(self, engine: Engine, socket: _socket.socket, rest: bytes) -> None:
        self.engine = engine
        self.socket = socket
        self.rest = rest
        self.timer = engine.after(_LINGER_S, self._close)
        engine.watch(socket.fileno(), WRITE, self._write)

    def _write(self, _: int) -> None:
        try:
            self.rest = self.rest[self.socket.send(self.rest) :]
        except BlockingIOError:
            return
        except OSError:
            self.rest = b""
        if not self.rest:
            self._close()

    def _close(self) -> None:
        self.engine.cancel(self.timer)
        self.engine.unwatch(self.socket.fileno())
        self.socket.close()
