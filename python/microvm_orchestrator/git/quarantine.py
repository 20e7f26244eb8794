"""Where objects wait until they are known to be good: a folder of the mirror that nobody reads.

A git given its variables writes there and sees the mirror's objects as well. `admit` moves whole
packs into the mirror, in the order in which a reader that comes in between finds nothing half done;
everything else goes with the folder. Above stand incoming.py and uncommitted.py.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from microvm_orchestrator.git.command import objects_at

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from microvm_orchestrator.git.mirror import Mirror
    from microvm_orchestrator.git.names import Oid

# Kept in step with what `Mirror.recover` sweeps.
PREFIX = "incoming-"
# Readers find a pack by its index, so that comes last.
_ORDER = {".pack": 0, ".rev": 1, ".idx": 2}


@dataclass(frozen=True, slots=True)
class Quarantine:
    """A folder for what is not yet believed, with room for objects in it."""

    folder: Path
    mirror: Path

    @property
    def objects(self) -> Path:
        return self.folder / "objects"

    @property
    def env(self) -> dict[str, str]:
        """What lets a git write here and read from the mirror too."""
        return self.env_with()

    def env_with(self, *others: Path) -> dict[str, str]:
        """Make the same with folders of objects that can be read beside the mirror's."""
        return objects_at(self.objects, self.mirror / "objects", *others)

    def packs(self) -> list[Path]:
        """List the packs in here, each by its index."""
        return sorted((self.objects / "pack").glob("pack-*.idx"))

    def release(self) -> list[Path]:
        """Move the packs into the mirror, and tell which files it did not have before."""
        into = self.mirror / "objects" / "pack"
        into.mkdir(exist_ok=True)
        files = [path for path in (self.objects / "pack").iterdir() if path.suffix in _ORDER]
        moved: list[Path] = []
        try:
            for path in sorted(files, key=lambda path: _ORDER[path.suffix]):
                target = into / path.name
                # A pack is named by what is in it: one of that name is this one.
                if not target.exists():
                    path.rename(target)
                    moved.append(target)
            _sync(into)
        except BaseException:
            _expel(moved)
            raise
        return moved


@asynccontextmanager
async def quarantine(mirror: Mirror) -> AsyncGenerator[Quarantine]:
    """Make a folder for objects that are not yet believed; it goes when the block is left."""
    make = partial(tempfile.mkdtemp, prefix=PREFIX, dir=mirror.path)
    folder = Path(await anyio.to_thread.run_sync(make))
    try:
        made = Quarantine(folder, mirror.path)
        await anyio.to_thread.run_sync((made.objects / "pack").mkdir, 0o777, True)  # noqa: FBT003 - run_sync passes no names
        yield made
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(shutil.rmtree, folder)


async def admit(mirror: Mirror, held: Quarantine, ref: str, oid: Oid, expect: Oid | None) -> None:
    """Let the mirror have the packs and a ref of ours stand at what they brought; both or neither.

    Raises: VersionMoved when the ref stands elsewhere than expected.
    """
    async with mirror.lock:
        # Cancelled in between, the mirror would keep what nobody has asked for.
        with anyio.CancelScope(shield=True):
            moved = await anyio.to_thread.run_sync(held.release)
            try:
                await mirror.keep(ref, oid, expect)
            except BaseException:
                await anyio.to_thread.run_sync(_expel, moved)
                raise


def _expel(moved: Sequence[Path]) -> None:
    """Take admitted files back, in the order in which nobody finds an index without its pack."""
    for path in reversed(moved):
        path.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
