"""A real OpenSSH server, as processes of this host: one for each connection, on a socketpair.

It has keys and a configuration of its own and listens nowhere. Its commands see this host, as the
user who runs the tests.
"""

from __future__ import annotations

import getpass
import os
import socket
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.to_thread
from anyio.abc import ByteStream, UNIXSocketStream

from microvm_orchestrator.machine.shell import Shell
from microvm_orchestrator.machine.ssh import Login, MachineKeys, keep_keys, open_ssh

SSHD = "/usr/sbin/sshd"
# Where a server of root's wants an empty folder, which its service makes where there is one.
_EMPTY = Path("/run/sshd")
STOP_S = 10.0
# Longer than any test takes on a busy machine.
SOON_S = 60.0

_CONFIG = """
HostKey {folder}/keys/host
AuthorizedKeysFile {folder}/authorized
StrictModes no
UsePAM no
PasswordAuthentication no
PidFile none
PrintMotd no
LogLevel ERROR
SetEnv HOME={folder} {env}
{more}
"""


@dataclass(frozen=True, slots=True)
class Sshd:
    """A server that is set up, and the processes of its connections."""

    folder: Path
    keys: MachineKeys
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list[subprocess.Popen[bytes]])

    @property
    def login(self) -> Login:
        return Login(login_name(), self.keys.client, (self.keys.host.public,))

    @asynccontextmanager
    async def connect(self) -> AsyncGenerator[ByteStream]:
        async with self.serving() as ours, await UNIXSocketStream.from_socket(ours) as stream:
            yield stream

    @asynccontextmanager
    async def serving(self) -> AsyncGenerator[socket.socket]:
        """Start a process for one connection and give our end, which the caller closes."""
        ours, theirs = socket.socketpair()
        async with self.running(theirs):
            yield ours

    @asynccontextmanager
    async def running(self, theirs: socket.socket) -> AsyncGenerator[None]:
        """Let a process serve a connection, which ends it in the end."""
        with theirs, (self.folder / "log").open("ab") as log:
            words = [SSHD, "-i", "-e", "-f", str(self.folder / "config")]
            process = subprocess.Popen(
                words,
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=log,
                start_new_session=True,
            )
        self.processes.append(process)
        try:
            yield
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(process.wait, STOP_S)

    @asynccontextmanager
    async def shell(self, within_s: float = SOON_S) -> AsyncGenerator[Shell]:
        with anyio.fail_after(within_s):
            async with self.connect() as stream, open_ssh(stream, self.login) as shell:
                yield shell


def login_name() -> str:
    """Name who may log in: a server that root did not start serves its own user."""
    return getpass.getuser()


def set_up_sshd(folder: Path, more: str = "", env: str = "") -> Sshd:
    """Write keys and configuration of a server.

    The shell of a login finds an empty home: what the user's own does is none of ours.
    """
    if os.geteuid() == 0:
        _EMPTY.mkdir(mode=0o755, exist_ok=True)
    folder.mkdir()
    keys = keep_keys(folder / "keys", "test")
    (folder / "authorized").write_text(keys.client.public + "\n")
    (folder / "config").write_text(_CONFIG.format(folder=folder, more=more, env=env))
    return Sshd(folder, keys)


@asynccontextmanager
async def shell_with(tmp_path: Path, name: str, script: str) -> AsyncGenerator[Shell]:
    """Give a shell on a guest in which a program is another one."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / name).write_text(f"#!/bin/sh\n{script}\n")
    (programs / name).chmod(0o755)
    server = set_up_sshd(tmp_path / "sshd", env=f"PATH={programs}:{os.environ['PATH']}")
    async with server.shell() as shell:
        yield shell
