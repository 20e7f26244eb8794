"""Single files in and out: `put` and `get`.

A file comes into being under another name beside its own and is renamed when it is whole. What is
read is a regular file whose size was announced first; one that changes meanwhile is an error.
"""

from __future__ import annotations

import os
import stat

import wire
from stream import Refused, Stream, refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from link import Link

MAX_SIZE = 2**50
MAX_PATH = 4096
# Of what is read at once. A virtio port takes 32 KiB at a time: with its frame this is two of them.
PIECE_BYTES = wire.MAX_DATA - wire.FRAME_BYTES


def path_of(fields: wire.Fields) -> bytes:
    """Return the absolute path that a request names."""
    path = wire.blob(fields, "path", MAX_PATH)
    if not path.startswith(b"/") or b"\0" in path:
        raise wire.Broken("a path is absolute and without NUL")
    return path


def open_regular(path: bytes, folder: int | None = None) -> tuple[int, os.stat_result]:
    """Open a regular file for reading; a FIFO or a device is refused and not waited for."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
    fd = os.open(path, flags if folder is None else flags | os.O_NOFOLLOW, dir_fd=folder)
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise Refused("invalid", f"{os.fsdecode(path)} is not a regular file")
    return fd, status


def owner_of(fields: wire.Fields) -> tuple[int, int] | None:
    """Return whom a request wants to own what it brings."""
    name = wire.blob(fields, "user", 256, b"")
    if not name:
        return None
    from spawn import find_user

    user = find_user(name)
    return user.uid, user.gid


def write_all(fd: int, payload: bytes) -> None:
    view = memoryview(payload)
    while view:
        view = view[os.write(fd, view) :]


def open_put(link: Link, number: int, fields: wire.Fields) -> Stream:
    return Put(link, number, fields)


def open_get(link: Link, number: int, fields: wire.Fields) -> Stream:
    path = path_of(fields)
    most = wire.integer(fields, "max_size", 0, MAX_SIZE)
    fd, status = open_regular(path)
    if status.st_size > most:
        os.close(fd)
        raise Refused(
            "too-large", f"{os.fsdecode(path)} has {status.st_size} bytes; allowed are {most}"
        )
    return Get(link, number, fd, status)


class Put(Stream):
    """A file that arrives."""

    def __init__(self, link: Link, number: int, fields: wire.Fields) -> None:
        super().__init__(link, number)
        self.path = path_of(fields)
        self.left = wire.integer(fields, "size", 0, MAX_SIZE)
        self.mode = wire.integer(fields, "mode", 0, 0o7777, 0o644)
        owner = owner_of(fields)
        folder, name = os.path.split(self.path)
        if wire.integer(fields, "parents", 0, 1, 0):
            os.makedirs(folder, exist_ok=True)
        self.part = os.path.join(folder, b".%s.%d.part" % (name[:200], number))
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        self.fd = os.open(self.part, flags, 0o600)
        try:
            if owner:
                os.fchown(self.fd, *owner)
        except OSError:
            self.on_over()
            raise

    def on_data(self, channel: int, payload: bytes) -> None:
        self.left -= len(payload)
        if self.left < 0:
            self.fail("invalid", "more bytes than were announced")
            return
        try:
            write_all(self.fd, payload)
        except OSError as error:
            self._fail(error)
        else:
            self.consumed(payload)

    def on_end(self) -> None:
        if self.left:
            self.fail("invalid", f"{self.left} bytes fewer than were announced")
            return
        try:
            os.fchmod(self.fd, self.mode)
            os.rename(self.part, self.path)
        except OSError as error:
            self._fail(error)
        else:
            self.part = b""
            self.result({})

    def on_over(self) -> None:
        os.close(self.fd)
        if self.part:
            try:
                os.unlink(self.part)
            except OSError:  # somebody in the guest was quicker
                pass

    def _fail(self, error: OSError) -> None:
        found = refusal(error, os.fsdecode(self.path))
        self.fail(found.code, found.message)


class Get(Stream):
    """A file that leaves."""

    def __init__(self, link: Link, number: int, fd: int, status: os.stat_result) -> None:
        super().__init__(link, number)
        self.fd = fd
        self.left = status.st_size
        self.about: wire.Fields = {"size": status.st_size, "mode": status.st_mode & 0o7777}

    def produce(self) -> None:
        if self.about:
            self.note(self.about)
            self.about = {}
        if self.left and self.credit < wire.MAX_DATA * 2:
            return  # until there is credit for a full frame
        if self.left:
            try:
                data = os.read(self.fd, min(self.left, PIECE_BYTES))
            except OSError as error:
                found = refusal(error)
                self.fail(found.code, found.message)
                return
            if not data:
                self.fail("failed", "the file became shorter while it was read")
                return
            self.left -= len(data)
            self.data(data)
        if self.left:
            self.link.enqueue(self)
        else:
            self.result({})

    def on_over(self) -> None:
        os.close(self.fd)
