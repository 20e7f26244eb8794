"""Any byte stream, as the transport that asyncssh writes to and hears from.

So a guest is reached through TCP, a forwarded port of our agent, vsock or a unix socket alike. One
task reads, another writes. asyncssh asks nobody before it writes, so a guest that does not read is
not read from either, and who sends much waits for `room`: nothing here grows with what it does.
Nothing is said before the server has begun: what is said into a port while one server leaves it and
the next one comes is lost, and both would wait for ever.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Protocol

import anyio

from microvm_orchestrator.machine.channel.link import shut_down
from microvm_orchestrator.machine.channel.stream import renewed

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyio.abc import ByteStream

_READ_BYTES = 64 * 1024
# What may wait to be written before senders wait, and before the guest is not heard any more.
_FULL = 256 * 1024
_DEAF = 1024 * 1024

_GONE = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError)


class Conversation(Protocol):
    """What asyncssh's connection is to its transport."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None: ...

    def data_received(self, data: bytes) -> None: ...

    def connection_lost(self, exc: Exception | None) -> None: ...


class Carrier(asyncio.Transport):
    """The way between asyncssh and a guest."""

    def __init__(self, stream: ByteStream, first_word_s: float = math.inf) -> None:
        """`first_word_s` is how long the server may take to begin."""
        super().__init__()
        self._first_word_s = first_word_s
        self._stream = stream
        self._protocol: Conversation | None = None
        self._waiting = bytearray()
        self._closed = False
        self._begun = anyio.Event()
        self._heard = anyio.Event()
        self._ended = anyio.Event()
        self._wake = anyio.Event()
        self._taken = anyio.Event()

    async def run(self) -> None:
        """Read and write until closed by either side, and close the stream then.

        Neither is cancelled on a socket: that loses a race with what arrives there.
        """
        with anyio.CancelScope(shield=True):
            async with self._stream, anyio.create_task_group() as tasks:
                await self._begun.wait()
                tasks.start_soon(self._read)
                tasks.start_soon(self._write)
                await self._ended.wait()
                if not shut_down(self._stream):
                    tasks.cancel_scope.cancel()

    async def room(self) -> None:
        """Wait until more may be written, or until nothing is any more."""
        while len(self._waiting) > _FULL and not self._closed:
            await self._taken.wait()

    # What asyncssh calls.

    async def create_connection(
        self, factory: Callable[[], Conversation], _host: str, _port: int
    ) -> tuple[Carrier, Conversation]:
        """Begin: asyncssh believes that it goes through a tunnel."""
        protocol = self._protocol = factory()
        protocol.connection_made(self)
        self._begun.set()
        return self, protocol

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._closed:
            self._waiting += data
            self._wake.set()

    def get_extra_info(self, name: str, default: object = None) -> object:
        return default

    def is_closing(self) -> bool:
        return self._closed

    def close(self) -> None:
        self._closed = True
        self._begun.set()
        self._heard.set()
        self._ended.set()
        self._wake.set()
        self._taken = renewed(self._taken)

    def abort(self) -> None:
        self.close()

    # What runs.

    async def _read(self) -> None:
        try:
            while not self._closed:
                with anyio.fail_after(math.inf if self._heard.is_set() else self._first_word_s):
                    data = await self._stream.receive(_READ_BYTES)
                self._heard.set()
                if self._protocol and data:
                    self._protocol.data_received(data)
                while len(self._waiting) > _DEAF and not self._closed:
                    await self._taken.wait()
        except _GONE as error:
            self._lost(error if isinstance(error, TimeoutError) else None)

    async def _write(self) -> None:
        await self._heard.wait()
        try:
            while not self._closed:
                if not self._waiting:
                    self._wake = anyio.Event()
                    await self._wake.wait()
                    continue
                data = bytes(self._waiting)
                self._waiting.clear()
                self._taken = renewed(self._taken)
                await self._stream.send(data)
        except _GONE:
            self._lost()

    def _lost(self, error: TimeoutError | None = None) -> None:
        self.close()
        if self._protocol:
            self._protocol.connection_lost(error)
