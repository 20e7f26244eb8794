"""A user's work tree looked at through a repository of ours, so that nothing of theirs is written.

The shadow has a copy of their index and of what says which files are ignored, and a configuration
of ours with those of their settings that change how a file becomes an object. It names no program:
no filter, monitor or hook of theirs runs, whoever wrote their configuration. Git writes to the copy
of the index and, where objects are made at all, to a folder of ours.
Above stand upstream.py and uncommitted.py; below, command.py.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING

import anyio.to_thread

from microvm_orchestrator import errors, proc
from microvm_orchestrator.git import lfs
from microvm_orchestrator.git.command import LONG_S, git, objects_at

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from microvm_orchestrator.git.names import ObjectFormat, Oid

# How files become objects and which of them are looked at; all plain values, none a program.
_KEPT = {
    "core.attributesfile",
    "core.autocrlf",
    "core.checkstat",
    "core.eol",
    "core.excludesfile",
    "core.filemode",
    "core.ignorecase",
    "core.precomposeunicode",
    "core.sparsecheckout",
    "core.sparsecheckoutcone",
    "core.symlinks",
    "core.trustctime",
    "index.sparse",
}
_PATHS = {"core.attributesfile", "core.excludesfile"}
# Paths of a large tree, in one answer.
_LIST_CAP = 1 << 28


@dataclass(frozen=True, slots=True)
class Source:
    """What a shadow is made of."""

    work_tree: Path
    git_dir: Path
    # Shared by the linked work trees of a repository; otherwise the same.
    common_dir: Path
    object_format: ObjectFormat
    head: Oid | None
    # Of whoever owns the repository: what they have git ignore everywhere is ignored here too.
    home: Path | None


@dataclass(frozen=True, slots=True)
class Changes:
    """How a work tree differs from its index, as paths from its top."""

    deleted: list[bytes] = field(default_factory=list[bytes])
    changed: list[bytes] = field(default_factory=list[bytes])
    # Neither tracked nor ignored.
    untracked: list[bytes] = field(default_factory=list[bytes])

    @property
    def present(self) -> list[bytes]:
        """What is to be read from the work tree."""
        return self.changed + self.untracked


class Shadow:
    """A repository in `folder` that has the work tree of another."""

    def __init__(
        self,
        source: Source,
        folder: Path,
        settings: Mapping[str, str],
        objects: Mapping[str, str] | None = None,
    ) -> None:
        self.source = source
        self._folder = folder
        seen = objects or objects_at(folder / "objects", source.common_dir / "objects")
        self._env = {"GIT_DIR": str(folder), "GIT_WORK_TREE": str(source.work_tree), **seen}
        self._settings = {
            "core.safecrlf": "false",
            "core.splitIndex": "false",
            **settings,
        }

    def storing(self, objects: Mapping[str, str]) -> Shadow:
        """Give the same with these objects, among which are to be none of theirs.

        Git gives a new time to an object that it would write and finds elsewhere, and it writes
        trees wherever an index is not what it needs. So theirs are in sight only of a git that does
        nothing but read.
        """
        settings = self._settings | {"index.sparse": "false"}
        return Shadow(self.source, self._folder, settings, objects)

    async def git(
        self,
        *words: proc.Argument,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        ok: Collection[int] = (0,),
    ) -> proc.Finished:
        return await git(
            *words,
            at=self.source.work_tree,
            stdin=stdin,
            env=self._env | dict(env or {}),
            settings=self._settings,
            ok=ok,
            cap=_LIST_CAP,
            timeout_s=LONG_S,
        )

    async def changes(self) -> Changes:
        """List what differs, by content and not only by time.

        Raises: RepoRefused while a merge is not resolved.
        """
        # Files that were only touched are not listed; 1 says that some do differ.
        await self.git("update-index", "-q", "--refresh", ok=(0, 1))
        listed = await self._paths("diff-files", "--name-status", "--ignore-submodules=dirty")
        found = Changes()
        for status, path in zip(listed[::2], listed[1::2], strict=True):
            if status == b"U":
                raise errors.RepoRefused(
                    f"{self.source.work_tree} is in the middle of a merge that is not resolved"
                )
            (found.deleted if status == b"D" else found.changed).append(path)
        others = await self._paths("ls-files", "--others", "--exclude-standard")
        # A name with a slash at its end is another repository, which is nobody's file.
        found.untracked.extend(path for path in others if not path.endswith(b"/"))
        return found

    async def _paths(self, *words: str) -> list[bytes]:
        done = await self.git(words[0], "-z", *words[1:])
        if done.truncated:
            raise errors.TooLarge(f"{self.source.work_tree} has too many files to be looked at")
        return done.stdout.split(b"\0")[:-1]

    async def filtered(self, paths: Sequence[bytes]) -> dict[bytes, str]:
        """Tell which of these files are to pass a filter, and which one."""
        if not paths:
            return {}
        done = await self.git("check-attr", "-z", "--stdin", "filter", stdin=terminated(paths))
        said = done.stdout.split(b"\0")[:-1]
        named = {
            path: value.decode(errors="replace")
            for path, value in zip(said[::3], said[2::3], strict=True)
            if value not in {b"unspecified", b"unset", b"set"}
        }
        regular = await anyio.to_thread.run_sync(self._regular, list(named))
        return {path: named[path] for path in regular}

    def _regular(self, paths: Sequence[bytes]) -> list[bytes]:
        """Leave what a filter is for: links and other repositories pass none."""
        top = self.source.work_tree
        return [path for path in paths if S_ISREG(lstat(top, path).st_mode)]

    async def is_dirty(self) -> bool:
        """Tell whether there is anything that is not committed, ignored files apart."""
        words = ["--porcelain", "--no-renames", "--untracked-files=normal"]
        listed = await self._paths("status", *words, "--ignore-submodules=dirty")
        changed = [entry[3:] for entry in listed if entry.startswith(b" M ")]
        # Looking up more in an index that leaves folders out would write them.
        if len(changed) < len(listed) or self._settings.get("index.sparse") == "true":
            return bool(listed)
        # Without its filter a file kept by LFS looks changed whenever git looks at its content.
        filters = await self.filtered(changed)
        pointers = [path for path in changed if filters.get(path) == lfs.FILTER]
        return len(pointers) < len(changed) or bool(await self._moved(pointers))

    async def _moved(self, paths: Sequence[bytes]) -> list[bytes]:
        """Leave the files of LFS that are not what the index has for them."""
        if not paths:
            return []
        made = await self.pointers(paths)
        found: list[bytes] = []
        for path, pointer in made.items():
            done = await self.git("cat-file", "blob", f":0:{os.fsdecode(path)}")
            if done.stdout != pointer:
                found.append(path)
        return found

    async def pointers(self, paths: Sequence[bytes]) -> dict[bytes, bytes]:
        """Make what LFS would commit for these files."""

        def make() -> dict[bytes, bytes]:
            top = self.source.work_tree
            found: dict[bytes, bytes] = {}
            for path in paths:
                try:
                    found[path] = lfs.pointer_of(top / os.fsdecode(path))
                except OSError as error:
                    raise errors.Unavailable(
                        f"{os.fsdecode(path)!a} cannot be read: {error.strerror}"
                    ) from error
            return found

        return await anyio.to_thread.run_sync(make)


def lstat(top: Path, path: bytes) -> os.stat_result:
    """Raises: Unavailable when it has gone since it was listed."""
    try:
        return (top / os.fsdecode(path)).lstat()
    except OSError as error:
        raise errors.Unavailable(
            f"{os.fsdecode(path)!a} changed while {top} was looked at: {error.strerror}"
        ) from error


def terminated(paths: Sequence[bytes]) -> bytes:
    """Write paths as git reads them with -z."""
    return b"".join(path + b"\0" for path in paths)


async def make(source: Source, folder: Path) -> Shadow:
    """Make a shadow in a folder that is there and empty; whoever made the folder removes it.

    It can read their objects, and is not to write any.
    """
    settings: dict[str, str] = {}
    for file in await anyio.to_thread.run_sync(_settings_in, source.home):
        listed = await git("config", "-z", "--list", "--file", file, at=folder, ok=(0, 1, 128))
        settings |= _kept(listed.stdout, file)
    listed = await git("config", "-z", "--list", at=source.work_tree)
    home = source.home
    settings |= _kept(listed.stdout, home / ".gitconfig" if home else None)
    if home:
        settings = {
            "core.excludesfile": str(home / ".config/git/ignore"),
            "core.attributesfile": str(home / ".config/git/attributes"),
            **settings,
        }
    try:
        await anyio.to_thread.run_sync(_furnish, source, folder)
    except OSError as error:
        raise errors.RepoRefused(
            f"{error.filename} cannot be read: {error.strerror}",
            hint="the service's user needs to read the repository",
        ) from error
    return Shadow(source, folder, settings)


def _kept(listed: bytes, file: Path | None) -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in listed.decode(errors="surrogateescape").split("\0")[:-1]:
        key, has_value, value = entry.partition("\n")
        if key not in _KEPT:
            continue
        if key in _PATHS:
            if value.startswith("~/") and file is not None:
                value = str(file.parent / value[2:])
            if not value.startswith("/"):
                continue
        found[key] = value if has_value else "true"
    return found


def home_of_owner(path: Path) -> Path | None:
    """Find the home of whoever owns a folder; None if they are not known here."""
    try:
        return Path(pwd.getpwuid(path.stat().st_uid).pw_dir)
    except KeyError:
        return None


def _settings_in(home: Path | None) -> list[Path]:
    """Find the settings that the owner's own git has, as far as they are ours to read."""
    files = [home / ".config/git/config", home / ".gitconfig"] if home else []
    return [file for file in files if os.access(file, os.R_OK) and file.is_file()]


def _furnish(source: Source, folder: Path) -> None:
    (folder / "refs").mkdir()
    (folder / "objects").mkdir()
    (folder / "info").mkdir()
    (folder / "HEAD").write_text(f"{source.head or 'ref: refs/heads/none'}\n")
    (folder / "config").write_text(
        "[core]\n\trepositoryformatversion = 1\n\tbare = false\n"
        f"[extensions]\n\tobjectformat = {source.object_format}\n"
    )
    # With its time: git trusts what it noted of a file only if that is older than the index.
    copied = [source.git_dir / "index", *source.git_dir.glob("sharedindex.*")]
    for file in copied:
        with contextlib.suppress(FileNotFoundError):
            shutil.copy2(file, folder / file.name)
    sparse = source.git_dir / "info/sparse-checkout"
    for file in (source.common_dir / "info/exclude", source.common_dir / "info/attributes", sparse):
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(file, folder / "info" / file.name)
