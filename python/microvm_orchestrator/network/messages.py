"""Netlink in its own words: messages of attributes, said to the kernel, and what it answers.

For what pyroute2 does not know, or is slow to say. Every function that asks blocks for a moment, in
the network namespace of the calling thread. Above stand netem and tables; below, a socket.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Generator, Iterable
from contextlib import suppress

REQUEST, ACK, EXCLUSIVE, CREATE, DUMP, APPEND = 0x1, 0x4, 0x200, 0x400, 0x300, 0x800
_INTERRUPTED = 0x10
_ERROR, _DONE = 2, 3
_NESTED = 0x8000

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
# What the kernel puts into one answer at most, and what it is told at once: all ways of a fault.
_MOST_HEARD, _MOST_SAID = 1 << 17, 1 << 24
_SO_SNDBUFFORCE = 32
# How often what changes while it is read is read anew.
_TRIES = 20


def message(kind: int, flags: int, body: bytes) -> bytes:
    size = _HEADER.size + len(body)
    return _HEADER.pack(size, kind, flags | REQUEST, 1, 0) + body


def attribute(kind: int, value: bytes) -> bytes:
    size = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(size, kind) + value + bytes(-size % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    return attribute(kind | _NESTED, b"".join(attributes))


def attributes(text: bytes) -> Iterable[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(text):
        size, kind = _ATTRIBUTE.unpack_from(text, at)
        if size < _ATTRIBUTE.size:
            return
        yield kind & ~_NESTED, text[at + _ATTRIBUTE.size : at + size]
        at += size + -size % 4


def ask(protocol: int, said: bytes) -> list[bytes]:
    """Say something, and return the messages of the answer.

    Raises: OSError as the kernel refuses it.
    """
    for _ in range(_TRIES):
        with suppress(InterruptedError):
            return list(_answers(protocol, said))
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def _answers(protocol: int, said: bytes) -> Generator[bytes]:
    """Raises: InterruptedError when what is told of changed meanwhile."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as asking:
        if len(said) > _MOST_HEARD:
            asking.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _MOST_SAID)
        asking.bind((0, 0))
        asking.send(said)
        while True:
            answer = asking.recv(_MOST_HEARD)
            at = 0
            while at < len(answer):
                size, kind, flags, _, _ = _HEADER.unpack_from(answer, at)
                body = answer[at + _HEADER.size : at + size]
                at += size + -size % 4
                if kind == _ERROR:
                    (number,) = struct.unpack_from("=i", body)
                    if number:
                        raise OSError(-number, os.strerror(-number))
                    return
                if flags & _INTERRUPTED:
                    raise InterruptedError
                if kind == _DONE:
                    return
                yield body
