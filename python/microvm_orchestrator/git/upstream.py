"""The user's repository, looked at and never changed: what it is, and whether we can work with it.

Everything here only reads. What needs an index is asked of a copy (`shadow.py`). Above stands
whoever registers repositories or lands results in them; below, command.py.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import anyio.to_thread

from microvm_orchestrator import errors
from microvm_orchestrator.git import names, shadow
from microvm_orchestrator.git.command import git, line
from microvm_orchestrator.git.names import ObjectFormat, Oid

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

# Tried in turn where neither HEAD nor a remote says which branch is the main one.
_USUAL = ("main", "master")
# What git leaves in its folder while something is under way, and what that is called.
_UNDER_WAY = {
    "rebase-merge": "rebase",
    "rebase-apply": "rebase",
    "MERGE_HEAD": "merge",
    "CHERRY_PICK_HEAD": "cherry-pick",
    "REVERT_HEAD": "revert",
    "BISECT_START": "bisect",
}
# Where a rebase or a bisection writes the branch that it took out.
_TAKEN_OUT = ("rebase-merge/head-name", "rebase-apply/head-name", "BISECT_START")


class Kind(StrEnum):
    """What lies at the path of a repository."""

    MAIN = "main"
    # A further work tree of a repository that lies elsewhere.
    LINKED = "linked"
    BARE = "bare"


@dataclass(frozen=True, slots=True)
class Checkout:
    """A work tree of a repository."""

    path: Path
    # Also one that a rebase or a bisection will come back to; None: detached.
    branch: str | None
    commit: Oid | None
    # rebase, merge and the like, if one is under way.
    under_way: str | None


@dataclass(frozen=True, slots=True)
class Upstream:
    """A repository we can work with, as it was a moment ago."""

    path: Path
    kind: Kind
    git_dir: Path
    common_dir: Path
    object_format: ObjectFormat
    # What HEAD names, whether or not it has a commit yet; None: detached.
    branch: str | None
    # None: not a single commit.
    head: Oid | None
    default_branch: str | None
    empty: bool
    submodules: bool
    lfs: bool
    # Always False for a bare one.
    dirty: bool
    # Of its owner, whose settings say what is ignored beside what the repository says.
    home: Path | None
    checkouts: tuple[Checkout, ...]

    def with_branch(self, branch: str) -> list[Checkout]:
        """List the work trees that have a branch out."""
        return [checkout for checkout in self.checkouts if checkout.branch == branch]

    @property
    def source(self) -> shadow.Source:
        return shadow.Source(
            self.path, self.git_dir, self.common_dir, self.object_format, self.head, self.home
        )


async def look(path: Path) -> Upstream:
    """Tell what lies at a path, which must be the top of a repository.

    Raises: RepoRefused with the reason, where it is none or one that we cannot work with.
    """
    top = await anyio.to_thread.run_sync(_normalised, path)
    kind, git_dir, common_dir = await _find(top)
    await _check_whole(top)
    object_format = ObjectFormat(await line("rev-parse", "--show-object-format", at=top))
    ref = await line("symbolic-ref", "--quiet", "HEAD", at=top, ok=(0, 1))
    branch = ref.removeprefix("refs/heads/") or None
    words = ["rev-parse", "--quiet", "--verify", "HEAD^{commit}"]
    head = Oid(await line(*words, at=top, ok=(0, 1))) or None
    first = await line("for-each-ref", "--count=1", "refs/heads", "refs/tags", at=top)
    home = await anyio.to_thread.run_sync(shadow.home_of_owner, top)
    source = shadow.Source(top, git_dir, common_dir, object_format, head, home)
    return Upstream(
        path=top,
        kind=kind,
        git_dir=git_dir,
        common_dir=common_dir,
        object_format=object_format,
        branch=branch,
        head=head,
        default_branch=branch or await _guess_default(top),
        empty=head is None and not first,
        submodules=head is not None and await _has_submodules(top, head),
        lfs=head is not None and await _has_lfs(top, common_dir, head),
        dirty=kind is not Kind.BARE and await _is_dirty(source),
        home=home,
        checkouts=tuple(await _checkouts(top)),
    )


async def checkouts(path: Path) -> list[Checkout]:
    """List the work trees that a repository has now, the main one and those linked to it."""
    return await _checkouts(path)


def _normalised(path: Path) -> Path:
    text = str(path)
    if not path.is_absolute():
        raise errors.RepoRefused(f"{text[:200]!a} is no absolute path")
    if not text.isprintable():
        raise errors.RepoRefused(f"the path {text[:200]!a} has characters that cannot be printed")
    real = Path(os.path.realpath(path))
    if not real.is_dir():
        raise errors.RepoRefused(f"{text} is not a folder")
    return real


async def _find(top: Path) -> tuple[Kind, Path, Path]:
    try:
        said = await line("rev-parse", "--is-bare-repository", "--is-inside-git-dir", at=top)
    except errors.CommandFailed as error:
        reason = error.stderr.strip().splitlines()[-1:] or [error.message]
        above = await anyio.to_thread.run_sync(_top_above, top)
        raise errors.RepoRefused(
            f"{top} is not the top of a repository: {reason[0].removeprefix('fatal: ')}",
            hint=f"{above} is one" if above else None,
        ) from error
    bare, inside = said.split("\n")
    git_dir, common_dir = [
        Path(await line("rev-parse", "--path-format=absolute", word, at=top))
        for word in ("--git-dir", "--git-common-dir")
    ]
    if bare == "true":
        if git_dir != top:
            raise errors.RepoRefused(f"{top} belongs to the bare repository {git_dir}")
        return Kind.BARE, git_dir, common_dir
    if inside == "true":
        raise errors.RepoRefused(
            f"{top} is where a repository keeps its own files",
            hint="name the folder of its work tree",
        )
    shown = Path(await line("rev-parse", "--path-format=absolute", "--show-toplevel", at=top))
    if shown != top:
        raise errors.RepoRefused(f"the repository in {top} has its work tree in {shown}")
    return Kind.MAIN if git_dir == common_dir else Kind.LINKED, git_dir, common_dir


def _top_above(path: Path) -> Path | None:
    return next((above for above in path.parents if (above / ".git").exists()), None)


async def _check_whole(top: Path) -> None:
    """Raises: RepoRefused where a part of the history is not there."""
    if await line("rev-parse", "--is-shallow-repository", at=top) != "false":
        raise errors.RepoRefused(
            f"{top} is a shallow clone: a part of its history is not there",
            hint="`git fetch --unshallow` in it gets the rest",
        )
    partial = r"^(remote\..*\.promisor|extensions\.partialclone)$"
    if (await git("config", "--name-only", "--get-regexp", partial, at=top, ok=(0, 1))).stdout:
        raise errors.RepoRefused(
            f"{top} is a partial clone: git fetches some of its objects only when they are used",
            hint="clone it without --filter",
        )


async def _guess_default(top: Path) -> str | None:
    """Say which branch is the main one where HEAD is detached; None if nothing tells."""
    origin = await line("symbolic-ref", "--quiet", "refs/remotes/origin/HEAD", at=top, ok=(0, 1))
    for name in (origin.removeprefix("refs/remotes/origin/"), *_USUAL):
        if name and not names.find_fault(name):
            words = ["rev-parse", "--quiet", "--verify", "--end-of-options"]
            if await line(*words, f"refs/heads/{name}", at=top, ok=(0, 1)):
                return name
    return None


async def _has_submodules(top: Path, head: Oid) -> bool:
    return bool(await line("ls-tree", "--name-only", head, "--", ":/.gitmodules", at=top))


async def _has_lfs(top: Path, common_dir: Path, head: Oid) -> bool:
    words = ["grep", "--quiet", "--no-textconv", "-E", "filter=lfs", head, "--"]
    found = await git(*words, ":(top,glob)**/.gitattributes", at=top, ok=(0, 1))
    if found.status == 0:
        return True
    local = anyio.Path(common_dir / "info" / "attributes")
    return await local.is_file() and b"filter=lfs" in await local.read_bytes()


async def _is_dirty(source: shadow.Source) -> bool:
    async with _scratch() as folder:
        return await (await shadow.make(source, folder)).is_dirty()


@asynccontextmanager
async def _scratch() -> AsyncGenerator[Path]:
    made = await anyio.to_thread.run_sync(tempfile.TemporaryDirectory)
    try:
        yield Path(made.name)
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(made.cleanup)


async def _checkouts(top: Path) -> list[Checkout]:
    done = await git("worktree", "list", "--porcelain", "-z", at=top, cap=1 << 24)
    found: list[Checkout] = []
    for record in done.stdout.decode(errors="surrogateescape").split("\0\0")[:-1]:
        facts = {
            key: value for key, _, value in (fact.partition(" ") for fact in record.split("\0"))
        }
        if "bare" in facts or "prunable" in facts:
            continue
        path = Path(facts["worktree"])
        if not await anyio.Path(path).is_dir():
            continue
        git_dir = Path(await line("rev-parse", "--path-format=absolute", "--git-dir", at=path))
        under_way, taken_out = await anyio.to_thread.run_sync(_under_way, git_dir)
        commit = facts.get("HEAD", "").strip("0")
        branch = facts.get("branch", "").removeprefix("refs/heads/") or taken_out
        found.append(Checkout(path, branch, Oid(facts["HEAD"]) if commit else None, under_way))
    return found


def _under_way(git_dir: Path) -> tuple[str | None, str | None]:
    """Say what is under way, and which branch it will come back to."""
    found = next((what for name, what in _UNDER_WAY.items() if (git_dir / name).exists()), None)
    for name in _TAKEN_OUT:
        file = git_dir / name
        if file.is_file():
            text = file.read_text(errors="replace").strip()
            # A rebase writes the whole name, or that HEAD was detached; a bisection the short one.
            return found, None if names.is_oid(text) else text.removeprefix("refs/heads/")
    return found, None
