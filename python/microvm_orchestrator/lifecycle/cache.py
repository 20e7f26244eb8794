"""The histories of large repositories, as disks that are written once and read by many.

    <a repository's mirror>/histories/<commit>.squashfs

A machine that has one has all that its commit reaches, without a copy: its git reads the objects
where they lie, and is sent only what came after. The host writes the disk and no guest can: nothing
that one run leaves reaches another (docs/explanation/git-boundary.md). It is a disk of every slot
at once, so no run waits for the one that has it. A small repository has none: to send it takes less
than a machine of its own, where one stands ready. Above are the steps of a run; below, the
machines, the repos and the git room.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from microvm_orchestrator import errors, log
from microvm_orchestrator.git import history, names
from microvm_orchestrator.git.quarantine import PREFIX
from microvm_orchestrator.images.squashfs import write_squashfs
from microvm_orchestrator.model.records import SYSTEM
from microvm_orchestrator.starting import HISTORY_SERIAL

if TYPE_CHECKING:
    from microvm_orchestrator.git.mirror import Mirror
    from microvm_orchestrator.git.names import Oid
    from microvm_orchestrator.machine.base import Hypervisor
    from microvm_orchestrator.machine.base import Machine as RunningMachine
    from microvm_orchestrator.machines import Machines

_FOLDER = "histories"
_SUFFIX = ".squashfs"
# In the disk, which commit it is of.
_COMMIT = "commit"
# A repository of less is sent whole.
LEAST_BYTES = 16 << 20
# With more than this share of a disk to send beside it, another one is made.
_STALE_SHARE = 8
# Of a repository, beside those that machines have: the usual branch, and another.
_KEPT = 2
_log = log.get(__name__)


def path_of(repos: Path, name: str) -> Path:
    """Find a disk by the name that a machine's record has."""
    mirror, _, commit = name.partition("/")
    return repos / mirror / _FOLDER / f"{commit}{_SUFFIX}"


def held_by(machine: RunningMachine) -> Oid | None:
    """Tell whose history a machine has."""
    for disk in machine.spec.disks:
        if disk.serial == HISTORY_SERIAL and disk.path is not None:
            return names.as_oid(disk.path.stem)
    return None


@dataclass(frozen=True, slots=True)
class _Disk:
    commit: Oid
    path: Path
    size: int


class Histories:
    """The disks of one daemon's repositories."""

    def __init__(
        self, machines: Machines, hypervisor: Hypervisor, least_bytes: int = LEAST_BYTES
    ) -> None:
        self._machines = machines
        self._hypervisor = hypervisor
        self._least_bytes = least_bytes
        # One is made at a time of a repository: others who come for it find it then.
        self._making: defaultdict[Path, anyio.Lock] = defaultdict(anyio.Lock)
        # Named to somebody, and in no machine's record yet.
        self._lent: Counter[Path] = Counter()

    @asynccontextmanager
    async def lend(self, mirror: Mirror, base: Oid) -> AsyncGenerator[str | None]:
        """Name a disk with most of what a run that starts from `base` has to be given.

        It has nothing that is not in the history of `base`, and stays until the block ends, and as
        long as a machine has it. None is for a repository that is sent as quickly; also where no
        disk can be written, which is no reason not to run.
        """
        disk = None
        if await anyio.to_thread.run_sync(_packed, mirror.path) >= self._least_bytes:
            async with self._making[mirror.path]:
                try:
                    disk = await self._find(mirror, base) or await self._make(mirror, base)
                except (OSError, errors.CommandFailed) as error:
                    _log.warning("history_not_made", mirror=mirror.path.name, why=str(error))
                # Nothing is awaited between the lock and this.
                if disk is not None:
                    self._lent[disk.path] += 1
        if disk is None:
            yield None
            return
        try:
            yield f"{mirror.path.name}/{disk.commit}"
        finally:
            self._lent[disk.path] -= 1

    async def _find(self, mirror: Mirror, base: Oid) -> _Disk | None:
        for disk in await anyio.to_thread.run_sync(_disks, mirror.path):
            if await history.is_within(mirror, disk.commit, base):
                lacks = await history.size(mirror, base, disk.commit)
                if lacks <= max(disk.size // _STALE_SHARE, self._least_bytes):
                    # The last used first, for who looks next.
                    await anyio.to_thread.run_sync(os.utime, disk.path)
                    return disk
        return None

    async def _make(self, mirror: Mirror, base: Oid) -> _Disk | None:
        commit: Oid | None = base
        if not await history.is_published(mirror, base):
            # What is uncommitted lies on a commit that others start from too.
            commit = await history.first_parent(mirror, base)
            if commit is None or not await history.is_published(mirror, commit):
                return None
        path = mirror.path / _FOLDER / f"{commit}{_SUFFIX}"
        if await anyio.Path(path).exists():
            # What is uncommitted is large itself; it is sent.
            return _Disk(commit, path, (await anyio.Path(path).stat()).st_size)
        if await history.size(mirror, commit) < self._least_bytes:
            return None  # it is other branches that are large
        fresh = Path(
            await anyio.to_thread.run_sync(
                partial(mkdtemp, prefix=f"{PREFIX}history-", dir=mirror.path)
            )
        )
        try:
            files = await history.export(mirror, commit, fresh)
            await anyio.to_thread.run_sync(_write, path, fresh, files)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(shutil.rmtree, fresh)
        await self._prune(mirror, keep=path)
        return _Disk(commit, path, (await anyio.Path(path).stat()).st_size)

    async def _prune(self, mirror: Mirror, keep: Path) -> None:
        """Remove what was not used for longest, but nothing that a machine may start with."""
        disks = await anyio.to_thread.run_sync(_disks, mirror.path)
        surplus = [disk.path for disk in disks if disk.path != keep][_KEPT - 1 :]
        if not surplus:
            return
        used = await self._used(mirror.path.parent)
        for path in surplus:
            if path not in used and not self._lent[path]:
                path.unlink(missing_ok=True)

    async def _used(self, repos: Path) -> set[Path]:
        machines = await self._machines.visible(SYSTEM)
        used = {path_of(repos, each.history) for each in machines if each.history}
        for name in await self._hypervisor.saved():
            if saved := await self._hypervisor.find_snapshot(name):
                used |= {disk.path for disk in saved.spec.disks if disk.path}
        return used


# Not for the event loop.


def _packed(mirror: Path) -> int:
    found = 0
    for path in (mirror / "objects" / "pack").glob("*.pack"):
        with contextlib.suppress(FileNotFoundError):  # packed anew just now
            found += path.stat().st_size
    return found


def _disks(mirror: Path) -> list[_Disk]:
    """List them, the last used first."""
    found: list[tuple[float, _Disk]] = []
    for path in (mirror / _FOLDER).glob(f"*{_SUFFIX}"):
        about = path.stat()
        disk = _Disk(names.as_oid(path.stem), path, about.st_size)
        found.append((about.st_mtime, disk))
    return [disk for _, disk in sorted(found, key=lambda each: each[0], reverse=True)]


def _write(path: Path, fresh: Path, files: list[Path]) -> None:
    commit = fresh / _COMMIT
    commit.write_text(f"{path.stem}\n")
    path.parent.mkdir(mode=0o700, exist_ok=True)
    with (fresh / "disk").open("xb") as out:
        packs = {f"objects/pack/{file.name}": file for file in files}
        write_squashfs(out, {_COMMIT: commit, **packs})
        out.flush()
        os.fsync(out.fileno())
    (fresh / "disk").rename(path)
