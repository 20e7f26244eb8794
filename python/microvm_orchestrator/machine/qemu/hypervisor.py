"""All QEMU machines of this host that we put together: boots and clones them.

A keeper of such machines, and the owner of what is saved of them. Above stand the machines and the
service.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from microvm_orchestrator import errors, log
from microvm_orchestrator.machine import cgroup, process
from microvm_orchestrator.machine.base import (
    Accel,
    MachineSpec,
    OnChange,
    OnGuestEvent,
    Qcow2,
    Snapshot,
    untold,
)
from microvm_orchestrator.machine.channel.connection import GREETING_S
from microvm_orchestrator.machine.handover import Handover
from microvm_orchestrator.machine.keeper import Cloner
from microvm_orchestrator.machine.links import netdev
from microvm_orchestrator.machine.living import identity
from microvm_orchestrator.machine.probe import Acceleration, choose, probe
from microvm_orchestrator.machine.process import Resident
from microvm_orchestrator.machine.qemu import argv, disks, migration, ram, seeded
from microvm_orchestrator.machine.qemu.host import (
    QEMU,
    Host,
    cold,
    engine_digest,
    launch,
    leave_group,
)
from microvm_orchestrator.machine.qemu.machine import QemuMachine
from microvm_orchestrator.machine.qemu.qmp import Qmp
from microvm_orchestrator.machine.qemu.snapshots import SavedMachine, check_fits
from microvm_orchestrator.machine.record import Made, Record
from microvm_orchestrator.machine.seeded import RUN_TIMEOUT_S, Program, Ran
from microvm_orchestrator.machine.shell import Command
from microvm_orchestrator.model.machine import MachineState

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

# Run in a clone before it stands still. What its first command makes QEMU translate and the guest
# copy is most of what a claim would wait for: 120 of 160 ms.
_FIRST = Command(["true"], timeout_s=GREETING_S)


class Qemu(Cloner[QemuMachine]):
    """The machines that QEMU runs here."""

    def __init__(self, host: Host, group: TaskGroup) -> None:
        super().__init__(host, group)
        # Two measurements at a time would disturb each other.
        self._measuring = anyio.Lock()

    async def acceleration(self) -> Acceleration:
        """Tell how guest code can run here; takes a second the first time after the host booted."""
        async with self._measuring:
            return await probe(self._host.state_dir)

    async def start(self, spec: MachineSpec) -> QemuMachine:
        """Boot a machine. Raises: AlreadyExists, MachineBootFailed."""
        return await self._boot(spec, disks.begin_anew)

    async def _boot(
        self,
        spec: MachineSpec,
        lay: Callable[[MachineSpec, Path], None],
        *,
        unclaimed: bool = False,
    ) -> QemuMachine:
        found = await self.acceleration()
        accel = choose(spec.accel, found)
        # With KVM a machine is sent while it runs, and pages of a file are small ones.
        in_file = accel is Accel.TCG
        with ram.opened(spec.memory_mib) as file:

            def begin(given: Handover, record: Record) -> Resident:
                lay(spec, record.folder)
                how = cold(spec, accel, found.tsc_khz, given)
                memory = argv.Memory(given.again(os.dup(file)) if in_file else None, shared=True)
                return self._launch(record, spec, accel, how, memory, given)

            async def prepare(machine: QemuMachine) -> None:
                machine.memory = os.dup(file) if in_file else None
                await machine.enter(MachineState.BOOTING)
                shell = await machine.reach(spec.boot_timeout_s)
                await shell.fresh(identity(spec))

            return await self._make(spec, accel, begin, prepare, unclaimed=unclaimed)

    async def run_seeded(
        self, spec: MachineSpec, program: Program, timeout_s: float = RUN_TIMEOUT_S
    ) -> Ran:
        """Run a program to its end. Raises: InvalidInput, AlreadyExists, MachineFailed."""
        return await seeded.run(self._host, spec, program, timeout_s)

    async def _make_ready(self, machine: QemuMachine) -> None:
        with suppress(errors.NotFound):
            await machine.shell.exec(_FIRST)

    async def _clone(
        self, snapshot: Snapshot, spec: MachineSpec, *, unclaimed: bool
    ) -> QemuMachine:
        saved = self._host.saved(snapshot.snapshot_id)
        manifest = await anyio.to_thread.run_sync(saved.check, self._host.engine)
        check_fits(manifest, spec)
        if not manifest.origin.memory:
            lay = partial(disks.begin_from, saved.folder)
            return await self._boot(spec, lay, unclaimed=unclaimed)
        inherited: list[int] = []

        def begin(given: Handover, record: Record) -> Resident:
            disks.begin_from(saved.folder, spec, record.folder)
            inherited.append(given.inherit(os.open(saved.state, os.O_RDONLY | os.O_CLOEXEC)))
            memory = argv.Memory(given.open_again(saved.ram, os.O_RDWR), shared=False)
            return self._launch(record, spec, manifest.origin.accel, argv.Load(), memory, given)

        async def prepare(machine: QemuMachine) -> None:
            await machine.enter(MachineState.BOOTING)
            await _unplug(machine.qmp, spec)
            async with migration.loading(machine.qmp, inherited[0], without_shared=True):
                pass
            await machine.qmp.execute("cont")
            shell = await machine.reach(GREETING_S)
            await shell.fresh(identity(spec))

        return await self._make(spec, manifest.origin.accel, begin, prepare, unclaimed=unclaimed)

    async def find_snapshot(self, snapshot_id: str) -> Snapshot | None:
        return self._host.saved(snapshot_id).find()

    async def saved(self) -> list[str]:
        folder = self._host.snapshots
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    async def check(self, snapshot_id: str) -> None:
        """Look whether nobody has touched it. Raises: NotFound, SnapshotDamaged."""
        saved = self._host.saved(snapshot_id)
        await anyio.to_thread.run_sync(saved.check, self._host.engine)

    async def verify(self, snapshot_id: str) -> None:
        """Read all of a snapshot. Raises: NotFound, SnapshotDamaged."""
        saved = self._host.saved(snapshot_id)
        manifest = saved.read()
        if manifest is None:
            raise errors.NotFound(f"there is no snapshot {snapshot_id}")
        await anyio.to_thread.run_sync(saved.verify, manifest)

    async def forget(self, snapshot_id: str) -> None:
        await anyio.to_thread.run_sync(self._host.saved(snapshot_id).remove)

    async def sweep(self) -> None:
        """Take away what an earlier daemon left that is nobody's.

        Snapshots it did not complete, who was writing them, and machines that nobody has claimed.
        """
        for machine_id, made in self._unclaimed():
            # What libvirt runs is libvirt's to end.
            if made is None or not isinstance(made.spec.boot, Qcow2):
                await self.remove(machine_id)
        folder = self._host.snapshots
        for path in folder.iterdir() if folder.is_dir() else ():
            saved = SavedMachine(path)
            if (path / "manifest.json").exists():
                continue
            record = Record(saved.scribe)
            await self._end(self._find(record, saved.snapshot_id), record)
            leave_group(self._host, saved.snapshot_id)
            saved.discard()
            log.get(__name__).info("snapshot_incomplete", snapshot=path.name)

    def _launch(
        self,
        record: Record,
        spec: MachineSpec,
        accel: Accel,
        how: argv.Start | argv.Load,
        memory: argv.Memory,
        given: Handover,
    ) -> Resident:
        links = [netdev(link, record.link(number), given) for number, link in enumerate(spec.links)]
        attached = disks.attach(spec, record.folder, given)
        return launch(self._host, record, spec, accel, how, memory, attached, links, given)

    def _machine(self, made: Made, resident: Resident) -> QemuMachine:
        return QemuMachine(self._host, made, resident)

    def _find(self, record: Record, name: str | None = None) -> Resident | None:
        identity_ = record.read_process()
        if identity_ is None:
            words = ("-name", f"guest={name or record.machine_id}")
            identity_ = process.find_by_words(words, self._host.users)
        return None if identity_ is None else process.find(identity_)

    async def _take_over(self, machine: QemuMachine) -> None:
        if await machine.name() != machine.machine_id:
            raise errors.MachineUnreachable("its monitor is that of another machine")
        await machine.go_on()


async def _unplug(qmp: Qmp, spec: MachineSpec) -> None:
    """Let frames for a switch that is not there yet be dropped.

    QEMU takes a socket for connected until its main loop is idle for the first time. That may be
    after the guest goes on, which sends at once; the frame then has no channel to go to, and QEMU
    crashes. The card's own state comes with what is loaded.
    """
    for number, link in enumerate(spec.links):
        if link.tap is None:
            await qmp.execute("set_link", {"name": f"net{number}", "up": False})


@asynccontextmanager
async def open_qemu(
    state_dir: Path,
    *,
    on_change: OnChange = untold,
    on_guest_event: OnGuestEvent = untold,
    binary: str = QEMU,
    user: tuple[int, int] | None = None,
) -> AsyncGenerator[Qemu]:
    """Hold this host's QEMU machines; they run on when the block is left.

    Where there is no such QEMU, starting a machine is what fails.
    """
    host = Host(
        state_dir=state_dir,
        on_change=on_change,
        on_guest_event=on_guest_event,
        engine=await anyio.to_thread.run_sync(engine_digest, binary),
        binary=binary,
        user=user,
        groups=cgroup.open_tree(),
    )
    async with anyio.create_task_group() as group:
        qemu = Qemu(host, group)
        await qemu.sweep()
        group.start_soon(qemu.tend)
        yield qemu
        group.cancel_scope.cancel()
