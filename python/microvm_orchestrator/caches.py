"""Caches: disks that outlive the machines they are lent to, kept apart by trust domain.

    <folder>/<domain>/<number>/disk0.*.qcow2    what was written to it (machine/qemu/disks.py)
    <folder>/<domain>/<number>/use.json         whose it is; touched whenever it is used

A domain names who may read what others left: a repository, a team. One machine at a time has a
volume, and no volume ever serves two domains. What a machine used first is its home: it comes back
there whenever that is free, however often it had to go elsewhere. Who holds what is known by the
name of the machine alone and is in memory only; the machines tell it again after a restart. Above
are the machines; below, the files.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import mkdtemp
from urllib.parse import quote

import anyio
import anyio.to_thread
from pydantic import BaseModel, ValidationError

from microvm_orchestrator import errors, log
from microvm_orchestrator.machine.base import Disk
from microvm_orchestrator.machine.qemu import disks

# By its serial a guest knows the disk.
_SERIAL = "cache"
_USE = "use.json"
_NEW = ".new-"
# Every snapshot of a machine puts a layer on the cache it has. So many are read one after another;
# with more, the volume is made anew.
_MOST_LAYERS = 16
_log = log.get(__name__)


class _Use(BaseModel, frozen=True):
    domain: str
    # The machine that comes back to it.
    home: str | None = None


@dataclass(frozen=True, slots=True)
class Volume:
    """One disk."""

    domain: str
    number: int
    folder: Path
    size_mib: int
    # What it takes on the disk.
    used_mib: float
    used_at: datetime
    home: str | None
    # The machine that has it now.
    holder: str | None

    @property
    def name(self) -> str:
        return f"{self.folder.parent.name}/{self.number}"

    @property
    def disk(self) -> Disk:
        return Disk(_SERIAL, read_only=False, size_mib=self.size_mib, volume=self.folder)


class Caches:
    """The cache disks below one folder."""

    def __init__(self, folder: Path, *, size_mib: int, count: int) -> None:
        self._folder = folder
        self._size_mib = size_mib
        self._count = count
        # By machine, the name of its volume.
        self._held: dict[str, str] = {}
        # Files are looked at and changed by one at a time.
        self._lock = anyio.Lock()
        self._released = anyio.Event()

    async def volumes(self) -> list[Volume]:
        """Give every volume, by domain and number."""
        async with self._lock:
            return await anyio.to_thread.run_sync(self._read)

    async def take(self, machine_id: str, domain: str) -> Volume:
        """Lend a volume of a domain to a machine, until it is released by the machine's name.

        Raises: NoRoom when all there may be are in use.
        """
        async with self._lock:
            volume = await anyio.to_thread.run_sync(self._choose, machine_id, domain)
            self._held[machine_id] = volume.name
            return volume

    def keep(self, machine_id: str, name: str) -> None:
        """Take note of the volume of a machine that runs already."""
        self._held[machine_id] = name

    def release(self, machine_id: str) -> None:
        """Take back what a machine has; harmless when repeated."""
        name = self._held.pop(machine_id, None)
        if name is not None:
            with contextlib.suppress(OSError):
                os.utime(self._folder / name / _USE)
            self._released.set()
            self._released = anyio.Event()

    @property
    def released(self) -> anyio.Event:
        """Set when the next machine gives its volume back; look here before asking for one."""
        return self._released

    async def forget(self, machine_id: str) -> None:
        """A machine will not come back: its home is anybody's of the domain."""
        async with self._lock:
            for volume in await anyio.to_thread.run_sync(self._read):
                if volume.home == machine_id:
                    await anyio.to_thread.run_sync(
                        _write, volume.folder, _Use(domain=volume.domain)
                    )

    async def remove(self, domain: str, number: int | None = None) -> list[Volume]:
        """Remove a domain's volumes, or one of them. Raises: NotFound, StateForbids."""
        async with self._lock:
            found = [
                volume
                for volume in await anyio.to_thread.run_sync(self._read)
                if volume.domain == domain and number in {None, volume.number}
            ]
            if not found:
                raise errors.NotFound(f"there is no such cache of {domain}", hint="see cache_list")
            if busy := [volume.holder for volume in found if volume.holder]:
                raise errors.StateForbids(
                    f"the cache of {domain} is used by {', '.join(busy)}", hint="stop these first"
                )
            for volume in found:
                await anyio.to_thread.run_sync(_remove, volume)
            return found

    # Not for the event loop.

    def _read(self) -> list[Volume]:
        # A copy: the event loop goes on giving back meanwhile.
        holders = {name: machine_id for machine_id, name in self._held.copy().items()}
        found: list[Volume] = []
        for folder in self._folder.glob("*/*"):
            if not folder.name.isdecimal() or not disks.layers(folder, 0):
                continue
            use = _use_of(folder)
            if use is None:  # whose it is, nobody knows: nobody gets it
                shutil.rmtree(folder, ignore_errors=True)
                continue
            blocks = sum(path.stat().st_blocks for path in disks.layers(folder, 0))
            found.append(
                Volume(
                    domain=use.domain,
                    number=int(folder.name),
                    folder=folder,
                    size_mib=disks.volume_size_mib(folder),
                    used_mib=blocks * 512 / (1 << 20),
                    used_at=datetime.fromtimestamp((folder / _USE).stat().st_mtime, UTC),
                    home=use.home,
                    holder=holders.get(f"{folder.parent.name}/{folder.name}"),
                )
            )
        return sorted(found, key=lambda volume: (volume.domain, volume.number))

    def _choose(self, machine_id: str, domain: str) -> Volume:
        every = self._read()
        free = [volume for volume in every if volume.domain == domain and volume.holder is None]
        at_home = any(volume.home == machine_id for volume in every if volume.domain == domain)
        # One's own, then nobody's, then that of one who is not there; each the last used first.
        free.sort(key=lambda volume: volume.used_at, reverse=True)
        free.sort(
            key=lambda volume: 0 if volume.home == machine_id else 1 if not volume.home else 2
        )
        for volume in free:
            if len(disks.layers(volume.folder, 0)) > _MOST_LAYERS:
                _remove(volume)
                every.remove(volume)
                continue
            stays = volume.home is None and not at_home
            home = machine_id if stays else volume.home
            _write(volume.folder, _Use(domain=domain, home=home))
            return volume
        self._make_room(every)
        return self._make(domain, None if at_home else machine_id)

    def _make_room(self, every: list[Volume]) -> None:
        idle = sorted(
            (volume for volume in every if volume.holder is None), key=lambda volume: volume.used_at
        )
        too_many = len(every) - self._count + 1
        if too_many > len(idle):
            # By whom is not for everybody who asks.
            raise errors.NoRoom(
                f"All {self._count} caches are in use",
                hint="slot_list shows by whom; stop one of them, or raise machines.cache_count",
            )
        for volume in idle[: max(0, too_many)]:
            _log.info("cache_evicted", domain=volume.domain, number=volume.number)
            _remove(volume)

    def _make(self, domain: str, home: str | None) -> Volume:
        parent = self._folder / quote(domain, safe="@")
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for leftover in parent.glob(_NEW + "*"):
            shutil.rmtree(leftover, ignore_errors=True)
        taken = {path.name for path in parent.iterdir()}
        number = next(n for n in range(1, len(taken) + 2) if str(n) not in taken)
        fresh = Path(mkdtemp(dir=parent, prefix=_NEW))
        disks.make_volume(fresh, self._size_mib)
        _write(fresh, _Use(domain=domain, home=home))
        folder = fresh.rename(parent / str(number))
        return next(volume for volume in self._read() if volume.folder == folder)


def _use_of(folder: Path) -> _Use | None:
    try:
        return _Use.model_validate_json((folder / _USE).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _write(folder: Path, use: _Use) -> None:
    fresh = folder / (_USE + ".new")
    fresh.write_text(use.model_dump_json())
    fresh.replace(folder / _USE)


def _remove(volume: Volume) -> None:
    # Without this file it is nobody's, should the daemon die now.
    (volume.folder / _USE).unlink(missing_ok=True)
    shutil.rmtree(volume.folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # others of the domain stay
        volume.folder.parent.rmdir()
