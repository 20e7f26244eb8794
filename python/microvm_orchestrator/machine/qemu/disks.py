"""The disks of a machine: an image's, shared by all, and what the machine itself writes.

What is written goes into an overlay in the machine's folder and ends with it. Above stand whoever
starts a QEMU; below, the names under which it inherits the files.
"""

from __future__ import annotations

from pathlib import Path

from microvm_orchestrator import errors
from microvm_orchestrator.machine.base import Disk, DiskFormat, MachineSpec
from microvm_orchestrator.machine.qemu.argv import BlockDevice, BlockFile
from microvm_orchestrator.machine.qemu.handover import Handover

_SECTOR = 512


def attach(spec: MachineSpec, given: Handover) -> list[BlockDevice]:
    """Open every disk of a machine that will run."""
    return [
        BlockDevice(disk.serial, BlockFile(given.open(_file(disk)), disk.format), disk.read_only)
        for disk in spec.all_disks
    ]


def stand_ins(spec: MachineSpec) -> list[BlockDevice]:
    """Give disks of the right size and nothing on them, for a QEMU that never runs the machine."""
    return [
        BlockDevice(disk.serial, BlockFile(None, size=_size(disk)), disk.read_only)
        for disk in spec.all_disks
    ]


def _size(disk: Disk) -> int:
    size = _file(disk).stat().st_size
    return size + -size % _SECTOR


def _file(disk: Disk) -> Path:
    if disk.path is None or disk.format is not DiskFormat.RAW or not disk.read_only:
        raise errors.InvalidInput(f"disk {disk.serial} is not raw and read-only")
    return disk.path
