"""The history of one commit as a folder of objects of its own: a pack with its index.

For who gives a repository to guests as something to read, not to take in: what git of ours has
indexed needs no second look. Nothing but what the commit reaches is in it. Above stands whoever
makes disks of it; below, mirror.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from microvm_orchestrator.git import names
from microvm_orchestrator.git.command import LONG_S, git, line

if TYPE_CHECKING:
    from pathlib import Path

    from microvm_orchestrator.git.mirror import Mirror
    from microvm_orchestrator.git.names import Oid

_WORDS = ("pack-objects", "--revs", "--delta-base-offset", "--quiet")


async def export(mirror: Mirror, want: Oid, to: Path) -> list[Path]:
    """Write what is reachable from a commit into a folder, and name the files.

    On failure the folder may have some of it. Raises: CommandFailed.
    """
    asked = f"{names.as_oid(want)}\n".encode()
    done = await git(*_WORDS, to / "pack", at=mirror.path, stdin=asked, timeout_s=LONG_S)
    name = f"pack-{done.stdout.decode().strip()}"
    return [to / f"{name}.pack", to / f"{name}.idx"]


async def size(mirror: Mirror, want: Oid, have: Oid | None = None) -> int:
    """Tell how many bytes of our packs a commit's history takes, without another one's."""
    words = ["rev-list", "--objects", "--disk-usage", names.as_oid(want)]
    less = [] if have is None else [f"^{names.as_oid(have)}"]
    return int(await line(*words, *less, at=mirror.path, timeout_s=LONG_S))


async def is_within(mirror: Mirror, commit: Oid, tip: Oid) -> bool:
    """Tell whether a commit is in the history of another, or that other itself.

    One that is not here is in nobody's.
    """
    words = ["merge-base", "--is-ancestor", names.as_oid(commit), names.as_oid(tip)]
    done = await git(*words, at=mirror.path, ok=(0, 1, 128), timeout_s=LONG_S)
    return done.status == 0


async def is_published(mirror: Mirror, commit: Oid) -> bool:
    """Tell whether a branch or a tag of the user's has a commit in its history."""
    words = ["for-each-ref", "--count=1", "--format=x", f"--contains={names.as_oid(commit)}"]
    return bool(await line(*words, "refs/upstream/", at=mirror.path, timeout_s=LONG_S))


async def first_parent(mirror: Mirror, commit: Oid) -> Oid | None:
    words = ["rev-parse", "--quiet", "--verify", f"{names.as_oid(commit)}^"]
    found = await line(*words, at=mirror.path, ok=(0, 1))
    return names.as_oid(found) if found else None
