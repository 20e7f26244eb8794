"""What every QEMU of this host is started with: where its files are, which program, which user.

Owns the start of the process itself: files opened and handed over, limits set, control group
joined, identity written down. Above stand the machine and the saving of one.
"""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from microvm_orchestrator import errors, proc
from microvm_orchestrator.machine import cgroup, console, process
from microvm_orchestrator.machine.base import Accel, MachineSpec, OnChange, OnGuestEvent
from microvm_orchestrator.machine.handover import Handover
from microvm_orchestrator.machine.qemu import argv, disks
from microvm_orchestrator.machine.qemu.snapshots import SavedMachine
from microvm_orchestrator.machine.record import Record
from microvm_orchestrator.model.names import NAME

QEMU = "qemu-system-x86_64"


@dataclass(frozen=True, slots=True)
class Host:
    """The surroundings of all machines."""

    state_dir: Path
    on_change: OnChange
    on_guest_event: OnGuestEvent
    # A digest of the program, because a saved machine belongs to the one that saved it.
    engine: str
    binary: str = QEMU
    # Who QEMU runs as when the daemon is root: user and group.
    user: tuple[int, int] | None = None
    groups: cgroup.Tree | None = None

    @property
    def machines(self) -> Path:
        return self.state_dir / "machines"

    @property
    def snapshots(self) -> Path:
        return self.state_dir / "snapshots"

    def record(self, machine_id: str) -> Record:
        """Raises: InvalidInput when it is no name."""
        return Record(self.machines / checked(machine_id))

    def saved(self, snapshot_id: str) -> SavedMachine:
        """Raises: InvalidInput when it is no name."""
        return SavedMachine(self.snapshots / checked(snapshot_id))

    @property
    def users(self) -> frozenset[int]:
        """Who a process of ours may belong to."""
        return frozenset({os.geteuid(), *(self.user or ())[:1]})


def checked(name: str) -> str:
    """Return what may name a folder and stand on a command line. Raises: InvalidInput."""
    if not NAME.fullmatch(name):
        raise errors.InvalidInput(f"{name!r} is no name of a machine or a snapshot")
    return name


def launch(
    host: Host,
    record: Record,
    spec: MachineSpec,
    accel: Accel,
    how: argv.Start | argv.Load,
    memory: argv.Memory,
    attached: Sequence[argv.BlockDevice],
    links: Sequence[str],
    given: Handover,
) -> process.Resident:
    """Start a QEMU in its folder. The identity is on the disk before this returns.

    Raises: CommandFailed.
    """
    wiring = argv.Wiring(
        monitor=given.listen(record.monitor),
        console=given.listen(record.terminal),
        console_log=given.open(record.console, os.O_WRONLY | os.O_APPEND | os.O_CREAT),
        agent=given.listen(record.agent),
        disks=attached,
        links=links,
    )
    words = argv.command(host.binary, spec, accel, how, memory, wiring)
    with record.messages.open("ab") as messages:
        pid = proc.launch(
            [*words, *given.words], stderr=messages, pass_fds=given.fds, user=host.user
        )
    resident = take_charge(host, record, spec, pid)
    resident.limit(resource.RLIMIT_FSIZE, file_limit(spec, 0))
    return resident


def take_charge(host: Host, record: Record, spec: MachineSpec, pid: int) -> process.Resident:
    """Look after a hypervisor that was just launched; it is bounded, and known on the disk."""
    resident = process.look_after(pid)
    try:
        record.write_process(resident.identity)
        # A core would be the guest's memory, secrets and all.
        resident.limit(resource.RLIMIT_CORE, 0)
        if host.groups is not None:
            group = host.groups.make(spec.machine_id)
            group.limit(cgroup.Limits(spec.memory_mib, spec.vcpus))
            group.add(resident.identity.pid)
    except BaseException:
        resident.abandon()
        raise
    return resident


def file_limit(spec: MachineSpec, console_size: int) -> int:
    """Return how large a file a machine may write: its console, which may grow, or a disk."""
    return max(console_size + console.ROOM, disks.most_bytes(spec))


def cold(spec: MachineSpec, accel: Accel, tsc_khz: int | None, given: Handover) -> argv.Start:
    """Open what a machine boots from."""
    if accel is Accel.TCG and tsc_khz is None:
        raise errors.Unavailable(
            "the speed of this host's TSC could not be measured, and without it guests hang under"
            " emulation",
            hint="allow the daemon memory that is writable and executable while it measures",
        )
    return argv.Start(
        kernel=given.open_again(spec.parts.kernel),
        initrd=given.open_again(spec.parts.initrd),
        cmdline=argv.kernel_words(spec, accel, tsc_khz),
    )


def killed_for_memory(host: Host, machine_id: str) -> bool:
    """Tell whether this host's kernel has killed part of a machine at its limit of memory."""
    return host.groups is not None and host.groups.find(machine_id).memory_kills() > 0


def leave_group(host: Host, machine_id: str) -> None:
    """End what is left in a machine's control group and take the group away."""
    if host.groups is not None:
        group = host.groups.find(machine_id)
        group.kill()
        group.remove()


def engine_digest(binary: str) -> str:
    """Tell one QEMU from another; empty when there is none. Not for the event loop."""
    found = shutil.which(binary)
    if found is None:
        return ""
    with Path(found).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
