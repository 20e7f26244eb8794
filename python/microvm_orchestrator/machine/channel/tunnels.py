"""Sockets through the channel: into the guest, and from the guest to a service of the host."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NoReturn, Protocol

import anyio
import anyio.lowlevel
from anyio.abc import ByteStream

from microvm_orchestrator import errors
from microvm_orchestrator.machine import wire
from microvm_orchestrator.machine.channel.requests import ANSWER_S, CONNECT_S, opened
from microvm_orchestrator.machine.channel.stream import Data, End, Item, Over
from microvm_orchestrator.machine.shell import Tcp, Unix
from microvm_orchestrator.together import beside

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from microvm_orchestrator.machine.channel.link import Link
    from microvm_orchestrator.machine.channel.stream import Stream


GONE = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream)


class Exchange(Protocol):
    """What carries the bytes of a socket: a stream of the channel, or of another way in."""

    async def receive(self) -> list[Item]: ...

    async def answer(self) -> object: ...

    async def send(self, data: bytes) -> None: ...

    def end(self) -> None: ...

    def broken(self, rule: str) -> NoReturn: ...


class Tunnel(ByteStream):
    """A socket in the guest as a byte stream of the host.

    Raises what anyio's own streams raise: EndOfStream, BrokenResourceError when the socket or the
    connection is gone, ClosedResourceError.
    """

    def __init__(self, stream: Exchange) -> None:
        self._stream = stream
        self._arrived = bytearray()
        self._ended = False
        self._sent_eof = False
        self._closed = False

    async def receive(self, max_bytes: int = 65536) -> bytes:
        await anyio.lowlevel.checkpoint()
        while not self._arrived:
            self._check()
            if self._ended:
                raise anyio.EndOfStream
            try:
                await self._take()
            except errors.OrchestratorError as error:
                raise anyio.BrokenResourceError from error
        data = bytes(self._arrived[:max_bytes])
        del self._arrived[:max_bytes]
        return data

    async def send(self, item: bytes) -> None:
        await anyio.lowlevel.checkpoint()
        self._check()
        try:
            await self._stream.send(item)
        except (Over, errors.OrchestratorError) as error:
            raise anyio.BrokenResourceError from error

    async def send_eof(self) -> None:
        self._check()
        if not self._sent_eof:
            self._sent_eof = True
            self._stream.end()

    async def aclose(self) -> None:
        self._closed = True

    async def _take(self) -> None:
        items = await self._stream.receive()
        for item in items:
            if isinstance(item, Data):
                self._arrived += item.payload
            elif isinstance(item, End):
                self._ended = True
            else:
                self._stream.broken("a record between the bytes of a socket")
        if not items:
            await self._stream.answer()
            self._ended = True

    def _check(self) -> None:
        if self._closed:
            raise anyio.ClosedResourceError


@asynccontextmanager
async def forward(link: Link, address: Tcp | Unix) -> AsyncGenerator[ByteStream]:
    """Connect to a socket in the guest. Raises: GuestRefused, NotFound when nobody listens."""
    async with opened(link, {"verb": b"connect", **_fields(address)}) as stream:
        await stream.note(CONNECT_S)
        yield Tunnel(stream)


@asynccontextmanager
async def reverse(
    link: Link, address: Tcp | Unix, serve: Callable[[ByteStream], Awaitable[None]]
) -> AsyncGenerator[int]:
    """Listen in the guest, and run `serve` for each connection until the block is left."""
    async with opened(link, {"verb": b"listen", **_fields(address)}) as stream:
        fields = await stream.note(ANSWER_S)
        try:
            port = wire.integer(fields, "port", 0, 65535)
        except wire.Broken as error:
            stream.broken(str(error))
        async with beside() as tasks:

            def take(incoming: Stream) -> None:
                tasks.start_soon(_serve, serve, incoming)

            link.listeners[stream.number] = take
            try:
                yield port
            finally:
                del link.listeners[stream.number]


async def _serve(serve: Callable[[ByteStream], Awaitable[None]], stream: Stream) -> None:
    try:
        await serve(Tunnel(stream))
    except GONE:
        pass  # whoever connected has left
    finally:
        stream.finish()


def _fields(address: Tcp | Unix) -> dict[str, int | bytes]:
    if isinstance(address, Unix):
        return {"path": os.fsencode(address.path)}
    return {"host": address.host.encode("ascii", "replace"), "port": address.port}
