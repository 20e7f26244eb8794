"""Folders with all they hold, in and out: `put_tree` and `get_tree`.

One entry after the other: a NOTE with its type, path below the root and mode, then the bytes of a
file. Only files and folders travel; what else there is is counted and named. Nothing is followed.
"""

from __future__ import annotations

import os
import stat

import wire
from files import MAX_SIZE, PIECE_BYTES, open_regular, owner_of, path_of, write_all
from stream import Refused, Stream, refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator

    from link import Link

MAX_DEPTH = 64
MAX_ENTRIES = 10_000_000
_NAMED_SKIPS = 16


def open_put_tree(link: Link, number: int, fields: wire.Fields) -> Stream:
    return PutTree(link, number, fields)


def open_get_tree(link: Link, number: int, fields: wire.Fields) -> Stream:
    return GetTree(link, number, fields)


class PutTree(Stream):
    """A folder that arrives."""

    def __init__(self, link: Link, number: int, fields: wire.Fields) -> None:
        super().__init__(link, number)
        self.owner = owner_of(fields)
        path = path_of(fields)
        os.makedirs(path, exist_ok=True)
        self.root = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        self.fd = -1
        self.left = 0
        self.modes: list[tuple[bytes, int]] = []  # of folders, set when they are filled

    def on_note(self, fields: wire.Fields) -> None:
        try:
            self._begin(fields)
        except wire.Broken as error:
            self.fail("invalid", str(error))
        except OSError as error:
            self._fail(error)

    def on_data(self, channel: int, payload: bytes) -> None:
        self.left -= len(payload)
        if self.left < 0:
            self.fail("invalid", "more bytes than were announced")
            return
        try:
            write_all(self.fd, payload)
        except OSError as error:
            self._fail(error)
            return
        self.consumed(payload)
        if not self.left:
            self._close_file()

    def on_end(self) -> None:
        if self.left:
            self.fail("invalid", f"{self.left} bytes fewer than were announced")
            return
        try:
            for path, mode in reversed(self.modes):
                os.chmod(path, mode, dir_fd=self.root)
        except OSError as error:
            self._fail(error)
        else:
            self.result({})

    def on_over(self) -> None:
        self._close_file()
        os.close(self.root)

    def _begin(self, fields: wire.Fields) -> None:
        if self.left:
            raise wire.Broken(f"{self.left} bytes fewer than were announced")
        path = _below(wire.blob(fields, "path", 4096))
        mode = wire.integer(fields, "mode", 0, 0o7777)
        if wire.blob(fields, "type", 8) == b"folder":
            try:
                os.mkdir(path, 0o700, dir_fd=self.root)
            except FileExistsError:
                status = os.stat(path, dir_fd=self.root, follow_symlinks=False)
                if not stat.S_ISDIR(status.st_mode):
                    raise
            self.modes.append((path, mode))
            if self.owner:
                os.chown(path, *self.owner, dir_fd=self.root, follow_symlinks=False)
            return
        self.left = wire.integer(fields, "size", 0, MAX_SIZE)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        self.fd = os.open(path, flags, 0o600, dir_fd=self.root)
        os.fchmod(self.fd, mode)
        if self.owner:
            os.fchown(self.fd, *self.owner)
        if not self.left:
            self._close_file()

    def _close_file(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _fail(self, error: OSError) -> None:
        found = refusal(error, os.fsdecode(error.filename or b""))
        self.fail(found.code, found.message)


class GetTree(Stream):
    """A folder that leaves."""

    def __init__(self, link: Link, number: int, fields: wire.Fields) -> None:
        super().__init__(link, number)
        path = path_of(fields)
        self.size_left = wire.integer(fields, "max_size", 0, MAX_SIZE)
        self.entries_left = wire.integer(fields, "max_entries", 0, MAX_ENTRIES)
        self.skipped = 0
        self.skips: list[bytes] = []
        self.fd = -1
        self.left = 0
        self.root = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        self.found = self._walk(b"", 0)

    def produce(self) -> None:
        try:
            if self.credit < wire.MAX_DATA * 2:
                return
            if self.left:
                self._go_on_with_file()
            elif not self._next_entry():
                self.result({"skipped": self.skipped, "skips": self.skips})
                return
        except OSError as error:
            found = refusal(error, os.fsdecode(error.filename or b""))
            self.fail(found.code, found.message)
        except Refused as error:
            self.fail(error.code, error.message)
        else:
            self.link.enqueue(self)

    def on_over(self) -> None:
        self.found.close()
        self._close_file()
        os.close(self.root)

    def _go_on_with_file(self) -> None:
        data = os.read(self.fd, min(self.left, PIECE_BYTES))
        if not data:
            raise Refused("failed", "a file became shorter while it was read")
        self.left -= len(data)
        self.data(data)
        if not self.left:
            self._close_file()

    def _next_entry(self) -> bool:
        entry = next(self.found, None)
        if entry is None:
            return False
        path, is_folder, folder, name = entry
        if is_folder:
            mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode & 0o7777
            self._count(0)
            self.note({"type": b"folder", "path": path, "mode": mode})
            return True
        self.fd, status = open_regular(name, folder)
        self.left = status.st_size
        self._count(self.left)
        mode = status.st_mode & 0o7777
        self.note({"type": b"file", "path": path, "mode": mode, "size": self.left})
        if not self.left:
            self._close_file()
        return True

    def _count(self, size: int) -> None:
        self.entries_left -= 1
        self.size_left -= size
        if self.entries_left < 0 or self.size_left < 0:
            raise Refused("too-large", "the folder holds more than is allowed")

    def _walk(self, below: bytes, depth: int) -> Generator[tuple[bytes, bool, int, bytes]]:
        """Find path, whether it is a folder, and where to open it; a folder before its entries."""
        if depth > MAX_DEPTH:
            raise Refused("too-large", f"folders are deeper than {MAX_DEPTH}")
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        folder = os.open(below or b".", flags, dir_fd=self.root)
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    name = os.fsencode(entry.name)
                    path = below + b"/" + name if below else name
                    if entry.is_dir(follow_symlinks=False):
                        yield path, True, folder, name
                        yield from self._walk(path, depth + 1)
                    elif entry.is_file(follow_symlinks=False):
                        yield path, False, folder, name
                    else:
                        self.skipped += 1
                        if self.skipped <= _NAMED_SKIPS:
                            self.skips.append(path[:512])
        finally:
            os.close(folder)

    def _close_file(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _below(path: bytes) -> bytes:
    parts = path.split(b"/")
    if b"\0" in path or any(part in (b"", b".", b"..") for part in parts):
        raise wire.Broken("a path in a tree is relative and without . or ..")
    return path
