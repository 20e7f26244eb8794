"""Somebody at a guest's console: what it says from now on, and what is typed.

QEMU waits for a client that does not read, and the guest with it. So a task reads all the time, and
what nobody takes makes room for what comes after; it still stands in the console's file.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from microvm_orchestrator import errors
from microvm_orchestrator.machine import sockets
from microvm_orchestrator.together import beside

if TYPE_CHECKING:
    from anyio.abc import UNIXSocketStream

_CHUNK = 1 << 16
# What waits for who is slow: a few thousand lines. QEMU sends byte by byte; it is put together.
_WAITING_BYTES = 1 << 18


class Terminal:
    """A console that is held."""

    def __init__(self, stream: UNIXSocketStream) -> None:
        self._stream = stream
        self._waiting = bytearray()
        self._more = anyio.Event()
        self._over = False

    async def type(self, data: bytes) -> None:
        """Send to the guest. Raises: MachineUnreachable once the machine has ended."""
        try:
            await self._stream.send(data)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise errors.MachineUnreachable("the console is closed") from error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Give what the guest says, until the machine ends."""
        while True:
            if self._waiting:
                data = bytes(self._waiting)
                self._waiting.clear()
                yield data
            elif self._over:
                return
            else:
                self._more = anyio.Event()
                await self._more.wait()

    async def read(self) -> None:
        """Take what comes; never cancelled, since anyio loses what a cancelled read had."""
        with anyio.CancelScope(shield=True), suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            while True:
                self._waiting += await self._stream.receive(_CHUNK)
                del self._waiting[:-_WAITING_BYTES]
                self._more.set()
        self._over = True
        self._more.set()


@asynccontextmanager
async def open_terminal(path: Path) -> AsyncGenerator[Terminal]:
    """Hold the console at a socket for as long as the block. Raises: MachineUnreachable."""
    try:
        stream = await sockets.connect(path)
    except OSError as error:
        raise errors.MachineUnreachable(f"the console is closed: {error.strerror}") from error
    async with stream:
        terminal = Terminal(stream)
        async with beside(terminal.read):
            try:
                yield terminal
            finally:
                sockets.hang_up(stream)
