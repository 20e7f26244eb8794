"""An SSH server that lets us in, and then says exactly what a test wants."""

from __future__ import annotations

import re
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias

import anyio
import asyncssh
from anyio.abc import UNIXSocketStream

from microvm_orchestrator.machine.shell import Shell
from microvm_orchestrator.machine.ssh import Login, open_ssh
from microvm_orchestrator.machine.ssh.keys import make_key

Told: TypeAlias = "asyncssh.SSHServerProcess[bytes]"
_NONCE = re.compile(r"printf '%s ok %s\\n' ([0-9a-f]{16}) ")
PID = 4242


def begin(told: Told, more: str = "") -> None:
    """Say that a command runs."""
    found = _NONCE.search(told.command or "")
    assert found
    told.stdout.write(f"{found[1]} ok {PID} {more}\n".encode())


@asynccontextmanager
async def lying(
    act: Callable[[Told], Awaitable[None]], keepalive_s: float = 5.0
) -> AsyncGenerator[Shell]:
    """Give a shell on a server that is honest about who it is, and then does as it is told."""

    async def handle(told: Told) -> None:
        if "boot_id" in (told.command or ""):
            begin(told, f"{PID} yes boot host")
            told.exit(0)
        else:
            await act(told)

    ours, theirs = socket.socketpair()
    host, client = make_key("host"), make_key("client")
    async with anyio.create_task_group() as tasks:
        served = anyio.Event()

        async def serve() -> None:
            conn = await asyncssh.run_server(  # pyright: ignore[reportUnknownMemberType]  # asyncssh leaves it untyped
                theirs,
                server_host_keys=[asyncssh.import_private_key(host.private)],
                authorized_client_keys=asyncssh.import_authorized_keys(client.public),
                process_factory=handle,
                encoding=None,
                config=None,
                line_editor=False,
            )
            try:
                await served.wait()
            finally:
                conn.abort()
                await conn.wait_closed()

        tasks.start_soon(serve)
        login = Login("somebody", client, (host.public,))
        async with (
            await UNIXSocketStream.from_socket(ours) as stream,
            open_ssh(stream, login, keepalive_s=keepalive_s) as shell,
        ):
            yield shell
        served.set()
