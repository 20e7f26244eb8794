"""The disks of a machine: an image's, shared by all, and what the machine itself has written.

    <machine>/disk1.0.qcow2    the first layer of what was written to the second disk, and so on

What is written goes into layers, each over the one before and the first over the disk's own file if
it has one. A layer is written by one machine for as long as it is the top one, and never again: a
snapshot takes hard links to all of them, and the machine goes on in a new one. So any snapshot or
machine may go, and its layers stay while somebody else has them. A disk that is
lent to one machine after another has a folder, its volume, which holds all that its machine has of
it. QEMU calls a layer's node by the same two numbers. Above stand whoever starts or saves a QEMU.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from pydantic import JsonValue

from microvm_orchestrator import errors
from microvm_orchestrator.machine.base import Disk, DiskFormat, MachineSpec
from microvm_orchestrator.machine.handover import Handover
from microvm_orchestrator.machine.qemu import qcow2
from microvm_orchestrator.machine.qemu.argv import BlockDevice, BlockFile, device_name, node_name
from microvm_orchestrator.machine.qemu.qmp import Qmp

_SECTOR = 512
_MIB = 1 << 20
# Bookkeeping of a full layer.
_OVERHEAD_SHARE = 64
_LAYER = re.compile(r"disk(\d+)\.(\d+)\.qcow2")


def begin_anew(spec: MachineSpec, folder: Path) -> None:
    """Make the first layers of a machine that has none; one that was stopped goes on in its own."""
    for number, disk in _writable(spec):
        if disk.volume is not None:
            _take_up(disk.volume, folder, number)
        if not layers(folder, number):
            first = 0 if disk.path is None else 1
            qcow2.create(_layer(folder, number, first), _size(disk))


def make_volume(folder: Path, size_mib: int) -> None:
    """Make an empty disk that can be lent."""
    qcow2.create(_layer(folder, 0, 0), size_mib * _MIB)


def volume_size_mib(folder: Path) -> int:
    return qcow2.size_of(layers(folder, 0)[0]) // _MIB


def without_volumes(spec: MachineSpec) -> MachineSpec:
    """Tell of a machine as its clones are: with copies of what was lent to it."""
    return replace(spec, disks=tuple(replace(disk, volume=None) for disk in spec.disks))


def begin_from(saved: Path, spec: MachineSpec, folder: Path) -> None:
    """Give a machine the layers of a snapshot, and new ones on top."""
    drop(folder)
    link(saved, folder)
    for number, disk in _writable(spec):
        top = index_of(layers(folder, number)[-1])
        qcow2.create(_layer(folder, number, top + 1), _size(disk))


def link(source: Path, target: Path) -> None:
    """Have the layers of one folder in another."""
    for path in source.glob("disk*.qcow2"):
        os.link(path, target / path.name)


def drop(folder: Path) -> None:
    for path in folder.glob("disk*.qcow2"):
        path.unlink()


def layers(folder: Path, number: int) -> list[Path]:
    """Return the layers of a disk, the lowest first."""
    return sorted(folder.glob(f"disk{number}.*.qcow2"), key=index_of)


def attach(spec: MachineSpec, folder: Path, given: Handover) -> list[BlockDevice]:
    """Open every disk of a machine that will run."""
    devices: list[BlockDevice] = []
    for number, disk in enumerate(spec.all_disks):
        files: list[BlockFile] = []
        if disk.path is not None:
            files.append(BlockFile(_open(disk, disk.path, given), disk.format))
            if disk.format is DiskFormat.QCOW2:
                qcow2.check_alone(disk.path)
        if not disk.read_only:
            *below, top = layers(folder, number)
            for path in (*below, top):  # a hypervisor could write them
                qcow2.check_alone(path)
            files += [BlockFile(given.open(path), DiskFormat.QCOW2) for path in below]
            # For reading only from the day on which another layer lies on it.
            name = given.open(top, os.O_RDWR, os.O_RDONLY)
            files.append(BlockFile(name, DiskFormat.QCOW2))
        devices.append(BlockDevice(disk.serial, disk.read_only, files))
    return devices


def stand_ins(spec: MachineSpec) -> list[BlockDevice]:
    """Give disks of the right size and nothing on them, for a QEMU that never runs the machine."""
    return [
        BlockDevice(disk.serial, disk.read_only, [BlockFile(None, size=_size(disk))])
        for disk in spec.all_disks
    ]


async def freeze(qmp: Qmp, spec: MachineSpec, folder: Path, saved: Path) -> None:
    """Give what a machine has written until now to a snapshot; it writes on in new layers.

    The machine stands still. Raises: MachineFailed.
    """
    if not any(_writable(spec)):
        return
    tops = await find_tops(qmp)
    for number, path in lay_next(spec, folder, tops).items():
        await _lay_over(qmp, number, tops[number], path)
    give(spec, folder, tops, saved)


def lay_next(spec: MachineSpec, folder: Path, tops: Mapping[int, int]) -> dict[int, Path]:
    """Make the layer of each disk that comes over the one which its machine writes now."""
    made: dict[int, Path] = {}
    for number, disk in _writable(spec):
        top = tops[number]
        path = made[number] = _layer(folder, number, top + 1)
        # One that a daemon left which died before QEMU had it.
        path.unlink(missing_ok=True)
        qcow2.create(path, _size(disk))
        if disk.volume is not None:
            lent = _layer(disk.volume, 0, top + 1)
            lent.unlink(missing_ok=True)
            os.link(path, lent)
    return made


def give(spec: MachineSpec, folder: Path, tops: Mapping[int, int], saved: Path) -> None:
    """Let a snapshot have the layers up to those that were written last."""
    for number, _ in _writable(spec):
        for layer in layers(folder, number):
            if index_of(layer) <= tops[number]:
                os.link(layer, saved / layer.name)


async def slow_down(qmp: Qmp, spec: MachineSpec) -> None:
    """Hold each disk to the machine's limits."""
    operations, bytes_ = spec.limits.disk_operations, spec.limits.disk_bytes
    if operations is None and bytes_ is None:
        return
    for number in range(len(spec.all_disks)):
        await throttle(qmp, number, operations or 0, bytes_ or 0)


async def throttle(qmp: Qmp, number: int, operations: int, bytes_: int) -> None:
    """Let a disk pass so much in a second, reads and writes together; zero is no limit."""
    both = {"bps_rd": 0, "bps_wr": 0, "iops_rd": 0, "iops_wr": 0}
    limits = {"iops": operations, "bps": bytes_, **both}
    await qmp.execute("block_set_io_throttle", {"id": device_name(number), **limits})


def _take_up(volume: Path, folder: Path, number: int) -> None:
    for path in layers(folder, number):
        path.unlink()
    for path in layers(volume, 0):
        os.link(path, _layer(folder, number, index_of(path)))


def most_bytes(spec: MachineSpec) -> int:
    """Return how large the largest file may become that a machine writes to."""
    sizes = [_size(disk) for _, disk in _writable(spec)]
    return max((size + size // _OVERHEAD_SHARE + _MIB for size in sizes), default=0)


async def find_tops(qmp: Qmp) -> dict[int, int]:
    """Ask QEMU which layer of each disk is the top one."""
    answer = await qmp.execute("query-named-block-nodes", {"flat": True})
    tops: dict[int, int] = {}
    for node in answer if isinstance(answer, list) else []:
        name = node.get("node-name") if isinstance(node, dict) else None
        if isinstance(name, str) and (found := re.fullmatch(r"disk(\d+)-(\d+)", name)):
            number, index = int(found[1]), int(found[2])
            tops[number] = max(index, tops.get(number, 0))
    return tops


async def _lay_over(qmp: Qmp, number: int, top: int, path: Path) -> None:
    handed: JsonValue = None
    for flags in (os.O_RDWR, os.O_RDONLY):
        fd = os.open(path, flags | os.O_CLOEXEC)
        try:
            same_set = {"fdset-id": handed} if handed is not None else {}
            answer = await qmp.execute("add-fd", same_set, fds=[fd])
        finally:
            os.close(fd)
        handed = answer.get("fdset-id") if isinstance(answer, dict) else None
    file: JsonValue = {"driver": "file", "filename": f"/dev/fdset/{handed}", "locking": "off"}
    node, below = node_name(number, top + 1), node_name(number, top)
    added: dict[str, JsonValue] = {"driver": "qcow2", "node-name": node, "file": file}
    await qmp.execute("blockdev-add", {**added, "backing": None})
    await qmp.execute("blockdev-snapshot", {"node": below, "overlay": node})


def _writable(spec: MachineSpec) -> Iterator[tuple[int, Disk]]:
    for number, disk in enumerate(spec.all_disks):
        if not disk.read_only:
            yield number, disk


def _open(disk: Disk, path: Path, given: Handover) -> str:
    try:
        return given.open(path)
    except OSError as error:
        raise errors.InvalidInput(
            f"the file of disk {disk.serial} cannot be opened: {error.strerror}: {path}"
        ) from error


def _layer(folder: Path, number: int, index: int) -> Path:
    return folder / f"disk{number}.{index}.qcow2"


def index_of(layer: Path) -> int:
    """Return which layer of its disk a file is; -1 for one that is none."""
    found = _LAYER.fullmatch(layer.name)
    return int(found[2]) if found else -1


def _size(disk: Disk) -> int:
    """Return the size of a disk in bytes. Raises: InvalidInput when nothing says it."""
    if disk.size_mib is not None and not disk.read_only:
        size = disk.size_mib * _MIB
    elif disk.path is None:
        raise errors.InvalidInput(f"disk {disk.serial} has neither a file nor a size")
    elif disk.format is DiskFormat.QCOW2:
        size = qcow2.size_of(disk.path)
    else:
        size = disk.path.stat().st_size
    if not 0 < size <= qcow2.MAX_BYTES:
        raise errors.InvalidInput(
            f"disk {disk.serial} has {size} bytes; allowed are 1 to {qcow2.MAX_BYTES}"
        )
    return size + -size % _SECTOR
