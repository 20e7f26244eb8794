"""Snapshots on the disk: what belongs to one, when it is complete, whether it is still the same.

    <snapshots>/<id>/ram              the guest's memory, mapped by clones as their own copy
    <snapshots>/<id>/state            devices and processors; if libvirt wrote it, the memory
    <snapshots>/<id>/disk*.qcow2      what it had written to its disks (disks.py)
    <snapshots>/<id>/manifest.json    written last: without it there is no snapshot

A digest of each file is taken once. A clone looks only whether the files have been touched since,
which the kernel's change time tells of whatever somebody sets the others to; `verify` reads it all.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import anyio
from pydantic import TypeAdapter, ValidationError

from microvm_orchestrator import errors
from microvm_orchestrator.machine.base import Accel, MachineSpec, Snapshot
from microvm_orchestrator.machine.digest import sparse_sha256
from microvm_orchestrator.together import together

RAM = "ram"
STATE = "state"
_MANIFEST = "manifest.json"
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Stamp:
    """How a file looks from outside. Whoever changes the file changes this."""

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


@dataclass(frozen=True, slots=True)
class Origin:
    """The machine that was saved."""

    spec: MachineSpec
    accel: Accel
    # Which QEMU saved it; no other is sure to load it.
    engine: str
    pause_s: float
    # Whether its memory is part of what was saved.
    memory: bool = True


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a snapshot is."""

    origin: Origin
    sha256: dict[str, str]
    stamps: dict[str, Stamp]


_MANIFESTS = TypeAdapter(Manifest)


class SavedMachine:
    """The folder of one snapshot."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ram = folder / RAM
        self.state = folder / STATE
        # Where the QEMU that writes it has its sockets and messages.
        self.scribe = folder / "scribe"

    @property
    def snapshot_id(self) -> str:
        return self.folder.name

    def create(self) -> None:
        """Make its folder. Raises: AlreadyExists."""
        try:
            self.folder.mkdir(mode=0o700, parents=True)
        except FileExistsError:
            raise errors.AlreadyExists(f"there is a snapshot {self.snapshot_id}") from None
        self.scribe.mkdir(mode=0o700)

    async def seal(
        self,
        origin: Origin,
        owner: tuple[int, int] | None,
        known: Mapping[str, str] = MappingProxyType({}),
    ) -> Snapshot:
        """Make it one that is there, and all of it on the disk; its files belong to `owner`.

        Digests that are not known yet are taken while the disk takes what it is to have.
        """
        sha256: dict[str, str] = {}

        async def read() -> None:
            sha256.update(await anyio.to_thread.run_sync(self._digests, known))

        async def settle() -> None:
            await anyio.to_thread.run_sync(self._settle, owner)

        await together([read, settle])
        return await anyio.to_thread.run_sync(self._complete, origin, sha256)

    def _settle(self, owner: tuple[int, int] | None) -> None:
        shutil.rmtree(self.scribe)
        for path in self._files():
            # A QEMU before 8.2 wants to open for writing what it maps as its own copy.
            path.chmod(0o600)
            if owner is not None:
                os.chown(path, *owner)
            _sync(path)

    def _digests(self, known: Mapping[str, str]) -> dict[str, str]:
        return {path.name: known.get(path.name) or sparse_sha256(path) for path in self._files()}

    def _complete(self, origin: Origin, sha256: dict[str, str]) -> Snapshot:
        manifest = Manifest(origin, sha256, self._stamps())
        self._write(manifest)
        return self._snapshot(manifest)

    def find(self) -> Snapshot | None:
        manifest = self.read()
        return None if manifest is None else self._snapshot(manifest)

    def read(self) -> Manifest | None:
        """Return what it is; None when it is not complete."""
        try:
            return _MANIFESTS.validate_json((self.folder / _MANIFEST).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValidationError as error:
            raise errors.SnapshotDamaged(
                f"the manifest of snapshot {self.snapshot_id} cannot be read"
            ) from error

    def check(self, engine: str) -> Manifest:
        """Return the manifest of untouched files. Raises: NotFound, SnapshotDamaged."""
        manifest = self.read()
        if manifest is None:
            raise errors.NotFound(f"there is no snapshot {self.snapshot_id}")
        # Any QEMU can boot from disks.
        if manifest.origin.memory and manifest.origin.engine != engine:
            raise errors.SnapshotDamaged(
                f"snapshot {self.snapshot_id} was saved by another QEMU than this one",
                hint="save the machine anew",
            )
        if manifest.stamps != self._stamps():
            self.verify(manifest)
        return manifest

    def verify(self, manifest: Manifest) -> None:
        """Read all of it; good files that look touched are known again by their new looks.

        Not for the event loop. Raises: SnapshotDamaged.
        """
        for name, wanted in manifest.sha256.items():
            path = self.folder / name
            if not path.is_file() or sparse_sha256(path) != wanted:
                raise errors.SnapshotDamaged(
                    f"the file {name} of snapshot {self.snapshot_id} is not what was saved"
                )
        self._write(replace(manifest, stamps=self._stamps()))

    def remove(self) -> None:
        """Take it away; who has mapped its memory keeps it until the end.

        It is none any more from before the first of its files goes. Raises: Unavailable.
        """
        try:
            (self.folder / _MANIFEST).unlink(missing_ok=True)
            # A file may go by itself meanwhile, as sockets do; what stays says why.
            shutil.rmtree(self.folder, ignore_errors=True)
            if self.folder.exists():
                shutil.rmtree(self.folder)
        except OSError as error:
            raise errors.Unavailable(
                f"the files of snapshot {self.snapshot_id} cannot be removed: {error.strerror}"
            ) from error

    def discard(self) -> None:
        """Take away what did not come about. What stays is none, and the next daemon's to sweep."""
        with suppress(errors.Unavailable):
            self.remove()

    def _files(self) -> list[Path]:
        named = (RAM, STATE)
        return sorted(
            path for path in self.folder.iterdir() if path.name in named or path.suffix == ".qcow2"
        )

    def _stamps(self) -> dict[str, Stamp]:
        stamps: dict[str, Stamp] = {}
        for path in self._files():
            stat = path.stat()
            # A layer of a disk is linked to by each who has it, and that changes its change time.
            changed = 0 if path.suffix == ".qcow2" else stat.st_ctime_ns
            stamps[path.name] = Stamp(stat.st_ino, stat.st_size, stat.st_mtime_ns, changed)
        return stamps

    def _write(self, manifest: Manifest) -> None:
        fresh = self.folder / (_MANIFEST + ".new")
        with fresh.open("wb") as file:
            file.write(_MANIFESTS.dump_json(manifest))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self.folder / _MANIFEST)
        _sync(self.folder)

    def _snapshot(self, manifest: Manifest) -> Snapshot:
        stats = [path.stat() for path in self._files()]
        # What somebody else has as well would not go with it.
        blocks = sum(stat.st_blocks for stat in stats if stat.st_nlink == 1)
        return Snapshot(
            snapshot_id=self.snapshot_id,
            path=self.folder,
            spec=manifest.origin.spec,
            memory=manifest.origin.memory,
            pause_s=manifest.origin.pause_s,
            unique_mib=blocks * 512 / _MIB,
            sha256=manifest.sha256,
        )


def check_fits(manifest: Manifest, spec: MachineSpec) -> None:
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


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
