"""A guest of which nothing is heard is given up as lost, and its machine with it.

Whatever answers counts as a sign of life: the agent in the guest, which is asked now and then, or
the program itself by what it says. A machine that somebody paused is not silent, it waits. Above
are the steps of a run; below, the way into its guest.
"""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import anyio

from microvm_orchestrator import errors
from microvm_orchestrator.model.machine import MachineState

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from microvm_orchestrator.machine.base import Machine as RunningMachine

# So often a guest is asked within the time that it may be silent: one lost answer is no loss.
_ASKED = 4


class Silence:
    """How long nothing was heard of a guest."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._heard_at = anyio.current_time()

    def broken(self) -> None:
        """Note a sign of life."""
        self._heard_at = anyio.current_time()

    @property
    def left_s(self) -> float:
        return self._heard_at + self.limit_s - anyio.current_time()

    async def until_too_long(self, machine: RunningMachine) -> None:
        """Ask the guest again and again; return when it has not answered for too long."""
        every_s = self.limit_s / _ASKED
        while self.left_s > 0:
            asked_at = anyio.current_time()
            with anyio.move_on_after(min(every_s, self.left_s)):
                if machine.state is MachineState.PAUSED or await _answers(machine):
                    self.broken()
            await anyio.sleep(max(0.0, min(asked_at + every_s - anyio.current_time(), self.left_s)))


async def _answers(machine: RunningMachine) -> bool:
    with suppress(errors.OrchestratorError):
        await (await machine.reached()).ping()
        return True
    return False


@asynccontextmanager
async def unless_silent(
    machine: RunningMachine, limit_s: float | None
) -> AsyncGenerator[Silence | None]:
    """End the block when nothing was heard of a guest for so long; None is for ever.

    Raises: MachineLost, in place of what the block was doing.
    """
    if limit_s is None:
        yield None
        return
    silence = Silence(limit_s)
    lost = False
    raised: Exception | None = None

    async def watch() -> None:
        nonlocal lost
        await silence.until_too_long(machine)
        lost = True
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        try:
            yield silence
        except Exception as error:  # noqa: BLE001 - raised again below, as a group would wrap it
            raised = error
        group.cancel_scope.cancel()
    if raised is not None:
        raise raised
    if lost:
        raise errors.MachineLost(f"nothing was heard of its guest for {limit_s:g} s")
