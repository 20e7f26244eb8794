"""Other people's ways to run a command: bare asyncssh to an OpenSSH server, and SWE-ReX."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import asyncssh
import pytest
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from bench.figures import cpu_of_all
from microvm_orchestrator.machine.ssh import Login

PYTHON = Path(__file__).parents[2] / ".venv-peers/bin/python"
SWE_REX = Path(__file__).with_name("swe_rex_peer.py")
# Longer than any of it takes on a busy machine.
SOON_S = 60.0


@dataclass(frozen=True, slots=True)
class BareSsh:
    """A connection that stays; each command is a session of its own on it."""

    connection: asyncssh.SSHClientConnection

    async def run_true(self) -> None:
        with anyio.fail_after(SOON_S):
            assert (await self.connection.run("/bin/true")).exit_status == 0


@asynccontextmanager
async def bare_ssh(sock: socket.socket, login: Login) -> AsyncGenerator[BareSsh]:
    """Connect as the library's own documentation does."""
    async with asyncssh.connect(
        "guest",
        sock=sock,
        username=login.user,
        client_keys=[asyncssh.import_private_key(login.key.private)],
        known_hosts=([asyncssh.import_public_key(login.host_keys[0])], [], []),
        config=None,
        agent_path=None,
        login_timeout=SOON_S,
    ) as connection:
        yield BareSsh(connection)


@dataclass(frozen=True, slots=True)
class SweRex:
    """A bash session of its LocalRuntime, in a process of its own on this host."""

    process: Process
    answers: BufferedByteReceiveStream

    async def run_true(self) -> None:
        assert self.process.stdin
        await self.process.stdin.send(b"/bin/true\n")
        with anyio.fail_after(SOON_S):
            assert await self.answers.receive_until(b"\n", 100) == b"0"

    def cpu_s(self) -> float:
        return cpu_of_all(self.process.pid)


@asynccontextmanager
async def swe_rex(home: Path) -> AsyncGenerator[SweRex]:
    """Start it; a test that finds it not installed is skipped, and says so."""
    if not PYTHON.exists():
        pytest.skip("SWE-ReX is not installed; `make peers` does that")
    environment = {**os.environ, "HOME": str(home), "SWE_REX_LOG_STREAM_LEVEL": "ERROR"}
    async with await anyio.open_process(
        [PYTHON, SWE_REX], stderr=None, env=environment, start_new_session=True
    ) as process:
        assert process.stdout
        peer = SweRex(process, BufferedByteReceiveStream(process.stdout))
        with anyio.fail_after(SOON_S):
            assert await peer.answers.receive_until(b"\n", 100) == b"ready"
        yield peer
        assert process.stdin
        await process.stdin.aclose()
        with anyio.fail_after(SOON_S):
            assert await process.wait() == 0
