"""A bench to merge at: three long-lived gits in a mirror that merge trees and write commits.

Git merges two commits by the base it finds in their history. Here a base is chosen instead: three
throw-away commits, of which one is the parent of the others, carry the three trees. They lie in a
folder that goes with the bench; the mirror only gets what a merge makes. Nothing has a work tree,
and in a bare repository git reads no attributes from what is merged, so no driver or filter of a
guest's choice runs and a file merges as what its bytes are.

A commit is replayed as `git rebase` does it: its author, its message and their encoding as they
are, we its committer, a signature dropped because it would be wrong. What a commit changed and the
branch has already is dropped; a commit that was empty from the start is kept. The same commits on
the same branch by the same committer are the same bytes, so a merge that is done twice is one.

One who merges at a time. A bench starts its gits when it first needs them and they end with it.
Above stands merge.py; below, command.py.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import anyio

from microvm_orchestrator import errors, proc
from microvm_orchestrator.git import command
from microvm_orchestrator.git.conflicts import Clash, Entry, Message
from microvm_orchestrator.git.names import Oid

# Renames among very many large files; a guest may arrange for worse than anybody's history has.
MERGE_S = 120.0
# What one merge may say: a conflict in each of several 100,000 files.
_ANSWER_CAP = 1 << 26
# Git keeps what it has read of a history, so it is begun anew now and then.
_MERGES_EACH = 500
# A commit is a message; one of that size is none.
_OBJECT_CAP = 1 << 25
_REMEMBERED = 4096
# What is thrown away needs no disk, where there is this.
_MEMORY = "/dev/shm"  # noqa: S108 - only for a folder that nobody else can open
# Later than any commit: git then looks at no more history than ours.
_THROWN_AWAY = b"x <x> 4102444800 +0000"

V = TypeVar("V")
_SETTINGS = {
    "merge.conflictStyle": "diff3",
    "merge.renormalize": "false",
    "core.attributesFile": os.devnull,
}


@dataclass(frozen=True, slots=True)
class Committer:
    """Who we are in the commits that we make."""

    name: str
    email: str

    def signed(self, at_s: int) -> bytes:
        words = [
            "".join(char for char in text if char.isprintable() and char not in "<>").strip()
            for text in (self.name, self.email)
        ]
        return f"{words[0]} <{words[1]}> {at_s} +0000".encode()


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit as it is stored; what people wrote in it is bytes."""

    oid: Oid
    tree: str
    parents: tuple[Oid, ...]
    author: bytes
    committer: bytes
    encoding: bytes | None
    message: bytes

    @property
    def committed_at_s(self) -> int:
        return _seconds(self.committer)

    @property
    def subject(self) -> str:
        encoding = (self.encoding or b"utf-8").decode(errors="replace")
        try:
            text = self.message.decode(encoding, errors="replace")
        except LookupError:
            text = self.message.decode(errors="replace")
        return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _seconds(signature: bytes) -> int:
    words = signature.rpartition(b">")[2].split()
    return int(words[0]) if words and words[0].isdigit() else 0


def written(
    tree: str,
    parents: Iterable[str],
    author: bytes,
    committer: bytes,
    message: bytes,
    encoding: bytes | None = None,
) -> bytes:
    """Write down a commit."""
    lines = [f"tree {tree}".encode(), *(f"parent {parent}".encode() for parent in parents)]
    lines += [b"author " + author, b"committer " + committer]
    lines += [b"encoding " + encoding] if encoding else []
    return b"\n".join(lines) + b"\n\n" + message


def _parsed(oid: Oid, raw: bytes) -> Commit:
    head, _, message = raw.partition(b"\n\n")
    fields: dict[bytes, list[bytes]] = {}
    for line in head.split(b"\n"):
        # What starts with a space goes on with a header we do not keep.
        key, _, value = line.partition(b" ")
        fields.setdefault(key, []).append(value)
    try:
        return Commit(
            oid,
            fields[b"tree"][0].decode(),
            tuple(Oid(parent.decode()) for parent in fields.get(b"parent", ())),
            fields[b"author"][0],
            fields[b"committer"][0],
            fields.get(b"encoding", [None])[0],
            message,
        )
    except (KeyError, UnicodeDecodeError):
        raise errors.InvalidInput(f"commit {oid} lacks what a commit has") from None


class _Asked:
    """A git that answers as long as it is asked."""

    def __init__(self, process: proc.Process, complaints: proc.IO[bytes]) -> None:
        assert process.stdin is not None  # noqa: S101 - for the type checker: it was started so
        assert process.stdout is not None  # noqa: S101 - likewise
        self._process, self._complaints = process, complaints
        self._stdin, self._stdout = process.stdin, process.stdout
        self._came = bytearray()
        self._busy = False
        self._left = 0
        self.answers = 0

    @contextlib.contextmanager
    def answering(self, timeout_s: float = command.QUICK_S) -> Generator[None]:
        """Bound one question and its answer; after a broken one it can be asked no more."""
        if self._busy:
            raise self._failed("was left in the middle of an answer")
        self._busy, self._left = True, _ANSWER_CAP
        self.answers += 1
        with anyio.move_on_after(timeout_s) as scope:
            yield
            self._busy = False
        if scope.cancelled_caught:
            raise self._failed(f"took longer than {timeout_s:g} s for an answer")

    @property
    def broken(self) -> bool:
        """Whether an answer was not heard to its end; to be asked between answers."""
        return self._busy

    async def ask(self, question: bytes) -> None:
        try:
            await self._stdin.write(question)
        except BrokenPipeError:
            await self._process.wait()
            raise self._failed("ended") from None

    async def until(self, end: bytes) -> bytes:
        """Give what comes before that byte."""
        looked = 0
        while (at := self._came.find(end, looked)) < 0:
            looked = len(self._came)
            await self._more()
        return self._take(at + 1)[:-1]

    async def exactly(self, size: int) -> bytes:
        while len(self._came) < size:
            await self._more()
        return self._take(size)

    def _take(self, size: int) -> bytes:
        taken = bytes(self._came[:size])
        del self._came[:size]
        return taken

    async def _more(self) -> None:
        chunk = await self._stdout.read()
        if not chunk:
            await self._process.wait()
            raise self._failed("ended")
        self._left -= len(chunk)
        if self._left < 0:
            raise errors.TooLarge(f"git has more to say than {_ANSWER_CAP} bytes about one merge")
        self._came += chunk

    def _failed(self, why: str) -> errors.CommandFailed:
        self._complaints.seek(0)
        said = self._complaints.read(_ANSWER_CAP).decode(errors="replace")[-4000:].strip()
        return errors.CommandFailed(
            f"git {why}" + (f": {said}" if said else ""),
            argv=("git",),
            status=self._process.status,
            stderr=said,
        )


class Workbench:
    """What merges in one mirror; made by `open_workbench`."""

    def __init__(self, at: Path, scratch: Path, stack: AsyncExitStack) -> None:
        self.at = at
        self._scratch, self._stack = scratch, stack
        self._running: dict[str, tuple[_Asked, AsyncExitStack]] = {}
        self._nothing: str | None = None
        # What was read or made lately; one run's result is the next one's target.
        self._commits: dict[str, Commit] = {}
        self._trees: dict[str, None] = {}
        self._roots: dict[str, Oid] = {}
        self._silence = b""
        # Whether the end of the answer before has not been read yet.
        self._end_due = False

    async def commit(self, oid: str) -> Commit:
        """Raises: NotFound when the mirror has no such commit."""
        if known := self._commits.get(oid):
            return known
        # Its tree is looked up with it: this git takes a missing one for an empty one.
        git = await self._reader()
        with git.answering():
            await git.ask(f"contents {oid}^{{commit}}\0info {oid}^{{tree}}\0".encode())
            raw = await _read_object(git)
            tree = (await git.until(b"\n")).split(b" ")
        if raw is None:
            raise errors.NotFound(f"the mirror has no commit {oid}")
        commit = _parsed(Oid(oid), raw)
        if tree[1:2] == [b"tree"]:
            _remember(self._trees, commit.tree, None)
        _remember(self._commits, oid, commit)
        return commit

    def knows(self, oid: str) -> bool:
        """Tell whether a commit need not be read."""
        return oid in self._commits

    async def find_blob(self, tree: str, path: bytes, cap: int) -> bytes | None:
        """Give the bytes of a file in a tree; None for a larger one and for what is no file."""
        if b"\n" in path:
            return None  # an answer that it is missing would be of two lines
        name = tree.encode() + b":" + path
        _, size, found = await self._info(name)
        if found != b"blob" or size > cap:
            return None
        git = await self._reader()
        with git.answering():
            await git.ask(b"contents " + name + b"\0")
            return await _read_object(git)

    async def write(self, commit: bytes) -> Oid:
        """Store a commit in the mirror."""
        (oid,) = await self._hash("write", [commit])
        _remember(self._commits, oid, _parsed(oid, commit))
        return oid

    async def merge(self, base: str | None, ours: str, theirs: str) -> str | Clash:
        """Merge two trees by a third, or by nothing; give the tree that came of it.

        Raises: NotFound when the mirror has no such tree, CommandFailed when git cannot tell.
        """
        nothing = await self.nothing()
        if theirs in {ours, base or nothing}:
            return ours
        if ours == (base or nothing):
            return theirs
        sides = [base or nothing, ours, theirs]
        await self._require([tree for tree in sides if tree not in self._trees])
        root = self._roots.get(sides[0])
        if root is None:
            (root,) = await self._throw_away(sides[0])
            _remember(self._roots, sides[0], root)
        first, second = await self._throw_away(ours, theirs, parent=root)
        git = await self._merger()
        with git.answering(MERGE_S):
            # Git shows an answer, but for its last byte, when it has one; the next one brings that.
            await git.ask(f"{first} {second}\n".encode() + self._silence)
            if self._end_due:
                await git.until(b"\0")
            answer = await _read_merge(git, root, first, second)
            for expected in (b"1", nothing.encode(), b""):
                if await git.until(b"\0") != expected:
                    raise errors.CommandFailed("git merge-tree answers otherwise", argv=("git",))
            self._end_due = True
        if isinstance(answer, str):
            _remember(self._trees, answer, None)
        return answer

    async def _require(self, trees: list[str]) -> None:
        """Look whether these are there."""
        if not trees:
            return
        git = await self._reader()
        with git.answering():
            await git.ask(b"".join(f"info {tree}\0".encode() for tree in trees))
            said = [await git.until(b"\n") for _ in trees]
        for tree, about in zip(trees, said, strict=True):
            if b" tree " not in about:
                raise errors.NotFound(f"the mirror has no tree {tree}")
            _remember(self._trees, tree, None)

    async def nothing(self) -> str:
        """Give the name of the empty tree."""
        if self._nothing is None:
            words = ["hash-object", "-t", "tree", "-w", "--stdin"]
            self._nothing = await command.line(*words, at=self.at)
        return self._nothing

    async def _merger(self) -> _Asked:
        known = self._running.get("merge-tree")
        if known and (known[0].broken or known[0].answers >= _MERGES_EACH):
            del self._running["merge-tree"]
            await known[1].aclose()
        if "merge-tree" not in self._running:
            self._end_due = False
            (alone,) = await self._throw_away(await self.nothing())
            self._silence = f"{alone} {alone}\n".encode()
        words = ["merge-tree", "--write-tree", "--stdin", "-z", "--messages"]
        env = {"GIT_ALTERNATE_OBJECT_DIRECTORIES": f'"{self._scratch}"'}
        return await self._git("merge-tree", words, env)

    async def _throw_away(self, *trees: str, parent: str = "") -> list[Oid]:
        parents = [parent] if parent else []
        texts = [written(tree, parents, _THROWN_AWAY, _THROWN_AWAY, b"") for tree in trees]
        return await self._hash("throw-away", texts)

    async def _hash(self, where: str, texts: list[bytes]) -> list[Oid]:
        words = ["hash-object", "-t", "commit", "-w", "--stdin-paths", "--no-filters"]
        env = {} if where == "write" else {"GIT_OBJECT_DIRECTORY": str(self._scratch)}
        git = await self._git(where, words, env)
        # Git reads files; they are read before they are written anew.
        paths = [self._scratch / f"text{number}" for number in range(len(texts))]
        for path, text in zip(paths, texts, strict=True):
            _put(path, text)
        with git.answering():
            await git.ask("".join(f"{path}\n" for path in paths).encode())
            return [Oid((await git.until(b"\n")).decode()) for _ in paths]

    async def _info(self, name: bytes) -> tuple[bytes, int, bytes]:
        git = await self._reader()
        with git.answering():
            await git.ask(b"info " + name + b"\0")
            words = (await git.until(b"\n")).rsplit(b" ", 2)
        if len(words) != 3 or not words[2].isdigit():
            return b"", 0, b""
        return words[0], int(words[2]), words[1]

    async def _reader(self) -> _Asked:
        return await self._git("cat-file", ["cat-file", "--batch-command", "-z"], {})

    async def _git(self, name: str, words: list[str], env: dict[str, str]) -> _Asked:
        if name in self._running and self._running[name][0].broken:
            await self._running.pop(name)[1].aclose()
        if name not in self._running:
            own = await self._stack.enter_async_context(AsyncExitStack())
            complaints = own.enter_context(
                tempfile.TemporaryFile()  # noqa: SIM115 - the stack closes it
            )
            process = await own.enter_async_context(
                proc.spawn(
                    ["git", *words],
                    cwd=self.at,
                    env=command.environment(self.at, _SETTINGS) | env,
                    stdin=proc.PIPE,
                    stdout=proc.PIPE,
                    stderr=complaints,
                )
            )
            self._running[name] = _Asked(process, complaints), own
        return self._running[name][0]


async def _read_object(git: _Asked) -> bytes | None:
    """Read an object, or that there is none."""
    words = (await git.until(b"\n")).rsplit(b" ", 2)
    if len(words) != 3 or not words[2].isdigit():
        return None
    size = int(words[2])
    if size > _OBJECT_CAP:
        raise errors.TooLarge(f"object {words[0].decode()} is of {size} bytes")
    return (await git.exactly(size + 1))[:-1]


def _remember(known: dict[str, V], key: str, value: V) -> None:
    """Keep what was met last, and not more than is of use."""
    known[key] = value
    if len(known) > _REMEMBERED:
        del known[next(iter(known))]


def _put(path: Path, text: bytes) -> None:
    """Write a file of a page or two, which is over sooner than a thread begins.

    It is cut off behind the text and not emptied before: a file that was emptied and written anew
    goes to the disk at once on ext4, which takes longer than the merge.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.pwrite(handle, text, 0)
        os.ftruncate(handle, len(text))
    finally:
        os.close(handle)


async def _read_merge(git: _Asked, base: str, ours: str, theirs: str) -> str | Clash:
    status = await git.until(b"\0")
    tree = (await git.until(b"\0")).decode()
    entries: list[Entry] = []
    while entry := await git.until(b"\0"):
        about, _, path = entry.partition(b"\t")
        mode, oid, stage = about.decode().split(" ")
        entries.append(Entry(mode, oid, int(stage), path))
    messages: list[Message] = []
    # Advice on submodules comes instead of the last byte, and ends an answer as that does.
    while (count := await git.until(b"\0")).isdigit():
        paths = [await git.until(b"\0") for _ in range(int(count))]
        kind, text = [(await git.until(b"\0")).decode(errors="replace") for _ in range(2)]
        messages.append(Message(tuple(paths), kind, text))
    if status == b"1":
        return tree
    return Clash(tree, base, ours, theirs, tuple(entries), tuple(messages))


@asynccontextmanager
async def open_workbench(at: Path) -> AsyncGenerator[Workbench]:
    """Have a bench for merging in the mirror at `at`, for as long as the block."""
    memory = _MEMORY if os.access(_MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="merge-", dir=memory) as scratch:
        async with AsyncExitStack() as stack:
            yield Workbench(at, Path(scratch), stack)


@dataclass(frozen=True, slots=True)
class Replayed:
    """Where a replay ended: at its end, or at the commit that does not fit."""

    tip: Oid
    made: int
    stopped_at: Commit | None = None
    clash: Clash | None = None


async def replay(
    bench: Workbench,
    commits: AsyncIterator[Commit],
    onto: Commit,
    signed: Callable[[Commit], bytes],
) -> Replayed:
    """Put commits, each with one parent at most, on top of another one by one."""
    tip, tree, made = onto.oid, onto.tree, 0
    async for commit in commits:
        if commit.parents == (tip,):
            tip, tree, made = commit.oid, commit.tree, made + 1
            continue
        before = (await bench.commit(commit.parents[0])).tree if commit.parents else None
        merged = await bench.merge(before, tree, commit.tree)
        if isinstance(merged, Clash):
            return Replayed(tip, made, commit, merged)
        if merged == tree and commit.tree != (before or await bench.nothing()):
            continue
        text = written(
            merged, [tip], commit.author, signed(commit), commit.message, commit.encoding
        )
        tip, tree, made = await bench.write(text), merged, made + 1
    return Replayed(tip, made)
