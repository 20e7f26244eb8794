"""A tree that comes from a machine, written beneath one folder here and nowhere else.

The daemon has looked at every name, and here each is looked at again: it came from a guest. Only
files and folders come into being, none over another, none through a link. Above sits `machine cp`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from microvm_orchestrator import errors

if TYPE_CHECKING:
    from pathlib import Path

_MAX_NAME = 255
_MAX_DEPTH = 65
_MODE = 0o755
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Landing:
    """A folder of this host that a tree is written beneath."""

    def __init__(self, into: Path, max_size: int, max_entries: int) -> None:
        self.entries = 0
        self.size = 0
        self._left = 0
        self._max_size = max_size
        self._max_entries = max_entries
        self._root = os.open(into, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._file = -1

    def close(self) -> None:
        self._end_file()
        os.close(self._root)

    def begin(self, kind: str, path: bytes, mode: int, size: int) -> None:
        """Make a folder, or a file of so many bytes. Raises: InvalidInput, TooLarge, OSError."""
        self.finish()
        parts = _parts(path)
        self.entries += 1
        self.size += size
        if self.entries > self._max_entries or self.size > self._max_size or size < 0:
            raise errors.TooLarge(
                f"more than the {self._max_entries} entries or {self._max_size} bytes it may have"
            )
        folder = self._enter(parts[:-1])
        try:
            if kind == "folder":
                os.mkdir(parts[-1], mode & _MODE | 0o700, dir_fd=folder)
            elif kind == "file":
                self._file = os.open(parts[-1], _NEW_FILE, mode & _MODE | 0o600, dir_fd=folder)
                self._left = size
            else:
                raise errors.InvalidInput(f"an entry of the kind {kind!r}")
        finally:
            os.close(folder)

    def write(self, data: bytes) -> None:
        if len(data) > self._left:
            raise errors.InvalidInput("more of a file than was announced")
        view = memoryview(data)
        while view:
            view = view[os.write(self._file, view) :]
        self._left -= len(data)

    def finish(self) -> None:
        """Raises: InvalidInput when a file is not whole."""
        if self._left:
            raise errors.InvalidInput("less of a file than was announced")
        self._end_file()

    def _end_file(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _enter(self, parts: list[bytes]) -> int:
        """Open the folder of an entry, one name after the other."""
        folder = os.dup(self._root)
        for part in parts:
            try:
                inner = os.open(part, _FOLDER, dir_fd=folder)
            finally:
                os.close(folder)
            folder = inner
        return folder


def _parts(path: bytes) -> list[bytes]:
    parts = path.split(b"/")
    if b"\0" in path or any(part in (b"", b".", b"..") for part in parts):
        raise errors.InvalidInput(f"a name that reaches elsewhere: {path[:200]!r}")
    if len(parts) > _MAX_DEPTH or any(len(part) > _MAX_NAME for part in parts):
        raise errors.InvalidInput(f"a name that is too long or too deep: {path[:200]!r}")
    return parts
