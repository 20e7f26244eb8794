"""All machines of this host that libvirt runs for us.

A keeper like the others: what is on the disk is its memory, and libvirt's own is only asked. A
machine stays defined there while it is stopped, because its snapshots are, until it is removed.
Machines of others are never touched: ours are known by a number that only their folder gives.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from microvm_orchestrator import errors, log
from microvm_orchestrator.machine.base import Qcow2
from microvm_orchestrator.machine.channel.connection import GREETING_S
from microvm_orchestrator.machine.keeper import Cloner
from microvm_orchestrator.machine.libvirt import domain, saving, seed
from microvm_orchestrator.machine.libvirt.library import SAVE_PAUSED, XML_INACTIVE, Undefine
from microvm_orchestrator.machine.libvirt.machine import (
    LibvirtMachine,
    end_process,
    find_process,
    port_file,
)
from microvm_orchestrator.machine.living import identity
from microvm_orchestrator.machine.probe import choose
from microvm_orchestrator.machine.qemu import disks, qcow2
from microvm_orchestrator.machine.qemu.snapshots import check_fits
from microvm_orchestrator.machine.ssh import keep_keys, our_key, remember_host_key
from microvm_orchestrator.model.machine import MachineState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio.abc import TaskGroup

    from microvm_orchestrator.machine.base import Accel, MachineSpec, Snapshot
    from microvm_orchestrator.machine.handover import Handover
    from microvm_orchestrator.machine.libvirt.connection import Connection
    from microvm_orchestrator.machine.libvirt.library import Virt
    from microvm_orchestrator.machine.probe import Acceleration
    from microvm_orchestrator.machine.process import Resident
    from microvm_orchestrator.machine.qemu.host import Host
    from microvm_orchestrator.machine.record import Made, Record

# The kernel's limit on the address of a unix socket, which libvirt writes in full.
_MAX_SOCKET = 107
# libvirt takes a machine to run until it has seen for itself that its process is gone.
_OFF_S = 15.0
_AGAIN_S = 0.05
_EVERYTHING = (
    Undefine.MANAGED_SAVE
    | Undefine.SNAPSHOTS_METADATA
    | Undefine.NVRAM
    | Undefine.CHECKPOINTS_METADATA
)
# Whom libvirt lets a QEMU run as: "+64055:+64055".
_LABEL = re.compile(r"<baselabel type='(?:qemu|kvm)'>\+(\d+):\+\d+</baselabel>")
_SEED = "seed.iso"
# A copy of what was saved, for as long as a clone of it is started.
_MEMORY = "memory"


class Domains(Cloner[LibvirtMachine]):
    """The machines of libvirt's that are ours."""

    def __init__(
        self,
        host: Host,
        group: TaskGroup,
        connection: Connection,
        acceleration: Callable[[], Awaitable[Acceleration]],
        logs: Path | None = None,
    ) -> None:
        """`logs` is the folder in which libvirt keeps what its QEMUs say."""
        super().__init__(host, group)
        self._connection = connection
        self._acceleration = acceleration
        self._logs = logs or _logs_of(connection.uri)
        # Whom its QEMUs may run as; libvirt is asked once it is there.
        self._users = host.users | {0}
        # Whom libvirt of the whole host runs them as, which that of one user does not say.
        self._theirs: frozenset[int] = frozenset()

    async def start(self, spec: MachineSpec) -> LibvirtMachine:
        """Boot a machine and wait for its guest.

        Raises: AlreadyExists, MachineBootFailed, Unavailable; NotOffered when it is wanted with
            what is not given here.
        """
        return await self._boot(spec, None)

    async def _boot(
        self, spec: MachineSpec, saved: Path | None, *, unclaimed: bool = False
    ) -> LibvirtMachine:
        """Boot a machine from its own disks, or from those that were saved."""
        boot = _boot_of(spec)
        _check(spec, boot)
        found = await self._acceleration()
        accel = choose(spec.accel, found)
        await self._learn_users()
        self._check_agent(spec, boot)

        async def begin(given: Handover, record: Record) -> Resident:
            del given  # libvirt opens files by their names
            if saved is not None:
                await anyio.to_thread.run_sync(_begin_from, saved, spec, record.folder)
            written = await anyio.to_thread.run_sync(
                self._prepare, spec, boot, accel, record, found.tsc_khz
            )
            return await self._create(record, written)

        async def prepare(machine: LibvirtMachine) -> None:
            await machine.enter(MachineState.BOOTING)
            if boot.ssh is not None:
                await machine.reach_by_ssh()
                return
            await machine.reach_booting(spec.boot_timeout_s, _AGAIN_S, (errors.MachineUnreachable,))
            await machine.shell.fresh(identity(spec))

        return await self._make(spec, accel, begin, prepare, unclaimed=unclaimed)

    async def _clone(
        self, snapshot: Snapshot, spec: MachineSpec, *, unclaimed: bool
    ) -> LibvirtMachine:
        boot = _boot_of(spec)
        _check(spec, boot)
        saved = self._host.saved(snapshot.snapshot_id)
        manifest = await anyio.to_thread.run_sync(saved.check, self._host.engine)
        check_fits(manifest, spec)
        if not manifest.origin.memory:
            return await self._boot(spec, saved.folder, unclaimed=unclaimed)
        accel = manifest.origin.accel
        found = await self._acceleration()
        await self._learn_users()
        self._check_agent(spec, boot)

        async def begin(given: Handover, record: Record) -> Resident:
            del given  # libvirt opens files by their names
            await anyio.to_thread.run_sync(_begin_from, saved.folder, spec, record.folder)
            written = await anyio.to_thread.run_sync(
                self._prepare, spec, boot, accel, record, found.tsc_khz
            )
            return await self._restore(record, written, saved.state)

        async def prepare(machine: LibvirtMachine) -> None:
            machine.restored = True
            await machine.enter(MachineState.BOOTING)
            # Its QEMU has been idle by now: one that goes on at once may send by a link before it
            # knows that nobody is at the other end, and crashes.
            await machine.wake()
            if boot.ssh is not None:
                await machine.reach_by_ssh()
                return
            shell = await machine.reach(GREETING_S)
            await shell.fresh(identity(spec))

        return await self._make(spec, accel, begin, prepare, unclaimed=unclaimed)

    async def check_there(self) -> None:
        """See that libvirt could be told to start something. Raises: Unavailable."""
        await self._connection.ask(lambda virt: virt.getLibVersion())

    async def sweep(self) -> None:
        """Take away machines that an earlier daemon left, and nobody has claimed."""
        for machine_id, made in self._unclaimed():
            if made is not None and isinstance(made.spec.boot, Qcow2):
                try:
                    await self._learn_users()
                    await self.remove(machine_id)
                except errors.OrchestratorError as error:
                    why = error.message
                    log.get(__name__).warning("machine_not_removed", machine=machine_id, why=why)

    async def adopt(self, machine_id: str) -> LibvirtMachine:
        with anyio.move_on_after(_OFF_S):
            await self._learn_users()
        return await super().adopt(machine_id)

    async def remove(self, machine_id: str) -> None:
        """End a machine, and take it away here and from libvirt.

        Raises: Unavailable when libvirt does not answer; what the machine has stays then.
        """
        record = self._host.record(machine_id)
        machine = self._live.pop(machine_id, None)
        if machine is not None:
            await machine.kill()
        await self._end(self._find(record), record)
        uuid = domain.uuid_of(record.folder)
        await self._until_off(uuid)

        def undefine(virt: Virt) -> None:
            virt.lookupByUUIDString(uuid).undefineFlags(_EVERYTHING)

        with suppress(errors.NotFound):  # it never was, or is gone already
            await self._connection.tell(undefine)
        await anyio.to_thread.run_sync(record.remove)

    def _machine(self, made: Made, resident: Resident) -> LibvirtMachine:
        messages = self._logs / f"{made.spec.machine_id}.log"
        return LibvirtMachine(self._host, made, resident, self._connection, self._users, messages)

    def _find(self, record: Record) -> Resident | None:
        return find_process(domain.uuid_of(record.folder), self._users)

    async def _take_over(self, machine: LibvirtMachine) -> None:
        await machine.go_on()

    async def _end(self, resident: Resident | None, record: Record) -> None:
        if resident is not None:
            await end_process(resident, self._connection, domain.uuid_of(record.folder))
            resident.close()
            resident = None
        await super()._end(resident, record)

    # Steps of a start.

    def _prepare(
        self, spec: MachineSpec, boot: Qcow2, accel: Accel, record: Record, tsc_khz: int | None
    ) -> str:
        """Make the files of a machine, and write what libvirt is told of it."""
        disks.begin_anew(spec, record.folder)
        record.console.touch()
        record.messages.touch()
        management = self._manage(spec, record) if boot.ssh is not None else None
        files = domain.Files(
            disks=[_files_of(spec, record, number) for number in range(len(spec.all_disks))],
            console=record.console,
            terminal=record.terminal,
            agent=record.agent,
            links=[record.link(number) for number in range(len(spec.links))],
            seed=self._seed(spec, boot, record, management),
        )
        for path in (files.terminal, files.agent, *files.links):
            if len(os.fsencode(path)) > _MAX_SOCKET:
                raise errors.InvalidInput(
                    f"{path} is too long for the address of a socket, which libvirt writes in full",
                    hint="a state directory with a shorter name",
                )
        emulator = shutil.which(self._host.binary)
        if emulator is None:
            raise errors.Unavailable(f"there is no {self._host.binary}")
        uuid = domain.uuid_of(record.folder)
        return domain.write(spec, accel, uuid, emulator, files, tsc_khz, management)

    def _manage(self, spec: MachineSpec, record: Record) -> domain.Management:
        """Choose the port of this host that leads to the guest's SSH server."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        port_file(record).write_text(str(port), encoding="ascii")
        number = domain.uuid_of(record.folder)[-6:]
        mac = ":".join(("52:54:00", number[:2], number[2:4], number[4:]))
        if any(link.mac == mac for link in spec.links):
            raise errors.Unavailable(f"a link of machine {spec.machine_id} has the address {mac}")
        return domain.Management(mac, port)

    def _seed(
        self, spec: MachineSpec, boot: Qcow2, record: Record, management: domain.Management | None
    ) -> Path | None:
        if boot.ssh is None or not boot.cloud_init:
            return None
        client = our_key(self._host.state_dir)
        keys = keep_keys(record.folder / saving.KEYS, spec.machine_id)
        if boot.ssh.host_key is None:
            remember_host_key(record.folder, keys.host.public)
        path = record.folder / _SEED
        path.write_bytes(
            seed.write(spec, boot.ssh.user, keys.host, client.public, management and management.mac)
        )
        return path

    async def _create(self, record: Record, written: str) -> Resident:
        uuid = domain.uuid_of(record.folder)
        await self._until_off(uuid)

        def create(virt: Virt) -> None:
            virt.defineXML(written).create()

        return await self._begun(record, create)

    async def _restore(self, record: Record, written: str, state: Path) -> Resident:
        """Let a machine stand still where a saved one stood."""
        uuid = domain.uuid_of(record.folder)
        await self._until_off(uuid)
        own = record.folder / _MEMORY

        def restore(virt: Virt) -> None:
            # As libvirt understands it, with all that it has added.
            document = virt.defineXML(written).XMLDesc(XML_INACTIVE)
            saving.copy_for(document, state, own)
            virt.restoreFlags(str(own), None, SAVE_PAUSED)

        own.unlink(missing_ok=True)
        try:
            return await self._begun(record, restore)
        finally:
            own.unlink(missing_ok=True)

    async def _begun(self, record: Record, begin: Callable[[Virt], None]) -> Resident:
        try:
            await self._connection.tell(begin)
        except errors.SnapshotDamaged:
            raise
        except errors.MachineFailed as error:
            raise errors.MachineBootFailed(
                f"machine {record.machine_id} was not started: {error.message}"
            ) from error
        resident = self._find(record)
        if resident is None:
            raise errors.MachineBootFailed(
                f"machine {record.machine_id} has ended as soon as it was started",
                hint=f"what its QEMU said: {self._logs / f'{record.machine_id}.log'}",
            )
        record.write_process(resident.identity)
        return resident

    async def _until_off(self, uuid: str) -> None:
        """Wait until libvirt has seen the end of a process that we have seen."""
        with anyio.move_on_after(_OFF_S):
            while await self._is_active(uuid):  # noqa: ASYNC110 # libvirt tells nobody of it
                await anyio.sleep(_AGAIN_S)
            return
        raise errors.MachineFailed(f"libvirt takes the machine {uuid} to run, and it does not")

    async def _is_active(self, uuid: str) -> bool:
        try:
            return bool(
                await self._connection.ask(lambda virt: virt.lookupByUUIDString(uuid).isActive())
            )
        except errors.NotFound:
            return False

    async def _learn_users(self) -> None:
        try:
            told = await self._connection.ask(lambda virt: virt.getCapabilities())
        except errors.Unavailable:
            return  # what needs libvirt says so itself
        self._theirs = frozenset(int(uid) for uid in _LABEL.findall(told))
        self._users |= self._theirs

    def _check_agent(self, spec: MachineSpec, boot: Qcow2) -> None:
        """Refuse at once what would only be seen when the time to boot is over."""
        us = os.geteuid()
        if boot.ssh is not None or us == 0 or not self._theirs or us in self._theirs:
            return
        raise errors.NotOffered(
            f"the agent of machine {spec.machine_id} cannot be reached: its port belongs to the"
            f" user {min(self._theirs)}, as whom libvirt at {self._connection.uri} runs machines",
            hint='libvirt.uri = "qemu:///session", a daemon of root, `user` in libvirt\'s qemu.conf'
            " or an image with an SSH server",
        )


def _boot_of(spec: MachineSpec) -> Qcow2:
    if not isinstance(spec.boot, Qcow2):
        raise errors.NotOffered(f"machine {spec.machine_id} boots no disk of its own")
    return spec.boot


def _check(spec: MachineSpec, boot: Qcow2) -> None:
    """Raises: NotOffered."""
    if len(spec.links) > domain.MAX_LINKS:
        raise errors.NotOffered(f"a machine of libvirt's has at most {domain.MAX_LINKS} links")
    if any(link.tap is not None and link.tap.netns is not None for link in spec.links):
        raise errors.NotOffered(
            "a machine of libvirt's cannot be in a network of another network namespace",
            hint="libvirt opens taps where it runs itself: leave networks.netns unset",
        )
    if spec.limits.pids is not None and boot.kernel is None:
        raise errors.NotOffered("a limit on processes is kept by our agent only")


def _begin_from(saved: Path, spec: MachineSpec, folder: Path) -> None:
    """Give a machine the disks of a snapshot, and the keys that its guest has on them."""
    disks.begin_from(saved, spec, folder)
    saving.give_keys(saved, folder)


def _files_of(spec: MachineSpec, record: Record, number: int) -> list[Path]:
    """Name what a disk consists of, the topmost first."""
    disk = spec.all_disks[number]
    own = [] if disk.path is None else [disk.path]
    if disk.read_only:
        return own
    layers = disks.layers(record.folder, number)
    for path in layers:
        qcow2.check_alone(path)
    return [*reversed(layers), *own]


def _logs_of(uri: str) -> Path:
    if "/session" in uri:
        home = os.environ.get("HOME", "/")
        return Path(os.environ.get("XDG_CACHE_HOME", f"{home}/.cache"), "libvirt/qemu/log")
    return Path("/var/log/libvirt/qemu")
