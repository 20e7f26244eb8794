"""Seeing one command through: begun over a connection into its guest, followed over any number.

A command that may have started is never sent again; after a break it is looked for by its id, and
given what it has not yet got of its input. Above is `Execs`; below, the machine and its shell.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import anyio

from microvm_orchestrator import errors
from microvm_orchestrator.machine.shell import Given
from microvm_orchestrator.model.machine import MachineState
from microvm_orchestrator.together import beside

if TYPE_CHECKING:
    from microvm_orchestrator.execs.job import Job
    from microvm_orchestrator.machine.base import Machine
    from microvm_orchestrator.machine.shell import Command, Exit, Guest, Process, Shell

# From asking for a command until a connection is there to send it over.
_REACH_S = 30.0
# Between two tries on a connection that broke; the machine sees to a new one meanwhile.
_AGAIN_S = 0.2
# A guest ends a command at its timeout by its own clock; this is for a host that is busy.
_LATE_S = 30.0
# A guest that stands still has a clock that does.
_TICK_S = 5.0
# How much may be kept anew before the total is looked at.
_HEARD_BYTES = 1 << 16


class Follower:
    """One command in one machine that runs."""

    def __init__(self, job: Job, machine: Machine, on_heard: Callable[[], None]) -> None:
        self.machine = machine
        self._job = job
        self._on_heard = on_heard
        self._unheard = 0
        self._exec_id = job.exec.exec_id

    async def run(self, command: Command) -> Exit:
        """Begin the command, and wait for its end.

        Raises: UnknownOutcome; any other error means that it never ran.
        """
        return await self._within(partial(self._run, command))

    async def resume(self) -> Exit:
        """Follow one that was begun before. Raises: UnknownOutcome, ExecNotBegun."""
        return await self._within(self._take_up)

    async def _within(self, work: Callable[[], Coroutine[None, None, Exit]]) -> Exit:
        """Raises: UnknownOutcome when a guest lets the command's timeout pass."""
        limit_s = self._job.exec.timeout_s + _LATE_S
        try:
            with anyio.CancelScope() as patience:
                async with beside(partial(self._count_down, patience, limit_s)):
                    return await work()
        finally:
            self._job.process = None
        raise errors.UnknownOutcome(
            f"the guest did not say within {limit_s:g} s what became of command {self._exec_id}"
        )

    async def _count_down(self, patience: anyio.CancelScope, left_s: float) -> None:
        while left_s > 0:
            tick_s = min(left_s, _TICK_S)
            await anyio.sleep(tick_s)
            if self.machine.state is MachineState.RUNNING:
                left_s -= tick_s
        patience.cancel()

    async def _run(self, command: Command) -> Exit:
        stdin = await self._job.wanted_input()
        shell = await self._reached()
        asked = shell.guest
        try:
            async with shell.stream(
                command,
                exec_id=self._exec_id,
                stdin=bool(stdin) or self._job.takes_input,
                keep=finds_again(asked),
            ) as process:
                return await self._follow(process, Given(0, over=not stdin))
        except errors.UnknownOutcome:
            if not finds_again(asked):
                raise
            if self._job.started.is_set():
                return await self._resume()
            return await self._found_again(asked.who)

    async def _reached(self) -> Shell:
        try:
            with anyio.fail_after(_REACH_S):
                return await self.machine.reached()
        except TimeoutError:
            raise errors.MachineUnreachable(
                f"the guest of machine {self.machine.spec.machine_id} did not answer within "
                f"{_REACH_S:g} s"
            ) from None

    async def _take_up(self) -> Exit:
        return await self._found_again(self._job.guest)

    async def _found_again(self, asked: tuple[str, str] | None) -> Exit:
        """Follow one of which nobody knows whether the guest began it."""
        try:
            return await self._resume()
        except errors.UnknownOutcome as lost:
            now = await self._guest()
            same = now is not None and now.who == asked
            if same and isinstance(lost.__cause__, errors.NotFound):
                raise errors.ExecNotBegun(
                    f"the connection broke before command {self._exec_id} was started"
                ) from lost
            raise

    async def _guest(self) -> Guest | None:
        try:
            return (await self.machine.reached()).guest
        except errors.OrchestratorError:
            return None

    async def _feed(self, process: Process, done: int) -> None:
        """Give it what it is to have from its start on, of which so much is done."""
        stdin = await self._job.wanted_input()
        with suppress(errors.OrchestratorError):  # whoever listens meets it too
            if rest := stdin[done:]:
                await process.send(rest)
            if not self._job.takes_input:
                await process.end_input()

    async def _resume(self) -> Exit:
        while True:
            try:
                shell = await self.machine.reached()
                async with shell.attach(
                    self._exec_id, offset=self._job.log.end, keep=True
                ) as process:
                    self._job.log.begin(process.offset)
                    return await self._follow(process, process.given)
            except (errors.UnknownOutcome, errors.MachineFailed):
                self._job.process = None
                await anyio.sleep(_AGAIN_S)
            except errors.OrchestratorError as error:
                raise errors.UnknownOutcome(
                    f"what became of command {self._exec_id} is not known: {error.message}",
                    hint="look whether it took effect before you run it again",
                ) from error

    async def _follow(self, process: Process, given: Given | None) -> Exit:
        """Listen, and give it what it has not got of its input where the guest can tell."""
        feed = [partial(self._feed, process, given.size)] if given and not given.over else []
        async with beside(*feed):
            return await self._listen(process)

    async def _listen(self, process: Process) -> Exit:
        self._job.process = process
        self._job.started.set()
        self._job.wake()
        async for output in process:
            await self._job.take(output)
            self._unheard += len(output.data)
            if self._unheard >= _HEARD_BYTES:
                self._unheard = 0
                self._on_heard()
        return await process.wait()


def finds_again(guest: Guest) -> bool:
    """Tell whether a command outlives its connection there."""
    return "attach" in guest.verbs
