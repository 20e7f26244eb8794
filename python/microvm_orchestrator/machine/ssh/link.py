"""A connection to the SSH server of a guest, and the tasks that live on it.

A link is alive until something breaks it; what did is kept, and everybody who waits is told. It is
never repaired: whoever owns the machine connects anew. Above is `connection`; below are the lines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, cast

import anyio
import asyncssh
from asyncssh.constants import (
    DISC_COMPRESSION_ERROR,
    DISC_KEY_EXCHANGE_FAILED,
    DISC_MAC_ERROR,
    DISC_PROTOCOL_ERROR,
    DISC_PROTOCOL_VERSION_NOT_SUPPORTED,
)

from microvm_orchestrator import errors
from microvm_orchestrator.machine.channel.stream import printable
from microvm_orchestrator.machine.ssh.line import WINDOW, Line

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio.abc import TaskGroup

    from microvm_orchestrator.machine.shell import Terminal
    from microvm_orchestrator.machine.ssh.carrier import Carrier
    from microvm_orchestrator.machine.ssh.jobs import Running

# From asking for a channel until the guest agrees. It may stand still while its host is busy.
OPEN_S = 30.0
# A server counts a session for a moment longer than it takes to hear that it is closed, so it may
# refuse the next one. Nothing was begun then.
_TRIES = 10
# How long a request waits for one of the others to end.
_ROOM_S = 60.0
_MAX_TEXT = 500

_T = TypeVar("_T")
# What comes out of asyncssh; the last ones where a guest says what makes it trip.
_TRIPPED = (asyncssh.Error, OSError, ValueError, AssertionError, AttributeError, LookupError)

# It tells of every channel, and of every command with all its words.
asyncssh.set_log_level("ERROR")


class Link:
    """One connection, and what became of it."""

    def __init__(self, carrier: Carrier, tasks: TaskGroup) -> None:
        self.carrier = carrier
        self.tasks = tasks
        self.gone = anyio.Event()
        # By id: the scripts that have not ended yet.
        self.jobs: dict[str, Running] = {}
        # Before a script without a terminal: what gives it a session where the server does not.
        self.prefix = b""
        self._sessions = 0
        self._places = anyio.Semaphore(0)
        self._own_place = anyio.Semaphore(1)
        self._conn: asyncssh.SSHClientConnection | None = None
        self._failure: errors.OrchestratorError | None = None

    def greeted(self, conn: asyncssh.SSHClientConnection, sessions: int) -> None:
        """Begin to use a connection; one of its sessions is kept for what ends the others."""
        self._conn = conn
        self._sessions = sessions
        self._places = anyio.Semaphore(sessions - 1)

    @property
    def alive(self) -> bool:
        return self._failure is None

    def check(self) -> asyncssh.SSHClientConnection:
        """Raise what broke the link, if it is broken."""
        if self._failure or not self._conn:
            failure = self._failure or errors.MachineUnreachable("there is no connection yet")
            raise type(failure)(failure.message, hint=failure.hint)
        return self._conn

    def fail(self, failure: errors.OrchestratorError) -> None:
        """Break the link and tell everybody; the first reason counts."""
        if not self._failure:
            self._failure = failure
            self.gone.set()
            if self._conn:
                self._conn.abort()

    async def settled(self) -> None:
        """Wait until the guest was told to end every command that was left."""
        for running in list(self.jobs.values()):
            await running.told.wait()

    # Channels.

    async def take_place(self, *, own: bool) -> anyio.Semaphore:
        """Wait until the guest takes one more session; the caller gives the place back.

        Raises: Unavailable.
        """
        places = self._own_place if own else self._places
        try:
            with anyio.fail_after(_ROOM_S):
                await places.acquire()
        except TimeoutError:
            raise errors.Unavailable(
                f"the guest takes {self._sessions} sessions; none has ended"
            ) from None
        return places

    async def start(self, line: Line, words: bytes, terminal: Terminal | None) -> None:
        """Open a session and let the login shell read these words. Call it from the link's tasks.

        Raises: what `opened` raises; Unavailable when the guest has no room for a session.
        """
        for again in range(_TRIES):
            try:
                await self._start(line, words, terminal)
            except errors.Unavailable:
                if line.agreed or not self.alive or again == _TRIES - 1:
                    raise
            else:
                return

    async def _start(self, line: Line, words: bytes, terminal: Terminal | None) -> None:
        size = (terminal.columns, terminal.rows) if terminal else None
        await self.opened(
            line,
            lambda conn: conn.create_session(  # pyright: ignore[reportUnknownMemberType, reportUnknownLambdaType]  # asyncssh leaves it untyped
                lambda: line,
                cast("str", words),  # bytes travel as they are, which its types do not tell
                encoding=None,
                env={},
                request_pty="force" if terminal else False,
                term_type="xterm-256color" if terminal else None,
                term_size=size or (),
                window=WINDOW,
            ),
            refusal=errors.Unavailable,
        )

    async def opened(
        self,
        line: Line,
        ask: Callable[[asyncssh.SSHClientConnection], Awaitable[_T]],
        *,
        refusal: type[errors.OrchestratorError] = errors.GuestRefused,
    ) -> _T:
        """Wait until the guest has agreed to a channel. Call it from the link's tasks.

        asyncssh forgets a channel whose opening is cancelled, and the guest does not: so nobody
        else's scope may cancel this. Raises: what broke the link; `refusal` when the guest does not
        agree, GuestRefused for what it does not do afterwards.
        """
        conn = self.check()
        try:
            with anyio.fail_after(OPEN_S):
                return await ask(conn)
        except TimeoutError:
            self.fail(errors.MachineUnreachable(f"the guest did not answer within {OPEN_S:g} s"))
            self.check()
            raise
        except asyncssh.ChannelOpenError as error:
            self.check()
            if conn.is_closed():
                raise unreachable() from error
            if line.over:
                # Who does what is asked says so before he closes. Dropbear closes a channel that it
                # has just opened when others end at that moment.
                line.agreed = False
            kind = errors.GuestRefused if line.agreed else refusal
            raise kind(f"the guest refused: {said(error)}") from error
        except _TRIPPED as error:
            self.fail(meaning(error))
            self.check()
            raise


def meaning(error: Exception | None) -> errors.OrchestratorError:
    """Say what an error of asyncssh's means for a machine."""
    if isinstance(error, asyncssh.PermissionDenied):
        return errors.GuestRefused(f"the guest does not let us in: {said(error)}")
    if isinstance(error, TimeoutError):
        return errors.MachineUnreachable("the SSH server of the guest does not say a word")
    if error is None or isinstance(error, asyncssh.ConnectionLost | OSError):
        return unreachable()
    if isinstance(error, asyncssh.DisconnectError) and error.code not in _BROKEN:
        return errors.MachineUnreachable(f"the guest has hung up: {said(error)}")
    return errors.ProtocolBroken(f"the guest broke the protocol of SSH: {said(error)}")


_BROKEN = (
    DISC_PROTOCOL_ERROR,
    DISC_KEY_EXCHANGE_FAILED,
    DISC_MAC_ERROR,
    DISC_COMPRESSION_ERROR,
    DISC_PROTOCOL_VERSION_NOT_SUPPORTED,
)


def unreachable() -> errors.MachineUnreachable:
    return errors.MachineUnreachable("the connection to the guest has ended")


def said(error: Exception) -> str:
    """Return what an error says, which may be what the guest said, as one line."""
    text = error.reason if isinstance(error, asyncssh.Error) else str(error)
    return printable(text.encode(errors="replace")[:_MAX_TEXT])
