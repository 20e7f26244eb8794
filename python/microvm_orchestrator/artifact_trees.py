"""Trees of files that were registered, as this host keeps them: taken in, compared, laid out.

A tree is read from a folder once; from then on nothing of it is read there again. Its contents lie
with those that runs have left behind, each once, and so does the list of its files; a record tells
what the tree is of. A record comes after all of its contents and goes before them, so one that is
there is whole. Above are the clusters and the services; below, the store, the contents and git.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
from pydantic import JsonValue

from microvm_orchestrator import errors
from microvm_orchestrator.artifacts import Artifacts
from microvm_orchestrator.git import command
from microvm_orchestrator.model.artifact import LeftOut
from microvm_orchestrator.model.artifact_tree import (
    ARTIFACT_TREE,
    FILES,
    MAX_FILES,
    MAX_TOLD,
    ArtifactDiff,
    ArtifactTree,
    BuildType,
    TreeFile,
    is_module,
    referred,
    tree_digest,
)
from microvm_orchestrator.model.records import SYSTEM, Actor, Record
from microvm_orchestrator.model.values import moment
from microvm_orchestrator.store.base import Store, Tell
from microvm_orchestrator.store.every import every_record
from microvm_orchestrator.store.questions import RecordById

# Folders that are no part of what was built.
LEFT_ALONE = frozenset({".git", "__pycache__"})
_RELEASE_FILE = "include/generated/utsrelease.h"
_RELEASE = re.compile(r'#define\s+UTS_RELEASE\s+"([A-Za-z0-9][A-Za-z0-9._+~-]{0,127})"')
_RELEASE_BYTES = 1 << 16
_ELF = b"\x7fELF"
_ELF_PROGRAMS = {2, 3}
_HEAD = 18
_MAX_LISTING = 1 << 26
_MAX_LOG = 200
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class Seen:
    """A file of a folder of this host."""

    # Below the folder.
    path: str
    # Where its content lies, beneath no link.
    place: Path
    executable: bool

    def open(self) -> int:
        fd = os.open(self.place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(0, "is no file any more", str(self.place))
        return fd


@dataclass(frozen=True, slots=True)
class Wanted:
    """A tree to register, and what is said of it."""

    folder: Path
    build_type: BuildType = BuildType.RAW_TREE
    kernel_version: str | None = None
    test_framework_path: str | None = None
    metadata: JsonValue = None


class ArtifactTrees:
    """The trees of one host."""

    def __init__(self, store: Store, artifacts: Artifacts) -> None:
        self._store = store
        self._artifacts = artifacts
        # Between a tree's contents and its record.
        self._lock = anyio.Lock()

    async def known(self) -> list[str]:
        """Name all trees, whoever owns them."""
        return [record.id for record in await every_record(self._store, ARTIFACT_TREE, SYSTEM)]

    # Coming and going

    async def register(self, wanted: Wanted, by: Actor) -> ArtifactTree:
        """Take a folder of this host in; one that is here already is told of anew.

        Raises: InvalidInput when the folder cannot be read or has no files; TooLarge;
            AlreadyExists when it is somebody else's.
        """
        seen, left_out = await anyio.to_thread.run_sync(read_folder, wanted.folder)
        if not seen:
            raise errors.InvalidInput(f"{wanted.folder} has no files")
        sha, branch = await _git_of(wanted.folder)
        async with self._artifacts.new_tree() as holder:
            kept = await self._artifacts.add_files(holder, [each.open for each in seen])
            files = [
                TreeFile(path=each.path, size=size, digest=digest, executable=each.executable)
                for each, (size, digest) in zip(seen, kept, strict=True)
            ]
            name = tree_digest(files)
            listing = await self._artifacts.add_bytes(holder, FILES.dump_json(files), bounded=False)
            release = wanted.kernel_version or await self._release(holder, files)
            programs = await self._programs(holder, files)
            modules = [each.path for each in files if is_module(each.path)]
            tree = ArtifactTree(
                artifact_id=name,
                owner=by.name,
                source_path=str(wanted.folder),
                build_type=wanted.build_type,
                kernel_version=release,
                modules=modules[:MAX_TOLD],
                userspace_bins=programs[:MAX_TOLD],
                test_framework_path=wanted.test_framework_path,
                git_sha=sha,
                git_branch=branch,
                files=len(files),
                size=sum(each.size for each in files),
                left_out=left_out[:MAX_TOLD],
                metadata=wanted.metadata,
                listing=listing,
                registered_at=moment(await self._store.now()),
            )
            async with self._lock:
                found = await self._find(name)
                if found is not None and not by.sees_of(found.owner):
                    raise errors.AlreadyExists(f"artifact {name} is registered by somebody else")
                if found is not None:
                    tree = tree.model_copy(update={"owner": found.owner, "listing": found.listing})
                else:
                    await self._artifacts.name_tree(holder, name)
                await self._save(tree, by)
        return tree

    async def remove(self, reference: str, by: Actor) -> ArtifactTree:
        """Forget a tree; what was brought to machines stays there. Raises: NotFound."""
        tree = await self.get(reference, by)
        async with self._lock:
            await self._store.erase(ARTIFACT_TREE, tree.artifact_id, by)
            with anyio.CancelScope(shield=True):
                await self._artifacts.forget(tree.artifact_id)
        return tree

    # Looking

    async def get(self, reference: str, by: Actor) -> ArtifactTree:
        """Raises: NotFound, also for what `by` cannot see."""
        found = await self._find(referred(reference))
        if found is None or not by.sees_of(found.owner):
            raise errors.NotFound(
                f"no artifact {reference[:80]}", hint="artifact_trees lists those that are here"
            )
        return found

    async def files(self, tree: ArtifactTree) -> list[TreeFile]:
        """List a tree's files. Raises: NotFound when it was removed."""
        data = await self._artifacts.read(tree.artifact_id, tree.listing, 0, _MAX_LISTING)
        return FILES.validate_json(data)

    async def lay_out(self, tree: ArtifactTree, files: Collection[TreeFile], into: Path) -> None:
        """Give some files of a tree their names below an empty folder, to be read only."""
        folders = sorted({each.path.rpartition("/")[0] for each in files})
        await anyio.to_thread.run_sync(partial(_make_all, into, folders))
        for each in files:
            await self._artifacts.link_to(tree.artifact_id, each.digest, into / each.path)

    async def diff(self, first: str, second: str, by: Actor) -> ArtifactDiff:
        """Compare two trees as they were taken in. Raises: NotFound."""
        a, b = await self.get(first, by), await self.get(second, by)
        had, has = await self._digests(a), await self._digests(b)
        changed = sorted(path for path in had if path in has and had[path] != has[path])
        removed = sorted(path for path in had if path not in has)
        added = sorted(path for path in has if path not in had)
        differ = sorted([*changed, *removed, *added])
        programs = {*a.userspace_bins, *b.userspace_bins}
        return ArtifactDiff(
            artifact_id_a=a.artifact_id,
            artifact_id_b=b.artifact_id,
            changed_modules=[path for path in differ if is_module(path)][:MAX_TOLD],
            changed_bins=[path for path in differ if path in programs][:MAX_TOLD],
            added=added[:MAX_TOLD],
            removed=removed[:MAX_TOLD],
            changed=changed[:MAX_TOLD],
            truncated=max(len(added), len(removed), len(changed)) > MAX_TOLD,
            git_log=await _git_log(a, b),
        )

    async def _digests(self, tree: ArtifactTree) -> dict[str, str]:
        return {each.path: each.digest for each in await self.files(tree)}

    async def _find(self, name: str) -> ArtifactTree | None:
        record = await self._store.query(RecordById(ARTIFACT_TREE, name), SYSTEM)
        return None if record is None else ArtifactTree.model_validate(record.body)

    async def _save(self, tree: ArtifactTree, by: Actor) -> None:
        record = Record(ARTIFACT_TREE, tree.artifact_id, tree.model_dump(mode="json"))
        tell = Tell("registered", {"source_path": tree.source_path}, audited=False)
        await self._store.save(record, by, expect=None, tell=tell)

    async def _release(self, holder: str, files: list[TreeFile]) -> str | None:
        for each in files:
            if each.path == _RELEASE_FILE:
                data = await self._artifacts.read(holder, each.digest, 0, _RELEASE_BYTES)
                found = _RELEASE.search(data.decode(errors="replace"))
                return found and found[1]
        return None

    async def _programs(self, holder: str, files: list[TreeFile]) -> list[str]:
        """Name programs and libraries, known by their first bytes; a module is neither."""
        heads = await self._artifacts.heads(holder, [each.digest for each in files], _HEAD)
        return [
            each.path
            for each, head in zip(files, heads, strict=True)
            if _is_program(head) and not is_module(each.path)
        ]


def _is_program(head: bytes) -> bool:
    order = "big" if head[5:6] == b"\2" else "little"
    return (
        len(head) == _HEAD
        and head.startswith(_ELF)
        and int.from_bytes(head[16:18], order) in _ELF_PROGRAMS
    )


def read_folder(folder: Path) -> tuple[list[Seen], list[LeftOut]]:
    """Find all files below a folder of this host, and what is neither a file nor one's other name.

    A link counts as the file that it leads to, where that lies below the folder as well. Raises:
    InvalidInput, TooLarge.
    """
    if not folder.is_absolute():
        raise errors.InvalidInput(f"{folder} is no absolute path")
    try:
        top = folder.resolve(strict=True)
        if not top.is_dir():
            raise errors.InvalidInput(f"{folder} is no folder")
        seen: list[Seen] = []
        left_out: list[LeftOut] = []
        for path, entry in _walk(top, ""):
            if len(seen) >= MAX_FILES:
                raise errors.TooLarge(f"{folder} has more than {MAX_FILES} files")
            found = _look(top, path, entry)
            if isinstance(found, Seen):
                seen.append(found)
            else:
                left_out.append(found)
    except OSError as error:
        raise errors.InvalidInput(f"{error.filename or folder}: {error.strerror}") from error
    return seen, left_out


def _walk(folder: Path, below: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        path = below + entry.name
        if _CONTROL.search(path) or (not path.isascii() and not _is_text(path)):
            raise errors.InvalidInput(
                f"{path.encode(errors='backslashreplace').decode()[:400]!r} is no name that a tree "
                "may have: it has a control character, or is not UTF-8"
            )
        if entry.is_dir(follow_symlinks=False):
            if entry.name not in LEFT_ALONE:
                yield from _walk(Path(entry.path), path + "/")
        else:
            yield path, entry


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _look(top: Path, path: str, entry: os.DirEntry[str]) -> Seen | LeftOut:
    place = Path(entry.path)
    if entry.is_symlink():
        try:
            place = place.resolve(strict=True)
        except (OSError, RuntimeError):
            return LeftOut(name=path, reason="a link that leads nowhere")
        if not place.is_relative_to(top):
            return LeftOut(name=path, reason="a link that leads out of the tree")
    mode = place.lstat().st_mode
    if not stat.S_ISREG(mode):
        kind = "a link to a folder" if stat.S_ISDIR(mode) else "neither file nor folder"
        return LeftOut(name=path, reason=kind)
    return Seen(path, place, bool(mode & 0o111))


def _make_all(into: Path, folders: list[str]) -> None:
    for folder in folders:
        (into / folder).mkdir(mode=0o755, parents=True, exist_ok=True)


# Where a tree comes from


def _work_tree(folder: Path) -> Path | None:
    return next((at for at in (folder, *folder.parents) if (at / ".git").exists()), None)


async def _git_of(folder: Path) -> tuple[str | None, str | None]:
    """Tell the commit and the branch that a folder was read at, where it is in a work tree."""
    at = await anyio.to_thread.run_sync(_work_tree, folder)
    if at is None:
        return None, None
    try:
        sha = await command.line("rev-parse", "--verify", "HEAD^{commit}", at=at)
        branch = await command.line("symbolic-ref", "-q", "--short", "HEAD", at=at, ok=(0, 1))
    except errors.CommandFailed:
        return None, None  # there is no commit yet, or it is no repository of git's
    return sha or None, branch[:400] or None


async def _git_log(a: ArtifactTree, b: ArtifactTree) -> list[str] | None:
    """List the commits that lie between two trees, as the repository of the second has them."""
    if a.git_sha is None or b.git_sha is None:
        return None
    at = await anyio.to_thread.run_sync(_work_tree, Path(b.source_path))
    if at is None:
        return None
    words = ("log", "--format=%h %<(200,trunc)%s", f"--max-count={_MAX_LOG}")
    try:
        done = await command.git(*words, f"{a.git_sha}..{b.git_sha}", "--", at=at)
    except errors.CommandFailed:
        return None
    lines = done.stdout.decode(errors="replace").splitlines()
    return [_CONTROL.sub(" ", line).rstrip() for line in lines]
