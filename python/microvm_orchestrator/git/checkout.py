"""The clean fast-forward of a branch that is checked out: its ref, its index and its files as one.

Nothing is written before all is checked, and what is checked is held: git's own lock of the index,
under which no git stages, commits or switches there, and a prepared move of the branch, which holds
it and the HEAD that names it. Then

    1. `git read-tree -m -u` from the old commit to the new one, on a copy of the index; it too
       checks everything before it writes anything
    2. the copy gets the name that says that the files are those of the new commit
    3. the branch moves
    4. the copy becomes the index, and the lock goes

What the user has changed, staged or left lying in a file that the result touches is a refusal that
names the file; anything else of theirs stays as it is, also what is staged. No hook, filter or
monitor runs: a touched file with a filter (Git LFS, for one) is a refusal. Of a submodule only the
link moves. Programs that save while git replaces the file they save are the one thing no lock of
git's keeps out: what is written into the replaced file is found and put back; only a save that puts
another file in its place within the same millisecond is not seen, as in git itself.

Whoever is killed here leaves a lock that says whose it is. The next landing takes it over: what had
come as far as step 2 is finished, anything else is taken back, a file at a time, where what lies
there is what git was writing. No other program can get in between, for the lock is never away.
Above stands land.py; below, place.py, lock.py and worktree.py.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import AsyncGenerator, Collection, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from stat import S_ISDIR

import anyio

from microvm_orchestrator import errors
from microvm_orchestrator.git import command, worktree
from microvm_orchestrator.git.lock import IndexLock, Purpose, clear_ref_locks
from microvm_orchestrator.git.names import Oid
from microvm_orchestrator.git.outcomes import Landed, Moved, Outcome, Reason, refused
from microvm_orchestrator.git.place import HEADS, Moving, Place
from microvm_orchestrator.git.worktree import Keepsakes

_LINK = b"160000"
_NONE = b"000000"
_SYMLINK = b"120000"
# A half-written file is compared with the whole one; what is larger is left to the user.
_COMPARED_CAP = 1 << 28
_SIGNS = {
    "MERGE_HEAD": "a merge",
    "CHERRY_PICK_HEAD": "a cherry-pick",
    "REVERT_HEAD": "a revert",
    "rebase-merge": "a rebase",
    "rebase-apply": "a rebase",
    "BISECT_LOG": "a bisection",
    "sequencer": "a sequence of picks",
}
_IN_THE_WAY = [
    (Reason.UNTRACKED, re.compile(r"Untracked working tree file '(.+?)' would be")),
    (Reason.UNTRACKED, re.compile(r"Updating '(.+?)' would lose untracked files")),
    (Reason.DIRTY, re.compile(r"Entry '(.+?)' not uptodate")),
    (Reason.DIRTY, re.compile(r"Entry '(.+?)' (?:would be overwritten|overlaps)")),
]


@dataclass(frozen=True, slots=True)
class _Touched:
    path: bytes
    old_mode: bytes
    new_mode: bytes
    new_oid: str


@dataclass(frozen=True, slots=True)
class Job:
    """What is to move where: a branch that is checked out, with the work tree it is in."""

    place: Place
    root: Path
    git_dir: Path
    ref: str
    old: Oid | None
    new: Oid
    # For the reflog.
    message: str


async def forward(job: Job) -> Outcome | None:
    """Move a branch and the work tree it is checked out in; None when it no longer is.

    Raises: CommandFailed when git cannot do it; nothing is changed then.
    """
    # Each step is bounded, and half of them is worse than all.
    with anyio.CancelScope(shield=True):
        async with _held(job) as held:
            return await held.run() if isinstance(held, _Forward) else held


async def catch_up(job: Job) -> bool:
    """Bring a work tree to where its branch has gone already; tell whether that could be done."""
    done = False
    with anyio.CancelScope(shield=True):
        async with _held(job) as held:
            if isinstance(held, _Forward):
                done = await held.catch_up()
    return done


async def recover(place: Place, root: Path, git_dir: Path) -> None:
    """Finish, or take back, what one of ours left in a work tree when it was killed."""
    lock = IndexLock(git_dir)
    with anyio.CancelScope(shield=True):
        if (left := await place.act(lock.find_left)) is None:
            return
        new = Oid(left.new)
        job = Job(place, root, git_dir, left.ref, None, new, "merge what a run brought")
        async with _held(job):
            pass


@asynccontextmanager
async def _held(job: Job) -> AsyncGenerator[_Forward | Outcome]:
    """Hold the index of a work tree, with nothing in it that another one of ours left."""
    place, lock = job.place, IndexLock(job.git_dir)
    said = await place.git("hash-object", "-t", "tree", "--stdin")
    nothing = said.stdout.decode().strip()
    purpose = Purpose(job.ref, job.old or nothing, job.new)
    try:
        left = await place.act(partial(lock.take, purpose))
    except (FileExistsError, FileNotFoundError):
        yield refused(
            Reason.BUSY,
            f"another git holds {lock.path}",
            hint="if none runs there, one was killed: remove that file",
        )
        return
    except OSError as error:
        yield refused(Reason.NOT_OWNER, f"{job.git_dir} cannot be written: {error.strerror}")
        return
    try:
        if left is not None:
            await _Forward(job, lock, left, nothing).finish_or_take_back()
        yield _Forward(job, lock, purpose, nothing)
    finally:
        await place.act(lock.release)


class _Forward:
    """One fast-forward, under the lock."""

    def __init__(self, job: Job, lock: IndexLock, purpose: Purpose, nothing: str) -> None:
        self._place, self._root, self._lock = job.place, job.root, lock
        self._purpose, self._old, self._message = purpose, job.old, job.message
        self._nothing = nothing
        self._copy, self._done = lock.folder / "index", lock.folder / "index-done"

    async def run(self) -> Outcome | None:
        ref, new = self._purpose.ref, Oid(self._purpose.new)
        if await self._head() != ref:
            return None
        now = (await self._place.stands(ref)).oid
        if now == new:
            return Landed(ref.removeprefix(HEADS), new, str(self._root))
        if now != self._old:
            return Moved(now)
        touched = await self._touched()
        if refusal := await self._find_in_progress() or await self._find_unsafe(touched):
            return refusal
        kept = Keepsakes(self._root, self._lock.folder / "kept")
        # Before the index is looked at: a second name is a change that git sees.
        await self._place.act(
            partial(kept.keep, [each.path for each in touched if each.old_mode != _NONE])
        )
        await self._copy_index()
        if refusal := await self._find_in_the_way(touched):
            return refusal
        try:
            return await self._move(touched, kept)
        except errors.CommandFailed as error:
            now = (await self._place.stands(ref)).oid
            if now != self._old:
                return Moved(now) if now != new else None
            if "File exists" in error.stderr:
                return refused(Reason.BUSY, f"another git holds {ref} or HEAD in {self._root}")
            raise

    async def _move(self, touched: list[_Touched], kept: Keepsakes) -> Outcome | None:
        ref, new = self._purpose.ref, Oid(self._purpose.new)
        expected = self._old or Oid("0" * len(new))
        async with self._moving(new, expected, self._message) as commit:
            if await self._head() != ref:
                return None
            try:
                await self._write(touched)
            except errors.CommandFailed as error:
                if refusal := _in_the_way(error.stderr):
                    return refusal
                raise
            await commit()
        await self._place.act(partial(self._done.replace, self._lock.index))
        wrote = await self._give_back(kept)
        names = tuple(path.decode(errors="backslashreplace") for path in wrote)
        return Landed(ref.removeprefix(HEADS), new, str(self._root), names)

    async def catch_up(self) -> bool:
        """Do what is left to do where a work tree came to the branch while that moved."""
        new = self._purpose.new
        if await self._head() != self._purpose.ref:
            return False
        if (await self._place.stands(self._purpose.ref)).oid != new:
            return False
        touched = await self._touched()
        paths = {each.path for each in touched}
        await self._copy_index()
        words = ["--name-only", "--cached", "--no-renames", "--ignore-submodules=none", new]
        if not paths & {*await self._list("diff-index", *words)}:
            return True
        if await self._find_in_progress() or await self._find_unsafe(touched):
            return False
        if await self._find_in_the_way(touched):
            return False
        try:
            await self._write(touched)
        except errors.CommandFailed:
            return False
        await self._place.act(partial(self._done.replace, self._lock.index))
        return True

    async def _write(self, touched: list[_Touched]) -> None:
        old, new = self._purpose.old, self._purpose.new
        try:
            await self._git("read-tree", "-m", "-u", "--no-recurse-submodules", old, new)
        except errors.CommandFailed as error:
            # Of what is in the way git says so before it writes anything.
            if not _in_the_way(error.stderr):
                await self._take_back(touched)
            raise
        await self._place.act(partial(self._copy.replace, self._done))

    async def _give_back(self, kept: Keepsakes) -> list[bytes]:
        written = await self._place.act(kept.find_written)
        if written:
            await self._copy_index()
            again = set(await self._list("diff-files", "--name-only", "--ignore-submodules=all"))
            await self._place.act(partial(kept.give_back, written, again))
        return written

    async def finish_or_take_back(self) -> None:
        """Bring what one of ours left, who has ended, to an end.

        When its files were all written the branch moves as it was to, unless somebody has moved it
        since. Otherwise they are written back.
        """
        ref, old, new = self._purpose.ref, self._purpose.old, self._purpose.new
        locks = [self._lock.path.with_name("HEAD.lock"), self._place.common / f"{ref}.lock"]
        await self._place.act(partial(clear_ref_locks, locks, new))
        if await self._place.act(self._done.exists):
            now = (await self._place.stands(ref)).oid or self._nothing
            if await self._head() == ref and now in {old, new}:
                if now == old:
                    before = Oid("0" * len(new) if old == self._nothing else old)
                    message = f"{self._message} (finished)"
                    async with self._moving(new, before, message) as commit:
                        await commit()
                await self._place.act(partial(self._done.replace, self._lock.index))
                return
        await self._take_back(await self._touched())

    def _moving(self, new: str, old: str, message: str) -> Moving:
        ref, held = self._purpose.ref, [self._lock.handle]
        return self._place.moving(ref, Oid(new), Oid(old), message, self._root, held)

    async def _head(self) -> str:
        words = ["symbolic-ref", "--quiet", "HEAD"]
        done = await self._place.git(*words, at=self._root, ok=(0, 1))
        return done.stdout.decode(errors="replace").strip()

    async def _touched(self) -> list[_Touched]:
        words = ["diff-tree", "-r", "-z", "--no-renames", "--raw", "--no-abbrev"]
        words += [self._purpose.old, self._purpose.new]
        parts = (await self._place.git(*words, timeout_s=command.LONG_S)).stdout.split(b"\0")
        found: list[_Touched] = []
        for about, path in zip(parts[::2], parts[1::2], strict=False):
            old_mode, new_mode, _, new_oid, _ = about.removeprefix(b":").split(b" ")
            found.append(_Touched(path, old_mode, new_mode, new_oid.decode()))
        return found

    async def _find_in_progress(self) -> Outcome | None:
        folder = self._lock.path.parent
        for name, what in _SIGNS.items():
            if await self._place.act((folder / name).exists):
                return refused(
                    Reason.IN_PROGRESS,
                    f"{what} is in progress in {self._root}",
                    hint="finish or abort it",
                )
        return None

    async def _find_unsafe(self, touched: list[_Touched]) -> Outcome | None:
        """Refuse what git could only do by running a program or reaching into a submodule."""
        links = {each.path for each in touched if each.old_mode == _LINK and each.new_mode != _LINK}
        if links:
            added = [each for each in touched if each.new_mode != _NONE]
            wrong = [each.path for each in added if each.path in links or _below(each.path, links)]
            if wrong:
                return refused(
                    Reason.SUBMODULE, "submodules would become files", wrong, hint=self._by_hand()
                )
        after = {"GIT_INDEX_FILE": str(self._lock.folder / "index-attributes")}
        await self._git("read-tree", self._purpose.new, env=after)
        paths = [each.path for each in touched if each.new_mode not in {_NONE, _LINK}]
        gone = [each.path for each in touched if each.old_mode not in {_NONE, _LINK}]
        before = {"GIT_INDEX_FILE": str(self._lock.index)}
        filtered = [*await self._filtered(paths, after), *await self._filtered(gone, before)]
        if filtered:
            return refused(
                Reason.FILTERED,
                "a program that is configured as their filter would have to write these files",
                filtered,
                hint=self._by_hand(),
            )
        return await self._find_collisions(paths, after)

    async def _filtered(self, paths: list[bytes], env: dict[str, str]) -> list[bytes]:
        words = ["check-attr", "-z", "--cached", "--stdin", "filter"]
        given = b"".join(path + b"\0" for path in paths)
        said = (await self._git(*words, stdin=given, env=env)).split(b"\0")
        values = zip(said[::3], said[2::3], strict=False)
        return [path for path, value in values if value not in {b"unspecified", b"unset", b"set"}]

    async def _find_collisions(self, paths: list[bytes], env: dict[str, str]) -> Outcome | None:
        words = ["config", "--type=bool", "core.ignoreCase"]
        said = await self._place.git(*words, at=self._root, ok=(0, 1))
        if said.stdout.strip() != b"true":
            return None
        known: dict[str, bytes] = {}
        wrong: list[bytes] = []
        touched = set(paths)
        for path in await self._list("ls-files", env=env):
            other = known.setdefault(os.fsdecode(path).casefold(), path)
            if other != path and touched & {other, path}:
                wrong += [other, path]
        if not wrong:
            return None
        return refused(Reason.COLLIDES, "here these names are one and the same", wrong)

    async def _copy_index(self) -> None:
        await self._place.act(partial(_copy, self._lock.index, self._copy))
        # Its answer is who differs, which is asked for otherwise.
        await self._git("update-index", "-q", "--refresh", ok=(0, 1))

    async def _find_in_the_way(self, touched: list[_Touched]) -> Outcome | None:
        if unmerged := await self._list("ls-files", "--unmerged"):
            files = [entry.partition(b"\t")[2] for entry in unmerged]
            return refused(Reason.UNMERGED, f"{self._root} has files that do not merge", files)
        paths = {each.path for each in touched}
        words = ["--cached", "--no-renames", "--ignore-submodules=none", self._purpose.old]
        staged = await self._list("diff-index", "--name-only", *words)
        changed = await self._list("diff-files", "--name-only", "--ignore-submodules=all")
        if dirty := paths & {*staged, *changed}:
            return refused(
                Reason.DIRTY,
                f"{self._root} has changes that are not committed in files the result touches",
                list(dirty),
                hint="commit or stash them",
            )
        added = [each.path for each in touched if each.old_mode == _NONE]
        lying = partial(_lying, self._root, added)
        if untracked := await self._place.act(lying):
            return refused(
                Reason.UNTRACKED,
                f"{self._root} has files of their own where the result has some",
                untracked,
                hint="move, remove or commit them",
            )
        return None

    async def _take_back(self, touched: list[_Touched]) -> None:
        """Write the old files again where git was writing the new ones.

        Only what lies there in the middle of being written, or just written, is replaced.
        """
        await self._copy_index()
        changed = set(await self._list("diff-files", "--name-only", "--ignore-submodules=all"))
        # What the index knows is no addition: one that ended at its last step has left all as new.
        known = set(await self._list("ls-files"))
        again: list[bytes] = []
        for each in touched:
            if each.old_mode == _NONE:
                if each.path not in known and await self._is_ours(each):
                    await self._place.act(partial(worktree.remove, self._root, each.path))
            elif each.path in changed and each.old_mode != _LINK and await self._is_ours(each):
                await self._place.act(partial(worktree.remove, self._root, each.path))
                again.append(each.path)
        given = b"".join(path + b"\0" for path in again)
        await self._git("checkout-index", "--force", "--quiet", "-z", "--stdin", stdin=given)

    async def _is_ours(self, each: _Touched) -> bool:
        """Tell whether a file is missing, or the beginning of what git writes there, or all."""
        if _LINK in {each.old_mode, each.new_mode}:
            return False
        if await self._place.act(partial(worktree.find, self._root, each.path)) is None:
            return True
        if each.new_mode == _NONE:
            return False
        there = await self._place.act(partial(worktree.read, self._root, each.path, _COMPARED_CAP))
        if there is None:
            return False
        words = ["cat-file", "blob", each.new_oid]
        if each.new_mode != _SYMLINK:
            path = os.fsdecode(each.path)
            words = ["cat-file", "--filters", f"--path={path}", each.new_oid]
        return (await self._git(*words)).startswith(there)

    async def _list(self, verb: str, *words: str, env: dict[str, str] | None = None) -> list[bytes]:
        said = await self._git(verb, "-z", *words, env=env)
        return [path for path in said.split(b"\0") if path]

    async def _git(
        self,
        *words: str,
        stdin: bytes = b"",
        env: dict[str, str] | None = None,
        ok: Collection[int] = (0,),
    ) -> bytes:
        """Run git in the work tree, on our copy of its index."""
        done = await self._place.git(
            *words,
            at=self._root,
            stdin=stdin,
            env={"GIT_INDEX_FILE": str(self._copy)} | (env or {}),
            timeout_s=command.LONG_S,
            ok=ok,
            pass_fds=[self._lock.handle],
        )
        return done.stdout

    def _by_hand(self) -> str:
        return f"merge it yourself: git merge --ff-only {self._purpose.new}"


def _below(path: bytes, folders: Collection[bytes]) -> bool:
    parts = path.split(b"/")
    return any(b"/".join(parts[:depth]) in folders for depth in range(1, len(parts)))


def _copy(index: Path, copy: Path) -> None:
    copy.unlink(missing_ok=True)
    # Left by a git of ours that was killed: whoever has our lock is alone here.
    copy.with_name(f"{copy.name}.lock").unlink(missing_ok=True)
    # A repository in which nothing was ever staged has none.
    if index.exists():
        # With its time: git reads again what was written no earlier than that.
        shutil.copy2(index, copy)


def _lying(root: Path, paths: Iterable[bytes]) -> list[bytes]:
    """Name those where something is; git itself looks whether it knows all that is in a folder."""
    found = ((path, worktree.find(root, path)) for path in paths)
    return [path for path, about in found if about and not S_ISDIR(about.st_mode)]


def _in_the_way(said: str) -> Outcome | None:
    for reason, pattern in _IN_THE_WAY:
        if found := pattern.findall(said):
            files = [os.fsencode(name) for name in found]
            return refused(reason, "what lies there would be overwritten", files)
    return None
