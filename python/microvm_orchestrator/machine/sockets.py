"""Unix sockets in directories of any depth.

The address of a unix socket has room for 107 bytes; a state directory may take more than that. The
directory is therefore opened, and the socket named by the open directory's entry in /proc.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from anyio.abc import SocketAttribute

if TYPE_CHECKING:
    from anyio.abc import UNIXSocketStream


def listen(path: Path) -> socket.socket:
    """Listen at a path for this user alone; a socket that stands there is replaced."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _short(path) as address:
            listener.bind(address)
        path.chmod(0o600)
        listener.listen(1)
    except BaseException:
        listener.close()
        raise
    return listener


async def connect(path: Path) -> UNIXSocketStream:
    """Connect to who listens at a path."""
    with _short(path) as address:
        return await anyio.connect_unix(address)


def dial(path: Path) -> socket.socket:
    """Connect to who listens at a path, at once or not at all; the socket does not block."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        with _short(path) as address:
            connection.connect(address)
    except BaseException:
        connection.close()
        raise
    return connection


def hang_up(stream: UNIXSocketStream) -> None:
    """Let who reads from a connection find it ended: a read of anyio's must not be cancelled."""
    raw_socket = SocketAttribute.raw_socket
    connection = stream.extra(raw_socket)  # noqa: S610 # no query of Django's
    with suppress(OSError):  # the other side was faster
        connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def _short(path: Path) -> Generator[str]:
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
