"""Saving a machine of libvirt's: its memory goes into a file, and what it writes into new layers.

The file is one of libvirt's own: a head that says how long what follows is, the document of the
machine that was saved, and all that QEMU has sent. A clone is started from a copy with a document
of its own. libvirt would keep a list of such snapshots; ours are ours to list.
"""

from __future__ import annotations

import re
import shutil
import struct
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import anyio
import anyio.to_thread

from microvm_orchestrator import errors
from microvm_orchestrator.machine.libvirt import domain
from microvm_orchestrator.machine.libvirt.library import SnapshotCreate
from microvm_orchestrator.machine.qemu import disks
from microvm_orchestrator.machine.qemu.snapshots import Origin
from microvm_orchestrator.machine.ssh.known import HOST_KEY
from microvm_orchestrator.model.machine import MachineState

if TYPE_CHECKING:
    from collections.abc import Callable

    from microvm_orchestrator.machine.base import Snapshot
    from microvm_orchestrator.machine.libvirt.library import Domain
    from microvm_orchestrator.machine.libvirt.machine import LibvirtMachine

# What a file of libvirt's begins with, as its `qemu_saveimage.h` has it: what it is, its version,
# how long the documents are, whether the machine ran, how the rest is packed, where the second
# document begins, and room.
_HEAD = struct.Struct("=16sIIIII56x")
_MAGIC = b"LibvirtQemudSave"
_VERSION = 2
_UNPACKED = 0
# Far above any real one.
_MAX_DOCUMENTS = 4 << 20
_CHUNK = 1 << 24
# In a machine's folder: its own keys, if it was given any.
KEYS = "keys"
_LAYER = re.compile(r"disk(\d+)\.\d+\.qcow2")
_HOW = SnapshotCreate.NO_METADATA | SnapshotCreate.REUSE_EXT | SnapshotCreate.ATOMIC
_DISKS = SnapshotCreate.DISK_ONLY


async def save(
    machine: LibvirtMachine,
    looking: anyio.Lock,
    snapshot_id: str,
    *,
    memory: bool,
    on_taken: Callable[[], None],
) -> Snapshot:
    """Save a machine, which goes on as it was. `looking` is held until all of it is taken.

    Raises: AlreadyExists, StateForbids, MachineFailed; nothing is left of the snapshot then.
    """
    saved = machine.host.saved(snapshot_id)
    saved.create()
    folder = machine.record.folder
    try:
        async with looking:
            tops = tops_of(await machine.ask(lambda found: found.XMLDesc()))
            fresh = await anyio.to_thread.run_sync(disks.lay_next, machine.spec, folder, tops)
            state = saved.state if memory else None
            document = domain.write_snapshot(snapshot_id, state, len(machine.spec.all_disks), fresh)

            def freeze(found: Domain) -> None:
                found.snapshotCreateXML(document, _HOW if memory else _HOW | _DISKS)

            began = anyio.current_time()
            await machine.tell(freeze)
            still_s = anyio.current_time() - began if machine.state is MachineState.RUNNING else 0.0
        on_taken()
        await anyio.to_thread.run_sync(disks.give, machine.spec, folder, tops, saved.folder)
        await anyio.to_thread.run_sync(give_keys, folder, saved.folder)
        spec = disks.without_volumes(machine.spec)
        origin = Origin(spec, machine.accel, machine.host.engine, still_s, memory)
        return await saved.seal(origin, None)
    except BaseException:
        saved.discard()
        raise


def give_keys(source: Path, target: Path) -> None:
    """Let a machine be known by the host key of another, which its guest has in its memory."""
    for name in (KEYS, HOST_KEY):
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, dirs_exist_ok=True)
        elif (source / name).exists():
            shutil.copy2(source / name, target / name)


def tops_of(document: str) -> dict[int, int]:
    """Read from the document of a machine that runs which layer of each disk it writes to."""
    tops: dict[int, int] = {}
    for source in ET.fromstring(document).iterfind("devices/disk/source"):  # noqa: S314 # libvirt wrote it
        path = Path(source.get("file", ""))
        if found := _LAYER.fullmatch(path.name):
            tops[int(found[1])] = disks.index_of(path)
    return tops


def copy_for(document: str, source: Path, target: Path) -> None:
    """Copy what was saved for a machine that this document is of. Not for the event loop.

    Raises: SnapshotDamaged.
    """
    with source.open("rb") as old, target.open("xb") as new:
        head = old.read(_HEAD.size)
        if len(head) < _HEAD.size:
            raise errors.SnapshotDamaged(f"{source} is cut off")
        magic, version, length, _, packed, second = _HEAD.unpack(head)
        if (magic, version, packed) != (_MAGIC, _VERSION, _UNPACKED) or length > _MAX_DOCUMENTS:
            raise errors.SnapshotDamaged(
                f"{source} is not as this program knows what libvirt saves",
                hint="snapshot_image_format in libvirt's qemu.conf has to be raw",
            )
        documents = old.read(length)
        cookie = documents[second:].rstrip(b"\0") + b"\0" if second else b""
        first = document.encode() + b"\0"
        written = first + cookie
        new.write(
            _HEAD.pack(_MAGIC, _VERSION, len(written), 0, _UNPACKED, len(first) if cookie else 0)
        )
        new.write(written)
        shutil.copyfileobj(old, new, _CHUNK)
