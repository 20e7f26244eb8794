"""The shell of a machine with our agent: a link that was greeted, and its verbs.

`open_shell` lives as long as the block. A break does not end the block: it raises in whoever uses
the shell then, and the owner of the machine connects anew.
"""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from itertools import islice
from typing import TYPE_CHECKING

import anyio

from microvm_orchestrator import errors
from microvm_orchestrator.machine import wire
from microvm_orchestrator.machine.channel import files, jobs, trees, tunnels
from microvm_orchestrator.machine.channel import identity as who
from microvm_orchestrator.machine.channel.link import Link
from microvm_orchestrator.machine.channel.requests import ask
from microvm_orchestrator.machine.channel.stream import printable
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
from microvm_orchestrator.together import beside

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterable,
        AsyncIterator,
        Awaitable,
        Callable,
        Iterator,
    )
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from anyio.abc import ByteStream

# An agent that runs answers at once, also under emulation; one that boots may be waited for longer.
GREETING_S = 10.0
# Of what a guest reports, which goes into the journal and may be anything.
_MAX_FIGURES = 8
_MAX_FIGURE_NAME = 32
# For a guest that does not read when the connection is closed.
_LAST_WORDS_S = 1.0


@asynccontextmanager
async def open_shell(
    transport: ByteStream, *, greeting_s: float = GREETING_S
) -> AsyncGenerator[Shell]:
    """Greet the agent at the other end of `transport`, which is closed in the end.

    Raises: MachineUnreachable when it does not answer in time, ProtocolBroken.
    """
    link = Link(transport)
    async with beside(link.run):
        try:
            yield _AgentShell(link, await _greeted(link, greeting_s))
        finally:
            # What was cancelled or forgotten last has to reach the agent.
            with anyio.move_on_after(_LAST_WORDS_S if link.greeted else 0, shield=True):
                await link.outbox.drained()
            link.fail(errors.MachineUnreachable("the connection to the guest was closed"))


class _AgentShell:
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
        return jobs.started(self._link, command, exec_id, stdin=stdin, keep=keep)

    def attach(
        self, exec_id: str, *, offset: int = 0, keep: bool = True
    ) -> AbstractAsyncContextManager[Process]:
        return jobs.attached(self._link, exec_id, offset, keep=keep)

    async def jobs(self) -> list[Job]:
        return await jobs.listed(self._link)

    async def forget(self, exec_id: str) -> None:
        self._link.check()
        self._link.forget(jobs.checked_id(exec_id))

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
        request = files.PutRequest(path, mode, user, parents)
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
        await who.renew(self._link, identity)

    async def ping(self) -> float:
        started = time.monotonic()
        await ask(self._link, {"verb": b"ping"})
        return time.monotonic() - started

    async def usage(self) -> GuestUsage:
        return await who.usage(self._link)

    async def events(self) -> AsyncIterator[GuestEvent]:
        while True:
            while self._link.events:
                yield _event(self._link.events.popleft())
            if not self._link.alive:
                return
            await self._link.happened.wait()

    async def shutdown(self, *, reboot: bool = False, grace_s: float = SHUTDOWN_GRACE_S) -> None:
        request = {"verb": b"shutdown", "reboot": int(reboot), "grace_ms": round(grace_s * 1000)}
        try:
            await ask(self._link, request)
        except errors.MachineFailed as failed:
            raise errors.UnknownOutcome(f"the guest may be going down: {failed}") from failed


async def _greeted(link: Link, within_s: float) -> Guest:
    """Wait for the agent to say who it is. Raises: MachineUnreachable, ProtocolBroken."""
    try:
        with anyio.fail_after(within_s):
            hello = await link.greeting()
    except TimeoutError:
        raise errors.MachineUnreachable(
            f"the agent in the guest did not answer within {within_s:g} s"
        ) from None
    try:
        return Guest(
            agent=printable(wire.blob(hello, "agent", 128)),
            boot_id=printable(wire.blob(hello, "boot_id", 64)),
            identity=printable(wire.blob(hello, "identity", 64)),
            hostname=printable(wire.blob(hello, "hostname", 64)),
            verbs=frozenset(printable(verb[:32]) for verb in wire.blobs(hello, "verbs", 64)),
        )
    except wire.Broken as error:
        link.fail(errors.ProtocolBroken(f"the guest sent a HELLO that says nothing: {error}"))
        link.check()
        raise


def _figures(fields: wire.Fields) -> Iterator[tuple[str, int]]:
    for name, value in fields.items():
        if isinstance(value, int) and name.isidentifier() and len(name) <= _MAX_FIGURE_NAME:
            yield name, value


def _event(fields: wire.Fields) -> GuestEvent:
    kind, text = fields.get("event"), fields.get("text")
    return GuestEvent(
        kind=printable(kind[:32]) if isinstance(kind, bytes) else "",
        text=printable(text) if isinstance(text, bytes) else "",
        figures=dict(islice(_figures(fields), _MAX_FIGURES)),
    )
