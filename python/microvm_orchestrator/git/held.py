"""Hostile objects in quarantine: what they may be, and the only git that touches them.

It runs under limits of the kernel, because no setting bounds what a pack can make git allocate.
Whatever it ends with is told as a refusal of what came, cleaned of what a terminal would obey;
a full disk is not the guest's fault and is told as it is. Above stand incoming.py and its checks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio.to_thread

from microvm_orchestrator import errors, proc
from microvm_orchestrator.git.command import Limits, git

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path
    from typing import IO

    from microvm_orchestrator.git.mirror import Mirror
    from microvm_orchestrator.git.names import Oid
    from microvm_orchestrator.git.quarantine import Quarantine

_SETTINGS = {
    # What is mapped counts as memory, so packs are mapped in small parts.
    "core.packedGitWindowSize": "16m",
    "core.packedGitLimit": "256m",
    # Larger ones are read in parts, unless they come as differences.
    "core.bigFileThreshold": "32m",
    "core.deltaBaseCacheLimit": "64m",
}
# Mapped whole, whatever their size.
_MAPPED = (
    "pack/*.idx",
    "pack/*.rev",
    "pack/*.bitmap",
    "pack/multi-pack-index*",
    "info/commit-graph*",
)
_MAX_REASON = 300


@dataclass(frozen=True, slots=True)
class Room:
    """How much one bundle may bring, and how much it may cost to find out."""

    bundle_bytes: int = 1 << 30
    objects: int = 200_000
    commits: int = 10_000
    parents: int = 64
    # Of a commit, most of which is its message.
    commit_bytes: int = 1 << 20
    blob_bytes: int = 256 << 20
    # Of all objects, unpacked.
    unpacked_bytes: int = 4 << 30
    # Of all new trees; a tree has about forty bytes for a name.
    tree_bytes: int = 64 << 20
    # Of trees that were here before and are part of new ones.
    known_tree_bytes: int = 128 << 20
    # In the work tree of any commit.
    files: int = 2_000_000
    path_bytes: int = 4096
    depth: int = 200
    memory_bytes: int = 3 << 29
    cpu_s: int = 300


@dataclass(slots=True)
class Held:
    """A bundle in quarantine, and what it is judged by."""

    mirror: Mirror
    folder: Quarantine
    # The commits whose history the guest was given.
    roots: tuple[Oid, ...]
    room: Room
    # Of the mirror's indices, which every git here maps.
    mapped_bytes: int
    # What came in the pack, and what git added to it from the mirror because differences need it.
    came: list[Oid] = field(default_factory=list["Oid"])
    added: list[Oid] = field(default_factory=list["Oid"])

    @classmethod
    async def make(
        cls, mirror: Mirror, folder: Quarantine, roots: tuple[Oid, ...], room: Room
    ) -> Held:
        mapped = await anyio.to_thread.run_sync(_mapped, mirror.path / "objects")
        return cls(mirror, folder, roots, room, mapped)

    async def git(
        self,
        *words: str,
        stdin: bytes | IO[bytes] = b"",
        stdout: int | IO[bytes] = proc.PIPE,
        cap: int = proc.STDOUT_CAP,
        ok: Collection[int] = (0,),
        cpu_s: int | None = None,
    ) -> proc.Finished:
        """Raises: BundleRefused when git ends badly or wants more than it may have."""
        room = self.room
        limits = Limits(
            memory_bytes=room.memory_bytes + self.mapped_bytes,
            cpu_s=cpu_s or room.cpu_s,
            # Git adds to a pack what its differences need.
            file_bytes=2 * room.bundle_bytes + room.blob_bytes,
        )
        try:
            return await git(
                *words,
                at=self.mirror.path,
                stdin=stdin,
                stdout=stdout,
                env=self.folder.env,
                settings=_SETTINGS,
                limits=limits,
                cap=cap,
                # Of the clock; a busy host is not the guest's doing.
                timeout_s=4 * (cpu_s or room.cpu_s),
                ok=ok,
            )
        except errors.CommandFailed as error:
            if "No space left on device" in error.stderr or error.status == 127:
                raise
            raise errors.BundleRefused(f"git {words[0]} refused it: {_reason(error)}") from error


def listed(oids: Collection[Oid]) -> bytes:
    """Write object names as git reads them."""
    return "".join(f"{oid}\n" for oid in oids).encode()


def _reason(error: errors.CommandFailed) -> str:
    if error.status is None:
        return "it took too long"
    if error.status < 0:
        return f"it needed more than it may have (signal {-error.status})"
    said = [line for line in error.stderr.splitlines() if line.strip()] or ["no reason given"]
    text = said[-1].removeprefix("fatal: ").removeprefix("error: ")
    # `fatal: fsck error in packed object` stands below the line that says which.
    found = next((line.removeprefix("error: ") for line in said if "object " in line), text)
    whole = text if found == text else f"{found}: {text}"
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in whole)[
        :_MAX_REASON
    ]


def _mapped(objects: Path) -> int:
    return sum(path.stat().st_size for pattern in _MAPPED for path in objects.glob(pattern))
