"""Where the host comes in.

`port:NAME` is a virtio port by name or a device by path: one descriptor for ever, and no host on
the other side most of the time. `vsock:PORT`, `unix:PATH` and `listener:FD` listen: each host is a
descriptor of its own, and the newest is the host. `fd:FD` is one connection; its end is ours.
"""

from __future__ import annotations

import os

from engine import READ

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket

    from engine import Engine
    from link import Link

_VIRTIO_PORTS = "/sys/class/virtio-ports"
# A device cannot be waited for, nor can a host on a virtio port: the kernel answers at once that
# there is none. Looking is 0.1 ms of work under emulation; a clone is asked for within this time.
_LOOK_S = 0.01
# After so many looks nobody is in a hurry, and what the last host has begun is over.
_HURRIED_LOOKS = 500
_CALM_LOOK_S = 0.1


class Device:
    """A character device, by path or by the name of a virtio port.

    The kernel hands out what a new host says by an interrupt, and tells that there is one from a
    worker, which may come later. So a hang-up may be older than what has just been read, even than
    a marker, and what was begun with a host is kept for a while.
    """

    def __init__(self, engine: Engine, link: Link, name: str) -> None:
        self.engine = engine
        self.link = link
        self.name = name
        self.fd = -1
        self.looks = 0

    def start(self) -> None:
        path = self.name if self.name.startswith("/") else _find_virtio_port(self.name)
        try:
            self.fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY) if path else -1
        except FileNotFoundError:
            self.fd = -1
        if self.fd < 0:
            self.engine.after(_LOOK_S, self.start)
            return
        self.link.on_gone = self.on_gone
        self.link.connect(self.fd)
        self.link.beacon()

    def on_gone(self) -> None:
        self.link.pause()
        self.looks = 0
        self._later()

    def _later(self) -> None:
        self.engine.after(_LOOK_S if self.looks < _HURRIED_LOOKS else _CALM_LOOK_S, self._look)

    def _look(self) -> None:
        self.looks += 1
        try:
            os.read(self.fd, 0)
        except OSError:
            pass
        if not _is_hung_up(self.fd):
            self.link.resume()
            return
        if self.looks == _HURRIED_LOOKS:
            self.link.forget()
        self._later()


class Listener:
    """A socket that hosts connect to."""

    def __init__(self, engine: Engine, link: Link, socket: _socket.socket) -> None:
        self.engine = engine
        self.link = link
        self.socket = socket
        self.fd = -1

    def start(self) -> None:
        self.socket.setblocking(False)
        self.socket.listen(8)
        self.link.on_gone = self.on_gone
        self.engine.watch(self.socket.fileno(), READ, self._accept)

    def on_gone(self) -> None:
        self.link.disconnect()
        os.close(self.fd)
        self.fd = -1

    def _accept(self, _: int) -> None:
        try:
            fd = accept(self.socket)
        except OSError:
            return
        if self.fd >= 0:
            self.link.receive()  # the last words of the host before
        if self.fd >= 0:
            self.link.disconnect()
            os.close(self.fd)
        self.fd = fd
        os.set_blocking(fd, False)
        self.link.connect(fd)


class Inherited:
    """A descriptor that was given; its end is ours."""

    def __init__(self, engine: Engine, link: Link, fd: int) -> None:
        self.engine = engine
        self.link = link
        self.fd = fd

    def start(self) -> None:
        os.set_inheritable(self.fd, False)
        os.set_blocking(self.fd, False)
        self.link.on_gone = self.on_gone
        self.link.connect(self.fd)

    def on_gone(self) -> None:
        self.engine.running = False


def accept(socket: _socket.socket) -> int:
    """Return the descriptor of the next connection. (`accept` itself is of the module `socket`.)"""
    fd, _address = socket._accept()  # type: ignore  # noqa: PGH003, SLF001 # not in the stubs
    return int(fd)  # type: ignore  # noqa: PGH003  # for more than one checker


def open_port(engine: Engine, link: Link, kind: str, where: str) -> Device | Listener | Inherited:
    """Make what the command line names."""
    if kind == "fd":
        return Inherited(engine, link, int(where))
    if kind == "port":
        return Device(engine, link, where)
    # The module `socket` takes 5 ms natively and fifty times that under emulation.
    import _socket

    if kind == "listener":
        listener = _socket.socket(fileno=int(where))
        os.set_inheritable(listener.fileno(), False)
    elif kind == "vsock":
        listener = _socket.socket(_socket.AF_VSOCK, _socket.SOCK_STREAM)
        listener.bind((_socket.VMADDR_CID_ANY, int(where)))
    else:
        listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        if os.path.exists(where):
            os.unlink(where)
        listener.bind(where)
    return Listener(engine, link, listener)


def _find_virtio_port(name: str) -> str | None:
    try:
        for port in os.listdir(_VIRTIO_PORTS):
            with open(f"{_VIRTIO_PORTS}/{port}/name", encoding="ascii") as file:
                if file.read().strip() == name:
                    return "/dev/" + port
    except OSError:
        return None
    return None


def _is_hung_up(fd: int) -> bool:
    import select

    poll = select.poll()
    poll.register(fd, READ)
    return any(events & select.POLLHUP for _, events in poll.poll(0))
