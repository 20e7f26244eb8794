"""Single files through the channel."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from microvm_orchestrator import errors
from microvm_orchestrator.machine import wire
from microvm_orchestrator.machine.channel.requests import ANSWER_S, IDLE_S, opened
from microvm_orchestrator.machine.channel.stream import Data, Over

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator

    from microvm_orchestrator.machine.channel.link import Link
    from microvm_orchestrator.machine.channel.stream import Stream
    from microvm_orchestrator.machine.shell import File


@dataclass(frozen=True, slots=True)
class PutRequest:
    """Where a file goes, and how it is then."""

    path: str
    mode: int
    user: str | None
    parents: bool

    def fields(self, size: int) -> dict[str, int | bytes | list[bytes]]:
        user = {} if self.user is None else {"user": os.fsencode(self.user)}
        return {
            "verb": b"put",
            "path": os.fsencode(self.path),
            "mode": self.mode,
            "size": size,
            "parents": int(self.parents),
            **user,
        }


async def put(
    link: Link, request: PutRequest, content: bytes | AsyncIterable[bytes], size: int | None
) -> None:
    """Write a file in the guest. Raises: InvalidInput when the content is not of its size."""
    if isinstance(content, bytes):
        size = len(content)
    elif size is None:
        raise errors.InvalidInput("content that comes in pieces needs its size")
    try:
        async with opened(link, request.fields(size)) as stream:
            with suppress(Over):  # the answer says why
                await _send(stream, content, size)
            await stream.answer(IDLE_S)
    except errors.MachineFailed as failed:
        raise errors.UnknownOutcome(
            f"whether {request.path} was written is not known: {failed}"
        ) from failed


async def _send(stream: Stream, content: bytes | AsyncIterable[bytes], size: int) -> None:
    if isinstance(content, bytes):
        await stream.send(content, IDLE_S)
    else:
        left = size
        async for piece in content:
            left -= len(piece)
            if left < 0:
                break
            await stream.send(piece, IDLE_S)
        if left:
            raise errors.InvalidInput(f"the content is not of the {size} bytes that were announced")
    stream.end()


class Announced:
    """What is known of a file before it arrives."""

    def __init__(self, size: int, mode: int) -> None:
        self._size = size
        self._mode = mode

    @property
    def size(self) -> int:
        return self._size

    @property
    def mode(self) -> int:
        return self._mode


class _File(Announced):
    """A file that arrives."""

    def __init__(self, stream: Stream, size: int, mode: int) -> None:
        super().__init__(size, mode)
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = self._size
        while items := await self._stream.receive(IDLE_S):
            for item in items:
                if not isinstance(item, Data) or len(item.payload) > left:
                    self._stream.broken("more of a file than it announced")
                left -= len(item.payload)
                yield item.payload
        await self._stream.answer()
        if left:
            self._stream.broken("less of a file than it announced")


@asynccontextmanager
async def got(link: Link, path: str, max_size: int) -> AsyncGenerator[File]:
    """Open a file of the guest for reading."""
    request = {"verb": b"get", "path": os.fsencode(path), "max_size": max_size}
    async with opened(link, request) as stream:
        about = await stream.note(ANSWER_S)
        try:
            size = wire.integer(about, "size", 0, max_size)
            mode = wire.integer(about, "mode", 0, 0o7777)
        except wire.Broken as error:
            stream.broken(f"a file that was not asked for: {error}")
        yield _File(stream, size, mode)
