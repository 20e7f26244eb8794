"""What landing a result in a user's repository may come to.

Whatever it is but `Landed`, nothing of the user's was changed. Above stand land.py and checkout.py,
and who queues merges; below, nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from microvm_orchestrator.git.names import Oid

# Enough to see what is in the way.
FILES_TOLD = 200


class Reason(StrEnum):
    """Why a result did not land."""

    # The branch is checked out, and it is not wanted that we touch work trees.
    CHECKED_OUT = "checked_out"
    # What the user has changed, staged or put there would be overwritten.
    DIRTY = "dirty"
    UNTRACKED = "untracked"
    # A rebase, a merge, a bisection: the user is in the middle of something with that branch.
    IN_PROGRESS = "in_progress"
    UNMERGED = "unmerged"
    # Another git works there, or one was killed and left its lock.
    BUSY = "busy"
    # To write or compare these files, git would run programs that somebody has configured.
    FILTERED = "filtered"
    # A folder that is a submodule would become something else.
    SUBMODULE = "submodule"
    # Two names that are one to this file system.
    COLLIDES = "collides"
    # What we write would not belong to whom the work tree belongs.
    NOT_OWNER = "not_owner"
    # A ref of this name cannot be beside those that are there, or it stands for another one.
    NAME_TAKEN = "name_taken"


@dataclass(frozen=True, slots=True)
class Landed:
    """The branch stands at `new`, and so does the work tree in which it is checked out."""

    branch: str
    new: Oid
    worktree: str | None = None
    # Files in which the user wrote at that very moment: their bytes are in the work tree, as these.
    user_wrote: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Moved:
    """The branch is not where the merge began; merge again from there."""

    now: Oid | None


@dataclass(frozen=True, slots=True)
class Refused:
    """Something of the user's is in the way."""

    reason: Reason
    message: str
    files: tuple[str, ...] = ()
    files_left_out: int = 0
    hint: str | None = None


Outcome = Landed | Moved | Refused


def refused(
    reason: Reason, message: str, files: list[bytes] | None = None, hint: str | None = None
) -> Refused:
    """Refuse because of these files."""
    names = sorted(set(files or ()))
    told = tuple(name.decode(errors="backslashreplace") for name in names[:FILES_TOLD])
    return Refused(reason, message, told, len(names) - len(told), hint)
