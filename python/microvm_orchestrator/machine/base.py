"""The seam between what manages machines and what runs them: specs, states, and two protocols.

A hypervisor boots machines, clones snapshots and adopts what an earlier daemon left running. The
machines it gives out live on when it is closed; only `stop` and `kill` end one. Above stand
lifecycle and the service; below, one package for each way to run a machine.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from microvm_orchestrator import errors
from microvm_orchestrator.machine.seeded import RUN_TIMEOUT_S, Program, Ran
from microvm_orchestrator.machine.shell import GuestEvent, GuestUsage, Shell
from microvm_orchestrator.model.fault import Harm
from microvm_orchestrator.model.machine import MachineState
from microvm_orchestrator.runner import Runner, Ssh

# From the call until the guest says that it is ready: a cold boot under emulation takes
# three seconds, ten on a busy host, and more than a minute was seen where thirty wanted two cores.
BOOT_TIMEOUT_S = 120.0
# From asking the guest to power off until it is ended by force.
STOP_GRACE_S = 10.0


class Accel(StrEnum):
    """How guest code runs."""

    AUTO = "auto"
    KVM = "kvm"
    TCG = "tcg"


class DiskFormat(StrEnum):
    RAW = "raw"
    QCOW2 = "qcow2"


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk of a machine, an image's or a further one.

    Of a read-only one the file itself is attached. A writable one begins with the content of the
    file, or empty; what is written goes elsewhere, is kept when the machine is stopped, and goes
    when it is removed.
    """

    # By which the guest knows what the disk is for.
    serial: str
    path: Path | None = None
    format: DiskFormat = DiskFormat.RAW
    read_only: bool = True
    # Of a writable one; that of its file where nothing is said.
    size_mib: int | None = None
    # The folder of a writable one that is lent to one machine after another: it begins with what
    # the last one left there, and what it writes stays there. A clone has a copy of its own.
    volume: Path | None = None


@dataclass(frozen=True, slots=True)
class Boot:
    """What a machine that we put together starts from: files of an image, which nobody writes."""

    # Tells images apart, and so which snapshots belong to one.
    digest: str
    kernel: Path
    initrd: Path
    # What its kernel is told beyond what every machine says to its own.
    cmdline: str
    disks: tuple[Disk, ...]


@dataclass(frozen=True, slots=True)
class Qcow2:
    """A disk with a whole system on it, which machines of libvirt's boot."""

    digest: str
    # What is written over it goes elsewhere, as of any disk of an image that can be written.
    system: Disk
    # None where our agent answers.
    ssh: Ssh | None = None
    # Whether it takes its name, its keys and its networks from cloud-init.
    cloud_init: bool = False
    # Booted in place of what stands on the disk, where it is said.
    kernel: Path | None = None
    initrd: Path | None = None
    cmdline: str = ""


@dataclass(frozen=True, slots=True)
class Tap:
    """An interface of this host's kernel that is there before the machine is started."""

    name: str
    # The file of the network namespace that it is in; the daemon's own where nothing is said.
    netns: Path | None = None


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface, and what the guest sets up on it.

    Its frames go to and from its tap; where it has none, whoever connects to the machine's socket
    for it; see `Machine.links`.
    """

    mac: str
    address: str | None = None  # with its prefix: 10.0.0.2/24
    gateway: str | None = None
    ipv6: str | None = None  # with its prefix: fd00::2/64
    tap: Tap | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What a machine may take beside its memory, its processors and its disks' sizes.

    None is no limit. Whoever reaches one waits, or is refused in the guest; the machine goes on.
    """

    # Processes and threads that commands in the guest have at a time. The guest's own word holds
    # here; reaching it is told as the event `pids_full`.
    pids: int | None = None
    # Of each disk, reads and writes together, by the second. Nobody is told of waiting for a disk.
    disk_operations: int | None = None
    disk_bytes: int | None = None


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """Everything that decides how a machine is made."""

    machine_id: str
    # A runner brings a whole machine of its own; a machine of libvirt's boots its own disk.
    boot: Boot | Runner | Qcow2
    # Beside those of what it boots.
    disks: tuple[Disk, ...] = ()
    memory_mib: int = 256
    vcpus: int = 1
    links: tuple[Link, ...] = ()
    accel: Accel = Accel.AUTO
    # What the guest calls itself.
    hostname: str = "guest"
    boot_timeout_s: float = BOOT_TIMEOUT_S
    limits: Limits = NO_LIMITS

    @property
    def parts(self) -> Boot:
        """What it starts from, for who puts it together. Raises: NotOffered for another kind."""
        if isinstance(self.boot, Boot):
            return self.boot
        by = "a runner directory" if isinstance(self.boot, Runner) else "libvirt"
        raise errors.NotOffered(f"machine {self.machine_id} is started by {by}")

    @property
    def all_disks(self) -> tuple[Disk, ...]:
        own = (self.boot.system,) if isinstance(self.boot, Qcow2) else self.parts.disks
        return own + self.disks

    @property
    def cmdline(self) -> str:
        """What its kernel is told by what it boots."""
        return self.boot.cmdline if isinstance(self.boot, Qcow2) else self.parts.cmdline


@dataclass(frozen=True, slots=True)
class Change:
    """A machine has come into another state."""

    machine_id: str
    state: MachineState
    # Why, in words for a person; empty where the state says it all.
    reason: str = ""
    at: datetime | None = None


# Called by whoever watches a machine, in the order of the changes; the next one waits for it.
OnChange = Callable[[Change], Awaitable[None]]
# Called with what the guest of a machine reports of itself: `oom`, `disk_full` and the like.
OnGuestEvent = Callable[[str, GuestEvent], Awaitable[None]]


async def untold(*_: object) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True)
class Within:
    """Between which two moments something came about, by the clock that only goes on."""

    since: float
    until: float


def unheeded() -> None:
    """Do nothing of it."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a machine costs this host now."""

    cpu_s: float
    rss_mib: float
    # The most it ever had.
    peak_mib: float
    # Shared pages counted by their share; None where the kernel does not tell us.
    pss_mib: float | None
    # What its own files take on the disk.
    disk_mib: float
    # Over all its links; None where whoever carries the frames does not count them.
    received_bytes: int | None = None
    sent_bytes: int | None = None
    # What the guest says; None when it does not answer at once.
    guest: GuestUsage | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A saved machine: complete in itself, and never written again."""

    snapshot_id: str
    path: Path
    # How the saved machine was made; a clone may differ in name, links and hostname only.
    spec: MachineSpec
    # Whether its memory was saved; what starts from disks alone boots.
    memory: bool
    # How long the machine that was saved stood still.
    pause_s: float
    # What the snapshot's own files take on the disk.
    unique_mib: float
    # Of each file by its name, over its content without the zeros.
    sha256: dict[str, str]


class Terminal(Protocol):
    """Somebody at a guest's console."""

    async def type(self, data: bytes) -> None:
        """Send to the guest. Raises: MachineUnreachable once the machine has ended."""
        ...

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Give what the guest says from now on, until the machine ends."""
        ...


class Machine(Protocol):
    """One machine, from its start until it has ended."""

    @property
    def spec(self) -> MachineSpec: ...

    @property
    def state(self) -> MachineState: ...

    @property
    def reason(self) -> str:
        """Why it is in this state."""
        ...

    @property
    def shell(self) -> Shell:
        """The way into the guest.

        Raises: StateForbids once the machine has ended.
        """
        ...

    async def reached(self) -> Shell:
        """Wait for the way into the guest; one that was just adopted may take a moment.

        Raises: StateForbids when the machine has ended, or ends first; MachineUnreachable.
        """
        ...

    async def hung_up(self) -> None:
        """Wait until the way into the guest that stands now is gone."""
        ...

    @property
    def ssh(self) -> Ssh | None:
        """Who logs in to the guest's SSH server, where that is the way in."""
        ...

    @property
    def ssh_port(self) -> int | None:
        """The port of this host's loopback that leads to that server, where one does."""
        ...

    @property
    def links(self) -> Sequence[Path]:
        """The unix socket of each link: frames, each behind its length in four bytes.

        One may connect, hang up and connect again at any time; frames of between are lost. A link
        with a tap has none.
        """
        ...

    @property
    def console(self) -> Path:
        """The file with the last of what the guest wrote to its console."""
        ...

    def attach(self) -> AbstractAsyncContextManager[Terminal]:
        """Hold the console; what was said before stands in its file.

        Raises: StateForbids while somebody else holds it, or when the machine has ended.
        """
        ...

    async def wait(self) -> Change:
        """Wait until the machine has ended, and tell how."""
        ...

    async def pause(self) -> Within:
        """Stop the guest's processors and clocks; nothing else changes. Tells when they stopped."""
        ...

    async def resume(self) -> Within: ...

    async def claim(self, hostname: str) -> None:
        """Let a machine that stood by go on, as somebody: from now on it is like any other.

        Raises: StateForbids, GuestRefused, MachineFailed; it is of no use then.
        """
        ...

    async def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """Let the guest power off; end the machine by force when it has not within `grace_s`."""
        ...

    async def kill(self) -> None:
        """End the machine as a power cut would."""
        ...

    async def save(
        self,
        snapshot_id: str,
        *,
        memory: bool = True,
        on_taken: Callable[[], None] = unheeded,
    ) -> Snapshot:
        """Save the machine, which goes on as it was: running or paused.

        Without its memory, what is on its disks at this moment is all that is saved. `on_taken` is
        called once nothing that it does from then on changes what is saved.
        Raises: MachineFailed; the machine goes on and nothing of the snapshot is left.
        """
        ...

    async def usage(self) -> Usage: ...

    async def check_harm(self, harm: Harm) -> None:
        """Tell in advance whether this can befall it.

        Raises: FaultNotOffered, InvalidInput for what would change nothing, StateForbids.
        """
        ...

    async def harm(self, harm: Harm, touched: frozenset[str]) -> None:
        """Let it suffer this from now on, as far as the fields are named that are touched.

        It holds until the machine ends. That it stands still is no part of it: see `pause`.
        Raises: StateForbids, MachineFailed, GuestRefused.
        """
        ...

    async def harmed(self, touched: frozenset[str]) -> Harm:
        """Tell what of that it does suffer, as it is read back. Raises: as `harm`."""
        ...


class Hypervisor(Protocol):
    """One way to run machines on this host."""

    async def start(self, spec: MachineSpec) -> Machine:
        """Boot a machine and return it once its guest has said that it is ready.

        A machine that has ended may be started again; it begins anew. Raises: MachineBootFailed,
            with the end of its console. Only its record and console are left then.
        """
        ...

    async def run_seeded(
        self, spec: MachineSpec, program: Program, timeout_s: float = RUN_TIMEOUT_S
    ) -> Ran:
        """Run a program in a machine of its own, the same way every time; nothing is left of it.

        Raises: InvalidInput, NotOffered, TooLarge for what cannot be the same every time;
            AlreadyExists; MachineFailed when it takes longer.
        """
        ...

    async def clone(self, snapshot: Snapshot, spec: MachineSpec) -> Machine:
        """Start a machine where a saved one stood, with entropy, clock and names of its own.

        It boots if only the disks were saved.
        Raises: MachineBootFailed when the guest does not acknowledge them; SnapshotDamaged.
        """
        ...

    async def stand_by(self, snapshot: Snapshot, spec: MachineSpec) -> Machine:
        """Clone a machine that stands still until it is claimed. It does not outlive the daemon.

        Raises: as `clone`.
        """
        ...

    async def find_snapshot(self, snapshot_id: str) -> Snapshot | None: ...

    async def saved(self) -> list[str]:
        """Name the snapshots there are."""
        ...

    async def check(self, snapshot_id: str) -> None:
        """Look whether a snapshot can be used now.

        Raises: NotFound, SnapshotDamaged; Unavailable while who would run it is not there.
        """
        ...

    async def verify(self, snapshot_id: str) -> None:
        """Read all of a snapshot, and compare. Raises: NotFound, SnapshotDamaged."""
        ...

    async def forget(self, snapshot_id: str) -> None:
        """Remove a snapshot; clones that run are not touched.

        Raises: Unavailable while its files cannot be removed; it is no snapshot any more.
        """
        ...

    async def adopt(self, machine_id: str) -> Machine:
        """Take over a machine that an earlier daemon started.

        Raises: MachineLost with the reason when it does not run any more; what it left on the host
            is gone then, except for its record and console.
        """
        ...

    async def remove(self, machine_id: str) -> None:
        """Take away everything that a machine has left on this host, ending it if it runs."""
        ...

    def console(self, machine_id: str) -> Path:
        """Name the file with the last of what a machine wrote, also of one that has ended."""
        ...

    def found(self) -> list[str]:
        """Name the machines this host has a record of."""
        ...
