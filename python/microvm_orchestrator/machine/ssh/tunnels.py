"""Sockets through SSH: into the guest, and from the guest to a service of the host."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import asyncssh
from asyncssh.constants import OPEN_RESOURCE_SHORTAGE

from microvm_orchestrator import errors
from microvm_orchestrator.machine.channel.tunnels import GONE, Tunnel
from microvm_orchestrator.machine.shell import Tcp, Unix
from microvm_orchestrator.machine.ssh import script as scripts
from microvm_orchestrator.machine.ssh.jobs import ask_quietly
from microvm_orchestrator.machine.ssh.line import WINDOW, Line
from microvm_orchestrator.machine.ssh.link import OPEN_S, Link
from microvm_orchestrator.machine.ssh.script import Script
from microvm_orchestrator.together import beside

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from anyio.abc import ByteStream

# Connections of one guest that are served at once.
_MAX_SERVED = 256
# For what was said last to be taken by the guest.
_CLOSE_S = 60.0


@asynccontextmanager
async def forward(link: Link, address: Tcp | Unix) -> AsyncGenerator[ByteStream]:
    """Connect to a socket in the guest. Raises: GuestRefused when nobody listens."""
    line = Line(link.carrier)
    try:
        await _connected(link, line, address)
        yield Tunnel(line)
    finally:
        line.close()


async def _connected(link: Link, line: Line, address: Tcp | Unix) -> None:
    """Wait until the guest has connected; a call that is cancelled leaves nothing open."""
    done = anyio.Event()
    failures: list[errors.OrchestratorError] = []
    wanted = True

    def asking(conn: asyncssh.SSHClientConnection) -> Awaitable[object]:
        if isinstance(address, Unix):
            return conn.create_unix_connection(lambda: line, address.path, window=WINDOW)
        return conn.create_connection(lambda: line, address.host, address.port, window=WINDOW)

    async def connect() -> None:
        try:
            await link.opened(line, asking)
        except errors.OrchestratorError as failure:
            failures.append(failure)
        finally:
            done.set()
        if not wanted:
            line.close()

    link.check()
    link.tasks.start_soon(connect)
    try:
        await done.wait()
    finally:
        wanted = False
    if failures:
        raise failures[0]


@asynccontextmanager
async def reverse(
    link: Link, address: Tcp | Unix, serve: Callable[[ByteStream], Awaitable[None]]
) -> AsyncGenerator[int]:
    """Listen in the guest, and run `serve` for each connection until the block is left."""
    async with beside() as tasks:
        served = 0

        async def attend(line: Line) -> None:
            nonlocal served
            try:
                while not line.agreed:
                    await line.changed.wait()
                await serve(Tunnel(line))
            except GONE:
                pass  # whoever connected has left
            finally:
                served -= 1
                line.close()

        def take(*_: object) -> Line:
            nonlocal served
            if served >= _MAX_SERVED:
                raise asyncssh.ChannelOpenError(OPEN_RESOURCE_SHORTAGE, "too many")
            served += 1
            line = Line(link.carrier)
            tasks.start_soon(attend, line)
            return line

        listener = await _listening(link, address, take)
        try:
            yield listener.get_port()
        finally:
            await _stop(link, listener, address)


async def _listening(
    link: Link, address: Tcp | Unix, take: Callable[..., Line]
) -> asyncssh.SSHListener:
    conn = link.check()
    try:
        with anyio.fail_after(OPEN_S):
            if isinstance(address, Unix):
                return await conn.create_unix_server(take, address.path, window=WINDOW)
            return await conn.create_server(take, address.host, address.port, window=WINDOW)
    except TimeoutError:
        link.fail(errors.MachineUnreachable(f"the guest did not answer within {OPEN_S:g} s"))
    except asyncssh.ChannelListenError as error:
        link.check()
        raise errors.GuestRefused(f"the guest does not listen on {address}") from error
    link.check()
    raise AssertionError


async def _stop(link: Link, listener: asyncssh.SSHListener, address: Tcp | Unix) -> None:
    """Listen no more, and see that the guest does not either."""
    listener.close()
    with anyio.move_on_after(OPEN_S, shield=True):
        if link.alive:
            await listener.wait_closed()
        if link.alive and isinstance(address, Unix):  # servers leave the file
            path = scripts.quoted(scripts.absolute(address.path))
            await ask_quietly(link, Script(b"[ -S %b ] && rm -f %b; ok\n" % (path, path)))
