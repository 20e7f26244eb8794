"""What a guest sends back, from bytes of an attacker to a ref of ours.

    header        read by us: one ref, few prerequisites, all of them given to the guest
    pack          taken apart by `git index-pack --strict` in a quarantine, under limits of the
                  kernel; what it says is wrong is wrong
    content       counts, sizes, depths and names are what a work tree can bear (`content.py`)
    connection    everything the tip needs is there, and nothing of it from elsewhere in the mirror
                  than what the guest was given (`origin.py`)

Only then the pack moves into the mirror and `refs/tasks/<id>` to the tip, both or neither. A
refusal is a sentence, and leaves nothing. Nothing of what came is ever checked out or run here.
Above stands whoever ends a run; below, mirror.py and quarantine.py.
"""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING

import anyio.to_thread

from microvm_orchestrator import errors
from microvm_orchestrator.git import content, header, names, origin
from microvm_orchestrator.git.held import Held, Room
from microvm_orchestrator.git.names import Oid
from microvm_orchestrator.git.quarantine import admit, quarantine

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from typing import IO

    from microvm_orchestrator.git.header import Header
    from microvm_orchestrator.git.mirror import Mirror

_PACK_HEADER = 12
_PACK_VERSIONS = (2, 3)
# Of a processor, beside a second for each MiB: ten times what git takes for honest packs.
_INDEX_S = 60


@dataclass(frozen=True, slots=True)
class Taken:
    """What came in."""

    tip: Oid
    # Those the base does not have.
    commits: int
    # False: the guest wrote its history anew, and a merge goes from `merge_base`.
    base_is_ancestor: bool
    # None: the two have nothing in common.
    merge_base: Oid | None


async def take(
    mirror: Mirror,
    file: Path,
    *,
    ref: str,
    base: Oid | None,
    given: Sequence[Oid] = (),
    expect: Oid | None = None,
    room: Room | None = None,
) -> Taken:
    """Take a bundle in, if it is good, and let `ref` stand at its tip.

    The guest started from `base`, None being an empty repository, and may also build on the commits
    `given`. The file is in a folder that no guest can write, and is left there.

    Raises: BundleRefused with what is wrong; VersionMoved when `ref` is not where it is expected.
    """
    room = room or Room()
    if (found := await mirror.find(ref)) != expect:
        raise errors.VersionMoved(f"{ref} stands at {found or 'nothing'} now")
    roots = dict.fromkeys(map(names.as_oid, [*([base] if base else []), *given]))
    async with _opened(file, room) as (bundle, size), quarantine(mirror) as folder:
        claimed = await anyio.to_thread.run_sync(header.read, bundle)
        held = await Held.make(mirror, folder, tuple(roots), room)
        await origin.check_header(held, claimed)
        await _index(held, claimed, bundle, size)
        await content.check(held, base)
        await origin.check(held, claimed)
        await _count(held, claimed)
        taken = await _compare(held, claimed.tip, base)
        await admit(mirror, folder, ref, claimed.tip, expect)
        return taken


@asynccontextmanager
async def _opened(path: Path, room: Room) -> AsyncGenerator[tuple[IO[bytes], int]]:
    """Open a plain file that is not too large; a link or a pipe is none.

    Unbuffered, because git goes on reading where we stop.
    """

    def open_plain() -> IO[bytes]:
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise errors.BundleRefused(f"it cannot be opened: {error.strerror}") from error
        if not S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise errors.BundleRefused("it is no plain file")
        return os.fdopen(handle, "rb", buffering=0)

    file = await anyio.to_thread.run_sync(open_plain)
    with file:
        size = os.fstat(file.fileno()).st_size
        if size > room.bundle_bytes:
            raise errors.BundleRefused(f"it is {size} bytes long and may be {room.bundle_bytes}")
        yield file, size


async def _index(held: Held, claimed: Header, bundle: IO[bytes], size: int) -> None:
    """Take the pack apart, which git does once and keeps.

    Raises: BundleRefused.
    """
    start = bundle.tell()
    head = os.pread(bundle.fileno(), _PACK_HEADER, start)
    count = int.from_bytes(head[8:])
    if len(head) < _PACK_HEADER or head[:4] != b"PACK":
        raise errors.BundleRefused("there is no pack behind its header")
    if int.from_bytes(head[4:8]) not in _PACK_VERSIONS:
        raise errors.BundleRefused("its pack is of a version that git does not have")
    if not 0 < count <= held.room.objects:
        raise errors.BundleRefused(
            f"its pack says that it has {count} objects; one has from 1 to {held.room.objects}"
        )
    limit = f"--max-input-size={held.room.bundle_bytes}"
    words = ["index-pack", "--stdin", "--fix-thin", "--strict", "--threads=2", limit]
    cpu_s = min(_INDEX_S + (size >> 20), held.room.cpu_s)
    await held.git(*words, stdin=bundle, cpu_s=cpu_s)
    # What git adds goes where the digest at the end of the pack was.
    end = size - start - claimed.object_format.digits // 2
    [index] = held.folder.packs()
    with await anyio.to_thread.run_sync(index.open, "rb") as file:
        words = ["show-index", f"--object-format={claimed.object_format}"]
        # Offset, name and checksum of each; those added are never more than those that came.
        done = await held.git(*words, stdin=file, cap=2 * held.room.objects * 100)
    for line in done.stdout.decode().splitlines():
        offset, oid = line.split()[:2]
        (held.came if int(offset) < end else held.added).append(Oid(oid))


async def _count(held: Held, claimed: Header) -> None:
    """Raises: BundleRefused when the tip has too many commits that its prerequisites do not."""
    room = held.room
    asked = f"{claimed.tip}\n" + "".join(f"^{oid}\n" for oid in claimed.prerequisites)
    words = ["rev-list", "--count", "--stdin"]
    count = int((await held.git(*words, stdin=asked.encode())).stdout)
    if count > room.commits:
        raise errors.BundleRefused(f"it brings {count} commits and may bring {room.commits}")
    parents = f"--min-parents={room.parents + 1}"
    if int((await held.git(*words, parents, stdin=asked.encode())).stdout):
        raise errors.BundleRefused(f"it brings a merge of more than {room.parents} commits")


async def _compare(held: Held, tip: Oid, base: Oid | None) -> Taken:
    if base is None:
        done = await held.git("rev-list", "--count", tip)
        return Taken(tip, int(done.stdout), base_is_ancestor=True, merge_base=None)
    commits = int((await held.git("rev-list", "--count", tip, f"^{base}")).stdout)
    done = await held.git("merge-base", base, tip, ok=(0, 1))
    merge_base = Oid(done.stdout.decode().strip()) if done.status == 0 else None
    return Taken(tip, commits, merge_base == base, merge_base)
