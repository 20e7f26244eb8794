"""What libvirt is told a machine is: the document that it is defined by.

Built as a tree, never from pieces of text, so a name is only ever a name. Devices that libvirt has
no words for, our network links among them, are arguments of QEMU's. Nothing here touches the host.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from microvm_orchestrator.machine.base import Accel, Qcow2
from microvm_orchestrator.machine.qemu.argv import AGENT_PORT, TCG_CPU, kernel_words, word

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from microvm_orchestrator.machine.base import Disk, Link, MachineSpec

_QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
# More translated code than this makes nothing faster, and by default it takes 400 MB.
_TB_CACHE_MIB = 64
# The first of the slots that links get; libvirt numbers its own devices from below.
_FIRST_SLOT = 0x10
_MANAGEMENT_SLOT = 0x1E
MAX_LINKS = _MANAGEMENT_SLOT - _FIRST_SLOT
# What a machine is by libvirt is told by its folder, of which there is one.
_NAMESPACE = uuid.UUID("4d6b9f0e-6a0b-4f0c-9b61-3d3f5c1f7a52")

ET.register_namespace("qemu", _QEMU)


@dataclass(frozen=True, slots=True)
class Files:
    """Where what a machine has lies on this host."""

    # Of each disk, in their order: what can be written, the topmost first, then what is under it.
    disks: Sequence[Sequence[Path]]
    console: Path
    terminal: Path
    agent: Path
    links: Sequence[Path]
    seed: Path | None = None


@dataclass(frozen=True, slots=True)
class Management:
    """A network of its own by which the guest's SSH server is reached, from this host alone."""

    mac: str
    port: int


def uuid_of(folder: Path) -> str:
    return str(uuid.uuid5(_NAMESPACE, str(folder)))


def write(
    spec: MachineSpec,
    accel: Accel,
    identity: str,
    emulator: str,
    files: Files,
    tsc_khz: int | None,
    management: Management | None = None,
) -> str:
    """Write the document."""
    root = ET.Element("domain", {"type": "kvm" if accel is Accel.KVM else "qemu"})
    _text(root, "name", spec.machine_id)
    _text(root, "uuid", identity)
    _text(root, "memory", str(spec.memory_mib), unit="MiB")
    _text(root, "vcpu", str(spec.vcpus))
    boots_kernel = _boot(root, spec, accel, tsc_khz)
    features = ET.SubElement(root, "features")
    # A guest is asked to power off by it.
    ET.SubElement(features, "acpi")
    _processor(root, features, accel)
    ET.SubElement(root, "clock", {"offset": "utc"})
    _text(root, "on_poweroff", "destroy")
    # A kernel of ours ends a machine by it; a whole system may want to begin anew by itself.
    _text(root, "on_reboot", "destroy" if boots_kernel else "restart")
    _text(root, "on_crash", "destroy")
    devices = ET.SubElement(root, "devices")
    _text(devices, "emulator", emulator)
    for number, disk in enumerate(spec.all_disks):
        _disk(devices, spec, number, disk, files.disks[number])
    if files.seed is not None:
        _seed(devices, len(spec.all_disks), files.seed)
    _console(devices, files)
    _agent(devices, files.agent)
    for number, link in enumerate(spec.links):
        if link.tap is not None:
            _tap(devices, number, link)
    rng = ET.SubElement(devices, "rng", {"model": "virtio"})
    _text(rng, "backend", "/dev/urandom", model="random")
    # By it a guest's kernel says that it has panicked, before it says anything else.
    ET.SubElement(devices, "panic", {"model": "isa"})
    ET.SubElement(devices, "controller", {"type": "usb", "model": "none"})
    ET.SubElement(devices, "memballoon", {"model": "none"})
    video = ET.SubElement(devices, "video")
    ET.SubElement(video, "model", {"type": "none"})
    _arguments(root, spec, files, management)
    return ET.tostring(root, encoding="unicode")


def write_snapshot(name: str, memory: Path | None, disks: int, fresh: Mapping[int, Path]) -> str:
    """Write the document of a snapshot: where its memory goes, and which layers come next."""
    root = ET.Element("domainsnapshot")
    _text(root, "name", name)
    where = {"snapshot": "no"} if memory is None else {"snapshot": "external", "file": str(memory)}
    ET.SubElement(root, "memory", where)
    listed = ET.SubElement(root, "disks")
    # What is not listed can only be read, and so is left alone.
    for number in range(disks):
        device = ET.SubElement(listed, "disk", {"name": disk_target(number)})
        if number not in fresh:
            device.set("snapshot", "no")
            continue
        device.set("snapshot", "external")
        device.set("type", "file")
        ET.SubElement(device, "driver", {"type": "qcow2"})
        ET.SubElement(device, "source", {"file": str(fresh[number])})
    return ET.tostring(root, encoding="unicode")


def _boot(root: ET.Element, spec: MachineSpec, accel: Accel, tsc_khz: int | None) -> bool:
    """Say what is booted; tell whether that is a kernel of ours."""
    system = ET.SubElement(root, "os")
    _text(system, "type", "hvm", arch="x86_64", machine="q35")
    boot = spec.boot
    if not isinstance(boot, Qcow2) or boot.kernel is None:
        ET.SubElement(system, "boot", {"dev": "hd"})
        return False
    _text(system, "kernel", str(boot.kernel))
    if boot.initrd is not None:
        _text(system, "initrd", str(boot.initrd))
    _text(system, "cmdline", kernel_words(spec, accel, tsc_khz))
    return True


def _processor(root: ET.Element, features: ET.Element, accel: Accel) -> None:
    if accel is Accel.KVM:
        ET.SubElement(root, "cpu", {"mode": "host-passthrough"})
        return
    tcg = ET.SubElement(features, "tcg")
    _text(tcg, "tb-cache", str(_TB_CACHE_MIB), unit="MiB")
    cpu = ET.SubElement(root, "cpu", {"mode": "custom", "match": "exact", "check": "none"})
    _text(cpu, "model", TCG_CPU, fallback="forbid")


def _disk(
    devices: ET.Element, spec: MachineSpec, number: int, disk: Disk, files: Sequence[Path]
) -> None:
    """Say what a disk is, and all that lies under it: nobody is led elsewhere by a file."""
    device = ET.SubElement(devices, "disk", {"type": "file", "device": "disk"})
    top, *below = files
    own = disk.path
    form = disk.format if top == own else "qcow2"
    ET.SubElement(device, "driver", {"name": "qemu", "type": form, "discard": "unmap"})
    ET.SubElement(device, "source", {"file": str(top)})
    under = device
    for path in below:
        under = ET.SubElement(under, "backingStore", {"type": "file"})
        ET.SubElement(under, "format", {"type": disk.format if path == own else "qcow2"})
        ET.SubElement(under, "source", {"file": str(path)})
    ET.SubElement(under, "backingStore")
    ET.SubElement(device, "target", {"dev": disk_target(number), "bus": "virtio"})
    if not isinstance(spec.boot, Qcow2) or disk is not spec.boot.system or disk.serial:
        _text(device, "serial", disk.serial)
    if disk.read_only:
        ET.SubElement(device, "readonly")
        ET.SubElement(device, "shareable")
    limits = {
        "total_bytes_sec": spec.limits.disk_bytes,
        "total_iops_sec": spec.limits.disk_operations,
    }
    if any(limits.values()):
        tune = ET.SubElement(device, "iotune")
        for name, most in limits.items():
            if most is not None:
                _text(tune, name, str(most))


def _seed(devices: ET.Element, number: int, path: Path) -> None:
    # Not a CD: cloud kernels of Debian have no driver for the controller that it would hang on.
    device = ET.SubElement(devices, "disk", {"type": "file", "device": "disk"})
    ET.SubElement(device, "driver", {"name": "qemu", "type": "raw"})
    ET.SubElement(device, "source", {"file": str(path)})
    ET.SubElement(device, "target", {"dev": disk_target(number), "bus": "virtio"})
    ET.SubElement(device, "readonly")


def _console(devices: ET.Element, files: Files) -> None:
    serial = ET.SubElement(devices, "serial", {"type": "unix"})
    ET.SubElement(serial, "source", {"mode": "bind", "path": str(files.terminal)})
    # Otherwise what a kernel said before it died is gone with the next start.
    ET.SubElement(serial, "log", {"file": str(files.console), "append": "on"})


def _agent(devices: ET.Element, path: Path) -> None:
    channel = ET.SubElement(devices, "channel", {"type": "unix"})
    ET.SubElement(channel, "source", {"mode": "bind", "path": str(path)})
    ET.SubElement(channel, "target", {"type": "virtio", "name": AGENT_PORT})


def _tap(devices: ET.Element, number: int, link: Link) -> None:
    assert link.tap is not None  # noqa: S101 # who calls has looked
    interface = ET.SubElement(devices, "interface", {"type": "ethernet"})
    ET.SubElement(interface, "mac", {"address": link.mac})
    # It is there already, under this name, and stays there.
    ET.SubElement(interface, "target", {"dev": link.tap.name, "managed": "no"})
    ET.SubElement(interface, "model", {"type": "virtio"})
    _slot(interface, _FIRST_SLOT + number)


def _slot(device: ET.Element, slot: int) -> None:
    where = {"domain": "0x0000", "bus": "0x00", "slot": f"{slot:#x}", "function": "0x0"}
    ET.SubElement(device, "address", {"type": "pci", **where})


def _arguments(
    root: ET.Element, spec: MachineSpec, files: Files, management: Management | None
) -> None:
    words: list[str] = []
    for number, link in enumerate(spec.links):
        if link.tap is None:
            path = word(str(files.links[number]))
            netdev = f"stream,id=ours{number},server=on,addr.type=unix,addr.path={path}"
            words += _card(netdev, f"ours{number}", link.mac, _FIRST_SLOT + number)
    if management is not None:
        # It leads nowhere but to us: `restrict` lets the guest reach neither the host nor others.
        netdev = f"user,id=management,restrict=on,hostfwd=tcp:127.0.0.1:{management.port}-:22"
        words += _card(netdev, "management", management.mac, _MANAGEMENT_SLOT)
    if words:
        line = ET.SubElement(root, f"{{{_QEMU}}}commandline")
        for value in words:
            ET.SubElement(line, f"{{{_QEMU}}}arg", {"value": value})


def _card(netdev: str, name: str, mac: str, slot: int) -> list[str]:
    # Nothing is booted from it, so it needs no program for that.
    device = f"virtio-net-pci,netdev={name},mac={word(mac)},bus=pcie.0,addr={slot:#x},romfile="
    return ["-netdev", netdev, "-device", device]


def disk_target(number: int) -> str:
    return f"vd{chr(ord('a') + number)}"


def _text(parent: ET.Element, name: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, name, attributes).text = text
