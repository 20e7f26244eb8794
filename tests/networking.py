"""Networks for tests, and ends of links that stand for machines in them.

A stage is one kind of networks with all that is needed to see what passes. An end does what a
machine's QEMU does with a link, and no more.
"""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Protocol

import anyio

from microvm_orchestrator.machine import sockets
from microvm_orchestrator.machine.base import Link
from microvm_orchestrator.network.base import Networks, OnPortEvent, Port
from microvm_orchestrator.network.switch import open_switch, unheard

_numbers = itertools.count(1)


def new_name(kind: str) -> str:
    """A name no other test of this machine uses."""
    return f"{kind}-{os.getpid()}-{next(_numbers)}"


class End(Protocol):
    """The machine's end of a link."""

    async def send(self, frame: bytes) -> None: ...

    async def receive(self) -> bytes:
        """Return the next frame that has reached the machine."""
        ...


class SocketEnd:
    """What a QEMU does with `-netdev stream,server=on`: one after the other may connect."""

    def __init__(self, listener: socket.socket) -> None:
        listener.setblocking(False)
        self._listener = listener
        self.connection: socket.socket | None = None
        self._received = b""

    async def accept(self) -> socket.socket:
        """Wait until the other side has connected anew."""
        await anyio.wait_readable(self._listener)
        self.hang_up()
        self.connection, _ = self._listener.accept()
        self.connection.setblocking(False)
        self._received = b""
        return self.connection

    def hang_up(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    async def send(self, frame: bytes) -> None:
        await self.send_raw(len(frame).to_bytes(4) + frame)

    async def send_raw(self, data: bytes) -> None:
        connection = self.connection or await self.accept()
        while data:
            await anyio.wait_writable(connection)
            try:
                data = data[connection.send(data) :]
            except ConnectionError:
                connection = await self.accept()

    async def receive(self) -> bytes:
        size = int.from_bytes(await self._take(4))
        return await self._take(size)

    async def receive_end(self) -> None:
        """Wait until the other side has hung up."""
        connection = self.connection or await self.accept()
        while True:
            await anyio.wait_readable(connection)
            try:
                if not connection.recv(1 << 16):
                    return
            except ConnectionError:
                return

    async def _take(self, size: int) -> bytes:
        connection = self.connection or await self.accept()
        while len(self._received) < size:
            await anyio.wait_readable(connection)
            data = connection.recv(1 << 16)
            if not data:
                connection = await self.accept()
            self._received += data
        taken, self._received = self._received[:size], self._received[size:]
        return taken


class Stage(Protocol):
    """One kind of networks, and the machines in them."""

    def open(self, on_event: OnPortEvent = unheard) -> AbstractAsyncContextManager[Networks]:
        """Begin as a daemon does; what an earlier one left on this stage may still be there."""
        ...

    def machine(self, port: Port, link: Link) -> AbstractAsyncContextManager[End]:
        """Be the machine that was started with this link."""
        ...

    def path(self, port: Port) -> Path:
        """Name what a machine says of its link."""
        ...


class SwitchStage:
    """Links are sockets."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, on_event: OnPortEvent = unheard) -> AbstractAsyncContextManager[Networks]:
        return open_switch(on_event)

    @asynccontextmanager
    async def machine(self, port: Port, link: Link) -> AsyncGenerator[SocketEnd]:
        assert link.mac == port.mac
        with sockets.listen(self.path(port)) as listener:
            end = SocketEnd(listener)
            try:
                yield end
            finally:
                end.hang_up()

    def path(self, port: Port) -> Path:
        return self._folder / f"{port.machine_id}-{port.network_id}"


@asynccontextmanager
async def switch_stage(folder: Path) -> AsyncGenerator[Stage]:
    yield SwitchStage(folder)


STAGES: dict[str, Callable[[Path], AbstractAsyncContextManager[Stage]]] = {
    "switch": switch_stage,
}


async def wired(
    networks: Networks, stage: Stage, ports: list[Port], stack: AsyncExitStack
) -> list[End]:
    """Let a machine run behind each port, and connect it."""
    ends: list[End] = []
    for port in ports:
        link = await networks.prepare(port)
        ends.append(await stack.enter_async_context(stage.machine(port, link)))
        await networks.connect(port, stage.path(port))
    return ends
