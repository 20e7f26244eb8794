"""The command line of a QEMU: which devices a machine has, in which order, and why.

What is saved from one QEMU is loaded by another only if both have the same devices in the same
order, so everything that runs, saves or loads a machine comes through here. Only the names of files
may differ. Flags that look odd were measured; each has its reason beside it. Nothing here touches
the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from microvm_orchestrator.machine.base import Accel, MachineSpec

# No monitor command may make QEMU start, become or slow down anything.
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
# The cache of translated code: the default takes 400 MB of memory and is no faster than this.
TCG = "tcg,tb-size=64"
# The cheapest processor that runs what is compiled for x86-64-v2; "max" boots a sixth slower.
TCG_CPU = "Nehalem"
# The port the agent in the guest looks for.
AGENT_PORT = "ctl"


@dataclass(frozen=True, slots=True)
class Start:
    """Boot a kernel."""

    kernel: str
    initrd: str
    cmdline: str


@dataclass(frozen=True, slots=True)
class Load:
    """Wait for the monitor to say where a saved machine comes from."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Where the guest's memory is: private and fresh, or a file."""

    file: str | None = None
    # Whether what the guest writes goes into the file, or into copies of its pages.
    shared: bool = False


@dataclass(frozen=True, slots=True)
class BlockFile:
    """A file behind a disk, as QEMU shall open it; without a name: a size, and never read."""

    name: str | None
    format: str = "raw"
    size: int = 0


@dataclass(frozen=True, slots=True)
class BlockDevice:
    # By which the guest knows what the disk is for.
    serial: str
    read_only: bool
    # Each lies on the one before; the last is what the guest writes to.
    files: Sequence[BlockFile]


@dataclass(frozen=True, slots=True)
class Wiring:
    """What is inherited: listening sockets, the console's log, disks, networks."""

    monitor: int
    console: int
    console_log: str
    agent: int
    disks: Sequence[BlockDevice]
    # A `-netdev` for each link, without its id.
    links: Sequence[str]


def command(
    binary: str,
    spec: MachineSpec,
    accel: Accel,
    how: Start | Load,
    memory: Memory,
    wiring: Wiring,
) -> list[str]:
    """Write the command line."""
    log = f",logfile={wiring.console_log},logappend=on"
    # fmt: off
    words = [
        binary,
        # By the name a daemon that lost its record finds the process; see process.py.
        "-name", f"guest={spec.machine_id}",
        # ACPI stays on: kernels of Debian find virtio-mmio devices by nothing else.
        "-machine", "microvm,memory-backend=ram",
        *_accelerated(accel),
        "-m", f"{spec.memory_mib}M", "-object", _backend(spec, memory),
        "-smp", str(spec.vcpus),
        "-nodefaults", "-no-user-config", "-display", "none",
        # A guest that reboots has ended; so do a panic and a triple fault.
        "-no-reboot",
        "-sandbox", SANDBOX,
        # Modern virtio, as all our guests speak it.
        "-global", "virtio-mmio.force-legacy=false",
        # The log is QEMU's own doing, so nothing is lost while no daemon runs.
        "-chardev", _served("console", wiring.console) + log,
        "-serial", "chardev:console",
        "-chardev", _served("monitor", wiring.monitor),
        "-mon", "chardev=monitor,mode=control",
        "-object", "rng-random,id=entropy,filename=/dev/urandom",
        "-device", "virtio-rng-device,rng=entropy",
        "-device", "virtio-serial-device,id=serial",
        "-chardev", _served("agent", wiring.agent),
        "-device", f"virtserialport,bus=serial.0,chardev=agent,name={AGENT_PORT}",
    ]
    # fmt: on
    for number, disk in enumerate(wiring.disks):
        words += _block(number, disk)
    for number, (link, netdev) in enumerate(zip(spec.links, wiring.links, strict=True)):
        words += ["-netdev", f"{netdev},id=net{number}"]
        words += ["-device", f"virtio-net-device,netdev=net{number},mac={word(link.mac)}"]
    return words + _begun(how)


def kernel_words(spec: MachineSpec, accel: Accel, tsc_khz: int | None) -> str:
    """Write the kernel's command line: what every machine says, and what its image wants."""
    words = [
        "console=ttyS0",
        # A triple fault ends the machine at once, whatever state the rest is in.
        "reboot=t",
        "panic=-1",
        "quiet",
        "loglevel=3",
        # They guard the guest's kernel from the guest's programs, which own it anyway.
        "mitigations=off",
        "random.trust_cpu=on",
    ]
    if spec.limits.pids is not None:
        # What the kernel does not know is a variable of the guest's first program.
        words.append(f"guest_pids={spec.limits.pids}")
    if accel is Accel.TCG:
        # Under emulation the guest's TSC is the host's. Without these words the kernel measures it
        # against a timer, which fails on a busy host, and boots then hang at random. Moving the
        # kernel about costs a tenth of a second.
        words += ["nokaslr", f"tsc_early_khz={tsc_khz}", "tsc=reliable"]
    return " ".join([*words, spec.cmdline]).strip()


def _served(name: str, fd: int) -> str:
    return f"socket,id={name},fd={fd},server=on,wait=off"


def _accelerated(accel: Accel) -> list[str]:
    match accel:
        case Accel.TCG:
            return ["-accel", TCG, "-cpu", TCG_CPU]
        case Accel.KVM:
            return ["-accel", "kvm", "-cpu", "host"]
        case Accel.AUTO:
            raise ValueError("auto is no way to run; choose one first")
        case _:
            assert_never(accel)


def _backend(spec: MachineSpec, memory: Memory) -> str:
    if memory.file is None:
        return f"memory-backend-ram,id=ram,size={spec.memory_mib}M"
    shared = "on" if memory.shared else "off"
    return (
        f"memory-backend-file,id=ram,size={spec.memory_mib}M,mem-path={memory.file},share={shared}"
    )


def word(text: str) -> str:
    """Write a value so that QEMU takes a comma in it for a comma."""
    return text.replace(",", ",,")


def device_name(number: int) -> str:
    """Name a disk, as the guest sees it, in QEMU."""
    return f"disk{number}"


def node_name(number: int, index: int) -> str:
    """Name a file of a disk in QEMU."""
    return f"disk{number}-{index}"


def _block(number: int, disk: BlockDevice) -> list[str]:
    words: list[str] = []
    top = len(disk.files) - 1
    for index, file in enumerate(disk.files):
        if file.name is None:
            node = f"driver=null-co,size={file.size}"
        else:
            # Many machines read one image; that nobody writes it is ours to see to.
            where = f"file.driver=file,file.filename={file.name},file.locking=off"
            node = f"driver={file.format},{where}"
        below = f",backing={node_name(number, index - 1)}" if index else ""
        only = "off" if index == top and not disk.read_only else "on"
        name = node_name(number, index)
        words += ["-blockdev", f"{node},node-name={name},read-only={only}{below}"]
    drive = node_name(number, top)
    device = f"virtio-blk-device,drive={drive},serial={word(disk.serial)},id={device_name(number)}"
    return [*words, "-device", device]


def _begun(how: Start | Load) -> list[str]:
    match how:
        case Start():
            return ["-kernel", how.kernel, "-initrd", how.initrd, "-append", how.cmdline]
        case Load():
            return ["-incoming", "defer"]
        case _:
            assert_never(how)
