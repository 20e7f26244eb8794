"""The one way to run machines that those above see: which kind a machine is decides who runs it.

A machine starts from parts, which become a QEMU of ours, from a runner directory, or from a disk of
its own, which libvirt boots. All kinds lie in one folder of the state directory; what is written
there of a machine tells its kind after a restart. Above stand the machines of the daemon; below, a
keeper for each kind.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from microvm_orchestrator.machine.base import (
    MachineSpec,
    OnChange,
    OnGuestEvent,
    Qcow2,
    Snapshot,
    untold,
)
from microvm_orchestrator.machine.libvirt.connection import open_connection
from microvm_orchestrator.machine.libvirt.hypervisor import Domains
from microvm_orchestrator.machine.qemu.host import QEMU
from microvm_orchestrator.machine.qemu.hypervisor import Qemu, open_qemu
from microvm_orchestrator.machine.runner.hypervisor import Runners
from microvm_orchestrator.machine.seeded import RUN_TIMEOUT_S, Program, Ran
from microvm_orchestrator.runner import Runner

if TYPE_CHECKING:
    from microvm_orchestrator.machine.living import LivingMachine
    from microvm_orchestrator.machine.probe import Acceleration

# The libvirt of the whole host, as against that of one user.
LIBVIRT = "qemu:///system"


class AnyKind:
    """All machines of this host."""

    def __init__(self, qemu: Qemu, runners: Runners, domains: Domains) -> None:
        self._qemu = qemu
        self._runners = runners
        self._domains = domains

    async def acceleration(self) -> Acceleration:
        return await self._qemu.acceleration()

    async def start(self, spec: MachineSpec) -> LivingMachine:
        return await self._for(spec).start(spec)

    async def run_seeded(
        self, spec: MachineSpec, program: Program, timeout_s: float = RUN_TIMEOUT_S
    ) -> Ran:
        return await self._qemu.run_seeded(spec, program, timeout_s)

    async def clone(self, snapshot: Snapshot, spec: MachineSpec) -> LivingMachine:
        return await self._for(spec).clone(snapshot, spec)

    async def stand_by(self, snapshot: Snapshot, spec: MachineSpec) -> LivingMachine:
        return await self._for(spec).stand_by(snapshot, spec)

    async def find_snapshot(self, snapshot_id: str) -> Snapshot | None:
        return await self._qemu.find_snapshot(snapshot_id)

    async def saved(self) -> list[str]:
        return await self._qemu.saved()

    async def check(self, snapshot_id: str) -> None:
        await self._qemu.check(snapshot_id)
        saved = await self._qemu.find_snapshot(snapshot_id)
        if saved is not None and isinstance(saved.spec.boot, Qcow2):
            await self._domains.check_there()

    async def verify(self, snapshot_id: str) -> None:
        await self._qemu.verify(snapshot_id)

    async def forget(self, snapshot_id: str) -> None:
        await self._qemu.forget(snapshot_id)

    async def adopt(self, machine_id: str) -> LivingMachine:
        return await self._of(machine_id).adopt(machine_id)

    async def remove(self, machine_id: str) -> None:
        await self._of(machine_id).remove(machine_id)

    def live(self, machine_id: str) -> LivingMachine:
        """Return a machine that is looked after. Raises: NotFound."""
        return self._of(machine_id).live(machine_id)

    def console(self, machine_id: str) -> Path:
        return self._qemu.console(machine_id)

    def found(self) -> list[str]:
        return self._qemu.found()

    def _for(self, spec: MachineSpec) -> Qemu | Runners | Domains:
        if isinstance(spec.boot, Qcow2):
            return self._domains
        return self._runners if isinstance(spec.boot, Runner) else self._qemu

    def _of(self, machine_id: str) -> Qemu | Runners | Domains:
        made = self._qemu.host.record(machine_id).read()
        return self._qemu if made is None else self._for(made.spec)


@asynccontextmanager
async def open_hypervisor(
    state_dir: Path,
    *,
    on_change: OnChange = untold,
    on_guest_event: OnGuestEvent = untold,
    binary: str = QEMU,
    user: tuple[int, int] | None = None,
    libvirt: str = LIBVIRT,
    libvirt_logs: Path | None = None,
) -> AsyncGenerator[AnyKind]:
    """Hold this host's machines of every kind; they run on when the block is left.

    `libvirt` says where machines of libvirt's are asked for, once there is one; `libvirt_logs`
    where their QEMUs' messages are, if not at the usual place.
    """
    async with (
        open_qemu(
            state_dir, on_change=on_change, on_guest_event=on_guest_event, binary=binary, user=user
        ) as qemu,
        open_connection(libvirt) as connection,
        anyio.create_task_group() as group,
    ):
        runners = Runners(qemu.host, group, qemu.acceleration)
        group.start_soon(runners.tend)
        domains = Domains(qemu.host, group, connection, qemu.acceleration, libvirt_logs)
        await domains.sweep()
        group.start_soon(domains.tend)
        yield AnyKind(qemu, runners, domains)
        group.cancel_scope.cancel()
