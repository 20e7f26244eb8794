"""Commands over SSH: each is a session of the guest's, and lives no longer than its connection.

A task of the link owns a command from asking for it until its channel is closed: it reads the line
that says that it runs, ends it when its time is over or nobody wants it any more, and gives its
place back. Whoever started it follows its output, and may be cancelled at any time.
"""

from __future__ import annotations

import secrets
from collections import deque
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, NoReturn

import anyio

from microvm_orchestrator import errors
from microvm_orchestrator.machine.channel.jobs import checked_id, collect
from microvm_orchestrator.machine.channel.requests import ANSWER_S
from microvm_orchestrator.machine.channel.stream import Over, printable
from microvm_orchestrator.machine.shell import Channel, Command, Exit, Finished, Job, Output
from microvm_orchestrator.machine.ssh import script as scripts
from microvm_orchestrator.machine.ssh.beginning import Beginning
from microvm_orchestrator.machine.ssh.line import Line
from microvm_orchestrator.machine.ssh.script import Script
from microvm_orchestrator.together import beside

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

    from microvm_orchestrator.machine.shell import Process, Terminal
    from microvm_orchestrator.machine.ssh.link import Link

# From asking until the program runs: its file may come from a slow disk.
_START_S = 60.0
# How long it may take after that until the guest says so: its host may be busy.
_LATE_S = 15.0
# The end of the output comes along with the exit, unless somebody else holds it open.
_SETTLE_S = 0.1
# For a guest to agree that a channel is closed.
_CLOSE_S = 5.0
_END_OF_TYPING = b"\x04"
_LOST = "the guest closed the command without saying how it ended"


class Running:
    """A script that was sent, from then until its channel is closed."""

    def __init__(
        self, link: Link, exec_id: str, script: Script, command: Command | None = None
    ) -> None:
        self.exec_id = exec_id
        self.line = Line(link.carrier)
        # What the script said when it went ahead.
        self.words: list[bytes] = []
        # The guest was told to end it, or it has ended.
        self.told = anyio.Event()
        # Its process, which leads a session of its own.
        self.session = 0
        self._link = link
        self._script = script
        self._command = command
        self._terminal = command.terminal if command else None
        self._begun = anyio.Event()
        self._unwanted = anyio.Event()
        self._failure: errors.OrchestratorError | None = None
        self._beginning = Beginning(script.nonce)
        self._aside: deque[tuple[Channel, bytes]] = deque()
        self._next = 0
        self._drained = False
        self.timed_out = False

    # What its owner, a task of the link, does.

    async def live(self, *, own: bool) -> None:
        """Start it and stay until it has ended."""
        try:
            words = self._script.words(b"" if self._terminal else self._link.prefix)
            place = await self._link.take_place(own=own)
            try:
                await self._live(words, own=own)
            finally:
                place.release()
        except errors.OrchestratorError as failure:
            self._fail(failure)
        finally:
            self._begun.set()
            self.told.set()
            if self._link.jobs.get(self.exec_id) is self:
                del self._link.jobs[self.exec_id]

    async def _live(self, words: bytes, *, own: bool) -> None:
        if self._unwanted.is_set():
            return
        try:
            with self._may_have_happened():
                await self._link.start(self.line, words, self._terminal)
                await self._hear_begin(ANSWER_S if own else _START_S)
            self._begun.set()
            if self._unwanted.is_set():
                self.line.ignore()
            if own:  # what ends others is ended by nobody, and it is short
                with anyio.move_on_after(_LATE_S):
                    await self._exited(or_unwanted=False)
            else:
                await self._end(self._command.timeout_s if self._command else None)
                await self._settle()
        finally:
            self.line.close()
        with anyio.move_on_after(_CLOSE_S):
            while not self.line.over:
                await self.line.changed.wait()

    async def _hear_begin(self, within_s: float) -> None:
        """Wait until it runs. Raises: why it does not."""
        try:
            with anyio.fail_after(within_s):
                while not self._beginning.verdict:
                    await self._hear_noise()
        except TimeoutError:
            raise errors.MachineUnreachable(
                f"the guest did not say within {within_s:g} s that it started the command"
            ) from None
        goes_ahead, said = self._beginning.verdict
        if not goes_ahead:
            known = self._script.refusals.get(said.decode("ascii", "replace"))
            raise known or errors.GuestRefused(f"the guest refused: {printable(said)}")
        session, _, words = said.partition(b" ")
        if not session.isdigit() or not 1 < int(session[:12]) < 2**31:
            raise errors.ProtocolBroken("the guest said that no process runs the command")
        self.session, self.words = int(session), words.split()

    async def _hear_noise(self) -> None:
        """Put aside what the command said before all that comes before it was heard."""
        piece = self.line.take()
        if piece is None:
            if self.line.ended:
                self._check_begin()
            await self.line.changed.wait()
        elif data := self._beginning.sift(*piece):
            self._aside.append((piece[0], data))

    def _check_begin(self) -> None:
        """Raise why the login shell ended, if it did, before it came to the command."""
        self._link.check()
        if self.line.exit:
            raise errors.GuestRefused(
                "the login shell of the guest did not come to the command:"
                f" {self._beginning.complaint()}",
                hint="it must be a POSIX shell",
            )
        if self.line.over:
            raise errors.MachineUnreachable(_LOST)

    async def _end(self, timeout_s: float | None) -> None:
        """Wait for its end, and bring it about when it is due."""
        with anyio.move_on_after(timeout_s) as in_time:
            await self._exited(or_unwanted=True)
        if self.line.exit or self.line.over:
            return
        self.timed_out = in_time.cancelled_caught
        self._link.tasks.start_soon(self._tell_to_end)
        with anyio.move_on_after(scripts.GRACE_S + _LATE_S):
            await self._exited(or_unwanted=False)
        if not self.line.exit and not self.line.over:
            self._fail(errors.UnknownOutcome(f"the command {self.exec_id} did not end by force"))

    async def _tell_to_end(self) -> None:
        await ask_quietly(self._link, scripts.ending(self.session))
        self.told.set()

    async def _exited(self, *, or_unwanted: bool) -> None:
        while not (self.line.exit or self.line.over or (or_unwanted and self._unwanted.is_set())):
            await self.line.changed.wait()

    async def _settle(self) -> None:
        """Wait until all that it said is here and was taken, or nobody wants it."""
        with anyio.move_on_after(_SETTLE_S):
            while not self.line.ended:
                await self.line.changed.wait()
        try:
            await self._drain()
        except errors.OrchestratorError as failure:
            raise errors.UnknownOutcome(
                f"the command {self.exec_id} has ended, but not all it said is here: {failure}"
            ) from failure
        self._drained = True
        self.line.wake()
        while not self.line.empty and not self._unwanted.is_set():
            await self.line.changed.wait()

    async def _drain(self) -> None:
        """Wait until all that it said is here, though others may hold its output open.

        A server reads the pipes of a command that has ended along with what we ask it, so when it
        has done twice what we asked and nothing came, there was nothing left.
        """
        quiet = 0
        while quiet < 2 and not self.line.ended and not self._unwanted.is_set():
            heard = self.line.heard
            if self.line.empty:
                await ask(self._link, Script(b"ok\n"))
                quiet = quiet + 1 if self.line.heard == heard else 0
            else:
                await self.line.changed.wait()

    # What whoever started it does.

    @property
    def offset(self) -> int:
        return 0

    async def begun(self) -> None:
        """Wait until it runs. Raises: why it does not."""
        await self._begun.wait()
        if self._failure:
            raise self._failure

    def leave(self) -> None:
        """Let it be ended, and do not wait."""
        self._unwanted.set()
        if self._begun.is_set():  # else its owner has to hear yet what to end
            self.line.ignore()
        self.line.wake()

    def __aiter__(self) -> Running:
        return self

    async def __anext__(self) -> Output:
        while True:
            if piece := self._take():
                output = Output(piece[0], piece[1], self._next)
                self._next += len(piece[1])
                return output
            if self._failure:
                raise self._failure
            if self.line.over and not self.line.exit:
                self._raise_lost()
            if self._drained or (self.line.ended and self.line.exit):
                raise StopAsyncIteration
            await self.line.changed.wait()

    def _take(self) -> tuple[Channel, bytes] | None:
        if self._aside:
            return self._aside.popleft()
        while piece := self.line.take():
            if data := self._beginning.sift(*piece):
                return piece[0], data
        return None

    @property
    def given(self) -> None:
        return None

    async def send(self, data: bytes) -> None:
        with suppress(Over):
            await self.line.send(data)

    async def end_input(self) -> None:
        if self._terminal:
            await self.send(_END_OF_TYPING)
        else:
            self.line.end()

    async def signal(self, number: int) -> None:
        if not self.line.exit:
            await ask(self._link, Script(scripts.signalling(self.session, number) + b"ok\n"))

    async def resize(self, terminal: Terminal) -> None:
        self.line.resize(terminal.rows, terminal.columns)

    async def wait(self) -> Exit:
        async for _ in self:
            pass
        ended = self.line.exit
        if not ended:
            self._raise_lost()
        return Exit(ended.code, ended.signal, self.timed_out)

    def job(self) -> Job | None:
        """Return what it is while it runs."""
        if not self._command or not self.session or self.line.exit or self.line.over:
            return None
        return Job(self.exec_id, running=True, offset=self.line.heard - self._beginning.skipped)

    def _raise_lost(self) -> NoReturn:
        with self._may_have_happened():
            self._link.check()
            raise errors.MachineUnreachable(_LOST)
        raise AssertionError

    def _fail(self, failure: errors.OrchestratorError) -> None:
        self._failure = self._failure or failure
        self.line.wake()

    @contextmanager
    def _may_have_happened(self) -> Generator[None]:
        try:
            yield
        except errors.MachineFailed as failed:
            if not self.line.agreed:
                raise  # it was never asked for
            raise errors.UnknownOutcome(
                f"what became of the command {self.exec_id} is not known: {failed}"
            ) from failed


@asynccontextmanager
async def started(
    link: Link,
    script: Script,
    *,
    command: Command | None = None,
    exec_id: str | None = None,
    own: bool = False,
) -> AsyncGenerator[Running]:
    """Send a script and follow what it becomes until the block is left."""
    link.check()
    exec_id = checked_id(exec_id or secrets.token_hex(8))
    if exec_id in link.jobs:
        raise errors.AlreadyExists(f"there is a command {exec_id} already")
    running = Running(link, exec_id, script, command)
    if not own:
        link.jobs[exec_id] = running
    link.tasks.start_soon(lambda: running.live(own=own))
    try:
        await running.begun()
        yield running
    finally:
        running.leave()


@asynccontextmanager
async def stream(
    link: Link, command: Command, exec_id: str | None, *, stdin: bool
) -> AsyncGenerator[Process]:
    """Start a command and follow it until the block is left."""
    script = scripts.starting(command)
    async with started(link, script, command=command, exec_id=exec_id) as running:
        if not stdin and not command.terminal:
            running.line.end()
        yield running


async def run(
    link: Link, command: Command, stdin: bytes, exec_id: str | None, output_cap: int
) -> Finished:
    """Run a command to its end. Cancelled, it is ended."""
    async with stream(link, command, exec_id, stdin=bool(stdin)) as process:
        return await fed(process, stdin, output_cap)


async def ask(link: Link, script: Script, output_cap: int = 0) -> Finished:
    """Run a script of ours to its end, in the place that is kept for them."""
    async with started(link, script, own=True) as running:
        running.line.end()
        return await collect(running, output_cap)


async def ask_quietly(link: Link, script: Script) -> None:
    """Run a script of ours when it can be run."""
    with suppress(errors.OrchestratorError):
        await ask(link, script)


async def fed(process: Process, stdin: bytes, output_cap: int) -> Finished:
    """Put in what there is, and keep what comes out until the end."""

    async def feed() -> None:
        await process.send(stdin)
        await process.end_input()

    async with beside(*([feed] if stdin else [])):
        return await collect(process, output_cap)
