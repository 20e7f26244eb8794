"""The shell of a machine that runs an SSH server: a link that was greeted, and its verbs.

`open_ssh` lives as long as the block. Nothing is said before the guest has shown the host key that
is pinned, or any where the first one counts; and nothing of the user who runs the daemon is asked:
no files of his, no agent, no environment. A break does not end the block: it raises in whoever uses
the shell then, and the owner of the machine connects anew.
"""

from __future__ import annotations

import math
import time
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import asyncssh

from microvm_orchestrator import errors
from microvm_orchestrator.machine.channel.files import PutRequest
from microvm_orchestrator.machine.shell import (
    OUTPUT_CAP,
    SHUTDOWN_GRACE_S,
    Command,
    Fetched,
    File,
    Finished,
    Guest,
    GuestEvent,
    GuestUsage,
    Identity,
    Job,
    Process,
    Shell,
    Tcp,
    TreeLimits,
    Unix,
)
from microvm_orchestrator.machine.ssh import figures, files, jobs, trees, tunnels
from microvm_orchestrator.machine.ssh.carrier import Carrier
from microvm_orchestrator.machine.ssh.keys import (
    KeyPair,
    fingerprint,
    read_private,
    read_public,
    written,
)
from microvm_orchestrator.machine.ssh.link import Link, meaning, said
from microvm_orchestrator.machine.ssh.script import Script
from microvm_orchestrator.together import beside

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterable,
        AsyncIterator,
        Awaitable,
        Callable,
        Generator,
    )
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from anyio.abc import ByteStream

# An exchange of keys takes a second where a processor is emulated; a guest that boots takes longer.
GREETING_S = 30.0
# OpenSSH's own default; what it serves on one connection at once.
SESSIONS = 10
# Dropbear 2022.83 loses channels, and now and then itself, when one begins as another one ends: so
# one command at a time, and what ends it.
_DROPBEAR_SESSIONS = 2
# A guest may stand still for some seconds while its host is busy or its memory is saved.
KEEPALIVE_S = 5.0
_KEEPALIVES = 3
# For commands that were left to be told so, and for the end of the connection.
_LAST_WORDS_S = 5.0
_HANG_UP_S = 1.0
# Of host keys; what signs with SHA-1 is not among them.
_KINDS = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "rsa-sha2-512",
    "rsa-sha2-256",
)


@dataclass(frozen=True, slots=True)
class Login:
    """Who comes, by which key, and whom he must meet."""

    user: str
    key: KeyPair
    # Lines of public keys: one of them must be the guest's.
    host_keys: tuple[str, ...]
    # Where there is none: told the first one that a guest proves to have, once it has let us in. It
    # may write files. Nobody is met for the first time where this is None.
    on_first_key: Callable[[str], None] | None = None


@asynccontextmanager
async def open_ssh(
    transport: ByteStream,
    login: Login,
    *,
    greeting_s: float = GREETING_S,
    sessions: int = SESSIONS,
    keepalive_s: float = KEEPALIVE_S,
    first_word_s: float = math.inf,
) -> AsyncGenerator[Shell]:
    """Log in at the other end of `transport`, which is closed in the end.

    `sessions` is how many the server serves at once; one of them is kept for ending the others. A
    guest that says nothing for four times `keepalive_s` is taken for dead, and one that does not
    begin within `first_word_s` for one that is busy with somebody who has left.
    Raises: HostKeyWrong; GuestRefused when it does not let us in; MachineUnreachable when it does
    not answer in time; ProtocolBroken.
    """
    carrier = Carrier(transport, first_word_s)
    async with beside(carrier.run), beside() as tasks:
        link = Link(carrier, tasks)
        visitor = _Visitor(link, login)
        try:
            with _in_time(greeting_s):
                conn = await _logged_in(carrier, visitor, login, keepalive_s)
                await _remember(conn, login)
                server = str(conn.get_extra_info("server_version", ""))
                link.greeted(conn, _DROPBEAR_SESSIONS if "dropbear" in server else sessions)
                guest = await figures.greet(link, server)
            yield _SshShell(link, guest)
        finally:
            with anyio.move_on_after(_LAST_WORDS_S if link.alive else 0, shield=True):
                await link.settled()
            link.fail(errors.MachineUnreachable("the connection to the guest was closed"))
            with anyio.move_on_after(_HANG_UP_S, shield=True):
                await visitor.gone()
            carrier.close()


class _Visitor(asyncssh.SSHClient):
    """What asyncssh tells of the connection."""

    def __init__(self, link: Link, login: Login) -> None:
        self.shown = ""
        self._link = link
        self._pinned = [read_public(line) for line in login.host_keys]
        self._first = not self._pinned and login.on_first_key is not None
        self._connected = False
        self._gone = anyio.Event()

    @property
    def kinds(self) -> list[str]:
        """Return the kinds of key that are pinned."""
        return [kind.decode() for key in self._pinned for kind in key.sig_algorithms]

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
        self._connected = True

    def validate_host_public_key(
        self,
        host: str,
        addr: str,
        port: int,
        key: asyncssh.SSHKey,
    ) -> bool:
        self.shown = key.get_fingerprint()
        return self._first or any(key.public_data == one.public_data for one in self._pinned)

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone.set()
        self._link.fail(meaning(exc))

    async def gone(self) -> None:
        """Wait until asyncssh has let go of the connection."""
        if self._connected:
            await self._gone.wait()


async def _logged_in(
    carrier: Carrier, visitor: _Visitor, login: Login, keepalive_s: float
) -> asyncssh.SSHClientConnection:
    key = read_private(login.key)
    try:
        return await asyncssh.connect(
            "guest",
            22,
            tunnel=carrier,
            config=None,
            client_factory=lambda: visitor,
            known_hosts=([], [], []),  # so the visitor is asked
            server_host_key_algs=_preferring(visitor.kinds),
            username=login.user,
            client_keys=[key],
            preferred_auth="publickey",
            agent_path=None,
            gss_host=None,
            x509_trusted_certs=None,
            x509_trusted_cert_paths=None,
            compression_algs=None,
            connect_timeout=None,
            login_timeout=0,
            keepalive_interval=keepalive_s,
            keepalive_count_max=_KEEPALIVES,
        )
    except asyncssh.HostKeyNotVerifiable as error:
        pinned = " or ".join(map(fingerprint, login.host_keys)) or "none"
        raise errors.HostKeyWrong(
            f"the guest has shown the host key {visitor.shown}; pinned is {pinned}",
            hint="somebody else answers, or the machine was given another key",
        ) from error
    except asyncssh.PermissionDenied as error:
        raise errors.GuestRefused(
            f"the guest does not let us in: {said(error)}, with the key {key.get_fingerprint()}",
            hint="the public half of our key must stand in its authorized_keys",
        ) from error
    except (asyncssh.Error, OSError, ValueError, AssertionError) as error:
        raise meaning(error) from error


async def _remember(conn: asyncssh.SSHClientConnection, login: Login) -> None:
    key = conn.get_server_host_key()
    if login.on_first_key is not None and not login.host_keys and key is not None:
        await anyio.to_thread.run_sync(login.on_first_key, written(key))


def _preferring(pinned: list[str]) -> list[str]:
    """Return the kinds of host key to ask for, so that a wrong one is shown too."""
    return sorted(_KINDS, key=lambda kind: kind not in pinned)


@contextmanager
def _in_time(within_s: float) -> Generator[None]:
    try:
        with anyio.fail_after(within_s):
            yield
    except TimeoutError:
        raise errors.MachineUnreachable(
            f"the SSH server of the guest did not let us in within {within_s:g} s"
        ) from None


class _SshShell:
    """`Shell` over a link."""

    def __init__(self, link: Link, guest: Guest) -> None:
        self._link = link
        self._guest = guest

    @property
    def guest(self) -> Guest:
        return self._guest

    async def exec(
        self,
        command: Command,
        *,
        stdin: bytes = b"",
        exec_id: str | None = None,
        output_cap: int = OUTPUT_CAP,
    ) -> Finished:
        return await jobs.run(self._link, command, stdin, exec_id, output_cap)

    def stream(
        self,
        command: Command,
        *,
        exec_id: str | None = None,
        stdin: bool = True,
        keep: bool = False,
    ) -> AbstractAsyncContextManager[Process]:
        if keep:
            raise not_offered("keep a command after its connection")
        return jobs.stream(self._link, command, exec_id, stdin=stdin)

    def attach(
        self,
        exec_id: str,
        *,
        offset: int = 0,
        keep: bool = True,
    ) -> AbstractAsyncContextManager[Process]:
        raise not_offered("find a command again once its connection has ended")

    async def jobs(self) -> list[Job]:
        self._link.check()
        return [job for running in self._link.jobs.values() if (job := running.job())]

    async def forget(self, exec_id: str) -> None:
        """Nothing is kept of what has ended."""
        jobs.checked_id(exec_id)
        self._link.check()

    async def put(
        self,
        path: str,
        content: bytes | AsyncIterable[bytes],
        *,
        size: int | None = None,
        mode: int = 0o644,
        user: str | None = None,
        parents: bool = False,
    ) -> None:
        request = PutRequest(path, mode, user, parents)
        await files.put(self._link, request, content, size)

    def get(self, path: str, *, max_size: int) -> AbstractAsyncContextManager[File]:
        return files.got(self._link, path, max_size)

    async def put_tree(self, source: Path, path: str, *, user: str | None = None) -> None:
        await trees.put(self._link, source, path, user)

    async def get_tree(self, path: str, into: Path, limits: TreeLimits | None = None) -> Fetched:
        return await trees.get(self._link, path, into, limits or TreeLimits())

    def forward(self, address: Tcp | Unix) -> AbstractAsyncContextManager[ByteStream]:
        return tunnels.forward(self._link, address)

    def reverse(
        self, address: Tcp | Unix, serve: Callable[[ByteStream], Awaitable[None]]
    ) -> AbstractAsyncContextManager[int]:
        return tunnels.reverse(self._link, address, serve)

    async def fresh(self, identity: Identity) -> None:
        raise not_offered("give a guest another identity, nor entropy that its kernel counts")

    async def ping(self) -> float:
        started = time.monotonic()
        await jobs.ask(self._link, Script(b"ok\n"))
        return time.monotonic() - started

    async def usage(self) -> GuestUsage:
        return await figures.usage(self._link)

    async def events(self) -> AsyncIterator[GuestEvent]:
        """A guest without our agent reports nothing."""
        await self._link.gone.wait()
        return
        yield

    async def shutdown(self, *, reboot: bool = False, grace_s: float = SHUTDOWN_GRACE_S) -> None:
        """Ask its init to go down, which has a grace of its own."""
        program = b"reboot" if reboot else b"poweroff"
        text = (
            b"command -v %b >/dev/null 2>&1 || no program\n"
            b"{ sleep 1; %b; } </dev/null >/dev/null 2>&1 &\n"
            b"ok\n" % (program, program)
        )
        name = program.decode()
        refusal = errors.NotOffered(f"the guest has no {name} for whom we log in as")
        try:
            await jobs.ask(self._link, Script(text, {"program": refusal}))
        except errors.MachineFailed as failed:
            raise errors.UnknownOutcome(f"the guest may be going down: {failed}") from failed


def not_offered(what: str) -> errors.NotOffered:
    return errors.NotOffered(
        f"SSH cannot {what}", hint="an image with our agent in it can: see Guest.verbs"
    )
