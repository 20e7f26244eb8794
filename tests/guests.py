"""Guests to talk to: the real agent behind each kind of transport, and a real SSH server.

Both are processes of this host. What can carry the contract of `Shell` adds itself to `GUESTS`; a
booted machine does so where it can be booted. `connect` may be called again at any time: that is a
daemon that was restarted. What their commands see is this host, so a test leaves nothing behind.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tty
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import anyio
from anyio.abc import ByteStream, UNIXSocketStream

from descriptor_stream import DescriptorStream
from microvm_orchestrator.machine.channel import open_shell
from microvm_orchestrator.machine.shell import Shell
from microvm_orchestrator.machine.ssh import Login, open_ssh
from sshd import set_up_sshd

AGENT = Path(__file__).parents[1] / "guest" / "agent" / "main.py"
# Generous: they only decide how long a broken test takes to say so.
START_S = 30.0
STOP_S = 5.0


@dataclass(frozen=True, slots=True)
class Guest:
    """A guest that runs, and how to reach it."""

    connect: Callable[[], AbstractAsyncContextManager[ByteStream]]
    # For a test to write to, on the guest's side.
    folder: Path
    # The verbs that its way in does not offer.
    lacks: ClassVar[frozenset[str]] = frozenset()

    @asynccontextmanager
    async def shell(self) -> AsyncGenerator[Shell]:
        async with self.connect() as transport, open_shell(transport, greeting_s=START_S) as shell:
            yield shell


@dataclass(frozen=True, slots=True)
class LocalGuest(Guest):
    """An agent that is a process of this host."""

    process: subprocess.Popen[bytes]

    def resident_kib(self) -> int:
        """Return the most memory that the agent ever had."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0])


@dataclass(frozen=True, slots=True)
class SshGuest(Guest):
    """An image that is not ours."""

    login: Login
    lacks: ClassVar[frozenset[str]] = frozenset({"attach", "fresh"})

    @asynccontextmanager
    async def shell(self) -> AsyncGenerator[Shell]:
        async with (
            self.connect() as transport,
            open_ssh(transport, self.login, greeting_s=START_S) as shell,
        ):
            yield shell


@asynccontextmanager
async def behind_sshd(folder: Path) -> AsyncGenerator[SshGuest]:
    """Set up a server; each host is a connection of its own, to a process of its own."""
    server = set_up_sshd(folder / "sshd")
    yield SshGuest(server.connect, _inside(folder), server.login)


@asynccontextmanager
async def behind_socket(
    folder: Path, *options: str, within: Sequence[str] = ()
) -> AsyncGenerator[LocalGuest]:
    """Run an agent that listens, as on vsock; each host is a connection of its own.

    `within` are words of a command that runs the agent somewhere else.
    """
    path = folder / "agent.socket"
    with listening(path) as fd:
        process = _start(*within, *agent_words(f"listener:{fd}", *options), pass_fds=(fd,))

    @asynccontextmanager
    async def connect() -> AsyncGenerator[ByteStream]:
        async with await anyio.connect_unix(path) as stream:
            yield stream

    async with _ended(process):
        yield LocalGuest(connect, _inside(folder), process)


@asynccontextmanager
async def behind_device(folder: Path, *options: str) -> AsyncGenerator[LocalGuest]:
    """Run an agent on a character device, as on a virtio port.

    Hosts come and go unseen by it, and the next one gets what was meant for the one before.
    """
    master, slave = os.openpty()
    tty.setraw(slave)
    process = _start(*agent_words(f"port:{os.ttyname(slave)}", *options))

    @asynccontextmanager
    async def connect() -> AsyncGenerator[ByteStream]:
        async with DescriptorStream(os.dup(master)) as stream:
            yield stream

    try:
        async with _ended(process):
            yield LocalGuest(connect, _inside(folder), process)
    finally:
        os.close(slave)
        os.close(master)


@asynccontextmanager
async def on_socketpair(*options: str) -> AsyncGenerator[tuple[Shell, subprocess.Popen[bytes]]]:
    """Run an agent that ends with its one connection, and talk to it."""
    ours, theirs = socket.socketpair()
    with theirs:
        words = agent_words(f"fd:{theirs.fileno()}", *options)
        process = _start(*words, pass_fds=(theirs.fileno(),))
    async with _ended(process):
        stream = await UNIXSocketStream.from_socket(ours)
        async with open_shell(stream, greeting_s=START_S) as shell:
            yield shell, process
        process.wait(STOP_S)


AGENTS: dict[str, Callable[[Path], AbstractAsyncContextManager[LocalGuest]]] = {
    "socket": behind_socket,
    "device": behind_device,
}
GUESTS: dict[str, Callable[[Path], AbstractAsyncContextManager[Guest]]] = {
    **AGENTS,
    "ssh": behind_sshd,
}


def agent_words(*words: str) -> list[str]:
    return [sys.executable, "-I", "-S", str(AGENT), *words]


@contextmanager
def listening(path: Path) -> Generator[int]:
    """Listen before the agent is there, so that nobody ever comes too early."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        listener.listen()
        yield listener.fileno()


def _start(*words: str, pass_fds: tuple[int, ...] = ()) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        pass_fds=pass_fds,
        start_new_session=True,
    )


@asynccontextmanager
async def _ended(process: subprocess.Popen[bytes]) -> AsyncGenerator[None]:
    try:
        yield
    finally:
        process.kill()  # `unshare` takes no other signal while it has a child
        process.wait(STOP_S)


def _inside(folder: Path) -> Path:
    inside = folder / "guest"
    inside.mkdir()
    return inside
