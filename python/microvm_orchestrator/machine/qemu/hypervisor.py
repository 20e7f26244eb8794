"""All QEMU machines of this host: boots, clones and adopts them, and cleans up behind them.

Owns the tasks that look after machines; closing it lets go of the machines and ends none. What is
on the disk is the only memory: a fresh daemon finds its machines by it. Above stand lifecycle,
reconcile and the service.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from microvm_orchestrator import errors, log
from microvm_orchestrator.machine import cgroup, console, process
from microvm_orchestrator.machine.base import (
    Accel,
    MachineSpec,
    OnChange,
    OnGuestEvent,
    Snapshot,
    untold,
)
from microvm_orchestrator.machine.channel.connection import GREETING_S
from microvm_orchestrator.machine.probe import Acceleration, choose, probe
from microvm_orchestrator.machine.process import Resident
from microvm_orchestrator.machine.qemu import argv, disks, migration
from microvm_orchestrator.machine.qemu.handover import Handover
from microvm_orchestrator.machine.qemu.host import (
    QEMU,
    Host,
    cold,
    engine_digest,
    launch,
    leave_group,
)
from microvm_orchestrator.machine.qemu.machine import Prepare, QemuMachine, identity
from microvm_orchestrator.machine.qemu.record import Made, Record
from microvm_orchestrator.machine.qemu.snapshots import Manifest, SavedMachine
from microvm_orchestrator.model.machine import MachineState
from microvm_orchestrator.model.names import NAME

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

# How often the consoles are looked at. A guest under emulation writes 1 MB between two looks.
_TEND_S = 1.0


class Qemu:
    """The machines that QEMU runs here."""

    def __init__(self, host: Host, group: TaskGroup) -> None:
        self._host = host
        self._group = group
        self._live: dict[str, QemuMachine] = {}
        # Two measurements at a time would disturb each other.
        self._measuring = anyio.Lock()

    async def acceleration(self) -> Acceleration:
        """Tell how guest code can run here; takes a second the first time after the host booted."""
        async with self._measuring:
            return await probe(self._host.state_dir)

    async def start(self, spec: MachineSpec) -> QemuMachine:
        """Boot a machine. Raises: AlreadyExists, MachineBootFailed."""
        found = await self.acceleration()
        accel = choose(spec.accel, found)

        def begin(given: Handover, record: Record) -> Resident:
            disks.begin_anew(spec, record.folder)
            how = cold(spec, accel, found.tsc_khz, given)
            return self._launch(record, spec, accel, how, argv.Memory(), given)

        async def prepare(machine: QemuMachine) -> None:
            await machine.enter(MachineState.BOOTING)
            shell = await machine.reach(spec.boot_timeout_s)
            await shell.fresh(identity(spec))

        return await self._make(spec, accel, begin, prepare)

    async def clone(self, snapshot: Snapshot, spec: MachineSpec) -> QemuMachine:
        """Start where a saved machine stood. Raises: as `start`, NotFound, SnapshotDamaged."""
        return await self._clone(snapshot, spec, unclaimed=False)

    async def stand_by(self, snapshot: Snapshot, spec: MachineSpec) -> QemuMachine:
        """Clone a machine that stands still until it is claimed. Raises: as `clone`."""
        machine = await self._clone(snapshot, spec, unclaimed=True)
        try:
            await machine.pause()
        except BaseException:
            await self.remove(spec.machine_id)
            raise
        return machine

    async def _clone(
        self, snapshot: Snapshot, spec: MachineSpec, *, unclaimed: bool
    ) -> QemuMachine:
        saved = self._host.saved(snapshot.snapshot_id)
        manifest = await anyio.to_thread.run_sync(saved.check, self._host.engine)
        _check_fits(manifest, spec)
        inherited: list[int] = []

        def begin(given: Handover, record: Record) -> Resident:
            disks.begin_from(spec, saved.folder, record.folder)
            inherited.append(given.inherit(os.open(saved.state, os.O_RDONLY | os.O_CLOEXEC)))
            memory = argv.Memory(given.open_again(saved.ram, os.O_RDWR), shared=False)
            return self._launch(record, spec, manifest.origin.accel, argv.Load(), memory, given)

        async def prepare(machine: QemuMachine) -> None:
            await machine.enter(MachineState.BOOTING)
            async with migration.loading(machine.qmp, inherited[0], without_shared=True):
                pass
            await machine.qmp.execute("cont")
            shell = await machine.reach(GREETING_S)
            await shell.fresh(identity(spec))

        return await self._make(spec, manifest.origin.accel, begin, prepare, unclaimed=unclaimed)

    async def adopt(self, machine_id: str) -> QemuMachine:
        """Take over a machine that an earlier daemon started. Raises: MachineLost."""
        record = self._host.record(machine_id)
        made = record.read()
        resident = self._find(record)
        if made is None or resident is None or not made.ready:
            why = _why_lost(record, made, resident)
            await self._end(resident, record)
            raise errors.MachineLost(f"machine {machine_id} was lost: {why}")
        machine = QemuMachine(self._host, made, resident)
        try:
            await self._group.start(machine.live, _take_over)
        except errors.MachineFailed as error:
            raise errors.MachineLost(f"machine {machine_id} was lost: {error.message}") from error
        self._live[machine_id] = machine
        return machine

    async def find_snapshot(self, snapshot_id: str) -> Snapshot | None:
        return self._host.saved(snapshot_id).find()

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

    async def remove(self, machine_id: str) -> None:
        record = self._host.record(machine_id)
        machine = self._live.pop(machine_id, None)
        if machine is not None:
            await machine.kill()
        else:
            await self._end(self._find(record), record)
        await anyio.to_thread.run_sync(record.remove)

    def live(self, machine_id: str) -> QemuMachine:
        """Return a machine that is looked after. Raises: NotFound."""
        machine = self._live.get(machine_id)
        if machine is None:
            raise errors.NotFound(f"machine {machine_id} does not run here")
        return machine

    def found(self) -> list[str]:
        folder = self._host.machines
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        return sorted(name for name in names if NAME.fullmatch(name))

    async def tend(self) -> None:
        """Keep what consoles take on the disk bounded, and no control group of what has ended."""
        while True:
            for machine_id, machine in list(self._live.items()):
                if machine.state.ended:
                    del self._live[machine_id]
                else:
                    machine.bound_console()
            if self._host.groups is not None:
                self._host.groups.sweep()
            await anyio.sleep(_TEND_S)

    async def sweep(self) -> None:
        """Take away what an earlier daemon left that is nobody's.

        Snapshots it did not complete, who was writing them, and machines that nobody has claimed.
        """
        for machine_id in self.found():
            if self._host.record(machine_id).unclaimed:
                await self.remove(machine_id)
        folder = self._host.snapshots
        for path in folder.iterdir() if folder.is_dir() else ():
            saved = SavedMachine(path)
            if (path / "manifest.json").exists():
                continue
            record = Record(saved.scribe)
            await self._end(self._find(record, saved.snapshot_id), record)
            leave_group(self._host, saved.snapshot_id)
            saved.remove()
            log.get(__name__).info("snapshot_incomplete", snapshot=path.name)

    async def _make(
        self,
        spec: MachineSpec,
        accel: Accel,
        begin: Callable[[Handover, Record], Resident],
        prepare: Prepare,
        *,
        unclaimed: bool = False,
    ) -> QemuMachine:
        """Start a process and see it through until its guest is ready."""
        record = self._host.record(spec.machine_id)
        self._check_free(record)
        record.create()
        try:
            record.unclaimed = unclaimed
            made = Made(spec, accel, console_from=console.size(record.console))
            record.write(made)
            with Handover() as given:
                resident = begin(given, record)
            machine = QemuMachine(self._host, made, resident)
            await self._group.start(machine.live, prepare)
        except BaseException:
            # Whoever is cancelled at the last moment leaves a machine that runs and is nobody's.
            with anyio.CancelScope(shield=True):
                await self._end(self._find(record), record)
            raise
        record.write(replace(made, ready=True))
        self._live[spec.machine_id] = machine
        return machine

    def _check_free(self, record: Record) -> None:
        """Raises: AlreadyExists when a machine of this name runs."""
        resident = self._find(record) if record.folder.exists() else None
        if resident is not None:
            resident.close()
            raise errors.AlreadyExists(f"machine {record.machine_id} runs already")

    def _launch(
        self,
        record: Record,
        spec: MachineSpec,
        accel: Accel,
        how: argv.Start | argv.Load,
        memory: argv.Memory,
        given: Handover,
    ) -> Resident:
        # QEMU listens, so that a switch which is started anew finds every machine.
        links = [
            f"stream,server=on,addr.type=fd,addr.str={given.listen(record.link(number))}"
            for number in range(len(spec.links))
        ]
        attached = disks.attach(spec, record.folder, given)
        return launch(self._host, record, spec, accel, how, memory, attached, links, given)

    def _find(self, record: Record, name: str | None = None) -> Resident | None:
        """Find the process of a machine, also when it was not written down any more."""
        identity_ = record.read_process()
        if identity_ is None:
            words = ("-name", f"guest={name or record.machine_id}")
            identity_ = process.find_by_words(words, self._host.users)
        return None if identity_ is None else process.find(identity_)

    async def _end(self, resident: Resident | None, record: Record) -> None:
        """End a process that nobody looks after, and take away what it needed."""
        if resident is not None:
            await resident.end()
            resident.close()
        leave_group(self._host, record.machine_id)
        record.clear()


async def _take_over(machine: QemuMachine) -> None:
    """Find out how an adopted machine stands, and go on from there."""
    if await machine.name() != machine.machine_id:
        raise errors.MachineUnreachable("its monitor is that of another machine")
    if machine.record.paused:
        await machine.enter(MachineState.PAUSED, "it was paused, as asked")
    else:
        # It stands still where a daemon died while it was saved; one that runs takes no notice.
        await machine.qmp.execute("cont")
        await machine.enter(MachineState.RUNNING)
    machine.reach_later()


def _check_fits(manifest: Manifest, spec: MachineSpec) -> None:
    """Raises: InvalidInput when a clone would have other parts than what was saved."""
    own = replace(
        manifest.origin.spec,
        machine_id=spec.machine_id,
        hostname=spec.hostname,
        links=spec.links,
        accel=spec.accel,
        boot_timeout_s=spec.boot_timeout_s,
    )
    if own != spec or len(spec.links) != len(manifest.origin.spec.links):
        raise errors.InvalidInput(
            f"machine {spec.machine_id} has other parts than the machine that was saved",
            hint="a clone may differ in its name, its links' addresses and its time to boot",
        )


def _why_lost(record: Record, made: Made | None, resident: Resident | None) -> str:
    if made is None:
        return "its record is missing or damaged"
    if resident is not None:
        return "it had not finished booting when the daemon ended"
    said = console.tail(record.messages, most=300)
    return "its process is gone" + (f", after saying: {said}" if said else "")


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
