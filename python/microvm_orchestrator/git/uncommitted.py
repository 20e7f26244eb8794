"""What the user has not committed, as a commit of ours on top of theirs.

Their repository stays as it is to the byte: git stages into a copy of the index and writes objects
to a folder of ours (`shadow.py`). What is staged, changed or new is in the snapshot as it lies in
the work tree; ignored files, other repositories in the tree, and files that sparse checkouts leave
out are not.

No clean filter runs, because a repository's configuration may name any program and we may be
another user than its owner. For files kept by Git LFS we make the pointer that LFS would commit
(`lfs.py`); a changed file that is to pass any other filter is refused, since without it what should
be encrypted, say, would leave as it is.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio.to_thread

from microvm_orchestrator import errors
from microvm_orchestrator.git import lfs, shadow
from microvm_orchestrator.git.command import LONG_S, git
from microvm_orchestrator.git.names import Oid
from microvm_orchestrator.git.quarantine import admit, quarantine
from microvm_orchestrator.git.shadow import Changes, Shadow, terminated
from microvm_orchestrator.git.upstream import Kind, Upstream

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from microvm_orchestrator.git.mirror import Mirror

MAX_BYTES = 1 << 28
MAX_FILES = 100_000

# What an index has for a file that is gone, and for a commit of a submodule.
_NO_BLOB = {b"000000", b"160000"}
_MESSAGE = b"Uncommitted work\n"
_IDENTITY = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "microvm-orchestrator"), ("EMAIL", "microvm-orchestrator@host"))
}


@dataclass(frozen=True, slots=True)
class Room:
    """How much a snapshot may bring that is not committed."""

    files: int = MAX_FILES
    size: int = MAX_BYTES


async def snapshot(
    mirror: Mirror,
    of: Upstream,
    ref: str,
    room: Room | None = None,
    *,
    expect: Oid | None = None,
) -> Oid | None:
    """Commit what is not committed to the mirror, keep it as `ref`, and tell its name.

    None: there is nothing that is not committed. Its parent is the commit that is checked out. The
    ref may stand at an earlier snapshot, if that is `expect`.
    Raises: RepoRefused where it cannot be done truly, TooLarge, VersionMoved.
    """
    if of.kind is Kind.BARE:
        raise errors.RepoRefused(f"{of.path} has no work tree, so nothing in it is uncommitted")
    if of.head is not None and not await mirror.has(of.head):
        await mirror.refresh(of.path)
    async with quarantine(mirror) as held:
        folder, staged = held.folder / "shadow", held.folder / "staged"
        await anyio.to_thread.run_sync(_make_folders, folder, staged / "pack")
        theirs = await shadow.make(of.source, folder)
        ours = theirs.storing(held.env_with(staged))
        changes = await ours.changes()
        await _check(ours, changes, room or Room())
        oids = await _staged(ours, changes)
        await _check_size(theirs, changes, oids, room or Room())
        if oids:
            await theirs.git("pack-objects", "--quiet", staged / "pack" / "pack", stdin=oids)
        await _stage(ours, changes)
        tree = Oid((await ours.git("write-tree")).stdout.decode().strip())
        if tree == await _committed(ours):
            return None
        oid = await _commit(ours, tree)
        await _pack(mirror, held.env_with(staged), held.objects, oid, of.head)
        await admit(mirror, held, ref, oid, expect)
        return oid


def _make_folders(*folders: Path) -> None:
    for folder in folders:
        folder.mkdir(parents=True)


async def _check(seen: Shadow, changes: Changes, room: Room) -> None:
    """Raises: TooLarge; RepoRefused when a file would have to pass a filter."""
    top = seen.source.work_tree
    if len(changes.present) > room.files:
        raise errors.TooLarge(f"more than {room.files} files in {top} are not committed")
    for path, name in (await seen.filtered(changes.present)).items():
        if name != lfs.FILTER:
            raise errors.RepoRefused(
                f"{os.fsdecode(path)!a} is to pass the filter {name[:80]!a}, a program that is not "
                "run for a snapshot",
                hint="commit it first",
            )


async def _staged(seen: Shadow, changes: Changes) -> bytes:
    """List what is staged and nowhere else; what was changed since is read from the work tree."""
    elsewhere = {*changes.present, *changes.deleted}
    words = ["diff-index", "--cached", "--raw", "-z", "--no-renames", "--ignore-submodules=dirty"]
    listed = (await seen.git(*words, await _committed(seen))).stdout.split(b"\0")[:-1]
    found: list[bytes] = []
    for facts, path in zip(listed[::2], listed[1::2], strict=True):
        _, mode, _, oid, _ = facts.split()
        if path not in elsewhere and mode not in _NO_BLOB:
            found.append(oid + b"\n")
    return b"".join(found)


async def _check_size(seen: Shadow, changes: Changes, staged: bytes, room: Room) -> None:
    top = seen.source.work_tree

    def measure() -> int:
        return sum(shadow.lstat(top, path).st_size for path in changes.present)

    words = ["cat-file", "--buffer", "--batch-check=%(objectsize)"]
    sizes = (await seen.git(*words, stdin=staged)).stdout.split()
    size = sum(map(int, sizes)) + await anyio.to_thread.run_sync(measure)
    if size > room.size:
        raise errors.TooLarge(
            f"{size} bytes in {top} are not committed; a snapshot takes {room.size}",
            hint="commit what belongs there and let .gitignore name the rest",
        )


async def _stage(seen: Shadow, changes: Changes) -> None:
    """Let the copy of the index have everything."""
    kept = list(await seen.filtered(changes.present))
    plain = set(changes.present).difference(kept)
    await _update(seen, changes.deleted, "--force-remove")
    add = ("--add", "--remove", "--replace")
    await _update(seen, [path for path in changes.present if path in plain], *add)
    # Entered as they are, but not written, and then exchanged for their pointers.
    await _update(seen, kept, *add, "--info-only")
    await _exchange(seen, await seen.pointers(kept))


async def _update(seen: Shadow, paths: Sequence[bytes], *words: str) -> None:
    if paths:
        await seen.git("update-index", "-z", *words, "--stdin", stdin=terminated(paths))


async def _exchange(seen: Shadow, pointers: Mapping[bytes, bytes]) -> None:
    entries: list[bytes] = []
    for path, pointer in pointers.items():
        spec = f":(top,literal){os.fsdecode(path)}"
        mode = (await seen.git("ls-files", "--stage", "-z", "--", spec)).stdout.split()[0]
        words = ["hash-object", "-w", "--stdin", "--no-filters"]
        oid = (await seen.git(*words, stdin=pointer)).stdout.strip()
        entries.append(mode + b" " + oid + b"\t" + path)
    if entries:
        await seen.git("update-index", "-z", "--index-info", stdin=terminated(entries))


async def _committed(seen: Shadow) -> Oid:
    """Tell the tree of the commit that is checked out; before the first one, the empty tree."""
    if seen.source.head is None:
        return Oid((await seen.git("hash-object", "-t", "tree", "--stdin")).stdout.decode().strip())
    words = ["rev-parse", "--verify", "--quiet", f"{seen.source.head}^{{tree}}"]
    return Oid((await seen.git(*words)).stdout.decode().strip())


async def _commit(seen: Shadow, tree: Oid) -> Oid:
    parents = ["-p", seen.source.head] if seen.source.head else []
    done = await seen.git("commit-tree", tree, *parents, stdin=_MESSAGE, env=_IDENTITY)
    return Oid(done.stdout.decode().strip())


async def _pack(
    mirror: Mirror, env: Mapping[str, str], into: Path, oid: Oid, head: Oid | None
) -> None:
    """Gather what the commit needs, also what was staged, into one pack."""
    asked = f"{oid}\n" + (f"^{head}\n" if head else "")
    words = ["pack-objects", "--revs", "--quiet"]
    await git(
        *words,
        into / "pack" / "pack",
        at=mirror.path,
        env=env,
        stdin=asked.encode(),
        timeout_s=LONG_S,
    )
