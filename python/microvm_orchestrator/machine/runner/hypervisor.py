"""All machines of this host that runner directories start.

A keeper of two kinds of machines: those whose runner becomes a QEMU and takes our arguments, and
the rest. What needs a saved machine is refused. Above stands who chooses between the ways to run
machines.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import anyio.to_thread

from microvm_orchestrator import errors
from microvm_orchestrator.machine.base import MachineSpec, Snapshot
from microvm_orchestrator.machine.keeper import Keeper
from microvm_orchestrator.machine.living import LivingMachine, identity
from microvm_orchestrator.machine.probe import Acceleration, choose
from microvm_orchestrator.machine.runner import qemu, start
from microvm_orchestrator.machine.runner.foreign import ForeignMachine
from microvm_orchestrator.machine.runner.qemu import RunnerQemu
from microvm_orchestrator.model.machine import MachineState
from microvm_orchestrator.runner import QEMU, read

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from microvm_orchestrator.machine.handover import Handover
    from microvm_orchestrator.machine.process import Resident
    from microvm_orchestrator.machine.qemu.host import Host
    from microvm_orchestrator.machine.record import Made, Record

_TAPS = Path("/sys/class/net")


class Runners(Keeper[LivingMachine]):
    """The machines of runner directories."""

    def __init__(
        self, host: Host, group: TaskGroup, acceleration: Callable[[], Awaitable[Acceleration]]
    ) -> None:
        super().__init__(host, group)
        self._acceleration = acceleration

    async def start(self, spec: MachineSpec) -> LivingMachine:
        """Run a runner and wait for its guest.

        Raises: AlreadyExists, MachineBootFailed; NotOffered when the runner wants, or the machine
            is wanted with, what we do not give; InvalidInput when the directory is not what it was.
        """
        runner = start.runner_of(spec)
        now = await anyio.to_thread.run_sync(read, runner.path)
        if now.digest != runner.digest:
            raise errors.InvalidInput(
                f"the runner directory {runner.path} is not what it was", hint="add it anew"
            )
        start.check(spec, _TAPS)
        accel = choose(spec.accel, await self._acceleration())

        def begin(given: Handover, record: Record) -> Resident:
            of_qemu = runner.hypervisor == QEMU
            added = qemu.words(spec, accel, record, given) if of_qemu else []
            return start.launch(self._host, record, spec, added, given.fds)

        async def prepare(machine: LivingMachine) -> None:
            await machine.enter(MachineState.BOOTING)
            if isinstance(machine, RunnerQemu):
                await machine.take_console()
            if machine.ssh is not None:
                # Who the guest is remains its own business.
                await machine.reach_by_ssh()
                return
            if isinstance(machine, ForeignMachine):
                await machine.reach_agent()
            else:
                await machine.reach(spec.boot_timeout_s)
            await machine.shell.fresh(identity(spec))

        return await self._make(spec, accel, begin, prepare)

    async def clone(self, snapshot: Snapshot, spec: MachineSpec) -> NoReturn:
        self._refuse(snapshot, spec)

    async def stand_by(self, snapshot: Snapshot, spec: MachineSpec) -> NoReturn:
        self._refuse(snapshot, spec)

    def _machine(self, made: Made, resident: Resident) -> LivingMachine:
        kind = RunnerQemu if start.runner_of(made.spec).hypervisor == QEMU else ForeignMachine
        return kind(self._host, made, resident)

    def _find(self, record: Record) -> Resident | None:
        return start.find(self._host, record)

    async def _take_over(self, machine: LivingMachine) -> None:
        if isinstance(machine, RunnerQemu):
            if await machine.name() != machine.machine_id:
                raise errors.MachineUnreachable("its monitor is that of another machine")
            await machine.go_on()
        else:
            await machine.enter(MachineState.RUNNING)
            machine.reach_later()

    async def _end(self, resident: Resident | None, record: Record) -> None:
        await super()._end(resident, record)
        await start.end_all(self._host, record)

    def _refuse(self, snapshot: Snapshot, spec: MachineSpec) -> NoReturn:
        raise errors.NotOffered(
            f"machine {spec.machine_id} cannot begin where {snapshot.snapshot_id} was saved: it is"
            " started by a runner directory, whose machines are not saved"
        )
