"""A tree from a guest, written beneath one folder of the host and nowhere else.

Nothing that the guest names is resolved by the kernel: each part of a path is opened by itself,
below the folder before it, and never through a link. Only files and folders come into being, with
no more rights than 0755, none of them twice, and no more than the caller allows. It blocks, so it
runs in a worker thread.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from microvm_orchestrator.machine import wire
from microvm_orchestrator.machine.channel.stream import Data, Item, Note

if TYPE_CHECKING:
    from microvm_orchestrator.machine.shell import TreeLimits

_MAX_PATH = 4096
_MAX_NAME = 255
_MAX_DEPTH = 65
_MODE = 0o755
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Arrival:
    """A tree that arrives, entry by entry."""

    def __init__(self, into: Path, limits: TreeLimits) -> None:
        self.files = 0
        self.folders = 0
        self.size = 0
        self._limits = limits
        self._root = os.open(into, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        # Of the entry before: siblings come one after the other.
        self._folder = self._root
        self._folder_parts: list[bytes] = []
        self._file = -1
        self._left = 0

    def close(self) -> None:
        self._close_file()
        self._leave_folder()
        os.close(self._root)

    def take(self, items: list[Item]) -> None:
        """Write what has arrived. Raises: wire.Broken for what must not be; the host's OSError."""
        for item in items:
            if isinstance(item, Note):
                self._begin(item.fields)
            elif isinstance(item, Data) and len(item.payload) <= self._left:
                self._write(item.payload)
            else:
                raise wire.Broken("more of a file than it announced")

    def finish(self) -> None:
        if self._left:
            raise wire.Broken("less of a file than it announced")

    def reopen(self, path: bytes) -> int:
        """Open a file that has arrived, for reading. Raises: wire.Broken where there is none."""
        parts = _parts(path)
        try:
            file = os.open(parts[-1], _FILE, dir_fd=self._enter(parts[:-1]))
        except OSError as error:
            raise wire.Broken(f"another name of what is not there: {path[:200]!r}") from error
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise wire.Broken(f"another name of what is no file: {path[:200]!r}")
        return file

    def _begin(self, fields: wire.Fields) -> None:
        self.finish()
        kind = wire.blob(fields, "type", 16)
        parts = _parts(wire.blob(fields, "path", _MAX_PATH))
        mode = wire.integer(fields, "mode", 0, 0o7777) & _MODE
        if self.files + self.folders >= self._limits.entries:
            raise wire.Broken(f"more than the {self._limits.entries} entries it may")
        try:
            if kind == b"folder":
                self.folders += 1
                os.mkdir(parts[-1], mode | 0o700, dir_fd=self._enter(parts[:-1]))
            elif kind == b"file":
                self.files += 1
                self._left = wire.integer(fields, "size", 0, self._limits.size - self.size)
                self.size += self._left
                folder = self._enter(parts[:-1])
                self._file = os.open(parts[-1], _NEW_FILE, mode | 0o600, dir_fd=folder)
            else:
                raise wire.Broken(f"an entry of the type {kind!r}")
        except (FileExistsError, FileNotFoundError, NotADirectoryError) as error:
            raise wire.Broken(
                f"an entry where it cannot be: {error.strerror}, {b'/'.join(parts)!r}"
            ) from error
        if not self._left:
            self._close_file()

    def _write(self, payload: bytes) -> None:
        view = memoryview(payload)
        while view:
            view = view[os.write(self._file, view) :]
        self._left -= len(payload)
        if not self._left:
            self._close_file()

    def _enter(self, parts: list[bytes]) -> int:
        """Open the folder of an entry, one part after the other."""
        if parts == self._folder_parts:
            return self._folder
        self._leave_folder()
        for part in parts:
            folder = os.open(part, _FOLDER, dir_fd=self._folder)
            self._close_folder()
            self._folder = folder
        self._folder_parts = parts
        return self._folder

    def _leave_folder(self) -> None:
        self._close_folder()
        self._folder = self._root
        self._folder_parts = []

    def _close_folder(self) -> None:
        if self._folder != self._root:
            os.close(self._folder)

    def _close_file(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _parts(path: bytes) -> list[bytes]:
    """Return the names of a path below the root of a tree. Raises: wire.Broken."""
    parts = path.split(b"/")
    if b"\0" in path or any(part in (b"", b".", b"..") for part in parts):
        raise wire.Broken(f"a name that reaches elsewhere: {path[:200]!r}")
    if len(parts) > _MAX_DEPTH or any(len(part) > _MAX_NAME for part in parts):
        raise wire.Broken(f"a name that is too long or too deep: {path[:200]!r}")
    return parts
