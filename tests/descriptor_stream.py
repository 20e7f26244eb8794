"""A byte stream over any descriptor that can be waited for."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

import anyio
from anyio.abc import ByteStream


class DescriptorStream(ByteStream):
    """Owns a descriptor. What it had not read when closed is there for whoever has another."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        os.set_blocking(fd, False)

    async def receive(self, max_bytes: int = 65536) -> bytes:
        while True:
            await self._ready(anyio.wait_readable)
            try:
                data = os.read(self._fd, max_bytes)
            except BlockingIOError:
                continue
            except OSError as error:
                raise anyio.BrokenResourceError from error
            if not data:
                raise anyio.EndOfStream
            return data

    async def send(self, item: bytes) -> None:
        view = memoryview(item)
        while view:
            await self._ready(anyio.wait_writable)
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise anyio.BrokenResourceError from error

    async def send_eof(self) -> None:
        raise NotImplementedError

    async def aclose(self) -> None:
        if self._fd >= 0:
            anyio.notify_closing(self._fd)
            os.close(self._fd)
            self._fd = -1

    async def _ready(self, wait: Callable[[int], Awaitable[None]]) -> None:
        if self._fd < 0:
            raise anyio.ClosedResourceError
        await wait(self._fd)
        if self._fd < 0:
            raise anyio.ClosedResourceError
