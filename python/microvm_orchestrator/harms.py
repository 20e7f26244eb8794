"""What the machines of this host suffer on purpose: said to those that run, and read back there.

Nothing is kept here: what a machine is to suffer is told each time, also to one that begins to run.
Above stands the ledger of faults; below, the machines, of which each does one thing at a time.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection
from contextlib import asynccontextmanager

import anyio

from microvm_orchestrator import errors, log
from microvm_orchestrator.machine import base
from microvm_orchestrator.machine.harming import PAUSED
from microvm_orchestrator.machines import HELD, Machines
from microvm_orchestrator.model.fault import Harm
from microvm_orchestrator.model.machine import Machine, MachineState
from microvm_orchestrator.model.records import SYSTEM

# One that is saved or stopped takes longer; whoever wants to harm or heal it tries again.
_TURN_S = 5.0
_CLOCK_S = 10.0
_log = log.get(__name__)


class Harms:
    """The machines of one daemon, as far as something can befall them."""

    def __init__(self, machines: Machines) -> None:
        self._machines = machines

    async def found(self) -> Collection[str]:
        return [machine.machine_id for machine in await self._machines.visible(SYSTEM)]

    async def check(self, machine_id: str, harm: Harm) -> None:
        """Raises: NotFound, StateForbids, FaultNotOffered, InvalidInput."""
        machine = await self._machines.get(machine_id, SYSTEM)
        running = self._machines.live(machine)
        if machine.state is MachineState.PAUSED and machine.reason != HELD:
            raise errors.StateForbids(
                f"machine {machine_id} is paused", hint="machine_resume lets it go on"
            )
        await running.check_harm(harm)

    async def harm(self, machine_id: str, harm: Harm, touched: frozenset[str]) -> None:
        """Raises: Unavailable, and as `Machine.harm`."""
        async with self._turn(machine_id) as found:
            if found is not None:
                await self._harm(*found, harm, touched)

    async def begin(self, machine_id: str, running: base.Machine, harm: Harm) -> None:
        """Let a machine that begins to run suffer this; its turn is held by who starts it."""
        machine = await self._machines.get(machine_id, SYSTEM)
        await self._harm(machine, running, harm, harm.touched)

    async def harmed(self, machine_id: str, touched: frozenset[str]) -> Harm | None:
        """Raises: Unavailable, and as `Machine.harmed`."""
        async with self._turn(machine_id) as found:
            if found is None:
                return None
            _, running = found
            seen = await running.harmed(touched - {PAUSED})
            still = running.state is MachineState.PAUSED and PAUSED in touched
            return seen.model_copy(update={PAUSED: still})

    @asynccontextmanager
    async def _turn(self, machine_id: str) -> AsyncGenerator[tuple[Machine, base.Machine] | None]:
        """Do something to a machine, if it runs. Raises: Unavailable."""
        machine = await self._machines.get(machine_id, SYSTEM)
        if not self._machines.runs(machine):
            # One that is being started asks itself what it is to suffer.
            yield None
            return
        turn = self._machines.turn(machine_id)
        try:
            with anyio.fail_after(_TURN_S):
                await turn.acquire()
        except TimeoutError:
            raise errors.Unavailable(
                f"machine {machine_id} is being saved or ended", hint="try again in a moment"
            ) from None
        try:
            machine = await self._machines.get(machine_id, SYSTEM)
            yield (machine, self._machines.live(machine)) if self._machines.runs(machine) else None
        finally:
            turn.release()

    async def _harm(
        self, machine: Machine, running: base.Machine, harm: Harm, touched: frozenset[str]
    ) -> None:
        goes_on = PAUSED in touched and not harm.paused
        if goes_on and running.state is MachineState.PAUSED:
            # Nobody else pauses one that a fault has paused, whatever its record says by now.
            await running.resume()
            await self._machines.stand(machine.machine_id, MachineState.RUNNING, "")
            await _set_clock(running, harm)
        await running.harm(harm, touched - {PAUSED})
        if PAUSED in touched and harm.paused:
            if running.state is not MachineState.PAUSED:
                await running.pause()
            await self._machines.stand(machine.machine_id, MachineState.PAUSED, HELD)


async def _set_clock(running: base.Machine, harm: Harm) -> None:
    """Set the clock of a guest that has stood still: it stood still as well."""
    try:
        with anyio.fail_after(_CLOCK_S):
            await running.harm(harm, frozenset({"skew_s"}))
    except (errors.OrchestratorError, TimeoutError) as error:
        # It goes on, which is what was asked for; a guest may be as broken as it likes.
        _log.info("clock_not_set", machine=running.spec.machine_id, why=str(error))
