"""One command that the daemon knows: its record, what it said, and whoever follows it.

A `Tap` follows without losing a byte and holds the command back when its reader is slow; whoever
only asks now and then gets what is kept. Above, `Execs` keeps them all.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import anyio

from microvm_orchestrator import errors
from microvm_orchestrator.execs.log import Log
from microvm_orchestrator.model.exec import KeptExec

if TYPE_CHECKING:
    from microvm_orchestrator.machine.shell import Output, Process
    from microvm_orchestrator.model.exec import Exec

# How far a tap may be behind before the command is held back.
_TAP_WINDOW = 1 << 18
_TAP_BYTES = 1 << 16
# A machine that was just adopted, or whose agent was cut off, is reached within that.
_REACHED_S = 15.0
# A command that reads its input takes it within that.
_INPUT_S = 15.0
_INPUT_BYTES = 1 << 16


class Job:
    """A command, from its beginning until it is forgotten."""

    def __init__(self, kept: KeptExec, version: int, stdin: bytes | None = None) -> None:
        self.exec: Exec = kept.exec
        self.digest = kept.digest
        self.version = version
        self.output_cap = kept.output_cap
        self.takes_input = kept.takes_input
        self.guest = kept.guest
        self.log = Log()
        # The guest said that it runs, or why it does not.
        self.started = anyio.Event()
        self.failure: errors.OrchestratorError | None = None
        self.process: Process | None = None
        # Nothing more will come, and how it ended is written down.
        self.ended = anyio.Event()
        self._taps: set[Tap] = set()
        self._changed = anyio.Event()
        self._input = anyio.Lock()
        # What it is given from its start on; a daemon that has just come up is told it by whoever
        # wants the same command again.
        self._stdin = stdin

    async def wanted_input(self) -> bytes:
        """Wait until it is known what it is to be given from its start on."""
        while self._stdin is None:
            await self.changed()
        return self._stdin

    def want_input(self, stdin: bytes) -> None:
        if not self.over:
            self._stdin = stdin
            self.wake()

    @property
    def kept(self) -> KeptExec:
        return KeptExec(
            exec=self.exec,
            digest=self.digest,
            output_cap=self.output_cap,
            takes_input=self.takes_input,
            guest=self.guest,
        )

    @property
    def over(self) -> bool:
        return self.ended.is_set()

    @property
    def tapped(self) -> bool:
        return bool(self._taps)

    def wake(self) -> None:
        """Let everybody look again."""
        self._changed.set()
        self._changed = anyio.Event()

    async def changed(self) -> None:
        await self._changed.wait()

    async def take(self, output: Output) -> None:
        """Keep a piece, and wait for those who want every byte."""
        self.log.add(output)
        self.wake()
        while any(self._too_far_behind(tap) for tap in self._taps):
            await self.changed()

    def _too_far_behind(self, tap: Tap) -> bool:
        behind = self.log.end - tap.at
        return behind > _TAP_WINDOW or (behind > 0 and self.log.crowded)

    def end(self) -> None:
        self.process = None
        # What has ended is remembered for long, and may have been given much.
        self._stdin = None
        self.ended.set()
        self.started.set()
        self.wake()

    @contextmanager
    def tap(self, offset: int) -> Generator[Tap]:
        """Follow from an offset on; from now on nothing is lost."""
        tap = Tap(self, offset)
        self._taps.add(tap)
        try:
            yield tap
        finally:
            self._taps.discard(tap)
            self.wake()

    # What callers do with one that runs.

    async def type(self, data: bytes, *, end: bool) -> int:
        """Give it input, and return how much of it was taken.

        Raises: StateForbids; UnknownOutcome when the connection breaks meanwhile.
        """
        process = await self.running()
        if not self.takes_input:
            raise errors.StateForbids(f"command {self.exec.exec_id} takes no more input")
        taken = 0
        async with self._input:
            for begin in range(0, len(data), _INPUT_BYTES):
                piece = data[begin : begin + _INPUT_BYTES]
                with anyio.move_on_after(_INPUT_S) as patience:
                    await process.send(piece)
                if patience.cancelled_caught:
                    return taken
                taken += len(piece)
            if end:
                self.takes_input = False
                await process.end_input()
        return taken

    async def type_all(self, data: bytes) -> None:
        """Give it input, as slowly as it reads. Raises: StateForbids, Unavailable."""
        async with self._input:
            if self.takes_input:
                await (await self.running()).send(data)

    async def running(self) -> Process:
        """Wait a moment for the guest, where it is not reached now.

        Raises: StateForbids, MachineUnreachable.
        """
        with anyio.move_on_after(_REACHED_S):
            while self.process is None and not self.over:
                await self.changed()
        name = self.exec.exec_id
        if self.exec.over:
            raise errors.StateForbids(f"command {name} does not run any more: {self.exec.state}")
        if self.over:
            raise errors.StateForbids(f"command {name} was never begun")
        if self.process is None:
            raise errors.MachineUnreachable(
                f"the guest of machine {self.exec.machine_id}, where {name} runs, is not reached "
                "now"
            )
        return self.process


class Tap:
    """Somebody who wants every byte."""

    def __init__(self, job: Job, offset: int) -> None:
        self._job = job
        self.at = offset

    async def pieces(self) -> AsyncGenerator[Output]:
        """Give what is said until the end; a piece counts as taken when the next is asked for."""
        while True:
            pieces, end = self._job.log.since(self.at, _TAP_BYTES)
            for piece in pieces:
                yield piece
            if self.at != end:
                self.at = end
                self._job.wake()
            elif self._job.over:
                return
            else:
                await self._job.changed()
