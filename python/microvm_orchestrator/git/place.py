"""A user's repository as we may touch it: git run there as its owner, and its work trees.

What the repository's configuration calls for is not run: hooks and monitors are off by settings
that outrank it (`command.py`), and so is every filter that is configured here. A daemon that is
root acts as the owner, so that what it writes is theirs and a link somebody planted leads nowhere
that they could not go themselves; any other daemon acts as itself.

The rights of a thread are changed only on Linux and for single calls, never those of the process.
Above stand land.py and checkout.py; below, command.py and proc.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Generator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread

from microvm_orchestrator import errors, proc
from microvm_orchestrator.git import command
from microvm_orchestrator.git.names import Oid

T = TypeVar("T")
# Around what is held ready to be moved; what it gives is called to move it.
Moving = AbstractAsyncContextManager[Callable[[], Awaitable[None]]]

HEADS = "refs/heads/"
_LIST_CAP = 1 << 28
# On the disk before a ref names it, also what is not in a pack.
_DURABLE = {"core.fsync": "committed,loose-object", "core.fsyncMethod": "batch"}
_NAMES = {"core.protectHFS": "true", "core.protectNTFS": "true"}
_QUIET = {"core.splitIndex": "false", "submodule.recurse": "false"}
# Where git writes down which branch is in the middle of something.
_BRANCH_FILES = ("rebase-merge/head-name", "rebase-apply/head-name", "BISECT_START")
_NO_CHANGE = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Worktree:
    """A folder with files in it, and the branch that is checked out there."""

    path: Path
    ref: str | None


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a ref stands, and which other one it stands for, if it does."""

    oid: Oid | None
    symbolic: str | None


@contextlib.contextmanager
def acting_as(user: tuple[int, int] | None) -> Generator[None]:
    """Let this thread, and no other, open files by that user's rights."""
    if user is None:
        yield
        return
    libc = ctypes.CDLL(None)
    set_group, set_user = libc.setfsgid, libc.setfsuid
    for each in (set_group, set_user):
        each.argtypes = [ctypes.c_uint]
    uid, gid = user
    before = set_user(_NO_CHANGE), set_group(_NO_CHANGE)
    set_group(gid)
    set_user(uid)
    try:
        if (set_user(_NO_CHANGE), set_group(_NO_CHANGE)) != (uid, gid):
            raise PermissionError(f"this process may not act as user {uid}")
        yield
    finally:
        set_user(before[0])
        set_group(before[1])


class Place:
    """A user's repository; made by `open_place`."""

    def __init__(
        self,
        path: Path,
        common: Path,
        user: tuple[int, int] | None,
        umask: int,
        filters: Mapping[str, str],
    ) -> None:
        self.path = path
        # What all its work trees share.
        self.common = common
        self.user = user
        # What is written there is open to whom the repository itself is open to.
        self.umask = umask
        self._settings = _DURABLE | _NAMES | _QUIET | dict(filters)

    async def git(
        self,
        *words: proc.Argument,
        at: Path | None = None,
        stdin: bytes | proc.IO[bytes] = b"",
        env: Mapping[str, str] | None = None,
        timeout_s: float = command.QUICK_S,
        ok: Collection[int] = (0,),
        pass_fds: Collection[int] = (),
    ) -> proc.Finished:
        """Run git as the owner. Raises: CommandFailed, TooLarge when it has too much to say."""
        where = at or self.path
        done = await proc.run(
            ["git", *words],
            cwd=where,
            env=self.environment(where) | dict(env or {}),
            stdin=stdin,
            cap=_LIST_CAP,
            timeout_s=timeout_s,
            statuses=ok,
            pass_fds=pass_fds,
            user=self.user,
            umask=self.umask,
        )
        if done.truncated:
            raise errors.TooLarge(f"git {words[0]} says more than {_LIST_CAP} bytes of {where}")
        return done

    @property
    def acts_as(self) -> int:
        """Whose files are written here."""
        return self.user[0] if self.user else os.geteuid()

    def environment(self, at: Path) -> dict[str, str]:
        return command.environment(at, self._settings)

    async def act(self, work: Callable[[], T]) -> T:
        """Do something with files as the owner."""
        return await anyio.to_thread.run_sync(_by, self.user, work)

    async def stands(self, ref: str) -> Standing:
        words = ["for-each-ref", "--format=%(objectname) %(symref) %(refname)", ref]
        for line in (await self.git(*words)).stdout.decode().splitlines():
            oid, symbolic, name = line.split(" ", 2)
            # A pattern also matches what is below it.
            if name == ref:
                return Standing(Oid(oid), symbolic or None)
        return Standing(None, None)

    async def worktrees(self) -> list[Worktree]:
        said = (await self.git("worktree", "list", "--porcelain", "-z")).stdout
        found: list[Worktree] = []
        for record in said.split(b"\0\0"):
            fields = dict(_field(line) for line in record.split(b"\0") if line)
            if b"worktree" not in fields or b"bare" in fields:
                continue
            path, branch = fields[b"worktree"], fields.get(b"branch")
            found.append(
                Worktree(
                    Path(os.fsdecode(path)), branch.decode(errors="replace") if branch else None
                )
            )
        # Of a repository whose files lie elsewhere than beside it, git lists the repository.
        if found and found[0].path == self.common:
            top = await self.git("rev-parse", "--show-toplevel")
            found[0] = Worktree(_path(top.stdout), found[0].ref)
        return found

    async def find_busy(self, ref: str) -> str | None:
        """Say what is in progress, in whichever work tree, for which this branch shall stay."""
        return await self.act(lambda: self._find_busy(ref))

    def _find_busy(self, ref: str) -> str | None:
        name = ref.removeprefix(HEADS)
        for folder in self._git_dirs():
            for file in _BRANCH_FILES:
                with contextlib.suppress(OSError):
                    if (folder / file).read_text(errors="replace").strip() in {ref, name}:
                        return "a bisection" if "BISECT" in file else "a rebase"
        return None

    def has_locks(self) -> bool:
        """Tell whether a git is in the middle of a work tree; blocks."""
        return any((folder / "index.lock").exists() for folder in self._git_dirs())

    def _git_dirs(self) -> list[Path]:
        with contextlib.suppress(FileNotFoundError):
            return [self.common, *sorted((self.common / "worktrees").iterdir())]
        return [self.common]

    @asynccontextmanager
    async def moving(
        self,
        ref: str,
        new: Oid,
        old: Oid,
        message: str,
        at: Path,
        pass_fds: Collection[int] = (),
    ) -> AsyncGenerator[Callable[[], Awaitable[None]]]:
        """Hold a ref, and the HEAD that names it, ready to be moved; call what is given to move it.

        Left without that, nothing has changed. Raises: CommandFailed when it is not at `old` or is
        held by another git.
        """
        with tempfile.TemporaryFile() as complaints:
            async with proc.spawn(
                ["git", "update-ref", "--no-deref", "-m", message, "--stdin"],
                cwd=at,
                env=self.environment(at),
                stdin=proc.PIPE,
                stdout=proc.PIPE,
                stderr=complaints,
                pass_fds=pass_fds,
                user=self.user,
                umask=self.umask,
            ) as process:
                exchange = _Exchange(process, complaints)
                await exchange.say(f"start\nupdate {ref} {new} {old}\nprepare\n", "prepare")
                yield lambda: exchange.say("commit\n", "commit")
                if not exchange.committed:
                    await exchange.end()


class _Exchange:
    """A transaction of refs that is being talked over."""

    def __init__(self, process: proc.Process, complaints: proc.IO[bytes]) -> None:
        self._process, self._complaints = process, complaints
        self.committed = False

    async def say(self, text: str, last: str) -> None:
        stdin, stdout = self._process.stdin, self._process.stdout
        said = b""
        with anyio.move_on_after(command.QUICK_S):
            if stdin and stdout:
                with contextlib.suppress(BrokenPipeError):
                    await stdin.write(text.encode())
                while f"{last}: ok\n".encode() not in said:
                    if not (chunk := await stdout.read()):
                        await self._process.wait()
                        break
                    said += chunk
                else:
                    self.committed = last == "commit"
                    return
        self._complaints.seek(0)
        why = self._complaints.read(1 << 16).decode(errors="replace").strip()
        raise errors.CommandFailed(
            f"git update-ref did not get to {last}: {why or 'it took too long'}",
            argv=("git", "update-ref"),
            status=self._process.status,
            stderr=why,
        )

    async def end(self) -> None:
        """Let go: at the end of what it is told git gives up what it has prepared."""
        if self._process.stdin:
            self._process.stdin.close()
        with anyio.move_on_after(command.QUICK_S, shield=True):
            await self._process.wait()


def _by(user: tuple[int, int] | None, work: Callable[[], T]) -> T:
    with acting_as(user):
        return work()


def _field(line: bytes) -> tuple[bytes, bytes]:
    key, _, value = line.partition(b" ")
    return key, value


def _path(said: bytes) -> Path:
    return Path(os.fsdecode(said.removesuffix(b"\n")))


async def open_place(path: Path) -> Place:
    """Look at a user's repository. Raises: CommandFailed when there is none."""
    said = await command.git("rev-parse", "--path-format=absolute", "--git-common-dir", at=path)
    common = _path(said.stdout)
    owner = await anyio.Path(common).stat()
    user = None
    if os.geteuid() == 0 and owner.st_uid != 0 and sys.platform == "linux":
        user = owner.st_uid, owner.st_gid
    keys = ["--get-regexp", r"^filter\..*\.(clean|smudge|process|required)$"]
    words = ["config", "--null", "--name-only", *keys]
    names = (await command.git(*words, at=path, ok=(0, 1))).stdout.decode(errors="replace")
    # A filter without a command is none, and one that is not required may be missing.
    filters = {
        name: "false" if name.endswith(".required") else "" for name in names.split("\0") if name
    }
    return Place(path, common, user, ~owner.st_mode & 0o077, filters)
