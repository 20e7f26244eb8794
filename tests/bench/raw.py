"""The floor for ways into a guest: a bare channel to `raw_end.py`, on this host or in a guest."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
from anyio.abc import ByteStream, UNIXSocketStream

from bench.figures import cpu_of
from bench.raw_end import CHUNK, ORDER
from microvm_orchestrator.machine.shell import Command, Shell

END = Path(__file__).with_name("raw_end.py")
# Longer than it takes on a busy machine.
START_S = 60.0


@dataclass(frozen=True, slots=True)
class Raw:
    """A channel to a process that does as it is told."""

    stream: ByteStream

    async def echo(self) -> None:
        await self._order(b"e")
        await self._receive(ORDER)

    async def spawn(self) -> None:
        await self._order(b"x")
        await self._receive(ORDER)

    async def put(self, content: bytes) -> None:
        await self._order(b"t", len(content))
        for at in range(0, len(content), CHUNK):
            await self.stream.send(content[at : at + CHUNK])
        await self._receive(ORDER)

    async def get(self, size: int) -> None:
        await self._order(b"g", size)
        await self._receive(size)

    async def _order(self, kind: bytes, size: int = 0) -> None:
        await self.stream.send(kind + size.to_bytes(ORDER - 1, "big"))

    async def _receive(self, size: int) -> None:
        while size:
            size -= len(await self.stream.receive())


@dataclass(frozen=True, slots=True)
class RawSocket(Raw):
    """A socket to a process of this host."""

    pid: int

    def cpu_s(self) -> float:
        return cpu_of(self.pid)


@asynccontextmanager
async def raw_socket(path: Path) -> AsyncGenerator[RawSocket]:
    ours, theirs = socket.socketpair()
    with theirs:
        words = [sys.executable, "-I", "-S", END, str(theirs.fileno()), path]
        process = subprocess.Popen(words, pass_fds=(theirs.fileno(),))
    with process:
        async with await UNIXSocketStream.from_socket(ours) as stream:
            yield RawSocket(stream, process.pid)


@asynccontextmanager
async def raw_port(shell: Shell, port: Path, path: str) -> AsyncGenerator[Raw]:
    """Run the same process on a virtio port of a guest that can be reached otherwise too."""
    program = f"/run/{END.name}"
    await shell.put(program, END.read_bytes())
    device = await find_device(shell, port.name)
    # Before it opens the port, which seems to have ended while nobody is there.
    async with await anyio.connect_unix(port) as stream:
        words = ["python3", "-I", "-S", program, device, path]
        async with shell.stream(Command(words), stdin=False):
            raw = Raw(stream)
            with anyio.fail_after(START_S):
                await raw.echo()
            yield raw


async def find_device(shell: Shell, port: str) -> str:
    """Find a virtio port in a guest by its name."""
    script = f"cd /sys/class/virtio-ports && grep -lx {port} */name"
    found = await shell.exec(Command(["/bin/sh", "-c", script]))
    assert found.exit.code == 0, found
    return f"/dev/{found.stdout.decode().partition('/')[0]}"
