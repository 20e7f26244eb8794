"""What lies between two commits, read by GitPython in worker threads.

Only our mirrors are read this way: GitPython starts git itself, and a mirror's configuration is
ours. What it is started with is what `command.py` would give. Text may have any character in it
that a guest could put there; whoever prints it cleans it. Above stand runs and lifecycle.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, cast

import anyio.to_thread
from git import Git
from git.exc import GitCommandError

from microvm_orchestrator import errors
from microvm_orchestrator.git import command, names
from microvm_orchestrator.model.run import ChangedFile, Commit

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

    from microvm_orchestrator.git.mirror import Mirror
    from microvm_orchestrator.git.names import Oid

# Of a subject or an author; the rest of a longer one is in the commit.
_COLUMNS = 400
_CUT = f"%<({_COLUMNS},trunc)"
_FIELDS = "%x00".join(["%H", f"{_CUT}%an", f"{_CUT}%ae", "%at", f"{_CUT}%s"])
_LIST_CAP = 1 << 25
# Larger files are compared as binary ones.
_SETTINGS = {"core.bigFileThreshold": "16m", "diff.renameLimit": "1000"}
_STATUS = {
    "A": "added",
    "C": "copied",
    "D": "deleted",
    "M": "modified",
    "R": "renamed",
    "T": "type_changed",
}
_LAST_SECOND = int(datetime(9998, 1, 1, tzinfo=UTC).timestamp())


@dataclass(frozen=True, slots=True)
class Commits:
    """The newest commits first, and how many there are with those left out."""

    items: list[Commit]
    total: int


@dataclass(frozen=True, slots=True)
class Files:
    """The files that differ, and how many there are with those left out."""

    items: list[ChangedFile]
    total: int


@dataclass(frozen=True, slots=True)
class Stat:
    """How much differs."""

    files: int = 0
    insertions: int = 0
    deletions: int = 0


@dataclass(frozen=True, slots=True)
class Patch:
    """A patch, or the first part of one."""

    data: bytes
    truncated: bool


async def commits(mirror: Mirror, base: Oid | None, tip: Oid, *, limit: int = 200) -> Commits:
    """List what `tip` has and `base` has not; without a base, all of it."""
    span = [names.as_oid(tip), *([f"^{names.as_oid(base)}"] if base else [])]
    total = int(await _read(mirror, "rev-list", "--count", *span))
    words = ["log", "-z", "--no-show-signature", "--no-color", f"--format={_FIELDS}"]
    said = await _read(mirror, *words, f"--max-count={limit}", *span)
    facts = said.decode(errors="replace").split("\0")
    rows = zip(*(facts[start::5] for start in range(5)), strict=False)
    items = [
        Commit(
            commit=oid,
            author=f"{name.rstrip()} <{mail.rstrip()}>",
            at=_moment(at),
            subject=subject.rstrip(),
        )
        for oid, name, mail, at, subject in rows
    ]
    return Commits(items, total)


async def files(mirror: Mirror, base: Oid | None, tip: Oid, *, limit: int = 1000) -> Files:
    """List the files in which two commits differ; without a base, all files."""
    words = ["diff-tree", "-r", "-z", "-M", "--name-status", "--no-commit-id"]
    said = await _read(mirror, *words, *await _ends(mirror, base, tip))
    facts = iter(said.split(b"\0")[:-1])
    items: list[ChangedFile] = []
    total = 0
    for status in facts:
        old = next(facts)
        letter = status[:1].decode()
        new = next(facts) if letter in "CR" else None
        total += 1
        if len(items) < limit:
            items.append(
                ChangedFile(
                    path=_text(new or old),
                    status=_STATUS.get(letter, letter),
                    old_path=_text(old) if new else None,
                )
            )
    return Files(items, total)


async def shortstat(mirror: Mirror, base: Oid | None, tip: Oid) -> Stat:
    """Count files and lines in which two commits differ."""
    words = ["diff-tree", "--shortstat", "-M", "--no-ext-diff", "--no-textconv", "--no-commit-id"]
    said = (await _read(mirror, *words, *await _ends(mirror, base, tip))).decode()
    found = {
        what: int(count) for count, what in re.findall(r"(\d+) (file|insertion|deletion)", said)
    }
    return Stat(found.get("file", 0), found.get("insertion", 0), found.get("deletion", 0))


async def patch(mirror: Mirror, base: Oid | None, tip: Oid, *, cap: int) -> Patch:
    """Give the difference of two commits as a patch, or its first `cap` bytes."""
    done = await command.git(
        *("diff-tree", "-p", "-M", "--full-index", "--no-commit-id"),
        *("--no-color", "--no-ext-diff", "--no-textconv"),
        *await _ends(mirror, base, tip),
        at=mirror.path,
        settings=_SETTINGS,
        cap=cap,
    )
    return Patch(done.stdout, done.truncated)


async def _ends(mirror: Mirror, base: Oid | None, tip: Oid) -> list[str]:
    """Name what is compared; where there is no base, with the empty tree."""
    if base is None:
        words = ["hash-object", "-t", "tree", "--stdin"]
        return [await command.line(*words, at=mirror.path), names.as_oid(tip)]
    return [names.as_oid(base), names.as_oid(tip)]


class _Head:
    """The first bytes of a stream; the rest is read and dropped, so that nobody blocks."""

    def __init__(self) -> None:
        self.kept = bytearray()

    def write(self, chunk: bytes) -> int:
        self.kept += chunk[: _LIST_CAP - len(self.kept)]
        return len(chunk)


async def _read(mirror: Mirror, *words: str) -> bytes:
    return await anyio.to_thread.run_sync(_run, mirror.path, words)


def _run(path: Path, words: tuple[str, ...]) -> bytes:
    reader = Git(path)
    env = command.environment(path, _SETTINGS) | {"GIT_DIR": str(path)}
    # GitPython adds to the environment of the daemon, in which there may be secrets.
    alone = ["env", "-i", *(f"{name}={value}" for name, value in env.items())]
    head = _Head()
    try:
        reader.execute(
            [*alone, "git", *words],
            output_stream=cast("BinaryIO", head),
            kill_after_timeout=command.QUICK_S,
            with_extended_output=True,
        )
    except GitCommandError as error:
        raise errors.CommandFailed(
            f"git {words[0]} failed: {str(error.stderr).strip()}",
            argv=("git", *words),
            status=error.status if isinstance(error.status, int) else None,
            stderr=str(error.stderr),
        ) from error
    return bytes(head.kept)


def _moment(seconds: str) -> datetime:
    """Read when a commit was made; whoever made it may have written any time at all."""
    return datetime.fromtimestamp(min(max(int(seconds or 0), 0), _LAST_SECOND), UTC)


def _text(path: bytes) -> str:
    return path.decode(errors="backslashreplace")
