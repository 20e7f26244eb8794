"""Networks for tests, and ends of links that stand for machines in them.

A stage is one kind of networks with all that is needed to see what passes. An end does what a
machine's QEMU does with a link, and no more.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import re
import shutil
import socket
import subprocess
from collections.abc import AsyncGenerator, Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from pathlib import Path
from typing import Any, Protocol

import anyio
import pytest

from microvm_orchestrator.machine import sockets
from microvm_orchestrator.machine.base import Link
from microvm_orchestrator.machine.tap import open_tap, within
from microvm_orchestrator.network import filters, queues
from microvm_orchestrator.network.base import Networks, OnPortEvent, Port
from microvm_orchestrator.network.kernel import KernelNetworks
from microvm_orchestrator.network.switch import open_switch, unheard

CLONE_NEWNET = 0x40000000

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


class TapEnd:
    """What a QEMU does with `-netdev tap`."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd

    async def send(self, frame: bytes) -> None:
        await anyio.wait_writable(self._fd)
        os.write(self._fd, frame)

    async def receive(self) -> bytes:
        await anyio.wait_readable(self._fd)
        return os.read(self._fd, 1 << 17)


class KernelStage:
    """Links are taps in a network namespace of our own, which goes with its last file."""

    def __init__(self, netns: Path) -> None:
        self.netns = netns
        self._owner = new_name("test")

    @asynccontextmanager
    async def open(
        self,
        on_event: OnPortEvent = unheard,  # noqa: ARG002 # nothing happens by itself
    ) -> AsyncGenerator[Networks]:
        yield KernelNetworks(netns=self.netns, owner=self._owner)

    @asynccontextmanager
    async def machine(self, port: Port, link: Link) -> AsyncGenerator[TapEnd]:
        assert link.mac == port.mac
        assert link.tap is not None
        fd = open_tap(link.tap)
        try:
            yield TapEnd(fd)
        finally:
            os.close(fd)

    def path(self, port: Port) -> Path:
        return self.netns.with_name(port.machine_id)

    def run(self, *words: str) -> str:
        """Let a program of this host say what there is."""
        command = ["nsenter", f"--net={self.netns}", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def dump(self) -> str:
        """Say all that there is of links, queues and rules, as somebody who looks would see it."""
        # But for what goes on by itself: timers, and that there is a carrier.
        passing = r"_timer +[\d.]+| state [A-Z]+|NO-CARRIER,|,LOWER_UP"
        links = re.sub(passing, "", self.run("ip", "-details", "link", "show"))
        queues = self.run("tc", "qdisc", "show")
        devices = [line.split()[4] for line in queues.splitlines() if " htb " in f" {line} "]
        classes = [self.run("tc", "class", "show", "dev", device) for device in devices]
        return "\n".join([links, queues, *classes, self.run("nft", "list", "ruleset")])


@contextmanager
def own_namespace() -> Generator[Path]:
    """Give a network namespace that has nothing in it, and is gone when the block is left."""

    def make() -> int:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "no network namespace")
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    # In a thread that ends, so that nobody else is in it.
    with ThreadPoolExecutor(1) as thread:
        fd = thread.submit(make).result()
    try:
        yield Path(f"/proc/{os.getpid()}/fd/{fd}")
    finally:
        os.close(fd)


@contextmanager
def network_settings(kind: str) -> Generator[dict[str, Any]]:
    """Give a daemon's settings for networks of a kind, for as long as they mean something."""
    if kind == "userspace":
        yield {"kind": kind}
        return
    if why := why_no_kernel():
        pytest.skip(why)
    with own_namespace() as netns:
        yield {"kind": kind, "netns": str(netns)}


def ping_script(addresses: Iterable[str], *, tries: int) -> str:
    """Write what asks all of them at once, and names those that answer.

    A guest that has lost a neighbour may lose the first packet to it after a heal as well: when it
    has just given up asking where that one is.
    """
    times = " ".join(map(str, range(tries)))
    asked = [
        f"(for i in {times}; do ping -c 1 -W 1 {to} >/dev/null && echo {to} && break; done) &"
        for to in addresses
    ]
    return f"{' '.join(asked)} wait"


def kernel_lacks(queue: str) -> bool:
    """Try whether this kernel has queues of a kind."""
    with own_namespace() as netns:
        return within(netns, lambda: queues.lacks(queue))


def why_no_kernel() -> str:
    """Say why the kernel's networks cannot be tried here; empty when they can."""
    if os.geteuid():
        return "only root makes bridges and taps"
    if not Path("/dev/net/tun").exists():
        return "this host has no /dev/net/tun"
    missing = [
        name for name in ("nft", "nsenter") if shutil.which(name, path=filters.PLACES) is None
    ]
    return f"this host has no {' and no '.join(missing)}" if missing else ""


@asynccontextmanager
async def kernel_stage(_: Path) -> AsyncGenerator[KernelStage]:
    if why := why_no_kernel():
        pytest.skip(why)
    with own_namespace() as netns:
        yield KernelStage(netns)


STAGES: dict[str, Callable[[Path], AbstractAsyncContextManager[Stage]]] = {
    "switch": switch_stage,
    "kernel": kernel_stage,
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
