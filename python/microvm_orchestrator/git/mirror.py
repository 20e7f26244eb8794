"""A bare repository of our own for each registered one; guests are served from it and judged in it.

    refs/upstream/heads/*, refs/upstream/tags/*   what upstream had when it was last looked at
    refs/upstream/HEAD                            the commit it had checked out, if any
    refs/tasks/<id>, refs/agents/<id>,
    refs/bases/<id>, ...                          ours, moved only by compare-and-swap

Its configuration is written by us alone. Readers need no lock and neither do moves of single refs,
which git serialises; what rewrites many refs or packs takes `lock`, so there is to be one `Mirror`
for a folder. Objects are never dropped while in use: `tidy` leaves alone what is younger than two
weeks. Above stand the other files of this room; below, command.py.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shutil
import tempfile
from pathlib import Path

import anyio
import anyio.to_thread

from microvm_orchestrator import errors
from microvm_orchestrator.git import names
from microvm_orchestrator.git.command import LONG_S, git, line
from microvm_orchestrator.git.names import ObjectFormat, Oid

UPSTREAM = "refs/upstream/"
HEADS = f"{UPSTREAM}heads/"
TAGS = f"{UPSTREAM}tags/"
HEAD = f"{UPSTREAM}HEAD"

_KINDS = ("tasks", "agents", "bases", "merges", "snapshots")
_OWN = re.compile(rf"refs/(?:{'|'.join(_KINDS)})/[A-Za-z0-9][A-Za-z0-9_-]{{0,99}}")
# What a client may call a commit by its full name, and where that is in the mirror.
_PLACES = {
    "refs/heads/": HEADS,
    "refs/tags/": TAGS,
    **{f"refs/{kind}/": f"refs/{kind}/" for kind in _KINDS},
}

# The other end of a fetch clears the settings it was started with, so it is given some of its own;
# the words are ours and the path is quoted by git.
_UPLOAD_PACK = "git -c 'safe.directory=*' -c core.hooksPath=/dev/null upload-pack"

# With more of them git takes its time to find an object. Each refresh and each task brings a pack.
_LOOSE = 2000
_PACKS = 50

# Left in the folder by a git that was killed.
_LEFT_FILES = re.compile(r".+\.lock|tmp_(?:obj|pack|idx|rev|mtimes)_.+|\.tmp-.+")
_LEFT_FOLDERS = re.compile(r"(?:tmp_objdir-)?incoming-.+")


class Mirror:
    """Our copy of one repository; it need not exist until `make`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # Held by whoever rewrites many refs or packs at once.
        self.lock = anyio.Lock()
        self._format: ObjectFormat | None = None

    async def make(self, object_format: ObjectFormat) -> None:
        """Make the folder, whole or not at all; one that is there is left as it is.

        Raises: Conflict when it is there and of another object format.
        """
        async with self.lock:
            if not self.path.exists():
                await self._init(object_format)
        if (found := await self.object_format()) is not object_format:
            raise errors.Conflict(
                f"{self.path} names its objects by {found}, the repository by {object_format}"
            )

    async def _init(self, object_format: ObjectFormat) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{self.path.name}-", dir=self.path.parent))
        try:
            words = ["init", "--quiet", "--bare", "--template=", f"--object-format={object_format}"]
            await git(*words, "--initial-branch=none", ".", at=made)
            await anyio.Path(made).rename(self.path)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise

    async def object_format(self) -> ObjectFormat:
        if self._format is None:
            said = await line("rev-parse", "--show-object-format", at=self.path)
            self._format = ObjectFormat(said)
        return self._format

    async def refresh(self, upstream: Path) -> None:
        """Fetch what upstream has and we have not; forget the branches and tags it no longer has.

        Nothing in `upstream` is changed. Raises: RepoRefused when its history is not whole,
        CommandFailed when it cannot be read.
        """
        async with self.lock:
            if await line("rev-parse", "--is-shallow-repository", at=upstream) != "false":
                raise errors.RepoRefused(
                    f"{upstream} is a shallow clone: a part of its history is not there",
                    hint="`git fetch --unshallow` in it gets the rest",
                )
            head = await line(
                "rev-parse", "--quiet", "--verify", "HEAD^{commit}", at=upstream, ok=(0, 1)
            )
            specs = [f"+refs/heads/*:{HEADS}*", f"+refs/tags/*:{TAGS}*"]
            await git(
                "fetch",
                "--quiet",
                "--prune",
                "--no-tags",
                "--no-write-fetch-head",
                "--no-auto-maintenance",
                "--no-recurse-submodules",
                f"--upload-pack={_UPLOAD_PACK}",
                upstream,
                *(specs + [f"+HEAD:{HEAD}"] * bool(head)),
                at=self.path,
                env={"GIT_ALLOW_PROTOCOL": "file"},
                # A pack is on the disk before the refs name what is in it; loose objects need not.
                settings={"fetch.unpackLimit": "1", "fetch.writeCommitGraph": "false"},
                timeout_s=LONG_S,
            )
            if not head:
                await git("update-ref", "--no-deref", "-d", HEAD, at=self.path)

    async def resolve(self, name: str) -> Oid:
        """Find the commit that a client calls by a branch, a tag, HEAD or an object name.

        A branch goes before a tag and both before an object name. Full names may say which
        (`refs/tags/v1`, `refs/tasks/<id>`). Raises: InvalidInput, NotFound.
        """
        names.check(name)
        for ref in self._places_of(name):
            if oid := await self._find_commit(ref):
                return oid
        if names.is_short_oid(name) and (oid := await self._find_commit(name)):
            return oid
        raise errors.NotFound(f"no branch, tag or commit is called {name[:80]!a}")

    @staticmethod
    def _places_of(name: str) -> list[str]:
        for full, place in _PLACES.items():
            if name.startswith(full):
                return [place + name.removeprefix(full)]
        if name == "HEAD":
            return [HEAD]
        return [HEADS + name, TAGS + name]

    async def _find_commit(self, name: str) -> Oid | None:
        words = ["rev-parse", "--quiet", "--verify", "--end-of-options", f"{name}^{{commit}}"]
        oid = await line(*words, at=self.path, ok=(0, 1))
        return Oid(oid) if oid else None

    async def find(self, ref: str) -> Oid | None:
        """Tell where one of our refs, or of those of upstream, stands."""
        words = ["for-each-ref", "--format=%(refname) %(objectname)", names.check(ref)]
        said = (await git(*words, at=self.path)).stdout.decode()
        # A pattern also matches everything below it.
        for entry in said.splitlines():
            full, _, oid = entry.rpartition(" ")
            if full == ref:
                return Oid(oid)
        return None

    async def refs(self, prefix: str = "refs/") -> dict[str, Oid]:
        """List the refs below a prefix."""
        words = ["for-each-ref", "--format=%(refname) %(objectname)", prefix]
        done = await git(*words, at=self.path, cap=1 << 28)
        entries = [entry.rpartition(" ") for entry in done.stdout.decode().splitlines()]
        return {name: Oid(oid) for name, _, oid in entries}

    async def keep(self, ref: str, oid: Oid, expect: Oid | None) -> None:
        """Let a ref of ours stand at an object if it stands where expected; None is nowhere.

        One that stands there already is left. Raises: VersionMoved when it stands elsewhere.
        """
        old = expect or (await self.object_format()).null
        words = ["update-ref", "--no-deref", _own(ref), names.as_oid(oid), names.as_oid(old)]
        await self._swap(ref, oid, expect, words)

    async def drop(self, ref: str, expect: Oid) -> None:
        """Remove a ref of ours if it stands where expected; one that is gone is gone.

        Raises: VersionMoved when it stands elsewhere.
        """
        words = ["update-ref", "--no-deref", "-d", _own(ref), names.as_oid(expect)]
        await self._swap(ref, None, expect, words)

    async def _swap(
        self, ref: str, wanted: Oid | None, expect: Oid | None, words: list[str]
    ) -> None:
        try:
            await git(*words, at=self.path)
        except errors.CommandFailed:
            found = await self.find(ref)
            if found == wanted:
                return
            if found == expect:
                raise
            raise errors.VersionMoved(f"{ref} stands at {found or 'nothing'} now") from None

    async def has(self, oid: Oid) -> bool:
        """Tell whether an object is here, reachable or not."""
        done = await git("cat-file", "-e", names.as_oid(oid), at=self.path, ok=(0, 1))
        return done.status == 0

    async def is_untidy(self) -> bool:
        """Tell whether so much has gathered that to tidy is worth its time."""
        said = (await git("count-objects", "--verbose", at=self.path)).stdout.decode()
        counts = dict(row.split(": ") for row in said.splitlines())
        return int(counts["count"]) > _LOOSE or int(counts["packs"]) > _PACKS

    async def tidy(self) -> None:
        """Pack what has gathered and drop what nothing refers to and is older than two weeks."""
        async with self.lock:
            await git("gc", "--quiet", "--prune=2.weeks.ago", at=self.path, timeout_s=LONG_S)

    async def recover(self) -> None:
        """Remove what a git that was killed left; to be called when none runs here."""
        async with self.lock:
            await anyio.to_thread.run_sync(_sweep, self.path)


def _own(ref: str) -> str:
    if not _OWN.fullmatch(ref):
        raise errors.InvalidInput(f"{ref[:80]!a} is not the name of a ref of ours")
    return ref


def _sweep(path: Path) -> None:
    for half_made in path.parent.glob(f".{glob.escape(path.name)}-*"):
        shutil.rmtree(half_made)
    for folder, folders, files in os.walk(path):
        for name in list(folders):
            if _LEFT_FOLDERS.fullmatch(name):
                folders.remove(name)
                shutil.rmtree(Path(folder) / name)
        for name in files:
            if _LEFT_FILES.fullmatch(name):
                with contextlib.suppress(FileNotFoundError):
                    (Path(folder) / name).unlink()
