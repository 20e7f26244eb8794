"""A guest that says exactly what a test wants, well formed or not, over a real socket."""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
from anyio.abc import ByteStream, UNIXSocketStream

from descriptor_stream import DescriptorStream
from microvm_orchestrator.machine import wire
from microvm_orchestrator.machine.channel import open_shell
from microvm_orchestrator.machine.shell import Shell

HELLO: dict[str, int | bytes | list[bytes]] = {
    "agent": b"scripted",
    "identity": b"1",
    "boot_id": b"2",
    "hostname": b"guest",
    "verbs": [b"exec"],
}


class ScriptedGuest:
    """The guest's end of a connection."""

    def __init__(self, stream: ByteStream) -> None:
        self.stream = stream
        self._reader = wire.FrameReader()
        self._frames: list[wire.Frame] = []

    async def greet(self, hello: wire.Fields | None = None) -> None:
        """Answer the host's preamble as an agent does."""
        await self.stream.send(await self.answer())
        await self.say(wire.HELLO, 0, HELLO if hello is None else hello)

    async def answer(self) -> bytes:
        """Read the host's preamble and return the right answer to it."""
        while len(self._reader.buffer) < wire.PREAMBLE_BYTES:
            self._reader.buffer += await self.stream.receive()
        nonce, _, newest = wire.read_preamble(self._reader.buffer)
        del self._reader.buffer[: wire.PREAMBLE_BYTES]
        return wire.preamble(nonce, newest, newest)

    async def hear(self, *kinds: int) -> tuple[int, wire.Fields]:
        """Wait for a frame of these kinds; return its stream and its record."""
        while True:
            while not self._frames:
                self._frames += self._reader.frames()
                if not self._frames:
                    self._reader.buffer += await self.stream.receive()
            kind, number, _, payload = self._frames.pop(0)
            if kind in kinds:
                record = kind in (wire.OPEN, wire.NOTE, wire.RESULT, wire.ERROR)
                return number, wire.decode(payload) if record else {}

    async def say(
        self, kind: int, number: int, said: wire.Fields | bytes = b"", channel: int = 0
    ) -> None:
        payload = said if isinstance(said, bytes) else wire.encode(said)
        await self.stream.send(wire.frame(kind, number, payload, channel))

    async def ignore_the_rest(self) -> None:
        """Read until the host goes."""
        try:
            while True:
                await self.stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass


@asynccontextmanager
async def scripted() -> AsyncGenerator[tuple[ScriptedGuest, UNIXSocketStream]]:
    """Give a guest, and the host's end of its connection."""
    ours, theirs = socket.socketpair()
    host = await UNIXSocketStream.from_socket(ours)
    async with DescriptorStream(theirs.detach()) as stream, host:
        yield ScriptedGuest(stream), host


@asynccontextmanager
async def greeted(deadline_s: float = 20.0) -> AsyncGenerator[tuple[ScriptedGuest, Shell]]:
    """Give a guest that has said who it is, and the shell that talks to it."""
    async with scripted() as (guest, host):
        with anyio.fail_after(deadline_s):
            async with anyio.create_task_group() as group:
                group.start_soon(guest.greet)
                async with open_shell(host) as shell:
                    yield guest, shell
                group.cancel_scope.cancel()
