"""A result lands in the user's repository: objects first, then the branch, if it is still there.

    branch of a bare repository, or checked out nowhere   moved from `old` to `new`, or not at all
    branch that does not exist (`old` is None)            made, if it still does not exist
    checked out, CheckedOut.LEAVE                         refused, with what to run
    checked out, CheckedOut.UPDATE                        moved with its work tree (`checkout.py`)

It is always a fast-forward: `merge.py` has made `new` a follower of `old`. Objects are copied by a
pack from our mirror and are on the disk, and whole, before the ref is touched; until then they are
garbage that git's own collection knows. Nothing is configured, no ref but the branch is written,
and nothing that the user's repository configures is run.

Landing what has landed is `Landed`, so a landing that was cut off is said again. A branch that
somebody moved is `Moved`, and the caller merges anew from where it is now.

Between the moment a user's `git switch` has read a branch and the moment it says so in HEAD nobody
can see that it will be checked out. A move of a branch therefore looks again afterwards, and brings
a work tree that has just come to the branch to where the branch is now.
Above stands who queues merges; below, checkout.py and place.py.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import anyio

from microvm_orchestrator import errors
from microvm_orchestrator.git import checkout, command, names
from microvm_orchestrator.git.names import Oid
from microvm_orchestrator.git.outcomes import Landed, Moved, Outcome, Reason, refused
from microvm_orchestrator.git.place import HEADS, Place, Worktree, open_place

# From reading a branch to naming it in HEAD a switch takes about as long as git takes to start.
_SETTLE_S = 0.02
_SETTLE_AT_MOST_S = 1.0
# A user who goes back and forth between branches is waited for no longer.
_ATTEMPTS = 5
# As git decides when it receives: few objects go among the loose ones, many stay a pack.
_LOOSE_AT_MOST = 100
_PACK_HEADER = 12


class CheckedOut(StrEnum):
    """What to do with a branch that is checked out."""

    LEAVE = "leave"
    UPDATE = "update"


@dataclass(frozen=True, slots=True)
class _Wish:
    place: Place
    ref: str
    old: Oid | None
    new: Oid
    message: str

    @property
    def branch(self) -> str:
        return self.ref.removeprefix(HEADS)


async def land(
    mirror: Path,
    upstream: Path,
    branch: str,
    *,
    old: Oid | None,
    new: Oid,
    checked_out: CheckedOut = CheckedOut.LEAVE,
    base: Oid | None = None,
    message: str = "merge what a run brought",
) -> Outcome:
    """Move a branch of the user's repository at `upstream` from `old` to `new`.

    `base` is a commit that both repositories have, for a branch that is new. `message` goes into
    the reflog. Raises: InvalidInput when it is no fast-forward, CommandFailed when git cannot.
    """
    ref = HEADS + names.check(branch)
    for oid in (old, new, base):
        if oid is not None:
            names.as_oid(oid)
    if old is not None and not await _follows(mirror, new, old):
        raise errors.InvalidInput(f"{new} does not follow {old}: that would be no fast-forward")
    place = await open_place(upstream)
    message = " ".join(message.split())[:200]
    sent = False
    for _ in range(_ATTEMPTS):
        home = await _find_home(place, ref)
        standing = await place.stands(ref)
        if standing.symbolic:
            return refused(Reason.NAME_TAKEN, f"{branch} stands for {standing.symbolic}")
        if home is None and standing.oid == new:
            return Landed(branch, new)
        if home is None and standing.oid != old:
            return Moved(standing.oid)
        if home and standing.oid not in {old, new}:
            return Moved(standing.oid)
        if busy := await place.find_busy(ref) if home is None else None:
            return refused(
                Reason.IN_PROGRESS, f"{busy} of {branch} is in progress", hint="finish or abort it"
            )
        if home and checked_out is CheckedOut.LEAVE:
            return Landed(branch, new) if standing.oid == new else _left(branch, home, new)
        if not sent and standing.oid != new:
            await _send(mirror, place, new, old or base)
            sent = True
        wish = _Wish(place, ref, old, new, message)
        if home is None:
            outcome = await _move(wish, checked_out)
        else:
            outcome = await _forward(wish, home)
        if outcome is not None:
            return outcome
    return refused(Reason.BUSY, f"somebody keeps switching to and from {branch}")


def _left(branch: str, home: Worktree, new: Oid) -> Outcome:
    return refused(
        Reason.CHECKED_OUT,
        f"{branch} is checked out in {home.path}",
        hint=f"in there: git merge --ff-only {new}",
    )


async def _follows(mirror: Path, new: Oid, old: Oid) -> bool:
    words = ["merge-base", "--is-ancestor", old, new]
    done = await command.git(*words, at=mirror, ok=(0, 1), timeout_s=command.LONG_S)
    return done.status == 0


async def _find_home(place: Place, ref: str) -> Worktree | None:
    return next((tree for tree in await place.worktrees() if tree.ref == ref), None)


async def _send(mirror: Path, place: Place, new: Oid, known: Oid | None) -> None:
    """Copy what the user's repository lacks of a commit; nothing refers to it there yet."""
    has = ["cat-file", "-e", f"{known}^{{commit}}"]
    if known and (await place.git(*has, ok=(0, 1, 128))).status:
        known = None
    wanted = f"{new}\n" + (f"^{known}\n" if known else "")
    # Not buffered: git reads on from where the file stands.
    with tempfile.TemporaryFile(buffering=0) as pack:
        await command.git(
            *["pack-objects", "--revs", "--thin", "--stdout", "-q", "--delta-base-offset"],
            at=mirror,
            stdin=wanted.encode(),
            stdout=pack.fileno(),
            timeout_s=command.LONG_S,
        )
        pack.seek(0)
        count = int.from_bytes(os.pread(pack.fileno(), _PACK_HEADER, 0)[8:])
        words = ["unpack-objects", "-q"]
        if count > _LOOSE_AT_MOST:
            words = ["index-pack", "--stdin", "--fix-thin"]
        await place.git(*words, stdin=pack, timeout_s=command.LONG_S)
    # As a fetch does: whoever names it by a ref can have all of it.
    words = ["rev-list", "--objects", "--quiet", new, "--not", "--all"]
    await place.git(*words, timeout_s=command.LONG_S)


async def _move(wish: _Wish, checked_out: CheckedOut) -> Outcome | None:
    """Move a branch that is checked out nowhere; None when that is no longer so."""
    place, ref, new = wish.place, wish.ref, wish.new
    expected = wish.old or Oid("0" * len(new))
    with anyio.CancelScope(shield=True):
        try:
            moving = place.moving(ref, new, expected, wish.message, place.common)
            async with moving as commit:
                trees = await place.worktrees()
                if any(tree.ref == ref for tree in trees):
                    return None
                await commit()
        except errors.CommandFailed as error:
            return await _why_not(wish, error)
        if trees:
            await _settle(place)
            home = await _find_home(place, ref)
            if home and checked_out is CheckedOut.UPDATE and await _catch_up(wish, home):
                return Landed(wish.branch, new, str(home.path))
    return Landed(wish.branch, new)


async def _settle(place: Place) -> None:
    """Wait until no git is in the middle of a work tree, and a moment longer; not for ever."""
    with anyio.move_on_after(_SETTLE_AT_MOST_S):
        while await place.act(place.has_locks):  # noqa: ASYNC110 - a user's git tells nobody
            await anyio.sleep(_SETTLE_S)
    await anyio.sleep(_SETTLE_S)


async def _catch_up(wish: _Wish, home: Worktree) -> bool:
    """Bring a work tree that came to the branch while it moved to where the branch is."""
    job = await _job(wish, home)
    return isinstance(job, checkout.Job) and await checkout.catch_up(job)


async def _why_not(wish: _Wish, error: errors.CommandFailed) -> Outcome:
    branch, ref = wish.branch, wish.ref
    now = (await wish.place.stands(ref)).oid
    if now == wish.new:
        return Landed(branch, wish.new)
    if now != wish.old:
        return Moved(now)
    if "cannot create" in error.stderr:
        return refused(
            Reason.NAME_TAKEN,
            f"{branch} cannot be beside the branches that are there",
            hint="a branch cannot be a folder of others too: rename one of them",
        )
    if "File exists" in error.stderr:
        return refused(Reason.BUSY, f"another git holds {ref}")
    raise error


async def _forward(wish: _Wish, home: Worktree) -> Outcome | None:
    job = await _job(wish, home)
    return await checkout.forward(job) if isinstance(job, checkout.Job) else job


async def recover(upstream: Path) -> None:
    """Finish, or take back, what a daemon that was killed left in the user's work trees.

    To be called before anything lands, so that no user finds a lock that nobody holds.
    """
    place = await open_place(upstream)
    for tree in await place.worktrees():
        wish = _Wish(place, tree.ref or "", None, Oid(""), "")
        job = await _job(wish, tree)
        if isinstance(job, checkout.Job):
            await checkout.recover(place, job.root, job.git_dir)


async def _job(wish: _Wish, home: Worktree) -> checkout.Job | Outcome:
    """Find where a work tree has its index, if we may write both."""
    place = wish.place
    branch = (home.ref or "").removeprefix(HEADS)
    same = [tree for tree in await place.worktrees() if tree.ref == home.ref]
    if home.ref and len(same) > 1:
        return refused(Reason.CHECKED_OUT, f"{branch} is checked out more than once")
    try:
        about = await anyio.Path(home.path).stat()
    except OSError as error:
        return refused(
            Reason.CHECKED_OUT,
            f"{branch} is checked out in {home.path}, which cannot be read: {error.strerror}",
            hint="`git worktree prune` forgets a work tree that is gone",
        )
    if about.st_uid != place.acts_as:
        return refused(
            Reason.NOT_OWNER,
            f"{home.path} belongs to user {about.st_uid}, and we would write as {place.acts_as}",
        )
    words = ["rev-parse", "--show-toplevel", "--absolute-git-dir"]
    try:
        said = (await place.git(*words, at=home.path)).stdout.removesuffix(b"\n")
    except errors.CommandFailed as error:
        return refused(Reason.CHECKED_OUT, f"{home.path} cannot be read: {error.message}")
    top, _, git_dir = said.partition(b"\n")
    if top != bytes(home.path):
        return refused(Reason.CHECKED_OUT, f"the files of {home.path} lie elsewhere")
    folder = Path(os.fsdecode(git_dir))
    return checkout.Job(place, home.path, folder, wish.ref, wish.old, wish.new, wish.message)
